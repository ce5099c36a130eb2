//! The local APIC's behaviour by the manual, replays of what Linux does with it, and random use.

mod errors;
mod lint;
mod linux;
mod random;
mod threads;
mod timer;
mod virtualised;

use super::{spec::reg, *};
use crate::interrupt::{ApicMode, BROADCAST, InterruptMessage};
use x86defs::{Time, Width};

pub const NOW: Time = Time(1_000);
pub const X2APIC_ON: u64 = 0xfee0_0c00;

/// A local APIC in xAPIC mode, software-enabled, everything masked.
pub fn xapic(id: u32) -> LocalApic {
    let apic = LocalApic::new(id, false);
    write(&apic, reg::SVR, 0x1ff);
    apic
}

/// The same in x2APIC mode.
pub fn x2apic(id: u32) -> LocalApic {
    let apic = xapic(id);
    apic.set_base_msr(X2APIC_ON, 40).unwrap();
    apic
}

pub fn write(apic: &LocalApic, offset: u32, value: u32) -> Effect {
    write_at(apic, NOW, offset, value)
}

pub fn write_at(apic: &LocalApic, now: Time, offset: u32, value: u32) -> Effect {
    apic.mmio_write(now, offset.into(), Width::Dword, value.into())
}

pub fn read(apic: &LocalApic, offset: u32) -> u32 {
    apic.mmio_read(NOW, offset.into(), Width::Dword) as u32
}

/// Accepts what is pending, which must be `vector`.
pub fn take(apic: &LocalApic, vector: u8) {
    assert_eq!(apic.pending(), Some(Pending::Lapic(vector)));
    apic.accept(vector);
}

fn post(apic: &LocalApic, vector: u8) {
    assert_eq!(apic.post(vector, Trigger::Edge), Posted::New);
}

fn ipi(effect: Effect) -> Ipi {
    match effect {
        Effect::Ipi(ipi) => ipi,
        other => panic!("no IPI: {other:?}"),
    }
}

#[test]
fn state_after_power_up() {
    let apic = LocalApic::new(3, false);
    assert_eq!(apic.base_msr(), 0xfee0_0800);
    assert_eq!(apic.mmio_base(), Some(0xfee0_0000));
    for (offset, value) in [
        (reg::ID, 3 << 24),
        (reg::VERSION, 0x0105_0014),
        (reg::TPR, 0),
        (reg::LDR, 0),
        (reg::DFR, 0xffff_ffff),
        (reg::SVR, 0xff),
        (reg::ICR_LOW, 0),
        (reg::TMICT, 0),
        (reg::TDCR, 0),
    ] {
        assert_eq!(read(&apic, offset), value, "{offset:#x}");
    }
    for entry in reg::LVT {
        assert_eq!(read(&apic, entry), 0x1_0000);
    }
    assert!(!apic.attention());
}

#[test]
fn firmware_leaves_the_boot_processor_in_virtual_wire_mode() {
    let bsp = LocalApic::new(0, true);
    assert_eq!(bsp.base_msr(), 0xfee0_0900);
    assert!(bsp.lint0_accepts_extint());
    assert_eq!((read(&bsp, reg::SVR), read(&bsp, reg::LVT_LINT0), read(&bsp, reg::LVT_LINT1)), (0x1ff, 0x700, 0x400));
    bsp.reset();
    assert!(!bsp.lint0_accepts_extint());
}

