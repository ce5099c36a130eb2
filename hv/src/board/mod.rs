//! The virtual PC: which device sits where, and the buses that lead there.
//!
//! Each device has its own lock; the port map is fixed once the board is built. What a device access causes besides its
//! answer (a reset, serial output, a changed deadline) is left in atomic words that the run loop looks at.

mod ports;

use crate::{layout, vm::End};
use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use devices::{
    Line, LineSink, PortDevice, TimedDevice,
    interim::{
        misc::{Pci, Pm},
        pit::Pit,
        rtc::{CmosMemory, Rtc},
        uart::Uart,
    },
    lapic::{Effect, LocalApic},
    router::InterruptRouter,
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
    /// Seconds since 1970 at time 0 of the time base.
    pub wall_clock: u64,
    /// Port of the debug-exit device.
    pub debug_exit: Option<u16>,
}

/// `Board::end` while the guest goes on.
const RUNNING: u32 = u32::MAX;
const END_POWER_OFF: u32 = 1 << 16;
const END_REBOOT: u32 = 2 << 16;

/// A guest's devices.
pub struct Board {
    pub router: Arc<InterruptRouter>,
    ports: PortMap<PortOwner>,
    pit: Mutex<Pit>,
    rtc: Mutex<Rtc>,
    uart: Mutex<Uart>,
    pci: Mutex<Pci>,
    pm: Mutex<Pm>,
    reset: AtomicU32,
    /// Why the guest has ended itself: [`RUNNING`], or an `END_` value, or a debug-exit status.
    end: AtomicU32,
    /// There is something for the run loop: an end, or serial output.
    events: AtomicBool,
    /// Some device's deadline may have changed.
    timers_changed: AtomicBool,
}

impl Board {
    #[must_use]
    pub fn new(config: &BoardConfig, apics: Vec<Arc<LocalApic>>, now: Time) -> Self {
        let router = Arc::new(InterruptRouter::new(apics));
        let sink: Arc<dyn LineSink> = router.clone();
        let line = |pin| Line::new(sink.clone(), pin);
        let mut ports = PortMap::new();
        let debug_exit = config.debug_exit.map(|port| (PortOwner::DebugExit, port, 1));
        for (owner, first, count) in CLAIMS.iter().copied().chain(debug_exit) {
            // Overlaps are refused with the configuration (`Board::claims`); the fixed claims are tested not to have any.
            let _ = ports.claim(owner, first, count);
        }
        let memory = CmosMemory { below_4g: config.ram_below_4g, above_4g: config.ram_above_4g };
        Self {
            ports,
            pit: Mutex::new(Pit::new(line(0))),
            rtc: Mutex::new(Rtc::new(line(8), config.wall_clock as i64, now, memory)),
            uart: Mutex::new(Uart::new(line(4))),
            pci: Mutex::default(),
            pm: Mutex::default(),
            reset: AtomicU32::new(0),
            router,
            end: AtomicU32::new(RUNNING),
            events: AtomicBool::new(false),
            timers_changed: AtomicBool::new(false),
        }
    }

    /// The port, if one of the board's own devices has it.
    #[must_use]
    pub fn claims(port: u16) -> Option<u16> {
        CLAIMS.iter().any(|&(_, first, count)| (first..first + count).contains(&port)).then_some(port)
    }

    /// IN. What nobody claims reads all ones.
    pub fn port_read(&self, now: Time, port: u16, width: Width) -> u32 {
        let Some((owner, offset)) = self.ports.find(port) else { return width.mask() as u32 };
        match owner {
            PortOwner::Pic => self.router.pic_read(now, port, width),
            PortOwner::Pit if port == 0x61 => self.pit.lock().read_port_b(now).into(),
            PortOwner::Pit => self.pit.lock().port_read(now, offset, width),
            PortOwner::Rtc => self.rtc.lock().port_read(now, offset, width),
            PortOwner::Uart => self.uart.lock().port_read(now, offset, width),
            PortOwner::Pci => self.pci.lock().read(port, width),
            PortOwner::AcpiPm => self.pm.lock().read(now, offset, width),
            PortOwner::Reset if width == Width::Dword => self.pci.lock().read(port, width),
            PortOwner::Reset => self.reset.load(Ordering::Relaxed),
            PortOwner::I8042 if port == 0x64 => 0x1c,
            PortOwner::I8042 => 0,
            PortOwner::FastA20 => 2,
            PortOwner::PostCode => 0,
            PortOwner::DebugExit => width.mask() as u32,
        }
    }

