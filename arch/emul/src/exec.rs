//! Everything that the hand decoder leaves: from an `iced-x86` instruction to the operations on a [`Machine`].
//!
//! This file holds the general instructions, by mnemonic; addressing is in `operand.rs`, vector moves are in `vector.rs`.

use crate::{
    Cpu,
    alu::{self, Binary, CF, Count, Shift, ZF},
    machine::{Done, Halt, Machine, Register},
    operand::{Operand, gpr_part, segment_register},
    port, segment, string, vector,
};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register as Name};
use x86defs::{Access, Exception, Gpr, SegmentRegister, Width, vector as exception};

/// One decoded instruction in execution.
pub(crate) struct Exec<'m, 'a, C> {
    pub(crate) m: &'m mut Machine<'a, C>,
    pub(crate) instruction: &'m Instruction,
}

/// Executes `instruction`, whose length `m` knows already.
pub(crate) fn execute<C: Cpu>(m: &mut Machine<'_, C>, instruction: &Instruction) -> Done {
    Exec { m, instruction }.run()
}

impl<C: Cpu> Exec<'_, '_, C> {
    fn run(&mut self) -> Done {
        use Mnemonic as M;
        if let Some(address_bits) = self.string_address_bits() {
            return self.string(address_bits);
        }
        match self.instruction.mnemonic() {
            M::Mov => self.mov(),
            M::Movnti | M::Movdiri => self.copy(false),
            M::Movzx => self.copy(false),
            M::Movsx | M::Movsxd => self.copy(true),
            M::Movbe => self.movbe(),
            M::Add => self.binary(Binary::Add),
            M::Or => self.binary(Binary::Or),
            M::Adc => self.binary(Binary::Adc),
            M::Sbb => self.binary(Binary::Sbb),
            M::And => self.binary(Binary::And),
            M::Sub => self.binary(Binary::Sub),
            M::Xor => self.binary(Binary::Xor),
            M::Cmp => self.compare(Binary::Sub),
            M::Test => self.compare(Binary::And),
            M::Not => self.unary(|width, a, flags| (!a & width.mask(), flags)),
            M::Neg => self.unary(alu::neg),
            M::Inc => self.unary(alu::inc),
            M::Dec => self.unary(alu::dec),
            M::Rol => self.shift(Shift::Rol),
            M::Ror => self.shift(Shift::Ror),
            M::Rcl => self.shift(Shift::Rcl),
            M::Rcr => self.shift(Shift::Rcr),
            M::Shl | M::Sal => self.shift(Shift::Shl),
            M::Shr => self.shift(Shift::Shr),
            M::Sar => self.shift(Shift::Sar),
            M::Shld => self.double_shift(true),
            M::Shrd => self.double_shift(false),
            M::Shlx => self.shift_without_flags(Shift::Shl),
            M::Shrx => self.shift_without_flags(Shift::Shr),
            M::Sarx => self.shift_without_flags(Shift::Sar),
            M::Rorx => self.shift_without_flags(Shift::Ror),
            M::Andn => self.andn(),
            M::Xchg => self.exchange(),
            M::Xadd => self.exchange_add(),
            M::Cmpxchg => self.compare_exchange(),
            M::Cmpxchg8b => self.compare_exchange_pair(Width::Dword),
            M::Cmpxchg16b => self.compare_exchange_pair(Width::Qword),
            M::Bt => self.bit(None),
            M::Bts => self.bit(Some(|value, bit| value | bit)),
            M::Btr => self.bit(Some(|value, bit| value & !bit)),
            M::Btc => self.bit(Some(|value, bit| value ^ bit)),
            M::Bsf => self.scan(false),
            M::Bsr => self.scan(true),
            M::Tzcnt => self.count(Count::TrailingZeros),
            M::Lzcnt => self.count(Count::LeadingZeros),
            M::Popcnt => self.count(Count::Ones),
            M::Mul => self.multiply(false),
            M::Imul if self.instruction.op_count() == 1 => self.multiply(true),
            M::Imul => self.multiply_to_register(),
            M::Div => self.divide(false),
            M::Idiv => self.divide(true),
            M::Push => self.push(),
            M::Pop => self.pop(),
            M::Call => self.call(),
            M::Jmp => self.jump(),
            M::Ret => self.ret(),
            M::Enter => self.enter(),
            M::Leave => self.leave(),
            M::Xlatb => self.xlat(),
            M::Smsw => self.store_machine_status(),
            M::Lds => self.load_far(SegmentRegister::Ds),
            M::Les => self.load_far(SegmentRegister::Es),
            M::Lss => self.load_far(SegmentRegister::Ss),
            M::Lfs => self.load_far(SegmentRegister::Fs),
            M::Lgs => self.load_far(SegmentRegister::Gs),
            M::In => {
                let (width, port) = (self.port_width(0)?, self.port(1)?);
                port::input(self.m, port, width)
            }
            M::Out => {
                let (port, width) = (self.port(0)?, self.port_width(1)?);
                port::output(self.m, port, width)
            }
            // A load as far as faults go.
            M::Clflush | M::Clflushopt | M::Clwb => self.place(0, 1, 1, Access::Read).map(|_| ()),
            M::Nop | M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Prefetchw => Ok(()),
            mnemonic => match condition(mnemonic) {
                Some((Conditional::Set, code)) => self.set(code),
                Some((Conditional::Move, code)) => self.conditional_move(code),
                None => vector::execute(self),
            },
        }
    }

