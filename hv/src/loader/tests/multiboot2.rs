use super::*;

const LOAD: u32 = 0x10_0000;

/// A header tag: type, flags, contents.
fn tag(kind: u16, flags: u16, fields: &[u32]) -> Vec<u8> {
    let mut bytes = [kind.to_le_bytes(), flags.to_le_bytes()].concat();
    bytes.extend((8 + 4 * fields.len() as u32).to_le_bytes());
    bytes.extend(fields.iter().flat_map(|v| v.to_le_bytes()));
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn header(tags: &[u8]) -> Vec<u8> {
    let tags = [tags, &tag(0, 0, &[])].concat();
    let fields = [0xe852_50d6, 0, 16 + tags.len() as u32];
    let checksum = fields.iter().fold(0u32, |sum, v| sum.wrapping_sub(*v));
    fields.iter().chain([&checksum]).flat_map(|v| v.to_le_bytes()).chain(tags).collect()
}

pub(super) fn relocatable(min: u32, max: u32, align: u32, preference: u32) -> Vec<u8> {
    tag(10, 0, &[min, max, align, preference])
}

/// The ELF file of the other tests with a multiboot2 header in place of its multiboot1 header.
pub(super) fn elf_with_tags(wide: bool, tags: &[u8]) -> Vec<u8> {
    let mut image = elf(wide);
    image[0x1000..0x1010].fill(0);
    put(&mut image, 0x1008, &header(tags));
    image
}

/// A flat image with its header at 0x10, which these tags say the addresses of.
fn flat_with_tags(tags: &[u8]) -> Vec<u8> {
    let mut image = vec![0xcc; 0x200];
    put(&mut image, 0x10, &header(tags));
    image
}

/// What the kernel finds: each tag's type and contents.
fn information(memory: &FakeMemory, state: &VcpuState) -> Vec<(u32, Vec<u8>)> {
    let base = state.gprs[Gpr::Rbx];
    assert_eq!((state.gprs.get32(Gpr::Rax), base % 8), (0x36d7_6289, 0));
    let total = memory.read_u32(Gpa(base)).unwrap();
    let mut tags = Vec::new();
    let mut at = base + 8;
    loop {
        let (kind, size) = (memory.read_u32(Gpa(at)).unwrap(), memory.read_u32(Gpa(at + 4)).unwrap());
        assert!(size >= 8 && at + u64::from(size) <= base + u64::from(total));
        if kind == 0 {
            assert_eq!((size, at + 8), (8, base + u64::from(total)));
            return tags;
        }
        tags.push((kind, bytes(memory, at + 8, size as usize - 8)));
        at += u64::from(size.next_multiple_of(8));
    }
}

fn find(tags: &[(u32, Vec<u8>)], kind: u32) -> &[u8] {
    let mut found = tags.iter().filter(|(k, _)| *k == kind);
    let (Some((_, bytes)), None) = (found.next(), found.next()) else { panic!("not one tag {kind}: {tags:?}") };
    bytes
}

#[test]
fn elf_kernels_get_all_that_there_is() {
    for wide in [false, true] {
        let memory = guest(8);
        let rsdp: Vec<u8> = (0..36).collect();
        memory.write(RSDP, &rsdp).unwrap();
        // Everything that is known may be required.
        let all: Vec<u32> = (1..=21).collect();
        let tags = [tag(1, 0, &all), tag(4, 0, &[2]), tag(5, 0, &[80, 25, 0]), tag(6, 0, &[]), tag(7, 0, &[])].concat();
        let image = elf_with_tags(wide, &tags);
        assert_eq!(detect(&image, Format::Auto), Ok(Kind::Multiboot2 { header: 0x1008 }));
        let state = load(&memory, &LoadRequest { cmdline: "a b=c", ..with_ramdisk(&image, b"module") }).unwrap();
        check_flat(&state, 0x10_0040);
        assert_eq!(bytes(&memory, 0x10_0000, 0x100), &image[0x1000..]);
        let info = information(&memory, &state);
        assert_eq!((find(&info, 1), find(&info, 2)), (&b"a b=c\0"[..], &b"Bulkhead\0"[..]));
        assert_eq!((find(&info, 4).u32_at(0), find(&info, 4).u32_at(4)), (Some(640), Some(7 * 1024)));
        let module = find(&info, 3);
        assert_eq!((module.u32_at(0), module.u32_at(4), &module[8..]), (Some(0x20_1000), Some(0x20_1006), &b"initrd.img\0"[..]));
        assert_eq!(bytes(&memory, 0x20_1000, 6), b"module");
        let map = find(&info, 6);
        assert_eq!((map.u32_at(0), map.u32_at(4)), (Some(24), Some(0)));
        let entries: Vec<_> =
            map[8..].chunks(24).map(|e| (e.u64_at(0).unwrap(), e.u64_at(8).unwrap(), e.u64_at(16).unwrap())).collect();
        let expected: Vec<_> = e820::map(&memory).iter().map(|e| (e.gpa.0, e.size, e.kind as u64)).collect();
        assert_eq!(entries, expected);
        assert_eq!((find(&info, 14), find(&info, 15)), (&rsdp[..20], &rsdp[..]));
        // It may not be moved, and has no sections.
        assert!(!info.iter().any(|(kind, _)| [9, 21].contains(kind)));
    }
}

#[test]
fn symbols_are_loaded_behind_the_kernel() {
    for wide in [false, true] {
        let (entry, address, shoff) = if wide { (64, 16, (40, 58)) } else { (40, 12, (32, 46)) };
        let mut image = elf_with_tags(wide, &[]);
        let at = image.len();
        image.resize(at + 4 * entry, 0);
        put(&mut image, shoff.0, &(at as u32).to_le_bytes());
        for (n, value) in [entry as u16, 4, 3].into_iter().enumerate() {
            put(&mut image, shoff.1 + 2 * n, &value.to_le_bytes());
        }
        // None; code in memory already; symbols; a string table that the file does not have whole.
        for (n, [kind, addr, offset, size]) in
            [[0; 4], [1, LOAD, 0x1000, 0x100], [2, 0, 0x1000, 0x20], [3, 0, 0x2000, 9]].into_iter().enumerate()
        {
            let word = if wide { 8 } else { 4 };
            let header = &mut image[at + n * entry..];
            put(header, 4, &kind.to_le_bytes());
            for (m, value) in [addr, offset, size].into_iter().enumerate() {
                put(header, address + m * word, &value.to_le_bytes());
            }
        }
        let memory = guest(8);
        let state = load(&memory, &request(&image, "")).unwrap();
        let info = information(&memory, &state);
        let sections = find(&info, 9);
        let head: Vec<_> = (0..3).map(|n| sections.u32_at(4 * n).unwrap()).collect();
        assert_eq!((head, sections.len()), (vec![4, entry as u32, 3], 12 + 4 * entry));
        let addresses: Vec<_> = (0..4).map(|n| sections.u32_at(12 + n * entry + address).unwrap()).collect();
        assert_eq!(addresses, [0, LOAD, 0x20_1000, 0]);
        assert_eq!(bytes(&memory, 0x20_1000, 0x20), &image[0x1000..0x1020]);
    }
}

#[test]
fn flat_images_and_entry_points_by_tag() {
    let memory = guest(8);
    memory.fill(Gpa(LOAD.into()), 0x2000, 0xee).unwrap();
    let entry = tag(3, 0, &[LOAD + 0x40]);
    let tags = |fields: &[u32]| flat_with_tags(&[tag(2, 0, fields), entry.clone()].concat());
    let image = tags(&[LOAD + 0x10, LOAD, LOAD + 0x200, LOAD + 0x1000]);
    let state = load(&memory, &request(&image, "")).unwrap();
    check_flat(&state, 0x10_0040);
    assert_eq!((bytes(&memory, 0x10_0000, 0x200), bytes(&memory, 0x10_0200, 0xe00)), (image, vec![0; 0xe00]));
    // From the file's start to its end.
    let image = tags(&[LOAD + 0x10, u32::MAX, 0, 0]);
    assert_eq!(load(&guest(8), &request(&image, "")).map(|s| s.rip), Ok(0x10_0040));
    let image = elf_with_tags(true, &entry);
    assert_eq!(load(&guest(8), &request(&image, "")).map(|s| s.rip), Ok(0x10_0040));
}

#[test]
fn a_relocatable_kernel_goes_where_it_wants_to_be() {
    let load_at = |mib: u64, tags: &[u8]| {
        let memory = guest(mib);
        let image = elf_with_tags(false, tags);
        let state = load(&memory, &request(&image, ""))?;
        let base = find(&information(&memory, &state), 21).u32_at(0).unwrap();
        assert_eq!(state.rip, u64::from(base) + 0x40);
        assert_eq!(bytes(&memory, base.into(), 0x100), &image[0x1000..]);
        Ok::<_, LoadError>(base)
    };
    // It has 0x101000 bytes, linked for 1 MiB.
    for (tags, place) in [
        (relocatable(0, u32::MAX, 0x1000, 0), 0x10_0000),
        (relocatable(0, u32::MAX, 0x20_0000, 0), 0x20_0000),
        (relocatable(0x18_0000, u32::MAX, 0x1000, 0), 0x18_0000),
        (relocatable(0x30_0001, 0x6f_ffff, 0x1000, 1), 0x30_1000),
        (relocatable(0, u32::MAX, 0x1000, 2), 0x6f_f000),
        (relocatable(0, 0x4f_ffff, 0x10_0000, 2), 0x30_0000),
        (relocatable(0, 0x4f_ffff, 0, 2), 0x3f_f000),
    ] {
        assert_eq!(load_at(8, &tags), Ok(place));
    }
    let error = load_at(8, &relocatable(0x70_0000, u32::MAX, 1, 0)).unwrap_err();
    assert_eq!(error.to_string(), "the kernel does not fit: no free 1028 KiB of RAM from 0x700000 to 0xffffffff");
}

#[test]
fn what_is_required_and_unknown_is_refused() {
    let flat = |fields: &[u32]| flat_with_tags(&[tag(2, 0, fields), tag(3, 0, &[LOAD])].concat());
    let good = elf_with_tags(false, &[]);
    let change = |offset: usize, value: u32| {
        let mut image = good.clone();
        let old = image[..].u32_at(0x1008 + offset).unwrap();
        let checksum = image[..].u32_at(0x1014).unwrap().wrapping_add(old).wrapping_sub(value);
        put(&mut image, 0x1014, &checksum.to_le_bytes());
        put(&mut image, 0x1008 + offset, &value.to_le_bytes());
        image
    };
    let mut huge_tag = elf_with_tags(false, &tag(6, 0, &[]));
    put(&mut huge_tag, 0x101c, &0x1000u32.to_le_bytes());
    let mut damaged = good.clone();
    damaged[0x1014] ^= 1;
    for (image, text) in [
        (elf_with_tags(false, &tag(11, 0, &[1])), "its multiboot2 header has a required tag of unknown type 11"),
        (elf_with_tags(false, &tag(1, 0, &[1, 22])), "its multiboot2 header requires information of unknown type 22"),
        (
            elf_with_tags(false, &tag(4, 0, &[1])),
            "its multiboot2 header requires a text or graphics console (console_flags 0x1); there are serial ports only",
        ),
        (change(4, 4), "its multiboot2 header is for another processor (architecture 4)"),
        (change(8, 8), "damaged kernel image: header_length is 0x8"),
        (change(8, 0x1000), "truncated kernel image: the multiboot2 header needs 8200 bytes of file, it has 4352"),
        (huge_tag, "damaged kernel image: size of a header tag is 0x1000"),
        (elf_with_tags(false, &tag(3, 0, &[])), "damaged kernel image: size of a header tag is 0x8"),
        (elf_with_tags(false, &tag(3, 0, &[0x123])), "damaged kernel image: entry_addr is 0x123"),
        (elf_with_tags(false, &relocatable(0, 5, 3, 0)), "damaged kernel image: align is 0x3"),
        (flat(&[LOAD + 0x10, LOAD + 4, 0, 0]), "damaged kernel image: entry_addr is 0x100000"),
        (flat(&[8, u32::MAX, 0, 0]), "damaged kernel image: header_addr is 0x8"),
        (flat(&[LOAD, LOAD, LOAD - 1, 0]), "damaged kernel image: load_end_addr is 0xfffff"),
        (flat_with_tags(&tag(2, 0, &[LOAD, LOAD, 0, 0])), "damaged kernel image: entry_addr is 0x0"),
        (flat_with_tags(&[]), "damaged kernel image: load_addr is 0x0"),
        (damaged, "not a kernel: the multiboot2 header at file offset 0x1008 has a wrong checksum"),
    ] {
        assert_eq!(load(&guest(4), &request(&image, "")).map_err(|e| e.to_string()), Err(text.into()));
    }
    // What is optional is no reason to refuse it.
    for tags in [tag(11, 1, &[1]), tag(1, 1, &[22]), tag(4, 1, &[1]), tag(0x7fff, 1, &[])] {
        assert!(load(&guest(4), &request(&elf_with_tags(false, &tags), "")).is_ok());
    }
}

proptest! {
    #[test]
    fn tags_are_never_a_panic(
        wide in any::<bool>(),
        is_elf in any::<bool>(),
        tags in proptest::collection::vec((0..12u16, 0..2u16, proptest::collection::vec(prop_oneof![
            Just(0u32), Just(u32::MAX), Just(LOAD), 0..64u32, LOAD - 16..LOAD + 0x2000, any::<u32>()
        ], 0..5)), 0..5),
    ) {
        let tags: Vec<u8> = tags.iter().flat_map(|(kind, flags, fields)| tag(*kind, *flags, fields)).collect();
        let image = if is_elf { elf_with_tags(wide, &tags) } else { flat_with_tags(&tags) };
        let _ = load(&guest(4), &request(&image, "x"));
    }
}
