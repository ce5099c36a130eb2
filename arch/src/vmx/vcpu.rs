//! A vCPU on VT-x: entry, completion of exits, events. Registers and MSRs are in [`super::state`].
//!
//! Manual: see [`super::spec`].
//!
//! Each VMREAD and VMWRITE is an exit itself when Bulkhead runs nested, so fields are read when somebody asks, RIP, RFLAGS, RSP and
//! the interruptibility at most once for each exit, and control words are written when they change.

use super::{
    caps::{Controls, Invalidate},
    decode::{self, Fields},
    instructions::{Failed, invept, invvpid},
    spec::{
        EntryControls, PENDING_DEBUG_BS, PrimaryControls, SecondaryControls, control, guest, interruptibility, interruption,
        reason, ro,
    },
    switch::{EXIT, FAILED_VALID, Frame, enter},
    vmcs::Vmcs,
    vpid::Vpid,
};
use crate::{
    cpu::{self, cr, percpu},
    event::{Arbiter, Event, EventKind, SoftwareEvents},
    mm::guest::GuestRam,
    vcpu::{LazyState, OwnedPages, Question, Registers, Shadow, SyscallMsrs, complete, next_rip},
};
use alloc::{boxed::Box, sync::Arc};
use core::{
    cell::{Cell, UnsafeCell},
    fmt,
};
use x86defs::{
    ControlRegister, Cr0, Cr4, CreateError, EntryFailure, Exception, Exit, Gpr, Gprs, Owner, Resume, Rflags, VcpuConfig,
    VcpuState, VirtualApicPage, Width, vector,
};

/// What an entry has to do beyond entering: bits of [`VmxVcpu::pending`].
mod pending {
    /// RSP was written through [`x86defs::Vcpu::gprs_mut`].
    pub const RSP: u8 = 1 << 0;
    /// Cached translations must go.
    pub const FLUSH: u8 = 1 << 1;
    /// The vCPU is not loaded, so it cannot be entered.
    pub const UNLOADED: u8 = 1 << 2;
}

/// Bits of [`Cached::valid`].
mod valid {
    pub const RIP: u8 = 1 << 0;
    pub const RFLAGS: u8 = 1 << 1;
    pub const RSP: u8 = 1 << 2;
    pub const INTERRUPTIBILITY: u8 = 1 << 3;
}

/// Guest registers that were read from the VMCS since the last exit. What is valid here is also what the VMCS holds.
#[derive(Default, Debug)]
pub(super) struct Cached {
    valid: Cell<u8>,
    rip: Cell<u64>,
    rflags: Cell<u64>,
    interruptibility: Cell<u32>,
}

/// A virtual CPU.
pub struct VmxVcpu {
    /// In a box, because the VMCS holds its address. RSP's slot is filled when somebody asks, through a shared reference.
    frame: Box<UnsafeCell<Frame>>,
    pub(super) vmcs: Vmcs,
    pub(super) cached: Cached,
    pending: u8,
    pub(super) events: Arbiter,
    /// An NMI was injected, and its handler may not have come to its IRET yet.
    pub(super) nmi_in_service: bool,
    pub(super) question: Question,
    /// The primary controls as they are in the VMCS.
    primary: u32,
    pub(super) controls: Controls,
    pub(super) cr0_mask: u64,
    pub(super) cr4_mask: u64,
    pub(super) cr0_shadow: u64,
    pub(super) cr4_shadow: u64,
    /// The guest's CR2 while the vCPU is not loaded; the CPU's own CR2 is the guest's while it is.
    pub(super) cr2: u64,
    /// The same for DR6.
    pub(super) dr6: u64,
    /// The same for the MSRs of SYSCALL and SWAPGS.
    pub(super) syscall: SyscallMsrs,
    pub(super) lazy: LazyState,
    /// The guest's PAT, if the hardware does not switch it.
    pub(super) pat: u64,
    pub(super) memory: Arc<GuestRam>,
    pub(super) ept_pointer: u64,
    vpid: Option<Vpid>,
    /// The CPU that last loaded it: another one may hold old translations of its VPID.
    last_cpu: Option<u32>,
    /// The VM-instruction error of a VMLAUNCH or VMRESUME that failed; 0 without a current VMCS.
    instruction_error: Option<u64>,
    /// Held for the VMCS, which has the address of one of the two.
    pub(super) msr_bitmaps: Arc<OwnedPages>,
    /// Held for the VMCS, which has its page's address. `None` if this CPU cannot virtualise local APICs.
    pub(super) apic_page: Option<Arc<dyn VirtualApicPage>>,
}

