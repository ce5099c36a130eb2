//! Task switches over 2 MiB of RAM without paging, or with it where a case says so.

use super::*;
use proptest::prelude::{any, proptest};
use std::{sync::Mutex, vec, vec::Vec};
use x86defs::{DescriptorTable, OutsideRam, RamRange};

const RAM: usize = 2 << 20;

struct Ram {
    bytes: Mutex<Vec<u8>>,
    ranges: [RamRange; 1],
}

impl Ram {
    fn with<R>(&self, gpa: Gpa, len: usize, f: impl FnOnce(&mut [u8]) -> R) -> Result<R, OutsideRam> {
        let mut bytes = self.bytes.lock().unwrap();
        let start = usize::try_from(gpa.0).map_err(|_| OutsideRam(gpa))?;
        let end = start.checked_add(len).ok_or(OutsideRam(gpa))?;
        bytes.get_mut(start..end).map(f).ok_or(OutsideRam(gpa))
    }
}

impl GuestMemory for Ram {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), OutsideRam> {
        self.with(gpa, buf.len(), |ram| buf.copy_from_slice(ram))
    }
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), OutsideRam> {
        self.with(gpa, data.len(), |ram| ram.copy_from_slice(data))
    }
    fn fill(&self, gpa: Gpa, len: u64, value: u8) -> Result<(), OutsideRam> {
        self.with(gpa, len as usize, |ram| ram.fill(value))
    }
    fn compare_exchange(&self, gpa: Gpa, width: Width, old: u64, new: u64) -> Result<Result<u64, u64>, OutsideRam> {
        self.with(gpa, width.bytes(), |ram| {
            let mut found = [0; 8];
            found[..ram.len()].copy_from_slice(ram);
            let found = u64::from_le_bytes(found);
            if found != old {
                return Err(found);
            }
            ram.copy_from_slice(&new.to_le_bytes()[..width.bytes()]);
            Ok(old)
        })
    }
    fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }
}

const GDT: u64 = 0x1000;
const OLD_TSS: u64 = 0x2000;
/// Across a page boundary.
const NEW_TSS: u64 = 0x4fd0;
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const OLD: u16 = 0x18;
const NEW: u16 = 0x20;
const LDT: u16 = 0x28;
const NOT_PRESENT: u16 = 0x30;
const USER_CODE: u16 = 0x3b;
const USER_DATA: u16 = 0x43;
const READ_ONLY: u16 = 0x48;
const CONFORMING: u16 = 0x50;

/// A descriptor with byte 5 `kind`.
fn descriptor(base: u64, limit: u64, kind: u64, flags: u64) -> u64 {
    limit & 0xffff | (base & 0xff_ffff) << 16 | kind << 40 | (limit >> 16) << 48 | flags << 52 | (base >> 24) << 56
}

struct Rig {
    ram: Ram,
    state: VcpuState,
}

impl Rig {
    /// The old task runs flat at CPL 0; the new one is to.
    fn new() -> Self {
        let ram = Ram { bytes: Mutex::new(vec![0; RAM]), ranges: [RamRange { gpa: Gpa(0), size: RAM as u64 }] };
        for (selector, value) in [
            (CODE, descriptor(0, 0xf_ffff, 0x9a, 0xc)),
            (DATA, descriptor(0, 0xf_ffff, 0x92, 0xc)),
            (OLD, descriptor(OLD_TSS, 103, 0x8b, 0)),
            (NEW, descriptor(NEW_TSS, 103, 0x89, 0)),
            (LDT, descriptor(0x6000, 15, 0x82, 0)),
            (NOT_PRESENT, descriptor(0, 0xf_ffff, 0x12, 0xc)),
            (USER_CODE, descriptor(0, 0xf_ffff, 0xfb, 0xc)),
            (USER_DATA, descriptor(0, 0xf_ffff, 0xf3, 0xc)),
            (READ_ONLY, descriptor(0, 0xf_ffff, 0x90, 0xc)),
            (CONFORMING, descriptor(0, 0xf_ffff, 0x9e, 0xc)),
        ] {
            ram.write(Gpa(GDT + u64::from(selector & !7)), &value.to_le_bytes()).unwrap();
        }
        // Data in the LDT, with a base.
        ram.write(Gpa(0x6008), &descriptor(0x1_2345, 0xfff, 0x92, 4).to_le_bytes()).unwrap();
        let mut state = VcpuState::reset(0);
        state.cr0 = 0x11;
        state.rip = 0x7000;
        state.rflags = 0x4246;
        state.gdtr = DescriptorTable { base: GDT, limit: 0x57 };
        state.cs = Segment::flat(CODE, 0xb, false);
        state.dr7 = 0x7ff;
        for (n, segment) in [&mut state.es, &mut state.ss, &mut state.ds, &mut state.fs, &mut state.gs].into_iter().enumerate() {
            *segment = Segment { selector: DATA | (n as u16) << 8, ..Segment::flat(DATA, 3, false) };
        }
        state.tr = Segment { selector: OLD, attributes: SegmentAttributes(0x8b), limit: 103, base: OLD_TSS };
        for n in 0..8 {
            state.gprs[Gpr::from_index(n)] = 0x1111_0000 + u64::from(n);
        }
        let rig = Self { ram, state };
        for (n, value) in (0..10).map(|n| (n, 0x2222_0000 + n)) {
            rig.poke32(NEW_TSS + 0x20 + 4 * n, value as u32);
        }
        rig.poke32(NEW_TSS + 0x24, 0x202);
        for (n, selector) in [DATA, CODE, DATA, DATA, DATA, 0].into_iter().enumerate() {
            rig.poke32(NEW_TSS + 0x48 + 4 * n as u64, 0xdead_0000 | u32::from(selector));
        }
        rig
    }

