//! One run of a machine, from its start to its end, followed on its console.

use std::{
    fmt,
    io::{Read, Write},
    process::ExitStatus,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    feed::{Feeder, Pace},
    lines::{Event, GuestEnd, LineSplitter},
    machine::Machine,
};

/// Something that a session reacts to.
#[derive(Debug)]
pub enum Message {
    Console(Vec<u8>),
    ConsoleClosed,
    /// For the guest's console.
    Input(Vec<u8>),
    /// For whoever has the console's input, at once.
    Typed(Vec<u8>),
    Stop(Stop),
}

/// Why a person or the system wants the session to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The escape key.
    Escape,
    /// This signal.
    Signal(i32),
    /// Nobody reads our output any more.
    OutputClosed,
}

/// Where a session gets its messages; the sender is for whoever has input.
#[derive(Debug)]
pub struct Mailbox {
    pub sender: Sender<Message>,
    receiver: Receiver<Message>,
}

impl Default for Mailbox {
    fn default() -> Self {
        let (sender, receiver) = channel();
        Self { sender, receiver }
    }
}

/// Follows a session.
pub trait Observer {
    /// The emulator has just been started.
    fn started(&mut self, _machine: &Machine) {}
    /// Console output, as it comes: at most the end of one line and the start of the next, before [`Observer::line`] has it.
    fn bytes(&mut self, _bytes: &[u8]) {}
    /// A complete line of console output, and what it reports.
    fn line(&mut self, _line: &str, _event: Option<&Event>) {}
}

/// The limits of a session.
#[derive(Clone, Debug)]
pub struct Options {
    /// For all of it.
    pub timeout: Option<Duration>,
    /// Between two events.
    pub stall: Option<Duration>,
    /// For the emulator to end by itself after the last guest, and for a panic to be written out.
    pub grace: Duration,
    pub pace: Pace,
}

/// How a session ended.
#[derive(Debug)]
pub enum End {
    /// All guests ended.
    AllEnded,
    /// The hypervisor panicked, saying this.
    Panic(String),
    /// This much time was over.
    Timeout(Duration),
    /// No event for this long.
    Stalled(Duration),
    /// The emulator ended too early; its status if it could be had, and what it said.
    EmulatorEnded {
        status: Option<ExitStatus>,
        messages: String,
    },
    Stopped(Stop),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllEnded => f.write_str("all guests ended"),
            Self::Panic(message) => write!(f, "the hypervisor panicked: {message}"),
            Self::Timeout(limit) => write!(f, "not done after {} s", limit.as_secs()),
            Self::Stalled(limit) => write!(f, "no progress for {} s", limit.as_secs()),
            Self::EmulatorEnded { status, messages } => {
                f.write_str("the emulator ended before the guests did")?;
                if let Some(status) = status {
                    write!(f, " ({status})")?;
                }
                if messages.is_empty() { Ok(()) } else { write!(f, ", saying:\n{messages}") }
            }
            Self::Stopped(Stop::Escape) => f.write_str("ended by the escape key"),
            Self::Stopped(Stop::Signal(number)) => write!(f, "ended by signal {number}"),
            Self::Stopped(Stop::OutputClosed) => f.write_str("nobody reads the output any more"),
        }
    }
}

/// A session that is over.
#[derive(Debug)]
pub struct Outcome {
    pub end: End,
    pub events: Vec<Event>,
}

impl Outcome {
    /// True if the hypervisor came to life.
    #[must_use]
    pub fn hypervisor_ran(&self) -> bool {
        self.events.iter().any(|e| matches!(e, Event::Banner(_)))
    }

    /// Every end of every guest, in order.
    pub fn ends(&self) -> impl Iterator<Item = (&str, &GuestEnd)> {
        self.events.iter().filter_map(|e| match e {
            Event::Ended { guest, how } => Some((guest.as_str(), how)),
            _ => None,
        })
    }
}

/// How often waiting is interrupted to look at the clock and the emulator.
const TICK: Duration = Duration::from_millis(50);

