//! The cases, one function each, by area.

mod bench;
mod cpu;

use crate::rt::BootInfo;

/// Name and body of every case.
pub const ALL: &[(&str, fn(&BootInfo))] = &[
    ("cpuid-policy", cpu::cpuid_policy),
    ("debug-exit", cpu::debug_exit),
    ("triple-fault", cpu::triple_fault),
    ("bench", bench::run),
];
