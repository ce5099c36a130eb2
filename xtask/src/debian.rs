//! The default guest: Debian's own cloud kernel, and an initramfs of busybox and one script.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
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
/// The current 32-bit kernel, of another architecture than ours.
const PAE_PACKAGE: &str = "linux-image-686-pae";
const PAE_ARCHITECTURE: &str = "i386";
const MEMTEST_PACKAGE: &str = "memtest86+";

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
    let apt = Apt::default();
    let fetch = || unpack(&apt, &image_package(&KernelDependencies::ask(&apt, KERNEL_PACKAGE)?)?, folder, &pick);
    // Old lists name a version that the server no longer has.
    fetch().or_else(|error| {
        eprintln!("xtask: {error:#}; asking for new package lists");
        tools::update_package_lists(consent).and_then(|()| fetch())
    })
}

/// apt for the host's own packages, or for those of another architecture, of which the host need not know anything.
#[derive(Default)]
struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// For another architecture, with package lists of its own in `folder`.
    fn foreign(architecture: &str, folder: &Path) -> Result<Self> {
        let (lists, archives) = (folder.join("lists"), folder.join("cache"));
        fs::create_dir_all(lists.join("partial"))?;
        fs::create_dir_all(archives.join("archives/partial"))?;
        let options = [
            format!("APT::Architecture={architecture}"),
            format!("APT::Architectures={architecture}"),
            format!("Dir::State::lists={}", lists.display()),
            format!("Dir::Cache={}", archives.display()),
            // What is installed is of the host's architecture.
            "Dir::State::status=/dev/null".into(),
        ];
        let apt = Self { options: options.into() };
        let _spinner = Spinner::start(&format!("fetching Debian's package lists for {architecture}"));
        // Some of the lists may be out of reach for a moment; whether what is wanted is in the others shows later.
        let output = apt.command("apt-get").arg("update").output().context("cannot run apt-get")?;
        if !output.status.success() {
            eprintln!("xtask: apt-get update for {architecture}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        if rustix::process::geteuid().is_root() {
            // Else apt warns that its own user cannot write here.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        command
    }
}

struct KernelDependencies {
    package: &'static str,
    depends: String,
}

impl KernelDependencies {
    fn ask(apt: &Apt, package: &'static str) -> Result<Self> {
        let output = apt.command("apt-cache").args(["depends", package]).output().context("cannot run apt-cache")?;
        ensure!(output.status.success(), "apt knows no package {package}");
        Ok(Self { package, depends: String::from_utf8_lossy(&output.stdout).into_owned() })
    }
}

/// The package with the kernel itself, on which the one that was asked about depends.
fn image_package(dependencies: &KernelDependencies) -> Result<String> {
    dependencies
        .depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
        .with_context(|| format!("{} depends on no kernel", dependencies.package))
}

/// Debian's 32-bit kernel, and an initramfs for it, from the cache or fetched by apt.
pub fn pae(cache: &Path, consent: Consent) -> Result<(PathBuf, Vec<u8>)> {
    let folder = cache.join("debian").join(PAE_ARCHITECTURE);
    let (kernel, busybox) = (folder.join("vmlinuz"), folder.join("busybox"));
    if !kernel.is_file() || !busybox.is_file() {
        tools::need(&[tools::DEBIAN], consent)?;
        let apt = Apt::foreign(PAE_ARCHITECTURE, &folder.join("apt"))?;
        unpack(&apt, BUSYBOX_PACKAGE, &folder, |unpacked| Ok((busybox_in(unpacked)?, busybox.clone())))?;
        let package = image_package(&KernelDependencies::ask(&apt, PAE_PACKAGE)?)?;
        unpack(&apt, &package, &folder, |unpacked| Ok((image(unpacked)?, kernel.clone())))?;
        // The lists are large, and old the next time.
        fs::remove_dir_all(folder.join("apt"))?;
    }
    // Our processor executes it, too.
    Ok((kernel, initramfs_with(&busybox, None)?))
}

/// [`kernel`], unpacked: the ELF file that is in it, which is entered by the PVH protocol.
pub fn unpacked_kernel(cache: &Path, consent: Consent) -> Result<PathBuf> {
    let packed = kernel(cache, consent)?;
    let folder = cache.join("debian");
    let vmlinux = folder.join("vmlinux");
    let time = |path: &Path| fs::metadata(path).and_then(|data| data.modified());
    if time(&vmlinux).is_ok_and(|unpacked| time(&packed).is_ok_and(|packed| unpacked >= packed)) {
        return Ok(vmlinux);
    }
    tools::need(&[tools::UNPACK], consent)?;
    let image = fs::read(&packed)?;
    let payload = payload(&image).with_context(|| format!("{} is no Linux image", packed.display()))?;
    let program = match payload {
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0x1f, 0x8b, ..] => "gzip",
        _ => bail!("nobody knows what {} is packed by", packed.display()),
    };
    let work = tempfile::tempdir_in(&folder)?;
    let (from, to) = (work.path().join("packed"), work.path().join("vmlinux"));
    fs::write(&from, payload)?;
    let mut unpack = Command::new(program);
    unpack.args(["-d", "-c"]).stdin(File::open(&from)?).stdout(File::create(&to)?).stderr(Stdio::null());
    // It may not like the size that follows: that is looked at instead of its exit status.
    unpack.status().with_context(|| format!("cannot run {program}"))?;
    let size = payload.last_chunk::<4>().map_or(0, |size| u32::from_le_bytes(*size));
    ensure!(fs::metadata(&to)?.len() == u64::from(size), "{program} cannot unpack {}", packed.display());
    fs::rename(&to, &vmlinux)?;
    Ok(vmlinux)
}