    fn poke32(&self, at: u64, value: u32) {
        self.ram.write(Gpa(at), &value.to_le_bytes()).unwrap();
    }
    fn poke16(&self, at: u64, value: u16) {
        self.ram.write(Gpa(at), &value.to_le_bytes()).unwrap();
    }
    fn peek32(&self, at: u64) -> u32 {
        self.ram.read_u32(Gpa(at)).unwrap()
    }
    fn kind(&self, selector: u16) -> u8 {
        self.ram.read_u8(Gpa(GDT + u64::from(selector & !7) + 5)).unwrap()
    }
    fn set_kind(&self, selector: u16, kind: u8) {
        self.ram.write(Gpa(GDT + u64::from(selector & !7) + 5), &[kind]).unwrap();
    }
    fn selector(&self, n: u64, selector: u16) {
        self.poke16(NEW_TSS + 0x48 + 4 * n, selector);
    }

    fn go(&self, reason: TaskSwitchReason) -> Result<Entered, TranslateError> {
        self.go_to(NEW, reason)
    }
    fn go_to(&self, selector: u16, reason: TaskSwitchReason) -> Result<Entered, TranslateError> {
        self.go_from(&self.state, &TaskSwitch { selector, reason, rip: 0x7007, resume_flag: false })
    }
    fn go_from(&self, from: &VcpuState, request: &TaskSwitch) -> Result<Entered, TranslateError> {
        let mut state = *from;
        let result = switch(&self.ram, &mut state, request);
        if let Err(TranslateError::Fault(_)) = result {
            assert_eq!(state, *from, "the old task goes on");
        }
        result.map(|exception| (state, exception))
    }
    fn enter(&self, reason: TaskSwitchReason) -> Entered {
        self.go(reason).unwrap()
    }
}

/// The new task's registers, and what it begins with.
type Entered = (VcpuState, Option<Exception>);

const CALL: TaskSwitchReason = TaskSwitchReason::Call;
const JMP: TaskSwitchReason = TaskSwitchReason::Jmp;
const IRET: TaskSwitchReason = TaskSwitchReason::Iret;
const EVENT: TaskSwitchReason = TaskSwitchReason::Gate { error_code: None, external: true };

#[test]
fn busy_bits_link_and_nt_follow_table_9_2() {
    // Reason; old and new type byte; link; NT of the new task, and of the old one in its TSS.
    for (reason, old, new, link, nt, old_nt) in [
        (CALL, 0x8b, 0x8b, OLD, true, true),
        (EVENT, 0x8b, 0x8b, OLD, true, true),
        (JMP, 0x89, 0x8b, 0, false, true),
        (IRET, 0x89, 0x8b, 0, false, false),
    ] {
        let rig = Rig::new();
        if reason == IRET {
            rig.set_kind(NEW, 0x8b);
        }
        let (state, exception) = rig.enter(reason);
        assert_eq!(exception, None);
        assert_eq!((rig.kind(OLD), rig.kind(NEW)), (old, new), "{reason:?}");
        assert_eq!(rig.ram.read_u16(Gpa(NEW_TSS)).unwrap(), link, "{reason:?}");
        assert_eq!(state.rflags, if nt { 0x4202 } else { 0x202 }, "{reason:?}");
        assert_eq!(rig.peek32(OLD_TSS + 0x24), if old_nt { 0x4246 } else { 0x246 }, "{reason:?}");
    }
}

