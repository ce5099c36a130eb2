//! The DSDT: the devices that a system cannot find by itself, and how PCI interrupts are wired.

use super::{AcpiInput, tables::table};
use crate::layout;
use acpi_tables::{
    Aml, AmlSink,
    aml::{
        AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Field, FieldAccessType, FieldEntry,
        FieldLockRule, FieldUpdateRule, IO, If, Memory32Fixed, Method, MethodCall, Name, OpRegion, OpRegionSpace, Or,
        PackageBuilder, Path, ResourceTemplate, Return, Scope, Store, ZERO,
    },
    sdt::Sdt,
};
use alloc::{boxed::Box, format, vec, vec::Vec};

/// Revision 2: integers have 64 bits.
const REVISION: u8 = 2;

pub(super) fn dsdt(vcpus: u32, input: &AcpiInput) -> Sdt {
    let mut body = Vec::new();
    // Which interrupt controller the system uses: 0 the 8259 pair, 1 the IOAPIC; it says so by calling \_PIC.
    Name::new("\\PICF".into(), &ZERO).to_aml_bytes(&mut body);
    let set_mode = Store::new(&path("PICF"), &Arg(0)).bytes();
    Method::new("\\_PIC".into(), 1, false, vec![&Raw(set_mode)]).to_aml_bytes(&mut body);
    let s5 = package(&[&layout::S5_SLP_TYP, &layout::S5_SLP_TYP, &ZERO, &ZERO]);
    Name::new("\\_S5_".into(), &s5).to_aml_bytes(&mut body);

    let mut system_bus = Vec::new();
    for id in 0..vcpus {
        processor(id).to_aml_bytes(&mut system_bus);
    }
    pci_host(input).to_aml_bytes(&mut system_bus);
    if input.hpet {
        let registers = Memory32Fixed::new(false, layout::HPET_BASE as u32, devices::hpet::SIZE as u32);
        device("HPET", "PNP0103", 0, vec![&registers]).to_aml_bytes(&mut system_bus);
    }
    links(&mut system_bus);
    Scope::new("\\_SB_".into(), vec![&Raw(system_bus)]).to_aml_bytes(&mut body);

    let mut sdt = table(*b"DSDT", REVISION);
    sdt.append_slice(&body);
    sdt
}

/// AML that has been encoded already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

trait Encode: Aml {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.to_aml_bytes(&mut bytes);
        bytes
    }
}

impl<T: Aml> Encode for T {}

fn path(name: &str) -> Path {
    Path::new(name)
}

fn package(elements: &[&dyn Aml]) -> PackageBuilder {
    let mut package = PackageBuilder::new();
    elements.iter().for_each(|e| package.add_element(*e));
    package
}

/// IRQ descriptor without flags: edge-triggered, active high, exclusive (ACPI 6.4.2.1).
struct Irq(u8);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << self.0);
    }
}

/// Extended interrupt descriptor of a PCI interrupt: level-triggered, active low, shared; one of these (ACPI 6.4.3.6).
struct PciInterrupts<'a>(&'a [u32]);

/// Where the descriptor's first interrupt is, from its start.
const FIRST_INTERRUPT: u8 = 5;

impl Aml for PciInterrupts<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x89);
        sink.word(2 + 4 * self.0.len() as u16);
        // Consumer, level, active low, shared.
        sink.byte(0b1101);
        sink.byte(self.0.len() as u8);
        self.0.iter().for_each(|&irq| sink.dword(irq));
    }
}

/// A range of ports at a fixed place.
fn ports(first: u16, count: u8) -> IO {
    IO::new(first, first, 1, count)
}

/// A device with an EISA id, a number among its like, and resources.
fn device(name: &str, eisa_id: &str, uid: u8, resources: Vec<&dyn Aml>) -> Raw {
    let hid = Name::new("_HID".into(), &EISAName::new(eisa_id));
    let uid = Name::new("_UID".into(), &uid);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
    Raw(Device::new(name.into(), vec![&hid, &uid, &crs]).bytes())
}

/// ACPI 8.4. The MADT's entry has the same _UID.
fn processor(id: u32) -> Raw {
    let name = format!("C{id:03X}");
    let hid = Name::new("_HID".into(), &"ACPI0007");
    let uid = Name::new("_UID".into(), &id);
    Raw(Device::new(name.as_str().into(), vec![&hid, &uid]).bytes())
}

