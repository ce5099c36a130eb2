//! The scheduler on simulated CPUs whose tasks run, sleep and wake as told.

use super::{Came, CpuMask, Scheduler, SchedulerKind, Share, State, TaskId, Verdict};
use alloc::{collections::BTreeMap, vec, vec::Vec};
use proptest::prelude::*;
use x86defs::{Duration, Time};

const MS: u64 = 1_000_000;

/// Simulated CPUs. A task's payload is its identifier.
struct Machine {
    sched: Scheduler<TaskId>,
    now: Time,
    /// What each CPU holds, and when it looks again.
    cpus: Vec<(Option<TaskId>, Option<Time>, bool)>,
    /// Tasks that would rather sleep than run.
    sleepy: Vec<TaskId>,
    work: BTreeMap<TaskId, u64>,
}

fn id(vm: u32) -> TaskId {
    TaskId { vm, vcpu: 0 }
}

impl Machine {
    fn new(policy: SchedulerKind, cpus: u32) -> Self {
        let mut machine = Self {
            sched: Scheduler::new(policy, cpus, Time(0)),
            now: Time(0),
            cpus: vec![(None, None, false); cpus as usize],
            sleepy: Vec::new(),
            work: BTreeMap::new(),
        };
        for cpu in 0..cpus {
            machine.look(cpu);
        }
        machine
    }

    fn add(&mut self, task: TaskId, share: Share, affinity: CpuMask) {
        self.sched.set_share(task.vm, share, self.now);
        self.sched.add(task, task, affinity, false, self.now);
        self.wake(task);
    }

    fn wake(&mut self, task: TaskId) {
        if let Some(cpu) = self.sched.wake(task, self.now) {
            self.look(cpu);
        }
    }

    fn sleep(&mut self, task: TaskId) {
        self.sleepy.push(task);
        if let Some(cpu) = self.cpus.iter().position(|cpu| cpu.0 == Some(task)) {
            self.look(cpu as u32);
        }
    }

    /// CPU `cpu` finds out what to do, as the host's loop does.
    fn look(&mut self, cpu: u32) {
        let mut kicks = Vec::new();
        loop {
            let slot = cpu as usize;
            let Some(task) = self.cpus[slot].0 else {
                match self.sched.take(cpu, self.now) {
                    Ok((task, payload, _)) => {
                        assert_eq!(task, payload);
                        assert!(self.cpus.iter().all(|other| other.0 != Some(task)), "{task:?} on two CPUs");
                        self.cpus[slot] = (Some(task), None, true);
                        continue;
                    }
                    Err(until) => {
                        self.cpus[slot] = (None, until, false);
                        break;
                    }
                }
            };
            let asleep = self.sleepy.contains(&task);
            match self.sched.decide(cpu, self.now, self.now, if asleep { Came::Blocking } else { Came::Runnable }) {
                Verdict::Run(until) => {
                    assert!(!asleep);
                    self.cpus[slot] = (Some(task), until, true);
                    break;
                }
                Verdict::Idle(until) => {
                    assert!(asleep);
                    self.cpus[slot] = (Some(task), until, false);
                    break;
                }
                Verdict::PutBack => {
                    let (gone, kick) = self.sched.put_back(cpu, self.now, task, asleep);
                    assert_eq!(gone, None);
                    kicks.extend(kick);
                    self.cpus[slot] = (None, None, false);
                }
                Verdict::Drop => {
                    self.sched.gone(cpu, self.now);
                    self.cpus[slot] = (None, None, false);
                }
            }
        }
        for other in kicks {
            assert_ne!(other, cpu);
            self.look(other);
        }
    }

    /// Lets time pass up to `end`, with every CPU doing as it was told.
    fn run_until(&mut self, end: Time) {
        while self.now < end {
            let next = self.cpus.iter().filter_map(|cpu| cpu.1).min().map_or(end, |t| t.clamp(self.now, end));
            let next = if next == self.now { Time(self.now.0 + 1) } else { next };
            for (task, _, runs) in &self.cpus {
                if let (Some(task), true) = (task, runs) {
                    *self.work.entry(*task).or_default() += next.since(self.now).0;
                }
            }
            self.now = next;
            for cpu in 0..self.cpus.len() as u32 {
                if self.cpus[cpu as usize].1.is_some_and(|until| until <= self.now) {
                    self.look(cpu);
                }
            }
        }
    }

