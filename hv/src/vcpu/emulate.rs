//! The instruction emulator's view of a vCPU: translation through the guest's own tables, RAM or device behind the address, ports.

use super::Context;
use crate::vm::Vm;
use alloc::sync::Arc;
use emul::{Cpu, Mode, Privilege, Stop};
use x86defs::{
    Access, DescriptorTable, Gpa, Gpr, Gprs, GuestMemory, GuestMemoryExt, Gva, OutsideRam, PAGE_SIZE, Platform, Segment,
    SegmentRegister, Time, TimeSource, Vcpu, Width,
    paging::{self, FetchCache, TranslateError},
};

/// Why an instruction could not be emulated, for the guest's crash report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EmulationError {
    /// The guest's page tables lie outside of its RAM.
    TableOutsideRam(Gpa),
    /// The guest executes from an address that is not RAM.
    FetchOutsideRam(Gpa),
}

/// One instruction's worth of access to a vCPU and its machine.
pub(super) struct Emulation<'a, P: Platform> {
    pub hw: &'a mut P::Vcpu,
    pub vm: &'a Arc<Vm<P>>,
    pub vcpu_id: u32,
    pub cx: &'a Context<'a, P>,
    /// The access to device memory that the exit was about.
    pub operand: Option<Gpa>,
    pub fetches: &'a mut FetchCache,
    pub error: Option<EmulationError>,
    /// When the first port was accessed: near enough for the others of a REP string.
    pub now: Option<Time>,
}

impl<P: Platform> Emulation<'_, P> {
    /// The instruction's bytes, if they are easily had, in 64-bit code (`true`) or 32-bit code.
    #[inline(always)]
    pub fn plain_code(&mut self, mode: (Mode, u32)) -> Option<([u8; 16], bool)> {
        let long = match mode {
            (Mode::Long, _) => true,
            (Mode::Protected, 32) => false,
            _ => return None,
        };
        let bytes = match self.hw.instruction_bytes().first_chunk() {
            Some(bytes) => emul::padded(bytes),
            None => self.instruction(mode.0)?,
        };
        Some((bytes, long))
    }

    #[inline(always)]
    fn ram(&self, gpa: Gpa, width: Width) -> bool {
        self.operand != Some(gpa) && self.vm.memory.is_ram(gpa, width.bytes() as u64)
    }
}

