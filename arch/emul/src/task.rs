//! Hardware task switches: what CALL, JMP, IRET and events do with a task gate or a TSS.
//!
//! The CPU has judged the gate and the right to use it before it gave up; the rest is done here, on a copy of the vCPU's registers. Up to the
//! point where the new task's registers are in force, a fault is the old task's, and nothing but the old task's TSS and busy bits has
//! changed; from there on, it is the new task's.
//!
//! Manual: Intel SDM vol. 3A rev. 085, chapter 9 "Task Management"; AMD APM vol. 2, 24593 rev. 3.42, chapter 12, agrees.

use x86defs::{
    Access, Cr0, Exception, Gpa, Gpr, GuestMemory, GuestMemoryExt, Gva, PAGE_SIZE, Rflags, Segment, SegmentAttributes,
    TaskSwitch, TaskSwitchReason, VcpuState, Width,
    paging::{self, PagingContext, TranslateError},
};

/// Carries out `switch`, which has been asked for by a guest with the registers `state`; they become the new task's. Not in long mode, where
/// there are no tasks. An exception that comes back comes before the new task's first instruction: a fault of its own, or the trap that its TSS
/// asks for.
///
/// # Errors
/// A fault of the old task, whose registers are as they were; or there is no telling what would happen, because a page table lies outside of RAM.
pub fn switch<M: GuestMemory + ?Sized>(
    memory: &M,
    state: &mut VcpuState,
    switch: &TaskSwitch,
) -> Result<Option<Exception>, TranslateError> {
    let ext = match switch.reason {
        TaskSwitchReason::Gate { external, .. } => u32::from(external),
        _ => 0,
    };
    let mut tasks = Tasks { memory, state, ext };
    let (tss, window) = tasks.leave_old(switch)?;
    tasks.enter_new(switch, &tss, &window)
}

type Done<T = ()> = Result<T, TranslateError>;

/// Of a system descriptor: TSS types differ in bit 1, busy, and in bit 3, 32-bit.
const BUSY: u16 = 1 << 1;
const TSS_32: u16 = 1 << 3;

/// DR6.BT: the #DB comes from the T bit of a TSS.
const DR6_BT: u64 = 1 << 15;
/// L0 to L3 and LE in DR7: breakpoints of one task.
const DR7_LOCAL: u64 = 0x155;

/// What a 32-bit and a 16-bit TSS have where (9.2.1, 9.6).
struct Layout {
    /// Bytes up to the last that is read, and the least limit.
    size: usize,
    /// EIP, EFLAGS and eight general-purpose registers follow each other here.
    registers: usize,
    /// Bytes of a register.
    width: usize,
    /// The selectors of ES, CS, SS, DS (FS, GS) are here, a register's width apart.
    selectors: usize,
    /// How many there are.
    segments: usize,
    ldt: usize,
}

const LAYOUT_32: Layout = Layout { size: 104, registers: 0x20, width: 4, selectors: 0x48, segments: 6, ldt: 0x60 };
const LAYOUT_16: Layout = Layout { size: 44, registers: 0xe, width: 2, selectors: 0x22, segments: 4, ldt: 0x2a };
const CR3_OFFSET: usize = 0x1c;
const TRAP_OFFSET: usize = 0x64;

impl Layout {
    const fn of(tss: &Segment) -> &'static Self {
        if tss.attributes.0 & TSS_32 != 0 { &LAYOUT_32 } else { &LAYOUT_16 }
    }
}

/// A few bytes of memory, in one page or two.
struct Window {
    first: Gpa,
    second: Gpa,
    /// Bytes in the first page.
    head: usize,
}

impl Window {
    fn at(&self, offset: usize) -> Gpa {
        match offset.checked_sub(self.head) {
            None => self.first.wrapping_add(offset as u64),
            Some(rest) => self.second.wrapping_add(rest as u64),
        }
    }

    /// Bytes outside of RAM read as all ones.
    fn read<M: GuestMemory + ?Sized>(&self, memory: &M, offset: usize, width: usize) -> u32 {
        let mut value = 0;
        for i in (0..width).rev() {
            value = value << 8 | u32::from(memory.read_u8(self.at(offset + i)).unwrap_or(0xff));
        }
        value
    }

    /// Bytes outside of RAM are lost.
    fn write<M: GuestMemory + ?Sized>(&self, memory: &M, offset: usize, width: usize, value: u32) {
        for (i, byte) in value.to_le_bytes().iter().take(width).enumerate() {
            let _ = memory.write(self.at(offset + i), &[*byte]);
        }
    }
}

struct Tasks<'a, M: ?Sized> {
    memory: &'a M,
    state: &'a mut VcpuState,
    /// What error codes have in bit 0.
    ext: u32,
}

