//! Guests that are made and destroyed.

use super::{BOTH, Kernels, Run, Scenario, guest};
use crate::{
    lines::GuestEnd,
    list::{Expect, Platform},
    script::Script,
    size::MemorySize,
};

/// A guest's memory, CPUs and everything else come back, to the byte, however often it is made and destroyed.
pub const ROUNDS: Scenario = Scenario {
    name: "lifecycle-rounds",
    on: BOTH,
    cpus: 2,
    memory: MemorySize::from_mib(256),
    options: "conswitch=ax",
    autostart: "parallel",
    kernels: Kernels::TestGuest,
    is_long: false,
    guests: || {
        vec![
            // Something that stays, so that the host stays, too. It waits for the operator to press its buttons.
            guest("keeper", "buttons", ""),
            // One that runs when it is destroyed and has a vCPU that was never started, and one that waits.
            ("runs", config("runs", "hog", 2)),
            ("waits", config("waits", "idle", 1)),
        ]
    },
    script: rounds,
    check: check_rounds,
};

/// So small that scrubbing it takes no time to speak of.
fn config(name: &str, case: &str, vcpus: u32) -> String {
    format!(
        "name = \"{name}\"\ntype = \"hvm\"\nmemory = 4\nvcpus = {vcpus}\nkernel = \"guests\"\ncmdline = \"test={case}\"\n\
         isa_debug_exit = 0xf4\n"
    )
}

/// Rounds of each of the two guests, fewer where they take long. What the shell keeps for the operator (its history) has its full size after the first.
const FIRST_ROUNDS: usize = 20;

const fn all_rounds(platform: Platform) -> usize {
    match platform {
        Platform::SvmQemu => 250,
        _ => 30,
    }
}

/// Of the hypervisor's own allocations, in bytes: a CPU that has just announced a guest's end may still be on its way out of there, with what it
/// needs for that. As little as eight bytes left behind in each round are more.
const OWN_TOLERANCE: u64 = 1536;

fn rounds(platform: Platform) -> Script {
    let mut script = Script::default();
    for name in ["runs", "waits"] {
        script = script.shell(&format!("destroy {name}")).wait(&format!("guest {name}: ended: destroyed"));
    }
    script = script.shell("info").shell("debug-keys m").part("before");
    for round in 0..all_rounds(platform) {
        if round == FIRST_ROUNDS {
            script = script.shell("debug-keys m").part("between");
        }
        for (name, sign) in [("runs", "(runs) busy"), ("waits", "(waits) idle")] {
            script = script
                .shell(&format!("create {name}.cfg"))
                .wait(sign)
                .shell(&format!("destroy {name}"))
                .wait(&format!("guest {name}: ended: destroyed"));
        }
    }
    script
        .shell("debug-keys m")
        .part("after")
        .shell("info")
        .shell("trigger keeper power")
        .wait("(keeper) power button")
        .shell("trigger keeper sleep")
        .wait("(keeper) sleep button")
}

/// Free memory and the hypervisor's own allocations, in bytes, as `debug-keys m` showed them first in a part of the script.
fn memory_in(run: &Run<'_>, part: &str) -> Result<(u64, u64), String> {
    let found = run.part(part).find_map(|line| {
        let (free, own) = line.split_once("memory: ")?.1.split_once(" bytes, ")?.1.split_once(" free; own allocations: ")?;
        Some((free.parse().ok()?, own.strip_suffix(" bytes")?.parse().ok()?))
    });
    found.ok_or_else(|| format!("debug-keys m showed nothing {part}"))
}

fn check_rounds(run: &Run<'_>) -> Result<(), String> {
    let [(free, _), (between, own), (after, own_after)] =
        [memory_in(run, "before")?, memory_in(run, "between")?, memory_in(run, "after")?];
    if free != between || free != after {
        return Err(format!("{free} bytes free before, {between} after {FIRST_ROUNDS} rounds, {after} at the end"));
    }
    if own_after.saturating_sub(own) > OWN_TOLERANCE {
        return Err(format!(
            "the hypervisor itself has allocated {own} bytes after {FIRST_ROUNDS} rounds, {own_after} at the end"
        ));
    }
    let destroyed = run.outcome.ends().filter(|(_, how)| **how == GuestEnd::Destroyed).count();
    let all = 2 * all_rounds(run.platform) + 2;
    if destroyed != all {
        return Err(format!("{destroyed} guests were destroyed, not {all}"));
    }
    let mut keeper = run.outcome.ends().filter(|(name, _)| *name == "keeper").map(|(_, how)| how);
    keeper.next().map_or_else(|| Err("the guest with the buttons has not ended".into()), |how| Expect::Pass.check(how))
}

/// A guest sees nothing of what an earlier one left in the memory that both had: each has more than half of what there is.
pub const SCRUBBED: Scenario = Scenario {
    name: "memory-scrubbed",
    on: BOTH,
    cpus: 1,
    memory: MemorySize::from_mib(256),
    options: "conswitch=ax",
    autostart: "sequential",
    kernels: Kernels::TestGuest,
    is_long: false,
    guests: || {
        ["memory-fill", "memory-zero"]
            .map(|case| {
                let config = format!(
                    "name = \"{case}\"\ntype = \"hvm\"\nmemory = {SCRUBBED_MIB}\nkernel = \"guests\"\ncmdline = \"test={case}\"\n\
                     isa_debug_exit = 0xf4\n"
                );
                (case, config)
            })
            .into()
    },
    script: |_| Script::default().wait("(memory-fill) filled").shell("destroy memory-fill"),
    check: check_scrubbed,
};
const SCRUBBED_MIB: u64 = 160;

fn check_scrubbed(run: &Run<'_>) -> Result<(), String> {
    let number = |text: &str| {
        let line = &run.lines[run.position(text)?].1;
        line.split(text).nth(1).and_then(|n| n.trim().parse::<u64>().ok()).ok_or_else(|| format!("no number: {line}"))
    };
    let (filled, zero) = (number("(memory-fill) filled ")?, number("(memory-zero) zero ")?);
    if filled != zero || filled < (SCRUBBED_MIB - 8) << 20 {
        return Err(format!("{filled} bytes filled, {zero} looked at"));
    }
    let ends: Vec<_> = run.outcome.ends().collect();
    match ends.as_slice() {
        [("memory-fill", GuestEnd::Destroyed), ("memory-zero", how)] => Expect::Pass.check(how),
        _ => Err(format!("the guests ended like this: {ends:?}")),
    }
}
