//! MSR policy: every MSR is emulated, held by the CPU for the guest, or raises #GP(0). Nothing is passed to the host's own MSRs.
//! (Intel SDM vol. 4, 335592; AMD APM vol. 2 appendix A, 24593 rev 3.42.)

use super::{
    CpuidPolicy,
    control::{ControlState, Gp, check_efer},
    mtrr::Mtrrs,
};
use x86defs::{Efer, Vcpu, msr};

/// Machine-check banks shown in MCG_CAP.
const MCE_BANKS: usize = 10;
/// HWCR bit 24, TscFreqSel: the TSC counts at the P0 frequency. Linux complains about firmware that leaves it clear.
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// DE_CFG bit 1: LFENCE is serialising.
const DE_CFG_LFENCE_SERIALIZE: u64 = 1 << 1;
/// IA32_MISC_ENABLE: fast strings, and no BTS, no PEBS.
const MISC_ENABLE_RESET: u64 = 1 | 1 << 11 | 1 << 12;
/// Bits of IA32_MISC_ENABLE that a guest may change: fast strings, limit CPUID maxval, XD disable.
const MISC_ENABLE_WRITABLE: u64 = 1 | 1 << 22 | 1 << 34;

/// MSRs that Bulkhead keeps for one vCPU, besides those in the LAPIC and in the vendor layer.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct MsrState {
    mtrrs: Mtrrs,
    misc_enable: u64,
    hwcr: u64,
    mcg_status: u64,
    mc_ctl: [u64; MCE_BANKS],
    /// IA32_TSC_ADJUST.
    tsc_adjust: u64,
    /// Guest TSC = the counter behind it + this.
    tsc_offset: u64,
}

impl MsrState {
    /// The values after RESET, with MTRRs as firmware sets them. `tsc_offset`: guest TSC less the counter behind it, modulo 2^64.
    #[must_use]
    pub fn new(cpuid: &CpuidPolicy, hole_start: u64, tsc_offset: u64) -> Self {
        Self {
            mtrrs: Mtrrs::new(cpuid.phys_bits(), hole_start),
            misc_enable: MISC_ENABLE_RESET,
            hwcr: 0,
            mcg_status: 0,
            mc_ctl: [0; MCE_BANKS],
            tsc_adjust: 0,
            tsc_offset,
        }
    }

