//! The 32-bit side: the way there and back, what the main task does to switch, and the bodies of the other tasks.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .text
    // ts_run(entry): to 32-bit protected mode with paging, TR, GDT and IDT of the case; calls `entry` there; and back.
    .global ts_run
ts_run:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [ts_saved_rsp], rsp
    mov [ts_entry], edi
    sidt [ts_saved_idt]
    mov rax, cr4
    mov [ts_saved_cr4], eax
    mov rax, cr3
    mov [ts_saved_cr3], eax
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
    mov eax, 0x10
    mov cr4, eax
    lea eax, [ts_pd_a]
    mov cr3, eax
    lgdt [ts_gdtr]
    lidt [ts_idtr]
    .byte 0xea
    .long 3f
    .word 8
3:  mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov ss, eax
    lea esp, [ts_stack_main]
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    jmp 4f
4:  xor eax, eax
    lldt ax
    mov eax, 0x18
    ltr ax
    clts
    call dword ptr [ts_entry]
ts_leave:
    cli
    clts
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov eax, [ts_saved_cr4]
    mov cr4, eax
    mov eax, [ts_saved_cr3]
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    lgdt [boot_gdt_pointer]
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    .byte 0xea
    .long 5f
    .word 8
    .code64
5:  mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov rsp, [ts_saved_rsp]
    lidt [ts_saved_idt]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

    .code32
    // Faults that no task takes: what they are, and out.
    .global ts_faults
    .align 16
ts_faults:
    .set ts_n, 0
    .rept 32
    .align 16
    push ts_n
    jmp ts_fault
    .set ts_n, ts_n + 1
    .endr
ts_fault:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    pop dword ptr [ts_fault_seen]
    pop dword ptr [ts_fault_seen + 4]
    pop dword ptr [ts_fault_seen + 8]
    xor eax, eax
    str ax
    mov [ts_fault_seen + 12], eax
    mov eax, cr2
    mov [ts_fault_seen + 16], eax
    mov eax, dr6
    mov [ts_fault_seen + 20], eax
    jmp ts_leave

    // Writes down all that a task can see of itself. EAX is lost.
ts_record:
    mov [ts_scratch], edi
    mov edi, [ts_next]
    mov [edi], eax
    mov [edi + 4], ecx
    mov [edi + 8], edx
    mov [edi + 12], ebx
    lea eax, [esp + 4]
    mov [edi + 16], eax
    mov [edi + 20], ebp
    mov [edi + 24], esi
    mov eax, [ts_scratch]
    mov [edi + 28], eax
    pushfd
    pop eax
    mov [edi + 32], eax
    mov eax, es
    mov [edi + 36], eax
    mov eax, cs
    mov [edi + 40], eax
    mov eax, ss
    mov [edi + 44], eax
    mov eax, ds
    mov [edi + 48], eax
    mov eax, fs
    mov [edi + 52], eax
    mov eax, gs
    mov [edi + 56], eax
    xor eax, eax
    str ax
    mov [edi + 60], eax
    sldt ax
    mov [edi + 64], eax
    mov eax, [0xc0000000]
    mov [edi + 68], eax
    movzx eax, byte ptr [ts_gdt + 0x1d]
    mov [edi + 72], eax
    movzx eax, byte ptr [ts_gdt + 0x25]
    mov [edi + 76], eax
    add dword ptr [ts_next], 128
    mov eax, cs
    test al, 3
    jnz 6f
    mov eax, cr0
    mov [edi + 80], eax
    mov eax, cr3
    mov [edi + 84], eax
    mov eax, dr7
    mov [edi + 88], eax
6:  mov edi, [ts_scratch]
    ret

    // ---- What the main task does. ----
    .macro ts_registers
    mov eax, 0xa0a0a0a0
    mov ecx, 0xc1c1c1c1
    mov edx, 0xd2d2d2d2
    mov ebx, 0xb3b3b3b3
    mov ebp, 0x55555555
    mov esi, 0x66666666
    mov edi, 0x77777777
    .endm
    .global ts_jmp, ts_jmp_at, ts_jmp_after, ts_call, ts_call_at, ts_call_after, ts_int, ts_int_at, ts_int_after, ts_gp, ts_gp_at, ts_irq, ts_nmi
ts_jmp:
    ts_registers
ts_jmp_at:
    .byte 0xff, 0x2d
    .long ts_target
ts_jmp_after:
    call ts_record
    ret
ts_call:
    ts_registers
ts_call_at:
    .byte 0xff, 0x1d
    .long ts_target
ts_call_after:
    call ts_record
    ret
ts_int:
    ts_registers
ts_int_at:
    int 0x40
ts_int_after:
    call ts_record
    ret
ts_gp:
    ts_registers
ts_gp_at:
    mov gs, ecx
    call ts_record
    mov ecx, 0xc1c1c1c1
    mov gs, ecx
    call ts_record
    ret
ts_irq:
    ts_registers
    sti
    mov dword ptr [0xfee00300], 0x44041
7:  pause
    mov eax, [ts_next]
    cmp eax, offset ts_records
    je 7b
    cli
    call ts_record
    ret

ts_nmi:
    ts_registers
    mov dword ptr [0xfee00310], 0
    mov dword ptr [0xfee00300], 0x4400
