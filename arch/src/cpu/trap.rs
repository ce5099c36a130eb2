//! What the host does with its own exceptions and interrupts.

use super::{cr, idt, msr, percpu, port, stack};
use crate::{crash, smp};
use core::fmt;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use x86defs::{Rflags, vector};

/// What the entry stubs leave on the stack.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// The first vector that is not an exception.
pub const FIRST_INTERRUPT: u8 = 32;

/// Handlers of interrupt vectors: plain functions that acknowledge the interrupt at the local APIC themselves.
static HANDLERS: [AtomicPtr<()>; 256] = [const { AtomicPtr::new(core::ptr::null_mut()) }; 256];
/// Interrupts on vectors that have no handler.
static UNEXPECTED: AtomicU32 = AtomicU32::new(0);

/// Makes `handler` serve interrupt `vector` on all CPUs. It runs with interrupts disabled, to completion.
pub fn set_handler(vector: u8, handler: fn()) {
    HANDLERS[usize::from(vector)].store(handler as *mut (), Ordering::Release);
}

/// Serves interrupt `vector`, which the CPU has acknowledged already (a VMX exit that acknowledges on exit), or NMI (vector 2).
pub fn dispatch(vector: u8) {
    if vector == vector::NMI {
        // Through the IDT, because the IRET at the end is what unblocks NMIs again (SDM vol. 3A, 7.7.1).
        // SAFETY: the gate is present and its handler returns.
        unsafe { core::arch::asm!("int 2") };
        return;
    }
    let handler = HANDLERS[usize::from(vector)].load(Ordering::Acquire);
    if handler.is_null() {
        unexpected(vector);
    } else {
        // SAFETY: only `set_handler` stores here, and it stores a `fn()`.
        let handler: fn() = unsafe { core::mem::transmute::<*mut (), fn()>(handler) };
        handler();
    }
}

fn unexpected(vector: u8) {
    if UNEXPECTED.fetch_add(1, Ordering::Relaxed) < 10 {
        log::warn!("interrupt on vector {vector:#x}, which nobody has asked for");
    }
    crate::apic::end_of_interrupt();
}

pub(super) fn handle(frame: &mut TrapFrame) {
    let vector = frame.vector as u8;
    match vector {
        FIRST_INTERRUPT.. => dispatch(vector),
        vector::NMI => non_maskable(),
        vector::GP if let Some(rip) = msr::recover(frame.rip) => frame.rip = rip,
        vector::MC => machine_check(frame),
        vector::DB if is_stray(frame) => {
            STRAY_DEBUG.fetch_add(1, Ordering::Relaxed);
        }
        _ => exception(frame),
    }
}

/// Debug exceptions that nothing of the host's has asked for.
static STRAY_DEBUG: AtomicU32 = AtomicU32::new(0);

/// The host neither steps nor sets breakpoints, so its debug exceptions come from outside: Bochs, for one, raises a guest's single-step trap in the host
/// if the instruction that was stepped exits on AMD-V. They may come right after an exit, when the GS base is still the guest's.
fn is_stray(frame: &TrapFrame) -> bool {
    const BREAKPOINTS: u64 = 0xff;
    let dr7: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, dr7", out(reg) dr7, options(nomem, nostack, preserves_flags)) };
    frame.rflags & Rflags::TF.bits() == 0 && dr7 & BREAKPOINTS == 0
}

