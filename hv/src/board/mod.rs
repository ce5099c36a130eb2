//! The virtual PC: which device sits where, and the buses that lead there.
//!
//! Each device has its own lock; the port map is fixed once the board is built. What a device access causes besides its
//! answer (a reset, serial output, a changed deadline) is left in atomic words that the run loop looks at.

mod buses;
mod deadline;
mod ports;

use crate::{layout, vm::End};
use alloc::{string::String, sync::Arc, vec::Vec};
pub use buses::SERIAL_PORTS;
use buses::{COMS, Card, Ecam, HpetSlot, SERIAL_CARD};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use deadline::NextDeadline;
use devices::{
    Gate, Line, LineSink, MessageSink, MissedTicks, PortDevice, TimedDevice,
    acpi_pm::{AcpiPm, PmTimerWidth, PowerEvent},
    debugcon::DebugConsole,
    hpet::Hpet,
    i8042::{self, I8042},
    lapic::{Effect, LocalApic},
    misc::{Port92, PostCode},
    pci::{self, ChipsetFunction, HostBridge, LpcBridge, PciBus, PciDevice, PciSerial, Windows},
    pit::{self, Pit},
    router::InterruptRouter,
    rtc::{Rtc, RtcConfig},
    testdev::{self, TestDevice},
    uart::{ModemLines, Uart},
};
pub use ports::{Overlap, PortMap};
use spin::Mutex;
use x86defs::{Gpa, Time, TimeSource, Width};

/// Who answers a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortOwner {
    Pic,
    Pit,
    Port61,
    I8042Data,
    I8042Command,
    Rtc,
    PostCode,
    Port92,
    Uart,
    /// One of COM2 to COM4, counted among those that are there.
    Com2,
    Com3,
    Com4,
    Pci,
    AcpiPm,
    DebugConsole,
    DebugExit,
    TestData,
    TestFlush,
    TestLines,
}

/// Ports of the devices that every board has: owner, first port, count.
const CLAIMS: &[(PortOwner, u16, u16)] = &[
    (PortOwner::Pic, 0x20, 2),
    (PortOwner::Pic, 0xa0, 2),
    (PortOwner::Pic, 0x4d0, 2),
    (PortOwner::Pit, 0x40, 4),
    (PortOwner::Port61, 0x61, 1),
    (PortOwner::I8042Data, 0x60, 1),
    (PortOwner::I8042Command, 0x64, 1),
    (PortOwner::Rtc, 0x70, 2),
    (PortOwner::PostCode, 0x80, 1),
    (PortOwner::Port92, 0x92, 1),
    (PortOwner::Uart, 0x3f8, 8),
    (PortOwner::DebugConsole, 0xe9, 1),
    (PortOwner::DebugConsole, 0x402, 1),
    (PortOwner::AcpiPm, layout::PM_BASE, layout::PM_PORTS),
    // The reset control register 0xCF9 lies within.
    (PortOwner::Pci, layout::PCI_CONFIG_PORTS.start, pci::PORTS),
];

/// Ports of the test device.
const TEST_CLAIMS: [(PortOwner, u16, u16); 3] = [
    (PortOwner::TestData, testdev::DATA_PORT, 4),
    (PortOwner::TestFlush, testdev::FLUSH_PORT, 4),
    (PortOwner::TestLines, testdev::LINES_PORT, testdev::LINES),
];

/// What a board is built with.
#[derive(Clone, Copy, Debug)]
pub struct BoardConfig {
    /// Bytes; ends at [`layout::LOW_RAM_MAX`] at most.
    pub ram_below_4g: u64,
    /// Bytes.
    pub ram_above_4g: u64,
    /// Seconds since 1970 at time 0 of the time base.
    pub wall_clock: u64,
    /// Port of the debug-exit device.
    pub debug_exit: Option<u16>,
    /// What becomes of periodic interrupts that the guest is not there for.
    pub missed_ticks: MissedTicks,
    pub hpet: bool,
    /// Which serial ports there are, COM1 first; COM1 is always there.
    pub serial: [bool; SERIAL_PORTS],
    /// The test device.
    pub testdev: bool,
}

/// Where firmware leads the PIRQs in 8259 mode.
const PIRQ_IRQS: [Option<u8>; 8] = [Some(10), Some(10), Some(11), Some(11), Some(10), Some(10), Some(11), Some(11)];

