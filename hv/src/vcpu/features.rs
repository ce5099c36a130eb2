//! What the guest's CPU can do: the bits of CPUID that stand for features. Those that Bulkhead offers on this host, by allow-lists (one that
//! nobody has thought about is hidden), less those that the guest's configuration takes away, less those that cannot be without them.
//! The registers' other checks follow from it: CR4, EFER, XCR0, MSRs.

use x86defs::{CpuidResult, Platform};

/// Leaf 1 ECX: allowed if the host has it. Absent on purpose: MONITOR, DS-CPL, VMX, SMX, EIST, TM2, DEBUG, xTPR, PDCM, DCA.
const L1_ECX_ALLOW: u32 = 1 << 0 // SSE3
    | 1 << 1 // PCLMULQDQ
    | 1 << 9 // SSSE3
    | 1 << 12 // FMA
    | 1 << 13 // CMPXCHG16B
    | 1 << 17 // PCID
    | 1 << 19 // SSE4.1
    | 1 << 20 // SSE4.2
    | 1 << 22 // MOVBE
    | 1 << 23 // POPCNT
    | 1 << 25 // AES
    | 1 << 26 // XSAVE
    | 1 << 28 // AVX
    | 1 << 29 // F16C
    | 1 << 30; // RDRAND
/// Leaf 1 EDX: everything but PSN (18), DS (21), ACPI (22), SS (27), HTT (28, set by topology), TM (29), IA64 (30), PBE (31).
const L1_EDX_ALLOW: u32 = !(1 << 10 | 1 << 18 | 1 << 20 | 1 << 21 | 1 << 22 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 30 | 1 << 31);

/// Leaf 7.0 EBX. Absent: SGX, HLE/RTM (transactions abort on any exit), RDT, MPX, PT, PCOMMIT.
const L7_EBX_ALLOW: u32 = 1 << 0 // FSGSBASE
    | 1 << 3 // BMI1
    | 1 << 5 // AVX2
    | 1 << 6 // FDP_EXCPTN_ONLY
    | 1 << 7 // SMEP
    | 1 << 8 // BMI2
    | 1 << 9 // ERMS
    | 1 << 10 // INVPCID
    | 1 << 13 // deprecates FPU CS/DS
    | 1 << 18 // RDSEED
    | 1 << 19 // ADX
    | 1 << 20 // SMAP
    | 1 << 23 // CLFLUSHOPT
    | 1 << 24 // CLWB
    | 1 << 29; // SHA
const L7_EBX_AVX512: u32 = 1 << 16 | 1 << 17 | 1 << 21 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 30 | 1 << 31;
const L7_ECX_ALLOW: u32 = 1 << 0 // PREFETCHWT1
    | 1 << 2 // UMIP
    | 1 << 3 // PKU
    | 1 << 8 // GFNI
    | 1 << 9 // VAES
    | 1 << 10 // VPCLMULQDQ
    | 1 << 16 // LA57
    | 1 << 22; // RDPID
const L7_ECX_AVX512: u32 = 1 << 1 | 1 << 6 | 1 << 11 | 1 << 12 | 1 << 14;
const L7_EDX_ALLOW: u32 = 1 << 4 // fast short REP MOV
    | 1 << 10 // MD_CLEAR (VERW)
    | 1 << 14; // SERIALIZE
const L7_EDX_AVX512: u32 = 1 << 2 | 1 << 3 | 1 << 8 | 1 << 23;
/// Leaf 7.1 EAX: AVX-VNNI, fast zero-length MOVSB, fast short STOSB, fast short CMPSB.
const L71_EAX_ALLOW: u32 = 1 << 4 | 1 << 10 | 1 << 11 | 1 << 12;
const L71_EAX_AVX512: u32 = 1 << 5;
/// Leaf 0DH.1 EAX: XSAVEOPT, XSAVEC and XGETBV(1); no XSAVES.
const LD1_EAX_ALLOW: u32 = 7;

/// Leaf 8000_0001H ECX. Absent: SVM, EXTAPIC, OSVW, IBS, SKINIT, WDT, LWP, PERFCTR, DBEXT, PTSC, MONITORX.
const X1_ECX_ALLOW: u32 = 1 << 0 // LAHF/SAHF
    | 1 << 4 // MOV CR8 by LOCK MOV CR0
    | 1 << 5 // LZCNT
    | 1 << 6 // SSE4A
    | 1 << 7 // misaligned SSE
    | 1 << 8 // PREFETCHW
    | 1 << 11 // XOP
    | 1 << 16 // FMA4
    | 1 << 21 // TBM
    | 1 << 22; // topology extensions
