//! The MC146818 real-time clock and CMOS memory (Motorola MC146818A data sheet; ICH9 data sheet 13.6).

use crate::{Duration, Line, PortDevice, Time, TimedDevice, Width};

const SECOND: u64 = 1_000_000_000;
/// UIP is set this long before the update.
const UIP_BEFORE: u64 = 244_000;
const REG_A: usize = 0xa;
const REG_B: usize = 0xb;
const REG_C: usize = 0xc;
const REG_D: usize = 0xd;
const CENTURY: usize = 0x32;
const B_SET: u8 = 1 << 7;
const B_PERIODIC: u8 = 1 << 6;
const B_ALARM: u8 = 1 << 5;
const B_UPDATE: u8 = 1 << 4;
const B_BINARY: u8 = 1 << 2;
const B_24H: u8 = 1 << 1;
const C_IRQF: u8 = 1 << 7;

/// Memory sizes for the CMOS fields that firmware leaves behind, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CmosMemory {
    pub below_4g: u64,
    pub above_4g: u64,
}

/// The clock: index port (offset 0) and data port (offset 1).
pub struct Rtc {
    cmos: [u8; 128],
    index: u8,
    irq: Line,
    /// Seconds since 1970 at time 0, adjusted when the guest sets the clock.
    epoch: i64,
    /// Time fields are frozen while SET is on.
    frozen: Option<Time>,
    /// The last second for which update and alarm were looked at.
    last_update: u64,
    /// Periods of the periodic interrupt up to here have been seen.
    last_period: u64,
}

impl Rtc {
    /// `unix`: seconds since 1970 at time 0 of the time base.
    #[must_use]
    pub fn new(irq: Line, unix: i64, now: Time, memory: CmosMemory) -> Self {
        let mut cmos = [0; 128];
        let mut put = |at: usize, value: u64, bytes: usize| {
            for (slot, byte) in cmos.iter_mut().skip(at).take(bytes).zip(value.to_le_bytes()) {
                *slot = byte;
            }
        };
        put(0x15, 640, 2);
        let extended = (memory.below_4g >> 10).saturating_sub(1024).min(0xfc00);
        put(0x17, extended, 2);
        put(0x30, extended, 2);
        put(0x34, (memory.below_4g >> 16).saturating_sub(256).min(0xffff), 2);
        put(0x5b, memory.above_4g >> 16, 3);
        cmos[REG_A] = 0x26;
        cmos[REG_B] = B_24H;
        cmos[REG_D] = 0x80;
        Self { cmos, index: 0, irq, epoch: unix, frozen: None, last_update: now.0 / SECOND, last_period: 0 }
    }

    fn b(&self) -> u8 {
        self.cmos[REG_B]
    }

    fn encode(&self, value: u8) -> u8 {
        if self.b() & B_BINARY != 0 { value } else { value / 10 << 4 | value % 10 }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.b() & B_BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.b() & B_24H != 0 {
            return self.encode(hour);
        }
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { 0x80 } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.b() & B_24H != 0 {
            return self.decode(value);
        }
        self.decode(value & 0x7f) % 12 + if value & 0x80 != 0 { 12 } else { 0 }
    }

