//! Several processors: start-up, INIT, memory that they share, time, topology.

use crate::rt::{
    BootInfo, apic, catch_msr_write, check, check_eq,
    cpu::{self, read32, read64, write32, write64},
    cpuid, interrupts, on_interrupt, rdmsr, rdtsc,
    smp::{self, FIXED, INIT, MAX_CPUS, OTHER_PAGE, PAGE, SIPI, ipi, starts},
    time, wrmsr,
};
use core::{
    arch::asm,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

const VECTOR: u8 = 0x61;

/// All processors of the MADT start with INIT and SIPI (SDM vol. 3A, 9.4 and 11.4.7.3), each with its own APIC id, its APIC as after reset
/// and IA32_APIC_BASE.BSP on the boot processor alone.
pub fn startup(_: &BootInfo) {
    apic::enable();
    check!(rdmsr(apic::APIC_BASE) & 1 << 8 != 0, "this is the boot processor");
    let cpus = smp::madt_ids().count();
    check!(cpus > 1, "more than one processor in the MADT");
    for cpu in 1..cpus {
        check_eq!(starts(cpu), 0, "processor {cpu} waits for its SIPI");
        smp::start(cpu);
        check_eq!(starts(cpu), 1, "the second SIPI to processor {cpu} does nothing");
        let seen = smp::seen(PAGE);
        check_eq!(seen.cs, u32::from(PAGE) << 8, "CS of processor {cpu}");
        check_eq!(seen.edx, cpuid(1, 0)[0], "EDX of processor {cpu}");
        check_eq!([seen.cr0, seen.cr4], [0x6000_0010, 0], "CR0 and CR4 of processor {cpu}");
    }
    smp::on_others(cpus, |cpu| {
        let id = cpu as u32;
        check_eq!(apic::read(apic::reg::ID) >> 24, id, "local APIC ID of processor {cpu}");
        check_eq!(smp::initial_id(), id, "CPUID leaf 1 of processor {cpu}");
        check_eq!(cpuid(0xb, 0)[3], id, "CPUID leaf 0BH of processor {cpu}");
        check_eq!(rdmsr(apic::APIC_BASE), apic::LAPIC | 1 << 11, "IA32_APIC_BASE of processor {cpu}");
        check_eq!(apic::read(apic::reg::SVR), 0xff, "APIC of processor {cpu} is software-disabled");
        for entry in [apic::reg::LVT_TIMER, apic::reg::LVT_LINT0, apic::reg::LVT_LINT1] {
            check_eq!(apic::read(entry), 1 << 16, "LVT entry {entry:#x} of processor {cpu}");
        }
    });
    // Nobody is there.
    ipi(cpus as u32, INIT);
    ipi(cpus as u32, SIPI | u32::from(PAGE));
    time::spin_us(1000);
    for cpu in 1..cpus {
        check_eq!(starts(cpu), 1, "processor {cpu} has started once");
    }
}

static BEATS: AtomicU64 = AtomicU64::new(0);
/// What [`BEATS`] says of a processor that is about to halt.
const HALTS: u64 = 0xa17;
static TSC_BEFORE: AtomicU64 = AtomicU64::new(0);
const PATTERN: u64 = 0x0123_4567_89ab_cdef;

/// Sets what INIT must keep and what it must reset, then runs a loop that nothing but INIT ends and that has no exits.
fn prepare_for_init(_: usize) {
    apic::enable();
    apic::write(apic::reg::TPR, 0x40);
    apic::write(apic::reg::LVT_LINT0, 0x77);
    cpu::write_cr4(cpu::read_cr4() | 3 << 9);
    wrmsr(0xc000_0082, 0xffff_8000_0000_1000);
    wrmsr(0x277, 0x0007_0406_0007_0106);
    wrmsr(0x3b, 1 << 40);
    // SAFETY: DR0 is not armed; nothing else uses XMM3.
    unsafe { asm!("mov dr0, {0}", "movq xmm3, {0}", in(reg) PATTERN) };
    TSC_BEFORE.store(rdtsc(), Ordering::SeqCst);
    cpu::sti();
    beat()
}

fn beat() -> ! {
    loop {
        BEATS.fetch_add(1, Ordering::SeqCst);
    }
}

/// True if processor 1 still runs its loop.
fn beats() -> bool {
    beats_within(1_000_000)
}

/// True if it does not, and would have in this time: several time slices.
fn is_still() -> bool {
    !beats_within(40_000)
}

fn beats_within(us: u64) -> bool {
    let before = BEATS.load(Ordering::SeqCst);
    time::wait_for(us, || BEATS.load(Ordering::SeqCst) != before)
}

/// INIT stops a processor whatever it does, resets registers, control registers and the local APIC, and keeps x87 and vector registers,
/// MSRs, the TSC, and the mode of the APIC (SDM vol. 3A, table 11-1 and 11.4.7.3); a SIPI then starts it again, at its own page.
pub fn init_again(_: &BootInfo) {
    smp::start_all();
    smp::run(1, prepare_for_init);
    check!(beats(), "processor 1 runs");
    // It runs already: a SIPI means nothing to it.
    ipi(1, SIPI | u32::from(OTHER_PAGE));
    check!(beats(), "a SIPI does not touch a running processor");
    // INIT level de-assert does nothing, either.
    ipi(1, 0x8500);
    check!(beats(), "INIT level de-assert does nothing");
    ipi(1, INIT);
    time::spin_us(20_000);
    check!(is_still(), "INIT stops a processor in a loop");
    ipi(1, FIXED | u32::from(VECTOR));
    check!(is_still() && starts(1) == 1, "it waits for a SIPI and for nothing else");

    smp::prepare(OTHER_PAGE);
    let restart = || {
        let before = starts(1);
        ipi(1, SIPI | u32::from(OTHER_PAGE));
        ipi(1, SIPI | u32::from(PAGE));
        check!(time::wait_for(2_000_000, || starts(1) == before + 1), "the SIPI starts it again");
        time::spin_us(20_000);
        check_eq!(starts(1), before + 1, "and the second does nothing");
    };
    // What the interrupted job was: forgotten, as its processor is.
    smp::forget(1);
    restart();
    let seen = smp::seen(OTHER_PAGE);
    check_eq!(seen.cs, u32::from(OTHER_PAGE) << 8, "it starts at the page of the first SIPI");
    check_eq!(seen.edx, cpuid(1, 0)[0], "EDX has the signature");
    check_eq!([seen.cr0, seen.cr4], [0x10, 0], "CR0 keeps CD and NW, which were clear; CR4 is reset");
    smp::run(1, |_| {
        check_eq!(apic::read(apic::reg::SVR), 0xff, "SVR is reset");
        check_eq!(apic::read(apic::reg::TPR), 0, "TPR is reset");
        check_eq!(apic::read(apic::reg::LVT_LINT0), 1 << 16, "LVT is reset");
        check_eq!(apic::read(apic::reg::IRR + 0x30), 0, "IRR is empty");
        check_eq!(rdmsr(0xc000_0082), 0xffff_8000_0000_1000, "LSTAR is kept");
        check_eq!(rdmsr(0x277), 0x0007_0406_0007_0106, "PAT is kept");
        check_eq!(rdmsr(0x3b), 1 << 40, "TSC_ADJUST is kept");
        check!(rdtsc() > TSC_BEFORE.load(Ordering::SeqCst), "the TSC has gone on");
        let (dr0, xmm3): (u64, u64);
        // SAFETY: reads registers, with CR4.OSFXSR set for it.
        unsafe {
            cpu::write_cr4(cpu::read_cr4() | 3 << 9);
            asm!("mov {0}, dr0", "movq {1}, xmm3", out(reg) dr0, out(reg) xmm3);
        }
        check_eq!(dr0, 0, "DR0 is reset");
        check_eq!(xmm3, PATTERN, "XMM3 is kept");
        wrmsr(0x3b, 0);
        apic::enable_x2();
    });
    smp::wait(1);
    // From HLT, and in x2APIC mode.
    smp::run(1, |_| {
        cpu::cli();
        BEATS.store(HALTS, Ordering::SeqCst);
        cpu::hlt();
        BEATS.store(1, Ordering::SeqCst);
    });
    check!(time::wait_for(2_000_000, || BEATS.load(Ordering::SeqCst) == HALTS), "it halts");
    time::spin_us(1000);
    ipi(1, INIT);
    time::spin_us(1000);
    smp::forget(1);
    restart();
    check_eq!(BEATS.load(Ordering::SeqCst), HALTS, "HLT has not ended");
    smp::run(1, |_| {
        check_eq!(rdmsr(apic::APIC_BASE) >> 10 & 3, 3, "the APIC is in x2APIC mode still");
        check_eq!(rdmsr(0x802), 1, "and has its ID");
        check_eq!(rdmsr(0x80f), 0xff, "but is reset");
    });
    smp::wait(1);
}

/// A processor in a loop with interrupts off and without anything that exits leaves the others their time, takes NMIs and is stopped by INIT.
pub fn busy_loop(_: &BootInfo) {
    smp::start_all();
    on_interrupt(2, |_| {});
    smp::run(1, |_| {
        cpu::cli();
        beat()
    });
    check!(beats(), "processor 1 runs");
    for round in 1..=5 {
        ipi(1, smp::NMI);
        check!(time::wait_for(2_000_000, || interrupts::count_on(1, 2) == round), "NMI {round} comes");
        check!(beats(), "and the loop goes on");
    }
    ipi(1, INIT);
    time::spin_us(20_000);
    check!(is_still(), "INIT stops it");
}

/// INIT to the boot processor restarts the machine: at the reset vector there is firmware, which does so.
pub fn init_boot_processor(_: &BootInfo) {
    smp::start_all();
    smp::run(1, |_| ipi(0, INIT));
    time::spin_us(2_000_000);
    panic!("still running");
}

static LOCK: AtomicBool = AtomicBool::new(false);

fn locked<R>(body: impl FnOnce() -> R) -> R {
    while LOCK.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
        core::hint::spin_loop();
    }
    let result = body();
    LOCK.store(false, Ordering::Release);
    result
}

