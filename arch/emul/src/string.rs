//! MOVS, CMPS, STOS, LODS, SCAS, INS and OUTS, alone and repeated (SDM vol. 1, 7.3.9; vol. 2B, REP).
//!
//! Decoded once, then looped over: one segment check and one translation a page, not an element.

use crate::{
    Cpu,
    alu::{self, Binary},
    machine::{Done, Halt, Machine, PageCache, Place, Register, View, address_mask},
    port,
};
use x86defs::{Access, Gpa, Gpr, PAGE_SIZE, Rflags, SegmentRegister, Width};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Movs,
    Cmps,
    Stos,
    Lods,
    Scas,
    Ins,
    Outs,
}

impl Kind {
    /// Reads memory at rSI.
    const fn has_source(self) -> bool {
        matches!(self, Self::Movs | Self::Cmps | Self::Lods | Self::Outs)
    }
    /// What is done to memory at ES:rDI.
    const fn destination(self) -> Option<Access> {
        match self {
            Self::Movs | Self::Stos | Self::Ins => Some(Access::Write),
            Self::Cmps | Self::Scas => Some(Access::Read),
            Self::Lods | Self::Outs => None,
        }
    }
}

/// What repeats the operation. For all but CMPS and SCAS, the two prefixes mean the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Repeat {
    Once,
    /// F3: REP, REPE.
    WhileEqual,
    /// F2: REPNE.
    WhileNotEqual,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StringOp {
    pub(crate) kind: Kind,
    pub(crate) width: Width,
    pub(crate) address_bits: u32,
    /// Of the source.
    pub(crate) segment: SegmentRegister,
    pub(crate) repeat: Repeat,
}

/// Decodes a string instruction by hand: its length and meaning. `None`: not one, or `bytes` end too early.
pub(crate) fn decode(bits: u32, bytes: &[u8]) -> Option<(usize, StringOp)> {
    let mut operand_override = false;
    let mut address_override = false;
    let mut segment = SegmentRegister::Ds;
    let mut repeat = Repeat::Once;
    let mut rex = 0;
    for (i, &byte) in bytes.iter().enumerate().take(crate::MAX_INSTRUCTION) {
        match byte {
            0x66 => operand_override = true,
            0x67 => address_override = true,
            0xf3 => repeat = Repeat::WhileEqual,
            0xf2 => repeat = Repeat::WhileNotEqual,
            // In 64-bit mode, only FS and GS count; the others do not even cancel them.
            0x26 if bits != 64 => segment = SegmentRegister::Es,
            0x2e if bits != 64 => segment = SegmentRegister::Cs,
            0x36 if bits != 64 => segment = SegmentRegister::Ss,
            0x3e if bits != 64 => segment = SegmentRegister::Ds,
            0x26 | 0x2e | 0x36 | 0x3e => {}
            0x64 => segment = SegmentRegister::Fs,
            0x65 => segment = SegmentRegister::Gs,
            0x40..=0x4f if bits == 64 => {
                rex = byte;
                continue;
            }
            _ => {
                let kind = match byte & 0xfe {
                    0xa4 => Kind::Movs,
                    0xa6 => Kind::Cmps,
                    0xaa => Kind::Stos,
                    0xac => Kind::Lods,
                    0xae => Kind::Scas,
                    0x6c => Kind::Ins,
                    0x6e => Kind::Outs,
                    _ => return None,
                };
                let port = matches!(kind, Kind::Ins | Kind::Outs);
                let width = match (byte & 1, rex & 8, operand_override) {
                    (0, ..) => Width::Byte,
                    (_, 8, _) if !port => Width::Qword,
                    (_, _, over) if over == (bits != 16) => Width::Word,
                    _ => Width::Dword,
                };
                let address_bits = match (bits, address_override) {
                    (64, false) => 64,
                    (16, false) | (32, true) => 16,
                    _ => 32,
                };
                return Some((i + 1, StringOp { kind, width, address_bits, segment, repeat }));
            }
        }
        // A REX prefix counts only right before the opcode.
        rex = 0;
    }
    None
}

