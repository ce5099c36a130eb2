//! CPUID policy: what CPU a guest sees. Built once per vCPU from the host's leaves and the guest's [`Features`]. (Intel SDM vol. 2A "CPUID", 253666-081; AMD APM vol. 3 appendix E, 24594 rev 3.35.)

use super::{
    Xcr0Policy,
    features::{Features, Word, is_amd},
    viridian,
};
use crate::config::Viridian;
use x86defs::{CpuidResult, Cr4, Platform};

/// Highest basic leaf that any guest sees: 15H gives the TSC's and the LAPIC timer's frequency.
pub const MAX_BASIC: u32 = 0x16;
const MAX_EXTENDED: u32 = 0x8000_001f;
/// Highest hypervisor leaf: 4000_0010H gives TSC and APIC bus frequencies in kHz.
const MAX_HYPERVISOR: u32 = 0x4000_0010;
/// Where Bulkhead's own leaves start, in the place that guests probe after the KVM-compatible ones.
pub const BULKHEAD_BASE: u32 = 0x4000_0100;
const BASIC_COUNT: usize = MAX_BASIC as usize + 1;
const EXTENDED_COUNT: usize = (MAX_EXTENDED & 0xff) as usize + 1;
/// The guest's LAPIC timer input clock in Hz, which is also the "core crystal clock" of leaf 15H.
pub const APIC_BUS_HZ: u64 = 1_000_000_000;

const L1_ECX_X2APIC: u32 = 1 << 21;
const L1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const L1_ECX_OSXSAVE: u32 = 1 << 27;
const L1_ECX_XSAVE: u32 = 1 << 26;
const L1_ECX_PCID: u32 = 1 << 17;
/// Also in leaf 8000_0001H.
const L1_EDX_APIC: u32 = 1 << 9;
/// IA32_APIC_BASE: the local APIC is there.
const APIC_ENABLE: u64 = 1 << 11;
const L7_EBX_TSC_ADJUST: u32 = 1 << 1;
const L7_ECX_PKU: u32 = 1 << 3;
const L7_ECX_OSPKE: u32 = 1 << 4;

/// "KVMKVMKVM": stock kernels know this interface, and with it use x2APIC without interrupt remapping.
const SIGNATURE_KVM: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];
/// KVM_FEATURE_NOP_IO_DELAY (port 0x80 delays are not needed), the clock, and what helps vCPUs that share CPUs.
const KVM_FEATURES: u32 = 1 << 1 | super::pvclock::FEATURES | super::paravirt::FEATURES;

/// From one hypervisor's leaves to the next one's.
const SPACING: u32 = 0x100;

/// The leaves one vCPU sees.
#[derive(Clone, Debug)]
pub struct CpuidPolicy {
    basic: [CpuidResult; BASIC_COUNT],
    extended: [CpuidResult; EXTENDED_COUNT],
    /// Cache leaves (4 and 8000_001DH), subleaves 0..=4.
    caches: [CpuidResult; 5],
    amd_caches: [CpuidResult; 5],
    /// Leaf 7 subleaf 1.
    seven_one: CpuidResult,
    /// Leaf 0DH, subleaves 0..32.
    xsave: [CpuidResult; 32],
    apic_id: u32,
    vcpus: u32,
    tsc_khz: u32,
    max_basic: u32,
    max_extended: u32,
    /// CR4 bits that this CPU lets the guest set.
    cr4_allowed: u64,
    phys_bits: u32,
    amd: bool,
    viridian: Viridian,
}

/// What a leaf's dynamic parts depend on.
#[derive(Clone, Copy, Debug)]
pub struct CpuidContext {
    pub cr4: u64,
    pub xcr0: u64,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
}

impl CpuidContext {
    /// A local APIC that IA32_APIC_BASE disables is not there (SDM vol. 3A, 11.4.3).
    const fn apic_mask(self) -> u32 {
        if self.apic_base & APIC_ENABLE == 0 { !L1_EDX_APIC } else { u32::MAX }
    }
}

