//! The run loop on a scripted vCPU: each exit gets the right answer, events are handed over without loss.

use super::{Activity, Context, CrashReason, Stop, VirtCpu};
use crate::{
    alarm::Alarm,
    clock::Clock,
    config,
    console::Console,
    run::Module,
    testing::{FakePlatform, flat_protected_mode},
    vm::{Blueprint, End, Vm},
};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::Ordering;
use devices::interrupt::Trigger;
use x86defs::{
    Access, Attention, ControlRegister, Exception, Exit, Gpa, Gpr, GuestMemory, GuestMemoryExt, Resume, Rflags, TaskSwitch,
    TaskSwitchReason, Vcpu, Width,
};

/// A multiboot1 image by the a.out kludge: header at the start, loaded to 1 MiB.
fn kernel() -> &'static [u8] {
    let words: [u32; 8] =
        [0x1bad_b002, 0x1_0000, 0u32.wrapping_sub(0x1bad_b002 + 0x1_0000), 0x10_0000, 0x10_0000, 0x10_1000, 0x10_2000, 0x10_0020];
    let mut image: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    image.resize(0x1000, 0x90);
    image.leak()
}

struct Rig {
    platform: &'static FakePlatform,
    vcpu: VirtCpu<FakePlatform>,
    clock: Clock,
    alarm: Alarm,
}

impl Rig {
    fn new(script: &[Exit]) -> Self {
        Self::with("", script)
    }

    /// With more lines in the guest's configuration.
    fn with(more: &str, script: &[Exit]) -> Self {
        let platform: &'static FakePlatform = Box::leak(Box::new(FakePlatform::new()));
        platform.scripts.lock().unwrap().push_back(script.to_vec());
        let text = "name = \"g\"\ntype = \"hvm\"\nmemory = 4\nkernel = \"k\"\nisa_debug_exit = 0xf4\n";
        let config = config::parse("g.cfg", &alloc::format!("{text}{more}")).unwrap();
        let modules = [Module { name: "k", args: "", data: kernel() }];
        let blueprint = Arc::new(Blueprint::new(config, &modules).unwrap());
        let clock = Clock::new(platform.tsc.load(Ordering::Relaxed), 1_000_000_000);
        let (_, mut vcpus) = Vm::build(platform, &clock, &Arc::new(Console::default()), &blueprint, 1).unwrap();
        let mut vcpu = vcpus.remove(0);
        vcpu.hw.state.rflags |= Rflags::IF.bits();
        Self { platform, vcpu, clock, alarm: Alarm::new() }
    }

    fn run(&mut self) -> Stop {
        let cx = Context { platform: self.platform, clock: self.clock, cpu: 0, alarm: &self.alarm, wake: &|_, _| {} };
        self.vcpu.run(&cx)
    }

    /// Runs the script to its end (a triple fault) and gives the answers to its exits.
    fn answers(&mut self) -> Vec<Resume> {
        let before = self.vcpu.hw.resumes.len();
        assert_eq!(self.run(), Stop::Crash(CrashReason::TripleFault));
        self.vcpu.hw.resumes[before..].to_vec()
    }

    /// The local APIC in x2APIC mode, enabled.
    fn enable_apic(&mut self) {
        self.vcpu.apic.set_base_msr(0xfee0_0d00, 40).unwrap();
        self.write_msr(0x80f, 0x1ff);
    }

    fn write_msr(&mut self, index: u32, value: u64) {
        let cx = Context { platform: self.platform, clock: self.clock, cpu: 0, alarm: &self.alarm, wake: &|_, _| {} };
        self.vcpu.msr_write(&cx, index, value);
        assert_eq!(self.vcpu.hw.resumes.last(), Some(&Resume::Advance));
    }
}

#[test]
fn simple_exits_get_their_answers() {
    let mut rig = Rig::new(&[
        Exit::Cpuid { leaf: 0x4000_0000, subleaf: 0 },
        Exit::MsrRead { index: 0x480 },
        Exit::PortRead { port: 0x1234, width: Width::Word },
        Exit::UndefinedInstruction,
        Exit::CacheFlush,
        Exit::ControlWrite { register: ControlRegister::Cr4, value: 1 << 13 },
        Exit::Xsetbv { index: 0, value: 2 },
        Exit::Rdpmc { index: 0 },
        Exit::Exception(Exception::ac()),
    ]);
    let answers = rig.answers();
    assert!(matches!(answers[0], Resume::Cpuid(r) if r.ebx == 0x4b4d_564b), "{answers:?}");
    assert_eq!(
        answers[1..],
        [
            Resume::Fault(Exception::GP),
            Resume::PortRead(0xffff),
            Resume::Fault(Exception::UD),
            Resume::Advance,
            Resume::Fault(Exception::GP),
            Resume::Fault(Exception::GP),
            Resume::Fault(Exception::GP),
            Resume::Fault(Exception::ac()),
        ]
    );
}