    /// The address size of a string instruction; `None` for any other instruction.
    fn string_address_bits(&self) -> Option<u32> {
        [self.instruction.op0_kind(), self.instruction.op1_kind()].into_iter().find_map(|kind| match kind {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(16),
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(32),
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(64),
            _ => None,
        })
    }

    fn string(&mut self, address_bits: u32) -> Done {
        use Mnemonic as M;
        use string::Kind;
        let (kind, width) = match self.instruction.mnemonic() {
            M::Movsb => (Kind::Movs, Width::Byte),
            M::Movsw => (Kind::Movs, Width::Word),
            M::Movsd => (Kind::Movs, Width::Dword),
            M::Movsq => (Kind::Movs, Width::Qword),
            M::Cmpsb => (Kind::Cmps, Width::Byte),
            M::Cmpsw => (Kind::Cmps, Width::Word),
            M::Cmpsd => (Kind::Cmps, Width::Dword),
            M::Cmpsq => (Kind::Cmps, Width::Qword),
            M::Stosb => (Kind::Stos, Width::Byte),
            M::Stosw => (Kind::Stos, Width::Word),
            M::Stosd => (Kind::Stos, Width::Dword),
            M::Stosq => (Kind::Stos, Width::Qword),
            M::Lodsb => (Kind::Lods, Width::Byte),
            M::Lodsw => (Kind::Lods, Width::Word),
            M::Lodsd => (Kind::Lods, Width::Dword),
            M::Lodsq => (Kind::Lods, Width::Qword),
            M::Scasb => (Kind::Scas, Width::Byte),
            M::Scasw => (Kind::Scas, Width::Word),
            M::Scasd => (Kind::Scas, Width::Dword),
            M::Scasq => (Kind::Scas, Width::Qword),
            M::Insb => (Kind::Ins, Width::Byte),
            M::Insw => (Kind::Ins, Width::Word),
            M::Insd => (Kind::Ins, Width::Dword),
            M::Outsb => (Kind::Outs, Width::Byte),
            M::Outsw => (Kind::Outs, Width::Word),
            M::Outsd => (Kind::Outs, Width::Dword),
            _ => return Err(Halt::Unsupported),
        };
        let repeat = if self.instruction.has_repne_prefix() {
            string::Repeat::WhileNotEqual
        } else if self.instruction.has_rep_prefix() {
            string::Repeat::WhileEqual
        } else {
            string::Repeat::Once
        };
        let segment = self.string_segment();
        string::execute(self.m, string::StringOp { kind, width, address_bits, segment, repeat })
    }

    fn locked(&self) -> bool {
        self.instruction.has_lock_prefix()
    }

