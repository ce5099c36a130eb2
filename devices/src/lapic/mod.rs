//! The virtual local APIC, in xAPIC and x2APIC mode.
//!
//! Intel SDM vol. 3A (325384-083), chapter 11; where AMD's differs (AMD APM vol. 2, 24593 rev 3.42, chapter 16) the behaviour is one that
//! both allow.
//!
//! The state is the architectural register page, but for the IRR. It belongs to the vCPU that runs with it (the owner); what other CPUs may
//! call is in [`post`](LocalApic::post) and its siblings, [`LocalApic::set_lint0`], [`LocalApic::advance`], and everything that only reads.
//! Whoever posts an interrupt requests it in words of their own, because the page can be lent to the CPU ([`LocalApic::lend_page`]), which
//! then delivers by itself what the owner has put into the page's IRR.
//!
//! # Why no interrupt is lost
//! One word, `state`, says what there may be to do: a bit for each IRR word that may hold a request, and a bit for each reason to look.
//! Whoever posts sets the IRR bit first, and then in one atomic operation the bits for its word and for "look at the IRR". The owner does
//! it the other way round: it clears the bit in `state` first, and then looks at the IRR.
//! All those operations on `state` are read-modify-writes, so they happen in one order. If the poster's comes before the owner's, then
//! the owner's (acquire) has seen the poster's (release), and what it reads of the IRR afterwards includes the request. If it comes
//! after, then the bit is set again when both are done, and the owner looks again before it enters the guest or sleeps.
//! The same goes for the other bits; an IRR bit itself is cleared by the owner alone, so a query's answer stays true until it accepts.

#[cfg(all(test, loom))]
mod model;
mod page;
mod post;
mod registers;
pub mod spec;
mod state;
#[cfg(all(test, not(loom)))]
mod tests;
mod timer;
mod virtualised;

use alloc::sync::Arc;

pub use crate::interrupt::{DeliveryMode, DestinationMode, Ipi, Shorthand, Trigger};
use crate::{
    interrupt::{ApicAddress, ApicMode},
    sync::atomic::{
        AtomicBool, AtomicU32, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};
pub use page::ApicPage;
use page::place;
pub use post::Posted;
pub use registers::QuickEffect;
use spec::{base, lvt, reg, svr};
pub use state::{InvalidState, LocalApicState};
use timer::Timer;
pub use timer::{BUS_HZ, MIN_PERIOD};

/// The access must raise #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gp;

/// What a register write wants done outside of this APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    None,
    /// Send it to the local APICs that it names.
    Ipi(Ipi),
    /// A level-triggered interrupt has been served: tell the IOAPICs.
    Eoi {
        vector: u8,
    },
    /// [`LocalApic::deadline`] may have changed.
    Timer,
}

/// What a start-up message asks of the processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Startup {
    /// Reset the processor (and call [`LocalApic::init`]); all but the boot processor then wait for a SIPI.
    Init,
    /// Start at this 4-KiB page, if the processor is waiting for it.
    Sipi(u8),
}

/// An interrupt that the processor would take now, were its IF set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pending {
    /// This vector of the local APIC: inject it and call [`LocalApic::accept`].
    Lapic(u8),
    /// The 8259 pair's: acknowledging it there gives the vector.
    ExtInt,
}

/// Bits of `LocalApic::state`.
mod flag {
    /// Bit n: word n of the IRR may hold a request.
    pub const WORDS: u32 = 0xff;
    /// The IRR may hold a request that the priority lets through.
    pub const IRR: u32 = 1 << 8;
    /// The 8259 pair may have an interrupt for this processor.
    pub const EXTINT: u32 = 1 << 9;
    pub const NMI: u32 = 1 << 10;
    pub const INIT: u32 = 1 << 11;
    pub const SIPI: u32 = 1 << 12;
    /// Any of these: the run loop has to look.
    pub const ATTENTION: u32 = IRR | EXTINT | NMI | INIT | SIPI;
    /// An ExtINT message has come and waits for its acknowledgement. Not a reason to look by itself.
    pub const EXTINT_MESSAGE: u32 = 1 << 13;
    /// The TMR has changed since the CPU was told. Not a reason to look by itself.
    pub const LEVELS: u32 = 1 << 14;
    /// A second NMI has come before the first was taken. Not a reason to look by itself.
    pub const NMI_AGAIN: u32 = 1 << 15;
    /// Another processor ends the HLT. Not a reason to look by itself.
    pub const KICKED: u32 = 1 << 16;
    /// Page of the SIPI.
    pub const SIPI_SHIFT: u32 = 24;
}

