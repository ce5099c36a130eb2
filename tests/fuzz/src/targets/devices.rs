//! The virtual PC's devices one by one: any accesses, at any times, with whatever happens outside of them in between.
//!
//! An input is a sequence of steps, a byte each for the kind (modulo 8), then what the kind wants: see [`Rig::run`].

use crate::{Source, Target};
use devices::{
    Line, LineSink, MessageSink, MissedTicks, MmioDevice, PinState, PortDevice, Time, TimedDevice, Width,
    acpi_pm::{self, AcpiPm, PmTimerWidth},
    debugcon::{DebugConsole, MAX_LINE},
    hpet::{self, Hpet},
    i8042::{I8042, MouseInput},
    interrupt::InterruptMessage,
    ioapic::IoApic,
    lapic::{self, DeliveryMode, LocalApic, Pending, Trigger},
    misc::{Port92, PostCode},
    pci::{self, ChipsetFunction, DevFn, HostBridge, LpcBridge, PciBus, PciDevice, PciSerial, Windows},
    pic::Pic,
    pit::{self, Pit},
    rtc::{Rtc, RtcConfig},
    uart::{self, ModemLines, Uart},
};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU8, AtomicU64, Ordering},
};

/// Changes of lines, messages and the like that one step may cause: more than all lines of a device twice.
const MOST_EFFECTS: u64 = 64;
/// Deadlines in a row that a run looks at, in its middle and at its end.
const DEADLINES: usize = 24;
const LAST_DEADLINES: usize = 256;
/// Those of each timer that may come close together.
const CLOSE_DEADLINES: u64 = 4;
/// The shortest time between two others of one timer.
const BEAT: u64 = lapic::MIN_PERIOD.0;

/// The rest of the machine, as a device sees it.
#[derive(Default)]
struct Outside {
    effects: AtomicU64,
    state: AtomicU8,
}

impl Outside {
    fn pin_state(&self) -> PinState {
        [PinState::Ready, PinState::Waiting, PinState::Masked][usize::from(self.state.load(Ordering::Relaxed) % 3)]
    }

    fn note(&self) {
        self.effects.fetch_add(1, Ordering::Relaxed);
    }
}

impl LineSink for Outside {
    fn set_level(&self, _: u32, _: bool) {
        self.note();
    }
    fn state(&self, _: u32) -> PinState {
        self.pin_state()
    }
}

impl MessageSink for Outside {
    fn write(&self, _: u64, _: u32) {
        self.note();
    }
    fn state(&self, _: u64, _: u32) -> PinState {
        self.pin_state()
    }
}

/// What all devices have in common. Those without a timer have no deadline.
trait Device {
    /// How many things it has that come at a beat of their own: one that is periodic counts twice, since it makes good what was missed.
    const TIMERS: u64 = 1;
    fn read(&mut self, now: Time, offset: u16, width: Width) -> u64;
    fn write(&mut self, now: Time, offset: u16, width: Width, value: u64);
    fn deadline(&self) -> Option<Time> {
        None
    }
    fn advance(&mut self, _now: Time) {}
    /// Something happens outside.
    fn event(&mut self, _now: Time, _source: &mut Source<'_>) {}
    /// Goes through saving and restoring.
    fn renew(&mut self, _outside: &Arc<Outside>, _now: Time) {}
    /// Holds after every step.
    fn check(&self) {}
}

struct Rig<D> {
    device: D,
    outside: Arc<Outside>,
    now: Time,
    claim: Claim,
}

/// Where accesses may be.
#[derive(Clone, Copy)]
enum Claim {
    /// So many ports: an access begins at one of them.
    Ports(u16),
    /// So many bytes of memory: an access lies within.
    Memory(u16),
}

const PORT_WIDTHS: &[Width] = &[Width::Byte, Width::Word, Width::Dword];
const MEMORY_WIDTHS: &[Width] = &[Width::Dword, Width::Qword, Width::Byte, Width::Word];

impl<D: Device> Rig<D> {
    fn run(claim: Claim, source: &mut Source<'_>, make: impl Fn(&Arc<Outside>, MissedTicks) -> D) {
        let outside = Arc::new(Outside::default());
        let policy = if source.u8() & 1 == 0 { MissedTicks::Deliver } else { MissedTicks::Merge };
        let device = make(&outside, policy);
        let mut rig = Self { device, outside, now: Time(0), claim };
        while !source.is_empty() {
            rig.step(source);
            rig.settle();
        }
        rig.follow(LAST_DEADLINES);
    }

