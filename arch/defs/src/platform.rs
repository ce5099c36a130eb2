//! What `hv` needs from the machine. `arch` and `boot` implement it with hardware, once per vendor; tests with a scripted fake.

extern crate alloc;
use crate::{CpuidResult, GuestMemory, RamRange, Vcpu, VirtualApicPage};
use alloc::sync::Arc;

/// One virtualisation feature, for the start-up report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VirtFeature {
    /// The field's standard name: "EPT", "NRIP-save" ...
    pub name: &'static str,
    pub present: bool,
    pub used: bool,
}

/// Why a guest's memory or vCPU could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CreateError {
    /// Host memory is short: bytes wanted and bytes free.
    OutOfMemory { wanted: u64, free: u64 },
    /// The host has no more VPIDs/ASIDs, or another resource named here.
    OutOf(&'static str),
}

/// Per-vCPU choices that the vendor layer needs to know when it sets the vCPU up.
#[derive(Clone)]
pub struct VcpuConfig {
    /// Index within the guest, 0 = boot processor.
    pub id: u32,
    /// vCPUs of the guest. Those of several wait for each other, so that their PAUSE must exit: in loops, or each of them on a CPU that does
    /// not tell loops.
    pub vcpus: u32,
    /// CR4 bits that the guest's CPUID lets it set; a write of another bit must exit so that `hv` can raise #GP.
    pub cr4_allowed: u64,
    /// Exit on RDTSC (tsc_mode = "always_emulate").
    pub intercept_rdtsc: bool,
    /// The registers of the vCPU's local APIC, if the CPU may virtualise it.
    pub apic_page: Option<Arc<dyn VirtualApicPage>>,
}

bitflags::bitflags! {
    /// What interrupts of the host may have brought that the software above has to look at.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Attention: u8 {
        /// The timer has reached the deadline that it was armed for, and is disarmed.
        const TIMER = 1 << 0;
        /// A kick, or something typed on the console.
        const OTHER = 1 << 1;
    }
}

/// The machine below the hypervisor.
pub trait Platform: Sync + 'static {
    type Vcpu: Vcpu;
    type Memory: GuestMemory + 'static;

    /// "AMD-V" or "VT-x".
    fn vendor(&self) -> &'static str;
    /// Raw CPUID of the host CPU.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult;
    /// Allocates scrubbed RAM for the ranges and maps it in a new stage-2 table in the largest pages that fit.
    fn create_memory(&self, ranges: &[RamRange]) -> Result<Self::Memory, CreateError>;
    fn create_vcpu(&self, memory: &Arc<Self::Memory>, config: &VcpuConfig) -> Result<Self::Vcpu, CreateError>;
    /// Host memory: bytes free for guests, and bytes managed in all.
    fn memory(&self) -> (u64, u64);
    /// Bytes of the host's own allocations, which come out of the memory that [`Platform::memory`] counts a large piece at a time.
    fn heap_in_use(&self) -> u64;

    /// The host's time-stamp counter.
    fn tsc(&self) -> u64;
    /// Its calibrated frequency in Hz.
    fn tsc_hz(&self) -> u64;
    /// The wall clock at host TSC value `tsc`: milliseconds since 1970-01-01 00:00 UTC.
    fn wall_clock_ms(&self, tsc: u64) -> u64;
    /// Arms this CPU's timer for an absolute TSC value (an interrupt comes at or soon after it), or disarms it. A deadline in the past fires at once.
    fn set_timer(&self, deadline: Option<u64>);
    /// What has come to this CPU since it was last asked. Only at an exit or after a sleep is it of use: interrupts are served then.
    fn take_attention(&self) -> Attention;
    /// Halts this CPU until the next interrupt has been served. Atomic: an interrupt that is pending already ends it at once.
    fn wait_for_interrupt(&self);

    /// CPUs that run guests: number 0, the boot CPU, to `cpus() - 1`.
    fn cpus(&self) -> u32;
    /// The number of the CPU that asks.
    fn this_cpu(&self) -> u32;
    /// Lets each further CPU (number 1 on) call `main` with its number, with interrupts disabled and ready to run guests. `main` does not
    /// return. Once, on the boot CPU.
    fn start_cpus(&'static self, main: &'static (dyn Fn(u32) + Sync));
    /// Makes CPU `cpu` leave its guest ([`crate::Exit::HostInterrupt`]) or its sleep. Harmless if it does neither.
    fn kick(&self, cpu: u32);

    /// Puts bytes to the host console without blocking: all of them, or none if they do not fit now. Returns how many were taken.
    fn console_write(&self, bytes: &[u8]) -> usize;
    /// Takes one byte typed on the host console, if there is one.
    fn console_read(&self) -> Option<u8>;

    /// Switches the machine off (ACPI S5); falls back to halting.
    fn power_off(&self) -> !;
    /// Restarts the machine (ACPI reset register, 0xCF9, keyboard controller, triple fault).
    fn reset(&self) -> !;
}
