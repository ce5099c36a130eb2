//! Which MSRs a guest reads and writes without an exit.
//!
//! Manual: see [`super::spec`], 26.6.9.

use x86defs::msr;

/// One page: read bitmaps for MSRs 0..=1fff and c0000000..=c0001fff, then write bitmaps for the same. A set bit means an exit.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct MsrBitmap([u8; 4096]);

/// MSRs that are switched with the vCPU, at each entry or when a CPU takes it, and whose values the CPU checks itself.
const SWITCHED: [u32; 10] = [
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
];

const X2APIC_TPR: u32 = 0x808;
const X2APIC_EOI: u32 = 0x80b;
const X2APIC_SELF_IPI: u32 = 0x83f;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

impl MsrBitmap {
    /// Everything exits but the switched MSRs, reads of EFER, and, if it is switched, TSC_AUX.
    ///
    /// In place, because a page is much for a stack.
    pub fn fill(&mut self, tsc_aux: bool) {
        self.0.fill(0xff);
        for index in SWITCHED {
            self.pass(index, Direction::Read);
            self.pass(index, Direction::Write);
        }
        // The guest runs with its own EFER. Writes exit: they have reserved bits to check, and LMA to keep.
        self.pass(msr::IA32_EFER, Direction::Read);
        if tsc_aux {
            self.pass(msr::IA32_TSC_AUX, Direction::Read);
            self.pass(msr::IA32_TSC_AUX, Direction::Write);
        }
    }

    /// As [`MsrBitmap::fill`], for a guest whose local APIC is in x2APIC mode and virtualised by the CPU (31.5): all registers but the timer's current
    /// count are read from the page; TPR, EOI and self IPI are written without an exit.
    pub fn fill_for_virtual_x2apic(&mut self, tsc_aux: bool) {
        self.fill(tsc_aux);
        // Where there is no register, or only a write-only one, a read must raise #GP.
        for range in [
            0x802..=0x803,
            0x808..=0x808,
            0x80a..=0x80a,
            0x80d..=0x80d,
            0x80f..=0x828,
            0x830..=0x830,
            0x832..=0x838,
            0x83e..=0x83e,
        ] {
            for index in range {
                self.pass(index, Direction::Read);
            }
        }
        for index in [X2APIC_TPR, X2APIC_EOI, X2APIC_SELF_IPI] {
            self.pass(index, Direction::Write);
        }
    }

    fn bit(index: u32, direction: Direction) -> Option<(usize, u8)> {
        let (base, offset) = match index {
            0..=0x1fff => (0, index),
            0xc000_0000..=0xc000_1fff => (0x400, index - 0xc000_0000),
            _ => return None,
        };
        let base = if direction == Direction::Write { base + 0x800 } else { base };
        Some((base + offset as usize / 8, 1 << (offset % 8)))
    }

    fn pass(&mut self, index: u32, direction: Direction) {
        if let Some((byte, mask)) = Self::bit(index, direction) {
            self.0[byte] &= !mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(fill: impl FnOnce(&mut MsrBitmap)) -> MsrBitmap {
        let mut bitmap = MsrBitmap([0; 4096]);
        fill(&mut bitmap);
        bitmap
    }

    fn plain(tsc_aux: bool) -> MsrBitmap {
        filled(|bitmap| bitmap.fill(tsc_aux))
    }

    fn exits(bitmap: &MsrBitmap, index: u32, direction: Direction) -> bool {
        MsrBitmap::bit(index, direction).is_none_or(|(byte, mask)| bitmap.0[byte] & mask != 0)
    }

    #[test]
    fn only_the_listed_msrs_pass() {
        let bitmap = plain(true);
        let passes = |direction| {
            (0..0x2000).chain(0xc000_0000..0xc000_2000).filter(|&i| !exits(&bitmap, i, direction)).collect::<std::vec::Vec<_>>()
        };
        assert_eq!(
            passes(Direction::Read),
            [
                0x174,
                0x175,
                0x176,
                0xc000_0080,
                0xc000_0081,
                0xc000_0082,
                0xc000_0083,
                0xc000_0084,
                0xc000_0100,
                0xc000_0101,
                0xc000_0102,
                0xc000_0103
            ]
        );
        assert!(!passes(Direction::Write).contains(&0xc000_0080));
        assert_eq!(passes(Direction::Write).len(), 11);
        assert!(exits(&plain(false), msr::IA32_TSC_AUX, Direction::Write));
    }

    #[test]
    fn a_virtual_x2apic_answers_what_exists() {
        let (plain, virtual_x2apic) = (plain(true), filled(|bitmap| bitmap.fill_for_virtual_x2apic(true)));
        let opened = |direction| {
            (0..0x2000)
                .chain(0xc000_0000..0xc000_2000)
                .filter(|&i| exits(&plain, i, direction) && !exits(&virtual_x2apic, i, direction))
                .collect::<std::vec::Vec<_>>()
        };
        assert_eq!(opened(Direction::Write), [0x808, 0x80b, 0x83f]);
        let read = opened(Direction::Read);
        assert_eq!(read.len(), 2 + 1 + 1 + 1 + 26 + 1 + 7 + 1);
        for nothing_to_read in [0x800, 0x80b, 0x80c, 0x80e, 0x829, 0x82f, 0x831, 0x839, 0x83a, 0x83f] {
            assert!(!read.contains(&nothing_to_read), "{nothing_to_read:#x}");
        }
    }

    #[test]
    fn layout() {
        // 26.6.9: LSTAR (c0000082) writes are bit 2 of byte 0x10 in the last KiB; SYSENTER_ESP (175) reads bit 5 of byte 0x2e in the first.
        let bitmap = plain(false);
        assert_eq!(bitmap.0[0xc10], 0b1110_0001);
        assert_eq!(bitmap.0[0x410], 0b1110_0000, "EFER can be read as well");
        assert_eq!(bitmap.0[0x2e], 0b1000_1111);
    }
}
