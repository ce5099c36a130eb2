use crate::{Line, PortDevice, Time, Width};
use alloc::collections::VecDeque;

pub struct Uart {
    irq: Line,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: u16,
    rx: VecDeque<u8>,
    tx: VecDeque<u8>,
    thre_pending: bool,
    ready: bool,
}

impl Uart {
    pub fn new(irq: Line) -> Self {
        Self {
            irq,
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            scr: 0,
            divisor: 12,
            rx: VecDeque::new(),
            tx: VecDeque::new(),
            thre_pending: false,
            ready: false,
        }
    }
    fn iir(&self) -> u8 {
        let fifo = if self.fcr & 1 != 0 { 0xc0 } else { 0 };
        fifo | if self.ier & 1 != 0 && !self.rx.is_empty() {
            4
        } else if self.ier & 2 != 0 && self.thre_pending {
            2
        } else {
            1
        }
    }
    fn update(&self) {
        self.irq.set(self.iir() & 1 == 0 && self.mcr & 8 != 0);
    }
    pub fn peek_output(&self) -> Option<u8> {
        self.tx.front().copied()
    }
    pub fn take_output(&mut self) -> Option<u8> {
        let byte = self.tx.pop_front();
        if self.tx.is_empty() && byte.is_some() {
            self.thre_pending = true;
            self.update();
        }
        byte
    }
    pub fn receive(&mut self, byte: u8) -> bool {
        if self.rx.len() >= 16 {
            return false;
        }
        self.rx.push_back(byte);
        self.update();
        true
    }
    pub fn wants_input(&self) -> bool {
        self.ready && self.rx.len() < 16
    }
}

impl PortDevice for Uart {
    fn port_read(&mut self, _: Time, offset: u16, width: Width) -> u32 {
        if width != Width::Byte {
            return width.mask() as u32;
        }
        let dlab = self.lcr & 0x80 != 0;
        let value = match offset {
            0 if dlab => self.divisor as u8,
            1 if dlab => (self.divisor >> 8) as u8,
            0 => {
                let b = self.rx.pop_front().unwrap_or(0);
                self.update();
                b
            }
            1 => self.ier,
            2 => {
                let iir = self.iir();
                if iir & 0xf == 2 {
                    self.thre_pending = false;
                    self.update();
                }
                iir
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => u8::from(!self.rx.is_empty()) | if self.tx.is_empty() { 0x60 } else { 0 },
            6 if self.mcr & 0x10 != 0 => {
                (self.mcr & 2) << 3 | (self.mcr & 1) << 5 | (self.mcr & 4) << 4 | (self.mcr & 8) << 4
            }
            6 => 0xb0,
            _ => self.scr,
        };
        value.into()
    }
    fn port_write(&mut self, _: Time, offset: u16, _: Width, value: u32) {
        let value = value as u8;
        let dlab = self.lcr & 0x80 != 0;
        match offset {
            0 if dlab => self.divisor = self.divisor & 0xff00 | u16::from(value),
            1 if dlab => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
            0 => {
                self.thre_pending = false;
                if self.mcr & 0x10 != 0 {
                    self.rx.push_back(value);
                    self.thre_pending = true;
                } else {
                    self.tx.push_back(value);
                }
            }
            1 => {
                if value & 2 != 0 && self.ier & 2 == 0 && self.tx.is_empty() {
                    self.thre_pending = true;
                }
                self.ier = value & 0xf;
                self.ready |= value & 1 != 0;
            }
            2 => {
                self.fcr = value;
                if value & 2 != 0 {
                    self.rx.clear();
                }
            }
            3 => self.lcr = value,
            4 => {
                self.mcr = value & 0x1f;
                self.ready |= value & 2 != 0;
            }
            7 => self.scr = value,
            _ => {}
        }
        self.update();
    }
}
