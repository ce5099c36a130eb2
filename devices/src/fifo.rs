//! A small first-in, first-out buffer of fixed size.

use alloc::vec::Vec;

/// Up to `N` entries, oldest first.
#[derive(Clone)]
pub(crate) struct Fifo<T, const N: usize> {
    entries: [T; N],
    first: usize,
    len: usize,
}

impl<T: Copy + Default, const N: usize> Fifo<T, N> {
    pub(crate) fn new() -> Self {
        Self { entries: [T::default(); N], first: 0, len: 0 }
    }

    /// As many of `entries` as fit.
    pub(crate) fn from_entries(entries: impl IntoIterator<Item = T>) -> Self {
        let mut fifo = Self::new();
        for entry in entries.into_iter().take(N) {
            fifo.push(entry);
        }
        fifo
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many entries there is room for.
    pub(crate) fn room(&self) -> usize {
        N - self.len
    }

    fn slot(&self, n: usize) -> usize {
        (self.first + n) % N
    }

    /// False if there is no room.
    pub(crate) fn push(&mut self, entry: T) -> bool {
        let slot = self.slot(self.len);
        let has_room = self.len < N;
        if has_room {
            self.entries[slot] = entry;
            self.len += 1;
        }
        has_room
    }

    pub(crate) fn front(&self) -> Option<T> {
        (self.len > 0).then(|| self.entries[self.slot(0)])
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        let entry = self.front()?;
        self.first = self.slot(1);
        self.len -= 1;
        Some(entry)
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = T> {
        (0..self.len).map(|n| self.entries[self.slot(n)])
    }

    pub(crate) fn to_vec(&self) -> Vec<T> {
        self.iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn behaves_like_a_bounded_queue(ops in prop::collection::vec(prop::option::of(any::<u8>()), 1..100)) {
            let mut fifo = Fifo::<u8, 5>::new();
            let mut model = VecDeque::new();
            for op in ops {
                match op {
                    Some(byte) => {
                        let fits = model.len() < 5;
                        prop_assert_eq!(fifo.push(byte), fits);
                        if fits {
                            model.push_back(byte);
                        }
                    }
                    None => prop_assert_eq!(fifo.pop(), model.pop_front()),
                }
                prop_assert_eq!(fifo.to_vec(), Vec::from(model.clone()));
                prop_assert_eq!((fifo.room(), fifo.front()), (5 - model.len(), model.front().copied()));
            }
        }
    }
}
