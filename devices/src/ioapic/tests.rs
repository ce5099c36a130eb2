//! The IOAPIC's behaviour by the data sheets, what Linux does with it, and random use.

use super::*;
use proptest::prelude::*;
use std::vec;

/// An IOAPIC whose messages are written down; `accepts`: whether some local APIC takes them.
struct Rig {
    ioapic: IoApic,
    sent: Vec<InterruptMessage>,
    accepts: bool,
}

impl Rig {
    fn new() -> Self {
        Self { ioapic: IoApic::new(0), sent: Vec::new(), accepts: true }
    }

    fn line(&mut self, pin: usize, high: bool) {
        let (sent, accepts) = (&mut self.sent, self.accepts);
        self.ioapic.set_level(pin, high, &mut |m| {
            sent.push(m);
            accepts
        });
    }

    fn eoi(&mut self, vector: u8) {
        let (sent, accepts) = (&mut self.sent, self.accepts);
        self.ioapic.eoi(vector, &mut |m| {
            sent.push(m);
            accepts
        });
    }

    fn write(&mut self, offset: u64, value: u32) {
        let (sent, accepts) = (&mut self.sent, self.accepts);
        self.ioapic.mmio_write(offset, Width::Dword, value.into(), &mut |m| {
            sent.push(m);
            accepts
        });
    }

    fn set(&mut self, register: u8, value: u32) {
        self.write(0, register.into());
        self.write(0x10, value);
    }

    fn get(&mut self, register: u8) -> u32 {
        self.write(0, register.into());
        self.ioapic.mmio_read(0x10, Width::Dword) as u32
    }

    fn entry(&mut self, pin: u8, low: u32, destination: u8) {
        self.set(0x11 + 2 * pin, u32::from(destination) << 24);
        self.set(0x10 + 2 * pin, low);
    }

    fn low(&mut self, pin: u8) -> u32 {
        self.get(0x10 + 2 * pin)
    }

    /// The vectors sent since the last call.
    fn vectors(&mut self) -> Vec<u8> {
        self.sent.drain(..).map(|m| m.vector).collect()
    }
}

const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
const REMOTE_IRR: u32 = 1 << 14;
const WAITS: u32 = 1 << 12;

#[test]
fn registers_after_reset_and_what_is_writable() {
    let mut rig = Rig::new();
    assert_eq!((rig.get(0), rig.get(1), rig.get(2)), (0, 0x0017_0020, 0));
    rig.set(0, 0xffff_ffff);
    rig.set(1, 0);
    assert_eq!((rig.get(0), rig.get(1), rig.get(2)), (0x0f00_0000, 0x0017_0020, 0x0f00_0000));
    for pin in 0..24 {
        assert_eq!((rig.low(pin), rig.get(0x11 + 2 * pin)), (MASKED, 0));
        rig.entry(pin, 0xffff_ffff, 0xff);
        assert_eq!(rig.low(pin), 0x1_afff, "remote IRR and delivery status are read-only");
        rig.set(0x11 + 2 * pin, 0xffff_ffff);
        assert_eq!(rig.get(0x11 + 2 * pin), 0xff00_0000);
    }
    for register in [3, 0x0f, 0x40, 0xff] {
        rig.set(register, 0xffff_ffff);
        assert_eq!(rig.get(register), 0);
    }
    rig.write(0, 0x1234_5601);
    assert_eq!(rig.ioapic.mmio_read(0, Width::Dword), 1);
    assert_eq!(rig.ioapic.mmio_read(0x12, Width::Byte), 0x17);
    assert_eq!(rig.ioapic.mmio_read(0x40, Width::Dword), 0);
}

#[test]
fn edge_sends_once_per_rise() {
    let mut rig = Rig::new();
    rig.entry(4, 0x34, 1);
    rig.line(4, true);
    rig.line(4, true);
    assert_eq!(
        rig.sent,
        [InterruptMessage {
            destination: 1,
            destination_mode: DestinationMode::Physical,
            delivery: DeliveryMode::Fixed,
            vector: 0x34,
            trigger: Trigger::Edge,
        }]
    );
    rig.line(4, false);
    rig.line(4, true);
    assert_eq!(rig.vectors(), [0x34, 0x34]);
    assert_eq!(rig.low(4), 0x34);
}

#[test]
fn edges_at_a_masked_pin_are_gone() {
    let mut rig = Rig::new();
    rig.entry(4, MASKED | 0x34, 0);
    rig.line(4, true);
    rig.entry(4, 0x34, 0);
    assert_eq!(rig.vectors(), []);
    rig.line(4, false);
    rig.line(4, true);
    assert_eq!(rig.vectors(), [0x34]);
}

