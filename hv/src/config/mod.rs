//! Guest configurations: one TOML file a guest, with the keys of xl.cfg(5) and their meaning, units and defaults there.
//!
//! Everything in a file is checked before the guest exists, and every reason to refuse it is reported, with file, line and key.
//! `docs/guest-config.md` is the manual.

mod cpuid;
mod error;
mod keys;
mod viridian;

pub use cpuid::CpuidError;
pub use error::{ConfigError, Reason};
pub use keys::Key;
pub(crate) use keys::distance;
pub use viridian::Viridian;

use crate::{board::SERIAL_PORTS, cpulist, cpumask::CpuMask, layout, loader::Format, vcpu::features::CpuidMask};
use alloc::{format, string::String, vec::Vec};
use devices::MissedTicks;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Most vCPUs that a guest can have.
pub const MAX_VCPUS: u32 = 32;
const _: () = assert!(MAX_VCPUS as usize <= devices::interrupt::MAX_VCPUS && MAX_VCPUS <= crate::acpi::MAX_VCPUS);
/// Most memory that can be asked for, in MiB (16 TiB). What there really is, the host says when the guest is created.
pub const MAX_MEMORY_MIB: u64 = 1 << 24;
/// Weight of a guest that does not say another.
pub const DEFAULT_WEIGHT: u16 = 256;
/// Longest configuration that is read, in bytes.
pub const MAX_BYTES: usize = 1 << 16;
/// Longest guest name, in bytes.
pub const MAX_NAME: usize = 64;

/// A guest as its configuration describes it, checked and with defaults filled in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestConfig {
    /// The name of the file, for messages.
    pub file: String,
    /// Letters, digits and `._+@-`, 1 to [`MAX_NAME`] bytes.
    pub name: String,
    /// Bytes; a multiple of 1 MiB, not zero.
    pub memory: u64,
    /// 1..=[`MAX_VCPUS`]
    pub vcpus: u32,
    /// The host CPUs that each vCPU may run on (`cpus`), as many as there are vCPUs. Not empty; may have CPUs that the host does not have.
    pub cpus: Vec<CpuMask>,
    /// Share of the CPUs in proportion to other guests' (`cpu_weight`), 1 to 65535.
    pub cpu_weight: u16,
    /// Most CPU time, in percent of one CPU (`cap`); 0 for no limit, at most 100 for each vCPU.
    pub cap: u32,
    /// What its CPUs show differently (`cpuid`).
    pub cpuid: CpuidMask,
    /// Names of boot modules.
    pub kernel: String,
    pub kernel_format: Format,
    pub ramdisk: Option<String>,
    /// The kernel's command line, composed as xl does from cmdline, or from root and extra.
    pub cmdline: String,
    /// Where the guest's serial ports lead: COM1 to COM4, and one on a PCI card.
    pub serial: [Serial; SERIAL_PORTS],
    pub hpet: bool,
    /// What becomes of periodic interrupts that the guest is not there for (`timer_mode`).
    pub missed_ticks: MissedTicks,
    /// What the guest's TSC counts (`tsc_mode`).
    pub tsc_mode: TscMode,
    /// What of Hyper-V's interface it is offered; nothing, usually.
    pub viridian: Viridian,
    /// The real-time clock is to show the host's local time.
    pub localtime: bool,
    /// How far the real-time clock is from UTC, in seconds (`rtc_timeoffset`; whoever knows the local time adds that).
    pub rtc_offset: i64,
    pub on_poweroff: Action,
    pub on_reboot: Action,
    pub on_crash: Action,
    /// Port of the ISA debug-exit device.
    pub isa_debug_exit: Option<u16>,
    /// The test device is there.
    pub pc_testdev: bool,
    /// Remarks that do not keep the guest from starting.
    pub warnings: Vec<ConfigError>,
    lines: Lines,
}

/// What a guest's TSC counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TscMode {
    /// The host's ticks. Reading it is no exit.
    Native,
    /// Nanoseconds. Every RDTSC and RDTSCP exits.
    Emulated,
}

