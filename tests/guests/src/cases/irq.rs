//! Interrupt delivery through the 8259, the IOAPIC and the local APIC.

use super::chips::sci;
use crate::rt::{
    BootInfo, apic, catch_msr_read, catch_msr_write, check, check_eq, cpu, inb, interrupts, on_interrupt, outb, pic, rdmsr, time,
    wrmsr,
};
use core::sync::atomic::{AtomicU32, Ordering};

const LOW: u8 = 0x45;
const HIGH: u8 = 0x85;

/// The 8259 delivers PIT interrupts in virtual-wire mode, with the vector of ICW2; in service until EOI; ISR and IRR read back.
pub fn pic_delivery(_: &BootInfo) {
    pic::init(0x30);
    static IN_SERVICE: AtomicU32 = AtomicU32::new(0);
    on_interrupt(0x30, |_| {
        outb(0x20, 0x0b);
        IN_SERVICE.store(inb(0x20).into(), Ordering::SeqCst);
        pic::eoi(0);
    });
    time::pit_set(0, 0, 1000);
    pic::unmask(0);
    cpu::sti();
    check!(time::wait_for(1_000_000, || interrupts::count(0x30) == 1), "the interrupt comes at vector 0x30");
    check_eq!(IN_SERVICE.load(Ordering::SeqCst), 1, "IRQ 0 in service");
    cpu::cli();
    outb(0x20, 0x0b);
    check_eq!(inb(0x20), 0, "nothing in service after EOI");
    // Masked, it stays in the IRR.
    pic::mask_all();
    time::pit_set(0, 0, 1000);
    time::spin_us(3000);
    outb(0x20, 0x0a);
    check_eq!(inb(0x20) & 1, 1, "pending in the IRR while masked");
    cpu::sti();
    time::spin_us(1000);
    check_eq!(interrupts::count(0x30), 1, "not delivered while masked");
    pic::unmask(0);
    check!(time::wait_for(1_000_000, || interrupts::count(0x30) == 2), "delivered once unmasked");
}

/// IOAPIC pin 2 carries the PIT: edge-triggered, with the entry's vector; a masked entry delivers nothing.
pub fn ioapic_delivery(_: &BootInfo) {
    pic::init(0x20);
    apic::enable();
    on_interrupt(LOW, |_| apic::eoi());
    apic::route(2, LOW.into(), 0);
    cpu::sti();
    time::pit_set(0, 0, 2000);
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 1), "one interrupt");
    time::spin_us(5000);
    check_eq!(interrupts::count(LOW), 1, "and only one");
    time::pit_set(0, 2, 2000);
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) >= 10), "mode 2 keeps coming");
    apic::route(2, 1 << 16, 0);
    let count = interrupts::count(LOW);
    time::spin_us(5000);
    check_eq!(interrupts::count(LOW), count, "masked");
    check_eq!(apic::io_read(0x14) & 1 << 16, 1 << 16, "the entry reads back");
}

static ORDER: AtomicU32 = AtomicU32::new(0);

