//! Accesses that exit: ports and device memory in every width and form, and the devices behind them.

use crate::rt::{
    BootInfo, apic, check, check_eq,
    cpu::{cli, read8, read16, read32, read64, sti_hlt, write32},
    inb, inl, interrupts, inw, outb, outl, outw, time,
};
use core::arch::asm;

/// IN writes only its width's part of RAX, 32-bit IN clears the upper half (SDM vol. 1, 3.4.1.1); OUT takes only its width's part.
pub fn port_widths(_: &BootInfo) {
    outl(0xcf8, 0x8000_0000);
    check_eq!(inl(0xcf8), 0x8000_0000, "32-bit port");
    let rax: u64;
    // SAFETY: reads configuration space.
    unsafe { asm!("in al, dx", in("dx") 0xcfcu16, inout("rax") 0x1122_3344_5566_7788u64 => rax) };
    check_eq!(rax, 0x1122_3344_5566_7786, "8-bit IN keeps the rest of RAX (vendor id 8086)");
    let rax: u64;
    // SAFETY: as above.
    unsafe { asm!("in ax, dx", in("dx") 0xcfcu16, inout("rax") 0x1122_3344_5566_7788u64 => rax) };
    check_eq!(rax, 0x1122_3344_5566_8086, "16-bit IN keeps the rest of RAX");
    let rax: u64;
    // SAFETY: as above.
    unsafe { asm!("in eax, dx", in("dx") 0xcfcu16, inout("rax") u64::MAX => rax) };
    check_eq!(rax >> 32, 0, "32-bit IN clears the upper half of RAX");
    check_eq!(rax & 0xffff, 0x8086, "vendor id");
    // Immediate port forms.
    let (before, after): (u8, u8);
    // SAFETY: the PIC's mask register is restored.
    unsafe {
        asm!("in al, 0x21", "mov {b}, al", "mov al, 0x5a", "out 0x21, al", "in al, 0x21", "mov {a}, al", "mov al, {b}", "out 0x21, al", b = out(reg_byte) before, a = out(reg_byte) after, out("al") _)
    };
    check_eq!(after, 0x5a, "immediate port forms; mask was {before:#x}");
}

/// A port that no device claims reads all ones in every width; writes vanish.
pub fn port_unclaimed(_: &BootInfo) {
    for port in [0x2f0, 0x1234, 0xeeee, 0xfffc] {
        outb(port, 0);
        outw(port, 0);
        outl(port, 0);
        check_eq!(inb(port), 0xff, "8-bit, port {port:#x}");
        check_eq!(inw(port), 0xffff, "16-bit, port {port:#x}");
        check_eq!(inl(port), 0xffff_ffff, "32-bit, port {port:#x}");
    }
    outb(0x80, 0x5a);
}

/// INS and OUTS with REP: count, pointer, direction flag, every width; the data goes through (SDM vol. 2A "INS", 2B "OUTS").
pub fn string_io(_: &BootInfo) {
    // The scratch register of COM1 takes the last byte of a REP OUTSB.
    let bytes = *b"string";
    let (rsi, rcx): (u64, u64);
    // SAFETY: reads a local; the scratch register has no effect.
    unsafe { asm!("rep outsb", in("dx") 0x3ffu16, inout("rsi") bytes.as_ptr() => rsi, inout("rcx") bytes.len() as u64 => rcx) };
    check_eq!(rcx, 0, "RCX after REP OUTSB");
    check_eq!(rsi, bytes.as_ptr() as u64 + 6, "RSI after REP OUTSB");
    check_eq!(inb(0x3ff), b'g', "the last byte arrived");
    let mut buffer = [0u8; 8];
    let rdi: u64;
    // SAFETY: writes eight bytes of a local.
    unsafe { asm!("rep insb", in("dx") 0x3ffu16, inout("rdi") buffer.as_mut_ptr() => rdi, inout("rcx") 8u64 => _) };
    check_eq!(buffer, [b'g'; 8], "REP INSB");
    check_eq!(rdi, buffer.as_ptr() as u64 + 8, "RDI after REP INSB");
    let mut words = [0u32; 3];
    outl(0xcf8, 0x8000_0000);
    // SAFETY: backwards from the last element; DF is restored.
    unsafe {
        asm!("std", "rep insd", "cld", in("dx") 0xcfcu16, inout("rdi") words.as_mut_ptr().wrapping_add(2) => _, inout("rcx") 2u64 => _)
    };
    check_eq!(words[0], 0, "not touched");
    check_eq!([words[1] & 0xffff, words[2] & 0xffff], [0x8086; 2], "REP INSD backwards");
    // RCX = 0 does nothing.
    // SAFETY: no iteration takes place.
    unsafe { asm!("rep outsb", in("dx") 0x3ffu16, inout("rsi") 0u64 => _, inout("rcx") 0u64 => _) };
    check_eq!(inb(0x3ff), b'g', "REP with RCX = 0");
    // Single, 16 bits wide.
    let word = 0xa55au16;
    // SAFETY: reads a local; port 80 and 81 have no effect.
    unsafe { asm!("outsw", in("dx") 0x80u16, inout("rsi") &raw const word => _) };
}

