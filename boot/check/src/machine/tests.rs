//! CPUs made of the registers that the emulators and some real machines show.

use super::*;
use std::collections::BTreeMap;

/// The vendor's name in the order of CPUID's registers EBX, EDX, ECX.
fn vendor(name: &str) -> CpuidResult {
    let word = |at: usize| u32::from_le_bytes(name.as_bytes()[at..at + 4].try_into().unwrap());
    CpuidResult { eax: 0xd, ebx: word(0), edx: word(4), ecx: word(8) }
}

const LONG_MODE_NX: u32 = 1 << 29 | 1 << 20;

/// Leaves by number; all others are zero.
fn host(leaves: &[(u32, CpuidResult)], cpus: usize, msrs: Vec<BTreeMap<u32, u64>>) -> Host {
    let leaves: BTreeMap<u32, CpuidResult> = leaves.iter().copied().collect();
    let msr = move |cpu: usize, index: u32| {
        let of_cpu: &BTreeMap<u32, u64> = &msrs[cpu.min(msrs.len() - 1)];
        of_cpu.get(&index).copied().ok_or_else(|| io::Error::from_raw_os_error(5))
    };
    Host {
        cpuid: Box::new(move |leaf, _| leaves.get(&leaf).copied().unwrap_or_default()),
        msr: Box::new(msr),
        cpus: (0..cpus).collect(),
        memory: Some(1 << 30),
    }
}

fn amd(svm_edx: u32, cpus: usize, vm_cr: &[u64]) -> Host {
    let leaves = [
        (0, vendor("AuthenticAMD")),
        (0x8000_0000, CpuidResult { eax: 0x8000_001f, ..CpuidResult::default() }),
        (0x8000_0001, CpuidResult { ecx: 1 << 2, edx: LONG_MODE_NX, ..CpuidResult::default() }),
        (0x8000_000a, CpuidResult { eax: 1, ebx: 16, ecx: 0, edx: svm_edx }),
    ];
    host(&leaves, cpus, vm_cr.iter().map(|&value| BTreeMap::from([(AMD_VM_CR, value)])).collect())
}

/// Bochs 2.7, Haswell.
fn haswell_msrs(feature_control: u64) -> BTreeMap<u32, u64> {
    BTreeMap::from([
        (IA32_FEATURE_CONTROL, feature_control),
        (0x480, 0x00d8_1000_0000_002b),
        (0x485, 0x2004_01e0),
        (0x486, 0x8000_0021),
        (0x487, 0xffff_ffff),
        (0x488, 0x2000),
        (0x489, 0x0017_67ff),
        (0x48b, 0x0004_7fff_0000_0000),
        (0x48c, 0x0000_0f01_0633_4141),
        (0x48d, 0x0000_007f_0000_0016),
        (0x48e, 0xf7f9_fffe_0400_6172),
        (0x48f, 0x007f_ffff_0003_6dfb),
        (0x490, 0x0000_ffff_0000_11fb),
        (0x491, 1),
    ])
}

fn intel(cpus: usize, msrs: Vec<BTreeMap<u32, u64>>) -> Host {
    let leaves = [
        (0, vendor("GenuineIntel")),
        (1, CpuidResult { ecx: 1 << 5, ..CpuidResult::default() }),
        (0x8000_0000, CpuidResult { eax: 0x8000_0008, ..CpuidResult::default() }),
        (0x8000_0001, CpuidResult { edx: LONG_MODE_NX, ..CpuidResult::default() }),
    ];
    host(&leaves, cpus, msrs)
}

/// Machine failures, things unknown, and the text.
fn judge(host: &Host) -> (usize, usize, String) {
    let mut report = Report::default();
    cpu_lines(host, &mut report);
    (report.count(Mark::MachineFails), report.count(Mark::Unknown), report.to_string())
}

