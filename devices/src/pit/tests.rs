use super::*;
use crate::line::testing::Recorder;
use proptest::prelude::*;
use std::{sync::Arc, vec::Vec};
use x86defs::Duration;

struct Bench {
    pit: Pit,
    sink: Arc<Recorder>,
    tick: u64,
}

impl Bench {
    fn new() -> Self {
        let sink = Arc::new(Recorder::default());
        let pit = Pit::new(Line::new(sink.clone(), 0), MissedTicks::Merge);
        Self { pit, sink, tick: 1000 }
    }

    fn now(&self) -> Time {
        TickClock::new(CLOCK_HZ).time_of(self.tick).unwrap()
    }

    fn out(&mut self, port: u16, value: u8) {
        let now = self.now();
        self.pit.port_write(now, port, Width::Byte, value.into());
    }

    fn inb(&mut self, port: u16) -> u8 {
        let now = self.now();
        self.pit.port_read(now, port, Width::Byte) as u8
    }

    fn count(&mut self, channel: u8, count: u16) {
        let [low, high] = count.to_le_bytes();
        self.out(channel.into(), low);
        self.out(channel.into(), high);
    }

    /// The status byte, by read-back.
    fn status(&mut self, channel: u8) -> u8 {
        self.out(3, 0xe0 | 2 << channel);
        self.inb(channel.into())
    }

    fn latched(&mut self, channel: u8) -> u16 {
        self.out(3, channel << 6);
        u16::from_le_bytes([self.inb(channel.into()), self.inb(channel.into())])
    }

    fn high(&mut self, channel: u8) -> bool {
        self.status(channel) & 0x80 != 0
    }

    fn gate(&mut self, high: bool) {
        self.out(4, high.into());
    }

    /// (tick of the deadline, rising edges seen there) until `end`.
    fn edges_until(&mut self, end: u64) -> Vec<u64> {
        let mut seen = Vec::new();
        while let Some(at) = self.pit.deadline() {
            let tick = TickClock::new(CLOCK_HZ).ticks(at);
            if tick > end {
                break;
            }
            self.sink.0.lock().unwrap().clear();
            self.pit.advance(at);
            if self.sink.0.lock().unwrap().contains(&(0, true)) {
                seen.push(tick);
            }
        }
        self.tick = end;
        seen
    }
}

/// OUT of channel 2 at each of the next `n` ticks, from one after now on.
fn wave(bench: &mut Bench, n: usize) -> std::string::String {
    (0..n)
        .map(|_| {
            bench.tick += 1;
            if bench.inb(4) & 0x20 != 0 { '1' } else { '0' }
        })
        .collect()
}

fn counts(bench: &mut Bench, n: usize) -> Vec<u16> {
    (0..n)
        .map(|_| {
            bench.tick += 1;
            bench.latched(2)
        })
        .collect()
}

// The wave forms of the data sheet's figures 15 to 20, on channel 2 with port 0x61 as the gate.

#[test]
fn mode_0_interrupt_on_terminal_count() {
    let mut b = Bench::new();
    b.gate(true);
    b.out(3, 0x90);
    b.out(2, 4);
    assert_eq!(wave(&mut b, 8), "00001111");
    // Figure 15, second: the gate holds the count.
    b.out(2, 3);
    assert_eq!(wave(&mut b, 2), "00");
    b.gate(false);
    assert_eq!(wave(&mut b, 5), "00000");
    b.gate(true);
    assert_eq!(wave(&mut b, 3), "011");
    // The element counts on and wraps.
    b.out(2, 2);
    b.out(3, 0x80);
    assert_eq!(b.inb(2), 0xff, "not loaded yet: shows the old count");
    b.tick += 4;
    b.out(3, 0x80);
    assert_eq!(b.inb(2), 0xff);
}

#[test]
fn mode_0_first_byte_of_two_stops_the_count() {
    let mut b = Bench::new();
    b.gate(true);
    b.out(3, 0xb0);
    b.count(2, 2);
    assert_eq!(wave(&mut b, 4), "0011");
    b.out(2, 5);
    assert_eq!(wave(&mut b, 9), "000000000");
    b.out(2, 0);
    assert_eq!(wave(&mut b, 7), "0000011");
}

