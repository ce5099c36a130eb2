//! All controllers together: lines and messages in, interrupts at the processors out.

use super::*;
use crate::lapic::{Ipi, Startup};
use proptest::prelude::*;
use std::vec;

const NOW: Time = Time(0);

fn guest(vcpus: u32) -> InterruptRouter {
    InterruptRouter::new((0..vcpus).map(|id| Arc::new(LocalApic::new(id, id == 0))).collect())
}

/// All local APICs software-enabled, in x2APIC mode.
fn x2apic_guest(vcpus: u32) -> InterruptRouter {
    let router = guest(vcpus);
    for (vcpu, apic) in (0..).zip(router.apics()) {
        apic.set_base_msr(apic.base_msr() | 1 << 10, 40).unwrap();
        msr(&router, vcpu, 0x80f, 0x1ff);
    }
    router
}

fn msr(router: &InterruptRouter, vcpu: u32, index: u32, value: u64) {
    let effect = router.apics()[vcpu as usize].msr_write(NOW, index, value).unwrap();
    router.effect(vcpu, effect);
}

fn lapic(router: &InterruptRouter, vcpu: u32, offset: u64, value: u64) {
    let effect = router.apics()[vcpu as usize].mmio_write(NOW, offset, Width::Dword, value);
    router.effect(vcpu, effect);
}

fn entry(router: &InterruptRouter, pin: u64, low: u64, destination: u64) {
    for (register, value) in [(0x11, destination << 24), (0x10, low)] {
        router.ioapic_write(0, Width::Dword, register + 2 * pin);
        router.ioapic_write(0x10, Width::Dword, value);
    }
}

fn out(router: &InterruptRouter, port: u16, value: u8) {
    router.pic_write(NOW, port, Width::Byte, value.into());
}

/// The 8259 pair as Linux sets it up: vectors 0x30 and 0x38, everything masked.
fn set_up_pic(router: &InterruptRouter) {
    for (port, value) in [
        (0x21, 0xff),
        (0x20, 0x11),
        (0x21, 0x30),
        (0x21, 0x04),
        (0x21, 0x01),
        (0xa0, 0x11),
        (0xa1, 0x38),
        (0xa1, 0x02),
        (0xa1, 0x01),
        (0x21, 0xfb),
        (0xa1, 0xff),
    ] {
        out(router, port, value);
    }
}

/// Takes vCPU `vcpu`'s pending interrupt, as the run loop does, and gives its vector.
fn take(router: &InterruptRouter, vcpu: u32) -> Option<u8> {
    match router.pending(vcpu)? {
        Pending::Lapic(vector) => {
            router.apics()[vcpu as usize].accept(vector);
            Some(vector)
        }
        Pending::ExtInt => Some(router.acknowledge_extint()),
    }
}

fn eoi(router: &InterruptRouter, vcpu: u32) {
    match router.apics()[vcpu as usize].mmio_base() {
        Some(_) => lapic(router, vcpu, 0xb0, 0),
        None => msr(router, vcpu, 0x80b, 0),
    }
}

fn woken(router: &InterruptRouter) -> Vec<usize> {
    router.take_woken().iter().collect()
}

#[test]
fn virtual_wire_after_firmware() {
    let router = guest(2);
    set_up_pic(&router);
    out(&router, 0x21, 0xfa);
    router.set_level(0, true);
    assert_eq!(woken(&router), [0]);
    assert!(router.apics()[0].attention());
    assert_eq!((router.pending(0), router.pending(1)), (Some(Pending::ExtInt), None));
    assert_eq!(take(&router, 0), Some(0x30));
    assert_eq!(router.pending(0), None);
    // A more urgent request cannot come, a less urgent one waits for the 8259's EOI.
    out(&router, 0x21, 0xea);
    router.set_level(4, true);
    assert_eq!(router.pending(0), None);
    out(&router, 0x20, 0x20);
    assert_eq!(take(&router, 0), Some(0x34));
}

#[test]
fn a_request_that_goes_away_is_no_interrupt() {
    let router = guest(1);
    set_up_pic(&router);
    out(&router, 0x21, 0xef);
    router.set_level(4, true);
    router.set_level(4, false);
    assert_eq!(router.pending(0), None);
    assert!(!router.apics()[0].attention());
    // If the processor has already said yes it gets the spurious vector.
    assert_eq!(router.acknowledge_extint(), 0x37);
}