impl CpuidPolicy {
    /// The policy for the vCPU with this APIC id in a guest of `vcpus` vCPUs, whose TSC has `tsc_hz` Hz.
    pub fn new<P: Platform>(platform: &P, features: &Features, apic_id: u32, vcpus: u32, xcr0: &Xcr0Policy, tsc_hz: u64) -> Self {
        let host = |leaf, subleaf| platform.cpuid(leaf, subleaf);
        let zero = host(0, 0);
        let amd = is_amd(&zero);
        let host_basic = zero.eax;
        let host_extended = host(0x8000_0000, 0).eax;
        let basic = |leaf| if leaf <= host_basic { host(leaf, 0) } else { CpuidResult::default() };
        let extended = |leaf| {
            if (0x8000_0000..=host_extended).contains(&leaf) { host(leaf, 0) } else { CpuidResult::default() }
        };
        let tsc_khz = u32::try_from(tsc_hz / 1000).unwrap_or(u32::MAX);
        let max_basic = features.max_leaf();
        let max_extended = host_extended.clamp(0x8000_0008, MAX_EXTENDED);

        let mut policy = Self {
            basic: [CpuidResult::default(); BASIC_COUNT],
            extended: [CpuidResult::default(); EXTENDED_COUNT],
            caches: [CpuidResult::default(); 5],
            amd_caches: [CpuidResult::default(); 5],
            seven_one: CpuidResult::default(),
            xsave: [CpuidResult::default(); 32],
            apic_id,
            vcpus,
            tsc_khz,
            max_basic,
            max_extended,
            cr4_allowed: 0,
            phys_bits: 36,
            amd,
            viridian: Viridian::empty(),
        };

        let topology_bits = vcpus.max(1).next_power_of_two().trailing_zeros();
        policy.basic[0] = CpuidResult { eax: max_basic, ..zero };
        // Intel counts the APIC ids that the package has room for (SDM vol. 3A, 9.9.2), AMD the processors.
        let logical_processors = if amd { vcpus } else { vcpus.next_power_of_two() };
        let one = basic(1);
        policy.basic[1] = CpuidResult {
            eax: features.signature(one.eax),
            ebx: features.brand(one.ebx & 0xffff) | logical_processors.min(255) << 16 | (apic_id & 0xff) << 24,
            ecx: features.word(Word::L1Ecx),
            edx: features.word(Word::L1Edx),
        };
        policy.basic[2] = if amd { CpuidResult::default() } else { basic(2) };
        for (subleaf, slot) in policy.caches.iter_mut().enumerate() {
            if host_basic >= 4 && !amd {
                *slot = cache_leaf(host(4, subleaf as u32), vcpus);
            }
        }
        policy.basic[6] = CpuidResult { eax: features.word(Word::L6Eax), ..CpuidResult::default() };
        policy.basic[7] = CpuidResult {
            eax: basic(7).eax.min(1),
            ebx: features.word(Word::L7Ebx),
            ecx: features.word(Word::L7Ecx),
            edx: features.word(Word::L7Edx),
        };
        policy.seven_one = CpuidResult { eax: features.word(Word::L71Eax), ..CpuidResult::default() };
        policy.fill_xsave(&host, features, xcr0);
        // 15H: TSC = crystal x EBX / EAX; the crystal is the LAPIC timer's input clock.
        policy.basic[0x15] = CpuidResult { eax: (APIC_BUS_HZ / 1000) as u32, ebx: tsc_khz, ecx: APIC_BUS_HZ as u32, edx: 0 };
        policy.basic[0x16] =
            CpuidResult { eax: tsc_khz / 1000, ebx: tsc_khz / 1000, ecx: (APIC_BUS_HZ / 1_000_000) as u32, edx: 0 };

        policy.extended[0] = CpuidResult { eax: max_extended, ..extended(0x8000_0000) };
        let x1 = extended(0x8000_0001);
        policy.extended[1] = CpuidResult {
            // On AMD the family, model and stepping again.
            eax: if amd { features.signature(x1.eax) } else { x1.eax },
            ebx: x1.ebx,
            ecx: features.word(Word::X1Ecx),
            edx: features.word(Word::X1Edx),
        };
        for n in 2..=6 {
            policy.extended[n] = extended(0x8000_0000 + n as u32);
        }
        policy.extended[7] = CpuidResult { edx: features.word(Word::X7Edx), ..CpuidResult::default() };
        let x8 = extended(0x8000_0008);
        policy.phys_bits = if x8.eax & 0xff != 0 { x8.eax & 0xff } else { 36 };
        policy.extended[8] = CpuidResult {
            eax: if x8.eax != 0 { x8.eax & 0xffff } else { 0x3024 },
            ebx: features.word(Word::X8Ebx),
            ecx: if amd { (vcpus - 1) & 0xff | topology_bits << 12 } else { 0 },
            edx: 0,
        };
        if amd {
            policy.extended[0x19] = extended(0x8000_0019);
            policy.extended[0x1a] = extended(0x8000_001a);
        }
        if amd && features.has((Word::X1Ecx, 22)) {
            for (subleaf, slot) in policy.amd_caches.iter_mut().enumerate() {
                if host_extended >= 0x8000_001d {
                    *slot = amd_cache_leaf(host(0x8000_001d, subleaf as u32), vcpus);
                }
            }
            // Extended APIC id; one thread a core; one node.
            policy.extended[0x1e] = CpuidResult { eax: apic_id, ebx: apic_id & 0xff, ecx: 0, edx: 0 };
        }
        policy.cr4_allowed = policy.derive_cr4();
        policy.end_basic_leaves();
        policy
    }

