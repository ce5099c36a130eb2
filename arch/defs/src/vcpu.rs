//! The contract that both vendors fulfil: a vCPU that runs until it has a question.

use core::sync::atomic::AtomicU32;

use crate::{
    Cr0, DescriptorTable, Efer, Exception, Exit, Gpa, Gpr, Gprs, Resume, Segment, SegmentRegister, TaskSwitch,
    paging::PagingContext,
};

/// The architectural state of a vCPU as plain data: set at INIT and at start, read for dumps, later saved and migrated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct VcpuState {
    pub gprs: Gprs,
    pub rip: u64,
    pub rflags: u64,
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: DescriptorTable,
    pub idtr: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub dr6: u64,
    pub dr7: u64,
}

impl VcpuState {
    /// The state after RESET (SDM vol. 3A, table 11-1): real mode at f000:fff0. `signature` is CPUID.1:EAX, which lands in EDX.
    #[must_use]
    pub fn reset(signature: u32) -> Self {
        let data = Segment::real_mode(0, 3);
        let mut gprs = Gprs::default();
        gprs[Gpr::Rdx] = u64::from(signature);
        Self {
            gprs,
            rip: 0xfff0,
            rflags: 2,
            cs: Segment { selector: 0xf000, base: 0xffff_0000, ..Segment::real_mode(0xf000, 0xb) },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            ldtr: Segment { attributes: crate::SegmentAttributes(0x82), limit: 0xffff, ..Segment::default() },
            tr: Segment { attributes: crate::SegmentAttributes(0x8b), limit: 0xffff, ..Segment::default() },
            gdtr: DescriptorTable { base: 0, limit: 0xffff },
            idtr: DescriptorTable { base: 0, limit: 0xffff },
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: Efer::empty().bits(),
            dr6: 0xffff_0ff0,
            dr7: 0x400,
        }
    }

    /// The state after INIT (the same table): as after RESET, but CR0.CD and CR0.NW stay as in `cr0`. What is not part of this state stays
    /// altogether: x87 and vector registers, XCR0, the TSC, MTRRs, PAT and other MSRs.
    #[must_use]
    pub fn init(signature: u32, cr0: u64) -> Self {
        let kept = (Cr0::CD | Cr0::NW).bits();
        let reset = Self::reset(signature);
        Self { cr0: reset.cr0 & !kept | cr0 & kept, ..reset }
    }

    /// Where a SIPI starts a processor (11.4.4): in real mode at the first byte of 4-KiB page `page`.
    pub fn start_at_page(&mut self, page: u8) {
        self.cs = Segment { base: u64::from(page) << 12, ..Segment::real_mode(u16::from(page) << 8, 0xb) };
        self.rip = 0;
    }
}

/// Who has the register page of a virtual local APIC: the architectural layout, in x2APIC mode as in xAPIC mode.
pub trait VirtualApicPage: Send + Sync {
    /// The page, 4-KiB aligned, which stays where it is for as long as its owner lives. The CPU reads and writes it by itself.
    fn registers(&self) -> &[AtomicU32; 1024];
}

/// How a guest reaches a local APIC that the CPU virtualises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApicAccess {
    /// xAPIC mode, with the register page at [`LOCAL_APIC`].
    Memory,
    /// x2APIC mode.
    Msrs,
}

/// Where local APICs have their register page, unless they are told otherwise (SDM vol. 3A, 11.4.1).
pub const LOCAL_APIC: Gpa = Gpa(0xfee0_0000);

/// The vendor layer does not hold this MSR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownMsr(pub u32);

/// Who has a vCPU `V` and answers its questions.
pub trait Owner<V> {
    /// What an answer leads to.
    type Outcome;

    fn vcpu(&mut self) -> &mut V;

    /// Answers an exit of the vCPU.
    fn answer(&mut self, exit: Exit) -> Self::Outcome;
}

/// A virtual CPU on one vendor's hardware.
///
/// Life of an entry: `load` (once, when this pCPU takes the vCPU), then any number of `run`, then `unload`. All other methods may be
/// called at any time while the caller owns the vCPU; between `load` and `unload` only on the pCPU that loaded it.
pub trait Vcpu: Send {
    /// Makes this pCPU hold the vCPU's lazily switched state (x87/SSE/AVX, XCR0, DR0-3, SYSCALL MSRs ...; VMX: current VMCS).
    fn load(&mut self);
    /// Takes that state out of this pCPU again.
    fn unload(&mut self);

    /// Enters the guest, and lets the vCPU's owner answer its next question. Only while loaded.
    /// Called with host interrupts disabled; returns so, having served any host interrupt that ended the entry.
    ///
    /// The answer is given here and not by the caller so that it can be inlined behind each kind of exit: what is known there, the kind,
    /// need not be written to memory and found out again.
    fn run<O: Owner<Self>>(owner: &mut O) -> O::Outcome
    where
        Self: Sized;

    /// Completes the last exit with `resume`, its answer. Once for each exit at most; without it, the guest executes the same
    /// instruction again. Only while loaded.
    ///
    /// Made to be inlined where the kind of answer is known, so that nothing is left of [`Resume`] but the registers it writes.
    fn complete(&mut self, resume: Resume);

