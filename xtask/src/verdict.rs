//! What a session's outcome means for whoever started it: a sentence and an exit status.

use runner::{
    lines::{Event, GuestEnd},
    session::{End, Outcome, Stop},
};

use crate::terminal::ESCAPE_NAME;

/// The exit statuses of `cargo xtask run` (1 is for xtask's own failures, 2 for a wrong command line).
pub mod status {
    pub const AS_CONFIGURED: u8 = 0;
    pub const GUEST_CRASHED: u8 = 3;
    pub const HYPERVISOR_PANICKED: u8 = 4;
    pub const TIMEOUT: u8 = 5;
    pub const GUEST_REFUSED: u8 = 6;
    pub const EMULATOR_ENDED: u8 = 7;
    pub const ESCAPE: u8 = 8;
    /// Plus the signal's number.
    pub const SIGNAL: u8 = 128;
}

/// For `--help`.
pub const STATUS_HELP: &str = "\
Exit status:
  0  every guest ended as configured (powered off, or a debug exit of value 0 or 0x10)
  1  xtask itself could not do it: a build failed, a tool is missing
  2  wrong command line
  3  a guest crashed, or ended with another debug exit value
  4  the hypervisor panicked
  5  --timeout was over
  6  a guest was refused because of its configuration
  7  the emulator ended before the guests did
  8  you ended it with Ctrl-]
128+N  ended by signal N";

/// By the conventions of test kernels, the byte 0 or 0x10 written to the debug-exit port means success.
const DEBUG_EXIT_SUCCESS: [u32; 2] = [1, 0x21];

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    pub status: u8,
    pub sentence: String,
}

/// Judges a session. The worst thing that happened decides: the hypervisor's failure before a guest's.
pub fn judge(outcome: &Outcome) -> Verdict {
    let verdict = |status, sentence: String| Verdict { status, sentence };
    match &outcome.end {
        End::AllEnded => judge_guests(outcome),
        End::Panic(message) => verdict(status::HYPERVISOR_PANICKED, format!("the hypervisor panicked: {message}")),
        End::Timeout(limit) | End::Stalled(limit) => {
            let who = if !outcome.hypervisor_ran() {
                "the hypervisor did not start".to_owned()
            } else {
                match running(outcome).as_slice() {
                    [] => "no guest ran".to_owned(),
                    [guest] => format!("guest {guest} was still running"),
                    guests => format!("guests {} were still running", guests.join(", ")),
                }
            };
            verdict(status::TIMEOUT, format!("timeout: after {} s {who}", limit.as_secs()))
        }
        End::EmulatorEnded { .. } => {
            let when = if outcome.hypervisor_ran() { "" } else { ", and the hypervisor had not started" };
            verdict(status::EMULATOR_ENDED, format!("{}{when}", outcome.end))
        }
        End::Stopped(Stop::Escape) => verdict(status::ESCAPE, format!("you ended it with {ESCAPE_NAME}")),
        End::Stopped(Stop::Signal(number)) => {
            verdict(status::SIGNAL.saturating_add(u8::try_from(*number).unwrap_or(0)), format!("ended by signal {number}"))
        }
        End::Stopped(Stop::OutputClosed) => verdict(1, outcome.end.to_string()),
    }
}

fn judge_guests(outcome: &Outcome) -> Verdict {
    for (guest, how) in outcome.ends() {
        let sentence = match how {
            GuestEnd::Crash(reason) => format!("guest {guest} crashed: {reason}"),
            GuestEnd::DebugExit(status) if !DEBUG_EXIT_SUCCESS.contains(status) => {
                format!("guest {guest} ended with debug-exit status {status}")
            }
            _ => continue,
        };
        return Verdict { status: status::GUEST_CRASHED, sentence };
    }
    let refused = |e: &Event| match e {
        Event::Refused { guest } => Some(guest.clone()),
        _ => None,
    };
    if let Some(guest) = outcome.events.iter().find_map(refused) {
        let why = outcome.events.iter().find_map(|e| match e {
            Event::BadConfig { file, line: Some(line), what } => Some(format!(": {file}:{line}: {what}")),
            Event::BadConfig { file, line: None, what } => Some(format!(": {file}: {what}")),
            _ => None,
        });
        return Verdict {
            status: status::GUEST_REFUSED,
            sentence: format!("guest {guest} was refused{}", why.unwrap_or_default()),
        };
    }
    if outcome.ends().next().is_none() {
        return Verdict { status: status::GUEST_REFUSED, sentence: "no guest was started".into() };
    }
    let mut last: Vec<(&str, &GuestEnd)> = Vec::new();
    for (guest, how) in outcome.ends() {
        last.retain(|(g, _)| *g != guest);
        last.push((guest, how));
    }
    let list: Vec<String> = last.iter().map(|(guest, how)| format!("{guest}: {how}")).collect();
    Verdict { status: status::AS_CONFIGURED, sentence: format!("every guest ended as configured ({})", list.join(", ")) }
}

/// The guests that have started and not ended, or have restarted.
fn running(outcome: &Outcome) -> Vec<&str> {
    let mut running: Vec<&str> = Vec::new();
    for event in &outcome.events {
        match event {
            Event::Started { guest } | Event::Restarting { guest } if !running.contains(&guest.as_str()) => running.push(guest),
            Event::Ended { guest, .. } => running.retain(|g| g != guest),
            _ => {}
        }
    }
    running
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn after(lines: &[&str], end: End) -> Verdict {
        let mut events = vec![Event::Banner("0".into())];
        events.extend(lines.iter().map(|l| Event::parse(&format!("(BH) {l}")).unwrap()));
        judge(&Outcome { end, events })
    }

    #[test]
    fn every_status_has_its_sentence() {
        let second = Duration::from_secs(1);
        let on = |lines: &[&str]| after(lines, End::AllEnded);
        for (verdict, status, words) in [
            (on(&["guest a: started", "guest a: ended: poweroff"]), 0, "a: poweroff"),
            (on(&["guest a: ended: reboot", "guest a: restarting (on_reboot)", "guest a: ended: poweroff"]), 0, "(a: poweroff)"),
            (on(&["guest a: ended: debug-exit status 33"]), 0, "as configured"),
            (on(&["guest a: ended: debug-exit status 1"]), 0, "as configured"),
            (on(&["guest a: ended: debug-exit status 35"]), 3, "status 35"),
            (on(&["guest a: ended: crash: triple fault", "guest b: ended: poweroff"]), 3, "triple fault"),
            (
                on(&["config x.cfg:2: vcpu: unknown key", "guest x.cfg: refused", "guest b: ended: poweroff"]),
                6,
                "x.cfg:2: vcpu: unknown key",
            ),
            (on(&[]), 6, "no guest"),
            (after(&["guest a: ended: crash: x"], End::Panic("ouch".into())), 4, "ouch"),
            (
                after(&["guest a: started", "guest b: started", "guest b: ended: poweroff"], End::Timeout(second)),
                5,
                "guest a was",
            ),
            (after(&[], End::EmulatorEnded { status: None, messages: "words".into() }), 7, "words"),
            (after(&[], End::Stopped(Stop::Escape)), 8, "Ctrl-]"),
            (after(&[], End::Stopped(Stop::Signal(15))), 143, "15"),
        ] {
            assert_eq!(verdict.status, status, "{verdict:?}");
            assert!(verdict.sentence.contains(words), "{verdict:?}");
        }
        let silent = judge(&Outcome { end: End::Timeout(second), events: vec![] });
        assert!(silent.sentence.contains("did not start"), "{silent:?}");
    }
}
