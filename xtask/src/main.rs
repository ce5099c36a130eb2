//! `cargo xtask`: runs, tests, measures and checks Bulkhead.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod accel;
mod bench;
mod ci;
mod conformance;
mod debian;
mod fuzz;
mod install;
mod package;
mod progress;
mod report;
mod run;
mod scaling;
mod terminal;
mod test;
mod tidy;
mod tools;
mod trace;
mod verdict;
mod workspace;

use tools::Consent;
use workspace::Workspace;

#[derive(Parser, Debug)]
#[command(name = "cargo xtask", about = "Runs, tests, measures and checks Bulkhead", max_term_width = 110)]
struct Arguments {
    /// Install missing tools without asking
    #[arg(long, global = true)]
    yes: bool,
    /// A multiboot2 ELF file to boot, instead of building Bulkhead
    #[arg(long, value_name = "FILE", global = true)]
    hypervisor: Option<std::path::PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Boot Bulkhead with guests in an emulator; this terminal is the guest's serial console (Ctrl-] ends it)
    #[command(after_help = verdict::STATUS_HELP)]
    Run(run::RunArguments),
    /// Write an ISO that boots Bulkhead with guests
    Iso(run::IsoArguments),
    /// Make a Debian package, a tarball, and a bootable ISO
    Package(package::PackageArguments),
    /// Run host unit tests, then guest tests on AMD-V (QEMU, Bochs) and VT-x (Bochs)
    Test(test::TestArguments),
    /// Measure what VM exits cost, in host instructions
    Bench(bench::BenchArguments),
    /// Run parts of Bulkhead with made-up inputs, led by the coverage of their code
    Fuzz(fuzz::FuzzArguments),
    /// Check the repository's rules and count unsafe code
    Tidy,
    /// Check format, lints, rules and tests: everything that must hold before a change is taken
    Ci,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match dispatch(&arguments) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &Arguments) -> Result<u8> {
    let workspace = Workspace::find(arguments.hypervisor.clone())?;
    let consent = Consent::now(arguments.yes);
    match &arguments.command {
        Command::Run(run) => run::run(&workspace, run, consent),
        Command::Iso(iso) => run::iso(&workspace, iso, consent).map(|()| 0),
        Command::Package(package) => package::run(&workspace, package, consent).map(|()| 0),
        Command::Test(test) => test::run(&workspace, test, consent),
        Command::Bench(bench) => bench::run(&workspace, bench, consent).map(|()| 0),
        Command::Fuzz(fuzz) => fuzz::run(&workspace, fuzz),
        Command::Tidy => tidy::run(&workspace).map(|()| 0),
        Command::Ci => ci::run(&workspace, consent),
    }
}
