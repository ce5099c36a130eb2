//! The I/O APIC (Intel 82093AA data sheet, 290566; ICH9 data sheet 13.5): 24 pins, version 20H with an EOI register.

use super::lapic::{DeliveryMode, Target};
use x86defs::Width;

/// Pins.
pub const PINS: usize = 24;
const VERSION: u32 = ((PINS as u32 - 1) << 16) | 0x20;
const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
/// Bits of a redirection entry that software writes.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// An interrupt on its way from an I/O APIC or a device (MSI) to the local APICs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptMessage {
    pub target: Target,
    pub mode: DeliveryMode,
    pub vector: u8,
    /// Level-triggered: its EOI is broadcast.
    pub level: bool,
}

impl InterruptMessage {
    /// From a message-signalled interrupt's address and data (SDM vol. 3A, 11.11). `None` if the delivery mode is reserved.
    #[must_use]
    pub fn from_msi(address: u64, data: u32) -> Option<Self> {
        let destination = (address >> 12 & 0xff) as u32;
        let target = if address & 4 != 0 { Target::Logical(destination) } else { Target::Physical(destination) };
        Some(Self { target, mode: DeliveryMode::from_bits(data >> 8)?, vector: data as u8, level: data & 1 << 15 != 0 })
    }
}

/// The I/O APIC. Messages leave through the closure that each method is given.
#[derive(Clone, Debug)]
pub struct IoApic {
    id: u32,
    select: u8,
    entries: [u64; PINS],
    /// Level of each input, bit n = pin n.
    lines: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self { id: 0, select: 0, entries: [MASKED; PINS], lines: 0 }
    }
}

impl IoApic {
    /// Input `pin` changes level. Levels are as devices drive them: high is asserted; the polarity bit turns that round.
    pub fn set_level(&mut self, pin: u32, high: bool, send: &mut impl FnMut(InterruptMessage)) {
        let Some(&entry) = self.entries.get(pin as usize) else { return };
        let was = self.lines >> pin & 1 != 0;
        self.lines = self.lines & !(1 << pin) | u32::from(high) << pin;
        if entry & LEVEL != 0 {
            self.deliver_level(pin as usize, send);
        } else if high && !was && entry & MASKED == 0 {
            send_entry(entry, send);
        }
    }

    fn deliver_level(&mut self, pin: usize, send: &mut impl FnMut(InterruptMessage)) {
        let Some(entry) = self.entries.get_mut(pin) else { return };
        let asserted = self.lines >> pin & 1 != 0;
        if asserted && *entry & (MASKED | REMOTE_IRR) == 0 && *entry & LEVEL != 0 {
            *entry |= REMOTE_IRR;
            send_entry(*entry, send);
        }
    }

    /// An EOI for `vector` was broadcast.
    pub fn eoi(&mut self, vector: u8, send: &mut impl FnMut(InterruptMessage)) {
        for pin in 0..PINS {
            if let Some(entry) = self.entries.get_mut(pin)
                && *entry as u8 == vector
                && *entry & REMOTE_IRR != 0
            {
                *entry &= !REMOTE_IRR;
                self.deliver_level(pin, send);
            }
        }
    }

    /// True if some pin is set to ExtINT and not masked: the 8259 pair's output passes through it.
    #[must_use]
    pub fn extint_enabled(&self) -> bool {
        self.entries.iter().any(|e| e & (MASKED | 7 << 8) == 7 << 8)
    }

    #[must_use]
    pub fn mmio_read(&self, offset: u64, width: Width) -> u64 {
        let value = match offset & !3 {
            0 => u32::from(self.select),
            0x10 => self.register(),
            _ => 0,
        };
        (u64::from(value) >> (8 * (offset & 3))) & width.mask()
    }

    fn register(&self) -> u32 {
        match self.select {
            0 | 2 => self.id << 24,
            1 => VERSION,
            0x10.. => {
                let entry = self.entries.get(usize::from(self.select - 0x10) / 2).copied().unwrap_or(0);
                if self.select & 1 == 0 { entry as u32 } else { (entry >> 32) as u32 }
            }
            _ => 0,
        }
    }

    pub fn mmio_write(&mut self, offset: u64, value: u64, send: &mut impl FnMut(InterruptMessage)) {
        match offset {
            0 => self.select = value as u8,
            0x10 => self.write_register(value as u32, send),
            0x40 => self.eoi(value as u8, send),
            _ => {}
        }
    }

    fn write_register(&mut self, value: u32, send: &mut impl FnMut(InterruptMessage)) {
        match self.select {
            0 => self.id = value >> 24 & 0xf,
            0x10.. => {
                let pin = usize::from(self.select - 0x10) / 2;
                let Some(entry) = self.entries.get_mut(pin) else { return };
                let written = if self.select & 1 == 0 {
                    *entry & !0xffff_ffff | u64::from(value)
                } else {
                    *entry & 0xffff_ffff | u64::from(value) << 32
                };
                *entry = written & WRITABLE | *entry & REMOTE_IRR;
                if *entry & LEVEL == 0 {
                    // An edge-triggered entry has no remote IRR; Linux clears a stuck one by this switch.
                    *entry &= !REMOTE_IRR;
                }
                self.deliver_level(pin, send);
            }
            _ => {}
        }
    }
}

fn send_entry(entry: u64, send: &mut impl FnMut(InterruptMessage)) {
    let destination = (entry >> 56) as u32;
    let target = if entry & 1 << 11 != 0 { Target::Logical(destination) } else { Target::Physical(destination) };
    if let Some(mode) = DeliveryMode::from_bits((entry >> 8) as u32) {
        send(InterruptMessage { target, mode, vector: entry as u8, level: entry & LEVEL != 0 });
    }
}
