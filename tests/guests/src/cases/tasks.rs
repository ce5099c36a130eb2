//! Hardware task switches (Intel SDM vol. 3A, chapter 9), from a 32-bit kernel with paging.

mod code;

use crate::rt::{BootInfo, apic, check, check_eq, cpu};
use code::{Symbols, ts_run};

// Selectors in the case's GDT.
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const MAIN: u16 = 0x18;
/// Task `n`'s TSS is at `TASK + 8 * n`.
const TASK: u16 = 0x20;
const SECOND: u16 = 0x28;
const HANDLER: u16 = 0x30;
const GATE: u16 = 0x38;
const LDT: u16 = 0x40;
const USER_CODE: u16 = 0x4b;
const USER_DATA: u16 = 0x53;
const NO_DATA: u16 = 0x58;
const NO_CODE: u16 = 0x60;
const TASK_16: u16 = 0x68;
const SHORT: u16 = 0x70;
const ABSENT: u16 = 0x78;
const CODE_16: u16 = 0x80;
const STACK_16: u16 = 0x88;
const UNMAPPED: u16 = 0x90;
const BEYOND: u16 = 0x1f8;

/// What the main task has in its registers when it switches, but for ESP.
const GENERAL: [u32; 8] = [0xa0a0_a0a0, 0xc1c1_c1c1, 0xd2d2_d2d2, 0xb3b3_b3b3, 0, 0x5555_5555, 0x6666_6666, 0x7777_7777];

/// What the page at 0xc0000000 holds, by page directory.
const PAGE_A: u32 = 0xaaaa_0001;
const PAGE_B: u32 = 0xbbbb_0002;
const PHYS_A: u32 = 0x0100_0000;
const PHYS_B: u32 = 0x0140_0000;

const NT: u32 = 1 << 14;
const TS: u32 = 1 << 3;

/// What a task has seen of itself.
#[derive(Clone, Copy, Debug)]
struct Record {
    general: [u32; 8],
    flags: u32,
    /// ES, CS, SS, DS, FS, GS.
    segments: [u32; 6],
    tr: u32,
    ldt: u32,
    page: u32,
    /// The type bytes of the main and the first task's TSS.
    types: [u32; 2],
    cr0: u32,
    cr3: u32,
    dr7: u32,
}

struct Rig {
    at: Symbols,
}

impl Rig {
    fn new() -> Self {
        let rig = Self { at: Symbols::get() };
        rig.reset();
        rig
    }

    /// Everything as before the first switch: the tasks' registers are known, and none is busy.
    fn reset(&self) {
        let at = &self.at;
        for i in 0..1024u32 {
            // 4-MiB pages for everybody, one to one but for two.
            let identity = i << 22 | 0x87;
            let (a, b) = match i {
                0x300 => (PHYS_A | 0x87, PHYS_B | 0x87),
                0x301 => (0, 0),
                _ => (identity, identity),
            };
            put32(at.ts_pd_a + 4 * i, a);
            put32(at.ts_pd_b + 4 * i, b);
        }
        put32(PHYS_A, PAGE_A);
        put32(PHYS_B, PAGE_B);
        let tss = |n: u32| at.ts_main_tss + 128 * n;
        for (selector, descriptor) in [
            (CODE, segment(0, 0xf_ffff, 0x9b, 0xc)),
            (DATA, segment(0, 0xf_ffff, 0x93, 0xc)),
            (MAIN, segment(tss(0), 103, 0x89, 0)),
            (TASK, segment(tss(1), 103, 0x89, 0)),
            (SECOND, segment(tss(2), 103, 0x89, 0)),
            (HANDLER, segment(tss(3), 103, 0x89, 0)),
            (GATE, task_gate(TASK, 0x85)),
            (LDT, segment(at.ts_ldt, 15, 0x82, 0)),
            (USER_CODE, segment(0, 0xf_ffff, 0xfb, 0xc)),
            (USER_DATA, segment(0, 0xf_ffff, 0xf3, 0xc)),
            (NO_DATA, segment(0, 0xf_ffff, 0x13, 0xc)),
            (NO_CODE, segment(0, 0xf_ffff, 0x1b, 0xc)),
            (TASK_16, segment(tss(4), 43, 0x81, 0)),
            (SHORT, segment(tss(1), 102, 0x89, 0)),
            (ABSENT, segment(tss(1), 103, 0x09, 0)),
            (CODE_16, segment(at.ts_body_iret, 0xf_ffff, 0x9b, 0xc)),
            (STACK_16, segment(at.ts_stacks, 0xffff, 0x93, 0)),
            (UNMAPPED, segment(0xc040_0000 + (tss(1) & 0x3f_ffff), 103, 0x89, 0)),
        ] {
            put64(at.ts_gdt + u32::from(selector & !7), descriptor);
        }
        put64(at.ts_ldt + 8, segment(0, 0xf_ffff, 0x92, 0xc));
        for vector in 0..0x50 {
            let handler = if vector < 32 { interrupt_gate(at.ts_faults + 16 * vector, 0x8e) } else { 0 };
            self.set_gate(vector, handler);
        }
        for n in 0..5 {
            for offset in (0..104).step_by(4) {
                put32(tss(n) + offset, 0);
            }
            let stack = at.ts_stacks + 4096 * n;
            self.set(n, 0x04, stack - 256);
            self.set(n, 0x08, DATA.into());
            self.set(n, 0x1c, at.ts_pd_a);
            self.set(n, 0x24, 2);
            for i in 0..8 {
                self.set(n, 0x28 + 4 * i, 0x1000_0000 * n + i);
            }
            self.set(n, 0x38, stack);
            for i in 0..6 {
                self.set(n, 0x48 + 4 * i, if i == 1 { CODE } else { DATA }.into());
            }
        }
        for offset in (0..32).step_by(4) {
            put32(at.ts_fault_seen + offset, 0);
        }
        put32(at.ts_next, at.ts_records);
        put32(at.ts_error, 0xffff_ffff);
    }

