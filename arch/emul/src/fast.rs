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
    /// None of the above: a prefix, the escape byte, or nothing for this file.
    pub(super) const SPECIAL: u8 = 1 << 7;
    pub(super) const PREFIX: u8 = SPECIAL | 1;
    pub(super) const ESCAPE: u8 = SPECIAL | 2;
}

/// First bytes.
const ONE_BYTE: [u8; 256] = {
    use kind::{ABSOLUTE, BYTE, BYTE_REGISTER, ESCAPE, IMMEDIATE, PREFIX, SPECIAL, STORE};
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
    table[0x0f] = ESCAPE;
    table[0x66] = PREFIX;
    table[0x67] = PREFIX;
    let mut rex = 0x40;
    while rex <= 0x4f {
        table[rex] = PREFIX;
        rex += 1;
    }
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

/// Prefixes and opcode.
#[derive(Clone, Copy)]
struct Head {
    /// The bytes from the ModRM byte on; at least two.
    rest: u64,
    /// Bytes before `rest`.
    at: usize,
    kind: u8,
    rex: u8,
    operand: Width,
    /// 32-bit addresses.
    narrow: bool,
}

/// A head with prefixes, in the order in which assemblers emit them, or an escape byte.
#[inline]
fn long_head<const LONG: bool>(mut rest: u64) -> Option<Head> {
    let mut head = Head { rest, at: 0, kind: 0, rex: 0, operand: Width::Dword, narrow: !LONG };
    let mut take = |wanted: bool| {
        if wanted {
            rest >>= 8;
            head.at += 1;
        }
        rest as u8
    };
    let mut byte = take(false);
    if byte == 0x66 {
        head.operand = Width::Word;
        byte = take(true);
    }
    if LONG {
        if byte == 0x67 {
            head.narrow = true;
            byte = take(true);
        }
        if byte & 0xf0 == 0x40 {
            head.rex = byte;
            if byte & 8 != 0 {
                head.operand = Width::Qword;
            }
            byte = take(true);
        }
    }
    head.kind = if byte == 0x0f { two_byte(take(true)) } else { ONE_BYTE[usize::from(byte)] };
    if head.kind & kind::SPECIAL != 0 {
        return None;
    }
    take(true);
    head.rest = rest;
    Some(head)
}

/// Four bytes at `at`, sign-extended.
#[inline(always)]
fn dword(bytes: &[u8; 16], at: usize) -> Option<u64> {
    let raw = bytes.get(at..)?.first_chunk::<4>()?;
    Some(i32::from_le_bytes(*raw) as u64)
}

/// Where the memory operand is.
struct Target {
    offset: u64,
    /// By ESP or EBP. Says nothing in 64-bit code, where it does not matter.
    stack: bool,
    immediate: u64,
    /// Of the instruction.
    length: usize,
}

/// The target of an instruction with a ModRM byte, which does not name a register.
#[inline(always)]
fn by_modrm<const LONG: bool>(head: &Head, cpu: &impl Cpu, bytes: &[u8; 16], rip: u64, width: Width) -> Option<Target> {
    let modrm = head.rest as u8;
    let mode = modrm >> 6;
    let mut length = head.at + 1;
    let mut base = modrm & 7;
    let mut offset = 0;
    let mut immediate = 0;
    let tail = if head.kind & kind::IMMEDIATE == 0 {
        0
    } else if width == Width::Qword {
        4
    } else {
        width.bytes()
    };
    if base == 4 {
        let sib = (head.rest >> 8) as u8;
        length += 1;
        let index = sib >> 3 & 7 | (head.rex & 2) << 2;
        if index != 4 {
            offset = cpu.gpr(gpr(index)) << (sib >> 6);
        }
        base = sib & 7;
    }
    let displacement = match mode {
        0 => {
            if base == 5 {
                // No base. Without a SIB byte, it is RIP in 64-bit code.
                length += 4;
                if LONG && modrm & 7 == 5 {
                    offset = rip.wrapping_add((length + tail) as u64);
                }
                dword(bytes, length - 4)?
            } else {
                0
            }
        }
        1 => {
            length += 1;
            *bytes.get(length - 1)? as i8 as u64
        }
        _ => {
            length += 4;
            dword(bytes, length - 4)?
        }
    };
    offset = offset.wrapping_add(displacement);
    let based = base != 5 || mode != 0;
    if based {
        offset = offset.wrapping_add(cpu.gpr(gpr(base | (head.rex & 1) << 3)));
    }
    if head.kind & kind::IMMEDIATE != 0 {
        if modrm & 0x38 != 0 {
            return None;
        }
        immediate = dword(bytes, length)? & width.mask();
        length += tail;
    }
    Some(Target { offset, stack: based && base & 6 == 4, immediate, length })
}

/// The target of A0 to A3.
#[inline]
fn absolute(head: &Head, bytes: &[u8; 16]) -> Option<Target> {
    let low = dword(bytes, head.at)?;
    let (offset, size) = if head.narrow { (low, 4) } else { (low & 0xffff_ffff | dword(bytes, head.at + 4)? << 32, 8) };
    Some(Target { offset, stack: false, immediate: 0, length: head.at + size })
}

/// Emulates the instruction if it is a plain access. Returns where the next one is; flags do not change. `mode` is what [`Cpu::mode`] answers.
#[inline(always)]
pub(crate) fn run<C: Cpu>(cpu: &mut C, mode: (Mode, u32), bytes: &[u8; 16]) -> Option<u64> {
    let rest = u64::from_le_bytes(*bytes.first_chunk()?);
    let first = ONE_BYTE[usize::from(rest as u8)];
    // The most frequent forms have no prefix: with constants for what prefixes would say, their copy of `access` is half as long.
    match (mode, first & kind::SPECIAL == 0) {
        ((Mode::Long, _), true) => {
            let head = Head { rest: rest >> 8, at: 1, kind: first, rex: 0, operand: Width::Dword, narrow: false };
            access::<C, true>(cpu, head, bytes)
        }
        ((Mode::Protected, 32), true) => {
            let head = Head { rest: rest >> 8, at: 1, kind: first, rex: 0, operand: Width::Dword, narrow: true };
            access::<C, false>(cpu, head, bytes)
        }
        ((Mode::Long, _), false) if rest as u8 & 0xf0 == 0x40 => {
            // REX alone is the next most frequent.
            let rex = rest as u8;
            let kind = ONE_BYTE[usize::from((rest >> 8) as u8)];
            if kind & kind::SPECIAL != 0 {
                return prefixed::<C, true>(cpu, rest, bytes);
            }
            let operand = if rex & 8 != 0 { Width::Qword } else { Width::Dword };
            access::<C, true>(cpu, Head { rest: rest >> 16, at: 2, kind, rex, operand, narrow: false }, bytes)
        }
        ((Mode::Long, _), false) if first != kind::SPECIAL => prefixed::<C, true>(cpu, rest, bytes),
        ((Mode::Protected, 32), false) if first != kind::SPECIAL => prefixed::<C, false>(cpu, rest, bytes),
        _ => None,
    }
}

fn prefixed<C: Cpu, const LONG: bool>(cpu: &mut C, rest: u64, bytes: &[u8; 16]) -> Option<u64> {
    let head = long_head::<LONG>(rest)?;
    access::<C, LONG>(cpu, head, bytes)
}

#[inline(always)]
fn access<C: Cpu, const LONG: bool>(cpu: &mut C, head: Head, bytes: &[u8; 16]) -> Option<u64> {
    // By `kind::MEMORY`; a table, because it is a constant one without prefixes.
    let width = [head.operand, Width::Byte, Width::Word, Width::Byte][usize::from(head.kind & kind::MEMORY)];
    let rip = cpu.rip();
    let (target, number) = if head.kind & kind::ABSOLUTE == 0 {
        let modrm = head.rest as u8;
        if modrm >= 0xc0 {
            return None;
        }
        (by_modrm::<LONG>(&head, cpu, bytes, rip, width)?, modrm >> 3 & 7 | (head.rex & 4) << 1)
    } else {
        (absolute(&head, bytes)?, 0)
    };
    let linear = if head.narrow { target.offset & 0xffff_ffff } else { target.offset };
    if target.length > MAX_INSTRUCTION || linear % PAGE_SIZE > PAGE_SIZE - width.bytes() as u64 {
        return None;
    }
    let gpa = match cpu.operand() {
        // What the exit was about, unless the guest has changed the instruction since. The CPU has then found nothing wrong with the access.
        Some(gpa) if (gpa.0 ^ linear).is_multiple_of(PAGE_SIZE) => gpa,
        _ => find::<C, LONG>(cpu, &head, &target, linear)?,
    };
    if head.kind & kind::STORE != 0 {
        store(cpu, &head, width, gpa, number, target.immediate)?;
    } else {
        load(cpu, &head, width, gpa, number)?;
    }
    let next = rip.wrapping_add(target.length as u64);
    Some(if LONG { next } else { next & 0xffff_ffff })
}

/// Where the operand is, if nothing can be wrong with the access. If something is, the full decoder finds it again and says so.
#[cold]
#[inline(never)]
fn find<C: Cpu, const LONG: bool>(cpu: &mut C, head: &Head, target: &Target, linear: u64) -> Option<Gpa> {
    let flat = if LONG {
        // Within a page, the last byte is canonical if the first is.
        canonical(linear, 48) || cpu.cr4() & Cr4::LA57.bits() != 0 && canonical(linear, 57)
    } else {
        is_flat(&cpu.segment(if target.stack { SegmentRegister::Ss } else { SegmentRegister::Ds }))
    };
    if !flat || cpu.rflags() & Rflags::AC.bits() != 0 {
        return None;
    }
    let access = if head.kind & kind::STORE != 0 { Access::Write } else { Access::Read };
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

#[inline(always)]
fn load<C: Cpu>(cpu: &mut C, head: &Head, width: Width, gpa: Gpa, number: u8) -> Option<()> {
    let mut value = cpu.read(gpa, width).ok()?;
    if head.kind & kind::BYTE_REGISTER != 0 {
        byte_register(number, head.rex).set(cpu.gprs_mut(), value);
        return Some(());
    }
    if head.kind & kind::SIGN_EXTEND != 0 {
        value = crate::alu::sign_extend(width, value) & head.operand.mask();
    }
    let register = gpr(number);
    if head.operand == Width::Word {
        value |= cpu.gpr(register) & !0xffff;
    }
    // The value is zero above the register's width, as 32-bit and 64-bit loads leave the register.
    cpu.set_gpr(register, value);
    Some(())
}

#[inline(always)]
fn store<C: Cpu>(cpu: &mut C, head: &Head, width: Width, gpa: Gpa, number: u8, immediate: u64) -> Option<()> {
    let value = if head.kind & kind::IMMEDIATE != 0 {
        immediate
    } else if head.kind & kind::BYTE_REGISTER != 0 {
        byte_register(number, head.rex).get(cpu.gprs())
    } else {
        cpu.gpr(gpr(number)) & width.mask()
    };
    cpu.write(gpa, width, value).ok()
}

/// Base 0, limit 4 GiB, present, writable, expand-up data: no check can fail.
#[inline(always)]
fn is_flat(segment: &Segment) -> bool {
    // Unusable, present, S, code, expand-down, writable.
    segment.base == 0 && segment.limit == u32::MAX && segment.attributes.0 & 0x109e == 0x92
}
