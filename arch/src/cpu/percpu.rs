//! What each CPU has for itself, reached through the GS base.

use super::gdt::{Gdt, Ist, TaskState};
use super::{msr, stack};
use crate::timer::TimerState;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::Deref;
use core::sync::atomic::{AtomicU64, Ordering};
use x86defs::msr::{IA32_GS_BASE, IA32_KERNEL_GS_BASE};

/// One CPU's data. Its address is that CPU's GS base, so it never moves.
#[derive(Debug)]
#[repr(C)]
pub struct PerCpu {
    /// Its own address: `mov reg, gs:[0]`.
    this: AtomicU64,
    /// 0 is the boot CPU.
    pub id: u32,
    /// Counted here and reported outside of NMI context.
    pub nmis: AtomicU64,
    pub timer: TimerState,
    tables: UnsafeCell<Tables>,
}

#[derive(Debug)]
struct Tables {
    gdt: Gdt,
    tss: TaskState,
}

// SAFETY: `tables` is written by `install` only, before the CPU uses them; the rest are atomics.
unsafe impl Sync for PerCpu {}

static BOOT_CPU: PerCpu = PerCpu::new(0);

/// Interrupt stacks of a CPU: the addresses after their last bytes.
#[derive(Clone, Copy, Debug)]
pub struct InterruptStacks {
    pub nmi: u64,
    pub double_fault: u64,
    pub machine_check: u64,
}

impl PerCpu {
    /// The data of CPU `id`, not installed yet.
    #[must_use]
    pub const fn new(id: u32) -> Self {
        Self {
            this: AtomicU64::new(0),
            id,
            nmis: AtomicU64::new(0),
            timer: TimerState::new(),
            tables: UnsafeCell::new(Tables { gdt: Gdt::new(), tss: TaskState::new() }),
        }
    }

    /// Makes this the running CPU's data: descriptor table, task state, GS base.
    ///
    /// # Safety
    /// Once for each CPU and each `PerCpu`, at CPL 0 in long mode; the stacks are this CPU's alone.
    pub unsafe fn install(&'static self, stacks: InterruptStacks) {
        self.this.store(&raw const *self as u64, Ordering::Relaxed);
        // SAFETY: called once, before anything else can look at the tables.
        let tables = unsafe { &mut *self.tables.get() };
        tables.tss.set_stack(Ist::Nmi, stacks.nmi);
        tables.tss.set_stack(Ist::DoubleFault, stacks.double_fault);
        tables.tss.set_stack(Ist::MachineCheck, stacks.machine_check);
        // SAFETY: `self` is static, so the tables stay; GS is set afterwards because loading the table clears it.
        unsafe {
            tables.gdt.load(&raw const tables.tss);
            msr::write(IA32_GS_BASE, &raw const *self as u64);
            msr::write(IA32_KERNEL_GS_BASE, 0);
        }
    }
}

/// Installs the boot CPU's data.
///
/// # Safety
/// Once, on the boot CPU, at CPL 0 in long mode.
pub unsafe fn install_boot_cpu() {
    let stacks = InterruptStacks {
        nmi: stack::NMI.top(),
        double_fault: stack::DOUBLE_FAULT.top(),
        machine_check: stack::MACHINE_CHECK.top(),
    };
    // SAFETY: the caller's; the static stacks are nobody else's.
    unsafe { BOOT_CPU.install(stacks) };
}

/// Access to the running CPU's data. Not `Send`: it means this CPU only as long as the code stays on it, and the host never
/// migrates code between CPUs.
#[derive(Debug)]
pub struct Current {
    cpu: &'static PerCpu,
    not_send: PhantomData<*const ()>,
}

impl Deref for Current {
    type Target = PerCpu;
    #[inline]
    fn deref(&self) -> &PerCpu {
        self.cpu
    }
}

/// True once the boot CPU's data are in place.
#[must_use]
pub fn installed() -> bool {
    BOOT_CPU.this.load(Ordering::Relaxed) != 0
}

/// The running CPU's data. Valid from [`PerCpu::install`] on, which is the first thing that a CPU does.
#[inline]
#[must_use]
pub fn current() -> Current {
    let this: *const PerCpu;
    // SAFETY: `install` has set the GS base to a `PerCpu`, whose first word is its address; it is static.
    let cpu = unsafe {
        asm!("mov {}, gs:[0]", out(reg) this, options(nostack, preserves_flags, readonly));
        &*this
    };
    Current { cpu, not_send: PhantomData }
}
