use super::*;
use ::log::{Level, Log as _, Record};
use core::sync::atomic::AtomicU64;
use std::{boxed::Box, format, string::String, sync::Mutex as StdMutex, vec, vec::Vec};

#[derive(Default)]
struct Shown(StdMutex<Vec<u8>>);

impl Shown {
    fn take(&self) -> String {
        String::from_utf8(core::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

impl Sink for Shown {
    fn write(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

struct Clock(AtomicU64);

impl StampSource for Clock {
    fn stamp(&self) -> Stamp {
        let boot_ns = self.0.load(Ordering::Relaxed);
        Stamp { tsc: 0xabc, boot_ns, unix_ms: 1_709_210_096_789 }
    }
}

fn logger() -> (&'static Logger, &'static Shown, &'static Clock) {
    let logger: &'static Logger = Box::leak(Box::new(Logger::new(Box::leak(Box::new(Mutex::new(Ring::new()))))));
    let clock: &'static Clock = Box::leak(Box::new(Clock(AtomicU64::new(0))));
    logger.clock.call_once(|| clock);
    (logger, Box::leak(Box::default()), clock)
}

fn send(logger: &Logger, level: Level, target: &str, text: &str) {
    logger.log(&Record::builder().level(level).target(target).args(format_args!("{text}")).build());
}

#[test]
fn early_lines_are_shown_when_the_sink_comes() {
    let (logger, shown, _) = logger();
    logger.line(format_args!("one"));
    logger.line(format_args!("two\nthree\n"));
    logger.set_sink(shown);
    assert_eq!(shown.take(), "(BH) one\r\n(BH) two\r\n(BH) three\r\n");
    logger.line(format_args!("four"));
    assert_eq!(shown.take(), "(BH) four\r\n");
}

#[test]
fn a_line_never_starts_within_anothers() {
    let (logger, shown, _) = logger();
    logger.set_sink(shown);
    logger.before_cursor.store(UNFINISHED, Ordering::Relaxed);
    logger.line(format_args!("x"));
    logger.line(format_args!("y"));
    assert_eq!(shown.take(), "\r\n(BH) x\r\n(BH) y\r\n");
}

#[test]
fn levels_are_separate_for_host_and_guest() {
    let (logger, shown, _) = logger();
    logger.set_sink(shown);
    let (options, problems) = Options::parse("loglvl=info guest_loglvl=error");
    assert!(problems.is_empty());
    logger.configure(&options);
    send(logger, Level::Debug, "hv::vm", "no");
    send(logger, Level::Info, "hv::vm", "yes");
    send(logger, Level::Warn, GUEST, "no");
    send(logger, Level::Error, GUEST, "guest");
    assert_eq!(shown.take(), "(BH) yes\r\n(BH) guest\r\n");
}

#[test]
fn rate_limited_messages_are_counted_and_come_back() {
    let (logger, shown, clock) = logger();
    logger.set_sink(shown);
    logger.configure(&Options::parse("guest_loglvl=none/all").0);
    for n in 0..25 {
        send(logger, Level::Warn, GUEST, &format!("m{n}"));
    }
    assert_eq!(shown.take().lines().count(), BURST as usize);
    // Other messages are not concerned.
    send(logger, Level::Warn, "hv", "host");
    assert_eq!(shown.take(), "(BH) host\r\n");
    clock.0.store(REFILL_NS, Ordering::Relaxed);
    send(logger, Level::Warn, GUEST, "later");
    send(logger, Level::Warn, GUEST, "too soon");
    assert_eq!(shown.take(), "(BH) 15 messages suppressed\r\n(BH) later\r\n");
}

#[test]
fn timestamps_in_xens_forms() {
    let (logger, shown, clock) = logger();
    logger.set_sink(shown);
    clock.0.store(12_345_678_912, Ordering::Relaxed);
    for (option, text) in [
        ("date", "(BH) [2024-02-29 12:34:56] x\r\n"),
        ("datems", "(BH) [2024-02-29 12:34:56.789] x\r\n"),
        ("boot", "(BH) [    12.345678] x\r\n"),
        ("raw", "(BH) [0000000000000abc] x\r\n"),
        ("none", "(BH) x\r\n"),
    ] {
        logger.configure(&Options::parse(&format!("console_timestamps={option}")).0);
        logger.line(format_args!("x"));
        assert_eq!(shown.take(), text);
    }
}

#[test]
fn calendar_over_leap_years() {
    assert_eq!(civil(0), (1970, 1, 1));
    assert_eq!(civil(11_016), (2000, 2, 29));
    assert_eq!(civil(47_540), (2100, 2, 28));
    assert_eq!(civil(47_541), (2100, 3, 1));
    assert_eq!(civil(20_453), (2025, 12, 31));
}

#[test]
fn the_ring_keeps_the_newest() {
    let mut ring = Box::new(Ring::new());
    ring.push(&vec![b'a'; RING - 2]);
    ring.push(b"bcdef");
    let mut buffer = vec![0; RING];
    let (count, next) = ring.read(0, &mut buffer);
    assert_eq!((count, next), (RING, RING as u64 + 3));
    assert!(buffer.ends_with(b"abcdef"));
    assert_eq!(ring.read(next - 2, &mut buffer), (2, next));
    assert_eq!(&buffer[..2], b"ef");
    let mut all = Vec::new();
    ring.each(&mut |part| all.extend_from_slice(part));
    assert_eq!(all.len(), RING);
    assert!(all.starts_with(b"aaa") && all.ends_with(b"abcdef"));
}

#[test]
fn a_long_line_is_cut_between_characters() {
    let (logger, shown, _) = logger();
    logger.set_sink(shown);
    logger.line(format_args!("{}", "ü".repeat(LINE)));
    let line = shown.take();
    assert!(line.ends_with("\r\n") && line.len() <= LINE + 2, "{}", line.len());
    let text = LineBuffer::format(format_args!("x{}", "ü".repeat(LINE)));
    assert!(text.as_str().ends_with("ü ...") && text.as_str().starts_with("xü"));
}

#[test]
fn a_prompt_is_overwritten_and_other_unfinished_lines_are_ended() {
    let (logger, shown, _) = logger();
    logger.set_sink(shown);
    shown.take();
    for (before, expected) in [
        (0, String::from("(BH) x\r\n")),
        (UNFINISHED, String::from("\r\n(BH) x\r\n")),
        (10, String::from("\r          \r(BH) x\r\n")),
        (79, format!("\r{}\r(BH) x\r\n", " ".repeat(79))),
        (80, String::from("\r\n(BH) x\r\n")),
    ] {
        logger.before_cursor.store(before, Ordering::Relaxed);
        logger.line(format_args!("x"));
        assert_eq!(shown.take(), expected, "{before}");
    }
}

#[test]
fn nothing_is_logged_between_what_one_writes_who_holds_the_console() {
    let end = || read(u64::MAX, &mut []).1;
    let held = hold();
    let before = end();
    let other = std::thread::spawn(|| crate::always!("from another CPU"));
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(end(), before);
    drop(held);
    other.join().unwrap();
    assert!(end() > before);
}
