//! How a PCI function interrupts: by its pin, by MSI, or by MSI-X.
//!
//! PCI Local Bus Specification 3.0 (2004), 6.8 and 7.5 of chapter 6 ("MSI-X Capability"); section numbers below are its.

use super::{
    config::{BarError, CapabilitySpace, ConfigSpace},
    spec::{Command, Status},
};
use crate::{Line, MessageSink};
use alloc::{sync::Arc, vec::Vec};
use serde::{Deserialize, Serialize};
use x86defs::Width;

const MSI_ID: u8 = 0x05;
const MSIX_ID: u8 = 0x11;

/// Registers of the MSI capability with 64-bit addresses and per-vector masks (6.8.1), from its start.
mod capability {
    /// In the upper half: message control.
    pub const CONTROL: u8 = 0x00;
    pub const ADDRESS: u8 = 0x04;
    pub const ADDRESS_HIGH: u8 = 0x08;
    pub const DATA: u8 = 0x0c;
    pub const MASKS: u8 = 0x10;
    pub const PENDING: u8 = 0x14;

    pub const ENABLE: u32 = 1 << 16;
    pub const ENABLED_SHIFT: u32 = 20;
    pub const CAPABLE_SHIFT: u32 = 17;
    pub const BITS_64: u32 = 1 << 23;
    pub const MASKABLE: u32 = 1 << 24;
    /// Enable, and how many vectors.
    pub const CONTROL_WRITABLE: u16 = 0x0071;
    /// From the next pointer's end on.
    pub const BODY: usize = 0x16;
}

/// Message control of the MSI-X capability (6.8.2), in the capability's first dword.
mod msix {
    pub const ENABLE: u32 = 1 << 31;
    pub const FUNCTION_MASK: u32 = 1 << 30;
    pub const CONTROL_WRITABLE: u16 = 0xc000;
    pub const ENTRY_BYTES: u64 = 16;
    /// Vector control of an entry.
    pub const MASKED: u32 = 1;
}

/// Most vectors of MSI.
pub const MAX_MSI: u8 = 32;
/// Most vectors of MSI-X.
pub const MAX_MSIX: u16 = 2048;

/// A function that cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptError {
    /// So many vectors cannot be.
    Vectors(u16),
    Space(CapabilitySpace),
    Bar(BarError),
}

/// MSI-X's table and pending bits, which lie in a memory BAR.
struct MsiX {
    capability: u8,
    /// Message address, data, and vector control.
    table: Vec<(u64, u32, u32)>,
    pending: Vec<u64>,
}

/// The interrupts of one function. Whatever is written to its configuration space or its MSI-X table goes through here, so that a message
/// that waited for a mask leaves when the mask goes.
pub struct Interrupts {
    pin: Line,
    /// The level that the function wants at its pin.
    level: bool,
    msi: Option<u8>,
    msix: Option<MsiX>,
    messages: Arc<dyn MessageSink>,
}

/// What [`Interrupts`] save besides the configuration space.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct InterruptsState {
    pub level: bool,
    pub table: Vec<(u64, u32, u32)>,
    pub pending: Vec<u64>,
}

impl Interrupts {
    /// The interrupts of a function whose pin is wired to `pin`.
    #[must_use]
    pub const fn new(pin: Line, messages: Arc<dyn MessageSink>) -> Self {
        Self { pin, level: false, msi: None, msix: None, messages }
    }

    /// Adds an MSI capability for `vectors` (1, 2, 4 ... [`MAX_MSI`]), with a mask for each.
    ///
    /// # Errors
    /// The number cannot be, or there is no room.
    pub fn add_msi(&mut self, config: &mut ConfigSpace, vectors: u8) -> Result<(), InterruptError> {
        if !vectors.is_power_of_two() || vectors > MAX_MSI {
            return Err(InterruptError::Vectors(vectors.into()));
        }
        let control = capability::BITS_64 | capability::MASKABLE | vectors.ilog2() << capability::CAPABLE_SHIFT;
        let mut body = [0; capability::BODY];
        let mut writable = [0; capability::BODY];
        body[..2].copy_from_slice(&((control >> 16) as u16).to_le_bytes());
        let masks = u32::MAX >> (32 - u32::from(vectors));
        let parts: [(u8, u32); 5] = [
            (capability::CONTROL + 2, capability::CONTROL_WRITABLE.into()),
            (capability::ADDRESS, !3),
            (capability::ADDRESS_HIGH, !0),
            (capability::DATA, 0xffff),
            (capability::MASKS, masks),
        ];
        for (at, bits) in parts {
            let bytes = if at == capability::CONTROL + 2 { 2 } else { 4 };
            for (slot, byte) in writable.iter_mut().skip(usize::from(at) - 2).zip(bits.to_le_bytes()).take(bytes) {
                *slot = byte;
            }
        }
        self.msi = Some(config.add_capability(MSI_ID, &body, &writable).map_err(InterruptError::Space)?);
        Ok(())
    }

