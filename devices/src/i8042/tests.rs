use super::*;
use crate::line::testing::Recorder;
use proptest::prelude::*;
use std::{sync::Arc, vec::Vec};

const NOW: Time = Time(0);
const A: u8 = 0x04;

struct Bench {
    i8042: I8042,
    sink: Arc<Recorder>,
}

impl Bench {
    fn new() -> Self {
        let sink = Arc::new(Recorder::default());
        let i8042 = I8042::new(Line::new(sink.clone(), 1), Line::new(sink.clone(), 12));
        Self { i8042, sink }
    }

    /// Everything on, translation off.
    fn raw() -> Self {
        let mut b = Self::new();
        b.command(0x60);
        b.data(0x07);
        b
    }

    fn command(&mut self, value: u8) {
        self.i8042.port_write(NOW, COMMAND_OFFSET, Width::Byte, value.into());
    }

    fn data(&mut self, value: u8) {
        self.i8042.port_write(NOW, DATA_OFFSET, Width::Byte, value.into());
    }

    fn mouse(&mut self, value: u8) {
        self.command(0xd4);
        self.data(value);
    }

    fn status(&mut self) -> u8 {
        self.i8042.port_read(NOW, COMMAND_OFFSET, Width::Byte) as u8
    }

    fn read(&mut self) -> u8 {
        self.i8042.port_read(NOW, DATA_OFFSET, Width::Byte) as u8
    }

    /// Everything there is to read, with what the status says of the source.
    fn read_all(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.status() & 1 != 0 {
            assert!(bytes.len() < 100);
            bytes.push(self.read());
        }
        bytes
    }

    fn lines(&self) -> (bool, bool) {
        (self.i8042.keyboard_line.level(), self.i8042.mouse_line.level())
    }
}

/// Linux's i8042_controller_selftest(), _init(), i8042_check_aux() and the multiplexer's probe.
#[test]
fn linux_probes_the_controller() {
    let mut b = Bench::new();
    assert!(b.read_all().is_empty());
    b.command(0xaa);
    assert_eq!(b.read_all(), [0x55]);
    b.command(0x20);
    let ctr = b.read();
    assert_eq!(ctr, 0x65);
    assert_eq!(b.status() & 0x10, 0x10, "not locked");
    b.command(0x60);
    b.data(ctr & !1 | 0x10);
    // AUX_LOOP: the byte comes back as the mouse's.
    b.command(0xd3);
    b.data(0x5a);
    assert_eq!(b.status() & 0x21, 0x21);
    assert_eq!(b.read(), 0x5a);
    b.command(0xa7);
    b.command(0x20);
    assert_eq!(b.read() & 0x20, 0x20);
    b.command(0xa8);
    b.command(0x20);
    assert_eq!(b.read() & 0x20, 0);
    // i8042_set_mux_mode(): all three come back as they are, so there is no multiplexer.
    for byte in [0xf0, 0x56, 0xa4] {
        b.command(0xd3);
        b.data(byte);
        assert_eq!(b.read(), byte);
    }
    // The interrupt test: AUX_LOOP with the interrupt on.
    b.command(0x60);
    b.data(ctr & !1 & !0x20 | 0x12);
    b.command(0xd3);
    b.data(0xa5);
    assert_eq!(b.lines(), (false, true));
    b.read();
    assert_eq!(b.lines(), (false, false));
    b.command(0xab);
    b.command(0xa9);
    assert_eq!(b.read_all(), [0, 0]);
}

/// Linux's atkbd_probe() through translation: id, LEDs, repeat rate, enable.
#[test]
fn linux_probes_the_keyboard() {
    let mut b = Bench::new();
    b.data(0xf2);
    assert_eq!(b.read_all(), [0xfa, 0xab, 0x41], "0x83 is translated");
    b.data(0xed);
    assert_eq!(b.read_all(), [0xfa]);
    b.data(0x02);
    assert_eq!(b.read_all(), [0xfa]);
    assert_eq!(b.i8042.leds(), 2);
    b.data(0xf3);
    b.data(0x00);
    b.data(0xf4);
    assert_eq!(b.read_all(), [0xfa, 0xfa, 0xfa]);
    b.i8042.key(A, true);
    b.i8042.key(A, false);
    assert_eq!(b.read_all(), [0x1e, 0x9e]);
}

