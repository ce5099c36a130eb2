//! The timer: counting, modes and their changes, TSC deadline.

use super::*;
use crate::MissedTicks;
use crate::lapic::timer::MIN_PERIOD;
use x86defs::Rate;

const VECTOR: u8 = 0xec;
const ONE_SHOT: u32 = VECTOR as u32;
const PERIODIC: u32 = 0x2_00ec;
const TSC_DEADLINE: u32 = 0x4_00ec;
const DIVIDE_BY_1: u32 = 0xb;
const DIVIDE_BY_16: u32 = 0x3;

fn count(apic: &LocalApic, now: u64) -> u32 {
    apic.mmio_read(Time(now), reg::TMCCT.into(), Width::Dword) as u32
}

fn timer(entry: u32, divide: u32) -> LocalApic {
    let apic = xapic(0);
    write(&apic, reg::LVT_TIMER, entry);
    write(&apic, reg::TDCR, divide);
    apic
}

fn start(apic: &LocalApic, now: u64, initial: u32) {
    assert_eq!(write_at(apic, Time(now), reg::TMICT, initial), Effect::Timer);
}

#[test]
fn every_divisor() {
    for (tdcr, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
        let apic = timer(ONE_SHOT, tdcr);
        start(&apic, 5_000, 1_000);
        assert_eq!(apic.deadline(), Some(Time(5_000 + 1_000 * divisor)), "{tdcr}");
        assert_eq!(count(&apic, 5_000 + 300 * divisor), 700);
    }
}

#[test]
fn one_shot_counts_to_zero_and_interrupts_once() {
    let apic = timer(ONE_SHOT, DIVIDE_BY_16);
    start(&apic, 0, 100);
    assert_eq!((count(&apic, 0), count(&apic, 15), count(&apic, 16), count(&apic, 1_599)), (100, 100, 99, 1));
    assert_eq!(count(&apic, 1_600), 0);
    assert!(!apic.advance(Time(1_599)));
    assert!(apic.advance(Time(1_600)));
    assert_eq!(apic.deadline(), None);
    take(&apic, VECTOR);
    write(&apic, reg::EOI, 0);
    assert!(!apic.advance(Time(10_000)));
    assert_eq!((apic.pending(), count(&apic, 10_000)), (None, 0));
    assert_eq!(read(&apic, reg::TMICT), 100);
}

#[test]
fn a_zero_initial_count_stops_the_timer() {
    for entry in [ONE_SHOT, PERIODIC] {
        let apic = timer(entry, DIVIDE_BY_1);
        start(&apic, 0, 50_000);
        start(&apic, 10, 0);
        assert_eq!((apic.deadline(), count(&apic, 11)), (None, 0));
        assert!(!apic.advance(Time(1_000_000)));
    }
}

#[test]
fn periodic_keeps_its_beat_however_late_it_is_noticed() {
    let apic = timer(PERIODIC, DIVIDE_BY_1);
    start(&apic, 0, 1_000_000);
    assert_eq!(count(&apic, 250_000), 750_000);
    assert!(apic.advance(Time(1_000_007)));
    assert_eq!(apic.deadline(), Some(Time(2_000_000)));
    // Five periods and a bit later: one interrupt, and the next one is on the beat.
    assert!(!apic.advance(Time(6_200_000)), "the first is still pending");
    assert_eq!(apic.deadline(), Some(Time(7_000_000)));
    take(&apic, VECTOR);
    write(&apic, reg::EOI, 0);
    assert_eq!(apic.pending(), None);
    assert_eq!((count(&apic, 6_999_999), count(&apic, 7_000_000), count(&apic, 7_000_001)), (1, 1_000_000, 999_999));
    assert_eq!(count(&apic, 99_999_990), 10);
}

