//! What this CPU's VT-x can do, and which controls Bulkhead runs with: pure functions from the raw capability MSRs.
//!
//! Manual: see [`super::spec`]. Capability MSRs: appendix A.

use super::spec::{
    EntryControls, ExitControls, PinbasedControls, PrimaryControls, SecondaryControls, ept_vpid, feature_control, msr,
};
use x86defs::VirtFeature;

/// Why Bulkhead cannot run guests on this CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unsupported {
    /// CPUID does not report VMX.
    NoVmx,
    /// IA32_FEATURE_CONTROL is locked with VMX off: only the firmware's setup can change that. The MSR's value.
    LockedByFirmware(u64),
    /// A control, or a property of EPT, that Bulkhead cannot do without.
    Missing(&'static str),
    /// VMXON failed on this CPU.
    Vmxon,
    /// No memory for a VMXON region.
    OutOfMemory,
    /// This CPU's capabilities are not the boot CPU's, for which the controls were chosen.
    Different,
}

impl core::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoVmx => write!(f, "this CPU does not have VT-x"),
            Self::LockedByFirmware(value) => {
                write!(
                    f,
                    "VT-x is locked off by the firmware (IA32_FEATURE_CONTROL = {value:#x}): enable it in the firmware's setup"
                )
            }
            Self::Missing(name) => write!(f, "VT-x of this CPU lacks {name}"),
            Self::Vmxon => write!(f, "VMXON failed"),
            Self::OutOfMemory => write!(f, "no memory for a VMXON region"),
            Self::Different => write!(f, "VT-x of this CPU differs from the boot CPU's"),
        }
    }
}

/// What to do with IA32_FEATURE_CONTROL (25.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FeatureControl {
    /// VMXON is allowed.
    Ready,
    /// The firmware has left it open: this value allows VMXON, and locks it.
    Write(u64),
}

/// Decides what to do with the raw value of IA32_FEATURE_CONTROL.
///
/// # Errors
/// [`Unsupported::LockedByFirmware`].
pub const fn feature_control(raw: u64) -> Result<FeatureControl, Unsupported> {
    if raw & feature_control::LOCK == 0 {
        Ok(FeatureControl::Write(raw | feature_control::VMX_OUTSIDE_SMX | feature_control::LOCK))
    } else if raw & feature_control::VMX_OUTSIDE_SMX != 0 {
        Ok(FeatureControl::Ready)
    } else {
        Err(Unsupported::LockedByFirmware(raw))
    }
}

/// The allowed settings of one control word: a bit set in the low half must be 1, a bit clear in the high half must be 0 (A.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Allowed(pub u64);

impl Allowed {
    const fn must_be_one(self) -> u32 {
        self.0 as u32
    }
    const fn may_be_one(self) -> u32 {
        (self.0 >> 32) as u32
    }
    /// True if all these bits can be set.
    #[must_use]
    pub const fn can_set(self, bits: u32) -> bool {
        self.may_be_one() & bits == bits
    }
}

/// The capability MSRs as read. Those that a CPU does not have are zero: they allow nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RawCapabilities {
    pub basic: u64,
    pub pin: Allowed,
    pub primary: Allowed,
    pub secondary: Allowed,
    pub exit: Allowed,
    pub entry: Allowed,
    pub misc: u64,
    pub cr0_fixed: [u64; 2],
    pub cr4_fixed: [u64; 2],
    pub ept_vpid: u64,
    pub vmfunc: u64,
}

