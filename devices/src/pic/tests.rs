use super::*;
use proptest::prelude::*;
use std::vec::Vec;

const NOW: Time = Time(0);
const MASTER: u16 = MASTER_OFFSET;
const SLAVE: u16 = SLAVE_OFFSET;

fn out(pic: &mut Pic, offset: u16, value: u8) {
    pic.port_write(NOW, offset, Width::Byte, value.into());
}

fn inb(pic: &mut Pic, offset: u16) -> u8 {
    pic.port_read(NOW, offset, Width::Byte) as u8
}

/// What Linux does in init_8259A(): masks, ICW1-4 for vectors 0x30 and 0x38, then everything unmasked for the tests.
fn linux() -> Pic {
    linux_icw4(0x01, 0x01)
}

fn linux_icw4(master: u8, slave: u8) -> Pic {
    let mut pic = Pic::new();
    out(&mut pic, MASTER + 1, 0xff);
    out(&mut pic, SLAVE + 1, 0xff);
    for (chip, base, cascade, icw4) in [(MASTER, 0x30, 0x04, master), (SLAVE, 0x38, 0x02, slave)] {
        out(&mut pic, chip, 0x11);
        out(&mut pic, chip + 1, base);
        out(&mut pic, chip + 1, cascade);
        out(&mut pic, chip + 1, icw4);
    }
    out(&mut pic, MASTER + 1, 0);
    out(&mut pic, SLAVE + 1, 0);
    pic
}

fn raise(pic: &mut Pic, irq: u8) {
    pic.set_level(irq, false);
    pic.set_level(irq, true);
}

fn isr(pic: &mut Pic, chip: u16) -> u8 {
    out(pic, chip, 0x0b);
    let isr = inb(pic, chip);
    out(pic, chip, 0x0a);
    isr
}

#[test]
fn linux_probe_sees_the_mask_register() {
    // probe_8259A(): only a present chip gives back what was written to its mask.
    let mut pic = Pic::new();
    out(&mut pic, SLAVE + 1, 0xff);
    out(&mut pic, MASTER + 1, 0xfb);
    assert_eq!(inb(&mut pic, MASTER + 1), 0xfb);
}

#[test]
fn vectors_come_from_icw2_and_the_slave_answers_for_its_inputs() {
    let mut pic = linux();
    raise(&mut pic, 4);
    assert!(pic.output());
    assert_eq!(pic.acknowledge(), 0x34);
    assert!(!pic.output());
    assert_eq!(isr(&mut pic, MASTER), 1 << 4);
    // The slave's input 4 comes before the master's in service.
    raise(&mut pic, 12);
    assert!(pic.output());
    assert_eq!(pic.acknowledge(), 0x3c);
    assert_eq!(isr(&mut pic, MASTER), 1 << 4 | 1 << 2);
    assert_eq!(isr(&mut pic, SLAVE), 1 << 4);
}

#[test]
fn priorities_are_nested_until_eoi() {
    let mut pic = linux();
    raise(&mut pic, 3);
    assert_eq!(pic.acknowledge(), 0x33);
    raise(&mut pic, 5);
    assert!(!pic.output(), "lower than the one in service");
    raise(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x31);
    // Linux ends with a specific EOI; a non-specific one ends the most important.
    out(&mut pic, MASTER, 0x20);
    assert_eq!(isr(&mut pic, MASTER), 1 << 3);
    out(&mut pic, MASTER, 0x63);
    assert_eq!(pic.acknowledge(), 0x35);
}

#[test]
fn a_request_that_goes_away_is_spurious_level_7() {
    let mut pic = linux();
    raise(&mut pic, 4);
    assert!(pic.output());
    pic.set_level(4, false);
    assert!(!pic.output());
    assert_eq!(pic.acknowledge(), 0x37);
    assert_eq!(isr(&mut pic, MASTER), 0, "spurious_8259A_irq() looks here");
}

#[test]
fn edges_are_taken_once_and_levels_again() {
    let mut pic = linux();
    raise(&mut pic, 5);
    assert_eq!(pic.acknowledge(), 0x35);
    out(&mut pic, MASTER, 0x20);
    assert!(!pic.output(), "still high, but no new edge");

    out(&mut pic, ELCR_OFFSET, 1 << 5);
    assert!(pic.output(), "level-triggered now");
    assert_eq!(pic.acknowledge(), 0x35);
    assert!(!pic.output());
    out(&mut pic, MASTER, 0x20);
    assert!(pic.output());
    pic.set_level(5, false);
    assert!(!pic.output());
}

#[test]
fn masked_edges_wait() {
    let mut pic = linux();
    out(&mut pic, SLAVE + 1, 0xff);
    raise(&mut pic, 8);
    assert!(!pic.output());
    assert_eq!(inb(&mut pic, SLAVE), 1);
    out(&mut pic, SLAVE + 1, 0xfe);
    assert_eq!(pic.acknowledge(), 0x38);
}

