//! The PS/2 keyboard.

use super::{
    scancode::{Held, ScanCodeSet, encode, set_3_code},
    spec::{keyboard as cmd, reply},
};
use crate::fifo::Fifo;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Keystrokes' bytes that the keyboard holds; one more place is for the overrun's byte.
const KEYS: usize = 16;
const REPLIES: usize = 8;

/// HID usages of the modifiers, left and right.
const CONTROL: [u8; 2] = [0xe0, 0xe4];
const SHIFT: [u8; 2] = [0xe1, 0xe5];
const ALT: [u8; 2] = [0xe2, 0xe6];

/// The first byte that is a command even where a parameter is expected.
const FIRST_COMMAND: u8 = 0xed;

pub(super) struct Keyboard {
    replies: Fifo<u8, REPLIES>,
    keys: Fifo<u8, { KEYS + 1 }>,
    last_sent: u8,
    scanning: bool,
    set: ScanCodeSet,
    leds: u8,
    typematic: u8,
    /// The command that waits for its parameter.
    pending: Option<u8>,
    /// Set 3 codes whose release is told, a bit each.
    breaks: [u8; 32],
    /// Modifiers that are down, a bit for each usage from 0xe0 on.
    modifiers: u8,
}

/// What a [`super::I8042`]'s keyboard saves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeyboardState {
    pub replies: Vec<u8>,
    pub keys: Vec<u8>,
    pub last_sent: u8,
    pub scanning: bool,
    pub set: ScanCodeSet,
    pub leds: u8,
    pub typematic: u8,
    pub pending: Option<u8>,
    pub breaks: [u8; 32],
    pub modifiers: u8,
}

impl Keyboard {
    pub(super) fn new() -> Self {
        Self {
            replies: Fifo::new(),
            keys: Fifo::new(),
            last_sent: 0,
            scanning: true,
            set: ScanCodeSet::Set2,
            leds: 0,
            typematic: cmd::TYPEMATIC_DEFAULT,
            pending: None,
            breaks: [0xff; 32],
            modifiers: 0,
        }
    }

    pub(super) fn leds(&self) -> u8 {
        self.leds
    }

    /// The next byte for the host.
    pub(super) fn pop(&mut self) -> Option<u8> {
        let byte = self.replies.pop().or_else(|| self.keys.pop())?;
        self.last_sent = byte;
        Some(byte)
    }

    /// A key is pressed or released. False if the host will not hear of it.
    pub(super) fn key(&mut self, usage: u8, pressed: bool) -> bool {
        let any = |usages: [u8; 2]| usages.iter().any(|usage| self.modifiers & 1 << (usage & 7) != 0);
        let held = Held { control: any(CONTROL), shift: any(SHIFT), alt: any(ALT) };
        if usage & 0xf8 == 0xe0 {
            let bit = 1 << (usage & 7);
            self.modifiers = if pressed { self.modifiers | bit } else { self.modifiers & !bit };
        }
        let Some(sequence) = encode(self.set, usage, pressed, held) else { return false };
        if !self.scanning {
            return false;
        }
        if self.set == ScanCodeSet::Set3 && !pressed && !self.tells_release(usage) {
            return true;
        }
        if self.keys.len() + sequence.bytes().len() > KEYS {
            self.overrun();
            return false;
        }
        for &byte in sequence.bytes() {
            self.keys.push(byte);
        }
        true
    }

    fn tells_release(&self, usage: u8) -> bool {
        let code = set_3_code(usage).unwrap_or(0);
        self.breaks.get(usize::from(code / 8)).is_some_and(|byte| byte & 1 << (code % 8) != 0)
    }

    /// Fills the buffer up with the byte that says so, once.
    fn overrun(&mut self) {
        let code = if self.set == ScanCodeSet::Set1 { cmd::OVERRUN_SET_1 } else { cmd::OVERRUN };
        if self.keys.iter().last() != Some(code) {
            self.keys.push(code);
        }
    }

