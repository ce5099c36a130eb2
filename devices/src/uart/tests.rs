use super::*;
use crate::line::testing::Recorder;
use proptest::prelude::*;
use std::{sync::Arc, vec::Vec};

struct Bench {
    uart: Uart,
    now: Time,
}

impl Bench {
    fn new() -> Self {
        let sink = Arc::new(Recorder::default());
        Self { uart: Uart::new(Line::new(sink, 4), ModemLines::CONNECTED), now: Time(0) }
    }

    /// FIFOs on with trigger level `fcr`'s, all interrupts on, OUT2 open.
    fn open(fcr: u8) -> Self {
        let mut b = Self::new();
        b.out(reg::IIR, fcr);
        b.out(reg::MCR, 0x0b);
        b.out(reg::IER, 0x0d);
        b
    }

    fn out(&mut self, offset: u16, value: u8) {
        self.uart.port_write(self.now, offset, Width::Byte, value.into());
    }

    fn inb(&mut self, offset: u16) -> u8 {
        self.uart.port_read(self.now, offset, Width::Byte) as u8
    }

    fn line(&self) -> bool {
        self.uart.line.level()
    }

    fn receive(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            assert!(self.uart.receive(self.now, byte));
        }
    }
}

/// What Linux's 8250 autoconfig() asks, and what a 16550A answers.
#[test]
fn linux_autoconfig_finds_a_16550a() {
    let mut b = Bench::new();
    b.out(reg::IER, 0);
    assert_eq!(b.inb(reg::IER), 0);
    b.out(reg::IER, 0x0f);
    assert_eq!(b.inb(reg::IER) & 0x0f, 0x0f);
    b.out(reg::IER, 0xff);
    assert_eq!(b.inb(reg::IER), 0x0f, "no UUE bit: no XScale");
    b.out(reg::IER, 0);
    // Loopback: DTR, RTS, OUT1, OUT2 come back as modem status.
    b.out(reg::MCR, 0x1a);
    assert_eq!(b.inb(reg::MSR) & 0xf0, 0x90);
    b.out(reg::MCR, 0);
    // An EFR would be at 2 with LCR 0xbf.
    b.out(reg::LCR, 0xbf);
    b.out(reg::IIR, 0);
    b.out(reg::LCR, 0);
    b.out(reg::IIR, 0x01);
    assert_eq!(b.inb(reg::IIR) >> 6, 3);
    b.out(reg::LCR, 0x80);
    assert_ne!(b.inb(2), 0, "no 16650");
    b.out(reg::IIR, 0x21);
    assert_eq!(b.inb(reg::IIR) >> 5, 6, "no 16750");
    b.out(reg::LCR, 0);
    b.out(reg::SCR, 0xae);
    assert_eq!(b.inb(reg::SCR), 0xae);
}

/// serial8250_THRE_test(): enabling THRI again must show in the IIR again.
#[test]
fn linux_thre_test() {
    let mut b = Bench::new();
    b.out(reg::IER, 2);
    assert_eq!(b.inb(reg::IIR), 0x02);
    b.out(reg::IER, 0);
    b.out(reg::IER, 2);
    assert_eq!(b.inb(reg::IIR), 0x02);
    assert_eq!(b.inb(reg::IIR), 0x01, "cleared by the read");
}

#[test]
fn divisor_latch() {
    let mut b = Bench::new();
    b.out(reg::LCR, 0x83);
    b.out(0, 0x01);
    b.out(1, 0x02);
    assert_eq!((b.inb(0), b.inb(1)), (1, 2));
    b.out(reg::LCR, 0x03);
    assert_eq!(b.inb(1), 0, "the IER was not touched");
    assert_eq!(b.uart.peek_output(), None);
}

