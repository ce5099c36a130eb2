//! Periodic interrupts that a guest did not get in time.
//!
//! A guest that shares its CPUs is away when some of its timer's interrupts come. An interrupt controller keeps one of them; a guest that
//! counts them falls behind by the others. They can be made good: one after the other, faster than the timer's own beat, each once the
//! one before has been taken.

use serde::{Deserialize, Serialize};
use x86defs::Duration;

/// What becomes of a periodic timer's interrupts that the guest did not get in time (`timer_mode`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum MissedTicks {
    /// They are delivered later, while the guest's clocks go on as they are (xl's `no_delay_for_missed_ticks`).
    #[default]
    Deliver,
    /// As with a real interrupt controller: one waits, those that come meanwhile become one with it.
    Merge,
}

/// A timer with a shorter period interrupts only this often (still on its own beat), and nothing is made good: a guest cannot spend all
/// of its time, or ours, in timer interrupts.
pub const MIN_PERIOD: Duration = Duration::from_micros(10);
/// More than this at once are not made good: the guest was not away, it was stopped.
pub const MOST_OWED: u64 = 1000;

/// How long after one that has been taken the next missed interrupt comes, for a period in nanoseconds.
#[must_use]
pub const fn pace(period: u64) -> u64 {
    let fast = period / 8;
    if fast < MIN_PERIOD.0 { MIN_PERIOD.0 } else { fast }
}

/// The interrupts that a timer still owes its guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Owed {
    policy: MissedTicks,
    count: u64,
}

impl Owed {
    pub(crate) const fn new(policy: MissedTicks) -> Self {
        Self { policy, count: 0 }
    }

    /// `missed` interrupts have not reached the guest.
    pub(crate) fn add(&mut self, missed: u64) {
        if self.policy == MissedTicks::Deliver && missed <= MOST_OWED {
            self.count = self.count.saturating_add(missed).min(MOST_OWED);
        }
    }

    /// One of them is delivered now, if there is any.
    pub(crate) fn take(&mut self) -> bool {
        let some = self.count > 0;
        self.count = self.count.saturating_sub(1);
        some
    }

    pub(crate) const fn is_some(&self) -> bool {
        self.count > 0
    }

    pub(crate) fn clear(&mut self) {
        self.count = 0;
    }

    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// For restoring.
    pub(crate) fn set(&mut self, count: u64) {
        self.count = count.min(MOST_OWED);
    }
}