    fn mov(&mut self) -> Done {
        if let Some(register) = self.segment_operand(0) {
            let source = self.operand(1, Access::Read)?;
            let selector = self.get(source)? as u16;
            if register == SegmentRegister::Cs {
                return Err(Exception::UD.into());
            }
            let segment = segment::prepare(self.m, register, selector)?;
            self.m.cpu.set_segment(register, segment);
            return Ok(());
        }
        if let Some(register) = self.segment_operand(1) {
            let selector = self.m.cpu.segment(register).selector;
            let target = self.operand(0, Access::Write)?;
            return self.put(target, u64::from(selector));
        }
        self.copy(false)
    }

    /// Operand 1 to operand 0, extended if that is wider.
    fn copy(&mut self, signed: bool) -> Done {
        let source_width = self.width(1)?;
        let target = self.operand(0, Access::Write)?;
        let source = self.operand(1, Access::Read)?;
        let value = self.get(source)?;
        let value = if signed { alu::sign_extend(source_width, value) } else { value };
        self.put(target, value)
    }

    fn movbe(&mut self) -> Done {
        let width = self.width(0)?;
        let target = self.operand(0, Access::Write)?;
        let source = self.operand(1, Access::Read)?;
        let value = self.get(source)?.swap_bytes() >> (64 - alu::bits(width));
        self.put(target, value)
    }

    fn binary(&mut self, op: Binary) -> Done {
        let width = self.width(0)?;
        let target = self.operand(0, Access::Write)?;
        let source = self.operand(1, Access::Read)?;
        let b = self.get(source)? & width.mask();
        let before = self.m.rflags;
        let mut after = before;
        self.modify(target, |a| {
            let (result, flags) = alu::binary(op, width, a, b, before);
            after = flags;
            result
        })?;
        self.m.rflags = after;
        Ok(())
    }

    fn compare(&mut self, op: Binary) -> Done {
        let width = self.width(0)?;
        let target = self.operand(0, Access::Read)?;
        let source = self.operand(1, Access::Read)?;
        let a = self.get(target)?;
        let b = self.get(source)? & width.mask();
        self.m.rflags = alu::binary(op, width, a, b, self.m.rflags).1;
        Ok(())
    }

    fn unary(&mut self, op: impl Fn(Width, u64, u64) -> (u64, u64)) -> Done {
        let width = self.width(0)?;
        let target = self.operand(0, Access::Write)?;
        let before = self.m.rflags;
        let mut after = before;
        self.modify(target, |a| {
            let (result, flags) = op(width, a, before);
            after = flags;
            result
        })?;
        self.m.rflags = after;
        Ok(())
    }

    fn shift(&mut self, op: Shift) -> Done {
        let source = self.operand(1, Access::Read)?;
        let count = self.get(source)? as u8;
        self.unary(|width, a, flags| alu::shift(op, width, a, count, flags))
    }

    fn double_shift(&mut self, left: bool) -> Done {
        let source = self.operand(1, Access::Read)?;
        let fill = self.get(source)?;
        let source = self.operand(2, Access::Read)?;
        let count = self.get(source)? as u8;
        self.unary(|width, a, flags| alu::double_shift(left, width, a, fill, count, flags))
    }

    /// SHLX, SHRX, SARX, RORX: operand 0 = operand 1 shifted by operand 2.
    fn shift_without_flags(&mut self, op: Shift) -> Done {
        let width = self.width(0)?;
        let target = self.operand(0, Access::Write)?;
        let source = self.operand(1, Access::Read)?;
        let count = self.operand(2, Access::Read)?;
        let count = self.get(count)? as u8;
        let value = self.get(source)?;
        self.put(target, alu::shift(op, width, value, count, 0).0)
    }

    fn andn(&mut self) -> Done {
        let width = self.width(0)?;
        let target = self.operand(0, Access::Write)?;
        let (inverted, source) = (self.operand(1, Access::Read)?, self.operand(2, Access::Read)?);
        let a = !self.get(inverted)? & width.mask();
        let b = self.get(source)?;
        let (result, flags) = alu::binary(Binary::And, width, a, b, self.m.rflags);
        self.put(target, result)?;
        self.m.rflags = flags;
        Ok(())
    }

