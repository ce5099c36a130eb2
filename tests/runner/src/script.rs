//! A scripted operator: waits for what the console shows, types, and notes in which part of the script each line came.

use std::{collections::VecDeque, sync::mpsc::Sender};

use crate::{
    lines::{Event, without_controls},
    session::{Message, Observer},
};

/// What switches the console's input to the next guest, or to the shell.
pub const SWITCH: &str = "\x01\x01\x01";
/// The hypervisor's shell waits for a command.
pub const SHELL: &str = "bulkhead> ";

/// One step of a script.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Step {
    /// What must be on the console, one after the other, with anything in between.
    wait: VecDeque<String>,
    /// What is typed then.
    typed: String,
    /// The part of the script that begins then.
    part: Option<&'static str>,
}

/// Steps to do one after the other.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Script {
    steps: VecDeque<Step>,
}

impl Script {
    /// Waits for this before anything that follows.
    #[must_use]
    pub fn wait(mut self, text: &str) -> Self {
        self.wait_times(text, 1);
        self
    }

    /// The same, for as many occurrences.
    #[must_use]
    pub fn wait_for(mut self, times: usize, text: &str) -> Self {
        self.wait_times(text, times);
        self
    }

    fn wait_times(&mut self, text: &str, times: usize) {
        let waits = std::iter::repeat_n(text.to_owned(), times);
        match self.steps.back_mut().filter(|step| step.typed.is_empty() && step.part.is_none()) {
            Some(step) => step.wait.extend(waits),
            None => self.steps.push_back(Step { wait: waits.collect(), ..Step::default() }),
        }
    }

    /// Types this.
    #[must_use]
    pub fn type_in(mut self, text: &str) -> Self {
        match self.steps.back_mut().filter(|step| step.typed.is_empty()) {
            Some(step) => step.typed = text.to_owned(),
            None => self.steps.push_back(Step { typed: text.to_owned(), ..Step::default() }),
        }
        self
    }

    /// Types a command at the hypervisor's shell, when that waits for one.
    #[must_use]
    pub fn shell(self, command: &str) -> Self {
        self.wait(SHELL).type_in(&format!("{command}\r"))
    }

    /// Begins another part; what has been waited for belongs to the part before.
    #[must_use]
    pub fn part(mut self, name: &'static str) -> Self {
        match self.steps.back_mut().filter(|step| step.part.is_none()) {
            Some(step) => step.part = Some(name),
            None => self.steps.push_back(Step { part: Some(name), ..Step::default() }),
        }
        self
    }
}

/// Follows a session as the operator that a [`Script`] tells what to do.
pub struct Operator {
    script: Script,
    sender: Sender<Message>,
    /// Output that has not been waited for yet.
    seen: String,
    part: &'static str,
    /// The lines of the console, each with the part of the script that it came in.
    pub lines: Vec<(&'static str, String)>,
}

/// Where the first occurrence of `text` in the console's output ends.
///
/// A guest that the host keeps waiting in the middle of a line has that line broken by those that others have to say: as a line of its own, each
/// begins with their names. Whoever reads the console sees the two parts as one, and so does this.
fn end_of(text: &str, output: &str) -> Option<usize> {
    let whole = output.find(text).map(|at| at + text.len());
    // What is left without the others' lines, and where its pieces were.
    let (mut rest, mut pieces) = (String::new(), Vec::new());
    let mut at = 0;
    for line in output.split_inclusive('\n') {
        let is_others = at > 0 && line.starts_with('(') && line.contains(") ") && line.ends_with('\n');
        if is_others {
            rest.truncate(rest.trim_end_matches(['\r', '\n']).len());
        } else {
            pieces.push((rest.len(), at));
            rest.push_str(line);
        }
        at += line.len();
    }
    let broken = rest.find(text).and_then(|at| {
        let last = at + text.len().saturating_sub(1);
        // A piece of which nothing is left begins where the next one does, which comes after it.
        let (start, was) = pieces.iter().rfind(|(start, _)| *start <= last)?;
        Some(was + last - start + 1)
    });
    whole.into_iter().chain(broken).min()
}

/// More output than this need not be kept to find what is waited for.
const SEEN_LIMIT: usize = 1 << 16;

impl Operator {
    #[must_use]
    pub fn new(script: Script, sender: Sender<Message>) -> Self {
        Self { script, sender, seen: String::new(), part: "", lines: Vec::new() }
    }

    /// What the operator waits for still; empty if the script is done.
    #[must_use]
    pub fn waits_for(&self) -> &str {
        self.script.steps.front().map_or("", |step| step.wait.front().map_or("its turn", String::as_str))
    }

    fn proceed(&mut self) {
        while let Some(step) = self.script.steps.front_mut() {
            while let Some(text) = step.wait.front() {
                let Some(end) = end_of(text, &self.seen) else { return };
                self.seen.drain(..end);
                step.wait.pop_front();
            }
            if let Some(step) = self.script.steps.pop_front() {
                if !step.typed.is_empty() {
                    let _ = self.sender.send(Message::Typed(step.typed.into_bytes()));
                }
                self.part = step.part.unwrap_or(self.part);
            }
        }
    }
}

impl Observer for Operator {
    fn bytes(&mut self, bytes: &[u8]) {
        self.seen.push_str(&String::from_utf8_lossy(bytes));
        self.proceed();
        if self.seen.len() > SEEN_LIMIT {
            let cut = (self.seen.len() - SEEN_LIMIT / 2..).find(|&at| self.seen.is_char_boundary(at)).unwrap_or(0);
            self.seen.drain(..cut);
        }
    }

    fn line(&mut self, line: &str, _: Option<&Event>) {
        self.lines.push((self.part, without_controls(line)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_line_that_others_break_is_one() {
        let output = "I am worker\r\ndebian:/ro\r\n(test) progress 3\r\n(a b) \r\not# (x";
        assert_eq!(end_of("debian:/root# ", output), Some(output.len() - 2));
        assert_eq!(end_of("(test) progress ", output), output.find("3"));
        assert_eq!(end_of("worker", output), Some(11));
        assert_eq!(end_of("debian:/root#  ", output), None);
        // Its own lines remain lines.
        assert_eq!(end_of("ab", "a\r\nb"), None);
        // Whether it has begun as a line is not known, nor whose it is.
        assert_eq!(end_of("ab", "a(b) \nb"), None);
        assert_eq!(end_of("(b) c", "(b) c\n"), Some(5));
        // The others' line may not be complete.
        assert_eq!(end_of("ab", "a\n(test) pro"), None);
        assert_eq!(end_of("ab", "a\n(test) progress\nb"), Some(19));
    }

    #[test]
    fn the_operator_waits_types_and_keeps_the_parts_apart() {
        let (sender, receiver) = channel();
        let script = Script::default().shell("one").wait_for(2, "x").wait("y").part("second").shell("two");
        let mut operator = Operator::new(script, sender);
        let typed = || receiver.try_iter().map(|m| format!("{m:?}")).collect::<Vec<_>>().len();
        operator.bytes(b"bulk");
        assert_eq!(typed(), 0);
        operator.bytes(b"head> ");
        assert_eq!(typed(), 1);
        operator.bytes(b"x y x\n");
        operator.line("x y x", None);
        assert_eq!(operator.waits_for(), "y");
        operator.bytes(b"y bulkhead> \n");
        operator.line("y bulkhead> ", None);
        assert_eq!((typed(), operator.waits_for()), (1, ""));
        assert_eq!(operator.lines, [("", "x y x".to_owned()), ("second", "y bulkhead> ".to_owned())]);
    }
}
