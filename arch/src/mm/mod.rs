//! Host memory: frames, the direct map, page tables.

pub mod direct;
pub mod frames;
pub mod table;

use table::TableMemory;
use x86defs::Hpa;

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
