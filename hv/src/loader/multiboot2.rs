//! Multiboot2 kernels: ELF files, 32-bit or 64-bit, and flat images that carry their addresses in a header tag; entered in 32-bit protected
//! mode.
//!
//! Manual: Multiboot2 Specification version 2.0.

use super::{
    ImageFields, LoadError, LoadRequest, elf,
    handover::{self, Module, basic_memory, set_u32},
    image::{self, Addresses, Segments},
    part,
    place::Placer,
};
use crate::{
    e820::{self, E820Map},
    layout,
};
use alloc::vec::Vec;
use core::ops::Range;
use x86defs::{Gpa, Gpr, GuestMemory, PAGE_SIZE, VcpuState};

/// The header lies, 64-bit aligned, in so many bytes from the file's start (3.1.1).
const SEARCH: usize = 32768;
const HEADER_MAGIC: u32 = 0xe852_50d6;
/// Magic, architecture, length, checksum.
const HEADER_BYTES: usize = 16;
/// 32-bit protected mode of i386 (3.1.2).
const ARCHITECTURE_I386: u32 = 0;
/// What the kernel finds in EAX (3.3).
const BOOT_MAGIC: u32 = 0x36d7_6289;

/// Types of the header's tags (3.1.3 to 3.1.13).
mod header_tag {
    pub const END: u16 = 0;
    pub const INFORMATION_REQUEST: u16 = 1;
    pub const ADDRESS: u16 = 2;
    pub const ENTRY_ADDRESS: u16 = 3;
    pub const CONSOLE_FLAGS: u16 = 4;
    /// A wish that stays unfulfilled.
    pub const FRAMEBUFFER: u16 = 5;
    /// Modules are on page boundaries always.
    pub const MODULE_ALIGNMENT: u16 = 6;
    /// For EFI systems only, which this is not (3.1.9 to 3.1.11).
    pub const EFI_BOOT_SERVICES: u16 = 7;
    pub const EFI_ENTRY_I386: u16 = 8;
    pub const EFI_ENTRY_AMD64: u16 = 9;
    pub const RELOCATABLE: u16 = 10;
}
/// The kernel can do without what the tag asks for.
const TAG_OPTIONAL: u16 = 1 << 0;
/// A console must be there (3.1.7).
const CONSOLE_REQUIRED: u32 = 1 << 0;

/// Types of the boot information's tags (3.4).
mod tag {
    pub const END: u32 = 0;
    pub const COMMAND_LINE: u32 = 1;
    pub const LOADER_NAME: u32 = 2;
    pub const MODULE: u32 = 3;
    pub const BASIC_MEMORY: u32 = 4;
    pub const MEMORY_MAP: u32 = 6;
    pub const ELF_SECTIONS: u32 = 9;
    pub const ACPI_OLD_RSDP: u32 = 14;
    pub const ACPI_NEW_RSDP: u32 = 15;
    pub const LOAD_BASE: u32 = 21;
    /// Those above are unknown. What is known and not here (EFI, VBE, APM, a network) is not there to tell about.
    pub const LAST_KNOWN: u32 = LOAD_BASE;
}

/// More symbol and string tables than any kernel has.
const MAX_TABLES: usize = 16;

const LOADER_NAME: &str = "Bulkhead";
/// Bytes of an RSDP of ACPI 1.0, and of 2.0 and later.
const OLD_RSDP_BYTES: usize = 20;
const NEW_RSDP_BYTES: usize = 36;

/// The header's file offset, if there is one; `Err` with the offset of one whose checksum is wrong, if there is no other.
pub(super) fn find_header(image: &[u8]) -> Result<Option<usize>, usize> {
    let mut damaged = None;
    for offset in (0..image.len().min(SEARCH).saturating_sub(HEADER_BYTES - 1)).step_by(8) {
        if image.u32_at(offset) != Some(HEADER_MAGIC) {
            continue;
        }
        let sum = (0..HEADER_BYTES).step_by(4).try_fold(0u32, |sum, at| Some(sum.wrapping_add(image.u32_at(offset + at)?)));
        if sum == Some(0) {
            return Ok(Some(offset));
        }
        damaged.get_or_insert(offset);
    }
    damaged.map_or(Ok(None), Err)
}