/// A virtual local APIC. See the module's documentation for who may call what.
pub struct LocalApic {
    page: ApicPage,
    /// What was requested and is not in the page's IRR, which is empty unless the page is lent.
    requests: [AtomicU32; 8],
    state: AtomicU32,
    /// Bit n: word n of the ISR is not zero. Owner only.
    in_service_words: AtomicU32,
    /// The highest vector in service; 0 if none is. Owner only.
    in_service: AtomicU32,
    /// The page is the CPU's. Changed by the owner only.
    lent: AtomicBool,
    /// IA32_APIC_BASE.
    base: AtomicU64,
    id: u32,
    /// Errors since ESR was last written.
    errors: AtomicU32,
    /// Levels of LINT0 (bit 0) and LINT1 (bit 1).
    lines: AtomicU32,
    timer: Timer,
}

/// The logical ID that an APIC has in x2APIC mode (11.12.10.2): cluster in the high half, one bit in the low half.
#[must_use]
pub const fn logical_x2apic_id(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xf)
}

impl LocalApic {
    /// The local APIC with this ID, in xAPIC mode, as firmware leaves it: the boot processor's (`bsp`) passes the 8259 pair's interrupts
    /// on from LINT0 ("virtual wire mode") and takes NMIs from LINT1; the others are as after INIT.
    #[must_use]
    pub fn new(id: u32, bsp: bool) -> Self {
        let apic = Self::blank(id, bsp);
        apic.set_up(bsp);
        apic
    }

    /// The same, where it stays: built there, because it is too large to be moved across stacks.
    #[inline(never)]
    #[must_use]
    pub fn new_shared(id: u32, bsp: bool) -> Arc<Self> {
        let apic = Arc::new(Self::blank(id, bsp));
        apic.set_up(bsp);
        apic
    }

    #[inline(always)]
    fn blank(id: u32, bsp: bool) -> Self {
        Self {
            page: ApicPage::new(),
            requests: core::array::from_fn(|_| AtomicU32::new(0)),
            state: AtomicU32::new(0),
            in_service_words: AtomicU32::new(0),
            in_service: AtomicU32::new(0),
            lent: AtomicBool::new(false),
            base: AtomicU64::new(if bsp { base::BSP } else { 0 }),
            id,
            errors: AtomicU32::new(0),
            lines: AtomicU32::new(0),
            timer: Timer::new(),
        }
    }

    fn set_up(&self, bsp: bool) {
        self.reset();
        if bsp {
            self.page.set(reg::SVR, svr::ENABLE | svr::RESET);
            self.page.set(reg::LVT_LINT0, (DeliveryMode::ExtInt as u32) << lvt::DELIVERY_SHIFT);
            self.page.set(reg::LVT_LINT1, (DeliveryMode::Nmi as u32) << lvt::DELIVERY_SHIFT);
        }
    }

    /// Power-up or hardware reset (11.4.7.1): xAPIC mode at the default address, everything masked, software-disabled.
    pub fn reset(&self) {
        let bsp = self.base.load(Relaxed) & base::BSP;
        self.base.store(base::DEFAULT | base::ENABLE | bsp, Relaxed);
        self.state.fetch_and(!(flag::INIT | flag::SIPI), AcqRel);
        self.init();
    }

