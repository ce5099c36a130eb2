//! The IOAPIC of the ICH9 (version 20H, 24 pins). It sends messages and knows no local APIC: each method that may send takes a closure
//! which delivers a message and says whether some local APIC has accepted it.
//!
//! Intel 82093AA data sheet (290566-001); Intel ICH9 data sheet (316972-004), 5.9 and 13.5.
//!
//! A pin's level is "asserted" or not. The polarity bit is kept but changes nothing: it tells the chip which voltage means "asserted", and
//! lines have no voltage here.
//!
//! A masked pin holds nothing back: edges that come while it is masked are gone, as both data sheets say ("not delivered nor held
//! pending"); a level that is still asserted when the mask goes is delivered then.

mod spec;
#[cfg(test)]
mod tests;

use crate::interrupt::{DeliveryMode, DestinationMode, InterruptMessage, Trigger};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};
pub use spec::PINS;
use spec::{ID_SHIFT, VERSION, entry, index, window};
use x86defs::Width;

/// A redirection entry with what is not visible of its pin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pin {
    /// As in the register, with a current remote IRR and no delivery status.
    entry: u64,
    asserted: bool,
}

impl Pin {
    const RESET: Self = Self { entry: entry::MASKED, asserted: false };

    const fn masked(self) -> bool {
        self.entry & entry::MASKED != 0
    }

    const fn delivery(self) -> Option<DeliveryMode> {
        DeliveryMode::from_bits((self.entry >> entry::DELIVERY_SHIFT) as u32)
    }

    /// Level-triggered; NMI, SMI, INIT and ExtINT are edge-triggered whatever the entry says (82093AA, 3.2.4).
    fn is_level(self) -> bool {
        self.entry & entry::LEVEL != 0 && self.delivery().is_some_and(DeliveryMode::is_vectored)
    }

    /// Asserted, level-triggered, not masked, and not with a local APIC.
    fn level_waits(self) -> bool {
        self.asserted && self.is_level() && self.entry & (entry::MASKED | entry::REMOTE_IRR) == 0
    }

    /// What software reads.
    fn value(self) -> u64 {
        self.entry | if self.level_waits() { entry::DELIVERY_STATUS } else { 0 }
    }

    /// `None` for a reserved delivery mode.
    fn message(self) -> Option<InterruptMessage> {
        let destination_mode = DestinationMode::from_bit(self.entry & entry::LOGICAL != 0);
        Some(InterruptMessage {
            destination: InterruptMessage::widen((self.entry >> entry::DESTINATION_SHIFT) as u8, destination_mode),
            destination_mode,
            delivery: self.delivery()?,
            vector: (self.entry & entry::VECTOR) as u8,
            trigger: Trigger::from_bit(self.is_level()),
        })
    }

    /// Sends the level-triggered interrupt if it is due.
    fn send_level(&mut self, send: &mut impl FnMut(InterruptMessage) -> bool) {
        if self.level_waits()
            && let Some(message) = self.message()
            && send(message)
        {
            self.entry |= entry::REMOTE_IRR;
        }
    }
}

/// The IOAPIC.
#[derive(Clone, Debug)]
pub struct IoApic {
    id: u8,
    select: u8,
    pins: [Pin; PINS],
}

/// What an [`IoApic`] saves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IoApicState {
    pub id: u8,
    pub select: u8,
    /// Redirection entries with their remote IRR, pin 0 first.
    pub entries: Vec<u64>,
    /// Levels of the pins, bit n = pin n.
    pub asserted: u32,
}

impl IoApic {
    /// After reset: every pin masked. `id`: 0..=15.
    #[must_use]
    pub const fn new(id: u8) -> Self {
        Self { id: id & 0xf, select: 0, pins: [Pin::RESET; PINS] }
    }

    /// Input `pin` is driven to this level.
    pub fn set_level(&mut self, pin: usize, asserted: bool, send: &mut impl FnMut(InterruptMessage) -> bool) {
        let Some(pin) = self.pins.get_mut(pin) else { return };
        let rises = asserted && !pin.asserted;
        pin.asserted = asserted;
        if pin.is_level() {
            pin.send_level(send);
        } else if rises
            && !pin.masked()
            && let Some(message) = pin.message()
        {
            send(message);
        }
    }

