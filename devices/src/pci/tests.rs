use super::*;
use crate::misc::Reset;
use proptest::prelude::*;
use std::vec::Vec;

const NOW: Time = Time(0);
const PIRQ_IRQS: [Option<u8>; 8] = [Some(10), Some(11), Some(10), Some(11), None, Some(5), None, None];

/// A function with a bit of everything.
struct Device(ConfigSpace);

impl Device {
    fn new() -> Self {
        let mut config = ConfigSpace::new(&Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_8000,
            subsystem_vendor: 0x1af4,
            subsystem: 2,
        });
        config.add_bar(0, BarKind::Io, 0x40).unwrap();
        config.add_bar(1, BarKind::Memory32 { prefetchable: false }, 0x1000).unwrap();
        config.add_bar(4, BarKind::Memory64 { prefetchable: true }, 1 << 33).unwrap();
        config.set_interrupt_pin(1);
        config.add_capability(0x11, &[0x03, 0x80, 0, 0, 0, 0, 0, 0, 0, 0], &[0, 0xc0]).unwrap();
        config.add_capability(0x09, &[0x10, 1, 2], &[]).unwrap();
        Self(config)
    }
}

impl PciFunction for Device {
    type State = ConfigSpaceState;

    fn config_read(&self, offset: u8) -> u32 {
        self.0.read(offset)
    }
    fn config_write(&mut self, offset: u8, value: u32, mask: u32) -> ConfigEffect {
        self.0.write(offset, value, mask)
    }
    fn save(&self) -> ConfigSpaceState {
        self.0.save()
    }
    fn restore(&mut self, state: &ConfigSpaceState) {
        self.0.restore(state);
    }
}

fn board() -> PciBus<ChipsetFunction> {
    let mut bus = PciBus::new();
    bus.add(HOST_BRIDGE, ChipsetFunction::HostBridge(HostBridge::new(2 << 30, 1 << 30, 0xb000_0000))).unwrap();
    bus.add(LPC_BRIDGE, ChipsetFunction::LpcBridge(LpcBridge::new(0x600, PIRQ_IRQS))).unwrap();
    bus
}

fn device() -> PciBus<Device> {
    let mut bus = PciBus::new();
    bus.add(DevFn::new(3, 0), Device::new()).unwrap();
    bus
}

fn select<F: PciFunction>(bus: &mut PciBus<F>, device: u8, register: u8) {
    let address = 0x8000_0000 | u32::from(device) << 11 | u32::from(register & 0xfc);
    bus.port_write(NOW, 0, Width::Dword, address);
}

fn read<F: PciFunction>(bus: &mut PciBus<F>, device: u8, register: u8, width: Width) -> u32 {
    select(bus, device, register);
    bus.port_read(NOW, 4 + u16::from(register & 3), width)
}

fn write<F: PciFunction>(bus: &mut PciBus<F>, device: u8, register: u8, width: Width, value: u32) {
    select(bus, device, register);
    bus.port_write(NOW, 4 + u16::from(register & 3), width, value);
}

/// pci_check_type1() and pci_sanity_check(), then the bus scan.
#[test]
fn linux_finds_the_chipset() {
    let mut bus = board();
    bus.port_write(NOW, 3, Width::Byte, 0x01);
    bus.port_write(NOW, 0, Width::Dword, 0x8000_0000);
    assert_eq!(bus.port_read(NOW, 0, Width::Dword), 0x8000_0000);
    assert_eq!(read(&mut bus, 0, 0x0a, Width::Word), 0x0600);
    let found: Vec<(u8, u32)> =
        (0..32).map(|device| (device, read(&mut bus, device, 0, Width::Dword))).filter(|(_, id)| *id != u32::MAX).collect();
    assert_eq!(found, [(0, 0x29c0_8086), (31, 0x2918_8086)]);
    assert_eq!(read(&mut bus, 0, 0x0e, Width::Byte), 0x00);
    assert_eq!(read(&mut bus, 31, 0x0e, Width::Byte), 0x80);
    assert_eq!(read(&mut bus, 31, 0x0a, Width::Word), 0x0601);
    // The bridge's other functions, and other buses, are not there.
    bus.port_write(NOW, 0, Width::Dword, 0x8000_f900);
    assert_eq!(bus.port_read(NOW, 4, Width::Dword), u32::MAX);
    bus.port_write(NOW, 0, Width::Dword, 0x8001_0000);
    assert_eq!(bus.port_read(NOW, 4, Width::Word), 0xffff);
    bus.port_write(NOW, 0, Width::Dword, 0x0000_0000);
    assert_eq!(bus.port_read(NOW, 4, Width::Byte), 0xff, "not enabled");
    // quirk_ich6_lpc(): the ACPI block.
    assert_eq!(read(&mut bus, 31, 0x44, Width::Byte), 0x80);
    assert_eq!(read(&mut bus, 31, 0x40, Width::Dword), 0x601);
    assert_eq!(read(&mut bus, 31, 0x4c, Width::Byte), 0, "no GPIO");
    // No BARs, no ROM.
    for register in (0x10..0x34).step_by(4).filter(|r| *r != 0x2c) {
        for device in [0, 31] {
            write(&mut bus, device, register, Width::Dword, u32::MAX);
            assert_eq!(read(&mut bus, device, register, Width::Dword), 0);
        }
    }
    // Always decoding.
    write(&mut bus, 31, 4, Width::Word, 0);
    assert_eq!(read(&mut bus, 31, 4, Width::Dword), 0x0210_0007);
    assert_eq!(read(&mut bus, 31, 0x34, Width::Byte), 0xe0);
    assert_eq!(read(&mut bus, 31, 0xe0, Width::Word), 0x0009);
}

