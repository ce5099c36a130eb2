mod multiboot2;
mod pvh;

use super::*;
use crate::{config::Key, e820, testing::FakeMemory};
use proptest::prelude::*;
use std::{format, string::String, string::ToString, vec, vec::Vec};
use x86defs::{Access, Cr0, Efer, Gpr, GuestMemoryExt, Gva, RamRange, paging::PagingContext, paging::translate};

const MIB: u64 = layout::MIB;
const RSDP: Gpa = Gpa(layout::ACPI_AREA.start);

fn guest(mib: u64) -> FakeMemory {
    FakeMemory::new(&layout::ram_ranges(mib * MIB))
}

fn request<'a>(kernel: &'a [u8], cmdline: &'a str) -> LoadRequest<'a> {
    LoadRequest { kernel, format: Format::Auto, ramdisk: None, cmdline, rsdp: RSDP }
}

fn with_ramdisk<'a>(kernel: &'a [u8], data: &'a [u8]) -> LoadRequest<'a> {
    LoadRequest { ramdisk: Some(Ramdisk { name: "initrd.img", data }), ..request(kernel, "") }
}

fn bytes(memory: &FakeMemory, gpa: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    memory.read(Gpa(gpa), &mut buf).unwrap();
    buf
}

fn string(memory: &FakeMemory, gpa: u64) -> String {
    let bytes: Vec<u8> = (gpa..).map(|at| memory.read_u8(Gpa(at)).unwrap()).take_while(|&b| b != 0).collect();
    String::from_utf8(bytes).unwrap()
}

fn put(image: &mut [u8], offset: usize, value: &[u8]) {
    image[offset..offset + value.len()].copy_from_slice(value);
}

/// An image with the fields that a 64-bit Linux has: one setup sector, 64 KiB of kernel that prefers 1 MiB and wants 128 KiB.
fn linux() -> Vec<u8> {
    let mut image = vec![0; 1024 + 0x10000];
    image[1024..].iter_mut().enumerate().for_each(|(i, b)| *b = i as u8 ^ (i >> 8) as u8);
    image[0x1f1] = 1;
    put(&mut image, 0x1f4, &0x1000u32.to_le_bytes());
    put(&mut image, 0x1fe, &0xaa55u16.to_le_bytes());
    put(&mut image, 0x200, &[0xeb, 0x6a]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x020fu16.to_le_bytes());
    put(&mut image, 0x20e, &0x0e0u16.to_le_bytes());
    put(&mut image, 0x2e0, b"6.1.0-test\0");
    image[0x211] = 1;
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut image, 0x230, &0x20_0000u32.to_le_bytes());
    image[0x234] = 1;
    put(&mut image, 0x236, &3u16.to_le_bytes());
    put(&mut image, 0x238, &2047u32.to_le_bytes());
    put(&mut image, 0x258, &0x20_0000u64.to_le_bytes());
    put(&mut image, 0x260, &0x2_0000u32.to_le_bytes());
    image
}

/// A multiboot1 header with these flags and, behind its checksum, these fields.
fn multiboot_header(flags: u32, fields: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    [magic, flags, checksum].iter().chain(fields).flat_map(|v| v.to_le_bytes()).collect()
}

/// A flat image with its header at 0x10: loaded to 0x10_0000 from file offset 0, 0x200 bytes, bss up to 0x1000.
fn flat() -> Vec<u8> {
    let mut image = vec![0xcc; 0x200];
    put(&mut image, 0x10, &multiboot_header(1 << 16 | 7, &[0x10_0010, 0x10_0000, 0x10_0200, 0x10_1000, 0x10_0040]));
    image
}

