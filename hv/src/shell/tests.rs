//! Typed bytes in, the screen and what was asked of the host out.

use super::{
    fake::{FakeHost, SECOND, guest},
    *,
};
use crate::testing::FakePlatform;
use alloc::{format, string::String, sync::Arc};
use core::sync::atomic::Ordering;
use proptest::prelude::*;
use std::string::ToString;

/// Everything that the shell puts on the console, in pieces of any size.
fn shown(shell: &mut Shell) -> String {
    let mut text = Vec::new();
    shell.flush(true, false, &mut |bytes| {
        text.extend_from_slice(bytes);
        bytes.len()
    });
    String::from_utf8(text).unwrap()
}

/// Types, with a console that has no room for the time being.
fn type_in(shell: &mut Shell, host: &FakeHost, bytes: &[u8]) {
    for &byte in bytes {
        shell.take(byte, host, &mut |_| 0);
    }
}

/// What a session shows for what is typed in it, after the greeting and with LF for CR LF.
fn session(host: &FakeHost, typed: &str) -> String {
    let mut shell = Shell { greeted: true, ..Shell::default() };
    type_in(&mut shell, host, typed.as_bytes());
    shown(&mut shell).replace("\r\n", "\n")
}

/// What a command shows between its line and the next prompt.
fn output(host: &FakeHost, command: &str) -> String {
    let text = session(host, &format!("{command}\r"));
    let text = text.strip_prefix(&format!("bulkhead> {command}\n")).unwrap_or_else(|| panic!("{text}"));
    text.strip_suffix("bulkhead> ").unwrap_or_else(|| panic!("{text}")).into()
}

/// What a command asks of the host, without showing anything.
fn calls(command: &str) -> Vec<String> {
    let host = FakeHost::new();
    assert_eq!(output(&host, command), "", "{command}");
    host.calls()
}

#[test]
fn a_session() {
    let host = FakeHost::new();
    let mut shell = Shell::default();
    assert_eq!(shown(&mut shell), "The hypervisor's shell: help lists its verbs.\r\nbulkhead> ");
    type_in(&mut shell, &host, b"pasue wev\x7fb\r\x1b[A");
    assert_eq!(host.calls(), [""; 0]);
    let text = shown(&mut shell);
    assert!(text.ends_with("\r\npasue: unknown verb; did you mean pause?\r\nbulkhead> pasue web"), "{text:?}");
    // A Ctrl-a that switches nothing is as good as Home.
    type_in(&mut shell, &host, b"\x01\x1b[C\x1b[C\x1b[3~\x1b[Cs\r");
    assert_eq!(host.calls(), ["pause 1"]);
}

#[test]
fn list_is_xls() {
    let host = FakeHost::new();
    let expected = "\
Name                                        ID   Mem VCPUs\tState\tTime(s)
web                                          1   512     2     r-----       4.6
old                                          2   512     1     ----c-       1.5
db                                           3   512     4     -b----      15.5
";
    assert_eq!(output(&host, "list"), expected);
    let one = "\
Name                                        ID   Mem VCPUs\tState\tTime(s)
db                                           3   512     4     -b----      15.5
";
    assert_eq!(output(&host, "list db"), one);
    assert_eq!(output(&host, "list 3"), one);
}

#[test]
fn vcpu_list_is_xls() {
    let expected = "\
Name                                ID  VCPU   CPU State   Time(s) Affinity (Hard / Soft)
db                                   3     0     0   r--       1.5  all / all
db                                   3     1     1   -b-       3.1  0-1,3 / all
db                                   3     2     2   ---       4.6  0-1,3 / all
db                                   3     3     -   --p       6.2  0-1,3 / all
";
    let host = FakeHost::new();
    assert_eq!(output(&host, "vcpu-list db"), expected);
    assert_eq!(output(&host, "vcpu-list").lines().count(), 1 + 2 + 1 + 4);
    assert_eq!(output(&host, "vcpu-list web 2").lines().count(), 1 + 2 + 1);
}