    /// The same with Hyper-V's leaves: they are where the others were, and those next.
    #[must_use]
    pub(crate) fn with_viridian(self, viridian: Viridian) -> Self {
        Self { viridian, ..self }
    }

    /// Leaves above the highest are answered as those out of range are: with the data of the highest by Intel, with zeroes by AMD.
    fn end_basic_leaves(&mut self) {
        let beyond = self.max_basic as usize + 1;
        let last = self.basic.get(self.max_basic as usize).copied().unwrap_or_default();
        let fill = if self.amd { CpuidResult::default() } else { last };
        self.basic.iter_mut().skip(beyond).for_each(|leaf| *leaf = fill);
    }

    fn fill_xsave(&mut self, host: &impl Fn(u32, u32) -> CpuidResult, features: &Features, xcr0: &Xcr0Policy) {
        if xcr0.allowed == 0 {
            return;
        }
        let mut size = 576;
        for n in 2..32u32 {
            if xcr0.allowed >> n & 1 != 0 {
                let component = host(0xd, n);
                self.xsave[n as usize] = CpuidResult { ecx: component.ecx & 2, edx: 0, ..component };
                size = size.max(component.eax.saturating_add(component.ebx));
            }
        }
        self.xsave[0] = CpuidResult { eax: xcr0.allowed as u32, ebx: 576, ecx: size, edx: (xcr0.allowed >> 32) as u32 };
        self.xsave[1] = CpuidResult { eax: features.word(Word::LD1Eax), ..CpuidResult::default() };
    }

