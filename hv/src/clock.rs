//! The one time base: host TSC ticks to nanoseconds since start, and back.

use x86defs::{Platform, Rate, Time};

/// Converts between the host's TSC and [`Time`]. Both directions derive from the same origin and frequency, so that every guest clock
/// (PIT, PM timer, RTC, LAPIC timer, guest TSC) agrees with every other.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: u64,
    to_ns: Rate,
    to_tsc: Rate,
    tsc_hz: u64,
}

impl Clock {
    /// A clock that reads zero at TSC value `origin`; `tsc_hz` is the TSC's frequency in Hz.
    #[must_use]
    pub const fn new(origin: u64, tsc_hz: u64) -> Self {
        Self { origin, to_ns: Rate::new(tsc_hz, 1_000_000_000), to_tsc: Rate::new(1_000_000_000, tsc_hz), tsc_hz }
    }

    /// The host TSC value at time 0.
    #[must_use]
    pub const fn origin(&self) -> u64 {
        self.origin
    }

    /// The time at host TSC value `tsc`; zero for values before the origin.
    #[inline]
    #[must_use]
    pub const fn at(&self, tsc: u64) -> Time {
        Time(self.to_ns.apply(tsc.saturating_sub(self.origin)))
    }

    /// The first host TSC value at which [`Clock::at`] is `time` or later.
    #[inline]
    #[must_use]
    pub const fn tsc_at(&self, time: Time) -> u64 {
        // Rounded up: a timer that fires a tick early would find nothing due and arm itself again.
        self.origin.saturating_add(self.to_tsc.apply(time.0)).saturating_add(1)
    }

    /// Now, by the platform's TSC.
    #[inline]
    pub fn now<P: Platform>(&self, platform: &P) -> Time {
        self.at(platform.tsc())
    }

    /// The TSC's frequency in Hz.
    #[must_use]
    pub const fn tsc_hz(&self) -> u64 {
        self.tsc_hz
    }

    /// From a span of TSC ticks to nanoseconds.
    #[must_use]
    pub const fn to_ns(&self) -> Rate {
        self.to_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadline_is_never_early_and_at_most_two_ticks_late() {
        for hz in [1_000_000_000, 2_445_406_000, 3_700_000_123] {
            let clock = Clock::new(12_345, hz);
            for ns in [0, 1, 999, 1_000_000_007, 86_400_000_000_000] {
                let tsc = clock.tsc_at(Time(ns));
                assert!(clock.at(tsc) >= Time(ns), "hz {hz} ns {ns}");
                assert!(clock.at(tsc - 3) <= Time(ns), "hz {hz} ns {ns}");
            }
        }
    }
}
