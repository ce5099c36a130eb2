//! The high-precision event timer: a 64-bit counter of 100 MHz, and four timers that compare with it.
//!
//! IA-PC HPET Specification 1.0a (October 2004); interrupt routes as the ICH9's (data sheet, 316972-004, 20.1).
//!
//! The counter is a function of time; a comparator's matches are counted when somebody looks, and in time for the interrupts that they
//! raise. A comparator that is written with what the counter shows matches when the counter comes round again.

mod spec;
#[cfg(test)]
mod tests;

use crate::{
    LineSink, MessageSink, MissedTicks, MmioDevice, PinState, TimedDevice,
    missed::{MIN_PERIOD, Owed, pace},
};
use alloc::{sync::Arc, vec::Vec};
use serde::{Deserialize, Serialize};
use spec::{
    CAPABILITIES_LOW, ENABLE, FIRST_SHARED_LINE, LAST_TIMER_SHIFT, LEGACY_LINES, LEGACY_REPLACEMENT, PERIOD_FS, PERIOD_SHIFT,
    ROUTE_SHIFT, ROUTES, TICK_NS, TimerConfig, reg,
};
pub use spec::{SIZE, TIMERS};
use x86defs::{Time, Width};

/// Capabilities and ID, low half: what the ACPI table repeats.
pub const ID: u32 = (CAPABILITIES_LOW | (TIMERS as u64 - 1) << LAST_TIMER_SHIFT) as u32;

/// A comparator with its settings.
#[derive(Clone, Copy)]
struct Timer {
    config: TimerConfig,
    /// The counter value of the next match.
    comparator: u64,
    /// What a periodic timer adds at a match.
    period: u64,
    /// Value in the low half, address in the high half.
    fsb: u64,
    owed: Owed,
    /// When the next missed interrupt is made good.
    retry: Option<Time>,
}

/// What a [`Hpet`] saves of a timer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TimerState {
    pub config: u32,
    pub comparator: u64,
    pub period: u64,
    pub fsb: u64,
    pub owed: u64,
}

impl Timer {
    const fn new(policy: MissedTicks) -> Self {
        Self { config: TimerConfig::empty(), comparator: u64::MAX, period: 0, fsb: 0, owed: Owed::new(policy), retry: None }
    }

    const fn mask(&self) -> u64 {
        if self.config.contains(TimerConfig::MODE_32) { u32::MAX as u64 } else { u64::MAX }
    }

    fn is_periodic(&self) -> bool {
        self.config.contains(TimerConfig::PERIODIC) && self.period & self.mask() != 0
    }

    /// Ticks from counter value `from` to the first match after it, less one.
    fn distance(&self, from: u64) -> u64 {
        self.comparator.wrapping_sub(from).wrapping_sub(1) & self.mask()
    }

    /// Ticks between matches, less one.
    fn interval(&self) -> u64 {
        if self.is_periodic() { (self.period & self.mask()) - 1 } else { self.mask() }
    }

    /// How many matches there are when the counter goes on from `from` by `elapsed`; moves a periodic timer's comparator past them.
    fn pass(&mut self, from: u64, elapsed: u64) -> u64 {
        let first = self.distance(from);
        if elapsed <= first {
            return 0;
        }
        let rest = elapsed - first - 1;
        let more = match self.interval().checked_add(1) {
            Some(interval) => rest / interval,
            None => 0,
        };
        let matches = more.saturating_add(1);
        if self.is_periodic() {
            let ahead = self.period.wrapping_mul(matches);
            self.comparator = self.comparator.wrapping_add(ahead) & self.mask();
        }
        matches
    }
}

/// The HPET.
pub struct Hpet {
    enabled: bool,
    legacy: bool,
    /// While enabled: the counter at [`Time`] 0 (wrapping); else the counter.
    base: u64,
    /// The [`Time`]'s tick up to which matches have been counted.
    handled: u64,
    status: u32,
    timers: [Timer; TIMERS],
    /// Levels that the timers drive, by line.
    levels: u32,
    lines: Arc<dyn LineSink>,
    messages: Arc<dyn MessageSink>,
    deadline: Option<Time>,
}

/// What a [`Hpet`] saves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HpetState {
    pub enabled: bool,
    pub legacy: bool,
    pub base: u64,
    pub handled: u64,
    pub status: u32,
    pub timers: Vec<TimerState>,
    pub levels: u32,
}

