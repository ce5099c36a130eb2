//! How a guest ends.

use crate::rt::{BootInfo, check, inb, inw, outb, outw, time};

/// OUT to the debug-exit port ends the guest at once with (value << 1) | 1; nothing after it runs.
pub fn debug_exit(_: &BootInfo) {
    outb(0xf4, 0x2a);
    panic!("still running");
}

/// An exception with no usable IDT, then no usable double-fault gate: shutdown (Intel SDM vol. 3A, 7.15). The hypervisor reports it.
pub fn triple_fault(_: &BootInfo) {
    let empty = [0u16; 5];
    // SAFETY: this is meant to end the guest.
    unsafe { core::arch::asm!("lidt [{}]", "ud2", in(reg) &empty, options(noreturn)) }
}

/// Reset control register at 0xCF9 (ICH9 data sheet 13.7.5): SYS_RST, then a rising RST_CPU resets the machine.
pub fn reset_cf9(_: &BootInfo) {
    outb(0xcf9, 2);
    outb(0xcf9, 6);
    time::spin_us(100_000);
    panic!("still running");
}

/// The keyboard controller pulses its reset output on command 0xFE.
pub fn reset_8042(_: &BootInfo) {
    check!(time::wait_for(100_000, || inb(0x64) & 2 == 0), "input buffer empties");
    outb(0x64, 0xfe);
    time::spin_us(100_000);
    panic!("still running");
}

/// ACPI S5: SLP_TYP 7 with SLP_EN in PM1 control switches the machine off (ACPI 4.8.3.2.1).
pub fn power_off(_: &BootInfo) {
    check!(inw(0x604) & 1 == 1, "SCI_EN: ACPI mode is on");
    outw(0x604, 7 << 10 | 1 << 13);
    time::spin_us(100_000);
    panic!("still running");
}
