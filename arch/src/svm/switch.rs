//! The world switch.
//!
//! VMRUN switches RAX, RSP, RIP, RFLAGS, control registers, CS, SS, DS, ES and descriptor tables; VMLOAD and VMSAVE the hidden parts of FS, GS, TR
//! and LDTR and the SYSCALL and SYSENTER MSRs. All other general-purpose registers are switched here.
//!
//! GIF is clear from before the guest's FS, GS and TR are in the CPU until the host's are back: an NMI or a machine check that comes in between is held
//! until STGI, when the host's IDT, IST stacks and per-CPU data are all in place. RFLAGS.IF is set on the way in, because with V_INTR_MASKING it is
//! the host's IF that lets a physical interrupt end the guest's run (APM vol. 2, 24593 rev. 3.42, 15.21.1); nothing is delivered while GIF is clear.
//!
//! Inline assembly instead of a naked function: the compiler saves what it needs of the clobbered registers once, in the caller's prologue. RBX and
//! RBP it does not let go, so they are saved here.

use core::{arch::asm, mem::offset_of};
use x86defs::{Gpr, Gprs, Hpa};

const fn slot(r: Gpr) -> usize {
    8 * r as usize
}
const _: () = assert!(size_of::<Gprs>() == 16 * 8);

/// What the switch needs besides the VMCB.
#[derive(Debug)]
#[repr(C)]
pub struct Frame {
    /// RAX's and RSP's slots are not touched here: they are in the VMCB.
    pub gprs: Gprs,
    /// The guest's VMCB.
    pub vmcb: Hpa,
    /// A page to which VMSAVE has put this CPU's host state.
    pub host_state: Hpa,
}

/// Runs the guest until its next exit.
///
/// # Safety
/// SVM is enabled on this CPU and VM_HSAVE_PA set; `frame.vmcb` is a valid VMCB that nobody else uses, with INTR and NMI intercepted and
/// V_INTR_MASKING set; `frame.host_state` was saved on this CPU. Interrupts are off.
#[inline(always)]
pub unsafe fn enter(frame: *mut Frame) {
    // SAFETY: the caller's. Every register that a guest can change is restored, switched by the CPU, or named as clobbered; the stack is balanced,
    // and nothing is pushed on it while the guest runs, since GIF is clear whenever RSP is the host's.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "push rdi",
            "mov rax, [rdi + {vmcb}]",
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
            "clgi",
            "sti",
            "vmload rax",
            "vmrun rax",
            // RAX and RSP are the host's again, so RAX still has the VMCB's address.
            "vmsave rax",
            "pop rax",
            "mov [rax + {rcx}], rcx",
            "mov [rax + {rdx}], rdx",
            "mov [rax + {rbx}], rbx",
            "mov [rax + {rbp}], rbp",
            "mov [rax + {rsi}], rsi",
            "mov [rax + {rdi}], rdi",
            "mov [rax + {r8}], r8",
            "mov [rax + {r9}], r9",
            "mov [rax + {r10}], r10",
            "mov [rax + {r11}], r11",
            "mov [rax + {r12}], r12",
            "mov [rax + {r13}], r13",
            "mov [rax + {r14}], r14",
            "mov [rax + {r15}], r15",
            "mov rax, [rax + {host_state}]",
            "vmload rax",
            "cli",
            "stgi",
            "pop rbp",
            "pop rbx",
            vmcb = const offset_of!(Frame, vmcb),
            host_state = const offset_of!(Frame, host_state),
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
            out("rax") _,
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
}
const _: () = assert!(offset_of!(Frame, gprs) == 0);
