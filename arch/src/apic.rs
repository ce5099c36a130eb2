//! The host's interrupt controllers: local APIC (xAPIC and x2APIC; Intel SDM vol. 3A rev. 085, chapter 12), IOAPIC (82093AA data
//! sheet), and the 8259 pair, which is only put to silence.

use crate::acpi::{InterruptOverride, IoApicInfo};
use crate::cpu::{features::Features, msr, percpu, port, trap};
use crate::mm::{self, direct, table::MemoryType};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use spin::Mutex;
use x86defs::{
    Attention, Hpa,
    msr::{IA32_APIC_BASE, X2APIC_BASE},
};

/// The vectors of the host's own interrupts; higher ones have priority.
pub mod vectors {
    /// Serial ports.
    pub const SERIAL: u8 = 0xe0;
    pub const KEYBOARD: u8 = 0xe1;
    /// Another CPU wants this one to look up.
    pub const KICK: u8 = 0xf0;
    /// Another CPU has put something into this one's mailbox.
    pub const CALL: u8 = 0xf4;
    pub const TIMER: u8 = 0xf8;
    pub const ERROR: u8 = 0xfe;
    pub const SPURIOUS: u8 = 0xff;
}

/// Local APIC registers, by their MMIO offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Register {
    Id = 0x20,
    Version = 0x30,
    TaskPriority = 0x80,
    EndOfInterrupt = 0xb0,
    Spurious = 0xf0,
    InService0 = 0x100,
    InService1 = 0x110,
    InService2 = 0x120,
    InService3 = 0x130,
    InService4 = 0x140,
    InService5 = 0x150,
    InService6 = 0x160,
    InService7 = 0x170,
    ErrorStatus = 0x280,
    LvtCmci = 0x2f0,
    /// 64 bits wide in x2APIC mode.
    Command = 0x300,
    CommandHigh = 0x310,
    LvtTimer = 0x320,
    LvtThermal = 0x330,
    LvtPerformance = 0x340,
    LvtLint0 = 0x350,
    LvtLint1 = 0x360,
    LvtError = 0x370,
    TimerInitial = 0x380,
    TimerCurrent = 0x390,
    TimerDivide = 0x3e0,
}

const IN_SERVICE: [Register; 8] = [
    Register::InService0,
    Register::InService1,
    Register::InService2,
    Register::InService3,
    Register::InService4,
    Register::InService5,
    Register::InService6,
    Register::InService7,
];

/// IA32_APIC_BASE: global enable, and x2APIC.
const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const LVT_MASKED: u32 = 1 << 16;
const LVT_NMI: u32 = 4 << 8;
const SOFTWARE_ENABLE: u32 = 1 << 8;

/// Where the registers are: an address in the direct map, or 0 for x2APIC MSRs.
static XAPIC: AtomicU64 = AtomicU64::new(u64::MAX);
/// Errors that the local APIC reported.
static ERRORS: AtomicU32 = AtomicU32::new(0);

#[inline]
const fn x2apic_msr(register: Register) -> u32 {
    X2APIC_BASE + (register as u32 >> 4)
}

/// Reads a register. After [`init`].
#[inline]
#[must_use]
pub fn read(register: Register) -> u32 {
    match XAPIC.load(Ordering::Relaxed) {
        // SAFETY: in x2APIC mode these MSRs exist.
        0 => unsafe { msr::read(x2apic_msr(register)) as u32 },
        // SAFETY: `init` has mapped the register page here.
        base => unsafe { ((base + register as u64) as *const u32).read_volatile() },
    }
}

/// Writes a register. After [`init`].
#[inline]
pub fn write(register: Register, value: u32) {
    match XAPIC.load(Ordering::Relaxed) {
        // SAFETY: as above; this module and `timer` know what they write.
        0 => unsafe { msr::write(x2apic_msr(register), u64::from(value)) },
        // SAFETY: as above.
        base => unsafe { ((base + register as u64) as *mut u32).write_volatile(value) },
    }
}

/// Tells the local APIC that the interrupt being served is done.
#[inline]
pub fn end_of_interrupt() {
    write(Register::EndOfInterrupt, 0);
}

