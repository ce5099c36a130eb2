//! A function's configuration space: values, what of them can be written, BARs and capabilities.

use super::spec::{
    self, BAR0, CAPABILITIES, COMMAND_STATUS, Command, FIRST_CAPABILITY, HEADER, INTERRUPT, MULTIFUNCTION, REVISION_CLASS,
    SUBSYSTEM, Status, VENDOR_DEVICE,
};
use alloc::{boxed::Box, vec::Vec};
use serde::{Deserialize, Serialize};

const DWORDS: usize = 64;

/// What a base address register maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarKind {
    Io,
    Memory32 {
        prefetchable: bool,
    },
    /// Takes the next register too.
    Memory64 {
        prefetchable: bool,
    },
}

/// A base address register that cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarError {
    /// The size is no power of two, or below 4 (I/O) or 16 bytes (memory), or does not fit the kind.
    Size(u64),
    /// There is no such register, or it is taken.
    Index(u8),
}

/// No room for a capability of so many bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CapabilitySpace(pub usize);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Bar {
    kind: BarKind,
    size: u64,
}

/// Identity of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    pub vendor: u16,
    pub device: u16,
    pub revision: u8,
    /// Class, subclass and programming interface, in 24 bits.
    pub class: u32,
    pub subsystem_vendor: u16,
    pub subsystem: u16,
}

/// What a write to configuration space did besides storing bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ConfigEffect {
    #[default]
    None,
    /// Command register or a BAR: what the function decodes, masters or signals may have changed.
    Decode,
    /// Where PIRQs lead ([`super::LpcBridge::pirq_route`]).
    PirqRoutes,
    /// Where the ACPI block is ([`super::LpcBridge::pm_base`]).
    PmBase,
    /// Where configuration space is in memory ([`super::HostBridge::ecam`]).
    Ecam,
}

/// 256 bytes of configuration space, by dwords.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    values: Box<[u32; DWORDS]>,
    /// Bits that software writes.
    writable: Box<[u32; DWORDS]>,
    /// Bits that software clears by writing ones.
    clearable: Box<[u32; DWORDS]>,
    bars: [Option<Bar>; spec::bar::COUNT as usize],
    next_capability: usize,
    /// Where the last capability's next pointer is.
    last_capability: Option<u8>,
}

/// What a [`ConfigSpace`] saves: its values.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConfigSpaceState {
    pub values: Vec<u32>,
}