#[test]
fn level_sends_again_after_the_eoi_while_the_line_is_high() {
    let mut rig = Rig::new();
    rig.entry(9, LEVEL | 0x51, 0);
    rig.line(9, true);
    rig.line(9, true);
    assert_eq!(rig.sent.iter().map(|m| m.trigger).collect::<Vec<_>>(), [Trigger::Level]);
    assert_eq!(rig.vectors(), [0x51]);
    assert_eq!(rig.low(9), LEVEL | REMOTE_IRR | 0x51);
    rig.eoi(0x52);
    assert_eq!(rig.vectors(), []);
    rig.eoi(0x51);
    assert_eq!(rig.vectors(), [0x51]);
    rig.line(9, false);
    assert_eq!(rig.low(9), LEVEL | REMOTE_IRR | 0x51);
    rig.write(0x40, 0x51);
    assert_eq!((rig.vectors(), rig.low(9)), (vec![], LEVEL | 0x51));
}

#[test]
fn a_level_that_came_back_before_the_eoi_is_not_lost() {
    let mut rig = Rig::new();
    rig.entry(9, LEVEL | 0x51, 0);
    rig.line(9, true);
    rig.line(9, false);
    rig.line(9, true);
    assert_eq!(rig.vectors(), [0x51]);
    rig.eoi(0x51);
    assert_eq!(rig.vectors(), [0x51]);
}

#[test]
fn unmasking_delivers_a_level_that_is_still_there() {
    let mut rig = Rig::new();
    rig.entry(16, MASKED | LEVEL | 0x61, 0);
    rig.line(16, true);
    assert_eq!(rig.vectors(), []);
    rig.entry(16, LEVEL | 0x61, 0);
    assert_eq!(rig.vectors(), [0x61]);
    // Masked in service, as a threaded handler does: the EOI brings nothing until the mask goes.
    rig.entry(16, MASKED | LEVEL | 0x61, 0);
    rig.eoi(0x61);
    assert_eq!(rig.vectors(), []);
    rig.entry(16, LEVEL | 0x61, 0);
    assert_eq!(rig.vectors(), [0x61]);
}

#[test]
fn pins_that_share_a_vector_share_its_eoi() {
    let mut rig = Rig::new();
    for pin in [16, 17] {
        rig.entry(pin, LEVEL | 0x61, 0);
        rig.line(pin.into(), true);
    }
    rig.line(16, false);
    rig.vectors();
    rig.eoi(0x61);
    assert_eq!(rig.vectors(), [0x61]);
    assert_eq!((rig.low(16), rig.low(17)), (LEVEL | 0x61, LEVEL | REMOTE_IRR | 0x61));
}

#[test]
fn switching_to_edge_clears_a_stuck_remote_irr() {
    let mut rig = Rig::new();
    rig.entry(16, LEVEL | 0x61, 0);
    rig.line(16, true);
    rig.line(16, false);
    // Linux does this for an IOAPIC without an EOI register.
    rig.entry(16, MASKED | 0x61, 0);
    rig.entry(16, LEVEL | 0x61, 0);
    assert_eq!(rig.low(16), LEVEL | 0x61);
    rig.vectors();
    rig.line(16, true);
    assert_eq!(rig.vectors(), [0x61]);
}

#[test]
fn a_message_that_nobody_accepts_waits() {
    let mut rig = Rig::new();
    rig.accepts = false;
    rig.entry(16, LEVEL | 0x61, 7);
    rig.line(16, true);
    assert_eq!(rig.vectors(), [0x61]);
    assert_eq!(rig.low(16), LEVEL | WAITS | 0x61);
    rig.accepts = true;
    rig.set(0x11 + 32, 0);
    assert_eq!((rig.vectors(), rig.low(16)), (vec![0x61], LEVEL | REMOTE_IRR | 0x61));
}

#[test]
fn delivery_and_destination_modes() {
    let mut rig = Rig::new();
    for (bits, delivery) in [
        (0, DeliveryMode::Fixed),
        (1, DeliveryMode::LowestPriority),
        (2, DeliveryMode::Smi),
        (4, DeliveryMode::Nmi),
        (5, DeliveryMode::Init),
        (7, DeliveryMode::ExtInt),
    ] {
        rig.entry(0, LEVEL | bits << 8 | 1 << 11 | 0x40, 0x0f);
        rig.line(0, true);
        let message = rig.sent.pop().unwrap();
        assert_eq!((message.delivery, message.destination_mode), (delivery, DestinationMode::Logical));
        assert_eq!(message.destination, 0x0f);
        let level = delivery.is_vectored();
        assert_eq!(message.trigger, if level { Trigger::Level } else { Trigger::Edge }, "{delivery:?}");
        assert_eq!(rig.low(0) & REMOTE_IRR != 0, level);
        rig.line(0, false);
        rig.eoi(0x40);
    }
    rig.entry(0, 3 << 8 | 0x40, 0);
    rig.line(0, true);
    assert_eq!(rig.sent, [], "reserved");
    rig.line(0, false);
    rig.entry(0, 0x40, 0xff);
    rig.line(0, true);
    assert_eq!(rig.sent.pop().unwrap().destination, crate::interrupt::BROADCAST);
}

