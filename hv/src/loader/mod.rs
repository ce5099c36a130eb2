//! Guest loaders: put a kernel, its ramdisk and its command line into a guest's RAM the way that the kernel's boot protocol says,
//! and give the state in which its first vCPU enters it.
//!
//! An image is whatever an administrator named in a configuration: every size, offset and address in it is a claim, checked
//! before use, and a wrong one is an error that names the field.

mod bzimage;
mod elf;
mod multiboot1;
mod place;

pub use bzimage::version as linux_version;

use crate::{config::Key, layout};
use core::fmt;
use x86defs::{Gpa, GuestMemory, OutsideRam, VcpuState};

/// What to load.
#[derive(Clone, Copy, Debug)]
pub struct LoadRequest<'a> {
    /// The kernel image, a whole file.
    pub kernel: &'a [u8],
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

/// What kind of kernel an image is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A Linux bzImage.
    Linux,
    /// An image with a multiboot1 header at this file offset.
    Multiboot1 { header: usize },
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linux => "Linux bzImage",
            Self::Multiboot1 { .. } => "multiboot1 kernel",
        })
    }
}

/// What an image is that is no kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotAKernel {
    Empty,
    /// Packed as a whole by this program, which a kernel that unpacks itself is not.
    Compressed(&'static str),
    /// An ELF file without a multiboot1 header; with a multiboot2 header or not.
    Elf {
        multiboot2: bool,
    },
    /// A multiboot1 header's magic number at this offset, with a checksum that does not fit.
    MultibootChecksum {
        offset: usize,
    },
    /// A DOS or EFI program without Linux's boot header.
    Pe,
    /// An initramfs.
    Cpio,
    /// ASCII text: a configuration or a script.
    Text,
    Unknown,
}

impl fmt::Display for NotAKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the file is empty"),
            Self::Compressed(by) => write!(f, "the file is compressed ({by}); give the kernel unpacked"),
            Self::Elf { multiboot2: false } => {
                f.write_str("an ELF file without a multiboot1 header in its first 8 KiB (a vmlinux? give the bzImage)")
            }
            Self::Elf { multiboot2: true } => f.write_str("an ELF file with a multiboot2 header, which is not supported yet"),
            Self::MultibootChecksum { offset } => {
                write!(f, "the multiboot1 header at file offset {offset:#x} has a wrong checksum")
            }
            Self::Pe => f.write_str("a DOS or EFI program without Linux's boot header"),
            Self::Cpio => f.write_str("a cpio archive (an initramfs? that is what ramdisk is for)"),
            Self::Text => f.write_str("a text file"),
            Self::Unknown => f.write_str("neither a Linux bzImage nor a multiboot1 kernel"),
        }
    }
}

/// Why a kernel cannot be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoadError {
    NotAKernel(NotAKernel),
    /// A field of the image's headers has a value that makes no sense. Named as its specification names it.
    Field {
        field: &'static str,
        value: u64,
    },
    /// The file ends before the end of this part of it: bytes that it should have, bytes that it has.
    Truncated {
        part: &'static str,
        needs: u64,
        has: u64,
    },
    /// A Linux with a boot protocol older than 2.12 (Linux 3.8): version as major << 8 | minor.
    LinuxTooOld {
        version: u16,
    },
    /// A Linux without a 64-bit entry point.
    Linux32Bit,
    /// A multiboot1 header asks for features that are not known; these are its bits.
    MultibootFlags(u32),
    /// An ELF file for another machine (`e_machine`).
    ElfMachine(u16),
    /// More loadable segments than are accepted.
    TooManySegments,
    /// The kernel wants RAM that the guest does not have: `size` bytes from `start` on; RAM ends at `ram_end`, or has a hole.
    KernelDoesNotFit {
        start: u64,
        size: u64,
        ram_end: u64,
    },
    /// No place for the ramdisk beside the kernel: its bytes, and the largest place that is free.
    RamdiskDoesNotFit {
        size: u64,
        free: u64,
    },
    /// Bytes in the command line, and most that the kernel takes.
    CommandLineTooLong {
        length: u64,
        limit: u64,
    },
    /// No place for what a boot protocol needs beside the kernel: bytes.
    NoRoom {
        size: u64,
    },
    /// A place that should be RAM is not.
    OutsideRam(Gpa),
}

impl LoadError {
    /// The configuration key whose value is at fault.
    #[must_use]
    pub const fn key(&self) -> Key {
        match self {
            Self::RamdiskDoesNotFit { .. } => Key::Ramdisk,
            Self::CommandLineTooLong { .. } => Key::Cmdline,
            Self::NoRoom { .. } | Self::OutsideRam(_) => Key::Memory,
            _ => Key::Kernel,
        }
    }
}

