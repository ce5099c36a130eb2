//! Why a guest configuration is refused.

use super::{CpuidError, Key};
use crate::{cpulist::CpuListError, cpumask::CpuMask, loader::LoadError};
use alloc::string::String;
use core::fmt;
use x86defs::CreateError;

/// One reason to refuse a guest (or, among [`super::GuestConfig::warnings`], one remark). `Display` gives
/// `FILE:LINE: KEY: REASON`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    pub file: String,
    /// Counted from 1; 1 if the reason is that something is missing.
    pub line: u32,
    /// The key as it stands in the file.
    pub key: String,
    pub reason: Reason,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A quoted TOML key may hold anything, a line break too.
        write!(f, "{}:{}: {}: {}", self.file, self.line, self.key.escape_debug(), self.reason)
    }
}

/// What is wrong with a key's value, or with the key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The file is longer than [`super::MAX_BYTES`].
    FileTooLong {
        bytes: usize,
    },
    NotUtf8,
    /// The TOML parser's own words.
    Syntax(String),
    /// A `;` between or after assignments, which xl allows and TOML does not.
    Semicolon,
    /// `key += value`, which xl allows and TOML does not.
    Append,
    /// A number in octal by a leading 0, which xl allows and TOML does not.
    LeadingZero,
    /// A value without quotes that is no number.
    Unquoted,
    DuplicateKey,
    /// Nobody knows the key.
    UnknownKey {
        suggestion: Option<&'static str>,
    },
    /// xl knows the key, Bulkhead does not.
    UnsupportedKey,
    /// xl has dropped the key in favour of another.
    ObsoleteKey {
        instead: Key,
    },
    /// The key must be given.
    Missing,
    WrongType {
        expected: &'static str,
        found: &'static str,
    },
    Empty,
    /// Not a whole number of `min..=max`.
    OutOfRange {
        value: String,
        min: u64,
        max: u64,
    },
    /// None of the values that the key may have.
    BadValue {
        value: String,
        expected: &'static str,
    },
    /// xl knows the value, Bulkhead does not.
    UnsupportedValue {
        value: String,
    },
    /// More vCPUs than are supported.
    TooManyVcpus {
        value: u64,
        max: u32,
    },
    /// maxvcpus is not vcpus.
    MaxvcpusDiffers {
        maxvcpus: u64,
        vcpus: u64,
    },
    /// A list of host CPUs that is none.
    BadCpus {
        value: String,
        error: CpuListError,
    },
    /// The host has none of these CPUs.
    NoSuchCpus {
        cpus: CpuMask,
        /// How many it has.
        host: u32,
    },
    /// A remark: as for xl, what goes beyond the vCPUs that there are counts for nothing.
    MorePinsThanVcpus {
        pins: usize,
        vcpus: u32,
    },
    /// cpuid, or what it takes away.
    Cpuid(CpuidError),
    /// maxmem is not memory, both in MiB.
    MaxmemDiffers {
        maxmem: u64,
        memory: u64,
    },
    /// More serial ports than the board has.
    TooManySerialPorts {
        count: usize,
        max: usize,
    },
    /// More than one serial port is to lead to the console.
    SecondConsole,
    /// The key is for flat images, and kernel_format does not say that this is one.
    OnlyFlat,
    /// A NUL character, which no kernel's command line can hold.
    Nul,
    /// A remark: xl too prefers cmdline.
    IgnoredForCmdline,

    /// The name stands for no boot module.
    NoSuchModule {
        name: String,
    },
    /// Another guest has the name already.
    NameInUse,
    /// Another device has the port already.
    PortInUse {
        port: u16,
    },
    Load(LoadError),
    Create(CreateError),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FileTooLong { bytes } => write!(f, "the file has {bytes} bytes, at most {} are read", super::MAX_BYTES),
            Self::NotUtf8 => f.write_str("not UTF-8 text"),
            Self::Syntax(message) => write!(f, "not valid TOML: {}", message.trim_end().escape_debug()),
            Self::Semicolon => f.write_str("not valid TOML: one assignment a line, without \";\""),
            Self::Append => f.write_str("not valid TOML: \"+=\" is not supported, give all of the list at once"),
            Self::LeadingZero => {
                f.write_str("not valid TOML: write an octal number as 0o17, a decimal one without leading zeros")
            }
            Self::Unquoted => f.write_str("not valid TOML: a value that is no number needs quotes"),
            Self::DuplicateKey => f.write_str("given twice"),
            Self::UnknownKey { suggestion: None } => f.write_str("unknown key"),
            Self::UnknownKey { suggestion: Some(key) } => write!(f, "unknown key; did you mean {key}?"),
            Self::UnsupportedKey => f.write_str("known to xl, not supported yet"),
            Self::ObsoleteKey { instead } => write!(f, "obsolete, use {} instead", instead.as_str()),
            Self::Missing => f.write_str("missing, it must be given"),
            Self::WrongType { expected, found } => write!(f, "must be {expected}, not {found}"),
            Self::Empty => f.write_str("must not be empty"),
            Self::OutOfRange { value, min, max } => write!(f, "{value} is not a whole number of {min} to {max}"),
            Self::BadValue { value, expected } => write!(f, "bad value {value:?}, expected {expected}"),
            Self::UnsupportedValue { value } => write!(f, "{value:?} is known to xl, not supported yet"),
            Self::TooManyVcpus { value, max } => write!(f, "{value} vCPUs: more than {max} are not supported"),
            Self::MaxvcpusDiffers { maxvcpus, vcpus } => {
                write!(f, "{maxvcpus} is not vcpus' {vcpus}: adding vCPUs to a running guest is not supported yet")
            }
            Self::BadCpus { value, error } => write!(f, "{value:?}: {error}"),
            Self::NoSuchCpus { cpus, host: 1 } => write!(f, "no CPU of {cpus}: the host has only CPU 0"),
            Self::NoSuchCpus { cpus, host } => write!(f, "no CPU of {cpus}: the host has 0-{}", host.saturating_sub(1)),
            Self::MorePinsThanVcpus { pins, vcpus } => {
                write!(f, "a list for {pins} vCPUs, of which there are {vcpus}; the others are ignored")
            }
            Self::Cpuid(error) => write!(f, "{error}"),
            Self::MaxmemDiffers { maxmem, memory } => {
                write!(f, "{maxmem} MiB is not memory's {memory} MiB: ballooning is not supported yet")
            }
            Self::TooManySerialPorts { count, max } => write!(f, "{count} serial ports: more than {max} are not supported"),
            Self::SecondConsole => f.write_str("more than one \"pty\" is not supported yet"),
            Self::OnlyFlat => f.write_str("only for kernel_format = \"flat\": other kernels say it themselves"),
            Self::Nul => f.write_str("must not contain a NUL character"),
            Self::IgnoredForCmdline => f.write_str("ignored, because cmdline is given"),
            Self::NoSuchModule { name } => write!(f, "no boot module is named {name:?}"),
            Self::NameInUse => f.write_str("another guest has this name"),
            Self::PortInUse { port } => write!(f, "port {port:#x} belongs to another device"),
            Self::Load(error) => write!(f, "{error}"),
            Self::Create(CreateError::OutOfMemory { wanted, free }) => {
                write!(f, "more memory than there is: {} MiB wanted, {} MiB free", wanted.div_ceil(1 << 20), free >> 20)
            }
            Self::Create(CreateError::OutOf(what)) => write!(f, "the host has no more {what}"),
        }
    }
}