    /// Adds an MSI-X capability for `vectors` (1 to [`MAX_MSIX`]), whose table and pending bits are in memory BAR `bar` at these
    /// offsets, multiples of 8.
    ///
    /// # Errors
    /// The number cannot be, or there is no room.
    pub fn add_msix(
        &mut self,
        config: &mut ConfigSpace,
        vectors: u16,
        bar: u8,
        table: u32,
        pending: u32,
    ) -> Result<(), InterruptError> {
        if !(1..=MAX_MSIX).contains(&vectors) {
            return Err(InterruptError::Vectors(vectors));
        }
        let [a, b] = (vectors - 1).to_le_bytes();
        let [c, d, e, f] = (table & !7 | u32::from(bar & 7)).to_le_bytes();
        let [g, h, i, j] = (pending & !7 | u32::from(bar & 7)).to_le_bytes();
        let [low, high] = msix::CONTROL_WRITABLE.to_le_bytes();
        let capability =
            config.add_capability(MSIX_ID, &[a, b, c, d, e, f, g, h, i, j], &[low, high]).map_err(InterruptError::Space)?;
        let words = usize::from(vectors).div_ceil(64);
        let empty = (0, 0, msix::MASKED);
        self.msix = Some(MsiX { capability, table: alloc::vec![empty; vectors.into()], pending: alloc::vec![0; words] });
        Ok(())
    }

    fn msix_enabled(&self, config: &ConfigSpace) -> bool {
        self.msix.as_ref().is_some_and(|msix| config.read(msix.capability) & msix::ENABLE != 0)
    }

    fn msi_enabled(&self, config: &ConfigSpace) -> bool {
        self.msi.is_some_and(|at| config.read(at) & capability::ENABLE != 0)
    }

    /// Whether the system has switched to messages. The pin is quiet then (6.8.1.3, 6.8.2.3).
    #[must_use]
    pub fn uses_messages(&self, config: &ConfigSpace) -> bool {
        self.msix_enabled(config) || self.msi_enabled(config)
    }

    /// Drives the function's pin, as far as the system lets it (6.2.2, "Interrupt Disable"); the status register shows the level all the
    /// same.
    pub fn set_level(&mut self, config: &mut ConfigSpace, level: bool) {
        if self.level != level {
            self.level = level;
            config.set_status(Status::INTERRUPT, level);
            self.update_pin(config);
        }
    }

    fn update_pin(&self, config: &ConfigSpace) {
        let quiet = config.command().contains(Command::INTX_DISABLE) || self.uses_messages(config);
        self.pin.set(self.level && !quiet);
    }

    /// Signals `vector` by message: at once, or when its mask goes. Nothing happens without MSI and MSI-X.
    pub fn signal(&mut self, config: &mut ConfigSpace, vector: u16) {
        if self.msix_enabled(config) {
            self.signal_msix(config, vector);
        } else if let Some(at) = self.msi.filter(|&at| config.read(at) & capability::ENABLE != 0) {
            // With fewer vectors than it has, the function uses those that there are.
            let enabled = (config.read(at) >> capability::ENABLED_SHIFT & 7).min(5);
            let vector = u32::from(vector) & ((1 << enabled) - 1);
            if config.read(at + capability::MASKS) >> vector & 1 != 0 {
                config.put(at + capability::PENDING, config.read(at + capability::PENDING) | 1 << vector);
            } else {
                self.send_msi(config, at, vector);
            }
        }
    }

    /// A message is a memory write: only a bus master sends it.
    fn send(&self, config: &ConfigSpace, address: u64, data: u32) {
        if config.command().contains(Command::BUS_MASTER) {
            self.messages.write(address, data);
        }
    }

    fn send_msi(&self, config: &ConfigSpace, at: u8, vector: u32) {
        let address =
            u64::from(config.read(at + capability::ADDRESS_HIGH)) << 32 | u64::from(config.read(at + capability::ADDRESS));
        let enabled = (config.read(at) >> capability::ENABLED_SHIFT & 7).min(5);
        // 6.8.1.4: the low bits of the data say which vector.
        let low = (1u32 << enabled) - 1;
        self.send(config, address, config.read(at + capability::DATA) & 0xffff & !low | vector & low);
    }

    fn signal_msix(&mut self, config: &ConfigSpace, vector: u16) {
        let Some(msix) = &mut self.msix else { return };
        let Some(&(address, data, control)) = msix.table.get(usize::from(vector)) else { return };
        if control & msix::MASKED != 0 || config.read(msix.capability) & msix::FUNCTION_MASK != 0 {
            if let Some(word) = msix.pending.get_mut(usize::from(vector / 64)) {
                *word |= 1 << (vector % 64);
            }
        } else {
            self.send(config, address, data);
        }
    }

