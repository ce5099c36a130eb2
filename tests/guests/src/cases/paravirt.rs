//! What KVM offers to guests that know it (Linux, Documentation/virt/kvm/x86/{cpuid,msr,hypercalls}.rst).

use crate::rt::{
    BootInfo, apic, catch_msr_read, catch_msr_write, check, check_eq,
    cpu::{self, read32, read64, write32, write64},
    cpuid,
    interrupts::{self, Caught},
    on_interrupt, rdmsr, rdtsc, smp, time, wrmsr,
};
use core::{
    arch::asm,
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
};

const STEAL_TIME: u32 = 0x4b56_4d03;
const POLL_CONTROL: u32 = 0x4b56_4d05;
const KICK: u64 = 5;
const SEND_IPI: u64 = 10;
const YIELD: u64 = 11;
const ENOSYS: i64 = -1000;
const EINVAL: i64 = -22;
const VECTOR: u8 = 0x63;
/// Processors of `smp-paravirt`.
const CPUS: usize = 3;

/// `kvm_steal_time`.
#[repr(C, align(64))]
struct StealTime {
    steal: AtomicU64,
    version: AtomicU32,
    flags: AtomicU32,
    preempted: AtomicU8,
    rest: [AtomicU8; 47],
}

impl StealTime {
    const fn new() -> Self {
        Self {
            steal: AtomicU64::new(0),
            version: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            preempted: AtomicU8::new(0),
            rest: [const { AtomicU8::new(0x5a) }; 47],
        }
    }

    fn enable(&self) {
        wrmsr(STEAL_TIME, &raw const *self as u64 | 1);
    }

    /// The time in ns, by the version's protocol.
    fn steal(&self) -> u64 {
        loop {
            let before = self.version.load(Ordering::SeqCst);
            let steal = self.steal.load(Ordering::SeqCst);
            if before & 1 == 0 && self.version.load(Ordering::SeqCst) == before {
                return steal;
            }
        }
    }

    /// Nothing but what belongs to it has been written.
    fn is_whole(&self) -> bool {
        self.flags.load(Ordering::SeqCst) == 0 && self.rest.iter().all(|byte| byte.load(Ordering::SeqCst) == 0x5a)
    }
}

static AREAS: [StealTime; CPUS] = [const { StealTime::new() }; CPUS];

fn hypercall(number: u64, [a0, a1, a2, a3]: [u64; 4]) -> i64 {
    let result: u64;
    let intel = cpuid(0, 0)[1] == 0x756e_6547;
    // SAFETY: the calls used here change nothing but RAX; RBX is put back.
    unsafe {
        if intel {
            asm!("xchg rbx, {a0}", "vmcall", "xchg rbx, {a0}", a0 = inout(reg) a0 => _, inout("rax") number => result,
                in("rcx") a1, in("rdx") a2, in("rsi") a3);
        } else {
            asm!("xchg rbx, {a0}", "vmmcall", "xchg rbx, {a0}", a0 = inout(reg) a0 => _, inout("rax") number => result,
                in("rcx") a1, in("rdx") a2, in("rsi") a3);
        }
    }
    result as i64
}

fn is_gp<T>(result: Result<T, Caught>) -> bool {
    matches!(result, Err(Caught { vector: 13, error: 0, .. }))
}