/// Linux's psmouse: id, then IntelliMouse detection.
#[test]
fn linux_probes_the_mouse() {
    let mut b = Bench::raw();
    b.mouse(0xff);
    assert_eq!(b.status() & 0x21, 0x21);
    assert_eq!(b.read_all(), [0xfa, 0xaa, 0x00]);
    b.mouse(0xf2);
    assert_eq!(b.read_all(), [0xfa, 0x00]);
    for (rates, id) in [([200, 100, 80], 3), ([200, 200, 80], 4)] {
        for rate in rates {
            b.mouse(0xf3);
            b.mouse(rate);
        }
        b.mouse(0xf2);
        assert_eq!(b.read_all(), [0xfa, 0xfa, 0xfa, 0xfa, 0xfa, 0xfa, 0xfa, id]);
    }
    b.mouse(0xf4);
    assert_eq!(b.read_all(), [0xfa]);
    b.i8042.mouse(MouseInput { dx: 5, dy: -3, dz: -1, buttons: 0b10001 });
    assert_eq!(b.lines(), (false, true));
    assert_eq!(b.read_all(), [0x29, 5, 0xfd, 0x2f]);
}

#[test]
fn each_byte_is_an_edge() {
    let mut b = Bench::new();
    b.i8042.key(A, true);
    b.i8042.key(A, false);
    assert_eq!(b.lines(), (true, false));
    b.sink.0.lock().unwrap().clear();
    b.read();
    assert_eq!(*b.sink.0.lock().unwrap(), [(1, false), (1, true)]);
    b.read();
    assert_eq!(b.lines(), (false, false));
    assert_eq!(b.read(), 0x9e, "an empty buffer still reads the last byte");
}

#[test]
fn a_disabled_keyboard_keeps_its_bytes() {
    let mut b = Bench::new();
    b.command(0xad);
    assert!(b.i8042.key(A, true));
    assert_eq!(b.status() & 1, 0);
    b.command(0xae);
    assert_eq!(b.read_all(), [0x1e]);
    // The controller's answers come first all the same.
    b.command(0xad);
    b.i8042.key(A, false);
    b.command(0x20);
    assert_eq!(b.read_all(), [0x75]);
    // A byte to the keyboard lets it talk.
    b.data(0xee);
    assert_eq!(b.read_all(), [0xee, 0x9e]);
}

#[test]
fn scan_code_sets() {
    for (set, pressed, released) in
        [(1, [0x1e].as_slice(), [0x9e].as_slice()), (2, &[0x1c], &[0xf0, 0x1c]), (3, &[0x1c], &[0xf0, 0x1c])]
    {
        let mut b = Bench::raw();
        b.data(0xf0);
        b.data(set);
        b.data(0xf0);
        b.data(0);
        assert_eq!(b.read_all(), [0xfa, 0xfa, 0xfa, 0xfa, set]);
        b.i8042.key(A, true);
        assert_eq!(b.read_all(), pressed);
        b.i8042.key(A, false);
        assert_eq!(b.read_all(), released);
    }
    let mut b = Bench::raw();
    b.data(0xf0);
    b.data(4);
    assert_eq!(b.read_all(), [0xfa, 0xfe]);
}

#[test]
fn set_3_keys_can_be_made_to_say_less() {
    let mut b = Bench::raw();
    for byte in [0xf0, 3, 0xfd, 0x1c, 0x32, 0xf4] {
        b.data(byte);
    }
    assert_eq!(b.read_all(), [0xfa; 6]);
    for usage in [A, A + 1, A + 2] {
        b.i8042.key(usage, true);
        b.i8042.key(usage, false);
    }
    assert_eq!(b.read_all(), [0x1c, 0x32, 0x21, 0xf0, 0x21]);
    b.data(0xf8);
    b.i8042.key(A, false);
    assert_eq!(b.read_all(), [0xfa, 0xf0, 0x1c]);
}

