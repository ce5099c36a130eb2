//! [`VmxVcpu`] as `hv` sees it. Nothing is decided here: each method names the one that does it.

use super::{spec::PrimaryControls, spec::control, spec::guest, vcpu::VmxVcpu};
use core::fmt;
use x86defs::{
    ApicAccess, Exception, Gpr, Gprs, Owner, Resume, Segment, SegmentRegister, TaskSwitch, UnknownMsr, Vcpu, VcpuState,
    paging::PagingContext,
};

impl Vcpu for VmxVcpu {
    fn load(&mut self) {
        self.enter_cpu();
    }
    fn unload(&mut self) {
        self.leave_cpu();
    }

    #[inline(always)]
    fn run<O: Owner<Self>>(owner: &mut O) -> O::Outcome {
        Self::enter_guest(owner)
    }
    #[inline(always)]
    fn complete(&mut self, resume: Resume) {
        self.finish(resume);
    }

    #[inline]
    fn gprs(&self) -> &Gprs {
        self.all_gprs()
    }
    #[inline]
    fn gprs_mut(&mut self) -> &mut Gprs {
        self.all_gprs_mut()
    }
    #[inline(always)]
    fn gpr(&self, register: Gpr) -> u64 {
        self.read_gpr(register)
    }
    #[inline(always)]
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.write_gpr(register, value);
    }
    #[inline]
    fn rip(&self) -> u64 {
        self.read_rip()
    }
    #[inline]
    fn rflags(&self) -> u64 {
        self.read_rflags()
    }
    #[inline]
    fn cr0(&self) -> u64 {
        self.read_cr0()
    }
    fn cr3(&self) -> u64 {
        self.vmcs.read(guest::CR3)
    }
    #[inline]
    fn cr4(&self) -> u64 {
        self.read_cr4()
    }
    fn efer(&self) -> u64 {
        self.vmcs.read(guest::IA32_EFER_FULL)
    }
    fn segment(&self, register: SegmentRegister) -> Segment {
        self.read_segment(register)
    }
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.emulate_segment_load(register, segment);
    }
    fn vector(&mut self, index: u8) -> [u128; 2] {
        self.lazy.vector(index)
    }
    fn set_xmm(&mut self, index: u8, value: u128) {
        self.lazy.set_xmm(index, value);
    }
    fn set_ymm(&mut self, index: u8, value: [u128; 2]) {
        self.lazy.set_ymm(index, value);
    }
    fn cpl(&self) -> u8 {
        self.read_cpl()
    }
    #[inline]
    fn in_64_bit_mode(&self) -> bool {
        self.in_long_code()
    }
    #[inline]
    fn paging(&self) -> PagingContext {
        self.read_paging()
    }
    /// VT-x supplies none.
    fn instruction_bytes(&self) -> &[u8] {
        &[]
    }

    fn state(&self) -> VcpuState {
        self.read_state()
    }
    fn set_state(&mut self, state: &VcpuState) {
        self.write_state(state);
    }
    fn enter_task(&mut self, switch: &TaskSwitch, state: &VcpuState, exception: Option<Exception>) {
        self.write_task(switch, state, exception);
    }

    fn read_msr(&self, index: u32) -> Result<u64, UnknownMsr> {
        self.get_msr(index)
    }
    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), UnknownMsr> {
        self.put_msr(index, value)
    }
    fn set_xcr0(&mut self, value: u64) {
        self.lazy.set_xcr0(value);
    }
    #[inline]
    fn xcr0(&self) -> u64 {
        self.lazy.xcr0()
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcs.write(control::TSC_OFFSET_FULL, offset);
    }

    #[inline]
    fn can_take_interrupt(&self) -> bool {
        self.interrupt_allowed()
    }
    #[inline]
    fn inject_interrupt(&mut self, vector: u8) {
        debug_assert!(self.interrupt_allowed());
        self.events.inject_interrupt(vector);
    }
    #[inline]
    fn request_interrupt_window(&mut self, wanted: bool) {
        self.set_primary(PrimaryControls::INTERRUPT_WINDOW_EXITING, wanted);
    }
    fn can_take_nmi(&self) -> bool {
        self.nmi_allowed()
    }
    fn is_in_nmi(&self) -> bool {
        self.nmi_blocked()
    }
    fn inject_nmi(&mut self) {
        debug_assert!(self.nmi_allowed());
        self.clear_nmi_blocking();
        self.events.inject_nmi();
    }
    fn request_nmi_window(&mut self, wanted: bool) {
        self.set_primary(PrimaryControls::NMI_WINDOW_EXITING, wanted);
    }
    fn inject_exception(&mut self, exception: Exception) {
        self.queue(&exception);
    }

    const CAN_VIRTUALISE_APIC: bool = true;
    fn can_virtualise_apic(&self, access: ApicAccess) -> bool {
        self.has_virtual_apic(access)
    }
    fn virtualise_apic(&mut self, start: Option<(ApicAccess, u8)>) {
        self.set_virtual_apic(start);
    }
    fn set_in_service(&mut self, vector: u8) {
        self.write_in_service(vector);
    }
    fn request_virtual_interrupt(&mut self, vector: u8) {
        self.set_requested(vector);
    }
    fn set_eoi_exits(&mut self, vectors: &[u32; 8]) {
        self.write_eoi_exits(vectors);
    }

    fn flush_tlb(&mut self) {
        self.want_flush();
    }

    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.write_dump(out)
    }
}
