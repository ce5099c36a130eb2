//! The tables that are plain data: RSDP, RSDT, XSDT, FADT, FACS, MADT, MCFG, HPET.

use crate::layout;
use acpi_tables::{
    facs::FACS,
    fadt::{FADT, FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
    sdt::Sdt,
};
use alloc::vec::Vec;

pub(super) const OEM_ID: [u8; 6] = *b"BULKHD";
pub(super) const OEM_TABLE_ID: [u8; 8] = *b"BULKHEAD";
const OEM_REVISION: u32 = 1;
const CREATOR_ID: [u8; 4] = *b"BLKH";

/// An empty table with our names in its header (ACPI 5.2.6).
pub(super) fn table(signature: [u8; 4], revision: u8) -> Sdt {
    let mut sdt = Sdt::new(signature, 36, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    sdt.write_bytes(28, &CREATOR_ID);
    sdt
}

/// Bytes in an RSDP of revision 2.
pub(super) const RSDP_BYTES: u64 = 36;

/// ACPI 5.2.5.3. Built here, since it must name the RSDT too.
pub(super) fn rsdp(rsdt: u32, xsdt: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RSDP_BYTES as usize);
    bytes.extend_from_slice(b"RSD PTR ");
    bytes.push(0);
    bytes.extend_from_slice(&OEM_ID);
    bytes.push(2);
    bytes.extend_from_slice(&rsdt.to_le_bytes());
    bytes[8] = checksum(&bytes);
    bytes.extend_from_slice(&(RSDP_BYTES as u32).to_le_bytes());
    bytes.extend_from_slice(&u64::from(xsdt).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes[32] = checksum(&bytes);
    bytes
}

/// What makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, &b| sum.wrapping_sub(b))
}

/// ACPI 5.2.7: for systems that do not know the XSDT.
pub(super) fn rsdt(tables: &[u32]) -> Sdt {
    let mut sdt = table(*b"RSDT", 1);
    for &address in tables {
        sdt.append(address);
    }
    sdt
}

/// ACPI 5.2.8.
pub(super) fn xsdt(tables: &[u32]) -> Sdt {
    let mut sdt = table(*b"XSDT", 1);
    for &address in tables {
        sdt.append(u64::from(address));
    }
    sdt
}

/// ACPI 5.2.10.
pub(super) fn facs() -> FACS {
    FACS::new()
}

/// IAPC_BOOT_ARCH flags (ACPI table 5.11).
mod boot_arch {
    pub const LEGACY_DEVICES: u16 = 1 << 0;
    pub const I8042: u16 = 1 << 1;
    pub const VGA_NOT_PRESENT: u16 = 1 << 2;
}

/// ACPI 5.2.9.
pub(super) fn fadt(facs: u32, dsdt: u32) -> FADT {
    let io = |bits, access, port| GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        // S5 is the only sleep state. Both buttons and the RTC's alarm are in the fixed registers.
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.creator_id = CREATOR_ID;
    // Only the 32-bit field: giving both makes some systems read the FACS twice.
    fadt.firmware_ctrl = facs.into();
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.sci_int = u16::from(layout::SCI_IRQ).into();

    fadt.pm1a_evt_blk = u32::from(layout::PM1A_EVT_PORT).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = io(32, AccessSize::WordAccess, layout::PM1A_EVT_PORT);
    fadt.pm1a_cnt_blk = u32::from(layout::PM1A_CNT_PORT).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = io(16, AccessSize::WordAccess, layout::PM1A_CNT_PORT);
    fadt.pm_tmr_blk = u32::from(layout::PM_TMR_PORT).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = io(32, AccessSize::DwordAccess, layout::PM_TMR_PORT);
    fadt.gpe0_blk = u32::from(layout::GPE0_PORT).into();
    fadt.gpe0_blk_len = layout::GPE0_BYTES;
    fadt.x_gpe0_blk = io(layout::GPE0_BYTES * 8, AccessSize::ByteAccess, layout::GPE0_PORT);

    // Worse than 100 and 1000 us: no C2 and C3.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    fadt.century = layout::RTC_CENTURY_REGISTER;
    fadt.iapc_boot_arch = (boot_arch::LEGACY_DEVICES | boot_arch::I8042 | boot_arch::VGA_NOT_PRESENT).into();
    fadt.reset_reg = io(8, AccessSize::ByteAccess, layout::RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"BULKHEAD").into();
    fadt.finalize()
}

/// PCI Firmware Specification 3.3, 4.1.2: one segment with all its buses.
pub(super) fn mcfg() -> Sdt {
    let mut body = Vec::from([0; 8]);
    body.extend_from_slice(&layout::PCI_ECAM.start.to_le_bytes());
    let segment: u16 = 0;
    body.extend_from_slice(&segment.to_le_bytes());
    // Those that there are, though the window has room for more: Linux asks each slot of each bus named here what it holds.
    let (first_bus, last_bus) = (0, layout::PCI_LAST_BUS);
    body.extend_from_slice(&[first_bus, last_bus, 0, 0, 0, 0]);
    let mut sdt = table(*b"MCFG", 1);
    sdt.append_slice(&body);
    sdt
}

/// IA-PC HPET Specification 1.0a, 3.2.4.
pub(super) fn hpet() -> Sdt {
    /// Shortest period, in ticks, at which the timer loses no interrupt: 10 us.
    const MIN_TICKS: u16 = 1000;
    let mut body = Vec::new();
    body.extend_from_slice(&devices::hpet::ID.to_le_bytes());
    // Generic address: memory, 64 bits.
    body.extend_from_slice(&[0, 64, 0, 0]);
    body.extend_from_slice(&layout::HPET_BASE.to_le_bytes());
    body.push(0);
    body.extend_from_slice(&MIN_TICKS.to_le_bytes());
    body.push(0);
    let mut sdt = table(*b"HPET", 1);
    sdt.append_slice(&body);
    sdt
}

/// Structure types of the MADT (ACPI table 5.21).
mod madt_type {
    pub const LAPIC: u8 = 0;
    pub const IOAPIC: u8 = 1;
    pub const INTERRUPT_OVERRIDE: u8 = 2;
    pub const LAPIC_NMI: u8 = 4;
    pub const X2APIC: u8 = 9;
    pub const X2APIC_NMI: u8 = 10;
}

/// A dual 8259 is there too (ACPI table 5.20).
const PCAT_COMPAT: u32 = 1;
const ENABLED: u32 = 1;
/// MPS INTI flags (ACPI table 5.26): as the bus has it, and active high, level-triggered.
const BUS_DEFAULT: u16 = 0;
const ACTIVE_HIGH_LEVEL: u16 = 1 | 3 << 2;
/// APIC ids from here on do not fit a local APIC structure (255 is the broadcast).
const FIRST_X2APIC_ID: u32 = 255;

/// ACPI 5.2.12.
pub(super) fn madt(vcpus: u32) -> Sdt {
    let mut body = Vec::new();
    body.extend_from_slice(&(layout::LAPIC_BASE as u32).to_le_bytes());
    body.extend_from_slice(&PCAT_COMPAT.to_le_bytes());
    let mut add = |kind: u8, fields: &[&[u8]]| {
        let length = 2 + fields.iter().map(|f| f.len()).sum::<usize>();
        body.extend_from_slice(&[kind, length as u8]);
        fields.iter().for_each(|f| body.extend_from_slice(f));
    };
    // The processor's _UID is its APIC id.
    for id in 0..vcpus.min(FIRST_X2APIC_ID) {
        add(madt_type::LAPIC, &[&[id as u8, id as u8], &ENABLED.to_le_bytes()]);
    }
    for id in FIRST_X2APIC_ID..vcpus {
        add(madt_type::X2APIC, &[&[0; 2], &id.to_le_bytes(), &ENABLED.to_le_bytes(), &id.to_le_bytes()]);
    }
    add(madt_type::IOAPIC, &[&[layout::IOAPIC_ID, 0], &(layout::IOAPIC_BASE as u32).to_le_bytes(), &0u32.to_le_bytes()]);
    let mut reroute = |irq: u8, gsi: u32, flags: u16| {
        add(madt_type::INTERRUPT_OVERRIDE, &[&[0, irq], &gsi.to_le_bytes(), &flags.to_le_bytes()]);
    };
    reroute(0, layout::PIT_GSI, BUS_DEFAULT);
    reroute(layout::SCI_IRQ, layout::SCI_IRQ.into(), ACTIVE_HIGH_LEVEL);
    // LINT1 is NMI, on every processor.
    add(madt_type::LAPIC_NMI, &[&[0xff], &BUS_DEFAULT.to_le_bytes(), &[1]]);
    if vcpus > FIRST_X2APIC_ID {
        add(madt_type::X2APIC_NMI, &[&BUS_DEFAULT.to_le_bytes(), &u32::MAX.to_le_bytes(), &[1, 0, 0, 0]]);
    }
    let mut sdt = table(*b"APIC", 5);
    sdt.append_slice(&body);
    sdt
}
