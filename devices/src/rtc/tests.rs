use super::*;
use crate::line::testing::Recorder;
use proptest::prelude::*;
use std::sync::Arc;
use x86defs::Duration;

/// 2023-12-31 23:59:50, a Sunday.
const NEW_YEARS_EVE: u64 = 1_704_067_190;

struct Bench {
    rtc: Rtc,
    now: Time,
}

impl Bench {
    fn at(wall_clock: u64) -> Self {
        Self::with(wall_clock, MissedTicks::Merge)
    }

    fn with(wall_clock: u64, missed: MissedTicks) -> Self {
        let config = RtcConfig { wall_clock, memory_below_4g: 2 << 30, memory_above_4g: 3 << 30, missed };
        let sink = Arc::new(Recorder::default());
        Self { rtc: Rtc::new(Line::new(sink, 8), &config, Time(0)), now: Time(0) }
    }

    fn read(&mut self, index: usize) -> u8 {
        self.rtc.port_write(self.now, 0, Width::Byte, index as u32);
        self.rtc.port_read(self.now, 1, Width::Byte) as u8
    }

    fn write(&mut self, index: usize, value: u8) {
        self.rtc.port_write(self.now, 0, Width::Byte, index as u32);
        self.rtc.port_write(self.now, 1, Width::Byte, value.into());
    }

    fn wait(&mut self, ns: u64) {
        self.now += Duration(ns);
    }

    fn time(&mut self) -> [u8; 3] {
        [HOURS, MINUTES, SECONDS].map(|i| self.read(i))
    }

    fn date(&mut self) -> [u8; 5] {
        [CENTURY, YEAR, MONTH, DAY_OF_MONTH, DAY_OF_WEEK].map(|i| self.read(i))
    }

    /// Goes to the deadline and says when that was.
    fn go(&mut self) -> Option<u64> {
        let at = self.rtc.deadline()?;
        assert!(at > self.now);
        self.now = at;
        self.rtc.advance(at);
        Some(at.0)
    }

    fn line(&self) -> bool {
        self.rtc.line.level()
    }
}

#[test]
fn time_goes_on_over_the_new_year() {
    let mut b = Bench::at(NEW_YEARS_EVE);
    assert_eq!(b.time(), [0x23, 0x59, 0x50]);
    assert_eq!(b.date(), [0x20, 0x23, 0x12, 0x31, 1]);
    b.wait(9 * SECOND);
    assert_eq!(b.time(), [0x23, 0x59, 0x59]);
    b.wait(SECOND);
    assert_eq!(b.time(), [0, 0, 0]);
    assert_eq!(b.date(), [0x20, 0x24, 0x01, 0x01, 2]);
    // To the leap day at one go, and on to March.
    b.wait(59 * 86_400 * SECOND);
    assert_eq!(b.date(), [0x20, 0x24, 0x02, 0x29, 5]);
    b.wait(86_400 * SECOND);
    assert_eq!(b.date(), [0x20, 0x24, 0x03, 0x01, 6]);
}

#[test]
fn wall_clock_is_that_of_time_0() {
    let config = RtcConfig { wall_clock: NEW_YEARS_EVE, memory_below_4g: 0, memory_above_4g: 0, missed: MissedTicks::Merge };
    let now = Time(5 * SECOND + 300);
    let mut b = Bench { rtc: Rtc::new(Line::unconnected(), &config, now), now };
    assert_eq!(b.read(SECONDS), 0x55);
    b.wait(SECOND - 301);
    assert_eq!(b.read(SECONDS), 0x55);
    b.wait(1);
    assert_eq!(b.read(SECONDS), 0x56);
}

/// Linux's mc146818_get_time(): waits while UIP is set, reads, and reads again if UIP came meanwhile.
#[test]
fn linux_reads_the_time() {
    let mut b = Bench::at(NEW_YEARS_EVE);
    b.wait(SECOND - 1_000_000);
    assert_eq!(b.read(REGISTER_A), 0xa6);
    let mut waited = 0;
    while b.read(REGISTER_A) & 0x80 != 0 {
        b.wait(100_000);
        waited += 1;
        assert!(waited < 100, "UIP stuck");
    }
    assert_eq!(b.read(SECONDS), 0x51);
    assert_eq!(b.read(REGISTER_A), 0x26);
    assert_eq!(b.read(REGISTER_D), 0x80, "rtc-cmos: VRT, and no alarm day");
    // mc146818_does_rtc_work(): UIP goes away within 10 ms, and register D's low bits are zero.
    b.wait(2 * SECOND - 2_000_000);
    assert_eq!(b.read(REGISTER_A) & 0x80, 0x80);
    b.wait(10_000_000);
    assert_eq!(b.read(REGISTER_A) & 0x80, 0);
}

