//! IDT with a stub per vector, handlers as plain functions, and a way to catch one exception.

use super::smp::{MAX_CPUS, this_cpu};
use core::{
    arch::{asm, global_asm},
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

/// What the stubs push, lowest address first.
#[repr(C)]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

global_asm!(
    r#"
    .section .text
    .altmacro
    .macro stub n
    .align 16
    .if (\n == 8) || (\n >= 10 && \n <= 14) || (\n == 17) || (\n == 21) || (\n == 29) || (\n == 30)
    .else
    push 0
    .endif
    push \n
    jmp stub_common
    .endm
    .align 16
    .global stubs
stubs:
    .set n, 0
    .rept 256
    stub %n
    .set n, n + 1
    .endr
stub_common:
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    mov rdi, rsp
    cld
    mov rbx, rsp
    and rsp, -16
    call guest_interrupt
    mov rsp, rbx
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    add rsp, 16
    iretq
"#
);

unsafe extern "C" {
    static stubs: u8;
}

#[repr(C, align(16))]
struct Idt(UnsafeCell<[[u64; 2]; 256]>);
// SAFETY: written before interrupts are on and other processors use it, or by a case that has only one.
unsafe impl Sync for Idt {}
static IDT: Idt = Idt(UnsafeCell::new([[0; 2]; 256]));

static HANDLERS: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];
/// On each processor.
static COUNTS: [[AtomicU32; 256]; MAX_CPUS] = [const { [const { AtomicU32::new(0) }; 256] }; MAX_CPUS];

pub fn init() {
    for vector in 0..256usize {
        set_gate(vector as u8, 0x8e, 0);
    }
    load();
}

/// Makes this processor use the table.
pub fn load() {
    let pointer: [u16; 5] = {
        let base = IDT.0.get() as u64;
        [4095, base as u16, (base >> 16) as u16, (base >> 32) as u16, (base >> 48) as u16]
    };
    // SAFETY: the table is static and filled in.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(nostack)) };
}

/// Sets the gate's type byte (0x8e interrupt gate, 0xee for DPL 3) and IST index.
pub fn set_gate(vector: u8, kind: u8, ist: u8) {
    // SAFETY: stubs are 16 bytes apart; the address is only computed.
    let address = unsafe { (&raw const stubs).add(usize::from(vector) * 16) } as u64;
    let low = address & 0xffff | 8 << 16 | u64::from(ist) << 32 | u64::from(kind) << 40 | (address >> 16 & 0xffff) << 48;
    // SAFETY: as said at `Idt`.
    unsafe { (*IDT.0.get())[usize::from(vector)] = [low, address >> 32] };
}

/// Calls `handler` for each interrupt of `vector` from now on.
pub fn on_interrupt(vector: u8, handler: fn(&mut Frame)) {
    HANDLERS[usize::from(vector)].store(handler as usize, Ordering::SeqCst);
}

/// Interrupts and exceptions of `vector` so far, on the boot processor.
pub fn count(vector: u8) -> u32 {
    count_on(0, vector)
}

/// Those of processor `cpu`.
pub fn count_on(cpu: usize, vector: u8) -> u32 {
    COUNTS[cpu][usize::from(vector)].load(Ordering::SeqCst)
}

pub fn clear_count(vector: u8) {
    COUNTS[0][usize::from(vector)].store(0, Ordering::SeqCst);
}

/// An exception as [`catch`] saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caught {
    pub vector: u8,
    pub error: u64,
    pub rip: u64,
}

static CATCHING: AtomicBool = AtomicBool::new(false);
static RESUME_RIP: AtomicU64 = AtomicU64::new(0);
static RESUME_RSP: AtomicU64 = AtomicU64::new(0);
static RESUME_RBP: AtomicU64 = AtomicU64::new(0);
static CAUGHT_VECTOR: AtomicU64 = AtomicU64::new(u64::MAX);
static CAUGHT_ERROR: AtomicU64 = AtomicU64::new(0);
static CAUGHT_RIP: AtomicU64 = AtomicU64::new(0);

