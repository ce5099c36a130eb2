//! Transitions between 64-bit, protected, user and real mode.

use crate::rt::{BootInfo, check, check_eq, cpu, interrupts, outb};
use core::arch::{asm, global_asm};

global_asm!(
    r#"
    // Far return to 32-bit code, paging off, protected mode without paging; out and back.
    .section .text
    .global to_protected
to_protected:
    push rbx
    push rbp
    mov [saved_rsp], rsp
    lea rax, [rip + 2f]
    push 0x18
    push rax
    retfq
    .code32
2:  mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    and eax, 0xfffffeff
    wrmsr
    // 32-bit protected mode without paging: an exit in it, and arithmetic.
    xor eax, eax
    cpuid
    mov [mode_result], ebx
    in al, 0x61
    mov dword ptr [mode_result + 4], 0x12345678
    mov ecx, 0xc0000080
    rdmsr
    mov [mode_result + 8], eax
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    .byte 0xea
    .long 3f
    .word 8
    .code64
3:  mov rsp, [saved_rsp]
    pop rbp
    pop rbx
    ret

    // On to real mode and back: code and data at 0x8000, copied there.
    .global to_real
to_real:
    push rbx
    push rbp
    mov [saved_rsp], rsp
    sidt [saved_idt]
    lea rax, [rip + 2f]
    push 0x18
    push rax
    retfq
    .code32
2:  mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    and eax, 0xfffffeff
    wrmsr
    .byte 0xea
    .long 0x8000
    .word 0x50
    .global from_real
from_real:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    .byte 0xea
    .long 3f
    .word 8
    .code64
3:  mov rsp, [saved_rsp]
    lidt [saved_idt]
    pop rbp
    pop rbx
    ret

    .section .rodata
    .global real_code
    .code16
real_code:
    // 16-bit protected mode at 0x50:0x8000 (base 0): clear PE, far jump to 0:real.
    mov ax, 0x58
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    .byte 0xea
    .word 0x8000 + (4f - real_code)
    .word 0
4:  xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7ff0
    .byte 0x0f, 0x01, 0x1e
    .word 0x8000 + (real_idt - real_code)
    // INT 0x21 through the real-mode vector table, segment arithmetic, exits.
    int 0x21
    mov ax, 0x0900
    mov ds, ax
    mov byte ptr [0x10], 0x77
    xor ax, ax
    mov ds, ax
    mov al, [0x9010]
    mov [0x7e04], al
    xor eax, eax
    cpuid
    mov [0x7e08], ebx
    in al, 0x61
    mov si, 0x7e00
    mov dx, 0x3ff
    mov cx, 2
    rep outsb
    smsw ax
    mov [0x7e0c], ax
    .byte 0x0f, 0x01, 0x16
    .word 0x8000 + (real_gdt - real_code)
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long from_real
    .word 0x18
5:  mov word ptr [0x7e00], 0xbeef
    iret
    .global real_isr
real_isr:
    .word 0x8000 + (5b - real_code)
real_idt:
    .word 0x3ff
    .long 0
real_gdt:
    .word 0x5f
    .long boot_gdt
    .global real_code_end
real_code_end:
    .code64

    .section .bss
    .align 16
saved_rsp: .skip 8
saved_idt: .skip 16
    .global mode_result
mode_result: .skip 16
    .section .text
"#
);

unsafe extern "C" {
    fn to_protected();
    fn to_real();
    static real_code: u8;
    static real_code_end: u8;
    static real_isr: u16;
    static mode_result: u8;
    static mut boot_gdt: [u64; 12];
}

/// 64-bit to compatibility to 32-bit protected mode without paging and back, with exits on the way (SDM vol. 3A, 10.8.5).
pub fn protected_mode(_: &BootInfo) {
    for _ in 0..20 {
        // SAFETY: the routine restores mode, stack and callee-saved registers; it runs identity-mapped.
        unsafe { to_protected() };
        let result = &raw const mode_result as u64;
        check_eq!(cpu::read32(result), crate::rt::cpuid(0, 0)[1], "CPUID in 32-bit mode");
        check_eq!(cpu::read32(result + 4), 0x1234_5678, "store in 32-bit mode");
        check_eq!(cpu::read32(result + 8) & 0x500, 0, "EFER.LME and LMA clear");
    }
    check_eq!(cpu::rdmsr(0xc000_0080) & 0x500, 0x500, "back in long mode");
}