#[test]
fn output_waits_until_it_is_taken() {
    let mut b = Bench::open(0x01);
    b.out(reg::IER, 0x02);
    assert_eq!(b.inb(reg::IIR), 0xc2);
    assert_eq!(b.inb(reg::LSR) & 0x60, 0x60);
    for byte in 0..16 {
        b.out(reg::DATA, byte);
        assert_eq!(b.inb(reg::LSR) & 0x60, 0);
    }
    assert!(!b.line());
    b.out(reg::DATA, 99);
    let mut buffer = [0; 10];
    assert_eq!(b.uart.drain(&mut buffer), 10);
    assert_eq!(b.inb(reg::LSR) & 0x60, 0, "not empty yet");
    assert!(!b.line());
    let mut rest = [0; 10];
    assert_eq!(b.uart.drain(&mut rest), 6);
    assert_eq!(rest[5], 15, "what did not fit is lost, not what was there");
    assert_eq!(b.inb(reg::LSR) & 0x60, 0x60);
    assert!(b.line());
    assert_eq!(b.inb(reg::IIR), 0xc2);
    assert!(!b.line());
}

#[test]
fn without_fifos_there_is_one_holding_register() {
    let mut b = Bench::new();
    b.out(reg::DATA, b'a');
    b.out(reg::DATA, b'b');
    assert_eq!(b.uart.peek_output(), Some(b'b'));
    assert_eq!((b.uart.take_output(), b.uart.take_output()), (Some(b'b'), None));
    b.out(reg::MCR, 0x03);
    assert!(b.uart.wants_input());
    b.receive(b"x");
    assert!(!b.uart.wants_input());
    assert!(!b.uart.receive(b.now, b'y'));
    assert_eq!(b.inb(reg::DATA), b'x');
}

#[test]
fn input_waits_until_the_guest_has_opened_the_port() {
    for open in [&|b: &mut Bench| b.out(reg::IER, 1), &|b: &mut Bench| b.out(reg::MCR, 2), &|b: &mut Bench| {
        b.inb(reg::DATA);
    }] as [&dyn Fn(&mut Bench); 3]
    {
        let mut b = Bench::new();
        b.out(reg::IIR, 0x01);
        assert!(!b.uart.wants_input());
        open(&mut b);
        for n in 0..16 {
            assert!(b.uart.wants_input());
            b.receive(&[n]);
        }
        assert!(!b.uart.wants_input());
        b.inb(reg::DATA);
        assert!(b.uart.wants_input());
        b.out(reg::MCR, 0x12);
        assert!(!b.uart.wants_input(), "looped back");
    }
}

#[test]
fn trigger_levels() {
    for (fcr, level) in [(0x01, 1), (0x41, 4), (0x81, 8), (0xc1, 14)] {
        let mut b = Bench::open(fcr);
        for n in 1..=16 {
            b.receive(&[n]);
            assert_eq!(b.line(), n >= level, "{n} of {level}");
        }
        assert_eq!(b.inb(reg::IIR), 0xc4);
        while b.inb(reg::LSR) & 1 != 0 {
            b.inb(reg::DATA);
        }
        assert!(!b.line());
        assert_eq!(b.inb(reg::IIR), 0xc1);
    }
}

#[test]
fn character_timeout() {
    let mut b = Bench::open(0x81);
    b.out(reg::LCR, 0x83);
    b.out(0, 1);
    b.out(1, 0);
    b.out(reg::LCR, 0x03);
    b.receive(b"ab");
    // Four characters of ten bits at 115200 baud.
    let at = Time(4 * 10 * 1_000_000_000 / 115_200);
    assert!(b.uart.deadline().unwrap().0.abs_diff(at.0) <= 4);
    b.now = Time(at.0 / 2);
    b.receive(b"c");
    let later = b.uart.deadline().unwrap();
    assert!(later > at);
    b.uart.advance(at);
    assert!(!b.line(), "started anew with the third character");
    b.now = later;
    b.uart.advance(later);
    assert!(b.line());
    assert_eq!(b.uart.deadline(), None);
    assert_eq!(b.inb(reg::IIR), 0xcc);
    assert_eq!(b.inb(reg::DATA), b'a');
    assert!(!b.line(), "a read starts it anew");
    assert!(b.uart.deadline().unwrap() > b.now);
    b.inb(reg::DATA);
    b.inb(reg::DATA);
    assert_eq!(b.uart.deadline(), None);
}

#[test]
fn out2_is_the_gate() {
    let mut b = Bench::open(0x01);
    b.receive(b"a");
    assert!(b.line());
    b.out(reg::MCR, 0x03);
    assert!(!b.line());
    b.out(reg::MCR, 0x08);
    assert!(b.line());
    b.out(reg::MCR, 0x18);
    assert!(!b.line(), "inactive in loopback");
}

