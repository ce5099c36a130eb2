//! A virtual CPU as the hypervisor runs it: the vendor's [`x86defs::Vcpu`], its local APIC, its policies, and the run loop with one
//! handler file per kind of exit.

mod apic;
pub mod control;
mod cpuid;
mod emulate;
pub mod features;
mod mmio;
mod msr;
mod mtrr;
mod paravirt;
#[cfg(test)]
mod paravirt_tests;
mod pio;
mod pvclock;
mod run;
#[cfg(test)]
mod smp_tests;
mod stats;
mod task;
#[cfg(test)]
mod tests;
mod tsc;
mod viridian;
mod virtual_apic;

use crate::{alarm::Alarm, clock::Clock, config::TscMode, vm::Vm};
use alloc::{boxed::Box, sync::Arc};
use core::fmt;
use devices::{interrupt::CpuSet, lapic::LocalApic};
use emul::PlainCache;
use x86defs::{ApicAccess, EntryFailure, Gpa, Platform, Time, TimeSource, Vcpu, VcpuState, paging::FetchCache};

pub use control::{Gp, Xcr0Policy};
pub use cpuid::{APIC_BUS_HZ, BULKHEAD_BASE, CpuidContext, CpuidPolicy, MAX_BASIC};
pub use emulate::EmulationError;
pub use msr::{MsrState, control_state};
pub use run::Stop;
pub use stats::Stats;
pub use viridian::Partition;

/// What a vCPU is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activity {
    /// Executing, or ready to.
    Running,
    /// In HLT until an interrupt.
    Halted,
    /// An application processor before its first SIPI.
    WaitForSipi,
    /// Its guest has ended.
    Stopped,
}

/// Why a guest cannot go on. Always the guest's own doing, or an exit that Bulkhead does not know; never the host's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrashReason {
    TripleFault,
    /// An instruction on device memory that the emulator does not know.
    Unemulated {
        rip: u64,
        bytes: emul::InstructionBytes,
    },
    Emulation(EmulationError),
    EntryFailed(EntryFailure),
    /// The guest executes at a guest-physical address that is not RAM.
    ExecuteOutsideRam(Gpa),
    UnknownExit {
        code: u64,
        info: u64,
    },
}

impl fmt::Display for CrashReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TripleFault => write!(f, "triple fault"),
            Self::Unemulated { rip, bytes } => write!(f, "instruction at {rip:#x} is not emulated: {bytes}"),
            Self::Emulation(EmulationError::TableOutsideRam(gpa)) => write!(f, "page table at {gpa} is outside of RAM"),
            Self::Emulation(EmulationError::FetchOutsideRam(gpa)) | Self::ExecuteOutsideRam(gpa) => {
                write!(f, "executes at {gpa}, which is not RAM")
            }
            Self::EntryFailed(e) => write!(f, "the CPU refused to enter the guest: code {:#x}, info {:#x}", e.code, e.info),
            Self::UnknownExit { code, info } => write!(f, "unknown exit {code:#x}, info {info:#x}"),
        }
    }
}

/// One vCPU of one guest. Owned by whoever runs it; others reach its local APIC through the board.
pub struct VirtCpu<P: Platform> {
    pub(crate) hw: P::Vcpu,
    pub(crate) vm: Arc<Vm<P>>,
    pub(crate) apic: Arc<LocalApic>,
    /// Index within the guest.
    pub(crate) id: u32,
    pub(crate) activity: Activity,
    pub(crate) cpuid: Box<CpuidPolicy>,
    pub(crate) msrs: Box<MsrState>,
    pvclock: pvclock::PvClock,
    paravirt: paravirt::Paravirt,
    tsc_mode: TscMode,
    xcr0: Xcr0Policy,
    /// An interrupt or NMI window was asked for and has not come.
    window: bool,
    /// The CPU works on the local APIC's page by itself.
    virtual_apic: Option<ApicAccess>,
    /// It was halted with RFLAGS.IF set.
    interruptible: bool,
    pub(crate) stats: Stats,
    fetches: FetchCache,
    plain: PlainCache,
}

/// What a vCPU needs from the CPU that runs it.
pub struct Context<'a, P: Platform> {
    pub platform: &'a P,
    pub clock: Clock,
    /// This CPU's number.
    pub cpu: u32,
    pub alarm: &'a Alarm,
    /// Tells vCPUs of the guest that there is something new for them.
    pub wake: &'a dyn Fn(&Vm<P>, CpuSet),
}

