//! The linear frame buffer that the loader hands over, with an 8-bit grey font.

use super::terminal::Screen;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

const WEIGHT: FontWeight = FontWeight::Regular;
const SIZE: RasterHeight = RasterHeight::Size16;
/// Pixels of a cell. One column more than the font's, for the eye's sake.
const CELL_WIDTH: usize = get_raster_width(WEIGHT, SIZE) + 1;
const CELL_HEIGHT: usize = 16;

/// Where one colour is in a pixel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// Lowest bit.
    pub position: u8,
    /// Bits.
    pub size: u8,
}

/// A direct-colour frame buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Physical address.
    pub address: u64,
    /// Bytes from one line to the next.
    pub pitch: u32,
    /// Pixels.
    pub width: u32,
    pub height: u32,
    pub bits_per_pixel: u8,
    pub red: Field,
    pub green: Field,
    pub blue: Field,
}

/// What is wrong with a [`Layout`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadLayout;

impl Layout {
    /// Bytes of the whole buffer.
    #[must_use]
    pub fn size(&self) -> u64 {
        u64::from(self.pitch) * u64::from(self.height)
    }

    fn bytes_per_pixel(&self) -> usize {
        usize::from(self.bits_per_pixel).div_ceil(8)
    }

    /// Whether something can be shown on it.
    ///
    /// # Errors
    /// If the numbers contradict each other or are absurd.
    pub fn check(&self) -> Result<(), BadLayout> {
        let fields = [self.red, self.green, self.blue];
        let good = matches!(self.bits_per_pixel, 15 | 16 | 24 | 32)
            && (CELL_WIDTH as u32..=32768).contains(&self.width)
            && (CELL_HEIGHT as u32..=32768).contains(&self.height)
            && u64::from(self.width) * self.bytes_per_pixel() as u64 <= u64::from(self.pitch)
            && self.pitch <= 1 << 20
            && fields.iter().all(|f| f.size <= 8 && u32::from(f.position) + u32::from(f.size) <= u32::from(self.bits_per_pixel))
            && self.address != 0
            && self.address.checked_add(self.size()).is_some();
        if good { Ok(()) } else { Err(BadLayout) }
    }

    /// The pixel for a shade of grey.
    fn grey(&self, intensity: u8) -> u32 {
        [self.red, self.green, self.blue]
            .into_iter()
            .fold(0, |pixel, f| pixel | (u32::from(intensity) >> (8 - f.size)) << f.position)
    }
}

/// A frame buffer in use.
#[derive(Debug)]
pub struct FrameBuffer {
    layout: Layout,
    pixels: *mut u8,
    cursor: Option<(usize, usize)>,
}

// SAFETY: the buffer is device memory; the owner of this value is the only one who writes it.
unsafe impl Send for FrameBuffer {}

impl FrameBuffer {
    /// # Safety
    /// `layout` has been checked, and `pixels` is its memory, mapped for good, and nobody else's.
    #[must_use]
    pub const unsafe fn new(layout: Layout, pixels: *mut u8) -> Self {
        Self { layout, pixels, cursor: None }
    }

    fn pixel(&mut self, x: usize, y: usize, value: u32) {
        if x >= self.layout.width as usize || y >= self.layout.height as usize {
            return;
        }
        let bytes = self.layout.bytes_per_pixel();
        // SAFETY: within the buffer, as `check` has made sure that a line holds all its pixels.
        unsafe {
            let at = self.pixels.add(y * self.layout.pitch as usize + x * bytes);
            match bytes {
                4 => at.cast::<u32>().write_unaligned(value),
                2 => at.cast::<u16>().write_unaligned(value as u16),
                _ => value.to_le_bytes().into_iter().take(bytes).enumerate().for_each(|(i, b)| at.add(i).write_volatile(b)),
            }
        }
    }

    fn underline(&mut self, (column, row): (usize, usize), intensity: u8) {
        let value = self.layout.grey(intensity);
        for x in 0..CELL_WIDTH {
            self.pixel(column * CELL_WIDTH + x, row * CELL_HEIGHT + CELL_HEIGHT - 1, value);
        }
    }
}

impl Screen for FrameBuffer {
    fn columns(&self) -> usize {
        self.layout.width as usize / CELL_WIDTH
    }
    fn rows(&self) -> usize {
        self.layout.height as usize / CELL_HEIGHT
    }
    fn put(&mut self, column: usize, row: usize, character: u8) {
        let glyph = get_raster(char::from(character), WEIGHT, SIZE);
        for y in 0..CELL_HEIGHT {
            let line = glyph.as_ref().and_then(|g| g.rows().nth(y)).unwrap_or(&[]);
            for x in 0..CELL_WIDTH {
                let value = self.layout.grey(line.get(x).copied().unwrap_or(0));
                self.pixel(column * CELL_WIDTH + x, row * CELL_HEIGHT + y, value);
            }
        }
    }
    fn set_cursor(&mut self, column: usize, row: usize) {
        if let Some(old) = self.cursor.replace((column, row)) {
            self.underline(old, 0);
        }
        self.underline((column, row), 0xc0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{vec, vec::Vec};

    fn layout(bits: u8) -> Layout {
        let field = |position, size| Field { position, size };
        let (red, green, blue) =
            if bits == 16 { (field(11, 5), field(5, 6), field(0, 5)) } else { (field(16, 8), field(8, 8), field(0, 8)) };
        let bytes = u32::from(bits).div_ceil(8);
        Layout { address: 0x1000, pitch: 100 * bytes + 12, width: 100, height: 50, bits_per_pixel: bits, red, green, blue }
    }

    #[test]
    fn absurd_layouts_are_refused() {
        let good = layout(32);
        assert_eq!(good.check(), Ok(()));
        for bad in [
            Layout { pitch: 399, ..good },
            Layout { bits_per_pixel: 8, ..good },
            Layout { width: 0, ..good },
            Layout { height: u32::MAX, ..good },
            Layout { address: u64::MAX - 5, ..good },
            Layout { red: Field { position: 30, size: 8 }, ..good },
        ] {
            assert_eq!(bad.check(), Err(BadLayout), "{bad:?}");
        }
    }

    #[test]
    fn glyphs_stay_within_their_cells_in_every_depth() {
        for bits in [16, 24, 32] {
            let layout = layout(bits);
            let mut memory: Vec<u8> = vec![0; layout.size() as usize];
            // SAFETY: the memory is as large as the layout says, and outlives the buffer.
            let mut screen = unsafe { FrameBuffer::new(layout, memory.as_mut_ptr()) };
            assert_eq!((screen.columns(), screen.rows()), (12, 3));
            screen.put(11, 2, b'#');
            let bytes = layout.bytes_per_pixel();
            let lit = |x: usize, y: usize| memory[y * layout.pitch as usize + x * bytes..][..bytes].iter().any(|b| *b != 0);
            let cell = |x: usize, y: usize| x / CELL_WIDTH == 11 && y / CELL_HEIGHT == 2;
            assert!((0..100).any(|x| (0..50).any(|y| lit(x, y) && cell(x, y))));
            assert!(!(0..100).any(|x| (0..50).any(|y| lit(x, y) && !cell(x, y))));
        }
    }

    #[test]
    fn grey_is_scaled_to_each_field() {
        assert_eq!(layout(16).grey(0xff), 0xffff);
        assert_eq!(layout(32).grey(0x80), 0x0080_8080);
    }
}
