//! The operator at the machine itself, with a screen and a PS/2 keyboard. QEMU's monitor presses the keys.

use std::{io::Write, os::unix::net::UnixStream, path::PathBuf, thread, time::Duration};

use crate::{
    lines::{Event, GuestEnd},
    list::Platform,
    machine::Machine,
    session::{End, Observer, Outcome},
};

pub const NAME: &str = "keyboard";
/// Bochs has no way to press a key without a display.
pub const ON: &[Platform] = &[Platform::SvmQemu];
/// Besides those of every test.
pub const OPTIONS: &str = "console=com1,vga conswitch=ax";
/// A guest that goes on until it is destroyed.
pub const GUEST: &str = "keys";
pub const CASE: &str = "work ms=3600000";

/// `destroy keys`, with the mistakes of somebody who knows the line editor, in QEMU's names for keys.
const KEYS: &[&str] = &[
    "d",
    "e",
    "s",
    "t",
    "o",
    "y",
    "left",
    "left",
    "r",
    "end",
    "spc",
    "caps_lock",
    "shift-k",
    "e",
    "caps_lock",
    "backspace",
    "e",
    "y",
    "s",
    "shift-1",
    "left",
    "delete",
    "ret",
];
/// The shell has come.
const GREETING: &str = "The hypervisor's shell";
/// A key is down for 100 ms.
const PAUSE: Duration = Duration::from_millis(150);

/// Types when the shell is there.
#[derive(Default)]
pub struct Typist {
    monitor: Option<PathBuf>,
    pub lines: Vec<String>,
}

impl Observer for Typist {
    fn started(&mut self, machine: &Machine) {
        self.monitor = machine.monitor();
    }

    fn line(&mut self, line: &str, _: Option<&Event>) {
        self.lines.push(line.to_owned());
        if line.contains(GREETING)
            && let Some(monitor) = self.monitor.take()
        {
            // A failure shows in what the guest does not do.
            thread::spawn(move || press(&monitor, KEYS));
        }
    }
}

fn press(monitor: &PathBuf, keys: &[&str]) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(monitor)?;
    // What the monitor says has to go somewhere.
    let mut answers = stream.try_clone()?;
    thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
    for key in keys {
        stream.write_all(format!("sendkey {key}\n").as_bytes())?;
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// # Errors
/// What has not happened.
pub fn check(outcome: &Outcome) -> Result<(), String> {
    match outcome.ends().find(|(guest, _)| *guest == GUEST) {
        Some((_, GuestEnd::Destroyed)) if matches!(outcome.end, End::AllEnded) => Ok(()),
        Some((_, how)) => Err(format!("the guest was to be destroyed by what was typed; it ended: {how}; {}", outcome.end)),
        None => Err(format!("what was typed has not ended the guest: {}", outcome.end)),
    }
}
