//! Configuration space as the guest sees it: which registers are the device's own, and which stand in for it.
//!
//! Every byte has one owner. The device's own are read and written through VFIO, whose kernel side guards them once more. All
//! others are a [`ConfigSpace`]: identity, BARs, links between capabilities, interrupt capabilities, power states. Whatever is
//! not known to be harmless is not there. An access of any width goes byte by byte to the owners.
//!
//! | register | whose |
//! |---|---|
//! | command | the guest's is remembered; the device gets bus mastering and the pin from it. Decoding is always on, |
//! | | and whether the device reports errors is the host's, which acts on them |
//! | status | the device's, but for the list of capabilities |
//! | BARs, ROM | ours: the guest's addresses mean nothing to the device |
//! | power management | ours: the device stays in D0, from which every other state is left by a reset |
//! | MSI, MSI-X | ours: the kernel programs the device |
//! | PCI Express | the device's, as an endpoint of the root complex, which has no link; what it reports is the host's |
//! | error reporting | the device's to read, the host's to write |
//! | vital product data, vendor's own, serial number, … | the device's |
//! | SR-IOV, ARI, ATS, resizable BARs and what nobody knows | hidden |

use std::ops::Range;

use super::host::{CONFIG, HostDevice, Irq};
use crate::pci::config::{ROM, SIZE};
use crate::pci::{BarKind, ConfigSpace, Identity};

mod capabilities;
#[cfg(test)]
mod tests;

use capabilities::{Extended, Standard};

/// The command register.
pub(super) const COMMAND: u16 = 0x04;
/// The status register.
pub(super) const STATUS: u16 = 0x06;
const BAR0: u16 = 0x10;
const CAPABILITIES: u16 = 0x34;
const INTERRUPT_PIN: u16 = 0x3d;
/// The status register's bit that says that there are capabilities.
const STATUS_CAPABILITIES: u8 = 1 << 4;
const PAGE: u64 = 4096;

/// Where the MSI-X capability is and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsixLayout {
    /// Offset of the control word.
    pub(super) control: u16,
    /// Vectors.
    pub(super) count: u16,
    /// BAR and offset of the table.
    pub(super) table: (u8, u64),
    /// BAR and offset of the pending bits.
    pub(super) pending: (u8, u64),
}

/// Where the MSI capability is and what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsiLayout {
    /// Offset of the control word.
    pub(super) control: u16,
    /// Addresses have 64 bits.
    pub(super) wide: bool,
    /// Vectors can be masked one by one.
    pub(super) maskable: bool,
}

/// The registers of a device.
#[derive(Debug)]
pub(super) struct Registers {
    power_on: ConfigSpace,
    /// One for each byte: the device's own.
    own: Box<[bool; SIZE]>,
    /// The bits of the device's own that the guest reads and the host alone sets.
    hosts: Box<[u8; SIZE]>,
    pub(super) msix: Option<MsixLayout>,
    pub(super) msi: Option<MsiLayout>,
    /// Offset of the byte of device control with the bit that resets the function.
    pub(super) reset_byte: Option<u16>,
    /// The interrupt pin, from 1.
    pub(super) pin: Option<u8>,
}

impl Registers {
    /// Reads what the device has.
    pub(super) fn read(device: &dyn HostDevice) -> Result<Self, String> {
        let mut bytes = [0; SIZE];
        let len = usize::try_from(device.region_size(CONFIG)).map_or(SIZE, |len| len.min(SIZE));
        if len < 256 {
            return Err("it has no configuration space".to_owned());
        }
        device.read(CONFIG, 0, &mut bytes[..len]);
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if word(0) == 0xffff {
            return Err("it does not answer; is it switched off or gone?".to_owned());
        }
        if bytes[0x0e] & 0x7f != 0 {
            return Err("it is a bridge; name a device behind it".to_owned());
        }
        let identity = Identity {
            vendor: word(0),
            device: word(2),
            revision: bytes[8],
            class: u32::from(bytes[0x0b]) << 16 | u32::from(word(9)),
            subsystem_vendor: word(0x2c),
            subsystem: word(0x2e),
        };
        let mut registers = Self {
            power_on: ConfigSpace::new(&identity),
            own: Box::new([false; SIZE]),
            hosts: Box::new([0; SIZE]),
            msix: None,
            msi: None,
            reset_byte: None,
            pin: None,
        };
        registers.keep(STATUS..STATUS + 2);
        registers.add_bars(device, &bytes)?;
        registers.add_pin(device, bytes[usize::from(INTERRUPT_PIN)]);
        registers.add_capabilities(device, &bytes);
        if len == SIZE {
            registers.add_extended(&bytes);
        }
        Ok(registers)
    }

    /// Configuration space after power-on.
    pub(super) fn power_on(&self) -> &ConfigSpace {
        &self.power_on
    }