    /// INIT (11.4.7.3, 11.12.5.1): as reset, but mode, address and ID stay, and so does a SIPI that has come already.
    pub fn init(&self) {
        // State before IRR: the order of a query, so that a request posted meanwhile is either gone or announced.
        const VOID: u32 =
            flag::WORDS | flag::IRR | flag::EXTINT | flag::NMI | flag::NMI_AGAIN | flag::EXTINT_MESSAGE | flag::KICKED;
        self.state.fetch_and(!VOID, AcqRel);
        for requests in &self.requests {
            requests.swap(0, AcqRel);
        }
        self.page.reset();
        self.set_ids();
        self.in_service_words.store(0, Relaxed);
        self.in_service.store(0, Relaxed);
        self.errors.store(0, Relaxed);
        self.timer.stop();
        if self.mode() == ApicMode::Disabled {
            self.drive_lint0();
        }
    }

    /// ID and LDR as the mode has them.
    fn set_ids(&self) {
        let (id, ldr) = match self.mode() {
            ApicMode::X2Apic => (self.id, logical_x2apic_id(self.id)),
            ApicMode::XApic | ApicMode::Disabled => (self.id << 24, 0),
        };
        self.page.set(reg::ID, id);
        self.page.set(reg::LDR, ldr);
    }

    /// The full (32-bit) APIC ID. It never changes: that software may write it is model-specific (11.4.6).
    #[inline]
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    // --- IA32_APIC_BASE

    /// IA32_APIC_BASE.
    #[inline]
    #[must_use]
    pub fn base_msr(&self) -> u64 {
        self.base.load(Relaxed)
    }

    /// Writes IA32_APIC_BASE. `phys_bits`: the guest's MAXPHYADDR, 32..=52. The BSP flag keeps its value.
    ///
    /// # Errors
    /// #GP for a reserved bit, and for the transitions that 11.12.5 (figure 11-27) forbids: from disabled straight to x2APIC, from
    /// x2APIC to xAPIC, and EXTD without EN.
    pub fn set_base_msr(&self, value: u64, phys_bits: u32) -> Result<(), Gp> {
        let address_mask = ((1u64 << phys_bits.clamp(32, 52)) - 1) & !base::FLAGS;
        if value & !(address_mask | base::BSP | base::EXTD | base::ENABLE) != 0 {
            return Err(Gp);
        }
        let old_value = self.base_msr();
        let old = self.mode();
        let new = mode_of(value).ok_or(Gp)?;
        match (old, new) {
            (ApicMode::Disabled, ApicMode::X2Apic) | (ApicMode::X2Apic, ApicMode::XApic) => return Err(Gp),
            _ => {}
        }
        self.base.store(value & !base::BSP | old_value & base::BSP, Relaxed);
        match (old, new) {
            (ApicMode::XApic, ApicMode::X2Apic) => {
                self.set_ids();
                self.page.set(reg::DFR, u32::MAX);
                self.page.set(reg::ICR_HIGH, 0);
                self.page.set(reg::ICR_HIGH_X2APIC, 0);
            }
            // What was set up is lost (11.4.3); the pins are INTR and NMI now.
            (ApicMode::XApic | ApicMode::X2Apic, ApicMode::Disabled) => self.init(),
            (ApicMode::Disabled, ApicMode::XApic) => self.set_ids(),
            _ => {}
        }
        Ok(())
    }

    #[inline]
    #[must_use]
    pub fn mode(&self) -> ApicMode {
        // The reserved encoding is never stored.
        mode_of(self.base_msr()).unwrap_or(ApicMode::Disabled)
    }

    /// The guest-physical address of the register page, if the registers are in memory.
    #[inline]
    #[must_use]
    pub fn mmio_base(&self) -> Option<u64> {
        (self.mode() == ApicMode::XApic).then(|| self.base_msr() & !base::FLAGS)
    }

    /// What decides whether a message is meant for this APIC.
    #[inline]
    #[must_use]
    pub fn address(&self) -> ApicAddress {
        ApicAddress { mode: self.mode(), id: self.id, ldr: self.page.get(reg::LDR), dfr: self.page.get(reg::DFR) }
    }

    /// SVR bit 8. Never set while the APIC is globally disabled.
    #[inline(always)]
    pub(crate) fn software_enabled(&self) -> bool {
        self.page.get(reg::SVR) & svr::ENABLE != 0
    }

    // --- query and accept: the owner

