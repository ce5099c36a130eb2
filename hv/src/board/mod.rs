//! The virtual PC: which device sits where, and the buses that lead there.
//!
//! Each device has its own lock; the port map is fixed once the board is built. What a device access causes besides its
//! answer (a reset, serial output, a changed deadline) is left in two atomic words that the run loop looks at.

mod ports;

use crate::{layout, vm::End};
use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use devices::{
    Line, LineSink, MmioDevice, PortDevice, TimedDevice,
    acpi_pm::{AcpiPm, PowerEvent},
    i8042::{self, I8042},
    lapic::{Effect, LocalApic},
    misc::{FastA20, PostCode, ResetControl, ResetRequest},
    pci::{HostBridge, LpcBridge, PciBus},
    pit::Pit,
    router::InterruptRouter,
    rtc::{CmosMemory, Rtc},
    uart::Uart,
};
pub use ports::{Overlap, PortMap};
use spin::Mutex;
use x86defs::{Gpa, Time, Width};

/// Who answers a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortOwner {
    Pic,
    Pit,
    I8042,
    Rtc,
    PostCode,
    FastA20,
    Uart,
    Pci,
    Reset,
    AcpiPm,
    DebugExit,
}

/// Ports of the devices that every board has: owner, first port, count.
const CLAIMS: &[(PortOwner, u16, u16)] = &[
    (PortOwner::Pic, 0x20, 2),
    (PortOwner::Pic, 0xa0, 2),
    (PortOwner::Pic, 0x4d0, 2),
    (PortOwner::Pit, 0x40, 4),
    (PortOwner::Pit, 0x61, 1),
    (PortOwner::I8042, 0x60, 1),
    (PortOwner::I8042, 0x64, 1),
    (PortOwner::Rtc, 0x70, 2),
    (PortOwner::PostCode, 0x80, 1),
    (PortOwner::FastA20, 0x92, 1),
    (PortOwner::Uart, 0x3f8, 8),
    (PortOwner::AcpiPm, layout::PM_BASE, layout::PM_PORTS),
    (PortOwner::Pci, 0xcf8, 1),
    (PortOwner::Reset, layout::RESET_PORT, 1),
    (PortOwner::Pci, 0xcfa, 6),
];

/// What a board is built with.
#[derive(Clone, Copy, Debug)]
pub struct BoardConfig {
    /// Bytes; ends at [`layout::LOW_RAM_MAX`] at most.
    pub ram_below_4g: u64,
    /// Bytes.
    pub ram_above_4g: u64,
    /// Seconds since 1970 at the time the board is built.
    pub wall_clock: u64,
    /// Port of the debug-exit device.
    pub debug_exit: Option<u16>,
}
