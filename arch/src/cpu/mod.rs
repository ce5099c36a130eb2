//! The CPU: registers, descriptor tables, per-CPU data, interrupts and exceptions.

pub mod cr;
pub mod features;
pub mod gdt;
mod idt;
pub mod msr;
pub mod mtrr;
pub mod percpu;
pub mod port;
pub mod stack;
pub mod trap;

use core::arch::asm;
use x86defs::CpuidResult;

pub use trap::{dispatch, set_handler};

/// Raw CPUID of this CPU.
#[inline]
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let r = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
}

/// Halts until an interrupt has been served. Atomic: STI's shadow covers HLT, so an interrupt that is pending already ends it at once.
/// Called and returns with interrupts disabled.
#[inline]
pub fn wait_for_interrupt() {
    // SAFETY: the IDT is loaded and its handlers return. Handlers use memory, so this is a compiler barrier too.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Lets interrupts that are pending at the local APIC be served through the IDT. Called and returns with interrupts disabled.
#[inline]
pub fn serve_interrupts() {
    // SAFETY: as above. Interrupts are recognised after the instruction that follows STI.
    unsafe { asm!("sti", "nop", "cli", options(nostack)) };
}

/// A hint to the CPU within a loop that waits.
#[inline]
pub fn relax() {
    core::hint::spin_loop();
}
