//! Small registers of the ICH9: reset control (port 0xCF9), fast A20 and INIT (port 0x92), and the POST code latch (port 0x80).
//!
//! Intel ICH9 data sheet, 316972-004, 13.7.

use crate::{PortDevice, ports::write_bytes};
use serde::{Deserialize, Serialize};
use x86defs::{Time, Width};

/// How far a reset that the guest asks for goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reset {
    /// INIT#: the processors only.
    Init,
    /// PLTRST#: the whole machine.
    Hard,
    /// The whole machine, with its power off for some seconds.
    PowerCycle,
}

/// The reset control register (13.7.5), port 0xCF9.
#[derive(Debug, Default)]
pub struct ResetControl {
    value: u8,
    event: Option<Reset>,
}

/// What a [`ResetControl`] saves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ResetControlState {
    pub value: u8,
    pub event: Option<Reset>,
}

impl ResetControl {
    /// Hard, not soft.
    const SYS_RST: u8 = 1 << 1;
    /// Its rising edge is the reset.
    const RST_CPU: u8 = 1 << 2;
    /// With a hard reset: a power cycle.
    const FULL_RST: u8 = 1 << 3;
    const WRITABLE: u8 = Self::SYS_RST | Self::RST_CPU | Self::FULL_RST;

    #[must_use]
    pub const fn new() -> Self {
        Self { value: 0, event: None }
    }

    #[must_use]
    pub const fn read(&self) -> u8 {
        self.value
    }

    pub fn write(&mut self, value: u8) {
        let rises = value & !self.value & Self::RST_CPU != 0;
        self.value = value & Self::WRITABLE;
        if rises {
            self.event = Some(match (value & Self::SYS_RST != 0, value & Self::FULL_RST != 0) {
                (false, _) => Reset::Init,
                (true, false) => Reset::Hard,
                (true, true) => Reset::PowerCycle,
            });
        }
    }

    /// The reset that the guest has asked for since this was last called.
    pub fn take_event(&mut self) -> Option<Reset> {
        self.event.take()
    }

    #[must_use]
    pub fn save(&self) -> ResetControlState {
        let &Self { value, event } = self;
        ResetControlState { value, event }
    }

    pub fn restore(&mut self, state: &ResetControlState) {
        let &ResetControlState { value, event } = state;
        *self = Self { value: value & Self::WRITABLE, event };
    }
}

/// Port 0x92 (13.7.4): the fast ways to INIT and to open or shut A20.
#[derive(Debug)]
pub struct Port92 {
    value: u8,
    event: Option<Reset>,
}

/// What a [`Port92`] saves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Port92State {
    pub value: u8,
    pub event: Option<Reset>,
}

impl Default for Port92 {
    fn default() -> Self {
        Self::new()
    }
}

impl Port92 {
    /// Its rising edge is an INIT.
    const INIT_NOW: u8 = 1 << 0;
    const A20: u8 = 1 << 1;

    /// A20 is open, as firmware leaves it.
    #[must_use]
    pub const fn new() -> Self {
        Self { value: Self::A20, event: None }
    }

    /// Whether this holds A20 open. The keyboard controller can as well.
    #[must_use]
    pub const fn a20(&self) -> bool {
        self.value & Self::A20 != 0
    }

    /// The reset that the guest has asked for since this was last called.
    pub fn take_event(&mut self) -> Option<Reset> {
        self.event.take()
    }

    #[must_use]
    pub fn save(&self) -> Port92State {
        let &Self { value, event } = self;
        Port92State { value, event }
    }

    pub fn restore(&mut self, state: &Port92State) {
        let &Port92State { value, event } = state;
        *self = Self { value: value & (Self::A20 | Self::INIT_NOW), event };
    }
}

impl PortDevice for Port92 {
    fn port_read(&mut self, _: Time, offset: u16, width: Width) -> u32 {
        crate::ports::read_bytes(offset, width, 1, |_| self.value)
    }

