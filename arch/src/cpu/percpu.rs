//! What each CPU has for itself, reached through the GS base; and the registry of all CPUs, by which one is recognised whatever its GS
//! base says.

use super::gdt::{Gdt, Ist, TaskState};
use super::stack::{self, Stacks};
use super::{idt, msr};
use crate::apic;
use crate::smp::call::Mailbox;
use crate::timer::TimerState;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};
use spin::Once;
use x86defs::{
    Attention,
    msr::{IA32_GS_BASE, IA32_KERNEL_GS_BASE},
};

/// So many CPUs can be used.
pub const MAX_CPUS: usize = 256;

/// One CPU's data. Its address is that CPU's GS base, so it never moves. Aligned, so that no two CPUs write to one cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct PerCpu {
    /// Its own address: `mov reg, gs:[0]`.
    this: AtomicU64,
    number: AtomicU32,
    apic_id: AtomicU32,
    /// Counted here and reported outside of NMI context.
    pub nmis: AtomicU64,
    pub timer: TimerState,
    /// What other CPUs want done here.
    pub mailbox: Mailbox,
    /// Of type [`Attention`]. Only the CPU itself, with interrupts disabled, reads and writes it.
    attention: AtomicU8,
    /// It has stopped for good.
    pub stopped: AtomicBool,
    stacks: Once<Stacks>,
    tables: UnsafeCell<Tables>,
}

#[derive(Debug)]
struct Tables {
    gdt: Gdt,
    tss: TaskState,
}

// SAFETY: `tables` is written by `install` only, before the CPU uses them; the rest are atomics.
unsafe impl Sync for PerCpu {}

static BOOT_CPU: PerCpu = PerCpu::new(0, 0);

/// All CPUs that run the host's code, by number; null where there is none. One that is being started is here already.
static CPUS: [AtomicPtr<PerCpu>; MAX_CPUS] = [const { AtomicPtr::new(null_mut()) }; MAX_CPUS];

impl PerCpu {
    /// The data of a CPU, not installed yet.
    #[must_use]
    pub const fn new(number: u32, apic_id: u32) -> Self {
        Self {
            this: AtomicU64::new(0),
            number: AtomicU32::new(number),
            apic_id: AtomicU32::new(apic_id),
            nmis: AtomicU64::new(0),
            timer: TimerState::new(),
            mailbox: Mailbox::new(),
            attention: AtomicU8::new(0),
            stopped: AtomicBool::new(false),
            stacks: Once::new(),
            tables: UnsafeCell::new(Tables { gdt: Gdt::new(), tss: TaskState::new() }),
        }
    }

    /// Its number: 0 is the boot CPU, and those in use have the numbers that follow, without gaps.
    #[inline]
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number.load(Ordering::Relaxed)
    }

    /// Its local APIC's ID.
    #[inline]
    #[must_use]
    pub fn apic_id(&self) -> u32 {
        self.apic_id.load(Ordering::Relaxed)
    }

    /// Remembers that an interrupt of the running CPU's has brought something. NMIs cannot.
    #[inline]
    pub fn call_attention(&self, what: Attention) {
        self.attention.store(self.attention.load(Ordering::Relaxed) | what.bits(), Ordering::Relaxed);
    }

    /// What the running CPU's interrupts have brought since this was last called.
    #[inline]
    pub fn take_attention(&self) -> Attention {
        let attention = self.attention.load(Ordering::Relaxed);
        self.attention.store(0, Ordering::Relaxed);
        Attention::from_bits_retain(attention)
    }

    /// Its stacks, once it has some.
    #[must_use]
    pub fn stacks(&self) -> Option<&Stacks> {
        self.stacks.get()
    }

    /// Makes this the running CPU's data: descriptor tables, task state, GS base.
    ///
    /// # Safety
    /// Once for each CPU and each `PerCpu`, at CPL 0 in long mode, with the IDT filled; the stacks are this CPU's alone.
    pub unsafe fn install(&'static self, stacks: Stacks) {
        self.this.store(&raw const *self as u64, Ordering::Relaxed);
        self.stacks.call_once(|| stacks);
        // SAFETY: called once, before anything else can look at the tables.
        let tables = unsafe { &mut *self.tables.get() };
        tables.tss.set_stack(Ist::Nmi, stacks.nmi.top);
        tables.tss.set_stack(Ist::DoubleFault, stacks.double_fault.top);
        tables.tss.set_stack(Ist::MachineCheck, stacks.machine_check.top);
        // SAFETY: `self` is static, so the tables stay; GS is set afterwards because loading the table clears it.
        unsafe {
            tables.gdt.load(&raw const tables.tss);
            msr::write(IA32_GS_BASE, &raw const *self as u64);
            msr::write(IA32_KERNEL_GS_BASE, 0);
            idt::load();
        }
    }
}

/// Installs the boot CPU's data.
///
/// # Safety
/// Once, on the boot CPU, at CPL 0 in long mode, with the IDT filled.
pub unsafe fn install_boot_cpu() {
    register(&BOOT_CPU);
    // SAFETY: the caller's; the static stacks are nobody else's.
    unsafe { BOOT_CPU.install(stack::boot_stacks()) };
}

/// Tells the boot CPU's APIC ID, once its local APIC is on.
pub fn set_boot_apic_id(id: u32) {
    BOOT_CPU.apic_id.store(id, Ordering::Relaxed);
}

/// Puts a CPU into the registry, under its number.
pub fn register(cpu: &'static PerCpu) {
    if let Some(slot) = CPUS.get(cpu.number() as usize) {
        slot.store((&raw const *cpu).cast_mut(), Ordering::Release);
    }
}

/// Takes a CPU out of the registry; those behind it move up by one number. While nobody uses the numbers.
pub fn retire(number: u32) {
    for (index, slot) in CPUS.iter().enumerate().skip(number as usize) {
        let next = CPUS.get(index + 1).map_or(null_mut(), |next| next.load(Ordering::Acquire));
        slot.store(next, Ordering::Release);
        if let Some(cpu) = get(index as u32) {
            cpu.number.store(index as u32, Ordering::Relaxed);
        }
    }
}

/// The CPU of that number.
#[inline]
#[must_use]
pub fn get(number: u32) -> Option<&'static PerCpu> {
    let cpu = CPUS.get(number as usize)?.load(Ordering::Acquire);
    // SAFETY: only `register` and `retire` store here, and they store references to static data, or null.
    unsafe { cpu.as_ref() }
}

/// All CPUs of the registry, the boot CPU first.
pub fn all() -> impl Iterator<Item = &'static PerCpu> {
    (0..MAX_CPUS as u32).map_while(get)
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

/// The running CPU's data, found without trusting the GS base: for a crash, and for NMIs. `None` before [`PerCpu::install`].
#[must_use]
pub fn identify() -> Option<&'static PerCpu> {
    // SAFETY: every CPU with long mode has this MSR, and reading it has no effect.
    let base = unsafe { msr::read(IA32_GS_BASE) };
    all().find(|cpu| &raw const **cpu as u64 == base).or_else(|| {
        let id = apic::try_id()?;
        all().find(|cpu| cpu.apic_id() == id)
    })
}
