//! Guest loaders: put a kernel, its ramdisk and its command line into a guest's RAM the way that the kernel's boot protocol says,
//! and give the state in which its first vCPU enters it.
//!
//! An image is whatever an administrator named in a configuration: every size, offset and address in it is a claim, checked
//! before use, and a wrong one is an error that names the field.

mod bzimage;
mod elf;
mod error;
mod handover;
mod image;
mod multiboot1;
mod multiboot2;
mod place;
mod pvh;

pub use bzimage::version as linux_version;
pub use error::{LoadError, NotAKernel};

use crate::layout;
use core::fmt;
use x86defs::{Gpa, GuestMemory, OutsideRam, VcpuState};

/// What to load.
#[derive(Clone, Copy, Debug)]
pub struct LoadRequest<'a> {
    /// The kernel image, a whole file.
    pub kernel: &'a [u8],
    pub format: Format,
    pub ramdisk: Option<Ramdisk<'a>>,
    /// Without the kernel's own name.
    pub cmdline: &'a str,
    /// Where the ACPI RSDP is.
    pub rsdp: Gpa,
}

/// The file that a kernel is given beside itself: Linux's initrd, a multiboot kernel's module.
#[derive(Clone, Copy, Debug)]
pub struct Ramdisk<'a> {
    /// What a multiboot kernel sees as the module's string.
    pub name: &'a str,
    pub data: &'a [u8],
}

/// How an image is to be taken (`kernel_format`).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Format {
    /// As what it looks like: of several, the first in this order, but never as a flat image.
    #[default]
    Auto,
    Linux,
    Multiboot1,
    Multiboot2,
    Pvh,
    /// All of the file goes to guest-physical `address`, and is entered at `entry` as a PVH kernel is.
    Flat {
        address: u32,
        entry: u32,
    },
}

/// What kind of kernel an image is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A Linux bzImage.
    Linux,
    /// An image with a multiboot1 header at this file offset.
    Multiboot1 { header: usize },
    /// An image with a multiboot2 header at this file offset.
    Multiboot2 { header: usize },
    /// An ELF file that a note gives this entry point, a guest-physical address.
    Pvh { entry: u64 },
    /// Nothing that the file would say itself.
    Flat { address: u32, entry: u32 },
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linux => "Linux bzImage",
            Self::Multiboot1 { .. } => "multiboot1 kernel",
            Self::Multiboot2 { .. } => "multiboot2 kernel",
            Self::Pvh { .. } => "PVH kernel",
            Self::Flat { .. } => "flat image",
        })
    }
}

/// Finds out which loader an image is for.
///
/// # Errors
/// What the image is instead of a kernel, of the given format if there is one.
pub fn detect(image: &[u8], format: Format) -> Result<Kind, NotAKernel> {
    let lacks = |result: Option<Kind>| result.ok_or(NotAKernel::Lacks(format));
    let checksum = |version, offset| NotAKernel::MultibootChecksum { version, offset };
    let linux = || bzimage::is_linux(image).then_some(Kind::Linux);
    let first = || {
        let header = multiboot1::find_header(image).map_err(|offset| checksum(1, offset))?;
        Ok(header.map(|header| Kind::Multiboot1 { header }))
    };
    let second = || {
        let header = multiboot2::find_header(image).map_err(|offset| checksum(2, offset))?;
        Ok(header.map(|header| Kind::Multiboot2 { header }))
    };
    let pvh = || pvh::entry(image).map(|entry| Kind::Pvh { entry });
    match format {
        _ if image.is_empty() => Err(NotAKernel::Empty),
        Format::Linux => lacks(linux()),
        Format::Multiboot1 => lacks(first()?),
        Format::Multiboot2 => lacks(second()?),
        Format::Pvh => lacks(pvh()),
        Format::Flat { address, entry } => Ok(Kind::Flat { address, entry }),
        Format::Auto => {
            // A damaged header counts only if there is nothing else.
            let (first, second) = (first(), second());
            let sound = |found: Result<Option<Kind>, _>| found.ok().flatten();
            match linux().or(sound(first)).or(sound(second)).or_else(pvh) {
                Some(kind) => Ok(kind),
                None => Err(first.and(second).err().unwrap_or_else(|| guess(image))),
            }
        }
    }
}

