//! From the boot loader's modules to running guests: reads the configurations, builds the guests, and runs them until the end.

use crate::{
    clock::Clock,
    config::{self, Action, ConfigError, Key, Reason},
    console::Console,
    log,
    options::{Autostart, OnLastGuest, Options},
    sched::Scheduler,
    vcpu::{Context, Stop, VirtCpu},
    vm::{Blueprint, End, Vm},
};
use alloc::{collections::VecDeque, string::String, sync::Arc, vec::Vec};
use core::cell::Cell;
use devices::interrupt::CpuSet;
use x86defs::{Platform, Time};

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
}

/// How long a guest runs before another that is ready gets the CPU.
const SLICE: x86defs::Duration = x86defs::Duration::from_millis(10);

/// Starts the guests that the boot modules configure, and runs them. Returns only by switching the machine off or resetting it.
pub fn run<P: Platform>(platform: &'static P, boot: &BootInfo) -> ! {
    emul::init();
    let mut host = Host::new(platform, boot);
    host.read_configs();
    host.start_next();
    loop {
        host.turn();
        if host.finished() {
            host.finish();
        }
    }
}

/// The CPU's loop and what it owns.
pub(crate) struct Host<P: Platform> {
    platform: &'static P,
    options: Options,
    modules: &'static [Module],
    clock: Clock,
    console: Arc<Console>,
    /// Guests that have not been started yet.
    waiting: VecDeque<Arc<Blueprint>>,
    vms: Vec<Arc<Vm<P>>>,
    /// Ended guests that their configuration wants kept.
    preserved: Vec<Arc<Vm<P>>>,
    vcpus: Scheduler<P>,
    armed: Cell<u64>,
    next_id: u32,
    started: bool,
    announced_end: bool,
}

impl<P: Platform> Host<P> {
    pub(crate) fn new(platform: &'static P, boot: &BootInfo) -> Self {
        Self {
            platform,
            options: boot.options.clone(),
            modules: boot.modules,
            clock: Clock::new(platform.tsc(), platform.tsc_hz()),
            console: Arc::new(Console::default()),
            waiting: VecDeque::new(),
            vms: Vec::new(),
            preserved: Vec::new(),
            vcpus: Scheduler::new(),
            armed: Cell::new(u64::MAX),
            next_id: 1,
            started: false,
            announced_end: false,
        }
    }

    /// Every module whose name ends in `.cfg` configures a guest. A bad one is refused by name; the others go on.
    pub(crate) fn read_configs(&mut self) {
        for module in self.modules.iter().filter(|m| m.name.ends_with(".cfg")) {
            let checked = config::parse_bytes(module.name, module.data).and_then(|guest| {
                if self.waiting.iter().any(|other| other.config.name == guest.name) {
                    return Err(Vec::from([guest.error(Key::Name, Reason::NameInUse)]));
                }
                Blueprint::new(guest, self.modules).map_err(|error| Vec::from([error]))
            });
            match checked {
                Ok(blueprint) => {
                    for remark in &blueprint.config.warnings {
                        log::warn!("config {remark}");
                    }
                    self.waiting.push_back(Arc::new(blueprint));
                }
                Err(errors) => refuse(module.name, &errors),
            }
        }
        if self.waiting.is_empty() {
            log::always!("no guest to start: no module is a usable guest configuration (*.cfg)");
        }
    }

    /// Starts all waiting guests, or (`autostart=sequential`) the first of them.
    pub(crate) fn start_next(&mut self) {
        self.started = true;
        while let Some(blueprint) = self.waiting.pop_front() {
            let running = self.start(&blueprint);
            if running && self.options.autostart == Autostart::Sequential {
                break;
            }
        }
    }

    fn start(&mut self, blueprint: &Arc<Blueprint>) -> bool {
        let name = &blueprint.config.name;
        let id = self.next_id;
        self.next_id += 1;
        match Vm::build(self.platform, &self.clock, &self.console, blueprint, id) {
            Ok((vm, vcpus)) => {
                log::always!("guest {name}: started");
                if self.console.focus().is_none() {
                    self.console.set_focus(Some(id));
                    log::always!("console: input goes to guest {name}");
                }
                self.vms.push(vm);
                for vcpu in vcpus {
                    self.vcpus.add(vcpu);
                }
                true
            }
            Err(error) => {
                refuse(name, &[error]);
                false
            }
        }
    }

    /// One turn: serve timers and input, then run one vCPU until it stops, or halt the CPU.
    pub(crate) fn turn(&mut self) {
        let now = self.clock.now(self.platform);
        for vm in &self.vms {
            if vm.deadline().is_some_and(|deadline| deadline <= now) {
                vm.advance(now);
            }
            vm.pump_output(self.platform);
        }
        self.pump_input(now);
        let Some(mut vcpu) = self.vcpus.next() else {
            self.idle(now);
            return;
        };
        let slice = if self.vcpus.others_ready() { Some(now + SLICE) } else { None };
        self.arm(slice);
        self.vcpus.load(&mut vcpu);
        let running = CpuSet::single(vcpu.id as usize);
        // There is one CPU: it leaves the guest, and then sees that another vCPU is ready.
        let wake = |_: &Vm<P>, woken: CpuSet| {
            if woken != running {
                self.platform.kick(0);
            }
        };
        let cx = Context { platform: self.platform, clock: self.clock, cpu: 0, armed: &self.armed, wake: &wake };
        let stop = vcpu.run(&cx);
        match stop {
            Stop::Preempted | Stop::Yield | Stop::Halted => self.vcpus.put_back(vcpu),
            Stop::End(end) => self.end(vcpu, end),
            Stop::Crash(reason) => {
                let mut text = String::new();
                // Writing to a String cannot fail.
                let _ = vcpu.dump(&mut text);
                for line in text.lines() {
                    log::always!("guest {}: {line}", vcpu.vm.name());
                }
                self.end(vcpu, End::Crash(reason));
            }
        }
    }

