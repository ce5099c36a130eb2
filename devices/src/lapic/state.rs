//! Saving and restoring a local APIC as plain data.

use super::{
    LocalApic, flag, mode_of,
    page::summary,
    spec::{TDCR_WRITABLE, base, icr, lvt, reg, svr},
};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What a [`LocalApic`] saves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LocalApicState {
    pub base_msr: u64,
    pub tpr: u8,
    pub ldr: u32,
    pub dfr: u32,
    pub svr: u32,
    pub isr: [u32; 8],
    pub tmr: [u32; 8],
    pub irr: [u32; 8],
    pub esr: u32,
    /// Errors that ESR does not show yet.
    pub errors: u32,
    /// Destination in the high half, as the mode has it.
    pub icr: u64,
    /// In the order of [`reg::LVT`].
    pub lvt: Vec<u32>,
    pub initial_count: u32,
    pub divide: u32,
    /// Nanoseconds in the time base; `u64::MAX` if the timer is not running.
    pub timer_expiry: u64,
    pub tsc_deadline: u64,
    /// The periodic timer's first beat since it was programmed, and how many have been served since.
    pub first_beat: u64,
    pub beats_served: u64,
    /// NMIs that wait, at most two.
    pub nmis: u8,
    pub init: bool,
    /// Page of a SIPI that has come.
    pub sipi: Option<u8>,
    pub extint_message: bool,
    /// Another processor has ended its HLT.
    pub kicked: bool,
    /// Levels of LINT0 (bit 0) and LINT1 (bit 1).
    pub lines: u32,
}

/// A saved state that no local APIC can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InvalidState {
    /// IA32_APIC_BASE has an impossible mode.
    BaseMsr(u64),
    /// There are not as many LVT entries as this APIC has.
    LvtEntries(usize),
}

impl LocalApic {
    /// The state. The vCPU must not be running, nor anyone posting.
    #[must_use]
    pub fn save(&self) -> LocalApicState {
        let Self { page, requests: _, state, in_service_words: _, in_service: _, lent: _, base, id: _, errors, lines, timer } =
            self;
        let state = state.load(Acquire);
        let [timer_expiry, tsc_deadline, first_beat, beats_served] = timer.raw();
        LocalApicState {
            base_msr: base.load(Relaxed),
            tpr: page.get(reg::TPR) as u8,
            ldr: page.get(reg::LDR),
            dfr: page.get(reg::DFR),
            svr: page.get(reg::SVR),
            isr: page.bitmap(reg::ISR),
            tmr: page.bitmap(reg::TMR),
            irr: self.all_requested(),
            esr: page.get(reg::ESR),
            errors: errors.load(Relaxed),
            icr: u64::from(page.get(reg::ICR_HIGH)) << 32 | u64::from(page.get(reg::ICR_LOW)),
            lvt: reg::LVT.map(|entry| page.get(entry)).into(),
            initial_count: page.get(reg::TMICT),
            divide: page.get(reg::TDCR),
            timer_expiry,
            tsc_deadline,
            first_beat,
            beats_served,
            nmis: u8::from(state & flag::NMI != 0) + u8::from(state & flag::NMI_AGAIN != 0),
            init: state & flag::INIT != 0,
            sipi: (state & flag::SIPI != 0).then_some((state >> flag::SIPI_SHIFT) as u8),
            extint_message: state & flag::EXTINT_MESSAGE != 0,
            kicked: state & flag::KICKED != 0,
            lines: lines.load(Relaxed),
        }
    }

    /// Takes on a saved state; the ID stays, and reserved bits are dropped. The page must not be lent.
    ///
    /// # Errors
    /// What this APIC cannot be. Nothing has changed then.
    pub fn restore(&self, saved: &LocalApicState) -> Result<(), InvalidState> {
        let LocalApicState {
            base_msr,
            tpr,
            ldr,
            dfr,
            svr,
            isr,
            tmr,
            irr,
            esr,
            errors,
            icr,
            ref lvt,
            initial_count,
            divide,
            timer_expiry,
            tsc_deadline,
            first_beat,
            beats_served,
            nmis,
            init,
            sipi,
            extint_message,
            kicked,
            lines,
        } = *saved;
        if mode_of(base_msr).is_none() || base_msr & base::FLAGS & !(base::BSP | base::EXTD | base::ENABLE) != 0 {
            return Err(InvalidState::BaseMsr(base_msr));
        }
        if lvt.len() != reg::LVT.len() {
            return Err(InvalidState::LvtEntries(lvt.len()));
        }
        // Vectors below 16 are never delivered (11.5.2).
        let legal = |words: [u32; 8]| {
            let [first, rest @ ..] = words;
            let [a, b, c, d, e, f, g] = rest;
            [first & 0xffff_0000, a, b, c, d, e, f, g]
        };
        self.base.store(base_msr, Relaxed);
        self.init();
        let page = &self.page;
        page.set(reg::TPR, u32::from(tpr));
        if self.mode() == crate::interrupt::ApicMode::XApic {
            page.set(reg::LDR, ldr & 0xff00_0000);
            page.set(reg::DFR, dfr | 0x0fff_ffff);
        }
        let disabled = self.mode() == crate::interrupt::ApicMode::Disabled;
        page.set(reg::SVR, svr & if disabled { svr::WRITABLE & !svr::ENABLE } else { svr::WRITABLE });
        page.set_bitmap(reg::ISR, &legal(isr));
        page.set_bitmap(reg::TMR, &legal(tmr));
        for (requests, word) in self.requests.iter().zip(legal(irr)) {
            requests.store(word, Relaxed);
        }
        page.set(reg::ESR, esr);
        self.errors.store(errors, Relaxed);
        page.set(reg::ICR_LOW, icr as u32 & icr::WRITABLE);
        page.set(reg::ICR_HIGH, (icr >> 32) as u32);
        page.set(reg::ICR_HIGH_X2APIC, (icr >> 32) as u32);
        for (entry, &value) in reg::LVT.into_iter().zip(lvt) {
            let forced = if self.software_enabled() { 0 } else { lvt::MASKED };
            page.set(entry, value & (lvt::writable(entry) | lvt::read_only(entry) & lvt::REMOTE_IRR) | forced);
        }
        page.set(reg::TMICT, initial_count);
        page.set(reg::TDCR, divide & TDCR_WRITABLE);
        self.timer.set_raw([timer_expiry, tsc_deadline, first_beat, beats_served]);
        self.lines.store(lines & 3, Relaxed);
        let sipi = sipi.map_or(0, |page| flag::SIPI | u32::from(page) << flag::SIPI_SHIFT);
        let bit = |set: bool, flag: u32| if set { flag } else { 0 };
        // "Look" is always right; the first query finds out.
        let nmi = bit(nmis > 0, flag::NMI) | bit(nmis > 1, flag::NMI_AGAIN);
        let flags = flag::IRR | flag::EXTINT | flag::LEVELS | sipi | nmi | bit(init, flag::INIT);
        let other = bit(extint_message, flag::EXTINT_MESSAGE) | bit(kicked, flag::KICKED);
        self.state.store(flags | other, Relaxed);
        self.adopt_page();
        Ok(())
    }

    /// Recomputes what is derived from ISR, TPR and what was requested.
    pub(super) fn adopt_page(&self) {
        let words = self.page.summary(reg::ISR);
        self.in_service_words.store(words, Relaxed);
        self.set_in_service(self.highest_in_service(words));
        let requests = summary(&self.all_requested());
        self.state.fetch_or(requests | if requests == 0 { 0 } else { flag::IRR }, AcqRel);
    }
}
