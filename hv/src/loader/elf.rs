//! ELF executables, 32-bit and 64-bit, as far as a boot loader needs them: the loadable segments and the entry point.
//!
//! Manual: System V Application Binary Interface, edition 4.1, chapters 4 and 5; the 64-bit layout from its 2013 draft.

use super::{
    ImageFields, LoadError,
    image::{Segment, Segments},
    part,
};

/// More notes, and segments of notes, than any kernel has; keeps a hostile file from making the loader work for long.
const MAX_NOTES: usize = 256;

pub(super) struct Elf<'a> {
    image: &'a [u8],
    wide: bool,
    /// `e_entry`.
    start: u64,
    /// The program headers, each with so many bytes.
    headers: &'a [u8],
    header_bytes: usize,
    pub(super) segments: Segments<'a>,
}

/// The section headers.
pub(super) struct Sections<'a> {
    pub(super) headers: &'a [u8],
    pub(super) header_bytes: u16,
    pub(super) count: u16,
    /// Which one has the names.
    pub(super) names: u16,
    wide: bool,
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
const PT_NOTE: u32 = 4;
const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;

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
    let start = word((24, 24))?;
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

    let mut segments = Segments::new();
    for header in table.chunks_exact(usize::from(phentsize)) {
        if let Some(segment) = segment(image, header, wide)? {
            segments.try_push(segment).map_err(|_| LoadError::TooManySegments)?;
        }
    }
    Ok(Elf { image, wide, start, headers: table, header_bytes: phentsize.into(), segments })
}

impl<'a> Elf<'a> {
    /// Physical address of the entry point.
    ///
    /// # Errors
    /// It lies in no segment.
    pub(super) fn entry(&self) -> Result<u64, LoadError> {
        let physical = self.segments.iter().find_map(|s| {
            let offset = self.start.checked_sub(s.vaddr)?;
            (offset < s.size).then(|| s.address + offset)
        });
        physical.ok_or(LoadError::Field { field: "e_entry", value: self.start })
    }

    /// What the first note of this owner and type says.
    pub(super) fn note(&self, owner: &[u8], kind: u32) -> Option<&'a [u8]> {
        let word = |header: &'a [u8], offset: (usize, usize)| {
            if self.wide { header.u64_at(offset.1) } else { header.u32_at(offset.0).map(u64::from) }
        };
        let segments = self.headers.chunks_exact(self.header_bytes).filter(|header| header.u32_at(0) == Some(PT_NOTE));
        segments.take(MAX_NOTES).find_map(|header| {
            // Names and descriptions are padded to 4 bytes; in segments that say so, to 8.
            let align = if word(header, (28, 48))? == 8 { 8 } else { 4 };
            let mut notes = part(self.image, word(header, (4, 8))?, word(header, (16, 32))?)?;
            for _ in 0..MAX_NOTES {
                let (name_bytes, bytes) = (notes.u32_at(0)? as usize, notes.u32_at(4)? as usize);
                let start = name_bytes.checked_add(12)?.checked_next_multiple_of(align)?;
                let end = start.checked_add(bytes)?;
                let description = notes.get(start..end)?;
                if notes.u32_at(8) == Some(kind) && notes.get(12..12 + name_bytes) == Some(owner) {
                    return Some(description);
                }
                notes = notes.get(end.checked_next_multiple_of(align)?..)?;
            }
            None
        })
    }

    /// The section headers, if the file has them whole.
    pub(super) fn sections(&self) -> Option<Sections<'a>> {
        let (image, at) = (self.image, if self.wide { 58 } else { 46 });
        let offset = if self.wide { image.u64_at(40)? } else { image.u32_at(32)?.into() };
        let (header_bytes, count, names) = (image.u16_at(at)?, image.u16_at(at + 2)?, image.u16_at(at + 4)?);
        let whole = offset != 0 && count != 0 && header_bytes >= if self.wide { 64 } else { 40 };
        let headers = part(image, offset, u64::from(header_bytes) * u64::from(count)).filter(|_| whole)?;
        Some(Sections { headers, header_bytes, count, names, wide: self.wide })
    }
}

impl Sections<'_> {
    /// Symbol and string tables that no segment brings into memory: where each one's address belongs in `headers`, and its place in the
    /// file.
    pub(super) fn tables_to_load(&self) -> impl Iterator<Item = (usize, u64, u64)> {
        self.headers.chunks_exact(self.header_bytes.into()).enumerate().filter_map(|(n, header)| {
            let word =
                |offset: (usize, usize)| if self.wide { header.u64_at(offset.1) } else { header.u32_at(offset.0).map(u64::from) };
            let wanted = matches!(header.u32_at(4)?, SHT_SYMTAB | SHT_STRTAB) && word((12, 16))? == 0;
            let address = n * usize::from(self.header_bytes) + if self.wide { 16 } else { 12 };
            wanted.then_some((address, word((16, 24))?, word((20, 32))?))
        })
    }
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
