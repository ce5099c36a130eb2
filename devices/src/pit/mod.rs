//! The 8254 programmable interval timer, and port 0x61 with its gate and output.
//!
//! Intel 8254 data sheet, 231164-005 (1993); Intel ICH9 data sheet, 316972-004, 5.7, 13.3 and 13.7.1.
//!
//! Counter 0 drives the interrupt line. Only its rising edges matter to anybody (the input of the 8259A and of the IOAPIC is
//! edge-triggered, and the 8259A wants it high until the acknowledge), so in the periodic modes the line falls only right
//! before it rises again: half the deadlines, and a guest that is slow to look finds its interrupt. What the guest reads of
//! OUT is exact.

mod channel;
mod spec;
#[cfg(test)]
mod tests;

use crate::{
    Line, MissedTicks, PinState, PortDevice, TimedDevice,
    missed::Owed,
    ports::{read_wide, write_wide},
    ticks::TickClock,
};
use channel::Channel;
pub use channel::{Bytes, ChannelState, Counting, Mode};
use serde::{Deserialize, Serialize};
use spec::{CLOCK_HZ, Port61, REFRESH_TICKS, control, read_back};
use x86defs::{Time, Width};

/// Where the counters' four ports (0x40 to 0x43) and port 0x61 are in the [`PortDevice`]'s offsets. They are not adjacent on
/// the bus, so whoever maps them adds these.
pub const COUNTERS_OFFSET: u16 = 0;
pub const PORT_61_OFFSET: u16 = 4;
const CONTROL_OFFSET: u16 = 3;
const PORTS: u16 = 5;

/// Counter 0 interrupts only this often when its period is shorter (10 us), and nothing is made good then.
const MIN_COUNT: u32 = 12;

/// The timer.
pub struct Pit {
    channels: [Channel; 3],
    port_61: Port61,
    line: Line,
    clock: TickClock,
    /// The CLK pulse up to which counter 0's edges have gone to the line.
    handled: u64,
    missed: u64,
    owed: Owed,
    /// When the next missed interrupt is made good.
    retry: Option<Time>,
    deadline: Option<Time>,
}

/// What a [`Pit`] saves. Pulses are counted from [`Time`] 0.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PitState {
    pub channels: [ChannelState; 3],
    pub port_61: u8,
    pub handled: u64,
    pub missed: u64,
    pub owed: u64,
    pub line: bool,
}

impl Pit {
    /// A timer that nobody has programmed yet: all outputs are low. `line` is counter 0's OUT.
    #[must_use]
    pub fn new(line: Line, policy: MissedTicks) -> Self {
        Self {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            port_61: Port61::empty(),
            line,
            clock: TickClock::new(CLOCK_HZ),
            handled: 0,
            missed: 0,
            owed: Owed::new(policy),
            retry: None,
            deadline: None,
        }
    }

    /// Periods of counter 0 that had no interrupt of their own in time. Only ever grows.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// Whether the speaker is on: counter 2's OUT goes to it.
    #[must_use]
    pub fn speaker(&self) -> bool {
        self.port_61.contains(Port61::SPEAKER)
    }

    fn tick(&self, now: Time) -> u64 {
        self.clock.ticks(now).max(self.handled)
    }

    /// The tick of an access, with counter 0 caught up: between two edges, there is nothing to catch up with.
    #[inline(always)]
    fn arrive(&mut self, now: Time) -> u64 {
        let tick = self.tick(now);
        let [timer, ..] = &self.channels;
        if self.deadline.is_some_and(|deadline| now >= deadline) || timer.due_load(tick).is_some() {
            self.catch_up(tick);
        }
        tick
    }

    /// Lets counter 0's edges up to `tick` reach the line. Several at once are one edge; the others are counted.
    #[inline(never)]
    fn catch_up(&mut self, tick: u64) {
        let [timer, ..] = &mut self.channels;
        let mut edges = 0;
        let load = timer.due_load(tick);
        if let Some(load) = load {
            edges = timer.rising_edges(self.handled, load);
            timer.sync(load);
            self.handled = load.max(self.handled);
        }
        edges = edges.wrapping_add(timer.rising_edges(self.handled, tick));
        self.handled = tick;
        if edges > 0 {
            self.interrupt(edges, tick);
        } else if self.retry.is_some_and(|at| self.clock.ticks(at) <= tick) {
            self.make_good(tick);
        }
        if edges > 0 || load.is_some() || self.deadline.is_some_and(|at| self.clock.ticks(at) <= tick) {
            self.update_deadline();
        }
    }

    /// Counter 0 has had `edges` up to `tick`.
    fn interrupt(&mut self, edges: u64, tick: u64) {
        let [timer, ..] = &self.channels;
        let state = self.line.state();
        let missed = if state == PinState::Waiting { edges } else { edges - 1 };
        self.missed = self.missed.wrapping_add(missed);
        if timer.period().is_none_or(|count| count < MIN_COUNT) {
            self.owed.clear();
        } else if state != PinState::Masked {
            self.owed.add(missed);
        }
        // Also where one waits: it may wait at the controller that the guest does not use.
        self.raise(tick);
    }

    /// An edge for the interrupt controllers, and when the next that is owed comes.
    fn raise(&mut self, tick: u64) {
        self.line.set(false);
        self.line.set(true);
        let [timer, ..] = &self.channels;
        let period = timer.period().filter(|_| self.owed.is_some());
        self.retry =
            period.and_then(|count| self.clock.time_of(tick.saturating_add((u64::from(count) / 8).max(MIN_COUNT.into()))));
    }

