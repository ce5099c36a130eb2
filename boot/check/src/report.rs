//! What was found, line by line.

use std::fmt;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    Good,
    /// Worth knowing; changes no verdict.
    Note,
    /// Something that could not be looked at.
    Unknown,
    /// Bulkhead cannot run here.
    MachineFails,
    /// This guest would be refused.
    GuestFails,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Line {
    Section(String),
    Finding(Mark, String),
    Closing(String),
}

/// Findings, in the order in which they are printed.
#[derive(Clone, Default, Debug)]
pub struct Report {
    lines: Vec<Line>,
}

impl Report {
    pub fn section(&mut self, title: impl Into<String>) {
        self.lines.push(Line::Section(title.into()));
    }

    pub fn add(&mut self, mark: Mark, text: impl Into<String>) {
        self.lines.push(Line::Finding(mark, text.into()));
    }

    /// A sentence at the end.
    pub fn close(&mut self, text: impl Into<String>) {
        self.lines.push(Line::Closing(text.into()));
    }

    #[must_use]
    pub fn count(&self, wanted: Mark) -> usize {
        self.lines.iter().filter(|line| matches!(line, Line::Finding(mark, _) if *mark == wanted)).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            match line {
                Line::Section(title) => writeln!(f, "{title}:")?,
                Line::Finding(mark, text) => {
                    let mark = match mark {
                        Mark::Good => "ok",
                        Mark::Note => "note",
                        Mark::Unknown => "?",
                        Mark::MachineFails | Mark::GuestFails => "FAIL",
                    };
                    writeln!(f, "  {mark:<4}  {text}")?;
                }
                Line::Closing(text) => writeln!(f, "{text}")?,
            }
        }
        Ok(())
    }
}