    fn run_for(&mut self, ms: u64) {
        self.run_until(self.now + Duration::from_millis(ms));
    }

    fn work(&self, vm: u32) -> u64 {
        self.work.get(&id(vm)).copied().unwrap_or(0)
    }
}

fn weight(weight: u16) -> Share {
    Share { weight, cap: 0 }
}

fn within(value: u64, want: u64, percent: u64) -> bool {
    value.abs_diff(want) * 100 <= want * percent
}

#[test]
fn time_is_in_proportion_to_weight() {
    for (a, b) in [(256, 512), (1, 65535), (300, 100)] {
        let mut m = Machine::new(SchedulerKind::Credit2, 1);
        m.add(id(1), weight(a), CpuMask::ALL);
        m.add(id(2), weight(b), CpuMask::ALL);
        m.run_for(20_000);
        let total = m.work(1) + m.work(2);
        assert!(within(total, 20_000 * MS, 1), "the CPU is never idle: {total}");
        let want = total * u64::from(b) / (u64::from(a) + u64::from(b));
        assert!(within(m.work(2), want, 1), "{a}:{b}: {} of {total}", m.work(2));
    }
}

#[test]
fn sixteen_on_two_cpus_get_the_same() {
    let mut m = Machine::new(SchedulerKind::Credit2, 2);
    for vm in 1..=16 {
        m.add(id(vm), weight(256), CpuMask::ALL);
    }
    m.run_for(2000);
    for vm in 1..=16 {
        assert!(within(m.work(vm), 250 * MS, 3), "{vm}: {}", m.work(vm));
    }
}

#[test]
fn a_cap_holds_whether_the_cpu_is_wanted_or_not() {
    for others in [0, 3] {
        let mut m = Machine::new(SchedulerKind::Credit2, 2);
        for vcpu in 0..2 {
            m.add(TaskId { vm: 1, vcpu }, Share { weight: 256, cap: 25 }, CpuMask::ALL);
        }
        for vm in 0..others {
            m.add(id(10 + vm), weight(256), CpuMask::ALL);
        }
        m.run_for(4000);
        let used: u64 = (0..2).filter_map(|vcpu| m.work.get(&TaskId { vm: 1, vcpu })).sum();
        assert!(within(used, 1000 * MS, 2), "{others} others: {used}");
    }
}

#[test]
fn a_cap_above_one_cpu() {
    let mut m = Machine::new(SchedulerKind::Credit2, 4);
    for vcpu in 0..4 {
        m.add(TaskId { vm: 1, vcpu }, Share { weight: 256, cap: 150 }, CpuMask::ALL);
    }
    m.run_for(2000);
    let used: u64 = m.work.values().sum();
    assert!(within(used, 3000 * MS, 2), "{used}");
}

#[test]
fn no_cpu_idles_while_work_may_run_there() {
    let mut m = Machine::new(SchedulerKind::Credit2, 3);
    for vm in 1..=2 {
        m.add(id(vm), weight(256), CpuMask::ALL);
    }
    m.run_for(100);
    assert_eq!((m.work(1), m.work(2)), (100 * MS, 100 * MS));
    // A third and a fourth: the idle CPU takes one at once, the other shares.
    m.add(id(3), weight(256), CpuMask::ALL);
    m.add(id(4), weight(256), CpuMask::ALL);
    m.run_for(1000);
    let total: u64 = m.work.values().sum();
    assert_eq!(total, 3200 * MS);
}

