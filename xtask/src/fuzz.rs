//! `cargo xtask fuzz`: the targets of `tests/fuzz`, built with coverage counters.

use anyhow::{Context, Result};
use clap::Args;

use crate::workspace::Workspace;

/// The profile of what runs the same code many times over.
pub const PROFILE: &str = "checked";

#[derive(Args, Clone, Debug)]
pub struct FuzzArguments {
    /// Targets (--list names them); all, if none is named
    targets: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    time: u64,
    /// Seed of the random numbers; another one each time, if none is given
    #[arg(long)]
    seed: Option<u64>,
    /// Run the target with this input, and nothing else
    #[arg(long, value_name = "FILE")]
    reproduce: Option<std::path::PathBuf>,
    /// Print the names of the targets and stop
    #[arg(long)]
    list: bool,
}

/// Returns the exit status: 1 if a target has failed.
pub fn run(workspace: &Workspace, arguments: &FuzzArguments) -> Result<u8> {
    let mut command = workspace.cargo();
    // Apart from the rest, whose flags are others. What an input reaches is in counters, which no file is wanted for.
    command.env("CARGO_TARGET_DIR", workspace.cache.join("fuzz-build"));
    command.env("RUSTFLAGS", "-C instrument-coverage --cfg fuzz_coverage").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.env("LLVM_PROFILE_FILE", "/dev/null");
    command.args(["run", "--quiet", "--profile", PROFILE, "--package", "fuzz", "--"]).args(&arguments.targets);
    command.arg("--time").arg(arguments.time.to_string()).arg("--corpus").arg(workspace.cache.join("fuzz"));
    if let Some(seed) = arguments.seed {
        command.arg("--seed").arg(seed.to_string());
    }
    if let Some(file) = &arguments.reproduce {
        command.arg("--reproduce").arg(std::path::absolute(file)?);
    }
    if arguments.list {
        command.arg("--list");
    }
    let status = command.status().context("cannot run cargo")?;
    Ok(if status.success() { 0 } else { 1 })
}
