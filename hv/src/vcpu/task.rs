//! Hardware task switches, which the CPU leaves to the hypervisor.

use super::{CrashReason, EmulationError, Stop, VirtCpu};
use emul::task;
use x86defs::{Platform, TaskSwitch, Vcpu, paging::TranslateError};

impl<P: Platform> VirtCpu<P> {
    #[cold]
    #[inline(never)]
    pub(super) fn task_switch(&mut self, switch: &TaskSwitch) -> Result<(), Stop> {
        let mut state = self.hw.state();
        match task::switch(&*self.vm.memory, &mut state, switch) {
            Ok(exception) => self.hw.enter_task(switch, &state, exception),
            Err(TranslateError::Fault(exception)) => self.fault(exception),
            Err(TranslateError::TableOutsideRam(gpa)) => {
                return Err(Stop::Crash(CrashReason::Emulation(EmulationError::TableOutsideRam(gpa))));
            }
        }
        Ok(())
    }
}
