//! The instruction emulator: one guest instruction, decoded by `iced-x86` and executed here behind callbacks.
//!
//! The hypervisor calls [`emulate`] when the guest touches device memory (a stage-2 fault), transfers a string through a port,
//! or must have an instruction completed in software for another reason. Everything that the instruction does to the outside
//! goes through the [`Cpu`] trait; this crate holds no state, allocates nothing once [`init`] has run, and cannot panic or loop
//! without bound on anything a guest controls.
//!
//! Two decoders stand before one set of semantics. The plain loads and stores that drivers make to device registers, and the
//! string instructions, are decoded by hand (`fast.rs`, `string.rs`); every other instruction goes through `iced-x86`. A test
//! runs both on the same instructions and demands the same result.
//!
//! All memory operands of an instruction are translated before the first is touched, so that no device access is lost to a page
//! fault (only what was read can make a later fault: a selector, a branch target, a divisor). Registers and flags are committed
//! last, so a fault leaves the guest as if the instruction had not started; a REP string has done whole iterations, and a nested
//! ENTER may have written below the stack pointer.
//!
//! The manual is Intel's "64 and IA-32 Architectures Software Developer's Manual", order number 325462-083 ("SDM"), and, where
//! the vendors differ, AMD's "AMD64 Architecture Programmer's Manual", 24592/24593/24594 of 2023 ("APM").
//!
//! [`task`] is besides: hardware task switches, which are no matter of one instruction's form.
//!
//! Deliberately absent: far branches, IRET, x87, MMX, EVEX, and SSE arithmetic. They come back as
//! [`Outcome::Unsupported`] with the opcode bytes.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod alu;
mod exec;
mod fast;
mod fetch;
mod machine;
mod operand;
mod port;
mod segment;
mod string;
pub mod task;
mod vector;

pub use fast::{Plain, PlainCache};
use fetch::Code;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};
use machine::{Done, Halt, Machine};
use x86defs::{Access, Cr0, DescriptorTable, Efer, Exception, Gpa, Gpr, Gprs, Gva, Rflags, Segment, SegmentRegister, Width};

/// Why a callback did not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The instruction raises this exception.
    Fault(Exception),
    /// The guest cannot go on (its page tables lie outside of RAM, say). The implementor keeps the reason.
    Abort,
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Fault(exception)
    }
}

/// What became of the instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The instruction is complete: take these; GPRs, segments and vectors are written already. With TF set in `rflags`, a
    /// single-step trap is due. A REP string that is being single-stepped comes back after each iteration, with RIP still at
    /// the instruction.
    Done { rip: u64, rflags: u64 },
    /// A REP string used up its iteration budget, or a locked instruction lost too many races. Registers are updated as far as
    /// it got, RIP and RFLAGS stay: deliver what is pending and enter the guest again, which goes on with the same instruction.
    Partial,
    /// Raise this exception, with RIP and RFLAGS as they are. A REP string may have done whole iterations before.
    Fault(Exception),
    /// Nothing was done: this instruction, or this form of it, is not emulated.
    Unsupported(InstructionBytes),
    /// A callback answered [`Stop::Abort`].
    Abort,
}

/// Up to 15 bytes of machine code, for messages.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct InstructionBytes {
    bytes: [u8; MAX_INSTRUCTION],
    len: u8,
}

/// The longest instruction the architecture allows, in bytes (SDM vol. 2A, 2.3.11).
pub const MAX_INSTRUCTION: usize = 15;

impl InstructionBytes {
    /// The first 15 bytes of `bytes`.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut new = Self::default();
        for (to, from) in new.bytes.iter_mut().zip(bytes) {
            *to = *from;
            new.len += 1;
        }
        new
    }

    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }
}

impl core::fmt::Display for InstructionBytes {
    /// Space-separated hexadecimal bytes, as a disassembler shows them.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (i, byte) in self.as_slice().iter().enumerate() {
            write!(f, "{}{byte:02x}", if i == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

impl core::fmt::Debug for InstructionBytes {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "[{self}]")
    }
}

