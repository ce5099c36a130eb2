//! Register layout of the local APIC.
//!
//! Intel SDM vol. 3A (325384-083), table 11-1 (register map), table 11-6 (x2APIC MSRs) and the figures named below.

/// Offsets in the 4-KiB page. The x2APIC MSR of the register at `r` is 0x800 + (r >> 4).
pub mod reg {
    pub const ID: u32 = 0x020;
    pub const VERSION: u32 = 0x030;
    pub const TPR: u32 = 0x080;
    /// Arbitration priority: not in these processors, reads zero.
    pub const APR: u32 = 0x090;
    pub const PPR: u32 = 0x0a0;
    pub const EOI: u32 = 0x0b0;
    /// Remote read: not in these processors, reads zero.
    pub const RRD: u32 = 0x0c0;
    pub const LDR: u32 = 0x0d0;
    pub const DFR: u32 = 0x0e0;
    pub const SVR: u32 = 0x0f0;
    /// First of eight, 16 bytes apart; so are TMR and IRR.
    pub const ISR: u32 = 0x100;
    pub const TMR: u32 = 0x180;
    pub const TMR_LAST: u32 = 0x1f0;
    pub const IRR: u32 = 0x200;
    pub const IRR_LAST: u32 = 0x270;
    pub const ESR: u32 = 0x280;
    pub const ICR_LOW: u32 = 0x300;
    /// Copy of the high half where APIC-register virtualisation reads it in x2APIC mode (SDM vol. 3C, 31.5): the 8 bytes at 0x300.
    pub const ICR_HIGH_X2APIC: u32 = 0x304;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_THERMAL: u32 = 0x330;
    pub const LVT_PERFORMANCE: u32 = 0x340;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    /// Initial count of the timer.
    pub const TMICT: u32 = 0x380;
    /// Current count of the timer.
    pub const TMCCT: u32 = 0x390;
    /// Divide configuration of the timer.
    pub const TDCR: u32 = 0x3e0;
    /// Exists as an MSR only.
    pub const SELF_IPI: u32 = 0x3f0;

    /// Every entry of the local vector table. There is none for corrected machine checks: IA32_MCG_CAP does not offer those.
    pub const LVT: [u32; 6] = [LVT_TIMER, LVT_THERMAL, LVT_PERFORMANCE, LVT_LINT0, LVT_LINT1, LVT_ERROR];
}

/// Version register (11.4.8): an integrated APIC of a Pentium 4 or later, so many LVT entries, EOI-broadcast suppression.
pub const VERSION: u32 = 1 << 24 | (reg::LVT.len() as u32 - 1) << 16 | 0x14;

/// IA32_APIC_BASE (11.4.4, figure 11-5; 11.12.1, figure 11-26).
pub mod base {
    pub const BSP: u64 = 1 << 8;
    /// x2APIC mode.
    pub const EXTD: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
    /// Bits below the address.
    pub const FLAGS: u64 = 0xfff;
    /// Where the registers are after reset.
    pub const DEFAULT: u64 = 0xfee0_0000;
}

/// Spurious-interrupt vector register (11.9, figure 11-23).
pub mod svr {
    pub const ENABLE: u32 = 1 << 8;
    /// Focus processor checking: kept, without a meaning.
    pub const FOCUS: u32 = 1 << 9;
    pub const EOI_SUPPRESSION: u32 = 1 << 12;
    pub const WRITABLE: u32 = 0xff | ENABLE | FOCUS | EOI_SUPPRESSION;
    pub const RESET: u32 = 0xff;
}

/// Local vector table (11.5.1, figure 11-8).
pub mod lvt {
    pub const VECTOR: u32 = 0xff;
    pub const DELIVERY_SHIFT: u32 = 8;
    pub const DELIVERY: u32 = 7 << DELIVERY_SHIFT;
    pub const DELIVERY_STATUS: u32 = 1 << 12;
    pub const POLARITY: u32 = 1 << 13;
    pub const REMOTE_IRR: u32 = 1 << 14;
    pub const LEVEL: u32 = 1 << 15;
    pub const MASKED: u32 = 1 << 16;
    pub const PERIODIC: u32 = 1 << 17;
    pub const TSC_DEADLINE: u32 = 1 << 18;
    pub const TIMER_MODE: u32 = PERIODIC | TSC_DEADLINE;

    /// The bits that software writes, by register offset.
    pub const fn writable(offset: u32) -> u32 {
        match offset {
            super::reg::LVT_TIMER => VECTOR | MASKED | TIMER_MODE,
            super::reg::LVT_LINT0 | super::reg::LVT_LINT1 => VECTOR | DELIVERY | POLARITY | LEVEL | MASKED,
            super::reg::LVT_ERROR => VECTOR | MASKED,
            _ => VECTOR | DELIVERY | MASKED,
        }
    }
    /// The bits that software may write with any value because they are read-only (delivery status, remote IRR).
    pub const fn read_only(offset: u32) -> u32 {
        match offset {
            super::reg::LVT_LINT0 | super::reg::LVT_LINT1 => DELIVERY_STATUS | REMOTE_IRR,
            _ => DELIVERY_STATUS,
        }
    }
}

/// Interrupt command register (11.6.1, figure 11-12; 11.12.9, figure 11-28).
pub mod icr {
    pub const DELIVERY_SHIFT: u32 = 8;
    pub const DELIVERY: u32 = 7 << DELIVERY_SHIFT;
    pub const LOGICAL: u32 = 1 << 11;
    /// xAPIC: delivery status, always idle. In x2APIC mode processors of one vendor ignore it, so no processor's software sets it.
    pub const DELIVERY_STATUS: u32 = 1 << 12;
    pub const ASSERT: u32 = 1 << 14;
    pub const LEVEL: u32 = 1 << 15;
    pub const SHORTHAND_SHIFT: u32 = 18;
    pub const SHORTHAND: u32 = 3 << SHORTHAND_SHIFT;
    /// The low half's defined bits.
    pub const WRITABLE: u32 = 0x000c_cfff;
}

/// Error status register (11.5.3, figure 11-9).
pub mod esr {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// Divide configuration register (11.5.4, figure 11-10): bits 3, 1, 0.
pub const TDCR_WRITABLE: u32 = 0b1011;

/// The timer's divisor as a power of two: TDCR 000 is 2, 110 is 128, 111 is 1.
#[inline]
pub const fn divide_shift(tdcr: u32) -> u32 {
    ((tdcr & 3 | tdcr >> 1 & 4) + 1) & 7
}

/// The vectors below are those of exceptions; an APIC never delivers them (11.5.2).
pub const FIRST_LEGAL_VECTOR: u8 = 16;
