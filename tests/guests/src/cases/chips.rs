//! The interrupt controllers and timers in their less common modes.

use crate::rt::{
    BootInfo, apic, check, check_eq,
    cpu::{self, read_cr8, read32, write_cr8, write32},
    inb, interrupts, on_interrupt, outb, pic, rdmsr, rdtsc,
    time::{self, PIT_HZ, pit_count, pit_set, tsc_hz},
    wrmsr,
};

const LOW: u8 = 0x45;
const HIGH: u8 = 0x85;

/// A byte from the keyboard controller itself raises IRQ 1 until it is read (8042 command D2); `aux` IRQ 12 (D3).
fn raise_8042(aux: bool) {
    outb(0x64, 0x20);
    let command_byte = inb(0x60);
    outb(0x64, 0x60);
    outb(0x60, command_byte & !0x30 | 3);
    outb(0x64, if aux { 0xd3 } else { 0xd2 });
    outb(0x60, 0x55);
}

/// Reads what the keyboard controller has; the lines fall.
fn drain_8042() {
    while inb(0x64) & 1 != 0 {
        inb(0x60);
    }
}

fn isr() -> u8 {
    outb(0x20, 0x0b);
    inb(0x20)
}

fn irr() -> u8 {
    outb(0x20, 0x0a);
    inb(0x20)
}

fn poll(port: u16) -> u8 {
    outb(port, 0x0c);
    inb(port)
}

/// Waits until both IRQ 0 and 1 are requested, while all are masked. Interrupts are on meanwhile, so that the host has its own in any case.
fn both_wait() {
    outb(0x21, 0xff);
    cpu::sti();
    let requested = time::wait_for(1_000_000, || irr() & 3 == 3);
    cpu::cli();
    check!(requested, "IRQ 0 and 1 wait: {:#x}", irr());
}

/// 8259A: poll command, rotation, special mask mode, automatic EOI, ELCR, a poll without a request; nothing reaches the processor.
pub fn pic_modes(_: &BootInfo) {
    drain_8042();
    pic::init(0x30);
    pit_set(0, 0, 10);
    raise_8042(false);
    both_wait();
    check_eq!(poll(0x20), 7, "a poll finds nothing behind the mask");
    pic::unmask(0);
    pic::unmask(1);
    check_eq!(poll(0x20), 0x80, "a poll acknowledges the most important one");
    check_eq!([isr(), irr() & 3], [1, 2], "which is in service now");
    check_eq!(poll(0x20), 7, "IRQ 1 waits for the end of IRQ 0");
    // Special mask mode: a masked level in service holds up nobody.
    outb(0x21, inb(0x21) | 1);
    outb(0x20, 0x68);
    check_eq!(poll(0x20), 0x81, "special mask mode lets IRQ 1 through");
    check_eq!(isr(), 3, "both in service");
    outb(0x20, 0x48);
    outb(0x20, 0x60);
    outb(0x20, 0x61);
    check_eq!(isr(), 0, "specific EOIs");
    // Rotation: after IRQ 0 is made the lowest, IRQ 1 goes first.
    drain_8042();
    outb(0x20, 0xc0);
    raise_8042(false);
    pit_set(0, 0, 10);
    both_wait();
    outb(0x21, 0xf8);
    check_eq!(poll(0x20), 0x81, "IRQ 1 before IRQ 0");
    outb(0x20, 0xa0);
    check_eq!(isr(), 0, "rotate on non-specific EOI");
    check_eq!(poll(0x20), 0x80, "then IRQ 0");
    outb(0x20, 0x20);
    outb(0x20, 0xc7);
    // Automatic EOI: the acknowledge itself ends it.
    drain_8042();
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 3), (0x21, 0xfd)] {
        outb(port, value);
    }
    raise_8042(false);
    check_eq!(poll(0x20), 0x81, "in automatic EOI mode");
    check_eq!(isr(), 0, "nothing stays in service");
    drain_8042();
    // ELCR: IRQs 0, 1, 2, 8 and 13 cannot be level-triggered.
    let elcr = [inb(0x4d0), inb(0x4d1)];
    outb(0x4d0, 0xff);
    outb(0x4d1, 0xff);
    check_eq!([inb(0x4d0), inb(0x4d1)], [0xf8, 0xde], "the ELCR's bits");
    outb(0x4d0, 0);
    outb(0x4d1, elcr[1] | 0x10);
    // A level-triggered slave input asks again after its EOI; the cascade's ISR bit is set meanwhile.
    pic::init(0x30);
    pic::unmask(12);
    raise_8042(true);
    check_eq!(poll(0x20), 0x82, "the master sees the cascade");
    check_eq!(poll(0xa0), 0x84, "the slave sees IRQ 12");
    outb(0xa0, 0x20);
    outb(0x20, 0x20);
    check_eq!([poll(0x20), poll(0xa0)], [0x82, 0x84], "the level is still there");
    outb(0xa0, 0x20);
    outb(0x20, 0x20);
    drain_8042();
    check_eq!(poll(0x20), 7, "and gone with the byte");
    outb(0x4d0, elcr[0]);
    outb(0x4d1, elcr[1]);
}

