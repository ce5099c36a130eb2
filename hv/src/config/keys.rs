//! The names that a guest configuration may use.

/// The keys that Bulkhead supports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Key {
    Name,
    Type,
    Memory,
    Maxmem,
    Vcpus,
    Maxvcpus,
    Cpus,
    CpuWeight,
    Cap,
    Cpuid,
    Kernel,
    KernelFormat,
    LoadAddress,
    Entry,
    Ramdisk,
    Cmdline,
    Root,
    Extra,
    Serial,
    Hpet,
    TimerMode,
    TscMode,
    Viridian,
    Localtime,
    RtcTimeoffset,
    OnPoweroff,
    OnReboot,
    OnCrash,
    IsaDebugExit,
    PcTestdev,
}

impl Key {
    pub const ALL: [Self; 30] = [
        Self::Name,
        Self::Type,
        Self::Memory,
        Self::Maxmem,
        Self::Vcpus,
        Self::Maxvcpus,
        Self::Cpus,
        Self::CpuWeight,
        Self::Cap,
        Self::Cpuid,
        Self::Kernel,
        Self::KernelFormat,
        Self::LoadAddress,
        Self::Entry,
        Self::Ramdisk,
        Self::Cmdline,
        Self::Root,
        Self::Extra,
        Self::Serial,
        Self::Hpet,
        Self::TimerMode,
        Self::TscMode,
        Self::Viridian,
        Self::Localtime,
        Self::RtcTimeoffset,
        Self::OnPoweroff,
        Self::OnReboot,
        Self::OnCrash,
        Self::IsaDebugExit,
        Self::PcTestdev,
    ];

    /// As it is written in a configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Type => "type",
            Self::Memory => "memory",
            Self::Maxmem => "maxmem",
            Self::Vcpus => "vcpus",
            Self::Maxvcpus => "maxvcpus",
            Self::Cpus => "cpus",
            Self::CpuWeight => "cpu_weight",
            Self::Cap => "cap",
            Self::Cpuid => "cpuid",
            Self::Kernel => "kernel",
            Self::KernelFormat => "kernel_format",
            Self::LoadAddress => "load_address",
            Self::Entry => "entry",
            Self::Ramdisk => "ramdisk",
            Self::Cmdline => "cmdline",
            Self::Root => "root",
            Self::Extra => "extra",
            Self::Serial => "serial",
            Self::Hpet => "hpet",
            Self::TimerMode => "timer_mode",
            Self::TscMode => "tsc_mode",
            Self::Viridian => "viridian",
            Self::Localtime => "localtime",
            Self::RtcTimeoffset => "rtc_timeoffset",
            Self::OnPoweroff => "on_poweroff",
            Self::OnReboot => "on_reboot",
            Self::OnCrash => "on_crash",
            Self::IsaDebugExit => "isa_debug_exit",
            Self::PcTestdev => "pc_testdev",
        }
    }

    pub(super) fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.as_str() == name)
    }
}

/// True if xl has a key of this name that Bulkhead does not have.
pub(super) fn xl_knows(name: &str) -> bool {
    XL_KEYS.binary_search(&name).is_ok()
}

/// The known key that `name` was most likely meant to be. Bulkhead's own come first.
pub(super) fn suggest(name: &str) -> Option<&'static str> {
    // One slip in a short name, two in a longer one.
    let most = match name.len() {
        0..=2 => return None,
        3..=5 => 1,
        6..=40 => 2,
        _ => return None,
    };
    let all = Key::ALL.into_iter().map(Key::as_str).chain(XL_KEYS.iter().copied());
    all.map(|key| (distance(name.as_bytes(), key.as_bytes()), key))
        .filter(|&(d, _)| d <= most)
        .min_by_key(|&(d, _)| d)
        .map(|(_, k)| k)
}

