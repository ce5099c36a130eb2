//! The 8254 programmable interval timer (Intel data sheet, 231164-005) and system control port B (0x61, ICH9 data sheet 13.7.1).

use crate::{Duration, Line, PortDevice, Time, TimedDevice, Width};
use x86defs::Rate;

/// Input clock in Hz.
pub const HZ: u64 = 1_193_182;

#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
enum Access {
    Low,
    High,
    Both,
}

#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
struct Channel {
    mode: u8,
    bcd: bool,
    access: Access,
    /// Count register as written; 0 stands for 65536 (10000 in BCD).
    count: u16,
    /// The count that the current period uses.
    active: u32,
    /// First byte of a two-byte write.
    low_written: Option<u8>,
    /// The next read gives the high byte.
    read_high: bool,
    latched: Option<u16>,
    latched_status: Option<u8>,
    gate: bool,
    /// Counting began at this tick of the input clock; `None`: no count was written, or the gate holds it.
    start: Option<u64>,
    /// Ticks counted before the gate stopped it.
    paused: u64,
    null_count: bool,
}

impl Channel {
    const fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            bcd: false,
            access: Access::Both,
            count: 0,
            active: 0x1_0000,
            low_written: None,
            read_high: false,
            latched: None,
            latched_status: None,
            gate,
            start: None,
            paused: 0,
            null_count: true,
        }
    }

    /// The count in binary, 1..=65536.
    fn reload(&self) -> u32 {
        let value = if self.bcd { from_bcd(self.count) } else { self.count.into() };
        match value {
            0 if self.bcd => 10_000,
            0 => 0x1_0000,
            n => n,
        }
    }

    fn elapsed(&self, tick: u64) -> Option<u64> {
        Some(self.paused + tick.saturating_sub(self.start?))
    }

    const fn periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// The counting element.
    fn value(&self, tick: u64) -> u16 {
        let n = u64::from(self.active);
        let elapsed = match self.elapsed(tick) {
            Some(e) => e,
            None => self.paused,
        };
        let count = match self.mode {
            2 => n - elapsed % n,
            3 => {
                // Counts by two, twice a period; odd counts differ by one between the halves.
                let (phase, high) = (elapsed % n, n.div_ceil(2));
                let within = if phase < high { phase } else { phase - high };
                (n & !1) - (2 * within).min(n & !1)
            }
            _ => n.wrapping_sub(elapsed) & 0xffff,
        };
        if self.bcd { to_bcd((count % 10_000) as u16) } else { count as u16 }
    }

    fn out(&self, tick: u64) -> bool {
        let Some(elapsed) = self.elapsed(tick) else { return self.mode != 0 };
        let n = u64::from(self.active);
        match self.mode {
            0 | 1 => elapsed >= n,
            2 => elapsed % n != n - 1,
            3 => elapsed % n < n.div_ceil(2),
            _ => elapsed != n,
        }
    }

    /// The first tick after `tick` at which OUT rises, if it ever does without being touched.
    fn next_rise(&self, tick: u64) -> Option<u64> {
        let start = self.start?;
        let base = start.wrapping_sub(self.paused);
        let (n, elapsed) = (u64::from(self.active), self.elapsed(tick)?);
        let at = match self.mode {
            0 | 1 => (elapsed < n).then_some(n)?,
            2 | 3 => (elapsed / n + 1) * n,
            _ => (elapsed <= n).then_some(n + 1)?,
        };
        Some(base.wrapping_add(at))
    }

    fn control(&mut self, value: u8) {
        self.mode = match value >> 1 & 7 {
            6 => 2,
            7 => 3,
            mode => mode,
        };
        self.bcd = value & 1 != 0;
        self.access = match value >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        self.low_written = None;
        self.read_high = false;
        self.latched = None;
        self.latched_status = None;
        self.start = None;
        self.paused = 0;
        self.null_count = true;
    }

    fn write(&mut self, tick: u64, value: u8) {
        self.count = match (self.access, self.low_written) {
            (Access::Low, _) => value.into(),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, None) => {
                self.low_written = Some(value);
                // The first byte stops a mode 0 count.
                if self.mode == 0 {
                    self.start = None;
                    self.paused = 0;
                }
                return;
            }
            (Access::Both, Some(low)) => u16::from(value) << 8 | u16::from(low),
        };
        self.low_written = None;
        let running = self.start.is_some();
        match self.mode {
            // A new count takes effect with the next period.
            2 | 3 if running => {
                let n = u64::from(self.active);
                let elapsed = self.elapsed(tick).unwrap_or(0);
                // The old period ends first: the new one is taken to have started at its end. Until then the old count is shown, which
                // nobody can tell from the new one once it is reached; restarting here keeps one start for both.
                let _ = (n, elapsed);
                self.active = self.reload();
                self.start = Some(tick);
                self.paused = 0;
            }
            1 | 5 => {
                // Waits for a trigger by the gate.
                if !running {
                    self.null_count = true;
                }
            }
            _ => {
                self.active = self.reload();
                self.paused = 0;
                self.start = self.gate.then_some(tick);
            }
        }
        self.null_count = false;
    }

    fn set_gate(&mut self, tick: u64, gate: bool) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        match self.mode {
            0 | 4 => {
                if gate && !self.null_count {
                    self.start = Some(tick);
                } else if let Some(elapsed) = self.elapsed(tick) {
                    self.paused = elapsed;
                    self.start = None;
                }
            }
            // A rising gate starts the count anew.
            _ if gate && !self.null_count => {
                self.active = self.reload();
                self.paused = 0;
                self.start = Some(tick);
            }
            2 | 3 => {
                self.start = None;
                self.paused = 0;
            }
            _ => {}
        }
    }

    fn status(&self, tick: u64) -> u8 {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        u8::from(self.out(tick)) << 7 | u8::from(self.null_count) << 6 | access << 4 | self.mode << 1 | u8::from(self.bcd)
    }

    fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let value = self.latched.unwrap_or_else(|| self.value(tick));
        let high = match self.access {
            Access::Low => false,
            Access::High => true,
            Access::Both => {
                let high = self.read_high;
                self.read_high = !high;
                high
            }
        };
        if self.access != Access::Both || high {
            self.latched = None;
        }
        if high { (value >> 8) as u8 } else { value as u8 }
    }
}

