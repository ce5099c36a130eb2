use super::super::frames::FrameMap;
use super::*;
use proptest::prelude::{any, prop_oneof, proptest};
use std::{boxed::Box, sync::Arc, sync::Mutex, vec, vec::Vec};
use x86defs::GuestMemoryExt;

/// Host memory of its own: an arena with the real frame allocator over it. Physical addresses count from `BASE`.
#[derive(Clone)]
struct Arena(Arc<ArenaInner>);

struct ArenaInner {
    bytes: *mut u8,
    map: Mutex<FrameMap<'static>>,
    frames: u64,
}

// SAFETY: the arena's memory lives as long as the tests and is accessed only through `GuestRam`'s checked accesses.
unsafe impl Send for ArenaInner {}
// SAFETY: as above.
unsafe impl Sync for ArenaInner {}

impl Arena {
    /// `frames` frames, filled with 0xee, of which all but `holes` are free.
    fn new(frames: u64, holes: &[u64]) -> Self {
        let words = Box::leak(vec![0; frames.div_ceil(64) as usize].into_boxed_slice());
        let mut map = FrameMap::new(words);
        map.release(0, frames);
        for &hole in holes {
            map.reserve(hole, 1);
        }
        let bytes = vec![0xeeee_eeee_eeee_eeee_u64; (frames * 512) as usize].leak().as_mut_ptr().cast();
        Self(Arc::new(ArenaInner { bytes, map: Mutex::new(map), frames }))
    }
    fn free(&self) -> u64 {
        self.0.map.lock().unwrap().free_frames()
    }
}

impl TableMemory for Arena {
    fn allocate(&mut self) -> Option<Hpa> {
        let frame = self.allocate_block(1, 1)?;
        // SAFETY: a frame of the arena.
        unsafe { self.to_virt(frame).write_bytes(0, 4096) };
        Some(frame)
    }
    fn free(&mut self, table: Hpa) {
        self.free_block(table, 1);
    }
    fn read(&self, table: Hpa, index: usize) -> u64 {
        // SAFETY: a frame of the arena.
        unsafe { self.to_virt(table).cast::<u64>().add(index).read() }
    }
    fn write(&mut self, table: Hpa, index: usize, entry: u64) {
        // SAFETY: a frame of the arena.
        unsafe { self.to_virt(table).cast::<u64>().add(index).write(entry) }
    }
}

impl Backing for Arena {
    fn allocate_block(&self, pages: u64, align_pages: u64) -> Option<Hpa> {
        self.0.map.lock().unwrap().allocate(pages, align_pages).map(|n| Hpa(n * PAGE_SIZE))
    }
    fn free_block(&self, start: Hpa, pages: u64) {
        assert_eq!(self.0.map.lock().unwrap().release(start.0 / PAGE_SIZE, pages), 0, "double free");
    }
    fn free_bytes(&self) -> u64 {
        self.free() * PAGE_SIZE
    }
    fn to_virt(&self, address: Hpa) -> *mut u8 {
        assert!(address.0 < self.0.frames * PAGE_SIZE, "{address} is outside of the arena");
        // SAFETY: within the arena.
        unsafe { self.0.bytes.add(address.0 as usize) }
    }
}

const fn range(gpa: u64, size: u64) -> RamRange {
    RamRange { gpa: Gpa(gpa), size }
}

/// A small PC: 640 KiB, a hole, up to 6 MiB, and 2 MiB at 4 GiB.
const PC: [RamRange; 3] = [range(0, 0xa_0000), range(0xc_0000, 0x60_0000 - 0xc_0000), range(1 << 32, M2)];

fn pc(arena: &Arena) -> GuestRam<Arena> {
    GuestRam::with_backing(Stage2Format::Npt, &PC, PageSize::Size1G, arena.clone()).unwrap()
}

fn mapped(ram: &GuestRam<Arena>, gpa: u64) -> Option<(Hpa, PageSize)> {
    let translation = match ram.table.as_ref().unwrap() {
        Stage2::Npt(t) => t.translate(gpa),
        Stage2::Ept(t) => t.translate(gpa),
    };
    translation.map(|t| (t.address, t.size))
}

#[test]
fn stage_2_and_host_agree_on_every_page() {
    for format in [Stage2Format::Npt, Stage2Format::Ept] {
        let arena = Arena::new(4096, &[700, 1500]);
        let ram = GuestRam::with_backing(format, &PC, PageSize::Size2M, arena.clone()).unwrap();
        for gpa in PC.iter().flat_map(|r| (r.gpa.0..r.end().0).step_by(4096)) {
            ram.write(Gpa(gpa + 8), &gpa.to_le_bytes()).unwrap();
        }
        for gpa in PC.iter().flat_map(|r| (r.gpa.0..r.end().0).step_by(4096)) {
            let (hpa, _) = mapped(&ram, gpa + 8).unwrap();
            // SAFETY: mapped guest RAM within the arena.
            assert_eq!(unsafe { arena.to_virt(hpa).cast::<u64>().read() }, gpa);
        }
        assert_eq!(mapped(&ram, M2).unwrap().1, PageSize::Size2M);
        assert_eq!(mapped(&ram, 1 << 32).unwrap().1, PageSize::Size2M);
        for gpa in [0xa_0000, 0xb_ffff, 0x60_0000, (1 << 32) - 1, (1 << 32) + M2] {
            assert_eq!(mapped(&ram, gpa), None, "{gpa:#x}");
        }
    }
}

