//! The hypervisor's own command line, in the syntax of Xen's (xen-command-line, Xen 4.17): options separated by blanks,
//! `name`, `no-name`, `name=value`. An option means here what it means there. What Bulkhead does not support is reported by
//! name, never ignored in silence; all problems are reported, and every option without one still counts.

mod serial;
mod xen;

pub use serial::{Baud, Parity, SerialOptions};

use alloc::{string::String, vec::Vec};
use arrayvec::ArrayVec;
use core::fmt;

/// What the command line asks for; [`Options::default`] is what an empty one means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The first serial port (`com1=`).
    pub com1: SerialOptions,
    /// The second serial port (`com2=`).
    pub com2: SerialOptions,
    /// Where the hypervisor's console is (`console=`), in the order given, each once. Empty for `none`.
    pub console: ArrayVec<ConsoleDevice, 3>,
    /// The hypervisor's own messages (`loglvl=`).
    pub loglvl: LogThreshold,
    /// Messages that a guest causes (`guest_loglvl=`).
    pub guest_loglvl: LogThreshold,
    pub console_timestamps: Timestamps,
    /// Stay after a panic of the hypervisor (`noreboot`) rather than reset the machine after 5 s.
    pub noreboot: bool,
    /// Physical addresses from this one on are not used (`mem=`), in bytes.
    pub mem: Option<u64>,
    /// At most so many CPUs are started (`maxcpus=`, `nosmp`); at least one.
    pub maxcpus: Option<u32>,
    /// Local APICs are virtualised by CPUs that can (`apicv=`).
    pub apicv: bool,
    /// How the host's CPUs are shared among the guests (`sched=`).
    pub sched: SchedulerKind,
    /// How far the host's local time is ahead of UTC, in seconds (`utc_offset=`). The host's clock is taken to show UTC.
    pub utc_offset: i64,
    pub conswitch: ConsoleSwitch,
    pub guest_output: GuestOutput,
    pub autostart: Autostart,
    pub on_last_guest: OnLastGuest,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            com1: SerialOptions::at(0x3f8, 4),
            com2: SerialOptions::at(0x2f8, 3),
            console: ArrayVec::from_iter([ConsoleDevice::Com1, ConsoleDevice::Vga]),
            loglvl: LogThreshold { always: LogLevel::Warning, rate_limited: LogLevel::Warning },
            guest_loglvl: LogThreshold { always: LogLevel::None, rate_limited: LogLevel::Warning },
            console_timestamps: Timestamps::None,
            noreboot: false,
            mem: None,
            maxcpus: None,
            apicv: true,
            sched: SchedulerKind::Credit2,
            utc_offset: 0,
            conswitch: ConsoleSwitch::default(),
            guest_output: GuestOutput::Interleave,
            autostart: Autostart::Parallel,
            on_last_guest: OnLastGuest::Stay,
        }
    }
}

/// A device that the hypervisor's console can be on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConsoleDevice {
    Com1,
    Com2,
    /// VGA text, or the framebuffer that the boot loader hands over.
    Vga,
}

/// How important a message is; a threshold lets messages of its own level and above through.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LogLevel {
    /// As a threshold: nothing.
    None,
    Error,
    Warning,
    Info,
    Debug,
    /// As a threshold: everything.
    All,
}

impl LogLevel {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "none" => Self::None,
            "error" => Self::Error,
            "warning" => Self::Warning,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "all" => Self::All,
            _ => return None,
        })
    }
}

/// Which messages are printed: those up to `always` without a limit, those above it and up to `rate_limited` at a limited rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogThreshold {
    pub always: LogLevel,
    /// Not below `always`.
    pub rate_limited: LogLevel,
}

impl LogThreshold {
    fn parse(text: &str) -> Option<Self> {
        let (always, limited) = text.split_once('/').unwrap_or((text, text));
        let (always, limited) = (LogLevel::parse(always)?, LogLevel::parse(limited)?);
        Some(Self { always, rate_limited: limited.max(always) })
    }
}

/// What each console line starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timestamps {
    None,
    /// `[YYYY-MM-DD HH:MM:SS]`
    Date,
    /// `[YYYY-MM-DD HH:MM:SS.mmm]`
    DateMs,
    /// Seconds and microseconds since start: `[SSSSSS.uuuuuu]`
    Boot,
    /// Time-stamp counter: `[XXXXXXXXXXXXXXXX]`
    Raw,
}

