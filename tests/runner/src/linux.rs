//! What a stock Linux must say about the virtual machine that it runs in.

use crate::{
    lines::{Event, GuestEnd, without_controls},
    list::{LinuxTest, Platform, Reboot},
};

/// A command typed at the guest's shell, and the word that marks its output.
const PROBES: &[(&str, &str)] = &[
    ("uname", "uname -a"),
    ("cpus", "nproc; cat /sys/devices/system/cpu/online"),
    ("clocksource", "cat /sys/devices/system/clocksource/clocksource0/current_clocksource"),
    ("ticks-before", "grep -E 'LOC:| 0:' /proc/interrupts"),
    ("busy", BUSY),
    ("ticks-after", "grep -E 'LOC:| 0:' /proc/interrupts"),
    ("ipis", "grep -E 'RES:|CAL:' /proc/interrupts"),
    // With each message's level in front.
    ("dmesg", "dmesg -r"),
];

/// Keeps every processor busy.
const BUSY: &str =
    "for c in $(seq 0 $(($(nproc)-1))); do taskset -c $c sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done' & done; wait";

/// Starts the line that marks the output of a probe.
const MARK: &str = "@@";

/// What is typed, a line at each prompt.
#[must_use]
pub fn script(test: &LinuxTest) -> String {
    let mut script = probes();
    if test.reboot == Reboot::Tested {
        script.push_str("reboot -f\n");
    }
    script.push_str("poweroff -f\n");
    script
}

/// What is typed to look at everything.
#[must_use]
pub fn probes() -> String {
    PROBES.iter().map(|(mark, command)| format!("echo {MARK}{mark}; {command}\n")).collect()
}

/// What a Linux is to say of its machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expected {
    /// As `uname -m` has it.
    pub machine: &'static str,
    /// Processors.
    pub online: u32,
    pub clocksource: &'static str,
    /// What counts each processor's timer interrupts, as /proc/interrupts calls it.
    pub tick: &'static str,
    /// How messages start that are no complaints.
    pub excused: &'static [&'static str],
}

impl Expected {
    /// With nothing on the command line.
    #[must_use]
    pub const fn of(online: u32) -> Self {
        Self { machine: "x86_64", online, clocksource: "tsc", tick: "LOC:", excused: &[] }
    }
}

