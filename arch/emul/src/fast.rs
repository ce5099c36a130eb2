//! The short way for what drivers do to device registers: MOV, MOVZX and MOVSX between a register or an immediate and memory, in
//! 64-bit code and in 32-bit code with flat segments (SDM vol. 2A, chapter 2 and the MOV pages).
//!
//! It answers only where nothing is out of the ordinary: few prefixes, no fault before the page walk, one page, no alignment
//! checking. Everything else is `None`, with nothing touched, and is left to the full decoder, which decides on faults. That both
//! agree is what `tests/differential.rs` and `tests/devices.rs` check.

use crate::{
    Cpu, MAX_INSTRUCTION, Mode, Privilege,
    machine::{Register, canonical, gpr},
};
use x86defs::{Access, Cr4, Gpa, Gva, PAGE_SIZE, Rflags, Segment, SegmentRegister, Width};

/// What an opcode does, in one byte. Zero is the load of an operand-sized register.
mod kind {
    /// Of memory: operand-sized, a byte, or a word.
    pub(super) const MEMORY: u8 = 3;
    pub(super) const BYTE: u8 = 1;
    pub(super) const WORD: u8 = 2;
    pub(super) const STORE: u8 = 1 << 2;
    /// The source is an immediate; ModRM.reg must be zero.
    pub(super) const IMMEDIATE: u8 = 1 << 3;
    /// The register is a byte too; else it is operand-sized.
    pub(super) const BYTE_REGISTER: u8 = 1 << 4;
    pub(super) const SIGN_EXTEND: u8 = 1 << 5;
    /// The accumulator and an absolute address instead of ModRM.
    pub(super) const ABSOLUTE: u8 = 1 << 6;
    /// None of the above: nothing for this file, or no opcode.
    pub(super) const SPECIAL: u8 = 1 << 7;
}

/// First bytes of opcodes.
const ONE_BYTE: [u8; 256] = {
    use kind::{ABSOLUTE, BYTE, BYTE_REGISTER, IMMEDIATE, SPECIAL, STORE};
    let mut table = [SPECIAL; 256];
    table[0x88] = STORE | BYTE | BYTE_REGISTER;
    table[0x89] = STORE;
    table[0x8a] = BYTE | BYTE_REGISTER;
    table[0x8b] = 0;
    table[0xa0] = ABSOLUTE | BYTE | BYTE_REGISTER;
    table[0xa1] = ABSOLUTE;
    table[0xa2] = ABSOLUTE | STORE | BYTE | BYTE_REGISTER;
    table[0xa3] = ABSOLUTE | STORE;
    table[0xc6] = STORE | BYTE | IMMEDIATE;
    table[0xc7] = STORE | IMMEDIATE;
    table
};

/// Opcodes after 0F.
const fn two_byte(opcode: u8) -> u8 {
    match opcode {
        0xb6 => kind::BYTE,
        0xb7 => kind::WORD,
        0xbe => kind::BYTE | kind::SIGN_EXTEND,
        0xbf => kind::WORD | kind::SIGN_EXTEND,
        _ => kind::SPECIAL,
    }
}

/// No register.
const NONE: u8 = 0xff;

/// A plain access, understood: what it does with which registers. Says nothing about where it stands.
#[derive(Clone, Copy, Debug)]
pub struct Plain {
    kind: u8,
    rex: u8,
    /// Of the register.
    operand: Width,
    /// Of the memory.
    width: Width,
    /// The register, unless the source is an immediate.
    number: u8,
    /// Of the instruction, in bytes.
    length: u8,
    /// [`NONE`]: none.
    base: u8,
    index: u8,
    scale: u8,
    /// The displacement is from the next instruction.
    relative: bool,
    /// 32-bit addresses.
    narrow: bool,
    displacement: u64,
    immediate: u64,
}

/// Four bytes at `at`, sign-extended.
#[inline(always)]
fn dword(bytes: &[u8; 16], at: usize) -> Option<u64> {
    let raw = bytes.get(at..)?.first_chunk::<4>()?;
    Some(i32::from_le_bytes(*raw) as u64)
}

