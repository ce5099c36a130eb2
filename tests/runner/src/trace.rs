//! Writes down, instruction by instruction, what one operation of the benchmark makes the CPU do.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::{
    bench,
    feed::Pace,
    image::{Image, Modules},
    list::GUEST_KERNEL,
    machine::{Accel, Debugger, Machine, Spec, Vendor},
    session::{self, Mailbox, Options},
    suite::{self, Assets, Record},
};

/// The hypervisor's lowest address. The guest is far below.
const HOST: u64 = 0xffff_ffff_8000_0000;

/// An instruction that was executed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Its linear address.
    pub address: u64,
    /// The instruction in words.
    pub text: String,
}

impl Step {
    /// True if it is the hypervisor's.
    #[must_use]
    pub const fn is_host(&self) -> bool {
        self.address >= HOST
    }
}

/// The steps of one round of the operation `name`, after some that made caches warm. On Bochs, which has both vendors' extensions; a few
/// instructions that QEMU's CPU makes necessary are not executed there.
pub fn run(assets: &Assets, vendor: Vendor, name: &str) -> Result<Vec<Step>> {
    let spec = Spec { debugger: Debugger::Trace, ..Spec::new(Accel::Bochs, vendor) };
    let mut modules = Modules::default();
    suite::add_guest_kernel(assets, &mut modules)?;
    let config = format!(
        "name = \"bench\"\ntype = \"hvm\"\nmemory = 256\nkernel = \"{GUEST_KERNEL}\"\n\
         cmdline = \"test={} trace={name}\"\nisa_debug_exit = 0xf4\non_crash = \"destroy\"\n",
        bench::CASE
    );
    modules.add_bytes("bench.cfg", config.into_bytes());
    let iso = assets.work.join("trace.iso");
    Image { hypervisor: assets.hypervisor.clone(), options: suite::OPTIONS.into(), modules, ..Image::default() }
        .write(&assets.grub, &iso)?;
    let mut machine = Machine::start(&spec, &iso)?;
    let limit = Duration::from_secs(600);
    let options =
        Options { timeout: Some(limit), stall: None, grace: Duration::from_secs(10), pace: Pace::AtPrompt { silence: limit } };
    let outcome = session::run(&mut machine, Mailbox::default(), &options, &mut Record::default())?;
    // Without the operation, the guest runs to its end and meets no breakpoint.
    parse(&machine.log()?)
        .filter(|steps| !steps.is_empty())
        .with_context(|| format!("the benchmark stopped nowhere, so it may have no operation {name} here ({})", outcome.end))
}

/// The steps in what Bochs' debugger writes.
fn parse(log: &str) -> Option<Vec<Step>> {
    let (_, traced) = log.split_once("Tracing enabled")?;
    let (traced, _) = traced.split_once("Magic breakpoint")?;
    Some(traced.lines().filter_map(step).collect())
}

/// `(0).[TIME] [PHYSICAL] SELECTOR:ADDRESS (SYMBOL): INSTRUCTION ; BYTES`
fn step(line: &str) -> Option<Step> {
    let (place, rest) = line.strip_prefix("(0).[")?.split_once("): ")?;
    let (place, _) = place.split_once(" (")?;
    let (_, address) = place.rsplit_once(':')?;
    let (text, _) = rest.rsplit_once(';')?;
    Some(Step { address: u64::from_str_radix(address, 16).ok()?, text: text.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_between_the_breakpoints() {
        let log = "\
(0).[1] [0x000000100000] 0008:0000000000100000 (unk. ctxt): nop ; 90
(0) Magic breakpoint
Next at t=582626659
(0).[582626659] ??? (physical address not available)
Tracing enabled for CPU0
(0).[582626659] ??? (physical address not available)
(0).[582626660] [0x000000100362] 0008:0000000000100362 (unk. ctxt): cpuid                     ; 0fa2
(0).[582626661] [0x000000229366] 0008:ffffffff80229366 (unk. ctxt): mov qword ptr ds:[rax+8], rcx ; 48894808
(0) Magic breakpoint
(0).[582626662] [0x000000100362] 0008:0000000000100362 (unk. ctxt): cpuid                     ; 0fa2
";
        let steps = parse(log).unwrap();
        let seen: Vec<_> = steps.iter().map(|s| (s.address, s.text.as_str(), s.is_host())).collect();
        assert_eq!(seen, [(0x10_0362, "cpuid", false), (0xffff_ffff_8022_9366, "mov qword ptr ds:[rax+8], rcx", true)]);
        assert_eq!(parse("(0) Magic breakpoint\nTracing enabled for CPU0\n"), None, "the second breakpoint was not reached");
    }
}