/// `Board::end` while the guest goes on.
const RUNNING: u32 = u32::MAX;
const END_POWER_OFF: u32 = 1 << 16;
const END_REBOOT: u32 = 2 << 16;

/// A guest's devices.
pub struct Board {
    /// The guest's name, for the log.
    name: String,
    pub router: Arc<InterruptRouter>,
    ports: PortMap<PortOwner>,
    pit: Mutex<Pit>,
    rtc: Mutex<Rtc>,
    uart: Mutex<Uart>,
    i8042: Mutex<I8042>,
    pci: Mutex<PciBus<ChipsetFunction>>,
    pm: Mutex<AcpiPm>,
    /// COM2 to COM4.
    coms: [Option<Mutex<Uart>>; COMS.len()],
    hpet: Option<HpetSlot>,
    rtc_gate: Arc<Gate>,
    ecam: Ecam,
    /// PCI functions with a lock of their own, and what they decode.
    devices: Vec<Arc<Mutex<dyn PciDevice>>>,
    windows: Mutex<Windows>,
    serial_card: Option<Arc<Mutex<PciSerial>>>,
    testdev: Option<Mutex<TestDevice>>,
    debug_console: Mutex<DebugConsole>,
    port_92: Mutex<Port92>,
    post_code: Mutex<PostCode>,
    /// Why the guest has ended itself: [`RUNNING`], or an `END_` value, or a debug-exit status.
    end: AtomicU32,
    /// There is something for the run loop: an end, or serial output.
    events: AtomicBool,
    /// Some device's deadline may have changed.
    timers_changed: AtomicBool,
    next: NextDeadline,
}

impl Board {
    #[must_use]
    pub fn new(name: &str, config: &BoardConfig, apics: Vec<Arc<LocalApic>>, now: Time) -> Self {
        let router = Arc::new(InterruptRouter::new(apics));
        let sink: Arc<dyn LineSink> = router.clone();
        let line = |pin| Line::new(sink.clone(), pin);
        let mut ports = PortMap::new();
        let debug_exit = config.debug_exit.map(|port| (PortOwner::DebugExit, port, 1));
        let test_claims = TEST_CLAIMS.into_iter().filter(|_| config.testdev);
        for (owner, first, count) in
            CLAIMS.iter().copied().chain(Self::com_claims(config.serial)).chain(debug_exit).chain(test_claims)
        {
            // Overlaps are refused with the configuration (`Board::claims`); the fixed claims are tested not to have any.
            let _ = ports.claim(owner, first, count);
        }
        let rtc = RtcConfig {
            wall_clock: config.wall_clock,
            memory_below_4g: config.ram_below_4g,
            memory_above_4g: config.ram_above_4g,
            missed: config.missed_ticks,
        };
        let mut bus = PciBus::new();
        let host = ChipsetFunction::HostBridge(HostBridge::new(config.ram_below_4g, config.ram_above_4g, layout::PCI_ECAM.start));
        let lpc = LpcBridge::new(layout::PM_BASE, PIRQ_IRQS);
        // An empty bus has room for both.
        let _ = bus.add(pci::HOST_BRIDGE, host);
        let _ = bus.add(pci::LPC_BRIDGE, ChipsetFunction::LpcBridge(lpc));
        let messages: Arc<dyn MessageSink> = router.clone();
        let card = config.serial.last().and_then(|&asked| if asked { serial_card(&sink, &messages) } else { None });
        let mut devices = Vec::new();
        let serial_card = card.map(|(card, device)| {
            let _ = bus.add(SERIAL_CARD, ChipsetFunction::Device(devices.len(), device.clone()));
            devices.push(device);
            card
        });
        let coms = core::array::from_fn(|n| {
            let asked = config.serial.get(n + 1) == Some(&true);
            asked.then(|| Mutex::new(buses::com(&sink, n)))
        });
        let rtc_gate = buses::gate(&sink, 8);
        let (pit_line, hpet) = if config.hpet {
            let gate = buses::gate(&sink, 0);
            let hpet = Hpet::new(sink.clone(), messages, config.missed_ticks);
            (Line::new(gate.clone(), 0), Some(HpetSlot::new(hpet, gate)))
        } else {
            (line(0), None)
        };
        for apic in router.apics() {
            apic.set_missed_ticks(config.missed_ticks);
        }
        for (pirq, irq) in PIRQ_IRQS.into_iter().enumerate() {
            router.route_pirq(pirq, irq);
        }
        // The SCI is level-triggered, also in the 8259 pair (ACPI 6.4, 5.2.9); firmware sets the ELCR so.
        router.pic_write(now, 0x4d1, Width::Byte, 1 << (layout::SCI_IRQ - 8));
        Self {
            name: name.into(),
            ports,
            pit: Mutex::new(Pit::new(pit_line, config.missed_ticks)),
            rtc: Mutex::new(Rtc::new(Line::new(rtc_gate.clone(), 8), &rtc, now)),
            uart: Mutex::new(Uart::new(line(4), ModemLines::CONNECTED)),
            i8042: Mutex::new(I8042::new(line(1), line(12))),
            pci: Mutex::new(bus),
            pm: Mutex::new(AcpiPm::new(line(layout::SCI_IRQ.into()), PmTimerWidth::Bits32)),
            coms,
            hpet,
            rtc_gate,
            ecam: Ecam::new(),
            devices,
            windows: Mutex::default(),
            serial_card,
            testdev: config.testdev.then(|| Mutex::new(TestDevice::new((0..testdev::LINES).map(|n| line(n.into())).collect()))),
            debug_console: Mutex::default(),
            port_92: Mutex::default(),
            post_code: Mutex::default(),
            router,
            end: AtomicU32::new(RUNNING),
            events: AtomicBool::new(false),
            timers_changed: AtomicBool::new(false),
            next: NextDeadline::new(),
        }
    }