// SAFETY: the cells and the frame are reached through the vCPU only, which has one owner; the VMCS moves between CPUs by `unload`.
unsafe impl Send for VmxVcpu {}

impl Fields for VmxVcpu {
    #[inline(always)]
    fn field(&self, field: u32) -> u64 {
        // SAFETY: exits are decoded while the vCPU is loaded.
        unsafe { self.vmcs.read_current(field) }
    }
    #[inline(always)]
    fn gpr(&self, register: Gpr) -> u64 {
        self.read_gpr(register)
    }
    fn cr0(&self) -> u64 {
        self.read_cr0()
    }
    fn long_code(&self) -> bool {
        self.in_long_code()
    }
    #[inline(never)]
    fn serve(&mut self, reason: u32) {
        self.serve_exit(reason);
    }
    #[inline(always)]
    fn remember_width(&mut self, width: Width) {
        self.question.width = width;
    }
    fn remember_control(&mut self, qualification: u64) {
        // CLTS and LMSW name CR0, too.
        self.question.control = match qualification & 0xf {
            3 => ControlRegister::Cr3,
            4 => ControlRegister::Cr4,
            8 => ControlRegister::Cr8,
            _ => ControlRegister::Cr0,
        };
        self.question.gpr = decode::cr_gpr(qualification);
        self.question.long = self.in_long_code();
        if self.question.gpr == Gpr::Rsp {
            // A result there must reach the VMCS.
            self.all_gprs_mut();
        }
    }
}

impl VmxVcpu {
    /// A vCPU at its reset state in `memory`, whose tables are EPT's; `msr_bitmaps` are the pages of the MSR bitmaps, without
    /// and with a virtual x2APIC.
    ///
    /// # Errors
    /// No memory, or no VPID left.
    pub fn new(
        controls: &Controls,
        memory: Arc<GuestRam>,
        msr_bitmaps: Arc<OwnedPages>,
        config: &VcpuConfig,
    ) -> Result<Self, CreateError> {
        let out_of_memory = CreateError::OutOfMemory { wanted: x86defs::PAGE_SIZE, free: crate::mm::frames::free_bytes() };
        let vmcs = Vmcs::new(controls.revision).ok_or(out_of_memory)?;
        let vpid = match controls.invvpid {
            Some(_) => Some(Vpid::allocate().ok_or(CreateError::OutOf("VPIDs"))?),
            None => None,
        };
        let rdtsc = if config.intercept_rdtsc && controls.rdtsc_exiting { PrimaryControls::RDTSC_EXITING.bits() } else { 0 };
        let pause = if config.vcpus > 1 && controls.pause_exiting { PrimaryControls::PAUSE_EXITING.bits() } else { 0 };
        let [cr0_mask, cr4_mask] = super::state::owned_bits(controls, config.cr4_allowed);
        let mut vcpu = Self {
            frame: Box::new(UnsafeCell::new(Frame::default())),
            vmcs,
            cached: Cached::default(),
            pending: pending::FLUSH | pending::UNLOADED,
            events: Arbiter::new(),
            nmi_in_service: false,
            question: Question::default(),
            primary: controls.primary | rdtsc | pause,
            controls: *controls,
            cr0_mask,
            cr4_mask,
            cr0_shadow: 0,
            cr4_shadow: 0,
            cr2: 0,
            dr6: 0,
            syscall: SyscallMsrs::default(),
            lazy: LazyState::new(),
            pat: 0,
            ept_pointer: super::ept_pointer(memory.root()),
            memory,
            vpid,
            last_cpu: None,
            instruction_error: None,
            msr_bitmaps,
            apic_page: config.apic_page.clone().filter(|_| controls.virtual_apic || controls.virtual_xapic),
        };
        vcpu.vmcs.write_constants(controls);
        for (field, value) in [
            (control::PRIMARY_PROCBASED_EXEC_CONTROLS, u64::from(vcpu.primary)),
            (control::VMENTRY_CONTROLS, u64::from(controls.entry)),
            (control::MSR_BITMAPS_ADDR_FULL, vcpu.msr_bitmaps.hpa().0),
            (control::EPTP_FULL, vcpu.ept_pointer),
            (control::TSC_OFFSET_FULL, 0),
            (control::CR0_GUEST_HOST_MASK, cr0_mask),
            (control::CR4_GUEST_HOST_MASK, cr4_mask),
        ] {
            vcpu.vmcs.write(field, value);
        }
        if let Some(vpid) = &vcpu.vpid {
            vcpu.vmcs.write(control::VPID, u64::from(vpid.get()));
        }
        vcpu.write_apic_page();
        if controls.uses(SecondaryControls::PAUSE_LOOP_EXITING) {
            // 26.6.13, in TSC ticks: PAUSEs at most `gap` apart are one loop, and a loop exits after `window`. A lock is held for
            // less than 4096 ticks unless its holder does not run. An only vCPU waits for nobody else.
            vcpu.vmcs.write(control::PLE_GAP, 128);
            vcpu.vmcs.write(control::PLE_WINDOW, if config.vcpus > 1 { 4096 } else { u64::from(u32::MAX) });
        }
        if controls.uses(SecondaryControls::ENABLE_XSAVES_XRSTORS) {
            vcpu.vmcs.write(control::XSS_EXITING_BITMAP_FULL, 0);
        }
        vcpu.write_initial_msrs();
        vcpu.write_state(&VcpuState::reset(0));
        Ok(vcpu)
    }

