//! The direct map: all RAM (and the MMIO the host uses) at a fixed offset, writable and never executable.

use core::sync::atomic::{AtomicU64, Ordering};
use x86defs::Hpa;

/// Where physical address zero appears.
pub const BASE: u64 = 0xffff_8000_0000_0000;
/// Bytes of address space for the direct map: all that 46 bits of physical address can name.
pub const SIZE: u64 = 1 << 46;
/// Where the image is linked; it appears there whatever physical address the loader chose.
pub const IMAGE_BASE: u64 = 0xffff_ffff_8000_0000;

/// Physical address of [`IMAGE_BASE`], modulo 2^64.
static IMAGE_OFFSET: AtomicU64 = AtomicU64::new(0);

/// Tells where the loader put the image: the physical address of [`IMAGE_BASE`], modulo 2^64.
pub fn set_image_offset(physical: u64) {
    IMAGE_OFFSET.store(physical, Ordering::Relaxed);
}

/// The address at which the host sees `address`. Valid for RAM, and for MMIO that [`super::map_mmio`] has mapped.
#[inline]
#[must_use]
pub const fn to_virt(address: Hpa) -> *mut u8 {
    BASE.wrapping_add(address.0) as *mut u8
}

/// The physical address of something in the direct map or in the image (statics, per-CPU data). Stacks and heap lie in one of them.
#[inline]
#[must_use]
pub fn to_phys<T: ?Sized>(pointer: *const T) -> Hpa {
    let address = pointer.cast::<u8>() as u64;
    if address >= IMAGE_BASE {
        Hpa((address - IMAGE_BASE).wrapping_add(IMAGE_OFFSET.load(Ordering::Relaxed)))
    } else {
        Hpa(address.wrapping_sub(BASE))
    }
}