    fn gprs(&self) -> &Gprs;
    fn gprs_mut(&mut self) -> &mut Gprs;
    /// One register, which may be cheaper to have than all.
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
    fn cr3(&self) -> u64;
    fn cr4(&self) -> u64;
    /// As the guest sees it: without the bits that the vendor layer sets for itself.
    fn efer(&self) -> u64;
    fn segment(&self, register: SegmentRegister) -> Segment;
    /// Loads a segment register with its hidden part, as the instruction emulator does; the caller has made all checks.
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment);
    /// The low 256 bits of vector register `index` (0..=15), low half first; the high half is zero without AVX. Only while loaded.
    fn vector(&mut self, index: u8) -> [u128; 2];
    /// Writes the low 128 bits of vector register `index` and leaves the rest (legacy SSE). Only while loaded.
    fn set_xmm(&mut self, index: u8, value: u128);
    /// Writes 256 bits of vector register `index` and clears the rest (VEX). Only while loaded, and only if the guest has AVX on.
    fn set_ymm(&mut self, index: u8, value: [u128; 2]);
    /// Current privilege level, 0..=3.
    fn cpl(&self) -> u8;
    /// True if the guest executes 64-bit code.
    fn in_64_bit_mode(&self) -> bool;
    /// What the guest's own paging depends on.
    fn paging(&self) -> PagingContext;
    /// Bytes of the exiting instruction, as far as the CPU supplied them (SVM decode assists); empty if it did not.
    fn instruction_bytes(&self) -> &[u8];

    fn state(&self) -> VcpuState;
    fn set_state(&mut self, state: &VcpuState);
    /// The answer to [`Exit::TaskSwitch`]: the guest goes on in the new task with these registers. The event that has led there is delivered,
    /// unless `exception`, which comes before the task's first instruction, is a fault that merges with it.
    fn enter_task(&mut self, switch: &TaskSwitch, state: &VcpuState, exception: Option<Exception>);

    /// An MSR whose value the vendor layer or the CPU holds: EFER, PAT, FS/GS/KERNEL_GS base, STAR, LSTAR, CSTAR, FMASK,
    /// SYSENTER_CS/ESP/EIP, TSC_AUX, DEBUGCTL. Others: `Err`.
    fn read_msr(&self, index: u32) -> Result<u64, UnknownMsr>;
    /// Writes such an MSR with a value that `hv` has checked.
    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), UnknownMsr>;
    /// XCR0 for the guest; the caller has checked it against the host's supported bits.
    fn set_xcr0(&mut self, value: u64);
    fn xcr0(&self) -> u64;
    /// Guest TSC = host TSC + offset (mod 2^64).
    fn set_tsc_offset(&mut self, offset: u64);

    /// True if an external interrupt can be delivered at the next entry: IF set, no STI/MOV-SS shadow, no event already queued.
    fn can_take_interrupt(&self) -> bool;
    /// Queues external interrupt `vector` for the next entry. Call only if `can_take_interrupt`.
    fn inject_interrupt(&mut self, vector: u8);
    /// Asks (or stops asking) for [`Exit::InterruptWindow`] as soon as the guest can take an interrupt.
    fn request_interrupt_window(&mut self, wanted: bool);
    /// True if an NMI can be delivered at the next entry: not blocked by an earlier NMI, no shadow, no event queued.
    fn can_take_nmi(&self) -> bool;
    /// True if the guest has taken an NMI and not executed IRET since: one more can wait, and no others.
    fn is_in_nmi(&self) -> bool;
    fn inject_nmi(&mut self);
    fn request_nmi_window(&mut self, wanted: bool);
    /// Queues an exception that is not the answer to an exit (a trap such as #DB after an emulated instruction).
    fn inject_exception(&mut self, exception: Exception);

    /// True if some CPU of this vendor can virtualise local APICs; if not, nothing of it needs to be compiled.
    const CAN_VIRTUALISE_APIC: bool = false;
    /// True if this vCPU's can be virtualised by the CPU: the guest then reads and writes the page by itself where that is enough, keeps TPR (and
    /// CR8), does EOI and interrupts itself without an exit. The rest is as without: exits by RDMSR and WRMSR, or stage-2 faults.
    fn can_virtualise_apic(&self, _access: ApicAccess) -> bool {
        false
    }
    /// Starts, with the highest vector in service (0: none), or stops that. No vector is requested then.
    fn virtualise_apic(&mut self, _start: Option<(ApicAccess, u8)>) {}
    /// The highest vector in service has changed behind the CPU's back.
    fn set_in_service(&mut self, _vector: u8) {}
    /// The highest vector that the page's IRR requests; 0: none. The CPU delivers it and those behind it when the guest can take them.
    fn request_virtual_interrupt(&mut self, _vector: u8) {}
    /// The vectors whose EOI must end in [`Exit::VirtualEoi`].
    fn set_eoi_exits(&mut self, _vectors: &[u32; 8]) {}

    /// Drops cached guest-linear and guest-physical translations of this vCPU before its next entry.
    fn flush_tlb(&mut self);

    /// Vendor-specific details of the last exit, for a crash dump.
    fn dump(&self, out: &mut dyn core::fmt::Write) -> core::fmt::Result;
}
