//! The slots whose PCI functions come and go: an object for each, and the method that tells of changes.

use acpi_tables::aml::{
    And, Device, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Local,
    Method, Name, Notify, OpRegion, OpRegionSpace, Path, Store,
};

use super::aml;
use crate::board::hot_plug;
use crate::pci::root::HOT_PLUG_SLOTS;

/// The method that tells the operating system of all changes.
pub(super) const TELL: &str = "\\_SB_.PCI0.PCNT";

/// What the operating system is to do with a slot.
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

fn name(slot: u8) -> String {
    format!("S{slot:02X}_")
}

/// Registers, slots and method, for the scope of the PCI root.
pub(super) fn slots() -> Vec<u8> {
    let port = u32::from(hot_plug::PORT);
    let mut bytes = aml(&OpRegion::new(
        "PHPR".into(),
        OpRegionSpace::SystemIO,
        &port,
        &u32::from(hot_plug::LEN),
    ));
    bytes.extend(aml(&Field::new(
        "PHPR".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![
            FieldEntry::Named(*b"PUP_", 32),
            FieldEntry::Named(*b"PDN_", 32),
            FieldEntry::Named(*b"PEJ_", 32),
        ],
    )));
    for slot in HOT_PLUG_SLOTS {
        bytes.extend(object(slot));
    }
    bytes.extend(tell());
    bytes
}

fn object(slot: u8) -> Vec<u8> {
    let address = Name::new("_ADR".into(), &(u32::from(slot) << 16));
    let number = Name::new("_SUN".into(), &slot);
    let (eject, bit) = (Path::new("PEJ_"), 1u32 << slot);
    let let_go = Store::new(&eject, &bit);
    let ejected = Method::new("_EJ0".into(), 1, true, vec![&let_go]);
    aml(&Device::new(
        name(slot).as_str().into(),
        vec![&address, &number, &ejected],
    ))
}

fn tell() -> Vec<u8> {
    let (up, down) = (Path::new("PUP_"), Path::new("PDN_"));
    let mut body = aml(&Store::new(&Local(0), &up));
    body.extend(aml(&Store::new(&Local(1), &down)));
    for slot in HOT_PLUG_SLOTS {
        let object = Path::new(&name(slot));
        for (local, what) in [(0, DEVICE_CHECK), (1, EJECT_REQUEST)] {
            let bit = 1u32 << slot;
            let set = Local(local);
            let masked = And::new(&Local(2), &set, &bit);
            let hit = Equal::new(&Local(2), &bit);
            let notice = Notify::new(&object, &what);
            body.extend(aml(&masked));
            body.extend(aml(&If::new(&hit, vec![&notice])));
        }
    }
    aml(&Method::new("PCNT".into(), 0, true, vec![&super::Raw(body)]))
}
