//! MSR exits: the local APIC's registers first (they are the hot ones), then the rest of the policy.

use super::{Context, VirtCpu, paravirt, pvclock, viridian};
use devices::lapic::{Effect, QuickEffect};
use x86defs::{Exception, Platform, Resume, Vcpu, msr};

/// IA32_APIC_BASE: x2APIC mode.
const X2APIC_ENABLE: u64 = 1 << 10;
const X2APIC: core::ops::RangeInclusive<u32> = msr::X2APIC_BASE..=msr::X2APIC_LAST;

impl<P: Platform> VirtCpu<P> {
    #[inline]
    pub(super) fn msr_read(&mut self, cx: &Context<'_, P>, index: u32) {
        let value = match index {
            index if X2APIC.contains(&index) => self.apic.msr_read(cx, index).map_err(|_| super::Gp),
            msr::IA32_APIC_BASE => Ok(self.apic.base_msr()),
            msr::IA32_TSC_DEADLINE if self.cpuid.has_tsc_deadline() => Ok(self.apic.tsc_deadline()),
            pvclock::WALL_CLOCK | pvclock::SYSTEM_TIME => Ok(self.pvclock.read(index)),
            paravirt::STEAL_TIME | paravirt::POLL_CONTROL => Ok(self.paravirt.read(index)),
            _ => self.general_msr_read(cx, index),
        };
        match value {
            Ok(value) => self.hw.complete(Resume::MsrRead(value)),
            Err(_) => self.msr_fault("RDMSR", index),
        }
    }

    #[inline(never)]
    fn general_msr_read(&self, cx: &Context<'_, P>, index: u32) -> Result<u64, super::Gp> {
        if viridian::MSRS.contains(&index) {
            return self.viridian_read(cx, index);
        }
        self.msrs.read(&self.hw, &self.cpuid, || self.tsc_counter(cx), index)
    }

    #[inline(always)]
    pub(super) fn msr_write(&mut self, cx: &Context<'_, P>, index: u32, value: u64) {
        match self.apic.quick_msr_write(cx, index, value) {
            Some(QuickEffect::None) => {}
            Some(QuickEffect::Timer) => cx.arm_own(self.apic.deadline()),
            Some(QuickEffect::Eoi(vector)) => self.outer_effect(cx, Effect::Eoi { vector }),
            // What systems write over and over to be sure.
            None if index == msr::IA32_EFER && value == self.hw.efer() => {}
            None => return self.other_msr_write(cx, index, value),
        }
        self.hw.complete(Resume::Advance);
    }

    #[inline(never)]
    fn other_msr_write(&mut self, cx: &Context<'_, P>, index: u32, value: u64) {
        let result = match index {
            index if X2APIC.contains(&index) => self.x2apic_write(cx, index, value),
            msr::IA32_APIC_BASE if value & X2APIC_ENABLE != 0 && !self.cpuid.has_x2apic() => Err(super::Gp),
            msr::IA32_APIC_BASE => {
                let result = self.apic.set_base_msr(value, self.cpuid.phys_bits()).map_err(|_| super::Gp);
                self.update_virtual_apic();
                result
            }
            msr::IA32_TSC_DEADLINE if self.cpuid.has_tsc_deadline() => {
                self.tsc_deadline_write(cx, value);
                Ok(())
            }
            pvclock::WALL_CLOCK | pvclock::SYSTEM_TIME => self.pvclock_write(cx, index, value),
            paravirt::STEAL_TIME | paravirt::POLL_CONTROL => self.paravirt_write(index, value),
            index if viridian::MSRS.contains(&index) => self.viridian_write(cx, index, value),
            _ => {
                let mode = self.tsc_mode;
                let counter = || mode.counter(&cx.clock, cx.platform.tsc());
                let result = self.msrs.write(&mut self.hw, &self.cpuid, counter, index, value);
                if matches!(index, msr::IA32_TIME_STAMP_COUNTER | msr::IA32_TSC_ADJUST) {
                    self.update_pvclock(cx);
                }
                result
            }
        };
        match result {
            Ok(()) => self.hw.complete(Resume::Advance),
            Err(_) => self.msr_fault("WRMSR", index),
        }
    }

    #[inline]
    fn x2apic_write(&mut self, cx: &Context<'_, P>, index: u32, value: u64) -> Result<(), super::Gp> {
        let effect = self.apic.msr_write(cx, index, value).map_err(|_| super::Gp)?;
        self.apic_effect(cx, effect);
        Ok(())
    }

    /// Carries out what a register write of the local APIC asks for. Its timer concerns this CPU alone.
    #[inline(always)]
    fn apic_effect(&self, cx: &Context<'_, P>, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Timer => cx.arm_own(self.apic.deadline()),
            effect => self.outer_effect(cx, effect),
        }
    }

    /// An effect beyond the local APIC.
    #[inline(never)]
    pub(super) fn outer_effect(&self, cx: &Context<'_, P>, effect: Effect) {
        self.vm.board.lapic_effect(self.id, effect);
        self.wake_others(cx);
    }

    #[inline]
    fn tsc_deadline_write(&mut self, cx: &Context<'_, P>, value: u64) {
        let host_tsc = cx.platform.tsc();
        let guest_tsc = self.tsc_mode.counter(&cx.clock, host_tsc).wrapping_add(self.msrs.tsc_offset());
        let effect = self.apic.set_tsc_deadline(cx.clock.at(host_tsc), guest_tsc, self.tsc_mode.to_ns(&cx.clock), value);
        self.apic_effect(cx, effect);
    }

    #[cold]
    fn msr_fault(&mut self, what: &str, index: u32) {
        crate::log::debug!(target: crate::log::GUEST, "guest {}: {what} {index:#x} raises #GP", self.vm.name());
        self.fault(Exception::GP);
    }
}
