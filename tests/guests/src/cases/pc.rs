//! The PC's other devices: HPET, real-time clock, ACPI's registers, keyboard controller, serial ports, PCI functions.

use crate::rt::{
    BootInfo, apic, check, check_eq,
    cpu::{self, read32, read64, write32},
    inb, inl, interrupts, inw, on_interrupt, outb, outl, outw, pic, rdtsc,
    smp::acpi_table,
    time::{self, tsc_hz},
};

const LOW: u8 = 0x45;
const HPET: u64 = 0xfed0_0000;

fn write64(at: u64, value: u64) {
    write32(at, value as u32);
    write32(at + 4, (value >> 32) as u32);
}

/// Sets the comparator at `register` to `ticks` from now and waits for what must come of it. What the counter has passed already before the
/// comparator is written does not match (2.3.9.1): then it is written again.
fn hpet_match(register: u64, ticks: u64, done: impl Fn() -> bool) -> bool {
    (0..10).any(|_| {
        let target = read64(HPET + 0xf0) + ticks;
        write64(HPET + register, target);
        while !done() && read64(HPET + 0xf0) < target + 10 * ticks {}
        done()
    })
}

/// HPET 1.0a: identification, main counter, one-shot and periodic timers, legacy replacement, levels, FSB delivery.
pub fn hpet(_: &BootInfo) {
    let table = acpi_table(b"HPET").expect("an ACPI table");
    check_eq!(read64(table + 44), HPET, "its address");
    let capabilities = read64(HPET);
    check_eq!(u64::from(read32(table + 36)), capabilities & 0xffff_ffff, "the table's ID is the device's");
    check!(
        capabilities >> 8 & 0x1f >= 2 && capabilities >> 13 & 5 == 5,
        "three timers or more, 64 bits, legacy: {capabilities:#x}"
    );
    let period = capabilities >> 32;
    check!((100_000..=100_000_000).contains(&period), "a period of {period} fs");
    let hz = 1_000_000_000_000_000 / period;
    // The counter stands still until it is enabled, then counts with the TSC.
    write64(HPET + 0x10, 0);
    write64(HPET + 0xf0, 0xffff_fff0);
    let a = read64(HPET + 0xf0);
    check_eq!(a, 0xffff_fff0, "it can be set");
    time::spin_us(100);
    check_eq!(read64(HPET + 0xf0), a, "halted");
    write64(HPET + 0x10, 1);
    let (before, first, start) = (rdtsc(), read64(HPET + 0xf0), rdtsc());
    time::spin_us(10_000);
    let (end, last, after) = (rdtsc(), read64(HPET + 0xf0), rdtsc());
    let ticks = |tsc: u64| (u128::from(tsc) * u128::from(hz) / u128::from(tsc_hz())) as u64;
    let slack = ticks(after - before) / 1000 + 2;
    let counted = last - first;
    check!(last > 1 << 32, "it goes on into its upper half");
    check!((ticks(end - start) - slack..=ticks(after - before) + slack).contains(&counted), "{counted} ticks");
    // Timer 0 replaces the PIT at IOAPIC pin 2; one-shot.
    pic::mask_all();
    apic::enable();
    on_interrupt(LOW, |_| apic::eoi());
    apic::route(2, LOW.into(), 0);
    cpu::sti();
    write64(HPET + 0x10, 3);
    write64(HPET + 0x100, 1 << 2);
    time::pit_set(0, 2, 1193);
    time::spin_us(3000);
    check_eq!(interrupts::count(LOW), 0, "the PIT is disconnected");
    check!(hpet_match(0x108, hz / 1000, || interrupts::count(LOW) == 1), "one-shot");
    time::spin_us(3000);
    check_eq!(interrupts::count(LOW), 1, "once");
    // Periodic, as the specification sets it up: value and period by VAL_SET.
    let mut start = 0;
    let started = (0..10).any(|_| {
        start = rdtsc();
        write64(HPET + 0x100, 1 << 2 | 1 << 3 | 1 << 6);
        let count = read64(HPET + 0xf0) + hz / 1000;
        write32(HPET + 0x108, count as u32);
        check_eq!(read64(HPET + 0x100) & 1 << 6, 0, "VAL_SET clears itself");
        write64(HPET + 0x100, read64(HPET + 0x100) | 1 << 6);
        write32(HPET + 0x10c, (count >> 32) as u32);
        write64(HPET + 0x108, hz / 1000);
        time::wait_for(50_000, || interrupts::count(LOW) >= 2)
    });
    check!(started, "periodic");
    check!(time::wait_for(2_000_000, || interrupts::count(LOW) >= 21), "periodic: {}", interrupts::count(LOW));
    check!((rdtsc() - start) * 1000 / tsc_hz() >= 20, "at its rate");
    write64(HPET + 0x100, 0);
    // The PIT comes back with the end of legacy replacement.
    write64(HPET + 0x10, 1);
    let count = interrupts::count(LOW);
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) > count + 2), "the PIT is connected again");
    apic::route(2, 1 << 16, 0);
    time::pit_set(0, 0, 0xffff);
    // Timer 2 as a level at pin 21, until its status is cleared: by the second interrupt.
    interrupts::clear_count(LOW);
    on_interrupt(LOW, |_| {
        if interrupts::count(LOW) == 1 {
            check_eq!(read64(HPET + 0x20), 4, "its status");
            write64(HPET + 0x20, 4);
        }
        apic::eoi();
    });
    apic::route(21, 0x8000 | u32::from(LOW), 0);
    write64(HPET + 0x140, 1 << 1 | 1 << 2 | 21 << 9);
    let twice = hpet_match(0x148, hz / 1000, || interrupts::count(LOW) >= 2);
    check!(twice, "the level is still there after the EOI");
    time::spin_us(300);
    check_eq!([u64::from(interrupts::count(LOW)), read64(HPET + 0x20)], [2, 0], "and quiet");
    apic::route(21, 1 << 16, 0);
    // FSB: the message itself.
    interrupts::clear_count(LOW);
    check!(read64(HPET + 0x120) & 1 << 15 != 0, "FSB delivery");
    write32(HPET + 0x134, 0xfee0_0000);
    write32(HPET + 0x130, LOW.into());
    write64(HPET + 0x120, 1 << 2 | 1 << 14);
    check!(hpet_match(0x128, hz / 1000, || interrupts::count(LOW) == 1), "by message");
    cpu::cli();
    write64(HPET + 0x120, 0);
    write64(HPET + 0x10, 0);
}