/// Device memory in the widths that devices allow; what the local APIC defines is 32-bit (SDM vol. 3A, 11.4.1).
pub fn mmio_widths(_: &BootInfo) {
    let version = apic::read(apic::reg::VERSION);
    check_eq!(version & 0xf0, 0x10, "an integrated APIC: {version:#x}");
    check!(version >> 16 & 0xff >= 4, "at least five LVT entries");
    write32(apic::IOAPIC, 1);
    check_eq!(read32(apic::IOAPIC), 1, "IOREGSEL, 32 bits");
    check_eq!(read8(apic::IOAPIC), 1, "IOREGSEL, 8 bits");
    check_eq!(read32(apic::IOAPIC + 0x10) >> 16 & 0xff, 23, "24 redirection entries");
}

/// Instruction forms that compilers use on device memory: load with zero and sign extension, store of immediates, read-modify-write,
/// test, exchange, push, every size of address.
pub fn mmio_forms(_: &BootInfo) {
    let tpr = apic::LAPIC + 0x80;
    let (zero_extended, sign_extended, flags): (u64, u64, u64);
    // SAFETY: TPR of the local APIC takes 8 bits and only masks interrupts, which are off.
    unsafe {
        asm!(
            "mov dword ptr [{i}], 0x80",
            "movzx {z}, byte ptr [{i}]",
            "movsx {s}, byte ptr [{i}]",
            "mov dword ptr [{t}], 0x80",
            "or dword ptr [{t}], 0x01",
            "add dword ptr [{t}], 0x0e",
            "and dword ptr [{t}], 0x8f",
            "test dword ptr [{t}], 0x70",
            "pushfq",
            "pop {f}",
            t = in(reg) tpr, i = in(reg) apic::IOAPIC, z = out(reg) zero_extended, s = out(reg) sign_extended, f = out(reg) flags,
        );
    }
    check_eq!(zero_extended, 0x80, "MOVZX");
    check_eq!(sign_extended, 0xffff_ffff_ffff_ff80, "MOVSX");
    check_eq!(read32(tpr), 0x8f, "OR, ADD, AND on the register");
    check_eq!(flags & 1 << 6, 1 << 6, "TEST sets ZF");
    let old: u32;
    // SAFETY: as above.
    unsafe { asm!("xchg dword ptr [{t}], {v:e}", t = in(reg) tpr, v = inout(reg) 0x20 => old) };
    check_eq!([old, read32(tpr)], [0x8f, 0x20], "XCHG");
    let pushed: u64;
    // SAFETY: 32-bit address override and RIP-independent absolute forms reach the same register.
    unsafe {
        asm!("mov eax, dword ptr [{t:e}]", t = in(reg) tpr, out("rax") pushed);
        asm!("mov ecx, 3", "2:", "inc dword ptr [{t}]", "loop 2b", t = in(reg) tpr, out("rcx") _);
    }
    check_eq!(pushed, 0x20, "32-bit address size");
    check_eq!(read32(tpr), 0x23, "INC in a loop");
    let mut copy = [0u32; 1];
    // SAFETY: copies four bytes from the device to a local.
    unsafe { asm!("movsd", inout("rsi") tpr => _, inout("rdi") copy.as_mut_ptr() => _) };
    check_eq!(copy[0], 0x23, "MOVS from device memory");
    // SAFETY: as above.
    unsafe { asm!("stosd", inout("rdi") tpr => _, in("eax") 0) };
    check_eq!(read32(tpr), 0, "STOS to device memory");
}

/// Guest-physical addresses with nothing behind them read all ones in every width and swallow writes.
pub fn mmio_unbacked(_: &BootInfo) {
    for address in [0xd000_0000u64, 0xfd00_0ff8] {
        write32(address, 0);
        check_eq!(read8(address), 0xff, "8 bits at {address:#x}");
        check_eq!(read16(address), 0xffff, "16 bits at {address:#x}");
        check_eq!(read32(address), 0xffff_ffff, "32 bits at {address:#x}");
        check_eq!(read64(address), u64::MAX, "64 bits at {address:#x}");
    }
    check_eq!(read32(0xa_0000), 0xffff_ffff, "the VGA window has nothing behind it");
}

/// 16550 loopback: MCR outputs appear as modem inputs, sent bytes come back (National PC16550D, 8.6.7).
pub fn serial_loopback(_: &BootInfo) {
    check!(time::wait_for(1_000_000, || inb(0x3fd) & 0x40 != 0), "transmitter empties");
    let mcr = inb(0x3fc);
    outb(0x3fc, 0x10 | 0xa);
    check_eq!(inb(0x3fe) & 0xf0, 0x90, "RTS -> CTS, OUT2 -> DCD");
    while inb(0x3fd) & 1 != 0 {
        inb(0x3f8);
    }
    outb(0x3f8, 0x5a);
    check!(time::wait_for(1_000_000, || inb(0x3fd) & 1 != 0), "the byte comes back");
    check_eq!(inb(0x3f8), 0x5a, "loopback data");
    outb(0x3fc, mcr);
    outb(0x3ff, 0xa5);
    check_eq!(inb(0x3ff), 0xa5, "scratch register");
}

