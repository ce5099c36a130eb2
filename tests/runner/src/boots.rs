//! Measures a whole boot: what Linux takes to its first user process, and what the host takes for itself.

use anyhow::{Context, Result, bail};

use crate::{
    bench,
    cpio::Archive,
    image::Modules,
    list::{Expect, LINUX_MEMORY},
    machine::Vendor,
    suite::{self, Assets, Limits, Record},
};

/// How names of these figures start.
pub const PREFIX: &str = "boot-";

const GUEST: &str = "debian";

/// Exits of this kind are Bochs' doing, which holds back host interrupts while a guest has interrupts disabled.
const EMULATORS: &str = "turn-over";

/// The hypervisor's debug messages have the figures.
const OPTIONS: &str = "sequential loglvl=debug";

/// The figures' names.
pub const NAMES: [&str; 5] = ["boot-linux-instructions", "boot-linux-exits", "boot-hand-over", "boot-host-kib", "boot-guest-kib"];

/// What a boot has taken.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Boot {
    /// Each with its name.
    pub figures: Vec<(String, u64)>,
    /// Linux's exits by their kind.
    pub exits: Vec<(String, u64)>,
}

/// A guest's first user process, the smallest there is: asks for access to I/O ports, and tells the hypervisor by the debug-exit port that it
/// runs, which ends the guest.
const CODE: [u8; 18] = [
    0xb8, 172, 0, 0, 0, // mov eax, 172 (iopl)
    0xbf, 3, 0, 0, 0, // mov edi, 3
    0x0f, 0x05, // syscall
    0xb0, 0x10, // mov al, 0x10
    0xe6, 0xf4, // out 0xf4, al
    0xeb, 0xfe, // jmp, for ever
];

/// A static 64-bit ELF program of this code.
fn program(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let mut elf = Vec::new();
    let half = |elf: &mut Vec<u8>, numbers: &[u16]| numbers.iter().for_each(|n| elf.extend(n.to_le_bytes()));
    let word = |elf: &mut Vec<u8>, numbers: &[u32]| numbers.iter().for_each(|n| elf.extend(n.to_le_bytes()));
    let long = |elf: &mut Vec<u8>, numbers: &[u64]| numbers.iter().for_each(|n| elf.extend(n.to_le_bytes()));
    // 64-bit, little-endian, version 1; an executable for x86-64.
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    half(&mut elf, &[2, 62]);
    word(&mut elf, &[1]);
    // Entry point, program headers, no section headers.
    long(&mut elf, &[BASE + HEADERS, 64, 0]);
    word(&mut elf, &[0]);
    half(&mut elf, &[64, 56, 1, 64, 0, 0]);
    // One segment, to be loaded, readable and executable: all of the file.
    let size = HEADERS + code.len() as u64;
    word(&mut elf, &[1, 5]);
    long(&mut elf, &[0, BASE, BASE, size, size, 0x1000]);
    elf.extend(code);
    elf
}

fn config(kernel: &str, ramdisk: &str) -> String {
    format!(
        "name = \"{GUEST}\"\ntype = \"hvm\"\nmemory = {}\nvcpus = 1\nkernel = \"{kernel}\"\nramdisk = \"{ramdisk}\"\n\
         cmdline = \"console=ttyS0 quiet\"\nhpet = 0\nisa_debug_exit = 0xf4\non_poweroff = \"destroy\"\non_reboot = \"destroy\"\non_crash = \"destroy\"\n",
        LINUX_MEMORY.mib()
    )
}

