//! The memory map that a guest is given, in the terms of ACPI 6.5, chapter 15 (INT 15h, AX=E820h). The loaders write it in
//! the form that their boot protocol asks for.

use crate::layout;
use arrayvec::ArrayVec;
use x86defs::{Gpa, GuestMemory, RamRange};

/// What a range of the map is for (ACPI 6.5, table 15.1). The numbers are those of the firmware interface, which both boot
/// protocols use unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum E820Type {
    Ram = 1,
    Reserved = 2,
    /// ACPI tables that the system may reuse once it has read them.
    AcpiReclaimable = 3,
    /// To be kept across sleep states.
    AcpiNvs = 4,
}

/// One range of the map: `[gpa, gpa + size)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct E820Entry {
    pub gpa: Gpa,
    /// Bytes.
    pub size: u64,
    pub kind: E820Type,
}

impl E820Entry {
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.gpa.0.saturating_add(self.size)
    }
}

/// Most entries that [`map`] makes: the firmware area may split one RAM range in three, and there is ECAM.
pub const MAX_ENTRIES: usize = layout::MAX_RAM_RANGES + 3;

/// A guest's memory map, ascending and disjoint.
pub type E820Map = ArrayVec<E820Entry, MAX_ENTRIES>;

/// The map of a guest whose RAM is `memory`: all of it, except that the firmware area below 1 MiB, where the ACPI tables are, is
/// reserved. So is the memory-mapped PCI configuration space, which systems believe in only if the map has it too.
#[must_use]
pub fn map<M: GuestMemory + ?Sized>(memory: &M) -> E820Map {
    let firmware = layout::FIRMWARE_AREA;
    let ecam = layout::PCI_ECAM;
    let ranges = memory.ranges();
    let (below, above) = ranges.split_at(ranges.partition_point(|r| r.gpa.0 < ecam.start));
    let ram = |range: &RamRange| {
        let (start, end) = (range.gpa.0, range.end().0);
        [
            (start..end.min(firmware.start), E820Type::Ram),
            (start.max(firmware.start)..end.min(firmware.end), E820Type::Reserved),
            (start.max(firmware.end)..end, E820Type::Ram),
        ]
    };
    let parts = below.iter().flat_map(ram).chain([(ecam.clone(), E820Type::Reserved)]).chain(above.iter().flat_map(ram));
    // A guest with more ranges than the layout makes gets the lowest of them: less memory, never a panic.
    parts
        .filter(|(range, _)| range.start < range.end)
        .map(|(range, kind)| E820Entry { gpa: Gpa(range.start), size: range.end - range.start, kind })
        .take(MAX_ENTRIES)
        .collect()
}

/// Bytes that the map gives to the guest as RAM below 4 GiB, from 1 MiB up to the first hole.
#[must_use]
pub fn low_ram_top(map: &[E820Entry]) -> u64 {
    map.iter().find(|e| e.kind == E820Type::Ram && e.gpa.0 == layout::HIGH_MEMORY).map_or(layout::HIGH_MEMORY, E820Entry::end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeMemory;
    use std::vec::Vec;

    #[test]
    fn firmware_area_is_reserved_and_the_rest_is_ram() {
        let mut ranges: Vec<RamRange> = layout::ram_ranges(4 * layout::MIB).to_vec();
        ranges.push(RamRange { gpa: Gpa(layout::ABOVE_4G), size: layout::MIB });
        let map = map(&FakeMemory::new(&ranges));
        let shape: Vec<_> = map.iter().map(|e| (e.gpa.0, e.end(), e.kind)).collect();
        assert_eq!(
            shape,
            [
                (0, 0xa_0000, E820Type::Ram),
                (0xc_0000, 0x10_0000, E820Type::Reserved),
                (0x10_0000, 0x40_0000, E820Type::Ram),
                (0xb000_0000, 0xc000_0000, E820Type::Reserved),
                (0x1_0000_0000, 0x1_0010_0000, E820Type::Ram),
            ]
        );
        assert_eq!(low_ram_top(&map), 0x40_0000);
    }

    #[test]
    fn a_guest_of_one_mib_has_no_high_memory() {
        let map = map(&FakeMemory::new(&layout::ram_ranges(layout::MIB)));
        assert_eq!(map.iter().filter(|e| e.kind == E820Type::Ram).count(), 1);
        assert_eq!(low_ram_top(&map), layout::HIGH_MEMORY);
    }
}
