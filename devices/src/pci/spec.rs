//! Configuration space of a type-0 function (PCI Local Bus Specification 3.0, chapter 6).

use bitflags::bitflags;

pub const VENDOR_DEVICE: u8 = 0x00;
pub const COMMAND_STATUS: u8 = 0x04;
pub const REVISION_CLASS: u8 = 0x08;
pub const HEADER: u8 = 0x0c;
pub const BAR0: u8 = 0x10;
pub const SUBSYSTEM: u8 = 0x2c;
pub const CAPABILITIES: u8 = 0x34;
pub const INTERRUPT: u8 = 0x3c;

/// Where capabilities may be put.
pub const FIRST_CAPABILITY: u8 = 0x40;

/// In the header type, which is the third byte of [`HEADER`].
pub const MULTIFUNCTION: u32 = 1 << 23;

bitflags! {
    /// Command register (6.2.2).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Command: u16 {
        const IO = 1 << 0;
        const MEMORY = 1 << 1;
        const BUS_MASTER = 1 << 2;
        const PARITY_ERROR = 1 << 6;
        const SERR = 1 << 8;
        const INTX_DISABLE = 1 << 10;
    }
}

bitflags! {
    /// Status register (6.2.3).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Status: u16 {
        /// INTx is asserted (whether or not it is disabled).
        const INTERRUPT = 1 << 3;
        const CAPABILITIES = 1 << 4;
        const FAST_BACK_TO_BACK = 1 << 7;
        const DEVSEL_MEDIUM = 1 << 9;
        /// Errors and aborts: ones clear.
        const CLEARABLE = 0xf900;
    }
}

/// Base address registers (6.2.5).
pub mod bar {
    pub const IO: u32 = 1;
    pub const IO_ADDRESS: u32 = !3;
    pub const MEMORY_64: u32 = 2 << 1;
    pub const PREFETCHABLE: u32 = 1 << 3;
    pub const MEMORY_ADDRESS: u32 = !0xf;
    pub const COUNT: u8 = 6;
}

/// Configuration mechanism #1 (3.2.2.3.2).
pub mod mechanism {
    /// CONFIG_ADDRESS: accesses to CONFIG_DATA are configuration accesses.
    pub const ENABLE: u32 = 1 << 31;
    pub const BUS_SHIFT: u32 = 16;
    pub const DEVFN_SHIFT: u32 = 8;
    pub const REGISTER: u32 = 0xfc;
    pub const WRITABLE: u32 = 0x80ff_fffc;
}

/// Class codes, as in the upper three bytes of [`REVISION_CLASS`].
pub mod class {
    pub const HOST_BRIDGE: u32 = 0x06_0000;
    pub const ISA_BRIDGE: u32 = 0x06_0100;
    pub const SERIAL_16550: u32 = 0x07_0002;
}
