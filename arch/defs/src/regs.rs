//! Architectural registers (Intel SDM vol. 1 chapter 3, vol. 3A chapter 2; AMD APM vol. 2 chapter 3).

use bitflags::bitflags;

/// General-purpose registers in instruction-encoding order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

impl Gpr {
    /// The register with encoding `n & 15`.
    #[must_use]
    pub const fn from_index(n: u8) -> Self {
        const ALL: [Gpr; 16] = [
            Gpr::Rax,
            Gpr::Rcx,
            Gpr::Rdx,
            Gpr::Rbx,
            Gpr::Rsp,
            Gpr::Rbp,
            Gpr::Rsi,
            Gpr::Rdi,
            Gpr::R8,
            Gpr::R9,
            Gpr::R10,
            Gpr::R11,
            Gpr::R12,
            Gpr::R13,
            Gpr::R14,
            Gpr::R15,
        ];
        ALL[(n & 15) as usize]
    }
}

/// The sixteen general-purpose registers, indexed by [`Gpr`]. `#[repr(C)]`: the world switch addresses it by offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[repr(C)]
pub struct Gprs([u64; 16]);

impl core::ops::Index<Gpr> for Gprs {
    type Output = u64;
    #[inline]
    fn index(&self, r: Gpr) -> &u64 {
        &self.0[r as usize]
    }
}

impl core::ops::IndexMut<Gpr> for Gprs {
    #[inline]
    fn index_mut(&mut self, r: Gpr) -> &mut u64 {
        &mut self.0[r as usize]
    }
}

impl Gprs {
    /// Writes a 32-bit result: the upper half is cleared, as the architecture does (SDM vol. 1, 3.4.1.1).
    #[inline]
    pub fn set32(&mut self, r: Gpr, value: u32) {
        self[r] = u64::from(value);
    }
    /// The low 32 bits.
    #[inline]
    #[must_use]
    pub fn get32(&self, r: Gpr) -> u32 {
        self[r] as u32
    }
    /// EDX:EAX as one value.
    #[inline]
    #[must_use]
    pub fn edx_eax(&self) -> u64 {
        u64::from(self.get32(Gpr::Rdx)) << 32 | u64::from(self.get32(Gpr::Rax))
    }
}

bitflags! {
    /// RFLAGS.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Rflags: u64 {
        const CF = 1 << 0;
        /// Always one.
        const FIXED = 1 << 1;
        const PF = 1 << 2;
        const AF = 1 << 4;
        const ZF = 1 << 6;
        const SF = 1 << 7;
        const TF = 1 << 8;
        const IF = 1 << 9;
        const DF = 1 << 10;
        const OF = 1 << 11;
        const IOPL = 3 << 12;
        const NT = 1 << 14;
        const RF = 1 << 16;
        const VM = 1 << 17;
        const AC = 1 << 18;
        const VIF = 1 << 19;
        const VIP = 1 << 20;
        const ID = 1 << 21;
    }

    /// CR0.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Cr0: u64 {
        const PE = 1 << 0;
        const MP = 1 << 1;
        const EM = 1 << 2;
        const TS = 1 << 3;
        const ET = 1 << 4;
        const NE = 1 << 5;
        const WP = 1 << 16;
        const AM = 1 << 18;
        const NW = 1 << 29;
        const CD = 1 << 30;
        const PG = 1 << 31;
    }

    /// CR4.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Cr4: u64 {
        const VME = 1 << 0;
        const PVI = 1 << 1;
        const TSD = 1 << 2;
        const DE = 1 << 3;
        const PSE = 1 << 4;
        const PAE = 1 << 5;
        const MCE = 1 << 6;
        const PGE = 1 << 7;
        const PCE = 1 << 8;
        const OSFXSR = 1 << 9;
        const OSXMMEXCPT = 1 << 10;
        const UMIP = 1 << 11;
        const LA57 = 1 << 12;
        const VMXE = 1 << 13;
        const SMXE = 1 << 14;
        const FSGSBASE = 1 << 16;
        const PCIDE = 1 << 17;
        const OSXSAVE = 1 << 18;
        const SMEP = 1 << 20;
        const SMAP = 1 << 21;
        const PKE = 1 << 22;
        const CET = 1 << 23;
    }

    /// IA32_EFER.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Efer: u64 {
        const SCE = 1 << 0;
        const LME = 1 << 8;
        const LMA = 1 << 10;
        const NXE = 1 << 11;
        const SVME = 1 << 12;
        const LMSLE = 1 << 13;
        const FFXSR = 1 << 14;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentRegister {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

/// Segment attributes as in bits 40..=55 of a descriptor, limit bits removed: type 0-3, S 4, DPL 5-6, P 7, AVL 8, L 9, D/B 10, G 11.
/// Bit 12 is Bulkhead's own "unusable" mark (VMX access-rights bit 16; on SVM a null selector's cleared P).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct SegmentAttributes(pub u16);

impl SegmentAttributes {
    pub const UNUSABLE: Self = Self(1 << 12);

    #[must_use]
    pub const fn kind(self) -> u8 {
        (self.0 & 0xf) as u8
    }
    /// S: code or data rather than a system segment.
    #[must_use]
    pub const fn is_code_or_data(self) -> bool {
        self.0 & 1 << 4 != 0
    }
    #[must_use]
    pub const fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }
    #[must_use]
    pub const fn present(self) -> bool {
        self.0 & 1 << 7 != 0
    }
    /// L: 64-bit code.
    #[must_use]
    pub const fn long(self) -> bool {
        self.0 & 1 << 9 != 0
    }
    /// D/B: 32-bit default size.
    #[must_use]
    pub const fn big(self) -> bool {
        self.0 & 1 << 10 != 0
    }
    #[must_use]
    pub const fn granular(self) -> bool {
        self.0 & 1 << 11 != 0
    }
    #[must_use]
    pub const fn unusable(self) -> bool {
        self.0 & 1 << 12 != 0
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Segment {
    pub selector: u16,
    pub attributes: SegmentAttributes,
    /// Byte-granular limit, already scaled by G.
    pub limit: u32,
    pub base: u64,
}

impl Segment {
    /// A real-mode segment: base = selector x 16, limit 64 KiB, present, DPL 0, of descriptor type `kind`
    /// (3 = data read/write accessed, 0xb = code read accessed).
    #[must_use]
    pub const fn real_mode(selector: u16, kind: u8) -> Self {
        Self { selector, attributes: SegmentAttributes(0x90 | kind as u16), limit: 0xffff, base: (selector as u64) << 4 }
    }
    /// A flat 4-GiB code (`long` = 64-bit) or data segment.
    #[must_use]
    pub const fn flat(selector: u16, kind: u8, long: bool) -> Self {
        let size = if long { 0xa00 } else { 0xc00 };
        Self { selector, attributes: SegmentAttributes(size | 0x90 | kind as u16), limit: 0xffff_ffff, base: 0 }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct DescriptorTable {
    pub base: u64,
    pub limit: u16,
}
