//! The host's heap: a buddy allocator over chunks that come from the frame allocator as they are needed. Large blocks come straight
//! from the frame allocator and go back to it.

use super::{direct, frames};
use buddy_system_allocator::Heap as Buddy;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Mutex;
use x86defs::PAGE_SIZE;

/// By so much the heap grows.
const CHUNK: u64 = 1 << 20;
/// Blocks of this size and above are frames of their own.
const LARGE: usize = 256 * 1024;

/// Bytes handed out, as they were asked for.
static IN_USE: AtomicU64 = AtomicU64::new(0);

/// Bytes that are allocated at present.
#[must_use]
pub fn in_use() -> u64 {
    IN_USE.load(Ordering::Relaxed)
}

/// The global allocator of the boot binary.
#[derive(Debug)]
pub struct Heap(Mutex<Buddy<32>>);

impl Heap {
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Buddy::empty()))
    }

    /// Gives the heap its first memory, for what has to be allocated before the frame allocator runs.
    ///
    /// # Safety
    /// The `bytes` bytes at `start` are nobody else's, for ever.
    pub unsafe fn add(&self, start: *mut u8, bytes: usize) {
        // SAFETY: the caller's.
        unsafe { self.0.lock().add_to_heap(start as usize, start as usize + bytes) };
    }

    /// A block of memory, or null.
    fn take(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            let align = (layout.align() as u64 / PAGE_SIZE).max(1);
            return frames::allocate(pages(layout).max(1), align).map_or(null_mut(), direct::to_virt);
        }
        let mut heap = self.0.lock();
        if let Ok(block) = heap.alloc(layout) {
            return block.as_ptr();
        }
        let Some(chunk) = frames::allocate(CHUNK / PAGE_SIZE, CHUNK / PAGE_SIZE) else { return null_mut() };
        let start = direct::to_virt(chunk) as usize;
        // SAFETY: the chunk is ours, mapped by the direct map, and never given back.
        unsafe { heap.add_to_heap(start, start + CHUNK as usize) };
        heap.alloc(layout).map_or(null_mut(), NonNull::as_ptr)
    }
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

fn pages(layout: Layout) -> u64 {
    (layout.size() as u64).div_ceil(PAGE_SIZE)
}

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE || layout.align() >= LARGE
}

// SAFETY: blocks come from the buddy allocator, which hands each out once, or from frames that are nobody else's; a layout decides
// alone and always in the same way which of the two.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let block = self.take(layout);
        if !block.is_null() {
            IN_USE.fetch_add(layout.size() as u64, Ordering::Relaxed);
        }
        block
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        if is_large(layout) {
            frames::free(direct::to_phys(pointer), pages(layout).max(1));
        } else if let Some(block) = NonNull::new(pointer) {
            // SAFETY: the caller's: the block came from `alloc` with this layout.
            unsafe { self.0.lock().dealloc(block, layout) };
        }
    }
}
