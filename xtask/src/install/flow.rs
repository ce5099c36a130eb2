//! The life of an installation, on a machine with Debian: install, choose the entry in GRUB's serial menu, run the guests, purge.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use runner::{
    dialogue::Dialogue,
    feed::PROMPT_HOST,
    host::{DirectLinux, Drive, Host},
    machine::Firmware,
};

use super::{Assets, disk::PROMPT};
use crate::package::{VERSION, output};

pub fn bios(assets: &Assets) -> Result<()> {
    live(assets, Firmware::Bios)
}

pub fn uefi(assets: &Assets) -> Result<()> {
    live(assets, Firmware::Uefi)
}

/// The machines.
const CPU: &str = "EPYC-Rome";
const MIB: u32 = 1024;

/// Far more than is needed, because the machine that this runs on may be slow and busy.
const BOOT: Duration = Duration::from_secs(400);
const COMMAND: Duration = Duration::from_secs(300);
const MENU: Duration = Duration::from_secs(180);
/// How long GRUB takes to answer a key. UEFI firmware reads the serial port, too, until an operating system has taken over: some keys never reach
/// GRUB, and are pressed again.
const ANSWER: Duration = Duration::from_secs(3);
const TRIES: usize = 40;

/// Guests: their kernel is Debian's own, on a partition of its own; the ramdisk's name is as odd as names get.
const RAMDISK: &str = "/srv/my guests/it's \"the\" ramdisk.img";
const GUESTS: [&str; 2] = ["one", "two"];

fn config(name: &str) -> String {
    let ramdisk = RAMDISK.replace('"', "\\\"");
    format!("name = \"{name}\"\nmemory = 128\nkernel = \"/vmlinuz\"\nramdisk = \"{ramdisk}\"\nextra = \"console=ttyS0 quiet\"\n")
}

/// A drive that is a tar archive: the package, the guests.
fn payload(assets: &Assets) -> Result<PathBuf> {
    let folder = assets.work.join("payload");
    fs::create_dir(&folder)?;
    fs::copy(&assets.products.deb, folder.join("now.deb"))?;
    fs::write(folder.join("ramdisk.img"), assets.initramfs.as_ref().context("no initramfs was made")?)?;
    for guest in GUESTS {
        fs::write(folder.join(format!("{guest}.cfg")), config(guest))?;
    }
    fs::write(folder.join("broken.cfg"), "name = \"broken\"\nmemroy = 5\n")?;
    fs::write(folder.join("setup"), include_str!("setup"))?;
    let tar = assets.work.join("payload.tar");
    output(Command::new("tar").arg("--create").arg("--file").arg(&tar).arg("--directory").arg(&folder).arg("."))?;
    Ok(tar)
}

struct Visit {
    dialogue: Dialogue,
}

impl Visit {
    /// Runs a command at the host's shell; what it prints, and an error unless it succeeds.
    fn run(&mut self, command: &str) -> Result<String> {
        let start = self.dialogue.here();
        // The mark is put together by the shell, so that the echo of the command does not have it.
        self.dialogue.send(&format!("{command}; echo \"@@\"status $?.\n"))?;
        self.dialogue.wait("@@status ", COMMAND).with_context(|| format!("during {command}"))?;
        let end = self.dialogue.here();
        self.dialogue.wait(".", COMMAND)?;
        let status = self.dialogue.since(end).to_owned();
        let said = self.dialogue.since(start).to_owned();
        ensure!(status == "0.", "{command} ended with status {status}");
        self.dialogue.wait(PROMPT, COMMAND)?;
        // Without the echo.
        Ok(said.split_once('\n').map_or_else(String::new, |(_, rest)| rest.to_owned()))
    }

    /// Takes the first entry of GRUB's menu, the system that was there before.
    fn boot_debian(&mut self) -> Result<()> {
        self.dialogue.wait("*Debian GNU/Linux", MENU).context("GRUB's menu")?;
        self.enter()?;
        self.dialogue.wait(PROMPT, BOOT).context("Debian's own start")
    }

    /// Takes the marked entry, which says first what it loads.
    fn enter(&mut self) -> Result<()> {
        for _ in 0..TRIES {
            self.dialogue.send("\r")?;
            if self.dialogue.wait("Loading ", ANSWER).is_ok() {
                return Ok(());
            }
        }
        anyhow::bail!("GRUB does not start the entry")
    }

    /// Moves down in GRUB's menu to the entry called so, and takes it.
    fn choose(&mut self, title: &str) -> Result<()> {
        const DOWN: &str = "\x0e";
        self.dialogue.wait("*Debian GNU/Linux", MENU).context("GRUB's menu")?;
        let marked = format!("*{title}");
        for _ in 0..TRIES {
            self.dialogue.send(DOWN)?;
            if self.dialogue.wait(&marked, ANSWER).is_ok() {
                return self.enter();
            }
        }
        anyhow::bail!("GRUB's menu has no entry {title:?}")
    }

