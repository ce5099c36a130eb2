//! What an exit costs, in TSC ticks: exact instruction counts when the emulator counts instructions.

use crate::rt::{
    BootInfo, apic, catch, cpu,
    cpu::{rdtsc, read32},
    cpuid, inb, interrupts, on_interrupt, outb, println, rdmsr, wrmsr,
};

const ROUNDS: usize = 64;

/// Median of the ticks that `body` takes, less what reading the TSC twice takes.
fn measure(name: &str, mut body: impl FnMut()) {
    let mut samples = [0u64; ROUNDS];
    let mut empty = [0u64; ROUNDS];
    for i in 0..ROUNDS {
        let start = rdtsc();
        empty[i] = rdtsc() - start;
        let start = rdtsc();
        body();
        samples[i] = rdtsc() - start;
    }
    samples.sort_unstable();
    empty.sort_unstable();
    println!("bench {name} {}", samples[ROUNDS / 2].saturating_sub(empty[ROUNDS / 2]));
}

/// Prints `bench NAME TICKS` lines.
pub fn run(_: &BootInfo) {
    measure("cpuid", || {
        core::hint::black_box(cpuid(0, 0));
    });
    measure("hypercall", hypercall);
    measure("pit-read", || {
        inb(0x40);
    });
    measure("pic-read", || {
        inb(0x21);
    });
    measure("serial-lsr-read", || {
        inb(0x3fd);
    });
    measure("pm-timer-read", || {
        cpu::inl(crate::rt::time::PM_TIMER);
    });
    measure("unclaimed-port-read", || {
        inb(0x2f0);
    });
    measure("port-80-write", || outb(0x80, 0));
    measure("msr-read-apic-base", || {
        rdmsr(0x1b);
    });
    let efer = rdmsr(0xc000_0080);
    measure("msr-write-efer", || wrmsr(0xc000_0080, efer));
    measure("xapic-tpr-read", || {
        apic::read(apic::reg::TPR);
    });
    apic::enable();
    measure("xapic-eoi", apic::eoi);
    on_interrupt(0x60, |_| apic::eoi());
    cpu::sti();
    measure("xapic-self-ipi", || apic::write(apic::reg::ICR_LOW, 0x4_4060));
    cpu::cli();
    measure("ioapic-read", || {
        read32(apic::IOAPIC + 0x10);
    });
    measure("mmio-nothing-there", || {
        read32(0xd000_0000);
    });
    measure("exception-ud", || {
        // SAFETY: caught.
        catch(|| unsafe { core::arch::asm!("ud2") });
    });
    apic::enable_x2();
    measure("x2apic-eoi", || wrmsr(apic::x2(apic::reg::EOI), 0));
    on_interrupt(0x61, |_| wrmsr(apic::x2(apic::reg::EOI), 0));
    cpu::sti();
    measure("x2apic-self-ipi", || wrmsr(apic::x2(apic::reg::ICR_LOW), 0x4_4061));
    cpu::cli();
    wrmsr(apic::x2(apic::reg::TIMER_DIVIDE), 0xb);
    wrmsr(apic::x2(apic::reg::LVT_TIMER), 1 << 16);
    measure("x2apic-timer-arm", || wrmsr(apic::x2(apic::reg::TIMER_INITIAL), 0x4000_0000));
    wrmsr(apic::x2(apic::reg::TIMER_INITIAL), 0);
    measure("hlt-interrupt-pending", || {
        wrmsr(apic::x2(apic::reg::ICR_LOW), 0x4_4061);
        cpu::sti_hlt();
    });
    println!("bench-interrupts {}", interrupts::count(0x61));
    measure("rep-outsb-16", rep_outsb);
}

fn hypercall() {
    let amd = cpuid(0, 0)[1] != 0x756e_6547;
    // SAFETY: an unknown hypercall number has no effect but the result in RAX.
    unsafe {
        if amd {
            core::arch::asm!("vmmcall", inout("rax") 999u64 => _, options(nostack));
        } else {
            core::arch::asm!("vmcall", inout("rax") 999u64 => _, options(nostack));
        }
    }
}

fn rep_outsb() {
    let bytes = [0u8; 16];
    // SAFETY: reads 16 bytes of a local; port 0x80 only latches.
    unsafe {
        core::arch::asm!("rep outsb", inout("rsi") bytes.as_ptr() => _, inout("rcx") 16u64 => _, in("dx") 0x80u16, options(nostack, readonly));
    }
}
