//! The TSC as the one time base: its frequency, and the wall clock at start.
//!
//! The frequency comes from CPUID where it is given and agrees with a measurement, else from the measurement itself: against the ACPI PM
//! timer, the HPET, or the PIT, in this order.

use crate::acpi::{Platform, PmTimer};
use crate::cpu::{cpuid, cr, port, relax};
use crate::mm::{self, table::MemoryType};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use x86defs::Hpa;

static HZ: AtomicU64 = AtomicU64::new(0);

/// The host's time-stamp counter.
#[inline]
#[must_use]
pub fn now() -> u64 {
    cr::tsc()
}

/// Its frequency in Hz; 0 before [`calibrate`].
#[inline]
#[must_use]
pub fn hz() -> u64 {
    HZ.load(Ordering::Relaxed)
}

/// Waits for so many microseconds; as long as the TSC's frequency is unknown, by an estimate that is rather too long.
pub fn delay_us(us: u64) {
    const AT_MOST: u64 = 5_000_000_000;
    let hz = if hz() == 0 { AT_MOST } else { hz() };
    let (start, ticks) = (now(), (u128::from(us) * u128::from(hz) / 1_000_000) as u64);
    while now().wrapping_sub(start) < ticks {
        relax();
    }
}

/// Where the frequency comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// CPUID leaf 0x15, 0x16 or 0x40000010.
    Cpuid(u32),
    PmTimer,
    Hpet,
    Pit,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpuid(leaf) => write!(f, "CPUID {leaf:#x}"),
            Self::PmTimer => f.write_str("ACPI PM timer"),
            Self::Hpet => f.write_str("HPET"),
            Self::Pit => f.write_str("PIT"),
        }
    }
}

/// The result of calibration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Calibration {
    pub hz: u64,
    pub source: Source,
    /// What CPUID says although a measurement contradicts it.
    pub refuted: Option<(u32, u64)>,
}

/// No clock to compare the TSC with, and nothing in CPUID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoClock;

/// A counter of known frequency that counts up and wraps.
trait Reference {
    const SOURCE: Source;
    fn hz(&self) -> u64;
    /// All ones: where it wraps.
    fn mask(&self) -> u64;
    fn read(&self) -> u64;
    /// The TSC; a test has its own.
    fn tsc(&self) -> u64 {
        now()
    }
}

struct Pm(PmTimer);

impl Reference for Pm {
    const SOURCE: Source = Source::PmTimer;
    fn hz(&self) -> u64 {
        3_579_545
    }
    fn mask(&self) -> u64 {
        // 24 bits are enough for 4.7 s, and timers that claim 32 bits and have 24 exist.
        0xff_ffff
    }
    fn read(&self) -> u64 {
        // SAFETY: the FADT names this register, and reading it has no side effect.
        u64::from(unsafe { self.0.register.read(4) }) & self.mask()
    }
}

struct Hpet {
    base: *mut u8,
    hz: u64,
}

impl Hpet {
    /// Maps it and makes it count. `None` if its capabilities make no sense.
    fn new(address: Hpa) -> Option<Self> {
        const ENABLE: u64 = 1;
        let base = mm::map_mmio(address, 0x400, MemoryType::Uncached);
        // SAFETY: the HPET table names this address; capabilities and configuration are 64-bit registers at 0 and 0x10 (IA-PC HPET 1.0a, 2.3).
        let capabilities = unsafe { base.cast::<u64>().read_volatile() };
        let femtoseconds = capabilities >> 32;
        if femtoseconds == 0 || femtoseconds > 100_000_000 {
            return None;
        }
        // SAFETY: as above; only the counter is started.
        unsafe {
            let configuration = base.add(0x10).cast::<u64>();
            configuration.write_volatile(configuration.read_volatile() | ENABLE);
        }
        Some(Self { base, hz: 1_000_000_000_000_000 / femtoseconds })
    }
}

impl Reference for Hpet {
    const SOURCE: Source = Source::Hpet;
    fn hz(&self) -> u64 {
        self.hz
    }
    fn mask(&self) -> u64 {
        0xffff_ffff
    }
    fn read(&self) -> u64 {
        // SAFETY: the main counter's low half.
        u64::from(unsafe { self.base.add(0xf0).cast::<u32>().read_volatile() })
    }
}

