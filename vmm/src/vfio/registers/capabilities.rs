//! The lists of capabilities in a device's configuration space, walked as if the device were hostile: a list may loop, point
//! anywhere, and end in the middle of a capability.

use super::{MsixLayout, SIZE};

/// Power management.
pub(super) const POWER: u8 = 0x01;
/// Vital product data.
pub(super) const VITAL_DATA: u8 = 0x03;
/// Message-signalled interrupts.
pub(super) const MSI: u8 = 0x05;
/// Whatever the vendor likes.
pub(super) const VENDOR: u8 = 0x09;
/// PCI Express.
pub(super) const EXPRESS: u8 = 0x10;
/// Message-signalled interrupts with a table.
pub(super) const MSIX: u8 = 0x11;
/// Advanced error reporting, among the extended ones.
pub(super) const ERRORS: u16 = 0x0001;

const LIST: usize = 0x34;
const FIRST: u16 = 0x40;
const STANDARD_END: u16 = 256;
/// Offset of the first extended capability.
pub(super) const EXTENDED: u16 = 0x100;

/// A capability among the first 256 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standard<'a> {
    pub(super) id: u8,
    pub(super) at: u16,
    /// From its first byte to the end of the 256.
    pub(super) body: &'a [u8],
}

/// All of them, each once.
pub(super) fn standard(bytes: &[u8; SIZE]) -> Vec<Standard<'_>> {
    let mut found: Vec<Standard<'_>> = Vec::new();
    let mut at = u16::from(bytes[LIST]) & !0b11;
    // Two capabilities that overlap in their headers would share their links.
    while (FIRST..STANDARD_END).contains(&at) && found.iter().all(|seen| seen.at != at) {
        let start = usize::from(at);
        found.push(Standard {
            id: bytes[start],
            at,
            body: &bytes[start..usize::from(STANDARD_END)],
        });
        at = u16::from(bytes[start + 1]) & !0b11;
    }
    found
}

impl Standard<'_> {
    /// What an MSI-X capability says, if it is all there and makes sense.
    pub(super) fn msix(&self) -> Option<MsixLayout> {
        let word = |at: usize| {
            let bytes = self.body.get(at..at + 4)?;
            Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        let place = |value: u32| Some((u8::try_from(value & 7).ok()?, u64::from(value & !7)));
        let control = u16::from_le_bytes([*self.body.get(2)?, *self.body.get(3)?]);
        let layout = MsixLayout {
            control: self.at + 2,
            count: (control & 0x7ff) + 1,
            table: place(word(4)?)?,
            pending: place(word(8)?)?,
        };
        (layout.table.0 < 6 && layout.pending.0 < 6).then_some(layout)
    }
}

/// A capability behind the first 256 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extended {
    pub(super) id: u16,
    pub(super) version: u8,
    pub(super) at: u16,
}

impl Extended {
    /// Means nothing beyond the device itself: advanced error reporting, serial number, power budget, the vendor's own,
    /// hints for processing.
    pub(super) fn is_harmless(self) -> bool {
        matches!(self.id, ERRORS | 0x03 | 0x04 | 0x0b | 0x17)
    }
}

/// All of them, each once.
pub(super) fn extended(bytes: &[u8; SIZE]) -> Vec<Extended> {
    let mut found: Vec<Extended> = Vec::new();
    let mut at = EXTENDED;
    while at >= EXTENDED && found.iter().all(|seen| seen.at != at) {
        let start = usize::from(at);
        let Some(&[low, high, third, fourth]) = bytes.get(start..start + 4) else {
            break;
        };
        let id = u16::from_le_bytes([low, high]);
        if id == 0 && third == 0 || id == 0xffff {
            break;
        }
        found.push(Extended {
            id,
            version: third & 0xf,
            at,
        });
        at = (u16::from_le_bytes([third, fourth]) >> 4) & !0b11;
    }
    found
}
