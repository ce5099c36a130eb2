//! The ACPI tables of the virtual PC, built anew for every guest.
//!
//! Manual: ACPI Specification 6.5 ("ACPI"). The tables agree with `layout`, which names every address and interrupt in them.
//!
//! There is no SMI_CMD port: the machine is in ACPI mode from the start, so PM1a_CNT.SCI_EN always reads 1 (ACPI 4.8.2.5).

mod dsdt;
mod tables;

use crate::layout;
use acpi_tables::Aml;
use alloc::vec::Vec;
use x86defs::{Gpa, GuestMemory, OutsideRam};

/// Most vCPUs that the tables have room for.
pub const MAX_VCPUS: u32 = 1024;

/// What differs between guests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AcpiInput {
    /// 1..=[`MAX_VCPUS`]; a number outside is taken as the nearest within. APIC ids are 0, 1, 2 ...
    pub vcpus: u32,
    /// COM1 to COM4.
    pub coms: [bool; 4],
    pub hpet: bool,
}

/// The tables with their places, all within [`layout::ACPI_AREA`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AcpiImage {
    /// Ascending and disjoint.
    pub pieces: Vec<(Gpa, Vec<u8>)>,
    pub rsdp: Gpa,
}

impl AcpiImage {
    /// Copies the tables to a guest's RAM.
    ///
    /// # Errors
    /// The guest has no RAM there.
    pub fn write_to<M: GuestMemory + ?Sized>(&self, memory: &M) -> Result<(), OutsideRam> {
        self.pieces.iter().try_for_each(|(gpa, bytes)| memory.write(*gpa, bytes))
    }
}

/// Builds all tables.
#[must_use]
pub fn build(input: &AcpiInput) -> AcpiImage {
    let vcpus = input.vcpus.clamp(1, MAX_VCPUS);
    // The RSDP comes first, so that a search finds it at once; it is written last, when the others have their places.
    let rsdp = Gpa(layout::ACPI_AREA.start);
    let mut image = AcpiImage { pieces: Vec::new(), rsdp };
    let mut next = rsdp.0 + tables::RSDP_BYTES;
    let mut place = |pieces: &mut Vec<(Gpa, Vec<u8>)>, table: &dyn Aml| {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        // The FACS must lie on a 64-byte boundary (ACPI 5.2.10); the others may.
        let gpa = Gpa(next.next_multiple_of(64));
        next = gpa.0 + bytes.len() as u64;
        pieces.push((gpa, bytes));
        // All of the area lies below 1 MiB.
        gpa.0 as u32
    };
    let facs = place(&mut image.pieces, &tables::facs());
    let dsdt = place(&mut image.pieces, &dsdt::dsdt(vcpus, input));
    let fadt = place(&mut image.pieces, &tables::fadt(facs, dsdt));
    let madt = place(&mut image.pieces, &tables::madt(vcpus));
    let mcfg = place(&mut image.pieces, &tables::mcfg());
    let mut all = Vec::from([fadt, madt, mcfg]);
    if input.hpet {
        all.push(place(&mut image.pieces, &tables::hpet()));
    }
    let rsdt = place(&mut image.pieces, &tables::rsdt(&all));
    let xsdt = place(&mut image.pieces, &tables::xsdt(&all));
    image.pieces.insert(0, (rsdp, tables::rsdp(rsdt, xsdt)));
    image
}

#[cfg(test)]
mod tests;
