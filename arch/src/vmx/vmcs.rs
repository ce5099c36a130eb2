//! One vCPU's VMCS: its page, access to its fields whether it is current or not, and the parts that never depend on the guest.
//!
//! Manual: see [`super::spec`], chapter 26.

use super::{
    caps::Controls,
    instructions::{vmclear, vmptrld, vmptrst, vmread, vmwrite},
    spec::{ExitControls, control, guest, host},
    switch::{Frame, exit_entry},
};
use crate::{
    cpu::{cr, gdt, msr as host_msr},
    mm::{direct, frames},
};
use x86defs::{Hpa, msr};

/// A VMCS in a page of its own. Between [`Vmcs::activate`] and [`Vmcs::deactivate`] it is current on the CPU that called.
#[derive(Debug)]
pub struct Vmcs {
    page: Hpa,
    active: bool,
}

impl Vmcs {
    /// A clear VMCS, or `None` if no page is free. This CPU must be in VMX operation.
    pub fn new(revision: u32) -> Option<Self> {
        let page = frames::allocate_zeroed()?;
        // SAFETY: the page is new, and the direct map reaches it.
        unsafe { direct::to_virt(page).cast::<u32>().write(revision) };
        let vmcs = Self { page, active: false };
        vmcs.clear();
        Some(vmcs)
    }

    /// True if it is current on the CPU that activated it.
    #[inline]
    #[must_use]
    pub const fn is_active(&self) -> bool {
        self.active
    }

    /// Makes it current on this CPU.
    pub fn activate(&mut self) {
        // SAFETY: the page holds a VMCS with the right revision that no CPU has active. Failure would mean that VMX is off.
        let result = unsafe { vmptrld(self.page) };
        assert!(result.is_ok(), "VMPTRLD of {} failed", self.page);
        self.active = true;
    }

    /// Writes it back to memory, clear: another CPU may take it, and the next entry is a launch.
    pub fn deactivate(&mut self) {
        self.clear();
        self.active = false;
    }

    fn clear(&self) {
        // SAFETY: the page is a VMCS page, active on no CPU but this one.
        let result = unsafe { vmclear(self.page) };
        assert!(result.is_ok(), "VMCLEAR of {} failed", self.page);
    }

    /// Reads a field.
    #[inline(always)]
    #[must_use]
    pub fn read(&self, field: u32) -> u64 {
        if self.active {
            // SAFETY: this VMCS is current.
            unsafe { vmread(field) }
        } else {
            // SAFETY: `borrow` makes it current.
            self.borrow(|| unsafe { vmread(field) })
        }
    }

    /// Writes a field. The value must be valid for it; the host's fields are this module's alone.
    #[inline(always)]
    pub fn write(&mut self, field: u32, value: u64) {
        if self.active {
            // SAFETY: this VMCS is current; guest-state and control fields are checked by the entry, and cannot harm the host.
            unsafe { vmwrite(field, value) };
        } else {
            // SAFETY: as above, and `borrow` makes it current.
            self.borrow(|| unsafe { vmwrite(field, value) });
        }
    }

    /// Reads a field without asking whether this VMCS is current.
    ///
    /// # Safety
    /// It must be.
    #[inline(always)]
    pub unsafe fn read_current(&self, field: u32) -> u64 {
        debug_assert!(self.active);
        // SAFETY: the caller's promise.
        unsafe { vmread(field) }
    }

    /// Writes a field without asking whether this VMCS is current.
    ///
    /// # Safety
    /// It must be. The value must be valid for the field.
    #[inline(always)]
    pub unsafe fn write_current(&mut self, field: u32, value: u64) {
        debug_assert!(self.active);
        // SAFETY: the caller's promise.
        unsafe { vmwrite(field, value) };
    }

