//! The guest-physical layout of the virtual PC: where its RAM, firmware tables and fixed ports are. Everything that two parts of
//! the hypervisor must agree on stands here once.
//!
//! ```text
//! 0x0000_0000..0x000a_0000  RAM
//! 0x000a_0000..0x000c_0000  legacy VGA window: no RAM
//! 0x000c_0000..0x0010_0000  RAM that the memory map reserves: option-ROM area, then the ACPI tables from 0xe_0000 on
//! 0x0010_0000..low top      RAM, at most up to 2 GiB
//! 0xb000_0000..0xc000_0000  PCI configuration space, memory-mapped (ECAM)
//! 0xc000_0000..0xfec0_0000  window for PCI devices
//! 0xfec0_0000  IOAPIC       0xfed0_0000  HPET       0xfee0_0000  local APICs
//! 0x1_0000_0000..           the rest of the RAM
//! ```

use arrayvec::ArrayVec;
use core::ops::Range;
use x86defs::{Gpa, RamRange};

/// Bytes in a KiB, MiB, GiB.
pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// The legacy VGA window: the hole in conventional memory. Its 128 KiB count as guest memory but are not backed.
pub const VGA_WINDOW: Range<u64> = 0xa_0000..0xc_0000;
/// RAM below 1 MiB that the memory map reserves for firmware.
pub const FIRMWARE_AREA: Range<u64> = 0xc_0000..0x10_0000;
/// Where the ACPI tables are, the RSDP first: inside the area that ACPI 6.5, 5.2.5.1 says is searched for the RSDP.
pub const ACPI_AREA: Range<u64> = 0xe_0000..0x10_0000;
/// The end of conventional memory, where RAM starts again in every memory map.
pub const HIGH_MEMORY: u64 = MIB;
/// RAM below 4 GiB ends here at the latest; the rest lies from [`ABOVE_4G`] up.
pub const LOW_RAM_MAX: u64 = 2 * GIB;
/// Where RAM that does not fit below [`LOW_RAM_MAX`] starts.
pub const ABOVE_4G: u64 = 4 * GIB;

/// PCI configuration space as memory: bus << 20 | device << 15 | function << 12 | register (PCI Express 3.0, 7.2.2). All 256 buses;
/// what has no device reads all ones.
pub const PCI_ECAM: Range<u64> = 0xb000_0000..0xc000_0000;
/// There are no bridges to further buses.
pub const PCI_LAST_BUS: u8 = 0;
/// Guest-physical addresses that PCI devices may be given.
pub const PCI_MMIO_WINDOW: Range<u64> = 0xc000_0000..0xfec0_0000;
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
pub const HPET_BASE: u64 = 0xfed0_0000;
pub const LAPIC_BASE: u64 = 0xfee0_0000;

/// IOAPIC: its id, and how many pins it has. Pin n is GSI n.
pub const IOAPIC_ID: u8 = 0;
pub const IOAPIC_PINS: u32 = 24;
/// The IOAPIC pin of the PIT (ISA IRQ 0); all other ISA IRQs have the pin of their number.
pub const PIT_GSI: u32 = 2;

/// The ACPI power-management block (ICH9 data sheet, 13.8.3), as offsets from its base port.
pub const PM_BASE: u16 = 0x600;
pub const PM1A_EVT_PORT: u16 = PM_BASE;
pub const PM1A_CNT_PORT: u16 = PM_BASE + 4;
pub const PM_TMR_PORT: u16 = PM_BASE + 8;
pub const GPE0_PORT: u16 = PM_BASE + 0x20;
pub const GPE0_BYTES: u8 = 16;
/// The block's ports in all.
pub const PM_PORTS: u16 = 0x80;
/// SLP_TYP of S5, soft off.
pub const S5_SLP_TYP: u8 = 7;
/// The system control interrupt: ISA IRQ and GSI.
pub const SCI_IRQ: u8 = 9;

/// The reset control register, and the value that resets the machine.
pub const RESET_PORT: u16 = 0xcf9;
pub const RESET_VALUE: u8 = 6;
/// Ports of PCI configuration mechanism #1; the reset register lies inside.
pub const PCI_CONFIG_PORTS: Range<u16> = 0xcf8..0xd00;

/// The LPC bridge's place on PCI bus 0.
pub const LPC_DEVICE: u8 = 31;
pub const LPC_FUNCTION: u8 = 0;
/// Configuration registers of the LPC bridge that route PIRQA-D and PIRQE-H to the 8259 pair (ICH9 data sheet, 13.1.19, 13.1.22).
pub const PIRQ_ROUTE_REGISTERS: [u8; 8] = [0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6a, 0x6b];
/// PIRQ n is IOAPIC pin 16 + n.
pub const PIRQ_GSI_BASE: u32 = 16;

/// Which PIRQ (0 = A .. 7 = H) the interrupt pin (0 = INTA# .. 3 = INTD#) of a device on bus 0 is wired to. The ACPI tables and
/// the board both ask here.
#[must_use]
pub const fn pci_pirq(device: u8, pin: u8) -> u8 {
    (device.wrapping_add(pin)) & 7
}

/// Port of the CMOS century byte's index: RTC register number (ACPI's FADT names it).
pub const RTC_CENTURY_REGISTER: u8 = 0x32;

/// Most RAM ranges that a guest has.
pub const MAX_RAM_RANGES: usize = 3;

/// Where the RAM of a guest with `memory` bytes lies, ascending. `memory` is rounded down to whole MiB, and up to one; the VGA
/// window's 128 KiB are counted but not backed.
#[must_use]
pub fn ram_ranges(memory: u64) -> ArrayVec<RamRange, MAX_RAM_RANGES> {
    let memory = (memory / MIB).max(1).saturating_mul(MIB);
    let low_top = memory.min(LOW_RAM_MAX);
    let mut ranges = ArrayVec::new();
    ranges.push(RamRange { gpa: Gpa(0), size: VGA_WINDOW.start });
    ranges.push(RamRange { gpa: Gpa(VGA_WINDOW.end), size: low_top - VGA_WINDOW.end });
    if memory > low_top {
        ranges.push(RamRange { gpa: Gpa(ABOVE_4G), size: memory - low_top });
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(memory: u64) -> std::vec::Vec<(u64, u64)> {
        ram_ranges(memory).iter().map(|r| (r.gpa.0, r.end().0)).collect()
    }

    #[test]
    fn ram_goes_around_the_vga_window_and_the_pci_window() {
        assert_eq!(shape(0), [(0, 0xa_0000), (0xc_0000, MIB)]);
        assert_eq!(shape(512 * MIB + 5), [(0, 0xa_0000), (0xc_0000, 512 * MIB)]);
        assert_eq!(shape(2 * GIB), [(0, 0xa_0000), (0xc_0000, 2 * GIB)]);
        assert_eq!(shape(2 * GIB + MIB), [(0, 0xa_0000), (0xc_0000, 2 * GIB), (4 * GIB, 4 * GIB + MIB)]);
        assert_eq!(shape(8 * GIB)[2], (4 * GIB, 10 * GIB));
    }

    #[test]
    fn every_interrupt_pin_reaches_an_ioapic_pin() {
        for device in 0..32 {
            for pin in 0..4 {
                assert!(PIRQ_GSI_BASE + u32::from(pci_pirq(device, pin)) < IOAPIC_PINS);
            }
        }
    }
}
