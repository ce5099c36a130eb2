//! One 8259A.

use super::spec::{CASCADE, ICW2_BASE, Icw1, Icw4, Ocw3, POLL_PENDING, SPURIOUS_LEVEL, ocw2};
use serde::{Deserialize, Serialize};

/// Which byte the chip expects next at A0 = 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum InitStep {
    /// Initialised: OCW1.
    Ready,
    Icw2,
    Icw3,
    Icw4,
}

pub(super) struct Chip {
    /// Levels of the inputs.
    lines: u8,
    /// Edge-sense latches: the input has risen and neither was acknowledged nor fell since.
    latch: u8,
    /// Inputs that are level-triggered.
    pub(super) elcr: u8,
    isr: u8,
    pub(super) imr: u8,
    /// The level with the lowest priority; the next one round has the highest.
    lowest: u8,
    /// The vector of level 0.
    base: u8,
    init: InitStep,
    icw1: Icw1,
    icw3: u8,
    icw4: Icw4,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
}

/// What an [`super::Pic`]'s chip saves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChipState {
    lines: u8,
    latch: u8,
    elcr: u8,
    isr: u8,
    imr: u8,
    lowest: u8,
    base: u8,
    init: InitStep,
    icw1: u8,
    icw3: u8,
    icw4: u8,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
}

impl Chip {
    pub(super) fn new(base: u8, icw3: u8) -> Self {
        Self {
            lines: 0,
            latch: 0,
            elcr: 0,
            isr: 0,
            imr: 0xff,
            lowest: 7,
            base,
            init: InitStep::Ready,
            icw1: Icw1::IC4,
            icw3,
            icw4: Icw4::empty(),
            rotate_on_auto_eoi: false,
            special_mask: false,
            read_isr: false,
            poll: false,
        }
    }

    /// Edge inputs must stay high until they are acknowledged, else the request is gone (8259A, "Edge and level triggered
    /// modes").
    pub(super) fn irr(&self) -> u8 {
        self.lines & (self.latch | self.elcr)
    }

    /// Drives the inputs in `bit`. Returns whether that changed anything.
    pub(super) fn set_input(&mut self, bit: u8, high: bool) -> bool {
        if high == (self.lines & bit != 0) {
            return false;
        }
        if high {
            self.lines |= bit;
            self.latch |= bit;
        } else {
            self.lines &= !bit;
            self.latch &= !bit;
        }
        true
    }

    /// How far the most important of `levels` is from the highest priority: 0 to 7, 8 if there is none.
    fn rank(&self, levels: u8) -> u32 {
        levels.rotate_right(u32::from(self.lowest) + 1).trailing_zeros()
    }

    fn level_of_rank(&self, rank: u32) -> u8 {
        self.lowest.wrapping_add(1).wrapping_add(rank as u8) & 7
    }

    /// The level that the chip asks for service for, if there is one: INT is high then.
    pub(super) fn request(&self) -> Option<u8> {
        let requests = self.irr() & !self.imr;
        if requests == 0 || self.init != InitStep::Ready {
            return None;
        }
        // In special mask mode a masked level in service holds up nobody.
        let in_service = if self.special_mask { self.isr & !self.imr } else { self.isr };
        let rank = self.rank(requests);
        let level = self.level_of_rank(rank);
        let limit = self.rank(in_service);
        // In special fully nested mode a slave in service may ask again: the slave knows its priorities.
        let nested = rank == limit && self.icw4.contains(Icw4::SFNM) && self.is_cascade(level);
        (rank < limit || nested).then_some(level)
    }

    pub(super) fn is_cascade(&self, level: u8) -> bool {
        !self.icw1.contains(Icw1::SNGL) && self.icw3 & CASCADE & (1 << (level & 7)) != 0
    }

    /// The acknowledge cycle: the level that is now in service; none if the request is gone.
    pub(super) fn acknowledge(&mut self) -> Option<u8> {
        let level = self.request()?;
        let bit = 1 << level;
        self.latch &= !bit;
        if !self.icw4.contains(Icw4::AEOI) {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = level;
        }
        Some(level)
    }

    pub(super) fn vector(&self, level: Option<u8>) -> u8 {
        self.base | level.unwrap_or(SPURIOUS_LEVEL)
    }

    /// A read at A0 = `a0`. Says also whether it was an acknowledge.
    pub(super) fn read(&mut self, a0: bool) -> (u8, bool) {
        if self.poll {
            self.poll = false;
            return match self.acknowledge() {
                Some(level) => (POLL_PENDING | level, true),
                None => (SPURIOUS_LEVEL, true),
            };
        }
        let value = if a0 {
            self.imr
        } else if self.read_isr {
            self.isr
        } else {
            self.irr()
        };
        (value, false)
    }

    #[inline(always)]
    pub(super) fn write(&mut self, a0: bool, value: u8) {
        if a0 && self.init == InitStep::Ready {
            self.imr = value;
        } else {
            self.write_rare(a0, value);
        }
    }

