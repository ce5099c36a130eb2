//! The PS/2 mouse, with the IntelliMouse wheel and buttons 4 and 5 for systems that ask for them.

use super::spec::{mouse as cmd, reply};
use crate::fifo::Fifo;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

const PACKETS: usize = 16;
const REPLIES: usize = 8;
/// The most movement that one packet tells, and that is kept for later ones.
const MOST: i32 = 255;
const MOST_KEPT: i32 = 0x7fff;

/// Movement since the last report, and the buttons as they are now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MouseInput {
    /// Counts to the right.
    pub dx: i16,
    /// Counts away from the user.
    pub dy: i16,
    /// Wheel: detents towards the user.
    pub dz: i8,
    /// Left, right, middle, 4, 5 from bit 0 on.
    pub buttons: u8,
}

/// What the mouse says it is: the system asks for more by a sequence of sample rates.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MouseKind {
    Plain = 0,
    Wheel = 3,
    FiveButtons = 4,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MouseMode {
    Stream,
    Remote,
}

pub(super) struct Mouse {
    replies: Fifo<u8, REPLIES>,
    packets: Fifo<u8, PACKETS>,
    last_sent: u8,
    kind: MouseKind,
    mode: MouseMode,
    wrap: bool,
    reporting: bool,
    scaling: bool,
    resolution: u8,
    rate: u8,
    /// The last three sample rates, the latest last.
    rates: [u8; 3],
    pending: Option<u8>,
    movement: [i32; 3],
    buttons: u8,
    /// The buttons of the last packet.
    told_buttons: u8,
}

/// What a [`super::I8042`]'s mouse saves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MouseState {
    pub replies: Vec<u8>,
    pub packets: Vec<u8>,
    pub last_sent: u8,
    pub kind: MouseKind,
    pub mode: MouseMode,
    pub wrap: bool,
    pub reporting: bool,
    pub scaling: bool,
    pub resolution: u8,
    pub rate: u8,
    pub rates: [u8; 3],
    pub pending: Option<u8>,
    pub movement: [i32; 3],
    pub buttons: u8,
    pub told_buttons: u8,
}

impl Mouse {
    pub(super) fn new() -> Self {
        Self {
            replies: Fifo::new(),
            packets: Fifo::new(),
            last_sent: 0,
            kind: MouseKind::Plain,
            mode: MouseMode::Stream,
            wrap: false,
            reporting: false,
            scaling: false,
            resolution: cmd::RESOLUTION_DEFAULT,
            rate: cmd::RATE_DEFAULT,
            rates: [0; 3],
            pending: None,
            movement: [0; 3],
            buttons: 0,
            told_buttons: 0,
        }
    }

    /// The next byte for the host.
    pub(super) fn pop(&mut self) -> Option<u8> {
        let byte = match self.replies.pop() {
            Some(byte) => byte,
            None => {
                self.stream();
                self.packets.pop()?
            }
        };
        self.last_sent = byte;
        Some(byte)
    }

    pub(super) fn input(&mut self, input: MouseInput) {
        let MouseInput { dx, dy, dz, buttons } = input;
        for (sum, delta) in self.movement.iter_mut().zip([i32::from(dx), i32::from(dy), i32::from(dz)]) {
            *sum = sum.saturating_add(delta).clamp(-MOST_KEPT, MOST_KEPT);
        }
        self.buttons = buttons & 0x1f;
        self.stream();
    }

    /// In stream mode, tells what has changed as far as packets have room; what has not been told adds up.
    fn stream(&mut self) {
        while self.reporting
            && self.mode == MouseMode::Stream
            && !self.wrap
            && self.packets.room() >= self.packet_len()
            && (self.movement != [0; 3] || self.buttons != self.told_buttons)
        {
            let packet = self.packet(self.scaling);
            for &byte in packet.iter().take(self.packet_len()) {
                self.packets.push(byte);
            }
        }
    }

    fn packet_len(&self) -> usize {
        if self.kind == MouseKind::Plain { 3 } else { 4 }
    }

    /// Takes the next packet's worth of movement.
    fn packet(&mut self, scaling: bool) -> [u8; 4] {
        let scale = |count: i32| if scaling { scaled(count) } else { count };
        // Scaling doubles: half the movement a packet then.
        let most = if scaling { MOST / 2 } else { MOST };
        let most_wheel = if self.kind == MouseKind::Plain { MOST_KEPT } else { 7 };
        let mut take = |i: usize, most: i32| {
            let sum = self.movement.get_mut(i)?;
            let part = (*sum).clamp(-most, most);
            *sum -= part;
            Some(part)
        };
        let x = scale(take(0, most).unwrap_or(0));
        let y = scale(take(1, most).unwrap_or(0));
        let z = take(2, most_wheel).unwrap_or(0);
        self.told_buttons = self.buttons;
        let mut first = cmd::PACKET | self.buttons & 7;
        if x < 0 {
            first |= cmd::PACKET_X_SIGN;
        }
        if y < 0 {
            first |= cmd::PACKET_Y_SIGN;
        }
        let fourth = match self.kind {
            MouseKind::FiveButtons => z as u8 & 0xf | (self.buttons >> 3 & 3) << 4,
            MouseKind::Plain | MouseKind::Wheel => z as u8,
        };
        [first, x as u8, y as u8, fourth]
    }