fn cmos(index: u8) -> u8 {
    outb(0x70, index);
    inb(0x71)
}

fn set_cmos(index: u8, value: u8) {
    outb(0x70, index);
    outb(0x71, value);
}

/// Waits for interrupt `n` of the RTC at the 8259, with the PIT for a watch.
fn rtc_interrupt(n: u32, what: &str) {
    let ticks = interrupts::count(0x30);
    while interrupts::count(0x38) < n {
        cpu::sti_hlt();
        check!(interrupts::count(0x30) - ticks < 40, "{what} does not come");
    }
}

/// MC146818: update-ended and alarm interrupts, the divider's reset, binary and 12-hour modes, SET; memory sizes in CMOS; ACPI hears of the
/// interrupt.
pub fn rtc_modes(_: &BootInfo) {
    pic::init(0x30);
    on_interrupt(0x30, |_| pic::eoi(0));
    on_interrupt(0x38, |_| pic::eoi(8));
    time::pit_set(0, 2, 0);
    // 23:59:59 on 31 December 1999, in BCD and 24 hours; the clock stands while SET is, and while the divider is held.
    set_cmos(0xb, 0x82);
    set_cmos(0xa, 0x76);
    for (index, value) in [(0, 0x59), (2, 0x59), (4, 0x23), (6, 6), (7, 0x31), (8, 0x12), (9, 0x99), (0x32, 0x19)] {
        set_cmos(index, value);
    }
    // The alarm is at midnight.
    for index in [1, 3, 5] {
        set_cmos(index, 0);
    }
    cmos(0xc);
    outw(0x600, 1 << 10);
    set_cmos(0xb, 0x32);
    check_eq!(cmos(0xa) & 0x80, 0, "no update while the divider is held");
    let start = rdtsc();
    set_cmos(0xa, 0x26);
    pic::unmask(0);
    pic::unmask(8);
    rtc_interrupt(1, "the alarm");
    let ms = (rdtsc() - start) * 1000 / tsc_hz();
    check!((490..600).contains(&ms), "half a second after the divider is let go: {ms} ms");
    check_eq!(inw(0x600) & 1 << 10, 1 << 10, "the chipset has noted the interrupt");
    check_eq!(cmos(0xc) & 0xb0, 0xb0, "IRQF, AF and UF");
    check_eq!(cmos(0xc) & 0xb0, 0, "read, and gone");
    let date = [cmos(0), cmos(2), cmos(4), cmos(6), cmos(7), cmos(8), cmos(9), cmos(0x32)];
    check_eq!(date, [0, 0, 0, 7, 1, 1, 0, 0x20], "over the century");
    // Binary and 12 hours; no alarm.
    set_cmos(0xb, 0x94);
    set_cmos(0xa, 0x76);
    for (index, value) in [(0, 59), (1, 30), (2, 59), (4, 0x80 | 11)] {
        set_cmos(index, value);
    }
    set_cmos(0xb, 0x14);
    set_cmos(0xa, 0x26);
    rtc_interrupt(2, "the update-ended interrupt");
    pic::mask_all();
    check_eq!(cmos(0xc) & 0xb0, 0x90, "IRQF and UF");
    check_eq!([cmos(0), cmos(2), cmos(4)], [0, 0, 12], "11 pm and an hour is 12 am");
    set_cmos(0xb, 0x02);
    // Memory: 640 KiB, and this guest's 32 MiB less the first.
    let word = |index| u16::from(cmos(index + 1)) << 8 | u16::from(cmos(index));
    check_eq!([word(0x15), word(0x17), word(0x30)], [640, 31 * 1024, 31 * 1024], "KiB");
    check_eq!([word(0x34), word(0x5b)], [16 * 16, 0], "units of 64 KiB above 16 MiB and 4 GiB");
}

