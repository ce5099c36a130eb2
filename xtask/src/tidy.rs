//! `cargo xtask tidy`: the repository's rules, as code.
//!
//! Rust's own lints check what they can see; this checks layers, lengths, words, and that every `unsafe` is explained, and counts them.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{conformance, progress::say, workspace::Workspace};

/// A rule that a place in the repository breaks.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Finding {
    file: String,
    /// Counted from 1; 0 for the whole file.
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.what),
            line => write!(f, "{}:{line}: {}", self.file, self.what),
        }
    }
}

/// Crates that hold no unsafe code, and say so to the compiler.
const SAFE_CRATES: &[&str] = &["x86defs", "emul", "devices", "hv", "bulkhead-check"];

/// Which crates of the workspace a crate may depend on (also indirectly it then has no others). Those not listed may use any.
const LAYERS: &[(&str, &[&str])] = &[
    ("x86defs", &[]),
    ("emul", &["x86defs"]),
    ("devices", &["x86defs"]),
    ("hv", &["x86defs", "devices", "emul"]),
    ("arch", &["x86defs"]),
    ("guests", &["x86defs"]),
    ("runner", &[]),
    ("bulkhead-check", &["x86defs", "arch", "hv"]),
];

/// A source file of more lines is to be split.
const LONGEST_FILE: usize = 800;

/// What must not be written, whole words, with the reason. In two parts, so that this file may be checked, too.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("/wo", "rk/", "a path of some build machine"),
    ("/ro", "ot/.", "a path of some build machine"),
    ("/home", "/runner", "a path of some build machine"),
    ("/tmp/tar", "get", "a path of some build machine"),
    ("artif", "actory", "a registry of some build machine"),
    ("FIX", "ME", "unfinished work belongs into an issue"),
    ("XX", "X ", "unfinished work belongs into an issue"),
    ("TO", "DO", "unfinished work belongs into an issue"),
];

/// The hosts that texts may link to.
const HOSTS: &[&str] = &[
    "www.amd.com",
    "docs.amd.com",
    "www.intel.com",
    "cdrdv2.intel.com",
    "github.com",
    "docs.rs",
    // The name of SVG.
    "www.w3.org",
    "crates.io",
    "doc.rust-lang.org",
    "www.rust-lang.org",
    "docs.kernel.org",
    "www.kernel.org",
    "kernel.org",
    "xenbits.xen.org",
    "wiki.xenproject.org",
    "www.gnu.org",
    "uefi.org",
    "bochs.sourceforge.io",
    "www.qemu.org",
    "www.debian.org",
    "packages.debian.org",
    "www.apache.org",
    "opensource.org",
    "toml.io",
    "semver.org",
    "keepachangelog.com",
    "rustup.rs",
    "sh.rustup.rs",
];

pub fn run(workspace: &Workspace) -> Result<()> {
    let mut findings = Vec::new();
    let files = files(&workspace.root)?;
    let packages = packages(workspace)?;
    let mut counts: BTreeMap<String, usize> = packages.iter().map(|p| (p.name.clone(), 0)).collect();
    let read = |file: &String| Some((file.clone(), fs::read_to_string(workspace.root.join(file)).ok()?));
    let sources: Vec<(String, String)> = files.iter().filter_map(read).collect();
    for (file, text) in &sources {
        check_text(file, text, &mut findings);
        if !file.ends_with(".rs") {
            continue;
        }
        check_rust(file, text, &mut findings);
        if let Some(package) = owner(&packages, file) {
            let unsafes = unsafe_lines(text);
            let own = file.starts_with(&format!("{}src/", package.folder));
            // Their tests may compare them with the real CPU.
            if own
                && SAFE_CRATES.contains(&package.name.as_str())
                && let Some(line) = unsafes.first()
            {
                findings.push(Finding {
                    file: file.clone(),
                    line: *line,
                    what: format!("{} is free of unsafe code", package.name),
                });
            }
            *counts.entry(package.name.clone()).or_default() += unsafes.len();
        }
    }
    for package in &packages {
        check_package(workspace, package, &mut findings)?;
    }
    check_conformance(&sources, &mut findings);
    say("unsafe blocks, functions and implementations:");
    for (package, count) in counts {
        say(format_args!("{count:>6} {package}"));
    }
    if findings.is_empty() {
        return Ok(());
    }
    let mut report = String::new();
    for finding in &findings {
        writeln!(report, "{finding}")?;
    }
    bail!("{} findings:\n{}", findings.len(), report.trim_end())
}

