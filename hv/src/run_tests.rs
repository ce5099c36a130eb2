//! Guests from start to end on a scripted machine: refusals, restarts, several at once.

use super::{BootInfo, Host, Module, Worker};
use crate::{
    host::Leaving,
    options::Options,
    shell::{GuestFlags, Operator, Trigger},
    testing::FakePlatform,
    vm::End,
};
use alloc::{boxed::Box, format, string::String, vec::Vec};
use core::sync::atomic::Ordering;
use x86defs::{Exit, Time, Width};

const POWER_OFF: Exit = Exit::PortWrite { port: 0x604, width: Width::Word, value: 7 << 10 | 1 << 13 };
const RESET: Exit = Exit::PortWrite { port: 0xcf9, width: Width::Byte, value: 6 };

fn module(name: &str, data: Vec<u8>) -> Module {
    Module { name: String::from(name).leak(), args: "", data: data.leak() }
}

fn config(name: &str, more: &str) -> Module {
    let text = format!("name = \"{name}\"\nmemory = 2\nkernel = \"k\"\n{more}");
    module(&format!("{name}.cfg"), text.into_bytes())
}

/// A multiboot1 image by the a.out kludge.
fn kernel() -> Module {
    let words: [u32; 8] =
        [0x1bad_b002, 0x1_0000, 0u32.wrapping_sub(0x1bad_b002 + 0x1_0000), 0x10_0000, 0x10_0000, 0x10_1000, 0x10_2000, 0x10_0020];
    let mut image: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    image.resize(0x1000, 0x90);
    module("k", image)
}

/// A host and its one CPU.
struct Rig {
    host: Host<FakePlatform>,
    worker: Worker<FakePlatform>,
}

impl Rig {
    /// A turn, a little later than the one before: one that starts or ends a guest may need several.
    fn turn(&mut self) {
        self.host.platform.tsc.fetch_add(20_000_000, Ordering::Relaxed);
        self.host.turn(&mut self.worker);
    }

    fn finished(&self) -> bool {
        self.host.finished()
    }

    fn ids(&self) -> Vec<u32> {
        self.host.guests.lock().running.iter().map(|vm| vm.id).collect()
    }
}

fn host(options: &str, modules: Vec<Module>, scripts: &[&[Exit]]) -> Rig {
    let platform: &'static FakePlatform = Box::leak(Box::new(FakePlatform::new()));
    platform.scripts.lock().unwrap().extend(scripts.iter().map(|s| s.to_vec()));
    let (options, problems) = Options::parse(options);
    assert_eq!(problems.len(), 0);
    let boot = BootInfo { options, modules: Vec::leak(modules), version: "test", cmdline: "", entered: 0, image_bytes: 0 };
    let host = Host::new(platform, &boot);
    host.read_configs();
    host.start_next();
    Rig { host, worker: Worker::new(0) }
}

fn names(rig: &Rig) -> Vec<String> {
    rig.host.guests.lock().running.iter().map(|vm| String::from(vm.name())).collect()
}

#[test]
fn bad_configurations_are_refused_and_the_others_start() {
    let modules = alloc::vec![
        kernel(),
        config("good", ""),
        config("unknown", "flavour = 1\n"),
        module("absent.cfg", b"name = \"absent\"\nmemory = 2\nkernel = \"nothing\"\n".to_vec()),
        module("binary.cfg", alloc::vec![0xff, 0xfe]),
        config("good", ""),
        config("taken", "isa_debug_exit = 0x3f8\n"),
    ];
    let host = host("", modules, &[]);
    assert_eq!(names(&host), ["good"]);
}

#[test]
fn a_reset_restarts_and_a_power_off_ends() {
    let modules = alloc::vec![kernel(), config("g", "on_reboot = \"restart\"\n")];
    let mut host = host("on_last_guest=poweroff", modules, &[&[RESET], &[Exit::HostInterrupt, POWER_OFF]]);
    let first = host.ids()[0];
    host.turn();
    // Not at once; the CPU sleeps meanwhile.
    assert_eq!(names(&host), [""; 0]);
    assert!(!host.finished() && !host.host.is_deserted());
    host.turn();
    assert!(host.host.clock.now(host.host.platform) >= Time(100_000_000));
    host.turn();
    assert_eq!(names(&host), ["g"]);
    assert_ne!(host.ids()[0], first, "a new guest from the same configuration");
    assert!(!host.finished());
    host.turn();
    assert_eq!(names(&host), [""; 0]);
    assert!(host.finished());
    assert!(!host.finished(), "said once");
}