/// Down to real mode and back: interrupt vector table, segments, string output, exits (SDM vol. 3A, 10.9 and chapter 21).
pub fn real_mode(_: &BootInfo) {
    let (start, end) = (&raw const real_code as u64, &raw const real_code_end as u64);
    for round in 0..10 {
        for offset in 0..end - start {
            cpu::write8(0x8000 + offset, cpu::read8(start + offset));
        }
        // SAFETY: the address lies in the copied block.
        let isr = unsafe { (&raw const real_isr).read_unaligned() };
        cpu::write32(0x21 * 4, isr.into());
        cpu::write32(0x7e00, 0);
        cpu::write32(0x7e04, 0);
        outb(0x3ff, 0);
        // SAFETY: the routine restores mode, stack, IDT and callee-saved registers.
        unsafe { to_real() };
        check_eq!(cpu::read16(0x7e00), 0xbeef, "INT 0x21 in round {round}");
        check_eq!(cpu::read8(0x7e04), 0x77, "segment base");
        check_eq!(cpu::read32(0x7e08), crate::rt::cpuid(0, 0)[1], "CPUID in real mode");
        check_eq!(cpu::read8(0x7e0c) & 1, 0, "PE clear");
        check_eq!(crate::rt::inb(0x3ff), 0xbe, "REP OUTSB in real mode");
    }
}

static mut TSS: [u32; 26] = [0; 26];
static mut RING0_STACK: [u8; 8192] = [0; 8192];

/// CPL 3: privileged instructions and ports fault in the guest, an exiting instruction that is not privileged works, and the way back.
pub fn user_mode(_: &BootInfo) {
    // SAFETY: single CPU; the static objects are used by the hardware from here on and by nobody else.
    unsafe {
        let words = &raw mut TSS;
        let tss = words as u64;
        let stack = &raw const RING0_STACK as u64 + 8192;
        (*words)[1] = stack as u32;
        (*words)[2] = (stack >> 32) as u32;
        // I/O permission bitmap beyond the limit: no port is allowed.
        (*words)[25] = 104 << 16;
        let gdt = &raw mut boot_gdt;
        (*gdt)[8] = 103 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
        (*gdt)[9] = tss >> 32;
        asm!("ltr {0:x}", in(reg) 0x40u16);
    }
    // User pages: set U/S on every level.
    let pml4 = cpu::read_cr3() & !0xfff;
    let pdpt = cpu::read64(pml4) & !0xfff;
    cpu::write64(pml4, cpu::read64(pml4) | 4);
    for i in 0..4 {
        let pd = cpu::read64(pdpt + 8 * i) & !0xfff;
        cpu::write64(pdpt + 8 * i, cpu::read64(pdpt + 8 * i) | 4);
        for j in 0..512 {
            cpu::write64(pd + 8 * j, cpu::read64(pd + 8 * j) | 4);
        }
    }
    cpu::write_cr3(pml4);
    interrupts::set_gate(0x80, 0xee, 0);
    interrupts::on_interrupt(13, |frame| {
        // The faulting instructions of the user code are two bytes long.
        check_eq!(frame.error, 0, "error code");
        check_eq!(frame.cs & 3, 3, "from CPL 3");
        frame.rip += 2;
    });
    interrupts::on_interrupt(0x80, |frame| {
        frame.cs = 8;
        frame.ss = 16;
        frame.rip = frame.rcx;
        frame.rsp = frame.rbp;
    });
    let vendor: u32;
    // SAFETY: goes to CPL 3 on the same stack and comes back by INT 0x80, whose handler restores selectors and the stack; RBX and RBP are
    // saved in R14 and R15.
    unsafe {
        asm!(
            "mov r14, rbx",
            "mov r15, rbp",
            "mov rbp, rsp",
            "push 0x3b",
            "push rbp",
            "push 2",
            "push 0x33",
            "lea rax, [rip + 2f]",
            "push rax",
            "iretq",
            "2: in al, 0x61",       // E4 61: #GP
            "rdmsr",                // 0F 32: #GP
            "xor eax, eax",
            "cpuid",
            "mov r12d, ebx",
            "out 0xf4, al",         // E6 F4: #GP, not the end of the guest
            "lea rcx, [rip + 3f]",
            "int 0x80",
            "3: mov ax, 0x10",
            "mov ss, ax",
            "mov ds, ax",
            "mov es, ax",
            "mov rbx, r14",
            "mov rbp, r15",
            out("r12") vendor, out("r14") _, out("r15") _, out("rax") _, out("rcx") _, out("rdx") _,
        );
    }
    check_eq!(vendor, crate::rt::cpuid(0, 0)[1], "CPUID at CPL 3");
    check_eq!(interrupts::count(13), 3, "IN, RDMSR and OUT faulted");
    check!(interrupts::count(0x80) == 1, "back by INT 0x80");
}
