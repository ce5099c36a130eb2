//! Who gets which CPU.
//!
//! One queue for all CPUs, ordered by virtual run time: what a task has run, divided by its weight. The CPU that looks for work takes the ready
//! task that is furthest behind, so time comes out in proportion to the weights whichever CPU it is spent on, no CPU idles while a task that may
//! run there is ready, and no balancing has to repair what separate queues would have let drift apart. A task that wakes gets at most
//! [`WAKE_CREDIT`] of advantage for having slept, which lets it run soon without letting it save up for a monopoly.
//!
//! `cap=` limits the tasks of one guest together to a share of a period; what they overdraw is taken from the next.
//!
//! This file decides; it runs nothing and reads no clock, so that it can be tested against a model. A task's payload is here while the task
//! waits, and with its CPU while it runs. A task that blocks on a CPU which has nothing else to do stays with that CPU ("held"), its registers
//! loaded, until it wakes or the CPU gets other work.

pub mod handover;
#[cfg(all(test, loom))]
mod model;
#[cfg(test)]
mod tests;

pub use crate::{
    config::DEFAULT_WEIGHT,
    cpumask::{CpuMask, MAX_CPUS},
    options::SchedulerKind,
};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use x86defs::{Duration, Time};

/// Every ready task of equal weight runs about once in so long, as far as [`MIN_SLICE`] allows.
const ROUND: Duration = Duration::from_millis(10);
/// A running task keeps its CPU for at least so long against others that are merely as far behind.
const MIN_SLICE: Duration = Duration::from_millis(1);
/// Between two looks of a CPU at the queue. What a capped guest overdraws by it is taken from its next period.
const SHORTEST: Duration = Duration::from_micros(100);
const MAX_SLICE: Duration = Duration::from_millis(10);
/// How far behind the others, in virtual run time, a task may come back from its sleep.
const WAKE_CREDIT: u64 = 4_000_000;
/// How far behind the running task, in virtual run time, a task must be when it wakes for the former to be interrupted.
const PREEMPT: u64 = 500_000;
/// Over so long, a capped guest gets its share.
const CAP_PERIOD: Duration = Duration::from_millis(10);

/// A vCPU of a guest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct TaskId {
    pub vm: u32,
    pub vcpu: u32,
}

/// What a task is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Ready,
    Running(u32),
    Blocked,
    /// Blocked, with its registers still in this CPU.
    Held(u32),
}

/// What a guest may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    /// 1 to 65535: CPU time in proportion to the others'.
    pub weight: u16,
    /// Percent of one CPU that the guest's vCPUs may use together; 0 for no limit.
    pub cap: u32,
}

impl Default for Share {
    fn default() -> Self {
        Self { weight: DEFAULT_WEIGHT, cap: 0 }
    }
}

struct Task<T> {
    /// Present while the task is ready or blocked.
    payload: Option<T>,
    state: State,
    /// Weighted run time in ns.
    vruntime: u64,
    /// Run time in ns.
    ran: u64,
    /// Since when it has been ready; `None` if it was paused in between.
    ready_since: Option<Time>,
    /// Time in ns for which it was ready and did not run.
    waited: u64,
    /// Where the user lets it run.
    affinity: CpuMask,
    /// The CPU that it has (`sched=null`).
    own: Option<u32>,
    /// The CPU that it ran on last; that CPU sees to its timer.
    last_cpu: u32,
    paused: bool,
    doomed: bool,
}

struct Group {
    share: Share,
    /// ns left in this period; negative if overdrawn.
    budget: i64,
    period_end: Time,
}

impl Group {
    const fn quota(&self) -> i64 {
        (CAP_PERIOD.0 / 100 * self.share.cap as u64) as i64
    }

    fn refill(&mut self, now: Time) {
        if self.share.cap == 0 || now < self.period_end {
            return;
        }
        let periods = 1 + now.since(self.period_end).0 / CAP_PERIOD.0;
        let quota = self.quota();
        self.budget = self.budget.saturating_add(quota.saturating_mul(periods as i64)).min(quota);
        self.period_end += Duration(CAP_PERIOD.0 * periods);
    }

    const fn exhausted(&self) -> bool {
        self.share.cap != 0 && self.budget <= 0
    }
}

