//! Multiboot1 kernels: ELF files, 32-bit or 64-bit, and flat images that carry their addresses in the header (the "a.out kludge").
//!
//! Manual: Multiboot Specification version 0.6.96.

use super::{
    ImageFields, LoadError, LoadRequest, elf,
    handover::{self, Module, basic_memory, push_string, set_u32},
    image::{self, Addresses, Segments},
    place::Placer,
};
use crate::e820::{self, E820Map};
use alloc::{format, vec::Vec};
use x86defs::{Gpr, GuestMemory, VcpuState};

/// The header lies, 32-bit aligned, in so many bytes from the file's start (3.1).
const SEARCH: usize = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What the kernel finds in EAX (3.2).
const BOOT_MAGIC: u32 = 0x2bad_b002;

/// Header flags (3.1.2): modules on page boundaries, memory information, video mode, and address fields valid. The rest of the low
/// half are requirements that a loader must refuse if it does not know them. A video mode is a wish that stays unfulfilled:
/// the information structure then has no video fields.
const FLAG_ADDRESSES: u32 = 1 << 16;
const REQUIREMENTS: u32 = 0xffff;
const KNOWN_REQUIREMENTS: u32 = 0x7;

/// Information flags (3.3): which parts of the structure are valid.
const INFO_MEMORY: u32 = 1 << 0;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;
/// Bytes of the information structure, with the video fields that we leave zero.
const INFO_BYTES: usize = 120;

const LOADER_NAME: &[u8] = b"Bulkhead\0";
/// The first word of the command line: kernels take it for their own name, as GRUB legacy and QEMU give it, and skip it.
const KERNEL_NAME: &str = "kernel";

/// The header's file offset, if there is one; `Err` with the offset of one whose checksum is wrong, if there is no other.
pub(super) fn find_header(image: &[u8]) -> Result<Option<usize>, usize> {
    let mut damaged = None;
    for offset in (0..image.len().min(SEARCH).saturating_sub(11)).step_by(4) {
        if image.u32_at(offset) != Some(HEADER_MAGIC) {
            continue;
        }
        let (flags, checksum) = (image.u32_at(offset + 4), image.u32_at(offset + 8));
        if let (Some(flags), Some(checksum)) = (flags, checksum)
            && HEADER_MAGIC.wrapping_add(flags).wrapping_add(checksum) == 0
        {
            return Ok(Some(offset));
        }
        damaged.get_or_insert(offset);
    }
    damaged.map_or(Ok(None), Err)
}

pub(super) fn load<M: GuestMemory + ?Sized>(
    memory: &M,
    request: &LoadRequest<'_>,
    header: usize,
) -> Result<VcpuState, LoadError> {
    let image = request.kernel;
    let flags = image.u32_at(header + 4).unwrap_or(0);
    let unknown = flags & REQUIREMENTS & !KNOWN_REQUIREMENTS;
    if unknown != 0 {
        return Err(LoadError::MultibootFlags(unknown));
    }
    handover::check_cmdline(request)?;
    let (entry, segments) = if flags & FLAG_ADDRESSES != 0 {
        flat(image, header)?
    } else if elf::is_elf(image) {
        let elf = elf::parse(image)?;
        (elf.entry()?, elf.segments)
    } else {
        // Neither addresses in the header nor ELF: nobody knows where it goes.
        return Err(LoadError::Field { field: "flags", value: flags.into() });
    };

    let map = e820::map(memory);
    let mut placer = Placer::new(&map);
    image::take(&mut placer, &segments)?;
    image::write(memory, &segments, 0)?;
    let end = image::extent(&segments).end;
    let ramdisk = request.ramdisk.as_ref();
    let module = ramdisk.map(|ramdisk| Module::load_after(memory, &mut placer, ramdisk, end)).transpose()?;
    let cmdline = format!("{KERNEL_NAME} {}", request.cmdline);
    let build = |base: u64| information(base as u32, &cmdline, module.as_ref(), &map);
    let mut state = handover::finish(memory, &mut placer, entry, build)?;
    state.gprs[Gpr::Rax] = BOOT_MAGIC.into();
    Ok(state)
}

/// An image by the address fields (3.1.3): its entry point, and what goes where.
fn flat(image: &[u8], header: usize) -> Result<(u64, Segments<'_>), LoadError> {
    let field = |offset: usize| {
        let needs = (header + 32) as u64;
        image.u32_at(header + offset).map(u64::from).ok_or(LoadError::Truncated {
            part: "the multiboot1 header",
            needs,
            has: image.len() as u64,
        })
    };
    let addresses = Addresses { header: field(12)?, load: field(16)?, load_end: field(20)?, bss_end: field(24)? };
    let entry = field(28)?;
    let segments: Segments<'_> = core::iter::once(addresses.segment(image, header)?).collect();
    if !image::holds(&segments, entry) {
        return Err(LoadError::Field { field: "entry_addr", value: entry });
    }
    Ok((entry, segments))
}

/// The information structure (3.3), with all that it points to behind it, for address `base`.
fn information(base: u32, cmdline: &str, module: Option<&Module<'_>>, map: &E820Map) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&[0; INFO_BYTES]);
    let here = |bytes: &Vec<u8>| base.wrapping_add(bytes.len() as u32);
    let mut flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME;

    let [lower, upper] = basic_memory(map);
    set_u32(&mut bytes, 4, lower);
    set_u32(&mut bytes, 8, upper);

    let at = here(&bytes);
    set_u32(&mut bytes, 44, (map.len() * 24) as u32);
    set_u32(&mut bytes, 48, at);
    for entry in map {
        // The size field does not count itself.
        bytes.extend_from_slice(&20u32.to_le_bytes());
        bytes.extend_from_slice(&entry.gpa.0.to_le_bytes());
        bytes.extend_from_slice(&entry.size.to_le_bytes());
        bytes.extend_from_slice(&(entry.kind as u32).to_le_bytes());
    }

    let modules_at = here(&bytes);
    match module {
        None => flags &= !INFO_MODULES,
        Some(module) => {
            let string = modules_at.wrapping_add(16);
            for value in [module.start as u32, module.end as u32, string, 0] {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            push_string(&mut bytes, module.name);
            set_u32(&mut bytes, 20, 1);
            set_u32(&mut bytes, 24, modules_at);
        }
    }

    let at = here(&bytes);
    set_u32(&mut bytes, 16, at);
    push_string(&mut bytes, cmdline);
    let at = here(&bytes);
    set_u32(&mut bytes, 64, at);
    bytes.extend_from_slice(LOADER_NAME);
    set_u32(&mut bytes, 0, flags);
    bytes
}
