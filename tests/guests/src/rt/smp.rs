//! Application processors: how they start, their stacks, and how work is given to them.

use super::{
    apic, check,
    cpu::{read8, read32, read64, write8},
    cpuid, interrupts, time,
};
use core::{
    arch::{asm, global_asm},
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
};

/// Most processors that a case can use.
pub const MAX_CPUS: usize = 32;
const STACK_BYTES: u64 = 16 << 10;
/// The page where processors start; the next one serves as another.
pub const PAGE: u8 = 0x90;
pub const OTHER_PAGE: u8 = 0x91;

global_asm!(
    r#"
    .section .text
    .balign 16
    .code16
    .global ap_trampoline
ap_trampoline:
    // Data first, so that its place is known: what INIT and SIPI have left (EDX, CR0, CR4, CS), and the GDT's pointer.
    jmp 2f
    .balign 4
    .skip 16
    .word 0x5f
    .long boot_gdt
2:  cli
    cld
    mov cs:[4], edx
    mov eax, cr0
    mov cs:[8], eax
    mov eax, cr4
    mov cs:[12], eax
    mov ax, cs
    mov cs:[16], ax
    // 24 bits of the base are enough for the GDT.
    lgdt cs:[20]
    mov eax, cr0
    and eax, 0x9fffffff
    or eax, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long ap_start32
    .word 0x18
    .global ap_trampoline_end
ap_trampoline_end:

    .code32
ap_start32:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov ss, ax
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
    .byte 0xea
    .long ap_start64
    .word 8
    .code64
ap_start64:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov ss, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    // The APIC id, which is also the processor's number.
    mov eax, 0xb
    xor ecx, ecx
    cpuid
    mov edi, edx
    mov ecx, edx
    inc ecx
    shl rcx, 14
    lea rsp, [rip + ap_stacks]
    add rsp, rcx
    xor ebp, ebp
    call ap_main
5:  hlt
    jmp 5b

    .section .bss
    .align 4096
    .global ap_stacks
ap_stacks: .skip 32 * 16384
    .section .text
"#
);

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static ap_stacks: u8;
}

/// A processor as the others see it.
struct Processor {
    /// How often it has started.
    starts: AtomicU32,
    /// The `fn(usize)` that it is to run; 0 if none.
    job: AtomicUsize,
}

static PROCESSORS: [Processor; MAX_CPUS] =
    [const { Processor { starts: AtomicU32::new(0), job: AtomicUsize::new(0) } }; MAX_CPUS];

#[unsafe(no_mangle)]
extern "C" fn ap_main(id: u32) -> ! {
    interrupts::load();
    let cpu = id as usize;
    PROCESSORS[cpu].starts.fetch_add(1, Ordering::SeqCst);
    loop {
        let job = PROCESSORS[cpu].job.load(Ordering::SeqCst);
        if job != 0 {
            // SAFETY: only `run` stores here, and only such function pointers.
            let job: fn(usize) = unsafe { core::mem::transmute(job) };
            job(cpu);
            PROCESSORS[cpu].job.store(0, Ordering::SeqCst);
        }
        core::hint::spin_loop();
    }
}

/// The number of the processor that asks, by its stack: no instruction that could exit.
pub fn this_cpu() -> usize {
    let rsp: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) rsp, options(nomem, nostack, preserves_flags)) };
    let first = &raw const ap_stacks as u64;
    if (first..first + MAX_CPUS as u64 * STACK_BYTES).contains(&rsp) { ((rsp - first) / STACK_BYTES) as usize } else { 0 }
}

/// What a processor found when it came out of INIT at a page. Of several that start there, the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    pub edx: u32,
    pub cr0: u32,
    pub cr4: u32,
    pub cs: u32,
}

pub fn seen(page: u8) -> Seen {
    let at = (u64::from(page) << 12) + 4;
    Seen { edx: read32(at), cr0: read32(at + 4), cr4: read32(at + 8), cs: read32(at + 12) }
}

/// Puts the code with which processors start to a page.
pub fn prepare(page: u8) {
    let (from, to) = (&raw const ap_trampoline as u64, u64::from(page) << 12);
    for n in 0..(&raw const ap_trampoline_end as u64 - from) {
        write8(to + n, read8(from + n));
    }
}