    /// CR4 bits for which the guest's CPUID shows the feature (SDM vol. 3A, 2.5).
    fn derive_cr4(&self) -> u64 {
        let one = &self.basic[1];
        let seven = &self.basic[7];
        let mut allowed = Cr4::empty();
        for (present, bits) in [
            (one.edx & 1 << 1 != 0, Cr4::VME | Cr4::PVI),
            (one.edx & 1 << 4 != 0, Cr4::TSD),
            (one.edx & 1 << 2 != 0, Cr4::DE),
            (one.edx & 1 << 3 != 0, Cr4::PSE),
            (one.edx & 1 << 6 != 0, Cr4::PAE),
            (one.edx & 1 << 7 != 0, Cr4::MCE),
            (one.edx & 1 << 13 != 0, Cr4::PGE),
            (true, Cr4::PCE),
            (one.edx & 1 << 24 != 0, Cr4::OSFXSR),
            (one.edx & 1 << 25 != 0, Cr4::OSXMMEXCPT),
            (seven.ecx & 1 << 2 != 0, Cr4::UMIP),
            (seven.ecx & 1 << 16 != 0, Cr4::LA57),
            (seven.ebx & 1 != 0, Cr4::FSGSBASE),
            (one.ecx & L1_ECX_PCID != 0, Cr4::PCIDE),
            (one.ecx & L1_ECX_XSAVE != 0, Cr4::OSXSAVE),
            (seven.ebx & 1 << 7 != 0, Cr4::SMEP),
            (seven.ebx & 1 << 20 != 0, Cr4::SMAP),
            (seven.ecx & L7_ECX_PKU != 0, Cr4::PKE),
        ] {
            if present {
                allowed |= bits;
            }
        }
        allowed.bits()
    }

    /// CR4 bits that the guest may set.
    #[must_use]
    pub const fn cr4_allowed(&self) -> u64 {
        self.cr4_allowed
    }

    /// Physical-address width in bits.
    #[must_use]
    pub const fn phys_bits(&self) -> u32 {
        self.phys_bits
    }

    /// CPUID.1:EAX, which RESET leaves in EDX.
    #[must_use]
    pub const fn signature(&self) -> u32 {
        self.basic[1].eax
    }

    /// True for every vendor but Intel: AMD's MSRs and leaves.
    #[must_use]
    pub const fn is_amd(&self) -> bool {
        self.amd
    }

    /// True if the guest has SYSCALL, NX, long mode: the EFER bits it may set.
    #[must_use]
    pub const fn extended_edx(&self) -> u32 {
        self.extended[1].edx
    }

    /// True if leaf 8000_0001H shows RDTSCP, or leaf 7 RDPID: TSC_AUX exists.
    #[must_use]
    pub const fn has_tsc_aux(&self) -> bool {
        self.extended[1].edx & 1 << 27 != 0 || self.max_basic >= 7 && self.basic[7].ecx & 1 << 22 != 0
    }

    /// True if the local APIC has an x2APIC mode.
    #[must_use]
    pub const fn has_x2apic(&self) -> bool {
        self.basic[1].ecx & L1_ECX_X2APIC != 0
    }

    /// True if IA32_TSC_DEADLINE exists, and the timer's mode for it.
    #[must_use]
    pub const fn has_tsc_deadline(&self) -> bool {
        self.basic[1].ecx & L1_ECX_TSC_DEADLINE != 0
    }

    /// True if IA32_TSC_ADJUST exists.
    #[must_use]
    pub const fn has_tsc_adjust(&self) -> bool {
        self.max_basic >= 7 && self.basic[7].ebx & L7_EBX_TSC_ADJUST != 0
    }

    /// What CPUID answers.
    #[inline(always)]
    #[must_use]
    pub fn leaf(&self, leaf: u32, subleaf: u32, context: impl FnOnce() -> CpuidContext) -> CpuidResult {
        /// Basic leaves with subleaves, or with parts that depend on registers.
        const DYNAMIC: u32 = 1 << 1 | 1 << 4 | 1 << 7 | 1 << 0xb | 1 << 0xd;
        if leaf <= MAX_BASIC && DYNAMIC >> leaf & 1 == 0 {
            return self.basic[leaf as usize];
        }
        self.dynamic_leaf(leaf, subleaf, context())
    }

