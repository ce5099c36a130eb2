//! The 16550 UART (National Semiconductor PC16550D data sheet), driven by interrupts where it has one.
//!
//! At 115200 baud a character takes 87 us, so nothing here waits for the line: bytes go to the FIFO as long as that has room, else to a
//! ring that the transmitter's interrupts (or later calls) empty.

use super::ring::Ring;
use crate::cpu::{port, relax};

/// How a port is to be set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SerialConfig {
    /// First of its eight I/O ports.
    pub io_base: u16,
    /// ISA IRQ; `None` to poll.
    pub irq: Option<u8>,
    /// Divisor latch; `None` leaves the speed alone.
    pub divisor: Option<u16>,
    /// Line-control register: word length, stop bits, parity.
    pub line_control: u8,
}

impl SerialConfig {
    /// The first port, 115200 baud, 8n1: for messages before the command line has been read.
    pub const DEFAULT: Self = Self { io_base: 0x3f8, irq: Some(4), divisor: Some(1), line_control: 3 };
}

/// Registers, relative to the first port. With DLAB set, 0 and 1 are the divisor.
const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const INTERRUPT_ID: u16 = 2;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const MODEM_STATUS: u16 = 6;

const DLAB: u8 = 1 << 7;
const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMITTER: u8 = 1 << 1;
const LSR_DATA_READY: u8 = 1 << 0;
/// The transmitter's holding register, or its FIFO, is empty.
const LSR_TRANSMITTER: u8 = 1 << 5;
/// So is its shift register.
const LSR_IDLE: u8 = 1 << 6;

/// Access to a UART's registers.
pub trait Bus {
    fn read(&self, register: u16) -> u8;
    fn write(&mut self, register: u16, value: u8);
}

/// The real thing, by its first I/O port.
#[derive(Clone, Copy, Debug)]
pub struct Ports(pub u16);

impl Bus for Ports {
    fn read(&self, register: u16) -> u8 {
        // SAFETY: the UART belongs to the console; its registers act on nothing but itself.
        unsafe { port::read_u8(self.0 + register) }
    }
    fn write(&mut self, register: u16, value: u8) {
        // SAFETY: as above.
        unsafe { port::write_u8(self.0 + register, value) };
    }
}

/// Bytes that wait for the transmitter.
pub const TRANSMIT_RING: usize = 64 * 1024;

/// A UART with its transmit ring.
#[derive(Debug)]
pub struct Uart<B> {
    bus: B,
    pending: Ring<TRANSMIT_RING>,
    /// Bytes that the FIFO takes when it is empty.
    fifo: u8,
    /// Bytes that it takes now, as far as is known without asking.
    room: u8,
    /// Its interrupt reaches the host.
    interrupts: bool,
    /// Interrupts that are enabled.
    enabled: u8,
    /// Nobody takes what was received, so more is left in the FIFO, where it holds the sender back as far as the line can.
    paused: bool,
}

/// There is no UART at that address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoUart;

impl<B: Bus> Uart<B> {
    /// A UART that is not set up yet.
    pub const fn new(bus: B) -> Self {
        // All zeroes, so that the ring takes no room in the image.
        Self { bus, pending: Ring::new(), fifo: 0, room: 0, interrupts: false, enabled: 0, paused: false }
    }

    /// Says where the UART is. Before [`Uart::init`].
    pub fn replace_bus(&mut self, bus: B) {
        self.bus = bus;
    }

    /// Sets speed, frame and FIFO, with interrupts off.
    ///
    /// # Errors
    /// If the registers do not hold what is written to them.
    pub fn init(&mut self, config: &SerialConfig) -> Result<(), NoUart> {
        let bus = &mut self.bus;
        bus.write(LINE_CONTROL, config.line_control & !DLAB);
        bus.write(INTERRUPT_ENABLE, 0);
        if bus.read(LINE_CONTROL) != config.line_control & !DLAB || bus.read(INTERRUPT_ENABLE) != 0 {
            return Err(NoUart);
        }
        if let Some(divisor) = config.divisor {
            bus.write(LINE_CONTROL, config.line_control | DLAB);
            bus.write(DATA, divisor as u8);
            bus.write(INTERRUPT_ENABLE, (divisor >> 8) as u8);
            bus.write(LINE_CONTROL, config.line_control & !DLAB);
        }
        // FIFOs on and cleared, receive trigger at 8 bytes (a character timeout reports fewer). Both top bits of IIR say that they work.
        bus.write(FIFO_CONTROL, 0x87);
        self.fifo = if bus.read(INTERRUPT_ID) & 0xc0 == 0xc0 { 16 } else { 1 };
        // DTR, RTS, and OUT2, which connects the interrupt on PCs.
        bus.write(MODEM_CONTROL, 0x0b);
        Ok(())
    }

