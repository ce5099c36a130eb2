//! IN and OUT, and the right to use a port (SDM vol. 1, 19.5; vol. 3A, 9.7 for the 64-bit TSS).

use crate::{
    Cpu, Mode, Privilege,
    machine::{Done, Machine, Register},
};
use x86defs::{Access, Exception, Gpr, Gva, Rflags, SegmentRegister, Width};

/// Offset of the I/O map base in a 32-bit or 64-bit TSS.
const IO_MAP_BASE: u64 = 0x66;

/// #GP(0) unless the guest may use `width` bytes of ports at `port`.
pub(crate) fn check<C: Cpu>(m: &mut Machine<'_, C>, port: u16, width: Width) -> Done {
    let iopl = (m.rflags & Rflags::IOPL.bits()) >> 12;
    if m.mode == Mode::Real || m.mode != Mode::Virtual8086 && u64::from(m.cpu.cpl()) <= iopl {
        return Ok(());
    }
    let tss = m.cpu.segment(SegmentRegister::Tr);
    let limit = u64::from(tss.limit);
    // Types 9 and 11: a 32-bit (in long mode 64-bit) TSS; a 16-bit one has no map.
    if tss.attributes.unusable() || tss.attributes.kind() & 0xd != 9 || limit < IO_MAP_BASE + 1 {
        return Err(Exception::GP.into());
    }
    let map = read_16(m, tss.base.wrapping_add(IO_MAP_BASE))?;
    // Two bytes are read, since the bits may lie in both; so the map ends with a byte of ones.
    let at = u64::from(map) + u64::from(port / 8);
    if at + 1 > limit {
        return Err(Exception::GP.into());
    }
    let denied = read_16(m, tss.base.wrapping_add(at))? >> (port % 8);
    let wanted = (1u16 << width.bytes()) - 1;
    if denied & wanted != 0 { Err(Exception::GP.into()) } else { Ok(()) }
}

/// Two bytes by a system access; they may lie in two pages.
fn read_16<C: Cpu>(m: &mut Machine<'_, C>, linear: u64) -> Done<u16> {
    let mut value = 0;
    for i in 0..2 {
        let mut at = linear.wrapping_add(i);
        if m.mode != Mode::Long {
            at &= 0xffff_ffff;
        }
        let gpa = m.cpu.translate(Gva(at), Access::Read, Privilege::System)?;
        value |= (m.cpu.read(gpa, Width::Byte)? as u16) << (8 * i);
    }
    Ok(value)
}

pub(crate) fn input<C: Cpu>(m: &mut Machine<'_, C>, port: u16, width: Width) -> Done {
    check(m, port, width)?;
    let value = m.cpu.port_in(port, width)?;
    Register::new(Gpr::Rax, width).set(m.cpu.gprs_mut(), u64::from(value));
    Ok(())
}

pub(crate) fn output<C: Cpu>(m: &mut Machine<'_, C>, port: u16, width: Width) -> Done {
    check(m, port, width)?;
    let value = Register::new(Gpr::Rax, width).get(m.cpu.gprs());
    Ok(m.cpu.port_out(port, width, value as u32)?)
}
