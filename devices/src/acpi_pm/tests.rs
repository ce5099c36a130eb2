use super::*;
use crate::line::testing::Recorder;
use proptest::prelude::*;
use std::sync::Arc;
use x86defs::Duration;

struct Bench {
    pm: AcpiPm,
    now: Time,
}

impl Bench {
    fn new(width: PmTimerWidth) -> Self {
        let sink = Arc::new(Recorder::default());
        Self { pm: AcpiPm::new(Line::new(sink, 9), width), now: Time(0) }
    }

    fn out(&mut self, offset: u16, width: Width, value: u32) {
        self.pm.port_write(self.now, offset, width, value);
    }

    fn inp(&mut self, offset: u16, width: Width) -> u32 {
        self.pm.port_read(self.now, offset, width)
    }
}

#[test]
fn the_timer_counts_at_its_frequency_and_width() {
    for (width, mask) in [(PmTimerWidth::Bits24, 0xff_ffffu32), (PmTimerWidth::Bits32, u32::MAX)] {
        let mut b = Bench::new(width);
        for seconds in [0, 1, 5, 3600] {
            b.now = Time(seconds * 1_000_000_000);
            let expected = (seconds * TIMER_HZ) as u32 & mask;
            // The conversion may round down.
            assert!(expected.wrapping_sub(b.inp(PM_TIMER, Width::Dword)) & mask <= 1);
            // Byte accesses see the same.
            let low = b.inp(PM_TIMER, Width::Word);
            assert_eq!(b.inp(PM_TIMER + 2, Width::Word) << 16 | low, b.inp(PM_TIMER, Width::Dword));
        }
    }
}

#[test]
fn timer_overflow_raises_the_sci() {
    let mut b = Bench::new(PmTimerWidth::Bits24);
    assert_eq!(b.pm.deadline(), None);
    b.out(PM1_ENABLE, Width::Word, 1);
    // Bit 23 changes every 2.34 s.
    let at = b.pm.deadline().unwrap();
    assert!(at.0.abs_diff((1 << 23) * 1_000_000_000 / TIMER_HZ) <= 1);
    b.now = at;
    b.pm.advance(at);
    assert!(b.pm.sci.level());
    assert_eq!(b.pm.deadline(), None);
    assert_eq!(b.inp(PM_TIMER, Width::Dword), 1 << 23);
    assert_eq!(b.inp(PM1_STATUS, Width::Word), 1);
    b.out(PM1_STATUS, Width::Word, 1);
    assert!(!b.pm.sci.level());
    assert!(b.pm.deadline().unwrap() > at);
    // A guest that polls sees it too.
    b.out(PM1_ENABLE, Width::Word, 0);
    b.now += Duration::from_secs(3);
    assert_eq!(b.inp(PM1_STATUS, Width::Byte), 1);
    assert!(!b.pm.sci.level());
}

/// What Linux does at init: clears the status, looks at SCI_EN, enables the power button.
#[test]
fn linux_enables_the_power_button() {
    let mut b = Bench::new(PmTimerWidth::Bits32);
    assert_eq!(b.inp(PM1_CONTROL, Width::Word) & 1, 1, "in ACPI mode already");
    b.out(PM1_STATUS, Width::Word, 0x8731);
    for byte in 0..8 {
        b.out(GPE0_STATUS + byte, Width::Byte, 0xff);
        b.out(GPE0_ENABLE + byte, Width::Byte, 0);
    }
    let enable = b.inp(PM1_ENABLE, Width::Word);
    b.out(PM1_ENABLE, Width::Word, enable | 1 << 8 | 1 << 5);
    assert_eq!(b.inp(PM1_ENABLE, Width::Word), 0x120);
    b.pm.press_sleep_button();
    assert!(!b.pm.sci.level(), "not enabled");
    b.pm.press_power_button();
    assert!(b.pm.sci.level());
    assert_eq!(b.inp(PM1_STATUS, Width::Word), 0x300);
    b.out(PM1_STATUS, Width::Word, 0x100);
    assert!(!b.pm.sci.level());
    assert_eq!(b.inp(PM1_STATUS, Width::Word), 0x200);
    b.pm.wake();
    assert!(!b.pm.sci.level());
    assert_eq!(b.inp(PM1_STATUS, Width::Word), 0x8200);
    b.pm.rtc_alarm();
    b.out(PM1_ENABLE + 1, Width::Byte, 0x04);
    assert!(b.pm.sci.level());
    assert_eq!(b.inp(PM1_ENABLE, Width::Word), 0x420, "the other byte stayed");
}

