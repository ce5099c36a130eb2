//! The run loop: deliver what is pending, enter, answer the exit. One match, one line a kind of exit.

use super::{Activity, Context, CpuidContext, CrashReason, VirtCpu, control, msr::control_state};
use crate::vm::End;
use devices::lapic::{Pending, Startup};
use x86defs::{ControlRegister, Exception, Exit, Platform, Resume, Vcpu, VcpuState};

/// Why a vCPU stopped running for now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The host has something to do (a timer or another interrupt): look, then go on.
    Preempted,
    /// In HLT, or waiting for a SIPI.
    Halted,
    /// It wants to give way (PAUSE in a spin loop).
    Yield,
    /// The guest ended itself.
    End(End),
    /// The guest cannot go on.
    Crash(CrashReason),
}

impl<P: Platform> VirtCpu<P> {
    /// Runs until there is a reason to stop.
    pub fn run(&mut self, cx: &Context<'_, P>) -> Stop {
        if self.activity == Activity::WaitForSipi && !self.apic.startup_pending() {
            return Stop::Halted;
        }
        loop {
            if (self.apic.attention() || self.window)
                && let Err(stop) = self.deliver(cx)
            {
                return stop;
            }
            let resume = core::mem::replace(&mut self.resume, Resume::Retry);
            let exit = self.hw.run(resume);
            self.stats.exits += 1;
            match self.answer(cx, exit) {
                Ok(resume) => self.resume = resume,
                Err(stop) => return stop,
            }
        }
    }

    /// The answer to an exit.
    #[inline]
    fn answer(&mut self, cx: &Context<'_, P>, exit: Exit) -> Result<Resume, Stop> {
        match exit {
            Exit::PortRead { port, width } => Ok(self.port_read(cx, port, width)),
            Exit::PortWrite { port, width, value } => self.port_write(cx, port, width, value),
            Exit::PortString { .. } => self.emulate(cx),
            Exit::Stage2Fault { gpa, access } => self.stage2_fault(cx, gpa, access),
            Exit::Cpuid { leaf, subleaf } => Ok(self.cpuid(leaf, subleaf)),
            Exit::MsrRead { index } => Ok(self.msr_read(cx, index)),
            Exit::MsrWrite { index, value } => Ok(self.msr_write(cx, index, value)),
            Exit::ControlRead { register } => Ok(self.control_read(register)),
            Exit::ControlWrite { register, value } => Ok(self.control_write(register, value)),
            Exit::Hlt => self.hlt(),
            Exit::Pause => {
                self.resume = Resume::Advance;
                Err(Stop::Yield)
            }
            Exit::Hypercall => Ok(self.hypercall()),
            Exit::CacheFlush => Ok(Resume::Advance),
            Exit::Xsetbv { index, value } => Ok(self.xsetbv(index, value)),
            Exit::UndefinedInstruction => Ok(Resume::Fault(Exception::UD)),
            Exit::Rdpmc { .. } => Ok(Self::gp()),
            Exit::Rdtsc => Ok(Resume::Tsc(cx.platform.tsc().wrapping_add(self.msrs.tsc_offset()))),
            Exit::Exception(exception) => Ok(Resume::Fault(exception)),
            Exit::TaskSwitch(_) => Err(Stop::Crash(CrashReason::TaskSwitch)),
            Exit::InterruptWindow | Exit::NmiWindow => Ok(Resume::Retry),
            Exit::HostInterrupt | Exit::HostNmi => Err(Stop::Preempted),
            Exit::TripleFault => Err(Stop::Crash(CrashReason::TripleFault)),
            Exit::Unknown { code, info } => Err(Stop::Crash(CrashReason::UnknownExit { code, info })),
            Exit::EntryFailed(failure) => Err(Stop::Crash(CrashReason::EntryFailed(failure))),
        }
    }

    /// Completes the exit and hands over what is pending: INIT and SIPI, an NMI, an interrupt. Query, then accept: an interrupt that the
    /// guest cannot take stays in the local APIC and a window is asked for.
    fn deliver(&mut self, cx: &Context<'_, P>) -> Result<(), Stop> {
        let resume = core::mem::replace(&mut self.resume, Resume::Retry);
        self.hw.complete(resume);
        if let Some(startup) = self.apic.take_startup() {
            self.start_up(startup)?;
        }
        self.window = false;
        if self.apic.nmi_pending() {
            if self.hw.can_take_nmi() {
                self.apic.take_nmi();
                self.hw.inject_nmi();
            } else {
                self.window = true;
                self.hw.request_nmi_window(true);
            }
        }
        let router = &self.vm.board.router;
        if router.pending(self.id).is_some() {
            if self.hw.can_take_interrupt() {
                match router.pending(self.id) {
                    Some(Pending::Lapic(vector)) => {
                        self.apic.accept(vector);
                        self.hw.inject_interrupt(vector);
                    }
                    Some(Pending::ExtInt) => self.hw.inject_interrupt(router.acknowledge_extint()),
                    None => {}
                }
                self.stats.interrupts += 1;
                // Another one behind it: take it as soon as the guest opens up.
                let more = router.pending(self.id).is_some();
                self.window |= more;
                self.hw.request_interrupt_window(more);
            } else {
                self.window = true;
                self.hw.request_interrupt_window(true);
            }
        } else {
            self.hw.request_interrupt_window(false);
        }
        let _ = cx;
        Ok(())
    }