/// In whose name a memory access is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// With the rights of the current privilege level.
    Current,
    /// A system access (descriptor tables, the TSS): with supervisor rights whatever the CPL is.
    System,
}

/// How the processor reads an instruction and makes an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// CR0.PE = 0.
    Real,
    /// RFLAGS.VM = 1.
    Virtual8086,
    /// Protected mode or long mode's compatibility mode: what the emulator does is the same in both.
    Protected,
    /// 64-bit mode.
    Long,
}

/// The vCPU, its memory and its buses, as one instruction sees them.
///
/// Memory is reached in two steps. [`Cpu::translate`] checks rights and names the guest-physical address; the accesses
/// themselves then cannot fail for the guest's reasons. The emulator translates everything that an instruction touches before
/// it makes the first access, splits accesses at page boundaries, and keeps a translation for as long as a REP string stays in
/// the page. A translation is used only for the rest of the current page, and only by the [`emulate`] call that asked for it.
pub trait Cpu {
    /// Iterations of a REP string until [`Outcome::Partial`] gives interrupts a chance. Zero is taken as one.
    const REP_BUDGET: u32 = 512;

    fn gprs(&self) -> &Gprs;
    fn gprs_mut(&mut self) -> &mut Gprs;
    /// One register; override it if some are cheaper to have than others.
    #[inline]
    fn gpr(&self, register: Gpr) -> u64 {
        self.gprs()[register]
    }
    /// Writes one register.
    #[inline]
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.gprs_mut()[register] = value;
    }
    fn rip(&self) -> u64;
    fn rflags(&self) -> u64;
    fn cr0(&self) -> u64;
    fn cr4(&self) -> u64;
    fn efer(&self) -> u64;
    /// XCR0, for the right to use AVX.
    fn xcr0(&self) -> u64;
    /// Current privilege level, 0..=3.
    fn cpl(&self) -> u8;
    fn segment(&self, register: SegmentRegister) -> Segment;
    /// Loads a data or stack segment register with its hidden part; the emulator has made all checks. Loading SS inhibits
    /// interrupts and debug traps until the next instruction is complete, which is the implementor's to arrange.
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment);
    /// GDTR, for loading segment registers.
    fn gdtr(&self) -> DescriptorTable;

    /// The guest-physical address of linear address `gva`, if the guest's paging allows the access; else the #PF (or #GP).
    /// Sets accessed and dirty bits. [`Access::Write`] is also asked for when the instruction reads first and writes then.
    fn translate(&mut self, gva: Gva, access: Access, privilege: Privilege) -> Result<Gpa, Stop>;

    /// The 15 bytes at RIP (and one that is not looked at), if they can be had without ado: all in one page of RAM that may be
    /// executed. Spares what [`Cpu::translate`] and [`Cpu::fetch`] do for one that has something special about it. `mode` is what
    /// [`Cpu::mode`] answers.
    #[inline]
    fn instruction(&mut self, _mode: Mode) -> Option<[u8; 16]> {
        None
    }

    /// What the exit was about, if it was one access to device memory: an instruction with a single memory operand must mean this
    /// address. Spares the translation of the operand, which the CPU has made already.
    #[inline]
    fn operand(&self) -> Option<Gpa> {
        None
    }

    /// Copies instruction bytes out of RAM. Never crosses a page, never touches a device: if `gpa` is not RAM, abort.
    fn fetch(&mut self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Stop>;

    /// Copies RAM. False, with `buf` as it was, if not all of it is RAM. Never crosses a page.
    fn read_ram(&mut self, gpa: Gpa, buf: &mut [u8]) -> bool;

    /// Reads `width` bytes of RAM or of a device; the result is zero above `width`. Never crosses a page, but may be misaligned.
    fn read(&mut self, gpa: Gpa, width: Width) -> Result<u64, Stop>;

    /// Writes `width` bytes to RAM or to a device; `value` is zero above `width`. Never crosses a page, but may be misaligned.
    fn write(&mut self, gpa: Gpa, width: Width, value: u64) -> Result<(), Stop>;

    /// Locked compare-and-exchange: if `width` bytes at `gpa` equal `old`, they become `new`. Returns what was found, so the
    /// exchange took place exactly if that equals `old`. Never crosses a page, but may be misaligned (a split lock).
    ///
    /// On device memory, which `old` was just read from, nothing can come between: write `new`, return `old`.
    fn compare_exchange(&mut self, gpa: Gpa, width: Width, old: u64, new: u64) -> Result<u64, Stop>;

    /// As [`Cpu::compare_exchange`], for 16 bytes at a 16-byte-aligned address (CMPXCHG16B).
    fn compare_exchange_16(&mut self, gpa: Gpa, old: u128, new: u128) -> Result<u128, Stop>;

    /// IN. The guest's right to the port (IOPL, TSS bitmap) has been checked.
    fn port_in(&mut self, port: u16, width: Width) -> Result<u32, Stop>;
    /// OUT. The guest's right to the port (IOPL, TSS bitmap) has been checked. `value` is zero above `width`.
    fn port_out(&mut self, port: u16, width: Width, value: u32) -> Result<(), Stop>;
    /// OUT of bytes, one after the other. Returns how many were written: all, unless one stops.
    fn port_out_bytes(&mut self, port: u16, bytes: &[u8]) -> (usize, Result<(), Stop>) {
        for (done, &byte) in bytes.iter().enumerate() {
            if let Err(stop) = self.port_out(port, Width::Byte, byte.into()) {
                return (done, Err(stop));
            }
        }
        (bytes.len(), Ok(()))
    }

    /// The low 256 bits of vector register `index` (0..=15), low half first; the high half is ignored without AVX. `None`: vector
    /// registers cannot be reached, and the instruction is unsupported.
    fn vector(&mut self, index: u8) -> Option<[u128; 2]>;
    /// Writes XMM register `index` and leaves the bits above as they are (legacy SSE). Called only after `vector` has answered.
    fn set_xmm(&mut self, index: u8, value: u128);
    /// Writes YMM register `index` and clears the bits above 255 (VEX). Called only after `vector` has answered.
    fn set_ymm(&mut self, index: u8, value: [u128; 2]);

    /// The mode and the code segment's default operand and address size in bits.
    #[inline(always)]
    fn mode(&self) -> (Mode, u32) {
        if self.in_64_bit_mode() { (Mode::Long, 64) } else { self.legacy_mode() }
    }

    /// True if the processor executes 64-bit code. Derived from the registers; override it if there is a cheaper way to know.
    #[inline]
    fn in_64_bit_mode(&self) -> bool {
        self.efer() & Efer::LMA.bits() != 0 && self.segment(SegmentRegister::Cs).attributes.long()
    }

    /// [`Cpu::mode`] of all but 64-bit code.
    #[doc(hidden)]
    fn legacy_mode(&self) -> (Mode, u32) {
        let cs = self.segment(SegmentRegister::Cs).attributes;
        let long_mode = self.efer() & Efer::LMA.bits() != 0;
        let size = if cs.big() { 32 } else { 16 };
        if self.cr0() & Cr0::PE.bits() == 0 {
            // CS keeps its D bit between clearing PE and the far jump that follows.
            (Mode::Real, size)
        } else if !long_mode && self.rflags() & Rflags::VM.bits() != 0 {
            (Mode::Virtual8086, 16)
        } else {
            (Mode::Protected, size)
        }
    }
}