    #[inline(never)]
    fn write_rare(&mut self, a0: bool, value: u8) {
        if a0 {
            self.write_data(value);
        } else if value & Icw1::SELECT.bits() != 0 {
            self.write_icw1(Icw1::from_bits_truncate(value));
        } else if value & Ocw3::SELECT.bits() != 0 {
            self.write_ocw3(Ocw3::from_bits_truncate(value));
        } else {
            self.write_ocw2(value);
        }
    }

    /// 8259A, "Initialization command words": what ICW1 resets. Whether inputs are level-triggered, the ELCR says, not ICW1.
    fn write_icw1(&mut self, icw1: Icw1) {
        self.icw1 = icw1;
        self.latch = 0;
        self.isr = 0;
        self.imr = 0;
        self.lowest = 7;
        self.rotate_on_auto_eoi = false;
        self.special_mask = false;
        self.read_isr = false;
        self.poll = false;
        if !icw1.contains(Icw1::IC4) {
            self.icw4 = Icw4::empty();
        }
        self.init = InitStep::Icw2;
    }

    fn write_data(&mut self, value: u8) {
        let after_icw3 = if self.icw1.contains(Icw1::IC4) { InitStep::Icw4 } else { InitStep::Ready };
        match self.init {
            InitStep::Ready => self.imr = value,
            InitStep::Icw2 => {
                self.base = value & ICW2_BASE;
                self.init = if self.icw1.contains(Icw1::SNGL) { after_icw3 } else { InitStep::Icw3 };
            }
            InitStep::Icw3 => {
                self.icw3 = value;
                self.init = after_icw3;
            }
            InitStep::Icw4 => {
                self.icw4 = Icw4::from_bits_truncate(value);
                self.init = InitStep::Ready;
            }
        }
    }

    fn write_ocw2(&mut self, value: u8) {
        let level = value & ocw2::LEVEL;
        match value & ocw2::COMMAND {
            ocw2::ROTATE_AUTO_CLEAR => self.rotate_on_auto_eoi = false,
            ocw2::ROTATE_AUTO_SET => self.rotate_on_auto_eoi = true,
            ocw2::EOI => {
                self.non_specific_eoi();
            }
            ocw2::ROTATE_ON_EOI => {
                if let Some(level) = self.non_specific_eoi() {
                    self.lowest = level;
                }
            }
            ocw2::SPECIFIC_EOI => self.isr &= !(1 << level),
            ocw2::ROTATE_ON_SPECIFIC_EOI => {
                self.isr &= !(1 << level);
                self.lowest = level;
            }
            ocw2::SET_PRIORITY => self.lowest = level,
            // 010: no operation.
            _ => {}
        }
    }

    /// Ends the most important level in service, and returns it. In special mask mode masked levels are left alone.
    fn non_specific_eoi(&mut self) -> Option<u8> {
        let rank = self.rank(if self.special_mask { self.isr & !self.imr } else { self.isr });
        if rank >= 8 {
            return None;
        }
        let level = self.level_of_rank(rank);
        self.isr &= !(1 << level);
        Some(level)
    }

    fn write_ocw3(&mut self, ocw3: Ocw3) {
        if ocw3.contains(Ocw3::ESMM) {
            self.special_mask = ocw3.contains(Ocw3::SMM);
        }
        if ocw3.contains(Ocw3::RR) {
            self.read_isr = ocw3.contains(Ocw3::RIS);
        }
        // A poll goes before a status read (8259A, "Poll command").
        self.poll = ocw3.contains(Ocw3::POLL);
    }

    pub(super) fn save(&self) -> ChipState {
        let &Self {
            lines,
            latch,
            elcr,
            isr,
            imr,
            lowest,
            base,
            init,
            icw1,
            icw3,
            icw4,
            rotate_on_auto_eoi,
            special_mask,
            read_isr,
            poll,
        } = self;
        let (icw1, icw4) = (icw1.bits(), icw4.bits());
        ChipState {
            lines,
            latch,
            elcr,
            isr,
            imr,
            lowest,
            base,
            init,
            icw1,
            icw3,
            icw4,
            rotate_on_auto_eoi,
            special_mask,
            read_isr,
            poll,
        }
    }

    pub(super) fn restore(&mut self, state: &ChipState, elcr_mask: u8) {
        let &ChipState {
            lines,
            latch,
            elcr,
            isr,
            imr,
            lowest,
            base,
            init,
            icw1,
            icw3,
            icw4,
            rotate_on_auto_eoi,
            special_mask,
            read_isr,
            poll,
        } = state;
        *self = Self {
            lines,
            latch,
            elcr: elcr & elcr_mask,
            isr,
            imr,
            lowest: lowest & 7,
            base: base & ICW2_BASE,
            init,
            icw1: Icw1::from_bits_truncate(icw1),
            icw3,
            icw4: Icw4::from_bits_truncate(icw4),
            rotate_on_auto_eoi,
            special_mask,
            read_isr,
            poll,
        };
    }
}
