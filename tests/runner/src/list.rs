//! Every test that runs in an emulator: what it is called, where it runs, and what must come out.
//!
//! The guest cases themselves are in `tests/guests`; each says there which architectural behaviour it checks.

use crate::{
    lines::GuestEnd,
    machine::{Accel, Clock, Firmware, Spec, Vendor},
    size::MemorySize,
};

/// Where a test runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Platform {
    SvmQemu,
    SvmUefi,
    /// QEMU counting instructions: what happens in it does not depend on the machine that it runs on.
    SvmIcount,
    VmxBochs,
    SvmBochs,
}

impl Platform {
    pub const ALL: [Self; 5] = [Self::SvmQemu, Self::SvmUefi, Self::SvmIcount, Self::VmxBochs, Self::SvmBochs];

    /// The first part of a test's name.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::SvmQemu => "svm/qemu",
            Self::SvmUefi => "svm/uefi",
            Self::SvmIcount => "svm/icount",
            Self::VmxBochs => "vmx/bochs",
            Self::SvmBochs => "svm/bochs",
        }
    }

    #[must_use]
    pub const fn spec(self) -> Spec {
        let spec = match self {
            Self::SvmQemu | Self::SvmUefi | Self::SvmIcount => Spec::new(Accel::Tcg, Vendor::Amd),
            Self::VmxBochs => Spec::new(Accel::Bochs, Vendor::Intel),
            Self::SvmBochs => Spec::new(Accel::Bochs, Vendor::Amd),
        };
        let firmware = match self {
            Self::SvmUefi => Firmware::Uefi,
            _ => Firmware::Bios,
        };
        let clock = match self {
            Self::SvmIcount => Clock::Instructions,
            _ => spec.clock,
        };
        Spec { firmware, clock, ..spec }
    }
}

/// How a guest must end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// By the debug-exit port with the byte 0x10: the guest has checked itself.
    Pass,
    /// By the debug-exit port with this status.
    Status(u32),
    /// In a crash whose reason contains these words (in any case of letters).
    Crash(&'static str),
    Reboot,
    Poweroff,
}

impl Expect {
    /// What was wrong, if anything.
    pub fn check(self, how: &GuestEnd) -> Result<(), String> {
        let right = match (self, how) {
            (Self::Pass, GuestEnd::DebugExit(status)) => *status == 0x21,
            (Self::Status(wanted), GuestEnd::DebugExit(status)) => *status == wanted,
            (Self::Crash(words), GuestEnd::Crash(reason)) => reason.to_lowercase().contains(words),
            (Self::Reboot, GuestEnd::Reboot) | (Self::Poweroff, GuestEnd::Poweroff) => true,
            _ => false,
        };
        if right { Ok(()) } else { Err(format!("ended: {how}; expected: {self:?}")) }
    }
}

/// A case of the test guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestTest {
    /// The `test=` on its command line.
    pub name: &'static str,
    pub expect: Expect,
    pub on: &'static [Platform],
    pub vcpus: u32,
    /// A module: the test guest in one form or another.
    pub kernel: &'static str,
    /// More lines for its configuration.
    pub config: &'static str,
}

/// QEMU by its count of instructions: its clock must not go on while it waits for a CPU itself.
const BOTH_VENDORS: &[Platform] = &[Platform::SvmIcount, Platform::VmxBochs, Platform::SvmBochs];

const fn pass(name: &'static str) -> GuestTest {
    ends(name, Expect::Pass)
}

const fn ends(name: &'static str, expect: Expect) -> GuestTest {
    GuestTest { name, expect, on: BOTH_VENDORS, vcpus: 1, kernel: GUEST_KERNEL, config: "" }
}

const fn smp(name: &'static str, vcpus: u32) -> GuestTest {
    GuestTest { vcpus, ..pass(name) }
}

