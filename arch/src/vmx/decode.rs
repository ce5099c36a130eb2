//! Turns an exit's raw fields into the question that it asks. Pure: the fields come from whoever calls, the VMCS or a test.
//!
//! Manual: see [`super::spec`]. Exit qualifications: 29.2.1; vectored events: 29.2.2 to 29.2.4.

use super::spec::{guest, interruption, reason, ro};
use crate::event::Event;
use x86defs::{
    Access, ControlRegister, Cr0, EntryFailure, Exception, Exit, Gpa, Gpr, LOCAL_APIC, Owner, Rflags, TaskSwitch,
    TaskSwitchReason, Width, vector,
};

/// What decoding needs to know. Each field is read only if the exit reason defines it, because a nested VMREAD is an exit itself.
pub trait Fields {
    /// A read-only field of the VMCS, or RIP or RFLAGS.
    fn field(&self, field: u32) -> u64;
    fn gpr(&self, register: Gpr) -> u64;
    /// CR0 as the guest sees it.
    fn cr0(&self) -> u64;
    /// The guest executes 64-bit code: operands of MOV to CR are 64 bits wide.
    fn long_code(&self) -> bool;

    /// Called before decoding where the host has something to serve, or where the delivery of an event may have been cut short.
    fn serve(&mut self, reason: u32);
    /// The answer to this port read will be so wide.
    fn remember_width(&mut self, width: Width);
    /// The answer to an access of a control register will need its operands.
    fn remember_control(&mut self, qualification: u64);
}

/// Decodes the exit with exit-reason field `raw`, and has it answered.
#[inline(always)]
pub fn decode<F: Fields, O: Owner<F>>(raw: u32, owner: &mut O) -> O::Outcome {
    // 26.9.1: the basic reason, and whether the entry failed. What else is there (enclave mode) makes no difference.
    let raw = raw & (reason::ENTRY_FAILURE | 0xffff);
    let f = owner.vcpu();
    match raw {
        reason::CPUID => {
            let (leaf, subleaf) = (f.gpr(Gpr::Rax) as u32, f.gpr(Gpr::Rcx) as u32);
            owner.answer(Exit::Cpuid { leaf, subleaf })
        }
        reason::IO => io(owner),
        reason::RDMSR => {
            let index = f.gpr(Gpr::Rcx) as u32;
            owner.answer(Exit::MsrRead { index })
        }
        reason::WRMSR => {
            let (index, value) = (f.gpr(Gpr::Rcx) as u32, edx_eax(f));
            owner.answer(Exit::MsrWrite { index, value })
        }
        reason::EPT_VIOLATION => {
            let gpa = Gpa(f.field(ro::GUEST_PHYSICAL_ADDR_FULL));
            let qualification = f.field(ro::EXIT_QUALIFICATION);
            // Neither is usual: an event whose delivery the exit has cut short, or an IRET that has unblocked NMIs.
            if f.field(ro::IDT_VECTORING_INFO) as u32 & interruption::VALID != 0
                || qualification as u32 & interruption::NMI_UNBLOCKING != 0
            {
                f.serve(reason::EPT_VIOLATION);
            }
            if qualification & (EPT_LINEAR | EPT_FINAL) == EPT_LINEAR {
                return tell(owner, Exit::TableFault { gpa });
            }
            owner.answer(Exit::Stage2Fault { gpa, access: ept_access(qualification) })
        }
        reason::APIC_ACCESS => {
            let qualification = f.field(ro::EXIT_QUALIFICATION);
            if f.field(ro::IDT_VECTORING_INFO) as u32 & interruption::VALID != 0 {
                f.serve(reason::APIC_ACCESS);
            }
            match apic_access(qualification) {
                (gpa, Some(access)) => owner.answer(Exit::Stage2Fault { gpa, access }),
                (gpa, None) => tell(owner, Exit::TableFault { gpa }),
            }
        }
        reason::HLT => owner.answer(Exit::Hlt),
        reason::VMCALL => owner.answer(Exit::Hypercall),
        _ => seldom(raw, owner),
    }
}