#[test]
fn keyboard_commands() {
    let mut b = Bench::raw();
    b.data(0xff);
    assert_eq!(b.read_all(), [0xfa, 0xaa]);
    b.data(0xfe);
    assert_eq!(b.read_all(), [0xaa], "the last byte again");
    b.data(0xf5);
    assert!(!b.i8042.key(A, true));
    assert_eq!(b.read_all(), [0xfa]);
    b.data(0xf6);
    b.i8042.key(A, true);
    assert_eq!(b.read_all(), [0xfa, 0x1c]);
    b.data(0x12);
    assert_eq!(b.read_all(), [0xfe], "no such command");
    // A command where a parameter was expected is a command.
    b.data(0xed);
    b.data(0xf2);
    assert_eq!(b.read_all(), [0xfa, 0xfa, 0xab, 0x83]);
    assert_eq!(b.i8042.leds(), 0);
}

#[test]
fn a_full_keyboard_says_so_once() {
    let mut b = Bench::raw();
    let heard = (0..30).filter(|_| b.i8042.key(A, true)).count();
    // One is in the controller already.
    assert_eq!(heard, 17);
    let bytes = b.read_all();
    assert_eq!(bytes.len(), 18);
    assert_eq!(bytes[17], 0x00);
    assert!(b.i8042.key(A, true));
}

#[test]
fn modifiers_change_print_screen_and_pause() {
    let mut b = Bench::new();
    b.i8042.key(0xe6, true);
    b.i8042.key(0x46, true);
    b.i8042.key(0x46, false);
    b.i8042.key(0xe6, false);
    assert_eq!(b.read_all(), [0xe0, 0x38, 0x54, 0xd4, 0xe0, 0xb8]);
    b.i8042.key(0x48, true);
    assert_eq!(b.read_all(), [0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]);
    assert!(!b.i8042.key(0xff, true));
}

#[test]
fn mouse_commands() {
    let mut b = Bench::raw();
    b.i8042.mouse(MouseInput { dx: 1, dy: 2, dz: 0, buttons: 0b010 });
    assert!(b.read_all().is_empty(), "not enabled");
    for byte in [0xe8, 3, 0xf3, 40, 0xe7, 0xf4] {
        b.mouse(byte);
    }
    b.read_all();
    b.mouse(0xf5);
    b.mouse(0xf0);
    b.mouse(0xe9);
    assert_eq!(b.read_all(), [0xfa, 0xfa, 0xfa, 0x51, 3, 40]);
    b.i8042.mouse(MouseInput { dx: 7, dy: -8, dz: 0, buttons: 0b101 });
    b.mouse(0xeb);
    assert_eq!(b.read_all(), [0xfa, 0x2d, 7, 0xf8], "no scaling when asked for");
    b.mouse(0xee);
    b.mouse(0xf4);
    b.mouse(0x00);
    b.mouse(0xec);
    assert_eq!(b.read_all(), [0xfa, 0xf4, 0x00, 0xfa]);
    b.mouse(0xe8);
    b.mouse(9);
    assert_eq!(b.read_all(), [0xfa, 0xfc]);
    b.mouse(0xf6);
    b.mouse(0xe9);
    assert_eq!(b.read_all(), [0xfa, 0xfa, 0x06, 2, 100]);
    b.mouse(0x11);
    assert_eq!(b.read_all(), [0xfe]);
}

#[test]
fn mouse_movement_adds_up_and_is_split() {
    let mut b = Bench::raw();
    b.mouse(0xf4);
    b.read_all();
    b.i8042.mouse(MouseInput { dx: 600, dy: -1, ..MouseInput::default() });
    assert_eq!(b.read_all(), [0x28, 255, 0xff, 0x08, 255, 0, 0x08, 90, 0]);
    // While nobody reads, what does not fit the buffer adds up.
    for _ in 0..100 {
        b.i8042.mouse(MouseInput { dx: -3, ..MouseInput::default() });
    }
    let bytes = b.read_all();
    assert!(bytes.len() < 30);
    let moved: i32 = bytes.chunks(3).map(|p| i32::from(p[1]) - if p[0] & 0x10 != 0 { 256 } else { 0 }).sum();
    assert_eq!(moved, -300);
    b.mouse(0xe7);
    b.read_all();
    for (dx, told) in [(1, 1u8), (2, 1), (3, 3), (4, 6), (5, 9), (6, 12)] {
        b.i8042.mouse(MouseInput { dx, ..MouseInput::default() });
        assert_eq!(b.read_all(), [0x08, told, 0]);
    }
}

