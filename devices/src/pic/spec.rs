//! Registers of the 8259A, as Intel's data sheet (231468-003) numbers them, and the edge/level control registers of the ICH9
//! (316972-004, 13.4.10 and 13.4.11).

use bitflags::bitflags;

bitflags! {
    /// Initialization command word 1 (8259A, figure 7): A0 = 0 and D4 = 1.
    #[derive(Clone, Copy)]
    pub struct Icw1: u8 {
        /// ICW4 follows.
        const IC4 = 1 << 0;
        /// No cascade: ICW3 does not follow.
        const SNGL = 1 << 1;
        /// Makes the byte an ICW1.
        const SELECT = 1 << 4;
    }
}

bitflags! {
    /// Initialization command word 4.
    #[derive(Clone, Copy)]
    pub struct Icw4: u8 {
        /// Automatic end of interrupt.
        const AEOI = 1 << 1;
        /// Special fully nested mode.
        const SFNM = 1 << 4;
    }
}

/// The vector's bits that ICW2 gives, in 8086 mode.
pub const ICW2_BASE: u8 = 0xf8;

/// Operation command word 2: rotate and end-of-interrupt commands, in bits 7 to 5 (8259A, figure 8).
pub mod ocw2 {
    pub const COMMAND: u8 = 0xe0;
    pub const LEVEL: u8 = 0x07;

    pub const ROTATE_AUTO_CLEAR: u8 = 0x00;
    pub const EOI: u8 = 0x20;
    pub const SPECIFIC_EOI: u8 = 0x60;
    pub const ROTATE_AUTO_SET: u8 = 0x80;
    pub const ROTATE_ON_EOI: u8 = 0xa0;
    pub const SET_PRIORITY: u8 = 0xc0;
    pub const ROTATE_ON_SPECIFIC_EOI: u8 = 0xe0;
}

bitflags! {
    /// Operation command word 3.
    #[derive(Clone, Copy)]
    pub struct Ocw3: u8 {
        /// With RR: read the in-service register, not the request register.
        const RIS = 1 << 0;
        /// RIS counts.
        const RR = 1 << 1;
        /// The next read is an acknowledge.
        const POLL = 1 << 2;
        /// Makes the byte an OCW3 (with D4 = 0).
        const SELECT = 1 << 3;
        /// Special mask mode on; counts with ESMM.
        const SMM = 1 << 5;
        const ESMM = 1 << 6;
    }
}

/// In a poll's result: there was a request; its level is in the low bits.
pub const POLL_PENDING: u8 = 0x80;

/// The level that an acknowledge gets when the request is gone.
pub const SPURIOUS_LEVEL: u8 = 7;

/// The master's input that the slave drives.
pub const CASCADE_LEVEL: u8 = 2;
pub const CASCADE: u8 = 1 << CASCADE_LEVEL;

/// Inputs that may be made level-triggered: not the timer, keyboard and cascade, not the RTC and coprocessor.
pub const ELCR_MASTER: u8 = 0xf8;
pub const ELCR_SLAVE: u8 = 0xde;
