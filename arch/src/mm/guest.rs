//! A guest's RAM: host frames, scrubbed before use and after, mapped by a stage-2 table in the largest pages that fit, and copied in and out through
//! checked accesses.
//!
//! Entry formats: Intel SDM vol. 3C rev. 085, 30.3.2 (EPT); AMD APM vol. 2, 24593 rev. 3.42, 15.25.5 (NPT: long-mode entries, walked as user accesses).

use super::{
    Frames, direct, frames,
    table::{Format, MapError, MemoryType, PageSize, PageTable, Rights, TableMemory},
};
use crate::cpu;
use alloc::vec::Vec;
use core::arch::asm;
use x86defs::{CreateError, Gpa, GuestMemory, Hpa, LOCAL_APIC, OutsideRam, PAGE_SIZE, RamRange, Width};

const G1: u64 = 1 << 30;
const G4: u64 = 4 << 30;
const M2: u64 = 2 << 20;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Entries of a nested page table (AMD-V).
///
/// The memory type selects an entry of the host's PAT, and the CPU combines it with the guest's own (15.25.8).
#[derive(Debug)]
pub enum NptFormat {}

mod npt {
    pub const P: u64 = 1;
    pub const RW: u64 = 1 << 1;
    pub const US: u64 = 1 << 2;
    pub const PWT: u64 = 1 << 3;
    pub const PCD: u64 = 1 << 4;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const NX: u64 = 1 << 63;
    /// PAT bit of a 4-KiB leaf and of a larger one.
    pub const PAT_4K: u64 = 1 << 7;
    pub const PAT_LARGE: u64 = 1 << 12;
}

const fn npt_pat(size: PageSize) -> u64 {
    match size {
        PageSize::Size4K => npt::PAT_4K,
        _ => npt::PAT_LARGE,
    }
}

impl Format for NptFormat {
    fn table(table: Hpa) -> u64 {
        table.0 | npt::P | npt::RW | npt::US | npt::A
    }
    /// Accessed and dirty from the start, so that the CPU has nothing to write.
    fn leaf(frame: Hpa, size: PageSize, rights: Rights, memory_type: MemoryType) -> u64 {
        let mut entry = frame.0 | npt::P | npt::US | npt::A | npt::D;
        if rights.contains(Rights::WRITE) {
            entry |= npt::RW;
        }
        if !rights.contains(Rights::EXECUTE) {
            entry |= npt::NX;
        }
        if size != PageSize::Size4K {
            entry |= npt::PS;
        }
        entry
            | match memory_type {
                MemoryType::WriteBack => 0,
                MemoryType::WriteThrough => npt::PWT,
                MemoryType::Uncached => npt::PCD | npt::PWT,
                MemoryType::WriteCombining => npt_pat(size),
            }
    }
    fn present(entry: u64) -> bool {
        entry & npt::P != 0
    }
    fn is_leaf(entry: u64, level: u32) -> bool {
        level == 1 || level < 4 && entry & npt::PS != 0
    }
    fn frame(entry: u64, size: PageSize) -> Hpa {
        Hpa(entry & ADDRESS & !(size.bytes() - 1))
    }
    fn rights(entry: u64) -> Rights {
        let mut rights = Rights::READ;
        rights.set(Rights::WRITE, entry & npt::RW != 0);
        rights.set(Rights::EXECUTE, entry & npt::NX == 0);
        rights
    }
    fn memory_type(entry: u64, size: PageSize) -> MemoryType {
        if entry & npt_pat(size) != 0 {
            return MemoryType::WriteCombining;
        }
        match (entry & npt::PCD != 0, entry & npt::PWT != 0) {
            (false, false) => MemoryType::WriteBack,
            (false, true) => MemoryType::WriteThrough,
            (true, _) => MemoryType::Uncached,
        }
    }
}

/// Entries of an extended page table (VT-x).
///
/// RAM is write-back whatever the guest's PAT says ("ignore PAT"): without devices that bypass the caches, another type would make nothing but
/// slowness, and the hypervisor's own mapping of the page is write-back. Other types combine with the guest's.
#[derive(Debug)]
pub enum EptFormat {}