    /// The guest that has the console: its shell works, and it ends by switching itself off.
    fn visit_guest(&mut self, name: &str) -> Result<()> {
        let prompt = format!("{PROMPT_HOST}:/root# ");
        self.dialogue.wait(&prompt, BOOT).with_context(|| format!("guest {name}"))?;
        self.dialogue.send("echo \"@@\"$((6 * 7)) $(uname -s)\n")?;
        self.dialogue.wait("@@42 Linux", COMMAND).with_context(|| format!("guest {name}'s shell"))?;
        self.dialogue.wait(&prompt, COMMAND)?;
        self.dialogue.send("poweroff -f\n")?;
        self.dialogue.wait(&format!("(BH) guest {name}: ended: poweroff"), COMMAND)
    }

    /// Bulkhead by GRUB's menu, with both guests; then the machine starts again.
    fn run_guests(&mut self) -> Result<()> {
        self.choose("Bulkhead hypervisor")?;
        self.dialogue.wait(&format!("(BH) Bulkhead {VERSION}"), BOOT)?;
        for guest in GUESTS {
            self.dialogue.wait(&format!("(BH) guest {guest}: started"), BOOT)?;
        }
        for guest in GUESTS {
            self.visit_guest(guest)?;
        }
        // And on_last_guest=reboot.
        self.dialogue.wait("(BH) all guests ended", COMMAND)
    }

    fn purge(&mut self) -> Result<()> {
        self.run("dpkg --purge bulkhead")?;
        // But for the remark where our script, which dpkg removes last, had nothing to say.
        self.run("! grep -v '^###' /boot/grub/grub.cfg | grep -i bulkhead").context("the menu still has Bulkhead")?;
        let files = "/boot/bulkhead* /etc/grub.d/*bulkhead /etc/default/grub.d/bulkhead.cfg /usr/sbin/bulkhead-check /usr/share/doc/bulkhead \
            /var/lib/bulkhead";
        self.run(&format!("left=$(ls -d {files} 2>/dev/null); echo \"$left\"; [ -z \"$left\" ]"))
            .context("purge leaves something behind")?;
        self.run("ls /etc/bulkhead/one.cfg").map(drop).context("a guest of the administrator's own is gone")
    }

    fn leave(&mut self, how: &str) -> Result<()> {
        self.dialogue.send(&format!("/usr/local/sbin/leave {how}\n"))
    }

    /// On the machine as it was before.
    fn install(&mut self) -> Result<()> {
        self.dialogue.wait(PROMPT, BOOT).context("Debian's own start")?;
        self.run("mkdir /payload && tar -C /payload -xf /dev/vdb")?;
        let said = self.run("sh /payload/setup")?;
        for wanted in [
            "broken.cfg:2: memroy: unknown key; did you mean memory?",
            "AMD-V: NPT",
            "one (/etc/bulkhead/auto/one.cfg): 128 MiB, 1 vCPU, Linux 6.",
            "2 guests would start",
            "Found Bulkhead: /boot/bulkhead-",
        ] {
            ensure!(said.contains(wanted), "{wanted:?} was expected of the installation");
        }
        self.leave("poweroff")?;
        self.dialogue.wait_end(COMMAND)
    }

    /// On the machine with Bulkhead.
    fn live(&mut self) -> Result<()> {
        self.run_guests()?;
        self.boot_debian()?;
        self.purge()?;
        self.leave("reboot")?;
        let menu = self.dialogue.here();
        self.boot_debian()?;
        ensure!(!self.dialogue.since(menu).contains("Bulkhead hypervisor"), "the purged package is still in the menu");
        Ok(())
    }
}

/// Starts a machine, and has `talk` with it.
fn visit(host: &Host, talk: impl FnOnce(&mut Visit) -> Result<()>) -> Result<()> {
    let mut visit = Visit { dialogue: Dialogue::new(host.start()?)? };
    talk(&mut visit).with_context(|| {
        let text = visit.dialogue.transcript();
        let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        format!("the console's last lines:\n{}\n", lines[lines.len().saturating_sub(60)..].join("\n"))
    })
}

/// The disk of the machine on which Bulkhead has been installed: for whoever asks first, the others wait.
fn installed(assets: &Assets) -> Result<PathBuf> {
    let made = assets.installed.get_or_init(|| {
        let debian = assets.debian.as_ref().context("no Debian system was made")?;
        let disk = assets.work.join("installed.img");
        output(Command::new("cp").arg("--sparse=always").arg(&debian.disk).arg(&disk))?;
        let linux = DirectLinux {
            kernel: debian.kernel.clone(),
            initrd: debian.initrd.clone(),
            command_line: "root=LABEL=root ro console=ttyS0 quiet init=/usr/local/sbin/console-shell".into(),
        };
        let drives = vec![Drive::Kept(disk.clone()), Drive::ReadOnly(payload(assets)?)];
        let host = Host { firmware: Firmware::Bios, cpu: CPU, mib: MIB, drives, linux: Some(linux) };
        visit(&host, Visit::install).context("installing the package")?;
        Ok(disk)
    });
    made.as_ref().cloned().map_err(|error| anyhow::anyhow!("{error:#}"))
}

fn live(assets: &Assets, firmware: Firmware) -> Result<()> {
    let drives = vec![Drive::Forgotten(installed(assets)?)];
    visit(&Host { firmware, cpu: CPU, mib: MIB, drives, linux: None }, Visit::live)
}
