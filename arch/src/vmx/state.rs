//! A vCPU's registers: reading and writing guest state in the VMCS, control registers with all that hangs on them, MSRs.
//!
//! Manual: see [`super::spec`]: 26.4 for the fields, 28.3.1 for what an entry checks, 26.6.6 for masks and shadows.

use super::{
    caps::Controls,
    segments,
    spec::{EntryControls, control, guest, interruptibility},
    vcpu::{VmxVcpu, read_dr6, write_dr6},
};
use crate::{
    cpu::cr,
    event::EventKind,
    vcpu::{Registers, SyscallMsrs},
};
use x86defs::{
    ControlRegister, Cr0, Cr4, DescriptorTable, Efer, Exception, Gpa, GuestMemoryExt, Rflags, Segment, SegmentRegister,
    TaskSwitch, TaskSwitchReason, UnknownMsr, VcpuState, msr, paging::PagingContext,
};

/// PAT after RESET (SDM vol. 3A, 13.12.4).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Where the VMCS keeps the four page-directory-pointer entries of PAE paging.
pub(super) const PDPTE_FIELDS: [u32; 4] = [guest::PDPTE0_FULL, guest::PDPTE1_FULL, guest::PDPTE2_FULL, guest::PDPTE3_FULL];

/// CR0 bits that a guest changes without an exit, unless VMX operation fixes them. CD and NW are not among them: an entry does not switch
/// them (28.3.2.1), so the guest would change the host's.
const CR0_FREE: u64 =
    Cr0::PE.union(Cr0::MP).union(Cr0::EM).union(Cr0::TS).union(Cr0::ET).union(Cr0::WP).union(Cr0::AM).union(Cr0::PG).bits();

/// CR4 bits that differ between the guest's view and the CPU: VMXE must be set in VMX operation; without MCE, a machine check would be a
/// shutdown instead of an exit.
const CR4_HOST: u64 = Cr4::VMXE.union(Cr4::MCE).bits();
/// CR4 bits whose changes must be heard of: the instruction emulator remembers page walks of the depth that LA57 gives them.
const CR4_WATCHED: u64 = Cr4::LA57.bits();

/// The guest/host masks of CR0 and CR4: a set bit is the host's. Reads come from the shadow there, and writes that differ from it exit.
pub(super) const fn owned_bits(controls: &Controls, cr4_allowed: u64) -> [u64; 2] {
    let [cr0_one, cr0_may] = controls.cr0_fixed;
    let [cr4_one, cr4_may] = controls.cr4_fixed;
    [!CR0_FREE | cr0_one | !cr0_may, !cr4_allowed | CR4_HOST | CR4_WATCHED | cr4_one | !cr4_may]
}

/// RFLAGS with reserved bits as an entry wants them (28.3.1.4).
#[inline]
pub(super) const fn valid_rflags(rflags: u64) -> u64 {
    rflags & 0x003f_7fd5 | Rflags::FIXED.bits()
}

/// The PDPTEs are in use: PAE paging, not 4-level.
const fn uses_pdptes(cr0: u64, cr4: u64, efer: u64) -> bool {
    cr0 & Cr0::PG.bits() != 0 && cr4 & Cr4::PAE.bits() != 0 && efer & Efer::LMA.bits() == 0
}

/// EFER with LMA as LME and paging make it.
const fn with_lma(efer: u64, cr0: u64) -> u64 {
    if efer & Efer::LME.bits() != 0 && cr0 & Cr0::PG.bits() != 0 { efer | Efer::LMA.bits() } else { efer & !Efer::LMA.bits() }
}

impl VmxVcpu {
    // ---- Control registers ----

    #[inline]
    pub(super) fn read_cr0(&self) -> u64 {
        self.vmcs.read(guest::CR0) & !self.cr0_mask | self.cr0_shadow & self.cr0_mask
    }

    #[inline]
    pub(super) fn read_cr4(&self) -> u64 {
        self.vmcs.read(guest::CR4) & !self.cr4_mask | self.cr4_shadow & self.cr4_mask
    }

    /// 64-bit code: CS.L counts in IA-32e mode only.
    pub(super) fn in_long_code(&self) -> bool {
        segments::attributes(self.vmcs.read(guest::CS_ACCESS_RIGHTS) as u32).long()
            && self.vmcs.read(guest::IA32_EFER_FULL) & Efer::LMA.bits() != 0
    }

