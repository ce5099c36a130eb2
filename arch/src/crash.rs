//! The end of the hypervisor: says what happened, on every console, and restarts the machine or stays.

use crate::cpu::trap::TrapFrame;
use crate::cpu::{cr, percpu};
use crate::symbols::{Address, Backtrace};
use crate::{console, power, smp::stop, tsc};
use core::arch::naked_asm;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Seconds between a crash report and the restart.
const REBOOT_AFTER: u64 = 5;

static REBOOT: AtomicBool = AtomicBool::new(true);
/// Crash reports that have been started.
static DEPTH: AtomicU32 = AtomicU32::new(0);

/// Says whether a crash restarts the machine (the default) or leaves it as it is.
pub fn set_reboot(reboot: bool) {
    REBOOT.store(reboot, Ordering::Relaxed);
}

struct Out;

impl Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(line) => {
                    console::write_sync(line.as_bytes());
                    console::write_sync(b"\r\n");
                }
                None => console::write_sync(line.as_bytes()),
            }
        }
        Ok(())
    }
}

/// Prints a line on every console at once, past the log.
pub fn note(message: fmt::Arguments<'_>) {
    let _ = writeln!(Out, "(BH) {message}");
}

/// Reports a fatal error of the hypervisor, and ends; the other CPUs are stopped first. Of several CPUs that crash, the first reports. `frame`:
/// the registers at the fault, if there was one.
pub fn die(message: fmt::Arguments<'_>, frame: Option<&TrapFrame>) -> ! {
    // SAFETY: interrupts are of no use any more.
    unsafe { core::arch::asm!("cli", options(nomem, nostack)) };
    stop::take_over();
    if DEPTH.fetch_add(1, Ordering::Relaxed) > 0 {
        // The report itself has crashed.
        if DEPTH.load(Ordering::Relaxed) == 2 {
            note(format_args!("PANIC: and while reporting that: {message}"));
            end();
        }
        cr::halt_forever();
    }
    // The cursor may be anywhere.
    console::write_sync(b"\r\n");
    note(format_args!("PANIC: {message}"));
    let mut here = TrapFrame::default();
    let frame = frame.unwrap_or_else(|| {
        // SAFETY: `here` is large enough and ours.
        unsafe { capture(&raw mut here) };
        &here
    });
    registers(frame);
    note(format_args!("Call trace:"));
    note(format_args!("  {}", Address(frame.rip)));
    trace(frame.rbp);
    end();
}

/// Ends for a reason that lies in the machine or its configuration: no registers, no call chain.
pub fn refuse(message: fmt::Arguments<'_>) -> ! {
    stop::take_over();
    console::write_sync(b"\r\n");
    note(format_args!("PANIC: {message}"));
    end();
}

/// Prints the call chain that starts at a frame pointer; what repeats itself, once.
fn trace(frame: u64) {
    let mut chain = Backtrace::from_frame(frame).peekable();
    for _ in 0..40 {
        let Some(address) = chain.next() else { return };
        let mut again = 0;
        while chain.next_if_eq(&address).is_some() {
            again += 1;
        }
        // A return address is behind its call, perhaps already in the next function.
        let address = Address(address.wrapping_sub(1));
        match again {
            0 => note(format_args!("  {address}")),
            _ => note(format_args!("  {address}, and {again} times more")),
        }
    }
    note(format_args!("  ..."));
}

fn registers(f: &TrapFrame) {
    let cpu = percpu::identify().map_or(0, percpu::PerCpu::number);
    note(format_args!("CPU {cpu} RIP {:04x}:{} RFLAGS {:08x}", f.cs, Address(f.rip), f.rflags));
    note(format_args!("RAX {:016x} RBX {:016x} RCX {:016x} RDX {:016x}", f.rax, f.rbx, f.rcx, f.rdx));
    note(format_args!("RSI {:016x} RDI {:016x} RBP {:016x} RSP {:016x}", f.rsi, f.rdi, f.rbp, f.rsp));
    note(format_args!("R8  {:016x} R9  {:016x} R10 {:016x} R11 {:016x}", f.r8, f.r9, f.r10, f.r11));
    note(format_args!("R12 {:016x} R13 {:016x} R14 {:016x} R15 {:016x}", f.r12, f.r13, f.r14, f.r15));
    note(format_args!("CR0 {:016x} CR2 {:016x} CR3 {:016x} CR4 {:016x}", cr::cr0(), cr::cr2(), cr::cr3(), cr::cr4()));
}

fn end() -> ! {
    if !REBOOT.load(Ordering::Relaxed) {
        note(format_args!("The machine stays as it is (noreboot)."));
        cr::halt_forever();
    }
    note(format_args!("Restarting the machine in {REBOOT_AFTER} seconds."));
    tsc::delay_us(REBOOT_AFTER * 1_000_000);
    power::reset();
}

/// Stores the caller's registers, as they are at the return from this call.
///
/// # Safety
/// `frame` must be writable.
#[unsafe(naked)]
unsafe extern "sysv64" fn capture(frame: *mut TrapFrame) {
    naked_asm!(
        "mov [rdi + {r15}], r15",
        "mov [rdi + {r14}], r14",
        "mov [rdi + {r13}], r13",
        "mov [rdi + {r12}], r12",
        "mov [rdi + {r11}], r11",
        "mov [rdi + {r10}], r10",
        "mov [rdi + {r9}], r9",
        "mov [rdi + {r8}], r8",
        "mov [rdi + {rdi}], rdi",
        "mov [rdi + {rsi}], rsi",
        "mov [rdi + {rbp}], rbp",
        "mov [rdi + {rbx}], rbx",
        "mov [rdi + {rdx}], rdx",
        "mov [rdi + {rcx}], rcx",
        "mov [rdi + {rax}], rax",
        "mov rax, [rsp]",
        "mov [rdi + {rip}], rax",
        "lea rax, [rsp + 8]",
        "mov [rdi + {rsp}], rax",
        "pushfq",
        "pop qword ptr [rdi + {rflags}]",
        "mov eax, cs",
        "mov [rdi + {cs}], rax",
        "mov eax, ss",
        "mov [rdi + {ss}], rax",
        "ret",
        r15 = const core::mem::offset_of!(TrapFrame, r15),
        r14 = const core::mem::offset_of!(TrapFrame, r14),
        r13 = const core::mem::offset_of!(TrapFrame, r13),
        r12 = const core::mem::offset_of!(TrapFrame, r12),
        r11 = const core::mem::offset_of!(TrapFrame, r11),
        r10 = const core::mem::offset_of!(TrapFrame, r10),
        r9 = const core::mem::offset_of!(TrapFrame, r9),
        r8 = const core::mem::offset_of!(TrapFrame, r8),
        rdi = const core::mem::offset_of!(TrapFrame, rdi),
        rsi = const core::mem::offset_of!(TrapFrame, rsi),
        rbp = const core::mem::offset_of!(TrapFrame, rbp),
        rbx = const core::mem::offset_of!(TrapFrame, rbx),
        rdx = const core::mem::offset_of!(TrapFrame, rdx),
        rcx = const core::mem::offset_of!(TrapFrame, rcx),
        rax = const core::mem::offset_of!(TrapFrame, rax),
        rip = const core::mem::offset_of!(TrapFrame, rip),
        rsp = const core::mem::offset_of!(TrapFrame, rsp),
        rflags = const core::mem::offset_of!(TrapFrame, rflags),
        cs = const core::mem::offset_of!(TrapFrame, cs),
        ss = const core::mem::offset_of!(TrapFrame, ss),
    )
}
