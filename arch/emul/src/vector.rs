//! SSE and AVX moves between memory and vector registers (SDM vol. 2, the MOV pages; vol. 2A, 2.4 and 2.7 for the exceptions).
//!
//! Moves between registers do not reach a device and are not emulated.

use crate::{
    Cpu, Mode,
    exec::Exec,
    machine::{Done, Halt},
};
use iced_x86::{Mnemonic, Register as Name};
use x86defs::{Access, Cr0, Cr4, Exception};

/// How much of a vector register a move transfers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    /// All 128 or 256 bits, by the register's name.
    Whole,
    /// The low bytes; a load clears the rest of the low 128 bits.
    Low(usize),
    /// The low or the high half of the low 128 bits; a load keeps (VEX: copies from the second operand) the other.
    LowHalf,
    HighHalf,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Encoding {
    Legacy,
    Vex,
}

/// Whether a misaligned address raises #GP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Alignment {
    Any,
    Natural,
}

fn classify(mnemonic: Mnemonic) -> Option<(Encoding, Part, Alignment)> {
    use Alignment::{Any, Natural};
    use Encoding::{Legacy, Vex};
    use Mnemonic as M;
    Some(match mnemonic {
        M::Movaps | M::Movapd | M::Movdqa | M::Movntdq | M::Movntdqa | M::Movntps | M::Movntpd => (Legacy, Part::Whole, Natural),
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntdq | M::Vmovntdqa | M::Vmovntps | M::Vmovntpd => {
            (Vex, Part::Whole, Natural)
        }
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => (Legacy, Part::Whole, Any),
        M::Vmovups | M::Vmovupd | M::Vmovdqu | M::Vlddqu => (Vex, Part::Whole, Any),
        M::Movd | M::Movss => (Legacy, Part::Low(4), Any),
        M::Movq | M::Movsd => (Legacy, Part::Low(8), Any),
        M::Vmovd | M::Vmovss => (Vex, Part::Low(4), Any),
        M::Vmovq | M::Vmovsd => (Vex, Part::Low(8), Any),
        M::Movlps | M::Movlpd => (Legacy, Part::LowHalf, Any),
        M::Movhps | M::Movhpd => (Legacy, Part::HighHalf, Any),
        M::Vmovlps | M::Vmovlpd => (Vex, Part::LowHalf, Any),
        M::Vmovhps | M::Vmovhpd => (Vex, Part::HighHalf, Any),
        _ => return None,
    })
}

/// Number and bytes of an XMM or YMM register.
fn vector_register(name: Name) -> Option<(u8, usize)> {
    let n = name as u32;
    let within = |first: Name, last: Name| (first as u32..=last as u32).contains(&n).then(|| (n - first as u32) as u8);
    within(Name::XMM0, Name::XMM15)
        .map(|number| (number, 16))
        .or_else(|| within(Name::YMM0, Name::YMM15).map(|number| (number, 32)))
}

/// Executes a vector move; any other instruction is unsupported.
pub(crate) fn execute<C: Cpu>(exec: &mut Exec<'_, '_, C>) -> Done {
    let (encoding, part, alignment) = classify(exec.instruction.mnemonic()).ok_or(Halt::Unsupported)?;
    // A load's memory operand is the last, a store's the first.
    let last = exec.instruction.op_count().wrapping_sub(1);
    let (memory, register) = match (exec.is_memory(0), exec.is_memory(last)) {
        (true, false) => (0, last),
        (false, true) => (last, 0),
        _ => return Err(Halt::Unsupported),
    };
    let (number, size) = vector_register(exec.register_name(register)).ok_or(Halt::Unsupported)?;
    check_enabled(exec, encoding)?;
    let old = exec.m.cpu.vector(number).ok_or(Halt::Unsupported)?;
    let bytes = match part {
        Part::Whole => size,
        Part::Low(bytes) => bytes,
        Part::LowHalf | Part::HighHalf => 8,
    };

    let access = if memory == 0 { Access::Write } else { Access::Read };
    let linear = exec.linear(memory, bytes, access)?;
    match alignment {
        Alignment::Natural if linear % bytes as u64 != 0 => return Err(Exception::GP.into()),
        // Of 16 and more bytes, alignment checking depends on the model (SDM vol. 3A, 7.15); AMD's current ones look at 16.
        _ => exec.m.check_alignment(linear, bytes.min(16))?,
    }
    let place = exec.m.locate(linear, bytes, access)?;

    if memory == 0 {
        let value = if part == Part::HighHalf { [old[0] >> 64, 0] } else { old };
        return Ok(exec.m.store_wide(place, value)?);
    }

    // What a half-register load keeps.
    let kept = match (encoding, part) {
        (Encoding::Vex, Part::LowHalf | Part::HighHalf) => {
            let (number, _) = vector_register(exec.register_name(1)).ok_or(Halt::Unsupported)?;
            exec.m.cpu.vector(number).ok_or(Halt::Unsupported)?[0]
        }
        _ => old[0],
    };
    let loaded = exec.m.load_wide(place)?;
    let value = match part {
        Part::Whole | Part::Low(_) => loaded,
        Part::LowHalf => [kept >> 64 << 64 | loaded[0], 0],
        Part::HighHalf => [kept & u128::from(u64::MAX) | loaded[0] << 64, 0],
    };
    match encoding {
        Encoding::Legacy => exec.m.cpu.set_xmm(number, value[0]),
        Encoding::Vex => exec.m.cpu.set_ymm(number, value),
    }
    Ok(())
}

/// #UD and #NM by the control registers.
fn check_enabled<C: Cpu>(exec: &Exec<'_, '_, C>, encoding: Encoding) -> Result<(), Exception> {
    let cpu = &*exec.m.cpu;
    let (cr0, cr4) = (cpu.cr0(), cpu.cr4());
    let enabled = match encoding {
        Encoding::Legacy => cr0 & Cr0::EM.bits() == 0 && cr4 & Cr4::OSFXSR.bits() != 0,
        // XCR0: SSE and AVX state.
        Encoding::Vex => {
            cr4 & Cr4::OSXSAVE.bits() != 0 && cpu.xcr0() & 6 == 6 && !matches!(exec.m.mode, Mode::Real | Mode::Virtual8086)
        }
    };
    if !enabled {
        return Err(Exception::UD);
    }
    if cr0 & Cr0::TS.bits() != 0 { Err(Exception::NM) } else { Ok(()) }
}