    fn field(&self, index: usize, now: Time) -> Option<u8> {
        let at = self.frozen.unwrap_or(now);
        let unix = self.epoch.saturating_add((at.0 / SECOND) as i64);
        let (days, second) = (unix.div_euclid(86_400), unix.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        Some(match index {
            0 => self.encode((second % 60) as u8),
            2 => self.encode((second / 60 % 60) as u8),
            4 => self.encode_hour((second / 3600) as u8),
            // Sunday is 1; 1970-01-01 was a Thursday.
            6 => self.encode(((days + 4).rem_euclid(7) + 1) as u8),
            7 => self.encode(day),
            8 => self.encode(month),
            9 => self.encode(year.rem_euclid(100) as u8),
            CENTURY => self.encode((year / 100).rem_euclid(100) as u8),
            _ => return None,
        })
    }

    /// Takes the time fields as they stand in CMOS (written while SET was on) as the time `now`.
    fn set_clock(&mut self, now: Time) {
        let year = i64::from(self.decode(self.cmos[CENTURY])) * 100 + i64::from(self.decode(self.cmos[9]));
        let days = days_from_civil(year, self.decode(self.cmos[8]), self.decode(self.cmos[7]));
        let seconds = i64::from(self.decode_hour(self.cmos[4])) * 3600
            + i64::from(self.decode(self.cmos[2])) * 60
            + i64::from(self.decode(self.cmos[0]));
        self.epoch = days.saturating_mul(86_400).saturating_add(seconds).saturating_sub((now.0 / SECOND) as i64);
    }

    fn freeze(&mut self, now: Time) {
        for index in [0, 2, 4, 6, 7, 8, 9, CENTURY] {
            if let Some(value) = self.field(index, now) {
                self.cmos[index] = value;
            }
        }
        self.frozen = Some(now);
    }

    /// Length of the periodic interrupt's period in 1/32768 s; `None` if it is off.
    fn period(&self) -> Option<u64> {
        match self.cmos[REG_A] & 0xf {
            0 => None,
            // The two fastest codes repeat later ones with the 32.768-kHz time base.
            rate @ (1 | 2) => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    fn raise(&mut self, flag: u8) {
        self.cmos[REG_C] |= flag;
        let enabled = self.cmos[REG_C] & self.b() & (B_PERIODIC | B_ALARM | B_UPDATE) != 0;
        if enabled {
            self.cmos[REG_C] |= C_IRQF;
        }
        self.irq.set(self.cmos[REG_C] & C_IRQF != 0);
    }

    fn ticks(now: Time) -> u64 {
        (u128::from(now.0) * 32_768 / u128::from(SECOND)) as u64
    }

    fn alarm_matches(&self, now: Time) -> bool {
        [(1, 0), (3, 2), (5, 4)].into_iter().all(|(alarm, field)| {
            let wanted = self.cmos.get(alarm).copied().unwrap_or(0);
            wanted & 0xc0 == 0xc0 || self.field(field, now) == Some(wanted)
        })
    }
}

impl PortDevice for Rtc {
    fn port_read(&mut self, now: Time, offset: u16, width: Width) -> u32 {
        if offset == 0 || width != Width::Byte {
            return width.mask() as u32;
        }
        self.advance(now);
        let index = usize::from(self.index);
        let value = match index {
            REG_A => {
                let before_update = now.0 % SECOND >= SECOND - UIP_BEFORE;
                let updating = before_update && self.b() & B_SET == 0;
                self.cmos[REG_A] & 0x7f | u8::from(updating) << 7
            }
            REG_C => {
                let value = core::mem::take(&mut self.cmos[REG_C]);
                self.irq.set(false);
                value
            }
            _ if self.frozen.is_none() => self.field(index, now).unwrap_or_else(|| self.cmos.get(index).copied().unwrap_or(0xff)),
            _ => self.cmos.get(index).copied().unwrap_or(0xff),
        };
        value.into()
    }

    fn port_write(&mut self, now: Time, offset: u16, _: Width, value: u32) {
        let value = value as u8;
        if offset == 0 {
            self.index = value & 0x7f;
            return;
        }
        self.advance(now);
        let index = usize::from(self.index);
        match index {
            REG_A => {
                self.cmos[REG_A] = value & 0x7f;
                self.last_period = self.period().map_or(0, |p| Self::ticks(now) / p);
            }
            REG_B => {
                let old = self.b();
                if value & B_SET != 0 && old & B_SET == 0 {
                    self.freeze(now);
                }
                // Turning SET on turns the update interrupt off.
                self.cmos[REG_B] = if value & B_SET != 0 { value & !B_UPDATE } else { value };
                if value & B_SET == 0 && old & B_SET != 0 {
                    self.set_clock(now);
                    self.frozen = None;
                }
                self.last_period = self.period().map_or(0, |p| Self::ticks(now) / p);
                self.last_update = now.0 / SECOND;
                self.raise(0);
            }
            REG_C | REG_D => {}
            0 | 2 | 4 | 6..=9 | CENTURY => {
                if self.frozen.is_none() {
                    // A write without SET: take the other fields as they are now.
                    self.freeze(now);
                    self.cmos[index] = value;
                    self.set_clock(now);
                    self.frozen = None;
                } else {
                    self.cmos[index] = value;
                }
            }
            _ => {
                if let Some(slot) = self.cmos.get_mut(index) {
                    *slot = value;
                }
            }
        }
    }
}

impl TimedDevice for Rtc {
    fn deadline(&self) -> Option<Time> {
        let b = self.b();
        let pending = self.cmos[REG_C] & C_IRQF != 0;
        let update = (b & (B_ALARM | B_UPDATE) != 0 && b & B_SET == 0).then(|| Time((self.last_update + 1) * SECOND));
        let periodic = match self.period() {
            // Nothing to do until the guest has read register C.
            Some(period) if b & B_PERIODIC != 0 && !pending => {
                let tick = (self.last_period + 1) * period;
                Some(Time((u128::from(tick) * u128::from(SECOND)).div_ceil(32_768) as u64) + Duration(1))
            }
            _ => None,
        };
        [update, periodic].into_iter().flatten().min()
    }

    fn advance(&mut self, now: Time) {
        let second = now.0 / SECOND;
        if second > self.last_update && self.b() & B_SET == 0 {
            // Only the latest second can match an alarm that was missed while nobody looked: look at a bounded number of them.
            let from = (self.last_update + 1).max(second.saturating_sub(60));
            let alarm = (from..=second).any(|s| self.alarm_matches(Time(s * SECOND)));
            self.last_update = second;
            self.raise(B_UPDATE | if alarm { B_ALARM } else { 0 });
        }
        if let Some(period) = self.period() {
            let n = Self::ticks(now) / period;
            if n > self.last_period {
                self.last_period = n;
                self.raise(B_PERIODIC);
            }
        }
    }
}

/// Year, month 1-12, day 1-31 of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
fn civil(days: i64) -> (i64, u8, u8) {
    // Years begin in March here, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let calendar_month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + i64::from(calendar_month <= 2), calendar_month as u8, day as u8)
}

fn days_from_civil(year: i64, month: u8, day: u8) -> i64 {
    let (month, day) = (i64::from(month.clamp(1, 12)), i64::from(day.clamp(1, 31)));
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}
