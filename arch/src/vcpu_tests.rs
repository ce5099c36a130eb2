use super::*;
use x86defs::CpuidResult;

#[derive(Default)]
struct Fake {
    gprs: Gprs,
    question: Question,
    rip: u64,
    rflags: u64,
    shadow: bool,
    control: Option<(ControlRegister, u64)>,
    raised: Option<Exception>,
    stepped: bool,
}

impl Registers for Fake {
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.gprs
    }
    fn question(&mut self) -> &mut Question {
        &mut self.question
    }
    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
    }
    fn retire(&mut self) -> u64 {
        self.rip = self.question.next_rip;
        self.shadow = false;
        self.rflags
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, rflags: u64) {
        self.rflags = rflags;
    }
    fn set_shadow(&mut self, shadow: Shadow) {
        self.shadow = shadow != Shadow::None;
    }
    fn write_control(&mut self, register: ControlRegister, value: u64) {
        self.control = Some((register, value));
    }
    fn raise(&mut self, exception: &Exception) {
        self.raised = Some(*exception);
    }
    fn single_step(&mut self) {
        self.stepped = true;
    }
}

const ONES: u64 = u64::MAX;

/// A vCPU in a shadow, with all ones in every register, at 0x1000 of an instruction that ends at 0x1002.
fn fake() -> Fake {
    let mut fake = Fake { rip: 0x1000, rflags: 2, shadow: true, ..Fake::default() };
    fake.question.next_rip = 0x1002;
    for n in 0..16 {
        fake.gprs[Gpr::from_index(n)] = ONES;
    }
    fake
}

fn after(resume: Resume, set_up: impl FnOnce(&mut Fake)) -> Fake {
    let mut fake = fake();
    set_up(&mut fake);
    complete(&mut fake, resume);
    fake
}

#[test]
fn in_merges_by_width() {
    for (width, expected) in
        [(Width::Byte, 0xffff_ffff_ffff_ff78), (Width::Word, 0xffff_ffff_ffff_5678), (Width::Dword, 0x0000_0000_1234_5678)]
    {
        let fake = after(Resume::PortRead(0x1234_5678), |f| f.question.width = width);
        assert_eq!((fake.gprs[Gpr::Rax], fake.rip, fake.shadow), (expected, 0x1002, false), "{width:?}");
    }
}

#[test]
fn results_clear_upper_halves() {
    let result = CpuidResult { eax: 1, ebx: 2, ecx: 3, edx: 0xffff_fff4 };
    let fake = after(Resume::Cpuid(result), |_| {});
    let got = [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi].map(|r| fake.gprs[r]);
    assert_eq!(got, [1, 2, 3, 0xffff_fff4, ONES]);
    for resume in [Resume::MsrRead(0x1122_3344_5566_7788), Resume::Tsc(0x1122_3344_5566_7788)] {
        let fake = after(resume, |_| {});
        assert_eq!([fake.gprs[Gpr::Rax], fake.gprs[Gpr::Rdx], fake.rip], [0x5566_7788, 0x1122_3344, 0x1002]);
    }
}

#[test]
fn control_registers() {
    for (long, expected) in [(true, 0x1_8000_0011), (false, 0x8000_0011)] {
        let fake = after(Resume::ControlRead(0x1_8000_0011), |f| {
            f.question.gpr = Gpr::R9;
            f.question.long = long;
        });
        assert_eq!(fake.gprs[Gpr::R9], expected);
    }
    let fake = after(Resume::ControlWrite(0x20), |f| f.question.control = ControlRegister::Cr4);
    assert_eq!((fake.control, fake.rip), (Some((ControlRegister::Cr4, 0x20)), 0x1002));
}

#[test]
fn retry_and_faults_leave_the_instruction_where_it_is() {
    let fake = after(Resume::Retry, |f| f.rflags = 0x1_0102);
    assert_eq!((fake.rip, fake.shadow, fake.rflags, fake.stepped), (0x1000, true, 0x1_0102, false));
    let fake = after(Resume::Fault(Exception::GP), |f| f.rflags = 0x102);
    assert_eq!((fake.rip, fake.raised, fake.stepped), (0x1000, Some(Exception::GP), false));
}

