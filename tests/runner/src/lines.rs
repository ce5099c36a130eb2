//! The hypervisor's console lines, as far as tools act on them.
//!
//! Guest output is passed through raw and shares the console; what the hypervisor says starts with `(BH) `.

use std::fmt;

/// How a guest ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GuestEnd {
    Poweroff,
    /// By the operator.
    Destroyed,
    Reboot,
    /// The hypervisor's reason.
    Crash(String),
    /// (V << 1) | 1 for a byte V written to the debug-exit port.
    DebugExit(u32),
}

impl fmt::Display for GuestEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poweroff => f.write_str("poweroff"),
            Self::Destroyed => f.write_str("destroyed"),
            Self::Reboot => f.write_str("reboot"),
            Self::Crash(reason) => write!(f, "crash: {reason}"),
            Self::DebugExit(status) => write!(f, "debug-exit status {status}"),
        }
    }
}

/// A line of the hypervisor that says what became of it or of a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The first line: the hypervisor runs. The text after `Bulkhead `.
    Banner(String),
    Started {
        guest: String,
    },
    Ended {
        guest: String,
        how: GuestEnd,
    },
    /// The guest starts anew because its configuration says so for this kind of end.
    Restarting {
        guest: String,
    },
    /// A configuration was not accepted. `line` is absent if the fault is not in a line (a missing key).
    BadConfig {
        file: String,
        line: Option<u32>,
        /// `KEY: REASON`.
        what: String,
    },
    Refused {
        guest: String,
    },
    /// From now on what is typed reaches this guest.
    InputTo {
        guest: String,
    },
    AllEnded,
    /// The hypervisor itself failed.
    Panic(String),
}

const PREFIX: &str = "(BH) ";

impl Event {
    /// The event that a console line (without its end) reports, if it is one. A line that a guest left unfinished may precede it.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut text = match line.strip_prefix(PREFIX) {
            Some(text) => text,
            None => &line[line.rfind(PREFIX)? + PREFIX.len()..],
        };
        // `console_timestamps=` puts a time in brackets first.
        if let Some(stamped) = text.strip_prefix('[') {
            text = stamped.split_once("] ")?.1;
        }
        Self::parse_text(text.trim_end())
    }

    fn parse_text(text: &str) -> Option<Self> {
        if text == "all guests ended" {
            return Some(Self::AllEnded);
        }
        if let Some(version) = text.strip_prefix("Bulkhead ") {
            return Some(Self::Banner(version.to_owned()));
        }
        if let Some(message) = text.strip_prefix("PANIC: ") {
            return Some(Self::Panic(message.to_owned()));
        }
        if let Some(guest) = text.strip_prefix("console: input goes to guest ") {
            return Some(Self::InputTo { guest: guest.to_owned() });
        }
        if let Some(rest) = text.strip_prefix("config ") {
            return Self::parse_config(rest);
        }
        let (guest, what) = text.strip_prefix("guest ")?.split_once(": ")?;
        let guest = guest.to_owned();
        Some(match what {
            "started" => Self::Started { guest },
            "refused" => Self::Refused { guest },
            "ended: poweroff" => Self::Ended { guest, how: GuestEnd::Poweroff },
            "ended: reboot" => Self::Ended { guest, how: GuestEnd::Reboot },
            "ended: destroyed" => Self::Ended { guest, how: GuestEnd::Destroyed },
            _ if what.starts_with("restarting (") || what.starts_with("kept as ") && what.ends_with(", restarting") => {
                Self::Restarting { guest }
            }
            _ if what.starts_with("refused: ") || what.starts_with("refused (") => Self::Refused { guest },
            _ => {
                let how = if let Some(reason) = what.strip_prefix("ended: crash: ") {
                    GuestEnd::Crash(reason.to_owned())
                } else {
                    GuestEnd::DebugExit(what.strip_prefix("ended: debug-exit status ")?.parse().ok()?)
                };
                Self::Ended { guest, how }
            }
        })
    }

    fn parse_config(rest: &str) -> Option<Self> {
        let (place, what) = rest.split_once(": ")?;
        let (file, line) = match place.rsplit_once(':').map(|(file, line)| (file, line.parse())) {
            Some((file, Ok(line))) => (file, Some(line)),
            _ => (place, None),
        };
        Some(Self::BadConfig { file: file.to_owned(), line, what: what.to_owned() })
    }
}

/// True if the hypervisor, not a guest, wrote this line.
#[must_use]
pub fn is_hypervisor_line(line: &str) -> bool {
    line.starts_with(PREFIX)
}

/// Cuts a byte stream into lines.
#[derive(Default, Debug)]
pub struct LineSplitter {
    partial: Vec<u8>,
}

/// Longer lines are cut here, so that a guest that never ends one costs no memory.
const LONGEST_LINE: usize = 1 << 16;

