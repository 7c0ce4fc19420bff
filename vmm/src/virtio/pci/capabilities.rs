//! What configuration space says of a virtio function: which device it is, and where in the BAR its parts are.

use super::{BAR, BAR_SIZE, NOTIFY, NOTIFY_MULTIPLIER, PAGE};
use crate::pci::{ConfigSpace, Identity};

/// Capability ID: vendor-specific.
const VENDOR: u8 = 0x09;
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_PCI_CONFIG: u8 = 5;
/// Header, type, BAR, offset and length.
const LEN: u8 = 16;
/// `struct virtio_pci_common_cfg` up to `queue_reset`; what `queue_notify_data` would tell is not offered.
const COMMON_LEN: u32 = 60;

/// The PCI identity of a device of this virtio type.
pub(super) fn identity(device_type: u32) -> Identity {
    let class = match device_type {
        1 => 0x02_00_00,
        2 => 0x01_00_00,
        3 => 0x07_80_00,
        4 => 0x00_ff_00,
        _ => 0xff_00_00,
    };
    Identity {
        vendor: 0x1af4,
        device: 0x1040 + u16::try_from(device_type).unwrap_or(0).min(0x3f),
        // Not zero: no legacy interface.
        revision: 1,
        class,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    }
}

/// Adds the capabilities of the transport.
pub(super) fn add(config: &mut ConfigSpace) -> ConfigWindow {
    let page = u32::try_from(PAGE).expect("a page");
    let notify = u32::try_from(NOTIFY).expect("inside the BAR");
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    add_one(config, TYPE_COMMON, 0, COMMON_LEN, &[]);
    add_one(config, TYPE_ISR, page, 1, &[]);
    add_one(config, TYPE_DEVICE, 2 * page, page, &[]);
    add_one(config, TYPE_NOTIFY, notify, page, &multiplier);
    let body = body(TYPE_PCI_CONFIG, 0, 0, &[0; 4]);
    let mut writable = vec![0; body.len()];
    // BAR, offset, length and data; ID, link, length and type stay.
    writable[2] = 0xff;
    writable[6..].fill(0xff);
    ConfigWindow {
        at: config.add_capability(VENDOR, &body, &writable),
    }
}

fn add_one(config: &mut ConfigSpace, kind: u8, offset: u32, len: u32, more: &[u8]) {
    let body = body(kind, offset, len, more);
    config.add_capability(VENDOR, &body, &vec![0; body.len()]);
}

/// What follows ID and link.
fn body(kind: u8, offset: u32, len: u32, more: &[u8]) -> Vec<u8> {
    let whole = LEN + u8::try_from(more.len()).expect("four bytes at most");
    let mut body = vec![whole, kind, BAR, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(more);
    body
}

/// The capability through which a driver reaches the BAR without mapping it: it writes an offset and a length, and
/// then accesses the data register.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConfigWindow {
    at: u16,
}

impl ConfigWindow {
    const BAR: u16 = 4;
    const OFFSET: u16 = 8;
    const LENGTH: u16 = 12;
    const DATA: u16 = 16;

    /// What of the BAR an access to configuration space reaches through the window: offset and length. `None` if the
    /// access is to other registers, or the driver asked for what the standard forbids.
    pub(super) fn hit(self, config: &ConfigSpace, offset: u16, len: usize) -> Option<(u64, usize)> {
        let data = usize::from(self.at + Self::DATA);
        let start = usize::from(offset);
        if start >= data + 4 || start + len <= data {
            return None;
        }
        let [bar] = config.get(self.at + Self::BAR);
        let offset = u32::from_le_bytes(config.get(self.at + Self::OFFSET));
        let length = u32::from_le_bytes(config.get(self.at + Self::LENGTH));
        let valid = bar == BAR
            && matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(length)
            && u64::from(offset) + u64::from(length) <= BAR_SIZE;
        valid.then_some((u64::from(offset), usize::try_from(length).ok()?))
    }

    /// The data register.
    pub(super) fn data(self, config: &ConfigSpace) -> [u8; 4] {
        config.get(self.at + Self::DATA)
    }

    /// Puts what was read into the data register.
    pub(super) fn set_data(self, config: &mut ConfigSpace, value: [u8; 4]) {
        config.write(self.at + Self::DATA, &value);
    }
}
