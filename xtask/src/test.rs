//! `cargo xtask test`: host unit tests, then guest tests in the emulators.

use std::{
    fmt,
    io::{BufRead, BufReader},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use runner::{
    image::Grub,
    list::Platform,
    machine::{Accel, Firmware},
    suite::{self, Assets, Plan},
    variants::Kernel,
};

use crate::{
    debian, fuzz,
    install::{self, On},
    progress::{Spinner, say},
    tools::{self, Consent},
    workspace::Workspace,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Only {
    /// Unit tests on this machine
    Host,
    /// Guest tests on AMD-V (QEMU and Bochs)
    Svm,
    /// Guest tests on VT-x (Bochs)
    Vmx,
}

#[derive(Args, Clone, Debug, Default)]
pub struct TestArguments {
    /// Only tests whose name contains this
    #[arg(long, value_name = "STRING", default_value = "")]
    filter: String,
    /// Only this kind of tests
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// Also those that take long, and are left out otherwise
    #[arg(long)]
    long: bool,
    /// Print the names of the emulator tests and stop
    #[arg(long)]
    list: bool,
}

/// How many tests passed and failed. Its text is the closing line.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

impl Tally {
    /// The exit status: also no test at all is a failure, of whoever asked.
    pub const fn status(self) -> u8 {
        if self.failed == 0 && self.passed > 0 { 0 } else { 1 }
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Where the property tests' inputs come from; unless it is set, from chance.
const PROPERTY_SEED: &str = "PROPTEST_RNG_SEED";
/// Machines that run at the same time.
const MACHINES: usize = 2;

pub fn run(workspace: &Workspace, arguments: &TestArguments, consent: Consent) -> Result<u8> {
    let tally = run_tests(workspace, arguments, consent)?;
    let Some(tally) = tally else { return Ok(0) };
    say(tally);
    Ok(tally.status())
}

/// `None` if only a list was asked for.
pub fn run_tests(workspace: &Workspace, arguments: &TestArguments, consent: Consent) -> Result<Option<Tally>> {
    let platforms: Vec<Platform> = Platform::ALL
        .into_iter()
        .filter(|p| match arguments.only {
            None => true,
            Some(Only::Host) => false,
            Some(Only::Svm) => p.label().starts_with("svm/"),
            Some(Only::Vmx) => p.label().starts_with("vmx/"),
        })
        .collect();
    let plan = Plan::new(&platforms, &arguments.filter, arguments.long);
    let installation = install::Plan::new(
        |on| match (arguments.only, on) {
            (None, _) => true,
            (Some(only), On::Host) => only == Only::Host,
            (Some(only), On::Qemu) => only == Only::Svm,
            (Some(only), On::Bochs) => only == Only::Vmx,
        },
        &arguments.filter,
    );
    if arguments.list {
        plan.names().iter().chain(&installation.names()).for_each(say);
        return Ok(None);
    }
    let mut tally = Tally::default();
    if matches!(arguments.only, None | Some(Only::Host)) {
        let mut ordinary = workspace.cargo();
        ordinary.args(["test", "--no-fail-fast", "--color=never"]);
        if !arguments.long && std::env::var_os(PROPERTY_SEED).is_none() {
            ordinary.env(PROPERTY_SEED, "1");
        }
        tally.add(host_tests(ordinary, "building and running the host tests", &arguments.filter)?);
        // Filters choose among the models, but nothing else is run with the model checker's atomics.
        if arguments.filter.is_empty() || arguments.filter.starts_with("model") {
            let filter = if arguments.filter.is_empty() { "model_" } else { &arguments.filter };
            tally.add(host_tests(models(workspace), "building and checking the models", filter)?);
        }
    }
    if !plan.is_empty() {
        tally.add(emulator_tests(workspace, &plan, consent)?);
    }
    if !installation.names().is_empty() {
        tally.add(installation_tests(workspace, &installation, consent)?);
    }
    Ok(Some(tally))
}

fn emulator_tests(workspace: &Workspace, plan: &Plan, consent: Consent) -> Result<Tally> {
    let specs = plan.specs();
    let any = |wanted: fn(Accel, Firmware) -> bool| specs.iter().any(|s| wanted(s.accel, s.firmware));
    let mut needed = vec![tools::IMAGE];
    if any(|accel, _| accel != Accel::Bochs) {
        needed.push(tools::QEMU);
    }
    if any(|accel, _| accel == Accel::Bochs) {
        needed.push(tools::BOCHS);
    }
    if any(|_, firmware| firmware == Firmware::Uefi) {
        needed.push(tools::UEFI);
    }
    tools::need(&needed, consent)?;
    let work = suite::work_folder(&workspace.cache)?;
    let linux = if plan.needs_linux() {
        Some((debian::kernel(&workspace.cache, consent)?, debian::initramfs(&workspace.cache, None, consent)?))
    } else {
        None
    };
    let mut others = Vec::new();
    if plan.needs(Kernel::Unpacked) {
        let initramfs = debian::initramfs(&workspace.cache, None, consent)?;
        others.push((Kernel::Unpacked, debian::unpacked_kernel(&workspace.cache, consent)?, initramfs));
    }
    if plan.needs(Kernel::Pae) {
        let (kernel, initramfs) = debian::pae(&workspace.cache, consent)?;
        others.push((Kernel::Pae, kernel, initramfs));
    }
    let memtest = if plan.needs_memtest() { debian::memtest(&workspace.cache, consent)? } else { Vec::new() };
    let assets = Assets { others, memtest, ..assets(workspace, plan.needs_guests(), linux, work.path())? };
    let mut tally = Tally::default();
    let all = plan.names().len();
    let spinner = Spinner::start(&format!("running {all} tests in emulators"));
    let mut failed = Vec::new();
    plan.run(&assets, MACHINES, |report| {
        let mut lines = vec![progress(&report.name, report.result.is_ok(), report.took)];
        match report.result {
            Ok(()) => tally.passed += 1,
            Err(failure) => {
                tally.failed += 1;
                lines.extend(failure.console.iter().map(|line| format!("    | {}", runner::lines::without_controls(line))));
                lines.extend(failure.reason.lines().map(|line| format!("    {line}")));
                failed.push(format!("{}: {}", report.name, failure.reason.lines().next().unwrap_or_default()));
            }
        }
        spinner.print(lines);
        spinner.set_text(format!("running {all} tests in emulators: {tally}"));
    });
    spinner.print(failed.iter().map(|line| format!("failed: {line}")));
    Ok(tally)
}

fn installation_tests(workspace: &Workspace, plan: &install::Plan, consent: Consent) -> Result<Tally> {
    let mut tally = Tally::default();
    let spinner = Spinner::start("running the installation's tests");
    plan.run(workspace, consent, MACHINES, |report| {
        let mut lines = vec![progress(&report.name, report.result.is_ok(), report.took)];
        match report.result {
            Ok(()) => tally.passed += 1,
            Err(error) => {
                tally.failed += 1;
                lines.extend(format!("{error:#}").lines().map(|line| format!("    {line}")));
            }
        }
        spinner.print(lines);
    })?;
    Ok(tally)
}

/// Builds what the emulator tests need.
pub fn assets(
    workspace: &Workspace,
    guests: bool,
    linux: Option<(std::path::PathBuf, Vec<u8>)>,
    work: &std::path::Path,
) -> Result<Assets> {
    Ok(Assets {
        hypervisor: workspace.hypervisor()?,
        guests: if guests { Some(workspace.test_guest()?) } else { None },
        linux,
        others: Vec::new(),
        memtest: Vec::new(),
        grub: Grub::prepare(&workspace.cache)?,
        work: work.to_owned(),
    })
}

fn progress(name: &str, passed: bool, took: Duration) -> String {
    format!("{:<4} {name} ({:.1} s)", if passed { "ok" } else { "FAIL" }, took.as_secs_f64())
}

/// The tests that loom runs: every order in which CPUs can hand over interrupts and vCPUs.
fn models(workspace: &Workspace) -> Command {
    let mut command = workspace.cargo();
    // Apart from the rest, whose flags are others.
    command.env("CARGO_TARGET_DIR", workspace.cache.join("model-build"));
    command.env("RUSTFLAGS", "--cfg loom").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.args(["test", "--no-fail-fast", "--color=never", "--lib", "--profile", fuzz::PROFILE]);
    command.args(["--package", "devices", "--package", "hv"]);
    command
}

/// Runs cargo's own tests and counts them.
fn host_tests(mut command: Command, what: &str, filter: &str) -> Result<Tally> {
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    command.args(["--", "--color=never"]);
    if !filter.is_empty() {
        command.arg(filter);
    }
    // One pipe for both, so that what cargo says and what the tests say stay in order.
    let mut child = command.stdout(writer.try_clone()?).stderr(writer).spawn().context("cannot run cargo")?;
    // It holds the pipe's other ends, which would keep it open.
    drop(command);
    let spinner = Spinner::start(what);
    let mut suites = Suites::default();
    let print = spinner.clone();
    let collector = thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            print.print(suites.line(&String::from_utf8_lossy(&line)));
        }
        suites
    });
    let status = child.wait()?;
    let mut suites = collector.join().map_err(|_| anyhow::anyhow!("the reader of cargo's output failed"))?;
    if !status.success() && suites.tally.failed == 0 {
        // A build failed, or a test program died.
        spinner.print(suites.output.iter().map(|line| format!("    {line}")));
        spinner.print([progress("host/cargo-test", false, suites.since.elapsed())]);
        suites.tally.failed = 1;
    }
    Ok(suites.tally)
}

/// Reads the output of `cargo test`.
struct Suites {
    tally: Tally,
    /// The crate under test.
    current: String,
    since: Instant,
    /// What was printed since the last result.
    output: Vec<String>,
}

impl Default for Suites {
    fn default() -> Self {
        Self { tally: Tally::default(), current: String::new(), since: Instant::now(), output: Vec::new() }
    }
}

impl Suites {
    /// Takes a line of the output; returns what there is to print.
    fn line(&mut self, line: &str) -> Vec<String> {
        let mut report = Vec::new();
        if let Some(name) = suite_name(line) {
            self.current = name;
            self.since = Instant::now();
            self.output.clear();
        } else if let Some(result) = suite_result(line) {
            self.tally.add(result);
            if result.passed + result.failed > 0 {
                let name = format!("host/{}: {result}", self.current);
                report.push(progress(&name, result.failed == 0, self.since.elapsed()));
            }
            if result.failed > 0 {
                report.extend(self.output.iter().filter(|l| !l.ends_with("... ok")).map(|l| format!("    {l}")));
            }
            self.output.clear();
        } else {
            self.output.push(line.to_owned());
        }
        report
    }
}

/// `     Running unittests src/lib.rs (target/debug/deps/hv-0123abcd)`, `   Doc-tests hv`
fn suite_name(line: &str) -> Option<String> {
    let line = line.trim();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{name} (documentation)"));
    }
    let (what, program) = line.strip_prefix("Running ")?.strip_suffix(')')?.rsplit_once(" (")?;
    let file = program.rsplit('/').next()?;
    let name = file.rsplit_once('-').map_or(file, |(name, _)| name);
    // Several test programs of one crate: tests/NAME.rs.
    Some(match what.strip_prefix("unittests ") {
        Some(_) => name.to_owned(),
        None => format!("{name} ({what})"),
    })
}

