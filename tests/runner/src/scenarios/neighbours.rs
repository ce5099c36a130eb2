//! What guests notice of each other: nothing but that they share the CPUs.
//!
//! The progress of those that shall not notice is counted by themselves, in intervals of their own clock, and compared with what they
//! did while the others left them alone.

use super::{BOTH, Kernels, Run, Scenario, guest, is_exact};
use crate::{
    list::{self, Platform},
    script::{SWITCH, Script},
    size::MemorySize,
};

/// Units in each interval that a `progress` guest counted in a part of the script.
pub(super) fn progress(run: &Run<'_>, part: &str, name: &str) -> Vec<u64> {
    let prefix = format!("({name}) progress ");
    // The shell's prompt may have been in its place.
    let units = |line: &str| line.split_once(&prefix)?.1.split(' ').nth(1)?.parse().ok();
    run.part(part).filter_map(units).collect()
}

pub(super) fn median(mut numbers: Vec<u64>) -> Option<u64> {
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied()
}

/// Compares the median of a part with that of another, in percent.
fn compare(run: &Run<'_>, name: &str, part: &str, with: &str, range: std::ops::RangeInclusive<u64>) -> Result<(), String> {
    let of = |part: &str| median(progress(run, part, name)).ok_or_else(|| format!("{name} got nothing done, part {part}"));
    let (got, usual) = (of(part)?, of(with)?);
    let percent = got * 100 / usual.max(1);
    if range.contains(&percent) {
        Ok(())
    } else {
        Err(format!("{name}, part {part}: {got} units an interval, {percent} % of {usual} (part {with}), wanted {range:?} %"))
    }
}

/// In percent: what shows that a guest has kept its service where the emulator itself gets only what others leave it.
const LOOSE: std::ops::RangeInclusive<u64> = 5..=100_000;

/// Intervals in each part.
const INTERVALS: usize = 5;
const SURVIVORS: [&str; 2] = ["alpha", "beta"];
const STORM_PARTS: [&str; 3] = ["hog", "crash", "reboot"];

/// Two guests work; a third takes all that it can get with interrupts off, one crashes again and again, one reboots again and again.
pub const STORMS: Scenario = Scenario {
    name: "neighbours",
    on: BOTH,
    cpus: 2,
    memory: MemorySize::from_mib(512),
    options: "conswitch=ax",
    autostart: "parallel",
    kernels: Kernels::TestGuest,
    is_long: false,
    guests: || {
        vec![
            guest(SURVIVORS[0], "progress ms=60", ""),
            guest(SURVIVORS[1], "progress ms=60", ""),
            guest("hog", "hog", ""),
            ("crash", again("crash", "triple-fault", "on_crash")),
            ("reboot", again("reboot", "reset-cf9", "on_reboot")),
        ]
    },
    script: |_| {
        let mut script = Script::default();
        for name in STORM_PARTS {
            script = destroy(script, name);
        }
        script = intervals(script.part("alone"));
        for name in STORM_PARTS {
            script = script.shell(&format!("create {name}.cfg")).wait(&format!("guest {name}: started"));
            script = intervals(script.part(name));
            script = destroy(script.part(""), name);
        }
        intervals(script.part("after")).shell("destroy alpha").wait("guest alpha: ended").shell("destroy beta")
    },
    check: check_storms,
};

/// The configuration of a guest that starts again after its end.
fn again(name: &str, case: &str, key: &str) -> String {
    format!(
        "name = \"{name}\"\ntype = \"hvm\"\nmemory = 4\nkernel = \"guests\"\ncmdline = \"test={case}\"\nisa_debug_exit = 0xf4\n\
         {key} = \"restart\"\n"
    )
}

/// Also one that has just ended and is about to come back.
fn destroy(script: Script, name: &str) -> Script {
    script.shell(&format!("destroy {name}")).wait("destroyed")
}

fn intervals(script: Script) -> Script {
    SURVIVORS.iter().fold(script, |script, name| script.wait_for(INTERVALS, &format!("({name}) progress")))
}

fn check_storms(run: &Run<'_>) -> Result<(), String> {
    for name in SURVIVORS {
        if is_exact(run.platform) {
            // Two CPUs among three.
            compare(run, name, "hog", "alone", 62..=72)?;
            compare(run, name, "after", "alone", 97..=103)?;
        }
        for part in STORM_PARTS {
            // Guests that come and go take no more than one that stays.
            compare(run, name, part, "alone", if is_exact(run.platform) { 45..=105 } else { LOOSE })?;
        }
    }
    for (name, end) in [("crash", "ended: crash: "), ("reboot", "ended: reboot")] {
        let ends = run.part(name).filter(|line| line.contains(&format!("guest {name}: {end}"))).count();
        if ends < 2 {
            return Err(format!("{name} came back {ends} times only"));
        }
    }
    Ok(())
}