/// Builds the full decoder's tables. They are allocated once, on the first use; call this at start-up, so that no exit pays for
/// it.
pub fn init() {
    let mut decoder = Decoder::new(64, &[0x90], DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    decoder.decode_out(&mut instruction);
}

/// Emulates the instruction at RIP.
///
/// `bytes` are the instruction's first bytes as far as the caller knows them (decode assists), possibly none. If they do not
/// hold a whole instruction, the rest is fetched through [`Cpu::translate`] and [`Cpu::fetch`], and a #PF or #GP met there is
/// the outcome; a second page is touched only if the instruction really reaches into it.
pub fn emulate<C: Cpu>(cpu: &mut C, bytes: &[u8]) -> Outcome {
    match plain_access(cpu, bytes) {
        Some(rip) => Outcome::Done { rip, rflags: cpu.rflags() & !Rflags::RF.bits() },
        None => with_ado(cpu, bytes),
    }
}

/// The part of [`emulate`] for what drivers do nearly always: an instruction that makes one plain access, and whose bytes are all known or
/// easily had. Returns RIP after it; no flag changes, but RF is to be cleared. `None` with nothing touched if it is not one;
/// [`with_ado`] knows what to do then.
fn plain_access<C: Cpu>(cpu: &mut C, bytes: &[u8]) -> Option<u64> {
    let mode = cpu.mode();
    let known = match bytes.first_chunk() {
        Some(bytes) => padded(bytes),
        None if bytes.is_empty() => cpu.instruction(mode.0)?,
        None => return None,
    };
    fast::run(cpu, mode, &known)
}

/// An instruction's bytes as the CPU supplies them, in the form in which [`Cpu::instruction`] does.
#[must_use]
pub fn padded(bytes: &[u8; MAX_INSTRUCTION]) -> [u8; 16] {
    let mut padded = [0; 16];
    for (to, from) in padded.iter_mut().zip(bytes) {
        *to = *from;
    }
    padded
}

/// The rest of [`emulate`], which knows every instruction.
#[inline(never)]
pub fn with_ado<C: Cpu>(cpu: &mut C, bytes: &[u8]) -> Outcome {
    let mode = cpu.mode();
    let mut machine = Machine::new(cpu, mode);
    let mut code = Code::new(bytes);
    if bytes.is_empty()
        && let Err(halt) = code.extend(&mut machine)
    {
        return outcome(&machine, &code, Err(halt));
    }
    general(&mut machine, &mut code)
}

/// [`emulate`] without the hand-written decoders: slower, and the same in everything else. For tests that compare the two.
#[doc(hidden)]
pub fn emulate_by_full_decoder<C: Cpu>(cpu: &mut C, bytes: &[u8]) -> Outcome {
    let mode = cpu.mode();
    let mut machine = Machine::new(cpu, mode);
    let mut code = Code::new(bytes);
    let result = decode_and_execute(&mut machine, &mut code);
    outcome(&machine, &code, result)
}

/// Everything but the plain accesses.
fn general<C: Cpu>(machine: &mut Machine<'_, C>, code: &mut Code) -> Outcome {
    let result = if let Some((length, op)) = string::decode(machine.bits, code.as_slice()) {
        machine.set_length(length);
        string::execute(machine, op)
    } else {
        decode_and_execute(machine, code)
    };
    outcome(machine, code, result)
}

fn decode_and_execute<C: Cpu>(machine: &mut Machine<'_, C>, code: &mut Code) -> Done {
    // Each round adds at least a byte, and at 15 bytes an error ends it.
    loop {
        let mut instruction = Instruction::default();
        let mut decoder = Decoder::with_ip(machine.bits, code.as_slice(), machine.rip, DecoderOptions::NONE);
        decoder.decode_out(&mut instruction);
        match decoder.last_error() {
            DecoderError::None => {
                machine.set_length(instruction.len());
                return exec::execute(machine, &instruction);
            }
            DecoderError::NoMoreBytes => code.extend(machine)?,
            // Nothing wrong within 15 bytes, but no end either.
            _ if decoder.position() == MAX_INSTRUCTION => return Err(Exception::GP.into()),
            // The CPU took it for an instruction, or the guest has changed it since. Either way, it is not known here.
            _ => return Err(Halt::Unsupported),
        }
    }
}

fn outcome<C: Cpu>(machine: &Machine<'_, C>, code: &Code, result: Done) -> Outcome {
    match result {
        Ok(()) => Outcome::Done { rip: machine.next, rflags: machine.rflags & !Rflags::RF.bits() },
        Err(Halt::Fault(exception)) => Outcome::Fault(exception),
        Err(Halt::Partial) => Outcome::Partial,
        Err(Halt::Unsupported) => Outcome::Unsupported(InstructionBytes::new(code.as_slice())),
        Err(Halt::Abort) => Outcome::Abort,
    }
}
