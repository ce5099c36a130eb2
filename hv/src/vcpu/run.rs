//! The run loop: deliver what is pending, enter, answer the exit. One match, one line a kind of exit.

use super::{Activity, Context, CpuidContext, CrashReason, VirtCpu, control, msr::control_state};
use crate::vm::End;
use devices::lapic::{Pending, Startup};
use x86defs::{Attention, ControlRegister, Exception, Exit, Owner, Platform, Resume, Vcpu, VcpuState};

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

/// A vCPU with what it needs to answer its exits.
struct Turn<'a, P: Platform> {
    cpu: &'a mut VirtCpu<P>,
    cx: &'a Context<'a, P>,
}

impl<P: Platform> Owner<P::Vcpu> for Turn<'_, P> {
    type Outcome = Result<(), Stop>;

    #[inline(always)]
    fn vcpu(&mut self) -> &mut P::Vcpu {
        &mut self.cpu.hw
    }

    #[inline(always)]
    fn answer(&mut self, exit: Exit) -> Result<(), Stop> {
        self.cpu.answer(self.cx, exit)
    }
}

impl<P: Platform> VirtCpu<P> {
    /// Runs until there is a reason to stop. Every exit is completed before the next entry, and before it returns.
    ///
    /// A function of its own, so that its loop has the registers and the stack frame to itself.
    #[inline(never)]
    pub fn run(&mut self, cx: &Context<'_, P>) -> Stop {
        if self.activity == Activity::WaitForSipi && !self.apic.startup_pending() {
            return Stop::Halted;
        }
        loop {
            if (self.apic.attention() || self.window)
                && let Err(stop) = self.deliver()
            {
                return stop;
            }
            if let Err(stop) = P::Vcpu::run(&mut Turn { cpu: self, cx }) {
                return stop;
            }
        }
    }

    /// Answers an exit: the question goes to its handler, and the answer to the hardware.
    #[inline(always)]
    fn answer(&mut self, cx: &Context<'_, P>, exit: Exit) -> Result<(), Stop> {
        self.stats.count(&exit);
        match exit {
            Exit::PortRead { port, width } => return self.port_read(cx, port, width),
            Exit::PortWrite { port, width, value } => return self.port_write(cx, port, width, value),
            Exit::PortString { .. } | Exit::TableFault { .. } => return self.emulate(cx, None),
            Exit::Stage2Fault { gpa, access } => return self.stage2_fault(cx, gpa, access),
            Exit::Cpuid { leaf, subleaf } => self.cpuid(leaf, subleaf),
            Exit::MsrRead { index } => self.msr_read(cx, index),
            Exit::MsrWrite { index, value } => self.msr_write(cx, index, value),
            Exit::ControlRead { register } => self.control_read(register),
            Exit::ControlWrite { register, value } => self.control_write(register, value),
            Exit::Hlt => return self.hlt(),
            Exit::Pause => {
                self.hw.complete(Resume::Advance);
                return Err(Stop::Yield);
            }
            Exit::Hypercall => return self.hypercall(cx),
            Exit::CacheFlush => self.hw.complete(Resume::Advance),
            Exit::Xsetbv { index, value } => self.xsetbv(index, value),
            Exit::UndefinedInstruction => self.fault(Exception::UD),
            Exit::Rdpmc { .. } => self.fault(Exception::GP),
            Exit::Rdtsc => self.hw.complete(Resume::Tsc(self.tsc_counter(cx).wrapping_add(self.msrs.tsc_offset()))),
            Exit::Exception(exception) => self.fault(exception),
            Exit::InterruptWindow | Exit::NmiWindow => {}
            Exit::HostInterrupt | Exit::TurnOver => return self.host_interrupt(cx),
            Exit::HostNmi => return Err(Stop::Preempted),
            Exit::VirtualEoi { vector } => return self.virtual_eoi(cx, vector),
            Exit::VirtualApicWrite { offset } => return self.virtual_apic_write(cx, offset),
            Exit::TaskSwitch(switch) => return self.task_switch(&switch),
            Exit::TripleFault => return Err(Stop::Crash(CrashReason::TripleFault)),
            Exit::Unknown { code, info } => return Err(Stop::Crash(CrashReason::UnknownExit { code, info })),
            Exit::EntryFailed(failure) => return Err(Stop::Crash(CrashReason::EntryFailed(failure))),
        }
        Ok(())
    }

