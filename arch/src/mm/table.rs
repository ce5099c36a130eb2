//! One page-table builder and walker for every kind of 64-bit x86 table: generic over the entry format (host long mode, EPT,
//! NPT) and over the memory in which the tables lie, so that it is tested on a laptop with memory that records its history.
//!
//! Four levels of 512 entries of eight bytes (Intel SDM vol. 3A rev. 085, 5.5; EPT: vol. 3C, 30.3; AMD APM vol. 2 rev. 3.42, 15.25).
//!
//! Nothing here flushes a TLB: whoever unmaps or protects does so before the memory or a freed table can be reused.

use bitflags::bitflags;
use core::marker::PhantomData;
use x86defs::{Hpa, PAGE_SIZE};

/// Levels of a table: 4 is the root.
pub const LEVELS: u32 = 4;
/// Entries of a table at every level.
pub const ENTRIES: usize = 512;

bitflags! {
    /// What a mapping allows.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Rights: u8 {
        const READ = 1;
        const WRITE = 2;
        const EXECUTE = 4;
    }
}

/// How a mapping is cached, as far as the format can say it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryType {
    WriteBack,
    WriteThrough,
    WriteCombining,
    Uncached,
}

/// The three page sizes of long mode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PageSize {
    Size4K,
    Size2M,
    Size1G,
}

impl PageSize {
    /// Bytes of the page.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        span(self.level())
    }
    /// The level at which an entry maps a page of this size: 1, 2 or 3.
    #[must_use]
    pub const fn level(self) -> u32 {
        match self {
            Self::Size4K => 1,
            Self::Size2M => 2,
            Self::Size1G => 3,
        }
    }
    const fn from_level(level: u32) -> Self {
        match level {
            0 | 1 => Self::Size4K,
            2 => Self::Size2M,
            _ => Self::Size1G,
        }
    }
}

/// How entries are encoded. All functions are pure.
pub trait Format {
    /// An entry that leads to the table at `table`, with all rights: the leaves restrict.
    fn table(table: Hpa) -> u64;
    /// An entry that maps the page of `size` at `frame`.
    fn leaf(frame: Hpa, size: PageSize, rights: Rights, memory_type: MemoryType) -> u64;
    /// True if the entry maps a page or leads to a table. Zero is never present.
    fn present(entry: u64) -> bool;
    /// True if a present entry at `level` (1..=4) maps a page. Level 1 always does, level 4 never.
    fn is_leaf(entry: u64, level: u32) -> bool;
    /// The frame of a leaf of `size`, or with `Size4K` the table that an entry leads to.
    fn frame(entry: u64, size: PageSize) -> Hpa;
    fn rights(entry: u64) -> Rights;
    fn memory_type(entry: u64, size: PageSize) -> MemoryType;
}

/// The memory in which tables lie.
pub trait TableMemory {
    /// A zeroed 4-KiB frame for a table, if there is one.
    fn allocate(&mut self) -> Option<Hpa>;
    /// Takes a table back. The CPU may still have its entries cached until the owner flushes.
    fn free(&mut self, table: Hpa);
    /// Entry `index` (below 512) of the table at `table`.
    fn read(&self, table: Hpa, index: usize) -> u64;
    /// Writes an entry, as one 64-bit store.
    fn write(&mut self, table: Hpa, index: usize, entry: u64);
}

/// Why a range could not be mapped or changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// No frame for a table.
    OutOfMemory,
    /// This address is mapped already.
    Overlap(u64),
    /// Address, size or frame is no multiple of 4 KiB, or the range is not within 48 bits.
    BadRange(u64),
}

/// What an address translates to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The exact physical address, not only the frame's.
    pub address: Hpa,
    pub size: PageSize,
    pub rights: Rights,
    pub memory_type: MemoryType,
}

/// A page table: its root and the memory it lies in.
#[derive(Debug)]
pub struct PageTable<F: Format, M: TableMemory> {
    root: Hpa,
    largest: PageSize,
    memory: M,
    format: PhantomData<fn() -> F>,
}

/// Bytes that one entry at `level` covers.
const fn span(level: u32) -> u64 {
    PAGE_SIZE << (9 * (level - 1))
}

const fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * (level - 1))) as usize & (ENTRIES - 1)
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// An empty table that uses pages up to `largest`. `None` if there is no memory for its root.
    #[must_use]
    pub fn new(mut memory: M, largest: PageSize) -> Option<Self> {
        let root = memory.allocate()?;
        Some(Self { root, largest, memory, format: PhantomData })
    }

    /// Adopts the table whose root is at `root`.
    #[must_use]
    pub fn from_root(root: Hpa, memory: M, largest: PageSize) -> Self {
        Self { root, largest, memory, format: PhantomData }
    }

    /// The root's address, for CR3, EPTP or nCR3.
    #[must_use]
    pub fn root(&self) -> Hpa {
        self.root
    }

    /// Maps `[start, start + size)` to `[frame, frame + size)` in the largest pages that fit. On an error, nothing stays mapped that was not
    /// mapped before.
    ///
    /// # Errors
    /// See [`MapError`]. All three numbers must be multiples of 4 KiB.
    pub fn map(&mut self, start: u64, size: u64, frame: Hpa, rights: Rights, memory_type: MemoryType) -> Result<(), MapError> {
        check_range(start, size)?;
        if !frame.is_aligned(PAGE_SIZE) || frame.0.checked_add(size).is_none() {
            return Err(MapError::BadRange(start));
        }
        let mut done = 0;
        while done < size {
            let (at, to) = (start.wrapping_add(done), Hpa(frame.0 + done));
            let page = self.fitting(at, to, size - done);
            if let Err(error) = self.install(at, page, F::leaf(to, page, rights, memory_type)) {
                if done != 0 {
                    // Whole pages that were just made are removed: no split, hence no allocation that could fail.
                    let _ = self.unmap(start, done);
                }
                return Err(error);
            }
            done += page.bytes();
        }
        Ok(())
    }

    fn fitting(&self, at: u64, to: Hpa, left: u64) -> PageSize {
        [PageSize::Size1G, PageSize::Size2M]
            .into_iter()
            .find(|s| *s <= self.largest && (at | to.0) & (s.bytes() - 1) == 0 && left >= s.bytes())
            .unwrap_or(PageSize::Size4K)
    }

    fn install(&mut self, at: u64, page: PageSize, leaf: u64) -> Result<(), MapError> {
        let mut table = self.root;
        let mut level = LEVELS;
        while level > page.level() {
            let entry = self.memory.read(table, index(at, level));
            table = if !F::present(entry) {
                let new = self.memory.allocate().ok_or(MapError::OutOfMemory)?;
                self.memory.write(table, index(at, level), F::table(new));
                new
            } else if F::is_leaf(entry, level) {
                return Err(MapError::Overlap(at));
            } else {
                F::frame(entry, PageSize::Size4K)
            };
            level -= 1;
        }
        if F::present(self.memory.read(table, index(at, level))) {
            return Err(MapError::Overlap(at));
        }
        self.memory.write(table, index(at, level), leaf);
        Ok(())
    }

    /// Removes whatever is mapped in `[start, start + size)`, splitting larger pages at the edges and freeing tables that become empty.
    ///
    /// # Errors
    /// `OutOfMemory` if a page must be split and there is no memory for a table; part of the range may be unmapped then.
    pub fn unmap(&mut self, start: u64, size: u64) -> Result<(), MapError> {
        self.change(start, size, &mut |_, _| 0)
    }

    /// Changes the rights of whatever is mapped in `[start, start + size)`; the rest as in [`PageTable::unmap`].
    ///
    /// # Errors
    /// As [`PageTable::unmap`].
    pub fn protect(&mut self, start: u64, size: u64, rights: Rights) -> Result<(), MapError> {
        self.change(start, size, &mut |entry, page| F::leaf(F::frame(entry, page), page, rights, F::memory_type(entry, page)))
    }

    fn change(&mut self, start: u64, size: u64, new: &mut dyn FnMut(u64, PageSize) -> u64) -> Result<(), MapError> {
        check_range(start, size)?;
        if size == 0 {
            return Ok(());
        }
        // Offsets are within 48 bits, so that a range at the very top does not overflow.
        let first = start & ((1 << 48) - 1);
        self.change_in(self.root, LEVELS, first, first + (size - 1), new).map(|_| ())
    }

    /// Applies `new` to the leaves of `table` that cover offsets `first..=last` of the table's span; true if the table is empty afterwards.
    fn change_in(
        &mut self,
        table: Hpa,
        level: u32,
        first: u64,
        last: u64,
        new: &mut dyn FnMut(u64, PageSize) -> u64,
    ) -> Result<bool, MapError> {
        let span = span(level);
        for i in index(first, level)..=index(last, level) {
            let entry = self.memory.read(table, i);
            if !F::present(entry) {
                continue;
            }
            // The part of this entry's span that is concerned.
            let base = i as u64 * span;
            let (from, to) = (first.max(base) - base, (last - base).min(span - 1));
            let child = if !F::is_leaf(entry, level) {
                F::frame(entry, PageSize::Size4K)
            } else if from == 0 && to == span - 1 {
                self.memory.write(table, i, new(entry, PageSize::from_level(level)));
                continue;
            } else {
                self.split(table, i, entry, level)?
            };
            if self.change_in(child, level - 1, from, to, new)? {
                self.memory.write(table, i, 0);
                self.memory.free(child);
            }
        }
        Ok((0..ENTRIES).all(|i| !F::present(self.memory.read(table, i))))
    }

    /// Replaces a large page by a table of smaller ones that mean the same.
    fn split(&mut self, table: Hpa, i: usize, entry: u64, level: u32) -> Result<Hpa, MapError> {
        let (page, smaller) = (PageSize::from_level(level), PageSize::from_level(level - 1));
        let frame = F::frame(entry, page);
        let (rights, memory_type) = (F::rights(entry), F::memory_type(entry, page));
        let new = self.memory.allocate().ok_or(MapError::OutOfMemory)?;
        for j in 0..ENTRIES {
            let leaf = F::leaf(Hpa(frame.0 + j as u64 * smaller.bytes()), smaller, rights, memory_type);
            self.memory.write(new, j, leaf);
        }
        self.memory.write(table, i, F::table(new));
        Ok(new)
    }

    /// Where `address` leads, if it is mapped.
    #[must_use]
    pub fn translate(&self, address: u64) -> Option<Translation> {
        let mut table = self.root;
        let mut level = LEVELS;
        loop {
            let entry = self.memory.read(table, index(address, level));
            if !F::present(entry) {
                return None;
            }
            if level == 1 || F::is_leaf(entry, level) {
                let size = PageSize::from_level(level);
                return Some(Translation {
                    address: Hpa(F::frame(entry, size).0 | address & (size.bytes() - 1)),
                    size,
                    rights: F::rights(entry),
                    memory_type: F::memory_type(entry, size),
                });
            }
            table = F::frame(entry, PageSize::Size4K);
            level -= 1;
        }
    }

    /// The tables of another root, that one first, through which one 4-KiB page more is mapped. All others are shared, so the two must go together, and
    /// what is mapped here later on the way to `address` is not seen there. `None` if memory is short, or there is a page or a large one already.
    pub fn overlay(&mut self, address: u64, frame: Hpa, rights: Rights, memory_type: MemoryType) -> Option<[Hpa; 4]> {
        let mut own = [Hpa(0); 4];
        let leaf = F::leaf(frame, PageSize::Size4K, rights, memory_type);
        let done = self.overlay_in(&mut own, address, leaf);
        if done.is_none() {
            self.free_overlay(own);
        }
        done.map(|()| own)
    }

    fn overlay_in(&mut self, own: &mut [Hpa; 4], address: u64, leaf: u64) -> Option<()> {
        let mut shared = Some(self.root);
        let mut level = LEVELS;
        let mut above: Option<Hpa> = None;
        for slot in own {
            let table = self.memory.allocate()?;
            *slot = table;
            if let Some(from) = shared {
                for i in 0..ENTRIES {
                    let entry = self.memory.read(from, i);
                    self.memory.write(table, i, entry);
                }
            }
            if let Some(above) = above {
                self.memory.write(above, index(address, level + 1), F::table(table));
            }
            let entry = self.memory.read(table, index(address, level));
            if level == 1 || F::present(entry) && F::is_leaf(entry, level) {
                if F::present(entry) {
                    return None;
                }
                self.memory.write(table, index(address, level), leaf);
                return Some(());
            }
            shared = F::present(entry).then(|| F::frame(entry, PageSize::Size4K));
            above = Some(table);
            level -= 1;
        }
        None
    }

    /// Frees what [`PageTable::overlay`] has made.
    pub fn free_overlay(&mut self, own: [Hpa; 4]) {
        own.into_iter().filter(|table| table.0 != 0).for_each(|table| self.memory.free(table));
    }

    /// Frees every table, root included, but not the pages that they map. The CPU must not use the table any more.
    pub fn destroy(mut self) {
        self.destroy_in(self.root, LEVELS);
    }

    fn destroy_in(&mut self, table: Hpa, level: u32) {
        if level > 1 {
            for i in 0..ENTRIES {
                let entry = self.memory.read(table, i);
                if F::present(entry) && !F::is_leaf(entry, level) {
                    self.destroy_in(F::frame(entry, PageSize::Size4K), level - 1);
                }
            }
        }
        self.memory.free(table);
    }
}

