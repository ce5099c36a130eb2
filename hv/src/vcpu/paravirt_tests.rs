//! What guests whose vCPUs share CPUs are offered.

use super::{
    Activity, Stop,
    paravirt::{POLL_CONTROL, STEAL_TIME},
    smp_tests::{Rig, rdmsr, wrmsr},
};
use crate::sched::handover::Task;
use alloc::{boxed::Box, vec::Vec};
use devices::interrupt::CpuSet;
use x86defs::{Exception, Exit, Gpa, Gpr, GuestMemory, GuestMemoryExt, Resume, Rflags};

const GP: Resume = Resume::Fault(Exception::GP);
const AREA: Gpa = Gpa(0x2_0040);
const EINVAL: u64 = 22u64.wrapping_neg();

/// steal, version, preempted.
fn area(rig: &Rig) -> (u64, u32, u8) {
    let memory = &rig.vcpus[0].vm.memory;
    (
        memory.read_u64(AREA).unwrap(),
        memory.read_u32(AREA.wrapping_add(8)).unwrap(),
        memory.read_u8(AREA.wrapping_add(16)).unwrap(),
    )
}

/// vCPU `index` makes a hypercall with the arguments in RBX, RCX, RDX and RSI.
fn hypercall(rig: &mut Rig, index: usize, number: u64, arguments: [u64; 4]) -> (Resume, Result<(), Stop>) {
    rig.with(index, |vcpu, cx| {
        let gprs = &mut vcpu.hw.state.gprs;
        gprs[Gpr::Rax] = number;
        for (gpr, value) in [Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi].into_iter().zip(arguments) {
            gprs[gpr] = value;
        }
        let stop = vcpu.hypercall(cx);
        (*vcpu.hw.resumes.last().unwrap(), stop)
    })
}

fn enable_apics(rig: &mut Rig) {
    for index in 0..rig.vcpus.len() {
        rig.with(index, |vcpu, cx| assert_eq!(wrmsr(vcpu, cx, 0x80f, 0x1ff), Resume::Advance));
    }
}

#[test]
fn steal_time_is_what_a_vcpu_has_waited_since_it_asked() {
    let mut rig = Rig::new(&[&[], &[]]);
    rig.with(0, |vcpu, cx| {
        for bad in [AREA.0 | 3, AREA.0 | 0x21, 1 << 40 | 1, 0x40_0000 | 1] {
            assert_eq!(wrmsr(vcpu, cx, STEAL_TIME, bad), GP, "{bad:#x}");
        }
        assert_eq!(rdmsr(vcpu, cx, STEAL_TIME), Resume::MsrRead(0));
        vcpu.came_back(500);
        assert_eq!(wrmsr(vcpu, cx, STEAL_TIME, AREA.0 | 1), Resume::Advance);
        assert_eq!(rdmsr(vcpu, cx, STEAL_TIME), Resume::MsrRead(AREA.0 | 1));
    });
    assert_eq!(area(&rig), (0, 2, 0));
    rig.vcpus[0].came_back(800);
    assert_eq!(area(&rig), (300, 4, 0));
    // An odd version is nobody's but ours.
    rig.vcpus[0].vm.memory.write(AREA.wrapping_add(8), &7u32.to_le_bytes()).unwrap();
    rig.vcpus[0].came_back(801);
    assert_eq!(area(&rig), (301, 8, 0));
    rig.with(0, |vcpu, cx| assert_eq!(wrmsr(vcpu, cx, STEAL_TIME, 0), Resume::Advance));
    rig.vcpus[0].came_back(1000);
    assert_eq!(area(&rig), (301, 8, 0), "no longer wanted");
    // INIT ends it, too.
    rig.with(1, |vcpu, cx| assert_eq!(wrmsr(vcpu, cx, STEAL_TIME, AREA.0 | 1), Resume::Advance));
    rig.with(0, |vcpu, cx| assert_eq!(wrmsr(vcpu, cx, 0x830, 1 << 32 | 0x4500), Resume::Advance));
    assert_eq!(rig.run(1), Stop::Halted);
    let before = area(&rig);
    rig.vcpus[1].came_back(2000);
    assert_eq!(area(&rig), before);
}

#[test]
fn a_vcpu_that_is_off_its_cpu_says_so_and_flushes_when_it_is_back() {
    let mut rig = Rig::new(&[&[]]);
    rig.with(0, |vcpu, cx| assert_eq!(wrmsr(vcpu, cx, STEAL_TIME, AREA.0 | 1), Resume::Advance));
    let mut vcpu = Box::new(rig.vcpus.remove(0));
    let vm = vcpu.vm.clone();
    let flags = || vm.memory.read_u8(AREA.wrapping_add(16)).unwrap();
    vcpu.unload();
    assert_eq!(flags(), 1);
    vcpu.load(0, 0);
    assert_eq!((flags(), vcpu.hw.flushes), (0, 0));
    vcpu.unload();
    vm.memory.write(AREA.wrapping_add(16), &[3]).unwrap();
    vcpu.load(0, 0);
    assert_eq!((flags(), vcpu.hw.flushes), (0, 1));
    // One that halts is not kept from anything.
    vcpu.activity = Activity::Halted;
    vcpu.unload();
    assert_eq!(flags(), 0);
}