    fn port_write(&mut self, _: Time, offset: u16, width: Width, value: u32) {
        write_bytes(offset, width, 1, value, |_, value| {
            if value & !self.value & Self::INIT_NOW != 0 {
                self.event = Some(Reset::Init);
            }
            self.value = value & (Self::A20 | Self::INIT_NOW);
        });
    }
}

/// Port 0x80: keeps the last POST code. Old code writes there to wait a microsecond.
#[derive(Debug, Default)]
pub struct PostCode {
    value: u8,
}

/// What a [`PostCode`] saves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PostCodeState {
    pub value: u8,
}

impl PostCode {
    /// The last byte written.
    #[must_use]
    pub const fn value(&self) -> u8 {
        self.value
    }

    #[must_use]
    pub fn save(&self) -> PostCodeState {
        let &Self { value } = self;
        PostCodeState { value }
    }

    pub fn restore(&mut self, state: &PostCodeState) {
        let &PostCodeState { value } = state;
        *self = Self { value };
    }
}

impl PortDevice for PostCode {
    fn port_read(&mut self, _: Time, offset: u16, width: Width) -> u32 {
        crate::ports::read_bytes(offset, width, 1, |_| self.value)
    }

    #[inline(always)]
    fn port_write(&mut self, _: Time, offset: u16, width: Width, value: u32) {
        write_bytes(offset, width, 1, value, |_, value| self.value = value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Time = Time(0);

    #[test]
    fn reset_comes_with_the_rising_edge_of_rst_cpu() {
        // (first write, second write, what happens)
        let cases = [
            (0x02, 0x06, Some(Reset::Hard)),
            (0x00, 0x04, Some(Reset::Init)),
            (0x0a, 0x0e, Some(Reset::PowerCycle)),
            (0x08, 0x0c, Some(Reset::Init)),
            (0x02, 0x0a, None),
        ];
        for (first, second, expected) in cases {
            let mut reset = ResetControl::new();
            reset.write(first);
            assert_eq!(reset.take_event(), None);
            reset.write(second);
            assert_eq!(reset.read(), second);
            reset.write(second);
            assert_eq!(reset.take_event(), expected);
            assert_eq!(reset.take_event(), None);
            reset.write(second);
            assert_eq!(reset.take_event(), None, "no edge");
        }
    }

    #[test]
    fn port_92() {
        let mut port = Port92::new();
        assert!(port.a20());
        port.port_write(NOW, 0, Width::Byte, 0xfc);
        assert!(!port.a20());
        assert_eq!(port.port_read(NOW, 0, Width::Word), 0xff00);
        port.port_write(NOW, 0, Width::Byte, 0x03);
        assert_eq!(port.take_event(), Some(Reset::Init));
        port.port_write(NOW, 0, Width::Byte, 0x03);
        assert_eq!(port.take_event(), None);
        let mut other = Port92::new();
        other.restore(&port.save());
        assert_eq!(other.save(), port.save());
    }

    #[test]
    fn post_code_latch() {
        let mut post = PostCode::default();
        post.port_write(NOW, 0, Width::Byte, 0x5a);
        assert_eq!(post.port_read(NOW, 0, Width::Byte), 0x5a);
        assert_eq!(post.value(), 0x5a);
        let mut other = PostCode::default();
        other.restore(&post.save());
        assert_eq!(other.value(), 0x5a);
    }

    proptest! {
        #[test]
        fn any_writes_survive_a_restore(values in prop::collection::vec(any::<u8>(), 1..50), last: u8) {
            let (mut reset, mut port) = (ResetControl::new(), Port92::new());
            for value in values {
                reset.write(value);
                port.port_write(NOW, 0, Width::Dword, u32::from(value) * 0x0101_0101);
                prop_assert_eq!(port.a20(), value & 2 != 0);
            }
            let (mut reset_2, mut port_2) = (ResetControl::new(), Port92::new());
            reset_2.restore(&reset.save());
            port_2.restore(&port.save());
            reset.write(last);
            reset_2.write(last);
            prop_assert_eq!(reset.save(), reset_2.save());
            prop_assert_eq!(port.save(), port_2.save());
        }
    }
}