/// A request that goes away after the processor was told is a spurious interrupt or none, never one in service (8259A, "IR7").
pub fn pic_spurious(_: &BootInfo) {
    drain_8042();
    pic::init(0x30);
    for vector in 0x30..0x40 {
        on_interrupt(vector, |_| {});
    }
    pic::unmask(1);
    pic::unmask(12);
    for aux in [false, true] {
        raise_8042(aux);
        drain_8042();
        cpu::sti();
        time::spin_us(500);
        cpu::cli();
        check_eq!(interrupts::count(0x31) + interrupts::count(0x3c), 0, "a request that is gone is not delivered");
        check_eq!(isr() & !4, 0, "nothing in service");
        outb(0xa0, 0x0b);
        check_eq!(inb(0xa0), 0, "nor at the slave");
        outb(0x20, 0x20);
    }
}

fn out2() -> bool {
    inb(0x61) & 0x20 != 0
}

fn gate(on: bool) {
    outb(0x61, inb(0x61) & !3 | u8::from(on));
}

/// Status byte of a counter, by read-back.
fn status(channel: u8) -> u8 {
    outb(0x43, 0xe0 | 2 << channel);
    inb(0x40 + u16::from(channel))
}

/// 8254: all modes on counter 2 with its gate and output at port 0x61; BCD, null count, read-back, single-byte access.
pub fn pit_modes(_: &BootInfo) {
    let us = |ticks: u64| ticks * 1_000_000 / PIT_HZ + 200;
    // Mode 0: OUT low until the count is over; the gate holds the count.
    gate(false);
    pit_set(2, 0, 2000);
    check!(!out2(), "mode 0: OUT is low");
    time::spin_us(us(2500));
    check_eq!([u16::from(out2()), pit_count(2)], [0, 2000], "mode 0: nothing counts without the gate");
    gate(true);
    check!(time::wait_for(1_000_000, out2), "mode 0: OUT rises");
    // Mode 1: a trigger pulls OUT low for the count.
    gate(false);
    pit_set(2, 1, 2000);
    check!(out2(), "mode 1: OUT is high before the trigger");
    time::spin_us(us(2500));
    check!(out2(), "mode 1: and stays so");
    let start = rdtsc();
    gate(true);
    check!(time::wait_for(100_000, || !out2()), "mode 1: the trigger pulls it low");
    check!(time::wait_for(1_000_000, out2), "mode 1: it rises again");
    check!((rdtsc() - start) * PIT_HZ / tsc_hz() >= 2000, "mode 1: not before the count is over");
    // Mode 2: OUT is low for one pulse; without the gate it is high and nothing counts.
    gate(false);
    pit_set(2, 2, 50_000);
    check!(out2(), "mode 2: high without the gate");
    gate(true);
    check!(time::wait_for(100_000, || (1..50_000).contains(&pit_count(2))), "mode 2 counts");
    // Mode 3: half of the time high, half low; counts by two.
    pit_set(2, 3, 20_000);
    // The next edge: when the old level was last seen, and when the new one was first seen.
    let edge = || {
        let level = out2();
        let (mut before, mut after) = (rdtsc(), rdtsc());
        let seen = time::wait_for(1_000_000, || {
            let now = rdtsc();
            let changed = out2() != level;
            (before, after) = if changed { (before, rdtsc()) } else { (now, after) };
            changed
        });
        check!(seen, "mode 3: OUT changes");
        (before, after)
    };
    // Whatever the host does in between, some period is seen whole.
    let pulses = |tsc: u64| tsc * PIT_HZ / tsc_hz();
    let mut first = edge();
    let whole = (0..8).any(|_| {
        edge();
        let last = edge();
        let (least, most) = (pulses(last.0.saturating_sub(first.1)), pulses(last.1 - first.0));
        first = last;
        check!(most >= 19_999, "mode 3: a period of {most} pulses at most");
        least <= 20_001
    });
    check!(whole, "mode 3: periods are too long");
    check!(time::wait_for(100_000, || pit_count(2) & 1 == 0), "mode 3: even counts");
    // Mode 4: a strobe by software. Mode 5: by hardware. Both keep OUT high before and after; the pulse is too short to be seen.
    for mode in [4, 5] {
        gate(false);
        pit_set(2, mode, 1000);
        check!(out2(), "mode {mode}: OUT is high");
        gate(true);
        time::spin_us(us(1500));
        check!(out2(), "mode {mode}: and high again");
        check!(pit_count(2) > 1000, "mode {mode}: the count goes on from its end");
    }
    // Read-back: mode, access and null count; BCD counts by tens.
    gate(false);
    outb(0x43, 0b1011_0101);
    check_eq!(status(2) & 0x7f, 0x75, "null count before a count was written");
    outb(0x42, 0x00);
    outb(0x42, 0x90);
    gate(true);
    check!(time::wait_for(100_000, || status(2) & 0x40 == 0), "no null count once it is loaded");
    let digits = pit_count(2);
    check!((0..4).all(|digit| digits >> (4 * digit) & 0xf <= 9) && digits <= 0x9000, "BCD: {digits:#x}");
    // Count and status latched at once: the status comes first, then both bytes of the count, which stands still.
    outb(0x43, 0xc8);
    let first = inb(0x42);
    check_eq!(first & 0x3f, 0x35, "status first: {first:#x}");
    let low = inb(0x42);
    time::spin_us(100);
    let latched = u16::from(inb(0x42)) << 8 | u16::from(low);
    check!(latched <= digits, "then the latched count");
    // High byte only.
    outb(0x43, 0b1010_0000);
    outb(0x42, 0x12);
    check!(time::wait_for(100_000, || matches!(inb(0x42), 0x11 | 0x12)), "one byte for the high half");
    gate(false);
}

