//! Interrupt lines: a device drives a level; where it leads is the board's business.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

/// Where lines lead: the board's interrupt router (8259 pair and IOAPIC).
pub trait LineSink: Send + Sync {
    /// The level of input `pin` changed. Called only on changes, with no device lock but the caller's own held.
    fn set_level(&self, pin: u32, high: bool);
}

/// One wire from a device to the interrupt router. Level-driven: an edge is a change of level.
#[derive(Clone)]
pub struct Line {
    target: Option<Arc<Wire>>,
}

struct Wire {
    sink: Arc<dyn LineSink>,
    pin: u32,
    level: AtomicBool,
}

impl Line {
    /// A wire to input `pin` of `sink`, low at first.
    #[must_use]
    pub fn new(sink: Arc<dyn LineSink>, pin: u32) -> Self {
        Self { target: Some(Arc::new(Wire { sink, pin, level: AtomicBool::new(false) })) }
    }

    /// A wire that leads nowhere.
    #[must_use]
    pub const fn unconnected() -> Self {
        Self { target: None }
    }

    /// Drives the wire; tells the sink only if the level changes.
    pub fn set(&self, high: bool) {
        if let Some(wire) = &self.target
            && wire.level.swap(high, Ordering::AcqRel) != high
        {
            wire.sink.set_level(wire.pin, high);
        }
    }

    /// High, then low: one edge for edge-triggered inputs.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }

    /// The level last driven.
    #[must_use]
    pub fn level(&self) -> bool {
        self.target.as_ref().is_some_and(|w| w.level.load(Ordering::Acquire))
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::{sync::Mutex, vec::Vec};

    /// A sink that writes down every change: (pin, level).
    #[derive(Default)]
    pub struct Recorder(pub Mutex<Vec<(u32, bool)>>);

    impl LineSink for Recorder {
        fn set_level(&self, pin: u32, high: bool) {
            self.0.lock().unwrap().push((pin, high));
        }
    }

    #[test]
    fn only_changes_reach_the_sink() {
        let sink = Arc::new(Recorder::default());
        let line = Line::new(sink.clone(), 4);
        line.set(false);
        line.set(true);
        line.set(true);
        line.pulse();
        assert_eq!(*sink.0.lock().unwrap(), [(4, true), (4, false)]);
    }
}
