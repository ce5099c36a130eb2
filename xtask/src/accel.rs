//! Which emulator runs Bulkhead: what was asked for, else the fastest that offers hardware virtualisation to it.

use std::{
    fs::{self, File},
    os::fd::AsRawFd,
    path::Path,
};

use anyhow::{Result, bail};
use runner::machine::{Accel, Vendor};

/// What was picked, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    pub accel: Accel,
    pub vendor: Vendor,
    pub reason: String,
}

/// Whether Bulkhead could use hardware virtualisation inside a KVM guest on this machine.
pub type NestedKvm = Result<Vendor, String>;

/// Combines the wishes (`None`: any) with what this machine offers.
pub fn choose(accel: Option<Accel>, vendor: Option<Vendor>, kvm: impl FnOnce() -> NestedKvm) -> Result<Choice> {
    let choice = |accel, vendor, reason: &str| Ok(Choice { accel, vendor, reason: reason.to_owned() });
    match (accel, vendor) {
        (Some(Accel::Tcg), Some(Vendor::Intel)) => {
            bail!("QEMU's TCG has no VT-x: use --accel bochs for --vendor intel")
        }
        (Some(Accel::Tcg), _) => choice(Accel::Tcg, Vendor::Amd, "as asked; TCG has AMD-V only"),
        (Some(Accel::Bochs), Some(vendor)) => choice(Accel::Bochs, vendor, "as asked"),
        (Some(Accel::Bochs), None) => choice(Accel::Bochs, Vendor::Intel, "as asked; of its two, VT-x is the one that TCG lacks"),
        (Some(Accel::Kvm), wanted) => match (kvm(), wanted) {
            (Err(why), _) => bail!("nested KVM is not usable here: {why}"),
            (Ok(found), Some(wanted)) if found != wanted => bail!("this machine's KVM offers {found}, not {wanted}"),
            (Ok(found), _) => choice(Accel::Kvm, found, "as asked"),
        },
        (None, wanted) => {
            let why_not = match (kvm(), wanted) {
                (Ok(found), wanted) if wanted.is_none_or(|w| w == found) => {
                    return choice(Accel::Kvm, found, &format!("nested KVM offers {found}"));
                }
                (Ok(found), _) => format!("KVM offers {found} only"),
                (Err(why), _) => format!("no nested KVM: {why}"),
            };
            match wanted {
                Some(Vendor::Intel) => choice(Accel::Bochs, Vendor::Intel, &format!("{why_not}; TCG has no VT-x")),
                _ => choice(Accel::Tcg, Vendor::Amd, &why_not),
            }
        }
    }
}

/// Asks the kernel. `/dev/kvm` alone says nothing: KVM may run guests and still offer them no virtualisation.
pub fn nested_kvm() -> NestedKvm {
    let vendor = nested_parameter(Path::new("/sys/module"))?;
    let kvm = File::options().read(true).write(true).open("/dev/kvm").map_err(|e| format!("/dev/kvm: {e}"))?;
    let offered = supported_cpuid(&kvm)?;
    if offers(&offered, vendor) { Ok(vendor) } else { Err(format!("/dev/kvm exists, but offers its guests no {vendor}")) }
}

/// What the loaded KVM module says about nesting.
fn nested_parameter(modules: &Path) -> NestedKvm {
    for (module, vendor) in [("kvm_amd", Vendor::Amd), ("kvm_intel", Vendor::Intel)] {
        match fs::read_to_string(modules.join(module).join("parameters/nested")) {
            Ok(value) if matches!(value.trim(), "1" | "Y" | "y") => return Ok(vendor),
            Ok(_) => return Err(format!("module {module} was loaded with nested=0")),
            Err(_) => {}
        }
    }
    if modules.parent().is_some_and(|sys| sys.join("class/misc/kvm").exists()) || Path::new("/dev/kvm").exists() {
        Err("/dev/kvm exists, but neither kvm_amd nor kvm_intel says that it nests".into())
    } else {
        Err("there is no /dev/kvm".into())
    }
}

/// A CPUID leaf as KVM reports it (Linux Documentation/virt/kvm/api.rst, 4.46 KVM_GET_SUPPORTED_CPUID).
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
struct CpuidEntry {
    function: u32,
    index: u32,
    flags: u32,
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
    padding: [u32; 3],
}

const CPUID_ENTRIES: usize = 256;

#[repr(C)]
struct CpuidList {
    count: u32,
    padding: u32,
    entries: [CpuidEntry; CPUID_ENTRIES],
}

/// `_IOWR(KVMIO, 0x05, struct kvm_cpuid2)`; the size in it is that of the two fields before the entries.
const KVM_GET_SUPPORTED_CPUID: rustix::ioctl::Opcode = 0xc008_ae05;

