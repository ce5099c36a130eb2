//! What both vendors' vCPUs share: the completion of an exit, and the state that is switched only when a CPU takes or leaves a vCPU.
//!
//! Manuals: Intel SDM rev. 085; AMD APM vol. 2, 24593 rev. 3.42.

use crate::cpu::{self, msr};
use crate::mm::{direct, frames};
use alloc::{vec, vec::Vec};
use core::arch::asm;
use x86defs::{
    ControlRegister, Exception, Gpr, Gprs, Hpa, PAGE_SIZE, Resume, Rflags, Width,
    msr::{IA32_CSTAR, IA32_FMASK, IA32_KERNEL_GS_BASE, IA32_LSTAR, IA32_STAR, IA32_TSC_AUX},
};

/// What must be remembered of an exit until its answer comes. The decoder fills in what the kind of exit needs; the rest is stale.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    /// RIP after the instruction, for exits that are answered by completing it.
    pub next_rip: u64,
    /// Of a port read.
    pub width: Width,
    /// Of a control-register access.
    pub control: ControlRegister,
    /// Of a control-register read: where the value goes.
    pub gpr: Gpr,
    /// Control-register reads outside 64-bit mode write 32 bits.
    pub long: bool,
    /// The instruction emulator has loaded SS since the exit, which inhibits interrupts for one instruction (SDM vol. 3A, 7.8.3).
    pub ss_loaded: bool,
}

impl Default for Question {
    fn default() -> Self {
        Self { next_rip: 0, width: Width::Byte, control: ControlRegister::Cr0, gpr: Gpr::Rax, long: false, ss_loaded: false }
    }
}

/// What completing an exit needs from a vendor's vCPU.
pub trait Registers {
    fn gprs_mut(&mut self) -> &mut Gprs;
    fn question(&mut self) -> &mut Question;
    fn set_rip(&mut self, rip: u64);
    /// Moves RIP behind the instruction of the [`Question`] and ends an interrupt shadow. Returns RFLAGS.
    fn retire(&mut self) -> u64;
    fn rflags(&self) -> u64;
    fn set_rflags(&mut self, rflags: u64);
    /// Sets or clears the interrupt shadow. Called for every completed instruction, so cheap when there is nothing to clear.
    fn set_shadow(&mut self, shadow: Shadow);
    /// Writes a control register with a value that has been checked, with all that depends on it (EFER.LMA, TLB).
    fn write_control(&mut self, register: ControlRegister, value: u64);
    /// Raises an exception with RIP where it is; merges it with an event whose delivery was cut short.
    fn raise(&mut self, exception: &Exception);
    /// An instruction was completed with RFLAGS.TF set: sets DR6.BS and queues #DB as a trap.
    fn single_step(&mut self);
}

/// Whether the guest's next instruction is shielded from interrupts, as after STI and MOV SS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shadow {
    None,
    MovSs,
}

/// Completes the exit whose [`Question`] the vCPU holds.
#[inline(always)]
pub fn complete<R: Registers>(vcpu: &mut R, resume: Resume) {
    match resume {
        Resume::Retry => {}
        Resume::Advance => advance(vcpu),
        Resume::PortRead(value) => {
            let width = vcpu.question().width;
            merge(vcpu.gprs_mut(), width, value);
            advance(vcpu);
        }
        Resume::Cpuid(result) => {
            let gprs = vcpu.gprs_mut();
            gprs.set32(Gpr::Rax, result.eax);
            gprs.set32(Gpr::Rbx, result.ebx);
            gprs.set32(Gpr::Rcx, result.ecx);
            gprs.set32(Gpr::Rdx, result.edx);
            advance(vcpu);
        }
        Resume::Hypercall(value) => {
            vcpu.gprs_mut()[Gpr::Rax] = value;
            advance(vcpu);
        }
        Resume::MsrRead(value) | Resume::Tsc(value) => {
            let gprs = vcpu.gprs_mut();
            gprs.set32(Gpr::Rax, value as u32);
            gprs.set32(Gpr::Rdx, (value >> 32) as u32);
            advance(vcpu);
        }
        Resume::ControlRead(value) => {
            let (gpr, long) = (vcpu.question().gpr, vcpu.question().long);
            vcpu.gprs_mut()[gpr] = if long { value } else { value & 0xffff_ffff };
            advance(vcpu);
        }
        Resume::ControlWrite(value) => {
            let control = vcpu.question().control;
            vcpu.write_control(control, value);
            advance(vcpu);
        }
        Resume::AdvanceTo(rip) => {
            vcpu.set_rip(rip);
            vcpu.set_shadow(Shadow::None);
            let rflags = vcpu.rflags();
            clear_flags(vcpu, rflags);
        }
        Resume::Emulated { rip, rflags } => emulated(vcpu, rip, rflags),
        Resume::Fault(exception) => vcpu.raise(&exception),
    }
}

