//! Where the linker script put the parts of the image.

use arch::mm::{Section, direct, frames::Range, table::Rights};

/// Where the script links the image; see `link.ld`.
const LINK_ADDRESS: u64 = 0x20_0000;

unsafe extern "C" {
    static bulkhead_text: u8;
    static bulkhead_rodata: u8;
    static bulkhead_data: u8;
    static bulkhead_end: u8;
}

/// The parts with their rights. None is both writable and executable.
pub fn sections() -> [Section; 3] {
    let [text, rodata, data, end] =
        [&raw const bulkhead_text, &raw const bulkhead_rodata, &raw const bulkhead_data, &raw const bulkhead_end]
            .map(|s| s as u64);
    [
        Section { start: text, end: rodata, rights: Rights::READ.union(Rights::EXECUTE) },
        Section { start: rodata, end: data, rights: Rights::READ },
        Section { start: data, end, rights: Rights::READ.union(Rights::WRITE) },
    ]
}

/// The physical memory that the image takes, entry code included. `offset`: by how much the loader moved it.
pub fn physical(offset: u64) -> Range {
    Range::new(LINK_ADDRESS.wrapping_add(offset), direct::to_phys(&raw const bulkhead_end).0)
}