    /// The port, if one of the board's own devices has it.
    #[must_use]
    pub fn claims(port: u16) -> Option<u16> {
        let mut claims = CLAIMS.iter().copied().chain(Self::com_claims([true; SERIAL_PORTS])).chain(TEST_CLAIMS);
        claims.any(|(_, first, count)| (first..first + count).contains(&port)).then_some(port)
    }

    /// IN. `clock` is asked only if the device wants to know the time. What nobody claims reads all ones.
    #[inline(always)]
    pub fn port_read(&self, clock: impl TimeSource, port: u16, width: Width) -> u32 {
        match self.ports.find(port) {
            Some((owner, offset)) => self.device_read(owner, clock.now(), port, offset, width),
            None => self.unclaimed_read(clock, port, width),
        }
    }

    /// Each device's way is a function of its own, so that none pays for another's registers and stack.
    #[inline(always)]
    fn device_read(&self, owner: PortOwner, now: Time, port: u16, offset: u16, width: Width) -> u32 {
        match owner {
            PortOwner::Pic => self.router.pic_read(now, port, width),
            PortOwner::Pit => read(&self.pit, now, offset, width),
            PortOwner::Port61 => read(&self.pit, now, pit::PORT_61_OFFSET, width),
            PortOwner::Rtc => self.rtc_read(now, offset, width),
            PortOwner::Uart => self.timed_read(&self.uart, now, offset, width),
            PortOwner::Com2 => self.com_read(0, now, offset, width),
            PortOwner::Com3 => self.com_read(1, now, offset, width),
            PortOwner::Com4 => self.com_read(2, now, offset, width),
            PortOwner::DebugConsole => read(&self.debug_console, now, offset, width),
            PortOwner::Pci => read(&self.pci, now, offset, width),
            PortOwner::AcpiPm => self.timed_read(&self.pm, now, offset, width),
            PortOwner::I8042Data => read(&self.i8042, now, i8042::DATA_OFFSET, width),
            PortOwner::I8042Command => read(&self.i8042, now, i8042::COMMAND_OFFSET, width),
            PortOwner::Port92 => read(&self.port_92, now, offset, width),
            PortOwner::PostCode => read(&self.post_code, now, offset, width),
            PortOwner::TestData => self.test_read(offset, width),
            PortOwner::DebugExit | PortOwner::TestFlush | PortOwner::TestLines => width.mask() as u32,
        }
    }