#[test]
fn pins_are_kept() {
    let mut m = Machine::new(SchedulerKind::Credit2, 2);
    m.add(id(1), weight(256), CpuMask::single(0));
    m.add(id(2), weight(256), CpuMask::single(0));
    m.add(id(3), weight(256), CpuMask::single(1));
    m.run_for(1000);
    assert!(within(m.work(1), 500 * MS, 3) && within(m.work(2), 500 * MS, 3));
    assert_eq!(m.work(3), 1000 * MS);
    // Moved to the other CPU while it may be running.
    if let Some(cpu) = m.sched.set_affinity(id(2), CpuMask::single(1)) {
        m.look(cpu);
    }
    m.run_for(1000);
    assert!(m.sched.tasks().find(|t| t.id == id(2)).unwrap().last_cpu == 1);
    assert!(m.work(1) >= 1480 * MS, "alone on its CPU: {}", m.work(1));
}

#[test]
fn a_sleeper_is_back_soon_and_cannot_hoard() {
    let mut m = Machine::new(SchedulerKind::Credit2, 1);
    for vm in 1..=4 {
        m.add(id(vm), weight(256), CpuMask::ALL);
    }
    m.run_for(100);
    m.sleep(id(1));
    m.run_for(10_000);
    let before = m.work(1);
    m.sleepy.clear();
    m.wake(id(1));
    m.run_for(2);
    assert!(m.work(1) > before, "runs within 2 ms of its wake-up");
    m.run_for(998);
    assert!(m.work(1) - before < 270 * MS, "has not saved up: {}", m.work(1) - before);
}

#[test]
fn one_that_joins_a_lone_task_owes_it_nothing() {
    let mut m = Machine::new(SchedulerKind::Credit2, 2);
    m.add(id(1), weight(256), CpuMask::single(0));
    m.add(id(2), weight(256), CpuMask::single(0));
    m.sleep(id(2));
    // Nobody looks at the one that runs.
    m.run_for(1000);
    let joined = [m.work(1), m.work(2)];
    m.sleepy.clear();
    m.wake(id(2));
    m.add(id(3), weight(256), CpuMask::single(0));
    m.run_for(60);
    assert!(m.work(1) - joined[0] >= 15 * MS, "the old one got {}", m.work(1) - joined[0]);
    assert!(m.work(2) - joined[1] >= 15 * MS && m.work(3) >= 15 * MS);
}

#[test]
fn what_the_host_does_in_between_is_nobodys_run_time() {
    let mut sched = Scheduler::new(SchedulerKind::Credit2, 1, Time(0));
    sched.set_share(1, Share::default(), Time(0));
    sched.add(id(1), id(1), CpuMask::ALL, false, Time(0));
    sched.wake(id(1), Time(0));
    assert!(sched.take(0, Time(0)).is_ok());
    for n in 1..=10 {
        let left = Time(n * 1000);
        assert_eq!(sched.decide(0, left, left + Duration(300), Came::Runnable), Verdict::Run(None));
    }
    let ran = sched.tasks().next().map(|task| task.ran);
    assert_eq!(ran, Some(1000 + 9 * 700));
}

/// Over 40 slices, from whenever on, no two guests differ by more than a slice at either end, however they were started.
#[test]
fn the_lag_is_bounded() {
    let mut m = Machine::new(SchedulerKind::Credit2, 2);
    for vm in 1..=16 {
        m.add(id(vm), weight(256), CpuMask::ALL);
        m.run_until(m.now + Duration(5_300_000 + 13_000 * u64::from(vm)));
    }
    m.run_for(50);
    for _ in 0..20 {
        let before: Vec<u64> = (1..=16).map(|vm| m.work(vm)).collect();
        m.run_for(400);
        let got: Vec<u64> = (1..=16).map(|vm| m.work(vm) - before[vm as usize - 1]).collect();
        let (least, most) = (*got.iter().min().unwrap(), *got.iter().max().unwrap());
        assert!(most - least <= 3 * MS, "{got:?}");
        m.run_until(m.now + Duration(1_234_567));
    }
}

