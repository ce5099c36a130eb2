//! VGA text mode, as the loader leaves it: 80 x 25 cells at 0xB8000, CRT controller at 0x3D4 (IBM VGA technical reference).

use super::terminal::Screen;
use crate::cpu::port;

/// Physical address and size in bytes of the text buffer.
pub const ADDRESS: u64 = 0xb_8000;
pub const SIZE: u64 = 0x8000;

/// Light grey on black.
const ATTRIBUTE: u16 = 0x0700;
const COLUMNS: usize = 80;
const ROWS: usize = 25;
/// Cells of the screen.
pub const CELLS: usize = COLUMNS * ROWS;

/// A text buffer.
#[derive(Debug)]
pub struct VgaText {
    buffer: *mut u16,
}

// SAFETY: the buffer is device memory; the owner of this value is the only one who writes it.
unsafe impl Send for VgaText {}

impl VgaText {
    /// # Safety
    /// `buffer` must be the text buffer, mapped for good, and nobody else's.
    #[must_use]
    pub const unsafe fn new(buffer: *mut u8) -> Self {
        Self { buffer: buffer.cast() }
    }
}

impl Screen for VgaText {
    fn columns(&self) -> usize {
        COLUMNS
    }
    fn rows(&self) -> usize {
        ROWS
    }
    fn put(&mut self, column: usize, row: usize, character: u8) {
        if column < COLUMNS && row < ROWS {
            // SAFETY: within the buffer.
            unsafe { self.buffer.add(row * COLUMNS + column).write_volatile(ATTRIBUTE | u16::from(character)) };
        }
    }
    fn set_cursor(&mut self, column: usize, row: usize) {
        let [high, low] = ((row * COLUMNS + column) as u16).to_be_bytes();
        // SAFETY: cursor location registers 0x0E and 0x0F of the CRT controller; the display belongs to the console.
        unsafe {
            port::write_u8(0x3d4, 0x0e);
            port::write_u8(0x3d5, high);
            port::write_u8(0x3d4, 0x0f);
            port::write_u8(0x3d5, low);
        }
    }
}