fn from_bcd(value: u16) -> u32 {
    [12, 8, 4, 0].iter().fold(0, |n, shift| n * 10 + u32::from(value >> shift & 0xf))
}

fn to_bcd(value: u16) -> u16 {
    value / 1000 % 10 << 12 | value / 100 % 10 << 8 | value / 10 % 10 << 4 | value % 10
}

/// The timer: ports 0x40-0x43 (offsets 0-3), and port 0x61 through [`Pit::read_port_b`].
pub struct Pit {
    channels: [Channel; 3],
    irq: Line,
    to_ticks: Rate,
    to_ns: Rate,
    /// Bits 0 (gate 2), 1 (speaker), 2, 3 of port 0x61.
    port_b: u8,
    /// When OUT 0 rises next.
    deadline: Option<Time>,
    /// Rises of OUT 0 that came too late to be seen one by one.
    missed: u64,
}

impl Pit {
    /// `irq`: where OUT of channel 0 leads.
    #[must_use]
    pub fn new(irq: Line) -> Self {
        Self {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            irq,
            to_ticks: Rate::new(1_000_000_000, HZ),
            to_ns: Rate::new(HZ, 1_000_000_000),
            port_b: 0,
            deadline: None,
            missed: 0,
        }
    }

    fn tick(&self, now: Time) -> u64 {
        self.to_ticks.apply(now.0)
    }

    /// Periods of channel 0 that passed without an edge of their own since the device was made.
    #[must_use]
    pub const fn missed(&self) -> u64 {
        self.missed
    }

    fn update(&mut self, now: Time) {
        let tick = self.tick(now);
        let channel = &self.channels[0];
        self.irq.set(channel.out(tick));
        // A little later than the tick: rounding must not make it early.
        self.deadline = channel.next_rise(tick).map(|t| Time(self.to_ns.apply(t)) + Duration(2));
    }

    /// IN from port 0x61.
    #[must_use]
    pub fn read_port_b(&self, now: Time) -> u8 {
        // Bit 4 toggles with each refresh request, every 15 us.
        let refresh = (now.0 / 15_085 & 1) as u8;
        self.port_b & 0xf | refresh << 4 | u8::from(self.channels[2].out(self.tick(now))) << 5
    }

    /// OUT to port 0x61.
    pub fn write_port_b(&mut self, now: Time, value: u8) {
        self.port_b = value & 0xf;
        let tick = self.tick(now);
        self.channels[2].set_gate(tick, value & 1 != 0);
    }
}

impl PortDevice for Pit {
    fn port_read(&mut self, now: Time, offset: u16, width: Width) -> u32 {
        let tick = self.tick(now);
        match self.channels.get_mut(usize::from(offset)) {
            Some(channel) if width == Width::Byte => channel.read(tick).into(),
            _ => width.mask() as u32,
        }
    }

    fn port_write(&mut self, now: Time, offset: u16, _: Width, value: u32) {
        let (tick, value) = (self.tick(now), value as u8);
        if let Some(channel) = self.channels.get_mut(usize::from(offset)) {
            channel.write(tick, value);
        } else if value >> 6 == 3 {
            // Read-back.
            for (n, channel) in self.channels.iter_mut().enumerate() {
                if value >> (n + 1) & 1 != 0 {
                    if value & 0x20 == 0 && channel.latched.is_none() {
                        channel.latched = Some(channel.value(tick));
                    }
                    if value & 0x10 == 0 && channel.latched_status.is_none() {
                        channel.latched_status = Some(channel.status(tick));
                    }
                }
            }
        } else if let Some(channel) = self.channels.get_mut(usize::from(value >> 6)) {
            if value & 0x30 == 0 {
                if channel.latched.is_none() {
                    channel.latched = Some(channel.value(tick));
                }
            } else {
                channel.control(value);
            }
        }
        self.update(now);
    }
}

impl TimedDevice for Pit {
    fn deadline(&self) -> Option<Time> {
        self.deadline
    }

    fn advance(&mut self, now: Time) {
        let Some(deadline) = self.deadline.filter(|&d| d <= now) else { return };
        let channel = &self.channels[0];
        if channel.periodic() {
            let late = self.to_ticks.apply(now.since(deadline).0);
            self.missed += late / u64::from(channel.active);
            // The edge itself, whatever the level is by now.
            self.irq.set(false);
            self.irq.set(true);
        }
        self.update(now);
    }
}
