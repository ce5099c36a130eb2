//! Guests that have a CPU for themselves, or need none.

use super::{
    BOTH, Kernels, Run, Scenario, guest, is_exact,
    neighbours::{median, progress},
};
use crate::{list::Platform, script::Script, size::MemorySize};

/// The last words of the tables' first lines: a table comes in one piece, so what comes later is no part of it. A prompt alone would not tell, since
/// it is shown again after whatever others write.
const VCPU_LIST: &str = "Affinity (Hard / Soft)";
const TOP: &str = "Exits/s";

/// `sched=null`: each vCPU has a CPU of its own, undisturbed; one too many waits until a CPU is free.
pub const NULL: Scenario = Scenario {
    name: "sched-null",
    on: BOTH,
    cpus: 2,
    memory: MemorySize::from_mib(512),
    options: "sched=null conswitch=ax",
    autostart: "parallel",
    kernels: Kernels::TestGuest,
    is_long: false,
    guests: || {
        vec![
            // The second CPU has nothing but this.
            guest("hog", "hog", "cpus = \"1\"\n"),
            guest("first", WORK, "cpus = \"0\"\n"),
            guest("late", WORK, ""),
        ]
    },
    script: |_| {
        Script::default()
            .wait("(first) progress 1 ")
            .shell("vcpu-list")
            .part("pinned")
            .wait(VCPU_LIST)
            .shell("top")
            .wait(TOP)
            .wait_for(2, "(first) progress ")
            .shell("top")
            .part("second")
            .wait(TOP)
            .wait_for(3, "(first) progress ")
            .shell("destroy first")
            .wait("guest first: ended")
            .part("late")
            .wait_for(4, "(late) progress ")
            .shell("destroy late")
            .wait("guest late: ended")
            .shell("destroy hog")
    },
    check: check_null,
};
/// Goes on until it is destroyed: however slow the operator is, it is there.
const WORK: &str = "progress ms=40";

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
    // Name, ID, VCPU, CPU(%), Time, Exits/s. Bochs' VT-x needs a guest's turns cut short, whoever waits: they are all its exits.
    let words = row(run, "second", "hog")?;
    if words.get(5) != Some(&"0") && run.platform != Platform::VmxBochs {
        return Err(format!("the guest alone on its CPU is interrupted: {words:?}"));
    }
    if run.position("(late) case ")? < run.position("guest first: ended")? {
        return Err("the third guest ran without a CPU of its own".into());
    }
    let units = |part, guest| median(progress(run, part, guest)).ok_or_else(|| format!("{guest} got nothing done"));
    let (first, late) = (units("second", "first")?, units("late", "late")?);
    if is_exact(run.platform) && first.abs_diff(late) * 100 > late * 3 {
        return Err(format!("{first} units of work, and {late}, on a CPU of one's own"));
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
    is_long: false,
    guests: || vec![guest("idle", "idle", ""), guest("clock", WORK, "")],
    script: |_| {
        Script::default()
            .wait("(idle) idle")
            .wait("(clock) progress 1 ")
            .shell("top")
            .wait(TOP)
            .wait_for(2, "(clock) progress ")
            .shell("top")
            .part("second")
            .wait(TOP)
            .shell("destroy clock")
            .wait("guest clock: ended")
            // Now the CPU has nothing to do at all.
            .shell("top")
            .wait(TOP)
            .shell("top")
            .part("alone")
            .wait(TOP)
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
