//! Guest memory is copied in and out through one checked type, never borrowed: the guest changes it under us.

use crate::Gpa;

/// A guest-physical range `[gpa, gpa + size)` that is backed by RAM. Both are multiples of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RamRange {
    pub gpa: Gpa,
    /// Bytes.
    pub size: u64,
}

impl RamRange {
    #[must_use]
    pub const fn end(&self) -> Gpa {
        Gpa(self.gpa.0 + self.size)
    }
}

/// An access touched a guest-physical address that is not RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutsideRam(pub Gpa);

/// A guest's RAM. Values read are claims until checked, and are read once. Accesses of 1, 2, 4 or 8 aligned bytes are single-copy atomic.
pub trait GuestMemory: Send + Sync {
    /// Copies RAM at `gpa` to `buf`. On an error nothing useful is in `buf`.
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), OutsideRam>;
    /// Copies `data` to RAM at `gpa`. On an error nothing has been written.
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), OutsideRam>;
    /// Sets `len` bytes at `gpa` to `value`.
    fn fill(&self, gpa: Gpa, len: u64, value: u8) -> Result<(), OutsideRam>;
    /// Atomic compare-and-exchange of 1, 2, 4 or 8 naturally aligned bytes: `Ok(Ok(old))` if exchanged, `Ok(Err(found))` if not.
    fn compare_exchange(&self, gpa: Gpa, width: crate::Width, old: u64, new: u64) -> Result<Result<u64, u64>, OutsideRam>;
    /// The RAM ranges, ascending and disjoint.
    fn ranges(&self) -> &[RamRange];

    /// Eight bytes at a multiple of eight, in one access; `None` if they are not RAM. For page tables.
    #[inline]
    fn read_entry(&self, gpa: Gpa) -> Option<u64> {
        self.read_u64(gpa).ok()
    }
    /// True if each of these entries of page tables, at multiples of eight, holds what is said of it; may be false if that takes long to find out.
    #[inline]
    fn entries_hold(&self, entries: &[(Gpa, u64); 4]) -> bool {
        entries.iter().all(|&(at, held)| self.read_entry(at) == Some(held))
    }
    /// Sixteen bytes within one page; `None` if they are not RAM. For instructions.
    #[inline]
    fn read_block(&self, gpa: Gpa) -> Option<[u8; 16]> {
        let mut block = [0; 16];
        self.read(gpa, &mut block).ok()?;
        Some(block)
    }
}

/// Typed accesses on top of [`GuestMemory`]; little-endian, as x86 is.
pub trait GuestMemoryExt: GuestMemory {
    fn read_u8(&self, gpa: Gpa) -> Result<u8, OutsideRam> {
        let mut b = [0; 1];
        self.read(gpa, &mut b)?;
        Ok(b[0])
    }
    fn read_u16(&self, gpa: Gpa) -> Result<u16, OutsideRam> {
        let mut b = [0; 2];
        self.read(gpa, &mut b)?;
        Ok(u16::from_le_bytes(b))
    }
    fn read_u32(&self, gpa: Gpa) -> Result<u32, OutsideRam> {
        let mut b = [0; 4];
        self.read(gpa, &mut b)?;
        Ok(u32::from_le_bytes(b))
    }
    fn read_u64(&self, gpa: Gpa) -> Result<u64, OutsideRam> {
        let mut b = [0; 8];
        self.read(gpa, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }
    /// True if all of `[gpa, gpa + len)` lies in one RAM range.
    fn is_ram(&self, gpa: Gpa, len: u64) -> bool {
        self.ranges().iter().any(|r| gpa >= r.gpa && gpa.checked_add(len).is_some_and(|end| end <= r.end()))
    }
    /// Bytes of RAM in all.
    fn size(&self) -> u64 {
        self.ranges().iter().map(|r| r.size).sum()
    }
}

impl<M: GuestMemory + ?Sized> GuestMemoryExt for M {}
