//! Register accesses: xAPIC by memory, x2APIC by MSR.

use super::{
    Effect, Gp, LocalApic, flag,
    spec::{FIRST_LEGAL_VECTOR, TDCR_WRITABLE, esr, icr, lvt, reg, svr},
};
use crate::{
    interrupt::{ApicMode, BROADCAST, DeliveryMode, DestinationMode, InterruptMessage, Ipi, Shorthand, Trigger},
    sync::atomic::Ordering::{AcqRel, Release, SeqCst},
};
use x86defs::{Time, TimeSource, Width, msr};

/// The bits of the ICR that say what is sent to whom.
const SELECTION: u32 = icr::SHORTHAND | icr::DELIVERY | icr::LOGICAL;
/// Of those, without [`icr::LOGICAL`]: a fixed IPI to oneself.
const SELF: u32 = (Shorthand::Myself as u32) << icr::SHORTHAND_SHIFT;

impl LocalApic {
    // --- xAPIC

    /// A read at `offset` of the register page, for which the guest must be in xAPIC mode. Reads of less than 32 bits get their part of the
    /// register; a register that does not exist reads zero and is an error that ESR reports; other accesses than those of 11.4.1 read
    /// zero.
    #[inline(always)]
    #[must_use]
    pub fn mmio_read(&self, clock: impl TimeSource, offset: u64, width: Width) -> u64 {
        let within = (offset & 0xf) as u32;
        let register = offset as u32 & 0xff0;
        if within + width.bytes() as u32 > 4 || self.mode() != ApicMode::XApic {
            return 0;
        }
        let Some(value) = self.read(clock, register) else {
            self.error(esr::ILLEGAL_REGISTER);
            return 0;
        };
        u64::from(value) >> (8 * within) & width.mask()
    }

    /// A write at `offset` of the register page. All but aligned 32-bit writes are dropped (11.4.1 calls them undefined).
    #[inline(always)]
    pub fn mmio_write(&self, clock: impl TimeSource, offset: u64, width: Width, value: u64) -> Effect {
        if width != Width::Dword || offset & 0xf != 0 || self.mode() != ApicMode::XApic {
            return Effect::None;
        }
        let value = value as u32;
        let register = offset as u32 & 0xff0;
        match register {
            reg::EOI => {
                let done = if self.is_lent() { self.eoi_in_page() } else { self.eoi() };
                return done.map_or(Effect::None, |vector| Effect::Eoi { vector });
            }
            reg::TPR => self.set_tpr(value as u8),
            reg::ICR_LOW => return self.write_icr_low(value),
            reg::ICR_HIGH => self.page.set(reg::ICR_HIGH, value & 0xff00_0000),
            reg::TMICT => return self.write_initial_count(clock.now(), value),
            _ => return self.mmio_write_rare(clock.now(), register, value),
        }
        Effect::None
    }

    /// The low half of the ICR, which sends.
    #[inline(always)]
    pub(super) fn write_icr_low(&self, value: u32) -> Effect {
        let low = value & icr::WRITABLE;
        self.page.set(reg::ICR_LOW, low);
        let destination = self.page.get(reg::ICR_HIGH) >> 24;
        if low & (icr::SHORTHAND | icr::DELIVERY) == SELF || low & SELECTION == 0 && destination == self.id() {
            self.send_to_self(low as u8);
            return Effect::None;
        }
        let mode = DestinationMode::from_bit(low & icr::LOGICAL != 0);
        self.send(low, InterruptMessage::widen(destination as u8, mode))
    }

