use super::*;
use crate::shell::keys::Decoder;
use proptest::prelude::*;
use std::string::String;

const PROMPT: &str = "> ";

/// The editor behind a terminal of one line that matters.
struct Typist {
    editor: Editor,
    decoder: Decoder,
    screen: Screen,
    words: Vec<&'static str>,
}

/// A terminal that knows no more than CR, LF and backspace, and what is on its last line.
#[derive(Default)]
struct Screen {
    rows: Vec<Vec<u8>>,
    row: Vec<u8>,
    column: usize,
    bells: usize,
}

impl Screen {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\r' => self.column = 0,
                b'\n' => {
                    self.rows.push(core::mem::take(&mut self.row));
                }
                BACKSPACE => self.column = self.column.checked_sub(1).expect("left of the screen"),
                BELL => self.bells += 1,
                0x20..=0x7e => {
                    assert!(self.column < COLUMNS, "past the right margin");
                    self.row.resize(self.row.len().max(self.column + 1), b' ');
                    self.row[self.column] = byte;
                    self.column += 1;
                }
                other => panic!("{other:#x} on the screen"),
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8(self.row.clone()).unwrap().trim_end().into()
    }
}

impl Typist {
    fn new() -> Self {
        let mut typist = Self {
            editor: Editor::default(),
            decoder: Decoder::default(),
            screen: Screen::default(),
            words: ["list", "pause", "pass", "vcpu-list", "vcpu-pin"].to_vec(),
        };
        typist.prompt();
        typist
    }

    fn prompt(&mut self) {
        let mut out = Vec::new();
        self.editor.show(PROMPT, &mut out);
        self.screen.write(&out);
    }

    fn key(&mut self, key: EditKey) -> Edited {
        let mut out = Vec::new();
        let words = &self.words;
        let mut complete = |line: &[u8]| {
            let start = line.iter().rposition(|&b| b == b' ').map_or(0, |at| at + 1);
            let typed = &line[start..];
            let words = words.iter().map(|w| w.as_bytes().to_vec()).filter(|w| w.starts_with(typed)).collect();
            Completion { typed: typed.len(), words }
        };
        let edited = self.editor.key(key, &mut complete, &mut out);
        // The sequences of a redraw mean nothing to this screen; what follows them must do.
        match key {
            EditKey::Redraw => {
                let rest = out.strip_prefix(b"\r\x1b[H\x1b[2J").expect("clears the screen");
                self.screen.write(b"\r");
                self.screen.write(rest);
            }
            _ => self.screen.write(&out),
        }
        edited
    }

    /// Types bytes; gives the lines that were completed.
    fn type_in(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            if let Some(key) = self.decoder.byte(byte) {
                match self.key(key) {
                    Edited::Nothing => {}
                    Edited::Line(line) => {
                        lines.push(String::from_utf8(line).unwrap());
                        self.prompt();
                    }
                    Edited::Cancelled => self.prompt(),
                }
            }
        }
        lines
    }
}

#[test]
fn editing_in_the_middle_shows_what_it_does() {
    for (typed, text, column) in [
        (&b"abc"[..], "> abc", 5),
        (b"abc\x1b[D\x1b[DX", "> aXbc", 4),
        (b"abc\x01\x1b[3~", "> bc", 2),
        (b"abc\x7f\x7f\x7f\x7f", ">", 2),
        (b"abc\x02\x02\x0b", "> a", 3),
        (b"abc\x02\x15", "> c", 2),
        (b"one two  three\x17", "> one two", 11),
        (b"one two  three\x17\x17", "> one", 6),
        (b"one two\x1bb\x1bbX\x1bfY\x1bd", "> XoneY", 7),
        (b"abc\x1b[H\x1b[FX\x05\x06Y", "> abcXY", 7),
        (b"abc\x02\x04\x04", "> ab", 4),
        (b"a\xc3\xa4b\x00", "> ab", 4),
        (b"ab\x0cc", "> abc", 5),
    ] {
        let mut typist = Typist::new();
        assert_eq!(typist.type_in(typed), [""; 0]);
        assert_eq!((typist.screen.text().as_str(), typist.screen.column), (text, column), "{}", typed.escape_ascii());
    }
}

