//! From lines and messages to processors: the 8259 pair, the IOAPIC and the local APICs of one guest, and the wires between them.
//!
//! Lock order: wires (with the 8259 pair), then IOAPIC. Local APICs have no lock. A device may be locked when it drives its line.

pub use crate::lapic::Pending;
use crate::{
    LineSink, MessageSink, PinState, PortDevice,
    interrupt::{
        ApicAddress, CpuSet, DeliveryMode, DestinationMode, InterruptMessage, Ipi, MAX_VCPUS, Shorthand, Trigger, destinations,
    },
    ioapic::{self, IoApic, IoApicState},
    lapic::{Effect, LocalApic, Posted},
    pic::{ELCR_OFFSET, MASTER_OFFSET, Pic, PicState, SLAVE_OFFSET},
    sync::{
        Mutex,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{AcqRel, Relaxed},
        },
    },
};
use alloc::{sync::Arc, vec::Vec};
use serde::{Deserialize, Serialize};
use x86defs::{Time, Width};

/// Interrupt lines: ISA IRQs 0 to 15, and eight more that reach the IOAPIC alone unless routed (PIRQA to PIRQH).
pub const LINES: usize = 24;
/// The number of the line of PIRQA.
pub const FIRST_PIRQ: usize = 16;
/// The PIT's line (ISA IRQ 0) has this IOAPIC pin; all others have the pin of their number.
const PIT_PIN: usize = 2;
/// The 8259 pair's output has this IOAPIC pin.
const EXTINT_PIN: usize = 0;

/// What sits behind the lines.
struct Wires {
    pic: Pic,
    /// The 8259 pair's output as the processors have last been told.
    output: bool,
    /// How many devices hold each line high: shared lines are wired-OR.
    holders: [u32; LINES],
    /// The ISA IRQ that each PIRQ drives besides its IOAPIC pin.
    pirq_routes: [Option<u8>; LINES - FIRST_PIRQ],
}

impl Wires {
    /// Level of the 8259 pair's input `irq`: its ISA line and all PIRQs that are routed to it.
    fn isa_level(&self, irq: u8) -> bool {
        let held = |line: usize| self.holders.get(line).is_some_and(|&n| n != 0);
        let routed = (FIRST_PIRQ..).zip(&self.pirq_routes).any(|(line, route)| *route == Some(irq) && held(line));
        held(usize::from(irq)) || routed
    }
}

/// The interrupt controllers of a guest. Shared by all its vCPUs and devices.
///
/// vCPUs that have got something new are noted; after a device access or a line change [`InterruptRouter::take_woken`] says whom to
/// kick or wake.
pub struct InterruptRouter {
    apics: Vec<Arc<LocalApic>>,
    wires: Mutex<Wires>,
    ioapic: Mutex<IoApic>,
    /// [`CpuSet`] of the vCPUs that got something since this was last taken.
    woken: AtomicU64,
    /// Where the next lowest-priority arbitration among equals starts.
    turn: AtomicU32,
}

/// What an [`InterruptRouter`] saves. The local APICs are saved with their vCPUs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RouterState {
    pub pic: PicState,
    pub ioapic: IoApicState,
    pub holders: [u32; LINES],
    pub pirq_routes: [Option<u8>; LINES - FIRST_PIRQ],
}

impl InterruptRouter {
    /// The controllers after firmware has set them up. `apics`: the vCPUs' local APICs in order, the boot processor's first; those past the
    /// first [`MAX_VCPUS`] get no interrupts.
    #[must_use]
    pub fn new(apics: Vec<Arc<LocalApic>>) -> Self {
        Self {
            apics,
            wires: Mutex::new(Wires {
                pic: Pic::new(),
                output: false,
                holders: [0; LINES],
                pirq_routes: [None; LINES - FIRST_PIRQ],
            }),
            ioapic: Mutex::new(IoApic::new(0)),
            woken: AtomicU64::new(0),
            turn: AtomicU32::new(0),
        }
    }

    /// The local APICs, by vCPU.
    #[must_use]
    pub fn apics(&self) -> &[Arc<LocalApic>] {
        &self.apics
    }

    // --- for the run loop

    /// What vCPU `vcpu` would take now. Its owner only.
    #[inline]
    #[must_use]
    pub fn pending(&self, vcpu: u32) -> Option<Pending> {
        self.apics.get(vcpu as usize)?.pending()
    }

