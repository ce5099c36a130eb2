//! The hypervisor's log: whole lines with the prefix `(BH) `, kept in a ring and shown on the console.
//!
//! The `log` crate's macros are filtered by `loglvl=` (target `guest`: by `guest_loglvl=`); [`always!`](crate::always) is not. Nothing here
//! allocates. A line is built first and put out under one lock, so lines of several CPUs never mix. Whoever writes to the console past the log
//! takes the same lock by [`hold`], and says what is on the cursor's line then: a line of the log never starts in the middle of another.

use crate::options::{LogLevel, LogThreshold, Options, Timestamps};
use core::fmt::{self, Write as _};
use core::sync::atomic::{AtomicU32, Ordering};
use spin::{Mutex, MutexGuard, Once};

pub use crate::always;
pub use ::log::{debug, error, info, trace, warn};

/// Target of messages that a guest causes: `warn!(target: log::GUEST, ...)`.
pub const GUEST: &str = "guest";
/// What each line starts with.
const PREFIX: &str = "(BH) ";
/// Bytes that the ring keeps.
const RING: usize = 64 * 1024;
/// Longest message; what is longer is cut.
const LINE: usize = 1024;
/// So many rate-limited messages may come at once ...
const BURST: u32 = 10;
/// ... and another one each time that so many ns have passed.
const REFILL_NS: u64 = 500_000_000;

/// Where log lines are shown.
pub trait Sink: Sync {
    /// Shows all of `bytes`: parts of lines, which end in CR LF.
    fn write(&self, bytes: &[u8]);
}

/// What time it is, for the timestamps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stamp {
    /// Host time-stamp counter.
    pub tsc: u64,
    /// Nanoseconds since the time base started.
    pub boot_ns: u64,
    /// Milliseconds since 1970-01-01 00:00 UTC.
    pub unix_ms: u64,
}

/// A clock for the timestamps and the rate limit.
pub trait StampSource: Sync {
    fn stamp(&self) -> Stamp;
}

/// The log. There is one, behind the functions of this module.
struct Logger {
    /// Taken before the ring.
    state: Mutex<State>,
    /// By reference: it starts as zeroes, which take no room in the image if nothing else is beside them.
    ring: &'static Mutex<Ring>,
    sink: Once<&'static dyn Sink>,
    clock: Once<&'static dyn StampSource>,
    /// What the console's cursor is behind on its line: nothing, something ([`UNFINISHED`]), or so many columns that may be overwritten. Written
    /// under the lock of `state`.
    before_cursor: AtomicU32,
}

/// A longer line than this may have been wrapped by the terminal, and cannot be overwritten.
const LONGEST_TRANSIENT: u32 = 79;
/// In [`Logger::before_cursor`]: text that must stay.
const UNFINISHED: u32 = u32::MAX;

struct State {
    settings: Settings,
    host_limit: RateLimit,
    guest_limit: RateLimit,
}

#[derive(Clone, Copy)]
struct Settings {
    host: LogThreshold,
    guest: LogThreshold,
    timestamps: Timestamps,
}

impl Settings {
    /// Until the command line has been read, everything is kept.
    const EARLY: Self = Self {
        host: LogThreshold { always: LogLevel::All, rate_limited: LogLevel::All },
        guest: LogThreshold { always: LogLevel::All, rate_limited: LogLevel::All },
        timestamps: Timestamps::None,
    };
}

static RING_BYTES: Mutex<Ring> = Mutex::new(Ring::new());
static LOGGER: Logger = Logger::new(&RING_BYTES);

/// Takes levels and timestamps from the options, and starts to receive the `log` crate's messages.
pub fn init(options: &Options) {
    LOGGER.configure(options);
    // An error means that a logger is set already: this one, since nobody else sets one.
    let _ = ::log::set_logger(&LOGGER);
    ::log::set_max_level(::log::LevelFilter::Trace);
}