/// Has a question answered that comes seldom enough to be kept out of the way of the others.
#[inline(never)]
pub fn tell<F, O: Owner<F>>(owner: &mut O, exit: Exit) -> O::Outcome {
    owner.answer(exit)
}

#[inline(never)]
fn seldom<F: Fields, O: Owner<F>>(raw: u32, owner: &mut O) -> O::Outcome {
    let exit = seldom_question(raw, owner.vcpu());
    tell(owner, exit)
}

fn seldom_question<F: Fields>(raw: u32, f: &mut F) -> Exit {
    match raw {
        reason::EXTERNAL_INTERRUPT => {
            f.serve(raw);
            Exit::HostInterrupt
        }
        reason::PREEMPTION_TIMER => {
            f.serve(raw);
            Exit::TurnOver
        }
        reason::INTERRUPT_WINDOW => {
            f.serve(reason::INTERRUPT_WINDOW);
            Exit::InterruptWindow
        }
        reason::NMI_WINDOW => {
            f.serve(reason::NMI_WINDOW);
            Exit::NmiWindow
        }
        reason::PAUSE => Exit::Pause,
        // 31.1.4 and 31.4.3.3: both come after the instruction.
        reason::VIRTUALISED_EOI => Exit::VirtualEoi { vector: f.field(ro::EXIT_QUALIFICATION) as u8 },
        reason::APIC_WRITE => Exit::VirtualApicWrite { offset: f.field(ro::EXIT_QUALIFICATION) as u32 & 0xfff },
        reason::CR_ACCESS => cr_access(f.field(ro::EXIT_QUALIFICATION), f),
        reason::EXCEPTION_OR_NMI => {
            f.serve(reason::EXCEPTION_OR_NMI);
            exception(f)
        }
        reason::TRIPLE_FAULT => Exit::TripleFault,
        reason::TASK_SWITCH => {
            f.serve(reason::TASK_SWITCH);
            task_switch(f)
        }
        reason::INVD | reason::WBINVD => Exit::CacheFlush,
        reason::RDPMC => Exit::Rdpmc { index: f.gpr(Gpr::Rcx) as u32 },
        reason::RDTSC | reason::RDTSCP => Exit::Rdtsc,
        reason::XSETBV => Exit::Xsetbv { index: f.gpr(Gpr::Rcx) as u32, value: edx_eax(f) },
        // 27.1.2: what a guest without SMX, VMX, MONITOR, SGX, key locker or WAITPKG may not execute.
        reason::GETSEC
        | reason::VMCLEAR..=reason::VMXON
        | reason::MWAIT
        | reason::MONITOR
        | reason::RSM
        | reason::INVEPT
        | reason::INVVPID
        | reason::VMFUNC
        | reason::ENCLS
        | reason::UMWAIT
        | reason::TPAUSE
        | reason::LOADIWKEY => Exit::UndefinedInstruction,
        // A misconfigured entry is never on purpose here, and its qualification says nothing: report it, with the address.
        reason::EPT_MISCONFIGURATION => {
            f.serve(reason::EPT_MISCONFIGURATION);
            Exit::Unknown { code: u64::from(raw), info: f.field(ro::GUEST_PHYSICAL_ADDR_FULL) }
        }
        // 28.8: reasons 33, 34 and 41 with the flag for a failed entry.
        _ if raw & reason::ENTRY_FAILURE != 0 => {
            let basic = u32::from(raw as u16);
            if basic == reason::ENTRY_MACHINE_CHECK {
                f.serve(basic);
            }
            Exit::EntryFailed(EntryFailure { code: u64::from(basic), info: f.field(ro::EXIT_QUALIFICATION) })
        }
        // Not asked for: INIT and SIPI, INVLPG, MOV DR, INVPCID, XSAVES ...
        _ => Exit::Unknown { code: u64::from(raw), info: f.field(ro::EXIT_QUALIFICATION) },
    }
}

fn edx_eax<F: Fields>(f: &F) -> u64 {
    (f.gpr(Gpr::Rdx) << 32) | (f.gpr(Gpr::Rax) & 0xffff_ffff)
}

