//! The 8042 keyboard controller (IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device
//! Controller"), and the commands of keyboard and mouse (the same, "Keyboards" and "Auxiliary device").

use bitflags::bitflags;

bitflags! {
    /// Status, port 0x64.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct ControllerStatus: u8 {
        const OUTPUT_FULL = 1 << 0;
        const INPUT_FULL = 1 << 1;
        const SYSTEM = 1 << 2;
        /// The last byte written was a command.
        const COMMAND = 1 << 3;
        /// The keyboard is not locked.
        const UNLOCKED = 1 << 4;
        /// The output is the auxiliary device's.
        const AUX_OUTPUT = 1 << 5;
    }
}

bitflags! {
    /// The controller's command byte, first in its memory.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct CommandByte: u8 {
        const KEYBOARD_INTERRUPT = 1 << 0;
        const AUX_INTERRUPT = 1 << 1;
        const SYSTEM = 1 << 2;
        const KEYBOARD_DISABLED = 1 << 4;
        const AUX_DISABLED = 1 << 5;
        /// Scan codes are translated from set 2 to set 1.
        const TRANSLATE = 1 << 6;
    }
}

bitflags! {
    /// Output port of the controller.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct OutputPort: u8 {
        /// Low resets the processor.
        const NO_RESET = 1 << 0;
        const A20 = 1 << 1;
        const KEYBOARD_FULL = 1 << 4;
        const AUX_FULL = 1 << 5;
        /// Clock and data to the keyboard.
        const KEYBOARD_CLOCK = 1 << 6;
        const KEYBOARD_DATA = 1 << 7;
    }
}

/// Input port: the keyboard is not locked.
pub const INPUT_PORT: u8 = 0x80;

/// Commands, written to port 0x64.
pub mod command {
    pub const READ_MEMORY: u8 = 0x20;
    pub const READ_MEMORY_LAST: u8 = 0x3f;
    pub const WRITE_MEMORY: u8 = 0x60;
    pub const WRITE_MEMORY_LAST: u8 = 0x7f;
    pub const TEST_PASSWORD: u8 = 0xa4;
    pub const DISABLE_AUX: u8 = 0xa7;
    pub const ENABLE_AUX: u8 = 0xa8;
    pub const TEST_AUX: u8 = 0xa9;
    pub const SELF_TEST: u8 = 0xaa;
    pub const TEST_KEYBOARD: u8 = 0xab;
    pub const DISABLE_KEYBOARD: u8 = 0xad;
    pub const ENABLE_KEYBOARD: u8 = 0xae;
    pub const READ_INPUT_PORT: u8 = 0xc0;
    pub const READ_OUTPUT_PORT: u8 = 0xd0;
    pub const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub const WRITE_KEYBOARD_OUTPUT: u8 = 0xd2;
    pub const WRITE_AUX_OUTPUT: u8 = 0xd3;
    pub const WRITE_AUX: u8 = 0xd4;
    /// Of clones: A20 shut and open without a data byte.
    pub const CLOSE_A20: u8 = 0xdd;
    pub const OPEN_A20: u8 = 0xdf;
    pub const READ_TEST_INPUTS: u8 = 0xe0;
    /// Pulses the output port's low bits that are zero in the command.
    pub const PULSE: u8 = 0xf0;
}

pub const SELF_TEST_PASSED: u8 = 0x55;
pub const INTERFACE_TEST_PASSED: u8 = 0x00;
pub const NO_PASSWORD: u8 = 0xf1;

/// What both devices answer.
pub mod reply {
    pub const ACK: u8 = 0xfa;
    pub const RESEND: u8 = 0xfe;
    pub const ERROR: u8 = 0xfc;
    /// Basic assurance test passed.
    pub const BAT_PASSED: u8 = 0xaa;
}

/// Commands to the keyboard.
pub mod keyboard {
    pub const SET_LEDS: u8 = 0xed;
    pub const ECHO: u8 = 0xee;
    pub const SCAN_CODE_SET: u8 = 0xf0;
    pub const READ_ID: u8 = 0xf2;
    pub const SET_TYPEMATIC: u8 = 0xf3;
    pub const ENABLE: u8 = 0xf4;
    pub const DISABLE: u8 = 0xf5;
    pub const SET_DEFAULTS: u8 = 0xf6;
    /// In set 3: which keys repeat, and which tell that they are released. First for all keys, then for single ones.
    pub const ALL_TYPEMATIC: u8 = 0xf7;
    pub const ALL_MAKE_BREAK: u8 = 0xf8;
    pub const ALL_MAKE: u8 = 0xf9;
    pub const ALL_TYPEMATIC_MAKE_BREAK: u8 = 0xfa;
    pub const KEY_TYPEMATIC: u8 = 0xfb;
    pub const KEY_MAKE_BREAK: u8 = 0xfc;
    pub const KEY_MAKE: u8 = 0xfd;
    pub const RESEND: u8 = 0xfe;
    pub const RESET: u8 = 0xff;

    pub const ID: [u8; 2] = [0xab, 0x83];
    /// 10.9 characters a second after 500 ms.
    pub const TYPEMATIC_DEFAULT: u8 = 0x2b;
    /// Told once when keys were lost: in sets 2 and 3, and in set 1.
    pub const OVERRUN: u8 = 0x00;
    pub const OVERRUN_SET_1: u8 = 0xff;
}

/// Commands to the mouse.
pub mod mouse {
    pub const SCALING_1_1: u8 = 0xe6;
    pub const SCALING_2_1: u8 = 0xe7;
    pub const SET_RESOLUTION: u8 = 0xe8;
    pub const STATUS: u8 = 0xe9;
    pub const SET_STREAM: u8 = 0xea;
    pub const READ_DATA: u8 = 0xeb;
    pub const RESET_WRAP: u8 = 0xec;
    pub const SET_WRAP: u8 = 0xee;
    pub const SET_REMOTE: u8 = 0xf0;
    pub const READ_ID: u8 = 0xf2;
    pub const SET_RATE: u8 = 0xf3;
    pub const ENABLE: u8 = 0xf4;
    pub const DISABLE: u8 = 0xf5;
    pub const SET_DEFAULTS: u8 = 0xf6;
    pub const RESEND: u8 = 0xfe;
    pub const RESET: u8 = 0xff;

    /// Samples a second, and counts per mm as a power of two.
    pub const RATE_DEFAULT: u8 = 100;
    pub const RESOLUTION_DEFAULT: u8 = 2;

    /// In a status: remote mode, reporting, scaling 2:1.
    pub const STATUS_REMOTE: u8 = 1 << 6;
    pub const STATUS_ENABLED: u8 = 1 << 5;
    pub const STATUS_SCALING: u8 = 1 << 4;

    /// In a packet's first byte: always set, and the signs of the movement.
    pub const PACKET: u8 = 1 << 3;
    pub const PACKET_X_SIGN: u8 = 1 << 4;
    pub const PACKET_Y_SIGN: u8 = 1 << 5;
}