#[test]
fn registers_are_exchanged() {
    let rig = Rig::new();
    rig.poke16(NEW_TSS + 0x60, LDT);
    rig.selector(4, 0xc);
    let (state, _) = rig.enter(JMP);
    assert_eq!(rig.peek32(OLD_TSS + 0x20), 0x7007);
    for n in 0..8u32 {
        assert_eq!(rig.peek32(OLD_TSS + 0x28 + 4 * u64::from(n)), 0x1111_0000 + n);
        assert_eq!(state.gprs[Gpr::from_index(n as u8)], u64::from(0x2222_0002 + n));
    }
    for (n, selector) in [DATA, CODE, DATA | 0x100, DATA | 0x200, DATA | 0x300, DATA | 0x400].into_iter().enumerate() {
        assert_eq!(rig.peek32(OLD_TSS + 0x48 + 4 * n as u64), u32::from(selector));
    }
    assert_eq!((rig.peek32(OLD_TSS + 0x1c), rig.peek32(OLD_TSS + 0x60), rig.peek32(OLD_TSS)), (0, 0, 0), "what is not saved");
    assert_eq!((state.rip, state.cs.selector, state.cs.limit), (0x2222_0000, CODE, 0xffff_ffff));
    assert_eq!((state.tr.selector, state.tr.base, state.tr.attributes.kind()), (NEW, NEW_TSS, 0xb));
    assert_eq!((state.ldtr.selector, state.ldtr.base, state.ldtr.limit), (LDT, 0x6000, 15));
    assert_eq!((state.fs.selector, state.fs.base, state.fs.limit), (0xc, 0x1_2345, 0xfff), "by the new LDT");
    assert!(state.gs.attributes.unusable());
    assert_eq!(state.cr0, 0x19, "TS");
    assert_eq!(state.dr7, 0x6aa, "local breakpoints are off");
    assert_eq!((rig.kind(CODE), rig.kind(DATA)), (0x9b, 0x93), "accessed");
    assert_eq!(state.cr3, 0, "no paging, no CR3");
}

#[test]
fn resume_flag_and_events() {
    let rig = Rig::new();
    let reason = TaskSwitchReason::Gate { error_code: Some(0x1234_5678), external: true };
    let request = TaskSwitch { selector: NEW, reason, rip: 0x7000, resume_flag: true };
    rig.poke32(NEW_TSS + 0x38, 0x9002);
    let (state, exception) = rig.go_from(&rig.state, &request).unwrap();
    assert_eq!(exception, None);
    assert_eq!(rig.peek32(OLD_TSS + 0x24), 0x1_4246);
    assert_eq!(rig.peek32(OLD_TSS + 0x20), 0x7000);
    assert_eq!((state.gprs[Gpr::Rsp], rig.peek32(0x8ffe)), (0x8ffe, 0x1234_5678), "across a page boundary");
    // A stack that is too small: the fault is the new task's.
    let rig = Rig::new();
    rig.poke32(GDT + u64::from(READ_ONLY), 0xffff);
    rig.ram.write(Gpa(GDT + u64::from(READ_ONLY)), &descriptor(0, 0xfff, 0x92, 4).to_le_bytes()).unwrap();
    rig.selector(2, READ_ONLY);
    rig.poke32(NEW_TSS + 0x38, 0x1001);
    let (state, exception) = rig.enter(reason);
    assert_eq!((exception, state.gprs[Gpr::Rsp]), (Some(Exception::ss(1)), 0x1001));
    rig.set_kind(NEW, 0x89);
    rig.poke32(NEW_TSS + 0x38, 0x1000);
    assert_eq!(rig.enter(reason).1, None);
}

