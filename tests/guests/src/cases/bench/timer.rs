//! How late the local APIC's timer is.

use super::{Bench, ROUNDS};
use crate::rt::{
    apic,
    apic::reg,
    cpu::{self, rdtsc},
    interrupts, on_interrupt, println, wrmsr,
};
use core::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    XApic,
    X2Apic,
}

const VECTOR: u8 = 0x62;
/// Ticks of the timer, at divide by one. Where instructions are counted, one is one of the TSC's.
const AHEAD: u32 = 100_000;

static FIRED: AtomicU64 = AtomicU64::new(0);

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
    on_interrupt(
        VECTOR,
        match mode {
            Mode::XApic => |_| {
                FIRED.store(rdtsc(), Ordering::Relaxed);
                apic::eoi();
            },
            Mode::X2Apic => |_| {
                FIRED.store(rdtsc(), Ordering::Relaxed);
                wrmsr(apic::x2(reg::EOI), 0);
            },
        },
    );
    mode.write(reg::TIMER_DIVIDE, 0xb);
    mode.write(reg::LVT_TIMER, VECTOR.into());
    for name in [spinning, halted] {
        let mut round = || {
            let before = interrupts::count(VECTOR);
            let start = rdtsc();
            mode.write(reg::TIMER_INITIAL, AHEAD);
            if name == halted {
                cpu::sti_hlt();
            } else {
                cpu::sti();
                while interrupts::count(VECTOR) == before {}
                cpu::cli();
            }
            FIRED.load(Ordering::Relaxed).wrapping_sub(start).saturating_sub(AHEAD.into())
        };
        if bench.wants(name, || {
            round();
        }) {
            let mut samples = [0u64; ROUNDS / 4];
            samples.fill_with(&mut round);
            bench.report(name, &mut samples);
        }
    }
    if bench.trace.is_none() && interrupts::count(VECTOR) == 0 {
        println!("(no timer interrupt came)");
    }
}