/// The local APIC's operating mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    XApic,
    X2Apic,
}

/// Switches the boot CPU's local APIC on, in x2APIC mode if the CPU has it, with everything masked but its own error interrupt and LINT1, which
/// is the chipset's NMI.
///
/// # Safety
/// At CPL 0 with the IDT loaded, once, on the boot CPU.
pub unsafe fn init(features: &Features) -> Mode {
    // SAFETY: every CPU with long mode has a local APIC and this MSR.
    let base = unsafe { msr::read(IA32_APIC_BASE) };
    let mode = if features.x2apic || base & BASE_X2APIC != 0 { Mode::X2Apic } else { Mode::XApic };
    let registers = match mode {
        Mode::X2Apic => 0,
        Mode::XApic => mm::map_mmio(Hpa(base & BASE_ADDRESS), 0x1000, MemoryType::Uncached) as u64,
    };
    switch_on(base, mode);
    XAPIC.store(registers, Ordering::Relaxed);
    trap::set_handler(vectors::SPURIOUS, || {});
    trap::set_handler(vectors::ERROR, error);
    trap::set_handler(vectors::KICK, kicked);
    set_up_registers(LVT_NMI);
    percpu::set_boot_apic_id(id());
    mode
}

fn kicked() {
    end_of_interrupt();
    percpu::current().call_attention(Attention::OTHER);
}

/// Switches a further CPU's local APIC on, in the mode and at the address of the boot CPU's. LINT1 stays masked: the boot CPU reports the
/// chipset's NMIs.
///
/// # Safety
/// At CPL 0 with the IDT loaded, once on each further CPU, after [`init`] on the boot CPU.
pub unsafe fn init_cpu() {
    // SAFETY: every CPU with long mode has a local APIC and this MSR.
    let base = unsafe { msr::read(IA32_APIC_BASE) };
    match XAPIC.load(Ordering::Relaxed) {
        0 => switch_on(base, Mode::X2Apic),
        registers => {
            let address = direct::to_phys(registers as *const u8).0;
            switch_on(base & !BASE_ADDRESS | address, Mode::XApic);
        }
    }
    set_up_registers(LVT_MASKED);
}

/// Sets IA32_APIC_BASE to `base`, with the local APIC on in `mode`.
fn switch_on(base: u64, mode: Mode) {
    // SAFETY: off to xAPIC to x2APIC are the allowed steps (SDM vol. 3A, 12.12.5); bits that are set already stay.
    unsafe {
        msr::write(IA32_APIC_BASE, base | BASE_ENABLE);
        if mode == Mode::X2Apic {
            msr::write(IA32_APIC_BASE, base | BASE_ENABLE | BASE_X2APIC);
        }
    }
}

fn set_up_registers(lint1: u32) {
    // The APIC has to be software-enabled first: while it is not, mask bits cannot be cleared.
    write(Register::Spurious, SOFTWARE_ENABLE | u32::from(vectors::SPURIOUS));
    write(Register::TaskPriority, 0);
    let last_lvt = read(Register::Version) >> 16 & 0xff;
    write(Register::LvtTimer, LVT_MASKED);
    write(Register::LvtLint0, LVT_MASKED);
    write(Register::LvtLint1, lint1);
    for (index, register) in [(4, Register::LvtPerformance), (5, Register::LvtThermal), (6, Register::LvtCmci)] {
        if last_lvt >= index {
            write(register, LVT_MASKED);
        }
    }
    write(Register::LvtError, u32::from(vectors::ERROR));
    write(Register::ErrorStatus, 0);
    // Whatever was in service when the loader left is done: at most one interrupt for each vector.
    for _ in 0..256 {
        if IN_SERVICE.iter().all(|&register| read(register) == 0) {
            break;
        }
        end_of_interrupt();
    }
}

/// The mode of all local APICs. After [`init`].
#[must_use]
pub fn mode() -> Mode {
    match XAPIC.load(Ordering::Relaxed) {
        0 => Mode::X2Apic,
        _ => Mode::XApic,
    }
}

/// This CPU's APIC ID, or `None` before [`init`].
#[must_use]
pub fn try_id() -> Option<u32> {
    (XAPIC.load(Ordering::Relaxed) != u64::MAX).then(id)
}

