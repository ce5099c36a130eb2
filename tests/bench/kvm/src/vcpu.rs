//! The guest's processors, and the devices that are not in the kernel.

use std::{
    io::{self, Write},
    time::Instant,
};

use anyhow::{Result, bail};
use kvm_bindings::{CpuId, kvm_cpuid_entry2, kvm_mp_state, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};
use rustix::termios::tcdrain;

use crate::image;

const COM1: u16 = 0x3f8;
const PM_TIMER: u16 = 0x608;
const PM_HZ: u128 = 3_579_545;
const DEBUG_EXIT: u16 = 0xf4;

/// Sets up CPUID, and for the boot processor the state that multiboot1 asks for: 32-bit protected mode with flat segments.
pub fn prepare(vcpu: &mut VcpuFd, id: u32, cpuid: &CpuId, entry: u64) -> Result<()> {
    let mut entries: Vec<kvm_cpuid_entry2> = cpuid
        .as_slice()
        .iter()
        .copied()
        .filter(|e| e.function != 0xb && !(0x4000_0000..0x4000_0100).contains(&e.function))
        .collect();
    for entry in &mut entries {
        match entry.function {
            0 => entry.eax = entry.eax.max(0xb),
            1 => {
                entry.ebx = entry.ebx & 0xff_ffff | id << 24;
                // There is a hypervisor, which KVM leaves to us to say.
                entry.ecx |= 1 << 31;
            }
            _ => {}
        }
    }
    let known = |function| cpuid.as_slice().iter().find(|e| e.function == function).copied().unwrap_or_default();
    let kvm = kvm_cpuid_entry2 { function: 0x4000_0000, eax: 0x4000_0010, ..known(0x4000_0000) };
    let timing = kvm_cpuid_entry2 { function: 0x4000_0010, eax: vcpu.get_tsc_khz().unwrap_or(1_000_000), ..Default::default() };
    // The x2APIC id is where the guest looks for its own.
    let topology = kvm_cpuid_entry2 { function: 0xb, flags: 1, ebx: 1, ecx: 0x100, edx: id, ..Default::default() };
    entries.extend([kvm, known(0x4000_0001), timing, topology]);
    vcpu.set_cpuid2(&CpuId::from_entries(&entries)?)?;
    if id != 0 {
        // Waits for INIT and SIPI: KVM_MP_STATE_UNINITIALIZED.
        vcpu.set_mp_state(kvm_mp_state { mp_state: 1 })?;
        return Ok(());
    }
    let mut sregs = vcpu.get_sregs()?;
    let data = kvm_segment { limit: u32::MAX, selector: 16, type_: 3, present: 1, db: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: 8, type_: 11, ..data };
    [sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss] = [data; 5];
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    [regs.rax, regs.rbx] = image::REGISTERS;
    regs.rip = entry;
    regs.rflags = 2;
    vcpu.set_regs(&regs)?;
    Ok(())
}

/// Runs the processor until the guest ends.
pub fn run(mut vcpu: VcpuFd) -> Result<()> {
    let start = Instant::now();
    let mut line = Vec::new();
    loop {
        match vcpu.run()? {
            VcpuExit::IoIn(port, data) => {
                data.fill(0xff);
                match port {
                    // The transmitter is empty.
                    0x3fd => data[0] = 0x60,
                    PM_TIMER if data.len() == 4 => {
                        let ticks = start.elapsed().as_nanos() * PM_HZ / 1_000_000_000;
                        data.copy_from_slice(&(ticks as u32).to_le_bytes());
                    }
                    0x71 => data[0] = 0x80,
                    _ => {}
                }
            }
            VcpuExit::IoOut(COM1, data) => {
                for byte in data {
                    line.push(*byte);
                    if *byte == b'\n' {
                        let mut out = io::stdout().lock();
                        out.write_all(&line)?;
                        out.flush()?;
                        // Else the serial port's interrupts would disturb what is measured next.
                        let _ = tcdrain(&out);
                        line.clear();
                    }
                }
            }
            VcpuExit::IoOut(DEBUG_EXIT, _) => return Ok(()),
            VcpuExit::MmioRead(_, data) => data.fill(0xff),
            VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..) | VcpuExit::Intr => {}
            other => bail!("the guest ended: {other:?}"),
        }
    }
}
