//! Whether clocks keep time while the guest has its CPUs for a part of the time only.

use crate::rt::{
    BootInfo, apic, check,
    cpu::{self, sti},
    inb, interrupts, on_interrupt, outb, pic, println, rdtsc, smp,
    time::{self, PIT_HZ, PM_HZ, pit_set, tsc_hz},
};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

const PIT_VECTOR: u8 = 0x20;
const RTC_VECTOR: u8 = 0x28;
/// Of the PIT, about a thousandth of a second.
const PIT_COUNT: u16 = 1193;
const RTC_HZ: u64 = 1024;
/// How far a clock may be off at the end, in parts of a million.
const PPM: u64 = 50;
/// How long the guest looks on at the start and at the end: several of its turns. In ms.
const WINDOW: u64 = 250;

/// The latest TSC and PM timer that any processor has read.
static LATEST_TSC: AtomicU64 = AtomicU64::new(0);
static LATEST_PM: AtomicU32 = AtomicU32::new(0);
static OVER: AtomicBool = AtomicBool::new(false);

/// No processor reads less than another has read before.
fn look() {
    let before = LATEST_TSC.load(Ordering::SeqCst);
    let now = rdtsc();
    check!(now >= before, "the TSC of processor {} is {now}, after {before}", smp::this_cpu());
    LATEST_TSC.fetch_max(now, Ordering::SeqCst);
    let before = LATEST_PM.load(Ordering::SeqCst);
    let now = time::pm();
    let later = |now: u32, before: u32| now.wrapping_sub(before) < 1 << 31;
    check!(later(now, before), "the PM timer of processor {} is {now}, after {before}", smp::this_cpu());
    let _ = LATEST_PM.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |latest| later(now, latest).then_some(now));
}

/// A clock that the guest makes of a timer's interrupts.
struct Ticks {
    name: &'static str,
    vector: u8,
    /// Interrupts in `seconds`.
    per: (u64, u64),
}

const TICKS: [Ticks; 2] = [
    Ticks { name: "PIT", vector: PIT_VECTOR, per: (PIT_HZ, PIT_COUNT as u64) },
    Ticks { name: "RTC", vector: RTC_VECTOR, per: (RTC_HZ, 1) },
];

impl Ticks {
    /// What this clock shows, in ns.
    fn ns(&self) -> i64 {
        (u128::from(interrupts::count(self.vector)) * 1_000_000_000 * u128::from(self.per.1) / u128::from(self.per.0)) as i64
    }
}

/// How far each clock is ahead of the TSC since `start`, in ns, at its best within the window: when nothing was owed.
fn leads(start: u64) -> [i64; TICKS.len()] {
    let mut best = [i64::MIN; TICKS.len()];
    let end = rdtsc() + tsc_hz() / 1000 * WINDOW;
    while rdtsc() < end {
        for (best, ticks) in best.iter_mut().zip(&TICKS) {
            // An interrupt between the two readings makes the clock look late, never early.
            let shown = ticks.ns();
            let elapsed = (u128::from(rdtsc() - start) * 1_000_000_000 / u128::from(tsc_hz())) as i64;
            *best = (*best).max(shown - elapsed);
        }
        look();
    }
    best
}

/// For `seconds=`: counts the PIT's and the RTC's interrupts, both of which come about a thousand times a second, and compares them and the PM timer
/// with the TSC. Meanwhile the other processors look whether time goes back for anybody.
pub fn keeps_time(boot: &BootInfo) {
    let seconds: u64 = boot.option("seconds").and_then(|s| s.parse().ok()).unwrap_or(2);
    apic::enable();
    let cpus = smp::start_all();
    for cpu in 1..cpus {
        smp::run(cpu, |_| {
            while !OVER.load(Ordering::SeqCst) {
                look();
            }
        });
    }
    pic::init(PIT_VECTOR);
    on_interrupt(PIT_VECTOR, |_| pic::eoi(0));
    on_interrupt(RTC_VECTOR, |_| {
        outb(0x70, 0xc);
        inb(0x71);
        pic::eoi(8);
    });
    pit_set(0, 2, PIT_COUNT);
    outb(0x70, 0xa);
    outb(0x71, 0x26);
    outb(0x70, 0xb);
    let b = inb(0x71);
    outb(0x70, 0xb);
    outb(0x71, b | 0x40);
    pic::unmask(0);
    pic::unmask(8);
    sti();
    let (start, pm_start) = (rdtsc(), time::pm());
    let pm_begun = rdtsc();
    let first = leads(start);
    while rdtsc() - start < seconds * tsc_hz() {
        look();
    }
    let last = leads(start);
    cpu::cli();
    let allowed = (seconds * PPM * 1000).max(2_000_000) as i64;
    for (ticks, (first, last)) in TICKS.iter().zip(first.into_iter().zip(last)) {
        let drift = last - first;
        println!("drift {} {} us", ticks.name, drift / 1000);
        check!(drift.abs() <= allowed, "{} is off by {drift} ns after {seconds} s", ticks.name);
    }
    let pm_ending = rdtsc();
    let (pm_end, end) = (time::pm(), rdtsc());
    let pm = u64::from(pm_end.wrapping_sub(pm_start));
    let of = |tsc: u64| (u128::from(tsc) * u128::from(PM_HZ) / u128::from(tsc_hz())) as u64;
    let slack = of(end - start) * PPM / 1_000_000 + 2;
    let (least, most) = (of(pm_ending - pm_begun).saturating_sub(slack), of(end - start) + slack);
    check!((least..=most).contains(&pm), "the PM timer has counted {pm}, want {least} to {most}");
    OVER.store(true, Ordering::SeqCst);
    for cpu in 1..cpus {
        smp::wait(cpu);
    }
}