/// Where a guest's serial port leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Serial {
    /// To the hypervisor's console.
    Pty,
    /// Nowhere: what the guest writes is dropped, and it never reads anything. The port is there all the same.
    Null,
    /// To the hypervisor's log, line by line.
    Log,
    /// There is no such port. (COM1 is there all the same, and leads nowhere.)
    None,
}

/// What to do with a guest that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Free all that it has.
    Destroy,
    /// Start it again from its configuration.
    Restart,
    /// Keep it under another name for examination, and start it again.
    RenameRestart,
    /// Keep it for examination.
    Preserve,
}

/// The line of each key that the file has, by [`Key`]; 0 for the others.
type Lines = [u32; Key::ALL.len()];

impl GuestConfig {
    /// The line of a key, 1 if the file does not have it.
    #[must_use]
    pub fn line(&self, key: Key) -> u32 {
        line_of(&self.lines, key)
    }

    /// A reason to refuse this guest that was found after its configuration had been read. What is wrong with a command line that
    /// was composed from extra and root is put down to these.
    #[must_use]
    pub fn error(&self, key: Key, reason: Reason) -> ConfigError {
        let given = |key: &Key| self.lines.get(*key as usize).is_some_and(|&line| line != 0);
        let composed = [Key::Cmdline, Key::Extra, Key::Root];
        let key = if key == Key::Cmdline { composed.into_iter().find(given).unwrap_or(key) } else { key };
        ConfigError { file: self.file.clone(), line: self.line(key), key: key.as_str().into(), reason }
    }
}

fn line_of(lines: &Lines, key: Key) -> u32 {
    lines.get(key as usize).copied().unwrap_or(0).max(1)
}

/// Reads a configuration from a file's bytes. `file` is its name, for messages.
///
/// # Errors
/// Every reason to refuse it, in the order of lines; at least one.
pub fn parse_bytes(file: &str, bytes: &[u8]) -> Result<GuestConfig, Vec<ConfigError>> {
    match core::str::from_utf8(bytes) {
        Ok(text) => parse(file, text),
        Err(error) => {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = 1 + before.iter().filter(|&&b| b == b'\n').count() as u32;
            Err(Vec::from([ConfigError { file: file.into(), line, key: "-".into(), reason: Reason::NotUtf8 }]))
        }
    }
}

/// Reads a configuration. `file` is its name, for messages.
///
/// # Errors
/// Every reason to refuse it, in the order of lines; at least one. Of a file that is not TOML, the first.
pub fn parse(file: &str, text: &str) -> Result<GuestConfig, Vec<ConfigError>> {
    let error = |line, key: &str, reason| ConfigError { file: file.into(), line, key: key.into(), reason };
    if text.len() > MAX_BYTES {
        return Err(Vec::from([error(1, "-", Reason::FileTooLong { bytes: text.len() })]));
    }
    let table = DeTable::parse(text).map_err(|e| {
        let at = e.span().map_or(text.len(), |s| s.start);
        let (line, key, reason) = syntax_reason(text, at, e.message());
        Vec::from([error(line, key, reason)])
    })?;

    let mut reader = Reader { file, lines: [0; Key::ALL.len()], values: [const { None }; Key::ALL.len()], errors: Vec::new() };
    for (name, value) in table.get_ref() {
        let line = line_at(text, name.span().start);
        let name = name.get_ref();
        if let Some(key) = Key::find(name) {
            reader.lines[key as usize] = line;
            reader.values[key as usize] = Some(value);
        } else {
            let reason = match name.as_ref() {
                "builder" => Reason::ObsoleteKey { instead: Key::Type },
                name if keys::xl_knows(name) => Reason::UnsupportedKey,
                name => Reason::UnknownKey { suggestion: keys::suggest(name) },
            };
            reader.errors.push(error(line, name, reason));
        }
    }
    let config = reader.read();
    match config {
        Some(config) if reader.errors.is_empty() => Ok(config),
        _ => {
            reader.errors.sort_by_key(|e| e.line);
            Err(reader.errors)
        }
    }
}

