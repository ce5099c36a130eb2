//! A FIFO of the 16550A.

use super::spec::FIFO;

/// Up to 16 entries, oldest first.
#[derive(Clone)]
pub(super) struct Fifo<T> {
    entries: [T; FIFO],
    first: usize,
    len: usize,
}

impl<T: Copy + Default> Fifo<T> {
    pub(super) fn new() -> Self {
        Self { entries: [T::default(); FIFO], first: 0, len: 0 }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn slot(&self, n: usize) -> usize {
        (self.first + n) % FIFO
    }

    /// False if there is no room.
    pub(super) fn push(&mut self, entry: T) -> bool {
        let slot = self.slot(self.len);
        let has_room = self.len < FIFO;
        if has_room {
            self.entries[slot] = entry;
            self.len += 1;
        }
        has_room
    }

    pub(super) fn front(&self) -> Option<T> {
        (self.len > 0).then(|| self.entries[self.slot(0)])
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let entry = self.front()?;
        self.first = self.slot(1);
        self.len -= 1;
        Some(entry)
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = T> {
        (0..self.len).map(|n| self.entries[self.slot(n)])
    }
}
