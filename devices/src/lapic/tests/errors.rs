//! The error status register and the error interrupt (SDM vol. 3A, 11.5.3).

use super::*;

const ERROR_VECTOR: u8 = 0xfe;

fn esr(apic: &LocalApic) -> u32 {
    write(apic, reg::ESR, 0);
    read(apic, reg::ESR)
}

#[test]
fn esr_shows_errors_only_when_written() {
    let apic = xapic(0);
    assert_eq!(apic.post(0x0f, Trigger::Edge), Posted::Refused);
    assert_eq!(read(&apic, reg::ESR), 0);
    assert_eq!(esr(&apic), 1 << 6);
    assert_eq!(read(&apic, reg::ESR), 1 << 6, "it stays until written again");
    assert_eq!(esr(&apic), 0);
}

#[test]
fn illegal_vectors_and_registers_are_errors() {
    let apic = xapic(0);
    assert_eq!(write(&apic, reg::ICR_LOW, 0xc_000f), Effect::None);
    assert_eq!(esr(&apic), 1 << 5);
    assert_eq!(write(&apic, reg::ICR_LOW, 0x4_0003), Effect::None);
    assert_eq!(esr(&apic), 1 << 5);
    assert!(matches!(write(&apic, reg::ICR_LOW, 0xc_0403), Effect::Ipi(_)), "an NMI has no vector");
    assert_eq!(esr(&apic), 0);
    for offset in [0x00, 0x10, 0x40, 0x290, 0x2f0, 0x3a0, 0x3f0, 0x400, 0xff0] {
        assert_eq!(read(&apic, offset), 0);
        assert_eq!(esr(&apic), 1 << 7, "read of {offset:#x}");
        assert_eq!(write(&apic, offset, 1), Effect::None);
        assert_eq!(esr(&apic), 1 << 7, "write of {offset:#x}");
    }
    let apic = x2apic(0);
    assert_eq!(apic.msr_write(NOW, 0x83f, 5), Ok(Effect::None));
    apic.msr_write(NOW, 0x828, 0).unwrap();
    assert_eq!(apic.msr_read(NOW, 0x828), Ok(1 << 5));
}

#[test]
fn error_interrupt_comes_once_until_rearmed() {
    let apic = xapic(0);
    write(&apic, reg::LVT_ERROR, ERROR_VECTOR.into());
    read(&apic, 0x400);
    take(&apic, ERROR_VECTOR);
    write(&apic, reg::EOI, 0);
    apic.post(1, Trigger::Edge);
    assert_eq!(apic.pending(), None);
    assert_eq!(esr(&apic), 1 << 7 | 1 << 6);
    read(&apic, 0x400);
    take(&apic, ERROR_VECTOR);
}

#[test]
fn an_illegal_error_vector_does_not_recur() {
    let apic = xapic(0);
    write(&apic, reg::LVT_ERROR, 3);
    read(&apic, 0x400);
    assert_eq!(esr(&apic), 1 << 7 | 1 << 6);
    assert_eq!(apic.pending(), None);
}

#[test]
fn an_illegal_timer_vector_is_a_receive_error() {
    let apic = xapic(0);
    write(&apic, reg::LVT_TIMER, 0x0f);
    write(&apic, reg::TMICT, 10);
    apic.advance(Time(NOW.0 + 100));
    assert_eq!((esr(&apic), apic.pending()), (1 << 6, None));
}
