use crate::{Time, Width};
use x86defs::Rate;

impl Default for Pci {
    fn default() -> Self {
        let mut lpc = [0; 256];
        for (i, v) in [(0x60, 10), (0x61, 10), (0x62, 11), (0x63, 11), (0x68, 10), (0x69, 10), (0x6a, 11), (0x6b, 11)] {
            lpc[i] = v;
        }
        Self { address: 0, lpc }
    }
}
pub struct Pci {
    address: u32,
    lpc: [u8; 256],
}

impl Pci {
    fn byte(&self, offset: u32) -> u8 {
        if self.address & 0x8000_0000 == 0 {
            return 0xff;
        }
        let (bdf, register) = (self.address >> 8 & 0xffff, (self.address & 0xfc) + offset);
        let header: [u32; 4] = match bdf {
            0 => [0x29c0_8086, 0, 0x0600_0002, 0],
            0xf8 => [0x2918_8086, 0x7, 0x0601_0002, 0x0080_0000],
            _ => return 0xff,
        };
        if register < 16 {
            (header[register as usize / 4] >> (8 * (register & 3))) as u8
        } else if bdf == 0xf8 {
            match register {
                0x40 => 0x01,
                0x41 => 0x06,
                0x44 => 0x80,
                r => self.lpc[r as usize & 255],
            }
        } else {
            0
        }
    }
    pub fn read(&self, port: u16, width: Width) -> u32 {
        if port < 0xcfc {
            return if width == Width::Dword { self.address } else { width.mask() as u32 };
        }
        (0..width.bytes() as u32).fold(0, |v, i| v | u32::from(self.byte(u32::from(port & 3) + i)) << (8 * i))
    }
    pub fn write(&mut self, port: u16, width: Width, value: u32) {
        if port < 0xcfc {
            if width == Width::Dword {
                self.address = value & 0x80ff_fffc;
            }
        } else if self.address >> 8 & 0x80_ffff == 0x80_00f8 {
            let register = (self.address & 0xfc) as usize + usize::from(port & 3);
            for i in 0..width.bytes() {
                if (0x60..0x6c).contains(&(register + i)) {
                    self.lpc[register + i] = (value >> (8 * i)) as u8;
                }
            }
        }
    }
}

#[derive(Default)]
pub struct Pm {
    status: u16,
    enable: u16,
    control: u16,
}

impl Pm {
    pub fn read(&self, now: Time, offset: u16, width: Width) -> u32 {
        let ticks = Rate::new(1_000_000_000, 3_579_545).apply(now.0) as u32;
        let value = match offset {
            0 => u32::from(self.status) | u32::from(self.enable) << 16,
            2 => self.enable.into(),
            4 => u32::from(self.control | 1),
            8 => ticks,
            _ => 0,
        };
        value & width.mask() as u32
    }
    pub fn write(&mut self, offset: u16, value: u32) -> bool {
        match offset {
            0 => self.status &= !(value as u16),
            2 => self.enable = value as u16,
            4 => {
                self.control = value as u16 & 0x1c03;
                return value & 1 << 13 != 0 && value >> 10 & 7 == 7;
            }
            _ => {}
        }
        false
    }
}
