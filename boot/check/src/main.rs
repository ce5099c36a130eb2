//! `bulkhead-check`: says, under the Linux that is installed now, whether this machine can run Bulkhead and what would start.
//!
//! Nothing here decides anything: the hypervisor's own code does, on what this program finds out for it (the CPU's registers, the files that GRUB
//! would load).
#![forbid(unsafe_code)]

mod arguments;
mod firmware;
mod guests;
mod machine;
mod report;

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use arguments::{Arguments, Mode};
use report::{Mark, Report};

/// The exit statuses, which `--help` and the manual list.
mod status {
    pub const GOOD: u8 = 0;
    pub const MACHINE: u8 = 1;
    pub const GUEST: u8 = 2;
    pub const UNSURE: u8 = 3;
    pub const USAGE: u8 = 64;
}

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(wrong) => {
            eprintln!("bulkhead-check: {wrong}\nbulkhead-check --help says what there is.");
            return ExitCode::from(status::USAGE);
        }
    };
    let mut out = String::new();
    let status = run(&arguments, &mut out);
    // Whoever closes the pipe knows enough.
    let _ = io::stdout().lock().write_all(out.as_bytes());
    ExitCode::from(status)
}

fn run(arguments: &Arguments, out: &mut String) -> u8 {
    match &arguments.mode {
        Mode::Help => {
            out.push_str(arguments::HELP);
            status::GOOD
        }
        Mode::Version => {
            out.push_str(concat!("bulkhead-check ", env!("CARGO_PKG_VERSION"), "\n"));
            status::GOOD
        }
        Mode::Modules(files) => modules(files, out),
        Mode::Options(options) => check_options(options),
        Mode::Check { machine, guests } => {
            let mut report = Report::default();
            let host = machine::Host::of_this_machine();
            if *machine {
                report.section("Machine");
                machine::check(&host, &firmware::Firmware::read(Path::new("/")), &mut report);
            }
            if *guests {
                guests::check(&arguments.configs, &arguments.folder, &host.limits(), &mut report);
            }
            out.push_str(&report.to_string());
            verdict(&report)
        }
    }
}

/// What matters most: a machine that cannot, then guests that would be refused, then what could not be looked at.
fn verdict(report: &Report) -> u8 {
    if report.count(Mark::MachineFails) > 0 {
        status::MACHINE
    } else if report.count(Mark::GuestFails) > 0 {
        status::GUEST
    } else if report.count(Mark::Unknown) > 0 {
        status::UNSURE
    } else {
        status::GOOD
    }
}

/// For the script that writes the boot menu: what to load for these configurations, a line each; what is wrong goes to stderr.
fn modules(files: &[std::path::PathBuf], out: &mut String) -> u8 {
    let (list, errors) = guests::modules(files);
    for module in &list {
        out.push_str(&format!("{}\t{}\t{}\n", module.kind, module.name, module.path.display()));
    }
    for error in &errors {
        eprintln!("{error}");
    }
    if errors.is_empty() { status::GOOD } else { status::GUEST }
}

/// Says what is wrong with a hypervisor command line.
fn check_options(options: &str) -> u8 {
    // The boot binary's own option, which it takes off the line before the others are read.
    let crash = |word: &&str| !matches!(*word, "crash=panic" | "crash=pf" | "crash=df" | "crash=guard");
    let line: Vec<&str> = options.split_ascii_whitespace().filter(crash).collect();
    let (_, problems) = hv::options::Options::parse(&line.join(" "));
    for problem in &problems {
        eprintln!("{problem}");
    }
    if problems.is_empty() { status::GOOD } else { status::GUEST }
}
