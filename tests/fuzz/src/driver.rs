//! Makes inputs, runs a target with them, and tells what came of it.

use crate::{
    Random, Source, Target,
    coverage::{self, Map},
    mutate::mutate,
};
use std::{
    cell::RefCell,
    collections::VecDeque,
    fmt,
    panic::{self, AssertUnwindSafe},
    sync::{Mutex, Once, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

/// A target that takes so long for one input hangs.
const HANG: Duration = Duration::from_secs(20);
/// Inputs that are kept without coverage to judge them.
const BLIND_CORPUS: usize = 64;
/// Runs that go into making a failing input smaller.
const SHRINK: usize = 20_000;

/// How long to go on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub time: Duration,
    pub runs: u64,
}

/// An input that makes the target panic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// As small as it could be made.
    pub input: Vec<u8>,
    /// What the panic said, and where.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\ninput: \"{}\"", self.message, self.input.escape_ascii())
    }
}

/// What came of fuzzing.
#[derive(Debug)]
pub struct Outcome {
    pub runs: u64,
    /// Inputs that reach something that the others don't, if there is coverage.
    pub corpus: Vec<Vec<u8>>,
    /// How much was reached, in the coverage's own measure; 0 without.
    pub reached: usize,
    pub failure: Option<Failure>,
}

thread_local! {
    /// What the last panic in a target said; `None` outside of targets.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps panics of targets quiet: they are expected when a failing input is made smaller. Others are told as ever.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let noted = PANIC.with_borrow_mut(|slot| match slot {
                Some(text) => {
                    *text = info.to_string();
                    true
                }
                None => false,
            });
            if !noted {
                others(info);
            }
        }));
    });
}

/// Runs a target with one input.
///
/// # Errors
/// What the panic said.
pub fn run(target: &Target, input: &[u8]) -> Result<(), String> {
    quiet_panics();
    PANIC.set(Some(String::new()));
    let result = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(&mut Source::new(input))));
    let message = PANIC.take().unwrap_or_default();
    result.map_err(|_| message)
}

/// Fuzzes a target, starting from its seeds and from `corpus`.
pub fn fuzz(target: &Target, corpus: &[Vec<u8>], seed: u64, limits: Limits) -> Outcome {
    let watch = Watch::start(target.name);
    let mut session =
        Session { target, random: Random::new(seed), map: Map::default(), corpus: VecDeque::new(), runs: 0, watch: &watch };
    let end = Instant::now() + limits.time;
    let mut failure = None;
    let given = target.seeds.iter().map(|seed| seed.to_vec()).chain(corpus.iter().cloned());
    for input in given.chain([Vec::new()]) {
        failure = failure.or_else(|| session.give(input, true));
    }
    while failure.is_none() && session.runs < limits.runs && Instant::now() < end {
        let input = session.make();
        failure = session.give(input, false);
    }
    let failure = failure.map(|failure| session.shrink(failure));
    Outcome { runs: session.runs, corpus: session.corpus.into(), reached: session.map.seen(), failure }
}

struct Session<'a> {
    target: &'a Target,
    random: Random,
    map: Map,
    corpus: VecDeque<Vec<u8>>,
    runs: u64,
    watch: &'a Watch,
}