#[test]
fn priorities() {
    let mut b = Bench::open(0x01);
    b.out(reg::IER, 0x0f);
    b.uart.set_modem_lines(ModemLines::DISCONNECTED);
    assert!(b.uart.receive_break(b.now));
    // Line status, data, transmitter, modem.
    assert_eq!(b.inb(reg::IIR), 0xc6);
    assert_eq!(b.inb(reg::LSR), 0x60 | 0x80 | 0x18 | 0x01);
    assert_eq!(b.inb(reg::IIR), 0xc4);
    assert_eq!(b.inb(reg::DATA), 0);
    assert_eq!(b.inb(reg::IIR), 0xc2);
    assert_eq!(b.inb(reg::IIR), 0xc0);
    assert!(b.line());
    assert_eq!(b.inb(reg::MSR), 0x0b);
    assert!(!b.line());
    assert_eq!(b.inb(reg::IIR), 0xc1);
}

#[test]
fn errors_show_when_their_character_is_at_the_top() {
    let mut b = Bench::open(0x01);
    b.receive(b"a");
    assert!(b.uart.receive_break(b.now));
    assert_eq!(b.inb(reg::LSR), 0x60 | 0x80 | 0x01, "somewhere in the FIFO");
    assert_eq!(b.inb(reg::IIR), 0xc4);
    assert_eq!(b.inb(reg::DATA), b'a');
    assert_eq!(b.inb(reg::IIR), 0xc6);
    assert_eq!(b.inb(reg::LSR), 0x60 | 0x80 | 0x18 | 0x01);
    assert_eq!(b.inb(reg::LSR), 0x60 | 0x01, "cleared by the read");
}

#[test]
fn modem_status_deltas() {
    let mut b = Bench::open(0x01);
    assert_eq!(b.inb(reg::MSR), 0xb0);
    b.uart.set_modem_lines(ModemLines { cts: false, ri: true, ..ModemLines::CONNECTED });
    assert!(b.line());
    assert_eq!(b.inb(reg::MSR), 0xe1, "RI counts only when it goes away");
    b.uart.set_modem_lines(ModemLines { cts: false, ..ModemLines::CONNECTED });
    assert_eq!(b.inb(reg::MSR), 0xa4);
    assert_eq!(b.inb(reg::MSR), 0xa0);
}

#[test]
fn loopback_sends_to_itself_and_overruns() {
    let mut b = Bench::open(0x01);
    b.out(reg::IER, 0);
    b.out(reg::MCR, 0x1f);
    for byte in 0..17 {
        b.out(reg::DATA, byte);
    }
    assert_eq!(b.uart.peek_output(), None);
    assert_eq!(b.inb(reg::LSR), 0x63);
    assert_eq!(b.inb(reg::LSR), 0x61);
    let read: Vec<u8> = (0..16).map(|_| b.inb(reg::DATA)).collect();
    assert_eq!(read, (0..16).collect::<Vec<u8>>());
    assert_eq!(b.inb(reg::LSR), 0x60);
    b.out(reg::LCR, 0x43);
    assert_eq!(b.inb(reg::LSR), 0xf9, "its own break");
}

#[test]
fn fifo_control() {
    let mut b = Bench::open(0x01);
    b.receive(b"abc");
    b.out(reg::DATA, b'x');
    b.out(reg::IIR, 0x06);
    assert_eq!(b.inb(reg::IIR) & 0xc0, 0, "without the enable bit: the FIFOs are off, and empty");
    assert_eq!(b.inb(reg::LSR), 0x60);
    b.out(reg::IIR, 0x01);
    b.receive(b"abc");
    b.out(reg::IIR, 0x41);
    assert_eq!(b.inb(reg::DATA), b'a', "a new trigger level keeps what is there");
    b.out(reg::IIR, 0x43);
    assert_eq!(b.inb(reg::LSR) & 1, 0);
    assert!(!b.line());
    assert_eq!(b.uart.deadline(), None);
    b.out(reg::DATA, b'y');
    b.out(reg::IIR, 0x45);
    assert_eq!(b.uart.peek_output(), None);
}

