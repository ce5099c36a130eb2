//! The host as its operator sees and changes it: what the shell's verbs come down to.

use crate::{
    cpumask::CpuMask,
    host::{self, Host, Leaving},
    log,
    sched::{SchedulerKind, Share, State, TaskId},
    shell::operator::{
        DebugKey, GuestFlags, GuestInfo, HostInfo, Operator, OperatorError, Start, Trigger, VcpuActivity, VcpuInfo,
    },
    vm::{End, Vm},
};
use alloc::{string::String, sync::Arc, vec::Vec};
use core::{fmt, sync::atomic::Ordering};
use devices::interrupt::CpuSet;
use x86defs::{Duration, GuestMemoryExt, Platform, Time};

impl<P: Platform> Host<P> {
    /// A guest that has not been taken apart.
    fn guest(&self, id: u32) -> Result<Arc<Vm<P>>, OperatorError> {
        let guests = self.guests.lock();
        let found = guests.running.iter().find(|vm| vm.id == id).cloned();
        match found {
            Some(vm) if vm.is_running() => Ok(vm),
            Some(_) => Err(OperatorError::Ended),
            None if guests.preserved.iter().any(|vm| vm.id == id) => Err(OperatorError::Ended),
            None => Err(OperatorError::NoSuchGuest),
        }
    }

    fn info_of(&self, vm: &Vm<P>, kept: bool) -> GuestInfo {
        let sched = self.sched.lock();
        let tasks = || sched.tasks().filter(|task| task.id.vm == vm.id);
        let share = sched.share(vm.id).unwrap_or_default();
        let mut flags = GuestFlags::default();
        if kept {
            flags |= if matches!(vm.end(), Some(End::Crash(_))) { GuestFlags::CRASHED } else { GuestFlags::SHUTDOWN };
        } else if !vm.is_running() {
            flags |= GuestFlags::DYING;
        } else if tasks().any(|task| task.paused) {
            flags |= GuestFlags::PAUSED;
        } else if tasks().any(|task| matches!(task.state, State::Running(_))) {
            flags |= GuestFlags::RUNNING;
        } else if tasks().all(|task| matches!(task.state, State::Blocked | State::Held(_))) {
            flags |= GuestFlags::BLOCKED;
        }
        GuestInfo {
            id: vm.id,
            name: if kept { vm.kept_name() } else { String::from(vm.name()) },
            memory: vm.memory.size(),
            vcpus: vm.blueprint.config.vcpus,
            flags,
            cpu_time: Duration(tasks().map(|task| task.ran).sum::<u64>() + vm.cpu_time_of_ended()),
            started: vm.started,
            weight: share.weight,
            cap: share.cap,
        }
    }

    fn info_of_leaving(&self, entry: &Leaving) -> GuestInfo {
        let config = &entry.blueprint.config;
        GuestInfo {
            id: entry.id,
            name: config.name.clone(),
            memory: config.memory,
            vcpus: config.vcpus,
            flags: GuestFlags::DYING,
            cpu_time: Duration(0),
            started: self.clock.now(self.platform),
            weight: config.cpu_weight,
            cap: config.cap,
        }
    }

    /// Presses the power button of a guest.
    fn press_power_button(&self, vm: &Vm<P>) {
        vm.board.press_power_button();
        self.wake(vm, vm.board.router.take_woken(), self.platform.this_cpu(), None);
    }

    /// What each CPU has, and the registers of the vCPU there as of its last exit. Nobody has to stand still for it: a CPU logs them on its next
    /// way past.
    fn dump_cpus(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let guests = self.guests.lock();
        for cpu in 0..self.platform.cpus() {
            let (current, idle) = {
                let sched = self.sched.lock();
                (sched.current(cpu), sched.idle_time(cpu) / 1_000_000)
            };
            let found = current.and_then(|id| guests.running.iter().find(|vm| vm.id == id.vm).map(|vm| (id, vm)));
            let Some((id, vm)) = found else {
                writeln!(out, "CPU {cpu}: no vCPU, idle for {idle} ms in all")?;
                continue;
            };
            writeln!(out, "CPU {cpu}: guest {} vCPU {}, whose registers follow in the log", vm.name(), id.vcpu)?;
            vm.ask_for_dump(id.vcpu);
            self.platform.kick(cpu);
        }
        Ok(())
    }

