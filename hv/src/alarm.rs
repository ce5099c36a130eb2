//! What a CPU's timer has to fire for, apart by whose it is: the timer of the running vCPU's local APIC fires without more ado than that.

use crate::sched::TaskId;
use core::cell::Cell;
use x86defs::Time;

/// A CPU's timer. All values are the host's TSC; `u64::MAX` is never.
#[derive(Debug)]
pub struct Alarm {
    armed: Cell<u64>,
    /// The first of what the running vCPU cannot see to itself.
    others: Cell<u64>,
}

impl Alarm {
    /// One that is not armed.
    #[must_use]
    pub const fn new() -> Self {
        Self { armed: Cell::new(u64::MAX), others: Cell::new(u64::MAX) }
    }

    /// True if something is due at `tsc` that the running vCPU cannot see to itself.
    #[inline]
    pub fn is_for_others(&self, tsc: u64) -> bool {
        self.others.get() <= tsc
    }

    /// A new start: `others` is the first deadline but the running vCPU's, `own` is that. Returns what to arm the timer for.
    #[inline]
    pub fn set(&self, others: Option<u64>, own: Option<u64>) -> Option<u64> {
        self.others.set(others.unwrap_or(u64::MAX));
        self.set_own(own)
    }

    /// The same, with the others' as it is.
    #[inline]
    pub fn set_own(&self, own: Option<u64>) -> Option<u64> {
        let armed = self.others.get().min(own.unwrap_or(u64::MAX));
        self.armed.set(armed);
        (armed != u64::MAX).then_some(armed)
    }

    /// One more deadline of the running vCPU's. True if the timer must be armed for it.
    #[inline]
    pub fn add_own(&self, tsc: u64) -> bool {
        let earlier = tsc < self.armed.get();
        if earlier {
            self.armed.set(tsc);
        }
        earlier
    }

    /// One more deadline that is not the running vCPU's. True if the timer must be armed for it.
    #[inline]
    pub fn add_other(&self, tsc: u64) -> bool {
        self.others.set(self.others.get().min(tsc));
        self.add_own(tsc)
    }
}

impl Default for Alarm {
    fn default() -> Self {
        Self::new()
    }
}

/// The earliest of several deadlines, with and without one vCPU's own, of which there is at most one each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deadlines {
    first: Option<(Time, Option<TaskId>)>,
    /// The earliest of all that are not `first`'s owner's.
    second: Option<Time>,
}

impl Deadlines {
    /// `owner` is the vCPU whose own it is, if it is one's.
    pub(crate) fn add(&mut self, deadline: Option<Time>, owner: Option<TaskId>) {
        let Some(time) = deadline else { return };
        match self.first {
            Some((first, _)) if first <= time => self.second = earlier(self.second, deadline),
            first => {
                self.second = earlier(self.second, first.map(|(time, _)| time));
                self.first = Some((time, owner));
            }
        }
    }

    /// The earliest, and `owner`'s own does not count.
    pub(crate) fn without(&self, owner: Option<TaskId>) -> Option<Time> {
        match self.first {
            Some((_, first)) if first.is_some() && first == owner => self.second,
            first => first.map(|(time, _)| time),
        }
    }
}

pub(crate) fn earlier(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_sees_to_its_own_deadline_alone() {
        let alarm = Alarm::new();
        assert_eq!(alarm.set(Some(50), Some(30)), Some(30));
        assert!(!alarm.is_for_others(49) && alarm.is_for_others(50));
        assert!(alarm.add_own(20) && !alarm.add_own(25));
        assert!(!alarm.is_for_others(49));
        assert!(!alarm.add_other(40), "it fires before that");
        assert!(alarm.is_for_others(40));
        assert_eq!(alarm.set_own(Some(60)), Some(40));
        assert_eq!(alarm.set(None, None), None);
        assert!(!alarm.is_for_others(u64::MAX - 1));
    }

    #[test]
    fn the_earliest_deadline_is_found_with_and_without_anybodys_own() {
        let task = |vcpu| Some(TaskId { vm: 1, vcpu });
        let given = [(70, task(0)), (50, None), (30, task(1)), (40, task(2))];
        // Whatever the order.
        for rotation in 0..given.len() {
            let mut all = given;
            all.rotate_left(rotation);
            let mut deadlines = Deadlines::default();
            for (time, owner) in all {
                deadlines.add(Some(Time(time)), owner);
            }
            deadlines.add(None, None);
            assert_eq!(deadlines.without(None), Some(Time(30)));
            assert_eq!(deadlines.without(task(0)), Some(Time(30)));
            assert_eq!(deadlines.without(task(1)), Some(Time(40)));
        }
        assert_eq!(Deadlines::default().without(None), None);
    }
}
