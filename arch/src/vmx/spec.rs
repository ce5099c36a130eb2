//! Layouts that the `x86` crate does not have: exit reasons, interruption information, interruptibility, capability bits.
//!
//! Manual: Intel SDM vol. 3, order number 325384 rev. 085: chapters 25 (introduction to VMX), 26 (VMCS), 27 (non-root
//! operation), 28 (entries), 29 (exits), 30 (address translation), 31 (APIC virtualisation), 32 (instructions), appendices A to C.
//! The other files of this module cite the same revision.

use x86defs::vector;

pub use x86::vmx::vmcs::control::{EntryControls, ExitControls, PinbasedControls, PrimaryControls, SecondaryControls};
pub use x86::vmx::vmcs::{control, guest, host, ro};

/// Indices of the capability MSRs (appendix A).
pub mod msr {
    pub const BASIC: u32 = 0x480;
    pub const PINBASED: u32 = 0x481;
    pub const PRIMARY: u32 = 0x482;
    pub const EXIT: u32 = 0x483;
    pub const ENTRY: u32 = 0x484;
    pub const MISC: u32 = 0x485;
    pub const CR0_FIXED0: u32 = 0x486;
    pub const CR0_FIXED1: u32 = 0x487;
    pub const CR4_FIXED0: u32 = 0x488;
    pub const CR4_FIXED1: u32 = 0x489;
    pub const SECONDARY: u32 = 0x48b;
    pub const EPT_VPID_CAP: u32 = 0x48c;
    pub const TRUE_PINBASED: u32 = 0x48d;
    pub const TRUE_PRIMARY: u32 = 0x48e;
    pub const TRUE_EXIT: u32 = 0x48f;
    pub const TRUE_ENTRY: u32 = 0x490;
    pub const VMFUNC: u32 = 0x491;
}

/// Basic exit reasons (appendix C).
pub mod reason {
    pub const EXCEPTION_OR_NMI: u32 = 0;
    pub const EXTERNAL_INTERRUPT: u32 = 1;
    pub const TRIPLE_FAULT: u32 = 2;
    pub const INIT: u32 = 3;
    pub const SIPI: u32 = 4;
    pub const INTERRUPT_WINDOW: u32 = 7;
    pub const NMI_WINDOW: u32 = 8;
    pub const TASK_SWITCH: u32 = 9;
    pub const CPUID: u32 = 10;
    pub const GETSEC: u32 = 11;
    pub const HLT: u32 = 12;
    pub const INVD: u32 = 13;
    pub const INVLPG: u32 = 14;
    pub const RDPMC: u32 = 15;
    pub const RDTSC: u32 = 16;
    pub const RSM: u32 = 17;
    pub const VMCALL: u32 = 18;
    /// First of the VMX instructions VMCLEAR, VMLAUNCH, VMPTRLD, VMPTRST, VMREAD, VMRESUME, VMWRITE, VMXOFF, VMXON.
    pub const VMCLEAR: u32 = 19;
    pub const VMXON: u32 = 27;
    pub const CR_ACCESS: u32 = 28;
    pub const DR_ACCESS: u32 = 29;
    pub const IO: u32 = 30;
    pub const RDMSR: u32 = 31;
    pub const WRMSR: u32 = 32;
    pub const ENTRY_GUEST_STATE: u32 = 33;
    pub const ENTRY_MSR_LOADING: u32 = 34;
    pub const MWAIT: u32 = 36;
    pub const MONITOR: u32 = 39;
    pub const PAUSE: u32 = 40;
    pub const ENTRY_MACHINE_CHECK: u32 = 41;
    pub const APIC_ACCESS: u32 = 44;
    pub const VIRTUALISED_EOI: u32 = 45;
    pub const EPT_VIOLATION: u32 = 48;
    pub const EPT_MISCONFIGURATION: u32 = 49;
    pub const INVEPT: u32 = 50;
    pub const RDTSCP: u32 = 51;
    pub const PREEMPTION_TIMER: u32 = 52;
    pub const INVVPID: u32 = 53;
    pub const WBINVD: u32 = 54;
    pub const XSETBV: u32 = 55;
    pub const APIC_WRITE: u32 = 56;
    pub const INVPCID: u32 = 58;
    pub const VMFUNC: u32 = 59;
    pub const ENCLS: u32 = 60;
    pub const XSAVES: u32 = 63;
    pub const XRSTORS: u32 = 64;
    pub const UMWAIT: u32 = 67;
    pub const TPAUSE: u32 = 68;
    pub const LOADIWKEY: u32 = 69;