#[test]
fn other_tables() {
    let host = FakeHost::new();
    assert_eq!(
        output(&host, "sched-credit2"),
        "\
Name                                ID Weight  Cap
web                                  1    256    0
db                                   3    256    0
"
    );
    assert_eq!(output(&host, "sched-credit2 -d db").lines().count(), 2);
    assert_eq!(
        output(&host, "uptime"),
        "\
Name                                ID Uptime
(host)                               - 1 day,  3:46:40
web                                  1 1 day,  3:46:39
old                                  2 1 day,  3:46:39
db                                   3 1 day,  3:46:39
"
    );
    host.now.set(200_000 * SECOND);
    assert!(output(&host, "uptime web").ends_with("web                                  1 2 days,  7:33:19\n"));
    assert_eq!(
        output(&host, "info"),
        "\
bulkhead_version       : 0.1.0
cpu_model              : Scripted CPU @ 2.40GHz
nr_cpus                : 4
cpu_mhz                : 2400.012
virt_caps              : hvm hap (VT-x)
total_memory           : 4096
free_memory            : 1000
bulkhead_scheduler     : credit2
bulkhead_commandline   : console=com1 loglvl=all
guests                 : 3
vcpus                  : 7
uptime                 : 2 days,  7:33:20
"
    );
}

#[test]
fn top_measures_since_the_last_top() {
    let host = FakeHost::new();
    host.guests.borrow_mut().truncate(1);
    let mut shell = Shell { greeted: true, ..Shell::default() };
    let mut top = |host: &FakeHost| {
        type_in(&mut shell, host, b"top\r");
        shown(&mut shell)
    };
    let first = top(&host);
    assert!(first.contains("Name                                ID  VCPU CPU(%)   Time(s)   Exits/s\r\n"), "{first}");
    assert!(first.contains("web                                  1     0    0.0       1.5         0\r\n"), "{first}");
    // Two seconds later.
    host.now.set(host.now.get() + 2 * SECOND);
    host.guests.borrow_mut()[0].1[0].cpu_time.0 += SECOND;
    host.guests.borrow_mut()[0].1[0].exits += 500;
    host.guests.borrow_mut().push(guest(8, "new", 1, GuestFlags::RUNNING));
    host.guests.borrow_mut()[1].0.started = Time(host.now.get() - SECOND);
    let second = top(&host);
    assert!(second.contains("web                                  1     0   50.0       2.5       250\r\n"), "{second}");
    assert!(second.contains("web                                  1     1    0.0       3.1         0\r\n"), "{second}");
    assert!(second.contains("new                                  8     0  155.0       1.5      1000\r\n"), "{second}");
}

#[test]
fn verbs_reach_the_host() {
    for (command, expected) in [
        ("create web.cfg", &["create web.cfg Running"][..]),
        ("create mail", &["create mail.cfg Running"]),
        ("create -p web.cfg", &["create web.cfg Paused"]),
        ("create web.cfg -c", &["create web.cfg Running", "focus 9"]),
        ("destroy old", &["destroy 2"]),
        ("pause 3", &["pause 3"]),
        ("unpause  web ", &["unpause 1"]),
        ("shutdown web", &["trigger 1 Power"]),
        ("shutdown -F web", &["trigger 1 Power"]),
        ("shutdown -a", &["trigger 1 Power", "trigger 3 Power"]),
        ("reboot db", &["reboot 3"]),
        ("reboot -f", &["reset"]),
        ("poweroff -f", &["power off"]),
        ("console db", &["focus 3"]),
        ("trigger db nmi", &["trigger 3 Nmi { vcpu: 0 }"]),
        ("trigger db nmi 3", &["trigger 3 Nmi { vcpu: 3 }"]),
        ("trigger db power", &["trigger 3 Power"]),
        ("trigger db reset", &["trigger 3 Reset"]),
        ("trigger db sleep", &["trigger 3 Sleep"]),
        ("vcpu-pin db 2 0-3,^1", &["pin 3 Some(2) 0,2-3"]),
        ("vcpu-pin db all all", &["pin 3 None 0-255"]),
        ("vcpu-pin db 0 2 -", &["pin 3 Some(0) 2"]),
        ("vcpu-pin db 0 2 all", &["pin 3 Some(0) 2"]),
        ("sched-credit2 -d web -w 512", &["share 1 Some(512) None"]),
        ("sched-credit2 -w512 -c 150 -d web", &["share 1 Some(512) Some(150)"]),
        ("sched-credit2 -d db -c 0", &["share 3 None Some(0)"]),
        ("", &[]),
        ("   ", &[]),
    ] {
        assert_eq!(calls(command), expected, "{command}");
    }
}

