//! The guest's own paging: translation of a guest-linear address by walking the guest's tables (SDM vol. 3A chapter 5), for the
//! instruction emulator and for decoding. 32-bit (with PSE), PAE, 4-level and 5-level.

use crate::{Access, Cr0, Cr4, Efer, Exception, Gpa, GuestMemory, GuestMemoryExt, Gva, Width};

/// What a translation depends on besides memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PagingContext {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub rflags: u64,
    pub cpl: u8,
}

/// Why an address does not translate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TranslateError {
    /// The guest's tables forbid it: raise this #PF (or #GP for a non-canonical address).
    Fault(Exception),
    /// A page-table entry lies outside of RAM: the tables cannot be read.
    TableOutsideRam(Gpa),
}

/// Page-fault error code bits (SDM vol. 3A, figure 5-13).
mod pf {
    pub const P: u32 = 1;
    pub const W: u32 = 2;
    pub const U: u32 = 4;
    pub const RSVD: u32 = 8;
    pub const I: u32 = 16;
}

const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;
const ADDR: u64 = 0x000f_ffff_ffff_f000;

impl PagingContext {
    fn cr0(&self) -> Cr0 {
        Cr0::from_bits_retain(self.cr0)
    }
    fn cr4(&self) -> Cr4 {
        Cr4::from_bits_retain(self.cr4)
    }
    fn efer(&self) -> Efer {
        Efer::from_bits_retain(self.efer)
    }
    /// IA-32e paging is on.
    #[must_use]
    pub fn long_mode(&self) -> bool {
        self.efer().contains(Efer::LMA)
    }
}

/// [`translate`] where nothing is out of the ordinary, which is nearly always: 4-level paging, and entries that are present, marked as
/// accessed (and dirty), and not only for the other privilege level. `None` otherwise, with nothing touched.
#[must_use]
pub fn translate_quickly<M: GuestMemory + ?Sized>(
    memory: &M,
    ctx: &PagingContext,
    gva: Gva,
    access: Access,
    implicit_supervisor: bool,
) -> Option<Gpa> {
    walk_quickly(memory, ctx, gva, access, implicit_supervisor, |_, _| {})
}

/// [`translate_quickly`], which tells `visit` the entries on the way and what they hold.
#[inline(always)]
fn walk_quickly<M: GuestMemory + ?Sized>(
    memory: &M,
    ctx: &PagingContext,
    gva: Gva,
    access: Access,
    implicit_supervisor: bool,
    mut visit: impl FnMut(Gpa, u64),
) -> Option<Gpa> {
    const LONG: u64 = Efer::LMA.bits();
    if ctx.efer & LONG == 0 || ctx.cr4 & Cr4::LA57.bits() != 0 || ((gva.0 << 16) as i64 >> 16) as u64 != gva.0 {
        return None;
    }
    let mut table = ctx.cr3 & ADDR;
    let (mut all, mut any, mut shift) = (u64::MAX, 0, 39);
    let (entry, frame) = loop {
        let at = Gpa(table | gva.0 >> (shift - 3) & 0xff8);
        let entry = memory.read_entry(at)?;
        visit(at, entry);
        all &= entry;
        any |= entry;
        table = entry & ADDR;
        if entry & P == 0 {
            return None;
        }
        if shift == 12 {
            break (entry, table);
        }
        if entry & PS != 0 {
            // Bit 12 is the PAT bit; the others must be zero.
            let inner = ((1u64 << shift) - 1) & ADDR;
            if shift == 39 || entry & inner & !(1 << 12) != 0 {
                return None;
            }
            break (entry, table & !inner);
        }
        shift -= 9;
    };
    let user = ctx.cpl == 3 && !implicit_supervisor;
    let mut wanted = A | if user { US } else { 0 };
    if access == Access::Write {
        wanted |= RW;
        if entry & D == 0 {
            return None;
        }
    }
    let guarded = !user && all & US != 0 && ctx.cr4 & (Cr4::SMEP | Cr4::SMAP).bits() != 0;
    let no_execute = any & NX != 0 && (access == Access::Execute || ctx.efer & Efer::NXE.bits() == 0);
    if all & wanted != wanted || guarded || no_execute {
        return None;
    }
    Some(Gpa(frame | gva.0 & ((1 << shift) - 1)))
}