impl<P: Platform> Cpu for Emulation<'_, P> {
    #[inline(always)]
    fn gprs(&self) -> &Gprs {
        self.hw.gprs()
    }
    #[inline(always)]
    fn gprs_mut(&mut self) -> &mut Gprs {
        self.hw.gprs_mut()
    }
    #[inline(always)]
    fn gpr(&self, register: Gpr) -> u64 {
        self.hw.gpr(register)
    }
    #[inline(always)]
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.hw.set_gpr(register, value);
    }
    #[inline(always)]
    fn rip(&self) -> u64 {
        self.hw.rip()
    }
    #[inline(always)]
    fn rflags(&self) -> u64 {
        self.hw.rflags()
    }
    #[inline(always)]
    fn cr0(&self) -> u64 {
        self.hw.cr0()
    }
    #[inline(always)]
    fn cr4(&self) -> u64 {
        self.hw.cr4()
    }
    #[inline(always)]
    fn efer(&self) -> u64 {
        self.hw.efer()
    }
    fn xcr0(&self) -> u64 {
        self.hw.xcr0()
    }
    #[inline(always)]
    fn in_64_bit_mode(&self) -> bool {
        self.hw.in_64_bit_mode()
    }
    fn cpl(&self) -> u8 {
        self.hw.cpl()
    }
    #[inline(always)]
    fn segment(&self, register: SegmentRegister) -> Segment {
        self.hw.segment(register)
    }
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.hw.set_segment(register, segment);
    }
    fn gdtr(&self) -> DescriptorTable {
        self.hw.state().gdtr
    }

    #[inline(always)]
    fn instruction(&mut self, mode: Mode) -> Option<[u8; 16]> {
        let rip = self.hw.rip();
        let memory = &*self.vm.memory;
        let gpa = match mode {
            Mode::Long => {
                is_within_page(rip).then_some(())?;
                match self.fetches.find(memory, self.hw.cr3(), Gva(rip)) {
                    Some(gpa) => gpa,
                    None => self.fetches.walk(memory, &self.hw.paging(), Gva(rip))?,
                }
            }
            Mode::Protected => {
                let cs = self.hw.segment(SegmentRegister::Cs);
                let linear = cs.base.wrapping_add(rip) & 0xffff_ffff;
                let room = u64::from(cs.limit).saturating_sub(rip);
                (is_within_page(linear) && room >= 16).then_some(())?;
                paging::translate_quickly(memory, &self.hw.paging(), Gva(linear), Access::Execute, false)?
            }
            Mode::Real | Mode::Virtual8086 => return None,
        };
        memory.read_block(gpa)
    }

    #[inline(always)]
    fn operand(&self) -> Option<Gpa> {
        self.operand
    }

    fn translate(&mut self, gva: Gva, access: Access, privilege: Privilege) -> Result<Gpa, Stop> {
        let context = self.hw.paging();
        let system = privilege == Privilege::System;
        if let Some(gpa) = paging::translate_quickly(&*self.vm.memory, &context, gva, access, system) {
            return Ok(gpa);
        }
        match paging::translate(&*self.vm.memory, &context, gva, access, system) {
            Ok(gpa) => Ok(gpa),
            Err(TranslateError::Fault(exception)) => Err(Stop::Fault(exception)),
            Err(TranslateError::TableOutsideRam(gpa)) => {
                self.error = Some(EmulationError::TableOutsideRam(gpa));
                Err(Stop::Abort)
            }
        }
    }

    fn read_ram(&mut self, gpa: Gpa, buf: &mut [u8]) -> bool {
        self.vm.memory.read(gpa, buf).is_ok()
    }

    fn fetch(&mut self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Stop> {
        self.vm.memory.read(gpa, buf).map_err(|OutsideRam(at)| {
            self.error = Some(EmulationError::FetchOutsideRam(at));
            Stop::Abort
        })
    }

    #[inline(always)]
    fn read(&mut self, gpa: Gpa, width: Width) -> Result<u64, Stop> {
        if self.ram(gpa, width) {
            let mut buf = [0; 8];
            let bytes = buf.get_mut(..width.bytes()).ok_or(Stop::Abort)?;
            return match self.vm.memory.read(gpa, bytes) {
                Ok(()) => Ok(u64::from_le_bytes(buf)),
                Err(_) => Ok(width.mask()),
            };
        }
        Ok(self.vm.board.mmio_read(self.vcpu_id, self.cx, gpa, width))
    }

    #[inline(always)]
    fn write(&mut self, gpa: Gpa, width: Width, value: u64) -> Result<(), Stop> {
        if self.ram(gpa, width) {
            let bytes = value.to_le_bytes();
            // RAM was just checked; ranges never change while the guest lives.
            let _ = self.vm.memory.write(gpa, bytes.get(..width.bytes()).ok_or(Stop::Abort)?);
            return Ok(());
        }
        self.vm.board.mmio_write(self.vcpu_id, self.cx, gpa, width, value);
        Ok(())
    }

    fn compare_exchange(&mut self, gpa: Gpa, width: Width, old: u64, new: u64) -> Result<u64, Stop> {
        if !self.ram(gpa, width) {
            self.vm.board.mmio_write(self.vcpu_id, self.cx, gpa, width, new);
            return Ok(old);
        }
        if !gpa.is_aligned(width.bytes() as u64) {
            // A split lock on RAM comes here only when another operand of the instruction is a device. Not atomic against other vCPUs.
            let found = self.read(gpa, width)?;
            if found == old {
                self.write(gpa, width, new)?;
            }
            return Ok(found);
        }
        match self.vm.memory.compare_exchange(gpa, width, old, new) {
            Ok(Ok(found) | Err(found)) => Ok(found),
            Err(_) => Ok(width.mask()),
        }
    }

    fn compare_exchange_16(&mut self, gpa: Gpa, old: u128, new: u128) -> Result<u128, Stop> {
        let high = gpa.wrapping_add(8);
        let low_found = self.read(gpa, Width::Qword)?;
        let high_found = self.read(high, Width::Qword)?;
        let found = u128::from(high_found) << 64 | u128::from(low_found);
        if found == old {
            self.write(gpa, Width::Qword, new as u64)?;
            self.write(high, Width::Qword, (new >> 64) as u64)?;
        }
        Ok(found)
    }

    fn port_in(&mut self, port: u16, width: Width) -> Result<u32, Stop> {
        Ok(self.vm.board.port_read(self.cx, port, width))
    }

    fn port_out(&mut self, port: u16, width: Width, value: u32) -> Result<(), Stop> {
        let now = *self.now.get_or_insert_with(|| self.cx.now());
        self.vm.board.port_write_of_string(now, port, width, value);
        Ok(())
    }

    fn port_out_bytes(&mut self, port: u16, bytes: &[u8]) -> (usize, Result<(), Stop>) {
        let now = *self.now.get_or_insert_with(|| self.cx.now());
        self.vm.board.port_write_bytes(now, port, bytes);
        (bytes.len(), Ok(()))
    }

    fn vector(&mut self, index: u8) -> Option<[u128; 2]> {
        Some(self.hw.vector(index))
    }
    fn set_xmm(&mut self, index: u8, value: u128) {
        self.hw.set_xmm(index, value);
    }
    fn set_ymm(&mut self, index: u8, value: [u128; 2]) {
        self.hw.set_ymm(index, value);
    }
}

/// The longest instruction at `linear` does not reach into the next page.
#[inline(always)]
const fn is_within_page(linear: u64) -> bool {
    linear % PAGE_SIZE <= PAGE_SIZE - 16
}
