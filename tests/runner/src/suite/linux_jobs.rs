//! Boots with a Linux in them.

use std::{sync::mpsc::Sender, time::Instant};

use anyhow::{Context, Result};

use super::{Assets, Failure, Limits, Record, Report, boot, test_name};
use crate::{
    image::Modules,
    lines::GuestEnd,
    linux,
    list::{self, LinuxTest, Platform},
    machine::Spec,
    session::End,
    variants::Variant,
};

pub(super) fn run(assets: &Assets, test: LinuxTest, checks: &[&'static str], sender: &Sender<Report>) -> Result<()> {
    let start = Instant::now();
    let spec = Spec { cpus: test.cpus, ..test.on.spec() };
    let (kernel, initramfs) = assets.linux.as_ref().context("there is no Linux")?;
    let mut modules = Modules::default();
    let kernel = modules.add_file(kernel);
    let ramdisk = modules.add_bytes("initrd.img", initramfs.clone());
    let config = linux_config(&kernel, &ramdisk, test.vcpus);
    modules.add_bytes("debian.cfg", config.into_bytes());
    let mut record = Record::default();
    let limits = Limits::for_long(&spec);
    let outcome = boot(assets, &spec, "parallel", modules, &linux::script(&test), limits, &mut record)?;
    let console = record.lines.join("\n");
    let mut lines = record.lines;
    // What keeps Linux from its end explains most other failures.
    let end = if matches!(outcome.end, End::AllEnded) { String::new() } else { format!(" ({})", outcome.end) };
    let crash = outcome.ends().find_map(|(_, how)| matches!(how, GuestEnd::Crash(_)).then(|| format!(" (it ended: {how})")));
    for name in checks {
        let result = linux::check(name, &test, &console, &outcome.events).map_err(|reason| Failure {
            reason: format!("{reason}{end}{}", crash.as_deref().unwrap_or_default()),
            // All have the same console: once is enough.
            console: std::mem::take(&mut lines),
        });
        let _ = sender.send(Report { name: test_name(test.on, name), result, took: start.elapsed() });
    }
    Ok(())
}

pub(super) fn run_variant(assets: &Assets, platform: Platform, variant: &Variant, sender: &Sender<Report>) -> Result<()> {
    let start = Instant::now();
    let spec = platform.spec();
    let other = assets.others.iter().find(|(kernel, ..)| *kernel == variant.kernel);
    let files = other.map(|(_, kernel, initramfs)| (kernel, initramfs)).or(assets.linux.as_ref().map(|(k, i)| (k, i)));
    let (kernel, initramfs) = files.context("there is no Linux")?;
    let mut modules = Modules::default();
    let kernel = modules.add_file(kernel);
    let ramdisk = modules.add_bytes("initrd.img", initramfs.clone());
    modules.add_bytes("debian.cfg", variant.guest_config(&kernel, &ramdisk).into_bytes());
    let mut record = Record::default();
    let outcome = boot(assets, &spec, "parallel", modules, &variant.script(), Limits::for_long(&spec), &mut record)?;
    let result = match &outcome.end {
        End::AllEnded => variant.check(&record.lines.join("\n"), &outcome),
        end => Err(end.to_string()),
    };
    let result = result.map_err(|reason| Failure { reason, console: record.lines });
    let _ = sender.send(Report { name: test_name(platform, variant.name), result, took: start.elapsed() });
    Ok(())
}

/// With nothing on the kernel's command line but the console.
fn linux_config(kernel: &str, ramdisk: &str, vcpus: u32) -> String {
    format!(
        "name = \"debian\"\ntype = \"hvm\"\nmemory = {}\nvcpus = {vcpus}\nkernel = \"{kernel}\"\nramdisk = \"{ramdisk}\"\n\
         cmdline = \"console=ttyS0\"\n",
        list::LINUX_MEMORY.mib()
    )
}