    /// The interrupt acknowledge cycle for [`Pending::ExtInt`]: the 8259 pair's vector (its spurious one if the request has gone).
    pub fn acknowledge_extint(&self) -> u8 {
        let mut wires = self.wires.lock();
        let vector = wires.pic.acknowledge();
        // The pair has one output, so one acknowledgement is for all who were told of it.
        for apic in &self.apics {
            apic.extint_acknowledged();
        }
        if wires.output && wires.pic.output() {
            // Another request is behind it. The output has been low in between.
            wires.output = false;
            self.drive_output(false);
        }
        self.update_output(&mut wires);
        vector
    }

    /// Carries out what a register write of vCPU `vcpu`'s local APIC wants done here; [`Effect::Timer`] is the caller's.
    #[inline]
    pub fn effect(&self, vcpu: u32, effect: Effect) {
        match effect {
            Effect::None | Effect::Timer => {}
            Effect::Ipi(ipi) => {
                self.send_ipi(vcpu, ipi);
            }
            Effect::Eoi { vector } => self.eoi(vector),
        }
    }

    /// True if [`InterruptRouter::take_woken`] has something.
    #[inline(always)]
    #[must_use]
    pub fn has_woken(&self) -> bool {
        self.woken.load(Relaxed) != 0
    }

    /// The vCPUs that got something new (an interrupt, NMI, INIT or SIPI) since the last call, other than by their own IPI to themselves.
    #[inline]
    #[must_use]
    pub fn take_woken(&self) -> CpuSet {
        if self.woken.load(Relaxed) == 0 { CpuSet::EMPTY } else { CpuSet(self.woken.swap(0, AcqRel)) }
    }

    fn wake(&self, set: CpuSet) {
        if !set.is_empty() {
            self.woken.fetch_or(set.0, AcqRel);
        }
    }

    // --- messages

    /// Delivers the message of a device (MSI). Returns the vCPUs that have something new pending.
    pub fn deliver(&self, message: InterruptMessage) -> CpuSet {
        self.route(None, Shorthand::None, message).woken
    }

    /// Delivers an IPI of vCPU `sender`. Returns the vCPUs that have something new pending.
    pub fn send_ipi(&self, sender: u32, ipi: Ipi) -> CpuSet {
        self.route(Some(sender as usize), ipi.shorthand, ipi.message).woken
    }

    /// Delivers an interrupt to each local APIC whose ID is `first` plus the number of a bit in `set`. Returns how many have it.
    pub fn send_to_many(&self, set: u128, first: u32, delivery: DeliveryMode, vector: u8) -> u32 {
        let (mut count, mut result) = (0, Delivery::default());
        for (index, apic) in self.apics.iter().enumerate() {
            let bit = apic.id().checked_sub(first).and_then(|bit| set.checked_shr(bit));
            if bit.is_some_and(|rest| rest & 1 != 0) {
                let posted = apic.receive(delivery, vector, Trigger::Edge);
                count += u32::from(posted != Posted::Refused);
                result.add(index, posted);
            }
        }
        self.wake(result.woken);
        count
    }

    /// An EOI message of a local APIC.
    #[cold]
    fn eoi(&self, vector: u8) {
        self.ioapic.lock().eoi(vector, &mut |message| self.deliver_from_ioapic(message));
    }

    /// True if a local APIC has accepted it.
    fn deliver_from_ioapic(&self, message: InterruptMessage) -> bool {
        self.route(None, Shorthand::None, message).accepted
    }

    fn route(&self, sender: Option<usize>, shorthand: Shorthand, message: InterruptMessage) -> Delivery {
        let set = self.destinations(sender, shorthand, &message);
        let mut delivery = Delivery::default();
        if message.delivery == DeliveryMode::LowestPriority {
            if let Some(index) = self.arbitrate(set) {
                delivery.add(index, self.receive(index, &message));
            }
        } else {
            for index in set.iter() {
                delivery.add(index, self.receive(index, &message));
            }
        }
        self.wake(delivery.woken);
        delivery
    }

    fn receive(&self, index: usize, message: &InterruptMessage) -> Posted {
        match self.apics.get(index) {
            Some(apic) => apic.receive(message.delivery, message.vector, message.trigger),
            None => Posted::Refused,
        }
    }

    fn destinations(&self, sender: Option<usize>, shorthand: Shorthand, message: &InterruptMessage) -> CpuSet {
        let &InterruptMessage { destination, destination_mode, .. } = message;
        // The usual case without a search: vCPUs have their index as ID. In xAPIC mode an ID is 8 bits, but there are no more vCPUs.
        const _: () = assert!(MAX_VCPUS <= 0xff);
        if shorthand == Shorthand::None
            && destination_mode == DestinationMode::Physical
            && let Some(apic) = self.apics.get(destination as usize)
            && apic.id() == destination
        {
            let meant = apic.address().matches(destination_mode, destination);
            return if meant { CpuSet::single(destination as usize) } else { CpuSet::EMPTY };
        }
        let addresses = self.apics.iter().map(|apic| -> ApicAddress { apic.address() });
        destinations(addresses, sender, shorthand, destination_mode, destination)
    }