#[test]
fn lines_come_out_whole_and_in_order() {
    let mut typist = Typist::new();
    assert_eq!(typist.type_in(b"ac\x1b[Db\rnext\r\n\r\nlast"), ["abc", "next", ""]);
    assert_eq!(typist.type_in(b"\x03x\n"), ["x"], "a cancelled line is gone");
    let rows: Vec<_> = typist.screen.rows.iter().map(|row| core::str::from_utf8(row).unwrap().trim_end()).collect();
    assert_eq!(rows, ["> abc", "> next", ">", "> last^C", "> x"]);
}

#[test]
fn history_goes_back_and_forth() {
    let mut typist = Typist::new();
    typist.type_in(b"one\rtwo\rtwo\r  \rnow");
    for (key, text) in [
        (&b"\x1b[A"[..], "> two"),
        (b"\x1b[A", "> one"),
        (b"\x1b[A", "> one"),
        (b"\x10", "> one"),
        (b"\x1b[B", "> two"),
        (b"\x0e", "> now"),
        (b"\x1b[B", "> now"),
    ] {
        typist.type_in(key);
        assert_eq!(typist.screen.text(), text, "{}", key.escape_ascii());
    }
    assert_eq!(typist.screen.bells, 3);
    // What is recalled and changed is a new line; the old one stays.
    assert_eq!(typist.type_in(b"\x1b[A!\r"), ["two!"]);
    typist.type_in(b"\x1b[A\x1b[A");
    assert_eq!(typist.screen.text(), "> two");
    typist.type_in(b"\x15");
    for n in 0..HISTORY {
        typist.type_in(std::format!("line {n}\r").as_bytes());
    }
    typist.type_in(&b"\x1b[A".repeat(HISTORY + 5));
    assert_eq!(typist.screen.text(), "> line 0", "only so many are kept");
}

#[test]
fn completion_inserts_what_is_certain_and_lists_the_rest() {
    let mut typist = Typist::new();
    typist.type_in(b"l\t");
    assert_eq!(typist.screen.text() + "|", "> list|");
    assert_eq!(typist.screen.column, 7, "and a blank");
    typist.type_in(b"p\t");
    assert_eq!((typist.screen.text().as_str(), typist.screen.rows.len()), ("> list pa", 0));
    typist.type_in(b"\t");
    assert_eq!(typist.screen.rows.len(), 2);
    assert_eq!(typist.screen.rows[1], b"pause  pass");
    assert_eq!(typist.screen.text(), "> list pa");
    typist.type_in(b"z\t");
    assert_eq!(typist.screen.bells, 1);
    // Before a blank none is added.
    typist.type_in(b"\x15v\t \x1b[Dp\tx");
    assert_eq!(typist.screen.text(), "> vcpu-pin x");
}

#[test]
fn a_long_line_is_shown_in_part() {
    let mut typist = Typist::new();
    let text: Vec<u8> = (0..200u32).map(|n| b'a' + (n % 26) as u8).collect();
    typist.type_in(&text);
    assert!(typist.screen.text().ends_with("pqr"), "{}", typist.screen.text());
    typist.type_in(b"\x01");
    assert!(typist.screen.text().starts_with("> abcdef"));
    assert_eq!(typist.screen.column, 2);
    assert_eq!(typist.type_in(b"\r"), [String::from_utf8(text).unwrap()]);
    assert_eq!(typist.type_in(&[&[b'x'; MAX_LINE + 10][..], b"\r"].concat()), ["x".repeat(MAX_LINE)]);
    assert_eq!(typist.screen.bells, 10);
}

/// The line as anyone would write it down who has never heard of terminals.
#[derive(Default, Clone)]
struct Model {
    left: Vec<u8>,
    right: Vec<u8>,
}

impl Model {
    fn line(&self) -> Vec<u8> {
        [&self.left[..], &self.right[..]].concat()
    }

