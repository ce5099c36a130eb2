//! The virtual machine control block: a page that tells the CPU what to intercept, holds the guest's state, and says why it stopped.
//!
//! Manual: AMD64 Architecture Programmer's Manual vol. 2, 24593 rev. 3.42, appendix B (layout), 15.5 to 15.9 and appendix C (exit codes).

use crate::vcpu::OwnedPages;
use core::{
    mem::offset_of,
    ops::{Deref, DerefMut},
    ptr::NonNull,
};
use x86defs::{DescriptorTable, Hpa, Segment, SegmentAttributes};

/// Intercept bits of the word at 00CH.
pub mod intercept1 {
    pub const INTR: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 1;
    pub const SMI: u32 = 1 << 2;
    pub const INIT: u32 = 1 << 3;
    pub const VINTR: u32 = 1 << 4;
    pub const RDTSC: u32 = 1 << 14;
    pub const RDPMC: u32 = 1 << 15;
    pub const CPUID: u32 = 1 << 18;
    pub const IRET: u32 = 1 << 20;
    pub const INVD: u32 = 1 << 22;
    pub const PAUSE: u32 = 1 << 23;
    pub const HLT: u32 = 1 << 24;
    pub const INVLPGA: u32 = 1 << 26;
    pub const IOIO: u32 = 1 << 27;
    pub const MSR: u32 = 1 << 28;
    pub const TASK_SWITCH: u32 = 1 << 29;
    pub const FERR_FREEZE: u32 = 1 << 30;
    pub const SHUTDOWN: u32 = 1 << 31;
}

/// Intercept bits of the word at 010H.
pub mod intercept2 {
    pub const VMRUN: u32 = 1 << 0;
    pub const VMMCALL: u32 = 1 << 1;
    pub const VMLOAD: u32 = 1 << 2;
    pub const VMSAVE: u32 = 1 << 3;
    pub const STGI: u32 = 1 << 4;
    pub const CLGI: u32 = 1 << 5;
    pub const SKINIT: u32 = 1 << 6;
    pub const RDTSCP: u32 = 1 << 7;
    pub const WBINVD: u32 = 1 << 9;
    pub const MONITOR: u32 = 1 << 10;
    pub const MWAIT: u32 = 1 << 11;
    pub const MWAIT_ARMED: u32 = 1 << 12;
    pub const XSETBV: u32 = 1 << 13;
    pub const RDPRU: u32 = 1 << 14;
}

/// Exit codes (appendix C). The CPU writes 64 bits; no code but "invalid" (-1) uses the upper half.
pub mod exit_code {
    pub const CR0_READ: u32 = 0x00;
    pub const CR15_READ: u32 = 0x0f;
    pub const CR0_WRITE: u32 = 0x10;
    pub const CR15_WRITE: u32 = 0x1f;
    pub const EXCEPTION: u32 = 0x40;
    pub const EXCEPTION_DB: u32 = EXCEPTION + 1;
    pub const EXCEPTION_MC: u32 = EXCEPTION + 18;
    pub const EXCEPTION_LAST: u32 = EXCEPTION + 31;
    pub const INTR: u32 = 0x60;
    pub const NMI: u32 = 0x61;
    pub const SMI: u32 = 0x62;
    pub const INIT: u32 = 0x63;
    pub const VINTR: u32 = 0x64;
    pub const RDTSC: u32 = 0x6e;
    pub const RDPMC: u32 = 0x6f;
    pub const CPUID: u32 = 0x72;
    pub const IRET: u32 = 0x74;
    pub const INVD: u32 = 0x76;
    pub const PAUSE: u32 = 0x77;
    pub const HLT: u32 = 0x78;
    pub const INVLPGA: u32 = 0x7a;
    pub const IOIO: u32 = 0x7b;
    pub const MSR: u32 = 0x7c;
    pub const TASK_SWITCH: u32 = 0x7d;
    pub const SHUTDOWN: u32 = 0x7f;
    pub const VMRUN: u32 = 0x80;
    pub const VMMCALL: u32 = 0x81;
    pub const VMLOAD: u32 = 0x82;
    pub const SKINIT: u32 = 0x86;
    pub const RDTSCP: u32 = 0x87;
    pub const WBINVD: u32 = 0x89;
    pub const MONITOR: u32 = 0x8a;
    pub const MWAIT: u32 = 0x8b;
    pub const MWAIT_ARMED: u32 = 0x8c;
    pub const XSETBV: u32 = 0x8d;
    pub const RDPRU: u32 = 0x8e;
    pub const NPF: u32 = 0x400;
    pub const INVALID: u32 = u32::MAX;
}

