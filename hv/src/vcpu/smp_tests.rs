//! Several vCPUs of one guest: start-up, and who is told of what.

use super::{Activity, Context, Stop, VirtCpu};
use crate::{
    alarm::Alarm,
    clock::Clock,
    config,
    console::Console,
    run::Module,
    testing::FakePlatform,
    vcpu::pvclock,
    vm::{Blueprint, End, Vm},
};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{cell::RefCell, sync::atomic::Ordering};
use devices::{interrupt::CpuSet, lapic::Trigger};
use x86defs::{Cr0, Exit, Gpa, Gpr, GuestMemoryExt, Resume, Vcpu, VcpuState, msr};

/// A multiboot1 image by the a.out kludge: header at the start, loaded to 1 MiB.
fn kernel() -> &'static [u8] {
    let words: [u32; 8] =
        [0x1bad_b002, 0x1_0000, 0u32.wrapping_sub(0x1bad_b002 + 0x1_0000), 0x10_0000, 0x10_0000, 0x10_1000, 0x10_2000, 0x10_0020];
    let mut image: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    image.resize(0x1000, 0x90);
    image.leak()
}

pub(super) struct Rig {
    pub platform: &'static FakePlatform,
    pub clock: Clock,
    pub vcpus: Vec<VirtCpu<FakePlatform>>,
    alarm: Alarm,
    /// Who was told, in order.
    pub woken: RefCell<Vec<CpuSet>>,
}

pub(super) fn wrmsr(cpu: &mut VirtCpu<FakePlatform>, cx: &Context<'_, FakePlatform>, index: u32, value: u64) -> Resume {
    cpu.msr_write(cx, index, value);
    *cpu.hw.resumes.last().unwrap()
}

pub(super) fn rdmsr(cpu: &mut VirtCpu<FakePlatform>, cx: &Context<'_, FakePlatform>, index: u32) -> Resume {
    cpu.msr_read(cx, index);
    *cpu.hw.resumes.last().unwrap()
}

impl Rig {
    /// A guest of as many vCPUs as there are scripts, all in x2APIC mode.
    pub fn new(scripts: &[&[Exit]]) -> Self {
        Self::configured(scripts, "", 1_000_000_000)
    }

    /// With more lines of configuration, on a host whose TSC has `tsc_hz` Hz.
    pub fn configured(scripts: &[&[Exit]], more: &str, tsc_hz: u64) -> Self {
        let platform: &'static FakePlatform = Box::leak(Box::new(FakePlatform::new()));
        platform.scripts.lock().unwrap().extend(scripts.iter().map(|s| s.to_vec()));
        let text = alloc::format!("name = \"g\"\nmemory = 4\nkernel = \"k\"\nvcpus = {}\n{more}", scripts.len());
        let config = config::parse("g.cfg", &text).unwrap();
        let modules = [Module { name: "k", args: "", data: kernel() }];
        let blueprint = Arc::new(Blueprint::new(config, &modules).unwrap());
        let clock = Clock::new(platform.tsc.load(Ordering::Relaxed), tsc_hz);
        let (_, vcpus) = Vm::build(platform, &clock, &Arc::new(Console::default()), &blueprint, 1).unwrap();
        for vcpu in &vcpus {
            vcpu.apic.set_base_msr(vcpu.apic.base_msr() | 1 << 10, 40).unwrap();
        }
        Self { platform, clock, vcpus, alarm: Alarm::new(), woken: RefCell::default() }
    }

