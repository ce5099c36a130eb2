use super::*;
use crate::e820::E820Type;

/// The ELF file of the other tests, with a note in place of its multiboot1 header: `entry` as wide as the kernel.
fn elf_with_note(wide: bool, entry: u64) -> Vec<u8> {
    let mut image = elf(wide);
    let word = if wide { 8 } else { 4 };
    // Another note first, of an odd size.
    let mut notes: Vec<u8> = [6u32, 3, 7].iter().flat_map(|v| v.to_le_bytes()).collect();
    notes.extend(b"Linux\0..abc.");
    notes.extend([4u32, word, 18].iter().flat_map(|v| v.to_le_bytes()));
    notes.extend(b"Xen\0");
    notes.extend(&entry.to_le_bytes()[..word as usize]);
    put(&mut image, 0x1000, &notes);
    // A third program header.
    let (ehdr, phdr, count) = if wide { (64, 56, 56) } else { (52, 32, 44) };
    put(&mut image, count, &3u16.to_le_bytes());
    let header = &mut image[ehdr + 2 * phdr..][..phdr];
    header.fill(0);
    put(header, 0, &4u32.to_le_bytes());
    put(header, if wide { 8 } else { 4 }, &0x1000u32.to_le_bytes());
    put(header, if wide { 32 } else { 16 }, &(notes.len() as u32).to_le_bytes());
    image
}

/// As an uncompressed Linux is: `e_entry` is a physical address, which its segments' virtual ones do not have.
pub(super) fn vmlinux() -> Vec<u8> {
    let mut image = elf_with_note(true, 0x10_0040);
    put(&mut image, 24, &0x10_0000u64.to_le_bytes());
    image
}

/// What the kernel finds.
struct StartInfo {
    modules: Vec<[u64; 4]>,
    cmdline: u64,
    rsdp: u64,
    map: Vec<(u64, u64, u32)>,
}

fn start_info(memory: &FakeMemory, state: &VcpuState) -> StartInfo {
    let base = state.gprs[Gpr::Rbx];
    let word = |offset| memory.read_u32(Gpa(base + offset)).unwrap();
    let long = |at| memory.read_u64(Gpa(at)).unwrap();
    // Magic, version, flags; reserved.
    assert_eq!([word(0), word(4), word(8), word(52)], [0x336e_c578, 1, 0, 0]);
    let (modules, map) = (long(base + 16), long(base + 40));
    StartInfo {
        modules: (0..u64::from(word(12))).map(|n| [0, 8, 16, 24].map(|field| long(modules + 32 * n + field))).collect(),
        cmdline: long(base + 24),
        rsdp: long(base + 32),
        map: (0..u64::from(word(48)))
            .map(|n| map + 24 * n)
            .map(|at| (long(at), long(at + 8), memory.read_u32(Gpa(at + 16)).unwrap()))
            .collect(),
    }
}

/// Table of pvh.pandoc, "x86 HVM direct boot ABI".
fn check_pvh(state: &VcpuState, entry: u64) {
    check_flat(state, entry);
    assert_eq!(state.cr0, (Cr0::PE | Cr0::ET).bits());
    assert_eq!((state.tr.base, state.tr.limit, state.tr.attributes.0), (0, 0x67, 0x8b));
    assert_eq!(state.rflags & 0x2_0300, 0);
}

#[test]
fn elf_kernels_with_the_note() {
    for wide in [false, true] {
        let memory = guest(8);
        memory.fill(Gpa(0x10_0000), 0x20_0000, 0xee).unwrap();
        let image = elf_with_note(wide, 0x10_0040);
        assert_eq!(detect(&image, Format::Auto), Ok(Kind::Pvh { entry: 0x10_0040 }));
        let state = load(&memory, &LoadRequest { cmdline: "a b=c", ..with_ramdisk(&image, &[7; 0x1234]) }).unwrap();
        check_pvh(&state, 0x10_0040);
        assert_eq!(
            (bytes(&memory, 0x10_0000, 0x100), bytes(&memory, 0x10_0100, 0x80)),
            (image[0x1000..].to_vec(), vec![0; 0x80])
        );
        let info = start_info(&memory, &state);
        assert_eq!((string(&memory, info.cmdline), info.rsdp), ("a b=c".into(), RSDP.0));
        // As high as it goes.
        let [[start, size, name, reserved]] = info.modules[..] else { panic!("{:?}", info.modules) };
        assert_eq!((start, size, string(&memory, name), reserved), (0x7f_e000, 0x1234, "initrd.img".into(), 0));
        assert_eq!(bytes(&memory, start, 0x1234), [7; 0x1234]);
        let expected: Vec<_> = e820::map(&memory).iter().map(|e| (e.gpa.0, e.size, e.kind as u32)).collect();
        assert_eq!(info.map, expected);
        assert!(info.map.iter().any(|e| e.2 == E820Type::Reserved as u32));
    }
}

#[test]
fn an_uncompressed_linux() {
    let memory = guest(8);
    let state = load(&memory, &request(&vmlinux(), "")).unwrap();
    check_pvh(&state, 0x10_0040);
    let info = start_info(&memory, &state);
    assert_eq!((info.modules.len(), string(&memory, info.cmdline)), (0, String::new()));
}

