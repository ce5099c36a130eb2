//! Several guests and an operator, who comes and goes with them: what each scenario starts, what the operator does, and what must come out.

mod apicv;
mod clocks;
mod lifecycle;
mod memtest;
mod neighbours;
mod pinned;

use crate::{
    list::{self, Platform},
    machine::Spec,
    script::Script,
    session::Outcome,
    size::MemorySize,
    variants::When,
};

/// A scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    pub on: &'static [Platform],
    /// Host CPUs.
    pub cpus: u32,
    pub memory: MemorySize,
    /// More hypervisor options.
    pub options: &'static str,
    pub autostart: &'static str,
    pub kernels: Kernels,
    /// Takes long.
    pub is_long: bool,
    /// Names and configurations of the guests.
    pub guests: fn() -> Vec<(&'static str, String)>,
    pub script: fn(Platform) -> Script,
    /// Judges how it went.
    pub check: fn(&Run<'_>) -> Result<(), String>,
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// What the guests of a scenario are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernels {
    TestGuest,
    /// Linux, too; modules `vmlinuz` and `initrd.img`.
    AndLinux,
    /// memtest86+, in modules of the names of its files; takes long.
    Memtest,
}

/// A scenario that is over.
pub struct Run<'a> {
    pub platform: Platform,
    pub outcome: &'a Outcome,
    /// The console's lines, each with the part of the script that it came in.
    pub lines: &'a [(&'static str, String)],
}

impl Run<'_> {
    /// The lines of a part of the script.
    fn part<'s>(&'s self, part: &'s str) -> impl Iterator<Item = &'s str> {
        self.lines.iter().filter(move |(p, _)| *p == part).map(|(_, line)| line.as_str())
    }

    /// The console's lines from one that contains `text` on.
    fn position(&self, text: &str) -> Result<usize, String> {
        self.lines.iter().position(|(_, line)| line.contains(text)).ok_or_else(|| format!("never on the console: {text}"))
    }
}

/// Counts are exact in Bochs; in QEMU, guests get what the machine that runs the tests has left for them.
fn is_exact(platform: Platform) -> bool {
    platform == Platform::VmxBochs
}

const BOTH: &[Platform] = &[Platform::SvmQemu, Platform::VmxBochs];

pub const SCENARIOS: &[Scenario] = &[
    lifecycle::ROUNDS,
    lifecycle::SCRUBBED,
    apicv::OFF,
    pinned::NULL,
    pinned::IDLE,
    neighbours::STORMS,
    clocks::OVERCOMMITTED,
    clocks::OVERCOMMITTED_LONG,
    neighbours::THREE_GUESTS,
    memtest::X64,
    memtest::IA32,
];

impl Scenario {
    pub(crate) const fn when(&self) -> When {
        if self.is_long || matches!(self.kernels, Kernels::Memtest) { When::Long } else { When::Always }
    }

    pub(crate) fn spec(&self, platform: Platform) -> Spec {
        Spec { cpus: self.cpus, memory: self.memory, ..platform.spec() }
    }
}

/// The configuration of a test guest, with lines of its own.
fn guest(name: &'static str, case: &str, more: &str) -> (&'static str, String) {
    (name, format!("{}{more}", list::guest_config_of(name, case)))
}
