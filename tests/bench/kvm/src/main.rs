//! A minimal user of KVM: the first process of a Linux that hosts one guest, the same multiboot1 image that runs under Bulkhead.
//!
//! The guest has what KVM has in the kernel (8259s, IOAPIC, local APICs, PIT), and a serial port, an ACPI PM timer, a PCI configuration
//! port and an RTC as small as a user program can have them, so that what these cost is the way to it and back. The command line, in
//! `/guest.cmdline`, is the guest's, after `memory=MIB` and `vcpus=N`. When the guest writes to the debug-exit port, or the like, the
//! machine is switched off.

mod image;
mod vcpu;

use std::{
    fs,
    io::{self, Write},
    path::Path,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use rustix::{
    mm::{MapFlags, ProtFlags, mmap_anonymous},
    system::{RebootCommand, init_module, reboot},
    termios::tcdrain,
};

fn main() {
    let result = run();
    let mut out = io::stdout().lock();
    if let Err(error) = result {
        let _ = writeln!(out, "FAIL: {error:#}");
    }
    let _ = out.flush();
    let _ = tcdrain(&out);
    if std::process::id() == 1 {
        let _ = reboot(RebootCommand::PowerOff);
    }
}

/// Makes a bare kernel's first process a place from which KVM can be used.
fn prepare() -> Result<()> {
    for folder in ["/dev", "/modules"] {
        fs::create_dir_all(folder)?;
    }
    rustix::mount::mount("devtmpfs", "/dev", "devtmpfs", rustix::mount::MountFlags::empty(), None).context("mounting /dev")?;
    // In the order of their names.
    let mut modules: Vec<_> = fs::read_dir("/modules")?.filter_map(Result::ok).map(|e| e.path()).collect();
    modules.sort();
    for path in modules {
        let options = if is_kvm_itself(&path) { c"halt_poll_ns=0" } else { c"" };
        init_module(&fs::read(&path)?, options).with_context(|| format!("loading {}", path.display()))?;
    }
    Ok(())
}

fn is_kvm_itself(path: &Path) -> bool {
    path.to_string_lossy().ends_with("-kvm.ko")
}

fn run() -> Result<()> {
    if std::process::id() == 1 {
        prepare()?;
    }
    let command_line = fs::read_to_string("/guest.cmdline")?;
    let option = |key: &str, default| {
        let mut words = command_line.split_whitespace();
        words.find_map(|w| w.strip_prefix(key)?.strip_prefix('=')?.parse().ok()).unwrap_or(default)
    };
    let (bytes, vcpus) = (option("memory", 256) << 20, option("vcpus", 1) as u64);
    let kvm = Kvm::new().context("opening /dev/kvm")?;
    let vm = kvm.create_vm().context("creating a virtual machine")?;
    // Only used where real mode is itself emulated by a task; above the guest's memory.
    vm.set_tss_address(0xfffb_d000)?;
    vm.create_irq_chip()?;
    vm.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() })?;
    let memory = map_memory(&vm, bytes)?;
    let entry = image::load(memory, &fs::read("/guest")?, command_line.trim())?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let vm = Arc::new(vm);
    let threads: Vec<_> = (0..vcpus)
        .map(|id| {
            let mut vcpu = vm.create_vcpu(id)?;
            vcpu::prepare(&mut vcpu, id as u32, &cpuid, entry)?;
            Ok(thread::spawn(move || vcpu::run(vcpu)))
        })
        .collect::<Result<_>>()?;
    for thread in threads {
        if let Ok(result) = thread.join() {
            result?;
            // The processor that ends the guest ends it for all.
            break;
        }
    }
    Ok(())
}

/// Gives the guest memory from address 0 on, not yet touched, and shows it to us.
fn map_memory(vm: &VmFd, bytes: usize) -> Result<&'static mut [u8]> {
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let start = unsafe {
        mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE)
    }
    .context("mapping the guest's memory")?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: bytes as u64,
        userspace_addr: start as u64,
    };
    // SAFETY: the mapping is as long as said, and is never removed.
    unsafe { vm.set_user_memory_region(region) }?;
    // SAFETY: as above; nobody else has a reference, and the guest does not run before we have done with this one.
    Ok(unsafe { std::slice::from_raw_parts_mut(start.cast(), bytes) })
}
