//! vCPUs pass between the scheduler and the CPUs while they are woken, paused, pinned and destroyed: in every order in which the CPUs' steps
//! can follow one another. The scheduler, the hand-over, the local APICs and the router are the real ones; CPUs and what guests do are not.
//! `cargo xtask test --filter model`; see `docs/testing.md`.
//!
//! A CPU that halts for ever is a deadlock, which loom reports: so is every lost wake-up.

use super::{
    CpuMask, Scheduler, SchedulerKind, Share, TaskId,
    handover::{self, Seat, Step, Task},
};
use alloc::{sync::Arc, vec::Vec};
use devices::{
    interrupt::{CpuSet, DeliveryMode, DestinationMode, InterruptMessage, Ipi, Shorthand, Trigger},
    lapic::{LocalApic, Pending},
    router::InterruptRouter,
    sync::Mutex,
};
use loom::{
    cell::UnsafeCell,
    sync::{
        Condvar,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};
use x86defs::{Time, Width};

/// Most switches away from a CPU that could go on.
const PREEMPTIONS: usize = 3;
/// For what has many steps.
const FEWER: usize = 2;
const VM: u32 = 1;

fn id(vcpu: u32) -> TaskId {
    TaskId { vm: VM, vcpu }
}

/// What a vCPU does while it has nothing to serve.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Between {
    Sleep,
    /// It goes on executing, until an interrupt of its CPU takes it out of the guest.
    Execute,
    /// The same, and it switches itself off as soon as it is on this CPU.
    ExecuteUntilOn(u32),
}

/// A vCPU that serves interrupts.
struct Guest {
    vcpu: u32,
    apic: Arc<LocalApic>,
    asleep: bool,
    between: Between,
    /// Interrupts that it will have got when it switches itself off.
    left: u32,
    /// Its registers. Loom finds two CPUs that touch them at the same time, or without having heard of each other.
    registers: UnsafeCell<()>,
}

impl Guest {
    fn touch(&self) {
        self.registers.with_mut(|_| {});
    }
}

impl Task for Guest {
    fn load(&mut self, _cpu: u32, _waited: u64) {
        self.touch();
    }

    fn unload(&mut self) {
        self.touch();
    }

    fn is_asleep(&self) -> bool {
        self.asleep
    }

    fn wakes(&self) -> bool {
        self.apic.attention() && self.apic.pending().is_some()
    }

    fn wake_up(&mut self) {
        self.asleep = false;
    }
}

/// A CPU's interrupt: it ends a halt, and one that came before the halt does, too.
#[derive(Default)]
struct Interrupt {
    pending: loom::sync::Mutex<bool>,
    raised: Condvar,
}

impl Interrupt {
    fn raise(&self) {
        *self.pending.lock().unwrap() = true;
        self.raised.notify_one();
    }

    fn halt(&self) {
        let mut pending = self.pending.lock().unwrap();
        while !*pending {
            pending = self.raised.wait(pending).unwrap();
        }
        *pending = false;
    }
}

struct Machine {
    sched: Mutex<Scheduler<Guest>>,
    router: InterruptRouter,
    cpus: Vec<Interrupt>,
    /// vCPUs that have ended, in the end all of them.
    gone: loom::sync::Mutex<u32>,
    vcpus: u32,
    over: AtomicBool,
}

impl Machine {
    /// `interrupts`: how many each vCPU gets.
    fn new(cpus: u32, interrupts: &[u32]) -> Arc<Self> {
        Self::with(cpus, interrupts, Between::Sleep)
    }

    fn with(cpus: u32, interrupts: &[u32], between: Between) -> Arc<Self> {
        let apics: Vec<_> = (0..interrupts.len() as u32).map(|n| Arc::new(LocalApic::new(n, n == 0))).collect();
        let mut sched = Scheduler::new(SchedulerKind::Credit2, cpus, Time(0));
        sched.set_share(VM, Share::default(), Time(0));
        for ((vcpu, apic), &left) in (0..).zip(&apics).zip(interrupts) {
            apic.mmio_write(Time(0), 0xf0, Width::Dword, 0x1ff);
            let guest = Guest { vcpu, apic: apic.clone(), asleep: false, between, left, registers: UnsafeCell::new(()) };
            sched.add(id(vcpu), guest, CpuMask::first(cpus), false, Time(0));
            sched.wake(id(vcpu), Time(0));
        }
        Arc::new(Self {
            sched: Mutex::new(sched),
            router: InterruptRouter::new(apics),
            cpus: (0..cpus).map(|_| Interrupt::default()).collect(),
            gone: loom::sync::Mutex::new(0),
            vcpus: interrupts.len() as u32,
            over: AtomicBool::new(false),
        })
    }

    fn kick(&self, cpu: u32) {
        self.cpus[cpu as usize].raise();
    }

