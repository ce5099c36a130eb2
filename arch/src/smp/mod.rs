//! The other CPUs: starting them, handing them to the hypervisor, having things done on them, and stopping them.
//!
//! A further CPU goes through the [`trampoline`] to [`further_cpu`], sets itself up as the boot CPU has, and waits, halted, until
//! [`run`] tells it what to do. One that does not come, or cannot do what the boot CPU can, is left out: it is put back to where the firmware had
//! it, waiting for a start-up IPI.

pub mod call;
mod clocks;
pub mod stop;
mod trampoline;

use crate::acpi::CpuInfo;
use crate::apic::{self, Mode, vectors};
use crate::cpu::percpu::{self, MAX_CPUS, PerCpu};
use crate::cpu::stack::{self, Stacks};
use crate::cpu::{self, cr, features, features::Features, msr, mtrr::Mtrrs, trap};
use crate::mm::{self, direct, frames};
use crate::{timer, tsc};
use alloc::{boxed::Box, vec::Vec};
use call::Turn;
use clocks::Meeting;
use core::fmt::Display;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use spin::Once;
use trampoline::{Taken, Trampoline};
use x86defs::{
    PAGE_SIZE,
    msr::{IA32_TIME_STAMP_COUNTER, IA32_TSC_ADJUST},
};

/// CPUs that are up, the boot CPU included: those with the numbers below.
static ONLINE: AtomicU32 = AtomicU32::new(1);
/// What further CPUs are to do.
static MAIN: Once<&'static (dyn Fn(u32) + Sync)> = Once::new();
/// What they need to know to become like the boot CPU.
static MODEL: Once<Model> = Once::new();
static TURN: Turn = Turn::new();

struct Model {
    features: Features,
    mtrrs: Option<Mtrrs>,
}

/// Microseconds: between INIT and the start-up IPI, and between that and the second one (SDM vol. 3A, 10.4.4.1).
const AFTER_INIT: u64 = 10_000;
const AFTER_STARTUP: u64 = 200;
/// So many microseconds a CPU gets to come, and again as many to set itself up: long, because an emulator's CPUs may share one.
const PATIENCE: u64 = 1_000_000;
/// Microseconds that comparing two TSCs may take; a busy emulator needs many, hardware less than one thousand.
const COMPARING: u64 = 1_000_000;

/// CPUs that are up: numbers 0, the boot CPU, to `online() - 1`.
#[inline]
#[must_use]
pub fn online() -> u32 {
    ONLINE.load(Ordering::Acquire)
}

/// Which CPUs of the MADT are started, and which are not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Plan {
    /// APIC IDs in the order in which they are tried, the boot CPU's not among them.
    candidates: Vec<u32>,
    /// So many of them are started.
    room: usize,
    /// APIC IDs that need x2APIC mode, which the boot CPU does not have.
    unreachable: Vec<u32>,
    /// So many more are wanted than are supported.
    beyond: usize,
}

/// `cpus`: all that are enabled, without repetition. At most `limit` are used, the boot CPU included, whether it is listed or not.
fn plan(cpus: &[CpuInfo], boot: u32, mode: Mode, limit: Option<u32>) -> Plan {
    // 255 is the broadcast address in xAPIC mode.
    let reachable = |id: &u32| mode == Mode::X2Apic || *id < 0xff;
    let (candidates, unreachable): (Vec<u32>, Vec<u32>) =
        cpus.iter().map(|cpu| cpu.apic_id).filter(|&id| id != boot).partition(reachable);
    let wanted = candidates.len().min(limit.map_or(usize::MAX, |limit| limit.max(1) as usize) - 1);
    let room = wanted.min(MAX_CPUS - 1);
    Plan { candidates, room, unreachable, beyond: wanted - room }
}

/// How a CPU's time-stamp counter compares with the boot CPU's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Synchrony {
    Synchronous,
    /// It was ahead by so many ticks, and has been set right.
    Corrected(i64),
    /// It is ahead by so many ticks.
    Off(i64),
    /// The comparison did not get anywhere.
    Unknown,
}