#[test]
fn missed_beats_are_made_good() {
    let apic = timer(PERIODIC, DIVIDE_BY_1);
    apic.set_missed_ticks(MissedTicks::Deliver);
    start(&apic, 0, 1_000_000);
    let mut now = 0;
    let mut interrupts = 0;
    let mut serve = |until: u64, takes: bool| {
        while let Some(next) = apic.deadline().filter(|next| next.0 <= until) {
            assert!(next.0 > now, "{now} {next:?}");
            now = next.0;
            apic.advance(next);
            assert_eq!(count(&apic, now), 1_000_000 - (now % 1_000_000) as u32, "the count keeps its beat");
            if takes && apic.pending().is_some() {
                take(&apic, VECTOR);
                write(&apic, reg::EOI, 0);
                interrupts += 1;
            }
        }
        interrupts
    };
    assert_eq!(serve(3_500_000, true), 3);
    // Away for ten beats, of which one waits.
    assert_eq!(serve(13_500_000, false), 3);
    take(&apic, VECTOR);
    write(&apic, reg::EOI, 0);
    assert_eq!(serve(20_500_000, true), 19, "with the one that waited, one for every beat");
    assert_eq!(serve(30_500_000, true), 29, "and no more than that");
    // The host is late by five beats.
    apic.advance(Time(35_500_000));
    take(&apic, VECTOR);
    write(&apic, reg::EOI, 0);
    assert_eq!(serve(40_500_000, true), 38);
    // Away for very long: the guest was stopped, and starts anew.
    apic.advance(Time(20_000_400_000));
    take(&apic, VECTOR);
    write(&apic, reg::EOI, 0);
    assert_eq!(apic.deadline(), Some(Time(20_001_000_000)));
}

/// In one-shot mode the count goes on to zero, also if the next interrupt would have been one that is made good.
#[test]
fn a_change_to_one_shot_keeps_the_count_while_beats_are_owed() {
    let apic = timer(PERIODIC, DIVIDE_BY_1);
    apic.set_missed_ticks(MissedTicks::Deliver);
    start(&apic, 0, 1_000_000);
    apic.advance(Time(5_100_000));
    assert_eq!(apic.deadline(), Some(Time(5_225_000)));
    write_at(&apic, Time(5_150_000), reg::LVT_TIMER, ONE_SHOT);
    assert_eq!((count(&apic, 5_150_000), apic.deadline()), (850_000, Some(Time(6_000_000))));
}

#[test]
fn periodic_beats_faster_than_the_limit_are_thinned_out() {
    let apic = timer(PERIODIC, DIVIDE_BY_1);
    start(&apic, 0, 7);
    let mut now = 7;
    for _ in 0..100 {
        assert!(apic.advance(Time(now)));
        let next = apic.deadline().unwrap().0;
        assert_eq!(next % 7, 0);
        assert!((MIN_PERIOD.0 - 7..=MIN_PERIOD.0 + 7).contains(&(next - now)), "{now} {next}");
        assert_eq!(count(&apic, now + 2), 5);
        take(&apic, VECTOR);
        write(&apic, reg::EOI, 0);
        now = next;
    }
}

#[test]
fn a_masked_timer_counts_and_forgets() {
    let apic = timer(PERIODIC | 1 << 16, DIVIDE_BY_1);
    start(&apic, 0, 100_000);
    assert!(!apic.advance(Time(100_000)));
    write_at(&apic, Time(250_000), reg::LVT_TIMER, PERIODIC);
    assert_eq!((apic.pending(), apic.deadline()), (None, Some(Time(300_000))));
    assert!(apic.advance(Time(300_000)));
}

#[test]
fn what_was_due_before_a_write_still_comes() {
    for register in [reg::TMICT, reg::LVT_TIMER, reg::TDCR] {
        let apic = timer(ONE_SHOT, DIVIDE_BY_1);
        start(&apic, 0, 1_000);
        write_at(&apic, Time(1_001), register, 0x1_0000);
        take(&apic, VECTOR);
    }
}

#[test]
fn one_shot_and_periodic_change_in_flight() {
    let apic = timer(ONE_SHOT, DIVIDE_BY_1);
    start(&apic, 0, 1_000_000);
    write_at(&apic, Time(600_000), reg::LVT_TIMER, PERIODIC);
    assert_eq!((read(&apic, reg::TMICT), count(&apic, 600_000)), (1_000_000, 400_000));
    assert!(apic.advance(Time(1_000_000)));
    assert_eq!(count(&apic, 1_000_000), 1_000_000);
    write_at(&apic, Time(1_700_000), reg::LVT_TIMER, ONE_SHOT);
    assert_eq!(count(&apic, 1_700_000), 300_000);
    apic.advance(Time(2_000_000));
    assert_eq!((count(&apic, 2_000_000), apic.deadline()), (0, None));
    // An expired count does not start again by a change of mode.
    write_at(&apic, Time(2_100_000), reg::LVT_TIMER, PERIODIC);
    assert_eq!((count(&apic, 2_100_000), apic.deadline()), (0, None));
}