/// The bits of leaf 8000_0001H EDX that are those of leaf 1.
const X1_EDX_MIRROR: u32 = 0x0183_f3ff;
const X1_EDX_ALLOW: u32 = X1_EDX_MIRROR
    | 1 << 11 // SYSCALL
    | 1 << 20 // NX
    | 1 << 22 // MMX extensions
    | 1 << 25 // FXSAVE optimisation
    | 1 << 26 // 1-GiB pages
    | 1 << 27 // RDTSCP
    | 1 << 29; // long mode
/// Leaf 8000_0008H EBX: CLZERO, XSAVE error pointers, WBNOINVD.
const X8_EBX_ALLOW: u32 = 1 << 0 | 1 << 2 | 1 << 9;

/// A register of a leaf of CPUID that a configuration can change. All but the last three hold features.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Word {
    L1Ecx,
    L1Edx,
    L6Eax,
    L7Ebx,
    L7Ecx,
    L7Edx,
    L71Eax,
    LD1Eax,
    X1Ecx,
    X1Edx,
    X7Edx,
    X8Ebx,
    /// The highest basic leaf.
    MaxLeaf,
    /// Family, model, stepping.
    Signature,
    /// Brand and CLFLUSH's line size; the rest of the register is topology.
    Brand,
}

use Word::*;

/// Features are in so many words, the first of them.
const FEATURE_WORDS: usize = 12;
const WORDS: usize = 15;

impl Word {
    pub const ALL: [Self; WORDS] =
        [L1Ecx, L1Edx, L6Eax, L7Ebx, L7Ecx, L7Edx, L71Eax, LD1Eax, X1Ecx, X1Edx, X7Edx, X8Ebx, MaxLeaf, Signature, Brand];

    /// Leaf, subleaf, and register from EAX = 0 to EDX = 3.
    #[must_use]
    pub const fn place(self) -> (u32, u32, usize) {
        match self {
            MaxLeaf => (0, 0, 0),
            Signature => (1, 0, 0),
            Brand => (1, 0, 1),
            L1Ecx => (1, 0, 2),
            L1Edx => (1, 0, 3),
            L6Eax => (6, 0, 0),
            L7Ebx => (7, 0, 1),
            L7Ecx => (7, 0, 2),
            L7Edx => (7, 0, 3),
            L71Eax => (7, 1, 0),
            LD1Eax => (0xd, 1, 0),
            X1Ecx => (0x8000_0001, 0, 2),
            X1Edx => (0x8000_0001, 0, 3),
            X7Edx => (0x8000_0007, 0, 3),
            X8Ebx => (0x8000_0008, 0, 1),
        }
    }

    /// True if the leaf has subleaves.
    #[must_use]
    pub const fn has_subleaves(self) -> bool {
        matches!(self, L7Ebx | L7Ecx | L7Edx | L71Eax | LD1Eax)
    }

    /// Bits that are the hypervisor's alone: they follow CR4, the topology, or what there is in any case.
    #[must_use]
    pub const fn fixed(self) -> u32 {
        match self {
            // OSXSAVE
            L1Ecx => 1 << 27,
            // The local APIC, and that there are several processors.
            L1Edx => 1 << 9 | 1 << 28,
            // OSPKE
            L7Ecx => 1 << 4,
            X1Ecx => 1 << 1,
            X1Edx => 1 << 9,
            // APIC ids and their number.
            Brand => 0xffff_0000,
            Signature => 0xf000_f000,
            _ => 0,
        }
    }
}

/// What a guest's configuration changes in CPUID: bits of each [`Word`] that are to be 0, and bits that are to be 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuidMask {
    clear: [u32; WORDS],
    set: [u32; WORDS],
}

impl CpuidMask {
    /// `clear` and `set` of the bits `bits`; whatever was asked for them before is forgotten.
    pub fn ask(&mut self, word: Word, bits: u32, clear: u32, set: u32) {
        let n = word as usize;
        if let (Some(zeroes), Some(ones)) = (self.clear.get_mut(n), self.set.get_mut(n)) {
            *zeroes = *zeroes & !bits | clear & bits;
            *ones = *ones & !bits | set & bits;
        }
    }

    /// Bits that are to be 0 and bits that are to be 1.
    #[must_use]
    pub fn of(&self, word: Word) -> (u32, u32) {
        let n = word as usize;
        (self.clear.get(n).copied().unwrap_or(0), self.set.get(n).copied().unwrap_or(0))
    }

