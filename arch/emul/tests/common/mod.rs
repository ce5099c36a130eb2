//! A CPU of plain data to run the emulator on: pages with rights, a device that writes down every access, ports.
#![allow(dead_code, reason = "each test file uses a part")]

use emul::{Cpu, Mode, Privilege, Stop};
use std::collections::{BTreeMap, VecDeque};
use x86defs::{
    Access, Cr0, Cr4, DescriptorTable, Efer, Exception, Gpa, Gpr, Gprs, Gva, Segment, SegmentAttributes, SegmentRegister, Width,
};

pub const PAGE: u64 = 4096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rights {
    ReadWrite,
    ReadOnly,
    /// Present for the map, not for the guest.
    None,
}

/// What reached the outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    Read(u64, Width),
    Write(u64, Width, u64),
    Exchange(u64, Width, u64, u64),
    In(u16, Width),
    Out(u16, Width, u32),
}

#[derive(Clone)]
pub struct TestCpu {
    pub gprs: Gprs,
    pub rip: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr4: u64,
    pub efer: u64,
    pub xcr0: u64,
    pub cpl: u8,
    pub segments: [Segment; 8],
    pub gdtr: DescriptorTable,
    pub vectors: Option<[[u128; 2]; 16]>,
    /// Linear = physical, page by page.
    pub pages: BTreeMap<u64, (Rights, Box<[u8; 4096]>)>,
    /// This range belongs to a device: reads answer from `answers`, else all ones; everything is logged.
    pub device: core::ops::Range<u64>,
    pub answers: VecDeque<u64>,
    pub log: Vec<Event>,
    /// Translations asked for.
    pub walks: usize,
    /// Linear addresses whose page tables lie outside of RAM, as it were.
    pub broken: core::ops::Range<u64>,
    /// The next so many exchanges find this value instead, as if another vCPU had been faster.
    pub rival: VecDeque<u64>,
}

impl core::fmt::Debug for TestCpu {
    /// Without the pages, which would be all one sees.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("TestCpu")
            .field("mode", &self.mode())
            .field("gprs", &self.gprs)
            .field("rflags", &self.rflags)
            .field("cpl", &self.cpl)
            .field("segments", &self.segments)
            .finish_non_exhaustive()
    }
}

pub fn index(register: SegmentRegister) -> usize {
    register as usize
}

impl TestCpu {
    fn new(code: Segment, data: Segment) -> Self {
        let mut segments = [data; 8];
        segments[index(SegmentRegister::Cs)] = code;
        Self {
            gprs: Gprs::default(),
            rip: 0x1000,
            rflags: 2,
            cr0: (Cr0::PE | Cr0::PG | Cr0::NE | Cr0::WP | Cr0::AM).bits(),
            cr4: (Cr4::PAE | Cr4::OSFXSR | Cr4::OSXSAVE).bits(),
            efer: 0,
            xcr0: 7,
            cpl: 0,
            segments,
            gdtr: DescriptorTable::default(),
            vectors: Some([[0; 2]; 16]),
            pages: BTreeMap::new(),
            device: 0..0,
            answers: VecDeque::new(),
            log: Vec::new(),
            walks: 0,
            broken: 0..0,
            rival: VecDeque::new(),
        }
    }

    /// 64-bit mode, CPL 0.
    pub fn long() -> Self {
        let mut cpu = Self::new(Segment::flat(8, 0xb, true), Segment::flat(16, 3, false));
        cpu.efer = (Efer::LME | Efer::LMA | Efer::NXE).bits();
        cpu
    }

    /// 32-bit protected mode with flat segments, CPL 0.
    pub fn protected32() -> Self {
        Self::new(Segment::flat(8, 0xb, false), Segment::flat(16, 3, false))
    }

    /// 16-bit protected mode: 64-KiB segments with base 0.
    pub fn protected16() -> Self {
        let segment = |kind: u8| Segment { selector: 8, ..Segment::real_mode(0, kind) };
        Self::new(segment(0xb), segment(3))
    }

    pub fn real() -> Self {
        let mut cpu = Self::new(Segment::real_mode(0, 0xb), Segment::real_mode(0, 3));
        cpu.cr0 = Cr0::ET.bits();
        cpu
    }

