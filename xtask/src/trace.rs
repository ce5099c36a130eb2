//! `cargo xtask bench --trace NAME`: the instructions of one operation, with the functions and lines that they come from.

use std::{
    collections::HashMap,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use runner::{
    image::Grub,
    machine::Vendor,
    suite::{self, Assets},
    trace::{self, Step},
};

use crate::{
    progress::{Spinner, say},
    tools::{self, Consent},
    workspace::Workspace,
};

/// What a function is called that is not known.
const UNKNOWN: &str = "??";
/// The guest's instructions have no names.
const GUEST: &str = "the guest";

pub fn run(workspace: &Workspace, name: &str, vendors: &[Vendor], consent: Consent) -> Result<()> {
    tools::need(&[tools::IMAGE, tools::BOCHS, tools::TRACE], consent)?;
    let work = suite::work_folder(&workspace.cache)?;
    let assets = Assets {
        hypervisor: workspace.hypervisor_with_lines()?,
        guests: Some(workspace.test_guest()?),
        linux: None,
        others: Vec::new(),
        memtest: Vec::new(),
        grub: Grub::prepare(&workspace.cache)?,
        work: work.path().to_owned(),
    };
    for vendor in vendors {
        let spinner = Spinner::start(&format!("tracing {name} with {vendor} on Bochs"));
        let steps = trace::run(&assets, *vendor, name)?;
        drop(spinner);
        let places = places(&assets.hypervisor, &workspace.root, &steps)?;
        let guest = steps.iter().filter(|s| !s.is_host()).count();
        let host = steps.len() - guest;
        // Bochs shows none of those with AMD-V.
        let guest = if guest == 0 { String::new() } else { format!(", {guest} of the guest") };
        let accesses = if *vendor == Vendor::Intel { format!(" ({})", vmcs_accesses(&steps)) } else { String::new() };
        say(format_args!("{name} with {vendor} on Bochs: {host} instructions of Bulkhead{accesses}{guest}\n"));
        say(summary(&steps, &places));
        say(listing(&steps, &places));
    }
    Ok(())
}

/// How often the VMCS is read and written: exits by themselves, under another hypervisor without shadow VMCSs.
fn vmcs_accesses(steps: &[Step]) -> String {
    let count = |name: &str| steps.iter().filter(|s| s.is_host() && s.text.starts_with(name)).count();
    format!("{} VMREAD, {} VMWRITE, {} entries", count("vmread"), count("vmwrite"), count("vmresume") + count("vmlaunch"))
}

/// Where an instruction comes from: the function that it was inlined into last, up to the one that is called.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Place {
    frames: Vec<Frame>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Frame {
    function: String,
    /// File and line.
    line: String,
}

impl Place {
    /// The function that is called.
    fn outer(&self) -> &str {
        self.frames.last().map_or(GUEST, |f| &f.function)
    }

    /// The function in whose source the instruction stands.
    fn inner(&self) -> &str {
        self.frames.first().map_or(GUEST, |f| &f.function)
    }

    fn line(&self) -> &str {
        self.frames.first().map_or("", |f| &f.line)
    }
}

/// Asks binutils for the places of the hypervisor's instructions.
fn places(elf: &Path, root: &Path, steps: &[Step]) -> Result<HashMap<u64, Place>> {
    let mut addresses: Vec<u64> = steps.iter().filter(|s| s.is_host()).map(|s| s.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let mut child = Command::new("addr2line")
        .args(["--addresses", "--inlines", "--functions", "--demangle", "--exe"])
        .arg(elf)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run addr2line")?;
    let input: String = addresses.iter().map(|a| format!("{a:#x}\n")).collect();
    let mut stdin = child.stdin.take().context("addr2line takes no input")?;
    // A thread of its own, because it answers while it reads.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    let _ = writer.join();
    ensure!(output.status.success(), "addr2line failed: {}", output.status);
    Ok(parse(&String::from_utf8_lossy(&output.stdout), root))
}

/// An address in a line of its own, then two lines for each function: its name, and file and line.
fn parse(text: &str, root: &Path) -> HashMap<u64, Place> {
    let mut places: HashMap<u64, Place> = HashMap::new();
    let mut lines = text.lines();
    let mut current = 0;
    while let Some(line) = lines.next() {
        if let Some(address) = line.strip_prefix("0x").and_then(|a| u64::from_str_radix(a, 16).ok()) {
            current = address;
            continue;
        }
        let line_number = lines.next().unwrap_or(UNKNOWN);
        let frame = Frame { function: short(line).to_owned(), line: relative(line_number, root) };
        places.entry(current).or_default().frames.push(frame);
    }
    places
}

/// Without the hash that ends the compiler's names, and without what a generic function stands for here.
fn short(function: &str) -> &str {
    let hash = |tail: &str| tail.len() == 16 && tail.bytes().all(|b| b.is_ascii_hexdigit());
    if let Some((name, tail)) = function.rsplit_once("::h")
        && hash(tail)
    {
        return name;
    }
    match function.split_once('<') {
        Some((name, _)) if function.ends_with('>') && !name.is_empty() && !name.ends_with(':') => name,
        _ => function,
    }
}

/// In the workspace, or below the standard library's sources.
fn relative(line: &str, root: &Path) -> String {
    let line = line.split(" (discriminator").next().unwrap_or(line);
    let path = PathBuf::from(line);
    match path.strip_prefix(root) {
        Ok(inside) => inside.display().to_string(),
        Err(_) => line.rsplit_once("/library/").map_or(line, |(_, inside)| inside).to_owned(),
    }
}

/// Numbers of instructions: of each function that is called, and below it of those that were inlined into it, the most first.
fn summary(steps: &[Step], places: &HashMap<u64, Place>) -> String {
    let nowhere = Place::default();
    let mut functions: Vec<(&str, Vec<(&str, usize)>)> = Vec::new();
    for step in steps {
        let place = places.get(&step.address).unwrap_or(&nowhere);
        let at = functions.iter().position(|(name, _)| *name == place.outer()).unwrap_or_else(|| {
            functions.push((place.outer(), Vec::new()));
            functions.len() - 1
        });
        let inlined = &mut functions[at].1;
        match inlined.iter_mut().find(|(name, _)| *name == place.inner()) {
            Some((_, count)) => *count += 1,
            None => inlined.push((place.inner(), 1)),
        }
    }
    let total = |inlined: &[(&str, usize)]| inlined.iter().map(|(_, count)| count).sum::<usize>();
    functions.sort_by_key(|(_, inlined)| std::cmp::Reverse(total(inlined)));
    let mut text = String::new();
    for (name, inlined) in &mut functions {
        text += &format!("{:>6}  {name}\n", total(inlined));
        inlined.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        if inlined.len() > 1 {
            text.extend(inlined.iter().map(|(name, count)| format!("{count:>12}  {name}\n")));
        }
    }
    text
}

/// Every instruction, below the function that is called and the line of the source that it comes from.
fn listing(steps: &[Step], places: &HashMap<u64, Place>) -> String {
    let nowhere = Place::default();
    let mut text = String::new();
    let mut last: Option<&Place> = None;
    for step in steps {
        let place = places.get(&step.address).unwrap_or(&nowhere);
        let called = last.is_none_or(|l| l.outer() != place.outer());
        if called {
            text += &format!("{}\n", place.outer());
        }
        if !place.frames.is_empty() && (called || last.is_some_and(|l| (l.line(), l.inner()) != (place.line(), place.inner()))) {
            text += &format!("  {}: {}\n", place.line(), place.inner());
        }
        last = Some(place);
        text += &format!("    {:016x}  {}\n", step.address, step.text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "\
0xffffffff80200000
leaf<arch::vmx::Vmx>
/w/arch/src/vmx/a.rs:7
hv::run::h0123456789abcdef
/w/hv/src/run.rs:9 (discriminator 3)
0xffffffff80200004
hv::run::h0123456789abcdef
/rustc/abc/library/core/src/x.rs:1
";

    fn step(address: u64) -> Step {
        Step { address, text: format!("i{:x}", address & 0xff) }
    }

    #[test]
    fn places_are_read_with_what_was_inlined() {
        let places = parse(ANSWER, Path::new("/w"));
        let place = &places[&0xffff_ffff_8020_0000];
        assert_eq!([place.inner(), place.line(), place.outer()], ["leaf", "arch/src/vmx/a.rs:7", "hv::run"]);
        assert_eq!(place.frames[1].line, "hv/src/run.rs:9");
        assert_eq!(places[&0xffff_ffff_8020_0004].line(), "core/src/x.rs:1");
    }

    #[test]
    fn accesses_to_the_vmcs_are_counted_in_the_host() {
        let steps =
            [(0xffff_ffff_8020_0000, "vmread rax, rbx"), (0x1000, "vmread rax, rbx"), (0xffff_ffff_8020_0004, "vmresume")];
        let steps = steps.map(|(address, text)| Step { address, text: text.into() });
        assert_eq!(vmcs_accesses(&steps), "1 VMREAD, 0 VMWRITE, 1 entries");
    }

    #[test]
    fn each_instruction_is_counted_once_and_listed_in_order() {
        let places = parse(ANSWER, Path::new("/w"));
        let steps = [0x1000, 0xffff_ffff_8020_0000, 0xffff_ffff_8020_0000, 0xffff_ffff_8020_0004].map(step);
        let summary = summary(&steps, &places);
        let lines: Vec<_> = summary.lines().map(str::trim).collect();
        assert_eq!(lines, ["3  hv::run", "2  leaf", "1  hv::run", "1  the guest"]);
        let listing = listing(&steps, &places);
        let lines: Vec<_> = listing.lines().map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "the guest",
                "0000000000001000  i0",
                "hv::run",
                "arch/src/vmx/a.rs:7: leaf",
                "ffffffff80200000  i0",
                "ffffffff80200000  i0",
                "core/src/x.rs:1: hv::run",
                "ffffffff80200004  i4"
            ]
        );
    }
}
