//! The host console shared among the hypervisor's shell and the guests: who has the input, and what is shown of whose output.
//!
//! One of them has the input: the shell, or a guest, whose output is then shown as it is. What other guests write is shown line by line with
//! their names, or kept until the operator switches to them (`guest_output=`). Keys are switched as in Xen (`conswitch=`): a control character
//! three times goes on to the next; one or two of it that something else follows are passed on with that.

use crate::{
    log,
    options::{ConsoleSwitch, FirstInput, GuestOutput, Options},
};
use alloc::{collections::VecDeque, string::String, vec::Vec};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use spin::Mutex;
use x86defs::Platform;

/// Bytes of output kept per guest.
const HISTORY: usize = 16 * 1024;
/// Longest unfinished line of a guest in the background; a longer one is shown in pieces.
const LINE: usize = 256;
/// Bytes typed for a guest that it has not taken yet. They are kept here, and not in front of the console, so that the operator can always
/// switch away from a guest that takes no input.
const TYPED: usize = 64 * 1024;
/// Most that is shown at once of what a guest wrote before the operator switched to it.
const CHUNK: usize = 1024;
/// Most that is shown, at a guest's end, of what it wrote in the background and nobody has seen.
const LAST_WORDS: u64 = 2048;
/// So many ms after its last byte, a line that the guest with the input has not ended is taken for a prompt: others may write below it.
const STILL_MS: u64 = 100;
/// So many ms after its first byte, they may in any case.
const LONG_LINE_MS: u64 = 1000;
/// So many switch characters in a row switch.
const SWITCH: u8 = 3;
/// No guest has the input.
const NOBODY: u32 = u32::MAX;

/// What one guest has written to its serial port, and what has been typed for it.
#[derive(Debug, Default)]
pub struct GuestConsole {
    inner: Mutex<Output>,
    typed: Mutex<VecDeque<u8>>,
    /// There is something in `typed`: asked for more often than there is.
    has_typed: AtomicBool,
}

#[derive(Debug, Default)]
struct Output {
    history: Vec<u8>,
    /// Bytes ever written: the position after the newest.
    end: u64,
    /// Up to this position the output has been shown, or is in `line`.
    shown: u64,
    /// The unfinished line of a background guest, not shown yet.
    line: Vec<u8>,
    /// The guest has ended: what it has written cannot wait.
    ended: bool,
}

impl GuestConsole {
    /// The last bytes written, oldest first.
    #[must_use]
    pub fn history(&self) -> Vec<u8> {
        let output = self.inner.lock();
        output.from(output.start()).collect()
    }

    /// The guest writes no more; whatever it has written is shown at once from now on.
    pub fn end(&self) {
        self.inner.lock().ended = true;
    }

    /// Keeps bytes typed for the guest until it takes them. False if there is no room for them all; those that fit are kept.
    pub fn type_in(&self, bytes: &[u8]) -> bool {
        let mut typed = self.typed.lock();
        let room = TYPED.saturating_sub(typed.len());
        typed.extend(bytes.iter().copied().take(room));
        self.has_typed.store(!typed.is_empty(), Ordering::Release);
        bytes.len() <= room
    }

    /// True if the guest has not taken all that was typed for it.
    #[must_use]
    pub fn has_typed(&self) -> bool {
        self.has_typed.load(Ordering::Acquire)
    }

    /// The next byte typed for the guest. Ask only when it can take one.
    pub fn take_typed(&self) -> Option<u8> {
        let mut typed = self.typed.lock();
        let byte = typed.pop_front();
        self.has_typed.store(!typed.is_empty(), Ordering::Release);
        byte
    }
}

impl Output {
    fn keep(&mut self, byte: u8) {
        let at = (self.end % HISTORY as u64) as usize;
        match self.history.get_mut(at) {
            Some(slot) => *slot = byte,
            None => self.history.push(byte),
        }
        self.end += 1;
    }

    /// The position of the oldest byte that is kept.
    fn start(&self) -> u64 {
        self.end.saturating_sub(HISTORY as u64)
    }

    /// What is kept from a position on.
    fn from(&self, position: u64) -> impl Iterator<Item = u8> {
        (position.max(self.start())..self.end).filter_map(|at| self.history.get((at % HISTORY as u64) as usize).copied())
    }

    fn behind(&self) -> bool {
        self.shown < self.end || !self.line.is_empty()
    }

    /// Shows a byte of a guest in the background, a line at a time. False if the console has no room; the byte has not been taken then.
    fn in_background<P: Platform>(&mut self, platform: &P, name: &str, byte: u8) -> bool {
        let full = self.line.len() >= LINE;
        if (byte == b'\n' || full) && !self.flush_line(platform, Some(name)) {
            return false;
        }
        if byte != b'\n' && byte != b'\r' {
            self.line.push(byte);
        }
        true
    }