    fn kick_all(&self, cpus: CpuMask) {
        cpus.iter().for_each(|cpu| self.kick(cpu));
    }

    /// Sends an interrupt to a vCPU, as a device or another guest's CPU does.
    fn interrupt(&self, vcpu: u32, vector: u8) {
        let message = InterruptMessage {
            destination: vcpu,
            destination_mode: DestinationMode::Physical,
            delivery: DeliveryMode::Fixed,
            vector,
            trigger: Trigger::Edge,
        };
        self.router.send_ipi(vcpu, Ipi { shorthand: Shorthand::None, message });
        self.wake_noted(None);
    }

    fn wake_noted(&self, here: Option<u32>) {
        let woken: CpuSet = self.router.take_woken();
        for vcpu in woken.iter() {
            handover::wake(&self.sched, id(vcpu as u32), here, Time(0), |cpu| self.kick(cpu));
        }
    }

    fn dispose(&self, guest: Guest) {
        // Nobody else can have it.
        guest.touch();
        let mut gone = self.gone.lock().unwrap();
        *gone += 1;
        assert!(*gone <= self.vcpus);
        if *gone == self.vcpus {
            self.over.store(true, SeqCst);
            self.cpus.iter().for_each(Interrupt::raise);
        }
    }

    /// The loop of a CPU, until all vCPUs are gone.
    fn work(&self, cpu: u32) {
        let mut seat = Seat::default();
        while !self.over.load(SeqCst) {
            match handover::next(&self.sched, &mut seat, cpu, Time(0), Time(0), |cpu| self.kick(cpu)) {
                Step::Run(_) => self.run(&mut seat, cpu),
                Step::Halt(_) => self.cpus[cpu as usize].halt(),
                Step::Dispose(guest) => self.dispose(guest),
            }
        }
        assert!(seat.task.is_none(), "vCPU {} is here and gone", seat.task.unwrap().vcpu);
    }

    /// A guest runs until it has to wait, or has nothing more to wait for.
    fn run(&self, seat: &mut Seat<Guest>, cpu: u32) {
        let mut guest = seat.task.take().expect("somebody to run");
        guest.touch();
        while guest.apic.attention()
            && let Some(Pending::Lapic(vector)) = guest.apic.pending()
        {
            guest.apic.accept(vector);
            guest.apic.mmio_write(Time(0), 0xb0, Width::Dword, 0);
            guest.left = guest.left.checked_sub(1).expect("no more interrupts than were sent");
        }
        if guest.left == 0 || guest.between == Between::ExecuteUntilOn(cpu) {
            guest.unload();
            self.sched.lock().gone(cpu, Time(0));
            self.dispose(guest);
            return;
        }
        match guest.between {
            Between::Sleep => guest.asleep = true,
            Between::Execute | Between::ExecuteUntilOn(_) => self.cpus[cpu as usize].halt(),
        }
        seat.task = Some(guest);
    }
}

fn check(preemptions: usize, body: impl Fn() + Copy + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 50_000;
    // A thread may have a larger stack than the model's first one.
    builder.check(move || thread::Builder::new().stack_size(0x10000).spawn(body).unwrap().join().unwrap());
}

/// Lets all CPUs but the last one work in threads, `outside` happen in another, and the last CPU here.
fn play(machine: &Arc<Machine>, outside: impl FnOnce(&Machine) + Send + 'static) {
    let last = machine.cpus.len() as u32 - 1;
    let mut threads = Vec::new();
    for cpu in 0..last {
        let machine = machine.clone();
        threads.push(thread::Builder::new().stack_size(0x8000).spawn(move || machine.work(cpu)).unwrap());
    }
    {
        let machine = machine.clone();
        threads.push(thread::Builder::new().stack_size(0x8000).spawn(move || outside(&machine)).unwrap());
    }
    machine.work(last);
    for thread in threads {
        thread.join().unwrap();
    }
    let sched = machine.sched.lock();
    assert_eq!((sched.tasks().count(), sched.queue.len()), (0, 0));
}

/// The only vCPU is woken while it goes to sleep, with its registers in the CPU.
#[test]
fn model_a_vcpu_is_woken_while_it_goes_to_sleep() {
    check(PREEMPTIONS, || {
        let machine = Machine::new(1, &[2]);
        play(&machine, |machine| {
            machine.interrupt(0, 0x41);
            machine.interrupt(0, 0x45);
        });
    });
}

/// Two vCPUs share a CPU, so that the one that sleeps is taken out of it.
#[test]
fn model_a_vcpu_is_woken_while_it_leaves_its_cpu() {
    check(PREEMPTIONS, || {
        let machine = Machine::new(1, &[1, 1]);
        play(&machine, |machine| {
            machine.interrupt(0, 0x41);
            machine.interrupt(1, 0x41);
        });
    });
}

