//! What Debian's and others' checkers say.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

use super::Assets;
use crate::package::{self, VERSION};

pub fn lintian(assets: &Assets) -> Result<()> {
    // As root it would complain about that.
    let output = Command::new("lintian")
        .args(["--allow-root", "--fail-on", "error,warning", "--no-cfg"])
        .arg(&assets.products.deb)
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "lintian finds faults:\n{}", String::from_utf8_lossy(&said));
    Ok(())
}

/// Every shell script in the repository.
pub fn shellcheck(assets: &Assets) -> Result<()> {
    let scripts = scripts(&assets.root)?;
    ensure!(scripts.len() >= 5, "where are the package's scripts? Found: {scripts:?}");
    let output = Command::new("shellcheck").args(&scripts).output()?;
    ensure!(output.status.success(), "shellcheck finds faults:\n{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

fn scripts(root: &Path) -> Result<Vec<PathBuf>> {
    let list = package::output(Command::new("git").current_dir(root).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "-z",
    ]))?;
    let is_script = |path: &PathBuf| {
        fs::read(path).is_ok_and(|bytes| {
            let first = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
            first.starts_with(b"#!") && (first.ends_with(b"sh") || first.ends_with(b"sh -e"))
        })
    };
    Ok(String::from_utf8(list)?.split('\0').filter(|p| !p.is_empty()).map(|p| root.join(p)).filter(is_script).collect())
}

/// They can be shown, without a complaint, and say what they should.
pub fn manual_pages(assets: &Assets) -> Result<()> {
    for (name, section, roff) in package::manual_pages(&assets.root, VERSION, 0)? {
        let file = assets.work.join(format!("{name}.{section}"));
        fs::write(&file, &roff)?;
        let output = Command::new("man").args(["--warnings", "-E", "UTF-8", "-l"]).arg(&file).env("MANWIDTH", "80").output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let complaints = String::from_utf8_lossy(&output.stderr);
        // man itself does not like to run as root.
        let complaints: Vec<&str> = complaints.lines().filter(|l| l.contains("warning") || l.contains("error")).collect();
        ensure!(output.status.success() && complaints.is_empty(), "{name}({section}): {complaints:?}");
        let sample = match name {
            "bulkhead.cfg" => "on_crash",
            "bulkhead" => "guest_loglvl",
            _ => "--modules",
        };
        ensure!(text.contains(sample) && text.contains("SEE ALSO"), "{name}({section}) lacks {sample}:\n{text}");
    }
    Ok(())
}
