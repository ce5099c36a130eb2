//! The one time base. Devices receive `now` and return deadlines; nobody below the run loop reads a clock.

use core::ops::{Add, AddAssign, Sub};

/// A point in time: nanoseconds since the host's time base started. Never goes backwards.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Time(pub u64);

/// A length of time in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Duration(pub u64);

impl Duration {
    pub const fn from_micros(us: u64) -> Self {
        Self(us * 1_000)
    }
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms * 1_000_000)
    }
    pub const fn from_secs(s: u64) -> Self {
        Self(s * 1_000_000_000)
    }
}

impl Time {
    /// Time elapsed since `earlier`; zero if `earlier` lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(d.0))
    }
}

impl AddAssign<Duration> for Time {
    fn add_assign(&mut self, d: Duration) {
        *self = *self + d;
    }
}

impl Sub<Duration> for Time {
    type Output = Self;
    fn sub(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(d.0))
    }
}

/// Conversion from a counter of one frequency to one of another: `out = in * to / from`, in 32.32 fixed point widened to
/// 128 bits. Exact to one part in 2^32 of the ratio, monotonic, and cheap (one multiply, one shift).
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Rate {
    mul: u64,
    shift: u32,
}

impl Rate {
    /// A conversion from a counter of `from` Hz to one of `to` Hz. Both must be non-zero; a zero is taken as 1.
    #[must_use]
    pub const fn new(from: u64, to: u64) -> Self {
        let from = if from == 0 { 1 } else { from };
        let to = if to == 0 { 1 } else { to };
        // The largest shift for which the multiplier still fits 64 bits keeps the most precision.
        let mut shift = 63;
        loop {
            let mul = (((to as u128) << shift) + (from as u128) / 2) / from as u128;
            if mul <= u64::MAX as u128 || shift == 0 {
                return Self { mul: mul as u64, shift };
            }
            shift -= 1;
        }
    }

    /// Converts a count; wraps only if the result does not fit 64 bits.
    #[inline]
    #[must_use]
    pub const fn apply(&self, count: u64) -> u64 {
        ((count as u128 * self.mul as u128) >> self.shift) as u64
    }
}

/// Who knows the time: a [`Time`] that was read before, or a clock that is read when somebody asks. Reading one takes about as long as a
/// simple device access, and most do not want to know.
pub trait TimeSource {
    fn now(&self) -> Time;
}

impl TimeSource for Time {
    #[inline(always)]
    fn now(&self) -> Time {
        *self
    }
}

impl<T: TimeSource> TimeSource for &T {
    #[inline(always)]
    fn now(&self) -> Time {
        (**self).now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_exact_over_days() {
        // 1193182 Hz over ten days stays within one tick of the exact value.
        let rate = Rate::new(1_000_000_000, 1_193_182);
        let ns = 10 * 86_400 * 1_000_000_000u64;
        let exact = (u128::from(ns) * 1_193_182 / 1_000_000_000) as u64;
        assert!(rate.apply(ns).abs_diff(exact) <= 1);
    }

    #[test]
    fn rate_up_and_identity() {
        assert_eq!(Rate::new(1, 1_000_000_000).apply(3), 3_000_000_000);
        assert_eq!(Rate::new(7, 7).apply(123_456_789), 123_456_789);
    }
}