    /// OUT. What nobody claims is dropped.
    #[inline(always)]
    pub fn port_write(&self, clock: impl TimeSource, port: u16, width: Width, value: u32) {
        match self.ports.find(port) {
            Some((owner, offset)) => self.device_write(owner, clock.now(), port, offset, width, value),
            None => self.unclaimed_write(clock, port, width, value),
        }
    }

    /// The same for one of many: whoever writes a string is long enough without this.
    #[inline(never)]
    pub fn port_write_of_string(&self, now: Time, port: u16, width: Width, value: u32) {
        self.port_write(now, port, width, value);
    }

    /// Bytes that one instruction writes to a port, one after the other.
    pub fn port_write_bytes(&self, now: Time, port: u16, bytes: &[u8]) {
        match self.ports.find(port) {
            Some((owner, offset)) => {
                for &byte in bytes {
                    self.device_write(owner, now, port, offset, Width::Byte, byte.into());
                }
            }
            None => bytes.iter().for_each(|&byte| self.unclaimed_write(now, port, Width::Byte, byte.into())),
        }
    }

    /// As for reads, each device's way is its own.
    #[inline(always)]
    fn device_write(&self, owner: PortOwner, now: Time, port: u16, offset: u16, width: Width, value: u32) {
        match owner {
            PortOwner::Pic => self.router.pic_write(now, port, width, value),
            PortOwner::Pit => self.timed_write(&self.pit, now, offset, width, value),
            PortOwner::Port61 => self.timed_write(&self.pit, now, pit::PORT_61_OFFSET, width, value),
            PortOwner::Rtc => self.rtc_write(now, offset, width, value),
            PortOwner::Uart => self.serial_write(&self.uart, now, offset, width, value),
            PortOwner::Com2 => self.com_write(0, now, offset, width, value),
            PortOwner::Com3 => self.com_write(1, now, offset, width, value),
            PortOwner::Com4 => self.com_write(2, now, offset, width, value),
            PortOwner::DebugConsole => self.debug_write(now, offset, width, value),
            PortOwner::Pci => self.pci_write(now, offset, width, value),
            PortOwner::AcpiPm => self.pm_write(now, offset, width, value),
            PortOwner::I8042Data => self.i8042_write(now, i8042::DATA_OFFSET, width, value),
            PortOwner::I8042Command => self.i8042_write(now, i8042::COMMAND_OFFSET, width, value),
            PortOwner::Port92 => self.port_92_write(now, offset, width, value),
            PortOwner::PostCode => self.post_code_write(now, offset, width, value),
            PortOwner::DebugExit => self.set_end((value & 0xff) << 1 | 1),
            PortOwner::TestData => self.test_write(offset, width, value),
            PortOwner::TestLines => self.test_line_write(offset, value),
            PortOwner::TestFlush => {}
        }
    }

    /// A read that may move the device's deadline.
    #[inline(never)]
    fn timed_read<D: PortDevice + TimedDevice>(&self, device: &Mutex<D>, now: Time, offset: u16, width: Width) -> u32 {
        let mut device = device.lock();
        let before = device.deadline();
        let value = device.port_read(now, offset, width);
        if device.deadline() != before {
            self.timers_changed();
        }
        value
    }

    /// A write that may move the device's deadline.
    #[inline(never)]
    fn timed_write<D: PortDevice + TimedDevice>(&self, device: &Mutex<D>, now: Time, offset: u16, width: Width, value: u32) {
        let mut device = device.lock();
        let before = device.deadline();
        device.port_write(now, offset, width, value);
        if device.deadline() != before {
            self.timers_changed();
        }
    }

    #[inline(never)]
    fn post_code_write(&self, now: Time, offset: u16, width: Width, value: u32) {
        self.post_code.lock().port_write(now, offset, width, value);
    }

    #[inline(never)]
    fn pm_write(&self, now: Time, offset: u16, width: Width, value: u32) {
        self.timed_write(&self.pm, now, offset, width, value);
        match self.pm.lock().take_event() {
            Some(PowerEvent::SoftOff) => self.set_end(END_POWER_OFF),
            // The ACPI tables offer no other state: a guest that asks for one all the same goes on running.
            Some(PowerEvent::Sleep { .. }) | None => {}
        }
    }

    #[inline(never)]
    fn port_92_write(&self, now: Time, offset: u16, width: Width, value: u32) {
        let mut port_92 = self.port_92.lock();
        port_92.port_write(now, offset, width, value);
        if port_92.take_event().is_some() {
            self.set_end(END_REBOOT);
        }
    }

