//! Operands of a decoded instruction: which register, which bytes of memory, which immediate.

use crate::{
    Cpu, Mode,
    exec::Exec,
    machine::{Done, Halt, Place, Register, address_mask},
};
use iced_x86::{MemorySize, OpKind, Register as Name};
use x86defs::{Access, Gpr, SegmentRegister, Width};

/// An operand, located: memory is translated, but not touched yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operand {
    Register(Register),
    Memory(Place),
    Immediate(u64),
}

/// The general-purpose register, or part of one, that iced calls `name`.
pub(crate) fn gpr_part(name: Name) -> Option<Register> {
    let n = name as u32;
    let within = |first: Name, last: Name| (first as u32..=last as u32).contains(&n).then(|| (n - first as u32) as u8);
    let whole = |number, width| Some(Register::new(Gpr::from_index(number), width));
    if let Some(number) = within(Name::AL, Name::BL) {
        whole(number, Width::Byte)
    } else if let Some(number) = within(Name::AH, Name::BH) {
        Some(Register { gpr: Gpr::from_index(number), width: Width::Byte, high: true })
    } else if let Some(number) = within(Name::SPL, Name::R15L) {
        whole(number + 4, Width::Byte)
    } else if let Some(number) = within(Name::AX, Name::R15W) {
        whole(number, Width::Word)
    } else if let Some(number) = within(Name::EAX, Name::R15D) {
        whole(number, Width::Dword)
    } else if let Some(number) = within(Name::RAX, Name::R15) {
        whole(number, Width::Qword)
    } else {
        None
    }
}

pub(crate) fn segment_register(name: Name) -> Option<SegmentRegister> {
    match name {
        Name::ES => Some(SegmentRegister::Es),
        Name::CS => Some(SegmentRegister::Cs),
        Name::SS => Some(SegmentRegister::Ss),
        Name::DS => Some(SegmentRegister::Ds),
        Name::FS => Some(SegmentRegister::Fs),
        Name::GS => Some(SegmentRegister::Gs),
        _ => None,
    }
}

/// Width of a general instruction's memory operand.
fn memory_width(size: MemorySize) -> Option<Width> {
    match size {
        MemorySize::UInt8 | MemorySize::Int8 => Some(Width::Byte),
        MemorySize::UInt16 | MemorySize::Int16 | MemorySize::WordOffset => Some(Width::Word),
        MemorySize::UInt32 | MemorySize::Int32 | MemorySize::DwordOffset => Some(Width::Dword),
        MemorySize::UInt64 | MemorySize::Int64 | MemorySize::QwordOffset => Some(Width::Qword),
        _ => None,
    }
}

impl<C: Cpu> Exec<'_, '_, C> {
    /// The register that operand `n` names, `None` for one that is no register.
    pub(crate) fn register_name(&self, n: u32) -> Name {
        match self.instruction.try_op_kind(n) {
            Ok(OpKind::Register) => self.instruction.try_op_register(n).unwrap_or(Name::None),
            _ => Name::None,
        }
    }

    pub(crate) fn is_memory(&self, n: u32) -> bool {
        matches!(self.instruction.try_op_kind(n), Ok(OpKind::Memory))
    }

    /// Width of register or memory operand `n`.
    pub(crate) fn width(&self, n: u32) -> Done<Width> {
        let width = if self.is_memory(n) {
            memory_width(self.instruction.memory_size())
        } else {
            gpr_part(self.register_name(n)).map(|register| register.width)
        };
        // The source of a plain move from an immediate is as wide as the target.
        width.or_else(|| (n != 0).then(|| self.width(0).ok()).flatten()).ok_or(Halt::Unsupported)
    }

    /// Operand `n`, with its memory (if it is some) translated for `access`.
    pub(crate) fn operand(&mut self, n: u32, access: Access) -> Done<Operand> {
        match self.instruction.try_op_kind(n) {
            Ok(OpKind::Register) => gpr_part(self.register_name(n)).map(Operand::Register).ok_or(Halt::Unsupported),
            Ok(OpKind::Memory) => {
                let width = self.width(n)?;
                self.memory_operand(n, width, 0, access)
            }
            _ => self.instruction.try_immediate(n).map(Operand::Immediate).map_err(|_| Halt::Unsupported),
        }
    }

