//! The programs and firmware that xtask needs, and how it gets them.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{self, BufRead, IsTerminal, Write},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::geteuid;

/// How to see that a package is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Probe {
    /// A program in `PATH`.
    Program(&'static str),
    /// Any of these files.
    File(&'static [&'static str]),
}

/// A Debian package and what of it is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tool {
    pub package: &'static str,
    probe: Probe,
}

const fn program(package: &'static str, name: &'static str) -> Tool {
    Tool { package, probe: Probe::Program(name) }
}

const fn file(package: &'static str, paths: &'static [&'static str]) -> Tool {
    Tool { package, probe: Probe::File(paths) }
}

/// For making images.
pub const IMAGE: &[Tool] = &[
    program("grub-common", "grub-mkimage"),
    file("grub-pc-bin", &["/usr/lib/grub/i386-pc/multiboot2.mod"]),
    file("grub-efi-amd64-bin", &["/usr/lib/grub/x86_64-efi/multiboot2.mod"]),
    program("xorriso", "xorriso"),
    program("mtools", "mformat"),
];
pub const QEMU: &[Tool] = &[program("qemu-system-x86", "qemu-system-x86_64")];
pub const UEFI: &[Tool] = &[file("ovmf", &["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_CODE.fd"])];
pub const BOCHS: &[Tool] = &[
    program("bochs", "bochs"),
    file("bochsbios", &["/usr/share/bochs/BIOS-bochs-latest"]),
    file("vgabios", &["/usr/share/vgabios/vgabios.bin"]),
];
/// For giving names to instructions.
pub const TRACE: &[Tool] = &[program("binutils", "addr2line")];
/// For making packages.
pub const PACKAGE: &[Tool] = &[program("dpkg", "dpkg-deb"), program("gzip", "gzip"), program("tar", "tar")];
/// For checking them and their scripts.
pub const PACKAGE_CHECKS: &[Tool] = &[
    program("lintian", "lintian"),
    program("shellcheck", "shellcheck"),
    program("dash", "dash"),
    program("grub-common", "grub-script-check"),
    program("man-db", "man"),
];
/// For making a disk with a Debian system.
pub const DISK: &[Tool] = &[
    program("mmdebstrap", "mmdebstrap"),
    program("fdisk", "sfdisk"),
    program("e2fsprogs", "mke2fs"),
    program("mtools", "mformat"),
];
/// For unpacking what a Linux image has packed, whatever it was packed by.
pub const UNPACK: &[Tool] = &[program("lz4", "lz4"), program("xz-utils", "xz"), program("zstd", "zstd"), program("gzip", "gzip")];
/// For unpacking Debian packages.
pub const DEBIAN: &[Tool] = &[program("dpkg", "dpkg-deb"), program("apt", "apt-get")];

/// Who runs xtask, as far as it decides whether to install something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Consent {
    pub root: bool,
    /// A person is at the terminal.
    pub person: bool,
    /// `--yes`, or a CI system.
    pub given: bool,
}

impl Consent {
    /// As things are now; `yes` is the command line's answer.
    pub fn now(yes: bool) -> Self {
        let ci = env::var_os("CI").is_some_and(|v| !v.is_empty() && v != "false" && v != "0");
        Self { root: geteuid().is_root(), person: io::stdin().is_terminal() && io::stderr().is_terminal(), given: yes || ci }
    }

    const fn decide(self) -> Decision {
        if self.root || self.given {
            Decision::Install
        } else if self.person {
            Decision::Ask
        } else {
            Decision::Refuse
        }
    }
}

