//! What the host's firmware says about itself (ACPI specification 6.5): CPUs, interrupt controllers, timers, power.
//!
//! The `acpi` crate finds and checks the tables; what is read from them is read by pure, bounds-checked functions, because tables of
//! real machines are shorter, older and stranger than their structures.

use crate::mm::{self, direct, table::MemoryType};
use acpi::{AcpiHandler, AcpiTable, AcpiTables, PhysicalMapping, fadt::Fadt, hpet::HpetTable, madt::Madt};
use alloc::vec::Vec;
use core::ptr::NonNull;
use x86defs::Hpa;

/// A register of the platform.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlatformRegister {
    Port(u16),
    Memory(Hpa),
}

/// A logical CPU that the firmware has enabled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuInfo {
    pub apic_id: u32,
}

/// An IOAPIC, as the MADT has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoApicInfo {
    pub address: u32,
    /// GSI of its first pin.
    pub gsi_base: u32,
}

/// An ISA interrupt that is wired otherwise than 1:1, edge-triggered, active high.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptOverride {
    pub irq: u8,
    pub gsi: u32,
    pub active_low: bool,
    pub level: bool,
}

/// The MADT.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Interrupts {
    pub cpus: Vec<CpuInfo>,
    pub io_apics: Vec<IoApicInfo>,
    pub overrides: Vec<InterruptOverride>,
}

/// The ACPI power management timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PmTimer {
    pub register: PlatformRegister,
    /// 24 or 32.
    pub bits: u32,
}

/// The FADT, as far as the host uses it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fixed {
    pub pm_timer: Option<PmTimer>,
    pub pm1a_control: Option<PlatformRegister>,
    pub pm1b_control: Option<PlatformRegister>,
    /// Register and value that reset the machine.
    pub reset: Option<(PlatformRegister, u8)>,
    /// Port and value that switch ACPI mode on.
    pub enable: Option<(u16, u8)>,
    /// CMOS index of the century, or 0.
    pub century: u8,
    /// The firmware says that there is no keyboard controller. If it says nothing, there may be one.
    pub no_i8042: bool,
}

/// Everything read from the tables.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Platform {
    pub interrupts: Interrupts,
    pub fixed: Fixed,
    /// SLP_TYP values for S5, for PM1a and PM1b.
    pub s5: Option<(u8, u8)>,
    /// Registers of the HPET.
    pub hpet: Option<Hpa>,
}

/// Where the table of tables is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Root {
    /// 32-bit pointers (ACPI 1.0).
    Rsdt(u32),
    /// 64-bit pointers (ACPI 2.0 and later).
    Xsdt(u64),
}

/// Why there is no [`Platform`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The loader handed over no RSDP, or none with a right checksum.
    NoRsdp,
    /// The RSDT or XSDT at this address is broken.
    BadRoot(u64),
    /// There is no MADT, or a broken one: no interrupt controllers are known.
    NoMadt,
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0
}

fn le<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}
fn u8_at(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    le(bytes, at).map(u16::from_le_bytes)
}
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    le(bytes, at).map(u32::from_le_bytes)
}
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    le(bytes, at).map(u64::from_le_bytes)
}

/// Reads a root system description pointer: a copy of it, 20 bytes or more (ACPI 6.5, 5.2.5.3).
#[must_use]
pub fn parse_rsdp(rsdp: &[u8]) -> Option<Root> {
    if !rsdp.starts_with(b"RSD PTR ") || !sums_to_zero(rsdp.get(..20)?) {
        return None;
    }
    let extended = || {
        let length = usize::try_from(u32_at(rsdp, 20)?).ok()?;
        let xsdt = u64_at(rsdp, 24)?;
        (*rsdp.get(15)? >= 2 && xsdt != 0 && sums_to_zero(rsdp.get(..length)?)).then_some(Root::Xsdt(xsdt))
    };
    extended().or_else(|| u32_at(rsdp, 16).filter(|&a| a != 0).map(Root::Rsdt))
}

