//! The line editor: keys in, a line and what to send to the terminal out.
//!
//! Written here since no crate fits: noline reads its input itself and waits for it, asks the terminal for its size and waits for the answer,
//! and does not complete; embedded-cli takes single bytes, but has neither Home and End nor the control keys, and completes the names that it
//! was compiled with, not those of guests; editline waits for input, too. The shell gets a byte whenever there is one, and must not wait.
//!
//! A line is printable ASCII: so is everything that can be named here. Nothing but blank, backspace and carriage return is used to keep the
//! terminal's line up to date, so that a plain screen and a slow line do as well as an xterm; a line that does not fit is shown in part.

use super::keys::EditKey;
use alloc::{collections::VecDeque, vec::Vec};

/// Longest line.
pub const MAX_LINE: usize = 512;
/// Lines that are remembered.
const HISTORY: usize = 64;
/// Columns of the terminal that are used: none of the usual ones is narrower, and a line never wraps by itself.
const COLUMNS: usize = 79;

/// What a key has led to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Edited {
    /// The line has changed, or not.
    Nothing,
    /// A line is complete, and the editor starts another.
    Line(Vec<u8>),
    /// The line has been dropped.
    Cancelled,
}

/// What a word could be completed to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Completion {
    /// Bytes of the word so far.
    pub typed: usize,
    /// The whole words that it could be. All start with what was typed.
    pub words: Vec<Vec<u8>>,
}

/// The line being edited, those before it, and what the terminal shows of it.
#[derive(Debug, Default)]
pub struct Editor {
    prompt: &'static str,
    line: Vec<u8>,
    /// 0 to the line's length.
    cursor: usize,
    /// Newest last.
    history: VecDeque<Vec<u8>>,
    /// How many lines back from the one that was being typed, and that one.
    back: usize,
    typed: Vec<u8>,
    display: Display,
}