    fn reply(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.replies.push(byte);
        }
    }

    fn set_defaults(&mut self) {
        self.packets.clear();
        self.movement = [0; 3];
        self.mode = MouseMode::Stream;
        self.reporting = false;
        self.scaling = false;
        self.resolution = cmd::RESOLUTION_DEFAULT;
        self.rate = cmd::RATE_DEFAULT;
    }

    /// A byte from the host.
    pub(super) fn write(&mut self, byte: u8) {
        if self.wrap && !matches!(byte, cmd::RESET | cmd::RESET_WRAP) {
            self.reply(&[byte]);
            return;
        }
        if let Some(command) = self.pending.take() {
            self.write_parameter(command, byte);
            return;
        }
        // A command ends what was being sent.
        self.packets.clear();
        match byte {
            cmd::SCALING_1_1 => self.scaling = false,
            cmd::SCALING_2_1 => self.scaling = true,
            cmd::SET_RESOLUTION | cmd::SET_RATE => self.pending = Some(byte),
            cmd::STATUS => {
                self.reply(&[reply::ACK, self.status(), self.resolution, self.rate]);
                return;
            }
            cmd::SET_STREAM => self.mode = MouseMode::Stream,
            cmd::READ_DATA => {
                self.reply(&[reply::ACK]);
                let packet = self.packet(false);
                for &byte in packet.iter().take(self.packet_len()) {
                    self.replies.push(byte);
                }
                return;
            }
            cmd::RESET_WRAP => self.wrap = false,
            cmd::SET_WRAP => self.wrap = true,
            cmd::SET_REMOTE => self.mode = MouseMode::Remote,
            cmd::READ_ID => {
                self.reply(&[reply::ACK, self.kind as u8]);
                return;
            }
            cmd::ENABLE => self.reporting = true,
            cmd::DISABLE => self.reporting = false,
            cmd::SET_DEFAULTS => self.set_defaults(),
            cmd::RESEND => {
                self.reply(&[self.last_sent]);
                return;
            }
            cmd::RESET => {
                *self = Self { buttons: self.buttons, told_buttons: self.buttons, ..Self::new() };
                self.reply(&[reply::ACK, reply::BAT_PASSED, MouseKind::Plain as u8]);
                return;
            }
            _ => {
                self.reply(&[reply::RESEND]);
                return;
            }
        }
        self.reply(&[reply::ACK]);
    }

    fn status(&self) -> u8 {
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        // Left, middle, right: the other way round than in a packet.
        flag(self.mode == MouseMode::Remote, cmd::STATUS_REMOTE)
            | flag(self.reporting, cmd::STATUS_ENABLED)
            | flag(self.scaling, cmd::STATUS_SCALING)
            | (self.buttons & 1) << 2
            | (self.buttons >> 2 & 1) << 1
            | self.buttons >> 1 & 1
    }

    fn write_parameter(&mut self, command: u8, byte: u8) {
        match (command, byte) {
            (cmd::SET_RESOLUTION, 0..=3) => self.resolution = byte,
            (cmd::SET_RATE, 10 | 20 | 40 | 60 | 80 | 100 | 200) => {
                self.rate = byte;
                let [_, second, third] = self.rates;
                self.rates = [second, third, byte];
                match self.rates {
                    [200, 100, 80] if self.kind == MouseKind::Plain => self.kind = MouseKind::Wheel,
                    [200, 200, 80] => self.kind = MouseKind::FiveButtons,
                    _ => {}
                }
            }
            _ => {
                self.reply(&[reply::ERROR]);
                return;
            }
        }
        self.reply(&[reply::ACK]);
    }

    pub(super) fn save(&self) -> MouseState {
        let Self {
            replies,
            packets,
            last_sent,
            kind,
            mode,
            wrap,
            reporting,
            scaling,
            resolution,
            rate,
            rates,
            pending,
            movement,
            buttons,
            told_buttons,
        } = self;
        MouseState {
            replies: replies.to_vec(),
            packets: packets.to_vec(),
            last_sent: *last_sent,
            kind: *kind,
            mode: *mode,
            wrap: *wrap,
            reporting: *reporting,
            scaling: *scaling,
            resolution: *resolution,
            rate: *rate,
            rates: *rates,
            pending: *pending,
            movement: *movement,
            buttons: *buttons,
            told_buttons: *told_buttons,
        }
    }

    pub(super) fn restore(&mut self, state: &MouseState) {
        let MouseState {
            replies,
            packets,
            last_sent,
            kind,
            mode,
            wrap,
            reporting,
            scaling,
            resolution,
            rate,
            rates,
            pending,
            movement,
            buttons,
            told_buttons,
        } = state;
        *self = Self {
            replies: Fifo::from_entries(replies.iter().copied()),
            packets: Fifo::from_entries(packets.iter().copied()),
            last_sent: *last_sent,
            kind: *kind,
            mode: *mode,
            wrap: *wrap,
            reporting: *reporting,
            scaling: *scaling,
            resolution: *resolution,
            rate: *rate,
            rates: *rates,
            pending: *pending,
            movement: movement.map(|sum| sum.clamp(-MOST_KEPT, MOST_KEPT)),
            buttons: *buttons & 0x1f,
            told_buttons: *told_buttons,
        };
    }
}

/// Scaling 2:1 ("Auxiliary device", "Set scaling 2:1").
fn scaled(count: i32) -> i32 {
    let scaled = match count.abs() {
        small @ (0 | 1 | 3) => small,
        2 => 1,
        4 => 6,
        5 => 9,
        large => 2 * large,
    };
    if count < 0 { -scaled } else { scaled }
}
