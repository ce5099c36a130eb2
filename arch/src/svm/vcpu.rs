//! A vCPU on AMD-V: what goes around the world switch.

use super::{
    Shared,
    asid::{Asid, Flush},
    decode::{self, Extent, Source, Transfer},
    length::{self, LengthCache},
    nmi::{DR6_BS, NmiBlocking, Step, StepResult},
    switch::{self, Frame},
    vmcb::{Control, INTERRUPT_SHADOW, NP_ENABLE, Vmcb, VmcbPage, clean, exit_code, intercept1, intercept2, tlb_control, vintr},
};
use crate::{
    apic,
    cpu::{self, cr},
    event::{Arbiter, SoftwareEvents},
    mm::guest::GuestRam,
    vcpu::{LazyState, Question, Registers, Shadow, complete},
};
use alloc::sync::Arc;
use core::arch::asm;
use x86defs::{
    ControlRegister, Cr0, Cr4, CreateError, Efer, Exception, Exit, Gpr, Gprs, Hpa, Owner, PAGE_SIZE, Resume, Rflags, VcpuConfig,
    VcpuState, vector,
};

/// PAUSE instructions in a tight loop before an exit, and how close together (in cycles) they make a loop (15.14.4).
const PAUSE_COUNT: u16 = 3000;
const PAUSE_THRESHOLD: u16 = 128;

/// Rare things to see to around the next entry, as bits, so that the common path makes one test.
mod todo {
    /// The guest's CPU is in shutdown.
    pub const SHUTDOWN: u32 = 1 << 0;
    /// Cached translations must be dropped.
    pub const FLUSH: u32 = 1 << 1;
    /// TLB_CONTROL must go back to "nothing".
    pub const FLUSHED: u32 = 1 << 2;
    /// `hv` waits for the guest to be able to take an NMI.
    pub const NMI_WINDOW: u32 = 1 << 3;
    /// The guest is being single-stepped behind its back.
    pub const STEP: u32 = 1 << 4;
    /// IRET is intercepted, because it ends an NMI.
    pub const IRET: u32 = 1 << 5;
    /// `hv` waits for an interrupt shadow to end.
    pub const SHADOW: u32 = 1 << 6;
}

/// A virtual CPU on AMD-V.
pub struct SvmVcpu {
    pub(super) frame: Frame,
    pub(super) vmcb: VmcbPage,
    pub(super) question: Question,
    pub(super) events: Arbiter,
    todo: u32,
    /// Clean bits after an entry: all, or none if the CPU does not have them.
    clean: u32,
    assists: Assists,
    lengths: LengthCache,
    pub(super) lazy: LazyState,
    memory: Arc<GuestRam>,
    shared: Arc<Shared>,
    /// The CPU that has handed out the identifier, and the identifier.
    asid: Option<(u32, Asid)>,
    nmi: NmiBlocking,
    step: Option<Step>,
    /// Where the guest was when it was last interrupted in an interrupt shadow.
    shadow_rip: u64,
    pub(super) debugctl: u64,
}

impl SvmVcpu {
    pub(super) fn new(shared: Arc<Shared>, memory: Arc<GuestRam>, config: &VcpuConfig) -> Result<Self, CreateError> {
        let mut vmcb = VmcbPage::new().ok_or(CreateError::OutOfMemory { wanted: PAGE_SIZE, free: 0 })?;
        set_up(&mut vmcb, &shared, &memory, config);
        let mut vcpu = Self {
            frame: Frame { gprs: Gprs::default(), vmcb: vmcb.hpa(), host_state: Hpa(0) },
            vmcb,
            question: Question::default(),
            events: Arbiter::new(),
            todo: todo::FLUSH,
            clean: if shared.caps.vmcb_clean { clean::ALL } else { 0 },
            assists: match (shared.caps.nrip_save, shared.caps.decode_assists) {
                (false, _) => Assists::None,
                (true, false) => Assists::NextRip,
                (true, true) => Assists::Decoded,
            },
            lengths: LengthCache::new(),
            lazy: LazyState::new(),
            memory,
            shared,
            asid: None,
            nmi: NmiBlocking::Open,
            // Not canonical, so nowhere.
            shadow_rip: 1 << 63,
            step: None,
            debugctl: 0,
        };
        vcpu.write_state(&VcpuState::reset(cpu::cpuid(1, 0).eax));
        Ok(vcpu)
    }