mod ept {
    pub const READ: u64 = 1;
    pub const WRITE: u64 = 1 << 1;
    pub const EXECUTE: u64 = 1 << 2;
    pub const ALL: u64 = READ | WRITE | EXECUTE;
    pub const TYPE_SHIFT: u32 = 3;
    pub const IGNORE_PAT: u64 = 1 << 6;
    pub const LEAF: u64 = 1 << 7;
    pub const UNCACHED: u64 = 0;
    pub const WRITE_COMBINING: u64 = 1;
    pub const WRITE_THROUGH: u64 = 4;
    pub const WRITE_BACK: u64 = 6;
}

impl Format for EptFormat {
    fn table(table: Hpa) -> u64 {
        table.0 | ept::ALL
    }
    fn leaf(frame: Hpa, size: PageSize, rights: Rights, memory_type: MemoryType) -> u64 {
        let mut entry = frame.0;
        if rights.contains(Rights::READ) {
            entry |= ept::READ;
        }
        // Writable but not readable is a misconfiguration (30.3.3.1).
        if rights.contains(Rights::READ | Rights::WRITE) {
            entry |= ept::WRITE;
        }
        if rights.contains(Rights::EXECUTE) {
            entry |= ept::EXECUTE;
        }
        if size != PageSize::Size4K {
            entry |= ept::LEAF;
        }
        entry
            | match memory_type {
                MemoryType::WriteBack => ept::WRITE_BACK << ept::TYPE_SHIFT | ept::IGNORE_PAT,
                MemoryType::WriteThrough => ept::WRITE_THROUGH << ept::TYPE_SHIFT,
                MemoryType::WriteCombining => ept::WRITE_COMBINING << ept::TYPE_SHIFT,
                MemoryType::Uncached => ept::UNCACHED << ept::TYPE_SHIFT,
            }
    }
    fn present(entry: u64) -> bool {
        entry & ept::ALL != 0
    }
    fn is_leaf(entry: u64, level: u32) -> bool {
        level == 1 || level < 4 && entry & ept::LEAF != 0
    }
    fn frame(entry: u64, size: PageSize) -> Hpa {
        Hpa(entry & ADDRESS & !(size.bytes() - 1))
    }
    fn rights(entry: u64) -> Rights {
        let mut rights = Rights::empty();
        rights.set(Rights::READ, entry & ept::READ != 0);
        rights.set(Rights::WRITE, entry & ept::WRITE != 0);
        rights.set(Rights::EXECUTE, entry & ept::EXECUTE != 0);
        rights
    }
    fn memory_type(entry: u64, _: PageSize) -> MemoryType {
        match entry >> ept::TYPE_SHIFT & 7 {
            ept::WRITE_BACK => MemoryType::WriteBack,
            ept::WRITE_THROUGH => MemoryType::WriteThrough,
            ept::WRITE_COMBINING => MemoryType::WriteCombining,
            _ => MemoryType::Uncached,
        }
    }
}

/// Which entries the stage-2 table has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage2Format {
    Npt,
    Ept,
}

enum Stage2<B: TableMemory> {
    Npt(PageTable<NptFormat, B>),
    Ept(PageTable<EptFormat, B>),
}

impl<B: TableMemory> Stage2<B> {
    fn new(format: Stage2Format, memory: B, largest: PageSize) -> Option<Self> {
        Some(match format {
            Stage2Format::Npt => Self::Npt(PageTable::new(memory, largest)?),
            Stage2Format::Ept => Self::Ept(PageTable::new(memory, largest)?),
        })
    }
    fn root(&self) -> Hpa {
        match self {
            Self::Npt(t) => t.root(),
            Self::Ept(t) => t.root(),
        }
    }
    fn map_ram(&mut self, chunk: &Chunk) -> Result<(), MapError> {
        let (rights, memory_type) = (Rights::all(), MemoryType::WriteBack);
        match self {
            Self::Npt(t) => t.map(chunk.gpa.0, chunk.size, chunk.hpa, rights, memory_type),
            Self::Ept(t) => t.map(chunk.gpa.0, chunk.size, chunk.hpa, rights, memory_type),
        }
    }
    fn overlay(&mut self, gpa: Gpa, frame: Hpa) -> Option<[Hpa; 4]> {
        let (rights, memory_type) = (Rights::READ | Rights::WRITE, MemoryType::WriteBack);
        match self {
            Self::Npt(t) => t.overlay(gpa.0, frame, rights, memory_type),
            Self::Ept(t) => t.overlay(gpa.0, frame, rights, memory_type),
        }
    }
    fn free_overlay(&mut self, tables: [Hpa; 4]) {
        match self {
            Self::Npt(t) => t.free_overlay(tables),
            Self::Ept(t) => t.free_overlay(tables),
        }
    }
    fn destroy(self) {
        match self {
            Self::Npt(t) => t.destroy(),
            Self::Ept(t) => t.destroy(),
        }
    }
}

