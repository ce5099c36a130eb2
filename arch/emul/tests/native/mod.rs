//! Runs one instruction on the host with given registers and memory, and says what it did.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use x86defs::SegmentRegister;

/// Where the instruction is put.
pub const CODE: u64 = 0x2000_0000;
/// Where its memory is: two writable pages, a read-only one, and a hole.
pub const SCRATCH: u64 = 0x3000_0000;

/// Registers to load and, afterwards, those that were found.
#[repr(C, align(64))]
struct Context {
    gprs: [u64; 16],
    rflags: u64,
    /// The test's own stack pointer meanwhile.
    stack: u64,
    code: u64,
    avx: u64,
    padding: [u64; 4],
    vectors: [[u128; 2]; 16],
}

static mut CONTEXT: Context =
    Context { gprs: [0; 16], rflags: 0, stack: 0, code: 0, avx: 0, padding: [0; 4], vectors: [[0; 2]; 16] };

/// What the signal handler found: trap number + 1, error code, CR2, RIP.
static FAULT: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

// The order of `Context::gprs` is that of instruction encodings. The flags go in before the registers, since POPF needs a
// stack; MOV leaves them alone.
global_asm!(
    ".globl emul_native_run",
    "emul_native_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "lea rax, [rip + {context}]",
    "mov [rax + 136], rsp",
    "cmp qword ptr [rax + 152], 0",
    "je 2f",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovups ymm\\n, [rax + 192 + 32 * \\n]",
    ".endr",
    "jmp 3f",
    "2:",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "movups xmm\\n, [rax + 192 + 32 * \\n]",
    ".endr",
    "3:",
    "push qword ptr [rax + 128]",
    "popfq",
    "mov rcx, [rip + {context} + 8]",
    "mov rdx, [rip + {context} + 16]",
    "mov rbx, [rip + {context} + 24]",
    "mov rsp, [rip + {context} + 32]",
    "mov rbp, [rip + {context} + 40]",
    "mov rsi, [rip + {context} + 48]",
    "mov rdi, [rip + {context} + 56]",
    "mov r8, [rip + {context} + 64]",
    "mov r9, [rip + {context} + 72]",
    "mov r10, [rip + {context} + 80]",
    "mov r11, [rip + {context} + 88]",
    "mov r12, [rip + {context} + 96]",
    "mov r13, [rip + {context} + 104]",
    "mov r14, [rip + {context} + 112]",
    "mov r15, [rip + {context} + 120]",
    "mov rax, [rip + {context}]",
    "jmp [rip + {context} + 144]",
    ".globl emul_native_after",
    "emul_native_after:",
    "mov [rip + {context}], rax",
    "mov [rip + {context} + 8], rcx",
    "mov [rip + {context} + 16], rdx",
    "mov [rip + {context} + 24], rbx",
    "mov [rip + {context} + 32], rsp",
    "mov [rip + {context} + 40], rbp",
    "mov [rip + {context} + 48], rsi",
    "mov [rip + {context} + 56], rdi",
    "mov [rip + {context} + 64], r8",
    "mov [rip + {context} + 72], r9",
    "mov [rip + {context} + 80], r10",
    "mov [rip + {context} + 88], r11",
    "mov [rip + {context} + 96], r12",
    "mov [rip + {context} + 104], r13",
    "mov [rip + {context} + 112], r14",
    "mov [rip + {context} + 120], r15",
    "mov rsp, [rip + {context} + 136]",
    "lea rax, [rip + {context}]",
    "pushfq",
    "pop qword ptr [rax + 128]",
    "push 2",
    "popfq",
    "cmp qword ptr [rax + 152], 0",
    "je 2f",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovups [rax + 192 + 32 * \\n], ymm\\n",
    ".endr",
    "vzeroupper",
    "jmp 3f",
    "2:",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "movups [rax + 192 + 32 * \\n], xmm\\n",
    ".endr",
    "3:",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    context = sym CONTEXT,
);

unsafe extern "C" {
    fn emul_native_run();
    fn emul_native_after();
}

#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub vector: u8,
    pub error: u32,
    pub cr2: u64,
}

pub struct Found {
    pub gprs: [u64; 16],
    pub rflags: u64,
    pub vectors: [[u128; 2]; 16],
    pub memory: Vec<u8>,
    pub fault: Option<Fault>,
    /// Where the instruction branched to; `None`: to the next one.
    pub rip: Option<u64>,
}

/// The one user of the trampoline. Not `Send`: the alternate signal stack belongs to the thread.
pub struct Host {
    pub avx: bool,
    _not_send: core::marker::PhantomData<*const ()>,
}

extern "C" fn handler(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: clears AC, with which the instruction may have been running, by a balanced push and pop.
    unsafe {
        core::arch::asm!("pushfq", "and qword ptr [rsp], {mask}", "popfq", mask = const !0x40000i32);
    }
    // SAFETY: the kernel passes a valid `ucontext_t` to a SA_SIGINFO handler.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize] as u64;
    if rip != CODE {
        // A fault of the test itself: nothing can be recovered.
        // SAFETY: ends the process.
        unsafe { libc::abort() };
    }
    FAULT[0].store(registers[libc::REG_TRAPNO as usize] as u64 + 1, Relaxed);
    FAULT[1].store(registers[libc::REG_ERR as usize] as u64, Relaxed);
    FAULT[2].store(registers[libc::REG_CR2 as usize] as u64, Relaxed);
    registers[libc::REG_RIP as usize] = emul_native_after as *const () as usize as i64;
}