/// An ELF file with a multiboot1 header and two segments: 0x100 bytes of file at 0x10_0000 (linked for 0xc010_0000), and pure bss.
fn elf(wide: bool) -> Vec<u8> {
    let mut image = vec![0x90; 0x1100];
    let (ehdr, phdr) = if wide { (64, 56) } else { (52, 32) };
    image[..ehdr + 2 * phdr].fill(0);
    put(&mut image, 0, &[0x7f, b'E', b'L', b'F', if wide { 2 } else { 1 }, 1, 1]);
    put(&mut image, 16, &2u16.to_le_bytes());
    put(&mut image, 18, &(if wide { 62u16 } else { 3 }).to_le_bytes());
    let word = |image: &mut [u8], offset: (usize, usize), value: u64| {
        if wide {
            put(image, offset.1, &value.to_le_bytes());
        } else {
            put(image, offset.0, &(value as u32).to_le_bytes());
        }
    };
    word(&mut image, (24, 24), 0xc010_0040);
    word(&mut image, (28, 32), ehdr as u64);
    let sizes = if wide { 54 } else { 42 };
    put(&mut image, sizes, &(phdr as u16).to_le_bytes());
    put(&mut image, sizes + 2, &2u16.to_le_bytes());
    for (n, [offset, vaddr, paddr, filesz, memsz]) in
        [[0x1000, 0xc010_0000, 0x10_0000, 0x100, 0x180], [0, 0xc020_0000, 0x20_0000, 0, 0x1000]].into_iter().enumerate()
    {
        let header = &mut image[ehdr + n * phdr..];
        put(header, 0, &1u32.to_le_bytes());
        word(header, (4, 8), offset);
        word(header, (8, 16), vaddr);
        word(header, (12, 24), paddr);
        word(header, (16, 32), filesz);
        word(header, (20, 40), memsz);
    }
    put(&mut image, 0x1000, &multiboot_header(3, &[]));
    image
}

#[test]
fn linux_is_entered_by_the_64_bit_protocol() {
    let memory = guest(64);
    let image = linux();
    let initrd = vec![0x5a; 5000];
    let cmdline = "console=ttyS0 root=/dev/vda";
    let state =
        load(&memory, &LoadRequest { ramdisk: Some(Ramdisk { name: "i", data: &initrd }), ..request(&image, cmdline) }).unwrap();

    assert_eq!(state.rip, 0x20_0200);
    assert_eq!(bytes(&memory, 0x20_0000, 0x10000), &image[1024..]);
    assert_eq!((state.cs.selector, state.cs.attributes.long()), (0x10, true));
    for segment in [state.ds, state.es, state.ss] {
        assert_eq!((segment.selector, segment.base, segment.limit), (0x18, 0, u32::MAX));
    }
    assert_eq!(state.rflags & 0x200, 0);
    assert_eq!(state.efer & (Efer::LME | Efer::LMA).bits(), (Efer::LME | Efer::LMA).bits());
    // The descriptors behind the selectors say the same.
    assert_eq!(memory.read_u64(Gpa(state.gdtr.base + 0x10)).unwrap(), 0x00af_9b00_0000_ffff);
    assert_eq!(memory.read_u64(Gpa(state.gdtr.base + 0x18)).unwrap(), 0x00cf_9300_0000_ffff);
    assert_eq!(state.gdtr.limit, 0x1f);

    let params = state.gprs[Gpr::Rsi];
    let zero_page = bytes(&memory, params, 4096);
    let u32_at = |offset| zero_page[..].u32_at(offset).unwrap();
    assert_eq!(zero_page[0x202..0x206], *b"HdrS");
    assert_eq!((zero_page[0x210], u32_at(0x214)), (0xff, 0x20_0000));
    assert_eq!(string(&memory, u32_at(0x228).into()), cmdline);
    assert_eq!(zero_page[..].u64_at(0x70), Some(RSDP.0));
    // The initrd lies as high as it can, on a page.
    assert_eq!((u32_at(0x218), u32_at(0x21c)), (0x3ff_e000, 5000));
    assert_eq!(bytes(&memory, 0x3ff_e000, 5000), initrd);

    let map = e820::map(&memory);
    assert_eq!(usize::from(zero_page[0x1e8]), map.len());
    for (n, entry) in map.iter().enumerate() {
        let at = 0x2d0 + n * 20;
        assert_eq!(zero_page[..].u64_at(at), Some(entry.gpa.0));
        assert_eq!(zero_page[..].u64_at(at + 8), Some(entry.size));
        assert_eq!(u32_at(at + 16), entry.kind as u32);
    }
    // What lies outside of the copied header and the known fields is zero: the kernel looks at the sentinel.
    assert_eq!(zero_page[0x1ef], 0);

    // All of the first 4 GiB is mapped to itself, and nothing above.
    let ctx = PagingContext { cr0: state.cr0, cr3: state.cr3, cr4: state.cr4, efer: state.efer, rflags: state.rflags, cpl: 0 };
    for gva in [0, 0x2000, 0x20_0200, 0x3fff_f000, 0x8000_1234, 0xffff_ffff] {
        assert_eq!(translate(&memory, &ctx, Gva(gva), Access::Write, false), Ok(Gpa(gva)));
    }
    assert!(translate(&memory, &ctx, Gva(1 << 32), Access::Read, false).is_err());
}

