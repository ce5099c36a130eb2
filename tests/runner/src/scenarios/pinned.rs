//! Guests that have a CPU for themselves, or need none.

use super::{BOTH, Kernels, Run, Scenario, guest, is_exact};
use crate::{list::Expect, script::Script, size::MemorySize};

/// `sched=null`: each vCPU has a CPU of its own, undisturbed; one too many waits until a CPU is free.
pub const NULL: Scenario = Scenario {
    name: "sched-null",
    on: BOTH,
    cpus: 2,
    memory: MemorySize::from_mib(512),
    options: "sched=null conswitch=ax",
    autostart: "parallel",
    kernels: Kernels::TestGuest,
    guests: || {
        vec![
            // The second CPU has nothing but this.
            guest("hog", "hog", "cpus = \"1\"\n"),
            guest("first", "work ms=800 marks=4", "cpus = \"0\"\n"),
            guest("late", "work ms=800 marks=4", ""),
        ]
    },
    script: |_| {
        Script::default()
            .wait("(first) work 1 ")
            .shell("vcpu-list")
            .part("pinned")
            .shell("top")
            .wait("(first) work 3 ")
            .shell("top")
            .part("second")
            .wait("guest late: ended")
            .shell("destroy hog")
    },
    check: check_null,
};

/// The words of the line of a table that is about a guest.
fn row<'a>(run: &'a Run<'_>, part: &'a str, guest: &str) -> Result<Vec<&'a str>, String> {
    let found =
        run.part(part).map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|words| words.first() == Some(&guest));
    found.ok_or_else(|| format!("nothing about {guest} in the table"))
}

fn check_null(run: &Run<'_>) -> Result<(), String> {
    run.position("guest late: vCPU 0 has to wait for a CPU of its own")?;
    // Name, ID, VCPU, CPU, State, Time, Affinity.
    for (guest, cpu) in [("hog", "1"), ("first", "0")] {
        let words = row(run, "pinned", guest)?;
        if words.get(3) != Some(&cpu) {
            return Err(format!("{guest} is not on CPU {cpu}: {words:?}"));
        }
    }
    // Name, ID, VCPU, CPU(%), Time, Exits/s.
    let words = row(run, "second", "hog")?;
    if words.get(5) != Some(&"0") {
        return Err(format!("the guest alone on its CPU is interrupted: {words:?}"));
    }
    if run.position("(late) work 1 ")? < run.position("guest first: ended")? {
        return Err("the third guest ran without a CPU of its own".into());
    }
    for (guest, how) in run.outcome.ends().filter(|(guest, _)| *guest != "hog") {
        Expect::Pass.check(how).map_err(|reason| format!("{guest} {reason}"))?;
    }
    if is_exact(run.platform) {
        let units = |guest: &str| {
            let text = format!("({guest}) work 4 ");
            let line = &run.lines[run.position(&text)?].1;
            line.split(&text).nth(1).and_then(|n| n.trim().parse::<u64>().ok()).ok_or_else(|| format!("no number: {line}"))
        };
        let (first, late) = (units("first")?, units("late")?);
        // One was disturbed by the operator, and each by its own output.
        if first.abs_diff(late) * 100 > late * 3 {
            return Err(format!("{first} units of work, and {late}, on a CPU of one's own"));
        }
    }
    Ok(())
}

/// A guest that waits for an interrupt that never comes costs nothing: it does not exit, and gets no CPU time.
pub const IDLE: Scenario = Scenario {
    name: "idle-guest",
    on: BOTH,
    cpus: 1,
    memory: MemorySize::from_mib(256),
    options: "conswitch=ax",
    autostart: "parallel",
    kernels: Kernels::TestGuest,
    guests: || vec![guest("idle", "idle", ""), guest("clock", "work ms=900 marks=3", "")],
    script: |_| {
        Script::default()
            .wait("(idle) idle")
            .wait("(clock) work 1 ")
            .shell("top")
            .wait("(clock) work 2 ")
            .shell("top")
            .part("second")
            .wait("guest clock: ended")
            // Now the CPU has nothing to do at all.
            .shell("top")
            .shell("top")
            .part("alone")
            .shell("list")
            .shell("destroy idle")
    },
    check: |run| {
        for part in ["second", "alone"] {
            let words = row(run, part, "idle")?;
            if words.get(3) != Some(&"0.0") || words.get(5) != Some(&"0") {
                return Err(format!("the idle guest ran: {words:?}"));
            }
        }
        let (exits, clock) = (row(run, "second", "clock")?, run.position("(idle) woken"));
        if exits.get(3).is_none_or(|share| *share == "0.0") {
            return Err(format!("the other guest did not run: {exits:?}"));
        }
        if clock.is_ok() { Err("the idle guest has been woken".into()) } else { Ok(()) }
    },
};