#[unsafe(no_mangle)]
extern "C" fn guest_interrupt(frame: &mut Frame) {
    let vector = frame.vector as u8;
    let count = || COUNTS[this_cpu()][usize::from(vector)].fetch_add(1, Ordering::SeqCst);
    if vector < 32 && vector != 2 && CATCHING.swap(false, Ordering::SeqCst) {
        count();
        CAUGHT_VECTOR.store(frame.vector, Ordering::SeqCst);
        CAUGHT_ERROR.store(frame.error, Ordering::SeqCst);
        CAUGHT_RIP.store(frame.rip, Ordering::SeqCst);
        frame.rip = RESUME_RIP.load(Ordering::SeqCst);
        frame.rsp = RESUME_RSP.load(Ordering::SeqCst);
        frame.rbp = RESUME_RBP.load(Ordering::SeqCst);
        frame.cs = 8;
        frame.ss = 16;
        frame.rflags &= !(1 << 8);
        return;
    }
    let handler = HANDLERS[usize::from(vector)].load(Ordering::SeqCst);
    if handler != 0 {
        // SAFETY: only `on_interrupt` stores here, and only such function pointers.
        let handler: fn(&mut Frame) = unsafe { core::mem::transmute(handler) };
        handler(frame);
        // Whoever waits for the count may rely on the handler's EOI.
        count();
        return;
    }
    panic!("unexpected vector {vector}, error {:#x}, rip {:#x}, cr2 {:#x}", frame.error, frame.rip, super::cpu::read_cr2());
}

extern "C" fn call_body<F: FnOnce()>(body: *mut Option<F>) {
    // SAFETY: `catch` passes a pointer to its own local, which outlives the call.
    if let Some(body) = unsafe { (*body).take() } {
        body();
    }
}

/// Runs `body`; an exception in it (not an NMI) ends it there and is returned.
pub fn catch<F: FnOnce()>(body: F) -> Option<Caught> {
    let mut body = Some(body);
    CAUGHT_VECTOR.store(u64::MAX, Ordering::SeqCst);
    CATCHING.store(true, Ordering::SeqCst);
    // SAFETY: saves where to go on, then calls the body. If an exception ends the body, the handler restores RSP and RBP and
    // jumps to label 2; every callee-saved register but those two and RBX is declared clobbered, RBX is saved on the stack.
    unsafe {
        asm!(
            "push rbx",
            "lea rax, [rip + 2f]",
            "mov [rip + {rip}], rax",
            "mov [rip + {rsp}], rsp",
            "mov [rip + {rbp}], rbp",
            "mov rbx, rsp",
            "and rsp, -16",
            "call rcx",
            "mov rsp, rbx",
            "2:",
            "pop rbx",
            in("rcx") call_body::<F> as extern "C" fn(*mut Option<F>),
            rip = sym RESUME_RIP,
            rsp = sym RESUME_RSP,
            rbp = sym RESUME_RBP,
            in("rdi") &raw mut body,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            clobber_abi("C"),
        );
    }
    CATCHING.store(false, Ordering::SeqCst);
    let vector = CAUGHT_VECTOR.load(Ordering::SeqCst);
    (vector != u64::MAX).then(|| Caught {
        vector: vector as u8,
        error: CAUGHT_ERROR.load(Ordering::SeqCst),
        rip: CAUGHT_RIP.load(Ordering::SeqCst),
    })
}

/// RDMSR; `Err` if it raised #GP(0).
pub fn catch_msr_read(index: u32) -> Result<u64, Caught> {
    let mut value = 0;
    match catch(|| value = super::rdmsr(index)) {
        None => Ok(value),
        Some(caught) => Err(caught),
    }
}

/// WRMSR; `Err` if it raised an exception.
pub fn catch_msr_write(index: u32, value: u64) -> Result<(), Caught> {
    catch(|| super::wrmsr(index, value)).map_or(Ok(()), Err)
}