#[test]
fn narrow_accesses_to_the_address_are_nothing() {
    let mut bus = board();
    bus.port_write(NOW, 0, Width::Dword, 0xffff_ffff);
    assert_eq!(bus.port_read(NOW, 0, Width::Dword), 0x80ff_fffc);
    bus.port_write(NOW, 0, Width::Byte, 0);
    bus.port_write(NOW, 2, Width::Word, 0);
    assert_eq!(bus.port_read(NOW, 0, Width::Dword), 0x80ff_fffc);
    assert_eq!(bus.port_read(NOW, 0, Width::Word), 0xffff);
}

#[test]
fn reset_register_between_the_address_bytes() {
    let mut bus = board();
    bus.port_write(NOW, 0, Width::Dword, 0x8000_0600);
    assert_eq!(bus.reset.take_event(), None);
    // Linux's reboot by CF9: 2, then 6.
    bus.port_write(NOW, 1, Width::Byte, 0x02);
    bus.port_write(NOW, 1, Width::Byte, 0x06);
    assert_eq!(bus.reset.take_event(), Some(Reset::Hard));
    assert_eq!(bus.port_read(NOW, 1, Width::Byte), 0x06);
    assert_eq!(bus.port_read(NOW, 0, Width::Dword), 0x8000_0600);
}

#[test]
fn pirq_routes() {
    let mut bus = board();
    let routes = |bus: &PciBus<ChipsetFunction>| {
        let bridge = bus.function(LPC_BRIDGE).unwrap().lpc_bridge().unwrap();
        core::array::from_fn(|pirq| bridge.pirq_route(pirq as u8))
    };
    assert_eq!(routes(&bus), PIRQ_IRQS);
    assert_eq!(read(&mut bus, 31, 0x60, Width::Dword), 0x0b0a_0b0a);
    assert_eq!(read(&mut bus, 31, 0x68, Width::Dword), 0x8080_0580);
    assert_eq!(bus.take_effect(), None);
    write(&mut bus, 31, 0x69, Width::Byte, 0x7b);
    assert_eq!(bus.take_effect(), Some((LPC_BRIDGE, ConfigEffect::PirqRoutes)));
    assert_eq!(bus.take_effect(), None);
    assert_eq!(read(&mut bus, 31, 0x69, Width::Byte), 0x0b);
    assert_eq!(routes(&bus)[5], Some(11));
    write(&mut bus, 31, 0x60, Width::Dword, 0x8b02_0d0c);
    assert_eq!(routes(&bus)[..4], [Some(12), None, None, None], "13 and 2 cannot be");
}

#[test]
fn acpi_block_can_be_moved_and_shut() {
    let mut bus = board();
    let pm_base = |bus: &PciBus<ChipsetFunction>| bus.function(LPC_BRIDGE).unwrap().lpc_bridge().unwrap().pm_base();
    assert_eq!(pm_base(&bus), Some(0x600));
    write(&mut bus, 31, 0x40, Width::Word, 0xb0ff);
    assert_eq!(bus.take_effect(), Some((LPC_BRIDGE, ConfigEffect::PmBase)));
    assert_eq!(read(&mut bus, 31, 0x40, Width::Dword), 0xb081);
    assert_eq!(pm_base(&bus), Some(0xb080));
    write(&mut bus, 31, 0x44, Width::Byte, 0x02);
    assert_eq!(pm_base(&bus), None);
    let bridge = bus.function(LPC_BRIDGE).unwrap().lpc_bridge().unwrap();
    assert_eq!(bridge.sci_irq(), Some(11));
    assert_eq!(bridge.rcba(), None);
    write(&mut bus, 31, 0xf0, Width::Dword, 0xfed1_ffff);
    assert_eq!(bus.function(LPC_BRIDGE).unwrap().lpc_bridge().unwrap().rcba(), Some(0xfed1_c000));
}