#[test]
fn masking_at_the_8259_withdraws_the_request() {
    let router = guest(1);
    set_up_pic(&router);
    out(&router, 0x21, 0xef);
    router.set_level(4, true);
    out(&router, 0x21, 0xff);
    assert_eq!(router.pending(0), None);
    out(&router, 0x21, 0xef);
    assert_eq!(take(&router, 0), Some(0x34));
}

/// Linux 6.1 check_timer(): the timer through the IOAPIC pin that the ACPI tables name works at once, with LINT0 masked. If it did not, the
/// kernel would try "through the 8259A": the same pin with the 8259's IRQ 0 unmasked; "virtual wire IRQ"; and ExtINT.
#[test]
fn linux_timer_checks() {
    let router = guest(1);
    set_up_pic(&router);
    lapic(&router, 0, 0xf0, 0x1ff);
    // apic_write(APIC_LVT0, APIC_LVT_MASKED | APIC_DM_EXTINT), legacy_pic->init(1)
    lapic(&router, 0, 0x350, 0x1_0700);
    let tick = || {
        router.set_level(0, false);
        router.set_level(0, true);
        let vector = take(&router, 0);
        if vector.is_some() {
            eoi(&router, 0);
        }
        vector
    };
    assert_eq!(tick(), None);
    entry(&router, 2, 0x31, 0);
    assert_eq!((tick(), tick()), (Some(0x31), Some(0x31)));
    entry(&router, 2, 0x1_0031, 0);
    assert_eq!(tick(), None);
    // Virtual wire IRQ: LINT0 fixed, the 8259's IRQ 0 unmasked. Without an acknowledgement its output stays high, so it is one edge.
    lapic(&router, 0, 0x350, 0x31);
    router.set_level(0, false);
    out(&router, 0x21, 0xfa);
    assert_eq!(tick(), Some(0x31));
    out(&router, 0x21, 0xfb);
    lapic(&router, 0, 0x350, 0x1_0031);
    assert_eq!(tick(), None);
    // ExtINT: the 8259 initialised afresh, LINT0 in ExtINT mode.
    set_up_pic(&router);
    out(&router, 0x21, 0xfa);
    lapic(&router, 0, 0x350, 0x700);
    for _ in 0..3 {
        router.set_level(0, false);
        router.set_level(0, true);
        assert_eq!(take(&router, 0), Some(0x30));
        out(&router, 0x20, 0x60);
    }
}

#[test]
fn extint_through_the_ioapic() {
    let router = x2apic_guest(2);
    set_up_pic(&router);
    out(&router, 0x21, 0xea);
    msr(&router, 0, 0x835, 0x1_0000);
    entry(&router, 0, 0x700, 1);
    router.set_level(4, true);
    assert_eq!(woken(&router), [1]);
    assert_eq!((router.pending(0), router.pending(1)), (None, Some(Pending::ExtInt)));
    router.set_level(0, true);
    assert_eq!(take(&router, 1), Some(0x30));
    assert_eq!(router.pending(1), None);
    out(&router, 0x20, 0x20);
    assert_eq!(take(&router, 1), Some(0x34));
    out(&router, 0x20, 0x20);
    assert_eq!(router.pending(1), None);
    // With automatic EOI the next request is there as soon as one is acknowledged: it comes as another edge.
    for line in [0, 4] {
        router.set_level(line, false);
    }
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 0x04), (0x21, 0x03), (0x21, 0xe6)] {
        out(&router, port, value);
    }
    for line in [0, 3, 4] {
        router.set_level(line, true);
    }
    assert_eq!((take(&router, 1), take(&router, 1), take(&router, 1)), (Some(0x30), Some(0x33), Some(0x34)));
    assert_eq!(router.pending(1), None);
}

#[test]
fn isa_lines_reach_the_pins_of_their_number_and_irq_0_pin_2() {
    let router = x2apic_guest(1);
    for pin in 0..24 {
        entry(&router, pin, 0x40 + pin, 0);
    }
    for line in 0..24u32 {
        router.set_level(line, true);
        let expected = match line {
            0 => Some(0x42),
            2 => None,
            line => Some(0x40 + line as u8),
        };
        assert_eq!(take(&router, 0), expected, "line {line}");
        router.set_level(line, false);
        if expected.is_some() {
            eoi(&router, 0);
        }
    }
    router.set_level(24, true);
    assert_eq!(router.pending(0), None);
}

