//! Register layout of the IOAPIC.
//!
//! Intel 82093AA data sheet (290566-001), chapter 3; Intel ICH9 data sheet (316972-004), 13.5.

/// Interrupt inputs.
pub const PINS: usize = 24;

/// Offsets in memory.
pub mod window {
    /// IOREGSEL: the index of the register that IOWIN shows.
    pub const IOREGSEL: u64 = 0x00;
    pub const IOWIN: u64 = 0x10;
    /// Version 20H: the vector of an interrupt that has been served.
    pub const EOI: u64 = 0x40;
}

/// Register indices.
pub mod index {
    pub const ID: u8 = 0x00;
    pub const VERSION: u8 = 0x01;
    /// Arbitration ID: loaded with the ID.
    pub const ARBITRATION: u8 = 0x02;
    /// Low half of pin 0's redirection entry; its high half is next, then comes pin 1.
    pub const REDIRECTION: u8 = 0x10;
}

/// ID and arbitration ID are bits 24 to 27.
pub const ID_SHIFT: u32 = 24;
/// Version 20H, without the pin assertion register (PRQ = 0), and the number of the last entry.
pub const VERSION: u32 = (PINS as u32 - 1) << 16 | 0x20;

/// A redirection entry (82093AA, 3.2.4).
pub mod entry {
    pub const VECTOR: u64 = 0xff;
    pub const DELIVERY_SHIFT: u32 = 8;
    pub const LOGICAL: u64 = 1 << 11;
    /// Delivery status: an interrupt waits to be accepted by a local APIC.
    pub const DELIVERY_STATUS: u64 = 1 << 12;
    pub const ACTIVE_LOW: u64 = 1 << 13;
    /// A local APIC has accepted the level-triggered interrupt and not sent an EOI yet.
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASKED: u64 = 1 << 16;
    pub const DESTINATION_SHIFT: u32 = 56;
    /// The bits that software writes.
    pub const WRITABLE: u64 = 0xff << DESTINATION_SHIFT | MASKED | LEVEL | ACTIVE_LOW | LOGICAL | 7 << DELIVERY_SHIFT | VECTOR;
}