#[test]
fn linux_without_a_64_bit_entry_is_entered_by_the_32_bit_protocol() {
    let mut image = linux();
    put(&mut image, 0x236, &4u16.to_le_bytes());
    let mut old = linux();
    // Before protocol 2.12 the field means nothing.
    put(&mut old, 0x206, &0x020au16.to_le_bytes());
    for image in [image, old] {
        let memory = guest(64);
        memory.fill(Gpa(0x3000), 0x6000, 0xee).unwrap();
        let state = load(&memory, &LoadRequest { cmdline: "console=ttyS0", ..with_ramdisk(&image, &[0x5a; 5000]) }).unwrap();
        // code32_start itself, in protected mode without paging.
        assert_eq!((state.rip, bytes(&memory, 0x20_0000, 0x10000)), (0x20_0000, image[1024..].to_vec()));
        assert_eq!((state.cr0, state.cr4, state.efer, state.rflags & 0x2_0300), ((Cr0::PE | Cr0::ET).bits(), 0, 0, 0));
        assert_eq!([state.cs, state.ds, state.es, state.ss].map(|s| s.selector), [0x10, 0x18, 0x18, 0x18]);
        for segment in [state.cs, state.ds, state.es, state.ss] {
            assert_eq!((segment.base, segment.limit, segment.attributes.long()), (0, u32::MAX, false));
        }
        assert_eq!(memory.read_u64(Gpa(state.gdtr.base + 0x10)).unwrap(), 0x00cf_9b00_0000_ffff);
        assert_eq!(memory.read_u64(Gpa(state.gdtr.base + 0x18)).unwrap(), 0x00cf_9300_0000_ffff);
        assert_eq!([Gpr::Rbp, Gpr::Rdi, Gpr::Rbx].map(|r| state.gprs[r]), [0; 3]);
        let params = state.gprs[Gpr::Rsi];
        assert_eq!(string(&memory, memory.read_u32(Gpa(params + 0x228)).unwrap().into()), "console=ttyS0");
        assert_eq!(memory.read_u32(Gpa(params + 0x21c)), Ok(5000));
        // It makes its own page tables.
        assert_eq!(bytes(&memory, 0x3000, 0x6000), [0xee; 0x6000]);
    }
}

#[test]
fn linux_version_is_read() {
    let mut image = linux();
    assert_eq!(linux_version(&image), Some("6.1.0-test"));
    put(&mut image, 0x20e, &0xffffu16.to_le_bytes());
    assert_eq!(linux_version(&image), None);
    assert_eq!(linux_version(b"no kernel"), None);
}

#[test]
fn initrd_stays_below_the_limit_and_moves_above_4g_only_if_it_may() {
    let mut image = linux();
    // Only 4 MiB of RAM may hold it, and it does not fit beside the kernel.
    put(&mut image, 0x22c, &0x3f_ffffu32.to_le_bytes());
    let place = |memory: &FakeMemory, image: &[u8], size: usize| {
        let data = vec![1; size];
        load(memory, &with_ramdisk(image, &data)).map(|state| {
            let low = memory.read_u32(Gpa(state.gprs[Gpr::Rsi] + 0x218)).unwrap();
            let high = memory.read_u32(Gpa(state.gprs[Gpr::Rsi] + 0xc0)).unwrap();
            u64::from(high) << 32 | u64::from(low)
        })
    };
    let mut ranges: Vec<RamRange> = layout::ram_ranges(16 * MIB).to_vec();
    ranges.push(RamRange { gpa: Gpa(4 << 30), size: 4 * MIB });
    let memory = FakeMemory::new(&ranges);
    assert_eq!(place(&memory, &image, 0x1000), Ok(0x3f_f000));
    assert_eq!(place(&memory, &image, 3 << 20), Ok((4 << 30) + MIB));
    put(&mut image, 0x236, &1u16.to_le_bytes());
    assert_eq!(place(&memory, &image, 3 << 20), Err(LoadError::RamdiskDoesNotFit { size: 3 << 20, free: 0x1e_0000 }));
}

