use super::*;
use crate::testing::FakeMemory;
use std::collections::BTreeMap;
use x86defs::GuestMemoryExt;

/// A guest's RAM with the tables in it.
fn memory(vcpus: u32) -> (FakeMemory, AcpiImage) {
    with(&AcpiInput { vcpus, coms: [true; 4], hpet: true })
}

fn with(input: &AcpiInput) -> (FakeMemory, AcpiImage) {
    let memory = FakeMemory::new(&layout::ram_ranges(layout::MIB));
    let image = build(input);
    image.write_to(&memory).unwrap();
    (memory, image)
}

fn read(memory: &FakeMemory, gpa: u64, len: usize) -> Vec<u8> {
    let mut bytes = std::vec![0; len];
    memory.read(Gpa(gpa), &mut bytes).unwrap();
    bytes
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &b| sum.wrapping_add(b))
}

/// Finds the tables as a system does: RSDP by search, then the XSDT, each with its checksum.
fn find_tables(memory: &FakeMemory) -> BTreeMap<[u8; 4], Vec<u8>> {
    let rsdp = (0xe_0000..0x10_0000u64)
        .step_by(16)
        .find(|&at| read(memory, at, 8) == *b"RSD PTR ")
        .map(|at| read(memory, at, 36))
        .expect("no RSDP");
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp), rsdp[15]), (0, 0, 2));
    let table = |gpa: u64| {
        let len = memory.read_u32(Gpa(gpa + 4)).unwrap() as usize;
        let bytes = read(memory, gpa, len);
        assert_eq!(sum(&bytes), 0, "checksum of {:?}", &bytes[..4]);
        bytes
    };
    let xsdt = table(u64::from_le_bytes(rsdp[24..32].try_into().unwrap()));
    let rsdt = table(u32_at(&rsdp, 16).into());
    let wide: Vec<u64> = xsdt[36..].chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect();
    let narrow: Vec<u64> = rsdt[36..].chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap()).into()).collect();
    assert_eq!(wide, narrow);
    let mut tables: BTreeMap<_, _> = wide.into_iter().map(table).map(|t| (t[..4].try_into().unwrap(), t)).collect();
    let fadt = tables[b"FACP"].clone();
    let facs = read(memory, u32_at(&fadt, 36).into(), 64);
    assert_eq!((&facs[..4], u32_at(&facs, 4), u32_at(&fadt, 36) % 64), (&b"FACS"[..], 64, 0));
    tables.insert(*b"DSDT", table(u32_at(&fadt, 40).into()));
    tables
}

#[test]
fn tables_are_found_and_whole() {
    for vcpus in [1, 2, 255, 300, MAX_VCPUS] {
        let (memory, image) = memory(vcpus);
        assert_eq!(find_tables(&memory).len(), 5);
        let mut end = layout::ACPI_AREA.start;
        for (gpa, bytes) in &image.pieces {
            assert!(gpa.0 >= end, "pieces overlap");
            end = gpa.0 + bytes.len() as u64;
        }
        assert!(end <= layout::ACPI_AREA.end, "the tables of {vcpus} vCPUs end at {end:#x}");
    }
}

#[test]
fn fadt_describes_the_board() {
    let (memory, _) = memory(1);
    let fadt = &find_tables(&memory)[b"FACP"];
    let gas =
        |offset: usize| (fadt[offset], fadt[offset + 1], u64::from_le_bytes(fadt[offset + 4..offset + 12].try_into().unwrap()));
    assert_eq!(fadt.len(), 276);
    assert_eq!(u16::from_le_bytes([fadt[46], fadt[47]]), 9, "SCI_INT");
    assert_eq!(u32_at(fadt, 48), 0, "SMI_CMD");
    // Old and extended fields agree: block, length in bytes against width in bits.
    for (block, len, extended, port) in [(56, 88, 148, 0x600), (64, 89, 172, 0x604), (76, 91, 208, 0x608), (80, 92, 220, 0x620)] {
        assert_eq!(u32_at(fadt, block), port);
        assert_eq!(gas(extended), (1, fadt[len] * 8, port.into()));
    }
    assert_eq!(fadt[108], 0x32, "CENTURY");
    assert_eq!((gas(116), fadt[128]), ((1, 8, 0xcf9), 6), "reset register");
    let flags = u32_at(fadt, 112);
    for (bit, name, set) in [
        (0, "WBINVD", true),
        (2, "PROC_C1", true),
        (4, "PWR_BUTTON: no control-method button", false),
        (5, "SLP_BUTTON: no control-method button", false),
        (6, "FIX_RTC: the alarm is in the fixed registers", false),
        (8, "TMR_VAL_EXT: 32-bit timer", true),
        (10, "RESET_REG_SUP", true),
        (20, "HW_REDUCED_ACPI", false),
    ] {
        assert_eq!(flags >> bit & 1 == 1, set, "{name}");
    }
    assert_eq!(u32_at(fadt, 40), u32_at(fadt, 140), "DSDT and X_DSDT");
}

