//! Whether two CPUs' time-stamp counters agree.
//!
//! The two take turns: each reads its counter as soon as it has seen the other's reading. A reading that is lower than the one before it, which
//! the other CPU took, is proof that time goes backwards between the two. The shortest way there and the shortest way back also tell by how much
//! the counters differ, if passing the turn takes equally long both ways.

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

/// Turns that are enough, and turns that say nothing yet.
const ENOUGH: u32 = 2000;
const TOO_FEW: u32 = 8;

/// Where the two meet.
#[derive(Debug)]
pub struct Meeting {
    /// It is the other CPU's turn.
    theirs: AtomicBool,
    over: AtomicBool,
    /// The last reading.
    reading: AtomicU64,
    /// The shortest way to the other CPU so far, in ticks.
    there: AtomicI64,
    turns: AtomicU32,
}

/// The shortest ways in ticks, each from a reading here to one there and the other way round. One that is negative is a proof.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ways {
    pub there: i64,
    pub back: i64,
}

impl Ways {
    /// By how many ticks the other CPU's counter is ahead, if it is out of step provably.
    #[must_use]
    pub const fn off_by(self) -> Option<i64> {
        if self.there < 0 || self.back < 0 { Some(self.there.wrapping_sub(self.back) / 2) } else { None }
    }
}

const fn ticks(from: u64, to: u64) -> i64 {
    to.wrapping_sub(from).cast_signed()
}

impl Meeting {
    #[must_use]
    pub const fn new() -> Self {
        Self {
            theirs: AtomicBool::new(false),
            over: AtomicBool::new(false),
            reading: AtomicU64::new(0),
            there: AtomicI64::new(i64::MAX),
            turns: AtomicU32::new(0),
        }
    }

    /// The part of the CPU that decides. `tsc` must not be read before what precedes it. Gives up after `limit` ticks: `None` if there were too
    /// few turns until then.
    pub fn lead(&self, tsc: impl Fn() -> u64, limit: u64) -> Option<Ways> {
        let start = tsc();
        let mut back = i64::MAX;
        let mut now = start;
        'turns: while self.turns.load(Ordering::Relaxed) < ENOUGH {
            self.reading.store(now, Ordering::Relaxed);
            self.theirs.store(true, Ordering::Release);
            while self.theirs.load(Ordering::Acquire) {
                if tsc().wrapping_sub(start) > limit {
                    break 'turns;
                }
                core::hint::spin_loop();
            }
            now = tsc();
            back = back.min(ticks(self.reading.load(Ordering::Relaxed), now));
        }
        self.over.store(true, Ordering::Release);
        let turns = self.turns.load(Ordering::Acquire);
        (turns >= TOO_FEW).then(|| Ways { there: self.there.load(Ordering::Acquire), back })
    }

    /// The part of the other CPU, until the first one ends it.
    pub fn follow(&self, tsc: impl Fn() -> u64) {
        loop {
            while !self.theirs.load(Ordering::Acquire) {
                if self.over.load(Ordering::Acquire) {
                    return;
                }
                core::hint::spin_loop();
            }
            let now = tsc();
            let way = ticks(self.reading.load(Ordering::Relaxed), now);
            self.there.fetch_min(way, Ordering::Release);
            self.turns.fetch_add(1, Ordering::Release);
            self.reading.store(now, Ordering::Relaxed);
            self.theirs.store(false, Ordering::Release);
        }
    }
}

impl Default for Meeting {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{thread, time::Instant};

    fn meet(ahead: i64) -> Option<Ways> {
        let start = Instant::now();
        // Far from zero, so that a CPU may also be behind.
        let here = || 1 << 40 | start.elapsed().as_nanos() as u64;
        let there = || here().wrapping_add_signed(ahead);
        let meeting = Meeting::new();
        thread::scope(|scope| {
            scope.spawn(|| meeting.follow(there));
            meeting.lead(here, 20_000_000_000)
        })
    }

    #[test]
    fn equal_clocks_agree() {
        let ways = meet(0).unwrap();
        assert_eq!(ways.off_by(), None, "{ways:?}");
    }

    #[test]
    fn a_clock_that_is_ahead_or_behind_is_noticed_and_measured() {
        for ahead in [5_000_000_000, -5_000_000_000] {
            let off = meet(ahead).unwrap().off_by().unwrap();
            assert!(off.abs_diff(ahead) < 100_000_000, "{off} for {ahead}");
        }
    }

    #[test]
    fn a_cpu_that_does_not_come_is_given_up() {
        let start = Instant::now();
        assert_eq!(Meeting::new().lead(|| start.elapsed().as_nanos() as u64, 1_000_000), None);
    }

    #[test]
    fn only_a_step_back_is_proof() {
        assert_eq!(Ways { there: 900, back: 100 }.off_by(), None);
        assert_eq!(Ways { there: 900, back: -100 }.off_by(), Some(500));
        assert_eq!(Ways { there: -100, back: 900 }.off_by(), Some(-500));
    }
}