/// Exit qualification (29.2.1): size in bits 2:0, direction in 3, string in 4, port in 31:16.
#[inline(always)]
fn io<F: Fields, O: Owner<F>>(owner: &mut O) -> O::Outcome {
    let f = owner.vcpu();
    let qualification = f.field(ro::EXIT_QUALIFICATION);
    let width = io_width(qualification);
    let port = (qualification >> 16) as u16;
    let read = qualification & 1 << 3 != 0;
    if qualification & 1 << 4 != 0 {
        tell(owner, Exit::PortString { port, width, write: !read })
    } else if read {
        f.remember_width(width);
        owner.answer(Exit::PortRead { port, width })
    } else {
        let value = (f.gpr(Gpr::Rax) & width.mask()) as u32;
        owner.answer(Exit::PortWrite { port, width, value })
    }
}

#[inline(always)]
const fn io_width(qualification: u64) -> Width {
    // Of the values, 0, 1 and 3 are defined. A table, because it comes to one load.
    const WIDTHS: [Width; 8] = {
        use Width::{Byte, Dword, Word};
        [Byte, Word, Dword, Dword, Dword, Dword, Dword, Dword]
    };
    WIDTHS[(qualification & 7) as usize]
}

/// Of an EPT violation's exit qualification: there is a linear address, and the access was to what it translates to, not to a table on the way.
const EPT_LINEAR: u64 = 1 << 7;
const EPT_FINAL: u64 = 1 << 8;

/// Exit qualification (table 29-6): offset in bits 11:0, kind of access in 15:12. None if it was to a table on the way.
const fn apic_access(qualification: u64) -> (Gpa, Option<Access>) {
    let gpa = Gpa(LOCAL_APIC.0 | qualification & 0xfff);
    let access = match qualification >> 12 & 0xf {
        0 => Access::Read,
        // In an instruction, or in the delivery of an event.
        1 | 3 => Access::Write,
        2 => Access::Execute,
        _ => return (gpa, None),
    };
    (gpa, Some(access))
}

/// Exit qualification (29.2.1): bit 0 read, 1 write, 2 fetch. A read-modify-write sets both of the first two, and needs the right to write.
const fn ept_access(qualification: u64) -> Access {
    if qualification & 2 != 0 {
        Access::Write
    } else if qualification & 4 != 0 {
        Access::Execute
    } else {
        Access::Read
    }
}

/// The general-purpose register of a MOV from or to a control register, from its exit qualification (bits 11:8).
#[inline]
#[must_use]
pub const fn cr_gpr(qualification: u64) -> Gpr {
    Gpr::from_index((qualification >> 8) as u8)
}

/// Exit qualification (29.2.1): register in bits 3:0, kind of access in 5:4, GPR in 11:8, LMSW's operand in 31:16.
#[inline(never)]
fn cr_access<F: Fields>(qualification: u64, f: &mut F) -> Exit {
    f.remember_control(qualification);
    let register = match qualification & 0xf {
        0 => ControlRegister::Cr0,
        3 => ControlRegister::Cr3,
        4 => ControlRegister::Cr4,
        8 => ControlRegister::Cr8,
        _ => return Exit::Unknown { code: u64::from(reason::CR_ACCESS), info: qualification },
    };
    match qualification >> 4 & 3 {
        0 => {
            let raw = f.gpr(cr_gpr(qualification));
            let value = if f.long_code() { raw } else { raw & 0xffff_ffff };
            Exit::ControlWrite { register, value }
        }
        1 => Exit::ControlRead { register },
        2 => Exit::ControlWrite { register: ControlRegister::Cr0, value: f.cr0() & !Cr0::TS.bits() },
        _ => Exit::ControlWrite { register: ControlRegister::Cr0, value: lmsw(f.cr0(), (qualification >> 16) as u16) },
    }
}

/// LMSW loads PE, MP, EM and TS, and cannot clear PE (SDM vol. 2A, LMSW).
const fn lmsw(cr0: u64, operand: u16) -> u64 {
    (cr0 & !0xe) | (operand as u64 & 0xf)
}