/// The MADT's structures: type and bytes.
fn madt_entries(madt: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut entries = Vec::new();
    let mut rest = &madt[44..];
    while !rest.is_empty() {
        let (entry, after) = rest.split_at(rest[1].into());
        entries.push((entry[0], entry.to_vec()));
        rest = after;
    }
    entries
}

#[test]
fn madt_lists_processors_and_interrupts() {
    let (memory, _) = memory(2);
    let madt = &find_tables(&memory)[b"APIC"];
    assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 1));
    let expected: [&[u8]; 6] = [
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 1, 1, 0, 0, 0],
        &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
        &[2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0],
        &[4, 6, 0xff, 0, 0, 1],
    ];
    assert_eq!(madt_entries(madt).into_iter().map(|e| e.1).collect::<Vec<_>>(), expected);
}

#[test]
fn processors_from_255_on_are_x2apics() {
    let (memory, _) = memory(257);
    let entries = madt_entries(&find_tables(&memory)[b"APIC"]);
    let ids = |kind| entries.iter().filter(|e| e.0 == kind).map(|e| e.1.clone()).collect::<Vec<_>>();
    assert_eq!(ids(0).len(), 255);
    assert_eq!(
        ids(9).iter().map(|e| (u32_at(e, 4), u32_at(e, 8), u32_at(e, 12))).collect::<Vec<_>>(),
        [(255, 1, 255), (256, 1, 256)]
    );
    assert_eq!(ids(10), [[10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]]);
}

#[test]
fn mcfg_names_the_reserved_configuration_space() {
    let (memory, _) = memory(1);
    let mcfg = &find_tables(&memory)[b"MCFG"];
    assert_eq!(mcfg[44..], [0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // One bus; the memory map reserves all of the window, 256 of 1 MiB each.
    let map = crate::e820::map(&memory);
    assert!(map.iter().any(|e| (e.gpa.0, e.size, e.kind) == (0xb000_0000, 256 << 20, crate::e820::E820Type::Reserved)));
}

#[test]
fn hpet_and_serial_ports_are_there_when_asked_for() {
    let (memory, _) = with(&AcpiInput { vcpus: 1, coms: [true, false, true, false], hpet: false });
    let tables = find_tables(&memory);
    assert!(!tables.contains_key(b"HPET"));
    let has = |tables: &BTreeMap<[u8; 4], Vec<u8>>, name: &[u8]| tables[b"DSDT"].windows(4).any(|w| w == name);
    let found = [b"COM1", b"COM2", b"COM3", b"COM4", b"HPET"].map(|name| has(&tables, name));
    assert_eq!(found, [true, false, true, false, false]);
    let (memory, _) = self::memory(1);
    let tables = find_tables(&memory);
    assert!(has(&tables, b"HPET") && has(&tables, b"COM4"));
    // 3.2.4: the ID of the device, its address in memory, number 0.
    let hpet = &tables[b"HPET"];
    assert_eq!(hpet.len(), 56);
    assert_eq!(u32_at(hpet, 36), 0x8086_a301);
    assert_eq!((hpet[40], u64::from_le_bytes(hpet[44..52].try_into().unwrap()), hpet[52]), (0, 0xfed0_0000, 0));
}

/// A data object of AML (ACPI 6.4, 20.2.3) as far as routing tables have them.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Object {
    Integer(u64),
    Name(std::string::String),
    Package(Vec<Object>),
}

/// Reads one from the front of `bytes`.
fn object(bytes: &mut &[u8]) -> Object {
    let mut take = |count: usize| {
        let (taken, rest) = bytes.split_at(count);
        *bytes = rest;
        taken
    };
    let integer = |bytes: &[u8]| Object::Integer(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)));
    match take(1)[0] {
        0 => Object::Integer(0),
        1 => Object::Integer(1),
        0x0a => integer(take(1)),
        0x0b => integer(take(2)),
        0x0c => integer(take(4)),
        b'\\' => {
            assert_eq!(take(1), [0x2e], "a path of two segments");
            Object::Name(core::str::from_utf8(take(8)).unwrap().into())
        }
        0x12 => {
            // PkgLength: the first byte's high bits say how many more there are.
            let lead = take(1)[0];
            take(usize::from(lead >> 6));
            let count = take(1)[0];
            Object::Package((0..count).map(|_| object(bytes)).collect())
        }
        other => panic!("{other:#x}"),
    }
}

