//! What the firmware has set up or says: serial ports, IOMMU, Secure Boot.

use std::{fs, path::Path};

use crate::report::{Mark, Report};

/// A serial port that Linux has found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SerialPort {
    /// As Linux calls it.
    pub name: String,
    pub io_base: u16,
    pub irq: u32,
}

/// Where the firmware redirects its own console to (ACPI's SPCR table).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Redirection {
    pub io_base: u16,
    /// `None`: as the firmware has set it.
    pub baud: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Iommu {
    /// VT-d.
    Intel,
    /// AMD-Vi.
    Amd,
    None,
}

#[derive(Clone, Debug)]
pub struct Firmware {
    pub uefi: bool,
    /// `None` without UEFI, or if it does not say.
    pub secure_boot: Option<bool>,
    pub iommu: Iommu,
    pub serial: Vec<SerialPort>,
    pub redirection: Option<Redirection>,
}

/// The ports that `com1` and `com2` mean unless told otherwise, with their interrupts.
const STANDARD: [(&str, u16, u32); 2] = [("com1", 0x3f8, 4), ("com2", 0x2f8, 3)];

impl Firmware {
    /// From sysfs below `root`.
    pub fn read(root: &Path) -> Self {
        let acpi = root.join("sys/firmware/acpi/tables");
        let iommu = if acpi.join("DMAR").exists() {
            Iommu::Intel
        } else if acpi.join("IVRS").exists() {
            Iommu::Amd
        } else {
            Iommu::None
        };
        let efi = root.join("sys/firmware/efi");
        Self {
            uefi: efi.is_dir(),
            secure_boot: secure_boot(&efi.join("efivars")),
            iommu,
            serial: serial_ports(&root.join("sys/class/tty")),
            redirection: fs::read(acpi.join("SPCR")).ok().and_then(|table| redirection(&table)),
        }
    }

    pub fn check(&self, report: &mut Report) {
        report.add(Mark::Note, if self.uefi { "firmware: UEFI" } else { "firmware: BIOS" });
        match self.secure_boot {
            Some(true) => report.add(
                Mark::MachineFails,
                "Secure Boot is on: GRUB then refuses to load a hypervisor; switch it off in the firmware's setup",
            ),
            Some(false) => report.add(Mark::Good, "Secure Boot: off"),
            None => {}
        }
        for port in &self.serial {
            let SerialPort { name, io_base, irq } = port;
            // Linux may have a number of its own for an interrupt; without an ISA interrupt, Bulkhead polls.
            let isa = if *irq < 16 { *irq } else { 0 };
            let option = match STANDARD.iter().find(|s| s.1 == *io_base) {
                Some((com, _, usual)) if isa == 0 || isa == *usual => format!("console={com}"),
                Some((com, _, _)) => format!("{com}=115200,8n1,{io_base:#x},{isa} console={com}"),
                None => format!("com1=115200,8n1,{io_base:#x},{isa} console=com1"),
            };
            report.add(Mark::Good, format!("serial port {name}: port {io_base:#x}, IRQ {irq}; hypervisor options: {option}"));
        }
        if self.serial.is_empty() {
            report.add(Mark::Note, "no serial port found: the console is the screen alone (console=vga)");
        }
        if let Some(Redirection { io_base, baud }) = self.redirection {
            let speed = baud.map_or_else(String::new, |baud| format!(" at {baud} baud"));
            report.add(
                Mark::Note,
                format!("the firmware redirects its console to port {io_base:#x}{speed} (serial over LAN, perhaps)"),
            );
        }
        report.add(
            Mark::Note,
            match self.iommu {
                Iommu::Intel => "IOMMU: VT-d (not used yet)",
                Iommu::Amd => "IOMMU: AMD-Vi (not used yet)",
                Iommu::None => "IOMMU: none, or switched off (not needed yet)",
            },
        );
    }
}

/// The variable's value comes after four bytes of attributes.
fn secure_boot(variables: &Path) -> Option<bool> {
    let bytes = fs::read(variables.join("SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")).ok()?;
    Some(*bytes.get(4)? == 1)
}