    fn set_gate(&self, vector: u32, gate: u64) {
        put64(self.at.ts_idt + 8 * vector, gate);
    }

    /// Writes a field of task `n`'s TSS; the main task is 0.
    fn set(&self, n: u32, offset: u32, value: u32) {
        put32(self.at.ts_main_tss + 128 * n + offset, value);
    }
    fn field(&self, n: u32, offset: u32) -> u32 {
        get32(self.at.ts_main_tss + 128 * n + offset)
    }
    fn body(&self, n: u32, eip: u32) {
        self.set(n, 0x20, eip);
    }
    fn kind(&self, selector: u16) -> u32 {
        u32::from(cpu::read8(u64::from(self.at.ts_gdt + u32::from(selector & !7) + 5)))
    }

    fn run(&self, entry: u32, target: u16) {
        put32(self.at.ts_target, 0);
        put32(self.at.ts_target + 4, target.into());
        // SAFETY: goes to 32-bit mode and comes back with mode, tables, stack and callee-saved registers as they were.
        unsafe { ts_run(entry) };
    }

    /// The same, and no fault is left over; what the tasks have seen, in their order.
    fn records<const N: usize>(&self, entry: u32, target: u16) -> [Record; N] {
        self.run(entry, target);
        check_eq!(self.fault(), [0; 4], "vector, error code, EIP and TR of a fault");
        let seen = (get32(self.at.ts_next) - self.at.ts_records) / 128;
        check_eq!(seen, N as u32, "entries of tasks");
        core::array::from_fn(|n| {
            let word = |i: usize| get32(self.at.ts_records + 128 * n as u32 + 4 * i as u32);
            Record {
                general: core::array::from_fn(word),
                flags: word(8),
                segments: core::array::from_fn(|i| word(9 + i)),
                tr: word(15),
                ldt: word(16),
                page: word(17),
                types: [word(18), word(19)],
                cr0: word(20),
                cr3: word(21),
                dr7: word(22),
            }
        })
    }

    /// Vector, error code, EIP and TR of a fault that no task has taken.
    fn fault(&self) -> [u32; 4] {
        core::array::from_fn(|i| get32(self.at.ts_fault_seen + 4 * i as u32))
    }

    /// The main task is back, with everything it had, and `after` is where its TSS says that it went on.
    fn check_main(&self, main: &Record, after: u32) {
        let esp = self.at.ts_stack_main - 4;
        let mut general = GENERAL;
        general[4] = esp;
        check_eq!(main.general, general, "the main task's registers");
        check_eq!(self.field(0, 0x20), after, "EIP in the main task's TSS");
        check_eq!(core::array::from_fn::<u32, 8, _>(|i| self.field(0, 0x28 + 4 * i as u32)), general, "registers there");
        check_eq!(
            core::array::from_fn::<u32, 6, _>(|i| self.field(0, 0x48 + 4 * i as u32)),
            [16, 8, 16, 16, 16, 16],
            "selectors"
        );
        check_eq!(main.segments, [16, 8, 16, 16, 16, 16], "the main task's selectors");
        check_eq!([main.tr, main.ldt, main.cr3, main.page], [MAIN.into(), 0, self.at.ts_pd_a, PAGE_A], "TR, LDTR, CR3");
        check_eq!(main.flags & NT, 0, "NT of the main task");
        check_eq!(main.types, [0x8b, 0x89], "the main task is busy, the other is not");
    }
}

