//! Which code an input has reached, by the counters of `-C instrument-coverage`. With `--cfg fuzz_coverage` only.

/// The counters have been seen in these ranges so far, a bit for each.
#[derive(Default, Debug)]
pub struct Map(Vec<u8>);

/// Counts in powers of four: another range counts as something new.
#[cfg(any(fuzz_coverage, test))]
const fn range(count: u64) -> u8 {
    match count {
        0 => 0,
        1 => 1 << 0,
        2..4 => 1 << 1,
        4..16 => 1 << 2,
        16..64 => 1 << 3,
        64..256 => 1 << 4,
        256..1024 => 1 << 5,
        1024..4096 => 1 << 6,
        _ => 1 << 7,
    }
}

impl Map {
    /// Adds what was counted since [`start`]. Returns how much of that is new.
    #[cfg(any(fuzz_coverage, test))]
    fn add(&mut self, counts: &[u64]) -> usize {
        self.0.resize(counts.len(), 0);
        let mut new = 0;
        for (seen, &count) in self.0.iter_mut().zip(counts) {
            let range = range(count);
            if range & !*seen != 0 {
                *seen |= range;
                new += 1;
            }
        }
        new
    }

    /// Adds what this program has done since [`start`]. Returns how much of that is new: always 0 without counters.
    pub fn add_all(&mut self) -> usize {
        #[cfg(fuzz_coverage)]
        return self.add(counters::get());
        #[cfg(not(fuzz_coverage))]
        0
    }

    /// Ranges seen of all counters.
    #[must_use]
    pub fn seen(&self) -> usize {
        self.0.iter().map(|seen| seen.count_ones() as usize).sum()
    }
}

/// True if there are counters.
#[must_use]
pub const fn available() -> bool {
    cfg!(fuzz_coverage)
}

/// Starts counting anew.
pub fn start() {
    #[cfg(fuzz_coverage)]
    counters::get().fill(0);
}

#[cfg(fuzz_coverage)]
mod counters {
    // Of LLVM's profiling runtime (compiler-rt, InstrProfiling.h), which `-C instrument-coverage` links.
    unsafe extern "C" {
        fn __llvm_profile_begin_counters() -> *mut u64;
        fn __llvm_profile_end_counters() -> *mut u64;
    }

    /// All counters of this program. The thread that runs the targets must be the only one that calls it.
    pub fn get() -> &'static mut [u64] {
        // SAFETY: the two are the ends of one array, which lives as long as the program. The code that counts in it does so by itself while
        // the slice is here, but nobody keeps that for longer than it takes to read or clear it, and a count that is off by one does no harm.
        unsafe {
            let start = __llvm_profile_begin_counters();
            let count = __llvm_profile_end_counters().offset_from(start);
            core::slice::from_raw_parts_mut(start, usize::try_from(count).unwrap_or(0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_place_or_another_magnitude_is_new() {
        let mut map = Map::default();
        assert_eq!(map.add(&[1, 0, 5]), 2);
        assert_eq!(map.add(&[1, 0, 15]), 0);
        assert_eq!(map.add(&[1, 1, 16]), 2);
        assert_eq!(map.add(&[0, 0, u64::MAX]), 1);
        assert_eq!(map.seen(), 5);
    }
}
