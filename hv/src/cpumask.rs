//! Sets of host CPUs.

use core::fmt;

/// Host CPUs that can be told apart; platforms start no more.
pub const MAX_CPUS: u32 = 256;

/// A set of host CPUs, numbers 0 to [`MAX_CPUS`] - 1.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuMask([u64; MAX_CPUS as usize / 64]);

impl CpuMask {
    pub const EMPTY: Self = Self([0; 4]);
    pub const ALL: Self = Self([u64::MAX; 4]);

    /// The CPUs 0 to `count` - 1.
    #[must_use]
    pub fn first(count: u32) -> Self {
        (0..count).collect()
    }

    #[must_use]
    pub fn single(cpu: u32) -> Self {
        core::iter::once(cpu).collect()
    }

    #[must_use]
    pub fn contains(self, cpu: u32) -> bool {
        self.0.get(cpu as usize / 64).is_some_and(|word| word >> (cpu % 64) & 1 != 0)
    }

    /// Adds a CPU; numbers that are too large are left out.
    pub fn insert(&mut self, cpu: u32) {
        if let Some(word) = self.0.get_mut(cpu as usize / 64) {
            *word |= 1 << (cpu % 64);
        }
    }

    pub fn remove(&mut self, cpu: u32) {
        if let Some(word) = self.0.get_mut(cpu as usize / 64) {
            *word &= !(1 << (cpu % 64));
        }
    }

    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::EMPTY
    }

    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let mut both = self;
        for (word, other) in both.0.iter_mut().zip(other.0) {
            *word &= other;
        }
        both
    }

    /// The CPUs in ascending order.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..MAX_CPUS).filter(move |&cpu| self.contains(cpu))
    }
}

impl FromIterator<u32> for CpuMask {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> Self {
        let mut mask = Self::EMPTY;
        for cpu in cpus {
            mask.insert(cpu);
        }
        mask
    }
}

/// As in `cpus=`: "0-3,5"; "none" if empty.
impl fmt::Display for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut cpu = 0;
        while cpu < MAX_CPUS {
            if !self.contains(cpu) {
                cpu += 1;
                continue;
            }
            let first = cpu;
            while self.contains(cpu) {
                cpu += 1;
            }
            match cpu - first {
                1 => write!(f, "{separator}{first}")?,
                _ => write!(f, "{separator}{first}-{}", cpu - 1)?,
            }
            separator = ",";
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

impl fmt::Debug for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuMask({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn shown_as_ranges() {
        assert_eq!(CpuMask::from_iter([0, 1, 2, 3, 5, 255]).to_string(), "0-3,5,255");
        assert_eq!(CpuMask::EMPTY.to_string(), "none");
        assert_eq!(CpuMask::ALL.to_string(), "0-255");
        assert!(CpuMask::from_iter([256, 1000]).is_empty());
    }
}