/// Reads a MADT, header included (ACPI 6.5, 5.2.12). Stops at the first entry that makes no sense.
fn parse_madt(madt: &[u8]) -> Interrupts {
    const ENABLED: u32 = 1;
    // Some firmware lists a CPU by both kinds of entry.
    let add = |apic_id: u32, cpus: &mut Vec<CpuInfo>| {
        let cpu = CpuInfo { apic_id };
        if !cpus.contains(&cpu) {
            cpus.push(cpu);
        }
    };
    let mut found = Interrupts::default();
    let mut rest = madt.get(44..).unwrap_or(&[]);
    while let (Some(kind), Some(length)) = (u8_at(rest, 0), u8_at(rest, 1)) {
        let Some((entry, after)) = rest.split_at_checked(usize::from(length)).filter(|_| length >= 2) else { break };
        match kind {
            0 => {
                if let (Some(id), Some(flags)) = (u8_at(entry, 3), u32_at(entry, 4))
                    && flags & ENABLED != 0
                    // The broadcast address: an entry that does not count.
                    && id != 0xff
                {
                    add(u32::from(id), &mut found.cpus);
                }
            }
            9 => {
                if let (Some(apic_id), Some(flags)) = (u32_at(entry, 4), u32_at(entry, 8))
                    && flags & ENABLED != 0
                    && apic_id != u32::MAX
                {
                    add(apic_id, &mut found.cpus);
                }
            }
            1 => {
                if let (Some(address), Some(gsi_base)) = (u32_at(entry, 4), u32_at(entry, 8)) {
                    found.io_apics.push(IoApicInfo { address, gsi_base });
                }
            }
            2 => {
                if let (Some(irq), Some(gsi), Some(flags)) = (u8_at(entry, 3), u32_at(entry, 4), u16_at(entry, 8)) {
                    // 0 is what ISA does: active high, edge (table 5.26).
                    let (active_low, level) = (flags & 3 == 3, flags >> 2 & 3 == 3);
                    found.overrides.push(InterruptOverride { irq, gsi, active_low, level });
                }
            }
            _ => {}
        }
        rest = after;
    }
    found
}

/// Reads a generic address structure (ACPI 6.5, 5.2.3.2).
fn parse_address(table: &[u8], at: usize) -> Option<PlatformRegister> {
    let address = u64_at(table, at + 4).filter(|&a| a != 0)?;
    match u8_at(table, at)? {
        0 => Some(PlatformRegister::Memory(Hpa(address))),
        1 => u16::try_from(address).ok().map(PlatformRegister::Port),
        _ => None,
    }
}

/// Reads a FADT, header included (ACPI 6.5, 5.2.9). Fields beyond its length are absent.
fn parse_fadt(fadt: &[u8]) -> Fixed {
    const HAS_I8042: u16 = 1 << 1;
    const RESET_SUPPORTED: u32 = 1 << 10;
    const TIMER_32_BIT: u32 = 1 << 8;
    let block = |extended: usize, legacy: usize| {
        let port = || u32_at(fadt, legacy).filter(|&p| p != 0).and_then(|p| u16::try_from(p).ok());
        parse_address(fadt, extended).or_else(|| port().map(PlatformRegister::Port))
    };
    let flags = u32_at(fadt, 112).unwrap_or(0);
    let has_timer = u8_at(fadt, 91) == Some(4);
    Fixed {
        pm_timer: block(208, 76)
            .filter(|_| has_timer)
            .map(|register| PmTimer { register, bits: if flags & TIMER_32_BIT != 0 { 32 } else { 24 } }),
        pm1a_control: block(172, 64),
        pm1b_control: block(184, 68),
        reset: parse_address(fadt, 116).zip(u8_at(fadt, 128)).filter(|_| flags & RESET_SUPPORTED != 0),
        enable: u32_at(fadt, 48)
            .and_then(|p| u16::try_from(p).ok())
            .zip(u8_at(fadt, 52))
            .filter(|&(port, value)| port != 0 && value != 0),
        century: u8_at(fadt, 108).unwrap_or(0),
        // IAPC_BOOT_ARCH (5.2.9.3). The first revision has something else there.
        no_i8042: u8_at(fadt, 8).is_some_and(|revision| revision >= 2)
            && u16_at(fadt, 109).is_some_and(|boot| boot & HAS_I8042 == 0),
    }
}