/// Where a kernel that may be moved wants to be (3.1.13).
struct Relocation {
    window: Range<u64>,
    align: u64,
    preference: Preference,
}

enum Preference {
    None,
    Lowest,
    Highest,
}

impl Relocation {
    /// Takes a place for the kernel that was linked for `linked`.
    fn place(&self, placer: &mut Placer<'_>, linked: &Range<u64>) -> Result<u64, LoadError> {
        let Self { ref window, align, .. } = *self;
        let size = linked.end - linked.start;
        let fits = linked.start >= window.start && linked.end <= window.end && linked.start.is_multiple_of(align);
        if matches!(self.preference, Preference::None) && fits && placer.take_kernel(linked.start, size).is_ok() {
            return Ok(linked.start);
        }
        // The first page and conventional memory are for others as long as there is more.
        let above = window.start.max(layout::HIGH_MEMORY)..window.end;
        let below = window.start.max(PAGE_SIZE)..window.end.min(layout::HIGH_MEMORY);
        let place = match self.preference {
            Preference::None | Preference::Lowest => {
                placer.take_lowest(size, align, above).or_else(|| placer.take_lowest(size, align, below))
            }
            Preference::Highest => placer.take_highest(size, align, above).or_else(|| placer.take_highest(size, align, below)),
        };
        place.ok_or(LoadError::NoPlaceForKernel { size, min: window.start, max: window.end.saturating_sub(1) })
    }
}

/// What the header's tags say.
#[derive(Default)]
struct Wishes {
    addresses: Option<Addresses>,
    entry: Option<u64>,
    relocation: Option<Relocation>,
}

impl Wishes {
    fn parse(image: &[u8], header: usize) -> Result<Self, LoadError> {
        let field = |at: usize| image.u32_at(header + at).unwrap_or(0);
        let (architecture, length) = (field(4), field(8));
        if architecture != ARCHITECTURE_I386 {
            return Err(LoadError::Multiboot2Architecture(architecture));
        }
        if !(HEADER_BYTES..=SEARCH).contains(&(length as usize)) {
            return Err(LoadError::Field { field: "header_length", value: length.into() });
        }
        let truncated = LoadError::Truncated {
            part: "the multiboot2 header",
            needs: header as u64 + u64::from(length),
            has: image.len() as u64,
        };
        let mut tags = part(image, header as u64, length.into()).and_then(|h| h.get(HEADER_BYTES..)).ok_or(truncated)?;
        let mut wishes = Self::default();
        loop {
            // A header without an end tag ends all the same.
            let Some(size) = tags.u32_at(4) else { return Ok(wishes) };
            let (Some(kind), Some(flags)) = (tags.u16_at(0), tags.u16_at(2)) else { return Ok(wishes) };
            if kind == header_tag::END {
                return Ok(wishes);
            }
            let bytes = usize::try_from(size).ok().filter(|&size| size >= 8).and_then(|size| tags.get(8..size));
            let bytes = bytes.ok_or(LoadError::Field { field: "size of a header tag", value: size.into() })?;
            wishes.take(kind, flags & TAG_OPTIONAL != 0, bytes, header)?;
            tags = tags.get((size as usize).next_multiple_of(8)..).unwrap_or_default();
        }
    }

