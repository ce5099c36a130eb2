//! Names for addresses, from the image's own ELF symbol table, and stack traces along the frame pointers.

use crate::cpu::stack;
use core::fmt;
use rustc_demangle::demangle;
use spin::Once;

/// The symbol and string tables of an ELF64 file (System V ABI, chapter 4).
#[derive(Clone, Copy, Debug)]
pub struct Symbols<'a> {
    symbols: &'a [u8],
    names: &'a [u8],
}

/// A function, and where in it an address lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Location<'a> {
    /// As in the table, mangled.
    pub name: &'a str,
    /// Bytes from its start.
    pub offset: u64,
}

static SYMBOLS: Once<Symbols<'static>> = Once::new();

/// Bytes of a table entry: name (4), info (1), other (1), section (2), value (8), size (8).
const ENTRY: usize = 24;
/// Types of `info`'s low nibble: none (labels in assembly) and function.
const NO_TYPE: u8 = 0;
const FUNCTION: u8 = 2;

impl<'a> Symbols<'a> {
    /// Takes the contents of a symbol table and of its string table. Nothing is checked before it is looked at.
    #[must_use]
    pub const fn new(symbols: &'a [u8], names: &'a [u8]) -> Self {
        Self { symbols, names }
    }

    /// The function that `address` lies in: the closest one that starts at or below it.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<Location<'a>> {
        let mut best: Option<(u64, u8, u32)> = None;
        for entry in self.symbols.chunks_exact(ENTRY) {
            let kind = entry[4] & 0xf;
            let section = u16::from_le_bytes([entry[6], entry[7]]);
            let word = |at: usize| <[u8; 8]>::try_from(&entry[at..at + 8]).map_or(0, u64::from_le_bytes);
            let (value, size) = (word(8), word(16));
            let inside = address.checked_sub(value).is_some_and(|offset| size == 0 || offset < size);
            if section == 0 || !matches!(kind, NO_TYPE | FUNCTION) || !inside {
                continue;
            }
            // Of two at the same address, the function.
            if best.is_none_or(|(v, k, _)| (value, kind) > (v, k)) {
                best = Some((value, kind, u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]])));
            }
        }
        let (value, _, name) = best?;
        let name = self.names.get(name as usize..)?;
        let name = name.split(|&b| b == 0).next()?;
        Some(Location { name: str::from_utf8(name).ok()?, offset: address - value })
    }
}

/// Makes the image's symbols known. Later calls have no effect.
pub fn init(symbols: Symbols<'static>) {
    SYMBOLS.call_once(|| symbols);
}

/// Shows an address as `function+0x12`, or as a mere number if it is in none.
#[derive(Clone, Copy, Debug)]
pub struct Address(pub u64);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)?;
        match SYMBOLS.get().and_then(|s| s.find(self.0)) {
            // The alternate form leaves the hash out.
            Some(Location { name, offset }) => write!(f, " {:#}+{offset:#x}", demangle(name)),
            None => Ok(()),
        }
    }
}

/// The return addresses of a call chain, innermost first.
#[derive(Debug)]
pub struct Backtrace {
    frame: u64,
    /// Bounds of the stack.
    low: u64,
    high: u64,
}

impl Backtrace {
    /// The chain that starts at frame pointer `frame`, on the stack that it points into.
    #[must_use]
    pub fn from_frame(frame: u64) -> Self {
        let (low, high) = stack::containing(frame).unwrap_or((0, 0));
        Self { frame, low, high }
    }
}

impl Iterator for Backtrace {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let fits = self.frame >= self.low && self.frame.is_multiple_of(8) && self.frame.checked_add(16)? <= self.high;
        if !fits {
            return None;
        }
        let words = self.frame as *const u64;
        // SAFETY: both words lie within a stack, which is mapped.
        let (next, address) = unsafe { (words.read_volatile(), words.add(1).read_volatile()) };
        // Frames only ever lead outwards, so this ends.
        self.low = self.frame + 16;
        self.frame = next;
        (address != 0).then_some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};
    use std::{string::ToString, vec::Vec};

    fn symbol(name: u32, info: u8, section: u16, value: u64, size: u64) -> Vec<u8> {
        let mut entry = name.to_le_bytes().to_vec();
        entry.extend([info, 0]);
        entry.extend(section.to_le_bytes());
        entry.extend(value.to_le_bytes());
        entry.extend(size.to_le_bytes());
        entry
    }

    #[test]
    fn the_function_is_found_not_its_neighbours() {
        let names = b"\0start\0label\0_ZN4boot4main17h0123456789abcdefE\0data\0";
        let table = [
            symbol(0, 0, 0, 0, 0),
            symbol(7, 0, 1, 0x1100, 0),
            symbol(1, 0x12, 1, 0x1000, 0x80),
            symbol(13, 0x12, 1, 0x1200, 0x40),
            symbol(48, 0x11, 2, 0x1210, 0x8),
        ]
        .concat();
        let symbols = Symbols::new(&table, names);
        assert_eq!(symbols.find(0x107f), Some(Location { name: "start", offset: 0x7f }));
        assert_eq!(symbols.find(0x1080), None);
        assert_eq!(symbols.find(0x1104), Some(Location { name: "label", offset: 4 }));
        let main = symbols.find(0x1220).unwrap();
        assert_eq!((main.offset, std::format!("{:#}", demangle(main.name))), (0x20, "boot::main".to_string()));
    }

    proptest! {
        #[test]
        fn no_table_panics(table in proptest::collection::vec(any::<u8>(), 0..200), names in proptest::collection::vec(any::<u8>(), 0..50), address: u64) {
            let _ = Symbols::new(&table, &names).find(address);
        }
    }
}