    /// A word that is no feature word.
    #[must_use]
    pub fn apply(&self, word: Word, value: u32) -> u32 {
        let (clear, set) = self.of(word);
        value & !clear | set
    }
}

/// A bit that the configuration wants to be 1 and that cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unavailable {
    pub word: Word,
    pub bit: u32,
}

/// A feature: its word and bit.
type Feature = (Word, u32);

/// What cannot be without the first. In such an order that each is looked at after all on which it depends.
const DEPENDENTS: &[(Feature, &[(Word, u32)])] = &[
    // FPU: MMX, FXSR, XSAVE
    ((L1Edx, 0), &[(L1Edx, 1 << 23 | 1 << 24), (L1Ecx, 1 << 26)]),
    ((L1Edx, 23), &[(X1Edx, 1 << 22 | 1 << 30 | 1 << 31)]),
    // FXSR: SSE, FFXSR
    ((L1Edx, 24), &[(L1Edx, 1 << 25), (X1Edx, 1 << 25)]),
    ((L1Edx, 25), &[(L1Edx, 1 << 26), (X1Ecx, 1 << 7)]),
    // SSE2: SSE3, AES, PCLMULQDQ, SHA, GFNI, long mode
    ((L1Edx, 26), &[(L1Ecx, 1 | 1 << 25 | 1 << 1), (L7Ebx, 1 << 29), (L7Ecx, 1 << 8), (X1Edx, 1 << 29)]),
    ((L1Ecx, 0), &[(L1Ecx, 1 << 9), (X1Ecx, 1 << 6)]),
    ((L1Ecx, 9), &[(L1Ecx, 1 << 19)]),
    ((L1Ecx, 19), &[(L1Ecx, 1 << 20)]),
    ((L1Ecx, 20), &[(L1Ecx, 1 << 28)]),
    // PSE: PSE-36. PAE: long mode, NX
    ((L1Edx, 3), &[(L1Edx, 1 << 17)]),
    ((L1Edx, 6), &[(X1Edx, 1 << 29 | 1 << 20)]),
    // TSC: TSC deadline, TSC_ADJUST, invariant TSC, RDTSCP
    ((L1Edx, 4), &[(L1Ecx, 1 << 24), (L7Ebx, 1 << 1), (X7Edx, 1 << 8), (X1Edx, 1 << 27)]),
    // XSAVE: its variants, AVX, PKU
    ((L1Ecx, 26), &[(LD1Eax, u32::MAX), (L1Ecx, 1 << 28), (L7Ecx, 1 << 3)]),
    // AVX: FMA, F16C, AVX2, XOP, FMA4, AVX-VNNI
    ((L1Ecx, 28), &[(L1Ecx, 1 << 12 | 1 << 29), (L7Ebx, 1 << 5), (X1Ecx, 1 << 11 | 1 << 16), (L71Eax, 1 << 4)]),
    // AVX2: VAES, VPCLMULQDQ, AVX-512
    ((L7Ebx, 5), &[(L7Ebx, L7_EBX_AVX512), (L7Ecx, 1 << 9 | 1 << 10)]),
    ((L1Ecx, 25), &[(L7Ecx, 1 << 9)]),
    ((L1Ecx, 1), &[(L7Ecx, 1 << 10)]),
    ((L7Ebx, 16), &[(L7Ebx, L7_EBX_AVX512), (L7Ecx, L7_ECX_AVX512), (L7Edx, L7_EDX_AVX512), (L71Eax, L71_EAX_AVX512)]),
    // AVX512BW: VBMI, VBMI2, BITALG, FP16, BF16
    ((L7Ebx, 30), &[(L7Ecx, 1 << 1 | 1 << 6 | 1 << 12), (L7Edx, 1 << 23), (L71Eax, 1 << 5)]),
    // Long mode: CMPXCHG16B, PCID, PKU, LA57, FSGSBASE, LAHF/SAHF, 1-GiB pages
    ((X1Edx, 29), &[(L1Ecx, 1 << 13 | 1 << 17), (L7Ecx, 1 << 3 | 1 << 16), (L7Ebx, 1), (X1Ecx, 1), (X1Edx, 1 << 26)]),
    // PCID: INVPCID
    ((L1Ecx, 17), &[(L7Ebx, 1 << 10)]),
];

/// What one guest's CPUs can do.
#[derive(Clone, Debug)]
pub struct Features {
    words: [u32; FEATURE_WORDS],
    mask: CpuidMask,
}

