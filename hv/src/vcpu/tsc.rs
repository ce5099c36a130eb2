//! The guest's TSC: a counter, which `tsc_mode` chooses, plus the vCPU's offset.
//!
//! Usually the counter is the host's TSC and the CPU adds the offset. Emulated, it is the time base itself in nanoseconds (xl's
//! `always_emulate` promises 1 GHz), RDTSC and RDTSCP exit, and the CPU's offset is not used.

use super::{Context, VirtCpu};
use crate::{clock::Clock, config::TscMode};
use x86defs::{Platform, Rate, Time};

/// Frequency of an emulated TSC in Hz.
const EMULATED_HZ: u64 = 1_000_000_000;

impl TscMode {
    /// The counter behind the guest's TSC at host TSC value `tsc`.
    #[inline]
    #[must_use]
    pub const fn counter(self, clock: &Clock, tsc: u64) -> u64 {
        match self {
            Self::Native => tsc,
            Self::Emulated => clock.at(tsc).0,
        }
    }

    /// When the counter has a value.
    #[must_use]
    pub const fn time_of(self, clock: &Clock, counter: u64) -> Time {
        match self {
            Self::Native => clock.at(counter),
            Self::Emulated => Time(counter),
        }
    }

    /// Of the guest's TSC, in Hz, where the host's has `host_hz`.
    #[must_use]
    pub const fn hz(self, host_hz: u64) -> u64 {
        match self {
            Self::Native => host_hz,
            Self::Emulated => EMULATED_HZ,
        }
    }

    /// From ticks of the guest's TSC to nanoseconds.
    #[inline]
    #[must_use]
    pub const fn to_ns(self, clock: &Clock) -> Rate {
        match self {
            Self::Native => clock.to_ns(),
            Self::Emulated => const { Rate::new(EMULATED_HZ, 1_000_000_000) },
        }
    }
}

impl<P: Platform> VirtCpu<P> {
    /// The counter behind the guest's TSC, now.
    #[inline]
    pub(super) fn tsc_counter(&self, cx: &Context<'_, P>) -> u64 {
        self.tsc_mode.counter(&cx.clock, cx.platform.tsc())
    }

    /// The guest's TSC, now.
    pub(crate) fn guest_tsc(&self, platform: &P, clock: &Clock) -> u64 {
        self.tsc_mode.counter(clock, platform.tsc()).wrapping_add(self.msrs.tsc_offset())
    }
}
