//! Interrupt lines: a device drives a level; where it leads is the board's business.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};
use spin::Mutex;

/// Where lines lead: the board's interrupt router (8259 pair and IOAPIC).
pub trait LineSink: Send + Sync {
    /// The level of input `pin` changed. Called only on changes, with no device lock but the caller's own held.
    fn set_level(&self, pin: u32, high: bool);
    /// What has become of the last interrupt of input `pin`.
    fn state(&self, pin: u32) -> PinState;
}

/// Where messages lead that devices write to memory (MSI): the board's interrupt router.
pub trait MessageSink: Send + Sync {
    /// A device writes `data` to `address`. Called with no device lock but the caller's own held.
    fn write(&self, address: u64, data: u32);
    /// What has become of the last interrupt of this message.
    fn state(&self, address: u64, data: u32) -> PinState;
}

/// What an interrupt input does with a request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PinState {
    /// Nothing: it is masked, or leads nowhere.
    Masked,
    /// A processor gets it; none waits.
    Ready,
    /// One waits for its processor to take it; another would become one with it.
    Waiting,
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

    /// What has become of the last interrupt.
    #[must_use]
    pub fn state(&self) -> PinState {
        self.target.as_ref().map_or(PinState::Masked, |wire| wire.sink.state(wire.pin))
    }

    /// The level last driven.
    #[must_use]
    pub fn level(&self) -> bool {
        self.target.as_ref().is_some_and(|w| w.level.load(Ordering::Acquire))
    }
}

/// A wire that something else can disconnect, and that notes when it has risen. It is a sink of one input; the pin's number does not
/// count.
pub struct Gate {
    line: Line,
    /// Connected, and the level before the gate.
    state: Mutex<(bool, bool)>,
    risen: AtomicBool,
}

impl Gate {
    /// A gate before `line`, open.
    #[must_use]
    pub fn new(line: Line) -> Self {
        Self { line, state: Mutex::new((true, false)), risen: AtomicBool::new(false) }
    }

    /// Connects or disconnects what is before the gate.
    pub fn connect(&self, connected: bool) {
        let mut state = self.state.lock();
        state.0 = connected;
        self.line.set(state.0 && state.1);
    }

    /// True once after the level before the gate has risen.
    #[inline]
    pub fn take_risen(&self) -> bool {
        self.risen.load(Ordering::Acquire) && self.risen.swap(false, Ordering::AcqRel)
    }
}

impl LineSink for Gate {
    fn set_level(&self, _: u32, high: bool) {
        let mut state = self.state.lock();
        if high && !state.1 {
            self.risen.store(true, Ordering::Release);
        }
        state.1 = high;
        self.line.set(state.0 && high);
    }

    fn state(&self, _: u32) -> PinState {
        if self.state.lock().0 { self.line.state() } else { PinState::Masked }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::{collections::BTreeMap, sync::Mutex, vec::Vec};

    /// A sink that writes down every change: (pin, level), and says of each pin what it is told to.
    #[derive(Default)]
    pub struct Recorder(pub Mutex<Vec<(u32, bool)>>, pub Mutex<BTreeMap<u32, PinState>>);

    impl LineSink for Recorder {
        fn set_level(&self, pin: u32, high: bool) {
            self.0.lock().unwrap().push((pin, high));
        }
        fn state(&self, pin: u32) -> PinState {
            self.1.lock().unwrap().get(&pin).copied().unwrap_or(PinState::Ready)
        }
    }

    /// A message sink that writes them down.
    #[derive(Default)]
    pub struct Messages(pub Mutex<Vec<(u64, u32)>>);

    impl MessageSink for Messages {
        fn write(&self, address: u64, data: u32) {
            self.0.lock().unwrap().push((address, data));
        }
        fn state(&self, _: u64, _: u32) -> PinState {
            PinState::Ready
        }
    }

    #[test]
    fn a_gate_passes_on_the_level_while_it_is_open() {
        let sink = Arc::new(Recorder::default());
        let gate = Arc::new(Gate::new(Line::new(sink.clone(), 8)));
        let line = Line::new(gate.clone(), 0);
        line.set(true);
        assert!(gate.take_risen() && !gate.take_risen());
        gate.connect(false);
        assert_eq!(line.state(), PinState::Masked);
        line.set(false);
        line.set(true);
        assert!(gate.take_risen());
        gate.connect(true);
        line.set(false);
        assert_eq!(*sink.0.lock().unwrap(), [(8, true), (8, false), (8, true), (8, false)]);
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