    pub(super) fn write_cr2(&mut self, value: u64) {
        self.cr2 = value;
        if self.vmcs.is_active() {
            // SAFETY: CR2 is the guest's while the vCPU is loaded.
            unsafe { cr::set_cr2(value) };
        }
    }

    /// Sets CR0 as the CPU is to have it, and as the guest is to see it.
    fn set_cr0(&mut self, value: u64) {
        let [one, may] = self.controls.cr0_fixed;
        let caching = (Cr0::CD | Cr0::NW).bits();
        self.cr0_shadow = value;
        self.vmcs.write(guest::CR0, (value & !caching | one | Cr0::ET.bits()) & may);
        self.vmcs.write(control::CR0_READ_SHADOW, value);
    }

    fn set_cr4(&mut self, value: u64) {
        let [one, may] = self.controls.cr4_fixed;
        self.cr4_shadow = value;
        self.vmcs.write(guest::CR4, (value | one | CR4_HOST) & may);
        self.vmcs.write(control::CR4_READ_SHADOW, value);
    }

    /// Sets EFER, and with LMA the mode that the next entry goes to (26.8.1).
    fn set_efer(&mut self, value: u64) {
        self.vmcs.write(guest::IA32_EFER_FULL, value);
        let ia32e = EntryControls::IA32E_MODE_GUEST.bits();
        let long = if value & Efer::LMA.bits() != 0 { ia32e } else { 0 };
        self.vmcs.write(control::VMENTRY_CONTROLS, u64::from(self.controls.entry & !ia32e | long));
    }

    /// Loads the PDPTEs from the guest's memory, as MOV to a control register does (SDM vol. 3A, 5.4.1). Entries outside of RAM count as
    /// not present.
    fn load_pdptes(&mut self) {
        let table = self.vmcs.read(guest::CR3) & 0xffff_ffe0;
        for (n, field) in PDPTE_FIELDS.into_iter().enumerate() {
            let entry = self.memory.read_u64(Gpa(table + 8 * n as u64)).unwrap_or(0);
            // 28.3.1.6: reserved bits fail the entry. The guest's MOV would have faulted; not present is as far as an answer can go.
            let reserved = 0xfff0_0000_0000_01e6;
            let usable = entry & 1 != 0 && entry & reserved == 0;
            self.vmcs.write(field, if usable { entry } else { 0 });
        }
    }

    /// Writes a control register with a value that `hv` has checked, with its side effects: long mode, PDPTEs, translations.
    pub(super) fn put_control(&mut self, register: ControlRegister, value: u64) {
        let (cr0, cr4) = (self.read_cr0(), self.read_cr4());
        // SDM vol. 3A, 5.4.1: what makes the CPU load the PDPTEs again, and 5.10.4.1: what makes it drop translations.
        let reload = match register {
            ControlRegister::Cr0 => {
                self.set_cr0(value);
                let efer = self.vmcs.read(guest::IA32_EFER_FULL);
                if with_lma(efer, value) != efer {
                    self.set_efer(with_lma(efer, value));
                }
                let changed = cr0 ^ value;
                if changed & (Cr0::PG | Cr0::WP).bits() != 0 {
                    self.want_flush();
                }
                changed & (Cr0::PG | Cr0::CD | Cr0::NW).bits() != 0
            }
            ControlRegister::Cr3 => {
                /// With PCIDs: keep what is cached for the new one.
                const KEEP: u64 = 1 << 63;
                let pcid = cr4 & Cr4::PCIDE.bits() != 0;
                self.vmcs.write(guest::CR3, if pcid { value & !KEEP } else { value });
                if !pcid || value & KEEP == 0 {
                    self.want_flush();
                }
                true
            }
            ControlRegister::Cr4 => {
                self.set_cr4(value);
                let changed = cr4 ^ value;
                let flushing = Cr4::PSE | Cr4::PAE | Cr4::PGE | Cr4::PCIDE | Cr4::SMEP | Cr4::SMAP | Cr4::LA57 | Cr4::PKE;
                if changed & flushing.bits() != 0 {
                    self.want_flush();
                }
                changed & (Cr4::PSE | Cr4::PAE | Cr4::PGE | Cr4::SMEP).bits() != 0
            }
            // The local APIC's task priority, which is not held here.
            ControlRegister::Cr8 => false,
        };
        if reload && uses_pdptes(self.read_cr0(), self.read_cr4(), self.vmcs.read(guest::IA32_EFER_FULL)) {
            self.load_pdptes();
        }
    }