#[derive(Clone, Copy)]
struct Cpu {
    current: Option<TaskId>,
    /// Up to here the current task's time has been counted.
    since: Time,
    /// When it got the CPU.
    start: Time,
    /// Has found nothing to do and waits for a kick.
    idle: bool,
    /// Will look at the queue by itself when the current task's slice is over.
    contested: bool,
    /// Time spent idle, in ns.
    idled: u64,
}

/// What a CPU has come back with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Came {
    /// The task can go on.
    Runnable,
    /// It can go on but would rather let others run (PAUSE).
    Yielding,
    /// It waits for an interrupt.
    Blocking,
}

/// What a CPU has to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Run the current task; look again at this time.
    Run(Option<Time>),
    /// Take the current task's registers out and [`Scheduler::put_back`].
    PutBack,
    /// Take the current task's registers out, drop it and [`Scheduler::gone`].
    Drop,
    /// Keep the current task, which waits, and halt; look again at this time.
    Idle(Option<Time>),
}

/// What a waiting task shows of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TaskInfo {
    pub id: TaskId,
    pub state: State,
    pub paused: bool,
    /// Run time in ns.
    pub ran: u64,
    /// Weighted run time in ns, by which tasks are ordered.
    pub vruntime: u64,
    pub last_cpu: u32,
    pub affinity: CpuMask,
}

/// All tasks and CPUs.
pub struct Scheduler<T> {
    policy: SchedulerKind,
    cpus: Vec<Cpu>,
    tasks: BTreeMap<TaskId, Task<T>>,
    /// The ready tasks that are not paused, the one furthest behind first.
    queue: BTreeSet<(u64, TaskId)>,
    groups: BTreeMap<u32, Group>,
    /// No task that has not slept is behind this.
    floor: u64,
}

impl<T> Scheduler<T> {
    #[must_use]
    pub fn new(policy: SchedulerKind, cpus: u32, now: Time) -> Self {
        let cpu = Cpu { current: None, since: now, start: now, idle: false, contested: false, idled: 0 };
        Self {
            policy,
            cpus: alloc::vec![cpu; cpus.clamp(1, MAX_CPUS) as usize],
            tasks: BTreeMap::new(),
            queue: BTreeSet::new(),
            groups: BTreeMap::new(),
            floor: 0,
        }
    }

    #[must_use]
    pub fn policy(&self) -> SchedulerKind {
        self.policy
    }

    // --- tasks come and go

    /// Sets what a guest may use. Before its first task is added, and later at any time.
    pub fn set_share(&mut self, vm: u32, share: Share, now: Time) {
        let share = Share { weight: share.weight.max(1), ..share };
        let group = self.groups.entry(vm).or_insert(Group { share, budget: 0, period_end: now });
        group.share = share;
        group.budget = group.quota();
        group.period_end = now + CAP_PERIOD;
    }

    #[must_use]
    pub fn share(&self, vm: u32) -> Option<Share> {
        self.groups.get(&vm).map(|group| group.share)
    }

    /// Adds a blocked task: [`Scheduler::wake`] starts it. `affinity` must name a CPU that exists.
    pub fn add(&mut self, id: TaskId, payload: T, affinity: CpuMask, paused: bool, now: Time) {
        self.count_all(now);
        let first = affinity.iter().next().unwrap_or(0);
        let task = Task {
            payload: Some(payload),
            state: State::Blocked,
            vruntime: self.floor,
            ran: 0,
            ready_since: None,
            waited: 0,
            affinity,
            own: None,
            last_cpu: first.min(self.cpus.len() as u32 - 1),
            paused,
            doomed: false,
        };
        self.tasks.insert(id, task);
        if self.policy == SchedulerKind::Null {
            self.assign(id);
        }
    }

    /// `sched=null`: gives a task a CPU of its own if one is free. False if none is.
    fn assign(&mut self, id: TaskId) -> bool {
        let taken: CpuMask = self.tasks.values().filter_map(|task| task.own).collect();
        let cpus = self.cpus.len() as u32;
        let Some(task) = self.tasks.get_mut(&id) else { return false };
        task.own = (0..cpus).find(|&cpu| task.affinity.contains(cpu) && !taken.contains(cpu));
        if let Some(cpu) = task.own {
            task.last_cpu = cpu;
        }
        task.own.is_some()
    }

