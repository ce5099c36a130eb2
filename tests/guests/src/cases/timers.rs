//! Each timer against the TSC. The guest is not told how fast anything runs but by the architecture's own means.

use crate::rt::{
    BootInfo, apic, check, check_eq,
    cpu::{self, cpuid},
    inb, interrupts, on_interrupt, outb, pic, rdmsr, rdtsc,
    time::{self, PIT_HZ, PM_HZ, near, pit_count, pit_set, tsc_hz},
    wrmsr,
};

const VECTOR: u8 = 0x51;

fn ticks_of(hz: u64, tsc: u64) -> u64 {
    (u128::from(tsc) * u128::from(hz) / u128::from(tsc_hz())) as u64
}

/// PIT channel 2 in mode 0 counts at 1.193182 MHz and raises OUT2 at the end; channel 0 in mode 2 reloads (Intel 8254 data sheet).
pub fn pit(_: &BootInfo) {
    outb(0x61, inb(0x61) & !3 | 1);
    // The best of several: the machine below may take its CPU away for a while, which only ever adds.
    let mut best = u64::MAX;
    for _ in 0..10 {
        let start = rdtsc();
        pit_set(2, 0, 23_864);
        check_eq!(inb(0x61) & 0x20, 0, "OUT2 low while counting");
        check!(time::wait_for(1_000_000, || inb(0x61) & 0x20 != 0), "OUT2 rises");
        best = best.min(rdtsc() - start);
    }
    check!(near(ticks_of(PIT_HZ, best), 23_864, 2), "20 ms took {} PIT ticks", ticks_of(PIT_HZ, best));
    let counts_with_the_tsc = || {
        pit_set(0, 2, 60_000);
        let (before, a, start) = (rdtsc(), pit_count(0), rdtsc());
        time::spin_us(3000);
        let (end, b, after) = (rdtsc(), pit_count(0), rdtsc());
        check!(a <= 60_000 && b <= 60_000, "mode 2 stays within its count: {a}, {b}");
        let (low, high) = (ticks_of(PIT_HZ, end - start), ticks_of(PIT_HZ, after - before));
        a > b && (low.saturating_sub(2)..high + 2).contains(&u64::from(a - b))
    };
    check!((0..10).any(|_| counts_with_the_tsc()), "mode 2 counts down with the TSC");
}

/// PIT channel 0 interrupts through the 8259 at its rate, and does not after it has been stopped.
pub fn pit_irq(_: &BootInfo) {
    pic::init(0x20);
    on_interrupt(0x20, |_| pic::eoi(0));
    pit_set(0, 2, 1193);
    pic::unmask(0);
    cpu::sti();
    // Programming mode 2 sets OUT, which may itself be an edge: the rate is measured from the second interrupt on.
    check!(time::wait_for(1_000_000, || interrupts::count(0x20) >= 2), "interrupts come: {}", interrupts::count(0x20));
    let start = rdtsc();
    check!(time::wait_for(2_000_000, || interrupts::count(0x20) >= 52), "and go on: {}", interrupts::count(0x20));
    let elapsed = rdtsc() - start;
    cpu::cli();
    let want = tsc_hz() / 1000 * 50;
    // The second one may have been noticed late, so one period may be missing, and one more for rounding; never more.
    check!(elapsed >= want / 50 * 48, "50 interrupts of 1 ms took {elapsed} ticks, want {want}");
    pit_set(0, 0, 0xffff);
    pic::mask_all();
    interrupts::clear_count(0x20);
    cpu::sti();
    time::spin_us(5000);
    cpu::cli();
    check!(interrupts::count(0x20) <= 1, "none after masking");
}

/// The ACPI PM timer counts at 3.579545 MHz (ACPI 6.4, 4.8.3.3).
pub fn pm_timer(_: &BootInfo) {
    let (a, start) = (time::pm(), rdtsc());
    time::spin_us(20_000);
    let (b, end) = (time::pm(), rdtsc());
    let got = u64::from(b.wrapping_sub(a));
    check!(near(got, ticks_of(PM_HZ, end - start), 2), "{got} ticks, want {}", ticks_of(PM_HZ, end - start));
}