static LATEST: AtomicU64 = AtomicU64::new(0);
static CPUS: AtomicU32 = AtomicU32::new(0);

fn count() -> u32 {
    CPUS.load(Ordering::SeqCst)
}

fn start_all() -> usize {
    let cpus = smp::start_all();
    CPUS.store(cpus as u32, Ordering::SeqCst);
    cpus
}

const CLOCK_PAGE: u64 = 0x9_2000;
const SYSTEM_TIME: u32 = 0x4b56_4d01;

/// Nanoseconds by the clock page of processor `cpu` (Linux, Documentation/virt/kvm/x86/msr.rst).
fn clock(cpu: usize) -> u64 {
    let page = CLOCK_PAGE + 32 * cpu as u64;
    loop {
        let version = read32(page);
        let delta = rdtsc().wrapping_sub(read64(page + 8));
        let (mul, shift) = (read32(page + 24), cpu::read8(page + 28) as i8);
        let shifted = if shift >= 0 { delta << shift } else { delta >> -shift };
        let ns = read64(page + 16).wrapping_add(((u128::from(shifted) * u128::from(mul)) >> 32) as u64);
        if version & 1 == 0 && read32(page) == version {
            return ns;
        }
    }
}

/// The TSCs of all processors are in step (SDM vol. 3B, 18.17.3): none reads less than another has read before. So are the clock pages, which
/// say it of themselves. IA32_TSC_ADJUST moves one processor's TSC alone.
pub fn tsc(_: &BootInfo) {
    let cpus = start_all();
    smp::on_all(cpus, |cpu| {
        check_eq!(rdmsr(0x3b), 0, "TSC_ADJUST of processor {cpu}");
        for round in 0..2000 {
            locked(|| {
                let (now, latest) = (rdtsc(), LATEST.load(Ordering::Relaxed));
                check!(now > latest, "round {round}: processor {cpu} reads {now}, another has read {latest}");
                LATEST.store(now, Ordering::Relaxed);
            });
        }
    });
    LATEST.store(0, Ordering::SeqCst);
    smp::on_all(cpus, |cpu| {
        let page = CLOCK_PAGE + 32 * cpu as u64;
        // They need not be set up at the same time.
        time::spin_us(100 * cpu as u64);
        wrmsr(SYSTEM_TIME, page | 1);
        check_eq!(cpu::read8(page + 29) & 1, 1, "the clock of processor {cpu} is stable");
    });
    smp::on_all(cpus, |cpu| {
        for round in 0..2000 {
            locked(|| {
                let (now, latest) = (clock(cpu), LATEST.load(Ordering::Relaxed));
                check!(now >= latest, "round {round}: the clock of processor {cpu} is at {now}, another was at {latest}");
                LATEST.store(now, Ordering::Relaxed);
            });
        }
    });
    smp::run(1, |_| wrmsr(0x3b, 1 << 40));
    smp::wait(1);
    check!(rdtsc() < 1 << 40, "another's TSC_ADJUST does not move this TSC");
    smp::run(1, |cpu| {
        check!(rdtsc() > 1 << 40, "but its own");
        let ns = clock(cpu);
        check!(ns < 60_000_000_000, "and the clock page follows: {ns} ns");
        wrmsr(0x3b, 0);
        check!(catch_msr_write(SYSTEM_TIME, 0).is_ok(), "the clock page is given back");
    });
    smp::wait(1);
}

