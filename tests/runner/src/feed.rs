//! What reaches the guest's console, and when.
//!
//! A UART holds 16 bytes and an operating system discards them when it opens the line: what comes from a pipe must wait until somebody
//! reads it. With the default guest that is known from its prompt; of other guests nothing is known, so they get everything at once.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::lines::{Event, without_controls};

/// When input is passed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pace {
    /// As soon as the console belongs to a guest.
    AtOnce,
    /// A line at each prompt. A guest that has once prompted and then stays silent for `silence` gets the next line, too: a program reads it.
    AtPrompt { silence: Duration },
}

/// The host name in the default guest's prompt, which is `debian:FOLDER# `.
pub const PROMPT_HOST: &str = "debian";

/// Queues input and says what may go now.
#[derive(Debug)]
pub struct Feeder {
    pace: Pace,
    queue: VecDeque<u8>,
    /// A guest owns the console.
    open: bool,
    /// The guest has shown a prompt since it started.
    prompted: bool,
    /// A prompt is waiting for a line.
    ready: bool,
    /// Console output since the last line was sent.
    seen: Vec<u8>,
    last_activity: Instant,
}

/// More output than this between two prompts need not be kept to find the next.
const SEEN_LIMIT: usize = 4096;

impl Feeder {
    #[must_use]
    pub fn new(pace: Pace, now: Instant) -> Self {
        Self { pace, queue: VecDeque::new(), open: false, prompted: false, ready: false, seen: Vec::new(), last_activity: now }
    }

    /// Input arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.queue.extend(bytes);
    }

    /// The hypervisor said something.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::InputTo { .. } => self.open = true,
            Event::Started { .. } | Event::Restarting { .. } | Event::Ended { .. } => {
                self.prompted = false;
                self.ready = false;
                self.seen.clear();
            }
            _ => {}
        }
    }

    /// The console said something.
    pub fn output(&mut self, bytes: &[u8], now: Instant) {
        if self.pace == Pace::AtOnce {
            return;
        }
        self.last_activity = now;
        if self.ready {
            return;
        }
        self.seen.extend_from_slice(bytes);
        if self.seen.len() > SEEN_LIMIT {
            self.seen.drain(..self.seen.len() - SEEN_LIMIT);
        }
        if ends_in_prompt(&String::from_utf8_lossy(&self.seen)) {
            self.prompted = true;
            self.ready = true;
        }
    }

    /// What is to be sent now; empty if nothing is.
    pub fn take(&mut self, now: Instant) -> Vec<u8> {
        if !self.open || self.queue.is_empty() {
            return Vec::new();
        }
        let Pace::AtPrompt { silence } = self.pace else {
            return self.queue.drain(..).collect();
        };
        let silent = now.saturating_duration_since(self.last_activity) >= silence;
        let wanted = self.ready || self.prompted && silent;
        if !wanted {
            return Vec::new();
        }
        self.ready = false;
        self.seen.clear();
        self.last_activity = now;
        let line = self.queue.iter().position(|b| *b == b'\n').map_or(self.queue.len(), |i| i + 1);
        self.queue.drain(..line).collect()
    }
}

/// True if the last line of `text` is a prompt, perhaps with a kernel message behind it.
fn ends_in_prompt(text: &str) -> bool {
    let plain = without_controls(text);
    plain.lines().rev().take(4).any(|line| {
        let Some(rest) = line.strip_prefix(PROMPT_HOST).and_then(|r| r.strip_prefix(':')) else { return false };
        rest.split_once("# ").is_some_and(|(folder, after)| {
            !folder.is_empty() && !folder.contains(char::is_whitespace) && (after.is_empty() || after.starts_with('['))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(3);

    fn feeder() -> (Feeder, Instant) {
        let now = Instant::now();
        let mut feeder = Feeder::new(Pace::AtPrompt { silence: SILENCE }, now);
        feeder.push(b"uname -a\npoweroff -f\n");
        feeder.event(&Event::Started { guest: "x".into() });
        feeder.event(&Event::InputTo { guest: "x".into() });
        (feeder, now)
    }

    #[test]
    fn one_line_a_prompt() {
        let (mut feeder, now) = feeder();
        feeder.output(b"Linux version 6\r\n", now);
        assert!(feeder.take(now + 100 * SILENCE).is_empty(), "silence during start-up is no prompt");
        feeder.output(b"hello\r\ndebian:", now);
        assert!(feeder.take(now).is_empty());
        feeder.output(b"/# \x1b[6n", now);
        assert_eq!(feeder.take(now), b"uname -a\n");
        assert!(feeder.take(now).is_empty());
        feeder.output(b"uname -a\r\nLinux debian\r\n", now);
        assert!(feeder.take(now).is_empty(), "the echo is no prompt");
        feeder.output(b"debian:/tmp# ", now);
        assert_eq!(feeder.take(now), b"poweroff -f\n");
        assert!(feeder.take(now + SILENCE).is_empty(), "the queue is empty");
    }

    #[test]
    fn a_kernel_message_does_not_hide_the_prompt() {
        let (mut feeder, now) = feeder();
        feeder.output(b"debian:/# [    2.5] clocksource: x\r\n[    2.6] y\r\n", now);
        assert_eq!(feeder.take(now), b"uname -a\n");
    }

    #[test]
    fn a_silent_program_gets_its_line() {
        let (mut feeder, now) = feeder();
        feeder.output(b"debian:/# ", now);
        assert_eq!(feeder.take(now), b"uname -a\n");
        feeder.output(b"uname -a\r\n> ", now);
        assert!(feeder.take(now + SILENCE / 2).is_empty());
        assert_eq!(feeder.take(now + SILENCE), b"poweroff -f\n");
    }

    #[test]
    fn a_restart_needs_a_new_prompt() {
        let (mut feeder, now) = feeder();
        feeder.output(b"debian:/# ", now);
        feeder.event(&Event::Restarting { guest: "x".into() });
        assert!(feeder.take(now + 100 * SILENCE).is_empty());
        feeder.output(b"debian:/# ", now);
        assert_eq!(feeder.take(now), b"uname -a\n");
    }

    #[test]
    fn other_guests_get_everything_once_the_console_is_theirs() {
        let now = Instant::now();
        let mut feeder = Feeder::new(Pace::AtOnce, now);
        feeder.push(b"abc");
        assert!(feeder.take(now).is_empty());
        feeder.event(&Event::InputTo { guest: "x".into() });
        assert_eq!(feeder.take(now), b"abc");
        feeder.push(b"d");
        assert_eq!(feeder.take(now), b"d");
    }
}
