//! From a VMCB to a question: functions over the raw fields.
//!
//! Manual: AMD64 Architecture Programmer's Manual vol. 2, 24593 rev. 3.42, 15.7 to 15.14 and appendix C.

use super::vmcb::{Control, exit_code};
use crate::{event::Event, vcpu::Question};
use x86defs::{
    Access, ControlRegister, EntryFailure, Exception, Exit, Gpa, Gpr, Gprs, Owner, TaskSwitch, TaskSwitchReason, Width, vector,
};

/// Where the exiting instruction ends; for MOV to or from CR also the register that it names in ModRM.rm, and whether it is 64-bit code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    pub next_rip: u64,
    pub operand: Gpr,
    pub long: bool,
}

/// Where an instruction that switches tasks begins and ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    pub rip: u64,
    pub next_rip: u64,
    /// The CPU says where it ends: it is certain that an instruction has made the exit, and not an event.
    pub by_instruction: bool,
}

/// What decoding needs of a vCPU.
pub trait Source {
    fn control(&self) -> &Control;
    fn gprs(&self) -> &Gprs;
    /// What the answer will need is noted here.
    fn question(&mut self) -> &mut Question;
    /// The extent of the instruction that has made the exit `code`. Asked only for exits whose answer completes it.
    fn extent(&mut self, code: u32) -> Extent;
    /// Where it is, if the instruction at RIP is a CALL, JMP, IRET or INT n that switches tasks.
    fn transfer(&mut self) -> Transfer;
    /// Called for exits that are not the guest's question but the host's own business: an interrupt, an NMI, a machine check.
    fn serve(&mut self, code: u32) -> Exit;
}

/// Turns the exit that the CPU has written to the VMCB into a question, and has it answered.
#[inline(always)]
pub fn decode<V: Source, O: Owner<V>>(owner: &mut O) -> O::Outcome {
    let vcpu = owner.vcpu();
    let code = vcpu.control().exit_code as u32;
    match code {
        exit_code::CPUID => {
            measure_at(vcpu, code);
            let gprs = vcpu.gprs();
            let (leaf, subleaf) = (gprs.get32(Gpr::Rax), gprs.get32(Gpr::Rcx));
            owner.answer(Exit::Cpuid { leaf, subleaf })
        }
        exit_code::IOIO => io(owner),
        exit_code::MSR => {
            measure_at(vcpu, code);
            let gprs = vcpu.gprs();
            let index = gprs.get32(Gpr::Rcx);
            if vcpu.control().exit_info1 & 1 == 0 {
                owner.answer(Exit::MsrRead { index })
            } else {
                let value = gprs.edx_eax();
                owner.answer(Exit::MsrWrite { index, value })
            }
        }
        exit_code::NPF => {
            let control = vcpu.control();
            let (gpa, info) = (Gpa(control.exit_info2), control.exit_info1);
            if info & NPF_TABLE != 0 {
                return tell(owner, Exit::TableFault { gpa });
            }
            owner.answer(Exit::Stage2Fault { gpa, access: npf_access(info) })
        }
        exit_code::HLT => {
            measure_at(vcpu, code);
            owner.answer(Exit::Hlt)
        }
        exit_code::VMMCALL => {
            measure_at(vcpu, code);
            owner.answer(Exit::Hypercall)
        }
        exit_code::VINTR => owner.answer(Exit::InterruptWindow),
        _ => seldom(owner, code),
    }
}

#[inline(always)]
fn measure_at<V: Source>(vcpu: &mut V, code: u32) {
    vcpu.question().next_rip = vcpu.extent(code).next_rip;
}

/// Has a question answered that comes seldom enough to be kept out of the way of the others.
#[inline(never)]
pub fn tell<V, O: Owner<V>>(owner: &mut O, exit: Exit) -> O::Outcome {
    owner.answer(exit)
}

#[inline(never)]
fn seldom<V: Source, O: Owner<V>>(owner: &mut O, code: u32) -> O::Outcome {
    let exit = seldom_question(owner.vcpu(), code);
    tell(owner, exit)
}

fn seldom_question<V: Source>(vcpu: &mut V, code: u32) -> Exit {
    let control = vcpu.control();
    match code {
        exit_code::INTR..=exit_code::INIT | exit_code::IRET | exit_code::EXCEPTION_MC => return vcpu.serve(code),
        exit_code::EXCEPTION..=exit_code::EXCEPTION_LAST => return Exit::Exception(exception(code, control)),
        exit_code::SHUTDOWN => return Exit::TripleFault,
        exit_code::TASK_SWITCH => return Exit::TaskSwitch(task_switch(vcpu)),
        exit_code::INVLPGA
        | exit_code::VMRUN
        | exit_code::VMLOAD..=exit_code::SKINIT
        | exit_code::MONITOR..=exit_code::MWAIT_ARMED
        | exit_code::RDPRU => return Exit::UndefinedInstruction,
        exit_code::INVALID => {
            return Exit::EntryFailed(EntryFailure { code: control.exit_code, info: control.exit_info1 });
        }
        exit_code::CR0_READ..=exit_code::CR15_WRITE => {
            let extent = vcpu.extent(code);
            return control_access(code, vcpu, extent);
        }
        _ => {}
    }
    let unknown = Exit::Unknown { code: control.exit_code, info: control.exit_info1 };
    let gprs = vcpu.gprs();
    let exit = match code {
        exit_code::PAUSE => Exit::Pause,
        exit_code::RDTSC | exit_code::RDTSCP => Exit::Rdtsc,
        exit_code::INVD | exit_code::WBINVD => Exit::CacheFlush,
        exit_code::XSETBV => Exit::Xsetbv { index: gprs.get32(Gpr::Rcx), value: gprs.edx_eax() },
        exit_code::RDPMC => Exit::Rdpmc { index: gprs.get32(Gpr::Rcx) },
        _ => return unknown,
    };
    measure_at(vcpu, code);
    exit
}