/// One-shot: counts down at 1 GHz over the divide value, fires once, then stays at zero (SDM vol. 3A, 11.5.4).
pub fn lapic_one_shot(_: &BootInfo) {
    apic::enable();
    on_interrupt(VECTOR, |_| apic::eoi());
    cpu::sti();
    for (divide, shift) in [(0xb, 0), (0, 1), (3, 4), (0xa, 7)] {
        interrupts::clear_count(VECTOR);
        apic::write(apic::reg::TIMER_DIVIDE, divide);
        apic::write(apic::reg::LVT_TIMER, VECTOR.into());
        let start = rdtsc();
        apic::write(apic::reg::TIMER_INITIAL, 8_000_000 >> shift);
        let current = apic::read(apic::reg::TIMER_CURRENT);
        check!(current > 0 && current <= 8_000_000 >> shift, "current count {current}");
        check!(time::wait_for(1_000_000, || interrupts::count(VECTOR) == 1), "it fires, divide {divide:#x}");
        let elapsed = rdtsc() - start;
        let want = tsc_hz() / 125;
        check!(elapsed >= want - want / 500, "8 ms took {elapsed} of {want} ticks, divide {divide:#x}");
        check_eq!(apic::read(apic::reg::TIMER_CURRENT), 0, "stays at zero");
        time::spin_us(10_000);
        check_eq!(interrupts::count(VECTOR), 1, "fires once");
    }
}

/// Periodic: fires at its rate without being written again; writing 0 stops it.
pub fn lapic_periodic(_: &BootInfo) {
    apic::enable();
    on_interrupt(VECTOR, |_| apic::eoi());
    apic::write(apic::reg::TIMER_DIVIDE, 0xb);
    apic::write(apic::reg::LVT_TIMER, 1 << 17 | u32::from(VECTOR));
    let start = rdtsc();
    apic::write(apic::reg::TIMER_INITIAL, 1_000_000);
    cpu::sti();
    check!(time::wait_for(5_000_000, || interrupts::count(VECTOR) >= 50), "interrupts come");
    let elapsed = rdtsc() - start;
    let want = tsc_hz() / 1000 * 50;
    check!(elapsed + elapsed / 100 >= want, "50 periods of 1 ms took {elapsed} ticks, want {want}");
    apic::write(apic::reg::TIMER_INITIAL, 0);
    let count = interrupts::count(VECTOR);
    time::spin_us(5000);
    check!(interrupts::count(VECTOR) <= count + 1, "stopped");
}

/// TSC deadline: fires when the TSC reaches the value, clears the MSR; a deadline in the past fires at once; 0 disarms (SDM vol. 3A, 11.5.4.1).
pub fn tsc_deadline(_: &BootInfo) {
    const DEADLINE: u32 = 0x6e0;
    apic::enable();
    on_interrupt(VECTOR, |_| apic::eoi());
    apic::write(apic::reg::LVT_TIMER, 2 << 17 | u32::from(VECTOR));
    cpu::sti();
    for round in 1..=10 {
        let far = rdtsc() + 100 * tsc_hz();
        wrmsr(DEADLINE, far);
        check_eq!(rdmsr(DEADLINE), far, "reads back while armed");
        let deadline = rdtsc() + tsc_hz() / 500;
        wrmsr(DEADLINE, deadline);
        check!(time::wait_for(1_000_000, || interrupts::count(VECTOR) == round), "it fires");
        check!(rdtsc() >= deadline, "not early");
        check_eq!(rdmsr(DEADLINE), 0, "cleared after it fired");
    }
    wrmsr(DEADLINE, 1);
    check!(time::wait_for(1_000_000, || interrupts::count(VECTOR) == 11), "a deadline in the past fires");
    let soon = tsc_hz() / 1000;
    cpu::cli();
    wrmsr(DEADLINE, rdtsc() + 100 * soon);
    wrmsr(DEADLINE, 0);
    cpu::sti();
    time::spin_us(150_000);
    check_eq!(interrupts::count(VECTOR), 11, "disarmed");
    apic::write(apic::reg::TIMER_INITIAL, 1000);
    check_eq!(apic::read(apic::reg::TIMER_CURRENT), 0, "the initial count is ignored in this mode");
}