/// Where guest RAM and its tables come from: the machine's frames, or a test's.
pub trait Backing: TableMemory + Clone + Send + Sync {
    /// `pages` contiguous frames at a multiple of `align_pages` frames.
    fn allocate_block(&self, pages: u64, align_pages: u64) -> Option<Hpa>;
    fn free_block(&self, start: Hpa, pages: u64);
    /// Bytes that are free.
    fn free_bytes(&self) -> u64;
    /// Where the host sees `address`.
    fn to_virt(&self, address: Hpa) -> *mut u8;
    /// Called now and then during long work: lets interrupts in, where there are any.
    fn breathe(&self) {}

    /// Overwrites `size` bytes from `start` with zeros.
    ///
    /// # Safety
    /// The frames are allocated, and nobody else uses them.
    unsafe fn scrub(&self, start: Hpa, size: u64) {
        for piece in (0..size).step_by(M2 as usize) {
            // SAFETY: the caller's.
            unsafe { fill(self.to_virt(Hpa(start.0 + piece)), 0, M2.min(size - piece) as usize) };
            self.breathe();
        }
    }
}

impl Backing for Frames {
    fn allocate_block(&self, pages: u64, align_pages: u64) -> Option<Hpa> {
        frames::allocate(pages, align_pages)
    }
    fn free_block(&self, start: Hpa, pages: u64) {
        frames::free(start, pages);
    }
    fn free_bytes(&self) -> u64 {
        frames::free_bytes()
    }
    #[inline(always)]
    fn to_virt(&self, address: Hpa) -> *mut u8 {
        direct::to_virt(address)
    }
    fn breathe(&self) {
        cpu::serve_interrupts();
    }
}

/// A piece of guest RAM that is contiguous in host memory, too. All three numbers are multiples of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Chunk {
    gpa: Gpa,
    size: u64,
    hpa: Hpa,
}

/// A guest's RAM and the stage-2 table that maps it. Dropping it scrubs and frees both: no vCPU may run on it any more.
pub struct GuestRam<B: Backing = Frames> {
    ranges: Vec<RamRange>,
    /// Ascending and disjoint.
    chunks: Vec<Chunk>,
    /// A copy of the largest one: most page tables and most code are there.
    largest: Chunk,
    /// A copy of the largest one below 4 GiB, where a guest with much memory still has its kernel.
    low: Chunk,
    table: Option<Stage2<B>>,
    apic_window: Option<ApicWindow>,
    backing: B,
}

/// A second root for vCPUs whose local APIC the CPU virtualises in memory.
#[derive(Clone, Copy, Debug)]
struct ApicWindow {
    /// Those that the two roots do not share, the root first.
    tables: [Hpa; 4],
    /// The APIC-access page (SDM vol. 3C, 31.4): what the CPU knows the accesses by. Nobody reads or writes it.
    page: Hpa,
}

impl GuestRam<Frames> {
    /// Allocates scrubbed RAM for `ranges` (ascending, disjoint, multiples of 4 KiB) and maps it in pages up to `largest`.
    ///
    /// # Errors
    /// `OutOfMemory`: the host's memory is short; nothing stays allocated. `OutOf` if the ranges are not what they should be.
    pub fn new(format: Stage2Format, ranges: &[RamRange], largest: PageSize) -> Result<Self, CreateError> {
        Self::with_backing(format, ranges, largest, Frames)
    }
}

