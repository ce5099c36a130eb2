//! The debug console at ports 0xE9 and 0x402: what is written there is text, byte by byte.
//!
//! Bochs' "port E9 hack", which Xen's HVM guests and QEMU's `isa-debugcon` have, too; 0x402 is where SeaBIOS and OVMF write. Reads give
//! 0xE9, by which software tells that it is there.

use crate::PortDevice;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};
use x86defs::{Time, Width};

/// What a read gives.
pub const MAGIC: u8 = 0xe9;
/// Longest line, in bytes; a longer one is broken.
pub const MAX_LINE: usize = 160;

/// Collects bytes to lines.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LineBuffer {
    bytes: Vec<u8>,
}

impl LineBuffer {
    /// Adds a byte; gives the line that it completes, without its end. What cannot be shown is a dot.
    pub fn push(&mut self, byte: u8) -> Option<Vec<u8>> {
        match byte {
            b'\n' => return Some(core::mem::take(&mut self.bytes)),
            b'\r' => {}
            b'\t' | b' '..=b'~' => self.bytes.push(byte),
            _ => self.bytes.push(b'.'),
        }
        (self.bytes.len() >= MAX_LINE).then(|| core::mem::take(&mut self.bytes))
    }
}

/// The console.
#[derive(Debug, Default)]
pub struct DebugConsole {
    buffer: LineBuffer,
    /// The line that the last write has completed.
    line: Option<Vec<u8>>,
}

impl DebugConsole {
    /// The line that the last write has completed.
    pub fn take_line(&mut self) -> Option<Vec<u8>> {
        self.line.take()
    }

    #[must_use]
    pub fn save(&self) -> LineBuffer {
        let Self { buffer, line: _ } = self;
        buffer.clone()
    }

    pub fn restore(&mut self, state: &LineBuffer) {
        *self = Self { buffer: state.clone(), line: None };
    }
}

impl PortDevice for DebugConsole {
    fn port_read(&mut self, _: Time, offset: u16, width: Width) -> u32 {
        crate::ports::read_bytes(offset, width, 1, |_| MAGIC)
    }

    fn port_write(&mut self, _: Time, offset: u16, width: Width, value: u32) {
        crate::ports::write_bytes(offset, width, 1, value, |_, byte| {
            if let Some(line) = self.buffer.push(byte) {
                self.line = Some(line);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_lines() {
        let mut console = DebugConsole::default();
        let mut lines = Vec::new();
        for &byte in b"one\r\n\ntwo\x01\n".iter().chain(&[b'x'; MAX_LINE + 1]) {
            console.port_write(Time(0), 0, Width::Byte, byte.into());
            lines.extend(console.take_line());
        }
        let long = [b'x'; MAX_LINE];
        assert_eq!(lines, [&b"one"[..], b"", b"two.", &long]);
        assert_eq!(console.port_read(Time(0), 0, Width::Byte), 0xe9);
        assert_eq!(console.port_read(Time(0), 0, Width::Word), 0xffe9);
    }
}