fn put32(at: u32, value: u32) {
    cpu::write32(at.into(), value);
}
fn put64(at: u32, value: u64) {
    cpu::write64(at.into(), value);
}
fn get32(at: u32) -> u32 {
    cpu::read32(at.into())
}

/// A segment descriptor: byte 5 is `kind`, the upper half of byte 6 `flags`.
fn segment(base: u32, limit: u32, kind: u64, flags: u64) -> u64 {
    let (base, limit) = (u64::from(base), u64::from(limit));
    limit & 0xffff | (base & 0xff_ffff) << 16 | kind << 40 | (limit >> 16) << 48 | flags << 52 | (base >> 24) << 56
}

fn task_gate(tss: u16, kind: u64) -> u64 {
    u64::from(tss) << 16 | kind << 40
}

fn interrupt_gate(address: u32, kind: u64) -> u64 {
    let address = u64::from(address);
    address & 0xffff | u64::from(CODE) << 16 | kind << 40 | (address >> 16) << 48
}

/// JMP, CALL and INT n to a TSS and through task gates, IRET, nested tasks, 16-bit tasks, an LDT and page tables of their own, tasks at CPL 3, exceptions
/// with an error code and interrupts through task gates, and faults on the way: the old task's and the new task's.
pub fn task_switch(_: &BootInfo) {
    let rig = Rig::new();
    jumps(&rig);
    calls(&rig);
    error_code(&rig);
    nested(&rig);
    sixteen_bit(&rig);
    local_table(&rig);
    user(&rig);
    interrupt(&rig);
    faults_of_the_old_task(&rig);
    faults_of_the_new_task(&rig);
}

fn jumps(rig: &Rig) {
    rig.body(1, rig.at.ts_body_jmp);
    rig.set(1, 0, 0x5555);
    rig.set(1, 0x1c, rig.at.ts_pd_b);
    // L0 and G1; nothing is executed at 0.
    cpu::write_dr7(0x409);
    let [task, main] = rig.records(rig.at.ts_jmp, TASK);
    cpu::write_dr7(0x400);
    let mut general: [u32; 8] = core::array::from_fn(|i| 0x1000_0000 + i as u32);
    general[4] = rig.at.ts_stacks + 4096;
    check_eq!(task.general, general, "the new task's registers");
    check_eq!(task.segments, [16, 8, 16, 16, 16, 16], "its selectors");
    check_eq!([task.tr, task.ldt, task.flags & NT], [TASK.into(), 0, 0], "TR, LDTR, NT");
    check_eq!([task.cr3, task.page], [rig.at.ts_pd_b, PAGE_B], "CR3");
    check_eq!(task.cr0 & TS, TS, "CR0.TS");
    check_eq!(task.dr7 & 0xff, 8, "breakpoints of one task are off, others on");
    check_eq!(task.types, [0x89, 0x8b], "the old task is free, the new one busy");
    rig.check_main(&main, rig.at.ts_jmp_after);
    check_eq!(rig.field(1, 0), 0x5555, "JMP writes no link");
    check_eq!(rig.field(1, 0x20), rig.at.ts_body_jmp_after, "where the task goes on");
    check_eq!(rig.field(1, 0x1c), rig.at.ts_pd_b, "CR3 is not saved");
}

fn calls(rig: &Rig) {
    // By TSS, by a gate in the GDT, and by one in the IDT.
    for (entry, target, after) in [
        (rig.at.ts_call, TASK, rig.at.ts_call_after),
        (rig.at.ts_call, GATE, rig.at.ts_call_after),
        (rig.at.ts_int, 0, rig.at.ts_int_after),
    ] {
        rig.reset();
        rig.set_gate(0x40, task_gate(TASK, 0x85));
        rig.body(1, rig.at.ts_body_iret);
        let [task, main] = rig.records(entry, target);
        check_eq!([task.tr, task.flags & NT], [TASK.into(), NT], "TR and NT of the called task");
        check_eq!(task.types, [0x8b, 0x8b], "both are busy");
        check_eq!(rig.field(1, 0), MAIN.into(), "back link");
        check_eq!(rig.field(1, 0x24) & NT, 0, "IRET clears NT in the TSS that it leaves");
        check_eq!(get32(rig.at.ts_cpuid), crate::rt::cpuid(0, 0)[1], "CPUID in the task");
        rig.check_main(&main, after);
    }
}

