//! What this CPU's AMD-V can do, and whether firmware lets us use it.
//!
//! Manual: AMD64 Architecture Programmer's Manual vol. 2, 24593 rev. 3.42 (chapter 15); CPUID: vol. 3, 24594 rev. 3.36, appendix E.

use crate::cpu;
use x86defs::{CpuidResult, VirtFeature};

/// CPUID leaf 8000_000AH (E.4.9).
const LEAF_SVM: u32 = 0x8000_000a;

/// VM_CR.SVMDIS: EFER.SVME reads zero and cannot be set (15.30.1).
pub const VM_CR_SVMDIS: u64 = 1 << 4;

/// SVM's features, as CPUID tells them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Caps {
    /// Number of address-space identifiers, ASID 0 (the host's) included.
    pub asids: u32,
    pub nested_paging: bool,
    pub lbr_virtualisation: bool,
    pub nrip_save: bool,
    pub tsc_scaling: bool,
    pub vmcb_clean: bool,
    pub flush_by_asid: bool,
    pub decode_assists: bool,
    pub pause_filter: bool,
    pub pause_filter_threshold: bool,
    pub avic: bool,
    pub virtual_vmload_vmsave: bool,
    pub vgif: bool,
    pub vnmi: bool,
    pub x2avic: bool,
}

impl Caps {
    /// What the registers of leaf 8000_000AH say.
    #[must_use]
    pub const fn from_cpuid(leaf: CpuidResult) -> Self {
        const fn bit(value: u32, n: u32) -> bool {
            value >> n & 1 != 0
        }
        let edx = leaf.edx;
        Self {
            asids: leaf.ebx,
            nested_paging: bit(edx, 0),
            lbr_virtualisation: bit(edx, 1),
            nrip_save: bit(edx, 3),
            tsc_scaling: bit(edx, 4),
            vmcb_clean: bit(edx, 5),
            flush_by_asid: bit(edx, 6),
            decode_assists: bit(edx, 7),
            pause_filter: bit(edx, 10),
            pause_filter_threshold: bit(edx, 12),
            avic: bit(edx, 13),
            virtual_vmload_vmsave: bit(edx, 15),
            vgif: bit(edx, 16),
            x2avic: bit(edx, 18),
            vnmi: bit(edx, 25),
        }
    }

    /// This CPU's, or `None` if CPUID does not offer SVM.
    #[must_use]
    pub fn detect() -> Option<Self> {
        let has_svm = cpu::cpuid(0x8000_0000, 0).eax >= LEAF_SVM && cpu::cpuid(0x8000_0001, 0).ecx & 1 << 2 != 0;
        has_svm.then(|| Self::from_cpuid(cpu::cpuid(LEAF_SVM, 0)))
    }

    /// What guests cannot do without, and this CPU lacks.
    #[must_use]
    pub const fn missing(&self) -> Option<&'static str> {
        if !self.nested_paging {
            Some("nested paging (NPT)")
        } else if self.asids < 2 {
            Some("address-space identifiers (ASIDs)")
        } else {
            None
        }
    }

    /// For the start-up report.
    #[must_use]
    pub const fn features(&self) -> [VirtFeature; 15] {
        const fn feature(name: &'static str, present: bool, wanted: bool) -> VirtFeature {
            VirtFeature { name, present, used: present && wanted }
        }
        [
            feature("NPT", self.nested_paging, true),
            feature("ASID", self.asids > 1, true),
            feature("NRIP-save", self.nrip_save, true),
            feature("decode assists", self.decode_assists, true),
            feature("VMCB clean bits", self.vmcb_clean, true),
            feature("flush by ASID", self.flush_by_asid, true),
            feature("pause filter", self.pause_filter, true),
            feature("pause filter threshold", self.pause_filter_threshold, true),
            feature("LBR virtualisation", self.lbr_virtualisation, false),
            feature("TSC scaling", self.tsc_scaling, false),
            feature("AVIC", self.avic, false),
            feature("x2AVIC", self.x2avic, false),
            feature("virtual VMLOAD/VMSAVE", self.virtual_vmload_vmsave, false),
            feature("vGIF", self.vgif, false),
            feature("vNMI", self.vnmi, false),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(edx: u32) -> Caps {
        Caps::from_cpuid(CpuidResult { eax: 1, ebx: 16, ecx: 0, edx })
    }

    #[test]
    fn emulated_models() {
        // QEMU 7.2's EPYC-Rome, its "max", Bochs' Ryzen.
        assert_eq!(caps(1), Caps { asids: 16, nested_paging: true, ..Caps::default() });
        assert!(caps(0x1001_0001).vgif);
        let ryzen = caps(0x44f);
        assert!(ryzen.nrip_save && ryzen.lbr_virtualisation && ryzen.flush_by_asid && ryzen.pause_filter);
        assert!(!ryzen.decode_assists && !ryzen.vmcb_clean && !ryzen.avic);
    }

    #[test]
    fn what_is_indispensable() {
        assert_eq!(caps(1).missing(), None);
        assert_eq!(caps(0xffff_fffe).missing(), Some("nested paging (NPT)"));
        assert!(Caps { asids: 1, ..caps(1) }.missing().is_some());
    }

    #[test]
    fn only_what_is_present_is_used() {
        assert!(caps(0).features().iter().all(|f| !f.used || f.name == "ASID"));
        assert!(caps(1 << 3).features().iter().any(|f| f.name == "NRIP-save" && f.used));
    }
}
