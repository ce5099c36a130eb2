//! The short way for what drivers do to device registers: MOV, MOVZX and MOVSX between a register or an immediate and plain memory,
//! in 32-bit and 64-bit code. The few encodings are decoded by hand (SDM vol. 2A, chapter 2 and the MOV pages); everything else is `None` and
//! goes through the full decoder, which must agree (`tests/differential.rs` checks it).

use crate::{
    Cpu, Mode,
    machine::{Done, Machine, Register, address_mask},
};
use x86defs::{Access, Gpr, Gprs, SegmentRegister, Width};

/// What a plain instruction does with its memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Memory to register, zero-extended from the access to the register.
    Load(Register),
    /// As `Load`, sign-extended.
    LoadSigned(Register),
    Store(Register),
    StoreImmediate(u64),
}

/// A decoded plain instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Plain {
    pub(crate) length: usize,
    pub(crate) action: Action,
    /// Of the memory access.
    pub(crate) width: Width,
    pub(crate) segment: SegmentRegister,
    pub(crate) base: Base,
    pub(crate) index: Option<(Gpr, u8)>,
    /// Sign-extended; for an absolute address, the address itself.
    pub(crate) displacement: u64,
    pub(crate) address_bits: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Base {
    None,
    Register(Gpr),
    /// The address of the next instruction.
    NextRip,
}

impl Plain {
    /// The effective address.
    #[inline]
    pub(crate) fn offset(&self, gprs: &Gprs, next: u64) -> u64 {
        let base = match self.base {
            Base::None => 0,
            Base::Register(gpr) => gprs[gpr],
            Base::NextRip => next,
        };
        let index = match self.index {
            None => 0,
            Some((gpr, scale)) => gprs[gpr] << scale,
        };
        base.wrapping_add(index).wrapping_add(self.displacement) & address_mask(self.address_bits)
    }
}

const fn byte_register(n: u8, rex: u8) -> Register {
    if rex == 0 && n & 4 != 0 {
        Register { gpr: Gpr::from_index(n & 3), width: Width::Byte, high: true }
    } else {
        Register::new(Gpr::from_index(n), Width::Byte)
    }
}

fn sign_extended(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let raw = bytes.get(at..at + len)?;
    Some(match *raw {
        [a] => a as i8 as u64,
        [a, b] => i16::from_le_bytes([a, b]) as u64,
        [a, b, c, d] => i32::from_le_bytes([a, b, c, d]) as u64,
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => return None,
    })
}

