//! The vocabulary of Bulkhead: addresses, registers, MSRs, exceptions, and the contracts between the layers.
//!
//! Everything here is plain data or a trait. `arch` implements the traits with hardware, tests implement them with fakes,
//! and `hv` and `devices` are written against them alone.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod addr;
pub mod cpuid;
mod exception;
mod exit;
mod memory;
pub mod msr;
pub mod paging;
mod platform;
mod regs;
mod time;
mod vcpu;

pub use addr::{Gpa, Gva, Hpa, PAGE_SIZE};
pub use cpuid::CpuidResult;
pub use exception::{Exception, vector};
pub use exit::{Access, ControlRegister, EntryFailure, Exit, Resume, TaskSwitch, TaskSwitchReason, Width};
pub use memory::{GuestMemory, GuestMemoryExt, OutsideRam, RamRange};
pub use platform::{Attention, CreateError, Platform, VcpuConfig, VirtFeature};
pub use regs::{Cr0, Cr4, DescriptorTable, Efer, Gpr, Gprs, Rflags, Segment, SegmentAttributes, SegmentRegister};
pub use time::{Duration, Rate, Time, TimeSource};
pub use vcpu::{ApicAccess, LOCAL_APIC, Owner, UnknownMsr, Vcpu, VcpuState, VirtualApicPage};
