//! What Bulkhead says about the machine at start.

use crate::options::NoDisplay;
use arch::console::{Display, KeyboardFound};
use arch::cpu::features::{self, Features};
use arch::mm::frames;
use arch::smp::{Started, Synchrony};
use hv::log::{always, info, warn};

/// The first line.
pub fn banner(loader: &str, command_line: &str) {
    always!("Bulkhead {}", crate::VERSION);
    info!("loaded by {loader}, command line: {command_line}");
}

pub fn cpu(features: &Features) {
    let brand = features::brand();
    let vendor = features::vendor();
    always!("CPU: {} ({vendor})", if brand.is_empty() { "no brand string" } else { brand.as_str() });
    let list = [
        ("NX", features.nx),
        ("1-GiB pages", features.pages_1g),
        ("SMEP", features.smep),
        ("SMAP", features.smap),
        ("UMIP", features.umip),
        ("x2APIC", features.x2apic),
        ("TSC deadline", features.tsc_deadline),
        ("invariant TSC", features.invariant_tsc),
    ];
    info!("CPU features used: {}; absent: {}", Names(&list, true), Names(&list, false));
    if features.hypervisor {
        info!("running under another hypervisor");
    }
}

/// The names whose value is as wanted.
struct Names<'a>(&'a [(&'a str, bool)], bool);

impl core::fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mut separator = "";
        for (name, _) in self.0.iter().filter(|(_, value)| *value == self.1) {
            write!(f, "{separator}{name}")?;
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// `started`: the CPUs beside the boot CPU; `present`: all that the firmware lists.
pub fn cpus(started: &[Started], present: usize) {
    let used = started.len() + 1;
    always!("CPUs: {used} of {} used", present.max(used));
    for cpu in started {
        let Started { number, apic_id, tsc } = *cpu;
        info!("CPU {number}: APIC ID {apic_id}");
        match tsc {
            Synchrony::Synchronous => {}
            Synchrony::Corrected(ticks) => always!("TSC: CPU {number} was off by {ticks} ticks, corrected"),
            Synchrony::Off(ticks) => warn!("TSC: CPU {number} is off by {ticks} ticks"),
            Synchrony::Unknown => warn!("TSC: CPU {number} could not be compared with the boot CPU"),
        }
    }
    if !started.is_empty() && started.iter().all(|cpu| matches!(cpu.tsc, Synchrony::Synchronous | Synchrony::Corrected(_))) {
        always!("TSC: synchronous on all CPUs");
    }
}

/// `ram`: bytes of RAM by the loader's memory map.
pub fn memory(ram: u64, limit: Option<u64>) {
    always!("Memory: {} MiB of RAM, {} MiB free for guests", ram >> 20, frames::free_bytes() >> 20);
    if let Some(limit) = limit {
        info!("Memory: RAM at and above {limit:#x} is not used (mem=)");
    }
}

pub fn modules(modules: &[hv::Module]) {
    for module in modules {
        always!("Module {}: {} bytes", module.name, module.data.len());
    }
    if modules.is_empty() {
        always!("No modules");
    }
}

pub fn display(result: Result<Option<Display>, NoDisplay>) {
    match result {
        Ok(None) => {}
        Ok(Some(Display::VgaText)) => info!("Display: VGA text"),
        Ok(Some(Display::FrameBuffer(l))) => {
            info!("Display: frame buffer {}x{}, {} bits, at {:#x}", l.width, l.height, l.bits_per_pixel, l.address);
        }
        // Not worth a warning: the default console includes the display, and servers often have none.
        Err(NoDisplay::Unknown) => info!("Display: none, the boot loader describes no screen"),
        Err(NoDisplay::Unusable(screen)) => warn!("Display: none, the boot loader's screen is unusable: {screen:?}"),
    }
}

pub fn keyboard(found: KeyboardFound) {
    match found {
        KeyboardFound::Interrupts => info!("Keyboard: PS/2"),
        KeyboardFound::Polled => warn!("Keyboard: PS/2, without an interrupt: slow to answer"),
        KeyboardFound::None => info!("Keyboard: none"),
    }
}