/// The handler's task is left by IRET and so starts behind it the next time.
fn error_code(rig: &Rig) {
    rig.reset();
    rig.set_gate(13, task_gate(HANDLER, 0x85));
    rig.body(3, rig.at.ts_body_error);
    let [handler, main, again, last] = rig.records(rig.at.ts_gp, 0);
    check_eq!(get32(rig.at.ts_error), 0xc1c0, "error code");
    for handler in [handler, again] {
        check_eq!([handler.tr, handler.flags & NT], [HANDLER.into(), NT], "the handler's task");
        check_eq!(handler.general[4], rig.at.ts_stacks + 3 * 4096, "its stack, without the error code");
    }
    check_eq!([main.tr, last.tr], [MAIN.into(); 2], "back twice");
    check!(main.general[1..4] == GENERAL[1..4], "registers: {:x?}", main.general);
    check_eq!(rig.field(3, 0), MAIN.into(), "back link");
    check!(rig.field(0, 0x20) > rig.at.ts_gp_at, "the main task went on");
}

fn nested(rig: &Rig) {
    rig.reset();
    rig.body(1, rig.at.ts_body_nest);
    rig.body(2, rig.at.ts_body_iret);
    let [first, second, back, main] = rig.records(rig.at.ts_call, TASK);
    check_eq!([first.tr, second.tr, back.tr], [TASK.into(), SECOND.into(), TASK.into()], "who ran");
    check_eq!([second.flags & NT, back.flags & NT], [NT, NT], "both are nested");
    check_eq!(second.types, [0x8b, 0x8b], "all are busy");
    check_eq!([rig.field(1, 0), rig.field(2, 0)], [MAIN.into(), TASK.into()], "back links");
    check_eq!(rig.kind(SECOND), 0x89, "the innermost task is free");
    rig.check_main(&main, rig.at.ts_call_after);
}

fn sixteen_bit(rig: &Rig) {
    rig.reset();
    let words: [u16; 22] = {
        let mut words = [0; 22];
        words[8] = 2;
        for (i, word) in words[9..17].iter_mut().enumerate() {
            *word = 0x9000 + i as u16;
        }
        // SP, and ES, CS, SS, DS, LDT.
        words[13] = 0x800;
        words[17..22].copy_from_slice(&[DATA, CODE_16, STACK_16, DATA, LDT]);
        words
    };
    for (i, pair) in words.chunks(2).enumerate() {
        rig.set(4, 4 * i as u32, u32::from(pair[0]) | u32::from(pair[1]) << 16);
    }
    let [task, main] = rig.records(rig.at.ts_call, TASK_16);
    for (i, value) in task.general.iter().enumerate().filter(|(i, _)| *i != 4) {
        check_eq!(*value as u16, 0x9000 + i as u16, "register {i}");
    }
    check_eq!(task.general[4] as u16, 0x800, "SP");
    check_eq!(task.segments, [DATA, CODE_16, STACK_16, DATA, 0, 0].map(u32::from), "selectors");
    check_eq!([task.tr, task.ldt, task.flags & NT], [TASK_16.into(), LDT.into(), NT], "TR, LDTR, NT");
    check_eq!(rig.field(4, 0) as u16, MAIN, "back link");
    check_eq!(rig.kind(TASK_16), 0x81, "free again");
    check_eq!(task.cr3, rig.at.ts_pd_a, "it has no CR3");
    rig.check_main(&main, rig.at.ts_call_after);
}

fn local_table(rig: &Rig) {
    rig.reset();
    rig.body(1, rig.at.ts_body_iret);
    rig.set(1, 0x60, LDT.into());
    rig.set(1, 0x48, 0x0c);
    let [task, main] = rig.records(rig.at.ts_call, TASK);
    check_eq!([task.ldt, task.segments[0]], [LDT.into(), 0x0c], "LDTR and ES");
    rig.check_main(&main, rig.at.ts_call_after);
}