#[test]
fn host_bridge_tells_the_memory() {
    let mut bus = board();
    assert_eq!(read(&mut bus, 0, 0xb0, Width::Word), 0x8000, "TOLUD");
    assert_eq!(read(&mut bus, 0, 0xa0, Width::Word), 48, "TOM: 3 GiB by 64 MiB");
    assert_eq!(read(&mut bus, 0, 0xa2, Width::Word), 5 << 10, "TOUUD");
    assert_eq!(read(&mut bus, 0, 0x60, Width::Dword), 0xb000_0001, "PCIEXBAR: 256 buses at 2.75 GiB");
}

#[test]
fn bars_are_sized_and_placed() {
    let mut bus = device();
    let ones = u32::MAX;
    let size = |bus: &mut PciBus<Device>, register| {
        write(bus, 3, register, Width::Dword, ones);
        read(bus, 3, register, Width::Dword)
    };
    assert_eq!(size(&mut bus, 0x10), 0xffff_ffc1);
    assert_eq!(size(&mut bus, 0x14), 0xffff_f000);
    assert_eq!(size(&mut bus, 0x18), 0);
    assert_eq!(size(&mut bus, 0x20), 0x0000_000c);
    assert_eq!(size(&mut bus, 0x24), 0xffff_fffe);
    write(&mut bus, 3, 0x10, Width::Dword, 0xc000);
    write(&mut bus, 3, 0x14, Width::Dword, 0xfeb0_0123);
    write(&mut bus, 3, 0x20, Width::Dword, 0);
    write(&mut bus, 3, 0x24, Width::Dword, 0x8);
    let bars = |bus: &PciBus<Device>| [0, 1, 2, 4, 5, 9].map(|i| bus.function(DevFn::new(3, 0)).unwrap().0.bar(i));
    assert_eq!(bars(&bus), [None; 6], "nothing decodes yet");
    bus.take_effect();
    write(&mut bus, 3, 0x04, Width::Word, 0x0003);
    assert_eq!(bus.take_effect(), Some((DevFn::new(3, 0), ConfigEffect::Decode)));
    let expected = [Some((0xc000, 0x40)), Some((0xfeb0_0000, 0x1000)), None, Some((8 << 32, 1 << 33)), None, None];
    assert_eq!(bars(&bus), expected);
    write(&mut bus, 3, 0x04, Width::Word, 0x0003);
    assert_eq!(bus.take_effect(), None, "nothing changed");
    write(&mut bus, 3, 0x04, Width::Word, 0x0001);
    assert_eq!(bars(&bus)[1], None);
}

#[test]
fn header_fields_are_read_only_where_they_should_be() {
    let mut bus = device();
    for register in (0..0x40).step_by(4).filter(|r| !(0x10..0x28).contains(r)) {
        write(&mut bus, 3, register, Width::Dword, u32::MAX);
    }
    let header = [0, 0x04, 0x08, 0x0c, 0x2c, 0x30, 0x34, 0x3c].map(|r| read(&mut bus, 3, r, Width::Dword));
    assert_eq!(header, [0x1042_1af4, 0x0010_0547, 0x0180_0001, 0xffff, 0x0002_1af4, 0, 0x40, 0x01ff],);
}

#[test]
fn status_errors_are_cleared_by_ones() {
    let mut config = Device::new().0;
    config.set_status(Status::from_bits_retain(0x2000) | Status::INTERRUPT, true);
    assert_eq!(config.write(4, 0x0008_0000, 0xffff_0000), ConfigEffect::None);
    assert_eq!(config.read(4) >> 16, 0x2018);
    config.write(4, 0x2000_0000, 0xffff_0000);
    assert_eq!(config.read(4) >> 16, 0x0018);
}