    /// True if the CPU supplies the bytes of an instruction that has made a nested page fault, and says where it ends.
    #[inline(always)]
    pub(super) fn has_decode_assists(&self) -> bool {
        self.assists == Assists::Decoded
    }

    /// Tells the CPU that the VMCB fields of `bits` have changed since it saw them.
    #[inline]
    pub(super) fn dirty(&mut self, bits: u32) {
        self.vmcb.control.clean &= !bits;
    }

    pub(super) fn enter_cpu(&mut self) {
        // `enable` has run on every CPU that loads vCPUs; if not, entering would be undefined, so better stop here.
        let shared = self.shared.clone();
        let (id, cpu) = shared.this_cpu().expect("SVM is not enabled on this CPU");
        self.frame.host_state = cpu.host_state.hpa();
        if !self.asid.is_some_and(|(on, asid)| on == id && cpu.asids.lock().is_current(asid)) {
            self.todo |= todo::FLUSH;
        }
        // Another CPU, or another vCPU's VMCB here in between: nothing is known to be cached.
        self.vmcb.control.clean = 0;
        self.load_cr2();
        self.lazy.load();
    }

    /// VMRUN loads CR2, but not on Bochs 2.7, where it stays what it was.
    fn load_cr2(&self) {
        // SAFETY: the host's own faults are fatal and set it themselves; nothing else reads it.
        unsafe { cr::set_cr2(self.vmcb.save.cr2) };
    }

    pub(super) fn leave_cpu(&mut self) {
        self.lazy.unload();
    }

    /// Enters the guest until it has a question, and has it answered.
    ///
    /// Inlined into the run loop, which so pays for saving and restoring its own registers once and not at every exit.
    #[inline(always)]
    pub(super) fn round<O: Owner<Self>>(owner: &mut O) -> O::Outcome {
        let vcpu = owner.vcpu();
        if vcpu.todo != 0
            && let Some(exit) = vcpu.prepare()
        {
            return decode::tell(owner, exit);
        }
        let gprs = &mut vcpu.frame.gprs;
        let vmcb = &mut *vcpu.vmcb;
        vmcb.control.event_inj = vcpu.events.take().event_inj();
        vmcb.save.rax = gprs[Gpr::Rax];
        vmcb.save.rsp = gprs[Gpr::Rsp];
        // SAFETY: `enable` ran on this CPU, as `enter_cpu` has checked; the VMCB is ours, intercepts INTR and NMI and masks virtual interrupts
        // (`set_up`); `host_state` is this CPU's. The contract of `Vcpu::run` has interrupts disabled.
        unsafe { switch::enter(&raw mut vcpu.frame) };
        let gprs = &mut vcpu.frame.gprs;
        let vmcb = &mut *vcpu.vmcb;
        vmcb.control.clean = vcpu.clean;
        gprs[Gpr::Rax] = vmcb.save.rax;
        gprs[Gpr::Rsp] = vmcb.save.rsp;
        if vmcb.control.exit_int_info as u32 >> 31 != 0 {
            vcpu.cut_short();
        }
        if vcpu.todo != 0
            && let Some(exit) = vcpu.look_back()
        {
            return decode::tell(owner, exit);
        }
        decode::decode(owner)
    }

    /// The exit has cut the delivery of an event short. RIP is still at an INT n, INT3 or INTO, so those are executed again, which is what
    /// injecting them would be without NRIP-save.
    #[cold]
    fn cut_short(&mut self) {
        self.events.interrupted(decode::int_info(&self.vmcb.control), SoftwareEvents::Execute);
    }