#[test]
fn guest_ends_itself() {
    for (exits, end) in [
        (&[Exit::PortWrite { port: 0xf4, width: Width::Byte, value: 0x10 }][..], End::DebugExit(33)),
        (&[Exit::PortWrite { port: 0xcf9, width: Width::Byte, value: 6 }], End::Reboot),
        (&[Exit::PortWrite { port: 0x64, width: Width::Byte, value: 0xfe }], End::Reboot),
        (&[Exit::PortWrite { port: 0x604, width: Width::Word, value: 7 << 10 | 1 << 13 }], End::PowerOff),
    ] {
        assert_eq!(Rig::new(exits).run(), Stop::End(end), "{exits:?}");
    }
}

#[test]
fn guest_mistakes_end_the_guest_and_say_why() {
    let at = Gpa(0xd000_0000);
    let stop = Rig::new(&[Exit::Stage2Fault { gpa: at, access: Access::Execute }]).run();
    assert_eq!(stop, Stop::Crash(CrashReason::ExecuteOutsideRam(at)));
    let stop = Rig::new(&[Exit::Unknown { code: 77, info: 5 }]).run();
    assert_eq!(stop, Stop::Crash(CrashReason::UnknownExit { code: 77, info: 5 }));
}

#[test]
fn halt_sleeps_until_an_interrupt_and_completes_hlt_first() {
    let mut rig = Rig::new(&[Exit::Hlt]);
    rig.enable_apic();
    assert_eq!(rig.run(), Stop::Halted);
    assert_eq!(rig.vcpu.activity, Activity::Halted);
    assert_eq!(rig.vcpu.hw.resumes.last(), Some(&Resume::Advance));
    assert!(!rig.vcpu.wakes());
    rig.vcpu.apic.post(0x55, Trigger::Edge);
    assert!(rig.vcpu.wakes());
    let mut rig = Rig::new(&[Exit::Hlt]);
    rig.enable_apic();
    rig.vcpu.hw.state.rflags &= !Rflags::IF.bits();
    assert_eq!(rig.run(), Stop::Halted);
    rig.vcpu.apic.post(0x55, Trigger::Edge);
    assert!(!rig.vcpu.wakes(), "an interrupt does not end HLT with IF clear");
    rig.vcpu.apic.post_nmi();
    assert!(rig.vcpu.wakes(), "an NMI does");
}

#[test]
fn halt_with_a_pending_interrupt_does_not_sleep() {
    let mut rig = Rig::new(&[Exit::Hlt]);
    rig.enable_apic();
    rig.vcpu.hw.interruptible = false;
    rig.vcpu.apic.post(0x55, Trigger::Edge);
    rig.vcpu.hw.interruptible = false;
    let _ = rig.answers();
    assert!(rig.vcpu.hw.window, "a window was asked for");
}

#[test]
fn an_interrupt_waits_for_the_window_and_is_not_lost() {
    let mut rig = Rig::new(&[Exit::CacheFlush, Exit::InterruptWindow]);
    rig.enable_apic();
    rig.vcpu.hw.interruptible = false;
    rig.vcpu.apic.post(0x55, Trigger::Edge);
    let _ = rig.answers();
    assert_eq!(rig.vcpu.hw.interrupts, []);
    assert!(rig.vcpu.hw.window);
    rig.vcpu.hw.interruptible = true;
    rig.vcpu.hw.script.push_back(Exit::CacheFlush);
    let _ = rig.run();
    assert_eq!(rig.vcpu.hw.interrupts, [0x55]);
}

#[test]
fn two_interrupts_come_in_order_of_priority() {
    let mut rig = Rig::new(&[]);
    rig.enable_apic();
    rig.vcpu.apic.post(0x41, Trigger::Edge);
    rig.vcpu.apic.post(0x91, Trigger::Edge);
    let _ = rig.run();
    assert_eq!(rig.vcpu.hw.interrupts, [0x91]);
    rig.vcpu.hw.interruptible = true;
    rig.write_msr(0x80b, 0);
    let _ = rig.run();
    assert_eq!(rig.vcpu.hw.interrupts, [0x91, 0x41]);
}

#[test]
fn nmi_is_injected_once() {
    let mut rig = Rig::new(&[Exit::CacheFlush]);
    rig.vcpu.apic.post_nmi();
    let _ = rig.answers();
    assert_eq!(rig.vcpu.hw.nmis, 1);
}

