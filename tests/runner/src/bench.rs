//! Runs the benchmark: the test guest's case that measures, and the size of what is measured.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::{
    boots,
    image::Modules,
    list::{Expect, GUEST_KERNEL, Platform},
    machine::Vendor,
    suite::{self, Assets, Limits, Record},
};

/// The case of the test guest.
pub const CASE: &str = "bench";
/// What is measured together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Single operations, by the test guest, and the image's size.
    Operations,
    /// A whole boot of Linux.
    Boot,
}

impl Part {
    pub const ALL: [Self; 2] = [Self::Operations, Self::Boot];

    /// The test that nothing in it costs more than what is recorded.
    #[must_use]
    pub const fn test(self) -> &'static str {
        match self {
            Self::Operations => "bench-budget",
            Self::Boot => "bench-boot",
        }
    }

    /// The part that measures the figure of this name.
    #[must_use]
    pub fn of(figure: &str) -> Self {
        if figure.starts_with(boots::PREFIX) { Self::Boot } else { Self::Operations }
    }
}

/// Where this vendor's figures are measured: the emulator in which they are the same in every run.
#[must_use]
pub const fn platform(vendor: Vendor) -> Platform {
    match vendor {
        Vendor::Amd => Platform::SvmIcount,
        Vendor::Intel => Platform::VmxBochs,
    }
}

/// A guest of the benchmark: one set of operations.
struct Guest {
    guest: &'static str,
    /// What follows the case on the command line.
    options: &'static str,
    vcpus: u32,
    memory_mib: u32,
}

const GUESTS: &[Guest] = &[
    // What it touches first reaches up to 224 MiB.
    Guest { guest: "bench", options: "", vcpus: 1, memory_mib: 256 },
    Guest { guest: "bench-pair", options: " part=pair", vcpus: 2, memory_mib: 32 },
    Guest { guest: "bench-lock", options: " part=lock", vcpus: 8, memory_mib: 32 },
];

impl Guest {
    fn config(&self, filter: &str) -> String {
        let filter = if filter.is_empty() { String::new() } else { format!(" filter={filter}") };
        format!(
            "name = \"{}\"\ntype = \"hvm\"\nmemory = {}\nvcpus = {}\nkernel = \"{GUEST_KERNEL}\"\n\
             cmdline = \"test={CASE}{}{filter}\"\nisa_debug_exit = 0xf4\n\
             on_poweroff = \"destroy\"\non_reboot = \"destroy\"\non_crash = \"destroy\"\n",
            self.guest, self.memory_mib, self.vcpus, self.options
        )
    }
}

/// Measures the figures whose names contain `filter`: each with its name.
pub fn measure(assets: &Assets, vendor: Vendor, filter: &str) -> Result<Vec<(String, u64)>> {
    let spec = platform(vendor).spec();
    let mut modules = Modules::default();
    suite::add_guest_kernel(assets, &mut modules)?;
    for part in GUESTS {
        modules.add_bytes(&format!("{}.cfg", part.guest), part.config(filter).into_bytes());
    }
    let mut record = Record::default();
    let outcome = suite::boot(assets, &spec, "sequential", modules, "", Limits::between_events(&spec), &mut record)?;
    for part in GUESTS {
        let result = match outcome.ends().find(|(guest, _)| *guest == part.guest) {
            Some((_, how)) => Expect::Pass.check(how),
            None => Err(outcome.end.to_string()),
        };
        if let Err(reason) = result {
            bail!("the guest {} failed: {reason}\n{}", part.guest, record.lines.join("\n"));
        }
    }
    let mut values: Vec<_> = record.lines.iter().filter_map(|l| line(l)).collect();
    let image = fs::read(&assets.hypervisor).with_context(|| format!("cannot read {}", assets.hypervisor.display()))?;
    let loaded = loaded_bytes(&image).with_context(|| not_elf(&assets.hypervisor))?;
    let sizes = [("image-loaded", loaded), ("image-file", image.len() as u64)];
    values.extend(sizes.iter().filter(|(name, _)| name.contains(filter)).map(|(name, size)| ((*name).to_owned(), *size)));
    Ok(values)
}

fn not_elf(path: &Path) -> String {
    format!("{} is no 64-bit ELF file", path.display())
}

/// `bench NAME VALUE`
pub(crate) fn line(line: &str) -> Option<(String, u64)> {
    let mut words = line.split_whitespace();
    match (words.next(), words.next(), words.next().and_then(|v| v.parse().ok()), words.next()) {
        (Some("bench"), Some(name), Some(value), None) => Some((name.to_owned(), value)),
        _ => None,
    }
}

/// Bytes of an ELF file that a boot loader copies to memory: those of all segments of type PT_LOAD. `None` if it is none, or cut off.
fn loaded_bytes(elf: &[u8]) -> Option<u64> {
    let number = |at: usize, size: usize| Some(elf.get(at..at + size)?.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)));
    if elf.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let (headers, size, count) = (number(32, 8)? as usize, number(54, 2)? as usize, number(56, 2)? as usize);
    let mut bytes = 0;
    for header in (0..count).map(|n| headers + n * size) {
        if number(header, 4)? == 1 {
            bytes += number(header + 32, 8)?;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_guest() {
        assert_eq!(line("bench cpuid 120"), Some(("cpuid".into(), 120)));
        for text in ["bench cpuid", "bench cpuid x", "bench-interrupts 5", "bench a 1 2", ""] {
            assert_eq!(line(text), None, "{text}");
        }
    }

    #[test]
    fn only_loaded_segments_count() {
        let mut elf = vec![0; 64 + 3 * 56];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        [elf[32], elf[54], elf[56]] = [64, 56, 3];
        for (segment, (kind, bytes)) in [(1, 100), (2, 1000), (1, 7)].into_iter().enumerate() {
            let at = 64 + segment * 56;
            [elf[at], elf[at + 32], elf[at + 33]] = [kind, bytes as u8, (bytes >> 8) as u8];
        }
        assert_eq!(loaded_bytes(&elf), Some(107));
        assert_eq!(loaded_bytes(&elf[..200]), None);
        assert_eq!(loaded_bytes(b"\x7fELF\x01"), None);
    }

    #[test]
    fn parts_say_what_they_do() {
        assert!(GUESTS[0].config("").contains("cmdline = \"test=bench\"\n"));
        assert!(GUESTS[1].config("ipi").contains("cmdline = \"test=bench part=pair filter=ipi\"\n"));
    }
}