#[test]
fn linux_prefers_its_address_and_else_the_next_aligned_one() {
    let mut image = linux();
    put(&mut image, 0x258, &0x1000u64.to_le_bytes());
    assert_eq!(load(&guest(8), &request(&image, "")).unwrap().rip, 0x20_0200);
    put(&mut image, 0x258, &0x30_0000u64.to_le_bytes());
    assert_eq!(load(&guest(8), &request(&image, "")).unwrap().rip, 0x40_0200);
    image[0x234] = 0;
    assert_eq!(load(&guest(8), &request(&image, "")), Err(LoadError::Field { field: "pref_address", value: 0x30_0000 }));
}

type Change = fn(&mut Vec<u8>);

#[test]
fn every_bad_linux_is_refused_by_name() {
    let cases: [(Change, &str); 12] = [
        (|i| put(i, 0x206, &[9, 2]), "a Linux of boot protocol 2.09; 2.10 (Linux 2.6.31) or newer is needed"),
        (|i| i[0x211] = 0, "damaged kernel image: loadflags is 0x0"),
        (|i| i[0x201] = 0x10, "damaged kernel image: jump is 0x212"),
        (|i| i[0x201] = 0xff, "damaged kernel image: jump is 0x301"),
        (|i| put(i, 0x230, &3u32.to_le_bytes()), "damaged kernel image: kernel_alignment is 0x3"),
        (|i| put(i, 0x1f4, &0u32.to_le_bytes()), "damaged kernel image: syssize is 0x0"),
        (|i| put(i, 0x1f4, &[0xff; 4]), "truncated kernel image: the kernel needs 68719477744 bytes of file, it has 66560"),
        (|i| i.truncate(0x10000), "truncated kernel image: the kernel needs 66560 bytes of file, it has 65536"),
        (|i| i.truncate(0x240), "truncated kernel image: the setup header needs 612 bytes of file, it has 576"),
        (
            |i| put(i, 0x260, &0x200_0000u32.to_le_bytes()),
            "the kernel does not fit: it needs 32 MiB of RAM from 0x200000 on, the guest's RAM below 4 GiB ends at 0x800000",
        ),
        (
            |i| put(i, 0x258, &0x1000_0000u64.to_le_bytes()),
            "the kernel does not fit: it needs 128 KiB of RAM from 0x10000000 on, the guest's RAM below 4 GiB ends at 0x800000",
        ),
        (|i| put(i, 0x238, &0u32.to_le_bytes()), "the command line is too long: 1 bytes, this kernel takes 0"),
    ];
    for (change, text) in cases {
        let mut image = linux();
        change(&mut image);
        assert_eq!(load(&guest(8), &request(&image, "x")).unwrap_err().to_string(), text);
    }
    let image = linux();
    let initrd = vec![0; 8 << 20];
    let error = load(&guest(8), &with_ramdisk(&image, &initrd)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the ramdisk does not fit: it has 8192 KiB, the largest free place beside the kernel has 6016 KiB"
    );
    assert_eq!(error.key(), Key::Ramdisk);
}

/// What a multiboot kernel finds: the information structure by its flags.
struct Info<'a> {
    memory: &'a FakeMemory,
    at: u64,
}

impl Info<'_> {
    fn field(&self, offset: u64) -> u32 {
        self.memory.read_u32(Gpa(self.at + offset)).unwrap()
    }
    fn string(&self, offset: u64) -> String {
        string(self.memory, self.field(offset).into())
    }
    /// Base, length, type.
    fn map(&self) -> Vec<(u64, u64, u32)> {
        let (mut at, end) = (u64::from(self.field(48)), u64::from(self.field(48) + self.field(44)));
        let mut map = Vec::new();
        while at < end {
            let size = self.memory.read_u32(Gpa(at)).unwrap();
            let word = |offset| self.memory.read_u64(Gpa(at + offset)).unwrap();
            map.push((word(4), word(12), self.memory.read_u32(Gpa(at + 20)).unwrap()));
            at += u64::from(size) + 4;
        }
        map
    }
}

