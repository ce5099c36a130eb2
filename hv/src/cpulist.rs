//! Lists of host CPUs as xl.cfg(5) and xl(1) write them: `all`, `0-3,5,^2`.
//!
//! Parts are taken from left to right: a CPU or a range adds, one after `^` takes away. So `0-3,^2` is 0, 1 and 3, and `^2,0-3` is 0 to 3.

use crate::cpumask::{CpuMask, MAX_CPUS};
use core::fmt;

/// Why a list is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuListError {
    /// A part is no number and no range.
    Syntax,
    /// A range that ends before it starts.
    Reversed { first: u32, last: u32 },
    /// No host has a CPU of this number.
    TooLarge { cpu: u64 },
    /// `node:` and `nodes:`, which xl knows.
    Nodes,
    /// No CPU is left.
    Nothing,
}

impl fmt::Display for CpuListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax => f.write_str("expected CPUs such as all or 0-3,5,^2"),
            Self::Reversed { first, last } => write!(f, "{first}-{last} ends before it starts"),
            Self::TooLarge { cpu } => write!(f, "CPU {cpu} is beyond {}, the last one possible", MAX_CPUS - 1),
            Self::Nodes => f.write_str("NUMA nodes are known to xl, not supported yet"),
            Self::Nothing => f.write_str("no CPU is left"),
        }
    }
}

/// Reads a list. `all` stands for every CPU that a host could have; what a host does not have is for the caller to take away.
///
/// # Errors
/// The first part that is wrong, or that nothing is left at the end.
pub fn parse(text: &str) -> Result<CpuMask, CpuListError> {
    let mut mask = CpuMask::EMPTY;
    for part in text.split(',') {
        let part = part.trim();
        let (part, add) = match part.strip_prefix('^') {
            Some(rest) => (rest.trim_start(), false),
            None => (part, true),
        };
        if part.starts_with("node:") || part.starts_with("nodes:") {
            return Err(CpuListError::Nodes);
        }
        let (first, last) = match part.split_once('-') {
            _ if part == "all" => (0, MAX_CPUS - 1),
            Some((first, last)) => (number(first)?, number(last)?),
            None => {
                let cpu = number(part)?;
                (cpu, cpu)
            }
        };
        if first > last {
            return Err(CpuListError::Reversed { first, last });
        }
        for cpu in first..=last {
            if add {
                mask.insert(cpu);
            } else {
                mask.remove(cpu);
            }
        }
    }
    if mask.is_empty() { Err(CpuListError::Nothing) } else { Ok(mask) }
}

fn number(text: &str) -> Result<u32, CpuListError> {
    let text = text.trim();
    // A number's parser would take a sign.
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(CpuListError::Syntax);
    }
    let cpu = text.parse().unwrap_or(u64::MAX);
    u32::try_from(cpu).ok().filter(|&cpu| cpu < MAX_CPUS).ok_or(CpuListError::TooLarge { cpu })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    #[test]
    fn lists_as_in_the_manual() {
        for (text, cpus) in [
            ("0", "0"),
            ("0-3", "0-3"),
            ("0-3,5,^2", "0-1,3,5"),
            (" 1 , 3 - 4 , ^ 3 ", "1,4"),
            ("^2,0-3", "0-3"),
            ("all", "0-255"),
            ("all,^1-255", "0"),
            ("^all,7", "7"),
            ("2,2,2", "2"),
            ("007", "7"),
        ] {
            assert_eq!(parse(text).map(|m| m.to_string()).as_deref(), Ok(cpus), "{text}");
        }
    }

    #[test]
    fn what_is_no_list_is_explained() {
        for (text, error) in [
            ("", CpuListError::Syntax),
            ("1,", CpuListError::Syntax),
            ("one", CpuListError::Syntax),
            ("+1", CpuListError::Syntax),
            ("-1", CpuListError::Syntax),
            ("0-", CpuListError::Syntax),
            ("0-1-2", CpuListError::Syntax),
            ("^^1", CpuListError::Syntax),
            ("3-1", CpuListError::Reversed { first: 3, last: 1 }),
            ("0-256", CpuListError::TooLarge { cpu: 256 }),
            ("99999999999999999999999999", CpuListError::TooLarge { cpu: u64::MAX }),
            ("nodes:0-1", CpuListError::Nodes),
            ("all,^node:0", CpuListError::Nodes),
            ("^1", CpuListError::Nothing),
            ("1,^all", CpuListError::Nothing),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-0-9,^al: ]{0,40}") {
            let _ = parse(&text);
        }

        /// What a mask is shown as means that mask.
        #[test]
        fn shown_and_read_again(cpus in proptest::collection::btree_set(0..MAX_CPUS, 1..40)) {
            let mask: CpuMask = cpus.into_iter().collect();
            prop_assert_eq!(parse(&mask.to_string()), Ok(mask));
        }
    }
}