/// IN, OUT, INS and OUTS (15.10.2). EXITINFO2 is the RIP after the instruction on every CPU.
#[inline(always)]
fn io<V: Source, O: Owner<V>>(owner: &mut O) -> O::Outcome {
    const READ: u64 = 1 << 0;
    const STRING: u64 = 1 << 2;
    let vcpu = owner.vcpu();
    let info = vcpu.control().exit_info1;
    let next_rip = vcpu.control().exit_info2;
    let port = (info >> 16) as u16;
    // SZ8, SZ16 and SZ32 are bits 4 to 6, one of them set. A table, because it comes to one load.
    const WIDTHS: [Width; 8] = {
        use Width::{Byte, Dword, Word};
        [Dword, Byte, Word, Dword, Dword, Dword, Dword, Dword]
    };
    let width = WIDTHS[(info >> 4 & 7) as usize];
    let question = vcpu.question();
    question.next_rip = next_rip;
    question.width = width;
    if info & STRING != 0 {
        tell(owner, Exit::PortString { port, width, write: info & READ == 0 })
    } else if info & READ != 0 {
        owner.answer(Exit::PortRead { port, width })
    } else {
        let value = vcpu.gprs().get32(Gpr::Rax) & width.mask() as u32;
        owner.answer(Exit::PortWrite { port, width, value })
    }
}

/// Of the error code of a nested page fault (15.25.6): it came while the guest's own tables were walked.
const NPF_TABLE: u64 = 1 << 33;

/// The error code of a nested page fault (15.25.6).
const fn npf_access(info: u64) -> Access {
    const WRITE: u64 = 1 << 1;
    const FETCH: u64 = 1 << 4;
    if info & FETCH != 0 {
        Access::Execute
    } else if info & WRITE != 0 {
        Access::Write
    } else {
        Access::Read
    }
}

fn control_access<V: Source>(code: u32, vcpu: &mut V, extent: Extent) -> Exit {
    let register = match code & 0xf {
        0 => ControlRegister::Cr0,
        3 => ControlRegister::Cr3,
        4 => ControlRegister::Cr4,
        8 => ControlRegister::Cr8,
        // Not intercepted: the CPU raises #UD by itself.
        _ => return Exit::Unknown { code: u64::from(code), info: 0 },
    };
    let question = vcpu.question();
    question.next_rip = extent.next_rip;
    question.control = register;
    question.gpr = extent.operand;
    question.long = extent.long;
    if code < exit_code::CR0_WRITE {
        Exit::ControlRead { register }
    } else {
        let value = vcpu.gprs()[extent.operand];
        Exit::ControlWrite { register, value: if extent.long { value } else { value & 0xffff_ffff } }
    }
}

/// An intercepted exception (15.12). The error code, where there is one, is in EXITINFO1; for #PF, EXITINFO2 is the address.
const fn exception(code: u32, control: &Control) -> Exception {
    let vector = (code - exit_code::EXCEPTION) as u8;
    let has_code =
        matches!(vector, vector::DF | vector::TS | vector::NP | vector::SS | vector::GP | vector::PF | vector::AC | vector::CP);
    Exception {
        vector,
        error_code: if has_code { Some(control.exit_info1 as u32) } else { None },
        cr2: if vector == vector::PF { Some(control.exit_info2) } else { None },
    }
}

/// A task switch (15.14.1).
fn task_switch<V: Source>(vcpu: &mut V) -> TaskSwitch {
    const IRET: u64 = 1 << 36;
    const JMP: u64 = 1 << 38;
    const HAS_ERROR_CODE: u64 = 1 << 44;
    const RESUME_FLAG: u64 = 1 << 48;
    let transfer = vcpu.transfer();
    let control = vcpu.control();
    let info = control.exit_info2;
    let reason = if info & IRET != 0 {
        TaskSwitchReason::Iret
    } else if info & JMP != 0 {
        TaskSwitchReason::Jmp
    } else if !int_info(control).is_none() {
        TaskSwitchReason::Gate {
            error_code: (info & HAS_ERROR_CODE != 0).then_some(info as u32),
            external: !transfer.by_instruction && !int_info(control).is_software(),
        }
    } else {
        TaskSwitchReason::Call
    };
    let rip = match reason {
        TaskSwitchReason::Gate { external: true, .. } => transfer.rip,
        _ => transfer.next_rip,
    };
    TaskSwitch { selector: control.exit_info1 as u16, reason, rip, resume_flag: info & RESUME_FLAG != 0 }
}