    /// Sees to what is in `todo` before an entry.
    #[cold]
    fn prepare(&mut self) -> Option<Exit> {
        if self.todo & todo::SHUTDOWN != 0 {
            self.todo &= !todo::SHUTDOWN;
            self.events.clear();
            return Some(Exit::TripleFault);
        }
        if self.todo & todo::FLUSH != 0 {
            self.todo &= !todo::FLUSH;
            self.flush();
        }
        if self.todo & todo::NMI_WINDOW != 0 {
            if self.nmi_allowed() {
                self.todo &= !todo::NMI_WINDOW;
                return Some(Exit::NmiWindow);
            }
            if self.events.is_busy() {
                // The event goes first. An interrupt of our own ends the entry right after its delivery, before the guest's next instruction.
                apic::kick(apic::id());
            } else if self.nmi != NmiBlocking::Blocked {
                // A shadow, or the IRET: over after one instruction. Otherwise the IRET intercept tells.
                self.start_step();
            }
        }
        if self.todo & todo::SHADOW != 0 {
            if !self.in_shadow() {
                self.todo &= !todo::SHADOW;
                return Some(Exit::InterruptWindow);
            }
            // What is in a shadow has nothing to be delivered before; an NMI's window may have begun the step already.
            if self.step.is_none() && !self.events.is_busy() {
                self.start_step();
            }
        }
        None
    }

    /// Makes sure that the next entry finds no translation of this vCPU's in the TLB.
    fn flush(&mut self) {
        let shared = self.shared.clone();
        let Some((id, cpu)) = shared.this_cpu() else { return };
        let mut asids = cpu.asids.lock();
        match self.asid {
            Some((on, asid)) if on == id && asids.is_current(asid) && shared.caps.flush_by_asid => {
                self.set_tlb_control(tlb_control::FLUSH_ASID);
            }
            _ => {
                let (asid, flush) = asids.assign();
                self.asid = Some((id, asid));
                self.vmcb.control.asid = asid.number;
                self.dirty(clean::ASID);
                if flush == Flush::All {
                    self.set_tlb_control(tlb_control::FLUSH_ALL);
                }
            }
        }
    }

    fn set_tlb_control(&mut self, value: u8) {
        self.vmcb.control.tlb_control = value;
        self.todo |= todo::FLUSHED;
    }

    /// Lets the guest execute one instruction. What that raises comes here first: pushed by the CPU, RFLAGS would show the guest our TF.
    fn start_step(&mut self) {
        let guest_tf = self.vmcb.save.rflags & Rflags::TF.bits() != 0;
        self.vmcb.save.rflags |= Rflags::TF.bits();
        self.nmi = self.nmi.settled(self.vmcb.save.rip);
        self.step = Some(Step { guest_tf, iret: self.nmi != NmiBlocking::Open });
        self.todo |= todo::STEP;
        self.set_intercepted_exceptions(INTERCEPTED_WHILE_STEPPING);
    }

    fn set_intercepted_exceptions(&mut self, vectors: u32) {
        self.vmcb.control.exceptions = vectors;
        self.dirty(clean::INTERCEPTS);
    }

    /// Sees to what is in `todo` after an exit.
    #[cold]
    fn look_back(&mut self) -> Option<Exit> {
        if self.todo & todo::FLUSHED != 0 {
            self.todo &= !todo::FLUSHED;
            self.vmcb.control.tlb_control = tlb_control::NOTHING;
        }
        if self.vmcb.control.exit_code as u32 == exit_code::IRET {
            // The intercept comes before the instruction, which is executed now.
            self.nmi = NmiBlocking::AtIret(self.vmcb.save.rip);
            self.set_intercept1(intercept1::IRET, false);
            self.todo &= !todo::IRET;
        }
        self.todo &= !todo::STEP;
        let step = self.step.take()?;
        self.set_intercepted_exceptions(INTERCEPTED_EXCEPTIONS);
        if !step.guest_tf && self.vmcb.control.exit_code as u32 != exit_code::EXCEPTION_DB {
            // It was not completed: RFLAGS are still those that the step began with.
            self.vmcb.save.rflags &= !Rflags::TF.bits();
        }
        if self.vmcb.control.exit_code as u32 != exit_code::EXCEPTION_DB {
            return None;
        }
        let result = step.result(self.vmcb.save.dr6);
        let (StepResult::Ours { dr6 } | StepResult::Guests { dr6 }) = result;
        if !step.guest_tf && !step.iret {
            // An IRET has loaded a TF of the guest's own.
            self.vmcb.save.rflags &= !Rflags::TF.bits();
        }
        self.vmcb.save.dr6 = dr6;
        self.dirty(clean::DEBUG_REGISTERS);
        match result {
            StepResult::Ours { .. } if self.todo & todo::NMI_WINDOW != 0 && self.nmi_allowed() => {
                self.todo &= !todo::NMI_WINDOW;
                Some(Exit::NmiWindow)
            }
            // Still no luck: `prepare` tries again.
            StepResult::Ours { .. } => Some(Exit::HostInterrupt),
            StepResult::Guests { .. } => None,
        }
    }