/// Linux's mc146818_set_time(): SET, divider reset, the bytes, and back.
#[test]
fn linux_sets_the_time() {
    let mut b = Bench::at(NEW_YEARS_EVE);
    b.wait(300_000_000);
    let (control, select) = (b.read(REGISTER_B), b.read(REGISTER_A));
    b.write(REGISTER_B, control | 0x80);
    b.write(REGISTER_A, select | 0x70);
    for (i, v) in [(YEAR, 0x24), (MONTH, 0x02), (DAY_OF_MONTH, 0x28), (HOURS, 0x12), (MINUTES, 0x34), (SECONDS, 0x56)] {
        b.write(i, v);
    }
    b.write(CENTURY, 0x20);
    b.wait(3 * SECOND);
    assert_eq!(b.time(), [0x12, 0x34, 0x56], "it stands still");
    b.write(REGISTER_B, control);
    b.write(REGISTER_A, select);
    b.wait(SECOND / 2 - 1);
    assert_eq!(b.time(), [0x12, 0x34, 0x56]);
    b.wait(1);
    assert_eq!(b.time(), [0x12, 0x34, 0x57], "half a second after the divider was let go");
    b.wait(86_400 * SECOND);
    assert_eq!(b.date()[1..4], [0x24, 0x02, 0x29]);
}

#[test]
fn set_alone_stops_updates_but_not_the_divider() {
    let mut b = Bench::at(NEW_YEARS_EVE);
    b.write(REGISTER_B, 0x92);
    assert_eq!(b.read(REGISTER_B), 0x82, "SET clears UIE");
    b.wait(SECOND * 5 / 2);
    assert_eq!(b.read(SECONDS), 0x50);
    assert_eq!(b.read(REGISTER_C) & c::UF, 0);
    b.wait(SECOND / 2 - 1000);
    assert_eq!(b.read(REGISTER_A) & 0x80, 0, "no update, no UIP");
    b.write(REGISTER_B, 0x02);
    assert_eq!(b.read(REGISTER_A) & 0x80, 0x80);
    b.wait(1000);
    assert_eq!(b.read(SECONDS), 0x51);
}

#[test]
fn binary_and_twelve_hours() {
    let mut b = Bench::at(NEW_YEARS_EVE);
    b.write(REGISTER_B, 0x80 | 0x04);
    for (i, v) in [(HOURS, 0x80 | 11), (MINUTES, 59), (SECONDS, 59), (YEAR, 99), (MONTH, 12), (DAY_OF_MONTH, 31)] {
        b.write(i, v);
    }
    b.write(CENTURY, 19);
    b.write(REGISTER_B, 0x04);
    b.wait(SECOND);
    assert_eq!(b.time(), [12, 0, 0], "midnight is 12 AM");
    assert_eq!(b.date(), [20, 0, 1, 1, 2]);
    b.wait(13 * 3600 * SECOND);
    assert_eq!(b.time(), [0x81, 0, 0], "1 PM");
}

#[test]
fn update_interrupt() {
    let mut b = Bench::at(NEW_YEARS_EVE);
    b.wait(SECOND / 4);
    assert_eq!(b.rtc.deadline(), None);
    b.write(REGISTER_B, 0x12);
    assert_eq!(b.go(), Some(SECOND));
    assert!(b.line());
    assert_eq!(b.rtc.deadline(), None, "until the flag is read");
    b.wait(5 * SECOND);
    assert_eq!(b.read(REGISTER_C), 0x80 | 0x10 | 0x40, "the periodic flag comes along");
    assert!(!b.line());
    assert_eq!(b.go(), Some(7 * SECOND));
}

#[test]
fn flags_come_without_enables_and_interrupt_when_enabled() {
    let mut b = Bench::at(NEW_YEARS_EVE);
    b.wait(2 * SECOND);
    b.write(REGISTER_B, 0x12);
    assert!(b.line());
    assert_eq!(b.read(REGISTER_C) & 0x90, 0x90);
    assert_eq!(b.read(REGISTER_C), 0);
}

#[test]
fn periodic_rates() {
    // Register A's rate, and the period in crystal ticks.
    for (rate, ticks) in [(1, 128), (2, 256), (3, 4), (6, 32), (15, 16384)] {
        let mut b = Bench::at(NEW_YEARS_EVE);
        b.write(REGISTER_A, 0x20 | rate);
        b.write(REGISTER_B, 0x42);
        for n in 1..=20u64 {
            let at = b.go().unwrap();
            assert_eq!(at, (n * ticks * SECOND).div_ceil(CRYSTAL_HZ), "rate {rate}");
            assert!(b.line());
            assert_eq!(b.read(REGISTER_C) & 0xc0, 0xc0);
        }
    }
    let mut b = Bench::at(NEW_YEARS_EVE);
    b.write(REGISTER_A, 0x20);
    b.write(REGISTER_B, 0x42);
    assert_eq!(b.rtc.deadline(), None);
}