/// Insertions, deletions, substitutions and swaps of neighbours between two names, case apart (optimal string alignment).
pub(crate) fn distance(a: &[u8], b: &[u8]) -> usize {
    const WIDTH: usize = 64;
    if b.len() >= WIDTH {
        return usize::MAX;
    }
    let mut before_last = [0; WIDTH];
    let mut last: [usize; WIDTH] = core::array::from_fn(|i| i);
    for (i, &x) in a.iter().enumerate() {
        let mut row = [0; WIDTH];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let same = x.eq_ignore_ascii_case(&y);
            let mut best = (last[j] + usize::from(!same)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && x.eq_ignore_ascii_case(&b[j - 1]) && a[i - 1].eq_ignore_ascii_case(&y) {
                best = best.min(before_last[j - 1] + 1);
            }
            row[j + 1] = best;
        }
        (before_last, last) = (last, row);
    }
    last[b.len()]
}

/// Sorted. From xl.cfg(5) of Xen 4.17, with what later releases added.
#[rustfmt::skip]
const XL_KEYS: &[&str] = &[
    "acpi", "acpi_firmware", "acpi_laptop_slate", "acpi_s3", "acpi_s4", "altp2m", "altp2m_count", "altp2mhvm", "apic",
    "arm_sci", "bios", "bios_path_override", "boot", "bootloader", "bootloader_args", "channel", "cpus_soft", "device_model_args", "device_model_args_hvm", "device_model_args_pv", "device_model_override",
    "device_model_stubdomain_override", "device_model_stubdomain_seclabel", "device_model_user", "device_model_version",
    "device_tree", "disk", "dm_restrict", "driver_domain", "dtdev", "e820_host", "firmware", "gfx_passthru", "gic_version",
    "hap", "hdtype", "init_seclabel", "iomem", "ioports", "irqs", "keymap", "llc_colors",
    "max_event_channels", "max_grant_frames", "max_grant_version", "max_maptrack_frames", "mca_caps", "mmio_hole",
    "ms_vm_genid", "msr_relaxed", "nestedhvm", "nographic", "nomigrate", "nr_spis", "nx", "on_soft_reset", "on_watchdog", "oos",
    "opengl", "p9", "pae", "passthrough", "pci", "pci_msitranslate", "pci_permissive", "pci_power_mgmt", "pci_seize", "pool",
    "pvcalls", "pvshim", "pvshim_cmdline", "pvshim_extra", "pvshim_path", "rdm", "rdm_mem_boundary", "sdl",
    "seclabel", "shadow_memory", "smbios", "smbios_firmware", "soundhw", "spice", "spice_clipboard_sharing",
    "spice_image_compression", "spice_streaming_video", "spiceagent_mouse", "spicedisable_ticketing", "spicehost",
    "spicepasswd", "spiceport", "spicetls_port", "spiceusbredirection", "spicevdagent", "stdvga", "stubdomain_cmdline",
    "stubdomain_kernel", "stubdomain_memory", "stubdomain_ramdisk", "sve", "tee", "trap_unmapped_accesses",
    "usb", "usbctrl", "usbdev", "usbdevice", "usbversion", "uuid", "vdispl", "vendor_device", "vfb", "vga",
    "videoram", "vif", "virtio", "vkb", "vkb_device", "vmtrace_buf_kb", "vnc", "vncdisplay", "vnclisten",
    "vncpasswd", "vncunused", "vnuma", "vpmu", "vpt_align", "vsnd", "vtpm", "vuart", "xen_platform_pci",
    "xend_suspend_evtchn_compat", "xenstore_feature_mask",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_do_not_overlap_and_are_searchable() {
        for name in XL_KEYS {
            assert!(xl_knows(name), "{name} is out of order");
            assert_eq!(Key::find(name), None, "{name} is in both tables");
        }
        for key in Key::ALL {
            assert_eq!(Key::find(key.as_str()), Some(key));
        }
    }

    #[test]
    fn slips_are_recognised() {
        for (slip, meant) in [
            ("memroy", "memory"),
            ("Memory", "memory"),
            ("kernal", "kernel"),
            ("vcpu", "vcpus"),
            ("on_poweorff", "on_poweroff"),
            ("ramdisc", "ramdisk"),
            ("initrd", ""),
            ("nam", "name"),
            ("viff", "vif"),
            ("disks", "disk"),
            ("isa_debug", ""),
            ("x", ""),
            ("zzzzzz", ""),
        ] {
            assert_eq!(suggest(slip).unwrap_or(""), meant, "{slip}");
        }
    }
}
