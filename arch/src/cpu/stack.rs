//! The boot CPU's stacks, each above a guard page that the final page tables leave unmapped.

use core::cell::UnsafeCell;
use x86defs::PAGE_SIZE;

/// Bytes of the stack that the boot CPU runs on.
pub const BOOT_SIZE: usize = 64 * 1024;
/// Bytes of each interrupt stack. A crash report is printed on one of them.
pub const IST_SIZE: usize = 16 * 1024;

/// A stack of `N` bytes above its guard page.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Stack<const N: usize> {
    guard: [u8; PAGE_SIZE as usize],
    bytes: UnsafeCell<[u8; N]>,
}

// SAFETY: nobody but the CPU touches a stack's bytes; this code only takes addresses.
unsafe impl<const N: usize> Sync for Stack<N> {}

impl<const N: usize> Stack<N> {
    const fn new() -> Self {
        Self { guard: [0; PAGE_SIZE as usize], bytes: UnsafeCell::new([0; N]) }
    }

    /// The address after the last byte, where the stack starts.
    #[must_use]
    pub fn top(&self) -> u64 {
        self.bytes.get() as u64 + N as u64
    }

    /// The address of the guard page.
    #[must_use]
    pub fn guard(&self) -> u64 {
        self.guard.as_ptr() as u64
    }
}

pub static BOOT: Stack<BOOT_SIZE> = Stack::new();
pub static NMI: Stack<IST_SIZE> = Stack::new();
pub static DOUBLE_FAULT: Stack<IST_SIZE> = Stack::new();
pub static MACHINE_CHECK: Stack<IST_SIZE> = Stack::new();

/// All guard pages, with the name of the stack above.
#[must_use]
pub fn guards() -> [(u64, &'static str); 4] {
    [
        (BOOT.guard(), "boot"),
        (NMI.guard(), "NMI"),
        (DOUBLE_FAULT.guard(), "double fault"),
        (MACHINE_CHECK.guard(), "machine check"),
    ]
}

/// Bounds of the stack that `address` lies in.
#[must_use]
pub fn containing(address: u64) -> Option<(u64, u64)> {
    let bounds = |guard: u64, top: u64| (guard + PAGE_SIZE, top);
    [
        bounds(BOOT.guard(), BOOT.top()),
        bounds(NMI.guard(), NMI.top()),
        bounds(DOUBLE_FAULT.guard(), DOUBLE_FAULT.top()),
        bounds(MACHINE_CHECK.guard(), MACHINE_CHECK.top()),
    ]
    .into_iter()
    .find(|&(low, high)| (low..high).contains(&address))
}
