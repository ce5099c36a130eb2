//! From a start-up IPI's real mode to 64-bit code of the host (Intel SDM vol. 3A rev. 085, 10.4.4, 11.8.5).
//!
//! The code is position-independent and is copied into a page below 1 MiB: data in the image until then, so that nothing is ever writable and
//! executable at once. The copy's page is executable in a set of tables of its own, which has the host's upper half and this one page below;
//! the host's own tables never have anything below.
//!
//! A CPU that comes later than it was waited for must not take what has been put there for another one. So the page is an offer to one
//! CPU, by its APIC ID, that is taken by compare-and-exchange: by the CPU to go on, or by the boot CPU to withdraw it.

use crate::mm::{self, Frames, HostTable, direct, table};
use core::arch::{global_asm, naked_asm};
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use table::{MapError, MemoryType, PageSize, Rights, TableMemory as _};
use x86defs::{Hpa, PAGE_SIZE};

/// States of an offer.
mod state {
    /// There is none: a CPU that comes halts.
    pub const NONE: u32 = 0;
    pub const OFFERED: u32 = 1;
    pub const TAKEN: u32 = 2;
    /// Taken, but the CPU has no long mode or no no-execute.
    pub const UNFIT: u32 = 3;
}

/// What the boot CPU puts into the page, behind the code.
#[derive(Debug)]
#[repr(C, align(8))]
struct Offer {
    state: AtomicU32,
    apic_id: AtomicU32,
    /// Root of the tables that have the page; below 4 GiB.
    low_root: AtomicU64,
    /// Root of the host's tables.
    root: AtomicU64,
    stack: AtomicU64,
    argument: AtomicU64,
    /// Address of [`enter`].
    enter: AtomicU64,
}

// Selectors: 8 is 32-bit code, 16 data, 24 64-bit code. All descriptors are marked as accessed, so that the CPU need not write them.
global_asm!(
    ".pushsection .rodata.bulkhead_trampoline, \"a\", @progbits",
    ".balign 16",
    // Global, as the code that asks for them may be compiled apart.
    ".global bulkhead_trampoline, bulkhead_trampoline_32, bulkhead_trampoline_64, bulkhead_trampoline_jump_32",
    ".global bulkhead_trampoline_jump_64, bulkhead_trampoline_gdt, bulkhead_trampoline_gdtr, bulkhead_trampoline_offer",
    "bulkhead_trampoline:",
    ".code16",
    "cli",
    "cld",
    "xor ebp, ebp",
    "mov bp, cs",
    "mov ds, bp",
    // EBP: the page's address.
    "shl ebp, 4",
    // LGDT of a 16-bit offset; the table's address has been filled in.
    ".byte 0x0f, 0x01, 0x16",
    ".short bulkhead_trampoline_gdtr - bulkhead_trampoline",
    "mov eax, cr0",
    "or eax, 1",
    "mov cr0, eax",
    // A far jump with a 32-bit offset, which has been filled in.
    ".byte 0x66, 0xea",
    "bulkhead_trampoline_jump_32: .long 0",
    ".short 8",
    ".code32",
    "bulkhead_trampoline_32:",
    "mov eax, 16",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    // The APIC ID, as the start-up IPI has found it: by MSR in x2APIC mode, else in memory.
    "mov ecx, 0x1b",
    "rdmsr",
    "test eax, 0x400",
    "jnz 2f",
    "and eax, 0xfffff000",
    "mov eax, [eax + 0x20]",
    "shr eax, 24",
    "jmp 3f",
    "2: mov ecx, 0x802",
    "rdmsr",
    // ADD EBX, the offer's place in the page.
    "3: mov ebx, ebp",
    ".byte 0x81, 0xc3",
    ".long bulkhead_trampoline_offer - bulkhead_trampoline",
    "cmp eax, [ebx + {apic_id}]",
    "jne 9f",
    "mov eax, {offered}",
    "mov ecx, {taken}",
    "lock cmpxchg [ebx + {state}], ecx",
    "jne 9f",
    // Long mode and no-execute? EBX is CPUID's.
    "mov esi, ebx",
    "mov eax, 0x80000001",
    "cpuid",
    "and edx, 0x20100000",
    "cmp edx, 0x20100000",
    "je 4f",
    "mov dword ptr [esi + {state}], {unfit}",
    "jmp 9f",
    // PAE; the tables; long mode and no-execute; paging, write protection, numeric errors, caches on.
    "4: mov eax, 0x20",
    "mov cr4, eax",
    "mov eax, [esi + {low_root}]",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x900",
    "wrmsr",
    "mov eax, 0x80010033",
    "mov cr0, eax",
    ".byte 0xea",
    "bulkhead_trampoline_jump_64: .long 0",
    ".short 24",
    "9: hlt",
    "jmp 9b",
    ".code64",
    "bulkhead_trampoline_64:",
    "mov esi, esi",
    "mov rsp, [rsi + {stack}]",
    "mov rdi, [rsi + {argument}]",
    "mov rdx, [rsi + {root}]",
    "mov rax, [rsi + {enter}]",
    "jmp rax",
    ".balign 8",
    "bulkhead_trampoline_gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff",
    "bulkhead_trampoline_gdtr: .short 31",
    ".long 0",
    ".balign 8",
    "bulkhead_trampoline_offer:",
    ".popsection",
    state = const offset_of!(Offer, state),
    apic_id = const offset_of!(Offer, apic_id),
    low_root = const offset_of!(Offer, low_root),
    root = const offset_of!(Offer, root),
    stack = const offset_of!(Offer, stack),
    argument = const offset_of!(Offer, argument),
    enter = const offset_of!(Offer, enter),
    offered = const state::OFFERED,
    taken = const state::TAKEN,
    unfit = const state::UNFIT,
);

