//! The earliest deadline of a board's devices, which every turn of a CPU asks for: found once, and kept until some device's changes.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use spin::Mutex;
use x86defs::Time;

/// No deadline.
const NEVER: u64 = u64::MAX;

/// What is kept, for which version of the devices' deadlines.
#[derive(Debug)]
pub(super) struct NextDeadline {
    /// Counts changes.
    version: AtomicU32,
    /// Of which `time` is, at least.
    known: AtomicU32,
    time: AtomicU64,
    finding: Mutex<()>,
}

impl NextDeadline {
    pub(super) const fn new() -> Self {
        Self { version: AtomicU32::new(1), known: AtomicU32::new(0), time: AtomicU64::new(NEVER), finding: Mutex::new(()) }
    }

    /// A device's deadline has changed, or may have: what `find` of a later [`NextDeadline::get`] sees counts. Called with the device's lock held or
    /// after that, so that one who found the old deadline did so before this.
    #[inline]
    pub(super) fn forget(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }

    /// What `find` returns, or has returned since the last change.
    #[inline]
    pub(super) fn get(&self, find: impl FnOnce() -> Option<Time>) -> Option<Time> {
        if self.known.load(Ordering::Acquire) != self.version.load(Ordering::Acquire) {
            self.find(find);
        }
        Some(self.time.load(Ordering::Acquire)).filter(|time| *time != NEVER).map(Time)
    }

    #[inline(never)]
    fn find(&self, find: impl FnOnce() -> Option<Time>) {
        let _one = self.finding.lock();
        // Before: a change while others are looked at makes this one old.
        let version = self.version.load(Ordering::Acquire);
        let time = find().map_or(NEVER, |time| time.0);
        self.time.store(time, Ordering::Release);
        self.known.store(version, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    #[test]
    fn a_deadline_is_found_once_for_each_change() {
        let next = NextDeadline::new();
        let (asked, now) = (Cell::new(0), Cell::new(Some(Time(5))));
        let get = || {
            next.get(|| {
                asked.set(asked.get() + 1);
                now.get()
            })
        };
        assert_eq!([get(), get()], [Some(Time(5)); 2]);
        assert_eq!(asked.get(), 1);
        now.set(None);
        next.forget();
        assert_eq!([get(), get()], [None; 2]);
        assert_eq!(asked.get(), 2);
    }

    #[test]
    fn a_change_while_it_is_found_is_not_lost() {
        let next = NextDeadline::new();
        let first = next.get(|| {
            next.forget();
            Some(Time(9))
        });
        assert_eq!(first, Some(Time(9)), "found before the change");
        assert_eq!(next.get(|| Some(Time(3))), Some(Time(3)));
    }
}
