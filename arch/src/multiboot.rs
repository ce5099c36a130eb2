//! What a multiboot2 boot loader hands over (Multiboot2 specification 2.0, 3.4). Pure: it reads bytes and believes none of them.

use crate::console::framebuffer::{Field, Layout};
use crate::mm::frames::Range;
use crate::symbols::Symbols;
use alloc::{borrow::Cow, string::String};

/// What EAX holds when a multiboot2 loader enters the image.
pub const MAGIC: u32 = 0x36d7_6289;
/// A boot information structure is never longer than this.
pub const MAX_SIZE: u32 = 4 << 20;

/// Boot information: the bytes of all tags.
#[derive(Clone, Copy, Debug)]
pub struct BootInformation<'a> {
    tags: &'a [u8],
}

/// Why boot information is unusable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// Its total size is absurd.
    Size(u32),
    /// The tag at this offset does not fit.
    Tag { offset: usize },
}

/// A module: a file that the loader put in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Module<'a> {
    /// Physical addresses.
    pub range: Range,
    pub command_line: &'a str,
}

/// Kinds of memory in the memory map (specification 3.6.8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryKind {
    Available,
    AcpiReclaimable,
    AcpiNvs,
    /// Reserved, defective, or of a kind that the specification does not know.
    Reserved,
}

/// An entry of the memory map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryRegion {
    pub range: Range,
    pub kind: MemoryKind,
}

/// The screen that the loader left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Screen {
    /// EGA text mode.
    Text,
    Direct(Layout),
    /// Indexed colour, or a type that the specification does not know.
    Unsupported(u8),
}

mod tag {
    pub const END: u32 = 0;
    pub const COMMAND_LINE: u32 = 1;
    pub const LOADER: u32 = 2;
    pub const MODULE: u32 = 3;
    pub const MEMORY_MAP: u32 = 6;
    pub const FRAMEBUFFER: u32 = 8;
    pub const ELF_SECTIONS: u32 = 9;
    pub const RSDP_V1: u32 = 14;
    pub const RSDP_V2: u32 = 15;
}

fn le<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    le(bytes, at).map(u32::from_le_bytes)
}
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    le(bytes, at).map(u64::from_le_bytes)
}

/// A NUL-terminated string; of one that is not UTF-8 the part that is.
fn string(bytes: &[u8]) -> &str {
    let bytes = bytes.split(|&b| b == 0).next().unwrap_or(&[]);
    match str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or(""),
    }
}