#[test]
fn a_lone_task_is_left_alone() {
    let mut m = Machine::new(SchedulerKind::Credit2, 1);
    m.add(id(1), weight(256), CpuMask::ALL);
    assert_eq!(m.cpus[0].1, None, "no timer");
    m.sleep(id(1));
    assert_eq!((m.cpus[0].0, m.cpus[0].1), (Some(id(1)), None), "its registers stay");
    assert!(matches!(m.sched.tasks().next().unwrap().state, State::Held(0)));
    m.sleepy.clear();
    m.wake(id(1));
    assert!(m.cpus[0].2);
}

#[test]
fn null_gives_each_a_cpu_and_no_timer() {
    let mut m = Machine::new(SchedulerKind::Null, 2);
    for vm in 1..=3 {
        m.add(id(vm), weight(256), CpuMask::ALL);
    }
    assert!(m.sched.is_waiting_for_cpu(id(3)) && !m.sched.is_waiting_for_cpu(id(2)));
    assert!(m.cpus.iter().all(|cpu| cpu.1.is_none()));
    m.run_for(1000);
    assert_eq!((m.work(1), m.work(2), m.work(3)), (1000 * MS, 1000 * MS, 0));
    // One ends: its CPU goes to the one that waits.
    let (payloads, kicks) = m.sched.doom(1);
    assert!(payloads.is_empty());
    for cpu in kicks.iter() {
        m.look(cpu);
    }
    m.run_for(10);
    assert_eq!(m.work(3), 10 * MS);
}

#[test]
fn paused_guests_use_nothing() {
    let mut m = Machine::new(SchedulerKind::Credit2, 1);
    m.add(id(1), weight(256), CpuMask::ALL);
    m.add(id(2), weight(256), CpuMask::ALL);
    for cpu in m.sched.set_paused(1, true).iter() {
        m.look(cpu);
    }
    let before = m.work(1);
    m.run_for(100);
    assert_eq!(m.work(1), before);
    for cpu in m.sched.set_paused(1, false).iter() {
        m.look(cpu);
    }
    m.run_for(100);
    assert!(m.work(1) > before + 30 * MS);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Add(u32, u16, u32, u64),
    Wake(u32),
    Sleep(u32),
    Pause(u32, bool),
    Doom(u32),
    Pin(u32, u64),
    Share(u32, u16, u32),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let vm = 1u32..8;
    prop_oneof![
        (vm.clone(), 1u16.., 0u32..200, 1u64..8).prop_map(|(vm, w, c, a)| Step::Add(vm, w, c, a)),
        vm.clone().prop_map(Step::Wake),
        vm.clone().prop_map(Step::Sleep),
        (vm.clone(), any::<bool>()).prop_map(|(vm, p)| Step::Pause(vm, p)),
        vm.clone().prop_map(Step::Doom),
        (vm.clone(), 1u64..8).prop_map(|(vm, a)| Step::Pin(vm, a)),
        (vm, 1u16.., 0u32..200).prop_map(|(vm, w, c)| Step::Share(vm, w, c)),
        (1u64..40_000_000).prop_map(Step::Pass),
    ]
}

fn mask(bits: u64) -> CpuMask {
    (0..3).filter(|cpu| bits >> cpu & 1 != 0).collect()
}

