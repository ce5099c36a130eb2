//! PCI bus 0: configuration mechanism #1 (ports 0xCF8 to 0xCFF) and the functions on the bus.
//!
//! PCI Local Bus Specification 3.0 (2004), 3.2.2.3 and chapter 6.
//!
//! The reset control register at port 0xCF9 lies among these ports, and is here for that reason. Configuration space is in memory, too
//! (PCI Express Base Specification 3.0, 7.2.2): [`PciBus::memory_read`].

mod chipset;
mod config;
mod device;
mod msi;
mod serial;
mod spec;
#[cfg(test)]
mod tests;

use crate::{PortDevice, misc::ResetControl, misc::ResetControlState, ports::read_bytes};
use alloc::{sync::Arc, vec::Vec};
pub use chipset::{HostBridge, LpcBridge};
pub use config::{BarError, BarKind, CapabilitySpace, ConfigEffect, ConfigSpace, ConfigSpaceState, Identity};
pub use device::{PciDevice, Windows};
pub use msi::{InterruptError, Interrupts, InterruptsState, MAX_MSI, MAX_MSIX};
use serde::{Deserialize, Serialize};
pub use serial::{PciSerial, PciSerialState};
use spec::mechanism;
pub use spec::{Command, Status};
use spin::Mutex;
use x86defs::{Time, Width};

/// Ports of the bus, from 0xCF8 on.
pub const PORTS: u16 = 8;
const ADDRESS_OFFSET: u16 = 0;
const RESET_OFFSET: u16 = 1;
const DATA_OFFSET: u16 = 4;

/// A function on the bus. `offset` is a multiple of 4.
pub trait PciFunction {
    /// What the function saves.
    type State;

    fn config_read(&self, offset: u8) -> u32;
    /// Writes the bits in `mask`, which covers whole bytes.
    fn config_write(&mut self, offset: u8, value: u32, mask: u32) -> ConfigEffect;
    #[must_use]
    fn save(&self) -> Self::State;
    fn restore(&mut self, state: &Self::State);
}

/// Device and function number on bus 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct DevFn(u8);

impl DevFn {
    /// Device 0 to 31, function 0 to 7.
    #[must_use]
    pub const fn new(device: u8, function: u8) -> Self {
        Self((device & 0x1f) << 3 | function & 7)
    }

    #[must_use]
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }

    #[must_use]
    pub const fn function(self) -> u8 {
        self.0 & 7
    }
}

/// Two functions for one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotTaken(pub DevFn);

/// The bus with its functions of type `F`: one type, or an enum of them, so that calls are static.
#[derive(Debug)]
pub struct PciBus<F> {
    /// The reset control register, at the second port.
    pub reset: ResetControl,
    address: u32,
    functions: Vec<(DevFn, F)>,
    /// By device and function number: index + 1 into `functions`, 0 if there is none.
    slots: Slots,
    effect: Option<(DevFn, ConfigEffect)>,
}

type Slots = alloc::boxed::Box<[u8; 256]>;

/// What a [`PciBus`] saves; `S` is what its functions save.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PciBusState<S> {
    pub reset: ResetControlState,
    pub address: u32,
    pub functions: Vec<(DevFn, S)>,
}

impl<F: PciFunction> Default for PciBus<F> {
    fn default() -> Self {
        Self::new()
    }
}

impl<F: PciFunction> PciBus<F> {
    /// A bus with nothing on it.
    #[must_use]
    pub fn new() -> Self {
        Self {
            reset: ResetControl::new(),
            address: 0,
            functions: Vec::new(),
            slots: alloc::boxed::Box::new([0; 256]),
            effect: None,
        }
    }

    /// Puts `function` at `place`.
    ///
    /// # Errors
    /// There is one already, or there are 255.
    pub fn add(&mut self, place: DevFn, function: F) -> Result<(), SlotTaken> {
        let slot = &mut self.slots[usize::from(place.0)];
        let index = u8::try_from(self.functions.len() + 1).map_err(|_| SlotTaken(place))?;
        if *slot != 0 {
            return Err(SlotTaken(place));
        }
        *slot = index;
        self.functions.push((place, function));
        Ok(())
    }

    /// The function at `place`.
    #[must_use]
    pub fn function(&self, place: DevFn) -> Option<&F> {
        let index = usize::from(self.slots[usize::from(place.0)]).checked_sub(1)?;
        self.functions.get(index).map(|(_, function)| function)
    }

