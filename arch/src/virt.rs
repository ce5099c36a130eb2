//! Which kind of hardware virtualisation this machine has.

use crate::{
    cpu,
    svm::{self, Svm},
    vmx::{self, Vmx},
};
use core::fmt;

/// The machine's virtualisation, ready to be enabled.
pub enum Virtualisation {
    Svm(Svm),
    Vmx(Vmx),
}

/// Why this machine cannot run guests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoVirtualisation {
    /// Neither VMX nor SVM in CPUID.
    NoFeature,
    Svm(svm::Unsupported),
    Vmx(vmx::Unsupported),
}

impl fmt::Display for NoVirtualisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFeature => write!(f, "this CPU reports neither VT-x (VMX) nor AMD-V (SVM)"),
            Self::Svm(reason) => write!(f, "{reason}"),
            Self::Vmx(reason) => write!(f, "{reason}"),
        }
    }
}

/// Looks at CPUID, the firmware's locks and the capabilities.
///
/// # Errors
/// The first reason why guests cannot run here.
pub fn detect() -> Result<Virtualisation, NoVirtualisation> {
    let has_vmx = cpu::cpuid(1, 0).ecx & 1 << 5 != 0;
    let has_svm = cpu::cpuid(0x8000_0000, 0).eax >= 0x8000_0001 && cpu::cpuid(0x8000_0001, 0).ecx & 1 << 2 != 0;
    if has_svm {
        Svm::detect().map(Virtualisation::Svm).map_err(NoVirtualisation::Svm)
    } else if has_vmx {
        Vmx::detect().map(Virtualisation::Vmx).map_err(NoVirtualisation::Vmx)
    } else {
        Err(NoVirtualisation::NoFeature)
    }
}
