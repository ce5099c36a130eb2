//! What the shell needs from the host that it operates.

use crate::cpumask::CpuMask;
use alloc::{string::String, vec::Vec};
use core::fmt;
use x86defs::{Duration, Time};

bitflags::bitflags! {
    /// A guest's state as the letters of `xl list`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct GuestFlags: u8 {
        /// A vCPU has a host CPU now.
        const RUNNING = 1 << 0;
        /// All vCPUs wait for an interrupt.
        const BLOCKED = 1 << 1;
        /// Paused by the operator.
        const PAUSED = 1 << 2;
        /// It has switched itself off or reset itself, and is kept (`preserve`, `rename-restart`).
        const SHUTDOWN = 1 << 3;
        /// It has crashed, and is kept.
        const CRASHED = 1 << 4;
        /// It is being taken apart.
        const DYING = 1 << 5;
    }
}

impl GuestFlags {
    /// True for a guest that will not run any more.
    #[must_use]
    pub const fn ended(self) -> bool {
        self.intersects(Self::SHUTDOWN.union(Self::CRASHED).union(Self::DYING))
    }
}

/// One guest, those that have ended and are kept included.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestInfo {
    /// Unique since the host started.
    pub id: u32,
    pub name: String,
    /// Bytes.
    pub memory: u64,
    pub vcpus: u32,
    pub flags: GuestFlags,
    /// CPU time of all its vCPUs.
    pub cpu_time: Duration,
    /// When it was started, on the clock of [`Operator::now`].
    pub started: Time,
    /// `cpu_weight`: 1 to 65535.
    pub weight: u16,
    /// `cap` in percent of one CPU; 0 for none.
    pub cap: u32,
}

/// What a vCPU is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VcpuActivity {
    /// It has a host CPU.
    Running,
    /// It could run, and waits for a host CPU (or its guest is paused).
    Ready,
    /// It has halted and waits for an interrupt.
    Blocked,
    /// The guest has not started it (INIT, waiting for SIPI), or has ended.
    Offline,
}

/// One vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VcpuInfo {
    /// Index within the guest.
    pub id: u32,
    /// The host CPU that it is on, or was on last.
    pub cpu: Option<u32>,
    pub activity: VcpuActivity,
    pub cpu_time: Duration,
    /// Exits since the guest was started.
    pub exits: u64,
    /// The host CPUs that it may run on.
    pub affinity: CpuMask,
}

/// The host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostInfo {
    /// Bulkhead's.
    pub version: String,
    /// Its command line.
    pub cmdline: String,
    /// The CPU's brand string, or empty.
    pub cpu_model: String,
    /// "AMD-V" or "VT-x".
    pub virtualisation: &'static str,
    /// Host CPUs that run guests, numbered from 0.
    pub cpus: u32,
    pub tsc_hz: u64,
    /// Bytes for guests in all.
    pub memory_total: u64,
    /// Bytes of these that are free.
    pub memory_free: u64,
    /// As `sched=` has it.
    pub scheduler: &'static str,
}

/// How a new guest starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    Running,
    Paused,
}

/// What `trigger` sends to a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// An NMI to this vCPU.
    Nmi { vcpu: u32 },
    /// The ACPI power button.
    Power,
    /// The ACPI sleep button.
    Sleep,
    /// The reset button: what its configuration has for `on_reboot` follows.
    Reset,
}

/// What `debug-keys` asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DebugKey {
    /// `d`: host CPUs, and the registers of the vCPUs that they have.
    Registers,
    /// `m`: memory, to the byte.
    Memory,
    /// `q`: guests and the registers of their vCPUs.
    Guests,
    /// `r`: run queues.
    RunQueues,
    /// `t`: clocks, the time-stamp counters' synchrony.
    Time,
}