#[test]
fn mode_1_retriggerable_one_shot() {
    let mut b = Bench::new();
    b.out(3, 0x92);
    b.out(2, 3);
    assert_eq!(wave(&mut b, 3), "111", "waits for the trigger");
    b.gate(true);
    assert_eq!(wave(&mut b, 5), "00011");
    b.gate(false);
    b.gate(true);
    assert_eq!(wave(&mut b, 2), "00");
    b.gate(false);
    b.gate(true);
    assert_eq!(wave(&mut b, 5), "00011", "started again");
    // A new count waits for the next trigger.
    b.gate(false);
    b.gate(true);
    assert_eq!(wave(&mut b, 1), "0");
    b.out(2, 1);
    assert_eq!(wave(&mut b, 3), "001");
    b.gate(false);
    b.gate(true);
    assert_eq!(wave(&mut b, 2), "01");
}

#[test]
fn mode_2_rate_generator() {
    let mut b = Bench::new();
    b.gate(true);
    b.out(3, 0x94);
    b.out(2, 3);
    assert_eq!(wave(&mut b, 7), "1101101");
    // A new count starts with the next period.
    b.out(2, 4);
    assert_eq!(wave(&mut b, 7), "1011101");
    // Gate low: OUT goes high at once; gate high: a new period.
    b.tick += 3;
    assert_eq!(b.inb(4) & 0x20, 0);
    b.gate(false);
    assert_eq!(wave(&mut b, 3), "111");
    b.gate(true);
    assert_eq!(wave(&mut b, 6), "111011");
    // Half a new count is none: the trigger takes the old one.
    b.gate(false);
    b.out(3, 0xb4);
    b.count(2, 4);
    b.out(2, 0x99);
    b.gate(true);
    assert_eq!(wave(&mut b, 6), "111011");
}

#[test]
fn mode_2_counts_down_to_one() {
    let mut b = Bench::new();
    b.gate(true);
    b.out(3, 0xb4);
    b.count(2, 3);
    assert_eq!(counts(&mut b, 7), [3, 2, 1, 3, 2, 1, 3]);
}

#[test]
fn mode_3_square_wave() {
    let mut b = Bench::new();
    b.gate(true);
    b.out(3, 0xb6);
    b.count(2, 4);
    assert_eq!(wave(&mut b, 8), "11001100");
    let mut b = Bench::new();
    b.gate(true);
    b.out(3, 0xb6);
    b.count(2, 5);
    assert_eq!(wave(&mut b, 10), "1110011100");
}

#[test]
fn mode_3_counts_by_two() {
    let mut b = Bench::new();
    b.gate(true);
    b.out(3, 0xb6);
    b.count(2, 4);
    assert_eq!(counts(&mut b, 5), [4, 2, 4, 2, 4]);
    let mut b = Bench::new();
    b.gate(true);
    b.out(3, 0xb6);
    b.count(2, 5);
    assert_eq!(counts(&mut b, 6), [4, 2, 0, 4, 2, 4]);
}

#[test]
fn mode_3_takes_a_new_count_with_the_next_half() {
    let mut b = Bench::new();
    b.gate(true);
    b.out(3, 0x96);
    b.out(2, 8);
    assert_eq!(wave(&mut b, 2), "11");
    b.out(2, 4);
    // The high half of 8 ends, then halves of 2, low first.
    assert_eq!(wave(&mut b, 8), "11001100");
    b.gate(false);
    assert_eq!(wave(&mut b, 3), "111");
    b.gate(true);
    assert_eq!(wave(&mut b, 4), "1100");
}

#[test]
fn mode_4_software_strobe() {
    let mut b = Bench::new();
    b.gate(true);
    b.out(3, 0x98);
    b.out(2, 3);
    assert_eq!(wave(&mut b, 8), "11101111");
    // A new count takes over at once.
    b.out(2, 5);
    assert_eq!(wave(&mut b, 2), "11");
    b.out(2, 2);
    assert_eq!(wave(&mut b, 5), "11011");
    // The gate only holds the count.
    b.out(2, 2);
    b.tick += 1;
    b.gate(false);
    assert_eq!(wave(&mut b, 4), "1111");
    b.gate(true);
    assert_eq!(wave(&mut b, 4), "1011");
}

#[test]
fn mode_5_hardware_strobe() {
    let mut b = Bench::new();
    b.out(3, 0x9a);
    b.out(2, 3);
    assert_eq!(wave(&mut b, 6), "111111");
    b.gate(true);
    assert_eq!(wave(&mut b, 6), "111011");
    b.gate(false);
    b.gate(true);
    assert_eq!(wave(&mut b, 2), "11");
    b.gate(false);
    b.gate(true);
    assert_eq!(wave(&mut b, 6), "111011");
}