#[test]
fn amd_v() {
    let (fails, unknown, text) = judge(&amd(1, 2, &[0, 0]));
    assert_eq!((fails, unknown), (0, 0), "{text}");
    assert!(text.contains("AuthenticAMD") && text.contains("AMD-V: NPT, ASID"), "{text}");
    let (fails, _, text) = judge(&amd(1, 2, &[VM_CR_SVMDIS, VM_CR_SVMDIS]));
    assert!(fails == 1 && text.contains("locked off by the firmware"), "{text}");
    let (fails, _, text) = judge(&amd(0, 1, &[0]));
    assert!(fails == 1 && text.contains("lacks nested paging"), "{text}");
    // Another CPU than the boot CPU: it is left alone.
    let (fails, unknown, text) = judge(&amd(1, 2, &[0, VM_CR_SVMDIS]));
    assert!((fails, unknown) == (0, 0) && text.contains("CPU 1 cannot run guests"), "{text}");
}

#[test]
fn vt_x() {
    for open_or_on in [0, 5] {
        let (fails, unknown, text) = judge(&intel(2, vec![haswell_msrs(open_or_on)]));
        assert_eq!((fails, unknown), (0, 0), "{text}");
        assert!(text.contains("VT-x: EPT,") && text.contains("unrestricted guest"), "{text}");
    }
    let (fails, _, text) = judge(&intel(1, vec![haswell_msrs(1)]));
    assert!(fails == 1 && text.contains("VT-x is locked off by the firmware"), "{text}");
    let mut no_unrestricted = haswell_msrs(5);
    *no_unrestricted.get_mut(&0x48b).unwrap() &= !(1 << (32 + 7));
    let (fails, _, text) = judge(&intel(1, vec![no_unrestricted]));
    assert!(fails == 1 && text.contains("lacks unrestricted guest"), "{text}");
}

#[test]
fn without_msrs_nothing_is_claimed() {
    let (fails, unknown, text) = judge(&intel(1, vec![BTreeMap::new()]));
    assert_eq!((fails, unknown), (0, 1), "{text}");
    let mut some = haswell_msrs(5);
    some.remove(&0x48c);
    assert_eq!(judge(&intel(1, vec![some])).1, 1);
}

#[test]
fn no_virtualisation() {
    let leaves = [
        (0, vendor("GenuineIntel")),
        (1, CpuidResult { ecx: 1 << 31, ..CpuidResult::default() }),
        (0x8000_0000, CpuidResult { eax: 0x8000_0008, ..CpuidResult::default() }),
        (0x8000_0001, CpuidResult { edx: LONG_MODE_NX, ..CpuidResult::default() }),
    ];
    let (fails, _, text) = judge(&host(&leaves, 1, vec![BTreeMap::new()]));
    assert!(fails == 1 && text.contains("neither VT-x (VMX) nor AMD-V (SVM)") && text.contains("nested"), "{text}");
    // 32 bits, and no more.
    let (fails, _, text) = judge(&host(&leaves[..2], 1, vec![BTreeMap::new()]));
    assert!(fails == 3 && text.contains("long mode") && text.contains("NX"), "{text}");
}

#[test]
fn the_firmwares_memory_map_counts() {
    let root = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    assert_eq!(memory(root.path()), None);
    put("proc/meminfo", "MemTotal:        1000 kB\nMemFree: 1 kB\n");
    assert_eq!(memory(root.path()), Some(1000 << 10));
    for (n, start, end, kind) in
        [(0, "0x0", "0x9fbff", "System RAM"), (1, "0xf0000", "0xfffff", "Reserved"), (2, "0x100000", "0x3fffffff", "System RAM")]
    {
        put(&format!("sys/firmware/memmap/{n}/start"), start);
        put(&format!("sys/firmware/memmap/{n}/end"), end);
        put(&format!("sys/firmware/memmap/{n}/type"), kind);
    }
    assert_eq!(memory(root.path()), Some(0x9fc00 + 0x3ff0_0000));
}

#[test]
fn lists_of_cpus() {
    assert_eq!(parse_cpus("0-2,5\n").unwrap(), [0, 1, 2, 5]);
    assert_eq!(parse_cpus("0\n").unwrap(), [0]);
    assert_eq!(parse_cpus(""), None);
}