    /// XCHG with memory is locked with or without the prefix.
    fn exchange(&mut self) -> Done {
        let target = self.operand(0, Access::Write)?;
        let source = self.operand(1, Access::Write)?;
        let (memory, register) = match (target, source) {
            (Operand::Memory(_), _) => (target, source),
            _ => (source, target),
        };
        let new = self.get(register)?;
        let old = match memory {
            Operand::Memory(place) => self.m.update(place, true, |_| new)?,
            _ => {
                let old = self.get(memory)?;
                self.put(memory, new)?;
                old
            }
        };
        self.put(register, old)
    }

    fn exchange_add(&mut self) -> Done {
        let width = self.width(0)?;
        let target = self.operand(0, Access::Write)?;
        let source = self.operand(1, Access::Write)?;
        let b = self.get(source)?;
        let before = self.m.rflags;
        let mut after = before;
        let mut sum = |a| {
            let (result, flags) = alu::binary(Binary::Add, width, a, b, before);
            after = flags;
            result
        };
        match target {
            Operand::Memory(_) => {
                let old = self.modify(target, sum)?;
                self.put(source, old)?;
            }
            // The sum is written last: it wins if both are the same register.
            _ => {
                let old = self.get(target)?;
                let result = sum(old);
                self.put(source, old)?;
                self.put(target, result)?;
            }
        }
        self.m.rflags = after;
        Ok(())
    }

    fn compare_exchange(&mut self) -> Done {
        let width = self.width(0)?;
        let target = self.operand(0, Access::Write)?;
        let source = self.operand(1, Access::Read)?;
        let new = self.get(source)?;
        let accumulator = Register::new(Gpr::Rax, width);
        let expected = accumulator.get(self.m.cpu.gprs());
        // Memory is written in either case, with its old value if they differ (SDM vol. 2A, CMPXCHG).
        let old = match target {
            Operand::Register(register) => {
                let old = register.get(self.m.cpu.gprs());
                if old == expected {
                    register.set(self.m.cpu.gprs_mut(), new);
                }
                old
            }
            _ => self.modify(target, |old| if old == expected { new } else { old })?,
        };
        self.m.rflags = alu::binary(Binary::Sub, width, expected, old, self.m.rflags).1;
        if old != expected {
            accumulator.set(self.m.cpu.gprs_mut(), old);
        }
        Ok(())
    }

    /// CMPXCHG8B and CMPXCHG16B: rDX:rAX against memory, rCX:rBX into it.
    fn compare_exchange_pair(&mut self, half: Width) -> Done {
        let bits = alu::bits(half);
        let gprs = self.m.cpu.gprs();
        let pair =
            |high, low| u128::from(Register::new(high, half).get(gprs)) << bits | u128::from(Register::new(low, half).get(gprs));
        let (expected, new) = (pair(Gpr::Rdx, Gpr::Rax), pair(Gpr::Rcx, Gpr::Rbx));
        let found = if half == Width::Dword {
            let place = self.place(0, 8, 8, Access::Write)?;
            let target = Operand::Memory(place);
            u128::from(self.modify(target, |old| if u128::from(old) == expected { new as u64 } else { old })?)
        } else {
            let linear = self.linear(0, 16, Access::Write)?;
            if linear % 16 != 0 {
                return Err(Exception::GP.into());
            }
            let place = self.m.locate(linear, 16, Access::Write)?;
            let gpa = place.address().ok_or(Halt::Unsupported)?;
            if self.locked() {
                let found = self.m.cpu.compare_exchange_16(gpa, expected, new)?;
                if found != expected {
                    // The old value is written back; if it is gone by now, the newer one stays.
                    self.m.cpu.compare_exchange_16(gpa, found, found)?;
                }
                found
            } else {
                let found = self.m.load_wide(place)?[0];
                self.m.store_wide(place, [if found == expected { new } else { found }, 0])?;
                found
            }
        };
        if found == expected {
            self.m.rflags |= ZF;
        } else {
            self.m.rflags &= !ZF;
            let gprs = self.m.cpu.gprs_mut();
            Register::new(Gpr::Rax, half).set(gprs, found as u64 & half.mask());
            Register::new(Gpr::Rdx, half).set(gprs, (found >> bits) as u64);
        }
        Ok(())
    }