static ROUNDS: AtomicU32 = AtomicU32::new(0);

/// An IPI ends another processor's HLT (with interrupts on), soon, and only that one's; an idle processor costs the others nothing.
pub fn hlt_wake(_: &BootInfo) {
    const COUNT: u32 = 100;
    let cpus = start_all();
    on_interrupt(VECTOR, |_| apic::eoi());
    // Each answers for one processor after the other, from HLT to HLT.
    smp::run(1, |cpu| {
        for round in 1..=COUNT {
            while interrupts::count_on(cpu, VECTOR) < round {
                cpu::sti_hlt();
            }
            ROUNDS.fetch_add(1, Ordering::SeqCst);
            ipi(0, FIXED | u32::from(VECTOR));
        }
    });
    for cpu in 2..cpus {
        smp::run(cpu, |_| {
            cpu::sti_hlt();
        });
    }
    time::spin_us(1000);
    let start = rdtsc();
    for round in 1..=COUNT {
        ipi(1, FIXED | u32::from(VECTOR));
        while interrupts::count(VECTOR) < round {
            cpu::sti_hlt();
        }
        check_eq!(ROUNDS.load(Ordering::SeqCst), round, "answers by round {round}");
    }
    let average = (rdtsc() - start) * 1_000_000 / time::tsc_hz() / u64::from(COUNT);
    check!(average < 5000, "a round from HLT to HLT takes {average} us");
    smp::wait(1);
    for cpu in 2..cpus {
        check_eq!(interrupts::count_on(cpu, VECTOR), 0, "processor {cpu} was not meant");
        ipi(cpu as u32, FIXED | u32::from(VECTOR));
        smp::wait(cpu);
    }
    // The one that wakes it goes on without giving way: the other runs all the same.
    smp::run(1, |_| {
        cpu::sti_hlt();
        ROUNDS.store(0, Ordering::SeqCst);
    });
    time::spin_us(1000);
    let start = rdtsc();
    ipi(1, FIXED | u32::from(VECTOR));
    cpu::sti();
    while ROUNDS.load(Ordering::SeqCst) != 0 && rdtsc() - start < time::tsc_hz() {}
    cpu::cli();
    check_eq!(ROUNDS.load(Ordering::SeqCst), 0, "processor 1 woke while this one was busy");
    smp::wait(1);
}

