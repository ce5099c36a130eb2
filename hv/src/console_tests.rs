use super::*;
use crate::testing::FakePlatform;
use std::{string::ToString, vec};

fn shown(platform: &FakePlatform) -> String {
    String::from_utf8(core::mem::take(&mut platform.output.lock().unwrap())).unwrap()
}

fn console(options: &str) -> Console {
    let (options, problems) = Options::parse(options);
    assert_eq!(problems, []);
    Console::new(&options)
}

/// Lets a guest write a text, all of which there must be room for.
fn write(console: &Console, platform: &FakePlatform, id: u32, name: &str, guest: &GuestConsole, text: &[u8]) {
    for byte in text {
        assert!(console.write(platform, id, name, guest, *byte));
    }
}

#[test]
fn foreground_is_raw_and_background_is_prefixed_by_line() {
    let platform = FakePlatform::new();
    let console = Console::default();
    let (a, b) = (GuestConsole::default(), GuestConsole::default());
    console.set_focus(Some(1));
    write(&console, &platform, 1, "a", &a, b"ab");
    assert_eq!(shown(&platform), "ab");
    platform.tsc.fetch_add(STILL_MS * 1_000_000, Ordering::Relaxed);
    write(&console, &platform, 2, "b", &b, b"one\r\ntwo");
    assert!(shown(&platform).ends_with("(b) one\r\n"));
    console.finish(&platform, "b", &b);
    assert!(shown(&platform).ends_with("(b) two\r\n"));
    assert_eq!(b.history(), b"one\r\ntwo");
}

/// A word that is just being written is not torn apart.
#[test]
fn background_lines_wait_for_the_end_of_the_foregrounds_or_for_its_silence() {
    const MS: u64 = 1_000_000;
    let platform = FakePlatform::new();
    let later = |ms: u64| _ = platform.tsc.fetch_add(ms * MS, Ordering::Relaxed);
    let console = Console::default();
    let (a, b) = (GuestConsole::default(), GuestConsole::default());
    console.set_focus(Some(1));
    let newline = || console.write(&platform, 2, "b", &b, b'\n');
    write(&console, &platform, 1, "a", &a, b"log");
    write(&console, &platform, 2, "b", &b, b"one");
    assert!(!newline());
    later(STILL_MS - 1);
    write(&console, &platform, 1, "a", &a, b"in");
    later(STILL_MS - 1);
    assert!(!newline());
    write(&console, &platform, 1, "a", &a, b"!\r\n");
    assert!(newline());
    assert_eq!(shown(&platform), "login!\r\n(b) one\r\n");

    // A prompt stays unfinished.
    write(&console, &platform, 1, "a", &a, b"$ ");
    assert!(!newline());
    later(STILL_MS);
    assert!(newline());
    assert!(shown(&platform).ends_with("(b) \r\n"));

    // One that never ends its line does not keep the others silent.
    for _ in 0..LONG_LINE_MS / 10 {
        write(&console, &platform, 1, "a", &a, b".");
        later(10);
    }
    assert!(newline());

    // Nor is there any waiting at a guest's end, nor when the shell has the input.
    write(&console, &platform, 1, "a", &a, b"\r\n.");
    assert!(!newline());
    b.end();
    assert!(newline());
    console.set_focus(None);
    assert!(console.write(&platform, 3, "c", &GuestConsole::default(), b'\n'));
}

#[test]
fn an_unfinished_line_is_shown_when_its_guest_gets_the_input() {
    let platform = FakePlatform::new();
    let console = Console::default();
    let guest = GuestConsole::default();
    write(&console, &platform, 1, "a", &guest, b"hello\nlogin: ");
    assert!(shown(&platform).ends_with("(a) hello\r\n"));
    assert!(!console.is_behind(1, &guest), "another has the input");
    console.set_focus(Some(1));
    assert!(console.is_behind(1, &guest));
    console.catch_up(&platform, 1, "a", &guest);
    assert_eq!(shown(&platform), "login: ");
    assert!(!console.is_behind(1, &guest));
}