    /// Memory operand `n`, `delta` bytes further on.
    pub(crate) fn memory_operand(&mut self, n: u32, width: Width, delta: u64, access: Access) -> Done<Operand> {
        if !self.is_memory(n) {
            return Err(Halt::Unsupported);
        }
        let (segment, offset) = self.effective_address(delta).ok_or(Halt::Unsupported)?;
        Ok(Operand::Memory(self.m.operand(segment, offset, width.bytes(), width.bytes(), access)?))
    }

    /// `len` bytes at memory operand `n`.
    pub(crate) fn place(&mut self, n: u32, len: usize, align: usize, access: Access) -> Done<Place> {
        let linear = self.linear(n, len, access)?;
        self.m.check_alignment(linear, align)?;
        Ok(self.m.locate(linear, len, access)?)
    }

    /// The linear address of `len` bytes at memory operand `n`.
    pub(crate) fn linear(&mut self, n: u32, len: usize, access: Access) -> Done<u64> {
        if !self.is_memory(n) {
            return Err(Halt::Unsupported);
        }
        let (segment, offset) = self.effective_address(0).ok_or(Halt::Unsupported)?;
        Ok(self.m.linear(segment, offset, len, access)?)
    }

    /// Segment and offset of the memory operand plus `delta`, cut to the address size. `None`: an addressing form that is not
    /// emulated.
    fn effective_address(&self, delta: u64) -> Option<(SegmentRegister, u64)> {
        let instruction = self.instruction;
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let gprs = self.m.cpu.gprs();
        let mut bits = None;
        let mut offset = instruction.memory_displacement64().wrapping_add(delta);
        match base {
            Name::None => {}
            // The displacement is the target already.
            Name::RIP => bits = Some(64),
            Name::EIP => bits = Some(32),
            _ => {
                let register = gpr_part(base)?;
                offset = offset.wrapping_add(register.get(gprs));
                bits = Some(8 * register.width as u32);
            }
        }
        if index != Name::None {
            // XLAT's index is AL, which says nothing about the address size.
            let register = gpr_part(index)?;
            offset = offset.wrapping_add(register.get(gprs).wrapping_mul(u64::from(instruction.memory_index_scale())));
            bits = bits.or(Some(8 * register.width as u32));
        }
        let bits = bits.unwrap_or(8 * instruction.memory_displ_size());
        Some((self.data_segment(base), offset & address_mask(bits)))
    }

    /// The segment of a ModRM memory operand.
    fn data_segment(&self, base: Name) -> SegmentRegister {
        let by_base = match base {
            Name::SP | Name::ESP | Name::RSP | Name::BP | Name::EBP | Name::RBP => SegmentRegister::Ss,
            _ => SegmentRegister::Ds,
        };
        self.segment_override().unwrap_or(by_base)
    }

    /// The segment of a string instruction's source.
    pub(crate) fn string_segment(&self) -> SegmentRegister {
        self.segment_override().unwrap_or(SegmentRegister::Ds)
    }

    /// The override prefix, if one counts: in 64-bit mode, those of CS, DS, ES and SS do not.
    fn segment_override(&self) -> Option<SegmentRegister> {
        let segment = segment_register(self.instruction.segment_prefix())?;
        let counts = self.m.mode != Mode::Long || matches!(segment, SegmentRegister::Fs | SegmentRegister::Gs);
        counts.then_some(segment)
    }

    /// Reads an operand.
    pub(crate) fn get(&mut self, operand: Operand) -> Done<u64> {
        match operand {
            Operand::Register(register) => Ok(register.get(self.m.cpu.gprs())),
            Operand::Memory(place) => Ok(self.m.load(place)?),
            Operand::Immediate(value) => Ok(value),
        }
    }

    /// Writes an operand; `value` is cut to its width.
    pub(crate) fn put(&mut self, operand: Operand, value: u64) -> Done {
        match operand {
            Operand::Register(register) => {
                register.set(self.m.cpu.gprs_mut(), value);
                Ok(())
            }
            Operand::Memory(place) => Ok(self.m.store(place, value)?),
            Operand::Immediate(_) => Err(Halt::Unsupported),
        }
    }

    /// Reads an operand, changes it and writes it, atomically under LOCK. Returns the old value.
    pub(crate) fn modify(&mut self, operand: Operand, mut change: impl FnMut(u64) -> u64) -> Done<u64> {
        match operand {
            Operand::Memory(place) => self.m.update(place, self.instruction.has_lock_prefix(), change),
            _ => {
                let old = self.get(operand)?;
                let new = change(old);
                self.put(operand, new)?;
                Ok(old)
            }
        }
    }
}
