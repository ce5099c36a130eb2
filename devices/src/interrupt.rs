//! Interrupt messages: what an IOAPIC pin, a device's MSI or a local APIC's ICR sends, and how a local APIC knows that it is meant.
//!
//! Section numbers are those of the Intel SDM vol. 3A (325384-083), chapter 11.

use serde::{Deserialize, Serialize};

/// Most vCPUs that an [`CpuSet`] holds, and so a guest has.
pub const MAX_VCPUS: usize = 64;

/// The physical destination that every local APIC takes for its own (11.12.9). Senders with 8-bit destinations mean it by 0xff and
/// their messages are widened when they are made.
pub const BROADCAST: u32 = u32::MAX;

/// How an interrupt reaches the processor (11.5.1, "Delivery Mode").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum DeliveryMode {
    /// The vector, at every destination.
    Fixed = 0,
    /// The vector, at that one of the destinations which does the least important work.
    LowestPriority = 1,
    Smi = 2,
    Nmi = 4,
    Init = 5,
    /// SIPI: the vector is the 4-KiB page number where the processor starts.
    StartUp = 6,
    /// The vector comes from the 8259 pair.
    ExtInt = 7,
}

impl DeliveryMode {
    /// From the three-bit field; `None` for the reserved encoding 3.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::StartUp),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }

    /// True for the modes that set the vector in a local APIC's IRR.
    #[inline]
    #[must_use]
    pub const fn is_vectored(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// How the destination field is read (11.6.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DestinationMode {
    /// It is an APIC ID.
    Physical,
    /// It is compared with each local APIC's logical ID.
    Logical,
}

impl DestinationMode {
    #[inline]
    #[must_use]
    pub const fn from_bit(logical: bool) -> Self {
        if logical { Self::Logical } else { Self::Physical }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Trigger {
    Edge,
    /// Its EOI is made known to the IOAPICs.
    Level,
}

impl Trigger {
    #[inline]
    #[must_use]
    pub const fn from_bit(level: bool) -> Self {
        if level { Self::Level } else { Self::Edge }
    }
}

/// An interrupt on its way to the local APICs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptMessage {
    /// APIC ID or message destination address; [`BROADCAST`] is for all.
    pub destination: u32,
    pub destination_mode: DestinationMode,
    pub delivery: DeliveryMode,
    pub vector: u8,
    pub trigger: Trigger,
}

impl InterruptMessage {
    /// The interrupt that a device's write of `data` to `address` stands for (11.11); `None` if that is no interrupt: another address,
    /// a reserved delivery mode, or the (meaningless) de-assertion of a level.
    #[must_use]
    pub const fn from_msi(address: u64, data: u32) -> Option<Self> {
        const REDIRECTION_HINT: u64 = 1 << 3;
        const LOGICAL: u64 = 1 << 2;
        const ASSERT: u32 = 1 << 14;
        const LEVEL: u32 = 1 << 15;
        if address >> 20 != 0xfee || data & (ASSERT | LEVEL) == LEVEL {
            return None;
        }
        let destination_mode = DestinationMode::from_bit(address & LOGICAL != 0);
        let delivery = match DeliveryMode::from_bits(data >> 8) {
            None | Some(DeliveryMode::StartUp) => return None,
            // "Redirection hint": one of the processors that the logical destination names.
            Some(DeliveryMode::Fixed)
                if address & REDIRECTION_HINT != 0 && matches!(destination_mode, DestinationMode::Logical) =>
            {
                DeliveryMode::LowestPriority
            }
            Some(delivery) => delivery,
        };
        Some(Self {
            destination: Self::widen((address >> 12) as u8, destination_mode),
            destination_mode,
            delivery,
            vector: data as u8,
            trigger: Trigger::from_bit(data & LEVEL != 0),
        })
    }

    /// An 8-bit destination as one of 32 bits: 0xff as a physical one is the broadcast of both sizes.
    #[inline]
    #[must_use]
    pub const fn widen(destination: u8, mode: DestinationMode) -> u32 {
        match mode {
            DestinationMode::Physical if destination == 0xff => BROADCAST,
            _ => destination as u32,
        }
    }
}

/// What the mode bits of IA32_APIC_BASE make of a local APIC (11.12.1, table 11-5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApicMode {
    /// Globally disabled: the processor works as one without an APIC.
    Disabled,
    /// Registers in memory, 8-bit IDs.
    XApic,
    /// Registers as MSRs, 32-bit IDs.
    X2Apic,
}

/// All that decides whether a message is meant for a local APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ApicAddress {
    pub mode: ApicMode,
    /// The full (x2APIC) ID.
    pub id: u32,
    /// The LDR, in the format of the mode.
    pub ldr: u32,
    /// The DFR; without meaning in x2APIC mode.
    pub dfr: u32,
}

