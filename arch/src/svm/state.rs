//! The architectural state of an AMD-V vCPU, in and out of its VMCB.

use super::{
    length,
    vcpu::SvmVcpu,
    vmcb::{INTERRUPT_SHADOW, VmcbSegment, clean},
};
use core::fmt;
use x86defs::{
    Cr0, Efer, Exception, Gpr, Rflags, Segment, SegmentAttributes, SegmentRegister, TaskSwitch, TaskSwitchReason, UnknownMsr,
    VcpuState, msr,
};

/// IA32_PAT after RESET (APM vol. 2, 24593 rev. 3.42, 7.8.2).
pub(super) const PAT_RESET: u64 = 0x0007_0406_0007_0406;

impl SvmVcpu {
    fn raw_segment(&mut self, register: SegmentRegister) -> &mut VmcbSegment {
        let save = &mut self.vmcb.save;
        match register {
            SegmentRegister::Es => &mut save.es,
            SegmentRegister::Cs => &mut save.cs,
            SegmentRegister::Ss => &mut save.ss,
            SegmentRegister::Ds => &mut save.ds,
            SegmentRegister::Fs => &mut save.fs,
            SegmentRegister::Gs => &mut save.gs,
            SegmentRegister::Ldtr => &mut save.ldtr,
            SegmentRegister::Tr => &mut save.tr,
        }
    }

    pub(super) fn read_segment(&self, register: SegmentRegister) -> Segment {
        let save = &self.vmcb.save;
        match register {
            SegmentRegister::Es => save.es.segment(),
            SegmentRegister::Cs => save.cs.segment(),
            SegmentRegister::Ss => {
                // Its DPL is the CPL by definition, but the CPU keeps that elsewhere.
                let mut ss = save.ss.segment();
                ss.attributes = SegmentAttributes(ss.attributes.0 & !(3 << 5) | u16::from(length::cpl(save)) << 5);
                ss
            }
            SegmentRegister::Ds => save.ds.segment(),
            SegmentRegister::Fs => save.fs.segment(),
            SegmentRegister::Gs => save.gs.segment(),
            SegmentRegister::Ldtr => save.ldtr.segment(),
            SegmentRegister::Tr => save.tr.segment(),
        }
    }

    pub(super) fn emulate_segment_load(&mut self, register: SegmentRegister, segment: Segment) {
        *self.raw_segment(register) = VmcbSegment::new(&segment);
        self.dirty(clean::SEGMENTS);
        if register == SegmentRegister::Ss {
            self.question.ss_loaded = true;
        }
    }

    pub(super) fn read_state(&self) -> VcpuState {
        let save = &self.vmcb.save;
        let segment = |register| self.read_segment(register);
        VcpuState {
            gprs: self.frame.gprs,
            rip: save.rip,
            rflags: save.rflags,
            cs: segment(SegmentRegister::Cs),
            ds: segment(SegmentRegister::Ds),
            es: segment(SegmentRegister::Es),
            fs: segment(SegmentRegister::Fs),
            gs: segment(SegmentRegister::Gs),
            ss: segment(SegmentRegister::Ss),
            ldtr: segment(SegmentRegister::Ldtr),
            tr: segment(SegmentRegister::Tr),
            gdtr: save.gdtr.table(),
            idtr: save.idtr.table(),
            cr0: save.cr0,
            cr2: save.cr2,
            cr3: save.cr3,
            cr4: save.cr4,
            efer: save.efer & !Efer::SVME.bits(),
            dr6: save.dr6,
            dr7: save.dr7,
        }
    }

    /// Sets everything, and forgets queued events and shadows, as INIT does.
    pub(super) fn write_state(&mut self, state: &VcpuState) {
        self.write_registers(state);
        self.lazy.init();
        self.forget_events();
    }

    /// Goes on in another task of the guest.
    pub(super) fn write_task(&mut self, switch: &TaskSwitch, state: &VcpuState, exception: Option<Exception>) {
        self.write_registers(state);
        self.vmcb.control.interrupt_state &= !INTERRUPT_SHADOW;
        if switch.reason == TaskSwitchReason::Iret {
            self.unblock_nmi();
        }
        match exception {
            Some(exception) => self.queue(&exception),
            None => self.events.clear(),
        }
    }

