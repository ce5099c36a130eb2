//! One counter of the 8254 as a function of time.
//!
//! Time is counted in CLK pulses here. A count that is written at pulse t is loaded at pulse t + 1 (or later, where the mode
//! says so); what the counting element and OUT are at any later pulse follows from when it was loaded, without stepping
//! through.

use super::spec::{control, status};
use serde::{Deserialize, Serialize};

/// Counter modes (8254, "Mode definitions").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Mode {
    /// 0: OUT rises when the count is over.
    TerminalCount,
    /// 1: a trigger pulls OUT low for the length of the count.
    OneShot,
    /// 2: OUT is low for the last pulse of each period.
    RateGenerator,
    /// 3: OUT is low for half of each period.
    SquareWave,
    /// 4: OUT is low for one pulse when the count is over.
    SoftwareStrobe,
    /// 5: the same, started by a trigger.
    HardwareStrobe,
}

impl Mode {
    const fn from_bits(bits: u8) -> Self {
        match bits & control::MODE {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::RateGenerator,
            3 | 7 => Self::SquareWave,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }

    const fn bits(self) -> u8 {
        self as u8
    }
}

/// Which bytes of the count are read and written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Bytes {
    Low = 1,
    High = 2,
    LowThenHigh = 3,
}

/// The counting element.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Counting {
    /// Nothing loaded since the mode was set; it holds what it held.
    Idle { value: u16 },
    /// `count` was loaded at pulse `since` (may wrap: a phase).
    Running { count: u32, since: u64 },
    /// The gate stopped it `elapsed` pulses after `count` was loaded.
    Paused { count: u32, elapsed: u64 },
}

/// A counter.
#[derive(Clone)]
pub(super) struct Channel {
    mode: Mode,
    bcd: bool,
    bytes: Bytes,
    gate: bool,
    /// The count register as last written.
    count_register: u16,
    /// When the count register goes to the counting element, if it is to.
    load_at: Option<u64>,
    /// A count has been written since the mode was set.
    programmed: bool,
    /// Written, and not in the counting element yet.
    null_count: bool,
    counting: Counting,
    /// The low byte, when the high byte is to be written next.
    written_low: Option<u8>,
    read_high_next: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

/// What a [`super::Pit`]'s counter saves. Pulses are counted from [`x86defs::Time`] 0.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChannelState {
    pub mode: Mode,
    pub bcd: bool,
    pub bytes: Bytes,
    pub gate: bool,
    pub count_register: u16,
    pub load_at: Option<u64>,
    pub programmed: bool,
    pub null_count: bool,
    pub counting: Counting,
    pub written_low: Option<u8>,
    pub read_high_next: bool,
    pub latched_count: Option<u16>,
    pub latched_status: Option<u8>,
}

impl Channel {
    pub(super) const fn new(gate: bool) -> Self {
        Self {
            mode: Mode::TerminalCount,
            bcd: false,
            bytes: Bytes::LowThenHigh,
            gate,
            count_register: 0,
            load_at: None,
            programmed: false,
            null_count: true,
            counting: Counting::Idle { value: 0 },
            written_low: None,
            read_high_next: false,
            latched_count: None,
            latched_status: None,
        }
    }

    const fn modulus(&self) -> u32 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    /// The number that the count register stands for: 1 to 0x10000, or to 10000 in BCD.
    fn decoded_count(&self) -> u32 {
        let raw = u32::from(self.count_register);
        let count = if self.bcd { (0..4).rev().fold(0, |n, digit| n * 10 + (raw >> (4 * digit) & 0xf)) } else { raw };
        match count % self.modulus() {
            0 => self.modulus(),
            count => count,
        }
    }

    /// A number as the counting element shows it.
    fn encode(&self, count: u32) -> u16 {
        let count = count % self.modulus();
        if self.bcd {
            [1000, 100, 10, 1].iter().fold(0, |bcd, place| bcd << 4 | (count / place % 10) as u16)
        } else {
            count as u16
        }
    }

    /// How long OUT is high in a period of mode 3.
    const fn high_half(count: u32) -> u32 {
        count.div_ceil(2)
    }