/// The result of IN goes to AL, AX or EAX; EAX clears the upper half, AL and AX leave the rest (SDM vol. 1, 3.4.1.1).
#[inline(always)]
fn merge(gprs: &mut Gprs, width: Width, value: u32) {
    /// By width in bytes: what stays of RAX. A table, because it comes to one load.
    const KEPT: [u64; 9] = [0, !0xff, !0xffff, 0, 0, 0, 0, 0, 0];
    gprs[Gpr::Rax] = gprs[Gpr::Rax] & KEPT[width as usize] | u64::from(value) & width.mask();
}

/// The instruction is complete: RIP moves on, the interrupt shadow ends, RF is cleared, and TF makes a trap (SDM vol. 3B, 18.3.1).
#[inline(always)]
fn advance<R: Registers>(vcpu: &mut R) {
    let rflags = vcpu.retire();
    clear_flags(vcpu, rflags);
}

#[inline(always)]
fn clear_flags<R: Registers>(vcpu: &mut R, rflags: u64) {
    if rflags & (Rflags::RF | Rflags::TF).bits() != 0 {
        finish_flags(vcpu, rflags);
    }
}

#[cold]
fn finish_flags<R: Registers>(vcpu: &mut R, rflags: u64) {
    vcpu.set_rflags(rflags & !Rflags::RF.bits());
    if rflags & Rflags::TF.bits() != 0 {
        vcpu.single_step();
    }
}

fn emulated<R: Registers>(vcpu: &mut R, rip: u64, rflags: u64) {
    let ss_loaded = core::mem::take(&mut vcpu.question().ss_loaded);
    vcpu.set_rip(rip);
    // Few of the instructions that reach a device change any.
    let cleared = rflags & !Rflags::RF.bits();
    if cleared != vcpu.rflags() {
        vcpu.set_rflags(cleared);
    }
    vcpu.set_shadow(if ss_loaded { Shadow::MovSs } else { Shadow::None });
    // Loading SS inhibits debug traps as well.
    if rflags & Rflags::TF.bits() != 0 && !ss_loaded {
        vcpu.single_step();
    }
}

/// RIP of the instruction after the one of `length` bytes at `rip`.
///
/// Outside 64-bit mode EIP wraps at 4 GiB. 16-bit code does not wrap at 64 KiB: the next fetch then violates the segment's limit, as on hardware.
#[inline(always)]
#[must_use]
pub const fn next_rip(rip: u64, length: u64, long: bool) -> u64 {
    let next = rip.wrapping_add(length);
    if (next ^ rip) >> 32 != 0 && !long { next & 0xffff_ffff } else { next }
}

/// Contiguous zeroed 4-KiB frames of host memory, given back when dropped. For control blocks and bitmaps that the CPU reads.
#[derive(Debug)]
pub struct OwnedPages {
    start: Hpa,
    pages: u64,
}

impl OwnedPages {
    /// `pages` zeroed frames; `None` if memory is short.
    #[must_use]
    pub fn new(pages: u64) -> Option<Self> {
        let start = frames::allocate(pages, 1)?;
        // SAFETY: the frames are ours, and the direct map reaches all RAM.
        unsafe { direct::to_virt(start).write_bytes(0, (pages * PAGE_SIZE) as usize) };
        Some(Self { start, pages })
    }