#[test]
fn a_crash_leaves_the_other_guest_running() {
    let modules = alloc::vec![kernel(), config("bad", "on_crash = \"destroy\"\n"), config("good", "")];
    let mut host = host("", modules, &[&[Exit::TripleFault], &[Exit::HostInterrupt, Exit::HostInterrupt, POWER_OFF]]);
    assert_eq!(names(&host), ["bad", "good"]);
    host.turn();
    assert_eq!(names(&host), ["good"]);
    host.turn();
    assert_eq!(names(&host), ["good"]);
    host.turn();
    host.turn();
    assert_eq!(names(&host), [""; 0]);
}

/// The turns of a rig are 20 ms apart.
#[test]
fn a_guest_that_crashes_again_and_again_does_not_fill_the_log() {
    let modules = alloc::vec![kernel(), config("flood", "on_crash = \"restart\"\n")];
    let mut rig = host("", modules, &[&[Exit::TripleFault][..]; 200]);
    let mut bytes = alloc::vec![0; 64 << 10];
    let (_, mut from) = crate::log::read(u64::MAX, &mut bytes);
    let (mut dumps, mut crashes) = (0, 0);
    for _ in 0..100 {
        rig.turn();
        let (count, next) = crate::log::read(from, &mut bytes);
        from = next;
        let text = String::from_utf8_lossy(&bytes[..count]);
        dumps += text.matches("guest flood: RIP ").count();
        crashes += text.matches("guest flood: ended: crash").count();
    }
    assert!((20..=60).contains(&crashes) && (crashes / 12..=crashes / 7).contains(&dumps), "{dumps} dumps of {crashes} crashes");
}

#[test]
fn ready_guests_take_turns() {
    let modules = alloc::vec![kernel(), config("a", ""), config("b", "")];
    let script = &[Exit::HostInterrupt, Exit::HostInterrupt, POWER_OFF][..];
    let mut host = host("", modules, &[script, script]);
    // a, b, a, b, then a ends.
    for _ in 0..5 {
        host.turn();
    }
    assert_eq!(names(&host), ["b"]);
}

#[test]
fn one_destroyed_while_it_ends_or_restarts_does_not_come_back() {
    let modules = alloc::vec![kernel(), config("g", "on_reboot = \"restart\"\n")];
    // It has reset itself, but the CPU that has it has not seen to that yet.
    let rig = host("", modules.clone(), &[]);
    let id = rig.ids()[0];
    let vm = rig.host.guests.lock().running[0].clone();
    vm.set_end(End::Reboot);
    drop(vm);
    rig.host.destroy(id).unwrap();
    assert_eq!(names(&rig), [""; 0]);
    assert!(rig.host.finished() && rig.host.guests.lock().leaving.is_empty());

    // It is being built again.
    let rig = host("", modules, &[]);
    let vm = rig.host.guests.lock().running.remove(0);
    let entry = Leaving { id: vm.id, blueprint: vm.blueprint.clone(), condemned: vm.condemned.clone(), start_at: None };
    rig.host.guests.lock().leaving.push(entry);
    let listed = rig.host.guests();
    assert!(listed.len() == 1 && listed[0].name == "g" && listed[0].flags.ended());
    rig.host.destroy(vm.id).unwrap();
    assert_eq!(rig.host.start_unless(&vm.blueprint, false, Some(vm.id)), None);
    assert!(names(&rig).is_empty() && rig.host.guests.lock().leaving.is_empty());
}

/// The operator's CPU takes such a guest apart itself, and must not wait for what it holds of it.
#[test]
fn the_reset_of_a_paused_guest_restarts_it() {
    let modules = alloc::vec![kernel(), config("g", "on_reboot = \"restart\"\n")];
    let rig = host("", modules, &[]);
    let first = rig.ids()[0];
    // Long enough after its start.
    rig.host.platform.tsc.fetch_add(100_000_000, Ordering::Relaxed);
    rig.host.pause(first).unwrap();
    rig.host.trigger(first, Trigger::Reset).unwrap();
    assert_eq!(names(&rig), ["g"]);
    let second = rig.ids()[0];
    assert_ne!(first, second);
    assert!(rig.host.guests()[0].flags == GuestFlags::empty(), "the new one is not paused");
    rig.host.destroy(second).unwrap();
    assert!(rig.host.guests().is_empty());
}

#[test]
fn sequential_start_waits_for_the_end() {
    let modules = alloc::vec![kernel(), config("a", ""), config("b", "")];
    let mut host = host("autostart=sequential", modules, &[&[POWER_OFF], &[POWER_OFF]]);
    assert_eq!(names(&host), ["a"]);
    host.turn();
    assert_eq!(names(&host), ["b"]);
}