/// This CPU's APIC ID.
#[must_use]
pub fn id() -> u32 {
    match XAPIC.load(Ordering::Relaxed) {
        0 => read(Register::Id),
        _ => read(Register::Id) >> 24,
    }
}

fn error() {
    write(Register::ErrorStatus, 0);
    let status = read(Register::ErrorStatus);
    end_of_interrupt();
    if ERRORS.fetch_add(1, Ordering::Relaxed) < 10 {
        log::warn!("local APIC {}: error status {status:#x}", id());
    }
}

/// What the interrupt command register can be told to send (SDM vol. 3A, 12.6.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Message {
    Fixed(u8),
    Nmi,
    Init,
    /// Start-up at this page below 1 MiB.
    Startup(u8),
}

/// The low half of the interrupt command register: edge-triggered, asserted, physical destination.
const fn command(message: Message) -> u32 {
    const ASSERT: u32 = 1 << 14;
    ASSERT
        | match message {
            Message::Fixed(vector) => vector as u32,
            Message::Nmi => 4 << 8,
            Message::Init => 5 << 8,
            Message::Startup(page) => 6 << 8 | page as u32,
        }
}

/// Sends to the CPU with the given APIC ID, which may be this one.
fn send(apic_id: u32, message: Message) {
    match XAPIC.load(Ordering::Relaxed) {
        // SAFETY: in x2APIC mode the ICR is this MSR; the fence orders earlier stores before the interrupt (SDM vol. 3A, 12.12.3).
        0 => unsafe {
            core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags));
            msr::write(x2apic_msr(Register::Command), u64::from(apic_id) << 32 | u64::from(command(message)));
        },
        _ => {
            wait_until_sent();
            write(Register::CommandHigh, apic_id << 24);
            write(Register::Command, command(message));
        }
    }
}

/// Waits until the xAPIC has sent the last command. The delivery-status bit clears within microseconds; a stuck one must not hang the host.
fn wait_until_sent() {
    for _ in 0..10_000 {
        if read(Register::Command) & 1 << 12 == 0 {
            break;
        }
        crate::cpu::relax();
    }
}

/// Makes the CPU with the given APIC ID leave its guest or its sleep.
#[inline]
pub fn kick(apic_id: u32) {
    send(apic_id, Message::Fixed(vectors::KICK));
}

/// Makes the CPU with the given APIC ID look into its mailbox.
pub fn call(apic_id: u32) {
    send(apic_id, Message::Fixed(vectors::CALL));
}

/// Sends a non-maskable interrupt to the CPU with the given APIC ID.
pub fn send_nmi(apic_id: u32) {
    send(apic_id, Message::Nmi);
}

/// Resets the CPU with the given APIC ID, which then waits for [`send_startup`].
pub fn send_init(apic_id: u32) {
    send(apic_id, Message::Init);
}

/// Starts the CPU with the given APIC ID in real mode at the beginning of `page`, a page number below 256.
pub fn send_startup(apic_id: u32, page: u8) {
    send(apic_id, Message::Startup(page));
}

/// Masks all inputs of the two 8259s. They are initialised first, so that a spurious interrupt of theirs would not look like an exception.
pub fn silence_8259() {
    // SAFETY: the 8259s are the host's alone; ICW1-4 with vectors 0x20 and 0x28, then all masked.
    unsafe {
        for (command, data, vector, cascade) in [(0x20, 0x21, 0x20, 4), (0xa0, 0xa1, 0x28, 2)] {
            port::write_u8(data, 0xff);
            port::write_u8(command, 0x11);
            port::write_u8(data, vector);
            port::write_u8(data, cascade);
            port::write_u8(data, 1);
            port::write_u8(data, 0xff);
        }
    }
}

/// An IOAPIC of the host.
#[derive(Debug)]
struct IoApic {
    base: u64,
    /// GSI of its first pin.
    gsi_base: u32,
    pins: u32,
}

static IO_APICS: Mutex<ArrayVec<IoApic, 32>> = Mutex::new(ArrayVec::new_const());