/// A further CPU that is up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Started {
    pub number: u32,
    pub apic_id: u32,
    pub tsc: Synchrony,
}

/// Starts the further CPUs among `cpus`, as long as there are no more than `limit` with the boot CPU. Those that stay behind are named in the log.
///
/// # Safety
/// Once, on the boot CPU, with its interrupt controller and its timer set up. `boot_features` are those that it was set up with.
pub unsafe fn start(cpus: &[CpuInfo], boot_features: &Features, limit: Option<u32>) -> Vec<Started> {
    trap::set_handler(vectors::CALL, called);
    let plan = plan(cpus, apic::id(), apic::mode(), limit);
    for id in &plan.unreachable {
        log::warn!("CPU with APIC ID {id}: cannot be reached without x2APIC, left out");
    }
    if plan.beyond > 0 {
        log::warn!("{} CPUs left out: at most {MAX_CPUS} are supported", plan.beyond);
    }
    if plan.room == 0 {
        return Vec::new();
    }
    MODEL.call_once(|| Model { features: *boot_features, mtrrs: Mtrrs::read() });
    let stacks = allocate_stacks(plan.room);
    if stacks.len() < plan.room {
        log::warn!("{} CPUs left out: no memory for their stacks", plan.room - stacks.len());
    }
    match Trampoline::new(frames::trampoline()) {
        Ok(trampoline) => start_all(&trampoline, &plan.candidates, stacks),
        Err(reason) => {
            log::warn!("only the boot CPU is used: {reason}");
            Vec::new()
        }
    }
}

/// One after the other, as long as there are stacks: those that come get the next number and the next stacks.
fn start_all(trampoline: &Trampoline, ids: &[u32], stacks: Vec<Stacks>) -> Vec<Started> {
    let mut started = Vec::new();
    let mut stacks = stacks.into_iter();
    let mut next = stacks.next();
    for &apic_id in ids {
        let Some(own) = next else { break };
        match start_one(trampoline, apic_id, own) {
            Ok(cpu) => {
                started.push(Started { number: cpu.number(), apic_id, tsc: synchronise(cpu) });
                next = stacks.next();
            }
            Err(reason) => {
                // Back to waiting for a start-up IPI, whatever it is doing.
                apic::send_init(apic_id);
                log::warn!("CPU with APIC ID {apic_id}: {reason}, left out");
                // Stacks that it might still be using are not given to another one.
                if reason != NotStarted::Silent {
                    next = stacks.next();
                }
            }
        }
    }
    started
}

/// Stacks for so many CPUs, or as many as there is memory for. Their guard pages are unmapped, here, before there are other CPUs that would have
/// to be told.
fn allocate_stacks(count: usize) -> Vec<Stacks> {
    (0..count)
        .map_while(|_| {
            let block = frames::allocate(stack::BLOCK_SIZE / PAGE_SIZE, 1)?;
            let stacks = Stacks::within(direct::to_virt(block) as u64);
            let guards = stacks.named().into_iter().map(|(_, bounds)| bounds.guard());
            // On an error, the block is lost: some of it may be unmapped. There is no memory left anyway.
            mm::unmap_guards(guards).ok().map(|()| stacks)
        })
        .collect()
}

/// Why a CPU is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum NotStarted {
    /// It has not come.
    Silent,
    /// It has come, but was not heard of again.
    Lost,
    NoLongMode,
    /// It lacks something that the boot CPU has and the host uses.
    LacksFeatures,
}

impl Display for NotStarted {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Silent => "does not start",
            Self::Lost => "started, but did not get through its set-up",
            Self::NoLongMode => "has no long mode or no no-execute bit",
            Self::LacksFeatures => "lacks features that the boot CPU has",
        })
    }
}

/// What a further CPU finds when it comes. Never freed: it might come late.
struct Arrival {
    cpu: &'static PerCpu,
    stacks: Stacks,
    state: AtomicU32,
    /// Its MTRRs were not the boot CPU's.
    mtrrs_differed: AtomicBool,
}

