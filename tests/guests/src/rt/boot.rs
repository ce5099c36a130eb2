//! Entry from the loader, whatever the format: 32-bit protected mode to 64-bit mode with 4 GiB mapped one to one. And what it said.

use super::cpu::{read32, read64};
use core::arch::global_asm;

global_asm!(
    r#"
    .section .text.flat, "ax"
    .code32
    // The configuration gives another entry point than the first byte.
    ud2
    .balign 16, 0x90
    mov eax, {flat}
    jmp start32

    .section .multiboot, "a"
    .balign 8
    .long 0x1badb002
    .long 3
    .long -(0x1badb002 + 3)

    .balign 8
multiboot2:
    .long 0xe85250d6, 0, multiboot2_end - multiboot2
    .long -(0xe85250d6 + multiboot2_end - multiboot2)
    // Information: command line, loader, modules, memory, map, sections, RSDPs.
    .short 1, 0
    .long 8 + 4 * 8, 1, 2, 3, 4, 6, 9, 14, 15
    // What nobody knows, and can be done without.
    .short 1, 1
    .long 8 + 4 * 2, 6, 99
    .short 0x7777, 1
    .long 8
    // A console, which can be done without.
    .short 4, 1
    .long 12, 1, 0
    // Entry point.
    .short 3, 0
    .long 12, multiboot2_start32, 0
    // Modules on page boundaries.
    .short 6, 0
    .long 8
    // To be moved, but happy where it is.
    .short 10, 0
    .long 24, 0x100000, 0xffffffff, 0x100000, 0
    .short 0, 0
    .long 8
multiboot2_end:

    // XEN_ELFNOTE_PHYS32_ENTRY
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_start32

    .section .text.boot, "ax"
    .code32
    // PVH says nothing about EAX.
pvh_start32:
    mov eax, {pvh}
    jmp start32
    // ELF's entry point is for multiboot1.
multiboot2_start32:
    mov byte ptr [boot_state + 16], 1
    jmp start32
    .global start32
start32:
    mov ecx, cr0
    mov [boot_state], ecx
    mov ecx, cr4
    mov [boot_state + 4], ecx
    lea esp, [boot_stack_top]
    pushfd
    pop dword ptr [boot_state + 8]
    cli
    cld
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
    mov [boot_state + 12], eax
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
    .global boot_state
boot_state: .long 0, 0, 0, 0, 0
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
"#,
    flat = const FLAT_MAGIC,
    pvh = const PVH_MAGIC,
);

/// The magic numbers that loaders leave in EAX; for PVH, whose entry code does it, that of the start information; and our own.
const MULTIBOOT1_MAGIC: u32 = 0x2bad_b002;
const MULTIBOOT2_MAGIC: u32 = 0x36d7_6289;
const PVH_MAGIC: u32 = 0x336e_c578;
const FLAT_MAGIC: u32 = 0x464c_4154;

unsafe extern "C" {
    static boot_state: [u32; 5];
}

/// Registers as the loader left them.
pub struct EntryState {
    pub cr0: u32,
    pub cr4: u32,
    pub eflags: u32,
    /// Low half.
    pub efer: u32,
    /// The entry point was the one of the multiboot2 header.
    pub by_tag: bool,
}

/// By which protocol the kernel was entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Multiboot1,
    Multiboot2,
    Pvh,
    /// A flat image, which gets what a PVH kernel gets.
    Flat,
    Unknown,
}

/// What the loader said: command line, modules, memory ...
pub struct BootInfo {
    info: u64,
    pub protocol: Protocol,
}

impl BootInfo {
    pub fn new(magic: u32, info: u32) -> Self {
        let protocol = match magic {
            MULTIBOOT1_MAGIC => Protocol::Multiboot1,
            MULTIBOOT2_MAGIC => Protocol::Multiboot2,
            PVH_MAGIC => Protocol::Pvh,
            FLAT_MAGIC => Protocol::Flat,
            _ => Protocol::Unknown,
        };
        Self { info: info.into(), protocol }
    }

    /// The registers at entry.
    pub fn state(&self) -> EntryState {
        // SAFETY: written by the entry code, before any of this runs.
        let [cr0, cr4, eflags, efer, tag] = unsafe { boot_state };
        EntryState { cr0, cr4, eflags, efer, by_tag: tag != 0 }
    }

    /// Where the information structure is.
    pub fn address(&self) -> u64 {
        self.info
    }

    /// 32-bit word `index` of the information structure.
    pub fn word(&self, index: u64) -> u32 {
        read32(self.info + 4 * index)
    }

    /// Where the first tag of this type is in multiboot2's information, its type and size included.
    pub fn tag(&self, kind: u32) -> Option<u64> {
        let end = self.info + u64::from(self.word(0));
        let mut at = self.info + 8;
        while at + 8 <= end {
            if read32(at) == kind {
                return Some(at);
            }
            at += u64::from(read32(at + 4)).next_multiple_of(8).max(8);
        }
        None
    }

    pub fn command_line(&self) -> &str {
        match self.protocol {
            Protocol::Multiboot1 if self.word(0) & 4 != 0 => string_at(self.word(4).into()),
            Protocol::Multiboot2 => self.tag(1).map_or("", |tag| string_at(tag + 8)),
            Protocol::Pvh | Protocol::Flat => string_at(read64(self.info + 24)),
            Protocol::Multiboot1 | Protocol::Unknown => "",
        }
    }

    /// The value of `key=value` on the command line.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.command_line().split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }
}

/// A NUL-terminated string in identity-mapped memory.
pub fn string_at(address: u64) -> &'static str {
    let start = address as *const u8;
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
