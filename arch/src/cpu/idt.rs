//! Interrupt descriptor table and entry stubs (Intel SDM vol. 3A rev. 085, 7.10-7.14).

use super::gdt::{CODE, Ist};
use super::trap::{self, TrapFrame};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use x86defs::vector;

/// Bytes from one stub to the next.
const STUB: u64 = 16;

// Each stub leaves the vector above an error code, real or zero, and then all GPRs: a `TrapFrame`. The CPU aligns RSP to 16 bytes before
// it pushes five words; with error code, vector and 15 GPRs that is 22 words, so the call below is aligned as the ABI wants it.
global_asm!(
    ".pushsection .text.bulkhead_stubs, \"ax\", @progbits",
    ".balign 16",
    ".global bulkhead_stubs",
    "bulkhead_stubs:",
    ".set bulkhead_vector, 0",
    ".rept 256",
    ".balign 16",
    // Vectors for which the CPU pushes an error code: 8, 10-14, 17, 21, 29, 30.
    ".if bulkhead_vector >= 32",
    "push 0",
    ".elseif ((0x60227d00 >> bulkhead_vector) & 1) == 0",
    "push 0",
    ".endif",
    "push bulkhead_vector",
    "jmp bulkhead_stub_common",
    ".set bulkhead_vector, bulkhead_vector + 1",
    ".endr",
    "bulkhead_stub_common:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "push rbp",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "call {handle}",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rbp",
    "pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    ".popsection",
    handle = sym handle,
);

unsafe extern "C" {
    static bulkhead_stubs: u8;
}

extern "sysv64" fn handle(frame: &mut TrapFrame) {
    trap::handle(frame);
}

/// A gate (SDM vol. 3A, figure 7-8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
struct Gate([u64; 2]);

impl Gate {
    const EMPTY: Self = Self([0; 2]);

    /// A present interrupt gate (IF is cleared on entry) of DPL 0.
    const fn interrupt(address: u64, ist: u8) -> Self {
        let low = address & 0xffff | (CODE as u64) << 16 | (ist as u64) << 32 | 0x8e << 40 | (address >> 16 & 0xffff) << 48;
        Self([low, address >> 32])
    }
}

#[repr(C, align(4096))]
struct Table(UnsafeCell<[Gate; 256]>);

// SAFETY: written by `init` only, before it is loaded; the CPUs read it.
unsafe impl Sync for Table {}

static IDT: Table = Table(UnsafeCell::new([Gate::EMPTY; 256]));

fn stack_of(vector: u8) -> u8 {
    match vector {
        vector::NMI => Ist::Nmi as u8,
        vector::DF => Ist::DoubleFault as u8,
        vector::MC => Ist::MachineCheck as u8,
        // A page or protection fault of the host is reported on the stack it happened on; if that is exhausted, #DF follows.
        _ => 0,
    }
}

/// Fills the table. All CPUs share it.
///
/// # Safety
/// Once, before any CPU loads it.
pub(super) unsafe fn init() {
    // SAFETY: nobody else uses the table yet.
    let gates = unsafe { &mut *IDT.0.get() };
    for (vector, gate) in gates.iter_mut().enumerate() {
        let address = &raw const bulkhead_stubs as u64 + vector as u64 * STUB;
        *gate = Gate::interrupt(address, stack_of(vector as u8));
    }
}

/// Loads the table on this CPU.
///
/// # Safety
/// [`init`] is done, and this CPU's GDT and TSS are loaded.
pub(super) unsafe fn load() {
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    let pointer = Pointer { limit: size_of::<Table>() as u16 - 1, base: IDT.0.get() as u64 };
    // SAFETY: the table is static and filled.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_scatters_the_address() {
        let gate = Gate::interrupt(0xffff_ffff_8123_4560, 2);
        assert_eq!(gate.0, [0x8123_8e02_0008_4560, 0xffff_ffff]);
    }
}