    // ---- General-purpose registers and what is cached ----

    /// All but RSP, which may be old.
    #[inline(always)]
    fn switched_gprs(&self) -> &Gprs {
        // SAFETY: the frame is written by an entry (`&mut self`), through `frame_mut` (`&mut self`), and in RSP's slot by `all_gprs`,
        // when no reference that could see it has been given out since the last exit.
        unsafe { &(*self.frame.get()).gprs }
    }

    #[inline(always)]
    fn frame_mut(&mut self) -> &mut Frame {
        self.frame.get_mut()
    }

    /// All sixteen, RSP read from the VMCS if that has not been done since the last exit.
    pub(super) fn all_gprs(&self) -> &Gprs {
        if !self.has(valid::RSP) {
            let rsp = self.vmcs.read(guest::RSP);
            // SAFETY: this is the first call since the last exit, so no reference from here is alive; `switched_gprs` gives its
            // references to this module only, which does not keep them.
            unsafe { (&mut (*self.frame.get()).gprs)[Gpr::Rsp] = rsp };
            self.now_valid(valid::RSP);
        }
        self.switched_gprs()
    }

    /// All sixteen, to be written: RSP goes to the VMCS at the next entry.
    pub(super) fn all_gprs_mut(&mut self) -> &mut Gprs {
        self.all_gprs();
        self.pending |= pending::RSP;
        &mut self.frame_mut().gprs
    }

    #[inline(always)]
    pub(super) fn read_gpr(&self, register: Gpr) -> u64 {
        if matches!(register, Gpr::Rsp) { self.all_gprs()[register] } else { self.switched_gprs()[register] }
    }

    #[inline(always)]
    pub(super) fn write_gpr(&mut self, register: Gpr, value: u64) {
        let gprs = if matches!(register, Gpr::Rsp) { self.all_gprs_mut() } else { &mut self.frame_mut().gprs };
        gprs[register] = value;
    }

    #[inline(always)]
    fn has(&self, bit: u8) -> bool {
        self.cached.valid.get() & bit != 0
    }

    #[inline(always)]
    fn now_valid(&self, bit: u8) {
        self.cached.valid.set(self.cached.valid.get() | bit);
    }

    /// A cached register, or what `read` gives.
    #[inline(always)]
    fn cached<T: Copy>(&self, bit: u8, cell: &Cell<T>, read: impl FnOnce() -> T) -> T {
        if !self.has(bit) {
            cell.set(read());
            self.now_valid(bit);
        }
        cell.get()
    }

    pub(super) fn read_rip(&self) -> u64 {
        self.cached(valid::RIP, &self.cached.rip, || self.vmcs.read(guest::RIP))
    }

    pub(super) fn write_rip(&mut self, rip: u64) {
        self.cached.rip.set(rip);
        self.now_valid(valid::RIP);
        self.vmcs.write(guest::RIP, rip);
    }