/// The last pages of 64-bit code whose instructions were emulated, for whoever emulates the same few instructions again and again.
///
/// Not a TLB: every look-up reads the table entries again, and counts only if they are what they were. It spares finding them and judging
/// what they say, and nothing that the guest does to its tables goes unnoticed. Rights are judged by the walk alone: the CPU has just
/// fetched the instruction itself.
#[derive(Clone, Debug)]
pub struct FetchCache {
    /// By their numbers' low bits.
    pages: [FetchedPage; 8],
    /// What those had to make room for, by the next bits.
    evicted: [FetchedPage; 8],
}

#[derive(Clone, Copy, Debug)]
struct FetchedPage {
    cr3: u64,
    /// Its linear address.
    page: u64,
    /// Entries and what they held; the last ones again if there were fewer.
    entries: [(Gpa, u64); 4],
    frame: u64,
}

impl FetchCache {
    /// No page has an odd address.
    const NO_PAGE: u64 = 1;

    /// Knows nothing.
    #[must_use]
    pub const fn new() -> Self {
        const NOTHING: FetchedPage = FetchedPage { cr3: 0, page: FetchCache::NO_PAGE, entries: [(Gpa(0), 0); 4], frame: 0 };
        Self { pages: [NOTHING; 8], evicted: [NOTHING; 8] }
    }

    /// Must be called when CR4.LA57 may have changed.
    pub fn forget(&mut self) {
        for known in self.pages.iter_mut().chain(&mut self.evicted) {
            known.page = Self::NO_PAGE;
        }
    }

    const fn slot(page: u64) -> usize {
        // Programs have their parts at multiples of some power of two.
        ((page >> 12 ^ page >> 15) & 7) as usize
    }

    const fn second_slot(page: u64) -> usize {
        (page >> 15 & 7) as usize
    }

    /// Where the CPU, in 64-bit mode, has just executed code at `gva`; `None` if that has to be found by a [`FetchCache::walk`].
    #[inline(never)]
    #[must_use]
    pub fn find<M: GuestMemory + ?Sized>(&self, memory: &M, cr3: u64, gva: Gva) -> Option<Gpa> {
        let (page, offset) = (gva.0 & !0xfff, gva.0 & 0xfff);
        let mut known = &self.pages[Self::slot(page)];
        if known.page != page || known.cr3 != cr3 {
            known = &self.evicted[Self::second_slot(page)];
            if known.page != page || known.cr3 != cr3 {
                return None;
            }
        }
        memory.entries_hold(&known.entries).then_some(Gpa(known.frame | offset))
    }

    /// What [`translate_quickly`] gives for the fetch of code at `gva`; remembered for [`FetchCache::find`].
    #[inline(never)]
    pub fn walk<M: GuestMemory + ?Sized>(&mut self, memory: &M, ctx: &PagingContext, gva: Gva) -> Option<Gpa> {
        let mut entries = [(Gpa(0), 0); 4];
        let mut level = 0;
        let gpa = walk_quickly(memory, ctx, gva, Access::Execute, false, |at, held| {
            for slot in entries.iter_mut().skip(level) {
                *slot = (at, held);
            }
            level += 1;
        })?;
        let page = gva.0 & !0xfff;
        let new = FetchedPage { cr3: ctx.cr3, page, entries, frame: gpa.0 & !0xfff };
        let before = core::mem::replace(&mut self.pages[Self::slot(page)], new);
        // What is not in use any more (or is walked again, because its tables have changed) would be in the way of others.
        if before.page != page || before.cr3 != ctx.cr3 {
            self.evicted[Self::second_slot(before.page)] = before;
        }
        Some(gpa)
    }
}

