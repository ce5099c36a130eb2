//! A counter's clock: ticks as a function of time, and the time at which a tick comes.

use x86defs::{Rate, Time};

const NS_PER_SECOND: u64 = 1_000_000_000;

/// A clock of a fixed frequency that has run since [`Time`] 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TickClock {
    to_ticks: Rate,
    to_time: Rate,
}

impl TickClock {
    pub(crate) const fn new(hz: u64) -> Self {
        Self { to_ticks: Rate::new(NS_PER_SECOND, hz), to_time: Rate::new(hz, NS_PER_SECOND) }
    }

    /// Ticks until `now`.
    #[inline]
    pub(crate) const fn ticks(&self, now: Time) -> u64 {
        self.to_ticks.apply(now.0)
    }

    /// The first point in time at which [`TickClock::ticks`] is `tick` or more; none if that is beyond the end of time.
    pub(crate) const fn time_of(&self, tick: u64) -> Option<Time> {
        if tick == 0 {
            return Some(Time(0));
        }
        if tick > self.to_ticks.apply(u64::MAX) {
            return None;
        }
        // Both conversions round: the answer is a few nanoseconds around the guess, more only after years. Close in from there.
        let guess = self.to_time.apply(tick);
        let (mut before, mut at) = (guess, guess);
        let mut step = 1u64;
        while before > 0 && self.to_ticks.apply(before) >= tick {
            at = before;
            before = before.saturating_sub(step);
            step = step.saturating_mul(2);
        }
        step = 1;
        while self.to_ticks.apply(at) < tick {
            before = at;
            at = at.saturating_add(step);
            step = step.saturating_mul(2);
        }
        while at - before > 1 {
            let middle = before + (at - before) / 2;
            if self.to_ticks.apply(middle) < tick {
                before = middle;
            } else {
                at = middle;
            }
        }
        Some(Time(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tick_comes_exactly_when_it_is_said_to(hz in prop::sample::select(std::vec![1_193_182u64, 3_579_545]), tick in 1..1u64 << 53) {
            let clock = TickClock::new(hz);
            let at = clock.time_of(tick).unwrap();
            prop_assert_eq!(clock.ticks(at), tick);
            prop_assert!(clock.ticks(Time(at.0 - 1)) < tick);
        }
    }

    #[test]
    fn there_is_an_end_of_time() {
        let clock = TickClock::new(1_193_182);
        assert_eq!(clock.time_of(u64::MAX), None);
        let last = clock.ticks(Time(u64::MAX));
        assert!(clock.time_of(last + 1).is_none());
    }
}
