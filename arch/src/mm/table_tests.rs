use super::*;
use std::{collections::BTreeMap, vec::Vec};

const G: u64 = 1 << 30;
const M2: u64 = 2 << 20;
const RW: Rights = Rights::READ.union(Rights::WRITE);
const WB: MemoryType = MemoryType::WriteBack;

/// Table memory that writes down what was done, in order.
#[derive(Default)]
struct Fake {
    tables: BTreeMap<u64, [u64; ENTRIES]>,
    next: u64,
    /// Tables that may still be allocated, if limited.
    left: Option<usize>,
    history: Vec<(u64, usize, u64)>,
}

impl TableMemory for &mut Fake {
    fn allocate(&mut self) -> Option<Hpa> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1)?;
        }
        self.next += PAGE_SIZE;
        self.tables.insert(self.next, [0; ENTRIES]);
        Some(Hpa(self.next))
    }
    fn free(&mut self, table: Hpa) {
        assert!(self.tables.remove(&table.0).is_some(), "double free of {table}");
        if let Some(left) = &mut self.left {
            *left += 1;
        }
    }
    fn read(&self, table: Hpa, index: usize) -> u64 {
        self.tables[&table.0][index]
    }
    fn write(&mut self, table: Hpa, index: usize, entry: u64) {
        self.tables.get_mut(&table.0).expect("write to a freed table")[index] = entry;
        self.history.push((table.0, index, entry));
    }
}

type Table<'a> = PageTable<HostFormat, &'a mut Fake>;

fn leaves(fake: &Fake) -> usize {
    fake.history.iter().filter(|(_, _, e)| e & (bits::D) != 0).count()
}

#[test]
fn largest_pages_that_fit() {
    let mut fake = Fake::default();
    let mut table = Table::new(&mut fake, PageSize::Size1G).unwrap();
    // 4 KiB below a 2-MiB border, up to 4 KiB above a 1-GiB page's end.
    let start = G - M2 - PAGE_SIZE;
    table.map(start, 2 * PAGE_SIZE + M2 + G, Hpa(start), RW, WB).unwrap();
    let size = |t: &Table<'_>, a| t.translate(a).map(|t| (t.address.0, t.size));
    assert_eq!(size(&table, start + 5), Some((start + 5, PageSize::Size4K)));
    assert_eq!(size(&table, G - 1), Some((G - 1, PageSize::Size2M)));
    assert_eq!(size(&table, G + 12345), Some((G + 12345, PageSize::Size1G)));
    assert_eq!(size(&table, 2 * G + 4095), Some((2 * G + 4095, PageSize::Size4K)));
    assert_eq!(size(&table, 2 * G + 4096), None);
    assert_eq!(size(&table, start - 1), None);
    assert_eq!(leaves(&fake), 4);
}

#[test]
fn a_frame_of_another_alignment_forbids_large_pages() {
    let mut fake = Fake::default();
    let mut table = Table::new(&mut fake, PageSize::Size1G).unwrap();
    table.map(0, M2, Hpa(M2 + PAGE_SIZE), RW, WB).unwrap();
    assert_eq!(table.translate(M2 - 1).unwrap().address, Hpa(2 * M2 + PAGE_SIZE - 1));
    assert_eq!(leaves(&fake), 512);
}

#[test]
fn largest_size_is_respected() {
    let mut fake = Fake::default();
    let mut table = Table::new(&mut fake, PageSize::Size2M).unwrap();
    table.map(0, G, Hpa(0), RW, WB).unwrap();
    assert_eq!(table.translate(0).unwrap().size, PageSize::Size2M);
}

#[test]
fn tables_are_linked_only_after_they_are_filled() {
    let mut fake = Fake::default();
    let mut table = Table::new(&mut fake, PageSize::Size2M).unwrap();
    table.map(0, M2, Hpa(0), RW, WB).unwrap();
    table.memory.history.clear();
    table.unmap(PAGE_SIZE, PAGE_SIZE).unwrap();
    // 512 small leaves first, then the link, then the one removal.
    assert_eq!(fake.history.len(), 514);
    let (filled, _) = fake.history.split_at(512);
    assert!(filled.iter().all(|(t, _, e)| *t == filled[0].0 && HostFormat::present(*e)));
    assert_eq!(fake.history[512].2, HostFormat::table(Hpa(filled[0].0)));
    assert_eq!(fake.history[513], (filled[0].0, 1, 0));
}

#[test]
fn unmap_splits_at_the_edges_and_frees_empty_tables() {
    let mut fake = Fake::default();
    let mut table = Table::new(&mut fake, PageSize::Size1G).unwrap();
    table.map(0, 2 * G, Hpa(0), RW, WB).unwrap();
    table.unmap(G - PAGE_SIZE, 2 * PAGE_SIZE).unwrap();
    assert!(table.translate(G - PAGE_SIZE - 1).is_some());
    assert!(table.translate(G - PAGE_SIZE).is_none());
    assert!(table.translate(G + PAGE_SIZE - 1).is_none());
    assert_eq!(table.translate(G + PAGE_SIZE).unwrap().size, PageSize::Size4K);
    assert_eq!(table.translate(G + M2).unwrap().size, PageSize::Size2M);
    table.unmap(0, 2 * G).unwrap();
    assert_eq!(fake.tables.len(), 1, "only the root is left");
}

