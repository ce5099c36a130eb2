//! Loads a multiboot1 image: a 64-bit ELF file, a command line, and nothing else (Multiboot Specification 0.6.96, 3.3).

use anyhow::{Context, Result, ensure};

/// Where the information structure and the command line are put: below what the image uses.
const INFO: usize = 0x7000;
const COMMAND_LINE: usize = 0x7100;

/// Copies the image to the guest's memory. Returns its entry point.
pub fn load(memory: &mut [u8], elf: &[u8], command_line: &str) -> Result<u64> {
    ensure!(elf.get(..5) == Some(&[0x7f, b'E', b'L', b'F', 2]), "the guest is no 64-bit ELF file");
    let number = |at: usize, size: usize| -> Result<u64> {
        let bytes = elf.get(at..at + size).context("the guest's ELF file is cut off")?;
        Ok(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    };
    let (headers, size, count) = (number(32, 8)? as usize, number(54, 2)? as usize, number(56, 2)? as usize);
    for header in (0..count).map(|n| headers + n * size) {
        if number(header, 4)? != 1 {
            continue;
        }
        let (offset, address, length) =
            (number(header + 8, 8)? as usize, number(header + 24, 8)? as usize, number(header + 32, 8)? as usize);
        let from = elf.get(offset..offset + length).context("a segment lies outside the guest's ELF file")?;
        let to = memory.get_mut(address..address + length).context("a segment lies outside the guest's memory")?;
        to.copy_from_slice(from);
    }
    let line = format!("kernel {command_line}\0");
    ensure!(line.len() < 0x1000, "the guest's command line is too long");
    memory[COMMAND_LINE..COMMAND_LINE + line.len()].copy_from_slice(line.as_bytes());
    // Flags: only the command line, which is the fifth word, is there.
    memory[INFO..INFO + 4].copy_from_slice(&4u32.to_le_bytes());
    memory[INFO + 16..INFO + 20].copy_from_slice(&(COMMAND_LINE as u32).to_le_bytes());
    number(24, 8)
}

/// What EAX and EBX hold at the entry.
pub const REGISTERS: [u64; 2] = [0x2bad_b002, INFO as u64];

#[cfg(test)]
mod tests {
    use super::*;

    /// A header, one segment of four bytes at 0x10000, and one that is not to be loaded.
    fn elf() -> Vec<u8> {
        let mut elf = vec![0; 64 + 2 * 56];
        elf[..5].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2]);
        elf[24..28].copy_from_slice(&0x1_0004u32.to_le_bytes());
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 2;
        elf[64] = 1;
        elf[64 + 8] = 176;
        elf[64 + 26] = 1;
        elf[64 + 32] = 4;
        elf.extend(*b"code");
        elf
    }

    #[test]
    fn an_image_is_where_its_header_says() {
        let mut memory = vec![0; 0x2_0000];
        assert_eq!(load(&mut memory, &elf(), "test=x").unwrap(), 0x1_0004);
        assert_eq!(&memory[0x1_0000..0x1_0005], b"code\0");
        assert_eq!(&memory[COMMAND_LINE..COMMAND_LINE + 14], b"kernel test=x\0");
        assert_eq!(&memory[INFO + 16..INFO + 20], &(COMMAND_LINE as u32).to_le_bytes());
    }

    #[test]
    fn a_bad_image_is_an_error() {
        let load = |elf: &[u8], bytes| load(&mut vec![0; bytes], elf, "");
        assert!(load(b"\x7fELF\x01", 0x2_0000).is_err());
        assert!(load(&elf()[..100], 0x2_0000).is_err());
        assert!(load(&elf()[..178], 0x2_0000).is_err());
        assert!(load(&elf(), 0x1_0002).is_err());
    }
}
