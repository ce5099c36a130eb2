//! The hypervisor's command line.

use super::check_message;
use crate::{Source, Target};
use hv::options::Options;

/// What is wrong is named, and the rest counts.
pub const OPTIONS: Target = Target {
    name: "options",
    run: parse,
    seeds: &[
        b"/boot/bulkhead com1=115200,8n1 console=com1,vga loglvl=all guest_loglvl=warning/error sched=null maxcpus=4 mem=1G noreboot",
        b"com2=auto,8e2,0x2f8,3 conswitch=ax no-conswitch guest_output=switch autostart=sequential on_last_guest=poweroff console_timestamps=datems",
        b"nosmp no-watchdog iommu=off dom0_mem=1G -- x",
    ],
    words: &[
        b"com1=", b"com2=", b"console=", b"loglvl=", b"guest_loglvl=", b"console_timestamps=", b"noreboot", b"mem=", b"maxcpus=", b"nosmp", b"sched=", b"conswitch=",
        b"guest_output=", b"autostart=", b"on_last_guest=", b"no-", b" ", b",", b"/", b"115200", b"8n1", b"0x3f8", b"auto", b"vga", b"com1", b"none", b"all", b"error",
        b"18446744073709551615", b"18446744073709551616", b"G", b"T", b"K", b"0x", b"-", b"credit2", b"null", b"amap", b"pci", b"@", b"baud", b"\xc3\xa4",
    ],
};

fn parse(source: &mut Source<'_>) {
    let text = String::from_utf8_lossy(source.rest());
    let (options, problems) = Options::parse(&text);
    problems.iter().for_each(|problem| check_message(problem));
    assert!(problems.len() <= text.split_ascii_whitespace().count(), "more problems than words");
    assert_ne!(options.maxcpus, Some(0));
    // What has been refused counts for nothing: without it, everything is the same.
    let (again, same) = Options::parse(&text);
    assert_eq!((format!("{options:?}"), problems.len()), (format!("{again:?}"), same.len()));
}
