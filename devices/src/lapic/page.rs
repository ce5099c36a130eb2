//! The register page as memory.

use super::spec::reg;
use crate::sync::atomic::{AtomicU32, Ordering::Relaxed};

#[cfg(not(loom))]
type Words = [AtomicU32; 1024];
/// A model of the hand-over does with those words that are registers, and has small stacks.
#[cfg(loom)]
type Words = alloc::boxed::Box<[AtomicU32; 256]>;

/// The architectural 4-KiB register page: the register at byte offset `r` is word `r / 4`. In x2APIC mode it has the same layout, with
/// the 32-bit ID and LDR, and the destination of the ICR at 0x310.
#[repr(C, align(4096))]
pub struct ApicPage(Words);

impl ApicPage {
    pub(super) fn new() -> Self {
        #[cfg(not(loom))]
        let words = [const { AtomicU32::new(0) }; 1024];
        #[cfg(loom)]
        let words =
            Words::try_from(core::iter::repeat_with(|| AtomicU32::new(0)).take(256).collect::<alloc::boxed::Box<_>>()).unwrap();
        Self(words)
    }

    #[cfg(not(loom))]
    pub(super) const fn words(&self) -> &[AtomicU32; 1024] {
        &self.0
    }

    /// The register at byte `offset`, which is taken modulo the page.
    #[inline(always)]
    pub(super) fn at(&self, offset: u32) -> &AtomicU32 {
        // Masked, so that there is no bounds check and no panic.
        &self.0[(offset >> 2) as usize & (self.0.len() - 1)]
    }

    #[inline(always)]
    pub(super) fn get(&self, offset: u32) -> u32 {
        self.at(offset).load(Relaxed)
    }

    #[inline(always)]
    pub(super) fn set(&self, offset: u32, value: u32) {
        self.at(offset).store(value, Relaxed);
    }

    /// The word of ISR, TMR or IRR (`first`) that holds the vectors from `32 * index` on.
    #[inline(always)]
    pub(super) fn vectors(&self, first: u32, index: u32) -> &AtomicU32 {
        self.at(first + ((index & 7) << 4))
    }

    /// The ISR, TMR or IRR (`first`) as a whole.
    pub(super) fn bitmap(&self, first: u32) -> [u32; 8] {
        core::array::from_fn(|index| self.vectors(first, index as u32).load(Relaxed))
    }

    pub(super) fn set_bitmap(&self, first: u32, words: &[u32; 8]) {
        for (index, &word) in (0..).zip(words) {
            self.vectors(first, index).store(word, Relaxed);
        }
    }

    /// The eight-bit map of those words of `first` that are not zero.
    pub(super) fn summary(&self, first: u32) -> u32 {
        summary(&self.bitmap(first))
    }

    /// The registers' values after power-up and INIT (SDM vol. 3A, 11.4.7.1), but for ID and LDR.
    pub(super) fn reset(&self) {
        for offset in (0..0x400).step_by(16) {
            self.set(offset, 0);
        }
        self.set(reg::ICR_HIGH_X2APIC, 0);
        self.set(reg::VERSION, super::spec::VERSION);
        self.set(reg::DFR, u32::MAX);
        self.set(reg::SVR, super::spec::svr::RESET);
        for entry in reg::LVT {
            self.set(entry, super::spec::lvt::MASKED);
        }
    }
}

/// The eight-bit map of those words that are not zero.
pub(super) fn summary(words: &[u32; 8]) -> u32 {
    (0..).zip(words).filter(|(_, word)| **word != 0).fold(0, |map, (index, _)| map | 1 << index)
}

/// Word index and bit of a vector in ISR, TMR and IRR.
#[inline(always)]
pub(super) const fn place(vector: u8) -> (u32, u32) {
    ((vector >> 5) as u32, 1 << (vector & 31))
}
