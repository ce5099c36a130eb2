//! One CPU takes the machine over, for a crash report, a reset or switching it off; all others stop where they are.

use crate::cpu::{cr, percpu, percpu::PerCpu};
use crate::{apic, svm, tsc, vmx};
use core::sync::atomic::{AtomicU32, Ordering};

/// Nobody has taken the machine over.
const NOBODY: u32 = u32::MAX;
/// One that cannot say who it is: the boot CPU before its data are in place.
const UNKNOWN: u32 = u32::MAX - 1;

/// The number of the CPU that has taken the machine over.
static OWNER: AtomicU32 = AtomicU32::new(NOBODY);

/// Microseconds that other CPUs get to stop.
const PATIENCE: u64 = 100_000;

fn number(cpu: Option<&PerCpu>) -> u32 {
    cpu.map_or(UNKNOWN, PerCpu::number)
}

/// Takes the machine over: the other CPUs are stopped by NMI. Whoever comes second stops here for ever; whoever has it already just returns.
pub fn take_over() {
    let me = percpu::identify();
    if let Err(owner) = OWNER.compare_exchange(NOBODY, number(me), Ordering::AcqRel, Ordering::Acquire) {
        if owner != number(me) {
            stop_here(me);
        }
        return;
    }
    let others = || percpu::all().take(super::online() as usize).filter(|cpu| !me.is_some_and(|me| core::ptr::eq(me, *cpu)));
    for cpu in others() {
        apic::send_nmi(cpu.apic_id());
    }
    // One that does not stop may garble the report, but must not prevent it.
    for _ in 0..PATIENCE / 100 {
        if others().all(|cpu| cpu.stopped.load(Ordering::Acquire)) {
            return;
        }
        tsc::delay_us(100);
    }
}

/// Stops this CPU if another one has taken the machine over. `cpu`: who this is. Called by the handler of NMIs.
pub fn obey(cpu: Option<&'static PerCpu>) {
    let owner = OWNER.load(Ordering::Acquire);
    if owner != NOBODY && owner != number(cpu) {
        stop_here(cpu);
    }
}

/// Stops this CPU for ever, outside of VMX operation and with SVM off: some chipsets reset by INIT, which those hold up.
fn stop_here(cpu: Option<&PerCpu>) -> ! {
    vmx::leave();
    svm::leave();
    if let Some(cpu) = cpu {
        cpu.stopped.store(true, Ordering::Release);
    }
    cr::halt_forever()
}