/// With `tsc_mode = "always_emulate"`, RDTSC and RDTSCP exit, and the TSC has 1 GHz. All that has to do with it follows: its MSRs and the rate
/// in CPUID.
pub fn tsc_emulated(info: &BootInfo) {
    check_eq!(tsc_hz(), 1_000_000_000, "CPUID says 1 GHz");
    // The CPU's own RDTSC takes a few instructions; no exit is as short.
    let quickest = (0..20).map(|_| (rdtsc(), rdtsc())).map(|(a, b)| b - a).min();
    check!(quickest.is_some_and(|ticks| ticks > 100), "RDTSC exits: {quickest:?} ticks between two");
    if cpuid(0x8000_0001, 0)[3] & 1 << 27 != 0 {
        wrmsr(0xc000_0103, 0x1234_5678);
        let (before, (tsc, aux), after) = (rdtsc(), cpu::rdtscp(), rdtsc());
        check!(before < tsc && tsc < after, "RDTSCP {tsc} between {before} and {after}");
        check_eq!(aux, 0x1234_5678, "TSC_AUX");
        let quickest = (0..20).map(|_| (cpu::rdtscp().0, cpu::rdtscp().0)).map(|(a, b)| b - a).min();
        check!(quickest.is_some_and(|ticks| ticks > 100), "RDTSCP exits: {quickest:?} ticks between two");
    }
    super::cpu::tsc(info);
    // TSC and PM timer, over 5 ms.
    let (before, first, start) = (rdtsc(), time::pm(), rdtsc());
    time::spin_us(5000);
    let (end, last, after) = (rdtsc(), time::pm(), rdtsc());
    let ticks = u64::from(last.wrapping_sub(first));
    let (low, high) = (ticks_of(PM_HZ, end - start), ticks_of(PM_HZ, after - before));
    check!((low.saturating_sub(2)..high + 3).contains(&ticks), "{ticks} of the PM timer, {low} to {high} by the TSC");
}

/// The RTC's periodic interrupt through the 8259 (MC146818: 1024 Hz).
pub fn rtc_periodic(_: &BootInfo) {
    pic::init(0x20);
    on_interrupt(0x28, |_| {
        outb(0x70, 0xc);
        inb(0x71);
        pic::eoi(8);
    });
    outb(0x70, 0xa);
    outb(0x71, 0x26);
    outb(0x70, 0xb);
    let b = inb(0x71);
    outb(0x70, 0xb);
    outb(0x71, b | 0x40);
    outb(0x70, 0xc);
    inb(0x71);
    pic::unmask(8);
    let start = rdtsc();
    cpu::sti();
    check!(time::wait_for(5_000_000, || interrupts::count(0x28) >= 20), "interrupts come: {}", interrupts::count(0x28));
    let elapsed = rdtsc() - start;
    cpu::cli();
    let want = tsc_hz() * 19 / 1024;
    check!(elapsed >= want - want / 50, "20 interrupts took {elapsed} ticks, want at least {want}");
}

/// All clocks over the same quarter of a second agree within 1 in 1000: they derive from one time base.
pub fn agree(_: &BootInfo) {
    apic::enable();
    apic::write(apic::reg::TIMER_DIVIDE, 0xb);
    apic::write(apic::reg::LVT_TIMER, 1 << 16);
    outb(0x61, inb(0x61) & !3 | 1);
    pit_set(2, 2, 0);
    apic::write(apic::reg::TIMER_INITIAL, 0xffff_ffff);
    // A reading of a clock lies between two of the TSC; so does the span between two readings.
    type Reading = (u64, u64, u64);
    fn read(clock: impl Fn() -> u64) -> Reading {
        let before = rdtsc();
        let value = clock();
        (before, value, rdtsc())
    }
    fn within(name: &str, hz: u64, ticks: u64, first: Reading, last: Reading) {
        let (low, high) = (ticks_of(hz, last.0 - first.2), ticks_of(hz, last.2 - first.0));
        let slack = high / 1000 + 2;
        check!(low <= ticks + slack && ticks <= high + slack, "{name}: {ticks} ticks, want {low} to {high}");
    }
    let pm0 = read(|| time::pm().into());
    let lapic0 = read(|| apic::read(apic::reg::TIMER_CURRENT).into());
    let pit0 = read(|| pit_count(2).into());
    let (mut pit_ticks, mut last, mut lost) = (0u64, pit0, false);
    while rdtsc() - pm0.0 < tsc_hz() / 4 {
        let now = read(|| pit_count(2).into());
        pit_ticks += u64::from((last.1 as u16).wrapping_sub(now.1 as u16));
        // The count wraps every 55 ms: after a longer pause (the CPU was taken away) it says nothing.
        lost |= now.2 - last.0 > tsc_hz() / 20;
        last = now;
    }
    let pm1 = read(|| time::pm().into());
    let lapic1 = read(|| apic::read(apic::reg::TIMER_CURRENT).into());
    within("PM timer", PM_HZ, u64::from((pm1.1 as u32).wrapping_sub(pm0.1 as u32)), pm0, pm1);
    within("LAPIC timer", 1_000_000_000, lapic0.1 - lapic1.1, lapic0, lapic1);
    if !lost {
        within("PIT", PIT_HZ, pit_ticks, pit0, last);
    }
}
