//! A guest that does nothing but work, and says how much it got done: what the hypervisor's scheduler gives it.

use crate::rt::{BootInfo, check, println, rdtsc, time::tsc_hz};
use core::hint::black_box;

/// Longer than anything but other guests keeps the CPU away, in us.
const GAP: u64 = 500;
/// Longer than a guest has the CPU while others want it, in us.
const LONGEST_RUN: u64 = 25_000;

/// Works for `ms=` milliseconds of its own clock, and prints `work N UNITS US` after each of `marks=` equal parts of it: the units done so far, and
/// the time so far in microseconds. It does so when it next gets the CPU back from others, if there are any: between two marks there are then
/// whole rounds of turns, and what it got done does not depend on where in a round the clock was read.
pub fn work(boot: &BootInfo) {
    let ms: u64 = boot.option("ms").and_then(|ms| ms.parse().ok()).unwrap_or(100);
    let marks: u64 = boot.option("marks").and_then(|marks| marks.parse().ok()).unwrap_or(4).max(1);
    let part = tsc_hz() / 1000 * ms / marks;
    let start = rdtsc();
    let per_us = (tsc_hz() / 1_000_000).max(1);
    let mut units = 0u64;
    for n in 1..=marks {
        let mut last = rdtsc() - start;
        loop {
            for step in 0..100 {
                black_box(step);
            }
            units += 1;
            let now = rdtsc() - start;
            let back = now - last > GAP * per_us;
            last = now;
            if now >= n * part && back || now >= n * part + LONGEST_RUN * per_us {
                break;
            }
        }
        println!("work {n} {units} {}", last / per_us);
    }
    check!(units > 0, "no work done");
}
