//! Registers of the HPET (IA-PC HPET Specification 1.0a, October 2004, 2.3), as offsets from its base address.

use bitflags::bitflags;

/// Bytes that the device claims (2.3.2).
pub const SIZE: u64 = 0x400;

pub mod reg {
    /// General capabilities and ID.
    pub const CAPABILITIES: u64 = 0x000;
    pub const CONFIGURATION: u64 = 0x010;
    /// General interrupt status.
    pub const STATUS: u64 = 0x020;
    pub const COUNTER: u64 = 0x0f0;
    /// Configuration, comparator and FSB route of timer 0; timer n is at + n * [`TIMER_STRIDE`].
    pub const TIMERS: u64 = 0x100;
    pub const TIMER_STRIDE: u64 = 0x20;
    pub const TIMER_CONFIGURATION: u64 = 0x00;
    pub const COMPARATOR: u64 = 0x08;
    pub const FSB_ROUTE: u64 = 0x10;
}

/// General capabilities (2.3.4): revision 1, a 64-bit counter, legacy replacement; vendor Intel.
pub const CAPABILITIES_LOW: u64 = 0x8086 << 16 | 1 << 15 | 1 << 13 | 1;
pub const LAST_TIMER_SHIFT: u32 = 8;
pub const PERIOD_SHIFT: u32 = 32;
/// The counter's period, in nanoseconds: a whole number, so that ticks and the time base never drift apart.
pub const TICK_NS: u64 = 10;
/// The same in femtoseconds.
pub const PERIOD_FS: u64 = TICK_NS * 1_000_000;

/// General configuration (2.3.5).
pub const ENABLE: u64 = 1 << 0;
pub const LEGACY_REPLACEMENT: u64 = 1 << 1;

bitflags! {
    /// Timer configuration and capability (2.3.8), low half.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct TimerConfig: u32 {
        /// The interrupt is level-triggered.
        const LEVEL = 1 << 1;
        const INTERRUPT = 1 << 2;
        const PERIODIC = 1 << 3;
        /// Capability: can be periodic.
        const CAN_PERIODIC = 1 << 4;
        /// Capability: 64 bits.
        const CAN_64 = 1 << 5;
        /// The next write to the comparator sets the accumulator, too. Clears itself.
        const VALUE_SET = 1 << 6;
        const MODE_32 = 1 << 8;
        const ROUTE = 0x1f << 9;
        const FSB = 1 << 14;
        /// Capability: FSB (MSI) delivery.
        const CAN_FSB = 1 << 15;

        const CAPABILITIES = 1 << 4 | 1 << 5 | 1 << 15;
        const WRITABLE = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 8 | 0x1f << 9 | 1 << 14;
    }
}

pub const ROUTE_SHIFT: u32 = 9;

/// Timers.
pub const TIMERS: usize = 4;
/// Where each timer's interrupt can be led, a bit for each IOAPIC pin (as the ICH9's, 316972-004, 20.1.5).
pub const ROUTES: [u32; TIMERS] = [0x00f0_0000, 0x00f0_0000, 0x00f0_0800, 0x00f0_1000];
/// The lines of timers 0 and 1 in legacy replacement: those of the PIT and the RTC (2.4.1).
pub const LEGACY_LINES: [u32; 2] = [0, 8];
/// Lines from here on reach the IOAPIC alone or are shared with PCI: a pulse is an interrupt there.
pub const FIRST_SHARED_LINE: u32 = 16;