/// The object that `name` stands for.
fn named(dsdt: &[u8], name: &[u8; 4]) -> Object {
    let at = dsdt.windows(5).position(|w| w[0] == 0x08 && w[1..] == *name).expect("no such name");
    object(&mut &dsdt[at + 5..])
}

/// ACPI 6.4, 6.2.13: for the IOAPIC, pins themselves; for the 8259 pair, link devices on the registers of the LPC bridge.
#[test]
fn every_pin_is_routed_as_the_board_wires_it() {
    let (memory, _) = memory(1);
    let dsdt = &find_tables(&memory)[b"DSDT"];
    let [apic, pic] = [b"PRTA", b"PRTP"].map(|name| match named(dsdt, name) {
        Object::Package(entries) => entries,
        other => panic!("{other:?}"),
    });
    assert_eq!((apic.len(), pic.len()), (128, 128));
    let pins = (0..32u64).flat_map(|device| (0..4u64).map(move |pin| (device, pin)));
    for (((device, pin), apic), pic) in pins.zip(apic).zip(pic) {
        let pirq = (device + pin) % 8;
        let entry = |source, index| {
            Object::Package([Object::Integer(device << 16 | 0xffff), Object::Integer(pin), source, Object::Integer(index)].into())
        };
        assert_eq!(apic, entry(Object::Integer(0), 16 + pirq), "device {device}, pin {pin}");
        let link = std::format!("_SB_LNK{}", char::from(b'A' + pirq as u8));
        assert_eq!(pic, entry(Object::Name(link), 0), "device {device}, pin {pin}");
    }
    // The registers: 60H to 63H and 68H to 6BH in the configuration space of device 31.
    let has = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|w| w == bytes);
    assert!(has(b"\x5b\x80PIRR\x02\x0a\x60\x0a\x0c"), "the region");
    assert!(has(b"PIRR\x01PRQA\x08PRQB\x08PRQC\x08PRQD\x08\x00\x20PRQE\x08PRQF\x08PRQG\x08PRQH\x08"), "its fields");
    // Each link is read and set by its own register.
    for pirq in b'A'..=b'H' {
        let name = [b"LNK", &[pirq][..]].concat();
        let start = dsdt.windows(6).position(|w| w[2..] == name && w[..2] != *b"B_").expect("no such link");
        let end = dsdt.len().min(start + 250);
        let registers: Vec<u8> = dsdt[start..end].windows(4).filter(|w| w.starts_with(b"PRQ")).map(|w| w[3]).take(5).collect();
        assert_eq!(registers, [pirq; 5], "LNK{}", char::from(pirq));
    }
}

/// Writes the tables to files for a disassembler: `BULKHEAD_ACPI_DUMP=DIR cargo test`.
#[test]
fn dump_for_a_disassembler() {
    let Ok(dir) = std::env::var("BULKHEAD_ACPI_DUMP") else { return };
    let (memory, _) = memory(2);
    for (signature, bytes) in find_tables(&memory) {
        let name = std::format!("{dir}/{}.aml", core::str::from_utf8(&signature).unwrap().to_lowercase());
        std::fs::write(name, bytes).unwrap();
    }
}