    fn dump_guests(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let guests = self.guests.lock();
        for vm in &guests.running {
            writeln!(out, "guest {} ({}):", vm.name(), vm.id)?;
            for n in 0..vm.blueprint.config.vcpus {
                let id = TaskId { vm: vm.id, vcpu: n };
                let mut sched = self.sched.lock();
                if let Some(vcpu) = sched.payload_mut(id) {
                    vcpu.dump(out)?;
                    continue;
                }
                drop(sched);
                let cpu = vm.was_on(n as usize);
                writeln!(out, "vCPU {n} is on CPU {cpu}, whose log entry follows")?;
                vm.ask_for_dump(n);
                self.platform.kick(cpu);
            }
        }
        Ok(())
    }

    fn dump_queue(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let guests = self.guests.lock();
        let sched = self.sched.lock();
        writeln!(out, "scheduler: {}", policy_name(sched.policy()))?;
        for cpu in 0..sched.cpus() {
            match sched.current(cpu) {
                Some(id) => writeln!(
                    out,
                    "CPU {cpu}: guest {} vCPU {}, idle for {} ms in all",
                    id.vm,
                    id.vcpu,
                    sched.idle_time(cpu) / 1_000_000
                )?,
                None => writeln!(out, "CPU {cpu}: none, idle for {} ms in all", sched.idle_time(cpu) / 1_000_000)?,
            }
        }
        for task in sched.tasks() {
            let name = guests.running.iter().find(|vm| vm.id == task.id.vm).map_or("?", |vm| vm.name());
            let paused = if task.paused { ", paused" } else { "" };
            writeln!(
                out,
                "{name} vCPU {}: {:?}{paused}, ran {} ms, virtual time {} us, may run on {}",
                task.id.vcpu,
                task.state,
                task.ran / 1_000_000,
                task.vruntime / 1000,
                task.affinity
            )?;
        }
        Ok(())
    }
}

const fn policy_name(policy: SchedulerKind) -> &'static str {
    match policy {
        SchedulerKind::Credit2 => "credit2",
        SchedulerKind::Null => "null",
    }
}

impl<P: Platform> Operator for Host<P> {
    fn guests(&self) -> Vec<GuestInfo> {
        let guests = self.guests.lock();
        let mut all: Vec<GuestInfo> = guests.running.iter().map(|vm| self.info_of(vm, false)).collect();
        all.extend(guests.preserved.iter().map(|vm| self.info_of(vm, true)));
        all.extend(guests.leaving.iter().map(|entry| self.info_of_leaving(entry)));
        all.sort_by_key(|guest| guest.id);
        all
    }

    fn vcpus(&self, guest: u32) -> Vec<VcpuInfo> {
        let guests = self.guests.lock();
        let Some(vm) = guests.running.iter().chain(&guests.preserved).find(|vm| vm.id == guest) else { return Vec::new() };
        let sched = self.sched.lock();
        (0..vm.blueprint.config.vcpus)
            .map(|n| {
                let task = sched.tasks().find(|task| task.id == TaskId { vm: guest, vcpu: n });
                let activity = match task.map(|task| task.state) {
                    _ if vm.is_offline(n) => VcpuActivity::Offline,
                    Some(State::Running(_)) => VcpuActivity::Running,
                    Some(State::Ready) => VcpuActivity::Ready,
                    Some(State::Blocked | State::Held(_)) => VcpuActivity::Blocked,
                    None => VcpuActivity::Offline,
                };
                VcpuInfo {
                    id: n,
                    cpu: task.map(|task| task.last_cpu),
                    activity,
                    cpu_time: Duration(task.map_or(0, |task| task.ran)),
                    exits: vm.exits_of(n),
                    affinity: task.map_or(CpuMask::EMPTY, |task| task.affinity),
                }
            })
            .collect()
    }