#[test]
fn output_port_a20_and_reset() {
    let mut b = Bench::new();
    b.command(0xd0);
    assert_eq!(b.read(), 0xc3);
    b.command(0xd1);
    b.data(0xdd);
    assert!(!b.i8042.a20());
    b.command(0xdf);
    assert!(b.i8042.a20());
    b.command(0xdd);
    assert!(!b.i8042.a20());
    assert_eq!(b.i8042.take_event(), None);
    b.command(0xff);
    b.command(0xf1);
    assert_eq!(b.i8042.take_event(), None, "pulses nothing that resets");
    b.command(0xfe);
    assert_eq!(b.i8042.take_event(), Some(Reset::Init));
    assert_eq!(b.i8042.take_event(), None);
    b.command(0xd1);
    b.data(0x02);
    assert_eq!(b.i8042.take_event(), Some(Reset::Init));
}

#[test]
fn memory_and_keyboard_loop() {
    let mut b = Bench::new();
    b.command(0x7f);
    b.data(0xa5);
    b.command(0x3f);
    assert_eq!(b.read(), 0xa5);
    b.command(0x21);
    assert_eq!(b.read(), 0);
    b.command(0xd2);
    b.data(0x77);
    assert_eq!((b.status() & 0x29, b.lines()), (0x01, (true, false)));
    assert_eq!(b.read(), 0x77, "as it is");
    assert_eq!(b.i8042.port_read(NOW, DATA_OFFSET, Width::Dword), 0xffff_ff77);
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Read(u16, Width),
    Write(u16, Width, u32),
    Key(u8, bool),
    Mouse(MouseInput),
}

fn op() -> impl Strategy<Value = Op> {
    let port = || prop::sample::select(std::vec![DATA_OFFSET, COMMAND_OFFSET]);
    let width = || prop::sample::select(std::vec![Width::Byte, Width::Byte, Width::Word, Width::Dword]);
    prop_oneof![
        (port(), width()).prop_map(|(o, w)| Op::Read(o, w)),
        (port(), width(), any::<u32>()).prop_map(|(o, w, v)| Op::Write(o, w, v & w.mask() as u32)),
        Just(Op::Write(COMMAND_OFFSET, Width::Byte, 0xd4)),
        any::<(u8, bool)>().prop_map(|(k, p)| Op::Key(k, p)),
        any::<(i16, i16, i8, u8)>().prop_map(|(dx, dy, dz, buttons)| Op::Mouse(MouseInput { dx, dy, dz, buttons })),
    ]
}

fn apply(i8042: &mut I8042, op: Op) -> u32 {
    match op {
        Op::Read(o, w) => return i8042.port_read(NOW, o, w),
        Op::Write(o, w, v) => i8042.port_write(NOW, o, w, v),
        Op::Key(usage, pressed) => return i8042.key(usage, pressed).into(),
        Op::Mouse(input) => i8042.mouse(input),
    }
    0
}

proptest! {
    #[test]
    fn any_sequence_keeps_the_lines_true_and_survives_a_restore(ops in prop::collection::vec(op(), 1..200), cut in 0..200usize) {
        let mut b = Bench::new();
        let mut copy: Option<I8042> = None;
        for (i, &op) in ops.iter().enumerate() {
            let value = apply(&mut b.i8042, op);
            if let Some(copy) = &mut copy {
                prop_assert_eq!(apply(copy, op), value);
                prop_assert_eq!(copy.save(), b.i8042.save());
            }
            if i == cut {
                let mut other = I8042::new(Line::unconnected(), Line::unconnected());
                other.restore(&b.i8042.save());
                copy = Some(other);
            }
            let (keyboard, mouse) = b.lines();
            prop_assert!(!(keyboard && mouse));
            prop_assert!(b.i8042.output.is_some() || !(keyboard || mouse));
        }
        // Reading always comes to an end: all movement that was kept, in packets of four bytes.
        let rest = (0..10_000).take_while(|_| { let full = b.status() & 1 != 0; b.read(); full }).count();
        prop_assert!(rest < 4 * 32_768 / 127 + 100);
    }
}