    /// One of the interrupts that are owed, if the one before has been taken. If not, the next period tries again.
    #[cold]
    fn make_good(&mut self, tick: u64) {
        self.retry = None;
        if self.line.state() == PinState::Ready && self.owed.take() {
            self.raise(tick);
        }
    }

    fn update_deadline(&mut self) {
        let [timer, ..] = &self.channels;
        let mut edge = timer.next_edge(self.handled);
        if timer.period().is_some_and(|count| count < MIN_COUNT) {
            edge = edge.map(|edge| edge.max(self.handled.saturating_add(MIN_COUNT.into())));
        }
        let edge = edge.and_then(|tick| self.clock.time_of(tick));
        self.deadline = [edge, self.retry].into_iter().flatten().min();
    }

    /// Does something to counter 0 that may change OUT at once.
    fn touch_timer(&mut self, tick: u64, touch: impl FnOnce(&mut Channel)) {
        self.catch_up(tick);
        let [timer, ..] = &mut self.channels;
        let (before, counting) = (timer.out(tick), timer.period());
        touch(timer);
        let after = timer.out(tick);
        if timer.period() != counting {
            self.owed.clear();
            self.retry = None;
        }
        if before != after {
            self.line.set(before);
            self.line.set(after);
        }
        self.update_deadline();
    }

    /// Does something to a counter.
    fn write_channel(&mut self, index: usize, tick: u64, touch: impl FnOnce(&mut Channel)) {
        if index == 0 {
            self.touch_timer(tick, touch);
        } else if let Some(channel) = self.channels.get_mut(index) {
            touch(channel);
        }
    }

    fn write_control(&mut self, tick: u64, word: u8) {
        let select = word >> control::SELECT_SHIFT;
        if select == control::SELECT_READ_BACK {
            for (i, channel) in self.channels.iter_mut().enumerate() {
                if word >> read_back::COUNTERS_SHIFT >> i & 1 == 0 {
                    continue;
                }
                if word & read_back::NO_COUNT == 0 {
                    channel.latch_count(tick);
                }
                if word & read_back::NO_STATUS == 0 {
                    channel.latch_status(tick);
                }
            }
        } else if word >> control::ACCESS_SHIFT & control::ACCESS == 0 {
            if let Some(channel) = self.channels.get_mut(usize::from(select)) {
                channel.latch_count(tick);
            }
        } else {
            self.write_channel(select.into(), tick, |channel| channel.set_mode(tick, word));
        }
    }

    fn read_port_61(&mut self, tick: u64) -> u8 {
        let [.., speaker] = &mut self.channels;
        speaker.sync(tick);
        let mut value = self.port_61;
        value.set(Port61::OUT_2, speaker.out(tick));
        value.set(Port61::REFRESH, !(tick / REFRESH_TICKS).is_multiple_of(2));
        value.bits()
    }

    #[inline(always)]
    fn read(&mut self, tick: u64, offset: u16) -> u8 {
        match offset {
            PORT_61_OFFSET => self.read_port_61(tick),
            // The control word cannot be read.
            _ => self.channels.get_mut(usize::from(offset)).map_or(0xff, |channel| channel.read(tick)),
        }
    }

    #[inline]
    fn write(&mut self, tick: u64, offset: u16, value: u8) {
        match offset {
            PORT_61_OFFSET => {
                self.port_61 = Port61::from_bits_truncate(value) & Port61::WRITABLE;
                let [.., speaker] = &mut self.channels;
                speaker.set_gate(tick, self.port_61.contains(Port61::GATE_2));
            }
            CONTROL_OFFSET => self.write_control(tick, value),
            _ => self.write_channel(offset.into(), tick, |channel| channel.write(tick, value)),
        }
    }

    #[must_use]
    pub fn save(&self) -> PitState {
        let Self { channels, port_61, line, clock: _, handled, missed, owed, retry: _, deadline: _ } = self;
        PitState {
            channels: channels.each_ref().map(Channel::save),
            port_61: port_61.bits(),
            handled: *handled,
            missed: *missed,
            owed: owed.count(),
            line: line.level(),
        }
    }

    pub fn restore(&mut self, state: &PitState) {
        let PitState { channels, port_61, handled, missed, owed, line } = state;
        for (channel, state) in self.channels.iter_mut().zip(channels) {
            *channel = Channel::restored(state);
        }
        self.port_61 = Port61::from_bits_truncate(*port_61) & Port61::WRITABLE;
        self.handled = *handled;
        self.missed = *missed;
        self.owed.set(*owed);
        self.retry = None;
        self.line.set(*line);
        self.update_deadline();
    }
}

/// The last offset of the bank of ports that `offset` is in, plus one.
const fn bank_end(offset: u16) -> u16 {
    if offset < PORT_61_OFFSET { PORT_61_OFFSET } else { PORTS }
}

impl PortDevice for Pit {
    fn port_read(&mut self, now: Time, offset: u16, width: Width) -> u32 {
        let tick = self.arrive(now);
        if width == Width::Byte {
            return self.read(tick, offset).into();
        }
        read_wide(offset, width, bank_end(offset), &mut |offset| self.read(tick, offset))
    }

    fn port_write(&mut self, now: Time, offset: u16, width: Width, value: u32) {
        let tick = self.arrive(now);
        if width == Width::Byte {
            return self.write(tick, offset, value as u8);
        }
        write_wide(offset, width, bank_end(offset), value, &mut |offset, value| self.write(tick, offset, value));
    }
}

impl TimedDevice for Pit {
    fn deadline(&self) -> Option<Time> {
        self.deadline
    }

    fn advance(&mut self, now: Time) {
        let tick = self.tick(now);
        self.catch_up(tick);
        self.update_deadline();
    }
}