unsafe extern "C" {
    static bulkhead_trampoline: u8;
    static bulkhead_trampoline_jump_32: u8;
    static bulkhead_trampoline_32: u8;
    static bulkhead_trampoline_jump_64: u8;
    static bulkhead_trampoline_64: u8;
    static bulkhead_trampoline_gdt: u8;
    static bulkhead_trampoline_gdtr: u8;
    static bulkhead_trampoline_offer: u8;
}

/// Where the trampoline goes on, in the image: leaves the tables with the low page, and calls `main` with the offer's argument.
///
/// # Safety
/// From the trampoline only: RSP is the top of a stack, RDX the root of the host's tables.
#[unsafe(naked)]
unsafe extern "sysv64" fn enter(argument: u64) -> ! {
    naked_asm!(
        "mov cr3, rdx",
        "xor ebp, ebp",
        "push rbp",
        "push rbp",
        "call {main}",
        "ud2",
        main = sym super::further_cpu,
    )
}

/// Offset in the page of one of the trampoline's labels.
fn offset(label: *const u8) -> usize {
    label as usize - &raw const bulkhead_trampoline as usize
}

/// Bytes of code and constants, in front of the offer.
fn code_size() -> usize {
    offset(&raw const bulkhead_trampoline_offer)
}

/// Puts the trampoline into `page`, which lies at physical address `base`.
fn fill(page: &mut [u8; PAGE_SIZE as usize], base: u32) {
    // SAFETY: the labels enclose the code, which is constant data.
    let code = unsafe { core::slice::from_raw_parts(&raw const bulkhead_trampoline, code_size()) };
    page.fill(0);
    page[..code.len()].copy_from_slice(code);
    for (at, target) in [
        (offset(&raw const bulkhead_trampoline_jump_32), &raw const bulkhead_trampoline_32),
        (offset(&raw const bulkhead_trampoline_jump_64), &raw const bulkhead_trampoline_64),
        (offset(&raw const bulkhead_trampoline_gdtr) + 2, &raw const bulkhead_trampoline_gdt),
    ] {
        page[at..at + 4].copy_from_slice(&(base + offset(target) as u32).to_le_bytes());
    }
}

/// Why there is no trampoline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoTrampoline {
    /// The memory map has no free page below 640 KiB.
    NoLowPage,
    OutOfMemory,
    /// The tables would have their root at or above 4 GiB, where 32-bit code cannot name it.
    RootTooHigh,
}

impl core::fmt::Display for NoTrampoline {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NoLowPage => "no free page below 640 KiB to start them in",
            Self::OutOfMemory => "no memory for page tables to start them with",
            Self::RootTooHigh => "no memory below 4 GiB for page tables to start them with",
        })
    }
}

/// How far a CPU has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It has not come.
    No,
    Yes,
    /// It has, but it has no long mode or no no-execute.
    Unfit,
}

/// The trampoline in its page, with the tables that it needs. Dropping it frees the tables; a CPU that comes later still halts.
pub struct Trampoline {
    page: Hpa,
    low: Option<HostTable>,
}

impl Trampoline {
    /// Copies the trampoline to `page`, which lies below 1 MiB and is nobody else's.
    ///
    /// # Errors
    /// See [`NoTrampoline`].
    pub fn new(page: Option<Hpa>) -> Result<Self, NoTrampoline> {
        let page = page.ok_or(NoTrampoline::NoLowPage)?;
        let root = mm::host_root().ok_or(NoTrampoline::OutOfMemory)?;
        let mut low = HostTable::new(Frames, PageSize::Size4K).ok_or(NoTrampoline::OutOfMemory)?;
        let low_root = low.root();
        let mapped = low.map(page.0, PAGE_SIZE, page, Rights::READ | Rights::EXECUTE, MemoryType::WriteBack);
        let this = Self { page, low: Some(low) };
        match mapped {
            _ if low_root.0 >> 32 != 0 => return Err(NoTrampoline::RootTooHigh),
            Ok(()) => {}
            Err(MapError::OutOfMemory | MapError::Overlap(_) | MapError::BadRange(_)) => return Err(NoTrampoline::OutOfMemory),
        }
        copy_upper_half(Some(root), low_root);
        // SAFETY: the page is RAM that is reserved for this, and the direct map reaches it.
        let bytes = unsafe { &mut *direct::to_virt(page).cast::<[u8; PAGE_SIZE as usize]>() };
        fill(bytes, page.0 as u32);
        let offer = this.offer();
        offer.low_root.store(low_root.0, Ordering::Relaxed);
        offer.root.store(root.0, Ordering::Relaxed);
        offer.enter.store(enter as *const () as u64, Ordering::Relaxed);
        Ok(this)
    }

