//! The VMX instructions. VMREAD and VMWRITE are one instruction here: what can fail is checked where it can fail.
//!
//! Manual: see [`super::spec`], chapter 32.

use core::arch::asm;
use x86defs::Hpa;

/// VMfailInvalid or VMfailValid (32.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failed;

/// Runs a VMX instruction with one memory operand, and tells whether it succeeded: CF and ZF are both clear then.
macro_rules! with_pointer {
    ($instruction:literal, $pointer:expr) => {{
        let failed: u8;
        let pointer: u64 = $pointer;
        asm!(concat!($instruction, " [{}]"), "setbe {}", in(reg) &raw const pointer, out(reg_byte) failed, options(nostack));
        if failed == 0 { Ok(()) } else { Err(Failed) }
    }};
}

/// Enters VMX operation.
///
/// # Safety
/// CPL 0 with CR4.VMXE set; `region` is a page for this CPU alone whose first word is the revision identifier (26.11.5).
pub unsafe fn vmxon(region: Hpa) -> Result<(), Failed> {
    // SAFETY: the caller's promise.
    unsafe { with_pointer!("vmxon", region.0) }
}

/// Writes the VMCS back to its page and makes it inactive and clear.
///
/// # Safety
/// VMX operation; `vmcs` is a VMCS page that is not active on another CPU.
pub unsafe fn vmclear(vmcs: Hpa) -> Result<(), Failed> {
    // SAFETY: the caller's promise.
    unsafe { with_pointer!("vmclear", vmcs.0) }
}

/// Makes the VMCS current on this CPU.
///
/// # Safety
/// As for [`vmclear`]; its first word is the revision identifier.
pub unsafe fn vmptrld(vmcs: Hpa) -> Result<(), Failed> {
    // SAFETY: the caller's promise.
    unsafe { with_pointer!("vmptrld", vmcs.0) }
}

/// The current VMCS, if there is one.
///
/// # Safety
/// VMX operation.
pub unsafe fn vmptrst() -> Option<Hpa> {
    let mut pointer = u64::MAX;
    // SAFETY: VMPTRST writes eight bytes to the local variable.
    unsafe { asm!("vmptrst [{}]", in(reg) &raw mut pointer, options(nostack)) };
    (pointer != u64::MAX).then_some(Hpa(pointer))
}

/// Reads a field of the current VMCS. A field that this CPU does not have gives an arbitrary value.
///
/// # Safety
/// VMX operation with a current VMCS.
#[inline(always)]
#[must_use]
pub unsafe fn vmread(field: u32) -> u64 {
    let value;
    // SAFETY: VMREAD only writes the register. Not `pure`: entries change what it returns.
    unsafe { asm!("vmread {}, {}", out(reg) value, in(reg) u64::from(field), options(nomem, nostack)) };
    value
}

/// Writes a field of the current VMCS. Without effect if this CPU does not have it.
///
/// # Safety
/// VMX operation with a current VMCS; the value must be right for the field: a wrong host state takes the host down.
#[inline(always)]
pub unsafe fn vmwrite(field: u32, value: u64) {
    // SAFETY: VMWRITE changes nothing but the VMCS; what that leads to is the caller's promise.
    unsafe { asm!("vmwrite {}, {}", in(reg) u64::from(field), in(reg) value, options(nomem, nostack)) };
}

/// INVEPT: type 1 drops what was cached for one EPT pointer, type 2 all guest-physical translations.
///
/// # Safety
/// VMX operation; the CPU has INVEPT with this type.
pub unsafe fn invept(kind: u64, ept_pointer: u64) -> Result<(), Failed> {
    let descriptor = [ept_pointer, 0];
    let failed: u8;
    // SAFETY: reads the 16-byte descriptor; dropping translations is always sound.
    unsafe {
        asm!("invept {}, [{}]", "setbe {}", in(reg) kind, in(reg) &raw const descriptor, out(reg_byte) failed, options(nostack));
    }
    if failed == 0 { Ok(()) } else { Err(Failed) }
}

/// INVVPID: type 1 drops what was cached for one VPID, type 2 for all but VPID 0.
///
/// # Safety
/// VMX operation; the CPU has INVVPID with this type, and `vpid` is not 0 for type 1.
pub unsafe fn invvpid(kind: u64, vpid: u16) -> Result<(), Failed> {
    let descriptor = [u64::from(vpid), 0];
    let failed: u8;
    // SAFETY: as above.
    unsafe {
        asm!("invvpid {}, [{}]", "setbe {}", in(reg) kind, in(reg) &raw const descriptor, out(reg_byte) failed, options(nostack));
    }
    if failed == 0 { Ok(()) } else { Err(Failed) }
}

/// Leaves VMX operation.
///
/// # Safety
/// VMX operation; no vCPU may be entered on this CPU any more.
pub unsafe fn vmxoff() {
    // SAFETY: the caller's promise.
    unsafe { asm!("vmxoff", options(nostack)) };
}