/// ACPI fixed hardware: the timer's carry, general-purpose events, write-one-to-clear, SCI through the 8259.
pub fn acpi_events(_: &BootInfo) {
    pic::init(0x30);
    on_interrupt(0x39, |_| {});
    check_eq!(inw(0x604) & 1, 1, "ACPI mode");
    outw(0x602, 0xffff);
    check_eq!(inw(0x602), 0x721, "what can be enabled");
    outw(0x602, 0);
    outl(0x628, 0x5a5a_a5a5);
    outl(0x62c, 0x1234_5678);
    check_eq!([inl(0x628), inl(0x62c)], [0x5a5a_a5a5, 0x1234_5678], "64 enables");
    outl(0x62c, 0);
    outl(0x628, 4);
    pic::unmask(9);
    outb(0x642, 2);
    cpu::sti();
    check!(time::wait_for(1_000_000, || interrupts::count(0x39) == 1), "the SCI");
    cpu::cli();
    check_eq!(inl(0x620), 4, "its event");
    outl(0x620, 4);
    check_eq!(inl(0x620), 4, "a level that is still there");
    outb(0x642, 0);
    outl(0x620, 3);
    check_eq!(inl(0x620), 4, "other bits clear nothing");
    outl(0x620, 4);
    check_eq!(inl(0x620), 0, "a one clears");
    outb(0xa0, 0x20);
    outb(0x20, 0x20);
    cpu::sti();
    time::spin_us(200);
    cpu::cli();
    check_eq!(interrupts::count(0x39), 1, "the SCI has fallen");
}

fn command_8042(command: u8) {
    check!(time::wait_for(1_000_000, || inb(0x64) & 2 == 0), "the input buffer empties");
    outb(0x64, command);
}

fn data_8042(value: u8) {
    check!(time::wait_for(1_000_000, || inb(0x64) & 2 == 0), "the input buffer empties");
    outb(0x60, value);
}

