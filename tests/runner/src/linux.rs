//! What a stock Linux must say about the virtual machine that it runs in.

use crate::{
    lines::{Event, GuestEnd, without_controls},
    list::Reboot,
};

/// A command typed at the guest's shell, and the word that marks its output.
const PROBES: &[(&str, &str)] = &[
    ("uname", "uname -a"),
    ("clocksource", "cat /sys/devices/system/clocksource/clocksource0/current_clocksource"),
    ("ticks-before", "grep LOC: /proc/interrupts"),
    ("busy", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"),
    ("ticks-after", "grep LOC: /proc/interrupts"),
    // With each message's level in front.
    ("dmesg", "dmesg -r"),
];

/// Starts the line that marks the output of a probe.
const MARK: &str = "@@";

/// What is typed, a line at each prompt.
#[must_use]
pub fn script(reboot: Reboot) -> String {
    let mut script: String = PROBES.iter().map(|(mark, command)| format!("echo {MARK}{mark}; {command}\n")).collect();
    if reboot == Reboot::Tested {
        script.push_str("reboot -f\n");
    }
    script.push_str("poweroff -f\n");
    script
}

/// The names of the checks.
#[must_use]
pub fn checks(reboot: Reboot) -> Vec<&'static str> {
    let mut names = vec!["linux-shell", "linux-clocksource", "linux-ticks", "linux-dmesg"];
    if reboot == Reboot::Tested {
        names.push("linux-reboot");
    }
    names.push("linux-poweroff");
    names
}

/// The result of one of [`checks`], given everything on the console and the hypervisor's events.
pub fn check(name: &str, console: &str, events: &[Event]) -> Result<(), String> {
    let console = without_controls(console);
    match name {
        "linux-shell" => check_shell(&console),
        "linux-clocksource" => {
            let found = output(&console, "clocksource")?;
            if found.iter().any(|l| l == "tsc") { Ok(()) } else { Err(format!("the clock source is {found:?}, not tsc")) }
        }
        "linux-ticks" => check_ticks(&console),
        "linux-dmesg" => check_dmesg(&output(&console, "dmesg")?),
        "linux-reboot" => check_reboot(events),
        "linux-poweroff" => {
            match events.iter().rev().find_map(|e| if let Event::Ended { how, .. } = e { Some(how) } else { None }) {
                Some(GuestEnd::Poweroff) => Ok(()),
                other => Err(format!("poweroff -f ended the guest with {other:?}")),
            }
        }
        _ => Err(format!("there is no check {name}")),
    }
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

fn check_shell(console: &str) -> Result<(), String> {
    let lines = output(console, "uname")?;
    if lines.iter().any(|l| l.starts_with("Linux ") && l.contains("x86_64")) {
        Ok(())
    } else {
        Err(format!("uname says {lines:?}"))
    }
}

/// The local timer's interrupt must have come while the guest was busy. Debian's kernel wants 250 a second.
fn check_ticks(console: &str) -> Result<(), String> {
    let count = |mark| -> Result<u64, String> {
        let lines = output(console, mark)?;
        let line = lines.iter().find_map(|l| l.trim_start().strip_prefix("LOC:")).ok_or("no LOC line in /proc/interrupts")?;
        line.split_whitespace().next().and_then(|n| n.parse().ok()).ok_or_else(|| format!("no count in {line:?}"))
    };
    let (before, after) = (count("ticks-before")?, count("ticks-after")?);
    if after >= before + 2 { Ok(()) } else { Err(format!("{before} timer ticks before, {after} after a busy loop")) }
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

fn check_dmesg(lines: &[String]) -> Result<(), String> {
    const WARNING: u32 = 4;
    let mut messages = 0;
    let mut bad = Vec::new();
    for line in lines {
        // <LEVEL>[ SECONDS] TEXT, where the level's bits above 7 are the facility.
        let Some((level, rest)) = line.strip_prefix('<').and_then(|l| l.split_once('>')) else { continue };
        let Ok(level) = level.parse::<u32>() else { continue };
        let text = rest.split_once("] ").map_or(rest, |(_, text)| text);
        messages += 1;
        let severe = level & 7 <= WARNING && !NOT_OUR_FAULT.iter().any(|p| text.starts_with(p));
        if severe || COMPLAINTS.iter().any(|c| text.contains(c)) {
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
            ("<3>[    1.000000] x", false),
            ("<12>[    1.000000] from user space, at warning level", false),
            ("<4>[    0.021909] Speculative Return Stack Overflow: IBPB-extending microcode not applied!", true),
            ("<5>[    1.000000] random: crng init done", true),
            ("debris", true),
        ] {
            assert_eq!(check_dmesg(&dmesg(line)).is_ok(), right, "{line}");
        }
        assert!(check_dmesg(&[]).is_err());
    }

    const CONSOLE: &str = "[    2.4] Run /init\r\ndebian:/root# \x1b[6necho @@uname; uname -a\r\n@@uname\r\nLinux debian 6.1 x86_64 GNU/Linux\r\n\
        debian:/root# echo @@clocksource; cat /sys/x\r\n@@clocksource\r\n[    3.0] noise\r\ntsc\r\n\
        debian:/root# echo @@ticks-before; grep\r\n@@ticks-before\r\nLOC:        577   Local timer interrupts\r\n\
        debian:/root# echo @@ticks-after; grep\r\n@@ticks-after\r\n LOC:        600   Local timer interrupts\r\ndebian:/root# ";

    #[test]
    fn a_good_console() {
        for name in ["linux-shell", "linux-clocksource", "linux-ticks"] {
            assert_eq!(check(name, CONSOLE, &[]), Ok(()), "{name}");
        }
    }

    #[test]
    fn a_bad_console() {
        for (name, from, to) in [
            ("linux-shell", "x86_64", "i686"),
            ("linux-shell", "\n@@uname\r\n", "\n"),
            ("linux-clocksource", "\ntsc", "\nacpi_pm"),
            ("linux-ticks", "600", "577"),
        ] {
            assert!(check(name, &CONSOLE.replace(from, to), &[]).is_err(), "{name}");
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
        assert_eq!(check("linux-reboot", "", &parse(&good)), Ok(()));
        assert_eq!(check("linux-poweroff", "", &parse(&good)), Ok(()));
        assert!(check("linux-reboot", "", &parse(&good[..4])).is_err());
        assert!(check("linux-poweroff", "", &parse(&good[..4])).is_err());
        let mut twice = good.to_vec();
        twice.insert(3, "Bulkhead 0");
        assert!(check("linux-reboot", "", &parse(&twice)).is_err());
    }
}