/// The files that git has or would add, relative to the root.
fn files(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .output()
        .context("cannot run git")?;
    ensure!(output.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    let list = String::from_utf8(output.stdout)?;
    Ok(list.split('\0').filter(|f| !f.is_empty()).map(str::to_owned).collect())
}

struct Package {
    name: String,
    /// Relative to the workspace, with a slash at the end.
    folder: String,
    /// The names of the workspace's crates that it depends on, but not those that only its tests use.
    dependencies: Vec<String>,
    /// The crate's root file, relative to the workspace.
    root: String,
}

fn packages(workspace: &Workspace) -> Result<Vec<Package>> {
    let output =
        workspace.cargo().args(["metadata", "--no-deps", "--format-version", "1"]).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let list = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let relative = |path: &Value| -> Option<String> {
        Some(Path::new(path.as_str()?).strip_prefix(&workspace.root).ok()?.to_str()?.to_owned())
    };
    let names: Vec<&str> = list.iter().filter_map(|p| p["name"].as_str()).collect();
    let package = |p: &Value| -> Option<Package> {
        let manifest = relative(&p["manifest_path"])?;
        let root = p["targets"]
            .as_array()?
            .iter()
            .find(|t| t["kind"].as_array().is_some_and(|k| k.iter().any(|k| k == "lib" || k == "bin")))?;
        Some(Package {
            name: p["name"].as_str()?.to_owned(),
            folder: manifest.strip_suffix("Cargo.toml")?.to_owned(),
            dependencies: p["dependencies"]
                .as_array()?
                .iter()
                .filter(|d| d["kind"].is_null())
                .filter_map(|d| d["name"].as_str())
                .filter(|d| names.contains(d))
                .map(str::to_owned)
                .collect(),
            root: relative(&root["src_path"])?,
        })
    };
    list.iter().map(|p| package(p).with_context(|| format!("cargo metadata is odd about {}", p["name"]))).collect()
}

/// The innermost package that a file belongs to.
fn owner<'a>(packages: &'a [Package], file: &str) -> Option<&'a Package> {
    packages.iter().filter(|p| file.starts_with(&p.folder)).max_by_key(|p| p.folder.len())
}

fn check_package(workspace: &Workspace, package: &Package, findings: &mut Vec<Finding>) -> Result<()> {
    let manifest = format!("{}Cargo.toml", package.folder);
    if let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == package.name) {
        for dependency in package.dependencies.iter().filter(|d| !allowed.contains(&d.as_str())) {
            let what = format!("{} must not depend on {dependency}", package.name);
            findings.push(Finding { file: manifest.clone(), line: 0, what });
        }
    }
    if SAFE_CRATES.contains(&package.name.as_str()) {
        let root: PathBuf = workspace.root.join(&package.root);
        let text = fs::read_to_string(&root).with_context(|| format!("cannot read {}", root.display()))?;
        if !text.contains("#![forbid(unsafe_code)]") {
            findings.push(Finding { file: package.root.clone(), line: 0, what: "needs #![forbid(unsafe_code)]".into() });
        }
    }
    Ok(())
}

/// The table of behaviours names tests that exist, and all guest cases.
fn check_conformance(sources: &[(String, String)], findings: &mut Vec<Finding>) {
    let files: Vec<(&str, &str)> = sources.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let document = files.iter().find(|(path, _)| *path == conformance::DOCUMENT).map_or("", |(_, text)| text);
    let found = conformance::check(document, &files).into_iter();
    findings.extend(found.map(|(line, what)| Finding { file: conformance::DOCUMENT.into(), line, what }));
}

