//! Fuzzes targets for a while: what `cargo xtask fuzz` builds with coverage counters and starts.

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use fuzz::{
    TARGETS, Target, coverage,
    driver::{self, Failure, Limits},
};
use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

#[derive(Parser, Debug)]
#[command(about = "Fuzzes parts of Bulkhead")]
struct Arguments {
    /// Targets; all, if none is named
    targets: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    time: u64,
    /// Seed of the random numbers; another one each time, if none is given
    #[arg(long)]
    seed: Option<u64>,
    /// Directory for inputs that reach something, and for those that fail; they are the start of the next run
    #[arg(long)]
    corpus: Option<PathBuf>,
    /// Run the target with this input, and nothing else
    #[arg(long, value_name = "FILE")]
    reproduce: Option<PathBuf>,
    /// Print the names of the targets and stop
    #[arg(long)]
    list: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    ensure!(cfg!(panic = "unwind"), "a program that aborts cannot go on after a failure: build with --profile checked");
    if arguments.list {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        return Ok(ExitCode::SUCCESS);
    }
    let targets: Vec<&Target> = if arguments.targets.is_empty() {
        TARGETS.iter().collect()
    } else {
        let find = |name: &String| fuzz::find(name).with_context(|| format!("there is no target {name}: --list names them"));
        arguments.targets.iter().map(find).collect::<Result<_>>()?
    };
    if let Some(file) = &arguments.reproduce {
        let [target] = targets[..] else { bail!("--reproduce needs one target") };
        let input = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        return Ok(match driver::run(target, &input) {
            Ok(()) => {
                println!("{}: nothing wrong", target.name);
                ExitCode::SUCCESS
            }
            Err(message) => {
                println!("{}: {}", target.name, Failure { input, message });
                ExitCode::FAILURE
            }
        });
    }
    if !coverage::available() {
        println!("built without coverage counters: inputs are made blindly");
    }
    let mut failed = false;
    for target in targets {
        failed |= fuzz_one(target, &arguments)?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Returns whether it has failed.
fn fuzz_one(target: &Target, arguments: &Arguments) -> Result<bool> {
    let directory = arguments.corpus.as_ref().map(|corpus| corpus.join(target.name));
    let corpus = directory.as_deref().map(read_all).transpose()?.unwrap_or_default();
    let seed = arguments.seed.unwrap_or_else(random_seed);
    let start = Instant::now();
    let outcome = driver::fuzz(target, &corpus, seed, Limits { time: Duration::from_secs(arguments.time), runs: u64::MAX });
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{}: {} runs in {seconds:.0} s, seed {seed}, {} inputs kept, coverage {}",
        target.name,
        outcome.runs,
        outcome.corpus.len(),
        outcome.reached
    );
    if let Some(directory) = &directory {
        for input in &outcome.corpus {
            save(directory, "", input)?;
        }
    }
    let Some(failure) = outcome.failure else { return Ok(false) };
    println!("{}: FAILED: {failure}", target.name);
    if let Some(directory) = &directory {
        println!("kept as {}", save(directory, "failure-", &failure.input)?.display());
    }
    Ok(true)
}

fn random_seed() -> u64 {
    let mut hasher = DefaultHasher::new();
    (Instant::now(), std::process::id(), std::time::SystemTime::now()).hash(&mut hasher);
    hasher.finish() >> 32
}

fn read_all(directory: &Path) -> Result<Vec<Vec<u8>>> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut files: Vec<PathBuf> = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    files.iter().map(|file| fs::read(file).with_context(|| format!("cannot read {}", file.display()))).collect()
}

fn save(directory: &Path, kind: &str, input: &[u8]) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let file = directory.join(format!("{kind}{:016x}", hasher.finish()));
    fs::write(&file, input).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}
