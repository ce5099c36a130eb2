//! Multiboot1 kernels: ELF files, 32-bit or 64-bit, and flat images that carry their addresses in the header (the "a.out kludge").
//!
//! Manual: Multiboot Specification version 0.6.96.

use super::{ImageFields, LoadError, LoadRequest, elf, part, place::Placer};
use crate::{
    e820::{self, E820Map},
    layout,
};
use alloc::{format, vec::Vec};
use x86defs::{Cr0, DescriptorTable, Gpa, Gpr, GuestMemory, PAGE_SIZE, Segment, VcpuState};

/// The header lies, 32-bit aligned, in so many bytes from the file's start (3.1).
const SEARCH: usize = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What the kernel finds in EAX (3.2).
const BOOT_MAGIC: u32 = 0x2bad_b002;
/// Multiboot2's: searched only to tell why an image is refused.
const HEADER_MAGIC_2: u32 = 0xe852_50d6;
const SEARCH_2: usize = 32768;

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
const MAX_CMDLINE: u64 = 0xffff;

/// The stack that a kernel may use until it has its own. The specification gives none, but some lean on one.
const STACK_BYTES: u64 = 4096;
/// Code and data selectors in the descriptor table that we leave behind; nor is there one by specification.
const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;
const GDT: [u64; 3] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

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

pub(super) fn has_multiboot2_header(image: &[u8]) -> bool {
    (0..image.len().min(SEARCH_2)).step_by(8).any(|offset| image.u32_at(offset) == Some(HEADER_MAGIC_2))
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
    let map = e820::map(memory);
    let mut placer = Placer::new(&map);

    let (entry, end) = if flags & FLAG_ADDRESSES != 0 {
        load_flat(memory, &mut placer, image, header)?
    } else if elf::is_elf(image) {
        load_elf(memory, &mut placer, image)?
    } else {
        // Neither addresses in the header nor ELF: nobody knows where it goes.
        return Err(LoadError::Field { field: "flags", value: flags.into() });
    };

    let module = match request.ramdisk {
        None => None,
        Some(ramdisk) => {
            let size = ramdisk.data.len() as u64;
            let above = end.max(layout::HIGH_MEMORY)..layout::ABOVE_4G;
            let anywhere = layout::HIGH_MEMORY..layout::ABOVE_4G;
            // Behind the kernel, as boot loaders do; before it only if there is no other place. An empty file has a place too.
            let place = placer
                .take_lowest(size.max(1), PAGE_SIZE, above)
                .or_else(|| placer.take_lowest(size.max(1), PAGE_SIZE, anywhere.clone()))
                .ok_or_else(|| LoadError::RamdiskDoesNotFit { size, free: placer.largest_free(anywhere) })?;
            memory.write(Gpa(place), ramdisk.data)?;
            Some(Module { start: place, end: place + size, name: ramdisk.name })
        }
    };

    let length = request.cmdline.len() as u64;
    let cmdline = format!("{KERNEL_NAME} {}", request.cmdline);
    if length > MAX_CMDLINE {
        return Err(LoadError::CommandLineTooLong { length, limit: MAX_CMDLINE });
    }
    // Its size does not depend on its address, so it is built twice: once to measure it.
    let size = STACK_BYTES + information(0, &cmdline, module.as_ref(), &map).len() as u64;
    let below_1m = PAGE_SIZE..layout::HIGH_MEMORY;
    let stack = placer
        .take_lowest(size, PAGE_SIZE, below_1m)
        .or_else(|| placer.take_lowest(size, PAGE_SIZE, layout::HIGH_MEMORY..layout::ABOVE_4G))
        .ok_or(LoadError::NoRoom { size })?;
    let info = stack + STACK_BYTES;
    let bytes = information(info as u32, &cmdline, module.as_ref(), &map);
    memory.write(Gpa(info), &bytes)?;
    let gdt = info + (bytes.len() - size_of_val(&GDT)) as u64;
    Ok(entry_state(entry, info, gdt))
}

