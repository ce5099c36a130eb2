//! Registers of the 8254 (Intel data sheet 231164-005) and of port 0x61 (ICH9 data sheet 316972-004, 13.7.1).

use bitflags::bitflags;

/// Control word (8254, figure 7): a mode for one counter, or a latch command.
pub mod control {
    /// Which counter; 3 is the read-back command.
    pub const SELECT_SHIFT: u8 = 6;
    pub const SELECT_READ_BACK: u8 = 3;
    /// Read/write mode; 0 is the counter latch command.
    pub const ACCESS_SHIFT: u8 = 4;
    pub const ACCESS: u8 = 3;
    pub const MODE_SHIFT: u8 = 1;
    pub const MODE: u8 = 7;
    pub const BCD: u8 = 1;
}

/// Read-back command (8254, figure 11): counters are bits 1 to 3.
pub mod read_back {
    /// Low: latch the count.
    pub const NO_COUNT: u8 = 1 << 5;
    /// Low: latch the status.
    pub const NO_STATUS: u8 = 1 << 4;
    pub const COUNTERS_SHIFT: u8 = 1;
}

/// Status byte (8254, figure 12). The low six bits are as in the control word.
pub mod status {
    pub const OUT: u8 = 1 << 7;
    pub const NULL_COUNT: u8 = 1 << 6;
}

bitflags! {
    /// Port 0x61, NMI status and control.
    #[derive(Clone, Copy)]
    pub struct Port61: u8 {
        /// Counter 2's gate.
        const GATE_2 = 1 << 0;
        /// The speaker follows counter 2.
        const SPEAKER = 1 << 1;
        /// SERR# and IOCHK# do not raise NMIs.
        const SERR_DISABLED = 1 << 2;
        const IOCHK_DISABLED = 1 << 3;
        /// Toggles with every refresh request.
        const REFRESH = 1 << 4;
        /// Counter 2's OUT.
        const OUT_2 = 1 << 5;

        const WRITABLE = 0x0f;
    }
}

/// Input clock of all counters, in Hz.
pub const CLOCK_HZ: u64 = 1_193_182;

/// Ticks between two refresh requests: 15.085 us.
pub const REFRESH_TICKS: u64 = 18;