/// An exception or NMI that ended the entry (26.9.2). An NMI is the host's.
#[inline(never)]
fn exception<F: Fields>(f: &F) -> Exit {
    let info = f.field(ro::VMEXIT_INTERRUPTION_INFO) as u32;
    if interruption::kind(info) == interruption::NMI {
        return Exit::HostNmi;
    }
    let error_code =
        if info & interruption::ERROR_CODE_VALID != 0 { Some(f.field(ro::VMEXIT_INTERRUPTION_ERR_CODE) as u32) } else { None };
    let number = interruption::vector(info);
    // 29.2.1: a page fault's qualification is its linear address.
    let cr2 = if number == vector::PF { Some(f.field(ro::EXIT_QUALIFICATION)) } else { None };
    Exit::Exception(Exception { vector: number, error_code, cr2 })
}

/// Exit qualification (29.2.1): selector in bits 15:0, cause in 31:30. A task gate's error code comes with the interrupted event. The saved RIP is that
/// of the instruction which has made the switch, or an event's; the saved RF is the old task's already (29.3.3).
#[inline(never)]
fn task_switch<F: Fields>(f: &F) -> Exit {
    let qualification = f.field(ro::EXIT_QUALIFICATION);
    let reason = match qualification >> 30 & 3 {
        0 => TaskSwitchReason::Call,
        1 => TaskSwitchReason::Iret,
        2 => TaskSwitchReason::Jmp,
        _ => {
            let info = f.field(ro::IDT_VECTORING_INFO) as u32;
            let pushes = interruption::VALID | interruption::ERROR_CODE_VALID;
            let error_code = if info & pushes == pushes { Some(f.field(ro::IDT_VECTORING_ERR_CODE) as u32) } else { None };
            TaskSwitchReason::Gate { error_code, external: !Event::from_hardware(info, 0).is_software() }
        }
    };
    let length = match reason {
        TaskSwitchReason::Gate { external: true, .. } => 0,
        _ => f.field(ro::VMEXIT_INSTRUCTION_LEN) & 0xf,
    };
    Exit::TaskSwitch(TaskSwitch {
        selector: qualification as u16,
        reason,
        rip: f.field(guest::RIP).wrapping_add(length) & 0xffff_ffff,
        resume_flag: f.field(guest::RFLAGS) & Rflags::RF.bits() != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};
    use std::{cell::RefCell, collections::BTreeMap, vec::Vec};
    use x86defs::Gprs;

    /// Fields as a table; writes down which ones were read.
    #[derive(Default)]
    struct Fake {
        fields: BTreeMap<u32, u64>,
        gprs: Gprs,
        cr0: u64,
        long: bool,
        reads: RefCell<Vec<u32>>,
        served: Option<u32>,
        width: Option<Width>,
        control: Option<u64>,
    }

    impl Fake {
        fn new(fields: &[(u32, u64)]) -> Self {
            let mut gprs = Gprs::default();
            gprs[Gpr::Rax] = 0x1111_2222_aabb_ccdd;
            gprs[Gpr::Rcx] = 0xffff_ffff_c000_0080;
            gprs[Gpr::Rdx] = 0xdead_beef_0000_0007;
            gprs[Gpr::R9] = 0x9_8000_0031;
            Self { fields: fields.iter().copied().collect(), gprs, cr0: 0x6000_0010, ..Self::default() }
        }
    }

    impl Fields for Fake {
        fn field(&self, field: u32) -> u64 {
            self.reads.borrow_mut().push(field);
            *self.fields.get(&field).unwrap_or_else(|| panic!("read of field {field:#x}"))
        }
        fn gpr(&self, register: Gpr) -> u64 {
            self.gprs[register]
        }
        fn cr0(&self) -> u64 {
            self.cr0
        }
        fn long_code(&self) -> bool {
            self.long
        }
        fn serve(&mut self, reason: u32) {
            self.served = Some(reason);
        }
        fn remember_width(&mut self, width: Width) {
            self.width = Some(width);
        }
        fn remember_control(&mut self, qualification: u64) {
            self.control = Some(qualification);
        }
    }

    impl Owner<Self> for Fake {
        type Outcome = Exit;
        fn vcpu(&mut self) -> &mut Self {
            self
        }
        fn answer(&mut self, exit: Exit) -> Exit {
            exit
        }
    }

    const Q: u32 = ro::EXIT_QUALIFICATION;
    const GPA: u32 = ro::GUEST_PHYSICAL_ADDR_FULL;
    const INFO: u32 = ro::VMEXIT_INTERRUPTION_INFO;
    const VECTORING: u32 = ro::IDT_VECTORING_INFO;
    const LENGTH: u32 = ro::VMEXIT_INSTRUCTION_LEN;
    const RIP: u32 = guest::RIP;
    const FLAGS: u32 = guest::RFLAGS;

    #[test]
    fn every_reason_decodes_and_reads_only_what_it_defines() {
        use Exit::{CacheFlush, HostInterrupt, PortRead, PortString, PortWrite, UndefinedInstruction};
        let cr = |register, value| Exit::ControlWrite { register, value };
        let unknown = |code, info| Exit::Unknown { code, info };
        let failed = |code, info| Exit::EntryFailed(EntryFailure { code, info });
        let fault = |gpa, access| Exit::Stage2Fault { gpa: Gpa(gpa), access };
        let raised = |vector, error_code, cr2| Exit::Exception(Exception { vector, error_code, cr2 });
        let task = |selector, reason, rip| Exit::TaskSwitch(TaskSwitch { selector, reason, rip, resume_flag: rip == 0x1000 });
        let gate = |error_code, external| TaskSwitchReason::Gate { error_code, external };
        // Exit reason, the fields that it defines, the question.
        type Row = (u32, &'static [(u32, u64)], Exit);
        let table: &[Row] = &[
            (10, &[], Exit::Cpuid { leaf: 0xaabb_ccdd, subleaf: 0xc000_0080 }),
            (30, &[(Q, 0x0061_0008)], PortRead { port: 0x61, width: Width::Byte }),
            (30, &[(Q, 0x0cf8_000b)], PortRead { port: 0xcf8, width: Width::Dword }),
            (30, &[(Q, 0x00f4_0000)], PortWrite { port: 0xf4, width: Width::Byte, value: 0xdd }),
            (30, &[(Q, 0xffff_0041)], PortWrite { port: 0xffff, width: Width::Word, value: 0xccdd }),
            (30, &[(Q, 0x0cfc_0003)], PortWrite { port: 0xcfc, width: Width::Dword, value: 0xaabb_ccdd }),
            (30, &[(Q, 0x03f8_0030)], PortString { port: 0x3f8, width: Width::Byte, write: true }),
            (30, &[(Q, 0x01f0_0019)], PortString { port: 0x1f0, width: Width::Word, write: false }),
            (31, &[], Exit::MsrRead { index: 0xc000_0080 }),
            (32, &[], Exit::MsrWrite { index: 0xc000_0080, value: 0x0000_0007_aabb_ccdd }),
            (48, &[(GPA, 0xfee0_0300), (Q, 0x182), (VECTORING, 0)], fault(0xfee0_0300, Access::Write)),
            (48, &[(GPA, 0xfee0_0300), (Q, 0x183), (VECTORING, 0)], fault(0xfee0_0300, Access::Write)),
            (48, &[(GPA, 0xfec0_0000), (Q, 0x181), (VECTORING, 0)], fault(0xfec0_0000, Access::Read)),
            (48, &[(GPA, 0xfec0_0000), (Q, 0x81), (VECTORING, 0)], Exit::TableFault { gpa: Gpa(0xfec0_0000) }),
            (48, &[(GPA, 0xa_0000), (Q, 0x184), (VECTORING, 0)], fault(0xa_0000, Access::Execute)),
            (49, &[(GPA, 0x1234_5000)], unknown(49, 0x1234_5000)),
            (0, &[(INFO, 0x8000_0301)], raised(1, None, None)),
            (0, &[(INFO, 0x8000_0b11), (ro::VMEXIT_INTERRUPTION_ERR_CODE, 0)], raised(17, Some(0), None)),
            (
                0,
                &[(INFO, 0x8000_0b0e), (ro::VMEXIT_INTERRUPTION_ERR_CODE, 6), (Q, 0xffff_8000_dead_b000)],
                raised(14, Some(6), Some(0xffff_8000_dead_b000)),
            ),
            (0, &[(INFO, 0x8000_0202)], Exit::HostNmi),
            (1, &[], HostInterrupt),
            (2, &[], Exit::TripleFault),
            (52, &[], Exit::TurnOver),
            (3, &[(Q, 0)], unknown(3, 0)),
            (4, &[(Q, 0x9a)], unknown(4, 0x9a)),
            (7, &[], Exit::InterruptWindow),
            (8, &[], Exit::NmiWindow),
            (9, &[(Q, 0x28), (LENGTH, 7), (RIP, 0x1000), (FLAGS, 2)], task(0x28, TaskSwitchReason::Call, 0x1007)),
            (9, &[(Q, 0x4000_0028), (LENGTH, 1), (RIP, 0x1000), (FLAGS, 2)], task(0x28, TaskSwitchReason::Iret, 0x1001)),
            (9, &[(Q, 0x8000_0030), (LENGTH, 2), (RIP, 0xffff_ffff), (FLAGS, 2)], task(0x30, TaskSwitchReason::Jmp, 1)),
            (
                9,
                &[(Q, 0xc000_0030), (VECTORING, 0x8000_0b08), (ro::IDT_VECTORING_ERR_CODE, 0), (RIP, 0x1000), (FLAGS, 0x1_0002)],
                task(0x30, gate(Some(0), true), 0x1000),
            ),
            (9, &[(Q, 0xc000_0030), (VECTORING, 0x8000_0020), (RIP, 0x1010), (FLAGS, 2)], task(0x30, gate(None, true), 0x1010)),
            (
                9,
                &[(Q, 0xc000_0030), (VECTORING, 0x8000_0440), (LENGTH, 2), (RIP, 0x1010), (FLAGS, 2)],
                task(0x30, gate(None, false), 0x1012),
            ),
            (12, &[], Exit::Hlt),
            (13, &[], CacheFlush),
            (14, &[(Q, 0x1000)], unknown(14, 0x1000)),
            (15, &[], Exit::Rdpmc { index: 0xc000_0080 }),
            (16, &[], Exit::Rdtsc),
            (51, &[], Exit::Rdtsc),
            (18, &[], Exit::Hypercall),
            (40, &[], Exit::Pause),
            (45, &[(Q, 0x31)], Exit::VirtualEoi { vector: 0x31 }),
            (56, &[(Q, 0x3f0)], Exit::VirtualApicWrite { offset: 0x3f0 }),
            (54, &[], CacheFlush),
            (55, &[], Exit::Xsetbv { index: 0xc000_0080, value: 0x0000_0007_aabb_ccdd }),
            // MOV CR0, R9 in 32-bit code; MOV R9, CR8; MOV CR8, R9; CLTS; LMSW; CR5 does not exist.
            (28, &[(Q, 0x900)], cr(ControlRegister::Cr0, 0x8000_0031)),
            (28, &[(Q, 0x903)], cr(ControlRegister::Cr3, 0x8000_0031)),
            (28, &[(Q, 0x904)], cr(ControlRegister::Cr4, 0x8000_0031)),
            (28, &[(Q, 0x908)], cr(ControlRegister::Cr8, 0x8000_0031)),
            (28, &[(Q, 0x918)], Exit::ControlRead { register: ControlRegister::Cr8 }),
            (28, &[(Q, 0x913)], Exit::ControlRead { register: ControlRegister::Cr3 }),
            (28, &[(Q, 0x20)], cr(ControlRegister::Cr0, 0x6000_0010)),
            (28, &[(Q, 0xfff9_0030)], cr(ControlRegister::Cr0, 0x6000_0019)),
            (28, &[(Q, 0x905)], unknown(28, 0x905)),
            (10 | 1 << 27, &[], Exit::Cpuid { leaf: 0xaabb_ccdd, subleaf: 0xc000_0080 }),
            (33 | 1 << 31, &[(Q, 2)], failed(33, 2)),
            (34 | 1 << 31, &[(Q, 1)], failed(34, 1)),
            (41 | 1 << 31, &[(Q, 0)], failed(41, 0)),
        ];
        for (raw, fields, exit) in table {
            let mut fake = Fake::new(fields);
            assert_eq!(decode(*raw, &mut fake), *exit, "reason {raw:#x}, {fields:x?}");
            assert_eq!(fake.served.is_some(), matches!(raw, 0 | 1 | 7 | 8 | 9 | 44 | 49 | 52 | 0x8000_0029), "reason {raw:#x}");
            assert_eq!(fake.control.is_some(), *raw == 28);
            assert_eq!(fake.width, if let PortRead { width, .. } = exit { Some(*width) } else { None });
            let mut reads = fake.reads.into_inner();
            reads.sort_unstable();
            let mut given: Vec<u32> = fields.iter().map(|f| f.0).collect();
            given.sort_unstable();
            assert_eq!(reads, given, "fields read for reason {raw:#x}");
        }
        for raw in [11, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 36, 39, 50, 53, 59, 60, 67, 68, 69] {
            assert_eq!(decode(raw, &mut Fake::new(&[])), UndefinedInstruction, "reason {raw}");
        }
    }

    #[test]
    fn interrupted_deliveries_are_served() {
        for (qualification, vectoring, served) in [(0x181, 0, false), (0x181, 0x8000_0061, true), (0x1181, 0, true)] {
            let mut fake = Fake::new(&[(GPA, 0xfee0_0300), (Q, qualification), (VECTORING, vectoring)]);
            assert_eq!(decode(48, &mut fake), Exit::Stage2Fault { gpa: Gpa(0xfee0_0300), access: Access::Read });
            assert_eq!(fake.served.is_some(), served);
        }
    }

    #[test]
    fn control_register_operands_are_64_bits_wide_in_64_bit_code() {
        let mut fake = Fake { long: true, ..Fake::new(&[(Q, 0x900)]) };
        assert_eq!(decode(28, &mut fake), Exit::ControlWrite { register: ControlRegister::Cr0, value: 0x9_8000_0031 });
    }

    #[test]
    fn clts_and_lmsw() {
        let mut protected = Fake { cr0: 0x8000_003b, ..Fake::new(&[(Q, 0x20)]) };
        assert_eq!(decode(28, &mut protected), Exit::ControlWrite { register: ControlRegister::Cr0, value: 0x8000_0033 });
        assert_eq!(lmsw(0x8000_0031, 0xffff), 0x8000_003f);
        assert_eq!(lmsw(0x8000_003f, 0), 0x8000_0031, "LMSW clears MP, EM and TS but not PE");
        assert_eq!(lmsw(0x10, 1), 0x11);
    }

    proptest! {
        /// Whatever the CPU (or a nested hypervisor) puts into the fields, decoding ends with an answer, and values fit their widths.
        #[test]
        fn no_input_panics(raw in any::<u32>(), low in 0u32..80, q in any::<u64>(), info in any::<u32>(), long in any::<bool>()) {
            for raw in [raw, low] {
                let info = u64::from(info);
                let fields = [
                    (Q, q), (GPA, q), (INFO, info), (ro::VMEXIT_INTERRUPTION_ERR_CODE, info), (ro::IDT_VECTORING_INFO, info),
                    (ro::IDT_VECTORING_ERR_CODE, info), (LENGTH, info), (RIP, q), (FLAGS, q),
                ];
                let mut fake = Fake { long, ..Fake::new(&fields) };
                if let Exit::PortWrite { width, value, .. } = decode(raw, &mut fake) {
                    assert_eq!(u64::from(value) & !width.mask(), 0);
                }
            }
        }
    }
}
