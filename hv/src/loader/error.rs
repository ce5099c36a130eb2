//! What is wrong with a kernel, in words for whoever wrote its configuration.

use super::Format;
use crate::{config::Key, layout};
use core::fmt;
use x86defs::{Gpa, OutsideRam};

/// What an image is that is no kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotAKernel {
    Empty,
    /// Packed as a whole by this program, which a kernel that unpacks itself is not.
    Compressed(&'static str),
    /// An ELF file without anything that says how to enter it.
    Elf,
    /// The magic number of a multiboot header of this version at this offset, with a checksum that does not fit.
    MultibootChecksum {
        version: u8,
        offset: usize,
    },
    /// A DOS or EFI program without Linux's boot header.
    Pe,
    /// An initramfs.
    Cpio,
    /// ASCII text: a configuration or a script.
    Text,
    Unknown,
    /// It has not what makes a kernel of the format that it is said to have.
    Lacks(Format),
}

impl fmt::Display for NotAKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the file is empty"),
            Self::Compressed(by) => write!(f, "the file is compressed ({by}); give the kernel unpacked"),
            Self::Elf => f.write_str("an ELF file with neither a multiboot header nor a PVH entry point"),
            Self::MultibootChecksum { version, offset } => {
                write!(f, "the multiboot{version} header at file offset {offset:#x} has a wrong checksum")
            }
            Self::Pe => f.write_str("a DOS or EFI program without Linux's boot header"),
            Self::Cpio => f.write_str("a cpio archive (an initramfs? that is what ramdisk is for)"),
            Self::Text => f.write_str("a text file"),
            Self::Unknown => {
                f.write_str("neither a Linux bzImage nor a multiboot or PVH kernel (a flat image? say so in kernel_format)")
            }
            Self::Lacks(format) => f.write_str(match format {
                Format::Linux => "it has no Linux boot header",
                Format::Multiboot1 => "it has no multiboot1 header in its first 8 KiB",
                Format::Multiboot2 => "it has no multiboot2 header in its first 32 KiB",
                Format::Pvh => "it is no ELF file with a PVH entry point (note XEN_ELFNOTE_PHYS32_ENTRY)",
                Format::Auto | Format::Flat { .. } => "it is empty",
            }),
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
    /// A Linux with a boot protocol older than 2.10 (Linux 2.6.31): version as major << 8 | minor.
    LinuxTooOld {
        version: u16,
    },
    /// A multiboot1 header asks for features that are not known; these are its bits.
    MultibootFlags(u32),
    /// A multiboot2 header has a required tag of a type that is not known.
    Multiboot2Tag(u16),
    /// It requires information of a type that is not known.
    Multiboot2Request(u32),
    /// It is for another processor.
    Multiboot2Architecture(u32),
    /// It requires a text or graphics console, which there is not.
    Multiboot2Console(u32),
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
    /// There is no place for a kernel that may be moved: `size` bytes from `min` to `max`.
    NoPlaceForKernel {
        size: u64,
        min: u64,
        max: u64,
    },
    /// The entry point of a flat image lies outside of it.
    EntryOutside {
        entry: u64,
        start: u64,
        end: u64,
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
            Self::NotAKernel(NotAKernel::Lacks(_)) => Key::KernelFormat,
            Self::EntryOutside { .. } => Key::Entry,
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
                write!(
                    f,
                    "a Linux of boot protocol {}.{:02}; 2.10 (Linux 2.6.31) or newer is needed",
                    version >> 8,
                    version & 0xff
                )
            }
            Self::MultibootFlags(flags) => write!(f, "its multiboot1 header asks for unknown features (flags {flags:#x})"),
            Self::Multiboot2Tag(kind) => write!(f, "its multiboot2 header has a required tag of unknown type {kind}"),
            Self::Multiboot2Request(kind) => write!(f, "its multiboot2 header requires information of unknown type {kind}"),
            Self::Multiboot2Architecture(value) => {
                write!(f, "its multiboot2 header is for another processor (architecture {value})")
            }
            Self::Multiboot2Console(flags) => {
                write!(
                    f,
                    "its multiboot2 header requires a text or graphics console (console_flags {flags:#x}); there are serial ports only"
                )
            }
            Self::ElfMachine(machine) => write!(f, "an ELF file for another machine (e_machine {machine})"),
            Self::TooManySegments => f.write_str("an ELF file with too many loadable segments"),
            Self::KernelDoesNotFit { start, size, ram_end } => write!(
                f,
                "the kernel does not fit: it needs {} of RAM from {start:#x} on, the guest's RAM below 4 GiB ends at {ram_end:#x}",
                Bytes(size)
            ),
            Self::NoPlaceForKernel { size, min, max } => {
                write!(f, "the kernel does not fit: no free {} of RAM from {min:#x} to {max:#x}", Bytes(size))
            }
            Self::EntryOutside { entry, start, end } => {
                write!(f, "the entry point {entry:#x} is outside of the image, which is loaded from {start:#x} to {end:#x}")
            }
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