/// acpi_hw_legacy_sleep(): SLP_TYP first, then again with SLP_EN.
#[test]
fn linux_powers_off() {
    let mut b = Bench::new(PmTimerWidth::Bits32);
    let control = b.inp(PM1_CONTROL, Width::Word) & !0x3c00;
    b.out(PM1_CONTROL, Width::Word, control | 7 << 10);
    assert_eq!(b.pm.take_event(), None);
    assert_eq!(b.inp(PM1_CONTROL, Width::Word), 0x1c01);
    b.out(PM1_CONTROL, Width::Word, control | 7 << 10 | 1 << 13);
    assert_eq!(b.pm.take_event(), Some(PowerEvent::SoftOff));
    assert_eq!(b.pm.take_event(), None);
    assert_eq!(b.inp(PM1_CONTROL, Width::Word), 0x1c01, "SLP_EN reads zero, SCI_EN stays");
    // By bytes as well: the high one has both fields.
    b.out(PM1_CONTROL + 1, Width::Byte, 0x34);
    assert_eq!(b.pm.take_event(), Some(PowerEvent::Sleep { slp_typ: 5 }));
}

#[test]
fn general_purpose_events() {
    let mut b = Bench::new(PmTimerWidth::Bits32);
    b.pm.raise_gpe(33);
    b.pm.raise_gpe(200);
    assert!(!b.pm.sci.level());
    b.out(GPE0_ENABLE + 4, Width::Byte, 0x02);
    assert!(b.pm.sci.level());
    assert_eq!(b.inp(GPE0_STATUS + 4, Width::Dword), 2);
    assert_eq!(b.inp(GPE0_STATUS, Width::Dword), 0);
    b.out(GPE0_STATUS + 4, Width::Dword, 2);
    assert!(!b.pm.sci.level());
    b.out(GPE0_ENABLE, Width::Dword, 0x8000_0001);
    assert_eq!(b.inp(GPE0_ENABLE, Width::Dword), 0x8000_0001);
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Read(u16, Width),
    Write(u16, Width, u32),
    Button,
    Gpe(u8),
    Advance,
}

fn op() -> impl Strategy<Value = (u64, Op)> {
    let width = || prop::sample::select(std::vec![Width::Byte, Width::Word, Width::Dword]);
    let op = prop_oneof![
        (0..PORTS, width()).prop_map(|(o, w)| Op::Read(o, w)),
        (0..0x30u16, width(), any::<u32>()).prop_map(|(o, w, v)| Op::Write(o, w, v & w.mask() as u32)),
        Just(Op::Button),
        any::<u8>().prop_map(Op::Gpe),
        Just(Op::Advance),
    ];
    (prop_oneof![Just(0), 0..10_000_000_000u64, 0..1u64 << 58], op)
}

fn apply(pm: &mut AcpiPm, now: Time, op: Op) -> u32 {
    match op {
        Op::Read(o, w) => return pm.port_read(now, o, w),
        Op::Write(o, w, v) => pm.port_write(now, o, w, v),
        Op::Button => pm.press_power_button(),
        Op::Gpe(gpe) => pm.raise_gpe(gpe),
        Op::Advance => pm.advance(now),
    }
    0
}

proptest! {
    #[test]
    fn any_sequence_has_deadlines_ahead_and_survives_a_restore(ops in prop::collection::vec(op(), 1..100), cut in 0..100usize, wide: bool) {
        let width = if wide { PmTimerWidth::Bits32 } else { PmTimerWidth::Bits24 };
        let mut b = Bench::new(width);
        let mut copy: Option<AcpiPm> = None;
        for (i, &(wait, op)) in ops.iter().enumerate() {
            b.now += Duration(wait);
            let value = apply(&mut b.pm, b.now, op);
            if let Some(copy) = &mut copy {
                prop_assert_eq!(apply(copy, b.now, op), value);
                prop_assert_eq!(copy.save(), b.pm.save());
            }
            if i == cut {
                let mut other = AcpiPm::new(Line::unconnected(), PmTimerWidth::Bits24);
                other.restore(&b.pm.save());
                copy = Some(other);
            }
            let mut ahead = AcpiPm::new(Line::unconnected(), width);
            ahead.restore(&b.pm.save());
            ahead.advance(b.now);
            prop_assert!(ahead.deadline().is_none_or(|at| at > b.now));
            let active = b.pm.status & b.pm.enable & Pm1::SCI_SOURCES;
            prop_assert!(b.pm.sci.level() == (!active.is_empty() || b.pm.gpe_status & b.pm.gpe_enable != 0) || matches!(op, Op::Read(..)));
        }
    }
}

/// 13.8.3.9: SWGPE_CTRL is the level of a general-purpose event that software raises.
#[test]
fn software_raises_a_general_purpose_event() {
    let mut b = Bench::new(PmTimerWidth::Bits32);
    b.pm.port_write(b.now, 0x28, Width::Byte, 4);
    assert!(!b.pm.sci.level());
    b.pm.port_write(b.now, 0x42, Width::Byte, 0xff);
    assert_eq!((b.pm.port_read(b.now, 0x42, Width::Byte), b.pm.port_read(b.now, 0x20, Width::Byte)), (3, 4));
    assert!(b.pm.sci.level());
    b.pm.port_write(b.now, 0x20, Width::Byte, 4);
    assert!(b.pm.sci.level(), "the level is still there");
    b.pm.port_write(b.now, 0x42, Width::Byte, 0);
    b.pm.port_write(b.now, 0x20, Width::Byte, 4);
    assert!(!b.pm.sci.level());
}