    fn host(&self) -> HostInfo {
        let (free, total) = self.platform.memory();
        HostInfo {
            version: String::from(self.version),
            cmdline: String::from(self.cmdline),
            cpu_model: cpu_model(self.platform),
            virtualisation: self.platform.vendor(),
            cpus: self.platform.cpus(),
            tsc_hz: self.platform.tsc_hz(),
            memory_total: total,
            memory_free: free,
            scheduler: policy_name(self.sched.lock().policy()),
        }
    }

    fn now(&self) -> Time {
        self.clock.now(self.platform)
    }

    fn modules(&self) -> Vec<String> {
        self.modules.iter().map(|module| String::from(module.name)).collect()
    }

    fn log(&self, from: u64, buffer: &mut [u8]) -> (usize, u64) {
        log::read(from, buffer)
    }

    fn create(&self, config: &str, start: Start) -> Result<u32, OperatorError> {
        let module = self.modules.iter().find(|module| module.name == config);
        let module = module.ok_or_else(|| OperatorError::NoSuchModule { name: String::from(config) })?;
        let refused = || OperatorError::Refused { config: String::from(config) };
        let blueprint = self.check(module).ok_or_else(refused)?;
        self.start(&blueprint, start == Start::Paused).ok_or_else(refused)
    }

    fn destroy(&self, guest: u32) -> Result<(), OperatorError> {
        let kept = {
            let mut guests = self.guests.lock();
            let at = guests.preserved.iter().position(|vm| vm.id == guest);
            at.map(|at| guests.preserved.remove(at))
        };
        if let Some(vm) = kept {
            let name = vm.kept_name();
            host::free(vm);
            log::always!("guest {name}: destroyed");
            return Ok(());
        }
        let vm = {
            let guests = self.guests.lock();
            // Also one that has just ended: it is not to come back.
            if let Some(entry) = guests.leaving.iter().find(|entry| entry.id == guest) {
                entry.condemned.store(true, Ordering::Release);
                return Ok(());
            }
            let vm = guests.running.iter().find(|vm| vm.id == guest).cloned().ok_or(OperatorError::NoSuchGuest)?;
            vm.condemned.store(true, Ordering::Release);
            vm
        };
        self.stop(vm, End::Destroyed);
        Ok(())
    }

    fn pause(&self, guest: u32) -> Result<(), OperatorError> {
        self.guest(guest)?;
        if self.sched.lock().tasks().any(|task| task.id.vm == guest && task.paused) {
            return Err(OperatorError::AlreadyPaused);
        }
        let kicks = self.sched.lock().set_paused(guest, true);
        self.kick_all(kicks);
        Ok(())
    }

    fn unpause(&self, guest: u32) -> Result<(), OperatorError> {
        self.guest(guest)?;
        if !self.sched.lock().tasks().any(|task| task.id.vm == guest && task.paused) {
            return Err(OperatorError::NotPaused);
        }
        let kicks = self.sched.lock().set_paused(guest, false);
        self.kick_all(kicks);
        Ok(())
    }

    fn reboot(&self, guest: u32) -> Result<(), OperatorError> {
        let vm = self.guest(guest)?;
        vm.reboot_at_power_off();
        self.press_power_button(&vm);
        Ok(())
    }