/// `test result: ok. 3 passed; 0 failed; ...`
fn suite_result(line: &str) -> Option<Tally> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut tally = Tally::default();
    for part in counts.split("; ") {
        match part.split_once(' ') {
            Some((number, "passed")) => tally.passed = number.parse().ok()?,
            Some((number, "failed")) => tally.failed = number.parse().ok()?,
            _ => {}
        }
    }
    Some(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_words_are_understood() {
        let mut suites = Suites::default();
        for line in [
            "   Compiling hv v0.1.0",
            "     Running unittests src/lib.rs (target/debug/deps/hv-0123abcd)",
            "running 3 tests",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "     Running tests/replay.rs (target/debug/deps/replay-0123abcd)",
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "   Doc-tests hv",
            "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            suites.line(line);
        }
        assert_eq!(suites.tally.to_string(), "7 passed, 1 failed");
        assert_eq!(suite_name("     Running unittests src/main.rs (t/debug/deps/x_y-0f)").unwrap(), "x_y");
        assert_eq!(suite_name("     Running tests/replay.rs (t/debug/deps/replay-0f)").unwrap(), "replay (tests/replay.rs)");
        assert_eq!(suite_name("Running late"), None);
    }

    #[test]
    fn nothing_tested_is_no_success() {
        for (passed, failed, status) in [(1, 0, 0), (1, 1, 1), (0, 0, 1)] {
            assert_eq!(Tally { passed, failed }.status(), status);
        }
    }
}