    #[inline(never)]
    fn i8042_write(&self, now: Time, offset: u16, width: Width, value: u32) {
        let mut i8042 = self.i8042.lock();
        i8042.port_write(now, offset, width, value);
        if i8042.take_event().is_some() {
            self.set_end(END_REBOOT);
        }
    }

    #[inline(never)]
    fn pci_write(&self, now: Time, offset: u16, width: Width, value: u32) {
        let mut bus = self.pci.lock();
        bus.port_write(now, offset, width, value);
        if bus.reset.take_event().is_some() {
            self.set_end(END_REBOOT);
        }
        if let Some((place, effect)) = bus.take_effect() {
            self.config_effect(bus.function(place), effect);
        }
    }

    /// The chipset notes the RTC's interrupt as a reason to wake (ICH9 data sheet, 13.8.3.1, RTC_STS).
    fn note_rtc_alarm(&self) {
        if self.rtc_gate.take_risen() {
            self.pm.lock().rtc_alarm();
        }
    }

    /// Device memory, as vCPU `vcpu` reads it. What nobody claims reads all ones.
    #[inline(always)]
    pub fn mmio_read(&self, vcpu: u32, clock: impl TimeSource, gpa: Gpa, width: Width) -> u64 {
        if let Some(apic) = self.lapic_at(vcpu, gpa) {
            return apic.mmio_read(clock, gpa.page_offset(), width);
        }
        self.shared_read(clock, gpa, width)
    }

    #[inline(never)]
    fn shared_read(&self, clock: impl TimeSource, gpa: Gpa, width: Width) -> u64 {
        if gpa.page().0 == layout::IOAPIC_BASE {
            return self.router.ioapic_read(gpa.page_offset(), width);
        }
        self.memory_read(clock, gpa, width)
    }

    /// Device memory, as vCPU `vcpu` writes it. What nobody claims is dropped.
    #[inline(always)]
    pub fn mmio_write(&self, vcpu: u32, clock: impl TimeSource, gpa: Gpa, width: Width, value: u64) {
        if let Some(apic) = self.lapic_at(vcpu, gpa) {
            let effect = apic.mmio_write(clock, gpa.page_offset(), width, value);
            self.lapic_effect(vcpu, effect);
        } else {
            self.shared_write(clock, gpa, width, value);
        }
    }

    #[inline(never)]
    fn shared_write(&self, clock: impl TimeSource, gpa: Gpa, width: Width, value: u64) {
        if gpa.page().0 == layout::IOAPIC_BASE {
            self.router.ioapic_write(gpa.page_offset(), width, value);
        } else {
            self.memory_write(clock, gpa, width, value);
        }
    }

    #[inline(always)]
    fn lapic_at(&self, vcpu: u32, gpa: Gpa) -> Option<&LocalApic> {
        let apic = self.router.apics().get(vcpu as usize)?;
        (apic.mmio_base() == Some(gpa.page().0)).then_some(&**apic)
    }

    /// Carries out what a local APIC's register write asks for.
    #[inline]
    pub fn lapic_effect(&self, vcpu: u32, effect: Effect) {
        match effect {
            // No device's.
            Effect::Timer => self.timers_changed.store(true, Ordering::Release),
            effect => self.router.effect(vcpu, effect),
        }
    }

    /// When [`Board::advance`] must be called next: the earliest of all devices. The local APICs' timers go with their vCPUs.
    #[must_use]
    #[inline]
    pub fn deadline(&self) -> Option<Time> {
        self.next.get(|| {
            let devices =
                [self.pit.lock().deadline(), self.rtc.lock().deadline(), self.uart.lock().deadline(), self.pm.lock().deadline()];
            devices.into_iter().chain([self.more_deadlines()]).flatten().min()
        })
    }

    /// Brings the devices' timers up to `now`.
    pub fn advance(&self, now: Time) {
        self.pit.lock().advance(now);
        self.rtc.lock().advance(now);
        self.uart.lock().advance(now);
        self.advance_more(now);
        self.note_rtc_alarm();
        self.pm.lock().advance(now);
        self.next.forget();
    }

