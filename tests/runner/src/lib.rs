//! Starts Bulkhead in an emulator, follows its console, and judges what happened.
//!
//! [`image`] packs the hypervisor, guests and their configurations into a bootable ISO; [`machine`] starts QEMU or Bochs with it;
//! [`session`] follows the console (parsed by [`lines`]) until the run is over; [`list`] says which tests there are and [`suite`] runs them.
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod bench;
pub mod boots;
pub mod budget;
pub mod config;
pub mod cpio;
pub mod dialogue;
pub mod feed;
pub mod flat;
pub mod host;
pub mod image;
pub mod keyboard;
pub mod lines;
pub mod linux;
pub mod list;
pub mod machine;
pub mod peer;
pub mod scaling;
pub mod scenarios;
pub mod script;
pub mod session;
pub mod shares;
pub mod size;
pub mod suite;
mod sys;
pub mod trace;
pub mod variants;
