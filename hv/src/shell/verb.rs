//! The verbs: xl's, as far as they make sense here, with their usage.

use crate::config::distance;
use alloc::vec::Vec;

/// What the shell can be told to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Verb {
    Help,
    List,
    VcpuList,
    Create,
    Destroy,
    Pause,
    Unpause,
    Shutdown,
    Reboot,
    Poweroff,
    Console,
    Trigger,
    VcpuPin,
    SchedCredit2,
    Dmesg,
    Info,
    Top,
    Uptime,
    DebugKeys,
}

/// What stands at a place after the verb, for completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arg {
    Verb,
    Guest,
    /// A boot module that is a guest configuration.
    Config,
    Trigger,
    /// A vCPU's number, or `all`.
    Vcpu,
    Cpus,
}

/// A verb's entry in the table.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: &'static str,
    /// What follows the verb.
    pub usage: &'static str,
    /// One line.
    pub summary: &'static str,
    pub args: &'static [Arg],
    pub flags: &'static [&'static str],
    /// Flags that xl knows and Bulkhead does not support.
    pub unsupported: &'static [&'static str],
}

impl Verb {
    pub const ALL: [Self; 19] = [
        Self::Help,
        Self::List,
        Self::VcpuList,
        Self::Create,
        Self::Destroy,
        Self::Pause,
        Self::Unpause,
        Self::Shutdown,
        Self::Reboot,
        Self::Poweroff,
        Self::Console,
        Self::Trigger,
        Self::VcpuPin,
        Self::SchedCredit2,
        Self::Dmesg,
        Self::Info,
        Self::Top,
        Self::Uptime,
        Self::DebugKeys,
    ];

    #[rustfmt::skip]
    pub(super) const fn entry(self) -> &'static Entry {
        const fn entry(name: &'static str, usage: &'static str, summary: &'static str, args: &'static [Arg]) -> Entry {
            Entry { name, usage, summary, args, flags: &[], unsupported: &[] }
        }
        match self {
            Self::Help => const { &entry("help", "[VERB]", "the verbs, or one verb's usage", &[Arg::Verb]) },
            Self::List => const { &Entry {
                unsupported: &["-l", "--long", "-v", "--verbose", "-Z", "--context", "-c", "--cpupool", "-n", "--numa"],
                ..entry("list", "[GUEST]", "the guests, or one of them", &[Arg::Guest])
            } },
            Self::VcpuList => const { &entry("vcpu-list", "[GUEST ...]", "the vCPUs of all guests, or of some", &[Arg::Guest]) },
            Self::Create => const { &Entry {
                flags: &["-c", "-p"],
                unsupported: &["-f", "-q", "--quiet", "-n", "--dryrun", "-d", "-F", "-e", "-V", "--vncviewer", "-A"],
                ..entry("create", "[-c] [-p] CONFIG",
                    "start a guest from a boot module (-c: give it the console, -p: paused)", &[Arg::Config])
            } },
            Self::Destroy => const { &Entry {
                unsupported: &["-f"],
                ..entry("destroy", "GUEST", "end a guest at once", &[Arg::Guest])
            } },
            Self::Pause => const { &entry("pause", "GUEST", "let a guest stand still", &[Arg::Guest]) },
            Self::Unpause => const { &entry("unpause", "GUEST", "let a paused guest go on", &[Arg::Guest]) },
            Self::Shutdown => const { &Entry {
                flags: &["-a"],
                // There is nothing to fall back from: -F is how it always goes.
                unsupported: &["-w", "--wait"],
                ..entry("shutdown", "-a|GUEST", "press the power button of a guest, or of all (-a)", &[Arg::Guest])
            } },
            Self::Reboot => const { &Entry {
                flags: &["-f"],
                unsupported: &["-w", "--wait", "-a"],
                ..entry("reboot", "GUEST | [-f]",
                    "let a guest shut down and start again; without one: restart the host (-f: without asking)", &[Arg::Guest])
            } },
            Self::Poweroff => const { &Entry {
                flags: &["-f"],
                ..entry("poweroff", "[-f]", "switch the host off (-f: without asking)", &[])
            } },
            Self::Console => const { &Entry {
                unsupported: &["-t", "-n", "-r", "-s"],
                ..entry("console", "GUEST", "give a guest the console", &[Arg::Guest])
            } },
            Self::Trigger => const { &entry("trigger", "GUEST nmi|power|sleep|reset [VCPU]",
                "send a guest an NMI, or press its power, sleep or reset button", &[Arg::Guest, Arg::Trigger, Arg::Vcpu]) },
            Self::VcpuPin => const { &Entry {
                unsupported: &["-f", "--force"],
                ..entry("vcpu-pin", "GUEST VCPU|all CPUS|all",
                    "let a vCPU run only on these host CPUs, such as 0-3,^2", &[Arg::Guest, Arg::Vcpu, Arg::Cpus])
            } },
            Self::SchedCredit2 => const { &Entry {
                flags: &["-d", "-w", "-c"],
                unsupported: &["-p", "-s", "-r"],
                ..entry("sched-credit2", "[-d GUEST [-w WEIGHT] [-c CAP]]",
                    "show the guests' weights and caps, or set them", &[])
            } },
            Self::Dmesg => const { &Entry {
                flags: &["-c"],
                ..entry("dmesg", "[-c]", "the hypervisor's log (-c: and forget it)", &[])
            } },
            Self::Info => const { &Entry {
                unsupported: &["-n", "--numa"],
                ..entry("info", "", "about the host", &[])
            } },
            Self::Top => const { &entry("top", "", "CPU time and exits of each vCPU since the last top", &[]) },
            Self::Uptime => const { &Entry {
                unsupported: &["-s", "--short"],
                ..entry("uptime", "[GUEST ...]", "how long host and guests have been up", &[Arg::Guest])
            } },
            Self::DebugKeys => const { &entry("debug-keys", "KEYS", "dump the hypervisor's state; debug-keys h names the keys", &[]) },
        }
    }

    /// As it is typed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.entry().name
    }

    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.name() == name)
    }

    /// The verbs that `name` may have been meant to be: those that it starts, or a slip away from it.
    #[must_use]
    pub fn near(name: &str) -> Vec<&'static str> {
        let slips = match name.len() {
            0..=1 => 0,
            2..=4 => 1,
            _ => 2,
        };
        let starts = |verb: &Self| !name.is_empty() && verb.name().starts_with(name);
        let close = |verb: &Self| name.len() < 40 && distance(name.as_bytes(), verb.name().as_bytes()) <= slips;
        Self::ALL.into_iter().filter(|verb| starts(verb) || close(verb)).map(Self::name).collect()
    }
}