/// Finds the \_S5 package in AML and reads its first two elements (ACPI 6.5, 7.4.2; AML encoding 20.2.5.4).
///
/// This looks for the name's definition instead of interpreting the whole program: the package has to be a constant for any OS to
/// use it before its interpreter runs, and in practice always is.
fn find_s5(aml: &[u8]) -> Option<(u8, u8)> {
    const NAME_OP: u8 = 0x08;
    const PACKAGE_OP: u8 = 0x12;
    aml.windows(4).enumerate().filter(|(_, w)| w == b"_S5_").find_map(|(at, _)| {
        let before = aml.get(..at)?;
        let before = before.strip_suffix(b"\\").unwrap_or(before);
        if before.last() != Some(&NAME_OP) {
            return None;
        }
        let package = aml.get(at + 4..)?;
        if package.first() != Some(&PACKAGE_OP) {
            return None;
        }
        // The top two bits of PkgLength's first byte say how many more bytes it has; then the number of elements.
        let elements = package.get(2 + usize::from(package.get(1)? >> 6)..)?;
        let (first, rest) = integer(elements.get(1..)?)?;
        let second = integer(rest).map_or(0, |(v, _)| v);
        (first < 8 && second < 8 && *elements.first()? >= 1).then_some((first, second))
    })
}

/// A small AML integer constant, and what follows it.
fn integer(aml: &[u8]) -> Option<(u8, &[u8])> {
    match aml {
        [0x00, rest @ ..] => Some((0, rest)),
        [0x01, rest @ ..] => Some((1, rest)),
        [0x0a, value, rest @ ..] | [0x0b, value, 0, rest @ ..] | [0x0c, value, 0, 0, 0, rest @ ..] => Some((*value, rest)),
        _ => None,
    }
}

/// Reads an HPET table (IA-PC HPET specification 1.0a, 3.2.4).
fn parse_hpet(hpet: &[u8]) -> Option<Hpa> {
    match parse_address(hpet, 40)? {
        PlatformRegister::Memory(address) if address.is_aligned(8) => Some(address),
        _ => None,
    }
}

/// Maps tables on demand; what is mapped stays so.
#[derive(Clone, Debug)]
struct Mapper;

impl AcpiHandler for Mapper {
    unsafe fn map_physical_region<T>(&self, physical_address: usize, size: usize) -> PhysicalMapping<Self, T> {
        // The crate may read its whole structure even where the table is shorter.
        let length = size.max(size_of::<T>());
        let pointer = mm::map_ram_like(Hpa(physical_address as u64), length as u64).cast::<T>();
        let pointer = NonNull::new(pointer).unwrap_or(NonNull::dangling());
        // SAFETY: `map_ram_like` has mapped the region, and nothing ever unmaps it.
        unsafe { PhysicalMapping::new(physical_address, pointer, size, length, self.clone()) }
    }

    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}

/// The bytes of a table.
fn bytes<T>(mapping: &PhysicalMapping<Mapper, T>) -> &[u8] {
    // SAFETY: the whole region is mapped for ever, and firmware tables do not change.
    unsafe { core::slice::from_raw_parts(mapping.virtual_start().as_ptr().cast::<u8>(), mapping.region_length()) }
}

fn aml(table: &acpi::AmlTable) -> &'static [u8] {
    let pointer = mm::map_ram_like(Hpa(table.address as u64), u64::from(table.length));
    // SAFETY: as above; the crate has checked the table's checksum, so it really is that long.
    unsafe { core::slice::from_raw_parts(pointer, table.length as usize) }
}

fn find<T: AcpiTable, R>(tables: &AcpiTables<Mapper>, parse: impl FnOnce(&[u8]) -> R) -> Option<R> {
    tables.find_table::<T>().ok().map(|mapping| parse(bytes(&mapping)))
}

/// Looks for an RSDP where a PC BIOS puts it, for loaders that do not hand one over.
#[must_use]
pub fn search_bios() -> Option<Root> {
    const START: u64 = 0xe_0000;
    const SIZE: u64 = 0x2_0000;
    let area = mm::map_ram_like(Hpa(START), SIZE);
    // SAFETY: the BIOS area is mapped and is read-only memory.
    let area = unsafe { core::slice::from_raw_parts(area, SIZE as usize) };
    (0..SIZE as usize).step_by(16).find_map(|at| parse_rsdp(&area[at..]))
}

/// Reads the tables. Whatever is missing but not vital is left out.
///
/// # Errors
/// See [`Error`].
pub fn read(root: Root) -> Result<Platform, Error> {
    let (revision, address) = match root {
        Root::Rsdt(address) => (0, u64::from(address)),
        Root::Xsdt(address) => (2, address),
    };
    // SAFETY: the address comes from an RSDP with a right checksum, and the crate checks the table's own.
    let tables = unsafe { AcpiTables::from_rsdt(Mapper, revision, address as usize) }.map_err(|_| Error::BadRoot(address))?;
    let interrupts = find::<Madt, _>(&tables, parse_madt).ok_or(Error::NoMadt)?;
    let dsdt = tables.dsdt().ok();
    let s5 = dsdt.iter().find_map(|t| find_s5(aml(t))).or_else(|| tables.ssdts().find_map(|t| find_s5(aml(&t))));
    Ok(Platform {
        interrupts,
        fixed: find::<Fadt, _>(&tables, parse_fadt).unwrap_or_default(),
        s5,
        hpet: find::<HpetTable, _>(&tables, parse_hpet).flatten(),
    })
}

