//! The namespace: processors, PCI root, serial port, panic device, power button.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, Field,
    FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed,
    Method, MethodCall, Name, Notify, ONE, OpRegion, OpRegionSpace, Or, Package, Path, ResourceTemplate,
    Return, Scope, Store, Uuid, ZERO,
};
use acpi_tables::{Aml, sdt::Sdt};

mod hot_plug;

use super::Board;
use crate::board::{layout, power};
use crate::pci::root::HOT_PLUG_SLOTS;

/// Makes the table.
pub(super) fn build(board: &Board) -> Sdt {
    let mut body = Vec::new();
    for part in [
        processors(board.cpus),
        pci(board),
        devices(board),
        events(),
        soft_off(),
    ] {
        body.extend(part);
    }
    super::table(*b"DSDT", 2, &body)
}

fn aml(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}

fn processors(cpus: u8) -> Vec<u8> {
    let mut devices = Vec::new();
    for cpu in 0..cpus {
        let name = format!("C{cpu:03X}");
        let hid = Name::new("_HID".into(), &"ACPI0007");
        let uid = Name::new("_UID".into(), &cpu);
        devices.extend(aml(&Device::new(name.as_str().into(), vec![&hid, &uid])));
    }
    Scope::raw("\\_SB_".into(), devices)
}

/// The PCI root, and the board resource that keeps its configuration space from other uses.
fn pci(board: &Board) -> Vec<u8> {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
    let cid = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
    let uid = Name::new("_UID".into(), &ZERO);
    let segment = Name::new("_SEG".into(), &ZERO);
    let first_bus = Name::new("_BBN".into(), &ZERO);
    // DMA is coherent.
    let coherent = Name::new("_CCA".into(), &ONE);

    let buses = AddressSpace::new_bus_number(0u16, u16::from(layout::ECAM_BUSES) - 1);
    let config_ports = IO::new(0xcf8, 0xcf8, 1, 8);
    let port = |port: u64| u16::try_from(port).expect("ports have 16 bits");
    let ports = AddressSpace::new_io(
        port(layout::PCI_PORTS.start),
        port(layout::PCI_PORTS.end - 1),
        None,
    );
    let low = u32::try_from(layout::PCI_MMIO32.start).expect("below 4 GiB");
    let low_end = u32::try_from(layout::PCI_MMIO32.end - 1).expect("below 4 GiB");
    let memory32 = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, low, low_end, None);
    let memory64 = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        board.mmio64.start,
        board.mmio64.end - 1,
        None,
    );
    let windows = ResourceTemplate::new(vec![&buses, &config_ports, &ports, &memory32, &memory64]);
    let resources = Name::new("_CRS".into(), &windows);
    let pins = Raw(pins());
    let control = Raw(osc());
    let hot_plug = Raw(hot_plug::slots());
    let root = Device::new(
        "_SB_.PCI0".into(),
        vec![
            &hid, &cid, &uid, &segment, &first_bus, &coherent, &resources, &pins, &control, &hot_plug,
        ],
    );

    let ecam = Memory32Fixed::new(
        true,
        u32::try_from(layout::ECAM_BASE).expect("below 4 GiB"),
        u32::try_from(layout::ECAM_LEN).expect("below 4 GiB"),
    );
    let reserved = ResourceTemplate::new(vec![&ecam]);
    let board_hid = Name::new("_HID".into(), &EISAName::new("PNP0C02"));
    let board_resources = Name::new("_CRS".into(), &reserved);
    let board_device = Device::new("_SB_.MBRD".into(), vec![&board_hid, &board_resources]);

    let mut bytes = aml(&root);
    bytes.extend(aml(&board_device));
    bytes
}

/// `_PRT`: each interrupt pin has a line of its own, which all slots share.
fn pins() -> Vec<u8> {
    let mut entries: Vec<(u32, u8, u32)> = Vec::new();
    for slot in HOT_PLUG_SLOTS {
        for pin in 0..4 {
            let any_function = u32::from(slot) << 16 | 0xffff;
            entries.push((any_function, pin, layout::PCI_PIN_GSI + u32::from(pin)));
        }
    }
    let packages: Vec<Package> = entries
        .iter()
        .map(|(slot, pin, line)| Package::new(vec![slot, pin, &ZERO, line]))
        .collect();
    let packages = packages.iter().map(|package| package as &dyn Aml).collect();
    aml(&Name::new("_PRT".into(), &Package::new(packages)))
}

struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// `_OSC`: the operating system may control all that it asks for among hot-plug, power events, error reporting and
/// the `PCIe` capability structure.
fn osc() -> Vec<u8> {
    const GRANTED: u8 = 0x1f;
    const UNRECOGNIZED_UUID: u8 = 1 << 2;
    let dword =
        |at: &'static dyn Aml, name: &'static str| aml(&CreateDWordField::new(&Path::new(name), &Arg(3), at));
    let status = Raw(dword(&ZERO, "CDW1"));
    let control = Raw(dword(&8u8, "CDW3"));
    let pci_uuid = Uuid::new("33DB4D5B-1FF7-401C-9657-7441C03DD766");
    let is_pci = Equal::new(&Arg(0), &pci_uuid);
    let (cdw1, cdw3) = (Path::new("CDW1"), Path::new("CDW3"));
    let mask = And::new(&cdw3, &cdw3, &GRANTED);
    let granted = If::new(&is_pci, vec![&control, &mask]);
    let unknown = Or::new(&cdw1, &cdw1, &UNRECOGNIZED_UUID);
    let refused = Else::new(vec![&unknown]);
    let answer = Return::new(&Arg(3));
    aml(&Method::new(
        "_OSC".into(),
        4,
        true,
        vec![&status, &granted, &refused, &answer],
    ))
}

fn devices(board: &Board) -> Vec<u8> {
    let mut bytes = Vec::new();
    if board.serial {
        let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
        let uid = Name::new("_UID".into(), &ZERO);
        let name = Name::new("_DDN".into(), &"COM1");
        let ports = IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8);
        let line = Interrupt::new(true, true, false, false, layout::SERIAL_GSI);
        let uses = ResourceTemplate::new(vec![&ports, &line]);
        let resources = Name::new("_CRS".into(), &uses);
        bytes.extend(aml(&Device::new(
            "_SB_.COM1".into(),
            vec![&hid, &uid, &name, &resources],
        )));
    }
    let hid = Name::new("_HID".into(), &"QEMU0001");
    let port = IO::new(power::PANIC_PORT, power::PANIC_PORT, 1, 1);
    let uses = ResourceTemplate::new(vec![&port]);
    let resources = Name::new("_CRS".into(), &uses);
    // Present, enabled and working, but not shown to the user.
    let status = Name::new("_STA".into(), &0xbu8);
    bytes.extend(aml(&Device::new(
        "_SB_.PEVT".into(),
        vec![&hid, &status, &resources],
    )));
    bytes
}

/// The power button, and the event device that reports it. Besides the button, which needs somebody in the guest who
/// listens for keys, `\_SB` is asked to shut down gracefully, which an operating system may do by itself.
fn events() -> Vec<u8> {
    const BUTTON_PRESSED: u8 = 0x80;
    const SHUTDOWN_REQUEST: u8 = 0x81;
    let button_hid = Name::new("_HID".into(), &EISAName::new("PNP0C0C"));
    let mut bytes = aml(&Device::new("_SB_.PWRB".into(), vec![&button_hid]));

    let hid = Name::new("_HID".into(), &"ACPI0013");
    let uid = Name::new("_UID".into(), &ZERO);
    let line = Interrupt::new(true, true, false, false, power::EVENT_GSI);
    let uses = ResourceTemplate::new(vec![&line]);
    let resources = Name::new("_CRS".into(), &uses);
    let port = u32::from(power::EVENT_PORT);
    let region = OpRegion::new("EVTR".into(), OpRegionSpace::SystemIO, &port, &ONE);
    let field = Field::new(
        "EVTR".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"EVTS", 8)],
    );
    let events = Path::new("EVTS");
    let read = Store::new(&Local(0), &events);
    let bit = And::new(&Local(1), &Local(0), &power::EVENT_POWER_BUTTON);
    let pressed = Equal::new(&Local(1), &power::EVENT_POWER_BUTTON);
    let (button, board) = (Path::new("\\_SB_.PWRB"), Path::new("\\_SB_"));
    let tell_button = Notify::new(&button, &BUTTON_PRESSED);
    let tell_board = Notify::new(&board, &SHUTDOWN_REQUEST);
    let on_button = If::new(&pressed, vec![&tell_button, &tell_board]);
    let pci_bit = And::new(&Local(2), &Local(0), &power::EVENT_PCI);
    let changed = Equal::new(&Local(2), &power::EVENT_PCI);
    let look = MethodCall::new(Path::new(hot_plug::TELL), vec![]);
    let on_change = If::new(&changed, vec![&look]);
    let method = Method::new(
        "_EVT".into(),
        1,
        true,
        vec![&read, &bit, &on_button, &pci_bit, &on_change],
    );
    bytes.extend(aml(&Device::new(
        "_SB_.GED_".into(),
        vec![&hid, &uid, &resources, &region, &field, &method],
    )));
    bytes
}

fn soft_off() -> Vec<u8> {
    let types = Package::new(vec![&power::S5, &ZERO, &ZERO, &ZERO]);
    aml(&Name::new("_S5_".into(), &types))
}