    /// One tag, whose contents are `bytes`.
    fn take(&mut self, kind: u16, optional: bool, bytes: &[u8], header: usize) -> Result<(), LoadError> {
        let field = |at: usize| {
            let bad = LoadError::Field { field: "size of a header tag", value: bytes.len() as u64 + 8 };
            bytes.u32_at(at).map(u64::from).ok_or(bad)
        };
        match kind {
            header_tag::INFORMATION_REQUEST => {
                let mut requests = bytes.chunks_exact(4).filter_map(|request| request.u32_at(0));
                match requests.find(|&request| request > tag::LAST_KNOWN) {
                    Some(request) if !optional => return Err(LoadError::Multiboot2Request(request)),
                    _ => {}
                }
            }
            header_tag::ADDRESS => {
                let (at, load) = (field(0)?, field(4)?);
                // All ones: from the file's start.
                let load = if load == u64::from(u32::MAX) { at.wrapping_sub(header as u64) } else { load };
                self.addresses = Some(Addresses { header: at, load, load_end: field(8)?, bss_end: field(12)? });
            }
            header_tag::ENTRY_ADDRESS => self.entry = Some(field(0)?),
            header_tag::CONSOLE_FLAGS => {
                let flags = field(0)? as u32;
                if flags & CONSOLE_REQUIRED != 0 && !optional {
                    return Err(LoadError::Multiboot2Console(flags));
                }
            }
            header_tag::RELOCATABLE => {
                let (min, max, align) = (field(0)?, field(4)?, field(8)?.max(1));
                if !align.is_power_of_two() {
                    return Err(LoadError::Field { field: "align", value: align });
                }
                let preference = match field(12)? {
                    1 => Preference::Lowest,
                    2 => Preference::Highest,
                    _ => Preference::None,
                };
                self.relocation = Some(Relocation { window: min..max + 1, align, preference });
            }
            header_tag::FRAMEBUFFER
            | header_tag::MODULE_ALIGNMENT
            | header_tag::EFI_BOOT_SERVICES
            | header_tag::EFI_ENTRY_I386
            | header_tag::EFI_ENTRY_AMD64 => {}
            _ if optional => {}
            kind => return Err(LoadError::Multiboot2Tag(kind)),
        }
        Ok(())
    }
}

pub(super) fn load<M: GuestMemory + ?Sized>(
    memory: &M,
    request: &LoadRequest<'_>,
    header: usize,
) -> Result<VcpuState, LoadError> {
    let image = request.kernel;
    let wishes = Wishes::parse(image, header)?;
    handover::check_cmdline(request)?;
    let (entry, segments, sections) = match &wishes.addresses {
        Some(addresses) => {
            let segments: Segments<'_> = core::iter::once(addresses.segment(image, header)?).collect();
            // There is nothing else to say it.
            (wishes.entry.ok_or(LoadError::Field { field: "entry_addr", value: 0 })?, segments, None)
        }
        None if elf::is_elf(image) => {
            let elf = elf::parse(image)?;
            let entry = wishes.entry.map_or_else(|| elf.entry(), Ok)?;
            let sections = elf.sections();
            (entry, elf.segments, sections)
        }
        None => return Err(LoadError::Field { field: "load_addr", value: 0 }),
    };
    if !image::holds(&segments, entry) {
        return Err(LoadError::Field { field: "entry_addr", value: entry });
    }

    let map = e820::map(memory);
    let mut placer = Placer::new(&map);
    let linked = image::extent(&segments);
    let base = match &wishes.relocation {
        Some(relocation) => relocation.place(&mut placer, &linked)?,
        None => {
            image::take(&mut placer, &segments)?;
            linked.start
        }
    };
    let moved = base.wrapping_sub(linked.start);
    image::write(memory, &segments, moved)?;
    let end = linked.end.wrapping_add(moved);
    let ramdisk = request.ramdisk.as_ref();
    let module = ramdisk.map(|ramdisk| Module::load_after(memory, &mut placer, ramdisk, end)).transpose()?;
    let sections = sections.map(|sections| load_tables(memory, &mut placer, image, &sections, end)).transpose()?;

    let mut rsdp = [0; NEW_RSDP_BYTES];
    memory.read(request.rsdp, &mut rsdp)?;
    let info = BootInformation {
        cmdline: request.cmdline,
        module: module.as_ref(),
        map: &map,
        sections: sections.as_deref(),
        rsdp: &rsdp,
        base: wishes.relocation.is_some().then_some(base),
    };
    let mut state = handover::finish(memory, &mut placer, entry.wrapping_add(moved), |_| info.bytes())?;
    state.gprs[Gpr::Rax] = BOOT_MAGIC.into();
    Ok(state)
}