fn serial_ports(class: &Path) -> Vec<SerialPort> {
    let mut ports: Vec<SerialPort> = fs::read_dir(class)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.strip_prefix("ttyS")?;
            let text = |file: &str| fs::read_to_string(entry.path().join(file)).ok().map(|t| t.trim().to_owned());
            // Type 0 is a place for a port that was not found.
            if text("type")? == "0" {
                return None;
            }
            let io_base = u16::from_str_radix(text("port")?.trim_start_matches("0x"), 16).ok()?;
            (io_base != 0).then_some(SerialPort { name, io_base, irq: text("irq")?.parse().ok()? })
        })
        .collect();
    ports.sort_by(|a, b| a.name.cmp(&b.name));
    ports
}

/// SPCR, from "Serial Port Console Redirection Table" revision 2: a generic address at 40, the baud rate's code at 58.
fn redirection(table: &[u8]) -> Option<Redirection> {
    const IO_SPACE: u8 = 1;
    if table.get(..4)? != b"SPCR" || *table.get(40)? != IO_SPACE {
        return None;
    }
    let address = u64::from_le_bytes(table.get(44..52)?.try_into().ok()?);
    let baud = match *table.get(58)? {
        3 => Some(9600),
        4 => Some(19200),
        6 => Some(57600),
        7 => Some(115_200),
        _ => None,
    };
    Some(Redirection { io_base: u16::try_from(address).ok().filter(|&a| a != 0)?, baud })
}

/// For tests elsewhere: the files that a machine's sysfs has.
#[cfg(test)]
pub fn put(root: &Path, path: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(root: &Path) -> (usize, String) {
        let mut report = Report::default();
        Firmware::read(root).check(&mut report);
        (report.count(Mark::MachineFails), report.to_string())
    }

    #[test]
    fn a_server() {
        let root = tempfile::tempdir().unwrap();
        for (port, io, irq, kind) in [("ttyS0", "0x3F8", "4", "4"), ("ttyS1", "0x3E8", "5", "4"), ("ttyS2", "0x0", "0", "0")] {
            for (file, text) in [("port", io), ("irq", irq), ("type", kind)] {
                put(root.path(), &format!("sys/class/tty/{port}/{file}"), format!("{text}\n").as_bytes());
            }
        }
        put(root.path(), "sys/class/tty/tty1/dev", b"4:1\n");
        put(root.path(), "sys/firmware/acpi/tables/DMAR", b"DMAR");
        let mut spcr = vec![0; 80];
        spcr[..4].copy_from_slice(b"SPCR");
        spcr[40] = 1;
        spcr[44..46].copy_from_slice(&0x3e8u16.to_le_bytes());
        spcr[58] = 7;
        put(root.path(), "sys/firmware/acpi/tables/SPCR", &spcr);
        let (fails, text) = lines(root.path());
        assert_eq!(fails, 0);
        for wanted in [
            "BIOS",
            "ttyS0: port 0x3f8, IRQ 4; hypervisor options: console=com1\n",
            "ttyS1: port 0x3e8, IRQ 5; hypervisor options: com1=115200,8n1,0x3e8,5 console=com1\n",
            "to port 0x3e8 at 115200 baud",
            "VT-d",
        ] {
            assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        }
        assert!(!text.contains("ttyS2") && !text.contains("Secure Boot"));
    }

    #[test]
    fn secure_boot_keeps_grub_from_loading_it() {
        let root = tempfile::tempdir().unwrap();
        let variable = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
        put(root.path(), variable, &[6, 0, 0, 0, 1]);
        let (fails, text) = lines(root.path());
        assert!(fails == 1 && text.contains("UEFI") && text.contains("Secure Boot is on"), "{text}");
        put(root.path(), variable, &[6, 0, 0, 0, 0]);
        assert_eq!(lines(root.path()).0, 0);
    }

    #[test]
    fn a_damaged_table_says_nothing() {
        assert_eq!(redirection(b"SPCR"), None);
        assert_eq!(redirection(&[0; 80]), None);
    }
}