    /// The function at `place`.
    pub fn function_mut(&mut self, place: DevFn) -> Option<&mut F> {
        let index = usize::from(self.slots[usize::from(place.0)]).checked_sub(1)?;
        self.functions.get_mut(index).map(|(_, function)| function)
    }

    /// What the last configuration write did besides storing bits, and to whom. To be asked for after each write to the bus.
    pub fn take_effect(&mut self) -> Option<(DevFn, ConfigEffect)> {
        self.effect.take()
    }

    /// The function and register that CONFIG_DATA leads to now. There is only bus 0.
    fn target(&self) -> Option<(DevFn, u8)> {
        let bus = self.address >> mechanism::BUS_SHIFT & 0xff;
        let enabled = self.address & mechanism::ENABLE != 0;
        let register = (self.address & mechanism::REGISTER) as u8;
        (enabled && bus == 0).then_some((DevFn((self.address >> mechanism::DEVFN_SHIFT) as u8), register))
    }

    fn read_data(&self) -> u32 {
        let Some((place, register)) = self.target() else { return u32::MAX };
        self.function(place).map_or(u32::MAX, |function| function.config_read(register))
    }

    /// A read of configuration space in memory, `offset` from its start: bus << 20 | device << 15 | function << 12 | register. What has
    /// no function reads all ones; registers from 0x100 on read zero, since these functions have no extended capabilities. What
    /// crosses a dword that is not the lower half of a quadword reads all ones.
    #[must_use]
    pub fn memory_read(&self, offset: u64, width: Width) -> u64 {
        let within = offset & 7;
        if within + width.bytes() as u64 > 8 || (offset & 3) + width.bytes().min(4) as u64 > 4 {
            return width.mask();
        }
        let Some((place, register)) = memory_target(offset) else { return width.mask() };
        let Some(function) = self.function(place) else { return width.mask() };
        let Some(register) = register else { return 0 };
        let low = u64::from(function.config_read(register & !3));
        let high = if width == Width::Qword { u64::from(function.config_read(register | 4)) } else { 0 };
        (high << 32 | low) >> (8 * (offset & 3)) & width.mask()
    }

    /// A write to configuration space in memory. Quadwords are two dwords, the lower one first. Returns what each of them did.
    pub fn memory_write(&mut self, offset: u64, width: Width, value: u64) -> [Option<(DevFn, ConfigEffect)>; 2] {
        if (offset & 3) + width.bytes().min(4) as u64 > 4 || width == Width::Qword && offset & 7 != 0 {
            return [None; 2];
        }
        let Some((place, Some(register))) = memory_target(offset) else { return [None; 2] };
        let shift = 8 * (offset as u32 & 3);
        self.write_register(place, register, (value as u32) << shift, (width.mask() as u32) << shift);
        let first = self.take_effect();
        if width == Width::Qword {
            self.write_register(place, register | 4, (value >> 32) as u32, u32::MAX);
        }
        [first, self.take_effect()]
    }

    fn write_data(&mut self, value: u32, mask: u32) {
        if let Some((place, register)) = self.target() {
            self.write_register(place, register, value, mask);
        }
    }

    fn write_register(&mut self, place: DevFn, register: u8, value: u32, mask: u32) {
        let Some(function) = self.function_mut(place) else { return };
        let effect = function.config_write(register, value, mask);
        if effect != ConfigEffect::None {
            self.effect = Some((place, effect));
        }
    }

    #[must_use]
    pub fn save(&self) -> PciBusState<F::State> {
        let Self { reset, address, functions, slots: _, effect: _ } = self;
        PciBusState {
            reset: reset.save(),
            address: *address,
            functions: functions.iter().map(|(place, function)| (*place, function.save())).collect(),
        }
    }

    /// Restores the functions that both the bus and `state` have.
    pub fn restore(&mut self, state: &PciBusState<F::State>) {
        let PciBusState { reset, address, functions } = state;
        self.reset.restore(reset);
        self.address = address & mechanism::WRITABLE;
        for (place, state) in functions {
            if let Some(function) = self.function_mut(*place) {
                function.restore(state);
            }
        }
        self.effect = None;
    }
}