impl Editor {
    /// Columns of the terminal's line that prompt and line take up.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.display.text.len()
    }

    /// Shows prompt and line where the terminal's cursor is, at the start of a line.
    pub fn show(&mut self, prompt: &'static str, out: &mut Vec<u8>) {
        self.prompt = prompt;
        self.display = Display::default();
        self.update(out);
    }

    /// Takes a key. `complete` gets the line up to the cursor. The bytes that bring the terminal up to date are added to `out`.
    pub fn key(&mut self, key: EditKey, complete: &mut dyn FnMut(&[u8]) -> Completion, out: &mut Vec<u8>) -> Edited {
        match key {
            EditKey::Char(byte) => {
                if self.line.len() < MAX_LINE && (0x20..=0x7e).contains(&byte) {
                    self.insert(&[byte]);
                } else {
                    out.push(BELL);
                }
            }
            EditKey::Enter => {
                self.cursor = self.line.len();
                self.update(out);
                out.extend_from_slice(b"\r\n");
                let line = self.take();
                self.remember(&line);
                return Edited::Line(line);
            }
            EditKey::Cancel => {
                self.cursor = self.line.len();
                self.update(out);
                out.extend_from_slice(b"^C\r\n");
                self.take();
                return Edited::Cancelled;
            }
            EditKey::Tab => self.complete(complete, out),
            EditKey::Backspace => self.delete(self.cursor.saturating_sub(1), self.cursor),
            EditKey::Delete | EditKey::EndOfInput => self.delete(self.cursor, self.cursor + 1),
            EditKey::Left => self.cursor = self.cursor.saturating_sub(1),
            EditKey::Right => self.cursor = self.line.len().min(self.cursor + 1),
            EditKey::Home => self.cursor = 0,
            EditKey::End => self.cursor = self.line.len(),
            EditKey::WordLeft => self.cursor = self.word_left(),
            EditKey::WordRight => self.cursor = self.word_right(),
            EditKey::KillEnd => self.line.truncate(self.cursor),
            EditKey::KillStart => self.delete(0, self.cursor),
            EditKey::KillWord => self.delete(self.word_left(), self.cursor),
            EditKey::KillWordRight => self.delete(self.cursor, self.word_right()),
            EditKey::Up => self.recall(self.back + 1, out),
            EditKey::Down => match self.back.checked_sub(1) {
                Some(back) => self.recall(back, out),
                None => out.push(BELL),
            },
            EditKey::Redraw => {
                // Screens that know no sequences swallow these.
                out.extend_from_slice(b"\r\x1b[H\x1b[2J");
                self.display = Display::default();
            }
            EditKey::Nonsense => out.push(BELL),
        }
        self.update(out);
        Edited::Nothing
    }

    fn take(&mut self) -> Vec<u8> {
        self.cursor = 0;
        self.back = 0;
        self.display = Display::default();
        core::mem::take(&mut self.line)
    }

    /// As much of `bytes` as the longest line lets in.
    fn insert(&mut self, bytes: &[u8]) {
        let room = MAX_LINE - self.line.len().min(MAX_LINE);
        let bytes = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.line.splice(self.cursor..self.cursor, bytes.iter().copied());
        self.cursor += bytes.len();
    }

    /// Deletes a part of the line, as far as there is one, and puts the cursor at its start.
    fn delete(&mut self, from: usize, to: usize) {
        let to = to.min(self.line.len());
        if from < to {
            self.line.drain(from..to);
            self.cursor = from;
        }
    }

    fn is_blank(&self, at: usize) -> bool {
        self.line.get(at).is_none_or(|&b| b == b' ')
    }

    fn word_left(&self) -> usize {
        let mut at = self.cursor;
        while at > 0 && self.is_blank(at - 1) {
            at -= 1;
        }
        while at > 0 && !self.is_blank(at - 1) {
            at -= 1;
        }
        at
    }

    fn word_right(&self) -> usize {
        let mut at = self.cursor;
        while at < self.line.len() && self.is_blank(at) {
            at += 1;
        }
        while !self.is_blank(at) {
            at += 1;
        }
        at
    }

    fn remember(&mut self, line: &[u8]) {
        if line.iter().all(|&b| b == b' ') || self.history.back().is_some_and(|last| last == line) {
            return;
        }
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(line.to_vec());
    }

    /// Shows the line that is so many back; 0 is the one that was being typed.
    fn recall(&mut self, back: usize, out: &mut Vec<u8>) {
        if back > self.history.len() {
            out.push(BELL);
            return;
        }
        if self.back == 0 {
            self.typed = self.line.clone();
        }
        self.back = back;
        let earlier = self.history.len().checked_sub(back).and_then(|n| self.history.get(n));
        self.line = earlier.unwrap_or(&self.typed).clone();
        self.cursor = self.line.len();
    }

    fn complete(&mut self, complete: &mut dyn FnMut(&[u8]) -> Completion, out: &mut Vec<u8>) {
        let found = complete(self.line.get(..self.cursor).unwrap_or_default());
        let Some((first, others)) = found.words.split_first() else {
            out.push(BELL);
            return;
        };
        let same = |word: &Vec<u8>| first.iter().zip(word).take_while(|(a, b)| a == b).count();
        let common = others.iter().map(same).min().unwrap_or(first.len());
        let more = first.get(found.typed..common).unwrap_or_default();
        self.insert(more);
        if others.is_empty() {
            if self.line.get(self.cursor) == Some(&b' ') {
                self.cursor += 1;
            } else {
                self.insert(b" ");
            }
        } else if more.is_empty() {
            self.list(&found.words, out);
        }
    }

    /// Shows words in columns below the line, and the line again below these.
    fn list(&mut self, words: &[Vec<u8>], out: &mut Vec<u8>) {
        let width = words.iter().map(Vec::len).max().unwrap_or(0) + 2;
        let columns = (COLUMNS / width).max(1);
        self.display.leave(out);
        for row in words.chunks(columns) {
            for (n, word) in row.iter().enumerate() {
                out.extend_from_slice(word);
                let last = n + 1 == row.len();
                out.extend(core::iter::repeat_n(b' ', if last { 0 } else { width - word.len() }));
            }
            out.extend_from_slice(b"\r\n");
        }
        self.display = Display::default();
    }

    /// Brings the terminal up to date.
    fn update(&mut self, out: &mut Vec<u8>) {
        let room = COLUMNS.saturating_sub(self.prompt.len() + 1);
        // The part of the line that is shown moves by halves, so that the cursor is never at its very edge for long.
        let half = (room / 2).max(1);
        let start = if self.line.len() <= room { 0 } else { (self.cursor / half).saturating_sub(1) * half };
        let part = self.line.get(start..self.line.len().min(start + room)).unwrap_or_default();
        let mut text = self.prompt.as_bytes().to_vec();
        let column = text.len() + self.cursor.saturating_sub(start);
        text.extend_from_slice(part);
        self.display.update(text, column, out);
    }
}

const BELL: u8 = 7;
const BACKSPACE: u8 = 8;

/// What the terminal's line shows.
#[derive(Debug, Default)]
struct Display {
    text: Vec<u8>,
    /// 0 to the text's length.
    column: usize,
}

impl Display {
    /// Makes the line show `text` with the cursor at `column`.
    fn update(&mut self, text: Vec<u8>, column: usize, out: &mut Vec<u8>) {
        let same = self.text.iter().zip(&text).take_while(|(a, b)| a == b).count();
        let mut at = self.column;
        if self.text.len().max(text.len()) > same {
            // Up to there it is right; what follows is written anew, and what was longer is blanked.
            go(&text, at, same, out);
            out.extend_from_slice(text.get(same..).unwrap_or_default());
            let surplus = self.text.len().saturating_sub(text.len());
            out.extend(core::iter::repeat_n(b' ', surplus));
            at = text.len() + surplus;
        }
        go(&text, at, column, out);
        self.text = text;
        self.column = column;
    }

    /// Goes to the start of the next line.
    fn leave(&mut self, out: &mut Vec<u8>) {
        go(&self.text, self.column, self.text.len(), out);
        out.extend_from_slice(b"\r\n");
    }
}

/// Moves the cursor within `text`, to the right by writing again what is there.
fn go(text: &[u8], from: usize, to: usize, out: &mut Vec<u8>) {
    out.extend(core::iter::repeat_n(BACKSPACE, from.saturating_sub(to)));
    out.extend_from_slice(text.get(from..to).unwrap_or_default());
}

#[cfg(test)]
#[path = "editor_tests.rs"]
mod tests;