#[test]
fn a_long_line_in_the_background_comes_in_pieces() {
    let platform = FakePlatform::new();
    let console = Console::default();
    let guest = GuestConsole::default();
    write(&console, &platform, 1, "a", &guest, &[b'x'; LINE + 1]);
    write(&console, &platform, 1, "a", &guest, b"\n");
    let text = shown(&platform);
    assert!(text.ends_with(&alloc::format!("(a) {}\r\n(a) x\r\n", "x".repeat(LINE))), "{text}");
}

#[test]
fn in_switch_mode_the_backlog_waits_for_the_switch() {
    let platform = FakePlatform::new();
    let console = console("guest_output=switch");
    let (a, b) = (GuestConsole::default(), GuestConsole::default());
    console.set_focus(Some(1));
    write(&console, &platform, 2, "b", &b, b"early\r\n$ ");
    write(&console, &platform, 1, "a", &a, b"A");
    assert_eq!(shown(&platform), "A");
    assert!(!console.is_behind(2, &b));
    console.set_focus(Some(2));
    assert!(console.is_behind(2, &b));
    // Whoever comes first, the order is that of writing.
    write(&console, &platform, 2, "b", &b, b"late");
    console.catch_up(&platform, 2, "b", &b);
    assert_eq!(shown(&platform), "early\r\n$ late");
    write(&console, &platform, 1, "a", &a, b"B");
    console.set_focus(Some(1));
    console.catch_up(&platform, 1, "a", &a);
    assert_eq!(shown(&platform), "B", "what was shown is not shown again");
}

#[test]
fn a_backlog_longer_than_the_ring_loses_its_start() {
    let platform = FakePlatform::new();
    let console = console("guest_output=switch");
    let guest = GuestConsole::default();
    for n in 0..HISTORY + 100 {
        assert!(console.write(&platform, 1, "a", &guest, b'a' + (n % 26) as u8));
    }
    console.set_focus(Some(1));
    console.catch_up(&platform, 1, "a", &guest);
    let text = shown(&platform);
    assert_eq!(text.len(), HISTORY);
    assert!(text.starts_with(char::from(b'a' + 100 % 26)));
}

#[test]
fn a_guest_that_ends_unseen_leaves_its_last_words() {
    let platform = FakePlatform::new();
    let console = console("guest_output=switch");
    let guest = GuestConsole::default();
    write(&console, &platform, 1, "a", &guest, b"panic\nhalted");
    console.finish(&platform, "a", &guest);
    assert!(shown(&platform).ends_with("(a) panic\r\n(a) halted\r\n"));
}

#[test]
fn history_keeps_the_newest() {
    let guest = GuestConsole::default();
    for n in 0..HISTORY + 3 {
        guest.inner.lock().keep(n as u8);
    }
    let history = guest.history();
    assert_eq!(history.len(), HISTORY);
    assert_eq!(history[0], 3);
    assert_eq!(*history.last().unwrap(), (HISTORY + 2) as u8);
}

#[test]
fn typed_bytes_wait_for_the_guest_within_limits() {
    let guest = GuestConsole::default();
    assert!(guest.type_in(b"ab"));
    assert_eq!((guest.take_typed(), guest.take_typed(), guest.take_typed()), (Some(b'a'), Some(b'b'), None));
    assert!(guest.type_in(&vec![b'x'; TYPED - 1]));
    assert!(!guest.type_in(b"yz"), "z has no room");
    let taken: Vec<u8> = core::iter::from_fn(|| guest.take_typed()).collect();
    assert_eq!((taken.len(), taken.last()), (TYPED, Some(&b'y')));
}