    fn access(&self, source: &mut Source<'_>) -> (u16, Width) {
        match self.claim {
            Claim::Ports(count) => (source.below(count.into()) as u16, *source.pick(PORT_WIDTHS)),
            Claim::Memory(size) => {
                let (offset, width) = (source.below(size.into()) as u16, *source.pick(MEMORY_WIDTHS));
                (offset.min(size - width.bytes() as u16), width)
            }
        }
    }

    fn step(&mut self, source: &mut Source<'_>) {
        match source.below(8) {
            0 | 1 => {
                let (offset, width) = self.access(source);
                let value = source.value(width);
                self.device.write(self.now, offset, width, value);
            }
            2 => {
                let (offset, width) = self.access(source);
                let value = self.device.read(self.now, offset, width);
                assert!(value <= width.mask(), "{value:#x} in {width:?}");
            }
            3 => self.now = Time(self.now.0.saturating_add(source.delay())),
            4 => {
                self.device.advance(self.now);
                self.ahead();
            }
            5 => self.follow(DEADLINES),
            6 => self.device.event(self.now, source),
            _ => {
                let what = source.u8();
                if what & 1 == 0 {
                    self.outside.state.store(what >> 1, Ordering::Relaxed);
                } else {
                    self.device.renew(&self.outside, self.now);
                }
            }
        }
    }

    fn settle(&self) {
        let effects = self.outside.effects.swap(0, Ordering::Relaxed);
        assert!(effects <= MOST_EFFECTS * (1 + DEADLINES as u64), "{effects} effects of one step");
        self.device.check();
    }

    /// After it has been brought up to now, whatever is to come lies ahead.
    fn ahead(&self) {
        let deadline = self.device.deadline();
        assert!(deadline.is_none_or(|deadline| deadline > self.now), "at {:?} comes {deadline:?}", self.now);
    }

