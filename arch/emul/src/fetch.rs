//! The instruction's bytes, as far as they are needed (SDM vol. 3A, 5.6 and 6.3 for the rights; vol. 2A, 2.3.11 for the length).

use crate::{
    Cpu, MAX_INSTRUCTION, Mode, Privilege,
    machine::{Done, Machine, canonical},
};
use x86defs::{Access, Exception, Gva, PAGE_SIZE, SegmentRegister};

/// Up to 15 bytes at RIP, of which `len` have been fetched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Code {
    bytes: [u8; MAX_INSTRUCTION],
    len: usize,
}

impl Code {
    /// Starts with what is known already.
    pub(crate) fn new(known: &[u8]) -> Self {
        if let Some(all) = known.first_chunk() {
            return Self { bytes: *all, len: MAX_INSTRUCTION };
        }
        let mut bytes = [0; MAX_INSTRUCTION];
        let mut len = 0;
        for (to, from) in bytes.iter_mut().zip(known) {
            *to = *from;
            len += 1;
        }
        Self { bytes, len }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }

    /// Fetches on: to the end of the page that the next byte lies in, or to 15 bytes. Called only if the bytes so far do not
    /// make an instruction, so a fault is one that the CPU would meet too. With 15 bytes there already, the instruction is too
    /// long: #GP(0).
    pub(crate) fn extend<C: Cpu>(&mut self, m: &mut Machine<'_, C>) -> Done {
        let wanted = MAX_INSTRUCTION - self.len;
        if wanted == 0 {
            return Err(Exception::GP.into());
        }
        let ip = m.rip.wrapping_add(self.len as u64);
        let (linear, room) = if m.mode == Mode::Long {
            if !canonical(ip, m.linear_bits()) {
                return Err(Exception::GP.into());
            }
            (ip, u64::MAX)
        } else {
            let cs = m.cpu.segment(SegmentRegister::Cs);
            // Bytes up to the limit; none beyond it.
            let room = (u64::from(cs.limit) + 1).checked_sub(ip).filter(|room| *room != 0).ok_or(Exception::GP)?;
            (cs.base.wrapping_add(ip) & 0xffff_ffff, room)
        };
        let in_page = PAGE_SIZE - linear % PAGE_SIZE;
        let count = (wanted as u64).min(in_page).min(room) as usize;
        let gpa = m.cpu.translate(Gva(linear), Access::Execute, Privilege::Current)?;
        if let Some(buf) = self.bytes.get_mut(self.len..self.len + count) {
            m.cpu.fetch(gpa, buf)?;
            self.len += count;
        }
        Ok(())
    }
}