    /// BT and its kin. A register's bit offset is signed and reaches beyond a memory operand; an immediate's does not.
    fn bit(&mut self, change: Option<fn(u64, u64) -> u64>) -> Done {
        let width = self.width(0)?;
        let bits = u64::from(alu::bits(width));
        let source = self.operand(1, Access::Read)?;
        let number = self.get(source)?;
        let access = if change.is_some() { Access::Write } else { Access::Read };
        let target = match (self.instruction.op0_kind(), source) {
            (OpKind::Memory, Operand::Register(_)) => {
                let number = alu::sign_extend(width, number) as i64;
                let bytes = (number >> bits.trailing_zeros()).wrapping_mul(width.bytes() as i64);
                self.memory_operand(0, width, bytes as u64, access)?
            }
            _ => self.operand(0, access)?,
        };
        let bit = 1u64 << (number & (bits - 1));
        let old = match change {
            Some(change) => self.modify(target, |old| change(old, bit))?,
            None => self.get(target)?,
        };
        // OF, SF, AF and PF are undefined and stay, as ZF has to.
        self.m.rflags = self.m.rflags & !CF | if old & bit != 0 { CF } else { 0 };
        Ok(())
    }

    fn scan(&mut self, reverse: bool) -> Done {
        let source = self.operand(1, Access::Read)?;
        let value = self.get(source)?;
        let (found, flags) = alu::scan(reverse, value, self.m.rflags);
        if let Some(number) = found {
            let target = self.operand(0, Access::Write)?;
            self.put(target, number)?;
        }
        self.m.rflags = flags;
        Ok(())
    }

    fn count(&mut self, what: Count) -> Done {
        let width = self.width(0)?;
        let target = self.operand(0, Access::Write)?;
        let source = self.operand(1, Access::Read)?;
        let (number, flags) = alu::count(what, width, self.get(source)?, self.m.rflags);
        self.put(target, number)?;
        self.m.rflags = flags;
        Ok(())
    }

    /// One-operand MUL and IMUL.
    fn multiply(&mut self, signed: bool) -> Done {
        let width = self.width(0)?;
        let source = self.operand(0, Access::Read)?;
        let b = self.get(source)?;
        let a = Register::new(Gpr::Rax, width).get(self.m.cpu.gprs());
        let (low, high, flags) = alu::multiply(signed, width, a, b, self.m.rflags);
        self.set_pair(width, high, low);
        self.m.rflags = flags;
        Ok(())
    }

    fn multiply_to_register(&mut self) -> Done {
        let width = self.width(0)?;
        let target = self.operand(0, Access::Write)?;
        let (a, b) = if self.instruction.op_count() == 3 { (1, 2) } else { (0, 1) };
        let a = self.operand(a, Access::Read)?;
        let b = self.operand(b, Access::Read)?;
        let (a, b) = (self.get(a)?, self.get(b)? & width.mask());
        let (low, _, flags) = alu::multiply(true, width, a, b, self.m.rflags);
        self.put(target, low)?;
        self.m.rflags = flags;
        Ok(())
    }

    fn divide(&mut self, signed: bool) -> Done {
        let width = self.width(0)?;
        let source = self.operand(0, Access::Read)?;
        let divisor = self.get(source)?;
        let gprs = self.m.cpu.gprs();
        let low = Register::new(Gpr::Rax, width).get(gprs);
        let high = match width {
            Width::Byte => Register { gpr: Gpr::Rax, width, high: true }.get(gprs),
            _ => Register::new(Gpr::Rdx, width).get(gprs),
        };
        let error = Exception { vector: exception::DE, error_code: None, cr2: None };
        let (quotient, remainder) = alu::divide(signed, width, high, low, divisor).ok_or(error)?;
        self.set_pair(width, remainder, quotient);
        Ok(())
    }

    /// Writes AH:AL, DX:AX, EDX:EAX or RDX:RAX.
    fn set_pair(&mut self, width: Width, high: u64, low: u64) {
        let upper = match width {
            Width::Byte => Register { gpr: Gpr::Rax, width, high: true },
            _ => Register::new(Gpr::Rdx, width),
        };
        let gprs = self.m.cpu.gprs_mut();
        Register::new(Gpr::Rax, width).set(gprs, low);
        upper.set(gprs, high);
    }

