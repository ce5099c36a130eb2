//! Memory sizes on the command line: a number with an optional binary unit.

use std::{fmt, str::FromStr};

/// An amount of memory in whole MiB, at least 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MemorySize(u32);

impl MemorySize {
    #[must_use]
    pub const fn from_mib(mib: u32) -> Self {
        Self(mib)
    }
    #[must_use]
    pub const fn mib(self) -> u32 {
        self.0
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1024) { write!(f, "{} GiB", self.0 / 1024) } else { write!(f, "{} MiB", self.0) }
    }
}

/// Why a text is no memory size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SizeError {
    NotANumber,
    UnknownUnit,
    /// Not a whole number of MiB, zero, or more than 4 PiB.
    OutOfRange,
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotANumber => "not a number (write 1024, 1024M or 1G)",
            Self::UnknownUnit => "unknown unit (K, M, G or T; MiB without one)",
            Self::OutOfRange => "must be a whole number of MiB, at least 1M",
        })
    }
}

impl std::error::Error for SizeError {}

impl FromStr for MemorySize {
    type Err = SizeError;

    /// `N` is in MiB, as in QEMU and xl; `K`, `M`, `G`, `T`, also with `B` or `iB`, are powers of 1024. Case does not matter.
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| SizeError::NotANumber)?;
        let kib_per_unit: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
            "k" | "kb" | "kib" => 1,
            "" | "m" | "mb" | "mib" => 1 << 10,
            "g" | "gb" | "gib" => 1 << 20,
            "t" | "tb" | "tib" => 1 << 30,
            _ => return Err(SizeError::UnknownUnit),
        };
        let kib = number.checked_mul(kib_per_unit).ok_or(SizeError::OutOfRange)?;
        if kib == 0 || kib % 1024 != 0 {
            return Err(SizeError::OutOfRange);
        }
        u32::try_from(kib / 1024).map(Self).map_err(|_| SizeError::OutOfRange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, mib) in [("512", 512), ("512M", 512), ("2g", 2048), ("1 GiB", 1024), ("2048K", 2), ("1TB", 1 << 20)] {
            assert_eq!(text.parse::<MemorySize>().map(MemorySize::mib), Ok(mib), "{text}");
        }
    }

    #[test]
    fn refusals() {
        for (text, error) in [
            ("", SizeError::NotANumber),
            ("G", SizeError::NotANumber),
            ("-1", SizeError::NotANumber),
            ("1.5G", SizeError::UnknownUnit),
            ("1X", SizeError::UnknownUnit),
            ("0", SizeError::OutOfRange),
            ("1023K", SizeError::OutOfRange),
            ("99999999999999999T", SizeError::OutOfRange),
        ] {
            assert_eq!(text.parse::<MemorySize>(), Err(error), "{text}");
        }
    }
}
