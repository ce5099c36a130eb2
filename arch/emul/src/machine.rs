//! What every instruction needs: addresses through segmentation, bytes at those addresses, and the stack.

use crate::{Cpu, Mode, Privilege, Stop};
use x86defs::{Access, Cr0, Cr4, Exception, Gpa, Gpr, Gprs, Gva, PAGE_SIZE, Rflags, Segment, SegmentRegister, Width};

/// Why an instruction did not complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Halt {
    Fault(Exception),
    Abort,
    Unsupported,
    /// Come back to the same instruction.
    Partial,
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Fault(exception) => Self::Fault(exception),
            Stop::Abort => Self::Abort,
        }
    }
}

impl From<Exception> for Halt {
    fn from(exception: Exception) -> Self {
        Self::Fault(exception)
    }
}

pub(crate) type Done<T = ()> = Result<T, Halt>;

/// Attempts at a locked update until the guest is asked to try again.
const LOCK_ATTEMPTS: u32 = 64;

/// The register with encoding `n & 15`: as `Gpr::from_index`, but the compiler sees that it is the number itself.
#[inline(always)]
pub(crate) const fn gpr(n: u8) -> Gpr {
    match n & 15 {
        0 => Gpr::Rax,
        1 => Gpr::Rcx,
        2 => Gpr::Rdx,
        3 => Gpr::Rbx,
        4 => Gpr::Rsp,
        5 => Gpr::Rbp,
        6 => Gpr::Rsi,
        7 => Gpr::Rdi,
        8 => Gpr::R8,
        9 => Gpr::R9,
        10 => Gpr::R10,
        11 => Gpr::R11,
        12 => Gpr::R12,
        13 => Gpr::R13,
        14 => Gpr::R14,
        _ => Gpr::R15,
    }
}

/// A general-purpose register or a part of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Register {
    pub(crate) gpr: Gpr,
    pub(crate) width: Width,
    /// AH, CH, DH or BH.
    pub(crate) high: bool,
}

impl Register {
    pub(crate) const fn new(gpr: Gpr, width: Width) -> Self {
        Self { gpr, width, high: false }
    }

    #[inline]
    pub(crate) fn get(self, gprs: &Gprs) -> u64 {
        let value = gprs[self.gpr];
        (if self.high { value >> 8 } else { value }) & self.width.mask()
    }

    /// Writes the register; 32-bit writes clear the upper half (SDM vol. 1, 3.4.1.1).
    #[inline]
    pub(crate) fn set(self, gprs: &mut Gprs, value: u64) {
        let old = gprs[self.gpr];
        gprs[self.gpr] = match self.width {
            Width::Byte if self.high => old & !0xff00 | (value & 0xff) << 8,
            Width::Byte => old & !0xff | value & 0xff,
            Width::Word => old & !0xffff | value & 0xffff,
            Width::Dword => value & 0xffff_ffff,
            Width::Qword => value,
        };
    }
}

/// An address size's mask.
pub(crate) const fn address_mask(bits: u32) -> u64 {
    match bits {
        16 => 0xffff,
        32 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// A segment after the checks that depend on the segment alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    base: u64,
    /// Lowest and highest valid offset; `None` in 64-bit mode, where linear addresses must be canonical instead.
    range: Option<(u64, u64)>,
    /// Bits of a linear address.
    linear_bits: u32,
    /// What a bad offset raises.
    fault: Exception,
}

impl View {
    /// The linear address of `len` bytes at `offset`; `len` is at least 1.
    #[inline]
    pub(crate) fn linear(&self, offset: u64, len: usize) -> Result<u64, Exception> {
        let last = len as u64 - 1;
        let linear = self.base.wrapping_add(offset);
        match self.range {
            None => {
                if canonical(linear, self.linear_bits) && canonical(linear.wrapping_add(last), self.linear_bits) {
                    Ok(linear)
                } else {
                    Err(self.fault)
                }
            }
            Some((low, high)) => match offset.checked_add(last) {
                Some(end) if offset >= low && end <= high => Ok(linear & 0xffff_ffff),
                _ => Err(self.fault),
            },
        }
    }
}

/// True if the bits above `bits` copy bit `bits - 1`.
#[inline]
pub(crate) const fn canonical(address: u64, bits: u32) -> bool {
    let unused = 64 - bits;
    ((address << unused) as i64 >> unused) as u64 == address
}

/// Translated bytes: in one page, or in two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    first: Gpa,
    second: Gpa,
    /// Bytes in all, and in the first page.
    len: usize,
    head: usize,
}

