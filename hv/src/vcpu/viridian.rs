//! What Hyper-V offers its guests, for those that know it (`viridian`; Hypervisor Top-Level Functional Specification 6.0b, "TLFS"): Windows, and
//! Linux. Interface and privileges, hypercall page, reference time as counter and as page, frequencies, processor index, crash reports.
//!
//! Not offered: the synthetic interrupt controller with its timers, the local APIC's registers as MSRs of their own and assists by a page (an x2APIC, or
//! a virtual one, is as cheap), and every hypercall but the notice of a long spin wait.

use super::{APIC_BUS_HZ, Context, Gp, Stop, VirtCpu};
use crate::{config::Viridian, log};
use core::sync::atomic::{AtomicU64, Ordering};
use x86defs::{CpuidResult, Gpa, Gpr, GuestMemory, GuestMemoryExt, Platform, Resume, Vcpu};

/// TLFS 2.4: "Microsoft Hv", and "Hv#1", which says that all else is as here.
const SIGNATURE: [u32; 3] = [0x7263_694d, 0x666f_736f, 0x7648_2074];
const INTERFACE: u32 = 0x3123_7648;
const MAX_LEAF: u32 = 0x4000_0006;

/// Privileges (TLFS 2.4.2, leaf 4000_0003H EAX).
mod privilege {
    pub const TIME_REF_COUNT: u32 = 1 << 1;
    pub const HYPERCALL_MSRS: u32 = 1 << 5;
    pub const VP_INDEX: u32 = 1 << 6;
    pub const REFERENCE_TSC: u32 = 1 << 9;
    pub const FREQUENCIES: u32 = 1 << 11;
}
/// The same leaf's EDX: the frequency MSRs and the crash MSRs are there.
const FREQUENCY_MSRS: u32 = 1 << 8;
const CRASH_MSRS: u32 = 1 << 10;
/// Leaf 4000_0004H EAX: do not rely on interrupts coming in time.
const RELAXED_TIMING: u32 = 1 << 5;
/// The same leaf's EBX: spins before a guest says that it waits long.
const SPINLOCK_RETRIES: u32 = 2047;

/// The MSRs (TLFS appendix C).
mod index {
    pub const GUEST_OS_ID: u32 = 0x4000_0000;
    pub const HYPERCALL: u32 = 0x4000_0001;
    pub const VP_INDEX: u32 = 0x4000_0002;
    pub const TIME_REF_COUNT: u32 = 0x4000_0020;
    pub const REFERENCE_TSC: u32 = 0x4000_0021;
    pub const TSC_FREQUENCY: u32 = 0x4000_0022;
    pub const APIC_FREQUENCY: u32 = 0x4000_0023;
    pub const CRASH_P0: u32 = 0x4000_0100;
    pub const CRASH_CTL: u32 = 0x4000_0105;
}
/// All MSRs that may be there.
pub(super) const MSRS: core::ops::RangeInclusive<u32> = index::GUEST_OS_ID..=0x4000_01ff;

/// Bit 0 of HYPERCALL and REFERENCE_TSC; the page's number is in the bits from 12 on.
const ENABLE: u64 = 1;
/// HYPERCALL: no more changes.
const LOCKED: u64 = 1 << 1;
const PAGE: u64 = !0xfff;
/// CRASH_CTL: the parameters are complete; they are the address and the size of a text.
const CRASH_NOTIFY: u64 = 1 << 63;
const CRASH_MESSAGE: u64 = 1 << 62;
/// Bytes of a text that are shown.
const LONGEST_MESSAGE: usize = 512;
/// Units of the reference time in a second (100 ns).
const REFERENCE_HZ: u64 = 10_000_000;

/// HvCallNotifyLongSpinWait (TLFS 14.11.7).
const LONG_SPIN_WAIT: u64 = 8;
/// Results of hypercalls (TLFS appendix B).
const SUCCESS: u64 = 0;
const INVALID_HYPERCALL_CODE: u64 = 2;
/// VMCALL or VMMCALL, and RET.
const PAGE_AMD: [u8; 4] = [0x0f, 0x01, 0xd9, 0xc3];
const PAGE_INTEL: [u8; 4] = [0x0f, 0x01, 0xc1, 0xc3];

/// What all vCPUs of a guest share.
#[derive(Debug, Default)]
pub struct Partition {
    guest_os_id: AtomicU64,
    hypercall: AtomicU64,
    reference_tsc: AtomicU64,
    crash: [AtomicU64; 5],
}

impl Partition {
    /// True if the guest has said what it is, without which there are no hypercalls (TLFS 3.13).
    pub(super) fn is_established(&self) -> bool {
        self.guest_os_id.load(Ordering::Relaxed) != 0
    }
}

