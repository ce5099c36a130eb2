//! The few system calls that the standard library does not offer: pseudo-terminals and the child's surroundings.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Child, Command},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, geteuid, kill_process_group, set_parent_process_death_signal},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{OptionalActions, tcgetattr, tcsetattr},
    thread::{CpuSet, UnshareFlags, sched_getaffinity, sched_setaffinity, unshare_unsafe},
};

/// A pseudo-terminal for another process to use as its serial line.
pub struct Pty {
    pub master: File,
    pub slave: OwnedFd,
    /// What to open to get the slave.
    pub path: PathBuf,
}

impl Pty {
    pub fn open() -> io::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = ptsname(&master, Vec::new())?;
        let path = PathBuf::from(path.into_string().map_err(io::Error::other)?);
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let slave = rustix::fs::open(&path, flags, rustix::fs::Mode::empty())?;
        make_raw(&slave)?;
        Ok(Self { master: File::from(master), slave, path })
    }
}

/// No echo, no line editing, no translation.
pub fn make_raw(tty: impl AsFd) -> io::Result<()> {
    let mut termios = tcgetattr(&tty)?;
    termios.make_raw();
    Ok(tcsetattr(&tty, OptionalActions::Now, &termios)?)
}

/// The network that a child process sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    Shared,
    /// None at all, where the system allows that.
    Isolated,
}

/// On how many CPUs a child's threads run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cpus {
    All,
    /// On one, and the next such child on the next one.
    One,
}

/// Surroundings of a child that has the whole machine, and its network.
pub const OPEN: Surroundings = Surroundings { network: Network::Shared, cpus: Cpus::All };

/// What a child sees of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Surroundings {
    pub network: Network,
    pub cpus: Cpus,
}

/// One of the CPUs that this process may use; of several calls, each gets another one as long as there are any.
fn next_cpu() -> Option<CpuSet> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let allowed = sched_getaffinity(None).ok()?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed) % (allowed.count().max(1) as usize);
    let cpu = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).nth(number)?;
    let mut one = CpuSet::new();
    one.set(cpu);
    Some(one)
}

/// Lets the child die with this thread, keeps terminal signals from it, and gives it its surroundings.
pub fn confine(command: &mut Command, surroundings: Surroundings) {
    command.process_group(0);
    let Surroundings { network, cpus } = surroundings;
    let only = if cpus == Cpus::One { next_cpu() } else { None };
    // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are allowed: these are bare system calls.
    unsafe {
        command.pre_exec(move || {
            if network == Network::Isolated {
                let flags = if geteuid().is_root() { UnshareFlags::NEWNET } else { UnshareFlags::NEWUSER | UnshareFlags::NEWNET };
                // Where it is not allowed, the emulator works all the same, only less alone.
                // SAFETY: the process has one thread here, and neither flag affects memory or file descriptors.
                let _ = unshare_unsafe(flags);
            }
            if let Some(only) = &only {
                sched_setaffinity(None, only)?;
            }
            // After the change of namespaces, which would clear it.
            set_parent_process_death_signal(Some(Signal::KILL))?;
            Ok(())
        });
    }
}

/// Kills a child that was [`confine`]d and has not been waited for, and whatever it has started.
pub fn kill_group(child: &Child) {
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
}

/// Waits until `fd` can be read, or has ended. False after `timeout`.
pub fn wait_readable(fd: &impl AsFd, timeout: Duration) -> io::Result<bool> {
    let timeout = Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: timeout.subsec_nanos() as _ };
    loop {
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_has_the_cpus_it_is_given() {
        let cpus = |cpus| {
            let mut command = Command::new("nproc");
            confine(&mut command, Surroundings { cpus, ..OPEN });
            String::from_utf8(command.output().unwrap().stdout).unwrap().trim().parse::<u32>().unwrap()
        };
        assert_eq!(cpus(Cpus::All), sched_getaffinity(None).unwrap().count());
        assert_eq!(cpus(Cpus::One), 1);
    }
}