    pub(super) fn read_rflags(&self) -> u64 {
        self.cached(valid::RFLAGS, &self.cached.rflags, || self.vmcs.read(guest::RFLAGS))
    }

    pub(super) fn write_rflags(&mut self, rflags: u64) {
        self.cached.rflags.set(rflags);
        self.now_valid(valid::RFLAGS);
        self.vmcs.write(guest::RFLAGS, rflags);
    }

    pub(super) fn interruptibility(&self) -> u32 {
        self.cached(valid::INTERRUPTIBILITY, &self.cached.interruptibility, || {
            self.vmcs.read(guest::INTERRUPTIBILITY_STATE) as u32
        })
    }

    #[cold]
    pub(super) fn write_interruptibility(&mut self, value: u32) {
        self.cached.interruptibility.set(value);
        self.now_valid(valid::INTERRUPTIBILITY);
        self.vmcs.write(guest::INTERRUPTIBILITY_STATE, u64::from(value));
    }

    /// Ends an interrupt shadow. The vCPU is loaded.
    #[inline(always)]
    fn clear_shadow(&mut self) {
        let now = if self.has(valid::INTERRUPTIBILITY) {
            self.cached.interruptibility.get()
        } else {
            // SAFETY: completions and entries happen with the VMCS current.
            unsafe { self.vmcs.read_current(guest::INTERRUPTIBILITY_STATE) as u32 }
        };
        if now & interruptibility::SHADOW != 0 {
            self.write_interruptibility(now & !interruptibility::SHADOW);
        }
    }

    /// The next entry drops translations.
    pub(super) fn want_flush(&mut self) {
        self.pending |= pending::FLUSH;
    }

    // ---- Completion of exits ----

    /// Finds out where the instruction that exited ends. The VMCS is current.
    #[inline(always)]
    fn find_next_rip(&self) -> u64 {
        // SAFETY: completions happen with the VMCS current.
        let (rip, length) = unsafe {
            let rip = if self.has(valid::RIP) { self.cached.rip.get() } else { self.vmcs.read_current(guest::RIP) };
            (rip, self.vmcs.read_current(ro::VMEXIT_INSTRUCTION_LEN) & 0xf)
        };
        // Whether the code is 64-bit matters, and is read, only if the sum leaves a 4-GiB block.
        let long = (rip.wrapping_add(length) ^ rip) >> 32 == 0 || self.in_long_code();
        next_rip(rip, length, long)
    }

    /// Completes the last exit.
    #[inline(always)]
    pub(super) fn finish(&mut self, resume: Resume) {
        // VMREAD and VMWRITE of another vCPU's VMCS, or of none, would be a mistake of the caller's.
        debug_assert!(self.vmcs.is_active());
        match resume {
            Resume::Tsc(value) => {
                if self.vmcs.read(ro::EXIT_REASON) as u32 == reason::RDTSCP {
                    let aux = self.lazy.tsc_aux().unwrap_or(0);
                    self.frame_mut().gprs[Gpr::Rcx] = aux & 0xffff_ffff;
                }
                complete(self, Resume::MsrRead(value));
            }
            _ => complete(self, resume),
        }
    }

    /// Queues an exception, and puts its address into CR2.
    pub(super) fn queue(&mut self, exception: &Exception) {
        if let Some(address) = exception.cr2 {
            self.write_cr2(address);
        }
        let cr0 = self.read_cr0();
        self.events.raise(exception, cr0);
    }

    // ---- Entry and exit ----

    /// Enters until the next exit, and has its question answered.
    #[inline(always)]
    pub(super) fn enter_guest<O: Owner<Self>>(owner: &mut O) -> O::Outcome {
        let vcpu = owner.vcpu();
        if vcpu.events.is_busy() && !vcpu.commit_event() {
            return decode::tell(owner, Exit::TripleFault);
        }
        if vcpu.pending != 0 && !vcpu.commit_pending() {
            // A mistake of the caller's, which costs this guest only.
            return decode::tell(owner, Exit::EntryFailed(EntryFailure { code: 0, info: 0 }));
        }
        let frame = vcpu.frame.get();
        // SAFETY: the vCPU is loaded, as `commit_pending` has checked: its VMCS is current, with the host state of this CPU and this frame.
        // Whoever calls `run` has interrupts off.
        let outcome = unsafe { enter(frame) };
        vcpu.cached.valid.set(0);
        if outcome != EXIT {
            let exit = vcpu.entry_failed(outcome);
            return decode::tell(owner, exit);
        }
        // SAFETY: as above.
        let raw = unsafe { vcpu.vmcs.read_current(ro::EXIT_REASON) };
        decode::decode(raw as u32, owner)
    }

