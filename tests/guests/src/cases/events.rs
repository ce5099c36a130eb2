//! Exceptions, NMIs, HLT, and what happens to them around exits.

use crate::rt::{
    BootInfo, apic, catch, check, check_eq,
    cpu::{self, read_cr2, read32, read64, write64},
    cpuid, inb,
    interrupts::{self, Frame},
    on_interrupt, rdtsc, time,
};
use core::{
    arch::asm,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

const VECTOR: u8 = 0x50;

fn arm_one_shot(microseconds: u32) {
    apic::write(apic::reg::TIMER_DIVIDE, 0xb);
    apic::write(apic::reg::LVT_TIMER, u32::from(VECTOR));
    apic::write(apic::reg::TIMER_INITIAL, microseconds * 1000);
}

/// HLT waits for an interrupt, and goes on behind itself afterwards; with interrupts masked by the LAPIC it does not wake early.
pub fn hlt_wake(_: &BootInfo) {
    apic::enable();
    on_interrupt(VECTOR, |_| apic::eoi());
    for round in 1..=20 {
        let start = rdtsc();
        arm_one_shot(500);
        cpu::sti_hlt();
        let elapsed = (rdtsc() - start) * 1_000_000 / time::tsc_hz();
        check_eq!(interrupts::count(VECTOR), round, "one interrupt a round");
        check!(elapsed >= 500, "woke after {elapsed} us, before the timer");
    }
    // An interrupt that is pending already ends HLT at once.
    apic::write(apic::reg::ICR_LOW, 0x4_4000 | u32::from(VECTOR));
    cpu::sti_hlt();
    check_eq!(interrupts::count(VECTOR), 21, "pending interrupt taken");
}

static AT: AtomicU64 = AtomicU64::new(0);

/// STI holds interrupts back for one instruction, also if that instruction exits (SDM vol. 2B "STI").
pub fn sti_shadow(_: &BootInfo) {
    apic::enable();
    on_interrupt(VECTOR, |frame| {
        AT.store(frame.rip, Ordering::SeqCst);
        apic::eoi();
    });
    let (after_in, after_sti): (u64, u64);
    apic::write(apic::reg::ICR_LOW, 0x4_4000 | u32::from(VECTOR));
    // SAFETY: an interrupt comes in the block; its handler preserves registers.
    unsafe {
        asm!("lea {a}, [rip + 2f]", "lea {b}, [rip + 3f]", "sti", "3: in al, 0x61", "2: nop", "cli", a = out(reg) after_in, b = out(reg) after_sti, out("al") _);
    }
    check_eq!(AT.load(Ordering::SeqCst), after_in, "taken behind the instruction that follows STI (at {after_sti:#x})");
    apic::write(apic::reg::ICR_LOW, 0x4_4000 | u32::from(VECTOR));
    let end: u64;
    // SAFETY: as above; MOV SS loads the same selector.
    unsafe {
        asm!("mov ax, ss", "lea {a}, [rip + 2f]", "sti", "mov ss, ax", "in al, 0x61", "2: nop", "cli", a = out(reg) end, out("rax") _);
    }
    check!(AT.load(Ordering::SeqCst) <= end, "taken by then");
    check_eq!(interrupts::count(VECTOR), 2, "two interrupts");
}

/// Exceptions reach the guest with the right vector, error code and RIP (SDM vol. 3A, 7.15), those of exiting instructions included.
pub fn exceptions(_: &BootInfo) {
    macro_rules! execute {
        ($($code:tt)*) => {
            || {
                // SAFETY: every faulting instruction is caught; registers that it could change are declared.
                unsafe { asm!($($code)*) }
            }
        };
    }
    let caught = |body: &dyn Fn()| catch(body).map(|c| (c.vector, c.error));
    check_eq!(caught(&execute!("ud2")), Some((6, 0)), "UD2");
    check_eq!(caught(&execute!("int3")), Some((3, 0)), "INT3");
    check_eq!(caught(&execute!("div {0:e}", in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _)), Some((0, 0)), "#DE");
    check_eq!(caught(&execute!("mov ds, {0:x}", in(reg) 0x1230)), Some((13, 0x1230)), "#GP with a selector");
    check_eq!(caught(&execute!("mov al, [{}]", in(reg) 1u64 << 63, out("al") _)), Some((13, 0)), "non-canonical");
    on_interrupt(0x70, |_| {});
    check_eq!(caught(&execute!("int 0x70")), None, "INT n goes to its handler");
    check_eq!(interrupts::count(0x70), 1, "INT n");
    // Instructions that exit and that this CPU does not have.
    check_eq!(
        caught(&execute!("xor eax, eax", "xor ecx, ecx", "xor edx, edx", "monitor", out("eax") _, out("ecx") _, out("edx") _)),
        Some((6, 0)),
        "MONITOR"
    );
    check_eq!(caught(&execute!(".byte 0x0f, 0x01, 0xc2")), Some((6, 0)), "VMLAUNCH");
    check_eq!(caught(&execute!(".byte 0x0f, 0x01, 0xd8", in("rax") 0)), Some((6, 0)), "VMRUN");
    check_eq!(
        caught(&|| {
            cpu::rdmsr(0x3a);
        }),
        Some((13, 0)),
        "RDMSR"
    );
    check_eq!(catch(execute!("ud2")).map(|c| c.rip & 0xffff_ffff_0000_0000), Some(0), "RIP at the instruction");
}

/// An interrupt that becomes pending while an exit is being handled is delivered behind the instruction, exactly once, and an exception of
/// the exiting instruction comes first.
pub fn exception_during_exit(_: &BootInfo) {
    apic::enable();
    on_interrupt(VECTOR, |_| apic::eoi());
    cpu::sti();
    for round in 1..=1000u32 {
        // The write that exits makes the interrupt pending.
        apic::write(apic::reg::ICR_LOW, 0x4_4000 | u32::from(VECTOR));
        if round % 2 == 0 {
            let caught = catch(|| {
                cpu::rdmsr(0x480);
            });
            check_eq!(caught.map(|c| c.vector), Some(13), "#GP in round {round}");
        } else {
            cpuid(0, 0);
        }
        check_eq!(interrupts::count(VECTOR), round, "interrupts by round {round}");
    }
    cpu::cli();
    // Timer interrupts at random places in a stream of exits: none lost, none doubled.
    interrupts::clear_count(VECTOR);
    let mut fired = 0;
    for round in 0..200u32 {
        arm_one_shot(1 + round % 37);
        cpu::sti();
        let done = time::wait_for(1_000_000, || {
            inb(0x61);
            interrupts::count(VECTOR) > fired
        });
        cpu::cli();
        check!(done, "timer interrupt {round} came");
        fired += 1;
        check_eq!(interrupts::count(VECTOR), fired, "and came once");
    }
}

static STEPS: AtomicU64 = AtomicU64::new(0);
static STEP_RIPS: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

/// RFLAGS.TF traps after each instruction, emulated ones included, with DR6.BS (SDM vol. 3B, 18.3.1.4).
pub fn single_step(_: &BootInfo) {
    on_interrupt(1, |frame| {
        let n = STEPS.fetch_add(1, Ordering::SeqCst) as usize;
        if let Some(slot) = STEP_RIPS.get(n) {
            slot.store(frame.rip, Ordering::SeqCst);
        }
    });
    cpu::write_dr6(0);
    let (a, b, c): (u64, u64, u64);
    // SAFETY: TF is set for four instructions; CPUID clobbers are declared, RBX is saved.
    unsafe {
        asm!(
            "mov r15, rbx",
            "lea r12, [rip + 2f]",
            "lea r13, [rip + 3f]",
            "lea r14, [rip + 4f]",
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            "nop",
            "2: xor eax, eax",
            "cpuid",
            "3: in al, 0x61",
            "4: pushfq",
            "and qword ptr [rsp], -257",
            "popfq",
            "mov rbx, r15",
            out("r12") a, out("r13") b, out("r14") c, out("r15") _, out("rax") _, out("rcx") _, out("rdx") _,
        );
    }
    let rips = [0, 1, 2, 3].map(|i| STEP_RIPS[i].load(Ordering::SeqCst));
    check_eq!([rips[0], rips[2], rips[3]], [a, b, c], "trapped behind NOP, CPUID and IN");
    check_eq!(STEPS.load(Ordering::SeqCst), 7, "traps in all");
    check!(cpu::read_dr6() & 1 << 14 != 0, "DR6.BS");
}

/// With DR7.GD, an access to a debug register faults with DR6.BD, and the handler may access them (SDM vol. 3B, 18.2.4, 18.3.1.3).
pub fn general_detect(_: &BootInfo) {
    const GD: u64 = 1 << 13;
    cpu::write_dr6(0);
    for round in 0..3 {
        cpu::write_dr7(1 << 10 | GD);
        let caught = catch(|| {
            cpu::read_dr6();
        });
        check_eq!(caught.map(|c| c.vector), Some(1), "round {round}: reading DR6");
        check_eq!(cpu::read_dr7() & GD, 0, "GD is clear behind its exception");
        // Bochs 2.7 does not set it in VMCBs.
        check!(cpuid(0, 0)[1] == 0x6874_7541 || cpu::read_dr6() & GD != 0, "DR6.BD");
        cpu::write_dr6(0);
    }
}

static NMI_SEEN: AtomicU64 = AtomicU64::new(0);

/// An NMI comes with interrupts off, and blocks the next until IRET (SDM vol. 3A, 7.7.1).
pub fn nmi(_: &BootInfo) {
    apic::enable();
    on_interrupt(2, |_| {
        if NMI_SEEN.fetch_add(1, Ordering::SeqCst) == 0 {
            // Another one while this handler runs: it must wait.
            apic::write(apic::reg::ICR_LOW, 0x4_4400);
            cpuid(0, 0);
            inb(0x61);
            check_eq!(NMI_SEEN.load(Ordering::SeqCst), 1, "NMI blocked by NMI");
        }
    });
    cpu::cli();
    apic::write(apic::reg::ICR_LOW, 0x4_4400);
    cpuid(0, 0);
    check!(
        time::wait_for(1_000_000, || NMI_SEEN.load(Ordering::SeqCst) == 2),
        "both NMIs came: {}",
        NMI_SEEN.load(Ordering::SeqCst)
    );
    // HLT with interrupts off is ended by an NMI: from the PIT through the IOAPIC, as a watchdog does.
    on_interrupt(2, |_| {
        NMI_SEEN.fetch_add(1, Ordering::SeqCst);
        apic::io_write(0x14, 1 << 16);
    });
    apic::route(2, 0x400, 0);
    // In 25 ms: it must not come before HLT, even where other work delays this CPU.
    time::pit_set(0, 0, 30_000);
    cpu::hlt();
    check_eq!(NMI_SEEN.load(Ordering::SeqCst), 3, "NMI from the PIT ended HLT");
}

/// Where the instructions behind STI and MOV SS are.
static IN_SHADOW: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
static LEAKS: AtomicU32 = AtomicU32::new(0);

/// NMIs come again and again while the processor is in one interrupt shadow after another (SDM vol. 2 "STI", "MOV"; APM vol. 2, 15.21.5): never in the shadow
/// itself, and whatever the hypervisor does to find its end, the guest does not see it, not even when the instruction there faults.
pub fn nmi_shadow(_: &BootInfo) {
    const TF: u64 = 1 << 8;
    fn look(frame: &Frame) {
        if frame.rflags & TF != 0 {
            LEAKS.fetch_add(1, Ordering::SeqCst);
        }
    }
    apic::enable();
    on_interrupt(1, |frame| look(frame));
    on_interrupt(2, |frame| {
        look(frame);
        let at = IN_SHADOW.iter().position(|at| at.load(Ordering::SeqCst) == frame.rip);
        check_eq!(at, None, "NMI in the shadow at {:#x}", frame.rip);
        NMI_SEEN.fetch_add(1, Ordering::SeqCst);
    });
    on_interrupt(6, |frame| {
        look(frame);
        frame.rip += 2;
    });
    cpu::cli();
    apic::route(2, 0x400, 0);
    time::pit_set(0, 2, 61);
    let mut rounds = 0;
    while NMI_SEEN.load(Ordering::SeqCst) < 2000 {
        let (a, b, c): (u64, u64, u64);
        // SAFETY: NMIs and #UD come in the block; their handlers preserve registers. MOV SS loads the same selector.
        unsafe {
            asm!(
                "mov eax, ss", "lea {a}, [rip + 2f]", "lea {b}, [rip + 3f]", "lea {c}, [rip + 4f]",
                "sti", "2: nop", "cli",
                "mov ss, ax", "3: nop", "nop",
                "sti", "4: ud2", "cli",
                a = out(reg) a, b = out(reg) b, c = out(reg) c, out("rax") _,
            );
        }
        for (slot, at) in IN_SHADOW.iter().zip([a, b, c]) {
            slot.store(at, Ordering::SeqCst);
        }
        rounds += 1;
        check!(rounds < 10_000_000, "only {} NMIs", NMI_SEEN.load(Ordering::SeqCst));
    }
    apic::io_write(0x14, 1 << 16);
    check_eq!(LEAKS.load(Ordering::SeqCst), 0, "RFLAGS.TF seen in handlers");
    check_eq!(interrupts::count(1), 0, "no debug exception");
}

unsafe extern "C" {
    static boot_pd: u8;
}

/// Page faults are the guest's own: error code, CR2, and a retry after the handler has mapped the page, also for device memory.
pub fn page_fault(_: &BootInfo) {
    // SAFETY: only its address is taken.
    let directory = &raw const boot_pd as u64;
    let slot = directory + 8 * (0x3fe0_0000 >> 21);
    let entry = read64(slot);
    write64(slot, 0);
    flush(0x3fe0_0000);
    let caught = catch(|| {
        read32(0x3fe0_1234);
    });
    check_eq!(caught.map(|c| (c.vector, c.error)), Some((14, 0)), "read of a page that is not present");
    check_eq!(read_cr2(), 0x3fe0_1234, "CR2");
    let caught = catch(|| cpu::write32(0x3fe0_1238, 1));
    check_eq!(caught.map(|c| (c.vector, c.error)), Some((14, 2)), "write");
    // Device memory through a read-only mapping: the emulator must raise the fault, not write.
    let device = 0xfee0_0000u64;
    write64(slot, device | 0x81);
    flush(0x3fe0_0000);
    check_eq!(read32(0x3fe0_0030), apic::read(apic::reg::VERSION), "the LAPIC through another address");
    cpu::write_cr0(cpu::read_cr0() | 1 << 16);
    let caught = catch(|| cpu::write32(0x3fe0_0080, 0x10));
    check_eq!(caught.map(|c| (c.vector, c.error)), Some((14, 3)), "write through a read-only mapping");
    check_eq!(apic::read(apic::reg::TPR), 0, "and nothing was written");
    write64(slot, entry);
    flush(0x3fe0_0000);
}

fn flush(address: u64) {
    // SAFETY: drops a translation.
    unsafe { asm!("invlpg [{}]", in(reg) address) };
}