impl Features {
    /// What Bulkhead offers a guest of `vcpus` vCPUs on this host.
    fn offered<P: Platform>(platform: &P, vcpus: u32) -> Self {
        let zero = platform.cpuid(0, 0);
        let amd = is_amd(&zero);
        let host_extended = platform.cpuid(0x8000_0000, 0).eax;
        let host = |leaf: u32, subleaf| {
            let highest = if leaf >> 31 == 0 { zero.eax } else { host_extended };
            if leaf <= highest { platform.cpuid(leaf, subleaf) } else { CpuidResult::default() }
        };
        let (one, seven, x1) = (host(1, 0), host(7, 0), host(0x8000_0001, 0));
        let seven_one = if seven.eax >= 1 { host(7, 1).eax } else { 0 };
        let several = vcpus > 1;
        let mut words = [0; FEATURE_WORDS];
        for (word, value) in [
            // x2APIC, TSC deadline, and that there is a hypervisor.
            (L1Ecx, one.ecx & L1_ECX_ALLOW | 1 << 21 | 1 << 24 | 1 << 31),
            (L1Edx, one.edx & L1_EDX_ALLOW | u32::from(several) << 28),
            // ARAT: the local APIC's timer never stops.
            (L6Eax, 1 << 2),
            (L7Ebx, seven.ebx & (L7_EBX_ALLOW | L7_EBX_AVX512) | 1 << 1),
            (L7Ecx, seven.ecx & (L7_ECX_ALLOW | L7_ECX_AVX512)),
            (L7Edx, seven.edx & (L7_EDX_ALLOW | L7_EDX_AVX512)),
            (L71Eax, seven_one & (L71_EAX_ALLOW | L71_EAX_AVX512)),
            (LD1Eax, host(0xd, 1).eax & LD1_EAX_ALLOW),
            // CMP_LEGACY: there are several processors.
            (X1Ecx, x1.ecx & X1_ECX_ALLOW | u32::from(amd && several) << 1),
            (X1Edx, x1.edx & X1_EDX_ALLOW),
            // Invariant TSC: the guest's TSC is the one time base, which does not stop or change its rate.
            (X7Edx, 1 << 8),
            (X8Ebx, host(0x8000_0008, 0).ebx & X8_EBX_ALLOW),
        ] {
            words[word as usize] = value;
        }
        let mut features = Self { words, mask: CpuidMask::default() };
        // Vector registers that XSAVE does not save are not offered.
        let state = host(0xd, 0).eax;
        if zero.eax < 0xd {
            features.take(L1Ecx, 1 << 26);
        }
        if state & 4 == 0 {
            features.take(L1Ecx, 1 << 28);
        }
        if state & 0xe0 != 0xe0 {
            features.take(L7Ebx, 1 << 16);
        }
        if state & 1 << 9 == 0 {
            features.take(L7Ecx, 1 << 3);
        }
        features.close();
        features
    }

    /// What a guest of `vcpus` vCPUs gets on this host, changed as its configuration wants.
    ///
    /// # Errors
    /// The configuration wants a feature that Bulkhead does not offer here, or not with another one taken away.
    pub fn new<P: Platform>(platform: &P, vcpus: u32, mask: &CpuidMask) -> Result<Self, Unavailable> {
        let mut features = Self { mask: *mask, ..Self::offered(platform, vcpus) };
        for word in Word::ALL.into_iter().take(FEATURE_WORDS) {
            features.take(word, mask.of(word).0);
        }
        // A leaf that is not there takes along what it would show.
        let highest = features.max_leaf();
        for (leaf, words) in [(6, &[L6Eax][..]), (7, &[L7Ebx, L7Ecx, L7Edx, L71Eax])] {
            if highest < leaf {
                words.iter().for_each(|word| features.take(*word, u32::MAX));
            }
        }
        if highest < 0xd {
            features.take(L1Ecx, 1 << 26);
        }
        features.close();
        for word in Word::ALL.into_iter().take(FEATURE_WORDS) {
            let missing = mask.of(word).1 & !features.word(word);
            if missing != 0 {
                return Err(Unavailable { word, bit: missing.trailing_zeros() });
            }
        }
        if mask.apply(MaxLeaf, super::cpuid::MAX_BASIC) > super::cpuid::MAX_BASIC {
            return Err(Unavailable { word: MaxLeaf, bit: 0 });
        }
        Ok(features)
    }

    fn take(&mut self, word: Word, bits: u32) {
        if let Some(value) = self.words.get_mut(word as usize) {
            *value &= !bits;
        }
    }