/// Any of two CPUs may take it.
#[test]
fn model_a_vcpu_that_wakes_runs_on_one_of_two_cpus() {
    check(PREEMPTIONS, || {
        let machine = Machine::new(2, &[1]);
        play(&machine, |machine| machine.interrupt(0, 0x41));
    });
}

/// Two CPUs, two vCPUs: each may be taken by either, and put back by either.
#[test]
fn model_two_vcpus_on_two_cpus() {
    check(FEWER, || {
        let machine = Machine::new(2, &[1, 1]);
        play(&machine, |machine| {
            machine.interrupt(0, 0x41);
            machine.interrupt(1, 0x41);
        });
    });
}

/// The CPU that it sleeps on is forbidden to it.
#[test]
fn model_a_vcpu_is_moved_while_it_is_woken() {
    check(PREEMPTIONS, || {
        let machine = Machine::new(2, &[1]);
        play(&machine, |machine| {
            let kick = machine.sched.lock().set_affinity(id(0), CpuMask::single(1));
            machine.kick_all(kick.map_or(CpuMask::EMPTY, CpuMask::single));
            machine.interrupt(0, 0x41);
        });
    });
}

#[test]
fn model_a_vcpu_is_moved_after_it_was_woken() {
    check(PREEMPTIONS, || {
        let machine = Machine::new(2, &[1]);
        play(&machine, |machine| {
            machine.interrupt(0, 0x41);
            let kick = machine.sched.lock().set_affinity(id(0), CpuMask::single(1));
            machine.kick_all(kick.map_or(CpuMask::EMPTY, CpuMask::single));
        });
    });
}

/// A vCPU that does not sleep is taken out of the guest for what comes.
#[test]
fn model_a_vcpu_that_executes_is_interrupted() {
    check(PREEMPTIONS, || {
        let machine = Machine::with(1, &[1], Between::Execute);
        play(&machine, |machine| machine.interrupt(0, 0x41));
    });
}

/// One that executes leaves its CPU when it is forbidden to it.
#[test]
fn model_a_vcpu_that_executes_is_moved() {
    check(PREEMPTIONS, || {
        let machine = Machine::with(2, &[9], Between::ExecuteUntilOn(1));
        play(&machine, |machine| {
            let kick = machine.sched.lock().set_affinity(id(0), CpuMask::single(1));
            machine.kick_all(kick.map_or(CpuMask::EMPTY, CpuMask::single));
        });
    });
}

/// What comes during a pause is there after it.
#[test]
fn model_a_vcpu_is_paused_while_it_is_woken() {
    check(PREEMPTIONS, || {
        let machine = Machine::new(1, &[1]);
        play(&machine, |machine| {
            let kicks = machine.sched.lock().set_paused(VM, true);
            machine.kick_all(kicks);
            machine.interrupt(0, 0x41);
            let kicks = machine.sched.lock().set_paused(VM, false);
            machine.kick_all(kicks);
        });
    });
}

/// The operator pauses and goes on while a device sends.
#[test]
fn model_a_pause_and_a_wake_up_at_once() {
    check(FEWER, || {
        let machine = Machine::new(1, &[1]);
        let sender = {
            let machine = machine.clone();
            thread::Builder::new().stack_size(0x8000).spawn(move || machine.interrupt(0, 0x41)).unwrap()
        };
        play(&machine, |machine| {
            for paused in [true, false] {
                let kicks = machine.sched.lock().set_paused(VM, paused);
                machine.kick_all(kicks);
            }
        });
        sender.join().unwrap();
    });
}

/// A guest's end, wherever its vCPUs are: each is disposed of once. They wait for more interrupts than come.
#[test]
fn model_a_guest_is_destroyed_while_it_is_woken() {
    check(FEWER, || {
        let machine = Machine::new(2, &[9]);
        play(&machine, |machine| {
            machine.interrupt(0, 0x41);
            destroy(machine);
        });
    });
}

#[test]
fn model_a_guest_of_two_vcpus_is_destroyed() {
    check(PREEMPTIONS, || {
        let machine = Machine::new(1, &[9, 9]);
        play(&machine, |machine| {
            machine.interrupt(1, 0x41);
            destroy(machine);
        });
    });
}

fn destroy(machine: &Machine) {
    let (payloads, kicks) = machine.sched.lock().doom(VM);
    machine.kick_all(kicks);
    payloads.into_iter().for_each(|guest| machine.dispose(guest));
}

/// Whom one device has noted to be woken, the other one may have to wake.
#[test]
fn model_two_devices_wake_one_vcpu() {
    check(FEWER, || {
        let machine = Machine::new(1, &[2]);
        let sender = {
            let machine = machine.clone();
            thread::Builder::new().stack_size(0x8000).spawn(move || machine.interrupt(0, 0x45)).unwrap()
        };
        play(&machine, |machine| machine.interrupt(0, 0x41));
        sender.join().unwrap();
    });
}
