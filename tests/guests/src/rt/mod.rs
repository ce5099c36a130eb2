//! What every case stands on: entry, serial output, ports, MSRs, exceptions and interrupts, the verdict.

pub mod apic;
pub mod boot;
pub mod cpu;
pub mod interrupts;
pub mod pic;
pub mod smp;
pub mod time;

pub use boot::BootInfo;
use core::fmt;
pub use cpu::{cpuid, inb, inl, inw, outb, outl, outw, rdmsr, rdtsc, wrmsr};
pub use interrupts::{catch, catch_msr_read, catch_msr_write, on_interrupt};

/// How a case ends.
pub enum Verdict {
    Pass = 0x10,
    Fail = 0x11,
}

/// Tells the verdict to the hypervisor, which ends the guest.
pub fn exit(verdict: Verdict) -> ! {
    outb(0xf4, verdict as u8);
    // Without the debug-exit port: halt, and the runner reports the timeout.
    loop {
        cpu::cli();
        cpu::hlt();
    }
}

/// Serial port, 8259s masked, IDT.
pub fn init() {
    pic::mask_all();
    // 115200 8n1, FIFO on, DTR + RTS + OUT2, no interrupts.
    for (port, value) in [(0x3f9, 0), (0x3fb, 0x80), (0x3f8, 1), (0x3f9, 0), (0x3fb, 3), (0x3fa, 7), (0x3fc, 0xb)] {
        outb(port, value);
    }
    interrupts::init();
}

pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

fn put(byte: u8) {
    while inb(0x3fd) & 0x20 == 0 {}
    outb(0x3f8, byte);
}

macro_rules! println {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        let _ = writeln!($crate::rt::Serial, $($arg)*);
    }};
}
pub(crate) use println;

/// Ends the case as failed if two values differ, showing both in hexadecimal.
macro_rules! check_eq {
    ($left:expr, $right:expr, $($what:tt)*) => {{
        let (left, right) = ($left, $right);
        if left != right {
            panic!("{}: got {left:#x?}, want {right:#x?}", format_args!($($what)*));
        }
    }};
}
pub(crate) use check_eq;

/// Ends the case as failed unless the condition holds.
macro_rules! check {
    ($condition:expr, $($what:tt)*) => {{
        if !$condition {
            panic!("{}", format_args!($($what)*));
        }
    }};
}
pub(crate) use check;
