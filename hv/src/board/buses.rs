//! What is not at a fixed port or page, or not on every board: HPET, configuration space in memory, PCI functions' own ports and memory,
//! and the serial ports beyond the first.

use super::{Board, PortOwner};
use crate::layout;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};
use devices::{
    Gate, Line, LineSink, MmioDevice, PortDevice, TimedDevice,
    hpet::{self, Hpet},
    pci::{ChipsetFunction, ConfigEffect, DevFn, PciDevice, PciSerial},
    testdev,
    uart::{ModemLines, Uart},
};
use spin::Mutex;
use x86defs::{Gpa, Time, TimeSource, Width};

/// Serial ports that a guest can have: COM1 to COM4, and one on a PCI card.
pub const SERIAL_PORTS: usize = 5;
/// COM2 to COM4: name, first port and ISA IRQ. COM3 shares COM1's, and COM4 COM2's, as ever.
pub(super) const COMS: [(PortOwner, u16, u8); 3] =
    [(PortOwner::Com2, 0x2f8, 3), (PortOwner::Com3, 0x3e8, 4), (PortOwner::Com4, 0x2e8, 3)];
/// The PCI card's place.
pub const SERIAL_CARD: DevFn = DevFn::new(3, 0);

/// The HPET, and the gates by which it takes the PIT's and the RTC's interrupts over.
pub(super) struct HpetSlot {
    device: Mutex<Hpet>,
    pit: Arc<Gate>,
}

impl HpetSlot {
    pub(super) fn new(device: Hpet, pit: Arc<Gate>) -> Self {
        Self { device: Mutex::new(device), pit }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.device.lock().deadline()
    }

    pub(super) fn advance(&self, now: Time) {
        self.device.lock().advance(now);
    }
}

/// Where configuration space is in memory.
pub(super) struct Ecam {
    base: AtomicU64,
    /// Zero if it is nowhere.
    size: AtomicU64,
}

impl Ecam {
    pub(super) fn new() -> Self {
        let window = layout::PCI_ECAM;
        Self { base: AtomicU64::new(window.start), size: AtomicU64::new(window.end - window.start) }
    }

    fn offset(&self, gpa: Gpa) -> Option<u64> {
        let offset = gpa.0.wrapping_sub(self.base.load(Ordering::Relaxed));
        (offset < self.size.load(Ordering::Relaxed)).then_some(offset)
    }

    fn set(&self, window: Option<(u64, u64)>) {
        let (base, size) = window.unwrap_or((0, 0));
        // Never a window that is neither the old one nor the new one.
        self.size.store(0, Ordering::SeqCst);
        self.base.store(base, Ordering::SeqCst);
        self.size.store(size, Ordering::SeqCst);
    }
}

/// The line of ISA interrupt 8 with what hangs on it: the chipset notes its alarm, and the HPET may take it over.
pub(super) fn gate(router: &Arc<dyn LineSink>, pin: u32) -> Arc<Gate> {
    Arc::new(Gate::new(Line::new(router.clone(), pin)))
}

/// COM2, COM3 or COM4 (0 to 2).
pub(super) fn com(router: &Arc<dyn LineSink>, index: usize) -> Uart {
    let irq = COMS.get(index).map_or(0, |&(_, _, irq)| irq);
    Uart::new(Line::new(router.clone(), irq.into()), ModemLines::CONNECTED)
}

impl Board {
    /// Device memory that is neither a local APIC's nor the IOAPIC's.
    #[inline(never)]
    pub(super) fn memory_read(&self, clock: impl TimeSource, gpa: Gpa, width: Width) -> u64 {
        if let Some(hpet) = &self.hpet
            && gpa.0.wrapping_sub(layout::HPET_BASE) < hpet::SIZE
        {
            let mut device = hpet.device.lock();
            let before = device.deadline();
            let value = device.mmio_read(clock.now(), gpa.0 - layout::HPET_BASE, width);
            if device.deadline() != before {
                self.timers_changed();
            }
            return value;
        }
        if let Some(offset) = self.ecam.offset(gpa) {
            return self.pci.lock().memory_read(offset, width);
        }
        if let Some(testdev) = &self.testdev
            && let Some(offset) = testdev_offset(gpa, width)
        {
            return testdev.lock().mmio_read(clock.now(), offset, width);
        }
        if self.devices.is_empty() {
            return width.mask();
        }
        let hit = self.windows.lock().memory(gpa.0, width);
        self.function_read(clock.now(), hit, width)
    }