/// The line of a byte offset, from 1.
fn line_at(text: &str, offset: usize) -> u32 {
    1 + text.bytes().take(offset).filter(|&b| b == b'\n').count() as u32
}

/// Puts a TOML error into the words of somebody who writes xl configurations: line, key as far as it can be told, and reason.
fn syntax_reason<'t>(text: &'t str, offset: usize, message: &str) -> (u32, &'t str, Reason) {
    // An error at the end of a line may be reported at the start of the next one.
    let offset = offset.min(text.len());
    let start = text.get(..offset).and_then(|t| t.rfind('\n')).map_or(0, |n| n + 1);
    let line = text.get(start..).and_then(|t| t.lines().next()).unwrap_or("");
    let (key, value) = line.split_once('=').unwrap_or((line, ""));
    let (key, value) = (key.trim(), value.trim());
    let append = key.ends_with('+');
    let key = key.trim_end_matches('+').trim_end();
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let digits = value.trim_end_matches(|c: char| c == ';' || c.is_whitespace());
    let reason = if message.contains("duplicate key") {
        Reason::DuplicateKey
    } else if append {
        Reason::Append
    } else if has_semicolon(line) {
        Reason::Semicolon
    } else if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()) {
        Reason::LeadingZero
    } else if bare && value.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/') {
        Reason::Unquoted
    } else {
        Reason::Syntax(message.into())
    };
    (line_at(text, offset), if bare { key } else { "-" }, reason)
}

/// True if a line has a `;` outside of strings and comments.
fn has_semicolon(line: &str) -> bool {
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (None, '#') => return false,
            (None, ';') => return true,
            (None, '"' | '\'') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            _ => {}
        }
    }
    false
}

/// The values of a file on their way into a [`GuestConfig`]. Each method takes one key, writes down what is wrong with it, and
/// gives `None` then.
struct Reader<'f, 't> {
    file: &'f str,
    lines: Lines,
    values: [Option<&'t Spanned<DeValue<'t>>>; Key::ALL.len()],
    errors: Vec<ConfigError>,
}

