//! Intel VT-x: capabilities, VMCS, world switch, exit decoding, and the vCPU made of them.

mod apic;
pub mod caps;
mod contract;
pub mod decode;
mod instructions;
pub mod msr_bitmap;
pub mod segments;
pub mod spec;
mod state;
mod switch;
mod vcpu;
mod vmcs;
mod vpid;

use crate::{
    cpu::{self, cr, msr, port},
    mm::{direct, frames, guest::GuestRam, table::PageSize},
    vcpu::OwnedPages,
};
use alloc::sync::Arc;
use caps::{Controls, FeatureControl, RawCapabilities, feature_control};
use msr_bitmap::MsrBitmap;
use spec::SecondaryControls;
use x86defs::{CpuidResult, Cr4, CreateError, Hpa, VcpuConfig, VirtFeature, msr::IA32_FEATURE_CONTROL};

pub use caps::Unsupported;
pub use vcpu::VmxVcpu;

/// VT-x on this machine: what it can do, and what all vCPUs share.
pub struct Vmx {
    raw: RawCapabilities,
    controls: Controls,
    /// The MSR bitmaps, a page each: every vCPU's entries read one of them, so every vCPU holds them.
    msr_bitmaps: Arc<OwnedPages>,
}

impl Vmx {
    /// Looks at this CPU. Changes nothing, but opens and locks IA32_FEATURE_CONTROL if the firmware has left it open.
    ///
    /// # Errors
    /// Why guests cannot run here.
    pub fn detect() -> Result<Self, Unsupported> {
        if cpu::cpuid(1, 0).ecx & 1 << 5 == 0 {
            return Err(Unsupported::NoVmx);
        }
        allow_vmxon()?;
        let raw = raw_capabilities();
        let mut controls = Controls::choose(&raw)?;
        if interrupts_may_be_held() {
            controls.limit_turns(&raw);
        }
        let msr_bitmaps = OwnedPages::new(2).ok_or(Unsupported::OutOfMemory)?;
        let tsc_aux = controls.uses(SecondaryControls::ENABLE_RDTSCP);
        // SAFETY: the pages are ours alone until they are shared below; each is as large and aligned as an `MsrBitmap`, of which any bytes are one.
        let (plain, virtual_x2apic) = unsafe {
            let first = msr_bitmaps.as_ptr::<MsrBitmap>();
            (&mut *first, &mut *first.add(1))
        };
        plain.fill(tsc_aux);
        virtual_x2apic.fill_for_virtual_x2apic(tsc_aux);
        Ok(Self { raw, controls, msr_bitmaps: Arc::new(msr_bitmaps) })
    }

    /// Puts this CPU into VMX operation (25.7, 25.8). Once for each CPU, before it touches any vCPU.
    ///
    /// # Errors
    /// The firmware has locked VMX off on this CPU, VMXON failed, or no memory was left for its region.
    pub fn enable(&self) -> Result<(), Unsupported> {
        if cpu::cpuid(1, 0).ecx & 1 << 5 == 0 {
            return Err(Unsupported::NoVmx);
        }
        allow_vmxon()?;
        if raw_capabilities() != self.raw {
            return Err(Unsupported::Different);
        }
        let region = frames::allocate_zeroed().ok_or(Unsupported::OutOfMemory)?;
        // SAFETY: the page is ours, and the direct map reaches it.
        unsafe { direct::to_virt(region).cast::<u32>().write(self.controls.revision) };
        let [cr0_one, cr0_may] = self.raw.cr0_fixed;
        let [cr4_one, cr4_may] = self.raw.cr4_fixed;
        // SAFETY: the fixed bits are those that a 64-bit host has anyway, and NE and VMXE, of which the former concerns x87 errors, which
        // the host does not make. The region is this CPU's for ever.
        unsafe {
            cr::set_cr0((cr::cr0() | cr0_one) & cr0_may);
            cr::set_cr4((cr::cr4() | cr4_one | Cr4::VMXE.bits()) & cr4_may);
            if instructions::vmxon(region).is_err() {
                cr::set_cr4(cr::cr4() & !Cr4::VMXE.bits());
                frames::free(region, 1);
                return Err(Unsupported::Vmxon);
            }
        }
        Ok(())
    }

    /// The features for the report at start.
    #[must_use]
    pub fn features(&self) -> [VirtFeature; 24] {
        self.controls.features(&self.raw)
    }