/// Tells where lines are shown from now on, and shows those that were logged before. Later calls have no effect.
pub fn set_sink(sink: &'static dyn Sink) {
    LOGGER.set_sink(sink);
}

/// Tells what time it is from now on. Later calls have no effect.
pub fn set_clock(clock: &'static dyn StampSource) {
    LOGGER.clock.call_once(|| clock);
}

/// Prints a line whatever the levels are. [`always!`](crate::always) is the usual way to call it.
pub fn print(message: fmt::Arguments<'_>) {
    LOGGER.line(message);
}

/// Prints a line whatever `loglvl=` says: `always!("guest {name}: started")`.
#[macro_export]
macro_rules! always {
    ($($argument:tt)+) => { $crate::log::print(::core::format_args!($($argument)+)) };
}

/// The console, held by one who writes to it past the log. Nobody else writes meanwhile.
pub struct Held {
    _state: MutexGuard<'static, State>,
}

/// Takes the console in order to write to it past the log. Whoever holds it must not log: that would wait for ever.
#[must_use]
pub fn hold() -> Held {
    Held { _state: LOGGER.state.lock() }
}

impl Held {
    /// The writer says whether it leaves the cursor at the start of a line.
    pub fn note_column(&self, at_line_start: bool) {
        LOGGER.before_cursor.store(if at_line_start { 0 } else { UNFINISHED }, Ordering::Relaxed);
    }

    /// Whoever shows a line that they will show again after others have written, such as a prompt, says how many columns it has. It is then
    /// overwritten rather than ended.
    pub fn note_transient(&self, columns: usize) {
        let columns = u32::try_from(columns).unwrap_or(UNFINISHED);
        LOGGER.before_cursor.store(columns, Ordering::Relaxed);
    }

    /// Ends an unfinished line that was written past the log, if there is one.
    pub fn fresh_line(&self) {
        LOGGER.fresh_line();
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held")
    }
}

/// True if the console's cursor is at the start of a line, as far as the log knows.
#[must_use]
pub fn at_line_start() -> bool {
    LOGGER.before_cursor.load(Ordering::Relaxed) == 0
}

/// Copies what the ring holds from position `from` on, oldest first, and returns the number of bytes and the position to go on at.
/// Start at 0; a position that the ring no longer holds means its oldest byte.
pub fn read(from: u64, buffer: &mut [u8]) -> (usize, u64) {
    RING_BYTES.lock().read(from, buffer)
}

impl Logger {
    const fn new(ring: &'static Mutex<Ring>) -> Self {
        Self {
            state: Mutex::new(State { settings: Settings::EARLY, host_limit: RateLimit::new(), guest_limit: RateLimit::new() }),
            ring,
            sink: Once::new(),
            clock: Once::new(),
            before_cursor: AtomicU32::new(0),
        }
    }

    fn configure(&self, options: &Options) {
        self.state.lock().settings =
            Settings { host: options.loglvl, guest: options.guest_loglvl, timestamps: options.console_timestamps };
    }

    fn set_sink(&self, sink: &'static dyn Sink) {
        let _state = self.state.lock();
        self.sink.call_once(|| {
            self.ring.lock().each(&mut |part| {
                for line in part.split_inclusive(|&b| b == b'\n') {
                    show(sink, line);
                }
            });
            sink
        });
    }

    fn stamp(&self) -> Stamp {
        self.clock.get().map_or_else(Stamp::default, |c| c.stamp())
    }

    fn fresh_line(&self) {
        const BLANKS: [u8; 32] = [b' '; 32];
        let columns = self.before_cursor.swap(0, Ordering::Relaxed);
        let Some(sink) = self.sink.get().filter(|_| columns > 0) else { return };
        if columns > LONGEST_TRANSIENT {
            sink.write(b"\r\n");
            return;
        }
        sink.write(b"\r");
        let mut left = columns as usize;
        while let Some(blanks) = BLANKS.get(..left.min(BLANKS.len())).filter(|blanks| !blanks.is_empty()) {
            sink.write(blanks);
            left -= blanks.len();
        }
        sink.write(b"\r");
    }