impl Hpet {
    /// The timer after reset: halted at zero. `lines`: by number of the line, ISA IRQs first, 16 is PIRQA.
    #[must_use]
    pub fn new(lines: Arc<dyn LineSink>, messages: Arc<dyn MessageSink>, missed: MissedTicks) -> Self {
        Self {
            enabled: false,
            legacy: false,
            base: 0,
            handled: 0,
            status: 0,
            timers: [Timer::new(missed); TIMERS],
            levels: 0,
            lines,
            messages,
            deadline: None,
        }
    }

    /// Whether timers 0 and 1 have taken the PIT's and the RTC's interrupts over (2.3.5, LEG_RT_CNF).
    #[must_use]
    pub const fn replaces_legacy(&self) -> bool {
        self.enabled && self.legacy
    }

    fn counter_at(&self, tick: u64) -> u64 {
        if self.enabled { self.base.wrapping_add(tick) } else { self.base }
    }

    fn tick(&self, now: Time) -> u64 {
        (now.0 / TICK_NS).max(self.handled)
    }

    /// The line of timer `n`, if its interrupt goes by one.
    fn line_of(&self, n: usize) -> Option<u32> {
        if self.replaces_legacy()
            && let Some(&line) = LEGACY_LINES.get(n)
        {
            return Some(line);
        }
        let config = self.timers[n].config;
        if config.contains(TimerConfig::FSB) {
            return None;
        }
        let route = (config & TimerConfig::ROUTE).bits() >> ROUTE_SHIFT;
        (ROUTES[n] >> route & 1 != 0).then_some(route)
    }

    fn is_fsb(&self, n: usize) -> bool {
        self.timers[n].config.contains(TimerConfig::FSB) && !(self.replaces_legacy() && n < LEGACY_LINES.len())
    }

    /// What the last interrupt of timer `n` has come to.
    fn pin_state(&self, n: usize) -> PinState {
        if self.is_fsb(n) {
            let fsb = self.timers[n].fsb;
            return self.messages.state(fsb >> 32, fsb as u32);
        }
        self.line_of(n).map_or(PinState::Masked, |line| self.lines.state(line))
    }

    fn drive(&mut self, line: u32, high: bool) {
        let bit = 1u32 << (line & 31);
        if (self.levels & bit != 0) != high {
            self.levels ^= bit;
            self.lines.set_level(line, high);
        }
    }

    /// An edge-triggered interrupt of timer `n`.
    fn fire_edge(&mut self, n: usize) {
        if self.is_fsb(n) {
            let fsb = self.timers[n].fsb;
            self.messages.write(fsb >> 32, fsb as u32);
        } else if let Some(line) = self.line_of(n) {
            // The 8259 wants its input high until the acknowledge; nobody else holds these lines.
            self.drive(line, false);
            self.drive(line, true);
            if line >= FIRST_SHARED_LINE {
                self.drive(line, false);
            }
        }
    }

    /// Level-triggered timers drive their lines as their status says; lines that no timer has any more fall.
    fn update_levels(&mut self) {
        let mut held = 0u32;
        for n in 0..TIMERS {
            let Some(line) = self.line_of(n) else { continue };
            let config = self.timers[n].config;
            if !config.contains(TimerConfig::INTERRUPT) {
                continue;
            }
            if config.contains(TimerConfig::LEVEL) {
                held |= (self.status >> n & 1) << line;
            } else if line < FIRST_SHARED_LINE {
                // An edge's line stays as it is.
                held |= self.levels & 1 << line;
            }
        }
        let mut changed = self.levels ^ held;
        while let Some(line) = changed.checked_ilog2() {
            changed &= !(1 << line);
            self.drive(line, held >> line & 1 != 0);
        }
    }

    /// `matches` of timer `n` have come up to `now`.
    fn matched(&mut self, n: usize, matches: u64, now: Time) {
        let state = self.pin_state(n);
        let timer = &mut self.timers[n];
        let (level, wanted) = (timer.config.contains(TimerConfig::LEVEL), timer.config.contains(TimerConfig::INTERRUPT));
        let catches_up = wanted && timer.is_periodic() && timer.period >= MIN_PERIOD.0 / TICK_NS;
        let busy = if level { self.status >> n & 1 != 0 } else { state == PinState::Waiting };
        if !catches_up {
            timer.owed.clear();
        } else if state != PinState::Masked {
            timer.owed.add(if busy { matches } else { matches - 1 });
        }
        if level {
            self.status |= 1 << n;
        } else if wanted {
            // Also where one waits: it may wait at the controller that the guest does not use.
            self.made_good(n, now);
            self.fire_edge(n);
        }
    }