    /// Writes the queued event to the VMCS (26.8.3). False if the guest's CPU is in shutdown instead.
    #[inline(never)]
    fn commit_event(&mut self) -> bool {
        if self.events.is_shutdown() {
            return false;
        }
        let event = self.events.take();
        self.nmi_in_service |= event.kind() == Some(EventKind::Nmi);
        // 28.3.1.5: no event goes into an interrupt shadow; its handler's first instruction is out of it anyway.
        self.clear_shadow();
        if event.has_error_code() {
            self.vmcs.write(control::VMENTRY_EXCEPTION_ERR_CODE, u64::from(event.error_code()));
        }
        if event.is_software() {
            self.vmcs.write(control::VMENTRY_INSTRUCTION_LEN, u64::from(event.length()));
        }
        self.vmcs.write(control::VMENTRY_INTERRUPTION_INFO_FIELD, u64::from(event.info()));
        true
    }

    /// False if the vCPU is not loaded.
    #[cold]
    #[inline(never)]
    fn commit_pending(&mut self) -> bool {
        if self.pending & pending::UNLOADED != 0 {
            return false;
        }
        if self.pending & pending::RSP != 0 {
            let rsp = self.switched_gprs()[Gpr::Rsp];
            self.vmcs.write(guest::RSP, rsp);
        }
        if self.pending & pending::FLUSH != 0 {
            self.flush();
        }
        self.pending = 0;
        true
    }

    /// Drops what this CPU has cached for this vCPU (30.4.3.3).
    fn flush(&self) {
        // SAFETY: `Controls` names types that the CPU has, and this CPU is in VMX operation.
        let invalidated = unsafe {
            let linear = match (&self.vpid, self.controls.invvpid) {
                (Some(vpid), Some(Invalidate::Single)) => invvpid(1, vpid.get()),
                (Some(_), Some(Invalidate::All)) => invvpid(2, 0),
                // Without a VPID, every entry drops them.
                _ => Ok(()),
            };
            let physical = match self.controls.invept {
                Invalidate::Single => invept(1, self.ept_pointer),
                Invalidate::All => invept(2, 0),
            };
            linear.and(physical)
        };
        // Only a descriptor with a wrong VPID or EPT pointer fails.
        debug_assert_ne!(invalidated, Err(Failed));
    }

    #[cold]
    fn entry_failed(&mut self, outcome: u64) -> Exit {
        let code = if outcome == FAILED_VALID { self.vmcs.read(ro::VM_INSTRUCTION_ERROR) } else { 0 };
        self.instruction_error = Some(code);
        Exit::EntryFailed(EntryFailure { code, info: 0 })
    }

    /// Serves the host's interrupts, and looks after an event whose delivery the exit has cut short.
    fn serve_exit(&mut self, basic: u32) {
        match basic {
            reason::EXTERNAL_INTERRUPT => {
                let info = self.vmcs.read(ro::VMEXIT_INTERRUPTION_INFO) as u32;
                cpu::dispatch(interruption::vector(info));
            }
            reason::PREEMPTION_TIMER => {
                self.vmcs.write(guest::VMX_PREEMPTION_TIMER_VALUE, u64::from(self.controls.turn.unwrap_or(u32::MAX)));
                cpu::serve_interrupts();
            }
            // A window opens once for each request; otherwise one that nobody closes would end every entry at once.
            reason::INTERRUPT_WINDOW => self.set_primary(PrimaryControls::INTERRUPT_WINDOW_EXITING, false),
            reason::NMI_WINDOW => self.set_primary(PrimaryControls::NMI_WINDOW_EXITING, false),
            reason::ENTRY_MACHINE_CHECK => machine_check(),
            reason::EXCEPTION_OR_NMI => {
                let info = self.vmcs.read(ro::VMEXIT_INTERRUPTION_INFO) as u32;
                match (interruption::kind(info), interruption::vector(info)) {
                    (interruption::NMI, _) => {
                        cpu::dispatch(vector::NMI);
                        return;
                    }
                    (_, vector::MC) => return machine_check(),
                    (kind, vector::DB) => self.debug_exception(kind),
                    _ => {}
                }
                self.interrupted_delivery(info, interruption::vector(info) != vector::DF);
            }
            _ => {
                let qualification = self.vmcs.read(ro::EXIT_QUALIFICATION) as u32;
                self.interrupted_delivery(qualification, basic == reason::EPT_VIOLATION);
            }
        }
    }