    fn set(&mut self, code: u8) -> Done {
        let target = self.operand(0, Access::Write)?;
        let value = alu::condition(code, self.m.rflags);
        self.put(target, u64::from(value))
    }

    /// The source is read even if the condition does not hold, and a 32-bit target's upper half is cleared.
    fn conditional_move(&mut self, code: u8) -> Done {
        let target = self.operand(0, Access::Write)?;
        let source = self.operand(1, Access::Read)?;
        let mut value = self.get(source)?;
        if !alu::condition(code, self.m.rflags) {
            value = self.get(target)?;
        }
        self.put(target, value)
    }

    fn push(&mut self) -> Done {
        let (width, value) = match self.segment_operand(0) {
            Some(register) => (self.stack_width()?, u64::from(self.m.cpu.segment(register).selector)),
            None => {
                let width = self.stack_width()?;
                let source = self.operand(0, Access::Read)?;
                // The stack is translated before a device may be read.
                let place = self.m.push_place(width)?;
                let value = self.get(source)?;
                return self.m.push(place, width, value);
            }
        };
        let place = self.m.push_place(width)?;
        self.m.push(place, width, value)
    }

    fn pop(&mut self) -> Done {
        let width = self.stack_width()?;
        let bytes = width.bytes() as u64;
        let source = self.m.stack_place(0, width, Access::Read)?;
        if let Some(register) = self.segment_operand(0) {
            let selector = self.m.load(source)? as u16;
            let segment = segment::prepare(self.m, register, selector)?;
            self.m.cpu.set_segment(register, segment);
            self.m.move_stack_pointer(bytes);
            return Ok(());
        }
        // An address by rSP uses the incremented one; a popped rSP is the value from the stack (SDM vol. 2B, POP).
        let old = self.m.cpu.gprs()[Gpr::Rsp];
        self.m.move_stack_pointer(bytes);
        let result = self.operand(0, Access::Write).and_then(|target| {
            let value = self.m.load(source)?;
            self.put(target, value)
        });
        if result.is_err() {
            self.m.cpu.gprs_mut()[Gpr::Rsp] = old;
        }
        result
    }

    /// A near CALL's or JMP's operand size and target.
    fn near_target(&mut self) -> Done<(Width, Operand)> {
        match self.instruction.op0_kind() {
            OpKind::NearBranch16 => Ok((Width::Word, Operand::Immediate(self.instruction.near_branch_target()))),
            OpKind::NearBranch32 => Ok((Width::Dword, Operand::Immediate(self.instruction.near_branch_target()))),
            OpKind::NearBranch64 => Ok((Width::Qword, Operand::Immediate(self.instruction.near_branch_target()))),
            OpKind::Register | OpKind::Memory => match self.instruction.code() {
                Code::Call_rm16 | Code::Jmp_rm16 | Code::Call_rm32 | Code::Jmp_rm32 | Code::Call_rm64 | Code::Jmp_rm64 => {
                    Ok((self.width(0)?, self.operand(0, Access::Read)?))
                }
                _ => Err(Halt::Unsupported),
            },
            _ => Err(Halt::Unsupported),
        }
    }

    fn call(&mut self) -> Done {
        let (width, target) = self.near_target()?;
        let place = self.m.push_place(width)?;
        let target = self.get(target)?;
        let target = self.m.branch_target(width, target)?;
        let return_to = self.m.next & width.mask();
        self.m.push(place, width, return_to)?;
        self.m.next = target;
        Ok(())
    }

    fn jump(&mut self) -> Done {
        let (width, target) = self.near_target()?;
        let target = self.get(target)?;
        self.m.next = self.m.branch_target(width, target)?;
        Ok(())
    }