fn check_entry(state: &VcpuState, entry: u64) {
    assert_eq!(state.gprs.get32(Gpr::Rax), 0x2bad_b002);
    check_flat(state, entry);
}

/// 32-bit protected mode with flat segments, whatever the protocol.
fn check_flat(state: &VcpuState, entry: u64) {
    assert_eq!(state.rip, entry);
    assert_eq!(state.cr0 & (Cr0::PE | Cr0::PG).bits(), Cr0::PE.bits());
    assert_eq!((state.efer, state.cr4, state.rflags & 0x2_0200), (0, 0, 0));
    for segment in [state.cs, state.ds, state.es, state.fs, state.gs, state.ss] {
        assert_eq!((segment.base, segment.limit, segment.attributes.big()), (0, u32::MAX, true));
    }
}

#[test]
fn flat_multiboot_image_with_everything() {
    let memory = guest(16);
    memory.fill(Gpa(0x10_0000), 0x2000, 0xee).unwrap();
    let image = flat();
    let module = vec![7; 0x1234];
    let state = load(&memory, &LoadRequest { cmdline: "a b=c", ..with_ramdisk(&image, &module) }).unwrap();
    check_entry(&state, 0x10_0040);
    assert_eq!(bytes(&memory, 0x10_0000, 0x200), image);
    assert_eq!(bytes(&memory, 0x10_0200, 0xe00), [0; 0xe00]);

    let info = Info { memory: &memory, at: state.gprs[Gpr::Rbx] };
    assert_eq!(info.field(0), 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9);
    assert_eq!((info.field(4), info.field(8)), (640, 15 * 1024));
    assert_eq!((info.string(16), info.string(64)), (String::from("kernel a b=c"), String::from("Bulkhead")));
    assert_eq!(info.field(20), 1);
    let module_at = u64::from(info.field(24));
    let entry = |offset| memory.read_u32(Gpa(module_at + offset)).unwrap();
    assert_eq!((entry(0), entry(4), entry(12)), (0x10_1000, 0x10_2234, 0));
    assert_eq!(bytes(&memory, 0x10_1000, 0x1234), module);
    assert_eq!(string(&memory, entry(8).into()), "initrd.img");
    let expected: Vec<_> = e820::map(&memory).iter().map(|e| (e.gpa.0, e.size, e.kind as u32)).collect();
    assert_eq!(info.map(), expected);
    // A kernel that reloads its segment registers before it has descriptors of its own lives.
    assert_eq!(memory.read_u64(Gpa(state.gdtr.base + u64::from(state.cs.selector))).unwrap(), 0x00cf_9b00_0000_ffff);
    assert_eq!(memory.read_u64(Gpa(state.gdtr.base + u64::from(state.ds.selector))).unwrap(), 0x00cf_9300_0000_ffff);
}

#[test]
fn the_bios_data_area_is_there_unless_the_kernel_is() {
    let memory = guest(4);
    load(&memory, &request(&flat(), "")).unwrap();
    assert_eq!((memory.read_u16(Gpa(0x400)), memory.read_u16(Gpa(0x413))), (Ok(0x3f8), Ok(640)));
    let mut image = vec![0xcc; 0x200];
    put(&mut image, 0, &multiboot_header(1 << 16, &[0x400, 0x400, 0, 0, 0x420]));
    load(&memory, &request(&image, "")).unwrap();
    assert_eq!(bytes(&memory, 0x400, 0x200), image);
}