#[test]
fn two_nmis_at_once_are_two_and_those_within_one_are_one() {
    let mut rig = Rig::new(&[Exit::CacheFlush, Exit::CacheFlush]);
    for _ in 0..3 {
        rig.vcpu.apic.post_nmi();
    }
    let _ = rig.answers();
    assert_eq!(rig.vcpu.hw.nmis, 2);

    let mut rig = Rig::new(&[Exit::CacheFlush, Exit::CacheFlush]);
    rig.vcpu.hw.in_nmi = true;
    for _ in 0..3 {
        rig.vcpu.apic.post_nmi();
    }
    let _ = rig.answers();
    assert!(rig.vcpu.hw.nmi_window);
    assert!(rig.vcpu.apic.take_nmi());
    assert!(!rig.vcpu.apic.take_nmi(), "one waits, no more");
}

#[test]
fn timer_write_arms_the_host_timer() {
    let mut rig = Rig::new(&[
        Exit::MsrWrite { index: 0x83e, value: 0xb },
        Exit::MsrWrite { index: 0x832, value: 0x40 },
        Exit::MsrWrite { index: 0x838, value: 5000 },
    ]);
    rig.enable_apic();
    let _ = rig.answers();
    let armed = rig.platform.timer.load(Ordering::Relaxed);
    assert!((6000..6010).contains(&armed), "host timer at {armed}");
    // It fires: the vector is pending.
    rig.vcpu.apic.advance(rig.clock.at(armed));
    assert!(rig.vcpu.wakes() && rig.vcpu.apic.highest_pending() == Some(0x40));
}

#[test]
fn device_memory_goes_through_the_emulator() {
    let mut rig = Rig::new(&[Exit::Stage2Fault { gpa: Gpa(0xfee0_0030), access: Access::Read }]);
    flat_protected_mode(&mut rig.vcpu.hw, 0x10_0000);
    // mov eax, [0xfee00030]
    rig.vcpu.vm.memory.write(Gpa(0x10_0000), &[0xa1, 0x30, 0x00, 0xe0, 0xfe]).unwrap();
    let answers = rig.answers();
    assert!(matches!(answers[0], Resume::Emulated { rip: 0x10_0005, .. }), "{answers:?}");
    assert_eq!(rig.vcpu.hw.gprs()[Gpr::Rax] & 0xf0, 0x10, "an integrated APIC's version");
}