/// The PCI host bridge. It is a conventional PCI bus to the system, since there is nothing of PCI Express to hand over (_OSC).
fn pci_host(input: &AcpiInput) -> Raw {
    let before = layout::PCI_CONFIG_PORTS.start - 1;
    let mmio = layout::PCI_MMIO_WINDOW;
    let vga = layout::VGA_WINDOW;
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A03"));
    let uid = Name::new("_UID".into(), &ZERO);
    let bus = Name::new("_BBN".into(), &ZERO);
    let resources = Name::new(
        "_CRS".into(),
        &ResourceTemplate::new(vec![
            &AddressSpace::new_bus_number(0u16, u16::from(layout::PCI_LAST_BUS)),
            &ports(layout::PCI_CONFIG_PORTS.start, layout::PCI_CONFIG_PORTS.len() as u8),
            &AddressSpace::new_io(0u16, before, None),
            &AddressSpace::new_io(layout::PCI_CONFIG_PORTS.end, 0xffff, None),
            &AddressSpace::new_memory(AddressSpaceCacheable::Cacheable, true, vga.start as u32, vga.end as u32 - 1, None),
            &AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, mmio.start as u32, mmio.end as u32 - 1, None),
        ]),
    );
    // Interrupt routing (ACPI 6.2.13), by the controller in use.
    let apic = Name::new("PRTA".into(), &routing(|pirq| (Box::new(ZERO), layout::PIRQ_GSI_BASE + u32::from(pirq))));
    let pic = Name::new("PRTP".into(), &routing(|pirq| (Box::new(path(&format!("\\_SB_.{}", link_name(pirq)))), 0)));
    let use_apic = Raw(Return::new(&path("PRTA")).bytes());
    let use_pic = Raw(Return::new(&path("PRTP")).bytes());
    let if_apic = Raw(If::new(&path("PICF"), vec![&use_apic]).bytes());
    let prt = Method::new("_PRT".into(), 0, false, vec![&if_apic, &use_pic]);
    Raw(Device::new("PCI0".into(), vec![&hid, &uid, &bus, &resources, &apic, &pic, &prt, &lpc_bridge(input)]).bytes())
}

/// A _PRT package for every pin of every device on bus 0: device << 16 | any function, pin, source and its index as `target` says
/// for a PIRQ.
fn routing(target: impl Fn(u8) -> (Box<dyn Aml>, u32)) -> PackageBuilder {
    let mut table = PackageBuilder::new();
    for device in 0..32u8 {
        for pin in 0..4u8 {
            let (source, index) = target(layout::pci_pirq(device, pin));
            let address = u32::from(device) << 16 | 0xffff;
            table.add_element(&package(&[&address, &pin, source.as_ref(), &index]));
        }
    }
    table
}

/// Serial ports: name, first port, ISA IRQ.
const COMS: [(&str, u16, u8); 4] = [("COM1", 0x3f8, 4), ("COM2", 0x2f8, 3), ("COM3", 0x3e8, 4), ("COM4", 0x2e8, 3)];

/// The LPC bridge with the devices behind it.
fn lpc_bridge(input: &AcpiInput) -> Raw {
    let address = Name::new("_ADR".into(), &(u32::from(layout::LPC_DEVICE) << 16 | u32::from(layout::LPC_FUNCTION)));
    // The PIRQ routing registers, for the link devices.
    let [first, .., last] = layout::PIRQ_ROUTE_REGISTERS;
    let region = Raw(OpRegion::new("PIRR".into(), OpRegionSpace::PCIConfig, &first, &(last - first + 1)).bytes());
    let mut fields = Vec::new();
    let mut next = first;
    for (pirq, register) in layout::PIRQ_ROUTE_REGISTERS.into_iter().enumerate() {
        if register > next {
            fields.push(FieldEntry::Reserved(usize::from(register - next) * 8));
        }
        fields.push(FieldEntry::Named(register_name(pirq as u8), 8));
        next = register + 1;
    }
    let field = Field::new("PIRR".into(), FieldAccessType::Byte, FieldLockRule::NoLock, FieldUpdateRule::Preserve, fields);

    let mut coms = Vec::new();
    for (n, &(name, port, irq)) in (1u8..).zip(&COMS).filter(|(n, _)| input.coms.get(usize::from(*n) - 1) == Some(&true)) {
        device(name, "PNP0501", n, vec![&ports(port, 8), &Irq(irq)]).to_aml_bytes(&mut coms);
    }
    let coms = Raw(coms);
    let keyboard = device("KBD_", "PNP0303", 0, vec![&ports(0x60, 1), &ports(0x64, 1), &Irq(1)]);
    let mouse = device("MOU_", "PNP0F13", 0, vec![&Irq(12)]);
    let rtc = device("RTC_", "PNP0B00", 0, vec![&ports(0x70, 2), &Irq(8)]);
    let pic = device("PIC_", "PNP0000", 0, vec![&ports(0x20, 2), &ports(0xa0, 2), &ports(0x4d0, 2), &Irq(2)]);
    let timer = device("TIMR", "PNP0100", 0, vec![&ports(0x40, 4), &Irq(0)]);
    // What belongs to no other device here. The MCFG table's range must be listed (PCI Firmware Specification 3.3, 4.1.2).
    let ecam = layout::PCI_ECAM;
    let ecam = Memory32Fixed::new(true, ecam.start as u32, (ecam.end - ecam.start) as u32);
    let board = device("MBRD", "PNP0C02", 0, vec![&ports(layout::PM_BASE, layout::PM_PORTS as u8), &ecam]);
    Raw(Device::new("LPCB".into(), vec![&address, &region, &field, &coms, &keyboard, &mouse, &rtc, &pic, &timer, &board]).bytes())
}