impl Default for FetchCache {
    fn default() -> Self {
        Self::new()
    }
}

/// Translates `gva` for an access of the given kind, checking rights as the CPU would and setting accessed/dirty bits.
///
/// `implicit_supervisor`: a system access (descriptor tables, TSS), made at CPL 0 whatever the CPL is.
pub fn translate<M: GuestMemory + ?Sized>(
    memory: &M,
    ctx: &PagingContext,
    gva: Gva,
    access: Access,
    implicit_supervisor: bool,
) -> Result<Gpa, TranslateError> {
    if !ctx.cr0().contains(Cr0::PG) {
        return Ok(Gpa(gva.0 & 0xffff_ffff));
    }
    let user = ctx.cpl == 3 && !implicit_supervisor;
    let long = ctx.long_mode();
    let pae = long || ctx.cr4().contains(Cr4::PAE);
    let nxe = ctx.efer().contains(Efer::NXE) && pae;
    let base_code = if access == Access::Write { pf::W } else { 0 }
        | if user { pf::U } else { 0 }
        | if access == Access::Execute && (nxe || ctx.cr4().contains(Cr4::SMEP)) { pf::I } else { 0 };
    let fault = |bits: u32| TranslateError::Fault(Exception::pf(gva.0, base_code | bits));

    let levels: u32 = if long {
        let levels = if ctx.cr4().contains(Cr4::LA57) { 5 } else { 4 };
        let unused = 64 - (12 + 9 * levels);
        if (((gva.0 << unused) as i64) >> unused) as u64 != gva.0 {
            return Err(TranslateError::Fault(Exception::GP));
        }
        levels
    } else if pae {
        3
    } else {
        2
    };
    let linear = if long { gva.0 } else { gva.0 & 0xffff_ffff };
    let (entry_size, index_bits) = if pae { (8u64, 9u32) } else { (4, 10) };

    let mut table = if long {
        ctx.cr3 & ADDR
    } else if pae {
        ctx.cr3 & 0xffff_ffe0
    } else {
        ctx.cr3 & 0xffff_f000
    };
    let mut rights_rw = true;
    let mut rights_user = true;
    let mut rights_nx = false;
    // Entries to be marked accessed once the walk has succeeded: at most five.
    let mut visited = [(Gpa(0), 0u64); 5];
    let mut count = 0usize;

    let mut level = levels;
    loop {
        let shift = 12 + (level - 1) * index_bits;
        let index = (linear >> shift) & ((1 << if pae && !long && level == 3 { 2 } else { index_bits }) - 1);
        let at = Gpa(table.wrapping_add(index * entry_size));
        let entry = if pae { memory.read_u64(at) } else { memory.read_u32(at).map(u64::from) }
            .map_err(|e| TranslateError::TableOutsideRam(e.0))?;
        if entry & P == 0 {
            return Err(fault(0));
        }
        let pdpte = pae && !long && level == 3;
        if pae && !nxe && entry & NX != 0 && !pdpte {
            return Err(fault(pf::P | pf::RSVD));
        }
        if !pdpte {
            rights_rw &= entry & RW != 0;
            rights_user &= entry & US != 0;
            rights_nx |= nxe && entry & NX != 0;
            visited[count] = (at, entry);
            count += 1;
        }
        let large =
            level > 1 && entry & PS != 0 && if pae { level == 2 || (long && level == 3) } else { ctx.cr4().contains(Cr4::PSE) };
        if level > 1 && entry & PS != 0 && long && level > 3 {
            return Err(fault(pf::P | pf::RSVD));
        }
        if level > 1 && !large {
            table = if pae { entry & ADDR } else { entry & 0xffff_f000 };
            level -= 1;
            continue;
        }

        // `entry` maps the page.
        let page_mask = (1u64 << shift) - 1;
        let frame = if !large {
            if pae { entry & ADDR } else { entry & 0xffff_f000 }
        } else if pae {
            if entry & page_mask & ADDR & !(1 << 12) != 0 {
                return Err(fault(pf::P | pf::RSVD));
            }
            entry & ADDR & !page_mask
        } else {
            // PSE-36: bits 13..=20 of a 4-MiB entry are address bits 32..=39.
            (entry & 0xffc0_0000) | ((entry >> 13 & 0xff) << 32)
        };
        check_rights(ctx, access, user, implicit_supervisor, rights_rw, rights_user, rights_nx).map_err(|()| fault(pf::P))?;

        for (i, &(gpa, seen)) in visited[..count].iter().enumerate() {
            let last = i + 1 == count;
            let wanted = seen | A | if last && access == Access::Write { D } else { 0 };
            if wanted != seen {
                let width = if pae { Width::Qword } else { Width::Dword };
                // A lost race means that the guest or another vCPU changed the entry: the CPU would walk again, and so does
                // the guest when it retries; the bits are hints then, so losing them once is harmless.
                let _ = memory.compare_exchange(gpa, width, seen, wanted);
            }
        }
        return Ok(Gpa(frame | linear & page_mask));
    }
}