    /// Goes from deadline to deadline, as a guest's machine does. They must not come too close.
    fn follow(&mut self, steps: usize) {
        self.device.advance(self.now);
        let start = self.now;
        for step in 0..steps as u64 {
            self.ahead();
            let Some(deadline) = self.device.deadline() else { return };
            self.now = deadline;
            self.device.advance(deadline);
            let least = step.saturating_sub(CLOSE_DEADLINES * D::TIMERS) / D::TIMERS * BEAT;
            assert!(self.now.since(start).0 >= least, "{step} deadlines within {:?}", self.now.since(start));
        }
    }
}

/// The methods of [`Device`] that a device in the port space has already.
macro_rules! ports {
    () => {
        fn read(&mut self, now: Time, offset: u16, width: Width) -> u64 {
            PortDevice::port_read(self, now, offset, width).into()
        }
        fn write(&mut self, now: Time, offset: u16, width: Width, value: u64) {
            PortDevice::port_write(self, now, offset, width, value as u32);
        }
    };
}

macro_rules! timed {
    () => {
        fn deadline(&self) -> Option<Time> {
            TimedDevice::deadline(self)
        }
        fn advance(&mut self, now: Time) {
            TimedDevice::advance(self, now);
        }
    };
}

macro_rules! renew {
    ($self:ident, $new:expr) => {{
        let state = $self.save();
        let mut other = $new;
        other.restore(&state);
        assert_eq!(other.save(), state, "restored");
        *$self = other;
    }};
}

impl Device for Pic {
    ports!();
    fn event(&mut self, _: Time, source: &mut Source<'_>) {
        let what = source.u8();
        if what < 0x80 {
            self.set_level(what & 0x1f, what & 0x20 != 0);
        } else {
            self.acknowledge();
        }
    }
    fn renew(&mut self, _: &Arc<Outside>, _: Time) {
        renew!(self, Self::new());
    }
}

impl Device for Pit {
    const TIMERS: u64 = 2;
    ports!();
    timed!();
    fn renew(&mut self, outside: &Arc<Outside>, _: Time) {
        renew!(self, Self::new(Line::new(outside.clone(), 0), MissedTicks::Deliver));
    }
}

const RTC: RtcConfig = RtcConfig {
    wall_clock: 1_700_000_000,
    memory_below_4g: 0x4000_0000,
    memory_above_4g: 0x4000_0000,
    missed: MissedTicks::Deliver,
};

impl Device for Rtc {
    /// Periodic, alarm, update.
    const TIMERS: u64 = 4;
    ports!();
    timed!();
    fn renew(&mut self, outside: &Arc<Outside>, now: Time) {
        renew!(self, Self::new(Line::new(outside.clone(), 8), &RTC, now));
    }
}

impl Device for AcpiPm {
    ports!();
    timed!();
    fn event(&mut self, _: Time, source: &mut Source<'_>) {
        match source.below(6) {
            0 => self.press_power_button(),
            1 => self.press_sleep_button(),
            2 => self.rtc_alarm(),
            3 => self.wake(),
            4 => self.raise_gpe(source.u8()),
            _ => {
                self.take_event();
            }
        }
    }
    fn renew(&mut self, outside: &Arc<Outside>, _: Time) {
        renew!(self, Self::new(Line::new(outside.clone(), 9), PmTimerWidth::Bits32));
    }
}

impl Device for I8042 {
    ports!();
    fn event(&mut self, _: Time, source: &mut Source<'_>) {
        match source.below(4) {
            0 | 1 => {
                let usage = source.u8();
                self.key(usage, source.u8() & 1 != 0);
            }
            2 => {
                let (dx, dy) = (source.u16() as i16, source.u16() as i16);
                self.mouse(MouseInput { dx, dy, dz: source.u8() as i8, buttons: source.u8() });
            }
            _ => {
                self.take_event();
            }
        }
    }
    fn renew(&mut self, outside: &Arc<Outside>, _: Time) {
        renew!(self, Self::new(Line::new(outside.clone(), 1), Line::new(outside.clone(), 12)));
    }
}

/// Something arrives at a serial port, or its output is taken.
fn serial_event(uart: &mut Uart, now: Time, source: &mut Source<'_>) {
    match source.below(5) {
        0 => {
            let wanted = uart.wants_input();
            assert!(uart.receive(now, source.u8()) || !wanted, "a byte that was wanted is refused");
        }
        1 => {
            uart.receive_break(now);
        }
        2 => {
            let bits = source.u8();
            let [cts, dsr, ri, dcd] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
            uart.set_modem_lines(ModemLines { cts, dsr, ri, dcd });
        }
        3 => {
            let seen = uart.peek_output();
            assert_eq!(uart.take_output(), seen);
        }
        _ => {
            let mut buffer = [0; 64];
            let count = uart.drain(&mut buffer);
            assert!(count <= buffer.len() && (count == buffer.len() || uart.peek_output().is_none()));
        }
    }
}

impl Device for Uart {
    ports!();
    timed!();
    fn event(&mut self, now: Time, source: &mut Source<'_>) {
        serial_event(self, now, source);
    }
    fn renew(&mut self, outside: &Arc<Outside>, _: Time) {
        renew!(self, Self::new(Line::new(outside.clone(), 4), ModemLines::DISCONNECTED));
    }
}

impl Device for Hpet {
    const TIMERS: u64 = 2 * hpet::TIMERS as u64;
    fn read(&mut self, now: Time, offset: u16, width: Width) -> u64 {
        self.mmio_read(now, offset.into(), width)
    }
    fn write(&mut self, now: Time, offset: u16, width: Width, value: u64) {
        self.mmio_write(now, offset.into(), width, value);
    }
    timed!();
    fn renew(&mut self, outside: &Arc<Outside>, _: Time) {
        renew!(self, Self::new(outside.clone(), outside.clone(), MissedTicks::Deliver));
    }
}

impl Device for DebugConsole {
    ports!();
    fn event(&mut self, _: Time, _: &mut Source<'_>) {
        if let Some(line) = self.take_line() {
            assert!(line.len() <= MAX_LINE && line.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~')), "{line:?}");
        }
    }
    fn renew(&mut self, _: &Arc<Outside>, _: Time) {
        renew!(self, Self::default());
    }
}

/// Ports 0x92 and 0x80, at the offsets 0 and 1.
struct Latches(Port92, PostCode);

impl Device for Latches {
    fn read(&mut self, now: Time, offset: u16, width: Width) -> u64 {
        if offset == 0 { self.0.port_read(now, 0, width).into() } else { self.1.port_read(now, 0, width).into() }
    }
    fn write(&mut self, now: Time, offset: u16, width: Width, value: u64) {
        if offset == 0 { self.0.port_write(now, 0, width, value as u32) } else { self.1.port_write(now, 0, width, value as u32) }
    }
    fn event(&mut self, _: Time, _: &mut Source<'_>) {
        self.0.take_event();
    }
}

/// An IOAPIC whose messages are accepted or not.
struct Apic {
    ioapic: IoApic,
    outside: Arc<Outside>,
}

impl Apic {
    fn send(outside: &Arc<Outside>) -> impl FnMut(InterruptMessage) -> bool {
        let outside = outside.clone();
        move |_| {
            outside.note();
            outside.pin_state() != PinState::Masked
        }
    }
}

impl Device for Apic {
    fn read(&mut self, _: Time, offset: u16, width: Width) -> u64 {
        self.ioapic.mmio_read(offset.into(), width)
    }
    fn write(&mut self, _: Time, offset: u16, width: Width, value: u64) {
        self.ioapic.mmio_write(offset.into(), width, value, &mut Self::send(&self.outside));
    }
    fn event(&mut self, _: Time, source: &mut Source<'_>) {
        let (what, value) = (source.u8(), source.u8());
        let send = &mut Self::send(&self.outside);
        if what & 1 == 0 {
            self.ioapic.eoi(value, send)
        } else {
            self.ioapic.set_level(usize::from(value & 0x1f), what & 2 != 0, send)
        }
    }
    fn renew(&mut self, _: &Arc<Outside>, _: Time) {
        let state = self.ioapic.save();
        let mut other = IoApic::new(0);
        other.restore(&state);
        assert_eq!(other.save(), state, "restored");
        self.ioapic = other;
    }
}

/// Configuration space by ports (offsets 0 to 7) and in memory (from 8 on, a page of each function in turn), and a card's own ranges.
struct Bus {
    bus: PciBus<ChipsetFunction>,
    card: Arc<spin::Mutex<PciSerial>>,
    windows: Mutex<Windows>,
}

const CARD: DevFn = DevFn::new(3, 0);
/// The functions in memory, by the bits of an offset from 10 on.
const PLACES: [DevFn; 4] = [pci::HOST_BRIDGE, pci::LPC_BRIDGE, CARD, DevFn::new(7, 3)];
const BUS_SIZE: u16 = pci::PORTS + 0x1000;

impl Bus {
    fn new(outside: &Arc<Outside>) -> Self {
        let Ok(card) = PciSerial::new(Line::new(outside.clone(), 19), outside.clone()) else {
            panic!("a card has room for its vectors");
        };
        let card = Arc::new(spin::Mutex::new(card));
        let device: Arc<spin::Mutex<dyn PciDevice>> = card.clone();
        let mut bus = PciBus::new();
        let functions = [
            (pci::HOST_BRIDGE, ChipsetFunction::HostBridge(HostBridge::new(1 << 30, 1 << 30, 0xb000_0000))),
            (pci::LPC_BRIDGE, ChipsetFunction::LpcBridge(LpcBridge::new(0x600, [Some(10); 8]))),
            (CARD, ChipsetFunction::Device(0, device)),
        ];
        for (place, function) in functions {
            assert!(bus.add(place, function).is_ok(), "an empty bus has room");
        }
        Self { bus, card, windows: Mutex::default() }
    }

