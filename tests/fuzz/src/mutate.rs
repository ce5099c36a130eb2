//! From inputs to other inputs.

use crate::Random;

/// Longest input in bytes.
pub const MAX_LENGTH: usize = 4096;

/// Changes `input` in a few ways. `other` is an input to take pieces from, `words` are the target's.
pub fn mutate(random: &mut Random, input: &mut Vec<u8>, other: &[u8], words: &[&[u8]]) {
    for _ in 0..1 + random.below(4) {
        let at = random.below(input.len() + 1);
        let end = at + random.below((input.len() - at).min(32) + 1);
        match random.below(11) {
            0 => drop(input.drain(at..end)),
            1 => input.insert(at, random.next() as u8),
            2 => {
                let word = random.pick(words).copied().unwrap_or_default();
                input.splice(at..at, word.iter().copied());
            }
            3 => {
                let word = random.pick(words).copied().unwrap_or_default();
                input.splice(at..end, word.iter().copied());
            }
            4 => {
                // A piece of another input.
                let from = random.below(other.len() + 1);
                let to = from + random.below(other.len() - from + 1);
                input.splice(at..end, other[from..to].iter().copied());
            }
            5 => {
                // A piece of itself, several times.
                let piece = input[at..end].repeat(random.below(8));
                input.splice(at..at, piece);
            }
            _ => {
                let Some(byte) = input.get_mut(at) else {
                    input.push(random.next() as u8);
                    continue;
                };
                *byte = match random.below(5) {
                    0 => *byte ^ 1 << random.below(8),
                    1 => byte.wrapping_add(1),
                    2 => byte.wrapping_sub(1),
                    3 => random.pick(&[0, 0x7f, 0x80, 0xff, b' ', b'\n', b'0']).copied().unwrap_or(0),
                    _ => random.next() as u8,
                };
            }
        }
    }
    input.truncate(MAX_LENGTH);
}
