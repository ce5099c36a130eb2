//! Instructions that Rust has no names for.

use core::arch::asm;

macro_rules! port {
    ($in:ident, $out:ident, $t:ty, $reg:tt, $in_op:literal, $out_op:literal) => {
        pub fn $in(port: u16) -> $t {
            let value: $t;
            // SAFETY: a test guest owns its (virtual) machine; port reads change no memory of the program.
            unsafe { asm!($in_op, in("dx") port, out($reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
        pub fn $out(port: u16, value: $t) {
            // SAFETY: as above; no device here writes memory by itself.
            unsafe { asm!($out_op, in("dx") port, in($reg) value, options(nomem, nostack, preserves_flags)) };
        }
    };
}
port!(inb, outb, u8, "al", "in al, dx", "out dx, al");
port!(inw, outw, u16, "ax", "in ax, dx", "out dx, ax");
port!(inl, outl, u32, "eax", "in eax, dx", "out dx, eax");

pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let r = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// TSC and TSC_AUX. Only where CPUID has RDTSCP.
pub fn rdtscp() -> (u64, u32) {
    let (low, high, aux): (u64, u64, u64);
    // SAFETY: reads two registers.
    unsafe { asm!("rdtscp", out("rax") low, out("rdx") high, out("rcx") aux, options(nomem, nostack, preserves_flags)) };
    (high << 32 | low, aux as u32)
}

pub fn rdmsr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading an MSR changes nothing; a #GP goes to the handler.
    unsafe { asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

pub fn wrmsr(index: u32, value: u64) {
    // SAFETY: cases write MSRs whose effect they intend; none remaps the running code.
    unsafe { asm!("wrmsr", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack)) };
}

pub fn cli() {
    // SAFETY: masks interrupts.
    unsafe { asm!("cli", options(nostack)) };
}

pub fn sti() {
    // SAFETY: the IDT is set up by `rt::init` before any case runs.
    unsafe { asm!("sti", options(nostack)) };
}

pub fn hlt() {
    // SAFETY: waits.
    unsafe { asm!("hlt", options(nostack)) };
}

/// STI directly followed by HLT: no interrupt can be lost between them.
pub fn sti_hlt() {
    // SAFETY: the IDT is set up; waits for one interrupt.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

macro_rules! control {
    ($read:ident, $write:ident, $name:literal) => {
        #[allow(dead_code, reason = "the list is whole, whatever the cases use")]
        pub fn $read() -> u64 {
            let value: u64;
            // SAFETY: reads a register.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack)) };
            value
        }
        #[allow(dead_code, reason = "as above")]
        pub fn $write(value: u64) {
            // SAFETY: cases change only bits that keep the running code mapped and executable.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack)) };
        }
    };
}
control!(read_cr0, write_cr0, "cr0");
control!(read_cr3, write_cr3, "cr3");
control!(read_cr4, write_cr4, "cr4");
control!(read_cr8, write_cr8, "cr8");
control!(read_dr6, write_dr6, "dr6");
control!(read_dr7, write_dr7, "dr7");

/// Address that the last page fault was for.
pub fn read_cr2() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack)) };
    value
}

macro_rules! mmio {
    ($read:ident, $write:ident, $t:ty) => {
        pub fn $read(address: u64) -> $t {
            // SAFETY: device and RAM addresses below 4 GiB are identity-mapped.
            unsafe { (address as *const $t).read_volatile() }
        }
        #[allow(dead_code, reason = "the list is whole, whatever the cases use")]
        pub fn $write(address: u64, value: $t) {
            // SAFETY: as above; cases write to devices or to memory that they own.
            unsafe { (address as *mut $t).write_volatile(value) }
        }
    };
}
mmio!(read8, write8, u8);
mmio!(read16, write16, u16);
mmio!(read32, write32, u32);
mmio!(read64, write64, u64);