/// A guest that is away for ten periods finds that many interrupts, each raised when the one before has been acknowledged.
#[test]
fn missed_periodic_interrupts_are_made_good() {
    for (missed, expected) in [(MissedTicks::Deliver, 11), (MissedTicks::Merge, 1)] {
        let mut b = Bench::with(NEW_YEARS_EVE, missed);
        b.write(REGISTER_A, 0x26);
        b.read(REGISTER_C);
        b.write(REGISTER_B, 0x42);
        b.go();
        b.wait(10 * SECOND / 1024 + 1000);
        let mut interrupts = 0;
        while b.line() {
            assert_eq!(b.read(REGISTER_C) & (c::IRQF | c::PF), c::IRQF | c::PF);
            interrupts += 1;
        }
        assert_eq!(interrupts, expected, "{missed:?}");
        assert_eq!(b.read(REGISTER_C), 0);
    }
}

#[test]
fn alarms() {
    // 23:59:50 now. (hours, minutes, seconds) of the alarm, and in how many seconds it comes.
    let cases = [
        ([0x23, 0x59, 0x55], Some(5)),
        ([0x23, 0x59, 0x50], Some(86_400)),
        ([0x00, 0x00, 0x00], Some(10)),
        ([0xff, 0xff, 0xff], Some(1)),
        ([0xff, 0xff, 0x49], Some(59)),
        ([0xc0, 0x30, 0xc0], Some(10 + 30 * 60)),
        ([0x12, 0xff, 0x07], Some(10 + 12 * 3600 + 7)),
        ([0x24, 0xff, 0xff], None),
        ([0xff, 0x60, 0xff], None),
        ([0xff, 0xff, 0x60], None),
    ];
    for (alarm, expected) in cases {
        let mut b = Bench::at(NEW_YEARS_EVE);
        for (i, v) in [HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM].into_iter().zip(alarm) {
            b.write(i, v);
        }
        b.write(REGISTER_B, 0x22);
        assert_eq!(b.go(), expected.map(|s| s * SECOND), "{alarm:x?}");
        assert_eq!(b.line(), expected.is_some());
    }
}

#[test]
fn an_alarm_in_a_long_gap_is_not_missed() {
    let mut b = Bench::at(NEW_YEARS_EVE);
    b.write(HOURS_ALARM, 0x03);
    b.read(REGISTER_C);
    b.wait(3 * 3600 * SECOND + 9 * SECOND);
    assert_eq!(b.read(REGISTER_C) & c::AF, 0);
    b.wait(SECOND);
    assert_eq!(b.read(REGISTER_C) & c::AF, c::AF);
    b.wait(3 * 86_400 * SECOND);
    assert_eq!(b.read(REGISTER_C) & c::AF, c::AF);
}

#[test]
fn memory_sizes_checksum_and_writable_memory() {
    let mut b = Bench::at(0);
    let mut word = |i: usize| u16::from_le_bytes([b.read(i), b.read(i + 1)]);
    assert_eq!(word(0x15), 640);
    assert_eq!(word(0x17), 0xffff);
    assert_eq!(word(0x30), 0xffff);
    assert_eq!(word(0x34), 0x7f00);
    assert_eq!([b.read(0x5b), b.read(0x5c), b.read(0x5d)], [0x00, 0xc0, 0x00]);
    let sum: u16 = (0x10..0x2e).map(|i| u16::from(b.read(i))).sum();
    assert_eq!([b.read(0x2e), b.read(0x2f)], sum.to_be_bytes());
    b.write(0x7f, 0xa5);
    assert_eq!(b.read(0x7f), 0xa5);
    assert!(!b.rtc.nmi_masked());
    b.rtc.port_write(b.now, 0, Width::Byte, 0xff);
    assert!(b.rtc.nmi_masked());
    assert_eq!(b.rtc.port_read(b.now, 1, Width::Byte), 0xa5);
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Read(u8),
    Write(u8, u8),
    Wide(u16, Width, u32),
    Advance,
}

fn op() -> impl Strategy<Value = (u64, Op)> {
    let index = || prop_oneof![0..14u8, Just(0x32), 0..128u8];
    let wait = prop_oneof![Just(0), 0..3_000_000u64, 0..5 * SECOND, 0..1u64 << 58];
    let op = prop_oneof![
        index().prop_map(Op::Read),
        (index(), any::<u8>()).prop_map(|(i, v)| Op::Write(i, v)),
        (0..2u16, prop::sample::select(std::vec![Width::Word, Width::Dword]), any::<u32>()).prop_map(|(o, w, v)| Op::Wide(
            o,
            w,
            v & w.mask() as u32
        )),
        Just(Op::Advance),
    ];
    (wait, op)
}