/// Two Linux guests and a test guest on two CPUs, each of which the operator reaches and types at. One Linux then makes trouble.
pub const THREE_GUESTS: Scenario = Scenario {
    name: "three-guests",
    on: &[Platform::SvmQemu],
    cpus: 2,
    memory: MemorySize::from_mib(1024),
    options: "",
    autostart: "parallel",
    kernels: Kernels::AndLinux,
    is_long: false,
    guests: || {
        vec![
            ("trouble", linux("trouble", "on_reboot = \"restart\"\non_crash = \"restart\"\n")),
            ("worker", linux("worker", "")),
            guest("test", "progress ms=500", ""),
        ]
    },
    script: three_guests,
    check: check_three_guests,
};

/// A triple fault is how this kernel restarts after a panic: what the hypervisor sees of a kernel that has gone astray.
fn linux(name: &str, more: &str) -> String {
    format!(
        "name = \"{name}\"\ntype = \"hvm\"\nmemory = {}\nkernel = \"vmlinuz\"\nramdisk = \"initrd.img\"\n\
         cmdline = \"console=ttyS0 panic=-1 reboot=t\"\n{more}",
        list::LINUX_MEMORY.mib()
    )
}

const PROMPT: &str = "debian:/root# ";
/// Says which of its marks each bit of counted work was, and when by its own clock.
const COUNT: &str = "n=0; while :; do i=0; while [ $i -lt 4000 ]; do i=$((i+1)); done; n=$((n+1)); read up rest < /proc/uptime; \
                     echo count $n $up; done\n";
const THREE_PARTS: [&str; 4] = ["quiet", "busy", "crash", "killed"];

fn three_guests(_: Platform) -> Script {
    let ask = |script: Script, who: &str| {
        script.type_in("\n").wait(PROMPT).type_in(&format!("echo I am {who} $((6*7))\n")).wait(&format!("I am {who} 42"))
    };
    let measure =
        |script: Script, part| script.part(part).wait_for(4, "(test) progress ").wait_for(4, "(worker) count ").part("");
    let mut script = Script::default().wait("input goes to guest trouble").wait(PROMPT);
    script = ask(script, "trouble").type_in(SWITCH).wait("input goes to guest worker");
    script = ask(script, "worker").wait(PROMPT).type_in(COUNT).wait("count 1 ").type_in(SWITCH);
    script = script.wait("input goes to guest test").type_in("x").wait("typed x").type_in(SWITCH);
    script = script.wait("input goes to the hypervisor shell").shell("list").wait("trouble ").wait("worker ").wait("test ");
    script = measure(script, "quiet");
    // A busy loop, from which only the reset button helps.
    script = script.shell("console trouble").wait("input goes to guest trouble").type_in("\n").wait(PROMPT);
    script = script.type_in("while :; do :; done\n").type_in(&SWITCH.repeat(3)).wait("input goes to the hypervisor shell");
    script = measure(script, "busy");
    script = script.shell("trigger trouble reset").wait("guest trouble: ended: reboot").wait("guest trouble: started");
    script = script.shell("console trouble").wait("input goes to guest trouble").wait(PROMPT);
    script = script.type_in("echo c > /proc/sysrq-trigger\n").part("crash").wait("guest trouble: ended: crash: ");
    script = script.wait("guest trouble: restarting (on_crash)").wait_for(3, "(test) progress ").wait_for(3, "(worker) count ");
    // It has started last, so the shell comes after it.
    script = script.part("").type_in(SWITCH).wait("input goes to the hypervisor shell");
    script = script.shell("destroy trouble").wait("guest trouble: ended: destroyed");
    script = measure(script, "killed");
    script.shell("destroy worker").wait("guest worker: ended: destroyed").shell("destroy test")
}

/// Iterations per second of its own clock that the worker counted in a part.
fn counted(run: &Run<'_>, part: &str) -> Vec<u64> {
    let uptime = |line: &str| {
        let seconds = line.split_once("(worker) count ")?.1.split(' ').nth(1)?.trim();
        seconds.replace('.', "").parse::<u64>().ok()
    };
    let times: Vec<u64> = run.part(part).filter_map(uptime).collect();
    times.windows(2).map(|pair| 400_000 / (pair[1].saturating_sub(pair[0])).max(1)).collect()
}

fn check_three_guests(run: &Run<'_>) -> Result<(), String> {
    for who in ["I am trouble 42", "I am worker 42", "typed x"] {
        run.position(who)?;
    }
    for part in THREE_PARTS {
        // A CPU for each when it is quiet, two thirds of one beside a busy third.
        compare(run, "test", part, "quiet", LOOSE)?;
        let (got, usual) = (median(counted(run, part)), median(counted(run, "quiet")));
        match (got, usual) {
            (Some(got), Some(usual)) if got * 100 >= usual * LOOSE.start() => {}
            _ => return Err(format!("worker, part {part}: {got:?} iterations a second, {usual:?} when it is quiet")),
        }
    }
    let ends: Vec<String> = run.outcome.ends().map(|(guest, how)| format!("{guest}: {how}")).collect();
    let wanted = ["trouble: reboot", "trouble: crash", "trouble: destroyed", "worker: destroyed", "test: destroyed"];
    let right = ends.len() == wanted.len() && ends.iter().zip(wanted).all(|(end, wanted)| end.starts_with(wanted));
    if right { Ok(()) } else { Err(format!("the guests ended like this: {ends:?}")) }
}