#[test]
fn level_interrupt_through_ioapic_and_back() {
    let router = x2apic_guest(1);
    entry(&router, 9, 0x8051, 0);
    router.set_level(9, true);
    assert_eq!(take(&router, 0), Some(0x51));
    eoi(&router, 0);
    assert_eq!(take(&router, 0), Some(0x51), "the line is still high");
    router.set_level(9, false);
    eoi(&router, 0);
    assert_eq!(router.pending(0), None);
    // With the broadcast suppressed the handler tells the IOAPIC itself.
    msr(&router, 0, 0x80f, 0x11ff);
    router.set_level(9, true);
    assert_eq!(take(&router, 0), Some(0x51));
    eoi(&router, 0);
    assert_eq!(router.pending(0), None);
    router.ioapic_write(0x40, Width::Dword, 0x51);
    assert_eq!(take(&router, 0), Some(0x51));
}

#[test]
fn a_shared_line_is_high_while_anybody_holds_it() {
    let router = x2apic_guest(1);
    entry(&router, 17, 0x8051, 0);
    router.set_level(17, true);
    router.set_level(17, true);
    assert_eq!(take(&router, 0), Some(0x51));
    router.set_level(17, false);
    eoi(&router, 0);
    assert_eq!(take(&router, 0), Some(0x51));
    router.set_level(17, false);
    eoi(&router, 0);
    assert_eq!(router.pending(0), None);
}

#[test]
fn pirqs_share_isa_inputs_as_routed() {
    let router = guest(1);
    set_up_pic(&router);
    out(&router, 0x21, 0xdb & 0xfb);
    out(&router, 0x4d0, 0x20);
    router.set_level(18, true);
    assert_eq!(router.pending(0), None);
    router.route_pirq(2, Some(5));
    assert_eq!(take(&router, 0), Some(0x35));
    router.route_pirq(3, Some(5));
    router.set_level(19, true);
    router.set_level(18, false);
    out(&router, 0x20, 0x65);
    assert_eq!(take(&router, 0), Some(0x35), "the other one still asks");
    out(&router, 0x20, 0x65);
    router.route_pirq(3, None);
    assert_eq!(router.pending(0), None);
    router.route_pirq(99, Some(1));
}

#[test]
fn ipis_go_where_they_are_sent() {
    let router = x2apic_guest(4);
    let pending = || (0..4).map(|vcpu| take(&router, vcpu).inspect(|_| eoi(&router, vcpu))).collect::<Vec<_>>();
    msr(&router, 1, 0x830, 0x3_0000_0041);
    assert_eq!(woken(&router), [3]);
    assert_eq!(pending(), [None, None, None, Some(0x41)]);
    msr(&router, 1, 0x830, 0xc_0042);
    assert_eq!(woken(&router), [0, 2, 3]);
    assert_eq!(pending(), [Some(0x42), None, Some(0x42), Some(0x42)]);
    msr(&router, 1, 0x830, 0x8_0043);
    assert_eq!(pending(), [Some(0x43); 4]);
    msr(&router, 1, 0x830, 0xffff_ffff_0000_0044);
    assert_eq!(pending(), [Some(0x44); 4]);
    msr(&router, 0, 0x830, 0x6_0000_0845);
    assert_eq!(pending(), [None, Some(0x45), Some(0x45), None]);
    msr(&router, 0, 0x830, 0x9_0000_0045);
    assert_eq!(pending(), [None; 4]);
    woken(&router);
    msr(&router, 2, 0x830, 0x4_0046);
    assert_eq!(woken(&router), [], "no one else is concerned");
    assert_eq!(take(&router, 2), Some(0x46));
}

#[test]
fn other_delivery_modes() {
    let router = x2apic_guest(3);
    msr(&router, 0, 0x830, 0xc_0400);
    assert_eq!(woken(&router), [1, 2]);
    assert!(router.apics()[2].take_nmi() && !router.apics()[0].nmi_pending());
    msr(&router, 0, 0x830, 0x1_0000_4500);
    msr(&router, 0, 0x830, 0x1_0000_4612);
    assert_eq!(router.apics()[1].take_startup(), Some(Startup::Init));
    assert_eq!(router.apics()[1].take_startup(), Some(Startup::Sipi(0x12)));
    woken(&router);
    msr(&router, 0, 0x830, 0x1_0000_4200);
    assert_eq!(woken(&router), [], "there is no SMM");
    router.set_nmi(true);
    assert_eq!(woken(&router), [0], "LINT1 of the others is masked");
}

