//! Loading data and stack segment registers (SDM vol. 3A, 3.4 and 6.5 to 6.7; vol. 2B, MOV).

use crate::{
    Cpu, Mode, Privilege,
    machine::{Done, Machine},
};
use x86defs::{Access, Exception, Gpa, Gva, PAGE_SIZE, Segment, SegmentAttributes, SegmentRegister, Width, vector};

/// A segment register's new content. Made by `prepare`, which checks all; committed by `Cpu::set_segment`.
pub(crate) fn prepare<C: Cpu>(m: &mut Machine<'_, C>, register: SegmentRegister, selector: u16) -> Done<Segment> {
    match m.mode {
        // Limit and attributes stay as they are: "unreal mode" depends on it.
        Mode::Real => Ok(Segment { selector, base: u64::from(selector) << 4, ..m.cpu.segment(register) }),
        Mode::Virtual8086 => Ok(Segment {
            selector,
            base: u64::from(selector) << 4,
            limit: 0xffff,
            // Present, DPL 3, writable accessed data.
            attributes: SegmentAttributes(0xf3),
        }),
        Mode::Protected | Mode::Long => prepare_protected(m, register, selector),
    }
}

fn prepare_protected<C: Cpu>(m: &mut Machine<'_, C>, register: SegmentRegister, selector: u16) -> Done<Segment> {
    let stack = register == SegmentRegister::Ss;
    let cpl = m.cpu.cpl();
    let rpl = (selector & 3) as u8;
    let error = u32::from(selector & 0xfffc);
    let gp = Exception::gp(error);
    if error == 0 {
        if stack && !(m.mode == Mode::Long && cpl != 3 && rpl == cpl) {
            return Err(Exception::GP.into());
        }
        return Ok(Segment { selector, attributes: SegmentAttributes::UNUSABLE, limit: 0, base: 0 });
    }

    let (base, limit) = if selector & 4 == 0 {
        let gdtr = m.cpu.gdtr();
        (gdtr.base, u32::from(gdtr.limit))
    } else {
        let ldtr = m.cpu.segment(SegmentRegister::Ldtr);
        if ldtr.attributes.unusable() || !ldtr.attributes.present() {
            return Err(gp.into());
        }
        (ldtr.base, ldtr.limit)
    };
    if u32::from(selector | 7) > limit {
        return Err(gp.into());
    }
    let at = base.wrapping_add(u64::from(selector & 0xfff8));
    let low = read(m, at)?;
    let high = read(m, at.wrapping_add(4))?;

    let attributes = SegmentAttributes((high >> 8 & 0xff | high >> 12 & 0xf00) as u16);
    let (kind, dpl) = (attributes.kind(), attributes.dpl());
    let (code, writable_or_readable) = (kind & 8 != 0, kind & 2 != 0);
    let conforming = code && kind & 4 != 0;
    let allowed = attributes.is_code_or_data()
        && if stack {
            rpl == cpl && dpl == cpl && !code && writable_or_readable
        } else {
            (!code || writable_or_readable) && (conforming || rpl <= dpl && cpl <= dpl)
        };
    if !allowed {
        return Err(gp.into());
    }
    if !attributes.present() {
        let vector = if stack { vector::SS } else { vector::NP };
        return Err(Exception { vector, error_code: Some(error), cr2: None }.into());
    }
    let mut attributes = attributes;
    if kind & 1 == 0 {
        // The accessed bit. Another vCPU that changes the descriptor at the same time wins: it will be set at the next load.
        let gpa = translate(m, at.wrapping_add(5), Access::Write)?;
        let old = u64::from(high >> 8 & 0xff);
        m.cpu.compare_exchange(gpa, Width::Byte, old, old | 1)?;
        attributes.0 |= 1;
    }
    let raw_limit = low & 0xffff | high & 0xf_0000;
    Ok(Segment {
        selector,
        attributes,
        limit: if attributes.granular() { raw_limit << 12 | 0xfff } else { raw_limit },
        base: u64::from(low >> 16 | (high & 0xff) << 16 | high & 0xff00_0000),
    })
}

fn translate<C: Cpu>(m: &mut Machine<'_, C>, linear: u64, access: Access) -> Done<Gpa> {
    let linear = if m.mode == Mode::Long { linear } else { linear & 0xffff_ffff };
    Ok(m.cpu.translate(Gva(linear), access, Privilege::System)?)
}

/// Four bytes by a system access.
fn read<C: Cpu>(m: &mut Machine<'_, C>, linear: u64) -> Done<u32> {
    if linear % PAGE_SIZE <= PAGE_SIZE - 4 {
        let gpa = translate(m, linear, Access::Read)?;
        return Ok(m.cpu.read(gpa, Width::Dword)? as u32);
    }
    let mut value = 0;
    for i in 0..4 {
        let gpa = translate(m, linear.wrapping_add(i), Access::Read)?;
        value |= (m.cpu.read(gpa, Width::Byte)? as u32) << (8 * i);
    }
    Ok(value)
}
