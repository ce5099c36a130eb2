//! Folders as an administrator would fill them.

use super::*;
use crate::firmware::put;
use std::os::unix::fs::symlink;

/// A multiboot1 kernel that asks to be loaded from 1 MiB up to `end`.
fn kernel(end: u32) -> Vec<u8> {
    const FLAGS: u32 = 1 << 16;
    let start = 0x10_0000;
    let words = [0x1bad_b002, FLAGS, 0u32.wrapping_sub(0x1bad_b002 + FLAGS), start, start, start + 64, end, start];
    let mut image: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    image.resize(64, 0x90);
    image
}

fn guest(name: &str, extra: &str) -> Vec<u8> {
    format!("name = \"{name}\"\nmemory = 16\nkernel = \"kernel\"\n{extra}").into_bytes()
}

const LIMITS: Limits = Limits { cpus: 2, memory: Some(1 << 30) };

fn setting() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "kernel", &kernel(0x20_0000));
    fs::create_dir(root.path().join("auto")).unwrap();
    root
}

fn run(root: &Path, limits: &Limits) -> (usize, String) {
    let mut report = Report::default();
    check(&[], root, limits, &mut report);
    (report.count(Mark::GuestFails), report.to_string())
}

#[test]
fn links_in_auto_start_and_the_others_do_not() {
    let root = setting();
    put(root.path(), "a.cfg", &guest("a", ""));
    put(root.path(), "b.cfg", &guest("b", ""));
    symlink("../a.cfg", root.path().join("auto/a.cfg")).unwrap();
    let (bad, text) = run(root.path(), &LIMITS);
    assert_eq!(bad, 0, "{text}");
    let (starting, others) = text.split_once("do not start").unwrap();
    assert!(starting.contains("a (") && starting.contains("16 MiB, 1 vCPU, multiboot1 kernel"), "{text}");
    assert!(others.contains("b (") && others.ends_with("1 guest would start, with 16 MiB of memory.\n"), "{text}");
}

#[test]
fn what_the_hypervisor_would_refuse_is_found() {
    for (extra, wanted) in [
        ("memroy = 5\n", "4: memroy: unknown key; did you mean memory?"),
        ("disk = [\"x\"]\n", "4: disk: known to xl, not supported yet"),
        ("ramdisk = \"gone\"\n", "4: ramdisk: \"gone\": No such file"),
        ("isa_debug_exit = 0x3f8\n", "4: isa_debug_exit: port 0x3f8 belongs to another device"),
        ("cpus = \"7\"\n", "4: cpus: no CPU of 7: the host has 0-1"),
        ("this is not toml\n", "4: -: not valid TOML"),
    ] {
        let root = setting();
        put(root.path(), "auto/g.cfg", &guest("g", extra).replace_kernel("../kernel"));
        let (bad, text) = run(root.path(), &LIMITS);
        assert!(bad == 1 && text.contains(&format!("auto/g.cfg:{wanted}")), "{wanted} is not in\n{text}");
        assert!(text.contains("0 guests would start"), "{text}");
    }
}

trait ReplaceKernel {
    fn replace_kernel(self, name: &str) -> Self;
}
impl ReplaceKernel for Vec<u8> {
    fn replace_kernel(self, name: &str) -> Self {
        String::from_utf8(self).unwrap().replace("\"kernel\"", &format!("{name:?}")).into_bytes()
    }
}

#[test]
fn files_are_looked_at_as_the_loader_does() {
    let root = setting();
    put(root.path(), "kernel", &kernel(0x200_0000));
    put(root.path(), "auto/big.cfg", &guest("big", "").replace_kernel("../kernel"));
    put(root.path(), "text", b"#!/bin/sh\n");
    put(root.path(), "auto/text.cfg", &guest("text", "").replace_kernel("../text"));
    let (bad, text) = run(root.path(), &LIMITS);
    assert_eq!(bad, 2, "{text}");
    assert!(text.contains("the kernel does not fit") && text.contains("not a kernel: a text file"), "{text}");
}

#[test]
fn memory_for_all() {
    let root = setting();
    for name in ["a", "b", "c"] {
        put(root.path(), &format!("auto/{name}.cfg"), &guest(name, "").replace_kernel("../kernel"));
    }
    let (bad, text) = run(root.path(), &Limits { memory: Some(60 << 20), ..LIMITS });
    assert!(bad == 1 && text.contains("not enough memory for all: 64 MiB wanted, 60 MiB there"), "{text}");
    assert_eq!(run(root.path(), &Limits { memory: None, ..LIMITS }).0, 0);
}

#[test]
fn names_are_unique() {
    let root = setting();
    put(root.path(), "auto/a.cfg", &guest("same", "").replace_kernel("../kernel"));
    put(root.path(), "auto/b.cfg", &guest("same", "").replace_kernel("../kernel"));
    let (bad, text) = run(root.path(), &LIMITS);
    assert!(bad == 1 && text.contains("auto/b.cfg:1: name: another guest has this name"), "{text}");
}

#[test]
fn modules_for_grub() {
    let root = setting();
    let odd = put(root.path(), "my guests/it's \"the\" kernel", &kernel(0x20_0000));
    put(root.path(), "a.cfg", &guest("a", "").replace_kernel("my guests/it's \\\"the\\\" kernel".replace("\\\"", "\"").as_str()));
    put(root.path(), "b.cfg", &guest("b", "ramdisk = \"kernel\"\n"));
    put(root.path(), "bad.cfg", b"name = \"bad\"\n");
    symlink("../b.cfg", root.path().join("auto/b.cfg")).unwrap();
    let paths = ["a.cfg", "auto/b.cfg", "bad.cfg"].map(|p| root.path().join(p));
    let (list, problems) = modules(&paths);
    let real = |p: &str| fs::canonicalize(root.path().join(p)).unwrap();
    let found: Vec<_> = list.iter().map(|m| (m.kind, m.name.as_str(), m.path.clone())).collect();
    assert_eq!(
        found,
        [
            ("config", "a.cfg", real("a.cfg")),
            ("file", "my guests/it's \"the\" kernel", fs::canonicalize(odd).unwrap()),
            ("config", "b.cfg", real("b.cfg")),
            // Relative to where the file really is; once, although it is named twice.
            ("file", "kernel", real("kernel")),
        ]
    );
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].ends_with("bad.cfg:1: memory: missing, it must be given"), "{problems:?}");
}

#[test]
fn one_name_for_two_files_is_refused() {
    let root = setting();
    put(root.path(), "a.cfg", &guest("a", ""));
    put(root.path(), "other/kernel", &kernel(0x20_0000));
    put(root.path(), "other/b.cfg", &guest("b", ""));
    let (list, problems) = modules(&[root.path().join("a.cfg"), root.path().join("other/b.cfg")]);
    assert_eq!(list.len(), 2);
    assert!(problems.len() == 1 && problems[0].contains("\"kernel\" already means"), "{problems:?}");
}

#[test]
fn names_that_grub_cannot_take() {
    let root = setting();
    put(root.path(), "x\ny", &kernel(0x20_0000));
    put(root.path(), "a.cfg", &guest("a", "").replace_kernel("x\ny"));
    put(root.path(), "plain.txt", &guest("b", ""));
    let (list, problems) = modules(&[root.path().join("a.cfg"), root.path().join("plain.txt")]);
    assert!(list.is_empty() && problems.len() == 2, "{problems:?}");
    assert!(problems[0].contains("control characters"), "{problems:?}");
}