    fn memory_offset(offset: u16) -> u64 {
        let offset = offset - pci::PORTS;
        let place = PLACES[usize::from(offset >> 10 & 3)];
        u64::from(place.device()) << 15 | u64::from(place.function()) << 12 | u64::from(offset & 0x3ff)
    }

    fn effects(&mut self) {
        while self.bus.take_effect().is_some() {}
        let card = self.card.lock();
        self.windows.lock().unwrap().update(0, card.config());
    }
}

impl Device for Bus {
    fn read(&mut self, now: Time, offset: u16, width: Width) -> u64 {
        match offset.checked_sub(pci::PORTS) {
            None if width == Width::Qword => width.mask(),
            None => self.bus.port_read(now, offset, width).into(),
            Some(_) => self.bus.memory_read(Self::memory_offset(offset), width),
        }
    }
    fn write(&mut self, now: Time, offset: u16, width: Width, value: u64) {
        match offset.checked_sub(pci::PORTS) {
            None if width == Width::Qword => {}
            None => self.bus.port_write(now, offset, width, value as u32),
            Some(_) => drop(self.bus.memory_write(Self::memory_offset(offset), width, value)),
        }
        self.effects();
    }
    fn deadline(&self) -> Option<Time> {
        self.card.lock().deadline()
    }
    fn advance(&mut self, now: Time) {
        self.card.lock().advance(now);
    }
    /// An access to the card's ranges, wherever they are now, or something at its serial port.
    fn event(&mut self, now: Time, source: &mut Source<'_>) {
        let what = source.u8();
        let mut card = self.card.lock();
        let Some((first, size)) = card.config().bar(what & 1) else {
            return card.with_uart(|uart| serial_event(uart, now, source));
        };
        let (at, width) = (first.wrapping_add(u64::from(source.u16()) % size), *source.pick(MEMORY_WIDTHS));
        let windows = self.windows.lock().unwrap();
        let hit = match u16::try_from(at) {
            Ok(port) if what & 1 == 0 => windows.port(port, width),
            _ => windows.memory(at, width),
        };
        let Some((device, bar, offset)) = hit else { return };
        assert_eq!(device, 0);
        if what & 2 == 0 {
            assert!(card.bar_read(now, bar, offset, width) <= width.mask());
        } else {
            card.bar_write(now, bar, offset, width, source.value(width));
        }
    }
    fn renew(&mut self, outside: &Arc<Outside>, _: Time) {
        let (state, card) = (self.bus.save(), self.card.lock().save());
        let mut other = Self::new(outside);
        other.bus.restore(&state);
        other.card.lock().restore(&card);
        assert_eq!((other.bus.save(), other.card.lock().save()), (state, card), "restored");
        *self = other;
        self.effects();
    }
}

/// A local APIC with its owner, its bus and its pins.
struct Local(LocalApic);

const GUEST_TSC_HZ: u64 = 2_445_406_000;

impl Device for Local {
    const TIMERS: u64 = 2;
    fn read(&mut self, now: Time, offset: u16, width: Width) -> u64 {
        self.0.mmio_read(now, offset.into(), width)
    }
    fn write(&mut self, now: Time, offset: u16, width: Width, value: u64) {
        self.0.mmio_write(now, offset.into(), width, value);
    }
    fn deadline(&self) -> Option<Time> {
        self.0.deadline()
    }
    fn advance(&mut self, now: Time) {
        self.0.advance(now);
    }
    fn event(&mut self, now: Time, source: &mut Source<'_>) {
        let apic = &self.0;
        match source.below(12) {
            0 => match apic.pending() {
                Some(Pending::Lapic(vector)) => apic.accept(vector),
                Some(Pending::ExtInt) => apic.extint_acknowledged(),
                None => {}
            },
            1 => {
                let index = 0x800 + u32::from(source.u8());
                let _ = apic.msr_write(now, index, source.u64());
            }
            2 => {
                let _ = apic.msr_read(now, 0x800 + u32::from(source.u8()));
            }
            3 => {
                let _ = apic.set_base_msr(*source.pick(&[0xfee0_0800, 0xfee0_0c00, 0xfee0_0000, 0xfee0_0900, u64::MAX]), 40);
            }
            4 => {
                let to_ns = devices::Rate::new(GUEST_TSC_HZ, 1_000_000_000);
                let value = now.0.wrapping_mul(2).wrapping_add(source.delay());
                apic.set_tsc_deadline(now, now.0.wrapping_mul(2), to_ns, value);
            }
            5 => {
                let vector = source.u8();
                apic.post(vector, Trigger::from_bit(source.u8() & 1 != 0));
            }
            6 => {
                if let Some(delivery) = DeliveryMode::from_bits(source.u8().into()) {
                    apic.receive(delivery, source.u8(), Trigger::Edge);
                }
            }
            7 => {
                let pins = source.u8();
                if pins & 1 == 0 {
                    apic.set_lint0(pins & 2 != 0)
                } else {
                    apic.set_lint1(pins & 2 != 0)
                };
            }
            8 => apic.set_cr8(source.u8()),
            9 => drop(apic.take_startup()),
            10 => drop(apic.take_nmi()),
            _ => apic.init(),
        }
    }
    fn renew(&mut self, _: &Arc<Outside>, _: Time) {
        let state = self.0.save();
        self.0.restore(&state).expect("what it saves is valid");
        assert_eq!(self.0.save(), state, "restored");
    }
    fn check(&self) {
        assert!(self.0.pending().is_none() || self.0.attention(), "nobody will look at what is pending");
        assert!(self.0.highest_pending().is_none_or(|vector| vector >> 4 > self.0.ppr() >> 4), "the priority forbids it");
    }
}

/// Time goes on by a second, by centuries; brought up to now; from deadline to deadline; the pins' states; saved and restored.
const WORDS: &[&[u8]] =
    &[b"\x03\xac\x00\x10", b"\x03\xff\xff\xff", b"\x04", b"\x05", b"\x07\x00", b"\x07\x02", b"\x07\x04", b"\x07\x01"];

const fn target(name: &'static str, run: fn(&mut Source<'_>), seeds: &'static [&'static [u8]]) -> Target {
    Target { name, run, seeds, words: WORDS }
}