    /// Does the load that is due by `tick`.
    #[inline(always)]
    pub(super) fn sync(&mut self, tick: u64) {
        if let Some(at) = self.due_load(tick) {
            self.load(at);
        }
    }

    #[inline(never)]
    fn load(&mut self, at: u64) {
        self.load_at = None;
        self.null_count = false;
        let count = self.decoded_count();
        // A new count for mode 3 that comes with the falling edge starts in the low half.
        let falling = match self.counting {
            Counting::Running { count: old, since } if self.mode == Mode::SquareWave => {
                at.wrapping_sub(since) % u64::from(old) == u64::from(Self::high_half(old)) && old > 1
            }
            _ => false,
        };
        let since = if falling { at.wrapping_sub(u64::from(Self::high_half(count))) } else { at };
        self.counting = if self.counts_despite_gate() || self.gate {
            Counting::Running { count, since }
        } else {
            Counting::Paused { count, elapsed: 0 }
        };
    }

    /// In modes 1 and 5 the gate is a trigger only.
    const fn counts_despite_gate(&self) -> bool {
        matches!(self.mode, Mode::OneShot | Mode::HardwareStrobe)
    }

    /// Count loaded, pulses since, if anything was loaded.
    fn progress(&self, tick: u64) -> Option<(u32, u64)> {
        match self.counting {
            Counting::Idle { .. } => None,
            Counting::Running { count, since } => Some((count, tick.wrapping_sub(since))),
            Counting::Paused { count, elapsed } => Some((count, elapsed)),
        }
    }

    /// What the counting element shows. Needs [`Channel::sync`] before.
    fn value(&self, tick: u64) -> u16 {
        let (count, elapsed) = match (self.counting, self.progress(tick)) {
            (Counting::Idle { value }, _) => return value,
            (_, Some(progress)) => progress,
            (_, None) => return 0,
        };
        let phase = (elapsed % u64::from(count)) as u32;
        let value = match self.mode {
            Mode::RateGenerator => count - phase,
            Mode::SquareWave => {
                let high = Self::high_half(count);
                let step = if phase < high { phase } else { phase - high };
                (count & !1).wrapping_sub(2 * step)
            }
            _ => {
                let modulus = self.modulus();
                count + modulus - (elapsed % u64::from(modulus)) as u32
            }
        };
        self.encode(value)
    }

    /// The level of OUT. Needs [`Channel::sync`] before.
    pub(super) fn out(&self, tick: u64) -> bool {
        let Some((count, elapsed)) = self.progress(tick) else { return self.mode != Mode::TerminalCount };
        let count = u64::from(count);
        match self.mode {
            Mode::TerminalCount | Mode::OneShot => elapsed >= count,
            Mode::RateGenerator => self.is_paused() || count == 1 || elapsed % count != count - 1,
            Mode::SquareWave => self.is_paused() || elapsed % count < count.div_ceil(2),
            Mode::SoftwareStrobe => self.is_paused() || elapsed != count,
            Mode::HardwareStrobe => elapsed != count,
        }
    }

    const fn is_paused(&self) -> bool {
        matches!(self.counting, Counting::Paused { .. })
    }

    /// How often OUT rises after `from` up to and at `to`, as far as it does without being touched. Both in the present load:
    /// needs [`Channel::sync`] for `from`, and no load between.
    pub(super) fn rising_edges(&self, from: u64, to: u64) -> u64 {
        let Counting::Running { count, since } = self.counting else { return 0 };
        let count = u64::from(count);
        let (from, to) = (from.wrapping_sub(since), to.wrapping_sub(since));
        match self.mode {
            // Counts of 1 are illegal: OUT stays.
            Mode::RateGenerator | Mode::SquareWave if count > 1 => (to / count).saturating_sub(from / count),
            Mode::RateGenerator | Mode::SquareWave => 0,
            Mode::TerminalCount | Mode::OneShot => u64::from(from < count && count <= to),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => u64::from(from < count + 1 && count < to),
        }
    }

