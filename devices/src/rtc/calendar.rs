//! Dates of the Gregorian calendar, and the bytes that the clock keeps them in.

use super::spec::{B, PM};

pub const SECONDS_PER_DAY: u64 = 86_400;

/// A day of the calendar. Fields may be out of range until [`Date::clamped`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Date {
    pub year: u32,
    /// 1 to 12.
    pub month: u32,
    /// 1 to 31.
    pub day: u32,
}

const fn is_leap(year: u32) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

const fn days_in_month(year: u32, month: u32) -> u32 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days in 400 years, 100 years, 4 years.
const DAYS_400: u64 = 146_097;

impl Date {
    /// The nearest date that there is.
    pub fn clamped(self) -> Self {
        let month = self.month.clamp(1, 12);
        Self { year: self.year, month, day: self.day.clamp(1, days_in_month(self.year, month)) }
    }

    /// Days since 1 March of the year 0. Leap days come last in such years, which makes the count even.
    fn day_number(self) -> u64 {
        let Self { year, month, day } = self.clamped();
        let (year, month) = if month > 2 { (u64::from(year), month - 3) } else { (u64::from(year) + 399, month + 9) };
        // For a January or February of the year 0 all is moved on by 400 years, and back again.
        let back = if self.month > 2 { 0 } else { DAYS_400 };
        let days = year * 365 + year / 4 - year / 100 + year / 400 + u64::from((153 * month + 2) / 5 + day - 1);
        days.saturating_sub(back)
    }

    fn from_day_number(days: u64) -> Self {
        let era = days / DAYS_400;
        let day = days % DAYS_400;
        // Years of 365 days, corrected for the leap days before.
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (year * 365 + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let next_year = u64::from(month >= 10);
        Self {
            year: (era * 400 + year + next_year) as u32,
            month: (if month < 10 { month + 3 } else { month - 9 }) as u32,
            day: day as u32,
        }
    }

    /// The date `days` later.
    #[must_use]
    pub fn plus(self, days: u64) -> Self {
        Self::from_day_number(self.day_number().saturating_add(days))
    }

    /// The date, `days` after 1 January 1970, and its day of the week (1 is Sunday).
    pub fn from_unix_days(days: u64) -> (Self, u32) {
        let epoch = Self { year: 1970, month: 1, day: 1 };
        // It was a Thursday.
        (epoch.plus(days), ((days + 4) % 7) as u32 + 1)
    }
}

/// How the clock's bytes are to be read: register B's DM and 24/12 bits.
#[derive(Clone, Copy)]
pub struct Format {
    pub binary: bool,
    pub hours_24: bool,
}

impl Format {
    pub fn new(b: B) -> Self {
        Self { binary: b.contains(B::DM), hours_24: b.contains(B::HOURS_24) }
    }

    pub fn decode(self, byte: u8) -> u32 {
        let byte = u32::from(byte);
        if self.binary { byte } else { (byte >> 4) * 10 + (byte & 0xf) }
    }

    /// `value` is below 100.
    pub fn encode(self, value: u32) -> u8 {
        let value = (value % 100) as u8;
        if self.binary { value } else { (value / 10) << 4 | (value % 10) }
    }

    pub fn decode_hours(self, byte: u8) -> u32 {
        if self.hours_24 {
            return self.decode(byte);
        }
        let hour = self.decode(byte & !PM);
        // 12 comes before 1.
        (if hour == 12 { 0 } else { hour }) + if byte & PM != 0 { 12 } else { 0 }
    }

    pub fn encode_hours(self, hour: u32) -> u8 {
        if self.hours_24 {
            return self.encode(hour);
        }
        let half = if hour >= 12 { PM } else { 0 };
        half | self.encode(if hour.is_multiple_of(12) { 12 } else { hour % 12 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn date(year: u32, month: u32, day: u32) -> Date {
        Date { year, month, day }
    }

    #[test]
    fn known_days() {
        assert_eq!(Date::from_unix_days(0), (date(1970, 1, 1), 5));
        // 2024-02-29 was a Thursday, 2100-02-28 is a Sunday.
        assert_eq!(Date::from_unix_days(19_782), (date(2024, 2, 29), 5));
        assert_eq!(Date::from_unix_days(47_540), (date(2100, 2, 28), 1));
        assert_eq!(date(2100, 2, 28).plus(1), date(2100, 3, 1));
        assert_eq!(date(2000, 2, 28).plus(1), date(2000, 2, 29));
        assert_eq!(date(1999, 12, 31).plus(1), date(2000, 1, 1));
        assert_eq!(date(0, 1, 1).plus(0), date(0, 3, 1), "the count's start: there is nothing before it");
    }

    #[test]
    fn a_day_that_is_not_there_counts_as_the_last_one() {
        assert_eq!(date(2023, 2, 31).plus(1), date(2023, 3, 1));
        assert_eq!(date(2023, 0, 0).plus(1), date(2023, 1, 2));
    }

    proptest! {
        /// Against the plain way: day by day.
        #[test]
        fn dates_go_on_day_by_day(start in 0..200_000u64) {
            let (mut date, _) = Date::from_unix_days(start);
            for n in 0..400 {
                prop_assert_eq!(Date::from_unix_days(start + n).0, date);
                date.day += 1;
                if date.day > days_in_month(date.year, date.month) {
                    (date.day, date.month) = (1, date.month + 1);
                }
                if date.month > 12 {
                    (date.month, date.year) = (1, date.year + 1);
                }
            }
        }

        #[test]
        fn hours_survive_both_formats(hour in 0..24u32, binary: bool, hours_24: bool) {
            let format = Format { binary, hours_24 };
            prop_assert_eq!(format.decode_hours(format.encode_hours(hour)), hour);
        }
    }

    #[test]
    fn twelve_hour_bytes() {
        let format = Format { binary: false, hours_24: false };
        let bytes = [0, 1, 11, 12, 13, 23].map(|h| format.encode_hours(h));
        assert_eq!(bytes, [0x12, 0x01, 0x11, 0x92, 0x81, 0x91]);
    }
}