#[test]
fn an_instruction_nobody_knows_is_named() {
    let mut rig = Rig::new(&[Exit::Stage2Fault { gpa: Gpa(0xfee0_0030), access: Access::Read }]);
    flat_protected_mode(&mut rig.vcpu.hw, 0x10_0000);
    // fld dword [0xfee00030]
    let fld = [0xd9, 0x05, 0x30, 0x00, 0xe0, 0xfe];
    rig.vcpu.vm.memory.write(Gpa(0x10_0000), &fld).unwrap();
    match rig.run() {
        Stop::Crash(reason @ CrashReason::Unemulated { rip: 0x10_0000, .. }) => {
            let text = alloc::format!("{reason}");
            assert!(text.contains("d9 05 30"), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn serial_output_reaches_the_console() {
    let exits: Vec<Exit> =
        b"hello".iter().map(|&b| Exit::PortWrite { port: 0x3f8, width: Width::Byte, value: b.into() }).collect();
    let mut rig = Rig::new(&exits);
    let _ = rig.answers();
    rig.vcpu.vm.finish_output(rig.platform);
    let shown = rig.platform.output.lock().unwrap().clone();
    assert!(shown.windows(5).any(|w| w == b"hello"), "{:?}", core::str::from_utf8(&shown));
}

#[test]
fn guest_memory_is_all_there() {
    let rig = Rig::new(&[]);
    assert_eq!(rig.vcpu.vm.memory.size(), (4 << 20) - (128 << 10));
}

#[test]
fn a_host_interrupt_stops_the_vcpu_only_for_others() {
    let mut rig = Rig::new(&[
        Exit::HostInterrupt,
        Exit::HostInterrupt,
        Exit::HostInterrupt,
        Exit::HostInterrupt,
        Exit::HostInterrupt,
        Exit::HostNmi,
    ]);
    let attention = |what: &[Attention]| rig.platform.attention.lock().unwrap().extend(what);
    rig.enable_apic();
    rig.write_msr(0x83e, 0b1011);
    rig.write_msr(0x832, 0x40);
    rig.write_msr(0x838, 5000);
    assert!((6000..6010).contains(&rig.platform.timer.load(Ordering::Relaxed)));
    // Nothing; then the local APIC's timer, which is served at once, and interrupts the guest; a kick; both; the timer, for somebody else.
    attention(&[Attention::empty(), Attention::TIMER, Attention::OTHER, Attention::all(), Attention::TIMER]);
    rig.alarm.add_other(9000);
    rig.platform.tsc.store(6010, Ordering::Relaxed);
    assert_eq!(rig.run(), Stop::Preempted);
    assert_eq!(rig.vcpu.stats.exits(), 3);
    assert_eq!(rig.vcpu.hw.interrupts, [0x40]);
    assert_eq!(rig.platform.timer.load(Ordering::Relaxed), 9000, "for what comes next");
    assert_eq!(rig.run(), Stop::Preempted);
    rig.platform.tsc.store(9000, Ordering::Relaxed);
    assert_eq!(rig.run(), Stop::Preempted);
    assert_eq!(rig.run(), Stop::Preempted, "an NMI");
    assert_eq!(rig.vcpu.stats.exits(), 6);
}

/// A GDT at 0x1000 with a TSS of type `kind` at 0x2000, whose task has a code and a data segment, and the old one at 0x3000.
fn with_tasks(rig: &mut Rig, kind: u64) {
    let memory = &rig.vcpu.vm.memory;
    let tss = |base: u64, kind: u64| 103 | base << 16 | kind << 40;
    for (n, value) in [0, 0xcf_9a00_0000_ffff, 0xcf_9200_0000_ffff, tss(0x2000, kind), tss(0x3000, 0x8b)].into_iter().enumerate()
    {
        memory.write(Gpa(0x1000 + 8 * n as u64), &u64::to_le_bytes(value)).unwrap();
    }
    for (offset, value) in [(0x20, 0x7000u32), (0x24, 2), (0x4c, 8), (0x50, 0x10)] {
        memory.write(Gpa(0x2000 + offset), &value.to_le_bytes()).unwrap();
    }
    let state = &mut rig.vcpu.hw.state;
    state.gdtr = x86defs::DescriptorTable { base: 0x1000, limit: 0x27 };
    state.tr = x86defs::Segment { selector: 0x20, attributes: x86defs::SegmentAttributes(0x8b), limit: 103, base: 0x3000 };
}

#[test]
fn a_task_switch_enters_the_new_task_or_faults_in_the_old_one() {
    let switch = TaskSwitch { selector: 0x18, reason: TaskSwitchReason::Call, rip: 0x1234, resume_flag: false };
    let mut rig = Rig::new(&[Exit::TaskSwitch(switch)]);
    with_tasks(&mut rig, 0x89);
    assert_eq!(rig.answers(), []);
    let hw = &rig.vcpu.hw;
    assert_eq!((hw.state.rip, hw.state.tr.selector, hw.exceptions.len()), (0x7000, 0x18, 0));
    assert_eq!(rig.vcpu.vm.memory.read_u32(Gpa(0x3020)), Ok(0x1234));

    let mut rig = Rig::new(&[Exit::TaskSwitch(switch)]);
    with_tasks(&mut rig, 0x8b);
    assert_eq!(rig.answers(), [Resume::Fault(Exception::gp(0x18))]);

    // DS of the new task lies beyond the table.
    let mut rig = Rig::new(&[Exit::TaskSwitch(switch)]);
    with_tasks(&mut rig, 0x89);
    rig.vcpu.vm.memory.write(Gpa(0x2054), &[0x28]).unwrap();
    assert_eq!(rig.answers(), []);
    assert_eq!(rig.vcpu.hw.exceptions, [Exception::ts(0x28)]);
}

#[test]
fn msrs_of_features_that_were_taken_away_fault() {
    let exits = [
        Exit::MsrWrite { index: 0x1b, value: 0xfee0_0d00 },
        Exit::MsrWrite { index: 0x6e0, value: 5 },
        Exit::MsrRead { index: 0x6e0 },
        Exit::MsrWrite { index: 0x3b, value: 5 },
        Exit::MsrRead { index: 0x3b },
        Exit::MsrWrite { index: 0xc000_0103, value: 5 },
    ];
    let masked = "cpuid = \"host,x2apic=0,tsc_deadline=0,tsc_adjust=0,rdtscp=0,rdpid=0\"\n";
    assert_eq!(Rig::with(masked, &exits).answers(), [Resume::Fault(Exception::GP); 6]);
    let answers = Rig::new(&exits).answers();
    assert!(!answers.contains(&Resume::Fault(Exception::GP)), "{answers:?}");
}
