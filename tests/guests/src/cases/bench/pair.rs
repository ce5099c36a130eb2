//! Operations of several processors.

use super::{Bench, ROUNDS, median};
use crate::rt::{
    apic, check_eq,
    cpu::{self, rdtsc},
    on_interrupt, println,
    smp::{self, FIXED, ipi},
};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

const PING: u8 = 0x64;
const PONG: u8 = 0x65;

static STOP: AtomicBool = AtomicBool::new(false);
static PONGS: AtomicU32 = AtomicU32::new(0);
static ARRIVED: AtomicU64 = AtomicU64::new(0);

fn processors(bench: &Bench<'_>, default: u32) -> usize {
    let cpus = bench.number("cpus", default) as usize;
    smp::start_first(cpus);
    cpus
}

/// Two processors that wake each other from HLT by an IPI: the round trip is two IPIs, two wake-ups, and where both share one CPU two
/// changes from one to the other.
pub fn ping_pong(bench: &Bench<'_>) {
    processors(bench, 2);
    on_interrupt(PING, |_| {
        ARRIVED.store(rdtsc(), Ordering::SeqCst);
        ipi(0, FIXED | u32::from(PONG));
        apic::eoi();
    });
    on_interrupt(PONG, |_| {
        PONGS.fetch_add(1, Ordering::SeqCst);
        apic::eoi();
    });
    let round = |wait: fn(u32)| {
        let before = PONGS.load(Ordering::SeqCst);
        ipi(1, FIXED | u32::from(PING));
        wait(before);
    };
    for (name, listener, wait) in [
        ("ipi-round-trip-halted", halted as fn(usize), wait_halted as fn(u32)),
        ("ipi-round-trip-waiting", waiting as fn(usize), wait_waiting as fn(u32)),
    ] {
        STOP.store(false, Ordering::SeqCst);
        smp::run(1, listener);
        let mut one_way = [0; ROUNDS];
        let mut samples = [0; ROUNDS];
        for (sample, one_way) in samples.iter_mut().zip(&mut one_way) {
            let start = rdtsc();
            round(wait);
            *sample = rdtsc() - start;
            *one_way = ARRIVED.load(Ordering::SeqCst).saturating_sub(start);
        }
        bench.report(name, &mut samples);
        println!("bench {name}-one-way {}", median(&mut one_way));
        STOP.store(true, Ordering::SeqCst);
        round(wait);
        smp::wait(1);
    }
}

fn halted(_: usize) {
    while !STOP.load(Ordering::SeqCst) {
        cpu::sti_hlt();
    }
}

fn waiting(_: usize) {
    cpu::sti();
    while !STOP.load(Ordering::SeqCst) {
        core::hint::spin_loop();
    }
    cpu::cli();
}

fn wait_halted(before: u32) {
    while PONGS.load(Ordering::SeqCst) == before {
        cpu::sti_hlt();
    }
}

fn wait_waiting(before: u32) {
    cpu::sti();
    while PONGS.load(Ordering::SeqCst) == before {
        core::hint::spin_loop();
    }
    cpu::cli();
}

static TICKET: AtomicU32 = AtomicU32::new(0);
static SERVING: AtomicU32 = AtomicU32::new(0);
static READY: AtomicU32 = AtomicU32::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);
const TURNS: u32 = 200;

/// A ticket lock, which is the worst that can be done to virtual processors: only one of those that wait may go on.
fn take_turns(_: usize) {
    READY.fetch_add(1, Ordering::SeqCst);
    while !STOP.load(Ordering::SeqCst) {
        core::hint::spin_loop();
    }
    for _ in 0..TURNS {
        let ticket = TICKET.fetch_add(1, Ordering::SeqCst);
        while SERVING.load(Ordering::SeqCst) != ticket {
            core::hint::spin_loop();
        }
        // A little work under the lock.
        for _ in 0..100 {
            COUNT.store(COUNT.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        SERVING.store(ticket.wrapping_add(1), Ordering::SeqCst);
    }
}

/// Ticks for each time that one of the processors has the lock.
pub fn lock(bench: &Bench<'_>) {
    let cpus = processors(bench, 8);
    STOP.store(false, Ordering::SeqCst);
    for cpu in 1..cpus {
        smp::run(cpu, take_turns);
    }
    while READY.load(Ordering::SeqCst) as usize != cpus - 1 {
        core::hint::spin_loop();
    }
    let start = rdtsc();
    STOP.store(true, Ordering::SeqCst);
    take_turns(0);
    (1..cpus).for_each(smp::wait);
    let turns = u64::from(TURNS) * cpus as u64;
    println!("bench lock-turn {}", (rdtsc() - start) / turns);
    check_eq!(COUNT.load(Ordering::SeqCst), turns * 100, "increments under the lock");
}
