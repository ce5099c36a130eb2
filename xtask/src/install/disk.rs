//! The disk of a machine with Debian on it, for the installation test: made once, then kept in the cache.
//!
//! GPT with a BIOS boot partition, an EFI system partition, `/boot` and `/`, so that it boots by BIOS and by UEFI. GRUB is installed by the system
//! itself, when it runs for the first time.

use std::{
    fs::{self, File, Permissions},
    io::{Seek, SeekFrom, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use runner::{
    dialogue::Dialogue,
    host::{DirectLinux, Drive, Host},
    machine::Firmware,
};

use crate::{
    package::output,
    progress::Spinner,
    tools::{self, Consent},
};

/// The installed system and what is needed of it outside.
#[derive(Clone, Debug)]
pub struct Debian {
    pub disk: PathBuf,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// Linux's module that gives access to MSRs.
    pub msr_module: PathBuf,
}

/// Debian's release.
const SUITE: &str = "bookworm";

/// What is in it besides the essential packages.
const PACKAGES: &[&str] =
    &["linux-image-cloud-amd64", "grub-pc-bin", "grub-efi-amd64-bin", "grub2-common", "sysvinit-core", "udev", "kmod"];

/// Left out, for size.
const WITHOUT: &[&str] = &["/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/info/*"];

const MIB: u64 = 1 << 20;
/// First byte and size of each partition.
const BIOS_BOOT: (u64, u64) = (MIB, MIB);
const ESP: (u64, u64) = (2 * MIB, 64 * MIB);
const BOOT: (u64, u64) = (66 * MIB, 200 * MIB);
const ROOT: (u64, u64) = (266 * MIB, 1400 * MIB);
const DISK: u64 = 1667 * MIB;

/// The prompt of the shell on the first serial port.
pub const PROMPT: &str = "host# ";

const FILES: &[(&str, u32, &str)] = &[
    ("etc/hostname", 0o644, "host\n"),
    (
        "etc/fstab",
        0o644,
        "LABEL=root / ext4 defaults 0 1\nLABEL=boot /boot ext4 defaults 0 2\nLABEL=ESP /boot/efi vfat umask=0077 0 0\n",
    ),
    ("usr/local/sbin/console-shell", 0o755, include_str!("console-shell")),
    ("usr/local/sbin/first-boot", 0o755, include_str!("first-boot")),
    ("usr/local/sbin/leave", 0o755, include_str!("leave")),
    ("usr/local/sbin/grub-probe", 0o755, include_str!("grub-probe")),
    // The menu waits long enough for a slow machine that tests; the first key stops the clock.
    (
        "etc/default/grub",
        0o644,
        "GRUB_DEFAULT=0\nGRUB_TIMEOUT=60\nGRUB_DISTRIBUTOR=Debian\nGRUB_CMDLINE_LINUX=\"console=ttyS0 quiet init=/usr/local/sbin/console-shell\"\nGRUB_TERMINAL=serial\n\
         GRUB_SERIAL_COMMAND=\"serial --unit=0 --speed=115200\"\nGRUB_DISABLE_OS_PROBER=true\n",
    ),
];

/// Changes when the disk's contents would.
fn key() -> String {
    format!("2 {SUITE} {PACKAGES:?} {WITHOUT:?} {FILES:?} {BIOS_BOOT:?} {ESP:?} {BOOT:?} {ROOT:?}")
}

/// The disk, from the cache or made.
pub fn debian(cache: &Path, consent: Consent) -> Result<Debian> {
    let folder = cache.join("install");
    let name = |name: &str| folder.join(name);
    let debian =
        Debian { disk: name("disk.img"), kernel: name("vmlinuz"), initrd: name("initrd.img"), msr_module: name("msr.ko") };
    let stamp = name("stamp");
    let complete = [&debian.disk, &debian.kernel, &debian.initrd, &debian.msr_module].iter().all(|f| f.is_file());
    if complete && fs::read_to_string(&stamp).is_ok_and(|s| s == key()) {
        return Ok(debian);
    }
    tools::need(&[tools::DEBIAN, tools::DISK], consent)?;
    tools::need_package_lists(consent)?;
    let _ = fs::remove_file(&stamp);
    fs::create_dir_all(&folder)?;
    let spinner = Spinner::start("making a disk with a Debian system");
    let work = tempfile::tempdir_in(&folder)?;
    let disk = work.path().join("disk.img");
    partition(&disk)?;
    fill(&disk, work.path(), consent)?;
    for (made, kept) in [("vmlinuz", &debian.kernel), ("initrd.img", &debian.initrd), ("msr.ko", &debian.msr_module)] {
        fs::rename(work.path().join(made), kept).with_context(|| format!("the Debian system has no {made}"))?;
    }
    spinner.set_text("letting the Debian system install GRUB".into());
    first_boot(&disk, &debian)?;
    fs::rename(disk, &debian.disk)?;
    fs::write(stamp, key())?;
    Ok(debian)
}

fn partition(disk: &Path) -> Result<()> {
    File::create(disk)?.set_len(DISK)?;
    let line = |(start, size): (u64, u64), kind: &str| format!("start={}, size={}, type={kind}\n", start / 512, size / 512);
    const LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
    let table = [
        "label: gpt\n".to_owned(),
        line(BIOS_BOOT, "21686148-6449-6E6F-744E-656564454649"),
        line(ESP, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"),
        line(BOOT, LINUX),
        line(ROOT, LINUX),
    ];
    let mut sfdisk =
        Command::new("sfdisk").arg("--quiet").arg(disk).stdin(Stdio::piped()).spawn().context("cannot run sfdisk")?;
    sfdisk.stdin.take().context("sfdisk has no input")?.write_all(table.concat().as_bytes())?;
    ensure!(sfdisk.wait()?.success(), "sfdisk failed");
    // By a file of its own, since mformat takes the size of the file for the partition's.
    let esp = disk.with_extension("esp");
    File::create(&esp)?.set_len(ESP.1)?;
    output(Command::new("mformat").args(["-F", "-v", "ESP", "-i"]).arg(&esp).arg("::"))?;
    let mut disk = File::options().write(true).open(disk)?;
    disk.seek(SeekFrom::Start(ESP.0))?;
    std::io::copy(&mut File::open(&esp)?, &mut disk)?;
    // mformat leaves something like a partition table in the first sector, of which GRUB complains each time that it looks.
    disk.seek(SeekFrom::Start(ESP.0 + 446))?;
    disk.write_all(&[0; 64])?;
    Ok(fs::remove_file(esp)?)
}

/// Where apt on this machine gets Debian's packages from: lines for a sources.list.
fn sources() -> Result<String> {
    let format = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)";
    let lines =
        output(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages", "Origin: Debian"]))?;
    let mut lines: Vec<String> =
        String::from_utf8(lines)?.lines().filter(|l| l.contains(&format!(" {SUITE}"))).map(str::to_owned).collect();
    lines.sort();
    lines.dedup();
    ensure!(!lines.is_empty(), "apt on this machine knows no source of Debian {SUITE}");
    Ok(lines.join("\n") + "\n")
}

/// Puts the system into the partitions. What runs as root writes nowhere but into `work`.
fn fill(disk: &Path, work: &Path, consent: Consent) -> Result<()> {
    let overlay = work.join("overlay");
    for (path, mode, text) in FILES {
        let path = overlay.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&overlay))?;
        fs::write(&path, text)?;
        fs::set_permissions(&path, Permissions::from_mode(*mode))?;
    }
    let list = work.join("sources.list");
    fs::write(&list, sources()?)?;
    let script = work.join("fill");
    // $1 is the system's root. What is mounted in it (/proc, for one) is not seen in the second view of it. GRUB reads the journalled file systems without their journals; these are made without ever being mounted.
    let make = |label: &str, (start, size): (u64, u64), from: &str| {
        format!("mke2fs -q -t ext4 -L {label} -E offset={start} -d \"$work/root{from}\" \"$disk\" {}k\n", size / 1024)
    };
    let text = format!(
        "#!/bin/sh\nset -e\nwork={work:?}\ndisk={disk:?}\ncp -R --no-preserve=ownership \"$work/overlay/.\" \"$1/\"\n\
         cp \"$1\"/boot/vmlinuz-* \"$work/vmlinuz\"\ncp \"$1\"/boot/initrd.img-* \"$work/initrd.img\"\n\
         cp \"$1\"/lib/modules/*/kernel/arch/x86/kernel/msr.ko \"$work/\"\nmkdir -p \"$1/boot/efi\"\n\
         mv \"$1/usr/sbin/grub-probe\" \"$1/usr/sbin/grub-probe.real\"\nmv \"$1/usr/local/sbin/grub-probe\" \"$1/usr/sbin/\"\n\
         mkdir \"$work/root\"\nmount --bind \"$1\" \"$work/root\"\ntrap 'umount \"$work/root\"' EXIT\n\
         {}rm -rf \"$1\"/boot/*\n{}chmod a+r \"$work\"/vmlinuz \"$work\"/initrd.img\n",
        make("boot", BOOT, "/boot"),
        make("root", ROOT, "")
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    let mut command = if consent.root { Command::new("mmdebstrap") } else { Command::new("sudo") };
    if !consent.root {
        command.args(if consent.person { &["mmdebstrap"][..] } else { &["-n", "mmdebstrap"] });
    }
    command.args(["--variant=minbase", "--format=null", "--quiet"]);
    command.arg(format!("--include={}", PACKAGES.join(",")));
    command.args(WITHOUT.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
    command.arg(format!("--customize-hook={:?} \"$1\"", script)).args([SUITE, "/dev/null"]).arg(&list);
    output(&mut command).map(drop)
}

/// Boots the system without a boot loader, so that it installs one.
fn first_boot(disk: &Path, debian: &Debian) -> Result<()> {
    let host = Host {
        firmware: Firmware::Bios,
        cpu: "EPYC-Rome",
        mib: 1024,
        drives: vec![Drive::Kept(disk.to_owned())],
        linux: Some(DirectLinux {
            kernel: debian.kernel.clone(),
            initrd: debian.initrd.clone(),
            command_line: "root=LABEL=root ro console=ttyS0 quiet init=/usr/local/sbin/first-boot".into(),
        }),
    };
    let mut dialogue = Dialogue::new(host.start()?)?;
    let done = dialogue.wait_any(&["first-boot: done", "first-boot: failed"], Duration::from_secs(600));
    ensure!(done.as_ref().is_ok_and(|&n| n == 0), "the new Debian system cannot install GRUB:\n{}", dialogue.transcript());
    // Once all is on the disk.
    dialogue.wait_end(Duration::from_secs(120))
}
