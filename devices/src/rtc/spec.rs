//! Registers of the MC146818 (Motorola data sheet, "Address map") and what the PC's firmware keeps in its memory.

use bitflags::bitflags;

pub const SECONDS: usize = 0x00;
pub const SECONDS_ALARM: usize = 0x01;
pub const MINUTES: usize = 0x02;
pub const MINUTES_ALARM: usize = 0x03;
pub const HOURS: usize = 0x04;
pub const HOURS_ALARM: usize = 0x05;
/// 1 is Sunday.
pub const DAY_OF_WEEK: usize = 0x06;
pub const DAY_OF_MONTH: usize = 0x07;
pub const MONTH: usize = 0x08;
pub const YEAR: usize = 0x09;
pub const REGISTER_A: usize = 0x0a;
pub const REGISTER_B: usize = 0x0b;
pub const REGISTER_C: usize = 0x0c;
pub const REGISTER_D: usize = 0x0d;
/// The PC's byte for the year's first two digits; ACPI's FADT names it.
pub const CENTURY: usize = 0x32;

/// Bytes of clock and memory.
pub const SIZE: usize = 128;

/// Index port: the register's number, and the mask for NMIs.
pub const INDEX: u8 = 0x7f;
pub const NMI_MASK: u8 = 0x80;

/// Register A.
pub mod a {
    /// Update in progress.
    pub const UIP: u8 = 1 << 7;
    /// Divider for a 32.768-kHz crystal.
    pub const DIVIDER_32KHZ: u8 = 0x20;
    /// Both high: the divider chain is held in reset.
    pub const DIVIDER_RESET: u8 = 0x60;
    pub const RATE: u8 = 0x0f;
    /// 1024 Hz.
    pub const RATE_DEFAULT: u8 = 0x06;
}

bitflags! {
    /// Register B.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct B: u8 {
        /// Updates are inhibited.
        const SET = 1 << 7;
        /// Interrupt enables; the flags in register C have the same places.
        const PIE = 1 << 6;
        const AIE = 1 << 5;
        const UIE = 1 << 4;
        const SQWE = 1 << 3;
        /// Binary, not BCD.
        const DM = 1 << 2;
        const HOURS_24 = 1 << 1;
        const DSE = 1 << 0;
    }
}

/// Register C.
pub mod c {
    pub const IRQF: u8 = 1 << 7;
    pub const PF: u8 = 1 << 6;
    pub const AF: u8 = 1 << 5;
    pub const UF: u8 = 1 << 4;
}

/// Register D: valid RAM and time.
pub const VRT: u8 = 1 << 7;

/// In an hours byte of 12-hour mode.
pub const PM: u8 = 0x80;
/// An alarm byte with these bits matches every time.
pub const ALARM_ANY: u8 = 0xc0;

/// The update cycle: UIP rises 244 us before the update, which takes 1984 us (data sheet, table 6, 32.768 kHz).
pub const UIP_NS: u64 = 244_000 + 1_984_000;

/// Crystal frequency.
pub const CRYSTAL_HZ: u64 = 32_768;

/// Where the PC's firmware keeps what it found (IBM PC/AT Technical Reference, "CMOS RAM"; the ranges above 0x32 are the
/// clones').
pub mod cmos {
    pub const EQUIPMENT: usize = 0x14;
    /// An 80x87 and a pointing device.
    pub const EQUIPMENT_FPU_MOUSE: u8 = 0x06;
    /// KiB below 640 KiB.
    pub const BASE_MEMORY: usize = 0x15;
    /// KiB above 1 MiB, twice.
    pub const EXTENDED_MEMORY: usize = 0x17;
    pub const EXTENDED_MEMORY_POST: usize = 0x30;
    /// The sum of the bytes from 0x10 to 0x2d, high byte first.
    pub const CHECKSUM: usize = 0x2e;
    pub const CHECKSUM_FIRST: usize = 0x10;
    /// Units of 64 KiB from 16 MiB to 4 GiB.
    pub const MEMORY_ABOVE_16M: usize = 0x34;
    /// Units of 64 KiB above 4 GiB; three bytes.
    pub const MEMORY_ABOVE_4G: usize = 0x5b;
}