    fn key(&mut self, key: EditKey) {
        let words = |text: &[u8]| {
            let blanks = text.iter().take_while(|&&b| b == b' ').count();
            blanks + text[blanks..].iter().take_while(|&&b| b != b' ').count()
        };
        let backwards = |text: &[u8]| words(&text.iter().rev().copied().collect::<Vec<_>>());
        let at = match key {
            EditKey::Char(byte) => {
                self.left.push(byte);
                return;
            }
            EditKey::Backspace => {
                self.left.pop();
                return;
            }
            EditKey::Delete | EditKey::EndOfInput => {
                self.right.drain(..1.min(self.right.len()));
                return;
            }
            EditKey::KillStart => return self.left.clear(),
            EditKey::KillEnd => return self.right.clear(),
            EditKey::KillWord => return self.left.truncate(self.left.len() - backwards(&self.left)),
            EditKey::KillWordRight => {
                self.right.drain(..words(&self.right));
                return;
            }
            EditKey::Home => 0,
            EditKey::End => self.line().len(),
            EditKey::Left => self.left.len().saturating_sub(1),
            EditKey::Right => (self.left.len() + 1).min(self.line().len()),
            EditKey::WordLeft => self.left.len() - backwards(&self.left),
            EditKey::WordRight => self.left.len() + words(&self.right),
            _ => return,
        };
        let line = self.line();
        (self.left, self.right) = (line[..at].to_vec(), line[at..].to_vec());
    }
}

fn key() -> impl Strategy<Value = EditKey> {
    let others = [
        EditKey::Backspace,
        EditKey::Delete,
        EditKey::EndOfInput,
        EditKey::Left,
        EditKey::Right,
        EditKey::Home,
        EditKey::End,
        EditKey::WordLeft,
        EditKey::WordRight,
        EditKey::KillEnd,
        EditKey::KillStart,
        EditKey::KillWord,
        EditKey::KillWordRight,
        EditKey::Redraw,
        EditKey::Nonsense,
    ];
    prop_oneof![
        10 => (b'a'..=b'f').prop_map(EditKey::Char),
        4 => Just(EditKey::Char(b' ')),
        8 => proptest::sample::select(others.to_vec()),
    ]
}

proptest! {
    /// The line is the model's, and the screen shows it around the cursor.
    #[test]
    fn the_line_is_the_models(long in any::<bool>(), keys in proptest::collection::vec(key(), 0..120)) {
        let (mut typist, mut model) = (Typist::new(), Model::default());
        let start = if long { 150 } else { 0 };
        let keys = (0..start).map(|n| EditKey::Char(b'a' + n % 26)).chain(keys);
        for key in keys {
            prop_assert_eq!(typist.key(key), Edited::Nothing);
            model.key(key);
            prop_assert_eq!(&typist.editor.line, &model.line());
            prop_assert_eq!(typist.editor.cursor, model.left.len());
            let row = &typist.screen.row;
            let at = typist.screen.column;
            prop_assert!(row.starts_with(PROMPT.as_bytes()));
            // Next to the cursor on the screen stands what stands next to it in the line.
            let before = row[PROMPT.len()..at].to_vec();
            prop_assert!(model.left.ends_with(&before), "{:?}", typist.screen.text());
            let after = row.get(at..).unwrap_or_default().trim_ascii_end();
            prop_assert!(model.right.starts_with(after), "{:?}", typist.screen.text());
            // A line that fits is shown whole.
            if model.line().len() < 70 {
                prop_assert_eq!(before, model.left.clone());
                prop_assert_eq!(after, model.right.trim_ascii_end());
            }
        }
        let lines = typist.type_in(b"\r");
        prop_assert_eq!(lines, [String::from_utf8(model.line()).unwrap()]);
    }

    #[test]
    fn no_bytes_panic_and_none_escape(bytes in proptest::collection::vec(any::<u8>().prop_filter("redraws", |&b| b != 0x0c), 0..200)) {
        Typist::new().type_in(&bytes);
    }
}
