//! memtest86+ as a guest: what it finds out about its machine, and that it finds no error there.

use super::{Kernels, Run, Scenario};
use crate::{
    lines::{GuestEnd, without_controls},
    list::Platform,
    script::Script,
    size::MemorySize,
};

pub const X64: Scenario = Scenario {
    name: "memtest-x64",
    on: &[Platform::SvmIcount, Platform::VmxBochs],
    cpus: 1,
    memory: MemorySize::from_mib(512),
    options: "conswitch=ax",
    autostart: "parallel",
    kernels: Kernels::Memtest,
    is_long: false,
    guests: || vec![guest("memtest86+x64.bin")],
    script: |_| script(),
    check,
};

pub const IA32: Scenario = Scenario { name: "memtest-ia32", guests: || vec![guest("memtest86+ia32.bin")], ..X64 };

const MEMORY_MIB: u32 = 16;
const VCPUS: u32 = 2;

fn guest(kernel: &str) -> (&'static str, String) {
    let config = format!(
        "name = \"memtest\"\nmemory = {MEMORY_MIB}\nvcpus = {VCPUS}\nkernel = \"{kernel}\"\ncmdline = \"console=ttyS0,115200\"\n\
         on_reboot = \"destroy\"\n"
    );
    ("memtest", config)
}

/// All processors work at the same time until the seventh test, of moving inversions, begins; then Escape ends it.
fn script() -> Script {
    Script::default()
        .wait("Memtest86+ v")
        .wait("MHz")
        .wait(&format!("Memory  :   {MEMORY_MIB}MB"))
        .wait(&format!("{VCPUS} Cores {VCPUS} Threads    SMP: {VCPUS}T (PAR)"))
        .wait("#6  [Moving inversions")
        .wait("Errors: 0 ")
        .type_in("\x1b")
}

/// How far the speed that it measures may be from ours.
const PERCENT: u64 = 2;

fn check(run: &Run<'_>) -> Result<(), String> {
    let console: String = run.lines.iter().map(|(_, line)| without_controls(line) + "\n").collect();
    // "(BH) TSC: 2445.426 MHz by ...", "CLK/Temp: 2449MHz"
    let number = |text: &str| {
        let digits = console.split_once(text)?.1.trim_start();
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
    };
    let [ours, its] = ["(BH) TSC: ", "CLK/Temp:"].map(|text| number(text).ok_or_else(|| format!("no number behind {text:?}")));
    let (ours, its) = (ours?, its?);
    if its.abs_diff(ours) * 100 > ours * PERCENT {
        return Err(format!("it measures {its} MHz, the hypervisor {ours} MHz"));
    }
    match run.outcome.ends().next() {
        Some((_, GuestEnd::Reboot)) => Ok(()),
        other => Err(format!("it ended with {other:?}")),
    }
}