    /// True if the task has no CPU to run on at present (`sched=null` with too few).
    #[must_use]
    pub fn is_waiting_for_cpu(&self, id: TaskId) -> bool {
        self.policy == SchedulerKind::Null && self.tasks.get(&id).is_some_and(|task| task.own.is_none())
    }

    /// Marks a guest's tasks for removal. Returns the payloads of those that wait, which are gone already, and the CPUs to kick because
    /// they have one.
    pub fn doom(&mut self, vm: u32) -> (Vec<T>, CpuMask) {
        let ids: Vec<TaskId> = self.of(vm).collect();
        let (mut payloads, mut kicks) = (Vec::new(), CpuMask::EMPTY);
        for id in ids {
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            task.doomed = true;
            match task.state {
                State::Running(cpu) | State::Held(cpu) => kicks.insert(cpu),
                State::Ready | State::Blocked => {
                    payloads.extend(task.payload.take());
                    self.remove(id);
                }
            }
        }
        (payloads, kicks)
    }

    /// The CPU has dropped its current task, as [`Verdict::Drop`] told it to, or because the task has ended.
    pub fn gone(&mut self, cpu: u32, now: Time) {
        self.count(cpu, now);
        if let Some(id) = self.cpu_mut(cpu).and_then(|cpu| cpu.current.take()) {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: TaskId) {
        let Some(task) = self.tasks.remove(&id) else { return };
        self.queue.remove(&(task.vruntime, id));
        if self.of(id.vm).next().is_none() {
            self.groups.remove(&id.vm);
        }
        if task.own.is_some() {
            let next = self.tasks.iter().find(|(_, task)| task.own.is_none()).map(|(&id, _)| id);
            if let Some(next) = next {
                self.assign(next);
            }
        }
    }

    fn of(&self, vm: u32) -> impl Iterator<Item = TaskId> {
        self.tasks.range(TaskId { vm, vcpu: 0 }..=TaskId { vm, vcpu: u32::MAX }).map(|(&id, _)| id)
    }

    /// Stops or continues a guest. Returns the CPUs to kick.
    pub fn set_paused(&mut self, vm: u32, paused: bool) -> CpuMask {
        let ids: Vec<TaskId> = self.of(vm).collect();
        let mut kicks = CpuMask::EMPTY;
        for id in ids {
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            task.paused = paused;
            task.ready_since = None;
            let (state, key) = (task.state, (task.vruntime, id));
            match state {
                State::Running(cpu) | State::Held(cpu) => kicks.insert(cpu),
                State::Ready if paused => {
                    self.queue.remove(&key);
                }
                State::Ready => {
                    self.queue.insert(key);
                    if let Some(cpu) = self.place(id) {
                        kicks.insert(cpu);
                    }
                }
                State::Blocked => {}
            }
        }
        kicks
    }

    /// Where a task may run from now on. Returns the CPU to kick, if it has to leave one. `affinity` must name a CPU that exists.
    pub fn set_affinity(&mut self, id: TaskId, affinity: CpuMask) -> Option<u32> {
        let null = self.policy == SchedulerKind::Null;
        let task = self.tasks.get_mut(&id)?;
        task.affinity = affinity;
        if null && task.own.is_some_and(|cpu| !affinity.contains(cpu)) {
            task.own = None;
            self.assign(id);
        }
        match self.tasks.get(&id)?.state {
            State::Running(cpu) | State::Held(cpu) => (!affinity.contains(cpu)).then_some(cpu),
            State::Ready => self.place(id),
            State::Blocked => None,
        }
    }

    // --- wake-ups

    /// There may be something new for the task. Returns the CPU to kick: the one that has it, or one that should take it.
    pub fn wake(&mut self, id: TaskId, now: Time) -> Option<u32> {
        match self.tasks.get(&id)?.state {
            State::Running(cpu) | State::Held(cpu) => Some(cpu),
            State::Ready => None,
            State::Blocked => {
                self.count_all(now);
                let floor = self.floor;
                let task = self.tasks.get_mut(&id)?;
                task.state = State::Ready;
                task.ready_since = (!task.paused).then_some(now);
                task.vruntime = task.vruntime.max(floor.saturating_sub(WAKE_CREDIT));
                if task.paused {
                    return None;
                }
                let key = (task.vruntime, id);
                self.queue.insert(key);
                self.place(id)
            }
        }
    }

    /// The CPU that should look at the queue because of a task that has just become ready: an idle one, best the one it ran on last, else the
    /// one whose task is furthest ahead of it, if it is so far ahead that it should give way now, or has been alone up to now.
    fn place(&mut self, id: TaskId) -> Option<u32> {
        self.place_but(id, None)
    }

    /// The same, but not `except`.
    fn place_but(&mut self, id: TaskId, except: Option<u32>) -> Option<u32> {
        let task = self.tasks.get(&id)?;
        let (last, vruntime) = (task.last_cpu, task.vruntime);
        let may = |cpu: u32| Some(cpu) != except && self.may_run(task, cpu);
        let idle = |cpu: u32| self.cpus.get(cpu as usize).is_some_and(|cpu| cpu.idle) && may(cpu);
        let cpus = 0..self.cpus.len() as u32;
        if let Some(cpu) = Some(last).filter(|&cpu| idle(cpu)).or_else(|| cpus.clone().find(|&cpu| idle(cpu))) {
            // Only one task for each kick of an idle CPU.
            if let Some(cpu) = self.cpu_mut(cpu) {
                cpu.idle = false;
            }
            return Some(cpu);
        }
        let ahead = |cpu: u32| {
            let slot = self.cpus.get(cpu as usize)?;
            let current = self.tasks.get(&slot.current?)?.vruntime;
            Some((!slot.contested, current, cpu))
        };
        let (alone, most, cpu) = cpus.filter(|&cpu| may(cpu)).filter_map(ahead).max()?;
        (alone || most > vruntime.saturating_add(PREEMPT)).then_some(cpu)
    }

    fn may_run(&self, task: &Task<T>, cpu: u32) -> bool {
        match self.policy {
            SchedulerKind::Credit2 => task.affinity.contains(cpu),
            SchedulerKind::Null => task.own == Some(cpu),
        }
    }

    // --- a CPU's decisions

    fn cpu_mut(&mut self, cpu: u32) -> Option<&mut Cpu> {
        self.cpus.get_mut(cpu as usize)
    }

    /// Counts the time that the CPU's current task has run.
    fn count(&mut self, cpu: u32, now: Time) {
        let Some(slot) = self.cpus.get_mut(cpu as usize) else { return };
        let spent = now.since(slot.since).0;
        slot.since = slot.since.max(now);
        let Some(id) = slot.current else {
            slot.idled += spent;
            return;
        };
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if !matches!(task.state, State::Running(_)) {
            slot.idled += spent;
            return;
        }
        let Some(group) = self.groups.get_mut(&id.vm) else { return };
        task.ran += spent;
        task.vruntime = task.vruntime.saturating_add(spent.saturating_mul(DEFAULT_WEIGHT.into()) / u64::from(group.share.weight));
        if group.share.cap != 0 {
            group.budget = group.budget.saturating_sub_unsigned(spent);
        }
        self.raise_floor();
    }

    /// Counts what runs on any CPU, so that the floor is up to date: a task that runs alone is not looked at for as long as it is alone, and one that
    /// joins it must not be taken for one that is so long behind.
    fn count_all(&mut self, now: Time) {
        for cpu in 0..self.cpus.len() as u32 {
            self.count(cpu, now);
        }
    }

    /// The floor follows the task that is furthest behind among those that run or could, and never sinks.
    fn raise_floor(&mut self) {
        let running = self.cpus.iter().filter_map(|cpu| {
            let task = self.tasks.get(&cpu.current?)?;
            matches!(task.state, State::Running(_)).then_some(task.vruntime)
        });
        let least = running.chain(self.queue.first().map(|&(vruntime, _)| vruntime)).min();
        self.floor = self.floor.max(least.unwrap_or(0));
    }

    /// The ready task that this CPU should run, and when a capped one that it could run otherwise gets time again.
    fn best(&self, cpu: u32) -> (Option<(u64, TaskId)>, Option<Time>) {
        let mut refill: Option<Time> = None;
        for &(vruntime, id) in &self.queue {
            let Some(task) = self.tasks.get(&id) else { continue };
            let may = match self.policy {
                SchedulerKind::Credit2 => task.affinity.contains(cpu),
                SchedulerKind::Null => task.own == Some(cpu),
            };
            if !may {
                continue;
            }
            if let Some(group) = self.groups.get(&id.vm)
                && group.exhausted()
            {
                refill = Some(refill.map_or(group.period_end, |t| t.min(group.period_end)));
                continue;
            }
            return (Some((vruntime, id)), refill);
        }
        (None, refill)
    }

    /// Brings the budgets of capped guests up to date.
    fn settle(&mut self, now: Time) {
        if self.groups.values().all(|group| group.share.cap == 0) {
            return;
        }
        // What runs has to be counted first, or a refill would forgive what it has used.
        self.count_all(now);
        for group in self.groups.values_mut() {
            group.refill(now);
        }
    }

    /// How long a task may run on while others are ready.
    fn slice(&self) -> Duration {
        let ready = self.queue.len() as u64 + self.cpus.len() as u64;
        Duration((ROUND.0 * self.cpus.len() as u64 / ready).clamp(MIN_SLICE.0, MAX_SLICE.0))
    }

    /// The current task has come back to its CPU: what now? It came back at `left`; what the host has done since then, for whomever, is not
    /// counted as its run time.
    pub fn decide(&mut self, cpu: u32, left: Time, now: Time, came: Came) -> Verdict {
        self.count(cpu, left);
        if let Some(slot) = self.cpu_mut(cpu) {
            slot.since = slot.since.max(now);
        }
        self.settle(now);
        let Some(&Cpu { current: Some(id), start, .. }) = self.cpus.get(cpu as usize) else { return Verdict::PutBack };
        let Some(task) = self.tasks.get(&id) else { return Verdict::Drop };
        if task.doomed {
            return Verdict::Drop;
        }
        let (paused, mine, welcome, held) =
            (task.paused, task.vruntime, self.may_run(task, cpu), !matches!(task.state, State::Running(_)));
        let (best, refill) = self.best(cpu);
        let blocked = came == Came::Blocking || paused;
        if blocked {
            let state = if best.is_some() || !welcome { State::Running(cpu) } else { State::Held(cpu) };
            self.set_state(id, state);
            if best.is_some() || !welcome || paused {
                return Verdict::PutBack;
            }
            if let Some(slot) = self.cpu_mut(cpu) {
                slot.idle = true;
            }
            return Verdict::Idle(refill);
        }
        if held {
            // It wakes where it is, with the credit of one that has slept.
            let floor = self.floor;
            if let Some(task) = self.tasks.get_mut(&id) {
                task.state = State::Running(cpu);
                task.vruntime = task.vruntime.max(floor.saturating_sub(WAKE_CREDIT));
            }
            if let Some(slot) = self.cpu_mut(cpu) {
                slot.start = now;
            }
        }
        let start = if held { now } else { start };
        if let Some(slot) = self.cpu_mut(cpu) {
            slot.idle = false;
        }
        let exhausted = self.groups.get(&id.vm).is_some_and(Group::exhausted);
        if exhausted || !welcome {
            return Verdict::PutBack;
        }
        // An equal waits for the end of the slice, one that is clearly behind no longer than it takes to get something done.
        let mut slice = self.slice();
        if let Some((other, _)) = best {
            if other.saturating_add(PREEMPT) < mine {
                slice = MIN_SLICE;
            }
            if came == Came::Yielding || now.since(start) >= slice && other <= mine {
                return Verdict::PutBack;
            }
        }
        let end = best.map(|_| (start + slice).max(now + SHORTEST));
        Verdict::Run(self.until(cpu, id, now, end, refill))
    }

    /// When a running task has to be looked at again.
    fn until(&mut self, cpu: u32, id: TaskId, now: Time, end: Option<Time>, refill: Option<Time>) -> Option<Time> {
        if let Some(slot) = self.cpu_mut(cpu) {
            slot.contested = end.is_some();
        }
        let mut until = refill;
        let mut at = |time: Time| until = Some(until.map_or(time, |u: Time| u.min(time)));
        if let Some(end) = end {
            at(end);
        }
        if let Some(group) = self.groups.get(&id.vm)
            && group.share.cap != 0
        {
            // All of the guest's tasks that run draw on it.
            let drawing = self.cpus.iter().filter(|cpu| cpu.current.is_some_and(|current| current.vm == id.vm)).count().max(1);
            at(now + Duration(group.budget.max(0) as u64 / drawing as u64).max(SHORTEST));
        }
        until
    }

    fn set_state(&mut self, id: TaskId, state: State) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.state = state;
        }
    }

    /// The CPU gives its current task back, unloaded; `blocked` if it waits for an interrupt. Returns another CPU to kick that could run it. A
    /// task that has been doomed meanwhile comes back: it is gone.
    pub fn put_back(&mut self, cpu: u32, now: Time, payload: T, blocked: bool) -> (Option<T>, Option<u32>) {
        self.count(cpu, now);
        let Some(id) = self.cpu_mut(cpu).and_then(|cpu| cpu.current.take()) else { return (Some(payload), None) };
        let Some(task) = self.tasks.get_mut(&id) else { return (Some(payload), None) };
        if task.doomed {
            self.remove(id);
            return (Some(payload), None);
        }
        task.payload = Some(payload);
        if blocked {
            task.state = State::Blocked;
            return (None, None);
        }
        task.state = State::Ready;
        task.ready_since = None;
        if task.paused {
            return (None, None);
        }
        task.ready_since = Some(now);
        let key = (task.vruntime, id);
        self.queue.insert(key);
        let kick = self.place_but(id, Some(cpu));
        (None, kick)
    }

    /// Gives a CPU without a task the one that it should run, and the time to look again; or the time until which to halt.
    pub fn take(&mut self, cpu: u32, now: Time) -> Result<(TaskId, T, Option<Time>), Option<Time>> {
        self.count(cpu, now);
        self.settle(now);
        let (best, refill) = self.best(cpu);
        let Some((vruntime, id)) = best else {
            if let Some(slot) = self.cpu_mut(cpu) {
                slot.idle = true;
            }
            return Err(refill);
        };
        self.queue.remove(&(vruntime, id));
        let Some(payload) = self.tasks.get_mut(&id).and_then(|task| {
            task.state = State::Running(cpu);
            task.last_cpu = cpu;
            task.waited += task.ready_since.take().map_or(0, |since| now.since(since).0);
            task.payload.take()
        }) else {
            return Err(refill);
        };
        if let Some(slot) = self.cpu_mut(cpu) {
            *slot = Cpu { current: Some(id), since: now, start: now, idle: false, ..*slot };
        }
        let (other, refill) = self.best(cpu);
        let end = other.map(|_| now + self.slice());
        Ok((id, payload, self.until(cpu, id, now, end, refill)))
    }

    // --- reports

    /// All tasks, by guest and vCPU.
    pub fn tasks(&self) -> impl Iterator<Item = TaskInfo> {
        self.tasks.iter().map(|(&id, task)| TaskInfo {
            id,
            state: task.state,
            paused: task.paused,
            ran: task.ran,
            vruntime: task.vruntime,
            last_cpu: task.last_cpu,
            affinity: task.affinity,
        })
    }

    /// Time in ns for which a task was ready, not paused, and did not run, up to when it last got a CPU.
    #[must_use]
    pub fn waited(&self, id: TaskId) -> u64 {
        self.tasks.get(&id).map_or(0, |task| task.waited)
    }

    /// A waiting task's payload.
    pub fn payload_mut(&mut self, id: TaskId) -> Option<&mut T> {
        self.tasks.get_mut(&id)?.payload.as_mut()
    }

    /// The task that a CPU has.
    #[must_use]
    pub fn current(&self, cpu: u32) -> Option<TaskId> {
        self.cpus.get(cpu as usize)?.current
    }

    /// ns that the CPU has had nothing to run, up to its last decision.
    #[must_use]
    pub fn idle_time(&self, cpu: u32) -> u64 {
        self.cpus.get(cpu as usize).map_or(0, |cpu| cpu.idled)
    }

    #[must_use]
    pub fn cpus(&self) -> u32 {
        self.cpus.len() as u32
    }
}