impl Plain {
    const EMPTY: Self = Self {
        kind: 0,
        rex: 0,
        operand: Width::Dword,
        width: Width::Dword,
        number: 0,
        length: 0,
        base: NONE,
        index: NONE,
        scale: 0,
        relative: false,
        narrow: false,
        displacement: 0,
        immediate: 0,
    };

    /// Understands the instruction that `bytes` begin with, in 64-bit code if `long` and in 32-bit code if not. `None` if it is none of these.
    #[must_use]
    pub fn decode(bytes: &[u8; 16], long: bool) -> Option<Self> {
        let mut at = 0;
        let (mut operand, mut narrow, mut rex) = (Width::Dword, !long, 0);
        // Prefixes, in the order in which assemblers emit them.
        if bytes[at] == 0x66 {
            operand = Width::Word;
            at += 1;
        }
        if long {
            if bytes[at] == 0x67 {
                narrow = true;
                at += 1;
            }
            if bytes[at] & 0xf0 == 0x40 {
                rex = bytes[at];
                if rex & 8 != 0 {
                    operand = Width::Qword;
                }
                at += 1;
            }
        }
        let kind = if bytes[at] == 0x0f {
            at += 1;
            two_byte(bytes[at])
        } else {
            ONE_BYTE[usize::from(bytes[at])]
        };
        if kind & kind::SPECIAL != 0 {
            return None;
        }
        at += 1;
        let width = match kind & kind::MEMORY {
            kind::BYTE => Width::Byte,
            kind::WORD => Width::Word,
            _ => operand,
        };
        let head = Self { kind, rex, operand, width, length: at as u8, narrow, ..Self::EMPTY };
        let plain = if kind & kind::ABSOLUTE != 0 { head.absolute(bytes)? } else { head.by_modrm(bytes, long)? };
        (usize::from(plain.length) <= MAX_INSTRUCTION).then_some(plain)
    }

    /// The rest of an instruction with a ModRM byte, at `length`; it does not name a register.
    fn by_modrm(mut self, bytes: &[u8; 16], long: bool) -> Option<Self> {
        let mut at = usize::from(self.length);
        let modrm = *bytes.get(at)?;
        at += 1;
        let (mode, rm) = (modrm >> 6, modrm & 7);
        if mode == 3 {
            return None;
        }
        self.number = modrm >> 3 & 7 | (self.rex & 4) << 1;
        let mut base = rm;
        if rm == 4 {
            let sib = *bytes.get(at)?;
            at += 1;
            let index = sib >> 3 & 7 | (self.rex & 2) << 2;
            if index != 4 {
                (self.index, self.scale) = (index, sib >> 6);
            }
            base = sib & 7;
        }
        let based = base != 5 || mode != 0;
        if based {
            self.base = base | (self.rex & 1) << 3;
        } else {
            // No base. Without a SIB byte, it is RIP in 64-bit code.
            self.relative = long && rm == 5;
        }
        match mode {
            0 if based => {}
            1 => {
                self.displacement = *bytes.get(at)? as i8 as u64;
                at += 1;
            }
            _ => {
                self.displacement = dword(bytes, at)?;
                at += 4;
            }
        }
        if self.kind & kind::IMMEDIATE != 0 {
            if modrm & 0x38 != 0 {
                return None;
            }
            self.immediate = dword(bytes, at)? & self.width.mask();
            at += if self.width == Width::Qword { 4 } else { self.width.bytes() };
        }
        self.length = at as u8;
        Some(self)
    }

    /// The rest of A0 to A3, at `length`.
    fn absolute(mut self, bytes: &[u8; 16]) -> Option<Self> {
        let at = usize::from(self.length);
        let low = dword(bytes, at)?;
        let size = if self.narrow { 4 } else { 8 };
        self.displacement = if self.narrow { low } else { low & 0xffff_ffff | dword(bytes, at + 4)? << 32 };
        self.length += size;
        Some(self)
    }

    /// The operand's address within its segment.
    fn offset(&self, cpu: &impl Cpu, next: u64) -> u64 {
        let mut offset = self.displacement;
        if self.base != NONE {
            offset = offset.wrapping_add(cpu.gpr(gpr(self.base)));
        }
        if self.index != NONE {
            offset = offset.wrapping_add(cpu.gpr(gpr(self.index)) << self.scale);
        }
        if self.relative {
            offset = offset.wrapping_add(next);
        }
        if self.narrow { offset & 0xffff_ffff } else { offset }
    }