    /// Shows what the guest that has the input wrote before it had it. False if the console has no room for the rest.
    fn catch_up<P: Platform>(&mut self, platform: &P, name: &str) -> bool {
        if !self.flush_line(platform, None) {
            return false;
        }
        let lost = self.start().saturating_sub(self.shown);
        if lost > 0 {
            log::always!("console: {lost} bytes of guest {name}'s output are not kept any more");
            self.shown += lost;
        }
        while self.shown < self.end {
            let part: Vec<u8> = self.from(self.shown).take(CHUNK).collect();
            let held = log::hold();
            let count = platform.console_write(&part);
            if count == 0 {
                return false;
            }
            self.shown += count as u64;
            held.note_column(part.get(count - 1).is_none_or(|&b| b == b'\n' || b == b'\r'));
        }
        true
    }

    /// Puts the pending line of a background guest on the console: with its name as a line of its own, or (when the guest has come to the
    /// foreground) as it is. False if the console has no room; nothing is lost then.
    fn flush_line<P: Platform>(&mut self, platform: &P, name: Option<&str>) -> bool {
        if name.is_none() && self.line.is_empty() {
            return true;
        }
        let mut bytes = name.map_or_else(String::new, |name| alloc::format!("({name}) ")).into_bytes();
        bytes.extend_from_slice(&self.line);
        if name.is_some() {
            bytes.extend_from_slice(b"\r\n");
        }
        let held = log::hold();
        if name.is_some() {
            held.fresh_line();
        }
        // The console takes all or nothing of what fits its ring, which is far longer than a line.
        if platform.console_write(&bytes) < bytes.len() {
            return false;
        }
        self.line.clear();
        held.note_column(name.is_some());
        true
    }
}

/// The line that the guest with the input is writing: TSC values.
#[derive(Debug, Default)]
struct RawLine {
    /// Of its first byte; 0 if there is none.
    first: AtomicU64,
    last: AtomicU64,
}

impl RawLine {
    fn wrote(&self, byte: u8, tsc: u64) {
        if byte == b'\n' || byte == b'\r' {
            self.first.store(0, Ordering::Relaxed);
            return;
        }
        // Only one guest has the input, so nobody else stores here but in the moment of a switch.
        if self.first.load(Ordering::Relaxed) == 0 {
            self.first.store(tsc, Ordering::Relaxed);
        }
        self.last.store(tsc, Ordering::Relaxed);
    }

    /// True while the rest of the line can be expected at any moment.
    fn goes_on<P: Platform>(&self, platform: &P) -> bool {
        let (first, last) = (self.first.load(Ordering::Relaxed), self.last.load(Ordering::Relaxed));
        let (now, per_ms) = (platform.tsc(), platform.tsc_hz() / 1000);
        let within = |since: u64, ms: u64| now.saturating_sub(since) < ms.saturating_mul(per_ms);
        first != 0 && within(last, STILL_MS) && within(first, LONG_LINE_MS)
    }
}

/// What a typed byte means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Key {
    /// It may be part of a switch sequence: nothing yet.
    Held,
    /// Bytes for the hypervisor's shell.
    Shell(Typed),
    /// Bytes for this guest.
    Guest(u32, Typed),
    /// The input has been switched to this guest, or to the shell. Say so by [`announce`].
    Switched(Option<u32>),
}

/// A key, after switch characters that it has broken the sequence of.
pub type Typed = ArrayVec<u8, { SWITCH as usize }>;

/// Says on the console who has the input: the guest of this name, or the shell.
pub fn announce(guest: Option<&str>) {
    match guest {
        Some(name) => log::always!("console: input goes to guest {name}"),
        None => log::always!("console: input goes to the hypervisor shell"),
    }
}

/// Who has the host's console.
#[derive(Debug)]
pub struct Console {
    /// The guest whose output is shown raw and who gets the input.
    focus: AtomicU32,
    /// A guest that starts gets the input if no other guest has it: not while the operator is with the shell.
    follow: AtomicBool,
    /// Switch characters that wait for what follows them.
    held: AtomicU8,
    line: RawLine,
    switch: ConsoleSwitch,
    mode: GuestOutput,
}

impl Default for Console {
    fn default() -> Self {
        Self::new(&Options::default())
    }
}

impl Console {
    #[must_use]
    pub fn new(options: &Options) -> Self {
        Self {
            focus: AtomicU32::new(NOBODY),
            follow: AtomicBool::new(options.conswitch.first == FirstInput::Guest),
            held: AtomicU8::new(0),
            line: RawLine::default(),
            switch: options.conswitch,
            mode: options.guest_output,
        }
    }

    /// The guest that has the input; `None` if the shell has it.
    pub fn focus(&self) -> Option<u32> {
        Some(self.focus.load(Ordering::Relaxed)).filter(|&id| id != NOBODY)
    }

