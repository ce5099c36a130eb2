//! What CPUs can do for local APICs, switched off: everything goes by exits then, with the same result.

use super::{Kernels, Run, Scenario};
use crate::{
    list::{self, Expect, Platform},
    script::Script,
    size::MemorySize,
};

/// With `apicv=off`, on the vendor that has it.
pub const OFF: Scenario = Scenario {
    name: "apicv-off",
    on: &[Platform::VmxBochs],
    cpus: 1,
    memory: MemorySize::from_mib(256),
    options: "apicv=off",
    autostart: "sequential",
    kernels: Kernels::TestGuest,
    is_long: false,
    guests: || CASES.iter().map(|&case| (case, list::guest_config_of(case, case))).collect(),
    script: |_| Script::default(),
    check,
};

const CASES: &[&str] = &["x2apic", "x2apic-delivery", "control-registers", "timer-tsc-deadline", "smp-ipi", "lapic-forms"];

fn check(run: &Run<'_>) -> Result<(), String> {
    let used = &run.lines[run.position("Virtualisation: VT-x, using")?].1;
    if used.contains("virtual-interrupt delivery") {
        return Err(format!("it is not off: {used}"));
    }
    let ends: Vec<_> = run.outcome.ends().collect();
    if ends.iter().map(|(name, _)| *name).ne(CASES.iter().copied()) {
        return Err(format!("the guests ended like this: {ends:?}"));
    }
    ends.iter().try_for_each(|(name, how)| Expect::Pass.check(how).map_err(|error| format!("{name} {error}")))
}
