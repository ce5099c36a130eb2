//! An input as a sequence of decisions.

use x86defs::Width;

/// The bytes of an input, which a target takes one after the other. At their end everything is zero: a target that goes on while
/// [`Source::is_empty`] is false ends.
#[derive(Clone, Debug)]
pub struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.0)
    }

    /// Up to `count` bytes.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number below `limit`, by one byte if that is enough; 0 if `limit` is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        let number = if limit <= 256 { self.u8().into() } else { self.u32() as usize };
        number.checked_rem(limit).unwrap_or(0)
    }

    /// One of these. There must be one.
    pub fn pick<'b, T>(&mut self, items: &'b [T]) -> &'b T {
        &items[self.below(items.len())]
    }

    /// The width of an access: 1, 2, 4 or 8 bytes.
    pub fn width(&mut self) -> Width {
        *self.pick(&[Width::Byte, Width::Word, Width::Dword, Width::Qword])
    }

    /// A distance in time in nanoseconds: often none or a short one, seldom years.
    pub fn delay(&mut self) -> u64 {
        // One byte has the magnitude, so that small changes of an input try all of them.
        match self.u8() {
            0..64 => 0,
            magnitude => u64::from(self.u16()) << ((magnitude - 64) / 4),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_ends_in_zeroes() {
        let mut source = Source::new(&[1, 2, 3, 7, 200]);
        assert_eq!((source.u16(), source.below(3), source.width()), (0x201, 0, Width::Qword));
        assert_eq!((source.u32(), source.is_empty(), source.u64(), source.delay(), source.below(0)), (200, true, 0, 0, 0));
    }

    #[test]
    fn delays_reach_from_nothing_to_years() {
        assert_eq!(Source::new(&[63, 255, 255]).delay(), 0);
        assert_eq!(Source::new(&[64, 1, 0]).delay(), 1);
        assert!(Source::new(&[255, 255, 255]).delay() > 1 << 62);
    }
}
