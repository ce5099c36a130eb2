//! Everything of Bulkhead that touches the hardware, and nearly all of its `unsafe`.
//!
//! The pure parts (page-table builder, frame bitmap, decoders) run under `cargo test` on a laptop; the rest compiles there, too,
//! but is only ever executed by the booted hypervisor.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod event;
pub mod mm;
pub mod vcpu;
