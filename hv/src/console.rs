//! The host console shared among guests: each guest's output with its name where there are several, input to one of them.

use crate::log;
use alloc::{string::String, vec::Vec};
use core::sync::atomic::{AtomicU32, Ordering};
use spin::Mutex;
use x86defs::Platform;

/// Bytes of output kept per guest.
const HISTORY: usize = 16 * 1024;
/// Longest unfinished line of a guest in the background; a longer one is shown in pieces.
const LINE: usize = 256;
/// No guest has the input.
const NOBODY: u32 = u32::MAX;

/// What one guest has written to its serial port: its history, and the line it is at when it is not in the foreground.
#[derive(Debug, Default)]
pub struct GuestConsole {
    inner: Mutex<Output>,
}

#[derive(Debug, Default)]
struct Output {
    history: Vec<u8>,
    /// Where the next byte goes once `history` is full.
    next: usize,
    /// The unfinished line of a background guest, not shown yet.
    line: Vec<u8>,
}

impl GuestConsole {
    /// The last bytes written, oldest first.
    #[must_use]
    pub fn history(&self) -> Vec<u8> {
        let output = self.inner.lock();
        let (new, old) = output.history.split_at(output.next.min(output.history.len()));
        [old, new].concat()
    }
}

impl Output {
    fn keep(&mut self, byte: u8) {
        if self.history.len() < HISTORY {
            self.history.push(byte);
        } else if let Some(slot) = self.history.get_mut(self.next) {
            *slot = byte;
            self.next = (self.next + 1) % HISTORY;
        }
    }
}

/// Who has the host's console.
#[derive(Debug)]
pub struct Console {
    /// The guest whose output is shown raw and who gets the input.
    focus: AtomicU32,
}

impl Default for Console {
    fn default() -> Self {
        Self { focus: AtomicU32::new(NOBODY) }
    }
}

impl Console {
    /// The guest that has the input.
    pub fn focus(&self) -> Option<u32> {
        Some(self.focus.load(Ordering::Relaxed)).filter(|&id| id != NOBODY)
    }

    /// Gives the input to a guest, or to nobody.
    pub fn set_focus(&self, guest: Option<u32>) {
        self.focus.store(guest.unwrap_or(NOBODY), Ordering::Relaxed);
    }

    /// Shows one byte of guest `id`'s output. False if the host's console is full: offer it again later.
    pub fn write<P: Platform>(&self, platform: &P, id: u32, name: &str, guest: &GuestConsole, byte: u8) -> bool {
        let mut output = guest.inner.lock();
        if self.focus() == Some(id) {
            if !flush_line(platform, &mut output, None) || platform.console_write(&[byte]) == 0 {
                return false;
            }
            log::note_column(byte == b'\n' || byte == b'\r');
        } else {
            if byte == b'\n' || output.line.len() >= LINE {
                if !flush_line(platform, &mut output, Some(name)) {
                    return false;
                }
                if byte != b'\n' {
                    output.line.push(byte);
                }
            } else if byte != b'\r' {
                output.line.push(byte);
            }
        }
        output.keep(byte);
        true
    }

    /// Shows what a guest left unfinished, at its end.
    pub fn finish<P: Platform>(&self, platform: &P, name: &str, guest: &GuestConsole) {
        let mut output = guest.inner.lock();
        if !output.line.is_empty() {
            flush_line(platform, &mut output, Some(name));
        }
    }
}

/// Puts the pending line of a background guest on the console: with its name as a line of its own, or (when the guest has come to the
/// foreground) as it is. False if the console has no room; nothing is lost then.
fn flush_line<P: Platform>(platform: &P, output: &mut Output, name: Option<&str>) -> bool {
    if name.is_none() && output.line.is_empty() {
        return true;
    }
    let mut text = String::new();
    if let Some(name) = name {
        log::fresh_line();
        text = alloc::format!("({name}) ");
    }
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(&output.line);
    if name.is_some() {
        bytes.extend_from_slice(b"\r\n");
    }
    // The console takes all or nothing of what fits its ring, which is far longer than a line.
    if platform.console_write(&bytes) < bytes.len() {
        return false;
    }
    output.line.clear();
    log::note_column(name.is_some());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakePlatform;

    fn shown(platform: &FakePlatform) -> String {
        String::from_utf8(core::mem::take(&mut platform.output.lock().unwrap())).unwrap()
    }

    #[test]
    fn foreground_is_raw_and_background_is_prefixed_by_line() {
        let platform = FakePlatform::new();
        let console = Console::default();
        let (a, b) = (GuestConsole::default(), GuestConsole::default());
        console.set_focus(Some(1));
        for byte in b"ab" {
            assert!(console.write(&platform, 1, "a", &a, *byte));
        }
        assert_eq!(shown(&platform), "ab");
        for byte in b"one\r\ntwo" {
            assert!(console.write(&platform, 2, "b", &b, *byte));
        }
        assert!(shown(&platform).ends_with("(b) one\r\n"));
        console.finish(&platform, "b", &b);
        assert!(shown(&platform).ends_with("(b) two\r\n"));
        assert_eq!(b.history(), b"one\r\ntwo");
    }

    #[test]
    fn history_keeps_the_newest() {
        let guest = GuestConsole::default();
        for n in 0..HISTORY + 3 {
            guest.inner.lock().keep(n as u8);
        }
        let history = guest.history();
        assert_eq!(history.len(), HISTORY);
        assert_eq!(history[0], 3);
        assert_eq!(*history.last().unwrap(), (HISTORY + 2) as u8);
    }
}
