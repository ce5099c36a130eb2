//! The pins LINT0 and LINT1, ExtINT and NMI.

use super::*;

#[test]
fn extint_passes_through_lint0_while_the_line_is_high() {
    let apic = LocalApic::new(0, true);
    assert!(apic.set_lint0(true));
    assert!(apic.attention());
    assert_eq!(apic.pending(), Some(Pending::ExtInt));
    assert_eq!(apic.pending(), Some(Pending::ExtInt), "asking takes nothing");
    apic.set_lint0(false);
    assert_eq!(apic.pending(), None);
    assert!(!apic.attention());
}

#[test]
fn extint_ignores_the_priority() {
    let apic = LocalApic::new(0, true);
    post(&apic, 0x50);
    apic.set_tpr(0xff);
    apic.set_lint0(true);
    assert_eq!(apic.pending(), Some(Pending::ExtInt));
}

#[test]
fn masking_lint0_holds_extint_back_and_unmasking_lets_it_through() {
    let apic = LocalApic::new(0, true);
    write(&apic, reg::LVT_LINT0, 0x1_0700);
    assert!(!apic.set_lint0(true));
    assert_eq!((apic.pending(), apic.attention()), (None, false));
    write(&apic, reg::LVT_LINT0, 0x700);
    assert!(apic.attention());
    assert_eq!(apic.pending(), Some(Pending::ExtInt));
    write(&apic, reg::SVR, 0xff);
    assert_eq!((apic.pending(), apic.attention()), (None, false), "software-disabled");
}

#[test]
fn without_an_apic_the_pins_are_intr_and_nmi() {
    let apic = LocalApic::new(0, true);
    apic.set_lint0(true);
    apic.set_base_msr(0xfee0_0100, 40).unwrap();
    assert_eq!(apic.pending(), Some(Pending::ExtInt));
    apic.set_lint0(false);
    assert_eq!(apic.pending(), None);
    assert!(apic.set_lint0(true));
    assert_eq!(apic.pending(), Some(Pending::ExtInt));
    assert!(apic.set_lint1(true));
    assert!(apic.take_nmi());
    apic.set_base_msr(0xfee0_0900, 40).unwrap();
    assert_eq!(apic.pending(), None, "LINT0 is masked again");
}

#[test]
fn lint1_is_an_nmi_by_its_rising_edge() {
    let apic = LocalApic::new(0, true);
    assert!(apic.set_lint1(true));
    assert!(!apic.set_lint1(true));
    assert!(apic.nmi_pending() && apic.take_nmi());
    assert!(!apic.take_nmi() && !apic.attention());
    apic.set_lint1(false);
    assert!(apic.set_lint1(true));
}

#[test]
fn lint0_as_fixed_edge_interrupt() {
    let apic = xapic(0);
    write(&apic, reg::LVT_LINT0, 0x31);
    assert!(apic.set_lint0(true));
    take(&apic, 0x31);
    assert_eq!(write(&apic, reg::EOI, 0), Effect::None);
    assert_eq!(apic.pending(), None);
    write(&apic, reg::LVT_LINT0, 0x32);
    assert_eq!(apic.pending(), None, "no edge");
}

#[test]
fn lint0_as_fixed_level_interrupt_repeats_until_the_line_falls() {
    let apic = xapic(0);
    write(&apic, reg::LVT_LINT0, 0x8031);
    apic.set_lint0(true);
    assert_eq!(read(&apic, reg::LVT_LINT0), 0xc031, "remote IRR");
    take(&apic, 0x31);
    write(&apic, reg::EOI, 0);
    take(&apic, 0x31);
    apic.set_lint0(false);
    write(&apic, reg::EOI, 0);
    assert_eq!((apic.pending(), read(&apic, reg::LVT_LINT0)), (None, 0x8031));
    write(&apic, reg::LVT_LINT0, 0x1_8031);
    apic.set_lint0(true);
    assert_eq!(apic.pending(), None);
    write(&apic, reg::LVT_LINT0, 0x8031);
    take(&apic, 0x31);
}

#[test]
fn extint_message_waits_for_any_processor_to_acknowledge() {
    let apic = xapic(1);
    assert_eq!(apic.post_extint(), Posted::New);
    assert_eq!(apic.post_extint(), Posted::Merged);
    assert_eq!(apic.pending(), Some(Pending::ExtInt));
    apic.extint_acknowledged();
    assert_eq!((apic.pending(), apic.attention()), (None, false));
    write(&apic, reg::SVR, 0xff);
    assert_eq!(apic.post_extint(), Posted::Refused);
}