    /// Lowest-priority arbitration (11.6.2.4): the lowest processor priority wins, and among equals they take turns.
    fn arbitrate(&self, set: CpuSet) -> Option<usize> {
        let start = self.turn.load(Relaxed) as usize;
        let priority = |&index: &usize| {
            let apic = self.apics.get(index);
            let class = apic.map_or(u8::MAX, |apic| apic.ppr() >> 4);
            (class, index.wrapping_sub(start) % MAX_VCPUS)
        };
        let enabled = |&index: &usize| self.apics.get(index).is_some_and(|apic| apic.software_enabled());
        let winner = set.iter().filter(enabled).min_by_key(priority)?;
        self.turn.store((winner as u32 + 1) % MAX_VCPUS as u32, Relaxed);
        Some(winner)
    }

    // --- the 8259 pair

    /// Tells the processors of a change of the 8259 pair's output.
    fn update_output(&self, wires: &mut Wires) {
        let output = wires.pic.output();
        if wires.output != output {
            wires.output = output;
            self.drive_output(output);
        }
    }

    /// LINT0 of the boot processor, and an IOAPIC pin. Called with the wires locked, so that levels arrive in order.
    fn drive_output(&self, high: bool) {
        if let Some(bsp) = self.apics.first()
            && bsp.set_lint0(high)
        {
            self.wake(CpuSet::single(0));
        }
        self.set_pin(EXTINT_PIN, high);
    }

    fn set_pin(&self, pin: usize, high: bool) {
        self.ioapic.lock().set_level(pin, high, &mut |message| self.deliver_from_ioapic(message));
    }

    /// IN at one of the 8259 pair's ports: 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1. All ones at others.
    #[inline(never)]
    pub fn pic_read(&self, now: Time, port: u16, width: Width) -> u32 {
        let Some(offset) = pic_offset(port) else { return width.mask() as u32 };
        let mut wires = self.wires.lock();
        let value = wires.pic.port_read(now, offset, width);
        self.update_output(&mut wires);
        value
    }

    /// OUT at one of those ports.
    pub fn pic_write(&self, now: Time, port: u16, width: Width, value: u32) {
        let Some(offset) = pic_offset(port) else { return };
        let mut wires = self.wires.lock();
        wires.pic.port_write(now, offset, width, value);
        self.update_output(&mut wires);
    }

    /// Routes PIRQ `pirq` (0 = A .. 7 = H) to an ISA IRQ, or to none, as the LPC bridge's PIRQ routing registers say.
    pub fn route_pirq(&self, pirq: usize, irq: Option<u8>) {
        let mut wires = self.wires.lock();
        let Some(route) = wires.pirq_routes.get_mut(pirq) else { return };
        let old = core::mem::replace(route, irq);
        for irq in [old, irq].into_iter().flatten() {
            let level = wires.isa_level(irq);
            wires.pic.set_level(irq, level);
        }
        self.update_output(&mut wires);
    }

    // --- the IOAPIC

    /// A read at `offset` from the IOAPIC's base address.
    #[must_use]
    pub fn ioapic_read(&self, offset: u64, width: Width) -> u64 {
        self.ioapic.lock().mmio_read(offset, width)
    }

    /// A write at `offset` from the IOAPIC's base address.
    pub fn ioapic_write(&self, offset: u64, width: Width, value: u64) {
        self.ioapic.lock().mmio_write(offset, width, value, &mut |message| self.deliver_from_ioapic(message));
    }

    /// Whether an interrupt of the 8259 pair gets through to a processor.
    fn takes_extint(&self) -> bool {
        self.apics.first().is_some_and(|bsp| bsp.lint0_accepts_extint())
            || self.ioapic.lock().unmasked(EXTINT_PIN).is_some_and(|message| message.delivery == DeliveryMode::ExtInt)
    }

    /// What the last such message has come to at its destinations.
    fn message_state(&self, message: &InterruptMessage) -> PinState {
        if !message.delivery.is_vectored() {
            return PinState::Ready;
        }
        let set = self.destinations(None, Shorthand::None, message);
        let mut taken = set.iter().filter_map(|index| self.apics.get(index)).filter(|apic| apic.software_enabled()).peekable();
        match (taken.peek().is_some(), taken.any(|apic| apic.is_requested(message.vector))) {
            (false, _) => PinState::Masked,
            (true, false) => PinState::Ready,
            (true, true) => PinState::Waiting,
        }
    }