    // ---- Segments and tables ----

    pub(super) fn read_segment(&self, register: SegmentRegister) -> Segment {
        let fields = segments::fields(register);
        Segment {
            selector: self.vmcs.read(fields.selector) as u16,
            attributes: segments::attributes(self.vmcs.read(fields.access_rights) as u32),
            limit: self.vmcs.read(fields.limit) as u32,
            base: self.vmcs.read(fields.base),
        }
    }

    pub(super) fn write_segment(&mut self, register: SegmentRegister, segment: Segment) {
        let fields = segments::fields(register);
        let (limit, rights) = segments::prepare(register, segment);
        self.vmcs.write(fields.selector, u64::from(segment.selector));
        self.vmcs.write(fields.base, segment.base);
        self.vmcs.write(fields.limit, u64::from(limit));
        self.vmcs.write(fields.access_rights, u64::from(rights));
    }

    /// A segment load by the instruction emulator: loading SS shields the next instruction from interrupts (SDM vol. 3A, 7.8.3).
    pub(super) fn emulate_segment_load(&mut self, register: SegmentRegister, segment: Segment) {
        self.write_segment(register, segment);
        if matches!(register, SegmentRegister::Ss) {
            self.question.ss_loaded = true;
        }
    }

    /// The privilege level is SS.DPL in every mode (26.4.1).
    pub(super) fn read_cpl(&self) -> u8 {
        segments::attributes(self.vmcs.read(guest::SS_ACCESS_RIGHTS) as u32).dpl()
    }

    pub(super) fn read_paging(&self) -> PagingContext {
        PagingContext {
            cr0: self.read_cr0(),
            cr3: self.vmcs.read(guest::CR3),
            cr4: self.read_cr4(),
            efer: self.vmcs.read(guest::IA32_EFER_FULL),
            rflags: self.read_rflags(),
            cpl: self.read_cpl(),
        }
    }

    // ---- All of it ----

    pub(super) fn read_state(&self) -> VcpuState {
        let table = |base, limit| DescriptorTable { base: self.vmcs.read(base), limit: self.vmcs.read(limit) as u16 };
        VcpuState {
            gprs: *self.all_gprs(),
            rip: self.read_rip(),
            rflags: self.read_rflags(),
            cs: self.read_segment(SegmentRegister::Cs),
            ds: self.read_segment(SegmentRegister::Ds),
            es: self.read_segment(SegmentRegister::Es),
            fs: self.read_segment(SegmentRegister::Fs),
            gs: self.read_segment(SegmentRegister::Gs),
            ss: self.read_segment(SegmentRegister::Ss),
            ldtr: self.read_segment(SegmentRegister::Ldtr),
            tr: self.read_segment(SegmentRegister::Tr),
            gdtr: table(guest::GDTR_BASE, guest::GDTR_LIMIT),
            idtr: table(guest::IDTR_BASE, guest::IDTR_LIMIT),
            cr0: self.read_cr0(),
            cr2: if self.vmcs.is_active() { cr::cr2() } else { self.cr2 },
            cr3: self.vmcs.read(guest::CR3),
            cr4: self.read_cr4(),
            efer: self.vmcs.read(guest::IA32_EFER_FULL),
            dr6: if self.vmcs.is_active() { read_dr6() } else { self.dr6 },
            dr7: self.vmcs.read(guest::DR7),
        }
    }

    /// Sets everything, and forgets queued events and shadows, as INIT does.
    pub(super) fn write_state(&mut self, state: &VcpuState) {
        self.events.clear();
        self.nmi_in_service = false;
        self.write_registers(state);
        self.vmcs.write(guest::IA32_DEBUGCTL_FULL, 0);
        self.write_interruptibility(0);
        self.lazy.init();
    }