/// All cases of the test guest but the benchmark.
pub const GUESTS: &[GuestTest] = &[
    pass("cpuid-policy"),
    GuestTest {
        config: "cpuid = \"host,maxleaf=13,family=31,model=26,stepping=3,brandid=9,sse4_2=0,x2apic=0,tsc-deadline=0,hypervisor=0,\
                 xsave=0,sse3=1,de=0,tsc_adjust=0,rdtscp=0,rdpid=0,syscall=0\"\n",
        ..pass("cpuid-mask")
    },
    pass("msr-policy"),
    pass("msr-state"),
    pass("tsc"),
    GuestTest { config: "tsc_mode = \"always_emulate\"\n", ..pass("tsc-emulated") },
    pass("control-registers"),
    pass("vector-state"),
    GuestTest { config: "ramdisk = \"guests\"\n", ..pass("multiboot-info") },
    GuestTest { config: "ramdisk = \"guests\"\nkernel_format = \"multiboot2\"\n", ..pass("multiboot2-info") },
    GuestTest { config: "ramdisk = \"guests\"\nkernel_format = \"pvh\"\n", ..pass("pvh-info") },
    GuestTest {
        kernel: FLAT_KERNEL,
        config: "ramdisk = \"guests\"\nkernel_format = \"flat\"\nload_address = 0x100000\nentry = 0x100010\n",
        ..pass("flat-image")
    },
    pass("port-widths"),
    pass("port-unclaimed"),
    pass("string-io"),
    pass("mmio-widths"),
    pass("mmio-forms"),
    pass("mmio-unbacked"),
    pass("serial-loopback"),
    pass("pci-config"),
    pass("rtc-clock"),
    pass("acpi-tables"),
    pass("hlt-wake"),
    pass("sti-shadow"),
    pass("exceptions"),
    pass("exception-during-exit"),
    pass("single-step"),
    pass("nmi"),
    // QEMU lets debug registers be read whatever DR7.GD says.
    GuestTest { on: &[Platform::VmxBochs, Platform::SvmBochs], ..pass("general-detect") },
    pass("nmi-shadow"),
    pass("page-fault"),
    pass("real-mode"),
    pass("protected-mode"),
    pass("user-mode"),
    pass("task-switch"),
    // QEMU switches tasks by itself, whatever is intercepted, and leaves these out.
    GuestTest { on: &[Platform::VmxBochs, Platform::SvmBochs], ..pass("task-switch-details") },
    // Bochs' AMD model cannot leave a guest that is in virtual-8086 mode.
    GuestTest { on: &[Platform::SvmIcount, Platform::VmxBochs], ..pass("task-switch-v86") },
    pass("timer-pit"),
    pass("timer-pit-irq"),
    pass("timer-pm"),
    pass("timer-lapic-oneshot"),
    pass("timer-lapic-periodic"),
    pass("timer-tsc-deadline"),
    pass("timer-rtc"),
    pass("timers-agree"),
    pass("pic-delivery"),
    pass("ioapic-delivery"),
    pass("lapic-priority"),
    pass("lapic-forms"),
    pass("self-ipi"),
    pass("x2apic"),
    pass("x2apic-delivery"),
    pass("serial-irq"),
    pass("pic-modes"),
    pass("pic-spurious"),
    pass("pit-modes"),
    pass("ioapic-modes"),
    pass("lapic-modes"),
    pass("lost-ticks"),
    pass("hpet"),
    pass("rtc-modes"),
    GuestTest { config: "localtime = 1\nrtc_timeoffset = 93784\n", ..pass("rtc-offset") },
    pass("acpi-events"),
    pass("i8042"),
    GuestTest { config: "serial = [\"pty\", \"log\", \"none\", \"null\"]\n", ..pass("serial-ports") },
    pass("pci-ecam"),
    GuestTest { config: "serial = [\"pty\", \"none\", \"none\", \"none\", \"null\"]\n", ..pass("pci-device") },
    pass("work"),
    smp("smp-startup", 8),
    smp("smp-startup-32", 32),
    smp("smp-init-again", 2),
    GuestTest { vcpus: 2, ..ends("smp-init-boot-processor", Expect::Reboot) },
    // An entry to a guest with interrupts off masks the host's interrupts, too, on Bochs' AMD model: such a loop would have the CPU for itself.
    GuestTest { on: &[Platform::SvmIcount, Platform::VmxBochs], ..smp("smp-busy-loop", 2) },
    smp("smp-ipi", 4),
    smp("smp-lowest-priority", 4),
    smp("smp-nmi", 4),
    smp("smp-hlt-wake", 3),
    smp("smp-tsc", 4),
    smp("smp-shootdown", 3),
    smp("smp-lock", 4),
    smp("smp-topology", 3),
    pass("kvm-features"),
    GuestTest { config: "viridian = 1\n", ..pass("viridian") },
    smp("smp-paravirt", 3),
    ends("debug-exit", Expect::Status(0x55)),
    // Bochs' AMD model does not know the SHUTDOWN intercept: it stops the emulator at a guest's triple fault.
    GuestTest { on: &[Platform::SvmIcount, Platform::VmxBochs], ..ends("triple-fault", Expect::Crash("triple fault")) },
    ends("reset-cf9", Expect::Reboot),
    ends("reset-8042", Expect::Reboot),
    ends("power-off", Expect::Poweroff),
];