    #[inline(never)]
    fn dynamic_leaf(&self, leaf: u32, subleaf: u32, context: CpuidContext) -> CpuidResult {
        if leaf <= MAX_BASIC {
            let beyond = leaf > self.max_basic;
            match leaf {
                _ if beyond => self.basic[leaf as usize],
                1 => {
                    let mut result = self.basic[1];
                    if context.cr4 & Cr4::OSXSAVE.bits() != 0 {
                        result.ecx |= L1_ECX_OSXSAVE;
                    }
                    result.edx &= context.apic_mask();
                    result
                }
                4 => self.caches.get(subleaf as usize).copied().unwrap_or_default(),
                7 => self.leaf_seven(subleaf, context),
                0xb => self.topology(subleaf),
                0xd => self.leaf_xsave(subleaf, context),
                _ => self.basic[leaf as usize],
            }
        } else if let Some(n) = leaf.checked_sub(0x8000_0000)
            && leaf <= self.max_extended
        {
            match n {
                1 => CpuidResult { edx: self.extended[1].edx & context.apic_mask(), ..self.extended[1] },
                0x1d => self.amd_caches.get(subleaf as usize).copied().unwrap_or_default(),
                _ => self.extended[n as usize],
            }
        } else {
            self.special(leaf, context)
        }
    }

    fn leaf_seven(&self, subleaf: u32, context: CpuidContext) -> CpuidResult {
        match subleaf {
            0 => {
                let mut result = self.basic[7];
                if context.cr4 & Cr4::PKE.bits() != 0 {
                    result.ecx |= L7_ECX_OSPKE;
                }
                result
            }
            1 => self.seven_one,
            _ => CpuidResult::default(),
        }
    }

    fn leaf_xsave(&self, subleaf: u32, context: CpuidContext) -> CpuidResult {
        let mut result = self.xsave.get(subleaf as usize).copied().unwrap_or_default();
        if subleaf == 0 && result.eax != 0 {
            result.ebx = self.xsave_size(context.xcr0, false);
        } else if subleaf == 1 && result.eax & 2 != 0 {
            result.ebx = self.xsave_size(context.xcr0, true);
        }
        result
    }

    /// Bytes of an XSAVE area for the components of `xcr0` (SDM vol. 1, 13.4.2 and 13.4.3).
    fn xsave_size(&self, xcr0: u64, compacted: bool) -> u32 {
        let mut size = 576u32;
        for n in 2..32usize {
            if xcr0 >> n & 1 != 0 {
                let component = &self.xsave[n];
                if compacted {
                    if component.ecx & 2 != 0 {
                        size = size.next_multiple_of(64);
                    }
                    size = size.saturating_add(component.eax);
                } else {
                    size = size.max(component.eax.saturating_add(component.ebx));
                }
            }
        }
        size
    }

    /// Leaf 0BH: one thread a core, all cores in one package.
    fn topology(&self, subleaf: u32) -> CpuidResult {
        let bits = self.vcpus.max(1).next_power_of_two().trailing_zeros();
        match subleaf {
            0 => CpuidResult { eax: 0, ebx: 1, ecx: 1 << 8, edx: self.apic_id },
            1 => CpuidResult { eax: bits, ebx: self.vcpus, ecx: 2 << 8 | 1, edx: self.apic_id },
            _ => CpuidResult { eax: 0, ebx: 0, ecx: subleaf & 0xff, edx: self.apic_id },
        }
    }

    /// Hypervisor leaves, and those out of range.
    fn special(&self, leaf: u32, context: CpuidContext) -> CpuidResult {
        let moved = if self.viridian.is_empty() { 0 } else { SPACING };
        if moved != 0 && (0x4000_0000..0x4000_0000 + SPACING).contains(&leaf) {
            return viridian::leaf(self.viridian, leaf, self.vcpus);
        }
        let result = match leaf.wrapping_sub(moved) {
            unmoved @ 0x4000_0000..=0x4fff_ffff => self.hypervisor_leaf(unmoved),
            _ => CpuidResult::default(),
        };
        match leaf {
            // The highest leaf of each range is a leaf's number, too.
            0x4000_0000..=0x4fff_ffff if result.eax & 0xffff_0000 == 0x4000_0000 => {
                CpuidResult { eax: result.eax + moved, ..result }
            }
            0x4000_0000..=0x4fff_ffff => result,
            // Intel answers an out-of-range leaf with the data of the highest basic leaf, AMD with zeroes.
            _ if self.amd => CpuidResult::default(),
            _ => self.leaf(self.max_basic, 0, || context),
        }
    }