#[test]
fn polarity_is_kept_and_changes_nothing() {
    let mut rig = Rig::new();
    rig.entry(16, LEVEL | 1 << 13 | 0x61, 0);
    assert_eq!(rig.vectors(), []);
    rig.line(16, true);
    assert_eq!(rig.vectors(), [0x61]);
    assert_eq!(rig.low(16), LEVEL | REMOTE_IRR | 1 << 13 | 0x61);
}

#[test]
fn linux_clears_and_sets_up_the_ioapic() {
    let mut rig = Rig::new();
    // clear_IO_APIC_pin() for each pin, then mp_irqs: setup_IO_APIC_irqs() with the destination first.
    for pin in 0..24 {
        if rig.low(pin) & MASKED == 0 {
            rig.set(0x10 + 2 * pin, MASKED);
        }
        rig.entry(pin, MASKED, 0);
        assert_eq!(rig.low(pin), MASKED);
    }
    for pin in 1..24 {
        let trigger = if pin >= 16 || pin == 9 { LEVEL | 1 << 13 } else { 0 };
        rig.entry(pin, trigger | MASKED | (0x30 + u32::from(pin)), 0);
    }
    // irq_chip startup: unmask.
    let low = rig.low(2);
    rig.set(0x14, low & !MASKED);
    rig.line(2, true);
    assert_eq!(rig.vectors(), [0x32]);
    rig.line(4, true);
    assert_eq!(rig.vectors(), [], "masked");
}

#[test]
fn state_survives_saving() {
    let mut rig = Rig::new();
    rig.set(0, 5 << 24);
    rig.entry(16, LEVEL | 0x61, 3);
    rig.entry(4, 0x34, 1);
    rig.line(16, true);
    rig.line(23, true);
    let saved = rig.ioapic.save();
    let mut other = Rig::new();
    other.ioapic.restore(&saved);
    assert_eq!(other.ioapic.save(), saved);
    other.eoi(0x61);
    assert_eq!(other.vectors(), [0x61]);
    let short = IoApicState { entries: vec![0; 3], ..saved };
    other.ioapic.restore(&short);
    assert_eq!((other.low(0), other.low(3)), (0, MASKED));
}

#[derive(Clone, Debug)]
enum Step {
    Line(usize, bool),
    Write(u64, Width, u64),
    Read(u64, Width),
    Eoi(u8),
    Accepts(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let width = || prop_oneof![4 => Just(Width::Dword), 1 => Just(Width::Byte), 1 => Just(Width::Qword)];
    let entry = (any::<u8>(), 0u64..512).prop_map(|(vector, bits)| u64::from(vector % 4) | bits << 8);
    prop_oneof![
        3 => (0usize..26, any::<bool>()).prop_map(|(pin, high)| Step::Line(pin, high)),
        3 => (0u64..0x50, width()).prop_map(|(register, width)| Step::Write(0, width, register)),
        3 => (width(), entry).prop_map(|(width, value)| Step::Write(0x10, width, value)),
        1 => (0u64..0x1000, width(), any::<u64>()).prop_map(|(offset, width, value)| Step::Write(offset, width, value)),
        2 => (0u64..0x1000, width()).prop_map(|(offset, width)| Step::Read(offset, width)),
        2 => any::<u8>().prop_map(|vector| Step::Eoi(vector % 4)),
        1 => any::<bool>().prop_map(Step::Accepts),
    ]
}

proptest! {
    #[test]
    fn random_use_keeps_levels_and_remote_irr_in_step(steps in proptest::collection::vec(step(), 1..200)) {
        let mut rig = Rig::new();
        for step in steps {
            match step {
                Step::Line(pin, high) => rig.line(pin, high),
                Step::Write(offset, width, value) => {
                    let accepts = rig.accepts;
                    rig.ioapic.mmio_write(offset, width, value & width.mask(), &mut |_| accepts);
                }
                Step::Read(offset, width) => {
                    prop_assert!(rig.ioapic.mmio_read(offset, width) <= width.mask());
                }
                Step::Eoi(vector) => rig.eoi(vector),
                Step::Accepts(accepts) => rig.accepts = accepts,
            }
            for pin in rig.ioapic.pins {
                let remote_irr = pin.entry & entry::REMOTE_IRR != 0;
                prop_assert!(!remote_irr || pin.is_level());
                // With somebody there to accept it, a pending level is never left behind - once it is looked at.
                prop_assert!(pin.level_waits() == (pin.value() & entry::DELIVERY_STATUS != 0));
            }
            if rig.accepts {
                for pin in 0..PINS {
                    let asserted = rig.ioapic.pins[pin].asserted;
                    rig.line(pin, asserted);
                    prop_assert!(!rig.ioapic.pins[pin].level_waits());
                }
            }
        }
    }
}
