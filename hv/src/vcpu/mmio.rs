//! Stage-2 faults: device memory through the instruction emulator; everything else is the guest's mistake.

use super::{Context, CrashReason, EmulationError, Stop, VirtCpu, emulate::Emulation};
use arrayvec::ArrayVec;
use emul::{MAX_INSTRUCTION, Outcome};
use x86defs::{Access, Gpa, Platform, Resume, Vcpu};

impl<P: Platform> VirtCpu<P> {
    pub(super) fn stage2_fault(&mut self, cx: &Context<'_, P>, gpa: Gpa, access: Access) -> Result<(), Stop> {
        if access == Access::Execute {
            return Err(Stop::Crash(CrashReason::ExecuteOutsideRam(gpa)));
        }
        self.emulate(cx, Some(gpa))
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
        let (vm, fetches) = (&self.vm, &mut self.fetches);
        let mut cpu = Emulation { hw: &mut self.hw, vm, vcpu_id: self.id, cx, operand, fetches, error: None, now: None };
        if let Some(rip) = emul::plain_access(&mut cpu, &bytes) {
            self.hw.complete(Resume::AdvanceTo(rip));
            return self.after_device_access(cx);
        }
        let outcome = emul::with_ado(&mut cpu, &bytes);
        let error = cpu.error;
        self.emulated(cx, outcome, error)
    }

    #[inline(always)]
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