    /// Goes on in another task of the guest.
    pub(super) fn write_task(&mut self, switch: &TaskSwitch, state: &VcpuState, exception: Option<Exception>) {
        self.write_registers(state);
        // An IRET ends the blocking of NMIs in every case, and an NMI begins it.
        let nmi = self.events.peek().kind() == Some(EventKind::Nmi);
        self.nmi_in_service |= nmi;
        let kept = if switch.reason == TaskSwitchReason::Iret { 0 } else { self.interruptibility() & interruptibility::NMI };
        self.write_interruptibility(kept | if nmi { interruptibility::NMI } else { 0 });
        match exception {
            Some(exception) => self.raise(&exception),
            None => self.events.clear(),
        }
    }

    /// Sets all registers that `state` has.
    fn write_registers(&mut self, state: &VcpuState) {
        // Destructured, so that a new register is not forgotten here.
        let VcpuState { gprs, rip, rflags, cs, ds, es, fs, gs, ss, ldtr, tr, gdtr, idtr, cr0, cr2, cr3, cr4, efer, dr6, dr7 } =
            *state;
        *self.all_gprs_mut() = gprs;
        self.write_rip(rip);
        self.write_rflags(valid_rflags(rflags));
        for (register, segment) in [
            (SegmentRegister::Cs, cs),
            (SegmentRegister::Ds, ds),
            (SegmentRegister::Es, es),
            (SegmentRegister::Fs, fs),
            (SegmentRegister::Gs, gs),
            (SegmentRegister::Ss, ss),
            (SegmentRegister::Ldtr, ldtr),
            (SegmentRegister::Tr, tr),
        ] {
            self.write_segment(register, segment);
        }
        self.set_cr0(cr0);
        self.set_cr4(cr4);
        self.set_efer(with_lma(efer, cr0));
        self.write_cr2(cr2);
        self.dr6 = dr6;
        if self.vmcs.is_active() {
            write_dr6(dr6);
        }
        for (field, value) in [
            (guest::GDTR_BASE, gdtr.base),
            (guest::GDTR_LIMIT, u64::from(gdtr.limit)),
            (guest::IDTR_BASE, idtr.base),
            (guest::IDTR_LIMIT, u64::from(idtr.limit)),
            (guest::CR3, cr3),
            // 28.3.1.1: bits 63:32 must be zero.
            (guest::DR7, dr7 & 0xffff_ffff | 1 << 10),
            (guest::PENDING_DBG_EXCEPTIONS, 0),
            (guest::ACTIVITY_STATE, 0),
        ] {
            self.vmcs.write(field, value);
        }
        if uses_pdptes(cr0, cr4, with_lma(efer, cr0)) {
            self.load_pdptes();
        }
        self.want_flush();
    }

    // ---- MSRs ----

    pub(super) fn write_initial_msrs(&mut self) {
        self.pat = PAT_RESET;
        for (field, value) in [
            (guest::IA32_SYSENTER_CS, 0),
            (guest::IA32_SYSENTER_ESP, 0),
            (guest::IA32_SYSENTER_EIP, 0),
            (guest::IA32_DEBUGCTL_FULL, 0),
        ] {
            self.vmcs.write(field, value);
        }
        if self.controls.pat() {
            self.vmcs.write(guest::IA32_PAT_FULL, PAT_RESET);
        }
    }

    pub(super) fn get_msr(&self, index: u32) -> Result<u64, UnknownMsr> {
        if let Some(field) = vmcs_field(index) {
            return Ok(self.vmcs.read(field));
        }
        match index {
            msr::IA32_PAT if self.controls.pat() => Ok(self.vmcs.read(guest::IA32_PAT_FULL)),
            msr::IA32_PAT => Ok(self.pat),
            msr::IA32_TSC_AUX => self.lazy.tsc_aux().ok_or(UnknownMsr(index)),
            _ => {
                let mut syscall = if self.vmcs.is_active() { SyscallMsrs::read() } else { self.syscall };
                syscall.field(index).map(|value| *value).ok_or(UnknownMsr(index))
            }
        }
    }