    pub(super) fn set_intercept1(&mut self, bits: u32, on: bool) {
        let word = &mut self.vmcb.control.intercept1;
        let new = if on { *word | bits } else { *word & !bits };
        if new != *word {
            *word = new;
            self.dirty(clean::INTERCEPTS);
        }
    }

    #[inline]
    pub(super) fn in_shadow(&self) -> bool {
        self.vmcb.control.interrupt_state & INTERRUPT_SHADOW != 0
    }

    #[inline]
    pub(super) fn interrupt_allowed(&self) -> bool {
        self.vmcb.save.rflags & Rflags::IF.bits() != 0 && !self.in_shadow() && !self.events.is_busy()
    }

    /// Asks for an exit as soon as the guest can take an interrupt: a virtual interrupt of highest priority, which is intercepted instead of
    /// delivered (15.21.4). The end of an interrupt shadow is looked for by a step, because QEMU 7.2 enters a guest without its shadow, which would
    /// have the interrupt come between STI and HLT.
    pub(super) fn set_interrupt_window(&mut self, wanted: bool) {
        let shadow = wanted && self.in_shadow() && self.vmcb.save.rflags & Rflags::IF.bits() != 0;
        self.todo = if shadow { self.todo | todo::SHADOW } else { self.todo & !todo::SHADOW };
        let wanted = wanted && !shadow;
        const REQUEST: u64 = vintr::V_IRQ | vintr::V_INTR_PRIO_MAX | vintr::V_IGN_TPR;
        let is_wanted = self.vmcb.control.intercept1 & intercept1::VINTR != 0;
        if wanted == is_wanted {
            return;
        }
        self.set_intercept1(intercept1::VINTR, wanted);
        let word = &mut self.vmcb.control.vintr;
        *word = if wanted { *word | REQUEST } else { *word & !REQUEST };
        self.dirty(clean::VINTR);
    }

    /// An interrupt of the host's has come before the guest has executed anything in its interrupt shadow: it is still in there. QEMU 7.2 enters a guest
    /// without its shadow, and reports none at the next exit.
    fn keep_shadow(&mut self) {
        let rip = self.vmcb.save.rip;
        if self.in_shadow() {
            self.shadow_rip = rip;
        } else if self.shadow_rip == rip {
            self.vmcb.control.interrupt_state |= INTERRUPT_SHADOW;
        }
    }

    pub(super) fn nmi_blocked(&self) -> bool {
        self.nmi.blocks(self.vmcb.save.rip)
    }

    pub(super) fn nmi_allowed(&self) -> bool {
        !self.nmi_blocked() && !self.in_shadow() && !self.events.is_busy()
    }

    pub(super) fn queue_nmi(&mut self) {
        self.events.inject_nmi();
        self.nmi = NmiBlocking::Blocked;
        self.set_intercept1(intercept1::IRET, true);
        self.todo = self.todo & !todo::NMI_WINDOW | todo::IRET;
    }

    /// An IRET that is completed without being executed.
    pub(super) fn unblock_nmi(&mut self) {
        self.nmi = NmiBlocking::Open;
        self.set_intercept1(intercept1::IRET, false);
        self.todo &= !todo::IRET;
    }