/// What became of the keys: `S`hell, guests by number, `>` for switches.
fn typed(console: &Console, keys: &[u8], guests: &[u32]) -> String {
    let mut result = String::new();
    for &byte in keys {
        let (who, bytes) = match console.key(byte, guests) {
            Key::Held => continue,
            Key::Shell(bytes) => ("S".into(), bytes),
            Key::Guest(id, bytes) => (id.to_string(), bytes),
            Key::Switched(to) => {
                result += &alloc::format!(">{} ", to.map_or("S".into(), |id| id.to_string()));
                continue;
            }
        };
        result += &alloc::format!("{who}:{} ", bytes.escape_ascii());
    }
    result
}

#[test]
fn three_switch_characters_go_round() {
    let console = Console::default();
    assert_eq!(typed(&console, b"x\x01\x01\x01y\x01\x01\x01z\x01\x01\x01x", &[1, 7]), "S:x >1 1:y >7 7:z >S S:x ");
    // Nobody to switch to.
    assert_eq!(typed(&console, b"\x01\x01\x01", &[]), ">S ");
    // The one that has the input is on the list no more.
    console.set_focus(Some(3));
    assert_eq!(typed(&console, b"\x01\x01\x01\x01\x01\x01", &[1]), ">S >1 ");
}

#[test]
fn a_broken_sequence_passes_through() {
    let console = Console::default();
    console.set_focus(Some(1));
    assert_eq!(typed(&console, b"\x01a\x01\x01b", &[1]), "1:\\x01a 1:\\x01\\x01b ");
    assert_eq!(typed(&console, b"\x01\x01", &[1]), "", "held until it is known what follows");
    assert_eq!(typed(&console, b"\x01c", &[1]), ">S S:c ");
}

#[test]
fn the_switch_character_is_an_option() {
    let at_b = console("conswitch=b");
    assert_eq!(typed(&at_b, b"\x01\x01\x01\x02\x02\x02q", &[1]), "S:\\x01 S:\\x01 S:\\x01 >1 1:q ");
    assert_eq!(typed(&console("conswitch=`"), b"\0\0\0\x01\x01\x01", &[1]).matches("S:").count(), 6);
}

#[test]
fn the_first_guest_gets_the_input_unless_the_operator_wants_the_shell() {
    let console = Console::default();
    assert!(console.guest_started(1));
    assert!(!console.guest_started(2), "one is enough");
    assert_eq!(console.focus(), Some(1));
    assert!(!console.guest_ended(2));
    assert!(console.guest_ended(1));
    assert_eq!(console.focus(), None);
    assert!(console.guest_started(3), "a restarted guest gets it back");
    typed(&console, b"\x01\x01\x01", &[3]);
    assert!(!console.guest_started(4), "the operator has chosen the shell");
    assert_eq!(console.focus(), None);
}

#[test]
fn with_x_the_shell_has_the_input_until_the_operator_switches() {
    let console = console("conswitch=ax");
    assert!(!console.guest_started(1));
    typed(&console, b"\x01\x01\x01", &[1]);
    assert!(console.guest_ended(1));
    assert!(console.guest_started(2), "the operator was with its predecessor");
}

#[test]
fn typing_at_the_shell_keeps_it() {
    let console = Console::default();
    typed(&console, b"c", &[]);
    assert!(!console.guest_started(1));
}

/// A console with room for little.
#[test]
fn nothing_is_lost_on_a_full_console() {
    let platform = FakePlatform::new();
    let console = console("guest_output=switch");
    let guest = GuestConsole::default();
    let text: Vec<u8> = (0..3000u32).map(|n| b'a' + (n % 26) as u8).collect();
    write(&console, &platform, 1, "a", &guest, &text);
    console.set_focus(Some(1));
    let mut seen = Vec::new();
    let mut turns = 0;
    while console.is_behind(1, &guest) {
        platform.room.store(1500, Ordering::Relaxed);
        console.catch_up(&platform, 1, "a", &guest);
        platform.room.store(0, Ordering::Relaxed);
        assert!(!console.is_behind(1, &guest) || !console.write(&platform, 1, "a", &guest, b'!'));
        seen.append(&mut platform.output.lock().unwrap());
        turns += 1;
        assert!(turns < 10);
    }
    assert_eq!(seen, text);
}