const SHARED: u64 = 0x3fe0_0000;
const FRAMES: [u64; 2] = [0x100_0000, 0x120_0000];

unsafe extern "C" {
    static boot_pd: u8;
}

fn drop_translation() {
    // SAFETY: drops a translation.
    unsafe { asm!("invlpg [{}]", in(reg) SHARED) };
}

/// TLB shootdown: after one processor has changed a mapping and the others have served its IPI with INVLPG, they see the new page
/// (SDM vol. 3A, 5.10.5).
pub fn shootdown(_: &BootInfo) {
    static SERVED: AtomicU32 = AtomicU32::new(0);
    static STOP: AtomicBool = AtomicBool::new(false);
    static SEEN: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
    let cpus = start_all();
    // SAFETY: only its address is taken.
    let slot = &raw const boot_pd as u64 + 8 * (SHARED >> 21);
    let map = |round: u32| write64(slot, FRAMES[round as usize % 2] | 0x83);
    on_interrupt(VECTOR, |_| {
        drop_translation();
        SERVED.fetch_add(1, Ordering::SeqCst);
        apic::eoi();
    });
    map(0);
    drop_translation();
    smp::on_others(cpus, |_| drop_translation());
    for cpu in 1..cpus {
        smp::run(cpu, |cpu| {
            cpu::sti();
            while !STOP.load(Ordering::SeqCst) {
                SEEN[cpu].store(read32(SHARED), Ordering::SeqCst);
                core::hint::spin_loop();
            }
            cpu::cli();
        });
    }
    for round in 1..=200u32 {
        write32(FRAMES[round as usize % 2], round);
        map(round);
        drop_translation();
        SERVED.store(0, Ordering::SeqCst);
        // To all but this one.
        ipi(0, 3 << 18 | FIXED | u32::from(VECTOR));
        check!(time::wait_for(5_000_000, || SERVED.load(Ordering::SeqCst) == cpus as u32 - 1), "all serve IPI {round}");
        for (cpu, seen) in SEEN.iter().enumerate().take(cpus).skip(1) {
            // What it stores from now on was read after the IPI, but for one value that may be on its way.
            let new = || seen.load(Ordering::SeqCst) == round;
            check!(time::wait_for(2_000_000, new), "processor {cpu} sees the mapping of round {round}");
        }
        check_eq!(read32(SHARED), round, "so does this one");
        // The old page changes: nobody may look at it any more.
        write32(FRAMES[(round as usize + 1) % 2], 0xdead);
        for (cpu, seen) in SEEN.iter().enumerate().take(cpus).skip(1) {
            check_eq!(seen.load(Ordering::SeqCst), round, "processor {cpu} keeps seeing the new page");
        }
    }
    STOP.store(true, Ordering::SeqCst);
    (1..cpus).for_each(smp::wait);
}

