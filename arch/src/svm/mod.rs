//! AMD-V: capabilities, VMCB, world switch, exit decoding, and the vCPU made of them.
//!
//! Manual: AMD64 Architecture Programmer's Manual vol. 2, 24593 rev. 3.42, chapter 15.

pub mod asid;
pub mod caps;
mod contract;
pub mod decode;
mod length;
mod nmi;
mod permissions;
mod state;
mod switch;
mod vcpu;
pub mod vmcb;

use crate::{
    cpu::{
        self, msr,
        percpu::{self, MAX_CPUS},
    },
    mm::guest::GuestRam,
    vcpu::{LazyState, OwnedPages},
};
use alloc::{boxed::Box, sync::Arc};
use asid::AsidPool;
use caps::{Caps, VM_CR_SVMDIS};
use core::arch::asm;
use permissions::PermissionMaps;
use spin::{Mutex, Once};
use x86defs::{
    CreateError, Efer, VcpuConfig, VirtFeature,
    msr::{AMD_VM_CR, AMD_VM_HSAVE_PA, IA32_EFER},
};

pub use vcpu::SvmVcpu;

/// Why Bulkhead cannot run guests on this CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unsupported {
    /// CPUID does not report SVM.
    NoSvm,
    /// VM_CR.SVMDIS is set: only the firmware's setup can change that. The MSR's value.
    LockedByFirmware(u64),
    /// Something that Bulkhead cannot do without.
    Missing(&'static str),
    /// No memory for the host save area, or for the permission maps.
    OutOfMemory,
    /// This CPU's capabilities are not the boot CPU's.
    Different,
}

impl core::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoSvm => write!(f, "this CPU does not have AMD-V"),
            Self::LockedByFirmware(value) => {
                write!(f, "AMD-V (SVM) is locked off by the firmware (VM_CR = {value:#x}): enable it in the firmware's setup")
            }
            Self::Missing(name) => write!(f, "AMD-V of this CPU lacks {name}"),
            Self::OutOfMemory => write!(f, "no memory for a host save area"),
            Self::Different => write!(f, "AMD-V of this CPU differs from the boot CPU's"),
        }
    }
}

/// What each CPU has for SVM.
struct CpuState {
    /// Where VMRUN saves the host's registers; belongs to the CPU.
    _host_save: OwnedPages,
    /// The host's FS, GS, TR, LDTR and SYSCALL MSRs, for VMLOAD after an exit.
    host_state: OwnedPages,
    asids: Mutex<AsidPool>,
}

/// What all vCPUs share.
struct Shared {
    caps: Caps,
    maps: PermissionMaps,
    cpus: Box<[Once<CpuState>]>,
}

impl Shared {
    /// The running CPU and its number.
    fn this_cpu(&self) -> Option<(u32, &CpuState)> {
        let id = percpu::current().number();
        Some((id, self.cpus.get(id as usize)?.get()?))
    }
}

/// AMD-V on this machine.
pub struct Svm {
    shared: Arc<Shared>,
}

impl Svm {
    /// Looks at this CPU. Changes nothing.
    ///
    /// # Errors
    /// Why guests cannot run here.
    pub fn detect() -> Result<Self, Unsupported> {
        let caps = Caps::detect().ok_or(Unsupported::NoSvm)?;
        check_firmware()?;
        if let Some(name) = caps.missing() {
            return Err(Unsupported::Missing(name));
        }
        let maps = PermissionMaps::new(LazyState::new().has_tsc_aux()).ok_or(Unsupported::OutOfMemory)?;
        let cpus = (0..MAX_CPUS).map(|_| Once::new()).collect();
        Ok(Self { shared: Arc::new(Shared { caps, maps, cpus }) })
    }

    /// Enables SVM on this CPU. Once for each CPU, after its GDT, TSS and per-CPU data are loaded for good, before it touches any vCPU.
    ///
    /// # Errors
    /// The firmware has locked SVM off on this CPU, or no memory was left for its save area.
    pub fn enable(&self) -> Result<(), Unsupported> {
        check_firmware()?;
        if Caps::detect().as_ref() != Some(&self.shared.caps) {
            return Err(Unsupported::Different);
        }
        let id = percpu::current().number();
        let slot = self.shared.cpus.get(id as usize).ok_or(Unsupported::Different)?;
        let host_save = OwnedPages::new(1).ok_or(Unsupported::OutOfMemory)?;
        let host_state = OwnedPages::new(1).ok_or(Unsupported::OutOfMemory)?;
        // SAFETY: the CPU has SVM, and it is not locked off. The pages live as long as `Shared`, which every vCPU holds; VMSAVE writes one of them.
        unsafe {
            msr::write(IA32_EFER, msr::read(IA32_EFER) | Efer::SVME.bits());
            msr::write(AMD_VM_HSAVE_PA, host_save.hpa().0);
            asm!("vmsave rax", in("rax") host_state.hpa().0, options(nostack, preserves_flags));
        }
        slot.call_once(|| CpuState {
            _host_save: host_save,
            host_state,
            asids: Mutex::new(AsidPool::new(self.shared.caps.asids)),
        });
        Ok(())
    }

    /// The features for the report at start.
    #[must_use]
    pub fn features(&self) -> [VirtFeature; 15] {
        self.shared.caps.features()
    }

    #[must_use]
    pub fn caps(&self) -> &Caps {
        &self.shared.caps
    }

    /// A vCPU at its reset state in `memory`, which has NPT tables.
    ///
    /// # Errors
    /// No memory for its VMCB.
    pub fn create_vcpu(&self, memory: &Arc<GuestRam>, config: &VcpuConfig) -> Result<SvmVcpu, CreateError> {
        SvmVcpu::new(self.shared.clone(), memory.clone(), config)
    }
}

/// Looks whether the firmware lets this CPU use SVM. VM_CR exists on every CPU with SVM.
fn check_firmware() -> Result<(), Unsupported> {
    if cpu::cpuid(0x8000_0001, 0).ecx & 1 << 2 == 0 {
        return Err(Unsupported::NoSvm);
    }
    match msr::try_read(AMD_VM_CR) {
        Some(value) if value & VM_CR_SVMDIS != 0 => Err(Unsupported::LockedByFirmware(value)),
        _ => Ok(()),
    }
}

/// Leaves SVM on this CPU before the machine is reset or handed over: with SVME clear, INIT and SKINIT work as after power-on. No vCPU can run
/// on it any more.
pub fn leave() {
    // SAFETY: EFER exists on every CPU with long mode; clearing SVME is allowed whenever no guest runs.
    unsafe {
        let efer = msr::read(IA32_EFER);
        if efer & Efer::SVME.bits() != 0 {
            msr::write(IA32_EFER, efer & !Efer::SVME.bits());
        }
    }
}