fn answer() -> u8 {
    check!(time::wait_for(1_000_000, || inb(0x64) & 1 != 0), "an answer comes");
    inb(0x60)
}

fn answers<const N: usize>() -> [u8; N] {
    core::array::from_fn(|_| answer())
}

/// 8042: self-test, command byte, keyboard and mouse reset and identification, interrupts, output port, A20 by both ways.
pub fn i8042(_: &BootInfo) {
    pic::init(0x30);
    while inb(0x64) & 1 != 0 {
        inb(0x60);
    }
    command_8042(0xaa);
    check_eq!(answer(), 0x55, "self-test");
    command_8042(0xab);
    check_eq!(answer(), 0, "keyboard interface");
    command_8042(0xa9);
    check_eq!(answer(), 0, "mouse interface");
    command_8042(0x60);
    data_8042(0x03);
    command_8042(0x20);
    check_eq!(answer(), 3, "command byte");
    // The keyboard: reset, identification, scan code set, echo, resend, an unknown command.
    data_8042(0xff);
    check_eq!(answers(), [0xfa, 0xaa], "keyboard reset");
    data_8042(0xf2);
    check_eq!(answers(), [0xfa, 0xab, 0x83], "keyboard identification");
    data_8042(0xee);
    check_eq!(answer(), 0xee, "echo");
    data_8042(0xf0);
    check_eq!(answer(), 0xfa, "scan code set");
    data_8042(0);
    check_eq!(answers(), [0xfa, 2], "is 2");
    data_8042(0xed);
    check_eq!(answer(), 0xfa, "LEDs");
    data_8042(7);
    check_eq!(answer(), 0xfa, "set");
    data_8042(0xef);
    check_eq!(answer(), 0xfe, "an unknown command");
    // The mouse.
    let mouse = |value| {
        command_8042(0xd4);
        data_8042(value);
    };
    mouse(0xff);
    check!(time::wait_for(1_000_000, || inb(0x64) & 0x21 == 0x21), "the mouse's byte is marked");
    check_eq!(answers(), [0xfa, 0xaa, 0], "mouse reset");
    mouse(0xf2);
    check_eq!(answers(), [0xfa, 0], "a plain mouse");
    // 200, 100, 80 samples a second in turn make it one with a wheel.
    for rate in [200, 100, 80] {
        mouse(0xf3);
        mouse(rate);
        check_eq!(answers(), [0xfa; 2], "sample rate");
    }
    mouse(0xf2);
    check_eq!(answers(), [0xfa, 3], "a wheel");
    mouse(0xe9);
    check_eq!(answers(), [0xfa, 0, 2, 80], "its status");
    // Interrupts 1 and 12.
    on_interrupt(0x31, |_| {
        inb(0x60);
        pic::eoi(1);
    });
    on_interrupt(0x3c, |_| {
        inb(0x60);
        pic::eoi(12);
    });
    pic::unmask(1);
    pic::unmask(12);
    cpu::sti();
    data_8042(0xee);
    check!(time::wait_for(1_000_000, || interrupts::count(0x31) == 1), "IRQ 1");
    mouse(0xe6);
    check!(time::wait_for(1_000_000, || interrupts::count(0x3c) == 1), "IRQ 12");
    cpu::cli();
    pic::mask_all();
    // A20: each way shows in its own register; the other way's state stays.
    command_8042(0xd0);
    let output_port = answer();
    check_eq!(output_port & 3, 3, "output port: no reset, A20 open");
    command_8042(0xd1);
    data_8042(output_port & !2);
    command_8042(0xd0);
    check_eq!(answer() & 2, 0, "A20 shut at the keyboard controller");
    command_8042(0xdf);
    command_8042(0xd0);
    check_eq!(answer() & 2, 2, "and opened by its command");
    let fast = inb(0x92);
    outb(0x92, fast & !2);
    check_eq!(inb(0x92) & 2, 0, "shut at port 0x92");
    outb(0x92, fast | 2);
    check_eq!(inb(0x92) & 3, 2, "and opened");
}