    pub(super) fn put_msr(&mut self, index: u32, value: u64) -> Result<(), UnknownMsr> {
        match index {
            msr::IA32_EFER => {
                let before = self.vmcs.read(guest::IA32_EFER_FULL);
                self.set_efer(with_lma(value, self.read_cr0()));
                if (before ^ value) & Efer::NXE.bits() != 0 {
                    self.want_flush();
                }
            }
            msr::IA32_PAT => {
                self.pat = value;
                if self.controls.pat() {
                    self.vmcs.write(guest::IA32_PAT_FULL, value);
                }
                // SDM vol. 3A, 13.12.4: software drops translations after changing PAT; nothing to be done for it.
            }
            msr::IA32_TSC_AUX => return if self.lazy.set_tsc_aux(value) { Ok(()) } else { Err(UnknownMsr(index)) },
            _ => {
                if let Some(field) = vmcs_field(index) {
                    self.vmcs.write(field, value);
                    return Ok(());
                }
                let mut syscall = if self.vmcs.is_active() { SyscallMsrs::read() } else { self.syscall };
                *syscall.field(index).ok_or(UnknownMsr(index))? = value;
                self.syscall = syscall;
                if self.vmcs.is_active() {
                    // SAFETY: `hv` has checked that addresses are canonical; the host uses neither SYSCALL nor SWAPGS.
                    unsafe { syscall.write() };
                }
            }
        }
        Ok(())
    }
}

/// The VMCS field that holds an MSR of the guest.
const fn vmcs_field(index: u32) -> Option<u32> {
    Some(match index {
        msr::IA32_EFER => guest::IA32_EFER_FULL,
        msr::IA32_FS_BASE => guest::FS_BASE,
        msr::IA32_GS_BASE => guest::GS_BASE,
        msr::IA32_SYSENTER_CS => guest::IA32_SYSENTER_CS,
        msr::IA32_SYSENTER_ESP => guest::IA32_SYSENTER_ESP,
        msr::IA32_SYSENTER_EIP => guest::IA32_SYSENTER_EIP,
        msr::IA32_DEBUGCTL => guest::IA32_DEBUGCTL_FULL,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmx::caps::{Allowed, RawCapabilities};

    /// A CPU that can do everything, and fixes NE and VMXE.
    fn controls() -> Controls {
        let all = Allowed(u64::MAX << 32);
        let raw = RawCapabilities {
            basic: 0,
            pin: all,
            primary: all,
            secondary: all,
            exit: all,
            entry: all,
            misc: u64::MAX,
            cr0_fixed: [0x8000_0021, 0xffff_ffff],
            cr4_fixed: [0x2000, 0x0037_67ff],
            ept_vpid: u64::MAX,
            vmfunc: 0,
        };
        Controls::choose(&raw).unwrap()
    }

    #[test]
    fn only_what_must_be_owned_is() {
        let allowed = (Cr4::PAE | Cr4::PGE | Cr4::PSE | Cr4::MCE | Cr4::OSFXSR | Cr4::SMAP).bits();
        let [cr0, cr4] = owned_bits(&controls(), allowed);
        let free = Cr0::PE | Cr0::MP | Cr0::EM | Cr0::TS | Cr0::ET | Cr0::WP | Cr0::AM | Cr0::PG;
        assert_eq!(!cr0, free.bits(), "NE, CD, NW and what is undefined belong to the host");
        assert_eq!(!cr4, (Cr4::PAE | Cr4::PGE | Cr4::PSE | Cr4::OSFXSR | Cr4::SMAP).bits(), "MCE and VMXE never pass");
        // What the CPU does not let a guest set must exit, whatever CPUID shows.
        let [_, cr4] = owned_bits(&controls(), allowed | Cr4::CET.bits());
        assert_ne!(cr4 & Cr4::CET.bits(), 0);
    }

    #[test]
    fn long_mode_follows_paging() {
        let (lme, lma) = (Efer::LME.bits(), Efer::LMA.bits());
        assert_eq!(with_lma(lme, Cr0::PG.bits()), lme | lma);
        assert_eq!(with_lma(lme | lma, 0), lme);
        assert_eq!(with_lma(lma, Cr0::PG.bits()), 0);
        assert!(uses_pdptes(Cr0::PG.bits(), Cr4::PAE.bits(), lme));
        assert!(!uses_pdptes(Cr0::PG.bits(), Cr4::PAE.bits(), lme | lma));
        assert!(!uses_pdptes(0, Cr4::PAE.bits(), 0));
    }

    #[test]
    fn rflags_are_enterable() {
        assert_eq!(valid_rflags(0), 2);
        assert_eq!(valid_rflags(u64::MAX), 0x003f_7fd7);
    }
}