    fn trigger(&self, guest: u32, trigger: Trigger) -> Result<(), OperatorError> {
        let vm = self.guest(guest)?;
        match trigger {
            Trigger::Nmi { vcpu } => {
                let apics = vm.board.router.apics();
                let apic = apics.get(vcpu as usize).ok_or(OperatorError::NoSuchVcpu { vcpu, vcpus: apics.len() as u32 })?;
                apic.post_nmi();
                self.wake(&vm, CpuSet::single(vcpu as usize), self.platform.this_cpu(), None);
            }
            Trigger::Power => self.press_power_button(&vm),
            Trigger::Sleep => {
                vm.board.press_sleep_button();
                self.wake(&vm, vm.board.router.take_woken(), self.platform.this_cpu(), None);
            }
            Trigger::Reset => self.stop(vm, End::Reboot),
        }
        Ok(())
    }

    fn pin(&self, guest: u32, vcpu: Option<u32>, cpus: &CpuMask) -> Result<(), OperatorError> {
        let vm = self.guest(guest)?;
        let vcpus = vm.blueprint.config.vcpus;
        let usable = cpus.and(CpuMask::first(self.platform.cpus()));
        if usable.is_empty() {
            return Err(OperatorError::NoSuchCpus { cpus: *cpus });
        }
        let range = match vcpu {
            Some(n) if n >= vcpus => return Err(OperatorError::NoSuchVcpu { vcpu: n, vcpus }),
            Some(n) => n..n + 1,
            None => 0..vcpus,
        };
        for n in range {
            let kick = self.sched.lock().set_affinity(TaskId { vm: guest, vcpu: n }, usable);
            self.kick_all(kick.map_or(CpuMask::EMPTY, CpuMask::single));
        }
        Ok(())
    }

    fn set_share(&self, guest: u32, weight: Option<u16>, cap: Option<u32>) -> Result<(), OperatorError> {
        self.guest(guest)?;
        let now = self.now();
        let mut sched = self.sched.lock();
        if sched.policy() != SchedulerKind::Credit2 {
            return Err(OperatorError::NotForScheduler { scheduler: policy_name(sched.policy()) });
        }
        let old = sched.share(guest).unwrap_or_default();
        sched.set_share(guest, Share { weight: weight.unwrap_or(old.weight), cap: cap.unwrap_or(old.cap) }, now);
        Ok(())
    }

    fn focus(&self, guest: u32) -> Result<(), OperatorError> {
        let vm = self.guest(guest)?;
        if !vm.has_console() {
            return Err(OperatorError::NoConsole);
        }
        self.give_focus(&vm);
        Ok(())
    }

    fn debug(&self, key: DebugKey, out: &mut dyn fmt::Write) -> Result<(), OperatorError> {
        let written = match key {
            DebugKey::Registers => self.dump_cpus(out),
            DebugKey::Guests => self.dump_guests(out),
            DebugKey::RunQueues => self.dump_queue(out),
            DebugKey::Memory => {
                let (free, total) = self.platform.memory();
                writeln!(out, "memory: {total} bytes, {free} free; own allocations: {} bytes", self.platform.heap_in_use())
            }
            DebugKey::Time => {
                let (tsc, hz) = (self.platform.tsc(), self.platform.tsc_hz());
                writeln!(out, "TSC {tsc:#x} at {}.{:06} MHz, host time {} ns", hz / 1_000_000, hz % 1_000_000, self.now().0)
            }
        };
        written.map_err(|fmt::Error| OperatorError::Unsupported)
    }

    fn power_off(&self) {
        self.platform.power_off()
    }

    fn reset(&self) {
        self.platform.reset()
    }
}

/// The brand string (CPUID 0x80000002 to 0x80000004).
fn cpu_model<P: Platform>(platform: &P) -> String {
    let words = (0x8000_0002..=0x8000_0004).flat_map(|leaf| {
        let r = platform.cpuid(leaf, 0);
        [r.eax, r.ebx, r.ecx, r.edx]
    });
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).take_while(|&byte| byte != 0).collect();
    String::from(String::from_utf8_lossy(&bytes).trim())
}
