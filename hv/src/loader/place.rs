//! Finding places for the parts of a kernel in a guest's RAM.

use super::LoadError;
use crate::e820::{E820Entry, E820Map, E820Type, low_ram_top};
use alloc::vec::Vec;
use core::ops::Range;

/// The RAM of a memory map, and which parts of it are taken.
pub(super) struct Placer<'a> {
    map: &'a E820Map,
    taken: Vec<Range<u64>>,
}

impl<'a> Placer<'a> {
    pub(super) const fn new(map: &'a E820Map) -> Self {
        Self { map, taken: Vec::new() }
    }

    fn ram(&self) -> impl DoubleEndedIterator<Item = &'a E820Entry> {
        self.map.iter().filter(|e| e.kind == E820Type::Ram)
    }

    /// Takes the place that the kernel was linked for. Parts of a kernel may overlap, as a file may say so.
    pub(super) fn take_kernel(&mut self, start: u64, size: u64) -> Result<(), LoadError> {
        let does_not_fit = LoadError::KernelDoesNotFit { start, size, ram_end: low_ram_top(self.map) };
        let end = start.checked_add(size).ok_or(does_not_fit)?;
        if !self.ram().any(|e| start >= e.gpa.0 && end <= e.end()) {
            return Err(does_not_fit);
        }
        self.taken.push(start..end);
        Ok(())
    }

    /// Takes the lowest free place of `size` bytes, `align`ed (a power of two), within `window`.
    pub(super) fn take_lowest(&mut self, size: u64, align: u64, window: Range<u64>) -> Option<u64> {
        let start = self.free(&window).filter_map(|gap| fit_low(&gap, size, align)).min()?;
        self.taken.push(start..start + size);
        Some(start)
    }

    /// Takes the highest free place of `size` bytes, `align`ed (a power of two), within `window`.
    pub(super) fn take_highest(&mut self, size: u64, align: u64, window: Range<u64>) -> Option<u64> {
        let start = self.free(&window).filter_map(|gap| fit_high(&gap, size, align)).max()?;
        self.taken.push(start..start + size);
        Some(start)
    }

    /// Bytes in the largest free place within `window`.
    pub(super) fn largest_free(&self, window: Range<u64>) -> u64 {
        self.free(&window).map(|gap| gap.end - gap.start).max().unwrap_or(0)
    }

    /// The gaps between what is taken, within `window`; none is empty.
    fn free(&self, window: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let mut taken = self.taken.clone();
        taken.sort_unstable_by_key(|t| t.start);
        let mut gaps = Vec::new();
        for entry in self.ram() {
            let end = entry.end().min(window.end);
            let mut start = entry.gpa.0.max(window.start);
            for t in &taken {
                if t.start > start {
                    gaps.push(start..t.start.min(end));
                }
                start = start.max(t.end);
            }
            gaps.push(start..end);
        }
        gaps.into_iter().filter(|gap| gap.start < gap.end)
    }
}

fn fit_low(gap: &Range<u64>, size: u64, align: u64) -> Option<u64> {
    let start = gap.start.checked_next_multiple_of(align)?;
    (start.checked_add(size)? <= gap.end).then_some(start)
}

fn fit_high(gap: &Range<u64>, size: u64, align: u64) -> Option<u64> {
    let start = gap.end.checked_sub(size)? & !(align - 1);
    (start >= gap.start).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86defs::Gpa;

    fn map() -> E820Map {
        [(0, 0xa0000, E820Type::Ram), (0xc0000, 0x40000, E820Type::Reserved), (0x100000, 0x100000, E820Type::Ram)]
            .into_iter()
            .map(|(gpa, size, kind)| E820Entry { gpa: Gpa(gpa), size, kind })
            .collect()
    }

    #[test]
    fn places_avoid_what_is_taken_and_what_is_reserved() {
        let map = map();
        let mut placer = Placer::new(&map);
        placer.take_kernel(0x100000, 0x8001).unwrap();
        assert_eq!(placer.take_lowest(0x1000, 0x1000, 0x100000..u64::MAX), Some(0x109000));
        assert_eq!(placer.take_lowest(0x1000, 0x1000, 0x100000..u64::MAX), Some(0x10a000));
        assert_eq!(placer.take_highest(0x1000, 0x1000, 0..0x1ff800), Some(0x1fe000));
        assert_eq!(placer.take_highest(0x1000, 0x1000, 0..u64::MAX), Some(0x1ff000));
        assert_eq!(placer.take_highest(0xa0000, 0x1000, 0..0x100000), Some(0));
        assert_eq!(placer.take_lowest(1, 1, 0..0x100000), None);
        assert_eq!(placer.largest_free(0..u64::MAX), 0x1fe000 - 0x10b000);
        assert_eq!(placer.largest_free(0x2000000..u64::MAX), 0);
    }

    #[test]
    fn a_kernel_must_lie_in_one_piece_of_ram() {
        let map = map();
        let mut placer = Placer::new(&map);
        for (start, size) in [(0x9f000, 0x2000), (0xc0000, 0x1000), (0x1ff000, 0x1001), (u64::MAX, 2)] {
            assert_eq!(placer.take_kernel(start, size), Err(LoadError::KernelDoesNotFit { start, size, ram_end: 0x200000 }));
        }
    }
}