/// Executes `op`, whose length `m` knows already.
pub(crate) fn execute<C: Cpu>(m: &mut Machine<'_, C>, op: StringOp) -> Done {
    let mask = address_mask(op.address_bits);
    let gprs = m.cpu.gprs();
    let mut cursor = Cursor {
        si: gprs[Gpr::Rsi] & mask,
        di: gprs[Gpr::Rdi] & mask,
        count: if op.repeat == Repeat::Once { 1 } else { gprs[Gpr::Rcx] & mask },
    };
    if cursor.count == 0 {
        return Ok(());
    }
    let start = cursor.count;
    let result = iterate(m, op, mask, &mut cursor);
    if cursor.count != start {
        let gprs = m.cpu.gprs_mut();
        let mut set = |register, value: u64| {
            // 16-bit addresses leave the upper bits, 32-bit ones clear them.
            gprs[register] = if op.address_bits == 16 { gprs[register] & !mask | value } else { value };
        };
        if op.kind.has_source() {
            set(Gpr::Rsi, cursor.si);
        }
        if op.kind.destination().is_some() {
            set(Gpr::Rdi, cursor.di);
        }
        if op.repeat != Repeat::Once {
            set(Gpr::Rcx, cursor.count);
        }
    }
    result
}

/// The registers that a string instruction moves, cut to the address size.
struct Cursor {
    si: u64,
    di: u64,
    count: u64,
}

fn iterate<C: Cpu>(m: &mut Machine<'_, C>, op: StringOp, mask: u64, cursor: &mut Cursor) -> Done {
    let port = m.cpu.gprs()[Gpr::Rdx] as u16;
    if matches!(op.kind, Kind::Ins | Kind::Outs) {
        port::check(m, port, op.width)?;
    }
    let mut source = match op.kind.has_source() {
        true => Some(Stream::new(m.view(op.segment, Access::Read)?, Access::Read)),
        false => None,
    };
    let mut destination = match op.kind.destination() {
        Some(access) => Some(Stream::new(m.view(SegmentRegister::Es, access)?, access)),
        None => None,
    };
    let step = step(m, op.width);
    let single = m.flag(Rflags::TF.bits());
    let mut budget = if single { 1 } else { u64::from(C::REP_BUDGET.max(1)) };
    loop {
        // All elements that lie in the current pages are one run. Both places are translated before either is touched: a device
        // read must not be lost to a page fault.
        let mut run = Run { port, step, source: None, destination: None, count: cursor.count.min(budget), done: 0 };
        if let Some(stream) = &mut source {
            let (place, count) = stream.advance(m, op.width, cursor.si, step, mask, run.count)?;
            (run.source, run.count) = (Some(place), count);
        }
        if let Some(stream) = &mut destination {
            let (place, count) = stream.advance(m, op.width, cursor.di, step, mask, run.count)?;
            (run.destination, run.count) = (Some(place), count);
        }
        let result = run.execute(m, op);
        let moved = step.wrapping_mul(run.done);
        cursor.si = cursor.si.wrapping_add(moved) & mask;
        cursor.di = cursor.di.wrapping_add(moved) & mask;
        cursor.count -= run.done;
        let ended = result?;
        if cursor.count == 0 || ended {
            return Ok(());
        }
        budget -= run.done;
        if budget == 0 {
            if single {
                m.next = m.rip;
                return Ok(());
            }
            return Err(Halt::Partial);
        }
    }
}

/// The distance from one element to the next.
fn step<C: Cpu>(m: &Machine<'_, C>, width: Width) -> u64 {
    let bytes = width.bytes() as u64;
    if m.flag(Rflags::DF.bits()) { bytes.wrapping_neg() } else { bytes }
}

/// Source or destination.
struct Stream {
    view: View,
    access: Access,
    pages: PageCache,
}

impl Stream {
    fn new(view: View, access: Access) -> Self {
        Self { view, access, pages: PageCache::default() }
    }

