//! The 8259 pair.

use super::{inb, outb};

/// ICW1-4: edge-triggered, vectors `base`.. and `base + 8`.., all inputs masked.
pub fn init(base: u8) {
    for (port, value) in [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, base),
        (0xa1, base + 8),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
        (0x21, 0xff),
        (0xa1, 0xff),
    ] {
        outb(port, value);
    }
}

/// Unmasks one input (and the cascade).
pub fn unmask(irq: u8) {
    if irq >= 8 {
        outb(0xa1, inb(0xa1) & !(1 << (irq - 8)));
        outb(0x21, inb(0x21) & !4);
    } else {
        outb(0x21, inb(0x21) & !(1 << irq));
    }
}

pub fn mask_all() {
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
}

/// Non-specific EOI.
pub fn eoi(irq: u8) {
    if irq >= 8 {
        outb(0xa0, 0x20);
    }
    outb(0x20, 0x20);
}
