use super::*;
use crate::line::testing::{Messages, Recorder};
use proptest::prelude::*;

const ENABLE_LEGACY: u64 = 3;
const INT: u64 = 1 << 2;
const LEVEL: u64 = 1 << 1;
const PERIODIC: u64 = 1 << 3;
const VALUE_SET: u64 = 1 << 6;
const MODE_32: u64 = 1 << 8;

struct Bench {
    hpet: Hpet,
    lines: Arc<Recorder>,
    messages: Arc<Messages>,
    now: Time,
}

impl Bench {
    fn new(missed: MissedTicks) -> Self {
        let (lines, messages) = (Arc::new(Recorder::default()), Arc::new(Messages::default()));
        Self { hpet: Hpet::new(lines.clone(), messages.clone(), missed), lines, messages, now: Time(0) }
    }
    fn read(&mut self, offset: u64) -> u64 {
        self.hpet.mmio_read(self.now, offset, Width::Qword)
    }
    fn write(&mut self, offset: u64, value: u64) {
        self.hpet.mmio_write(self.now, offset, Width::Qword, value);
    }
    fn config(&mut self, timer: u64, value: u64) {
        self.write(0x100 + 0x20 * timer, value);
    }
    fn comparator(&mut self, timer: u64, value: u64) {
        self.write(0x108 + 0x20 * timer, value);
    }
    /// Goes on by `ticks` of the counter, stopping at every deadline.
    fn go(&mut self, ticks: u64) {
        let end = Time(self.now.0 + ticks * TICK_NS);
        while let Some(at) = self.hpet.deadline().filter(|at| *at <= end) {
            assert!(at > self.now, "a deadline that is not ahead");
            self.now = at;
            self.hpet.advance(at);
        }
        self.now = end;
        self.hpet.advance(end);
    }
    /// Rising edges of `line` since the last time.
    fn rises(&self, line: u32) -> usize {
        let mut seen = self.lines.0.lock().unwrap();
        let n = seen.iter().filter(|&&(l, high)| l == line && high).count();
        seen.retain(|&(l, _)| l != line);
        n
    }
}

#[test]
fn capabilities() {
    let mut b = Bench::new(MissedTicks::Merge);
    // 2.3.4: vendor, legacy replacement, 64 bits, four timers, revision 1; 10 ns.
    assert_eq!(b.read(0), 0x0098_9680_8086_a301);
    assert_eq!(b.hpet.mmio_read(b.now, 4, Width::Dword), 10_000_000);
    assert_eq!(b.read(0x100), 0x00f0_0000_0000_8030);
    assert_eq!(b.read(0x140), 0x00f0_0800_0000_8030);
    assert_eq!((b.read(0x108), b.read(0x180)), (u64::MAX, 0), "comparators are all ones after reset; there is no fifth timer");
}

#[test]
fn the_counter_runs_while_enabled_and_can_be_set() {
    let mut b = Bench::new(MissedTicks::Merge);
    b.go(100);
    assert_eq!(b.read(0xf0), 0);
    b.write(0x10, 1);
    b.go(1000);
    assert_eq!(b.read(0xf0), 1000);
    b.write(0x10, 0);
    b.go(1000);
    assert_eq!(b.read(0xf0), 1000);
    // By halves.
    b.hpet.mmio_write(b.now, 0xf4, Width::Dword, 1);
    b.hpet.mmio_write(b.now, 0xf0, Width::Dword, 0xffff_fff0);
    b.write(0x10, 1);
    b.go(0x20);
    assert_eq!(b.read(0xf0), 0x2_0000_0010);
    assert_eq!(b.hpet.mmio_read(b.now, 0xf4, Width::Dword), 2);
}

#[test]
fn one_shot_by_legacy_replacement() {
    let mut b = Bench::new(MissedTicks::Merge);
    b.write(0x10, ENABLE_LEGACY);
    assert!(b.hpet.replaces_legacy());
    b.config(0, INT);
    b.config(1, INT);
    b.comparator(0, 500);
    b.comparator(1, 700);
    b.go(499);
    assert_eq!((b.rises(0), b.rises(8)), (0, 0));
    b.go(1);
    assert_eq!((b.rises(0), b.rises(8)), (1, 0));
    b.go(100_000);
    assert_eq!((b.rises(0), b.rises(8)), (0, 1), "once");
    assert_eq!(b.read(0x20), 0, "edges have no status");
}

#[test]
fn periodic_with_value_set() {
    let mut b = Bench::new(MissedTicks::Merge);
    b.write(0x10, ENABLE_LEGACY);
    // As Linux does: the accumulator, then the period by a second write.
    b.config(0, INT | PERIODIC | VALUE_SET | MODE_32);
    b.comparator(0, 3000);
    assert_eq!(b.read(0x100) & VALUE_SET, 0, "VAL_SET goes with the first write");
    b.comparator(0, 2000);
    b.go(2999);
    assert_eq!(b.rises(0), 0);
    b.go(1);
    assert_eq!(b.rises(0), 1);
    assert_eq!(b.read(0x108), 5000);
    b.go(20_000);
    assert_eq!(b.rises(0), 10);
}

#[test]
fn level_triggered_until_the_status_is_cleared() {
    let mut b = Bench::new(MissedTicks::Merge);
    b.write(0x10, 1);
    b.config(2, INT | LEVEL | 11 << 9);
    b.comparator(2, 10);
    b.go(10);
    assert_eq!((b.rises(11), b.read(0x20)), (1, 4));
    assert_eq!(b.hpet.levels, 1 << 11);
    b.write(0x20, 4);
    assert_eq!((b.hpet.levels, b.read(0x20)), (0, 0));
    // Without its interrupt enabled, the status comes all the same.
    b.config(2, LEVEL | 11 << 9);
    b.comparator(2, 30);
    b.go(100);
    assert_eq!((b.rises(11), b.read(0x20)), (0, 4));
    // Enabled now, the line follows.
    b.config(2, INT | LEVEL | 11 << 9);
    assert_eq!(b.rises(11), 1);
}