    /// A write to device memory that is neither a local APIC's nor the IOAPIC's.
    #[inline(never)]
    pub(super) fn memory_write(&self, clock: impl TimeSource, gpa: Gpa, width: Width, value: u64) {
        if let Some(hpet) = &self.hpet
            && gpa.0.wrapping_sub(layout::HPET_BASE) < hpet::SIZE
        {
            let mut device = hpet.device.lock();
            let (before, legacy) = (device.deadline(), device.replaces_legacy());
            device.mmio_write(clock.now(), gpa.0 - layout::HPET_BASE, width, value);
            if device.deadline() != before {
                self.timers_changed();
            }
            if device.replaces_legacy() != legacy {
                hpet.pit.connect(legacy);
                self.rtc_gate.connect(legacy);
            }
            return;
        }
        if let Some(offset) = self.ecam.offset(gpa) {
            let mut bus = self.pci.lock();
            let effects = bus.memory_write(offset, width, value);
            for (place, effect) in effects.into_iter().flatten() {
                self.config_effect(bus.function(place), effect);
            }
            return;
        }
        if let Some(testdev) = &self.testdev
            && let Some(offset) = testdev_offset(gpa, width)
        {
            return testdev.lock().mmio_write(clock.now(), offset, width, value);
        }
        if self.devices.is_empty() {
            return;
        }
        let hit = self.windows.lock().memory(gpa.0, width);
        self.function_write(clock.now(), hit, width, value);
    }

    #[cold]
    pub(super) fn test_read(&self, offset: u16, width: Width) -> u32 {
        self.testdev.as_ref().map_or(width.mask() as u32, |device| device.lock().data_read(offset, width))
    }

    #[cold]
    pub(super) fn test_write(&self, offset: u16, width: Width, value: u32) {
        if let Some(device) = &self.testdev {
            device.lock().data_write(offset, width, value);
        }
    }

    #[cold]
    pub(super) fn test_line_write(&self, line: u16, value: u32) {
        if let Some(device) = &self.testdev {
            device.lock().line_write(line, value);
        }
    }

    /// A port that no device of the board claims: a PCI function's, or nobody's.
    #[inline(never)]
    pub(super) fn unclaimed_read(&self, clock: impl TimeSource, port: u16, width: Width) -> u32 {
        if self.devices.is_empty() {
            return width.mask() as u32;
        }
        let hit = self.windows.lock().port(port, width);
        self.function_read(clock.now(), hit, width) as u32
    }

    #[inline(never)]
    pub(super) fn unclaimed_write(&self, clock: impl TimeSource, port: u16, width: Width, value: u32) {
        if self.devices.is_empty() {
            return;
        }
        let hit = self.windows.lock().port(port, width);
        self.function_write(clock.now(), hit, width, value.into());
    }

    fn function_read(&self, now: Time, hit: Option<(usize, u8, u64)>, width: Width) -> u64 {
        let Some((device, bar, offset)) = hit.and_then(|(n, bar, offset)| Some((self.devices.get(n)?, bar, offset))) else {
            return width.mask();
        };
        let mut device = device.lock();
        let before = device.deadline();
        let value = device.bar_read(now, bar, offset, width);
        if device.deadline() != before {
            self.timers_changed();
        }
        value
    }

    fn function_write(&self, now: Time, hit: Option<(usize, u8, u64)>, width: Width, value: u64) {
        let Some((n, bar, offset)) = hit else { return };
        let Some(device) = self.devices.get(n) else { return };
        {
            let mut device = device.lock();
            let before = device.deadline();
            device.bar_write(now, bar, offset, width, value);
            if device.deadline() != before {
                self.timers_changed();
            }
        }
        if let Some(card) = &self.serial_card
            && card.lock().with_uart(|uart| uart.peek_output().is_some())
        {
            self.events.store(true, Ordering::Release);
        }
    }

    /// Carries out what a write to `function`'s configuration space did.
    pub(super) fn config_effect(&self, function: Option<&ChipsetFunction>, effect: ConfigEffect) {
        let Some(function) = function else { return };
        match effect {
            ConfigEffect::PirqRoutes => {
                if let Some(lpc) = function.lpc_bridge() {
                    for pirq in 0..8 {
                        self.router.route_pirq(pirq.into(), lpc.pirq_route(pirq));
                    }
                }
            }
            ConfigEffect::Ecam => {
                if let Some(host) = function.host_bridge() {
                    self.ecam.set(host.ecam());
                }
            }
            ConfigEffect::Decode => {
                if let Some((n, device)) = function.device() {
                    let device = device.lock();
                    self.windows.lock().update(n, device.config());
                }
            }
            // The ACPI block stays where the ACPI tables say that it is.
            ConfigEffect::PmBase | ConfigEffect::None => {}
        }
    }