impl PlatformRegister {
    /// Reads 1, 2 or 4 bytes, zero-extended.
    ///
    /// # Safety
    /// The register must be what the tables say, and the read's side effect wanted.
    #[must_use]
    pub unsafe fn read(self, bytes: u32) -> u32 {
        use crate::cpu::port;
        // SAFETY: the caller's; memory registers are mapped here.
        unsafe {
            match self {
                Self::Port(port) => match bytes {
                    1 => u32::from(port::read_u8(port)),
                    2 => u32::from(port::read_u16(port)),
                    _ => port::read_u32(port),
                },
                Self::Memory(address) => {
                    let pointer = mapped(address, bytes);
                    match bytes {
                        1 => u32::from(pointer.read_volatile()),
                        2 => u32::from(pointer.cast::<u16>().read_volatile()),
                        _ => pointer.cast::<u32>().read_volatile(),
                    }
                }
            }
        }
    }

    /// Writes 1, 2 or 4 bytes.
    ///
    /// # Safety
    /// As [`PlatformRegister::read`].
    pub unsafe fn write(self, bytes: u32, value: u32) {
        use crate::cpu::port;
        // SAFETY: the caller's; memory registers are mapped here.
        unsafe {
            match self {
                Self::Port(port) => match bytes {
                    1 => port::write_u8(port, value as u8),
                    2 => port::write_u16(port, value as u16),
                    _ => port::write_u32(port, value),
                },
                Self::Memory(address) => {
                    let pointer = mapped(address, bytes);
                    match bytes {
                        1 => pointer.write_volatile(value as u8),
                        2 => pointer.cast::<u16>().write_volatile(value as u16),
                        _ => pointer.cast::<u32>().write_volatile(value),
                    }
                }
            }
        }
    }
}

