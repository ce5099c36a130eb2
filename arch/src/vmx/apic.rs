//! The local APIC virtualised by the CPU, in x2APIC mode.
//!
//! Manual: see [`super::spec`], chapter 31.

use super::{
    caps::{APIC_PRIMARY, APIC_SECONDARY, CR8_PRIMARY},
    spec::{control, guest},
    vcpu::VmxVcpu,
};
use crate::mm::direct;
use x86defs::PAGE_SIZE;

impl VmxVcpu {
    /// Tells the VMCS where the page is, if it may be used at all.
    pub(super) fn write_apic_page(&mut self) {
        if let Some(page) = &self.apic_page {
            // The page stays there for as long as `apic_page` is held.
            let address = direct::to_phys(page.registers());
            self.vmcs.write(control::VIRT_APIC_ADDR_FULL, address.0);
        }
    }

    pub(super) const fn has_apic_page(&self) -> bool {
        self.apic_page.is_some()
    }

    /// Has the CPU virtualise the local APIC in x2APIC mode, with this vector in service (0: none), or not at all.
    pub(super) fn set_virtual_apic(&mut self, in_service: Option<u8>) {
        if self.apic_page.is_none() {
            return;
        }
        let on = in_service.is_some();
        self.set_primary(CR8_PRIMARY, !on);
        self.set_primary(APIC_PRIMARY, on);
        let secondary = self.controls.secondary | if on { APIC_SECONDARY.bits() } else { 0 };
        self.vmcs.write(control::SECONDARY_PROCBASED_EXEC_CONTROLS, u64::from(secondary));
        // The second page is for x2APIC mode.
        let bitmap = self.msr_bitmaps.hpa().0 + if on { PAGE_SIZE } else { 0 };
        self.vmcs.write(control::MSR_BITMAPS_ADDR_FULL, bitmap);
        self.vmcs.write(guest::INTERRUPT_STATUS, u64::from(in_service.unwrap_or(0)) << 8);
    }

    /// The highest vector that the virtual IRR requests (26.4.2: RVI, the low byte; SVI, which the CPU keeps, is the high one).
    pub(super) fn set_requested(&mut self, vector: u8) {
        let now = self.vmcs.read(guest::INTERRUPT_STATUS);
        let wanted = now & !0xff | u64::from(vector);
        if wanted != now {
            self.vmcs.write(guest::INTERRUPT_STATUS, wanted);
        }
    }

    /// 26.6.8: a bit for each vector, in four fields.
    pub(super) fn write_eoi_exits(&mut self, vectors: &[u32; 8]) {
        const FIELDS: [u32; 4] =
            [control::EOI_EXIT0_FULL, control::EOI_EXIT1_FULL, control::EOI_EXIT2_FULL, control::EOI_EXIT3_FULL];
        for (field, words) in FIELDS.into_iter().zip(vectors.chunks_exact(2)) {
            self.vmcs.write(field, u64::from(words[1]) << 32 | u64::from(words[0]));
        }
    }
}
