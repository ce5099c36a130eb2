//! Linux bzImages: by the 64-bit boot protocol, those without a 64-bit entry point by the 32-bit one.
//!
//! Manual: Linux 6.12, Documentation/arch/x86/boot.rst ("boot") and zero-page.rst ("zero-page").

use super::{
    ImageFields, LoadError, LoadRequest,
    handover::{CODE32_DESCRIPTOR, DATA_DESCRIPTOR, flat_state},
    part,
    place::Placer,
};
use crate::{e820, layout};
use alloc::{vec, vec::Vec};
use x86defs::{Cr0, Cr4, DescriptorTable, Efer, Gpa, Gpr, GuestMemory, PAGE_SIZE, Segment, VcpuState};

/// Offsets in the image's first sectors, and in boot_params where the setup header is copied to the same place (boot, "The
/// real-mode kernel header").
mod header {
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const VID_MODE: usize = 0x1fa;
    pub const BOOT_FLAG: usize = 0x1fe;
    /// The jump's displacement: the setup header ends this far behind 0x202.
    pub const JUMP: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const KERNEL_VERSION: usize = 0x20e;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const CODE32_START: usize = 0x214;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE_KERNEL: usize = 0x234;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const SETUP_DATA: usize = 0x250;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    /// The end of what protocol 2.10 has.
    pub const END_2_10: usize = 0x264;
}

/// Other fields of boot_params (zero-page).
mod boot_params {
    pub const ACPI_RSDP_ADDR: usize = 0x70;
    pub const EXT_RAMDISK_IMAGE: usize = 0xc0;
    pub const EXT_RAMDISK_SIZE: usize = 0xc4;
    pub const EXT_CMD_LINE_PTR: usize = 0xc8;
    pub const E820_ENTRIES: usize = 0x1e8;
    /// Where the setup header must end.
    pub const AFTER_HEADER: usize = 0x290;
    pub const E820_TABLE: usize = 0x2d0;
    pub const E820_ENTRY_BYTES: usize = 20;
    pub const BYTES: usize = 4096;
}

const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: [u8; 4] = *b"HdrS";
/// Protocol 2.10 brought pref_address and init_size.
const OLDEST: u16 = 0x020a;
/// Protocol 2.12 brought xloadflags, and with it the 64-bit entry point.
const WITH_XLOADFLAGS: u16 = 0x020c;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
/// A boot loader without a number of its own (boot, "type_of_loader").
const LOADER_UNDEFINED: u8 = 0xff;
const VID_MODE_NORMAL: u16 = 0xffff;
const SECTOR: u64 = 512;
/// The 64-bit entry point lies so far behind the load address (boot, "64-bit boot protocol").
const ENTRY_64: u64 = 0x200;

/// Where the pieces that the kernel needs until it has its own are put: below 640 KiB, which a bzImage never loads to.
const GDT: u64 = 0x1000;
const BOOT_PARAMS: u64 = 0x2000;
/// PML4, PDPT, four page directories: the first 4 GiB one to one, for a 64-bit kernel.
const PAGE_TABLES: u64 = 0x3000;
const CMDLINE: u64 = 0x1_0000;
/// Bytes for the command line with its NUL.
const CMDLINE_ROOM: u64 = 0x1_0000;

/// The selectors that the protocol asks for.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;

/// True if the image has Linux's boot sector and header.
pub(super) fn is_linux(image: &[u8]) -> bool {
    image.u16_at(header::BOOT_FLAG) == Some(BOOT_FLAG) && image.field(header::MAGIC) == Some(MAGIC)
}

/// The version text of a Linux bzImage, as `uname -r` and the build's details.
#[must_use]
pub fn version(image: &[u8]) -> Option<&str> {
    if !is_linux(image) {
        return None;
    }
    let start = usize::from(image.u16_at(header::KERNEL_VERSION)?);
    let text = image.get(start.checked_add(0x200)?..)?;
    let end = text.iter().take(256).position(|&b| b == 0)?;
    core::str::from_utf8(text.get(..end)?).ok().filter(|t| start != 0 && !t.contains(char::is_control))
}

