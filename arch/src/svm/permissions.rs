//! Which MSRs and ports a guest reaches without an exit.
//!
//! Manual: AMD64 Architecture Programmer's Manual vol. 2, 24593 rev. 3.42, 15.10 (ports), 15.11 (MSRs).

use crate::vcpu::OwnedPages;
use x86defs::msr;

/// Pages of the I/O permission map: a bit for each port, and three more that an access at the very top reaches into.
const IO_PAGES: u64 = 3;
/// Pages of the MSR permission map: two bits for each MSR.
const MSR_PAGES: u64 = 2;
const MSR_BYTES: usize = MSR_PAGES as usize * 4096;

/// MSRs that VMLOAD and VMSAVE switch, and whose values the CPU checks itself.
const SWITCHED: [u32; 11] = [
    msr::IA32_SYSENTER_CS,
    msr::IA32_SYSENTER_ESP,
    msr::IA32_SYSENTER_EIP,
    msr::IA32_FS_BASE,
    msr::IA32_GS_BASE,
    msr::IA32_KERNEL_GS_BASE,
    msr::IA32_STAR,
    msr::IA32_LSTAR,
    msr::IA32_CSTAR,
    msr::IA32_FMASK,
    msr::IA32_TSC_AUX,
];

/// Where an MSR's two bits are: the byte, and the lower bit's number. The lower one intercepts reads, the upper one writes.
/// MSRs outside the three ranges always exit.
const fn place(index: u32) -> Option<(usize, u32)> {
    let (start, offset) = match index {
        0..=0x1fff => (0, index),
        0xc000_0000..=0xc000_1fff => (0x800, index - 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (0x1000, index - 0xc001_0000),
        _ => return None,
    };
    Some((start + offset as usize / 4, offset % 4 * 2))
}

/// Intercepts every MSR but the switched ones. TSC_AUX is one of them only if the host has it: then it is switched with the vCPU.
fn fill_msr_map(map: &mut [u8; MSR_BYTES], has_tsc_aux: bool) {
    map.fill(0xff);
    for index in SWITCHED {
        if (index != msr::IA32_TSC_AUX || has_tsc_aux)
            && let Some((byte, bit)) = place(index)
        {
            map[byte] &= !(3 << bit);
        }
    }
}

/// The maps that all vCPUs share.
pub struct PermissionMaps {
    pub io: OwnedPages,
    pub msr: OwnedPages,
}

impl PermissionMaps {
    /// Every port and every MSR exits but those that are switched. `None` if memory is short.
    #[must_use]
    pub fn new(has_tsc_aux: bool) -> Option<Self> {
        let mut io = OwnedPages::new(IO_PAGES)?;
        io.fill(0xff);
        let msr = OwnedPages::new(MSR_PAGES)?;
        // SAFETY: the pages are ours, and as large as the array.
        fill_msr_map(unsafe { &mut *msr.as_ptr::<[u8; MSR_BYTES]>() }, has_tsc_aux);
        Some(Self { io, msr })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn only_switched_msrs_pass() {
        let mut map = [0; MSR_BYTES];
        fill_msr_map(&mut map, true);
        let all = (0..0x2000).chain(0xc000_0000..0xc000_2000).chain(0xc001_0000..0xc001_2000);
        let open: Vec<u32> = all.filter(|&i| place(i).is_some_and(|(byte, bit)| map[byte] >> bit & 3 == 0)).collect();
        let mut expected = SWITCHED;
        expected.sort_unstable();
        assert_eq!(open, expected);
        // Nothing is half open: EFER, PAT, SVM's own MSRs exit on both.
        assert_eq!(map.iter().map(|b| b.count_zeros()).sum::<u32>(), 22);
        fill_msr_map(&mut map, false);
        assert_eq!(map.iter().map(|b| b.count_zeros()).sum::<u32>(), 20);
    }

    #[test]
    fn layout() {
        // 15.11: LSTAR (c0000082) is the third MSR of the byte at 800H + 20H; SYSENTER_CS (174) the first of byte 5dH.
        assert_eq!(place(0xc000_0082), Some((0x820, 4)));
        assert_eq!(place(0x174), Some((0x5d, 0)));
        assert_eq!(place(0xc001_0117), Some((0x1045, 6)));
        assert_eq!(place(0x4000_0000), None);
        assert_eq!(place(0x2000), None);
    }
}
