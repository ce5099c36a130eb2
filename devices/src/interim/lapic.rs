//! The local APIC (Intel SDM vol. 3A chapter 11, 325384-083): xAPIC registers in memory, x2APIC registers as MSRs, timer, IPIs.
//!
//! The state is the architectural 4-KiB register page itself. IRR, TMR and the attention word are atomics, so that any CPU can post an
//! interrupt; everything else is changed by the vCPU that owns the APIC.
//!
//! # Posting and accepting
//! A poster sets the IRR bit and then an attention bit; the owner clears the attention bit and then scans the IRR. Whatever the order in
//! which they meet, either the scan sees the IRR bit or the attention bit is set afterwards: no interrupt is lost.

use crate::{Duration, Time, Width};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use spin::Mutex;
use x86defs::Rate;

/// Input clock of the timer in Hz, before the divide value.
pub const BUS_HZ: u64 = 1_000_000_000;
/// Version 14H, six LVT entries (CMCI has none), EOI-broadcast suppression supported.
const VERSION: u32 = 1 << 24 | 5 << 16 | 0x14;
const BASE_DEFAULT: u64 = 0xfee0_0000;
const BASE_BSP: u64 = 1 << 8;
const BASE_X2: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;

/// Register offsets in bytes.
pub mod reg {
    pub const ID: usize = 0x20;
    pub const VERSION: usize = 0x30;
    pub const TPR: usize = 0x80;
    pub const APR: usize = 0x90;
    pub const PPR: usize = 0xa0;
    pub const EOI: usize = 0xb0;
    pub const RRD: usize = 0xc0;
    pub const LDR: usize = 0xd0;
    pub const DFR: usize = 0xe0;
    pub const SVR: usize = 0xf0;
    pub const ISR: usize = 0x100;
    pub const TMR: usize = 0x180;
    pub const IRR: usize = 0x200;
    pub const ESR: usize = 0x280;
    pub const ICR: usize = 0x300;
    pub const ICR_HIGH: usize = 0x310;
    pub const LVT_TIMER: usize = 0x320;
    pub const LVT_THERMAL: usize = 0x330;
    pub const LVT_PERF: usize = 0x340;
    pub const LVT_LINT0: usize = 0x350;
    pub const LVT_LINT1: usize = 0x360;
    pub const LVT_ERROR: usize = 0x370;
    pub const TIMER_INITIAL: usize = 0x380;
    pub const TIMER_CURRENT: usize = 0x390;
    pub const TIMER_DIVIDE: usize = 0x3e0;
    pub const SELF_IPI: usize = 0x3f0;
}

const LVT_MASKED: u32 = 1 << 16;
const SVR_ENABLE: u32 = 1 << 8;
const SVR_SUPPRESS_BROADCAST: u32 = 1 << 12;
const ESR_SEND_ILLEGAL: u32 = 1 << 5;
const ESR_RECEIVE_ILLEGAL: u32 = 1 << 6;
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// Attention bits.
const IRR_PENDING: u32 = 1;
const NMI_PENDING: u32 = 2;
const STARTUP_PENDING: u32 = 4;
const EXTINT_PENDING: u32 = 8;

/// The access must raise #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gp;

/// How an interrupt is delivered (SDM vol. 3A, 11.6.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeliveryMode {
    Fixed,
    LowestPriority,
    Smi,
    Nmi,
    Init,
    StartUp,
    ExtInt,
}

impl DeliveryMode {
    /// From the 3-bit field of an ICR, LVT or redirection entry; `None` for the reserved encoding.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => return None,
        })
    }
}

/// Who an IPI goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    Physical(u32),
    Logical(u32),
    SelfOnly,
    All,
    AllButSelf,
}

/// An inter-processor interrupt, as the ICR asks for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipi {
    pub target: Target,
    pub mode: DeliveryMode,
    pub vector: u8,
    /// Destinations are 32 bits wide and broadcast is all ones (x2APIC), or 8 bits.
    pub wide: bool,
}

/// What a register write wants done outside of this APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    None,
    Ipi(Ipi),
    /// The end of a level-triggered interrupt, to be broadcast to the IOAPICs.
    Eoi { vector: u8 },
    /// The timer's deadline has changed.
    Timer,
}

