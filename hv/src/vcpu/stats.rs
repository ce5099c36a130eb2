//! What a vCPU has had: its exits by their kind, and interrupts.

use core::fmt;
use x86defs::Exit;

/// Kinds of exits, as reports tell them apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    PortRead,
    PortWrite,
    PortString,
    Memory,
    Cpuid,
    MsrRead,
    MsrWrite,
    Control,
    Hlt,
    Pause,
    Hypercall,
    CacheFlush,
    Tsc,
    Exception,
    Window,
    HostInterrupt,
    TurnOver,
    VirtualApic,
    TaskSwitch,
    Other,
}

/// Their names, in order.
const NAMES: [&str; Kind::Other as usize + 1] = [
    "port-read",
    "port-write",
    "port-string",
    "memory",
    "cpuid",
    "msr-read",
    "msr-write",
    "control-register",
    "hlt",
    "pause",
    "hypercall",
    "cache-flush",
    "tsc",
    "exception",
    "window",
    "host-interrupt",
    "turn-over",
    "virtual-apic",
    "task-switch",
    "other",
];

impl Kind {
    #[inline(always)]
    const fn of(exit: &Exit) -> Self {
        match exit {
            Exit::PortRead { .. } => Self::PortRead,
            Exit::PortWrite { .. } => Self::PortWrite,
            Exit::PortString { .. } => Self::PortString,
            Exit::Stage2Fault { .. } | Exit::TableFault { .. } => Self::Memory,
            Exit::Cpuid { .. } => Self::Cpuid,
            Exit::MsrRead { .. } => Self::MsrRead,
            Exit::MsrWrite { .. } => Self::MsrWrite,
            Exit::ControlRead { .. } | Exit::ControlWrite { .. } | Exit::Xsetbv { .. } => Self::Control,
            Exit::Hlt => Self::Hlt,
            Exit::Pause => Self::Pause,
            Exit::Hypercall => Self::Hypercall,
            Exit::CacheFlush => Self::CacheFlush,
            Exit::Rdtsc | Exit::Rdpmc { .. } => Self::Tsc,
            Exit::Exception(_) | Exit::UndefinedInstruction => Self::Exception,
            Exit::InterruptWindow | Exit::NmiWindow => Self::Window,
            Exit::HostInterrupt | Exit::HostNmi => Self::HostInterrupt,
            Exit::TurnOver => Self::TurnOver,
            Exit::VirtualEoi { .. } | Exit::VirtualApicWrite { .. } => Self::VirtualApic,
            Exit::TaskSwitch(_) => Self::TaskSwitch,
            Exit::TripleFault | Exit::Unknown { .. } | Exit::EntryFailed(_) => Self::Other,
        }
    }
}

/// Counters for reports. The text lists the exits of each kind that there were.
#[derive(Clone, Copy, Default, Debug)]
pub struct Stats {
    by_kind: [u64; NAMES.len()],
    /// Interrupts injected.
    pub interrupts: u64,
}

impl Stats {
    /// Counts an exit: one instruction wherever the compiler knows which kind it is.
    #[inline(always)]
    pub(super) const fn count(&mut self, exit: &Exit) {
        self.by_kind[Kind::of(exit) as usize] += 1;
    }

    /// Exits of all kinds.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.by_kind.iter().sum()
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} exits, {} interrupts", self.exits(), self.interrupts)?;
        let counted = NAMES.iter().zip(self.by_kind).filter(|(_, count)| *count > 0);
        for (n, (name, count)) in counted.enumerate() {
            write!(f, "{} {name} {count}", if n == 0 { ":" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn exits_are_told_apart_and_summed() {
        let mut stats = Stats::default();
        assert_eq!(format!("{stats}"), "0 exits, 0 interrupts");
        for exit in [Exit::Hlt, Exit::TripleFault, Exit::Hlt, Exit::Cpuid { leaf: 0, subleaf: 0 }] {
            stats.count(&exit);
        }
        stats.interrupts = 2;
        assert_eq!(format!("{stats}"), "4 exits, 2 interrupts: cpuid 1, hlt 2, other 1");
    }
}
