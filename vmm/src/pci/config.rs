//! The configuration space of a function: plain bytes, each with a mask of the bits that software may write.
//!
//! Because every rule is a rule about bits, an access of any width at any offset is the same as its bytes one by one.
//! The exception is a BAR: what it asks of the bus is worked out once, after the whole access.

use std::ops::Range;

#[cfg(test)]
mod tests;

/// What a function is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, sub-class and programming interface.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// How wide a BAR's address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Memory, below 4 GiB.
    Memory32,
    /// Memory anywhere; takes two registers.
    Memory64,
    /// I/O ports.
    Ports,
    /// The expansion ROM: memory below 4 GiB, with an enable bit of its own. Its number is [`ROM`].
    Rom,
}

impl BarKind {
    fn width(self) -> u16 {
        match self {
            Self::Memory32 | Self::Ports | Self::Rom => 4,
            Self::Memory64 => 8,
        }
    }

    /// The bits of the register that are address.
    fn address_bits(self) -> u32 {
        match self {
            Self::Memory32 | Self::Memory64 => !0xf,
            Self::Ports => !0b11,
            Self::Rom => !0x7ff,
        }
    }

    /// The bit of the command register that has it answer.
    fn decoding(self) -> u16 {
        match self {
            Self::Ports => COMMAND_PORTS,
            _ => COMMAND_MEMORY,
        }
    }

    /// The smallest range that there can be. What is memory has whole pages, so that a page is one function's.
    fn smallest(self) -> u64 {
        match self {
            Self::Ports => 4,
            _ => 4096,
        }
    }
}

/// Number of the expansion ROM among the BARs.
pub const ROM: u8 = 6;

/// Software wants a BAR to answer somewhere else, or nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarMove {
    /// Number of the BAR.
    pub bar: u8,
    /// What it is.
    pub kind: BarKind,
    /// Length of its range.
    pub size: u64,
    /// Where it answers now.
    pub from: Option<u64>,
    /// Where it shall answer.
    pub to: Option<u64>,
    /// The address was written in part only; more is to come.
    pub partial: bool,
}

#[derive(Clone, Copy, Debug)]
struct Bar {
    index: u8,
    kind: BarKind,
    size: u64,
    /// Where the root has it on the bus.
    mapped: Option<u64>,
}

impl Bar {
    fn registers(&self) -> Range<u16> {
        let start = match self.kind {
            BarKind::Rom => ROM_REGISTER,
            _ => BAR0 + 4 * u16::from(self.index),
        };
        start..start + self.kind.width()
    }
}

/// With the extended registers of PCI Express, which only ECAM reaches.
pub const SIZE: usize = 4096;
/// Capabilities of the old kind are below.
const CAPABILITIES_END: usize = 256;
const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
const CACHE_LINE: u16 = 0x0c;
const BAR0: u16 = 0x10;
const ROM_REGISTER: u16 = 0x30;
const ROM_ENABLE: u8 = 1;
const CAPABILITIES: u16 = 0x34;
const INTERRUPT_LINE: u16 = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;

/// Ports answer.
const COMMAND_PORTS: u16 = 1;
/// Memory decoding is on.
const COMMAND_MEMORY: u16 = 1 << 1;
/// The function may start transactions of its own.
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// What software may change even without ports: memory decoding, bus master, parity and SERR reporting, `INTx` disable.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | COMMAND_BUS_MASTER | 1 << 6 | 1 << 8 | 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// The configuration space of one function.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: Box<[u8; SIZE]>,
    writable: Box<[u8; SIZE]>,
    bars: Vec<Bar>,
    /// Offset of the pointer that the next capability is linked from.
    link: usize,
    /// Where the next capability goes.
    free: usize,
}

