//! Where an intercepted instruction ends, when the CPU does not say it.
//!
//! NRIP-save is an option, and so are decode assists. Without them the instruction is read from the guest's memory, through the guest's own
//! page tables; a small cache spares that to code that exits again and again.
//!
//! What is cached can only be wrong if the guest has put the same instruction with other prefixes at the same RIP in the same address
//! space. Then the guest's own RIP is off by those bytes, and nobody else's.

use super::{
    decode::{self, Extent},
    vmcb::{Save, exit_code},
};
use crate::{mm::guest::GuestRam, vcpu};
use x86defs::{Access, Cr0, Efer, Gpr, GuestMemory, Gva, Rflags, paging, paging::PagingContext};

/// A power of two.
const ENTRIES: usize = 64;

#[derive(Clone, Copy)]
struct Entry {
    rip: u64,
    key: u64,
    next_rip: u64,
}

/// Where instructions end that have exited, by RIP, address space and kind of exit.
pub struct LengthCache {
    /// By the low bits of RIP.
    entries: [Entry; ENTRIES],
    /// What those had to make room for, by the next bits of RIP.
    evicted: [Entry; ENTRIES],
}

impl LengthCache {
    #[must_use]
    pub const fn new() -> Self {
        // No exit has a key of all ones.
        const NOTHING: Entry = Entry { rip: 0, key: u64::MAX, next_rip: 0 };
        Self { entries: [NOTHING; ENTRIES], evicted: [NOTHING; ENTRIES] }
    }

    /// The extent of the instruction at RIP, which has made the exit `code`.
    #[inline(always)]
    pub fn extent(&mut self, code: u32, save: &Save, memory: &GuestRam) -> Extent {
        let entry = &self.entries[slot(save.rip)];
        if entry.rip == save.rip && entry.key == key(code, save) {
            return Extent { next_rip: entry.next_rip, operand: Gpr::Rax, long: false };
        }
        self.search(code, save, memory)
    }

    #[inline(never)]
    fn search(&mut self, code: u32, save: &Save, memory: &GuestRam) -> Extent {
        let entry = &self.evicted[second_slot(save.rip)];
        if entry.rip == save.rip && entry.key == key(code, save) {
            return Extent { next_rip: entry.next_rip, operand: Gpr::Rax, long: false };
        }
        self.miss(code, save, memory)
    }

    #[cold]
    #[inline(never)]
    fn miss(&mut self, code: u32, save: &Save, memory: &GuestRam) -> Extent {
        let long = long_code(save);
        let mut bytes = [0; 15];
        let bytes = fetch(save, memory, long, &mut bytes);
        let (length, operand) = decode::measure(code, bytes, long).unwrap_or((decode::shortest(code), Gpr::Rax));
        let next_rip = vcpu::next_rip(save.rip, u64::from(length), long);
        // An operand cannot be cached: boot loaders do put different MOVs to CR4 at one address.
        if !(exit_code::CR0_READ..=exit_code::CR15_WRITE).contains(&code) {
            let entry = Entry { rip: save.rip, key: key(code, save), next_rip };
            let before = core::mem::replace(&mut self.entries[slot(save.rip)], entry);
            self.evicted[second_slot(before.rip)] = before;
        }
        Extent { next_rip, operand, long }
    }
}

/// True if the instruction at RIP is RDTSCP.
#[cold]
pub fn is_rdtscp(save: &Save, memory: &GuestRam) -> bool {
    let long = long_code(save);
    let mut bytes = [0; 15];
    decode::measure(exit_code::RDTSCP, fetch(save, memory, long, &mut bytes), long).is_some()
}

/// RIP after the far CALL or JMP, IRET or INT n at RIP, outside of 64-bit code.
#[cold]
#[must_use]
pub fn after_transfer(save: &Save, memory: &GuestRam) -> u64 {
    /// D: 32-bit code.
    const BIG: u16 = 1 << 10;
    let mut bytes = [0; 15];
    let bytes = fetch(save, memory, false, &mut bytes);
    let length = decode::measure_transfer(bytes, save.cs.attributes & BIG != 0).unwrap_or(1);
    vcpu::next_rip(save.rip, u64::from(length), false)
}

#[inline(always)]
const fn slot(rip: u64) -> usize {
    rip as usize & (ENTRIES - 1)
}

#[inline(always)]
const fn second_slot(rip: u64) -> usize {
    slot(rip / ENTRIES as u64)
}

/// Exit code, CS base and CR3 in one word: bits 63:56, 51:20 and 51:0. Two that differ in base and CR3 alike can collide, with the consequence above.
#[inline(always)]
const fn key(code: u32, save: &Save) -> u64 {
    (code as u64) << 56 ^ save.cs.base << 20 ^ save.cr3
}

/// True if the guest executes 64-bit code.
#[inline]
#[must_use]
pub const fn long_code(save: &Save) -> bool {
    save.efer & Efer::LMA.bits() != 0 && save.cs.attributes & 1 << 9 != 0
}

/// What the guest's paging depends on.
#[must_use]
pub fn paging_context(save: &Save) -> PagingContext {
    PagingContext {
        cr0: save.cr0,
        cr3: save.cr3,
        cr4: save.cr4,
        efer: save.efer & !Efer::SVME.bits(),
        rflags: save.rflags,
        cpl: cpl(save),
    }
}

/// The current privilege level. VMRUN keeps it in a field of its own, because SS does not always tell (15.5.1).
#[inline]
#[must_use]
pub const fn cpl(save: &Save) -> u8 {
    if save.cr0 & Cr0::PE.bits() == 0 {
        0
    } else if save.rflags & Rflags::VM.bits() != 0 && save.efer & Efer::LMA.bits() == 0 {
        3
    } else {
        save.cpl & 3
    }
}

/// Reads as much of the instruction at RIP as can be had.
fn fetch<'a>(save: &Save, memory: &GuestRam, long: bool, bytes: &'a mut [u8; 15]) -> &'a [u8] {
    let context = paging_context(save);
    let mut done = 0;
    while done < bytes.len() {
        let rip = save.rip.wrapping_add(done as u64);
        let linear = if long { rip } else { save.cs.base.wrapping_add(rip) & 0xffff_ffff };
        let Ok(gpa) = paging::translate(memory, &context, Gva(linear), Access::Execute, false) else { break };
        let n = (bytes.len() - done).min((4096 - gpa.page_offset()) as usize);
        if memory.read(gpa, &mut bytes[done..done + n]).is_err() {
            break;
        }
        done += n;
    }
    &bytes[..done]
}
