//! From a keyboard's scan codes to what a terminal would send: characters of the US layout, control characters, and the control sequences of a
//! VT100 or xterm for the keys that have no character.

use arrayvec::ArrayVec;
use pc_keyboard::{
    DecodedKey, Error, HandleControl, KeyCode, KeyEvent, Modifiers, PS2Keyboard, ScancodeSet1, ScancodeSet2, layouts::Us104Key,
};

/// What one key sends.
pub type Sent = ArrayVec<u8, 6>;

/// Which codes arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScanCodes {
    /// As the PC/XT had them: what the controller makes of the keyboard's own.
    Set1,
    /// The keyboard's own.
    Set2,
}

enum Decoder {
    Set1(PS2Keyboard<Us104Key, ScancodeSet1>),
    Set2(PS2Keyboard<Us104Key, ScancodeSet2>),
}

/// A keyboard's state: modifiers, locks, and the codes of an unfinished sequence.
pub struct Keyboard(Decoder);

impl Keyboard {
    #[must_use]
    pub const fn new(codes: ScanCodes) -> Self {
        const CONTROL: HandleControl = HandleControl::MapLettersToUnicode;
        Self(match codes {
            ScanCodes::Set1 => Decoder::Set1(PS2Keyboard::new(ScancodeSet1::new(), Us104Key, CONTROL)),
            ScanCodes::Set2 => Decoder::Set2(PS2Keyboard::new(ScancodeSet2::new(), Us104Key, CONTROL)),
        })
    }

    /// Takes a byte from the keyboard. Returns what is sent for it: nothing for most.
    pub fn byte(&mut self, byte: u8) -> Sent {
        match &mut self.0 {
            Decoder::Set1(keyboard) => {
                let event = keyboard.add_byte(byte);
                event_sent(event, |event| (keyboard.process_keyevent(event), keyboard.get_modifiers().clone()))
            }
            Decoder::Set2(keyboard) => {
                let event = keyboard.add_byte(byte);
                event_sent(event, |event| (keyboard.process_keyevent(event), keyboard.get_modifiers().clone()))
            }
        }
    }
}

/// Codes that mean nothing (a keyboard's answers to commands, for instance) send nothing.
fn event_sent(event: Result<Option<KeyEvent>, Error>, process: impl FnOnce(KeyEvent) -> (Option<DecodedKey>, Modifiers)) -> Sent {
    let Ok(Some(event)) = event else { return Sent::new() };
    let (Some(key), modifiers) = process(event) else { return Sent::new() };
    match key {
        DecodedKey::Unicode(character) => of_character(character, &modifiers),
        DecodedKey::RawKey(code) => of_key(code, &modifiers),
    }
}

fn of_character(character: char, modifiers: &Modifiers) -> Sent {
    let mut sent = Sent::new();
    // Of the characters here, none is beyond ASCII.
    let Ok(byte) = u8::try_from(u32::from(character)) else { return sent };
    if modifiers.is_alt() {
        sent.push(0x1b);
    }
    match byte {
        b'\n' => sent.push(b'\r'),
        // As the Linux console and xterm have it: the large key sends DEL, and the small one a sequence.
        0x08 => sent.push(0x7f),
        0x7f => {
            sent.clear();
            sent.extend(*b"\x1b[3~");
        }
        // Letters have their control characters already.
        b'[' | b'\\' | b']' if modifiers.is_ctrl() => sent.push(byte & 0x1f),
        _ => sent.push(byte),
    }
    sent
}

