//! Segments: flat 64-bit code and data, and the task-state segment with the interrupt stacks (Intel SDM vol. 3A rev. 085, 3.4, 9.2, 9.7).

use core::arch::asm;

/// Selectors of the host. RPL and TI are zero, as the host-state area of a VMCS wants it.
pub const CODE: u16 = 0x08;
pub const DATA: u16 = 0x10;
pub const TSS: u16 = 0x18;

/// Code, present, DPL 0, 64-bit, accessed.
const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
/// Data, present, DPL 0, writable, accessed.
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;

/// Which interrupt-stack-table entry an exception uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Ist {
    Nmi = 1,
    DoubleFault = 2,
    MachineCheck = 3,
}

/// The 64-bit TSS (SDM vol. 3A, figure 9-11).
#[derive(Debug)]
#[repr(C, packed(4))]
pub struct TaskState {
    reserved_0: u32,
    rsp: [u64; 3],
    reserved_1: u64,
    ist: [u64; 7],
    reserved_2: u64,
    reserved_3: u16,
    io_map_base: u16,
}

const _: () = assert!(size_of::<TaskState>() == 104);

impl TaskState {
    #[must_use]
    pub const fn new() -> Self {
        Self {
            reserved_0: 0,
            rsp: [0; 3],
            reserved_1: 0,
            ist: [0; 7],
            reserved_2: 0,
            reserved_3: 0,
            // No I/O permission bitmap: there is no user mode.
            io_map_base: size_of::<Self>() as u16,
        }
    }

    /// Sets the stack that `ist` uses: the address after its last byte.
    pub fn set_stack(&mut self, ist: Ist, top: u64) {
        self.ist[ist as usize - 1] = top;
    }
}

impl Default for TaskState {
    fn default() -> Self {
        Self::new()
    }
}

/// The descriptor table: null, code, data, and a TSS in two entries.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct Gdt([u64; 5]);

/// The two halves of a descriptor for an available 64-bit TSS at `base`.
const fn tss_descriptor(base: u64) -> [u64; 2] {
    let limit = size_of::<TaskState>() as u64 - 1;
    let low = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Base addresses of this CPU's tables, for a VMCS host-state area: GDT, IDT, TSS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableBases {
    pub gdt: u64,
    pub idt: u64,
    pub tss: u64,
}

impl Gdt {
    #[must_use]
    pub const fn new() -> Self {
        Self([0, CODE_DESCRIPTOR, DATA_DESCRIPTOR, 0, 0])
    }

    /// Makes this the CPU's descriptor table and `tss` its task state, and reloads all segment registers. The GS base becomes zero.
    ///
    /// # Safety
    /// Both must stay where they are for as long as the CPU runs, and the code must run at CPL 0 in long mode.
    pub unsafe fn load(&mut self, tss: *const TaskState) {
        [self.0[3], self.0[4]] = tss_descriptor(tss as u64);
        let pointer = Pointer { limit: size_of::<Self>() as u16 - 1, base: self.0.as_ptr() as u64 };
        // SAFETY: the table is valid and stays; CS is reloaded by a far return to the next instruction.
        unsafe {
            asm!(
                "lgdt [{pointer}]",
                "push {code}",
                "lea {scratch}, [rip + 2f]",
                "push {scratch}",
                "retfq",
                "2:",
                "mov ds, {data:x}",
                "mov es, {data:x}",
                "mov ss, {data:x}",
                "mov fs, {null:x}",
                "mov gs, {null:x}",
                "lldt {null:x}",
                "ltr {tss:x}",
                pointer = in(reg) &raw const pointer,
                code = const CODE as i32,
                scratch = out(reg) _,
                data = in(reg) u32::from(DATA),
                null = in(reg) 0u32,
                tss = in(reg) u32::from(TSS),
            );
        }
    }
}

impl Default for Gdt {
    fn default() -> Self {
        Self::new()
    }
}

/// Where this CPU's tables are.
#[must_use]
pub fn table_bases() -> TableBases {
    let mut gdt = Pointer { limit: 0, base: 0 };
    let mut idt = Pointer { limit: 0, base: 0 };
    // SAFETY: both instructions store ten bytes at the given address.
    unsafe { asm!("sgdt [{}]", "sidt [{}]", in(reg) &raw mut gdt, in(reg) &raw mut idt, options(nostack, preserves_flags)) };
    let entry = (gdt.base + u64::from(TSS)) as *const u64;
    // SAFETY: `Gdt::load` made this table, which has a TSS descriptor of two words there.
    let (low, high) = unsafe { (entry.read(), entry.add(1).read()) };
    TableBases { gdt: gdt.base, idt: idt.base, tss: low >> 16 & 0xff_ffff | (low >> 56) << 24 | high << 32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tss_descriptor_scatters_the_base() {
        let [low, high] = tss_descriptor(0xffff_8123_4567_89ab);
        assert_eq!(low, 0x4500_8967_89ab_0067);
        assert_eq!(high, 0xffff_8123);
    }

    #[test]
    fn interrupt_stacks_are_where_the_cpu_looks() {
        let mut tss = TaskState::new();
        tss.set_stack(Ist::Nmi, 0x1122);
        tss.set_stack(Ist::MachineCheck, 0x3344);
        // SAFETY: plain old data, read as bytes.
        let bytes: [u8; 104] = unsafe { core::mem::transmute(tss) };
        assert_eq!(bytes[36..38], [0x22, 0x11]);
        assert_eq!(bytes[52..54], [0x44, 0x33]);
        assert_eq!(bytes[102], 104);
    }
}