/// INIT, or a SIPI with its page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Startup {
    Init,
    Sipi(u8),
}

/// The register page, in xAPIC layout: register at byte offset `r` is word `r / 4`.
#[repr(C, align(4096))]
pub struct ApicPage([AtomicU32; 1024]);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Timer {
    /// When the running count was started; the count then was `TIMER_INITIAL`.
    start: Time,
    /// When it fires next.
    deadline: Option<Time>,
    /// The armed TSC-deadline value, 0 if disarmed.
    tsc_deadline: u64,
}

/// A virtual local APIC. All methods take `&self`; those that are not about posting are for the owner only.
pub struct LocalApic {
    page: Box<ApicPage>,
    id: u32,
    base: AtomicU64,
    attention: AtomicU32,
    /// Errors since ESR was last written.
    errors: AtomicU32,
    /// 0 none, 1 INIT, 0x100 | page: SIPI, 0x200 | page: INIT and then SIPI.
    startup: AtomicU32,
    timer: Mutex<Timer>,
}

impl LocalApic {
    /// The APIC of the vCPU with this id, in its state after power-up (xAPIC mode, software-disabled).
    #[must_use]
    pub fn new(id: u32, bsp: bool) -> Self {
        let apic = Self {
            page: Box::new(ApicPage([const { AtomicU32::new(0) }; 1024])),
            id,
            base: AtomicU64::new(BASE_DEFAULT | BASE_ENABLE | if bsp { BASE_BSP } else { 0 }),
            attention: AtomicU32::new(0),
            errors: AtomicU32::new(0),
            startup: AtomicU32::new(0),
            timer: Mutex::new(Timer { start: Time(0), deadline: None, tsc_deadline: 0 }),
        };
        apic.init();
        apic
    }

    fn get(&self, register: usize) -> u32 {
        self.page.0.get(register / 4).map_or(0, |r| r.load(SeqCst))
    }

    fn set(&self, register: usize, value: u32) {
        if let Some(r) = self.page.0.get(register / 4) {
            r.store(value, SeqCst);
        }
    }

    /// The state after INIT (SDM vol. 3A, 11.4.7.3): all but the base and the id.
    pub fn init(&self) {
        for register in &self.page.0 {
            register.store(0, SeqCst);
        }
        self.set(reg::VERSION, VERSION);
        self.set(reg::SVR, 0xff);
        self.set(reg::DFR, 0xffff_ffff);
        for lvt in (reg::LVT_TIMER..=reg::LVT_ERROR).step_by(16) {
            self.set(lvt, LVT_MASKED);
        }
        self.reset_ids();
        *self.timer.lock() = Timer { start: Time(0), deadline: None, tsc_deadline: 0 };
        self.errors.store(0, SeqCst);
        self.attention.fetch_and(STARTUP_PENDING, SeqCst);
    }

    fn reset_ids(&self) {
        if self.x2apic() {
            self.set(reg::ID, self.id);
            self.set(reg::LDR, (self.id & !0xf) << 12 | 1 << (self.id & 0xf));
        } else {
            self.set(reg::ID, self.id << 24);
        }
    }

    /// The APIC id, 32 bits.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    // --- IA32_APIC_BASE

    #[must_use]
    pub fn base_msr(&self) -> u64 {
        self.base.load(SeqCst)
    }

    /// Writes IA32_APIC_BASE. Transitions as in SDM vol. 3A, figure 11-27.
    pub fn set_base_msr(&self, value: u64, phys_bits: u32) -> Result<(), Gp> {
        let old = self.base_msr();
        let reserved = !(((1u64 << phys_bits.min(52)) - 1) & !0xfff | BASE_BSP | BASE_X2 | BASE_ENABLE);
        let mode = |v: u64| (v & BASE_ENABLE != 0, v & BASE_X2 != 0);
        let legal = match (mode(old), mode(value)) {
            (_, (false, true)) => false,
            ((true, true), (true, false)) => false,
            ((false, _), (true, true)) => false,
            _ => true,
        };
        if value & reserved != 0 || !legal {
            return Err(Gp);
        }
        // The BSP flag is read-only in effect: it says who booted.
        self.base.store(value & !BASE_BSP | old & BASE_BSP, SeqCst);
        if mode(old) != mode(value) {
            if mode(value) == (false, false) {
                self.init();
            } else {
                self.reset_ids();
            }
        }
        Ok(())
    }