    /// The message that input `pin` sends, unless it is masked.
    #[must_use]
    pub fn unmasked(&self, pin: usize) -> Option<InterruptMessage> {
        self.pins.get(pin).filter(|pin| !pin.masked())?.message()
    }

    /// The level-triggered interrupt `vector` has been served (a local APIC's EOI message, or the EOI register): pins that are still
    /// asserted send it again.
    pub fn eoi(&mut self, vector: u8, send: &mut impl FnMut(InterruptMessage) -> bool) {
        for pin in &mut self.pins {
            if pin.entry & entry::REMOTE_IRR != 0 && pin.entry & entry::VECTOR == u64::from(vector) {
                pin.entry &= !entry::REMOTE_IRR;
                pin.send_level(send);
            }
        }
    }

    /// A read at `offset` from the base address. What is no register reads zero.
    #[must_use]
    pub fn mmio_read(&self, offset: u64, width: Width) -> u64 {
        let value = match offset & !3 {
            window::IOREGSEL => u32::from(self.select),
            window::IOWIN => self.register(),
            _ => 0,
        };
        u64::from(value) >> (8 * (offset & 3)) & width.mask()
    }

    /// A write at `offset` from the base address. Registers are 32 bits wide, but the index and the EOI register take any width.
    pub fn mmio_write(&mut self, offset: u64, width: Width, value: u64, send: &mut impl FnMut(InterruptMessage) -> bool) {
        match offset {
            window::IOREGSEL => self.select = value as u8,
            window::IOWIN if width >= Width::Dword => self.write_register(value as u32, send),
            window::EOI => self.eoi(value as u8, send),
            _ => {}
        }
    }

    fn register(&self) -> u32 {
        match self.select {
            index::ID | index::ARBITRATION => u32::from(self.id) << ID_SHIFT,
            index::VERSION => VERSION,
            select => match entry_of(select).and_then(|(pin, half)| Some((self.pins.get(pin)?, half))) {
                Some((pin, shift)) => (pin.value() >> shift) as u32,
                None => 0,
            },
        }
    }

    fn write_register(&mut self, value: u32, send: &mut impl FnMut(InterruptMessage) -> bool) {
        if self.select == index::ID {
            self.id = (value >> ID_SHIFT & 0xf) as u8;
            return;
        }
        let Some((pin, shift)) = entry_of(self.select) else { return };
        let Some(pin) = self.pins.get_mut(pin) else { return };
        let half = 0xffff_ffff << shift;
        let written = pin.entry & !half | u64::from(value) << shift;
        pin.entry = written & entry::WRITABLE | pin.entry & entry::REMOTE_IRR;
        if !pin.is_level() {
            // An edge-triggered pin has no remote IRR. Software gets rid of a stuck one by this switch.
            pin.entry &= !entry::REMOTE_IRR;
        }
        pin.send_level(send);
    }

    #[must_use]
    pub fn save(&self) -> IoApicState {
        let Self { id, select, pins } = self;
        IoApicState {
            id: *id,
            select: *select,
            entries: pins.iter().map(|pin| pin.entry).collect(),
            asserted: (0..).zip(pins).fold(0, |levels, (n, pin)| levels | u32::from(pin.asserted) << n),
        }
    }

    /// Takes on a saved state. Missing entries are as after reset, reserved bits are dropped.
    pub fn restore(&mut self, state: &IoApicState) {
        let IoApicState { id, select, entries, asserted } = state;
        *self = Self::new(*id);
        self.select = *select;
        for (n, (pin, &value)) in self.pins.iter_mut().zip(entries).enumerate() {
            pin.entry = value & (entry::WRITABLE | entry::REMOTE_IRR);
            pin.asserted = asserted >> n & 1 != 0;
        }
    }
}

/// The pin whose redirection entry register `select` is half of, and by how much that half is shifted.
const fn entry_of(select: u8) -> Option<(usize, u32)> {
    match select.checked_sub(index::REDIRECTION) {
        Some(n) => Some(((n >> 1) as usize, 32 * (n & 1) as u32)),
        None => None,
    }
}