    /// Gives the input to a guest, or to the shell.
    pub fn set_focus(&self, guest: Option<u32>) {
        self.focus.store(guest.unwrap_or(NOBODY), Ordering::Relaxed);
    }

    /// True if the next guest that can gets the input: the operator has not chosen the shell.
    pub fn follows(&self) -> bool {
        self.follow.load(Ordering::Relaxed)
    }

    /// A guest has started. True if it has got the input, since no other guest had it and the operator has not chosen the shell.
    pub fn guest_started(&self, id: u32) -> bool {
        self.follow.load(Ordering::Relaxed)
            && self.focus.compare_exchange(NOBODY, id, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// A guest has ended. True if it had the input, which then goes to the next guest that starts, unless it is given to another.
    pub fn guest_ended(&self, id: u32) -> bool {
        let had_focus = self.focus.compare_exchange(id, NOBODY, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if had_focus {
            self.follow.store(true, Ordering::Relaxed);
        }
        had_focus
    }

    /// A byte has been typed. `guests` are those that can have the input, in the order in which it goes round. To be called on one CPU at a
    /// time, in the order in which the console is read.
    pub fn key(&self, byte: u8, guests: &[u32]) -> Key {
        let held = self.held.load(Ordering::Relaxed);
        if Some(byte) == self.switch.code {
            let complete = held + 1 >= SWITCH;
            self.held.store(if complete { 0 } else { held + 1 }, Ordering::Relaxed);
            return if complete { Key::Switched(self.go_on(guests)) } else { Key::Held };
        }
        self.held.store(0, Ordering::Relaxed);
        // Fewer than SWITCH are held, so there is room for this one.
        let earlier = (1..SWITCH).filter_map(|n| self.switch.code.filter(|_| n <= held));
        let typed = earlier.chain([byte]).collect();
        match self.focus() {
            Some(guest) => Key::Guest(guest, typed),
            None => {
                self.follow.store(false, Ordering::Relaxed);
                Key::Shell(typed)
            }
        }
    }

    /// Switches the input: from the shell to the first guest, from one guest to the next, from the last one to the shell.
    fn go_on(&self, guests: &[u32]) -> Option<u32> {
        let next = match self.focus() {
            None => guests.first(),
            Some(id) => guests.iter().position(|&guest| guest == id).and_then(|at| guests.get(at + 1)),
        };
        let next = next.copied();
        self.set_focus(next);
        self.follow.store(false, Ordering::Relaxed);
        next
    }

    /// Shows one byte of guest `id`'s output. False if the host's console is full, or another guest is in the middle of a line there: offer it
    /// again later.
    pub fn write<P: Platform>(&self, platform: &P, id: u32, name: &str, guest: &GuestConsole, byte: u8) -> bool {
        let mut output = guest.inner.lock();
        if self.focus() == Some(id) {
            if !output.catch_up(platform, name) {
                return false;
            }
            let held = log::hold();
            if platform.console_write(&[byte]) == 0 {
                return false;
            }
            held.note_column(byte == b'\n' || byte == b'\r');
            self.line.wrote(byte, platform.tsc());
        } else if self.mode == GuestOutput::Switch {
            output.keep(byte);
            return true;
        } else if byte == b'\n' && !output.ended && self.focus().is_some() && self.line.goes_on(platform) {
            // CPU 0 tries again soon.
            platform.kick(0);
            return false;
        } else if !output.in_background(platform, name, byte) {
            return false;
        } else if byte == b'\n' && self.focus().is_none() {
            // The line has come in between what the operator types: the shell, which only this CPU serves, shows it again.
            platform.kick(0);
        }
        output.keep(byte);
        output.shown = output.end;
        true
    }

    /// Shows what guest `id` wrote before it got the input, as far as the host's console has room.
    pub fn catch_up<P: Platform>(&self, platform: &P, id: u32, name: &str, guest: &GuestConsole) {
        if self.focus() == Some(id) {
            let mut output = guest.inner.lock();
            if output.behind() {
                output.catch_up(platform, name);
            }
        }
    }

    /// True if [`Console::catch_up`] has still something to show.
    pub fn is_behind(&self, id: u32, guest: &GuestConsole) -> bool {
        self.focus() == Some(id) && guest.inner.lock().behind()
    }

    /// Shows what a guest left unfinished, at its end, and the last of what nobody has seen.
    pub fn finish<P: Platform>(&self, platform: &P, name: &str, guest: &GuestConsole) {
        let mut output = guest.inner.lock();
        let from = output.shown.max(output.end.saturating_sub(LAST_WORDS));
        let unseen: Vec<u8> = output.from(from).collect();
        output.shown = output.end;
        for byte in unseen {
            // A console that is full now will not be empty in time.
            output.in_background(platform, name, byte);
        }
        if !output.line.is_empty() {
            output.flush_line(platform, Some(name));
        }
    }
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
