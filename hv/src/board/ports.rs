//! The I/O port map: which device answers which port.

use alloc::vec::Vec;

/// A claim that overlaps an earlier one, naming both owners.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overlap<D> {
    pub port: u16,
    pub first: D,
    pub second: D,
}

/// Port → (device, first port of its claim). Two-level, so that a look-up is two loads whatever the number of devices.
pub struct PortMap<D> {
    /// By the port's high byte: index + 1 into `pages`, 0 if no device claims a port there.
    directory: [u8; 256],
    pages: Vec<[u8; 256]>,
    /// Claims; a page's byte is an index + 1 into this.
    claims: Vec<Claim<D>>,
}

#[derive(Clone, Copy)]
struct Claim<D> {
    device: D,
    first: u16,
}

impl<D: Copy> PortMap<D> {
    #[must_use]
    pub const fn new() -> Self {
        Self { directory: [0; 256], pages: Vec::new(), claims: Vec::new() }
    }

    /// Gives `count` ports from `first` on to `device`.
    ///
    /// # Errors
    /// The first port that already has an owner; nothing is claimed then.
    pub fn claim(&mut self, device: D, first: u16, count: u16) -> Result<(), Overlap<D>> {
        let ports = first..=first.saturating_add(count.saturating_sub(1));
        for port in ports.clone() {
            if let Some((owner, _)) = self.find(port) {
                return Err(Overlap { port, first: owner, second: device });
            }
        }
        self.claims.push(Claim { device, first });
        let mark = self.claims.len() as u8;
        for port in ports {
            let slot = &mut self.directory[usize::from(port >> 8)];
            if *slot == 0 {
                self.pages.push([0; 256]);
                *slot = self.pages.len() as u8;
            }
            let page = usize::from(*slot) - 1;
            self.pages[page][usize::from(port & 0xff)] = mark;
        }
        Ok(())
    }

    /// The owner of `port` and the port's offset in its claim.
    #[inline]
    #[must_use]
    pub fn find(&self, port: u16) -> Option<(D, u16)> {
        let page = self.pages.get(usize::from(self.directory[usize::from(port >> 8)]).wrapping_sub(1))?;
        let claim = self.claims.get(usize::from(page[usize::from(port & 0xff)]).wrapping_sub(1))?;
        Some((claim.device, port - claim.first))
    }
}

impl<D: Copy> Default for PortMap<D> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_owner_and_offset_and_nothing_else() {
        let mut map = PortMap::new();
        map.claim('a', 0x3f8, 8).unwrap();
        map.claim('b', 0xfffe, 2).unwrap();
        assert_eq!(map.find(0x3f8), Some(('a', 0)));
        assert_eq!(map.find(0x3ff), Some(('a', 7)));
        assert_eq!(map.find(0x400), None);
        assert_eq!(map.find(0x3f7), None);
        assert_eq!(map.find(0xffff), Some(('b', 1)));
    }

    #[test]
    fn overlap_names_both_and_claims_nothing() {
        let mut map = PortMap::new();
        map.claim('a', 0x60, 1).unwrap();
        assert_eq!(map.claim('b', 0x5f, 2), Err(Overlap { port: 0x60, first: 'a', second: 'b' }));
        assert_eq!(map.find(0x5f), None);
    }
}