/// Redirection entry: active low, level-triggered, masked.
const ACTIVE_LOW: u32 = 1 << 13;
const LEVEL: u32 = 1 << 15;
const PIN_MASKED: u32 = 1 << 16;

impl IoApic {
    fn read(&self, index: u32) -> u32 {
        // SAFETY: `init_io` has mapped the registers; index and data are used under the lock.
        unsafe {
            (self.base as *mut u32).write_volatile(index);
            ((self.base + 0x10) as *const u32).read_volatile()
        }
    }

    fn write(&self, index: u32, value: u32) {
        // SAFETY: as above.
        unsafe {
            (self.base as *mut u32).write_volatile(index);
            ((self.base + 0x10) as *mut u32).write_volatile(value);
        }
    }
}

/// Takes the host's IOAPICs over and masks all their pins.
pub fn init_io(infos: &[IoApicInfo]) {
    let mut io_apics = IO_APICS.lock();
    for info in infos {
        let base = mm::map_mmio(Hpa(u64::from(info.address)), 0x1000, MemoryType::Uncached) as u64;
        let mut io_apic = IoApic { base, gsi_base: info.gsi_base, pins: 0 };
        let version = io_apic.read(1);
        if version == u32::MAX {
            log::warn!("IOAPIC at {:#x}: does not answer", info.address);
            continue;
        }
        io_apic.pins = (version >> 16 & 0xff) + 1;
        for pin in 0..io_apic.pins {
            io_apic.write(0x10 + 2 * pin, PIN_MASKED);
        }
        if io_apics.try_push(io_apic).is_err() {
            log::warn!("more than {} IOAPICs: the rest is not used", io_apics.capacity());
            break;
        }
    }
}

/// Why an ISA interrupt could not be routed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoIoApicFor {
    pub gsi: u32,
}

/// GSI and low half of the redirection entry for an ISA IRQ: edge-triggered, active high, unless an override says otherwise.
fn isa_route(irq: u8, overrides: &[InterruptOverride], vector: u8) -> (u32, u32) {
    let mut gsi = u32::from(irq);
    let mut entry = u32::from(vector);
    if let Some(o) = overrides.iter().find(|o| o.irq == irq) {
        gsi = o.gsi;
        if o.active_low {
            entry |= ACTIVE_LOW;
        }
        if o.level {
            entry |= LEVEL;
        }
    }
    (gsi, entry)
}

/// Sends ISA interrupt `irq` to this CPU as `vector`.
///
/// # Errors
/// If no IOAPIC has that pin.
pub fn route_isa(irq: u8, overrides: &[InterruptOverride], vector: u8) -> Result<(), NoIoApicFor> {
    let (gsi, entry) = isa_route(irq, overrides, vector);
    let io_apics = IO_APICS.lock();
    let io_apic =
        io_apics.iter().find(|i| gsi.checked_sub(i.gsi_base).is_some_and(|pin| pin < i.pins)).ok_or(NoIoApicFor { gsi })?;
    let index = 0x10 + 2 * (gsi - io_apic.gsi_base);
    io_apic.write(index, PIN_MASKED);
    // To this CPU, the boot CPU. Physical destination mode has eight bits; its ID practically always fits, being the lowest.
    io_apic.write(index + 1, id() << 24);
    io_apic.write(index, entry);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_as_the_manual_draws_them() {
        assert_eq!(command(Message::Fixed(0xf0)), 0x40f0);
        assert_eq!(command(Message::Nmi), 0x4400);
        assert_eq!(command(Message::Init), 0x4500);
        assert_eq!(command(Message::Startup(0x8f)), 0x468f);
    }

    #[test]
    fn isa_interrupts_follow_their_overrides() {
        let overrides = [
            InterruptOverride { irq: 0, gsi: 2, active_low: false, level: false },
            InterruptOverride { irq: 9, gsi: 9, active_low: true, level: true },
        ];
        assert_eq!(isa_route(4, &overrides, 0xe0), (4, 0xe0));
        assert_eq!(isa_route(0, &overrides, 0xe0), (2, 0xe0));
        assert_eq!(isa_route(9, &overrides, 0xe0), (9, 0xa0e0));
    }
}