/// Channel 2 of the PIT in mode 2, which no interrupt depends on.
struct Pit;

impl Pit {
    fn new() -> Self {
        // SAFETY: the PIT and the speaker gate are the host's alone. Gate on, speaker off; channel 2, both bytes, mode 2, reload 65536.
        unsafe {
            let gate = port::read_u8(0x61) & !3;
            port::write_u8(0x61, gate | 1);
            port::write_u8(0x43, 0xb4);
            port::write_u8(0x42, 0);
            port::write_u8(0x42, 0);
        }
        Self
    }
}

impl Reference for Pit {
    const SOURCE: Source = Source::Pit;
    fn hz(&self) -> u64 {
        1_193_182
    }
    fn mask(&self) -> u64 {
        0xffff
    }
    fn read(&self) -> u64 {
        // SAFETY: as above; latches channel 2 and reads both bytes.
        let count = unsafe {
            port::write_u8(0x43, 0x80);
            u64::from(port::read_u8(0x42)) | u64::from(port::read_u8(0x42)) << 8
        };
        // It counts down.
        count.wrapping_neg() & self.mask()
    }
}

/// One reading of the TSC and of another counter, just after that has changed: it may be much coarser than the TSC. The best of a few,
/// since an SMI or the host below us may come in between.
pub(crate) fn sample(tsc: impl Fn() -> u64, read: impl Fn() -> u64) -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..8 {
        let old = read();
        // A counter at rest is noticed elsewhere.
        for _ in 0..1000 {
            let before = tsc();
            let count = read();
            let gap = tsc() - before;
            if count != old {
                if gap < best.0 {
                    best = (gap, before + gap / 2, count);
                }
                break;
            }
        }
    }
    if best.0 == u64::MAX { (tsc(), read()) } else { (best.1, best.2) }
}

/// Windows of a measurement, of about 20 ms each.
const WINDOWS: usize = 3;

/// TSC ticks a second; `None` if the reference does not count.
fn measure<R: Reference>(reference: &R) -> Option<(u64, Source)> {
    let wanted = reference.hz() / 50;
    let mut results = [0; WINDOWS];
    let (mut ticks, mut counts) = (0, 0);
    let (mut tsc_0, mut count_0) = sample(|| reference.tsc(), || reference.read());
    for result in &mut results {
        let elapsed = |count: u64| count.wrapping_sub(count_0) & reference.mask();
        // A read takes about a microsecond at least on hardware, and many instructions in an emulator: a counter at rest is noticed.
        let mut reads = 0u32;
        while elapsed(reference.read()) < wanted {
            reads += 1;
            if reads == 1000 && elapsed(reference.read()) == 0 || reads == 10_000_000 {
                return None;
            }
            relax();
        }
        let (tsc_1, count_1) = sample(|| reference.tsc(), || reference.read());
        let (t, c) = (tsc_1 - tsc_0, elapsed(count_1));
        *result = frequency(t, c, reference.hz());
        (ticks, counts) = (ticks + t, counts + c);
        (tsc_0, count_0) = (tsc_1, count_1);
    }
    Some((combine(results, frequency(ticks, counts, reference.hz())), R::SOURCE))
}

/// All windows together are the most precise, unless one of them is off: then the middle one.
fn combine(mut windows: [u64; WINDOWS], whole: u64) -> u64 {
    windows.sort_unstable();
    let middle = windows[WINDOWS / 2];
    if whole.abs_diff(middle) <= middle / 2000 { whole } else { middle }
}

fn frequency(ticks: u64, counts: u64, hz: u64) -> u64 {
    (u128::from(ticks) * u128::from(hz) / u128::from(counts.max(1))) as u64
}

/// What CPUID says of the TSC's frequency: (leaf, Hz).
fn by_cpuid() -> Option<(u32, u64)> {
    let max = cpuid(0, 0).eax;
    if cpuid(1, 0).ecx >> 31 != 0 && (0x4000_0010..0x4000_1000).contains(&cpuid(0x4000_0000, 0).eax) {
        let khz = cpuid(0x4000_0010, 0).eax;
        if khz != 0 {
            return Some((0x4000_0010, u64::from(khz) * 1000));
        }
    }
    if max < 0x15 {
        return None;
    }
    let (ratio, base_mhz) = (cpuid(0x15, 0), if max >= 0x16 { cpuid(0x16, 0).eax & 0xffff } else { 0 });
    if ratio.eax == 0 || ratio.ebx == 0 {
        return None;
    }
    match (ratio.ecx, base_mhz) {
        // Without the crystal's frequency, the TSC runs at the base frequency (SDM vol. 3B, 20.7.3).
        (0, 0) => None,
        (0, mhz) => Some((0x16, u64::from(mhz) * 1_000_000)),
        (crystal, _) => Some((0x15, frequency(u64::from(ratio.ebx), u64::from(ratio.eax), u64::from(crystal)))),
    }
}