#[test]
fn elf_kernels_of_both_widths() {
    for wide in [false, true] {
        let memory = guest(8);
        memory.fill(Gpa(0x10_0000), 0x20_0000, 0xee).unwrap();
        let image = elf(wide);
        assert_eq!(detect(&image, Format::Auto), Ok(Kind::Multiboot1 { header: 0x1000 }));
        let state = load(&memory, &with_ramdisk(&image, b"module")).unwrap();
        check_entry(&state, 0x10_0040);
        assert_eq!(bytes(&memory, 0x10_0000, 0x100), &image[0x1000..]);
        assert_eq!(bytes(&memory, 0x10_0100, 0x80), [0; 0x80]);
        assert_eq!(bytes(&memory, 0x20_0000, 0x1000), [0; 0x1000]);
        // Behind the highest segment.
        let info = Info { memory: &memory, at: state.gprs[Gpr::Rbx] };
        assert_eq!(memory.read_u32(Gpa(info.field(24).into())), Ok(0x20_1000));
    }
}

#[test]
fn information_avoids_a_kernel_in_low_memory() {
    let memory = guest(4);
    let mut image = vec![0xcc; 0x200];
    put(&mut image, 0, &multiboot_header(1 << 16, &[0x1000, 0x1000, 0, 0x9_f000, 0x1100]));
    let state = load(&memory, &request(&image, "")).unwrap();
    check_entry(&state, 0x1100);
    assert!(state.gprs[Gpr::Rbx] >= MIB);
    let info = Info { memory: &memory, at: state.gprs[Gpr::Rbx] };
    // Nothing in the flags that is not there.
    assert_eq!((info.field(0) & 1 << 3, info.string(16)), (0, String::from("kernel ")));
}

#[test]
fn every_bad_multiboot_kernel_is_refused_by_name() {
    let change_flat = |offset: usize, value: u32| {
        let mut image = flat();
        put(&mut image, 0x10 + offset, &value.to_le_bytes());
        image
    };
    let change_elf = |offset: usize, value: &[u8]| {
        let mut image = elf(false);
        put(&mut image, offset, value);
        image
    };
    let wide = |offset: usize, value: &[u8]| {
        let mut image = elf(true);
        put(&mut image, offset, value);
        image
    };
    let unknown_flags = {
        let mut image = flat();
        put(&mut image, 0x10, &multiboot_header(0x8001, &[]));
        image
    };
    let nowhere = {
        let mut image = flat();
        put(&mut image, 0x10, &multiboot_header(3, &[]));
        image
    };
    let many = {
        let mut image = elf(false);
        image.resize(0x4000, 0);
        put(&mut image, 28, &0x2000u32.to_le_bytes());
        put(&mut image, 44, &200u16.to_le_bytes());
        let header: Vec<u8> = image[52..84].to_vec();
        for n in 0..200 {
            put(&mut image, 0x2000 + n * 32, &header);
        }
        image
    };
    for (image, text) in [
        (unknown_flags, "its multiboot1 header asks for unknown features (flags 0x8000)"),
        (nowhere, "damaged kernel image: flags is 0x3"),
        (change_flat(12, 0xf_ffff), "damaged kernel image: header_addr is 0xfffff"),
        (change_flat(12, 0x20_0000), "damaged kernel image: header_addr is 0x200000"),
        (change_flat(20, 0xf_0000), "damaged kernel image: load_end_addr is 0xf0000"),
        (change_flat(20, 0x10_1000), "truncated kernel image: the loaded part needs 4096 bytes of file, it has 512"),
        (change_flat(24, 0x10_0100), "damaged kernel image: bss_end_addr is 0x100100"),
        (change_flat(28, 0x10_1000), "damaged kernel image: entry_addr is 0x101000"),
        (
            change_flat(24, 0x8000_0000),
            "the kernel does not fit: it needs 2047 MiB of RAM from 0x100000 on, the guest's RAM below 4 GiB ends at 0x400000",
        ),
        (flat()[..0x24].to_vec(), "truncated kernel image: the multiboot1 header needs 48 bytes of file, it has 36"),
        (change_elf(4, &[3]), "damaged kernel image: e_ident[EI_CLASS] is 0x3"),
        (change_elf(5, &[2]), "damaged kernel image: e_ident[EI_DATA] is 0x2"),
        (change_elf(16, &[1]), "damaged kernel image: e_type is 0x1"),
        (change_elf(18, &[62]), "an ELF file for another machine (e_machine 62)"),
        (wide(18, &[183]), "an ELF file for another machine (e_machine 183)"),
        (change_elf(24, &[0xff; 4]), "damaged kernel image: e_entry is 0xffffffff"),
        (change_elf(42, &[31]), "damaged kernel image: e_phentsize is 0x1f"),
        (
            change_elf(28, &[0xff; 4]),
            "truncated kernel image: the ELF program headers needs 4294967359 bytes of file, it has 4352",
        ),
        (
            wide(32, &[0xff; 8]),
            "truncated kernel image: the ELF program headers needs 18446744073709551615 bytes of file, it has 4352",
        ),
        (change_elf(52 + 4, &[0xff; 4]), "truncated kernel image: an ELF segment needs 4294967551 bytes of file, it has 4352"),
        (change_elf(52 + 16, &[0x81, 1]), "damaged kernel image: p_filesz is 0x181"),
        (wide(64 + 24, &[0, 0, 0, 0, 1]), "damaged kernel image: p_paddr is 0x100000000"),
        (
            change_elf(52 + 12, &0xe_0000u32.to_le_bytes()),
            "the kernel does not fit: it needs 384 bytes of RAM from 0xe0000 on, the guest's RAM below 4 GiB ends at 0x400000",
        ),
        (many, "an ELF file with too many loadable segments"),
    ] {
        assert_eq!(load(&guest(4), &request(&image, "")).map_err(|e| e.to_string()), Err(text.into()));
    }
    let (image, ramdisk) = (flat(), vec![0; 4 << 20]);
    let error = load(&guest(4), &with_ramdisk(&image, &ramdisk)).unwrap_err();
    assert_eq!(error, LoadError::RamdiskDoesNotFit { size: 4 << 20, free: (3 << 20) - 0x1000 });
    let long = "x".repeat(0x10000);
    let error = load(&guest(4), &request(&image, &long)).unwrap_err();
    assert_eq!((error, error.key()), (LoadError::CommandLineTooLong { length: 0x10000, limit: 0xffff }, Key::Cmdline));
}