#[test]
fn bcd() {
    let mut b = Bench::new();
    b.gate(true);
    b.out(3, 0xb5);
    b.count(2, 0x0000);
    b.tick += 1;
    assert_eq!(b.latched(2), 0x0000, "10000");
    b.tick += 1;
    assert_eq!(b.latched(2), 0x9999);
    b.tick += 9_998;
    assert_eq!(b.latched(2), 0x0001);
    b.out(3, 0xb1);
    b.count(2, 0x1000);
    b.tick += 2;
    assert_eq!(b.latched(2), 0x0999);
}

#[test]
fn null_count_tells_when_the_count_is_loaded() {
    let mut b = Bench::new();
    b.gate(true);
    b.out(3, 0xb4);
    assert_eq!(b.status(2), 0x80 | 0x40 | 0x34);
    b.count(2, 10);
    assert_eq!(b.status(2) & 0x40, 0x40);
    b.tick += 1;
    assert_eq!(b.status(2) & 0x40, 0);
    // In mode 2 a new count is loaded when the period ends.
    b.count(2, 20);
    b.tick += 9;
    assert_eq!(b.status(2) & 0x40, 0x40);
    b.tick += 1;
    assert_eq!(b.status(2) & 0x40, 0);
    assert_eq!(b.latched(2), 20);
}

#[test]
fn latches_hold_until_read_and_status_comes_first() {
    let mut b = Bench::new();
    b.gate(true);
    b.out(3, 0xb0);
    b.count(2, 0x1234);
    b.tick += 1;
    b.out(3, 0x80);
    b.tick += 0x100;
    b.out(3, 0x80);
    assert_eq!(b.inb(2), 0x34, "the second latch command did nothing");
    assert_eq!(b.inb(2), 0x12);
    assert_eq!(b.inb(2), 0x34, "live again");
    assert_eq!(b.inb(2), 0x11);
    // Count and status of two counters in one command.
    b.out(3, 0xc0 | 0x0c);
    b.tick += 5;
    assert_eq!(b.inb(2), 0x30);
    assert_eq!(b.inb(2), 0x34);
    assert_eq!(b.inb(2), 0x11);
    assert_eq!(b.inb(1) & 0x40, 0x40, "never programmed");
    assert_eq!(b.inb(3), 0xff);
}

#[test]
fn single_byte_access() {
    let mut b = Bench::new();
    b.gate(true);
    b.out(3, 0xa0);
    b.out(2, 0x12);
    b.tick += 1;
    assert_eq!(b.inb(2), 0x12);
    b.tick += 1;
    assert_eq!(b.inb(2), 0x11, "high byte only");
    b.out(3, 0x90);
    b.out(2, 0x12);
    b.tick += 3;
    assert_eq!((b.inb(2), b.inb(2)), (0x10, 0x10));
}

#[test]
fn counter_0_interrupts_periodically() {
    let mut b = Bench::new();
    // Linux's pit_set_periodic() at 250 Hz.
    b.out(3, 0x34);
    b.count(0, 4772);
    let start = b.tick + 1;
    let edges = b.edges_until(start + 3 * 4772);
    assert_eq!(edges, [start + 4772, start + 2 * 4772, start + 3 * 4772]);
    assert_eq!(b.pit.missed(), 0);
    assert!(b.sink.0.lock().unwrap().ends_with(&[(0, false), (0, true)]));
    // The host is late by two and a half periods: one edge, and no deadline in the past.
    b.tick += 4772 * 7 / 2;
    let late = b.now();
    b.sink.0.lock().unwrap().clear();
    b.pit.advance(late);
    assert_eq!(*b.sink.0.lock().unwrap(), [(0, false), (0, true)]);
    assert_eq!(b.pit.missed(), 2);
    assert!(b.pit.deadline().unwrap() > late);
}

#[test]
fn missed_interrupts_are_made_good() {
    for (policy, expected) in [(MissedTicks::Deliver, 28), (MissedTicks::Merge, 20)] {
        let mut b = Bench::new();
        b.pit = Pit::new(Line::new(b.sink.clone(), 0), policy);
        b.out(3, 0x34);
        b.count(0, 1000);
        let start = b.tick + 1;
        let mut edges = b.edges_until(start + 2000).len();
        // The guest is away for eight and a half periods: an interrupt waits for it, and the eight that come are one with it.
        b.sink.1.lock().unwrap().insert(0, PinState::Waiting);
        edges += b.edges_until(start + 10_500).len();
        b.sink.1.lock().unwrap().clear();
        let good = b.edges_until(start + 20_000);
        edges += good.len();
        assert_eq!(edges, expected, "{policy:?}: {good:?}");
    }
}