impl<P: Platform> TimeSource for Context<'_, P> {
    #[inline(always)]
    fn now(&self) -> Time {
        self.clock.now(self.platform)
    }
}

impl<P: Platform> Context<'_, P> {
    /// Sees to it that this CPU's timer fires at a device's `deadline` or before.
    pub fn arm(&self, deadline: Option<Time>) {
        if let Some(time) = deadline {
            let tsc = self.clock.tsc_at(time);
            if self.alarm.add_other(tsc) {
                self.platform.set_timer(Some(tsc));
            }
        }
    }

    /// The same for the deadline of the running vCPU's local APIC.
    pub fn arm_own(&self, deadline: Option<Time>) {
        if let Some(time) = deadline {
            let tsc = self.clock.tsc_at(time);
            if self.alarm.add_own(tsc) {
                self.platform.set_timer(Some(tsc));
            }
        }
    }
}

impl<P: Platform> VirtCpu<P> {
    /// A vCPU at its reset state; the guest's loader sets the boot processor's.
    pub fn new(
        vm: Arc<Vm<P>>,
        mut hw: P::Vcpu,
        apic: Arc<LocalApic>,
        id: u32,
        cpuid: Box<CpuidPolicy>,
        msrs: MsrState,
        xcr0: Xcr0Policy,
    ) -> Self {
        hw.set_tsc_offset(msrs.tsc_offset());
        let tsc_mode = vm.blueprint.config.tsc_mode;
        let activity = if id == 0 {
            Activity::Running
        } else {
            hw.set_state(&VcpuState::reset(cpuid.signature()));
            Activity::WaitForSipi
        };
        let mut vcpu = Self {
            hw,
            vm,
            apic,
            id,
            activity,
            cpuid,
            msrs: Box::new(msrs),
            pvclock: pvclock::PvClock::default(),
            paravirt: paravirt::Paravirt::default(),
            tsc_mode,
            xcr0,
            window: false,
            virtual_apic: None,
            interruptible: false,
            stats: Stats::default(),
            fetches: FetchCache::new(),
            plain: PlainCache::new(),
        };
        vcpu.update_virtual_apic();
        vcpu
    }

    /// Writes registers and vendor details for a crash report, a line each.
    pub fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        use x86defs::Gpr::*;
        let s = self.hw.state();
        let g = |r| s.gprs[r];
        writeln!(out, "vCPU {} {:?}, {}", self.id, self.activity, self.stats)?;
        writeln!(out, "RIP {:04x}:{:016x} RFLAGS {:08x} CPL {}", s.cs.selector, s.rip, s.rflags, self.hw.cpl())?;
        for row in [[Rax, Rbx, Rcx, Rdx], [Rsi, Rdi, Rbp, Rsp], [R8, R9, R10, R11], [R12, R13, R14, R15]] {
            let [a, b, c, d] = row;
            writeln!(
                out,
                "{:<3} {:016x}  {:<3} {:016x}  {:<3} {:016x}  {:<3} {:016x}",
                name(a),
                g(a),
                name(b),
                g(b),
                name(c),
                g(c),
                name(d),
                g(d)
            )?;
        }
        writeln!(out, "CR0 {:08x} CR2 {:016x} CR3 {:016x} CR4 {:08x} EFER {:x}", s.cr0, s.cr2, s.cr3, s.cr4, s.efer)?;
        for (label, seg) in
            [("CS", s.cs), ("SS", s.ss), ("DS", s.ds), ("ES", s.es), ("FS", s.fs), ("GS", s.gs), ("LDTR", s.ldtr), ("TR", s.tr)]
        {
            writeln!(
                out,
                "{label:<4} {:04x} base {:016x} limit {:08x} attributes {:04x}",
                seg.selector, seg.base, seg.limit, seg.attributes.0
            )?;
        }
        writeln!(out, "GDT {:016x}+{:04x} IDT {:016x}+{:04x}", s.gdtr.base, s.gdtr.limit, s.idtr.base, s.idtr.limit)?;
        self.hw.dump(out)
    }
}

fn name(r: x86defs::Gpr) -> &'static str {
    const NAMES: [&str; 16] =
        ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"];
    NAMES[r as usize & 15]
}
