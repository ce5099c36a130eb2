//! The world switch: all general-purpose registers but RSP, which the VMCS switches.
//!
//! HOST_RSP points at the [`Frame`] itself, so that an exit finds every register's slot relative to RSP without saving one first, and
//! the field never needs rewriting, however deep the host's stack is at the entry. Nothing is pushed while RSP points there: interrupts
//! are off, and NMI, #MC and #DF have stacks of their own (IST).
//!
//! Manual: see [`super::spec`], 27 and 28.

use core::{
    arch::{asm, naked_asm},
    mem::offset_of,
};
use x86defs::{Gpr, Gprs};

/// What the switch reads and writes. Its address is in the VMCS: it must not move.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Frame {
    /// RSP's slot is not touched here.
    pub gprs: Gprs,
    /// The host's stack pointer during an entry.
    host_rsp: u64,
    /// Zero until a VMLAUNCH has succeeded; every exit sets it.
    pub launched: u64,
}

/// What [`enter`] returns: the guest ran, or the entry failed while loading guest state, and the exit reason tells.
pub const EXIT: u64 = 0;
/// The same: the VM-instruction error field tells why the entry failed. With no current VMCS, it is 1.
pub const FAILED_VALID: u64 = 2;

const fn slot(r: Gpr) -> usize {
    offset_of!(Frame, gprs) + 8 * r as usize
}
const _: () = assert!(size_of::<Gprs>() == 16 * 8);

/// Enters the guest; returns at its next exit, or at once if the entry failed: [`EXIT`], [`FAILED_VALID`], or 1.
///
/// Inline assembly instead of a function: the run loop saves what it needs of the clobbered registers once, not at every exit. RBX and RBP the
/// compiler does not let go, so they are saved here.
///
/// # Safety
/// The current VMCS has a valid host state, with HOST_RSP = `frame` and HOST_RIP = [`exit_entry`]; `frame.launched` matches its launch
/// state; interrupts are off.
#[inline(always)]
pub unsafe fn enter(frame: *mut Frame) -> u64 {
    let outcome;
    // SAFETY: the caller's. Every register that a guest can change is restored or named as clobbered. `exit_entry` comes back to the label 4 with the
    // stack as it was when `host_rsp` was written, by the return address that lies on it.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "lea rax, [rip + 4f]",
            "push rax",
            "mov [rdi + {host_rsp}], rsp",
            "cmp qword ptr [rdi + {launched}], 0",
            "mov rax, [rdi + {rax}]",
            "mov rcx, [rdi + {rcx}]",
            "mov rdx, [rdi + {rdx}]",
            "mov rbx, [rdi + {rbx}]",
            "mov rbp, [rdi + {rbp}]",
            "mov rsi, [rdi + {rsi}]",
            "mov r8, [rdi + {r8}]",
            "mov r9, [rdi + {r9}]",
            "mov r10, [rdi + {r10}]",
            "mov r11, [rdi + {r11}]",
            "mov r12, [rdi + {r12}]",
            "mov r13, [rdi + {r13}]",
            "mov r14, [rdi + {r14}]",
            "mov r15, [rdi + {r15}]",
            "mov rdi, [rdi + {rdi}]",
            "je 2f",
            "vmresume",
            "jmp 3f",
            "2:",
            "vmlaunch",
            // Only a failure comes here, with RSP still the host's (32.2): ZF for VMfailValid, CF for VMfailInvalid.
            "3:",
            "setz al",
            "movzx eax, al",
            "inc eax",
            "add rsp, 8",
            "4:",
            "pop rbp",
            "pop rbx",
            host_rsp = const offset_of!(Frame, host_rsp),
            launched = const offset_of!(Frame, launched),
            rax = const slot(Gpr::Rax),
            rcx = const slot(Gpr::Rcx),
            rdx = const slot(Gpr::Rdx),
            rbx = const slot(Gpr::Rbx),
            rbp = const slot(Gpr::Rbp),
            rsi = const slot(Gpr::Rsi),
            rdi = const slot(Gpr::Rdi),
            r8 = const slot(Gpr::R8),
            r9 = const slot(Gpr::R9),
            r10 = const slot(Gpr::R10),
            r11 = const slot(Gpr::R11),
            r12 = const slot(Gpr::R12),
            r13 = const slot(Gpr::R13),
            r14 = const slot(Gpr::R14),
            r15 = const slot(Gpr::R15),
            inout("rdi") frame => _,
            out("rax") outcome,
            out("rcx") _,
            out("rdx") _,
            out("rsi") _,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
            out("r12") _,
            out("r13") _,
            out("r14") _,
            out("r15") _,
        );
    }
    outcome
}

/// Where exits arrive: HOST_RIP. Goes on after the [`enter`] that began the entry.
///
/// # Safety
/// Only the CPU comes here, by an exit, with RSP at the [`Frame`]. RFLAGS is 2 then (29.5.3): DF is clear, as the ABI wants.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn exit_entry() {
    naked_asm!(
        "mov [rsp + {rax}], rax",
        "mov [rsp + {rcx}], rcx",
        "mov [rsp + {rdx}], rdx",
        "mov [rsp + {rbx}], rbx",
        "mov [rsp + {rbp}], rbp",
        "mov [rsp + {rsi}], rsi",
        "mov [rsp + {rdi}], rdi",
        "mov [rsp + {r8}], r8",
        "mov [rsp + {r9}], r9",
        "mov [rsp + {r10}], r10",
        "mov [rsp + {r11}], r11",
        "mov [rsp + {r12}], r12",
        "mov [rsp + {r13}], r13",
        "mov [rsp + {r14}], r14",
        "mov [rsp + {r15}], r15",
        "mov qword ptr [rsp + {launched}], 1",
        "mov rsp, [rsp + {host_rsp}]",
        "xor eax, eax",
        "ret",
        host_rsp = const offset_of!(Frame, host_rsp),
        launched = const offset_of!(Frame, launched),
        rax = const slot(Gpr::Rax),
        rcx = const slot(Gpr::Rcx),
        rdx = const slot(Gpr::Rdx),
        rbx = const slot(Gpr::Rbx),
        rbp = const slot(Gpr::Rbp),
        rsi = const slot(Gpr::Rsi),
        rdi = const slot(Gpr::Rdi),
        r8 = const slot(Gpr::R8),
        r9 = const slot(Gpr::R9),
        r10 = const slot(Gpr::R10),
        r11 = const slot(Gpr::R11),
        r12 = const slot(Gpr::R12),
        r13 = const slot(Gpr::R13),
        r14 = const slot(Gpr::R14),
        r15 = const slot(Gpr::R15),
    )
}