#[test]
fn to_and_from_tsc_deadline_mode_disarms() {
    let rate = Rate::new(1, 1);
    let apic = timer(ONE_SHOT, DIVIDE_BY_1);
    start(&apic, 0, 1_000_000);
    assert_eq!(apic.set_tsc_deadline(Time(1), 1, rate, 50), Effect::None, "not in this mode");
    assert_eq!(apic.tsc_deadline(), 0);
    write(&apic, reg::LVT_TIMER, TSC_DEADLINE);
    assert_eq!((apic.deadline(), read(&apic, reg::TMICT), count(&apic, 10)), (None, 0, 0));
    assert_eq!(write(&apic, reg::TMICT, 500), Effect::None);
    assert_eq!(read(&apic, reg::TMICT), 0, "writes are ignored");
    apic.set_tsc_deadline(NOW, NOW.0, rate, 5_000);
    assert_eq!(apic.tsc_deadline(), 5_000);
    write(&apic, reg::LVT_TIMER, PERIODIC);
    assert_eq!((apic.deadline(), apic.tsc_deadline()), (None, 0));
    write(&apic, reg::LVT_TIMER, TSC_DEADLINE);
    assert_eq!((apic.deadline(), apic.tsc_deadline()), (None, 0));
}

#[test]
fn tsc_deadline_is_never_early_and_hardly_late() {
    for hz in [100_000_000u64, 1_000_000_000, 2_445_406_789, 5_300_000_000] {
        let to_ns = Rate::new(hz, 1_000_000_000);
        let apic = timer(TSC_DEADLINE, 0);
        for (tsc, deadline) in [(0u64, 1u64), (12_345, 12_346), (hz * 3, hz * 3 + 77_777), (hz * 86_400, hz * 86_400 * 2)] {
            let now = Time(to_ns.apply(tsc));
            assert_eq!(apic.set_tsc_deadline(now, tsc, to_ns, deadline), Effect::Timer);
            assert_eq!(apic.tsc_deadline(), deadline);
            // Whenever the clock shows the expiry, the TSC has reached the deadline.
            let expiry = apic.deadline().unwrap().0;
            assert!(to_ns.apply(deadline - 1) < expiry, "{hz} {deadline}: early");
            assert!(to_ns.apply(deadline) + 2 >= expiry, "{hz} {deadline}: late");
            apic.set_tsc_deadline(now, tsc, to_ns, 0);
        }
    }
}

#[test]
fn tsc_deadline_fires_once_and_reads_zero_then() {
    let rate = Rate::new(1, 1);
    let apic = timer(TSC_DEADLINE, 0);
    apic.set_tsc_deadline(Time(10), 10, rate, 500);
    assert!(!apic.advance(Time(499)));
    assert!(apic.advance(Time(510)));
    assert_eq!((apic.tsc_deadline(), apic.deadline()), (0, None));
    take(&apic, VECTOR);
    write(&apic, reg::EOI, 0);
    // In the past: at once. Zero: not at all.
    apic.set_tsc_deadline(Time(600), 600, rate, 600);
    take(&apic, VECTOR);
    write(&apic, reg::EOI, 0);
    assert_eq!(apic.tsc_deadline(), 0);
    apic.set_tsc_deadline(Time(600), 600, rate, 700);
    apic.set_tsc_deadline(Time(610), 610, rate, 0);
    assert!(!apic.advance(Time(5_000)) && apic.pending().is_none());
    // Centuries away: armed, but nothing to wait for.
    apic.set_tsc_deadline(Time(610), 610, rate, u64::MAX);
    assert_eq!((apic.tsc_deadline(), apic.deadline()), (u64::MAX, None));
    assert!(!apic.advance(Time(u64::MAX)));
}

#[test]
fn a_new_divisor_keeps_the_count() {
    let apic = timer(PERIODIC, DIVIDE_BY_16);
    start(&apic, 0, 10_000);
    assert_eq!(count(&apic, 80_000), 5_000);
    write_at(&apic, Time(80_000), reg::TDCR, DIVIDE_BY_1);
    assert_eq!(count(&apic, 80_000), 5_000);
    assert!(apic.advance(Time(85_000)));
    assert_eq!(apic.deadline(), Some(Time(95_000)));
}
