//! From the bytes that a terminal sends to keys.
//!
//! Understands what VT100-like terminals, xterm and the Linux console send for the keys that the editor has a use for (ECMA-48, 5.4; xterm's
//! control sequences), and the usual control characters. Any other sequence is taken as a whole and dropped.

/// A key that means something to the editor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EditKey {
    /// Printable ASCII.
    Char(u8),
    Enter,
    Tab,
    /// Deletes to the left.
    Backspace,
    Delete,
    Left,
    Right,
    Home,
    End,
    WordLeft,
    WordRight,
    Up,
    Down,
    /// Deletes to the end of the line.
    KillEnd,
    /// Deletes to the start of the line.
    KillStart,
    /// Deletes the word to the left.
    KillWord,
    /// Deletes the word to the right.
    KillWordRight,
    Redraw,
    /// Drops the line.
    Cancel,
    /// Deletes, or on an empty line says that there is no more.
    EndOfInput,
    /// A byte that cannot be typed into a line.
    Nonsense,
}

/// In the first parameter of a sequence: it is complete.
const COMPLETE: u16 = 1 << 15;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Text,
    /// After CR: an LF that follows is part of the same key.
    CarriageReturn,
    Escape,
    /// After ESC O.
    SingleShift,
    /// After ESC [: its first parameter, and the last one.
    Sequence {
        first: u16,
        last: u16,
    },
    /// After ESC [ [, the Linux console's function keys: one byte follows.
    Function,
}

/// Puts bytes together to keys.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
}

impl Decoder {
    /// The key that this byte completes, if it does.
    pub fn byte(&mut self, byte: u8) -> Option<EditKey> {
        let state = core::mem::take(&mut self.state);
        match state {
            State::CarriageReturn if byte == b'\n' => None,
            State::Text | State::CarriageReturn => self.text(byte),
            State::Escape => self.escape(byte),
            State::SingleShift => Self::cursor(byte, 0),
            State::Sequence { first, last } => self.sequence(byte, first, last),
            State::Function => None,
        }
    }

    fn text(&mut self, byte: u8) -> Option<EditKey> {
        Some(match byte {
            0x20..=0x7e => EditKey::Char(byte),
            b'\r' => {
                self.state = State::CarriageReturn;
                EditKey::Enter
            }
            b'\n' => EditKey::Enter,
            b'\t' => EditKey::Tab,
            0x1b => {
                self.state = State::Escape;
                return None;
            }
            0x08 | 0x7f => EditKey::Backspace,
            0x01 => EditKey::Home,
            0x02 => EditKey::Left,
            0x03 => EditKey::Cancel,
            0x04 => EditKey::EndOfInput,
            0x05 => EditKey::End,
            0x06 => EditKey::Right,
            0x0b => EditKey::KillEnd,
            0x0c => EditKey::Redraw,
            0x0e => EditKey::Down,
            0x10 => EditKey::Up,
            0x15 => EditKey::KillStart,
            0x17 => EditKey::KillWord,
            _ => EditKey::Nonsense,
        })
    }

    fn escape(&mut self, byte: u8) -> Option<EditKey> {
        match byte {
            b'[' => self.state = State::Sequence { first: 0, last: 0 },
            b'O' => self.state = State::SingleShift,
            0x1b => self.state = State::Escape,
            b'b' => return Some(EditKey::WordLeft),
            b'f' => return Some(EditKey::WordRight),
            b'd' => return Some(EditKey::KillWordRight),
            0x08 | 0x7f => return Some(EditKey::KillWord),
            // Somebody pressed the escape key by mistake, and goes on.
            b'\r' | b'\n' | 0x03 => return self.text(byte),
            _ => {}
        }
        None
    }

    fn sequence(&mut self, byte: u8, first: u16, last: u16) -> Option<EditKey> {
        match byte {
            // A sequence that was broken off.
            0x00..=0x1f => return self.text(byte),
            b'0'..=b'9' => {
                let last = last.saturating_mul(10).saturating_add(u16::from(byte - b'0'));
                let first = if first & COMPLETE != 0 { first } else { last & !COMPLETE };
                self.state = State::Sequence { first, last };
            }
            b';' => self.state = State::Sequence { first: first | COMPLETE, last: 0 },
            b'~' => {
                return match first & !COMPLETE {
                    1 | 7 => Some(EditKey::Home),
                    3 => Some(EditKey::Delete),
                    4 | 8 => Some(EditKey::End),
                    _ => None,
                };
            }
            b'[' => self.state = State::Function,
            0x40..=0x7e => return Self::cursor(byte, last),
            _ => self.state = State::Sequence { first, last },
        }
        None
    }

    /// Arrows and the like; `modifier` is xterm's: 3 and 5 for Alt and Ctrl.
    fn cursor(byte: u8, modifier: u16) -> Option<EditKey> {
        Some(match (byte, modifier) {
            (b'A', _) => EditKey::Up,
            (b'B', _) => EditKey::Down,
            (b'C', 3 | 5) => EditKey::WordRight,
            (b'D', 3 | 5) => EditKey::WordLeft,
            (b'C', _) => EditKey::Right,
            (b'D', _) => EditKey::Left,
            (b'H', _) => EditKey::Home,
            (b'F', _) => EditKey::End,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn keys(bytes: &[u8]) -> Vec<EditKey> {
        let mut decoder = Decoder::default();
        bytes.iter().filter_map(|&byte| decoder.byte(byte)).collect()
    }

    #[test]
    fn what_terminals_send() {
        use EditKey::*;
        for (bytes, expected) in [
            (&b"\x1b[A\x1bOB\x1b[C\x1b[D"[..], &[Up, Down, Right, Left][..]),
            (b"\x1b[H\x1bOH\x1b[1~\x1b[7~", &[Home, Home, Home, Home]),
            (b"\x1b[F\x1bOF\x1b[4~\x1b[8~", &[End, End, End, End]),
            (b"\x1b[3~\x1b[3;5~", &[Delete, Delete]),
            (b"\x1b[1;5C\x1b[1;3D\x1b[1;2C\x1bb\x1bf", &[WordRight, WordLeft, Right, WordLeft, WordRight]),
            (b"\x1bd\x1b\x7f", &[KillWordRight, KillWord]),
            (b"a\r\nb\nc\r\rd", &[Char(b'a'), Enter, Char(b'b'), Enter, Char(b'c'), Enter, Enter, Char(b'd')]),
            // Function keys, answers to questions that nobody asked, bracketed paste.
            (b"\x1bOP\x1b[15~\x1b[[Ax\x1b[24;80Rx\x1b[?1;2cx\x1b[200~x\x1b[201~", &[Char(b'x'); 4]),
            (b"\x1b\x1b[Ax", &[Up, Char(b'x')]),
            (b"\x1b\r\x1b[12\x03\x1b\x03", &[Enter, Cancel, Cancel]),
            (b"\x1b[99999999999999999999~x", &[Char(b'x')]),
            (b"\x00\x80\xff\x1a", &[Nonsense; 4]),
        ] {
            assert_eq!(keys(bytes), expected, "{:?}", bytes.escape_ascii());
        }
    }
}
