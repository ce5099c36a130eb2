//! Address-space identifiers: tags by which one CPU's TLB tells its guests apart (APM vol. 2, 24593 rev. 3.42, 15.16).
//!
//! Each CPU hands out its own, in order. When they are used up, a new generation begins with one flush of everything, and a vCPU of an
//! older generation gets a new identifier when it is next loaded. So any number of vCPUs can share a CPU that has only a few.

/// An identifier, and what makes it valid: it is only good on the CPU and in the generation in which it was handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asid {
    pub number: u32,
    generation: u64,
}

/// What must be flushed before an identifier that was just handed out is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    Nothing,
    All,
}

/// One CPU's identifiers.
#[derive(Debug)]
pub struct AsidPool {
    /// Number of identifiers, 0 included.
    count: u32,
    next: u32,
    generation: u64,
}

impl AsidPool {
    /// `count` as CPUID says it, at least 2. Nothing is known of what the TLB holds, so the first identifier comes with a flush.
    #[must_use]
    pub const fn new(count: u32) -> Self {
        Self { count, next: count, generation: 0 }
    }

    /// An identifier under which the TLB holds nothing, once `Flush` is done.
    pub fn assign(&mut self) -> (Asid, Flush) {
        let flush = if self.next >= self.count {
            self.generation += 1;
            // 0 is the host's.
            self.next = 1;
            Flush::All
        } else {
            Flush::Nothing
        };
        let asid = Asid { number: self.next, generation: self.generation };
        self.next += 1;
        (asid, flush)
    }

    /// True if `asid`, handed out by this pool, still belongs to whom it was given.
    #[must_use]
    pub const fn is_current(&self, asid: Asid) -> bool {
        asid.generation == self.generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_identifier_is_used_twice_without_a_flush() {
        let mut pool = AsidPool::new(4);
        let mut seen = std::collections::BTreeSet::new();
        for turn in 0..20 {
            let (asid, flush) = pool.assign();
            if flush == Flush::All {
                seen.clear();
            }
            assert!((1..4).contains(&asid.number), "turn {turn}");
            assert!(seen.insert(asid.number), "turn {turn}: {} again", asid.number);
            assert!(pool.is_current(asid));
        }
    }

    #[test]
    fn the_first_comes_with_a_flush_and_old_generations_end() {
        let mut pool = AsidPool::new(2);
        let (first, flush) = pool.assign();
        assert_eq!(flush, Flush::All);
        let (second, flush) = pool.assign();
        assert_eq!((flush, second.number), (Flush::All, 1));
        assert!(!pool.is_current(first) && pool.is_current(second));
    }
}
