//! Everything of Bulkhead that touches the hardware, and nearly all of its `unsafe`.
//!
//! The pure parts (page-table builder, frame bitmap, decoders) run under `cargo test` on a laptop; the rest compiles there, too,
//! but is only ever executed by the booted hypervisor.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod acpi;
pub mod apic;
pub mod console;
pub mod cpu;
pub mod crash;
pub mod event;
pub mod mm;
pub mod multiboot;
pub mod platform;
pub mod power;
pub mod rtc;
pub mod smp;
pub mod svm;
pub mod symbols;
pub mod timer;
pub mod tsc;
pub mod vcpu;
pub mod virt;
pub mod vmx;