#[test]
fn wrong_use_says_what_is_right() {
    for (command, expected) in [
        ("lsit", "lsit: unknown verb; did you mean list?\n"),
        ("vcpu", "vcpu: unknown verb; did you mean vcpu-list or vcpu-pin?\n"),
        ("frobnicate", "frobnicate: unknown verb; help lists those that there are\n"),
        ("migrate web there", "migrate: known to xl, not supported yet\n"),
        ("help foo", "help: foo is no verb, expected one of those that help lists\nusage: help [VERB]\n"),
        ("list web db", "list: db is too many\nusage: list [GUEST]\n"),
        ("list -l", "list: -l is known to xl, not supported yet\nusage: list [GUEST]\n"),
        ("list -x", "list: -x is unknown\nusage: list [GUEST]\n"),
        ("list nobody", "list: nobody: no guest has this name or id\n"),
        ("list 99", "list: 99: no guest has this name or id\n"),
        ("vcpu-list -x", "vcpu-list: -x is unknown\nusage: vcpu-list [GUEST ...]\n"),
        ("create", "create: the name of a boot module is missing\nusage: create [-c] [-p] CONFIG\n"),
        ("create ftp", "create: ftp: no boot module has this name; there are web.cfg, db.cfg, mail.cfg\n"),
        ("create -d x", "create: -d is known to xl, not supported yet\nusage: create [-c] [-p] CONFIG\n"),
        ("destroy", "destroy: a guest's name or id is missing\nusage: destroy GUEST\n"),
        ("pause a b", "pause: b is too many\nusage: pause GUEST\n"),
        ("unpause", "unpause: a guest's name or id is missing\nusage: unpause GUEST\n"),
        ("shutdown", "shutdown: a guest's name or id is missing\nusage: shutdown -a|GUEST\n"),
        ("shutdown -a web", "shutdown: web is too many\nusage: shutdown -a|GUEST\n"),
        ("reboot web -f", "reboot: GUEST and -f exclude each other\nusage: reboot GUEST | [-f]\n"),
        ("poweroff now", "poweroff: now is too many\nusage: poweroff [-f]\n"),
        ("console", "console: a guest's name or id is missing\nusage: console GUEST\n"),
        ("trigger web", "trigger: what to send is missing\nusage: trigger GUEST nmi|power|sleep|reset [VCPU]\n"),
        (
            "trigger web boot",
            "trigger: boot is no trigger, expected nmi, power, sleep or reset\nusage: trigger GUEST nmi|power|sleep|reset [VCPU]\n",
        ),
        (
            "trigger web s3resume",
            "trigger: s3resume is known to xl, not supported yet\nusage: trigger GUEST nmi|power|sleep|reset [VCPU]\n",
        ),
        (
            "trigger web nmi x",
            "trigger: x is no vCPU, expected a number from 0\nusage: trigger GUEST nmi|power|sleep|reset [VCPU]\n",
        ),
        ("trigger web nmi 2", "trigger: web: no vCPU 2: the guest has 2, counted from 0\n"),
        ("vcpu-pin web 0", "vcpu-pin: a list of host CPUs is missing\nusage: vcpu-pin GUEST VCPU|all CPUS|all\n"),
        ("vcpu-pin web 0 3-1", "vcpu-pin: 3-1: 3-1 ends before it starts\nusage: vcpu-pin GUEST VCPU|all CPUS|all\n"),
        ("vcpu-pin web 0 0 1", "vcpu-pin: 1 is known to xl, not supported yet\nusage: vcpu-pin GUEST VCPU|all CPUS|all\n"),
        ("vcpu-pin web 5 0", "vcpu-pin: web: no vCPU 5: the guest has 2, counted from 0\n"),
        ("vcpu-pin web 0 4-7", "vcpu-pin: web: the host has no CPU of 4-7\n"),
        ("sched-credit2 -w 3", "sched-credit2: -d GUEST is missing\nusage: sched-credit2 [-d GUEST [-w WEIGHT] [-c CAP]]\n"),
        (
            "sched-credit2 -d web -w 0",
            "sched-credit2: 0 is no weight, expected 1 to 65535\nusage: sched-credit2 [-d GUEST [-w WEIGHT] [-c CAP]]\n",
        ),
        (
            "sched-credit2 -d web -c +5",
            "sched-credit2: +5 is no cap, expected 0 or a percentage of one CPU\nusage: sched-credit2 [-d GUEST [-w WEIGHT] [-c CAP]]\n",
        ),
        ("sched-credit2 -d", "sched-credit2: -d needs a value\nusage: sched-credit2 [-d GUEST [-w WEIGHT] [-c CAP]]\n"),
        ("sched-credit2 -d web -c 201", "sched-credit2: cap 201 is more than 200, 100 for each vCPU\n"),
        ("dmesg -x", "dmesg: -x is unknown\nusage: dmesg [-c]\n"),
        ("info all", "info: all is too many\nusage: info\n"),
        ("top 5", "top: 5 is too many\nusage: top\n"),
        ("uptime x", "uptime: x: no guest has this name or id\n"),
        ("debug-keys", "debug-keys: at least one key is missing\nusage: debug-keys KEYS\n"),
    ] {
        let host = FakeHost::new();
        assert_eq!(output(&host, command), expected, "{command}");
        assert_eq!(host.calls(), [""; 0], "{command}");
    }
}