/// Everything that a Linux that is not in the list of [`LinuxTest`]s must have said; `held_up`: a virtual CPU may have been away for a while.
pub fn check_all(console: &str, expected: &Expected, held_up: bool) -> Result<(), String> {
    let console = &without_controls(console);
    let boot = Boot { console, events: &[], expected: *expected, held_up };
    let results = [
        check_shell(&boot),
        check_cpus(&boot),
        check_clocksource(&boot),
        check_ticks(&boot),
        output(console, "dmesg").and_then(|lines| check_dmesg(&boot, &lines)),
    ];
    let wrong: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// A check's name with one vCPU, with several on one host CPU, and with several on several; and how it is made.
struct Check {
    names: [&'static str; 3],
    run: fn(&Boot<'_>) -> Result<(), String>,
}

/// What there is to look at.
struct Boot<'a> {
    console: &'a str,
    events: &'a [Event],
    expected: Expected,
    /// A virtual CPU may have been away for a while.
    held_up: bool,
}

const CHECKS: &[Check] = &[
    Check { names: ["linux-shell", "linux-smp-shell", "linux-multi-shell"], run: check_shell },
    Check { names: ["linux-cpus", "linux-smp-cpus", "linux-multi-cpus"], run: check_cpus },
    Check { names: ["linux-clocksource", "linux-smp-clocksource", "linux-multi-clocksource"], run: check_clocksource },
    Check { names: ["linux-ticks", "linux-smp-ticks", "linux-multi-ticks"], run: check_ticks },
    Check {
        names: ["linux-dmesg", "linux-smp-dmesg", "linux-multi-dmesg"],
        run: |boot| check_dmesg(boot, &output(boot.console, "dmesg")?),
    },
    Check { names: [REBOOT, "linux-smp-reboot", "linux-multi-reboot"], run: |boot| check_reboot(boot.events) },
    Check { names: ["linux-poweroff", "linux-smp-poweroff", "linux-multi-poweroff"], run: check_poweroff },
];
const REBOOT: &str = "linux-reboot";

/// The names of the checks.
#[must_use]
pub fn checks(test: &LinuxTest) -> Vec<&'static str> {
    let wanted = CHECKS.iter().filter(|check| check.names[0] != REBOOT || test.reboot == Reboot::Tested);
    wanted.map(|check| check.names[if test.vcpus == 1 { 0 } else { 1 + usize::from(test.cpus > 1) }]).collect()
}

/// The result of one of [`checks`] for a test, given everything on the console and the hypervisor's events.
pub fn check(name: &str, test: &LinuxTest, console: &str, events: &[Event]) -> Result<(), String> {
    let console = &without_controls(console);
    let check = CHECKS.iter().find(|check| check.names.contains(&name)).ok_or_else(|| format!("there is no check {name}"))?;
    // Another virtual CPU's turn; or the whole emulator's, whose clock goes on.
    let held_up = test.vcpus > test.cpus || matches!(test.on, Platform::SvmQemu | Platform::SvmUefi);
    (check.run)(&Boot { console, events, expected: Expected::of(test.vcpus), held_up })
}

/// The lines that the probe `mark` printed.
fn output(console: &str, mark: &str) -> Result<Vec<String>, String> {
    let start = format!("{MARK}{mark}");
    let mut lines = console.lines().skip_while(|l| l.trim() != start);
    if lines.next().is_none() {
        return Err(format!("the guest's shell never ran the command marked {mark}"));
    }
    let prompt = format!("{}:", crate::feed::PROMPT_HOST);
    Ok(lines.take_while(|l| !l.starts_with(&prompt)).map(|l| l.trim_end().to_owned()).collect())
}

fn check_shell(boot: &Boot<'_>) -> Result<(), String> {
    let lines = output(boot.console, "uname")?;
    if lines.iter().any(|l| l.starts_with("Linux ") && l.contains(boot.expected.machine)) {
        Ok(())
    } else {
        Err(format!("uname says {lines:?}"))
    }
}

/// All processors are online, and those that others start and call have had IPIs.
fn check_cpus(boot: &Boot<'_>) -> Result<(), String> {
    let lines = output(boot.console, "cpus")?;
    let wanted = boot.expected.online;
    let online = if wanted == 1 { "0".to_owned() } else { format!("0-{}", wanted - 1) };
    let has = |line: &str| lines.iter().any(|l| l == line);
    if !has(&wanted.to_string()) || !has(&online) {
        return Err(format!("{wanted} processors wanted; nproc and the list of those online say {lines:?}"));
    }
    if wanted == 1 {
        return Ok(());
    }
    let [rescheduling, calls] = ["RES:", "CAL:"].map(|label| counts(boot, "ipis", label));
    let all: Vec<u64> = rescheduling?.into_iter().zip(calls?).map(|(a, b)| a + b).collect();
    if all.iter().all(|&n| n > 0) { Ok(()) } else { Err(format!("IPIs by processor: {all:?}")) }
}

fn check_clocksource(boot: &Boot<'_>) -> Result<(), String> {
    let found = output(boot.console, "clocksource")?;
    let wanted = boot.expected.clocksource;
    if found.iter().any(|l| l == wanted) { Ok(()) } else { Err(format!("the clock source is {found:?}, not {wanted}")) }
}

/// The line of /proc/interrupts that starts with `label` in the output of the probe `mark`: a count for each processor.
fn counts(boot: &Boot<'_>, mark: &str, label: &str) -> Result<Vec<u64>, String> {
    let lines = output(boot.console, mark)?;
    let found = lines.iter().find_map(|l| l.trim_start().strip_prefix(label));
    let line = found.ok_or_else(|| format!("no {label} line in /proc/interrupts"))?;
    let counts: Vec<u64> = line.split_whitespace().map_while(|n| n.parse().ok()).collect();
    let wanted = boot.expected.online;
    if counts.len() == wanted as usize { Ok(counts) } else { Err(format!("{wanted} counts wanted: {line:?}")) }
}

/// Each processor's timer interrupt must have come while it was busy. Debian's kernel wants 250 a second.
fn check_ticks(boot: &Boot<'_>) -> Result<(), String> {
    let tick = boot.expected.tick;
    let (before, after) = (counts(boot, "ticks-before", tick)?, counts(boot, "ticks-after", tick)?);
    if before.iter().zip(&after).all(|(before, after)| *after >= before + 2) {
        Ok(())
    } else {
        Err(format!("{before:?} timer ticks before, {after:?} after a busy loop"))
    }
}

fn check_poweroff(boot: &Boot<'_>) -> Result<(), String> {
    match boot.events.iter().rev().find_map(|e| if let Event::Ended { how, .. } = e { Some(how) } else { None }) {
        Some(GuestEnd::Poweroff) => Ok(()),
        other => Err(format!("poweroff -f ended the guest with {other:?}")),
    }
}

fn check_reboot(events: &[Event]) -> Result<(), String> {
    let rebooted =
        events.iter().position(|e| matches!(e, Event::Ended { how: GuestEnd::Reboot, .. })).ok_or("the guest never rebooted")?;
    let restarted = events[rebooted..].iter().any(|e| matches!(e, Event::Restarting { .. }));
    // A restart that works gets as far as a second end.
    let again = events[rebooted + 1..].iter().any(|e| matches!(e, Event::Ended { .. }));
    let banners = events.iter().filter(|e| matches!(e, Event::Banner(_))).count();
    match (restarted, again, banners) {
        (false, _, _) => Err("the hypervisor did not restart the guest".into()),
        (_, false, _) => Err("the guest did not come up again".into()),
        (_, _, 1) => Ok(()),
        _ => Err("the reboot touched the hypervisor".into()),
    }
}

/// Messages at warning level or above say that something is wrong with the machine, unless they start with one of these: the CPU
/// vulnerabilities that every virtual machine on this CPU reports, whoever made it.
const NOT_OUR_FAULT: &[&str] = &[
    "Speculative Return Stack Overflow",
    "Spectre V",
    "RETBleed",
    "MDS ",
    "MDS:",
    "TAA ",
    "TAA:",
    "MMIO Stale Data",
    "L1TF",
    "SRBDS",
    "Retbleed",
    "ITS:",
    "GDS:",
    "TSA:",
    "VMSCAPE",
];

/// What the kernel says after a processor of its own was away for a while.
const HELD_UP: &[&str] = &["hrtimer: interrupt took", "hpet: Lost "];

/// Complaints that the kernel makes at lower levels, too.
const COMPLAINTS: &[&str] = &[
    "unstable",
    "not consistent",
    "Firmware Bug",
    "BIOS bug",
    "BIOS BUG",
    "unchecked MSR",
    "Call Trace",
    "WARNING: CPU",
    "nobody cared",
    "timer doesn't work",
    "can't find",
    "ACPI Error",
    "ACPI BIOS Error",
    "ACPI Warning",
    "calibration failed",
    "no locality",
    "spurious",
];

fn check_dmesg(boot: &Boot<'_>, lines: &[String]) -> Result<(), String> {
    const WARNING: u32 = 4;
    let mut messages = 0;
    let mut bad = Vec::new();
    for line in lines {
        // <LEVEL>[ SECONDS] TEXT, where the level's bits above 7 are the facility.
        let Some((level, rest)) = line.strip_prefix('<').and_then(|l| l.split_once('>')) else { continue };
        let Ok(level) = level.parse::<u32>() else { continue };
        let text = rest.split_once(']').map_or(rest, |(_, text)| text.trim_start());
        messages += 1;
        let says = |known: &[&str]| known.iter().any(|p| text.starts_with(p));
        let asked_for = says(boot.expected.excused);
        let excused = says(NOT_OUR_FAULT) || boot.held_up && says(HELD_UP);
        let severe = level & 7 <= WARNING && !text.is_empty() && !excused;
        if !asked_for && (severe || COMPLAINTS.iter().any(|c| text.contains(c))) {
            bad.push(line.as_str());
        }
    }
    if messages < 50 {
        return Err(format!("dmesg printed {messages} messages only"));
    }
    if bad.is_empty() { Ok(()) } else { Err(format!("the kernel complains:\n{}", bad.join("\n"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux(vcpus: u32) -> LinuxTest {
        LinuxTest { on: Platform::VmxBochs, vcpus, cpus: vcpus, reboot: Reboot::NotTested }
    }

    fn check_dmesg(lines: &[String], held_up: bool) -> Result<(), String> {
        let expected = Expected { excused: &["tsc: Marking TSC unstable due to y"], ..Expected::of(1) };
        super::check_dmesg(&Boot { console: "", events: &[], expected, held_up }, lines)
    }

    fn dmesg(extra: &str) -> Vec<String> {
        let mut lines: Vec<String> = (0..60).map(|i| format!("<6>[    0.{i:06}] message {i}")).collect();
        lines.push(extra.to_owned());
        lines
    }

    #[test]
    fn warnings_about_the_platform_fail() {
        for (line, right) in [
            ("<4>[    1.000000] clocksource: timekeeping watchdog: x", false),
            ("<6>[    1.000000] tsc: Marking TSC unstable due to x", false),
            ("<4>[    1.000000] tsc: Marking TSC unstable due to y", true),
            ("<3>[    1.000000] x", false),
            ("<4>[    1.000000]", true),
            ("<12>[    1.000000] from user space, at warning level", false),
            ("<4>[    0.021909] Speculative Return Stack Overflow: IBPB-extending microcode not applied!", true),
            ("<5>[    1.000000] random: crng init done", true),
            ("debris", true),
        ] {
            assert_eq!(check_dmesg(&dmesg(line), false).is_ok(), right, "{line}");
        }
        assert!(check_dmesg(&[], false).is_err());
        for line in ["<4>[    3.867496] hrtimer: interrupt took 20512686 ns", "<4>[   10.707988] hpet: Lost 6 RTC interrupts"] {
            let late = dmesg(line);
            assert!(check_dmesg(&late, true).is_ok() && check_dmesg(&late, false).is_err(), "{line}");
        }
    }

    const CONSOLE: &str = "[    2.4] Run /init\r\ndebian:/root# \x1b[6necho @@uname; uname -a\r\n@@uname\r\nLinux debian 6.1 x86_64 GNU/Linux\r\n\
        debian:/root# echo @@cpus; nproc\r\n@@cpus\r\n2\r\n0-1\r\n\
        debian:/root# echo @@clocksource; cat /sys/x\r\n@@clocksource\r\n[    3.0] noise\r\ntsc\r\n\
        debian:/root# echo @@ticks-before; grep\r\n@@ticks-before\r\nLOC:        577        300   Local timer interrupts\r\n\
        debian:/root# echo @@ticks-after; grep\r\n@@ticks-after\r\n LOC:        600        302   Local timer interrupts\r\n\
        debian:/root# echo @@ipis; grep\r\n@@ipis\r\n RES:    0    5   Rescheduling interrupts\r\n CAL:    7    0   Function call interrupts\r\n\
        debian:/root# ";

    #[test]
    fn a_good_console() {
        for name in ["linux-smp-shell", "linux-smp-cpus", "linux-smp-clocksource", "linux-smp-ticks"] {
            assert_eq!(check(name, &linux(2), CONSOLE, &[]), Ok(()), "{name}");
        }
        let one = CONSOLE.replace("\n2\r", "\n1\r").replace("\n0-1\r", "\n0\r");
        assert!(check("linux-cpus", &linux(1), &one, &[]).is_ok());
    }

    #[test]
    fn a_bad_console() {
        for (name, from, to) in [
            ("linux-smp-shell", "x86_64", "i686"),
            ("linux-smp-shell", "\n@@uname\r\n", "\n"),
            ("linux-smp-cpus", "\n2\r", "\n1\r"),
            ("linux-smp-cpus", "0-1", "0"),
            ("linux-smp-cpus", "RES:    0    5", "RES:    0    0"),
            ("linux-smp-clocksource", "\ntsc", "\nacpi_pm"),
            ("linux-smp-ticks", "600", "577"),
            ("linux-smp-ticks", "302", "301"),
            ("linux-smp-ticks", "302", ""),
        ] {
            assert!(check(name, &linux(2), &CONSOLE.replace(from, to), &[]).is_err(), "{name} {to}");
        }
    }

    #[test]
    fn other_linuxes_say_other_things() {
        let messages: String = (0..60).map(|i| format!("<6>[    0.{i:06}] message {i}\r\n")).collect();
        let console = CONSOLE.replace("x86_64", "i686").replace("\ntsc\r", "\nhpet\r");
        let console = format!("{console}echo @@dmesg\r\n@@dmesg\r\n{messages}debian:/root# ");
        let right = Expected { machine: "i686", clocksource: "hpet", ..Expected::of(2) };
        assert_eq!(check_all(&console, &right, false), Ok(()));
        for wrong in [
            Expected { machine: "x86_64", ..right },
            Expected { online: 3, ..right },
            Expected { clocksource: "tsc", ..right },
            Expected { tick: "0:", ..right },
        ] {
            assert!(check_all(&console, &wrong, false).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_reboot_keeps_the_hypervisor() {
        let parse = |lines: &[&str]| lines.iter().map(|l| Event::parse(&format!("(BH) {l}")).unwrap()).collect::<Vec<_>>();
        let good = [
            "Bulkhead 0",
            "guest a: started",
            "guest a: ended: reboot",
            "guest a: restarting (on_reboot)",
            "guest a: ended: poweroff",
        ];
        assert_eq!(check("linux-reboot", &linux(1), "", &parse(&good)), Ok(()));
        assert_eq!(check("linux-poweroff", &linux(1), "", &parse(&good)), Ok(()));
        assert!(check("linux-reboot", &linux(1), "", &parse(&good[..4])).is_err());
        assert!(check("linux-poweroff", &linux(1), "", &parse(&good[..4])).is_err());
        let mut twice = good.to_vec();
        twice.insert(3, "Bulkhead 0");
        assert!(check("linux-reboot", &linux(1), "", &parse(&twice)).is_err());
    }
}