/// The leaves from 4000_0000H to [`MAX_LEAF`], for a guest of `vcpus` vCPUs.
pub(super) fn leaf(offered: Viridian, leaf: u32, vcpus: u32) -> CpuidResult {
    let zero = CpuidResult::default();
    match leaf & 0xff {
        0 => CpuidResult { eax: MAX_LEAF, ebx: SIGNATURE[0], ecx: SIGNATURE[1], edx: SIGNATURE[2] },
        1 => CpuidResult { eax: INTERFACE, ..zero },
        // The version that the interface is of, as Hyper-V counts its own: 6.1, build 7100.
        2 => CpuidResult { eax: 7100, ebx: 6 << 16 | 1, ..zero },
        3 => {
            let mut eax = privilege::HYPERCALL_MSRS | privilege::VP_INDEX;
            let mut edx = 0;
            for (group, privileges, features) in [
                (Viridian::FREQ, privilege::FREQUENCIES, FREQUENCY_MSRS),
                (Viridian::TIME_REF_COUNT, privilege::TIME_REF_COUNT, 0),
                (Viridian::REFERENCE_TSC, privilege::REFERENCE_TSC, 0),
                (Viridian::CRASH_CTL, 0, CRASH_MSRS),
            ] {
                if offered.contains(group) {
                    eax |= privileges;
                    edx |= features;
                }
            }
            CpuidResult { eax, edx, ..zero }
        }
        4 => CpuidResult { eax: RELAXED_TIMING, ebx: SPINLOCK_RETRIES, ..zero },
        5 => CpuidResult { eax: vcpus, ebx: vcpus, ..zero },
        _ => zero,
    }
}

/// The scale by which TSC ticks become units of 100 ns: ticks * scale / 2^64 (TLFS 12.7.2).
const fn reference_scale(tsc_hz: u64) -> u64 {
    let hz = if tsc_hz > REFERENCE_HZ { tsc_hz } else { REFERENCE_HZ + 1 };
    (((REFERENCE_HZ as u128) << 64) / hz as u128) as u64
}

impl<P: Platform> VirtCpu<P> {
    fn partition(&self) -> &Partition {
        &self.vm.viridian
    }

    /// What the guest is offered; nothing without `viridian`.
    pub(super) fn viridian(&self) -> Viridian {
        self.vm.blueprint.config.viridian
    }

    /// The guest's time in units of 100 ns.
    fn reference_time(&self, cx: &Context<'_, P>) -> u64 {
        let ticks = self.guest_tsc(cx.platform, &cx.clock);
        let scale = reference_scale(self.tsc_mode.hz(cx.clock.tsc_hz()));
        ((u128::from(ticks) * u128::from(scale)) >> 64) as u64
    }

    pub(super) fn viridian_read(&self, cx: &Context<'_, P>, msr: u32) -> Result<u64, Gp> {
        let offered = self.viridian();
        let partition = self.partition();
        let hz = || self.tsc_mode.hz(cx.clock.tsc_hz());
        Ok(match msr {
            _ if offered.is_empty() => return Err(Gp),
            index::GUEST_OS_ID => partition.guest_os_id.load(Ordering::Relaxed),
            index::HYPERCALL => partition.hypercall.load(Ordering::Relaxed),
            index::VP_INDEX => self.id.into(),
            index::TIME_REF_COUNT if offered.contains(Viridian::TIME_REF_COUNT) => self.reference_time(cx),
            index::REFERENCE_TSC if offered.contains(Viridian::REFERENCE_TSC) => partition.reference_tsc.load(Ordering::Relaxed),
            index::TSC_FREQUENCY if offered.contains(Viridian::FREQ) => hz(),
            index::APIC_FREQUENCY if offered.contains(Viridian::FREQ) => APIC_BUS_HZ,
            index::CRASH_P0..index::CRASH_CTL if offered.contains(Viridian::CRASH_CTL) => {
                let slot = partition.crash.get((msr - index::CRASH_P0) as usize).ok_or(Gp)?;
                slot.load(Ordering::Relaxed)
            }
            index::CRASH_CTL if offered.contains(Viridian::CRASH_CTL) => CRASH_NOTIFY | CRASH_MESSAGE,
            _ => return Err(Gp),
        })
    }

    /// `Err` with what the guest has done to itself, if it has.
    pub(super) fn viridian_write(&mut self, cx: &Context<'_, P>, msr: u32, value: u64) -> Result<(), Gp> {
        let offered = self.viridian();
        let partition = self.partition();
        match msr {
            _ if offered.is_empty() => return Err(Gp),
            index::GUEST_OS_ID => {
                partition.guest_os_id.store(value, Ordering::Relaxed);
                // Without an identity, there is no hypercall page (TLFS 3.13).
                if value == 0 {
                    partition.hypercall.store(0, Ordering::Relaxed);
                }
            }
            index::HYPERCALL => self.set_hypercall_page(value)?,
            index::REFERENCE_TSC if offered.contains(Viridian::REFERENCE_TSC) => self.set_reference_page(cx, value)?,
            index::CRASH_P0..index::CRASH_CTL if offered.contains(Viridian::CRASH_CTL) => {
                let slot = partition.crash.get((msr - index::CRASH_P0) as usize).ok_or(Gp)?;
                slot.store(value, Ordering::Relaxed);
            }
            index::CRASH_CTL if offered.contains(Viridian::CRASH_CTL) => self.report_crash(value),
            // All others are for reading only, or not there.
            _ => return Err(Gp),
        }
        Ok(())
    }

