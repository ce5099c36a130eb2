//! The operator's shell: keys, editor, parser and verbs, on a scripted host.

use crate::{Source, Target};
use hv::{
    shell::{self, Shell, fake::FakeHost},
    testing::FakePlatform,
};
use std::sync::atomic::Ordering;

const WORDS: &[&[u8]] = &[
    b"help",
    b"list",
    b"vcpu-list",
    b"create",
    b"destroy",
    b"pause",
    b"unpause",
    b"shutdown",
    b"reboot",
    b"console",
    b"trigger",
    b"vcpu-pin",
    b"sched-credit2",
    b"dmesg",
    b"info",
    b"top",
    b"uptime",
    b"debug-keys",
    b"poweroff",
    b" web",
    b" db",
    b" old",
    b" 1",
    b" 3",
    b" web.cfg",
    b" mail",
    b" all",
    b" nmi",
    b" power",
    b" reset",
    b" -d",
    b" -w",
    b" -c",
    b" -f",
    b" -a",
    b" -p",
    b" 0-3,^2",
    b" 65535",
    b" 65536",
    b" 4294967296",
    b" *",
    b"\r",
    b"\n",
    b"\r\n",
    b"\t",
    b"\t\t",
    b"\x1b[A",
    b"\x1b[B",
    b"\x1b[C",
    b"\x1b[D",
    b"\x1b[H",
    b"\x1b[F",
    b"\x1b[3~",
    b"\x1b[1;5C",
    b"\x1b[1;5D",
    b"\x1bOA",
    b"\x1bb",
    b"\x1bf",
    b"\x1bd",
    b"\x7f",
    b"\x01",
    b"\x02",
    b"\x03",
    b"\x04",
    b"\x05",
    b"\x06",
    b"\x0b",
    b"\x0c",
    b"\x0e",
    b"\x10",
    b"\x15",
    b"\x17",
    b"y\r",
];

/// Bytes as a terminal sends them, and a console that has not always room.
pub const KEYS: Target = Target {
    name: "shell-keys",
    run: keys,
    seeds: &[
        b"list\rvcpu-list db\rtop\rtop\r",
        b"pau\tw\t\r\x1b[A\x1b[D\x1b[Dx\x7f\r",
        b"poweroff\ry\rreboot\rn\r",
        b"vcpu-pin db 3 0-3,^2\rsched-credit2 -d web -w 512\rdmesg -c\rdmesg\r",
        b"\xff\x03\xff\x00\xfflist\r",
    ],
    words: WORDS,
};

fn keys(source: &mut Source<'_>) {
    let (host, platform) = (FakeHost::new(), FakePlatform::new());
    let mut shell = Shell::default();
    while !source.is_empty() {
        match source.u8() {
            // No terminal sends this one, so it is free to stand for something else that happens.
            0xff => match source.u8() {
                0 => shell.pump(&platform, true),
                1 => shell.pump(&platform, false),
                2 => platform.room.store(source.u16().into(), Ordering::Relaxed),
                _ => {
                    platform.room.store(usize::MAX, Ordering::Relaxed);
                    host.now.set(host.now.get() + source.delay() % (1 << 50));
                }
            },
            // The host's loop asks before it reads the console.
            byte if shell.wants_input() => shell.input(byte, &platform, &host),
            _ => {}
        }
        check_output(&platform);
    }
    // Whatever there was, the operator can go on: the line is dropped, and the next is carried out.
    platform.room.store(usize::MAX, Ordering::Relaxed);
    shell.pump(&platform, true);
    assert!(!shell.has_output());
    host.refusal.take();
    host.calls.take();
    for byte in *b"\x03\x03\rpause web\r" {
        shell.input(byte, &platform, &host);
    }
    assert_eq!(host.calls().last().map(String::as_str), Some("pause 1"));
    shell.pump(&platform, true);
    check_output(&platform);
}

/// The terminal gets text and the few control sequences that every terminal knows.
fn check_output(platform: &FakePlatform) {
    let output = std::mem::take(&mut *platform.output.lock().unwrap());
    let bad = output.iter().find(|&&byte| byte < b' ' && !matches!(byte, 0x07 | 0x08 | b'\t' | b'\n' | b'\r' | 0x1b));
    assert_eq!(bad, None, "in {:?}", String::from_utf8_lossy(&output));
}

/// Lines that are made of words, so that what is behind the parser is reached, too.
pub const LINES: Target = Target {
    name: "shell-lines",
    run: lines,
    seeds: &[b"\x01\x15\x00\x02\x15\x00", b"\x0a\x15\x1a\x00\x0c\x17\x1f\x22\x00", b"\x0d\x1d\x15\x1e\x25\x1f\x21\x00"],
    words: &[],
};

fn lines(source: &mut Source<'_>) {
    let (host, platform) = (FakeHost::new(), FakePlatform::new());
    let mut shell = Shell::default();
    while !source.is_empty() {
        let mut line = String::new();
        // A zero ends the line.
        while let word @ 1.. = usize::from(source.u8()) {
            match WORDS.get(word - 1).and_then(|word| str::from_utf8(word).ok()) {
                Some(word) if !word.contains(char::is_control) => line.push_str(word),
                Some(_) => line.push(' '),
                None => line.push(char::from(b' ' + source.u8() % 95)),
            }
        }
        line.truncate(500);
        match shell::parse(&line) {
            Ok(Some(_)) => assert!(!line.trim().is_empty()),
            Ok(None) => assert!(line.trim().is_empty(), "{line:?} is no command and no error"),
            Err(error) => {
                let text = error.to_string();
                assert!(
                    text.contains("\nusage: ")
                        || text.contains("help")
                        || text.contains("did you mean")
                        || text.contains("known to xl"),
                    "{text}"
                );
            }
        }
        host.calls.take();
        for byte in line.bytes().chain(*b"\r") {
            shell.input(byte, &platform, &host);
        }
        shell.pump(&platform, true);
        check_output(&platform);
    }
}