#[test]
fn notes_that_are_none() {
    let elsewhere = elf_with_note(true, 0x30_0000);
    let error = load(&guest(4), &request(&elsewhere, "")).unwrap_err();
    assert_eq!(error.to_string(), "damaged kernel image: XEN_ELFNOTE_PHYS32_ENTRY is 0x300000");
    let good = elf_with_note(false, 0x10_0040);
    let lacks = Err(NotAKernel::Lacks(Format::Pvh));
    assert_eq!(detect(&good, Format::Pvh), Ok(Kind::Pvh { entry: 0x10_0040 }));
    // Another owner, another type, an entry point of an odd size, a note that ends beyond its segment.
    for (offset, value) in [(0x1024, b'x'), (0x1020, 17), (0x101c, 2), (0x101c, 0x40), (0x1018, 0xff), (18, 183)] {
        let mut image = good.clone();
        image[offset] = value;
        assert_eq!(detect(&image, Format::Pvh), lacks, "{offset:#x}");
    }
    assert_eq!(detect(&linux(), Format::Pvh), lacks);
}

#[test]
fn notes_padded_to_eight_bytes() {
    let mut image = elf(true);
    let mut notes: Vec<u8> = [4u32, 5, 18].iter().flat_map(|v| v.to_le_bytes()).collect();
    notes.extend(b"GNU\0hello\0\0\0");
    notes.extend([4u32, 8, 18].iter().flat_map(|v| v.to_le_bytes()));
    notes.extend(b"Xen\0");
    notes.extend(0x10_0000u64.to_le_bytes());
    put(&mut image, 0x1000, &notes);
    put(&mut image, 56, &3u16.to_le_bytes());
    let header = &mut image[64 + 2 * 56..][..56];
    for (offset, value) in [(0, 4), (8, 0x1000), (32, notes.len() as u64), (48, 8)] {
        put(header, offset, &value.to_le_bytes());
    }
    assert_eq!(detect(&image, Format::Auto), Ok(Kind::Pvh { entry: 0x10_0000 }));
}

#[test]
fn flat_images_by_the_configurations_word() {
    let image: Vec<u8> = (0..=255).cycle().take(0x1234).collect();
    let flat = |address, entry| LoadRequest { format: Format::Flat { address, entry }, ..with_ramdisk(&image, b"module") };
    let memory = guest(8);
    let state = load(&memory, &LoadRequest { cmdline: "x", ..flat(0x20_0000, 0x20_0010) }).unwrap();
    check_pvh(&state, 0x20_0010);
    assert_eq!(bytes(&memory, 0x20_0000, 0x1234), image);
    let info = start_info(&memory, &state);
    assert_eq!((info.modules[0][0], string(&memory, info.cmdline)), (0x7f_f000, "x".into()));
    // In conventional memory: what it is told is elsewhere.
    let state = load(&guest(8), &flat(0x1000, 0x1000)).unwrap();
    assert!(state.gprs[Gpr::Rbx] >= 0x2234);
    for (request, text, key) in [
        (
            flat(0x20_0000, 0x20_1234),
            "the entry point 0x201234 is outside of the image, which is loaded from 0x200000 to 0x201234",
            Key::Entry,
        ),
        (
            flat(0x7f_f000, 0x7f_f000),
            "the kernel does not fit: it needs 4660 bytes of RAM from 0x7ff000 on, the guest's RAM below 4 GiB ends at 0x800000",
            Key::Kernel,
        ),
        (
            flat(u32::MAX, u32::MAX),
            "the kernel does not fit: it needs 4660 bytes of RAM from 0xffffffff on, the guest's RAM below 4 GiB ends at 0x800000",
            Key::Kernel,
        ),
    ] {
        let error = load(&guest(8), &request).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.key()), (text, key));
    }
    let empty = LoadRequest { kernel: &[], ..flat(0, 0) };
    assert_eq!(load(&guest(8), &empty), Err(LoadError::NotAKernel(NotAKernel::Empty)));
}

#[test]
fn of_several_formats_the_first_counts_unless_the_configuration_says_another() {
    let mut image = elf_with_note(true, 0x10_0040);
    let pvh = Ok(Kind::Pvh { entry: 0x10_0040 });
    let second = multiboot2::elf_with_tags(true, &[]);
    put(&mut image, 0x1040, &second[0x1008..0x1020]);
    assert_eq!(detect(&image, Format::Auto), Ok(Kind::Multiboot2 { header: 0x1040 }));
    put(&mut image, 0x1080, &multiboot_header(3, &[]));
    assert_eq!(detect(&image, Format::Auto), Ok(Kind::Multiboot1 { header: 0x1080 }));
    for (format, kind) in [
        (Format::Multiboot1, Ok(Kind::Multiboot1 { header: 0x1080 })),
        (Format::Multiboot2, Ok(Kind::Multiboot2 { header: 0x1040 })),
        (Format::Pvh, pvh),
        (Format::Linux, Err(NotAKernel::Lacks(Format::Linux))),
        (Format::Flat { address: 1, entry: 2 }, Ok(Kind::Flat { address: 1, entry: 2 })),
    ] {
        assert_eq!(detect(&image, format), kind);
    }
    // A damaged header is no kernel's, if there is another.
    image[0x1088] ^= 1;
    image[0x104c] ^= 1;
    assert_eq!(detect(&image, Format::Auto), pvh);
    assert_eq!(detect(&image, Format::Multiboot2), Err(NotAKernel::MultibootChecksum { version: 2, offset: 0x1040 }));
    let error = LoadError::NotAKernel(NotAKernel::Lacks(Format::Multiboot1));
    assert_eq!(
        (error.to_string().as_str(), error.key()),
        ("not a kernel: it has no multiboot1 header in its first 8 KiB", Key::KernelFormat)
    );
}