/// Cases that do not end by themselves, or not alone: parts of the scenarios.
pub const SCENARIO_CASES: &[&str] = &["progress", "idle", "hog", "buttons", "memory-fill", "memory-zero", "keeps-time"];

/// The module with the test guest.
pub const GUEST_KERNEL: &str = "guests";
/// The same as a flat image, for 1 MiB.
pub const FLAT_KERNEL: &str = "guests.bin";

/// Memory of a test guest.
const GUEST_MEMORY_MIB: u32 = 32;

/// The configuration that runs `case` once.
#[must_use]
pub fn guest_config(case: &str) -> String {
    guest_config_of(case, case)
}

/// The configuration of guest `name` that runs `case`, which may have options behind it.
#[must_use]
pub fn guest_config_of(name: &str, case: &str) -> String {
    let test = GUESTS.iter().find(|test| test.name == name);
    let (vcpus, kernel, more) = test.map_or((1, GUEST_KERNEL, ""), |test| (test.vcpus, test.kernel, test.config));
    format!(
        "name = \"{name}\"\ntype = \"hvm\"\nmemory = {GUEST_MEMORY_MIB}\nvcpus = {vcpus}\nkernel = \"{kernel}\"\n\
         cmdline = \"test={case}\"\nisa_debug_exit = 0xf4\n\
         on_poweroff = \"destroy\"\non_reboot = \"destroy\"\non_crash = \"destroy\"\n{more}"
    )
}

/// Guests that run at the same time, one of which crashes: the others must not notice.
pub const TOGETHER: &[&str] = &["cpuid-policy", "triple-fault", "string-io", "exceptions", "reset-cf9"];
pub const TOGETHER_ON: &[Platform] = &[Platform::SvmQemu, Platform::VmxBochs];

/// A configuration that must be refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RefusalTest {
    /// Also the module's name, with `.cfg`.
    pub name: &'static str,
    pub config: &'static str,
    /// Where the message must point.
    pub line: u32,
    /// How it must start after `FILE:LINE: ` (the key), and what it must contain.
    pub key: &'static str,
    pub reason: &'static str,
}

const fn refusal(name: &'static str, config: &'static str, line: u32, key: &'static str, reason: &'static str) -> RefusalTest {
    RefusalTest { name, config, line, key, reason }
}

/// A module that is no kernel.
pub const GARBAGE: &str = "garbage";

/// Bad configurations, in one boot with a good one, which must start all the same.
pub const REFUSALS: &[RefusalTest] = &[
    refusal("unknown-key", "name = \"a\"\nmemory = 32\nkernel = \"guests\"\nflavour = \"sour\"\n", 4, "flavour", "unknown key"),
    refusal("misspelt-key", "name = \"b\"\nmemroy = 32\nkernel = \"guests\"\n", 2, "memroy", "did you mean memory"),
    refusal("unsupported-key", "name = \"c\"\nmemory = 32\nkernel = \"guests\"\n\ndisk = []\n", 5, "disk", "not supported"),
    refusal("missing-module", "name = \"d\"\nmemory = 32\nkernel = \"absent\"\n", 3, "kernel", "absent"),
    refusal("no-kernel", "name = \"e\"\nmemory = 32\n", 1, "kernel", "missing"),
    refusal("garbage-kernel", "name = \"f\"\nmemory = 32\nkernel = \"garbage\"\n", 3, "kernel", "not a kernel"),
    refusal("too-much-memory", "name = \"g\"\nkernel = \"guests\"\nmemory = 16384\n", 3, "memory", "more memory than there is"),
    refusal("too-many-vcpus", "name = \"h\"\nmemory = 32\nkernel = \"guests\"\nvcpus = 4096\n", 4, "vcpus", "4096"),
    refusal("not-toml", "name = \"i\"\nmemory = 32\nkernel = guests\n", 3, "kernel", "not valid TOML"),
    refusal(
        "not-that-format",
        "name = \"k\"\nmemory = 32\nkernel_format = \"linux\"\nkernel = \"guests\"\n",
        3,
        "kernel_format",
        "no Linux boot header",
    ),
    refusal("no-such-feature", "name = \"l\"\nmemory = 32\nkernel = \"guests\"\ncpuid = \"host,vmx=1\"\n", 4, "cpuid", "vmx=1"),
    refusal("wrong-type", "name = \"j\"\nmemory = [32]\nkernel = \"guests\"\n", 2, "memory", "must be"),
];
pub const REFUSALS_ON: &[Platform] = &[Platform::SvmQemu];
/// The good one.
pub const REFUSALS_SURVIVOR: &str = "cpuid-policy";

