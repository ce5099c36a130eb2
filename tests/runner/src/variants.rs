//! Linux as it is not started usually: other kernels, other ways to start them, other words on their command line.

use crate::{
    lines::GuestEnd,
    linux::{self, Expected},
    list::{LINUX_MEMORY, Platform},
    session::Outcome,
};

/// A Linux, with whatever is special about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Variant {
    pub name: &'static str,
    /// Where, and whether each time.
    pub on: &'static [(Platform, When)],
    pub kernel: Kernel,
    /// On its command line, behind the console.
    cmdline: &'static str,
    /// More lines for its configuration.
    config: &'static str,
    expected: Expected,
    end: Ending,
}

/// When a test runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    Always,
    /// With `--long` only.
    Long,
}

/// Which of Debian's kernels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernel {
    /// The default guest's.
    Cloud,
    /// The same, unpacked: an ELF file.
    Unpacked,
    /// 32 bits, with PAE.
    Pae,
}

/// How the shell ends the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    Poweroff,
    /// What there is without ACPI.
    Reboot,
}

/// Virtual CPUs, on one of the host's.
const VCPUS: u32 = 2;

/// QEMU by its count of instructions: nothing depends on how fast the machine is.
const LONG: &[(Platform, When)] = &[(Platform::SvmIcount, When::Long), (Platform::VmxBochs, When::Long)];
/// Where it is quicker, for all that it shares that with the other tests of Linux.
const QUICK: &[(Platform, When)] = &[(Platform::SvmQemu, When::Always), (Platform::VmxBochs, When::Long)];

const fn flags(name: &'static str, cmdline: &'static str) -> Variant {
    Variant { name, on: LONG, kernel: Kernel::Cloud, cmdline, config: "", expected: Expected::of(VCPUS), end: Ending::Poweroff }
}

const fn clock(name: &'static str, cmdline: &'static str, clocksource: &'static str) -> Variant {
    Variant { expected: Expected { clocksource, ..Expected::of(VCPUS) }, ..flags(name, cmdline) }
}

/// Without local APICs: one processor, with the interrupts of the 8259 pair.
const PIC_ONLY: Expected = Expected {
    tick: "0:",
    excused: &[
        "ACPI: MPS support code is not built-in",
        "smpboot: weird, boot CPU (#0) not listed by the BIOS",
        "PMU not available due to virtualization",
        // It was away between setting a timer and looking whether that was in time.
        "CE: hpet increased min_delta_ns",
    ],
    ..Expected::of(1)
};

pub const VARIANTS: &[Variant] = &[
    Variant {
        on: QUICK,
        kernel: Kernel::Pae,
        // A frame of asterisks around its advice to take a 64-bit kernel on a processor with PCID.
        expected: Expected { machine: "i686", excused: &["**"], ..Expected::of(VCPUS) },
        ..flags("linux-686", "")
    },
    Variant { on: QUICK, kernel: Kernel::Unpacked, config: "kernel_format = \"pvh\"\n", ..flags("linux-pvh", "") },
    Variant { on: QUICK, ..flags("linux-noapic", "noapic") },
    Variant { expected: PIC_ONLY, ..flags("linux-nolapic", "nolapic") },
    flags("linux-nox2apic", "nox2apic"),
    // Debian's kernel knows no tables but ACPI's that would tell of processors and interrupt controllers.
    Variant { on: QUICK, expected: PIC_ONLY, end: Ending::Reboot, ..flags("linux-acpi-off", "acpi=off") },
    clock("linux-clocksource-hpet", "clocksource=hpet", "hpet"),
    clock("linux-clocksource-acpi-pm", "clocksource=acpi_pm", "acpi_pm"),
    clock("linux-clocksource-pit", "clocksource=pit", "pit"),
    flags("linux-nokaslr", "nokaslr"),
    flags("linux-no-kvmclock", "no-kvmclock"),
];

impl Variant {
    /// The configuration of a guest with this kernel and initramfs, names of modules.
    #[must_use]
    pub fn guest_config(&self, kernel: &str, ramdisk: &str) -> String {
        format!(
            "name = \"debian\"\ntype = \"hvm\"\nmemory = {}\nvcpus = {VCPUS}\nkernel = \"{kernel}\"\nramdisk = \"{ramdisk}\"\n\
             cmdline = \"console=ttyS0 {}\"\non_reboot = \"destroy\"\n{}",
            LINUX_MEMORY.mib(),
            self.cmdline,
            self.config
        )
    }

    /// What is typed.
    #[must_use]
    pub fn script(&self) -> String {
        let last = match self.end {
            Ending::Poweroff => "poweroff -f\n",
            Ending::Reboot => "reboot -f\n",
        };
        linux::probes() + last
    }

    /// Judges all that was on the console.
    pub fn check(&self, console: &str, outcome: &Outcome) -> Result<(), String> {
        linux::check_all(console, &self.expected, true)?;
        let wanted = match self.end {
            Ending::Poweroff => GuestEnd::Poweroff,
            Ending::Reboot => GuestEnd::Reboot,
        };
        match outcome.ends().next() {
            Some((_, how)) if *how == wanted => Ok(()),
            other => Err(format!("the guest ended with {other:?}, not {wanted:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_variant_has_a_name_of_its_own_and_runs_on_both_vendors() {
        let names: HashSet<&str> = VARIANTS.iter().map(|v| v.name).collect();
        assert_eq!(names.len(), VARIANTS.len());
        for variant in VARIANTS {
            let on: HashSet<&str> = variant.on.iter().map(|(platform, _)| &platform.label()[..3]).collect();
            assert_eq!(on, HashSet::from(["svm", "vmx"]), "{}", variant.name);
        }
    }
}