#[test]
fn every_verb_can_be_asked_about() {
    let host = FakeHost::new();
    let help = output(&host, "help");
    for verb in Verb::ALL {
        assert!(help.contains(&format!("\n {} ", verb.name())) || help.starts_with(" help "), "{}", verb.name());
        assert!(output(&host, &format!("help {}", verb.name())).starts_with(&format!("usage: {}", verb.name())));
        // Wrong use of each ends with its usage.
        let wrong = output(&host, &format!("{} -?", verb.name()));
        assert!(wrong.contains(&format!("\nusage: {}", verb.name())), "{wrong}");
    }
    assert!(help.lines().all(|line| line.len() < 120), "{help}");
}

/// It has another number when it comes back.
#[test]
fn a_guest_that_restarts_while_it_is_looked_up_is_looked_up_again() {
    let host = FakeHost::new();
    host.refusal.replace(Some(OperatorError::NoSuchGuest));
    assert_eq!(output(&host, "destroy web"), "");
    assert_eq!(host.calls(), ["destroy 1"; 2]);
}

#[test]
fn what_the_host_refuses_is_said() {
    for (error, expected) in [
        (OperatorError::Ended, "pause: web: the guest has ended\n"),
        (OperatorError::AlreadyPaused, "pause: web: the guest is paused already\n"),
        (OperatorError::Unsupported, "pause: web: not possible on this host\n"),
    ] {
        let host = FakeHost::new();
        host.refusal.replace(Some(error));
        assert_eq!(output(&host, "pause web"), expected);
    }
    let host = FakeHost::new();
    host.refusal.replace(Some(OperatorError::NoSuchGuest));
    assert_eq!(output(&host, "trigger web nmi"), "trigger: web: the guest has gone\n");
    let host = FakeHost::new();
    host.refusal.replace(Some(OperatorError::Refused { config: "web.cfg".into() }));
    assert_eq!(output(&host, "create -c web"), "create: web.cfg: web.cfg was refused, see the messages above\n");
    assert_eq!(host.calls(), ["create web.cfg Running"], "no focus without a guest");
    host.refusal.replace(Some(OperatorError::NoConsole));
    assert_eq!(output(&host, "console db"), "console: db: the guest has no console (serial = \"none\")\n");
    host.refusal.replace(Some(OperatorError::NotForScheduler { scheduler: "null" }));
    assert_eq!(output(&host, "sched-credit2 -d web -w 5"), "sched-credit2: web: sched=null has no weights and caps\n");
    // One refusal does not keep the others from being asked.
    host.calls();
    host.refusal.replace(Some(OperatorError::Unsupported));
    assert_eq!(output(&host, "shutdown -a"), "shutdown: web: not possible on this host\n");
    assert_eq!(host.calls().len(), 2);
}

#[test]
fn a_name_may_be_a_number_and_a_kept_guest_may_have_a_living_ones_name() {
    let host = FakeHost::new();
    host.guests.replace(alloc::vec![
        guest(4, "a", 1, GuestFlags::CRASHED),
        guest(5, "a", 1, GuestFlags::RUNNING),
        guest(6, "4", 1, GuestFlags::RUNNING),
        guest(7, "99", 1, GuestFlags::RUNNING),
    ]);
    for (word, id) in [("a", 5), ("4", 4), ("99", 7), ("6", 6)] {
        output(&host, &format!("destroy {word}"));
        assert_eq!(host.calls(), [format!("destroy {id}")], "{word}");
    }
}

