//! Every target for a moment, with the same inputs each time. `cargo xtask fuzz` goes on for longer, and sees what inputs reach.

use fuzz::{
    TARGETS,
    driver::{Limits, fuzz},
};
use std::{env, time::Duration};

/// Runs for each target.
const RUNS: u64 = 5_000;
/// Longest time for each, in seconds: another may be set in the environment, and then counts alone.
const TIME: u64 = 10;

#[test]
fn no_target_fails() {
    let asked: Option<u64> = env::var("BULKHEAD_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let limits = Limits { time: Duration::from_secs(asked.unwrap_or(TIME)), runs: if asked.is_some() { u64::MAX } else { RUNS } };
    let mut failures = Vec::new();
    for target in TARGETS {
        let outcome = fuzz(target, &[], 1, limits);
        failures.extend(outcome.failure.map(|failure| format!("{}: {failure}", target.name)));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
