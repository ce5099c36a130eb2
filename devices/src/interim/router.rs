//! From lines and messages to local APICs: the 8259 pair, the I/O APIC, IPIs.

use super::{
    ioapic::{InterruptMessage, IoApic},
    lapic::{DeliveryMode, Effect, Ipi, LocalApic},
    pic::Pic,
};
use crate::LineSink;
use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Mutex;
use x86defs::Width;

/// What a vCPU would take now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pending {
    /// A vector of its local APIC.
    Lapic(u8),
    /// One from the 8259 pair; acknowledge it to learn the vector.
    ExtInt,
}

/// Owns the 8259 pair and the I/O APIC, and knows the local APICs. Lock order: 8259 pair, then I/O APIC.
pub struct InterruptRouter {
    pic: Mutex<Pic>,
    ioapic: Mutex<IoApic>,
    apics: Vec<Arc<LocalApic>>,
    /// vCPUs that got something since this was last taken, bit n = vCPU n.
    woken: AtomicU64,
    /// Where the next lowest-priority arbitration starts.
    turn: AtomicU64,
}

impl InterruptRouter {
    #[must_use]
    pub fn new(apics: Vec<Arc<LocalApic>>) -> Self {
        Self {
            pic: Mutex::new(Pic::default()),
            ioapic: Mutex::new(IoApic::default()),
            apics,
            woken: AtomicU64::new(0),
            turn: AtomicU64::new(0),
        }
    }

    /// The local APICs, by vCPU.
    #[must_use]
    pub fn apics(&self) -> &[Arc<LocalApic>] {
        &self.apics
    }

    /// vCPUs that got something since the last call, as a bitmap.
    pub fn take_woken(&self) -> u64 {
        self.woken.swap(0, Ordering::AcqRel)
    }

    /// Delivers an I/O APIC's or a device's message.
    pub fn deliver(&self, message: InterruptMessage) {
        let addressed = |apic: &&Arc<LocalApic>| apic.is_addressed(message.target, false, None);
        if message.mode == DeliveryMode::LowestPriority {
            let start = self.turn.fetch_add(1, Ordering::Relaxed) as usize % self.apics.len().max(1);
            let (before, from) = self.apics.split_at(start);
            if let Some(apic) = from.iter().chain(before).find(addressed) {
                self.post(apic, DeliveryMode::Fixed, message.vector, message.level);
            }
            return;
        }
        for apic in self.apics.iter().filter(addressed) {
            self.post(apic, message.mode, message.vector, message.level);
        }
    }

    /// Delivers an IPI that vCPU `sender` sends.
    pub fn send_ipi(&self, sender: u32, ipi: Ipi) {
        let addressed = |apic: &&Arc<LocalApic>| apic.is_addressed(ipi.target, ipi.wide, Some(sender));
        if ipi.mode == DeliveryMode::LowestPriority {
            if let Some(apic) = self.apics.iter().find(addressed) {
                self.post(apic, DeliveryMode::Fixed, ipi.vector, false);
            }
            return;
        }
        for apic in self.apics.iter().filter(addressed) {
            self.post(apic, ipi.mode, ipi.vector, false);
        }
    }

    fn post(&self, apic: &LocalApic, mode: DeliveryMode, vector: u8, level: bool) {
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                apic.post(vector, level);
            }
            DeliveryMode::Nmi => apic.post_nmi(),
            DeliveryMode::Init => apic.post_init(),
            DeliveryMode::StartUp => apic.post_sipi(vector),
            // No SMM; ExtINT follows the 8259 pair's output.
            DeliveryMode::Smi | DeliveryMode::ExtInt => {}
        }
        self.woken.fetch_or(1 << (apic.id() & 63), Ordering::AcqRel);
    }

    /// Carries out what a local APIC's register write asks for.
    pub fn effect(&self, sender: u32, effect: Effect) {
        match effect {
            Effect::None | Effect::Timer => {}
            Effect::Ipi(ipi) => self.send_ipi(sender, ipi),
            Effect::Eoi { vector } => self.ioapic.lock().eoi(vector, &mut |m| self.deliver(m)),
        }
        self.update_extint();
    }

    /// What vCPU `vcpu` would take now. The 8259 pair comes before the local APIC, as its pin does on the chip.
    #[must_use]
    pub fn pending(&self, vcpu: u32) -> Option<Pending> {
        let apic = self.apics.get(vcpu as usize)?;
        if apic.extint_pending() {
            return Some(Pending::ExtInt);
        }
        apic.highest_pending().map(Pending::Lapic)
    }

    /// The processor's interrupt acknowledge to the 8259 pair: the vector.
    pub fn acknowledge_extint(&self) -> u8 {
        let vector = self.pic.lock().acknowledge();
        self.update_extint();
        vector
    }

    /// The 8259 pair's output reaches the boot processor's LINT0, or an I/O APIC pin in ExtINT mode.
    fn update_extint(&self) {
        let Some(bsp) = self.apics.first() else { return };
        let pending = self.pic.lock().output() && (bsp.lint0_extint() || self.ioapic.lock().extint_enabled());
        bsp.set_extint(pending);
        if pending {
            self.woken.fetch_or(1, Ordering::AcqRel);
        }
    }

    /// Ports 20H, 21H, A0H, A1H, 4D0H, 4D1H.
    pub fn pic_read(&self, port: u16) -> u8 {
        let value = self.pic.lock().port_read(port);
        self.update_extint();
        value
    }

    pub fn pic_write(&self, port: u16, value: u8) {
        self.pic.lock().port_write(port, value);
        self.update_extint();
    }

    #[must_use]
    pub fn ioapic_read(&self, offset: u64, width: Width) -> u64 {
        self.ioapic.lock().mmio_read(offset, width)
    }

    pub fn ioapic_write(&self, offset: u64, value: u64) {
        self.ioapic.lock().mmio_write(offset, value, &mut |m| self.deliver(m));
        self.update_extint();
    }
}

impl LineSink for InterruptRouter {
    /// `pin` is an ISA IRQ 0-15, or a GSI from 16 on. ISA IRQ 0 is I/O APIC pin 2; the others have their own number.
    fn set_level(&self, pin: u32, high: bool) {
        if pin < 16 {
            self.pic.lock().set_level(pin as u8, high);
        }
        let gsi = if pin == 0 { 2 } else { pin };
        self.ioapic.lock().set_level(gsi, high, &mut |m| self.deliver(m));
        self.update_extint();
    }
}