    /// Puts the instruction that makes a hypercall into the page of the guest's choice, if that is RAM.
    fn set_hypercall_page(&self, value: u64) -> Result<(), Gp> {
        let partition = self.partition();
        let old = partition.hypercall.load(Ordering::Relaxed);
        if old & LOCKED != 0 || !partition.is_established() {
            return Ok(());
        }
        if value & ENABLE != 0 {
            let at = Gpa(value & PAGE);
            if !self.vm.memory.is_ram(at, 0x1000) {
                return Err(Gp);
            }
            let code = if self.cpuid.is_amd() { PAGE_AMD } else { PAGE_INTEL };
            self.vm.memory.write(at, &code).map_err(|_| Gp)?;
        }
        partition.hypercall.store(value & (PAGE | LOCKED | ENABLE), Ordering::Relaxed);
        Ok(())
    }

    /// Sequence number, scale and offset, from which a guest computes the reference time of a TSC by itself (TLFS 12.7.1). They never change: all vCPUs'
    /// TSCs are in step, for as long as the guest does not write to them.
    fn set_reference_page(&self, cx: &Context<'_, P>, value: u64) -> Result<(), Gp> {
        let at = Gpa(value & PAGE);
        if value & ENABLE != 0 {
            if !self.vm.memory.is_ram(at, 0x1000) {
                return Err(Gp);
            }
            let mut page = [0; 24];
            let scale = reference_scale(self.tsc_mode.hz(cx.clock.tsc_hz()));
            page[..4].copy_from_slice(&1u32.to_le_bytes());
            page[8..16].copy_from_slice(&scale.to_le_bytes());
            self.vm.memory.write(at, &page).map_err(|_| Gp)?;
        }
        self.partition().reference_tsc.store(value, Ordering::Relaxed);
        Ok(())
    }

    /// Logs what the guest has to say about its crash (TLFS 2.4.2): five numbers, or a text at the address in the fourth, of the size in the fifth.
    fn report_crash(&self, control: u64) {
        let name = self.vm.name();
        let p: [u64; 5] = core::array::from_fn(|n| self.partition().crash.get(n).map_or(0, |p| p.load(Ordering::Relaxed)));
        log::warn!("guest {name}: reports a crash: {:#x} {:#x} {:#x} {:#x} {:#x}", p[0], p[1], p[2], p[3], p[4]);
        if control & CRASH_MESSAGE != 0 {
            let mut text = [0; LONGEST_MESSAGE];
            let text = &mut text[..p[4].min(LONGEST_MESSAGE as u64) as usize];
            if self.vm.memory.read(Gpa(p[3]), text).is_ok() {
                for line in text.utf8_chunks().flat_map(|chunk| chunk.valid().lines()).filter(|line| !line.is_empty()) {
                    log::warn!("guest {name}: {line}");
                }
            }
        }
    }

    /// A hypercall of an established guest: RCX is its input (R8 and RDX what it points to), RAX its result. 32-bit guests have their input in EDX:EAX.
    #[cold]
    pub(super) fn viridian_hypercall(&mut self) -> Result<(), Stop> {
        let gprs = self.hw.gprs();
        let long = self.hw.in_64_bit_mode();
        let input = if long { gprs[Gpr::Rcx] } else { gprs[Gpr::Rax] & 0xffff_ffff | gprs[Gpr::Rdx] << 32 };
        let (result, stop) = match input & 0xffff {
            LONG_SPIN_WAIT => (SUCCESS, Err(Stop::Yield)),
            _ => (INVALID_HYPERCALL_CODE, Ok(())),
        };
        self.hw.complete(Resume::Hypercall(result));
        if !long {
            self.hw.set_gpr(Gpr::Rdx, 0);
        }
        stop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_time_is_in_units_of_100_ns() {
        for hz in [1_000_000_000u64, 2_445_421_000, 3_700_000_123] {
            let ticks = hz * 100;
            let time = ((u128::from(ticks) * u128::from(reference_scale(hz))) >> 64) as u64;
            assert!(time.abs_diff(100 * REFERENCE_HZ) <= 1, "{hz} Hz: {time}");
        }
    }

    #[test]
    fn only_what_is_asked_for_is_offered() {
        let base = leaf(Viridian::BASE, 0x4000_0003, 1);
        assert_eq!(
            (base.eax & (privilege::REFERENCE_TSC | privilege::TIME_REF_COUNT | privilege::FREQUENCIES), base.edx),
            (0, 0)
        );
        let all = leaf(Viridian::all(), 0x4000_0003, 1);
        assert_eq!(all.eax & privilege::REFERENCE_TSC, privilege::REFERENCE_TSC);
        assert_eq!(all.edx, FREQUENCY_MSRS | CRASH_MSRS);
    }
}
