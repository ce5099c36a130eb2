//! The pair of 8259A interrupt controllers of the ICH9, and its edge/level control registers.
//!
//! Intel 8259A data sheet, 231468-003 (1988); Intel ICH9 data sheet, 316972-004, 5.8 and 13.4. Where they differ, this is the
//! ICH9's: edge or level is the ELCR's choice (ICW1's LTIM does nothing), and vectors are those of 8086 mode.
//!
//! INT is not latched: it falls when the request goes away. An acknowledge that comes too late for that gets level 7, and no
//! level is in service then. An edge-triggered input must stay high until its interrupt is acknowledged, so a device holds
//! its line until it is served; a pulse leaves nothing behind here.

mod chip;
mod spec;
#[cfg(test)]
mod tests;

use crate::{
    PortDevice,
    ports::{read_wide, write_wide},
};
use chip::Chip;
pub use chip::{ChipState, InitStep};
use serde::{Deserialize, Serialize};
use spec::{CASCADE, CASCADE_LEVEL, ELCR_MASTER, ELCR_SLAVE};
use x86defs::{Time, Width};

/// Offsets of the [`PortDevice`]'s three pairs of ports. They are not adjacent on the bus, so whoever maps them adds these.
pub const MASTER_OFFSET: u16 = 0;
pub const SLAVE_OFFSET: u16 = 2;
pub const ELCR_OFFSET: u16 = 4;

/// Vectors as the PC's firmware leaves them.
const FIRMWARE_MASTER_BASE: u8 = 0x08;
const FIRMWARE_SLAVE_BASE: u8 = 0x70;

/// The master at ports 0x20 and 0x21, the slave at 0xA0 and 0xA1, the ELCRs at 0x4D0 and 0x4D1.
pub struct Pic {
    master: Chip,
    slave: Chip,
    /// The master's INT pin.
    output: bool,
}

/// What a [`Pic`] saves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PicState {
    pub master: ChipState,
    pub slave: ChipState,
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// The pair as firmware leaves it: initialised for vectors 0x08 and 0x70, everything masked.
    #[must_use]
    pub fn new() -> Self {
        Self {
            master: Chip::new(FIRMWARE_MASTER_BASE, CASCADE),
            slave: Chip::new(FIRMWARE_SLAVE_BASE, CASCADE_LEVEL),
            output: false,
        }
    }

    /// Drives the input of ISA interrupt `irq`, 0 to 15. There is no input 2 (the slave is there), and none above 15.
    #[inline]
    pub fn set_level(&mut self, irq: u8, high: bool) {
        let (chip, bit) = match irq {
            CASCADE_LEVEL => return,
            0..8 => (&mut self.master, 1u8 << irq),
            8..16 => (&mut self.slave, 1u8 << (irq - 8)),
            _ => return,
        };
        // Behind a mask the outputs cannot change.
        if chip.set_input(bit, high) && chip.imr & bit == 0 {
            self.update();
        }
    }

    /// The INT pin: there is an interrupt to be acknowledged.
    #[inline]
    #[must_use]
    pub fn output(&self) -> bool {
        self.output
    }

    /// Whether a request of ISA interrupt `irq` waits to be acknowledged; none if it is masked.
    #[must_use]
    pub fn waits(&self, irq: u8) -> Option<bool> {
        let (chip, bit) = match irq {
            0..8 => (&self.master, 1u8 << irq),
            8..16 if self.master.imr & CASCADE == 0 => (&self.slave, 1u8 << (irq - 8)),
            _ => return None,
        };
        (chip.imr & bit == 0).then(|| chip.irr() & bit != 0)
    }

    /// The processor's acknowledge (INTA) cycle: the interrupt vector. Without a request it is the spurious interrupt's.
    pub fn acknowledge(&mut self) -> u8 {
        let level = self.master.acknowledge();
        let vector = match level {
            Some(level) if self.master.is_cascade(level) => {
                let level = self.slave.acknowledge();
                let vector = self.slave.vector(level);
                self.slave_acknowledged();
                vector
            }
            _ => self.master.vector(level),
        };
        self.update();
        vector
    }

    /// The slave's INT falls with an acknowledge, and rises again if it has another request: an edge for the master.
    fn slave_acknowledged(&mut self) {
        self.master.set_input(CASCADE, false);
    }

    fn update(&mut self) {
        self.master.set_input(CASCADE, self.slave.request().is_some());
        self.output = self.master.request().is_some();
    }

    #[inline(always)]
    fn read(&mut self, offset: u16) -> u8 {
        let a0 = offset & 1 != 0;
        let (value, acknowledged) = match offset & !1 {
            MASTER_OFFSET => self.master.read(a0),
            SLAVE_OFFSET => {
                let (value, acknowledged) = self.slave.read(a0);
                if acknowledged {
                    self.slave_acknowledged();
                }
                (value, acknowledged)
            }
            ELCR_OFFSET if a0 => (self.slave.elcr, false),
            ELCR_OFFSET => (self.master.elcr, false),
            _ => (0xff, false),
        };
        if acknowledged {
            self.update();
        }
        value
    }

    fn write(&mut self, offset: u16, value: u8) {
        let a0 = offset & 1 != 0;
        match offset & !1 {
            MASTER_OFFSET => self.master.write(a0, value),
            SLAVE_OFFSET => self.slave.write(a0, value),
            ELCR_OFFSET if a0 => self.slave.elcr = value & ELCR_SLAVE,
            ELCR_OFFSET => self.master.elcr = value & ELCR_MASTER,
            _ => {}
        }
        self.update();
    }

    #[must_use]
    pub fn save(&self) -> PicState {
        let Self { master, slave, output: _ } = self;
        PicState { master: master.save(), slave: slave.save() }
    }

    pub fn restore(&mut self, state: &PicState) {
        let PicState { master, slave } = state;
        self.master.restore(master, ELCR_MASTER);
        self.slave.restore(slave, ELCR_SLAVE);
        self.output = self.master.request().is_some();
    }
}

impl PortDevice for Pic {
    fn port_read(&mut self, _: Time, offset: u16, width: Width) -> u32 {
        if width == Width::Byte {
            return self.read(offset).into();
        }
        read_wide(offset, width, (offset | 1).saturating_add(1), &mut |offset| self.read(offset))
    }

    fn port_write(&mut self, _: Time, offset: u16, width: Width, value: u32) {
        if width == Width::Byte {
            return self.write(offset, value as u8);
        }
        write_wide(offset, width, (offset | 1).saturating_add(1), value, &mut |offset, value| self.write(offset, value));
    }
}
