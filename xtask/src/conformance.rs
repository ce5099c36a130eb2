//! `docs/conformance.md` against the tests that it names: all of them exist, and every guest case is among them.

use std::collections::BTreeSet;

/// The document, relative to the root.
pub const DOCUMENT: &str = "docs/conformance.md";

/// Where a crate's sources are.
const CRATES: &[(&str, &str)] = &[
    ("devices", "devices/"),
    ("hv", "hv/"),
    ("emul", "arch/emul/"),
    ("x86defs", "arch/defs/"),
    ("arch", "arch/src/"),
    ("fuzz", "tests/fuzz/"),
];
/// The guest's table of cases.
const CASES: &str = "tests/guests/src/cases/mod.rs";
/// Where scenarios and tests with Linux are named.
const RUNNER: &str = "tests/runner/src/";
/// The tables' last column, by its heading.
const COLUMN: &str = "tests";

/// What is wrong with the document, and on which line (0: with all of it). `files`: path and text of the repository's sources.
pub fn check(document: &str, files: &[(&str, &str)]) -> Vec<(usize, String)> {
    let cases: BTreeSet<&str> = files.iter().filter(|(path, _)| *path == CASES).flat_map(|(_, text)| guest_cases(text)).collect();
    let mut findings = Vec::new();
    let mut in_tests = false;
    for (number, line) in document.lines().enumerate().map(|(n, line)| (n + 1, line)) {
        let Some(row) = line.strip_prefix('|') else {
            in_tests = false;
            continue;
        };
        let cells: Vec<&str> = row.trim_end().trim_end_matches('|').split('|').map(str::trim).collect();
        let last = cells.last().copied().unwrap_or_default();
        if last == COLUMN {
            in_tests = true;
        } else if in_tests && !last.starts_with("---") {
            let names: Vec<&str> = quoted(last).collect();
            if names.is_empty() {
                findings.push((number, "names no test".into()));
            }
            let missing = names.into_iter().filter(|name| !cases.contains(name) && !exists(name, files));
            findings.extend(missing.map(|name| (number, format!("there is no test {name:?}"))));
        }
    }
    let named: BTreeSet<&str> = document.lines().flat_map(quoted).collect();
    findings.extend(cases.difference(&named).map(|case| (0, format!("does not name the guest case {case:?}"))));
    findings
}

/// What stands between backticks.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The names in the guest's table.
fn guest_cases(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| Some(line.trim().strip_prefix("(\"")?.split_once('"')?.0))
}

/// True for a test on the host (`crate::folder::function`) or the runner's.
fn exists(name: &str, files: &[(&str, &str)]) -> bool {
    let parts: Vec<&str> = name.split("::").collect();
    let [crate_name, between @ .., function] = parts.as_slice() else {
        let literal = format!("\"{name}\"");
        return !name.is_empty() && files.iter().any(|(path, text)| path.starts_with(RUNNER) && text.contains(&literal));
    };
    let Some((_, folder)) = CRATES.iter().find(|(name, _)| name == crate_name) else { return false };
    let files = files.iter().filter(|(path, _)| path.starts_with(folder));
    files.filter(|(path, _)| is_within(&path[folder.len()..], between)).any(|(_, text)| has_test(text, function))
}

/// True if `path` has these folders and files (without their ending) in this order, among others. The tests of `x.rs` may be in `x_tests.rs`.
fn is_within(path: &str, parts: &[&str]) -> bool {
    let path = path.trim_end_matches(".rs").trim_end_matches("_tests");
    let mut rest = path.split('/');
    parts.iter().all(|part| rest.any(|name| name == part.trim_end_matches("_tests")))
}

/// True if there is a function of that name with `#[test]` before it.
fn has_test(text: &str, function: &str) -> bool {
    let start = format!("fn {function}(");
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let is_attribute = |line: &&&str| line.starts_with("#[") || line.starts_with("//");
    lines.iter().enumerate().any(|(at, line)| {
        line.starts_with(&start) && lines[..at].iter().rev().take_while(is_attribute).any(|line| *line == "#[test]")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: &[(&str, &str)] = &[
        (CASES, "    (\"pit-modes\", chips::pit_modes),\n    (\"bench\", bench::run),\n"),
        ("devices/src/pit/tests.rs", "#[test]\nfn bcd() {}\nfn helper() {}\n"),
        ("hv/src/run_tests.rs", "    /// What it is.\n    #[test]\n    #[cfg(unix)]\n    fn ends() {}\n"),
        ("tests/runner/src/linux.rs", "const SHELL: &str = \"linux-shell\";\n"),
    ];

    fn findings(rows: &str) -> Vec<(usize, String)> {
        check(&format!("| behaviour | manual | tests |\n| --- | --- | --- |\n{rows}\n\n`bench` and `pit-modes`\n"), FILES)
    }

    #[test]
    fn tests_of_every_kind_are_found() {
        assert_eq!(findings("| a | b | `pit-modes`, `devices::pit::bcd` |\n| c | d | `hv::run::ends`, `linux-shell` |"), []);
        assert_eq!(findings("| a | b | `devices::bcd` |"), []);
    }

    #[test]
    fn what_does_not_exist_is_noticed() {
        for name in [
            "pit-mode",
            "linux-shel",
            "devices::pit::bc",
            "devices::pit::helper",
            "devices::pic::bcd",
            "hv::pit::bcd",
            "nobody::pit::bcd",
            "",
        ] {
            let rows = format!("| a | b | `pit-modes` |\n| c | d | `{name}` |");
            assert_eq!(findings(&rows), [(4, format!("there is no test {name:?}"))]);
        }
        assert_eq!(findings("| a | b | none |"), [(3, "names no test".into())]);
    }

    #[test]
    fn every_guest_case_must_be_named() {
        assert_eq!(check("`pit-modes`\n", FILES), [(0, "does not name the guest case \"bench\"".into())]);
    }

    #[test]
    fn other_tables_are_left_alone() {
        assert_eq!(check("`bench` `pit-modes`\n\n| a | b |\n| --- | --- |\n| `x` | `y` |\n", FILES), []);
    }
}
