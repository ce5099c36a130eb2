//! Clocks other than the TSC, and waiting.

use super::{cpuid, inb, inl, outb, rdtsc};
use core::sync::atomic::{AtomicU64, Ordering};

pub const PIT_HZ: u64 = 1_193_182;
pub const PM_HZ: u64 = 3_579_545;
pub const PM_TIMER: u16 = 0x608;

static TSC_HZ: AtomicU64 = AtomicU64::new(0);

/// The TSC's frequency in Hz as the hypervisor's timing leaf says; without a hypervisor, measured against the PM timer.
pub fn tsc_hz() -> u64 {
    let mut hz = TSC_HZ.load(Ordering::Relaxed);
    if hz == 0 {
        hz = u64::from(cpuid(0x4000_0010, 0)[0]) * 1000;
        if cpuid(1, 0)[2] >> 31 == 0 || cpuid(0x4000_0000, 0)[0] < 0x4000_0010 || hz == 0 {
            let (pm0, tsc0) = (pm(), rdtsc());
            while pm().wrapping_sub(pm0) < 357_954 {}
            hz = (rdtsc() - tsc0) * PM_HZ / u64::from(pm().wrapping_sub(pm0));
        }
        TSC_HZ.store(hz, Ordering::Relaxed);
    }
    hz
}

pub fn pm() -> u32 {
    inl(PM_TIMER)
}

/// Programs PIT channel `channel` in `mode` with `count` (0 means 65536).
pub fn pit_set(channel: u8, mode: u8, count: u16) {
    outb(0x43, channel << 6 | 3 << 4 | mode << 1);
    outb(0x40 + u16::from(channel), count as u8);
    outb(0x40 + u16::from(channel), (count >> 8) as u8);
}

/// Latches and reads a channel's count.
pub fn pit_count(channel: u8) -> u16 {
    outb(0x43, channel << 6);
    let low = inb(0x40 + u16::from(channel));
    u16::from(inb(0x40 + u16::from(channel))) << 8 | u16::from(low)
}

/// Spins for `us` microseconds of TSC.
pub fn spin_us(us: u64) {
    let end = rdtsc() + us * tsc_hz() / 1_000_000;
    while rdtsc() < end {
        core::hint::spin_loop();
    }
}

/// Spins until `done` or until `us` microseconds have passed; true if done.
pub fn wait_for(us: u64, mut done: impl FnMut() -> bool) -> bool {
    let end = rdtsc() + us * tsc_hz() / 1_000_000;
    while !done() {
        if rdtsc() > end {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// True if `got` is within `percent` of `want`.
pub fn near(got: u64, want: u64, percent: u64) -> bool {
    got.abs_diff(want) * 100 <= want * percent
}