    /// Calls `f` with this VMCS current for a moment, and brings back the one that was.
    #[cold]
    fn borrow<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: VMX operation, as `new` demands; the page holds a VMCS that is active nowhere.
        unsafe {
            let before = vmptrst();
            let loaded = vmptrld(self.page);
            assert!(loaded.is_ok(), "VMPTRLD of {} failed", self.page);
            let result = f();
            self.clear();
            if let Some(before) = before {
                let restored = vmptrld(before);
                assert!(restored.is_ok(), "VMPTRLD of {before} failed");
            }
            result
        }
    }

    /// Writes what stays as it is for the vCPU's whole life, with this VMCS current.
    pub fn write_constants(&mut self, controls: &Controls) {
        for (field, value) in [
            (control::PINBASED_EXEC_CONTROLS, u64::from(controls.pin)),
            (control::SECONDARY_PROCBASED_EXEC_CONTROLS, u64::from(controls.secondary)),
            (control::VMEXIT_CONTROLS, u64::from(controls.exit)),
            (control::EXCEPTION_BITMAP, u64::from(super::spec::EXCEPTION_BITMAP)),
            (control::PAGE_FAULT_ERR_CODE_MASK, 0),
            (control::PAGE_FAULT_ERR_CODE_MATCH, 0),
            (control::CR3_TARGET_COUNT, 0),
            (control::VMEXIT_MSR_STORE_COUNT, 0),
            (control::VMEXIT_MSR_LOAD_COUNT, 0),
            (control::VMENTRY_MSR_LOAD_COUNT, 0),
            (control::VMENTRY_INTERRUPTION_INFO_FIELD, 0),
            // 26.4.2: no shadow VMCS.
            (guest::LINK_PTR_FULL, u64::MAX),
            (guest::IA32_DEBUGCTL_FULL, 0),
            (guest::ACTIVITY_STATE, 0),
        ] {
            self.write(field, value);
        }
        if let Some(turn) = controls.turn {
            self.write(guest::VMX_PREEMPTION_TIMER_VALUE, u64::from(turn));
        }
    }

    /// Writes the host state of this CPU, on which this VMCS is current. Every exit goes to [`exit_entry`] with RSP at `frame`.
    pub fn write_host_state(&mut self, controls: &Controls, frame: *mut Frame) {
        let tables = gdt::table_bases();
        // SAFETY: every CPU with VMX has these MSRs.
        let rdmsr = |index| unsafe { host_msr::read(index) };
        for (field, value) in [
            (host::CR0, cr::cr0()),
            (host::CR3, cr::cr3()),
            (host::CR4, cr::cr4()),
            (host::CS_SELECTOR, u64::from(gdt::CODE)),
            (host::SS_SELECTOR, u64::from(gdt::DATA)),
            (host::DS_SELECTOR, u64::from(gdt::DATA)),
            (host::ES_SELECTOR, u64::from(gdt::DATA)),
            (host::FS_SELECTOR, 0),
            (host::GS_SELECTOR, 0),
            (host::TR_SELECTOR, u64::from(gdt::TSS)),
            (host::FS_BASE, rdmsr(msr::IA32_FS_BASE)),
            (host::GS_BASE, rdmsr(msr::IA32_GS_BASE)),
            (host::TR_BASE, tables.tss),
            // An exit sets both limits to 0xffff (29.5.2). The IDT has 256 entries, so that no vector lies beyond; of the GDT, the
            // host loads fixed selectors only. Neither is worth an LGDT for every exit.
            (host::GDTR_BASE, tables.gdt),
            (host::IDTR_BASE, tables.idt),
            (host::IA32_SYSENTER_CS, rdmsr(msr::IA32_SYSENTER_CS)),
            (host::IA32_SYSENTER_ESP, rdmsr(msr::IA32_SYSENTER_ESP)),
            (host::IA32_SYSENTER_EIP, rdmsr(msr::IA32_SYSENTER_EIP)),
            (host::IA32_EFER_FULL, rdmsr(msr::IA32_EFER)),
            (host::RSP, frame as u64),
            (host::RIP, exit_entry as *const () as u64),
        ] {
            self.write(field, value);
        }
        if controls.exit & ExitControls::LOAD_IA32_PAT.bits() != 0 {
            self.write(host::IA32_PAT_FULL, rdmsr(msr::IA32_PAT));
        }
    }
}

impl Drop for Vmcs {
    fn drop(&mut self) {
        // A CPU may still hold parts of an active VMCS and write them back later, to a page that is somebody else's by then.
        self.clear();
        frames::free(self.page, 1);
    }
}
