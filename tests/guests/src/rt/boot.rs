//! Entry from the multiboot1 loader: 32-bit protected mode to 64-bit mode with 4 GiB mapped one to one.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .multiboot, "a"
    .align 4
    .long 0x1badb002
    .long 3
    .long -(0x1badb002 + 3)

    .section .text.boot, "ax"
    .code32
    .global start32
start32:
    cli
    cld
    lea esp, [boot_stack_top]
    mov esi, eax
    mov edi, ebx
    // Four page directories of 2-MiB pages.
    lea ecx, [boot_pd]
    mov eax, 0x83
    mov edx, 2048
2:
    mov [ecx], eax
    mov dword ptr [ecx + 4], 0
    add eax, 0x200000
    add ecx, 8
    dec edx
    jnz 2b
    lea ecx, [boot_pdpt]
    lea eax, [boot_pd]
    or eax, 3
    mov edx, 4
3:
    mov [ecx], eax
    add eax, 4096
    add ecx, 8
    dec edx
    jnz 3b
    lea eax, [boot_pdpt]
    or eax, 3
    mov [boot_pml4], eax
    lea eax, [boot_pml4]
    mov cr3, eax
    mov eax, 0x20
    mov cr4, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, 0x80010033
    mov cr0, eax
    lgdt [boot_gdt_pointer]
    .byte 0xea
    .long start64
    .word 8
    .code64
start64:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov ss, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    lea rsp, [rip + boot_stack_top]
    // magic, info: esi, edi came from eax, ebx.
    xchg edi, esi
    mov edi, edi
    mov esi, esi
    xor ebp, ebp
    call guest_main
4:  hlt
    jmp 4b

    .section .data
    .align 16
    .global boot_gdt
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff   // 08: 64-bit code
    .quad 0x00cf93000000ffff   // 10: 32-bit data
    .quad 0x00cf9b000000ffff   // 18: 32-bit code
    .quad 0x008f9b000000ffff   // 20: 16-bit code, 4-GiB limit
    .quad 0x008f93000000ffff   // 28: 16-bit data, 4-GiB limit
    .quad 0x00affb000000ffff   // 30: 64-bit user code
    .quad 0x00cff3000000ffff   // 38: user data
    .quad 0, 0                 // 40: TSS, filled in at run time
    .quad 0x00009b000000ffff   // 50: real-mode-like code, base patched
    .quad 0x000093000000ffff   // 58: real-mode-like data
boot_gdt_end:
    .global boot_gdt_pointer
boot_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .quad boot_gdt

    .section .bss
    .align 4096
    .global boot_pml4
boot_pml4: .skip 4096
    .global boot_pdpt
boot_pdpt: .skip 4096
    .global boot_pd
boot_pd:   .skip 16384
    .align 16
boot_stack: .skip 65536
boot_stack_top:
    .section .text
"#
);

/// What the loader said: the command line, modules and memory of the multiboot1 information structure.
pub struct BootInfo {
    info: *const u32,
    valid: bool,
}

impl BootInfo {
    pub fn new(magic: u32, info: u32) -> Self {
        Self { info: info as usize as *const u32, valid: magic == 0x2bad_b002 }
    }

    /// True if EAX had multiboot1's magic at entry.
    pub fn valid(&self) -> bool {
        self.valid
    }

    /// Where the information structure is.
    pub fn address(&self) -> u64 {
        self.info as u64
    }

    /// 32-bit word `index` of the information structure.
    pub fn word(&self, index: usize) -> u32 {
        // SAFETY: the loader put the structure (at least 22 words) in RAM that is identity-mapped, and nothing overwrites it.
        unsafe { self.info.add(index).read_unaligned() }
    }

    pub fn command_line(&self) -> &str {
        if !self.valid || self.word(0) & 4 == 0 {
            return "";
        }
        string_at(self.word(4))
    }

    /// The value of `key=value` on the command line.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.command_line().split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }
}

/// A NUL-terminated string in identity-mapped memory.
pub fn string_at(address: u32) -> &'static str {
    let start = address as usize as *const u8;
    let mut len = 0;
    // SAFETY: the loader's strings are NUL-terminated and in RAM; 4096 bounds the walk.
    let bytes = unsafe {
        while len < 4096 && start.add(len).read() != 0 {
            len += 1;
        }
        core::slice::from_raw_parts(start, len)
    };
    core::str::from_utf8(bytes).unwrap_or("")
}