impl Place {
    pub(crate) const fn in_page(first: Gpa, len: usize) -> Self {
        Self { first, second: Gpa(0), len, head: len }
    }

    /// The width, if it is one access.
    #[inline]
    fn single(&self) -> Option<Width> {
        if self.head == self.len { Width::from_bytes(self.len) } else { None }
    }

    /// The address, if all of it lies in one page.
    pub(crate) fn address(&self) -> Option<Gpa> {
        (self.head == self.len).then_some(self.first)
    }

    /// Moves a place in one page by `step`, staying in the page.
    #[inline]
    pub(crate) fn shift(&mut self, step: u64) {
        self.first = self.first.wrapping_add(step);
    }

    /// The accesses that make up a wide or page-crossing one: naturally aligned, ascending. Each with its offset.
    fn pieces(self) -> impl Iterator<Item = (Gpa, Width, usize)> {
        let mut done = 0;
        core::iter::from_fn(move || {
            let (gpa, left) = if done < self.head {
                (self.first.wrapping_add(done as u64), self.head - done)
            } else if done < self.len {
                (self.second.wrapping_add((done - self.head) as u64), self.len - done)
            } else {
                return None;
            };
            let width = [Width::Qword, Width::Dword, Width::Word]
                .into_iter()
                .find(|w| w.bytes() <= left && gpa.is_aligned(w.bytes() as u64))
                .unwrap_or(Width::Byte);
            let offset = done;
            done += width.bytes();
            Some((gpa, width, offset))
        })
    }
}

/// Page translations of one stream of accesses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PageCache(Option<(u64, Gpa)>);

/// One instruction in execution: the CPU and what is not written back to it before the end.
pub(crate) struct Machine<'a, C> {
    pub(crate) cpu: &'a mut C,
    pub(crate) mode: Mode,
    /// Default size of the code segment: 16, 32 or 64.
    pub(crate) bits: u32,
    /// Of this instruction.
    pub(crate) rip: u64,
    /// Of the next one.
    pub(crate) next: u64,
    pub(crate) rflags: u64,
}

impl<'a, C: Cpu> Machine<'a, C> {
    #[inline]
    pub(crate) fn new(cpu: &'a mut C, (mode, bits): (Mode, u32)) -> Self {
        let (rip, rflags) = (cpu.rip(), cpu.rflags());
        Self { cpu, mode, bits, rip, next: rip, rflags }
    }

    /// Sets the RIP that follows from an instruction of `len` bytes.
    #[inline]
    pub(crate) fn set_length(&mut self, len: usize) {
        let next = self.rip.wrapping_add(len as u64);
        self.next = if self.mode == Mode::Long { next } else { next & 0xffff_ffff };
    }

    pub(crate) fn flag(&self, flag: u64) -> bool {
        self.rflags & flag != 0
    }

    /// Bits of a linear address in 64-bit mode.
    #[inline]
    pub(crate) fn linear_bits(&self) -> u32 {
        if self.cpu.cr4() & Cr4::LA57.bits() != 0 { 57 } else { 48 }
    }

    /// Segment `register` for an access of this kind, with the checks that do not depend on the offset (SDM vol. 3A, 6.3 to 6.5).
    #[inline]
    pub(crate) fn view(&self, register: SegmentRegister, access: Access) -> Result<View, Exception> {
        let fault = if register == SegmentRegister::Ss { Exception::ss(0) } else { Exception::GP };
        if self.mode == Mode::Long {
            let base = match register {
                SegmentRegister::Fs | SegmentRegister::Gs => self.cpu.segment(register).base,
                _ => 0,
            };
            return Ok(View { base, range: None, linear_bits: self.linear_bits(), fault });
        }
        let segment = self.cpu.segment(register);
        if self.mode == Mode::Protected {
            check_type(&segment, access).map_err(|()| fault)?;
        }
        let limit = u64::from(segment.limit);
        let attributes = segment.attributes;
        // Expand-down data: type bit 3 (code) clear, bit 2 set.
        let range = if attributes.kind() & 0xc == 4 {
            (limit + 1, if attributes.big() { 0xffff_ffff } else { 0xffff })
        } else {
            (0, limit)
        };
        Ok(View { base: segment.base, range: Some(range), linear_bits: 32, fault })
    }