/// The features, their MSRs' rules, and hypercalls of one processor to itself.
pub fn features(_: &BootInfo) {
    let features = cpuid(0x4000_0001, 0)[0];
    // NOP_IO_DELAY, CLOCKSOURCE2, STEAL_TIME, PV_UNHALT, PV_TLB_FLUSH, PV_SEND_IPI, POLL_CONTROL, PV_SCHED_YIELD, and the stable clock.
    check_eq!(features, 0x0100_3aaa, "features");
    let area = &raw const AREAS[0] as u64;
    for bad in [area | 3, area | 0x21, 1 << 50 | 1, 0xfee0_0000 | 1, 0x0200_0000 | 1] {
        check!(is_gp(catch_msr_write(STEAL_TIME, bad)), "steal time at {bad:#x} raises #GP(0)");
    }
    check_eq!(rdmsr(STEAL_TIME), 0, "off");
    AREAS[0].enable();
    check_eq!(rdmsr(STEAL_TIME), area | 1, "on");
    let version = AREAS[0].version.load(Ordering::SeqCst);
    check!(version != 0 && version & 1 == 0, "version {version}");
    check_eq!(AREAS[0].steal(), 0, "nothing stolen yet");
    check!(AREAS[0].is_whole(), "the rest of the area");
    wrmsr(STEAL_TIME, 0);
    check_eq!(rdmsr(POLL_CONTROL), 1, "the host may poll");
    wrmsr(POLL_CONTROL, 0);
    check_eq!(rdmsr(POLL_CONTROL), 0, "the host may not poll");
    check!(is_gp(catch_msr_write(POLL_CONTROL, 2)), "reserved bits");
    // Not offered: asynchronous page faults, EOI by a bit in memory.
    for index in [0x4b56_4d02, 0x4b56_4d04, 0x4b56_4d06, 0x4b56_4d07, 0x4b56_4d08] {
        check!(is_gp(catch_msr_read(index)) && is_gp(catch_msr_write(index, 0)), "MSR {index:#x}");
    }
    for number in [0, 2, 9, 12, 1 << 32 | SEND_IPI, u64::MAX] {
        check_eq!(hypercall(number, [0; 4]), ENOSYS, "hypercall {number:#x}");
    }
    // To itself.
    apic::enable();
    on_interrupt(VECTOR, |_| apic::eoi());
    check_eq!(hypercall(SEND_IPI, [u64::MAX, u64::MAX, 0, VECTOR.into()]), 1, "one processor has got it");
    check_eq!(interrupts::count(VECTOR), 0, "not with interrupts off");
    cpu::sti();
    time::spin_us(10);
    cpu::cli();
    check_eq!(interrupts::count(VECTOR), 1, "the interrupt");
    check_eq!(hypercall(SEND_IPI, [2, 0, 0, VECTOR.into()]), 0, "nobody has APIC ID 1");
    check_eq!(hypercall(SEND_IPI, [1, 0, 0, 0x800 | u64::from(VECTOR)]), EINVAL, "a logical destination");
    check_eq!(hypercall(SEND_IPI, [1, 0, 0, 0x500]), EINVAL, "INIT");
    check_eq!(hypercall(YIELD, [0; 4]), 0, "giving way to itself");
    // A kick that comes before HLT ends it.
    check_eq!(hypercall(KICK, [0; 4]), 0, "kick");
    cpu::hlt();
}

static STATE: AtomicU32 = AtomicU32::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
static SEEN: AtomicU32 = AtomicU32::new(0);

const SHARED: u64 = 0x3fe0_0000;
const FRAMES: [u64; 2] = [0x100_0000, 0x120_0000];

unsafe extern "C" {
    static boot_pd: u8;
}

fn drop_translation() {
    // SAFETY: drops a translation.
    unsafe { asm!("invlpg [{}]", in(reg) SHARED) };
}

/// Processors that share a CPU: steal time, the flag of one that is off its CPU, TLB flushes by it, kicks, IPIs to many.
pub fn together(_: &BootInfo) {
    check_eq!(smp::start_all(), CPUS, "processors");
    steal_time();
    flushes();
    kicks();
    ipis();
}

/// Two that run for a time are kept waiting by each other, and see when.
fn steal_time() {
    smp::run(1, |_| {
        AREAS[1].enable();
        STATE.store(1, Ordering::SeqCst);
        cpu::sti();
        // Without PAUSE, which would give way.
        while !STOP.load(Ordering::SeqCst) {
            SEEN.fetch_add(1, Ordering::SeqCst);
        }
        cpu::cli();
    });
    check!(time::wait_for(2_000_000, || STATE.load(Ordering::SeqCst) == 1), "processor 1 runs");
    AREAS[0].enable();
    cpu::sti();
    let start = rdtsc();
    let mut away = 0u32;
    while rdtsc() - start < time::tsc_hz() / 10 {
        away += u32::from(AREAS[1].preempted.load(Ordering::SeqCst) == 1);
        check_eq!(AREAS[0].preempted.load(Ordering::SeqCst), 0, "this one runs");
    }
    cpu::cli();
    check!(away > 0, "processor 1 has been off its CPU");
    for (cpu, area) in AREAS.iter().enumerate().take(2) {
        let ms = area.steal() / 1_000_000;
        check!((10..=2000).contains(&ms), "processor {cpu} has waited {ms} ms");
        check!(area.is_whole(), "the rest of the area of processor {cpu}");
    }
    STOP.store(true, Ordering::SeqCst);
    smp::wait(1);
    // Nobody is in the way: no more than what is on its way.
    let before = AREAS[0].steal();
    cpu::sti();
    let start = rdtsc();
    while rdtsc() - start < time::tsc_hz() / 50 {}
    cpu::cli();
    check!(AREAS[0].steal() >= before, "it never goes back");
}