#[test]
fn a_new_count_owes_nothing() {
    let mut b = Bench::new();
    b.pit = Pit::new(Line::new(b.sink.clone(), 0), MissedTicks::Deliver);
    b.out(3, 0x34);
    b.count(0, 1000);
    b.tick += 5_500;
    let now = b.now();
    b.pit.advance(now);
    b.out(3, 0x34);
    b.count(0, 2000);
    let start = b.tick + 1;
    assert_eq!(b.edges_until(start + 4000), [start + 2000, start + 4000]);
}

/// 10 us is the least, as for all timers.
#[test]
fn a_count_of_two_is_no_interrupt_storm() {
    let mut b = Bench::new();
    b.out(3, 0x34);
    b.count(0, 2);
    let edges = b.edges_until(b.tick + 12_000);
    assert!((900..=1001).contains(&edges.len()), "{}", edges.len());
}

#[test]
fn counter_0_one_shots() {
    let mut b = Bench::new();
    // Linux's pit_set_oneshot() and pit_next_event(): mode 4.
    b.out(3, 0x38);
    assert_eq!(b.pit.deadline(), None);
    b.count(0, 100);
    let strobe = b.tick + 1 + 100 + 1;
    assert_eq!(b.edges_until(b.tick + 1000), [strobe]);
    assert_eq!(b.pit.deadline(), None);
    // pit_shutdown(): mode 0, count 0; OUT falls at once.
    b.out(3, 0x30);
    assert!(!b.pit.line.level());
    b.count(0, 0);
    let end = b.tick + 1 + 0x1_0000;
    assert_eq!(b.edges_until(b.tick + 0x2_0000), [end]);
    assert!(b.pit.line.level());
}

#[test]
fn reprogramming_counter_0_moves_the_line_as_out_moves() {
    let mut b = Bench::new();
    b.out(3, 0x36);
    b.count(0, 1000);
    b.tick += 1 + 1000 + 700;
    let now = b.now();
    b.pit.advance(now);
    assert!(b.pit.line.level(), "held until shortly before the next edge");
    assert!(!b.high(0), "though the guest sees it low");
    b.sink.0.lock().unwrap().clear();
    b.out(3, 0x34);
    assert_eq!(*b.sink.0.lock().unwrap(), [(0, false), (0, true)], "OUT is high in mode 2 from the start");
}

#[test]
fn an_illegal_count_of_one_is_no_interrupt_storm() {
    for mode in [0x14, 0x16] {
        let mut b = Bench::new();
        b.out(3, mode);
        b.out(0, 1);
        b.tick += 10;
        let now = b.now();
        b.pit.advance(now);
        assert_eq!(b.pit.deadline(), None);
        b.out(0, 100);
        assert!(b.pit.deadline().is_some());
    }
}

#[test]
fn port_61() {
    let mut b = Bench::new();
    b.tick = REFRESH_TICKS * 100;
    b.out(4, 0xff);
    assert_eq!(b.inb(4), 0x0f);
    b.tick += REFRESH_TICKS;
    assert_eq!(b.inb(4), 0x1f);
    assert!(b.pit.speaker());
    b.tick += REFRESH_TICKS;
    assert_eq!(b.inb(4), 0x0f);
}

/// Linux's quick_pit_calibrate(): reads the high byte of counter 2 as it goes down from 0xffff.
#[test]
fn linux_quick_calibration() {
    let mut b = Bench::new();
    let port = b.inb(4) & !2 | 1;
    b.out(4, port);
    b.out(3, 0xb0);
    b.count(2, 0xffff);
    b.tick += 1;
    // pit_verify_msb(0): throws away one reading.
    b.inb(2);
    b.inb(2);
    for msb in (0xf0..=0xffu8).rev() {
        let start = b.tick;
        loop {
            b.inb(2);
            if b.inb(2) != msb {
                break;
            }
            b.tick += 1;
        }
        assert!((255..=256).contains(&(b.tick - start)), "{msb:x}: {}", b.tick - start);
    }
}

/// Linux's pit_calibrate_tsc(): waits for OUT 2 in port 0x61; 10 ms must be 10 ms.
#[test]
fn linux_slow_calibration() {
    let mut b = Bench::new();
    let latch = (CLOCK_HZ / 100) as u16;
    let port = b.inb(4) & !2 | 1;
    b.out(4, port);
    b.out(3, 0xb0);
    b.count(2, latch);
    let start = b.now();
    while b.inb(4) & 0x20 == 0 {
        b.tick += 1;
    }
    assert!(b.now().since(start).0.abs_diff(Duration::from_millis(10).0) < 5_000);
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Read(u16, Width),
    Write(u16, Width, u32),
    Advance,
}