/// The images of Debian's memtest86+, from the cache or fetched by apt.
pub fn memtest(cache: &Path, consent: Consent) -> Result<Vec<PathBuf>> {
    let folder = cache.join("debian");
    let kept = folder.join("memtest");
    if !kept.is_dir() {
        tools::need(&[tools::DEBIAN], consent)?;
        tools::need_package_lists(consent)?;
        unpack(&Apt::default(), MEMTEST_PACKAGE, &folder, |unpacked| Ok((unpacked.join("boot"), kept.clone())))?;
    }
    Ok(["memtest86+x64.bin", "memtest86+ia32.bin"].map(|name| kept.join(name)).into())
}

/// What a Linux image has packed, with its size behind it (`payload_offset`, `payload_length` of the boot protocol).
fn payload(image: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?) as usize);
    let (offset, length) = (number(0x248)?, number(0x24c)?);
    let start = (usize::from(*image.get(0x1f1)?) + 1) * 512 + offset;
    image.get(start..start.checked_add(length)?).filter(|_| image.get(0x202..0x206) == Some(b"HdrS"))
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
        unpack(&Apt::default(), BUSYBOX_PACKAGE, &folder, |unpacked| Ok((busybox_in(unpacked)?, busybox.clone())))?;
    }
    Ok(busybox)
}

/// The busybox in an unpacked package.
fn busybox_in(unpacked: &Path) -> Result<PathBuf> {
    let places = ["bin/busybox", "usr/bin/busybox"].map(|p| unpacked.join(p));
    places.into_iter().find(|p| p.is_file()).context("busybox-static holds no busybox")
}

/// Fetches a package, unpacks it beside `folder`'s files, and moves one file or folder of it to where `pick` says.
fn unpack(apt: &Apt, package: &str, folder: &Path, pick: impl Fn(&Path) -> Result<(PathBuf, PathBuf)>) -> Result<()> {
    fs::create_dir_all(folder)?;
    let work = tempfile::tempdir_in(folder)?;
    let _spinner = Spinner::start(&format!("fetching Debian's {package}"));
    let mut download = apt.command("apt-get");
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
    initramfs_with(&busybox(cache, consent)?, terminal)
}

fn initramfs_with(busybox: &Path, terminal: Option<&Terminal>) -> Result<Vec<u8>> {
    let contents = fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let output = Command::new(busybox).arg("--list").output().context("cannot run busybox")?;
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
        let of = |depends: &str| image_package(&KernelDependencies { package: KERNEL_PACKAGE, depends: depends.into() });
        assert_eq!(of(depends).unwrap(), "linux-image-6.1.0-1-cloud-amd64");
        assert!(of("x\n  Depends: y\n").is_err());
    }

    #[test]
    fn the_payload_of_an_image() {
        let mut image = vec![0; 1024 + 32];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        (image[0x248], image[0x24c], image[1024 + 8]) = (8, 16, 0x5a);
        assert_eq!(payload(&image).map(|p| (p.len(), p[0])), Some((16, 0x5a)));
        image[0x24c] = 25;
        assert_eq!(payload(&image), None);
        image[0x24c] = 16;
        image[0x202] = 0;
        assert_eq!(payload(&image), None);
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
