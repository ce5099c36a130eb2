//! The local APIC's timer (SDM vol. 3A, 11.5.4): its state is a function of time.

use super::{
    Effect, LocalApic,
    spec::{TDCR_WRITABLE, divide_shift, lvt, reg},
};
pub use crate::missed::MIN_PERIOD;
use crate::{
    interrupt::Trigger,
    missed::{MOST_OWED, MissedTicks, pace},
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};
use x86defs::{Rate, Time};

/// Input clock in Hz, before the divide configuration: one tick is a nanosecond.
pub const BUS_HZ: u64 = 1_000_000_000;

/// No expiry.
const NEVER: u64 = u64::MAX;
/// Armed, but so far away that it does not count: years.
const REMOTE: u64 = u64::MAX - 1;
/// More TSC ticks than this are [`REMOTE`]. For a TSC of at least 100 MHz the conversion to nanoseconds fits 64 bits up to here.
const MAX_TSC_DELTA: u64 = 1 << 60;
/// Converting "now" and the distance each lose up to a nanosecond; the timer must not be early.
const ROUNDING: u64 = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    /// Mode 3: the timer does not run.
    Reserved,
}

impl Mode {
    #[inline(always)]
    const fn of(entry: u32) -> Self {
        match (entry & lvt::PERIODIC != 0, entry & lvt::TSC_DEADLINE != 0) {
            (false, false) => Self::OneShot,
            (true, false) => Self::Periodic,
            (false, true) => Self::TscDeadline,
            (true, true) => Self::Reserved,
        }
    }

    /// True for the modes in which the initial count starts the timer.
    const fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

/// What the register page does not hold. Changed by the owner, and by compare-and-exchange when the timer expires, which any CPU may
/// notice.
pub(super) struct Timer {
    /// The [`Time`] of the next interrupt, [`NEVER`] or [`REMOTE`].
    expiry: AtomicU64,
    /// IA32_TSC_DEADLINE as last written; void without an expiry.
    tsc_deadline: AtomicU64,
    /// The [`Time`] of the first beat since the timer was programmed. In periodic mode the expiry is a beat, or between two of them where
    /// a missed interrupt is made good.
    first_beat: AtomicU64,
    /// Beats since then that have had their interrupt, or need none.
    served: AtomicU64,
    /// Interrupts that the guest did not get in time are made good.
    makes_good: AtomicBool,
}

impl Timer {
    pub(super) fn new() -> Self {
        Self {
            expiry: AtomicU64::new(NEVER),
            tsc_deadline: AtomicU64::new(0),
            first_beat: AtomicU64::new(0),
            served: AtomicU64::new(0),
            makes_good: AtomicBool::new(false),
        }
    }

    /// Starts anew: the next interrupt is at `expiry`.
    #[inline(always)]
    fn start(&self, expiry: u64) {
        self.first_beat.store(expiry, Relaxed);
        self.served.store(0, Relaxed);
        self.expiry.store(expiry, Release);
    }

    pub(super) fn stop(&self) {
        self.expiry.store(NEVER, Release);
    }

    /// For saving: expiry, TSC deadline, first beat, beats served.
    pub(super) fn raw(&self) -> [u64; 4] {
        let [expiry, others @ ..] = [&self.expiry, &self.tsc_deadline, &self.first_beat, &self.served];
        let [tsc_deadline, first_beat, served] = others.map(|word| word.load(Relaxed));
        [expiry.load(Acquire), tsc_deadline, first_beat, served]
    }

    pub(super) fn set_raw(&self, [expiry, tsc_deadline, first_beat, served]: [u64; 4]) {
        self.tsc_deadline.store(tsc_deadline, Relaxed);
        self.first_beat.store(first_beat, Relaxed);
        self.served.store(served, Relaxed);
        self.expiry.store(expiry, Release);
    }
}

impl LocalApic {
    /// What becomes of the periodic timer's interrupts that the guest does not get in time; they are merged at first.
    pub fn set_missed_ticks(&self, policy: MissedTicks) {
        self.timer.makes_good.store(policy == MissedTicks::Deliver, Relaxed);
    }