impl<'t> Reader<'_, 't> {
    fn read(&mut self) -> Option<GuestConfig> {
        let name = self.name();
        self.guest_type();
        let memory = self.memory();
        let vcpus = self.vcpus();
        let (cpus, extra_pins) = self.cpus(vcpus.unwrap_or(MAX_VCPUS));
        let cpu_weight = self.number(Key::CpuWeight, 1, u16::MAX.into()).and_then(|n| u16::try_from(n).ok());
        let most = u64::from(vcpus.unwrap_or(MAX_VCPUS)) * 100;
        let cap = self.number(Key::Cap, 0, most).and_then(|n| u32::try_from(n).ok());
        let cpuid = self.cpuid();
        let kernel = self.required(Key::Kernel);
        let kernel_format = self.kernel_format();
        let ramdisk = self.optional_text(Key::Ramdisk);
        let (cmdline, mut warnings) = self.cmdline();
        warnings.extend(extra_pins);
        let serial = self.serial();
        let on_poweroff = self.action(Key::OnPoweroff, Action::Destroy);
        let on_reboot = self.action(Key::OnReboot, Action::Restart);
        let on_crash = self.action(Key::OnCrash, Action::Destroy);
        let hpet = self.boolean(Key::Hpet, true);
        let localtime = self.boolean(Key::Localtime, false);
        let rtc_offset = self.seconds(Key::RtcTimeoffset);
        let missed_ticks = self.timer_mode();
        let tsc_mode = self.tsc_mode();
        let viridian = self.viridian();
        let isa_debug_exit = self.number(Key::IsaDebugExit, 0, u16::MAX.into()).and_then(|port| u16::try_from(port).ok());
        let pc_testdev = self.boolean(Key::PcTestdev, false);
        // Whatever is missing here has left an error behind.
        Some(GuestConfig {
            file: self.file.into(),
            name: name?,
            memory: memory?,
            vcpus: vcpus?,
            cpus: cpus?,
            cpu_weight: cpu_weight.unwrap_or(DEFAULT_WEIGHT),
            cap: cap.unwrap_or(0),
            cpuid,
            kernel: kernel?,
            kernel_format: kernel_format?,
            ramdisk,
            cmdline,
            serial: serial?,
            hpet: hpet?,
            missed_ticks: missed_ticks?,
            tsc_mode: tsc_mode?,
            viridian: viridian?,
            localtime: localtime?,
            rtc_offset: rtc_offset?,
            on_poweroff: on_poweroff?,
            on_reboot: on_reboot?,
            on_crash: on_crash?,
            isa_debug_exit,
            pc_testdev: pc_testdev?,
            warnings,
            lines: self.lines,
        })
    }

    fn value(&self, key: Key) -> Option<&'t DeValue<'t>> {
        self.values.get(key as usize).copied().flatten().map(Spanned::get_ref)
    }

    fn error(&self, key: Key, reason: Reason) -> ConfigError {
        ConfigError { file: self.file.into(), line: line_of(&self.lines, key), key: key.as_str().into(), reason }
    }

    fn refuse(&mut self, key: Key, reason: Reason) {
        let error = self.error(key, reason);
        self.errors.push(error);
    }

    /// A string, if the key is there.
    fn text(&mut self, key: Key) -> Option<&'t str> {
        let value = self.value(key)?;
        let text = value.as_str();
        if text.is_none() {
            self.refuse(key, Reason::WrongType { expected: "a string", found: type_name(value) });
        }
        text
    }

    /// A string that is not empty, if the key is there.
    fn optional_text(&mut self, key: Key) -> Option<String> {
        let text = self.text(key)?;
        if text.is_empty() {
            self.refuse(key, Reason::Empty);
            return None;
        }
        Some(text.into())
    }

    fn required(&mut self, key: Key) -> Option<String> {
        if self.value(key).is_none() {
            self.refuse(key, Reason::Missing);
        }
        self.optional_text(key)
    }

    /// A whole number of `min..=max`, if the key is there. As for xl, it may stand in quotes.
    fn number(&mut self, key: Key, min: u64, max: u64) -> Option<u64> {
        let (text, number) = match self.value(key)? {
            DeValue::Integer(n) => (format!("{n}"), u64::from_str_radix(n.as_str(), n.radix()).ok()),
            DeValue::String(s) => (format!("{s:?}"), xl_number(s)),
            DeValue::Float(n) => (n.as_str().into(), None),
            other => {
                self.refuse(key, Reason::WrongType { expected: "a whole number", found: type_name(other) });
                return None;
            }
        };
        let number = number.filter(|n| (min..=max).contains(n));
        if number.is_none() {
            self.refuse(key, Reason::OutOfRange { value: text, min, max });
        }
        number
    }

    fn name(&mut self) -> Option<String> {
        let name = self.required(Key::Name)?;
        // Names stand in log lines that tools parse, and in commands.
        let good = |b: u8| b.is_ascii_alphanumeric() || b"._+@-".contains(&b);
        if name.len() > MAX_NAME || !name.bytes().all(good) {
            self.refuse(Key::Name, Reason::BadValue { value: name, expected: "1 to 64 letters, digits and . _ + @ -" });
            return None;
        }
        Some(name)
    }

    /// Only of a flat image does the configuration say where it goes and where it is entered: by default at its start, at 1 MiB.
    fn kernel_format(&mut self) -> Option<Format> {
        let address = self.number(Key::LoadAddress, 0, u32::MAX.into()).and_then(|n| u32::try_from(n).ok());
        let entry = self.number(Key::Entry, 0, u32::MAX.into()).and_then(|n| u32::try_from(n).ok());
        let format = match self.text(Key::KernelFormat) {
            None | Some("auto") => Format::Auto,
            Some("linux") => Format::Linux,
            Some("multiboot1") => Format::Multiboot1,
            Some("multiboot2") => Format::Multiboot2,
            Some("pvh") => Format::Pvh,
            Some("flat") => {
                let address = address.unwrap_or(layout::HIGH_MEMORY as u32);
                return Some(Format::Flat { address, entry: entry.unwrap_or(address) });
            }
            Some(value) => {
                let expected = "\"auto\", \"linux\", \"multiboot1\", \"multiboot2\", \"pvh\" or \"flat\"";
                self.refuse(Key::KernelFormat, Reason::BadValue { value: value.into(), expected });
                return None;
            }
        };
        for key in [Key::LoadAddress, Key::Entry] {
            if self.value(key).is_some() {
                self.refuse(key, Reason::OnlyFlat);
            }
        }
        Some(format)
    }

    fn guest_type(&mut self) {
        match self.text(Key::Type) {
            None | Some("hvm") => {}
            Some(value @ ("pv" | "pvh")) => self.refuse(Key::Type, Reason::UnsupportedValue { value: value.into() }),
            Some(value) => self.refuse(Key::Type, Reason::BadValue { value: value.into(), expected: "\"hvm\"" }),
        }
    }

    /// In bytes.
    fn memory(&mut self) -> Option<u64> {
        if self.value(Key::Memory).is_none() {
            self.refuse(Key::Memory, Reason::Missing);
        }
        let memory = self.number(Key::Memory, 1, MAX_MEMORY_MIB);
        let maxmem = self.number(Key::Maxmem, 1, MAX_MEMORY_MIB);
        if let (Some(memory), Some(maxmem)) = (memory, maxmem)
            && maxmem != memory
        {
            self.refuse(Key::Maxmem, Reason::MaxmemDiffers { maxmem, memory });
        }
        Some(memory? << 20)
    }

    fn vcpus(&mut self) -> Option<u32> {
        let value = match self.value(Key::Vcpus) {
            Some(_) => self.number(Key::Vcpus, 1, u32::MAX.into()),
            None => Some(1),
        };
        let maxvcpus = self.number(Key::Maxvcpus, 1, u32::MAX.into());
        if let (Some(vcpus), Some(maxvcpus)) = (value, maxvcpus)
            && maxvcpus != vcpus
        {
            self.refuse(Key::Maxvcpus, Reason::MaxvcpusDiffers { maxvcpus, vcpus });
        }
        let value = value?;
        match u32::try_from(value) {
            Ok(vcpus) if vcpus <= MAX_VCPUS => Some(vcpus),
            _ => {
                self.refuse(Key::Vcpus, Reason::TooManyVcpus { value, max: MAX_VCPUS });
                None
            }
        }
    }

    /// One list for all vCPUs, or a list of lists, one for each. As for xl, those that get none may run anywhere, and lists that are too many
    /// are no error; they get a remark.
    fn cpus(&mut self, vcpus: u32) -> (Option<Vec<CpuMask>>, Option<ConfigError>) {
        let everywhere = || (0..vcpus).map(|_| CpuMask::ALL);
        let lists = match self.value(Key::Cpus) {
            None => return (Some(everywhere().collect()), None),
            Some(DeValue::Array(lists)) => lists,
            Some(value) => {
                let mask = self.cpu_list(value);
                return (mask.map(|mask| everywhere().map(|_| mask).collect()), None);
            }
        };
        // Every list is looked at, so that everything that is wrong is said.
        let masks: Vec<_> = lists.iter().map(|list| self.cpu_list(list.get_ref())).collect();
        let count = masks.len();
        let pins = u32::try_from(count).unwrap_or(u32::MAX);
        let remark = (pins > vcpus).then(|| self.error(Key::Cpus, Reason::MorePinsThanVcpus { pins: count, vcpus }));
        let masks: Option<Vec<_>> = masks.into_iter().collect();
        (masks.map(|masks| masks.into_iter().chain(everywhere().skip(count)).take(vcpus as usize).collect()), remark)
    }

    /// `0-3,^2`, or a single number without quotes.
    fn cpu_list(&mut self, value: &DeValue<'_>) -> Option<CpuMask> {
        let text = match value {
            DeValue::String(text) => text.clone().into_owned(),
            DeValue::Integer(number) => format!("{number}"),
            other => {
                let expected = "a string such as \"0-3,^2\", or a list of such";
                self.refuse(Key::Cpus, Reason::WrongType { expected, found: type_name(other) });
                return None;
            }
        };
        match cpulist::parse(&text) {
            Ok(mask) => Some(mask),
            Err(error) => {
                self.refuse(Key::Cpus, Reason::BadCpus { value: text, error });
                None
            }
        }
    }

    /// As xl composes it: cmdline alone, or `root=ROOT EXTRA`.
    fn cmdline(&mut self) -> (String, Vec<ConfigError>) {
        let [cmdline, root, extra] = [Key::Cmdline, Key::Root, Key::Extra].map(|key| {
            let text = self.text(key)?;
            if text.contains('\0') {
                self.refuse(key, Reason::Nul);
                return None;
            }
            Some(text)
        });
        let mut warnings = Vec::new();
        if let Some(cmdline) = cmdline {
            for (key, given) in [(Key::Root, root), (Key::Extra, extra)] {
                if given.is_some() {
                    warnings.push(self.error(key, Reason::IgnoredForCmdline));
                }
            }
            return (cmdline.into(), warnings);
        }
        let text = match (root, extra) {
            (Some(root), Some(extra)) => format!("root={root} {extra}"),
            (Some(root), None) => format!("root={root}"),
            (None, Some(extra)) => extra.into(),
            (None, None) => String::new(),
        };
        (text, warnings)
    }

    /// One device, or a list of them, the first for the first port.
    fn serial(&mut self) -> Option<[Serial; SERIAL_PORTS]> {
        let mut ports = [Serial::None; SERIAL_PORTS];
        let Some(value) = self.value(Key::Serial) else {
            ports[0] = Serial::Pty;
            return Some(ports);
        };
        match value {
            DeValue::String(_) => ports[0] = self.serial_port(value)?,
            DeValue::Array(list) => {
                if list.len() > SERIAL_PORTS {
                    self.refuse(Key::Serial, Reason::TooManySerialPorts { count: list.len(), max: SERIAL_PORTS });
                    return None;
                }
                for (port, value) in ports.iter_mut().zip(list) {
                    *port = self.serial_port(value.get_ref())?;
                }
                if ports.iter().filter(|port| **port == Serial::Pty).count() > 1 {
                    self.refuse(Key::Serial, Reason::SecondConsole);
                    return None;
                }
            }
            other => {
                let expected = "a string or a list of strings";
                self.refuse(Key::Serial, Reason::WrongType { expected, found: type_name(other) });
                return None;
            }
        }
        Some(ports)
    }

    fn serial_port(&mut self, device: &DeValue<'_>) -> Option<Serial> {
        let Some(text) = device.as_str() else {
            self.refuse(Key::Serial, Reason::WrongType { expected: "a list of strings", found: "a list of other values" });
            return None;
        };
        match text {
            "pty" => Some(Serial::Pty),
            "null" => Some(Serial::Null),
            "log" => Some(Serial::Log),
            "none" => Some(Serial::None),
            text => {
                // The other character devices of QEMU, as xl passes them on.
                let kind = text.split(':').next().unwrap_or("");
                let known = ["vc", "stdio", "file", "pipe", "dev", "tcp", "udp", "telnet", "unix", "msmouse", "chardev"];
                let value = text.into();
                let reason = if known.contains(&kind) || text.starts_with("/dev/") {
                    Reason::UnsupportedValue { value }
                } else {
                    Reason::BadValue { value, expected: "\"pty\", \"log\", \"null\" or \"none\"" }
                };
                self.refuse(Key::Serial, reason);
                None
            }
        }
    }

    /// 0 or 1, as xl has it, or TOML's own.
    fn boolean(&mut self, key: Key, default: bool) -> Option<bool> {
        match self.value(key) {
            None => Some(default),
            Some(DeValue::Boolean(value)) => Some(*value),
            Some(_) => self.number(key, 0, 1).map(|value| value == 1),
        }
    }

    /// A number of seconds, which may be negative; at most 68 years.
    fn seconds(&mut self, key: Key) -> Option<i64> {
        let most = u64::from(u32::MAX / 2);
        match self.value(key) {
            None => Some(0),
            Some(DeValue::Integer(n)) if n.as_str().starts_with('-') => {
                let value = i64::from_str_radix(n.as_str(), n.radix()).ok().filter(|n| n.unsigned_abs() <= most);
                if value.is_none() {
                    self.refuse(key, Reason::OutOfRange { value: n.as_str().into(), min: 0, max: most });
                }
                value
            }
            Some(_) => self.number(key, 0, most).and_then(|value| i64::try_from(value).ok()),
        }
    }

    /// One of xl's `names`, or any other word, or what its number stands for. `default` if the key is not there.
    fn xl_name(&mut self, key: Key, names: &'static [&'static str], default: &'static str) -> Option<&'t str> {
        match self.value(key) {
            None => Some(default),
            Some(DeValue::String(name)) if !name.starts_with(|c: char| c.is_ascii_digit()) => Some(name.as_ref()),
            Some(_) => {
                let most = names.len().saturating_sub(1) as u64;
                names.get(usize::try_from(self.number(key, 0, most)?).ok()?).copied()
            }
        }
    }

    fn tsc_mode(&mut self) -> Option<TscMode> {
        let key = Key::TscMode;
        match self.xl_name(key, &["default", "always_emulate", "native", "native_paravirt"], "default")? {
            // The host's TSCs are in step and never change their rate: else it would not be the time base.
            "default" | "native" => Some(TscMode::Native),
            "always_emulate" => Some(TscMode::Emulated),
            value @ "native_paravirt" => {
                self.refuse(key, Reason::UnsupportedValue { value: value.into() });
                None
            }
            value => {
                let expected = "\"default\", \"always_emulate\" or \"native\"";
                self.refuse(key, Reason::BadValue { value: value.into(), expected });
                None
            }
        }
    }

    /// xl's names, or their numbers.
    fn timer_mode(&mut self) -> Option<MissedTicks> {
        const NAMES: [&str; 4] =
            ["delay_for_missed_ticks", "no_delay_for_missed_ticks", "no_missed_ticks_pending", "one_missed_tick_pending"];
        let key = Key::TimerMode;
        let name = self.xl_name(key, &NAMES, "no_delay_for_missed_ticks")?;
        match NAMES.iter().position(|known| *known == name) {
            Some(1) => Some(MissedTicks::Deliver),
            // A tick that waits at an interrupt controller waits there with a real one, too.
            Some(2 | 3) => Some(MissedTicks::Merge),
            Some(_) => {
                self.refuse(key, Reason::UnsupportedValue { value: name.into() });
                None
            }
            None => {
                let expected = "\"no_delay_for_missed_ticks\", \"no_missed_ticks_pending\" or \"one_missed_tick_pending\"";
                self.refuse(key, Reason::BadValue { value: name.into(), expected });
                None
            }
        }
    }

    fn action(&mut self, key: Key, default: Action) -> Option<Action> {
        if self.value(key).is_none() {
            return Some(default);
        }
        match self.text(key)? {
            "destroy" => Some(Action::Destroy),
            "restart" => Some(Action::Restart),
            "rename-restart" => Some(Action::RenameRestart),
            "preserve" => Some(Action::Preserve),
            value @ ("coredump-destroy" | "coredump-restart" | "soft-reset") => {
                self.refuse(key, Reason::UnsupportedValue { value: value.into() });
                None
            }
            value => {
                let expected = "\"destroy\", \"restart\", \"rename-restart\" or \"preserve\"";
                self.refuse(key, Reason::BadValue { value: value.into(), expected });
                None
            }
        }
    }
}

/// A number as xl reads it: decimal, octal with a leading 0, hexadecimal with 0x.
fn xl_number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix('0') {
        Some(rest) => match rest.strip_prefix(['x', 'X']) {
            Some(hex) => (hex, 16),
            None if rest.is_empty() => (text, 10),
            None => (rest, 8),
        },
        None => (text, 10),
    };
    // from_str_radix would take a sign.
    if !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests;
