//! Control-register and EFER rules: which values a guest may write, and the fault for the others (Intel SDM vol. 3A, 2.5; vol. 2B "MOV—Move
//! to/from Control Registers"; AMD APM vol. 2, 3.1, 24593 rev 3.42).

use super::features::Features;
use x86defs::{Cr0, Cr4, Efer};

/// The guest's write must raise #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gp;

const CR0_DEFINED: u64 = Cr0::all().bits();

/// What a write to CR0, CR4, CR3 or EFER is judged against.
#[derive(Clone, Copy, Debug)]
pub struct ControlState {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// CS.L: 64-bit code segment.
    pub cs_long: bool,
}

impl ControlState {
    fn long_mode(&self) -> bool {
        self.efer & Efer::LMA.bits() != 0
    }
}

/// The value CR0 takes for a write of `value`, or #GP.
pub fn check_cr0(now: &ControlState, value: u64) -> Result<u64, Gp> {
    let new = Cr0::from_bits_retain(value);
    if value >> 32 != 0 {
        return Err(Gp);
    }
    if new.contains(Cr0::PG) && !new.contains(Cr0::PE) || new.contains(Cr0::NW) && !new.contains(Cr0::CD) {
        return Err(Gp);
    }
    let enabling_paging = new.contains(Cr0::PG) && now.cr0 & Cr0::PG.bits() == 0;
    let disabling_paging = !new.contains(Cr0::PG) && now.cr0 & Cr0::PG.bits() != 0;
    if enabling_paging && now.efer & Efer::LME.bits() != 0 && (now.cr4 & Cr4::PAE.bits() == 0 || now.cs_long) {
        return Err(Gp);
    }
    if disabling_paging && (now.cs_long && now.long_mode() || now.cr4 & Cr4::PCIDE.bits() != 0) {
        return Err(Gp);
    }
    // Undefined low bits are ignored, ET is fixed to one.
    Ok(value & CR0_DEFINED | Cr0::ET.bits())
}

/// The value CR4 takes for a write of `value`, or #GP. `allowed`: the bits that the guest's CPUID shows.
pub fn check_cr4(now: &ControlState, value: u64, allowed: u64) -> Result<u64, Gp> {
    if value & !allowed != 0 {
        return Err(Gp);
    }
    let changed = value ^ now.cr4;
    if now.long_mode() && (value & Cr4::PAE.bits() == 0 || changed & Cr4::LA57.bits() != 0) {
        return Err(Gp);
    }
    let sets_pcide = changed & value & Cr4::PCIDE.bits() != 0;
    if sets_pcide && (!now.long_mode() || now.cr3 & 0xfff != 0) {
        return Err(Gp);
    }
    Ok(value)
}

/// The value EFER takes for a write of `value`, or #GP. `allowed`: SCE, LME, NXE ... as the guest's CPUID shows.
pub fn check_efer(now: &ControlState, value: u64, allowed: u64) -> Result<u64, Gp> {
    // LMA is read-only: writes to it are ignored on Intel; both vendors accept the value that is there.
    let lma = Efer::LMA.bits();
    if value & !(allowed | lma) != 0 {
        return Err(Gp);
    }
    let paging = now.cr0 & Cr0::PG.bits() != 0;
    if paging && (value ^ now.efer) & Efer::LME.bits() != 0 {
        return Err(Gp);
    }
    Ok(value & !lma | now.efer & lma)
}

/// XCR0 bits that a guest may set.
#[derive(Clone, Copy, Debug)]
pub struct Xcr0Policy {
    /// Zero if the guest has no XSAVE.
    pub allowed: u64,
}

impl Xcr0Policy {
    /// Those of the guest's features.
    #[must_use]
    pub fn new(features: &Features) -> Self {
        Self { allowed: features.xcr0() }
    }