impl From<OutsideRam> for LoadError {
    fn from(error: OutsideRam) -> Self {
        Self::OutsideRam(error.0)
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotAKernel(what) => write!(f, "not a kernel: {what}"),
            Self::Field { field, value } => write!(f, "damaged kernel image: {field} is {value:#x}"),
            Self::Truncated { part, needs, has } => {
                write!(f, "truncated kernel image: {part} needs {needs} bytes of file, it has {has}")
            }
            Self::LinuxTooOld { version } => {
                write!(f, "a Linux of boot protocol {}.{:02}; 2.12 (Linux 3.8) or newer is needed", version >> 8, version & 0xff)
            }
            Self::Linux32Bit => f.write_str("a 32-bit Linux: it has no 64-bit entry point"),
            Self::MultibootFlags(flags) => write!(f, "its multiboot1 header asks for unknown features (flags {flags:#x})"),
            Self::ElfMachine(machine) => write!(f, "an ELF file for another machine (e_machine {machine})"),
            Self::TooManySegments => f.write_str("an ELF file with too many loadable segments"),
            Self::KernelDoesNotFit { start, size, ram_end } => write!(
                f,
                "the kernel does not fit: it needs {} of RAM from {start:#x} on, the guest's RAM below 4 GiB ends at {ram_end:#x}",
                Bytes(size)
            ),
            Self::RamdiskDoesNotFit { size, free } => {
                write!(
                    f,
                    "the ramdisk does not fit: it has {}, the largest free place beside the kernel has {}",
                    Bytes(size),
                    Bytes(free)
                )
            }
            Self::CommandLineTooLong { length, limit } => {
                write!(f, "the command line is too long: {length} bytes, this kernel takes {limit}")
            }
            Self::NoRoom { size } => write!(f, "no free place for {} that the boot protocol needs", Bytes(size)),
            Self::OutsideRam(gpa) => write!(f, "guest address {gpa} is not RAM"),
        }
    }
}

/// A number of bytes, as people like to read it.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= 10 * layout::MIB {
            write!(f, "{} MiB", self.0.div_ceil(layout::MIB))
        } else if self.0 >= 10 * layout::KIB {
            write!(f, "{} KiB", self.0.div_ceil(layout::KIB))
        } else {
            write!(f, "{} bytes", self.0)
        }
    }
}

/// Finds out which loader an image is for.
///
/// # Errors
/// What the image is instead of a kernel.
pub fn detect(image: &[u8]) -> Result<Kind, NotAKernel> {
    if bzimage::is_linux(image) {
        return Ok(Kind::Linux);
    }
    match multiboot1::find_header(image) {
        Ok(Some(header)) => return Ok(Kind::Multiboot1 { header }),
        Ok(None) => {}
        Err(offset) => return Err(NotAKernel::MultibootChecksum { offset }),
    }
    Err(match image {
        [] => NotAKernel::Empty,
        [0x1f, 0x8b, ..] => NotAKernel::Compressed("gzip"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => NotAKernel::Compressed("xz"),
        [b'B', b'Z', b'h', ..] => NotAKernel::Compressed("bzip2"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => NotAKernel::Compressed("zstd"),
        [0x04, 0x22, 0x4d, 0x18, ..] | [0x02, 0x21, 0x4c, 0x18, ..] => NotAKernel::Compressed("lz4"),
        [0x5d, 0, 0, ..] => NotAKernel::Compressed("lzma"),
        [0x7f, b'E', b'L', b'F', ..] => NotAKernel::Elf { multiboot2: multiboot1::has_multiboot2_header(image) },
        [b'M', b'Z', ..] => NotAKernel::Pe,
        [b'0', b'7', b'0', b'7', b'0', b'1' | b'2' | b'7', ..] => NotAKernel::Cpio,
        _ if image.iter().take(4096).all(|&b| b.is_ascii_graphic() || b.is_ascii_whitespace()) => NotAKernel::Text,
        _ => NotAKernel::Unknown,
    })
}

/// Loads a kernel and what belongs to it, and gives the state in which the boot processor enters it. RAM that nothing is loaded
/// to is left as it is.
///
/// # Errors
/// [`LoadError`]; the guest's RAM may have been written in part then.
pub fn load<M: GuestMemory + ?Sized>(memory: &M, request: &LoadRequest<'_>) -> Result<VcpuState, LoadError> {
    let kind = detect(request.kernel).map_err(LoadError::NotAKernel)?;
    // First, so that a kernel that is loaded there wins.
    write_bios_data(memory)?;
    match kind {
        Kind::Linux => bzimage::load(memory, request),
        Kind::Multiboot1 { header } => multiboot1::load(memory, request, header),
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