/// The devices. Seeds are what drivers do, mostly writes of a byte: 0, offset, 0, value.
pub const TARGETS: &[Target] = &[
    // Both chips initialised and unmasked, a request, its acknowledgement, EOI; a poll.
    target(
        "device-pic",
        |source| Rig::run(Claim::Ports(6), source, |_, _| Pic::new()),
        &[
            b"\0\0\0\0\x11\0\x01\0\x30\0\x01\0\x04\0\x01\0\x01\0\x01\0\0\x06\x21\x06\x80\0\0\0\x20",
            b"\0\0\x02\0\x11\0\x03\0\x38\0\x03\0\x02\0\x03\0\x03\0\x03\0\0\x06\x2c\0\x02\0\x0c\x02\x02\0",
        ],
    ),
    // Counter 0 in mode 2 at 1 kHz, and as fast as it goes, not taken for a while; counter 2 in mode 3 with its gate; read-back.
    target(
        "device-pit",
        |source| Rig::run(Claim::Ports(pit::PORT_61_OFFSET + 1), source, |outside, policy| Pit::new(Line::new(outside.clone(), 0), policy)),
        &[
            b"\0\0\x03\0\x34\0\0\0\xa9\0\0\0\x04\x05\x07\x02\x05\x02\0\0\x02\0\0",
            b"\0\0\x03\0\x34\0\0\0\x0d\0\0\0\0\x07\x02\x05\x07\0",
            b"\0\0\x03\0\xb6\0\x02\0\x10\0\x02\0\x27\0\x04\0\x01\x03\x80\x10\x10\0\x03\0\xc8\x02\x02\0\x02\x02\0\x02\x04\0",
        ],
    ),
    // A page with its ID, a level at pin 9 and an edge at pin 2.
    target(
        "device-ioapic",
        |source| {
            Rig::run(Claim::Memory(0x100), source, |outside, _| Apic { ioapic: IoApic::new(0), outside: outside.clone() });
        },
        &[b"\0\0\0\0\x22\0\0\0\0\x10\0\x45\x80\0\0\x06\x03\x09\x06\x00\x45\x06\x01\x09"],
    ),
    // Enabled, the timer periodic at 1 kHz; accepted, EOI; x2APIC.
    target(
        "device-lapic",
        |source| {
            Rig::run(Claim::Memory(0x400), source, |_, policy| {
                let apic = LocalApic::new(5, true);
                apic.set_missed_ticks(policy);
                Local(apic)
            });
        },
        &[
            b"\0\0\xf0\0\0\0\0\xff\x01\0\0\0\x20\x03\0\0\0\x40\0\x02\0\0\x80\x03\0\0\0\x40\x42\x0f\0\x05\x06\0\0\xb0\0\0\0\0\0\0\0\0\x05",
            b"\0\x06\x03\x01\x06\x01\x0f\xff\x01\0\0\0\0\0\0\x06\x01\x32\x40\0\x04\0\0\0\0\0\x06\x04\x90\xff\0\x05",
        ],
    ),
    // Periodic interrupts at 1 kHz; an alarm in any second; the index with the NMI mask.
    target(
        "device-rtc",
        |source| {
            Rig::run(Claim::Ports(2), source, |outside, missed| {
                Rtc::new(Line::new(outside.clone(), 8), &RtcConfig { missed, ..RTC }, Time(0))
            });
        },
        &[
            b"\0\0\0\0\x0a\0\x01\0\x26\0\0\0\x0b\0\x01\0\x42\x05\0\0\0\x0c\x02\x01\0\x05",
            b"\0\0\0\0\x01\0\x01\0\xff\0\0\0\x03\0\x01\0\xff\0\0\0\x05\0\x01\0\xff\0\0\0\x8b\0\x01\0\x32\x05\x05",
        ],
    ),
    // Enabled; timer 0 periodic and edge-triggered, timer 2 as a level with a comparator.
    target(
        "device-hpet",
        |source| Rig::run(Claim::Memory(hpet::SIZE as u16), source, |outside, policy| Hpet::new(outside.clone(), outside.clone(), policy)),
        &[
            b"\0\0\0\x01\0\0\0\x4c\0\0\0\0\x08\x01\0\0\0\x10\x27\0\0\0\x08\x01\0\0\0\x10\x27\0\0\0\x10\0\0\0\0\x03\0\0\0\x05",
            b"\0\0\x40\x01\0\0\0\x06\x2a\0\0\0\x48\x01\0\0\0\xff\0\0\0\0\x10\0\0\0\0\x01\0\0\0\x05\0\x20\0\0\0\0\x04\0\0\0",
        ],
    ),
    // The timer's carry enabled, buttons, a general-purpose event, S5.
    target(
        "device-acpi-pm",
        |source| {
            Rig::run(Claim::Ports(acpi_pm::PORTS), source, |outside, _| {
                AcpiPm::new(Line::new(outside.clone(), 9), PmTimerWidth::Bits32)
            });
        },
        &[b"\0\0\x02\x01\x01\x07\x05\x06\0\0\0\x01\x01\0\x06\x04\x09\0\x29\0\x02\0\x04\x01\0\x3c\x06\x05"],
    ),
    // Self-test, command byte, keyboard reset, a key, the mouse.
    target(
        "device-i8042",
        |source| {
            Rig::run(Claim::Ports(5), source, |outside, _| {
                I8042::new(Line::new(outside.clone(), 1), Line::new(outside.clone(), 12))
            });
        },
        &[
            b"\0\0\x04\0\xaa\x02\0\0\0\x04\0\x60\0\0\0\x47\0\0\0\xff\x02\0\0\x02\0\0\0\0\0\xf4\x06\0\x04\x01\x02\0\0",
            b"\0\0\x04\0\xd4\0\0\0\xf4\x06\x02\x10\0\x10\0\x01\x01\x02\0\0\0\x04\0\xd1\0\0\0\xdf",
        ],
    ),
    // FIFOs with a trigger level, received bytes, their timeout; loopback; output.
    target(
        "device-uart",
        |source| {
            Rig::run(Claim::Ports(uart::PORTS), source, |outside, _| Uart::new(Line::new(outside.clone(), 4), ModemLines::CONNECTED));
        },
        &[
            b"\0\0\x02\0\x87\0\x04\0\x08\0\x01\0\x0f\x06\0\x41\x06\0\x42\x05\x02\x02\0\x02\0\0\x06\x01\x02\x05\0",
            b"\0\0\x03\0\x83\0\0\0\x01\0\x01\0\0\0\x03\0\x03\0\x04\0\x10\0\0\0\x55\x02\0\0\x06\x04",
        ],
    ),
    // The card's ranges sized, placed and switched on, by ports and in memory; its FIFO.
    target(
        "device-pci",
        |source| Rig::run(Claim::Ports(BUS_SIZE), source, |outside, _| Bus::new(outside)),
        &[
            b"\0\0\0\0\0\0\x02\x10\x18\0\x80\0\x04\0\0\0\x02\0\xc0\0\0\0\x0c\x08\0\0\0\x07\x06\x02\0\0\x02\x41\x06\0\0\0\x02",
            b"\0\0\x68\0\0\0\x02\x05\0\0\xd0\x02\x68\0\0\0\x02",
        ],
    ),
    target("device-debugcon", |source| Rig::run(Claim::Ports(1), source, |_, _| DebugConsole::default()), &[b"\0\0\0\0a\0\0\0\n\x06"]),
    target(
        "device-latches",
        |source| Rig::run(Claim::Ports(2), source, |_, _| Latches(Port92::default(), PostCode::default())),
        &[b"\0\0\0\0\x03\x06\0\x01\0\x55\x02\x01\0"],
    ),
];