    /// The ranges of an access that are the device's own.
    pub(super) fn own_parts(&self, offset: u16, len: usize) -> Vec<Range<usize>> {
        let first = usize::from(offset);
        let mut parts: Vec<Range<usize>> = Vec::new();
        for at in (first..first.saturating_add(len)).filter(|at| self.own.get(*at) == Some(&true)) {
            match parts.last_mut() {
                Some(part) if part.end == at - first => part.end += 1,
                _ => parts.push(at - first..at - first + 1),
            }
        }
        parts
    }

    /// The bits of a byte of the device's own that the guest cannot change.
    pub(super) fn hosts_bits(&self, offset: u64) -> u8 {
        let byte = usize::try_from(offset).ok().and_then(|at| self.hosts.get(at));
        byte.copied().unwrap_or(0xff)
    }

    /// Puts our answer into what was read of the status register at `offset`.
    pub(super) fn fix_status(&self, offset: u16, data: &mut [u8]) {
        if let Some(byte) = STATUS
            .checked_sub(offset)
            .and_then(|at| data.get_mut(usize::from(at)))
        {
            let [ours] = self.power_on.get(STATUS);
            *byte = *byte & !STATUS_CAPABILITIES | ours & STATUS_CAPABILITIES;
        }
    }

    fn keep(&mut self, range: Range<u16>) {
        let end = usize::from(range.end).min(SIZE);
        self.own[usize::from(range.start).min(end)..end].fill(true);
    }

    fn give(&mut self, range: Range<u16>) {
        let end = usize::from(range.end).min(SIZE);
        self.own[usize::from(range.start).min(end)..end].fill(false);
    }

    fn add_bars(&mut self, device: &dyn HostDevice, bytes: &[u8; SIZE]) -> Result<(), String> {
        const IO: u8 = 1;
        const WIDE: u8 = 0b100;
        let shape = |size: u64, smallest: u64| {
            size.checked_next_power_of_two()
                .map(|size| size.max(smallest))
                .ok_or_else(|| format!("a BAR of {size:#x} bytes fits nowhere"))
        };
        let mut index = 0;
        while index < ROM {
            let flags = bytes[usize::from(BAR0) + 4 * usize::from(index)];
            let (kind, registers, smallest) = match flags & 0b110 {
                _ if flags & IO != 0 => (BarKind::Ports, 1, 4),
                WIDE if index < ROM - 1 => (BarKind::Memory64, 2, PAGE),
                _ => (BarKind::Memory32, 1, PAGE),
            };
            let size = device.region_size(index.into());
            if size > 0 {
                self.power_on.add_bar(index, kind, shape(size, smallest)?);
            }
            index += registers;
        }
        let rom = device.region_size(ROM.into());
        if rom > 0 {
            self.power_on.add_bar(ROM, BarKind::Rom, shape(rom, PAGE)?);
        }
        Ok(())
    }

    fn add_pin(&mut self, device: &dyn HostDevice, pin: u8) {
        if (1..=4).contains(&pin) && device.irq_count(Irq::Intx) > 0 {
            self.pin = Some(pin);
            self.power_on.place(INTERRUPT_PIN, &[pin], &[0]);
        }
    }

    fn add_capabilities(&mut self, device: &dyn HostDevice, bytes: &[u8; SIZE]) {
        let mut link = CAPABILITIES;
        for capability in capabilities::standard(bytes) {
            if !self.add_capability(device, capability) {
                continue;
            }
            let at = capability.at;
            let [at_byte, _] = at.to_le_bytes();
            self.power_on.place(link, &[at_byte], &[0]);
            self.power_on.place(at, &[capability.id], &[0]);
            self.power_on.place(STATUS, &[STATUS_CAPABILITIES], &[0]);
            link = at + 1;
        }
    }

    /// False if the guest does not get to see it.
    fn add_capability(&mut self, device: &dyn HostDevice, capability: Standard<'_>) -> bool {
        let Standard { id, at, body } = capability;
        let end = |len: u16| at.saturating_add(len).min(256);
        match id {
            capabilities::POWER if body.len() >= 8 => self.add_power(capability),
            capabilities::MSI if device.irq_count(Irq::Msi) > 0 => return self.add_msi(capability),
            capabilities::MSIX if device.irq_count(Irq::Msix) > 0 => {
                let Some(layout) = capability.msix() else {
                    return false;
                };
                self.msix = Some(layout);
                let mut writable = [0; 10];
                writable[1] = 0xc0;
                let mut power_on = [0; 10];
                power_on.copy_from_slice(&body[2..12]);
                power_on[1] &= 0x07;
                self.power_on.place(at + 2, &power_on, &writable);
            }
            capabilities::VITAL_DATA => self.keep(at + 2..end(8)),
            capabilities::VENDOR => {
                let len = u16::from(body.get(2).copied().unwrap_or(0)).max(3);
                self.keep(at + 2..end(len));
            }
            capabilities::EXPRESS => return self.add_express(capability),
            _ => return false,
        }
        true
    }

