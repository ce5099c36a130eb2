//! MTRRs as the guest sees them (SDM vol. 3A, 12.11). Stage 2 makes guest RAM write-back, so they are storage with the architecture's
//! checks; what they say at start is what firmware leaves behind: RAM write-back, the legacy VGA window and the PCI hole uncached.

use super::control::Gp;
use x86defs::msr;

/// Variable-range pairs.
const VARIABLE: usize = 8;
const UC: u64 = 0;
const WB: u64 = 6;

/// The MTRR state of one vCPU.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Mtrrs {
    default: u64,
    fixed: [u64; 11],
    variable: [(u64, u64); VARIABLE],
    phys_bits: u32,
}

fn memory_type_valid(t: u64) -> bool {
    matches!(t, 0 | 1 | 4 | 5 | 6)
}

impl Mtrrs {
    /// As firmware would set them: enabled, default WB, fixed ranges WB but for A0000-BFFFF, one variable range that makes
    /// `hole_start`..4 GiB uncached. `hole_start` must be 4 GiB less a power of two.
    #[must_use]
    pub fn new(phys_bits: u32, hole_start: u64) -> Self {
        let mut fixed = [0x0606_0606_0606_0606; 11];
        fixed[2] = 0;
        let mut variable = [(0, 0); VARIABLE];
        let mask = Self::mask(phys_bits);
        variable[0] = (hole_start | UC, mask & !((1u64 << 32) - hole_start - 1) | 1 << 11);
        Self { default: 3 << 10 | WB, fixed, variable, phys_bits }
    }

    const fn mask(phys_bits: u32) -> u64 {
        ((1u64 << phys_bits) - 1) & !0xfff
    }

    fn fixed_index(index: u32) -> Option<usize> {
        match index {
            msr::IA32_MTRR_FIX64K_00000 => Some(0),
            msr::IA32_MTRR_FIX16K_80000 => Some(1),
            msr::IA32_MTRR_FIX16K_A0000 => Some(2),
            0x268..=0x26f => Some((index - 0x268) as usize + 3),
            _ => None,
        }
    }

    /// The value of MTRR `index`, or `None` if that is no MTRR.
    #[must_use]
    pub fn read(&self, index: u32) -> Option<u64> {
        match index {
            // WC, fixed ranges, eight variable ranges.
            msr::IA32_MTRRCAP => Some(1 << 10 | 1 << 8 | VARIABLE as u64),
            msr::IA32_MTRR_DEF_TYPE => Some(self.default),
            0x200..=0x20f => {
                let (base, mask) = self.variable.get((index - 0x200) as usize / 2)?;
                Some(if index & 1 == 0 { *base } else { *mask })
            }
            _ => self.fixed.get(Self::fixed_index(index)?).copied(),
        }
    }

    /// Writes MTRR `index`; `None` if that is no MTRR.
    pub fn write(&mut self, index: u32, value: u64) -> Option<Result<(), Gp>> {
        let address = Self::mask(self.phys_bits);
        Some(match index {
            msr::IA32_MTRRCAP => Err(Gp),
            msr::IA32_MTRR_DEF_TYPE => {
                if value & !0xcff != 0 || !memory_type_valid(value & 0xff) {
                    Err(Gp)
                } else {
                    self.default = value;
                    Ok(())
                }
            }
            0x200..=0x20f => {
                let pair = self.variable.get_mut((index - 0x200) as usize / 2)?;
                if index & 1 == 0 {
                    if value & !(address | 0xff) != 0 || !memory_type_valid(value & 0xff) {
                        return Some(Err(Gp));
                    }
                    pair.0 = value;
                } else {
                    if value & !(address | 1 << 11) != 0 {
                        return Some(Err(Gp));
                    }
                    pair.1 = value;
                }
                Ok(())
            }
            _ => {
                let slot = self.fixed.get_mut(Self::fixed_index(index)?)?;
                if value.to_le_bytes().into_iter().all(|t| memory_type_valid(t.into())) {
                    *slot = value;
                    Ok(())
                } else {
                    Err(Gp)
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_as_firmware_leaves_it() {
        let m = Mtrrs::new(40, 0x8000_0000);
        assert_eq!(m.read(msr::IA32_MTRR_DEF_TYPE), Some(0xc06));
        assert_eq!(m.read(0x200), Some(0x8000_0000));
        assert_eq!(m.read(0x201), Some(0xff_8000_0800));
        assert_eq!(m.read(msr::IA32_MTRR_FIX16K_A0000), Some(0));
        assert_eq!(m.read(0x210), None);
    }

    #[test]
    fn bad_types_and_reserved_bits_fault() {
        let mut m = Mtrrs::new(40, 0x8000_0000);
        assert_eq!(m.write(msr::IA32_MTRR_DEF_TYPE, 0xc02), Some(Err(Gp)));
        assert_eq!(m.write(0x202, 1 << 45), Some(Err(Gp)));
        assert_eq!(m.write(0x250, 0x0606_0606_0606_0603), Some(Err(Gp)));
        assert_eq!(m.write(0x250, 0x0505_0505_0505_0505), Some(Ok(())));
        assert_eq!(m.read(0x250), Some(0x0505_0505_0505_0505));
        assert_eq!(m.write(0x277, 0), None);
    }
}