    pub(super) fn set_nmi_window(&mut self, wanted: bool) {
        self.todo = if wanted { self.todo | todo::NMI_WINDOW } else { self.todo & !todo::NMI_WINDOW };
    }

    pub(super) fn want_flush(&mut self) {
        self.todo |= todo::FLUSH;
    }

    /// Back to a CPU without anything pending, as INIT leaves it.
    pub(super) fn forget_events(&mut self) {
        self.events.clear();
        self.todo &= todo::FLUSH | todo::FLUSHED;
        self.nmi = NmiBlocking::Open;
        self.step = None;
        self.set_intercept1(intercept1::IRET, false);
        self.set_interrupt_window(false);
        self.vmcb.control.interrupt_state = 0;
    }

    /// Raises an exception at RIP.
    pub(super) fn queue(&mut self, exception: &Exception) {
        if let Some(address) = exception.cr2 {
            self.vmcb.save.cr2 = address;
            self.dirty(clean::CR2);
            if self.lazy.is_loaded() {
                self.load_cr2();
            }
        }
        if exception.vector == vector::DB {
            // Cleared by the delivery, which injecting is not; some CPUs have done so before the intercept (15.12.2), and Bochs 2.7 has not.
            self.vmcb.save.dr7 &= !DR7_GD;
            self.dirty(clean::DEBUG_REGISTERS);
        }
        self.events.raise(exception, self.vmcb.save.cr0);
        if self.events.is_shutdown() {
            self.todo |= todo::SHUTDOWN;
        }
    }

    fn is_rdtscp(&self) -> bool {
        match self.vmcb.control.exit_code as u32 {
            exit_code::RDTSCP => true,
            // QEMU 7.2, which does not say where instructions end, reports it as RDTSC.
            exit_code::RDTSC if self.assists == Assists::None => length::is_rdtscp(&self.vmcb.save, &self.memory),
            _ => false,
        }
    }

    #[inline(always)]
    pub(super) fn finish(&mut self, resume: Resume) {
        if matches!(resume, Resume::Tsc(_)) && self.is_rdtscp() {
            // It reads TSC_AUX as well.
            self.frame.gprs[Gpr::Rcx] = self.lazy.tsc_aux().unwrap_or(0) & 0xffff_ffff;
        }
        complete(self, resume);
    }

    /// For the crash dump: what waits to be delivered or done.
    pub(super) fn pending(&self) -> (Arbiter, NmiBlocking, u32) {
        (self.events, self.nmi, self.todo)
    }
}

impl Source for SvmVcpu {
    #[inline(always)]
    fn control(&self) -> &Control {
        &self.vmcb.control
    }
    #[inline(always)]
    fn gprs(&self) -> &Gprs {
        &self.frame.gprs
    }
    #[inline(always)]
    fn question(&mut self) -> &mut Question {
        &mut self.question
    }
    #[inline(always)]
    fn extent(&mut self, code: u32) -> Extent {
        if self.assists == Assists::None {
            self.lengths.extent(code, &self.vmcb.save, &self.memory)
        } else {
            supplied(code, &self.vmcb, self.assists, &mut self.lengths, &self.memory)
        }
    }

    fn transfer(&mut self) -> Transfer {
        let save = &self.vmcb.save;
        // A task switch is not among the exits for which every CPU says where the instruction ends (15.7.1).
        let supplied = if self.assists == Assists::None { 0 } else { self.vmcb.control.next_rip };
        let by_instruction = supplied != 0 && supplied != save.rip;
        let next_rip = if by_instruction { supplied } else { length::after_transfer(save, &self.memory) };
        if by_instruction {
            // Bochs 2.7 reports the last event before an INT n as the one that is being delivered.
            self.events.clear();
        }
        Transfer { rip: self.vmcb.save.rip, next_rip, by_instruction }
    }