/// An IPI by the xAPIC's ICR.
pub fn ipi(destination: u32, low: u32) {
    apic::write(apic::reg::ICR_HIGH, destination << 24);
    apic::write(apic::reg::ICR_LOW, low);
}

/// ICR low halves: INIT, and SIPI without the page.
pub const INIT: u32 = 0x4500;
pub const SIPI: u32 = 0x4600;
pub const NMI: u32 = 0x4400;
pub const FIXED: u32 = 0x4000;

/// How often a processor has started.
pub fn starts(cpu: usize) -> u32 {
    PROCESSORS[cpu].starts.load(Ordering::SeqCst)
}

/// INIT and two SIPIs, as the universal start-up algorithm has them (MultiProcessor Specification 1.4, B.4).
pub fn start(cpu: usize) {
    let before = starts(cpu);
    prepare(PAGE);
    ipi(cpu as u32, INIT | 0x8000);
    ipi(cpu as u32, 0x8500);
    time::spin_us(200);
    for _ in 0..2 {
        ipi(cpu as u32, SIPI | u32::from(PAGE));
        time::spin_us(200);
    }
    check!(time::wait_for(2_000_000, || starts(cpu) == before + 1), "processor {cpu} starts");
}

/// Enables this processor's APIC and starts all others that the MADT has. Returns how many there are in all.
pub fn start_all() -> usize {
    let cpus = madt_ids().count();
    start_first(cpus);
    cpus
}

/// The same for as many as the caller knows that there are.
pub fn start_first(cpus: usize) {
    apic::enable();
    check!(cpus <= MAX_CPUS, "{cpus} processors are too many for the runtime");
    for cpu in 1..cpus {
        start(cpu);
    }
    on_others(cpus, |_| apic::enable());
}

/// Gives a started processor something to do.
pub fn run(cpu: usize, job: fn(usize)) {
    check!(PROCESSORS[cpu].job.swap(job as usize, Ordering::SeqCst) == 0, "processor {cpu} is busy");
}

/// The work of a processor that was stopped by INIT is void.
pub fn forget(cpu: usize) {
    PROCESSORS[cpu].job.store(0, Ordering::SeqCst);
}

/// Waits until a processor has done its work.
pub fn wait(cpu: usize) {
    let done = || PROCESSORS[cpu].job.load(Ordering::SeqCst) == 0;
    check!(time::wait_for(20_000_000, done), "processor {cpu} comes to an end");
}

/// Runs `job` on all processors but this (the first of `cpus`), and waits.
pub fn on_others(cpus: usize, job: fn(usize)) {
    for cpu in 1..cpus {
        run(cpu, job);
    }
    for cpu in 1..cpus {
        wait(cpu);
    }
}

/// Runs `job` on all processors, and waits.
pub fn on_all(cpus: usize, job: fn(usize)) {
    for cpu in 1..cpus {
        run(cpu, job);
    }
    job(0);
    for cpu in 1..cpus {
        wait(cpu);
    }
}

/// The address of the ACPI table with this signature.
pub fn acpi_table(signature: &[u8; 4]) -> Option<u64> {
    let rsdp = (0xe_0000u64..0x10_0000).step_by(16).find(|&a| read64(a) == u64::from_le_bytes(*b"RSD PTR "))?;
    let xsdt = read64(rsdp + 24);
    let entries = (xsdt + 36..xsdt + u64::from(read32(xsdt + 4))).step_by(8);
    entries.map(read64).find(|&table| read32(table) == u32::from_le_bytes(*signature))
}

/// The APIC ids of the processors in the MADT that are enabled, in its order.
pub fn madt_ids() -> impl Iterator<Item = u32> {
    let madt = acpi_table(b"APIC").expect("a MADT");
    let end = madt + u64::from(read32(madt + 4));
    let mut at = madt + 44;
    core::iter::from_fn(move || {
        while at < end {
            let entry = at;
            at += u64::from(read8(entry + 1).max(2));
            if read8(entry) == 0 && read32(entry + 4) & 1 != 0 {
                return Some(read8(entry + 3).into());
            }
        }
        None
    })
}

/// This processor's initial APIC id, as CPUID has it.
pub fn initial_id() -> u32 {
    cpuid(1, 0)[1] >> 24
}
