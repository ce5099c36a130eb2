//! A byte queue of fixed size.

/// Holds up to `N` bytes, first in, first out.
#[derive(Debug)]
pub struct Ring<const N: usize> {
    bytes: [u8; N],
    /// Where the next byte is taken from.
    head: usize,
    len: usize,
}

impl<const N: usize> Ring<N> {
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; N], head: 0, len: 0 }
    }

    /// Bytes that still fit.
    #[must_use]
    pub const fn room(&self) -> usize {
        N - self.len
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a byte; false if the ring is full.
    pub fn push(&mut self, byte: u8) -> bool {
        if self.len == N {
            return false;
        }
        self.bytes[(self.head + self.len) % N] = byte;
        self.len += 1;
        true
    }

    pub fn pop(&mut self) -> Option<u8> {
        if self.len == 0 {
            return None;
        }
        let byte = self.bytes[self.head];
        self.head = (self.head + 1) % N;
        self.len -= 1;
        Some(byte)
    }
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn behaves_as_a_queue(ops in proptest::collection::vec(any::<Option<u8>>(), 0..200)) {
            let mut ring = Ring::<7>::new();
            let mut model = VecDeque::new();
            for op in ops {
                match op {
                    Some(byte) => {
                        assert_eq!(ring.push(byte), model.len() < 7);
                        if model.len() < 7 {
                            model.push_back(byte);
                        }
                    }
                    None => assert_eq!(ring.pop(), model.pop_front()),
                }
                assert_eq!((ring.room(), ring.is_empty()), (7 - model.len(), model.is_empty()));
            }
        }
    }
}
