//! Operations that one processor does by itself.

use super::{Bench, timer};
use crate::rt::{
    apic,
    apic::reg,
    cpu::{self, read32, write32},
    cpuid, inb, inl, interrupts, outb, outl, rdmsr, wrmsr,
};
use core::arch::{asm, global_asm};

/// A latch in PCs, for codes of the power-on self-test.
const POST: u16 = 0x80;
/// A port and an address with nothing behind them.
const NO_PORT: u16 = 0x2f0;
const NO_DEVICE: u64 = 0xd000_0000;
const HPET: u64 = 0xfed0_0000;

pub fn ports(bench: &Bench<'_>) {
    let pm_timer = bench.number("pm", crate::rt::time::PM_TIMER.into()) as u16;
    let read = |name, port| {
        bench.measure(name, || {
            inb(port);
        });
    };
    let write = |name, port, value| bench.measure(name, || outb(port, value));
    read("pit-read", 0x42);
    // Latches channel 2.
    write("pit-write", 0x43, 0x80);
    read("pic-read", 0x21);
    write("pic-write", 0x21, 0xff);
    read("serial-lsr-read", 0x3fd);
    // The scratch register.
    write("serial-write", 0x3ff, 0x55);
    outb(0x70, 0x8d);
    read("rtc-read", 0x71);
    write("rtc-write", 0x70, 0x8d);
    bench.measure("pm-timer-read", || {
        inl(pm_timer);
    });
    outl(0xcf8, 0x8000_0000);
    bench.measure("pci-config-read", || {
        inl(0xcfc);
    });
    read("unclaimed-port-read", NO_PORT);
    write("port-80-write", POST, 0);
    bench.measure("rep-outsb-16", || outsb::<16>(POST));
    bench.measure("rep-outsb-256", || outsb::<256>(POST));
    bench.measure("rep-insb-16", || insb(POST));
}

fn outsb<const N: usize>(port: u16) {
    static BYTES: [u8; 256] = [0; 256];
    // SAFETY: reads at most 256 bytes of a static.
    unsafe {
        asm!("rep outsb", inout("rsi") BYTES.as_ptr() => _, inout("rcx") N => _, in("dx") port, options(nostack, readonly))
    };
}

fn insb(port: u16) {
    let mut bytes = [0u8; 16];
    // SAFETY: writes 16 bytes of a local.
    unsafe { asm!("rep insb", inout("rdi") bytes.as_mut_ptr() => _, inout("rcx") 16 => _, in("dx") port, options(nostack)) };
}

pub fn processor(bench: &Bench<'_>) {
    bench.measure("cpuid", || {
        core::hint::black_box(cpuid(0, 0));
    });
    // QEMU itself claims to be a hypervisor, and has no hypercalls.
    if cpuid(1, 0)[2] >> 31 != 0 && !bench.bare {
        if cpuid(0, 0)[1] == 0x756e_6547 {
            // SAFETY: an unknown hypercall has no effect but the result in RAX.
            bench.measure("hypercall", || unsafe { asm!("vmcall", inout("rax") 999u64 => _, options(nostack)) });
        } else {
            // SAFETY: as above.
            bench.measure("hypercall", || unsafe { asm!("vmmcall", inout("rax") 999u64 => _, options(nostack)) });
        }
    }
    bench.measure("msr-read-apic-base", || {
        rdmsr(apic::APIC_BASE);
    });
    let efer = rdmsr(0xc000_0080);
    bench.measure("msr-write-efer", || wrmsr(0xc000_0080, efer));
    let gs = rdmsr(0xc000_0101);
    bench.measure("msr-write-gs-base", || wrmsr(0xc000_0101, gs));
    let cr0 = cpu::read_cr0();
    bench.measure("cr0-read", || {
        core::hint::black_box(cpu::read_cr0());
    });
    bench.measure("cr0-write", || cpu::write_cr0(cr0));
    let mut task_switched = 0;
    bench.measure("cr0-write-ts", || {
        task_switched ^= 8;
        cpu::write_cr0(cr0 | task_switched);
    });
    cpu::write_cr0(cr0);
    let cr3 = cpu::read_cr3();
    bench.measure("cr3-write", || cpu::write_cr3(cr3));
    let cr4 = cpu::read_cr4();
    bench.measure("cr4-write", || cpu::write_cr4(cr4));
    bench.measure("cr8-read", || {
        core::hint::black_box(cpu::read_cr8());
    });
    bench.measure("cr8-write", || cpu::write_cr8(0));
    bench.measure("dr7-read", || {
        core::hint::black_box(cpu::read_dr7());
    });
    bench.measure("dr7-write", || cpu::write_dr7(0x400));
    // SAFETY: the page is mapped; only its cached translation goes.
    bench.measure("invlpg", || unsafe { asm!("invlpg [{}]", in(reg) 0x10_0000u64, options(nostack)) });
    // SAFETY: writes modified cache lines back.
    bench.measure("wbinvd", || unsafe { asm!("wbinvd", options(nostack)) });
    bench.measure("pause", core::hint::spin_loop);
    exceptions(bench);
}