#[test]
fn interrupts_come_by_priority_and_wait_for_the_eoi_of_higher_ones() {
    let apic = xapic(0);
    post(&apic, 0x31);
    post(&apic, 0x35);
    post(&apic, 0x82);
    assert!(apic.attention());
    take(&apic, 0x82);
    assert_eq!(read(&apic, reg::PPR), 0x80);
    assert_eq!(read(&apic, reg::ISR + 0x40), 1 << 2);
    assert_eq!(read(&apic, reg::IRR + 0x40), 0);
    assert_eq!(apic.pending(), None);
    assert!(!apic.attention(), "what the priority holds back needs no attention");
    post(&apic, 0x8f);
    assert_eq!(apic.pending(), None, "same class");
    post(&apic, 0x90);
    take(&apic, 0x90);
    assert_eq!(write(&apic, reg::EOI, 0), Effect::None);
    assert_eq!(apic.pending(), None);
    assert_eq!(write(&apic, reg::EOI, 0), Effect::None);
    take(&apic, 0x8f);
    write(&apic, reg::EOI, 0);
    take(&apic, 0x35);
    assert_eq!(apic.pending(), None, "0x31 is of the same class");
    write(&apic, reg::EOI, 0);
    take(&apic, 0x31);
    write(&apic, reg::EOI, 0);
    assert_eq!((apic.pending(), read(&apic, reg::PPR)), (None, 0));
    assert_eq!(write(&apic, reg::EOI, 0), Effect::None, "an EOI without an interrupt");
}

#[test]
fn a_second_request_merges_before_and_counts_after_acceptance() {
    let apic = xapic(0);
    post(&apic, 0x50);
    assert_eq!(apic.post(0x50, Trigger::Edge), Posted::Merged);
    take(&apic, 0x50);
    post(&apic, 0x50);
    assert_eq!(apic.pending(), None);
    write(&apic, reg::EOI, 0);
    take(&apic, 0x50);
    write(&apic, reg::EOI, 0);
    assert_eq!(apic.pending(), None);
}

#[test]
fn task_priority_holds_back_its_class_and_below() {
    let apic = xapic(0);
    post(&apic, 0x4f);
    write(&apic, reg::TPR, 0x40);
    assert_eq!(apic.pending(), None);
    assert_eq!(read(&apic, reg::PPR), 0x40);
    write(&apic, reg::TPR, 0x3f);
    assert!(apic.attention());
    take(&apic, 0x4f);
    // The sub-class shows only when the task priority is what counts.
    assert_eq!(read(&apic, reg::PPR), 0x40);
    write(&apic, reg::TPR, 0x47);
    assert_eq!(read(&apic, reg::PPR), 0x47);
    apic.set_cr8(9);
    assert_eq!((read(&apic, reg::TPR), apic.cr8(), read(&apic, reg::PPR)), (0x90, 9, 0x90));
}

#[test]
fn every_vector_can_be_delivered() {
    let apic = xapic(0);
    for vector in 16..=255 {
        post(&apic, vector);
    }
    for vector in (16..=255).rev() {
        take(&apic, vector);
        write(&apic, reg::EOI, 0);
    }
    assert!(!apic.attention());
}

#[test]
fn level_triggered_eoi_is_broadcast_unless_suppressed() {
    let apic = xapic(0);
    apic.post(0x60, Trigger::Level);
    assert_eq!(read(&apic, reg::TMR + 0x30), 1);
    take(&apic, 0x60);
    assert_eq!(write(&apic, reg::EOI, 0), Effect::Eoi { vector: 0x60 });
    apic.post(0x60, Trigger::Edge);
    assert_eq!(read(&apic, reg::TMR + 0x30), 0);
    take(&apic, 0x60);
    assert_eq!(write(&apic, reg::EOI, 0), Effect::None);
    write(&apic, reg::SVR, 0x11ff);
    apic.post(0x60, Trigger::Level);
    take(&apic, 0x60);
    assert_eq!(write(&apic, reg::EOI, 0), Effect::None);
}

#[test]
fn software_disable_masks_the_lvt_and_holds_what_is_pending() {
    let apic = xapic(0);
    write(&apic, reg::LVT_TIMER, 0x40);
    write(&apic, reg::LVT_LINT0, 0x700);
    post(&apic, 0x50);
    write(&apic, reg::SVR, 0xff);
    assert_eq!((read(&apic, reg::LVT_TIMER), read(&apic, reg::LVT_LINT0)), (0x1_0040, 0x1_0700));
    write(&apic, reg::LVT_TIMER, 0x41);
    assert_eq!(read(&apic, reg::LVT_TIMER), 0x1_0041, "the mask cannot be cleared");
    assert_eq!(apic.pending(), None);
    assert_eq!(apic.post(0x51, Trigger::Edge), Posted::Refused);
    assert_eq!(apic.post_nmi(), Posted::New, "NMIs still come");
    assert!(matches!(write(&apic, reg::ICR_LOW, 0xc_0050), Effect::Ipi(_)), "IPIs can still be sent");
    write(&apic, reg::SVR, 0x1ff);
    take(&apic, 0x50);
    assert_eq!(read(&apic, reg::LVT_TIMER), 0x1_0041);
}