const NO_KERNEL: &str = "neither a Linux bzImage nor a multiboot or PVH kernel (a flat image? say so in kernel_format)";

#[test]
fn no_kernel_is_told_for_what_it_is() {
    let mut damaged = flat();
    damaged[0x18] ^= 1;
    let mut vmlinux = elf(true);
    vmlinux[0x1000..0x1010].fill(0);
    // A header beyond the first 8 KiB does not count.
    let mut late = vec![0; 0x2000];
    late.extend(multiboot_header(0, &[]));
    for (image, text) in [
        (Vec::new(), "the file is empty"),
        (vec![0x1f, 0x8b, 8, 0], "the file is compressed (gzip); give the kernel unpacked"),
        (b"\xfd7zXZ\0".to_vec(), "the file is compressed (xz); give the kernel unpacked"),
        (b"\x28\xb5\x2f\xfd".to_vec(), "the file is compressed (zstd); give the kernel unpacked"),
        (b"BZh9".to_vec(), "the file is compressed (bzip2); give the kernel unpacked"),
        (vmlinux, "an ELF file with neither a multiboot header nor a PVH entry point"),
        (damaged, "the multiboot1 header at file offset 0x10 has a wrong checksum"),
        (b"MZ\x90\0".to_vec(), "a DOS or EFI program without Linux's boot header"),
        (b"070701000".to_vec(), "a cpio archive (an initramfs? that is what ramdisk is for)"),
        (b"#!/bin/sh\necho no\n".to_vec(), "a text file"),
        (vec![0xff; 100], NO_KERNEL),
        (late, NO_KERNEL),
    ] {
        let error = load(&guest(1), &request(&image, "")).unwrap_err();
        assert_eq!((error.to_string(), error.key()), (format!("not a kernel: {text}"), Key::Kernel));
    }
}

#[test]
fn a_guest_without_the_ram_is_told_so() {
    let memory = FakeMemory::new(&[RamRange { gpa: Gpa(MIB), size: MIB }]);
    let error = load(&memory, &request(&linux(), "")).unwrap_err();
    assert_eq!((error, error.key()), (LoadError::OutsideRam(Gpa(0x400)), Key::Memory));
    let memory = FakeMemory::new(&[RamRange { gpa: Gpa(0), size: 0xa_0000 }]);
    let ram_end = MIB;
    assert_eq!(
        load(&memory, &request(&flat(), "")),
        Err(LoadError::KernelDoesNotFit { start: 0x10_0000, size: 0x1000, ram_end })
    );
}