    /// Guest TSC less the counter behind it (the host's TSC, usually), modulo 2^64.
    #[inline]
    #[must_use]
    pub const fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }

    /// The counter's value at which the guest's TSC was zero, or would have been without the guest's writes to it. The same for all vCPUs.
    #[must_use]
    pub const fn tsc_origin(&self) -> u64 {
        self.tsc_adjust.wrapping_sub(self.tsc_offset)
    }

    fn efer_allowed(cpuid: &CpuidPolicy) -> u64 {
        let edx = cpuid.extended_edx();
        let mut allowed = 0;
        if edx & 1 << 11 != 0 {
            allowed |= Efer::SCE.bits();
        }
        if edx & 1 << 20 != 0 {
            allowed |= Efer::NXE.bits();
        }
        if edx & 1 << 25 != 0 && cpuid.is_amd() {
            allowed |= Efer::FFXSR.bits();
        }
        if edx & 1 << 29 != 0 {
            allowed |= Efer::LME.bits();
        }
        allowed
    }

    /// RDMSR of any MSR but the LAPIC's. `counter`: what is behind the guest's TSC, now.
    pub fn read<V: Vcpu>(&self, vcpu: &V, cpuid: &CpuidPolicy, counter: impl FnOnce() -> u64, index: u32) -> Result<u64, Gp> {
        Ok(match index {
            msr::IA32_EFER => vcpu.efer(),
            msr::IA32_TIME_STAMP_COUNTER => counter().wrapping_add(self.tsc_offset),
            msr::IA32_TSC_ADJUST if !cpuid.has_tsc_adjust() => return Err(Gp),
            msr::IA32_TSC_ADJUST => self.tsc_adjust,
            msr::IA32_TSC_AUX if !cpuid.has_tsc_aux() => return Err(Gp),
            msr::IA32_PAT
            | msr::IA32_FS_BASE
            | msr::IA32_GS_BASE
            | msr::IA32_KERNEL_GS_BASE
            | msr::IA32_STAR
            | msr::IA32_LSTAR
            | msr::IA32_CSTAR
            | msr::IA32_FMASK
            | msr::IA32_SYSENTER_CS
            | msr::IA32_SYSENTER_ESP
            | msr::IA32_SYSENTER_EIP
            | msr::IA32_TSC_AUX
            | msr::IA32_DEBUGCTL => vcpu.read_msr(index).map_err(|_| Gp)?,
            msr::IA32_MCG_CAP => MCE_BANKS as u64,
            msr::IA32_MCG_STATUS => self.mcg_status,
            0x400..=0x47f => {
                let (bank, register) = mc_register(index).ok_or(Gp)?;
                if register == 0 { *self.mc_ctl.get(bank).ok_or(Gp)? } else { 0 }
            }
            msr::IA32_BIOS_SIGN_ID => {
                if cpuid.is_amd() {
                    0x0100_0065
                } else {
                    1 << 32
                }
            }
            _ if let Some(value) = self.mtrrs.read(index) => value,
            _ if cpuid.is_amd() => match index {
                msr::AMD_HWCR => self.hwcr | HWCR_TSC_FREQ_SEL,
                msr::AMD_DE_CFG => DE_CFG_LFENCE_SERIALIZE,
                // SYSCFG, TOP_MEM, TOP_MEM2, northbridge configuration: nothing enabled.
                msr::AMD_SYSCFG | 0xc001_001a | 0xc001_001d | msr::AMD_NB_CFG => 0,
                // No CPUID bit says that the four counters of old are absent (APM vol. 2, 13.2): they are there, and count nothing.
                msr::AMD_PERF_CTL0..=msr::AMD_PERF_CTR3 => 0,
                _ => return Err(Gp),
            },
            msr::IA32_MISC_ENABLE => self.misc_enable,
            msr::IA32_PLATFORM_ID => 0,
            _ => return Err(Gp),
        })
    }

    /// WRMSR of any MSR but the LAPIC's.
    pub fn write<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        cpuid: &CpuidPolicy,
        counter: impl FnOnce() -> u64,
        index: u32,
        value: u64,
    ) -> Result<(), Gp> {
        match index {
            msr::IA32_EFER => {
                let now = control_state(vcpu);
                let efer = check_efer(&now, value, Self::efer_allowed(cpuid))?;
                vcpu.write_msr(index, efer).map_err(|_| Gp)
            }
            msr::IA32_TIME_STAMP_COUNTER => {
                // A write to the TSC moves TSC_ADJUST by the same amount (SDM vol. 3B, 18.17.3).
                let offset = value.wrapping_sub(counter());
                let delta = offset.wrapping_sub(self.tsc_offset);
                self.tsc_adjust = self.tsc_adjust.wrapping_add(delta);
                self.set_tsc_offset(vcpu, offset);
                Ok(())
            }
            msr::IA32_TSC_ADJUST if !cpuid.has_tsc_adjust() => Err(Gp),
            msr::IA32_TSC_ADJUST => {
                let delta = value.wrapping_sub(self.tsc_adjust);
                self.tsc_adjust = value;
                self.set_tsc_offset(vcpu, self.tsc_offset.wrapping_add(delta));
                Ok(())
            }
            msr::IA32_TSC_AUX if !cpuid.has_tsc_aux() || value >> 32 != 0 => Err(Gp),
            msr::IA32_PAT => {
                let valid = |t: u8| matches!(t, 0 | 1 | 4..=7);
                if !value.to_le_bytes().into_iter().all(valid) {
                    return Err(Gp);
                }
                vcpu.write_msr(index, value).map_err(|_| Gp)
            }
            msr::IA32_FS_BASE
            | msr::IA32_GS_BASE
            | msr::IA32_KERNEL_GS_BASE
            | msr::IA32_LSTAR
            | msr::IA32_CSTAR
            | msr::IA32_SYSENTER_ESP
            | msr::IA32_SYSENTER_EIP
                if !canonical(value, vcpu.cr4()) =>
            {
                Err(Gp)
            }
            // Last-branch, branch-trace and single-step-on-branch are not offered: only zero is legal.
            msr::IA32_DEBUGCTL if value & !2 != 0 => Err(Gp),
            msr::IA32_FS_BASE
            | msr::IA32_GS_BASE
            | msr::IA32_KERNEL_GS_BASE
            | msr::IA32_STAR
            | msr::IA32_LSTAR
            | msr::IA32_CSTAR
            | msr::IA32_FMASK
            | msr::IA32_SYSENTER_CS
            | msr::IA32_SYSENTER_ESP
            | msr::IA32_SYSENTER_EIP
            | msr::IA32_TSC_AUX
            | msr::IA32_DEBUGCTL => vcpu.write_msr(index, value).map_err(|_| Gp),
            msr::IA32_MCG_STATUS => {
                self.mcg_status = value & 7;
                Ok(())
            }
            0x400..=0x47f => {
                let (bank, register) = mc_register(index).ok_or(Gp)?;
                let control = self.mc_ctl.get_mut(bank).ok_or(Gp)?;
                match register {
                    0 => *control = value,
                    // STATUS, ADDR and MISC can only be cleared.
                    _ if value == 0 => {}
                    _ => return Err(Gp),
                }
                Ok(())
            }
            // The microcode revision register is written before CPUID latches it; an update is not accepted.
            msr::IA32_BIOS_SIGN_ID => Ok(()),
            _ if let Some(result) = self.mtrrs.write(index, value) => result,
            _ if cpuid.is_amd() => match index {
                msr::AMD_HWCR => {
                    self.hwcr = value & !HWCR_TSC_FREQ_SEL;
                    Ok(())
                }
                // LFENCE stays serialising whatever is written; the rest has nothing behind it.
                msr::AMD_DE_CFG | msr::AMD_SYSCFG | msr::AMD_NB_CFG | msr::AMD_PERF_CTL0..=msr::AMD_PERF_CTR3 => Ok(()),
                _ => Err(Gp),
            },
            msr::IA32_MISC_ENABLE => {
                if (value ^ self.misc_enable) & !MISC_ENABLE_WRITABLE & !(1 << 3 | 1 << 16 | 1 << 18) != 0 {
                    return Err(Gp);
                }
                self.misc_enable = self.misc_enable & !MISC_ENABLE_WRITABLE | value & MISC_ENABLE_WRITABLE;
                Ok(())
            }
            _ => Err(Gp),
        }
    }

    fn set_tsc_offset<V: Vcpu>(&mut self, vcpu: &mut V, offset: u64) {
        self.tsc_offset = offset;
        vcpu.set_tsc_offset(offset);
    }
}

