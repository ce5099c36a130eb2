//! Operations of several processors.

use super::{Bench, ROUNDS, median, ticks};
use crate::rt::{
    apic,
    apic::reg,
    check_eq, cpu, on_interrupt, println,
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
        ARRIVED.store(ticks(), Ordering::SeqCst);
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
            let start = ticks();
            round(wait);
            *sample = ticks() - start;
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
/// Enough to take several of the hypervisor's time slices.
const TURNS: u32 = 8_000;

/// A ticket lock, which is the worst that can be done to virtual processors: only one of those that wait may go on.
fn take_turns(_: usize) {
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

/// Sleeps until all are woken: each then starts with a whole turn of the CPU before it, whatever was before.
fn wait_and_take_turns(cpu: usize) {
    READY.fetch_add(1, Ordering::SeqCst);
    halted(cpu);
    take_turns(cpu);
}

/// Ticks for each time that one of the processors has the lock.
pub fn lock(bench: &Bench<'_>) {
    let cpus = processors(bench, 8);
    STOP.store(false, Ordering::SeqCst);
    on_interrupt(PING, |_| apic::eoi());
    for cpu in 1..cpus {
        smp::run(cpu, wait_and_take_turns);
    }
    // 20 ms are long enough for all to go to sleep, as this one does.
    on_interrupt(PONG, |_| apic::eoi());
    apic::write(reg::TIMER_DIVIDE, 0xb);
    apic::write(reg::LVT_TIMER, PONG.into());
    apic::write(reg::TIMER_INITIAL, 20_000_000);
    cpu::sti_hlt();
    check_eq!(READY.load(Ordering::SeqCst) as usize, cpus - 1, "processors that wait");
    let start = ticks();
    STOP.store(true, Ordering::SeqCst);
    (1..cpus).for_each(|cpu| ipi(cpu as u32, FIXED | u32::from(PING)));
    take_turns(0);
    (1..cpus).for_each(smp::wait);
    let turns = u64::from(TURNS) * cpus as u64;
    println!("bench lock-turn {}", (ticks() - start) / turns);
    check_eq!(COUNT.load(Ordering::SeqCst), turns * 100, "increments under the lock");
}