#[test]
fn the_host_is_not_stopped_under_running_guests_without_a_question() {
    for (typed, asked, expected) in [
        ("reboot\ry\r", "2 guests run: web, db\nrestart the host all the same? [y/N] ", &["reset"][..]),
        ("poweroff\r Yes \r", "2 guests run: web, db\nswitch the host off all the same? [y/N] ", &["power off"]),
        ("reboot\rn\r", "restart the host", &[]),
        ("reboot\r\r", "restart the host", &[]),
        ("reboot\r\x03y\r", "y: unknown verb", &[]),
        ("reboot\rno\rdestroy web\r", "bulkhead> destroy web", &["destroy 1"]),
    ] {
        let host = FakeHost::new();
        let text = session(&host, typed);
        assert!(text.contains(asked), "{typed:?}: {text}");
        assert_eq!(host.calls(), expected, "{typed:?}");
    }
    let host = FakeHost::new();
    host.guests.borrow_mut().retain(|(guest, _)| guest.flags.ended());
    assert_eq!(output(&host, "poweroff"), "");
    assert_eq!(host.calls(), ["power off"]);
}

#[test]
fn dmesg_shows_the_log_and_forgets_it() {
    let host = FakeHost::new();
    assert_eq!(output(&host, "dmesg"), "(BH) Bulkhead 0.1.0\n(BH) guest web: started\n");
    let mut shell = Shell { greeted: true, ..Shell::default() };
    let mut dmesg = |line: &[u8]| {
        type_in(&mut shell, &host, line);
        shown(&mut shell)
    };
    assert!(dmesg(b"dmesg -c\r").contains("(BH) Bulkhead"));
    assert!(!dmesg(b"dmesg\r").contains("(BH)"));
    host.log.borrow_mut().extend(b"(BH) new\x1b[2J\n");
    assert!(dmesg(b"dmesg\r").contains("(BH) new?[2J\r\n"), "nothing in the log may play with the terminal");
    // The ring has gone on past what was forgotten, and starts in the middle of a line.
    host.log.borrow_mut().extend(b"(BH) half\n(BH) whole\n".repeat(100));
    host.log_start.set(66);
    let text = dmesg(b"dmesg\r");
    assert_eq!(text.matches("(BH) whole\r\n").count(), 100, "{text}");
    assert!(text.starts_with("dmesg\r\n(BH)") && text.matches("half").count() == 99, "{text}");
}

#[test]
fn debug_keys_in_a_row() {
    let host = FakeHost::new();
    let text = output(&host, "debug-keys qxr");
    assert_eq!(
        text,
        "'q' pressed -> guests and the registers of their vCPUs\nstate of Guests\ndebug-keys: x: unknown key; h lists them\n\
         'r' pressed -> run queues\nstate of RunQueues\n"
    );
    assert_eq!(host.calls(), ["debug Guests", "debug RunQueues"]);
    host.refusal.replace(Some(OperatorError::Unsupported));
    assert!(output(&host, "debug-keys d").ends_with("debug-keys: d: not possible on this host\n"));
    assert_eq!(output(&host, "debug-keys h"), output(&host, "debug-keys *").replace('*', "h"));
    assert_eq!(output(&host, "debug-keys h").lines().count(), 6);
}

#[test]
fn tab_completes_what_can_stand_there() {
    for (typed, line) in [
        ("li\t", "list "),
        ("vc\t", "vcpu-"),
        ("vcpu-p\td\ta\t0\t", "vcpu-pin db all 0 "),
        ("create m\t", "create mail.cfg "),
        ("create -p w\t", "create -p web.cfg "),
        ("create v\t", "create v"),
        ("help des\t", "help destroy "),
        ("destroy o\t", "destroy old "),
        ("trigger web n\t1\t", "trigger web nmi 1 "),
        ("trigger web nmi \t", "trigger web nmi "),
        ("uptime web d\t", "uptime web db "),
        ("sched-credit2 -d w\t", "sched-credit2 -d web "),
        ("sched-credit2 w\t", "sched-credit2 w"),
        ("reboot -\t", "reboot -f "),
        ("nothing w\t", "nothing w"),
        // In the middle of a line.
        ("pause  x\x1b[D\x1b[Dw\t", "pause web x"),
    ] {
        let host = FakeHost::new();
        let mut shell = Shell { greeted: true, ..Shell::default() };
        type_in(&mut shell, &host, typed.as_bytes());
        shown(&mut shell);
        // The whole line is shown again after an interruption.
        let mut again = Vec::new();
        shell.flush(true, true, &mut |bytes| {
            again.extend_from_slice(bytes);
            bytes.len()
        });
        let again = String::from_utf8(again).unwrap();
        assert_eq!(again.trim_end_matches('\x08'), format!("bulkhead> {line}"), "{typed:?}");
    }
    let host = FakeHost::new();
    assert_eq!(session(&host, "vcpu-\t"), "bulkhead> vcpu-\nvcpu-list  vcpu-pin\nbulkhead> vcpu-");
    assert!(session(&host, "zz\t").ends_with('\x07'));
}

