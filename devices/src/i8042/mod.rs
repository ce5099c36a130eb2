//! The 8042 keyboard controller of the PC/AT and PS/2, with a keyboard and a mouse, at ports 0x60 and 0x64.
//!
//! IBM PS/2 Hardware Interface Technical Reference (1991).
//!
//! Bytes take no time: the controller's input buffer is always empty, and its output buffer is filled again as soon as it is
//! read. The keyboard does not repeat keys by itself; whoever injects keys does. Not there: the password commands, the
//! diagnostic dump and polling of the input port (A5, A6, AC, C1, C2), which do nothing.

mod keyboard;
mod mouse;
mod scancode;
mod spec;
#[cfg(test)]
mod tests;

use crate::{
    Line, PortDevice,
    fifo::Fifo,
    misc::Reset,
    ports::{read_bytes, write_bytes},
};
use alloc::vec::Vec;
use keyboard::Keyboard;
pub use keyboard::KeyboardState;
use mouse::Mouse;
pub use mouse::{MouseInput, MouseKind, MouseMode, MouseState};
pub use scancode::ScanCodeSet;
use scancode::Translator;
use serde::{Deserialize, Serialize};
use spec::{
    CommandByte, ControllerStatus, INPUT_PORT, INTERFACE_TEST_PASSED, NO_PASSWORD, OutputPort, SELF_TEST_PASSED, command,
};
use x86defs::{Time, Width};

/// Offsets of the [`PortDevice`]'s two ports. They are not adjacent on the bus, so whoever maps them adds these.
pub const DATA_OFFSET: u16 = 0;
pub const COMMAND_OFFSET: u16 = 4;

const MEMORY: usize = 32;
const REPLIES: usize = 16;

/// Whose byte is in the output buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Source {
    /// The keyboard's, or the controller's own.
    #[default]
    Keyboard,
    Aux,
}

/// The controller with its devices.
pub struct I8042 {
    keyboard: Keyboard,
    mouse: Mouse,
    /// The controller's memory but for its first byte, which is `command_byte`.
    memory: [u8; MEMORY],
    command_byte: CommandByte,
    last_was_command: bool,
    /// The command that waits for a byte at port 0x60.
    pending: Option<u8>,
    output: Option<(u8, Source)>,
    /// What port 0x60 reads when the output buffer is empty.
    last_output: u8,
    /// The controller's own answers: they go before the devices' bytes.
    replies: Fifo<(u8, Source), REPLIES>,
    translator: Translator,
    a20: bool,
    event: Option<Reset>,
    keyboard_line: Line,
    mouse_line: Line,
}

/// What an [`I8042`] saves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct I8042State {
    pub keyboard: KeyboardState,
    pub mouse: MouseState,
    pub memory: [u8; MEMORY],
    pub command_byte: u8,
    pub last_was_command: bool,
    pub pending: Option<u8>,
    pub output: Option<(u8, Source)>,
    pub last_output: u8,
    pub replies: Vec<(u8, Source)>,
    pub translator_release: bool,
    pub a20: bool,
    pub event: Option<Reset>,
}

impl I8042 {
    /// The controller as firmware leaves it: keyboard on, mouse off, translation on, A20 open.
    #[must_use]
    pub fn new(keyboard_line: Line, mouse_line: Line) -> Self {
        Self {
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
            memory: [0; MEMORY],
            command_byte: CommandByte::KEYBOARD_INTERRUPT
                | CommandByte::SYSTEM
                | CommandByte::AUX_DISABLED
                | CommandByte::TRANSLATE,
            last_was_command: false,
            pending: None,
            output: None,
            last_output: 0,
            replies: Fifo::new(),
            translator: Translator::default(),
            a20: true,
            event: None,
            keyboard_line,
            mouse_line,
        }
    }

    /// A key, by its usage on the USB HID keyboard page, is pressed or released. False if the guest will not hear of it:
    /// there is no such key, the guest has switched scanning off, or the keyboard's buffer is full.
    pub fn key(&mut self, usage: u8, pressed: bool) -> bool {
        let heard = self.keyboard.key(usage, pressed);
        self.pump();
        heard
    }

    /// The mouse is moved, or its buttons change.
    pub fn mouse(&mut self, input: MouseInput) {
        self.mouse.input(input);
        self.pump();
    }