/// Raises and lowers the SCI by software's own general-purpose event (ICH9, GPE_CNTL).
pub(super) fn sci(high: bool) {
    outb(0x628, 4);
    outb(0x642, if high { 2 } else { 0 });
    if !high {
        outb(0x620, 4);
    }
}

/// IOAPIC pin 9 as a level: remote IRR, EOI by broadcast and by register, logical and lowest-priority destinations, masks.
pub fn ioapic_modes(_: &BootInfo) {
    pic::mask_all();
    apic::enable();
    on_interrupt(LOW, |_| {});
    apic::route(9, 0x8000 | u32::from(LOW), 0);
    cpu::sti();
    sci(true);
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 1), "a level is delivered");
    check_eq!(apic::io_read(0x22) & 0x5000, 0x4000, "remote IRR is set, nothing waits to be sent");
    time::spin_us(200);
    check_eq!(interrupts::count(LOW), 1, "once, until its EOI");
    apic::eoi();
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 2), "the level is still there after the EOI");
    sci(false);
    apic::eoi();
    time::spin_us(200);
    check_eq!([interrupts::count(LOW), apic::io_read(0x22) & 0x4000], [2, 0], "and gone then");
    // EOI broadcast suppression (SVR bit 12): the IOAPIC hears by its own register alone.
    check!(apic::read(apic::reg::VERSION) & 1 << 24 != 0, "EOI broadcasts can be suppressed");
    apic::write(apic::reg::SVR, 0x11ff);
    sci(true);
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 3), "delivered");
    sci(false);
    apic::eoi();
    check_eq!(apic::io_read(0x22) & 0x4000, 0x4000, "the EOI has not reached the IOAPIC");
    write32(apic::IOAPIC + 0x40, LOW.into());
    check_eq!(apic::io_read(0x22) & 0x4000, 0, "by its EOI register it has");
    apic::write(apic::reg::SVR, 0x1ff);
    // Logical destinations: flat, then cluster; lowest priority.
    apic::write(apic::reg::LDR, 2 << 24);
    for (dfr, destination, low, count) in [(u32::MAX, 2, 0x8800, 4), (u32::MAX, 3, 0x8900, 5), (0x0fff_ffff, 2, 0x8800, 6)] {
        apic::write(apic::reg::DFR, dfr);
        apic::route(9, low | u32::from(LOW), destination);
        sci(true);
        check!(time::wait_for(1_000_000, || interrupts::count(LOW) == count), "destination {destination:#x}, entry {low:#x}");
        sci(false);
        apic::eoi();
    }
    apic::route(9, 0x8800 | u32::from(LOW), 4);
    sci(true);
    time::spin_us(200);
    check_eq!(interrupts::count(LOW), 6, "a destination that nobody has");
    check_eq!(apic::io_read(0x22) & 0x1000, 0x1000, "it waits to be sent");
    sci(false);
    // A masked level is delivered when the mask goes; a masked edge is lost.
    apic::write(apic::reg::DFR, u32::MAX);
    apic::route(9, 0x1_8000 | u32::from(LOW), 0);
    sci(true);
    time::spin_us(200);
    check_eq!(interrupts::count(LOW), 6, "masked");
    apic::io_write(0x22, 0x8000 | u32::from(LOW));
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 7), "the level waited");
    sci(false);
    apic::eoi();
    apic::route(9, 1 << 16 | u32::from(LOW), 0);
    sci(true);
    apic::io_write(0x22, LOW.into());
    time::spin_us(200);
    check_eq!(interrupts::count(LOW), 7, "the edge is gone");
    sci(false);
    cpu::cli();
    // Identification: ID and arbitration ID, version, what is not there.
    apic::io_write(0, 5 << 24);
    check_eq!([apic::io_read(0), apic::io_read(2)], [5 << 24; 2], "ID");
    apic::io_write(0, 0);
    check_eq!(apic::io_read(1), 0x0017_0020, "version 0x20, 24 pins");
}

