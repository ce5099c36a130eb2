//! From a typed line to a command.

use super::{
    operator::{DebugKey, Start},
    verb::{self, Verb},
};
use crate::{
    cpulist::{self, CpuListError},
    cpumask::CpuMask,
};
use alloc::vec::Vec;
use core::fmt;

/// A line that makes sense by itself. Guests are named as they were typed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command<'a> {
    Help(Option<Verb>),
    List(Option<&'a str>),
    /// All guests, if none is named.
    VcpuList(Vec<&'a str>),
    Create {
        config: &'a str,
        start: Start,
        /// Give the guest the console.
        console: bool,
    },
    Destroy(&'a str),
    Pause(&'a str),
    Unpause(&'a str),
    /// All guests, if none is named.
    Shutdown(Option<&'a str>),
    RebootGuest(&'a str),
    RebootHost {
        force: bool,
    },
    PowerOff {
        force: bool,
    },
    Console(&'a str),
    Trigger {
        guest: &'a str,
        kind: TriggerKind,
        vcpu: Option<u32>,
    },
    VcpuPin {
        guest: &'a str,
        /// All, if none is given.
        vcpu: Option<u32>,
        cpus: CpuMask,
    },
    /// Weights and caps of all guests, or of one.
    ShowShares(Option<&'a str>),
    SetShare {
        guest: &'a str,
        weight: Option<u16>,
        cap: Option<u32>,
    },
    Dmesg {
        forget: bool,
    },
    Info,
    Top,
    /// All guests and the host, if none is named.
    Uptime(Vec<&'a str>),
    DebugKeys(&'a str),
}

/// What `trigger` may send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TriggerKind {
    Nmi,
    Power,
    Sleep,
    Reset,
}

/// Why a line is no command. `Display` gives what is wrong, and what would be right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CommandError<'a> {
    /// Verbs that may have been meant.
    UnknownVerb {
        verb: &'a str,
        near: Vec<&'static str>,
    },
    /// xl has this verb.
    UnsupportedVerb {
        verb: &'a str,
    },
    Usage {
        verb: Verb,
        misuse: Misuse<'a>,
    },
}

/// What is wrong with the words after a verb.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misuse<'a> {
    /// Something must follow.
    Missing(&'static str),
    TooMany(&'a str),
    UnknownFlag(&'a str),
    /// xl has this flag or word.
    Unsupported(&'a str),
    /// A flag without the value that must follow it.
    NoValue(&'static str),
    BadValue {
        what: &'static str,
        value: &'a str,
        expected: &'static str,
    },
    Cpus {
        value: &'a str,
        error: CpuListError,
    },
    /// Two things that exclude each other.
    NotTogether(&'static str),
}

impl fmt::Display for CommandError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownVerb { verb, near } => {
                write!(f, "{verb}: unknown verb")?;
                match near.split_last() {
                    None => f.write_str("; help lists those that there are"),
                    Some((last, rest)) => {
                        f.write_str("; did you mean ")?;
                        for (n, verb) in rest.iter().enumerate() {
                            write!(f, "{}{verb}", if n == 0 { "" } else { ", " })?;
                        }
                        write!(f, "{}{last}?", if rest.is_empty() { "" } else { " or " })
                    }
                }
            }
            Self::UnsupportedVerb { verb } => write!(f, "{verb}: known to xl, not supported yet"),
            Self::Usage { verb, misuse } => {
                let entry = verb.entry();
                let blank = if entry.usage.is_empty() { "" } else { " " };
                write!(f, "{}: {misuse}\nusage: {}{blank}{}", entry.name, entry.name, entry.usage)
            }
        }
    }
}

impl fmt::Display for Misuse<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(what) => write!(f, "{what} is missing"),
            Self::TooMany(word) => write!(f, "{word} is too many"),
            Self::UnknownFlag(flag) => write!(f, "{flag} is unknown"),
            Self::Unsupported(word) => write!(f, "{word} is known to xl, not supported yet"),
            Self::NoValue(flag) => write!(f, "{flag} needs a value"),
            Self::BadValue { what, value, expected } => write!(f, "{value} is no {what}, expected {expected}"),
            Self::Cpus { value, error } => write!(f, "{value}: {error}"),
            Self::NotTogether(what) => write!(f, "{what} exclude each other"),
        }
    }
}

/// Reads a line. `Ok(None)` if there is nothing in it.
///
/// # Errors
/// A verb that there is not, or wrong use of one that there is.
pub fn parse(line: &str) -> Result<Option<Command<'_>>, CommandError<'_>> {
    let mut words = line.split_ascii_whitespace();
    let Some(name) = words.next() else { return Ok(None) };
    let Some(verb) = Verb::find(name) else {
        return Err(if verb::xl_knows(name) {
            CommandError::UnsupportedVerb { verb: name }
        } else {
            CommandError::UnknownVerb { verb: name, near: Verb::near(name) }
        });
    };
    let mut words = Words { verb, words: words.collect() };
    words.command().map(Some).map_err(|misuse| CommandError::Usage { verb, misuse })
}

/// The words after the verb, as far as they have not been taken.
struct Words<'a> {
    verb: Verb,
    words: Vec<&'a str>,
}

impl<'a> Words<'a> {
    fn command(&mut self) -> Result<Command<'a>, Misuse<'a>> {
        const GUEST: &str = "a guest's name or id";
        if let Some(flag) = self.words.iter().find(|word| self.verb.entry().unsupported.contains(word)) {
            return Err(Misuse::Unsupported(flag));
        }
        let command = match self.verb {
            Verb::Help => {
                let verb = self.optional();
                let find = |name| {
                    Verb::find(name).ok_or(Misuse::BadValue {
                        what: "verb",
                        value: name,
                        expected: "one of those that help lists",
                    })
                };
                Command::Help(verb.map(find).transpose()?)
            }
            Verb::List => Command::List(self.optional()),
            Verb::VcpuList => Command::VcpuList(self.rest()?),
            Verb::Create => {
                let console = self.flag("-c");
                let start = if self.flag("-p") { Start::Paused } else { Start::Running };
                Command::Create { config: self.need("the name of a boot module")?, start, console }
            }
            Verb::Destroy => Command::Destroy(self.need(GUEST)?),
            Verb::Pause => Command::Pause(self.need(GUEST)?),
            Verb::Unpause => Command::Unpause(self.need(GUEST)?),
            Verb::Shutdown => {
                // xl's -F makes it press the power button, where it would rather talk to a driver in the guest.
                self.flag("-F");
                if self.flag("-a") { Command::Shutdown(None) } else { Command::Shutdown(Some(self.need(GUEST)?)) }
            }
            Verb::Reboot => {
                self.flag("-F");
                let force = self.flag("-f");
                match self.optional() {
                    Some(_) if force => return Err(Misuse::NotTogether("GUEST and -f")),
                    Some(guest) => Command::RebootGuest(guest),
                    None => Command::RebootHost { force },
                }
            }
            Verb::Poweroff => Command::PowerOff { force: self.flag("-f") },
            Verb::Console => Command::Console(self.need(GUEST)?),
            Verb::Trigger => self.trigger(GUEST)?,
            Verb::VcpuPin => self.vcpu_pin(GUEST)?,
            Verb::SchedCredit2 => self.sched_credit2()?,
            Verb::Dmesg => Command::Dmesg { forget: self.flag("-c") },
            Verb::Info => Command::Info,
            Verb::Top => Command::Top,
            Verb::Uptime => Command::Uptime(self.rest()?),
            Verb::DebugKeys => Command::DebugKeys(self.need("at least one key")?),
        };
        match self.next() {
            None => Ok(command),
            Some(word) if is_flag(word) => Err(Misuse::UnknownFlag(word)),
            Some(word) => Err(Misuse::TooMany(word)),
        }
    }

    fn trigger(&mut self, what: &'static str) -> Result<Command<'a>, Misuse<'a>> {
        let guest = self.need(what)?;
        let kind = match self.need("what to send")? {
            "nmi" => TriggerKind::Nmi,
            "power" => TriggerKind::Power,
            "reset" => TriggerKind::Reset,
            "sleep" => TriggerKind::Sleep,
            word @ ("init" | "s3resume") => return Err(Misuse::Unsupported(word)),
            value => return Err(Misuse::BadValue { what: "trigger", value, expected: "nmi, power, sleep or reset" }),
        };
        let vcpu = self.optional().map(vcpu).transpose()?;
        Ok(Command::Trigger { guest, kind, vcpu })
    }

    fn vcpu_pin(&mut self, what: &'static str) -> Result<Command<'a>, Misuse<'a>> {
        let guest = self.need(what)?;
        let vcpu = match self.need("a vCPU's number, or all,")? {
            "all" => None,
            word => Some(vcpu(word)?),
        };
        let value = self.need("a list of host CPUs")?;
        let cpus = cpulist::parse(value).map_err(|error| Misuse::Cpus { value, error })?;
        // xl takes a soft affinity after the hard one. Here it is always all.
        match self.words.first() {
            Some(&("all" | "-")) => drop(self.next()),
            Some(soft) => return Err(Misuse::Unsupported(soft)),
            None => {}
        }
        Ok(Command::VcpuPin { guest, vcpu, cpus })
    }

    fn sched_credit2(&mut self) -> Result<Command<'a>, Misuse<'a>> {
        const CAP: &str = "0 or a percentage of one CPU";
        let guest = self.value("-d")?;
        let weight = self.value("-w")?.map(|value| {
            let weight = value.parse().ok().filter(|&weight| weight > 0 && is_digits(value));
            weight.ok_or(Misuse::BadValue { what: "weight", value, expected: "1 to 65535" })
        });
        let cap = self.value("-c")?.map(|value| {
            value.parse().ok().filter(|_| is_digits(value)).ok_or(Misuse::BadValue { what: "cap", value, expected: CAP })
        });
        match (guest, weight.transpose()?, cap.transpose()?) {
            (guest, None, None) => Ok(Command::ShowShares(guest)),
            (Some(guest), weight, cap) => Ok(Command::SetShare { guest, weight, cap }),
            (None, ..) => Err(Misuse::Missing("-d GUEST")),
        }
    }

    fn next(&mut self) -> Option<&'a str> {
        if self.words.is_empty() { None } else { Some(self.words.remove(0)) }
    }

    /// The next word, unless it is a flag: those that nobody takes are found at the end.
    fn optional(&mut self) -> Option<&'a str> {
        if self.words.first().is_some_and(|word| is_flag(word)) { None } else { self.next() }
    }

    fn need(&mut self, what: &'static str) -> Result<&'a str, Misuse<'a>> {
        match self.next() {
            None => Err(Misuse::Missing(what)),
            Some(word) if is_flag(word) => Err(Misuse::UnknownFlag(word)),
            Some(word) => Ok(word),
        }
    }

    /// All words, none of which may be a flag.
    fn rest(&mut self) -> Result<Vec<&'a str>, Misuse<'a>> {
        match self.words.iter().find(|word| is_flag(word)) {
            Some(flag) => Err(Misuse::UnknownFlag(flag)),
            None => Ok(core::mem::take(&mut self.words)),
        }
    }

    /// Takes a flag, wherever it stands.
    fn flag(&mut self, flag: &str) -> bool {
        let before = self.words.len();
        self.words.retain(|word| *word != flag);
        self.words.len() < before
    }

    /// Takes a flag and its value, `-w 512` or `-w512`, wherever it stands. The last one counts, as for xl.
    fn value(&mut self, flag: &'static str) -> Result<Option<&'a str>, Misuse<'a>> {
        let mut value = None;
        while let Some(at) = self.words.iter().position(|word| word.starts_with(flag)) {
            let attached = self.words.remove(at).strip_prefix(flag).unwrap_or_default();
            value = Some(if !attached.is_empty() {
                attached
            } else if at < self.words.len() {
                self.words.remove(at)
            } else {
                return Err(Misuse::NoValue(flag));
            });
        }
        Ok(value)
    }
}

fn is_flag(word: &str) -> bool {
    word.len() > 1 && word.starts_with('-')
}

/// A number's parser would take a sign.
fn is_digits(word: &str) -> bool {
    word.bytes().all(|b| b.is_ascii_digit())
}

fn vcpu(value: &str) -> Result<u32, Misuse<'_>> {
    let number = value.parse().ok().filter(|_| is_digits(value));
    number.ok_or(Misuse::BadValue { what: "vCPU", value, expected: "a number from 0" })
}

/// The keys of `debug-keys`.
pub(super) const DEBUG_KEYS: [(char, DebugKey, &str); 5] = [
    ('d', DebugKey::Registers, "host CPUs and the registers of the vCPUs that they have"),
    ('m', DebugKey::Memory, "memory to the byte"),
    ('q', DebugKey::Guests, "guests and the registers of their vCPUs"),
    ('r', DebugKey::RunQueues, "run queues"),
    ('t', DebugKey::Time, "clocks"),
];