impl LineSplitter {
    /// Takes more of the stream; calls `each` with every line that is now complete, without its CR and LF.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for &byte in bytes {
            if byte == b'\n' || self.partial.len() == LONGEST_LINE {
                self.emit(&mut each);
            }
            if byte != b'\n' {
                self.partial.push(byte);
            }
        }
    }

    /// Hands out what is left of an unfinished line, at the end of the stream.
    pub fn finish(&mut self, mut each: impl FnMut(&str)) {
        if !self.partial.is_empty() {
            self.emit(&mut each);
        }
    }

    fn emit(&mut self, each: &mut impl FnMut(&str)) {
        let text = String::from_utf8_lossy(&self.partial);
        each(text.trim_matches('\r'));
        self.partial.clear();
    }

    /// The line that has no end yet.
    #[must_use]
    pub fn partial(&self) -> &[u8] {
        &self.partial
    }
}

/// `text` without terminal control sequences (ECMA-48 CSI sequences, two-character escapes, and controls but tab and LF).
#[must_use]
pub fn without_controls(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => {
                if chars.next() == Some('[') {
                    // Parameter and intermediate bytes are 0x20..=0x3f, the final byte is above.
                    for c in chars.by_ref() {
                        if !(' '..='?').contains(&c) {
                            break;
                        }
                    }
                }
            }
            '\t' | '\n' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(name: &str) -> String {
        name.to_owned()
    }

    #[test]
    fn every_agreed_line() {
        let ended = |how| Event::Ended { guest: guest("debian"), how };
        for (line, event) in [
            ("(BH) Bulkhead 0.1.0 (x)", Event::Banner("0.1.0 (x)".into())),
            ("(BH) guest debian: started", Event::Started { guest: guest("debian") }),
            ("(BH) guest debian: ended: poweroff", ended(GuestEnd::Poweroff)),
            ("(BH) guest debian: ended: reboot", ended(GuestEnd::Reboot)),
            ("(BH) guest debian: ended: crash: triple fault: rip 0x10", ended(GuestEnd::Crash("triple fault: rip 0x10".into()))),
            ("(BH) guest debian: ended: debug-exit status 33", ended(GuestEnd::DebugExit(33))),
            ("(BH) guest debian: restarting (on_reboot)", Event::Restarting { guest: guest("debian") }),
            ("(BH) guest debian: kept as debian-1, restarting", Event::Restarting { guest: guest("debian") }),
            (
                "(BH) config a.cfg:3: vcpus: 2 is too many: 1 is the most",
                Event::BadConfig { file: "a.cfg".into(), line: Some(3), what: "vcpus: 2 is too many: 1 is the most".into() },
            ),
            (
                "(BH) config a.cfg: kernel: missing",
                Event::BadConfig { file: "a.cfg".into(), line: None, what: "kernel: missing".into() },
            ),
            ("(BH) guest a.cfg: refused", Event::Refused { guest: guest("a.cfg") }),
            ("(BH) console: input goes to guest debian", Event::InputTo { guest: guest("debian") }),
            ("(BH) all guests ended", Event::AllEnded),
            ("(BH) PANIC: boom: at x", Event::Panic("boom: at x".into())),
        ] {
            assert_eq!(Event::parse(line), Some(event.clone()), "{line}");
            let stamped = line.replace("(BH) ", "(BH) [    1.234567] ");
            assert_eq!(Event::parse(&stamped), Some(event), "{stamped}");
        }
    }

    #[test]
    fn other_lines_are_no_events() {
        for line in [
            "",
            "(BH)",
            "(BH) ",
            "(BH) [1.0",
            "(BH) memory: 1024 MiB",
            "(BH) guest debian: 512 MiB",
            "(BH) guest debian: ended: debug-exit status many",
            "all guests ended",
            "debian:/# echo '(BH) all guests ended'",
        ] {
            assert_eq!(Event::parse(line), None, "{line}");
        }
    }

    #[test]
    fn an_event_may_follow_an_unfinished_guest_line() {
        assert_eq!(Event::parse("debian:/# (BH) all guests ended"), Some(Event::AllEnded));
    }

    #[test]
    fn lines_are_cut_at_lf_wherever_the_reads_fall() {
        let mut lines = Vec::new();
        let mut splitter = LineSplitter::default();
        for part in ["on", "e\r\ntw", "o\n", "\n", "rest"] {
            splitter.push(part.as_bytes(), |l| lines.push(l.to_owned()));
        }
        assert_eq!(lines, ["one", "two", ""]);
        assert_eq!(splitter.partial(), b"rest");
        splitter.finish(|l| lines.push(l.to_owned()));
        assert_eq!(lines.last().unwrap(), "rest");
    }

    #[test]
    fn endless_lines_are_cut() {
        let mut count = 0;
        let mut splitter = LineSplitter::default();
        splitter.push(&vec![b'x'; 3 * LONGEST_LINE + 1], |l| {
            assert_eq!(l.len(), LONGEST_LINE);
            count += 1;
        });
        assert_eq!((count, splitter.partial().len()), (3, 1));
    }

    #[test]
    fn controls_vanish() {
        assert_eq!(without_controls("\x1b[2J\x1b[01;31mred\x1b[0m\r\n\x1b7x\x1b["), "red\nx");
    }

    proptest::proptest! {
        #[test]
        fn no_input_panics(bytes: Vec<u8>, line: String) {
            LineSplitter::default().push(&bytes, |l| { let _ = Event::parse(l); });
            let _ = Event::parse(&format!("(BH) {line}"));
            let _ = without_controls(&line);
        }
    }
}