/// Boots Debian's kernel with the usual initramfs to its first user process.
pub fn measure(assets: &Assets, vendor: Vendor) -> Result<Boot> {
    let spec = bench::platform(vendor).spec();
    let (kernel, initramfs) = assets.linux.as_ref().context("there is no Linux")?;
    let mut modules = Modules::default();
    let kernel = modules.add_file(kernel);
    // Of two archives one after another, the second one's file counts.
    let mut first = Archive::default();
    first.file("init", 0o755, &program(&CODE));
    let ramdisk = modules.add_bytes("initrd.img", [initramfs.as_slice(), &first.finish()].concat());
    modules.add_bytes(&format!("{GUEST}.cfg"), config(&kernel, &ramdisk).into_bytes());
    let mut record = Record::default();
    let outcome = suite::boot(assets, &spec, OPTIONS, modules, "", Limits::for_long(&spec), &mut record)?;
    let result = match outcome.ends().next() {
        Some((_, how)) => Expect::Pass.check(how),
        None => Err(outcome.end.to_string()),
    };
    if let Err(reason) = result {
        bail!("Linux did not get to its first user process: {reason}\n{}", record.lines.join("\n"));
    }
    read(&record.lines).with_context(|| format!("the log lacks a figure:\n{}", record.lines.join("\n")))
}

/// Finds the figures in the log.
fn read(lines: &[String]) -> Option<Boot> {
    let after = |mark: &str| lines.iter().find_map(|line| Some(line.split_once(mark)?.1));
    let number = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok();
    let guest = format!("guest {GUEST}: ");
    let vcpu = after(&format!("{guest}vCPU 0: TSC "))?;
    let beside = lines.iter().filter_map(|line| Some(line.split_once(&guest)?.1)).find(|text| text.contains("beside its RAM"))?;
    let exits: Vec<(String, u64)> = vcpu
        .split_once(": ")?
        .1
        .split(", ")
        .map(|kind| {
            let (name, count) = kind.split_once(' ')?;
            Some((name.to_owned(), number(count)?))
        })
        .collect::<Option<_>>()?;
    let values = [
        number(vcpu)?,
        exits.iter().filter(|(kind, _)| kind != EMULATORS).map(|(_, count)| count).sum(),
        number(beside.split_once("ready ")?.1)?,
        number(after("host: ")?)?,
        number(beside)?,
    ];
    Some(Boot { figures: NAMES.into_iter().map(str::to_owned).zip(values).collect(), exits })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_in_the_log() {
        let log = "(BH) host: 3000 KiB of memory: image 2000, allocated 1000\n(BH) guest debian: 256 MiB, 1 vCPU, Linux 6.1.0\n\
                   (BH) guest debian: 120 KiB of memory beside its RAM; ready 70000000 TSC ticks after the hand-over\n\
                   (BH) guest debian: started\n\
                   (BH) guest debian: vCPU 0: TSC 5900000000, 2000 exits, 30 interrupts: port-read 1500, cpuid 500, turn-over 90\n";
        let lines: Vec<String> = log.lines().map(str::to_owned).collect();
        let boot = read(&lines).unwrap();
        let figures: Vec<(&str, u64)> = boot.figures.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(
            figures,
            [
                ("boot-linux-instructions", 5_900_000_000),
                ("boot-linux-exits", 2000),
                ("boot-hand-over", 70_000_000),
                ("boot-host-kib", 3000),
                ("boot-guest-kib", 120)
            ]
        );
        assert_eq!(boot.exits, [("port-read".to_owned(), 1500), ("cpuid".to_owned(), 500), ("turn-over".to_owned(), 90)]);
        for missing in 0..lines.len() {
            let fewer: Vec<String> = lines.iter().enumerate().filter(|(n, _)| *n != missing).map(|(_, l)| l.clone()).collect();
            assert_eq!(read(&fewer).is_none(), [0, 2, 4].contains(&missing), "without line {missing}");
        }
    }

    #[test]
    fn the_first_process_is_a_program_that_linux_takes() {
        let elf = program(&CODE);
        assert_eq!(elf.len(), 64 + 56 + CODE.len());
        assert_eq!(elf[24..32], 0x40_0078u64.to_le_bytes(), "the entry point is behind the headers");
    }
}