/// Local APIC: errors, LVT masks, CR8 and TPR, relocation, global disable, LINT0 as ExtINT (SDM vol. 3A, 11.4 to 11.8).
pub fn lapic_modes(_: &BootInfo) {
    const ESR: u32 = apic::reg::ESR;
    pic::init(0x30);
    apic::enable();
    on_interrupt(LOW, |_| apic::eoi());
    on_interrupt(HIGH, |_| apic::eoi());
    let esr = || {
        apic::write(ESR, 0);
        apic::read(ESR)
    };
    esr();
    apic::write(apic::reg::ICR_LOW, 0x4_4005);
    check_eq!(esr(), 1 << 5, "sending an illegal vector");
    apic::read(0x400);
    check_eq!(esr(), 1 << 7, "an illegal register");
    check_eq!(esr(), 0, "shown once");
    // The error interrupt.
    apic::write(0x370, LOW.into());
    cpu::sti();
    apic::read(0x400);
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 1), "the error interrupt");
    cpu::cli();
    esr();
    // CR8 is the TPR's high half.
    write_cr8(0xa);
    check_eq!(apic::read(apic::reg::TPR), 0xa0, "CR8 sets the TPR");
    apic::write(apic::reg::TPR, 0x35);
    check_eq!([read_cr8(), apic::read(apic::reg::PPR).into()], [3, 0x35], "and shows it");
    write_cr8(0);
    // Software disable: the LVT is masked and cannot be unmasked.
    apic::write(apic::reg::LVT_TIMER, HIGH.into());
    apic::write(apic::reg::SVR, 0xff);
    check_eq!(apic::read(apic::reg::LVT_TIMER) & 1 << 16, 1 << 16, "masked by the disable");
    apic::write(apic::reg::LVT_TIMER, HIGH.into());
    check_eq!(apic::read(apic::reg::LVT_TIMER) & 1 << 16, 1 << 16, "and stays so");
    apic::enable();
    // Relocation: the page answers at its new address alone.
    let base = rdmsr(apic::APIC_BASE);
    wrmsr(apic::APIC_BASE, base & 0xfff | 0xd000_0000);
    check_eq!(read32(0xd000_0030) & 0xf0, 0x10, "at its new address");
    check_eq!(read32(apic::LAPIC + 0x30), u32::MAX, "nothing at the old one");
    wrmsr(apic::APIC_BASE, base);
    check_eq!(read32(0xd000_0030), u32::MAX, "and back");
    // Globally disabled: the 8259 reaches the processor all the same, and CPUID hides the APIC.
    wrmsr(apic::APIC_BASE, base & !(1 << 11));
    check_eq!(read32(apic::LAPIC + 0x30), u32::MAX, "no registers");
    check_eq!(crate::rt::cpuid(1, 0)[3] & 1 << 9, 0, "CPUID.1:EDX.APIC");
    on_interrupt(0x30, |_| pic::eoi(0));
    pic::unmask(0);
    pit_set(0, 0, 100);
    cpu::sti();
    check!(time::wait_for(1_000_000, || interrupts::count(0x30) == 1), "the 8259's interrupt");
    cpu::cli();
    wrmsr(apic::APIC_BASE, base);
    apic::enable();
    // LINT0: masked after the disable; as ExtINT it passes the 8259 on.
    pit_set(0, 0, 100);
    cpu::sti();
    time::spin_us(1000);
    check_eq!(interrupts::count(0x30), 1, "LINT0 is masked");
    apic::write(apic::reg::LVT_LINT0, 0x700);
    check!(time::wait_for(1_000_000, || interrupts::count(0x30) == 2), "ExtINT");
    cpu::cli();
    // LINT0 as a fixed interrupt has the LVT's vector, and the 8259 is not acknowledged.
    apic::write(apic::reg::LVT_LINT0, HIGH.into());
    pit_set(0, 0, 100);
    cpu::sti();
    check!(time::wait_for(1_000_000, || interrupts::count(HIGH) == 1), "LINT0 as fixed");
    cpu::cli();
    check_eq!([irr() & 1, isr()], [1, 0], "the 8259 still waits");
    pic::mask_all();
}