impl<'a> BootInformation<'a> {
    /// Takes the whole structure, its eight-byte header included, and checks that its tags fit into it.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn new(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let size = u32_at(bytes, 0).unwrap_or(0);
        let tags = bytes.get(8..size as usize).ok_or(Malformed::Size(size))?;
        let mut offset = 0;
        loop {
            let (Some(kind), Some(length)) = (u32_at(tags, offset), u32_at(tags, offset + 4)) else {
                // A missing end tag is harmless if the last tag ends where the structure does.
                return if offset >= tags.len() { Ok(Self { tags }) } else { Err(Malformed::Tag { offset }) };
            };
            if length < 8 || tags.len() - offset < length as usize {
                return Err(Malformed::Tag { offset });
            }
            if kind == tag::END {
                return Ok(Self { tags });
            }
            offset += (length as usize).next_multiple_of(8);
        }
    }

    /// The tags of one kind, as their bytes after type and size.
    fn tags(self, kind: u32) -> impl Iterator<Item = &'a [u8]> + Clone {
        let mut rest = self.tags;
        core::iter::from_fn(move || {
            loop {
                let (found, length) = (u32_at(rest, 0)?, u32_at(rest, 4)? as usize);
                let body = rest.get(8..length)?;
                rest = rest.get(length.next_multiple_of(8)..).unwrap_or(&[]);
                match found {
                    tag::END => return None,
                    _ if found == kind => return Some(body),
                    _ => {}
                }
            }
        })
    }

    /// The hypervisor's command line; empty if there is none.
    #[must_use]
    pub fn command_line(self) -> &'a str {
        self.tags(tag::COMMAND_LINE).next().map_or("", string)
    }

    /// The loader's name.
    #[must_use]
    pub fn loader(self) -> &'a str {
        self.tags(tag::LOADER).next().map_or("unknown", string)
    }

    /// The modules, in the loader's order. One that ends before it starts is left out.
    pub fn modules(self) -> impl Iterator<Item = Module<'a>> + Clone {
        self.tags(tag::MODULE).filter_map(|body| {
            let range = Range::new(u64::from(u32_at(body, 0)?), u64::from(u32_at(body, 4)?));
            (range.start <= range.end).then(|| Module { range, command_line: string(body.get(8..).unwrap_or(&[])) })
        })
    }

    /// The memory map. Empty entries and those that wrap are left out.
    pub fn memory_map(self) -> impl Iterator<Item = MemoryRegion> + Clone {
        self.tags(tag::MEMORY_MAP).take(1).flat_map(|body| {
            let size = u32_at(body, 0).map_or(0, |s| s as usize);
            // An entry has at least 20 bytes; an absurd size leaves no map at all.
            let entries = if size >= 20 { body.get(8..).unwrap_or(&[]) } else { &[] };
            entries.chunks_exact(size.max(20)).filter_map(|entry| {
                let (start, length) = (u64_at(entry, 0)?, u64_at(entry, 8)?);
                let range = Range::new(start, start.checked_add(length)?);
                let kind = match u32_at(entry, 16)? {
                    1 => MemoryKind::Available,
                    3 => MemoryKind::AcpiReclaimable,
                    4 => MemoryKind::AcpiNvs,
                    _ => MemoryKind::Reserved,
                };
                (length > 0).then_some(MemoryRegion { range, kind })
            })
        })
    }

    /// The screen, if the loader says something about it.
    #[must_use]
    pub fn screen(self) -> Option<Screen> {
        let body = self.tags(tag::FRAMEBUFFER).next()?;
        let kind = *body.get(21)?;
        Some(match kind {
            2 => Screen::Text,
            1 => {
                let field = |at: usize| Some(Field { position: *body.get(at)?, size: *body.get(at + 1)? });
                Screen::Direct(Layout {
                    address: u64_at(body, 0)?,
                    pitch: u32_at(body, 8)?,
                    width: u32_at(body, 12)?,
                    height: u32_at(body, 16)?,
                    bits_per_pixel: *body.get(20)?,
                    red: field(24)?,
                    green: field(26)?,
                    blue: field(28)?,
                })
            }
            other => Screen::Unsupported(other),
        })
    }

    /// Copies of the root system description pointer: the newer one first.
    pub fn rsdps(self) -> impl Iterator<Item = &'a [u8]> {
        self.tags(tag::RSDP_V2).chain(self.tags(tag::RSDP_V1))
    }

    /// The image's section headers, as the loader placed the sections.
    #[must_use]
    pub fn sections(self) -> Sections<'a> {
        let parse = || {
            let body = self.tags(tag::ELF_SECTIONS).next()?;
            let (count, size) = (u32_at(body, 0)? as usize, u32_at(body, 4)? as usize);
            let headers = body.get(12..)?;
            (size >= 64 && count.checked_mul(size)? <= headers.len())
                .then(|| Sections { headers: &headers[..count * size], size })
        };
        parse().unwrap_or(Sections { headers: &[], size: 64 })
    }
}

/// ELF64 section headers (System V ABI, chapter 4).
#[derive(Clone, Copy, Debug)]
pub struct Sections<'a> {
    headers: &'a [u8],
    size: usize,
}

const SYMBOL_TABLE: u32 = 2;
const NO_BITS: u32 = 8;
const ALLOCATED: u64 = 2;

impl Sections<'_> {
    fn contents(header: &[u8]) -> Option<Range> {
        let (address, size) = (u64_at(header, 16)?, u64_at(header, 32)?);
        (address != 0 && size > 0).then_some(())?;
        Some(Range::new(address, address.checked_add(size)?))
    }

    /// Physical addresses of sections that the loader put somewhere beside the image: symbols, strings, debugging information.
    pub fn loaded_beside(self) -> impl Iterator<Item = Range> {
        self.headers.chunks_exact(self.size).filter_map(|header| {
            let beside = u64_at(header, 8)? & ALLOCATED == 0 && u32_at(header, 4)? != NO_BITS;
            Self::contents(header).filter(|r| beside && r.end <= crate::mm::frames::EARLY_END)
        })
    }

    /// Physical addresses of the symbol table and of its string table.
    #[must_use]
    pub fn symbol_table(self) -> Option<(Range, Range)> {
        let mut headers = self.headers.chunks_exact(self.size);
        let table = headers.clone().find(|h| u32_at(h, 4) == Some(SYMBOL_TABLE))?;
        let strings = headers.nth(u32_at(table, 40)? as usize)?;
        let early = |range: &Range| range.end <= crate::mm::frames::EARLY_END;
        Some((Self::contents(table).filter(early)?, Self::contents(strings).filter(early)?))
    }

    /// The symbols, read through `view`, which makes bytes of a physical range.
    pub fn symbols<'s>(self, view: impl Fn(Range) -> &'s [u8]) -> Option<Symbols<'s>> {
        let (table, strings) = self.symbol_table()?;
        Some(Symbols::new(view(table), view(strings)))
    }
}