fn apply(rtc: &mut Rtc, now: Time, op: Op) -> u32 {
    match op {
        Op::Read(i) => {
            rtc.port_write(now, 0, Width::Byte, i.into());
            return rtc.port_read(now, 1, Width::Byte);
        }
        Op::Write(i, v) => rtc.port_write(now, 0, Width::Word, u32::from(i) | u32::from(v) << 8),
        Op::Wide(o, w, v) => {
            rtc.port_write(now, o, w, v);
            return rtc.port_read(now, o, w);
        }
        Op::Advance => rtc.advance(now),
    }
    0
}

proptest! {
    #[test]
    fn any_sequence_has_deadlines_ahead_and_survives_a_restore(wall_clock: u64, ops in prop::collection::vec(op(), 1..100), cut in 0..100usize) {
        let config = RtcConfig { wall_clock, memory_below_4g: wall_clock, memory_above_4g: !0, missed: MissedTicks::Deliver };
        let mut now = Time(0);
        let mut rtc = Rtc::new(Line::unconnected(), &config, now);
        let mut copy: Option<Rtc> = None;
        for (i, &(wait, op)) in ops.iter().enumerate() {
            now += Duration(wait);
            let value = apply(&mut rtc, now, op);
            if let Some(copy) = &mut copy {
                prop_assert_eq!(apply(copy, now, op), value);
                prop_assert_eq!(copy.save(), rtc.save());
                prop_assert_eq!(copy.deadline(), rtc.deadline());
            }
            if i == cut {
                let mut other = Rtc::new(Line::unconnected(), &config, now);
                other.restore(&rtc.save());
                copy = Some(other);
            }
            let mut ahead = Rtc::new(Line::unconnected(), &config, now);
            ahead.restore(&rtc.save());
            ahead.advance(now);
            prop_assert!(ahead.deadline().is_none_or(|at| at > now));
        }
    }

    /// Looking more often makes no difference to what is seen in the end.
    #[test]
    fn state_is_a_function_of_time(b in any::<u8>(), bytes in any::<[u8; 10]>(), looks in prop::collection::vec(0..40_000 * SECOND, 1..20)) {
        let (mut often, mut once) = (Bench::at(NEW_YEARS_EVE), Bench::at(NEW_YEARS_EVE));
        for bench in [&mut often, &mut once] {
            for (i, byte) in bytes.into_iter().enumerate() {
                bench.write(i, byte);
            }
            // Valid bytes: an update is only then a function of how many there were.
            for (i, byte) in [(DAY_OF_MONTH, 1), (MONTH, 2), (HOURS, 3), (MINUTES, 4), (SECONDS, 5), (DAY_OF_WEEK, 6), (YEAR, 7)] {
                bench.write(i, byte);
            }
            bench.write(REGISTER_B, b & 0x7f);
        }
        for look in looks {
            often.wait(look);
            often.rtc.advance(often.now);
        }
        once.now = often.now;
        once.rtc.advance(once.now);
        prop_assert_eq!(often.rtc.save(), once.rtc.save());
    }

    /// The deadline is where the line rises: not before, and not without one.
    #[test]
    fn the_line_rises_at_the_deadline(enables in 1..8u8, rate in 0..16u8, alarm in any::<[u8; 3]>(), wait in 0..100 * SECOND) {
        let mut b = Bench::at(NEW_YEARS_EVE);
        for (i, v) in [HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM].into_iter().zip(alarm) {
            b.write(i, v);
        }
        b.write(REGISTER_A, 0x20 | rate);
        b.wait(wait);
        b.read(REGISTER_C);
        b.write(REGISTER_B, 0x02 | enables << 4);
        let saved = b.rtc.save();
        match b.rtc.deadline() {
            Some(at) => {
                b.rtc.advance(Time(at.0 - 1));
                prop_assert!(!b.line());
                b.rtc.advance(at);
                prop_assert!(b.line());
            }
            None => {
                b.wait(90_000 * SECOND);
                b.rtc.advance(b.now);
                prop_assert!(!b.line(), "{:?}", saved);
            }
        }
    }

    #[test]
    fn any_state_can_be_restored(bytes in prop::collection::vec(any::<u8>(), 0..200), index: u8, origin: u64, synced in 0..1u64 << 60, ops in prop::collection::vec(op(), 1..10)) {
        let mut b = Bench::at(0);
        let divider = Divider::Running { origin };
        b.rtc.restore(&RtcState { bytes, index, nmi_masked: false, divider, synced: Time(synced), owed: synced });
        let mut now = Time(0);
        for (wait, op) in ops {
            now += Duration(wait);
            apply(&mut b.rtc, now, op);
        }
    }
}
