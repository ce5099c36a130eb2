//! The MC146818 real-time clock with 128 bytes of memory, at ports 0x70 and 0x71.
//!
//! Motorola MC146818 data sheet (ADI-856-R1); Intel ICH9 data sheet, 316972-004, 5.11 and 13.6.
//!
//! The bytes are the state: updates read, advance and write them in the format that register B sets, as the chip does. Between
//! two accesses nothing is stepped; seconds that have passed are added at once. Daylight-saving changes (DSE) and the
//! square-wave pin are not there: their bits are only kept.

mod calendar;
mod spec;
#[cfg(test)]
mod tests;

use crate::{
    Line, MissedTicks, PortDevice, TimedDevice,
    missed::Owed,
    ports::{read_bytes, write_bytes},
};
use alloc::vec::Vec;
use calendar::{Date, Format, SECONDS_PER_DAY};
use serde::{Deserialize, Serialize};
use spec::{
    ALARM_ANY, B, CENTURY, CRYSTAL_HZ, DAY_OF_MONTH, DAY_OF_WEEK, HOURS, HOURS_ALARM, INDEX, MINUTES, MINUTES_ALARM, MONTH,
    NMI_MASK, REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D, SECONDS, SECONDS_ALARM, SIZE, UIP_NS, VRT, YEAR, a, c, cmos,
};
use x86defs::{Time, Width};

const SECOND: u64 = 1_000_000_000;
const PORTS: u16 = 2;
const INDEX_OFFSET: u16 = 0;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// The last second of the year 9999, in seconds since 1970: four digits are all there is.
const LAST_SECOND: u64 = 253_402_300_799;

/// What the clock starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RtcConfig {
    /// Seconds since 1970 at [`Time`] 0.
    pub wall_clock: u64,
    /// Bytes of memory below 4 GiB, from address 0 on.
    pub memory_below_4g: u64,
    /// Bytes of memory above 4 GiB.
    pub memory_above_4g: u64,
    pub missed: MissedTicks,
}

/// The clock.
pub struct Rtc {
    bytes: [u8; SIZE],
    index: u8,
    nmi_masked: bool,
    divider: Divider,
    /// Flags and time are those of this point in time.
    synced: Time,
    line: Line,
    /// Periodic interrupts that came before the guest had read the last one's flag.
    owed: Owed,
    deadline: Option<Time>,
}

/// The divider chain behind the crystal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Divider {
    /// Seconds begin at `origin` + n seconds (ns; may wrap: a phase).
    Running {
        origin: u64,
    },
    Reset,
}

/// What an [`Rtc`] saves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RtcState {
    pub bytes: Vec<u8>,
    pub index: u8,
    pub nmi_masked: bool,
    pub divider: Divider,
    pub synced: Time,
    pub owed: u64,
}

/// One byte of the alarm.
#[derive(Clone, Copy)]
enum AlarmField {
    Any,
    At(u32),
}

impl AlarmField {
    fn matches(self, value: u32) -> bool {
        match self {
            Self::Any => true,
            Self::At(at) => at == value,
        }
    }
}

impl Rtc {
    /// A clock that is set and runs, its memory as firmware leaves it. `line` is the interrupt request pin.
    #[must_use]
    pub fn new(line: Line, config: &RtcConfig, now: Time) -> Self {
        let mut rtc = Self {
            bytes: initial_memory(config),
            index: 0,
            nmi_masked: false,
            divider: Divider::Running { origin: 0 },
            synced: now,
            line,
            owed: Owed::new(config.missed),
            deadline: None,
        };
        let wall_clock = config.wall_clock.saturating_add(now.0 / SECOND).min(LAST_SECOND);
        let (date, day_of_week) = Date::from_unix_days(wall_clock / SECONDS_PER_DAY);
        rtc.set_time_of_day((wall_clock % SECONDS_PER_DAY) as u32);
        rtc.set_date(date, day_of_week);
        rtc
    }

    /// Whether the guest has masked NMIs (bit 7 of the index port).
    #[must_use]
    pub fn nmi_masked(&self) -> bool {
        self.nmi_masked
    }

    fn b(&self) -> B {
        B::from_bits_retain(self.bytes[REGISTER_B])
    }

    fn format(&self) -> Format {
        Format::new(self.b())
    }

    /// Whether the time is being updated every second.
    fn is_updating(&self) -> bool {
        !self.b().contains(B::SET) && self.divider != Divider::Reset
    }