#[test]
fn capabilities_are_linked() {
    let mut bus = device();
    assert_eq!(read(&mut bus, 3, 0x06, Width::Word) & 0x10, 0x10);
    assert_eq!(read(&mut bus, 3, 0x34, Width::Byte), 0x40);
    assert_eq!(read(&mut bus, 3, 0x40, Width::Dword), 0x8003_4c11);
    assert_eq!(read(&mut bus, 3, 0x4c, Width::Dword), 0x0110_0009);
    assert_eq!(read(&mut bus, 3, 0x50, Width::Byte), 2);
    write(&mut bus, 3, 0x40, Width::Dword, 0x4000_0000);
    assert_eq!(read(&mut bus, 3, 0x40, Width::Dword), 0x4003_4c11);
    let config = &mut bus.function_mut(DevFn::new(3, 0)).unwrap().0;
    assert_eq!(config.add_capability(9, &[0; 200], &[]), Err(CapabilitySpace(200)));
}

#[test]
fn impossible_bars_are_refused() {
    let mut config = Device::new().0;
    let memory = BarKind::Memory32 { prefetchable: false };
    let wide = BarKind::Memory64 { prefetchable: false };
    assert_eq!(config.add_bar(2, memory, 0x300), Err(BarError::Size(0x300)));
    assert_eq!(config.add_bar(2, memory, 8), Err(BarError::Size(8)));
    assert_eq!(config.add_bar(2, BarKind::Io, 0x200), Err(BarError::Size(0x200)));
    assert_eq!(config.add_bar(1, memory, 0x100), Err(BarError::Index(1)));
    assert_eq!(config.add_bar(5, memory, 0x100), Err(BarError::Index(5)));
    assert_eq!(config.add_bar(6, memory, 0x100), Err(BarError::Index(6)));
    assert_eq!(config.add_bar(3, wide, 0x100), Err(BarError::Index(3)));
    assert_eq!(config.add_bar(255, wide, 0x100), Err(BarError::Index(255)));
    assert_eq!(config.add_bar(2, wide, 0x100), Ok(()));
}

#[test]
fn one_function_a_place() {
    let mut bus = device();
    assert_eq!(bus.add(DevFn::new(3, 0), Device::new()), Err(SlotTaken(DevFn::new(3, 0))));
    assert!(bus.add(DevFn::new(3, 1), Device::new()).is_ok());
    assert!(bus.function(DevFn::new(4, 0)).is_none());
    assert_eq!((DevFn::new(31, 7).device(), DevFn::new(31, 7).function()), (31, 7));
}

fn op() -> impl Strategy<Value = (u16, Width, Option<u32>)> {
    let width = prop::sample::select(std::vec![Width::Byte, Width::Word, Width::Dword]);
    let address = prop_oneof![Just(0x8000_0000u32), Just(0x8000_f800), Just(0x8000_1800), any::<u32>()];
    prop_oneof![
        (0..8u16, width, prop::option::of(any::<u32>())),
        (address, 0..64u32).prop_map(|(a, r)| (0, Width::Dword, Some(a | r << 2))),
    ]
}

fn apply<F: PciFunction>(bus: &mut PciBus<F>, (offset, width, value): (u16, Width, Option<u32>)) -> u32 {
    match value {
        Some(value) => bus.port_write(NOW, offset, width, value & width.mask() as u32),
        None => return bus.port_read(NOW, offset, width),
    }
    0
}

fn same_after_restore<F: PciFunction>(new: impl Fn() -> PciBus<F>, ops: &[(u16, Width, Option<u32>)], cut: usize)
where
    F::State: PartialEq + core::fmt::Debug,
{
    let mut bus = new();
    let mut copy: Option<PciBus<F>> = None;
    for (i, &op) in ops.iter().enumerate() {
        let value = apply(&mut bus, op);
        if let Some(copy) = &mut copy {
            assert_eq!(apply(copy, op), value);
        }
        if i == cut {
            let mut other = new();
            other.restore(&bus.save());
            assert_eq!(other.save(), bus.save());
            copy = Some(other);
        }
    }
}

proptest! {
    #[test]
    fn any_sequence_survives_a_restore(ops in prop::collection::vec(op(), 1..200), cut in 0..200usize) {
        same_after_restore(board, &ops, cut);
        same_after_restore(device, &ops, cut);
    }

    /// Bytes, words and dwords of a register are the same bytes.
    #[test]
    fn widths_agree(device in 0..32u8, register in (0..64u8).prop_map(|r| r << 2)) {
        let mut bus = board();
        let dword = read(&mut bus, device, register, Width::Dword);
        let words = [0, 2].map(|i| read(&mut bus, device, register + i, Width::Word) as u16);
        let bytes = [0, 1, 2, 3].map(|i| read(&mut bus, device, register + i, Width::Byte) as u8);
        prop_assert_eq!(dword, u32::from(words[1]) << 16 | u32::from(words[0]));
        prop_assert_eq!(dword, u32::from_le_bytes(bytes));
    }
}