    /// True if there may be something for the processor: an interrupt, NMI, INIT or SIPI. One load; the run loop asks before each entry.
    #[inline(always)]
    #[must_use]
    pub fn attention(&self) -> bool {
        self.state.load(Acquire) & flag::ATTENTION != 0
    }

    /// The interrupt that the processor would take next. The answer stays true until the owner does something.
    #[inline]
    #[must_use]
    pub fn pending(&self) -> Option<Pending> {
        let state = self.state.load(Acquire);
        if state & flag::EXTINT != 0 && self.extint_pending() {
            return Some(Pending::ExtInt);
        }
        if state & flag::IRR == 0 {
            return None;
        }
        if self.is_lent() {
            return self.find_pending_in_page().map(Pending::Lapic);
        }
        self.find_pending().map(Pending::Lapic)
    }

    /// The most urgent requested vector, if the processor's priority lets it through and the APIC is enabled.
    #[inline]
    #[must_use]
    pub fn highest_pending(&self) -> Option<u8> {
        if self.state.load(Acquire) & flag::IRR == 0 {
            return None;
        }
        self.find_pending()
    }

    /// The word of what was requested that holds the vectors from `32 * index` on.
    #[inline(always)]
    fn requests(&self, index: u32) -> &AtomicU32 {
        // Masked, so that there is no bounds check.
        &self.requests[index as usize & 7]
    }

    #[inline(always)]
    fn find_pending(&self) -> Option<u8> {
        let found = self.deliverable(self.state.load(Acquire));
        if found.is_some() { found } else { self.find_pending_again() }
    }

    #[cold]
    fn find_pending_again(&self) -> Option<u8> {
        // Nothing to deliver: no need to look again until something is posted or the priority falls.
        let state = self.state.fetch_and(!flag::IRR, AcqRel);
        let found = self.deliverable(state);
        if found.is_some() {
            self.state.fetch_or(flag::IRR, Release);
        }
        found
    }

    /// The highest vector of the IRR words that `state` names, if it can be delivered.
    #[inline(always)]
    fn deliverable(&self, state: u32) -> Option<u8> {
        if !self.software_enabled() {
            return None;
        }
        let vector = self.highest_request(state & flag::WORDS)?;
        (vector >> 4 > self.ppr() >> 4).then_some(vector)
    }

    #[inline(always)]
    fn highest_request(&self, words: u32) -> Option<u8> {
        let index = words.checked_ilog2()?;
        match self.requests(index).load(Acquire).checked_ilog2() {
            Some(bit) => Some((index << 5 | bit) as u8),
            None => self.search_requests(words),
        }
    }

    /// As [`LocalApic::highest_request`], and forgets the words in which there is nothing.
    #[cold]
    fn search_requests(&self, mut words: u32) -> Option<u8> {
        while let Some(index) = words.checked_ilog2() {
            let requests = self.requests(index);
            if let Some(bit) = requests.load(Acquire).checked_ilog2() {
                return Some((index << 5 | bit) as u8);
            }
            self.state.fetch_and(!(1 << index), AcqRel);
            if requests.load(Acquire) == 0 {
                words &= !(1 << index);
            } else {
                self.state.fetch_or(1 << index, Release);
            }
        }
        None
    }

    /// Takes what the processor would take next: a vector is in service from now on. The 8259 pair's is for the caller to acknowledge.
    #[inline(always)]
    #[must_use]
    pub fn take(&self) -> Option<Pending> {
        let pending = self.pending()?;
        if let Pending::Lapic(vector) = pending {
            self.accept(vector);
        }
        Some(pending)
    }