    #[must_use]
    pub fn x2apic(&self) -> bool {
        self.base_msr() & (BASE_X2 | BASE_ENABLE) == BASE_X2 | BASE_ENABLE
    }

    /// The register page's guest-physical address, if it is mapped: enabled and in xAPIC mode.
    #[must_use]
    pub fn mmio_base(&self) -> Option<u64> {
        let base = self.base_msr();
        (base & (BASE_X2 | BASE_ENABLE) == BASE_ENABLE).then_some(base & 0x000f_ffff_ffff_f000)
    }

    fn software_enabled(&self) -> bool {
        self.get(reg::SVR) & SVR_ENABLE != 0 && self.base_msr() & BASE_ENABLE != 0
    }

    // --- posting: any CPU

    /// Makes `vector` pending; true if it was not already. Vectors below 16 are an error of the sender (ESR).
    pub fn post(&self, vector: u8, level: bool) -> bool {
        if vector < 16 {
            self.error(ESR_RECEIVE_ILLEGAL);
            return false;
        }
        if !self.software_enabled() {
            return false;
        }
        let (word, bit) = (usize::from(vector >> 5) * 16, 1u32 << (vector & 31));
        if let (Some(tmr), Some(irr)) = (self.page.0.get((reg::TMR + word) / 4), self.page.0.get((reg::IRR + word) / 4)) {
            if level {
                tmr.fetch_or(bit, SeqCst);
            } else {
                tmr.fetch_and(!bit, SeqCst);
            }
            let new = irr.fetch_or(bit, SeqCst) & bit == 0;
            self.attention.fetch_or(IRR_PENDING, SeqCst);
            return new;
        }
        false
    }

    pub fn post_nmi(&self) {
        self.attention.fetch_or(NMI_PENDING, SeqCst);
    }

    /// Posts an INIT.
    pub fn post_init(&self) {
        self.startup.store(1, SeqCst);
        self.attention.fetch_or(STARTUP_PENDING, SeqCst);
    }

    /// Posts a SIPI; one that is pending already stays.
    pub fn post_sipi(&self, page: u8) {
        let _ = self.startup.fetch_update(SeqCst, SeqCst, |s| match s {
            0 => Some(0x100 | u32::from(page)),
            1 => Some(0x200 | u32::from(page)),
            _ => None,
        });
        self.attention.fetch_or(STARTUP_PENDING, SeqCst);
    }

    /// The 8259 pair's output went high or low, and this APIC's LINT0 or an IOAPIC pin passes it on.
    pub fn set_extint(&self, pending: bool) {
        if pending {
            self.attention.fetch_or(EXTINT_PENDING, SeqCst);
        } else {
            self.attention.fetch_and(!EXTINT_PENDING, SeqCst);
        }
    }

    // --- querying and accepting: the owner

    /// True if something may have to be delivered. One load.
    #[inline]
    #[must_use]
    pub fn attention(&self) -> bool {
        self.attention.load(SeqCst) != 0
    }

    #[must_use]
    pub fn nmi_pending(&self) -> bool {
        self.attention.load(SeqCst) & NMI_PENDING != 0
    }

    pub fn take_nmi(&self) {
        self.attention.fetch_and(!NMI_PENDING, SeqCst);
    }

    #[must_use]
    pub fn extint_pending(&self) -> bool {
        self.attention.load(SeqCst) & EXTINT_PENDING != 0
    }

    #[must_use]
    pub fn startup_pending(&self) -> bool {
        self.attention.load(SeqCst) & STARTUP_PENDING != 0
    }

    pub fn take_startup(&self) -> Option<Startup> {
        if !self.startup_pending() {
            return None;
        }
        self.attention.fetch_and(!STARTUP_PENDING, SeqCst);
        let state = self.startup.swap(0, SeqCst);
        match state >> 8 {
            2 => {
                // The SIPI behind the INIT stays for the next call.
                self.post_sipi(state as u8);
                Some(Startup::Init)
            }
            1 => Some(Startup::Sipi(state as u8)),
            _ if state == 1 => Some(Startup::Init),
            _ => None,
        }
    }