#[test]
fn init_keeps_mode_and_id_and_a_sipi() {
    let apic = x2apic(0x23);
    post(&apic, 0x44);
    apic.post_nmi();
    apic.msr_write(NOW, 0x808, 0x20).unwrap();
    apic.post_init();
    assert_eq!(apic.take_startup(), Some(Startup::Init));
    apic.post_sipi(0x9a);
    apic.init();
    assert_eq!((apic.mode(), apic.base_msr()), (ApicMode::X2Apic, X2APIC_ON));
    assert_eq!(apic.msr_read(NOW, 0x802), Ok(0x23));
    assert_eq!(apic.msr_read(NOW, 0x80d), Ok(0x2_0008));
    assert_eq!(apic.msr_read(NOW, 0x808), Ok(0));
    assert_eq!(apic.msr_read(NOW, 0x80f), Ok(0xff));
    assert_eq!(apic.msr_read(NOW, 0x822), Ok(0));
    assert!(!apic.nmi_pending());
    assert_eq!(apic.take_startup(), Some(Startup::Sipi(0x9a)));
    assert_eq!(apic.take_startup(), None);
    assert!(!apic.attention());
    apic.reset();
    assert_eq!((apic.mode(), read(&apic, reg::ID)), (ApicMode::XApic, 0x23 << 24));
}

#[test]
fn init_voids_an_earlier_sipi_and_the_first_sipi_counts() {
    let apic = xapic(1);
    assert_eq!(apic.post_sipi(1), Posted::New);
    assert_eq!(apic.post_init(), Posted::New);
    assert_eq!(apic.post_init(), Posted::Merged);
    assert_eq!(apic.post_sipi(2), Posted::New);
    assert_eq!(apic.post_sipi(3), Posted::Merged);
    assert_eq!(apic.take_startup(), Some(Startup::Init));
    assert_eq!(apic.take_startup(), Some(Startup::Sipi(2)));
    assert_eq!(apic.take_startup(), None);
}

#[test]
fn base_msr_transitions() {
    const OFF: u64 = 0xfee0_0000;
    const X1: u64 = 0xfee0_0800;
    const X2: u64 = 0xfee0_0c00;
    const BAD: u64 = 0xfee0_0400;
    for (path, end) in [
        (&[X2][..], Ok(X2)),
        (&[OFF], Ok(OFF)),
        (&[OFF, X1], Ok(X1)),
        (&[OFF, X2], Err(Gp)),
        (&[BAD], Err(Gp)),
        (&[X2, X1], Err(Gp)),
        (&[X2, BAD], Err(Gp)),
        (&[X2, X2], Ok(X2)),
        (&[X2, OFF], Ok(OFF)),
        (&[X2, OFF, X1, X2], Ok(X2)),
    ] {
        let apic = LocalApic::new(0, false);
        let (last, first) = path.split_last().unwrap();
        for &step in first {
            apic.set_base_msr(step, 40).unwrap();
        }
        let before = apic.base_msr();
        let result = apic.set_base_msr(*last, 40);
        assert_eq!(result.map(|()| apic.base_msr()), end, "{path:x?}");
        if result.is_err() {
            assert_eq!(apic.base_msr(), before);
        }
    }
}