impl Session<'_> {
    fn make(&mut self) -> Vec<u8> {
        let count = self.corpus.len();
        let mut pick = || {
            // Half of the time one of the last few, which have reached something new.
            let window = if self.random.below(2) == 0 { count.min(16) } else { count };
            self.corpus.get(count - 1 - self.random.below(window)).cloned().unwrap_or_default()
        };
        let (mut input, other) = if count == 0 { Default::default() } else { (pick(), pick()) };
        mutate(&mut self.random, &mut input, &other, self.target.words);
        input
    }

    /// Runs an input, and keeps it if it is worth it.
    fn give(&mut self, input: Vec<u8>, given: bool) -> Option<Failure> {
        self.runs += 1;
        self.watch.set(&input);
        coverage::start();
        let result = run(self.target, &input);
        let new = self.map.add_all();
        if let Err(message) = result {
            return Some(Failure { input, message });
        }
        if new > 0 || given {
            self.corpus.push_back(input);
        } else if !coverage::available() && self.random.below(8) == 0 {
            // Blindly: a walk away from the seeds, which stay.
            let fixed = self.target.seeds.len();
            if self.corpus.len() >= fixed + BLIND_CORPUS {
                self.corpus.remove(fixed + self.random.below(BLIND_CORPUS));
            }
            self.corpus.push_back(input);
        }
        None
    }

    /// Takes away and simplifies what can be, as long as the target still panics at the same place.
    fn shrink(&mut self, mut failure: Failure) -> Failure {
        let place = |message: &str| message.lines().next().unwrap_or_default().to_owned();
        let wanted = place(&failure.message);
        let mut left = SHRINK;
        let mut size = failure.input.len().next_power_of_two();
        while size > 0 && left > 0 {
            let mut at = 0;
            let mut changed = false;
            while at < failure.input.len() && left > 0 {
                let end = (at + size).min(failure.input.len());
                let mut shorter = failure.input.clone();
                shorter.drain(at..end);
                let mut plainer = failure.input.clone();
                plainer[at..end].fill(b'0');
                let mut better = None;
                for input in [shorter, plainer].into_iter().filter(|input| *input != failure.input) {
                    left = left.saturating_sub(1);
                    self.watch.set(&input);
                    if let Err(message) = run(self.target, &input)
                        && place(&message) == wanted
                    {
                        better = Some(Failure { input, message });
                        break;
                    }
                }
                match better {
                    Some(better) => {
                        let same = better.input.len() == failure.input.len();
                        failure = better;
                        changed = true;
                        at += if same { size } else { 0 };
                    }
                    None => at += size,
                }
            }
            if !changed {
                size /= 2;
            }
        }
        failure
    }
}

/// Ends the program if a target does not come back.
struct Watch {
    now: std::sync::Arc<Mutex<(u64, Vec<u8>)>>,
    /// Dropped at the end.
    _end: mpsc::Sender<()>,
}

impl Watch {
    fn start(name: &'static str) -> Self {
        let now = std::sync::Arc::new(Mutex::new((0, Vec::new())));
        let (sender, end) = mpsc::channel::<()>();
        let seen = now.clone();
        thread::spawn(move || {
            let mut last = 0;
            while end.recv_timeout(HANG) == Err(mpsc::RecvTimeoutError::Timeout) {
                let now = seen.lock().unwrap_or_else(PoisonError::into_inner);
                if now.0 == last {
                    eprintln!("{name} hangs with the input \"{}\"", now.1.escape_ascii());
                    std::process::abort();
                }
                last = now.0;
            }
        });
        Self { now, _end: sender }
    }

    fn set(&self, input: &[u8]) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.0 += 1;
        now.1.clear();
        now.1.extend_from_slice(input);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(runs: u64) -> Limits {
        Limits { time: Duration::from_secs(60), runs }
    }

    /// Fails after a word and a number, with anything around them.
    const FAULTY: Target = Target {
        name: "faulty",
        run: |source| {
            let bytes = source.rest();
            let at = bytes.windows(4).position(|window| window == b"pin ");
            assert!(at.is_none_or(|at| bytes.get(at + 4) != Some(&b'7')), "seven");
        },
        seeds: &[b"list all", b"pause"],
        words: &[b"pin ", b"web"],
    };

    const SOUND: Target = Target { name: "sound", run: |source| assert!(source.rest().len() < usize::MAX), ..FAULTY };

    #[test]
    fn a_fault_is_found_and_its_input_made_small() {
        for seed in 1..6 {
            let failure = fuzz(&FAULTY, &[], seed, limits(500_000)).failure.expect("found");
            assert_eq!(failure.input, b"pin 7", "{failure}");
            assert!(failure.message.contains("seven") && failure.message.contains("driver.rs"), "{failure}");
        }
    }

    #[test]
    fn what_is_sound_is_run_as_often_as_asked() {
        let outcome = fuzz(&SOUND, &[], 1, limits(1000));
        assert_eq!((outcome.runs, outcome.failure), (1000, None));
    }

    #[test]
    fn one_seed_means_the_same_inputs() {
        let sum = |seed| fuzz(&FAULTY, &[], seed, limits(u64::MAX)).runs;
        assert_eq!(sum(3), sum(3));
        assert_ne!(sum(3), sum(4));
    }

    #[test]
    fn a_failing_corpus_fails_at_once() {
        assert!(fuzz(&FAULTY, &[b"pin 7".to_vec()], 1, limits(0)).failure.is_some());
    }
}