    #[inline]
    #[must_use]
    pub const fn hpa(&self) -> Hpa {
        self.start
    }

    /// Where the host sees the first byte; valid for as many pages as were asked for.
    #[inline]
    #[must_use]
    pub const fn as_ptr<T>(&self) -> *mut T {
        direct::to_virt(self.start).cast()
    }

    /// Sets all bytes to `value`.
    pub fn fill(&mut self, value: u8) {
        // SAFETY: the frames are ours alone.
        unsafe { self.as_ptr::<u8>().write_bytes(value, (self.pages * PAGE_SIZE) as usize) };
    }
}

impl Drop for OwnedPages {
    fn drop(&mut self) {
        frames::free(self.start, self.pages);
    }
}

/// 64 bytes on a 64-byte boundary, as XSAVE wants its area (SDM vol. 1, 13.4).
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Block([u8; 64]);

/// Vector registers' places in an XSAVE area of the standard format (SDM vol. 1, 13.4.1, 13.4.2).
const XMM_OFFSET: usize = 160;
const MXCSR_OFFSET: usize = 24;
const XSTATE_BV_OFFSET: usize = 512;
/// Bytes of the part that FXSAVE has, too.
const LEGACY_SIZE: usize = 512;
const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;

/// What XSAVE can hold on this CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct XsaveLayout {
    /// XCR0 with every state component that the CPU has; zero without XSAVE.
    all: u64,
    /// Bytes for all of them.
    size: usize,
    /// Where the high halves of the YMM registers are.
    ymm_offset: usize,
}

impl XsaveLayout {
    fn detect() -> Self {
        let has_xsave = cpu::cpuid(1, 0).ecx & 1 << 26 != 0 && cpu::cpuid(0, 0).eax >= 0xd;
        if !has_xsave {
            return Self { all: 0, size: LEGACY_SIZE, ymm_offset: 0 };
        }
        let main = cpu::cpuid(0xd, 0);
        let all = u64::from(main.edx) << 32 | u64::from(main.eax);
        let size = (main.ecx as usize).max(LEGACY_SIZE + 64);
        let ymm_offset = if all & AVX != 0 { cpu::cpuid(0xd, 2).ebx as usize } else { 0 };
        Self { all, size: size.max(ymm_offset + 256), ymm_offset }
    }
}

/// The state that stays in the CPU while the host runs, because the host does not use it: x87 and vector registers, XCR0, DR0 to DR3, and
/// TSC_AUX. The world switch leaves it alone; [`LazyState::load`] and [`LazyState::unload`] move it.
pub struct LazyState {
    area: Vec<Block>,
    layout: XsaveLayout,
    xcr0: u64,
    dr: [u64; 4],
    tsc_aux: u64,
    has_tsc_aux: bool,
    loaded: bool,
}

impl LazyState {
    /// The state after RESET.
    #[must_use]
    pub fn new() -> Self {
        let layout = XsaveLayout::detect();
        let ext1 = if cpu::cpuid(0x8000_0000, 0).eax >= 0x8000_0001 { cpu::cpuid(0x8000_0001, 0).edx } else { 0 };
        let has_rdpid = cpu::cpuid(0, 0).eax >= 7 && cpu::cpuid(7, 0).ecx & 1 << 22 != 0;
        let mut state = Self {
            area: vec![Block([0; 64]); layout.size.div_ceil(64)],
            layout,
            xcr0: X87,
            dr: [0; 4],
            tsc_aux: 0,
            has_tsc_aux: ext1 & 1 << 27 != 0 || has_rdpid,
            loaded: false,
        };
        state.reset_area();
        state
    }

    /// After RESET (SDM vol. 3A, table 11-1): FCW 0x40, tag word "all empty" (0 in FXSAVE's form), MXCSR 0x1f80, registers zero.
    fn reset_area(&mut self) {
        self.area.fill(Block([0; 64]));
        self.put(0, &0x40u16.to_le_bytes());
        self.put(MXCSR_OFFSET, &0x1f80u32.to_le_bytes());
        if self.layout.all != 0 {
            // x87 and SSE are in the area; all others are in their initial configuration.
            self.put(XSTATE_BV_OFFSET, &(X87 | SSE).to_le_bytes());
        }
    }