    /// INIT or SIPI (SDM vol. 3A, 9.4 and 11.4.7.3), without the wait-for-SIPI activity state of the CPU.
    fn start_up(&mut self, startup: Startup) -> Result<(), Stop> {
        match startup {
            // The boot processor goes on at the reset vector, where firmware is, which starts the machine anew.
            Startup::Init if self.id == 0 => Err(Stop::End(End::Reboot)),
            Startup::Init => {
                self.apic.init();
                self.hw.set_state(&VcpuState::init(self.cpuid.signature(), self.hw.cr0()));
                self.pvclock.reset();
                self.activity = Activity::WaitForSipi;
                Err(Stop::Halted)
            }
            Startup::Sipi(page) => {
                if self.activity == Activity::WaitForSipi {
                    let mut state = self.hw.state();
                    state.start_at_page(page);
                    self.hw.set_state(&state);
                    self.activity = Activity::Running;
                }
                Ok(())
            }
        }
    }

    /// True if the vCPU executes nothing until something comes for it.
    pub(crate) fn is_asleep(&self) -> bool {
        self.activity != Activity::Running
    }

    /// True if the guest has not started it.
    pub(crate) fn is_offline(&self) -> bool {
        self.activity == Activity::WaitForSipi
    }

    /// It goes on because [`VirtCpu::wakes`]. One that waits for a SIPI finds it by itself.
    pub(crate) fn wake_up(&mut self) {
        if self.activity == Activity::Halted {
            self.activity = Activity::Running;
        }
    }

    /// True if a halted vCPU has a reason to go on. Reads nothing from the hardware.
    pub fn wakes(&self) -> bool {
        match self.activity {
            Activity::Running => true,
            Activity::Stopped => false,
            Activity::WaitForSipi => self.apic.startup_pending(),
            Activity::Halted => {
                self.apic.attention()
                    && (self.apic.nmi_pending()
                        || self.apic.startup_pending()
                        || self.interruptible && self.vm.board.router.pending(self.id).is_some())
            }
        }
    }

    fn hlt(&mut self) -> Result<Resume, Stop> {
        // Completed here, so that the STI before it does not hold back the interrupt that ends it.
        self.hw.complete(Resume::Advance);
        self.interruptible = self.hw.rflags() & x86defs::Rflags::IF.bits() != 0;
        self.activity = Activity::Halted;
        if self.wakes() {
            self.activity = Activity::Running;
            return Ok(Resume::Retry);
        }
        self.resume = Resume::Retry;
        Err(Stop::Halted)
    }

    #[inline]
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Resume {
        let context = CpuidContext { cr4: self.hw.cr4(), xcr0: self.hw.xcr0() };
        Resume::Cpuid(self.cpuid.leaf(leaf, subleaf, context))
    }

    fn control_read(&self, register: ControlRegister) -> Resume {
        Resume::ControlRead(match register {
            ControlRegister::Cr0 => self.hw.cr0(),
            ControlRegister::Cr3 => self.hw.cr3(),
            ControlRegister::Cr4 => self.hw.cr4(),
            ControlRegister::Cr8 => u64::from(self.apic.cr8()),
        })
    }

    fn control_write(&mut self, register: ControlRegister, value: u64) -> Resume {
        let now = control_state(&self.hw);
        let checked = match register {
            ControlRegister::Cr0 => control::check_cr0(&now, value),
            ControlRegister::Cr3 => Ok(value),
            ControlRegister::Cr4 => control::check_cr4(&now, value, self.cpuid.cr4_allowed()),
            ControlRegister::Cr8 if value > 15 => Err(control::Gp),
            ControlRegister::Cr8 => {
                self.apic.set_cr8(value as u8);
                return Resume::Advance;
            }
        };
        checked.map_or(Self::gp(), Resume::ControlWrite)
    }

    fn xsetbv(&mut self, index: u32, value: u64) -> Resume {
        if self.hw.cpl() != 0 || self.xcr0.check(index, value).is_err() {
            return Self::gp();
        }
        self.hw.set_xcr0(value);
        Resume::Advance
    }

    /// KVM's hypercall convention: RAX is the number and the result; none is offered yet (-KVM_ENOSYS).
    fn hypercall(&mut self) -> Resume {
        const ENOSYS: u64 = 1000u64.wrapping_neg();
        if self.hw.cpl() != 0 {
            return Resume::Fault(Exception::UD);
        }
        self.hw.gprs_mut()[x86defs::Gpr::Rax] = ENOSYS;
        Resume::Advance
    }

    /// Looks at what a device access did besides: re-arms the timer, and wakes other vCPUs.
    #[inline]
    pub(super) fn after_device_access(&self, cx: &Context<'_, P>) {
        if self.vm.board.take_timers_changed() {
            self.vm.set_home(cx.cpu);
            cx.arm(self.vm.board.deadline());
            cx.arm(self.apic.deadline());
        }
        let woken = self.vm.board.router.take_woken();
        if !woken.is_empty() {
            (cx.wake)(&self.vm, woken);
        }
        let woken = self.vm.board.router.take_woken();
        if !woken.is_empty() {
            (cx.wake)(&self.vm, woken);
        }
    }

    /// `Err` if the guest has just reset itself, switched itself off or left through the debug port; serial output is passed on.
    #[inline]
    pub(super) fn check_board(&mut self, cx: &Context<'_, P>, resume: Resume) -> Result<Resume, Stop> {
        if !self.vm.board.has_events() {
            return Ok(resume);
        }
        self.vm.pump_output(cx.platform);
        match self.vm.board.take_end() {
            Some(end) => {
                self.resume = resume;
                Err(Stop::End(end))
            }
            None => Ok(resume),
        }
    }
}
