//! What KVM offers to guests whose vCPUs share CPUs, for those that know it (Linux, Documentation/virt/kvm/x86/msr.rst and hypercalls.rst): the time
//! that a vCPU was kept waiting, whether it is off its CPU right now, TLB flushes that wait until it is back, waking it out of HLT,
//! IPIs to many at once, giving way to another.
//!
//! Not offered: EOI by a bit in memory (PV EOI). To set and look at the bit is work in each delivery, for guests that do not use it
//! as well, and on CPUs with a virtual local APIC an EOI is no exit anyway.

use super::{Context, Gp, Stop, VirtCpu};
use devices::interrupt::{CpuSet, DeliveryMode};
use x86defs::{Exception, Gpa, Gpr, GuestMemory, GuestMemoryExt, Platform, Resume, Vcpu, Width};

/// MSR_KVM_STEAL_TIME: where the vCPU's `kvm_steal_time` is.
pub const STEAL_TIME: u32 = 0x4b56_4d03;
/// MSR_KVM_POLL_CONTROL: bit 0 allows the host to poll before it takes the CPU from a vCPU that halts. Bulkhead never polls.
pub const POLL_CONTROL: u32 = 0x4b56_4d05;
/// CPUID 4000_0001H EAX: steal time, kicks (PV_UNHALT), TLB flushes by flag, IPIs to many, poll control, giving way.
pub const FEATURES: u32 = 1 << 5 | 1 << 7 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13;

const ENABLE: u64 = 1;
/// Reserved bits of MSR_KVM_STEAL_TIME.
const RESERVED: u64 = 0x3e;
/// `kvm_steal_time`: size in bytes, and the offsets of version and preempted; the time in ns is first.
const SIZE: u64 = 64;
const VERSION: u64 = 8;
const PREEMPTED: u64 = 16;
/// Flags in `preempted`: the vCPU is off its CPU, and its TLB is to be flushed before it goes on.
const IS_PREEMPTED: u8 = 1 << 0;
const FLUSH_TLB: u8 = 1 << 1;
/// How often somebody else may change the flags while they are being taken.
const TRIES: u32 = 4;

const KICK_CPU: u64 = 5;
const SEND_IPI: u64 = 10;
const SCHED_YIELD: u64 = 11;
const ENOSYS: u64 = 1000u64.wrapping_neg();
const EINVAL: u64 = 22u64.wrapping_neg();
/// ICR: logical destination and shorthand, which have no meaning here.
const ICR_DESTINATION: u64 = 1 << 11 | 3 << 18;

/// What the guest has written to the two MSRs, and the time that goes to the first.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Paravirt {
    steal_time: u64,
    poll_control: u64,
    /// ns that the vCPU has waited for a CPU, up to when it got this one.
    waited: u64,
    /// What of it the guest knows.
    told: u64,
}

impl Default for Paravirt {
    fn default() -> Self {
        Self { steal_time: 0, poll_control: 1, waited: 0, told: 0 }
    }
}

impl Paravirt {
    pub(super) const fn read(&self, index: u32) -> u64 {
        if index == STEAL_TIME { self.steal_time } else { self.poll_control }
    }

    /// After INIT, the guest's memory may be used for something else.
    pub(super) fn reset(&mut self) {
        *self = Self { waited: self.waited, ..Self::default() };
    }

    /// Where the vCPU's `kvm_steal_time` is, if the guest wants it.
    fn area(&self) -> Option<Gpa> {
        (self.steal_time & ENABLE != 0).then_some(Gpa(self.steal_time & !(SIZE - 1)))
    }
}

impl<P: Platform> VirtCpu<P> {
    pub(super) fn paravirt_write(&mut self, index: u32, value: u64) -> Result<(), Gp> {
        if index == POLL_CONTROL {
            if value & !1 != 0 {
                return Err(Gp);
            }
            self.paravirt.poll_control = value;
            return Ok(());
        }
        let area = Gpa(value & !(SIZE - 1));
        if value & RESERVED != 0 || value & ENABLE != 0 && !self.vm.memory.is_ram(area, SIZE) {
            return Err(Gp);
        }
        self.paravirt.steal_time = value;
        // What it waited before does not count.
        self.paravirt.told = self.paravirt.waited;
        self.came_back(self.paravirt.waited);
        Ok(())
    }

