//! The host's console, shared among guests and the shell: who gets what is typed, and what is shown of what they write.

use crate::{Source, Target};
use hv::{
    console::{Console, GuestConsole, Key},
    options::{GuestOutput, Options},
    testing::FakePlatform,
};
use std::sync::atomic::Ordering;

const SWITCH: u8 = 1;
/// A line of a guest in the background and the name before it are not cut in the middle, so that a console without room shows less.
const ROOM: usize = 4096;

/// Keys, guests that come and go, and output, in any order.
pub const CONSOLE: Target = Target {
    name: "console",
    run: console,
    seeds: &[
        b"\x00\x00\x00\x01\x01a\x01\x01\x01\x01\x01\x01\x01\x01\x01b",
        b"\x01\x00\x00\x00\x00\x03\x05hello\x01\x01\x01\x01\x01\x01\x03\x03a\nb",
    ],
    words: &[b"\x01\x01\x01\x01\x01\x01", b"\x00\x00", b"\x02\x00", b"\x03\x04a\nb\r"],
};

fn console(source: &mut Source<'_>) {
    let platform = FakePlatform::new();
    let mut options = Options::default();
    if source.u8() & 1 != 0 {
        options.guest_output = GuestOutput::Switch;
    }
    let console = Console::new(&options);
    assert_eq!(options.conswitch.code, Some(SWITCH));
    let mut guests: Vec<(u32, GuestConsole, Vec<u8>)> = Vec::new();
    let mut next = 1;
    // Switch characters that nobody has got yet.
    let mut held = 0;
    while !source.is_empty() {
        match source.below(5) {
            0 if guests.len() < 4 => {
                console.guest_started(next);
                guests.push((next, GuestConsole::default(), Vec::new()));
                next += 1;
            }
            1 => {
                let byte = source.u8();
                let ids: Vec<u32> = guests.iter().map(|guest| guest.0).collect();
                let before = console.focus();
                match console.key(byte, &ids) {
                    Key::Held => {
                        held += 1;
                        assert!(byte == SWITCH && held < 3);
                    }
                    Key::Switched(to) => {
                        assert!(byte == SWITCH && held == 2);
                        held = 0;
                        assert_eq!(console.focus(), to);
                        assert!(to.is_none_or(|id| ids.contains(&id)), "switched to nobody");
                        assert!(to != before || ids.is_empty(), "switched to where the input was");
                    }
                    Key::Shell(typed) => {
                        assert_eq!(before, None);
                        check_typed(&typed, byte, &mut held);
                    }
                    Key::Guest(id, typed) => {
                        assert_eq!(before, Some(id));
                        check_typed(&typed, byte, &mut held);
                    }
                }
            }
            2 if !guests.is_empty() => {
                let (id, guest, _) = guests.remove(source.below(guests.len()));
                platform.room.store(usize::MAX, Ordering::Relaxed);
                console.finish(&platform, "guest", &guest);
                console.guest_ended(id);
                assert_ne!(console.focus(), Some(id));
            }
            3 if !guests.is_empty() => {
                let at = source.below(guests.len());
                let (id, guest, written) = &mut guests[at];
                let count = source.u8().into();
                for &byte in source.bytes(count) {
                    platform.room.store(source.clone().below(ROOM), Ordering::Relaxed);
                    let shown = platform.output.lock().unwrap().len();
                    let focused = console.focus() == Some(*id);
                    if console.write(&platform, *id, "guest", guest, byte) {
                        written.push(byte);
                        let output = platform.output.lock().unwrap();
                        assert!(!focused || output.len() > shown && output.last() == Some(&byte), "taken and not shown");
                    }
                }
            }
            4 => {
                platform.room.store(usize::MAX, Ordering::Relaxed);
                for (id, guest, _) in &guests {
                    console.catch_up(&platform, *id, "guest", guest);
                }
            }
            _ => {}
        }
        platform.output.lock().unwrap().clear();
        for (_, guest, written) in &guests {
            let history = guest.history();
            assert!(
                written.ends_with(&history) && (history.len() == written.len() || history.len() == 16 << 10),
                "history differs"
            );
        }
    }
}

/// What is passed on is what was held, and then the key.
fn check_typed(typed: &[u8], byte: u8, held: &mut usize) {
    assert_ne!(byte, SWITCH);
    let (last, before) = typed.split_last().expect("at least the key");
    assert_eq!((*last, before.len()), (byte, *held));
    assert!(before.iter().all(|&byte| byte == SWITCH));
    *held = 0;
}
