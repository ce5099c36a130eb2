//! The local APIC's timer (SDM vol. 3A, 11.5.4): its state is a function of time.

use super::{
    Effect, LocalApic,
    spec::{TDCR_WRITABLE, divide_shift, lvt, reg},
};
use crate::{
    interrupt::Trigger,
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};
use x86defs::{Duration, Rate, Time};

/// Input clock in Hz, before the divide configuration: one tick is a nanosecond.
pub const BUS_HZ: u64 = 1_000_000_000;

/// A periodic timer with a shorter period interrupts only this often (still on its own beat), so that a guest cannot spend all of
/// its time, or ours, in timer interrupts.
pub const MIN_PERIOD: Duration = Duration::from_micros(10);

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
}

impl Timer {
    pub(super) fn new() -> Self {
        Self { expiry: AtomicU64::new(NEVER), tsc_deadline: AtomicU64::new(0) }
    }

    pub(super) fn stop(&self) {
        self.expiry.store(NEVER, Release);
    }

    /// For saving: the raw expiry and TSC deadline.
    pub(super) fn raw(&self) -> (u64, u64) {
        (self.expiry.load(Acquire), self.tsc_deadline.load(Relaxed))
    }

    pub(super) fn set_raw(&self, expiry: u64, tsc_deadline: u64) {
        self.tsc_deadline.store(tsc_deadline, Relaxed);
        self.expiry.store(expiry, Release);
    }
}

impl LocalApic {
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
        let next = match (Mode::of(entry), self.period()) {
            (Mode::Periodic, period @ 1..) => {
                // The first beat that is not in the past, nor too soon.
                let late = (now.0 - expiry).saturating_add(MIN_PERIOD.0.saturating_sub(period));
                let beats = if late < period { 1 } else { late / period + 1 };
                expiry.saturating_add(beats.saturating_mul(period))
            }
            _ => NEVER,
        };
        // If this fails, then another CPU has noticed the same expiry, or the owner has programmed the timer anew.
        self.timer.expiry.compare_exchange(expiry, next, AcqRel, Acquire).is_ok() && self.deliver_lvt(entry, Trigger::Edge)
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

    /// The current-count register.
    pub(super) fn current_count(&self, now: Time) -> u32 {
        let expiry = self.timer.expiry.load(Acquire);
        let mode = self.timer_mode();
        if expiry >= REMOTE || !mode.counts() {
            return 0;
        }
        let mut left = expiry.saturating_sub(now.0);
        if mode == Mode::Periodic {
            // Where the beat is, whether or not the last ones have been noticed and the next ones are let through.
            let Some(since) = now.0.saturating_sub(expiry).checked_rem(self.period()) else { return 0 };
            left = if left == 0 { self.period() - since } else { (left - 1) % self.period() + 1 };
        }
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
        self.timer.expiry.store(expiry, Release);
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
        self.timer.expiry.store(now.0.saturating_add(u64::from(count) << self.shift()), Release);
        Effect::Timer
    }

    /// The timer's LVT entry, with `value` already reduced to what can be written. Between one-shot and periodic a running count goes on;
    /// to and from TSC-deadline mode the timer is disarmed (11.5.4.1).
    pub(super) fn write_timer_entry(&self, now: Time, value: u32) -> Effect {
        // What is due was due under the old entry.
        self.advance(now);
        let (old, new) = (self.timer_mode(), Mode::of(value));
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