fn user(rig: &Rig) {
    rig.reset();
    rig.body(1, rig.at.ts_body_iret);
    for (i, selector) in [USER_DATA, USER_CODE, USER_DATA, USER_DATA, 0, 0].into_iter().enumerate() {
        rig.set(1, 0x48 + 4 * i as u32, selector.into());
    }
    let [task, main] = rig.records(rig.at.ts_call, TASK);
    check_eq!(task.segments, [USER_DATA, USER_CODE, USER_DATA, USER_DATA, 0, 0].map(u32::from), "selectors at CPL 3");
    rig.check_main(&main, rig.at.ts_call_after);
}

/// To a task in virtual-8086 mode and back. INT 40H there is a task gate, and INT 43H an interrupt gate to CPL 0 on the stack that the TSS names.
pub fn task_switch_v86(_: &BootInfo) {
    let rig = Rig::new();
    // MOV AX, 1234H; INT 40H; INT 43H.
    for (i, byte) in [0xb8, 0x34, 0x12, 0xcd, 0x40, 0xcd, 0x43].into_iter().enumerate() {
        cpu::write8(0x8000 + i as u64, byte);
    }
    rig.set_gate(0x40, task_gate(SECOND, 0xe5));
    rig.set_gate(0x43, interrupt_gate(rig.at.ts_from_v86, 0xee));
    rig.body(2, rig.at.ts_body_iret);
    rig.body(1, 0);
    // VM and IOPL 3.
    rig.set(1, 0x24, 0x2_3002);
    rig.set(1, 0x38, 0x7000);
    for (i, selector) in [0x100, 0x800, 0x200, 0x300, 0x400, 0x500].into_iter().enumerate() {
        rig.set(1, 0x48 + 4 * i as u32, selector);
    }
    let [second, back, main] = rig.records(rig.at.ts_jmp, TASK);
    check_eq!([second.tr, rig.field(2, 0)], [SECOND.into(), TASK.into()], "the task that the gate names");
    check_eq!([back.tr, back.general[0] as u16 as u32], [TASK.into(), 0x1234], "back in the virtual-8086 task");
    // Nine words lie on the stack of CPL 0.
    let stack = rig.at.ts_stacks + 4096 - 256;
    check_eq!(back.general[4], stack - 36, "stack pointer for CPL 0");
    let pushed: [u32; 9] = core::array::from_fn(|i| get32(stack - 36 + 4 * i as u32));
    check_eq!([pushed[0], pushed[1], pushed[3] as u16 as u32], [7, 0x800, 0x7000], "EIP, CS and SP of the task");
    check_eq!(pushed[2] & 0x2_0000, 0x2_0000, "VM");
    check_eq!([4, 5, 6, 7, 8].map(|i| pushed[i] & 0xffff), [0x200, 0x100, 0x300, 0x400, 0x500], "SS, ES, DS, FS, GS");
    rig.check_main(&main, rig.at.ts_jmp_after);
}

fn interrupt(rig: &Rig) {
    rig.reset();
    apic::enable();
    rig.set_gate(0x41, task_gate(TASK, 0x85));
    rig.body(1, rig.at.ts_body_irq);
    let [task, main] = rig.records(rig.at.ts_irq, 0);
    check_eq!([task.tr, task.flags & (NT | 0x200)], [TASK.into(), NT], "the interrupt's task, with IF of its own");
    check_eq!([main.tr, main.general[1]], [MAIN.into(), GENERAL[1]], "back in the main task");
    check_eq!(rig.field(0, 0x24) & 0x200, 0x200, "IF of the main task");
}

/// The handler's task is not entered again before its IRET, which opens the CPU to the next NMI.
fn nmi(rig: &Rig) {
    rig.reset();
    rig.set_gate(2, task_gate(TASK, 0x85));
    rig.body(1, rig.at.ts_body_nmi);
    let [first, still, second, main] = rig.records(rig.at.ts_nmi, 0);
    check_eq!([first.tr, still.tr, second.tr], [TASK.into(); 3], "the handler's task");
    check_eq!(still.general[1], 0, "the time passed within it");
    check_eq!(second.general[1], 0, "it went on behind its IRET");
    check_eq!(main.tr, MAIN.into(), "back in the main task");
}