fn op() -> impl Strategy<Value = (u64, Op)> {
    let width = || prop::sample::select(std::vec![Width::Byte, Width::Word, Width::Dword]);
    let wait = prop_oneof![Just(0), 0..2_000u64, 0..100_000_000u64, 0..1u64 << 58];
    let op = prop_oneof![
        (0..5u16, width()).prop_map(|(o, w)| Op::Read(o, w)),
        (0..5u16, width(), any::<u32>()).prop_map(|(o, w, v)| Op::Write(o, w, v & w.mask() as u32)),
        // Small counts, for the edges.
        (0..5u16, 0..4u32).prop_map(|(o, v)| Op::Write(o, Width::Byte, v)),
        Just(Op::Advance),
    ];
    (wait, op)
}

fn apply(pit: &mut Pit, now: Time, op: Op) -> u32 {
    match op {
        Op::Read(o, w) => return pit.port_read(now, o, w),
        Op::Write(o, w, v) => pit.port_write(now, o, w, v),
        Op::Advance => pit.advance(now),
    }
    0
}

proptest! {
    #[test]
    fn any_sequence_has_deadlines_ahead_and_survives_a_restore(ops in prop::collection::vec(op(), 1..100), cut in 0..100usize) {
        let mut now = Time(0);
        let mut pit = Pit::new(Line::unconnected(), MissedTicks::Deliver);
        let mut copy: Option<Pit> = None;
        for (i, &(wait, op)) in ops.iter().enumerate() {
            now += Duration(wait);
            let value = apply(&mut pit, now, op);
            if let Some(copy) = &mut copy {
                prop_assert_eq!(apply(copy, now, op), value);
                prop_assert_eq!(copy.save(), pit.save());
            }
            if i == cut {
                let mut other = Pit::new(Line::unconnected(), MissedTicks::Deliver);
                other.restore(&pit.save());
                copy = Some(other);
            }
            let mut ahead = pit.save();
            let mut other = Pit::new(Line::unconnected(), MissedTicks::Deliver);
            other.restore(&ahead);
            other.advance(now);
            ahead = other.save();
            prop_assert!(other.deadline().is_none_or(|at| at > now));
            other.advance(now);
            prop_assert_eq!(other.save(), ahead, "the second time changes nothing");
        }
    }

    /// Looking more often makes no difference to what is seen in the end.
    #[test]
    fn state_is_a_function_of_time(word in any::<u8>(), count in 2..40u16, looks in prop::collection::vec(1..30u64, 1..20)) {
        let word = word & 0x0e | 0x30;
        let (mut often, mut once) = (Bench::new(), Bench::new());
        for b in [&mut often, &mut once] {
            b.out(3, word);
            b.count(0, count);
        }
        for look in looks {
            often.tick += look;
            let now = often.now();
            often.pit.advance(now);
            often.high(0);
        }
        once.tick = often.tick;
        prop_assert_eq!(often.latched(0), once.latched(0));
        prop_assert_eq!(often.high(0), once.high(0));
        prop_assert_eq!(often.pit.deadline(), once.pit.deadline());
        prop_assert_eq!(often.pit.line.level(), once.pit.line.level());
        let rises = often.sink.0.lock().unwrap().iter().filter(|c| c.1).count() as u64;
        let single = once.sink.0.lock().unwrap().iter().filter(|c| c.1).count() as u64;
        prop_assert_eq!(rises + often.pit.missed(), single + once.pit.missed(), "no edge is lost or made up");
    }

    /// A saved state that nobody of ours wrote.
    #[test]
    fn any_state_can_be_restored(since in any::<u64>(), elapsed in any::<u64>(), count in any::<u32>(), handled in any::<u64>(), modes in any::<[u8; 3]>(), ops in prop::collection::vec(op(), 1..10)) {
        let mut pit = Pit::new(Line::unconnected(), MissedTicks::Deliver);
        for (i, mode) in modes.into_iter().enumerate() {
            pit.port_write(Time(0), 3, Width::Byte, u32::from((i as u8) << 6 | mode & 0xf | 0x30));
        }
        let mut state = pit.save();
        state.handled = handled;
        for (i, channel) in state.channels.iter_mut().enumerate() {
            channel.counting = if i == 1 { Counting::Paused { count, elapsed } } else { Counting::Running { count, since } };
        }
        pit.restore(&state);
        let mut now = Time(0);
        for (wait, op) in ops {
            now += Duration(wait);
            apply(&mut pit, now, op);
        }
    }
}