/// Settles between CPUID and measurement: CPUID is exact where it is right, and right if it is within 1 % of what is measured.
fn settle(cpuid: Option<(u32, u64)>, measured: Option<(u64, Source)>) -> Result<Calibration, NoClock> {
    match (cpuid, measured) {
        (Some((leaf, hz)), Some((measured, _))) if hz.abs_diff(measured) <= measured / 100 => {
            Ok(Calibration { hz, source: Source::Cpuid(leaf), refuted: None })
        }
        (refuted, Some((hz, source))) if hz > 0 => Ok(Calibration { hz, source, refuted }),
        (Some((leaf, hz)), _) if hz > 0 => Ok(Calibration { hz, source: Source::Cpuid(leaf), refuted: None }),
        _ => Err(NoClock),
    }
}

/// Finds the TSC's frequency. Takes about 60 ms.
///
/// # Errors
/// If there is nothing to find it from.
pub fn calibrate(platform: &Platform) -> Result<Calibration, NoClock> {
    let measured = platform
        .fixed
        .pm_timer
        .and_then(|t| measure(&Pm(t)))
        .or_else(|| measure(&Hpet::new(platform.hpet?)?))
        .or_else(|| measure(&Pit::new()));
    let calibration = settle(by_cpuid(), measured)?;
    HZ.store(calibration.hz, Ordering::Relaxed);
    Ok(calibration)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    #[test]
    fn cpuid_is_believed_only_if_measured_so() {
        let measured = Some((1_000_050_000, Source::PmTimer));
        let good = settle(Some((0x15, 1_000_000_000)), measured).unwrap();
        assert_eq!((good.hz, good.source), (1_000_000_000, Source::Cpuid(0x15)));
        let wrong = settle(Some((0x16, 3_500_000_000)), measured).unwrap();
        assert_eq!((wrong.hz, wrong.source, wrong.refuted), (1_000_050_000, Source::PmTimer, Some((0x16, 3_500_000_000))));
        assert_eq!(settle(Some((0x15, 7)), None).unwrap().hz, 7);
        assert_eq!(settle(None, None), Err(NoClock));
    }

    #[test]
    fn a_window_that_is_off_does_not_count() {
        assert_eq!(combine([1_000_010_000, 999_990_000, 1_000_000_500], 1_000_000_300), 1_000_000_300);
        assert_eq!(combine([1_000_010_000, 999_990_000, 1_300_000_000], 1_100_000_000), 1_000_010_000);
    }

    /// A TSC of 1 GHz that advances at each look, and a counter of 1 MHz beside it, or one at rest.
    struct Fake {
        time: Cell<u64>,
        counts: bool,
    }

    impl Fake {
        fn pass(&self, ticks: u64) -> u64 {
            self.time.set(self.time.get() + ticks);
            self.time.get()
        }
    }

    impl Reference for Fake {
        const SOURCE: Source = Source::Pit;
        fn hz(&self) -> u64 {
            1_000_000
        }
        fn mask(&self) -> u64 {
            0xffff
        }
        fn read(&self) -> u64 {
            let time = self.pass(300);
            if self.counts { (time / 1000) & self.mask() } else { 5 }
        }
        fn tsc(&self) -> u64 {
            // Now and then something else runs for 200 us.
            let late = if self.time.get().is_multiple_of(7) { 200_000 } else { 0 };
            self.pass(13 + late)
        }
    }

    #[test]
    fn a_counter_is_measured_and_one_at_rest_is_noticed() {
        let (hz, _) = measure(&Fake { time: Cell::new(65_000_000), counts: true }).unwrap();
        assert!(hz.abs_diff(1_000_000_000) < 20_000, "{hz}");
        assert_eq!(measure(&Fake { time: Cell::new(0), counts: false }), None);
    }
}
