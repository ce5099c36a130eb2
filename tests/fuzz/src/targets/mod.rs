//! What is fuzzed.

mod config;
mod console;
mod options;
mod shell;

use crate::Target;

pub const TARGETS: &[Target] = &[shell::KEYS, shell::LINES, console::CONSOLE, config::CONFIG, options::OPTIONS];

/// Checks a message for the console: it must be one line of text without control characters, whatever it quotes.
fn check_message(message: &dyn std::fmt::Display) {
    let text = message.to_string();
    assert!(!text.is_empty(), "a message that says nothing");
    assert!(!text.chars().any(char::is_control), "control characters in {text:?}");
}