impl ApicAddress {
    /// True if this local APIC takes a message with that destination for itself.
    #[inline]
    #[must_use]
    pub const fn matches(&self, mode: DestinationMode, destination: u32) -> bool {
        if matches!(self.mode, ApicMode::Disabled) {
            return false;
        }
        if destination == BROADCAST {
            return true;
        }
        match (mode, self.mode) {
            (DestinationMode::Physical, ApicMode::X2Apic) => destination == self.id,
            (DestinationMode::Physical, _) => destination == self.id & 0xff,
            // Cluster in the high half, a bit for each member in the low half (11.12.10.1).
            (DestinationMode::Logical, ApicMode::X2Apic) => {
                destination >> 16 == self.ldr >> 16 && destination & self.ldr & 0xffff != 0
            }
            (DestinationMode::Logical, _) => destination <= 0xff && self.matches_8_bit(destination as u8),
        }
    }

    /// Logical destinations in xAPIC mode (11.6.2.2).
    const fn matches_8_bit(&self, destination: u8) -> bool {
        let own = (self.ldr >> 24) as u8;
        if self.dfr >> 28 == 0xf {
            // Flat model: a bit for each APIC.
            return destination & own != 0;
        }
        // Cluster model: cluster number in the high half, a bit for each member in the low half; all ones is a broadcast.
        destination == 0xff || destination >> 4 == own >> 4 && destination & own & 0xf != 0
    }
}

/// Whom an IPI is for, besides its destination field (11.6.1, "Destination Shorthand").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum Shorthand {
    /// The destination field says.
    None = 0,
    Myself = 1,
    AllIncludingSelf = 2,
    AllExcludingSelf = 3,
}

impl Shorthand {
    /// From the two-bit field.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Self::None,
            1 => Self::Myself,
            2 => Self::AllIncludingSelf,
            _ => Self::AllExcludingSelf,
        }
    }
}

/// The interrupt that a write to a local APIC's ICR asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipi {
    pub shorthand: Shorthand,
    pub message: InterruptMessage,
}

/// The local APICs, by their index, that `shorthand` and the destination name. `apics`: all of them in order; the first
/// [`MAX_VCPUS`] count. `sender`: the index of the one that sends; `None` for a message from elsewhere.
#[must_use]
pub fn destinations(
    apics: impl Iterator<Item = ApicAddress>,
    sender: Option<usize>,
    shorthand: Shorthand,
    mode: DestinationMode,
    destination: u32,
) -> CpuSet {
    let mut set = CpuSet::EMPTY;
    for (index, address) in apics.enumerate().take(MAX_VCPUS) {
        let is_sender = sender == Some(index);
        let meant = match shorthand {
            Shorthand::None => address.matches(mode, destination),
            Shorthand::Myself => is_sender,
            Shorthand::AllIncludingSelf => address.mode != ApicMode::Disabled,
            Shorthand::AllExcludingSelf => address.mode != ApicMode::Disabled && !is_sender,
        };
        if meant {
            set.insert(index);
        }
    }
    set
}

/// A set of vCPUs of one guest, by their index.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuSet(pub u64);

impl CpuSet {
    pub const EMPTY: Self = Self(0);

    /// The set of one vCPU; empty if `index` is not below [`MAX_VCPUS`].
    #[inline]
    #[must_use]
    pub const fn single(index: usize) -> Self {
        if index < MAX_VCPUS { Self(1 << index) } else { Self::EMPTY }
    }
    #[inline]
    pub const fn insert(&mut self, index: usize) {
        self.0 |= Self::single(index).0;
    }
    #[inline]
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    #[inline]
    #[must_use]
    pub const fn contains(self, index: usize) -> bool {
        self.0 & Self::single(index).0 != 0
    }
    #[inline]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// The indices, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            let index = rest.checked_ilog2().map(|_| rest.trailing_zeros() as usize)?;
            rest &= rest - 1;
            Some(index)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn xapic(id: u32, logical: u8, dfr: u32) -> ApicAddress {
        ApicAddress { mode: ApicMode::XApic, id, ldr: u32::from(logical) << 24, dfr }
    }

    fn x2apic(id: u32) -> ApicAddress {
        ApicAddress { mode: ApicMode::X2Apic, id, ldr: crate::lapic::logical_x2apic_id(id), dfr: u32::MAX }
    }

    fn named(apics: &[ApicAddress], mode: DestinationMode, destination: u32) -> Vec<usize> {
        destinations(apics.iter().copied(), None, Shorthand::None, mode, destination).iter().collect()
    }

    use DestinationMode::{Logical, Physical};