    /// Second of the day, 0 to 86399. Bytes that are no time count as the last one that is.
    fn time_of_day(&self) -> u32 {
        let format = self.format();
        let hours = format.decode_hours(self.bytes[HOURS]).min(23);
        let minutes = format.decode(self.bytes[MINUTES]).min(59);
        let seconds = format.decode(self.bytes[SECONDS]).min(59);
        (hours * 60 + minutes) * 60 + seconds
    }

    fn set_time_of_day(&mut self, second: u32) {
        let format = self.format();
        self.bytes[SECONDS] = format.encode(second % 60);
        self.bytes[MINUTES] = format.encode(second / 60 % 60);
        self.bytes[HOURS] = format.encode_hours(second / 3600);
    }

    fn date(&self) -> Date {
        let format = self.format();
        Date {
            year: format.decode(self.bytes[CENTURY]) * 100 + format.decode(self.bytes[YEAR]),
            month: format.decode(self.bytes[MONTH]),
            day: format.decode(self.bytes[DAY_OF_MONTH]),
        }
    }

    fn set_date(&mut self, date: Date, day_of_week: u32) {
        let format = self.format();
        self.bytes[CENTURY] = format.encode(date.year / 100);
        self.bytes[YEAR] = format.encode(date.year);
        self.bytes[MONTH] = format.encode(date.month);
        self.bytes[DAY_OF_MONTH] = format.encode(date.day);
        self.bytes[DAY_OF_WEEK] = format.encode(day_of_week);
    }

    /// `seconds` updates at once.
    fn update(&mut self, seconds: u64) {
        let time = u64::from(self.time_of_day()).saturating_add(seconds);
        self.set_time_of_day((time % SECONDS_PER_DAY) as u32);
        let days = time / SECONDS_PER_DAY;
        if days > 0 {
            let day_of_week = self.format().decode(self.bytes[DAY_OF_WEEK]).clamp(1, 7);
            let day_of_week = (u64::from(day_of_week - 1) + days) % 7 + 1;
            self.set_date(self.date().plus(days), day_of_week as u32);
        }
    }

    fn alarm_field(byte: u8, value: u32) -> AlarmField {
        if byte & ALARM_ANY == ALARM_ANY { AlarmField::Any } else { AlarmField::At(value) }
    }

    /// How many updates from now on the alarm comes, if ever: 1 to 86400.
    fn updates_until_alarm(&self) -> Option<u64> {
        let format = self.format();
        let field = |i: usize| Self::alarm_field(self.bytes[i], format.decode(self.bytes[i]));
        let hour = Self::alarm_field(self.bytes[HOURS_ALARM], format.decode_hours(self.bytes[HOURS_ALARM]));
        let (minute, second) = (field(MINUTES_ALARM), field(SECONDS_ALARM));
        let (second, is_any) = match (hour, minute, second) {
            (AlarmField::At(24..), _, _) | (_, AlarmField::At(60..), _) | (_, _, AlarmField::At(60..)) => return None,
            (_, _, AlarmField::Any) => (0, true),
            (_, _, AlarmField::At(at)) => (at, false),
        };
        let now = self.time_of_day();
        let start = now + 1;
        // Hour by hour, and minute by minute where the hour matches; the second is known then.
        for h in start / 3600..start / 3600 + 25 {
            if !hour.matches(h % 24) {
                continue;
            }
            for m in h * 60..(h + 1) * 60 {
                if !minute.matches(m % 60) || (m + 1) * 60 <= start {
                    continue;
                }
                let at = if is_any { (m * 60).max(start) } else { m * 60 + second };
                if at >= start {
                    return (at <= now + SECONDS_PER_DAY as u32).then_some(u64::from(at - now));
                }
            }
        }
        None
    }