    /// Takes away what depends on what is not there.
    fn close(&mut self) {
        for &((word, bit), dependents) in DEPENDENTS {
            if self.word(word) >> bit & 1 == 0 {
                dependents.iter().for_each(|&(word, bits)| self.take(word, bits));
            }
        }
        // The same features under other bits.
        self.take(X1Edx, X1_EDX_MIRROR & !self.word(L1Edx));
    }

    /// A word of features.
    #[must_use]
    pub fn word(&self, word: Word) -> u32 {
        self.words.get(word as usize).copied().unwrap_or(0)
    }

    /// True if the guest has the feature.
    #[must_use]
    pub fn has(&self, (word, bit): Feature) -> bool {
        self.word(word) >> bit & 1 != 0
    }

    /// The highest basic leaf.
    #[must_use]
    pub fn max_leaf(&self) -> u32 {
        self.mask.apply(MaxLeaf, super::cpuid::MAX_BASIC).min(super::cpuid::MAX_BASIC)
    }

    /// Leaf 1 EAX.
    #[must_use]
    pub fn signature(&self, host: u32) -> u32 {
        self.mask.apply(Signature, host)
    }

    /// Leaf 1 EBX.
    #[must_use]
    pub fn brand(&self, host: u32) -> u32 {
        self.mask.apply(Brand, host)
    }

    /// XCR0 bits that the guest may have: x87, SSE, AVX, AVX-512 (three parts), PKRU.
    #[must_use]
    pub fn xcr0(&self) -> u64 {
        if !self.has((L1Ecx, 26)) {
            return 0;
        }
        [((L1Ecx, 28), 4), ((L7Ebx, 16), 0xe0), ((L7Ecx, 3), 1 << 9)]
            .into_iter()
            .filter(|&(feature, _)| self.has(feature))
            .fold(3, |xcr0, (_, bits)| xcr0 | bits)
    }
}

