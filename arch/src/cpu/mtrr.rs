//! Memory-type range registers, which must be the same on all CPUs (Intel SDM vol. 3A rev. 085, 13.11).

use super::{cpuid, cr, msr};
use arrayvec::ArrayVec;
use core::arch::asm;
use x86defs::{
    Cr0, Cr4,
    msr::{
        IA32_MTRR_DEF_TYPE, IA32_MTRR_FIX4K_C0000, IA32_MTRR_FIX16K_80000, IA32_MTRR_FIX16K_A0000, IA32_MTRR_FIX64K_00000,
        IA32_MTRR_PHYSBASE0, IA32_MTRRCAP,
    },
};

/// IA32_MTRR_DEF_TYPE: MTRRs are on.
const ENABLE: u64 = 1 << 11;

/// Index and value of each register but IA32_MTRR_DEF_TYPE, and that.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mtrrs {
    ranges: ArrayVec<(u32, u64), 96>,
    default: u64,
}

/// The registers of a CPU with this IA32_MTRRCAP: the fixed ranges, if there are any, and base and mask of each variable one.
fn registers(capabilities: u64) -> impl Iterator<Item = u32> {
    const FIXED: u64 = 1 << 8;
    let fixed = [IA32_MTRR_FIX64K_00000, IA32_MTRR_FIX16K_80000, IA32_MTRR_FIX16K_A0000];
    let fixed = fixed.into_iter().chain(IA32_MTRR_FIX4K_C0000..IA32_MTRR_FIX4K_C0000 + 8);
    // What lies between the variable ranges and the fixed ones leaves room for 40.
    let variable = (capabilities as u32 & 0xff).min(40);
    fixed.filter(move |_| capabilities & FIXED != 0).chain(IA32_MTRR_PHYSBASE0..IA32_MTRR_PHYSBASE0 + 2 * variable)
}

impl Mtrrs {
    /// This CPU's; `None` if it has none.
    #[must_use]
    pub fn read() -> Option<Self> {
        const MTRR: u32 = 1 << 12;
        if cpuid(1, 0).edx & MTRR == 0 {
            return None;
        }
        let ranges = registers(msr::try_read(IA32_MTRRCAP)?).filter_map(|index| Some((index, msr::try_read(index)?))).collect();
        Some(Self { ranges, default: msr::try_read(IA32_MTRR_DEF_TYPE)? })
    }

    /// Gives them to this CPU, as 13.11.7.2 prescribes it.
    ///
    /// # Safety
    /// They are another CPU's of this machine; interrupts are off, and the IDT is loaded.
    pub unsafe fn write(&self) {
        let (cr0, cr4) = (cr::cr0(), cr::cr4());
        // SAFETY: the caller's; caching and global pages are as before afterwards. A register that does not take its value keeps its own.
        unsafe {
            cr::set_cr0(cr0 & !Cr0::NW.bits() | Cr0::CD.bits());
            write_back_caches();
            // Changes that bit, which drops all translations.
            cr::set_cr4(cr4 & !Cr4::PGE.bits());
            let _ = msr::try_write(IA32_MTRR_DEF_TYPE, self.default & !ENABLE);
            for &(index, value) in &self.ranges {
                let _ = msr::try_write(index, value);
            }
            let _ = msr::try_write(IA32_MTRR_DEF_TYPE, self.default);
            write_back_caches();
            cr::set_cr0(cr0);
            cr::set_cr3(cr::cr3());
            cr::set_cr4(cr4);
        }
    }
}

fn write_back_caches() {
    // SAFETY: at CPL 0, slow and otherwise without effect.
    unsafe { asm!("wbinvd", options(nostack, preserves_flags)) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn all_registers_that_the_cpu_has() {
        let all: Vec<u32> = registers(0x508).collect();
        assert_eq!(all.len(), 11 + 16);
        assert_eq!(all[..4], [0x250, 0x258, 0x259, 0x268]);
        assert_eq!((all[10], all[11], all[26]), (0x26f, 0x200, 0x20f));
        assert_eq!(registers(0x002).collect::<Vec<_>>(), [0x200, 0x201, 0x202, 0x203]);
        // However many a CPU claims to have.
        assert!(registers(0x1ff).count() <= 96);
    }
}