/// Linux boots with the default guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinuxTest {
    pub on: Platform,
    pub vcpus: u32,
    /// Host CPUs.
    pub cpus: u32,
    /// Also restart it: costs a second boot.
    pub reboot: Reboot,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reboot {
    Tested,
    NotTested,
}

pub const LINUX: &[LinuxTest] = &[
    LinuxTest { on: Platform::SvmQemu, vcpus: 1, cpus: 1, reboot: Reboot::Tested },
    LinuxTest { on: Platform::VmxBochs, vcpus: 1, cpus: 1, reboot: Reboot::Tested },
    LinuxTest { on: Platform::SvmUefi, vcpus: 1, cpus: 1, reboot: Reboot::NotTested },
    LinuxTest { on: Platform::SvmQemu, vcpus: 4, cpus: 1, reboot: Reboot::NotTested },
    LinuxTest { on: Platform::SvmQemu, vcpus: 4, cpus: 2, reboot: Reboot::Tested },
    LinuxTest { on: Platform::VmxBochs, vcpus: 2, cpus: 2, reboot: Reboot::NotTested },
];
pub const LINUX_MEMORY: MemorySize = MemorySize::from_mib(256);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// The names in the test guest's own table.
    fn cases_of_the_guest() -> HashSet<String> {
        let source = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../guests/src/cases/mod.rs")).unwrap();
        let cases = source.lines().filter_map(|l| l.trim().strip_prefix("(\"")?.split_once('"')).map(|(name, _)| name.to_owned());
        cases.collect()
    }

    #[test]
    fn the_list_and_the_guest_have_the_same_cases() {
        let mut listed: HashSet<String> = GUESTS.iter().map(|t| t.name.to_owned()).collect();
        assert_eq!(listed.len(), GUESTS.len(), "a case is listed twice");
        listed.insert(crate::bench::CASE.to_owned());
        listed.extend(SCENARIO_CASES.iter().map(|case| (*case).to_owned()));
        assert_eq!(listed, cases_of_the_guest());
    }

    #[test]
    fn only_the_expected_end_will_do() {
        let crash = GuestEnd::Crash("Triple fault at 0x10".into());
        for (expect, how, right) in [
            (Expect::Pass, GuestEnd::DebugExit(33), true),
            (Expect::Pass, GuestEnd::DebugExit(35), false),
            (Expect::Pass, GuestEnd::Poweroff, false),
            (Expect::Status(0x55), GuestEnd::DebugExit(0x55), true),
            (Expect::Crash("triple fault"), crash.clone(), true),
            (Expect::Crash("entry"), crash, false),
            (Expect::Reboot, GuestEnd::Reboot, true),
            (Expect::Poweroff, GuestEnd::Reboot, false),
        ] {
            assert_eq!(expect.check(&how).is_ok(), right, "{expect:?} {how:?}");
        }
    }

    #[test]
    fn every_refusal_points_at_the_line_of_its_key() {
        for test in REFUSALS {
            let line = test.config.lines().nth(test.line as usize - 1).unwrap();
            assert!(line.starts_with(test.key) || test.reason == "missing", "{}: {line}", test.name);
        }
    }
}
