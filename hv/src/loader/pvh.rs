//! PVH kernels: ELF files with a note that has their entry point. And flat images, which have nothing, and are entered the same way.
//!
//! Manual: Xen 4.17, docs/misc/pvh.pandoc ("pvh"); xen/include/public/arch-x86/hvm/start_info.h ("start_info") and elfnote.h.

use super::{
    ImageFields, LoadError, LoadRequest, elf,
    handover::{self, Module, push_string},
    image::{self, Segment, Segments},
    place::Placer,
};
use crate::e820::{self, E820Map};
use alloc::vec::Vec;
use x86defs::{Gpa, GuestMemory, SegmentAttributes, VcpuState};

/// The note's owner and type: XEN_ELFNOTE_PHYS32_ENTRY.
const NOTE_OWNER: &[u8] = b"Xen\0";
const NOTE_PHYS32_ENTRY: u32 = 18;

/// The start information (start_info).
const MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const VERSION: u32 = 1;
const START_INFO_BYTES: u64 = 56;
const MODULE_BYTES: u64 = 32;
const MAP_ENTRY_BYTES: u64 = 24;

/// The entry point of a PVH kernel, a physical address.
pub(super) fn entry(image: &[u8]) -> Option<u64> {
    if !elf::is_elf(image) {
        return None;
    }
    let entry = elf::parse(image).ok()?.note(NOTE_OWNER, NOTE_PHYS32_ENTRY)?;
    // As wide as the kernel's own pointers.
    match entry.len() {
        8 => entry.u64_at(0),
        4 => entry.u32_at(0).map(u64::from),
        _ => None,
    }
}

pub(super) fn load_elf<M: GuestMemory + ?Sized>(
    memory: &M,
    request: &LoadRequest<'_>,
    entry: u64,
) -> Result<VcpuState, LoadError> {
    let segments = elf::parse(request.kernel)?.segments;
    if !image::holds(&segments, entry) {
        return Err(LoadError::Field { field: "XEN_ELFNOTE_PHYS32_ENTRY", value: entry });
    }
    load(memory, request, &segments, entry)
}

/// All of the file to `address`; what is behind it in RAM is zero, and the kernel's.
pub(super) fn load_flat<M: GuestMemory + ?Sized>(
    memory: &M,
    request: &LoadRequest<'_>,
    address: u64,
    entry: u64,
) -> Result<VcpuState, LoadError> {
    let data = request.kernel;
    let size = data.len() as u64;
    let segments: Segments<'_> = core::iter::once(Segment { address, size, data, vaddr: address }).collect();
    if !image::holds(&segments, entry) {
        return Err(LoadError::EntryOutside { entry, start: address, end: address + size });
    }
    load(memory, request, &segments, entry)
}

fn load<M: GuestMemory + ?Sized>(
    memory: &M,
    request: &LoadRequest<'_>,
    segments: &Segments<'_>,
    entry: u64,
) -> Result<VcpuState, LoadError> {
    handover::check_cmdline(request)?;
    let map = e820::map(memory);
    let mut placer = Placer::new(&map);
    image::take(&mut placer, segments)?;
    image::write(memory, segments, 0)?;
    let ramdisk = request.ramdisk.as_ref();
    let module = ramdisk.map(|ramdisk| Module::load_high(memory, &mut placer, ramdisk)).transpose()?;
    let build = |base: u64| start_info(base, request, module.as_ref(), &map);
    let mut state = handover::finish(memory, &mut placer, entry, build)?;
    // A busy 32-bit TSS at 0 with this limit (pvh).
    state.tr.attributes = SegmentAttributes(0x8b);
    state.tr.limit = 0x67;
    Ok(state)
}

/// The start information with all that it points to behind it, for address `base`.
fn start_info(base: u64, request: &LoadRequest<'_>, module: Option<&Module<'_>>, map: &E820Map) -> Vec<u8> {
    let modules = u32::from(module.is_some());
    let map_at = base + START_INFO_BYTES;
    let modules_at = map_at + map.len() as u64 * MAP_ENTRY_BYTES;
    let cmdline_at = modules_at + u64::from(modules) * MODULE_BYTES;
    let name_at = cmdline_at + request.cmdline.len() as u64 + 1;
    let Gpa(rsdp) = request.rsdp;

    let mut bytes = Vec::new();
    for field in [MAGIC, VERSION, 0, modules] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    for field in [if modules == 0 { 0 } else { modules_at }, cmdline_at, rsdp, map_at] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    for field in [map.len() as u32, 0] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    for entry in map {
        for field in [entry.gpa.0, entry.size, u64::from(entry.kind as u32)] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
    }
    if let Some(module) = module {
        for field in [module.start, module.end - module.start, name_at, 0] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
    }
    push_string(&mut bytes, request.cmdline);
    if let Some(module) = module {
        push_string(&mut bytes, module.name);
    }
    bytes
}