#[test]
fn entries_are_compared_wherever_they_are() {
    let arena = Arena::new(4096, &[]);
    let ram = pc(&arena);
    // In the largest chunk, in the first, above 4 GiB.
    let places = [0x10_0000, 0x10_0008, 0x9_f000, 1 << 32].map(Gpa);
    for (n, place) in (1u64..).zip(places) {
        ram.write(place, &n.to_le_bytes()).unwrap();
    }
    let entries = [(places[0], 1), (places[1], 2), (places[2], 3), (places[3], 4)];
    assert!(ram.entries_hold(&entries));
    for changed in 0..4 {
        let mut entries = entries;
        entries[changed].1 += 1;
        assert!(!ram.entries_hold(&entries), "{changed}");
        entries[changed] = (Gpa(0xa_0000), 0);
        assert!(!ram.entries_hold(&entries), "outside of RAM");
    }
}

#[test]
fn scrubbed_before_and_after_and_all_is_freed() {
    let arena = Arena::new(4096, &[]);
    let before = arena.free();
    let ram = pc(&arena);
    let mut page = [1; 4096];
    for gpa in PC.iter().flat_map(|r| (r.gpa.0..r.end().0).step_by(4096)) {
        ram.read(Gpa(gpa), &mut page).unwrap();
        assert!(page.iter().all(|&b| b == 0), "{gpa:#x}");
    }
    ram.fill(Gpa(0x10_0000), 0x10_0000, 0x5a).unwrap();
    let (hpa, _) = mapped(&ram, 0x10_0000).unwrap();
    drop(ram);
    assert_eq!(arena.free(), before);
    // SAFETY: within the arena.
    assert_eq!(unsafe { arena.to_virt(hpa).cast::<u64>().read() }, 0);
}

#[test]
fn accesses_outside_ram_do_nothing() {
    let arena = Arena::new(4096, &[]);
    let ram = pc(&arena);
    assert_eq!(ram.read_u32(Gpa(0xa_0000)), Err(OutsideRam(Gpa(0xa_0000))));
    assert_eq!(ram.read(Gpa(u64::MAX - 3), &mut [0; 8]), Err(OutsideRam(Gpa(u64::MAX - 3))));
    assert_eq!(ram.write(Gpa(0x9_fffe), &[7; 4]), Err(OutsideRam(Gpa(0xa_0000))));
    assert_eq!(ram.read_u16(Gpa(0x9_fffe)), Ok(0), "nothing was written");
    assert_eq!(ram.fill(Gpa(0), u64::MAX, 1), Err(OutsideRam(Gpa(0xa_0000))));
    assert_eq!(ram.read_u8(Gpa(0)), Ok(0));
    assert_eq!(ram.compare_exchange(Gpa(0x9_fffd), Width::Dword, 0, 1), Err(OutsideRam(Gpa(0xa_0000))));
}

#[test]
fn compare_exchange_by_width() {
    let arena = Arena::new(4096, &[]);
    let ram = pc(&arena);
    ram.write(Gpa(0x1000), &0x1122_3344_5566_7788u64.to_le_bytes()).unwrap();
    assert_eq!(ram.compare_exchange(Gpa(0x1000), Width::Byte, 0x88, 0xff), Ok(Ok(0x88)));
    assert_eq!(ram.compare_exchange(Gpa(0x1002), Width::Word, 0, 1), Ok(Err(0x5566)));
    assert_eq!(ram.compare_exchange(Gpa(0x1004), Width::Dword, 0x1122_3344, 0xabcd), Ok(Ok(0x1122_3344)));
    assert_eq!(ram.read_u64(Gpa(0x1000)), Ok(0x0000_abcd_5566_77ff));
    assert_eq!(ram.compare_exchange(Gpa(0x1000), Width::Qword, 0xabcd_5566_77ff, 9), Ok(Ok(0xabcd_5566_77ff)));
    assert_eq!(ram.read_u64(Gpa(0x1000)), Ok(9));
}

#[test]
fn short_memory_is_refused_without_a_leak() {
    let arena = Arena::new(1024, &[]);
    let before = arena.free();
    let result = GuestRam::with_backing(Stage2Format::Ept, &PC, PageSize::Size2M, arena.clone());
    assert_eq!(result.err(), Some(CreateError::OutOfMemory { wanted: 0xa_0000 + 0x54_0000 + M2, free: 1024 * 4096 }));
    // Enough for the RAM, but not for its tables.
    let exact = [range(0, 1020 * 4096)];
    let result = GuestRam::with_backing(Stage2Format::Ept, &exact, PageSize::Size4K, arena.clone());
    assert!(matches!(result.err(), Some(CreateError::OutOfMemory { .. })));
    assert_eq!(arena.free(), before);
}

