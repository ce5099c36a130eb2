//! The 16550A serial port.
//!
//! National Semiconductor PC16550D data sheet, TL/C/8652 (June 1995).
//!
//! The line's other end is pulled and pushed, never called: the board takes output when its backend has room, and offers input
//! when the port wants it. As long as the board leaves output in the transmitter, THRE stays clear and the guest waits, so that
//! nothing is lost; there is no pacing by the baud rate. Only the receiver's character timeout takes time.

mod spec;
#[cfg(test)]
mod tests;

use crate::{
    Line, PortDevice, TimedDevice,
    fifo::Fifo,
    ports::{read_wide, write_wide},
};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};
use spec::{BAUD_BASE, FIFO, Fcr, Ier, Lcr, Lsr, Mcr, Msr, TIMEOUT_CHARACTERS, iir, reg};
use x86defs::{Duration, Time, Width};

/// Ports that the device has.
pub const PORTS: u16 = 8;

/// The divisor for 9600 baud, as firmware leaves it.
const DIVISOR_9600: u16 = 12;

/// The modem's lines to the port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ModemLines {
    pub cts: bool,
    pub dsr: bool,
    pub ri: bool,
    pub dcd: bool,
}

impl ModemLines {
    /// Something is at the other end, and ready.
    pub const CONNECTED: Self = Self { cts: true, dsr: true, ri: false, dcd: true };
    pub const DISCONNECTED: Self = Self { cts: false, dsr: false, ri: false, dcd: false };

    fn bits(self) -> Msr {
        let mut msr = Msr::empty();
        msr.set(Msr::CTS, self.cts);
        msr.set(Msr::DSR, self.dsr);
        msr.set(Msr::RI, self.ri);
        msr.set(Msr::DCD, self.dcd);
        msr
    }
}

/// A received character and its errors ([`Lsr::OF_CHARACTER`]).
#[derive(Clone, Copy, Default)]
struct Received {
    byte: u8,
    errors: u8,
}

/// The port.
pub struct Uart {
    ier: Ier,
    fcr: Fcr,
    lcr: Lcr,
    mcr: Mcr,
    scratch: u8,
    divisor: u16,
    receiver: Fifo<Received, FIFO>,
    transmitter: Fifo<u8, FIFO>,
    /// Errors that a read of the LSR shows and clears.
    errors: Lsr,
    /// Modem lines as last seen, and which of them changed since the MSR was read.
    modem: Msr,
    /// The lines that come from outside, whatever loopback does.
    outside: ModemLines,
    /// The transmitter became empty, and the guest has not been told yet.
    thre_pending: bool,
    /// When the characters in the receiver will have waited too long, if the FIFOs are on and there are any.
    timeout_at: Option<Time>,
    timed_out: bool,
    /// The guest has read the receiver since reset.
    receiver_used: bool,
    line: Line,
    /// OUT2 lets the interrupt through.
    gated: bool,
}

/// What a [`Uart`] saves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UartState {
    pub ier: u8,
    pub fcr: u8,
    pub lcr: u8,
    pub mcr: u8,
    pub scratch: u8,
    pub divisor: u16,
    /// Characters, and their errors as LSR bits.
    pub receiver: Vec<(u8, u8)>,
    pub transmitter: Vec<u8>,
    pub errors: u8,
    pub modem: u8,
    /// CTS, DSR, RI, DCD.
    pub outside: [bool; 4],
    pub thre_pending: bool,
    pub timeout_at: Option<Time>,
    pub timed_out: bool,
    pub receiver_used: bool,
}

impl Uart {
    /// A port after reset (data sheet, table III). `line` is INTR behind the PC's gate: OUT2 opens it.
    #[must_use]
    pub fn new(line: Line, outside: ModemLines) -> Self {
        Self {
            ier: Ier::empty(),
            fcr: Fcr::empty(),
            lcr: Lcr::WORD_LENGTH,
            mcr: Mcr::empty(),
            scratch: 0,
            divisor: DIVISOR_9600,
            receiver: Fifo::new(),
            transmitter: Fifo::new(),
            errors: Lsr::empty(),
            modem: outside.bits(),
            outside,
            thre_pending: false,
            timeout_at: None,
            timed_out: false,
            receiver_used: false,
            line,
            gated: true,
        }
    }

