//! A 16550A as a PCI function: its eight registers behind an I/O BAR; interrupts by pin, MSI or MSI-X.
//!
//! It is class-compatible (07-00-02, PCI Code and ID Assignment Specification 1.11, 1.8), so that a system's generic driver takes it.
//! The IDs are those that Red Hat has given QEMU's function of this kind, which this one is a superset of.

use super::{
    config::{BarKind, ConfigEffect, ConfigSpace, ConfigSpaceState, Identity},
    device::PciDevice,
    msi::{InterruptError, Interrupts, InterruptsState},
    spec::class,
};
use crate::{
    Line, LineSink, MessageSink, PinState, PortDevice, TimedDevice,
    uart::{ModemLines, Uart, UartState},
};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};
use serde::{Deserialize, Serialize};
use x86defs::{Time, Width};

const VENDOR: u16 = 0x1b36;
const DEVICE: u16 = 0x0002;
const SUBSYSTEM_VENDOR: u16 = 0x1af4;
const SUBSYSTEM: u16 = 0x1100;

const REGISTERS: u8 = 0;
const REGISTERS_SIZE: u64 = 8;
/// Memory with MSI-X's table and its pending bits.
const MSIX: u8 = 1;
const MSIX_SIZE: u64 = 0x1000;
const PENDING: u32 = 0x800;

/// What the port's interrupt output is now.
struct Output(AtomicBool);

impl LineSink for Output {
    fn set_level(&self, _: u32, high: bool) {
        self.0.store(high, Ordering::Release);
    }
    fn state(&self, _: u32) -> PinState {
        PinState::Ready
    }
}

/// The function.
pub struct PciSerial {
    config: ConfigSpace,
    interrupts: Interrupts,
    uart: Uart,
    output: Arc<Output>,
    /// The output as last signalled.
    signalled: bool,
}

/// What a [`PciSerial`] saves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PciSerialState {
    pub config: ConfigSpaceState,
    pub interrupts: InterruptsState,
    pub uart: UartState,
}

impl PciSerial {
    /// The function as a reset leaves it. `pin`: what INTA# is wired to, PIRQ lines being active high here.
    ///
    /// # Errors
    /// Never; what is put into the configuration space fits.
    pub fn new(pin: Line, messages: Arc<dyn MessageSink>) -> Result<Self, InterruptError> {
        let mut config = ConfigSpace::new(&Identity {
            vendor: VENDOR,
            device: DEVICE,
            revision: 1,
            class: class::SERIAL_16550,
            subsystem_vendor: SUBSYSTEM_VENDOR,
            subsystem: SUBSYSTEM,
        });
        config.add_bar(REGISTERS, BarKind::Io, REGISTERS_SIZE).map_err(InterruptError::Bar)?;
        config.add_bar(MSIX, BarKind::Memory32 { prefetchable: false }, MSIX_SIZE).map_err(InterruptError::Bar)?;
        config.set_interrupt_pin(1);
        let mut interrupts = Interrupts::new(pin, messages);
        interrupts.add_msi(&mut config, 1)?;
        interrupts.add_msix(&mut config, 1, MSIX, 0, PENDING)?;
        let output = Arc::new(Output(AtomicBool::new(false)));
        let uart = Uart::new(Line::new(output.clone(), 0), ModemLines::CONNECTED).without_gate();
        Ok(Self { config, interrupts, uart, output, signalled: false })
    }

    /// Does something with the serial port, and lets its interrupt out.
    pub fn with_uart<T>(&mut self, touch: impl FnOnce(&mut Uart) -> T) -> T {
        let result = touch(&mut self.uart);
        let level = self.output.0.load(Ordering::Acquire);
        self.interrupts.set_level(&mut self.config, level);
        if level && !self.signalled {
            self.interrupts.signal(&mut self.config, 0);
        }
        self.signalled = level;
        result
    }

    #[must_use]
    pub fn save(&self) -> PciSerialState {
        let Self { config, interrupts, uart, output: _, signalled: _ } = self;
        PciSerialState { config: config.save(), interrupts: interrupts.save(), uart: uart.save() }
    }

    pub fn restore(&mut self, state: &PciSerialState) {
        let PciSerialState { config, interrupts, uart } = state;
        self.config.restore(config);
        self.interrupts.restore(&mut self.config, interrupts);
        self.uart.restore(uart);
        self.signalled = self.output.0.load(Ordering::Acquire);
    }
}

impl PciDevice for PciSerial {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_write(&mut self, offset: u8, value: u32, mask: u32) -> bool {
        let effect = self.config.write(offset, value, mask);
        self.interrupts.config_written(&mut self.config);
        effect == ConfigEffect::Decode
    }

    fn bar_read(&mut self, now: Time, bar: u8, offset: u64, width: Width) -> u64 {
        match bar {
            REGISTERS => self.with_uart(|uart| uart.port_read(now, offset as u16, width)).into(),
            MSIX if offset >= PENDING.into() => self.interrupts.pending_read(offset - u64::from(PENDING), width),
            MSIX => self.interrupts.table_read(offset, width),
            _ => width.mask(),
        }
    }

    fn bar_write(&mut self, now: Time, bar: u8, offset: u64, width: Width, value: u64) {
        match bar {
            REGISTERS => self.with_uart(|uart| uart.port_write(now, offset as u16, width, value as u32)),
            MSIX if offset < PENDING.into() => self.interrupts.table_write(&self.config, offset, width, value),
            _ => {}
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.uart.deadline()
    }

    fn advance(&mut self, now: Time) {
        self.with_uart(|uart| uart.advance(now));
    }
}