/// How the kernel is entered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EntryPoint {
    /// In protected mode, at the load address.
    Bits32,
    /// In long mode, [`ENTRY_64`] bytes behind it.
    Bits64,
}

/// What the loader needs of the setup header.
struct Header {
    /// File offset of the protected-mode kernel.
    kernel_offset: u64,
    /// Its bytes.
    kernel_size: u64,
    initrd_addr_max: u64,
    kernel_alignment: u64,
    relocatable: bool,
    entry: EntryPoint,
    above_4g: bool,
    /// Most bytes of the command line without its NUL.
    cmdline_size: u64,
    pref_address: u64,
    init_size: u64,
    /// File offset behind the setup header.
    end: usize,
}

impl Header {
    fn parse(image: &[u8]) -> Result<Self, LoadError> {
        let truncated =
            LoadError::Truncated { part: "the setup header", needs: header::END_2_10 as u64, has: image.len() as u64 };
        if image.len() < header::END_2_10 {
            return Err(truncated);
        }
        let u8_at = |offset| image.u8_at(offset).ok_or(truncated);
        let u16_at = |offset| image.u16_at(offset).ok_or(truncated);
        let u32_at = |offset| image.u32_at(offset).ok_or(truncated);

        let version = u16_at(header::VERSION)?;
        if version < OLDEST {
            return Err(LoadError::LinuxTooOld { version });
        }
        let loadflags = u8_at(header::LOADFLAGS)?;
        if loadflags & LOADED_HIGH == 0 {
            return Err(LoadError::Field { field: "loadflags", value: loadflags.into() });
        }
        let xloadflags = if version < WITH_XLOADFLAGS { 0 } else { u16_at(header::XLOADFLAGS)? };
        let entry = if xloadflags & XLF_KERNEL_64 == 0 { EntryPoint::Bits32 } else { EntryPoint::Bits64 };
        let end = header::MAGIC + usize::from(u8_at(header::JUMP)?);
        if !(header::END_2_10..=boot_params::AFTER_HEADER).contains(&end) {
            return Err(LoadError::Field { field: "jump", value: end as u64 });
        }
        let kernel_alignment = u64::from(u32_at(header::KERNEL_ALIGNMENT)?);
        if !kernel_alignment.is_power_of_two() {
            return Err(LoadError::Field { field: "kernel_alignment", value: kernel_alignment });
        }
        let sectors = match u8_at(header::SETUP_SECTS)? {
            // (boot, "setup_sects")
            0 => 4,
            n => u64::from(n),
        };
        let kernel_offset = (sectors + 1) * SECTOR;
        let kernel_size = u64::from(u32_at(header::SYSSIZE)?) * 16;
        if kernel_size <= ENTRY_64 {
            return Err(LoadError::Field { field: "syssize", value: kernel_size / 16 });
        }
        let kernel_end = kernel_offset + kernel_size;
        // The last 16-byte paragraph may be cut short.
        if (image.len() as u64) + 15 < kernel_end {
            return Err(LoadError::Truncated { part: "the kernel", needs: kernel_end, has: image.len() as u64 });
        }
        Ok(Self {
            kernel_offset,
            kernel_size: kernel_size.min(image.len() as u64 - kernel_offset),
            initrd_addr_max: u32_at(header::INITRD_ADDR_MAX)?.into(),
            kernel_alignment,
            relocatable: u8_at(header::RELOCATABLE_KERNEL)? != 0,
            entry,
            above_4g: xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0,
            cmdline_size: u32_at(header::CMDLINE_SIZE)?.into(),
            pref_address: image.u64_at(header::PREF_ADDRESS).ok_or(truncated)?,
            init_size: u32_at(header::INIT_SIZE)?.into(),
            end,
        })
    }