/// Priorities: the higher class first, TPR holds back its class and below, a nested interrupt only of a higher class (SDM vol. 3A, 11.8.3).
pub fn lapic_priority(_: &BootInfo) {
    apic::enable();
    on_interrupt(LOW, |_| {
        ORDER.store(ORDER.load(Ordering::SeqCst) << 8 | u32::from(LOW), Ordering::SeqCst);
        apic::eoi();
    });
    on_interrupt(HIGH, |_| {
        ORDER.store(ORDER.load(Ordering::SeqCst) << 8 | u32::from(HIGH), Ordering::SeqCst);
        // A lower one stays pending while this is in service, even with interrupts on.
        apic::write(apic::reg::ICR_LOW, 0x4_4000 | u32::from(LOW));
        cpu::sti();
        time::spin_us(200);
        cpu::cli();
        check_eq!(apic::read(apic::reg::ISR + 0x40), 1 << 5, "in service");
        check_eq!(apic::read(apic::reg::IRR + 0x20), 1 << 5, "the lower one is pending");
        check_eq!(apic::read(apic::reg::PPR), 0x80, "processor priority");
        apic::eoi();
    });
    apic::write(apic::reg::TPR, 0x80);
    apic::write(apic::reg::ICR_LOW, 0x4_4000 | u32::from(LOW));
    apic::write(apic::reg::ICR_LOW, 0x4_4000 | u32::from(HIGH));
    cpu::sti();
    time::spin_us(500);
    check_eq!(ORDER.load(Ordering::SeqCst), 0, "TPR 0x80 holds both back");
    apic::write(apic::reg::TPR, 0x70);
    time::wait_for(1_000_000, || interrupts::count(HIGH) == 1);
    check_eq!(ORDER.load(Ordering::SeqCst), 0x85, "only the higher class passes TPR 0x70");
    apic::write(apic::reg::TPR, 0);
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 1), "then the lower");
    check_eq!(ORDER.load(Ordering::SeqCst), 0x8545, "in this order");
}

/// Registers in memory by other instructions than plain MOV, which a processor that virtualises its local APIC leaves to the hypervisor: what both
/// do must fit together, with one interrupt in service and the next one behind it.
pub fn lapic_forms(_: &BootInfo) {
    let at = |register: u32| apic::LAPIC + u64::from(register);
    apic::enable();
    on_interrupt(LOW, |_| {
        ORDER.store(ORDER.load(Ordering::SeqCst) << 8 | u32::from(LOW), Ordering::SeqCst);
        and32(apic::LAPIC + u64::from(apic::reg::EOI), 0);
    });
    on_interrupt(HIGH, |_| {
        ORDER.store(ORDER.load(Ordering::SeqCst) << 8 | u32::from(HIGH), Ordering::SeqCst);
        xchg32(apic::LAPIC + u64::from(apic::reg::ICR_LOW), 0x4_4000 | u32::from(LOW));
        check_eq!(apic::read(apic::reg::ISR + 0x40), 1 << 5, "in service");
        xchg32(apic::LAPIC + u64::from(apic::reg::EOI), 0);
        check_eq!(apic::read(apic::reg::ISR + 0x40), 0, "done");
    });
    for round in 1..=20 {
        ORDER.store(0, Ordering::SeqCst);
        xchg32(at(apic::reg::TPR), 0x80);
        check_eq!(cpu::read_cr8(), 8, "XCHG with the TPR");
        apic::write(apic::reg::ICR_LOW, 0x4_4000 | u32::from(HIGH));
        cpu::sti();
        time::spin_us(50);
        check_eq!(ORDER.load(Ordering::SeqCst), 0, "held back");
        and32(at(apic::reg::TPR), 0x70);
        check_eq!(apic::read(apic::reg::TPR), 0, "AND with the TPR");
        check!(time::wait_for(1_000_000, || interrupts::count(LOW) == round), "the one behind it, in round {round}");
        cpu::cli();
        check_eq!(ORDER.load(Ordering::SeqCst), 0x8545, "in this order");
        let in_service = (0..8).map(|n| apic::read(apic::reg::ISR + 16 * n)).fold(0, |all, word| all | word);
        check_eq!((in_service, apic::read(apic::reg::PPR)), (0, 0), "nothing is left in service");
    }
}

fn xchg32(address: u64, value: u32) -> u32 {
    let old;
    // SAFETY: a register that the case may write.
    unsafe { core::arch::asm!("xchg [{}], {:e}", in(reg) address, inout(reg) value => old, options(nostack)) };
    old
}

fn and32(address: u64, mask: u32) {
    // SAFETY: as above.
    unsafe { core::arch::asm!("and dword ptr [{}], {:e}", in(reg) address, in(reg) mask, options(nostack)) };
}

