//! The machine below the hypervisor, once for each vendor.

use crate::{
    console,
    cpu::{self, percpu},
    mm::{
        frames,
        guest::{GuestRam, Stage2Format},
        heap,
        table::PageSize,
    },
    power, rtc, smp,
    svm::{self, Svm, SvmVcpu},
    timer, tsc,
    vmx::{self, Vmx, VmxVcpu},
};
use alloc::sync::Arc;
use core::fmt::Display;
use x86defs::{Attention, CpuidResult, CreateError, Platform, RamRange, Vcpu, VcpuConfig};

/// What the two vendors do each in their way.
pub trait Vendor: Send + Sync + 'static {
    type Vcpu: Vcpu;
    /// Why a CPU cannot run guests.
    type Unsupported: Display + Send;
    /// The name for people.
    const NAME: &'static str;
    const STAGE2: Stage2Format;
    /// Makes this CPU ready to run guests. Once on each CPU, with its per-CPU data in place.
    ///
    /// # Errors
    /// Why it cannot.
    fn enable(&self) -> Result<(), Self::Unsupported>;
    /// The largest pages that stage-2 tables may have.
    fn largest_page(&self) -> PageSize;
    /// True if the CPU can virtualise local APICs at their place in memory, so that there must be a page.
    fn wants_apic_page(&self) -> bool {
        false
    }
    /// CPUID of the host, less what a guest cannot have here.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult;
    fn create_vcpu(&self, memory: &Arc<GuestRam>, config: &VcpuConfig) -> Result<Self::Vcpu, CreateError>;
    /// Leaves guest mode operation on this CPU, before the machine is reset.
    fn leave(&self);
}

impl Vendor for Svm {
    type Vcpu = SvmVcpu;
    type Unsupported = svm::Unsupported;
    const NAME: &'static str = "AMD-V";
    const STAGE2: Stage2Format = Stage2Format::Npt;

    fn enable(&self) -> Result<(), Self::Unsupported> {
        Svm::enable(self)
    }
    fn largest_page(&self) -> PageSize {
        // NPT has the page sizes of the host's own tables (AMD APM vol. 2, 15.25.3).
        if cpu::cpuid(0x8000_0001, 0).edx & 1 << 26 != 0 { PageSize::Size1G } else { PageSize::Size2M }
    }
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        cpu::cpuid(leaf, subleaf)
    }
    fn create_vcpu(&self, memory: &Arc<GuestRam>, config: &VcpuConfig) -> Result<SvmVcpu, CreateError> {
        Svm::create_vcpu(self, memory, config)
    }
    fn leave(&self) {
        svm::leave();
    }
}

impl Vendor for Vmx {
    type Vcpu = VmxVcpu;
    type Unsupported = vmx::Unsupported;
    const NAME: &'static str = "VT-x";
    const STAGE2: Stage2Format = Stage2Format::Ept;

    fn enable(&self) -> Result<(), Self::Unsupported> {
        Vmx::enable(self)
    }
    fn largest_page(&self) -> PageSize {
        Vmx::largest_page(self)
    }
    fn wants_apic_page(&self) -> bool {
        self.controls().virtual_xapic
    }
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        self.filter_cpuid(leaf, subleaf, cpu::cpuid(leaf, subleaf))
    }
    fn create_vcpu(&self, memory: &Arc<GuestRam>, config: &VcpuConfig) -> Result<VmxVcpu, CreateError> {
        Vmx::create_vcpu(self, memory, config)
    }
    fn leave(&self) {
        vmx::leave();
    }
}

/// The machine with one vendor's virtualisation enabled.
pub struct Machine<V> {
    vendor: V,
}

impl<V: Vendor> Machine<V> {
    /// Enables `vendor` on this CPU and on all others that are up; one of those where that fails is left out, and says so. Once.
    ///
    /// # Errors
    /// Why this CPU, the boot CPU, cannot run guests.
    pub fn new(vendor: V) -> Result<Self, V::Unsupported> {
        vendor.enable()?;
        smp::enable_all(|| vendor.enable());
        Ok(Self { vendor })
    }
}

impl<V: Vendor> Platform for Machine<V> {
    type Vcpu = V::Vcpu;
    type Memory = GuestRam;

    fn vendor(&self) -> &'static str {
        V::NAME
    }
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        self.vendor.cpuid(leaf, subleaf)
    }
    fn create_memory(&self, ranges: &[RamRange]) -> Result<GuestRam, CreateError> {
        let mut memory = GuestRam::new(V::STAGE2, ranges, self.vendor.largest_page())?;
        if self.vendor.wants_apic_page() {
            memory.map_apic_page()?;
        }
        Ok(memory)
    }
    fn create_vcpu(&self, memory: &Arc<GuestRam>, config: &VcpuConfig) -> Result<V::Vcpu, CreateError> {
        self.vendor.create_vcpu(memory, config)
    }
    fn memory(&self) -> (u64, u64) {
        (frames::free_bytes(), frames::total_bytes())
    }
    fn heap_in_use(&self) -> u64 {
        heap::in_use()
    }

    #[inline]
    fn tsc(&self) -> u64 {
        tsc::now()
    }
    fn tsc_hz(&self) -> u64 {
        tsc::hz()
    }
    fn wall_clock_ms(&self, tsc: u64) -> u64 {
        rtc::unix_ms(tsc)
    }
    fn set_timer(&self, deadline: Option<u64>) {
        timer::set(deadline);
    }
    #[inline]
    fn take_attention(&self) -> Attention {
        percpu::current().take_attention()
    }
    fn wait_for_interrupt(&self) {
        cpu::wait_for_interrupt();
    }

    fn cpus(&self) -> u32 {
        smp::online()
    }
    #[inline]
    fn this_cpu(&self) -> u32 {
        percpu::current().number()
    }
    fn start_cpus(&'static self, main: &'static (dyn Fn(u32) + Sync)) {
        smp::run(main);
    }
    #[inline]
    fn kick(&self, cpu: u32) {
        smp::kick(cpu);
    }

    fn console_write(&self, bytes: &[u8]) -> usize {
        console::write(bytes)
    }
    fn console_read(&self) -> Option<u8> {
        console::read()
    }

    fn power_off(&self) -> ! {
        smp::stop::take_over();
        console::flush();
        self.vendor.leave();
        power::power_off()
    }
    fn reset(&self) -> ! {
        smp::stop::take_over();
        console::flush();
        self.vendor.leave();
        power::reset()
    }
}
