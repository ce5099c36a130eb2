//! The page lent to a CPU that virtualises local APICs (SDM vol. 3C, chapter 31): it reads and writes registers for the guest, keeps TPR, PPR, ISR
//! and IRR, and delivers what the IRR requests, all without an exit.
//!
//! While the page is lent, the owner may change what the CPU does not (the LVT, the ICR, the timer's registers ...) at any time, and the IRR
//! between two entries. Others only request, as ever; the owner hands that over ([`LocalApic::hand_over`]) before it enters the guest.

use super::{Effect, LocalApic, flag, page::place, spec::reg};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

impl x86defs::VirtualApicPage for LocalApic {
    #[cfg(not(loom))]
    fn registers(&self) -> &[core::sync::atomic::AtomicU32; 1024] {
        self.page.words()
    }

    #[cfg(loom)]
    fn registers(&self) -> &[core::sync::atomic::AtomicU32; 1024] {
        unreachable!("a model has no CPU to lend the page to, and its words are not memory")
    }
}

impl LocalApic {
    #[inline(always)]
    pub(super) fn is_lent(&self) -> bool {
        self.lent.load(Relaxed)
    }

    /// The page is the CPU's from now on. Returns the highest vector in service (0: none), which the CPU wants to know. Owner only.
    pub fn lend_page(&self) -> u8 {
        self.lent.store(true, Relaxed);
        // Everything is to be handed over.
        self.state.fetch_or(flag::IRR | flag::LEVELS, AcqRel);
        self.in_service.load(Relaxed) as u8
    }

    /// The CPU is done with the page. Owner only.
    pub fn take_page_back(&self) {
        self.lent.store(false, Relaxed);
        for (index, requests) in (0..).zip(&self.requests) {
            let in_page = self.page.vectors(reg::IRR, index);
            requests.fetch_or(in_page.load(Relaxed), AcqRel);
            in_page.store(0, Relaxed);
        }
        self.adopt_page();
    }

    /// Moves what has been requested to the page's IRR. Returns the highest vector there for the CPU to deliver when the priority lets it
    /// through; 0 if there is none, or the APIC is software-disabled. Owner only, with the page lent and the guest not running.
    #[inline]
    pub fn hand_over(&self) -> u8 {
        let state = self.state.fetch_and(!(flag::IRR | flag::WORDS), AcqRel);
        let mut words = state & flag::WORDS;
        while let Some(index) = words.checked_ilog2() {
            words &= !(1 << index);
            let (requests, in_page) = (self.requests(index), self.page.vectors(reg::IRR, index));
            let new = requests.load(Acquire);
            // In this order, so that nobody who asks meanwhile finds it nowhere.
            in_page.store(in_page.load(Relaxed) | new, Relaxed);
            requests.fetch_and(!new, AcqRel);
        }
        if self.software_enabled() { self.highest_in_page() } else { 0 }
    }

    fn highest_in_page(&self) -> u8 {
        let highest = |index| {
            let bit = self.page.vectors(reg::IRR, index).load(Relaxed).checked_ilog2()?;
            Some((index << 5 | bit) as u8)
        };
        (0..8).rev().find_map(highest).unwrap_or(0)
    }

    /// As [`LocalApic::pending`] while the page is lent: what is not handed over yet counts as well.
    #[cold]
    pub(super) fn find_pending_in_page(&self) -> Option<u8> {
        if !self.software_enabled() {
            return None;
        }
        let vector = (0..8).rev().find_map(|index| {
            let bit = self.requested(index).checked_ilog2()?;
            Some((index << 5 | bit) as u8)
        })?;
        (vector >> 4 > self.ppr() >> 4).then_some(vector)
    }

    /// The processor halts: what the page's IRR holds is a reason to go on, if the priority lets it through. Owner only, with the page lent.
    pub fn look_again(&self) {
        if self.highest_in_page() != 0 {
            self.state.fetch_or(flag::IRR, Release);
        }
    }

    /// The vectors whose EOI others must hear of, and the highest one in service, if either has changed since the last call and the CPU does not know.
    #[inline]
    pub fn changed_levels(&self) -> Option<([u32; 8], u8)> {
        if self.state.load(Acquire) & flag::LEVELS == 0 {
            return None;
        }
        self.state.fetch_and(!flag::LEVELS, AcqRel);
        Some((self.page.bitmap(reg::TMR), self.highest_in_service(self.page.summary(reg::ISR)) as u8))
    }

    /// As [`LocalApic::eoi`] while the page is lent, of a write that the CPU has left to us: it does none but plain stores.
    #[cold]
    pub(super) fn eoi_in_page(&self) -> Option<u8> {
        let vector = self.highest_in_service(self.page.summary(reg::ISR)) as u8;
        if vector == 0 {
            return None;
        }
        let (index, bit) = place(vector);
        let in_service = self.page.vectors(reg::ISR, index);
        in_service.store(in_service.load(Relaxed) & !bit, Relaxed);
        self.state.fetch_or(flag::LEVELS | flag::IRR, Release);
        (self.is_level(vector) && self.eoi_level(vector)).then_some(vector)
    }

    /// The CPU has done the EOI of `vector`, and did not keep to itself that it was level-triggered.
    pub fn virtual_eoi(&self, vector: u8) -> Effect {
        if self.is_level(vector) && self.eoi_level(vector) { Effect::Eoi { vector } } else { Effect::None }
    }

    /// The CPU has written the register at `offset`, and left to us what that does. It does so for a self IPI of an illegal vector, and in
    /// xAPIC mode for all other IPIs.
    pub fn virtual_write(&self, offset: u32) -> Effect {
        match offset {
            reg::SELF_IPI => self.send_to_self(self.page.get(offset) as u8),
            reg::ICR_LOW => return self.write_icr_low(self.page.get(offset)),
            _ => {}
        }
        Effect::None
    }

    /// True if the 8259 pair has an interrupt for this processor. The answer stays true until the owner does something.
    #[inline]
    #[must_use]
    pub fn has_extint(&self) -> bool {
        self.state.load(Acquire) & flag::EXTINT != 0 && self.extint_pending()
    }

    /// The vectors from `32 * index` on that wait to be taken.
    #[inline]
    pub(super) fn requested(&self, index: u32) -> u32 {
        // In this order: see `hand_over`.
        let requests = self.requests(index).load(Acquire);
        requests | self.page.vectors(reg::IRR, index).load(Relaxed)
    }

    /// All vectors that wait to be taken.
    pub(super) fn all_requested(&self) -> [u32; 8] {
        core::array::from_fn(|index| self.requested(index as u32))
    }
}
