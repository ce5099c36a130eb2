//! Guests that do not end by themselves: what the hypervisor's operator does to them, or they to others, is the test.

use crate::rt::{
    BootInfo, check_eq,
    cpu::{self, cli, hlt, sti_hlt},
    inb, println, rdtsc,
    time::tsc_hz,
};
use core::hint::black_box;

/// Iterations of a unit of work.
const UNIT: u32 = 1000;

/// Works for ever, and prints `progress N UNITS GAP` every `ms=` milliseconds of its own clock: the units done in the Nth such interval, and
/// the longest time between two units in it, in microseconds. What is typed is repeated.
pub fn progress(boot: &BootInfo) {
    let ms: u64 = boot.option("ms").and_then(|ms| ms.parse().ok()).unwrap_or(100);
    let per_us = tsc_hz() / 1_000_000;
    let interval = tsc_hz() / 1000 * ms;
    println!("working");
    let mut start = rdtsc();
    for n in 1u64.. {
        let (mut units, mut gap, mut last) = (0u64, 0, start);
        while last - start < interval {
            for step in 0..UNIT {
                black_box(step);
            }
            units += 1;
            let now = rdtsc();
            gap = gap.max(now - last);
            last = now;
        }
        // The interval is as long as it was: one that ends late, because others had the CPU, has not had less for it.
        println!("progress {n} {} {}", units * interval / (last - start), gap / per_us);
        while inb(0x3fd) & 1 != 0 {
            println!("typed {}", char::from(inb(0x3f8)));
        }
        start = rdtsc();
    }
}

/// Halts for ever without any timer or other source of interrupts.
pub fn idle(_: &BootInfo) {
    println!("idle");
    loop {
        sti_hlt();
        println!("woken");
    }
}

/// Takes all the CPU time that it gets, with interrupts off.
pub fn hog(_: &BootInfo) {
    println!("busy");
    cli();
    loop {
        black_box(0);
    }
}

/// Every 64 bits of RAM get this XOR their address: no page looks like another.
const PATTERN: u64 = 0xa5a5_5a5a_c3c3_3c3c;

/// Calls `each` with the start and end of every range of RAM that neither the image nor the loader's information is in.
fn for_free_ram(boot: &BootInfo, mut each: impl FnMut(u64, u64)) {
    unsafe extern "C" {
        static image_end: u8;
    }
    const PAGE: u64 = 0x1000;
    let image = 0x10_0000..(&raw const image_end) as u64;
    let info = boot.address() & !(PAGE - 1)..(boot.address() & !(PAGE - 1)) + 2 * PAGE;
    let (length, map) = (boot.word(11), boot.word(12));
    let mut at = map;
    while at < map + length {
        let entry = u64::from(at);
        let (base, bytes, kind) = (cpu::read64(entry + 4), cpu::read64(entry + 12), cpu::read32(entry + 20));
        at += cpu::read32(entry) + 4;
        if kind != 1 {
            continue;
        }
        // Rust will not have a reference to address zero; the page is left out.
        let (mut start, end) = (base.max(PAGE), base + bytes);
        let taken = if image.start < info.start { [image.clone(), info.clone()] } else { [info.clone(), image.clone()] };
        for range in taken {
            if range.start < end && range.end > start {
                if range.start > start {
                    each(start, range.start);
                }
                start = range.end;
            }
        }
        if start < end {
            each(start, end);
        }
    }
}

/// Fills its memory with a pattern, says so, and waits for its end.
pub fn memory_fill(boot: &BootInfo) {
    let mut bytes = 0;
    for_free_ram(boot, |start, end| {
        bytes += end - start;
        for address in (start..end).step_by(8) {
            cpu::write64(address, PATTERN ^ address);
        }
    });
    println!("filled {bytes}");
    loop {
        cli();
        hlt();
    }
}

/// All memory that a guest starts with is zero, but for what its loader put there, also if other guests had it before.
pub fn memory_zero(boot: &BootInfo) {
    let mut bytes = 0;
    for_free_ram(boot, |start, end| {
        bytes += end - start;
        for address in (start..end).step_by(8) {
            let value = cpu::read64(address);
            if value != 0 {
                check_eq!(value, 0, "memory at {address:#x}");
            }
        }
    });
    println!("zero {bytes}");
}