/// An NMI is counted; code outside of NMI context reports it. If another CPU has taken the machine over, it stops this one.
fn non_maskable() {
    let cpu = percpu::identify();
    smp::stop::obey(cpu);
    if let Some(cpu) = cpu {
        cpu.nmis.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reports NMIs that have come to this CPU since the last call, and the first stray debug exception. Called on every timer interrupt, where no lock is held. The chipset's reason is in port 0x61: SERR# and IOCHK#.
pub fn report_nmis() {
    if STRAY_DEBUG.load(Ordering::Relaxed) == 1 {
        STRAY_DEBUG.fetch_add(1, Ordering::Relaxed);
        log::debug!("a debug exception that nobody has asked for; further ones are not reported");
    }
    let cpu = percpu::current();
    let nmis = &cpu.nmis;
    if nmis.load(Ordering::Relaxed) > 0 {
        let count = nmis.swap(0, Ordering::Relaxed);
        // SAFETY: reading port 0x61 has no side effect.
        let status = unsafe { port::read_u8(0x61) };
        let reason = match (status & 0x80 != 0, status & 0x40 != 0) {
            (true, _) => "system error (SERR#)",
            (_, true) => "I/O channel check",
            _ => "unknown",
        };
        log::warn!("{count} NMI on CPU {}, reason {reason}", cpu.number());
    }
}

/// Names of the exceptions (SDM vol. 3A, table 7-1).
fn name(vector: u8) -> &'static str {
    match vector {
        vector::DE => "divide error (#DE)",
        vector::DB => "debug exception (#DB)",
        vector::NMI => "NMI",
        vector::BP => "breakpoint (#BP)",
        vector::OF => "overflow (#OF)",
        vector::BR => "bound range exceeded (#BR)",
        vector::UD => "invalid opcode (#UD)",
        vector::NM => "no math device (#NM)",
        vector::DF => "double fault (#DF)",
        vector::TS => "invalid TSS (#TS)",
        vector::NP => "segment not present (#NP)",
        vector::SS => "stack-segment fault (#SS)",
        vector::GP => "general protection (#GP)",
        vector::PF => "page fault (#PF)",
        vector::MF => "x87 error (#MF)",
        vector::AC => "alignment check (#AC)",
        vector::MC => "machine check (#MC)",
        vector::XM => "SIMD error (#XM)",
        vector::CP => "control protection (#CP)",
        29 => "VMM communication (#VC)",
        30 => "security exception (#SX)",
        _ => "reserved exception",
    }
}

struct PageFault {
    address: u64,
    code: u64,
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = match self.code {
            c if c & 0x10 != 0 => "execution",
            c if c & 2 != 0 => "write",
            _ => "read",
        };
        let why = match self.code {
            c if c & 8 != 0 => "reserved bit set",
            c if c & 1 != 0 => "not allowed",
            _ => "not mapped",
        };
        write!(f, "page fault (#PF): {access} at {:#x}, {why}", self.address)?;
        match stack::above_guard(self.address) {
            Some((cpu, stack)) => write!(f, ": {stack} stack overflow (CPU {cpu})"),
            None => Ok(()),
        }
    }
}

fn exception(frame: &TrapFrame) -> ! {
    let vector = frame.vector as u8;
    match vector {
        vector::PF => crash::die(format_args!("{}", PageFault { address: cr::cr2(), code: frame.error_code }), Some(frame)),
        // A stack that runs into its guard page cannot take the #PF's frame either, so it ends here, with CR2 telling where.
        vector::DF if let Some((cpu, stack)) = stack::above_guard(cr::cr2()) => {
            crash::die(format_args!("{}: {stack} stack overflow (CPU {cpu}) at {:#x}", name(vector), cr::cr2()), Some(frame))
        }
        _ => crash::die(format_args!("{}, error code {:#x}", name(vector), frame.error_code), Some(frame)),
    }
}

/// A machine check of the host: nothing that it touches can be trusted. Prints the banks that hold an error (SDM vol. 3B, 17.3.2).
fn machine_check(frame: &TrapFrame) -> ! {
    use x86defs::msr::{IA32_MC0_CTL, IA32_MCG_CAP, IA32_MCG_STATUS};
    /// IA32_MCi_STATUS: the bank's contents are valid; IA32_MCi_ADDR is.
    const VALID: u64 = 1 << 63;
    const ADDRESS_VALID: u64 = 1 << 58;
    // It may be reported to all CPUs at once, and one report is enough.
    smp::stop::take_over();
    crash::note(format_args!("machine check: MCG_STATUS {:#x}", msr::try_read(IA32_MCG_STATUS).unwrap_or(0)));
    let banks = msr::try_read(IA32_MCG_CAP).unwrap_or(0) as u32 & 0xff;
    for bank in 0..banks.min(32) {
        let status = msr::try_read(IA32_MC0_CTL + bank * 4 + 1).unwrap_or(0);
        if status & VALID != 0 {
            let address = if status & ADDRESS_VALID != 0 { msr::try_read(IA32_MC0_CTL + bank * 4 + 2) } else { None };
            crash::note(format_args!("machine check: bank {bank}: status {status:#x}, address {:#x}", address.unwrap_or(0)));
        }
    }
    crash::die(format_args!("{}", name(vector::MC)), Some(frame))
}

/// Fills the table, and installs it and the boot CPU's data.
///
/// # Safety
/// Once, on the boot CPU, at CPL 0 in long mode.
pub unsafe fn init_boot_cpu() {
    // SAFETY: the caller's.
    unsafe {
        idt::init();
        percpu::install_boot_cpu();
    }
}
