//! Model-specific registers.

use core::arch::{asm, global_asm};

/// Reads an MSR.
///
/// # Safety
/// The CPU must have the MSR; otherwise this is a fatal #GP.
#[inline]
#[must_use]
pub unsafe fn read(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading an existing MSR changes nothing.
    unsafe { asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR.
///
/// # Safety
/// The CPU must have the MSR and allow the value, and what it changes must be wanted.
#[inline]
pub unsafe fn write(index: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller's. Not `nomem`: an MSR write may change how memory is accessed.
    unsafe { asm!("wrmsr", in("ecx") index, in("eax") low, in("edx") high, options(nostack, preserves_flags)) };
}

// Both return 1 in AL if the access went through. The exception handler resumes at the `_fault` label when the instruction before it
// raises #GP (see `recover`).
global_asm!(
    ".pushsection .text.bulkhead_msr, \"ax\", @progbits",
    ".global bulkhead_try_rdmsr, bulkhead_try_wrmsr",
    "bulkhead_try_rdmsr:", // (edi = index, rsi = where to put the value)
    "mov ecx, edi",
    "bulkhead_rdmsr_at:",
    "rdmsr",
    "mov [rsi], eax",
    "mov [rsi + 4], edx",
    "mov eax, 1",
    "ret",
    "bulkhead_rdmsr_fault:",
    "xor eax, eax",
    "ret",
    "bulkhead_try_wrmsr:", // (edi = index, rsi = value)
    "mov ecx, edi",
    "mov eax, esi",
    "mov rdx, rsi",
    "shr rdx, 32",
    "bulkhead_wrmsr_at:",
    "wrmsr",
    "mov eax, 1",
    "ret",
    "bulkhead_wrmsr_fault:",
    "xor eax, eax",
    "ret",
    ".popsection",
);

unsafe extern "sysv64" {
    fn bulkhead_try_rdmsr(index: u32, value: *mut u64) -> bool;
    fn bulkhead_try_wrmsr(index: u32, value: u64) -> bool;
    static bulkhead_rdmsr_at: u8;
    static bulkhead_rdmsr_fault: u8;
    static bulkhead_wrmsr_at: u8;
    static bulkhead_wrmsr_fault: u8;
}

/// Reads an MSR that the CPU may not have: `None` if it raises #GP. Needs the IDT.
#[must_use]
pub fn try_read(index: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: a #GP is caught by `recover`; reading an MSR changes nothing else; `value` outlives the call.
    unsafe { bulkhead_try_rdmsr(index, &raw mut value) }.then_some(value)
}

/// Writes an MSR that the CPU may not have, or a value that it may not take: false if it raises #GP. Needs the IDT.
///
/// # Safety
/// What the write changes, if it goes through, must be wanted.
#[must_use]
pub unsafe fn try_write(index: u32, value: u64) -> bool {
    // SAFETY: a #GP is caught by `recover`; the rest is the caller's.
    unsafe { bulkhead_try_wrmsr(index, value) }
}

/// Where to go on after a #GP at `rip`, if that is one of the accesses above.
pub(super) fn recover(rip: u64) -> Option<u64> {
    let pairs = [
        (&raw const bulkhead_rdmsr_at, &raw const bulkhead_rdmsr_fault),
        (&raw const bulkhead_wrmsr_at, &raw const bulkhead_wrmsr_fault),
    ];
    pairs.into_iter().find(|&(at, _)| at as u64 == rip).map(|(_, fault)| fault as u64)
}