    /// Local APICs are not virtualised by the CPU, whether it can do so or not. Before the first vCPU is made.
    pub const fn disable_virtual_apic(&mut self) {
        self.controls.virtual_apic = false;
        self.controls.virtual_xapic = false;
    }

    /// The controls that vCPUs run with.
    #[must_use]
    pub const fn controls(&self) -> &Controls {
        &self.controls
    }

    /// CPUID as guests may see it at most: without the instructions that are #UD in a guest because their control is missing, as it
    /// may be when nested (27.3, INVPCID, RDTSCP and XSAVES).
    #[must_use]
    pub const fn filter_cpuid(&self, leaf: u32, subleaf: u32, mut result: CpuidResult) -> CpuidResult {
        const INVPCID: u32 = 1 << 10;
        const RDPID: u32 = 1 << 22;
        const RDTSCP: u32 = 1 << 27;
        const XSAVES: u32 = 1 << 3;
        match (leaf, subleaf) {
            (7, 0) => {
                if !self.controls.uses(SecondaryControls::ENABLE_INVPCID) {
                    result.ebx &= !INVPCID;
                }
                if !self.controls.uses(SecondaryControls::ENABLE_RDTSCP) {
                    result.ecx &= !RDPID;
                }
            }
            (0xd, 1) if !self.controls.uses(SecondaryControls::ENABLE_XSAVES_XRSTORS) => result.eax &= !XSAVES,
            (0x8000_0001, _) if !self.controls.uses(SecondaryControls::ENABLE_RDTSCP) => result.edx &= !RDTSCP,
            _ => {}
        }
        result
    }

    /// The largest pages that EPT tables may have on this CPU.
    #[must_use]
    pub const fn largest_page(&self) -> PageSize {
        if self.controls.pages_1g && self.controls.pages_2m {
            PageSize::Size1G
        } else if self.controls.pages_2m {
            PageSize::Size2M
        } else {
            PageSize::Size4K
        }
    }

    /// A vCPU at its reset state in `memory`, which has EPT tables. This CPU must be in VMX operation.
    ///
    /// # Errors
    /// No memory, or no VPID left.
    pub fn create_vcpu(&self, memory: &Arc<GuestRam>, config: &VcpuConfig) -> Result<VmxVcpu, CreateError> {
        VmxVcpu::new(&self.controls, memory.clone(), self.msr_bitmaps.clone(), config)
    }
}

/// The EPT pointer for tables whose root is at `root`: four levels, write-back, without accessed and dirty flags (26.6.11).
const fn ept_pointer(root: Hpa) -> u64 {
    const WRITE_BACK: u64 = 6;
    const FOUR_LEVELS: u64 = (4 - 1) << 3;
    root.0 | WRITE_BACK | FOUR_LEVELS
}

/// This CPU's. It has VMX.
fn raw_capabilities() -> RawCapabilities {
    // SAFETY: `RawCapabilities::read` asks only for MSRs that a CPU with VMX has.
    RawCapabilities::read(|index| unsafe { msr::read(index) })
}

/// Opens IA32_FEATURE_CONTROL of this CPU, unless it is locked.
fn allow_vmxon() -> Result<(), Unsupported> {
    // SAFETY: every CPU with VMX has this MSR.
    match feature_control(unsafe { msr::read(IA32_FEATURE_CONTROL) })? {
        FeatureControl::Ready => Ok(()),
        FeatureControl::Write(value) => {
            // SAFETY: as above; it is not locked, so the write goes through.
            unsafe { msr::write(IA32_FEATURE_CONTROL, value) };
            Ok(())
        }
    }
}

/// Leaves VMX operation on this CPU, if it is in it: INIT, with which some chipsets reset, is blocked otherwise (25.8). The vCPU that is
/// loaded, if any, cannot run any more.
pub fn leave() {
    if cr::cr4() & Cr4::VMXE.bits() != 0 {
        // SAFETY: CR4.VMXE is set only by `Vmx::enable`, which clears it again if VMXON fails.
        unsafe {
            instructions::vmxoff();
            cr::set_cr4(cr::cr4() & !Cr4::VMXE.bits());
        }
    }
}

/// True on an emulator with the debug port of Bochs, which reads its own number. Bochs up to 2.7 at least decides at VM entry by the guest's RFLAGS.IF
/// alone whether external interrupts reach the CPU, as if they did not exit: while the guest keeps IF clear, none comes.
fn interrupts_may_be_held() -> bool {
    // SAFETY: where nothing else is known, reading the port has no effect; it is free on PCs.
    unsafe { port::read_u8(0xe9) == 0xe9 }
}
