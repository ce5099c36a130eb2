//! `cargo xtask package`: a Debian package, a tarball of the same files, and an ISO that boots.

use std::{
    env,
    fs::{self, File, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    progress::{Spinner, say},
    run,
    tools::{self, Consent},
    workspace::Workspace,
};

pub mod man;

#[derive(Args, Clone, Debug, Default)]
pub struct PackageArguments {
    /// Where to write them [default: package, beside cargo's builds]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Products {
    pub deb: PathBuf,
    pub tarball: PathBuf,
}

pub fn run(workspace: &Workspace, arguments: &PackageArguments, consent: Consent) -> Result<()> {
    let out = match &arguments.out {
        Some(out) => env::current_dir()?.join(out),
        None => workspace.output_folder("package"),
    };
    let parts = Parts::build(workspace, consent)?;
    let products = parts.write(&workspace.root, VERSION, &out)?;
    say(products.deb.display());
    say(products.tarball.display());
    let iso = out.join(format!("bulkhead-{}.iso", debian_version(VERSION)));
    run::default_iso(workspace, &iso, consent)?;
    say(iso.display());
    Ok(())
}

/// The workspace's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A version that Debian and `sort -V` order as Cargo does: what comes before a release has a tilde.
#[must_use]
pub fn debian_version(version: &str) -> String {
    version.replacen('-', "~", 1)
}

const MAINTAINER: &str = "The Bulkhead authors <maintainers@bulkhead.invalid>";

const DESCRIPTION: &str = "type-1 hypervisor for VT-x and AMD-V
 Bulkhead is loaded by GRUB, takes the machine, and runs unmodified operating
 systems in hardware virtual machines. Guests are described by files with the
 keys of xl.cfg in /etc/bulkhead; the console is a serial port or the screen.
 .
 This package has the hypervisor, its entries for GRUB's menu, manual pages,
 and bulkhead-check, which says whether a machine can run it and whether the
 guests' configurations are right.";

/// The built programs.
#[derive(Clone, Debug)]
pub struct Parts {
    hypervisor: PathBuf,
    check: PathBuf,
}

impl Parts {
    pub fn build(workspace: &Workspace, consent: Consent) -> Result<Self> {
        tools::need(&[tools::PACKAGE], consent)?;
        let _spinner = Spinner::start("building what is to be packaged");
        Ok(Self { hypervisor: workspace.hypervisor()?, check: workspace.check_program()? })
    }

    /// `bulkhead-check`.
    pub fn check(&self) -> &Path {
        &self.check
    }

    /// Writes the package and the tarball of `version` to the folder `out`.
    pub fn write(&self, root: &Path, version: &str, out: &Path) -> Result<Products> {
        let version = debian_version(version);
        let date = commit_date(root)?;
        let tree = self.tree(root, &version, date)?;
        fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        let work = tempfile::tempdir_in(out)?;

        let name = format!("bulkhead-{version}");
        let plain = work.path().join(&name);
        tree.write(&plain, date)?;
        let tarball = out.join(format!("{name}.tar.gz"));
        let tar = output(
            Command::new("tar")
                .args(["--create", "--sort=name", "--owner=root:0", "--group=root:0", "--numeric-owner", "--directory"])
                .arg(work.path())
                .arg(format!("--mtime=@{date}"))
                .arg(&name),
        )?;
        fs::write(&tarball, gzip(&tar)?)?;

        let folder = work.path().join("deb");
        tree.write(&folder, date)?;
        self.control(root, &version, &tree, &folder)?.write(&folder.join("DEBIAN"), date)?;
        let deb = out.join(format!("bulkhead_{version}_amd64.deb"));
        output(
            Command::new("dpkg-deb")
                .env("SOURCE_DATE_EPOCH", date.to_string())
                .args(["--root-owner-group", "-Zxz", "--build"])
                .arg(&folder)
                .arg(&deb),
        )?;
        Ok(Products { deb, tarball })
    }

    /// What gets installed.
    fn tree(&self, root: &Path, version: &str, date: u64) -> Result<Tree> {
        let source = |path: &str| fs::read(root.join(path)).with_context(|| format!("cannot read {path}"));
        let mut tree = Tree::default();
        let hypervisor = fs::read(&self.hypervisor).with_context(|| format!("cannot read {}", self.hypervisor.display()))?;
        tree.file(&format!("boot/bulkhead-{version}.elf.gz"), gzip(&hypervisor)?);
        tree.program("etc/grub.d/20_linux_bulkhead", source("boot/package/grub/20_linux_bulkhead")?);
        tree.file("etc/default/grub.d/bulkhead.cfg", source("boot/package/grub/bulkhead.cfg")?);
        tree.file("etc/bulkhead/README", source("boot/package/etc-README")?);
        tree.folder("etc/bulkhead/auto");
        tree.program("usr/sbin/bulkhead-check", fs::read(&self.check)?);
        for (name, section, roff) in manual_pages(root, version, date)? {
            tree.file(&format!("usr/share/man/man{section}/{name}.{section}.gz"), gzip(roff.as_bytes())?);
        }
        let doc = "usr/share/doc/bulkhead";
        for name in ["install", "from-xen", "guest-config", "hypervisor-options", "console", "features"] {
            tree.file(&format!("{doc}/{name}.md"), source(&format!("docs/{name}.md"))?);
        }
        tree.file(&format!("{doc}/examples/debian.cfg"), source("boot/package/examples/debian.cfg")?);
        let mut copyright = source("boot/package/debian/copyright")?;
        copyright.extend(licences(&String::from_utf8(source("LICENSE-MIT")?)?).into_bytes());
        tree.file(&format!("{doc}/copyright"), copyright);
        let changelog = format!(
            "bulkhead ({version}) unstable; urgency=medium\n\n  * Version {version}.\n\n -- {MAINTAINER}  {}\n",
            output_text(Command::new("date").args(["-u", "-R", "-d", &format!("@{date}")]))?.trim()
        );
        tree.file(&format!("{doc}/changelog.gz"), gzip(changelog.as_bytes())?);
        tree.file("usr/share/lintian/overrides/bulkhead", source("boot/package/debian/lintian-overrides")?);
        Ok(tree)
    }

    /// What dpkg wants to know about the files, which are in `folder`.
    fn control(&self, root: &Path, version: &str, tree: &Tree, folder: &Path) -> Result<Tree> {
        let mut control = Tree::default();
        let size = tree.entries.iter().map(|e| e.size().div_ceil(1024)).sum::<usize>();
        control.file(
            "control",
            format!(
                "Package: bulkhead\nVersion: {version}\nArchitecture: amd64\nMaintainer: {MAINTAINER}\nInstalled-Size: {size}\n\
                 Depends: grub2-common\nRecommends: grub-pc | grub-efi-amd64\nSuggests: ipmitool\nSection: kernel\nPriority: optional\n\
                 Description: {DESCRIPTION}\n"
            )
            .into_bytes(),
        );
        let files: Vec<&str> = tree.entries.iter().filter(|e| e.contents.is_some()).map(|e| e.path.as_str()).collect();
        let conffiles: String = files.iter().filter(|p| p.starts_with("etc/")).map(|p| format!("/{p}\n")).collect();
        control.file("conffiles", conffiles.into_bytes());
        control.file("md5sums", output(Command::new("md5sum").current_dir(folder).args(&files))?);
        for script in ["preinst", "postinst", "postrm"] {
            control.program(script, fs::read(root.join("boot/package/debian").join(script))?);
        }
        Ok(control)
    }
}

/// Name, section and source of each page.
pub fn manual_pages(root: &Path, version: &str, date: u64) -> Result<Vec<(&'static str, u8, String)>> {
    let doc = |path: &str| fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"));
    let (seven, check) = (doc("boot/package/man/bulkhead.7.md")?, doc("boot/package/man/bulkhead-check.8.md")?);
    let (options, console, config) = (doc("docs/hypervisor-options.md")?, doc("docs/console.md")?, doc("docs/guest-config.md")?);
    let page = |name, section, about, parts: &[(&str, &str)], see_also: &[(&str, u8)]| {
        (name, section, man::Page { name, section, about, version, date, parts, see_also }.roff())
    };
    Ok(vec![
        page(
            "bulkhead",
            7,
            "type-1 hypervisor for VT-x and AMD-V",
            &[("Description", &seven), ("Command line", &options), ("Console", &console)],
            &[("bulkhead.cfg", 5), ("bulkhead-check", 8), ("update-grub", 8)],
        ),
        page(
            "bulkhead.cfg",
            5,
            "guests of the Bulkhead hypervisor",
            &[("Description", &config)],
            &[("bulkhead", 7), ("bulkhead-check", 8)],
        ),
        page(
            "bulkhead-check",
            8,
            "say whether this machine can run Bulkhead, and which guests would start",
            &[("Description", &check)],
            &[("bulkhead", 7), ("bulkhead.cfg", 5)],
        ),
    ])
}

/// The licences' texts as Debian's copyright file wants them.
fn licences(mit: &str) -> String {
    // After the title and the line with the copyright.
    let paragraphs: Vec<&str> = mit.trim().split("\n\n").skip(2).collect();
    let indented: Vec<String> =
        paragraphs.join("\n\n").lines().map(|l| if l.is_empty() { " .".into() } else { format!(" {l}") }).collect();
    format!(
        "License: Expat\n{}\n\nLicense: Apache-2.0\n On Debian systems, the text of the Apache License, version 2.0, is in\n \
         /usr/share/common-licenses/Apache-2.0.\n",
        indented.join("\n")
    )
}

/// The date that everything in a package gets, so that equal sources give equal packages: SOURCE_DATE_EPOCH, else the last commit's.
fn commit_date(root: &Path) -> Result<u64> {
    if let Ok(date) = env::var("SOURCE_DATE_EPOCH") {
        return date.trim().parse().context("SOURCE_DATE_EPOCH is no number");
    }
    let date = output_text(Command::new("git").current_dir(root).args(["log", "-1", "--format=%ct"]));
    // Sources without git.
    Ok(date.ok().and_then(|d| d.trim().parse().ok()).unwrap_or(0))
}

#[derive(Clone, Debug)]
struct Entry {
    path: String,
    mode: u32,
    /// `None` for a folder.
    contents: Option<Vec<u8>>,
}

impl Entry {
    fn size(&self) -> usize {
        self.contents.as_ref().map_or(1, Vec::len)
    }
}

/// Files to be written.
#[derive(Clone, Default, Debug)]
struct Tree {
    entries: Vec<Entry>,
}

impl Tree {
    fn file(&mut self, path: &str, contents: Vec<u8>) {
        self.entries.push(Entry { path: path.into(), mode: 0o644, contents: Some(contents) });
    }

    fn program(&mut self, path: &str, contents: Vec<u8>) {
        self.entries.push(Entry { path: path.into(), mode: 0o755, contents: Some(contents) });
    }

    fn folder(&mut self, path: &str) {
        self.entries.push(Entry { path: path.into(), mode: 0o755, contents: None });
    }

    /// Writes all into `folder`, dated `date`.
    fn write(&self, folder: &Path, date: u64) -> Result<()> {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(date);
        let make = |path: &Path| -> Result<()> {
            // Not by the process's mask.
            let mut missing: Vec<&Path> = path.ancestors().take_while(|p| !p.exists()).collect();
            while let Some(path) = missing.pop() {
                fs::create_dir(path).with_context(|| format!("cannot create {}", path.display()))?;
                fs::set_permissions(path, Permissions::from_mode(0o755))?;
            }
            Ok(())
        };
        make(folder)?;
        for entry in &self.entries {
            let path = folder.join(&entry.path);
            let Some(contents) = &entry.contents else {
                make(&path)?;
                continue;
            };
            make(path.parent().unwrap_or(folder))?;
            let mut file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
            file.write_all(contents)?;
            file.set_permissions(Permissions::from_mode(entry.mode))?;
            file.set_modified(time)?;
        }
        Ok(())
    }
}

/// Without a name or a date in it.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut child =
        Command::new("gzip").arg("-9n").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot run gzip")?;
    let mut stdin = child.stdin.take().context("gzip has no input")?;
    let bytes = bytes.to_vec();
    // By a thread, since neither pipe holds all.
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output()?;
    writer.join().map_err(|_| anyhow::anyhow!("writing to gzip failed"))??;
    ensure!(output.status.success(), "gzip failed: {}", output.status);
    Ok(output.stdout)
}