    /// The first pulse after `tick` at which OUT rises if nobody touches the counter.
    pub(super) fn next_edge(&self, tick: u64) -> Option<u64> {
        let edge = self.next_rise(tick);
        match self.load_at {
            Some(load) if edge.is_none_or(|edge| edge > load) => {
                let mut loaded = self.clone();
                loaded.sync(load);
                loaded.next_rise(load)
            }
            _ => edge,
        }
    }

    fn next_rise(&self, tick: u64) -> Option<u64> {
        let Counting::Running { count, since } = self.counting else { return None };
        let elapsed = tick.wrapping_sub(since);
        let count = u64::from(count);
        let rise = match self.mode {
            Mode::RateGenerator | Mode::SquareWave if count > 1 => (elapsed / count + 1).checked_mul(count)?,
            Mode::RateGenerator | Mode::SquareWave => return None,
            Mode::TerminalCount | Mode::OneShot => count,
            Mode::SoftwareStrobe | Mode::HardwareStrobe => count + 1,
        };
        if elapsed < rise { Some(since.wrapping_add(rise)) } else { None }
    }

    /// A control word that sets the mode.
    pub(super) fn set_mode(&mut self, tick: u64, word: u8) {
        self.sync(tick);
        let value = self.value(tick);
        let &mut Self { gate, count_register, .. } = self;
        *self = Self {
            mode: Mode::from_bits(word >> control::MODE_SHIFT),
            bcd: word & control::BCD != 0,
            bytes: match word >> control::ACCESS_SHIFT & control::ACCESS {
                1 => Bytes::Low,
                2 => Bytes::High,
                _ => Bytes::LowThenHigh,
            },
            count_register,
            counting: Counting::Idle { value },
            ..Self::new(gate)
        };
    }

    /// A byte of the count.
    pub(super) fn write(&mut self, tick: u64, byte: u8) {
        self.sync(tick);
        self.count_register = match (self.bytes, self.written_low.take()) {
            (Bytes::Low, _) => byte.into(),
            (Bytes::High, _) => u16::from(byte) << 8,
            (Bytes::LowThenHigh, Some(low)) => u16::from_le_bytes([low, byte]),
            (Bytes::LowThenHigh, None) => {
                self.written_low = Some(byte);
                if self.mode == Mode::TerminalCount {
                    // The first byte stops the counting, and OUT falls.
                    self.stop(tick);
                }
                return;
            }
        };
        self.programmed = true;
        self.null_count = true;
        match self.mode {
            Mode::TerminalCount => {
                self.stop(tick);
                self.load_at = Some(tick.saturating_add(1));
            }
            Mode::SoftwareStrobe => self.load_at = Some(tick.saturating_add(1)),
            // A trigger loads.
            Mode::OneShot | Mode::HardwareStrobe => {}
            Mode::RateGenerator | Mode::SquareWave => {
                if self.load_at.is_none() {
                    self.load_at = self.period_end(tick);
                }
            }
        }
    }

    fn stop(&mut self, tick: u64) {
        self.counting = Counting::Idle { value: self.value(tick) };
        self.load_at = None;
    }

    /// When a periodic mode takes a new count that was written at `tick`.
    fn period_end(&self, tick: u64) -> Option<u64> {
        match self.counting {
            Counting::Idle { .. } => Some(tick.saturating_add(1)),
            // The trigger that starts it again loads.
            Counting::Paused { .. } => None,
            Counting::Running { count, since } => {
                let count = u64::from(count);
                let phase = tick.wrapping_sub(since) % count;
                let high = count.div_ceil(2);
                let end = if self.mode == Mode::SquareWave && phase < high { high } else { count };
                Some(tick.saturating_add(end - phase))
            }
        }
    }