#[test]
fn completed_instructions_clear_rf_and_trap() {
    let fake = after(Resume::Advance, |f| f.rflags = 0x1_0002);
    assert_eq!((fake.rflags, fake.stepped), (2, false));
    let fake = after(Resume::Advance, |f| f.rflags = 0x102);
    assert_eq!((fake.rflags, fake.stepped, fake.rip), (0x102, true, 0x1002));
    let fake = after(Resume::Emulated { rip: 0x1007, rflags: 0x1_0102 }, |_| {});
    assert_eq!((fake.rip, fake.rflags, fake.stepped, fake.shadow), (0x1007, 0x102, true, false));
    let fake = after(Resume::AdvanceTo(0x1007), |f| f.rflags = 0x1_0102);
    assert_eq!((fake.rip, fake.rflags, fake.stepped, fake.shadow), (0x1007, 0x102, true, false));
}

#[test]
fn an_emulated_load_of_ss_casts_a_shadow_once() {
    let resume = Resume::Emulated { rip: 0x1002, rflags: 0x102 };
    let mut fake = after(resume, |f| f.question.ss_loaded = true);
    assert_eq!((fake.shadow, fake.stepped), (true, false));
    complete(&mut fake, resume);
    assert_eq!((fake.shadow, fake.stepped), (false, true));
}

#[test]
fn rip_wraps_by_mode() {
    assert_eq!(next_rip(0xffff_ffff, 2, false), 1);
    assert_eq!(next_rip(0xffff_ffff, 2, true), 0x1_0000_0001);
    assert_eq!(next_rip(0xffff_ffff_ffff_ffff, 2, true), 1);
    assert_eq!(next_rip(0xffff, 2, false), 0x1_0001, "the segment limit stops it, not a wrap");
}

#[test]
fn vector_registers_of_an_unloaded_vcpu() {
    let mut state = LazyState::new();
    assert_eq!(state.vector(3), [0, 0]);
    state.set_xmm(3, 0x1234 << 100);
    assert_eq!(state.vector(3)[0], 0x1234 << 100);
    assert_eq!(state.vector(2)[0], 0);
    if state.layout.all & AVX != 0 {
        state.set_ymm(3, [5, 7]);
        assert_eq!(state.vector(3), [5, 0], "the guest has not enabled AVX");
        state.set_xcr0(7);
        assert_eq!(state.vector(3), [5, 7]);
        state.set_xmm(3, 6);
        assert_eq!(state.vector(3), [6, 7], "legacy SSE leaves the upper half");
        assert_eq!(state.vector(4), [0, 0]);
    }
}

#[test]
fn xcr0_is_reduced_to_what_the_cpu_has() {
    let mut state = LazyState::new();
    state.set_xcr0(!1);
    assert_eq!(state.xcr0(), state.layout.all | 1);
}

/// The reset image must be accepted by the CPU that runs this test: x87 and SSE state load without a fault, and read back.
#[test]
fn the_reset_image_is_valid() {
    let state = LazyState::new();
    let mut back = [Block([0; 64]); 8];
    // SAFETY: the test saves the x87/SSE state, loads ours, saves it again and restores; nothing in between uses those registers.
    unsafe {
        let mut own = [Block([0; 64]); 8];
        asm!(
            "fxsave64 [{own}]", "fxrstor64 [{new}]", "fxsave64 [{back}]", "fxrstor64 [{own}]",
            own = in(reg) own.as_mut_ptr(), new = in(reg) state.area.as_ptr(), back = in(reg) back.as_mut_ptr(),
        );
    }
    assert_eq!(back[0].0[..2], [0x40, 0], "FCW");
    assert_eq!(back[0].0[24..28], [0x80, 0x1f, 0, 0], "MXCSR");
}