    fn bytes(&self) -> &[u8] {
        self.area.as_flattened_bytes()
    }

    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.bytes()[offset..offset + N]);
        out
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        let area = self.area.as_flattened_bytes_mut();
        area[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// The state as after INIT: what RESET sets, but x87, vector registers and XCR0's enabled components keep their contents (SDM vol. 3A,
    /// table 11-1). XCR0 itself is unchanged by INIT.
    pub fn init(&mut self) {
        self.set_debug_registers([0; 4]);
    }

    /// Puts this state into the CPU. Call on the CPU that is to run the vCPU, with interrupts disabled.
    pub fn load(&mut self) {
        debug_assert!(!self.loaded);
        // SAFETY: the area is aligned, large enough for every component, and holds what was saved or reset state, so no reserved bit is
        // set. XCR0 values come from the CPU's own list or were checked against it. The host uses none of these registers.
        unsafe {
            if self.layout.all == 0 {
                asm!("fxrstor64 [{}]", in(reg) self.area.as_ptr(), options(nostack, preserves_flags));
            } else {
                write_xcr0(self.layout.all);
                xrstor(self.area.as_ptr().cast(), self.layout.all);
                write_xcr0(self.xcr0);
            }
            if self.has_tsc_aux {
                msr::write(IA32_TSC_AUX, self.tsc_aux);
            }
        }
        write_debug_registers(&self.dr);
        self.loaded = true;
    }

    /// Takes it out again. Call on the CPU that loaded it.
    pub fn unload(&mut self) {
        debug_assert!(self.loaded);
        // SAFETY: as above.
        unsafe {
            if self.layout.all == 0 {
                asm!("fxsave64 [{}]", in(reg) self.area.as_mut_ptr(), options(nostack, preserves_flags));
            } else {
                self.xcr0 = read_xcr0();
                write_xcr0(self.layout.all);
                xsave(self.area.as_mut_ptr().cast(), self.layout.all);
            }
            if self.has_tsc_aux {
                self.tsc_aux = msr::read(IA32_TSC_AUX);
            }
        }
        self.dr = read_debug_registers();
        self.loaded = false;
    }

    /// True between [`LazyState::load`] and [`LazyState::unload`].
    #[inline]
    #[must_use]
    pub const fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// The guest's XCR0. While it is loaded, the register itself is asked: QEMU's TCG lets a guest's XSETBV pass without an exit.
    #[inline]
    #[must_use]
    pub fn xcr0(&self) -> u64 {
        if self.loaded && self.layout.all != 0 { read_xcr0() } else { self.xcr0 }
    }

    /// Gives the guest another XCR0. Bits that the host lacks are dropped, and x87 is always on, so that no guest's value can fault here.
    pub fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value & self.layout.all | X87;
        if self.loaded && self.layout.all != 0 {
            // SAFETY: checked by `hv` for consistency and reduced to what the CPU has.
            unsafe { write_xcr0(self.xcr0) };
        }
    }

    /// The guest's TSC_AUX; `None` if the host has no such MSR.
    #[must_use]
    pub fn tsc_aux(&self) -> Option<u64> {
        if !self.has_tsc_aux {
            None
        } else if self.loaded {
            // SAFETY: the CPU has it.
            Some(unsafe { msr::read(IA32_TSC_AUX) })
        } else {
            Some(self.tsc_aux)
        }
    }

    /// Writes TSC_AUX: 32 bits. False if the host has no such MSR.
    pub fn set_tsc_aux(&mut self, value: u64) -> bool {
        self.tsc_aux = value & 0xffff_ffff;
        if self.has_tsc_aux && self.loaded {
            // SAFETY: the CPU has it, and the upper half is zero.
            unsafe { msr::write(IA32_TSC_AUX, self.tsc_aux) };
        }
        self.has_tsc_aux
    }

    /// True if the host has TSC_AUX.
    #[must_use]
    pub const fn has_tsc_aux(&self) -> bool {
        self.has_tsc_aux
    }

    /// DR0 to DR3.
    #[must_use]
    pub fn debug_registers(&self) -> [u64; 4] {
        if self.loaded { read_debug_registers() } else { self.dr }
    }

    pub fn set_debug_registers(&mut self, dr: [u64; 4]) {
        self.dr = dr;
        if self.loaded {
            write_debug_registers(&dr);
        }
    }

    /// Brings the area up to date with the CPU, lets `f` change it, and loads it again.
    fn with_area<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        let loaded = self.loaded;
        if loaded {
            self.unload();
        }
        let result = f(self);
        if loaded {
            self.load();
        }
        result
    }

    fn component_valid(&self, component: u64) -> bool {
        self.layout.all == 0 || u64::from_le_bytes(self.get(XSTATE_BV_OFFSET)) & component != 0
    }

    fn mark(&mut self, component: u64) {
        if self.layout.all != 0 {
            let bv = u64::from_le_bytes(self.get(XSTATE_BV_OFFSET)) | component;
            self.put(XSTATE_BV_OFFSET, &bv.to_le_bytes());
        }
    }

    fn ymm_high(&self, n: usize) -> u128 {
        if self.layout.all & AVX != 0 && self.xcr0() & AVX != 0 && self.component_valid(AVX) {
            u128::from_le_bytes(self.get(self.layout.ymm_offset + 16 * n))
        } else {
            0
        }
    }

    /// The low 256 bits of vector register `index & 15`, low half first. Costs a save and a restore of everything.
    pub fn vector(&mut self, index: u8) -> [u128; 2] {
        let n = usize::from(index & 15);
        self.with_area(|s| {
            let low = if s.component_valid(SSE) { u128::from_le_bytes(s.get(XMM_OFFSET + 16 * n)) } else { 0 };
            [low, s.ymm_high(n)]
        })
    }

    /// Writes the low 128 bits of vector register `index & 15`; the rest stays.
    pub fn set_xmm(&mut self, index: u8, value: u128) {
        self.with_area(|s| s.put_xmm(usize::from(index & 15), value));
    }

    fn put_xmm(&mut self, n: usize, value: u128) {
        if !self.component_valid(SSE) {
            // Leaving the initial configuration: the other registers' zeros must be in the area.
            self.put(XMM_OFFSET, &[0; 256]);
        }
        self.put(XMM_OFFSET + 16 * n, &value.to_le_bytes());
        self.mark(SSE);
    }

    /// Writes 256 bits of vector register `index & 15`. Without AVX, as [`LazyState::set_xmm`].
    ///
    /// Bits 511:256, which a VEX instruction clears, are not touched: no guest is offered AVX-512 with emulated device memory behind it.
    pub fn set_ymm(&mut self, index: u8, value: [u128; 2]) {
        let n = usize::from(index & 15);
        self.with_area(|s| {
            s.put_xmm(n, value[0]);
            if s.layout.all & AVX != 0 {
                let offset = s.layout.ymm_offset;
                if !s.component_valid(AVX) {
                    s.put(offset, &[0; 256]);
                }
                s.put(offset + 16 * n, &value[1].to_le_bytes());
                s.mark(AVX);
            }
        });
    }
}