fn letter(pirq: u8) -> char {
    char::from(b'A' + (pirq & 7))
}

/// The routing register's field in the LPC bridge.
fn register_name(pirq: u8) -> [u8; 4] {
    [b'P', b'R', b'Q', b'A' + (pirq & 7)]
}

/// The link device's name.
fn link_name(pirq: u8) -> alloc::string::String {
    format!("LNK{}", letter(pirq))
}

/// ISA IRQs that a PIRQ can be led to.
const LINK_IRQS: [u32; 3] = [5, 10, 11];
/// A routing register's bit for "not led to the 8259 pair" (ICH9 data sheet, 13.1.19).
const ROUTE_DISABLED: u8 = 0x80;
const ROUTE_IRQ: u8 = 0x0f;
/// _STA: present and working; also enabled (ACPI 6.3.7).
const STA_DISABLED: u8 = 0x9;
const STA_ENABLED: u8 = 0xb;

/// The PCI interrupt links (ACPI 6.2.13): they lead the PIRQs to the 8259 pair, for systems that use it.
fn links(out: &mut Vec<u8>) {
    // LSTA(register): the status of a link.
    let is_off = And::new(&ZERO, &Arg(0), &ROUTE_DISABLED).bytes();
    let off = Return::new(&STA_DISABLED).bytes();
    let on = Return::new(&STA_ENABLED).bytes();
    let if_off = If::new(&Raw(is_off), vec![&Raw(off)]).bytes();
    Method::new("LSTA".into(), 1, false, vec![&Raw(if_off), &Raw(on)]).to_aml_bytes(out);

    // LCRS(register): the interrupt in use, as a resource template.
    let buffer = Name::new("BUF_".into(), &ResourceTemplate::new(vec![&PciInterrupts(&[0])]));
    let interrupt = CreateDWordField::new(&path("INT_"), &path("BUF_"), &FIRST_INTERRUPT).bytes();
    let irq = And::new(&path("INT_"), &Arg(0), &ROUTE_IRQ).bytes();
    let result = Return::new(&path("BUF_")).bytes();
    Method::new("LCRS".into(), 1, true, vec![&buffer, &Raw(interrupt), &Raw(irq), &Raw(result)]).to_aml_bytes(out);

    for pirq in 0..8u8 {
        let name = link_name(pirq);
        let register = path(&format!("\\_SB_.PCI0.LPCB.PRQ{}", letter(pirq)));
        let hid = Name::new("_HID".into(), &EISAName::new("PNP0C0F"));
        let uid = Name::new("_UID".into(), &(pirq + 1));
        let possible = Name::new("_PRS".into(), &ResourceTemplate::new(vec![&PciInterrupts(&LINK_IRQS)]));

        let call = MethodCall::new(path("LSTA"), vec![&register]);
        let status = Method::new("_STA".into(), 0, false, vec![&Raw(Return::new(&call).bytes())]).bytes();
        let call = MethodCall::new(path("LCRS"), vec![&register]);
        let current = Method::new("_CRS".into(), 0, false, vec![&Raw(Return::new(&call).bytes())]).bytes();
        let turn_off = Or::new(&register, &register, &ROUTE_DISABLED).bytes();
        let disable = Method::new("_DIS".into(), 0, false, vec![&Raw(turn_off)]).bytes();
        let wanted = CreateDWordField::new(&path("INT_"), &Arg(0), &FIRST_INTERRUPT).bytes();
        let set = Store::new(&register, &path("INT_")).bytes();
        let choose = Method::new("_SRS".into(), 1, true, vec![&Raw(wanted), &Raw(set)]).bytes();

        let parts: [Vec<u8>; 4] = [status, current, disable, choose];
        let [status, current, disable, choose] = parts.map(Raw);
        Device::new(name.as_str().into(), vec![&hid, &uid, &possible, &status, &current, &disable, &choose]).to_aml_bytes(out);
    }
}
