//! The CPU as a guest sees it.

use crate::rt::{
    BootInfo, catch, catch_msr_read, catch_msr_write, check, check_eq, cpu, cpuid, interrupts::Caught, rdmsr, rdtsc, wrmsr,
};
use core::arch::asm;

/// CPUID shows a consistent, filtered CPU (Intel SDM vol. 2A "CPUID"): the hypervisor bit and leaf, no VMX or SVM, a topology of one CPU,
/// frequencies that agree, invariant TSC.
pub fn cpuid_policy(_: &BootInfo) {
    let [_, ebx, ecx, edx] = cpuid(1, 0);
    check!(ecx >> 31 == 1, "hypervisor bit");
    check_eq!(ecx & (1 << 5), 0, "VMX hidden");
    check_eq!(ecx & (1 << 3), 0, "MONITOR hidden");
    check_eq!(ecx >> 21 & 1, 1, "x2APIC");
    check_eq!(ecx >> 24 & 1, 1, "TSC deadline");
    check_eq!(edx & 0x2011, 0x2011, "FPU, TSC, PGE");
    check_eq!(ebx >> 24, 0, "initial APIC id");
    check_eq!(cpuid(0x8000_0001, 0)[2] & 1 << 2, 0, "SVM hidden");
    // Beyond its highest leaf, Intel's CPUID answers with the highest basic leaf.
    if cpuid(0x8000_0000, 0)[0] >= 0x8000_000a {
        check_eq!(cpuid(0x8000_000a, 0), [0; 4], "SVM leaf empty");
    }
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

/// `cpuid=` takes features away, with what depends on them and the registers' bits that belong to them, and changes the numbers.
pub fn cpuid_mask(_: &BootInfo) {
    let [highest, vendor, ..] = cpuid(0, 0);
    check_eq!(highest, 0xd, "maxleaf");
    check_eq!(cpuid(0x15, 0), [0; 4], "a leaf beyond the highest");
    let [eax, ebx, ecx, edx] = cpuid(1, 0);
    check_eq!(eax & 0x0fff_0fff, 0x0101_0fa3, "family 31, model 26, stepping 3");
    check_eq!(ebx & 0xff, 9, "brand");
    check_eq!(ecx & (1 << 20 | 1 << 21 | 1 << 24 | 1 << 31), 0, "SSE4.2, x2APIC, TSC deadline, hypervisor");
    check_eq!(ecx & (1 << 26 | 1 << 28 | 1 << 12 | 1 << 29), 0, "XSAVE, and with it AVX, FMA, F16C");
    check!(ecx & 1 != 0, "SSE3 was asked for");
    check_eq!(edx & 1 << 2, 0, "debugging extensions");
    check_eq!(cpuid(7, 0)[1] & (1 << 1 | 1 << 5), 0, "TSC_ADJUST; AVX2 depends on AVX");
    check_eq!(cpuid(0xd, 0), [0; 4], "no XSAVE area");
    let [signature, _, _, extended] = cpuid(0x8000_0001, 0);
    check_eq!(extended & (1 << 11 | 1 << 27), 0, "SYSCALL, RDTSCP");
    if vendor == 0x6874_7541 {
        check_eq!(signature, eax, "AMD's second signature");
        check_eq!(extended & 1 << 2, 0, "debugging extensions");
    }
    // Control registers.
    let cr4 = cpu::read_cr4();
    for bit in [3, 18] {
        let caught = catch(|| cpu::write_cr4(cr4 | 1 << bit));
        check!(matches!(caught, Some(Caught { vector: 13, error: 0, .. })), "CR4 bit {bit} raises #GP(0): {caught:?}");
    }
    check!(is_gp(catch_msr_write(0xc000_0080, rdmsr(0xc000_0080) | 1)), "EFER.SCE raises #GP(0)");
    // x2APIC mode, TSC_DEADLINE, TSC_ADJUST.
    let base = rdmsr(0x1b);
    check!(is_gp(catch_msr_write(0x1b, base | 1 << 10)), "EXTD raises #GP(0)");
    check_eq!(rdmsr(0x1b), base, "still in xAPIC mode");
    for index in [0x6e0, 0x3b] {
        check!(is_gp(catch_msr_read(index)), "RDMSR {index:#x} raises #GP(0)");
        check!(is_gp(catch_msr_write(index, 0)), "WRMSR {index:#x} raises #GP(0)");
    }
}

fn is_gp<T>(result: Result<T, Caught>) -> bool {
    matches!(result, Err(Caught { vector: 13, error: 0, .. }))
}

/// MSRs that the guest's CPU does not have raise #GP(0), reading and writing; the host's never shine through (SDM vol. 4).
pub fn msr_policy(_: &BootInfo) {
    // FEATURE_CONTROL, VMX_BASIC, VM_CR, VM_HSAVE_PA, XSS, an undefined one, KVM's asynchronous page faults, which CPUID does not show.
    for index in [0x3a, 0x480, 0xc001_0114, 0xc001_0117, 0xda0, 0x1234_5678, 0x4b56_4d02] {
        check!(is_gp(catch_msr_read(index)), "RDMSR {index:#x} raises #GP(0)");
        check!(is_gp(catch_msr_write(index, 0)), "WRMSR {index:#x} raises #GP(0)");
    }
    // AMD's four performance counters of old, which no CPUID bit can hide (APM vol. 2, 13.2): none counts.
    let amd = cpuid(0, 0)[1] == 0x6874_7541;
    for index in 0xc001_0000..=0xc001_0007 {
        check_eq!(is_gp(catch_msr_write(index, 0x1234)), !amd, "WRMSR {index:#x}");
        match catch_msr_read(index) {
            Ok(value) => check!(amd && value == 0, "RDMSR {index:#x} is {value:#x}"),
            fault => check!(!amd && is_gp(fault), "RDMSR {index:#x} raises #GP(0)"),
        }
    }
    // Reserved bits and bad values: EFER.SVME, PAT type 2, APIC base beyond the address width.
    for (index, value) in [
        (0xc000_0080, rdmsr(0xc000_0080) | 1 << 12),
        (0xc000_0080, rdmsr(0xc000_0080) | 1 << 1),
        (0x277, 0x0202_0202_0202_0202),
        (0x1b, 1 << 60 | 0xfee0_0900),
        (0x2ff, 2),
    ] {
        check!(is_gp(catch_msr_write(index, value)), "WRMSR {index:#x} with {value:#x} raises #GP(0)");
    }
    // x2APIC registers exist only in x2APIC mode.
    check!(is_gp(catch_msr_read(0x802)), "x2APIC id in xAPIC mode");
}

/// MSRs that the guest owns keep what is written, and the instructions that use them see it.
pub fn msr_state(_: &BootInfo) {
    for (index, value) in [
        (0xc000_0081u32, 0x0013_0008_0000_0000u64),
        (0xc000_0082, 0xffff_8000_1234_5678),
        (0xc000_0084, 0x4_7700),
        (0xc000_0100, 0x1234_5000),
        (0xc000_0101, 0xffff_9000_0000_0000),
        (0xc000_0102, 0x77_0000),
        (0x174, 8),
        (0x175, 0x9_0000),
        (0x176, 0x10_0000),
        (0x277, 0x0007_0406_0007_0106),
    ] {
        wrmsr(index, value);
        check_eq!(rdmsr(index), value, "MSR {index:#x}");
    }
    // An exit in between (CPUID) loses none of them.
    cpuid(0, 0);
    check_eq!(rdmsr(0xc000_0082), 0xffff_8000_1234_5678, "LSTAR after an exit");
    let through_fs: u64;
    let cell = 0x1122_3344_5566_7788u64;
    wrmsr(0xc000_0100, &raw const cell as u64);
    // SAFETY: FS base points at a local.
    unsafe { asm!("mov {}, fs:[0]", out(reg) through_fs) };
    check_eq!(through_fs, cell, "FS base is in force");
    check_eq!(rdmsr(0xc000_0080) & 0x500, 0x500, "EFER has LME and LMA");
    check_eq!(rdmsr(0xc000_0080) & 1 << 12, 0, "EFER.SVME is not visible");
}

/// The TSC runs, RDMSR and RDTSC agree, a write moves it and TSC_ADJUST by the same amount (SDM vol. 3B, 18.17.3).
pub fn tsc(_: &BootInfo) {
    let (a, b, c) = (rdtsc(), rdmsr(0x10), rdtsc());
    check!(a < b && b < c, "RDTSC {a} RDMSR {b} RDTSC {c} in order");
    check!(a < 1 << 42, "the TSC starts near zero with the guest: {a}");
    let adjust = rdmsr(0x3b);
    wrmsr(0x3b, adjust.wrapping_add(1 << 40));
    check!(rdtsc() - c >= 1 << 40 && rdtsc() - c < 1 << 41, "TSC_ADJUST moves the TSC");
    wrmsr(0x3b, adjust);
    wrmsr(0x10, 5 << 40);
    check!(rdtsc() >= 5 << 40 && rdtsc() < 6 << 40, "the TSC is writable");
    check!(rdmsr(0x3b) != adjust, "TSC_ADJUST follows the write");
}

/// Control registers: reserved bits raise #GP(0), CPUID follows CR4.OSXSAVE, CR8 and TPR are one (SDM vol. 3A, 2.5 and 11.8.6).
pub fn control_registers(_: &BootInfo) {
    let cr4 = cpu::read_cr4();
    for bit in [13, 14, 15, 24, 40] {
        let caught = catch(|| cpu::write_cr4(cr4 | 1 << bit));
        check!(matches!(caught, Some(Caught { vector: 13, error: 0, .. })), "CR4 bit {bit} raises #GP(0): {caught:?}");
        check_eq!(cpu::read_cr4(), cr4, "CR4 unchanged");
    }
    if cpuid(1, 0)[2] & 1 << 26 != 0 {
        check_eq!(cpuid(1, 0)[2] & 1 << 27, 0, "OSXSAVE clear");
        cpu::write_cr4(cr4 | 1 << 18);
        check!(cpuid(1, 0)[2] & 1 << 27 != 0, "OSXSAVE follows CR4");
        let caught = catch(|| xsetbv(0, 0));
        check!(matches!(caught, Some(Caught { vector: 13, .. })), "XCR0 without x87 raises #GP");
        xsetbv(0, 3);
        check_eq!(cpuid(0xd, 0)[1], 576, "XSAVE area of x87 and SSE");
        cpu::write_cr4(cr4);
    }
    // CR8 is TPR's high half.
    cpu::write_cr8(5);
    check_eq!(crate::rt::apic::read(0x80), 0x50, "TPR follows CR8");
    crate::rt::apic::write(0x80, 0x30);
    check_eq!(cpu::read_cr8(), 3, "CR8 follows TPR");
    check!(matches!(catch(|| cpu::write_cr8(16)), Some(Caught { vector: 13, .. })), "CR8 bits above 3");
    cpu::write_cr8(0);
    let cr0 = cpu::read_cr0();
    cpu::write_cr0(cr0 | 1 << 3);
    check!(cpu::read_cr0() & 8 != 0, "CR0.TS set");
    // SAFETY: clears TS again.
    unsafe { asm!("clts") };
    check_eq!(cpu::read_cr0(), cr0, "CLTS");
}

fn xsetbv(index: u32, value: u64) {
    // SAFETY: changes which vector state is enabled; no vector code is live.
    unsafe { asm!("xsetbv", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32) };
}

/// Vector registers, MXCSR and debug address registers survive exits: the host does not touch them.
pub fn vector_state(_: &BootInfo) {
    cpu::write_cr4(cpu::read_cr4() | 3 << 9);
    cpu::write_cr0(cpu::read_cr0() & !(1 << 2 | 1 << 3) | 2);
    let pattern: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
    let mut out = [[0u64; 2]; 2];
    // SAFETY: loads and stores locals; CPUID and IN cause exits in between; RBX is saved around CPUID.
    unsafe {
        asm!(
            "movups xmm0, [{p}]",
            "movups xmm15, [{p}]",
            "mov r15, rbx",
            "xor eax, eax",
            "cpuid",
            "mov rbx, r15",
            "in al, 0x61",
            "movups [{o}], xmm0",
            "movups [{o} + 16], xmm15",
            p = in(reg) &pattern,
            o = in(reg) &mut out,
            out("rax") _, out("rcx") _, out("rdx") _, out("r15") _,
        );
    }
    check_eq!(out, [pattern, pattern], "XMM0 and XMM15");
    let address: u64;
    // SAFETY: DR0 is not armed in DR7.
    unsafe { asm!("mov dr0, {v}", "in al, 0x61", "mov {v}, dr0", v = inout(reg) 0x1234_5678u64 => address, out("al") _) };
    check_eq!(address, 0x1234_5678, "DR0");
}
