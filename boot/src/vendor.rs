//! Picks the vendor, once: everything behind `hv::run` is compiled for it.

use alloc::boxed::Box;
use arch::{
    cpu,
    platform::{Machine, Vendor},
    smp,
    virt::{self, Virtualisation},
};
use core::fmt::Display;
use hv::{
    BootInfo,
    log::{always, info},
};
use x86defs::VirtFeature;

/// Enables virtualisation on all CPUs and runs the guests. Without virtualisation, says why and stays.
pub fn run(boot: &BootInfo) -> ! {
    match virt::detect() {
        Ok(Virtualisation::Svm(svm)) => start(&svm.features(), svm, boot),
        Ok(Virtualisation::Vmx(mut vmx)) => {
            if !boot.options.apicv {
                vmx.disable_virtual_apic();
            }
            start(&vmx.features(), vmx, boot)
        }
        Err(reason) => cannot_run(&reason),
    }
}

fn start<V: Vendor>(features: &[VirtFeature], vendor: V, boot: &BootInfo) -> ! {
    let list = |wanted: fn(&VirtFeature) -> bool| {
        let names: alloc::vec::Vec<_> = features.iter().filter(|f| wanted(f)).map(|f| f.name).collect();
        if names.is_empty() { "none".into() } else { names.join(", ") }
    };
    let started = smp::online();
    let machine = match Machine::new(vendor) {
        Ok(machine) => Box::leak(Box::new(machine)),
        Err(reason) => cannot_run(&reason),
    };
    if smp::online() < started {
        always!("CPUs: {} of the {started} that were started can run guests", smp::online());
    }
    always!("Virtualisation: {}, using {}", V::NAME, list(|f| f.used));
    info!("{}: present but not used: {}", V::NAME, list(|f| f.present && !f.used));
    info!("{}: absent: {}", V::NAME, list(|f| !f.present));
    hv::run(machine, boot)
}

fn cannot_run(reason: &dyn Display) -> ! {
    always!("Virtualisation: {reason}");
    always!("no guest can run on this machine");
    loop {
        cpu::wait_for_interrupt();
    }
}