static COUNTER: AtomicU64 = AtomicU64::new(0);
static TURN: AtomicU32 = AtomicU32::new(0);

/// Locked instructions are atomic among processors (SDM vol. 3A, 9.1); and a processor that waits for another in a PAUSE loop leaves it the
/// time that it needs.
pub fn lock(_: &BootInfo) {
    const EACH: u64 = 5000;
    static PLAIN: AtomicU64 = AtomicU64::new(0);
    let cpus = start_all();
    smp::on_all(cpus, |_| {
        for _ in 0..EACH {
            COUNTER.fetch_add(1, Ordering::Relaxed);
            // Not atomic by itself: the lock makes it so.
            locked(|| PLAIN.store(PLAIN.load(Ordering::Relaxed) + 1, Ordering::Relaxed));
        }
    });
    let all = EACH * cpus as u64;
    check_eq!(COUNTER.load(Ordering::SeqCst), all, "LOCK XADD");
    check_eq!(PLAIN.load(Ordering::SeqCst), all, "under a lock");
    // Handing over from one to the next. Where PAUSE gives way, that takes microseconds, else the rest of a time slice; longer means that somebody
    // starves.
    const HAND_OVERS: u32 = 400;
    let start = rdtsc();
    smp::on_all(cpus, |cpu| {
        loop {
            let turn = TURN.load(Ordering::SeqCst);
            if turn >= HAND_OVERS {
                return;
            }
            if turn % count() == cpu as u32 {
                TURN.store(turn + 1, Ordering::SeqCst);
            }
            core::hint::spin_loop();
        }
    });
    let average = (rdtsc() - start) * 1_000_000 / time::tsc_hz() / u64::from(HAND_OVERS);
    check!(average < 50_000, "a hand-over between waiting processors takes {average} us");
}

