//! Registers of the 16550A (National Semiconductor PC16550D data sheet, TL/C/8652, June 1995, table II).

use bitflags::bitflags;

/// Register offsets. With [`Lcr::DLAB`] set, 0 and 1 are the divisor latch.
pub mod reg {
    /// Read: RBR; write: THR; DLAB: DLL.
    pub const DATA: u16 = 0;
    /// Read and write: IER; DLAB: DLM.
    pub const IER: u16 = 1;
    /// Read: IIR; write: FCR.
    pub const IIR: u16 = 2;
    pub const LCR: u16 = 3;
    pub const MCR: u16 = 4;
    pub const LSR: u16 = 5;
    pub const MSR: u16 = 6;
    pub const SCR: u16 = 7;
}

bitflags! {
    /// Interrupt enable register.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct Ier: u8 {
        /// Received data, and the character timeout.
        const RDA = 1 << 0;
        /// Transmitter holding register empty.
        const THRE = 1 << 1;
        /// Receiver line status.
        const RLS = 1 << 2;
        const MODEM = 1 << 3;
    }
}

/// Interrupt identification register (8.6, table IV).
pub mod iir {
    pub const NONE: u8 = 0x01;
    pub const MODEM: u8 = 0x00;
    pub const THRE: u8 = 0x02;
    pub const RDA: u8 = 0x04;
    pub const RLS: u8 = 0x06;
    pub const TIMEOUT: u8 = 0x0c;
    /// The FIFOs are on.
    pub const FIFOS: u8 = 0xc0;
}

bitflags! {
    /// FIFO control register.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct Fcr: u8 {
        const ENABLE = 1 << 0;
        const CLEAR_RECEIVER = 1 << 1;
        const CLEAR_TRANSMITTER = 1 << 2;
        const DMA_MODE = 1 << 3;
        /// 1, 4, 8 or 14 characters.
        const TRIGGER = 0xc0;
    }
}

bitflags! {
    /// Line control register.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct Lcr: u8 {
        /// 5 to 8 bits.
        const WORD_LENGTH = 0x03;
        /// Two stop bits (one and a half with 5 bits).
        const STOP_BITS = 1 << 2;
        const PARITY = 1 << 3;
        const EVEN = 1 << 4;
        const STICK = 1 << 5;
        const BREAK = 1 << 6;
        const DLAB = 1 << 7;
    }
}

bitflags! {
    /// Modem control register.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct Mcr: u8 {
        const DTR = 1 << 0;
        const RTS = 1 << 1;
        const OUT1 = 1 << 2;
        /// On a PC: lets the interrupt through.
        const OUT2 = 1 << 3;
        const LOOP = 1 << 4;
    }
}

bitflags! {
    /// Line status register.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct Lsr: u8 {
        const DATA_READY = 1 << 0;
        const OVERRUN = 1 << 1;
        const PARITY = 1 << 2;
        const FRAMING = 1 << 3;
        const BREAK = 1 << 4;
        const THRE = 1 << 5;
        const TEMT = 1 << 6;
        /// A character in the FIFO has an error.
        const FIFO_ERROR = 1 << 7;

        /// Errors that belong to a character.
        const OF_CHARACTER = 0x1c;
        /// What raises the line status interrupt.
        const ERRORS = 0x1e;
    }
}

bitflags! {
    /// Modem status register.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct Msr: u8 {
        const DCTS = 1 << 0;
        const DDSR = 1 << 1;
        /// RI went away.
        const TERI = 1 << 2;
        const DDCD = 1 << 3;
        const CTS = 1 << 4;
        const DSR = 1 << 5;
        const RI = 1 << 6;
        const DCD = 1 << 7;

        const DELTAS = 0x0f;
        const LINES = 0xf0;
    }
}

/// Depth of either FIFO.
pub const FIFO: usize = 16;

/// The PC's input clock over the 16 samples a bit: the divisor counts in this, in Hz.
pub const BAUD_BASE: u64 = 115_200;
/// The character timeout, in character times (8.7).
pub const TIMEOUT_CHARACTERS: u64 = 4;