#[test]
fn elcr_refuses_the_inputs_that_must_be_edges() {
    let mut pic = Pic::new();
    pic.port_write(NOW, ELCR_OFFSET, Width::Word, 0xffff);
    assert_eq!(pic.port_read(NOW, ELCR_OFFSET, Width::Word), 0xdef8);
    // A wide access does not run into the next chip.
    assert_eq!(pic.port_read(NOW, ELCR_OFFSET, Width::Dword), 0xffff_def8);
}

#[test]
fn slave_requests_again_after_eoi() {
    let mut pic = linux();
    raise(&mut pic, 14);
    raise(&mut pic, 15);
    assert_eq!(pic.acknowledge(), 0x3e);
    // EOI to the master first: the slave still has 14 in service.
    out(&mut pic, MASTER, 0x62);
    assert!(!pic.output());
    out(&mut pic, SLAVE, 0x66);
    assert_eq!(pic.acknowledge(), 0x3f);
}

#[test]
fn special_fully_nested_lets_a_slave_interrupt_itself() {
    for (icw4, again) in [(0x01, false), (0x11, true)] {
        let mut pic = linux_icw4(icw4, 0x01);
        raise(&mut pic, 12);
        assert_eq!(pic.acknowledge(), 0x3c);
        raise(&mut pic, 9);
        assert_eq!(pic.output(), again);
        pic.set_level(9, false);
        raise(&mut pic, 13);
        assert!(!pic.output(), "the slave itself holds a lower one back");
        raise(&mut pic, 4);
        assert!(!pic.output(), "the master's lower levels wait in any case");
    }
}

#[test]
fn automatic_eoi_and_rotation() {
    let mut pic = linux_icw4(0x03, 0x03);
    out(&mut pic, MASTER, 0x80);
    raise(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x31);
    assert_eq!(isr(&mut pic, MASTER), 0);
    // 1 is now the lowest, 3 comes before it.
    raise(&mut pic, 1);
    raise(&mut pic, 3);
    assert_eq!(pic.acknowledge(), 0x33);
    assert_eq!(pic.acknowledge(), 0x31);
    out(&mut pic, MASTER, 0x00);
    raise(&mut pic, 7);
    assert_eq!(pic.acknowledge(), 0x37);
    raise(&mut pic, 3);
    raise(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x33, "no rotation any more: 1 is still the lowest");
}

#[test]
fn slave_with_automatic_eoi_gives_a_new_edge_for_each_request() {
    let mut pic = linux_icw4(0x03, 0x03);
    raise(&mut pic, 8);
    raise(&mut pic, 14);
    assert_eq!(pic.acknowledge(), 0x38);
    assert_eq!(pic.acknowledge(), 0x3e);
    assert!(!pic.output());
}

#[test]
fn rotation_commands() {
    let mut pic = linux();
    // Rotate on specific EOI: 4 becomes the lowest, so 5 the highest.
    raise(&mut pic, 4);
    pic.acknowledge();
    out(&mut pic, MASTER, 0xe4);
    raise(&mut pic, 0);
    raise(&mut pic, 5);
    assert_eq!(pic.acknowledge(), 0x35);
    // Rotate on non-specific EOI: 5 becomes the lowest.
    out(&mut pic, MASTER, 0xa0);
    raise(&mut pic, 5);
    raise(&mut pic, 6);
    assert_eq!(pic.acknowledge(), 0x36);
    out(&mut pic, MASTER, 0x20);
    // Set priority: 0 becomes the highest.
    out(&mut pic, MASTER, 0xc7);
    assert_eq!(pic.acknowledge(), 0x30);
}

#[test]
fn special_mask_mode_lets_lower_levels_through() {
    let mut pic = linux();
    raise(&mut pic, 3);
    pic.acknowledge();
    raise(&mut pic, 6);
    out(&mut pic, MASTER + 1, 1 << 3);
    assert!(!pic.output());
    out(&mut pic, MASTER, 0x68);
    assert!(pic.output());
    assert_eq!(pic.acknowledge(), 0x36);
    // A non-specific EOI leaves the masked level in service.
    out(&mut pic, MASTER, 0x20);
    assert_eq!(isr(&mut pic, MASTER), 1 << 3);
    out(&mut pic, MASTER, 0x48);
    out(&mut pic, MASTER, 0x20);
    assert_eq!(isr(&mut pic, MASTER), 0);
}

#[test]
fn poll_acknowledges() {
    let mut pic = linux();
    raise(&mut pic, 6);
    out(&mut pic, MASTER, 0x0c);
    assert_eq!(inb(&mut pic, MASTER + 1), 0x86, "at either address");
    assert_eq!(inb(&mut pic, MASTER + 1), 0, "the mask again");
    assert_eq!(isr(&mut pic, MASTER), 1 << 6);
    assert!(!pic.output());
    out(&mut pic, MASTER, 0x0c);
    assert_eq!(inb(&mut pic, MASTER) & 0x80, 0);
    // A poll of the slave takes its INT away from the master.
    raise(&mut pic, 10);
    assert!(pic.output());
    out(&mut pic, SLAVE, 0x0c);
    assert_eq!(inb(&mut pic, SLAVE), 0x82);
    assert!(!pic.output());
}