    fn idle(&self, now: Time) {
        if self.waits_for_nothing() {
            return;
        }
        let pending_output = self.vms.iter().any(|vm| vm.has_output());
        // Output that the console had no room for is offered again when it has drained a little.
        self.arm(pending_output.then(|| now + x86defs::Duration::from_millis(1)));
        self.platform.wait_for_interrupt();
    }

    fn waits_for_nothing(&self) -> bool {
        self.vms.is_empty() && self.options.on_last_guest != OnLastGuest::Stay
    }

    /// Arms the timer for the guests' next deadline, or for `limit` if that is earlier.
    fn arm(&self, limit: Option<Time>) {
        let next = self.vms.iter().filter_map(|vm| vm.deadline()).chain(limit).min();
        let tsc = next.map_or(u64::MAX, |time| self.clock.tsc_at(time));
        if tsc != self.armed.replace(tsc) {
            self.platform.set_timer((tsc != u64::MAX).then_some(tsc));
        }
    }

    fn pump_input(&self, now: Time) {
        let Some(vm) = self.console.focus().and_then(|id| self.vms.iter().find(|vm| vm.id == id)) else { return };
        while vm.wants_input() {
            let Some(byte) = self.platform.console_read() else { break };
            vm.input(now, byte);
        }
    }

    /// A guest has ended: says so, takes it apart, and does what its configuration says.
    fn end(&mut self, mut vcpu: VirtCpu<P>, end: End) {
        let vm = vcpu.vm.clone();
        let blueprint = vm.blueprint.clone();
        self.vcpus.unload(&mut vcpu);
        drop(vcpu);
        self.vcpus.remove(vm.id);
        vm.finish_output(self.platform);
        self.vms.retain(|other| other.id != vm.id);
        let name = &blueprint.config.name;
        log::always!("guest {name}: ended: {end}");
        let had_focus = self.console.focus() == Some(vm.id);
        if had_focus {
            self.console.set_focus(None);
        }
        let action = match end {
            End::PowerOff | End::DebugExit(_) => blueprint.config.on_poweroff,
            End::Reboot => blueprint.config.on_reboot,
            End::Crash(_) => blueprint.config.on_crash,
        };
        match action {
            // A guest that left by the debug port has given its verdict; running it again would give another.
            Action::Restart if !matches!(end, End::DebugExit(_)) => {
                let cause = match end {
                    End::PowerOff | End::DebugExit(_) => "on_poweroff",
                    End::Reboot => "on_reboot",
                    End::Crash(_) => "on_crash",
                };
                // Its memory must be free before the new one takes as much.
                drop(vm);
                log::always!("guest {name}: restarting ({cause})");
                self.start(&blueprint);
            }
            Action::RenameRestart => {
                log::always!("guest {name}: kept as {name}-{}, restarting", vm.id);
                self.preserved.push(vm);
                self.start(&blueprint);
            }
            Action::Preserve => {
                log::always!("guest {name}: preserved");
                self.preserved.push(vm);
            }
            Action::Destroy | Action::Restart => drop(vm),
        }
        if had_focus
            && self.console.focus().is_none()
            && let Some(next) = self.vms.first()
        {
            self.console.set_focus(Some(next.id));
            log::always!("console: input goes to guest {}", next.name());
        }
        if self.vms.is_empty() && !self.waiting.is_empty() {
            self.start_next();
        }
    }

    /// True once, when the last guest has ended.
    pub(crate) fn finished(&mut self) -> bool {
        let finished = self.started && self.vms.is_empty() && self.waiting.is_empty() && !self.announced_end;
        self.announced_end |= finished;
        finished
    }

    fn finish(&self) {
        log::always!("all guests ended");
        match self.options.on_last_guest {
            OnLastGuest::Stay => {}
            OnLastGuest::PowerOff => self.platform.power_off(),
            OnLastGuest::Reboot => self.platform.reset(),
        }
    }

    #[cfg(test)]
    pub(crate) fn vms(&self) -> &[Arc<Vm<P>>] {
        &self.vms
    }
}

fn refuse(guest: &str, errors: &[ConfigError]) {
    for error in errors {
        log::always!("config {error}");
    }
    log::always!("guest {guest}: refused");
}

/// True for a vCPU that the CPU may be given to.
pub(crate) fn ready<P: Platform>(vcpu: &VirtCpu<P>) -> bool {
    !vcpu.is_asleep() || vcpu.wakes()
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