    /// Where the kernel is loaded: where it prefers to run, since from a lower address it would move there by itself (boot,
    /// "pref_address"), or the first aligned address above 1 MiB after that.
    fn load_address(&self) -> Result<u64, LoadError> {
        let bad = LoadError::Field { field: "pref_address", value: self.pref_address };
        if self.pref_address >= layout::HIGH_MEMORY && self.pref_address.is_multiple_of(self.kernel_alignment) {
            return Ok(self.pref_address);
        }
        if !self.relocatable {
            return Err(bad);
        }
        self.pref_address.max(layout::HIGH_MEMORY).checked_next_multiple_of(self.kernel_alignment).ok_or(bad)
    }
}

pub(super) fn load<M: GuestMemory + ?Sized>(memory: &M, request: &LoadRequest<'_>) -> Result<VcpuState, LoadError> {
    let image = request.kernel;
    let header = Header::parse(image)?;
    let map = e820::map(memory);
    let mut placer = Placer::new(&map);

    let start = header.load_address()?;
    placer.take_kernel(start, header.init_size.max(header.kernel_size))?;
    if start >= layout::ABOVE_4G {
        // Only the first 4 GiB are mapped, or reached at all, when the kernel is entered.
        return Err(LoadError::Field { field: "pref_address", value: start });
    }
    let kernel = part(image, header.kernel_offset, header.kernel_size).ok_or(LoadError::Truncated {
        part: "the kernel",
        needs: header.kernel_offset + header.kernel_size,
        has: image.len() as u64,
    })?;

    let limit = header.cmdline_size.min(CMDLINE_ROOM - 1);
    let length = request.cmdline.len() as u64;
    if length > limit {
        return Err(LoadError::CommandLineTooLong { length, limit });
    }

    let initrd = match request.ramdisk {
        Some(ramdisk) if !ramdisk.data.is_empty() => {
            let size = ramdisk.data.len() as u64;
            // Highest first: the kernel unpacks itself and the initrd upwards. The maximum is the last byte's address.
            let low = layout::HIGH_MEMORY..header.initrd_addr_max + 1;
            let high = layout::ABOVE_4G..if header.above_4g { u64::MAX } else { layout::ABOVE_4G };
            let place = placer
                .take_highest(size, PAGE_SIZE, low.clone())
                .or_else(|| placer.take_highest(size, PAGE_SIZE, high.clone()))
                .ok_or_else(|| LoadError::RamdiskDoesNotFit {
                    size,
                    free: placer.largest_free(low).max(placer.largest_free(high)),
                })?;
            memory.write(Gpa(place), ramdisk.data)?;
            Some((place, size))
        }
        _ => None,
    };

    memory.write(Gpa(start), kernel)?;
    let mut cmdline = Vec::from(request.cmdline.as_bytes());
    cmdline.push(0);
    memory.write(Gpa(CMDLINE), &cmdline)?;
    let params = zero_page(image, &header, &map, request.rsdp, start, initrd).ok_or(LoadError::Truncated {
        part: "the setup header",
        needs: header.end as u64,
        has: image.len() as u64,
    })?;
    memory.write(Gpa(BOOT_PARAMS), &params)?;
    let code = match header.entry {
        EntryPoint::Bits32 => CODE32_DESCRIPTOR,
        EntryPoint::Bits64 => CODE64_DESCRIPTOR,
    };
    memory.write(Gpa(GDT), [0, 0, code, DATA_DESCRIPTOR].map(u64::to_le_bytes).as_flattened())?;
    if header.entry == EntryPoint::Bits64 {
        memory.write(Gpa(PAGE_TABLES), &identity_map())?;
    }
    Ok(entry_state(start, header.entry))
}

/// As [`CODE32_DESCRIPTOR`], of 64-bit code.
const CODE64_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
const GDT_BYTES: u16 = 32;