#[test]
fn routes_that_a_timer_does_not_have_are_not_kept() {
    let mut b = Bench::new(MissedTicks::Merge);
    b.config(0, INT | 11 << 9);
    assert_eq!(b.read(0x100) & 0x3e00, 0);
    b.config(0, INT | 21 << 9);
    assert_eq!(b.read(0x100) & 0x3e00, 21 << 9);
    b.write(0x10, 1);
    b.comparator(0, 5);
    b.go(10);
    assert_eq!((b.rises(21), b.hpet.levels), (1, 0), "a pulse on a line that may be shared");
}

#[test]
fn fsb_messages() {
    let mut b = Bench::new(MissedTicks::Merge);
    b.write(0x10, 1);
    b.write(0x130, 0xfee0_1000_0000_4041);
    b.config(1, INT | PERIODIC | VALUE_SET | 1 << 14);
    b.comparator(1, 5000);
    b.go(16_000);
    assert_eq!(*b.messages.0.lock().unwrap(), [(0xfee0_1000, 0x4041); 3]);
    assert!(b.lines.0.lock().unwrap().is_empty());
    // 2.4.1: legacy replacement goes before FSB delivery.
    b.write(0x10, ENABLE_LEGACY);
    b.go(5000);
    assert_eq!((b.messages.0.lock().unwrap().len(), b.rises(8)), (3, 1));
}

#[test]
fn a_32_bit_timer_comes_again_when_its_half_of_the_counter_wraps() {
    let mut b = Bench::new(MissedTicks::Merge);
    b.write(0x10, 1);
    b.config(0, INT | MODE_32 | 20 << 9);
    b.comparator(0, 0xffff_0000_0000_0100);
    assert_eq!(b.read(0x108), 0x100);
    b.go(1 << 32);
    assert_eq!(b.rises(20), 1);
    b.go(0x100);
    assert_eq!(b.rises(20), 1);
}

#[test]
fn a_period_of_one_tick_is_no_storm() {
    let mut b = Bench::new(MissedTicks::Deliver);
    b.write(0x10, 1);
    b.config(0, INT | PERIODIC | VALUE_SET | 20 << 9);
    b.comparator(0, 1);
    b.go(100_000);
    assert!(b.rises(20) <= 101, "every 10 us at most");
}

#[test]
fn missed_interrupts_are_made_good() {
    for (policy, expected) in [(MissedTicks::Deliver, 28), (MissedTicks::Merge, 20)] {
        let mut b = Bench::new(policy);
        b.write(0x10, ENABLE_LEGACY);
        b.config(0, INT | PERIODIC | VALUE_SET);
        b.comparator(0, 100_000);
        b.go(100_000 * 2);
        // The guest is away for eight and a half periods: an interrupt waits for it, and the eight that come are one with it.
        b.lines.1.lock().unwrap().insert(0, PinState::Waiting);
        b.go(850_000);
        b.lines.1.lock().unwrap().clear();
        b.go(950_000);
        assert_eq!(b.rises(0), expected, "{policy:?}");
    }
}

#[test]
fn the_host_being_late_loses_nothing() {
    let mut b = Bench::new(MissedTicks::Deliver);
    b.write(0x10, ENABLE_LEGACY);
    b.config(0, INT | PERIODIC | VALUE_SET);
    b.comparator(0, 100_000);
    b.now = Time(5_500_000);
    b.hpet.advance(b.now);
    b.go(400_000);
    assert_eq!(b.rises(0), 9);
}

#[test]
fn state_survives_saving() {
    let mut b = Bench::new(MissedTicks::Deliver);
    b.write(0x10, ENABLE_LEGACY);
    b.config(0, INT | PERIODIC | VALUE_SET);
    b.comparator(0, 1000);
    b.config(3, INT | LEVEL | 12 << 9);
    b.comparator(3, 1500);
    b.go(1600);
    let saved = b.hpet.save();
    let mut other = Bench::new(MissedTicks::Deliver);
    other.hpet.restore(&saved);
    assert_eq!(other.hpet.save(), saved);
    assert_eq!((other.hpet.deadline(), other.hpet.levels), (b.hpet.deadline(), b.hpet.levels));
}

proptest! {
    /// What the counter and the status show does not depend on when somebody looked.
    #[test]
    fn state_is_a_function_of_time(
        config in any::<u32>(), comparator in 0..100_000u64, period in 1..50_000u64, looks in prop::collection::vec(1..30_000u64, 1..20),
    ) {
        let config = u64::from(config) & !(1 << 14);
        let make = || {
            let mut b = Bench::new(MissedTicks::Merge);
            b.write(0x10, 1);
            b.config(2, config | VALUE_SET);
            b.comparator(2, comparator);
            b.comparator(2, period);
            b
        };
        let (mut often, mut once) = (make(), make());
        for look in looks {
            often.now = Time(often.now.0 + look * TICK_NS);
            often.hpet.advance(often.now);
            often.read(0x140);
        }
        once.now = often.now;
        for register in [0x20, 0xf0, 0x140, 0x148] {
            prop_assert_eq!(often.read(register), once.read(register), "register {:#x}", register);
        }
    }
}