    /// A host interrupt, served already. Most often it was the timer for the vCPU's own local APIC, or nothing that concerns anybody here.
    #[inline(never)]
    fn host_interrupt(&mut self, cx: &Context<'_, P>) -> Result<(), Stop> {
        let attention = cx.platform.take_attention();
        if attention.is_empty() {
            return Ok(());
        }
        let tsc = cx.platform.tsc();
        if attention != Attention::TIMER || cx.alarm.is_for_others(tsc) {
            return Err(Stop::Preempted);
        }
        self.apic.advance(cx.clock.at(tsc));
        let next = self.apic.deadline().map(|deadline| cx.clock.tsc_at(deadline));
        cx.platform.set_timer(cx.alarm.set_own(next));
        Ok(())
    }

    /// The exit's instruction raises `exception` instead.
    #[cold]
    #[inline(never)]
    pub(super) fn fault(&mut self, exception: Exception) {
        self.hw.complete(Resume::Fault(exception));
    }

    /// Hands over what is pending: INIT and SIPI, an NMI, an interrupt. What the guest cannot take now stays in the local APIC, and a window is
    /// asked for.
    #[inline(always)]
    fn deliver(&mut self) -> Result<(), Stop> {
        self.window = self.apic.signal_pending() && self.take_signals()?;
        if self.has_virtual_apic() {
            self.deliver_virtual();
            return Ok(());
        }
        if self.hw.can_take_interrupt() {
            match self.apic.take() {
                Some(Pending::Lapic(vector)) => {
                    self.hw.inject_interrupt(vector);
                    self.stats.interrupts += 1;
                }
                Some(Pending::ExtInt) => self.take_extint(),
                None => {}
            }
        }
        // One that the guest cannot take, or another one behind it: as soon as the guest opens up.
        let waiting = self.apic.pending().is_some();
        self.window |= waiting;
        self.hw.request_interrupt_window(waiting);
        Ok(())
    }

    #[inline(never)]
    pub(super) fn take_extint(&mut self) {
        let vector = self.vm.board.router.acknowledge_extint();
        self.hw.inject_interrupt(vector);
        self.stats.interrupts += 1;
    }

    /// Takes INIT, SIPI and NMI. True if the NMI has to wait.
    #[cold]
    fn take_signals(&mut self) -> Result<bool, Stop> {
        if let Some(startup) = self.apic.take_startup() {
            self.start_up(startup)?;
        }
        if !self.apic.nmi_pending() {
            return Ok(false);
        }
        let open = self.hw.can_take_nmi();
        if open {
            self.apic.take_nmi();
            self.hw.inject_nmi();
        } else {
            if self.hw.is_in_nmi() {
                self.apic.merge_nmis();
            }
            self.hw.request_nmi_window(true);
        }
        Ok(!open)
    }