/// A stock kernel, if the environment names one: `BULKHEAD_TEST_BZIMAGE=/boot/vmlinuz cargo test`.
#[test]
fn a_stock_kernel_loads() {
    let Ok(path) = std::env::var("BULKHEAD_TEST_BZIMAGE") else { return };
    let image = std::fs::read(path).unwrap();
    assert_eq!(detect(&image, Format::Auto), Ok(Kind::Linux));
    assert!(linux_version(&image).is_some_and(|v| v.contains('.')));
    let memory = guest(256);
    let state = load(&memory, &with_ramdisk(&image, &[1; 12345])).unwrap();
    // Code at the entry point, and enough room for the kernel to unpack itself.
    assert_ne!(bytes(&memory, state.rip, 16), [0; 16]);
    assert!(load(&guest(16), &request(&image, "")).is_err());
}

/// Offsets where the test images have their headers.
fn place() -> impl Strategy<Value = usize> {
    prop_oneof![0..0x290usize, 0x1000..0x10a0usize]
}

proptest! {
    #[test]
    fn garbage_is_never_a_panic(image in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = load(&guest(1), &request(&image, ""));
    }

    /// Any change to what the loaders read of a good image: an error or a load, never a panic or a write outside of RAM.
    #[test]
    fn mutated_images_are_never_a_panic(
        which in 0..6usize,
        changes in proptest::collection::vec((place(), any::<u8>()), 1..6),
        wild in proptest::option::of((place(), prop_oneof![Just(u64::MAX), Just(1u64 << 32), Just(0x8000_0000), any::<u64>()])),
        cut in proptest::option::of(0..0x1200usize),
        ramdisk in proptest::option::of(0..0x30_0000usize),
    ) {
        let mut image = match which {
            0 => linux(),
            1 => flat(),
            2 => elf(false),
            3 => elf(true),
            4 => multiboot2::elf_with_tags(true, &multiboot2::relocatable(0, u32::MAX, 0x1000, 0)),
            _ => pvh::vmlinux(),
        };
        for (offset, value) in changes {
            if let Some(byte) = image.get_mut(offset) {
                *byte = value;
            }
        }
        if let Some((offset, value)) = wild
            && let Some(field) = image.get_mut(offset..offset + 8)
        {
            field.copy_from_slice(&value.to_le_bytes());
        }
        if let Some(cut) = cut {
            image.truncate(cut);
        }
        let data = vec![0; ramdisk.unwrap_or(0)];
        let ramdisk = ramdisk.map(|_| Ramdisk { name: "r", data: &data });
        if let Err(error) = load(&guest(4), &LoadRequest { ramdisk, ..request(&image, "a b") }) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    /// The multiboot1 header's fields at their edges.
    #[test]
    fn multiboot_fields_are_never_a_panic(flags in any::<u32>(), fields in proptest::array::uniform5(prop_oneof![
        Just(0u32), Just(u32::MAX), Just(0x10_0000), 0x0f_f000..0x10_3000u32, any::<u32>()
    ])) {
        for flags in [flags, flags & 7 | 1 << 16] {
            let mut image = vec![0; 0x400];
            put(&mut image, 0x20, &multiboot_header(flags, &fields));
            let _ = load(&guest(2), &request(&image, ""));
        }
    }

    #[test]
    fn program_headers_are_never_a_panic(wide in any::<bool>(), header in proptest::collection::vec(prop_oneof![
        Just(0u64), Just(u64::MAX), Just(0x1000), 0x10_0000..0x50_0000u64, any::<u64>()
    ], 7)) {
        let mut image = elf(wide);
        let raw: Vec<u8> = if wide {
            header.iter().flat_map(|v| v.to_le_bytes()).collect()
        } else {
            header.iter().flat_map(|v| (*v as u32).to_le_bytes()).collect()
        };
        let at = if wide { 64 } else { 52 };
        put(&mut image, at + 8, &raw[..if wide { 48 } else { 24 }]);
        let _ = load(&guest(4), &request(&image, ""));
    }
}