/// The event whose delivery the exit has cut short (15.7.2), if any.
#[inline(always)]
pub fn int_info(control: &Control) -> Event {
    Event::from_hardware(control.exit_int_info as u32, (control.exit_int_info >> 32) as u32)
}

/// The length in bytes and the ModRM.rm register of the instruction in `bytes` that has made the exit `code`; `None` if `bytes` are not such an
/// instruction (the guest has changed them since) or too few. `long`: 64-bit code, where 40H to 4FH are REX prefixes.
#[must_use]
pub fn measure(code: u32, bytes: &[u8], long: bool) -> Option<(u8, Gpr)> {
    let mut rest = bytes.iter().copied().take(15).enumerate();
    let mut rex = 0;
    let (at, opcode) = loop {
        let (at, byte) = rest.next()?;
        match byte {
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 => rex = 0,
            0x40..=0x4f if long => rex = byte,
            _ => break (at, byte),
        }
    };
    let mut tail = [0; 2];
    let mut known = 0;
    for (to, (_, byte)) in tail.iter_mut().zip(rest) {
        *to = byte;
        known += 1;
    }
    let (length, modrm) = match (opcode, code) {
        (0xf4, exit_code::HLT) | (0x90, exit_code::PAUSE) => (1, None),
        (0x0f, _) => match (tail[0], code) {
            (0xa2, exit_code::CPUID)
            | (0x30 | 0x32, exit_code::MSR)
            | (0x31, exit_code::RDTSC)
            | (0x33, exit_code::RDPMC)
            | (0x08, exit_code::INVD)
            | (0x09, exit_code::WBINVD) => (2, None),
            (0x01, _) => match (tail[1], code) {
                (0xd9, exit_code::VMMCALL) | (0xd1, exit_code::XSETBV) => (3, None),
                // QEMU 7.2 reports RDTSCP as RDTSC.
                (0xf9, exit_code::RDTSCP | exit_code::RDTSC) => (3, None),
                _ => return None,
            },
            (0x20, exit_code::CR0_READ..=exit_code::CR15_READ) | (0x22, exit_code::CR0_WRITE..=exit_code::CR15_WRITE) => {
                (3, Some(tail[1]))
            }
            _ => return None,
        },
        _ => return None,
    };
    if known + 1 < length {
        return None;
    }
    // MOV to CR ignores ModRM.mod; REX.B extends rm.
    let operand = modrm.map_or(Gpr::Rax, |m| Gpr::from_index(m & 7 | (rex & 1) << 3));
    Some((at as u8 + length as u8, operand))
}

/// The length in bytes of the far CALL or JMP, IRET, INT n, INT1, INT3 or INTO in `bytes`; `None` if they are no such instruction or too few. `big`: 32-bit
/// code.
#[must_use]
pub fn measure_transfer(bytes: &[u8], big: bool) -> Option<u8> {
    let (mut operand_32, mut address_32) = (big, big);
    let mut rest = bytes.iter().copied().take(15).enumerate();
    let (at, opcode) = loop {
        let (at, byte) = rest.next()?;
        match byte {
            0x66 => operand_32 = !big,
            0x67 => address_32 = !big,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0xf0 | 0xf2 | 0xf3 => {}
            _ => break (at, byte),
        }
    };
    let length = match opcode {
        0x9a | 0xea if operand_32 => 7,
        0x9a | 0xea => 5,
        0xcc | 0xce | 0xcf | 0xf1 => 1,
        0xcd => 2,
        0xff => {
            let (_, modrm) = rest.next()?;
            let (mode, operation, rm) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
            if mode == 3 || !matches!(operation, 3 | 5) {
                return None;
            }
            match (address_32, mode, rm) {
                (false, 0, 6) | (false, 2, _) => 4,
                (false, 1, _) => 3,
                (false, ..) => 2,
                (true, 0, 5) => 6,
                (true, _, 4) => {
                    let (_, sib) = rest.next()?;
                    3 + match mode {
                        0 if sib & 7 != 5 => 0,
                        1 => 1,
                        _ => 4,
                    }
                }
                (true, 0, _) => 2,
                (true, 1, _) => 3,
                (true, ..) => 6,
            }
        }
        _ => return None,
    };
    let end = at + length;
    (end <= bytes.len().min(15)).then_some(end as u8)
}

/// What [`measure`] would find if the instruction had no prefixes: for when it cannot be read.
#[must_use]
pub const fn shortest(code: u32) -> u8 {
    match code {
        exit_code::HLT => 1,
        exit_code::VMMCALL | exit_code::RDTSCP | exit_code::XSETBV | exit_code::CR0_READ..=exit_code::CR15_WRITE => 3,
        _ => 2,
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