/// Rules for every text file.
fn check_text(file: &str, text: &str, findings: &mut Vec<Finding>) {
    let mut find = |line: usize, what: String| findings.push(Finding { file: file.to_owned(), line, what });
    // Written by cargo, and by the licences' authors.
    if file == "Cargo.lock" {
        for (number, line) in text.lines().enumerate() {
            if line.starts_with("source = ") && !line.contains("\"registry+https://github.com/rust-lang/crates.io-index\"") {
                find(number + 1, "a dependency from elsewhere than crates.io".into());
            }
        }
        return;
    }
    if file.starts_with("LICENSE") {
        return;
    }
    if !text.is_empty() && !text.ends_with('\n') {
        find(0, "no newline at the end".into());
    }
    for (number, line) in text.split('\n').enumerate() {
        let number = number + 1;
        if line.contains('\t') {
            find(number, "a tab".into());
        }
        if line.ends_with([' ', '\r']) {
            find(number, "space at the end of the line".into());
        }
        for (start, end, why) in FORBIDDEN {
            let word = format!("{start}{end}");
            if contains_word(line, &word) {
                find(number, format!("{:?}: {why}", word.trim()));
            }
        }
        for host in linked_hosts(line) {
            if !HOSTS.contains(&host) {
                find(number, format!("a link to {host}, which is not on the list in tidy"));
            }
        }
    }
}

/// True if `word` is in `line`, not as the end of a longer word.
fn contains_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "./_-".contains(c))
    })
}

fn linked_hosts(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("://").filter_map(|(at, separator)| {
        if !line[..at].ends_with("http") && !line[..at].ends_with("https") {
            return None;
        }
        let rest = &line[at + separator.len()..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '-')).unwrap_or(rest.len());
        (end > 0).then(|| rest[..end].trim_end_matches('.'))
    })
}

/// Rules for Rust sources.
fn check_rust(file: &str, text: &str, findings: &mut Vec<Finding>) {
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() > LONGEST_FILE {
        let what = format!("{} lines: split it ({LONGEST_FILE} is the limit)", lines.len());
        findings.push(Finding { file: file.to_owned(), line: 0, what });
    }
    for line in unsafe_lines(text) {
        if needs_reason(lines[line - 1]) && !explained(&lines, line - 1) {
            findings.push(Finding {
                file: file.to_owned(),
                line,
                what: "unsafe without a SAFETY comment (or a # Safety section)".into(),
            });
        }
    }
}

/// Blocks and implementations claim that something holds, and public functions ask for it. What is declared (`unsafe extern`, a trait's
/// method) has its conditions elsewhere.
fn needs_reason(line: &str) -> bool {
    let line = line.trim_start();
    let declares = line.contains("unsafe extern") || line.contains("#[unsafe(") || line.starts_with("unsafe fn");
    !declares
}

/// The lines (counted from 1) that open an unsafe block, or declare an unsafe function, trait, implementation or attribute.
fn unsafe_lines(text: &str) -> Vec<usize> {
    let mut lines = Vec::new();
    for (number, line) in code_only(text).lines().enumerate() {
        let mut rest = line;
        let mut found = false;
        while let Some(at) = rest.find("unsafe") {
            let before = rest[..at].chars().next_back();
            let after = &rest[at + "unsafe".len()..];
            let whole = !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
                && !after.starts_with(|c: char| c.is_alphanumeric() || c == '_');
            let follows = after.trim_start();
            // `unsafe fn(...)` and `unsafe extern "C" fn(...)` as types are promises made elsewhere.
            let is_type = follows.starts_with("fn(") || follows.starts_with("extern") && follows.contains("fn(");
            found |= whole && !is_type;
            rest = after;
        }
        if found {
            lines.push(number + 1);
        }
    }
    lines
}

/// `text` with comments and the contents of literals blanked, line for line.
fn code_only(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let blank = |out: &mut String, skipped: &str| out.extend(skipped.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
    while let Some(first) = rest.chars().next() {
        let after_word = out.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if !after_word && let Some(length) = raw_string(rest) {
            length
        } else if first == '"' {
            quoted(rest)
        } else if first == '\'' {
            character(rest)
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        blank(&mut out, &rest[..length]);
        rest = &rest[length..];
    }
    out
}

/// The length of the block comment, which may nest, at the start of `text`.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += c.len_utf8();
        }
    }
    at
}

/// The length of a raw string (`r"..."`, `br#"..."#`) at the start of `text`, if there is one.
fn raw_string(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "r"].into_iter().find(|p| text.starts_with(p))?;
    let hashes = text[prefix.len()..].chars().take_while(|c| *c == '#').count();
    let start = prefix.len() + hashes;
    if !text[start..].starts_with('"') {
        return None;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    Some(text[start + 1..].find(&end).map_or(text.len(), |at| start + 1 + at + end.len()))
}