    /// The vCPU has got a CPU, and has waited `waited` ns for one in all: tells the guest, and does what it has left to be done.
    pub(crate) fn came_back(&mut self, waited: u64) {
        self.paravirt.waited = waited;
        let Some(area) = self.paravirt.area() else { return };
        let new = waited.wrapping_sub(self.paravirt.told);
        self.paravirt.told = waited;
        if self.take_flags(area.wrapping_add(PREEMPTED)) & FLUSH_TLB != 0 {
            self.hw.flush_tlb();
        }
        // An odd version while the time changes; readers retry. An error is impossible: the address was checked, and RAM never moves.
        let memory = &self.vm.memory;
        let version = memory.read_u32(area.wrapping_add(VERSION)).unwrap_or(0) | 1;
        let steal = memory.read_u64(area).unwrap_or(0).wrapping_add(new);
        let _ = memory.write(area.wrapping_add(VERSION), &version.to_le_bytes());
        let _ = memory.write(area, &steal.to_le_bytes());
        let _ = memory.write(area.wrapping_add(VERSION), &version.wrapping_add(1).to_le_bytes());
    }

    /// Reads the guest's flags and clears them, without losing one that another vCPU sets.
    fn take_flags(&self, at: Gpa) -> u8 {
        let memory = &self.vm.memory;
        let mut flags = memory.read_u8(at).unwrap_or(0);
        for _ in 0..TRIES {
            if flags == 0 {
                return 0;
            }
            match memory.compare_exchange(at, Width::Byte, flags.into(), 0) {
                Ok(Err(now)) => flags = now as u8,
                Ok(Ok(_)) | Err(_) => return flags,
            }
        }
        // Somebody plays with them: a flush is never wrong.
        let _ = memory.write(at, &[0]);
        FLUSH_TLB
    }

    /// The vCPU leaves its CPU. If it could go on, the others may know: from now on, a flush of its TLB can wait.
    pub(crate) fn goes_away(&self) {
        if let Some(area) = self.paravirt.area()
            && !self.is_asleep()
        {
            let _ = self.vm.memory.write(area.wrapping_add(PREEMPTED), &[IS_PREEMPTED]);
        }
    }

    /// KVM's hypercall convention: RAX is the number and the result, RBX, RCX, RDX and RSI are arguments.
    #[inline]
    pub(super) fn hypercall(&mut self, cx: &Context<'_, P>) -> Result<(), Stop> {
        if self.hw.cpl() != 0 {
            self.fault(Exception::UD);
            return Ok(());
        }
        if self.hw.gpr(Gpr::Rax) <= SCHED_YIELD || self.vm.viridian.is_established() {
            return self.known_hypercall(cx);
        }
        self.hw.complete(Resume::Hypercall(ENOSYS));
        Ok(())
    }

    #[inline(never)]
    fn known_hypercall(&mut self, cx: &Context<'_, P>) -> Result<(), Stop> {
        if self.vm.viridian.is_established() {
            return self.viridian_hypercall();
        }
        let gprs = self.hw.gprs();
        let long = self.hw.in_64_bit_mode();
        let argument = |gpr: Gpr| if long { gprs[gpr] } else { gprs[gpr] & 0xffff_ffff };
        let [a0, a1, a2, a3] = [Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi].map(argument);
        let mut stop = Ok(());
        let result = match gprs[Gpr::Rax] {
            KICK_CPU => {
                if let Some(target) = self.with_apic_id(a1) {
                    self.kick(cx, target);
                }
                0
            }
            SEND_IPI => self.send_to_many(cx, u128::from(a0) | u128::from(a1) << if long { 64 } else { 32 }, a2, a3),
            SCHED_YIELD => {
                if self.with_apic_id(a0).is_some_and(|target| target != self.id as usize) {
                    stop = Err(Stop::Yield);
                }
                0
            }
            _ => ENOSYS,
        };
        self.hw.complete(Resume::Hypercall(result));
        stop
    }

    /// The vCPU with this APIC ID.
    fn with_apic_id(&self, id: u64) -> Option<usize> {
        self.vm.board.router.apics().iter().position(|apic| u64::from(apic.id()) == id)
    }

    /// Ends vCPU `target`'s HLT, or the next one that it executes, whatever its RFLAGS.IF says.
    fn kick(&self, cx: &Context<'_, P>, target: usize) {
        if let Some(apic) = self.vm.board.router.apics().get(target) {
            apic.kick();
            (cx.wake)(&self.vm, CpuSet::single(target));
        }
    }

    /// The IPI `icr` to the APIC IDs of the bits in `set`, of which the first stands for `first`. Returns how many have got it.
    fn send_to_many(&self, cx: &Context<'_, P>, set: u128, first: u64, icr: u64) -> u64 {
        let delivery = match icr >> 8 & 7 {
            0 => DeliveryMode::Fixed,
            4 => DeliveryMode::Nmi,
            _ => return EINVAL,
        };
        let Ok(first) = u32::try_from(first) else { return 0 };
        if icr & ICR_DESTINATION != 0 {
            return EINVAL;
        }
        let count = self.vm.board.router.send_to_many(set, first, delivery, icr as u8);
        self.wake_others(cx);
        count.into()
    }
}
