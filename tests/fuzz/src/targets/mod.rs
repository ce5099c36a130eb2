//! What is fuzzed.

mod board;
mod config;
mod console;
mod devices;
mod options;
mod shell;

use crate::Target;

pub const TARGETS: &[Target] = &ALL;

const SINGLE: [Target; 6] = [shell::KEYS, shell::LINES, console::CONSOLE, config::CONFIG, options::OPTIONS, board::BOARD];
const ALL: [Target; SINGLE.len() + devices::TARGETS.len()] = {
    let mut all = [board::BOARD; SINGLE.len() + devices::TARGETS.len()];
    let mut n = 0;
    while n < all.len() {
        all[n] = if n < SINGLE.len() { SINGLE[n] } else { devices::TARGETS[n - SINGLE.len()] };
        n += 1;
    }
    all
};

/// Checks a message for the console: it must be one line of text without control characters, whatever it quotes.
fn check_message(message: &dyn std::fmt::Display) {
    let text = message.to_string();
    assert!(!text.is_empty(), "a message that says nothing");
    assert!(!text.chars().any(char::is_control), "control characters in {text:?}");
}