    /// Sets when timer `n` is to make good the next missed interrupt: soon after one that is delivered now.
    fn made_good(&mut self, n: usize, now: Time) {
        let timer = &mut self.timers[n];
        timer.retry = if timer.owed.is_some() {
            now.0.checked_add(pace((timer.period & timer.mask()).saturating_mul(TICK_NS))).map(Time)
        } else {
            None
        };
    }

    fn sync(&mut self, now: Time) {
        let tick = self.tick(now);
        let elapsed = tick - self.handled;
        let from = self.counter_at(self.handled);
        self.handled = tick;
        for n in 0..TIMERS {
            let timer = &mut self.timers[n];
            let matches = if self.enabled { timer.pass(from, elapsed) } else { 0 };
            if matches > 0 {
                self.matched(n, matches, now);
            } else if timer.retry.is_some_and(|at| at <= now) {
                timer.retry = None;
                // If it waits still, the next beat tries again.
                if self.pin_state(n) == PinState::Ready && self.timers[n].owed.take() {
                    self.made_good(n, now);
                    self.fire_edge(n);
                }
            }
        }
        self.update_levels();
    }

    fn update_deadline(&mut self) {
        let mut first: Option<u64> = None;
        let counter = self.counter_at(self.handled);
        let now = self.handled.saturating_mul(TICK_NS);
        for timer in &self.timers {
            if let Some(retry) = timer.retry {
                first = Some(first.map_or(retry.0, |first| first.min(retry.0)));
            }
            if !self.enabled || !timer.config.contains(TimerConfig::INTERRUPT) {
                continue;
            }
            let ticks = timer.distance(counter).checked_add(1);
            let at = ticks.and_then(|ticks| self.handled.checked_add(ticks)?.checked_mul(TICK_NS));
            let Some(at) = at else { continue };
            let soonest =
                if timer.is_periodic() && timer.period < MIN_PERIOD.0 / TICK_NS { now.saturating_add(MIN_PERIOD.0) } else { 0 };
            let at = at.max(soonest);
            first = Some(first.map_or(at, |first| first.min(at)));
        }
        self.deadline = first.map(Time);
    }

    fn timer_of(offset: u64) -> Option<(usize, u64)> {
        let offset = offset.checked_sub(reg::TIMERS)?;
        let n = (offset / reg::TIMER_STRIDE) as usize;
        (n < TIMERS).then_some((n, offset % reg::TIMER_STRIDE))
    }

    /// The 64-bit register at `offset`, a multiple of 8.
    fn read_register(&self, offset: u64) -> u64 {
        match offset {
            reg::CAPABILITIES => u64::from(ID) | PERIOD_FS << PERIOD_SHIFT,
            reg::CONFIGURATION => (u64::from(self.enabled) * ENABLE) | (u64::from(self.legacy) * LEGACY_REPLACEMENT),
            reg::STATUS => self.status.into(),
            reg::COUNTER => self.counter_at(self.handled),
            _ => match Self::timer_of(offset) {
                Some((n, reg::TIMER_CONFIGURATION)) => {
                    let timer = &self.timers[n];
                    u64::from((timer.config | TimerConfig::CAPABILITIES).bits()) | u64::from(ROUTES[n]) << 32
                }
                Some((n, reg::COMPARATOR)) => self.timers[n].comparator & self.timers[n].mask(),
                Some((n, reg::FSB_ROUTE)) => self.timers[n].fsb,
                _ => 0,
            },
        }
    }

    /// Writes the bits in `mask` of the register at `offset`, a multiple of 8.
    fn write_register(&mut self, offset: u64, value: u64, mask: u64) {
        let merged = self.read_register(offset) & !mask | value & mask;
        match offset {
            reg::CONFIGURATION => {
                let enabled = merged & ENABLE != 0;
                if enabled != self.enabled {
                    let counter = self.counter_at(self.handled);
                    self.base = if enabled { counter.wrapping_sub(self.handled) } else { counter };
                    self.enabled = enabled;
                }
                self.legacy = merged & LEGACY_REPLACEMENT != 0;
            }
            reg::STATUS => self.write_status((value & mask) as u32),
            // 2.3.7: to be written while it is halted; a counter that runs goes on from there.
            reg::COUNTER => self.base = if self.enabled { merged.wrapping_sub(self.handled) } else { merged },
            _ => {
                if let Some((n, register)) = Self::timer_of(offset) {
                    self.write_timer(n, register, merged, value, mask);
                }
            }
        }
    }

    /// Ones clear (2.3.6). A level-triggered timer that owes an interrupt raises it again at once.
    fn write_status(&mut self, ones: u32) {
        let cleared = self.status & ones;
        self.status &= !ones;
        self.update_levels();
        for n in 0..TIMERS {
            if cleared >> n & 1 != 0 && self.timers[n].config.contains(TimerConfig::LEVEL) && self.timers[n].owed.take() {
                self.status |= 1 << n;
            }
        }
    }