#[test]
fn overlap_is_refused_and_leaves_no_trace() {
    let mut fake = Fake::default();
    let mut table = Table::new(&mut fake, PageSize::Size1G).unwrap();
    table.map(M2, PAGE_SIZE, Hpa(0), RW, WB).unwrap();
    assert_eq!(table.map(0, 2 * M2, Hpa(0), RW, WB), Err(MapError::Overlap(M2)));
    assert!(table.translate(0).is_none());
    assert!(table.translate(M2).is_some());
}

#[test]
fn running_out_of_memory_leaves_no_trace() {
    let mut fake = Fake { left: Some(3), ..Fake::default() };
    let mut table = Table::new(&mut fake, PageSize::Size1G).unwrap();
    assert_eq!(table.map(G, G + PAGE_SIZE, Hpa(0), RW, WB), Err(MapError::OutOfMemory));
    assert!(table.translate(G).is_none());
}

#[test]
fn destroy_frees_all() {
    let mut fake = Fake::default();
    let mut table = Table::new(&mut fake, PageSize::Size1G).unwrap();
    table.map(0, G + M2 + PAGE_SIZE, Hpa(0), RW, WB).unwrap();
    table.map(0xffff_8000_0000_0000, PAGE_SIZE, Hpa(0), RW, WB).unwrap();
    table.destroy();
    assert!(fake.tables.is_empty());
}

#[test]
fn the_top_of_the_address_space_works() {
    let mut fake = Fake::default();
    let mut table = Table::new(&mut fake, PageSize::Size1G).unwrap();
    let top = 0u64.wrapping_sub(M2);
    table.map(top, M2, Hpa(M2), RW, WB).unwrap();
    assert_eq!(table.translate(u64::MAX).unwrap().address, Hpa(2 * M2 - 1));
    table.unmap(top, M2).unwrap();
    assert!(table.translate(u64::MAX).is_none());
    assert_eq!(table.map(1 << 48, PAGE_SIZE, Hpa(0), RW, WB), Err(MapError::BadRange(1 << 48)));
    assert_eq!(table.map(5, PAGE_SIZE, Hpa(0), RW, WB), Err(MapError::BadRange(5)));
}

#[test]
fn rights_and_types_survive_a_split_and_protect() {
    use MemoryType::{Uncached, WriteBack, WriteCombining, WriteThrough};
    for memory_type in [WriteBack, WriteThrough, WriteCombining, Uncached] {
        for rights in [Rights::READ, RW, Rights::READ | Rights::EXECUTE] {
            let mut fake = Fake::default();
            let mut table = Table::new(&mut fake, PageSize::Size1G).unwrap();
            table.map(G, G, Hpa(5 * G), rights, memory_type).unwrap();
            let whole = table.translate(G + 0x1234).unwrap();
            table.protect(G + M2, PAGE_SIZE, Rights::READ).unwrap();
            let part = table.translate(G + M2 + PAGE_SIZE).unwrap();
            assert_eq!((part.rights, part.memory_type), (rights, memory_type));
            assert_eq!((whole.rights, whole.memory_type), (rights, memory_type));
            assert_eq!(part.address, Hpa(5 * G + M2 + PAGE_SIZE));
            let changed = table.translate(G + M2).unwrap();
            assert_eq!((changed.rights, changed.memory_type), (Rights::READ, memory_type));
        }
    }
}

#[test]
fn pat_bit_is_where_the_size_has_it() {
    let small = HostFormat::leaf(Hpa(0x1000), PageSize::Size4K, Rights::READ, MemoryType::WriteCombining);
    let large = HostFormat::leaf(Hpa(M2), PageSize::Size2M, Rights::READ, MemoryType::WriteCombining);
    assert_eq!(small & 0x1fff, 0x10e1);
    assert_eq!(large & 0x1fff, 0x10e1);
    assert_eq!(HostFormat::frame(large, PageSize::Size2M), Hpa(M2));
}

#[test]
fn an_overlay_has_one_page_more_and_shares_the_rest() {
    let page = 0xfee0_0000;
    let mut fake = Fake::default();
    let mut table = Table::new(&mut fake, PageSize::Size2M).unwrap();
    table.map(0, 4 * M2, Hpa(G), RW, WB).unwrap();
    table.map(3 * G, M2, Hpa(5 * G), RW, WB).unwrap();
    let tables = table.memory.tables.len();
    let own = table.overlay(page, Hpa(0x7000), RW, WB).unwrap();
    assert_eq!(table.memory.tables.len(), tables + 4);
    assert_eq!(table.translate(page), None, "not in the table itself");
    let mut other = Table::from_root(own[0], &mut *table.memory, PageSize::Size2M);
    assert_eq!(other.translate(page + 5).map(|t| t.address), Some(Hpa(0x7005)));
    assert_eq!(other.translate(page + PAGE_SIZE), None);
    for at in [0, 3 * M2 + 7, 3 * G + 9] {
        assert!(other.translate(at).is_some(), "{at:#x} is shared");
    }
    // Nothing is made where something is already, or where memory is short, and nothing is left of the attempt.
    assert_eq!(other.overlay(M2, Hpa(0x7000), RW, WB), None);
    assert_eq!(other.overlay(page, Hpa(0x7000), RW, WB), None);
    table.memory.left = Some(3);
    assert_eq!(table.overlay(page, Hpa(0x7000), RW, WB), None);
    assert_eq!(table.memory.left, Some(3));
    table.free_overlay(own);
    assert_eq!(table.memory.tables.len(), tables);
    table.destroy();
    assert!(fake.tables.is_empty());
}
