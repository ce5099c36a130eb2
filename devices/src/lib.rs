//! The devices of the virtual PC: pure state machines over (access, time, line level).
//!
//! A device never sees a vCPU, never reads a clock and never knows its interrupt number: `now` comes as an argument, the next
//! deadline goes back as a result, and interrupts leave through a [`Line`] that the board has connected. Everything here runs
//! under `cargo test` on a laptop.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod acpi_pm;
pub mod debugcon;
mod fifo;
pub mod hpet;
pub mod i8042;
pub mod interrupt;
pub mod ioapic;
pub mod lapic;
mod line;
pub mod misc;
mod missed;
pub mod pci;
pub mod pic;
pub mod pit;
mod ports;
pub mod router;
pub mod rtc;
pub mod sync;
pub mod testdev;
mod ticks;
pub mod uart;

pub use line::{Gate, Line, LineSink, MessageSink, PinState};
pub use missed::MissedTicks;
pub use x86defs::{Duration, Rate, Time, Width};

/// A device in the I/O port space. `offset` is relative to the first port that the device claims, so always within its claim.
///
/// Accesses wider than a device's registers are split by the device itself where its data sheet says so, and read all ones
/// where it does not.
pub trait PortDevice {
    /// The value read, in the low `width` bits.
    fn port_read(&mut self, now: Time, offset: u16, width: Width) -> u32;
    /// `value` is zero above `width`.
    fn port_write(&mut self, now: Time, offset: u16, width: Width, value: u32);
}

/// A device in guest-physical memory. `offset` is relative to the start of its claim; `offset + width` stays within it.
pub trait MmioDevice {
    fn mmio_read(&mut self, now: Time, offset: u64, width: Width) -> u64;
    fn mmio_write(&mut self, now: Time, offset: u64, width: Width, value: u64);
}

/// A device that wants to be called at a point in time.
pub trait TimedDevice {
    /// When [`TimedDevice::advance`] must be called next, if ever. May change with every access.
    fn deadline(&self) -> Option<Time>;
    /// Brings the device's state (and its lines) up to `now`. Calling it early or late is harmless: state is a function of time.
    fn advance(&mut self, now: Time);
}