impl<B: Backing> GuestRam<B> {
    fn with_backing(format: Stage2Format, ranges: &[RamRange], largest: PageSize, backing: B) -> Result<Self, CreateError> {
        let wanted = ranges.iter().fold(0u64, |sum, r| sum.saturating_add(r.size));
        let short = |backing: &B| CreateError::OutOfMemory { wanted, free: backing.free_bytes() };
        let ordered = ranges.windows(2).all(|w| w[0].gpa.0.checked_add(w[0].size).is_some_and(|end| end <= w[1].gpa.0));
        let valid = |r: &RamRange| {
            (r.gpa.0 | r.size) & (PAGE_SIZE - 1) == 0 && r.size != 0 && r.gpa.0.checked_add(r.size).is_some_and(|e| e <= 1 << 48)
        };
        if !ordered || !ranges.iter().all(valid) {
            return Err(CreateError::OutOf("guest-physical address space"));
        }
        if wanted > backing.free_bytes() {
            return Err(short(&backing));
        }
        let table = Stage2::new(format, backing.clone(), largest).ok_or_else(|| short(&backing))?;
        let mut ram = Self {
            ranges: ranges.to_vec(),
            chunks: Vec::new(),
            largest: Chunk { gpa: Gpa(0), size: 0, hpa: Hpa(0) },
            low: Chunk { gpa: Gpa(0), size: 0, hpa: Hpa(0) },
            table: Some(table),
            apic_window: None,
            backing,
        };
        for range in ranges {
            ram.populate(range, largest).map_err(|()| short(&ram.backing))?;
        }
        if let Some(largest) = ram.chunks.iter().max_by_key(|c| c.size) {
            ram.largest = *largest;
        }
        if let Some(low) = ram.chunks.iter().filter(|c| c.gpa.0 < G4).max_by_key(|c| c.size) {
            ram.low = *low;
        }
        Ok(ram)
    }

    /// Allocates and maps one range. What is there already belongs to `self`, so an error frees it with `self`.
    fn populate(&mut self, range: &RamRange, largest: PageSize) -> Result<(), ()> {
        let mut gpa = range.gpa;
        while gpa < range.end() {
            let left = range.end().0 - gpa.0;
            let chunk = self.allocate(gpa, left, largest).ok_or(())?;
            // The frames belong to `self` from here on.
            self.chunks.push(chunk);
            // SAFETY: the frames were just allocated.
            unsafe { self.backing.scrub(chunk.hpa, chunk.size) };
            self.table.as_mut().ok_or(())?.map_ram(&chunk).map_err(|_| ())?;
            gpa = gpa.wrapping_add(chunk.size);
        }
        Ok(())
    }

    /// A piece of host memory for up to `left` bytes of guest RAM at `gpa`, as long and as well aligned as can be had.
    fn allocate(&self, gpa: Gpa, left: u64, largest: PageSize) -> Option<Chunk> {
        // All in one piece, if there is one that lies to large pages as the guest's addresses do.
        let whole =
            [PageSize::Size1G, PageSize::Size2M].into_iter().filter(|p| *p <= largest && left >= p.bytes()).find_map(|page| {
                let before = gpa.0 % page.bytes();
                let start = self.backing.allocate_block((before + left) / PAGE_SIZE, page.bytes() / PAGE_SIZE)?;
                if before != 0 {
                    self.backing.free_block(start, before / PAGE_SIZE);
                }
                Some(Chunk { gpa, size: left, hpa: Hpa(start.0 + before) })
            });
        if whole.is_some() {
            return whole;
        }
        [PageSize::Size1G, PageSize::Size2M, PageSize::Size4K].into_iter().filter(|p| *p <= largest).find_map(|page| {
            let unit = page.bytes();
            if !gpa.is_aligned(unit) || left < unit {
                return None;
            }
            // Up to where larger pages begin to fit.
            let border = match page {
                PageSize::Size1G => u64::MAX,
                PageSize::Size2M if largest == PageSize::Size1G => G1 - gpa.0 % G1,
                PageSize::Size2M => u64::MAX,
                PageSize::Size4K => M2 - gpa.0 % M2,
            };
            let mut size = (left - left % unit).min(border);
            loop {
                if let Some(hpa) = self.backing.allocate_block(size / PAGE_SIZE, unit / PAGE_SIZE) {
                    return Some(Chunk { gpa, size, hpa });
                }
                if size <= unit {
                    return None;
                }
                size = (size / 2).next_multiple_of(unit);
            }
        })
    }