    /// 26.9.3 and 29.2.4: an event whose delivery led to the exit is delivered again, unless the exit's answer is an exception.
    /// `info` has bit 12 where the exit says that a faulting IRET had unblocked NMIs; it counts if `defined`.
    #[inline]
    fn interrupted_delivery(&mut self, info: u32, defined: bool) {
        let vectoring = self.vmcs.read(ro::IDT_VECTORING_INFO) as u32;
        if vectoring & interruption::VALID != 0 {
            self.requeue(vectoring);
        } else if defined && info & interruption::NMI_UNBLOCKING != 0 {
            let now = self.interruptibility();
            self.write_interruptibility(now | interruptibility::NMI);
        }
    }

    #[cold]
    fn requeue(&mut self, vectoring: u32) {
        let error_code =
            if vectoring & interruption::ERROR_CODE_VALID != 0 { self.vmcs.read(ro::IDT_VECTORING_ERR_CODE) as u32 } else { 0 };
        let mut event = Event::from_hardware(vectoring, error_code);
        if event.is_software() {
            event = event.with_length(self.vmcs.read(ro::VMEXIT_INSTRUCTION_LEN) as u8);
        }
        if event.kind() == Some(EventKind::Nmi) {
            // It has not been delivered, so it blocks nothing yet; 28.3.1.5 wants it so for the second try.
            let now = self.interruptibility();
            self.write_interruptibility(now & !interruptibility::NMI);
        }
        self.events.interrupted(event, SoftwareEvents::Inject);
    }

    /// A #DB that exits has not changed DR6, DR7 and DEBUGCTL yet (29.1), and injecting it will not: do what its delivery does.
    #[cold]
    fn debug_exception(&mut self, kind: u32) {
        const TRAPS: u64 = 0xf;
        const DETECTED_AND_STEP: u64 = 1 << 13 | 1 << 14;
        const GENERAL_DETECT: u64 = 1 << 13;
        if kind == interruption::PRIVILEGED_SOFTWARE_EXCEPTION {
            // INT1 exits with RIP at itself, but is a trap. It sets nothing in DR6.
            self.finish(Resume::Advance);
            return;
        }
        let qualification = self.vmcs.read(ro::EXIT_QUALIFICATION);
        write_dr6(read_dr6() & !TRAPS | qualification & (TRAPS | DETECTED_AND_STEP));
        let dr7 = self.vmcs.read(guest::DR7);
        self.vmcs.write(guest::DR7, dr7 & !GENERAL_DETECT);
        // LBR and BTF (SDM vol. 3B, 19.4.4).
        let debugctl = self.vmcs.read(guest::IA32_DEBUGCTL_FULL);
        self.vmcs.write(guest::IA32_DEBUGCTL_FULL, debugctl & !3);
    }

    // ---- Events ----

    #[inline]
    pub(super) fn interrupt_allowed(&self) -> bool {
        !self.events.is_busy()
            && self.read_rflags() & Rflags::IF.bits() != 0
            && self.interruptibility() & interruptibility::SHADOW == 0
    }

    /// Blocking by NMI counts only if there was one. Bochs 2.7 clears its own note of that only at the guest's IRET, not at an entry, so that a
    /// vCPU which the CPU leaves within its NMI handler blocks the NMIs of the next.
    pub(super) fn nmi_blocked(&self) -> bool {
        self.nmi_in_service && self.interruptibility() & interruptibility::NMI != 0
    }

    pub(super) fn nmi_allowed(&self) -> bool {
        !self.events.is_busy() && !self.nmi_blocked() && self.interruptibility() & interruptibility::SHADOW == 0
    }

    /// Before an NMI is queued: 28.3.1.5 wants no blocking by NMI at the entry that injects it.
    pub(super) fn clear_nmi_blocking(&mut self) {
        let now = self.interruptibility();
        if now & interruptibility::NMI != 0 {
            self.write_interruptibility(now & !interruptibility::NMI);
        }
    }

