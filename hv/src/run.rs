//! The loop of each CPU: timers and console first, then a vCPU until it stops, or sleep.

use crate::{
    alarm::{Alarm, Deadlines},
    console::{self, Key},
    host::Host,
    options::Options,
    sched::{
        Came, TaskId,
        handover::{self, Seat, Step, Task},
    },
    shell::Shell,
    vcpu::{Context, Stop, VirtCpu},
    vm::{End, Vm},
};
use alloc::{boxed::Box, string::String, sync::Arc, vec::Vec};
use core::sync::atomic::Ordering;
use devices::interrupt::CpuSet;
use x86defs::{Duration, Platform, Time, Vcpu};

/// A file that the boot loader put in memory.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// First word of its command line.
    pub name: &'static str,
    /// The rest of its command line.
    pub args: &'static str,
    pub data: &'static [u8],
}

/// What the boot code hands over.
#[derive(Clone, Debug)]
pub struct BootInfo {
    pub options: Options,
    pub modules: &'static [Module],
    /// Bulkhead's version.
    pub version: &'static str,
    /// The hypervisor's command line.
    pub cmdline: &'static str,
    /// The TSC when the boot loader handed over.
    pub entered: u64,
    /// Memory that the image takes, in bytes.
    pub image_bytes: u64,
}

/// Starts the guests that the boot modules configure, and runs them on all CPUs. Returns only by switching the machine off or resetting it.
pub fn run<P: Platform>(platform: &'static P, boot: &BootInfo) -> ! {
    emul::init();
    let host: &'static Host<P> = Box::leak(Box::new(Host::new(platform, boot)));
    host.read_configs();
    host.report_memory(boot.image_bytes);
    platform.start_cpus(Box::leak(Box::new(move |cpu| host.work(cpu))));
    host.start_next();
    host.work(0)
}

const CRASH_LOG_INTERVAL: Duration = Duration::from_millis(1000);

/// A CPU's own part of the host.
pub(crate) struct Worker<P: Platform> {
    /// The CPU's number.
    cpu: u32,
    alarm: Alarm,
    seat: Seat<Box<VirtCpu<P>>>,
}

impl<P: Platform> Worker<P> {
    pub(crate) fn new(cpu: u32) -> Self {
        Self { cpu, alarm: Alarm::new(), seat: Seat::default() }
    }
}

impl<P: Platform> Task for Box<VirtCpu<P>> {
    fn load(&mut self, cpu: u32, waited: u64) {
        self.vm.set_place(self.id, cpu);
        self.hw.load();
        self.came_back(waited);
    }

    fn unload(&mut self) {
        self.hw.unload();
        self.goes_away();
    }

    fn is_asleep(&self) -> bool {
        (**self).is_asleep()
    }

    fn wakes(&self) -> bool {
        (**self).wakes()
    }

    fn wake_up(&mut self) {
        (**self).wake_up();
    }
}

impl<P: Platform> Host<P> {
    /// Works as CPU `cpu`, for ever.
    fn work(&self, cpu: u32) -> ! {
        let mut worker = Worker::new(cpu);
        loop {
            self.turn(&mut worker);
            if cpu == 0 && self.finished() {
                self.finish_all();
            }
        }
    }

    /// One turn: serve timers and the console, then run a vCPU until it stops, or halt the CPU.
    pub(crate) fn turn(&self, worker: &mut Worker<P>) {
        let now = self.clock.now(self.platform);
        let mut deadlines = self.serve_timers(worker.cpu, now);
        if worker.cpu == 0 {
            deadlines.add(self.serve_console(now), None);
            deadlines.add(self.start_due(now), None);
        }
        // One that sleeps in its CPU is not run.
        if let Some(vcpu) = &worker.seat.task {
            self.log_if_asked(vcpu);
        }
        match self.next(worker, now, self.clock.now(self.platform)) {
            Step::Run(until) => {
                deadlines.add(until, None);
                self.arm(worker, &deadlines);
                self.run_task(worker);
            }
            Step::Halt(until) => {
                deadlines.add(until, None);
                self.arm(worker, &deadlines);
                // With nothing left to do, the loop has something to say about it.
                if !(worker.cpu == 0 && self.is_deserted()) {
                    self.platform.wait_for_interrupt();
                }
            }
            // `next` has done it.
            Step::Dispose(_) => {}
        }
    }