proptest! {
    /// Whatever happens: no task is on two CPUs or lost, none runs where it may not or while it is paused, and every task that could run does so
    /// within a bounded time.
    #[test]
    fn nothing_is_lost(steps in proptest::collection::vec(step(), 1..120), null in any::<bool>()) {
        let policy = if null { SchedulerKind::Null } else { SchedulerKind::Credit2 };
        let mut m = Machine::new(policy, 3);
        let mut alive: BTreeMap<u32, (u64, bool)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Add(vm, w, cap, affinity) => {
                    if let alloc::collections::btree_map::Entry::Vacant(entry) = alive.entry(vm) {
                        entry.insert((affinity, false));
                        m.sleepy.retain(|&t| t != id(vm));
                        m.add(id(vm), Share { weight: w, cap }, mask(affinity));
                    }
                }
                Step::Wake(vm) => {
                    m.sleepy.retain(|&t| t != id(vm));
                    m.wake(id(vm));
                }
                Step::Sleep(vm) if alive.contains_key(&vm) => m.sleep(id(vm)),
                Step::Pause(vm, paused) => {
                    if let Some(entry) = alive.get_mut(&vm) {
                        entry.1 = paused;
                    }
                    for cpu in m.sched.set_paused(vm, paused).iter() {
                        m.look(cpu);
                    }
                }
                Step::Doom(vm) => {
                    let (_, kicks) = m.sched.doom(vm);
                    for cpu in kicks.iter() {
                        m.look(cpu);
                    }
                    alive.remove(&vm);
                }
                Step::Pin(vm, affinity) => {
                    if let Some(entry) = alive.get_mut(&vm) {
                        entry.0 = affinity;
                        if let Some(cpu) = m.sched.set_affinity(id(vm), mask(affinity)) {
                            m.look(cpu);
                        }
                    }
                }
                Step::Share(vm, w, cap) if alive.contains_key(&vm) => m.sched.set_share(vm, Share { weight: w, cap }, m.now),
                Step::Pass(ns) => m.run_until(m.now + Duration(ns)),
                _ => {}
            }
            let known: Vec<u32> = m.sched.tasks().map(|t| t.id.vm).collect();
            prop_assert_eq!(&known, &alive.keys().copied().collect::<Vec<_>>());
            for (cpu, (task, _, runs)) in m.cpus.iter().enumerate() {
                if let (Some(task), true) = (task, runs) {
                    let (affinity, paused) = alive[&task.vm];
                    prop_assert!(mask(affinity).contains(cpu as u32), "{:?} on CPU {}", task, cpu);
                    prop_assert!(!paused);
                }
            }
        }
        if policy == SchedulerKind::Credit2 {
            let before = m.work.clone();
            for vm in alive.keys() {
                m.sched.set_share(*vm, Share::default(), m.now);
            }
            m.run_for(100_000);
            for (&vm, &(_, paused)) in &alive {
                if !paused && !m.sleepy.contains(&id(vm)) {
                    prop_assert!(m.work(vm) > before.get(&id(vm)).copied().unwrap_or(0), "guest {} starves", vm);
                }
            }
        }
    }
}

#[test]
fn a_task_waits_while_it_is_ready_and_not_paused() {
    let ms = |n: u64| Time(n * 1_000_000);
    let mut sched: Scheduler<TaskId> = Scheduler::new(SchedulerKind::Credit2, 1, ms(0));
    let ids = [0, 1].map(|vcpu| TaskId { vm: 1, vcpu });
    sched.set_share(1, Share::default(), ms(0));
    for id in ids {
        sched.add(id, id, CpuMask::ALL, false, ms(0));
        sched.wake(id, ms(1));
    }
    assert_eq!(sched.take(0, ms(1)).unwrap().0, ids[0]);
    // The other is ready since 1 ms.
    assert!(sched.put_back(0, ms(5), ids[0], true).0.is_none());
    assert_eq!(sched.take(0, ms(6)).unwrap().0, ids[1]);
    assert_eq!(ids.map(|id| sched.waited(id)), [0, 5_000_000]);
    // Blocked until 8 ms, then ready.
    sched.wake(ids[0], ms(8));
    assert!(sched.put_back(0, ms(10), ids[1], false).0.is_none());
    assert_eq!(sched.take(0, ms(10)).unwrap().0, ids[0]);
    assert_eq!(sched.waited(ids[0]), 2_000_000);
    // A pause does not count.
    sched.set_paused(1, true);
    assert!(sched.put_back(0, ms(20), ids[0], false).0.is_none());
    sched.set_paused(1, false);
    assert!(sched.take(0, ms(30)).is_ok() && sched.put_back(0, ms(31), ids[0], true).0.is_none());
    assert!(sched.take(0, ms(32)).is_ok());
    assert_eq!(ids.map(|id| sched.waited(id)), [2_000_000, 5_000_000]);
}
