//! What reaches a local APIC from outside: messages, its two pins, and its own errors. Callable from any CPU.

use super::{
    LocalApic, flag,
    page::place,
    spec::{FIRST_LEGAL_VECTOR, esr, lvt, reg},
};
use crate::{
    interrupt::{ApicMode, DeliveryMode, Trigger},
    sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
};

/// What became of a posted interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Posted {
    /// It is pending now (or, for an illegal vector, the error interrupt is): whoever runs or keeps the vCPU must look.
    New,
    /// It was pending already; the two have become one.
    Merged,
    /// The APIC does not take it: it is disabled, or the vector is illegal.
    Refused,
}

const LINT0: u32 = 1 << 0;
const LINT1: u32 = 1 << 1;

impl LocalApic {
    /// Requests `vector` (11.8.4). Below 16 it is an error that ESR reports.
    #[inline]
    pub fn post(&self, vector: u8, trigger: Trigger) -> Posted {
        if vector < FIRST_LEGAL_VECTOR {
            return self.error(esr::RECEIVE_ILLEGAL_VECTOR);
        }
        if !self.software_enabled() {
            return Posted::Refused;
        }
        let (index, bit) = place(vector);
        let tmr = self.page.vectors(reg::TMR, index);
        let was_level = tmr.load(Relaxed) & bit != 0;
        match trigger {
            Trigger::Edge if was_level => {
                tmr.fetch_and(!bit, Relaxed);
                self.state.fetch_or(flag::LEVELS, Release);
            }
            Trigger::Level if !was_level => {
                tmr.fetch_or(bit, Relaxed);
                self.state.fetch_or(flag::LEVELS, Release);
            }
            _ => {}
        }
        if self.requests(index).fetch_or(bit, AcqRel) & bit != 0 {
            return Posted::Merged;
        }
        self.state.fetch_or(1 << index | flag::IRR, AcqRel);
        Posted::New
    }

    /// True if `vector` waits to be taken.
    #[must_use]
    pub fn is_requested(&self, vector: u8) -> bool {
        let (index, bit) = place(vector);
        self.requested(index) & bit != 0
    }

    /// An NMI. A second one waits as well: had the processor been quick enough, it would be about the first by now. Further ones make no difference.
    pub fn post_nmi(&self) -> Posted {
        let posted = |state: u32| Some(state | if state & flag::NMI == 0 { flag::NMI } else { flag::NMI_AGAIN });
        match self.state.fetch_update(AcqRel, Acquire, posted) {
            Ok(old) if old & flag::NMI != 0 => Posted::Merged,
            _ => Posted::New,
        }
    }

    /// An INIT; a SIPI that has not been taken is void.
    pub fn post_init(&self) -> Posted {
        let set = |state: u32| Some(state & !flag::SIPI | flag::INIT);
        match self.state.fetch_update(AcqRel, Acquire, set) {
            Ok(old) if old & flag::INIT != 0 => Posted::Merged,
            _ => Posted::New,
        }
    }

    /// A SIPI: start at 4-KiB page `page`. The processor ignores it unless it waits for one.
    pub fn post_sipi(&self, page: u8) -> Posted {
        const PAGE: u32 = 0xff << flag::SIPI_SHIFT;
        let set =
            |state: u32| (state & flag::SIPI == 0).then_some(state & !PAGE | flag::SIPI | u32::from(page) << flag::SIPI_SHIFT);
        if self.state.fetch_update(AcqRel, Acquire, set).is_ok() { Posted::New } else { Posted::Merged }
    }

    /// An ExtINT message, from an IOAPIC pin that the 8259 pair is connected to.
    pub fn post_extint(&self) -> Posted {
        if !self.software_enabled() {
            return Posted::Refused;
        }
        let old = self.state.fetch_or(flag::EXTINT | flag::EXTINT_MESSAGE, AcqRel);
        if old & flag::EXTINT_MESSAGE == 0 { Posted::New } else { Posted::Merged }
    }

    /// The 8259 pair's interrupt has been acknowledged (by this processor or another): an ExtINT message is void.
    pub fn extint_acknowledged(&self) {
        if self.state.load(Acquire) & flag::EXTINT_MESSAGE != 0 {
            self.state.fetch_and(!flag::EXTINT_MESSAGE, AcqRel);
        }
    }

