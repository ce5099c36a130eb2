//! The device that conformance suites for virtual machines look for, known as `pc-testdev`: a register in port space, memory that answers as
//! a device does, and ports that drive the interrupt lines.
//!
//! | where | what |
//! | --- | --- |
//! | ports [`DATA_PORT`], 4 | a register of four bytes, accessed by any of them in any width |
//! | ports [`FLUSH_PORT`], 4 | writes do nothing (where the suites' other hosts drop a page of theirs), reads are all ones |
//! | ports [`LINES_PORT`] + n, [`LINES`] | a write drives ISA interrupt (from 16 on: IOAPIC pin) n: low if it writes 0, else high |
//! | memory at [`MEMORY`], [`MEMORY_SIZE`] bytes | keeps what is written |

use crate::{Line, MmioDevice, ports};
use alloc::vec::Vec;
use x86defs::{Time, Width};

pub const DATA_PORT: u16 = 0xe0;
pub const FLUSH_PORT: u16 = 0xe4;
pub const LINES_PORT: u16 = 0x2000;
pub const LINES: u16 = 24;
pub const MEMORY: u64 = 0xff00_0000;
pub const MEMORY_SIZE: u64 = 0x1_0000;

/// The test device.
pub struct TestDevice {
    data: [u8; 4],
    lines: Vec<Line>,
    memory: Vec<u8>,
}

impl TestDevice {
    /// `lines`: by number; what is missing leads nowhere.
    #[must_use]
    pub fn new(lines: Vec<Line>) -> Self {
        Self { data: [0; 4], lines, memory: alloc::vec![0; MEMORY_SIZE as usize] }
    }

    /// Reads the data register; `offset` from [`DATA_PORT`].
    #[must_use]
    pub fn data_read(&self, offset: u16, width: Width) -> u32 {
        ports::read_bytes(offset, width, 4, |i| self.data.get(usize::from(i)).copied().unwrap_or(0xff))
    }

    /// Writes the data register; `offset` from [`DATA_PORT`].
    pub fn data_write(&mut self, offset: u16, width: Width, value: u32) {
        ports::write_bytes(offset, width, 4, value, |i, byte| {
            if let Some(slot) = self.data.get_mut(usize::from(i)) {
                *slot = byte;
            }
        });
    }

    /// Drives line `offset`.
    pub fn line_write(&self, offset: u16, value: u32) {
        if let Some(line) = self.lines.get(usize::from(offset)) {
            line.set(value != 0);
        }
    }

    fn bytes(&mut self, offset: u64, width: Width) -> Option<&mut [u8]> {
        let start = usize::try_from(offset).ok()?;
        self.memory.get_mut(start..start.checked_add(width.bytes())?)
    }
}

impl MmioDevice for TestDevice {
    fn mmio_read(&mut self, _: Time, offset: u64, width: Width) -> u64 {
        let mut value = [0; 8];
        match self.bytes(offset, width) {
            Some(bytes) => {
                value.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                u64::from_le_bytes(value)
            }
            None => width.mask(),
        }
    }

    fn mmio_write(&mut self, _: Time, offset: u64, width: Width, value: u64) {
        if let Some(bytes) = self.bytes(offset, width) {
            bytes.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LineSink, line::testing::Recorder};
    use alloc::sync::Arc;

    #[test]
    fn the_register_is_accessed_by_byte_and_in_whole() {
        let mut device = TestDevice::new(Vec::new());
        device.data_write(0, Width::Dword, 0x1234_5678);
        device.data_write(1, Width::Byte, 0xab);
        assert_eq!(device.data_read(0, Width::Dword), 0x1234_ab78);
        assert_eq!(device.data_read(2, Width::Word), 0x1234);
        assert_eq!(device.data_read(3, Width::Word), 0xff12);
    }

    #[test]
    fn memory_keeps_what_is_written() {
        let mut device = TestDevice::new(Vec::new());
        device.mmio_write(Time(0), 0xfff8, Width::Qword, 0x1122_3344_5566_7788);
        device.mmio_write(Time(0), 0xfff9, Width::Byte, 0xee);
        assert_eq!(device.mmio_read(Time(0), 0xfff8, Width::Qword), 0x1122_3344_5566_ee88);
        assert_eq!(device.mmio_read(Time(0), 0xfffc, Width::Word), 0x3344);
        // Across its end there is nothing.
        device.mmio_write(Time(0), 0xfffd, Width::Dword, 0);
        assert_eq!(device.mmio_read(Time(0), 0xfffd, Width::Dword), 0xffff_ffff);
        assert_eq!(device.mmio_read(Time(0), 0xfffc, Width::Dword), 0x1122_3344);
    }

    #[test]
    fn lines_are_driven() {
        let sink = Arc::new(Recorder::default());
        let lines = (0..24).map(|pin| Line::new(sink.clone() as Arc<dyn LineSink>, pin)).collect();
        let device = TestDevice::new(lines);
        for (line, value) in [(11, 1), (11, 1), (23, 7), (11, 0), (24, 1)] {
            device.line_write(line, value);
        }
        assert_eq!(*sink.0.lock().unwrap(), [(11, true), (23, true), (11, false)]);
    }
}