    /// The machine's NMI line, at LINT1 of every processor.
    pub fn set_nmi(&self, high: bool) {
        for (index, apic) in self.apics.iter().enumerate() {
            if apic.set_lint1(high) {
                self.wake(CpuSet::single(index));
            }
        }
    }

    #[must_use]
    pub fn save(&self) -> RouterState {
        let wires = self.wires.lock();
        let Wires { pic, output: _, holders, pirq_routes } = &*wires;
        let ioapic = self.ioapic.lock().save();
        RouterState { pic: pic.save(), ioapic, holders: *holders, pirq_routes: *pirq_routes }
    }

    /// Takes on a saved state. The local APICs are to be restored, too.
    pub fn restore(&self, state: &RouterState) {
        let RouterState { pic, ioapic, holders, pirq_routes } = state;
        let mut wires = self.wires.lock();
        wires.pic.restore(pic);
        wires.output = wires.pic.output();
        wires.holders = *holders;
        wires.pirq_routes = *pirq_routes;
        self.ioapic.lock().restore(ioapic);
    }
}

impl LineSink for InterruptRouter {
    /// A device drives line `pin`: ISA IRQ 0 to 15, or 16 to 23 for PIRQA to PIRQH. Several devices may share a line; it is high while any
    /// of them holds it so, which works because each [`crate::Line`] reports changes only.
    fn set_level(&self, pin: u32, high: bool) {
        let line = pin as usize;
        let mut wires = self.wires.lock();
        let Some(holders) = wires.holders.get_mut(line) else { return };
        let old = *holders;
        *holders = if high { old.saturating_add(1) } else { old.saturating_sub(1) };
        if (old != 0) == (*holders != 0) {
            return;
        }
        let irq = match line.checked_sub(FIRST_PIRQ) {
            None => Some(line as u8),
            Some(pirq) => wires.pirq_routes.get(pirq).copied().flatten(),
        };
        if let Some(irq) = irq {
            let level = wires.isa_level(irq);
            wires.pic.set_level(irq, level);
            self.update_output(&mut wires);
        }
        // The wires stay locked, so that the level arrives at the IOAPIC in the order in which it changes.
        match line {
            0 => self.set_pin(PIT_PIN, high),
            // The second 8259 is here; the pin is the PIT's.
            PIT_PIN => {}
            line if line < ioapic::PINS => self.set_pin(line, high),
            _ => {}
        }
    }

    fn state(&self, pin: u32) -> PinState {
        let line = pin as usize;
        let wires = self.wires.lock();
        let irq = match line.checked_sub(FIRST_PIRQ) {
            None => u8::try_from(line).ok(),
            Some(pirq) => wires.pirq_routes.get(pirq).copied().flatten(),
        };
        // Through the pair only if its output leads to a processor.
        let waits = irq.and_then(|irq| wires.pic.waits(irq)).filter(|_| self.takes_extint());
        let at_pic = match waits {
            None => PinState::Masked,
            Some(false) => PinState::Ready,
            Some(true) => PinState::Waiting,
        };
        let io_pin = match line {
            0 => PIT_PIN,
            PIT_PIN => return at_pic,
            line => line,
        };
        let message = self.ioapic.lock().unmasked(io_pin);
        at_pic.max(message.map_or(PinState::Masked, |message| self.message_state(&message)))
    }
}

impl MessageSink for InterruptRouter {
    fn write(&self, address: u64, data: u32) {
        if let Some(message) = InterruptMessage::from_msi(address, data) {
            self.deliver(message);
        }
    }

    fn state(&self, address: u64, data: u32) -> PinState {
        InterruptMessage::from_msi(address, data).map_or(PinState::Masked, |message| self.message_state(&message))
    }
}

/// What became of a message.
#[derive(Clone, Copy, Default)]
struct Delivery {
    /// Some local APIC has it now.
    accepted: bool,
    woken: CpuSet,
}

impl Delivery {
    fn add(&mut self, index: usize, posted: Posted) {
        self.accepted |= posted != Posted::Refused;
        if posted == Posted::New {
            self.woken.insert(index);
        }
    }
}

/// The offset in the [`Pic`]'s claim of one of its ports.
const fn pic_offset(port: u16) -> Option<u16> {
    Some(match port {
        0x20 | 0x21 => MASTER_OFFSET + port - 0x20,
        0xa0 | 0xa1 => SLAVE_OFFSET + port - 0xa0,
        0x4d0 | 0x4d1 => ELCR_OFFSET + port - 0x4d0,
        _ => return None,
    })
}

#[cfg(all(test, not(loom)))]
mod tests;