    /// Makes the second root, which has a page at the local APICs' default address. Once, with all RAM mapped.
    ///
    /// # Errors
    /// `OutOfMemory`; the memory is as usable as before.
    pub fn map_apic_page(&mut self) -> Result<(), CreateError> {
        let short = CreateError::OutOfMemory { wanted: 5 * PAGE_SIZE, free: self.backing.free_bytes() };
        let table = self.table.as_mut().ok_or(short)?;
        let page = self.backing.allocate().ok_or(short)?;
        match table.overlay(LOCAL_APIC, page) {
            Some(tables) => self.apic_window = Some(ApicWindow { tables, page }),
            None => {
                self.backing.free(page);
                return Err(short);
            }
        }
        Ok(())
    }

    /// The second root, and its page at the local APICs' default address.
    #[must_use]
    pub fn apic_window(&self) -> Option<(Hpa, Hpa)> {
        self.apic_window.map(|window| (window.tables[0], window.page))
    }

    /// Root of the stage-2 table.
    #[must_use]
    pub fn root(&self) -> Hpa {
        self.table.as_ref().map_or(Hpa(0), Stage2::root)
    }

    /// The chunk that holds `gpa`.
    fn chunk(&self, gpa: Gpa) -> Option<&Chunk> {
        let after = self.chunks.partition_point(|c| c.gpa <= gpa);
        self.chunks.get(after.wrapping_sub(1)).filter(|c| gpa.0 - c.gpa.0 < c.size)
    }

    /// Where the host sees the `len` bytes at `gpa`; `None` if they are not in one chunk.
    #[inline(always)]
    fn place(&self, gpa: Gpa, len: u64) -> Option<*const u8> {
        let offset = gpa.0.wrapping_sub(self.largest.gpa.0);
        if offset < self.largest.size && (len == 1 || len <= self.largest.size - offset) {
            return Some(self.backing.to_virt(Hpa(self.largest.hpa.0 + offset)).cast_const());
        }
        self.search(gpa, len)
    }

    /// [`GuestRam::place`] outside of the largest chunk.
    #[cold]
    fn search(&self, gpa: Gpa, len: u64) -> Option<*const u8> {
        let chunk = if gpa.0.wrapping_sub(self.low.gpa.0) < self.low.size { &self.low } else { self.chunk(gpa)? };
        let offset = gpa.0 - chunk.gpa.0;
        (len <= chunk.size - offset).then(|| self.backing.to_virt(Hpa(chunk.hpa.0 + offset)).cast_const())
    }

    /// [`GuestMemory::entries_hold`] if they are not all in the largest chunk.
    #[cold]
    fn scattered_entries_hold(&self, entries: &[(Gpa, u64); 4]) -> bool {
        // SAFETY: eight bytes of this guest's RAM.
        entries
            .iter()
            .all(|&(at, held)| self.place(Gpa(at.0 & !7), 1).is_some_and(|from| unsafe { load(from.cast::<u64>()) } == held))
    }

    /// Calls `f` with (host address, offset, length) for each contiguous piece of `[gpa, gpa + len)`, once all of it is known to be RAM.
    #[inline]
    fn for_each(&self, gpa: Gpa, len: u64, mut f: impl FnMut(*mut u8, usize, usize)) -> Result<(), OutsideRam> {
        let chunk = self.chunk(gpa).ok_or(OutsideRam(gpa))?;
        let offset = gpa.0 - chunk.gpa.0;
        if len <= chunk.size - offset {
            f(self.backing.to_virt(Hpa(chunk.hpa.0 + offset)), 0, len as usize);
            return Ok(());
        }
        self.for_each_slow(gpa, len, &mut f)
    }

    #[cold]
    fn for_each_slow(&self, gpa: Gpa, len: u64, f: &mut dyn FnMut(*mut u8, usize, usize)) -> Result<(), OutsideRam> {
        let pieces = || {
            let mut done = 0;
            core::iter::from_fn(move || {
                if done >= len {
                    return None;
                }
                let at = Gpa(gpa.0.wrapping_add(done));
                let Some(chunk) = gpa.checked_add(done).and_then(|at| self.chunk(at)) else {
                    done = len;
                    return Some(Err(OutsideRam(at)));
                };
                let offset = at.0 - chunk.gpa.0;
                let n = (len - done).min(chunk.size - offset);
                let piece = (self.backing.to_virt(Hpa(chunk.hpa.0 + offset)), done as usize, n as usize);
                done += n;
                Some(Ok(piece))
            })
        };
        pieces().try_for_each(|piece| piece.map(|_| ()))?;
        pieces().flatten().for_each(|(address, offset, n)| f(address, offset, n));
        Ok(())
    }
}

