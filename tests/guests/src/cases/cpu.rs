//! The CPU as a guest sees it.

use crate::rt::{BootInfo, check, check_eq, cpuid, rdmsr};

/// CPUID shows a consistent, filtered CPU (Intel SDM vol. 2A "CPUID"): the hypervisor bit and leaf, no VMX or SVM, a topology of one CPU,
/// frequencies that agree, invariant TSC.
pub fn cpuid_policy(boot: &BootInfo) {
    check!(boot.valid(), "multiboot1 magic");
    let [_, ebx, ecx, edx] = cpuid(1, 0);
    check!(ecx >> 31 == 1, "hypervisor bit");
    check_eq!(ecx & (1 << 5), 0, "VMX hidden");
    check_eq!(ecx & (1 << 3), 0, "MONITOR hidden");
    check_eq!(ecx >> 21 & 1, 1, "x2APIC");
    check_eq!(ecx >> 24 & 1, 1, "TSC deadline");
    check_eq!(edx & 0x2011, 0x2011, "FPU, TSC, PGE");
    check_eq!(ebx >> 24, 0, "initial APIC id");
    check_eq!(cpuid(0x8000_0001, 0)[2] & 1 << 2, 0, "SVM hidden");
    check_eq!(cpuid(0x8000_000a, 0), [0; 4], "SVM leaf empty");
    check_eq!(cpuid(0xa, 0), [0; 4], "no performance counters");
    check!(cpuid(0x8000_0007, 0)[3] & 1 << 8 != 0, "invariant TSC");
    let base = cpuid(0x4000_0000, 0);
    check_eq!([base[1], base[2], base[3]], [0x4b4d_564b, 0x564b_4d56, 0x4d], "hypervisor signature");
    check!(base[0] >= 0x4000_0010, "timing leaf");
    let [denominator, numerator, crystal, _] = cpuid(0x15, 0);
    if cpuid(0, 0)[1] == 0x756e_6547 {
        let khz = u64::from(crystal) / 1000 * u64::from(numerator) / u64::from(denominator);
        check_eq!(khz, u64::from(cpuid(0x4000_0010, 0)[0]), "leaf 15H and the timing leaf agree");
    }
    check_eq!(cpuid(0xb, 0)[2] >> 8, 1, "leaf 0BH level 0 is SMT");
    check_eq!(cpuid(0xb, 1)[1], 1, "one logical processor");
    check!(rdmsr(0x1b) & 1 << 8 != 0, "this is the boot processor");
}

/// OUT to the debug-exit port ends the guest at once with (value << 1) | 1; nothing after it runs.
pub fn debug_exit(_: &BootInfo) {
    crate::rt::outb(0xf4, 0x10);
    panic!("still running");
}

/// An exception with no usable IDT, then no usable double-fault gate: shutdown (Intel SDM vol. 3A, 7.15). The hypervisor reports it.
pub fn triple_fault(_: &BootInfo) {
    let empty = [0u16; 5];
    // SAFETY: this is meant to end the guest.
    unsafe { core::arch::asm!("lidt [{}]", "ud2", in(reg) &empty, options(noreturn)) }
}