/// Loads by the address fields (3.1.3). Gives the entry point and the end of the image in memory.
fn load_flat<M: GuestMemory + ?Sized>(
    memory: &M,
    placer: &mut Placer<'_>,
    image: &[u8],
    header: usize,
) -> Result<(u64, u64), LoadError> {
    let field = |offset: usize| {
        let needs = (header + 32) as u64;
        image.u32_at(header + offset).map(u64::from).ok_or(LoadError::Truncated {
            part: "the multiboot1 header",
            needs,
            has: image.len() as u64,
        })
    };
    let (header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr) =
        (field(12)?, field(16)?, field(20)?, field(24)?, field(28)?);
    // The file offset of what goes to load_addr: as far before the header as load_addr is before header_addr.
    let offset = header_addr
        .checked_sub(load_addr)
        .and_then(|before| (header as u64).checked_sub(before))
        .ok_or(LoadError::Field { field: "header_addr", value: header_addr })?;
    let size = match load_end_addr {
        // All of the file.
        0 => image.len() as u64 - offset,
        end => end.checked_sub(load_addr).ok_or(LoadError::Field { field: "load_end_addr", value: end })?,
    };
    let data = part(image, offset, size).ok_or(LoadError::Truncated {
        part: "the loaded part",
        needs: offset.saturating_add(size),
        has: image.len() as u64,
    })?;
    let load_end = load_addr + size;
    let end = match bss_end_addr {
        0 => load_end,
        end if end >= load_end => end,
        end => return Err(LoadError::Field { field: "bss_end_addr", value: end }),
    };
    if !(load_addr..end).contains(&entry_addr) {
        return Err(LoadError::Field { field: "entry_addr", value: entry_addr });
    }
    placer.take_kernel(load_addr, end - load_addr)?;
    memory.write(Gpa(load_addr), data)?;
    memory.fill(Gpa(load_end), end - load_end, 0)?;
    Ok((entry_addr, end))
}

/// Loads an ELF file. Gives the entry point and the end of the highest segment.
fn load_elf<M: GuestMemory + ?Sized>(memory: &M, placer: &mut Placer<'_>, image: &[u8]) -> Result<(u64, u64), LoadError> {
    let elf = elf::parse(image)?;
    for segment in &elf.segments {
        placer.take_kernel(segment.address, segment.size)?;
    }
    let mut end = 0;
    for segment in &elf.segments {
        let filled = segment.data.len() as u64;
        memory.write(Gpa(segment.address), segment.data)?;
        memory.fill(Gpa(segment.address + filled), segment.size - filled, 0)?;
        end = end.max(segment.address + segment.size);
    }
    Ok((elf.entry, end))
}

/// A loaded module: physical addresses and string.
struct Module<'a> {
    start: u64,
    end: u64,
    name: &'a str,
}

/// The information structure (3.3), with all that it points to behind it, for address `base`; last of all a descriptor table.
fn information(base: u32, cmdline: &str, module: Option<&Module<'_>>, map: &E820Map) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&[0; INFO_BYTES]);
    let set = |bytes: &mut Vec<u8>, offset: usize, value: u32| {
        if let Some(field) = bytes.get_mut(offset..offset + 4) {
            field.copy_from_slice(&value.to_le_bytes());
        }
    };
    let here = |bytes: &Vec<u8>| base.wrapping_add(bytes.len() as u32);
    let mut flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME;

    // mem_lower, mem_upper: KiB of RAM from 0 and from 1 MiB on.
    set(&mut bytes, 4, (layout::VGA_WINDOW.start / layout::KIB) as u32);
    set(&mut bytes, 8, ((e820::low_ram_top(map) - layout::HIGH_MEMORY) / layout::KIB) as u32);

    let at = here(&bytes);
    set(&mut bytes, 44, (map.len() * 24) as u32);
    set(&mut bytes, 48, at);
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
            set(&mut bytes, 20, 1);
            set(&mut bytes, 24, modules_at);
        }
    }

    let at = here(&bytes);
    set(&mut bytes, 16, at);
    push_string(&mut bytes, cmdline);
    let at = here(&bytes);
    set(&mut bytes, 64, at);
    bytes.extend_from_slice(LOADER_NAME);
    set(&mut bytes, 0, flags);

    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend_from_slice(GDT.map(u64::to_le_bytes).as_flattened());
    bytes
}

fn push_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
}

/// The machine state (3.2): protected mode with flat segments, paging and interrupts off, EAX and EBX as the kernel expects them.
fn entry_state(entry: u64, info: u64, gdt: u64) -> VcpuState {
    let data = Segment::flat(DATA_SELECTOR, 0x3, false);
    let mut state = VcpuState {
        rip: entry,
        cs: Segment::flat(CODE_SELECTOR, 0xb, false),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        gdtr: DescriptorTable { base: gdt, limit: (size_of_val(&GDT) - 1) as u16 },
        idtr: DescriptorTable::default(),
        cr0: (Cr0::PE | Cr0::ET | Cr0::NE).bits(),
        ..VcpuState::reset(0)
    };
    state.gprs[Gpr::Rax] = BOOT_MAGIC.into();
    state.gprs[Gpr::Rbx] = info;
    state.gprs[Gpr::Rsp] = info;
    state
}