    /// INIT or SIPI (SDM vol. 3A, 9.4 and 11.4.7.3), without the wait-for-SIPI activity state of the CPU.
    fn start_up(&mut self, startup: Startup) -> Result<(), Stop> {
        match startup {
            // The boot processor goes on at the reset vector, where firmware is, which starts the machine anew.
            Startup::Init if self.id == 0 => Err(Stop::End(End::Reboot)),
            Startup::Init => {
                self.end_virtual_apic();
                self.apic.init();
                self.update_virtual_apic();
                self.fetches.forget();
                self.hw.set_state(&VcpuState::init(self.cpuid.signature(), self.hw.cr0()));
                self.pvclock.reset();
                self.paravirt.reset();
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
            if self.apic.is_kicked() {
                self.apic.forget_kick();
            }
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
                        || self.interruptible && self.apic.pending().is_some())
                    || self.apic.is_kicked()
            }
        }
    }

    #[inline(always)]
    fn hlt(&mut self) -> Result<(), Stop> {
        // Completed first, so that the STI before it does not hold back the interrupt that ends it.
        self.hw.complete(Resume::Advance);
        self.interruptible = self.hw.rflags() & x86defs::Rflags::IF.bits() != 0;
        self.activity = Activity::Halted;
        if self.has_virtual_apic() {
            self.apic.look_again();
        }
        if self.wakes() {
            self.wake_up();
            return Ok(());
        }
        Err(Stop::Halted)
    }

    #[inline(always)]
    fn cpuid(&mut self, leaf: u32, subleaf: u32) {
        let context = || CpuidContext { cr4: self.hw.cr4(), xcr0: self.hw.xcr0(), apic_base: self.apic.base_msr() };
        let result = self.cpuid.leaf(leaf, subleaf, context);
        self.hw.complete(Resume::Cpuid(result));
    }

    fn control_read(&mut self, register: ControlRegister) {
        let value = match register {
            ControlRegister::Cr0 => self.hw.cr0(),
            ControlRegister::Cr3 => self.hw.cr3(),
            ControlRegister::Cr4 => self.hw.cr4(),
            ControlRegister::Cr8 => u64::from(self.apic.cr8()),
        };
        self.hw.complete(Resume::ControlRead(value));
    }

    #[inline(never)]
    fn control_write(&mut self, register: ControlRegister, value: u64) {
        let now = control_state(&self.hw);
        let checked = match register {
            ControlRegister::Cr0 => control::check_cr0(&now, value),
            ControlRegister::Cr3 => Ok(value),
            ControlRegister::Cr4 => {
                if (now.cr4 ^ value) & x86defs::Cr4::LA57.bits() != 0 {
                    self.fetches.forget();
                }
                control::check_cr4(&now, value, self.cpuid.cr4_allowed())
            }
            ControlRegister::Cr8 if value > 15 => Err(control::Gp),
            ControlRegister::Cr8 => {
                self.apic.set_cr8(value as u8);
                return self.hw.complete(Resume::Advance);
            }
        };
        match checked {
            Ok(value) => self.hw.complete(Resume::ControlWrite(value)),
            Err(_) => self.fault(Exception::GP),
        }
    }

    #[inline(never)]
    fn xsetbv(&mut self, index: u32, value: u64) {
        if self.hw.cpl() != 0 || self.xcr0.check(index, value).is_err() {
            return self.fault(Exception::GP);
        }
        self.hw.set_xcr0(value);
        self.hw.complete(Resume::Advance);
    }

    /// Looks at what a device access did besides. `Err` if the guest has just reset itself, switched itself off or left through the debug port.
    #[inline(always)]
    pub(super) fn after_device_access(&self, cx: &Context<'_, P>) -> Result<(), Stop> {
        if self.vm.board.is_quiet() { Ok(()) } else { self.settle(cx) }
    }

    /// Re-arms the timer, wakes other vCPUs, passes serial output on.
    #[inline(never)]
    fn settle(&self, cx: &Context<'_, P>) -> Result<(), Stop> {
        let board = &self.vm.board;
        if board.take_timers_changed() {
            self.vm.set_home(cx.cpu);
            cx.arm(board.deadline());
            cx.arm_own(self.apic.deadline());
        }
        self.wake_others(cx);
        if !board.has_events() {
            return Ok(());
        }
        self.vm.pump_output(cx.platform);
        board.take_end().map_or(Ok(()), |end| Err(Stop::End(end)))
    }

    /// Tells the vCPUs for which something has come.
    #[inline(always)]
    pub(super) fn wake_others(&self, cx: &Context<'_, P>) {
        if self.vm.board.router.has_woken() {
            (cx.wake)(&self.vm, self.vm.board.router.take_woken());
        }
    }
}