/// States of an arrival.
mod arrival {
    pub const EXPECTED: u32 = 0;
    pub const UP: u32 = 1;
    pub const LACKS_FEATURES: u32 = 2;
}

/// Waits until `done` gives something, but no longer than so many microseconds.
fn wait_for<T>(us: u64, done: impl Fn() -> Option<T>) -> Option<T> {
    const STEP: u64 = 50;
    for _ in 0..us / STEP {
        if let Some(result) = done() {
            return Some(result);
        }
        tsc::delay_us(STEP);
    }
    done()
}

fn start_one(trampoline: &Trampoline, apic_id: u32, stacks: Stacks) -> Result<&'static PerCpu, NotStarted> {
    let cpu: &PerCpu = Box::leak(Box::new(PerCpu::new(online(), apic_id)));
    let state = AtomicU32::new(arrival::EXPECTED);
    let arrival: &Arrival = Box::leak(Box::new(Arrival { cpu, stacks, state, mtrrs_differed: AtomicBool::new(false) }));
    percpu::register(cpu);
    let result = summon(trampoline, arrival);
    match result {
        Ok(()) => {
            ONLINE.store(cpu.number() + 1, Ordering::Release);
            if arrival.mtrrs_differed.load(Ordering::Relaxed) {
                log::info!("CPU {}: its MTRRs differed from the boot CPU's, corrected", cpu.number());
            }
            Ok(cpu)
        }
        Err(reason) => {
            percpu::retire(cpu.number());
            Err(reason)
        }
    }
}

fn summon(trampoline: &Trampoline, arrival: &'static Arrival) -> Result<(), NotStarted> {
    let apic_id = arrival.cpu.apic_id();
    let came = || Some(trampoline.taken()).filter(|&taken| taken != Taken::No);
    trampoline.offer_to(apic_id, arrival.stacks.boot.top, &raw const *arrival as u64);
    apic::send_init(apic_id);
    tsc::delay_us(AFTER_INIT);
    apic::send_startup(apic_id, trampoline.page_number());
    if wait_for(AFTER_STARTUP, came).is_none() {
        apic::send_startup(apic_id, trampoline.page_number());
    }
    let came = wait_for(PATIENCE, came).unwrap_or_else(|| trampoline.withdraw());
    match came {
        Taken::No => return Err(NotStarted::Silent),
        Taken::Unfit => return Err(NotStarted::NoLongMode),
        Taken::Yes => {}
    }
    let set_up = || Some(arrival.state.load(Ordering::Acquire)).filter(|&state| state != arrival::EXPECTED);
    match wait_for(PATIENCE, set_up) {
        Some(arrival::UP) => Ok(()),
        // Its last step may have been to find that it has no long mode.
        None if trampoline.taken() == Taken::Unfit => Err(NotStarted::NoLongMode),
        None => Err(NotStarted::Lost),
        Some(_) => Err(NotStarted::LacksFeatures),
    }
}

/// Where a further CPU comes from the trampoline, on its own stack and on the host's page tables: it becomes like the boot CPU, and waits.
extern "sysv64" fn further_cpu(argument: u64) -> ! {
    // SAFETY: the boot CPU has put the address of an `Arrival` into the trampoline, which only this CPU could take.
    let arrival = unsafe { &*(argument as *const Arrival) };
    let cpu = arrival.cpu;
    // SAFETY: the first thing that this CPU does; the stacks are its own, and the boot CPU has filled the IDT.
    unsafe { cpu.install(arrival.stacks) };
    if let Some(model) = MODEL.get() {
        if !features::detect().covers(&model.features) {
            arrival.state.store(arrival::LACKS_FEATURES, Ordering::Release);
            cr::halt_forever();
        }
        // SAFETY: the CPU has what the boot CPU has, and runs on the same tables.
        unsafe { features::set_up(&model.features) };
        if let Some(mtrrs) = &model.mtrrs
            && Mtrrs::read().as_ref() != Some(mtrrs)
        {
            // SAFETY: they are the boot CPU's.
            unsafe { mtrrs.write() };
            arrival.mtrrs_differed.store(true, Ordering::Relaxed);
        }
    }
    // SAFETY: once on this CPU, with the IDT loaded, after the boot CPU.
    unsafe { apic::init_cpu() };
    timer::init_cpu();
    arrival.state.store(arrival::UP, Ordering::Release);
    loop {
        if cpu.stopped.load(Ordering::Acquire) {
            cr::halt_forever();
        }
        if let Some(main) = MAIN.get() {
            main(cpu.number());
            // It was not to return.
            cr::halt_forever();
        }
        cpu::wait_for_interrupt();
    }
}