    /// Sets or clears a bit of the primary controls.
    #[inline]
    pub(super) fn set_primary(&mut self, bit: PrimaryControls, wanted: bool) {
        let word = if wanted { self.primary | bit.bits() } else { self.primary & !bit.bits() };
        if word != self.primary {
            self.primary = word;
            self.vmcs.write(control::PRIMARY_PROCBASED_EXEC_CONTROLS, u64::from(word));
        }
    }

    // ---- Loading and unloading ----

    pub(super) fn enter_cpu(&mut self) {
        debug_assert!(!self.vmcs.is_active());
        let cpu = percpu::current().number();
        if self.last_cpu != Some(cpu) {
            self.last_cpu = Some(cpu);
            self.want_flush();
        }
        self.vmcs.activate();
        self.pending &= !pending::UNLOADED;
        self.frame_mut().launched = 0;
        let frame = self.frame.get();
        self.vmcs.write_host_state(&self.controls, frame);
        // SAFETY: CR2 is the guest's while it is loaded; the host's own faults are fatal and set it themselves.
        unsafe { cr::set_cr2(self.cr2) };
        write_dr6(self.dr6);
        // SAFETY: the values came from the CPU, or from `write_msr`, which keeps addresses canonical. The host uses neither SYSCALL nor
        // SWAPGS.
        unsafe { self.syscall.write() };
        self.lazy.load();
    }

    pub(super) fn leave_cpu(&mut self) {
        debug_assert!(self.vmcs.is_active());
        if self.interruptibility() & interruptibility::NMI == 0 {
            self.nmi_in_service = false;
        }
        self.lazy.unload();
        self.syscall = SyscallMsrs::read();
        self.dr6 = read_dr6();
        self.cr2 = cr::cr2();
        self.vmcs.deactivate();
        self.pending |= pending::UNLOADED;
        self.frame_mut().launched = 0;
    }

    // ---- Reporting ----

    pub(super) fn write_dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let read = |field| self.vmcs.read(field);
        if let Some(error) = self.instruction_error {
            writeln!(out, "VM entry failed: VM-instruction error {error}")?;
        }
        writeln!(
            out,
            "VMX exit reason {:#x} qualification {:#x} length {} instruction information {:#x}",
            read(ro::EXIT_REASON),
            read(ro::EXIT_QUALIFICATION),
            read(ro::VMEXIT_INSTRUCTION_LEN),
            read(ro::VMEXIT_INSTRUCTION_INFO)
        )?;
        writeln!(
            out,
            "    guest-physical {:#x} guest-linear {:#x}",
            read(ro::GUEST_PHYSICAL_ADDR_FULL),
            read(ro::GUEST_LINEAR_ADDR)
        )?;
        writeln!(
            out,
            "    interruption {:#x} ({:#x}) IDT-vectoring {:#x} ({:#x}) queued {:?}",
            read(ro::VMEXIT_INTERRUPTION_INFO),
            read(ro::VMEXIT_INTERRUPTION_ERR_CODE),
            read(ro::IDT_VECTORING_INFO),
            read(ro::IDT_VECTORING_ERR_CODE),
            self.events.peek()
        )?;
        writeln!(
            out,
            "    interruptibility {:#x} activity {} pending debug {:#x} DEBUGCTL {:#x}",
            read(guest::INTERRUPTIBILITY_STATE),
            read(guest::ACTIVITY_STATE),
            read(guest::PENDING_DBG_EXCEPTIONS),
            read(guest::IA32_DEBUGCTL_FULL)
        )?;
        writeln!(
            out,
            "    pin {:#x} primary {:#x} secondary {:#x} exit {:#x} entry {:#x} EPT pointer {:#x} VPID {}",
            self.controls.pin,
            read(control::PRIMARY_PROCBASED_EXEC_CONTROLS),
            read(control::SECONDARY_PROCBASED_EXEC_CONTROLS),
            self.controls.exit,
            read(control::VMENTRY_CONTROLS),
            self.ept_pointer,
            self.vpid.as_ref().map_or(0, Vpid::get)
        )?;
        writeln!(
            out,
            "    CR0 {:#x} mask {:#x} shadow {:#x}  CR4 {:#x} mask {:#x} shadow {:#x}",
            read(guest::CR0),
            self.cr0_mask,
            self.cr0_shadow,
            read(guest::CR4),
            self.cr4_mask,
            self.cr4_shadow
        )?;
        let long = read(control::VMENTRY_CONTROLS) as u32 & EntryControls::IA32E_MODE_GUEST.bits() != 0;
        let pae = !long && self.read_cr0() & Cr0::PG.bits() != 0 && self.read_cr4() & Cr4::PAE.bits() != 0;
        if pae {
            let pdptes = super::state::PDPTE_FIELDS.map(read);
            writeln!(out, "    PDPTEs {pdptes:x?}")?;
        }
        Ok(())
    }
}