/// boot_params: all zero but for the setup header, copied from the image, and what a boot loader fills in. `None` if the header
/// does not lie within the image.
fn zero_page(
    image: &[u8],
    header: &Header,
    map: &e820::E820Map,
    rsdp: Gpa,
    start: u64,
    initrd: Option<(u64, u64)>,
) -> Option<Vec<u8>> {
    let mut page = vec![0u8; boot_params::BYTES];
    let setup = header::SETUP_SECTS..header.end;
    page.get_mut(setup.clone())?.copy_from_slice(image.get(setup)?);

    let mut put = |offset: usize, bytes: &[u8]| {
        if let Some(field) = page.get_mut(offset..offset + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    let low = |value: u64| (value as u32).to_le_bytes();
    let high = |value: u64| ((value >> 32) as u32).to_le_bytes();
    put(header::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(header::VID_MODE, &VID_MODE_NORMAL.to_le_bytes());
    put(header::CODE32_START, &low(start));
    put(header::SETUP_DATA, &0u64.to_le_bytes());
    put(header::CMD_LINE_PTR, &low(CMDLINE));
    put(boot_params::EXT_CMD_LINE_PTR, &high(CMDLINE));
    let (initrd_start, initrd_size) = initrd.unwrap_or((0, 0));
    put(header::RAMDISK_IMAGE, &low(initrd_start));
    put(header::RAMDISK_SIZE, &low(initrd_size));
    put(boot_params::EXT_RAMDISK_IMAGE, &high(initrd_start));
    put(boot_params::EXT_RAMDISK_SIZE, &high(initrd_size));
    put(boot_params::ACPI_RSDP_ADDR, &rsdp.0.to_le_bytes());
    put(boot_params::E820_ENTRIES, &[map.len() as u8]);
    for (index, entry) in map.iter().enumerate() {
        let at = boot_params::E820_TABLE + index * boot_params::E820_ENTRY_BYTES;
        put(at, &entry.gpa.0.to_le_bytes());
        put(at + 8, &entry.size.to_le_bytes());
        put(at + 16, &(entry.kind as u32).to_le_bytes());
    }
    Some(page)
}

/// Page tables that map the first 4 GiB one to one, in 2-MiB pages, for address [`PAGE_TABLES`] (SDM vol. 3A, 5.5).
fn identity_map() -> Vec<u8> {
    /// Present, writable.
    const TABLE: u64 = 0x3;
    /// Present, writable, page size.
    const LARGE: u64 = 0x83;
    let pdpt = PAGE_TABLES + PAGE_SIZE;
    let directories = pdpt + PAGE_SIZE;
    let mut entries = vec![0u64; 2 * 512];
    entries[0] = pdpt | TABLE;
    for n in 0..4 {
        entries[512 + n] = (directories + n as u64 * PAGE_SIZE) | TABLE;
    }
    entries.extend((0..4 * 512).map(|n| n << 21 | LARGE));
    entries.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// The state at the entry point (boot, "32-bit boot protocol", "64-bit boot protocol"): flat segments with the selectors that the protocol
/// asks for, interrupts off, ESI or RSI = boot_params; EBP, EDI and EBX are zero. Long mode for a kernel that is entered so.
fn entry_state(start: u64, entry: EntryPoint) -> VcpuState {
    let long = entry == EntryPoint::Bits64;
    let state = flat_state(start, Segment::flat(BOOT_CS, 0xb, long), Segment::flat(BOOT_DS, 0x3, false));
    let mut state = VcpuState { gdtr: DescriptorTable { base: GDT, limit: GDT_BYTES - 1 }, ..state };
    if long {
        state.rip = start + ENTRY_64;
        state.cr0 |= Cr0::PG.bits();
        state.cr3 = PAGE_TABLES;
        state.cr4 = Cr4::PAE.bits();
        state.efer = (Efer::LME | Efer::LMA).bits();
    }
    state.gprs[Gpr::Rsi] = BOOT_PARAMS;
    state
}
