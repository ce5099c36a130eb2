//! Control registers, RFLAGS, and instructions without a better home.

use core::arch::asm;

macro_rules! control_register {
    ($read:ident, $write:ident, $name:literal) => {
        #[doc = concat!("Reads ", $name, ".")]
        #[inline]
        #[must_use]
        pub fn $read() -> u64 {
            let value: u64;
            // SAFETY: reading a control register at CPL 0 has no side effect.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }

        #[doc = concat!("Writes ", $name, ".")]
        ///
        /// # Safety
        /// The CPU must allow the value, and everything that runs afterwards must be valid under it.
        #[inline]
        pub unsafe fn $write(value: u64) {
            // SAFETY: the caller's. Not `nomem`: it may change what memory means.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    };
}

control_register!(cr0, set_cr0, "cr0");
control_register!(cr2, set_cr2, "cr2");
control_register!(cr3, set_cr3, "cr3");
control_register!(cr4, set_cr4, "cr4");

/// RFLAGS.
#[inline]
#[must_use]
pub fn rflags() -> u64 {
    let value: u64;
    // SAFETY: pushes and pops one word on a valid stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) value, options(preserves_flags)) };
    value
}

/// The time-stamp counter, read after all earlier loads are done.
#[inline]
#[must_use]
pub fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter. LFENCE keeps it from being read before what precedes it (SDM vol. 2B, RDTSC).
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Drops the TLB entry of one page of the host.
#[inline]
pub fn invlpg(address: u64) {
    // SAFETY: dropping a cached translation is always allowed.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// Stops this CPU for ever.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: with interrupts off only NMI, SMI, INIT or reset gets it out of HLT, and then it halts again.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
