//! What an exit costs, in TSC ticks: exact instruction counts when the emulator counts instructions.

use crate::rt::{
    BootInfo, apic, catch, cpu,
    cpu::{rdtsc, read32},
    cpuid, inb, interrupts, on_interrupt, outb, println, rdmsr, wrmsr,
};

const ROUNDS: usize = 64;

/// Which of the measurements are wanted.
struct Bench<'a> {
    /// Only those whose name contains this.
    filter: &'a str,
    /// Repeat this one for ever, for a trace of the emulator's.
    trace: Option<&'a str>,
}

impl Bench<'_> {
    /// Prints the median of the ticks that `body` takes, less what reading the TSC twice takes.
    #[inline(always)]
    fn measure(&self, name: &str, mut body: impl FnMut()) {
        if self.trace == Some(name) {
            for _ in 0..ROUNDS {
                body();
            }
            println!("trace {name}");
            loop {
                // Bochs' magic breakpoint: nothing, to everybody else.
                // SAFETY: exchanges a register with itself.
                unsafe { core::arch::asm!("xchg bx, bx", options(nomem, nostack, preserves_flags)) };
                body();
            }
        }
        if self.trace.is_some() || !name.contains(self.filter) {
            return;
        }
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
}

/// Prints `bench NAME TICKS` lines.
pub fn run(boot: &BootInfo) {
    let bench = Bench { filter: boot.option("filter").unwrap_or(""), trace: boot.option("trace") };
    bench.measure("cpuid", || {
        core::hint::black_box(cpuid(0, 0));
    });
    bench.measure("hypercall", hypercall);
    bench.measure("pit-read", || {
        inb(0x40);
    });
    bench.measure("pic-read", || {
        inb(0x21);
    });
    bench.measure("serial-lsr-read", || {
        inb(0x3fd);
    });
    bench.measure("pm-timer-read", || {
        cpu::inl(crate::rt::time::PM_TIMER);
    });
    bench.measure("unclaimed-port-read", || {
        inb(0x2f0);
    });
    bench.measure("port-80-write", || outb(0x80, 0));
    bench.measure("msr-read-apic-base", || {
        rdmsr(0x1b);
    });
    let efer = rdmsr(0xc000_0080);
    bench.measure("msr-write-efer", || wrmsr(0xc000_0080, efer));
    bench.measure("xapic-tpr-read", || {
        apic::read(apic::reg::TPR);
    });
    apic::enable();
    bench.measure("xapic-eoi", apic::eoi);
    on_interrupt(0x60, |_| apic::eoi());
    cpu::sti();
    bench.measure("xapic-self-ipi", || apic::write(apic::reg::ICR_LOW, 0x4_4060));
    cpu::cli();
    bench.measure("ioapic-read", || {
        read32(apic::IOAPIC + 0x10);
    });
    bench.measure("mmio-nothing-there", || {
        read32(0xd000_0000);
    });
    bench.measure("exception-ud", || {
        // SAFETY: caught.
        catch(|| unsafe { core::arch::asm!("ud2") });
    });
    apic::enable_x2();
    bench.measure("x2apic-eoi", || wrmsr(apic::x2(apic::reg::EOI), 0));
    on_interrupt(0x61, |_| wrmsr(apic::x2(apic::reg::EOI), 0));
    cpu::sti();
    bench.measure("x2apic-self-ipi", || wrmsr(apic::x2(apic::reg::ICR_LOW), 0x4_4061));
    cpu::cli();
    wrmsr(apic::x2(apic::reg::TIMER_DIVIDE), 0xb);
    wrmsr(apic::x2(apic::reg::LVT_TIMER), 1 << 16);
    bench.measure("x2apic-timer-arm", || wrmsr(apic::x2(apic::reg::TIMER_INITIAL), 0x4000_0000));
    wrmsr(apic::x2(apic::reg::TIMER_INITIAL), 0);
    bench.measure("hlt-interrupt-pending", || {
        wrmsr(apic::x2(apic::reg::ICR_LOW), 0x4_4061);
        cpu::sti_hlt();
    });
    println!("bench-interrupts {}", interrupts::count(0x61));
    bench.measure("rep-outsb-16", rep_outsb);
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