impl<B: Backing> GuestMemory for GuestRam<B> {
    #[inline]
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), OutsideRam> {
        let to = buf.as_mut_ptr();
        // SAFETY: `for_each` gives RAM of this guest, and offsets and lengths within `buf`.
        self.for_each(gpa, buf.len() as u64, |from, offset, n| unsafe { copy_out(from, to.add(offset), n) })
    }

    #[inline]
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), OutsideRam> {
        let from = data.as_ptr();
        // SAFETY: as above.
        self.for_each(gpa, data.len() as u64, |to, offset, n| unsafe { copy_in(from.add(offset), to, n) })
    }

    fn fill(&self, gpa: Gpa, len: u64, value: u8) -> Result<(), OutsideRam> {
        // SAFETY: as above.
        self.for_each(gpa, len, |to, _, n| unsafe { fill(to, value, n) })
    }

    fn compare_exchange(&self, gpa: Gpa, width: Width, old: u64, new: u64) -> Result<Result<u64, u64>, OutsideRam> {
        let chunk = self.chunk(gpa).ok_or(OutsideRam(gpa))?;
        let offset = gpa.0 - chunk.gpa.0;
        if chunk.size - offset < width.bytes() as u64 {
            return Err(OutsideRam(Gpa(chunk.gpa.0 + chunk.size)));
        }
        // SAFETY: `width` bytes of this guest's RAM.
        let found = unsafe { compare_exchange(self.backing.to_virt(Hpa(chunk.hpa.0 + offset)), width, old, new) };
        Ok(if found == old & width.mask() { Ok(found) } else { Err(found) })
    }

    fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }

    #[inline(always)]
    fn read_entry(&self, gpa: Gpa) -> Option<u64> {
        // Chunks are whole pages, so where an aligned entry begins, there is all of it.
        let from = self.place(Gpa(gpa.0 & !7), 1)?.cast::<u64>();
        // SAFETY: eight bytes of this guest's RAM.
        Some(unsafe { load(from) })
    }

    #[inline(always)]
    fn entries_hold(&self, entries: &[(Gpa, u64); 4]) -> bool {
        let (Chunk { gpa, size, .. }, base) = (self.largest, self.backing.to_virt(self.largest.hpa).cast_const());
        for &(at, held) in entries {
            // Chunks are whole pages, so where an aligned entry begins, there is all of it.
            let offset = (at.0 & !7).wrapping_sub(gpa.0);
            if offset >= size {
                return self.scattered_entries_hold(entries);
            }
            // SAFETY: eight bytes of this guest's RAM, by what is checked before.
            if unsafe { load(base.add(offset as usize).cast::<u64>()) } != held {
                return false;
            }
        }
        true
    }

    #[inline(always)]
    fn read_block(&self, gpa: Gpa) -> Option<[u8; 16]> {
        let from = self.place(gpa, 16)?.cast::<u64>();
        // SAFETY: sixteen bytes of this guest's RAM.
        let halves = unsafe { [load(from), load(from.add(1))] };
        let mut block = [0; 16];
        block[..8].copy_from_slice(&halves[0].to_le_bytes());
        block[8..].copy_from_slice(&halves[1].to_le_bytes());
        Some(block)
    }
}

impl<B: Backing> Drop for GuestRam<B> {
    fn drop(&mut self) {
        if let Some(mut table) = self.table.take() {
            if let Some(window) = self.apic_window.take() {
                table.free_overlay(window.tables);
                self.backing.free(window.page);
            }
            table.destroy();
        }
        for chunk in self.chunks.drain(..) {
            // SAFETY: no vCPU runs on this memory any more, and nobody else has a way to it.
            unsafe { self.backing.scrub(chunk.hpa, chunk.size) };
            self.backing.free_block(chunk.hpa, chunk.size / PAGE_SIZE);
        }
    }
}

// Guest memory changes under us, so every access is volatile or assembly: the compiler must neither assume that two reads agree nor read twice.
// Aligned accesses of 1, 2, 4 and 8 bytes are one instruction, hence single-copy atomic (SDM vol. 3A, 10.1.1).