    /// Builds and prints the lines of one message.
    fn line(&self, message: fmt::Arguments<'_>) {
        let text = LineBuffer::format(message);
        self.put(&mut self.state.lock(), text.as_str());
    }

    fn put(&self, state: &mut State, text: &str) {
        let stamp = self.stamp();
        self.fresh_line();
        for line in text.trim_end_matches('\n').split('\n') {
            let mut out = LineBuffer::default();
            // A full buffer cuts the line: there is nothing else to do about it.
            let _ = out.write_str(PREFIX);
            let _ = timestamp(&mut out, state.settings.timestamps, stamp);
            let _ = out.write_str(line);
            for bytes in [out.as_str().as_bytes(), b"\n"] {
                self.ring.lock().push(bytes);
                if let Some(sink) = self.sink.get() {
                    show(*sink, bytes);
                }
            }
        }
    }
}

/// Shows a line, or part of one, with LF as CR LF.
fn show(sink: &dyn Sink, line: &[u8]) {
    match line.strip_suffix(b"\n") {
        Some(text) => {
            sink.write(text);
            sink.write(b"\r\n");
        }
        None => sink.write(line),
    }
}

impl ::log::Log for Logger {
    fn enabled(&self, metadata: &::log::Metadata<'_>) -> bool {
        let settings = self.state.lock().settings;
        level(metadata.level()) <= threshold(&settings, metadata.target()).rate_limited
    }

    fn log(&self, record: &::log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = LineBuffer::format(*record.args());
        let now = self.stamp().boot_ns;
        let mut state = self.state.lock();
        let limit = threshold(&state.settings, record.target());
        if level(record.level()) > limit.always {
            let bucket = if is_guest(record.target()) { &mut state.guest_limit } else { &mut state.host_limit };
            match bucket.take(now) {
                Verdict::Suppress => return,
                Verdict::Pass { suppressed: 0 } => {}
                Verdict::Pass { suppressed } => {
                    let note = LineBuffer::format(format_args!("{suppressed} messages suppressed"));
                    self.put(&mut state, note.as_str());
                }
            }
        }
        self.put(&mut state, text.as_str());
    }

    fn flush(&self) {}
}

fn is_guest(target: &str) -> bool {
    target == GUEST
}

fn threshold(settings: &Settings, target: &str) -> LogThreshold {
    if is_guest(target) { settings.guest } else { settings.host }
}

fn level(level: ::log::Level) -> LogLevel {
    match level {
        ::log::Level::Error => LogLevel::Error,
        ::log::Level::Warn => LogLevel::Warning,
        ::log::Level::Info => LogLevel::Info,
        ::log::Level::Debug => LogLevel::Debug,
        ::log::Level::Trace => LogLevel::All,
    }
}

fn timestamp(out: &mut LineBuffer, kind: Timestamps, stamp: Stamp) -> fmt::Result {
    match kind {
        Timestamps::None => Ok(()),
        Timestamps::Raw => write!(out, "[{:016x}] ", stamp.tsc),
        Timestamps::Boot => {
            write!(out, "[{:6}.{:06}] ", stamp.boot_ns / 1_000_000_000, stamp.boot_ns / 1_000 % 1_000_000)
        }
        Timestamps::Date | Timestamps::DateMs => {
            let seconds = stamp.unix_ms / 1000;
            let (year, month, day) = civil(seconds / 86_400);
            let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
            write!(out, "[{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")?;
            if kind == Timestamps::DateMs {
                write!(out, ".{:03}", stamp.unix_ms % 1000)?;
            }
            out.write_str("] ")
        }
    }
}

/// Year, month and day of a number of days since 1970-01-01, in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years are counted from March, so that the leap day is the last of its year, in eras of 400 years (146097 days).
    let days = days.saturating_add(719_468);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year + u64::from(month <= 2), month, of_year - (153 * shifted + 2) / 5 + 1)
}