impl ConfigSpace {
    /// A type-0 header with `identity`; command, cache line size, latency and interrupt line can be written.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let &Identity { vendor, device, revision, class, subsystem_vendor, subsystem } = identity;
        let mut space = Self {
            values: Box::new([0; DWORDS]),
            writable: Box::new([0; DWORDS]),
            clearable: Box::new([0; DWORDS]),
            bars: [None; spec::bar::COUNT as usize],
            next_capability: FIRST_CAPABILITY.into(),
            last_capability: None,
        };
        space.define(VENDOR_DEVICE, u32::from(device) << 16 | u32::from(vendor), 0);
        let command = Command::PARITY_ERROR | Command::SERR | Command::BUS_MASTER | Command::INTX_DISABLE;
        space.define(COMMAND_STATUS, 0, command.bits().into());
        space.define_clearable(COMMAND_STATUS, u32::from(Status::CLEARABLE.bits()) << 16);
        space.define(REVISION_CLASS, class << 8 | u32::from(revision), 0);
        space.define(HEADER, 0, 0xffff);
        space.define(SUBSYSTEM, u32::from(subsystem) << 16 | u32::from(subsystem_vendor), 0);
        space.define(INTERRUPT, 0, 0xff);
        space
    }

    fn slot(offset: u8) -> usize {
        usize::from(offset >> 2)
    }

    /// Sets the dword at `offset`, and which of its bits can be written.
    pub fn define(&mut self, offset: u8, value: u32, writable: u32) {
        self.values[Self::slot(offset)] = value;
        self.writable[Self::slot(offset)] = writable;
    }

    /// Sets which bits of the dword at `offset` are cleared by writing ones.
    pub fn define_clearable(&mut self, offset: u8, clearable: u32) {
        self.clearable[Self::slot(offset)] = clearable;
    }

    /// Other functions follow at the same device number.
    pub fn set_multifunction(&mut self) {
        self.values[Self::slot(HEADER)] |= MULTIFUNCTION;
    }

    /// The function has interrupt pin `pin`: 1 for INTA# to 4 for INTD#.
    pub fn set_interrupt_pin(&mut self, pin: u8) {
        let value = &mut self.values[Self::slot(INTERRUPT)];
        *value = *value & !0xff00 | u32::from(pin & 7) << 8;
    }

    /// Sets read-only bits of the status register.
    pub fn set_status(&mut self, status: Status, on: bool) {
        let bits = u32::from(status.bits()) << 16;
        let value = &mut self.values[Self::slot(COMMAND_STATUS)];
        *value = if on { *value | bits } else { *value & !bits };
    }

    /// Adds base address register `index` for `size` bytes. The guest sizes and places it.
    ///
    /// # Errors
    /// A size or an index that cannot be.
    pub fn add_bar(&mut self, index: u8, kind: BarKind, size: u64) -> Result<(), BarError> {
        let (smallest, largest, kind_bits, enable) = match kind {
            BarKind::Io => (4, 0x100, spec::bar::IO, Command::IO),
            BarKind::Memory32 { prefetchable } => (16, 1 << 31, Self::memory_bits(prefetchable), Command::MEMORY),
            BarKind::Memory64 { prefetchable } => {
                (16, 1 << 62, Self::memory_bits(prefetchable) | spec::bar::MEMORY_64, Command::MEMORY)
            }
        };
        if !size.is_power_of_two() || !(smallest..=largest).contains(&size) {
            return Err(BarError::Size(size));
        }
        let is_64 = matches!(kind, BarKind::Memory64 { .. });
        let last = index.saturating_add(u8::from(is_64));
        if last >= spec::bar::COUNT || (index..=last).any(|i| self.bar_is_taken(i)) {
            return Err(BarError::Index(index));
        }
        self.bars[usize::from(index)] = Some(Bar { kind, size });
        let address = !(size - 1);
        self.define(BAR0 + 4 * index, kind_bits, address as u32);
        if is_64 {
            self.define(BAR0 + 4 * last, 0, (address >> 32) as u32);
        }
        self.writable[Self::slot(COMMAND_STATUS)] |= u32::from(enable.bits());
        Ok(())
    }

    const fn memory_bits(prefetchable: bool) -> u32 {
        if prefetchable { spec::bar::PREFETCHABLE } else { 0 }
    }

    fn bar_is_taken(&self, index: u8) -> bool {
        let before = index.checked_sub(1).and_then(|i| self.bars[usize::from(i)]);
        self.bars[usize::from(index)].is_some() || before.is_some_and(|bar| matches!(bar.kind, BarKind::Memory64 { .. }))
    }

    /// Where base address register `index` is mapped: (address, size), if it exists and the command register lets it decode. An
    /// address of zero counts as not mapped.
    #[must_use]
    pub fn bar(&self, index: u8) -> Option<(u64, u64)> {
        let bar = (*self.bars.get(usize::from(index))?)?;
        let low = self.read(BAR0 + 4 * index);
        let (enable, address) = match bar.kind {
            BarKind::Io => (Command::IO, u64::from(low & spec::bar::IO_ADDRESS)),
            BarKind::Memory32 { .. } => (Command::MEMORY, u64::from(low & spec::bar::MEMORY_ADDRESS)),
            BarKind::Memory64 { .. } => {
                let high = u64::from(self.read(BAR0 + 4 * (index + 1)));
                (Command::MEMORY, high << 32 | u64::from(low & spec::bar::MEMORY_ADDRESS))
            }
        };
        (self.command().contains(enable) && address != 0).then_some((address, bar.size))
    }

    /// What base address register `index` maps, if it exists.
    #[must_use]
    pub fn bar_kind(&self, index: u8) -> Option<BarKind> {
        self.bars.get(usize::from(index))?.map(|bar| bar.kind)
    }

    #[must_use]
    pub fn command(&self) -> Command {
        Command::from_bits_retain(self.read(COMMAND_STATUS) as u16)
    }

    /// Appends a capability: `id`, and the bytes behind the next pointer with their write masks. Returns its offset.
    ///
    /// # Errors
    /// There is no room left.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u8, CapabilitySpace> {
        let offset = self.next_capability;
        let end = offset + 2 + body.len();
        if end > 4 * DWORDS {
            return Err(CapabilitySpace(body.len()));
        }
        let at = offset as u8;
        self.put_byte(offset, id, 0);
        for (i, &byte) in body.iter().enumerate() {
            self.put_byte(offset + 2 + i, byte, writable.get(i).copied().unwrap_or(0));
        }
        self.link_capability(at);
        self.next_capability = end.next_multiple_of(4);
        Ok(at)
    }

    /// Makes what stands at `offset` the next capability of the list.
    pub fn link_capability(&mut self, offset: u8) {
        let pointer = self.last_capability.map_or(CAPABILITIES, |last| last + 1);
        self.put_byte(pointer.into(), offset, 0);
        self.last_capability = Some(offset);
        self.set_status(Status::CAPABILITIES, true);
    }

    fn put_byte(&mut self, offset: usize, value: u8, writable: u8) {
        let (slot, shift) = ((offset / 4) % DWORDS, 8 * (offset % 4));
        self.values[slot] = self.values[slot] & !(0xff << shift) | u32::from(value) << shift;
        self.writable[slot] = self.writable[slot] & !(0xff << shift) | u32::from(writable) << shift;
    }

    /// The dword at `offset`.
    #[inline]
    #[must_use]
    pub fn read(&self, offset: u8) -> u32 {
        self.values[Self::slot(offset)]
    }

    /// Sets the dword at `offset`, whatever software can write of it.
    pub fn put(&mut self, offset: u8, value: u32) {
        self.values[Self::slot(offset)] = value;
    }

    /// The byte at `offset`.
    #[must_use]
    pub fn read_byte(&self, offset: u8) -> u8 {
        (self.read(offset) >> (8 * (offset & 3))) as u8
    }

    /// Writes the bits in `mask` of the dword at `offset`.
    pub fn write(&mut self, offset: u8, value: u32, mask: u32) -> ConfigEffect {
        let slot = Self::slot(offset);
        let old = self.values[slot];
        let writable = self.writable[slot] & mask;
        let cleared = value & mask & self.clearable[slot];
        let new = (old & !writable | value & writable) & !cleared;
        self.values[slot] = new;
        let decodes = matches!(offset & !3, COMMAND_STATUS | BAR0..0x28);
        if decodes && new != old { ConfigEffect::Decode } else { ConfigEffect::None }
    }

    #[must_use]
    pub fn save(&self) -> ConfigSpaceState {
        let Self { values, writable: _, clearable: _, bars: _, next_capability: _, last_capability: _ } = self;
        ConfigSpaceState { values: values.to_vec() }
    }

    /// Takes over what software can change; the rest is what this function is.
    pub fn restore(&mut self, state: &ConfigSpaceState) {
        let ConfigSpaceState { values } = state;
        for (slot, saved) in values.iter().enumerate().take(DWORDS) {
            let changeable = self.writable[slot] | self.clearable[slot];
            self.values[slot] = self.values[slot] & !changeable | saved & changeable;
        }
    }
}