#[test]
fn without_autostart_the_operator_starts_guests() {
    let modules = alloc::vec![kernel(), config("a", ""), config("b", "")];
    let mut host = host("autostart=none", modules, &[&[Exit::HostInterrupt; 9]]);
    assert_eq!(names(&host), [""; 0]);
    host.turn();
    host.host.platform.input.lock().unwrap().extend(*b"create b.cfg\r");
    host.turn();
    host.turn();
    assert_eq!(names(&host), ["b"]);
}

#[test]
fn preserve_keeps_the_memory_and_frees_the_cpu() {
    let modules = alloc::vec![kernel(), config("a", "on_crash = \"preserve\"\n")];
    let mut host = host("", modules, &[&[Exit::TripleFault]]);
    host.turn();
    assert_eq!(names(&host), [""; 0]);
    assert!(host.finished());
}

#[test]
fn the_operator_switches_to_the_shell_and_back() {
    let modules = alloc::vec![kernel(), config("a", "")];
    let mut rig = host("", modules, &[&[Exit::HostInterrupt; 40]]);
    let a = rig.ids()[0];
    assert_eq!(rig.host.console.focus(), Some(a));
    let press = |rig: &mut Rig, keys: &[u8]| {
        rig.host.platform.input.lock().unwrap().extend(keys.iter().copied());
        rig.turn();
        rig.turn();
    };
    press(&mut rig, &[1, 1, 1]);
    assert_eq!(rig.host.console.focus(), None);
    press(&mut rig, b"list\r");
    let shown = String::from_utf8(rig.host.platform.output.lock().unwrap().clone()).unwrap();
    assert!(shown.contains("Name") && shown.contains("VCPUs"), "{shown}");
    press(&mut rig, b"console a\r");
    assert_eq!(rig.host.console.focus(), Some(a));
    press(&mut rig, &[1, 1, 1]);
    rig.host.platform.input.lock().unwrap().extend(*b"destroy a\r");
    rig.turn();
    assert_eq!(names(&rig), [""; 0]);
}

#[test]
fn buttons_reach_the_guest() {
    const STATUS: u16 = 0x600;
    let modules = alloc::vec![kernel(), config("g", "")];
    let host = host("", modules, &[&[Exit::HostInterrupt]]);
    let vm = host.host.guests.lock().running[0].clone();
    let (id, board) = (vm.id, &vm.board);
    let status = || board.port_read(Time(0), STATUS, Width::Word) & 0x300;
    // The SCI as the 8259 pair's slave sees it: its second input.
    let sci = || {
        board.port_write(Time(0), 0xa0, Width::Byte, 0x0a);
        board.port_read(Time(0), 0xa0, Width::Byte) & 2 != 0
    };
    board.port_write(Time(0), STATUS + 2, Width::Word, 0x300);
    for (trigger, bit) in [(Trigger::Power, 0x100), (Trigger::Sleep, 0x200)] {
        assert_eq!((status(), sci()), (0, false));
        host.host.trigger(id, trigger).unwrap();
        assert_eq!((status(), sci()), (bit, true), "{trigger:?}");
        board.port_write(Time(0), STATUS, Width::Word, bit);
    }
    assert_eq!((status(), sci()), (0, false));
}

#[test]
fn debug_keys_show_registers_of_vcpus_that_run_or_sleep() {
    let modules = alloc::vec![kernel(), config("a", "")];
    let mut rig = host("conswitch=ax", modules, &[&[Exit::HostInterrupt, Exit::Hlt, Exit::HostInterrupt]]);
    let log = |from: u64| {
        let mut bytes = alloc::vec![0; 64 << 10];
        let (count, end) = crate::log::read(from, &mut bytes);
        (String::from_utf8_lossy(&bytes[..count]).into_owned(), end)
    };
    rig.host.platform.interrupted.store(true, Ordering::Relaxed);
    // It sleeps in its CPU from the third turn on.
    for _ in 0..2 {
        rig.turn();
        let (_, before) = log(u64::MAX);
        rig.host.platform.input.lock().unwrap().extend(*b"debug-keys d\r");
        rig.turn();
        let (text, _) = log(before);
        assert_eq!(text.matches("RIP ").count(), 1, "{text}");
        let shown = String::from_utf8(rig.host.platform.output.lock().unwrap().clone()).unwrap();
        assert!(shown.contains("CPU 0: guest a vCPU 0"), "{shown}");
    }
}