/// Divisor `divisor` and 8N1.
fn set_divisor(base: u16, divisor: u16) {
    let bytes = divisor.to_le_bytes();
    outb(base + 3, 0x80);
    outb(base, bytes[0]);
    outb(base + 1, bytes[1]);
    check_eq!([inb(base), inb(base + 1)], bytes, "divisor latch");
    outb(base + 3, 3);
}

/// COM2 to COM4 (where configured): FIFO trigger levels, timeout, break, interrupts at IRQ 3; debug console ports.
pub fn serial_ports(_: &BootInfo) {
    // The configuration has COM1, COM2 and COM4.
    check_eq!(inb(0x3ef), 0xff, "there is no COM3");
    outb(0x3ef, 0x5a);
    check_eq!(inb(0x3ef), 0xff, "nothing keeps what is written");
    pic::init(0x30);
    on_interrupt(0x33, |_| {});
    for base in [0x2f8u16, 0x2e8] {
        outb(base + 7, 0xa5);
        check_eq!(inb(base + 7), 0xa5, "scratch register of {base:#x}");
        // At 2 baud no timeout comes in between.
        set_divisor(base, 0xe100);
        outb(base + 1, 0);
        // Loopback: each trigger level.
        for (level, fcr) in [(1, 0x07u8), (4, 0x47), (8, 0x87), (14, 0xc7)] {
            outb(base + 2, fcr);
            outb(base + 4, 0x10);
            outb(base + 1, 1);
            check_eq!(inb(base + 2), 0xc1, "FIFOs on, no interrupt");
            for n in 1..=level {
                check_eq!(inb(base + 2) & 0xf, 1, "below the trigger level {level}, {n}");
                outb(base, n);
            }
            check_eq!(inb(base + 2) & 0xf, 4, "data available at {level}");
            for n in 1..=level {
                check_eq!(inb(base), n, "in order");
            }
            check_eq!(inb(base + 5) & 0x9f, 0, "empty");
        }
        // The character timeout: four characters' time at 9600 baud after one that does not reach the level.
        set_divisor(base, 12);
        outb(base, 0x42);
        check!(time::wait_for(1_000_000, || inb(base + 2) & 0xf == 0xc), "character timeout");
        check_eq!([inb(base), inb(base + 2) & 0xf], [0x42, 1], "until it is read");
        // Break, overrun.
        outb(base + 1, 4);
        outb(base + 3, 0x43);
        check_eq!(inb(base + 2) & 0xf, 6, "line status");
        check_eq!(inb(base + 5) & 0x99, 0x99, "break, framing error, error in the FIFO");
        outb(base + 3, 3);
        check_eq!(inb(base), 0, "the break's character");
        outb(base + 2, 0);
        outb(base, 1);
        outb(base, 2);
        check_eq!(inb(base + 5) & 3, 3, "overrun without FIFOs");
        check_eq!([inb(base), inb(base + 5) & 3], [2, 0], "the later character stays");
        // Modem lines in loopback, and their changes.
        inb(base + 6);
        outb(base + 4, 0x1f);
        check_eq!(inb(base + 6), 0xfb, "all on, changed but for RI's trailing edge");
        outb(base + 4, 0x10);
        check_eq!(inb(base + 6), 0x0f, "all off");
        // Transmitter empty, at IRQ 3 through OUT2.
        outb(base + 4, 8);
        outb(base + 1, 2);
        pic::unmask(3);
        let count = interrupts::count(0x33);
        cpu::sti();
        check!(time::wait_for(1_000_000, || interrupts::count(0x33) == count + 1), "IRQ 3");
        cpu::cli();
        check_eq!(inb(base + 2) & 0xf, 2, "transmitter empty");
        pic::eoi(3);
        outb(base + 1, 0);
        pic::mask_all();
    }
    for port in [0xe9, 0x402] {
        check_eq!(inb(port), 0xe9, "a debug console at {port:#x}");
        for &byte in b"debug console\n" {
            outb(port, byte);
        }
    }
    for &byte in b"to the log\n" {
        outb(0x2f8, byte);
    }
}

const ECAM: u64 = 0xb000_0000;
/// Where the PCI serial port is.
const CARD: u64 = 3 << 15;