    pub fn virtual8086() -> Self {
        let data = Segment { attributes: SegmentAttributes(0xf3), ..Segment::real_mode(0, 3) };
        let mut cpu = Self::new(data, data);
        cpu.rflags |= 1 << 17;
        cpu.cpl = 3;
        cpu
    }

    pub fn segment_mut(&mut self, register: SegmentRegister) -> &mut Segment {
        &mut self.segments[index(register)]
    }

    /// Makes pages of zeros out of `[start, start + len)`.
    pub fn map(&mut self, start: u64, len: u64, rights: Rights) -> &mut Self {
        for page in (start & !(PAGE - 1)..start + len).step_by(PAGE as usize) {
            self.pages.insert(page, (rights, Box::new([0; 4096])));
        }
        self
    }

    /// Puts bytes into mapped memory, whatever its rights.
    pub fn put(&mut self, mut at: u64, mut bytes: &[u8]) -> &mut Self {
        while !bytes.is_empty() {
            let start = (at % PAGE) as usize;
            let (now, later) = bytes.split_at(bytes.len().min(4096 - start));
            self.pages.get_mut(&(at & !(PAGE - 1))).expect("mapped").1[start..start + now.len()].copy_from_slice(now);
            at += now.len() as u64;
            bytes = later;
        }
        self
    }

    pub fn bytes(&self, mut at: u64, len: usize) -> Vec<u8> {
        let mut all = Vec::with_capacity(len);
        while all.len() < len {
            let start = (at % PAGE) as usize;
            let count = (len - all.len()).min(4096 - start);
            all.extend_from_slice(&self.pages[&(at & !(PAGE - 1))].1[start..start + count]);
            at += count as u64;
        }
        all
    }