/// A processor that is off its CPU drops its translations when it is back, if it is asked to by its flag.
fn flushes() {
    // SAFETY: only its address is taken.
    let slot = &raw const boot_pd as u64 + 8 * (SHARED >> 21);
    let map = |round: u32| write64(slot, FRAMES[round as usize % 2] | 0x83);
    STOP.store(false, Ordering::SeqCst);
    write32(FRAMES[0], 0);
    map(0);
    drop_translation();
    smp::run(1, |_| {
        drop_translation();
        cpu::sti();
        while !STOP.load(Ordering::SeqCst) {
            SEEN.store(read32(SHARED), Ordering::SeqCst);
        }
        cpu::cli();
    });
    let flags = &AREAS[1].preempted;
    for round in 1..=10u32 {
        write32(FRAMES[round as usize % 2], round);
        // Only of one that is away can it be asked.
        let asked = || {
            if flags.load(Ordering::SeqCst) != 1 {
                return false;
            }
            map(round);
            flags.compare_exchange(1, 3, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        };
        check!(time::wait_for(2_000_000, asked), "processor 1 is away in round {round}");
        drop_translation();
        check!(time::wait_for(2_000_000, || SEEN.load(Ordering::SeqCst) == round), "it sees the mapping of round {round}");
        check!(flags.load(Ordering::SeqCst) & 2 == 0, "the flag is gone");
    }
    STOP.store(true, Ordering::SeqCst);
    smp::wait(1);
}

/// A halted processor goes on when it is kicked, whether it takes interrupts or not, and one that is kicked first does not halt.
fn kicks() {
    static ROUND: AtomicU32 = AtomicU32::new(0);
    smp::run(1, |_| {
        for round in 1..=20 {
            if round % 2 == 0 {
                cpu::sti();
            }
            ROUND.store(round, Ordering::SeqCst);
            cpu::hlt();
            cpu::cli();
        }
        ROUND.store(0, Ordering::SeqCst);
    });
    for round in 1..=20 {
        let there = || ROUND.load(Ordering::SeqCst) == round;
        check!(time::wait_for(2_000_000, there), "processor 1 comes to round {round}");
        time::spin_us(if round < 10 { 3000 } else { 0 });
        check!(there(), "it halts in round {round}");
        check_eq!(hypercall(KICK, [0, 1, 0, 0]), 0, "kick {round}");
    }
    check!(time::wait_for(2_000_000, || ROUND.load(Ordering::SeqCst) == 0), "processor 1 comes out of its last HLT");
    smp::wait(1);
}

/// One hypercall interrupts several processors, halted or not.
fn ipis() {
    on_interrupt(VECTOR, |_| apic::eoi());
    STOP.store(false, Ordering::SeqCst);
    let job = |cpu| {
        while !STOP.load(Ordering::SeqCst) {
            if cpu == 1 {
                cpu::sti_hlt();
            } else {
                cpu::sti();
                core::hint::spin_loop();
            }
        }
        cpu::cli();
    };
    (1..CPUS).for_each(|cpu| smp::run(cpu, job));
    let counts = || [0, 1, 2].map(|cpu| interrupts::count_on(cpu, VECTOR));
    let to = |set: u64, first: u64| hypercall(SEND_IPI, [set, 0, first, VECTOR.into()]);
    let mut expected = counts();
    for round in 0..50u32 {
        let (set, first, targets) =
            [(0b11, 1, &[1, 2][..]), (0b110, 0, &[1, 2]), (1, 2, &[2]), (!0, 1, &[1, 2])][round as usize % 4];
        check_eq!(to(set, first), targets.len() as i64, "receivers in round {round}");
        targets.iter().for_each(|&cpu: &usize| expected[cpu] += 1);
        check!(time::wait_for(2_000_000, || counts() == expected), "round {round}: {:?}, not {expected:?}", counts());
        check_eq!(hypercall(YIELD, [1 + u64::from(round % 2), 0, 0, 0]), 0, "giving way");
    }
    STOP.store(true, Ordering::SeqCst);
    check_eq!(to(0b11, 1), 2, "the last");
    (1..CPUS).for_each(smp::wait);
    check!(read64(&raw const AREAS[0] as u64) == AREAS[0].steal(), "the time is first in its area");
}