fn check_range(start: u64, size: u64) -> Result<(), MapError> {
    let bad = Err(MapError::BadRange(start));
    if (start | size) & (PAGE_SIZE - 1) != 0 {
        return bad;
    }
    let Some(last) = start.checked_add(size.saturating_sub(1)) else { return bad };
    match (start >> 48, last >> 48) {
        (0, 0) | (0xffff, 0xffff) => Ok(()),
        _ => bad,
    }
}

/// Long-mode entries of the host's own tables: supervisor pages, accessed and dirty from the start (SDM vol. 3A, 5.5.4).
///
/// The memory type selects an entry of the PAT as [`HOST_PAT`] sets it.
#[derive(Debug)]
pub enum HostFormat {}

/// IA32_PAT for the host: the reset value (WB, WT, UC-, UC, ...) but for entry 4, which is write-combining (SDM vol. 3A, 13.12.4).
pub const HOST_PAT: u64 = 0x0007_0401_0007_0406;

mod bits {
    pub const P: u64 = 1;
    pub const RW: u64 = 1 << 1;
    pub const PWT: u64 = 1 << 3;
    pub const PCD: u64 = 1 << 4;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const PAT_4K: u64 = 1 << 7;
    pub const PAT_LARGE: u64 = 1 << 12;
    pub const NX: u64 = 1 << 63;
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

const fn pat_bit(size: PageSize) -> u64 {
    match size {
        PageSize::Size4K => bits::PAT_4K,
        _ => bits::PAT_LARGE,
    }
}

impl Format for HostFormat {
    fn table(table: Hpa) -> u64 {
        table.0 | bits::P | bits::RW | bits::A
    }
    fn leaf(frame: Hpa, size: PageSize, rights: Rights, memory_type: MemoryType) -> u64 {
        let mut entry = frame.0 | bits::P | bits::A | bits::D;
        if rights.contains(Rights::WRITE) {
            entry |= bits::RW;
        }
        if !rights.contains(Rights::EXECUTE) {
            entry |= bits::NX;
        }
        if size != PageSize::Size4K {
            entry |= bits::PS;
        }
        entry
            | match memory_type {
                MemoryType::WriteBack => 0,
                MemoryType::WriteThrough => bits::PWT,
                MemoryType::Uncached => bits::PCD | bits::PWT,
                MemoryType::WriteCombining => pat_bit(size),
            }
    }
    fn present(entry: u64) -> bool {
        entry & bits::P != 0
    }
    fn is_leaf(entry: u64, level: u32) -> bool {
        level == 1 || level < LEVELS && entry & bits::PS != 0
    }
    fn frame(entry: u64, size: PageSize) -> Hpa {
        Hpa(entry & bits::ADDRESS & !(size.bytes() - 1))
    }
    fn rights(entry: u64) -> Rights {
        let mut rights = Rights::READ;
        rights.set(Rights::WRITE, entry & bits::RW != 0);
        rights.set(Rights::EXECUTE, entry & bits::NX == 0);
        rights
    }
    fn memory_type(entry: u64, size: PageSize) -> MemoryType {
        if entry & pat_bit(size) != 0 {
            return MemoryType::WriteCombining;
        }
        match (entry & bits::PCD != 0, entry & bits::PWT != 0) {
            (false, false) => MemoryType::WriteBack,
            (false, true) => MemoryType::WriteThrough,
            (true, _) => MemoryType::Uncached,
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