    /// The linear address of `len` bytes at `register:offset`.
    #[inline]
    pub(crate) fn linear(&self, register: SegmentRegister, offset: u64, len: usize, access: Access) -> Result<u64, Exception> {
        self.view(register, access)?.linear(offset, len)
    }

    /// #AC for a misaligned operand, where alignment checking is on (SDM vol. 3A, 7.15, interrupt 17).
    #[inline]
    pub(crate) fn check_alignment(&self, linear: u64, align: usize) -> Result<(), Exception> {
        if linear & (align as u64).wrapping_sub(1) != 0
            && self.flag(Rflags::AC.bits())
            && self.cpu.cpl() == 3
            && self.cpu.cr0() & Cr0::AM.bits() != 0
        {
            return Err(Exception::ac());
        }
        Ok(())
    }

    /// Translates `len` bytes (1..=64) at `linear`, in one page or two.
    #[inline]
    pub(crate) fn locate(&mut self, linear: u64, len: usize, access: Access) -> Result<Place, Stop> {
        let first = self.cpu.translate(Gva(linear), access, Privilege::Current)?;
        let left = (PAGE_SIZE - linear % PAGE_SIZE) as usize;
        if len <= left {
            return Ok(Place::in_page(first, len));
        }
        let mut next = (linear & !(PAGE_SIZE - 1)).wrapping_add(PAGE_SIZE);
        if self.mode != Mode::Long {
            next &= 0xffff_ffff;
        }
        let second = self.cpu.translate(Gva(next), access, Privilege::Current)?;
        Ok(Place { first, second, len, head: left })
    }

    /// As `locate`, but keeps the translation of the page for the next call.
    #[inline]
    pub(crate) fn locate_cached(
        &mut self,
        cache: &mut PageCache,
        linear: u64,
        len: usize,
        access: Access,
    ) -> Result<Place, Stop> {
        let offset = linear % PAGE_SIZE;
        if let Some((page, gpa)) = cache.0
            && page == linear - offset
            && offset + len as u64 <= PAGE_SIZE
        {
            return Ok(Place::in_page(gpa.wrapping_add(offset), len));
        }
        let place = self.locate(linear, len, access)?;
        // Of a page-crossing element, the first page's translation is the one kept: right for both directions.
        cache.0 = Some((linear - offset, place.first.page()));
        Ok(place)
    }

    /// Segmentation, alignment and paging for an ordinary operand of `len` bytes.
    #[inline]
    pub(crate) fn operand(
        &mut self,
        register: SegmentRegister,
        offset: u64,
        len: usize,
        align: usize,
        access: Access,
    ) -> Done<Place> {
        let linear = self.linear(register, offset, len, access)?;
        self.check_alignment(linear, align)?;
        Ok(self.locate(linear, len, access)?)
    }

    /// Reads up to 8 bytes.
    #[inline]
    pub(crate) fn load(&mut self, place: Place) -> Result<u64, Stop> {
        match place.single() {
            Some(width) => self.cpu.read(place.first, width),
            None => Ok(self.load_wide(place)?[0] as u64),
        }
    }

    /// Writes up to 8 bytes.
    #[inline]
    pub(crate) fn store(&mut self, place: Place, value: u64) -> Result<(), Stop> {
        match place.single() {
            Some(width) => self.cpu.write(place.first, width, value & width.mask()),
            None => self.store_wide(place, [u128::from(value), 0]),
        }
    }

    /// Reads up to 32 bytes, in naturally aligned pieces.
    pub(crate) fn load_wide(&mut self, place: Place) -> Result<[u128; 2], Stop> {
        let mut halves = [0u128; 2];
        for (gpa, width, offset) in place.pieces() {
            let mut value = self.cpu.read(gpa, width)?;
            // A misaligned piece may lie on both sides of the halves.
            for i in offset..offset + width.bytes() {
                if let Some(half) = halves.get_mut(i / 16) {
                    *half |= u128::from(value & 0xff) << (8 * (i % 16));
                }
                value >>= 8;
            }
        }
        Ok(halves)
    }