    #[inline(always)]
    fn timer_mode(&self) -> Mode {
        Mode::of(self.page.get(reg::LVT_TIMER))
    }

    /// When [`LocalApic::advance`] must be called next. Any CPU may ask.
    #[inline]
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let expiry = self.timer.expiry.load(Acquire);
        (expiry < REMOTE).then_some(Time(expiry))
    }

    /// Requests the timer's interrupt if it is due. Any CPU may call it, early or late. Returns whether something is pending because of it.
    #[inline]
    pub fn advance(&self, now: Time) -> bool {
        self.timer.expiry.load(Acquire) <= now.0 && self.expire(now)
    }

    #[cold]
    #[inline(never)]
    fn expire(&self, now: Time) -> bool {
        let expiry = self.timer.expiry.load(Acquire);
        if expiry > now.0 || expiry >= REMOTE {
            return false;
        }
        let entry = self.page.get(reg::LVT_TIMER);
        let (next, served) = match (Mode::of(entry), self.period()) {
            (Mode::Periodic, period @ 1..) => self.next_beat(now.0, expiry, period, entry),
            _ => (NEVER, None),
        };
        // If this fails, then another CPU has noticed the same expiry, or the owner has programmed the timer anew.
        if self.timer.expiry.compare_exchange(expiry, next, AcqRel, Acquire).is_err() {
            return false;
        }
        match served {
            Some(served) => self.timer.served.store(served, Relaxed),
            // A beat whose interrupt waits at the one before's: it counts when it is made good.
            None if next != NEVER => return false,
            None => {}
        }
        self.deliver_lvt(entry, Trigger::Edge)
    }

    /// A periodic timer's next expiry, when the one at `expiry` is served at `now`, and how many beats have had their interrupt then; none
    /// if it gets none now.
    fn next_beat(&self, now: u64, expiry: u64, period: u64, entry: u32) -> (u64, Option<u64>) {
        let first = self.timer.first_beat.load(Relaxed);
        // Beats up to now, and when the next one is. An expiry in front of the first beat was not made here: it is a beat then.
        let first = if first > expiry { expiry } else { first };
        let due = (now - first) / period + 1;
        let beat = first.saturating_add(due.saturating_mul(period));
        if period < MIN_PERIOD.0 {
            // The first beat that is not too soon.
            let late = (now - first).saturating_add(MIN_PERIOD.0 - period);
            return (first.saturating_add((late / period + 1).saturating_mul(period)), Some(due));
        }
        let owed = due.saturating_sub(self.timer.served.load(Relaxed));
        let makes_good = self.timer.makes_good.load(Relaxed) && owed <= MOST_OWED && entry & lvt::MASKED == 0;
        if !makes_good {
            return (beat, Some(due));
        }
        if self.is_requested(entry as u8) {
            // The guest is away, or busy. It makes no sense to try faster than the timer's own beat.
            return (beat, None);
        }
        let served = due - owed.saturating_sub(1);
        let next = if served < due { beat.min(now.saturating_add(pace(period))) } else { beat };
        (next, Some(served))
    }

    #[inline(always)]
    fn shift(&self) -> u32 {
        divide_shift(self.page.get(reg::TDCR))
    }

    /// The length of the initial count in nanoseconds.
    #[inline(always)]
    fn period(&self) -> u64 {
        u64::from(self.page.get(reg::TMICT)) << self.shift()
    }

    /// Nanoseconds until the count is zero; none if the timer does not count.
    fn left(&self, now: Time) -> Option<u64> {
        let expiry = self.timer.expiry.load(Acquire);
        let mode = self.timer_mode();
        if expiry >= REMOTE || !mode.counts() {
            return None;
        }
        if mode == Mode::OneShot {
            return Some(expiry.saturating_sub(now.0));
        }
        // Where the beat is, whether or not the last ones have been noticed and the next ones are let through.
        let beat = expiry.min(self.timer.first_beat.load(Relaxed));
        let period = self.period();
        Some(match beat.saturating_sub(now.0) {
            0 => period - (now.0 - beat).checked_rem(period)?,
            left => (left - 1).checked_rem(period)? + 1,
        })
    }