/// Serves the interrupt that says that the mailbox has something in it.
fn called() {
    apic::end_of_interrupt();
    percpu::current().mailbox.serve();
}

/// Has `run` called once on each of the CPUs `targets` (numbers, each once), this one perhaps among them, and waits until all have done it. A
/// CPU that runs a guest leaves it for that; one that runs the host's code comes to it when it next lets interrupts in.
///
/// The caller holds no lock that another CPU may be spinning on, and `run` does not call others itself. Two CPUs may call each other.
pub fn call_on(targets: impl Iterator<Item = u32> + Clone, run: &(dyn Fn() + Sync)) {
    let own = percpu::current().number();
    let here = targets.clone().any(|number| number == own);
    call_others(targets, run, || {
        if here {
            run();
        }
    });
}

/// As [`call_on`], for the `targets` other than this CPU; `meanwhile` runs here at the same time.
fn call_others<R>(targets: impl Iterator<Item = u32> + Clone, run: &(dyn Fn() + Sync), meanwhile: impl FnOnce() -> R) -> R {
    let own = percpu::current();
    let number = own.number();
    let others = targets.filter(|&target| target != number && target < online()).filter_map(percpu::get);
    let notify = |index| {
        if let Some(cpu) = others.clone().nth(index) {
            apic::call(cpu.apic_id());
        }
    };
    TURN.call(&own.mailbox, others.clone().map(|cpu| &cpu.mailbox), notify, run, meanwhile)
}

/// Has `enable` called on every CPU but this one, one after the other, by ascending number. One where it fails is left out, says why, and halts;
/// those that follow get its number, so that the numbers stay without gaps. While nothing uses the numbers yet.
pub fn enable_all<E: Display + Send>(enable: impl Fn() -> Result<(), E> + Sync) {
    let mut number = 1;
    while number < online() {
        let result = spin::Mutex::new(None);
        call_on(core::iter::once(number), &|| *result.lock() = Some(enable()));
        match (result.into_inner(), percpu::get(number)) {
            (Some(Err(reason)), Some(cpu)) => {
                log::error!("CPU with APIC ID {}: {reason}; left out", cpu.apic_id());
                cpu.stopped.store(true, Ordering::Release);
                apic::kick(cpu.apic_id());
                percpu::retire(number);
                ONLINE.fetch_sub(1, Ordering::AcqRel);
            }
            _ => number += 1,
        }
    }
}

/// Lets every further CPU call `main` with its number. Once.
pub fn run(main: &'static (dyn Fn(u32) + Sync)) {
    MAIN.call_once(|| main);
    for cpu in (1..online()).filter_map(percpu::get) {
        apic::kick(cpu.apic_id());
    }
}

/// Makes CPU `number` leave its guest or its sleep.
#[inline]
pub fn kick(number: u32) {
    if let Some(cpu) = percpu::get(number) {
        apic::kick(cpu.apic_id());
    }
}