/// Self IPIs by destination, by shorthand and to all; one interrupt each.
pub fn self_ipi(_: &BootInfo) {
    apic::enable();
    on_interrupt(LOW, |_| apic::eoi());
    cpu::sti();
    let id = apic::read(apic::reg::ID) >> 24;
    let send = |high: u32, low: u32| {
        let before = interrupts::count(LOW);
        apic::write(apic::reg::ICR_HIGH, high);
        apic::write(apic::reg::ICR_LOW, low | u32::from(LOW));
        check!(time::wait_for(1_000_000, || interrupts::count(LOW) == before + 1), "ICR {high:#x} {low:#x}");
    };
    send(id << 24, 0x4000);
    send(0, 0x4_4000);
    send(0, 0x8_4000);
    send(0xff << 24, 0x4000);
    apic::write(apic::reg::LDR, 1 << 24);
    apic::write(apic::reg::DFR, 0xffff_ffff);
    send(1 << 24, 0x4800);
    send(1 << 24, 0x4900);
    let before = interrupts::count(LOW);
    apic::write(apic::reg::ICR_LOW, 0xc_4000 | u32::from(LOW));
    apic::write(apic::reg::ICR_HIGH, 5 << 24);
    apic::write(apic::reg::ICR_LOW, 0x4000 | u32::from(LOW));
    time::spin_us(1000);
    check_eq!(interrupts::count(LOW), before, "all-but-self and an absent destination reach nobody");
}

/// x2APIC: the switch, MSR access, reserved bits, self IPI; going back needs a disable (SDM vol. 3A, 11.12).
pub fn x2apic(_: &BootInfo) {
    apic::enable();
    let base = rdmsr(apic::APIC_BASE);
    check!(catch_msr_write(apic::APIC_BASE, base & !(1 << 11) | 1 << 10).is_err(), "x2APIC without enable");
    apic::enable_x2();
    check_eq!(rdmsr(0x802), 0, "id");
    check_eq!(rdmsr(0x80d), 1, "logical id: cluster 0, bit 0");
    check_eq!(apic::read(apic::reg::VERSION), 0xffff_ffff, "the MMIO page is gone");
    check!(catch_msr_read(0x80e).is_err(), "no DFR");
    check!(catch_msr_read(0x831).is_err(), "no ICR high");
    check!(catch_msr_write(0x802, 0).is_err(), "id is read-only");
    check!(catch_msr_write(0x80b, 1).is_err(), "EOI takes only zero");
    check!(catch_msr_write(0x808, 0x100).is_err(), "TPR reserved bits");
    on_interrupt(LOW, |_| wrmsr(0x80b, 0));
    cpu::sti();
    wrmsr(0x83f, LOW.into());
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 1), "self-IPI register");
    wrmsr(0x830, 0x4000 | u64::from(LOW));
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 2), "64-bit ICR, destination 0");
    wrmsr(0x830, 0xffff_ffff << 32 | 0x4000 | u64::from(LOW));
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 3), "broadcast");
    cpu::cli();
    check!(catch_msr_write(apic::APIC_BASE, base).is_err(), "x2APIC to xAPIC directly");
    wrmsr(apic::APIC_BASE, base & !(3 << 10));
    wrmsr(apic::APIC_BASE, base);
    check_eq!(apic::read(apic::reg::VERSION) & 0xf0, 0x10, "back in xAPIC mode");
}

/// Delivery in x2APIC mode, where the CPU may do it by itself: priorities by TPR and CR8, levels and their EOI, the 8259 through LINT0, HLT, a
/// software-disabled APIC, and the way out of the mode with something pending.
pub fn x2apic_delivery(_: &BootInfo) {
    pic::init(0x30);
    apic::enable_x2();
    x2_priorities();
    x2_illegal_vector();
    x2_halted();
    x2_levels();
    x2_extint();
    x2_disabled();
}

fn x2_eoi() {
    wrmsr(apic::x2(apic::reg::EOI), 0);
}

fn x2_self_ipi(vector: u8) {
    wrmsr(0x83f, vector.into());
}