    /// True if the stack's segment is the default one. Says nothing in 64-bit code, where it does not matter.
    const fn by_stack(&self) -> bool {
        self.base != NONE && self.base & 6 == 4
    }

    /// RIP of the next instruction.
    #[inline(always)]
    const fn next(&self, rip: u64, long: bool) -> u64 {
        let next = rip.wrapping_add(self.length as u64);
        if long { next } else { next & 0xffff_ffff }
    }

    /// True if the instruction, at RIP, has its operand at `gpa`, as far as an address within a page can tell, and in one page.
    #[must_use]
    pub fn is_at(&self, cpu: &impl Cpu, gpa: Gpa, long: bool) -> bool {
        let offset = self.offset(cpu, self.next(cpu.rip(), long));
        (gpa.0 ^ offset).is_multiple_of(PAGE_SIZE) && self.fits(gpa)
    }

    /// True if the operand at `gpa` does not reach into the next page.
    #[inline(always)]
    const fn fits(&self, gpa: Gpa) -> bool {
        gpa.0 % PAGE_SIZE <= PAGE_SIZE - self.width.bytes() as u64
    }

    /// Carries it out, the operand being at `gpa`. Returns where the next instruction is; flags do not change. `None` with nothing done if it cannot.
    #[inline(always)]
    pub fn execute<C: Cpu>(&self, cpu: &mut C, gpa: Gpa, long: bool) -> Option<u64> {
        if !self.fits(gpa) {
            return None;
        }
        if self.kind & kind::STORE != 0 {
            self.store(cpu, gpa)?;
        } else {
            self.load(cpu, gpa)?;
        }
        Some(self.next(cpu.rip(), long))
    }

    #[inline(always)]
    fn load<C: Cpu>(&self, cpu: &mut C, gpa: Gpa) -> Option<()> {
        let mut value = cpu.read(gpa, self.width).ok()?;
        if self.kind & (kind::BYTE_REGISTER | kind::SIGN_EXTEND) != 0 {
            if self.kind & kind::BYTE_REGISTER != 0 {
                byte_register(self.number, self.rex).set(cpu.gprs_mut(), value);
                return Some(());
            }
            value = crate::alu::sign_extend(self.width, value) & self.operand.mask();
        }
        let register = gpr(self.number);
        if self.operand == Width::Word {
            value |= cpu.gpr(register) & !0xffff;
        }
        // The value is zero above the register's width, as 32-bit and 64-bit loads leave the register.
        cpu.set_gpr(register, value);
        Some(())
    }

    #[inline(always)]
    fn store<C: Cpu>(&self, cpu: &mut C, gpa: Gpa) -> Option<()> {
        let value = if self.kind & kind::IMMEDIATE != 0 {
            self.immediate
        } else if self.kind & kind::BYTE_REGISTER != 0 {
            byte_register(self.number, self.rex).get(cpu.gprs())
        } else {
            cpu.gpr(gpr(self.number)) & self.width.mask()
        };
        cpu.write(gpa, self.width, value).ok()
    }
}

/// What was understood last, by whoever emulates the same few instructions again and again.
#[derive(Clone, Debug)]
pub struct PlainCache {
    /// By where the instructions are.
    latest: [Known; 16],
    /// What those had to make room for, by other bits of that.
    evicted: [Known; 16],
}

#[derive(Clone, Copy, Debug)]
struct Known {
    bytes: u128,
    rip: u64,
    plain: Plain,
    code: KnownCode,
}

/// What code the bytes were in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum KnownCode {
    /// They are no instruction: the entry is free.
    Nothing,
    Protected,
    Long,
}

impl KnownCode {
    #[inline(always)]
    const fn of(long: bool) -> Self {
        if long { Self::Long } else { Self::Protected }
    }
}

impl Known {
    #[inline(always)]
    fn of(&self, bytes: &[u8; 16], long: bool) -> Option<&Plain> {
        (self.bytes == u128::from_le_bytes(*bytes) && self.code == KnownCode::of(long)).then_some(&self.plain)
    }
}

