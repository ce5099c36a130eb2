//! Hardware task switches, which the CPU leaves to the hypervisor.

use super::{CrashReason, EmulationError, Stop, VirtCpu};
use emul::task::{self, Switched};
use x86defs::{Platform, TaskSwitch, Vcpu};

impl<P: Platform> VirtCpu<P> {
    #[cold]
    #[inline(never)]
    pub(super) fn task_switch(&mut self, switch: &TaskSwitch) -> Result<(), Stop> {
        match task::switch(&*self.vm.memory, &self.hw.state(), switch) {
            Switched::Entered { state, exception } => self.hw.enter_task(switch, &state, exception),
            Switched::Refused(exception) => self.fault(exception),
            Switched::TableOutsideRam(gpa) => {
                return Err(Stop::Crash(CrashReason::Emulation(EmulationError::TableOutsideRam(gpa))));
            }
        }
        Ok(())
    }
}