impl<F: PciFunction> PortDevice for PciBus<F> {
    fn port_read(&mut self, _: Time, offset: u16, width: Width) -> u32 {
        match (offset, width) {
            (ADDRESS_OFFSET, Width::Dword) => self.address,
            (DATA_OFFSET.., _) => {
                let data = self.read_data().to_le_bytes();
                read_bytes(offset, width, PORTS, |offset| data[usize::from(offset & 3)])
            }
            (RESET_OFFSET, Width::Byte) => self.reset.read().into(),
            // Narrower accesses are not for CONFIG_ADDRESS (3.2.2.3.2), and nobody else is there.
            _ => width.mask() as u32,
        }
    }

    fn port_write(&mut self, _: Time, offset: u16, width: Width, value: u32) {
        match (offset, width) {
            (ADDRESS_OFFSET, Width::Dword) => self.address = value & mechanism::WRITABLE,
            (DATA_OFFSET.., _) => {
                // Byte lanes of the dword; what would lie beyond it falls off.
                let shift = 8 * u32::from(offset & 3);
                self.write_data(value << shift, (width.mask() as u32) << shift);
            }
            (RESET_OFFSET, Width::Byte) => self.reset.write(value as u8),
            _ => {}
        }
    }
}

/// The function and its register that an offset in configuration space's memory leads to. There is only bus 0; the register is none
/// beyond the first 256 bytes.
fn memory_target(offset: u64) -> Option<(DevFn, Option<u8>)> {
    let place = DevFn((offset >> 12) as u8);
    (offset >> 20 == 0).then_some((place, u8::try_from(offset & 0xffc).ok()))
}

/// The functions of a board: the chipset's, and devices with a lock of their own.
pub enum ChipsetFunction {
    HostBridge(HostBridge),
    LpcBridge(LpcBridge),
    /// The bus' device of this number ([`Windows`]).
    Device(usize, Arc<Mutex<dyn PciDevice>>),
}

/// Where the chipset's functions are.
pub const HOST_BRIDGE: DevFn = DevFn::new(0, 0);
pub const LPC_BRIDGE: DevFn = DevFn::new(31, 0);

impl ChipsetFunction {
    /// The LPC bridge, if it is that.
    #[must_use]
    pub fn lpc_bridge(&self) -> Option<&LpcBridge> {
        match self {
            Self::LpcBridge(bridge) => Some(bridge),
            Self::HostBridge(_) | Self::Device(..) => None,
        }
    }

    /// The host bridge, if it is that.
    #[must_use]
    pub fn host_bridge(&self) -> Option<&HostBridge> {
        match self {
            Self::HostBridge(bridge) => Some(bridge),
            Self::LpcBridge(_) | Self::Device(..) => None,
        }
    }

    /// The device, if it is one.
    #[must_use]
    pub fn device(&self) -> Option<(usize, &Arc<Mutex<dyn PciDevice>>)> {
        match self {
            Self::Device(n, device) => Some((*n, device)),
            Self::HostBridge(_) | Self::LpcBridge(_) => None,
        }
    }
}

impl PciFunction for ChipsetFunction {
    /// None for devices, which save themselves.
    type State = Option<ConfigSpaceState>;

    fn config_read(&self, offset: u8) -> u32 {
        match self {
            Self::HostBridge(bridge) => bridge.config_read(offset),
            Self::LpcBridge(bridge) => bridge.config_read(offset),
            Self::Device(_, device) => device.lock().config().read(offset),
        }
    }

    fn config_write(&mut self, offset: u8, value: u32, mask: u32) -> ConfigEffect {
        match self {
            Self::HostBridge(bridge) => bridge.config_write(offset, value, mask),
            Self::LpcBridge(bridge) => bridge.config_write(offset, value, mask),
            Self::Device(_, device) => {
                if device.lock().config_write(offset, value, mask) {
                    ConfigEffect::Decode
                } else {
                    ConfigEffect::None
                }
            }
        }
    }

    fn save(&self) -> Self::State {
        match self {
            Self::HostBridge(bridge) => Some(bridge.save()),
            Self::LpcBridge(bridge) => Some(bridge.save()),
            Self::Device(..) => None,
        }
    }

    fn restore(&mut self, state: &Self::State) {
        match (self, state) {
            (Self::HostBridge(bridge), Some(state)) => bridge.restore(state),
            (Self::LpcBridge(bridge), Some(state)) => bridge.restore(state),
            _ => {}
        }
    }
}