    /// Brings the timers that this CPU sees to up to `now`, and wakes whom they concern. Returns their next deadlines.
    fn serve_timers(&self, cpu: u32, now: Time) -> Deadlines {
        let mut next = Deadlines::default();
        for vm in &self.guests.lock().running {
            if vm.is_home(cpu) {
                let due = |vm: &Vm<P>| vm.board.deadline();
                if due(vm).is_some_and(|deadline| deadline <= now) {
                    vm.board.advance(now);
                }
                next.add(due(vm), None);
            }
            let mut woken = vm.board.router.take_woken();
            for (index, apic) in vm.board.router.apics().iter().enumerate() {
                if vm.was_on(index) != cpu {
                    continue;
                }
                if apic.deadline().is_some_and(|deadline| deadline <= now) && apic.advance(now) {
                    woken.insert(index);
                }
                next.add(apic.deadline(), Some(TaskId { vm: vm.id, vcpu: index as u32 }));
            }
            self.wake(vm, woken, cpu, None);
        }
        next
    }

    /// Tells vCPUs that there is something new for them. `running` is the task on whose behalf this CPU acts, if it is not between two.
    pub(crate) fn wake(&self, vm: &Vm<P>, set: CpuSet, here: u32, running: Option<TaskId>) {
        for index in set.iter() {
            let id = TaskId { vm: vm.id, vcpu: index as u32 };
            if running == Some(id) {
                continue;
            }
            let here = running.is_none().then_some(here);
            handover::wake(&self.sched, id, here, self.clock.now(self.platform), |cpu| self.platform.kick(cpu));
        }
    }

    /// Finds out what this CPU does next, and gets it ready. Its task, if it has one, has come back from the guest at `left`.
    fn next(&self, worker: &mut Worker<P>, left: Time, now: Time) -> Step<Box<VirtCpu<P>>> {
        loop {
            match handover::next(&self.sched, &mut worker.seat, worker.cpu, left, now, |cpu| self.platform.kick(cpu)) {
                Step::Dispose(vcpu) => self.dispose(vcpu),
                step => return step,
            }
        }
    }

    /// Runs the CPU's task until it stops.
    fn run_task(&self, worker: &mut Worker<P>) {
        let Some(mut vcpu) = worker.seat.task.take() else { return };
        let (cpu, id) = (worker.cpu, TaskId { vm: vcpu.vm.id, vcpu: vcpu.id });
        let wake = |vm: &Vm<P>, set: CpuSet| self.wake(vm, set, cpu, Some(id));
        let cx = Context { platform: self.platform, clock: self.clock, cpu, alarm: &worker.alarm, wake: &wake };
        self.log_if_asked(&vcpu);
        let stop = vcpu.run(&cx);
        vcpu.vm.note(vcpu.id, vcpu.stats.exits(), vcpu.is_offline());
        let end = match stop {
            Stop::Preempted | Stop::Halted => None,
            Stop::Yield => {
                worker.seat.came = Came::Yielding;
                None
            }
            Stop::End(end) => Some(end),
            Stop::Crash(reason) => {
                // The first to crash tells; the others have only been in the way.
                if vcpu.vm.is_running() && self.may_log_crash() {
                    self.log_registers(&vcpu);
                }
                Some(End::Crash(reason))
            }
        };
        let Some(end) = end else {
            worker.seat.task = Some(vcpu);
            return;
        };
        self.stop(vcpu.vm.clone(), end);
        vcpu.hw.unload();
        self.sched.lock().gone(cpu, self.clock.now(self.platform));
        self.dispose(vcpu);
    }