/// What a program prints; an error if it fails.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let said = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "{} failed: {}\n{}", command.get_program().display(), output.status, said());
    Ok(output.stdout)
}

fn output_text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(command)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_a_release_come_before_it() {
        assert_eq!(debian_version("1.2.0-rc1-x"), "1.2.0~rc1-x");
        assert_eq!(debian_version("1.2.0"), "1.2.0");
    }

    #[test]
    fn a_tree_is_written_with_its_modes() {
        let root = tempfile::tempdir().unwrap();
        let mut tree = Tree::default();
        tree.program("a/b/c", b"x".to_vec());
        tree.folder("a/d");
        tree.write(&root.path().join("t"), 86400).unwrap();
        let data = fs::metadata(root.path().join("t/a/b/c")).unwrap();
        assert_eq!(data.permissions().mode() & 0o777, 0o755);
        assert_eq!(data.modified().unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 86400);
        assert!(root.path().join("t/a/d").is_dir());
    }

    #[test]
    fn the_licence_fits_debians_format() {
        let text = licences("MIT License\n\nCopyright x\n\nPermission is\nhereby granted\n\nTHE SOFTWARE\n");
        assert!(
            text.starts_with("License: Expat\n Permission is\n hereby granted\n .\n THE SOFTWARE\n\nLicense: Apache-2.0\n"),
            "{text}"
        );
    }
}