impl<M: GuestMemory + ?Sized> Tasks<'_, M> {
    // ---- Memory ----

    /// Translates a system access, which is made with supervisor rights.
    fn translate(&self, linear: u64, access: Access) -> Done<Gpa> {
        self.translate_for(linear, access, true)
    }

    fn translate_for(&self, linear: u64, access: Access, system: bool) -> Done<Gpa> {
        paging::translate(self.memory, &self.paging(), Gva(linear & 0xffff_ffff), access, system)
    }

    fn paging(&self) -> PagingContext {
        let VcpuState { cr0, cr3, cr4, efer, rflags, ss, .. } = *self.state;
        PagingContext { cr0, cr3, cr4, efer, rflags, cpl: ss.attributes.dpl() }
    }

    /// `len` bytes, at most a page, at `linear`, for system accesses.
    fn window(&self, linear: u64, len: usize, access: Access) -> Done<Window> {
        self.window_for(linear, len, access, true)
    }

    fn window_for(&self, linear: u64, len: usize, access: Access, system: bool) -> Done<Window> {
        let first = self.translate_for(linear, access, system)?;
        let head = (PAGE_SIZE - (linear & (PAGE_SIZE - 1))) as usize;
        let second = if head < len { self.translate_for(linear.wrapping_add(head as u64), access, system)? } else { first };
        Ok(Window { first, second, head })
    }

    fn error(&self, selector: u16) -> u32 {
        u32::from(selector & 0xfffc) | self.ext
    }

    // ---- Descriptors ----

    /// Where the descriptor is, if its table is long enough.
    fn descriptor_at(&self, selector: u16) -> Option<u64> {
        let (base, limit) = if selector & 4 == 0 {
            (self.state.gdtr.base, u32::from(self.state.gdtr.limit))
        } else {
            let ldtr = &self.state.ldtr;
            if ldtr.attributes.unusable() || !ldtr.attributes.present() {
                return None;
            }
            (ldtr.base, ldtr.limit)
        };
        (u32::from(selector | 7) <= limit).then(|| base.wrapping_add(u64::from(selector & 0xfff8)))
    }

    fn descriptor(&self, selector: u16, at: u64) -> Done<Segment> {
        let window = self.window(at, 8, Access::Read)?;
        let (low, high) = (window.read(self.memory, 0, 4), window.read(self.memory, 4, 4));
        let attributes = SegmentAttributes((high >> 8 & 0xff | high >> 12 & 0xf00) as u16);
        let limit = low & 0xffff | high & 0xf_0000;
        Ok(Segment {
            selector,
            attributes,
            limit: if attributes.granular() { limit << 12 | 0xfff } else { limit },
            base: u64::from(low >> 16 | (high & 0xff) << 16 | high & 0xff00_0000),
        })
    }

    /// The byte of the descriptor at `at` that has its type, translated for writing.
    fn type_byte(&self, at: u64) -> Done<Gpa> {
        self.translate(at.wrapping_add(5), Access::Write)
    }

    /// Changes the type byte as a locked access does. Another vCPU that keeps changing it at the same time wins.
    fn update_type(&self, gpa: Gpa, set: u8, clear: u8) {
        for _ in 0..8 {
            let Ok(old) = self.memory.read_u8(gpa) else { return };
            let new = old & !clear | set;
            if new == old || matches!(self.memory.compare_exchange(gpa, Width::Byte, old.into(), new.into()), Ok(Ok(_))) {
                return;
            }
        }
    }

    // ---- The old task ----

    /// All checks, then the old task's registers go to its TSS, and the busy bits and the link are written. Returns the new TSS.
    fn leave_old(&self, switch: &TaskSwitch) -> Done<(Segment, Window)> {
        let TaskSwitch { selector, reason, rip, resume_flag } = *switch;
        let iret = reason == TaskSwitchReason::Iret;
        let nested = matches!(reason, TaskSwitchReason::Call | TaskSwitchReason::Gate { .. });
        let error = self.error(selector);
        // Table 9-1. The CPU has checked this before, but another one may have changed it since.
        let unfit = TranslateError::Fault(if iret { Exception::ts(error) } else { Exception::gp(error) });
        if selector & 4 != 0 || selector & 0xfffc == 0 {
            return Err(unfit);
        }
        let at = self.descriptor_at(selector).ok_or(unfit)?;
        let tss = self.descriptor(selector, at)?;
        let kind = u16::from(tss.attributes.kind());
        let busy = if iret { BUSY } else { 0 };
        if tss.attributes.is_code_or_data() || kind & !TSS_32 != 1 | busy {
            return Err(unfit);
        }
        if !tss.attributes.present() {
            return Err(TranslateError::Fault(Exception::np(error)));
        }
        let layout = Layout::of(&tss);
        if (tss.limit as usize) < layout.size - 1 {
            return Err(TranslateError::Fault(Exception::ts(error)));
        }
        let old = self.state.tr;
        let old_layout = Layout::of(&old);
        let last = old_layout.selectors + old_layout.segments * old_layout.width - old_layout.width + 1;
        if (old.limit as usize) < last {
            return Err(TranslateError::Fault(Exception::ts(self.error(old.selector))));
        }

        // Whatever is touched must be there before anything changes.
        let old_window = self.window(old.base, last + 1, Access::Write)?;
        let window = self.window(tss.base, layout.size, Access::Read)?;
        if nested {
            self.window(tss.base, 2, Access::Write)?;
        }
        let new_type = if iret { None } else { Some(self.type_byte(at)?) };
        let old_type = match self.descriptor_at(old.selector & !4) {
            Some(at) if !nested => Some(self.type_byte(at)?),
            _ => None,
        };

        let nt = if iret { Rflags::NT.bits() } else { 0 };
        let rf = if resume_flag { Rflags::RF.bits() } else { 0 };
        let rflags = self.state.rflags & !(nt | Rflags::RF.bits()) | rf;
        let general = (0..8).map(|n| self.state.gprs[Gpr::from_index(n)]);
        for (n, value) in [rip, rflags].into_iter().chain(general).enumerate() {
            let offset = old_layout.registers + n * old_layout.width;
            old_window.write(self.memory, offset, old_layout.width, value as u32);
        }
        for (n, segment) in self.segments().iter().take(old_layout.segments).enumerate() {
            let offset = old_layout.selectors + n * old_layout.width;
            old_window.write(self.memory, offset, 2, segment.selector.into());
        }
        if let Some(gpa) = old_type {
            self.update_type(gpa, 0, BUSY as u8);
        }
        if let Some(gpa) = new_type {
            self.update_type(gpa, BUSY as u8, 0);
        }
        if nested {
            window.write(self.memory, 0, 2, old.selector.into());
        }
        Ok((tss, window))
    }

    /// In the order of the TSS.
    fn segments(&self) -> [Segment; 6] {
        let VcpuState { es, cs, ss, ds, fs, gs, .. } = *self.state;
        [es, cs, ss, ds, fs, gs]
    }

    // ---- The new task ----

    /// Loads the new task's registers. From here on, faults are the new task's.
    fn enter_new(&mut self, switch: &TaskSwitch, tss: &Segment, window: &Window) -> Done<Option<Exception>> {
        let layout = Layout::of(tss);
        let wide = layout.width == 4;
        // All of it is read before CR3 changes, which may take it out of sight.
        let register = |n: usize| window.read(self.memory, layout.registers + n * layout.width, layout.width);
        // 9.6: a 16-bit TSS leaves the upper halves undefined; the processors that were looked at set them.
        let upper = if wide { 0 } else { 0xffff_0000 };
        let selectors: [u16; 6] = core::array::from_fn(|n| {
            if n < layout.segments { window.read(self.memory, layout.selectors + n * layout.width, 2) as u16 } else { 0 }
        });
        let ldt = window.read(self.memory, layout.ldt, 2) as u16;
        let cr3 = window.read(self.memory, CR3_OFFSET, 4);
        let trap = wide && window.read(self.memory, TRAP_OFFSET, 2) & 1 != 0;

        let mut rflags = u64::from(register(1)) & if wide { 0x3f_7fd5 } else { 0x7fd5 } | Rflags::FIXED.bits();
        if matches!(switch.reason, TaskSwitchReason::Call | TaskSwitchReason::Gate { .. }) {
            rflags |= Rflags::NT.bits();
        }
        let rip = u64::from(register(0));
        let general: [u32; 8] = core::array::from_fn(|n| register(n + 2) | upper);

        let virtual_8086 = rflags & Rflags::VM.bits() != 0;
        let cpl = if virtual_8086 { 3 } else { selectors.get(1).map_or(0, |cs| cs & 3) };
        let state = &mut *self.state;
        state.rip = rip;
        state.rflags = rflags;
        for (n, value) in (0..).zip(general) {
            state.gprs[Gpr::from_index(n)] = u64::from(value);
        }
        state.tr = Segment { attributes: SegmentAttributes(tss.attributes.0 | BUSY), ..*tss };
        state.cr0 |= Cr0::TS.bits();
        state.dr7 &= !DR7_LOCAL;
        if wide && state.cr0 & Cr0::PG.bits() != 0 {
            state.cr3 = u64::from(cr3);
        }
        // What is not loaded in the end has a selector, and nothing behind it.
        let empty = |selector| Segment {
            selector,
            attributes: SegmentAttributes(SegmentAttributes::UNUSABLE.0 | cpl << 5),
            limit: 0,
            base: 0,
        };
        [state.es, state.cs, state.ss, state.ds, state.fs, state.gs] = selectors.map(empty);
        state.ldtr = Segment { attributes: SegmentAttributes::UNUSABLE, ..empty(ldt) };

        match self.load_segments(selectors, ldt, virtual_8086).and_then(|()| self.push_error_code(switch, wide)) {
            Err(TranslateError::Fault(fault)) => return Ok(Some(fault)),
            Err(outside) => return Err(outside),
            Ok(()) => {}
        }
        if trap {
            self.state.dr6 |= DR6_BT;
        }
        Ok(trap.then_some(Exception::DB))
    }

    fn load_segments(&mut self, selectors: [u16; 6], ldt: u16, virtual_8086: bool) -> Done {
        if ldt & 0xfffc != 0 {
            let unfit = TranslateError::Fault(Exception::ts(self.error(ldt)));
            let at = if ldt & 4 == 0 { self.descriptor_at(ldt) } else { None };
            let table = self.descriptor(ldt, at.ok_or(unfit)?)?;
            if table.attributes.is_code_or_data() || table.attributes.kind() != 2 || !table.attributes.present() {
                return Err(unfit);
            }
            self.state.ldtr = table;
        }
        if virtual_8086 {
            let state = &mut *self.state;
            [state.es, state.cs, state.ss, state.ds, state.fs, state.gs] =
                selectors.map(|selector| Segment { attributes: SegmentAttributes(0xf3), ..Segment::real_mode(selector, 3) });
            return Ok(());
        }
        let [es, cs, ss, ds, fs, gs] = selectors;
        let cpl = (cs & 3) as u8;
        self.state.cs = self.load(cs, cpl, Role::Code)?;
        self.state.ss = self.load(ss, cpl, Role::Stack)?;
        self.state.ds = self.load(ds, cpl, Role::Data)?;
        self.state.es = self.load(es, cpl, Role::Data)?;
        self.state.fs = self.load(fs, cpl, Role::Data)?;
        self.state.gs = self.load(gs, cpl, Role::Data)?;
        Ok(())
    }

    /// A segment of the new task, with the checks of table 9-1.
    fn load(&self, selector: u16, cpl: u8, role: Role) -> Done<Segment> {
        let error = self.error(selector);
        let unfit = TranslateError::Fault(Exception::ts(error));
        if selector & 0xfffc == 0 {
            let none = Segment { selector, attributes: SegmentAttributes::UNUSABLE, limit: 0, base: 0 };
            return if role == Role::Data { Ok(none) } else { Err(unfit) };
        }
        let at = self.descriptor_at(selector).ok_or(unfit)?;
        let mut segment = self.descriptor(selector, at)?;
        let (kind, dpl, rpl) = (segment.attributes.kind(), segment.attributes.dpl(), (selector & 3) as u8);
        let (code, writable_or_readable) = (kind & 8 != 0, kind & 2 != 0);
        let conforming = code && kind & 4 != 0;
        let fit = segment.attributes.is_code_or_data()
            && match role {
                Role::Code => code && if conforming { dpl <= rpl } else { dpl == rpl },
                Role::Stack => !code && writable_or_readable && dpl == cpl && rpl == cpl,
                Role::Data => (!code || writable_or_readable) && (conforming || dpl >= cpl && dpl >= rpl),
            };
        if !fit {
            return Err(unfit);
        }
        if !segment.attributes.present() {
            let fault = if role == Role::Stack { Exception::ss(error) } else { Exception::np(error) };
            return Err(TranslateError::Fault(fault));
        }
        if kind & 1 == 0 {
            self.update_type(self.type_byte(at)?, 1, 0);
            segment.attributes.0 |= 1;
        }
        Ok(segment)
    }

    /// The event's error code goes to the new task's stack (7.13): a word for a 16-bit task.
    fn push_error_code(&mut self, switch: &TaskSwitch, wide: bool) -> Done {
        let TaskSwitchReason::Gate { error_code: Some(code), .. } = switch.reason else { return Ok(()) };
        let width = if wide { 4 } else { 2 };
        let ss = self.state.ss;
        let mask = if ss.attributes.big() { 0xffff_ffff } else { 0xffff };
        let rsp = self.state.gprs[Gpr::Rsp];
        let top = rsp.wrapping_sub(width) & mask;
        let last = top + width - 1;
        let limit = u64::from(ss.limit);
        // Expand-down data: type bit 2.
        let inside = if ss.attributes.kind() & 4 != 0 { top > limit && last <= mask } else { last <= limit };
        if !inside {
            return Err(TranslateError::Fault(Exception::ss(self.ext)));
        }
        let at = ss.base.wrapping_add(top) & 0xffff_ffff;
        self.window_for(at, width as usize, Access::Write, false)?.write(self.memory, 0, width as usize, code);
        self.state.gprs[Gpr::Rsp] = rsp & !mask | top;
        Ok(())
    }
}

/// What a segment register is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Code,
    Stack,
    Data,
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