    /// True if the registers of a guest that has crashed may be logged: once a second, lest one that crashes again and again fills the console,
    /// for which whoever logs then has to wait.
    fn may_log_crash(&self) -> bool {
        let now = self.clock.now(self.platform).0.max(1);
        let last = self.crash_logged.load(Ordering::Relaxed);
        let may = last == 0 || now.saturating_sub(last) >= CRASH_LOG_INTERVAL.0;
        may && self.crash_logged.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn log_if_asked(&self, vcpu: &VirtCpu<P>) {
        if vcpu.vm.take_dump_request(vcpu.id) {
            self.log_registers(vcpu);
        }
    }

    fn log_registers(&self, vcpu: &VirtCpu<P>) {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = vcpu.dump(&mut text);
        for line in text.lines() {
            crate::log::always!("guest {}: {line}", vcpu.vm.name());
        }
    }

    /// Arms the CPU's timer, or disarms it.
    fn arm(&self, worker: &Worker<P>, deadlines: &Deadlines) {
        let tsc = |deadline: Option<Time>| deadline.map(|time| self.clock.tsc_at(time));
        let task = worker.seat.task.as_ref().map(|vcpu| TaskId { vm: vcpu.vm.id, vcpu: vcpu.id });
        let own = worker.seat.task.as_ref().and_then(|vcpu| vcpu.apic.deadline());
        self.platform.set_timer(worker.alarm.set(tsc(deadlines.without(task)), tsc(own)));
    }

    /// Passes on what was typed, and what guests and shell have to show. Returns when to look again, if something has to wait.
    fn serve_console(&self, now: Time) -> Option<Time> {
        let mut shell = self.shell.lock();
        while shell.wants_input() {
            let Some(byte) = self.platform.console_read() else { break };
            self.typed(&mut shell, now, byte);
        }
        let mut waiting = false;
        let guests = self.guests.lock();
        // Between the end of the guest that had the input and another one's getting it, the shell keeps quiet.
        let passing = self.console.follows() && (guests.is_restarting() || guests.running.iter().any(|vm| vm.has_console()));
        for vm in &guests.running {
            // Mostly no guest has, and there may be many.
            if vm.has_typed() || vm.has_output() {
                vm.pump_input(now);
                vm.pump_output(self.platform);
                waiting |= vm.has_output() || vm.has_typed();
                self.wake(vm, vm.board.router.take_woken(), 0, None);
            }
        }
        drop(guests);
        // A host that is about to go has no use for a prompt.
        if !self.is_ending() {
            shell.pump(self.platform, self.console.focus().is_none() && !passing);
        }
        waiting |= shell.has_output();
        waiting.then(|| now + Duration::from_millis(1))
    }

    fn typed(&self, shell: &mut Shell, now: Time, byte: u8) {
        let reachable: Vec<Arc<Vm<P>>> = {
            let guests = self.guests.lock();
            guests.running.iter().filter(|vm| vm.has_console()).cloned().collect()
        };
        let ids: Vec<u32> = reachable.iter().map(|vm| vm.id).collect();
        let find = |id| reachable.iter().find(|vm| vm.id == id);
        match self.console.key(byte, &ids) {
            Key::Held => {}
            Key::Shell(bytes) => {
                // A verb may end a guest, whose last part must not be ours.
                drop(reachable);
                for byte in bytes {
                    shell.input(byte, self.platform, self);
                }
            }
            Key::Guest(id, bytes) => {
                if let Some(vm) = find(id)
                    && !vm.type_in(now, &bytes)
                {
                    crate::log::warn!("guest {}: takes no input, what was typed is lost", vm.name());
                }
            }
            Key::Switched(guest) => console::announce(guest.and_then(find).map(|vm| vm.name())),
        }
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
