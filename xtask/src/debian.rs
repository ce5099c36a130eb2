//! The default guest: Debian's own cloud kernel, and an initramfs of busybox and one script.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use runner::{cpio::Archive, feed::PROMPT_HOST, machine::Vendor};

use crate::{
    progress::Spinner,
    tools::{self, Consent},
};

/// Always names the current version of the kernel that Debian makes for virtual machines.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
const BUSYBOX_PACKAGE: &str = "busybox-static";

/// A terminal's size and type, for the guest to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Terminal {
    pub rows: u16,
    pub columns: u16,
    /// `TERM`.
    pub kind: String,
}

/// Debian's cloud kernel, from the cache or fetched by apt.
pub fn kernel(cache: &Path, consent: Consent) -> Result<PathBuf> {
    let folder = cache.join("debian");
    let kernel = folder.join("vmlinuz");
    if kernel.is_file() {
        return Ok(kernel);
    }
    fetch_kernel(&folder, consent, |unpacked| Ok((image(unpacked)?, kernel.clone())))?;
    Ok(kernel)
}

/// A kernel and those of its modules without which it cannot host virtual machines, in the order in which they are loaded.
#[derive(Clone, Debug)]
pub struct KvmHost {
    pub kernel: PathBuf,
    pub modules: Vec<PathBuf>,
}

/// The same kernel with KVM's modules, which fit no other: kept apart from [`kernel`], which may be older.
pub fn kvm_host(cache: &Path, vendor: Vendor, consent: Consent) -> Result<KvmHost> {
    const MODULES: [&str; 4] =
        ["virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-amd.ko", "arch/x86/kvm/kvm-intel.ko"];
    let folder = cache.join("debian");
    let kept = folder.join("kvm-host");
    let name = |module: &str| module.rsplit('/').next().unwrap_or(module).to_owned();
    if !kept.is_dir() {
        fetch_kernel(&folder, consent, |unpacked| {
            let gathered = unpacked.join("kvm-host");
            fs::create_dir(&gathered)?;
            fs::rename(image(unpacked)?, gathered.join("vmlinuz"))?;
            let version = fs::read_dir(unpacked.join("lib/modules"))?.next().context("the package holds no modules")??;
            for module in MODULES {
                fs::rename(version.path().join("kernel").join(module), gathered.join(name(module)))?;
            }
            Ok((gathered, kept.clone()))
        })?;
    }
    let other = if vendor == Vendor::Amd { "kvm-intel.ko" } else { "kvm-amd.ko" };
    let modules = MODULES.iter().map(|m| name(m)).filter(|m| m != other).map(|m| kept.join(m)).collect();
    Ok(KvmHost { kernel: kept.join("vmlinuz"), modules })
}

/// The kernel in an unpacked package.
fn image(unpacked: &Path) -> Result<PathBuf> {
    fs::read_dir(unpacked.join("boot"))?
        .filter_map(Result::ok)
        .find(|e| e.file_name().to_string_lossy().starts_with("vmlinuz-"))
        .map(|e| e.path())
        .context("the package holds no kernel")
}

/// Unpacks the kernel's package, and moves what `pick` says.
fn fetch_kernel(folder: &Path, consent: Consent, pick: impl Fn(&Path) -> Result<(PathBuf, PathBuf)>) -> Result<()> {
    tools::need(&[tools::DEBIAN], consent)?;
    tools::need_package_lists(consent)?;
    let fetch = || unpack(&image_package(&KernelDependencies::ask()?)?, folder, &pick);
    // Old lists name a version that the server no longer has.
    fetch().or_else(|error| {
        eprintln!("xtask: {error:#}; asking for new package lists");
        tools::update_package_lists(consent).and_then(|()| fetch())
    })
}

struct KernelDependencies(String);

impl KernelDependencies {
    fn ask() -> Result<Self> {
        let output = Command::new("apt-cache").args(["depends", KERNEL_PACKAGE]).output().context("cannot run apt-cache")?;
        ensure!(output.status.success(), "apt knows no package {KERNEL_PACKAGE}");
        Ok(Self(String::from_utf8_lossy(&output.stdout).into_owned()))
    }
}

/// The package with the kernel itself, on which [`KERNEL_PACKAGE`] depends.
fn image_package(depends: &KernelDependencies) -> Result<String> {
    depends
        .0
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
        .with_context(|| format!("{KERNEL_PACKAGE} depends on no kernel"))
}

/// The statically linked busybox: the installed one, else from the cache or fetched by apt.
fn busybox(cache: &Path, consent: Consent) -> Result<PathBuf> {
    let installed = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", BUSYBOX_PACKAGE]).output();
    if installed.is_ok_and(|o| o.stdout == b"installed") && Path::new("/bin/busybox").is_file() {
        return Ok("/bin/busybox".into());
    }
    // Not installed on the host, where it would replace the dynamically linked one.
    let folder = cache.join("debian");
    let busybox = folder.join("busybox");
    if !busybox.is_file() {
        tools::need(&[tools::DEBIAN], consent)?;
        tools::need_package_lists(consent)?;
        unpack(BUSYBOX_PACKAGE, &folder, |unpacked| {
            let places = ["bin/busybox", "usr/bin/busybox"].map(|p| unpacked.join(p));
            let found = places.into_iter().find(|p| p.is_file()).context("busybox-static holds no busybox")?;
            Ok((found, busybox.clone()))
        })?;
    }
    Ok(busybox)
}