    fn reply(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.replies.push(byte);
        }
    }

    fn set_defaults(&mut self) {
        self.keys.clear();
        self.set = ScanCodeSet::Set2;
        self.typematic = cmd::TYPEMATIC_DEFAULT;
        self.breaks = [0xff; 32];
    }

    /// A byte from the host.
    pub(super) fn write(&mut self, byte: u8) {
        if let Some(command) = self.pending.take()
            && byte < FIRST_COMMAND
        {
            self.write_parameter(command, byte);
            return;
        }
        match byte {
            cmd::SET_LEDS | cmd::SCAN_CODE_SET | cmd::SET_TYPEMATIC => {
                self.pending = Some(byte);
                self.reply(&[reply::ACK]);
            }
            cmd::KEY_TYPEMATIC | cmd::KEY_MAKE_BREAK | cmd::KEY_MAKE => {
                // These end the scanning, until it is enabled again.
                self.scanning = false;
                self.pending = Some(byte);
                self.reply(&[reply::ACK]);
            }
            cmd::ECHO => self.reply(&[cmd::ECHO]),
            cmd::READ_ID => self.reply(&[reply::ACK, cmd::ID[0], cmd::ID[1]]),
            cmd::ENABLE => {
                self.keys.clear();
                self.scanning = true;
                self.reply(&[reply::ACK]);
            }
            cmd::DISABLE => {
                self.set_defaults();
                self.scanning = false;
                self.reply(&[reply::ACK]);
            }
            cmd::SET_DEFAULTS => {
                self.set_defaults();
                self.scanning = true;
                self.reply(&[reply::ACK]);
            }
            cmd::ALL_TYPEMATIC | cmd::ALL_MAKE => {
                self.breaks = [0; 32];
                self.reply(&[reply::ACK]);
            }
            cmd::ALL_MAKE_BREAK | cmd::ALL_TYPEMATIC_MAKE_BREAK => {
                self.breaks = [0xff; 32];
                self.reply(&[reply::ACK]);
            }
            cmd::RESEND => self.reply(&[self.last_sent]),
            cmd::RESET => {
                *self = Self { modifiers: self.modifiers, ..Self::new() };
                self.reply(&[reply::ACK, reply::BAT_PASSED]);
            }
            _ => self.reply(&[reply::RESEND]),
        }
    }

    fn write_parameter(&mut self, command: u8, byte: u8) {
        match command {
            cmd::SET_LEDS => self.leds = byte & 7,
            cmd::SET_TYPEMATIC => self.typematic = byte & 0x7f,
            cmd::SCAN_CODE_SET => {
                self.set = match byte {
                    0 => {
                        self.reply(&[reply::ACK, self.set as u8]);
                        return;
                    }
                    1 => ScanCodeSet::Set1,
                    2 => ScanCodeSet::Set2,
                    3 => ScanCodeSet::Set3,
                    _ => {
                        self.reply(&[reply::RESEND]);
                        return;
                    }
                };
                self.keys.clear();
            }
            // A list of keys, up to the next command.
            _ => {
                if let Some(breaks) = self.breaks.get_mut(usize::from(byte / 8)) {
                    let bit = 1 << (byte % 8);
                    *breaks = if command == cmd::KEY_MAKE_BREAK { *breaks | bit } else { *breaks & !bit };
                }
                self.pending = Some(command);
            }
        }
        self.reply(&[reply::ACK]);
    }

    pub(super) fn save(&self) -> KeyboardState {
        let Self { replies, keys, last_sent, scanning, set, leds, typematic, pending, breaks, modifiers } = self;
        KeyboardState {
            replies: replies.to_vec(),
            keys: keys.to_vec(),
            last_sent: *last_sent,
            scanning: *scanning,
            set: *set,
            leds: *leds,
            typematic: *typematic,
            pending: *pending,
            breaks: *breaks,
            modifiers: *modifiers,
        }
    }

    pub(super) fn restore(&mut self, state: &KeyboardState) {
        let KeyboardState { replies, keys, last_sent, scanning, set, leds, typematic, pending, breaks, modifiers } = state;
        *self = Self {
            replies: Fifo::from_entries(replies.iter().copied()),
            keys: Fifo::from_entries(keys.iter().copied()),
            last_sent: *last_sent,
            scanning: *scanning,
            set: *set,
            leds: *leds,
            typematic: *typematic,
            pending: *pending,
            breaks: *breaks,
            modifiers: *modifiers,
        };
    }
}