/// Loads the symbol and string tables that no segment brings into memory, as far as there is room. Gives the contents of the tag about the
/// sections: how many, bytes of each header, which has the names, and the headers with the tables' addresses.
fn load_tables<M: GuestMemory + ?Sized>(
    memory: &M,
    placer: &mut Placer<'_>,
    image: &[u8],
    sections: &elf::Sections<'_>,
    kernel_end: u64,
) -> Result<Vec<u8>, LoadError> {
    let mut contents = Vec::new();
    for field in [sections.count, sections.header_bytes, sections.names] {
        contents.extend_from_slice(&u32::from(field).to_le_bytes());
    }
    let headers_at = contents.len();
    contents.extend_from_slice(sections.headers);
    for (address_at, offset, size) in sections.tables_to_load().take(MAX_TABLES) {
        let above = kernel_end.max(layout::HIGH_MEMORY)..layout::ABOVE_4G;
        if let Some(data) = part(image, offset, size).filter(|data| !data.is_empty())
            && let Some(place) = placer.take_lowest(size, PAGE_SIZE, above)
        {
            memory.write(Gpa(place), data)?;
            set_u32(&mut contents, headers_at + address_at, place as u32);
        }
    }
    Ok(contents)
}

/// What the kernel is told (3.4).
struct BootInformation<'a> {
    cmdline: &'a str,
    module: Option<&'a Module<'a>>,
    map: &'a E820Map,
    sections: Option<&'a [u8]>,
    rsdp: &'a [u8; NEW_RSDP_BYTES],
    /// Where the kernel is, if it may be moved.
    base: Option<u64>,
}

impl BootInformation<'_> {
    /// There are no addresses of its own in it.
    fn bytes(&self) -> Vec<u8> {
        let mut tags = Tags(Vec::from([0; 8]));
        tags.push(tag::COMMAND_LINE, &[], &[self.cmdline.as_bytes(), &[0]]);
        tags.push(tag::LOADER_NAME, &[], &[LOADER_NAME.as_bytes(), &[0]]);
        tags.push(tag::BASIC_MEMORY, &basic_memory(self.map), &[]);
        if let Some(module) = self.module {
            tags.push(tag::MODULE, &[module.start as u32, module.end as u32], &[module.name.as_bytes(), &[0]]);
        }
        let mut entries = Vec::new();
        for entry in self.map {
            entries.extend_from_slice(&entry.gpa.0.to_le_bytes());
            entries.extend_from_slice(&entry.size.to_le_bytes());
            entries.extend_from_slice(&u64::from(entry.kind as u32).to_le_bytes());
        }
        // Bytes of an entry, and their version.
        tags.push(tag::MEMORY_MAP, &[24, 0], &[&entries]);
        if let Some(sections) = self.sections {
            tags.push(tag::ELF_SECTIONS, &[], &[sections]);
        }
        tags.push(tag::ACPI_OLD_RSDP, &[], &[self.rsdp.get(..OLD_RSDP_BYTES).unwrap_or_default()]);
        tags.push(tag::ACPI_NEW_RSDP, &[], &[self.rsdp]);
        if let Some(base) = self.base {
            tags.push(tag::LOAD_BASE, &[base as u32], &[]);
        }
        tags.push(tag::END, &[], &[]);
        let Tags(mut bytes) = tags;
        let size = bytes.len() as u32;
        set_u32(&mut bytes, 0, size);
        bytes
    }
}

/// Total size, a reserved field, and tags, each at a multiple of 8.
struct Tags(Vec<u8>);

impl Tags {
    fn push(&mut self, kind: u32, fields: &[u32], rest: &[&[u8]]) {
        let Self(bytes) = self;
        let size = 8 + size_of_val(fields) + rest.iter().map(|part| part.len()).sum::<usize>();
        for field in [kind, size as u32].iter().chain(fields) {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        for part in rest {
            bytes.extend_from_slice(part);
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
}
