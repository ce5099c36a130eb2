//! An exit is a typed question; [`Resume`] is its typed answer.
//!
//! `arch` turns vendor exit codes into [`Exit`]; `hv` decides and answers with [`Resume`]; `arch` completes the instruction
//! (result registers, RIP, interrupt shadow, RF, single-step trap). `hv` never sees an instruction length.

use crate::{CpuidResult, Exception, Gpa};

/// Width of a port or memory access.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Width {
    Byte = 1,
    Word = 2,
    Dword = 4,
    Qword = 8,
}

impl Width {
    /// 1, 2, 4 or 8.
    #[inline]
    #[must_use]
    pub const fn bytes(self) -> usize {
        self as usize
    }
    /// All-ones in this width: what an access that nobody claims reads.
    #[inline]
    #[must_use]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self as u32)
    }
    /// The width of `bytes` bytes, if there is one.
    #[must_use]
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }
}

/// What a memory access wanted to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    Write,
    Execute,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlRegister {
    Cr0,
    Cr3,
    Cr4,
    Cr8,
}

/// Why the guest switches tasks (SDM vol. 3A, 9.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskSwitchReason {
    Call,
    Iret,
    Jmp,
    /// A task gate in the IDT.
    Gate {
        /// What the event pushes, if anything.
        error_code: Option<u32>,
        /// The event comes from no INT n, INT3 or INTO: faults on the way say so in their error codes (EXT).
        external: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TaskSwitch {
    /// Of the new task's TSS.
    pub selector: u16,
    pub reason: TaskSwitchReason,
    /// RIP as the old task's TSS is to keep it: behind a CALL, JMP, IRET or INT n, at the instruction that has raised a fault.
    pub rip: u64,
    /// RFLAGS.RF as the old task's TSS is to keep it.
    pub resume_flag: bool,
}

/// The processor refused to enter the guest: the state or the control block is invalid. A bug of ours, or a CPU without a feature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryFailure {
    /// VMX: VM-instruction error or basic exit reason 33/34/41; SVM: exit code (-1 is VMEXIT_INVALID).
    pub code: u64,
    /// VMX exit qualification; SVM EXITINFO1.
    pub info: u64,
}

/// Why the guest stopped running, as a question to the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// IN. Answer: [`Resume::PortRead`].
    PortRead {
        port: u16,
        width: Width,
    },
    /// OUT. Answer: [`Resume::Advance`].
    PortWrite {
        port: u16,
        width: Width,
        value: u32,
    },
    /// INS or OUTS, with or without REP. Answered by the instruction emulator.
    PortString {
        port: u16,
        width: Width,
        write: bool,
    },
    /// An access that stage 2 does not map, or maps with fewer rights. Answered by the instruction emulator or a fault.
    Stage2Fault {
        gpa: Gpa,
        access: Access,
    },
    /// The guest's own page table at `gpa` is where stage 2 maps nothing. Answered as [`Exit::Stage2Fault`].
    TableFault {
        gpa: Gpa,
    },
    /// Answer: [`Resume::Cpuid`].
    Cpuid {
        leaf: u32,
        subleaf: u32,
    },
    /// Answer: [`Resume::MsrRead`] or a #GP.
    MsrRead {
        index: u32,
    },
    /// Answer: [`Resume::Advance`] or a #GP.
    MsrWrite {
        index: u32,
        value: u64,
    },
    /// MOV from a control register that is intercepted. Answer: [`Resume::ControlRead`].
    ControlRead {
        register: ControlRegister,
    },
    /// MOV to CR, LMSW or CLTS, given as the full value the register would take. Answer: [`Resume::ControlWrite`] or a fault.
    ControlWrite {
        register: ControlRegister,
        value: u64,
    },
    /// Answer: [`Resume::Advance`] once the vCPU has been put to sleep.
    Hlt,
    /// PAUSE or a pause loop. Answer: [`Resume::Advance`].
    Pause,
    /// VMCALL or VMMCALL. Answer: [`Resume::Hypercall`].
    Hypercall,
    /// WBINVD or INVD. Answer: [`Resume::Advance`].
    CacheFlush,
    /// XSETBV. Answer: [`Resume::Advance`] after the value was accepted by [`crate::Vcpu::set_xcr0`], or a #GP.
    Xsetbv {
        index: u32,
        value: u64,
    },
    /// MONITOR, MWAIT, RDPMC, VMX, SVM, SMX ... instructions of features that the guest does not have.
    UndefinedInstruction,
    /// RDPMC: answered with a #GP while performance counters are hidden.
    Rdpmc {
        index: u32,
    },
    /// RDTSC or RDTSCP, only when intercepted. Answer: [`Resume::Tsc`].
    Rdtsc,
    /// An exception that the hypervisor asked to see. Answer: `Resume::Fault` to pass it on.
    Exception(Exception),
    /// Answer: [`crate::Vcpu::enter_task`], or a fault of the old task.
    TaskSwitch(TaskSwitch),
    /// The guest can take an external interrupt now ([`crate::Vcpu::request_interrupt_window`]). Answer: [`Resume::Retry`].
    InterruptWindow,
    /// The guest can take an NMI now. Answer: [`Resume::Retry`].
    NmiWindow,
    /// A host interrupt arrived and has been served by its handler. Answer: [`Resume::Retry`].
    HostInterrupt,
    /// The guest has run for as long as it may at a time on a CPU that does not always leave it for host interrupts; those that had come have been
    /// served. Answer: [`Resume::Retry`].
    TurnOver,
    /// A host NMI arrived and has been served. Answer: [`Resume::Retry`].
    HostNmi,
    /// The CPU has done the EOI of a vector that [`crate::Vcpu::set_eoi_exits`] names. Answer: [`Resume::Retry`].
    VirtualEoi {
        vector: u8,
    },
    /// The CPU has written a register of the local APIC's page, at this offset, and what the write does is left to do. Answer:
    /// [`Resume::Retry`].
    VirtualApicWrite {
        offset: u32,
    },
    /// Triple fault: the guest's CPU is in shutdown.
    TripleFault,
    /// An exit that Bulkhead did not ask for and does not know.
    Unknown {
        code: u64,
        info: u64,
    },
    EntryFailed(EntryFailure),
}

/// How the guest goes on: the answer to an [`Exit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resume {
    /// Enter at the same RIP: nothing was completed, or the state was set by other means.
    Retry,
    /// The instruction is complete and has no result.
    Advance,
    /// IN is complete; the low `width` bytes go to AL/AX/EAX.
    PortRead(u32),
    Cpuid(CpuidResult),
    /// RDMSR is complete: EDX:EAX.
    MsrRead(u64),
    /// VMCALL or VMMCALL is complete: RAX.
    Hypercall(u64),
    /// RDTSC(P) is complete.
    Tsc(u64),
    ControlRead(u64),
    /// The control register takes this value, which `hv` has checked.
    ControlWrite(u64),
    /// The instruction emulator finished an instruction that changes no flags: new RIP. GPRs were written in place.
    AdvanceTo(u64),
    /// The instruction emulator finished the instruction: new RIP and RFLAGS. GPRs were written in place.
    Emulated {
        rip: u64,
        rflags: u64,
    },
    /// The instruction did not complete; this exception is raised instead, with RIP at the instruction.
    Fault(Exception),
}
