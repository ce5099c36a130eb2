//! What the host's CPU can do, and the control registers that follow from it (Intel SDM vol. 3A rev. 085, chapter 2).

use super::{cpuid, cr, msr};
use crate::mm::table::{HOST_PAT, PageSize};
use arrayvec::ArrayString;
use x86defs::{Cr0, Cr4, Efer};

/// CPU features that the host itself depends on or chooses by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    pub nx: bool,
    pub pages_1g: bool,
    pub smep: bool,
    pub smap: bool,
    pub umip: bool,
    pub xsave: bool,
    pub pat: bool,
    pub x2apic: bool,
    pub tsc_deadline: bool,
    pub invariant_tsc: bool,
    /// Running under another hypervisor.
    pub hypervisor: bool,
    /// Physical address bits.
    pub physical_bits: u32,
}

/// Asks CPUID.
#[must_use]
pub fn detect() -> Features {
    let bit = |value: u32, n: u32| value >> n & 1 != 0;
    let max = cpuid(0, 0).eax;
    let max_extended = cpuid(0x8000_0000, 0).eax;
    let extended = |leaf: u32| if max_extended >= leaf { cpuid(leaf, 0) } else { x86defs::CpuidResult::default() };
    let one = cpuid(1, 0);
    let seven = if max >= 7 { cpuid(7, 0) } else { x86defs::CpuidResult::default() };
    let ext1 = extended(0x8000_0001);
    Features {
        nx: bit(ext1.edx, 20),
        pages_1g: bit(ext1.edx, 26),
        smep: bit(seven.ebx, 7),
        smap: bit(seven.ebx, 20),
        umip: bit(seven.ecx, 2),
        xsave: bit(one.ecx, 26),
        pat: bit(one.edx, 16),
        x2apic: bit(one.ecx, 21),
        tsc_deadline: bit(one.ecx, 24),
        invariant_tsc: bit(extended(0x8000_0007).edx, 8),
        hypervisor: bit(one.ecx, 31),
        physical_bits: if max_extended >= 0x8000_0008 { (extended(0x8000_0008).eax & 0xff).clamp(32, 52) } else { 36 },
    }
}

impl Features {
    /// The largest page that the host's tables may use.
    #[must_use]
    pub fn largest_page(&self) -> PageSize {
        if self.pages_1g { PageSize::Size1G } else { PageSize::Size2M }
    }

    /// True if a CPU with these features can do all that one with `other` can.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        // Destructured, so that a new feature is not forgotten here.
        let Self {
            nx,
            pages_1g,
            smep,
            smap,
            umip,
            xsave,
            pat,
            x2apic,
            tsc_deadline,
            invariant_tsc,
            hypervisor: _,
            physical_bits,
        } = *other;
        let pairs = [
            (self.nx, nx),
            (self.pages_1g, pages_1g),
            (self.smep, smep),
            (self.smap, smap),
            (self.umip, umip),
            (self.xsave, xsave),
            (self.pat, pat),
            (self.x2apic, x2apic),
            (self.tsc_deadline, tsc_deadline),
            (self.invariant_tsc, invariant_tsc),
        ];
        pairs.into_iter().all(|(own, wanted)| own || !wanted) && self.physical_bits >= physical_bits
    }
}

/// Sets this CPU's control registers for the host: caches on, write protection, no-execute, SMEP, SMAP and UMIP where present.
///
/// # Safety
/// At CPL 0 in long mode; the active page tables must have no NX bit set unless `features.nx`, and no user pages that the host executes or reads.
pub unsafe fn set_up(features: &Features) {
    let cr0 = Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::PG;
    let mut cr4 = Cr4::PAE | Cr4::PSE | Cr4::DE | Cr4::MCE | Cr4::PGE | Cr4::OSFXSR | Cr4::OSXMMEXCPT;
    cr4.set(Cr4::SMEP, features.smep);
    cr4.set(Cr4::SMAP, features.smap);
    cr4.set(Cr4::UMIP, features.umip);
    cr4.set(Cr4::OSXSAVE, features.xsave);
    // SAFETY: every bit is one that the CPU has; paging stays on with the same tables.
    unsafe {
        let efer = Efer::from_bits_retain(msr::read(x86defs::msr::IA32_EFER));
        msr::write(x86defs::msr::IA32_EFER, (efer | if features.nx { Efer::NXE } else { Efer::empty() }).bits());
        cr::set_cr0(cr0.bits());
        cr::set_cr4(cr4.bits());
        if features.pat {
            msr::write(x86defs::msr::IA32_PAT, HOST_PAT);
        }
    }
}

/// CPU vendor: "GenuineIntel", "AuthenticAMD" ...
#[must_use]
pub fn vendor() -> ArrayString<12> {
    let leaf = cpuid(0, 0);
    text([leaf.ebx, leaf.edx, leaf.ecx])
}

/// Brand string, trimmed; empty if the CPU has none.
#[must_use]
pub fn brand() -> ArrayString<48> {
    let mut words = [0; 12];
    if cpuid(0x8000_0000, 0).eax >= 0x8000_0004 {
        for (leaf, part) in (0x8000_0002..).zip(words.chunks_exact_mut(4)) {
            let r = cpuid(leaf, 0);
            part.copy_from_slice(&[r.eax, r.ebx, r.ecx, r.edx]);
        }
    }
    text(words)
}

/// Registers as text: printable ASCII, up to the first NUL, without surrounding blanks.
fn text<const WORDS: usize, const BYTES: usize>(words: [u32; WORDS]) -> ArrayString<BYTES> {
    let mut out = ArrayString::new();
    for byte in words.iter().flat_map(|w| w.to_le_bytes()).take_while(|&b| b != 0) {
        if (byte.is_ascii_graphic() || byte == b' ' && !out.is_empty()) && out.try_push(char::from(byte)).is_err() {
            break;
        }
    }
    let trimmed = out.trim_end().len();
    out.truncate(trimmed);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_lacks_something_is_noticed() {
        let full = Features { smap: true, physical_bits: 46, ..detect() };
        assert!(full.covers(&full));
        assert!(full.covers(&Features { smap: false, physical_bits: 36, ..full }));
        assert!(!Features { smap: false, ..full }.covers(&full));
        assert!(!Features { physical_bits: 45, ..full }.covers(&full));
    }

    #[test]
    fn brand_text_is_trimmed() {
        let words = [u32::from_le_bytes(*b"  In"), u32::from_le_bytes(*b"tel "), u32::from_le_bytes(*b" \0zz")];
        assert_eq!(&text::<3, 12>(words)[..], "Intel");
    }
}
