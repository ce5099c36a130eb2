//! A plain terminal on a grid of cells: line feed, carriage return, backspace, tab; escape sequences are swallowed.

/// A screen of character cells.
pub trait Screen {
    fn columns(&self) -> usize;
    fn rows(&self) -> usize;
    /// Shows a character: printable ASCII or a blank.
    fn put(&mut self, column: usize, row: usize, character: u8);
    fn set_cursor(&mut self, column: usize, row: usize);
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Text,
    /// After ESC.
    Escape,
    /// After ESC [, up to a final byte.
    Sequence,
    /// After ESC ], up to BEL or ESC.
    Command,
}

/// The cursor, and what is on the screen: reading a frame buffer back would be very slow.
///
/// `C` holds a byte for each cell; it is a parameter because the first messages come before there is a heap.
#[derive(Debug)]
pub struct Terminal<S, C> {
    screen: S,
    cells: C,
    column: usize,
    row: usize,
    state: State,
}

impl<S: Screen, C: AsMut<[u8]>> Terminal<S, C> {
    /// A cleared screen. `cells` must hold as many bytes as the screen has cells.
    pub fn new(screen: S, cells: C) -> Self {
        let (columns, rows) = (screen.columns(), screen.rows());
        let mut terminal = Self { screen, cells, column: 0, row: 0, state: State::Text };
        terminal.cells.as_mut().fill(b' ');
        for row in 0..rows {
            for column in 0..columns {
                terminal.screen.put(column, row, b' ');
            }
        }
        terminal
    }

    pub fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.byte(byte);
        }
        if self.column < self.screen.columns() {
            self.screen.set_cursor(self.column, self.row);
        }
    }

    fn byte(&mut self, byte: u8) {
        match (self.state, byte) {
            (State::Text, 0x1b) | (State::Command, 0x1b) => self.state = State::Escape,
            (State::Text, _) => self.text(byte),
            (State::Escape, b'[') => self.state = State::Sequence,
            (State::Escape, b']') => self.state = State::Command,
            (State::Sequence, 0x40..=0x7e) | (State::Command, 0x07) | (State::Escape, _) => self.state = State::Text,
            (State::Sequence | State::Command, _) => {}
        }
    }

    fn text(&mut self, byte: u8) {
        match byte {
            b'\n' => self.line_feed(),
            b'\r' => self.column = 0,
            0x08 => self.column = self.column.saturating_sub(1),
            b'\t' => self.column = ((self.column | 7) + 1).min(self.screen.columns() - 1),
            0x20..=0x7e => self.print(byte),
            // One mark for each character of UTF-8.
            0xc0.. => self.print(b'?'),
            _ => {}
        }
    }

    fn print(&mut self, character: u8) {
        if self.column == self.screen.columns() {
            self.column = 0;
            self.line_feed();
        }
        self.set(self.row * self.screen.columns() + self.column, character);
        self.column += 1;
    }

    fn set(&mut self, cell: usize, character: u8) {
        if let Some(shown) = self.cells.as_mut().get_mut(cell)
            && *shown != character
        {
            *shown = character;
            self.screen.put(cell % self.screen.columns(), cell / self.screen.columns(), character);
        }
    }

    fn line_feed(&mut self) {
        if self.row + 1 < self.screen.rows() {
            self.row += 1;
            return;
        }
        let columns = self.screen.columns();
        for cell in 0..self.cells.as_mut().len() {
            let below = self.cells.as_mut().get(cell + columns).copied().unwrap_or(b' ');
            self.set(cell, below);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};
    use std::{string::String, vec, vec::Vec};

    #[derive(Default)]
    struct Grid {
        cells: Vec<Vec<u8>>,
        puts: usize,
        cursor: (usize, usize),
    }

    impl Screen for Grid {
        fn columns(&self) -> usize {
            8
        }
        fn rows(&self) -> usize {
            3
        }
        fn put(&mut self, column: usize, row: usize, character: u8) {
            assert!(character == b' ' || character.is_ascii_graphic());
            self.cells.resize(3, vec![b'?'; 8]);
            self.cells[row][column] = character;
            self.puts += 1;
        }
        fn set_cursor(&mut self, column: usize, row: usize) {
            assert!(column < 8 && row < 3);
            self.cursor = (column, row);
        }
    }

    fn terminal() -> Terminal<Grid, [u8; 24]> {
        Terminal::new(Grid::default(), [0; 24])
    }

    fn shown(text: &str) -> (Vec<String>, (usize, usize)) {
        let mut terminal = terminal();
        terminal.write(text.as_bytes());
        let rows = terminal.screen.cells.iter().map(|r| String::from_utf8(r.clone()).unwrap().trim_end().into()).collect();
        (rows, terminal.screen.cursor)
    }

    #[test]
    fn wraps_late_and_scrolls() {
        assert_eq!(shown("12345678\r\nab").0, ["12345678", "ab", ""]);
        assert_eq!(shown("123456789").0, ["12345678", "9", ""]);
        assert_eq!(shown("a\r\nb\r\nc\r\nd"), (vec!["b".into(), "c".into(), "d".into()], (1, 2)));
    }

    #[test]
    fn control_characters_and_escapes() {
        assert_eq!(shown("ab\x08c\rd").0[0], "dc");
        assert_eq!(shown("a\tb").0[0], "a      b");
        assert_eq!(shown("\x1b[1;31mred\x1b[0m\x1b]0;title\x07!\u{fc}").0[0], "red!?");
    }

    #[test]
    fn scrolling_draws_only_what_changes() {
        let mut terminal = terminal();
        terminal.write(b"aaaa\r\naaab\r\n");
        let before = terminal.screen.puts;
        terminal.write(b"\n");
        assert_eq!(terminal.screen.puts - before, 1 + 4);
    }

    proptest! {
        #[test]
        fn no_output_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            terminal().write(&bytes);
        }
    }
}
