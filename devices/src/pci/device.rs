//! Functions with ports or memory of their own, and where those are now.

use super::config::{BarKind, ConfigSpace};
use alloc::vec::Vec;
use x86defs::{Time, Width};

/// A function that does something besides being configured. Its lock is its own: the bus finds it by [`Windows`].
pub trait PciDevice: Send {
    fn config(&self) -> &ConfigSpace;
    /// Writes the bits in `mask` of the dword at `offset`. True if what the function decodes may have changed.
    fn config_write(&mut self, offset: u8, value: u32, mask: u32) -> bool;
    /// A read at `offset` of base address register `bar`'s range; within it.
    fn bar_read(&mut self, now: Time, bar: u8, offset: u64, width: Width) -> u64;
    fn bar_write(&mut self, now: Time, bar: u8, offset: u64, width: Width, value: u64);
    /// When [`PciDevice::advance`] must be called next, if ever.
    fn deadline(&self) -> Option<Time>;
    fn advance(&mut self, now: Time);
}

/// A range that a function answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Window {
    is_io: bool,
    first: u64,
    last: u64,
    /// Which of the bus' devices.
    device: usize,
    bar: u8,
}

/// Which device answers which address, as the base address registers are now.
#[derive(Debug, Default)]
pub struct Windows(Vec<Window>);

impl Windows {
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// `device` decodes what `config` says from now on.
    pub fn update(&mut self, device: usize, config: &ConfigSpace) {
        self.0.retain(|window| window.device != device);
        for bar in 0..super::spec::bar::COUNT {
            let (Some(kind), Some((first, size))) = (config.bar_kind(bar), config.bar(bar)) else { continue };
            // A range that goes beyond the end of the addresses is nowhere.
            let Some(last) = first.checked_add(size - 1) else { continue };
            self.0.push(Window { is_io: kind == BarKind::Io, first, last, device, bar });
        }
    }

    fn find(&self, is_io: bool, address: u64, width: Width) -> Option<(usize, u8, u64)> {
        let end = address.checked_add(width.bytes() as u64 - 1)?;
        let hit = self.0.iter().find(|w| w.is_io == is_io && w.first <= address && end <= w.last)?;
        Some((hit.device, hit.bar, address - hit.first))
    }

    /// The device, base address register and offset in its range that an access to a port leads to.
    #[must_use]
    pub fn port(&self, port: u16, width: Width) -> Option<(usize, u8, u64)> {
        self.find(true, port.into(), width)
    }

    /// The same for memory.
    #[must_use]
    pub fn memory(&self, gpa: u64, width: Width) -> Option<(usize, u8, u64)> {
        self.find(false, gpa, width)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