    /// The arms of [`LocalApic::mmio_write`] that need not be fast.
    #[cold]
    #[inline(never)]
    fn mmio_write_rare(&self, now: Time, register: u32, value: u32) -> Effect {
        match register {
            reg::TDCR => return self.write_divide(now, value),
            reg::LVT_TIMER | reg::LVT_THERMAL | reg::LVT_PERFORMANCE | reg::LVT_LINT0 | reg::LVT_LINT1 | reg::LVT_ERROR => {
                return self.write_lvt(now, register, value);
            }
            reg::SVR => self.write_svr(value & svr::WRITABLE),
            reg::ESR => self.write_esr(),
            reg::LDR => self.page.set(reg::LDR, value & 0xff00_0000),
            reg::DFR => self.page.set(reg::DFR, value | 0x0fff_ffff),
            // Read-only (the ID: see `LocalApic::id`).
            reg::ID | reg::VERSION | reg::APR | reg::PPR | reg::RRD | reg::ISR..=reg::IRR_LAST | reg::TMCCT => {}
            _ => {
                self.error(esr::ILLEGAL_REGISTER);
            }
        }
        Effect::None
    }

    /// The register at `offset`, a multiple of 16, as the mode has it; `None` if there is none.
    #[inline(always)]
    fn read(&self, clock: impl TimeSource, offset: u32) -> Option<u32> {
        /// Bit n: there is a register at 16 n, and its page holds what it reads.
        const STORED: u64 = {
            let mut set = 1 << (reg::ID >> 4) | 1 << (reg::VERSION >> 4) | 1 << (reg::ESR >> 4) | 1 << (reg::TDCR >> 4);
            let ranges = [(reg::TPR, reg::EOI), (reg::RRD, reg::SVR), (reg::ISR, reg::TMR_LAST), (reg::ICR_LOW, reg::TMICT)];
            let mut n = 0;
            while n < ranges.len() {
                let mut at = ranges[n].0;
                while at <= ranges[n].1 {
                    set |= 1 << (at >> 4);
                    at += 16;
                }
                n += 1;
            }
            set
        };
        match offset {
            reg::TMCCT => Some(self.current_count(clock.now())),
            _ if offset < 0x400 && STORED >> (offset >> 4) & 1 != 0 => Some(self.page.get(offset)),
            reg::IRR..=reg::IRR_LAST => Some(self.requested((offset - reg::IRR) >> 4)),
            _ => None,
        }
    }

    // --- x2APIC

    /// RDMSR of `index` in 0x800..=0x8ff.
    ///
    /// # Errors
    /// #GP if the APIC is not in x2APIC mode, or there is no such register, or it is write-only (table 11-6).
    #[inline]
    pub fn msr_read(&self, clock: impl TimeSource, index: u32) -> Result<u64, Gp> {
        let offset = register_of(index)?;
        if self.mode() != ApicMode::X2Apic {
            return Err(Gp);
        }
        match offset {
            reg::ICR_LOW => Ok(u64::from(self.page.get(reg::ICR_HIGH)) << 32 | u64::from(self.page.get(reg::ICR_LOW))),
            reg::EOI | reg::ICR_HIGH | reg::DFR | reg::APR | reg::RRD => Err(Gp),
            _ => self.read(clock, offset).map(u64::from).ok_or(Gp),
        }
    }

    /// The x2APIC writes on which systems spend their time: EOI, TPR, IPI to oneself, initial count. `None`: nothing is done yet, and
    /// [`LocalApic::msr_write`] knows.
    #[inline(always)]
    pub fn quick_msr_write(&self, clock: impl TimeSource, index: u32, value: u64) -> Option<QuickEffect> {
        if self.mode() != ApicMode::X2Apic {
            return None;
        }
        match index {
            x2apic::EOI if value == 0 => Some(self.eoi().map_or(QuickEffect::None, QuickEffect::Eoi)),
            x2apic::ICR => {
                let (low, high) = (value as u32, (value >> 32) as u32);
                let me = low & (icr::SHORTHAND | icr::DELIVERY) == SELF
                    || low & SELECTION == 0 && high == self.id() && high != BROADCAST;
                if !me || low & !(icr::WRITABLE | icr::DELIVERY_STATUS) != 0 {
                    return None;
                }
                self.set_icr(low, high);
                self.send_to_self(low as u8);
                Some(QuickEffect::None)
            }
            x2apic::TMICT if value <= u64::from(u32::MAX) => {
                self.write_initial_count(clock.now(), value as u32);
                Some(QuickEffect::Timer)
            }
            x2apic::TPR if value <= 0xff => {
                self.set_tpr(value as u8);
                Some(QuickEffect::None)
            }
            x2apic::SELF_IPI if value <= 0xff => {
                self.send_to_self(value as u8);
                Some(QuickEffect::None)
            }
            _ => None,
        }
    }