global_asm!(
    r#"
    .balign 16
    .global bench_skip_two
bench_skip_two:
    add qword ptr [rsp], 2
    iretq
    .global bench_skip_two_with_code
bench_skip_two_with_code:
    add rsp, 8
    add qword ptr [rsp], 2
    iretq
    .global bench_eoi
bench_eoi:
    push rax
    mov eax, 0xfee000b0
    mov dword ptr [rax], 0
    pop rax
    iretq
    .global bench_x2_eoi
bench_x2_eoi:
    push rax
    push rcx
    push rdx
    mov ecx, 0x80b
    xor eax, eax
    xor edx, edx
    wrmsr
    pop rdx
    pop rcx
    pop rax
    iretq
"#
);

unsafe extern "C" {
    static bench_skip_two: u8;
    static bench_skip_two_with_code: u8;
    static bench_eoi: u8;
    static bench_x2_eoi: u8;
}

/// With handlers that only step over the instruction: what is measured is the way to the handler and back.
fn exceptions(bench: &Bench<'_>) {
    const UD: u8 = 6;
    const GP: u8 = 13;
    interrupts::set_handler(UD, &raw const bench_skip_two as u64);
    interrupts::set_handler(GP, &raw const bench_skip_two_with_code as u64);
    // SAFETY: the handler steps over the two bytes.
    bench.measure("exception-ud", || unsafe { asm!("ud2", options(nostack)) });
    // An MSR that no processor has. QEMU lets it pass on the bare machine.
    // SAFETY: as above.
    bench.measure("injected-gp", || unsafe {
        asm!("rdmsr", in("ecx") 0x1234_5678, out("eax") _, out("edx") _, options(nostack));
    });
    interrupts::set_gate(UD, 0x8e, 0);
    interrupts::set_gate(GP, 0x8e, 0);
}

pub fn memory(bench: &Bench<'_>) {
    bench.measure("ioapic-read", || {
        read32(apic::IOAPIC + 0x10);
    });
    // The index register.
    bench.measure("ioapic-write", || write32(apic::IOAPIC, 0));
    bench.measure("mmio-nothing-there", || {
        read32(NO_DEVICE);
    });
    bench.measure("mmio-nothing-there-write", || write32(NO_DEVICE, 0));
    if !matches!(read32(HPET), 0 | u32::MAX) {
        bench.measure("hpet-read", || {
            read32(HPET + 0xf0);
        });
        bench.measure("hpet-write", || write32(HPET + 0x20, 0));
    }
    // Far above the image, where nothing has been yet.
    for (name, first, step) in [("first-touch-4k", 64 << 20, 0x1000), ("first-touch-2m", 96 << 20, 0x20_0000)] {
        let mut page = first;
        let next = || {
            page += step;
            page
        };
        bench.measure_after(name, next, |page| write32(page, 1));
    }
}

/// As the processor starts.
pub fn xapic(bench: &Bench<'_>) {
    apic::enable();
    bench.measure("xapic-tpr-read", || {
        apic::read(reg::TPR);
    });
    bench.measure("xapic-tpr-write", || apic::write(reg::TPR, 0));
    bench.measure("xapic-eoi", apic::eoi);
    bench.measure("xapic-timer-read", || {
        apic::read(reg::TIMER_CURRENT);
    });
    apic::write(reg::LVT_TIMER, 1 << 16);
    apic::write(reg::TIMER_DIVIDE, 0xb);
    bench.measure("xapic-timer-arm", || apic::write(reg::TIMER_INITIAL, 0x4000_0000));
    apic::write(reg::TIMER_INITIAL, 0);
    interrupts::set_handler(0x60, &raw const bench_eoi as u64);
    cpu::sti();
    bench.measure("xapic-self-ipi", || apic::write(reg::ICR_LOW, 0x4_4060));
    cpu::cli();
}

pub fn x2apic(bench: &Bench<'_>) {
    if cpuid(1, 0)[2] >> 21 & 1 == 0 {
        return;
    }
    let (read, write) = (|register| rdmsr(apic::x2(register)), |register, value| wrmsr(apic::x2(register), value));
    apic::enable_x2();
    bench.measure("x2apic-tpr-read", || {
        read(reg::TPR);
    });
    bench.measure("x2apic-tpr-write", || write(reg::TPR, 0));
    bench.measure("x2apic-eoi", || write(reg::EOI, 0));
    bench.measure("x2apic-timer-read", || {
        read(reg::TIMER_CURRENT);
    });
    write(reg::LVT_TIMER, 1 << 16);
    write(reg::TIMER_DIVIDE, 0xb);
    bench.measure("x2apic-timer-arm", || write(reg::TIMER_INITIAL, 0x4000_0000));
    write(reg::TIMER_INITIAL, 0);
    interrupts::set_handler(0x61, &raw const bench_x2_eoi as u64);
    cpu::sti();
    bench.measure("x2apic-self-ipi", || write(reg::ICR_LOW, 0x4_4061));
    bench.measure("x2apic-self-ipi-register", || wrmsr(0x83f, 0x61));
    cpu::cli();
    bench.measure("hlt-interrupt-pending", || {
        write(reg::ICR_LOW, 0x4_4061);
        cpu::sti_hlt();
    });
    // The same but for the IPI, which is there before.
    bench.measure_after("hlt-alone", || write(reg::ICR_LOW, 0x4_4061), |()| cpu::sti_hlt());
    timer::run(bench, timer::Mode::X2Apic);
}