/// VMCB clean bits (15.15.3): the fields of a set bit are as they were when this CPU last ran this VMCB.
pub mod clean {
    /// Intercepts, TSC offset, pause filter.
    pub const INTERCEPTS: u32 = 1 << 0;
    pub const ASID: u32 = 1 << 2;
    /// V_TPR, V_IRQ and their kin.
    pub const VINTR: u32 = 1 << 3;
    /// Nested paging: nCR3, G_PAT.
    pub const NESTED_PAGING: u32 = 1 << 4;
    /// CR0, CR3, CR4, EFER.
    pub const CONTROL_REGISTERS: u32 = 1 << 5;
    /// DR6, DR7.
    pub const DEBUG_REGISTERS: u32 = 1 << 6;
    /// GDT, IDT.
    pub const DESCRIPTOR_TABLES: u32 = 1 << 7;
    /// CS, DS, SS, ES, CPL.
    pub const SEGMENTS: u32 = 1 << 8;
    pub const CR2: u32 = 1 << 9;
    /// All that are defined here and those for maps, LBR and AVIC, which never change.
    pub const ALL: u32 = 0xfff;
}

/// TLB_CONTROL (15.16.2).
pub mod tlb_control {
    pub const NOTHING: u8 = 0;
    pub const FLUSH_ALL: u8 = 1;
    /// This guest's entries; needs flush-by-ASID.
    pub const FLUSH_ASID: u8 = 3;
}

/// The quadword at 060H (15.21).
pub mod vintr {
    pub const V_IRQ: u64 = 1 << 8;
    /// Highest priority, so that the V_TPR never holds it back.
    pub const V_INTR_PRIO_MAX: u64 = 0xf << 16;
    pub const V_IGN_TPR: u64 = 1 << 20;
    /// RFLAGS.IF of the host governs physical interrupts, the guest's virtual ones; CR8 is V_TPR.
    pub const V_INTR_MASKING: u64 = 1 << 24;
}

/// Bit 0 of the quadword at 068H: the guest is in an interrupt shadow.
pub const INTERRUPT_SHADOW: u64 = 1;
/// Bit 0 of the quadword at 090H.
pub const NP_ENABLE: u64 = 1;

/// The control area.
#[repr(C)]
pub struct Control {
    pub cr_read: u16,
    pub cr_write: u16,
    pub dr_read: u16,
    pub dr_write: u16,
    pub exceptions: u32,
    pub intercept1: u32,
    pub intercept2: u32,
    pub intercept3: u32,
    reserved_18: [u8; 0x24],
    pub pause_filter_threshold: u16,
    pub pause_filter_count: u16,
    pub iopm_base: u64,
    pub msrpm_base: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u8,
    reserved_5d: [u8; 3],
    pub vintr: u64,
    pub interrupt_state: u64,
    pub exit_code: u64,
    pub exit_info1: u64,
    pub exit_info2: u64,
    pub exit_int_info: u64,
    pub nested_control: u64,
    pub avic_apic_bar: u64,
    pub ghcb: u64,
    pub event_inj: u64,
    pub n_cr3: u64,
    pub lbr_control: u64,
    pub clean: u32,
    reserved_c4: u32,
    /// RIP after the instruction, with NRIP-save.
    pub next_rip: u64,
    /// Number of instruction bytes that follow, with decode assists.
    pub fetched: u8,
    pub instruction: [u8; 15],
    reserved_e0: [u8; 0x320],
}

/// A segment register, or GDTR and IDTR without selector and attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct VmcbSegment {
    pub selector: u16,
    /// As [`SegmentAttributes`], without its bit 12.
    pub attributes: u16,
    pub limit: u32,
    pub base: u64,
}

/// The state-save area.
#[repr(C)]
pub struct Save {
    pub es: VmcbSegment,
    pub cs: VmcbSegment,
    pub ss: VmcbSegment,
    pub ds: VmcbSegment,
    pub fs: VmcbSegment,
    pub gs: VmcbSegment,
    pub gdtr: VmcbSegment,
    pub ldtr: VmcbSegment,
    pub idtr: VmcbSegment,
    pub tr: VmcbSegment,
    reserved_a0: [u8; 0x2b],
    pub cpl: u8,
    reserved_cc: u32,
    pub efer: u64,
    reserved_d8: [u8; 0x70],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved_180: [u8; 0x58],
    pub rsp: u64,
    pub s_cet: u64,
    pub ssp: u64,
    pub isst_addr: u64,
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved_248: [u8; 0x20],
    pub g_pat: u64,
    pub dbgctl: u64,
    reserved_278: [u8; 0x988],
}

#[repr(C, align(4096))]
pub struct Vmcb {
    pub control: Control,
    pub save: Save,
}

