//! Saying that something takes its time: a spinner if somebody watches, else a line.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    process,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

/// Prints a line to stdout. If nobody reads it any more, there is nothing left to do: `println!` would panic.
pub fn say(line: impl fmt::Display) {
    if writeln!(io::stdout().lock(), "{line}").is_err() {
        process::exit(1);
    }
}

/// Gone as soon as it is dropped.
#[derive(Clone, Debug)]
pub struct Spinner(ProgressBar);

impl Spinner {
    pub fn start(text: &str) -> Self {
        if !io::stderr().is_terminal() {
            eprintln!("xtask: {text}");
            return Self(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})").expect("the template is right");
        let bar = ProgressBar::new_spinner().with_style(style).with_message(text.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }

    /// Prints lines to stdout, above the spinner.
    pub fn print(&self, lines: impl IntoIterator<Item = String>) {
        self.0.suspend(|| lines.into_iter().for_each(say));
    }

    pub fn set_text(&self, text: String) {
        self.0.set_message(text);
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