    #[test]
    fn physical_destination_is_an_id() {
        let eight: Vec<_> = (0..4).map(|id| xapic(id, 0, u32::MAX)).collect();
        assert_eq!(named(&eight, Physical, 2), [2]);
        assert_eq!(named(&eight, Physical, 9), []);
        assert_eq!(named(&eight, Physical, BROADCAST), [0, 1, 2, 3]);
        // A 32-bit destination does not alias to an 8-bit ID, and 0xff is an ordinary x2APIC ID.
        assert_eq!(named(&eight, Physical, 0x102), []);
        let wide = [x2apic(0), x2apic(0xff), x2apic(0x102)];
        assert_eq!(named(&wide, Physical, 0xff), [1]);
        assert_eq!(named(&wide, Physical, 0x102), [2]);
        assert_eq!(named(&wide, Physical, BROADCAST), [0, 1, 2]);
    }

    #[test]
    fn flat_logical_destination_is_a_mask() {
        let apics = [xapic(0, 1, u32::MAX), xapic(1, 2, u32::MAX), xapic(2, 4, u32::MAX), xapic(3, 0, u32::MAX)];
        assert_eq!(named(&apics, Logical, 5), [0, 2]);
        assert_eq!(named(&apics, Logical, 0), []);
        // An APIC without a logical ID is not meant by a mask of all ones.
        assert_eq!(named(&apics, Logical, 0xff), [0, 1, 2]);
    }

    #[test]
    fn clustered_logical_destination_is_cluster_and_mask() {
        let cluster = 0x0fff_ffff;
        let apics = [xapic(0, 0x11, cluster), xapic(1, 0x12, cluster), xapic(2, 0x21, cluster), xapic(3, 0x28, cluster)];
        assert_eq!(named(&apics, Logical, 0x13), [0, 1]);
        assert_eq!(named(&apics, Logical, 0x29), [2, 3]);
        assert_eq!(named(&apics, Logical, 0x31), []);
        assert_eq!(named(&apics, Logical, 0xff), [0, 1, 2, 3]);
    }

    #[test]
    fn x2apic_logical_destination_is_wide_cluster_and_mask() {
        let apics = [x2apic(0), x2apic(5), x2apic(16), x2apic(0x25)];
        assert_eq!(named(&apics, Logical, 0x0000_0021), [0, 1]);
        assert_eq!(named(&apics, Logical, 0x0001_0001), [2]);
        assert_eq!(named(&apics, Logical, 0x0002_0020), [3]);
        assert_eq!(named(&apics, Logical, BROADCAST), [0, 1, 2, 3]);
    }

    #[test]
    fn shorthands_ignore_the_destination_and_disabled_apics_hear_nothing() {
        let mut apics = [x2apic(0), x2apic(1), x2apic(2)];
        apics[2].mode = ApicMode::Disabled;
        let by =
            |shorthand| -> Vec<usize> { destinations(apics.iter().copied(), Some(1), shorthand, Physical, 7).iter().collect() };
        assert_eq!(by(Shorthand::None), []);
        assert_eq!(by(Shorthand::Myself), [1]);
        assert_eq!(by(Shorthand::AllIncludingSelf), [0, 1]);
        assert_eq!(by(Shorthand::AllExcludingSelf), [0]);
        assert_eq!(named(&apics, Physical, 2), []);
        assert_eq!(named(&apics, Physical, BROADCAST), [0, 1]);
    }

    #[test]
    fn msi_address_and_data_become_a_message() {
        let fixed = InterruptMessage::from_msi(0xfee0_3000, 0x0041).unwrap();
        assert_eq!((fixed.destination, fixed.vector, fixed.delivery), (3, 0x41, DeliveryMode::Fixed));
        assert_eq!((fixed.destination_mode, fixed.trigger), (Physical, Trigger::Edge));

        let logical = InterruptMessage::from_msi(0xfee0_f00c, 0xc141).unwrap();
        assert_eq!((logical.destination, logical.delivery), (0xf, DeliveryMode::LowestPriority));
        assert_eq!((logical.destination_mode, logical.trigger), (Logical, Trigger::Level));
        // The redirection hint alone makes one of many, too.
        assert_eq!(InterruptMessage::from_msi(0xfee0_f00c, 0x41).unwrap().delivery, DeliveryMode::LowestPriority);
        assert_eq!(InterruptMessage::from_msi(0xfeef_f000, 0x41).unwrap().destination, BROADCAST);

        assert_eq!(InterruptMessage::from_msi(0xfee0_0000, 0x8041), None, "level de-assertion");
        assert_eq!(InterruptMessage::from_msi(0xfee0_0000, 0x0341), None, "reserved delivery mode");
        assert_eq!(InterruptMessage::from_msi(0xfed0_0000, 0x41), None);
        assert_eq!(InterruptMessage::from_msi(0x1_fee0_0000, 0x41), None);
    }

    #[test]
    fn cpu_set_ends_at_its_size() {
        let mut set = CpuSet::EMPTY;
        for index in [63, 0, 64, 1000, 5] {
            set.insert(index);
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 5, 63]);
        assert!(set.contains(63) && !set.contains(64));
    }
}
