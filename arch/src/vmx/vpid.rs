//! Virtual-processor identifiers: one a vCPU, so that an entry or exit needs not drop translations.
//!
//! Manual: see [`super::spec`], 30.1.

use spin::Mutex;

/// How many vCPUs the host can have.
const COUNT: usize = 4096;

/// Bit `n` is set while VPID `n` is in use. VPID 0 is the host's.
static USED: Mutex<[u64; COUNT / 64]> = Mutex::new({
    let mut words = [0; COUNT / 64];
    words[0] = 1;
    words
});

/// A VPID that is nobody else's until it is dropped.
#[derive(Debug)]
pub struct Vpid(u16);

impl Vpid {
    /// The lowest free one, if there is one.
    pub fn allocate() -> Option<Self> {
        let mut used = USED.lock();
        let (word, bits) = used.iter_mut().enumerate().find(|(_, bits)| **bits != u64::MAX)?;
        let bit = bits.trailing_ones();
        *bits |= 1 << bit;
        Some(Self(word as u16 * 64 + bit as u16))
    }

    #[must_use]
    pub const fn get(&self) -> u16 {
        self.0
    }
}

impl Drop for Vpid {
    fn drop(&mut self) {
        USED.lock()[usize::from(self.0) / 64] &= !(1 << (self.0 % 64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, vec::Vec};

    #[test]
    fn vpids_are_unique_never_zero_and_come_back() {
        let all: Vec<Vpid> = core::iter::from_fn(Vpid::allocate).collect();
        let numbers: BTreeSet<u16> = all.iter().map(Vpid::get).collect();
        assert_eq!(numbers.len(), COUNT - 1);
        assert!(!numbers.contains(&0));
        assert!(Vpid::allocate().is_none());
        drop(all);
        assert_eq!(Vpid::allocate().unwrap().get(), 1);
    }
}