#[test]
fn base_msr_address_reserved_bits_and_bsp_flag() {
    let apic = LocalApic::new(0, true);
    for reserved in [1, 1 << 7, 1 << 9, 1 << 40, 1 << 63] {
        assert_eq!(apic.set_base_msr(0xfee0_0900 | reserved, 40), Err(Gp));
    }
    apic.set_base_msr(0xab_1234_5000 | 0x800, 40).unwrap();
    assert_eq!(apic.mmio_base(), Some(0xab_1234_5000));
    assert_eq!(apic.base_msr(), 0xab_1234_5900, "the BSP flag stays");
    apic.set_base_msr(0xfee0_0d00, 40).unwrap();
    assert_eq!(apic.mmio_base(), None);
    apic.set_base_msr(0xfee0_0000, 40).unwrap();
    assert_eq!(apic.mmio_base(), None);
}

#[test]
fn global_disable_loses_the_settings() {
    let apic = xapic(0);
    write(&apic, reg::TPR, 0x10);
    post(&apic, 0x50);
    apic.set_base_msr(0xfee0_0000, 40).unwrap();
    assert_eq!((apic.pending(), apic.post(0x51, Trigger::Edge)), (None, Posted::Refused));
    apic.set_base_msr(0xfee0_0800, 40).unwrap();
    assert_eq!((read(&apic, reg::SVR), read(&apic, reg::TPR)), (0xff, 0));
    write(&apic, reg::SVR, 0x1ff);
    assert_eq!(apic.pending(), None);
}

#[test]
fn x2apic_mode_keeps_what_was_set_up_and_derives_the_ids() {
    let apic = xapic(0x35);
    write(&apic, reg::LDR, 0x0800_0000);
    write(&apic, reg::LVT_TIMER, 0x2_00ec);
    write(&apic, reg::TPR, 0x20);
    post(&apic, 0x77);
    apic.set_base_msr(X2APIC_ON, 40).unwrap();
    assert_eq!(apic.msr_read(NOW, 0x802), Ok(0x35));
    assert_eq!(apic.msr_read(NOW, 0x80d), Ok(0x3_0020));
    assert_eq!(apic.msr_read(NOW, 0x832), Ok(0x2_00ec));
    assert_eq!(apic.msr_read(NOW, 0x808), Ok(0x20));
    assert_eq!(apic.msr_read(NOW, 0x823), Ok(1 << 23));
    take(&apic, 0x77);
    assert_eq!(apic.msr_write(NOW, 0x80b, 0), Ok(Effect::None));
    assert_eq!(apic.address().ldr, 0x3_0020);
    // The page is not there any more.
    assert_eq!(apic.mmio_read(NOW, 0x80, Width::Dword), 0);
    write(&apic, reg::TPR, 0xf0);
    assert_eq!(apic.tpr(), 0x20);
}

#[test]
fn x2apic_registers_exist_in_x2apic_mode_only() {
    let apic = xapic(0);
    assert_eq!((apic.msr_read(NOW, 0x802), apic.msr_write(NOW, 0x80b, 0)), (Err(Gp), Err(Gp)));
    let apic = x2apic(0);
    let readable = |index: u32| apic.msr_read(NOW, index).is_ok();
    let expected = |index: u32| matches!(index, 0x802 | 0x803 | 0x808 | 0x80a | 0x80d | 0x80f | 0x810..=0x828 | 0x830 | 0x832..=0x839 | 0x83e);
    for index in 0x7f0..0x910 {
        assert_eq!(readable(index), expected(index), "RDMSR {index:#x}");
    }
    let writable = |index: u32| apic.msr_write(NOW, index, 0).is_ok();
    let expected = |index: u32| matches!(index, 0x808 | 0x80b | 0x80f | 0x828 | 0x830 | 0x832..=0x838 | 0x83e | 0x83f);
    for index in 0x7f0..0x910 {
        assert_eq!(writable(index), expected(index), "WRMSR {index:#x}");
    }
}

