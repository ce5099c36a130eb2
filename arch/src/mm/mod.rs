//! Host memory: frames, heap, the direct map, and the host's page tables.

pub mod direct;
pub mod frames;
pub mod guest;
pub mod heap;
pub mod table;

use crate::cpu::cr;
use alloc::vec::Vec;
use frames::Range;
use spin::Mutex;
use table::{HostFormat, MapError, MemoryType, PageSize, PageTable, Rights, TableMemory};
use x86defs::{Hpa, PAGE_SIZE};

/// Page tables in frames from the frame allocator, reached through the direct map.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frames;

impl TableMemory for Frames {
    fn allocate(&mut self) -> Option<Hpa> {
        frames::allocate_zeroed()
    }
    fn free(&mut self, table: Hpa) {
        frames::free(table, 1);
    }
    fn read(&self, table: Hpa, index: usize) -> u64 {
        assert!(index < table::ENTRIES);
        // SAFETY: `table` is a frame that `allocate` gave out, and the direct map reaches it. Volatile: the CPU sets accessed and dirty bits.
        unsafe { direct::to_virt(table).cast::<u64>().add(index).read_volatile() }
    }
    fn write(&mut self, table: Hpa, index: usize, entry: u64) {
        assert!(index < table::ENTRIES);
        // SAFETY: as above; nobody but the owner of the `PageTable` writes it.
        unsafe { direct::to_virt(table).cast::<u64>().add(index).write_volatile(entry) }
    }
}

/// A table of the host's.
pub type HostTable = PageTable<HostFormat, Frames>;

static HOST: Mutex<Option<HostTable>> = Mutex::new(None);

/// A part of the image with its own rights. Addresses are virtual and page-aligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Section {
    pub start: u64,
    pub end: u64,
    pub rights: Rights,
}

/// Builds the host's final page tables and switches to them: the image by sections, all RAM in the direct map (writable and never
/// executable; the image's read-only parts are read-only there, too), no identity map, no `guards`.
///
/// # Safety
/// Once, after [`frames::init`], on the boot CPU, running in the image on a stack in the image. `sections` must cover all of it, and
/// `largest` must be a page size that the CPU has.
///
/// # Errors
/// As [`PageTable::map`].
pub unsafe fn init(ram: &mut Vec<Range>, sections: &[Section], guards: &[u64], largest: PageSize) -> Result<(), MapError> {
    let mut table = HostTable::new(Frames, largest).ok_or(MapError::OutOfMemory)?;
    for range in merge(ram) {
        let size = range.size();
        table.map(direct::BASE + range.start, size, Hpa(range.start), Rights::READ | Rights::WRITE, MemoryType::WriteBack)?;
    }
    for section in sections {
        let (size, frame) = (section.end - section.start, direct::to_phys(section.start as *const u8));
        table.map(section.start, size, frame, section.rights, MemoryType::WriteBack)?;
        if !section.rights.contains(Rights::WRITE) {
            table.protect(direct::BASE + frame.0, size, Rights::READ)?;
        }
    }
    for &guard in guards {
        table.unmap(guard, PAGE_SIZE)?;
    }
    let root = table.root();
    *HOST.lock() = Some(table);
    // SAFETY: the code that runs, its stack and all that it refers to are mapped at the same addresses as before.
    unsafe { cr::set_cr3(root.0) };
    Ok(())
}

/// Sorts ranges, rounds them outwards to pages, and joins those that touch.
fn merge(ranges: &mut Vec<Range>) -> &[Range] {
    for range in ranges.iter_mut() {
        *range = Range::new(range.start & !(PAGE_SIZE - 1), range.end.next_multiple_of(PAGE_SIZE));
    }
    ranges.sort_unstable_by_key(|r| r.start);
    ranges.dedup_by(|next, previous| {
        let joins = next.start <= previous.end;
        if joins {
            previous.end = previous.end.max(next.end);
        }
        joins
    });
    ranges
}

/// The root of the host's tables, for further CPUs.
#[must_use]
pub fn host_root() -> Option<Hpa> {
    HOST.lock().as_ref().map(HostTable::root)
}

/// Takes pages out of the direct map: guard pages below stacks. While no other CPU uses the tables, as only this one's translations are dropped.
///
/// # Errors
/// `OutOfMemory` if a large page has to be split and there is no memory for a table.
pub fn unmap_guards(guards: impl Iterator<Item = u64>) -> Result<(), MapError> {
    let mut host = HOST.lock();
    let table = host.as_mut().expect("the host's page tables come first");
    for guard in guards {
        table.unmap(guard, PAGE_SIZE)?;
        cr::invlpg(guard);
    }
    Ok(())
}

/// True if the direct map has this address. Never waits: a crash may come while the tables are being changed, and what it needs has been
/// mapped long before.
#[must_use]
pub fn is_mapped(address: Hpa) -> bool {
    HOST.try_lock().is_none_or(|host| is_mapped_in(host.as_ref(), address))
}

fn is_mapped_in(host: Option<&HostTable>, address: Hpa) -> bool {
    host.is_some_and(|t| t.translate(direct::BASE.wrapping_add(address.0)).is_some())
}

/// Makes device memory visible in the direct map and returns its address there. Pages that are mapped already keep their type.
///
/// # Panics
/// If no page-table frame is left, or the address is beyond the direct map: the host cannot run without its devices.
pub fn map_mmio(address: Hpa, size: u64, memory_type: MemoryType) -> *mut u8 {
    map(address, size, memory_type);
    direct::to_virt(address)
}

/// Makes memory visible that the memory map does not call RAM but that is cached like RAM: firmware tables.
///
/// # Panics
/// As [`map_mmio`].
pub fn map_ram_like(address: Hpa, size: u64) -> *mut u8 {
    map(address, size, MemoryType::WriteBack);
    direct::to_virt(address)
}

fn map(address: Hpa, size: u64, memory_type: MemoryType) {
    let start = address.page().0;
    let end = address.0.saturating_add(size).next_multiple_of(PAGE_SIZE);
    assert!(end <= direct::SIZE, "{address} is beyond the direct map");
    let mut host = HOST.lock();
    let table = host.as_mut().expect("the host's page tables come first");
    let rights = Rights::READ | Rights::WRITE;
    let mut map = |start: u64, end: u64| table.map(direct::BASE + start, end - start, Hpa(start), rights, memory_type);
    let result = match map(start, end) {
        // Some of it is there already: page by page, then.
        Err(MapError::Overlap(_)) => {
            (start..end).step_by(PAGE_SIZE as usize).try_for_each(|page| match map(page, page + PAGE_SIZE) {
                Err(MapError::Overlap(_)) => Ok(()),
                other => other,
            })
        }
        other => other,
    };
    if let Err(error) = result {
        panic!("cannot map {start:#x}-{end:#x}: {error:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn ranges_are_joined_where_they_touch() {
        let mut ranges = vec![
            Range::new(0x10_0000, 0x7fe_0000),
            Range::new(0x7fe_0000, 0x7fe_0800),
            Range::new(0, 0x9_fc00),
            Range::new(0x7fe_0400, 0x7ff_0001),
            Range::new(0x1_0000_0000, 0x1_4000_0000),
        ];
        let expected = [Range::new(0, 0xa_0000), Range::new(0x10_0000, 0x7ff_1000), Range::new(0x1_0000_0000, 0x1_4000_0000)];
        assert_eq!(merge(&mut ranges), expected);
    }
}