fn config(at: u64) -> u32 {
    outl(0xcf8, 0x8000_0000 | ((at >> 15 & 0x1f) as u32) << 11 | at as u32 & 0xfc);
    inl(0xcfc)
}

/// Configuration space in memory (PCI Express 3.0, 7.2.2): the same as by ports, in every width; it can be moved.
pub fn pci_ecam(_: &BootInfo) {
    let table = acpi_table(b"MCFG").expect("an ACPI table");
    check_eq!(read64(table + 44), ECAM, "its address");
    for at in [0, 8, 0x2c, 31 << 15, 31 << 15 | 8, 31 << 15 | 0x60, 5 << 15] {
        check_eq!(read32(ECAM + at), config(at), "register {at:#x}");
    }
    check_eq!([cpu::read16(ECAM), cpu::read16(ECAM + 2)], [0x8086, 0x29c0], "16 bits");
    check_eq!(cpu::read8(ECAM + (31 << 15) + 0xb), 6, "8 bits");
    check_eq!(read64(ECAM) as u32, 0x29c0_8086, "64 bits");
    check_eq!(read32(ECAM + 0x100), 0, "no extended capabilities");
    check_eq!(read32(ECAM + (1 << 20)), u32::MAX, "nothing on bus 1");
    check_eq!(read32(ECAM + 0xff0_0000), u32::MAX, "nor on bus 255");
    write32(ECAM + 0xdc, 0x1234_5678);
    check_eq!(config(0xdc), 0x1234_5678, "a write");
    // PCIEXBAR: elsewhere, with 64 buses, then back.
    write32(ECAM + 0x60, 0xd000_0005);
    check_eq!(read32(ECAM), u32::MAX, "gone");
    check_eq!(read32(0xd000_0000), 0x29c0_8086, "moved");
    check_eq!(read32(0xd000_0000 + (64 << 20)), u32::MAX, "and smaller");
    write32(0xd000_0060, 0xb000_0001);
    check_eq!(read32(ECAM), 0x29c0_8086, "and back");
}