/// Maps `len` bytes at `at`, which nothing else may use.
fn map(at: u64, len: usize, protection: i32) {
    // SAFETY: MAP_FIXED_NOREPLACE fails where something is mapped already, so no memory of the process is lost.
    let got = unsafe {
        libc::mmap(
            at as *mut libc::c_void,
            len,
            protection,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    assert_eq!(got as u64, at, "the test's addresses are taken");
}

fn protect(at: u64, len: usize, protection: i32) {
    // SAFETY: only the pages mapped by `map` are changed.
    assert_eq!(unsafe { libc::mprotect(at as *mut libc::c_void, len, protection) }, 0);
}

impl Host {
    pub fn new(gs_base: u64) -> Self {
        map(CODE, 4096, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
        map(SCRATCH, 4 * 4096, libc::PROT_READ | libc::PROT_WRITE);
        protect(SCRATCH + 3 * 4096, 4096, libc::PROT_NONE);
        let stack = Box::leak(vec![0u8; 65536].into_boxed_slice());
        // SAFETY: the stack lives forever; the handler is async-signal-safe; GS is not used by Rust or libc on x86-64 Linux.
        unsafe {
            let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
            assert_eq!(libc::sigaltstack(&alternate, core::ptr::null_mut()), 0);
            let mut action: libc::sigaction = core::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL] {
                assert_eq!(libc::sigaction(signal, &action, core::ptr::null_mut()), 0);
            }
            const ARCH_SET_GS: i32 = 0x1001;
            assert_eq!(libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, gs_base), 0);
        }
        Self { avx: std::is_x86_feature_detected!("avx"), _not_send: core::marker::PhantomData }
    }

    /// The address that ends a native run: the only one that a branch may go to.
    pub fn after(&self) -> u64 {
        emul_native_after as *const () as u64
    }

    pub fn run(&mut self, code: &[u8], gprs: &[u64; 16], rflags: u64, vectors: &[[u128; 2]; 16], memory: &[u8]) -> Found {
        assert!(code.len() <= 15 && memory.len() == 3 * 4096);
        protect(SCRATCH + 2 * 4096, 4096, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: the pages are mapped writable and belong to this value alone.
        unsafe { core::slice::from_raw_parts_mut(SCRATCH as *mut u8, memory.len()) }.copy_from_slice(memory);
        protect(SCRATCH + 2 * 4096, 4096, libc::PROT_READ);

        // After the instruction: a jump to the end, by a pointer that is aligned, since AC may be set.
        // SAFETY: as above, for the code page.
        let page = unsafe { core::slice::from_raw_parts_mut(CODE as *mut u8, 64) };
        page.fill(0xcc);
        page[..code.len()].copy_from_slice(code);
        const POINTER: usize = 48;
        page[code.len()..code.len() + 6].copy_from_slice(&[0xff, 0x25, (POINTER - 6 - code.len()) as u8, 0, 0, 0]);
        page[POINTER..POINTER + 8].copy_from_slice(&self.after().to_le_bytes());
        let branches = matches!(strip_prefixes(code), [0xff, modrm, ..] if matches!(modrm >> 3 & 7, 2 | 4))
            || matches!(strip_prefixes(code), [0xc2 | 0xc3, ..]);

        FAULT[0].store(0, Relaxed);
        // SAFETY: `Host` is the only user of the context. The trampoline keeps the ABI; the instruction touches only the
        // scratch pages, by the test's choice of operands, and a fault of it is turned into a jump to the trampoline's end.
        let (gprs, rflags, vectors) = unsafe {
            let context = &raw mut CONTEXT;
            (*context).gprs = *gprs;
            (*context).rflags = rflags;
            (*context).code = CODE;
            (*context).avx = u64::from(self.avx);
            (*context).vectors = *vectors;
            emul_native_run();
            ((*context).gprs, (*context).rflags, (*context).vectors)
        };
        // SAFETY: as above; the pages are readable.
        let memory = unsafe { core::slice::from_raw_parts(SCRATCH as *const u8, memory.len()) }.to_vec();
        let fault = match FAULT[0].load(Relaxed) {
            0 => None,
            trap => Some(Fault { vector: (trap - 1) as u8, error: FAULT[1].load(Relaxed) as u32, cr2: FAULT[2].load(Relaxed) }),
        };
        Found { gprs, rflags, vectors, memory, fault, rip: branches.then(|| self.after()) }
    }
}

fn strip_prefixes(code: &[u8]) -> &[u8] {
    let start =
        code.iter().position(|byte| !matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 | 0x40..=0x4f));
    &code[start.unwrap_or(0)..]
}

/// The host's selectors, which MOV from a segment register shows.
pub fn selectors() -> [(SegmentRegister, u16); 4] {
    let (es, cs, ss, ds): (u16, u16, u16, u16);
    // SAFETY: reads four segment registers.
    unsafe {
        core::arch::asm!(
            "mov {es:x}, es", "mov {cs:x}, cs", "mov {ss:x}, ss", "mov {ds:x}, ds",
            es = out(reg) es, cs = out(reg) cs, ss = out(reg) ss, ds = out(reg) ds,
        );
    }
    [(SegmentRegister::Es, es), (SegmentRegister::Cs, cs), (SegmentRegister::Ss, ss), (SegmentRegister::Ds, ds)]
}