    /// Something was written to the configuration space: masks may have gone, and the pin may be quiet or not any more.
    pub fn config_written(&mut self, config: &mut ConfigSpace) {
        self.update_pin(config);
        if let Some(at) = self.msi.filter(|&at| config.read(at) & capability::ENABLE != 0) {
            let due = config.read(at + capability::PENDING) & !config.read(at + capability::MASKS);
            if due != 0 {
                config.put(at + capability::PENDING, config.read(at + capability::PENDING) & !due);
                for vector in (0..u32::from(MAX_MSI)).filter(|vector| due >> vector & 1 != 0) {
                    self.send_msi(config, at, vector);
                }
            }
        }
        self.send_pending_msix(config);
    }

    /// Sends what waits in MSI-X's pending bits and is not masked any more.
    fn send_pending_msix(&mut self, config: &ConfigSpace) {
        let Some(msix) = &mut self.msix else { return };
        let control = config.read(msix.capability);
        if control & (msix::ENABLE | msix::FUNCTION_MASK) != msix::ENABLE {
            return;
        }
        let mut due = Vec::new();
        for (index, word) in msix.pending.iter_mut().enumerate() {
            let mut bits = *word;
            while bits != 0 {
                let bit = bits.trailing_zeros();
                bits &= bits - 1;
                if let Some(&(address, data, control)) = msix.table.get(index * 64 + bit as usize)
                    && control & msix::MASKED == 0
                {
                    *word &= !(1 << bit);
                    due.push((address, data));
                }
            }
        }
        for (address, data) in due {
            self.send(config, address, data);
        }
    }

    /// A read of the MSI-X table, `offset` from its start: 32-bit and 64-bit accesses (6.8.2). Others read all ones.
    #[must_use]
    pub fn table_read(&self, offset: u64, width: Width) -> u64 {
        let Some(msix) = &self.msix else { return width.mask() };
        let dword = |offset: u64| -> u32 {
            let Some(&(address, data, control)) = msix.table.get((offset / msix::ENTRY_BYTES) as usize) else { return 0 };
            match offset % msix::ENTRY_BYTES / 4 {
                0 => address as u32,
                1 => (address >> 32) as u32,
                2 => data,
                _ => control,
            }
        };
        match width {
            Width::Dword if offset.is_multiple_of(4) => dword(offset).into(),
            Width::Qword if offset.is_multiple_of(8) => u64::from(dword(offset + 4)) << 32 | u64::from(dword(offset)),
            _ => width.mask(),
        }
    }

    /// A write to the MSI-X table. Accesses that [`Interrupts::table_read`] does not take are dropped.
    pub fn table_write(&mut self, config: &ConfigSpace, offset: u64, width: Width, value: u64) {
        let Some(msix) = &mut self.msix else { return };
        let mut write = |offset: u64, value: u32| {
            let Some(entry) = msix.table.get_mut((offset / msix::ENTRY_BYTES) as usize) else { return };
            match offset % msix::ENTRY_BYTES / 4 {
                0 => entry.0 = entry.0 & !0xffff_ffff | u64::from(value & !3),
                1 => entry.0 = entry.0 & 0xffff_ffff | u64::from(value) << 32,
                2 => entry.1 = value,
                _ => entry.2 = value & msix::MASKED,
            }
        };
        match width {
            Width::Dword if offset.is_multiple_of(4) => write(offset, value as u32),
            Width::Qword if offset.is_multiple_of(8) => {
                write(offset, value as u32);
                write(offset + 4, (value >> 32) as u32);
            }
            _ => return,
        }
        self.send_pending_msix(config);
    }

    /// A read of MSI-X's pending bits, `offset` from their start. Software does not write there.
    #[must_use]
    pub fn pending_read(&self, offset: u64, width: Width) -> u64 {
        let Some(msix) = &self.msix else { return width.mask() };
        let word = msix.pending.get((offset / 8) as usize).copied().unwrap_or(0);
        match width {
            Width::Dword if offset.is_multiple_of(4) => word >> (8 * (offset & 4)) & width.mask(),
            Width::Qword if offset.is_multiple_of(8) => word,
            _ => width.mask(),
        }
    }

    #[must_use]
    pub fn save(&self) -> InterruptsState {
        let Self { pin: _, level, msi: _, msix, messages: _ } = self;
        let (table, pending) = msix.as_ref().map(|msix| (msix.table.clone(), msix.pending.clone())).unwrap_or_default();
        InterruptsState { level: *level, table, pending }
    }

    /// The configuration space has been restored before.
    pub fn restore(&mut self, config: &mut ConfigSpace, state: &InterruptsState) {
        let InterruptsState { level, table, pending } = state;
        if let Some(msix) = &mut self.msix {
            for (entry, &(address, data, control)) in msix.table.iter_mut().zip(table) {
                *entry = (address & !3, data, control & msix::MASKED);
            }
            for (word, saved) in msix.pending.iter_mut().zip(pending) {
                *word = *saved;
            }
        }
        self.level = *level;
        config.set_status(Status::INTERRUPT, *level);
        self.update_pin(config);
    }
}