#[test]
fn sixteen_bit_tasks() {
    let rig = Rig::new();
    rig.ram.write(Gpa(GDT + u64::from(NEW)), &descriptor(NEW_TSS, 43, 0x81, 0).to_le_bytes()).unwrap();
    for (n, value) in [0x4000, 0xf202, 1, 2, 3, 4, 0x9000, 6, 7, 8].into_iter().enumerate() {
        rig.poke16(NEW_TSS + 0xe + 2 * n as u64, value);
    }
    for (n, selector) in [DATA, CODE, DATA, DATA, LDT].into_iter().enumerate() {
        rig.poke16(NEW_TSS + 0x22 + 2 * n as u64, selector);
    }
    let (mut state, exception) = rig.enter(TaskSwitchReason::Gate { error_code: Some(0xabcd), external: true });
    assert_eq!(exception, None);
    assert_eq!((state.rip, state.rflags & 0xffff_8fff), (0x4000, 0x202));
    assert_eq!(state.gprs.get32(Gpr::Rsp) & 0xffff, 0x8ffe, "a word was pushed");
    assert_eq!(state.gprs.get32(Gpr::Rdi) & 0xffff, 8);
    assert_eq!((state.ldtr.selector, state.tr.attributes.kind()), (LDT, 3));
    assert!(state.fs.attributes.unusable() && state.gs.attributes.unusable());
    // And back: into a 16-bit TSS go 16 bits.
    state.rflags = 0x7_4202;
    let back = TaskSwitch { selector: OLD, reason: IRET, rip: 0xffff_4001, resume_flag: false };
    rig.selector(0, 0);
    rig.poke16(OLD_TSS + 0x4c, CODE);
    assert!(rig.go_from(&state, &back).is_ok());
    assert_eq!(rig.ram.read_u16(Gpa(NEW_TSS + 0xe)).unwrap(), 0x4001);
    assert_eq!(rig.ram.read_u16(Gpa(NEW_TSS + 0x10)).unwrap(), 0x202, "NT is cleared");
    assert_eq!(rig.ram.read_u16(Gpa(NEW_TSS + 0x24)).unwrap(), CODE);
    assert_eq!(rig.ram.read_u16(Gpa(NEW_TSS + 0x2a)).unwrap(), LDT, "not written");
    assert_eq!((rig.kind(NEW), rig.kind(OLD)), (0x81, 0x8b));
}

#[test]
fn what_is_wrong_with_the_new_tss_is_the_old_tasks_fault() {
    type Change = fn(&mut Rig);
    let table: &[(u16, TaskSwitchReason, Change, Exception)] = &[
        (NEW | 4, CALL, |_| {}, Exception::gp(0x24)),
        (NEW | 4, IRET, |_| {}, Exception::ts(0x24)),
        (0, JMP, |_| {}, Exception::gp(0)),
        (0x58, CALL, |_| {}, Exception::gp(0x58)),
        (0x58, IRET, |_| {}, Exception::ts(0x58)),
        (0x58, EVENT, |_| {}, Exception::gp(0x59)),
        (DATA, CALL, |_| {}, Exception::gp(DATA as u32)),
        (LDT, JMP, |_| {}, Exception::gp(LDT as u32)),
        (NEW, CALL, |rig| rig.set_kind(NEW, 0x8b), Exception::gp(NEW as u32)),
        (NEW, IRET, |_| {}, Exception::ts(NEW as u32)),
        (NEW | 3, JMP, |rig| rig.set_kind(NEW, 9), Exception::np(NEW as u32)),
        (NEW, EVENT, |rig| rig.set_kind(NEW, 9), Exception::np(NEW as u32 | 1)),
        (NEW, CALL, |rig| rig.poke16(GDT + u64::from(NEW), 102), Exception::ts(NEW as u32)),
        (NEW, EVENT, |rig| rig.poke16(GDT + u64::from(NEW), 102), Exception::ts(NEW as u32 | 1)),
        (NEW, CALL, |rig| rig.state.tr.limit = 0x5c, Exception::ts(OLD as u32)),
    ];
    for (selector, reason, change, fault) in table {
        let mut rig = Rig::new();
        change(&mut rig);
        let before = rig.ram.bytes.lock().unwrap().clone();
        assert_eq!(rig.go_to(*selector, *reason), Err(TranslateError::Fault(*fault)), "{selector:#x} {reason:?}");
        assert!(*rig.ram.bytes.lock().unwrap() == before, "nothing was written");
    }
    // INT n is the program's own doing.
    let rig = Rig::new();
    rig.set_kind(NEW, 9);
    let int = TaskSwitchReason::Gate { error_code: None, external: false };
    assert_eq!(rig.go(int), Err(TranslateError::Fault(Exception::np(NEW.into()))));
}