impl RawCapabilities {
    /// Reads the capability MSRs that exist; `rdmsr` is never asked for another one. The CPU must have VMX.
    pub fn read(rdmsr: impl Fn(u32) -> u64) -> Self {
        let basic = rdmsr(msr::BASIC);
        // A.2: bit 55 says that the TRUE control MSRs exist, which let default-1 controls be cleared.
        let exact = basic & 1 << 55 != 0;
        let pick = |plain, exact_index| Allowed(rdmsr(if exact { exact_index } else { plain }));
        let primary = pick(msr::PRIMARY, msr::TRUE_PRIMARY);
        let secondary = if primary.can_set(PrimaryControls::SECONDARY_CONTROLS.bits()) {
            Allowed(rdmsr(msr::SECONDARY))
        } else {
            Allowed::default()
        };
        let ept_or_vpid =
            secondary.can_set(SecondaryControls::ENABLE_EPT.bits()) || secondary.can_set(SecondaryControls::ENABLE_VPID.bits());
        let vmfunc = secondary.can_set(SecondaryControls::ENABLE_VM_FUNCTIONS.bits());
        Self {
            basic,
            pin: pick(msr::PINBASED, msr::TRUE_PINBASED),
            primary,
            secondary,
            exit: pick(msr::EXIT, msr::TRUE_EXIT),
            entry: pick(msr::ENTRY, msr::TRUE_ENTRY),
            misc: rdmsr(msr::MISC),
            cr0_fixed: [rdmsr(msr::CR0_FIXED0), rdmsr(msr::CR0_FIXED1)],
            cr4_fixed: [rdmsr(msr::CR4_FIXED0), rdmsr(msr::CR4_FIXED1)],
            ept_vpid: if ept_or_vpid { rdmsr(msr::EPT_VPID_CAP) } else { 0 },
            vmfunc: if vmfunc { rdmsr(msr::VMFUNC) } else { 0 },
        }
    }

    /// VMCS revision identifier, the first word of every VMCS and of the VMXON region (A.1).
    #[must_use]
    pub const fn revision(&self) -> u32 {
        self.basic as u32 & 0x7fff_ffff
    }
}

/// How to drop translations of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Invalidate {
    /// Those of one VPID, or of one EPT pointer.
    Single,
    /// All that this CPU holds.
    All,
}

/// The controls that every vCPU runs with, and what they imply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Controls {
    pub revision: u32,
    /// The five control words as they are programmed, with bits that have no name here but must be 1.
    pub pin: u32,
    pub primary: u32,
    pub secondary: u32,
    pub exit: u32,
    pub entry: u32,
    /// RDTSC can be made to exit.
    pub rdtsc_exiting: bool,
    /// For a CPU that has no PAUSE-loop exiting.
    pub pause_exiting: bool,
    pub pages_2m: bool,
    pub pages_1g: bool,
    /// EPT keeps accessed and dirty flags.
    pub ept_accessed_dirty: bool,
    pub invept: Invalidate,
    /// `None`: no VPID is used, and every transition drops the guest's linear translations.
    pub invvpid: Option<Invalidate>,
    /// CR0 bits that must be 1 in VMX operation, and that may be 1; without PE and PG, which unrestricted guests are free to clear.
    pub cr0_fixed: [u64; 2],
    pub cr4_fixed: [u64; 2],
    /// Local APICs can be virtualised in x2APIC mode, with [`APIC_PRIMARY`] and [`APIC_SECONDARY`], which are not set in the words above.
    pub virtual_apic: bool,
    /// The same in xAPIC mode, with [`XAPIC_SECONDARY`].
    pub virtual_xapic: bool,
    /// The preemption timer's start value, if the guest's turns are limited: see [`Controls::limit_turns`].
    pub turn: Option<u32>,
}

/// TSC ticks of running, not counting the time that its exits take, after which a guest exits where its turns are limited.
const TURN: u32 = 20_000;

/// What virtualises a local APIC in x2APIC mode, all together (31.1 to 31.5): reads and TPR from the page; EOI, self IPI and delivery by the CPU.
pub const APIC_PRIMARY: PrimaryControls = PrimaryControls::USE_TPR_SHADOW;
pub const APIC_SECONDARY: SecondaryControls = SecondaryControls::from_bits_truncate(
    SecondaryControls::VIRTUALIZE_X2APIC.bits()
        | SecondaryControls::VIRTUALIZE_APIC_REGISTER.bits()
        | SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY.bits(),
);
/// The same in xAPIC mode: TPR, EOI, self IPI and delivery. Other registers exit before the access, so that what a write changes beyond the value is known:
/// APIC-register virtualisation would have the CPU write first.
pub const XAPIC_SECONDARY: SecondaryControls = SecondaryControls::from_bits_truncate(
    SecondaryControls::VIRTUALIZE_APIC.bits() | SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY.bits(),
);
/// What is not needed then: CR8 is the page's TPR.
pub const CR8_PRIMARY: PrimaryControls =
    PrimaryControls::from_bits_truncate(PrimaryControls::CR8_LOAD_EXITING.bits() | PrimaryControls::CR8_STORE_EXITING.bits());

