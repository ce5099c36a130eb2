use super::*;
use crate::svm::vmcb::zeroed;
use alloc::boxed::Box;
use proptest::prelude::{any, proptest};

struct Case {
    code: u64,
    info1: u64,
    info2: u64,
    int_info: u64,
    long: bool,
}

const PLAIN: Case = Case { code: 0, info1: 0, info2: 0, int_info: 0, long: true };

fn gprs() -> Gprs {
    let mut gprs = Gprs::default();
    gprs[Gpr::Rax] = 0x1111_2222_8000_000a;
    gprs[Gpr::Rcx] = 0x3333_4444_c000_0080;
    gprs[Gpr::Rdx] = 0x5555_6666_7777_8888;
    gprs[Gpr::R9] = 0x9_8765_4321;
    gprs
}

/// An exit and what was asked about it.
struct Fake {
    vmcb: Box<crate::svm::vmcb::Vmcb>,
    gprs: Gprs,
    question: Question,
    long: bool,
}

impl Source for Fake {
    fn control(&self) -> &Control {
        &self.vmcb.control
    }
    fn gprs(&self) -> &Gprs {
        &self.gprs
    }
    fn question(&mut self) -> &mut Question {
        &mut self.question
    }
    fn extent(&mut self, _: u32) -> Extent {
        Extent { next_rip: 0x4711, operand: Gpr::R9, long: self.long }
    }
    fn transfer(&mut self) -> Transfer {
        Transfer { rip: 0x4700, next_rip: 0x4711, by_instruction: self.long }
    }
    fn serve(&mut self, _: u32) -> Exit {
        Exit::HostInterrupt
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

fn run(case: Case) -> (Exit, Question) {
    let mut vmcb = zeroed();
    vmcb.control.exit_code = case.code;
    vmcb.control.exit_info1 = case.info1;
    vmcb.control.exit_info2 = case.info2;
    vmcb.control.exit_int_info = case.int_info;
    let mut fake = Fake { vmcb, gprs: gprs(), question: Question::default(), long: case.long };
    (decode(&mut fake), fake.question)
}

#[test]
fn the_hosts_own_business_is_no_question() {
    for code in [0x60, 0x61, 0x62, 0x63, 0x52, 0x74] {
        assert_eq!(run(Case { code, ..PLAIN }).0, Exit::HostInterrupt, "{code:#x}");
    }
}

#[test]
fn instructions() {
    let msr = 0xc000_0080;
    let value = 0x7777_8888_8000_000a;
    for (code, info1, expected) in [
        (0x72, 0, Exit::Cpuid { leaf: 0x8000_000a, subleaf: msr }),
        (0x7c, 0, Exit::MsrRead { index: msr }),
        (0x7c, 1, Exit::MsrWrite { index: msr, value }),
        (0x78, 0, Exit::Hlt),
        (0x77, 0, Exit::Pause),
        (0x81, 0, Exit::Hypercall),
        (0x6e, 0, Exit::Rdtsc),
        (0x87, 0, Exit::Rdtsc),
        (0x76, 0, Exit::CacheFlush),
        (0x89, 0, Exit::CacheFlush),
        (0x8d, 0, Exit::Xsetbv { index: msr, value }),
        (0x6f, 0, Exit::Rdpmc { index: msr }),
        (0x18, 0, Exit::ControlWrite { register: ControlRegister::Cr8, value: 0x9_8765_4321 }),
        (0x08, 0, Exit::ControlRead { register: ControlRegister::Cr8 }),
        (0x14, 0, Exit::ControlWrite { register: ControlRegister::Cr4, value: 0x9_8765_4321 }),
    ] {
        let (exit, question) = run(Case { code, info1, ..PLAIN });
        assert_eq!(exit, expected, "{code:#x}");
        assert_eq!(question.next_rip, 0x4711, "{code:#x}");
    }
    let (exit, question) = run(Case { code: 0x14, long: false, ..PLAIN });
    assert_eq!(exit, Exit::ControlWrite { register: ControlRegister::Cr4, value: 0x8765_4321 }, "32 bits outside 64-bit mode");
    assert_eq!((question.control, question.gpr), (ControlRegister::Cr4, Gpr::R9));
}

#[test]
fn ports() {
    for (info1, expected) in [
        (0x0061_0011, Exit::PortRead { port: 0x61, width: Width::Byte }),
        (0x0cf8_0040, Exit::PortWrite { port: 0xcf8, width: Width::Dword, value: 0x8000_000a }),
        (0xffff_0020, Exit::PortWrite { port: 0xffff, width: Width::Word, value: 0x000a }),
        (0x0080_0010, Exit::PortWrite { port: 0x80, width: Width::Byte, value: 0x0a }),
        (0x03f8_009c, Exit::PortString { port: 0x3f8, width: Width::Byte, write: true }),
        (0x01f0_00a5, Exit::PortString { port: 0x1f0, width: Width::Word, write: false }),
    ] {
        let (exit, question) = run(Case { code: 0x7b, info1, info2: 0xabc, ..PLAIN });
        assert_eq!(exit, expected, "{info1:#x}");
        assert_eq!(question.next_rip, 0xabc);
    }
}

#[test]
fn faults_and_the_rest() {
    let gpa = Gpa(0xfee0_0080);
    let task = |reason, rip, resume_flag| Exit::TaskSwitch(TaskSwitch { selector: 0x28, reason, rip, resume_flag });
    let gate = |error_code, external| TaskSwitchReason::Gate { error_code, external };
    for (code, info1, info2, int_info, expected) in [
        (0x400, 0x1_0000_0004, gpa.0, 0, Exit::Stage2Fault { gpa, access: Access::Read }),
        (0x400, 0x1_0000_0006, gpa.0, 0, Exit::Stage2Fault { gpa, access: Access::Write }),
        (0x400, 0x2_0000_0006, gpa.0, 0, Exit::TableFault { gpa }),
        (0x400, 0x1_0000_0014, gpa.0, 0, Exit::Stage2Fault { gpa, access: Access::Execute }),
        (0x41, 0, 0, 0, Exit::Exception(Exception::DB)),
        (0x51, 0, 0, 0, Exit::Exception(Exception::ac())),
        (0x4e, 7, 0x1000, 0, Exit::Exception(Exception::pf(0x1000, 7))),
        (0x64, 0, 0, 0, Exit::InterruptWindow),
        (0x7f, 0, 0, 0, Exit::TripleFault),
        (0x80, 0, 0, 0, Exit::UndefinedInstruction),
        (0x86, 0, 0, 0, Exit::UndefinedInstruction),
        (0x8b, 0, 0, 0, Exit::UndefinedInstruction),
        (u64::MAX, 5, 0, 0, Exit::EntryFailed(EntryFailure { code: u64::MAX, info: 5 })),
        (0xffff_ffff, 0, 0, 0, Exit::EntryFailed(EntryFailure { code: 0xffff_ffff, info: 0 })),
        (0x403, 9, 0, 0, Exit::Unknown { code: 0x403, info: 9 }),
        (0x7d, 0x28, 0, 0, task(TaskSwitchReason::Call, 0x4711, false)),
        (0x7d, 0x28, 1 << 36, 0, task(TaskSwitchReason::Iret, 0x4711, false)),
        (0x7d, 0x28, 1 << 38, 0, task(TaskSwitchReason::Jmp, 0x4711, false)),
        // The event that is reported with an INT n may be an old one.
        (0x7d, 0x28, 0, 0x8000_0b0d, task(gate(None, false), 0x4711, false)),
        // INT 40H, and INT3, which is an exception here.
        (0x7d, 0x28, 0, 0x8000_0440, task(gate(None, false), 0x4711, false)),
        (0x7d, 0x28, 0, 0x8000_0303, task(gate(None, false), 0x4711, false)),
    ] {
        assert_eq!(run(Case { code, info1, info2, int_info, ..PLAIN }).0, expected, "{code:#x}");
    }
    for (info2, int_info, expected) in [
        (1 << 48 | 1 << 44 | 0x18, 0x8000_0b08, task(gate(Some(0x18), true), 0x4700, true)),
        (0, 0x8000_0031, task(gate(None, true), 0x4700, false)),
        (0, 0x8000_0440, task(gate(None, false), 0x4711, false)),
    ] {
        let case = Case { code: 0x7d, info1: 0x28, info2, int_info, long: false };
        assert_eq!(run(case).0, expected, "{int_info:#x}");
    }
}

#[test]
fn instruction_lengths() {
    for (code, bytes, long, expected) in [
        (exit_code::CPUID, &[0x0f, 0xa2][..], true, Some((2, Gpr::Rax))),
        (exit_code::CPUID, &[0x66, 0xf3, 0x48, 0x0f, 0xa2], true, Some((5, Gpr::Rax))),
        (exit_code::CPUID, &[0x48, 0x0f, 0xa2], false, None),
        (exit_code::CPUID, &[0x0f], true, None),
        (exit_code::CPUID, &[], true, None),
        (exit_code::CPUID, &[0x90, 0x90], true, None),
        (exit_code::MSR, &[0x0f, 0x30, 0xff], true, Some((2, Gpr::Rax))),
        (exit_code::MSR, &[0x2e, 0x0f, 0x32], false, Some((3, Gpr::Rax))),
        (exit_code::HLT, &[0xf4], true, Some((1, Gpr::Rax))),
        (exit_code::PAUSE, &[0xf3, 0x90], true, Some((2, Gpr::Rax))),
        (exit_code::VMMCALL, &[0x0f, 0x01, 0xd9], true, Some((3, Gpr::Rax))),
        (exit_code::VMMCALL, &[0x0f, 0x01], true, None),
        (exit_code::XSETBV, &[0x0f, 0x01, 0xd1], true, Some((3, Gpr::Rax))),
        (exit_code::RDTSCP, &[0x0f, 0x01, 0xf9], true, Some((3, Gpr::Rax))),
        (exit_code::RDTSC, &[0x0f, 0x31], true, Some((2, Gpr::Rax))),
        (exit_code::WBINVD, &[0xf3, 0x0f, 0x09], true, Some((3, Gpr::Rax))),
        (exit_code::CR0_WRITE + 8, &[0x44, 0x0f, 0x22, 0xc3], true, Some((4, Gpr::Rbx))),
        (exit_code::CR0_READ + 8, &[0x45, 0x0f, 0x20, 0xc1], true, Some((4, Gpr::R9))),
        // A REX prefix before a legacy prefix does not count; LOCK MOV CR0 is AMD's other name for CR8.
        (exit_code::CR0_READ + 8, &[0x45, 0xf0, 0x0f, 0x20, 0xc1], true, Some((5, Gpr::Rcx))),
        (exit_code::CR0_WRITE + 4, &[0x0f, 0x22, 0xe0], false, Some((3, Gpr::Rax))),
        // Fifteen prefixes leave no room for an instruction.
        (exit_code::HLT, &[0x66; 16], true, None),
    ] {
        assert_eq!(measure(code, bytes, long), expected, "{code:#x} {bytes:x?}");
        if let Some((length, _)) = expected
            && usize::from(length) == bytes.len()
            && !matches!(bytes[0], 0x26..=0x67 | 0xf0..=0xf3)
        {
            assert_eq!(shortest(code), length, "{code:#x}");
        }
    }
}

#[test]
fn lengths_of_far_transfers() {
    for (bytes, big, expected) in [
        (&[0x9a, 0, 0, 0, 0, 0x28, 0][..], true, Some(7)),
        (&[0x9a, 0, 0, 0x28, 0], false, Some(5)),
        (&[0x66, 0xea, 0, 0, 0, 0, 0x28, 0], false, Some(8)),
        (&[0x66, 0xea, 0, 0, 0x28, 0], true, Some(6)),
        (&[0xcf], true, Some(1)),
        (&[0xcd, 0x40], true, Some(2)),
        (&[0xcc], false, Some(1)),
        (&[0xce, 0x90], false, Some(1)),
        // CALL FAR [disp32], [EAX], [EBP+8], [ESI+disp32], [ESP], [EAX*4+disp32], [ESP+8], [ESP+disp32].
        (&[0xff, 0x1d, 0, 0, 0, 0], true, Some(6)),
        (&[0xff, 0x18], true, Some(2)),
        (&[0x2e, 0xff, 0x5d, 8], true, Some(4)),
        (&[0xff, 0xae, 0, 0, 0, 0], true, Some(6)),
        (&[0xff, 0x2c, 0x24], true, Some(3)),
        (&[0xff, 0x2c, 0x85, 0, 0, 0, 0], true, Some(7)),
        (&[0xff, 0x6c, 0x24, 8], true, Some(4)),
        (&[0xff, 0xac, 0x24, 0, 0, 0, 0], true, Some(7)),
        // JMP FAR [disp16], [BX], [BP+8], [SI+disp16]; with the other address size.
        (&[0xff, 0x2e, 0, 0], false, Some(4)),
        (&[0xff, 0x2f], false, Some(2)),
        (&[0xff, 0x6e, 8], false, Some(3)),
        (&[0xff, 0xac, 0, 0], false, Some(4)),
        (&[0x67, 0xff, 0x2d, 0, 0, 0, 0], false, Some(7)),
        (&[0x67, 0xff, 0x2e, 0, 0], true, Some(5)),
        // Near ones, a register, too few bytes, something else.
        (&[0xff, 0x15, 0, 0, 0, 0], true, None),
        (&[0xff, 0xd8], true, None),
        (&[0xff, 0x1d, 0, 0, 0], true, None),
        (&[0xff, 0x2c], true, None),
        (&[0xcd], true, None),
        (&[0x66; 15], true, None),
        (&[0x90], true, None),
    ] {
        assert_eq!(measure_transfer(bytes, big), expected, "{bytes:x?}");
    }
}

proptest! {
    #[test]
    fn nothing_panics(code in any::<u64>(), info1 in any::<u64>(), info2 in any::<u64>(), int_info in any::<u64>(), long in any::<bool>()) {
        for code in [code, code & 0x4ff] {
            run(Case { code, info1, info2, int_info, long });
        }
    }

    #[test]
    fn lengths_are_architectural(code in 0u32..0x90, bytes in proptest::collection::vec(any::<u8>(), 0..20), long in any::<bool>()) {
        if let Some((length, _)) = measure(code, &bytes, long) {
            assert!(length >= shortest(code).min(2) - 1 && usize::from(length) <= bytes.len().min(15));
        }
    }
}