/// How the host's CPUs are shared (`sched=`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SchedulerKind {
    /// By weight.
    Credit2,
    /// Each vCPU has a CPU of its own.
    Null,
}

/// How the console's input is switched (`conswitch=`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConsoleSwitch {
    /// The control character that, three times, switches; `None` if none does.
    pub code: Option<u8>,
    /// Who has the input when the first guest starts.
    pub first: FirstInput,
}

impl Default for ConsoleSwitch {
    fn default() -> Self {
        Self { code: Some(1), first: FirstInput::Guest }
    }
}

/// Who has the console's input at first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FirstInput {
    /// The first guest.
    Guest,
    /// The hypervisor's shell, until the operator switches.
    Shell,
}

/// When a guest's output is shown that does not have the input. Bulkhead's own option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestOutput {
    /// Line by line among the rest, with the guest's name.
    Interleave,
    /// When the operator switches to the guest.
    Switch,
}

/// In which order guests start. Bulkhead's own option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Autostart {
    /// All at once.
    Parallel,
    /// Each when the one before it has ended.
    Sequential,
    /// None does before the operator says so.
    None,
}

/// What to do when no guest is left. Bulkhead's own option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnLastGuest {
    Stay,
    PowerOff,
    Reboot,
}

/// Something on the command line that could not be obeyed. `Display` gives a sentence that names the option and the value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OptionProblem {
    /// Neither Xen nor Bulkhead knows an option of this name.
    Unknown { name: String },
    /// Xen has such an option, Bulkhead does not.
    Unsupported { name: String },
    /// The value does not parse.
    BadValue { name: String, value: String, expected: &'static str },
    /// The value means something to Xen that Bulkhead does not support; `part` is the part of it that does.
    UnsupportedValue { name: String, value: String, part: String },
}

impl fmt::Display for OptionProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // What was typed may hold anything but blanks.
            Self::Unknown { name } => write!(f, "option {}: unknown, ignored", name.escape_debug()),
            Self::Unsupported { name } => write!(f, "option {name}: known to Xen, not supported yet, ignored"),
            Self::BadValue { name, value, expected } => {
                write!(f, "option {name}: bad value \"{}\", expected {expected}; ignored", value.escape_debug())
            }
            Self::UnsupportedValue { name, value, part } => {
                let (value, part) = (value.escape_debug(), part.escape_debug());
                write!(f, "option {name}: bad value \"{value}\": {part} is known to Xen, not supported yet; ignored")
            }
        }
    }
}

