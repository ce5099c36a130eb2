//! What Hyper-V offers to guests that know it (Hypervisor Top-Level Functional Specification 6.0b), with `viridian = 1`.

use crate::rt::{
    BootInfo, catch_msr_read, catch_msr_write, check, check_eq,
    cpu::{read32, read64},
    cpuid,
    interrupts::Caught,
    rdmsr, rdtsc, time, wrmsr,
};
use core::arch::asm;

const GUEST_OS_ID: u32 = 0x4000_0000;
const HYPERCALL: u32 = 0x4000_0001;
const VP_INDEX: u32 = 0x4000_0002;
const TIME_REF_COUNT: u32 = 0x4000_0020;
const REFERENCE_TSC: u32 = 0x4000_0021;
const TSC_FREQUENCY: u32 = 0x4000_0022;
const APIC_FREQUENCY: u32 = 0x4000_0023;
const CRASH_P0: u32 = 0x4000_0100;
const CRASH_CTL: u32 = 0x4000_0105;

/// Free RAM below 640 KiB.
const PAGE: u64 = 0x9_2000;
const TIME_PAGE: u64 = 0x9_3000;
/// Some system's identity.
const IDENTITY: u64 = 1 << 63 | 0x1234;

fn is_gp<T>(result: Result<T, Caught>) -> bool {
    matches!(result, Err(Caught { vector: 13, error: 0, .. }))
}

/// By the instructions in the hypercall page.
fn hypercall(input: u64) -> u64 {
    let result: u64;
    // SAFETY: the page holds the hypercall instruction and RET; the calls made here change nothing but RAX.
    unsafe { asm!("call {page}", page = in(reg) PAGE, in("rcx") input, in("rdx") 0, in("r8") 0, out("rax") result) };
    result
}

/// The reference time by the page beside the TSC.
fn reference_time() -> u64 {
    let (scale, offset) = (read64(TIME_PAGE + 8), read64(TIME_PAGE + 16));
    ((u128::from(rdtsc()) * u128::from(scale)) >> 64) as u64 + offset
}

pub fn offered(_: &BootInfo) {
    let base = cpuid(0x4000_0000, 0);
    check!(base[0] >= 0x4000_0005, "the highest leaf is {:#x}", base[0]);
    check_eq!([base[1], base[2], base[3]], [0x7263_694d, 0x666f_736f, 0x7648_2074], "Microsoft Hv");
    check_eq!(cpuid(0x4000_0001, 0)[0], 0x3123_7648, "Hv#1");
    let [privileges, _, _, features] = cpuid(0x4000_0003, 0);
    check_eq!(privileges, 1 << 1 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 11, "privileges");
    check_eq!(features, 1 << 8 | 1 << 10, "features");
    check!(cpuid(0x4000_0004, 0)[0] & 1 << 5 != 0, "relaxed timing");
    // What was here comes next, with its own leaves.
    let kvm = cpuid(0x4000_0100, 0);
    check_eq!([kvm[1], kvm[2], kvm[3]], [0x4b4d_564b, 0x564b_4d56, 0x4d], "KVM");
    check_eq!(kvm[0], 0x4000_0110, "KVM's highest leaf");
    check!(cpuid(0x4000_0101, 0)[0] & 1 << 3 != 0, "KVM's clock");
    check_eq!(cpuid(0x4000_0200, 0)[1], 0x6b6c_7542, "Bulkhead");

    check_eq!(rdmsr(VP_INDEX), 0, "the boot processor");
    check!(is_gp(catch_msr_write(VP_INDEX, 1)), "it cannot be written");
    for absent in [0x4000_0003, 0x4000_0010, 0x4000_0070, 0x4000_0080, 0x4000_00b0, 0x4000_01ff] {
        check!(is_gp(catch_msr_read(absent)), "MSR {absent:#x} is not there");
        check!(is_gp(catch_msr_write(absent, 0)), "MSR {absent:#x} cannot be written");
    }

    // No identity, no hypercalls.
    wrmsr(HYPERCALL, PAGE | 1);
    check_eq!(rdmsr(HYPERCALL), 0, "the page is refused");
    wrmsr(GUEST_OS_ID, IDENTITY);
    check_eq!(rdmsr(GUEST_OS_ID), IDENTITY, "identity");
    check!(is_gp(catch_msr_write(HYPERCALL, 0xf_ffff_f000 | 1)), "a page that is not RAM");
    wrmsr(HYPERCALL, PAGE | 1);
    check_eq!(rdmsr(HYPERCALL), PAGE | 1, "the page is set");
    check_eq!(hypercall(8), 0, "a long spin wait");
    check_eq!(hypercall(0xffff), 2, "an invalid code");
    wrmsr(HYPERCALL, PAGE | 3);
    wrmsr(HYPERCALL, 0);
    check_eq!(rdmsr(HYPERCALL), PAGE | 3, "locked");

    // In kHz by KVM's timing leaf; what this guest has measured is near.
    let hz = rdmsr(TSC_FREQUENCY);
    check_eq!(hz / 1000, u64::from(cpuid(0x4000_0110, 0)[0]), "frequency of the TSC");
    check!(time::near(hz, time::tsc_hz(), 1), "{hz} Hz, measured {}", time::tsc_hz());
    check_eq!(rdmsr(APIC_FREQUENCY), 1_000_000_000, "frequency of the local APICs' timers");

    wrmsr(REFERENCE_TSC, TIME_PAGE | 1);
    check_eq!(rdmsr(REFERENCE_TSC), TIME_PAGE | 1, "reference TSC page");
    check!(read32(TIME_PAGE) != 0, "the page is valid");
    for _ in 0..100 {
        let (before, counter, after) = (reference_time(), rdmsr(TIME_REF_COUNT), reference_time());
        check!(before <= counter && counter <= after, "the counter's {counter} between the page's {before} and {after}");
    }
    let (start, tsc) = (rdmsr(TIME_REF_COUNT), rdtsc());
    time::spin_us(10_000);
    let (end, later) = (rdmsr(TIME_REF_COUNT), rdtsc());
    let by_tsc = (later - tsc) * 10_000_000 / time::tsc_hz();
    check!((end - start).abs_diff(by_tsc) <= by_tsc / 100 + 100, "{} units of 100 ns, by the TSC {by_tsc}", end - start);
    check!(is_gp(catch_msr_write(TIME_REF_COUNT, 0)), "the counter cannot be written");

    // Shows in the log, and the guest goes on.
    check_eq!(rdmsr(CRASH_CTL), 3 << 62, "reports of crashes, with text");
    for n in 0..5 {
        wrmsr(CRASH_P0 + n, u64::from(n) + 7);
        check_eq!(rdmsr(CRASH_P0 + n), u64::from(n) + 7, "parameter {n}");
    }
    wrmsr(CRASH_CTL, 1 << 63);
}
