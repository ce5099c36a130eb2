//! How tasks pass between the scheduler and the CPUs: the only code that moves one.

use super::{Came, Scheduler, TaskId, Verdict};
use devices::sync::Mutex;
use x86defs::Time;

/// What a CPU can run.
pub trait Task {
    /// Its registers are to be in CPU `cpu` from now on. `waited`: [`Scheduler::waited`].
    fn load(&mut self, cpu: u32, waited: u64);
    /// They have to leave the CPU, whose is the caller.
    fn unload(&mut self);
    /// It waits for something.
    fn is_asleep(&self) -> bool;
    /// There is what it waits for. Whoever sees to that must call [`wake`] afterwards.
    fn wakes(&self) -> bool;
    /// It goes on because it wakes.
    fn wake_up(&mut self);
}

/// A CPU's place for a task.
pub struct Seat<T> {
    /// Whose registers the CPU holds.
    pub task: Option<T>,
    /// How it has come back.
    pub came: Came,
}

impl<T> Default for Seat<T> {
    fn default() -> Self {
        Self { task: None, came: Came::Runnable }
    }
}

/// What a CPU does next.
#[derive(PartialEq, Eq, Debug)]
pub enum Step<T> {
    /// Run the task that is in the seat, and look again at this time.
    Run(Option<Time>),
    /// Halt, and look again at this time.
    Halt(Option<Time>),
    /// This task is gone: dispose of it, and look again.
    Dispose(T),
}

/// Finds out what CPU `cpu` does next, and gets it ready. Its task, if it has one, has come back from the guest at `left`. `kick` has another CPU look again.
pub fn next<T: Task>(
    sched: &Mutex<Scheduler<T>>,
    seat: &mut Seat<T>,
    cpu: u32,
    left: Time,
    now: Time,
    kick: impl Fn(u32),
) -> Step<T> {
    loop {
        let Some(mut task) = seat.task.take() else {
            let mut locked = sched.lock();
            let (id, mut task, _) = match locked.take(cpu, now) {
                Ok(task) => task,
                Err(until) => return Step::Halt(until),
            };
            let waited = locked.waited(id);
            drop(locked);
            task.load(cpu, waited);
            seat.task = Some(task);
            seat.came = Came::Runnable;
            continue;
        };
        let mut locked = sched.lock();
        // Looked at under the lock, which whoever wakes it takes: nothing can come in between.
        let came = if !task.is_asleep() {
            seat.came
        } else if task.wakes() {
            Came::Runnable
        } else {
            Came::Blocking
        };
        let verdict = locked.decide(cpu, left, now, came);
        drop(locked);
        seat.came = Came::Runnable;
        match verdict {
            Verdict::Run(until) => {
                task.wake_up();
                seat.task = Some(task);
                return Step::Run(until);
            }
            Verdict::Idle(until) => {
                seat.task = Some(task);
                return Step::Halt(until);
            }
            Verdict::PutBack => {
                task.unload();
                let mut locked = sched.lock();
                // Looked at again: the lock was free in between.
                let blocked = task.is_asleep() && !task.wakes();
                let (gone, other) = locked.put_back(cpu, now, task, blocked);
                drop(locked);
                if let Some(cpu) = other {
                    kick(cpu);
                }
                if let Some(task) = gone {
                    return Step::Dispose(task);
                }
            }
            Verdict::Drop => {
                task.unload();
                sched.lock().gone(cpu, now);
                return Step::Dispose(task);
            }
        }
    }
}

/// Tells a task that there is something new for it. `here` is the CPU that calls, if it is going to look at the queue before it runs or halts.
pub fn wake<T>(sched: &Mutex<Scheduler<T>>, id: TaskId, here: Option<u32>, now: Time, kick: impl Fn(u32)) {
    let cpu = sched.lock().wake(id, now);
    if let Some(cpu) = cpu
        && Some(cpu) != here
    {
        kick(cpu);
    }
}