/// Compares a CPU's TSC with this one's, and sets it right if it is off: first by making the firmware's adjustment the same as here, then by
/// what was measured (SDM vol. 3B, 19.17.3).
fn synchronise(cpu: &PerCpu) -> Synchrony {
    const TSC_ADJUST: u32 = 1 << 1;
    let there = |run: &(dyn Fn() + Sync)| call_on(core::iter::once(cpu.number()), run);
    // Not by trying: emulators let unknown MSRs pass.
    let adjustable = cpu::cpuid(0, 0).eax >= 7 && cpu::cpuid(7, 0).ebx & TSC_ADJUST != 0;
    let adjustment = || if adjustable { msr::try_read(IA32_TSC_ADJUST) } else { None };
    let ours = adjustment();
    let theirs = spin::Mutex::new(None);
    there(&|| *theirs.lock() = adjustment());
    let mut theirs = theirs.into_inner();
    if let (Some(ours), Some(theirs)) = (ours, theirs)
        && ours != theirs
    {
        log::info!("CPU {}: IA32_TSC_ADJUST is {theirs:#x}, on the boot CPU {ours:#x}", cpu.number());
    }
    let Some(first) = compare(cpu) else { return Synchrony::Unknown };
    let Some(before) = first.off_by() else { return Synchrony::Synchronous };
    let mut off = before;
    for attempt in 0..4 {
        let (register, value) = match (ours, theirs) {
            (Some(ours), Some(theirs)) if attempt == 0 && theirs != ours => (IA32_TSC_ADJUST, Some(ours)),
            (Some(_), Some(theirs)) => (IA32_TSC_ADJUST, Some(theirs.wrapping_sub(off.cast_unsigned()))),
            _ => (IA32_TIME_STAMP_COUNTER, None),
        };
        there(&|| {
            let value = value.unwrap_or_else(|| cr::tsc().wrapping_sub(off.cast_unsigned()));
            // SAFETY: nothing on that CPU depends on its TSC yet.
            let _ = unsafe { msr::try_write(register, value) };
        });
        theirs = value;
        match compare(cpu).map(clocks::Ways::off_by) {
            Some(Some(still)) => off = still,
            Some(None) => return Synchrony::Corrected(before),
            None => return Synchrony::Unknown,
        }
    }
    Synchrony::Off(off)
}

fn compare(cpu: &PerCpu) -> Option<clocks::Ways> {
    let meeting = Meeting::new();
    let limit = tsc::hz() / 1_000_000 * COMPARING;
    let follow = || meeting.follow(cr::tsc);
    call_others(core::iter::once(cpu.number()), &follow, || meeting.lead(cr::tsc, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(ids: impl IntoIterator<Item = u32>) -> Vec<CpuInfo> {
        ids.into_iter().map(|apic_id| CpuInfo { apic_id }).collect()
    }

    #[test]
    fn all_but_the_boot_cpu_are_started_in_the_tables_order() {
        let list = cpus([4, 0, 2, 0x123]);
        let found = plan(&list, 0, Mode::X2Apic, None);
        assert_eq!((found.candidates, found.room), (Vec::from([4, 2, 0x123]), 3));
        // The boot CPU need not be listed.
        assert_eq!(plan(&list, 9, Mode::X2Apic, None).candidates, [4, 0, 2, 0x123]);
        assert_eq!(plan(&[], 0, Mode::X2Apic, None), Plan::default());
    }

    #[test]
    fn the_limit_includes_the_boot_cpu_and_leaves_others_to_try() {
        let list = cpus(0..8);
        let found = plan(&list, 3, Mode::XApic, Some(3));
        assert_eq!((found.candidates.len(), found.room), (7, 2));
        for (limit, room) in [(0, 0), (1, 0), (2, 1), (8, 7), (100, 7)] {
            assert_eq!(plan(&list, 3, Mode::XApic, Some(limit)).room, room, "{limit}");
        }
    }

    #[test]
    fn without_x2apic_only_eight_bits_can_be_reached() {
        let plan = plan(&cpus([0, 254, 255, 256, 1]), 0, Mode::XApic, None);
        assert_eq!((plan.candidates, plan.unreachable), (Vec::from([254, 1]), Vec::from([255, 256])));
    }

    #[test]
    fn what_is_beyond_the_supported_number_is_counted() {
        let all = cpus(0..300);
        let found = plan(&all, 0, Mode::X2Apic, None);
        assert_eq!((found.room + 1, found.beyond), (MAX_CPUS, 300 - MAX_CPUS));
        // Those that nobody has asked for are not missed.
        assert_eq!(plan(&all, 0, Mode::X2Apic, Some(200)).beyond, 0);
    }
}
