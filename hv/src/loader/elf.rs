//! ELF executables, 32-bit and 64-bit, as far as a boot loader needs them: the loadable segments and the entry point.
//!
//! Manual: System V Application Binary Interface, edition 4.1, chapters 4 and 5; the 64-bit layout from its 2013 draft.

use super::{ImageFields, LoadError, part};
use arrayvec::ArrayVec;

/// More than any kernel has; keeps a hostile file from making the loader work for long.
pub(super) const MAX_SEGMENTS: usize = 64;

/// A loadable segment with all its claims checked against the file.
pub(super) struct Segment<'a> {
    /// Where it goes, and its bytes there, `data` and then zeros: within 4 GiB.
    pub(super) address: u64,
    pub(super) size: u64,
    pub(super) data: &'a [u8],
    /// Where it was linked to run.
    vaddr: u64,
}

pub(super) struct Elf<'a> {
    pub(super) segments: ArrayVec<Segment<'a>, MAX_SEGMENTS>,
    /// Physical address of the entry point, within a segment.
    pub(super) entry: u64,
}

const EI_CLASS: usize = 4;
const EI_DATA: usize = 5;
const ELFCLASS32: u8 = 1;
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;

pub(super) fn is_elf(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF")
}

/// Reads the file's headers.
///
/// # Errors
/// The first field that is wrong, by its name in the specification.
pub(super) fn parse(image: &[u8]) -> Result<Elf<'_>, LoadError> {
    let has = image.len() as u64;
    let short = LoadError::Truncated { part: "the ELF header", needs: 64, has };
    let class = image.u8_at(EI_CLASS).ok_or(short)?;
    let wide = match class {
        ELFCLASS32 => false,
        ELFCLASS64 => true,
        _ => return Err(LoadError::Field { field: "e_ident[EI_CLASS]", value: class.into() }),
    };
    let data = image.u8_at(EI_DATA).ok_or(short)?;
    if data != ELFDATA2LSB {
        return Err(LoadError::Field { field: "e_ident[EI_DATA]", value: data.into() });
    }
    let u16_at = |offset| image.u16_at(offset).ok_or(short);
    // A field of address size, at the offset that it has in a 32-bit and in a 64-bit file.
    let word =
        |offset: (usize, usize)| if wide { image.u64_at(offset.1) } else { image.u32_at(offset.0).map(u64::from) }.ok_or(short);
    let kind = u16_at(16)?;
    if !matches!(kind, ET_EXEC | ET_DYN) {
        return Err(LoadError::Field { field: "e_type", value: kind.into() });
    }
    let machine = u16_at(18)?;
    if machine != if wide { EM_X86_64 } else { EM_386 } {
        return Err(LoadError::ElfMachine(machine));
    }
    let entry = word((24, 24))?;
    let phoff = word((28, 32))?;
    let (phentsize, phnum) = if wide { (u16_at(54)?, u16_at(56)?) } else { (u16_at(42)?, u16_at(44)?) };
    let header_bytes = if wide { 56 } else { 32 };
    if u64::from(phentsize) < header_bytes {
        return Err(LoadError::Field { field: "e_phentsize", value: phentsize.into() });
    }
    let table_bytes = u64::from(phentsize) * u64::from(phnum);
    let table = part(image, phoff, table_bytes).ok_or(LoadError::Truncated {
        part: "the ELF program headers",
        needs: phoff.saturating_add(table_bytes),
        has,
    })?;

    let mut segments = ArrayVec::new();
    for header in table.chunks_exact(usize::from(phentsize)) {
        if let Some(segment) = segment(image, header, wide)? {
            segments.try_push(segment).map_err(|_| LoadError::TooManySegments)?;
        }
    }
    let start = segments.iter().find_map(|s: &Segment<'_>| {
        let offset = entry.checked_sub(s.vaddr)?;
        (offset < s.size).then(|| s.address + offset)
    });
    Ok(Elf { segments, entry: start.ok_or(LoadError::Field { field: "e_entry", value: entry })? })
}

/// One program header; `None` if there is nothing to load.
fn segment<'a>(image: &'a [u8], header: &[u8], wide: bool) -> Result<Option<Segment<'a>>, LoadError> {
    let missing = LoadError::Truncated { part: "the ELF program headers", needs: 56, has: header.len() as u64 };
    let word = |offset: (usize, usize)| {
        if wide { header.u64_at(offset.1) } else { header.u32_at(offset.0).map(u64::from) }.ok_or(missing)
    };
    if header.u32_at(0).ok_or(missing)? != PT_LOAD {
        return Ok(None);
    }
    let offset = word((4, 8))?;
    let vaddr = word((8, 16))?;
    let address = word((12, 24))?;
    let filesz = word((16, 32))?;
    let size = word((20, 40))?;
    if size == 0 {
        return Ok(None);
    }
    if filesz > size {
        return Err(LoadError::Field { field: "p_filesz", value: filesz });
    }
    let data = part(image, offset, filesz).ok_or(LoadError::Truncated {
        part: "an ELF segment",
        needs: offset.saturating_add(filesz),
        has: image.len() as u64,
    })?;
    // The kernel is entered with paging off, so all of it must lie below 4 GiB.
    if address.checked_add(size).is_none_or(|end| end > 1 << 32) {
        return Err(LoadError::Field { field: "p_paddr", value: address });
    }
    Ok(Some(Segment { address, size, data, vaddr }))
}
