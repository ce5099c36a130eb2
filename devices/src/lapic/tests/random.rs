//! Random use: no panic, and the invariants hold after each step.

use super::*;
use proptest::prelude::*;
use std::vec;
use x86defs::Rate;

#[derive(Clone, Debug)]
enum Step {
    Mmio { offset: u64, width: Width, value: u64, write: bool },
    Msr { index: u32, value: u64, write: bool },
    Base(u64),
    TscDeadline(u64),
    Post(u8, bool),
    Receive(u32, u8),
    Lint(bool, bool),
    Accept,
    Tpr(u8),
    Wait(u64),
    Startup,
    Init,
    SaveRestore,
}

fn register() -> impl Strategy<Value = u32> {
    prop_oneof![8 => (0u32..0x40).prop_map(|n| n << 4), 1 => 0u32..0x1000]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        any::<u8>().prop_map(u64::from),
        (any::<u8>(), 0u64..8).prop_map(|(v, mode)| u64::from(v) | mode << 16),
        (any::<u8>(), 0u64..16).prop_map(|(v, bits)| u64::from(v) | bits << 8),
        (any::<u8>(), 0u64..16, 0u64..4).prop_map(|(v, bits, to)| u64::from(v) | bits << 8 | to << 18),
        any::<u32>().prop_map(u64::from),
        any::<u64>(),
    ]
}

fn width() -> impl Strategy<Value = Width> {
    prop_oneof![6 => Just(Width::Dword), 1 => Just(Width::Byte), 1 => Just(Width::Word), 1 => Just(Width::Qword)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (register(), width(), value(), any::<bool>())
            .prop_map(|(offset, width, value, write)| Step::Mmio { offset: offset.into(), width, value, write }),
        6 => (register(), value(), any::<bool>())
            .prop_map(|(offset, value, write)| Step::Msr { index: 0x800 + (offset >> 4), value, write }),
        1 => prop_oneof![Just(0xfee0_0800), Just(0xfee0_0c00), Just(0xfee0_0000), any::<u64>()].prop_map(Step::Base),
        1 => value().prop_map(Step::TscDeadline),
        6 => (any::<u8>(), any::<bool>()).prop_map(|(vector, level)| Step::Post(vector, level)),
        1 => (0u32..8, any::<u8>()).prop_map(|(mode, vector)| Step::Receive(mode, vector)),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(pin, high)| Step::Lint(pin, high)),
        6 => Just(Step::Accept),
        1 => any::<u8>().prop_map(Step::Tpr),
        3 => prop_oneof![0u64..100_000, any::<u64>()].prop_map(Step::Wait),
        1 => Just(Step::Startup),
        1 => Just(Step::Init),
        1 => Just(Step::SaveRestore),
    ]
}

/// The highest vector of ISR or IRR, by looking at all of it.
pub fn highest(words: [u32; 8]) -> Option<u8> {
    (0..=255u8).rev().find(|&v| words[usize::from(v >> 5)] >> (v & 31) & 1 != 0)
}

/// The registers say what the manual says they say, computed the slow way.
fn check(apic: &LocalApic) {
    let state = apic.save();
    let in_service = highest(state.isr).unwrap_or(0);
    let ppr = if state.tpr >> 4 >= in_service >> 4 { state.tpr } else { in_service & 0xf0 };
    assert_eq!(apic.ppr(), ppr);
    let enabled = state.svr & 1 << 8 != 0;
    let expected = highest(state.irr).filter(|v| enabled && v >> 4 > ppr >> 4);
    if expected.is_some() {
        assert!(apic.attention());
    }
    assert_eq!(apic.highest_pending(), expected);
    assert_eq!(state.irr[0] & 0xffff | state.isr[0] & 0xffff, 0, "a vector below 16");
    assert!(enabled || state.lvt.iter().all(|entry| entry & 1 << 16 != 0));
    assert!(!(apic.mode() == ApicMode::Disabled && enabled));
}

fn run(apic: &LocalApic, steps: &[Step]) {
    let rate = Rate::new(2_445_406_000, 1_000_000_000);
    let mut now = Time(0);
    for step in steps {
        match *step {
            Step::Mmio { offset, width, write: false, .. } => {
                assert!(apic.mmio_read(now, offset, width) <= width.mask());
            }
            Step::Mmio { offset, width, value, write: true } => {
                apic.mmio_write(now, offset, width, value & width.mask());
            }
            Step::Msr { index, write: false, .. } => {
                let _ = apic.msr_read(now, index);
            }
            Step::Msr { index, value, write: true } => {
                let _ = apic.msr_write(now, index, value);
            }
            Step::Base(value) => {
                let _ = apic.set_base_msr(value, 40);
            }
            Step::TscDeadline(value) => {
                apic.set_tsc_deadline(now, now.0.wrapping_mul(2), rate, value);
            }
            Step::Post(vector, level) => {
                apic.post(vector, Trigger::from_bit(level));
            }
            Step::Receive(mode, vector) => {
                if let Some(delivery) = DeliveryMode::from_bits(mode) {
                    apic.receive(delivery, vector, Trigger::Edge);
                }
            }
            Step::Lint(false, high) => {
                apic.set_lint0(high);
            }
            Step::Lint(true, high) => {
                apic.set_lint1(high);
            }
            Step::Accept => match apic.pending() {
                Some(Pending::Lapic(vector)) => apic.accept(vector),
                Some(Pending::ExtInt) => apic.extint_acknowledged(),
                None => {}
            },
            Step::Tpr(value) => apic.set_tpr(value),
            Step::Wait(ns) => {
                now = Time(now.0.saturating_add(ns));
                apic.advance(now);
                assert!(apic.deadline().is_none_or(|next| next > now));
            }
            Step::Startup => {
                let _ = apic.take_startup();
                apic.take_nmi();
            }
            Step::Init => apic.init(),
            Step::SaveRestore => {
                let saved = apic.save();
                apic.restore(&saved).unwrap();
                assert_eq!(apic.save(), saved);
            }
        }
        check(apic);
    }
}

proptest! {
    #[test]
    fn random_use_keeps_the_invariants(steps in proptest::collection::vec(step(), 1..200), start in 0..3) {
        let apic = match start {
            0 => LocalApic::new(5, true),
            1 => xapic(300),
            _ => x2apic(17),
        };
        run(&apic, &steps);
    }

    /// Reading the count never depends on when the expiries were noticed.
    #[test]
    fn the_count_is_a_function_of_time(
        initial in 1u32.., tdcr in 0u32..16, periodic: bool,
        notice in proptest::collection::vec(0u64..10_000_000, 0..20), ask in 0u64..300_000_000,
    ) {
        let make = || {
            let apic = xapic(0);
            write(&apic, reg::LVT_TIMER, 0x40 | u32::from(periodic) << 17);
            write(&apic, reg::TDCR, tdcr);
            write_at(&apic, Time(0), reg::TMICT, initial);
            apic
        };
        let (noticed, unnoticed) = (make(), make());
        let mut now = 0;
        for step in notice {
            now += step;
            noticed.advance(Time(now));
        }
        let at = Time(now + ask);
        let count = |apic: &LocalApic| apic.mmio_read(at, reg::TMCCT.into(), Width::Dword);
        prop_assert_eq!(count(&noticed), count(&unnoticed));
        prop_assert!(count(&noticed) <= u64::from(initial));
    }
}
