//! The life of an installation, on a machine with Debian: install, choose the entry in GRUB's serial menu, run the guests, upgrade, purge.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use runner::{
    dialogue::Dialogue,
    feed::PROMPT_HOST,
    host::{Drive, Host},
    machine::Firmware,
};

use super::{Assets, UPGRADES, disk::PROMPT};
use crate::package::{VERSION, debian_version, output};

pub fn bios(assets: &Assets) -> Result<()> {
    live(assets, Firmware::Bios)
}

pub fn uefi(assets: &Assets) -> Result<()> {
    live(assets, Firmware::Uefi)
}

/// Far more than is needed, because the machine that this runs on may be slow and busy.
const BOOT: Duration = Duration::from_secs(400);
const COMMAND: Duration = Duration::from_secs(300);
const MENU: Duration = Duration::from_secs(180);

/// Guests: their kernel is Debian's own, on a partition of its own; the ramdisk's name is as odd as names get.
const RAMDISK: &str = "/srv/my guests/it's \"the\" ramdisk.img";
const GUESTS: [&str; 2] = ["one", "two"];

fn config(name: &str) -> String {
    let ramdisk = RAMDISK.replace('"', "\\\"");
    format!("name = \"{name}\"\nmemory = 128\nkernel = \"/vmlinuz\"\nramdisk = \"{ramdisk}\"\nextra = \"console=ttyS0 quiet\"\n")
}

/// A drive that is a tar archive: the packages, the guests.
fn payload(assets: &Assets, name: &str) -> Result<std::path::PathBuf> {
    let folder = assets.work.join(format!("payload-{name}"));
    fs::create_dir(&folder)?;
    fs::copy(&assets.products.deb, folder.join("now.deb"))?;
    for (products, name) in assets.upgrades.iter().zip(["next.deb", "last.deb"]) {
        fs::copy(&products.deb, folder.join(name))?;
    }
    fs::write(folder.join("ramdisk.img"), assets.initramfs.as_ref().context("no initramfs was made")?)?;
    for guest in GUESTS {
        fs::write(folder.join(format!("{guest}.cfg")), config(guest))?;
    }
    fs::write(folder.join("broken.cfg"), "name = \"broken\"\nmemroy = 5\n")?;
    fs::write(folder.join("setup"), include_str!("setup"))?;
    let tar = assets.work.join(format!("payload-{name}.tar"));
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
        self.dialogue.send("\r")?;
        self.dialogue.wait(PROMPT, BOOT).context("Debian's own start")
    }

    /// Moves down in GRUB's menu to the entry called so, and takes it.
    fn choose(&mut self, title: &str) -> Result<()> {
        const DOWN: &str = "\x0e";
        self.dialogue.wait("*Debian GNU/Linux", MENU).context("GRUB's menu")?;
        let marked = format!("*{title}");
        for _ in 0..6 {
            self.dialogue.send(DOWN)?;
            if self.dialogue.wait(&marked, Duration::from_secs(5)).is_ok() {
                return self.dialogue.send("\r");
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

    fn all(&mut self, firmware: Firmware) -> Result<()> {
        self.boot_debian()?;
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
        self.run("grep -c \"'bulkhead\" /boot/grub/grub.cfg")?;
        self.dialogue.send("reboot\n")?;

        self.choose("Bulkhead hypervisor")?;
        self.dialogue.wait(&format!("(BH) Bulkhead {VERSION}"), BOOT)?;
        for guest in GUESTS {
            self.dialogue.wait(&format!("(BH) guest {guest}: started"), BOOT)?;
        }
        for guest in GUESTS {
            self.visit_guest(guest)?;
        }
        self.dialogue.wait("(BH) all guests ended", COMMAND)?;

        // on_last_guest=reboot.
        self.boot_debian()?;
        if firmware == Firmware::Bios {
            self.upgrade()?;
        }
        self.run("dpkg --purge bulkhead")?;
        self.run("! grep -i bulkhead /boot/grub/grub.cfg")?;
        let files = "/boot/bulkhead* /etc/grub.d/*bulkhead /etc/default/grub.d/bulkhead.cfg /usr/sbin/bulkhead-check /usr/share/doc/bulkhead \
            /var/lib/bulkhead";
        self.run(&format!("left=$(ls -d {files} 2>/dev/null); echo \"$left\"; [ -z \"$left\" ]"))
            .context("purge leaves something behind")?;
        self.run("ls /etc/bulkhead/one.cfg").context("a guest of the administrator's own is gone")?;
        self.dialogue.send("reboot\n")?;

        let menu = self.dialogue.here();
        self.boot_debian()?;
        ensure!(!self.dialogue.since(menu).contains("Bulkhead hypervisor"), "the purged package is still in the menu");
        self.dialogue.send("poweroff -f\n")
    }

    /// The version before stays beside the new one, and goes with the next.
    fn upgrade(&mut self) -> Result<()> {
        let image = |version: &str| format!("/boot/bulkhead-{}.elf.gz", debian_version(version));
        let list = "ls -1v /boot/bulkhead-*";
        self.run("dpkg -i /payload/next.deb")?;
        let said = self.run(list)?;
        ensure!(
            said.contains(&image(VERSION)) && said.contains(&image(UPGRADES[0])),
            "an upgrade keeps the version before: {said}"
        );
        let order = self.run("grep -o \"menuentry 'Bulkhead [0-9][^ ']*'\" /boot/grub/grub.cfg")?;
        let (new, old) = (order.find(&debian_version(UPGRADES[0])), order.find(&format!("Bulkhead {VERSION}")));
        ensure!(new.is_some() && old.is_some() && new < old, "the newest version comes first: {order}");
        self.run("dpkg -i /payload/last.deb")?;
        let said = self.run(list)?;
        ensure!(
            !said.contains(&image(VERSION)) && said.contains(&image(UPGRADES[0])) && said.contains(&image(UPGRADES[1])),
            "an upgrade keeps one version only: {said}"
        );
        self.run("dpkg -i /payload/next.deb")?;
        let said = self.run(list)?;
        ensure!(said.contains(&image(UPGRADES[0])) && said.contains(&image(UPGRADES[1])), "so does a downgrade: {said}");
        Ok(())
    }
}

fn live(assets: &Assets, firmware: Firmware) -> Result<()> {
    let debian = assets.debian.as_ref().context("no Debian system was made")?;
    let name = if firmware == Firmware::Bios { "bios" } else { "uefi" };
    let drives = vec![Drive::Forgotten(debian.disk.clone()), Drive::ReadOnly(payload(assets, name)?)];
    let host = Host { firmware, cpu: "EPYC-Rome", mib: 1024, drives, linux: None };
    let mut visit = Visit { dialogue: Dialogue::new(host.start()?)? };
    visit.all(firmware).with_context(|| {
        let text = visit.dialogue.transcript();
        let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        format!("the console's last lines:\n{}\n", lines[lines.len().saturating_sub(60)..].join("\n"))
    })
}