fn config(device: u32, function: u32, register: u32) -> u32 {
    outl(0xcf8, 0x8000_0000 | device << 11 | function << 8 | register);
    inl(0xcfc)
}

/// PCI configuration mechanism #1: a Q35 host bridge, an ICH9 LPC bridge, all ones where there is nothing (PCI 3.0, 3.2.2.3).
pub fn pci_config(_: &BootInfo) {
    check_eq!(config(0, 0, 0), 0x29c0_8086, "host bridge");
    check_eq!(config(0, 0, 8) >> 16, 0x0600, "class of the host bridge");
    check_eq!(config(31, 0, 0), 0x2918_8086, "LPC bridge");
    check_eq!(config(31, 0, 8) >> 16, 0x0601, "class of the LPC bridge");
    check_eq!(config(31, 0, 0x40) & 0xff80, 0x600, "PMBASE");
    for device in 1..31 {
        check_eq!(config(device, 0, 0), 0xffff_ffff, "nothing at device {device}");
    }
    outl(0xcf8, 0);
    check_eq!(inl(0xcfc), 0xffff_ffff, "configuration disabled");
    // Identity is read-only.
    outl(0xcf8, 0x8000_0000);
    outl(0xcfc, 0);
    check_eq!(inl(0xcfc), 0x29c0_8086, "vendor and device are read-only");
}

fn cmos(index: u8) -> u8 {
    outb(0x70, index);
    inb(0x71)
}

/// MC146818: a sane date, binary-coded, that moves by one second per second of TSC; NVRAM keeps what is written.
pub fn rtc_clock(_: &BootInfo) {
    check!(cmos(0xd) & 0x80 != 0, "valid RAM and time");
    let year = cmos(9);
    check!(year & 0xf <= 9 && year >> 4 <= 9, "BCD year: {year:#x}");
    check_eq!(cmos(0x32), 0x20, "century");
    outb(0x70, 0x50);
    outb(0x71, 0x3c);
    check_eq!(cmos(0x50), 0x3c, "NVRAM");
    let stable = || {
        while cmos(0xa) & 0x80 != 0 {}
        cmos(0)
    };
    // Halted in between: two seconds of reading would take some emulators a minute.
    const VECTOR: u8 = 0x50;
    apic::enable();
    interrupts::on_interrupt(VECTOR, |_| apic::eoi());
    apic::write(apic::reg::TIMER_DIVIDE, 0xb);
    apic::write(apic::reg::LVT_TIMER, u32::from(VECTOR));
    let moves_on = |second| {
        apic::write(apic::reg::TIMER_INITIAL, 1_000_000);
        sti_hlt();
        cli();
        stable() != second
    };
    let second = stable();
    check!(time::wait_for(1_500_000, || moves_on(second)), "the seconds move");
    let start = crate::rt::rdtsc();
    let second = stable();
    check!(time::wait_for(1_500_000, || moves_on(second)), "the seconds move again");
    let elapsed = crate::rt::rdtsc() - start;
    check!(time::near(elapsed, time::tsc_hz(), 2), "one second took {elapsed} ticks of {} Hz", time::tsc_hz());
}

fn sum(at: u64, len: u64) -> u8 {
    (at..at + len).fold(0u8, |sum, a| sum.wrapping_add(read8(a)))
}

/// ACPI tables are where firmware puts them, with good checksums, and name the hardware that is there (ACPI 6.4, 5.2).
pub fn acpi_tables(_: &BootInfo) {
    let rsdp = (0xe_0000u64..0x10_0000).step_by(16).find(|&a| read64(a) == u64::from_le_bytes(*b"RSD PTR "));
    let rsdp = rsdp.expect("an RSDP in the BIOS area");
    check_eq!(sum(rsdp, 20), 0, "RSDP checksum");
    check_eq!(sum(rsdp, 36), 0, "extended RSDP checksum");
    let xsdt = read64(rsdp + 24);
    let length = u64::from(read32(xsdt + 4));
    check_eq!(sum(xsdt, length), 0, "XSDT checksum");
    let (mut madt, mut fadt) = (0, 0);
    for entry in (xsdt + 36..xsdt + length).step_by(8) {
        let table = read32(entry).into();
        check_eq!(sum(table, read32(table + 4).into()), 0, "checksum of the table at {table:#x}");
        match &read32(table).to_le_bytes() {
            b"APIC" => madt = table,
            b"FACP" => fadt = table,
            _ => {}
        }
    }
    check!(madt != 0 && fadt != 0, "MADT and FADT are there");
    check_eq!(u64::from(read32(madt + 36)), apic::LAPIC, "local APIC address");
    check_eq!(read32(fadt + 76), u32::from(time::PM_TIMER), "PM timer block");
    check_eq!(read16(fadt + 46), 9, "SCI");
    let dsdt = u64::from(read32(fadt + 40));
    check_eq!(sum(dsdt, read32(dsdt + 4).into()), 0, "DSDT checksum");
    let a = inl(time::PM_TIMER);
    check!(time::wait_for(100_000, || inl(time::PM_TIMER) != a), "the PM timer runs");
}
