//! MOVS, CMPS, STOS, LODS, SCAS, INS and OUTS, alone and repeated (SDM vol. 1, 7.3.9; vol. 2B, REP).
//!
//! Decoded once, then looped over: one segment check and one translation a page, not an element.

use crate::{
    Cpu,
    alu::{self, Binary, ZF},
    machine::{Done, Halt, Machine, PageCache, View, address_mask},
    port,
};
use x86defs::{Access, Gpr, Rflags, SegmentRegister, Width};

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
    // Segments that are not used get a view too; it is never consulted.
    let source = if op.kind.has_source() { Some(m.view(op.segment, Access::Read)?) } else { None };
    let destination = match op.kind.destination() {
        Some(access) => Some((m.view(SegmentRegister::Es, access)?, access)),
        None => None,
    };
    let mut streams = Streams { source, destination, source_pages: PageCache::default(), destination_pages: PageCache::default() };
    let bytes = op.width.bytes() as u64;
    let step = if m.flag(Rflags::DF.bits()) { bytes.wrapping_neg() } else { bytes };
    let mut budget = C::REP_BUDGET.max(1);
    loop {
        element(m, op, port, cursor, &mut streams)?;
        cursor.si = cursor.si.wrapping_add(step) & mask;
        cursor.di = cursor.di.wrapping_add(step) & mask;
        cursor.count -= 1;
        if cursor.count == 0 {
            return Ok(());
        }
        if matches!(op.kind, Kind::Cmps | Kind::Scas) && m.flag(ZF) != (op.repeat == Repeat::WhileEqual) {
            return Ok(());
        }
        if m.flag(Rflags::TF.bits()) {
            m.next = m.rip;
            return Ok(());
        }
        budget -= 1;
        if budget == 0 {
            return Err(Halt::Partial);
        }
    }
}

struct Streams {
    source: Option<View>,
    destination: Option<(View, Access)>,
    source_pages: PageCache,
    destination_pages: PageCache,
}

/// One iteration. Both places are translated before either is touched: a device read must not be lost to a page fault.
#[inline]
fn element<C: Cpu>(m: &mut Machine<'_, C>, op: StringOp, port: u16, cursor: &Cursor, streams: &mut Streams) -> Done {
    let bytes = op.width.bytes();
    let source = match &streams.source {
        Some(view) => {
            let linear = view.linear(cursor.si, bytes)?;
            m.check_alignment(linear, bytes)?;
            Some(m.locate_cached(&mut streams.source_pages, linear, bytes, Access::Read)?)
        }
        None => None,
    };
    let destination = match &streams.destination {
        Some((view, access)) => {
            let linear = view.linear(cursor.di, bytes)?;
            m.check_alignment(linear, bytes)?;
            Some(m.locate_cached(&mut streams.destination_pages, linear, bytes, *access)?)
        }
        None => None,
    };
    let accumulator = crate::machine::Register::new(Gpr::Rax, op.width);
    match (op.kind, source, destination) {
        (Kind::Movs, Some(source), Some(destination)) => {
            let value = m.load(source)?;
            m.store(destination, value)?;
        }
        (Kind::Stos, _, Some(destination)) => {
            let value = accumulator.get(m.cpu.gprs());
            m.store(destination, value)?;
        }
        (Kind::Lods, Some(source), _) => {
            let value = m.load(source)?;
            accumulator.set(m.cpu.gprs_mut(), value);
        }
        (Kind::Cmps, Some(source), Some(destination)) => {
            let (a, b) = (m.load(source)?, m.load(destination)?);
            m.rflags = alu::binary(Binary::Sub, op.width, a, b, m.rflags).1;
        }
        (Kind::Scas, _, Some(destination)) => {
            let (a, b) = (accumulator.get(m.cpu.gprs()), m.load(destination)?);
            m.rflags = alu::binary(Binary::Sub, op.width, a, b, m.rflags).1;
        }
        (Kind::Ins, _, Some(destination)) => {
            let value = m.cpu.port_in(port, op.width)?;
            m.store(destination, u64::from(value))?;
        }
        (Kind::Outs, Some(source), _) => {
            let value = m.load(source)?;
            m.cpu.port_out(port, op.width, value as u32)?;
        }
        _ => return Err(Halt::Unsupported),
    }
    Ok(())
}
