//! Stage-2 faults: device memory through the instruction emulator; everything else is the guest's mistake.

use super::{Context, CrashReason, EmulationError, Stop, VirtCpu, emulate::Emulation};
use arrayvec::ArrayVec;
use emul::{Cpu, MAX_INSTRUCTION, Outcome, Plain};
use x86defs::{Access, Gpa, Platform, Resume, Vcpu};

impl<P: Platform> VirtCpu<P> {
    pub(super) fn stage2_fault(&mut self, cx: &Context<'_, P>, gpa: Gpa, access: Access) -> Result<(), Stop> {
        if access == Access::Execute {
            return Err(Stop::Crash(CrashReason::ExecuteOutsideRam(gpa)));
        }
        self.emulate_access(cx, gpa)
    }

    /// Emulates the instruction at RIP, which has accessed device memory at `gpa`: nearly always a plain access, and one that has been here before.
    #[inline(never)]
    fn emulate_access(&mut self, cx: &Context<'_, P>, gpa: Gpa) -> Result<(), Stop> {
        let Self { hw, vm, fetches, plain, id, .. } = self;
        let operand = Some(gpa);
        let mut cpu = Emulation { hw, vm, vcpu_id: *id, cx, operand, fetches, error: None, now: None };
        let mode = cpu.mode();
        let Some((bytes, long)) = cpu.plain_code(mode) else { return self.emulate(cx, operand) };
        let next = match plain.find(cpu.rip(), &bytes, long) {
            Some(plain) => plain.execute(&mut cpu, gpa, long),
            None => return self.understand(cx, gpa, &bytes, long),
        };
        match next {
            Some(rip) => {
                self.hw.complete(Resume::AdvanceTo(rip));
                self.after_device_access(cx)
            }
            None => self.emulate(cx, operand),
        }
    }

    /// The same for an instruction that has not been here before, or not lately.
    #[cold]
    fn understand(&mut self, cx: &Context<'_, P>, gpa: Gpa, bytes: &[u8; 16], long: bool) -> Result<(), Stop> {
        let mut cpu = self.emulation(cx, Some(gpa));
        let Some(plain) = Plain::decode(bytes, long).filter(|plain| plain.is_at(&cpu, gpa, long)) else {
            return self.emulate(cx, Some(gpa));
        };
        let Some(next) = plain.execute(&mut cpu, gpa, long) else { return self.emulate(cx, Some(gpa)) };
        self.plain.remember(self.hw.rip(), bytes, long, plain);
        self.hw.complete(Resume::AdvanceTo(next));
        self.after_device_access(cx)
    }

    #[inline(always)]
    fn emulation<'a>(&'a mut self, cx: &'a Context<'a, P>, operand: Option<Gpa>) -> Emulation<'a, P> {
        let (vm, fetches) = (&self.vm, &mut self.fetches);
        Emulation { hw: &mut self.hw, vm, vcpu_id: self.id, cx, operand, fetches, error: None, now: None }
    }

    /// Emulates the instruction at RIP. `operand` is the access to device memory that the exit was about, if it was one.
    #[inline(never)]
    pub(super) fn emulate(&mut self, cx: &Context<'_, P>, operand: Option<Gpa>) -> Result<(), Stop> {
        // The bytes are copied out because the emulator borrows the vCPU.
        let mut bytes = ArrayVec::<u8, MAX_INSTRUCTION>::new();
        let supplied = self.hw.instruction_bytes();
        if !supplied.is_empty() {
            let _ = bytes.try_extend_from_slice(supplied);
        }
        let mut cpu = self.emulation(cx, operand);
        let outcome = emul::with_ado(&mut cpu, &bytes);
        let error = cpu.error;
        self.emulated(cx, outcome, error)
    }

    fn emulated(&mut self, cx: &Context<'_, P>, outcome: Outcome, error: Option<EmulationError>) -> Result<(), Stop> {
        match outcome {
            Outcome::Done { rip, rflags } => self.hw.complete(Resume::Emulated { rip, rflags }),
            Outcome::Partial => {}
            Outcome::Fault(exception) => self.fault(exception),
            Outcome::Unsupported(bytes) => return Err(Stop::Crash(CrashReason::Unemulated { rip: self.hw.rip(), bytes })),
            Outcome::Abort => {
                let reason = error.map_or(CrashReason::TripleFault, CrashReason::Emulation);
                return Err(Stop::Crash(reason));
            }
        }
        self.after_device_access(cx)
    }
}