    /// Writes up to 32 bytes, in naturally aligned pieces.
    pub(crate) fn store_wide(&mut self, place: Place, halves: [u128; 2]) -> Result<(), Stop> {
        for (gpa, width, offset) in place.pieces() {
            let mut value = 0;
            for i in (offset..offset + width.bytes()).rev() {
                let half = halves.get(i / 16).copied().unwrap_or(0);
                value = value << 8 | (half >> (8 * (i % 16))) as u64 & 0xff;
            }
            self.cpu.write(gpa, width, value)?;
        }
        Ok(())
    }

    /// Replaces the bytes at `place`, translated for writing, by `change` of them; atomically if `locked`. `change` may be
    /// called again with a newer value if another vCPU was faster. Returns the value that was replaced.
    ///
    /// A locked access across a page boundary is not atomic: no two pages can be exchanged at once.
    pub(crate) fn update(&mut self, place: Place, locked: bool, mut change: impl FnMut(u64) -> u64) -> Done<u64> {
        let mut old = self.load(place)?;
        match place.single() {
            Some(width) if locked => {
                for _ in 0..LOCK_ATTEMPTS {
                    let found = self.cpu.compare_exchange(place.first, width, old, change(old) & width.mask())?;
                    if found == old {
                        return Ok(old);
                    }
                    old = found;
                }
                Err(Halt::Partial)
            }
            _ => {
                let new = change(old);
                self.store(place, new)?;
                Ok(old)
            }
        }
    }

    /// Bits of the stack pointer in use: 64, or by SS.B.
    fn stack_bits(&self) -> u32 {
        match self.mode {
            Mode::Long => 64,
            _ if self.cpu.segment(SegmentRegister::Ss).attributes.big() => 32,
            _ => 16,
        }
    }

    /// The stack pointer as an address.
    pub(crate) fn stack_pointer(&self) -> u64 {
        self.cpu.gprs()[Gpr::Rsp] & address_mask(self.stack_bits())
    }

    /// Moves the stack pointer by `delta`; the bits above the stack's size stay.
    pub(crate) fn move_stack_pointer(&mut self, delta: u64) {
        let mask = address_mask(self.stack_bits());
        let old = self.cpu.gprs()[Gpr::Rsp];
        self.cpu.gprs_mut()[Gpr::Rsp] = old & !mask | old.wrapping_add(delta) & mask;
    }

    /// The place of a value `depth` bytes above the stack pointer (negative as two's complement).
    pub(crate) fn stack_place(&mut self, depth: u64, width: Width, access: Access) -> Done<Place> {
        let offset = self.stack_pointer().wrapping_add(depth) & address_mask(self.stack_bits());
        self.operand(SegmentRegister::Ss, offset, width.bytes(), width.bytes(), access)
    }

    /// Where a push of `width` goes.
    pub(crate) fn push_place(&mut self, width: Width) -> Done<Place> {
        self.stack_place((width.bytes() as u64).wrapping_neg(), width, Access::Write)
    }

    /// Completes a push to the place given by `push_place`.
    pub(crate) fn push(&mut self, place: Place, width: Width, value: u64) -> Done {
        self.store(place, value)?;
        self.move_stack_pointer((width.bytes() as u64).wrapping_neg());
        Ok(())
    }

    /// A near branch's target: cut to the operand size and checked against the code segment.
    pub(crate) fn branch_target(&self, width: Width, target: u64) -> Result<u64, Exception> {
        let target = target & width.mask();
        let valid = if self.mode == Mode::Long {
            canonical(target, self.linear_bits())
        } else {
            target <= u64::from(self.cpu.segment(SegmentRegister::Cs).limit)
        };
        if valid { Ok(target) } else { Err(Exception::GP) }
    }
}

/// The checks of a segment's type and presence.
fn check_type(segment: &Segment, access: Access) -> Result<(), ()> {
    let attributes = segment.attributes;
    if attributes.unusable() || !attributes.present() {
        return Err(());
    }
    let code = attributes.kind() & 8 != 0;
    // Bit 1: readable for code, writable for data.
    let allowed = attributes.kind() & 2 != 0;
    let forbidden = match access {
        Access::Read => code && !allowed,
        Access::Write => code || !allowed,
        Access::Execute => !code,
    };
    if forbidden { Err(()) } else { Ok(()) }
}