/// True for a verb of xl(1) (Xen 4.17) that Bulkhead does not have.
pub(super) fn xl_knows(name: &str) -> bool {
    XL_VERBS.binary_search(&name).is_ok()
}

/// Sorted.
#[rustfmt::skip]
const XL_VERBS: &[&str] = &[
    "block-attach", "block-detach", "block-list", "cd-eject", "cd-insert", "claims", "config-update", "cpupool-cpu-add",
    "cpupool-cpu-remove", "cpupool-create", "cpupool-destroy", "cpupool-list", "cpupool-migrate", "cpupool-numa-split",
    "cpupool-rename", "devd", "domid", "domname", "dump-core", "getenforce", "loadpolicy", "mem-max", "mem-set", "migrate",
    "migrate-receive", "network-attach", "network-detach", "network-list", "pci-assignable-add", "pci-assignable-list",
    "pci-assignable-remove", "pci-attach", "pci-detach", "pci-list", "psr-cat-set", "psr-cat-show", "psr-cmt-attach",
    "psr-cmt-detach", "psr-cmt-show", "psr-hwinfo", "psr-mba-set", "psr-mba-show", "qemu-monitor-command", "remus", "rename",
    "restore", "save", "sched-credit", "sched-rtds", "set-parameters", "setenforce", "sharing", "sysrq", "usb-list",
    "usbctrl-attach", "usbctrl-detach", "usbdev-attach", "usbdev-detach", "vcpu-set", "vkb-attach", "vkb-detach", "vkb-list",
    "vm-list", "vncviewer", "vsnd-attach", "vsnd-detach", "vsnd-list", "vtpm-attach", "vtpm-detach", "vtpm-list",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_searchable_and_apart() {
        for name in XL_VERBS {
            assert!(xl_knows(name), "{name} is out of order");
            assert_eq!(Verb::find(name), None, "{name} is in both tables");
        }
        for (n, verb) in Verb::ALL.into_iter().enumerate() {
            assert_eq!(verb as usize, n);
            assert_eq!(Verb::find(verb.name()), Some(verb));
            let entry = verb.entry();
            assert!(entry.flags.iter().all(|flag| entry.usage.contains(flag)), "{}", entry.name);
            assert!(entry.flags.iter().all(|flag| !entry.unsupported.contains(flag)), "{}", entry.name);
        }
    }

    #[test]
    fn slips_are_recognised() {
        for (slip, meant) in [
            ("lst", &["list"][..]),
            ("lits", &["list"]),
            ("vcpu", &["vcpu-list", "vcpu-pin"]),
            ("vcpu-lsit", &["vcpu-list"]),
            ("shutdwon", &["shutdown"]),
            ("pause ", &["pause"]),
            ("DESTROY", &["destroy"]),
            ("re", &["reboot"]),
            ("exit", &[]),
            ("x", &[]),
        ] {
            assert_eq!(Verb::near(slip), meant, "{slip}");
        }
    }
}
