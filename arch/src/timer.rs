//! Each CPU's timer: the local APIC's, by TSC deadline where the CPU has it, else one-shot (Intel SDM vol. 3A rev. 085, 12.5.4).

use crate::apic::{self, Register, vectors};
use crate::cpu::{cr, msr, percpu, trap};
use crate::tsc;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Once;
use x86defs::{Attention, Rate, msr::IA32_TSC_DEADLINE};

/// One CPU's timer.
#[derive(Debug)]
pub struct TimerState {
    /// The deadline that is armed, as a TSC value; 0 if none is.
    armed: AtomicU64,
}

impl TimerState {
    #[must_use]
    pub const fn new() -> Self {
        Self { armed: AtomicU64::new(0) }
    }
}

impl Default for TimerState {
    fn default() -> Self {
        Self::new()
    }
}

/// How the timer is driven.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    TscDeadline,
    /// By the APIC's bus clock of so many Hz.
    OneShot {
        bus_hz: u64,
    },
}

struct Timer {
    kind: Kind,
    tsc_to_bus: Rate,
}

static TIMER: Once<Timer> = Once::new();

/// LVT mode: TSC deadline (one-shot is 0); LVT mask bit; divide configuration for 1.
const LVT_TSC_DEADLINE: u32 = 2 << 17;
const LVT_MASKED: u32 = 1 << 16;
const DIVIDE_BY_1: u32 = 0b1011;

/// Chooses the kind of timer and, for one-shot, measures the bus clock against the TSC. Once, on the boot CPU, with the local APIC on.
pub fn init(tsc_deadline: bool, tsc_hz: u64) -> Kind {
    let kind = if tsc_deadline { Kind::TscDeadline } else { Kind::OneShot { bus_hz: measure_bus(tsc_hz) } };
    let bus_hz = match kind {
        Kind::TscDeadline => tsc_hz,
        Kind::OneShot { bus_hz } => bus_hz,
    };
    TIMER.call_once(|| Timer { kind, tsc_to_bus: Rate::new(tsc_hz, bus_hz) });
    trap::set_handler(vectors::TIMER, interrupt);
    kind
}

/// Sets this CPU's timer up, disarmed. After [`init`].
pub fn init_cpu() {
    let Some(timer) = TIMER.get() else { return };
    match timer.kind {
        Kind::TscDeadline => {
            apic::write(Register::LvtTimer, u32::from(vectors::TIMER) | LVT_TSC_DEADLINE);
            // SAFETY: orders the write above before the MSR write, as xAPIC mode needs it (SDM vol. 3A, 12.5.4.1).
            unsafe { core::arch::asm!("mfence", options(nostack, preserves_flags)) };
        }
        Kind::OneShot { .. } => {
            apic::write(Register::TimerDivide, DIVIDE_BY_1);
            apic::write(Register::LvtTimer, u32::from(vectors::TIMER));
        }
    }
}

/// The bus clock in Hz: the middle one of three counts over 10 ms.
fn measure_bus(tsc_hz: u64) -> u64 {
    apic::write(Register::TimerDivide, DIVIDE_BY_1);
    apic::write(Register::LvtTimer, LVT_MASKED);
    let mut results = [0; 3];
    for result in &mut results {
        apic::write(Register::TimerInitial, u32::MAX);
        let count = || u64::from(apic::read(Register::TimerCurrent));
        let (tsc_0, count_0) = tsc::sample(tsc::now, count);
        while cr::tsc() - tsc_0 < tsc_hz / 100 {
            crate::cpu::relax();
        }
        let (tsc_1, count_1) = tsc::sample(tsc::now, count);
        // It counts down.
        let ticks = u128::from(count_0.saturating_sub(count_1));
        *result = (ticks * u128::from(tsc_hz) / u128::from(tsc_1 - tsc_0)) as u64;
    }
    apic::write(Register::TimerInitial, 0);
    results.sort_unstable();
    results[1].max(1)
}

/// Arms this CPU's timer for an absolute TSC value, or disarms it. A deadline in the past fires at once.
#[inline]
pub fn set(deadline: Option<u64>) {
    // Zero means "disarmed" to the hardware as well.
    let deadline = deadline.map_or(0, |d| d.max(1));
    let cpu = percpu::current();
    if cpu.timer.armed.load(Ordering::Relaxed) == deadline {
        return;
    }
    cpu.timer.armed.store(deadline, Ordering::Relaxed);
    program(deadline);
}

fn program(deadline: u64) {
    match TIMER.get() {
        None => {}
        Some(Timer { kind: Kind::TscDeadline, .. }) => {
            // SAFETY: the CPU has the MSR, since this kind was chosen by CPUID.
            unsafe { msr::write(IA32_TSC_DEADLINE, deadline) };
        }
        Some(Timer { tsc_to_bus, .. }) => {
            let count = if deadline == 0 { 0 } else { initial_count(deadline.saturating_sub(cr::tsc()), *tsc_to_bus) };
            apic::write(Register::TimerInitial, count);
        }
    }
}

/// The initial count for a deadline `ticks` TSC ticks away: rounded up, at least 1; one that does not fit is re-armed by the interrupt.
fn initial_count(ticks: u64, tsc_to_bus: Rate) -> u32 {
    u32::try_from(tsc_to_bus.apply(ticks).saturating_add(1)).unwrap_or(u32::MAX)
}

fn interrupt() {
    apic::end_of_interrupt();
    let cpu = percpu::current();
    let state = &cpu.timer;
    let deadline = state.armed.load(Ordering::Relaxed);
    if deadline == 0 {
        // Disarmed when the interrupt was on its way already.
    } else if cr::tsc() < deadline {
        program(deadline);
    } else {
        state.armed.store(0, Ordering::Relaxed);
        cpu.call_attention(Attention::TIMER);
    }
    crate::console::poll();
    trap::report_nmis();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_never_end_early_and_never_wrap() {
        let rate = Rate::new(2_000_000_000, 100_000_000);
        assert_eq!(initial_count(0, rate), 1);
        assert_eq!(initial_count(19, rate), 1);
        assert!((100_000_000..=100_000_001).contains(&initial_count(2_000_000_000, rate)));
        assert_eq!(initial_count(u64::MAX, Rate::new(1, 1)), u32::MAX);
    }
}
