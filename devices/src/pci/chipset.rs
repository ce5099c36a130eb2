//! The chipset's own functions: the host bridge of the Q35 and the LPC bridge of the ICH9.
//!
//! Intel 3 Series Express Chipset Family data sheet, 316966-002, chapter 5; Intel ICH9 data sheet, 316972-004, 13.1.

use super::{
    PciFunction,
    config::{ConfigEffect, ConfigSpace, ConfigSpaceState, Identity},
    spec::{COMMAND_STATUS, Command, SUBSYSTEM, Status, class},
};

const INTEL: u16 = 0x8086;
const MIB: u64 = 1 << 20;

/// Registers of the host bridge.
mod mch {
    pub const DEVICE_ID: u16 = 0x29c0;
    pub const REVISION: u8 = 0x02;
    pub const EPBAR: u8 = 0x40;
    pub const MCHBAR: u8 = 0x48;
    pub const DEVEN: u8 = 0x54;
    pub const PCIEXBAR: u8 = 0x60;
    pub const DMIBAR: u8 = 0x68;
    /// PAM0 to PAM3, then PAM4 to PAM6 and LAC.
    pub const PAM0: u8 = 0x90;
    pub const PAM4: u8 = 0x94;
    /// SMRAM and ESMRAMC are its second and third byte.
    pub const SMRAM: u8 = 0x9c;
    /// TOM, and TOUUD above it.
    pub const TOM: u8 = 0xa0;
    /// TOLUD, in its lower half.
    pub const TOLUD: u8 = 0xb0;
    pub const SKPD: u8 = 0xdc;

    /// Of [`PCIEXBAR`]: decoded, and how many buses (5.1.16).
    pub const PCIEXBAR_ENABLE: u32 = 1;
    pub const PCIEXBAR_LENGTH: u32 = 3 << 1;
    pub const PCIEXBAR_WRITABLE: u32 = 0xfc00_0007;
    pub const PCIEXBAR_HIGH: u32 = 0xf;
}

/// Registers of the LPC bridge.
mod lpc {
    pub const DEVICE_ID: u16 = 0x2918;
    pub const REVISION: u8 = 0x02;
    pub const PMBASE: u8 = 0x40;
    /// A byte.
    pub const ACPI_CNTL: u8 = 0x44;
    pub const GPIOBASE: u8 = 0x48;
    /// A byte.
    pub const GPIO_CNTL: u8 = 0x4c;
    /// PIRQA to PIRQD.
    pub const PIRQ_ABCD: u8 = 0x60;
    /// A byte.
    pub const SERIRQ: u8 = 0x64;
    /// PIRQE to PIRQH.
    pub const PIRQ_EFGH: u8 = 0x68;
    /// LPC_I/O_DEC and LPC_EN.
    pub const IO_DECODE: u8 = 0x80;
    pub const GEN1_DEC: u8 = 0x84;
    pub const GEN2_DEC: u8 = 0x88;
    pub const GEN3_DEC: u8 = 0x8c;
    pub const GEN4_DEC: u8 = 0x90;
    pub const GEN_PMCON_1: u8 = 0xa0;
    pub const GEN_PMCON_3: u8 = 0xa4;
    pub const FWH_SEL1: u8 = 0xd0;
    pub const FWH_SEL2: u8 = 0xd4;
    /// FWH_DEC_EN1, and BIOS_CNTL in the next dword.
    pub const FWH_DEC_EN1: u8 = 0xd8;
    pub const BIOS_CNTL: u8 = 0xdc;
    /// Feature detection: a vendor capability of 12 bytes.
    pub const FDCAP: u8 = 0xe0;
    pub const FDCAP_ID: u32 = 0x100c_0009;
    pub const RCBA: u8 = 0xf0;

    pub const PMBASE_ADDRESS: u32 = 0xff80;
    pub const GPIOBASE_ADDRESS: u32 = 0xff80;
    pub const BASE_IS_IO: u32 = 1;
    pub const ACPI_EN: u8 = 1 << 7;
    pub const SCI_IRQ_SEL: u8 = 7;
    /// Bit 7 disables, the low four are the IRQ.
    pub const PIRQ_WRITABLE: u32 = 0x8f8f_8f8f;
    pub const PIRQ_DISABLED: u8 = 1 << 7;
    /// After reset all are disabled.
    pub const PIRQ_DEFAULT: u32 = 0x8080_8080;
    pub const RCBA_ADDRESS: u32 = 0xffff_c000;
    pub const RCBA_ENABLE: u32 = 1;
}