    /// The state is ours, and leaving D3 does not reset: nothing has happened to the device.
    fn add_power(&mut self, capability: Standard<'_>) {
        const NO_SOFT_RESET: u8 = 1 << 3;
        let version = capability.body[2] & 0b111;
        self.power_on.place(
            capability.at + 2,
            &[version, 0, NO_SOFT_RESET, 0, 0, 0],
            &[0, 0, 0b11, 0, 0, 0],
        );
    }

    fn add_msi(&mut self, capability: Standard<'_>) -> bool {
        const WIDE: u8 = 1 << 7;
        const MASKABLE: u8 = 1;
        let (at, Some(control)) = (capability.at + 2, capability.body.get(2..4)) else {
            return false;
        };
        let (wide, maskable) = (control[0] & WIDE != 0, control[1] & MASKABLE != 0);
        // Address, its upper half, data, a reserved word, mask bits; pending bits are never set.
        let parts: [(&[u8], bool); 5] = [
            (&[0xfc, 0xff, 0xff, 0xff], true),
            (&[0xff; 4], wide),
            (&[0xff; 2], true),
            (&[0; 2], maskable),
            (&[0xff; 4], maskable),
        ];
        let mut writable = vec![0b0111_0001, 0];
        for (mask, there) in parts {
            writable.extend_from_slice(if there { mask } else { &[] });
        }
        if usize::from(at) + writable.len() > 256 {
            return false;
        }
        let mut power_on = vec![0; writable.len()];
        power_on[0] = control[0] & (WIDE | 0b1110);
        power_on[1] = control[1] & MASKABLE;
        self.power_on.place(at, &power_on, &writable);
        self.msi = Some(MsiLayout {
            control: at,
            wide,
            maskable,
        });
        true
    }

    fn add_express(&mut self, capability: Standard<'_>) -> bool {
        /// The type of an endpoint that is a part of the root complex, in bits 7:4.
        const INTEGRATED: u8 = 0x90;
        const DEVICE_CONTROL: u16 = 8;
        /// Correctable, non-fatal and fatal errors, and unsupported requests, are reported.
        const REPORTS: u8 = 0b1111;
        let (at, body) = (capability.at, capability.body);
        let Some(flags) = body.get(2..4) else {
            return false;
        };
        let len = if flags[0] & 0xf < 2 { 0x14 } else { 0x3c };
        self.keep(at + 2..at.saturating_add(len).min(256));
        // Nor has an endpoint there a slot or a link; the interrupt message number stays as it is.
        for ours in [2..4, 0x0c..0x20, 0x2c..0x3c] {
            self.give(at.saturating_add(ours.start)..at.saturating_add(ours.end).min(256));
        }
        self.power_on
            .place(at + 2, &[flags[0] & 0x0f | INTEGRATED, flags[1]], &[0, 0]);
        if let Some(hosts) = self.hosts.get_mut(usize::from(at + DEVICE_CONTROL)) {
            *hosts = REPORTS;
        }
        let can_reset = body.get(7).is_some_and(|high| high & 1 << 4 != 0);
        self.reset_byte = can_reset.then_some(at + DEVICE_CONTROL + 1);
        true
    }

    fn add_extended(&mut self, bytes: &[u8; SIZE]) {
        let chain = capabilities::extended(bytes);
        let shown: Vec<&Extended> = chain.iter().filter(|c| c.is_harmless()).collect();
        let header = |id: u16, version: u8, next: u16| {
            (u32::from(next) << 20 | u32::from(version) << 16 | u32::from(id)).to_le_bytes()
        };
        let first_is_hidden = shown
            .first()
            .is_some_and(|first| first.at != capabilities::EXTENDED);
        if first_is_hidden {
            // The list starts here even when there is nothing to see.
            let placeholder = header(0xffff, 1, shown[0].at);
            self.power_on.place(capabilities::EXTENDED, &placeholder, &[0; 4]);
        }
        for (index, capability) in shown.iter().enumerate() {
            let next = shown.get(index + 1).map_or(0, |next| next.at);
            let ours = header(capability.id, capability.version, next);
            self.power_on.place(capability.at, &ours, &[0; 4]);
            let end = chain.iter().map(|c| c.at).filter(|at| *at > capability.at).min();
            let body = capability.at + 4..end.unwrap_or(4096);
            if capability.id == capabilities::ERRORS {
                self.hosts[usize::from(body.start)..usize::from(body.end)].fill(0xff);
            }
            self.keep(body);
        }
    }
}
