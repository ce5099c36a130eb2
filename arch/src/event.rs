//! What interrupts a guest's flow of control: one event an entry, chosen by the rules of the architecture.
//!
//! Both vendors inject through a word of the same layout (VM-entry interruption information, Intel SDM vol. 3C rev. 085, 26.8.3; EVENTINJ, AMD APM
//! vol. 2 24593 rev. 3.42, 15.20) and report an event whose delivery an exit has cut short in the same one (IDT-vectoring
//! information; EXITINTINFO). So an [`Event`] is that word, and the vendor layer copies it. Pure; tested by table.

use x86defs::{Cr0, Exception, vector};

/// Interruption types. Intel has all of them; AMD reports types 5 and 6 as exceptions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EventKind {
    External = 0,
    Nmi = 2,
    /// A hardware exception; on AMD also #BP and #OF.
    Exception = 3,
    /// INT n.
    SoftwareInterrupt = 4,
    /// INT1.
    PrivilegedSoftwareException = 5,
    /// INT3 and INTO.
    SoftwareException = 6,
}

/// An event to deliver through the guest's IDT, or none.
///
/// Bits 7:0 vector, 10:8 type, 11 error code valid, 31 valid, 63:32 error code; as the hardware has them. Bits 19:16, reserved there,
/// hold the length of the instruction that a software event comes from.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Event(u64);

const ERROR_VALID: u64 = 1 << 11;
const VALID: u64 = 1 << 31;
const LENGTH_SHIFT: u32 = 16;
/// Everything that the hardware defines.
const ARCHITECTURAL: u64 = 0xffff_ffff_8000_0fff;

impl Event {
    pub const NONE: Self = Self(0);
    /// A third fault while #DF was being delivered: not an event, but the end (SDM vol. 3A, 7.15, "Interrupt 8").
    const SHUTDOWN: Self = Self(1 << 20);

    const fn new(kind: EventKind, vector: u8) -> Self {
        Self(VALID | (kind as u64) << 8 | vector as u64)
    }

    /// An external interrupt, as the local APIC would have delivered it.
    #[must_use]
    pub const fn interrupt(vector: u8) -> Self {
        Self::new(EventKind::External, vector)
    }

    /// A non-maskable interrupt.
    pub const NMI: Self = Self::new(EventKind::Nmi, vector::NMI);

    /// A hardware exception.
    #[must_use]
    pub const fn exception(vector: u8, error_code: Option<u32>) -> Self {
        let event = Self::new(EventKind::Exception, vector);
        match error_code {
            Some(code) => Self(event.0 | ERROR_VALID | (code as u64) << 32),
            None => event,
        }
    }

    /// The event that the hardware reports: `info` as it lays it out, and the error code (ignored unless `info` says that there is one).
    #[must_use]
    pub const fn from_hardware(info: u32, error_code: u32) -> Self {
        let info = info as u64 & ARCHITECTURAL;
        if info & VALID == 0 {
            Self::NONE
        } else if info & ERROR_VALID == 0 {
            Self(info)
        } else {
            Self(info | (error_code as u64) << 32)
        }
    }

    /// The same, with the length in bytes (0..=15) of the instruction that made it: needed to inject a software event on VMX.
    #[must_use]
    pub const fn with_length(self, length: u8) -> Self {
        Self(self.0 & !(0xf << LENGTH_SHIFT) | ((length & 0xf) as u64) << LENGTH_SHIFT)
    }

    /// What [`Event::with_length`] was told; zero for an event that no instruction made.
    #[must_use]
    pub const fn length(self) -> u8 {
        (self.0 >> LENGTH_SHIFT) as u8 & 0xf
    }

    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The word for the hardware: VM-entry interruption information.
    #[must_use]
    pub const fn info(self) -> u32 {
        (self.0 & ARCHITECTURAL) as u32
    }