    /// Checks an XSETBV (SDM vol. 1, 13.3).
    pub fn check(&self, index: u32, value: u64) -> Result<(), Gp> {
        let avx512 = value & 0xe0;
        let bad = index != 0
            || value & !self.allowed != 0
            || value & 1 == 0
            || value & 4 != 0 && value & 2 == 0
            || avx512 != 0 && (avx512 != 0xe0 || value & 6 != 6);
        if bad { Err(Gp) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: ControlState = ControlState { cr0: 0x10, cr3: 0, cr4: 0, efer: 0, cs_long: false };
    const LONG: ControlState = ControlState {
        cr0: 0x8000_0011,
        cr3: 0x1000,
        cr4: Cr4::PAE.bits(),
        efer: Efer::LME.bits() | Efer::LMA.bits(),
        cs_long: true,
    };

    #[test]
    fn cr0_rules() {
        assert_eq!(check_cr0(&REAL, 0x8000_0000), Err(Gp), "PG without PE");
        assert_eq!(check_cr0(&REAL, 0x2000_0000), Err(Gp), "NW without CD");
        assert_eq!(check_cr0(&REAL, 1 << 32), Err(Gp));
        assert_eq!(check_cr0(&REAL, 0x1), Ok(0x11), "ET stays");
        assert_eq!(check_cr0(&ControlState { efer: Efer::LME.bits(), ..REAL }, 0x8000_0011), Err(Gp), "LME without PAE");
        assert_eq!(check_cr0(&LONG, 0x11), Err(Gp), "leaving paging from 64-bit code");
        assert_eq!(check_cr0(&ControlState { cs_long: false, ..LONG }, 0x11), Ok(0x11));
    }

    #[test]
    fn cr4_rules() {
        let allowed = (Cr4::PAE | Cr4::PGE | Cr4::PCIDE | Cr4::LA57).bits();
        assert_eq!(check_cr4(&REAL, Cr4::SMEP.bits(), allowed), Err(Gp), "feature not in CPUID");
        assert_eq!(check_cr4(&LONG, 0, allowed), Err(Gp), "PAE cleared in long mode");
        assert_eq!(check_cr4(&LONG, (Cr4::PAE | Cr4::LA57).bits(), allowed), Err(Gp));
        assert_eq!(check_cr4(&REAL, (Cr4::PAE | Cr4::PCIDE).bits(), allowed), Err(Gp), "PCIDE outside long mode");
        let with = (Cr4::PAE | Cr4::PCIDE).bits();
        assert_eq!(check_cr4(&LONG, with, allowed), Ok(with));
        assert_eq!(check_cr4(&ControlState { cr3: 0x1001, ..LONG }, with, allowed), Err(Gp), "CR3[11:0] not zero");
    }

    #[test]
    fn efer_rules() {
        let allowed = (Efer::SCE | Efer::LME | Efer::NXE).bits();
        assert_eq!(check_efer(&REAL, Efer::SVME.bits(), allowed), Err(Gp));
        assert_eq!(check_efer(&LONG, Efer::SCE.bits(), allowed), Err(Gp), "LME cleared with paging on");
        let value = (Efer::LME | Efer::SCE).bits();
        assert_eq!(check_efer(&LONG, value, allowed), Ok(value | Efer::LMA.bits()), "LMA is kept");
        assert_eq!(check_efer(&REAL, (Efer::LME | Efer::LMA).bits(), allowed), Ok(Efer::LME.bits()), "LMA is not writable");
    }

    #[test]
    fn xcr0_rules() {
        let policy = Xcr0Policy { allowed: 0x2e7 };
        for bad in [0, 2, 5, 0x27, 0xe3, 0x1_0000_0007] {
            assert_eq!(policy.check(0, bad), Err(Gp), "{bad:#x}");
        }
        for good in [1, 3, 7, 0xe7, 0x2e7] {
            assert_eq!(policy.check(0, good), Ok(()), "{good:#x}");
        }
        assert_eq!(policy.check(1, 7), Err(Gp));
    }
}