    /// The same without the PC's gate behind INTR, as on a PCI card.
    #[must_use]
    pub fn without_gate(mut self) -> Self {
        self.gated = false;
        self
    }

    fn has_fifos(&self) -> bool {
        self.fcr.contains(Fcr::ENABLE)
    }

    /// Characters that receiver and transmitter hold each.
    fn depth(&self) -> usize {
        if self.has_fifos() { FIFO } else { 1 }
    }

    /// The next byte that the guest has sent, still in the transmitter.
    #[must_use]
    pub fn peek_output(&self) -> Option<u8> {
        self.transmitter.front()
    }

    /// Takes the next byte that the guest has sent.
    pub fn take_output(&mut self) -> Option<u8> {
        let byte = self.transmitter.pop()?;
        if self.transmitter.is_empty() {
            self.thre_pending = true;
            self.update_line();
        }
        Some(byte)
    }

    /// Takes output into `buffer`; returns how many bytes there were.
    pub fn drain(&mut self, buffer: &mut [u8]) -> usize {
        let mut taken = 0;
        for slot in buffer {
            let Some(byte) = self.take_output() else { break };
            *slot = byte;
            taken += 1;
        }
        taken
    }

    /// Whether [`Uart::receive`] makes sense now: there is room, and the guest has opened the port, as it shows by enabling
    /// the receiver's interrupt, asserting RTS, or having read a character. Before that, input is better kept back than
    /// thrown away.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        let is_open = self.ier.contains(Ier::RDA) || self.mcr.contains(Mcr::RTS) || self.receiver_used;
        is_open && self.can_receive()
    }

    fn can_receive(&self) -> bool {
        self.receiver.len() < self.depth() && !self.mcr.contains(Mcr::LOOP)
    }

    /// A character arrives. False, and nothing happens, if there is no room for it or the port is looped back.
    pub fn receive(&mut self, now: Time, byte: u8) -> bool {
        self.receive_with(now, byte, Lsr::empty())
    }

    /// The line is held low for longer than a character: a break arrives. False as for [`Uart::receive`].
    pub fn receive_break(&mut self, now: Time) -> bool {
        // The stop bit is low too.
        self.receive_with(now, 0, Lsr::BREAK | Lsr::FRAMING)
    }

    fn receive_with(&mut self, now: Time, byte: u8, errors: Lsr) -> bool {
        if !self.can_receive() {
            return false;
        }
        self.push_received(now, byte, errors);
        self.update_line();
        true
    }

    fn push_received(&mut self, now: Time, byte: u8, errors: Lsr) {
        self.sync(now);
        let byte = byte & self.word_mask();
        if !self.receiver.push(Received { byte, errors: errors.bits() }) {
            return;
        }
        if self.receiver.len() == 1 {
            // At the top: its errors show.
            self.errors |= errors;
        }
        self.restart_timeout(now);
    }

    fn word_mask(&self) -> u8 {
        0xff >> (3 - (self.lcr & Lcr::WORD_LENGTH).bits())
    }

    /// Changes the lines from the modem.
    pub fn set_modem_lines(&mut self, lines: ModemLines) {
        self.outside = lines;
        self.update_modem();
        self.update_line();
    }

    /// The modem lines as the port sees them; in loopback they are its own outputs (8.9, "Bit 4").
    fn update_modem(&mut self) {
        let lines = if self.mcr.contains(Mcr::LOOP) {
            let mcr = self.mcr;
            ModemLines {
                cts: mcr.contains(Mcr::RTS),
                dsr: mcr.contains(Mcr::DTR),
                ri: mcr.contains(Mcr::OUT1),
                dcd: mcr.contains(Mcr::OUT2),
            }
        } else {
            self.outside
        };
        let (old, new) = (self.modem & Msr::LINES, lines.bits());
        let changed = old ^ new;
        let mut deltas = self.modem & Msr::DELTAS;
        deltas.set(Msr::DCTS, deltas.contains(Msr::DCTS) || changed.contains(Msr::CTS));
        deltas.set(Msr::DDSR, deltas.contains(Msr::DDSR) || changed.contains(Msr::DSR));
        deltas.set(Msr::DDCD, deltas.contains(Msr::DDCD) || changed.contains(Msr::DCD));
        deltas.set(Msr::TERI, deltas.contains(Msr::TERI) || changed.contains(Msr::RI) && !lines.ri);
        self.modem = new | deltas;
    }

    /// How long a character is on the line.
    fn character_time(&self) -> Duration {
        let lcr = self.lcr;
        let data = u64::from((lcr & Lcr::WORD_LENGTH).bits()) + 5;
        let parity = u64::from(lcr.contains(Lcr::PARITY));
        let stop = 1 + u64::from(lcr.contains(Lcr::STOP_BITS));
        let bits = 1 + data + parity + stop;
        let divisor = u64::from(self.divisor).max(1);
        Duration(bits * divisor * 1_000_000_000 / BAUD_BASE)
    }

    /// 8.7: the timeout starts anew with every character that comes or is read.
    fn restart_timeout(&mut self, now: Time) {
        self.timed_out = false;
        let waits = self.has_fifos() && !self.receiver.is_empty();
        self.timeout_at = waits.then(|| now + Duration(TIMEOUT_CHARACTERS * self.character_time().0));
    }

    fn sync(&mut self, now: Time) {
        if self.timeout_at.is_some_and(|at| at <= now) {
            self.timeout_at = None;
            self.timed_out = true;
        }
    }

    fn trigger(&self) -> usize {
        if !self.has_fifos() {
            return 1;
        }
        match (self.fcr & Fcr::TRIGGER).bits() >> 6 {
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    /// The most important interrupt (table IV).
    fn identification(&self) -> u8 {
        if self.ier.is_empty() {
            iir::NONE
        } else if self.ier.contains(Ier::RLS) && self.errors.intersects(Lsr::ERRORS) {
            iir::RLS
        } else if self.ier.contains(Ier::RDA) && self.receiver.len() >= self.trigger() {
            iir::RDA
        } else if self.ier.contains(Ier::RDA) && self.timed_out {
            iir::TIMEOUT
        } else if self.ier.contains(Ier::THRE) && self.thre_pending {
            iir::THRE
        } else if self.ier.contains(Ier::MODEM) && self.modem.intersects(Msr::DELTAS) {
            iir::MODEM
        } else {
            iir::NONE
        }
    }

    /// On a PC, OUT2 lets the interrupt through. In loopback the pin is inactive, whatever MCR says.
    fn update_line(&self) {
        let gate = !self.gated || self.mcr & (Mcr::OUT2 | Mcr::LOOP) == Mcr::OUT2;
        self.line.set(gate && self.identification() != iir::NONE);
    }

    fn read_data(&mut self, now: Time) -> u8 {
        self.receiver_used = true;
        let Some(received) = self.receiver.pop() else { return 0 };
        if let Some(next) = self.receiver.front() {
            self.errors |= Lsr::from_bits_retain(next.errors);
        }
        self.restart_timeout(now);
        self.update_line();
        received.byte
    }

    fn read_identification(&mut self, now: Time) -> u8 {
        self.sync(now);
        let identification = self.identification();
        if identification == iir::THRE {
            self.thre_pending = false;
        }
        self.update_line();
        identification | if self.has_fifos() { iir::FIFOS } else { 0 }
    }

    fn read_line_status(&mut self) -> u8 {
        let mut lsr = self.errors;
        lsr.set(Lsr::DATA_READY, !self.receiver.is_empty());
        lsr.set(Lsr::THRE | Lsr::TEMT, self.transmitter.is_empty());
        if !self.errors.is_empty() {
            lsr.set(Lsr::FIFO_ERROR, self.has_fifos() && self.errors.intersects(Lsr::OF_CHARACTER));
            self.errors = Lsr::empty();
            self.update_line();
        }
        // Characters further down: their errors show when they come to the top.
        if self.has_fifos() && self.receiver.iter().skip(1).any(|received| received.errors != 0) {
            lsr |= Lsr::FIFO_ERROR;
        }
        lsr.bits()
    }

    fn read_modem_status(&mut self) -> u8 {
        let modem = self.modem;
        if modem.intersects(Msr::DELTAS) {
            self.modem = modem & Msr::LINES;
            self.update_line();
        }
        modem.bits()
    }

    fn write_data(&mut self, now: Time, byte: u8) {
        self.thre_pending = false;
        if self.mcr.contains(Mcr::LOOP) {
            // Straight into the receiver; one that has no room is overrun.
            if self.receiver.len() < self.depth() {
                self.push_received(now, byte, Lsr::empty());
            } else {
                self.overrun(byte);
            }
            self.thre_pending = self.transmitter.is_empty();
        } else if self.transmitter.len() < self.depth() {
            self.transmitter.push(byte & self.word_mask());
        } else if !self.has_fifos() {
            // A guest that does not look at THRE overwrites the holding register; with FIFOs, what does not fit is lost.
            self.transmitter.clear();
            self.transmitter.push(byte & self.word_mask());
        }
        self.update_line();
    }

    /// With FIFOs the character is lost, without it replaces the one that waits (8.4, "Bit 1").
    fn overrun(&mut self, byte: u8) {
        self.errors |= Lsr::OVERRUN;
        if !self.has_fifos() {
            self.receiver.clear();
            self.receiver.push(Received { byte: byte & self.word_mask(), errors: 0 });
        }
    }

    fn write_interrupt_enable(&mut self, value: u8) {
        let ier = Ier::from_bits_truncate(value);
        // Enabling it while the transmitter is empty interrupts at once.
        if (ier & !self.ier).contains(Ier::THRE) && self.transmitter.is_empty() {
            self.thre_pending = true;
        }
        self.ier = ier;
        self.update_line();
    }

    fn write_fifo_control(&mut self, now: Time, value: u8) {
        let fcr = Fcr::from_bits_truncate(value);
        let switched = fcr.contains(Fcr::ENABLE) != self.has_fifos();
        if switched || fcr.contains(Fcr::ENABLE | Fcr::CLEAR_RECEIVER) {
            self.receiver.clear();
            self.errors.remove(Lsr::OF_CHARACTER);
        }
        if (switched || fcr.contains(Fcr::ENABLE | Fcr::CLEAR_TRANSMITTER)) && !self.transmitter.is_empty() {
            self.transmitter.clear();
            self.thre_pending = true;
        }
        // The other bits count only together with the enable.
        self.fcr = if fcr.contains(Fcr::ENABLE) { fcr & (Fcr::ENABLE | Fcr::DMA_MODE | Fcr::TRIGGER) } else { Fcr::empty() };
        if self.receiver.is_empty() {
            self.restart_timeout(now);
        }
        self.update_line();
    }

    fn write_line_control(&mut self, now: Time, value: u8) {
        let lcr = Lcr::from_bits_retain(value);
        let breaks = lcr.contains(Lcr::BREAK) && !self.lcr.contains(Lcr::BREAK);
        self.lcr = lcr;
        if breaks && self.mcr.contains(Mcr::LOOP) {
            if self.receiver.len() < self.depth() {
                self.push_received(now, 0, Lsr::BREAK | Lsr::FRAMING);
            } else {
                self.overrun(0);
            }
            self.update_line();
        }
    }

    fn write_modem_control(&mut self, value: u8) {
        self.mcr = Mcr::from_bits_truncate(value);
        self.update_modem();
        self.update_line();
    }

    #[inline(always)]
    fn read(&mut self, now: Time, offset: u16) -> u8 {
        let dlab = self.lcr.contains(Lcr::DLAB);
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            reg::DATA if dlab => divisor_low,
            reg::IER if dlab => divisor_high,
            reg::DATA => self.read_data(now),
            reg::IER => self.ier.bits(),
            reg::IIR => self.read_identification(now),
            reg::LCR => self.lcr.bits(),
            reg::MCR => self.mcr.bits(),
            reg::LSR => self.read_line_status(),
            reg::MSR => self.read_modem_status(),
            reg::SCR => self.scratch,
            _ => 0xff,
        }
    }

    #[inline]
    fn write(&mut self, now: Time, offset: u16, value: u8) {
        let dlab = self.lcr.contains(Lcr::DLAB);
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            reg::DATA if dlab => self.divisor = u16::from_le_bytes([value, divisor_high]),
            reg::IER if dlab => self.divisor = u16::from_le_bytes([divisor_low, value]),
            reg::DATA => self.write_data(now, value),
            reg::IER => self.write_interrupt_enable(value),
            reg::IIR => self.write_fifo_control(now, value),
            reg::LCR => self.write_line_control(now, value),
            reg::MCR => self.write_modem_control(value),
            // Factory test only.
            reg::LSR | reg::MSR => {}
            reg::SCR => self.scratch = value,
            _ => {}
        }
    }

    #[must_use]
    pub fn save(&self) -> UartState {
        let Self {
            ier,
            fcr,
            lcr,
            mcr,
            scratch,
            divisor,
            receiver,
            transmitter,
            errors,
            modem,
            outside,
            thre_pending,
            timeout_at,
            timed_out,
            receiver_used,
            line: _,
            gated: _,
        } = self;
        let &ModemLines { cts, dsr, ri, dcd } = outside;
        UartState {
            ier: ier.bits(),
            fcr: fcr.bits(),
            lcr: lcr.bits(),
            mcr: mcr.bits(),
            scratch: *scratch,
            divisor: *divisor,
            receiver: receiver.iter().map(|received| (received.byte, received.errors)).collect(),
            transmitter: transmitter.to_vec(),
            errors: errors.bits(),
            modem: modem.bits(),
            outside: [cts, dsr, ri, dcd],
            thre_pending: *thre_pending,
            timeout_at: *timeout_at,
            timed_out: *timed_out,
            receiver_used: *receiver_used,
        }
    }

    /// Characters that do not fit the FIFOs are left out.
    pub fn restore(&mut self, state: &UartState) {
        let UartState {
            ier,
            fcr,
            lcr,
            mcr,
            scratch,
            divisor,
            receiver,
            transmitter,
            errors,
            modem,
            outside,
            thre_pending,
            timeout_at,
            timed_out,
            receiver_used,
        } = state;
        self.ier = Ier::from_bits_truncate(*ier);
        self.fcr = Fcr::from_bits_truncate(*fcr);
        self.lcr = Lcr::from_bits_retain(*lcr);
        self.mcr = Mcr::from_bits_truncate(*mcr);
        self.scratch = *scratch;
        self.divisor = *divisor;
        let received = receiver.iter().map(|&(byte, errors)| Received { byte, errors: errors & Lsr::OF_CHARACTER.bits() });
        self.receiver = Fifo::from_entries(received.take(self.depth()));
        self.transmitter = Fifo::from_entries(transmitter.iter().copied().take(self.depth()));
        self.errors = Lsr::from_bits_retain(*errors) & Lsr::ERRORS;
        self.modem = Msr::from_bits_retain(*modem);
        let &[cts, dsr, ri, dcd] = outside;
        self.outside = ModemLines { cts, dsr, ri, dcd };
        self.thre_pending = *thre_pending;
        self.timeout_at = *timeout_at;
        self.timed_out = *timed_out;
        self.receiver_used = *receiver_used;
        self.update_line();
    }
}

impl PortDevice for Uart {
    #[inline]
    fn port_read(&mut self, now: Time, offset: u16, width: Width) -> u32 {
        if width == Width::Byte {
            return self.read(now, offset).into();
        }
        read_wide(offset, width, PORTS, &mut |offset| self.read(now, offset))
    }

    #[inline]
    fn port_write(&mut self, now: Time, offset: u16, width: Width, value: u32) {
        if width == Width::Byte {
            return self.write(now, offset, value as u8);
        }
        write_wide(offset, width, PORTS, value, &mut |offset, value| self.write(now, offset, value));
    }
}

impl TimedDevice for Uart {
    /// The character timeout, if anybody would be told.
    fn deadline(&self) -> Option<Time> {
        self.timeout_at.filter(|_| self.ier.contains(Ier::RDA) && self.receiver.len() < self.trigger())
    }

    fn advance(&mut self, now: Time) {
        self.sync(now);
        self.update_line();
    }
}