/// True for every vendor but Intel, by leaf 0.
pub fn is_amd(zero: &CpuidResult) -> bool {
    [zero.ebx, zero.edx, zero.ecx] != [0x756e_6547, 0x4965_6e69, 0x6c65_746e]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config,
        testing::{FakePlatform, cpuid_policy},
        vcpu::{CpuidContext, CpuidPolicy, MAX_BASIC, Xcr0Policy},
    };
    use x86defs::Cr4;

    const RESET: CpuidContext = CpuidContext { cr4: 0, xcr0: 1, apic_base: 0xfee0_0900 };

    fn mask(value: &str) -> CpuidMask {
        let text = alloc::format!("name = \"g\"\nmemory = 4\nkernel = \"k\"\ncpuid = {value}\n");
        config::parse("g.cfg", &text).unwrap().cpuid
    }

    fn features(value: &str) -> Features {
        Features::new(&FakePlatform::new(), 1, &mask(value)).unwrap()
    }

    fn policy(value: &str) -> CpuidPolicy {
        cpuid_policy(&FakePlatform::new(), 0, 1, &mask(value))
    }

    #[test]
    fn what_depends_on_a_feature_goes_with_it() {
        let all = features("\"host\"");
        assert_eq!(all.xcr0(), 0x2e7);
        assert_eq!(all.word(LD1Eax), 7);
        for (value, gone, xcr0) in [
            (
                "\"host,xsave=0\"",
                &[(L1Ecx, 26), (L1Ecx, 28), (L1Ecx, 12), (L7Ebx, 5), (L7Ebx, 16), (L7Ecx, 3), (LD1Eax, 0)][..],
                0,
            ),
            ("\"host,avx=0\"", &[(L1Ecx, 28), (L1Ecx, 29), (L7Ebx, 5), (L7Ebx, 16), (L7Ecx, 9), (L71Eax, 4), (L71Eax, 5)], 0x203),
            ("\"host,avx2=0\"", &[(L7Ebx, 5), (L7Ebx, 31), (L7Edx, 23)], 0x207),
            ("\"host,pku=0\"", &[(L7Ecx, 3)], 0xe7),
            ("\"host,sse=0\"", &[(L1Edx, 26), (L1Ecx, 0), (L1Ecx, 20), (L1Ecx, 28), (X1Edx, 29), (L7Ebx, 0)], 3),
            ("\"host,pcid=0\"", &[(L1Ecx, 17), (L7Ebx, 10)], 0x2e7),
            ("\"host,fpu=0\"", &[(L1Edx, 0), (X1Edx, 0), (L1Edx, 23), (X1Edx, 24)], 0),
        ] {
            let some = features(value);
            for feature in gone {
                assert!(all.has(*feature) && !some.has(*feature), "{value}: {feature:?}");
            }
            assert_eq!(some.xcr0(), xcr0, "{value}");
        }
    }

    #[test]
    fn nothing_is_given_that_is_not_there() {
        for (value, missing) in [
            ("\"host,vmx=1\"", Unavailable { word: L1Ecx, bit: 5 }),
            ("\"host,htt=1\"", Unavailable { word: L1Edx, bit: 28 }),
            ("\"host,avx=1,xsave=0\"", Unavailable { word: L1Ecx, bit: 28 }),
            ("[\"7,0:ecx=1xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"]", Unavailable { word: L7Ecx, bit: 31 }),
            ("[\"0:eax=xxxxxxxxxxxxxxxxxxxxxxxxxxx11111\"]", Unavailable { word: MaxLeaf, bit: 0 }),
        ] {
            assert_eq!(Features::new(&FakePlatform::new(), 1, &mask(value)).unwrap_err(), missing, "{value}");
        }
        let text = alloc::format!("{}", config::CpuidError::Unavailable(Unavailable { word: L1Ecx, bit: 5 }));
        assert!(text.starts_with("vmx=1: the guest's CPUs cannot have it"), "{text}");
        let text = alloc::format!("{}", config::CpuidError::Unavailable(Unavailable { word: L7Ecx, bit: 17 }));
        assert!(text.starts_with("0x7,0:ecx bit 17: "), "{text}");
        assert!(features("\"host,vmx=0,apic=1,sse3=1\"").has((L1Ecx, 0)));
    }

    #[test]
    fn registers_follow_the_features() {
        let p = policy("\"host,xsave=0,smep=0,pcid=0,nx=0,rdtscp=0,rdpid=0,x2apic=0,tsc-deadline=0,tsc_adjust=0\"");
        let all = policy("\"host\"");
        let gone = (Cr4::OSXSAVE | Cr4::SMEP | Cr4::PCIDE | Cr4::PKE).bits();
        assert_eq!(all.cr4_allowed() & !p.cr4_allowed(), gone);
        assert_eq!(all.extended_edx() & !p.extended_edx(), 1 << 20 | 1 << 27);
        assert_eq!([all.has_tsc_aux(), all.has_x2apic(), all.has_tsc_deadline(), all.has_tsc_adjust()], [true; 4]);
        assert_eq!([p.has_tsc_aux(), p.has_x2apic(), p.has_tsc_deadline(), p.has_tsc_adjust()], [false; 4]);
        for subleaf in 0..32 {
            assert_eq!(p.leaf(0xd, subleaf, || RESET), CpuidResult::default());
        }
    }

    #[test]
    fn numbers_and_the_highest_leaf() {
        let p = policy("\"host,family=21,model=2,stepping=0,maxleaf=6,brandid=7\"");
        assert_eq!(p.leaf(1, 0, || RESET).eax, 0x0060_0f20);
        assert_eq!(p.signature(), 0x0060_0f20);
        assert_eq!(p.leaf(1, 0, || RESET).ebx & 0xff, 7);
        assert_eq!(p.leaf(0, 0, || RESET).eax, 6);
        assert_eq!(p.cr4_allowed() & (Cr4::SMEP | Cr4::UMIP | Cr4::OSXSAVE).bits(), 0);
        assert!(!p.has_tsc_adjust() && !p.has_tsc_aux() || p.extended_edx() & 1 << 27 != 0);
        // Intel answers with the highest leaf's data, AMD with zeroes.
        for leaf in 7..=MAX_BASIC + 1 {
            assert_eq!(p.leaf(leaf, 0, || RESET), p.leaf(6, 0, || RESET), "leaf {leaf:#x}");
        }
        let amd = FakePlatform::amd();
        let short = mask("\"host,maxleaf=1,family=15\"");
        let features = Features::new(&amd, 1, &short).unwrap();
        let p = CpuidPolicy::new(&amd, &features, 0, 1, &Xcr0Policy::new(&features), 1_000_000_000);
        for leaf in 2..=MAX_BASIC + 1 {
            assert_eq!(p.leaf(leaf, 0, || RESET), CpuidResult::default(), "leaf {leaf:#x}");
        }
        assert_eq!(p.leaf(0x8000_0001, 0, || RESET).eax & 0x0ff0_0f00, 0xf00, "AMD says it twice");
    }
}