    /// Scroll, Num and Caps Lock, from bit 0 on.
    #[must_use]
    pub fn leds(&self) -> u8 {
        self.keyboard.leds()
    }

    /// Whether the controller holds A20 open. Port 0x92 can as well.
    #[must_use]
    pub fn a20(&self) -> bool {
        self.a20
    }

    /// The reset that the guest has asked for since this was last called.
    pub fn take_event(&mut self) -> Option<Reset> {
        self.event.take()
    }

    fn update_lines(&self) {
        let (keyboard, aux) = match self.output {
            Some((_, Source::Keyboard)) => (self.command_byte.contains(CommandByte::KEYBOARD_INTERRUPT), false),
            Some((_, Source::Aux)) => (false, self.command_byte.contains(CommandByte::AUX_INTERRUPT)),
            None => (false, false),
        };
        self.keyboard_line.set(keyboard);
        self.mouse_line.set(aux);
    }

    /// Fills the output buffer, if it is empty and there is something for it.
    fn pump(&mut self) {
        if self.output.is_none() {
            self.output = self.next_output();
        }
        self.update_lines();
    }

    fn next_output(&mut self) -> Option<(u8, Source)> {
        if let Some(reply) = self.replies.pop() {
            return Some(reply);
        }
        if !self.command_byte.contains(CommandByte::KEYBOARD_DISABLED) {
            while let Some(byte) = self.keyboard.pop() {
                let byte =
                    if self.command_byte.contains(CommandByte::TRANSLATE) { self.translator.translate(byte) } else { Some(byte) };
                if let Some(byte) = byte {
                    return Some((byte, Source::Keyboard));
                }
            }
        }
        if self.command_byte.contains(CommandByte::AUX_DISABLED) {
            return None;
        }
        self.mouse.pop().map(|byte| (byte, Source::Aux))
    }

    fn reply(&mut self, byte: u8) {
        self.replies.push((byte, Source::Keyboard));
    }

    fn output_port(&self) -> u8 {
        let mut port = OutputPort::NO_RESET | OutputPort::KEYBOARD_CLOCK | OutputPort::KEYBOARD_DATA;
        port.set(OutputPort::A20, self.a20);
        port.set(OutputPort::KEYBOARD_FULL, matches!(self.output, Some((_, Source::Keyboard))));
        port.set(OutputPort::AUX_FULL, matches!(self.output, Some((_, Source::Aux))));
        port.bits()
    }

    fn write_output_port(&mut self, value: u8) {
        let port = OutputPort::from_bits_truncate(value);
        self.a20 = port.contains(OutputPort::A20);
        if !port.contains(OutputPort::NO_RESET) {
            self.event = Some(Reset::Init);
        }
    }

    fn read_memory(&self, index: u8) -> u8 {
        match index & 0x1f {
            0 => self.command_byte.bits(),
            index => self.memory.get(usize::from(index)).copied().unwrap_or(0),
        }
    }

    fn write_memory(&mut self, index: u8, value: u8) {
        match index & 0x1f {
            0 => self.command_byte = CommandByte::from_bits_truncate(value),
            index => {
                if let Some(byte) = self.memory.get_mut(usize::from(index)) {
                    *byte = value;
                }
            }
        }
    }

    fn write_command(&mut self, value: u8) {
        self.last_was_command = true;
        self.pending = None;
        match value {
            command::READ_MEMORY..=command::READ_MEMORY_LAST => self.reply(self.read_memory(value)),
            command::WRITE_MEMORY..=command::WRITE_MEMORY_LAST | command::WRITE_OUTPUT_PORT..=command::WRITE_AUX => {
                self.pending = Some(value)
            }
            command::TEST_PASSWORD => self.reply(NO_PASSWORD),
            command::DISABLE_AUX => self.command_byte |= CommandByte::AUX_DISABLED,
            command::ENABLE_AUX => self.command_byte -= CommandByte::AUX_DISABLED,
            command::TEST_AUX | command::TEST_KEYBOARD => self.reply(INTERFACE_TEST_PASSED),
            command::SELF_TEST => {
                self.command_byte |= CommandByte::SYSTEM;
                self.reply(SELF_TEST_PASSED);
            }
            command::DISABLE_KEYBOARD => self.command_byte |= CommandByte::KEYBOARD_DISABLED,
            command::ENABLE_KEYBOARD => self.command_byte -= CommandByte::KEYBOARD_DISABLED,
            command::READ_INPUT_PORT => self.reply(INPUT_PORT),
            command::READ_OUTPUT_PORT => self.reply(self.output_port()),
            command::CLOSE_A20 => self.a20 = false,
            command::OPEN_A20 => self.a20 = true,
            command::READ_TEST_INPUTS => self.reply(0),
            command::PULSE.. if value & OutputPort::NO_RESET.bits() == 0 => self.event = Some(Reset::Init),
            _ => {}
        }
        self.pump();
    }