    /// Valid only if [`Event::has_error_code`].
    #[must_use]
    pub const fn error_code(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// EVENTINJ: information word and error code in one. For events without a length: AMD-V needs none.
    #[inline]
    #[must_use]
    pub const fn event_inj(self) -> u64 {
        debug_assert!(self.0 & !ARCHITECTURAL == 0);
        self.0
    }

    #[must_use]
    pub const fn has_error_code(self) -> bool {
        self.0 & ERROR_VALID != 0
    }

    #[must_use]
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// `None` for the types that do not exist (1 and 7), and if there is no event.
    #[must_use]
    pub const fn kind(self) -> Option<EventKind> {
        if self.0 & VALID == 0 {
            return None;
        }
        Some(match self.0 >> 8 & 7 {
            0 => EventKind::External,
            2 => EventKind::Nmi,
            3 => EventKind::Exception,
            4 => EventKind::SoftwareInterrupt,
            5 => EventKind::PrivilegedSoftwareException,
            6 => EventKind::SoftwareException,
            _ => return None,
        })
    }

    /// True if executing the instruction at RIP once more makes the event again: INT n, INT3, INTO, INT1.
    #[must_use]
    pub const fn is_software(self) -> bool {
        match self.kind() {
            Some(EventKind::SoftwareInterrupt | EventKind::PrivilegedSoftwareException | EventKind::SoftwareException) => true,
            Some(EventKind::Exception) => matches!(self.vector(), vector::BP | vector::OF),
            _ => false,
        }
    }
}

impl core::fmt::Debug for Event {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.kind() {
            None if *self == Self::SHUTDOWN => write!(f, "shutdown"),
            None => write!(f, "none"),
            Some(kind) if self.has_error_code() => write!(f, "{kind:?} {:#x} ({:#x})", self.vector(), self.error_code()),
            Some(kind) => write!(f, "{kind:?} {:#x}", self.vector()),
        }
    }
}

/// Classes of events for the double-fault rules (SDM vol. 3A, table 7-4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

const fn class(event: Event) -> Class {
    match event.kind() {
        Some(EventKind::Exception) => match event.vector() {
            vector::DE | vector::TS | vector::NP | vector::SS | vector::GP | vector::CP => Class::Contributory,
            vector::PF => Class::PageFault,
            vector::DF => Class::DoubleFault,
            _ => Class::Benign,
        },
        _ => Class::Benign,
    }
}

/// Holds the one event that goes with the next entry, and merges what comes together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Arbiter {
    next: Event,
}

impl Arbiter {
    #[must_use]
    pub const fn new() -> Self {
        Self { next: Event::NONE }
    }

    /// True if an event is queued already, so that nothing else can be.
    #[inline]
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        !self.next.is_none()
    }

    /// True if the guest's CPU is in shutdown: it must not be entered.
    #[inline]
    #[must_use]
    pub fn is_shutdown(&self) -> bool {
        self.next == Event::SHUTDOWN
    }

    /// The event for this entry, which is not queued any longer. Ask [`Arbiter::is_shutdown`] before.
    #[inline]
    pub fn take(&mut self) -> Event {
        core::mem::take(&mut self.next)
    }

    /// What [`Arbiter::take`] would give.
    #[inline]
    #[must_use]
    pub const fn peek(&self) -> Event {
        self.next
    }

    /// Queues an external interrupt. The caller has seen that the guest can take it and that nothing is queued.
    #[inline]
    pub fn inject_interrupt(&mut self, vector: u8) {
        self.next = Event::interrupt(vector);
    }

    /// Queues an NMI, under the same conditions.
    #[inline]
    pub fn inject_nmi(&mut self) {
        self.next = Event::NMI;
    }

    /// An exit has cut the delivery of `event` short: it is delivered again at the next entry, unless the answer to that exit is an
    /// exception, with which it is merged.
    ///
    /// An event that the instruction at RIP makes again (INT n, INT3, INTO) is forgotten with `SoftwareEvents::Execute`.
    #[inline]
    pub fn interrupted(&mut self, event: Event, software: SoftwareEvents) {
        if software == SoftwareEvents::Inject || !event.is_software() {
            self.next = event;
        }
    }

    /// Queues `exception`, raised while whatever is queued was being delivered (SDM vol. 3A, table 7-5; APM vol. 2, 8.2.9).
    ///
    /// What it displaces without making a double fault is lost, as on hardware: a fault comes again with its instruction. `cr0` is the guest's:
    /// in real mode, no error code is pushed, and injecting one is refused. CR2 is the caller's to write.
    pub fn raise(&mut self, exception: &Exception, cr0: u64) {
        let protected = cr0 & Cr0::PE.bits() != 0;
        let error_code = |code: Option<u32>| if protected { code } else { None };
        let second = Event::exception(exception.vector, error_code(exception.error_code));
        self.next = match (class(self.next), class(second)) {
            _ if self.is_shutdown() => Event::SHUTDOWN,
            (Class::DoubleFault, Class::Contributory | Class::PageFault | Class::DoubleFault) => Event::SHUTDOWN,
            (Class::Contributory, Class::Contributory) | (Class::PageFault, Class::Contributory | Class::PageFault) => {
                Event::exception(vector::DF, error_code(Some(0)))
            }
            _ => second,
        };
    }

    /// Forgets everything, as INIT does.
    pub fn clear(&mut self) {
        self.next = Event::NONE;
    }
}