fn mapped(address: Hpa, bytes: u32) -> *mut u8 {
    if mm::is_mapped(address) { direct::to_virt(address) } else { mm::map_mmio(address, u64::from(bytes), MemoryType::Uncached) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};
    use std::vec;

    fn with_checksum(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
        bytes[at] = 0u8.wrapping_sub(bytes.iter().fold(0, |s, b| s.wrapping_add(*b)));
        bytes
    }

    fn rsdp(revision: u8) -> Vec<u8> {
        let mut v1 = b"RSD PTR \0BOCHS ".to_vec();
        v1.push(revision);
        v1.extend(0x7fe_1234u32.to_le_bytes());
        let mut all = with_checksum(v1, 8);
        all.extend(36u32.to_le_bytes());
        all.extend(0x1_7fe1_0000u64.to_le_bytes());
        all.extend([0; 4]);
        with_checksum(all, 32)
    }

    #[test]
    fn rsdp_of_either_age() {
        assert_eq!(parse_rsdp(&rsdp(2)), Some(Root::Xsdt(0x1_7fe1_0000)));
        assert_eq!(parse_rsdp(&rsdp(0)), Some(Root::Rsdt(0x7fe_1234)));
        // A copy that was cut after the first version's fields.
        assert_eq!(parse_rsdp(&rsdp(2)[..20]), Some(Root::Rsdt(0x7fe_1234)));
        let mut broken = rsdp(2);
        broken[17] ^= 1;
        assert_eq!(parse_rsdp(&broken), None);
    }

    fn madt() -> Vec<u8> {
        let mut t = vec![0; 44];
        t.extend([0, 8, 0, 3, 1, 0, 0, 0]);
        t.extend([0, 8, 1, 4, 0, 0, 0, 0]); // disabled
        t.extend([9, 16, 0, 0, 0x00, 0x01, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0]);
        t.extend([0, 8, 5, 3, 1, 0, 0, 0]); // again
        t.extend([9, 16, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0]); // and again
        t.extend([0, 8, 2, 0xff, 1, 0, 0, 0]); // nobody's
        t.extend([9, 16, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 9, 0, 0, 0]);
        t.extend([9, 16, 0, 0, 0x00, 0x02, 0, 0, 2, 0, 0, 0, 10, 0, 0, 0]); // not enabled, could be
        t.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 24, 0, 0, 0]);
        t.extend([2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0]);
        t.extend([2, 10, 0, 10, 11, 0, 0, 0, 0x0f, 0]);
        t
    }

    #[test]
    fn madt_entries() {
        let found = parse_madt(&madt());
        assert_eq!(found.cpus, [CpuInfo { apic_id: 3 }, CpuInfo { apic_id: 0x100 }]);
        assert_eq!(found.io_apics, [IoApicInfo { address: 0xfec0_0000, gsi_base: 24 }]);
        assert_eq!(found.overrides[0], InterruptOverride { irq: 9, gsi: 9, active_low: false, level: true });
        assert_eq!(found.overrides[1], InterruptOverride { irq: 10, gsi: 11, active_low: true, level: true });
    }

    #[test]
    fn a_madt_entry_of_no_length_ends_the_table() {
        let mut t = madt();
        t.extend([0x7f, 0, 0, 0]);
        assert_eq!(parse_madt(&t).cpus.len(), 2);
    }

    fn fadt(length: usize) -> Vec<u8> {
        let mut t = vec![0; 244];
        t[48..52].copy_from_slice(&0xb2u32.to_le_bytes());
        t[52] = 0xf1;
        t[64..68].copy_from_slice(&0x604u32.to_le_bytes());
        t[76..80].copy_from_slice(&0x608u32.to_le_bytes());
        t[91] = 4;
        t[108] = 0x32;
        t[112..116].copy_from_slice(&(1u32 << 10 | 1 << 8).to_le_bytes());
        t[116..128].copy_from_slice(&[1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0]);
        t[128] = 0x0f;
        t[172..184].copy_from_slice(&[1, 16, 0, 2, 0x04, 0xb0, 0, 0, 0, 0, 0, 0]);
        t.truncate(length);
        t
    }

    #[test]
    fn fadt_of_either_age() {
        let old = parse_fadt(&fadt(116));
        assert_eq!(old.pm1a_control, Some(PlatformRegister::Port(0x604)));
        assert_eq!(old.pm_timer, Some(PmTimer { register: PlatformRegister::Port(0x608), bits: 32 }));
        assert_eq!((old.reset, old.century, old.enable), (None, 0x32, Some((0xb2, 0xf1))));
        let new = parse_fadt(&fadt(244));
        assert_eq!(new.pm1a_control, Some(PlatformRegister::Port(0xb004)));
        assert_eq!(new.reset, Some((PlatformRegister::Port(0xcf9), 0x0f)));
    }

    #[test]
    fn only_a_fadt_that_can_say_so_denies_the_keyboard_controller() {
        let denied = |revision: u8, boot: u8, length| {
            let mut t = fadt(length);
            (t[8], t[109]) = (revision, boot);
            parse_fadt(&t).no_i8042
        };
        assert!(denied(3, 0x01, 244) && denied(2, 0, 129));
        assert!(!denied(3, 0x03, 244) && !denied(1, 0, 116));
    }

    #[test]
    fn s5_as_compilers_write_it() {
        // iasl: Name (_S5, Package (0x04) { 0x07, Zero, Zero, Zero })
        let mut aml = vec![0x10, 0x20, 0x5c, b'_', b'S', b'5', b'_'];
        aml.extend(b"\x08_S5_\x12\x07\x04\x0a\x07\x00\x00\x00");
        assert_eq!(find_s5(&aml), Some((7, 0)));
        assert_eq!(find_s5(b"\x08\\_S5_\x12\x08\x04\x0a\x05\x0a\x06\x00\x00"), Some((5, 6)));
        assert_eq!(find_s5(b"\x08_S5_\x12\x46\x00\x02\x01\x01"), Some((1, 1)));
        assert_eq!(find_s5(b"\x08_S5_\x12"), None);
        assert_eq!(find_s5(b"\x14_S5_\x12\x07\x04\x0a\x07\x00\x00\x00"), None);
    }

    proptest! {
        #[test]
        fn no_table_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (parse_rsdp(&bytes), parse_fadt(&bytes), find_s5(&bytes), parse_hpet(&bytes));
            let _ = parse_madt(&bytes);
            let _ = find_s5(&[b"\x08_S5_\x12".as_slice(), &bytes].concat());
        }
    }
}