/// Why the host did not do what was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OperatorError {
    /// The guest has gone meanwhile.
    NoSuchGuest,
    /// The guest has ended and is only kept.
    Ended,
    AlreadyPaused,
    NotPaused,
    /// vCPU and how many the guest has.
    NoSuchVcpu {
        vcpu: u32,
        vcpus: u32,
    },
    /// No boot module has this name.
    NoSuchModule {
        name: String,
    },
    /// The configuration was refused; the log says why.
    Refused {
        config: String,
    },
    /// The host has none of these CPUs.
    NoSuchCpus {
        cpus: CpuMask,
    },
    /// The guest's serial port does not lead to the console (`serial = "none"`).
    NoConsole,
    /// The scheduler in use has no weights and caps.
    NotForScheduler {
        scheduler: &'static str,
    },
    /// This host cannot do it.
    Unsupported,
}

impl fmt::Display for OperatorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchGuest => f.write_str("the guest has gone"),
            Self::Ended => f.write_str("the guest has ended"),
            Self::AlreadyPaused => f.write_str("the guest is paused already"),
            Self::NotPaused => f.write_str("the guest is not paused"),
            Self::NoSuchVcpu { vcpu, vcpus } => write!(f, "no vCPU {vcpu}: the guest has {vcpus}, counted from 0"),
            Self::NoSuchModule { name } => write!(f, "no boot module is named {name}"),
            Self::Refused { config } => write!(f, "{config} was refused, see the messages above"),
            Self::NoSuchCpus { cpus } => write!(f, "the host has no CPU of {cpus}"),
            Self::NoConsole => f.write_str("the guest has no console (serial = \"none\")"),
            Self::NotForScheduler { scheduler } => write!(f, "sched={scheduler} has no weights and caps"),
            Self::Unsupported => f.write_str("not possible on this host"),
        }
    }
}

/// The host, as its operator sees and changes it.
///
/// Nothing here waits: what takes time (a guest's shutdown) is only asked for. Whatever happens because of a call is logged by the host as
/// if it had happened by itself.
pub trait Operator {
    /// All guests, in the order of their ids.
    fn guests(&self) -> Vec<GuestInfo>;
    /// A guest's vCPUs, in the order of their ids; none if the guest has gone.
    fn vcpus(&self, guest: u32) -> Vec<VcpuInfo>;
    fn host(&self) -> HostInfo;
    /// Time since the host started.
    fn now(&self) -> Time;
    /// The names of the boot modules.
    fn modules(&self) -> Vec<String>;
    /// Copies the hypervisor's log from a position on: see [`crate::log::read`].
    fn log(&self, from: u64, buffer: &mut [u8]) -> (usize, u64);

    /// Starts a guest from the configuration that is boot module `config`. Returns its id.
    fn create(&self, config: &str, start: Start) -> Result<u32, OperatorError>;
    /// Ends a guest at once and frees all that it has, also if it had ended and was kept.
    fn destroy(&self, guest: u32) -> Result<(), OperatorError>;
    fn pause(&self, guest: u32) -> Result<(), OperatorError>;
    fn unpause(&self, guest: u32) -> Result<(), OperatorError>;
    /// Presses a guest's power button so that it shuts down, and makes its next power-off count as a reboot: `on_reboot` follows.
    fn reboot(&self, guest: u32) -> Result<(), OperatorError>;
    fn trigger(&self, guest: u32, trigger: Trigger) -> Result<(), OperatorError>;
    /// Lets a vCPU, or all of a guest's, run only on these host CPUs. CPUs that the host does not have count for nothing.
    fn pin(&self, guest: u32, vcpu: Option<u32>, cpus: &CpuMask) -> Result<(), OperatorError>;
    /// Sets a guest's weight, its cap, or both.
    fn set_share(&self, guest: u32, weight: Option<u16>, cap: Option<u32>) -> Result<(), OperatorError>;
    /// Gives a guest the console's input, and says so as a switch by keys does.
    fn focus(&self, guest: u32) -> Result<(), OperatorError>;

    /// Writes what a debug key shows: lines that end in LF.
    fn debug(&self, key: DebugKey, out: &mut dyn fmt::Write) -> Result<(), OperatorError>;
    /// Switches the host off, whatever runs. A real host does not return.
    fn power_off(&self);
    /// Restarts the host, whatever runs. A real host does not return.
    fn reset(&self);
}