/// Follows `machine` until it is over. The machine is then ended.
pub fn run(machine: &mut Machine, mailbox: Mailbox, options: &Options, observer: &mut dyn Observer) -> Result<Outcome> {
    observer.started(machine);
    let Mailbox { sender, receiver } = mailbox;
    let mut output = machine.take_output().context("the machine's console is taken")?;
    let reader = thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            match output.read(&mut buffer) {
                Ok(n) if n > 0 => {
                    if sender.send(Message::Console(buffer[..n].to_vec())).is_err() {
                        return;
                    }
                }
                _ => break,
            }
        }
        let _ = sender.send(Message::ConsoleClosed);
    });
    let mut input = machine.take_input().context("the machine's console is taken")?;
    let (to_guest, input_queue) = channel::<Vec<u8>>();
    // A thread of its own, because a guest that does not read blocks the writer. It ends with the channel or the emulator.
    thread::spawn(move || {
        for bytes in input_queue {
            if input.write_all(&bytes).and_then(|()| input.flush()).is_err() {
                return;
            }
        }
    });

    let mut session = Session {
        splitter: LineSplitter::default(),
        feeder: Feeder::new(options.pace.clone(), Instant::now()),
        events: Vec::new(),
        ending: None,
    };
    let end = session.follow(machine, &receiver, &to_guest, options, observer);
    let registers = if matches!(end, End::Timeout(_) | End::Stalled(_)) { machine.registers() } else { Vec::new() };
    machine.kill();
    // What the emulator has written before its end.
    let _ = reader.join();
    for message in receiver.try_iter() {
        if let Message::Console(bytes) = message {
            session.console(&bytes, options, observer);
        }
    }
    let events = &mut session.events;
    session.splitter.finish(|line| {
        note(line, events, observer);
    });
    for line in registers {
        observer.line(&line, None);
    }
    let end = match end {
        // The last words may have come with the end.
        End::EmulatorEnded { .. } => last_words(&session.events).unwrap_or(end),
        end => end,
    };
    Ok(Outcome { end, events: session.events })
}

/// The end that the hypervisor itself announced, if it did.
fn last_words(events: &[Event]) -> Option<End> {
    events.iter().rev().find_map(|e| match e {
        Event::Panic(message) => Some(End::Panic(message.clone())),
        Event::AllEnded => Some(End::AllEnded),
        _ => None,
    })
}

fn note(line: &str, events: &mut Vec<Event>, observer: &mut dyn Observer) -> Option<Event> {
    let event = Event::parse(line);
    observer.line(line, event.as_ref());
    events.extend(event.clone());
    event
}

struct Session {
    splitter: LineSplitter,
    feeder: Feeder,
    events: Vec<Event>,
    /// The session is over by these means, and waits until then for the emulator to end by itself.
    ending: Option<(End, Instant)>,
}