/// Decodes a plain instruction. `None`: it is another one, or `bytes` end too early.
#[inline]
pub(crate) fn decode(bits: u32, bytes: &[u8]) -> Option<Plain> {
    let long = bits == 64;
    if bits == 16 {
        return None;
    }
    let mut at = 0;
    let mut operand_16 = false;
    let mut address_bits = bits;
    let mut rex = 0u8;
    let mut opcode = *bytes.first()?;
    // At most the three prefixes once each: longer rows are for the full decoder.
    for _ in 0..3 {
        match opcode {
            0x66 if !operand_16 => operand_16 = true,
            0x67 if long && address_bits == 64 => address_bits = 32,
            0x40..=0x4f if long => {
                rex = opcode;
                at += 1;
                opcode = *bytes.get(at)?;
                break;
            }
            _ => break,
        }
        at += 1;
        opcode = *bytes.get(at)?;
    }
    at += 1;
    let operand = if rex & 8 != 0 {
        Width::Qword
    } else if operand_16 {
        Width::Word
    } else {
        Width::Dword
    };

    // moffs: no ModRM, an address-sized displacement, the accumulator.
    if opcode & 0xfc == 0xa0 {
        let width = if opcode & 1 == 0 { Width::Byte } else { operand };
        let size = if address_bits == 64 { 8 } else { 4 };
        let displacement = sign_extended(bytes, at, size)?;
        let register = Register::new(Gpr::Rax, width);
        return Some(Plain {
            length: at + size,
            action: if opcode & 2 == 0 { Action::Load(register) } else { Action::Store(register) },
            width,
            segment: SegmentRegister::Ds,
            base: Base::None,
            index: None,
            displacement,
            address_bits,
        });
    }

    let modrm_at = if opcode == 0x0f { at + 1 } else { at };
    let second = if opcode == 0x0f { *bytes.get(at)? } else { 0 };
    let modrm = *bytes.get(modrm_at)?;
    if modrm >= 0xc0 {
        return None;
    }
    at = modrm_at + 1;
    let number = modrm >> 3 & 7 | (rex & 4) << 1;
    let full = Register::new(Gpr::from_index(number), operand);
    let (width, action, immediate) = match (opcode, second) {
        (0x88, _) => (Width::Byte, Action::Store(byte_register(number, rex)), 0),
        (0x89, _) => (operand, Action::Store(full), 0),
        (0x8a, _) => (Width::Byte, Action::Load(byte_register(number, rex)), 0),
        (0x8b, _) => (operand, Action::Load(full), 0),
        (0xc6, _) if number & 7 == 0 => (Width::Byte, Action::StoreImmediate(0), 1),
        (0xc7, _) if number & 7 == 0 => {
            (operand, Action::StoreImmediate(0), if operand == Width::Word { 2 } else { 4 })
        }
        (0x0f, 0xb6) => (Width::Byte, Action::Load(full), 0),
        (0x0f, 0xb7) => (Width::Word, Action::Load(full), 0),
        (0x0f, 0xbe) => (Width::Byte, Action::LoadSigned(full), 0),
        (0x0f, 0xbf) => (Width::Word, Action::LoadSigned(full), 0),
        _ => return None,
    };

    let mode = modrm >> 6;
    let mut base = Base::Register(Gpr::from_index(modrm & 7 | (rex & 1) << 3));
    let mut index = None;
    let mut displacement_size = match mode {
        0 => 0,
        1 => 1,
        _ => 4,
    };
    match modrm & 7 {
        4 => {
            let sib = *bytes.get(at)?;
            at += 1;
            let index_number = sib >> 3 & 7 | (rex & 2) << 2;
            if index_number != 4 {
                index = Some((Gpr::from_index(index_number), sib >> 6));
            }
            if sib & 7 == 5 && mode == 0 {
                base = Base::None;
                displacement_size = 4;
            } else {
                base = Base::Register(Gpr::from_index(sib & 7 | (rex & 1) << 3));
            }
        }
        5 if mode == 0 => {
            base = if long { Base::NextRip } else { Base::None };
            displacement_size = 4;
        }
        _ => {}
    }
    let displacement = if displacement_size == 0 { 0 } else { sign_extended(bytes, at, displacement_size)? };
    at += displacement_size;
    let action = if immediate == 0 { action } else { Action::StoreImmediate(sign_extended(bytes, at, immediate)?) };
    // rSP and rBP as a base go to the stack segment.
    let segment = match base {
        Base::Register(Gpr::Rsp | Gpr::Rbp) => SegmentRegister::Ss,
        _ => SegmentRegister::Ds,
    };
    Some(Plain { length: at + immediate, action, width, segment, base, index, displacement, address_bits })
}

/// Executes a plain instruction.
#[inline]
pub(crate) fn execute<C: Cpu>(m: &mut Machine<'_, C>, plain: &Plain) -> Done {
    m.set_length(plain.length);
    let next = if m.mode == Mode::Long { m.next } else { 0 };
    let offset = plain.offset(m.cpu.gprs(), next);
    let bytes = plain.width.bytes();
    let access = match plain.action {
        Action::Load(_) | Action::LoadSigned(_) => Access::Read,
        Action::Store(_) | Action::StoreImmediate(_) => Access::Write,
    };
    let place = m.operand(plain.segment, offset, bytes, bytes, access)?;
    match plain.action {
        Action::Load(register) => {
            let value = m.load(place)?;
            register.set(m.cpu.gprs_mut(), value);
        }
        Action::LoadSigned(register) => {
            let value = crate::alu::sign_extend(plain.width, m.load(place)?);
            register.set(m.cpu.gprs_mut(), value);
        }
        Action::Store(register) => {
            let value = register.get(m.cpu.gprs());
            m.store(place, value)?;
        }
        Action::StoreImmediate(value) => m.store(place, value & plain.width.mask())?,
    }
    Ok(())
}