    /// WRMSR of `index` in 0x800..=0x8ff.
    ///
    /// # Errors
    /// #GP if the APIC is not in x2APIC mode, or there is no such register, or it is read-only, or a reserved bit is set (11.12.1.2).
    pub fn msr_write(&self, clock: impl TimeSource, index: u32, value: u64) -> Result<Effect, Gp> {
        if self.mode() != ApicMode::X2Apic {
            return Err(Gp);
        }
        let within = |writable: u32| if value & !u64::from(writable) == 0 { Ok(value as u32) } else { Err(Gp) };
        match index {
            x2apic::EOI => {
                within(0)?;
                return Ok(self.eoi().map_or(Effect::None, |vector| Effect::Eoi { vector }));
            }
            x2apic::ICR => {
                let (low, high) = (value as u32, (value >> 32) as u32);
                if low & !(icr::WRITABLE | icr::DELIVERY_STATUS) != 0 {
                    return Err(Gp);
                }
                self.set_icr(low, high);
                return Ok(self.send(low & icr::WRITABLE, high));
            }
            x2apic::TMICT => return Ok(self.write_initial_count(clock.now(), within(u32::MAX)?)),
            x2apic::TDCR => return Ok(self.write_divide(clock.now(), within(TDCR_WRITABLE)?)),
            x2apic::LVT_TIMER..=x2apic::LVT_ERROR => {
                let offset = register_of(index)?;
                let value = within(lvt::writable(offset) | lvt::read_only(offset))?;
                return Ok(self.write_lvt(clock.now(), offset, value));
            }
            x2apic::TPR => self.set_tpr(within(0xff)? as u8),
            x2apic::SELF_IPI => {
                let vector = within(0xff)? as u8;
                self.send_to_self(vector);
            }
            x2apic::SVR => self.write_svr(within(svr::WRITABLE)?),
            x2apic::ESR => {
                within(0)?;
                self.write_esr();
            }
            _ => return Err(Gp),
        }
        Ok(Effect::None)
    }

    /// The ICR keeps what was written but the delivery status, which is always idle.
    #[inline(always)]
    fn set_icr(&self, low: u32, high: u32) {
        self.page.set(reg::ICR_LOW, low & icr::WRITABLE);
        self.page.set(reg::ICR_HIGH, high);
        self.page.set(reg::ICR_HIGH_X2APIC, high);
    }

    // --- both

    /// Sends the IPI that the ICR's low half and a 32-bit destination describe (11.6.1).
    #[inline(never)]
    fn send(&self, low: u32, destination: u32) -> Effect {
        let vector = low as u8;
        let shorthand = Shorthand::from_bits(low >> icr::SHORTHAND_SHIFT);
        let destination_mode = DestinationMode::from_bit(low & icr::LOGICAL != 0);
        let Some(delivery) = DeliveryMode::from_bits(low >> icr::DELIVERY_SHIFT) else { return Effect::None };
        match delivery {
            DeliveryMode::Fixed if self.is_self(shorthand, destination_mode, destination) => {
                self.send_to_self(vector);
                return Effect::None;
            }
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if vector < FIRST_LEGAL_VECTOR => {
                self.error(esr::SEND_ILLEGAL_VECTOR);
                return Effect::None;
            }
            // INIT level de-assert does nothing since the Pentium 4; ExtINT is no mode of the ICR.
            DeliveryMode::Init if low & (icr::ASSERT | icr::LEVEL) == icr::LEVEL => return Effect::None,
            DeliveryMode::ExtInt => return Effect::None,
            _ => {}
        }
        // Every IPI is edge-triggered, whatever the trigger mode bit says.
        let message = InterruptMessage { destination, destination_mode, delivery, vector, trigger: Trigger::Edge };
        Effect::Ipi(Ipi { shorthand, message })
    }