/// The length of the string literal at the start of `text`.
fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of the character literal at the start of `text`, or of the quote alone if it begins a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => {
            chars.next();
            chars.find(|(_, c)| *c == '\'').map_or(text.len(), |(at, _)| at + 1)
        }
        Some((at, c)) if text[at + c.len_utf8()..].starts_with('\'') => at + c.len_utf8() + 1,
        _ => 1,
    }
}

/// True if a comment that explains it is on line `index` (counted from 0), on the next, or above in the same paragraph.
fn explained(lines: &[&str], index: usize) -> bool {
    let says = |line: &&str| line.contains("SAFETY:") || line.contains("# Safety");
    let above = lines[..index].iter().rev().take_while(|l| !l.trim().is_empty());
    lines[index..].iter().take(2).chain(above).any(says)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_findings(text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check_text("x.md", text, &mut findings);
        findings.iter().map(Finding::to_string).collect()
    }

    #[test]
    fn texts() {
        assert_eq!(text_findings("good\n\nframework/x\nhttps://docs.rs/x and https://github.com/.\n"), Vec::<String>::new());
        for (text, what) in [
            ("a\tb\n", "x.md:1: a tab"),
            ("a\nb \n", "x.md:2: space"),
            ("a\r\n", "x.md:1: space"),
            ("a", "x.md: no newline"),
            (&format!("see {}rk/main\n", "/wo"), "a path of some build machine"),
            (&format!("// {}DO: x\n", "TO"), "unfinished"),
            (&format!("see http{}://example.invalid/x\n", 's'), "a link to example.invalid"),
        ] {
            let found = text_findings(text);
            assert!(found.len() == 1 && found[0].contains(what), "{text:?}: {found:?}");
        }
    }

    #[test]
    fn the_lock_file_names_one_registry() {
        let mut findings = Vec::new();
        check_text("Cargo.lock", "source = \"registry+https://github.com/rust-lang/crates.io-index\"\n", &mut findings);
        assert!(findings.is_empty());
        check_text("Cargo.lock", "source = \"git+https://github.com/x/y\"\n", &mut findings);
        assert_eq!(findings.len(), 1);
    }

    #[test]
    fn unsafe_is_found_in_code_only() {
        let text = "// unsafe {\nlet a = \"unsafe {\"; /* unsafe { /* */ unsafe */\nlet b = r#\"unsafe \" {\"#;\nlet c = '\"'; unsafe { x() }\n\
                    fn f<'a>(x: &'a str) { unsafe_thing() }\nunsafe fn g() {}\ntype T = unsafe fn(u8);\n#[unsafe(no_mangle)]\n#![forbid(unsafe_code)]\n";
        assert_eq!(unsafe_lines(text), [4, 6, 8]);
        assert_eq!(code_only(text).lines().count(), text.lines().count());
    }

    #[test]
    fn unsafe_must_be_explained() {
        for (text, right) in [
            ("// SAFETY: fine.\nunsafe { x() };\n", true),
            ("// SAFETY: fine.\nlet a =\n    unsafe { x() };\n", true),
            ("/// # Safety\n/// Be careful.\n#[inline]\npub unsafe fn f() {}\n", true),
            ("unsafe {\n    // SAFETY: fine.\n    x()\n}\n", true),
            ("unsafe extern \"C\" {\n", true),
            ("impl T for X {\n    unsafe fn f() {}\n", true),
            ("#[unsafe(no_mangle)]\n", true),
            ("let a = 1;\nunsafe { x() };\n", false),
            ("pub unsafe fn f() {}\n", false),
            ("unsafe impl Send for X {}\n", false),
            ("// SAFETY: far away.\n\nunsafe { x() };\n", false),
        ] {
            let mut findings = Vec::new();
            check_rust("x.rs", text, &mut findings);
            assert_eq!(findings.is_empty(), right, "{text}");
        }
    }

    #[test]
    fn long_files_are_found() {
        let mut findings = Vec::new();
        check_rust("x.rs", &"\n".repeat(LONGEST_FILE), &mut findings);
        assert!(findings.is_empty());
        check_rust("x.rs", &"\n".repeat(LONGEST_FILE + 1), &mut findings);
        assert_eq!(findings.len(), 1);
    }
}
