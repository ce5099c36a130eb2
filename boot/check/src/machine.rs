//! Whether the CPUs can run guests: the hypervisor's own rules (`arch::vmx::caps`, `arch::svm::caps`), on registers read through Linux.

use std::{
    cell::RefCell,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use arch::{
    cpu,
    svm::{self, caps::VM_CR_SVMDIS},
    vmx::caps::{Controls, RawCapabilities, feature_control},
};
use x86defs::{
    CpuidResult, VirtFeature,
    msr::{AMD_VM_CR, IA32_FEATURE_CONTROL},
};

use crate::{
    firmware::Firmware,
    guests::Limits,
    report::{Mark, Report},
};

/// The CPUs, as far as they matter: real ones, or a test's.
pub struct Host {
    pub cpuid: Box<dyn Fn(u32, u32) -> CpuidResult>,
    /// MSRs of one CPU.
    pub msr: Box<dyn Fn(usize, u32) -> io::Result<u64>>,
    /// The numbers of the CPUs that are on.
    pub cpus: Vec<usize>,
    /// Bytes of RAM; `None` if that cannot be found out.
    pub memory: Option<u64>,
}

impl Host {
    /// This machine. Loads Linux's `msr` module if that is allowed and has not been done.
    pub fn of_this_machine() -> Self {
        let msr_file = |cpu: usize| PathBuf::from(format!("/dev/cpu/{cpu}/msr"));
        if !msr_file(0).exists() {
            // No matter why it fails: the reads will say.
            let _ = Command::new("modprobe").args(["-q", "msr"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        let read = move |cpu: usize, index: u32| {
            let mut value = [0; 8];
            File::open(msr_file(cpu))?.read_exact_at(&mut value, u64::from(index))?;
            Ok(u64::from_le_bytes(value))
        };
        Self { cpuid: Box::new(cpu::cpuid), msr: Box::new(read), cpus: online_cpus(), memory: memory(Path::new("/")) }
    }

    pub fn limits(&self) -> Limits {
        Limits { cpus: u32::try_from(self.cpus.len()).unwrap_or(u32::MAX), memory: self.memory }
    }
}

fn online_cpus() -> Vec<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    parse_cpus(&text).unwrap_or_else(|| vec![0])
}

/// `0-3,5`
fn parse_cpus(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        cpus.extend((first..=last).take(4096));
    }
    Some(cpus)
}

/// RAM by the firmware's memory map, which root can see, else what Linux has of it.
fn memory(root: &Path) -> Option<u64> {
    let number = |path: PathBuf| -> Option<u64> {
        let text = std::fs::read_to_string(path).ok()?;
        u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
    };
    let mut sum = 0;
    for entry in std::fs::read_dir(root.join("sys/firmware/memmap")).into_iter().flatten().flatten() {
        let path = entry.path();
        if std::fs::read_to_string(path.join("type")).is_ok_and(|kind| kind.trim() == "System RAM") {
            sum += number(path.join("end"))?.saturating_sub(number(path.join("start"))?).saturating_add(1);
        }
    }
    if sum > 0 {
        return Some(sum);
    }
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let kib: u64 =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// What virtualisation there is, by CPUID alone.
enum Kind {
    Svm,
    Vmx,
}

/// Looks at everything that the machine must have or better had.
pub fn check(host: &Host, firmware: &Firmware, report: &mut Report) {
    let before = report.count(Mark::MachineFails) + report.count(Mark::Unknown);
    cpu_lines(host, report);
    match host.memory {
        Some(bytes) => report.add(Mark::Good, format!("memory: {} MiB", bytes >> 20)),
        None => report.add(Mark::Unknown, "memory: Linux does not tell how much there is"),
    }
    firmware.check(report);
    report.close(
        match (report.count(Mark::MachineFails), report.count(Mark::MachineFails) + report.count(Mark::Unknown) - before) {
            (0, 0) => "This machine can run Bulkhead.",
            (0, _) => "This machine can perhaps run Bulkhead; something could not be looked at.",
            _ => "This machine cannot run Bulkhead.",
        },
    );
}

fn cpu_lines(host: &Host, report: &mut Report) {
    let cpuid = |leaf| (host.cpuid)(leaf, 0);
    let has_extended = |leaf| cpuid(0x8000_0000).eax >= leaf;
    let vendor = cpuid(0);
    let vendor: Vec<u8> = [vendor.ebx, vendor.edx, vendor.ecx].into_iter().flat_map(u32::to_le_bytes).collect();
    let cpus = host.cpus.len();
    report.add(
        Mark::Good,
        format!("CPU: {} ({}), {cpus} CPU{}", brand(host), String::from_utf8_lossy(&vendor), if cpus == 1 { "" } else { "s" }),
    );
    let extended = if has_extended(0x8000_0001) { cpuid(0x8000_0001) } else { CpuidResult::default() };
    for (bit, name) in [(29, "long mode (64-bit mode)"), (20, "the no-execute bit (NX/XD), or the firmware has disabled it")] {
        if extended.edx >> bit & 1 == 0 {
            report.add(Mark::MachineFails, format!("the CPU lacks {name}"));
        }
    }
    let kind = if extended.ecx & 1 << 2 != 0 {
        Kind::Svm
    } else if cpuid(1).ecx & 1 << 5 != 0 {
        Kind::Vmx
    } else {
        // In the hypervisor's words.
        report.add(Mark::MachineFails, format!("{}", arch::virt::NoVirtualisation::NoFeature));
        if cpuid(1).ecx & 1 << 31 != 0 {
            report.add(Mark::Note, "this is a virtual machine: nested virtualisation has to be switched on for it, outside");
        }
        return;
    };
    let (name, found) = match kind {
        Kind::Svm => ("AMD-V", svm_verdict(host)),
        Kind::Vmx => ("VT-x", vmx_verdict(host)),
    };
    match found {
        Verdict::Can { features, not_all } => {
            let used: Vec<&str> = features.iter().filter(|f| f.used).map(|f| f.name).collect();
            report.add(Mark::Good, format!("{name}: {}", used.join(", ")));
            for (cpu, reason) in not_all {
                report.add(Mark::Note, format!("CPU {cpu} cannot run guests: {reason}"));
            }
        }
        Verdict::Cannot(reason) => report.add(Mark::MachineFails, reason),
        Verdict::CannotTell(error) => {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => "run this as root",
                _ => "is Linux's msr module there (modprobe msr)?",
            };
            report.add(
                Mark::Unknown,
                format!("{name}: the CPU has it; whether the firmware lets it be used is in an MSR: {error}; {hint}"),
            );
        }
    }
}

/// May Bulkhead use the CPUs' virtualisation?
enum Verdict {
    Can {
        features: Vec<VirtFeature>,
        /// CPUs beside the boot CPU that cannot.
        not_all: Vec<(usize, String)>,
    },
    Cannot(String),
    CannotTell(io::Error),
}

fn svm_verdict(host: &Host) -> Verdict {
    let leaf =
        if (host.cpuid)(0x8000_0000, 0).eax >= 0x8000_000a { (host.cpuid)(0x8000_000a, 0) } else { CpuidResult::default() };
    let caps = svm::caps::Caps::from_cpuid(leaf);
    if let Some(name) = caps.missing() {
        return Verdict::Cannot(svm::Unsupported::Missing(name).to_string());
    }
    each_cpu(
        host,
        |cpu| {
            let value = (host.msr)(cpu, AMD_VM_CR)?;
            Ok((value & VM_CR_SVMDIS != 0).then(|| svm::Unsupported::LockedByFirmware(value).to_string()))
        },
        || caps.features().to_vec(),
    )
}

fn vmx_verdict(host: &Host) -> Verdict {
    let boot = host.cpus.first().copied().unwrap_or(0);
    let features = RefCell::new(Vec::new());
    each_cpu(
        host,
        |cpu| {
            if let Err(locked) = feature_control((host.msr)(cpu, IA32_FEATURE_CONTROL)?) {
                return Ok(Some(locked.to_string()));
            }
            if cpu != boot {
                return Ok(None);
            }
            let failed = RefCell::new(None);
            let raw = RawCapabilities::read(|index| {
                (host.msr)(cpu, index).unwrap_or_else(|error| {
                    failed.borrow_mut().get_or_insert(error);
                    0
                })
            });
            if let Some(error) = failed.into_inner() {
                return Err(error);
            }
            Ok(match Controls::choose(&raw) {
                Ok(controls) => {
                    *features.borrow_mut() = controls.features(&raw).to_vec();
                    None
                }
                Err(reason) => Some(reason.to_string()),
            })
        },
        || features.take(),
    )
}

/// Asks `look` for each CPU's reason not to run guests. The boot CPU, which is Linux's first, must run them; Bulkhead leaves others alone that cannot.
fn each_cpu(
    host: &Host,
    look: impl Fn(usize) -> io::Result<Option<String>>,
    features: impl FnOnce() -> Vec<VirtFeature>,
) -> Verdict {
    let mut not_all = Vec::new();
    for (number, &cpu) in host.cpus.iter().enumerate() {
        match look(cpu) {
            Ok(None) => {}
            Ok(Some(reason)) if number == 0 => return Verdict::Cannot(reason),
            Ok(Some(reason)) => not_all.push((cpu, reason)),
            Err(error) => return Verdict::CannotTell(error),
        }
    }
    Verdict::Can { features: features(), not_all }
}

fn brand(host: &Host) -> String {
    if (host.cpuid)(0x8000_0000, 0).eax < 0x8000_0004 {
        return "no brand string".into();
    }
    let bytes: Vec<u8> = (0x8000_0002..=0x8000_0004)
        .map(|leaf| (host.cpuid)(leaf, 0))
        .flat_map(|r| [r.eax, r.ebx, r.ecx, r.edx])
        .flat_map(u32::to_le_bytes)
        .take_while(|&b| b != 0)
        .collect();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

#[cfg(test)]
mod tests;