    /// Does something with serial port `index` (0 is COM1), if it is there.
    pub(super) fn with_serial<T>(&self, index: usize, touch: impl FnOnce(&mut Uart) -> T) -> Option<T> {
        match index {
            0 => Some(touch(&mut self.uart.lock())),
            1..=3 => Some(touch(&mut self.coms.get(index - 1)?.as_ref()?.lock())),
            _ => Some(self.serial_card.as_ref()?.lock().with_uart(touch)),
        }
    }

    /// Ports of the serial ports that the configuration asks for.
    pub(super) fn com_claims(serial: [bool; SERIAL_PORTS]) -> impl Iterator<Item = (PortOwner, u16, u16)> {
        let asked = COMS.into_iter().zip(serial.into_iter().skip(1)).filter(|(_, asked)| *asked);
        asked.map(|((owner, port, _), _)| (owner, port, 8))
    }

    #[inline(never)]
    pub(super) fn com_read(&self, index: usize, now: Time, offset: u16, width: Width) -> u32 {
        match self.coms.get(index) {
            Some(Some(com)) => self.timed_read(com, now, offset, width),
            _ => width.mask() as u32,
        }
    }

    #[inline(never)]
    pub(super) fn com_write(&self, index: usize, now: Time, offset: u16, width: Width, value: u32) {
        let Some(Some(com)) = self.coms.get(index) else { return };
        self.serial_write(com, now, offset, width, value);
    }

    #[inline(never)]
    pub(super) fn serial_write(&self, uart: &Mutex<Uart>, now: Time, offset: u16, width: Width, value: u32) {
        self.timed_write(uart, now, offset, width, value);
        if uart.lock().peek_output().is_some() {
            self.events.store(true, Ordering::Release);
        }
    }

    #[inline(never)]
    pub(super) fn rtc_write(&self, now: Time, offset: u16, width: Width, value: u32) {
        self.timed_write(&self.rtc, now, offset, width, value);
        self.note_rtc_alarm();
    }

    #[inline(never)]
    pub(super) fn rtc_read(&self, now: Time, offset: u16, width: Width) -> u32 {
        let value = self.timed_read(&self.rtc, now, offset, width);
        self.note_rtc_alarm();
        value
    }

    /// A line of the debug console goes to the log.
    #[inline(never)]
    pub(super) fn debug_write(&self, now: Time, offset: u16, width: Width, value: u32) {
        let line = {
            let mut console = self.debug_console.lock();
            console.port_write(now, offset, width, value);
            console.take_line()
        };
        if let Some(line) = line {
            log::debug!(target: "guest", "{}: {}", self.name, core::str::from_utf8(&line).unwrap_or_default());
        }
    }

    /// Earliest deadline of the devices that not every board has.
    pub(super) fn more_deadlines(&self) -> Option<Time> {
        let hpet = self.hpet.as_ref().and_then(HpetSlot::deadline);
        let coms = self.coms.iter().flatten().filter_map(|com| com.lock().deadline()).min();
        let devices = self.devices.iter().filter_map(|device| device.lock().deadline()).min();
        [hpet, coms, devices].into_iter().flatten().min()
    }

    /// Brings those devices up to `now`.
    pub(super) fn advance_more(&self, now: Time) {
        if let Some(hpet) = &self.hpet {
            hpet.advance(now);
        }
        self.coms.iter().flatten().for_each(|com| com.lock().advance(now));
        self.devices.iter().for_each(|device| device.lock().advance(now));
    }
}

/// The offset in the test device's memory of an access that stays within.
fn testdev_offset(gpa: Gpa, width: Width) -> Option<u64> {
    let offset = gpa.0.checked_sub(testdev::MEMORY)?;
    (offset + width.bytes() as u64 <= testdev::MEMORY_SIZE).then_some(offset)
}

/// The PCI card with a serial port, and the same as a device of the bus.
pub(super) type Card = (Arc<Mutex<PciSerial>>, Arc<Mutex<dyn PciDevice>>);