    /// Hypervisor leaves where they are without Hyper-V's.
    fn hypervisor_leaf(&self, leaf: u32) -> CpuidResult {
        match leaf {
            0x4000_0000 => {
                CpuidResult { eax: MAX_HYPERVISOR, ebx: SIGNATURE_KVM[0], ecx: SIGNATURE_KVM[1], edx: SIGNATURE_KVM[2] }
            }
            0x4000_0001 => CpuidResult { eax: KVM_FEATURES, ..CpuidResult::default() },
            MAX_HYPERVISOR => CpuidResult { eax: self.tsc_khz, ebx: (APIC_BUS_HZ / 1000) as u32, ..CpuidResult::default() },
            // "BulkheadHV" and the version of this interface.
            BULKHEAD_BASE => CpuidResult { eax: BULKHEAD_BASE + 1, ebx: 0x6b6c_7542, ecx: 0x6461_6568, edx: 0x0000_5648 },
            0x4000_0101 => CpuidResult { eax: 1, ..CpuidResult::default() },
            _ => CpuidResult::default(),
        }
    }
}

/// Leaf 4: one core shares the L1 and L2, all share the rest.
fn cache_leaf(host: CpuidResult, vcpus: u32) -> CpuidResult {
    if host.eax & 0x1f == 0 {
        return CpuidResult::default();
    }
    let level = host.eax >> 5 & 7;
    let ids = vcpus.max(1).next_power_of_two().min(64);
    let sharing = if level >= 3 { vcpus.max(1).next_power_of_two().min(4096) } else { 1 };
    CpuidResult { eax: host.eax & 0x3fff | (sharing - 1) << 14 | (ids - 1) << 26, ..host }
}

