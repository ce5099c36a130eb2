//! `cargo xtask bench`: what a VM exit costs in host instructions, beside what KVM and Xen take for it on the same emulated machines.

use anyhow::Result;
use clap::Args;
use runner::{
    machine::{Accel, Clock, Spec, Vendor},
    suite,
};

use crate::{
    progress::{Spinner, say},
    run::VendorArgument,
    test,
    tools::{self, Consent},
    workspace::Workspace,
};

#[derive(Args, Clone, Debug, Default)]
pub struct BenchArguments {
    /// Only this vendor (AMD-V on QEMU TCG, VT-x on Bochs)
    #[arg(long, value_enum)]
    vendor: Option<VendorArgument>,
}

/// What one of the guest's measurements is called in the table, and what the peers take: medians of the same guest program, seen by
/// RDTSC, with the peers' default mitigations. KVM is Debian's 6.1, Xen Debian's 4.17 with a PVH guest.
struct Row {
    name: &'static str,
    title: &'static str,
    /// KVM and Xen on SVM, KVM and Xen on VMX (Xen's with mitigations off).
    peers: [Option<u64>; 4],
}

const fn row(name: &'static str, title: &'static str, peers: [Option<u64>; 4]) -> Row {
    Row { name, title, peers }
}

const ROWS: &[Row] = &[
    row("cpuid", "CPUID", [Some(3126), Some(5380), Some(1059), Some(836)]),
    row("hypercall", "hypercall", [Some(3382), Some(5473), Some(1092), Some(804)]),
    row("pit-read", "port read, PIT", [Some(1746), Some(1087), Some(1375), Some(1194)]),
    row("pic-read", "port read, PIC", [None; 4]),
    row("pm-timer-read", "port read, PM timer", [None; 4]),
    row("serial-lsr-read", "port read, serial LSR", [Some(3668), Some(1093), Some(7484), Some(1200)]),
    row("unclaimed-port-read", "port read, nothing there", [None; 4]),
    row("port-80-write", "port write, 0x80", [None; 4]),
    row("msr-read-apic-base", "intercepted RDMSR", [Some(3201), Some(5265), Some(1170), Some(708)]),
    row("msr-write-efer", "intercepted WRMSR (EFER)", [Some(3427), Some(5356), Some(1931), Some(883)]),
    row("xapic-tpr-read", "xAPIC TPR read", [Some(3929), Some(14192), Some(15456), Some(1)]),
    row("xapic-eoi", "xAPIC EOI", [Some(3865), Some(17822), Some(8044), Some(3)]),
    row("xapic-self-ipi", "xAPIC self-IPI, handler, EOI", [Some(9723), Some(36219), Some(17825), Some(24)]),
    row("x2apic-eoi", "x2APIC EOI", [Some(3284), Some(5486), Some(1258), Some(3)]),
    row("x2apic-self-ipi", "x2APIC self-IPI, handler, EOI", [Some(8529), Some(11548), Some(4235), Some(1415)]),
    row("x2apic-timer-arm", "LAPIC timer arm (x2APIC)", [Some(4038), Some(6323), None, Some(1730)]),
    row("hlt-interrupt-pending", "HLT, interrupt pending", [Some(9380), Some(12049), None, Some(1350)]),
    row("ioapic-read", "MMIO read, IOAPIC", [Some(4253), Some(14906), Some(8046), Some(14461)]),
    row("mmio-nothing-there", "MMIO read, nothing there", [Some(6203), Some(14906), Some(10102), Some(14461)]),
    row("exception-ud", "#UD", [Some(3124), Some(15), Some(7173), Some(15)]),
    row("rep-outsb-16", "REP OUTSB, 16 bytes", [Some(117_444), Some(26822), Some(181_933), Some(32707)]),
];

pub fn run(workspace: &Workspace, arguments: &BenchArguments, consent: Consent) -> Result<()> {
    let vendors = match arguments.vendor {
        Some(vendor) => vec![Vendor::from(vendor)],
        None => vec![Vendor::Amd, Vendor::Intel],
    };
    let emulators: Vec<_> = vendors.iter().map(|v| if *v == Vendor::Amd { tools::QEMU } else { tools::BOCHS }).collect();
    tools::need(&[&[tools::IMAGE], emulators.as_slice()].concat(), consent)?;
    let work = suite::work_folder(&workspace.cache)?;
    let assets = test::assets(workspace, true, None, work.path())?;
    for vendor in vendors {
        let accel = if vendor == Vendor::Amd { Accel::Tcg } else { Accel::Bochs };
        let spec = Spec { clock: Clock::Instructions, ..Spec::new(accel, vendor) };
        let spinner = Spinner::start(&format!("measuring {vendor} on {accel}"));
        let values = suite::bench(&assets, &spec)?;
        drop(spinner);
        say(table(vendor, accel, &values).trim_end());
    }
    Ok(())
}

/// The guest's measurements in the table's order, then those that the table does not know.
fn table(vendor: Vendor, accel: Accel, values: &[(String, u64)]) -> String {
    let peers = if vendor == Vendor::Amd { 0 } else { 2 };
    let mut text = format!(
        "\n{vendor} on {accel}: median host instructions of a round trip, seen by the guest\n{:<32}{:>10}{:>10}{:>10}\n",
        "operation", "Bulkhead", "KVM", "Xen"
    );
    let cell = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |v| v.to_string());
    let mut line = |title: &str, value: Option<u64>, peers: [Option<u64>; 2]| {
        text.push_str(&format!("{title:<32}{:>10}{:>10}{:>10}\n", cell(value), cell(peers[0]), cell(peers[1])));
    };
    for row in ROWS {
        let value = values.iter().find(|(name, _)| name == row.name).map(|(_, value)| *value);
        line(row.title, value, [row.peers[peers], row.peers[peers + 1]]);
    }
    for (name, value) in values.iter().filter(|(name, _)| !ROWS.iter().any(|row| row.name == name)) {
        line(name, Some(*value), [None; 2]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_sets_each_vendors_peers_beside_its_values() {
        let values = [("cpuid".to_owned(), 77), ("new-one".to_owned(), 5)];
        let line = |vendor, accel, start: &str| {
            let table = table(vendor, accel, &values);
            table.lines().find(|l| l.starts_with(start)).unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(line(Vendor::Amd, Accel::Tcg, "CPUID"), ["CPUID", "77", "3126", "5380"]);
        assert_eq!(line(Vendor::Intel, Accel::Bochs, "CPUID"), ["CPUID", "77", "1059", "836"]);
        assert_eq!(line(Vendor::Amd, Accel::Tcg, "new-one"), ["new-one", "5", "-", "-"]);
        assert_eq!(line(Vendor::Amd, Accel::Tcg, "hypercall"), ["hypercall", "-", "3382", "5473"]);
    }
}