fn x2_priorities() {
    ORDER.store(0, Ordering::SeqCst);
    on_interrupt(LOW, |_| {
        ORDER.store(ORDER.load(Ordering::SeqCst) << 8 | u32::from(LOW), Ordering::SeqCst);
        x2_eoi();
    });
    on_interrupt(HIGH, |_| {
        ORDER.store(ORDER.load(Ordering::SeqCst) << 8 | u32::from(HIGH), Ordering::SeqCst);
        x2_self_ipi(LOW);
        cpu::sti();
        time::spin_us(200);
        cpu::cli();
        check_eq!(rdmsr(apic::x2(apic::reg::ISR + 0x40)), 1 << 5, "in service");
        check_eq!(rdmsr(apic::x2(apic::reg::IRR + 0x20)), 1 << 5, "the lower one is pending");
        check_eq!(rdmsr(apic::x2(apic::reg::PPR)), 0x80, "processor priority");
        x2_eoi();
    });
    cpu::write_cr8(8);
    check_eq!(rdmsr(apic::x2(apic::reg::TPR)), 0x80, "CR8 is the TPR");
    x2_self_ipi(LOW);
    wrmsr(0x830, 0x4_4000 | u64::from(HIGH));
    cpu::sti();
    time::spin_us(500);
    check_eq!(ORDER.load(Ordering::SeqCst), 0, "TPR 0x80 holds both back");
    wrmsr(apic::x2(apic::reg::TPR), 0x75);
    time::wait_for(1_000_000, || interrupts::count(HIGH) == 1);
    check_eq!(ORDER.load(Ordering::SeqCst), 0x85, "only the higher class passes TPR 0x75");
    check_eq!(cpu::read_cr8(), 7, "the TPR is CR8");
    cpu::write_cr8(0);
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 1), "then the lower");
    check_eq!(ORDER.load(Ordering::SeqCst), 0x8545, "in this order");
}

fn x2_illegal_vector() {
    let esr = || {
        wrmsr(apic::x2(apic::reg::ESR), 0);
        rdmsr(apic::x2(apic::reg::ESR))
    };
    esr();
    x2_self_ipi(5);
    check_eq!(esr(), 1 << 5, "a self IPI of an illegal vector");
    check!(catch_msr_write(0x83f, 0x145).is_err(), "reserved bits of the self-IPI register");
    check!(catch_msr_write(apic::x2(apic::reg::ISR), 0).is_err(), "the ISR is read-only");
    check!(catch_msr_read(0x83f).is_err() && catch_msr_read(0x80b).is_err(), "write-only registers");
    check!(catch_msr_read(0x82f).is_err() && catch_msr_read(0x831).is_err(), "no such registers");
}

/// HLT goes on at once with what is pending already, and sleeps over what the priority holds back.
fn x2_halted() {
    cpu::cli();
    on_interrupt(LOW, |_| x2_eoi());
    on_interrupt(HIGH, |_| x2_eoi());
    let [low, high] = [LOW, HIGH].map(interrupts::count);
    x2_self_ipi(LOW);
    cpu::sti_hlt();
    check_eq!(interrupts::count(LOW), low + 1, "pending before the HLT");
    cpu::cli();
    wrmsr(apic::x2(apic::reg::TPR), 0x50);
    x2_self_ipi(LOW);
    wrmsr(apic::x2(apic::reg::LVT_TIMER), HIGH.into());
    wrmsr(apic::x2(apic::reg::TIMER_DIVIDE), 0xb);
    wrmsr(apic::x2(apic::reg::TIMER_INITIAL), 1_000_000);
    cpu::sti_hlt();
    check_eq!([LOW, HIGH].map(interrupts::count), [low + 1, high + 1], "the timer's passes the priority");
    wrmsr(apic::x2(apic::reg::TPR), 0);
    cpu::sti();
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == low + 2), "the other one waited");
    wrmsr(apic::x2(apic::reg::LVT_TIMER), 1 << 16);
}