    #[cold]
    fn serve(&mut self, code: u32) -> Exit {
        match code {
            // Taken at STGI.
            exit_code::NMI => return Exit::HostNmi,
            // Recorded but not delivered: the host's handler finds it in the banks.
            // SAFETY: the gate is present; its handler ends the host or returns.
            exit_code::EXCEPTION_MC => unsafe { asm!("int 18") },
            // `look_back` has seen to it; entering again is all there is to do.
            exit_code::IRET => {}
            // INTR: still pending at the local APIC. SMI and INIT were taken at STGI.
            _ => {
                self.keep_shadow();
                cpu::serve_interrupts();
            }
        }
        Exit::HostInterrupt
    }
}

/// How much the CPU says about the instruction that has exited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Assists {
    /// Nothing: it is read from the guest's memory.
    None,
    /// Where it ends.
    NextRip,
    /// That, and the operand of MOV CR.
    Decoded,
}

/// The extent of an instruction on a CPU that saves the next RIP. The operand of MOV CR comes from decode assists or from the instruction.
fn supplied(code: u32, vmcb: &Vmcb, assists: Assists, lengths: &mut LengthCache, memory: &GuestRam) -> Extent {
    let next_rip = vmcb.control.next_rip;
    if code > exit_code::CR15_WRITE {
        return Extent { next_rip, operand: Gpr::Rax, long: false };
    }
    // EXITINFO1 bit 63: it is a MOV, and bits 3:0 are the register (15.8.1).
    let info = vmcb.control.exit_info1;
    if assists == Assists::Decoded && info >> 63 != 0 {
        return Extent { next_rip, operand: Gpr::from_index(info as u8), long: length::long_code(&vmcb.save) };
    }
    Extent { next_rip, ..lengths.extent(code, &vmcb.save, memory) }
}

/// DR7.GD: accesses to debug registers raise #DB.
const DR7_GD: u64 = 1 << 13;

/// A guest can make the delivery of #AC or #DB raise another one on and on, with no instruction boundary at which an interrupt could stop it:
/// #AC with a misaligned stack, #DB with a breakpoint on the stack that the exception is pushed to. Intercepting both gets the host
/// back into the loop. #MC is the machine's, not the guest's.
const INTERCEPTED_EXCEPTIONS: u32 = 1 << vector::DB | 1 << vector::AC | 1 << vector::MC;
/// All but the traps of INT3 and INTO, and what is not an exception.
const INTERCEPTED_WHILE_STEPPING: u32 = !(1 << vector::NMI | 1 << vector::BP | 1 << vector::OF);

/// What stays as it is for the life of a vCPU.
fn set_up(vmcb: &mut Vmcb, shared: &Shared, memory: &GuestRam, config: &VcpuConfig) {
    let control = &mut vmcb.control;
    // CR8 is the virtual local APIC's. CR4 must not take bits that the guest's CPUID does not show; CR0 and CR3 are the guest's own.
    control.cr_read = 1 << 8;
    control.cr_write = 1 << 4 | 1 << 8;
    control.exceptions = INTERCEPTED_EXCEPTIONS;
    control.intercept1 = intercept1::INTR
        | intercept1::NMI
        | intercept1::SMI
        | intercept1::INIT
        | intercept1::RDPMC
        | intercept1::CPUID
        | intercept1::INVD
        | intercept1::HLT
        | intercept1::INVLPGA
        | intercept1::IOIO
        | intercept1::MSR
        | intercept1::TASK_SWITCH
        | intercept1::FERR_FREEZE
        | intercept1::SHUTDOWN;
    control.intercept2 = intercept2::VMRUN
        | intercept2::VMMCALL
        | intercept2::VMLOAD
        | intercept2::VMSAVE
        | intercept2::STGI
        | intercept2::CLGI
        | intercept2::SKINIT
        | intercept2::WBINVD
        | intercept2::MONITOR
        | intercept2::MWAIT
        | intercept2::MWAIT_ARMED
        | intercept2::XSETBV
        | intercept2::RDPRU;
    if config.intercept_rdtsc {
        control.intercept1 |= intercept1::RDTSC;
        control.intercept2 |= intercept2::RDTSCP;
    }
    // An only vCPU waits for nobody else; but where the CPU holds back host interrupts while the guest has its own disabled (Bochs does), the filter
    // is what ends the turn of one that waits so for a device.
    if shared.caps.pause_filter {
        control.intercept1 |= intercept1::PAUSE;
        control.pause_filter_count = PAUSE_COUNT;
        control.pause_filter_threshold = if shared.caps.pause_filter_threshold { PAUSE_THRESHOLD } else { 0 };
    } else if config.vcpus > 1 {
        control.intercept1 |= intercept1::PAUSE;
    }
    control.iopm_base = shared.maps.io.hpa().0;
    control.msrpm_base = shared.maps.msr.hpa().0;
    control.vintr = vintr::V_INTR_MASKING;
    control.nested_control = NP_ENABLE;
    control.n_cr3 = memory.root().0;
    vmcb.save.g_pat = super::state::PAT_RESET;
}