    /// The number of its page, for a start-up IPI.
    #[must_use]
    pub const fn page_number(&self) -> u8 {
        (self.page.0 >> 12) as u8
    }

    fn offer(&self) -> &Offer {
        // SAFETY: the offer lies in the page, aligned, behind the code; other CPUs only touch it by atomic accesses, or to read it.
        unsafe { &*direct::to_virt(self.page).add(code_size()).cast::<Offer>() }
    }

    /// Lets the CPU with this APIC ID through, once: to `further_cpu(argument)` on the stack that ends at `stack`.
    pub fn offer_to(&self, apic_id: u32, stack: u64, argument: u64) {
        let offer = self.offer();
        offer.apic_id.store(apic_id, Ordering::Relaxed);
        offer.stack.store(stack, Ordering::Relaxed);
        offer.argument.store(argument, Ordering::Relaxed);
        offer.state.store(state::OFFERED, Ordering::Release);
    }

    /// Whether the CPU has come.
    #[must_use]
    pub fn taken(&self) -> Taken {
        match self.offer().state.load(Ordering::Acquire) {
            state::TAKEN => Taken::Yes,
            state::UNFIT => Taken::Unfit,
            _ => Taken::No,
        }
    }

    /// Takes the offer back, if nobody has taken it.
    pub fn withdraw(&self) -> Taken {
        let state = &self.offer().state;
        match state.compare_exchange(state::OFFERED, state::NONE, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Taken::No,
            Err(_) => self.taken(),
        }
    }
}

impl Drop for Trampoline {
    fn drop(&mut self) {
        self.offer().state.store(state::NONE, Ordering::Release);
        if let Some(low) = self.low.take() {
            // The upper half is the host's.
            copy_upper_half(None, low.root());
            low.destroy();
        }
    }
}

/// Makes the upper half of the table at `to` the same as that of the one at `from`, or empty.
fn copy_upper_half(from: Option<Hpa>, to: Hpa) {
    for index in table::ENTRIES / 2..table::ENTRIES {
        let entry = from.map_or(0, |from| Frames.read(from, index));
        Frames.write(to, index, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(page: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
    }

    /// Follows what the CPU does at the three places that depend on where the page is.
    #[test]
    fn jumps_and_tables_stay_within_the_page() {
        let mut page = [0xff; 4096];
        fill(&mut page, 0x8_e000);
        assert!(code_size().is_multiple_of(align_of::<Offer>()));
        assert!(code_size() + size_of::<Offer>() <= page.len());
        // Real mode: CLI first; the 66 EA far jump to selector 8 leads behind itself.
        assert_eq!(page[0], 0xfa);
        let jump = offset(&raw const bulkhead_trampoline_jump_32);
        assert_eq!(page[jump - 2..jump], [0x66, 0xea]);
        assert_eq!(long(&page, jump) as usize, 0x8_e000 + jump + 6);
        assert_eq!(page[jump + 4..jump + 6], [8, 0]);
        // LGDT [disp16], from a pointer with the table's limit and place.
        let lgdt = page.windows(3).position(|w| w == [0x0f, 0x01, 0x16]).unwrap();
        let pointer = usize::from(u16::from_le_bytes([page[lgdt + 3], page[lgdt + 4]]));
        let (limit, gdt) = (u16::from_le_bytes([page[pointer], page[pointer + 1]]), long(&page, pointer + 2) as usize - 0x8_e000);
        assert_eq!(limit, 4 * 8 - 1);
        assert_eq!(page[gdt..gdt + 8], [0; 8]);
        // Descriptors: access byte, and D and L.
        assert_eq!((page[gdt + 13], page[gdt + 14] >> 5 & 3), (0x9b, 0b10), "32-bit code");
        assert_eq!((page[gdt + 29], page[gdt + 30] >> 5 & 3), (0x9b, 0b01), "64-bit code");
        let jump = offset(&raw const bulkhead_trampoline_jump_64);
        assert_eq!(page[jump - 1], 0xea);
        assert_eq!(long(&page, jump) as usize, 0x8_e000 + offset(&raw const bulkhead_trampoline_64));
        // What lies behind the code is an offer to nobody.
        assert!(page[code_size()..].iter().all(|&b| b == 0));
    }
}