    pub fn value(&self, at: u64, width: Width) -> u64 {
        self.bytes(at, width.bytes()).iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    pub fn set(&mut self, register: Gpr, value: u64) -> &mut Self {
        self.gprs[register] = value;
        self
    }

    fn is_device(&self, gpa: Gpa) -> bool {
        self.device.contains(&gpa.0)
    }

    fn raw_read(&self, gpa: Gpa, width: Width) -> Result<u64, Stop> {
        let (_, page) = self.pages.get(&gpa.page().0).ok_or(Stop::Abort)?;
        let start = gpa.page_offset() as usize;
        let bytes = page.get(start..start + width.bytes()).expect("an access within a page");
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn raw_write(&mut self, gpa: Gpa, width: Width, value: u64) -> Result<(), Stop> {
        assert_eq!(value & !width.mask(), 0, "a value wider than its width");
        let (_, page) = self.pages.get_mut(&gpa.page().0).ok_or(Stop::Abort)?;
        let start = gpa.page_offset() as usize;
        let bytes = page.get_mut(start..start + width.bytes()).expect("an access within a page");
        bytes.copy_from_slice(&value.to_le_bytes()[..width.bytes()]);
        Ok(())
    }
}

impl Cpu for TestCpu {
    const REP_BUDGET: u32 = 100;

    fn gprs(&self) -> &Gprs {
        &self.gprs
    }
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.gprs
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn cr0(&self) -> u64 {
        self.cr0
    }
    fn cr4(&self) -> u64 {
        self.cr4
    }
    fn efer(&self) -> u64 {
        self.efer
    }
    fn xcr0(&self) -> u64 {
        self.xcr0
    }
    fn cpl(&self) -> u8 {
        self.cpl
    }
    fn segment(&self, register: SegmentRegister) -> Segment {
        self.segments[index(register)]
    }
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.segments[index(register)] = segment;
    }
    fn gdtr(&self) -> DescriptorTable {
        self.gdtr
    }

    fn translate(&mut self, gva: Gva, access: Access, privilege: Privilege) -> Result<Gpa, Stop> {
        self.walks += 1;
        assert!(self.mode().0 == Mode::Long || gva.0 >> 32 == 0, "a linear address is 32 bits wide outside of 64-bit mode");
        let code = if access == Access::Write { 2 } else { 0 }
            | if self.cpl == 3 && privilege == Privilege::Current { 4 } else { 0 }
            | if access == Access::Execute { 16 } else { 0 };
        if self.broken.contains(&gva.0) {
            return Err(Stop::Abort);
        }
        if self.is_device(Gpa(gva.0)) {
            return Ok(Gpa(gva.0));
        }
        match self.pages.get(&gva.page().0) {
            None | Some((Rights::None, _)) => Err(Exception::pf(gva.0, code).into()),
            Some((Rights::ReadOnly, _)) if access == Access::Write => Err(Exception::pf(gva.0, code | 1).into()),
            Some(_) => Ok(Gpa(gva.0)),
        }
    }

    fn fetch(&mut self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Stop> {
        let (_, page) = self.pages.get(&gpa.page().0).ok_or(Stop::Abort)?;
        let start = gpa.page_offset() as usize;
        buf.copy_from_slice(page.get(start..start + buf.len()).expect("a fetch within a page"));
        Ok(())
    }

    fn read_ram(&mut self, gpa: Gpa, buf: &mut [u8]) -> bool {
        !self.is_device(gpa) && self.fetch(gpa, buf).is_ok()
    }

    fn read(&mut self, gpa: Gpa, width: Width) -> Result<u64, Stop> {
        if self.is_device(gpa) {
            self.log.push(Event::Read(gpa.0, width));
            return Ok(self.answers.pop_front().unwrap_or(u64::MAX) & width.mask());
        }
        self.raw_read(gpa, width)
    }

    fn write(&mut self, gpa: Gpa, width: Width, value: u64) -> Result<(), Stop> {
        if self.is_device(gpa) {
            assert_eq!(value & !width.mask(), 0, "a value wider than its width");
            self.log.push(Event::Write(gpa.0, width, value));
            return Ok(());
        }
        self.raw_write(gpa, width, value)
    }

    fn compare_exchange(&mut self, gpa: Gpa, width: Width, old: u64, new: u64) -> Result<u64, Stop> {
        self.log.push(Event::Exchange(gpa.0, width, old, new));
        if self.is_device(gpa) {
            return Ok(old);
        }
        if let Some(value) = self.rival.pop_front() {
            self.raw_write(gpa, width, value)?;
        }
        let found = self.raw_read(gpa, width)?;
        if found == old {
            self.raw_write(gpa, width, new)?;
        }
        Ok(found)
    }

    fn compare_exchange_16(&mut self, gpa: Gpa, old: u128, new: u128) -> Result<u128, Stop> {
        let next = gpa.wrapping_add(8);
        let low = self.raw_read(gpa, Width::Qword)?;
        let found = u128::from(self.raw_read(next, Width::Qword)?) << 64 | u128::from(low);
        if found == old {
            self.raw_write(gpa, Width::Qword, new as u64)?;
            self.raw_write(next, Width::Qword, (new >> 64) as u64)?;
        }
        Ok(found)
    }

    fn port_in(&mut self, port: u16, width: Width) -> Result<u32, Stop> {
        self.log.push(Event::In(port, width));
        Ok(self.answers.pop_front().unwrap_or(u64::MAX) as u32 & width.mask() as u32)
    }

    fn port_out(&mut self, port: u16, width: Width, value: u32) -> Result<(), Stop> {
        self.log.push(Event::Out(port, width, value));
        Ok(())
    }

    fn vector(&mut self, index: u8) -> Option<[u128; 2]> {
        self.vectors.map(|vectors| vectors[usize::from(index)])
    }

    fn set_xmm(&mut self, index: u8, value: u128) {
        if let Some(vectors) = &mut self.vectors {
            vectors[usize::from(index)][0] = value;
        }
    }

    fn set_ymm(&mut self, index: u8, value: [u128; 2]) {
        if let Some(vectors) = &mut self.vectors {
            vectors[usize::from(index)] = value;
        }
    }
}

/// A small generator of reproducible random numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    /// 0..n
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
    /// A value with the edges of all widths more likely than chance has them.
    pub fn value(&mut self) -> u64 {
        const EDGES: [u64; 12] =
            [0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0x7fff_ffff, 0x8000_0000, 0x7fff_ffff_ffff_ffff, 0x8000_0000_0000_0000];
        match self.below(4) {
            0 => *self.pick(&EDGES),
            1 => self.pick(&EDGES).wrapping_neg(),
            2 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }
}