    /// Ticks of the periodic interrupt's clock in a period, if it has a rate (data sheet, table 5).
    fn period_ticks(&self) -> Option<u64> {
        match self.bytes[REGISTER_A] & a::RATE {
            0 => None,
            // 256 and 128 Hz, as 8 and 9.
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// Crystal ticks since the divider's origin.
    const fn crystal_ticks(ns: u64) -> u64 {
        ns / SECOND * CRYSTAL_HZ + ns % SECOND * CRYSTAL_HZ / SECOND
    }

    /// The first nanosecond after the origin at which there have been `ticks`.
    fn ns_of_crystal_ticks(ticks: u64) -> Option<u64> {
        let whole = (ticks / CRYSTAL_HZ).checked_mul(SECOND)?;
        whole.checked_add((ticks % CRYSTAL_HZ * SECOND).div_ceil(CRYSTAL_HZ))
    }

    /// Brings time and flags up to `now`.
    fn sync(&mut self, now: Time) {
        let Divider::Running { origin } = self.divider else {
            self.synced = self.synced.max(now);
            return;
        };
        let now = now.max(self.synced);
        let from = self.synced.0.wrapping_sub(origin);
        let to = now.0.wrapping_sub(origin);
        self.synced = now;
        let mut flags = 0;
        if let Some(period) = self.period_ticks()
            && let passed @ 1.. = (Self::crystal_ticks(to) / period).saturating_sub(Self::crystal_ticks(from) / period)
        {
            flags |= c::PF;
            let flagged = self.bytes[REGISTER_C] & c::PF != 0;
            if !self.b().contains(B::PIE) {
                self.owed.clear();
            } else {
                self.owed.add(if flagged { passed } else { passed - 1 });
            }
        }
        let seconds = (to / SECOND).saturating_sub(from / SECOND);
        if seconds > 0 && self.is_updating() {
            flags |= c::UF;
            if self.updates_until_alarm().is_some_and(|updates| updates <= seconds) {
                flags |= c::AF;
            }
            self.update(seconds);
        }
        self.bytes[REGISTER_C] |= flags;
    }

    /// Drives the line, and finds out when it has to be driven next.
    fn update_line(&mut self) {
        let enabled = (self.b() & (B::PIE | B::AIE | B::UIE)).bits();
        let high = self.bytes[REGISTER_C] & enabled != 0;
        self.line.set(high);
        self.deadline = if high || enabled == 0 { None } else { self.next_event(B::from_bits_retain(enabled)) };
    }

    /// When the first of the events in `enabled` happens. None of their flags is set.
    fn next_event(&self, enabled: B) -> Option<Time> {
        let Divider::Running { origin } = self.divider else { return None };
        let elapsed = self.synced.0.wrapping_sub(origin);
        let mut first: Option<u64> = None;
        let mut consider = |at: Option<u64>| first = [first, at].into_iter().flatten().min();
        if enabled.contains(B::PIE)
            && let Some(period) = self.period_ticks()
        {
            let next = (Self::crystal_ticks(elapsed) / period + 1).saturating_mul(period);
            consider(Self::ns_of_crystal_ticks(next));
        }
        if self.is_updating() {
            let next_second = (elapsed / SECOND + 1).checked_mul(SECOND);
            if enabled.contains(B::UIE) {
                consider(next_second);
            }
            if enabled.contains(B::AIE) {
                let updates = self.updates_until_alarm();
                consider(updates.and_then(|n| next_second?.checked_add((n - 1) * SECOND)));
            }
        }
        let wait = first?.checked_sub(elapsed)?;
        self.synced.0.checked_add(wait).map(Time)
    }

    fn read_data(&mut self, now: Time) -> u8 {
        let index = usize::from(self.index & INDEX);
        if !matches!(index, SECONDS..=REGISTER_C | CENTURY) {
            return self.bytes[index];
        }
        self.sync(now);
        match index {
            REGISTER_A => self.bytes[REGISTER_A] | if self.is_update_near() { a::UIP } else { 0 },
            REGISTER_C => {
                let flags = core::mem::take(&mut self.bytes[REGISTER_C]);
                let enabled = (self.b() & (B::PIE | B::AIE | B::UIE)).bits();
                self.update_line();
                // One that the guest has missed comes at once: a new edge.
                if flags & c::PF != 0 && self.b().contains(B::PIE) && self.owed.take() {
                    self.bytes[REGISTER_C] |= c::PF;
                    self.update_line();
                }
                flags | if flags & enabled != 0 { c::IRQF } else { 0 }
            }
            _ => {
                self.update_line();
                self.bytes[index]
            }
        }
    }

    /// UIP: an update begins soon or goes on. The new time is there when it ends.
    fn is_update_near(&self) -> bool {
        match self.divider {
            Divider::Running { origin } => self.is_updating() && self.synced.0.wrapping_sub(origin) % SECOND >= SECOND - UIP_NS,
            Divider::Reset => false,
        }
    }

    fn write_data(&mut self, now: Time, value: u8) {
        let index = usize::from(self.index & INDEX);
        if !matches!(index, SECONDS..=REGISTER_D | CENTURY) {
            self.bytes[index] = value;
            return;
        }
        self.sync(now);
        match index {
            REGISTER_A => self.write_a(value),
            REGISTER_B => {
                let mut b = B::from_bits_retain(value);
                // Data sheet, "UIE": SET going high clears it.
                if b.contains(B::SET) && !self.b().contains(B::SET) {
                    b.remove(B::UIE);
                }
                self.bytes[REGISTER_B] = b.bits();
                if !b.contains(B::PIE) {
                    self.owed.clear();
                }
            }
            REGISTER_C | REGISTER_D => {}
            // The high bit of the seconds cannot be written.
            SECONDS => self.bytes[SECONDS] = value & 0x7f,
            _ => self.bytes[index] = value,
        }
        self.update_line();
    }

    fn write_a(&mut self, value: u8) {
        self.bytes[REGISTER_A] = value & !a::UIP;
        self.owed.clear();
        let reset = value & a::DIVIDER_RESET == a::DIVIDER_RESET;
        match (self.divider, reset) {
            (Divider::Running { .. }, true) => self.divider = Divider::Reset,
            // The first update comes half a second after the divider is let go (data sheet, "Divider control").
            (Divider::Reset, false) => {
                self.divider = Divider::Running { origin: self.synced.0.wrapping_sub(SECOND / 2) };
            }
            _ => {}
        }
    }

    #[must_use]
    pub fn save(&self) -> RtcState {
        let Self { bytes, index, nmi_masked, divider, synced, line: _, owed, deadline: _ } = self;
        RtcState {
            bytes: bytes.to_vec(),
            index: *index,
            nmi_masked: *nmi_masked,
            divider: *divider,
            synced: *synced,
            owed: owed.count(),
        }
    }

    /// Bytes that `state` lacks stay as they are.
    pub fn restore(&mut self, state: &RtcState) {
        let RtcState { bytes, index, nmi_masked, divider, synced, owed } = state;
        for (byte, saved) in self.bytes.iter_mut().zip(bytes) {
            *byte = *saved;
        }
        self.bytes[REGISTER_A] &= !a::UIP;
        self.bytes[REGISTER_C] &= c::PF | c::AF | c::UF;
        self.index = *index & INDEX;
        self.nmi_masked = *nmi_masked;
        self.divider = *divider;
        self.synced = *synced;
        self.owed.set(*owed);
        self.update_line();
    }
}

/// What firmware leaves in the memory before it sets the clock.
fn initial_memory(config: &RtcConfig) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    bytes[REGISTER_A] = a::DIVIDER_32KHZ | a::RATE_DEFAULT;
    bytes[REGISTER_B] = B::HOURS_24.bits();
    bytes[REGISTER_D] = VRT;
    bytes[cmos::EQUIPMENT] = cmos::EQUIPMENT_FPU_MOUSE;
    let mut put = |at: usize, count: usize, value: u64| {
        for (byte, v) in bytes.iter_mut().skip(at).zip(value.to_le_bytes()).take(count) {
            *byte = v;
        }
    };
    let below = config.memory_below_4g;
    let extended = (below.saturating_sub(MIB) / KIB).min(0xffff);
    put(cmos::BASE_MEMORY, 2, (below / KIB).min(640));
    put(cmos::EXTENDED_MEMORY, 2, extended);
    put(cmos::EXTENDED_MEMORY_POST, 2, extended);
    put(cmos::MEMORY_ABOVE_16M, 2, (below.saturating_sub(16 * MIB) / (64 * KIB)).min(0xffff));
    put(cmos::MEMORY_ABOVE_4G, 3, (config.memory_above_4g / (64 * KIB)).min(0xff_ffff));
    let sum: u16 = bytes[cmos::CHECKSUM_FIRST..cmos::CHECKSUM].iter().map(|&b| u16::from(b)).sum();
    bytes[cmos::CHECKSUM..][..2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

impl PortDevice for Rtc {
    fn port_read(&mut self, now: Time, offset: u16, width: Width) -> u32 {
        read_bytes(offset, width, PORTS, |offset| match offset {
            // The index cannot be read.
            INDEX_OFFSET => 0xff,
            _ => self.read_data(now),
        })
    }

    fn port_write(&mut self, now: Time, offset: u16, width: Width, value: u32) {
        write_bytes(offset, width, PORTS, value, |offset, value| match offset {
            INDEX_OFFSET => {
                self.index = value & INDEX;
                self.nmi_masked = value & NMI_MASK != 0;
            }
            _ => self.write_data(now, value),
        });
    }
}

impl TimedDevice for Rtc {
    fn deadline(&self) -> Option<Time> {
        self.deadline
    }

    fn advance(&mut self, now: Time) {
        self.sync(now);
        self.update_line();
    }
}