#[test]
fn x2apic_reserved_bits_fault_and_change_nothing() {
    let apic = x2apic(0);
    for (index, good, bad) in [
        (0x808, 0xff, 0x100),
        (0x80b, 0, 1),
        (0x80f, 0x13ff, 0x400),
        (0x828, 0, 1),
        (0x830, 0xffff_ffff_000c_cdff, 1 << 13),
        (0x830, 0x1000, 1 << 20),
        (0x832, 0x7_10ff, 0x100),
        (0x833, 0x1_17ff, 0x2000),
        (0x834, 0x1_17ff, 0x8000),
        (0x835, 0x1_f7ff, 0x2_0000),
        (0x836, 0x1_f7ff, 0x800),
        (0x837, 0x1_10ff, 0x100),
        (0x838, 0xffff_ffff, 1 << 32),
        (0x83e, 0xb, 4),
        (0x83f, 0xff, 0x100),
    ] {
        assert!(apic.msr_write(NOW, index, good).is_ok(), "{index:#x}");
        let before = apic.save();
        assert_eq!(apic.msr_write(NOW, index, bad), Err(Gp), "{index:#x}");
        if index != 0x830 {
            assert_eq!(apic.msr_write(NOW, index, good | 1 << 63), Err(Gp), "{index:#x}");
        }
        assert_eq!(apic.save(), before);
    }
}

#[test]
fn accesses_that_the_manual_leaves_undefined_do_no_harm() {
    let apic = xapic(0);
    write(&apic, reg::TPR, 0x30);
    apic.mmio_write(NOW, 0x80, Width::Byte, 0x50);
    apic.mmio_write(NOW, 0x80, Width::Qword, 0x50);
    apic.mmio_write(NOW, 0x84, Width::Dword, 0x50);
    assert_eq!(read(&apic, reg::TPR), 0x30);
    assert_eq!(apic.mmio_read(NOW, 0x30, Width::Byte), 0x14);
    assert_eq!(apic.mmio_read(NOW, 0x32, Width::Word), 0x0105);
    assert_eq!(apic.mmio_read(NOW, 0x34, Width::Dword), 0);
    assert_eq!(apic.mmio_read(NOW, 0x30, Width::Qword), 0);
    assert_eq!(apic.mmio_read(NOW, 0x33, Width::Word), 0);
}

#[test]
fn read_only_registers_stay() {
    let apic = xapic(7);
    for offset in [reg::ID, reg::VERSION, reg::PPR, reg::ISR, reg::TMR, reg::IRR, reg::TMCCT, reg::APR, reg::RRD] {
        let before = read(&apic, offset);
        assert_eq!(write(&apic, offset, 0xffff_ffff), Effect::None);
        assert_eq!(read(&apic, offset), before, "{offset:#x}");
    }
    write(&apic, reg::ESR, 0);
    assert_eq!(read(&apic, reg::ESR), 0, "and none of it is an error");
    write(&apic, reg::LDR, 0xffff_ffff);
    write(&apic, reg::DFR, 0);
    assert_eq!((read(&apic, reg::LDR), read(&apic, reg::DFR)), (0xff00_0000, 0x0fff_ffff));
}

#[test]
fn icr_describes_the_ipi() {
    let apic = xapic(2);
    write(&apic, reg::ICR_HIGH, 0x0512_3456);
    assert_eq!(read(&apic, reg::ICR_HIGH), 0x0500_0000);
    let sent = ipi(write(&apic, reg::ICR_LOW, 0xffff_3041 & !0xc_0000));
    assert_eq!(sent.shorthand, Shorthand::None);
    assert_eq!(
        sent.message,
        InterruptMessage {
            destination: 5,
            destination_mode: DestinationMode::Physical,
            delivery: DeliveryMode::Fixed,
            vector: 0x41,
            trigger: Trigger::Edge,
        }
    );
    assert_eq!(read(&apic, reg::ICR_LOW), 0x41, "delivery status reads idle, reserved bits zero");

    write(&apic, reg::ICR_HIGH, 0xff00_0000);
    assert_eq!(ipi(write(&apic, reg::ICR_LOW, 0x400)).message.destination, BROADCAST);
    let logical = ipi(write(&apic, reg::ICR_LOW, 0x0931)).message;
    assert_eq!((logical.destination, logical.delivery), (0xff, DeliveryMode::LowestPriority));
    assert_eq!(logical.destination_mode, DestinationMode::Logical);
    assert_eq!(ipi(write(&apic, reg::ICR_LOW, 0x0c_0033)).shorthand, Shorthand::AllExcludingSelf);
    assert_eq!(ipi(write(&apic, reg::ICR_LOW, 0x08_0033)).shorthand, Shorthand::AllIncludingSelf);
    assert_eq!(ipi(write(&apic, reg::ICR_LOW, 0x0_c500)).message.delivery, DeliveryMode::Init);
    assert_eq!(write(&apic, reg::ICR_LOW, 0x0_8500), Effect::None, "INIT level de-assert");
    assert_eq!(ipi(write(&apic, reg::ICR_LOW, 0x0_0609)).message.vector, 9);
    for reserved in [0x300, 0x700] {
        assert_eq!(write(&apic, reg::ICR_LOW, reserved | 0x41), Effect::None);
    }
}