/// What to do with a software event whose delivery was cut short while RIP is still at the instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SoftwareEvents {
    /// Inject it again, with the instruction's length.
    Inject,
    /// Let the guest execute the instruction again.
    Execute,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTECTED: u64 = Cr0::PE.bits();

    fn exception(vector: u8) -> Exception {
        let has_code = matches!(vector, 8 | 10..=14 | 17 | 21);
        Exception { vector, error_code: has_code.then_some(0x10), cr2: None }
    }

    fn after(first: Event, second: u8) -> Event {
        let mut arbiter = Arbiter::new();
        arbiter.interrupted(first, SoftwareEvents::Execute);
        arbiter.raise(&exception(second), PROTECTED);
        arbiter.peek()
    }

    #[test]
    fn double_and_triple_faults() {
        let df = Event::exception(vector::DF, Some(0));
        let gp = Event::exception(vector::GP, Some(0x10));
        let pf = Event::exception(vector::PF, Some(0x10));
        let first = |v| Event::exception(v, exception(v).error_code);
        // First event, second exception, what is delivered.
        for (a, b, expected) in [
            (first(vector::GP), vector::GP, df),
            (first(vector::DE), vector::NP, df),
            (first(vector::GP), vector::PF, pf),
            (first(vector::PF), vector::PF, df),
            (first(vector::PF), vector::GP, df),
            (first(vector::PF), vector::DB, Event::exception(vector::DB, None)),
            (first(vector::DF), vector::GP, Event::SHUTDOWN),
            (first(vector::DF), vector::PF, Event::SHUTDOWN),
            (first(vector::DF), vector::DB, Event::exception(vector::DB, None)),
            (first(vector::DB), vector::GP, gp),
            (first(vector::AC), vector::AC, Event::exception(vector::AC, Some(0x10))),
            (Event::NMI, vector::GP, gp),
            (Event::interrupt(vector::GP), vector::GP, gp),
            (Event::NONE, vector::GP, gp),
        ] {
            assert_eq!(after(a, b), expected, "{a:?} then {b}");
        }
    }

    #[test]
    fn shutdown_stays() {
        let mut arbiter = Arbiter::new();
        arbiter.interrupted(Event::exception(vector::DF, Some(0)), SoftwareEvents::Execute);
        arbiter.raise(&Exception::GP, PROTECTED);
        assert!(arbiter.is_shutdown() && arbiter.is_busy());
        arbiter.raise(&Exception::DB, PROTECTED);
        assert!(arbiter.is_shutdown());
        assert_eq!(arbiter.peek().info() & 1 << 31, 0, "never a valid event for the hardware");
        arbiter.clear();
        assert!(!arbiter.is_busy());
    }

    #[test]
    fn real_mode_pushes_no_error_codes() {
        let mut arbiter = Arbiter::new();
        arbiter.raise(&Exception::GP, 0);
        assert_eq!(arbiter.peek().event_inj(), 0x8000_030d);
        arbiter.raise(&Exception::GP, 0);
        assert_eq!(arbiter.take().event_inj(), 0x8000_0308, "a double fault without its error code");
        assert!(!arbiter.is_busy());
    }

    #[test]
    fn hardware_words() {
        assert_eq!(Event::interrupt(0x31).info(), 0x8000_0031);
        assert_eq!(Event::NMI.info(), 0x8000_0202);
        assert_eq!(Event::exception(14, Some(7)).event_inj(), 0x7_8000_0b0e);
        assert_eq!(Event::from_hardware(0x0000_0b0e, 7), Event::NONE);
        // IDT-vectoring information may have bit 12 (NMI unblocking); the error code counts only if it is valid.
        assert_eq!(Event::from_hardware(0x8000_1202, 0xdead).event_inj(), 0x8000_0202);
        assert_eq!(Event::from_hardware(0x8000_0b0d, 0x18).error_code(), 0x18);
        let int80 = Event::from_hardware(0x8000_0480, 0).with_length(2);
        assert_eq!((int80.info(), int80.length(), int80.kind()), (0x8000_0480, 2, Some(EventKind::SoftwareInterrupt)));
    }

    #[test]
    fn software_events_are_executed_again() {
        for (info, kept) in
            [(0x8000_0480, false), (0x8000_0303, false), (0x8000_0603, false), (0x8000_0302, true), (0x8000_0030, true)]
        {
            let mut arbiter = Arbiter::new();
            arbiter.interrupted(Event::from_hardware(info, 0), SoftwareEvents::Execute);
            assert_eq!(arbiter.is_busy(), kept, "{info:#x}");
            arbiter.interrupted(Event::from_hardware(info, 0), SoftwareEvents::Inject);
            assert!(arbiter.is_busy());
        }
    }
}
