//! How late the local APIC's timer is.

use super::{Bench, ROUNDS, ticks};
use crate::rt::{apic, apic::reg, check, cpu, interrupts, wrmsr};
use core::{
    arch::global_asm,
    sync::atomic::{AtomicU64, Ordering},
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    XApic,
    X2Apic,
}

const VECTOR: u8 = 0x62;
/// Ticks of the timer, at divide by one. Where instructions are counted, one is one of the TSC's.
const AHEAD: u32 = 100_000;

/// What the handler read last.
static FIRED: AtomicU64 = AtomicU64::new(0);

global_asm!(
    r#"
    .balign 16
bench_timer:
    push rax
    push rdx
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [rip + {fired}], rax
    mov eax, 0xfee000b0
    mov dword ptr [rax], 0
    pop rdx
    pop rax
    iretq
    .balign 16
bench_x2_timer:
    push rax
    push rdx
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [rip + {fired}], rax
    push rcx
    mov ecx, 0x80b
    xor eax, eax
    xor edx, edx
    wrmsr
    pop rcx
    pop rdx
    pop rax
    iretq
"#,
    fired = sym FIRED,
);

unsafe extern "C" {
    static bench_timer: u8;
    static bench_x2_timer: u8;
}

impl Mode {
    fn write(self, register: u32, value: u32) {
        match self {
            Self::XApic => apic::write(register, value),
            Self::X2Apic => wrmsr(apic::x2(register), value.into()),
        }
    }
}

/// From before the timer is armed to the handler's first reading of the TSC, less the time that it was set to.
pub fn run(bench: &Bench<'_>, mode: Mode) {
    let [spinning, halted] = match mode {
        Mode::XApic => ["timer-late-spinning-xapic", "timer-late-halted-xapic"],
        Mode::X2Apic => ["timer-late-spinning", "timer-late-halted"],
    };
    let handler = match mode {
        Mode::XApic => &raw const bench_timer,
        Mode::X2Apic => &raw const bench_x2_timer,
    };
    interrupts::set_handler(VECTOR, handler as u64);
    mode.write(reg::TIMER_DIVIDE, 0xb);
    mode.write(reg::LVT_TIMER, VECTOR.into());
    for name in [spinning, halted] {
        let mut round = || {
            FIRED.store(0, Ordering::Relaxed);
            let start = ticks();
            mode.write(reg::TIMER_INITIAL, AHEAD);
            if name == halted {
                cpu::sti_hlt();
            } else {
                cpu::sti();
                while FIRED.load(Ordering::Relaxed) == 0 {}
                cpu::cli();
            }
            let fired = FIRED.load(Ordering::Relaxed);
            check!(fired != 0, "{name}: the timer's interrupt came");
            fired.saturating_sub(start).saturating_sub(AHEAD.into())
        };
        if bench.wants(name, || {
            round();
        }) {
            let mut samples = [0u64; ROUNDS / 4];
            samples.fill_with(&mut round);
            bench.report(name, &mut samples);
        }
    }
}
