//! A local APIC that the CPU virtualises, where it can: the guest's EOI, TPR, self IPI and in x2APIC mode most reads are no exits, and interrupts that
//! have been handed over are delivered by the CPU when the guest can take them.

use super::{Context, Stop, VirtCpu};
use devices::{interrupt::ApicMode, lapic::Effect};
use x86defs::{ApicAccess, LOCAL_APIC, Platform, Vcpu};

impl<P: Platform> VirtCpu<P> {
    /// True if the CPU virtualises the local APIC now.
    #[inline(always)]
    pub(super) fn has_virtual_apic(&self) -> bool {
        P::Vcpu::CAN_VIRTUALISE_APIC && self.virtual_apic.is_some()
    }

    /// The local APIC's mode may have changed.
    pub(super) fn update_virtual_apic(&mut self) {
        let access = match self.apic.mode() {
            ApicMode::X2Apic => Some(ApicAccess::Msrs),
            // Anywhere else, the page is found by the stage-2 faults that it makes.
            ApicMode::XApic if self.apic.mmio_base() == Some(LOCAL_APIC.0) => Some(ApicAccess::Memory),
            ApicMode::XApic | ApicMode::Disabled => None,
        };
        let wanted = access.filter(|&access| P::Vcpu::CAN_VIRTUALISE_APIC && self.hw.can_virtualise_apic(access));
        if wanted == self.virtual_apic {
            return;
        }
        self.end_virtual_apic();
        if let Some(access) = wanted {
            let in_service = self.apic.lend_page();
            self.hw.virtualise_apic(Some((access, in_service)));
            self.hw.request_interrupt_window(false);
            self.virtual_apic = wanted;
        }
    }

    /// The CPU virtualises the local APIC no longer.
    pub(super) fn end_virtual_apic(&mut self) {
        if self.has_virtual_apic() {
            self.hw.virtualise_apic(None);
            self.apic.take_page_back();
            self.virtual_apic = None;
        }
    }

    /// As [`VirtCpu::deliver`]: the CPU gets the requests, and the 8259 pair's interrupt is injected.
    #[inline(never)]
    pub(super) fn deliver_virtual(&mut self) {
        if let Some((vectors, in_service)) = self.apic.changed_levels() {
            self.hw.set_eoi_exits(&vectors);
            self.hw.set_in_service(in_service);
        }
        let vector = self.apic.hand_over();
        self.hw.request_virtual_interrupt(vector);
        let mut waiting = self.apic.has_extint();
        if waiting && self.hw.can_take_interrupt() {
            self.take_extint();
            waiting = self.apic.has_extint();
        }
        self.window |= waiting;
        self.hw.request_interrupt_window(waiting);
    }

    /// The guest has sent an IPI that is for others, or an illegal one.
    pub(super) fn virtual_apic_write(&mut self, cx: &Context<'_, P>, offset: u32) -> Result<(), Stop> {
        let effect = self.apic.virtual_write(offset);
        if effect != Effect::None {
            self.outer_effect(cx, effect);
        }
        self.after_device_access(cx)
    }

    /// A level-triggered interrupt is done.
    #[cold]
    pub(super) fn virtual_eoi(&mut self, cx: &Context<'_, P>, vector: u8) -> Result<(), Stop> {
        let effect = self.apic.virtual_eoi(vector);
        self.outer_effect(cx, effect);
        self.after_device_access(cx)
    }
}