#[test]
fn x2apic_icr_has_a_wide_destination() {
    let apic = x2apic(2);
    let value = 0x0001_0003_0000_0841;
    let sent = apic.msr_write(NOW, 0x830, value).map(ipi).unwrap().message;
    assert_eq!((sent.destination, sent.destination_mode), (0x0001_0003, DestinationMode::Logical));
    assert_eq!(apic.msr_read(NOW, 0x830), Ok(value));
    // 0xff is an ordinary ID here.
    assert_eq!(apic.msr_write(NOW, 0x830, 0xff_0000_0041).map(ipi).unwrap().message.destination, 0xff);
}

#[test]
fn ipis_to_oneself_need_nobody_else() {
    let apic = x2apic(2);
    for value in [0x2_0000_0041, 0x4_0041, 0x7_0004_8041] {
        assert_eq!(apic.msr_write(NOW, 0x830, value), Ok(Effect::None));
        take(&apic, 0x41);
        apic.msr_write(NOW, 0x80b, 0).unwrap();
    }
    assert_eq!(apic.msr_write(NOW, 0x83f, 0x42), Ok(Effect::None));
    take(&apic, 0x42);

    let apic = xapic(0x12);
    write(&apic, reg::ICR_HIGH, 0x1200_0000);
    assert_eq!(write(&apic, reg::ICR_LOW, 0x43), Effect::None);
    take(&apic, 0x43);
}

#[test]
fn state_survives_saving() {
    let apic = x2apic(4);
    apic.msr_write(NOW, 0x832, 0x2_0040).unwrap();
    apic.msr_write(NOW, 0x838, 5000).unwrap();
    apic.msr_write(NOW, 0x808, 0x10).unwrap();
    apic.msr_write(NOW, 0x830, 0x9_0000_0000 | 0x4045).unwrap();
    apic.post(0x55, Trigger::Level);
    take(&apic, 0x55);
    post(&apic, 0x54);
    post(&apic, 0xa0);
    apic.post_nmi();
    apic.post_nmi();
    apic.post_init();
    apic.post_sipi(0x77);
    let saved = apic.save();

    let other = LocalApic::new(4, false);
    other.restore(&saved).unwrap();
    assert_eq!(other.save(), saved);
    assert_eq!(other.deadline(), apic.deadline());
    assert!(other.take_nmi() && other.take_nmi() && !other.take_nmi());
    assert_eq!(other.take_startup(), Some(Startup::Init));
    assert_eq!(other.take_startup(), Some(Startup::Sipi(0x77)));
    take(&other, 0xa0);
    assert_eq!(other.msr_write(NOW, 0x80b, 0), Ok(Effect::None));
    assert_eq!(other.pending(), None, "0x55 is still in service");
    assert_eq!(other.msr_write(NOW, 0x80b, 0), Ok(Effect::Eoi { vector: 0x55 }));
    take(&other, 0x54);

    let bad = LocalApicState { base_msr: 0xfee0_0400, ..saved.clone() };
    assert_eq!(other.restore(&bad), Err(InvalidState::BaseMsr(0xfee0_0400)));
    let short = LocalApicState { lvt: alloc::vec![0; 5], ..saved };
    assert_eq!(other.restore(&short), Err(InvalidState::LvtEntries(5)));
}