impl Registers for SvmVcpu {
    #[inline(always)]
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.frame.gprs
    }
    #[inline(always)]
    fn question(&mut self) -> &mut Question {
        &mut self.question
    }
    #[inline(always)]
    fn set_rip(&mut self, rip: u64) {
        self.vmcb.save.rip = rip;
    }
    #[inline(always)]
    fn retire(&mut self) -> u64 {
        let vmcb = &mut *self.vmcb;
        vmcb.save.rip = self.question.next_rip;
        vmcb.control.interrupt_state &= !INTERRUPT_SHADOW;
        vmcb.save.rflags
    }
    #[inline(always)]
    fn rflags(&self) -> u64 {
        self.vmcb.save.rflags
    }
    #[inline(always)]
    fn set_rflags(&mut self, rflags: u64) {
        self.vmcb.save.rflags = rflags;
    }
    #[inline(always)]
    fn set_shadow(&mut self, shadow: Shadow) {
        match shadow {
            Shadow::None => self.vmcb.control.interrupt_state &= !INTERRUPT_SHADOW,
            Shadow::MovSs => self.vmcb.control.interrupt_state |= INTERRUPT_SHADOW,
        }
    }

    fn write_control(&mut self, register: ControlRegister, value: u64) {
        /// Bits of CR0 and CR4 that change what cached translations mean (APM vol. 2, 5.5.2).
        const CR0_PAGING: u64 = Cr0::PG.union(Cr0::WP).union(Cr0::PE).bits();
        const CR4_PAGING: u64 = Cr4::PAE
            .union(Cr4::PSE)
            .union(Cr4::PGE)
            .union(Cr4::PCIDE)
            .union(Cr4::SMEP)
            .union(Cr4::SMAP)
            .union(Cr4::LA57)
            .union(Cr4::PKE)
            .bits();
        let save = &mut self.vmcb.save;
        match register {
            ControlRegister::Cr0 => {
                let changed = save.cr0 ^ value;
                save.cr0 = value;
                if save.efer & Efer::LME.bits() != 0 {
                    let lma = if value & Cr0::PG.bits() != 0 { Efer::LMA.bits() } else { 0 };
                    save.efer = save.efer & !Efer::LMA.bits() | lma;
                }
                if changed & CR0_PAGING != 0 {
                    self.want_flush();
                }
            }
            ControlRegister::Cr3 => {
                // Bit 63 asks to keep the PCID's entries; it is not stored.
                save.cr3 = value & !(1 << 63);
                self.want_flush();
            }
            ControlRegister::Cr4 => {
                let changed = save.cr4 ^ value;
                save.cr4 = value;
                if changed & CR4_PAGING != 0 {
                    self.want_flush();
                }
            }
            // The virtual local APIC keeps it.
            ControlRegister::Cr8 => {}
        }
        self.dirty(clean::CONTROL_REGISTERS);
    }

    fn raise(&mut self, exception: &Exception) {
        self.queue(exception);
    }

    fn single_step(&mut self) {
        self.vmcb.save.dr6 |= DR6_BS;
        self.dirty(clean::DEBUG_REGISTERS);
        self.queue(&Exception::DB);
    }
}
