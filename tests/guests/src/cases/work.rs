//! A guest that does nothing but work, and says how much it got done: what the hypervisor's scheduler gives it.

use crate::rt::{BootInfo, check, println, rdtsc, time::tsc_hz};
use core::hint::black_box;

/// Works for `ms=` milliseconds of its own clock, and prints `work N UNITS` after each of `marks=` equal parts of it: the units done so far.
pub fn work(boot: &BootInfo) {
    let ms: u64 = boot.option("ms").and_then(|ms| ms.parse().ok()).unwrap_or(100);
    let marks: u64 = boot.option("marks").and_then(|marks| marks.parse().ok()).unwrap_or(4).max(1);
    let part = tsc_hz() / 1000 * ms / marks;
    let start = rdtsc();
    let mut units = 0u64;
    for n in 1..=marks {
        while rdtsc() - start < n * part {
            for step in 0..100 {
                black_box(step);
            }
            units += 1;
        }
        println!("work {n} {units}");
    }
    check!(units > 0, "no work done");
}