#[test]
fn a_prompt_that_others_wrote_over_is_shown_again() {
    let host = FakeHost::new();
    let mut shell = Shell { greeted: true, ..Shell::default() };
    type_in(&mut shell, &host, b"pause w");
    let mut text = Vec::new();
    let mut flush = |shell: &mut Shell, focused, interrupted| {
        text.clear();
        shell.flush(focused, interrupted, &mut |bytes| {
            text.extend_from_slice(bytes);
            bytes.len()
        });
        String::from_utf8(text.clone()).unwrap()
    };
    assert_eq!(flush(&mut shell, true, false), "bulkhead> pause w");
    assert_eq!(flush(&mut shell, true, false), "");
    assert_eq!(flush(&mut shell, true, true), "bulkhead> pause w");
    assert_eq!(flush(&mut shell, false, true), "", "a guest has the console");
    assert_eq!(flush(&mut shell, true, true), "bulkhead> pause w");
    type_in(&mut shell, &host, b"eb\r");
    assert_eq!(host.calls(), ["pause 1"]);
}

#[test]
fn a_slow_console_gets_everything_in_the_end() {
    let host = FakeHost::new();
    host.log.borrow_mut().extend(b"(BH) one line of many\n".repeat(500));
    let expected = session(&host, "dmesg\rlist\r");
    let mut shell = Shell { greeted: true, ..Shell::default() };
    type_in(&mut shell, &host, b"dmesg\rlist\r");
    assert!(!shell.wants_input());
    let mut text = Vec::new();
    while shell.has_output() {
        let mut room = 1500;
        shell.flush(true, false, &mut |bytes| {
            assert!(bytes.len() <= CHUNK);
            if bytes.len() > room {
                return 0;
            }
            room -= bytes.len();
            text.extend_from_slice(bytes);
            bytes.len()
        });
    }
    assert!(shell.wants_input());
    assert_eq!(String::from_utf8(text).unwrap().replace("\r\n", "\n"), expected);
}

#[test]
fn the_console_gets_the_prompt_when_the_shell_has_the_input() {
    let (host, platform) = (FakeHost::new(), Arc::new(FakePlatform::new()));
    let mut shell = Shell::default();
    shell.pump(&*platform, false);
    assert!(platform.output.lock().unwrap().is_empty());
    platform.room.store(20, Ordering::Relaxed);
    shell.pump(&*platform, true);
    assert!(shell.has_output(), "the greeting is longer");
    platform.room.store(usize::MAX, Ordering::Relaxed);
    shell.pump(&*platform, true);
    host.on_call.replace(Some(platform.clone()));
    b"pause web\r".iter().for_each(|&byte| shell.input(byte, &*platform, &host));
    shell.pump(&*platform, true);
    assert!(!shell.has_output());
    let text = String::from_utf8(platform.output.lock().unwrap().clone()).unwrap();
    assert!(text.starts_with("The hypervisor's shell") && text.contains("bulkhead> "), "{text}");
    assert!(text.ends_with("pause web\r\n<pause 1>bulkhead> "), "{text}");
}

#[test]
fn pasted_lines_are_commands_one_by_one() {
    let host = FakeHost::new();
    session(&host, "pause web\r\nunpause web\r\n\r\n  pause db\nunp");
    assert_eq!(host.calls(), ["pause 1", "unpause 1", "pause 3"]);
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let host = FakeHost::new();
        let mut shell = Shell::default();
        type_in(&mut shell, &host, &bytes);
        shown(&mut shell);
    }

    /// Lines made of words that mean something somewhere.
    #[test]
    fn no_words_panic(words in proptest::collection::vec(
        "help|list|vcpu-list|create|trigger|vcpu-pin|sched-credit2|dmesg|top|uptime|debug-keys|web|db|web.cfg|all|nmi|-d|-w|-c|-f|0-3,\\^2|[0-9]{1,12}|[ -~]{0,6}\t?",
        0..7,
    )) {
        let host = FakeHost::new();
        session(&host, &format!("{}\r", words.join(" ")));
    }

    /// What is parsed wrong says how it is right, in whole lines.
    #[test]
    fn errors_are_lines(line in "(list|create|trigger|vcpu-pin|sched-credit2|debug-keys) [ -~]{0,30}") {
        if let Err(error) = parse(&line) {
            let text = error.to_string();
            prop_assert!(text.contains("\nusage: "), "{}", text);
        }
    }
}