    /// Where the element at `offset` is, and how many of the `wanted` elements from there on lie in its page. It is 1 if this
    /// element lies in two pages, or the segment ends before the page does.
    fn advance<C: Cpu>(
        &mut self,
        m: &mut Machine<'_, C>,
        width: Width,
        offset: u64,
        step: u64,
        mask: u64,
        wanted: u64,
    ) -> Done<(Place, u64)> {
        let bytes = width.bytes();
        let linear = self.view.linear(offset, bytes)?;
        m.check_alignment(linear, bytes)?;
        let place = m.locate_cached(&mut self.pages, linear, bytes, self.access)?;
        if place.address().is_none() {
            return Ok((place, 1));
        }
        let in_page = linear % PAGE_SIZE;
        let left = if step == bytes as u64 { PAGE_SIZE - in_page } else { in_page + bytes as u64 };
        let count = wanted.min(left / bytes as u64);
        // An offset that wraps at the address size, or a last element outside of the segment: one by one.
        let last = offset.wrapping_add(step.wrapping_mul(count - 1));
        let whole = last & mask == last && self.view.linear(last, bytes).is_ok();
        Ok((place, if whole { count } else { 1 }))
    }
}

/// Elements in a row, each within one page; or a single one.
struct Run {
    port: u16,
    step: u64,
    source: Option<Place>,
    destination: Option<Place>,
    count: u64,
    /// Elements completed.
    done: u64,
}

impl Run {
    /// Elements that go out of RAM in ascending order, which is what drivers do: many are read at once. The rest, if any, is left.
    fn put_out<C: Cpu>(&mut self, m: &mut Machine<'_, C>, width: Width) -> Done {
        let Some(mut from) = self.source.as_ref().and_then(Place::address) else { return Ok(()) };
        let mut buffer = [0; 64];
        while self.done < self.count {
            let most = (buffer.len() / width.bytes()) as u64;
            let elements = most.min(self.count - self.done) as usize;
            let Some(block) = buffer.get_mut(..elements * width.bytes()) else { break };
            if !m.cpu.read_ram(from, block) {
                break;
            }
            from = from.wrapping_add(block.len() as u64);
            if width == Width::Byte {
                let (done, result) = m.cpu.port_out_bytes(self.port, block);
                self.done += done as u64;
                result?;
                continue;
            }
            for element in block.chunks_exact(width.bytes()) {
                let value = element.iter().rfold(0, |value, &byte| value << 8 | u32::from(byte));
                m.cpu.port_out(self.port, width, value)?;
                self.done += 1;
            }
        }
        if let Some(source) = &mut self.source {
            source.shift(self.step * self.done);
        }
        Ok(())
    }

    /// True if the condition of REPE or REPNE has ended the instruction.
    fn execute<C: Cpu>(&mut self, m: &mut Machine<'_, C>, op: StringOp) -> Done<bool> {
        if op.kind == Kind::Outs && self.step == op.width.bytes() as u64 {
            self.put_out(m, op.width)?;
        }
        let accumulator = Register::new(Gpr::Rax, op.width);
        let nowhere = Place::in_page(Gpa(0), 0);
        let mut source = self.source.unwrap_or(nowhere);
        let mut destination = self.destination.unwrap_or(nowhere);
        let repeats = |equal: bool| match op.repeat {
            Repeat::Once => false,
            Repeat::WhileEqual => equal,
            Repeat::WhileNotEqual => !equal,
        };
        while self.done < self.count {
            let mut goes_on = true;
            match op.kind {
                Kind::Movs => {
                    let value = m.load(source)?;
                    m.store(destination, value)?;
                }
                Kind::Stos => {
                    let value = accumulator.get(m.cpu.gprs());
                    m.store(destination, value)?;
                }
                Kind::Lods => {
                    let value = m.load(source)?;
                    accumulator.set(m.cpu.gprs_mut(), value);
                }
                Kind::Cmps => {
                    let (a, b) = (m.load(source)?, m.load(destination)?);
                    m.rflags = alu::binary(Binary::Sub, op.width, a, b, m.rflags).1;
                    goes_on = repeats(a == b);
                }
                Kind::Scas => {
                    let (a, b) = (accumulator.get(m.cpu.gprs()), m.load(destination)?);
                    m.rflags = alu::binary(Binary::Sub, op.width, a, b, m.rflags).1;
                    goes_on = repeats(a == b);
                }
                Kind::Ins => {
                    let value = m.cpu.port_in(self.port, op.width)?;
                    m.store(destination, u64::from(value))?;
                }
                Kind::Outs => {
                    let value = m.load(source)?;
                    m.cpu.port_out(self.port, op.width, value as u32)?;
                }
            }
            self.done += 1;
            if !goes_on {
                return Ok(true);
            }
            source.shift(self.step);
            destination.shift(self.step);
        }
        Ok(false)
    }
}