impl Default for LazyState {
    fn default() -> Self {
        Self::new()
    }
}

trait FlattenBytes {
    fn as_flattened_bytes(&self) -> &[u8];
    fn as_flattened_bytes_mut(&mut self) -> &mut [u8];
}

impl FlattenBytes for Vec<Block> {
    fn as_flattened_bytes(&self) -> &[u8] {
        // SAFETY: a block is 64 bytes without padding, and blocks follow one another.
        unsafe { core::slice::from_raw_parts(self.as_ptr().cast(), self.len() * 64) }
    }
    fn as_flattened_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), self.len() * 64) }
    }
}

/// # Safety
/// CR4.OSXSAVE is set, and the CPU allows the value.
unsafe fn write_xcr0(value: u64) {
    // SAFETY: the caller's.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    }
}

/// XCR0. Only with CR4.OSXSAVE set, which the host has whenever the CPU has XSAVE.
#[inline]
fn read_xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register that exists.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// # Safety
/// `area` is 64-byte aligned and holds all components of `mask`; XCR0 has them all.
unsafe fn xsave(area: *mut u8, mask: u64) {
    // SAFETY: the caller's.
    unsafe {
        asm!("xsave64 [{}]", in(reg) area, in("eax") mask as u32, in("edx") (mask >> 32) as u32, options(nostack, preserves_flags));
    }
}