    fn ret(&mut self) -> Done {
        let width = match self.instruction.code() {
            Code::Retnw | Code::Retnw_imm16 => Width::Word,
            Code::Retnd | Code::Retnd_imm16 => Width::Dword,
            Code::Retnq | Code::Retnq_imm16 => Width::Qword,
            _ => return Err(Halt::Unsupported),
        };
        let extra = if self.instruction.op_count() == 0 { 0 } else { u64::from(self.instruction.immediate16()) };
        let place = self.m.stack_place(0, width, Access::Read)?;
        let target = self.m.load(place)?;
        self.m.next = self.m.branch_target(width, target)?;
        self.m.move_stack_pointer(width.bytes() as u64 + extra);
        Ok(())
    }

    /// SMSW: to memory always 16 bits. That UMIP forbids it to user mode shows before the memory is touched, so on the CPU.
    fn store_machine_status(&mut self) -> Done {
        let place = self.place(0, 2, 2, Access::Write)?;
        let status = self.m.cpu.cr0() as u16;
        Ok(self.m.store_wide(place, [status.into(), 0])?)
    }

    /// ENTER: rBP is pushed, then as many pointers to outer frames as the nesting level wants, and rBP becomes the new frame's.
    fn enter(&mut self) -> Done {
        let width = match self.instruction.code() {
            Code::Enterw_imm16_imm8 => Width::Word,
            Code::Enterd_imm16_imm8 => Width::Dword,
            Code::Enterq_imm16_imm8 => Width::Qword,
            _ => return Err(Halt::Unsupported),
        };
        let size = u64::from(self.instruction.immediate16());
        let level = self.instruction.immediate8_2nd() % 32;
        let (rsp, rbp) = (self.m.cpu.gprs()[Gpr::Rsp], self.m.cpu.gprs()[Gpr::Rbp]);
        let result = self.push_frame(width, rbp, level);
        match result {
            Ok(frame) => {
                Register::new(Gpr::Rbp, width).set(self.m.cpu.gprs_mut(), frame);
                self.m.move_stack_pointer(size.wrapping_neg());
                Ok(())
            }
            Err(halt) => {
                self.m.cpu.gprs_mut()[Gpr::Rsp] = rsp;
                Err(halt)
            }
        }
    }

    /// What ENTER pushes. Returns the new frame pointer.
    fn push_frame(&mut self, width: Width, rbp: u64, level: u8) -> Done<u64> {
        let bytes = width.bytes() as u64;
        let place = self.m.push_place(width)?;
        self.m.push(place, width, rbp)?;
        let frame = self.m.cpu.gprs()[Gpr::Rsp];
        for outer in 1..level {
            let depth = rbp.wrapping_sub(bytes * u64::from(outer)).wrapping_sub(self.m.cpu.gprs()[Gpr::Rsp]);
            let place = self.m.stack_place(depth, width, Access::Read)?;
            let pointer = self.m.load(place)?;
            let place = self.m.push_place(width)?;
            self.m.push(place, width, pointer)?;
        }
        if level > 0 {
            let place = self.m.push_place(width)?;
            self.m.push(place, width, frame)?;
        }
        Ok(frame)
    }

    /// LEAVE: the frame's saved rBP comes back from where rBP points, and rSP goes behind it.
    fn leave(&mut self) -> Done {
        let width = match self.instruction.code() {
            Code::Leavew => Width::Word,
            Code::Leaved => Width::Dword,
            Code::Leaveq => Width::Qword,
            _ => return Err(Halt::Unsupported),
        };
        let (rsp, rbp) = (self.m.cpu.gprs()[Gpr::Rsp], self.m.cpu.gprs()[Gpr::Rbp]);
        self.m.move_stack_pointer(rbp.wrapping_sub(rsp));
        let saved = self.m.stack_place(0, width, Access::Read).and_then(|place| Ok(self.m.load(place)?));
        match saved {
            Ok(saved) => {
                Register::new(Gpr::Rbp, width).set(self.m.cpu.gprs_mut(), saved);
                self.m.move_stack_pointer(width.bytes() as u64);
                Ok(())
            }
            Err(halt) => {
                self.m.cpu.gprs_mut()[Gpr::Rsp] = rsp;
                Err(halt)
            }
        }
    }

    fn xlat(&mut self) -> Done {
        let place = self.place(0, 1, 1, Access::Read)?;
        let value = self.m.load(place)?;
        Register::new(Gpr::Rax, Width::Byte).set(self.m.cpu.gprs_mut(), value);
        Ok(())
    }

