//! A machine in QEMU that boots from a disk, as a host does that Bulkhead is installed on.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, ensure};

use crate::machine::{Firmware, Machine, add_uefi, qemu_quote};

/// A drive, and what becomes of what is written to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Drive {
    /// Is written.
    Kept(PathBuf),
    /// Is written to a copy that ends with the machine.
    Forgotten(PathBuf),
    ReadOnly(PathBuf),
}

/// Linux, started by QEMU itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectLinux {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub command_line: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    pub firmware: Firmware,
    /// QEMU's name for it.
    pub cpu: &'static str,
    pub mib: u32,
    pub drives: Vec<Drive>,
    /// Instead of what a boot loader on the first drive would start.
    pub linux: Option<DirectLinux>,
}

impl Host {
    /// Starts the machine. Its first serial port is its console.
    pub fn start(&self) -> Result<Machine> {
        let work = tempfile::tempdir()?;
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-nodefaults", "-no-user-config", "-vga", "std", "-display", "none", "-monitor", "none"]);
        qemu.args(["-machine", "q35,accel=tcg", "-cpu", self.cpu, "-m", &format!("{}M", self.mib)]);
        qemu.args(["-device", "virtio-rng-pci"]);
        if self.firmware == Firmware::Uefi {
            add_uefi(&mut qemu, work.path())?;
        }
        for drive in &self.drives {
            let (path, how) = match drive {
                // The result counts only if the machine ended in order.
                Drive::Kept(path) => (path, "cache=unsafe"),
                Drive::Forgotten(path) => (path, "snapshot=on"),
                Drive::ReadOnly(path) => (path, "readonly=on"),
            };
            ensure!(path.is_file(), "there is no file {}", path.display());
            qemu.arg("-drive").arg(format!("if=virtio,format=raw,{how},file={}", qemu_quote(path)?));
        }
        if let Some(DirectLinux { kernel, initrd, command_line }) = &self.linux {
            qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd).arg("-append").arg(command_line);
        }
        qemu.args(["-chardev", "stdio,id=com1,signal=off", "-serial", "chardev:com1"]);
        Machine::from_emulator(qemu, work)
    }
}
