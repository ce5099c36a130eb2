//! What `bulkhead-check` says about machines: on AMD-V, on VT-x, and on neither. It runs under Debian's kernel, from an initramfs.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use runner::{
    cpio::Archive,
    dialogue::Dialogue,
    host::{DirectLinux, Host},
    image,
    machine::{Accel, Firmware, Machine, Spec, Vendor},
};

use super::Assets;

/// Runs before the default guest's own first process, and instead of it.
const INIT: &str = "#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
insmod /msr.ko
echo @@begin
/bulkhead-check --machine
echo \"@@status $? end\"
# The machine ends when that has been read; switching it off here would lose what its serial port still holds.
while :; do sleep 60; done
";

/// The initramfs of the default guest, with the program and its own first process put over it.
fn initramfs(assets: &Assets) -> Result<Vec<u8>> {
    let debian = assets.debian.as_ref().context("no Debian system was made")?;
    let mut bytes = assets.initramfs.clone().context("no initramfs was made")?;
    let mut more = Archive::default();
    more.file("check-init", 0o755, INIT.as_bytes());
    more.file("bulkhead-check", 0o755, &fs::read(&assets.check)?);
    more.file("msr.ko", 0o644, &fs::read(&debian.msr_module)?);
    // Linux reads one archive after the other.
    bytes.extend(more.finish());
    Ok(bytes)
}

const COMMAND_LINE: &str = "console=ttyS0 quiet rdinit=/check-init";

fn judge(machine: Machine, limit: Duration, status: u32, wanted: &[&str]) -> Result<()> {
    let mut dialogue = Dialogue::new(machine)?;
    let start = dialogue.wait("@@begin", limit).map(|()| dialogue.here());
    let end = dialogue.wait(" end", limit);
    let (Ok(start), Ok(())) = (start, end) else {
        anyhow::bail!("bulkhead-check did not end:\n{}", dialogue.transcript());
    };
    let said = dialogue.since(start);
    ensure!(said.contains(&format!("@@status {status} end")), "status {status} was expected:\n{said}");
    for wanted in wanted {
        ensure!(said.contains(wanted), "{wanted:?} was expected:\n{said}");
    }
    Ok(())
}

fn in_qemu(assets: &Assets, cpu: &'static str, status: u32, wanted: &[&str]) -> Result<()> {
    let debian = assets.debian.as_ref().context("no Debian system was made")?;
    let initrd = assets.work.join(format!("check-{cpu}.img"));
    fs::write(&initrd, initramfs(assets)?)?;
    let linux = DirectLinux { kernel: debian.kernel.clone(), initrd, command_line: COMMAND_LINE.into() };
    let host = Host { firmware: Firmware::Bios, cpu, mib: 512, drives: Vec::new(), linux: Some(linux) };
    judge(host.start()?, Duration::from_secs(300), status, wanted)
}

pub fn amd_v(assets: &Assets) -> Result<()> {
    in_qemu(
        assets,
        "EPYC-Rome",
        0,
        &["AMD-V: NPT", "serial port ttyS0: port 0x3f8", "console=com1", "This machine can run Bulkhead."],
    )
}

pub fn none(assets: &Assets) -> Result<()> {
    in_qemu(assets, "EPYC-Rome,-svm", 1, &["neither VT-x (VMX) nor AMD-V (SVM)", "This machine cannot run Bulkhead."])
}

pub fn vt_x(assets: &Assets) -> Result<()> {
    let debian = assets.debian.as_ref().context("no Debian system was made")?;
    let grub = assets.grub.as_ref().context("GRUB was not prepared")?;
    let initrd = assets.work.join("check-vt-x.img");
    fs::write(&initrd, initramfs(assets)?)?;
    let iso = assets.work.join("check-vt-x.iso");
    image::write_linux(grub, Path::new(&debian.kernel), &initrd, COMMAND_LINE, &iso)?;
    let machine = Machine::start(&Spec::new(Accel::Bochs, Vendor::Intel), &iso)?;
    judge(machine, Duration::from_secs(1500), 0, &["VT-x: EPT", "unrestricted guest", "This machine can run Bulkhead."])
}