#[test]
fn fragmented_memory_is_used_to_the_last_frame() {
    // Every 300th frame is taken: no 2-MiB page fits anywhere.
    let holes: Vec<u64> = (0..4096).step_by(300).collect();
    let arena = Arena::new(4096, &holes);
    let ram = GuestRam::with_backing(Stage2Format::Npt, &[range(0, 3900 * 4096)], PageSize::Size1G, arena).unwrap();
    assert!(ram.chunks.len() > 13);
    assert_eq!(mapped(&ram, 0).unwrap().1, PageSize::Size4K);
    let data: Vec<u8> = (0..3_000_000).map(|n: u32| (n % 251) as u8).collect();
    ram.write(Gpa(0x1_2345), &data).unwrap();
    let mut back = vec![0; data.len()];
    ram.read(Gpa(0x1_2345), &mut back).unwrap();
    assert!(back == data);
}

#[test]
fn nonsense_ranges_are_refused() {
    let arena = Arena::new(64, &[]);
    for ranges in [&[range(0, 0)][..], &[range(1, 4096)], &[range(0, 8192), range(4096, 4096)], &[range(u64::MAX - 4095, 4096)]] {
        let result = GuestRam::with_backing(Stage2Format::Npt, ranges, PageSize::Size2M, arena.clone());
        assert!(matches!(result.err(), Some(CreateError::OutOf(_))), "{ranges:?}");
    }
}

#[test]
fn entry_bits() {
    use MemoryType::{Uncached, WriteBack, WriteCombining, WriteThrough};
    let rwx = Rights::all();
    // EPT: RWX, type 6, ignore PAT, page.
    assert_eq!(EptFormat::leaf(Hpa(0x4000_0000), PageSize::Size1G, rwx, WriteBack), 0x4000_00f7);
    assert_eq!(EptFormat::leaf(Hpa(0x1000), PageSize::Size4K, rwx, WriteBack), 0x1077);
    assert_eq!(EptFormat::leaf(Hpa(0x1000), PageSize::Size4K, Rights::READ, Uncached), 0x1001);
    assert_eq!(EptFormat::leaf(Hpa(0x1000), PageSize::Size4K, Rights::WRITE, Uncached), 0x1000, "write-only is misconfigured");
    // NPT: present, writable, user, accessed, dirty, page; NX at the top.
    assert_eq!(NptFormat::leaf(Hpa(M2), PageSize::Size2M, rwx, WriteBack), 0x20_00e7);
    assert_eq!(NptFormat::leaf(Hpa(0x1000), PageSize::Size4K, Rights::READ, WriteBack), 0x8000_0000_0000_1065);
    for memory_type in [WriteBack, WriteThrough, WriteCombining, Uncached] {
        for size in [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G] {
            let npt = NptFormat::leaf(Hpa(G1), size, rwx, memory_type);
            assert_eq!(
                (NptFormat::frame(npt, size), NptFormat::memory_type(npt, size), NptFormat::rights(npt)),
                (Hpa(G1), memory_type, rwx)
            );
            let ept = EptFormat::leaf(Hpa(G1), size, rwx, memory_type);
            assert_eq!(
                (EptFormat::frame(ept, size), EptFormat::memory_type(ept, size), EptFormat::rights(ept)),
                (Hpa(G1), memory_type, rwx)
            );
        }
    }
}

proptest! {
    /// Whatever the ranges and the fragmentation: what is written reads back, errors name an address outside of RAM, and nothing leaks.
    #[test]
    fn random_accesses(
        holes in proptest::collection::vec(0u64..1024, 0..40),
        accesses in proptest::collection::vec((prop_oneof![0u64..0x30_0000, any::<u64>()], 0usize..9000, any::<u8>()), 1..40),
    ) {
        let arena = Arena::new(1024, &holes);
        let before = arena.free();
        let ranges = [range(0, 0xa_0000), range(0x10_0000, 0x10_0000)];
        let ram = GuestRam::with_backing(Stage2Format::Ept, &ranges, PageSize::Size2M, arena.clone()).unwrap();
        let mut model = vec![0u8; 0x20_0000];
        let in_ram = |gpa: u64, len: u64| ranges.iter().any(|r| gpa >= r.gpa.0 && gpa.checked_add(len).is_some_and(|e| e <= r.end().0));
        for (gpa, len, value) in accesses {
            let data: Vec<u8> = (0..len).map(|n| value.wrapping_add(n as u8)).collect();
            let result = ram.write(Gpa(gpa), &data);
            if in_ram(gpa, len as u64) && len != 0 {
                assert_eq!(result, Ok(()));
                model[gpa as usize..gpa as usize + len].copy_from_slice(&data);
                let mut back = vec![0; len];
                ram.read(Gpa(gpa), &mut back).unwrap();
                assert_eq!(back, data);
            } else if len != 0 {
                assert!(!in_ram(result.unwrap_err().0.0, 1));
            }
        }
        for r in ranges {
            let mut back = vec![0; r.size as usize];
            ram.read(r.gpa, &mut back).unwrap();
            assert!(back == model[r.gpa.0 as usize..r.end().0 as usize]);
        }
        drop(ram);
        assert_eq!(arena.free(), before);
    }
}
