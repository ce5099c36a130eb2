//! [`SvmVcpu`] as `hv` sees it. Nothing is decided here: each method names the one that does it.

use super::{
    length,
    vcpu::SvmVcpu,
    vmcb::{clean, exit_code},
};
use core::fmt;
use x86defs::{
    Efer, Exception, Gprs, Owner, Resume, Segment, SegmentRegister, TaskSwitch, UnknownMsr, Vcpu, VcpuState,
    paging::PagingContext,
};

impl Vcpu for SvmVcpu {
    fn load(&mut self) {
        self.enter_cpu();
    }
    fn unload(&mut self) {
        self.leave_cpu();
    }

    #[inline(always)]
    fn run<O: Owner<Self>>(owner: &mut O) -> O::Outcome {
        Self::round(owner)
    }
    #[inline(always)]
    fn complete(&mut self, resume: Resume) {
        self.finish(resume);
    }

    #[inline]
    fn gprs(&self) -> &Gprs {
        &self.frame.gprs
    }
    #[inline]
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.frame.gprs
    }
    #[inline]
    fn rip(&self) -> u64 {
        self.vmcb.save.rip
    }
    #[inline]
    fn rflags(&self) -> u64 {
        self.vmcb.save.rflags
    }
    #[inline]
    fn cr0(&self) -> u64 {
        self.vmcb.save.cr0
    }
    #[inline]
    fn cr3(&self) -> u64 {
        self.vmcb.save.cr3
    }
    #[inline]
    fn cr4(&self) -> u64 {
        self.vmcb.save.cr4
    }
    #[inline]
    fn efer(&self) -> u64 {
        self.vmcb.save.efer & !Efer::SVME.bits()
    }
    #[inline]
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
    #[inline]
    fn cpl(&self) -> u8 {
        length::cpl(&self.vmcb.save)
    }
    #[inline]
    fn in_64_bit_mode(&self) -> bool {
        length::long_code(&self.vmcb.save)
    }
    #[inline]
    fn paging(&self) -> PagingContext {
        length::paging_context(&self.vmcb.save)
    }
    /// With decode assists, for nested page faults (15.8.4).
    fn instruction_bytes(&self) -> &[u8] {
        let control = &self.vmcb.control;
        if self.has_decode_assists() && control.exit_code as u32 == exit_code::NPF {
            control.instruction.get(..usize::from(control.fetched & 0xf)).unwrap_or(&[])
        } else {
            &[]
        }
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
        self.vmcb.control.tsc_offset = offset;
        self.dirty(clean::INTERCEPTS);
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
        self.set_interrupt_window(wanted);
    }
    fn can_take_nmi(&self) -> bool {
        self.nmi_allowed()
    }
    fn is_in_nmi(&self) -> bool {
        self.nmi_blocked()
    }
    fn inject_nmi(&mut self) {
        debug_assert!(self.nmi_allowed());
        self.queue_nmi();
    }
    fn request_nmi_window(&mut self, wanted: bool) {
        self.set_nmi_window(wanted);
    }
    fn inject_exception(&mut self, exception: Exception) {
        self.queue(&exception);
    }

    fn flush_tlb(&mut self) {
        self.want_flush();
    }

    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.write_dump(out)
    }
}
