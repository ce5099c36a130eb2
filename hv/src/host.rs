//! The guests of this host: reads their configurations, builds them, and sees to their ends.

use crate::{
    clock::Clock,
    config::{self, Action, ConfigError, Key, Reason},
    console::{self, Console},
    log,
    options::{Autostart, OnLastGuest, Options},
    run::{BootInfo, Module},
    sched::{CpuMask, Scheduler, Share, TaskId},
    shell::Shell,
    vcpu::VirtCpu,
    vm::{Blueprint, End, Vm},
};
use alloc::{boxed::Box, collections::VecDeque, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use devices::sync::Mutex;
use x86defs::{Duration, GuestMemoryExt, Platform, Time};

/// What all CPUs share.
///
/// Lock order: `guests`, then `sched`; a device's locks come after both.
pub(crate) struct Host<P: Platform> {
    pub(crate) platform: &'static P,
    options: Options,
    pub(crate) version: &'static str,
    pub(crate) cmdline: &'static str,
    pub(crate) modules: &'static [Module],
    pub(crate) clock: Clock,
    /// The TSC when the boot loader handed over.
    entered: u64,
    pub(crate) console: Arc<Console>,
    pub(crate) shell: Mutex<Shell>,
    pub(crate) sched: Mutex<Scheduler<Box<VirtCpu<P>>>>,
    pub(crate) guests: Mutex<Guests<P>>,
    /// When the registers of a guest that crashed were last logged, in ns; 0 if never.
    pub(crate) crash_logged: AtomicU64,
}

/// Guests by their state.
pub(crate) struct Guests<P: Platform> {
    /// Not started yet.
    waiting: VecDeque<Arc<Blueprint>>,
    pub(crate) running: Vec<Arc<Vm<P>>>,
    /// Ended ones that their configuration wants kept.
    pub(crate) preserved: Vec<Arc<Vm<P>>>,
    /// Between their end and their next start, or nothing more.
    pub(crate) leaving: Vec<Leaving>,
    /// Being built, or taken apart, at the moment.
    building: u32,
    next_id: u32,
    started: bool,
    announced_end: bool,
}

/// A guest that has ended and is taken apart, and then built again, unless it is destroyed.
pub(crate) struct Leaving {
    /// Its old number.
    pub(crate) id: u32,
    pub(crate) blueprint: Arc<Blueprint>,
    pub(crate) condemned: Arc<AtomicBool>,
    /// When it is built again, if that has to wait.
    pub(crate) start_at: Option<Time>,
}

/// From one start of a guest to the next at least, lest one that ends at once keep the host, and whoever reads its console, busy with that.
const RESTART_INTERVAL: Duration = Duration::from_millis(100);

impl<P: Platform> Guests<P> {
    fn take_leaving(&mut self, id: u32) -> Option<Leaving> {
        let at = self.leaving.iter().position(|entry| entry.id == id)?;
        Some(self.leaving.remove(at))
    }

    /// True if a guest waits for being started again.
    pub(crate) fn is_restarting(&self) -> bool {
        self.leaving.iter().any(|entry| entry.start_at.is_some())
    }

    /// The names that are taken.
    fn names(&self) -> impl Iterator<Item = &str> {
        let waiting = self.waiting.iter().chain(self.leaving.iter().map(|entry| &entry.blueprint));
        let waiting = waiting.map(|blueprint| &*blueprint.config.name);
        waiting.chain(self.running.iter().chain(&self.preserved).filter(|vm| !vm.is_renamed()).map(|vm| vm.name()))
    }
}

impl<P: Platform> Host<P> {
    pub(crate) fn new(platform: &'static P, boot: &BootInfo) -> Self {
        let clock = Clock::new(platform.tsc(), platform.tsc_hz());
        Self {
            platform,
            options: boot.options.clone(),
            version: boot.version,
            cmdline: boot.cmdline,
            modules: boot.modules,
            clock,
            entered: boot.entered,
            console: Arc::new(Console::new(&boot.options)),
            shell: Mutex::new(Shell::default()),
            sched: Mutex::new(Scheduler::new(boot.options.sched, platform.cpus(), clock.now(platform))),
            guests: Mutex::new(Guests {
                waiting: VecDeque::new(),
                running: Vec::new(),
                preserved: Vec::new(),
                leaving: Vec::new(),
                building: 0,
                next_id: 1,
                started: false,
                announced_end: false,
            }),
            crash_logged: AtomicU64::new(0),
        }
    }

    /// Bytes of memory that are in use, guests' and ours, without the image and what the boot loader left.
    fn memory_in_use(&self) -> u64 {
        let (free, total) = self.platform.memory();
        total.saturating_sub(free)
    }

    /// Logs what the host itself takes.
    pub(crate) fn report_memory(&self, image_bytes: u64) {
        let used = self.memory_in_use();
        log::debug!("host: {} KiB of memory: image {}, allocated {}", (image_bytes + used) >> 10, image_bytes >> 10, used >> 10);
    }

    /// Every module whose name ends in `.cfg` configures a guest. A bad one is refused by name; the others go on.
    pub(crate) fn read_configs(&self) {
        if self.options.autostart == Autostart::None {
            log::always!("no guest is started by itself (autostart=none)");
            return;
        }
        for module in self.modules.iter().filter(|m| m.name.ends_with(".cfg")) {
            if let Some(blueprint) = self.check(module) {
                self.guests.lock().waiting.push_back(blueprint);
            }
        }
        if self.guests.lock().waiting.is_empty() {
            log::always!("no guest to start: no module is a usable guest configuration (*.cfg)");
        }
    }

    /// Reads a module as a guest's configuration. Says what is wrong with it if it is refused.
    pub(crate) fn check(&self, module: &Module) -> Option<Arc<Blueprint>> {
        let checked = config::parse_bytes(module.name, module.data).and_then(|mut guest| {
            if self.guests.lock().names().any(|name| name == guest.name) {
                return Err(Vec::from([guest.error(Key::Name, Reason::NameInUse)]));
            }
            let host = self.platform.cpus();
            if let Some(&cpus) = guest.cpus.iter().find(|cpus| cpus.and(CpuMask::first(host)).is_empty()) {
                return Err(Vec::from([guest.error(Key::Cpus, Reason::NoSuchCpus { cpus, host })]));
            }
            if guest.localtime {
                guest.rtc_offset += self.options.utc_offset;
            }
            Blueprint::new(guest, self.modules).map_err(|error| Vec::from([error]))
        });
        match checked {
            Ok(blueprint) => {
                for remark in &blueprint.config.warnings {
                    log::warn!("config {remark}");
                }
                Some(Arc::new(blueprint))
            }
            Err(errors) => {
                refuse(module.name, &errors);
                None
            }
        }
    }

    /// Starts all waiting guests, or (`autostart=sequential`) the first of them.
    pub(crate) fn start_next(&self) {
        while let Some(blueprint) = self.next_waiting() {
            let running = self.start(&blueprint, false).is_some();
            self.guests.lock().building -= 1;
            if running && self.options.autostart == Autostart::Sequential {
                break;
            }
        }
    }

    fn next_waiting(&self) -> Option<Arc<Blueprint>> {
        let mut guests = self.guests.lock();
        guests.started = true;
        let next = guests.waiting.pop_front();
        // From one lock to the next, it is in none of the lists.
        guests.building += u32::from(next.is_some());
        next
    }

    /// Builds a guest and lets its vCPUs run, unless it is to be paused. Returns its number, if it was not refused.
    pub(crate) fn start(&self, blueprint: &Arc<Blueprint>, paused: bool) -> Option<u32> {
        self.start_unless(blueprint, paused, None)
    }

    /// The same; `old` is the number of the guest that this one follows, if it does, and the operator may condemn it until it has started.
    pub(crate) fn start_unless(&self, blueprint: &Arc<Blueprint>, paused: bool, old: Option<u32>) -> Option<u32> {
        let name = &blueprint.config.name;
        let id = {
            let mut guests = self.guests.lock();
            guests.building += 1;
            guests.next_id += 1;
            guests.next_id - 1
        };
        let used = self.memory_in_use();
        // Without the lock: it takes a while.
        let built = Vm::build(self.platform, &self.clock, &self.console, blueprint, id);
        let mut guests = self.guests.lock();
        guests.building -= 1;
        let condemned = old.and_then(|old| guests.take_leaving(old)).is_some_and(|old| old.condemned.load(Ordering::Acquire));
        let (vm, vcpus) = match built {
            Ok(built) => built,
            Err(error) => {
                drop(guests);
                refuse(name, &[error]);
                return None;
            }
        };
        if condemned {
            drop(guests);
            drop((vm, vcpus));
            log::always!("guest {name}: destroyed");
            return None;
        }
        // Another CPU may be busy with another guest's memory.
        let beside = self.memory_in_use().saturating_sub(used).saturating_sub(vm.memory.size());
        let late = self.platform.tsc().wrapping_sub(self.entered);
        log::debug!("guest {name}: {} KiB of memory beside its RAM; ready {late} TSC ticks after the hand-over", beside >> 10);
        log::always!("guest {name}: started{}", if paused { ", paused" } else { "" });
        if vm.has_console() && self.console.guest_started(id) {
            console::announce(Some(name));
        }
        guests.running.push(vm.clone());
        drop(guests);
        self.enqueue(&vm, vcpus, paused);
        Some(id)
    }

    /// Gives the console's input to a guest.
    pub(crate) fn give_focus(&self, vm: &Vm<P>) {
        self.console.set_focus(Some(vm.id));
        console::announce(Some(vm.name()));
    }

    fn enqueue(&self, vm: &Vm<P>, vcpus: Vec<VirtCpu<P>>, paused: bool) {
        let now = self.clock.now(self.platform);
        let mut kicks = CpuMask::EMPTY;
        let mut sched = self.sched.lock();
        let config = &vm.blueprint.config;
        sched.set_share(vm.id, Share { weight: config.cpu_weight, cap: config.cap }, now);
        let host = CpuMask::first(self.platform.cpus());
        for vcpu in vcpus {
            let id = TaskId { vm: vm.id, vcpu: vcpu.id };
            let asleep = vcpu.is_asleep();
            let affinity = config.cpus.get(id.vcpu as usize).map_or(host, |cpus| cpus.and(host));
            sched.add(id, Box::new(vcpu), affinity, paused, now);
            if sched.is_waiting_for_cpu(id) {
                log::warn!("guest {}: vCPU {} has to wait for a CPU of its own", vm.name(), id.vcpu);
            }
            if !asleep && let Some(cpu) = sched.wake(id, now) {
                kicks.insert(cpu);
            }
        }
        drop(sched);
        self.kick_all(kicks);
    }

    pub(crate) fn kick_all(&self, cpus: CpuMask) {
        let here = self.platform.this_cpu();
        for cpu in cpus.iter().filter(|&cpu| cpu != here) {
            self.platform.kick(cpu);
        }
    }

    /// Ends a guest: its vCPUs stop wherever they are, and the last of them takes the guest apart. That may be here, and waits for everybody
    /// else to let go of the guest: the caller must not hold another part of it.
    pub(crate) fn stop(&self, vm: Arc<Vm<P>>, end: End) {
        vm.set_end(end);
        let (payloads, kicks) = self.sched.lock().doom(vm.id);
        drop(vm);
        self.kick_all(kicks);
        for vcpu in payloads {
            self.dispose(vcpu);
        }
    }

    /// Drops a vCPU that no CPU holds any more.
    pub(crate) fn dispose(&self, vcpu: Box<VirtCpu<P>>) {
        let vm = vcpu.vm.clone();
        let ticks = vcpu.guest_tsc(self.platform, &self.clock);
        log::debug!("guest {}: vCPU {}: TSC {ticks}, {}", vm.name(), vcpu.id, vcpu.stats);
        drop(vcpu);
        if vm.vcpu_gone() {
            self.finish(vm);
        }
    }

    /// A guest's last vCPU is gone: says so, and does what its configuration says.
    fn finish(&self, vm: Arc<Vm<P>>) {
        let blueprint = vm.blueprint.clone();
        let end = match vm.end() {
            // The operator has asked for a reboot, which the guest took for a shutdown.
            Some(End::PowerOff) if vm.reboots_at_power_off() => End::Reboot,
            end => end.unwrap_or(End::Destroyed),
        };
        vm.finish_output(self.platform);
        let mut action = match end {
            // A guest that left by the debug port has given its verdict; running it again would give another.
            End::DebugExit(_) if blueprint.config.on_poweroff == Action::Restart => Action::Destroy,
            End::PowerOff | End::DebugExit(_) => blueprint.config.on_poweroff,
            End::Reboot => blueprint.config.on_reboot,
            End::Crash(_) => blueprint.config.on_crash,
            End::Destroyed => Action::Destroy,
        };
        let (id, condemned, began) = (vm.id, vm.condemned.clone(), vm.started);
        {
            let mut guests = self.guests.lock();
            guests.running.retain(|other| other.id != id);
            // Another CPU must not take this for the end of the last guest: it may be built again below.
            guests.building += 1;
            // The operator has come too late to be its end, but not too late for what follows.
            if condemned.load(Ordering::Acquire) {
                action = Action::Destroy;
            }
            if action != Action::Preserve {
                guests.leaving.push(Leaving { id, blueprint: blueprint.clone(), condemned: condemned.clone(), start_at: None });
            }
        }
        let name = &blueprint.config.name;
        let kept = if action == Action::Destroy {
            // Whoever hears of its end can have its memory and its name.
            free(vm);
            self.guests.lock().take_leaving(id);
            None
        } else {
            Some(vm)
        };
        log::always!("guest {name}: ended: {end}");
        if action == Action::Destroy && condemned.load(Ordering::Acquire) && !matches!(end, End::Destroyed) {
            log::always!("guest {name}: destroyed");
        }
        let had_focus = self.console.guest_ended(id);
        match (action, kept) {
            (Action::Restart, Some(vm)) => {
                let cause = match end {
                    End::PowerOff | End::DebugExit(_) | End::Destroyed => "on_poweroff",
                    End::Reboot => "on_reboot",
                    End::Crash(_) => "on_crash",
                };
                // Its memory must be free before the new one takes as much.
                free(vm);
                log::always!("guest {name}: restarting ({cause})");
                self.start_again(&blueprint, id, began);
            }
            (Action::RenameRestart, Some(vm)) => {
                vm.rename();
                log::always!("guest {name}: kept as {}, restarting", vm.kept_name());
                self.guests.lock().preserved.push(vm);
                self.start_again(&blueprint, id, began);
            }
            (Action::Preserve, Some(vm)) => {
                log::always!("guest {name}: preserved");
                self.guests.lock().preserved.push(vm);
            }
            (Action::Destroy, _) | (_, None) => {}
        }
        self.start_more();
        if had_focus && self.console.focus().is_none() {
            self.pass_focus();
        }
        // It may have something to say now, and at least has to show the shell's prompt again; also if it is this one, on its way to sleep.
        self.platform.kick(0);
    }

    /// What was building is done: the next guest's turn, if none is left.
    fn start_more(&self) {
        let next = {
            let mut guests = self.guests.lock();
            guests.building -= 1;
            guests.running.is_empty() && guests.building == 0 && !guests.is_restarting() && !guests.waiting.is_empty()
        };
        if next {
            self.start_next();
        }
    }

    /// Starts a guest again, whose last start was at `began`: now, or when it is time.
    fn start_again(&self, blueprint: &Arc<Blueprint>, id: u32, began: Time) {
        let due = began + RESTART_INTERVAL;
        if self.clock.now(self.platform) >= due {
            self.start_unless(blueprint, false, Some(id));
        } else if let Some(entry) = self.guests.lock().leaving.iter_mut().find(|entry| entry.id == id) {
            entry.start_at = Some(due);
        }
    }

    /// Starts the guests again for which it is time. Returns when the next one's time comes.
    pub(crate) fn start_due(&self, now: Time) -> Option<Time> {
        loop {
            let (id, blueprint) = {
                let mut guests = self.guests.lock();
                let Some(entry) = guests.leaving.iter_mut().find(|entry| entry.start_at.is_some_and(|due| due <= now)) else {
                    return guests.leaving.iter().filter_map(|entry| entry.start_at).min();
                };
                entry.start_at = None;
                let next = (entry.id, entry.blueprint.clone());
                guests.building += 1;
                next
            };
            self.start_unless(&blueprint, false, Some(id));
            self.start_more();
        }
    }

    /// Gives the console's input to the first guest that has a console, or else leaves it with the shell.
    fn pass_focus(&self) {
        let next = {
            let guests = self.guests.lock();
            // It gets the input when it starts.
            if guests.is_restarting() {
                return;
            }
            guests.running.iter().find(|vm| vm.has_console()).cloned()
        };
        match next {
            Some(next) => self.give_focus(&next),
            None if self.is_ending() => {}
            None => console::announce(None),
        }
    }

    fn nobody_left(guests: &Guests<P>) -> bool {
        guests.started
            && guests.running.is_empty()
            && guests.waiting.is_empty()
            && guests.building == 0
            && !guests.is_restarting()
    }

    /// True once, when the last guest has ended.
    pub(crate) fn finished(&self) -> bool {
        let mut guests = self.guests.lock();
        let finished = Self::nobody_left(&guests) && !guests.announced_end;
        guests.announced_end |= finished;
        finished
    }

    /// True if no guest is left and the host is not to wait for more.
    pub(crate) fn is_deserted(&self) -> bool {
        let guests = self.guests.lock();
        Self::nobody_left(&guests) && (!guests.announced_end || self.options.on_last_guest != OnLastGuest::Stay)
    }

    /// True if the last guest has ended and the host goes with it.
    pub(crate) fn is_ending(&self) -> bool {
        self.options.on_last_guest != OnLastGuest::Stay && Self::nobody_left(&self.guests.lock())
    }

    /// After the last guest.
    pub(crate) fn finish_all(&self) {
        log::always!("all guests ended");
        match self.options.on_last_guest {
            OnLastGuest::Stay => {}
            OnLastGuest::PowerOff => self.platform.power_off(),
            OnLastGuest::Reboot => self.platform.reset(),
        }
    }
}

/// Drops a guest's last part, so that its memory is free at the return. Other CPUs may still hold the guest for a moment, on their way out of its end
/// or of the console.
pub(crate) fn free<P: Platform>(vm: Arc<Vm<P>>) {
    while Arc::strong_count(&vm) > 1 {
        core::hint::spin_loop();
    }
}

fn refuse(guest: &str, errors: &[ConfigError]) {
    for error in errors {
        log::always!("config {error}");
    }
    log::always!("guest {guest}: refused");
}
