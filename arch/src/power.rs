//! Switching the machine off and restarting it (ACPI specification 6.5, 4.8.3, 7.4.2).

use crate::acpi::{Platform, PlatformRegister};
use crate::console;
use crate::cpu::{cr, port};
use crate::tsc::delay_us;
use spin::Once;

/// What the tables say, copied out so that a crash need not look for it.
struct Power {
    pm1a: Option<PlatformRegister>,
    pm1b: Option<PlatformRegister>,
    s5: Option<(u8, u8)>,
    enable: Option<(u16, u8)>,
    reset: Option<(PlatformRegister, u8)>,
}

static POWER: Once<Power> = Once::new();

/// PM1 control: ACPI mode is on; sleep enable; SLP_TYP's position.
const SCI_ENABLED: u32 = 1;
const SLEEP_ENABLE: u32 = 1 << 13;
const SLEEP_TYPE: u32 = 10;

/// Learns from the tables how to do it. Maps the registers, so that nothing has to be mapped during a crash.
pub fn init(platform: &Platform) {
    let fixed = &platform.fixed;
    let registers = [fixed.pm1a_control, fixed.pm1b_control, fixed.reset.map(|(r, _)| r)];
    for register in registers.into_iter().flatten() {
        if let PlatformRegister::Memory(address) = register {
            crate::mm::map_mmio(address, 4, crate::mm::table::MemoryType::Uncached);
        }
    }
    POWER.call_once(|| Power {
        pm1a: fixed.pm1a_control,
        pm1b: fixed.pm1b_control,
        s5: platform.s5,
        enable: fixed.enable,
        reset: fixed.reset,
    });
}

/// Switches the machine off. Where ACPI does not say how, or it does not work, the machine halts.
pub fn power_off() -> ! {
    console::flush();
    if let Some(Power { pm1a: Some(pm1a), pm1b, s5: Some((a, b)), enable, .. }) = POWER.get() {
        // SAFETY: these are the registers and values that the firmware's tables prescribe for this.
        unsafe {
            if let Some((port, value)) = enable
                && pm1a.read(2) & SCI_ENABLED == 0
            {
                port::write_u8(*port, *value);
                for _ in 0..300 {
                    if pm1a.read(2) & SCI_ENABLED != 0 {
                        break;
                    }
                    delay_us(1000);
                }
            }
            let sleep = |register: PlatformRegister, kind: u8| {
                let kept = register.read(2) & !(7 << SLEEP_TYPE | SLEEP_ENABLE);
                register.write(2, kept | u32::from(kind) << SLEEP_TYPE | SLEEP_ENABLE);
            };
            if let Some(pm1b) = pm1b {
                sleep(*pm1b, *b);
            }
            sleep(*pm1a, *a);
        }
        delay_us(1_000_000);
    }
    crate::crash::note(format_args!("cannot switch the machine off: it is safe to do so now"));
    cr::halt_forever();
}

/// Restarts the machine: by the FADT's reset register, port 0xCF9, the keyboard controller, and at last a triple fault.
pub fn reset() -> ! {
    console::flush();
    // SAFETY: each of these means a reset on the machines that have it, and nothing elsewhere.
    unsafe {
        if let Some(Power { reset: Some((register, value)), .. }) = POWER.get() {
            register.write(1, u32::from(*value));
            delay_us(100_000);
        }
        // Full reset, then the edge that starts it.
        port::write_u8(0xcf9, 0x02);
        delay_us(50);
        port::write_u8(0xcf9, 0x06);
        delay_us(100_000);
        for _ in 0..1000 {
            if port::read_u8(0x64) & 2 == 0 {
                break;
            }
            delay_us(10);
        }
        port::write_u8(0x64, 0xfe);
        delay_us(100_000);
        // No IDT, so this faults three times.
        let none = [0u16; 5];
        core::arch::asm!("lidt [{}]", "ud2", in(reg) &raw const none, options(noreturn));
    }
}