    fn write_timer(&mut self, n: usize, register: u64, merged: u64, value: u64, mask: u64) {
        let timer = &mut self.timers[n];
        match register {
            reg::TIMER_CONFIGURATION => {
                timer.config = TimerConfig::from_bits_truncate(merged as u32) & TimerConfig::WRITABLE;
                // 2.3.8: a route that the timer does not have is not kept.
                let route = (timer.config & TimerConfig::ROUTE).bits() >> ROUTE_SHIFT;
                if ROUTES[n] >> route & 1 == 0 {
                    timer.config -= TimerConfig::ROUTE;
                }
                timer.comparator &= timer.mask();
                if !timer.config.contains(TimerConfig::LEVEL) {
                    self.status &= !(1 << n);
                }
                timer.owed.clear();
                timer.retry = None;
            }
            reg::COMPARATOR => {
                let mask = mask & timer.mask();
                // 2.3.9.2: in periodic mode a write sets the period; the accumulator only with VAL_SET, which goes then.
                if timer.config.contains(TimerConfig::PERIODIC) {
                    timer.period = timer.period & !mask | value & mask;
                    timer.owed.clear();
                    timer.retry = None;
                }
                if !timer.config.contains(TimerConfig::PERIODIC) || timer.config.contains(TimerConfig::VALUE_SET) {
                    timer.comparator = timer.comparator & !mask | value & mask;
                    timer.config -= TimerConfig::VALUE_SET;
                }
            }
            reg::FSB_ROUTE => timer.fsb = merged,
            _ => {}
        }
    }

    #[must_use]
    pub fn save(&self) -> HpetState {
        let Self { enabled, legacy, base, handled, status, timers, levels, lines: _, messages: _, deadline: _ } = self;
        let timers = timers.iter().map(|timer| {
            let &Timer { config, comparator, period, fsb, owed, retry: _ } = timer;
            TimerState { config: config.bits(), comparator, period, fsb, owed: owed.count() }
        });
        HpetState {
            enabled: *enabled,
            legacy: *legacy,
            base: *base,
            handled: *handled,
            status: *status,
            timers: timers.collect(),
            levels: *levels,
        }
    }

    /// Timers that `state` lacks stay as they are.
    pub fn restore(&mut self, state: &HpetState) {
        let HpetState { enabled, legacy, base, handled, status, timers, levels } = state;
        self.enabled = *enabled;
        self.legacy = *legacy;
        self.base = *base;
        self.handled = *handled;
        self.status = status & ((1 << TIMERS) - 1);
        for (timer, saved) in self.timers.iter_mut().zip(timers) {
            let &TimerState { config, comparator, period, fsb, owed } = saved;
            timer.config = TimerConfig::from_bits_truncate(config) & TimerConfig::WRITABLE;
            timer.comparator = comparator & timer.mask();
            timer.period = period;
            timer.fsb = fsb;
            timer.owed.set(owed);
            timer.retry = None;
        }
        for line in 0..32 {
            self.drive(line, levels >> line & 1 != 0);
        }
        self.update_levels();
        self.update_deadline();
    }
}

impl MmioDevice for Hpet {
    /// 2.3.2: 32-bit and aligned 64-bit accesses. Narrower reads get their part; what crosses a register reads zero.
    fn mmio_read(&mut self, now: Time, offset: u64, width: Width) -> u64 {
        let within = offset & 7;
        if within + width.bytes() as u64 > 8 {
            return 0;
        }
        // What the counter shows does not depend on the matches.
        let value = if offset & !7 == reg::COUNTER {
            self.counter_at(self.tick(now))
        } else {
            self.sync(now);
            self.update_deadline();
            self.read_register(offset & !7)
        };
        value >> (8 * within) & width.mask()
    }

    /// Other accesses than aligned 32-bit and 64-bit ones are dropped.
    fn mmio_write(&mut self, now: Time, offset: u64, width: Width, value: u64) {
        if width < Width::Dword || !offset.is_multiple_of(width.bytes() as u64) {
            return;
        }
        self.sync(now);
        let shift = 8 * (offset & 7);
        self.write_register(offset & !7, (value & width.mask()) << shift, width.mask() << shift);
        self.update_levels();
        self.update_deadline();
    }
}

impl TimedDevice for Hpet {
    fn deadline(&self) -> Option<Time> {
        self.deadline
    }

    fn advance(&mut self, now: Time) {
        self.sync(now);
        self.update_deadline();
    }
}