/// What a file is that is no kernel, by how it begins.
fn guess(image: &[u8]) -> NotAKernel {
    match image {
        [0x1f, 0x8b, ..] => NotAKernel::Compressed("gzip"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => NotAKernel::Compressed("xz"),
        [b'B', b'Z', b'h', ..] => NotAKernel::Compressed("bzip2"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => NotAKernel::Compressed("zstd"),
        [0x04, 0x22, 0x4d, 0x18, ..] | [0x02, 0x21, 0x4c, 0x18, ..] => NotAKernel::Compressed("lz4"),
        [0x5d, 0, 0, ..] => NotAKernel::Compressed("lzma"),
        [0x7f, b'E', b'L', b'F', ..] => NotAKernel::Elf,
        [b'M', b'Z', ..] => NotAKernel::Pe,
        [b'0', b'7', b'0', b'7', b'0', b'1' | b'2' | b'7', ..] => NotAKernel::Cpio,
        _ if image.iter().take(4096).all(|&b| b.is_ascii_graphic() || b.is_ascii_whitespace()) => NotAKernel::Text,
        _ => NotAKernel::Unknown,
    }
}

/// Loads a kernel and what belongs to it, and gives the state in which the boot processor enters it. RAM that nothing is loaded
/// to is left as it is.
///
/// # Errors
/// [`LoadError`]; the guest's RAM may have been written in part then.
pub fn load<M: GuestMemory + ?Sized>(memory: &M, request: &LoadRequest<'_>) -> Result<VcpuState, LoadError> {
    let kind = detect(request.kernel, request.format).map_err(LoadError::NotAKernel)?;
    // First, so that a kernel that is loaded there wins.
    write_bios_data(memory)?;
    match kind {
        Kind::Linux => bzimage::load(memory, request),
        Kind::Multiboot1 { header } => multiboot1::load(memory, request, header),
        Kind::Multiboot2 { header } => multiboot2::load(memory, request, header),
        Kind::Pvh { entry } => pvh::load_elf(memory, request, entry),
        Kind::Flat { address, entry } => pvh::load_flat(memory, request, address.into(), entry.into()),
    }
}

/// Fills in what kernels of either kind look up in the BIOS data area, as the firmware of a PC does before a boot loader runs: the
/// first serial port's address (40:00), the installed equipment (40:10) and the size of conventional memory (40:13).
fn write_bios_data<M: GuestMemory + ?Sized>(memory: &M) -> Result<(), OutsideRam> {
    /// One serial port (bits 9-11), a PS/2 mouse (bit 2), an x87 (bit 1).
    const EQUIPMENT: u16 = 1 << 9 | 1 << 2 | 1 << 1;
    const COM1: u16 = 0x3f8;
    memory.fill(Gpa(0x400), 0x100, 0)?;
    memory.write(Gpa(0x400), &COM1.to_le_bytes())?;
    memory.write(Gpa(0x410), &EQUIPMENT.to_le_bytes())?;
    memory.write(Gpa(0x413), &((layout::VGA_WINDOW.start / layout::KIB) as u16).to_le_bytes())
}

/// Little-endian fields of an untrusted image, by file offset.
trait ImageFields {
    fn field<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    fn u8_at(&self, offset: usize) -> Option<u8> {
        self.field::<1>(offset).map(|[b]| b)
    }
    fn u16_at(&self, offset: usize) -> Option<u16> {
        self.field(offset).map(u16::from_le_bytes)
    }
    fn u32_at(&self, offset: usize) -> Option<u32> {
        self.field(offset).map(u32::from_le_bytes)
    }
    fn u64_at(&self, offset: usize) -> Option<u64> {
        self.field(offset).map(u64::from_le_bytes)
    }
}

impl ImageFields for [u8] {
    fn field<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk::<N>().copied()
    }
}

/// `len` bytes of the image from `offset` on, if it has them.
fn part(image: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = usize::try_from(offset.checked_add(len)?).ok()?;
    image.get(start..end)
}

#[cfg(test)]
mod tests;
