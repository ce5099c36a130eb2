//! The KVM-compatible paravirtual clock (Linux, Documentation/virt/kvm/x86/msr.rst): two MSRs by which a guest says where it wants to read
//! the TSC's rate and the wall clock. Kernels learn the TSC's frequency from it without measuring.

use super::{Context, Gp, VirtCpu};
use x86defs::{Gpa, GuestMemory, GuestMemoryExt, Platform};

/// MSR_KVM_WALL_CLOCK_NEW: where the wall clock at the guest's start goes.
pub const WALL_CLOCK: u32 = 0x4b56_4d00;
/// MSR_KVM_SYSTEM_TIME_NEW: where the clock page goes; bit 0 enables it.
pub const SYSTEM_TIME: u32 = 0x4b56_4d01;
/// CPUID 4000_0001H EAX: the two MSRs exist; the clock is the same on all vCPUs.
pub const FEATURES: u32 = 1 << 3 | 1 << 24;

const ENABLE: u64 = 1;
/// `pvclock_vcpu_time_info.flags`: all vCPUs read the same time.
const TSC_STABLE: u8 = 1;

/// What the guest has written to the two MSRs.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct PvClock {
    system_time: u64,
    wall_clock: u64,
}

impl PvClock {
    pub(super) const fn read(&self, index: u32) -> u64 {
        if index == SYSTEM_TIME { self.system_time } else { self.wall_clock }
    }

    /// The guest no longer wants a clock page: after INIT, its memory may be used for something else.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Multiplier and shift such that ns = (ticks << shift) * mul >> 32 for a counter of `hz`.
fn scale(hz: u64) -> (u32, i8) {
    let hz = u128::from(hz.max(1));
    let mut shift = 0i8;
    // 2^31 <= mul < 2^32 gives the most precision.
    let mul = |shift: i8| {
        let numerator = 1_000_000_000u128 << 32;
        if shift >= 0 { (numerator >> shift) / hz } else { (numerator << -shift) / hz }
    };
    while mul(shift) > u128::from(u32::MAX) && shift < 31 {
        shift += 1;
    }
    while mul(shift) < 1 << 31 && shift > -31 {
        shift -= 1;
    }
    (mul(shift) as u32, shift)
}

impl<P: Platform> VirtCpu<P> {
    pub(super) fn pvclock_write(&mut self, cx: &Context<'_, P>, index: u32, value: u64) -> Result<(), Gp> {
        if index == WALL_CLOCK {
            self.write_wall_clock(cx, Gpa(value)).map_err(|_| Gp)?;
            self.pvclock.wall_clock = value;
            return Ok(());
        }
        let at = Gpa(value & !ENABLE);
        if value & ENABLE != 0 && (!at.is_aligned(4) || !self.vm.memory.is_ram(at, 32)) {
            return Err(Gp);
        }
        self.pvclock.system_time = value;
        self.update_pvclock(cx);
        Ok(())
    }

    /// Writes the clock page anew: when it is set up, and when the guest has changed its TSC.
    pub(super) fn update_pvclock(&self, cx: &Context<'_, P>) {
        if self.pvclock.system_time & ENABLE == 0 {
            return;
        }
        let at = Gpa(self.pvclock.system_time & !ENABLE);
        // All vCPUs count from the same point: were it "now", rounding would let one read a nanosecond less than another before it, which the
        // flag below rules out.
        let origin = self.msrs.tsc_origin();
        let guest_tsc = origin.wrapping_add(self.msrs.tsc_offset());
        let system_time = self.tsc_mode.time_of(&cx.clock, origin).since(self.vm.started).0;
        let (mul, shift) = scale(self.tsc_mode.hz(cx.clock.tsc_hz()));
        // An odd version while the page changes; readers retry. An error is impossible: the address was checked, and RAM never moves.
        let old = self.vm.memory.read_u32(at).unwrap_or(0);
        let version = (old | 1).wrapping_add(1);
        let mut page = [0u8; 28];
        let fields: [(usize, &[u8]); 5] = [
            (4, &guest_tsc.to_le_bytes()),
            (12, &system_time.to_le_bytes()),
            (20, &mul.to_le_bytes()),
            (24, &shift.to_le_bytes()),
            (25, &[TSC_STABLE]),
        ];
        for (start, bytes) in fields {
            for (slot, byte) in page.iter_mut().skip(start).zip(bytes) {
                *slot = *byte;
            }
        }
        let memory = &self.vm.memory;
        let _ = memory.write(at, &version.wrapping_sub(1).to_le_bytes());
        let _ = memory.write(at.wrapping_add(4), &page);
        let _ = memory.write(at, &version.to_le_bytes());
    }

    /// version, seconds, nanoseconds: the wall clock when the guest's system time was zero.
    fn write_wall_clock(&self, cx: &Context<'_, P>, at: Gpa) -> Result<(), x86defs::OutsideRam> {
        let ms = cx.platform.wall_clock_ms(cx.clock.tsc_at(self.vm.started));
        let old = self.vm.memory.read_u32(at)?;
        let version = (old | 1).wrapping_add(1);
        let mut bytes = [0u8; 12];
        let words = [version, (ms / 1000) as u32, (ms % 1000 * 1_000_000) as u32];
        for (slot, byte) in bytes.iter_mut().zip(words.iter().flat_map(|w| w.to_le_bytes())) {
            *slot = byte;
        }
        self.vm.memory.write(at, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::scale;

    #[test]
    fn scale_is_exact_to_a_billionth() {
        for hz in [1_000_000_000u64, 2_445_421_000, 3_700_000_123, 999_999_999, 500_000_000] {
            let (mul, shift) = scale(hz);
            let ticks = hz * 10;
            let shifted = if shift >= 0 { u128::from(ticks) << shift } else { u128::from(ticks) >> -shift };
            let ns = ((shifted * u128::from(mul)) >> 32) as u64;
            assert!(ns.abs_diff(10_000_000_000) <= 10, "{hz} Hz: {ns} ns");
        }
    }
}