impl Registers for VmxVcpu {
    #[inline(always)]
    fn gprs_mut(&mut self) -> &mut Gprs {
        // RSP is not written by completions but that of a control-register read, for which `remember_control` sees to it.
        &mut self.frame_mut().gprs
    }
    #[inline(always)]
    fn question(&mut self) -> &mut Question {
        &mut self.question
    }
    #[inline(always)]
    fn set_rip(&mut self, rip: u64) {
        // Seldom read before the entry, so forgetting is cheaper than keeping.
        self.cached.valid.set(self.cached.valid.get() & !valid::RIP);
        // SAFETY: completions happen with the VMCS current.
        unsafe { self.vmcs.write_current(guest::RIP, rip) };
    }
    #[inline(always)]
    fn retire(&mut self) -> u64 {
        let rip = self.find_next_rip();
        self.set_rip(rip);
        self.clear_shadow();
        Registers::rflags(self)
    }
    #[inline(always)]
    fn rflags(&self) -> u64 {
        if self.has(valid::RFLAGS) {
            self.cached.rflags.get()
        } else {
            // SAFETY: as above.
            unsafe { self.vmcs.read_current(guest::RFLAGS) }
        }
    }
    #[inline]
    fn set_rflags(&mut self, rflags: u64) {
        self.write_rflags(super::state::valid_rflags(rflags));
    }
    #[inline(always)]
    fn set_shadow(&mut self, shadow: Shadow) {
        self.clear_shadow();
        if shadow == Shadow::MovSs {
            let now = self.interruptibility();
            self.write_interruptibility(now | interruptibility::MOV_SS);
        }
    }
    fn write_control(&mut self, register: ControlRegister, value: u64) {
        self.put_control(register, value);
    }
    fn raise(&mut self, exception: &Exception) {
        self.question.ss_loaded = false;
        // SDM vol. 3B, 19.3.1.1: faults push RF set, so that an instruction breakpoint does not hit twice; #DB's is right already.
        if exception.vector != vector::DB {
            let rflags = self.read_rflags();
            self.write_rflags(rflags | Rflags::RF.bits());
        }
        self.queue(exception);
    }
    fn single_step(&mut self) {
        /// IA32_DEBUGCTL.BTF: TF traps branches only.
        const BTF: u64 = 1 << 1;
        if self.vmcs.read(guest::IA32_DEBUGCTL_FULL) & BTF == 0 {
            let pending = self.vmcs.read(guest::PENDING_DBG_EXCEPTIONS);
            self.vmcs.write(guest::PENDING_DBG_EXCEPTIONS, pending | PENDING_DEBUG_BS);
        }
    }
}

impl Drop for VmxVcpu {
    fn drop(&mut self) {
        if self.vmcs.is_active() {
            self.leave_cpu();
        }
    }
}

/// A machine check while the guest ran is the host's: its handler reports it and does not return (29.2.2 and 28.9).
#[cold]
fn machine_check() {
    // SAFETY: the IDT's gate for vector 18 is present and has a stack of its own.
    unsafe { core::arch::asm!("int 18") };
}

/// DR6, which neither entries nor exits change: it is the guest's while the vCPU is loaded.
pub(super) fn read_dr6() -> u64 {
    let value;
    // SAFETY: reading a debug register at CPL 0; an exit clears DR7.GD.
    unsafe { core::arch::asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

pub(super) fn write_dr6(value: u64) {
    // SAFETY: as above; bits 63:32 must be zero. It only reports.
    unsafe { core::arch::asm!("mov dr6, {}", in(reg) value & 0xffff_ffff, options(nomem, nostack, preserves_flags)) };
}
