//! How the hypervisor shares CPU time: guests that only work, started together, and what each of them got done.
//!
//! Work per time is compared between two marks that each guest sets by its own clock, away from the start and the end, when not all run.

use std::collections::BTreeMap;

use crate::{list::Platform, machine::Spec};

/// One guest of a share test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Worker {
    pub weight: u16,
    /// Percent of a CPU; 0 for none.
    pub cap: u32,
    /// Its part of all work done, in the same unit for all guests of the test.
    pub part: u32,
}

const fn worker(weight: u16, cap: u32, part: u32) -> Worker {
    Worker { weight, cap, part }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShareTest {
    pub name: &'static str,
    /// Host CPUs.
    pub cpus: u32,
    /// How long each guest works, in ms.
    pub ms: u32,
    /// Into how many parts that is divided, at whose ends the guests say what they got done.
    pub marks: u32,
    pub workers: &'static [Worker],
    /// How far apart the guests may be, in percent of the mean, each measured by its part.
    pub tolerance: u32,
    pub on: &'static [Platform],
}

const EMULATORS: &[Platform] = &[Platform::SvmIcount, Platform::VmxBochs];

pub const SHARES: &[ShareTest] = &[
    ShareTest {
        name: "shares-weight",
        cpus: 1,
        ms: 800,
        marks: 4,
        workers: &[worker(256, 0, 1), worker(512, 0, 2)],
        tolerance: 2,
        on: EMULATORS,
    },
    ShareTest {
        name: "shares-cap",
        cpus: 1,
        ms: 1200,
        marks: 8,
        workers: &[worker(256, 25, 1), worker(256, 0, 3)],
        tolerance: 2,
        on: EMULATORS,
    },
    ShareTest {
        name: "shares-equal",
        cpus: 2,
        ms: 1000,
        marks: 5,
        workers: &[worker(256, 0, 1); 16],
        tolerance: 3,
        on: &[Platform::VmxBochs],
    },
];

impl ShareTest {
    pub(crate) fn spec(&self, platform: Platform) -> Spec {
        Spec { cpus: self.cpus, ..platform.spec() }
    }

    pub(crate) fn guest(n: usize) -> String {
        format!("worker{n}")
    }

    /// Judges the console's lines.
    pub(crate) fn check(&self, console: &[String]) -> Result<(), String> {
        let done: Vec<u64> = (0..self.workers.len()).map(|n| work_of(n, self.marks, console)).collect::<Result<_, _>>()?;
        let by_part = done.iter().zip(self.workers).map(|(work, worker)| work / u64::from(worker.part));
        let (least, most) = (by_part.clone().min().unwrap_or(0), by_part.clone().max().unwrap_or(0));
        let mean = by_part.sum::<u64>() / self.workers.len().max(1) as u64;
        if (most - least) * 100 > mean * u64::from(self.tolerance) {
            let parts: Vec<u32> = self.workers.iter().map(|worker| worker.part).collect();
            return Err(format!(
                "units of work in a second: {done:?}; that should be {parts:?}, but for {} %, and differs by {} of {mean}",
                self.tolerance,
                most - least
            ));
        }
        Ok(())
    }
}

/// Units that a guest did in a second between its first mark and its last but one. The first guest has the console, so its lines are as it writes
/// them.
fn work_of(n: usize, marks: u32, console: &[String]) -> Result<u64, String> {
    let guest = ShareTest::guest(n);
    let prefix = if n == 0 { "work ".to_owned() } else { format!("({guest}) work ") };
    let found: BTreeMap<u32, (u64, u64)> = console
        .iter()
        .filter_map(|line| {
            let mut numbers = line.strip_prefix(&prefix)?.split_whitespace().map(|number| number.parse().ok());
            Some((u32::try_from(numbers.next()??).ok()?, (numbers.next()??, numbers.next()??)))
        })
        .collect();
    match (found.get(&1), found.get(&(marks - 1))) {
        (Some(first), Some(last)) if last.0 > first.0 && last.1 > first.1 => {
            Ok((last.0 - first.0) * 1_000_000 / (last.1 - first.1))
        }
        _ => Err(format!("{guest} did not work, or said so where nobody saw it: {found:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(work: &[(u64, u64)]) -> Vec<String> {
        work.iter()
            .enumerate()
            .flat_map(|(n, (first, third))| {
                let name = if n == 0 { String::new() } else { format!("(worker{n}) ") };
                [format!("{name}work 1 {first} 1000"), format!("{name}work 2 0 0"), format!("{name}work 3 {third} 1001000")]
            })
            .collect()
    }

    #[test]
    fn parts_are_judged_with_the_tolerance() {
        let test = &SHARES[0];
        assert_eq!(test.check(&console(&[(50, 150), (100, 300)])), Ok(()));
        assert_eq!(test.check(&console(&[(50, 151), (100, 300)])), Ok(()));
        assert_eq!(test.check(&console(&[(50, 151), (100, 302)])), Ok(()));
        let late: Vec<String> =
            console(&[(50, 150), (100, 400)]).iter().map(|l| l.replace("400 1001000", "400 1501000")).collect();
        assert_eq!(test.check(&late), Ok(()), "more done in more time");
        assert!(test.check(&console(&[(50, 155), (100, 300)])).is_err());
        assert!(test.check(&console(&[(50, 150)])).is_err(), "one said nothing");
        assert!(test.check(&console(&[(50, 50), (100, 300)])).is_err(), "one stood still");
    }
}