fn check_rights(
    ctx: &PagingContext,
    access: Access,
    user: bool,
    implicit: bool,
    rw: bool,
    user_page: bool,
    nx: bool,
) -> Result<(), ()> {
    let allowed = match access {
        Access::Execute => !nx && if user { user_page } else { !(user_page && ctx.cr4().contains(Cr4::SMEP)) },
        _ if user => user_page && (access == Access::Read || rw),
        _ => {
            let smap_blocks =
                user_page && ctx.cr4().contains(Cr4::SMAP) && (implicit || ctx.rflags & crate::Rflags::AC.bits() == 0);
            !smap_blocks && (access == Access::Read || rw || !ctx.cr0().contains(Cr0::WP))
        }
    };
    if allowed { Ok(()) } else { Err(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OutsideRam, RamRange};
    use std::{sync::Mutex, vec, vec::Vec};

    struct Ram(Mutex<Vec<u8>>, [RamRange; 1]);

    impl Ram {
        fn new(size: u64) -> Self {
            Self(Mutex::new(vec![0; size as usize]), [RamRange { gpa: Gpa(0), size }])
        }
        fn put(&self, gpa: u64, value: u64) {
            self.write(Gpa(gpa), &value.to_le_bytes()).unwrap();
        }
    }

    impl GuestMemory for Ram {
        fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), OutsideRam> {
            let ram = self.0.lock().unwrap();
            let start = gpa.0 as usize;
            buf.copy_from_slice(ram.get(start..start + buf.len()).ok_or(OutsideRam(gpa))?);
            Ok(())
        }
        fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), OutsideRam> {
            let mut ram = self.0.lock().unwrap();
            let start = gpa.0 as usize;
            ram.get_mut(start..start + data.len()).ok_or(OutsideRam(gpa))?.copy_from_slice(data);
            Ok(())
        }
        fn fill(&self, _: Gpa, _: u64, _: u8) -> Result<(), OutsideRam> {
            Ok(())
        }
        fn compare_exchange(&self, gpa: Gpa, width: Width, old: u64, new: u64) -> Result<Result<u64, u64>, OutsideRam> {
            let mut b = [0; 8];
            self.read(gpa, &mut b[..width.bytes()])?;
            let found = u64::from_le_bytes(b);
            if found != old {
                return Ok(Err(found));
            }
            self.write(gpa, &new.to_le_bytes()[..width.bytes()])?;
            Ok(Ok(old))
        }
        fn ranges(&self) -> &[RamRange] {
            &self.1
        }
    }

    fn long_mode(cpl: u8) -> PagingContext {
        PagingContext {
            cr0: (Cr0::PE | Cr0::PG | Cr0::WP).bits(),
            cr3: 0x1000,
            cr4: Cr4::PAE.bits(),
            efer: (Efer::LME | Efer::LMA | Efer::NXE).bits(),
            rflags: 2,
            cpl,
        }
    }

    #[test]
    fn four_level_walk_sets_accessed_and_dirty() {
        let ram = Ram::new(0x10000);
        ram.put(0x1000, 0x2000 | P | RW | US);
        ram.put(0x2000, 0x3000 | P | RW | US);
        ram.put(0x3000, 0x4000 | P | RW | US);
        ram.put(0x4000 + 8 * 5, 0x9000 | P | RW);
        let gpa = translate(&ram, &long_mode(0), Gva(0x5123), Access::Write, false).unwrap();
        assert_eq!(gpa, Gpa(0x9123));
        assert_eq!(ram.read_u64(Gpa(0x4028)).unwrap(), 0x9000 | P | RW | A | D);
        assert_eq!(ram.read_u64(Gpa(0x1000)).unwrap() & (A | D), A);
        // The same page is not for user mode: protection violation, user, write.
        let error = translate(&ram, &long_mode(3), Gva(0x5123), Access::Write, false).unwrap_err();
        assert_eq!(error, TranslateError::Fault(Exception::pf(0x5123, pf::P | pf::W | pf::U)));
    }

    #[test]
    fn large_pages_and_reserved_bits() {
        let ram = Ram::new(0x10000);
        ram.put(0x1000, 0x2000 | P | RW);
        ram.put(0x2000, 0x3000 | P | RW);
        ram.put(0x3000, 0x4020_0000 | P | RW | PS);
        ram.put(0x3008, 0x4020_2000 | P | RW | PS);
        assert_eq!(translate(&ram, &long_mode(0), Gva(0x1_2345), Access::Read, false), Ok(Gpa(0x4021_2345)));
        let error = translate(&ram, &long_mode(0), Gva(0x20_0000), Access::Read, false).unwrap_err();
        assert_eq!(error, TranslateError::Fault(Exception::pf(0x20_0000, pf::P | pf::RSVD)));
    }

    #[test]
    fn non_canonical_is_gp_and_not_present_is_pf() {
        let ram = Ram::new(0x10000);
        let ctx = long_mode(0);
        assert_eq!(translate(&ram, &ctx, Gva(0x8000_0000_0000), Access::Read, false), Err(TranslateError::Fault(Exception::GP)));
        assert_eq!(
            translate(&ram, &ctx, Gva(0x1000), Access::Execute, false),
            Err(TranslateError::Fault(Exception::pf(0x1000, pf::I)))
        );
    }

    #[test]
    fn legacy_32_bit_and_pae() {
        let ram = Ram::new(0x10000);
        let mut ctx = long_mode(0);
        ctx.efer = 0;
        ctx.cr4 = Cr4::PSE.bits();
        ram.write(Gpa(0x1000 + 4), &(0x0080_0000u32 | (P | RW | PS) as u32).to_le_bytes()).unwrap();
        assert_eq!(translate(&ram, &ctx, Gva(0x0040_1234), Access::Read, false), Ok(Gpa(0x0080_1234)));
        ctx.cr4 = Cr4::PAE.bits();
        ctx.cr3 = 0x5020;
        ram.put(0x5020 + 8, 0x6000 | P);
        ram.put(0x6000, 0x7000 | P | RW);
        ram.put(0x7000 + 8, 0xa000 | P);
        assert_eq!(translate(&ram, &ctx, Gva(0x4000_1010), Access::Read, false), Ok(Gpa(0xa010)));
        let error = translate(&ram, &ctx, Gva(0x4000_1010), Access::Write, false).unwrap_err();
        assert_eq!(error, TranslateError::Fault(Exception::pf(0x4000_1010, pf::P | pf::W)));
    }

    #[test]
    fn smap_smep_and_wp() {
        let ram = Ram::new(0x10000);
        for table in [0x1000, 0x2000, 0x3000] {
            ram.put(table, (table + 0x1000) | P | RW | US);
        }
        ram.put(0x4000, 0x9000 | P | US);
        let mut ctx = long_mode(0);
        assert!(translate(&ram, &ctx, Gva(0), Access::Write, false).is_err(), "WP protects read-only pages from CPL 0");
        ctx.cr0 &= !Cr0::WP.bits();
        assert!(translate(&ram, &ctx, Gva(0), Access::Write, false).is_ok());
        ctx.cr4 |= (Cr4::SMAP | Cr4::SMEP).bits();
        assert!(translate(&ram, &ctx, Gva(0), Access::Read, false).is_err());
        assert!(translate(&ram, &ctx, Gva(0), Access::Execute, false).is_err());
        ctx.rflags |= crate::Rflags::AC.bits();
        assert!(translate(&ram, &ctx, Gva(0), Access::Read, false).is_ok());
        assert!(translate(&ram, &ctx, Gva(0), Access::Read, true).is_err(), "implicit accesses ignore AC");
    }

    /// Whatever the entries and the context, the quick way gives what the full walk gives, or nothing.
    #[test]
    fn the_quick_way_agrees_with_the_full_walk() {
        let mut state = 1u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let (mut quick, mut refused, mut hits) = (0, 0, 0);
        let mut cache = FetchCache::new();
        for _ in 0..200_000 {
            let ram = Ram::new(0x10000);
            let r = random();
            // Mostly sane entries, with one bit or two turned over now and then.
            for table in [0x1000u64, 0x2000, 0x3000, 0x4000] {
                let next = if table == 0x4000 { 0x9000 } else { table + 0x1000 };
                let flip = |n: u64| if n.is_multiple_of(3) { 1u64 << (n >> 8 & 63) } else { 0 };
                let large = if random().is_multiple_of(5) { PS } else { 0 };
                let keep = if large != 0 && table != 0x4000 { !0x1f_f000 } else { !0 };
                let entry = (next & keep | P | RW | US | A | D | large) ^ flip(random()) ^ flip(random());
                ram.put(table + 8 * (r & 1), entry);
            }
            let index = r & 1;
            let gva = Gva((index << 39 | index << 30 | index << 21 | index << 12 | r >> 20 & 0xfff)
                ^ if r >> 33 & 15 == 0 { 1 << 47 } else { 0 });
            let pick = |bit: u32, flag: u64| if r >> bit & 1 != 0 { flag } else { 0 };
            let ctx = PagingContext {
                cr0: (Cr0::PE | Cr0::PG).bits() | pick(40, Cr0::WP.bits()),
                cr4: Cr4::PAE.bits() | pick(41, Cr4::SMEP.bits()) | pick(42, Cr4::SMAP.bits()),
                efer: (Efer::LME | Efer::LMA).bits() | pick(43, Efer::NXE.bits()),
                rflags: 2 | pick(44, crate::Rflags::AC.bits()),
                ..long_mode(if r >> 45 & 1 != 0 { 3 } else { 0 })
            };
            let access = [Access::Read, Access::Write, Access::Execute][(r >> 46) as usize % 3];
            // Whatever was there before.
            let walked = translate_quickly(&ram, &ctx, gva, Access::Execute, false);
            if let Some(found) = cache.find(&ram, ctx.cr3, gva) {
                // The same place, whether or not the rights are what they were.
                assert!(walked.is_none_or(|gpa| gpa == found));
                hits += 1;
            } else {
                assert_eq!(cache.walk(&ram, &ctx, gva), walked);
                assert!(walked.is_none() || cache.find(&ram, ctx.cr3, gva) == walked);
            }
            let implicit = r >> 50 & 3 == 0;
            match translate_quickly(&ram, &ctx, gva, access, implicit) {
                Some(gpa) => {
                    assert_eq!(translate(&ram, &ctx, gva, access, implicit), Ok(gpa), "{ctx:x?} {gva:x?} {access:?}");
                    quick += 1;
                }
                None => refused += 1,
            }
        }
        assert!(quick > 20_000 && refused > 20_000 && hits > 500, "{quick} quick, {refused} refused, {hits} fetches");
    }
}
