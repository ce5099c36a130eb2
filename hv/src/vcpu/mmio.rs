//! Stage-2 faults: device memory through the instruction emulator; everything else is the guest's mistake.

use super::{Context, CrashReason, Stop, VirtCpu, emulate::Emulation};
use arrayvec::ArrayVec;
use emul::{MAX_INSTRUCTION, Outcome};
use x86defs::{Access, Gpa, Platform, Resume, Vcpu};

impl<P: Platform> VirtCpu<P> {
    pub(super) fn stage2_fault(&mut self, cx: &Context<'_, P>, gpa: Gpa, access: Access) -> Result<(), Stop> {
        if access == Access::Execute {
            return Err(Stop::Crash(CrashReason::ExecuteOutsideRam(gpa)));
        }
        self.emulate(cx)
    }

    /// Emulates the instruction at RIP.
    pub(super) fn emulate(&mut self, cx: &Context<'_, P>) -> Result<(), Stop> {
        // The bytes are copied out because the emulator borrows the vCPU.
        let mut bytes = ArrayVec::<u8, MAX_INSTRUCTION>::new();
        for &byte in self.hw.instruction_bytes().iter().take(MAX_INSTRUCTION) {
            bytes.push(byte);
        }
        let now = cx.clock.now(cx.platform);
        let mut cpu = Emulation { hw: &mut self.hw, vm: &self.vm, vcpu_id: self.id, now, error: None };
        let outcome = emul::emulate(&mut cpu, &bytes);
        let error = cpu.error;
        let resume = match outcome {
            Outcome::Done { rip, rflags } => Resume::Emulated { rip, rflags },
            Outcome::Partial => Resume::Retry,
            Outcome::Fault(exception) => Resume::Fault(exception),
            Outcome::Unsupported(bytes) => return Err(Stop::Crash(CrashReason::Unemulated { rip: self.hw.rip(), bytes })),
            Outcome::Abort => {
                let reason = error.map_or(CrashReason::TripleFault, CrashReason::Emulation);
                return Err(Stop::Crash(reason));
            }
        };
        self.hw.complete(resume);
        self.after_device_access(cx)
    }
}