#[test]
fn what_is_wrong_with_the_new_tasks_segments_is_its_own_fault() {
    const ES: u64 = 0;
    const CS: u64 = 1;
    const SS: u64 = 2;
    const DS: u64 = 3;
    let ts = |selector: u16| Some(Exception::ts(u32::from(selector & !3)));
    for (which, selector, fault) in [
        (CS, 0, ts(0)),
        (CS, DATA, ts(DATA)),
        (CS, CODE | 3, ts(CODE)),
        (CS, USER_CODE & !3, ts(USER_CODE)),
        (CS, 0x58, ts(0x58)),
        (CS, CODE | 4, ts(CODE | 4)),
        (CS, OLD, ts(OLD)),
        (SS, 0, ts(0)),
        (SS, 3, ts(0)),
        (SS, CODE, ts(CODE)),
        (SS, READ_ONLY, ts(READ_ONLY)),
        (SS, DATA | 1, ts(DATA)),
        (SS, USER_DATA, ts(USER_DATA)),
        (SS, NOT_PRESENT, Some(Exception::ss(NOT_PRESENT.into()))),
        (DS, NOT_PRESENT, Some(Exception::np(NOT_PRESENT.into()))),
        (DS, DATA | 3, ts(DATA)),
        (ES, 0xfff8, ts(0xfff8)),
        (DS, READ_ONLY, None),
        (DS, 3, None),
        (CS, CONFORMING, None),
        (DS, CODE, None),
    ] {
        let rig = Rig::new();
        rig.selector(which, selector);
        let (state, exception) = rig.enter(CALL);
        assert_eq!(exception, fault, "segment {which}, {selector:#x}");
        assert_eq!(state.tr.selector, NEW);
        assert_eq!(rig.kind(NEW), 0x8b);
        if fault.is_some() {
            let [es, cs, ss, ds, ..] = [state.es, state.cs, state.ss, state.ds];
            let failed = [es, cs, ss, ds][which as usize];
            assert_eq!((failed.selector, failed.attributes.unusable()), (selector, true));
        }
    }
    // The LDT.
    for (selector, fault) in [(LDT | 4, ts(LDT | 4)), (DATA, ts(DATA)), (0x58, ts(0x58)), (3, None)] {
        let rig = Rig::new();
        rig.poke16(NEW_TSS + 0x60, selector);
        assert_eq!(rig.enter(CALL).1, fault, "LDT {selector:#x}");
    }
    let rig = Rig::new();
    rig.poke16(NEW_TSS + 0x60, LDT);
    rig.set_kind(LDT, 2);
    assert_eq!(rig.enter(EVENT).1, Some(Exception::ts(u32::from(LDT) | 1)), "with EXT");
    // A code segment that is not there.
    let rig = Rig::new();
    rig.set_kind(CODE, 0x1a);
    let (state, exception) = rig.enter(JMP);
    assert_eq!(exception, Some(Exception::np(CODE.into())));
    assert_eq!(state.rip, 0x2222_0000);
}

#[test]
fn user_and_virtual_8086_tasks() {
    let rig = Rig::new();
    for (n, selector) in [USER_DATA, USER_CODE, USER_DATA, USER_DATA, 0, 0].into_iter().enumerate() {
        rig.selector(n as u64, selector);
    }
    let (state, exception) = rig.enter(CALL);
    assert_eq!((exception, state.cs.selector, state.ss.attributes.dpl()), (None, USER_CODE, 3));
    let rig = Rig::new();
    rig.poke32(NEW_TSS + 0x24, 0x2_3202);
    for n in 0..6 {
        rig.selector(n, 0x1000 + n as u16);
    }
    let (state, exception) = rig.enter(JMP);
    assert_eq!(exception, None);
    for (n, segment) in [state.es, state.cs, state.ss, state.ds, state.fs, state.gs].into_iter().enumerate() {
        let selector = 0x1000 + n as u16;
        assert_eq!((segment.selector, segment.base), (selector, u64::from(selector) << 4));
        assert_eq!((segment.limit, segment.attributes.0), (0xffff, 0xf3));
    }
}

