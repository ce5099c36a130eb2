//! Stacks: one to run on and three for interrupts for each CPU, each above a guard page that the host's page tables leave unmapped.

use super::percpu;
use core::cell::UnsafeCell;
use x86defs::PAGE_SIZE;

/// Bytes of the stack that a CPU runs on. The deepest way, restarting a guest from the shell, takes about half of them.
pub const BOOT_SIZE: usize = 96 * 1024;
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

    fn bounds(&self) -> Bounds {
        Bounds::above(self.guard.as_ptr() as u64, N)
    }
}

pub static BOOT: Stack<BOOT_SIZE> = Stack::new();
static NMI: Stack<IST_SIZE> = Stack::new();
static DOUBLE_FAULT: Stack<IST_SIZE> = Stack::new();
static MACHINE_CHECK: Stack<IST_SIZE> = Stack::new();

/// Where a stack is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Its lowest byte. The guard page is the page below.
    pub low: u64,
    /// The address after the last byte, where the stack starts.
    pub top: u64,
}

impl Bounds {
    const fn above(guard: u64, size: usize) -> Self {
        Self { low: guard + PAGE_SIZE, top: guard + PAGE_SIZE + size as u64 }
    }

    /// The address of the guard page.
    #[must_use]
    pub const fn guard(&self) -> u64 {
        self.low - PAGE_SIZE
    }
}

/// One CPU's stacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stacks {
    /// What it runs on.
    pub boot: Bounds,
    pub nmi: Bounds,
    pub double_fault: Bounds,
    pub machine_check: Bounds,
}

/// Bytes of one CPU's stacks with their guard pages.
pub const BLOCK_SIZE: u64 = 4 * PAGE_SIZE + BOOT_SIZE as u64 + 3 * IST_SIZE as u64;

impl Stacks {
    /// A CPU's stacks in the [`BLOCK_SIZE`] bytes from `start` on.
    #[must_use]
    pub const fn within(start: u64) -> Self {
        let boot = Bounds::above(start, BOOT_SIZE);
        let nmi = Bounds::above(boot.top, IST_SIZE);
        let double_fault = Bounds::above(nmi.top, IST_SIZE);
        let machine_check = Bounds::above(double_fault.top, IST_SIZE);
        Self { boot, nmi, double_fault, machine_check }
    }

    /// All of them with their names.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, Bounds); 4] {
        let Self { boot, nmi, double_fault, machine_check } = *self;
        [("boot", boot), ("NMI", nmi), ("double fault", double_fault), ("machine check", machine_check)]
    }

    /// The stack that contains `address`.
    fn containing(&self, address: u64) -> Option<Bounds> {
        self.named().into_iter().map(|(_, b)| b).find(|b| (b.low..b.top).contains(&address))
    }

    /// The name of the stack whose guard page contains `address`.
    fn above_guard(&self, address: u64) -> Option<&'static str> {
        self.named().into_iter().find(|(_, b)| address & !(PAGE_SIZE - 1) == b.guard()).map(|(name, _)| name)
    }
}

/// The boot CPU's stacks, which are part of the image.
#[must_use]
pub fn boot_stacks() -> Stacks {
    Stacks { boot: BOOT.bounds(), nmi: NMI.bounds(), double_fault: DOUBLE_FAULT.bounds(), machine_check: MACHINE_CHECK.bounds() }
}

/// Bounds of the stack that `address` lies in, whichever CPU's.
#[must_use]
pub fn containing(address: u64) -> Option<(u64, u64)> {
    let stacks = || percpu::all().filter_map(percpu::PerCpu::stacks);
    stacks().find_map(|s| s.containing(address)).map(|b| (b.low, b.top))
}

/// The stack whose guard page `address` lies in: the CPU's number and the stack's name.
#[must_use]
pub fn above_guard(address: u64) -> Option<(u32, &'static str)> {
    percpu::all().find_map(|cpu| Some((cpu.number(), cpu.stacks()?.above_guard(address)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_of_a_block_follow_each_other_with_a_guard_page_below_each() {
        let stacks = Stacks::within(0x10_0000);
        let mut next = 0x10_0000;
        for (name, bounds) in stacks.named() {
            assert_eq!(bounds.guard(), next, "{name}");
            assert_eq!(stacks.above_guard(next + 0xfff), Some(name));
            assert_eq!(stacks.above_guard(bounds.low), None);
            assert_eq!(stacks.containing(next + 0xfff), None);
            assert_eq!(stacks.containing(bounds.low), Some(bounds));
            assert_eq!(stacks.containing(bounds.top - 1), Some(bounds));
            next = bounds.top;
        }
        assert_eq!(next, 0x10_0000 + BLOCK_SIZE);
    }
}
