//! The frame allocator: one bit for each 4-KiB frame of the machine, set while the frame is free.
//!
//! A bitmap is the simplest thing that gives contiguous, gigabyte-aligned blocks for guests and takes back any part of them. It costs
//! 32 KiB for each GiB, and a search looks at 64 frames at a time. Single frames (tables, heap) are taken from the bottom, blocks
//! from the top, so that the former do not break up the latter.

use super::direct;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::{Mutex, Once};
use x86defs::{Hpa, PAGE_SIZE};

/// The first MiB belongs to the firmware and to the AP trampoline; it is never handed out.
const LOW_END: u64 = 1 << 20;
/// What the early direct map covers: the bitmap must lie below.
pub const EARLY_END: u64 = 4 << 30;

/// A range of physical addresses, `start` included, `end` not. Any alignment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Range {
    pub start: u64,
    pub end: u64,
}

impl Range {
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end }
    }
    /// Bytes; zero if the range is empty or upside down.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// Why the allocator could not start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InitError {
    /// The memory map has no usable range (after `mem=`).
    NoMemory,
    /// No room below 4 GiB for a bitmap of so many bytes.
    NoRoomForBitmap(u64),
}

/// The bitmap: bit `n % 64` of word `n / 64` is set while frame `n` is free.
#[derive(Debug)]
pub struct FrameMap<'a> {
    words: &'a mut [u64],
    free: u64,
    /// No frame below this one is free.
    lowest: u64,
}

impl<'a> FrameMap<'a> {
    /// A map of `64 * words.len()` frames, none of them free.
    #[must_use]
    pub fn new(words: &'a mut [u64]) -> Self {
        words.fill(0);
        let lowest = words.len() as u64 * 64;
        Self { words, free: 0, lowest }
    }

    fn frames(&self) -> u64 {
        self.words.len() as u64 * 64
    }

    /// Frames that are free.
    #[must_use]
    pub fn free_frames(&self) -> u64 {
        self.free
    }

    /// Calls `f` with each word that holds frames of `[first, first + count)`, and the mask of those frames, until it returns false.
    fn words_of(&mut self, first: u64, count: u64, mut f: impl FnMut(&mut u64, u64, u64) -> bool) {
        let end = first.saturating_add(count).min(self.frames());
        let mut frame = first;
        while frame < end {
            let bit = frame % 64;
            let n = (64 - bit).min(end - frame);
            let mask = (u64::MAX >> (64 - n)) << bit;
            if !f(&mut self.words[(frame / 64) as usize], mask, frame - bit) {
                return;
            }
            frame += n;
        }
    }

    /// Makes all frames of the range free; returns how many were free before (0 if the caller owned them all).
    pub fn release(&mut self, first: u64, count: u64) -> u64 {
        let (mut added, mut already) = (0, 0);
        self.words_of(first, count, |word, mask, _| {
            added += u64::from((mask & !*word).count_ones());
            already += u64::from((mask & *word).count_ones());
            *word |= mask;
            true
        });
        self.free += added;
        self.lowest = self.lowest.min(first);
        already
    }

    /// Takes all frames of the range away, whether they were free or not.
    pub fn reserve(&mut self, first: u64, count: u64) {
        let mut taken = 0;
        self.words_of(first, count, |word, mask, _| {
            taken += u64::from((mask & *word).count_ones());
            *word &= !mask;
            true
        });
        self.free -= taken;
    }

    /// The lowest frame of the range that is not free.
    fn first_used(&mut self, first: u64, count: u64) -> Option<u64> {
        let mut found = None;
        self.words_of(first, count, |word, mask, base| {
            let used = mask & !*word;
            if used != 0 {
                found = Some(base + u64::from(used.trailing_zeros()));
            }
            used == 0
        });
        found
    }

    /// Takes `count` contiguous frames, the first a multiple of `align` (a power of two): the lowest single frame, or the highest block.
    pub fn allocate(&mut self, count: u64, align: u64) -> Option<u64> {
        debug_assert!(align.is_power_of_two());
        if count == 0 || count > self.free {
            return None;
        }
        let first = if count == 1 && align == 1 { self.lowest_free()? } else { self.highest_block(count, align)? };
        self.reserve(first, count);
        Some(first)
    }

    fn lowest_free(&mut self) -> Option<u64> {
        let start = (self.lowest / 64) as usize;
        let word = (start..self.words.len()).find(|&i| self.words[i] != 0)?;
        self.lowest = word as u64 * 64 + u64::from(self.words[word].trailing_zeros());
        Some(self.lowest)
    }

    fn highest_block(&mut self, count: u64, align: u64) -> Option<u64> {
        let mut first = self.frames().checked_sub(count)? & !(align - 1);
        while let Some(used) = self.first_used(first, count) {
            // A block that contains this frame is out of the question, so the next candidate ends there at the latest.
            first = used.checked_sub(count)? & !(align - 1);
        }
        Some(first)
    }
}

struct Global {
    map: Mutex<FrameMap<'static>>,
    /// Bytes, for reporting.
    total: AtomicU64,
    trampoline: Option<Hpa>,
}