/// IOAPIC pin 9 as a level.
fn x2_levels() {
    cpu::cli();
    on_interrupt(LOW, |_| {});
    let before = interrupts::count(LOW);
    apic::route(9, 0x8000 | u32::from(LOW), 0);
    cpu::sti();
    sci(true);
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == before + 1), "a level is delivered");
    check_eq!(rdmsr(0x81a), 1 << 5, "TMR");
    x2_eoi();
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == before + 2), "the level is still there after the EOI");
    sci(false);
    check_eq!(apic::io_read(0x22) & 0x4000, 0x4000, "remote IRR");
    x2_eoi();
    time::spin_us(200);
    check_eq!(interrupts::count(LOW), before + 2, "and gone then");
    check_eq!(apic::io_read(0x22) & 0x4000, 0, "the IOAPIC has heard of the EOI");
    apic::route(9, 1 << 16, 0);
    x2_self_ipi(LOW);
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == before + 3), "the same vector without a level");
    x2_eoi();
}

fn x2_extint() {
    cpu::cli();
    on_interrupt(0x30, |_| pic::eoi(0));
    wrmsr(apic::x2(apic::reg::LVT_LINT0), 0x700);
    pic::unmask(0);
    time::pit_set(0, 0, 1000);
    time::spin_us(3000);
    check_eq!(interrupts::count(0x30), 0, "not while IF is clear");
    cpu::sti();
    check!(time::wait_for(1_000_000, || interrupts::count(0x30) == 1), "the 8259's interrupt through LINT0");
    time::pit_set(0, 0, 1000);
    check!(time::wait_for(1_000_000, || interrupts::count(0x30) == 2), "and the next");
    pic::mask_all();
    wrmsr(apic::x2(apic::reg::LVT_LINT0), 1 << 16);
}

fn x2_disabled() {
    cpu::cli();
    on_interrupt(LOW, |_| x2_eoi());
    let before = interrupts::count(LOW);
    x2_self_ipi(LOW);
    wrmsr(apic::x2(apic::reg::SVR), 0xff);
    cpu::sti();
    time::spin_us(500);
    check_eq!(interrupts::count(LOW), before, "a software-disabled APIC delivers nothing");
    check_eq!(rdmsr(apic::x2(apic::reg::IRR + 0x20)), 1 << 5, "and keeps what is pending");
    wrmsr(apic::x2(apic::reg::SVR), 0x1ff);
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == before + 1), "until it is enabled again");
    cpu::cli();
    x2_self_ipi(LOW);
    let base = rdmsr(apic::APIC_BASE);
    wrmsr(apic::APIC_BASE, base & !(3 << 10));
    wrmsr(apic::APIC_BASE, base & !(1 << 10));
    apic::enable();
    cpu::sti();
    time::spin_us(500);
    check_eq!(interrupts::count(LOW), before + 1, "a disabled APIC forgets it");
    on_interrupt(LOW, |_| apic::eoi());
    apic::write(apic::reg::ICR_LOW, 0x4_4000 | u32::from(LOW));
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == before + 2), "in xAPIC mode");
}

/// COM1's transmit interrupt through IOAPIC pin 4, and its identification (PC16550D, 8.6.4).
pub fn serial_irq(_: &BootInfo) {
    apic::enable();
    static IIR: AtomicU32 = AtomicU32::new(0);
    on_interrupt(LOW, |_| {
        IIR.store(inb(0x3fa).into(), Ordering::SeqCst);
        outb(0x3f9, 0);
        apic::eoi();
    });
    time::wait_for(1_000_000, || inb(0x3fd) & 0x40 != 0);
    apic::route(4, LOW.into(), 0);
    cpu::sti();
    outb(0x3f9, 2);
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 1), "transmitter-empty interrupt");
    check_eq!(IIR.load(Ordering::SeqCst) & 0xf, 2, "identification");
}