    fn highest(&self, base: usize) -> Option<u8> {
        (0..8u8).rev().find_map(|word| {
            let bits = self.get(base + usize::from(word) * 16);
            (bits != 0).then(|| word * 32 + (31 - bits.leading_zeros()) as u8)
        })
    }

    fn ppr(&self) -> u8 {
        let tpr = self.get(reg::TPR) as u8;
        let isr = self.highest(reg::ISR).unwrap_or(0);
        if tpr >> 4 >= isr >> 4 { tpr } else { isr & 0xf0 }
    }

    /// The interrupt that the processor would take now, if any. Nothing changes.
    #[must_use]
    pub fn highest_pending(&self) -> Option<u8> {
        if self.attention.load(SeqCst) & IRR_PENDING == 0 {
            return None;
        }
        // Cleared before the scan: a bit that is posted behind the scan sets it again.
        self.attention.fetch_and(!IRR_PENDING, SeqCst);
        let vector = self.highest(reg::IRR).filter(|v| v >> 4 > self.ppr() >> 4 && self.software_enabled())?;
        self.attention.fetch_or(IRR_PENDING, SeqCst);
        Some(vector)
    }

    /// The processor takes `vector`, which [`LocalApic::highest_pending`] named: IRR to ISR.
    pub fn accept(&self, vector: u8) {
        let (word, bit) = (usize::from(vector >> 5) * 16, 1u32 << (vector & 31));
        if let (Some(irr), Some(isr)) = (self.page.0.get((reg::IRR + word) / 4), self.page.0.get((reg::ISR + word) / 4)) {
            irr.fetch_and(!bit, SeqCst);
            isr.fetch_or(bit, SeqCst);
        }
    }

    /// The processor's priority has fallen: what was held back may be deliverable.
    fn reconsider(&self) {
        if self.highest(reg::IRR).is_some() {
            self.attention.fetch_or(IRR_PENDING, SeqCst);
        }
    }

    /// CR8: TPR bits 7:4.
    #[must_use]
    pub fn cr8(&self) -> u8 {
        (self.get(reg::TPR) >> 4) as u8
    }

    pub fn set_cr8(&self, value: u8) {
        self.set(reg::TPR, u32::from(value & 0xf) << 4);
        self.reconsider();
    }

    fn eoi(&self) -> Effect {
        let Some(vector) = self.highest(reg::ISR) else { return Effect::None };
        let (word, bit) = (usize::from(vector >> 5) * 16, 1u32 << (vector & 31));
        self.set(reg::ISR + word, self.get(reg::ISR + word) & !bit);
        self.reconsider();
        if self.get(reg::TMR + word) & bit != 0 && self.get(reg::SVR) & SVR_SUPPRESS_BROADCAST == 0 {
            return Effect::Eoi { vector };
        }
        Effect::None
    }

    fn error(&self, bit: u32) {
        let old = self.errors.fetch_or(bit, SeqCst);
        let lvt = self.get(reg::LVT_ERROR);
        if old & bit == 0 && lvt & LVT_MASKED == 0 && lvt as u8 >= 16 {
            self.post(lvt as u8, false);
        }
    }

    // --- LINT pins

    /// True if LINT0 passes the 8259 pair's interrupts on (virtual wire mode), also while the APIC is globally disabled.
    #[must_use]
    pub fn lint0_extint(&self) -> bool {
        self.base_msr() & BASE_ENABLE == 0 || self.get(reg::LVT_LINT0) & (LVT_MASKED | 7 << 8) == 7 << 8
    }

    // --- destinations

    /// True if this APIC is addressed.
    #[must_use]
    pub fn is_addressed(&self, target: Target, wide: bool, sender: Option<u32>) -> bool {
        match target {
            Target::SelfOnly => sender == Some(self.id),
            Target::All => true,
            Target::AllButSelf => sender != Some(self.id),
            Target::Physical(id) => {
                let broadcast = if wide { u32::MAX } else { 0xff };
                id == broadcast || id == if self.x2apic() { self.id } else { self.get(reg::ID) >> 24 }
            }
            Target::Logical(mda) => self.matches_logical(mda),
        }
    }