/// Reads eight bytes of guest memory at any address, in one instruction.
///
/// # Safety
/// `from` is valid for eight bytes.
#[inline(always)]
unsafe fn load(from: *const u64) -> u64 {
    let value;
    // SAFETY: the caller's.
    unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) from, options(nostack, preserves_flags, readonly)) };
    value
}

/// Copies `n` bytes out of guest memory.
///
/// # Safety
/// `from` is guest memory and `to` host memory, both valid for `n` bytes.
#[inline]
unsafe fn copy_out(from: *const u8, to: *mut u8, n: usize) {
    // SAFETY: the caller's; alignment of the guest's side is checked, the host's side is written unaligned.
    unsafe {
        match n {
            1 => to.write(from.read_volatile()),
            2 if from.addr().is_multiple_of(2) => to.cast::<u16>().write_unaligned(from.cast::<u16>().read_volatile()),
            4 if from.addr().is_multiple_of(4) => to.cast::<u32>().write_unaligned(from.cast::<u32>().read_volatile()),
            8 if from.addr().is_multiple_of(8) => to.cast::<u64>().write_unaligned(from.cast::<u64>().read_volatile()),
            _ => copy(from, to, n),
        }
    }
}

/// Copies `n` bytes into guest memory.
///
/// # Safety
/// As [`copy_out`], the other way round.
#[inline]
unsafe fn copy_in(from: *const u8, to: *mut u8, n: usize) {
    // SAFETY: as above.
    unsafe {
        match n {
            1 => to.write_volatile(from.read()),
            2 if to.addr().is_multiple_of(2) => to.cast::<u16>().write_volatile(from.cast::<u16>().read_unaligned()),
            4 if to.addr().is_multiple_of(4) => to.cast::<u32>().write_volatile(from.cast::<u32>().read_unaligned()),
            8 if to.addr().is_multiple_of(8) => to.cast::<u64>().write_volatile(from.cast::<u64>().read_unaligned()),
            _ => copy(from, to, n),
        }
    }
}

/// # Safety
/// Both are valid for `n` bytes and do not overlap.
unsafe fn copy(from: *const u8, to: *mut u8, n: usize) {
    // SAFETY: the caller's; the ABI has DF clear.
    unsafe {
        asm!(
            "rep movsq", "mov ecx, {tail:e}", "rep movsb",
            tail = in(reg) n % 8,
            inout("rcx") n / 8 => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}

/// # Safety
/// `to` is valid for `n` bytes.
unsafe fn fill(to: *mut u8, value: u8, n: usize) {
    // SAFETY: the caller's; the ABI has DF clear.
    unsafe {
        asm!(
            "rep stosq", "mov ecx, {tail:e}", "rep stosb",
            tail = in(reg) n % 8,
            inout("rcx") n / 8 => _, inout("rdi") to => _, in("rax") u64::from(value) * 0x0101_0101_0101_0101,
            options(nostack, preserves_flags),
        );
    }
}

/// LOCK CMPXCHG, which also serves addresses that are not aligned; returns what was found.
///
/// # Safety
/// `at` is valid for `width` bytes.
unsafe fn compare_exchange(at: *mut u8, width: Width, old: u64, new: u64) -> u64 {
    let mut found = old;
    // SAFETY: the caller's.
    unsafe {
        match width {
            Width::Byte => {
                asm!("lock cmpxchg byte ptr [{at}], {new}", at = in(reg) at, new = in(reg_byte) new as u8, inout("rax") found, options(nostack));
            }
            Width::Word => {
                asm!("lock cmpxchg word ptr [{at}], {new:x}", at = in(reg) at, new = in(reg) new, inout("rax") found, options(nostack));
            }
            Width::Dword => {
                asm!("lock cmpxchg dword ptr [{at}], {new:e}", at = in(reg) at, new = in(reg) new, inout("rax") found, options(nostack));
            }
            Width::Qword => {
                asm!("lock cmpxchg qword ptr [{at}], {new}", at = in(reg) at, new = in(reg) new, inout("rax") found, options(nostack));
            }
        }
    }
    found & width.mask()
}

#[cfg(test)]
#[path = "guest_tests.rs"]
mod tests;