    /// The processor takes `vector`, which [`LocalApic::pending`] has just named: it moves from IRR to ISR.
    #[inline(always)]
    pub fn accept(&self, vector: u8) {
        let (index, bit) = place(vector);
        let requests = self.requests(index);
        let emptied = requests.fetch_and(!bit, AcqRel) & !bit == 0;

        let in_service = self.page.vectors(reg::ISR, index);
        in_service.store(in_service.load(Relaxed) | bit, Relaxed);
        self.in_service_words.store(self.in_service_words.load(Relaxed) | 1 << index, Relaxed);
        // Its class is above the priority's, or it would not have been named.
        self.in_service.store(u32::from(vector), Relaxed);
        self.page.set(reg::PPR, u32::from(vector & 0xf0));

        // It was the most urgent one, so the others wait for its EOI - but for those posted in the meantime.
        let done = flag::IRR | if emptied { 1 << index } else { 0 };
        let mut state = self.state.fetch_and(!done, AcqRel) & !done;
        if emptied && requests.load(Acquire) != 0 {
            state |= 1 << index;
            self.state.fetch_or(1 << index, Release);
        }
        if state & flag::WORDS != 0 {
            self.look_behind(state);
        }
    }

    /// More was requested than the processor has just taken.
    #[cold]
    fn look_behind(&self, state: u32) {
        if self.deliverable(state).is_some() {
            self.state.fetch_or(flag::IRR, Release);
        }
    }

    /// Has the IRR looked at again, because the priority may have fallen.
    #[inline(always)]
    fn reconsider(&self) {
        // A concurrent post sets the word's bit and this one in one go, so nothing is missed between load and store.
        if self.state.load(Relaxed) & flag::WORDS != 0 {
            self.state.fetch_or(flag::IRR, Release);
        }
    }

    /// End of interrupt (11.8.5): the most urgent interrupt in service is done. Returns its vector if the IOAPIC must hear of it.
    #[inline(always)]
    fn eoi(&self) -> Option<u8> {
        let vector = self.in_service.load(Relaxed) as u8;
        if vector == 0 {
            return None;
        }
        let (index, bit) = place(vector);
        let in_service = self.page.vectors(reg::ISR, index);
        let left = in_service.load(Relaxed) & !bit;
        in_service.store(left, Relaxed);
        if left == 0 && self.in_service_words.load(Relaxed) == 1 << index {
            // The usual case: none is left.
            self.in_service_words.store(0, Relaxed);
            self.in_service.store(0, Relaxed);
            self.page.set(reg::PPR, self.page.get(reg::TPR));
        } else {
            self.next_in_service(index, left);
        }
        self.reconsider();
        if self.page.vectors(reg::TMR, index).load(Relaxed) & bit != 0 && self.eoi_level(vector) { Some(vector) } else { None }
    }

    /// Word `index` of the ISR is now `left`, and some word is not zero.
    #[cold]
    fn next_in_service(&self, index: u32, left: u32) {
        let mut words = self.in_service_words.load(Relaxed);
        if left == 0 {
            words &= !(1 << index);
            self.in_service_words.store(words, Relaxed);
        }
        self.set_in_service(self.highest_in_service(words));
    }

    fn highest_in_service(&self, words: u32) -> u32 {
        let Some(index) = words.checked_ilog2() else { return 0 };
        let word = self.page.vectors(reg::ISR, index).load(Relaxed);
        index << 5 | word.checked_ilog2().unwrap_or(0)
    }

    fn is_level(&self, vector: u8) -> bool {
        let (index, bit) = place(vector);
        self.page.vectors(reg::TMR, index).load(Relaxed) & bit != 0
    }

    /// True if the IOAPIC must hear of it.
    #[cold]
    fn eoi_level(&self, vector: u8) -> bool {
        self.eoi_lint(reg::LVT_LINT0, vector);
        self.eoi_lint(reg::LVT_LINT1, vector);
        self.page.get(reg::SVR) & svr::EOI_SUPPRESSION == 0
    }

    /// Processor priority (11.8.3.1). Kept in its register whenever TPR or ISR changes. Any CPU may read it.
    #[inline(always)]
    #[must_use]
    pub fn ppr(&self) -> u8 {
        self.page.get(reg::PPR) as u8
    }

    /// `vector` is now the highest one in service.
    #[inline(always)]
    fn set_in_service(&self, vector: u32) {
        self.in_service.store(vector, Relaxed);
        self.update_ppr(self.page.get(reg::TPR), vector);
    }

    #[inline(always)]
    fn update_ppr(&self, tpr: u32, in_service: u32) {
        self.page.set(reg::PPR, if tpr >> 4 >= in_service >> 4 { tpr } else { in_service & 0xf0 });
    }