impl ConfigSpace {
    /// A type 0 header without BARs and capabilities.
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: Box::new([0; SIZE]),
            writable: Box::new([0; SIZE]),
            bars: Vec::new(),
            link: usize::from(CAPABILITIES),
            free: FIRST_CAPABILITY,
        };
        space.set(0x00, &identity.vendor.to_le_bytes());
        space.set(0x02, &identity.device.to_le_bytes());
        space.set(
            0x08,
            &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes(),
        );
        space.set(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.set(0x2e, &identity.subsystem.to_le_bytes());
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.allow(CACHE_LINE, &[0xff]);
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Adds a BAR of `size` bytes, a power of two of at least 4096, or 4 where it is ports.
    pub fn add_bar(&mut self, index: u8, kind: BarKind, size: u64) {
        assert!(
            size.is_power_of_two() && size >= kind.smallest(),
            "BAR sizes are powers of two"
        );
        let bar = Bar {
            index,
            kind,
            size,
            mapped: None,
        };
        let registers = bar.registers();
        assert!(
            kind == BarKind::Rom || registers.end <= BAR0 + 24,
            "there are six BAR registers"
        );
        let mut mask = (!(size - 1)).to_le_bytes();
        if kind == BarKind::Rom {
            mask[0] |= ROM_ENABLE;
        }
        let flags: u8 = match kind {
            BarKind::Memory64 => 0b100,
            BarKind::Ports => 1,
            BarKind::Memory32 | BarKind::Rom => 0,
        };
        if kind == BarKind::Ports {
            self.writable[usize::from(COMMAND)] |= COMMAND_PORTS.to_le_bytes()[0];
        }
        self.set(registers.start, &[flags]);
        self.allow(registers.start, &mask[..usize::from(kind.width())]);
        self.bars.push(bar);
    }

    /// Adds a capability: `body` follows its header of ID and link, and `writable` says which bits of the body
    /// software may change. Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        assert_eq!(body.len(), writable.len(), "a mask for each byte");
        let at = self.free;
        let end = at + 2 + body.len();
        assert!(end <= CAPABILITIES_END, "capabilities fit into 256 bytes");
        self.bytes[self.link] = u8::try_from(at).expect("below 256");
        self.bytes[at] = id;
        self.bytes[at + 2..end].copy_from_slice(body);
        self.writable[at + 2..end].copy_from_slice(writable);
        self.bytes[usize::from(STATUS)] |= STATUS_CAPABILITIES.to_le_bytes()[0];
        self.link = at + 1;
        self.free = end.next_multiple_of(4);
        u16::try_from(at).expect("below 256")
    }

    /// Sets registers at `offset`, and which of their bits software may change.
    pub fn place(&mut self, offset: u16, bytes: &[u8], writable: &[u8]) {
        assert_eq!(bytes.len(), writable.len(), "a mask for each byte");
        self.set(offset, bytes);
        self.allow(offset, writable);
    }

    /// Becomes like `fresh`, which has the same BARs, and returns what that asks of the bus.
    pub fn revert(&mut self, fresh: &Self) -> Vec<BarMove> {
        self.bytes.clone_from(&fresh.bytes);
        self.bars
            .iter()
            .filter_map(|bar| self.wanted_move(bar, false))
            .collect()
    }

    /// Reads registers. Those that nothing was said of read zero, which ends any list of extended capabilities.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (offset, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.bytes.get(offset).copied().unwrap_or(0);
        }
    }

    /// Writes registers; returns what that asks of the bus.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Vec<BarMove> {
        for (offset, &value) in (usize::from(offset)..).zip(data) {
            if let (Some(byte), Some(&writable)) = (self.bytes.get_mut(offset), self.writable.get(offset)) {
                *byte = *byte & !writable | value & writable;
            }
        }
        let end = offset.saturating_add(u16::try_from(data.len()).unwrap_or(u16::MAX));
        let hit = |registers: &Range<u16>| offset < registers.end && registers.start < end;
        let command_hit = hit(&(COMMAND..COMMAND + 2));
        self.bars
            .iter()
            .filter(|bar| command_hit || hit(&bar.registers()))
            .filter_map(|bar| {
                let registers = bar.registers();
                self.wanted_move(bar, hit(&registers) && end < registers.end)
            })
            .collect()
    }

    /// Moves that were refused when they were asked for and have not come true since, for BARs that answer nowhere.
    pub fn waiting_moves(&self) -> Vec<BarMove> {
        self.bars
            .iter()
            .filter(|bar| bar.mapped.is_none())
            .filter_map(|bar| self.wanted_move(bar, false))
            .collect()
    }

    /// What has to be done so that no BAR answers any more.
    pub fn unmap_moves(&self) -> Vec<BarMove> {
        let away = |b: &Bar| BarMove {
            bar: b.index,
            kind: b.kind,
            size: b.size,
            from: b.mapped,
            to: None,
            partial: false,
        };
        self.bars
            .iter()
            .filter(|bar| bar.mapped.is_some())
            .map(away)
            .collect()
    }

    /// The root has carried out `done`.
    pub fn commit(&mut self, done: &BarMove) {
        if let Some(bar) = self.bars.iter_mut().find(|bar| bar.index == done.bar) {
            bar.mapped = done.to;
        }
    }

    /// The root could not carry out `refused`, and the BAR answers where it did before: software reads that, too. A
    /// BAR that answered nowhere keeps its register, and waits for the place to become free; so does one whose
    /// address is not written in full yet.
    pub fn roll_back(&mut self, refused: &BarMove) {
        if let (Some(from), false) = (refused.from, refused.partial) {
            self.set_bar(refused.bar, from);
        }
    }

    /// Number, kind and size of each BAR.
    pub fn bars(&self) -> impl Iterator<Item = (u8, BarKind, u64)> + '_ {
        self.bars.iter().map(|bar| (bar.index, bar.kind, bar.size))
    }

    /// Writes `addr` to the registers of `bar`.
    pub fn set_bar(&mut self, bar: u8, addr: u64) {
        let Some(bar) = self.bars.iter().find(|b| b.index == bar).copied() else {
            return;
        };
        let registers = usize::from(bar.registers().start)..usize::from(bar.registers().end);
        for (at, byte) in registers.zip(addr.to_le_bytes()) {
            self.bytes[at] = self.bytes[at] & !self.writable[at] | byte & self.writable[at];
        }
    }

    /// Has all BARs answer, and returns what that asks of the bus.
    pub fn enable_bars(&mut self) -> Vec<BarMove> {
        self.write(COMMAND, &(COMMAND_MEMORY | COMMAND_PORTS).to_le_bytes())
    }

    fn wanted_move(&self, bar: &Bar, partial: bool) -> Option<BarMove> {
        let enabled = bar.kind != BarKind::Rom || self.bytes[usize::from(ROM_REGISTER)] & ROM_ENABLE != 0;
        let to = if self.command() & bar.kind.decoding() == 0 || !enabled {
            None
        } else if self.is_probe(bar, partial) {
            // Software is finding out the size; it will write an address when it knows.
            bar.mapped
        } else {
            Some(self.address(bar))
        };
        (to != bar.mapped).then_some(BarMove {
            bar: bar.index,
            kind: bar.kind,
            size: bar.size,
            from: bar.mapped,
            to,
            partial,
        })
    }

    /// All address bits are ones that can be, in the half written last.
    fn is_probe(&self, bar: &Bar, partial: bool) -> bool {
        let low = u32::from_le_bytes(self.get(bar.registers().start)) & bar.kind.address_bits();
        let low_mask = !u32::try_from(bar.size - 1).unwrap_or(u32::MAX);
        match bar.kind {
            BarKind::Memory32 | BarKind::Ports | BarKind::Rom => low == low_mask,
            BarKind::Memory64 => {
                let high = u32::from_le_bytes(self.get(bar.registers().start + 4));
                high == u32::MAX || partial && low == low_mask
            }
        }
    }

    fn address(&self, bar: &Bar) -> u64 {
        let start = bar.registers().start;
        match bar.kind {
            BarKind::Memory32 | BarKind::Ports | BarKind::Rom => {
                u64::from(u32::from_le_bytes(self.get(start)) & bar.kind.address_bits())
            }
            BarKind::Memory64 => u64::from_le_bytes(self.get(start)) & !0xf,
        }
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        u16::from_le_bytes(self.get(COMMAND))
    }

    /// The function may use memory and send messages (PCI Local Bus 3.0, section 6.2.2).
    pub fn bus_master(&self) -> bool {
        self.command() & COMMAND_BUS_MASTER != 0
    }

    /// The register of `N` bytes at `offset`.
    pub fn get<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut value = [0; N];
        self.read(offset, &mut value);
        value
    }

    fn set(&mut self, offset: u16, value: &[u8]) {
        let at = usize::from(offset);
        self.bytes[at..at + value.len()].copy_from_slice(value);
    }

    fn allow(&mut self, offset: u16, mask: &[u8]) {
        let at = usize::from(offset);
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}