    /// A read of the counter's port.
    pub(super) fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        self.sync(tick);
        let [low, high] = self.latched_count.unwrap_or_else(|| self.value(tick)).to_le_bytes();
        if self.bytes == Bytes::LowThenHigh && !self.read_high_next {
            self.read_high_next = true;
            return low;
        }
        self.read_high_next = false;
        self.latched_count = None;
        if self.bytes == Bytes::Low { low } else { high }
    }

    /// The counter latch command. A count that is still latched stays; reading the latch starts with its low byte.
    pub(super) fn latch_count(&mut self, tick: u64) {
        self.sync(tick);
        if self.latched_count.is_none() {
            self.latched_count = Some(self.value(tick));
            self.read_high_next = false;
        }
    }

    pub(super) fn latch_status(&mut self, tick: u64) {
        self.sync(tick);
        if self.latched_status.is_some() {
            return;
        }
        let mut byte = (self.bytes as u8) << control::ACCESS_SHIFT | self.mode.bits() << control::MODE_SHIFT;
        if self.bcd {
            byte |= control::BCD;
        }
        if self.null_count {
            byte |= status::NULL_COUNT;
        }
        if self.out(tick) {
            byte |= status::OUT;
        }
        self.latched_status = Some(byte);
    }

    /// The period, in a periodic mode that runs.
    pub(super) fn period(&self) -> Option<u32> {
        match self.counting {
            Counting::Running { count, .. } if matches!(self.mode, Mode::RateGenerator | Mode::SquareWave) => Some(count),
            _ => None,
        }
    }

    /// The load that is to come, if it is due by `tick`.
    #[inline(always)]
    pub(super) fn due_load(&self, tick: u64) -> Option<u64> {
        self.load_at.filter(|&at| at <= tick)
    }

    pub(super) fn save(&self) -> ChannelState {
        let &Self {
            mode,
            bcd,
            bytes,
            gate,
            count_register,
            load_at,
            programmed,
            null_count,
            counting,
            written_low,
            read_high_next,
            latched_count,
            latched_status,
        } = self;
        ChannelState {
            mode,
            bcd,
            bytes,
            gate,
            count_register,
            load_at,
            programmed,
            null_count,
            counting,
            written_low,
            read_high_next,
            latched_count,
            latched_status,
        }
    }

    /// The counter from a saved state, which may be anything.
    pub(super) fn restored(state: &ChannelState) -> Self {
        let &ChannelState {
            mode,
            bcd,
            bytes,
            gate,
            count_register,
            load_at,
            programmed,
            null_count,
            counting,
            written_low,
            read_high_next,
            latched_count,
            latched_status,
        } = state;
        let mut channel = Self {
            mode,
            bcd,
            bytes,
            gate,
            count_register,
            load_at,
            programmed,
            null_count,
            counting,
            written_low,
            read_high_next,
            latched_count,
            latched_status,
        };
        let modulus = channel.modulus();
        match &mut channel.counting {
            Counting::Idle { .. } => {}
            Counting::Running { count, .. } | Counting::Paused { count, .. } => *count = (*count).clamp(1, modulus),
        }
        channel
    }

    /// Drives GATE (8254, "Gate pin operations summary").
    pub(super) fn set_gate(&mut self, tick: u64, gate: bool) {
        self.sync(tick);
        if self.gate == gate {
            return;
        }
        self.gate = gate;
        match self.mode {
            Mode::TerminalCount | Mode::SoftwareStrobe => self.pause_or_go_on(tick),
            // A rising edge is a trigger: it loads the count.
            _ if gate => {
                if self.programmed {
                    self.load_at = Some(tick.saturating_add(1));
                }
            }
            Mode::OneShot | Mode::HardwareStrobe => {}
            Mode::RateGenerator | Mode::SquareWave => {
                self.pause_or_go_on(tick);
                // What waited for the end of a period waits for the trigger now; a first count is loaded all the same.
                if self.is_paused() {
                    self.load_at = None;
                }
            }
        }
    }

    fn pause_or_go_on(&mut self, tick: u64) {
        self.counting = match self.counting {
            Counting::Running { count, since } if !self.gate => Counting::Paused { count, elapsed: tick.wrapping_sub(since) },
            Counting::Paused { count, elapsed } if self.gate => Counting::Running { count, since: tick.wrapping_sub(elapsed) },
            same => same,
        };
    }
}
