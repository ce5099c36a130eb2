//! The hypervisor proper: guests, their boards and vCPUs, configuration, loaders, scheduling, console, lifecycle.
//!
//! Generic over [`x86defs::Platform`], so that the same code runs on AMD-V, on VT-x, and in tests on a scripted fake. Nothing here
//! knows a vendor's exit code, an instruction length or a hardware register.
//!
//! # Lock order
//! Take them in this order, and never an earlier one while holding a later one:
//! 1. the shell, 2. `Host::guests`, 3. `Host::sched`, 4. a device's own lock (`Board`), 5. the 8259 pair, 6. the IOAPIC, 7. a guest's console ring, 8. the log.
//!
//! Whoever writes to the console takes the log's lock, too (`log::hold`).
//!
//! Local APICs are posted to without a lock. No lock is held while a guest runs.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "testing"))]
extern crate std;

pub mod acpi;
pub mod alarm;
pub mod board;
pub mod clock;
pub mod config;
pub mod console;
pub mod cpulist;
pub mod cpumask;
pub mod e820;
mod host;
pub mod layout;
pub mod loader;
pub mod log;
mod operate;
pub mod options;
mod run;
mod sched;
pub mod shell;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vcpu;
pub mod vm;

pub use run::{BootInfo, Module, run};