    /// True if a fixed IPI goes to this APIC and no other.
    #[inline(always)]
    fn is_self(&self, shorthand: Shorthand, mode: DestinationMode, destination: u32) -> bool {
        match shorthand {
            Shorthand::Myself => true,
            Shorthand::None => {
                let own = if self.mode() == ApicMode::X2Apic { self.id() } else { self.id() & 0xff };
                mode == DestinationMode::Physical && destination == own && destination != BROADCAST
            }
            _ => false,
        }
    }

    #[inline(always)]
    pub(super) fn send_to_self(&self, vector: u8) {
        if vector < FIRST_LEGAL_VECTOR {
            self.error(esr::SEND_ILLEGAL_VECTOR);
        } else {
            self.post(vector, Trigger::Edge);
        }
    }

    /// Spurious-interrupt vector register. Software-disabling the APIC masks the LVT (11.4.7.2); what is pending stays so.
    fn write_svr(&self, value: u32) {
        self.page.set(reg::SVR, value);
        if value & svr::ENABLE == 0 {
            for entry in reg::LVT {
                self.page.at(entry).fetch_or(lvt::MASKED, SeqCst);
            }
        }
        // Not only if something was requested: the page may be lent, with requests in it.
        self.state.fetch_or(flag::IRR, Release);
    }

    /// ESR shows the errors since it was last written, and the error interrupt is armed again (11.5.3).
    fn write_esr(&self) {
        self.page.set(reg::ESR, self.errors.swap(0, AcqRel));
    }

    fn write_lvt(&self, now: Time, offset: u32, value: u32) -> Effect {
        let mut value = value & lvt::writable(offset);
        if !self.software_enabled() {
            value |= lvt::MASKED;
        }
        match offset {
            reg::LVT_TIMER => return self.write_timer_entry(now, value),
            reg::LVT_LINT0 | reg::LVT_LINT1 => {
                // An interrupt on its way to the processor still awaits its EOI, unless the pin is now edge-triggered.
                let kept = if value & lvt::LEVEL != 0 { lvt::REMOTE_IRR } else { 0 };
                let _ = self.page.at(offset).fetch_update(SeqCst, SeqCst, |old| Some(value | old & kept));
                self.lint_written(offset);
            }
            _ => self.page.set(offset, value),
        }
        Effect::None
    }
}

/// What [`LocalApic::quick_msr_write`] wants done: as [`Effect`], but without what makes that one large.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QuickEffect {
    None,
    Timer,
    /// The vector of [`Effect::Eoi`].
    Eoi(u8),
}

/// MSRs of the registers that software writes in x2APIC mode (table 11-6).
mod x2apic {
    use super::{super::spec::reg, msr};

    const fn msr_of(offset: u32) -> u32 {
        msr::X2APIC_BASE + (offset >> 4)
    }

    pub const TPR: u32 = msr_of(reg::TPR);
    pub const EOI: u32 = msr_of(reg::EOI);
    pub const SVR: u32 = msr_of(reg::SVR);
    pub const ESR: u32 = msr_of(reg::ESR);
    pub const ICR: u32 = msr_of(reg::ICR_LOW);
    pub const LVT_TIMER: u32 = msr_of(reg::LVT_TIMER);
    pub const LVT_ERROR: u32 = msr_of(reg::LVT_ERROR);
    pub const TMICT: u32 = msr_of(reg::TMICT);
    pub const TDCR: u32 = msr_of(reg::TDCR);
    pub const SELF_IPI: u32 = msr_of(reg::SELF_IPI);
}

/// The page offset of an x2APIC MSR's register.
#[inline(always)]
const fn register_of(index: u32) -> Result<u32, Gp> {
    match index.checked_sub(msr::X2APIC_BASE) {
        Some(n @ 0..=0x3f) => Ok(n << 4),
        _ => Err(Gp),
    }
}
