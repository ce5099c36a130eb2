//! The benchmark without Bulkhead, on the same emulated machine: the same guest straight on it, or as KVM's guest.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    bench,
    cpio::Archive,
    image::{Image, Modules, Protocol},
    lines::LineSplitter,
    machine::{Accel, Machine, Spec, Vendor},
    suite::Assets,
};

/// What runs the guest instead.
#[derive(Clone, Debug)]
pub enum Peer {
    /// The emulated machine itself.
    Native,
    Kvm(KvmHost),
}

/// A Linux that hosts one guest.
#[derive(Clone, Debug)]
pub struct KvmHost {
    pub kernel: PathBuf,
    /// In the order in which they are to be loaded.
    pub modules: Vec<PathBuf>,
    /// Its only process: needs no libraries.
    pub program: PathBuf,
}

/// Far more than is needed: Linux alone takes minutes on Bochs.
const LIMIT: Duration = Duration::from_secs(1200);

/// Measures the figures of one processor whose names contain `filter`, where Bulkhead's are measured.
pub fn measure(assets: &Assets, vendor: Vendor, filter: &str, peer: &Peer) -> Result<Vec<(String, u64)>> {
    let spec = bench::platform(vendor).spec();
    let guest = assets.guests.as_ref().context("the test guest was not built")?;
    let filter = if filter.is_empty() { String::new() } else { format!(" filter={filter}") };
    let image = match peer {
        Peer::Native => Image {
            hypervisor: guest.clone(),
            protocol: Protocol::Multiboot1,
            options: format!("test={} on=bare pm={:x}{filter}", bench::CASE, pm_timer(&spec)),
            modules: Modules::default(),
        },
        Peer::Kvm(host) => {
            let mut modules = Modules::default();
            modules.add_bytes("initrd", host.initramfs(guest, &format!("test={}{filter}", bench::CASE))?);
            // The same addresses in every run.
            let options = "console=ttyS0 quiet nokaslr panic=-1".into();
            Image { hypervisor: host.kernel.clone(), protocol: Protocol::Linux, options, modules }
        }
    };
    let iso = assets.work.join("peer.iso");
    image.write(&assets.grub, &iso)?;
    let mut machine = Machine::start(&spec, &iso)?;
    let lines = follow(&mut machine, LIMIT, |line| is_end(line).is_some())?;
    if !lines.iter().any(|l| is_end(l) == Some(true)) {
        bail!("the benchmark failed: {}\n{}", machine.messages(), lines.join("\n"));
    }
    Ok(lines.iter().filter_map(|l| bench::line(l)).collect())
}

/// Where the firmware of the emulated machine puts the ACPI PM timer: QEMU's Q35, and Bochs' PIIX4.
const fn pm_timer(spec: &Spec) -> u16 {
    if matches!(spec.accel, Accel::Bochs) { 0xb008 } else { 0x608 }
}

impl KvmHost {
    fn initramfs(&self, guest: &Path, options: &str) -> Result<Vec<u8>> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let mut archive = Archive::default();
        for folder in ["dev", "modules"] {
            archive.directory(folder);
        }
        // The kernel opens it for the first process, before devtmpfs is mounted.
        archive.character_device("dev/console", 5, 1);
        archive.file("init", 0o755, &read(&self.program)?);
        archive.file("guest", 0o644, &read(guest)?);
        archive.file("guest.cmdline", 0o644, format!("{options} memory=256 vcpus=1").as_bytes());
        for (number, module) in self.modules.iter().enumerate() {
            let name = module.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            archive.file(&format!("modules/{number}-{name}"), 0o644, &read(module)?);
        }
        Ok(archive.finish())
    }
}

/// Whether this line is the guest's last: then, whether all went well.
fn is_end(line: &str) -> Option<bool> {
    if line.starts_with("FAIL: ") || line.contains("Kernel panic") {
        return Some(false);
    }
    (line.strip_prefix("pass ") == Some(bench::CASE)).then_some(true)
}

/// The machine's output until its last line, the emulator's end, or the time is over. The machine is then ended.
pub(crate) fn follow(machine: &mut Machine, limit: Duration, is_last: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let mut output = machine.take_output().context("the machine's console is taken")?;
    let (sender, receiver) = channel();
    let reader = thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = output.read(&mut buffer) {
            if sender.send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    let start = Instant::now();
    let (mut splitter, mut lines) = (LineSplitter::default(), Vec::new());
    while !lines.iter().any(|l: &String| is_last(l)) && start.elapsed() < limit {
        match receiver.recv_timeout(Duration::from_millis(100)) {
            Ok(bytes) => splitter.push(&bytes, |line| lines.push(line.to_owned())),
            // The reader finds out by this that the emulator has ended.
            Err(RecvTimeoutError::Timeout) => drop(machine.try_wait()),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    machine.kill();
    drop(receiver);
    let _ = reader.join();
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_end_is_the_guests_last_line() {
        assert_eq!(is_end("pass bench"), Some(true));
        assert_eq!(is_end("FAIL: panicked at x"), Some(false));
        assert_eq!(is_end("[    1.0] Kernel panic - not syncing"), Some(false));
        for line in ["case bench", "bench cpuid 5", "pass bench-pair", ""] {
            assert_eq!(is_end(line), None, "{line}");
        }
    }

    #[test]
    fn following_stops_at_the_end_and_when_the_emulator_does() {
        let play = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            follow(&mut Machine::from_program(command).unwrap(), Duration::from_secs(60), |l| is_end(l).is_some()).unwrap()
        };
        assert_eq!(play("echo bench cpuid 5; echo pass bench; sleep 1000"), ["bench cpuid 5", "pass bench"]);
        assert_eq!(play("echo bench cpuid 5"), ["bench cpuid 5"]);
    }
}
