//! Talks with a machine on its serial line, as an operator would: waits for words, types others.

use std::{
    io::{Read, Write},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{lines::without_controls, machine::Machine};

/// A conversation with a machine, which ends with it.
pub struct Dialogue {
    machine: Machine,
    input: Box<dyn Write + Send>,
    output: Receiver<Vec<u8>>,
    /// All that came, without terminal controls.
    transcript: String,
    /// How much of it has been looked at.
    seen: usize,
    /// The start of a control sequence whose end has not come.
    raw: Vec<u8>,
}

impl Dialogue {
    pub fn new(mut machine: Machine) -> Result<Self> {
        let input = Box::new(machine.take_input().context("the machine's input is taken")?);
        let mut reader = machine.take_output().context("the machine's output is taken")?;
        let (sender, output) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { machine, input, output, transcript: String::new(), seen: 0, raw: Vec::new() })
    }

    /// Waits for one of `words`; returns which. What comes after it is for the next call.
    pub fn wait_any(&mut self, words: &[&str], limit: Duration) -> Result<usize> {
        let deadline = Instant::now() + limit;
        loop {
            let text = &self.transcript[self.seen..];
            let first = words.iter().enumerate().filter_map(|(n, w)| text.find(w).map(|at| (at + w.len(), n))).min();
            if let Some((end, n)) = first {
                self.seen += end;
                return Ok(n);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left.min(Duration::from_millis(200))) {
                Ok(bytes) => self.take(&bytes),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => bail!("{words:?} did not come within {} s", limit.as_secs()),
                Err(RecvTimeoutError::Timeout) => {
                    self.machine.try_wait();
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the machine ended before {words:?} came\n{}", self.machine.messages());
                }
            }
        }
    }

    pub fn wait(&mut self, word: &str, limit: Duration) -> Result<()> {
        self.wait_any(&[word], limit).map(drop)
    }

    /// Waits for the machine to end by itself.
    pub fn wait_end(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left.min(Duration::from_millis(200))) {
                Ok(bytes) => self.take(&bytes),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => bail!("the machine did not end within {} s", limit.as_secs()),
                Err(RecvTimeoutError::Timeout) => {
                    self.machine.try_wait();
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    pub fn send(&mut self, text: &str) -> Result<()> {
        self.input.write_all(text.as_bytes()).and_then(|()| self.input.flush()).context("the machine takes no input")
    }

    /// Where the conversation is now; for [`Dialogue::since`].
    #[must_use]
    pub const fn here(&self) -> usize {
        self.seen
    }

    /// What was said from `place` up to what was waited for last.
    #[must_use]
    pub fn since(&self, place: usize) -> &str {
        &self.transcript[place..self.seen]
    }

    #[must_use]
    pub fn transcript(&self) -> &str {
        &self.transcript
    }

    fn take(&mut self, bytes: &[u8]) {
        self.raw.extend_from_slice(bytes);
        // Up to the last escape sequence or character that may be incomplete.
        let escape = self.raw.iter().rposition(|b| *b == 0x1b).filter(|at| self.raw.len() - at < 16);
        let whole = escape.filter(|&at| !self.raw[at + 1..].iter().any(u8::is_ascii_alphabetic)).unwrap_or(self.raw.len());
        let valid = match std::str::from_utf8(&self.raw[..whole]) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => whole,
        };
        let text: Vec<u8> = self.raw.drain(..valid).collect();
        // Lines stay lines; the rest of the terminal's language goes.
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        for (n, line) in text.split('\n').enumerate() {
            if n > 0 {
                self.transcript.push('\n');
            }
            self.transcript.push_str(&without_controls(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn dialogue(script: &str) -> Dialogue {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        Dialogue::new(Machine::from_program(shell).unwrap()).unwrap()
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn questions_and_answers() {
        let mut d = dialogue("printf 'na\\033[1mme? '; read n; echo hello $n; echo hello again");
        d.wait("name? ", LONG).unwrap();
        let place = d.here();
        d.send("x\n").unwrap();
        assert_eq!(d.wait_any(&["nothing", "hello x"], LONG).unwrap(), 1);
        assert_eq!(d.since(place), "hello x");
        d.wait("hello", LONG).unwrap();
        let error = d.wait("never", LONG).unwrap_err().to_string();
        assert!(error.contains("ended before"), "{error}");
        assert!(d.transcript().ends_with("hello again\n"));
    }

    #[test]
    fn the_end() {
        let mut d = dialogue("echo last words");
        d.wait_end(LONG).unwrap();
        assert_eq!(d.transcript(), "last words\n");
        assert!(dialogue("sleep 20").wait_end(Duration::from_millis(50)).is_err());
    }

    #[test]
    fn patience_ends() {
        let mut d = dialogue("sleep 20");
        let error = d.wait("never", Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.contains("did not come"), "{error}");
    }
}