/// Leaf 8000_001DH, likewise.
fn amd_cache_leaf(host: CpuidResult, vcpus: u32) -> CpuidResult {
    if host.eax & 0x1f == 0 {
        return CpuidResult::default();
    }
    let sharing = if host.eax >> 5 & 7 >= 3 { vcpus.clamp(1, 4096) } else { 1 };
    CpuidResult { eax: host.eax & 0x3fff | (sharing - 1) << 14, ..host }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        testing::{FakePlatform, cpuid_policy},
        vcpu::features::CpuidMask,
    };

    const L1_ECX_HYPERVISOR: u32 = 1 << 31;
    const L1_EDX_HTT: u32 = 1 << 28;
    const X1_ECX_CMP_LEGACY: u32 = 1 << 1;

    fn policy(vcpus: u32, id: u32) -> CpuidPolicy {
        let platform = FakePlatform::new();
        cpuid_policy(&platform, id, vcpus, &CpuidMask::default())
    }

    const RESET: CpuidContext = CpuidContext { cr4: 0, xcr0: 1, apic_base: 0xfee0_0900 };

    #[test]
    fn virtualisation_and_host_only_features_are_hidden() {
        // The fake host answers all ones to every feature leaf.
        let p = policy(1, 0);
        let one = p.leaf(1, 0, || RESET);
        assert_eq!(one.ecx & (1 << 5 | 1 << 3 | 1 << 6 | 1 << 15), 0, "VMX, MONITOR, SMX, PDCM");
        assert_eq!(p.leaf(0x8000_0001, 0, || RESET).ecx & (1 << 2 | 1 << 12 | 1 << 23), 0, "SVM, SKINIT, PERFCTR");
        assert_eq!(p.leaf(0xa, 0, || RESET), CpuidResult::default(), "no performance counters");
        assert_eq!(p.leaf(5, 0, || RESET), CpuidResult::default(), "no MWAIT");
        assert_ne!(one.ecx & L1_ECX_HYPERVISOR, 0);
        assert_eq!(p.cr4_allowed() & (Cr4::VMXE | Cr4::SMXE).bits(), 0);
    }

    #[test]
    fn osxsave_follows_cr4() {
        let p = policy(1, 0);
        assert_eq!(p.leaf(1, 0, || RESET).ecx & L1_ECX_OSXSAVE, 0);
        let on = CpuidContext { cr4: Cr4::OSXSAVE.bits(), ..RESET };
        assert_ne!(p.leaf(1, 0, || on).ecx & L1_ECX_OSXSAVE, 0);
    }

    #[test]
    fn topology_is_consistent() {
        let p = policy(4, 3);
        assert_eq!(p.leaf(1, 0, || RESET).ebx >> 24, 3);
        assert_eq!(p.leaf(1, 0, || RESET).ebx >> 16 & 0xff, 4);
        assert_eq!(p.leaf(0xb, 1, || RESET), CpuidResult { eax: 2, ebx: 4, ecx: 2 << 8 | 1, edx: 3 });
        assert_eq!(p.leaf(0xb, 0, || RESET).edx, 3);
        assert_ne!(p.leaf(1, 0, || RESET).edx & L1_EDX_HTT, 0);
        assert_eq!(policy(1, 0).leaf(1, 0, || RESET).edx & L1_EDX_HTT, 0);
    }

    #[test]
    fn every_leaf_says_the_same_of_three_cores() {
        let intel = policy(3, 2);
        assert_eq!(intel.leaf(1, 0, || RESET).ebx >> 16, 2 << 8 | 4, "four APIC ids");
        assert_eq!(intel.leaf(0xb, 1, || RESET), CpuidResult { eax: 2, ebx: 3, ecx: 2 << 8 | 1, edx: 2 });
        // The fake host's caches are of level 7, which all cores share.
        assert_eq!(intel.leaf(4, 0, || RESET).eax >> 14, 3 << 12 | 3);
        assert_eq!(intel.leaf(0x8000_0008, 0, || RESET).ecx, 0);

        let platform = FakePlatform::amd();
        let amd = cpuid_policy(&platform, 2, 3, &CpuidMask::default());
        assert_eq!(amd.leaf(1, 0, || RESET).ebx >> 16, 2 << 8 | 3, "three processors");
        assert_eq!(amd.leaf(0xb, 1, || RESET), intel.leaf(0xb, 1, || RESET));
        assert_eq!(amd.leaf(0x8000_0008, 0, || RESET).ecx, 2 << 12 | 2);
        assert_eq!(amd.leaf(0x8000_001d, 0, || RESET).eax >> 14 & 0xfff, 2);
        assert_eq!(amd.leaf(0x8000_001e, 0, || RESET), CpuidResult { eax: 2, ebx: 2, ecx: 0, edx: 0 });
        assert_ne!(amd.leaf(0x8000_0001, 0, || RESET).ecx & X1_ECX_CMP_LEGACY, 0);
    }

    #[test]
    fn tsc_frequency_leaves_agree() {
        let p = policy(1, 0);
        let l = p.leaf(0x15, 0, || RESET);
        let tsc_khz = u64::from(l.ecx) / 1000 * u64::from(l.ebx) / u64::from(l.eax);
        assert_eq!(tsc_khz, u64::from(p.leaf(0x4000_0010, 0, || RESET).eax));
    }

    #[test]
    fn every_leaf_has_an_answer() {
        let p = policy(2, 1);
        for leaf in (0..0x40).chain(0x4000_0000..0x4000_0120).chain(0x8000_0000..0x8000_0040).chain([u32::MAX]) {
            for subleaf in [0, 1, 2, 31, 32, 63, u32::MAX] {
                let _ = p.leaf(leaf, subleaf, || RESET);
            }
        }
    }
}