    /// OUT. What nobody claims is dropped.
    pub fn port_write(&self, now: Time, port: u16, width: Width, value: u32) {
        let Some((owner, offset)) = self.ports.find(port) else { return };
        match owner {
            PortOwner::Pic => self.router.pic_write(now, port, width, value),
            PortOwner::Pit if port == 0x61 => self.pit.lock().write_port_b(now, value as u8),
            PortOwner::Pit => {
                self.pit.lock().port_write(now, offset, width, value);
                self.timers_changed();
            }
            PortOwner::Rtc => {
                self.rtc.lock().port_write(now, offset, width, value);
                self.timers_changed();
            }
            PortOwner::Uart => {
                let mut uart = self.uart.lock();
                uart.port_write(now, offset, width, value);
                if uart.peek_output().is_some() {
                    self.events.store(true, Ordering::Release);
                }
            }
            PortOwner::Pci => self.pci.lock().write(port, width, value),
            PortOwner::AcpiPm => {
                if self.pm.lock().write(offset, value) {
                    self.set_end(END_POWER_OFF);
                }
            }
            PortOwner::Reset => {
                let old = self.reset.swap(value & 0xe, Ordering::Relaxed);
                if value & 4 != 0 && old & 4 == 0 {
                    self.set_end(END_REBOOT);
                }
            }
            PortOwner::I8042 if port == 0x64 && value == 0xfe => self.set_end(END_REBOOT),
            PortOwner::FastA20 if value & 1 != 0 => self.set_end(END_REBOOT),
            PortOwner::I8042 | PortOwner::FastA20 | PortOwner::PostCode => {}
            PortOwner::DebugExit => self.set_end((value & 0xff) << 1 | 1),
        }
    }

    /// Device memory, as vCPU `vcpu` reads it. What nobody claims reads all ones.
    pub fn mmio_read(&self, vcpu: u32, now: Time, gpa: Gpa, width: Width) -> u64 {
        if let Some(apic) = self.lapic_at(vcpu, gpa) {
            return apic.mmio_read(now, gpa.page_offset(), width);
        }
        if gpa.page().0 == layout::IOAPIC_BASE {
            return self.router.ioapic_read(gpa.page_offset(), width);
        }
        width.mask()
    }

    /// Device memory, as vCPU `vcpu` writes it. What nobody claims is dropped.
    pub fn mmio_write(&self, vcpu: u32, now: Time, gpa: Gpa, width: Width, value: u64) {
        if let Some(apic) = self.lapic_at(vcpu, gpa) {
            let effect = apic.mmio_write(now, gpa.page_offset(), width, value);
            self.lapic_effect(vcpu, effect);
        } else if gpa.page().0 == layout::IOAPIC_BASE {
            self.router.ioapic_write(gpa.page_offset(), width, value);
        }
    }

    fn lapic_at(&self, vcpu: u32, gpa: Gpa) -> Option<&LocalApic> {
        let apic = self.router.apics().get(vcpu as usize)?;
        (apic.mmio_base() == Some(gpa.page().0)).then_some(&**apic)
    }

    /// Carries out what a local APIC's register write asks for.
    #[inline]
    pub fn lapic_effect(&self, vcpu: u32, effect: Effect) {
        match effect {
            Effect::Timer => self.timers_changed(),
            effect => self.router.effect(vcpu, effect),
        }
    }

    /// When [`Board::advance`] must be called next: the earliest of all devices and local APICs.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let apics = self.router.apics().iter().filter_map(|apic| apic.deadline());
        apics.chain(self.pit.lock().deadline()).chain(self.rtc.lock().deadline()).min()
    }

    /// Brings all timers up to `now`.
    pub fn advance(&self, now: Time) {
        self.pit.lock().advance(now);
        self.rtc.lock().advance(now);
        for apic in self.router.apics() {
            apic.advance(now);
        }
    }

    fn timers_changed(&self) {
        self.timers_changed.store(true, Ordering::Release);
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

    /// Gives the serial port's output to `accept`, byte by byte, until that says no; what it does not take stays.
    pub fn drain_serial(&self, mut accept: impl FnMut(u8) -> bool) {
        if !self.has_events() {
            return;
        }
        let mut uart = self.uart.lock();
        while let Some(byte) = uart.peek_output() {
            if !accept(byte) {
                return;
            }
            uart.take_output();
        }
        if self.end.load(Ordering::Acquire) == RUNNING {
            self.events.store(false, Ordering::Release);
        }
    }

    /// True if the serial port can take a byte of input now.
    #[must_use]
    pub fn serial_wants_input(&self) -> bool {
        self.uart.lock().wants_input()
    }

    /// A byte arrives at the serial port.
    pub fn serial_input(&self, _: Time, byte: u8) {
        self.uart.lock().receive(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_claims_do_not_overlap() {
        let mut map = PortMap::new();
        for &(owner, first, count) in CLAIMS {
            assert_eq!(map.claim(owner, first, count).map_err(|o| (o.first, o.second)), Ok(()));
        }
        assert_eq!(Board::claims(0xcf9), Some(0xcf9));
        assert_eq!(Board::claims(0xf4), None);
    }
}