    /// The current-count register.
    pub(super) fn current_count(&self, now: Time) -> u32 {
        let Some(left) = self.left(now) else { return 0 };
        let shift = self.shift();
        u32::try_from(left.saturating_add((1 << shift) - 1) >> shift).unwrap_or(u32::MAX)
    }

    /// The initial-count register: starts the timer, or stops it with zero.
    #[inline]
    pub(super) fn write_initial_count(&self, now: Time, count: u32) -> Effect {
        self.advance(now);
        if !self.timer_mode().counts() {
            return Effect::None;
        }
        self.page.set(reg::TMICT, count);
        let expiry = if count == 0 { NEVER } else { now.0.saturating_add(u64::from(count) << self.shift()) };
        self.timer.start(expiry);
        Effect::Timer
    }

    /// The divide configuration register: a running count goes on from where it is, at the new rate.
    pub(super) fn write_divide(&self, now: Time, value: u32) -> Effect {
        self.advance(now);
        let count = self.current_count(now);
        self.page.set(reg::TDCR, value & TDCR_WRITABLE);
        if count == 0 {
            return Effect::None;
        }
        self.timer.start(now.0.saturating_add(u64::from(count) << self.shift()));
        Effect::Timer
    }

    /// The timer's LVT entry, with `value` already reduced to what can be written. Between one-shot and periodic a running count goes on;
    /// to and from TSC-deadline mode the timer is disarmed (11.5.4.1).
    pub(super) fn write_timer_entry(&self, now: Time, value: u32) -> Effect {
        // What is due was due under the old entry.
        self.advance(now);
        let (old, new) = (self.timer_mode(), Mode::of(value));
        if old != new
            && new.counts()
            && let Some(left) = self.left(now)
        {
            self.timer.start(now.0.saturating_add(left));
        }
        self.page.set(reg::LVT_TIMER, value);
        if old != new && !(old.counts() && new.counts()) {
            self.timer.stop();
            self.page.set(reg::TMICT, 0);
        }
        Effect::Timer
    }

    /// IA32_TSC_DEADLINE: zero if the timer is not armed or not in that mode.
    #[must_use]
    pub fn tsc_deadline(&self) -> u64 {
        if self.timer_mode() == Mode::TscDeadline && self.timer.expiry.load(Acquire) != NEVER {
            self.timer.tsc_deadline.load(Relaxed)
        } else {
            0
        }
    }

    /// Writes IA32_TSC_DEADLINE: an interrupt when the guest's TSC reaches `value`, at once if it has; zero disarms. Ignored in the other
    /// timer modes. `guest_tsc`: the guest's TSC at `now`; `to_ns`: from TSC ticks to nanoseconds, for a TSC of 100 MHz or more.
    #[inline]
    pub fn set_tsc_deadline(&self, now: Time, guest_tsc: u64, to_ns: Rate, value: u64) -> Effect {
        self.advance(now);
        let entry = self.page.get(reg::LVT_TIMER);
        if Mode::of(entry) != Mode::TscDeadline {
            return Effect::None;
        }
        let expiry = match value.checked_sub(guest_tsc) {
            _ if value == 0 => NEVER,
            Some(delta @ 1..MAX_TSC_DELTA) => now.0.saturating_add(to_ns.apply(delta)).saturating_add(ROUNDING).min(REMOTE),
            Some(MAX_TSC_DELTA..) => REMOTE,
            Some(0) | None => {
                self.deliver_lvt(entry, Trigger::Edge);
                NEVER
            }
        };
        self.timer.tsc_deadline.store(value, Relaxed);
        self.timer.expiry.store(expiry, Release);
        Effect::Timer
    }
}