#[test]
fn lowest_priority_prefers_the_idle_and_takes_turns() {
    let router = x2apic_guest(4);
    let message = InterruptMessage::from_msi(0xfee0_f00c, 0x0161).unwrap();
    let mut order = vec![];
    for _ in 0..4 {
        let set = router.deliver(message);
        let vcpu = set.iter().next().unwrap();
        assert_eq!(set, CpuSet::single(vcpu));
        order.push(vcpu);
        assert_eq!(take(&router, vcpu as u32), Some(0x61));
        eoi(&router, vcpu as u32);
    }
    order.sort_unstable();
    assert_eq!(order, [0, 1, 2, 3], "equals take turns");
    for vcpu in [0, 1, 3] {
        msr(&router, vcpu, 0x808, 0x20);
    }
    for _ in 0..3 {
        assert_eq!(router.deliver(message), CpuSet::single(2));
        take(&router, 2);
        eoi(&router, 2);
    }
    msr(&router, 2, 0x80f, 0xff);
    assert!(!router.deliver(message).contains(2), "software-disabled");
    // Merged with a pending one: accepted, nothing new.
    for vcpu in [0, 1] {
        msr(&router, vcpu, 0x80f, 0xff);
    }
    router.deliver(message);
    assert_eq!(router.deliver(message), CpuSet::EMPTY);
}

#[test]
fn messages_and_merging() {
    let router = x2apic_guest(2);
    let message = InterruptMessage::from_msi(0xfee0_1000, 0x61).unwrap();
    assert_eq!(router.deliver(message), CpuSet::single(1));
    assert_eq!(router.deliver(message), CpuSet::EMPTY);
    assert_eq!(woken(&router), [1]);
    let nobody = InterruptMessage { destination: 77, ..message };
    assert_eq!(router.deliver(nobody), CpuSet::EMPTY);
}

#[test]
fn ids_need_not_be_indices() {
    let apics = [4, 1, 0x1234].map(|id| Arc::new(LocalApic::new(id, id == 4)));
    let router = InterruptRouter::new(apics.into());
    for (vcpu, apic) in (0..).zip(router.apics()) {
        apic.set_base_msr(apic.base_msr() | 1 << 10, 40).unwrap();
        msr(&router, vcpu, 0x80f, 0x1ff);
    }
    let message = InterruptMessage::from_msi(0xfee0_4000, 0x61).unwrap();
    for (destination, vcpu) in [(4, 0), (1, 1), (0x1234, 2)] {
        assert_eq!(router.deliver(InterruptMessage { destination, ..message }), CpuSet::single(vcpu));
    }
    for destination in [0, 2] {
        assert_eq!(router.deliver(InterruptMessage { destination, ..message }), CpuSet::EMPTY);
    }
}

#[test]
fn state_survives_saving() {
    let router = guest(1);
    set_up_pic(&router);
    out(&router, 0x21, 0xea);
    entry(&router, 9, 0x8051, 0);
    router.set_level(9, true);
    router.route_pirq(2, Some(5));
    router.set_level(4, true);
    let saved = router.save();
    let other = guest(1);
    other.apics()[0].restore(&router.apics()[0].save()).unwrap();
    other.restore(&saved);
    assert_eq!(other.save(), saved);
    assert_eq!(take(&other, 0), Some(0x34));
    assert_eq!(take(&other, 0), Some(0x51));
    eoi(&other, 0);
    assert_eq!(take(&other, 0), Some(0x51));
    other.set_level(9, false);
    eoi(&other, 0);
    assert_eq!(other.pending(0), None);
}