impl Consent {
    /// Asks, if there is somebody to ask and a need to; an error if the answer is no.
    fn obtain(self, question: &str, by_hand: &str) -> Result<()> {
        match self.decide() {
            Decision::Install => Ok(()),
            Decision::Ask if ask(question)? => Ok(()),
            Decision::Ask => bail!("not done; do it with: {by_hand}"),
            Decision::Refuse => bail!("nobody to ask: say --yes, or do it with: {by_hand}"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Decision {
    Install,
    Ask,
    Refuse,
}

/// Sees to it that `tools` are there.
pub fn need(tools: &[&[Tool]], consent: Consent) -> Result<()> {
    let tools: Vec<Tool> = tools.concat();
    let path = env::var_os("PATH").unwrap_or_default();
    let missing = missing(&tools, &path, Path::new("/"));
    if missing.is_empty() {
        return Ok(());
    }
    for tool in &missing {
        let what = match tool.probe {
            Probe::Program(name) => name,
            Probe::File(paths) => paths[0],
        };
        eprintln!("xtask: missing: {what} (Debian package {})", tool.package);
    }
    let packages: Vec<&str> = missing.iter().map(|t| t.package).collect();
    let by_hand = format!("apt-get install {}", packages.join(" "));
    if !in_path("apt-get", &path, Path::new("/")) {
        bail!("install the missing tools (on Debian: {by_hand})");
    }
    consent.obtain(&format!("Install {} with apt?", packages.join(", ")), &by_hand)?;
    install(&packages, consent)?;
    let path = env::var_os("PATH").unwrap_or_default();
    match self::missing(&missing, &path, Path::new("/")).first() {
        Some(tool) => {
            bail!("package {} is installed, but what was wanted of it is still missing: {:?}", tool.package, tool.probe)
        }
        None => Ok(()),
    }
}

fn ask(question: &str) -> Result<bool> {
    eprint!("xtask: {question} [Y/n] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer)?;
    Ok(read > 0 && matches!(answer.trim().to_ascii_lowercase().as_str(), "" | "y" | "yes"))
}

fn install(packages: &[&str], consent: Consent) -> Result<()> {
    if !have_package_lists() {
        apt(consent, &["update"])?;
    }
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(packages);
    // Old lists name packages that the server no longer has.
    apt(consent, &arguments).or_else(|_| apt(consent, &["update"]).and_then(|()| apt(consent, &arguments)))
}

/// True if apt knows what there is to install.
fn have_package_lists() -> bool {
    fs::read_dir("/var/lib/apt/lists")
        .is_ok_and(|mut dir| dir.any(|entry| entry.is_ok_and(|e| e.file_name().to_string_lossy().contains("_Packages"))))
}

/// Sees to it that apt knows what there is to download.
pub fn need_package_lists(consent: Consent) -> Result<()> {
    if have_package_lists() { Ok(()) } else { update_package_lists(consent) }
}

pub fn update_package_lists(consent: Consent) -> Result<()> {
    consent.obtain("Fetch apt's package lists (apt-get update)?", "apt-get update")?;
    apt(consent, &["update"])
}

/// Runs apt-get, by sudo unless root. Its output is on our stderr: stdout is the guest's.
fn apt(consent: Consent, arguments: &[&str]) -> Result<()> {
    let mut command = if consent.root { Command::new("apt-get") } else { Command::new("sudo") };
    if !consent.root {
        if !consent.person {
            // Rather fail than wait for a password that nobody types.
            command.arg("-n");
        }
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    }
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdout(io::stderr());
    eprintln!("xtask: apt-get {}", arguments.join(" "));
    let status = command.status().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    ensure!(status.success(), "apt-get {} failed", arguments.join(" "));
    Ok(())
}

/// Those of `tools` that are not there, given `PATH` and the file system's root.
fn missing(tools: &[Tool], path: &OsStr, root: &Path) -> Vec<Tool> {
    let there = |tool: &Tool| match tool.probe {
        Probe::Program(name) => in_path(name, path, root),
        Probe::File(paths) => paths.iter().any(|p| root.join(p.trim_start_matches('/')).is_file()),
    };
    tools.iter().filter(|t| !there(t)).copied().collect()
}

fn in_path(name: &str, path: &OsStr, root: &Path) -> bool {
    env::split_paths(path).any(|folder| root.join(folder.strip_prefix("/").unwrap_or(&folder)).join(name).is_file())
}

/// Sees to it that rustc can build for `target`.
pub fn need_target(target: &str) -> Result<()> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output =
        Command::new(&rustc).args(["--print", "target-libdir", "--target", target]).output().context("cannot run rustc")?;
    ensure!(output.status.success(), "this rustc does not know {target}:\n{}", String::from_utf8_lossy(&output.stderr));
    if Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir() {
        return Ok(());
    }
    eprintln!("xtask: rustup target add {target}");
    let status = Command::new("rustup").args(["target", "add", target]).stdout(io::stderr()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => bail!("the Rust target {target} is missing and rustup could not add it"),
        Err(_) => bail!("the Rust target {target} is missing, and there is no rustup to add it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_there_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let all: Vec<Tool> = [IMAGE, QEMU, UEFI, BOCHS].concat();
        let path = OsStr::new("/bin:/usr/bin");
        assert_eq!(missing(&all, path, root.path()), all, "a fresh machine lacks everything");

        let put = |file: &str| {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        };
        put("usr/bin/bochs");
        put("usr/bin/xorriso/is-a-folder");
        put("sbin/qemu-system-x86_64");
        put("usr/share/OVMF/OVMF_CODE.fd");
        let packages: Vec<&str> = missing(&all, path, root.path()).iter().map(|t| t.package).collect();
        assert_eq!(
            packages,
            ["grub-common", "grub-pc-bin", "grub-efi-amd64-bin", "xorriso", "mtools", "qemu-system-x86", "bochsbios", "vgabios"]
        );
    }

    #[test]
    fn who_is_asked() {
        let consent = |root, person, given| Consent { root, person, given }.decide();
        assert_eq!(consent(true, true, false), Decision::Install);
        assert_eq!(consent(true, false, false), Decision::Install);
        assert_eq!(consent(false, true, false), Decision::Ask);
        assert_eq!(consent(false, true, true), Decision::Install);
        assert_eq!(consent(false, false, true), Decision::Install);
        assert_eq!(consent(false, false, false), Decision::Refuse);
    }
}