/// Messages that pass one after another, then one each time that a token has come.
struct RateLimit {
    tokens: u32,
    /// When the last token came.
    refilled_ns: u64,
    suppressed: u64,
}

#[derive(PartialEq, Eq, Debug)]
enum Verdict {
    /// Print it, and say first how many were not printed.
    Pass {
        suppressed: u64,
    },
    Suppress,
}

impl RateLimit {
    const fn new() -> Self {
        Self { tokens: BURST, refilled_ns: 0, suppressed: 0 }
    }

    fn take(&mut self, now_ns: u64) -> Verdict {
        let new = now_ns.saturating_sub(self.refilled_ns) / REFILL_NS;
        self.refilled_ns = self.refilled_ns.saturating_add(new.saturating_mul(REFILL_NS));
        self.tokens = u32::try_from(new).unwrap_or(BURST).saturating_add(self.tokens).min(BURST);
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                Verdict::Pass { suppressed: core::mem::take(&mut self.suppressed) }
            }
            None => {
                self.suppressed = self.suppressed.saturating_add(1);
                Verdict::Suppress
            }
        }
    }
}

/// Text of at most [`LINE`] bytes; what does not fit is dropped, and the end says so.
struct LineBuffer {
    bytes: [u8; LINE],
    len: usize,
}

impl Default for LineBuffer {
    fn default() -> Self {
        Self { bytes: [0; LINE], len: 0 }
    }
}

impl LineBuffer {
    fn format(message: fmt::Arguments<'_>) -> Self {
        const MARK: &[u8] = b" ...";
        let mut buffer = Self::default();
        if buffer.write_fmt(message).is_err() {
            let end = buffer.len.min(LINE - MARK.len());
            // Not in the middle of a character.
            let end = (0..=end).rev().find(|&e| buffer.as_str().is_char_boundary(e)).unwrap_or(0);
            if let Some(slot) = buffer.bytes.get_mut(end..end + MARK.len()) {
                slot.copy_from_slice(MARK);
                buffer.len = end + MARK.len();
            }
        }
        buffer
    }

    fn as_str(&self) -> &str {
        // Only whole characters are ever copied in.
        self.bytes.get(..self.len).and_then(|b| str::from_utf8(b).ok()).unwrap_or("")
    }
}

impl fmt::Write for LineBuffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LINE - self.len;
        let fits = (0..=text.len().min(room)).rev().find(|&n| text.is_char_boundary(n)).unwrap_or(0);
        if let (Some(slot), Some(part)) = (self.bytes.get_mut(self.len..self.len + fits), text.as_bytes().get(..fits)) {
            slot.copy_from_slice(part);
            self.len += fits;
        }
        if fits == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// The last [`RING`] bytes that were logged.
struct Ring {
    bytes: [u8; RING],
    /// Bytes ever pushed: the position after the newest.
    end: u64,
}

impl Ring {
    const fn new() -> Self {
        Self { bytes: [0; RING], end: 0 }
    }

    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if let Some(slot) = self.bytes.get_mut((self.end % RING as u64) as usize) {
                *slot = byte;
            }
            self.end += 1;
        }
    }

    fn start(&self) -> u64 {
        self.end.saturating_sub(RING as u64)
    }

    fn read(&self, from: u64, buffer: &mut [u8]) -> (usize, u64) {
        let from = from.clamp(self.start(), self.end);
        let mut count = 0;
        for (position, slot) in (from..self.end).zip(buffer.iter_mut()) {
            *slot = self.bytes.get((position % RING as u64) as usize).copied().unwrap_or(0);
            count += 1;
        }
        (count, from + count as u64)
    }

    /// Calls `f` with all that is kept, oldest first, in one or two parts.
    fn each(&self, f: &mut dyn FnMut(&[u8])) {
        let (new, old) = self.bytes.split_at((self.end % RING as u64) as usize);
        if self.end >= RING as u64 {
            f(old);
        }
        f(new);
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
