//! The wall clock at start, from the real-time clock (MC146818A data sheet).

use crate::{cpu::port, tsc};
use spin::Once;

/// Raw registers: seconds, minutes, hours, day, month, year, century (0 if there is none), status B.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Raw {
    second: u8,
    minute: u8,
    hour: u8,
    day: u8,
    month: u8,
    year: u8,
    century: u8,
    status_b: u8,
}

/// Status A: an update is in progress. Status B: 24 hours; binary.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
const HOURS_24: u8 = 1 << 1;
const BINARY: u8 = 1 << 2;
const PM: u8 = 1 << 7;

fn cmos(index: u8) -> u8 {
    // SAFETY: the RTC is the host's alone at this time; the index keeps NMIs enabled.
    unsafe {
        port::write_u8(0x70, index & 0x7f);
        port::read_u8(0x71)
    }
}

fn read_raw(century: u8) -> Raw {
    Raw {
        second: cmos(0),
        minute: cmos(2),
        hour: cmos(4),
        day: cmos(7),
        month: cmos(8),
        year: cmos(9),
        century: if century == 0 { 0 } else { cmos(century) },
        status_b: cmos(0xb),
    }
}

/// Seconds since 1970-01-01 00:00 UTC by the RTC, which is taken to run in UTC. `century` is the CMOS index of the century, or 0.
/// `None` if the clock does not hold a date.
#[must_use]
pub fn read(century: u8) -> Option<u64> {
    // Two equal readings outside of an update; an update takes 2 ms at most, and a clock without battery must not hang the host.
    let mut previous = Raw::default();
    for _ in 0..20_000 {
        if cmos(0xa) & UPDATE_IN_PROGRESS != 0 {
            continue;
        }
        let raw = read_raw(century);
        if raw == previous {
            return seconds(raw);
        }
        previous = raw;
    }
    None
}

/// The wall clock's last reading: seconds since 1970, and the TSC then.
static READING: Once<(u64, u64)> = Once::new();

/// Reads the clock, once. False if it holds no date; the wall clock then starts in 1970.
pub fn init(century: u8) -> bool {
    let seconds = read(century);
    READING.call_once(|| (seconds.unwrap_or(0), tsc::now()));
    seconds.is_some()
}

/// Milliseconds since 1970-01-01 00:00 UTC at a TSC value after [`init`].
#[must_use]
pub fn unix_ms(at: u64) -> u64 {
    let Some(&(seconds, start)) = READING.get() else { return 0 };
    let elapsed = u128::from(at.saturating_sub(start)) * 1000 / u128::from(tsc::hz().max(1));
    seconds * 1000 + elapsed as u64
}

fn seconds(raw: Raw) -> Option<u64> {
    let binary = raw.status_b & BINARY != 0;
    let value = |v: u8| -> Option<u64> {
        if binary {
            Some(u64::from(v))
        } else {
            (v & 0xf < 10 && v >> 4 < 10).then(|| u64::from(v >> 4) * 10 + u64::from(v & 0xf))
        }
    };
    let mut hour = value(raw.hour & !PM)?;
    if raw.status_b & HOURS_24 == 0 {
        hour = hour % 12 + if raw.hour & PM != 0 { 12 } else { 0 };
    }
    let century = value(raw.century).filter(|c| (19..30).contains(c));
    let year = value(raw.year)?;
    let year = century.map_or(if year < 70 { 2000 } else { 1900 }, |c| c * 100) + year;
    let (month, day, minute, second) = (value(raw.month)?, value(raw.day)?, value(raw.minute)?, value(raw.second)?);
    let sane = (1970..3000).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 61;
    sane.then(|| days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days(year: u64, month: u64, day: u64) -> u64 {
    // Counted in years that begin in March, so that the leap day comes last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bcd_and_binary_24_and_12_hours() {
        let raw = Raw { second: 0x56, minute: 0x34, hour: 0x12, day: 0x29, month: 2, year: 0x24, century: 0x20, status_b: 2 };
        assert_eq!(seconds(raw), Some(1_709_210_096));
        let binary = Raw { second: 56, minute: 34, hour: 12, day: 29, year: 24, century: 0, status_b: 6, ..raw };
        assert_eq!(seconds(binary), Some(1_709_210_096));
        // 12 PM is noon, 12 AM midnight.
        assert_eq!(seconds(Raw { hour: 0x92, status_b: 0, ..raw }), Some(1_709_210_096));
        assert_eq!(seconds(Raw { hour: 0x12, status_b: 0, ..raw }), Some(1_709_210_096 - 43_200));
    }

    #[test]
    fn a_clock_without_a_date_is_noticed() {
        assert_eq!(seconds(Raw { day: 0xff, month: 0xff, ..Raw::default() }), None);
        assert_eq!(seconds(Raw { status_b: 2, ..Raw::default() }), None);
    }
}
