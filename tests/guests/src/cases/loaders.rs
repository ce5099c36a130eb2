//! What the loaders of the various formats leave behind.

use crate::rt::{
    BootInfo,
    boot::{Protocol, string_at},
    check, check_eq,
    cpu::{read8, read16, read32, read64},
};

/// The configuration's ramdisk: this kernel's own file.
const MODULE: &str = "guests";

/// The registers that every protocol fixes: protected mode without paging, interrupts and traps off, no long mode.
fn check_state(boot: &BootInfo, protocol: Protocol) {
    check!(boot.protocol == protocol, "entered as {:?}", boot.protocol);
    let state = boot.state();
    check_eq!(state.cr0 & 0x8000_0001, 1, "CR0: PE and PG");
    check_eq!(state.eflags & 0x2_0300, 0, "EFLAGS: VM, IF and TF");
    check_eq!(state.efer & 0x500, 0, "EFER: LME and LMA");
    check_eq!(state.by_tag, protocol == Protocol::Multiboot2, "the entry point");
}

/// Entries of a memory map: base, bytes, type. They ascend, and there is enough RAM.
fn check_map(entries: impl Iterator<Item = (u64, u64, u32)>) {
    let (mut end, mut ram) = (0, 0);
    for (base, bytes, kind) in entries {
        check!(bytes != 0 && base >= end && base.checked_add(bytes).is_some(), "map entry at {base:#x}");
        end = base + bytes;
        if kind == 1 {
            ram += bytes;
        }
    }
    check!((24 << 20..=32 << 20).contains(&ram), "bytes of RAM in the map: {ram:#x}");
}

fn check_module(start: u64, end: u64, name: u64) {
    check_eq!(read32(start), 0x464c_457f, "the module's first bytes");
    check!(end > start + 0x1000 && start.is_multiple_of(4096), "the module from {start:#x} to {end:#x}");
    check_eq!(string_at(name), MODULE, "its string");
}

fn check_command_line(boot: &BootInfo, name: &str) {
    check_eq!(boot.option("test"), Some(name), "the command line");
}

/// Multiboot 0.6.96, 3.2 and 3.3: machine state, memory, map, module, command line, loader name.
pub fn multiboot1(boot: &BootInfo) {
    check_state(boot, Protocol::Multiboot1);
    check_eq!(boot.word(0) & 0x24d, 0x24d, "memory, command line, modules, map and loader name are given");
    check_eq!(boot.word(1), 640, "KiB of lower memory");
    check!(boot.word(2) >= 8 * 1024, "KiB of upper memory: {}", boot.word(2));
    check_command_line(boot, "multiboot-info");
    check!(string_at(boot.word(16).into()).contains("Bulkhead"), "boot loader name");
    check_eq!(boot.word(5), 1, "one module");
    let module = u64::from(boot.word(6));
    check_module(read32(module).into(), read32(module + 4).into(), read32(module + 8).into());
    let (length, map) = (u64::from(boot.word(11)), u64::from(boot.word(12)));
    let mut at = map;
    check_map(core::iter::from_fn(|| {
        let entry = at;
        at += u64::from(read32(entry)) + 4;
        (at <= map + length).then(|| (read64(entry + 4), read64(entry + 12), read32(entry + 20)))
    }));
}

/// Multiboot2 2.0, 3.3 and 3.4: machine state, entry address tag, and the tags that the header asks for.
pub fn multiboot2(boot: &BootInfo) {
    check_state(boot, Protocol::Multiboot2);
    check!(boot.address().is_multiple_of(8), "the information is aligned");
    let tag = |kind: u32| boot.tag(kind).unwrap_or_else(|| panic!("no tag {kind}"));
    check_command_line(boot, "multiboot2-info");
    check_eq!(string_at(tag(2) + 8), "Bulkhead", "boot loader name");
    let module = tag(3);
    check_module(read32(module + 8).into(), read32(module + 12).into(), module + 16);
    let memory = tag(4);
    check_eq!(read32(memory + 8), 640, "KiB of lower memory");
    check!(read32(memory + 12) >= 8 * 1024, "KiB of upper memory: {}", read32(memory + 12));
    let map = tag(6);
    let (bytes, each) = (read32(map + 4), read32(map + 8));
    check!(each >= 24 && (bytes - 16).is_multiple_of(each), "{bytes} bytes of map, {each} for an entry");
    let entries = (map + 16..map + u64::from(bytes)).step_by(each as usize);
    check_map(entries.map(|at| (read64(at), read64(at + 8), read32(at + 16))));
    // The sections, whose names have been loaded.
    let sections = tag(9);
    let [count, each, names] = [8, 12, 16].map(|offset| u64::from(read32(sections + offset)));
    let header = |n: u64| sections + 20 + n * each;
    let strings = read64(header(names) + 16);
    check!(strings != 0, "the table of names is in memory");
    let text = (0..count).find(|&n| string_at(strings + u64::from(read32(header(n)))) == ".text");
    check_eq!(text.map(|n| read64(header(n) + 16)), Some(0x10_0000), "the address of .text");
    for (kind, bytes) in [(14, 20), (15, 36)] {
        let rsdp = tag(kind);
        check_eq!(read32(rsdp + 4), 8 + bytes, "bytes of tag {kind}");
        check_rsdp(rsdp + 8, bytes.into());
    }
    check_eq!(read32(tag(21) + 8), 0x10_0000, "the load base");
    check_eq!(read32(tag(0) + 4), 8, "the last tag");
}

fn check_rsdp(at: u64, bytes: u64) {
    check_eq!(read64(at), u64::from_le_bytes(*b"RSD PTR "), "RSDP");
    check_eq!((at..at + bytes).fold(0u8, |sum, at| sum.wrapping_add(read8(at))), 0, "its checksum");
}

/// Xen's docs/misc/pvh.pandoc: machine state, and the start information of version 1.
pub fn pvh(boot: &BootInfo) {
    check_state(boot, Protocol::Pvh);
    check_start_info(boot, "pvh-info");
}

/// A flat image: loaded and entered where the configuration says, with zeros behind it, otherwise as a PVH kernel is.
pub fn flat(boot: &BootInfo) {
    check_state(boot, Protocol::Flat);
    check_start_info(boot, "flat-image");
    check_eq!(read16(0x10_0000), 0x0b0f, "the image's first bytes");
}

fn check_start_info(boot: &BootInfo, name: &str) {
    let state = boot.state();
    // ET is fixed.
    check_eq!([state.cr0, state.cr4], [0x11, 0], "CR0 and CR4");
    let info = boot.address();
    check_eq!([boot.word(0), boot.word(1), boot.word(2)], [0x336e_c578, 1, 0], "magic, version, flags");
    check_command_line(boot, name);
    check_eq!(boot.word(3), 1, "one module");
    let module = read64(info + 16);
    check_module(read64(module), read64(module) + read64(module + 8), read64(module + 16));
    check_rsdp(read64(info + 32), 36);
    let map = read64(info + 40);
    check_map((0..u64::from(boot.word(12))).map(|n| map + 24 * n).map(|at| (read64(at), read64(at + 8), read32(at + 16))));
}