/// Why a value was not taken; [`Options::parse`] adds option and value.
enum Refusal {
    Bad(&'static str),
    /// The part that Xen knows and Bulkhead does not support.
    Unsupported(String),
}

const BOOLEAN: &str = "yes, on, true, enable, 1, no, off, false, disable or 0";
const LEVEL: &str = "LEVEL[/RATE-LIMITED LEVEL], each none, error, warning, info, debug or all";

impl Options {
    /// Reads a command line. A leading word that looks like a file's path is taken as the boot loader's name for the
    /// hypervisor and skipped. Where an option comes twice, the later one counts.
    #[must_use]
    pub fn parse(cmdline: &str) -> (Self, Vec<OptionProblem>) {
        let mut options = Self::default();
        let mut problems = Vec::new();
        for (index, word) in cmdline.split_ascii_whitespace().enumerate() {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word, None),
            };
            if index == 0 && value.is_none() && word.contains(['/', '(']) {
                continue;
            }
            // As in Xen, "no-x" negates x; a name that itself starts with "no-" (no-real-mode) is found first.
            let (key, given) = match name.strip_prefix("no-") {
                Some(key) if !xen::knows(name) => match value {
                    None => (key, Given::Negated),
                    Some(_) => (key, Given::NegatedValue),
                },
                _ => (name, value.map_or(Given::Bare, Given::Value)),
            };
            match options.set(key, &given) {
                Ok(true) => {}
                Ok(false) if xen::knows(key) || name == "--" => {
                    problems.push(OptionProblem::Unsupported { name: name.into() });
                    if name == "--" {
                        // What follows is meant for a hardware domain's kernel.
                        break;
                    }
                }
                Ok(false) => problems.push(OptionProblem::Unknown { name: name.into() }),
                Err(refusal) => {
                    let (name, value) = (String::from(name), String::from(value.unwrap_or("")));
                    problems.push(match refusal {
                        Refusal::Bad(expected) => OptionProblem::BadValue { name, value, expected },
                        Refusal::Unsupported(part) => OptionProblem::UnsupportedValue { name, value, part },
                    });
                }
            }
        }
        (options, problems)
    }

    /// Sets one option. `Ok(false)` if Bulkhead has none of that name.
    fn set(&mut self, key: &str, given: &Given<'_>) -> Result<bool, Refusal> {
        match key {
            "com1" => self.com1.set(given.text())?,
            "com2" => self.com2.set(given.text())?,
            "console" => self.console = console(given.text())?,
            "loglvl" => self.loglvl = LogThreshold::parse(given.text()).ok_or(Refusal::Bad(LEVEL))?,
            "guest_loglvl" => self.guest_loglvl = LogThreshold::parse(given.text()).ok_or(Refusal::Bad(LEVEL))?,
            "console_timestamps" => self.console_timestamps = timestamps(given)?,
            "noreboot" => self.noreboot = given.boolean().ok_or(Refusal::Bad(BOOLEAN))?,
            "mem" => {
                self.mem = Some(size(given.text()).ok_or(Refusal::Bad("a size such as 2G: a number, then B, K, M, G or T"))?);
            }
            "maxcpus" => {
                let count = number(given.text()).and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0);
                self.maxcpus = Some(count.ok_or(Refusal::Bad("a number of CPUs, at least 1"))?);
            }
            "nosmp" => {
                if given.boolean().ok_or(Refusal::Bad(BOOLEAN))? {
                    self.maxcpus = Some(1);
                }
            }
            "apicv" => self.apicv = given.boolean().ok_or(Refusal::Bad(BOOLEAN))?,
            "sched" => {
                self.sched = match given.text() {
                    "credit2" => SchedulerKind::Credit2,
                    "null" => SchedulerKind::Null,
                    value @ ("credit" | "rtds" | "arinc653") => return Err(Refusal::Unsupported(value.into())),
                    _ => return Err(Refusal::Bad("credit2 or null")),
                }
            }
            "utc_offset" => self.utc_offset = utc_offset(given.text()).ok_or(Refusal::Bad("+HH:MM or -HH:MM"))?,
            "conswitch" => self.conswitch = conswitch(given.text())?,
            "guest_output" => {
                self.guest_output = match given.text() {
                    "interleave" => GuestOutput::Interleave,
                    "switch" => GuestOutput::Switch,
                    _ => return Err(Refusal::Bad("interleave or switch")),
                }
            }
            "autostart" => {
                self.autostart = match given.text() {
                    "parallel" => Autostart::Parallel,
                    "sequential" => Autostart::Sequential,
                    "none" => Autostart::None,
                    _ => return Err(Refusal::Bad("parallel, sequential or none")),
                }
            }
            "on_last_guest" => {
                self.on_last_guest = match given.text() {
                    "stay" => OnLastGuest::Stay,
                    "poweroff" => OnLastGuest::PowerOff,
                    "reboot" => OnLastGuest::Reboot,
                    _ => return Err(Refusal::Bad("stay, poweroff or reboot")),
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// How an option was written.
enum Given<'a> {
    /// `x`
    Bare,
    /// `x=value`
    Value(&'a str),
    /// `no-x`
    Negated,
    /// `no-x=value`, which means nothing.
    NegatedValue,
}

impl<'a> Given<'a> {
    /// The value as text, as far as one was given in a way that makes sense for an option that is no boolean.
    fn text(&self) -> &'a str {
        match self {
            Self::Value(value) => value,
            // Nothing that is not a boolean takes a "no", so it is refused like any other bad value.
            Self::Bare | Self::Negated | Self::NegatedValue => "",
        }
    }

    fn boolean(&self) -> Option<bool> {
        match self {
            Self::Bare => Some(true),
            Self::Negated => Some(false),
            Self::Value("yes" | "on" | "true" | "enable" | "1") => Some(true),
            Self::Value("no" | "off" | "false" | "disable" | "0") => Some(false),
            Self::Value(_) | Self::NegatedValue => None,
        }
    }
}

fn console(text: &str) -> Result<ArrayVec<ConsoleDevice, 3>, Refusal> {
    const EXPECTED: Refusal = Refusal::Bad("a list of com1, com2 and vga, or none on its own");
    let mut devices = ArrayVec::new();
    if text == "none" {
        return Ok(devices);
    }
    for word in text.split(',') {
        let device = match word {
            "com1" => ConsoleDevice::Com1,
            "com2" => ConsoleDevice::Com2,
            "vga" => ConsoleDevice::Vga,
            "com1H" | "com1L" | "com2H" | "com2L" | "pv" | "dbgp" | "ehci" | "xhci" => {
                return Err(Refusal::Unsupported(word.into()));
            }
            _ => return Err(EXPECTED),
        };
        if !devices.contains(&device) {
            // Three devices exist and each is in the list once, so there is room.
            devices.push(device);
        }
    }
    Ok(devices)
}

/// A character, of which the control character is meant, and an x for not switching to the first guest by itself. As in Xen, a backquote (whose
/// control character would be NUL) means that none switches.
fn conswitch(text: &str) -> Result<ConsoleSwitch, Refusal> {
    let (character, first) = match *text.as_bytes() {
        [character] => (character, FirstInput::Guest),
        [character, b'x'] => (character, FirstInput::Shell),
        _ => (0, FirstInput::Guest),
    };
    if !(0x40..=0x7f).contains(&character) {
        return Err(Refusal::Bad("a letter, and x after it to stay at the hypervisor's shell, such as a or ax"));
    }
    Ok(ConsoleSwitch { code: Some(character & 0x1f).filter(|&code| code != 0), first })
}

fn timestamps(given: &Given<'_>) -> Result<Timestamps, Refusal> {
    Ok(match given {
        Given::Value("none") => Timestamps::None,
        Given::Value("date") => Timestamps::Date,
        Given::Value("datems") => Timestamps::DateMs,
        Given::Value("boot") => Timestamps::Boot,
        Given::Value("raw") => Timestamps::Raw,
        // The older, boolean form.
        _ => match given.boolean() {
            Some(true) => Timestamps::Date,
            Some(false) => Timestamps::None,
            None => return Err(Refusal::Bad("none, date, datems, boot or raw")),
        },
    })
}

/// `+HH:MM`, `-HH:MM` or without the minutes, as of a time zone; in seconds.
fn utc_offset(text: &str) -> Option<i64> {
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':').unwrap_or((rest, "00"));
    let two = |text: &str, most| {
        let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<i64>().ok().filter(|n| digits && *n <= most)
    };
    Some(sign * (two(hours, 23)? * 3600 + two(minutes, 59)? * 60))
}

/// An integer as Xen reads it: decimal, 0x and hexadecimal, or 0 and octal.
fn number(text: &str) -> Option<u64> {
    let (digits, radix) = if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        (hex, 16)
    } else if text.len() > 1 && text.starts_with('0') {
        (&text[1..], 8)
    } else {
        (text, 10)
    };
    // from_str_radix would take a sign.
    if !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// A size as Xen reads it: a number and a unit, KiB if there is none. In bytes; not zero.
fn size(text: &str) -> Option<u64> {
    let unit = text.bytes().last()?;
    // The last digit of a hexadecimal number may be a B, as in Xen, where the number goes as far as it can.
    let hex = text.starts_with("0x") || text.starts_with("0X");
    let shift = match unit.to_ascii_lowercase() {
        b'b' if !hex => Some(0),
        b'k' => Some(10),
        b'm' => Some(20),
        b'g' => Some(30),
        b't' => Some(40),
        _ => None,
    };
    let digits = if shift.is_some() { &text[..text.len() - 1] } else { text };
    let bytes = number(digits)?.checked_mul(1 << shift.unwrap_or(10))?;
    (bytes != 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    fn ok(cmdline: &str) -> Options {
        let (options, problems) = Options::parse(cmdline);
        assert_eq!(problems, [], "{cmdline}");
        options
    }

    fn problem(cmdline: &str) -> String {
        let (options, problems) = Options::parse(cmdline);
        assert_eq!(problems.len(), 1, "{cmdline}: {problems:?}");
        assert_eq!(options, Options::default(), "a refused option must change nothing: {cmdline}");
        problems[0].to_string()
    }

    #[test]
    fn a_command_line_as_people_write_it() {
        let o = ok("com1=9600,8n1,0x2e8,5 console=com1,vga loglvl=all guest_loglvl=error/info console_timestamps=boot noreboot \
            mem=2G maxcpus=0x10 sched=null autostart=sequential on_last_guest=poweroff");
        assert_eq!(o.com1, SerialOptions { baud: Baud::Fixed(9600), io_base: 0x2e8, irq: Some(5), ..Options::default().com1 });
        assert_eq!(o.console.as_slice(), [ConsoleDevice::Com1, ConsoleDevice::Vga]);
        assert_eq!(o.loglvl, LogThreshold { always: LogLevel::All, rate_limited: LogLevel::All });
        assert_eq!(ok("utc_offset=+02:00").utc_offset, 7200);
        assert_eq!(ok("utc_offset=-03:30").utc_offset, -12_600);
        assert_eq!(ok("utc_offset=+11").utc_offset, 39_600);
        assert_eq!(o.guest_loglvl, LogThreshold { always: LogLevel::Error, rate_limited: LogLevel::Info });
        assert_eq!(o.console_timestamps, Timestamps::Boot);
        assert!(o.noreboot);
        assert_eq!((o.mem, o.maxcpus), (Some(2 << 30), Some(16)));
        assert_eq!(o.sched, SchedulerKind::Null);
        assert_eq!((o.autostart, o.on_last_guest), (Autostart::Sequential, OnLastGuest::PowerOff));
    }

    #[test]
    fn first_word_may_be_a_file() {
        assert!(ok("/boot/bulkhead noreboot").noreboot);
        assert!(ok("(hd0,1)/bulkhead.elf noreboot").noreboot);
        assert_eq!(problem("noreboot=off /boot/bulkhead"), "option /boot/bulkhead: unknown, ignored");
    }

    #[test]
    fn booleans_in_every_form() {
        for yes in ["noreboot", "noreboot=yes", "noreboot=on", "noreboot=true", "noreboot=enable", "noreboot=1"] {
            assert!(ok(yes).noreboot, "{yes}");
        }
        for no in ["no-noreboot", "noreboot=no", "noreboot=off", "noreboot=false", "noreboot=disable", "noreboot=0"] {
            assert!(!ok(&std::format!("noreboot {no}")).noreboot, "{no}");
        }
        assert_eq!(ok("nosmp").maxcpus, Some(1));
        assert!(ok("").apicv && !ok("apicv=off").apicv && !ok("no-apicv").apicv);
        assert_eq!(ok("nosmp=off").maxcpus, None);
        assert_eq!(ok("console_timestamps").console_timestamps, Timestamps::Date);
        assert_eq!(ok("console_timestamps=datems no-console_timestamps").console_timestamps, Timestamps::None);
    }

    #[test]
    fn lists_and_levels() {
        assert!(ok("console=none").console.is_empty());
        assert_eq!(ok("console=vga,com2,vga").console.as_slice(), [ConsoleDevice::Vga, ConsoleDevice::Com2]);
        // The rate-limited level is never the stricter one.
        assert_eq!(ok("loglvl=info/error").loglvl, LogThreshold { always: LogLevel::Info, rate_limited: LogLevel::Info });
    }

    #[test]
    fn the_console_is_switched_as_in_xen() {
        assert_eq!(ok("").conswitch, ConsoleSwitch { code: Some(1), first: FirstInput::Guest });
        assert_eq!(ok("conswitch=ax").conswitch, ConsoleSwitch { code: Some(1), first: FirstInput::Shell });
        assert_eq!(ok("conswitch=B").conswitch.code, Some(2));
        assert_eq!(ok("conswitch=]x").conswitch, ConsoleSwitch { code: Some(0x1d), first: FirstInput::Shell });
        assert_eq!(ok("conswitch=x").conswitch, ConsoleSwitch { code: Some(0x18), first: FirstInput::Guest });
        assert_eq!(ok("conswitch=`").conswitch.code, None);
        for bad in ["conswitch", "conswitch=", "conswitch=1", "conswitch=ay", "conswitch=axx", "conswitch=\u{e4}", "no-conswitch"]
        {
            assert_eq!(Options::parse(bad).1.len(), 1, "{bad}");
        }
        assert_eq!(ok("guest_output=switch").guest_output, GuestOutput::Switch);
    }

    #[test]
    fn sizes_in_xens_units() {
        for (text, bytes) in [("4096", 4 << 20), ("1g", 1 << 30), ("512M", 512 << 20), ("0x10k", 16 << 10), ("8192B", 8192)] {
            assert_eq!(ok(&std::format!("mem={text}")).mem, Some(bytes), "{text}");
        }
    }

    #[test]
    fn every_problem_names_option_and_value() {
        for (cmdline, text) in [
            ("frobnicate=1", "option frobnicate: unknown, ignored"),
            ("no-frobnicate", "option no-frobnicate: unknown, ignored"),
            ("dom0_mem=1G", "option dom0_mem: known to Xen, not supported yet, ignored"),
            ("sched=credit", "option sched: bad value \"credit\": credit is known to Xen, not supported yet; ignored"),
            ("sched=fair", "option sched: bad value \"fair\", expected credit2 or null; ignored"),
            (
                "conswitch=ab",
                "option conswitch: bad value \"ab\", expected a letter, and x after it to stay at the hypervisor's shell, such as a or ax; ignored",
            ),
            ("guest_output=all", "option guest_output: bad value \"all\", expected interleave or switch; ignored"),
            ("no-real-mode", "option no-real-mode: known to Xen, not supported yet, ignored"),
            ("no-smap", "option no-smap: known to Xen, not supported yet, ignored"),
            ("-- console=com1", "option --: known to Xen, not supported yet, ignored"),
            (
                "noreboot=maybe",
                "option noreboot: bad value \"maybe\", expected yes, on, true, enable, 1, no, off, false, disable or 0; ignored",
            ),
            (
                "no-noreboot=1",
                "option no-noreboot: bad value \"1\", expected yes, on, true, enable, 1, no, off, false, disable or 0; ignored",
            ),
            ("mem=lots", "option mem: bad value \"lots\", expected a size such as 2G: a number, then B, K, M, G or T; ignored"),
            (
                "mem=99999999999T",
                "option mem: bad value \"99999999999T\", expected a size such as 2G: a number, then B, K, M, G or T; ignored",
            ),
            ("mem=0", "option mem: bad value \"0\", expected a size such as 2G: a number, then B, K, M, G or T; ignored"),
            ("maxcpus=0", "option maxcpus: bad value \"0\", expected a number of CPUs, at least 1; ignored"),
            ("maxcpus=-1", "option maxcpus: bad value \"-1\", expected a number of CPUs, at least 1; ignored"),
            (
                "console=com3",
                "option console: bad value \"com3\", expected a list of com1, com2 and vga, or none on its own; ignored",
            ),
            (
                "console=none,vga",
                "option console: bad value \"none,vga\", expected a list of com1, com2 and vga, or none on its own; ignored",
            ),
            ("console=com1H,vga", "option console: bad value \"com1H,vga\": com1H is known to Xen, not supported yet; ignored"),
            (
                "loglvl=loud",
                "option loglvl: bad value \"loud\", expected LEVEL[/RATE-LIMITED LEVEL], each none, error, warning, info, debug or all; ignored",
            ),
            (
                "guest_loglvl",
                "option guest_loglvl: bad value \"\", expected LEVEL[/RATE-LIMITED LEVEL], each none, error, warning, info, debug or all; ignored",
            ),
            (
                "console_timestamps=utc",
                "option console_timestamps: bad value \"utc\", expected none, date, datems, boot or raw; ignored",
            ),
            ("autostart=no", "option autostart: bad value \"no\", expected parallel, sequential or none; ignored"),
            ("on_last_guest=halt", "option on_last_guest: bad value \"halt\", expected stay, poweroff or reboot; ignored"),
            (
                "com1=115200,9n1",
                "option com1: bad value \"115200,9n1\", expected BAUD[/BASE-BAUD][,DPS[,IO-BASE[,IRQ]]] such as 115200,8n1,0x3f8,4; ignored",
            ),
            ("com2=115200,8n1,pci", "option com2: bad value \"115200,8n1,pci\": pci is known to Xen, not supported yet; ignored"),
        ] {
            assert_eq!(problem(cmdline), text);
        }
    }

    #[test]
    fn good_options_count_beside_bad_ones() {
        let (o, problems) = Options::parse("mem=x noreboot unknown maxcpus=2");
        assert_eq!(problems.len(), 2);
        assert!(o.noreboot);
        assert_eq!(o.maxcpus, Some(2));
    }

    proptest! {
        #[test]
        fn no_command_line_panics(text in "[ -~]{0,80}") {
            let _ = Options::parse(&text);
        }

        #[test]
        fn no_value_panics(name in "com1|console|mem|maxcpus|loglvl|no-com1", value in "[0-9a-z,/=.x]{0,30}") {
            for problem in Options::parse(&std::format!("{name}={value}")).1 {
                prop_assert!(problem.to_string().contains(&name));
            }
        }

        #[test]
        fn any_unicode_is_survived(text in "\\PC{0,40}") {
            let _ = Options::parse(&text);
        }
    }
}