#[test]
fn poll_control_is_kept() {
    let mut rig = Rig::new(&[&[]]);
    rig.with(0, |vcpu, cx| {
        assert_eq!(rdmsr(vcpu, cx, POLL_CONTROL), Resume::MsrRead(1));
        assert_eq!(wrmsr(vcpu, cx, POLL_CONTROL, 0), Resume::Advance);
        assert_eq!(wrmsr(vcpu, cx, POLL_CONTROL, 2), GP);
        assert_eq!(rdmsr(vcpu, cx, POLL_CONTROL), Resume::MsrRead(0));
        // Its neighbours are not there: EOI by a bit, asynchronous page faults.
        for index in [0x4b56_4d02, 0x4b56_4d04, 0x4b56_4d06] {
            assert_eq!(wrmsr(vcpu, cx, index, 0), GP, "{index:#x}");
        }
    });
}

#[test]
fn a_kick_ends_hlt_with_interrupts_off_now_or_later() {
    let mut rig = Rig::new(&[&[Exit::Hlt, Exit::Hlt, Exit::Hlt], &[]]);
    rig.vcpus[0].hw.state.rflags &= !Rflags::IF.bits();
    assert_eq!(rig.run(0), Stop::Halted);
    assert!(!rig.vcpus[0].wakes());
    rig.vcpus[1].activity = Activity::Running;
    assert_eq!(hypercall(&mut rig, 1, 5, [0, 7, 0, 0]), (Resume::Hypercall(0), Ok(())), "nobody has this ID");
    assert!(!rig.vcpus[0].wakes() && rig.woken.borrow().is_empty());
    assert_eq!(hypercall(&mut rig, 1, 5, [0; 4]), (Resume::Hypercall(0), Ok(())));
    assert_eq!(*rig.woken.borrow(), [CpuSet(1)]);
    assert!(rig.vcpus[0].wakes());
    rig.vcpus[0].wake_up();
    // It counts once.
    assert_eq!(rig.run(0), Stop::Halted);
    assert!(!rig.vcpus[0].wakes());
    // One that comes early is not lost.
    rig.vcpus[0].activity = Activity::Running;
    hypercall(&mut rig, 1, 5, [0; 4]).1.unwrap();
    assert!(matches!(rig.run(0), Stop::Crash(_)), "the end of the script, past its HLT");
}

#[test]
fn an_ipi_reaches_all_in_the_set() {
    let mut rig = Rig::new(&[&[], &[], &[], &[]]);
    enable_apics(&mut rig);
    rig.vcpus[0].hw.state.efer = 0x500;
    rig.vcpus[0].hw.state.cs.attributes = x86defs::SegmentAttributes(0xa09b);
    let requested = |rig: &Rig, vector| -> Vec<bool> { rig.vcpus.iter().map(|v| v.apic.is_requested(vector)).collect() };
    let sent = |n: u64| (Resume::Hypercall(n), Ok(()));
    assert_eq!(hypercall(&mut rig, 0, 10, [0b1010, 0, 0, 0x41]), sent(2));
    assert_eq!(requested(&rig, 0x41), [false, true, false, true]);
    assert_eq!(*rig.woken.borrow(), [CpuSet(0b1010)]);
    assert_eq!(hypercall(&mut rig, 0, 10, [u64::MAX, u64::MAX, 2, 0x42]), sent(2));
    assert_eq!(requested(&rig, 0x42), [false, false, true, true]);
    assert_eq!(hypercall(&mut rig, 0, 10, [2, 0, u64::MAX, 0x43]), sent(0));
    assert_eq!(hypercall(&mut rig, 0, 10, [1, 0, 1, 0x400]), sent(1), "an NMI");
    assert!(rig.vcpus[1].apic.nmi_pending());
    for icr in [0x841, 0x4_0041, 0x541, 0x641, 0x241] {
        assert_eq!(hypercall(&mut rig, 0, 10, [1, 0, 0, icr]), sent(EINVAL), "{icr:#x}");
    }
    // Outside of 64-bit mode the words have 32 bits.
    rig.vcpus[0].hw.state.efer = 0;
    assert_eq!(hypercall(&mut rig, 0, 10, [1 << 32 | 2, 1, 0, 0x44]), sent(1));
    assert_eq!(requested(&rig, 0x44), [false, true, false, false]);
    // APICs that are software-disabled get none.
    rig.with(1, |vcpu, cx| assert_eq!(wrmsr(vcpu, cx, 0x80f, 0xff), Resume::Advance));
    assert_eq!(hypercall(&mut rig, 0, 10, [0b110, 0, 0, 0x45]), sent(1));
}

#[test]
fn giving_way_stops_only_for_others() {
    let mut rig = Rig::new(&[&[], &[]]);
    assert_eq!(hypercall(&mut rig, 0, 11, [1, 0, 0, 0]), (Resume::Hypercall(0), Err(Stop::Yield)));
    for target in [0, 9] {
        assert_eq!(hypercall(&mut rig, 0, 11, [target, 0, 0, 0]), (Resume::Hypercall(0), Ok(())));
    }
    for number in [0, 4, 6, 9, 12, 999, u64::MAX] {
        let unknown = (Resume::Hypercall(1000u64.wrapping_neg()), Ok(()));
        assert_eq!(hypercall(&mut rig, 0, number, [0; 4]), unknown, "{number}");
    }
    rig.vcpus[0].hw.state.ss.attributes = x86defs::SegmentAttributes(0xf3);
    for number in [5, 999] {
        assert_eq!(hypercall(&mut rig, 0, number, [0; 4]).0, Resume::Fault(Exception::UD), "user mode");
    }
}