    /// Sets all registers that `state` has.
    fn write_registers(&mut self, state: &VcpuState) {
        let VcpuState { gprs, rip, rflags, cs, ds, es, fs, gs, ss, ldtr, tr, gdtr, idtr, cr0, cr2, cr3, cr4, efer, dr6, dr7 } =
            state;
        self.frame.gprs = *gprs;
        for (register, segment) in [
            (SegmentRegister::Cs, cs),
            (SegmentRegister::Ds, ds),
            (SegmentRegister::Es, es),
            (SegmentRegister::Fs, fs),
            (SegmentRegister::Gs, gs),
            (SegmentRegister::Ss, ss),
            (SegmentRegister::Ldtr, ldtr),
            (SegmentRegister::Tr, tr),
        ] {
            *self.raw_segment(register) = VmcbSegment::new(segment);
        }
        let save = &mut self.vmcb.save;
        save.rip = *rip;
        save.rflags = *rflags | Rflags::FIXED.bits();
        save.gdtr = VmcbSegment::from_table(gdtr);
        save.idtr = VmcbSegment::from_table(idtr);
        save.cr0 = *cr0;
        save.cr2 = *cr2;
        save.cr3 = *cr3;
        save.cr4 = *cr4;
        // VMRUN wants SVME set in the guest's EFER, too (15.5.1).
        save.efer = *efer | Efer::SVME.bits();
        save.dr6 = *dr6;
        save.dr7 = *dr7;
        save.cpl = if *cr0 & Cr0::PE.bits() == 0 {
            0
        } else if *rflags & Rflags::VM.bits() != 0 {
            3
        } else {
            ss.attributes.dpl()
        };
        self.dirty(clean::ALL);
        self.want_flush();
    }

    pub(super) fn get_msr(&self, index: u32) -> Result<u64, UnknownMsr> {
        let save = &self.vmcb.save;
        Ok(match index {
            msr::IA32_EFER => save.efer & !Efer::SVME.bits(),
            msr::IA32_PAT => save.g_pat,
            msr::IA32_FS_BASE => save.fs.base,
            msr::IA32_GS_BASE => save.gs.base,
            msr::IA32_KERNEL_GS_BASE => save.kernel_gs_base,
            msr::IA32_STAR => save.star,
            msr::IA32_LSTAR => save.lstar,
            msr::IA32_CSTAR => save.cstar,
            msr::IA32_FMASK => save.sfmask,
            msr::IA32_SYSENTER_CS => save.sysenter_cs,
            msr::IA32_SYSENTER_ESP => save.sysenter_esp,
            msr::IA32_SYSENTER_EIP => save.sysenter_eip,
            msr::IA32_DEBUGCTL => self.debugctl,
            msr::IA32_TSC_AUX => return self.lazy.tsc_aux().ok_or(UnknownMsr(index)),
            _ => return Err(UnknownMsr(index)),
        })
    }

    pub(super) fn put_msr(&mut self, index: u32, value: u64) -> Result<(), UnknownMsr> {
        let save = &mut self.vmcb.save;
        match index {
            msr::IA32_EFER => {
                let new = value | Efer::SVME.bits();
                let changed = save.efer ^ new;
                save.efer = new;
                self.dirty(clean::CONTROL_REGISTERS);
                if changed & (Efer::NXE | Efer::LMA).bits() != 0 {
                    self.want_flush();
                }
            }
            msr::IA32_PAT => {
                save.g_pat = value;
                self.dirty(clean::NESTED_PAGING);
                // Translations are cached with their memory type.
                self.want_flush();
            }
            // VMLOAD takes these from the VMCB at every entry.
            msr::IA32_FS_BASE => save.fs.base = value,
            msr::IA32_GS_BASE => save.gs.base = value,
            msr::IA32_KERNEL_GS_BASE => save.kernel_gs_base = value,
            msr::IA32_STAR => save.star = value,
            msr::IA32_LSTAR => save.lstar = value,
            msr::IA32_CSTAR => save.cstar = value,
            msr::IA32_FMASK => save.sfmask = value,
            msr::IA32_SYSENTER_CS => save.sysenter_cs = value,
            msr::IA32_SYSENTER_ESP => save.sysenter_esp = value,
            msr::IA32_SYSENTER_EIP => save.sysenter_eip = value,
            msr::IA32_DEBUGCTL => self.debugctl = value,
            msr::IA32_TSC_AUX => {
                if !self.lazy.set_tsc_aux(value) {
                    return Err(UnknownMsr(index));
                }
            }
            _ => return Err(UnknownMsr(index)),
        }
        Ok(())
    }

    pub(super) fn write_dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let c = &self.vmcb.control;
        let (events, nmi, todo) = self.pending();
        writeln!(
            out,
            "SVM exit {:#x} info {:#x} {:#x} interrupted {:#x} next RIP {:#x}",
            c.exit_code, c.exit_info1, c.exit_info2, c.exit_int_info, c.next_rip
        )?;
        writeln!(
            out,
            "event {:#x} then {:?} NMI {nmi:?} todo {todo:#x} virtual interrupt {:#x} shadow {}",
            c.event_inj,
            events.peek(),
            c.vintr,
            c.interrupt_state & 1
        )?;
        writeln!(
            out,
            "intercepts CR {:04x}/{:04x} exceptions {:08x} {:08x} {:08x}, ASID {} nCR3 {:#x} TSC offset {:#x} guest RSP {:#x}",
            c.cr_read,
            c.cr_write,
            c.exceptions,
            c.intercept1,
            c.intercept2,
            c.asid,
            c.n_cr3,
            c.tsc_offset,
            self.frame.gprs[Gpr::Rsp]
        )
    }
}