    /// The UART's interrupt reaches the host from now on.
    pub fn enable_interrupts(&mut self) {
        self.interrupts = true;
        for register in [LINE_STATUS, DATA, INTERRUPT_ID, MODEM_STATUS] {
            let _ = self.bus.read(register);
        }
        self.pump();
    }

    /// True if it has to be polled.
    pub fn polled(&self) -> bool {
        !self.interrupts
    }

    /// Bytes that [`Uart::send`] is sure to take.
    pub fn room(&self) -> usize {
        self.pending.room()
    }

    /// Sends as much as there is room for. Never waits.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        for &byte in bytes {
            if self.pending.is_empty() && self.room > 0 {
                self.room -= 1;
                self.bus.write(DATA, byte);
            } else if !self.pending.push(byte) {
                break;
            }
            taken += 1;
        }
        // The transmitter's interrupt may have to wait while the host is busy with interrupts off; this keeps the line busy meanwhile.
        if !self.pending.is_empty() {
            self.pump();
        }
        taken
    }

    /// Moves bytes from the ring to the FIFO, and asks for an interrupt if some remain.
    pub fn pump(&mut self) {
        if !self.pending.is_empty() && self.bus.read(LINE_STATUS) & LSR_TRANSMITTER != 0 {
            self.room = self.fifo;
        }
        while self.room > 0
            && let Some(byte) = self.pending.pop()
        {
            self.room -= 1;
            self.bus.write(DATA, byte);
        }
        self.choose_interrupts();
    }

    fn choose_interrupts(&mut self) {
        let receive = if self.paused { 0 } else { IER_RECEIVED };
        let transmit = if self.pending.is_empty() { 0 } else { IER_TRANSMITTER };
        let wanted = if self.interrupts { receive | transmit } else { 0 };
        if wanted != self.enabled {
            self.enabled = wanted;
            self.bus.write(INTERRUPT_ENABLE, wanted);
        }
    }

    /// Serves whatever the UART wants, and puts received bytes into `received`. Once that is full, nothing is received until
    /// [`Uart::resume`].
    pub fn service<const N: usize>(&mut self, received: &mut Ring<N>) {
        // Bounded: a broken UART must not keep the host here.
        for _ in 0..16 {
            for _ in 0..64 {
                self.paused = received.room() == 0;
                if self.paused || self.bus.read(LINE_STATUS) & LSR_DATA_READY == 0 {
                    break;
                }
                received.push(self.bus.read(DATA));
            }
            self.pump();
            // Reading the cause also clears a transmitter interrupt. Bit 0 clear means that one is pending.
            match self.bus.read(INTERRUPT_ID) & 0x0f {
                id if id & 1 != 0 => return,
                0 => {
                    let _ = self.bus.read(MODEM_STATUS);
                }
                _ => {}
            }
        }
        // Something is still pending, but the interrupt is edge-triggered: make another edge.
        self.bus.write(INTERRUPT_ENABLE, 0);
        self.bus.write(INTERRUPT_ENABLE, self.enabled);
    }

    /// True if bytes may wait in the UART for room in the ring.
    pub fn paused(&self) -> bool {
        self.paused
    }

    /// Receives again: the ring has room.
    pub fn resume(&mut self) {
        self.paused = false;
        self.choose_interrupts();
    }

    /// Sends all that is waiting, by waiting for the transmitter. Gives up on a line that does not move.
    pub fn drain(&mut self) {
        while !self.pending.is_empty() {
            if !self.wait(LSR_TRANSMITTER) {
                return;
            }
            self.pump();
        }
        let _ = self.wait(LSR_IDLE);
    }

    /// Waits for a status bit: long enough for a FIFO at 300 baud on anything that executes port reads in a microsecond.
    fn wait(&self, bit: u8) -> bool {
        for _ in 0..1_000_000 {
            if self.bus.read(LINE_STATUS) & bit != 0 {
                return true;
            }
            relax();
        }
        false
    }

    /// Waits until at least `bytes` bytes fit the ring, or the line does not move.
    pub fn wait_for_room(&mut self, bytes: usize) {
        while self.pending.room() < bytes {
            if !self.wait(LSR_TRANSMITTER) {
                return;
            }
            self.pump();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;
    use std::{vec, vec::Vec};

    /// A UART whose transmitter moves only when told to.
    #[derive(Default)]
    struct Fake {
        sent: Vec<u8>,
        fifo: usize,
        received: Cell<Vec<u8>>,
        ier: u8,
        lcr: u8,
        absent: bool,
    }

    impl Bus for Fake {
        fn read(&self, register: u16) -> u8 {
            let received = self.received.take();
            let ready = !received.is_empty();
            self.received.set(received);
            match register {
                _ if self.absent => 0xff,
                DATA => {
                    let mut received = self.received.take();
                    let byte = if received.is_empty() { 0 } else { received.remove(0) };
                    self.received.set(received);
                    byte
                }
                INTERRUPT_ENABLE => self.ier,
                INTERRUPT_ID => 0xc1,
                LINE_CONTROL => self.lcr,
                LINE_STATUS => u8::from(ready) | if self.fifo == 0 { LSR_TRANSMITTER | LSR_IDLE } else { 0 },
                _ => 0,
            }
        }
        fn write(&mut self, register: u16, value: u8) {
            match register {
                DATA if self.lcr & DLAB == 0 => {
                    assert!(self.fifo < 16, "FIFO overrun");
                    self.fifo += 1;
                    self.sent.push(value);
                }
                INTERRUPT_ENABLE if self.lcr & DLAB == 0 => self.ier = value,
                LINE_CONTROL => self.lcr = value,
                _ => {}
            }
        }
    }

    fn uart() -> Uart<Fake> {
        let mut uart = Uart::new(Fake::default());
        uart.init(&SerialConfig::DEFAULT).unwrap();
        uart
    }

    #[test]
    fn nothing_there_is_noticed() {
        let mut uart = Uart::new(Fake { absent: true, ..Fake::default() });
        assert_eq!(uart.init(&SerialConfig::DEFAULT), Err(NoUart));
    }

    #[test]
    fn the_fifo_is_filled_and_the_rest_follows_by_interrupt_in_order() {
        let mut uart = uart();
        uart.enable_interrupts();
        let text: Vec<u8> = (0..100).collect();
        assert_eq!(uart.send(&text[..40]), 40);
        assert_eq!(uart.bus.sent, text[..16]);
        assert_eq!(uart.bus.ier, IER_RECEIVED | IER_TRANSMITTER);
        // Later bytes queue up behind, and use the FIFO if it has become empty meanwhile.
        assert_eq!(uart.send(&text[40..50]), 10);
        assert_eq!(uart.bus.sent.len(), 16);
        uart.bus.fifo = 0;
        assert_eq!(uart.send(&text[50..]), 50);
        assert_eq!(uart.bus.sent, text[..32]);
        for _ in 0..6 {
            uart.bus.fifo = 0;
            uart.service(&mut Ring::<1>::new());
        }
        assert_eq!(uart.bus.sent, text);
        assert_eq!(uart.bus.ier, IER_RECEIVED, "an idle transmitter asks for nothing");
    }

    #[test]
    fn a_full_ring_takes_no_more() {
        let mut uart = uart();
        let much = vec![b'x'; TRANSMIT_RING + 100];
        assert_eq!(uart.send(&much), TRANSMIT_RING);
        assert_eq!(uart.bus.sent.len(), 16);
        assert_eq!(uart.room(), 16, "the pump has moved as many");
        assert_eq!(uart.send(b"y"), 1);
    }

    #[test]
    fn a_full_ring_leaves_the_rest_in_the_uart() {
        let mut uart = uart();
        uart.enable_interrupts();
        uart.bus.received.set(b"abcdef".to_vec());
        let mut ring = Ring::<4>::new();
        uart.service(&mut ring);
        assert!(uart.paused() && uart.bus.ier & IER_RECEIVED == 0);
        assert_eq!(core::iter::from_fn(|| ring.pop()).collect::<Vec<_>>(), b"abcd");
        uart.resume();
        assert_eq!(uart.bus.ier, IER_RECEIVED);
        uart.service(&mut ring);
        assert!(!uart.paused());
        assert_eq!(core::iter::from_fn(|| ring.pop()).collect::<Vec<_>>(), b"ef");
    }
}