    /// To be called with the device's lock still held, or after that.
    fn timers_changed(&self) {
        self.next.forget();
        self.timers_changed.store(true, Ordering::Release);
    }

    /// True if a device access has left nothing to be seen to: no changed deadline, nobody to wake, no event.
    #[inline(always)]
    pub fn is_quiet(&self) -> bool {
        !self.timers_changed.load(Ordering::Relaxed) && !self.has_events() && !self.router.has_woken()
    }

    /// True once after a deadline may have changed.
    #[inline]
    pub fn take_timers_changed(&self) -> bool {
        self.timers_changed.load(Ordering::Acquire) && self.timers_changed.swap(false, Ordering::AcqRel)
    }

    /// True if the guest has ended itself, or there is serial output.
    #[inline]
    pub fn has_events(&self) -> bool {
        self.events.load(Ordering::Acquire)
    }

    fn set_end(&self, end: u32) {
        // The first reason stays.
        let _ = self.end.compare_exchange(RUNNING, end, Ordering::AcqRel, Ordering::Acquire);
        self.events.store(true, Ordering::Release);
    }

    /// How the guest has ended itself, if it has.
    #[must_use]
    pub fn take_end(&self) -> Option<End> {
        match self.end.load(Ordering::Acquire) {
            RUNNING => None,
            END_POWER_OFF => Some(End::PowerOff),
            END_REBOOT => Some(End::Reboot),
            status => Some(End::DebugExit(status as u16)),
        }
    }

    /// Gives the serial ports' output to `accept`, byte by byte with the port's number, until that says no; what it does not take stays.
    pub fn drain_serial(&self, mut accept: impl FnMut(usize, u8) -> bool) {
        if !self.has_events() {
            return;
        }
        let mut drain = |port: usize, uart: &mut Uart| {
            while let Some(byte) = uart.peek_output() {
                if !accept(port, byte) {
                    return false;
                }
                uart.take_output();
                self.next.forget();
            }
            true
        };
        let mut uart = self.uart.lock();
        let mut empty = drain(0, &mut uart);
        for port in 1..SERIAL_PORTS {
            empty &= self.with_serial(port, |uart| drain(port, uart)).unwrap_or(true);
        }
        if empty && self.end.load(Ordering::Acquire) == RUNNING {
            self.events.store(false, Ordering::Release);
        }
    }

    /// Presses the ACPI power button.
    pub fn press_power_button(&self) {
        self.pm.lock().press_power_button();
        self.next.forget();
    }

    /// Presses the ACPI sleep button.
    pub fn press_sleep_button(&self) {
        self.pm.lock().press_sleep_button();
        self.next.forget();
    }

    /// True if serial port `port` (0 is COM1) can take a byte of input now.
    #[must_use]
    pub fn serial_wants_input(&self, port: usize) -> bool {
        self.with_serial(port, |uart| uart.wants_input()).unwrap_or(false)
    }

    /// A byte arrives at serial port `port`.
    pub fn serial_input(&self, now: Time, port: usize, byte: u8) {
        self.with_serial(port, |uart| uart.receive(now, byte));
        self.timers_changed();
    }
}

/// The PCI card, its interrupt pin wired as the ACPI tables say.
fn serial_card(lines: &Arc<dyn LineSink>, messages: &Arc<dyn MessageSink>) -> Option<Card> {
    let pin = layout::PIRQ_GSI_BASE + u32::from(layout::pci_pirq(SERIAL_CARD.device(), 0));
    let card = Arc::new(Mutex::new(PciSerial::new(Line::new(lines.clone(), pin), messages.clone()).ok()?));
    Some((card.clone(), card))
}

#[inline(never)]
fn read<D: PortDevice>(device: &Mutex<D>, now: Time, offset: u16, width: Width) -> u32 {
    device.lock().port_read(now, offset, width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_claims_do_not_overlap() {
        let mut map = PortMap::new();
        for (owner, first, count) in CLAIMS.iter().copied().chain(Board::com_claims([true; SERIAL_PORTS])).chain(TEST_CLAIMS) {
            assert_eq!(map.claim(owner, first, count).map_err(|o| (o.first, o.second)), Ok(()));
        }
        assert_eq!(Board::claims(0xcf9), Some(0xcf9));
        assert_eq!(Board::claims(0xf4), None);
    }
}