    /// A message of any delivery mode, with this APIC among its destinations. SMIs are refused: there is no SMM.
    pub fn receive(&self, delivery: DeliveryMode, vector: u8, trigger: Trigger) -> Posted {
        match delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => self.post(vector, trigger),
            DeliveryMode::Nmi => self.post_nmi(),
            DeliveryMode::Init => self.post_init(),
            DeliveryMode::StartUp => self.post_sipi(vector),
            DeliveryMode::ExtInt => self.post_extint(),
            DeliveryMode::Smi => Posted::Refused,
        }
    }

    /// Drives LINT0, where the boot processor has the 8259 pair's output. Returns whether something is pending because of it.
    pub fn set_lint0(&self, high: bool) -> bool {
        self.set_line(LINT0, high) && self.drive_lint0()
    }

    /// Drives LINT1, the machine's NMI line. Returns whether something is pending because of it.
    pub fn set_lint1(&self, high: bool) -> bool {
        if !self.set_line(LINT1, high) {
            return false;
        }
        if self.mode() == ApicMode::Disabled {
            return self.post_nmi() == Posted::New;
        }
        self.lint_rises(reg::LVT_LINT1)
    }

    /// True if the line has risen.
    fn set_line(&self, line: u32, high: bool) -> bool {
        // Sequentially consistent, as is the owner's write of the LVT entry: of a line that rises and an entry that is unmasked at the
        // same time, at least one side sees the other's.
        if high {
            return self.lines.fetch_or(line, SeqCst) & line == 0;
        }
        self.lines.fetch_and(!line, SeqCst);
        false
    }

    /// True if an interrupt of the 8259 pair passes through LINT0: virtual wire mode, or no APIC at all (11.4.3, 11.5.1).
    #[must_use]
    pub fn lint0_accepts_extint(&self) -> bool {
        const EXTINT: u32 = (DeliveryMode::ExtInt as u32) << lvt::DELIVERY_SHIFT;
        self.mode() == ApicMode::Disabled || self.page.at(reg::LVT_LINT0).load(SeqCst) & (lvt::MASKED | lvt::DELIVERY) == EXTINT
    }

    /// LINT0 is high, newly or under a new LVT entry.
    pub(super) fn drive_lint0(&self) -> bool {
        if self.lines.load(SeqCst) & LINT0 == 0 {
            return false;
        }
        if self.lint0_accepts_extint() {
            self.state.fetch_or(flag::EXTINT, AcqRel);
            return true;
        }
        self.lint_rises(reg::LVT_LINT0)
    }

    pub(super) fn extint_deliverable(&self) -> bool {
        self.state.load(Acquire) & flag::EXTINT_MESSAGE != 0
            || self.lines.load(SeqCst) & LINT0 != 0 && self.lint0_accepts_extint()
    }

    /// A rising edge at the pin of `entry`.
    fn lint_rises(&self, entry: u32) -> bool {
        let value = self.page.at(entry).load(SeqCst);
        if is_level(value) { self.raise_lint_level(entry) } else { self.deliver_lvt(value, Trigger::Edge) }
    }

    /// Requests the interrupt of a level-triggered pin that is high, unless one is on its way.
    fn raise_lint_level(&self, entry: u32) -> bool {
        let set = |value: u32| (value & (lvt::MASKED | lvt::REMOTE_IRR) == 0).then_some(value | lvt::REMOTE_IRR);
        match self.page.at(entry).fetch_update(SeqCst, SeqCst, set) {
            Ok(value) => self.deliver_lvt(value, Trigger::Level),
            Err(_) => false,
        }
    }

    /// The level-triggered interrupt `vector` is done; if it was the pin's and that is still high, it comes again.
    pub(super) fn eoi_lint(&self, entry: u32, vector: u8) {
        let clear = |value: u32| (value & lvt::REMOTE_IRR != 0 && value as u8 == vector).then_some(value & !lvt::REMOTE_IRR);
        if self.page.at(entry).fetch_update(SeqCst, SeqCst, clear).is_ok() {
            self.lint_written(entry);
        }
    }

    /// The entry of a pin was written: a level that is there already counts now.
    pub(super) fn lint_written(&self, entry: u32) {
        let line = if entry == reg::LVT_LINT0 { LINT0 } else { LINT1 };
        if self.lines.load(SeqCst) & line == 0 {
            return;
        }
        if is_level(self.page.at(entry).load(SeqCst)) {
            self.raise_lint_level(entry);
        } else if entry == reg::LVT_LINT0 && self.lint0_accepts_extint() {
            self.state.fetch_or(flag::EXTINT, Release);
        }
    }

    /// Delivers a local interrupt as its LVT entry says. Returns whether something is pending because of it.
    pub(super) fn deliver_lvt(&self, entry: u32, trigger: Trigger) -> bool {
        if entry & lvt::MASKED != 0 {
            return false;
        }
        match DeliveryMode::from_bits(entry >> lvt::DELIVERY_SHIFT) {
            // Neither is a mode of the LVT (11.5.1).
            None | Some(DeliveryMode::LowestPriority | DeliveryMode::StartUp) => false,
            Some(delivery) => self.receive(delivery, entry as u8, trigger) == Posted::New,
        }
    }

    /// Records an error (11.5.3); the first since ESR was written raises the error interrupt, which is what is returned.
    #[cold]
    pub(super) fn error(&self, error: u32) -> Posted {
        let armed = self.errors.fetch_or(error, AcqRel) == 0;
        let entry = self.page.get(reg::LVT_ERROR);
        if !armed || entry & lvt::MASKED != 0 {
            return Posted::Refused;
        }
        let vector = entry as u8;
        if vector < FIRST_LEGAL_VECTOR {
            self.errors.fetch_or(esr::RECEIVE_ILLEGAL_VECTOR, AcqRel);
            return Posted::Refused;
        }
        self.post(vector, Trigger::Edge)
    }
}

/// Only fixed interrupts can be level-triggered (11.5.1).
const fn is_level(entry: u32) -> bool {
    entry & lvt::LEVEL != 0 && entry & lvt::DELIVERY == 0
}
