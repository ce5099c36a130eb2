//! The local APIC virtualised by the CPU, in xAPIC and in x2APIC mode.
//!
//! Manual: see [`super::spec`], chapter 31.

use super::{
    caps::{APIC_PRIMARY, APIC_SECONDARY, CR8_PRIMARY, XAPIC_SECONDARY},
    spec::{control, guest},
    vcpu::VmxVcpu,
};
use crate::mm::direct;
use x86defs::{ApicAccess, Hpa, PAGE_SIZE};

impl VmxVcpu {
    /// Tells the VMCS where the page is, if it may be used at all.
    pub(super) fn write_apic_page(&mut self) {
        if let Some(page) = &self.apic_page {
            // The page stays there for as long as `apic_page` is held.
            let address = direct::to_phys(page.registers());
            self.vmcs.write(control::VIRT_APIC_ADDR_FULL, address.0);
            if let Some((_, access_page)) = self.apic_window() {
                self.vmcs.write(control::APIC_ACCESS_ADDR_FULL, access_page.0);
            }
        }
    }

    /// The stage-2 root with the APIC-access page, and that page.
    fn apic_window(&self) -> Option<(Hpa, Hpa)> {
        self.memory.apic_window().filter(|_| self.controls.virtual_xapic)
    }

    pub(super) fn has_virtual_apic(&self, access: ApicAccess) -> bool {
        self.apic_page.is_some()
            && match access {
                ApicAccess::Memory => self.apic_window().is_some(),
                ApicAccess::Msrs => self.controls.virtual_apic,
            }
    }

    /// Has the CPU virtualise the local APIC, reached in this way and with this vector in service (0: none), or not at all.
    pub(super) fn set_virtual_apic(&mut self, start: Option<(ApicAccess, u8)>) {
        if self.apic_page.is_none() {
            return;
        }
        let access = start.map(|(access, _)| access);
        self.set_primary(CR8_PRIMARY, access.is_none());
        self.set_primary(APIC_PRIMARY, access.is_some());
        let (root, _) = self.apic_window().filter(|_| access == Some(ApicAccess::Memory)).unwrap_or((self.memory.root(), Hpa(0)));
        let (secondary, bitmap) = match access {
            Some(ApicAccess::Memory) => (XAPIC_SECONDARY.bits(), 0),
            // The second page is for x2APIC mode.
            Some(ApicAccess::Msrs) => (APIC_SECONDARY.bits(), PAGE_SIZE),
            None => (0, 0),
        };
        self.vmcs.write(control::SECONDARY_PROCBASED_EXEC_CONTROLS, u64::from(self.controls.secondary | secondary));
        self.vmcs.write(control::MSR_BITMAPS_ADDR_FULL, self.msr_bitmaps.hpa().0 + bitmap);
        self.set_ept_root(root);
        self.vmcs.write(guest::INTERRUPT_STATUS, u64::from(start.map_or(0, |(_, in_service)| in_service)) << 8);
    }

    /// The guest's memory is what the tables below this root say, with all else as it is.
    fn set_ept_root(&mut self, root: Hpa) {
        let pointer = super::ept_pointer(root);
        if pointer != self.ept_pointer {
            self.ept_pointer = pointer;
            self.vmcs.write(control::EPTP_FULL, pointer);
            self.want_flush();
        }
    }

    /// The highest vector that the virtual IRR requests (26.4.2: RVI, the low byte; SVI, which the CPU keeps, is the high one).
    pub(super) fn set_requested(&mut self, vector: u8) {
        let now = self.vmcs.read(guest::INTERRUPT_STATUS);
        let wanted = now & !0xff | u64::from(vector);
        if wanted != now {
            self.vmcs.write(guest::INTERRUPT_STATUS, wanted);
        }
    }

    /// SVI.
    pub(super) fn write_in_service(&mut self, vector: u8) {
        let now = self.vmcs.read(guest::INTERRUPT_STATUS);
        self.vmcs.write(guest::INTERRUPT_STATUS, now & 0xff | u64::from(vector) << 8);
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