/// One required control: its bit and its name for the message.
type Required = (u32, &'static str);

const PIN_REQUIRED: [Required; 3] = [
    (PinbasedControls::EXTERNAL_INTERRUPT_EXITING.bits(), "external-interrupt exiting"),
    (PinbasedControls::NMI_EXITING.bits(), "NMI exiting"),
    (PinbasedControls::VIRTUAL_NMIS.bits(), "virtual NMIs"),
];

const PRIMARY_REQUIRED: [Required; 10] = [
    (PrimaryControls::SECONDARY_CONTROLS.bits(), "secondary controls"),
    (PrimaryControls::HLT_EXITING.bits(), "HLT exiting"),
    (PrimaryControls::UNCOND_IO_EXITING.bits(), "unconditional I/O exiting"),
    (PrimaryControls::USE_MSR_BITMAPS.bits(), "MSR bitmaps"),
    (PrimaryControls::USE_TSC_OFFSETTING.bits(), "TSC offsetting"),
    (PrimaryControls::CR8_LOAD_EXITING.bits(), "CR8-load exiting"),
    (PrimaryControls::CR8_STORE_EXITING.bits(), "CR8-store exiting"),
    (PrimaryControls::MWAIT_EXITING.bits(), "MWAIT exiting"),
    (PrimaryControls::MONITOR_EXITING.bits(), "MONITOR exiting"),
    (PrimaryControls::RDPMC_EXITING.bits(), "RDPMC exiting"),
];

/// Set only while a window is wanted, so not part of the word that vCPUs start with.
const PRIMARY_ON_DEMAND: [Required; 2] = [
    (PrimaryControls::INTERRUPT_WINDOW_EXITING.bits(), "interrupt-window exiting"),
    (PrimaryControls::NMI_WINDOW_EXITING.bits(), "NMI-window exiting"),
];

const SECONDARY_REQUIRED: [Required; 2] =
    [(SecondaryControls::ENABLE_EPT.bits(), "EPT"), (SecondaryControls::UNRESTRICTED_GUEST.bits(), "unrestricted guest")];

/// Without WBINVD exiting, the guest's WBINVD flushes the host's caches: slow, not wrong. Without RDTSCP, INVPCID or XSAVES the
/// instruction is #UD in the guest, and `hv` hides its CPUID bit.
const SECONDARY_OPTIONAL: SecondaryControls = SecondaryControls::from_bits_truncate(
    SecondaryControls::ENABLE_RDTSCP.bits()
        | SecondaryControls::WBINVD_EXITING.bits()
        | SecondaryControls::PAUSE_LOOP_EXITING.bits()
        | SecondaryControls::ENABLE_INVPCID.bits()
        | SecondaryControls::ENABLE_XSAVES_XRSTORS.bits(),
);

const EXIT_REQUIRED: [Required; 5] = [
    (ExitControls::SAVE_DEBUG_CONTROLS.bits(), "saving of debug controls"),
    (ExitControls::HOST_ADDRESS_SPACE_SIZE.bits(), "a 64-bit host"),
    (ExitControls::ACK_INTERRUPT_ON_EXIT.bits(), "acknowledging interrupts on exit"),
    (ExitControls::SAVE_IA32_EFER.bits(), "saving of EFER"),
    (ExitControls::LOAD_IA32_EFER.bits(), "loading of the host's EFER"),
];

const ENTRY_REQUIRED: [Required; 2] = [
    (EntryControls::LOAD_DEBUG_CONTROLS.bits(), "loading of debug controls"),
    (EntryControls::LOAD_IA32_EFER.bits(), "loading of the guest's EFER"),
];

/// The IA-32e bit follows the guest's mode, so it is required but not set here.
const ENTRY_ON_DEMAND: [Required; 1] = [(EntryControls::IA32E_MODE_GUEST.bits(), "64-bit guests")];

const EPT_REQUIRED: [(u64, &str); 3] = [
    (ept_vpid::WALK_4, "EPT with four levels"),
    (ept_vpid::WRITE_BACK, "EPT tables in write-back memory"),
    (ept_vpid::INVEPT, "INVEPT"),
];

/// IA32_VMX_MISC: an exit stores EFER.LMA into the "IA-32e mode guest" entry control (A.6).
const MISC_STORES_LMA: u64 = 1 << 5;

/// Checks that every required bit can be set; returns all of them together.
fn require(allowed: Allowed, list: &[Required]) -> Result<u32, Unsupported> {
    list.iter().try_fold(
        0,
        |sum, &(bit, name)| {
            if allowed.can_set(bit) { Ok(sum | bit) } else { Err(Unsupported::Missing(name)) }
        },
    )
}

/// The word to program: what is wanted, what the CPU insists on, and nothing that it lacks.
const fn settle(allowed: Allowed, required: u32, optional: u32) -> u32 {
    (required | optional & allowed.may_be_one()) | allowed.must_be_one()
}

impl Controls {
    /// Chooses the controls for a CPU with these capabilities. Sets none that the CPU lacks, whatever else it claims to be.
    ///
    /// # Errors
    /// [`Unsupported::Missing`] names the first control that Bulkhead cannot do without.
    pub fn choose(raw: &RawCapabilities) -> Result<Self, Unsupported> {
        let pin = settle(raw.pin, require(raw.pin, &PIN_REQUIRED)?, 0);
        let primary = settle(raw.primary, require(raw.primary, &PRIMARY_REQUIRED)?, 0);
        require(raw.primary, &PRIMARY_ON_DEMAND)?;

        let required = require(raw.secondary, &SECONDARY_REQUIRED)?;
        for (bit, name) in EPT_REQUIRED {
            if raw.ept_vpid & bit == 0 {
                return Err(Unsupported::Missing(name));
            }
        }
        // The guest switches paging on and off without an exit, so the mode for the next entry must come from the CPU.
        if raw.misc & MISC_STORES_LMA == 0 {
            return Err(Unsupported::Missing("storing of EFER.LMA on exit"));
        }
        let invept = pick(raw.ept_vpid, ept_vpid::INVEPT_SINGLE, ept_vpid::INVEPT_ALL)
            .ok_or(Unsupported::Missing("a usable type of INVEPT"))?;
        // A VPID whose translations cannot be dropped is of no use.
        let invvpid = if raw.secondary.can_set(SecondaryControls::ENABLE_VPID.bits()) && raw.ept_vpid & ept_vpid::INVVPID != 0 {
            pick(raw.ept_vpid, ept_vpid::INVVPID_SINGLE, ept_vpid::INVVPID_ALL)
        } else {
            None
        };
        let vpid = if invvpid.is_some() { SecondaryControls::ENABLE_VPID.bits() } else { 0 };
        let secondary = settle(raw.secondary, required, SECONDARY_OPTIONAL.bits() | vpid);

        // PAT is switched only if all three parts can be; else the guest's PAT is kept in memory alone, which is harmless because
        // EPT's memory types come from the host.
        let pat_exit = (ExitControls::SAVE_IA32_PAT | ExitControls::LOAD_IA32_PAT).bits();
        let pat_entry = EntryControls::LOAD_IA32_PAT.bits();
        let pat = raw.exit.can_set(pat_exit) && raw.entry.can_set(pat_entry);
        let exit = settle(raw.exit, require(raw.exit, &EXIT_REQUIRED)?, if pat { pat_exit } else { 0 });
        let entry = settle(raw.entry, require(raw.entry, &ENTRY_REQUIRED)?, if pat { pat_entry } else { 0 });
        require(raw.entry, &ENTRY_ON_DEMAND)?;

        // 25.8 and A.7: with unrestricted guest, PE and PG need not be 1.
        let pe_pg = (x86defs::Cr0::PE | x86defs::Cr0::PG).bits();
        Ok(Self {
            revision: raw.revision(),
            pin,
            primary,
            secondary,
            exit,
            entry,
            rdtsc_exiting: raw.primary.can_set(PrimaryControls::RDTSC_EXITING.bits()),
            pause_exiting: raw.primary.can_set(PrimaryControls::PAUSE_EXITING.bits())
                && secondary & SecondaryControls::PAUSE_LOOP_EXITING.bits() == 0,
            pages_2m: raw.ept_vpid & ept_vpid::PAGES_2M != 0,
            pages_1g: raw.ept_vpid & ept_vpid::PAGES_1G != 0,
            ept_accessed_dirty: raw.ept_vpid & ept_vpid::ACCESSED_DIRTY != 0,
            invept,
            invvpid,
            cr0_fixed: [raw.cr0_fixed[0] & !pe_pg, raw.cr0_fixed[1]],
            cr4_fixed: raw.cr4_fixed,
            virtual_apic: raw.primary.can_set(APIC_PRIMARY.bits()) && raw.secondary.can_set(APIC_SECONDARY.bits()),
            virtual_xapic: raw.primary.can_set(APIC_PRIMARY.bits()) && raw.secondary.can_set(XAPIC_SECONDARY.bits()),
            turn: None,
        })
    }

    /// Makes the preemption timer end a guest's turn after [`TURN`] ticks of running (27.5.1): for a CPU on which an external interrupt does not
    /// always end it. Does nothing if the CPU has no preemption timer, or cannot save its value on exit, without which frequent exits would start
    /// it anew each time.
    pub fn limit_turns(&mut self, raw: &RawCapabilities) {
        let (pin, exit) = (PinbasedControls::VMX_PREEMPTION_TIMER.bits(), ExitControls::SAVE_VMX_PREEMPTION_TIMER.bits());
        if raw.pin.can_set(pin) && raw.exit.can_set(exit) {
            self.pin |= pin;
            self.exit |= exit;
            // A.6: the timer counts down each time that this bit of the TSC changes.
            self.turn = Some(TURN >> (raw.misc & 0x1f));
        }
    }

    /// True if the guest's PAT is switched by hardware.
    #[must_use]
    pub const fn pat(&self) -> bool {
        self.entry & EntryControls::LOAD_IA32_PAT.bits() != 0
    }

    /// True if the guest runs with this secondary control.
    #[must_use]
    pub const fn uses(&self, control: SecondaryControls) -> bool {
        self.secondary & control.bits() != 0
    }

    /// The features for the report at start: which ones the CPU has, which ones are used.
    #[must_use]
    pub fn features(&self, raw: &RawCapabilities) -> [VirtFeature; 24] {
        let secondary =
            |name, bit: SecondaryControls| VirtFeature { name, present: raw.secondary.can_set(bit.bits()), used: self.uses(bit) };
        let plain = |name, present, used| VirtFeature { name, present, used: present && used };
        let apic = |name, bit: SecondaryControls| plain(name, raw.secondary.can_set(bit.bits()), self.virtual_apic);
        let primary = |bit: PrimaryControls| raw.primary.can_set(bit.bits());
        let pin = |bit: PinbasedControls| raw.pin.can_set(bit.bits());
        let ept = |bit| raw.ept_vpid & bit != 0;
        [
            secondary("EPT", SecondaryControls::ENABLE_EPT),
            plain("EPT 2M pages", self.pages_2m, true),
            plain("EPT 1G pages", self.pages_1g, true),
            plain("EPT A/D", self.ept_accessed_dirty, false),
            plain("EPT execute-only", ept(ept_vpid::EXECUTE_ONLY), false),
            secondary("VPID", SecondaryControls::ENABLE_VPID),
            secondary("unrestricted guest", SecondaryControls::UNRESTRICTED_GUEST),
            plain("virtual NMIs", pin(PinbasedControls::VIRTUAL_NMIS), true),
            plain("PAT switching", self.pat(), true),
            plain("TPR shadow", primary(PrimaryControls::USE_TPR_SHADOW), self.virtual_apic || self.virtual_xapic),
            apic("APIC-register virtualisation", SecondaryControls::VIRTUALIZE_APIC_REGISTER),
            plain(
                "virtual-interrupt delivery",
                raw.secondary.can_set(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY.bits()),
                self.virtual_apic || self.virtual_xapic,
            ),
            plain("virtual APIC accesses", raw.secondary.can_set(XAPIC_SECONDARY.bits()), self.virtual_xapic),
            apic("virtual x2APIC mode", SecondaryControls::VIRTUALIZE_X2APIC),
            plain("posted interrupts", pin(PinbasedControls::POSTED_INTERRUPTS), false),
            plain("preemption timer", pin(PinbasedControls::VMX_PREEMPTION_TIMER), self.turn.is_some()),
            secondary("PAUSE-loop exiting", SecondaryControls::PAUSE_LOOP_EXITING),
            secondary("WBINVD exiting", SecondaryControls::WBINVD_EXITING),
            secondary("RDTSCP", SecondaryControls::ENABLE_RDTSCP),
            secondary("INVPCID", SecondaryControls::ENABLE_INVPCID),
            secondary("XSAVES", SecondaryControls::ENABLE_XSAVES_XRSTORS),
            secondary("VMCS shadowing", SecondaryControls::VMCS_SHADOWING),
            secondary("PML", SecondaryControls::ENABLE_PML),
            secondary("TSC scaling", SecondaryControls::USE_TSC_SCALING),
        ]
    }
}

/// The narrower way of invalidation, if the CPU has one at all.
const fn pick(capabilities: u64, single: u64, all: u64) -> Option<Invalidate> {
    if capabilities & single != 0 {
        Some(Invalidate::Single)
    } else if capabilities & all != 0 {
        Some(Invalidate::All)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeMap, vec::Vec};

    /// Bochs 2.7, Haswell: a full-featured CPU.
    fn haswell() -> BTreeMap<u32, u64> {
        BTreeMap::from([
            (0x480, 0x00d8_1000_0000_002b),
            (0x481, 0x0000_007f_0000_0016),
            (0x482, 0xf7f9_fffe_0401_e172),
            (0x483, 0x007f_ffff_0003_6dff),
            (0x484, 0x0000_ffff_0000_11ff),
            (0x485, 0x2004_01e0),
            (0x486, 0x8000_0021),
            (0x487, 0xffff_ffff),
            (0x488, 0x2000),
            (0x489, 0x0017_67ff),
            (0x48b, 0x0004_7fff_0000_0000),
            (0x48c, 0x0000_0f01_0633_4141),
            (0x48d, 0x0000_007f_0000_0016),
            (0x48e, 0xf7f9_fffe_0400_6172),
            (0x48f, 0x007f_ffff_0003_6dfb),
            (0x490, 0x0000_ffff_0000_11fb),
            (0x491, 1),
        ])
    }

    /// What KVM offers its guests by default: EPT, VPID, PAT and EFER switching, but no preemption timer saving, XSAVES or APICv.
    fn nested_kvm() -> BTreeMap<u32, u64> {
        let mut msrs = haswell();
        msrs.insert(0x480, 0x00da_0400_11e5_7ed0);
        msrs.insert(0x48d, 0x0000_003f_0000_0016);
        msrs.insert(0x48e, 0xfff9_fffe_0400_6172);
        msrs.insert(0x48b, 0x0000_10fb_0000_0000);
        msrs.insert(0x48f, 0x003f_ffff_0003_6dfb);
        msrs.insert(0x48c, 0x0000_0f01_0633_4141 & !ept_vpid::PAGES_1G & !ept_vpid::ACCESSED_DIRTY);
        msrs.remove(&0x491);
        msrs
    }

    fn read(msrs: &BTreeMap<u32, u64>) -> RawCapabilities {
        RawCapabilities::read(|index| *msrs.get(&index).unwrap_or_else(|| panic!("read of MSR {index:#x}, which does not exist")))
    }

    /// No word may have a bit that the CPU forbids, or lack one that it demands (28.2.1.1).
    fn assert_enterable(raw: &RawCapabilities, c: &Controls) {
        for (allowed, word) in
            [(raw.pin, c.pin), (raw.primary, c.primary), (raw.secondary, c.secondary), (raw.exit, c.exit), (raw.entry, c.entry)]
        {
            assert_eq!(word & allowed.must_be_one(), allowed.must_be_one());
            assert_eq!(word & !allowed.may_be_one(), 0);
        }
    }

    #[test]
    fn haswell_gets_everything() {
        let raw = read(&haswell());
        let c = Controls::choose(&raw).unwrap();
        assert_enterable(&raw, &c);
        assert_eq!(c.revision, 0x2b);
        // CR3 accesses do not exit, because the TRUE controls are used; nor do INVLPG and RDTSC.
        assert_eq!(c.primary, 0xb518_6dfa);
        assert_eq!(c.secondary, 0x14ea);
        assert_eq!((c.invept, c.invvpid), (Invalidate::Single, Some(Invalidate::Single)));
        assert!(c.pages_2m && c.pages_1g && c.ept_accessed_dirty && c.pat());
        assert_eq!(c.cr0_fixed, [0x20, 0xffff_ffff]);
        let features = c.features(&raw);
        let find = |name| *features.iter().find(|f| f.name == name).unwrap();
        assert_eq!(find("VPID"), VirtFeature { name: "VPID", present: true, used: true });
        assert_eq!(
            find("virtual-interrupt delivery"),
            VirtFeature { name: "virtual-interrupt delivery", present: true, used: true }
        );
        assert!(!find("posted interrupts").present && !find("PML").present && !find("XSAVES").used);
    }

    #[test]
    fn local_apics_are_virtualised_by_all_that_it_takes_or_not_at_all() {
        let without = |msr, bit: u32| {
            let mut msrs = haswell();
            *msrs.get_mut(&msr).unwrap() &= !(u64::from(bit) << 32);
            Controls::choose(&read(&msrs)).unwrap().virtual_apic
        };
        assert!(without(0x48b, 0));
        assert!(!without(0x48e, APIC_PRIMARY.bits()));
        for bit in [
            SecondaryControls::VIRTUALIZE_X2APIC,
            SecondaryControls::VIRTUALIZE_APIC_REGISTER,
            SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY,
        ] {
            assert!(!without(0x48b, bit.bits()), "{bit:?}");
        }
        // What is switched with them may be.
        let raw = read(&haswell());
        assert_eq!(raw.primary.must_be_one() & CR8_PRIMARY.bits(), 0);
    }

    #[test]
    fn nested_under_kvm() {
        let raw = read(&nested_kvm());
        let c = Controls::choose(&raw).unwrap();
        assert_enterable(&raw, &c);
        assert_eq!(c.revision, 0x11e5_7ed0);
        assert!(c.uses(SecondaryControls::ENABLE_INVPCID) && c.uses(SecondaryControls::ENABLE_VPID));
        assert!(!c.uses(SecondaryControls::PAUSE_LOOP_EXITING) && !c.uses(SecondaryControls::ENABLE_XSAVES_XRSTORS));
        assert!(!c.pages_1g && !c.ept_accessed_dirty);
    }

    #[test]
    fn without_true_controls_the_default_ones_stay() {
        let mut msrs = haswell();
        *msrs.get_mut(&0x480).unwrap() &= !(1 << 55);
        for index in 0x48d..=0x490 {
            msrs.remove(&index);
        }
        let raw = read(&msrs);
        let c = Controls::choose(&raw).unwrap();
        assert_enterable(&raw, &c);
        let cr3 = (PrimaryControls::CR3_LOAD_EXITING | PrimaryControls::CR3_STORE_EXITING).bits();
        assert_eq!(c.primary & cr3, cr3);
    }

    #[test]
    fn optional_parts_fall_back() {
        let mut msrs = haswell();
        // No single-context INVVPID, no PAT switching on exit.
        *msrs.get_mut(&0x48c).unwrap() &= !(ept_vpid::INVVPID_SINGLE | ept_vpid::INVEPT_SINGLE);
        *msrs.get_mut(&0x48f).unwrap() &= !(u64::from(ExitControls::SAVE_IA32_PAT.bits()) << 32);
        let raw = read(&msrs);
        let c = Controls::choose(&raw).unwrap();
        assert_enterable(&raw, &c);
        assert_eq!((c.invept, c.invvpid), (Invalidate::All, Some(Invalidate::All)));
        assert!(!c.pat() && c.exit & ExitControls::LOAD_IA32_PAT.bits() == 0);
        // A VPID that cannot be invalidated is not used.
        *msrs.get_mut(&0x48c).unwrap() &= !ept_vpid::INVVPID;
        let c = Controls::choose(&read(&msrs)).unwrap();
        assert!(c.invvpid.is_none() && !c.uses(SecondaryControls::ENABLE_VPID));
    }

    #[test]
    fn turns_are_limited_only_with_a_timer_that_goes_on() {
        let raw = read(&haswell());
        let mut c = Controls::choose(&raw).unwrap();
        c.limit_turns(&raw);
        assert_enterable(&raw, &c);
        assert_eq!(c.turn, Some(TURN >> (raw.misc & 0x1f)));
        let mut msrs = haswell();
        *msrs.get_mut(&0x48f).unwrap() &= !(u64::from(ExitControls::SAVE_VMX_PREEMPTION_TIMER.bits()) << 32);
        let raw = read(&msrs);
        let mut c = Controls::choose(&raw).unwrap();
        let before = (c.pin, c.exit);
        c.limit_turns(&raw);
        assert_eq!((c.pin, c.exit, c.turn), (before.0, before.1, None));
    }

    #[test]
    fn every_missing_requirement_is_named() {
        let words: [(u32, &[Required]); 7] = [
            (0x48d, &PIN_REQUIRED),
            (0x48e, &PRIMARY_REQUIRED),
            (0x48e, &PRIMARY_ON_DEMAND),
            (0x48b, &SECONDARY_REQUIRED),
            (0x48f, &EXIT_REQUIRED),
            (0x490, &ENTRY_REQUIRED),
            (0x490, &ENTRY_ON_DEMAND),
        ];
        let mut named = Vec::new();
        for (index, list) in words {
            for &(bit, name) in list {
                let mut msrs = haswell();
                *msrs.get_mut(&index).unwrap() &= !(u64::from(bit) << 32 | u64::from(bit));
                let error = Controls::choose(&read(&msrs)).unwrap_err();
                assert_eq!(error, Unsupported::Missing(name));
                assert!(!named.contains(&name));
                named.push(name);
            }
        }
        for (bit, name) in EPT_REQUIRED {
            let mut msrs = haswell();
            *msrs.get_mut(&0x48c).unwrap() &= !bit;
            assert_eq!(Controls::choose(&read(&msrs)), Err(Unsupported::Missing(name)));
        }
    }

    #[test]
    fn the_mode_must_come_back_from_an_exit() {
        let mut msrs = haswell();
        *msrs.get_mut(&0x485).unwrap() &= !(1 << 5);
        assert_eq!(Controls::choose(&read(&msrs)), Err(Unsupported::Missing("storing of EFER.LMA on exit")));
    }

    #[test]
    fn a_cpu_without_secondary_controls_is_not_asked_for_them() {
        let mut msrs = haswell();
        *msrs.get_mut(&0x48e).unwrap() &= !(u64::from(PrimaryControls::SECONDARY_CONTROLS.bits()) << 32);
        for index in [0x48b, 0x48c, 0x491] {
            msrs.remove(&index);
        }
        assert_eq!(Controls::choose(&read(&msrs)), Err(Unsupported::Missing("secondary controls")));
    }

    #[test]
    fn feature_control_is_locked_on_if_open() {
        assert_eq!(feature_control(0x5), Ok(FeatureControl::Ready));
        assert_eq!(feature_control(0xff07), Ok(FeatureControl::Ready));
        assert_eq!(feature_control(0), Ok(FeatureControl::Write(5)));
        assert_eq!(feature_control(0x4_0000), Ok(FeatureControl::Write(0x4_0005)));
        assert_eq!(feature_control(1), Err(Unsupported::LockedByFirmware(1)));
        // Allowed inside SMX only.
        assert_eq!(feature_control(3), Err(Unsupported::LockedByFirmware(3)));
    }
}