/// # Safety
/// As [`xsave`]; the area is valid XSAVE data.
unsafe fn xrstor(area: *const u8, mask: u64) {
    // SAFETY: the caller's. The target has no FPU or vector registers, so the compiler keeps nothing in them.
    unsafe {
        asm!("xrstor64 [{}]", in(reg) area, in("eax") mask as u32, in("edx") (mask >> 32) as u32, options(nostack, preserves_flags));
    }
}

fn read_debug_registers() -> [u64; 4] {
    let mut dr = [0; 4];
    // SAFETY: reading debug registers at CPL 0; DR7.GD is clear while the host runs.
    unsafe {
        asm!("mov {}, dr0", out(reg) dr[0], options(nomem, nostack, preserves_flags));
        asm!("mov {}, dr1", out(reg) dr[1], options(nomem, nostack, preserves_flags));
        asm!("mov {}, dr2", out(reg) dr[2], options(nomem, nostack, preserves_flags));
        asm!("mov {}, dr3", out(reg) dr[3], options(nomem, nostack, preserves_flags));
    }
    dr
}

fn write_debug_registers(dr: &[u64; 4]) {
    // SAFETY: the host's DR7 enables no breakpoint, so the addresses mean nothing to it.
    unsafe {
        asm!("mov dr0, {}", in(reg) dr[0], options(nomem, nostack, preserves_flags));
        asm!("mov dr1, {}", in(reg) dr[1], options(nomem, nostack, preserves_flags));
        asm!("mov dr2, {}", in(reg) dr[2], options(nomem, nostack, preserves_flags));
        asm!("mov dr3, {}", in(reg) dr[3], options(nomem, nostack, preserves_flags));
    }
}

/// MSRs that SYSCALL and SWAPGS use. AMD-V switches them with VMLOAD and VMSAVE; on VT-x they stay in the CPU while the vCPU is loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SyscallMsrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
}

impl SyscallMsrs {
    /// What the CPU holds now.
    #[must_use]
    pub fn read() -> Self {
        // SAFETY: every CPU with long mode has them.
        unsafe {
            Self {
                star: msr::read(IA32_STAR),
                lstar: msr::read(IA32_LSTAR),
                cstar: msr::read(IA32_CSTAR),
                fmask: msr::read(IA32_FMASK),
                kernel_gs_base: msr::read(IA32_KERNEL_GS_BASE),
            }
        }
    }

    /// Puts the values into the CPU.
    ///
    /// # Safety
    /// Addresses must be canonical. The host must use neither SYSCALL nor SWAPGS.
    pub unsafe fn write(&self) {
        // SAFETY: the caller's; every CPU with long mode has them.
        unsafe {
            msr::write(IA32_STAR, self.star);
            msr::write(IA32_LSTAR, self.lstar);
            msr::write(IA32_CSTAR, self.cstar);
            msr::write(IA32_FMASK, self.fmask);
            msr::write(IA32_KERNEL_GS_BASE, self.kernel_gs_base);
        }
    }

    /// The field for an MSR index, if it is one of these.
    pub fn field(&mut self, index: u32) -> Option<&mut u64> {
        Some(match index {
            IA32_STAR => &mut self.star,
            IA32_LSTAR => &mut self.lstar,
            IA32_CSTAR => &mut self.cstar,
            IA32_FMASK => &mut self.fmask,
            IA32_KERNEL_GS_BASE => &mut self.kernel_gs_base,
            _ => return None,
        })
    }
}

#[cfg(test)]
#[path = "vcpu_tests.rs"]
mod tests;