    fn matches_logical(&self, mda: u32) -> bool {
        let ldr = self.get(reg::LDR);
        if self.x2apic() {
            return mda == u32::MAX || mda >> 16 == ldr >> 16 && mda & ldr & 0xffff != 0;
        }
        let (mda, ldr) = (mda & 0xff, ldr >> 24);
        match self.get(reg::DFR) >> 28 {
            0xf => mda & ldr != 0,
            0 => (mda >> 4 == 0xf || mda >> 4 == ldr >> 4) && mda & ldr & 0xf != 0,
            _ => false,
        }
    }

    // --- registers

    fn read(&self, register: usize, now: Time) -> Option<u32> {
        Some(match register {
            reg::PPR => self.ppr().into(),
            reg::TIMER_CURRENT => self.current_count(now),
            reg::APR => 0,
            reg::RRD | reg::EOI | reg::SELF_IPI => return None,
            reg::ID
            | reg::VERSION
            | reg::TPR
            | reg::LDR
            | reg::DFR
            | reg::SVR
            | reg::ESR
            | reg::ICR
            | reg::ICR_HIGH
            | reg::TIMER_INITIAL
            | reg::TIMER_DIVIDE => self.get(register),
            reg::ISR..0x280 if register & 0xf == 0 => self.get(register),
            reg::LVT_TIMER..=reg::LVT_ERROR if register & 0xf == 0 => self.get(register),
            _ => return None,
        })
    }

    /// A load from the register page. Registers are 32 bits wide at multiples of 16; narrower loads give a part (undefined by the SDM).
    pub fn mmio_read(&self, now: Time, offset: u64, width: Width) -> u64 {
        let register = (offset & 0xff0) as usize;
        let value = match (offset & 0xf, register) {
            (0..4, reg::EOI) => 0,
            (0..4, _) => self.read(register, now).unwrap_or_else(|| {
                self.error(ESR_ILLEGAL_REGISTER);
                0
            }),
            _ => 0,
        };
        (u64::from(value) >> (8 * (offset & 3))) & width.mask()
    }

    /// A store to the register page. Only 32-bit stores at multiples of 16 have an effect.
    pub fn mmio_write(&self, now: Time, offset: u64, width: Width, value: u64) -> Effect {
        if offset & 0xf != 0 || width < Width::Dword {
            return Effect::None;
        }
        let (register, value) = ((offset & 0xff0) as usize, value as u32);
        match register {
            reg::ID => self.set(reg::ID, value & 0xff00_0000),
            reg::LDR => self.set(reg::LDR, value & 0xff00_0000),
            reg::DFR => self.set(reg::DFR, value | 0x0fff_ffff),
            reg::ICR_HIGH => self.set(reg::ICR_HIGH, value & 0xff00_0000),
            reg::EOI => return self.eoi(),
            reg::ICR => {
                self.set(reg::ICR, value & 0x000c_cfff);
                let destination = self.get(reg::ICR_HIGH) >> 24;
                return self.ipi(value, destination, false);
            }
            _ => return self.write(now, register, value).unwrap_or_else(|Gp| {
                self.error(ESR_ILLEGAL_REGISTER);
                Effect::None
            }),
        }
        Effect::None
    }

    /// RDMSR of an x2APIC register (MSRs 800H-8FFH).
    pub fn msr_read(&self, now: Time, index: u32) -> Result<u64, Gp> {
        let register = (index.wrapping_sub(0x800) as usize) << 4;
        if !self.x2apic() {
            return Err(Gp);
        }
        match register {
            reg::ICR => Ok(u64::from(self.get(reg::ICR_HIGH)) << 32 | u64::from(self.get(reg::ICR))),
            reg::ICR_HIGH | reg::DFR | reg::APR | 0x1000.. => Err(Gp),
            _ => self.read(register, now).map(u64::from).ok_or(Gp),
        }
    }

