//! The power-management block, as offsets from PMBASE (Intel ICH9 data sheet, 316972-004, 13.8.3; ACPI 6.5, 4.8).

use bitflags::bitflags;

/// Event, control and timer registers of block PM1a.
pub const PM1_STATUS: u16 = 0x00;
pub const PM1_ENABLE: u16 = 0x02;
pub const PM1_CONTROL: u16 = 0x04;
pub const PM_TIMER: u16 = 0x08;
/// General-purpose events: 64 status bits, then 64 enable bits.
pub const GPE0_STATUS: u16 = 0x20;
pub const GPE0_ENABLE: u16 = 0x28;
pub const GPE0_END: u16 = 0x30;
/// General-purpose event control (ICH9, 13.8.3.9).
pub const GPE_CONTROL: u16 = 0x42;

bitflags! {
    /// PM1 status, and the enables in the same places (13.8.3.1 and 13.8.3.2).
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct Pm1: u16 {
        /// The timer's highest bit changed.
        const TMR = 1 << 0;
        const GBL = 1 << 5;
        const PWRBTN = 1 << 8;
        const SLPBTN = 1 << 9;
        const RTC = 1 << 10;
        /// Status: woken from sleep.
        const WAK = 1 << 15;

        /// What can be enabled to raise the SCI.
        const SCI_SOURCES = 0x0721;
    }
}

bitflags! {
    /// PM1 control (13.8.3.3).
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct Control: u16 {
        /// Events raise the SCI, not an SMI.
        const SCI_EN = 1 << 0;
        const BM_RLD = 1 << 1;
        const SLP_TYP = 7 << 10;
        /// Write-only: sleep now.
        const SLP_EN = 1 << 13;

        const WRITABLE = 0x1c02;
    }
}

/// In [`GPE_CONTROL`]: raises [`SWGPE`], for as long as it is set.
pub const SWGPE_CTRL: u8 = 1 << 1;
/// The polarity of the thermal pin; kept only.
pub const THRM_POL: u8 = 1 << 0;
/// The general-purpose event that software raises.
pub const SWGPE: u64 = 1 << 2;

pub const SLP_TYP_SHIFT: u16 = 10;
/// SLP_TYP of S5, soft off.
pub const SLP_TYP_S5: u8 = 7;

/// Frequency of the timer, in Hz.
pub const TIMER_HZ: u64 = 3_579_545;