8:  pause
    cmp dword ptr [ts_next], offset ts_records + 384
    jne 8b
    call ts_record
    ret

    // ---- What other tasks do. Each goes on behind its switch when it is entered again, and starts over. ----
    .global ts_body_jmp, ts_body_jmp_after, ts_body_iret, ts_body_error, ts_body_nest, ts_body_repair, ts_body_irq, ts_body_nmi, ts_from_v86
ts_body_jmp:
    call ts_record
    .byte 0xea
    .long 0
    .word 0x18
ts_body_jmp_after:
    jmp ts_body_jmp
ts_body_iret:
    call ts_record
    xor eax, eax
    cpuid
    mov [ts_cpuid], ebx
    iretd
    jmp ts_body_iret
ts_body_error:
    pop dword ptr [ts_error]
    call ts_record
    add dword ptr [ts_main_tss + 0x20], 2
    iretd
    jmp ts_body_error
ts_body_nest:
    call ts_record
    .byte 0x9a
    .long 0
    .word 0x28
    call ts_record
    iretd
    jmp ts_body_nest
ts_body_repair:
    pop dword ptr [ts_error]
    call ts_record
    mov eax, [ts_repair_at]
    mov cx, [ts_repair_with]
    mov [eax], cx
    // Where the failed task is to begin. What is there is looked at by one case only.
    mov eax, offset ts_body_iret
    xchg eax, [ts_tss + 0x20]
    mov [ts_repair_eip], eax
    iretd
    jmp ts_body_repair
ts_body_irq:
    call ts_record
    mov dword ptr [0xfee000b0], 0
    iretd
    jmp ts_body_irq
    // Sends the next NMI itself, and lets some time pass before it opens the door.
ts_body_nmi:
    call ts_record
    cmp dword ptr [ts_next], offset ts_records + 128
    jne 10f
    mov dword ptr [0xfee00310], 0
    mov dword ptr [0xfee00300], 0x4400
    mov ecx, 1000
9:  loop 9b
    call ts_record
10: iretd
    jmp ts_body_nmi
    // By an interrupt gate, out of the virtual-8086 task.
ts_from_v86:
    mov edx, 0x10
    mov ds, edx
    mov es, edx
    call ts_record
    .byte 0xea
    .long 0
    .word 0x18
    .code64

    .section .data
    .align 8
ts_gdtr:
    .word 0xbf
    .long ts_gdt
    .align 8
ts_idtr:
    .word 0x27f
    .long ts_idt

    .section .bss
    .align 4096
    .global ts_pd_a, ts_pd_b, ts_gdt, ts_idt, ts_ldt, ts_main_tss, ts_tss, ts_records, ts_fault_seen
ts_pd_a: .skip 4096
ts_pd_b: .skip 4096
ts_gdt: .skip 0xc0
ts_ldt: .skip 16
ts_idt: .skip 0x280
    // Main, then four others, 128 bytes apart.
ts_main_tss: .skip 128
ts_tss: .skip 512
ts_records: .skip 1024
    .global ts_stack_main, ts_stacks
    .skip 4096
ts_stack_main:
ts_stacks: .skip 16384
ts_saved_rsp: .skip 8
ts_saved_idt: .skip 16
ts_saved_cr3: .skip 4
ts_saved_cr4: .skip 4
ts_entry: .skip 4
ts_scratch: .skip 4
    .global ts_next, ts_target, ts_error, ts_repair_at, ts_repair_with, ts_repair_eip, ts_cpuid
ts_next: .skip 4
ts_target: .skip 8
ts_error: .skip 4
ts_repair_at: .skip 4
ts_repair_with: .skip 4
ts_repair_eip: .skip 4
ts_cpuid: .skip 4
ts_fault_seen: .skip 32
    .section .text
"#
);

macro_rules! symbols {
    ($($name:ident),* $(,)?) => {
        unsafe extern "C" {
            $(static $name: u8;)*
        }
        /// Addresses of the code and data above.
        #[derive(Clone, Copy)]
        pub struct Symbols {
            $(pub $name: u32,)*
        }
        impl Symbols {
            pub fn get() -> Self {
                Self { $($name: &raw const $name as u32,)* }
            }
        }
    };
}

symbols!(
    ts_body_error,
    ts_body_iret,
    ts_body_irq,
    ts_body_jmp,
    ts_body_jmp_after,
    ts_body_nest,
    ts_body_nmi,
    ts_body_repair,
    ts_call,
    ts_call_after,
    ts_cpuid,
    ts_error,
    ts_fault_seen,
    ts_faults,
    ts_from_v86,
    ts_gdt,
    ts_gp,
    ts_gp_at,
    ts_idt,
    ts_int,
    ts_int_after,
    ts_irq,
    ts_jmp,
    ts_jmp_after,
    ts_jmp_at,
    ts_ldt,
    ts_main_tss,
    ts_next,
    ts_nmi,
    ts_pd_a,
    ts_pd_b,
    ts_records,
    ts_repair_at,
    ts_repair_eip,
    ts_repair_with,
    ts_stacks,
    ts_stack_main,
    ts_target,
    ts_tss,
);

unsafe extern "C" {
    pub fn ts_run(entry: u32);
}
