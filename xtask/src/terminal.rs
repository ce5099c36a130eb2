//! The user's terminal: raw while a guest's console is on it, and as it was before in every other moment.

use std::{
    io::{self, IsTerminal, Read},
    panic,
    sync::{Mutex, mpsc::Sender},
    thread,
};

use anyhow::{Context, Result};
use runner::session::{Message, Stop};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM},
    iterator::Signals,
};

use crate::debian;

/// Ctrl-], as in telnet and virsh.
pub const ESCAPE: u8 = 0x1d;
pub const ESCAPE_NAME: &str = "Ctrl-]";

/// How the terminal was before it became raw, for every way out: the end of the guard, or a panic (which aborts, running no destructor).
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

fn restore() {
    let saved = SAVED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    if let Some(termios) = saved {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &termios);
    }
}

/// While it lives, keys go to the guest one by one, and their meaning is the guest's.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// `None` if stdin is no terminal.
    pub fn enter() -> Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let termios = tcgetattr(io::stdin()).context("cannot read the terminal's settings")?;
        let mut raw = termios.clone();
        raw.make_raw();
        *SAVED.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(termios);
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("cannot make the terminal raw")?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal before a panic's message, and passes signals that would end us on to the session instead.
pub fn watch(sender: Sender<Message>) -> Result<()> {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        restore();
        print(info);
    }));
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM]).context("cannot watch for signals")?;
    thread::spawn(move || {
        for signal in signals.forever() {
            if sender.send(Message::Stop(Stop::Signal(signal))).is_err() {
                // The session is over, but we are not: as if nobody had watched.
                restore();
                std::process::exit(128 + signal);
            }
        }
    });
    Ok(())
}

/// Sends what comes from stdin to the session, and ends it at the escape key if a person types.
pub fn forward_input(sender: Sender<Message>) {
    let person = io::stdin().is_terminal();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        let mut stdin = io::stdin().lock();
        // An error or the end: the guest gets no more, but goes on.
        while let Ok(n @ 1..) = stdin.read(&mut buffer) {
            let (input, escape) = if person { split_at_escape(&buffer[..n]) } else { (&buffer[..n], false) };
            if sender.send(Message::Input(input.to_vec())).is_err() {
                return;
            }
            if escape && sender.send(Message::Stop(Stop::Escape)).is_err() {
                return;
            }
        }
    });
}

/// What was typed before the escape key, and whether that was pressed.
fn split_at_escape(typed: &[u8]) -> (&[u8], bool) {
    match typed.iter().position(|b| *b == ESCAPE) {
        Some(at) => (&typed[..at], true),
        None => (typed, false),
    }
}

/// The size and type of the terminal on stdout, if it is one.
pub fn size() -> Option<debian::Terminal> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let size = tcgetwinsize(io::stdout()).ok()?;
    if size.ws_row == 0 || size.ws_col == 0 {
        return None;
    }
    let kind = std::env::var("TERM").unwrap_or_else(|_| "vt100".into());
    Some(debian::Terminal { rows: size.ws_row, columns: size.ws_col, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_key_splits_what_was_typed() {
        assert_eq!(split_at_escape(b"ls\r"), (&b"ls\r"[..], false));
        assert_eq!(split_at_escape(b"ls\x1drm"), (&b"ls"[..], true));
        assert_eq!(split_at_escape(b"\x1d"), (&b""[..], true));
    }
}
