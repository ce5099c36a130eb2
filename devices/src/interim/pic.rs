//! The 8259A pair (Intel 8259A data sheet, 231468-003) with the ELCR of the ISA bridge (ICH9 data sheet 13.4).

/// One 8259A.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Chip {
    /// Inputs, edge latch, in service, mask, edge/level control.
    lines: u8,
    irr: u8,
    isr: u8,
    imr: u8,
    elcr: u8,
    base: u8,
    /// Highest priority input.
    top: u8,
    /// Next ICW expected: 0 none, 2, 3, 4.
    icw: u8,
    needs_icw4: bool,
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    fully_nested: bool,
    read_isr: bool,
    poll: bool,
    initialised: bool,
}

impl Chip {
    fn set_level(&mut self, line: u8, high: bool) {
        let bit = 1 << line;
        let was = self.lines & bit != 0;
        if high {
            self.lines |= bit;
            if self.elcr & bit != 0 || !was {
                self.irr |= bit;
            }
        } else {
            self.lines &= !bit;
            // Neither mode keeps a request whose line has gone: it would be spurious.
            self.irr &= !bit;
        }
    }

    /// Distance of the highest-priority bit from the top, 8 if none.
    fn priority(&self, bits: u8) -> u8 {
        if bits == 0 { 8 } else { bits.rotate_right(self.top.into()).trailing_zeros() as u8 }
    }

    /// The input that requests service now.
    fn request(&self, cascade: u8) -> Option<u8> {
        let requested = self.priority(self.irr & !self.imr);
        if requested == 8 || !self.initialised {
            return None;
        }
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.fully_nested {
            in_service &= !cascade;
        }
        (requested < self.priority(in_service)).then_some(requested.wrapping_add(self.top) & 7)
    }

    fn acknowledge(&mut self, line: u8) {
        let bit = 1u8 << line;
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.top = (line + 1) & 7;
            }
        } else {
            self.isr |= bit;
        }
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            *self = Self {
                lines: self.lines,
                elcr: self.elcr,
                irr: self.lines & self.elcr,
                icw: 2,
                needs_icw4: value & 1 != 0,
                single: value & 2 != 0,
                ..Self::default()
            };
        } else if value & 8 != 0 {
            // OCW3
            match value & 3 {
                2 => self.read_isr = false,
                3 => self.read_isr = true,
                _ => {}
            }
            if value & 4 != 0 {
                self.poll = true;
            }
            match value >> 5 & 3 {
                2 => self.special_mask = false,
                3 => self.special_mask = true,
                _ => {}
            }
        } else {
            self.eoi(value);
        }
    }

    fn eoi(&mut self, value: u8) {
        let line = value & 7;
        let highest = self.priority(if self.special_mask { self.isr & !self.imr } else { self.isr });
        let highest = (highest < 8).then_some(highest.wrapping_add(self.top) & 7);
        match value >> 5 {
            0 => self.rotate_on_auto_eoi = false,
            4 => self.rotate_on_auto_eoi = true,
            1 | 5 => {
                if let Some(served) = highest {
                    self.isr &= !(1 << served);
                    if value >> 5 == 5 {
                        self.top = (served + 1) & 7;
                    }
                }
            }
            3 | 7 => {
                self.isr &= !(1 << line);
                if value >> 5 == 7 {
                    self.top = (line + 1) & 7;
                }
            }
            6 => self.top = (line + 1) & 7,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.icw {
            2 => {
                self.base = value & 0xf8;
                self.icw = if !self.single {
                    3
                } else if self.needs_icw4 {
                    4
                } else {
                    0
                };
                self.initialised = self.icw == 0;
            }
            3 => {
                self.icw = if self.needs_icw4 { 4 } else { 0 };
                self.initialised = self.icw == 0;
            }
            4 => {
                self.auto_eoi = value & 2 != 0;
                self.fully_nested = value & 0x10 != 0;
                self.icw = 0;
                self.initialised = true;
            }
            _ => self.imr = value,
        }
    }

    fn read(&mut self, data: bool, cascade: u8) -> u8 {
        if self.poll {
            self.poll = false;
            return match self.request(cascade) {
                Some(line) => {
                    self.acknowledge(line);
                    0x80 | line
                }
                None => 0,
            };
        }
        match (data, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }
}

/// Master and slave, the slave on the master's input 2.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Pic {
    master: Chip,
    slave: Chip,
}

const CASCADE: u8 = 1 << 2;

impl Pic {
    /// ISA IRQ `irq` (0-15) changes level.
    pub fn set_level(&mut self, irq: u8, high: bool) {
        if irq < 8 {
            self.master.set_level(irq, high);
        } else {
            self.slave.set_level(irq & 7, high);
            self.cascade();
        }
    }

    fn cascade(&mut self) {
        let request = self.slave.request(0).is_some();
        // The slave's output is a level to the master; a second request behind the first makes a new edge.
        self.master.lines &= !CASCADE;
        self.master.irr &= !CASCADE;
        if request {
            self.master.lines |= CASCADE;
            self.master.irr |= CASCADE;
        }
    }

    /// The INT output.
    #[must_use]
    pub fn output(&self) -> bool {
        self.master.request(CASCADE).is_some()
    }

    /// The processor's acknowledge: the vector. Without a request, the spurious IRQ 7 (or 15).
    pub fn acknowledge(&mut self) -> u8 {
        let Some(line) = self.master.request(CASCADE) else { return self.master.base | 7 };
        self.master.acknowledge(line);
        if line != 2 {
            return self.master.base | line;
        }
        let vector = match self.slave.request(0) {
            Some(line) => {
                self.slave.acknowledge(line);
                self.slave.base | line
            }
            None => self.slave.base | 7,
        };
        self.cascade();
        vector
    }

    /// IN from port 20H, 21H, A0H, A1H, 4D0H or 4D1H.
    pub fn port_read(&mut self, port: u16) -> u8 {
        match port {
            0x20 | 0x21 => self.master.read(port & 1 != 0, CASCADE),
            0xa0 | 0xa1 => {
                let value = self.slave.read(port & 1 != 0, 0);
                self.cascade();
                value
            }
            0x4d0 => self.master.elcr,
            0x4d1 => self.slave.elcr,
            _ => 0xff,
        }
    }

    /// OUT to one of these ports.
    pub fn port_write(&mut self, port: u16, value: u8) {
        match port {
            0x20 => self.master.write_command(value),
            0x21 => self.master.write_data(value),
            0xa0 => self.slave.write_command(value),
            0xa1 => self.slave.write_data(value),
            // IRQ 0, 1, 2, 8 and 13 are always edge-triggered.
            0x4d0 => self.master.elcr = value & 0xf8,
            0x4d1 => self.slave.elcr = value & 0xde,
            _ => {}
        }
        self.cascade();
    }
}