/// Fetches a package, unpacks it beside `folder`'s files, and moves one file or folder of it to where `pick` says.
fn unpack(package: &str, folder: &Path, pick: impl Fn(&Path) -> Result<(PathBuf, PathBuf)>) -> Result<()> {
    fs::create_dir_all(folder)?;
    let work = tempfile::tempdir_in(folder)?;
    let _spinner = Spinner::start(&format!("fetching Debian's {package}"));
    let mut download = Command::new("apt-get");
    if rustix::process::geteuid().is_root() {
        // Else apt warns that its own user cannot write here.
        download.args(["-o", "APT::Sandbox::User=root"]);
    }
    let output = download.args(["download", package]).current_dir(work.path()).output().context("cannot run apt-get")?;
    if !output.status.success() {
        bail!("apt-get download {package} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let archive = fs::read_dir(work.path())?
        .filter_map(Result::ok)
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "deb"))
        .with_context(|| format!("apt-get download {package} left nothing"))?;
    let unpacked = work.path().join("unpacked");
    let status = Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&unpacked).status().context("cannot run dpkg-deb")?;
    ensure!(status.success(), "dpkg-deb cannot unpack {}", archive.display());
    let (from, to) = pick(&unpacked)?;
    fs::rename(&from, &to).with_context(|| format!("cannot keep {}", from.display()))?;
    Ok(())
}

/// The guest's first process. `/etc/terminal` is written by xtask.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin HOME=/root TERM=linux ENV=/etc/shell PS1='\h:\w\$ '
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
hostname HOST
[ -f /etc/terminal ] && . /etc/terminal
cd /root
echo
echo "This is Debian's own kernel, Linux $(uname -r), in a virtual machine."
echo "poweroff -f ends it, reboot -f restarts it, resize tells it the terminal's size after its window has changed."
echo
# The shell gets the console as its terminal, for job control. Without a first process the kernel would panic: go on if it ends.
while :; do setsid cttyhack sh; done
"#;

/// Read by every interactive shell.
const SHELL: &str = r#"# Asks the terminal for its size, after its window has changed.
resize() {
    local old="$(stty -g)" answer
    stty raw -echo min 0 time 5
    printf '\0337\033[999;999H\033[6n\0338'
    answer="$(dd bs=32 count=1 2>/dev/null)"
    stty "$old"
    answer="${answer#*[}"
    answer="${answer%R*}"
    case "$answer" in
        [0-9]*\;[0-9]*) stty rows "${answer%;*}" cols "${answer#*;}" ;;
        *) echo 'resize: the terminal does not answer' ;;
    esac
}
"#;

/// The initramfs, which is small enough not to be kept.
pub fn initramfs(cache: &Path, terminal: Option<&Terminal>, consent: Consent) -> Result<Vec<u8>> {
    let busybox = busybox(cache, consent)?;
    let contents = fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let output = Command::new(&busybox).arg("--list").output().context("cannot run busybox")?;
    let applets = String::from_utf8(output.stdout)?;
    ensure!(applets.lines().any(|a| a == "cttyhack"), "{} lacks cttyhack", busybox.display());
    Ok(build(&contents, applets.lines(), terminal))
}

fn build<'a>(busybox: &[u8], applets: impl Iterator<Item = &'a str>, terminal: Option<&Terminal>) -> Vec<u8> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        archive.directory(folder);
    }
    // The kernel opens it for the first process, before devtmpfs is mounted.
    archive.character_device("dev/console", 5, 1);
    archive.file("init", 0o755, INIT.replace("HOST", PROMPT_HOST).as_bytes());
    archive.file("etc/shell", 0o644, SHELL.as_bytes());
    archive.file("etc/passwd", 0o644, b"root::0:0:root:/root:/bin/sh\n");
    archive.file("etc/group", 0o644, b"root:x:0:\n");
    if let Some(Terminal { rows, columns, kind }) = terminal {
        let kind: String = kind.chars().filter(|c| c.is_ascii_alphanumeric() || "-_+.".contains(*c)).collect();
        archive.file("etc/terminal", 0o644, format!("export TERM={kind}\nstty rows {rows} cols {columns}\n").as_bytes());
    }
    archive.file("bin/busybox", 0o755, busybox);
    for applet in applets.filter(|a| !a.is_empty() && !a.contains('/') && *a != "busybox") {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_behind_the_meta_package() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-1-cloud-amd64\n  Suggests: linux-image-x\n";
        assert_eq!(image_package(&KernelDependencies(depends.into())).unwrap(), "linux-image-6.1.0-1-cloud-amd64");
        assert!(image_package(&KernelDependencies("x\n  Depends: y\n".into())).is_err());
    }

    #[test]
    fn the_initramfs_has_what_init_needs() {
        let terminal = Terminal { rows: 40, columns: 120, kind: "xterm; reboot".into() };
        let archive = build(b"BB", ["sh", "mount", "busybox", ""].into_iter(), Some(&terminal));
        let text = String::from_utf8_lossy(&archive);
        for wanted in
            ["hostname debian\n", "bin/sh\0", "bin/mount\0", "dev/console\0", "TERM=xtermreboot\nstty rows 40 cols 120\n"]
        {
            assert!(text.contains(wanted), "{wanted}");
        }
        assert_eq!(text.matches("bin/busybox\0").count(), 1);
    }
}
