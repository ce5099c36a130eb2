#![allow(missing_docs, clippy::all)]
pub mod ioapic;
pub mod lapic;
pub mod misc;
pub mod pic;
pub mod pit;
pub mod router;
pub mod rtc;
pub mod uart;
