//! A kernel as parts of its file that go to places in memory; and images whose places are not in an ELF file's headers, but in a multiboot
//! header (the "a.out kludge").

use super::{LoadError, part, place::Placer};
use arrayvec::ArrayVec;
use core::ops::Range;
use x86defs::{Gpa, GuestMemory};

/// More than any kernel has; keeps a hostile file from making the loader work for long.
pub(super) const MAX_SEGMENTS: usize = 64;

/// A loadable segment with all its claims checked against the file.
pub(super) struct Segment<'a> {
    /// Where it goes, and its bytes there, `data` and then zeros: within 4 GiB.
    pub(super) address: u64,
    pub(super) size: u64,
    pub(super) data: &'a [u8],
    /// Where it was linked to run.
    pub(super) vaddr: u64,
}

impl Segment<'_> {
    const fn range(&self) -> Range<u64> {
        self.address..self.address.saturating_add(self.size)
    }
}

pub(super) type Segments<'a> = ArrayVec<Segment<'a>, MAX_SEGMENTS>;

/// From the lowest segment's first byte to the highest's last.
pub(super) fn extent(segments: &Segments<'_>) -> Range<u64> {
    let start = segments.iter().map(|s| s.address).min().unwrap_or(0);
    start..segments.iter().map(|s| s.range().end).max().unwrap_or(start)
}

/// True if the physical address is in a segment.
pub(super) fn holds(segments: &Segments<'_>, address: u64) -> bool {
    segments.iter().any(|s| s.range().contains(&address))
}

/// Takes the places that the segments were linked for.
pub(super) fn take(placer: &mut Placer<'_>, segments: &Segments<'_>) -> Result<(), LoadError> {
    segments.iter().try_for_each(|segment| placer.take_kernel(segment.address, segment.size))
}

/// Writes the segments, each `moved` bytes from its place (mod 2^64).
pub(super) fn write<M: GuestMemory + ?Sized>(memory: &M, segments: &Segments<'_>, moved: u64) -> Result<(), LoadError> {
    for segment in segments {
        let start = segment.address.wrapping_add(moved);
        let filled = segment.data.len() as u64;
        memory.write(Gpa(start), segment.data)?;
        memory.fill(Gpa(start.wrapping_add(filled)), segment.size - filled, 0)?;
    }
    Ok(())
}

/// The address fields of a multiboot header, physical addresses.
pub(super) struct Addresses {
    /// Where the header itself goes.
    pub(super) header: u64,
    /// Where the loaded part of the file starts.
    pub(super) load: u64,
    /// Where it ends; 0 for the file's end.
    pub(super) load_end: u64,
    /// Where zeros end that follow; 0 for none.
    pub(super) bss_end: u64,
}

impl Addresses {
    /// The image's one segment, if its header is at file offset `offset`.
    pub(super) fn segment<'a>(&self, image: &'a [u8], offset: usize) -> Result<Segment<'a>, LoadError> {
        // The file offset of what goes to `load`: as far before the header as `load` is before the header's address.
        let offset = self
            .header
            .checked_sub(self.load)
            .and_then(|before| (offset as u64).checked_sub(before))
            .ok_or(LoadError::Field { field: "header_addr", value: self.header })?;
        let size = match self.load_end {
            0 => image.len() as u64 - offset,
            end => end.checked_sub(self.load).ok_or(LoadError::Field { field: "load_end_addr", value: end })?,
        };
        let data = part(image, offset, size).ok_or(LoadError::Truncated {
            part: "the loaded part",
            needs: offset.saturating_add(size),
            has: image.len() as u64,
        })?;
        let end = match self.bss_end {
            0 => self.load + size,
            end if end >= self.load + size => end,
            end => return Err(LoadError::Field { field: "bss_end_addr", value: end }),
        };
        Ok(Segment { address: self.load, size: end - self.load, data, vaddr: self.load })
    }
}