    /// WRMSR of an x2APIC register.
    pub fn msr_write(&self, now: Time, index: u32, value: u64) -> Result<Effect, Gp> {
        let register = (index.wrapping_sub(0x800) as usize) << 4;
        if !self.x2apic() {
            return Err(Gp);
        }
        if register == reg::ICR {
            if value & 0xfff3_2000 != 0 {
                return Err(Gp);
            }
            self.set(reg::ICR, value as u32);
            self.set(reg::ICR_HIGH, (value >> 32) as u32);
            return Ok(self.ipi(value as u32, (value >> 32) as u32, true));
        }
        if value >> 32 != 0 {
            return Err(Gp);
        }
        let value = value as u32;
        match register {
            reg::EOI if value == 0 => Ok(self.eoi()),
            reg::ESR if value != 0 => Err(Gp),
            reg::SELF_IPI if value <= 0xff => {
                Ok(self.ipi(1 << 18 | value, 0, true))
            }
            reg::TPR if value > 0xff => Err(Gp),
            reg::SVR if value & !0x11ff != 0 => Err(Gp),
            reg::TIMER_DIVIDE if value & !0xb != 0 => Err(Gp),
            reg::LVT_TIMER..=reg::LVT_ERROR if value & !lvt_mask(register) & !(1 << 12 | 1 << 14) != 0 => Err(Gp),
            reg::EOI | reg::SELF_IPI | reg::ID | reg::LDR | reg::DFR | reg::ICR_HIGH => Err(Gp),
            _ => self.write(now, register, value),
        }
    }

    /// Writes a register that both modes have.
    fn write(&self, now: Time, register: usize, value: u32) -> Result<Effect, Gp> {
        match register {
            reg::TPR => {
                self.set(reg::TPR, value & 0xff);
                self.reconsider();
            }
            reg::SVR => {
                self.set(reg::SVR, value & 0x11ff);
                if value & SVR_ENABLE == 0 {
                    for lvt in (reg::LVT_TIMER..=reg::LVT_ERROR).step_by(16) {
                        self.set(lvt, self.get(lvt) | LVT_MASKED);
                    }
                }
                self.reconsider();
            }
            reg::ESR => {
                let errors = self.errors.swap(0, SeqCst);
                self.set(reg::ESR, errors);
            }
            reg::LVT_TIMER => {
                let old = self.get(reg::LVT_TIMER);
                self.write_lvt(register, value);
                // A change of mode stops the timer (SDM vol. 3A, 11.5.4).
                if (old ^ value) >> 17 & 3 != 0 {
                    let mut timer = self.timer.lock();
                    timer.deadline = None;
                    timer.tsc_deadline = 0;
                    self.set(reg::TIMER_INITIAL, 0);
                }
                return Ok(Effect::Timer);
            }
            reg::LVT_THERMAL..=reg::LVT_ERROR if register & 0xf == 0 => self.write_lvt(register, value),
            reg::TIMER_INITIAL => return Ok(self.start_timer(now, value)),
            reg::TIMER_DIVIDE => {
                let count = self.current_count(now);
                self.set(reg::TIMER_DIVIDE, value & 0xb);
                return Ok(self.rescale(now, count));
            }
            _ => return Err(Gp),
        }
        Ok(Effect::None)
    }

    fn write_lvt(&self, register: usize, value: u32) {
        let mut value = value & lvt_mask(register);
        if self.get(reg::SVR) & SVR_ENABLE == 0 {
            value |= LVT_MASKED;
        }
        self.set(register, value);
    }

