//! What kernels have in common that are entered in 32-bit protected mode with the address of the loader's information in a register.

use super::{LoadError, LoadRequest, Ramdisk, place::Placer};
use crate::layout;
use alloc::vec::Vec;
use x86defs::{Cr0, DescriptorTable, Gpa, Gpr, GuestMemory, PAGE_SIZE, Segment, VcpuState};

/// The stack that a kernel may use until it has its own. No specification gives one, but some kernels lean on it.
const STACK_BYTES: u64 = 4096;
/// Code and data selectors in the descriptor table that we leave behind; nor is there one by specification.
const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;
/// Flat 4-GiB segments, present, DPL 0, accessed (SDM vol. 3A, 3.4.5).
const GDT: [u64; 3] = [0, CODE32_DESCRIPTOR, DATA_DESCRIPTOR];
pub(super) const CODE32_DESCRIPTOR: u64 = 0x00cf_9b00_0000_ffff;
pub(super) const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;

/// Longest command line.
const MAX_CMDLINE: u64 = 0xffff;

/// A file beside the kernel that has been loaded: physical addresses and string.
pub(super) struct Module<'a> {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) name: &'a str,
}

impl<'a> Module<'a> {
    /// Behind the kernel, as multiboot loaders do; before it only if there is no other place.
    pub(super) fn load_after<M: GuestMemory + ?Sized>(
        memory: &M,
        placer: &mut Placer<'_>,
        ramdisk: &Ramdisk<'a>,
        kernel_end: u64,
    ) -> Result<Self, LoadError> {
        // An empty file has a place, too.
        let size = ramdisk.data.len().max(1) as u64;
        let above = kernel_end.max(layout::HIGH_MEMORY)..layout::ABOVE_4G;
        let place = placer.take_lowest(size, PAGE_SIZE, above).or_else(|| placer.take_lowest(size, PAGE_SIZE, HIGH));
        Self::load(memory, placer, ramdisk, place)
    }

    /// As far up as it goes: what a kernel needs behind itself is not always in its file.
    pub(super) fn load_high<M: GuestMemory + ?Sized>(
        memory: &M,
        placer: &mut Placer<'_>,
        ramdisk: &Ramdisk<'a>,
    ) -> Result<Self, LoadError> {
        let place = placer.take_highest(ramdisk.data.len().max(1) as u64, PAGE_SIZE, HIGH);
        Self::load(memory, placer, ramdisk, place)
    }

    fn load<M: GuestMemory + ?Sized>(
        memory: &M,
        placer: &Placer<'_>,
        ramdisk: &Ramdisk<'a>,
        place: Option<u64>,
    ) -> Result<Self, LoadError> {
        let size = ramdisk.data.len() as u64;
        let start = place.ok_or_else(|| LoadError::RamdiskDoesNotFit { size, free: placer.largest_free(HIGH) })?;
        memory.write(Gpa(start), ramdisk.data)?;
        Ok(Self { start, end: start + size, name: ramdisk.name })
    }
}

const HIGH: core::ops::Range<u64> = layout::HIGH_MEMORY..layout::ABOVE_4G;

/// Looks whether the command line is one that a kernel can be expected to take.
pub(super) const fn check_cmdline(request: &LoadRequest<'_>) -> Result<(), LoadError> {
    let length = request.cmdline.len() as u64;
    if length > MAX_CMDLINE { Err(LoadError::CommandLineTooLong { length, limit: MAX_CMDLINE }) } else { Ok(()) }
}

/// Puts the information that `build` makes for its address (a multiple of 8), whose size does not depend on that, where the kernel is
/// not, and gives the state in which the kernel is entered: EBX has that address.
pub(super) fn finish<M: GuestMemory + ?Sized>(
    memory: &M,
    placer: &mut Placer<'_>,
    entry: u64,
    build: impl Fn(u64) -> Vec<u8>,
) -> Result<VcpuState, LoadError> {
    let information_bytes = build(0).len().next_multiple_of(8) as u64;
    let size = STACK_BYTES + information_bytes + size_of_val(&GDT) as u64;
    let stack = placer
        .take_lowest(size, PAGE_SIZE, PAGE_SIZE..layout::HIGH_MEMORY)
        .or_else(|| placer.take_lowest(size, PAGE_SIZE, HIGH))
        .ok_or(LoadError::NoRoom { size })?;
    let info = stack + STACK_BYTES;
    let gdt = info + information_bytes;
    memory.write(Gpa(info), &build(info))?;
    memory.write(Gpa(gdt), GDT.map(u64::to_le_bytes).as_flattened())?;
    let data = Segment::flat(DATA_SELECTOR, 0x3, false);
    let mut state = VcpuState {
        gdtr: DescriptorTable { base: gdt, limit: (size_of_val(&GDT) - 1) as u16 },
        ..flat_state(entry, Segment::flat(CODE_SELECTOR, 0xb, false), data)
    };
    state.gprs[Gpr::Rbx] = info;
    state.gprs[Gpr::Rsp] = info;
    Ok(state)
}

/// Protected mode with these segments, paging and interrupts off.
pub(super) fn flat_state(entry: u64, code: Segment, data: Segment) -> VcpuState {
    VcpuState {
        rip: entry,
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        idtr: DescriptorTable::default(),
        // ET is fixed; nothing else is on (PVH wants it so).
        cr0: (Cr0::PE | Cr0::ET).bits(),
        ..VcpuState::reset(0)
    }
}

/// Appends a string and its end.
pub(super) fn push_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
}

/// Overwrites the 32-bit field at an offset.
pub(super) fn set_u32(bytes: &mut [u8], offset: usize, value: u32) {
    if let Some(field) = bytes.get_mut(offset..offset + 4) {
        field.copy_from_slice(&value.to_le_bytes());
    }
}

/// KiB of RAM from 0 and from 1 MiB on, as boot loaders tell them.
pub(super) fn basic_memory(map: &crate::e820::E820Map) -> [u32; 2] {
    let upper = crate::e820::low_ram_top(map) - layout::HIGH_MEMORY;
    [(layout::VGA_WINDOW.start / layout::KIB) as u32, (upper / layout::KIB) as u32]
}