    fn write_data(&mut self, value: u8) {
        self.last_was_command = false;
        match self.pending.take() {
            None => {
                // Talking to a device lets it answer.
                self.command_byte -= CommandByte::KEYBOARD_DISABLED;
                self.keyboard.write(value);
            }
            Some(command::WRITE_AUX) => {
                self.command_byte -= CommandByte::AUX_DISABLED;
                self.mouse.write(value);
            }
            Some(command::WRITE_OUTPUT_PORT) => self.write_output_port(value),
            Some(command::WRITE_KEYBOARD_OUTPUT) => self.reply(value),
            Some(command::WRITE_AUX_OUTPUT) => {
                self.replies.push((value, Source::Aux));
            }
            Some(index) => self.write_memory(index, value),
        }
        self.pump();
    }

    fn read_data(&mut self) -> u8 {
        if let Some((byte, _)) = self.output.take() {
            self.last_output = byte;
            // The interrupt falls, and rises again with the next byte.
            self.update_lines();
            self.pump();
        }
        self.last_output
    }

    fn status(&self) -> u8 {
        let mut status = ControllerStatus::UNLOCKED;
        status.set(ControllerStatus::SYSTEM, self.command_byte.contains(CommandByte::SYSTEM));
        status.set(ControllerStatus::COMMAND, self.last_was_command);
        if let Some((_, source)) = self.output {
            status |= ControllerStatus::OUTPUT_FULL;
            status.set(ControllerStatus::AUX_OUTPUT, source == Source::Aux);
        }
        status.bits()
    }

    #[must_use]
    pub fn save(&self) -> I8042State {
        let Self {
            keyboard,
            mouse,
            memory,
            command_byte,
            last_was_command,
            pending,
            output,
            last_output,
            replies,
            translator,
            a20,
            event,
            keyboard_line: _,
            mouse_line: _,
        } = self;
        let &Translator { release } = translator;
        I8042State {
            keyboard: keyboard.save(),
            mouse: mouse.save(),
            memory: *memory,
            command_byte: command_byte.bits(),
            last_was_command: *last_was_command,
            pending: *pending,
            output: *output,
            last_output: *last_output,
            replies: replies.to_vec(),
            translator_release: release,
            a20: *a20,
            event: *event,
        }
    }

    pub fn restore(&mut self, state: &I8042State) {
        let I8042State {
            keyboard,
            mouse,
            memory,
            command_byte,
            last_was_command,
            pending,
            output,
            last_output,
            replies,
            translator_release,
            a20,
            event,
        } = state;
        self.keyboard.restore(keyboard);
        self.mouse.restore(mouse);
        self.memory = *memory;
        self.command_byte = CommandByte::from_bits_truncate(*command_byte);
        self.last_was_command = *last_was_command;
        self.pending = *pending;
        self.output = *output;
        self.last_output = *last_output;
        self.replies = Fifo::from_entries(replies.iter().copied());
        self.translator = Translator { release: *translator_release };
        self.a20 = *a20;
        self.event = *event;
        self.pump();
    }
}

impl PortDevice for I8042 {
    fn port_read(&mut self, _: Time, offset: u16, width: Width) -> u32 {
        read_bytes(offset, width, offset.saturating_add(1), |offset| match offset {
            DATA_OFFSET => self.read_data(),
            COMMAND_OFFSET => self.status(),
            _ => 0xff,
        })
    }

    fn port_write(&mut self, _: Time, offset: u16, width: Width, value: u32) {
        write_bytes(offset, width, offset.saturating_add(1), value, |offset, value| match offset {
            DATA_OFFSET => self.write_data(value),
            COMMAND_OFFSET => self.write_command(value),
            _ => {}
        });
    }
}
