//! Local APIC (xAPIC by memory, x2APIC by MSR) and IOAPIC.

use super::{
    cpu::{read32, write32},
    rdmsr, wrmsr,
};

pub const LAPIC: u64 = 0xfee0_0000;
pub const IOAPIC: u64 = 0xfec0_0000;
pub const APIC_BASE: u32 = 0x1b;

#[allow(dead_code, reason = "the list is whole, whatever the cases use")]
pub mod reg {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const PPR: u32 = 0xa0;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SVR: u32 = 0xf0;
    pub const ISR: u32 = 0x100;
    pub const IRR: u32 = 0x200;
    pub const ESR: u32 = 0x280;
    pub const ICR_LOW: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const TIMER_INITIAL: u32 = 0x380;
    pub const TIMER_CURRENT: u32 = 0x390;
    pub const TIMER_DIVIDE: u32 = 0x3e0;
}

pub fn read(register: u32) -> u32 {
    read32(LAPIC + u64::from(register))
}

pub fn write(register: u32, value: u32) {
    write32(LAPIC + u64::from(register), value);
}

/// Software-enables the xAPIC with spurious vector 0xff and all priorities open.
pub fn enable() {
    write(reg::SVR, 0x1ff);
    write(reg::TPR, 0);
}

pub fn eoi() {
    write(reg::EOI, 0);
}

pub const fn x2(register: u32) -> u32 {
    0x800 + (register >> 4)
}

/// Switches to x2APIC mode.
pub fn enable_x2() {
    wrmsr(APIC_BASE, rdmsr(APIC_BASE) | 3 << 10);
    wrmsr(x2(reg::SVR), 0x1ff);
}

pub fn io_read(index: u32) -> u32 {
    write32(IOAPIC, index);
    read32(IOAPIC + 0x10)
}

pub fn io_write(index: u32, value: u32) {
    write32(IOAPIC, index);
    write32(IOAPIC + 0x10, value);
}

/// Redirection entry of `pin`: low word (vector, mode, polarity, trigger, mask) and destination APIC id.
pub fn route(pin: u32, low: u32, destination: u32) {
    io_write(0x10 + 2 * pin, 1 << 16);
    io_write(0x11 + 2 * pin, destination << 24);
    io_write(0x10 + 2 * pin, low);
}