/// Splits a module's command line into its name (the first word) and the rest.
///
/// GRUB puts a word with blanks in double quotes, and a backslash before quotes and backslashes in any word; but it leaves alone what looks like
/// `\xHH` (GRUB 2.06, `grub_create_loader_cmdline`). The name is what GRUB was given.
#[must_use]
pub fn split_name(command_line: &str) -> (Cow<'_, str>, &str) {
    let line = command_line.trim_ascii();
    let mut name = String::new();
    let mut quoted = false;
    let mut rest = line;
    while let Some(c) = rest.chars().next().filter(|c| quoted || !c.is_ascii_whitespace()) {
        rest = &rest[c.len_utf8()..];
        match (c, rest.as_bytes()) {
            ('"', _) => quoted = !quoted,
            ('\\', [b'x', a, b, ..]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => name.push(c),
            ('\\', _) => {
                let escaped = rest.chars().next();
                rest = &rest[escaped.map_or(0, char::len_utf8)..];
                name.push(escaped.unwrap_or(c));
            }
            _ => name.push(c),
        }
    }
    let word = &line[..line.len() - rest.len()];
    let name = if name == word { Cow::Borrowed(word) } else { Cow::Owned(name) };
    (name, rest.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};
    use std::{vec, vec::Vec};

    fn information(tags: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut out = vec![0; 8];
        for (kind, body) in tags.iter().chain([&(0, vec![])]) {
            out.extend(kind.to_le_bytes());
            out.extend((body.len() as u32 + 8).to_le_bytes());
            out.extend(body);
            out.resize(out.len().next_multiple_of(8), 0);
        }
        let size = out.len() as u32;
        out[..4].copy_from_slice(&size.to_le_bytes());
        out
    }

    fn module(start: u32, end: u32, line: &[u8]) -> (u32, Vec<u8>) {
        (3, [&start.to_le_bytes(), &end.to_le_bytes(), line, &[0]].concat())
    }

    #[test]
    fn strings_and_modules() {
        let bytes = information(&[
            (1, b"/boot/bulkhead loglvl=all\0".to_vec()),
            module(0x1000, 0x3000, b"guest.cfg"),
            (2, b"GRUB 2.06\0".to_vec()),
            module(0x4000, 0x4000, b"linux \xffzz"),
            module(0x5000, 0x4000, b"absurd"),
        ]);
        let info = BootInformation::new(&bytes).unwrap();
        assert_eq!((info.command_line(), info.loader()), ("/boot/bulkhead loglvl=all", "GRUB 2.06"));
        let modules: Vec<_> = info.modules().collect();
        assert_eq!(modules.len(), 2);
        assert_eq!(modules[0], Module { range: Range::new(0x1000, 0x3000), command_line: "guest.cfg" });
        assert_eq!(modules[1].command_line, "linux ");
    }

    #[test]
    fn module_names_as_grub_writes_them() {
        for (line, name, rest) in [
            ("  linux  a b ", "linux", "a b"),
            ("", "", ""),
            (r#""/srv/my guests/a.cfg" a "b c""#, "/srv/my guests/a.cfg", r#"a "b c""#),
            (r#""it\'s a \"test\"" x"#, r#"it's a "test""#, "x"),
            (r"back\\slash", r"back\slash", ""),
            (r"a\x20b", r"a\x20b", ""),
            (r"a\\xyz", r"a\xyz", ""),
            ("caf\u{e9} x", "caf\u{e9}", "x"),
            // Not GRUB's doing.
            (r#""open end"#, "open end", ""),
            (r"end\", r"end\", ""),
        ] {
            let found = split_name(line);
            assert_eq!((found.0.as_ref(), found.1), (name, rest), "{line}");
        }
        assert!(matches!(split_name("plain x").0, Cow::Borrowed(_)));
    }

    #[test]
    fn memory_map_with_longer_entries() {
        let mut body = [28u32.to_le_bytes(), [0; 4]].concat();
        for (start, length, kind) in
            [(0u64, 0x9_fc00u64, 1u32), (0x10_0000, 0, 1), (u64::MAX - 5, 10, 1), (0x7fe_0000, 0x1000, 3), (5, 5, 77)]
        {
            body.extend(start.to_le_bytes());
            body.extend(length.to_le_bytes());
            body.extend(kind.to_le_bytes());
            body.extend([0; 8]);
        }
        let bytes = information(&[(6, body)]);
        let map: Vec<_> = BootInformation::new(&bytes).unwrap().memory_map().collect();
        assert_eq!(
            map,
            [
                MemoryRegion { range: Range::new(0, 0x9_fc00), kind: MemoryKind::Available },
                MemoryRegion { range: Range::new(0x7fe_0000, 0x7fe_1000), kind: MemoryKind::AcpiReclaimable },
                MemoryRegion { range: Range::new(5, 10), kind: MemoryKind::Reserved },
            ]
        );
        let absurd = information(&[(6, [4u32.to_le_bytes(), [0; 4], [1; 4]].concat())]);
        assert_eq!(BootInformation::new(&absurd).unwrap().memory_map().count(), 0);
    }

    #[test]
    fn tags_that_do_not_fit_are_noticed() {
        let good = information(&[(1, b"x\0".to_vec())]);
        let mut long = good.clone();
        long[12] = 200;
        assert_eq!(BootInformation::new(&long).unwrap_err(), Malformed::Tag { offset: 0 });
        let mut short = good.clone();
        short[12] = 3;
        assert_eq!(BootInformation::new(&short).unwrap_err(), Malformed::Tag { offset: 0 });
        assert_eq!(BootInformation::new(&good[..12]).unwrap_err(), Malformed::Size(good.len() as u32));
        assert_eq!(BootInformation::new(&[0; 16]).unwrap_err(), Malformed::Size(0));
    }

    #[test]
    fn symbols_are_found_by_the_section_headers() {
        let header = |kind: u32, flags: u64, address: u64, size: u64, link: u32| {
            let mut h = vec![0; 64];
            h[4..8].copy_from_slice(&kind.to_le_bytes());
            h[8..16].copy_from_slice(&flags.to_le_bytes());
            h[16..24].copy_from_slice(&address.to_le_bytes());
            h[32..40].copy_from_slice(&size.to_le_bytes());
            h[40..44].copy_from_slice(&link.to_le_bytes());
            h
        };
        let headers = [
            header(0, 0, 0, 0, 0),
            header(1, 6, 0xffff_ffff_8020_0000, 0x1000, 0),
            header(2, 0, 0x40_0000, 48, 3),
            header(3, 0, 0x40_1000, 20, 0),
        ]
        .concat();
        let body = [&4u32.to_le_bytes()[..], &64u32.to_le_bytes(), &3u32.to_le_bytes(), &headers].concat();
        let bytes = information(&[(9, body.clone())]);
        let sections = BootInformation::new(&bytes).unwrap().sections();
        let (table, strings) = (Range::new(0x40_0000, 0x40_0030), Range::new(0x40_1000, 0x40_1014));
        assert_eq!(sections.symbol_table(), Some((table, strings)));
        assert_eq!(sections.loaded_beside().collect::<Vec<_>>(), [table, strings]);
        // More headers claimed than there are.
        let absurd = information(&[(9, [&[200, 0, 0, 0], &body[4..]].concat())]);
        assert_eq!(BootInformation::new(&absurd).unwrap().sections().symbol_table(), None);
    }

    #[test]
    fn screens() {
        let mut body = 0x8000_0000u64.to_le_bytes().to_vec();
        for v in [5120u32, 1280, 800] {
            body.extend(v.to_le_bytes());
        }
        body.extend([32, 1, 0, 0, 16, 8, 8, 8, 0, 8]);
        let bytes = information(&[(8, body.clone())]);
        let Some(Screen::Direct(layout)) = BootInformation::new(&bytes).unwrap().screen() else { panic!() };
        assert_eq!((layout.address, layout.pitch, layout.width, layout.height), (0x8000_0000, 5120, 1280, 800));
        assert_eq!((layout.red.position, layout.check()), (16, Ok(())));
        body[21] = 2;
        assert_eq!(BootInformation::new(&information(&[(8, body.clone())])).unwrap().screen(), Some(Screen::Text));
        body.truncate(10);
        assert_eq!(BootInformation::new(&information(&[(8, body)])).unwrap().screen(), None);
    }

    proptest! {
        #[test]
        fn no_information_panics(tags in proptest::collection::vec((0u32..20, proptest::collection::vec(any::<u8>(), 0..200)), 0..6), cut in any::<proptest::sample::Index>(), flip: u8) {
            let mut bytes = information(&tags);
            let at = cut.index(bytes.len());
            bytes[at] ^= flip;
            for bytes in [&bytes[..], &bytes[..at]] {
                if let Ok(info) = BootInformation::new(bytes) {
                    let _ = (info.command_line(), info.loader(), info.screen());
                    let _ = (info.modules().count(), info.memory_map().count(), info.rsdps().count());
                    let _ = (info.sections().loaded_beside().count(), info.sections().symbol_table());
                }
            }
        }
    }
}