/// A PCI function: BARs sized, moved and switched off; its pin through the IOAPIC and by PIRQ routing; MSI and MSI-X with masks
/// (PCI 3.0, 6.2.5, 6.8).
pub fn pci_device(_: &BootInfo) {
    let at = |register: u64| ECAM + CARD + register;
    check_eq!(read32(at(8)) >> 8, 0x07_0002, "a 16550");
    let find = |id: u32| {
        let mut pointer = u64::from(read32(at(0x34)) & 0xfc);
        while pointer != 0 && read32(at(pointer)) & 0xff != id {
            pointer = u64::from(read32(at(pointer)) >> 8 & 0xfc);
        }
        check!(pointer != 0, "capability {id:#x}");
        pointer
    };
    // Sizing.
    for (register, mask) in [(0x10, 0xffff_fff9u32), (0x14, 0xffff_f000)] {
        write32(at(register), u32::MAX);
        check_eq!(read32(at(register)), mask, "size of the BAR at {register:#x}");
    }
    check_eq!(read32(at(0x18)), 0, "no third BAR");
    write32(at(0x10), 0xc000);
    write32(at(0x14), 0xd000_0000);
    check_eq!(inb(0xc007), 0xff, "it does not decode yet");
    write32(at(4), 7);
    outb(0xc007, 0x5a);
    check_eq!(inb(0xc007), 0x5a, "scratch register");
    write32(at(0x10), 0xc100);
    check_eq!([inb(0xc007), inb(0xc107)], [0xff, 0x5a], "moved");
    check_eq!(read32(0xd000_000c), 1, "MSI-X: the first vector is masked");
    write32(at(0x14), 0xd010_0000);
    check_eq!([read32(0xd000_000c), read32(0xd010_000c)], [u32::MAX, 1], "moved, too");
    write32(at(4), 2);
    check_eq!(inb(0xc107), 0xff, "I/O off");
    write32(at(4), 0);
    check_eq!(read32(0xd010_000c), u32::MAX, "memory off");
    write32(at(4), 7);
    // The pin: INTA# of device 3 is PIRQ D, IOAPIC pin 19, a level.
    let raise = || outb(0xc101, 2);
    let lower = || {
        outb(0xc101, 0);
        inb(0xc102);
    };
    pic::mask_all();
    apic::enable();
    on_interrupt(LOW, |_| {
        outb(0xc101, 0);
        apic::eoi();
    });
    apic::route(19, 0x8000 | u32::from(LOW), 0);
    cpu::sti();
    raise();
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 1), "by its pin");
    // Interrupt Disable holds the pin, and the status register shows the level.
    write32(at(4), 0x407);
    raise();
    time::spin_us(200);
    check_eq!([interrupts::count(LOW), read32(at(4)) >> 19 & 1], [1, 1], "disabled, but shown");
    write32(at(4), 7);
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 2), "enabled");
    check_eq!(read32(at(4)) >> 19 & 1, 0, "and no more");
    apic::route(19, 1 << 16, 0);
    // By PIRQ routing to IRQ 11 of the 8259, which is a level then.
    cpu::cli();
    pic::init(0x30);
    on_interrupt(0x3b, |_| {
        outb(0xc101, 0);
        pic::eoi(11);
    });
    let routing = ECAM + (31 << 15) + 0x60;
    let routes = read32(routing);
    write32(routing, routes & 0x00ff_ffff | 0x0b00_0000);
    outb(0x4d1, inb(0x4d1) | 8);
    pic::unmask(11);
    cpu::sti();
    raise();
    check!(time::wait_for(1_000_000, || interrupts::count(0x3b) == 1), "by the 8259");
    write32(routing, routes & 0x00ff_ffff | 0x8000_0000);
    raise();
    time::spin_us(200);
    check_eq!(interrupts::count(0x3b), 1, "not routed");
    lower();
    write32(routing, routes);
    pic::mask_all();
    // MSI with its mask.
    interrupts::clear_count(LOW);
    let msi = find(5);
    let control = read32(at(msi));
    check_eq!(control >> 16 & 0x18e, 0x180, "one vector, 64 bits, masks");
    write32(at(msi + 4), 0xfee0_0000);
    write32(at(msi + 8), 0);
    write32(at(msi + 0xc), LOW.into());
    write32(at(msi), control | 1 << 16);
    raise();
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 1), "MSI");
    write32(at(msi + 0x10), 1);
    raise();
    time::spin_us(200);
    check_eq!([interrupts::count(LOW), read32(at(msi + 0x14))], [1, 1], "masked and pending");
    write32(at(msi + 0x10), 0);
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 2), "sent when the mask goes");
    check_eq!(read32(at(msi + 0x14)), 0, "not pending");
    write32(at(msi), control);
    // MSI-X: vector mask and function mask.
    let msix = find(0x11);
    check_eq!([read32(at(msix)) >> 16 & 0x7ff, read32(at(msix + 4)) & 7], [0, 1], "one vector, in BAR 1");
    let table = 0xd010_0000 + u64::from(read32(at(msix + 4)) & !7);
    let pending = 0xd010_0000 + u64::from(read32(at(msix + 8)) & !7);
    let control = read32(at(msix));
    write32(at(msix), control | 1 << 31);
    write32(table, 0xfee0_0000);
    write32(table + 4, 0);
    write32(table + 8, LOW.into());
    raise();
    time::spin_us(200);
    check_eq!([interrupts::count(LOW), read32(pending)], [2, 1], "masked and pending");
    write32(table + 12, 0);
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 3), "sent when the mask goes");
    write32(at(msix), control | 3 << 30);
    raise();
    time::spin_us(200);
    check_eq!(interrupts::count(LOW), 3, "the function's mask");
    write32(at(msix), control | 1 << 31);
    check!(time::wait_for(1_000_000, || interrupts::count(LOW) == 4), "sent when that goes");
    // Without bus mastering there are no messages.
    write32(at(4), 3);
    raise();
    time::spin_us(200);
    check_eq!(interrupts::count(LOW), 4, "no bus master");
    write32(at(msix), control);
    lower();
    cpu::cli();
}
