//! `cargo xtask ci`: everything that must hold before a change is taken.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{
    progress::say,
    test::{self, TestArguments},
    tidy,
    tools::{self, Consent},
    workspace::{BARE_PACKAGES, BARE_TARGET, Workspace},
};

pub fn run(workspace: &Workspace, consent: Consent) -> Result<u8> {
    tools::need_target(BARE_TARGET)?;
    let mut failed = Vec::new();
    let mut step = |name: &'static str, result: Result<()>| {
        say(format_args!("{:<4} {name}", if result.is_ok() { "ok" } else { "FAIL" }));
        if let Err(error) = result {
            say(format_args!("    {error:#}"));
            failed.push(name);
        }
    };
    step("fmt", cargo(workspace.cargo().args(["fmt", "--all", "--check"])));
    step("clippy-host", cargo(workspace.cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"])));
    let mut bare = workspace.cargo_bare();
    bare.args(["clippy", "--release", "--target", BARE_TARGET]);
    for package in BARE_PACKAGES {
        bare.args(["--package", package]);
    }
    step("clippy-bare", cargo(bare.args(["--", "-D", "warnings"])));
    step("tidy", tidy::run(workspace));
    let tally = test::run_tests(workspace, &TestArguments::default(), consent)?.context("the tests were only listed")?;
    if !failed.is_empty() {
        say(format_args!("failed: {}", failed.join(", ")));
    }
    let all = test::Tally { passed: tally.passed, failed: tally.failed + failed.len() };
    say(all);
    Ok(all.status())
}

fn cargo(command: &mut Command) -> Result<()> {
    let status = command.status().context("cannot run cargo")?;
    ensure!(status.success(), "cargo {} failed", command.get_args().next().unwrap_or_default().display());
    Ok(())
}
