//! Port access.

use core::arch::asm;

macro_rules! access {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        /// Reads a port.
        ///
        /// # Safety
        /// The read's side effect on the device, if any, must be wanted: the caller owns that device.
        #[inline]
        #[must_use]
        pub unsafe fn $read(port: u16) -> $type {
            let value: $type;
            // SAFETY: IN touches no memory; the effect on the device is the caller's responsibility.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value, options(nomem, nostack, preserves_flags));
            }
            value
        }

        /// Writes a port.
        ///
        /// # Safety
        /// The caller owns the device behind the port, and the write must not make it touch memory that is not its own.
        #[inline]
        pub unsafe fn $write(port: u16, value: $type) {
            // SAFETY: OUT itself touches no memory; the effect on the device is the caller's responsibility.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value, options(nomem, nostack, preserves_flags));
            }
        }
    };
}

access!(read_u8, write_u8, u8, "al");
access!(read_u16, write_u16, u16, "ax");
access!(read_u32, write_u32, u32, "eax");
