//! The bootable binary: entry from the boot loader, start-up in order, global allocator, panic handler. The only place where `arch` and
//! `hv` meet: the vendor is picked here, once.
#![no_std]
#![no_main]
#![deny(clippy::undocumented_unsafe_blocks)]

extern crate alloc;

#[cfg(target_os = "none")]
mod entry;
mod image;
mod options;
mod report;
mod start;
mod vendor;

use arch::mm::heap::Heap;

/// Bulkhead's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

#[global_allocator]
static HEAP: Heap = Heap::new();

/// Where the entry code goes to: paging is on with the early tables, interrupts are off, the stack is the boot stack.
///
/// `boot_information` is the physical address that the loader gave, `offset` by how much the loader moved the image, `entered` the TSC at its
/// jump.
extern "sysv64" fn bulkhead_main(boot_information: u64, offset: u64, entered: u64) -> ! {
    // SAFETY: this is the one call, from the entry code.
    unsafe { start::start(boot_information, offset, entered) }
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    match info.location() {
        Some(l) => arch::crash::die(format_args!("{} ({}:{})", info.message(), l.file(), l.line()), None),
        None => arch::crash::die(format_args!("{}", info.message()), None),
    }
}
