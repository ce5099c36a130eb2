//! The operator's shell: xl's verbs on the hypervisor's console.
//!
//! It is fed byte by byte ([`Shell::input`]), never waits, and keeps what it has to say until the console has room ([`Shell::pump`]). All that
//! it knows about the host it asks an [`Operator`].

mod command;
mod complete;
mod editor;
mod exec;
mod keys;
pub mod operator;
mod verb;

pub use command::{Command, CommandError, Misuse, TriggerKind, parse};
pub use operator::{DebugKey, GuestFlags, GuestInfo, HostInfo, Operator, OperatorError, Start, Trigger, VcpuActivity, VcpuInfo};
pub use verb::Verb;

use crate::log;
use alloc::vec::Vec;
use core::fmt::{self, Write as _};
use editor::{Completion, Edited, Editor};
use exec::Sample;
use keys::Decoder;
use x86defs::{Platform, Time};

const PROMPT: &str = "bulkhead> ";
/// With so much still to be shown, no more input is wanted, in bytes.
const BUSY: usize = 4096;
/// Most bytes that are put on the console at once.
const CHUNK: usize = 1024;

/// What the operator must confirm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Question {
    Reset,
    PowerOff,
}

impl Question {
    const fn prompt(self) -> &'static str {
        match self {
            Self::Reset => "restart the host all the same? [y/N] ",
            Self::PowerOff => "switch the host off all the same? [y/N] ",
        }
    }

    fn act(self, operator: &dyn Operator) {
        match self {
            Self::Reset => operator.reset(),
            Self::PowerOff => operator.power_off(),
        }
    }
}

/// The shell. There is one for the host.
#[derive(Debug, Default)]
pub struct Shell {
    decoder: Decoder,
    editor: Editor,
    /// What is to be shown, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    /// Prompt and line are on the terminal, as far as `out` has been sent.
    shown: bool,
    greeted: bool,
    question: Option<Question>,
    /// Up to this position of the log, `dmesg -c` has been there.
    forgotten: u64,
    samples: Vec<Sample>,
    sampled: Time,
}

impl Shell {
    /// False while there is so much to show that more input had better wait.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.pending() < BUSY
    }

    /// True if there is something to show that the console had no room for.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.pending() > 0
    }

    fn pending(&self) -> usize {
        self.out.len() - self.sent.min(self.out.len())
    }

    /// Takes a byte that was typed. Commands are carried out before this returns, after what was typed has been put on the console: what the
    /// host logs meanwhile comes below it.
    pub fn input<P: Platform>(&mut self, byte: u8, platform: &P, operator: &dyn Operator) {
        if log::at_line_start() && !self.has_output() {
            // Others have written since the line was shown.
            self.shown = false;
        }
        self.take(byte, operator, &mut |bytes| put(platform, &log::hold(), bytes));
    }

    fn take(&mut self, byte: u8, operator: &dyn Operator, write: &mut dyn FnMut(&[u8]) -> usize) {
        self.show();
        let Some(key) = self.decoder.byte(byte) else { return };
        let asked = self.question.is_some();
        let mut complete = |line: &[u8]| if asked { Completion::default() } else { complete::complete(line, operator) };
        match self.editor.key(key, &mut complete, &mut self.out) {
            Edited::Nothing => {}
            Edited::Cancelled => {
                self.question = None;
                self.shown = false;
            }
            Edited::Line(line) => {
                self.shown = false;
                self.send(write);
                // What the editor lets in is ASCII.
                self.line(core::str::from_utf8(&line).unwrap_or_default(), operator);
            }
        }
    }

    fn line(&mut self, line: &str, operator: &dyn Operator) {
        if let Some(question) = self.question.take() {
            if ["y", "yes"].iter().any(|yes| line.trim().eq_ignore_ascii_case(yes)) {
                question.act(operator);
            }
            return;
        }
        let result = match parse(line) {
            Ok(None) => return,
            Ok(Some(command)) => self.execute(command, operator).map_err(|failure| {
                let verb = line.split_ascii_whitespace().next().unwrap_or_default();
                writeln!(self.screen(), "{verb}: {failure}")
            }),
            Err(error) => Err(writeln!(self.screen(), "{error}")),
        };
        // Writing to memory does not fail.
        let _ = result;
    }

    /// Shows the prompt, and what has been typed so far, if they are not on the terminal.
    fn show(&mut self) {
        if core::mem::replace(&mut self.shown, true) {
            return;
        }
        if !core::mem::replace(&mut self.greeted, true) {
            self.screen().bytes(b"The hypervisor's shell: help lists its verbs.\n");
        }
        let prompt = self.question.map_or(PROMPT, Question::prompt);
        self.editor.show(prompt, &mut self.out);
    }

    /// Puts what there is to show on the console, as far as that has room. `focused` says whether the input goes to the shell: if so, the
    /// prompt is shown, again if others have written to the console since.
    pub fn pump<P: Platform>(&mut self, platform: &P, focused: bool) {
        let idle = !self.has_output();
        if idle && (!focused || self.shown && !log::at_line_start()) {
            self.shown &= focused;
            return;
        }
        // Nothing of what others write gets between looking at the cursor's line and writing there.
        let held = log::hold();
        let interrupted = idle && log::at_line_start();
        if focused && idle && !self.shown {
            held.fresh_line();
        }
        let was_pending = self.flush(focused, interrupted, &mut |bytes| put(platform, &held, bytes));
        if was_pending && self.shown && !self.has_output() {
            held.note_transient(self.editor.columns());
        }
    }

    /// True if there was something to show.
    fn flush(&mut self, focused: bool, interrupted: bool, write: &mut dyn FnMut(&[u8]) -> usize) -> bool {
        if !focused || interrupted {
            // It is shown again below, or when the input comes back.
            self.shown = false;
        }
        if focused {
            self.show();
        }
        let pending = self.has_output();
        self.send(write);
        pending
    }

    fn send(&mut self, write: &mut dyn FnMut(&[u8]) -> usize) {
        while let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let part = rest.get(..CHUNK).unwrap_or(rest);
            // Whole lines, if there are any: the log may write in between.
            let end = part.iter().rposition(|&b| b == b'\n').map_or(part.len(), |at| at + 1);
            let count = write(part.get(..end).unwrap_or(part));
            if count == 0 {
                return;
            }
            self.sent += count;
        }
        self.out.clear();
        self.sent = 0;
    }
}

/// Puts bytes on the console, as far as it has room, and tells the log where they leave the cursor.
fn put<P: Platform>(platform: &P, held: &log::Held, bytes: &[u8]) -> usize {
    let count = platform.console_write(bytes);
    if let Some(last) = bytes.get(..count).and_then(<[u8]>::last) {
        held.note_column(*last == b'\n');
    }
    count
}

/// Text for the terminal: LF becomes CR LF, other control characters a question mark.
struct Screen<'a>(&'a mut Vec<u8>);

impl Screen<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\n' => self.0.extend_from_slice(b"\r\n"),
                0x00..=0x08 | 0x0b..=0x1f | 0x7f => self.0.push(b'?'),
                _ => self.0.push(byte),
            }
        }
    }
}

impl fmt::Write for Screen<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes(text.as_bytes());
        Ok(())
    }
}

#[cfg(any(test, feature = "testing"))]
pub mod fake;
#[cfg(test)]
mod tests;