#[test]
fn icw1_forgets_edges_and_selects_the_request_register() {
    let mut pic = linux();
    raise(&mut pic, 4);
    pic.set_level(5, true);
    out(&mut pic, ELCR_OFFSET, 1 << 5);
    out(&mut pic, MASTER, 0x0b);
    out(&mut pic, MASTER, 0x11);
    assert!(!pic.output(), "not while it is being initialised");
    assert_eq!(inb(&mut pic, MASTER), 1 << 5, "IRR: the level, not the edge");
    for icw in [0x40, 0x04, 0x01] {
        out(&mut pic, MASTER + 1, icw);
    }
    assert_eq!(inb(&mut pic, MASTER + 1), 0);
    assert_eq!(pic.acknowledge(), 0x45);
}

#[test]
fn initialisation_without_icw3_and_icw4() {
    let mut pic = linux_icw4(0x03, 0x01);
    out(&mut pic, MASTER, 0x12);
    out(&mut pic, MASTER + 1, 0x57);
    out(&mut pic, MASTER + 1, 0xf7);
    assert_eq!(inb(&mut pic, MASTER + 1), 0xf7, "a mask already");
    raise(&mut pic, 3);
    assert_eq!(pic.acknowledge(), 0x53);
    assert_eq!(isr(&mut pic, MASTER), 1 << 3, "automatic EOI went with ICW4");
    // Single: input 2 is not a slave's.
    out(&mut pic, MASTER, 0x20);
    out(&mut pic, MASTER + 1, 0);
    raise(&mut pic, 8);
    assert_eq!(pic.acknowledge(), 0x52);
}

#[test]
fn inputs_that_are_not_there() {
    let mut pic = linux();
    pic.set_level(2, true);
    pic.set_level(16, true);
    pic.set_level(255, true);
    assert!(!pic.output());
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Read(u16, Width),
    Write(u16, Width, u32),
    Line(u8, bool),
    Acknowledge,
}

fn width() -> impl Strategy<Value = Width> {
    prop::sample::select(std::vec![Width::Byte, Width::Word, Width::Dword])
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0..6u16, width()).prop_map(|(o, w)| Op::Read(o, w)),
        (0..6u16, width(), any::<u32>()).prop_map(|(o, w, v)| Op::Write(o, w, v & w.mask() as u32)),
        (0..18u8, any::<bool>()).prop_map(|(i, l)| Op::Line(i, l)),
        Just(Op::Acknowledge),
    ]
}

fn apply(pic: &mut Pic, op: Op) -> u32 {
    match op {
        Op::Read(o, w) => return pic.port_read(NOW, o, w),
        Op::Write(o, w, v) => pic.port_write(NOW, o, w, v),
        Op::Line(i, l) => pic.set_level(i, l),
        Op::Acknowledge => return pic.acknowledge().into(),
    }
    0
}

proptest! {
    #[test]
    fn any_sequence_keeps_the_pins_true_and_survives_a_restore(ops in prop::collection::vec(op(), 1..200), cut in 0..200usize) {
        let mut pic = Pic::new();
        let mut copy: Option<Pic> = None;
        for (i, op) in ops.iter().enumerate() {
            let value = apply(&mut pic, *op);
            if let Some(copy) = &mut copy {
                prop_assert_eq!(apply(copy, *op), value);
            }
            if i == cut {
                let mut other = Pic::new();
                other.restore(&pic.save());
                copy = Some(other);
            }
            // The cached pin is what the chips say.
            prop_assert_eq!(pic.output(), pic.master.request().is_some());
            prop_assert_eq!(pic.master.irr() & CASCADE != 0 && pic.slave.request().is_none(), false);
        }
    }

    /// Every interrupt that devices hold up is delivered, in order of priority, whatever went on before.
    #[test]
    fn held_interrupts_all_arrive_after_initialisation(before in prop::collection::vec(op(), 0..50), irqs in any::<u16>()) {
        let mut pic = Pic::new();
        for op in before {
            apply(&mut pic, op);
        }
        for irq in 0..16 {
            pic.set_level(irq, false);
        }
        for (chip, base, cascade) in [(MASTER, 0x30, 0x04), (SLAVE, 0x38, 0x02)] {
            for (port, value) in [(chip, 0x11), (chip + 1, base), (chip + 1, cascade), (chip + 1, 0x01), (chip + 1, 0)] {
                out(&mut pic, port, value);
            }
        }
        let irqs = irqs & !4;
        for irq in (0..16).filter(|i| irqs & 1 << i != 0) {
            pic.set_level(irq, true);
        }
        let mut seen = Vec::new();
        while pic.output() {
            let vector = pic.acknowledge();
            prop_assert!(seen.len() < 16);
            seen.push(vector - 0x30);
            pic.set_level(vector - 0x30, false);
            if vector >= 0x38 {
                out(&mut pic, SLAVE, 0x20);
            }
            out(&mut pic, MASTER, 0x20);
        }
        let order = [0, 1, 8, 9, 10, 11, 12, 13, 14, 15, 3, 4, 5, 6, 7];
        let expected: Vec<u8> = order.into_iter().filter(|i| irqs & 1 << i != 0).collect();
        prop_assert_eq!(seen, expected);
    }
}