/// The host bridge, 00:00.0: the memory map's registers, as firmware has set them. Only the one for configuration space in memory moves
/// anything; the rest of the board's memory map is fixed.
#[derive(Debug)]
pub struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    /// `memory_below_4g` is the top of low memory, `memory_above_4g` what there is above 4 GiB, in bytes. `ecam`: where firmware has put
    /// the configuration space of all 256 buses in memory, a multiple of 256 MiB below 64 GiB.
    #[must_use]
    pub fn new(memory_below_4g: u64, memory_above_4g: u64, ecam: u64) -> Self {
        let mut config = ConfigSpace::new(&Identity {
            vendor: INTEL,
            device: mch::DEVICE_ID,
            revision: mch::REVISION,
            class: class::HOST_BRIDGE,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        // 5.1.3: memory access and bus mastering are always on.
        let command = Command::MEMORY | Command::BUS_MASTER;
        config.define(COMMAND_STATUS, command.bits().into(), Command::SERR.bits().into());
        config.set_status(Status::FAST_BACK_TO_BACK, true);
        for (base, low, high) in
            [(mch::EPBAR, 0xffff_f001, 0xf), (mch::MCHBAR, 0xffff_c001, 0xf), (mch::DMIBAR, 0xffff_f001, 0xf)]
        {
            config.define(base, 0, low);
            config.define(base + 4, 0, high);
        }
        config.define(mch::PCIEXBAR, ecam as u32 & 0xf000_0000 | mch::PCIEXBAR_ENABLE, mch::PCIEXBAR_WRITABLE);
        config.define(mch::PCIEXBAR + 4, (ecam >> 32) as u32 & mch::PCIEXBAR_HIGH, mch::PCIEXBAR_HIGH);
        // The host bridge itself is there.
        config.define(mch::DEVEN, 1, 0x3ca);
        // Reads and writes of 0xc0000 to 0xfffff go to memory.
        config.define(mch::PAM0, 0x3333_3330, 0x3333_3330);
        config.define(mch::PAM4, 0x0033_3333, 0x8133_3333);
        config.define(mch::SMRAM, 0x0038_0200, 0x00c7_7000);
        let top = memory_below_4g.saturating_add(memory_above_4g) / MIB;
        let top_above = if memory_above_4g > 0 { (1u64 << 32).saturating_add(memory_above_4g) / MIB } else { 0 };
        let tom = (top / 64).min(0x1ff) as u32;
        config.define(mch::TOM, (top_above.min(0xffff) as u32) << 16 | tom, 0xffff_01ff);
        config.define(mch::TOLUD, ((memory_below_4g / MIB).min(0xfff) as u32) << 4, 0xfff0);
        config.define(mch::SKPD, 0, u32::MAX);
        Self { config }
    }

    /// Where configuration space is in memory (first address, bytes), if it is: 1 MiB for each bus (5.1.16).
    #[must_use]
    pub fn ecam(&self) -> Option<(u64, u64)> {
        let low = self.config.read(mch::PCIEXBAR);
        let size = match (low & mch::PCIEXBAR_LENGTH) >> 1 {
            0 => 256 * MIB,
            1 => 128 * MIB,
            2 => 64 * MIB,
            _ => return None,
        };
        let base = u64::from(self.config.read(mch::PCIEXBAR + 4)) << 32 | u64::from(low & 0xfc00_0000);
        (low & mch::PCIEXBAR_ENABLE != 0).then_some((base & !(size - 1), size))
    }
}

impl PciFunction for HostBridge {
    type State = ConfigSpaceState;

    fn config_read(&self, offset: u8) -> u32 {
        self.config.read(offset)
    }

    fn config_write(&mut self, offset: u8, value: u32, mask: u32) -> ConfigEffect {
        let before = self.ecam();
        let effect = self.config.write(offset, value, mask);
        if self.ecam() == before { effect } else { ConfigEffect::Ecam }
    }

    fn save(&self) -> ConfigSpaceState {
        let Self { config } = self;
        config.save()
    }

    fn restore(&mut self, state: &ConfigSpaceState) {
        self.config.restore(state);
    }
}

/// The LPC bridge, 00:1f.0.
#[derive(Debug)]
pub struct LpcBridge {
    config: ConfigSpace,
}

impl LpcBridge {
    /// The bridge as firmware leaves it: the ACPI block decoded at port `pm_base` (a multiple of 128), its SCI on IRQ 9, and
    /// the PIRQs led to `pirq_irqs` of the 8259 pair, where those are some.
    #[must_use]
    pub fn new(pm_base: u16, pirq_irqs: [Option<u8>; 8]) -> Self {
        let mut config = ConfigSpace::new(&Identity {
            vendor: INTEL,
            device: lpc::DEVICE_ID,
            revision: lpc::REVISION,
            class: class::ISA_BRIDGE,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        // 13.1.3: I/O, memory and bus mastering are always on. 13.1.4: medium DEVSEL timing.
        let command = Command::IO | Command::MEMORY | Command::BUS_MASTER;
        config.define(COMMAND_STATUS, command.bits().into(), (Command::PARITY_ERROR | Command::SERR).bits().into());
        config.set_status(Status::DEVSEL_MEDIUM, true);
        config.define(super::spec::HEADER, 0, 0);
        config.define(super::spec::INTERRUPT, 0, 0);
        config.set_multifunction();
        // 13.1.12: can be written once; here nobody has.
        config.define(SUBSYSTEM, 0, 0);
        let pm_base = u32::from(pm_base) & lpc::PMBASE_ADDRESS | lpc::BASE_IS_IO;
        config.define(lpc::PMBASE, pm_base, lpc::PMBASE_ADDRESS);
        config.define(lpc::ACPI_CNTL, lpc::ACPI_EN.into(), (lpc::ACPI_EN | lpc::SCI_IRQ_SEL).into());
        config.define(lpc::GPIOBASE, lpc::BASE_IS_IO, lpc::GPIOBASE_ADDRESS);
        config.define(lpc::GPIO_CNTL, 0, 0x11);
        let mut routes = lpc::PIRQ_DEFAULT.to_le_bytes().repeat(2);
        for (route, irq) in routes.iter_mut().zip(pirq_irqs) {
            if let Some(irq) = irq {
                *route = irq & 0xf;
            }
        }
        let dword = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
        config.define(lpc::PIRQ_ABCD, dword(&routes[..4]), lpc::PIRQ_WRITABLE);
        config.define(lpc::PIRQ_EFGH, dword(&routes[4..]), lpc::PIRQ_WRITABLE);
        config.define(lpc::SERIRQ, 0x10, 0xff);
        // COM1, keyboard controller and so on are decoded.
        config.define(lpc::IO_DECODE, 0x3c07_0010, 0x3f0f_1377);
        for range in [lpc::GEN1_DEC, lpc::GEN2_DEC, lpc::GEN3_DEC, lpc::GEN4_DEC] {
            config.define(range, 0, 0x00fc_fffd);
        }
        config.define(lpc::GEN_PMCON_1, 0, 0x0000_07ff);
        config.define(lpc::GEN_PMCON_3, 0, 0x0000_00f9);
        config.define(lpc::FWH_SEL1, 0x0011_2233, 0x7777_7777);
        config.define(lpc::FWH_SEL2, 0x0000_4567, 0x0000_7777);
        config.define(lpc::FWH_DEC_EN1, 0x0000_ffcf, 0x0000_ffcf);
        config.define(lpc::BIOS_CNTL, 0, 0x0000_001f);
        config.define(lpc::FDCAP, lpc::FDCAP_ID, 0);
        config.link_capability(lpc::FDCAP);
        config.define(lpc::RCBA, 0, lpc::RCBA_ADDRESS | lpc::RCBA_ENABLE);
        Self { config }
    }

    /// The IRQ of the 8259 pair that `pirq` (0 for A to 7 for H) is led to, if it is. Some IRQs cannot be (13.1.19).
    #[must_use]
    pub fn pirq_route(&self, pirq: u8) -> Option<u8> {
        let first = if pirq & 4 == 0 { lpc::PIRQ_ABCD } else { lpc::PIRQ_EFGH };
        let route = self.config.read_byte(first + (pirq & 3));
        let irq = route & 0xf;
        (route & lpc::PIRQ_DISABLED == 0 && !matches!(irq, 0..=2 | 8 | 13)).then_some(irq)
    }

    /// The first port of the ACPI block, if it is decoded.
    #[must_use]
    pub fn pm_base(&self) -> Option<u16> {
        let enabled = self.config.read_byte(lpc::ACPI_CNTL) & lpc::ACPI_EN != 0;
        enabled.then_some((self.config.read(lpc::PMBASE) & lpc::PMBASE_ADDRESS) as u16)
    }

    /// The interrupt that the SCI is led to: an IRQ of the 8259 pair and IOAPIC pin (9 to 11), or a pin (20 to 23). `None`
    /// for the reserved encoding.
    #[must_use]
    pub fn sci_irq(&self) -> Option<u8> {
        match self.config.read_byte(lpc::ACPI_CNTL) & lpc::SCI_IRQ_SEL {
            select @ 0..=2 => Some(9 + select),
            3 => None,
            select => Some(16 + select),
        }
    }

    /// The chipset's memory-mapped registers (root complex base address), if they are decoded.
    #[must_use]
    pub fn rcba(&self) -> Option<u32> {
        let rcba = self.config.read(lpc::RCBA);
        (rcba & lpc::RCBA_ENABLE != 0).then_some(rcba & lpc::RCBA_ADDRESS)
    }
}

impl PciFunction for LpcBridge {
    type State = ConfigSpaceState;

    fn config_read(&self, offset: u8) -> u32 {
        self.config.read(offset)
    }

    fn config_write(&mut self, offset: u8, value: u32, mask: u32) -> ConfigEffect {
        let before = self.config.read(offset);
        self.config.write(offset, value, mask);
        if self.config.read(offset) == before {
            return ConfigEffect::None;
        }
        match offset & !3 {
            lpc::PIRQ_ABCD | lpc::PIRQ_EFGH => ConfigEffect::PirqRoutes,
            lpc::PMBASE | lpc::ACPI_CNTL => ConfigEffect::PmBase,
            _ => ConfigEffect::None,
        }
    }

    fn save(&self) -> ConfigSpaceState {
        let Self { config } = self;
        config.save()
    }

    fn restore(&mut self, state: &ConfigSpaceState) {
        self.config.restore(state);
    }
}