#[derive(Clone, Debug)]
enum Step {
    Line(u32),
    Lapic(u32, u64, u64),
    IoApic(u64, u64),
    Pic(u16, u8),
    PicRead(u16),
    Msi(u64, u32),
    Ipi(u32, u32, u8, bool, u32),
    Take(u32),
    Eoi(u32),
    Mode(u32, u64),
    Nmi(bool),
    Pirq(usize, Option<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let port = || prop_oneof![Just(0x20u16), Just(0x21), Just(0xa0), Just(0xa1), Just(0x4d0), Just(0x4d1)];
    prop_oneof![
        6 => (0u32..26).prop_map(Step::Line),
        3 => (0u32..4, 0u64..0x40, any::<u32>()).prop_map(|(vcpu, n, value)| Step::Lapic(vcpu, n << 4, value.into())),
        3 => (0u64..24, any::<u8>(), 0u64..512).prop_map(|(pin, vector, bits)| Step::IoApic(pin, u64::from(vector) | bits << 8)),
        2 => (port(), any::<u8>()).prop_map(|(port, value)| Step::Pic(port, value)),
        1 => port().prop_map(Step::PicRead),
        1 => (any::<u32>(), any::<u32>()).prop_map(|(address, data)| Step::Msi(0xfee0_0000 | u64::from(address) & 0xf_ffff, data)),
        2 => (0u32..4, 0u32..8, any::<u8>(), any::<bool>(), 0u32..20).prop_map(|(s, d, v, l, to)| Step::Ipi(s, d, v, l, to)),
        6 => (0u32..4).prop_map(Step::Take),
        4 => (0u32..4).prop_map(Step::Eoi),
        1 => (0u32..4, prop_oneof![Just(0xfee0_0000u64), Just(0xfee0_0800), Just(0xfee0_0c00)]).prop_map(|(v, b)| Step::Mode(v, b)),
        1 => any::<bool>().prop_map(Step::Nmi),
        1 => (0usize..9, proptest::option::of(any::<u8>())).prop_map(|(pirq, irq)| Step::Pirq(pirq, irq)),
    ]
}

proptest! {
    /// Whatever is done: no panic, who has something to take has its attention word set, and who newly has it was noted.
    #[test]
    fn random_use_leaves_nobody_unattended(steps in proptest::collection::vec(step(), 1..200), x2apic: bool) {
        let router = if x2apic { x2apic_guest(4) } else { guest(4) };
        set_up_pic(&router);
        let mut levels = [false; 26];
        for step in steps {
            let idle: Vec<_> = (0..4).filter(|&vcpu| router.pending(vcpu).is_none()).collect();
            let mut own = None;
            let _ = router.take_woken();
            match step {
                Step::Line(line) => {
                    let level = &mut levels[line as usize];
                    *level = !*level;
                    router.set_level(line, *level);
                }
                Step::Lapic(vcpu, offset, value) => {
                    own = Some(vcpu);
                    lapic(&router, vcpu, offset, value);
                }
                Step::IoApic(pin, value) => entry(&router, pin, value, 0xff),
                Step::Pic(port, value) => out(&router, port, value),
                Step::PicRead(port) => {
                    router.pic_read(NOW, port, Width::Byte);
                }
                Step::Msi(address, data) => {
                    if let Some(message) = InterruptMessage::from_msi(address, data) {
                        router.deliver(message);
                    }
                }
                Step::Ipi(sender, delivery, vector, logical, destination) => {
                    if let Some(delivery) = DeliveryMode::from_bits(delivery) {
                        let message = InterruptMessage {
                            destination,
                            destination_mode: DestinationMode::from_bit(logical),
                            delivery,
                            vector,
                            trigger: Trigger::Edge,
                        };
                        router.send_ipi(sender, Ipi { shorthand: Shorthand::from_bits(destination), message });
                    }
                }
                Step::Take(vcpu) => {
                    own = Some(vcpu);
                    take(&router, vcpu);
                }
                Step::Eoi(vcpu) => {
                    own = Some(vcpu);
                    if router.apics()[vcpu as usize].mmio_base().is_some() {
                        lapic(&router, vcpu, 0xb0, 0);
                    } else if let Ok(effect) = router.apics()[vcpu as usize].msr_write(NOW, 0x80b, 0) {
                        router.effect(vcpu, effect);
                    }
                }
                Step::Mode(vcpu, value) => {
                    own = Some(vcpu);
                    let _ = router.apics()[vcpu as usize].set_base_msr(value, 40);
                }
                Step::Nmi(high) => router.set_nmi(high),
                Step::Pirq(pirq, irq) => router.route_pirq(pirq, irq),
            }
            let woken = router.take_woken();
            for vcpu in 0..4 {
                let attention = router.apics()[vcpu as usize].attention();
                if router.pending(vcpu).is_some() {
                    prop_assert!(attention);
                    prop_assert!(own == Some(vcpu) || !idle.contains(&vcpu) || woken.contains(vcpu as usize), "vCPU {vcpu} sleeps");
                }
            }
        }
    }
}