/// The main task stays, and its TSS and the other's are as they were.
fn faults_of_the_old_task(rig: &Rig) {
    for (target, vector, error) in [
        (MAIN, 13, u32::from(MAIN)),
        (SHORT, 10, SHORT.into()),
        (ABSENT, 11, ABSENT.into()),
        (BEYOND, 13, BEYOND.into()),
        (UNMAPPED, 14, 0),
    ] {
        rig.reset();
        rig.set(0, 0x20, 0x4711);
        rig.run(rig.at.ts_jmp, target);
        check_eq!(rig.fault(), [vector, error, rig.at.ts_jmp_at, MAIN.into()], "JMP to {target:#x}");
        check_eq!([rig.kind(MAIN), rig.kind(TASK)], [0x8b, 0x89], "types after JMP to {target:#x}");
        check_eq!(rig.field(0, 0x20), 0x4711, "nothing was saved");
        if vector == 14 {
            check_eq!(get32(rig.at.ts_fault_seen + 16) >> 12, (0xc040_0000 + (rig.at.ts_tss & 0x3f_ffff)) >> 12, "CR2");
        }
    }
}

/// The fault's handler is a task, too. It puts the failed task's TSS right, and that one runs.
fn faults_of_the_new_task(rig: &Rig) {
    for (offset, bad, good, vector) in [
        (0x54, BEYOND, DATA, 10),
        (0x54, NO_DATA, DATA, 11),
        (0x4c, NO_CODE, CODE, 11),
        (0x4c, DATA, CODE, 10),
        (0x50, 0, DATA, 10),
        (0x60, DATA, 0, 10),
    ] {
        failing_load(rig, offset, bad, good, vector);
    }
}

fn failing_load(rig: &Rig, offset: u32, bad: u16, good: u16, vector: u32) {
    rig.reset();
    rig.set_gate(vector, task_gate(HANDLER, 0x85));
    rig.body(1, rig.at.ts_body_iret);
    rig.body(3, rig.at.ts_body_repair);
    rig.set(1, offset, bad.into());
    let at = rig.at.ts_tss + offset;
    put32(rig.at.ts_repair_at, at);
    put32(rig.at.ts_repair_with, good.into());
    let [handler, task, main] = rig.records(rig.at.ts_call, TASK);
    check_eq!(get32(rig.at.ts_error), bad.into(), "error code for {bad:#x} at {offset:#x}");
    check_eq!(handler.tr, HANDLER.into(), "the handler's task");
    check_eq!(rig.field(3, 0), TASK.into(), "the fault is the new task's");
    check_eq!(handler.types, [0x8b, 0x8b], "which is busy");
    check_eq!([task.tr, task.flags & NT], [TASK.into(), NT], "it runs in the end");
    check_eq!(task.general[7], 0x1000_0007, "with its registers");
    rig.check_main(&main, rig.at.ts_call_after);
}

/// What QEMU leaves out: the T bit of a TSS, #SS for a stack segment that is not present, EIP of a new task that cannot be entered, accessed bits, and RF of a
/// task that a fault takes the CPU from. And NMIs through a task gate: as QEMU does not let the hypervisor switch tasks, the TSS of a task whose IRET ends an
/// NMI while the next one waits gets the TF of the hypervisor's own step.
pub fn task_switch_details(_: &BootInfo) {
    let rig = Rig::new();
    rig.body(1, rig.at.ts_body_iret);
    rig.set(1, 0x64, 1);
    cpu::write_dr6(0xffff_0ff0);
    rig.run(rig.at.ts_call, TASK);
    // #DB pushes no error code: EIP is where the others have it.
    let seen = |i: u32| get32(rig.at.ts_fault_seen + 4 * i);
    check_eq!([seen(0), seen(1), seen(3)], [1, rig.at.ts_body_iret, TASK.into()], "#DB before the first instruction");
    check_eq!(seen(5) & 0xe00f, 0x8000, "DR6.BT");
    cpu::write_dr6(0xffff_0ff0);

    failing_load(&rig, 0x50, NO_DATA, DATA, 12);
    check_eq!(get32(rig.at.ts_repair_eip), rig.at.ts_body_iret, "the new task has not begun");

    local_table(&rig);
    check_eq!(cpu::read8(u64::from(rig.at.ts_ldt + 13)), 0x93, "the descriptor of ES is marked as accessed");

    rig.reset();
    rig.set_gate(13, task_gate(HANDLER, 0x85));
    rig.body(3, rig.at.ts_body_repair);
    // The handler lets the instruction be executed again, with another selector.
    put32(rig.at.ts_repair_at, rig.at.ts_main_tss + 0x2c);
    put32(rig.at.ts_repair_with, DATA.into());
    rig.run(rig.at.ts_gp, 0);
    check!(rig.field(0, 0x24) & 1 << 16 != 0, "RF in the TSS of the task that has faulted");

    nmi(&rig);
}