    fn ipi(&self, low: u32, destination: u32, wide: bool) -> Effect {
        let Some(mode) = DeliveryMode::from_bits(low >> 8) else { return Effect::None };
        let vector = low as u8;
        let level_deassert = low & (1 << 14 | 1 << 15) == 1 << 15;
        if mode == DeliveryMode::Init && level_deassert {
            // INIT level de-assert: only synchronised arbitration ids on processors of old.
            return Effect::None;
        }
        if matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority) && vector < 16 {
            self.error(ESR_SEND_ILLEGAL);
            return Effect::None;
        }
        let target = match low >> 18 & 3 {
            1 => Target::SelfOnly,
            2 => Target::All,
            3 => Target::AllButSelf,
            _ if low & 1 << 11 != 0 => Target::Logical(destination),
            _ => Target::Physical(destination),
        };
        Effect::Ipi(Ipi { target, mode, vector, wide })
    }

    // --- timer

    /// ns per timer tick: the divide value.
    fn divide(&self) -> u64 {
        let bits = self.get(reg::TIMER_DIVIDE);
        let code = bits & 3 | bits >> 1 & 4;
        if code == 7 { 1 } else { 2 << code }
    }

    fn mode(&self) -> u32 {
        self.get(reg::LVT_TIMER) >> 17 & 3
    }

    fn current_count(&self, now: Time) -> u32 {
        let timer = self.timer.lock();
        let Some(deadline) = timer.deadline.filter(|_| self.mode() < 2) else { return 0 };
        let left = deadline.since(now).0.div_ceil(self.divide());
        let initial = u64::from(self.get(reg::TIMER_INITIAL));
        if left == 0 && self.mode() == 1 && initial != 0 {
            // Between the end of a period and the interrupt for it.
            let late = now.since(deadline).0 / self.divide() % initial;
            return (initial - late) as u32;
        }
        left.min(initial) as u32
    }

    fn start_timer(&self, now: Time, count: u32) -> Effect {
        if self.mode() >= 2 {
            return Effect::None;
        }
        self.set(reg::TIMER_INITIAL, count);
        let mut timer = self.timer.lock();
        timer.start = now;
        timer.deadline = (count != 0).then(|| now + Duration(u64::from(count) * self.divide()));
        Effect::Timer
    }

    fn rescale(&self, now: Time, count: u32) -> Effect {
        let mut timer = self.timer.lock();
        if timer.deadline.is_some() && self.mode() < 2 {
            timer.deadline = Some(now + Duration(u64::from(count) * self.divide()));
        }
        Effect::Timer
    }

    /// IA32_TSC_DEADLINE; 0 unless the timer is in that mode and armed.
    #[must_use]
    pub fn tsc_deadline(&self) -> u64 {
        if self.mode() == 2 { self.timer.lock().tsc_deadline } else { 0 }
    }

    /// Writes IA32_TSC_DEADLINE. `guest_tsc` is the guest's TSC at `now`, `to_ns` converts a span of TSC ticks.
    pub fn set_tsc_deadline(&self, now: Time, guest_tsc: u64, to_ns: Rate, value: u64) -> Effect {
        if self.mode() != 2 {
            return Effect::None;
        }
        let mut timer = self.timer.lock();
        timer.tsc_deadline = value;
        // One ns more: the conversion rounds down, and the timer must never be early.
        timer.deadline = (value != 0).then(|| match value.checked_sub(guest_tsc) {
            None | Some(0) => now,
            Some(ticks) => now + Duration(to_ns.apply(ticks).saturating_add(1)),
        });
        Effect::Timer
    }

    /// When [`LocalApic::advance`] must be called next.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.timer.lock().deadline
    }

    /// Fires the timer if it is due. Periods that were missed count as one interrupt; the phase stays.
    pub fn advance(&self, now: Time) {
        let mut timer = self.timer.lock();
        let Some(deadline) = timer.deadline.filter(|&d| d <= now) else { return };
        let period = u64::from(self.get(reg::TIMER_INITIAL)) * self.divide();
        timer.deadline = if self.mode() == 1 && period != 0 {
            let missed = now.since(deadline).0 / period;
            Some(deadline + Duration(period.saturating_mul(missed + 1)))
        } else {
            None
        };
        timer.tsc_deadline = 0;
        drop(timer);
        let lvt = self.get(reg::LVT_TIMER);
        if lvt & LVT_MASKED == 0 {
            self.post(lvt as u8, false);
        }
    }
}

/// Writable bits of an LVT entry.
const fn lvt_mask(register: usize) -> u32 {
    match register {
        reg::LVT_TIMER => 0x7_00ff,
        reg::LVT_LINT0 | reg::LVT_LINT1 => 0x1_a7ff,
        reg::LVT_ERROR => 0x1_00ff,
        _ => 0x1_07ff,
    }
}