static GLOBAL: Once<Global> = Once::new();

/// What the allocator may hand out: RAM at or above 1 MiB and below `limit`, in whole pages.
fn managed(usable: impl Iterator<Item = Range> + Clone, limit: Option<u64>) -> impl Iterator<Item = Range> + Clone {
    usable.map(move |r| clip(r, LOW_END, limit)).filter(|r| r.size() > 0)
}

/// The whole pages of a range that are at or above `start` and below `limit`.
fn clip(range: Range, start: u64, limit: Option<u64>) -> Range {
    let start = range.start.max(start);
    Range::new(
        start.saturating_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1),
        range.end.min(limit.unwrap_or(u64::MAX)) & !(PAGE_SIZE - 1),
    )
}

/// Starts the allocator with the part below 4 GiB of the `usable` ranges of the memory map, less all `reserved` ones (image, modules,
/// boot information), less the first MiB, less what lies at or above `limit`. Later calls have no effect.
///
/// # Safety
/// The usable ranges less the reserved ones must be RAM that nothing else uses, and the direct map must reach the first 4 GiB.
///
/// # Errors
/// See [`InitError`].
pub unsafe fn init(usable: impl Iterator<Item = Range> + Clone, reserved: &[Range], limit: Option<u64>) -> Result<(), InitError> {
    let all = managed(usable.clone(), limit);
    let top = all.clone().map(|r| r.end).max().ok_or(InitError::NoMemory)?;
    let words = top.div_ceil(64 * PAGE_SIZE);
    let bytes = (words * 8).next_multiple_of(PAGE_SIZE);
    let low = all.map(|r| Range::new(r.start, r.end.min(EARLY_END)));
    let place = find_room(low.clone(), reserved, bytes).ok_or(InitError::NoRoomForBitmap(bytes))?;
    let trampoline = find_room(usable.map(|r| clip(r, 0x1000, Some(0x9_0000))), reserved, PAGE_SIZE);
    // SAFETY: `place` is RAM that nothing else uses, mapped by the direct map, page-aligned, and stays reserved for ever.
    let slice = unsafe { core::slice::from_raw_parts_mut(direct::to_virt(Hpa(place)).cast::<u64>(), words as usize) };
    let mut map = FrameMap::new(slice);
    add(&mut map, low, reserved);
    let total = AtomicU64::new(map.free_frames() * PAGE_SIZE);
    map.reserve(place / PAGE_SIZE, bytes / PAGE_SIZE);
    GLOBAL.call_once(|| Global { map: Mutex::new(map), total, trampoline: trampoline.map(Hpa) });
    Ok(())
}

/// Adds the part from 4 GiB up, once the final direct map reaches it. Same arguments as for [`init`].
///
/// # Safety
/// As [`init`]; once.
pub unsafe fn init_high(usable: impl Iterator<Item = Range> + Clone, reserved: &[Range], limit: Option<u64>) {
    let Some(global) = GLOBAL.get() else { return };
    let mut map = global.map.lock();
    let before = map.free_frames();
    add(&mut map, managed(usable, limit).map(|r| Range::new(r.start.max(EARLY_END), r.end)), reserved);
    global.total.fetch_add((map.free_frames() - before) * PAGE_SIZE, Ordering::Relaxed);
}

fn add(map: &mut FrameMap<'_>, ranges: impl Iterator<Item = Range>, reserved: &[Range]) {
    for range in ranges {
        map.release(range.start / PAGE_SIZE, range.size() / PAGE_SIZE);
        for part in reserved.iter().filter(|r| r.overlaps(&range)) {
            // Only within this range: what lies outside may have been given out already.
            let (first, end) = (part.start.max(range.start) / PAGE_SIZE, part.end.min(range.end).div_ceil(PAGE_SIZE));
            map.reserve(first, end - first);
        }
    }
}

/// The lowest page-aligned place of `bytes` bytes in one of `ranges` that touches nothing reserved.
fn find_room(ranges: impl Iterator<Item = Range>, reserved: &[Range], bytes: u64) -> Option<u64> {
    for range in ranges {
        let mut at = range.start.next_multiple_of(PAGE_SIZE);
        while at.checked_add(bytes)? <= range.end {
            match reserved.iter().find(|r| r.overlaps(&Range::new(at, at + bytes))) {
                None => return Some(at),
                Some(r) => at = r.end.next_multiple_of(PAGE_SIZE),
            }
        }
    }
    None
}

/// `pages` contiguous 4-KiB frames, the first at a multiple of `align_pages` frames (a power of two; 512 for 2 MiB, 262144 for 1 GiB).
/// Contents are whatever was there before. `None` if there is no such block, or before [`init`].
#[must_use]
pub fn allocate(pages: u64, align_pages: u64) -> Option<Hpa> {
    GLOBAL.get()?.map.lock().allocate(pages, align_pages).map(|n| Hpa(n * PAGE_SIZE))
}

/// As [`allocate`], for one zeroed frame.
#[must_use]
pub fn allocate_zeroed() -> Option<Hpa> {
    let frame = allocate(1, 1)?;
    // SAFETY: the frame is ours, and the direct map reaches all RAM.
    unsafe { direct::to_virt(frame).write_bytes(0, PAGE_SIZE as usize) };
    Some(frame)
}