impl PlainCache {
    /// Knows nothing.
    #[must_use]
    pub const fn new() -> Self {
        const NOTHING: Known = Known { bytes: 0, rip: 0, plain: Plain::EMPTY, code: KnownCode::Nothing };
        Self { latest: [NOTHING; 16], evicted: [NOTHING; 16] }
    }

    /// What [`Plain::decode`] has said of the same bytes at `rip` before.
    #[inline(always)]
    #[must_use]
    pub fn find(&self, rip: u64, bytes: &[u8; 16], long: bool) -> Option<&Plain> {
        let plain = self.latest[Self::slot(rip)].of(bytes, long);
        if plain.is_some() { plain } else { self.evicted[Self::second_slot(rip)].of(bytes, long) }
    }

    /// Remembers it.
    pub fn remember(&mut self, rip: u64, bytes: &[u8; 16], long: bool, plain: Plain) {
        let new = Known { bytes: u128::from_le_bytes(*bytes), rip, plain, code: KnownCode::of(long) };
        let before = core::mem::replace(&mut self.latest[Self::slot(rip)], new);
        if before.code != KnownCode::Nothing {
            self.evicted[Self::second_slot(before.rip)] = before;
        }
    }

    #[inline(always)]
    const fn slot(rip: u64) -> usize {
        // Instructions that follow each other are some bytes apart.
        ((rip ^ rip >> 4) & 15) as usize
    }

    const fn second_slot(rip: u64) -> usize {
        (rip >> 2 & 15) as usize
    }
}

impl Default for PlainCache {
    fn default() -> Self {
        Self::new()
    }
}

/// True if this file knows the mode: 64-bit code (`Some(true)`) or 32-bit code.
#[inline(always)]
pub(crate) const fn is_long(mode: (Mode, u32)) -> Option<bool> {
    match mode {
        (Mode::Long, _) => Some(true),
        (Mode::Protected, 32) => Some(false),
        _ => None,
    }
}

/// Emulates the instruction if it is a plain access. Returns where the next one is; flags do not change. `mode` is what [`Cpu::mode`] answers.
pub(crate) fn run<C: Cpu>(cpu: &mut C, mode: (Mode, u32), bytes: &[u8; 16]) -> Option<u64> {
    let long = is_long(mode)?;
    let plain = Plain::decode(bytes, long)?;
    let gpa = match cpu.operand() {
        // What the exit was about. The CPU has then found nothing wrong with the access.
        Some(gpa) => plain.is_at(cpu, gpa, long).then_some(gpa)?,
        None => find(cpu, &plain, long)?,
    };
    plain.execute(cpu, gpa, long)
}

/// Where the operand is, if nothing can be wrong with the access. If something is, the full decoder finds it again and says so.
fn find<C: Cpu>(cpu: &mut C, plain: &Plain, long: bool) -> Option<Gpa> {
    let linear = plain.offset(cpu, plain.next(cpu.rip(), long));
    let flat = if long {
        // Within a page, the last byte is canonical if the first is.
        canonical(linear, 48) || cpu.cr4() & Cr4::LA57.bits() != 0 && canonical(linear, 57)
    } else {
        is_flat(&cpu.segment(if plain.by_stack() { SegmentRegister::Ss } else { SegmentRegister::Ds }))
    };
    if !flat || !plain.fits(Gpa(linear)) || cpu.rflags() & Rflags::AC.bits() != 0 {
        return None;
    }
    let access = if plain.kind & kind::STORE != 0 { Access::Write } else { Access::Read };
    cpu.translate(Gva(linear), access, Privilege::Current).ok()
}

/// AL to R15B and, without REX, AH to BH.
const fn byte_register(number: u8, rex: u8) -> Register {
    if rex == 0 && number & 4 != 0 {
        Register { gpr: gpr(number & 3), width: Width::Byte, high: true }
    } else {
        Register::new(gpr(number), Width::Byte)
    }
}

/// Base 0, limit 4 GiB, present, writable, expand-up data: no check can fail.
#[inline(always)]
fn is_flat(segment: &Segment) -> bool {
    // Unusable, present, S, code, expand-down, writable.
    segment.base == 0 && segment.limit == u32::MAX && segment.attributes.0 & 0x109e == 0x92
}