/// Bank and register (0 CTL, 1 STATUS, 2 ADDR, 3 MISC) of a machine-check MSR.
fn mc_register(index: u32) -> Option<(usize, u32)> {
    let n = index.checked_sub(msr::IA32_MC0_CTL)?;
    let bank = (n / 4) as usize;
    (bank < MCE_BANKS).then_some((bank, n % 4))
}

fn canonical(address: u64, cr4: u64) -> bool {
    let unused = if cr4 & x86defs::Cr4::LA57.bits() != 0 { 7 } else { 16 };
    (((address << unused) as i64) >> unused) as u64 == address
}

/// What control-register checks need to know of a vCPU.
pub fn control_state<V: Vcpu>(vcpu: &V) -> ControlState {
    ControlState {
        cr0: vcpu.cr0(),
        cr3: vcpu.cr3(),
        cr4: vcpu.cr4(),
        efer: vcpu.efer(),
        cs_long: vcpu.segment(x86defs::SegmentRegister::Cs).attributes.long(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakePlatform, FakeVcpu};

    fn setup() -> (FakeVcpu, CpuidPolicy, MsrState) {
        let platform = FakePlatform::new();
        let cpuid = crate::testing::cpuid_policy(&platform, 0, 1, &crate::vcpu::features::CpuidMask::default());
        let state = MsrState::new(&cpuid, 0x8000_0000, 0u64.wrapping_sub(1000));
        (FakeVcpu::new(&[]), cpuid, state)
    }

    #[test]
    fn unknown_msrs_fault() {
        let (mut vcpu, cpuid, mut state) = setup();
        for index in [0x3a, 0x480, 0xda0, 0xc001_0114, 0xc001_0117, 0x1_2345, 0x4b56_4d02] {
            assert_eq!(state.read(&vcpu, &cpuid, || 0, index), Err(Gp), "{index:#x}");
            assert_eq!(state.write(&mut vcpu, &cpuid, || 0, index, 0), Err(Gp), "{index:#x}");
        }
    }

    #[test]
    fn tsc_and_tsc_adjust_move_together() {
        let (mut vcpu, cpuid, mut state) = setup();
        assert_eq!(state.read(&vcpu, &cpuid, || 5000, msr::IA32_TIME_STAMP_COUNTER), Ok(4000));
        state.write(&mut vcpu, &cpuid, || 5000, msr::IA32_TIME_STAMP_COUNTER, 10_000).unwrap();
        assert_eq!(state.read(&vcpu, &cpuid, || 5001, msr::IA32_TIME_STAMP_COUNTER), Ok(10_001));
        assert_eq!(state.read(&vcpu, &cpuid, || 0, msr::IA32_TSC_ADJUST), Ok(6000));
        state.write(&mut vcpu, &cpuid, || 0, msr::IA32_TSC_ADJUST, 0).unwrap();
        assert_eq!(state.read(&vcpu, &cpuid, || 5000, msr::IA32_TIME_STAMP_COUNTER), Ok(4000));
        assert_eq!(vcpu.tsc_offset, 0u64.wrapping_sub(1000), "the CPU got the offset");
    }

    #[test]
    fn bad_values_fault() {
        let (mut vcpu, cpuid, mut state) = setup();
        for (index, value) in [
            (msr::IA32_PAT, 0x0007_0406_0007_0402),
            (msr::IA32_LSTAR, 0x8000_0000_0000),
            (msr::IA32_EFER, 1 << 12),
            (msr::IA32_TSC_AUX, 1 << 32),
            (0x401, 1),
            (0x400 + 4 * 10, 0),
        ] {
            assert_eq!(state.write(&mut vcpu, &cpuid, || 0, index, value), Err(Gp), "{index:#x}");
        }
    }
}