impl Session {
    fn follow(
        &mut self,
        machine: &mut Machine,
        receiver: &Receiver<Message>,
        to_guest: &Sender<Vec<u8>>,
        options: &Options,
        observer: &mut dyn Observer,
    ) -> End {
        let start = Instant::now();
        let mut last_event = start;
        loop {
            let message = match receiver.recv_timeout(TICK) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Message::ConsoleClosed),
            };
            let now = Instant::now();
            let known = self.events.len();
            match message {
                Some(Message::Console(bytes)) => self.console(&bytes, options, observer),
                Some(Message::Input(bytes)) => self.feeder.push(&bytes),
                Some(Message::Typed(bytes)) => {
                    let _ = to_guest.send(bytes);
                }
                Some(Message::Stop(stop)) => return End::Stopped(stop),
                Some(Message::ConsoleClosed) => {
                    // Give the process a moment, for its status.
                    let status = (0..20).find_map(|_| {
                        machine.try_wait().or_else(|| {
                            thread::sleep(TICK);
                            None
                        })
                    });
                    return match self.ending.take() {
                        Some((end, _)) => end,
                        None => End::EmulatorEnded { status, messages: machine.messages() },
                    };
                }
                None => {
                    // Tells the reader, which then reports the console as closed.
                    machine.try_wait();
                }
            }
            if self.events.len() != known {
                last_event = now;
            }
            let bytes = self.feeder.take(now);
            if !bytes.is_empty() {
                let _ = to_guest.send(bytes);
            }
            if self.ending.as_ref().is_some_and(|(_, until)| now >= *until)
                && let Some((end, _)) = self.ending.take()
            {
                return end;
            }
            if self.ending.is_none() {
                if let Some(limit) = options.timeout.filter(|limit| now - start >= *limit) {
                    return End::Timeout(limit);
                }
                if let Some(limit) = options.stall.filter(|limit| now - last_event >= *limit) {
                    return End::Stalled(limit);
                }
            }
        }
    }

    fn console(&mut self, bytes: &[u8], options: &Options, observer: &mut dyn Observer) {
        let now = Instant::now();
        let Self { splitter, feeder, events, ending } = self;
        // Line by line, because a prompt means something else before an event than after it.
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            observer.bytes(part);
            feeder.output(part, now);
            splitter.push(part, |line| {
                let Some(event) = note(line, events, observer) else { return };
                feeder.event(&event);
                match event {
                    Event::AllEnded if ending.is_none() => *ending = Some((End::AllEnded, now + options.grace)),
                    // A panic counts even while the machine is being switched off.
                    Event::Panic(message) => *ending = Some((End::Panic(message), now + options.grace)),
                    _ => {}
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[derive(Default)]
    struct Record {
        bytes: Vec<u8>,
        lines: Vec<String>,
    }

    impl Observer for Record {
        fn bytes(&mut self, bytes: &[u8]) {
            self.bytes.extend_from_slice(bytes);
        }
        fn line(&mut self, line: &str, _: Option<&Event>) {
            self.lines.push(line.to_owned());
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn options() -> Options {
        Options { timeout: Some(20 * SECOND), stall: None, grace: SECOND / 4, pace: Pace::AtOnce }
    }

    /// Runs a shell script in place of the machine.
    fn play(script: &str, input: &str, options: &Options) -> (Outcome, Record) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut machine = Machine::from_program(command).unwrap();
        let mailbox = Mailbox::default();
        mailbox.sender.send(Message::Input(input.into())).unwrap();
        let mut record = Record::default();
        (run(&mut machine, mailbox, options, &mut record).unwrap(), record)
    }

    #[test]
    fn a_whole_life() {
        let script = "echo '(BH) Bulkhead 0.1'; echo '(BH) guest a: started'; echo '(BH) console: input goes to guest a'
                      read line; echo \"got $line\"; echo '(BH) guest a: ended: poweroff'; echo '(BH) all guests ended'; sleep 60";
        let (outcome, record) = play(script, "hello\n", &options());
        assert!(matches!(outcome.end, End::AllEnded), "{:?}", outcome.end);
        assert!(outcome.hypervisor_ran());
        assert_eq!(outcome.ends().collect::<Vec<_>>(), [("a", &GuestEnd::Poweroff)]);
        assert!(record.lines.contains(&"got hello".to_owned()));
    }

    #[test]
    fn a_panic_is_told_with_what_follows_it() {
        let (outcome, record) = play("echo '(BH) PANIC: ouch'; echo '(BH) backtrace'; exit 1", "", &options());
        assert!(matches!(&outcome.end, End::Panic(m) if m == "ouch"), "{:?}", outcome.end);
        assert_eq!(record.lines[1], "(BH) backtrace");
    }

    #[test]
    fn an_emulator_that_dies_is_no_success() {
        let (outcome, record) = play("printf 'last words'; exit 7", "", &options());
        assert!(matches!(outcome.end, End::EmulatorEnded { status: Some(s), .. } if s.code() == Some(7)), "{:?}", outcome.end);
        assert_eq!((record.bytes.as_slice(), record.lines.as_slice()), (&b"last words"[..], &["last words".to_owned()][..]));
    }

    #[test]
    fn last_words_without_an_end_of_line_count() {
        for (word, expected) in [("all guests ended", "all guests ended"), ("PANIC: x", "the hypervisor panicked: x")] {
            let (outcome, _) = play(&format!("printf '(BH) {word}'; exit 1"), "", &options());
            assert_eq!(outcome.end.to_string(), expected);
        }
    }

    #[test]
    fn a_prompt_counts_from_the_guest_that_shows_it() {
        let script =
            "printf '(BH) guest a: started\n(BH) console: input goes to guest a\ndebian:/# '; read line; echo \"got $line\"";
        let options = Options { pace: Pace::AtPrompt { silence: 60 * SECOND }, ..options() };
        let (_, record) = play(script, "hello\n", &options);
        assert_eq!(record.lines.last().unwrap(), "debian:/# got hello");
    }

    #[test]
    fn time_runs_out() {
        let (outcome, _) = play("sleep 60", "", &Options { timeout: Some(SECOND / 4), ..options() });
        assert!(matches!(outcome.end, End::Timeout(_)), "{:?}", outcome.end);
        let script = "echo '(BH) guest a: started'; while :; do echo noise; sleep 0.1; done";
        let (outcome, _) = play(script, "", &Options { stall: Some(SECOND / 2), ..options() });
        assert!(matches!(outcome.end, End::Stalled(_)), "{:?}", outcome.end);
        assert_eq!(outcome.events.len(), 1);
    }

    #[test]
    fn input_waits_until_the_console_is_a_guests() {
        let script =
            "if read -t 1 line; then echo early; fi; echo '(BH) console: input goes to guest a'; read line; echo got $line";
        let mut command = Command::new("bash");
        command.args(["-c", script]);
        let mut machine = Machine::from_program(command).unwrap();
        let mailbox = Mailbox::default();
        mailbox.sender.send(Message::Input(b"x\n".to_vec())).unwrap();
        let mut record = Record::default();
        run(&mut machine, mailbox, &options(), &mut record).unwrap();
        assert_eq!(record.lines, ["(BH) console: input goes to guest a", "got x"]);
    }

    #[test]
    fn a_stop_ends_the_machine_at_once() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let mut machine = Machine::from_program(command).unwrap();
        let mailbox = Mailbox::default();
        mailbox.sender.send(Message::Stop(Stop::Signal(15))).unwrap();
        let start = Instant::now();
        let outcome = run(&mut machine, mailbox, &options(), &mut Record::default()).unwrap();
        assert!(matches!(outcome.end, End::Stopped(Stop::Signal(15))));
        assert!(start.elapsed() < 10 * SECOND && machine.try_wait().is_some());
    }
}