const _: () = {
    assert!(size_of::<Control>() == 0x400);
    assert!(size_of::<Vmcb>() == 0x1000);
    assert!(offset_of!(Control, pause_filter_threshold) == 0x3c);
    assert!(offset_of!(Control, iopm_base) == 0x40);
    assert!(offset_of!(Control, asid) == 0x58);
    assert!(offset_of!(Control, tlb_control) == 0x5c);
    assert!(offset_of!(Control, vintr) == 0x60);
    assert!(offset_of!(Control, exit_code) == 0x70);
    assert!(offset_of!(Control, exit_int_info) == 0x88);
    assert!(offset_of!(Control, nested_control) == 0x90);
    assert!(offset_of!(Control, event_inj) == 0xa8);
    assert!(offset_of!(Control, n_cr3) == 0xb0);
    assert!(offset_of!(Control, clean) == 0xc0);
    assert!(offset_of!(Control, next_rip) == 0xc8);
    assert!(offset_of!(Control, fetched) == 0xd0);
    assert!(offset_of!(Save, gdtr) == 0x60);
    assert!(offset_of!(Save, tr) == 0x90);
    assert!(offset_of!(Save, cpl) == 0xcb);
    assert!(offset_of!(Save, efer) == 0xd0);
    assert!(offset_of!(Save, cr4) == 0x148);
    assert!(offset_of!(Save, rip) == 0x178);
    assert!(offset_of!(Save, rsp) == 0x1d8);
    assert!(offset_of!(Save, rax) == 0x1f8);
    assert!(offset_of!(Save, kernel_gs_base) == 0x220);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, g_pat) == 0x268);
};

impl VmcbSegment {
    /// Without Bulkhead's "unusable" mark; a segment so marked is not present.
    #[must_use]
    pub const fn new(segment: &Segment) -> Self {
        let unusable = segment.attributes.unusable();
        let attributes = segment.attributes.0 & if unusable { 0xf7f } else { 0xfff };
        Self { selector: segment.selector, attributes, limit: segment.limit, base: segment.base }
    }

    /// A segment that is not present comes back as unusable.
    #[must_use]
    pub const fn segment(&self) -> Segment {
        let attributes = SegmentAttributes(self.attributes & 0xfff);
        let mark = if attributes.present() { 0 } else { SegmentAttributes::UNUSABLE.0 };
        Segment {
            selector: self.selector,
            attributes: SegmentAttributes(attributes.0 | mark),
            limit: self.limit,
            base: self.base,
        }
    }

    #[must_use]
    pub const fn from_table(table: &DescriptorTable) -> Self {
        Self { selector: 0, attributes: 0, limit: table.limit as u32, base: table.base }
    }

    #[must_use]
    pub const fn table(&self) -> DescriptorTable {
        DescriptorTable { base: self.base, limit: self.limit as u16 }
    }
}

/// A VMCB in a frame of its own. The CPU writes it only while [`super::switch::enter`] runs.
pub struct VmcbPage {
    vmcb: NonNull<Vmcb>,
    page: OwnedPages,
}

// SAFETY: the page belongs to this value alone.
unsafe impl Send for VmcbPage {}

impl VmcbPage {
    /// A zeroed VMCB; `None` if memory is short.
    #[must_use]
    pub fn new() -> Option<Self> {
        let page = OwnedPages::new(1)?;
        Some(Self { vmcb: NonNull::new(page.as_ptr())?, page })
    }

    #[inline]
    #[must_use]
    pub const fn hpa(&self) -> Hpa {
        self.page.hpa()
    }
}

impl Deref for VmcbPage {
    type Target = Vmcb;
    #[inline(always)]
    fn deref(&self) -> &Vmcb {
        // SAFETY: a whole page, aligned, initialised (zeroed) and ours alone; every bit pattern is valid.
        unsafe { self.vmcb.as_ref() }
    }
}

impl DerefMut for VmcbPage {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Vmcb {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { self.vmcb.as_mut() }
    }
}

#[cfg(test)]
pub(super) fn zeroed() -> alloc::boxed::Box<Vmcb> {
    // SAFETY: all fields are integers.
    unsafe { alloc::boxed::Box::<Vmcb>::new_zeroed().assume_init() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_segments_are_not_present() {
        let null = Segment { selector: 0, attributes: SegmentAttributes(0x1c93), limit: 0xffff_ffff, base: 0 };
        let raw = VmcbSegment::new(&null);
        assert_eq!(raw.attributes, 0xc13);
        assert!(raw.segment().attributes.unusable());
        let flat = Segment::flat(8, 0xb, true);
        assert_eq!(VmcbSegment::new(&flat).segment(), flat);
    }
}