fn supported_cpuid(kvm: &File) -> Result<Vec<CpuidEntry>, String> {
    let mut list =
        Box::new(CpuidList { count: CPUID_ENTRIES as u32, padding: 0, entries: [CpuidEntry::default(); CPUID_ENTRIES] });
    // SAFETY: this request reads and writes a `struct kvm_cpuid2`, whose layout `CpuidList` has, with `count` entries of room.
    let result =
        unsafe { rustix::ioctl::ioctl(kvm, rustix::ioctl::Updater::<KVM_GET_SUPPORTED_CPUID, CpuidList>::new(&mut *list)) };
    result.map_err(|e| format!("/dev/kvm (descriptor {}) does not tell its guests' CPUID: {e}", kvm.as_raw_fd()))?;
    Ok(list.entries[..(list.count as usize).min(CPUID_ENTRIES)].to_vec())
}

/// True if these leaves tell of the vendor's extension: CPUID.1:ECX.VMX (bit 5), CPUID.80000001:ECX.SVM (bit 2).
fn offers(entries: &[CpuidEntry], vendor: Vendor) -> bool {
    let (leaf, bit) = match vendor {
        Vendor::Intel => (1, 5),
        Vendor::Amd => (0x8000_0001, 2),
    };
    entries.iter().any(|e| e.function == leaf && e.ecx >> bit & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_nested_kvm_else_software_with_the_reason() {
        let no = || NestedKvm::Err("no nesting".into());
        let amd = || Ok(Vendor::Amd);
        let pick = |accel, vendor, kvm: &dyn Fn() -> NestedKvm| choose(accel, vendor, kvm).map(|c| (c.accel, c.vendor)).ok();
        assert_eq!(pick(None, None, &no), Some((Accel::Tcg, Vendor::Amd)));
        assert_eq!(pick(None, None, &amd), Some((Accel::Kvm, Vendor::Amd)));
        assert_eq!(pick(None, Some(Vendor::Amd), &amd), Some((Accel::Kvm, Vendor::Amd)));
        assert_eq!(pick(None, Some(Vendor::Intel), &amd), Some((Accel::Bochs, Vendor::Intel)));
        assert_eq!(pick(None, Some(Vendor::Intel), &no), Some((Accel::Bochs, Vendor::Intel)));
        assert!(choose(None, None, no).unwrap().reason.contains("no nesting"));
    }

    #[test]
    fn what_was_asked_for_is_taken_or_refused() {
        let amd = || Ok(Vendor::Amd);
        let never = || -> NestedKvm { panic!("not asked") };
        let pick = |accel, vendor| choose(Some(accel), vendor, never).map(|c| (c.accel, c.vendor)).ok();
        assert_eq!(pick(Accel::Bochs, None), Some((Accel::Bochs, Vendor::Intel)));
        assert_eq!(pick(Accel::Bochs, Some(Vendor::Amd)), Some((Accel::Bochs, Vendor::Amd)));
        assert_eq!(pick(Accel::Tcg, None), Some((Accel::Tcg, Vendor::Amd)));
        assert_eq!(pick(Accel::Tcg, Some(Vendor::Intel)), None);
        assert!(choose(Some(Accel::Kvm), Some(Vendor::Intel), amd).is_err());
        let error = choose(Some(Accel::Kvm), None, || Err("reason".into())).unwrap_err().to_string();
        assert!(error.contains("reason"), "{error}");
    }

    #[test]
    fn the_module_parameter_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let put = |module: &str, value: &str| {
            let folder = dir.path().join(module).join("parameters");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("nested"), value).unwrap();
        };
        assert!(nested_parameter(dir.path()).is_err());
        put("kvm_intel", "N\n");
        assert!(nested_parameter(dir.path()).unwrap_err().contains("nested=0"));
        put("kvm_intel", "Y\n");
        assert_eq!(nested_parameter(dir.path()), Ok(Vendor::Intel));
        put("kvm_amd", "1\n");
        assert_eq!(nested_parameter(dir.path()), Ok(Vendor::Amd));
    }

    #[test]
    fn kvm_is_asked_in_its_own_layout() {
        assert_eq!((size_of::<CpuidEntry>(), std::mem::offset_of!(CpuidList, entries)), (40, 8));
        let Ok(kvm) = File::options().read(true).write(true).open("/dev/kvm") else { return };
        let leaves = supported_cpuid(&kvm).unwrap();
        assert!(leaves.iter().any(|l| l.function == 0 && l.eax >= 1), "{leaves:?}");
    }

    #[test]
    fn the_feature_bits_decide() {
        let entry = |function, ecx| CpuidEntry { function, ecx, ..CpuidEntry::default() };
        assert!(offers(&[entry(1, 1 << 5)], Vendor::Intel) && !offers(&[entry(1, 1 << 5)], Vendor::Amd));
        assert!(offers(&[entry(0x8000_0001, 1 << 2)], Vendor::Amd));
        assert!(!offers(&[entry(1, !(1 << 5)), entry(0x8000_0001, !(1 << 2))], Vendor::Intel));
    }
}