#[test]
fn short_words() {
    let mut b = Bench::open(0x01);
    b.out(reg::LCR, 0x02);
    b.out(reg::DATA, 0xff);
    b.receive(&[0xff]);
    assert_eq!((b.uart.take_output(), b.inb(reg::DATA)), (Some(0x7f), 0x7f));
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Read(u16, Width),
    Write(u16, Width, u32),
    Receive(u8),
    Break,
    Take,
    Modem(bool, bool),
    Advance,
}

fn op() -> impl Strategy<Value = (u64, Op)> {
    let width = || prop::sample::select(std::vec![Width::Byte, Width::Byte, Width::Word, Width::Dword]);
    let op = prop_oneof![
        (0..8u16, width()).prop_map(|(o, w)| Op::Read(o, w)),
        (0..8u16, width(), any::<u32>()).prop_map(|(o, w, v)| Op::Write(o, w, v & w.mask() as u32)),
        any::<u8>().prop_map(Op::Receive),
        Just(Op::Break),
        Just(Op::Take),
        any::<(bool, bool)>().prop_map(|(a, b)| Op::Modem(a, b)),
        Just(Op::Advance),
    ];
    (prop_oneof![Just(0), 0..10_000_000u64, 0..1u64 << 58], op)
}

fn apply(uart: &mut Uart, now: Time, op: Op) -> u32 {
    match op {
        Op::Read(o, w) => return uart.port_read(now, o, w),
        Op::Write(o, w, v) => uart.port_write(now, o, w, v),
        Op::Receive(byte) => return uart.receive(now, byte).into(),
        Op::Break => return uart.receive_break(now).into(),
        Op::Take => return uart.take_output().unwrap_or(0).into(),
        Op::Modem(cts, ri) => uart.set_modem_lines(ModemLines { cts, ri, ..ModemLines::CONNECTED }),
        Op::Advance => uart.advance(now),
    }
    0
}

proptest! {
    #[test]
    fn any_sequence_keeps_the_line_true_and_survives_a_restore(ops in prop::collection::vec(op(), 1..150), cut in 0..150usize) {
        let mut b = Bench::new();
        let mut copy: Option<Uart> = None;
        for (i, &(wait, op)) in ops.iter().enumerate() {
            b.now += Duration(wait);
            let value = apply(&mut b.uart, b.now, op);
            if let Some(copy) = &mut copy {
                prop_assert_eq!(apply(copy, b.now, op), value);
                prop_assert_eq!(copy.save(), b.uart.save());
            }
            if i == cut {
                let mut other = Uart::new(Line::unconnected(), ModemLines::DISCONNECTED);
                other.restore(&b.uart.save());
                copy = Some(other);
            }
            let open = b.uart.mcr & (Mcr::OUT2 | Mcr::LOOP) == Mcr::OUT2;
            prop_assert_eq!(b.line(), open && b.uart.identification() != iir::NONE);
            let mut ahead = Uart::new(Line::unconnected(), ModemLines::CONNECTED);
            ahead.restore(&b.uart.save());
            ahead.advance(b.now);
            prop_assert!(ahead.deadline().is_none_or(|at| at > b.now));
        }
    }

    /// A guest that looks at THRE, and a board that takes output when it likes: every byte arrives, in order.
    #[test]
    fn no_output_is_lost(bytes in prop::collection::vec(any::<u8>(), 1..200), takes in prop::collection::vec(0..40usize, 1..20), fifos: bool) {
        let mut b = Bench::open(u8::from(fifos));
        let mut arrived = Vec::new();
        let mut waiting = bytes.iter();
        let mut takes = takes.into_iter().cycle();
        while arrived.len() < bytes.len() {
            if b.inb(reg::LSR) & 0x20 != 0 {
                for &byte in waiting.by_ref().take(b.uart.depth()) {
                    b.out(reg::DATA, byte);
                }
            }
            let mut buffer = std::vec![0; takes.next().unwrap().max(1)];
            let n = b.uart.drain(&mut buffer);
            arrived.extend_from_slice(&buffer[..n]);
        }
        prop_assert_eq!(arrived, bytes);
    }
}
