//! Makes a flat image of an ELF file: what its segments bring into memory from the lowest address on, as `objcopy -O binary` does.

/// The image, and the address where it belongs. `None` if the file is no 64-bit ELF file that can be loaded, or cut off.
#[must_use]
pub fn flatten(elf: &[u8]) -> Option<(u64, Vec<u8>)> {
    const MOST: u64 = 1 << 30;
    let number = |at: usize, size: usize| {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b)))
    };
    if elf.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let (headers, size, count) = (number(32, 8)? as usize, number(54, 2)? as usize, number(56, 2)? as usize);
    let mut segments = Vec::new();
    for n in 0..count {
        let header = headers.checked_add(n * size)?;
        let [kind, offset, address, bytes] =
            [number(header, 4)?, number(header + 8, 8)?, number(header + 24, 8)?, number(header + 32, 8)?];
        if kind == 1 && bytes != 0 {
            let start = usize::try_from(offset).ok()?;
            segments.push((address, elf.get(start..start.checked_add(usize::try_from(bytes).ok()?)?)?));
        }
    }
    let base = segments.iter().map(|(address, _)| *address).min()?;
    let mut image = Vec::new();
    for (address, data) in segments {
        if address - base > MOST {
            return None;
        }
        let start = (address - base) as usize;
        let end = start + data.len();
        image.resize(image.len().max(end), 0);
        image[start..end].copy_from_slice(data);
    }
    Some((base, image))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_come_in_the_order_of_their_addresses() {
        let mut elf = vec![0; 64 + 3 * 56];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        [elf[32], elf[54], elf[56]] = [64, 56, 3];
        // Kind, file offset, address / 16, bytes: the middle one is none to load.
        for (n, [kind, offset, address, bytes]) in [[1, 0, 0x12, 5], [2, 0, 0, 9], [1, 1, 0x11, 3]].into_iter().enumerate() {
            let at = 64 + n * 56;
            [elf[at], elf[at + 8], elf[at + 24], elf[at + 25], elf[at + 32]] = [kind, offset, address << 4, address >> 4, bytes];
        }
        let image = [&b"ELF"[..], &[0; 13], b"\x7fELF\x02"].concat();
        assert_eq!(flatten(&elf), Some((0x110, image)));
        elf[64 + 32] = 255;
        assert_eq!(flatten(&elf), None);
        assert_eq!(flatten(b"\x7fELF\x01"), None);
    }
}