    /// Task priority.
    #[inline]
    #[must_use]
    pub fn tpr(&self) -> u8 {
        self.page.get(reg::TPR) as u8
    }

    #[inline]
    pub fn set_tpr(&self, value: u8) {
        self.page.set(reg::TPR, u32::from(value));
        self.update_ppr(u32::from(value), self.in_service.load(Relaxed));
        self.reconsider();
    }

    /// CR8: the task priority's class, 0..=15 (11.8.6.1).
    #[inline]
    #[must_use]
    pub fn cr8(&self) -> u8 {
        self.tpr() >> 4
    }

    /// Writes CR8; bits 4 to 7 of `value` are the caller's to refuse and do nothing here.
    #[inline]
    pub fn set_cr8(&self, value: u8) {
        self.set_tpr(value << 4);
    }

    /// True if an NMI, INIT or SIPI has come.
    #[inline(always)]
    #[must_use]
    pub fn signal_pending(&self) -> bool {
        self.state.load(Acquire) & (flag::NMI | flag::INIT | flag::SIPI) != 0
    }

    #[inline]
    #[must_use]
    pub fn nmi_pending(&self) -> bool {
        self.state.load(Acquire) & flag::NMI != 0
    }

    /// The processor takes an NMI; true if there was one.
    pub fn take_nmi(&self) -> bool {
        let taken = |state: u32| {
            let which = if state & flag::NMI_AGAIN != 0 { flag::NMI_AGAIN } else { flag::NMI };
            (state & which != 0).then_some(state & !which)
        };
        self.state.fetch_update(AcqRel, Acquire, taken).is_ok()
    }

    /// The processor is still about the NMI before: of those that wait, one will come (SDM vol. 3A, 7.7.1).
    pub fn merge_nmis(&self) {
        self.state.fetch_and(!flag::NMI_AGAIN, AcqRel);
    }

    /// True if [`LocalApic::take_startup`] has something.
    #[inline]
    #[must_use]
    pub fn startup_pending(&self) -> bool {
        self.state.load(Acquire) & (flag::INIT | flag::SIPI) != 0
    }

    /// Takes the INIT, or if there is none the SIPI, that has come.
    #[inline]
    #[must_use]
    pub fn take_startup(&self) -> Option<Startup> {
        if self.startup_pending() { self.find_startup() } else { None }
    }

    #[cold]
    fn find_startup(&self) -> Option<Startup> {
        if self.state.fetch_and(!flag::INIT, AcqRel) & flag::INIT != 0 {
            return Some(Startup::Init);
        }
        let state = self.state.fetch_and(!flag::SIPI, AcqRel);
        (state & flag::SIPI != 0).then_some(Startup::Sipi((state >> flag::SIPI_SHIFT) as u8))
    }

    /// Ends the processor's HLT, or its next one: no interrupt, but what a hypervisor does for processors that know it. From any CPU.
    pub fn kick(&self) {
        self.state.fetch_or(flag::KICKED, AcqRel);
    }

    #[inline]
    #[must_use]
    pub fn is_kicked(&self) -> bool {
        self.state.load(Acquire) & flag::KICKED != 0
    }

    /// The processor goes on.
    pub fn forget_kick(&self) {
        self.state.fetch_and(!flag::KICKED, AcqRel);
    }

    #[cold]
    fn extint_pending(&self) -> bool {
        if self.extint_deliverable() {
            return true;
        }
        // As in `find_pending`.
        self.state.fetch_and(!flag::EXTINT, AcqRel);
        let pending = self.extint_deliverable();
        if pending {
            self.state.fetch_or(flag::EXTINT, Release);
        }
        pending
    }
}

/// `None`: the reserved combination, EXTD without EN.
#[inline(always)]
const fn mode_of(base_msr: u64) -> Option<ApicMode> {
    match (base_msr & base::ENABLE != 0, base_msr & base::EXTD != 0) {
        (true, true) => Some(ApicMode::X2Apic),
        (true, false) => Some(ApicMode::XApic),
        (false, false) => Some(ApicMode::Disabled),
        (false, true) => None,
    }
}