/// CPUID's topology (leaves 1, 4, 0BH; 8000_0008H, 8000_001DH and 8000_001EH on AMD) is one package of as many cores as the MADT has, the
/// same on all of them but for the APIC id.
pub fn topology(_: &BootInfo) {
    let cpus = start_all();
    for (index, id) in smp::madt_ids().enumerate() {
        check_eq!(id, index as u32, "APIC ids in the MADT are those of the processors, in order");
    }
    smp::on_all(cpus, |cpu| {
        let (id, count) = (cpu as u32, count());
        let bits = count.next_power_of_two().trailing_zeros();
        let amd = cpuid(0, 0)[1] != 0x756e_6547;
        let [_, ebx, _, edx] = cpuid(1, 0);
        check_eq!(ebx >> 24, id, "leaf 1: initial APIC id");
        check_eq!(edx >> 28 & 1, 1, "leaf 1: HTT");
        let ids = if amd { count } else { 1 << bits };
        check_eq!(ebx >> 16 & 0xff, ids, "leaf 1: APIC ids in the package of processor {cpu}");
        check_eq!(cpuid(0xb, 0), [0, 1, 0x100, id], "leaf 0BH, threads");
        check_eq!(cpuid(0xb, 1), [bits, count, 0x201, id], "leaf 0BH, cores");
        check_eq!([cpuid(0xb, 2)[1], cpuid(0xb, 2)[2] >> 8], [0, 0], "leaf 0BH ends");
        if !amd {
            for index in (0..8).take_while(|&index| cpuid(4, index)[0] & 0x1f != 0) {
                let eax = cpuid(4, index)[0];
                check_eq!(eax >> 26, (1 << bits) - 1, "leaf 4: core ids");
                let sharing = eax >> 14 & 0xfff;
                check_eq!(sharing, if eax >> 5 & 7 < 3 { 0 } else { (1 << bits) - 1 }, "leaf 4: sharing of cache {index}");
            }
            return;
        }
        let ecx = cpuid(0x8000_0008, 0)[2];
        check_eq!([ecx & 0xff, ecx >> 12 & 0xf], [count - 1, bits], "leaf 8000_0008H");
        check_eq!(cpuid(0x8000_0001, 0)[2] >> 1 & 1, 1, "leaf 8000_0001H: CMP_LEGACY");
        if cpuid(0x8000_0001, 0)[2] & 1 << 22 != 0 {
            check_eq!(cpuid(0x8000_001e, 0), [id, id, 0, 0], "leaf 8000_001EH: a core of one thread, one node");
            for index in (0..8).take_while(|&index| cpuid(0x8000_001d, index)[0] & 0x1f != 0) {
                let eax = cpuid(0x8000_001d, index)[0];
                let sharing = if eax >> 5 & 7 < 3 { 0 } else { count - 1 };
                check_eq!(eax >> 14 & 0xfff, sharing, "leaf 8000_001DH: sharing of cache {index}");
            }
        }
    });
}