#[test]
fn the_trap_bit_traps() {
    let rig = Rig::new();
    rig.poke16(NEW_TSS + 0x64, 1);
    let (state, exception) = rig.enter(CALL);
    assert_eq!((exception, state.dr6 & 0xe00f), (Some(Exception::DB), 0x8000));
    // A fault comes first.
    let rig = Rig::new();
    rig.poke16(NEW_TSS + 0x64, 1);
    rig.selector(3, 0x58);
    let (state, exception) = rig.enter(CALL);
    assert_eq!((exception, state.dr6 & 0xe00f), (Some(Exception::ts(0x58)), 0));
}

/// 32-bit paging at `root`, which maps the first 4 MiB one to one but for the pages in `missing`.
fn map(rig: &Rig, root: u64, missing: &[u64]) {
    let table = root + 0x1000;
    rig.poke32(root, table as u32 | 7);
    for page in 0..1024 {
        let present = !missing.contains(&(page << 12));
        rig.poke32(table + 4 * page, (page << 12) as u32 | if present { 7 } else { 6 });
    }
}

#[test]
fn paging_and_cr3() {
    let (a, b) = (0x10_0000, 0x11_0000);
    let mut rig = Rig::new();
    map(&rig, a, &[]);
    map(&rig, b, &[]);
    rig.state.cr0 |= Cr0::PG.bits();
    rig.state.cr3 = a;
    rig.poke32(NEW_TSS + 0x1c, b as u32);
    let (state, exception) = rig.enter(JMP);
    assert_eq!((state.cr3, exception), (b, None));

    // The second page of the new TSS, the old TSS, the GDT: the old task's fault, and nothing has happened.
    for (missing, code) in [(0x5000, 0), (0x4000, 0), (OLD_TSS, 2), (GDT, 0)] {
        let mut rig = Rig::new();
        map(&rig, a, &[missing]);
        rig.state.cr0 |= Cr0::PG.bits();
        rig.state.cr3 = a;
        let Err(TranslateError::Fault(fault)) = rig.go(JMP) else { panic!("{missing:#x}") };
        assert_eq!((fault.vector, fault.error_code), (14, Some(code)), "{missing:#x}");
        assert_eq!(fault.cr2.unwrap() & !0xfff, missing);
        assert_eq!((rig.kind(OLD), rig.kind(NEW), rig.peek32(OLD_TSS + 0x20)), (0x8b, 0x89, 0));
    }
    // The new task does not see the GDT: its own fault.
    let mut rig = Rig::new();
    map(&rig, a, &[]);
    map(&rig, b, &[GDT]);
    rig.state.cr0 |= Cr0::PG.bits();
    rig.state.cr3 = a;
    rig.poke32(NEW_TSS + 0x1c, b as u32);
    let (state, exception) = rig.enter(CALL);
    assert_eq!((state.cr3, exception), (b, Some(Exception::pf(GDT + u64::from(CODE), 0))));
    // Tables outside of RAM.
    rig.state.cr3 = 0x4000_0000;
    assert_eq!(rig.go(CALL), Err(TranslateError::TableOutsideRam(Gpa(0x4000_0000))));
}

proptest! {
    /// Whatever the tables and the TSS hold, there is an answer.
    #[test]
    fn no_input_panics(
        selector in any::<u16>(),
        kind in 0usize..5,
        seed in proptest::collection::vec(any::<u8>(), 104),
        gdt in proptest::collection::vec(any::<u64>(), 11),
        limits in any::<[u16; 2]>(),
        old in any::<u32>(),
    ) {
        let mut rig = Rig::new();
        rig.ram.write(Gpa(NEW_TSS), &seed).unwrap();
        let reason = [CALL, JMP, IRET, EVENT, TaskSwitchReason::Gate { error_code: Some(7), external: false }][kind];
        let _ = rig.go(reason);
        for (n, value) in gdt.iter().enumerate() {
            rig.ram.write(Gpa(GDT + 8 * n as u64), &value.to_le_bytes()).unwrap();
        }
        rig.state.gdtr.limit = limits[0];
        rig.state.tr.limit = limits[1].into();
        rig.state.tr.base = old.into();
        let _ = rig.go_to(selector, reason);
        let _ = rig.go_to(selector & 0x58, reason);
    }
}