/// Interrupts that a guest misses while it does not look come afterwards, one for each (xl's `timer_mode`, no_delay_for_missed_ticks).
pub fn lost_ticks(_: &BootInfo) {
    const AWAY_US: u64 = 40_000;
    // PIT at 1 kHz through the 8259.
    pic::init(0x30);
    on_interrupt(0x30, |_| pic::eoi(0));
    on_interrupt(0x38, |_| {
        outb(0x70, 0xc);
        inb(0x71);
        pic::eoi(8);
    });
    pit_set(0, 2, 1193);
    pic::unmask(0);
    let counts = |name: &str, vector: u8, hz: u64, start: u64| {
        cpu::sti();
        check!(time::wait_for(1_000_000, || interrupts::count(vector) >= 3), "{name}: interrupts come");
        cpu::cli();
        time::spin_us(AWAY_US);
        cpu::sti();
        // What is owed comes faster than the beat: within as long again, all has been made good.
        let due = || (rdtsc() - start) * hz / tsc_hz();
        let good = || (u64::from(interrupts::count(vector)) + 3).cmp(&due());
        check!(time::wait_for(2_000_000, || good().is_ge()), "{name}: {} of {} interrupts", interrupts::count(vector), due());
        check!(u64::from(interrupts::count(vector)) <= due() + 3, "{name}: not more of them than there were periods");
        cpu::cli();
    };
    counts("PIT", 0x30, 1000, rdtsc());
    pic::mask_all();
    pit_set(0, 0, 0xffff);
    // The RTC's periodic interrupt.
    outb(0x70, 0xa);
    outb(0x71, 0x26);
    outb(0x70, 0xc);
    inb(0x71);
    let start = rdtsc();
    outb(0x70, 0xb);
    outb(0x71, 0x42);
    pic::unmask(8);
    counts("RTC", 0x38, 1024, start);
    outb(0x70, 0xb);
    outb(0x71, 0x02);
    pic::mask_all();
    // The local APIC's timer.
    apic::enable();
    on_interrupt(HIGH, |_| apic::eoi());
    apic::write(apic::reg::TIMER_DIVIDE, 0xb);
    apic::write(apic::reg::LVT_TIMER, 1 << 17 | u32::from(HIGH));
    let start = rdtsc();
    apic::write(apic::reg::TIMER_INITIAL, 1_000_000);
    counts("local APIC", HIGH, 1000, start);
    apic::write(apic::reg::TIMER_INITIAL, 0);
}
