//! Accesses wider than one register.
//!
//! The LPC bridge breaks 16- and 32-bit I/O cycles to its 8-bit devices into byte cycles, lowest address first (Intel ICH9 data
//! sheet, 316972-004, 5.13.1.1); bytes beyond a device read all ones.

use x86defs::Width;

/// Reads `width` at `offset` byte by byte; bytes at `limit` and above belong to nobody.
#[inline(always)]
pub(crate) fn read_bytes(offset: u16, width: Width, limit: u16, mut byte: impl FnMut(u16) -> u8) -> u32 {
    // What nearly all drivers do.
    if width == Width::Byte && offset < limit {
        return byte(offset).into();
    }
    read_wide(offset, width, limit, &mut byte)
}

/// The same without the short way for single bytes.
#[inline(never)]
pub(crate) fn read_wide(offset: u16, width: Width, limit: u16, byte: &mut dyn FnMut(u16) -> u8) -> u32 {
    let mut value = [0xff; 4];
    for (i, slot) in (offset..limit).zip(value.iter_mut()).take(width.bytes()) {
        *slot = byte(i);
    }
    u32::from_le_bytes(value) & width.mask() as u32
}

/// Writes `width` at `offset` byte by byte; bytes at `limit` and above go nowhere.
#[inline(always)]
pub(crate) fn write_bytes(offset: u16, width: Width, limit: u16, value: u32, mut byte: impl FnMut(u16, u8)) {
    if width == Width::Byte && offset < limit {
        return byte(offset, value as u8);
    }
    write_wide(offset, width, limit, value, &mut byte);
}

/// The same without the short way for single bytes.
#[inline(never)]
pub(crate) fn write_wide(offset: u16, width: Width, limit: u16, value: u32, byte: &mut dyn FnMut(u16, u8)) {
    for (i, b) in (offset..limit).zip(value.to_le_bytes()).take(width.bytes()) {
        byte(i, b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn wide_accesses_are_split_and_stop_at_the_limit() {
        assert_eq!(read_bytes(1, Width::Dword, 3, |i| i as u8), 0xffff_0201);
        assert_eq!(read_bytes(1, Width::Word, 9, |i| i as u8), 0x0201);
        assert_eq!(read_bytes(5, Width::Byte, 5, |_| 0), 0xff);
        let mut seen = Vec::new();
        write_bytes(2, Width::Dword, 4, 0x4433_2211, |i, b| seen.push((i, b)));
        assert_eq!(seen, [(2, 0x11), (3, 0x22)]);
    }
}