fn of_key(code: KeyCode, modifiers: &Modifiers) -> Sent {
    let mut sent = Sent::new();
    let last = match code {
        KeyCode::ArrowUp => b'A',
        KeyCode::ArrowDown => b'B',
        KeyCode::ArrowRight => b'C',
        KeyCode::ArrowLeft => b'D',
        KeyCode::Home => b'H',
        KeyCode::End => b'F',
        KeyCode::Insert | KeyCode::PageUp | KeyCode::PageDown => {
            let number = match code {
                KeyCode::Insert => b'2',
                KeyCode::PageUp => b'5',
                _ => b'6',
            };
            sent.extend([0x1b, b'[', number, b'~']);
            return sent;
        }
        _ => return sent,
    };
    sent.extend(*b"\x1b[");
    if modifiers.is_ctrl() {
        sent.extend(*b"1;5");
    }
    sent.push(last);
    sent
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{string::String, vec::Vec};

    fn typed(codes: ScanCodes, bytes: &[u8]) -> String {
        let mut keyboard = Keyboard::new(codes);
        let sent: Vec<u8> = bytes.iter().flat_map(|&byte| keyboard.byte(byte)).collect();
        sent.escape_ascii().collect::<Vec<u8>>().into_iter().map(char::from).collect()
    }

    fn set1(bytes: &[u8]) -> String {
        typed(ScanCodes::Set1, bytes)
    }

    #[test]
    fn letters_follow_shift_and_caps_lock() {
        // l i s t, each pressed and released
        assert_eq!(set1(&[0x26, 0xa6, 0x17, 0x97, 0x1f, 0x9f, 0x14, 0x94]), "list");
        // Shift+a, a, Caps Lock, a, Shift+a, 1, Shift+1
        assert_eq!(
            set1(&[0x2a, 0x1e, 0x9e, 0xaa, 0x1e, 0x9e, 0x3a, 0xba, 0x1e, 0x36, 0x1e, 0xb6, 0x02, 0x2a, 0x02, 0xaa]),
            "AaAa1!"
        );
    }

    #[test]
    fn control_and_alt_make_what_the_line_editor_knows() {
        // Ctrl-a three times, then a
        assert_eq!(set1(&[0x1d, 0x1e, 0x9e, 0x1e, 0x9e, 0x1e, 0x9e, 0x9d, 0x1e]), "\\x01\\x01\\x01a");
        // Right Ctrl-c, Alt-b, Ctrl-]
        assert_eq!(set1(&[0xe0, 0x1d, 0x2e, 0xe0, 0x9d, 0x38, 0x30, 0xb0, 0xb8, 0x1d, 0x1b, 0x9d]), "\\x03\\x1bb\\x1d");
    }

    #[test]
    fn keys_without_characters_send_sequences() {
        assert_eq!(set1(&[0xe0, 0x48, 0xe0, 0xc8, 0xe0, 0x50, 0xe0, 0x4d, 0xe0, 0x4b]), "\\x1b[A\\x1b[B\\x1b[C\\x1b[D");
        assert_eq!(set1(&[0xe0, 0x47, 0xe0, 0x4f, 0xe0, 0x53, 0xe0, 0x49]), "\\x1b[H\\x1b[F\\x1b[3~\\x1b[5~");
        assert_eq!(set1(&[0x1d, 0xe0, 0x4b, 0x9d]), "\\x1b[1;5D");
        // Enter, both of them, Backspace, Tab, Escape, and F1, which sends nothing
        assert_eq!(set1(&[0x1c, 0xe0, 0x1c, 0x0e, 0x0f, 0x01, 0x3b, 0xbb]), "\\r\\r\\x7f\\t\\x1b");
    }

    #[test]
    fn a_controller_that_does_not_translate() {
        assert_eq!(typed(ScanCodes::Set2, &[0x14, 0x1c, 0xf0, 0x1c, 0xf0, 0x14, 0x1c, 0x5a, 0xe0, 0x75]), "\\x01a\\r\\x1b[A");
    }

    #[test]
    fn answers_to_commands_are_no_keys() {
        assert_eq!(set1(&[0xfa, 0xaa, 0x1e]), "a");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(set2 in any::<bool>(), bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            typed(if set2 { ScanCodes::Set2 } else { ScanCodes::Set1 }, &bytes);
        }
    }
}