    /// LDS and its kin: an offset to the register, the selector behind it to the segment register.
    fn load_far(&mut self, register: SegmentRegister) -> Done {
        let target = gpr_part(self.instruction.op0_register()).ok_or(Halt::Unsupported)?;
        let bytes = target.width.bytes();
        let place = self.place(1, bytes + 2, bytes, Access::Read)?;
        let pointer = self.m.load_wide(place)?[0];
        let selector = (pointer >> (8 * bytes)) as u16;
        let segment = segment::prepare(self.m, register, selector)?;
        self.m.cpu.set_segment(register, segment);
        target.set(self.m.cpu.gprs_mut(), pointer as u64 & target.width.mask());
        Ok(())
    }

    fn port_width(&self, operand: u32) -> Done<Width> {
        gpr_part(self.register_name(operand)).map(|register| register.width).ok_or(Halt::Unsupported)
    }

    fn port(&self, operand: u32) -> Done<u16> {
        if self.register_name(operand) == Name::DX {
            return Ok(self.m.cpu.gprs()[Gpr::Rdx] as u16);
        }
        Ok(u16::from(self.instruction.immediate8()))
    }

    /// The operand as a segment register.
    fn segment_operand(&self, operand: u32) -> Option<SegmentRegister> {
        segment_register(self.register_name(operand))
    }

    /// Operand size of PUSH and POP.
    fn stack_width(&self) -> Done<Width> {
        use Code as K;
        match self.instruction.code() {
            K::Pushw_ES | K::Pushw_CS | K::Pushw_SS | K::Pushw_DS | K::Pushw_FS | K::Pushw_GS => Ok(Width::Word),
            K::Popw_ES | K::Popw_SS | K::Popw_DS | K::Popw_FS | K::Popw_GS => Ok(Width::Word),
            K::Pushd_ES | K::Pushd_CS | K::Pushd_SS | K::Pushd_DS | K::Pushd_FS | K::Pushd_GS => Ok(Width::Dword),
            K::Popd_ES | K::Popd_SS | K::Popd_DS | K::Popd_FS | K::Popd_GS => Ok(Width::Dword),
            K::Pushq_FS | K::Pushq_GS | K::Popq_FS | K::Popq_GS => Ok(Width::Qword),
            K::Push_imm16 | K::Pushw_imm8 => Ok(Width::Word),
            K::Pushd_imm32 | K::Pushd_imm8 => Ok(Width::Dword),
            K::Pushq_imm32 | K::Pushq_imm8 => Ok(Width::Qword),
            _ => self.width(0),
        }
    }
}

enum Conditional {
    Set,
    Move,
}

/// SETcc and CMOVcc with their condition codes.
fn condition(mnemonic: Mnemonic) -> Option<(Conditional, u8)> {
    use Mnemonic as M;
    let set = |code| Some((Conditional::Set, code));
    let mov = |code| Some((Conditional::Move, code));
    match mnemonic {
        M::Seto => set(0),
        M::Setno => set(1),
        M::Setb => set(2),
        M::Setae => set(3),
        M::Sete => set(4),
        M::Setne => set(5),
        M::Setbe => set(6),
        M::Seta => set(7),
        M::Sets => set(8),
        M::Setns => set(9),
        M::Setp => set(10),
        M::Setnp => set(11),
        M::Setl => set(12),
        M::Setge => set(13),
        M::Setle => set(14),
        M::Setg => set(15),
        M::Cmovo => mov(0),
        M::Cmovno => mov(1),
        M::Cmovb => mov(2),
        M::Cmovae => mov(3),
        M::Cmove => mov(4),
        M::Cmovne => mov(5),
        M::Cmovbe => mov(6),
        M::Cmova => mov(7),
        M::Cmovs => mov(8),
        M::Cmovns => mov(9),
        M::Cmovp => mov(10),
        M::Cmovnp => mov(11),
        M::Cmovl => mov(12),
        M::Cmovge => mov(13),
        M::Cmovle => mov(14),
        M::Cmovg => mov(15),
        _ => None,
    }
}