/// Gives frames back, in whatever portions.
///
/// # Panics
/// If one of them is free already: somebody has used memory that was not theirs, and nothing can be trusted any more.
pub fn free(start: Hpa, pages: u64) {
    let already = GLOBAL.get().map_or(0, |g| g.map.lock().release(start.0 / PAGE_SIZE, pages));
    assert!(already == 0, "frames freed twice: {already} of {pages} at {start}");
}

/// Bytes that are free.
#[must_use]
pub fn free_bytes() -> u64 {
    GLOBAL.get().map_or(0, |g| g.map.lock().free_frames() * PAGE_SIZE)
}

/// Bytes that were free at the start: all RAM less what firmware, image and modules hold.
#[must_use]
pub fn total_bytes() -> u64 {
    GLOBAL.get().map_or(0, |g| g.total.load(Ordering::Relaxed))
}

/// A page below 640 KiB for starting further CPUs, if the memory map has one.
#[must_use]
pub fn trampoline() -> Option<Hpa> {
    GLOBAL.get()?.trampoline
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{Just, any, prop_oneof, proptest};
    use std::{vec, vec::Vec};

    #[test]
    fn blocks_come_from_the_top_and_single_frames_from_the_bottom() {
        let mut words = vec![0; 32];
        let mut map = FrameMap::new(&mut words);
        map.release(100, 1900);
        assert_eq!(map.allocate(1, 1), Some(100));
        assert_eq!(map.allocate(1, 1), Some(101));
        assert_eq!(map.allocate(512, 512), Some(1024));
        assert_eq!(map.allocate(512, 512), Some(512));
        assert_eq!(map.allocate(512, 512), None);
        assert_eq!(map.allocate(400, 1), Some(1600));
        assert_eq!(map.release(512, 512), 0);
        assert_eq!(map.allocate(512, 256), Some(512));
    }

    #[test]
    fn a_hole_is_stepped_over() {
        let mut words = vec![0; 64];
        let mut map = FrameMap::new(&mut words);
        map.release(0, 4096);
        map.reserve(3000, 1);
        map.reserve(1500, 1);
        assert_eq!(map.allocate(1400, 1), Some(1600));
        assert_eq!(map.allocate(1400, 4), Some(100));
        assert_eq!(map.free_frames(), 4096 - 2 - 2800);
    }

    #[test]
    fn double_free_is_noticed() {
        let mut words = vec![0; 2];
        let mut map = FrameMap::new(&mut words);
        map.release(0, 128);
        let a = map.allocate(4, 4).unwrap();
        assert_eq!(map.release(a, 4), 0);
        assert_eq!(map.release(a + 1, 2), 2);
        assert_eq!(map.free_frames(), 128);
    }

    #[test]
    fn room_is_found_behind_reserved_ranges() {
        let ranges = [Range::new(0x1234, 0x4000), Range::new(0x10_0000, 0x20_0000)];
        let reserved = [Range::new(0x10_0000, 0x12_3456), Range::new(0x13_0000, 0x14_0000)];
        assert_eq!(find_room(ranges.into_iter(), &reserved, 0x1000), Some(0x2000));
        assert_eq!(find_room(ranges.into_iter(), &reserved, 0x8000), Some(0x12_4000));
        assert_eq!(find_room(ranges.into_iter(), &reserved, 0xc_0000), Some(0x14_0000));
        assert_eq!(find_room(ranges.into_iter(), &reserved, 0xc_1000), None);
    }

    proptest! {
        /// Whatever is allocated and freed, in whatever order: blocks are aligned, within the map, and never overlap; the count is right.
        #[test]
        fn blocks_never_overlap(
            ops in proptest::collection::vec(
                (any::<u8>(), 1u64..200, prop_oneof![Just(1u64), Just(2), Just(64), Just(128)]),
                1..120,
            )
        ) {
            let mut words = vec![0; 16];
            let mut map = FrameMap::new(&mut words);
            map.release(10, 900);
            let mut owned: Vec<(u64, u64)> = Vec::new();
            for (choice, count, align) in ops {
                if choice % 3 == 0 && !owned.is_empty() {
                    let (first, n) = owned.swap_remove(usize::from(choice) % owned.len());
                    assert_eq!(map.release(first, n), 0);
                } else if let Some(first) = map.allocate(count, align) {
                    assert_eq!(first % align, 0);
                    assert!(first >= 10 && first + count <= 910);
                    assert!(owned.iter().all(|&(f, n)| first + count <= f || f + n <= first));
                    owned.push((first, count));
                } else {
                    // A refusal must be true: no aligned run of free frames is long enough.
                    let free = |f: u64| (10..910).contains(&f) && owned.iter().all(|&(o, n)| !(o..o + n).contains(&f));
                    assert!(!(0..1024).step_by(align as usize).any(|f| (f..f + count).all(free)));
                }
                assert_eq!(map.free_frames() + owned.iter().map(|o| o.1).sum::<u64>(), 900);
            }
        }
    }
}