    pub fn with<R>(&mut self, index: usize, f: impl FnOnce(&mut VirtCpu<FakePlatform>, &Context<'_, FakePlatform>) -> R) -> R {
        let woken = &self.woken;
        let wake = |_: &Vm<FakePlatform>, set| woken.borrow_mut().push(set);
        let cx = Context { platform: self.platform, clock: self.clock, cpu: 0, alarm: &self.alarm, wake: &wake };
        f(&mut self.vcpus[index], &cx)
    }

    pub fn run(&mut self, index: usize) -> Stop {
        self.with(index, |vcpu, cx| vcpu.run(cx))
    }

    fn icr(&mut self, sender: usize, value: u64) {
        assert_eq!(self.with(sender, |vcpu, cx| wrmsr(vcpu, cx, 0x830, value)), Resume::Advance);
    }
}

const INIT: u64 = 0x4500;
const SIPI: u64 = 0x4600;
const TO_1: u64 = 1 << 32;

#[test]
fn application_processors_wait_for_their_sipi() {
    let mut rig = Rig::new(&[&[], &[Exit::Hlt]]);
    let activities: Vec<_> = rig.vcpus.iter().map(|v| v.activity).collect();
    assert_eq!(activities, [Activity::Running, Activity::WaitForSipi]);
    let ap = &rig.vcpus[1];
    assert_eq!(ap.hw.state, VcpuState::reset(ap.cpuid.signature()));
    // An interrupt or an NMI is no reason to start.
    ap.apic.post_nmi();
    assert!(!ap.wakes());
    assert_eq!(rig.run(1), Stop::Halted);
    assert_eq!(rig.vcpus[1].stats.exits(), 0, "it was not entered");

    rig.icr(0, TO_1 | INIT);
    rig.icr(0, TO_1 | SIPI | 0x9a);
    assert_eq!(*rig.woken.borrow(), [CpuSet(0b10), CpuSet(0b10)]);
    assert!(rig.vcpus[1].wakes());
    assert_eq!(rig.run(1), Stop::Halted, "INIT");
    assert!(rig.vcpus[1].wakes(), "the SIPI is not lost");
    assert_eq!(rig.run(1), Stop::Halted, "HLT of its script");
    let ap = &rig.vcpus[1];
    assert_eq!((ap.activity, ap.hw.script.len()), (Activity::Halted, 0));
    let cs = ap.hw.state.cs;
    assert_eq!((cs.selector, cs.base, ap.hw.state.rip), (0x9a00, 0x9_a000, 1));
    assert_eq!(ap.hw.gprs()[Gpr::Rdx], u64::from(ap.cpuid.signature()));
}

#[test]
fn a_sipi_means_nothing_to_a_processor_that_runs() {
    let mut rig = Rig::new(&[&[], &[Exit::Hlt, Exit::Hlt]]);
    rig.icr(0, TO_1 | SIPI | 0x10);
    assert_eq!(rig.run(1), Stop::Halted);
    let before = rig.vcpus[1].hw.state;
    rig.icr(0, TO_1 | SIPI | 0x20);
    let _ = rig.run(1);
    assert_eq!(rig.vcpus[1].hw.state.cs, before.cs);
}

#[test]
fn init_resets_registers_and_keeps_what_it_must() {
    let mut rig = Rig::new(&[&[], &[]]);
    rig.icr(0, TO_1 | SIPI | 0x10);
    let ap = &mut rig.vcpus[1];
    ap.activity = Activity::Running;
    ap.hw.state.cr0 = (Cr0::PE | Cr0::PG | Cr0::ET | Cr0::NW).bits();
    ap.hw.state.cr4 = 0x6b0;
    ap.hw.state.efer = 0xd01;
    ap.hw.xcr0 = 7;
    ap.apic.set_tpr(0x50);
    ap.window = true;
    let offset = rig.with(1, |ap, cx| {
        assert_eq!(wrmsr(ap, cx, msr::IA32_TSC_ADJUST, 5), Resume::Advance);
        assert_eq!(wrmsr(ap, cx, 0x250, 0x0606_0606_0606_0606), Resume::Advance);
        assert_eq!(wrmsr(ap, cx, pvclock::SYSTEM_TIME, 0x2000 | 1), Resume::Advance);
        ap.hw.tsc_offset
    });
    rig.icr(0, TO_1 | INIT);
    assert_eq!(rig.run(1), Stop::Halted);
    let ap = &rig.vcpus[1];
    assert_eq!(ap.activity, Activity::WaitForSipi);
    assert!(!ap.wakes(), "INIT makes an earlier SIPI void");
    let signature = ap.cpuid.signature();
    assert_eq!(ap.hw.state, VcpuState { cr0: 0x2000_0010, ..VcpuState::reset(signature) });
    assert_eq!((ap.hw.xcr0, ap.hw.tsc_offset, ap.apic.tpr()), (7, offset, 0));
    assert_eq!(ap.apic.base_msr() >> 10 & 3, 3, "x2APIC mode stays");
    rig.with(1, |ap, cx| {
        assert_eq!(rdmsr(ap, cx, msr::IA32_TSC_ADJUST), Resume::MsrRead(5));
        assert_eq!(rdmsr(ap, cx, 0x250), Resume::MsrRead(0x0606_0606_0606_0606));
        assert_eq!(rdmsr(ap, cx, pvclock::SYSTEM_TIME), Resume::MsrRead(0), "nobody writes to that memory any more");
    });
}

#[test]
fn init_of_the_boot_processor_restarts_the_guest() {
    let mut rig = Rig::new(&[&[], &[]]);
    rig.icr(1, INIT);
    assert_eq!(rig.run(0), Stop::End(End::Reboot));
}

#[test]
fn whoever_gets_an_interrupt_is_told_at_once() {
    let mut rig = Rig::new(&[&[Exit::MsrWrite { index: 0x830, value: 0xc_4077 }], &[], &[], &[]]);
    for vcpu in &rig.vcpus[..3] {
        vcpu.apic.msr_write(x86defs::Time(0), 0x80f, 0x1ff).unwrap();
    }
    let _ = rig.run(0);
    // The last is software-disabled.
    assert_eq!(*rig.woken.borrow(), [CpuSet(0b0110)], "told by the access itself");
    assert!(rig.vcpus[1].apic.highest_pending() == Some(0x77) && !rig.vcpus[3].apic.attention());
    rig.icr(0, 0xc_4077);
    assert_eq!(rig.woken.borrow().len(), 1, "what is pending already is no news");
}

#[test]
fn an_nmi_or_init_ends_hlt_whatever_the_flags_say() {
    for kind in [0x4400, INIT] {
        let mut rig = Rig::new(&[&[], &[Exit::Hlt]]);
        rig.icr(0, TO_1 | SIPI | 0x10);
        assert_eq!(rig.run(1), Stop::Halted);
        rig.vcpus[1].apic.post(0x55, Trigger::Edge);
        assert!(!rig.vcpus[1].wakes(), "RFLAGS.IF is clear after a SIPI");
        rig.icr(0, TO_1 | kind);
        assert!(rig.vcpus[1].wakes(), "{kind:#x}");
    }
}

#[test]
fn clock_pages_count_from_the_same_point() {
    let mut rig = Rig::new(&[&[], &[], &[]]);
    let pages: Vec<[u8; 28]> = (0..3)
        .map(|n| {
            rig.platform.tsc.fetch_add(12_345, Ordering::Relaxed);
            let at = 0x3000 + 32 * n as u64;
            if n == 2 {
                let moved = rig.with(n, |vcpu, cx| wrmsr(vcpu, cx, msr::IA32_TSC_ADJUST, 1 << 40));
                assert_eq!(moved, Resume::Advance);
            }
            assert_eq!(rig.with(n, |vcpu, cx| wrmsr(vcpu, cx, pvclock::SYSTEM_TIME, at | 1)), Resume::Advance);
            let mut page = [0; 28];
            x86defs::GuestMemory::read(&*rig.vcpus[n].vm.memory, Gpa(at + 4), &mut page).unwrap();
            page
        })
        .collect();
    assert_eq!(pages[0], pages[1]);
    // TSC_ADJUST moves the TSC's value at that point, and nothing else.
    let tsc = |page: &[u8; 28]| u64::from_le_bytes(page[4..12].try_into().unwrap());
    assert_eq!(tsc(&pages[2]), tsc(&pages[0]) + (1 << 40));
    assert_eq!(pages[2][12..], pages[0][12..]);
    assert_eq!(rig.vcpus[0].vm.memory.read_u32(Gpa(0x3000)).unwrap() & 1, 0, "complete");
}

/// With `tsc_mode = "always_emulate"` the guest's TSC is nanoseconds, wherever it shows: in RDTSC, its MSRs, CPUID, the clock page and the
/// deadline timer.
#[test]
fn an_emulated_tsc_counts_nanoseconds() {
    let mut rig = Rig::configured(&[&[Exit::Rdtsc]], "tsc_mode = \"always_emulate\"\n", 4_000_000_000);
    let origin = rig.clock.origin();
    rig.platform.tsc.store(origin + 4_000_000, Ordering::Relaxed);
    let near = |resume: Resume, want: u64| match resume {
        Resume::Tsc(value) | Resume::MsrRead(value) => assert!(value.abs_diff(want) <= 1, "{value}, not {want}"),
        other => panic!("{other:?}"),
    };
    rig.with(0, |vcpu, cx| {
        let _ = vcpu.run(cx);
        near(*vcpu.hw.resumes.first().unwrap(), 1_000_000);
        near(rdmsr(vcpu, cx, msr::IA32_TIME_STAMP_COUNTER), 1_000_000);
        wrmsr(vcpu, cx, msr::IA32_TIME_STAMP_COUNTER, 7_000_000);
        near(rdmsr(vcpu, cx, msr::IA32_TSC_ADJUST), 6_000_000);
        let context = || crate::vcpu::CpuidContext { cr4: 0, xcr0: 0, apic_base: 0 };
        assert_eq!(vcpu.cpuid.leaf(0x4000_0010, 0, context).eax, 1_000_000);
        // Mode TSC-deadline in the LVT, then half a millisecond from now.
        wrmsr(vcpu, cx, msr::X2APIC_BASE + 0xf, 0x1ff);
        wrmsr(vcpu, cx, msr::X2APIC_BASE + 0x32, 0x4_00ec);
        wrmsr(vcpu, cx, msr::IA32_TSC_DEADLINE, 7_500_000);
        let deadline = vcpu.apic.deadline().unwrap().0;
        // Rounded up: never early.
        assert!((1_500_000..1_500_004).contains(&deadline), "{deadline}");
        wrmsr(vcpu, cx, pvclock::SYSTEM_TIME, 0x3001);
    });
    let mut page = [0; 28];
    x86defs::GuestMemory::read(&*rig.vcpus[0].vm.memory, Gpa(0x3004), &mut page).unwrap();
    let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
    assert_eq!((word(4).abs_diff(6_000_000) <= 1, word(12)), (true, 0), "TSC at the guest's start, which is zero of its time");
    assert_eq!((&page[20..24], page[24]), (&[0, 0, 0, 0x80][..], 1), "a nanosecond a tick");
}