    /// Bit 31 of the exit-reason field: the entry failed (26.9.1).
    pub const ENTRY_FAILURE: u32 = 1 << 31;
}

/// VM-exit, VM-entry and IDT-vectoring interruption information (26.8.3, 26.9.2, 26.9.3): vector in bits 7:0, type in 10:8.
pub mod interruption {
    pub const ERROR_CODE_VALID: u32 = 1 << 11;
    /// Bit 12 of the VM-exit form, and of the exit qualification of an EPT violation: the IRET that faulted had ended the blocking
    /// of NMIs (29.2.3).
    pub const NMI_UNBLOCKING: u32 = 1 << 12;
    pub const VALID: u32 = 1 << 31;

    pub const EXTERNAL: u32 = 0;
    pub const NMI: u32 = 2;
    pub const HARDWARE_EXCEPTION: u32 = 3;
    /// INT n.
    pub const SOFTWARE_INTERRUPT: u32 = 4;
    /// INT1.
    pub const PRIVILEGED_SOFTWARE_EXCEPTION: u32 = 5;
    /// INT3 and INTO.
    pub const SOFTWARE_EXCEPTION: u32 = 6;

    #[must_use]
    pub const fn vector(info: u32) -> u8 {
        info as u8
    }
    #[must_use]
    pub const fn kind(info: u32) -> u32 {
        info >> 8 & 7
    }
}

/// Guest interruptibility state (26.4.2).
pub mod interruptibility {
    pub const STI: u32 = 1 << 0;
    pub const MOV_SS: u32 = 1 << 1;
    pub const SHADOW: u32 = STI | MOV_SS;
    pub const NMI: u32 = 1 << 3;
}

/// Pending debug exceptions (26.4.2): a single-step trap is pending.
pub const PENDING_DEBUG_BS: u64 = 1 << 14;

/// Access rights of an unusable segment (26.4.1).
pub const UNUSABLE: u32 = 1 << 16;

/// IA32_VMX_EPT_VPID_CAP (A.10).
pub mod ept_vpid {
    pub const EXECUTE_ONLY: u64 = 1 << 0;
    pub const WALK_4: u64 = 1 << 6;
    pub const WRITE_BACK: u64 = 1 << 14;
    pub const PAGES_2M: u64 = 1 << 16;
    pub const PAGES_1G: u64 = 1 << 17;
    pub const INVEPT: u64 = 1 << 20;
    pub const ACCESSED_DIRTY: u64 = 1 << 21;
    pub const INVEPT_SINGLE: u64 = 1 << 25;
    pub const INVEPT_ALL: u64 = 1 << 26;
    pub const INVVPID: u64 = 1 << 32;
    pub const INVVPID_SINGLE: u64 = 1 << 41;
    pub const INVVPID_ALL: u64 = 1 << 42;
}

/// IA32_FEATURE_CONTROL (25.7).
pub mod feature_control {
    pub const LOCK: u64 = 1 << 0;
    pub const VMX_OUTSIDE_SMX: u64 = 1 << 2;
}

/// The exceptions that end an entry. #DB and #AC, because their delivery can raise them again without end, and no interrupt gets in
/// between: a guest could stop the CPU for good (29.1 lets only an intercept break the circle). #MC, because it is the host's.
pub const EXCEPTION_BITMAP: u32 = 1 << vector::DB | 1 << vector::AC | 1 << vector::MC;
