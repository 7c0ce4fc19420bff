//! What an Intel IOMMU lets a device reach, from the tables that it reads itself: root table, context table, second-level page
//! tables. After "Intel Virtualization Technology for Directed I/O", chapters 3 (address translation), 9 (translation
//! structures) and 11 (registers), in legacy mode.

use std::ops::Range;

#[cfg(test)]
mod tests;

/// Where QEMU's q35 has the registers of its IOMMU.
pub const REGISTERS: u64 = 0xfed9_0000;

/// Global command and status; the status is the upper half of the word.
const STATUS: u64 = 0x18;
const TRANSLATION_ON: u64 = 1 << 63;
/// The root table's address.
const ROOT_TABLE: u64 = 0x20;
/// How the root table is to be read: 0 is legacy mode.
const TABLE_MODE: u64 = 0b11 << 10;

const PRESENT: u64 = 1;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const LARGE_PAGE: u64 = 1 << 7;
const PAGE: u64 = 4096;
const ENTRIES: usize = 512;

/// The physical memory of the machine that the IOMMU is in.
pub trait Memory {
    /// `count` words of 64 bits at `addr`.
    fn words(&mut self, addr: u64, count: usize) -> Vec<u64>;
}

/// Pages that a device reaches: a range of its addresses, and the range of physical addresses that stands behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The first address that the device uses.
    pub device: u64,
    /// What stands behind it.
    pub physical: u64,
    /// Bytes.
    pub len: u64,
    /// The device may write.
    pub write: bool,
}

/// What a device reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// All memory: the IOMMU is off, or lets this device pass.
    Everything,
    /// These pages. They are sorted, and neighbours on both sides are one.
    Pages(Vec<Mapping>),
}

impl Reach {
    /// The device's addresses, neighbours joined; `None` for all there are.
    pub fn ranges(&self) -> Option<Vec<Range<u64>>> {
        let Self::Pages(pages) = self else { return None };
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for page in pages {
            match ranges.last_mut() {
                Some(last) if last.end == page.device => last.end += page.len,
                _ => ranges.push(page.device..page.device + page.len),
            }
        }
        Some(ranges)
    }
}

/// What the device at `bus` and `function` (its device number, then three bits of function) reaches.
///
/// # Panics
/// When the tables are in another mode than legacy, or make no sense.
pub fn reach(memory: &mut impl Memory, bus: u8, function: u8) -> Reach {
    if memory.words(REGISTERS + STATUS, 1)[0] & TRANSLATION_ON == 0 {
        return Reach::Everything;
    }
    let root = memory.words(REGISTERS + ROOT_TABLE, 1)[0];
    assert_eq!(root & TABLE_MODE, 0, "scalable mode: {root:#x}");
    let entry = memory.words((root & FRAME) + 16 * u64::from(bus), 2)[0];
    if entry & PRESENT == 0 {
        return Reach::Pages(Vec::new());
    }
    let context = memory.words((entry & FRAME) + 16 * u64::from(function), 2);
    if context[0] & PRESENT == 0 {
        return Reach::Pages(Vec::new());
    }
    // Translation type: 0 and 1 go through page tables, 2 passes.
    match context[0] >> 2 & 3 {
        0 | 1 => {}
        2 => return Reach::Everything,
        other => panic!("translation type {other} in {context:x?}"),
    }
    // Address width: 1 is 39 bits in three levels, and so on.
    let levels = match context[1] & 7 {
        width @ 1..=3 => u32::try_from(width + 2).expect("a small number"),
        other => panic!("address width {other} in {context:x?}"),
    };
    let mut pages = Vec::new();
    walk(memory, context[0] & FRAME, levels, 0, true, &mut pages);
    Reach::Pages(pages)
}

fn walk(memory: &mut impl Memory, table: u64, level: u32, base: u64, write: bool, pages: &mut Vec<Mapping>) {
    let size = PAGE << (9 * (level - 1));
    let entries = memory.words(table, ENTRIES);
    for (device, entry) in (0..).map(|index| base + index * size).zip(entries) {
        if entry & (READ | WRITE) == 0 {
            continue;
        }
        // An access has to be allowed at each level.
        let write = write && entry & WRITE != 0;
        if level > 1 && entry & LARGE_PAGE == 0 {
            walk(memory, entry & FRAME, level - 1, device, write, pages);
            continue;
        }
        let new = Mapping {
            device,
            physical: entry & FRAME & !(size - 1),
            len: size,
            write,
        };
        match pages.last_mut() {
            Some(last)
                if last.device + last.len == new.device
                    && last.physical + last.len == new.physical
                    && last.write == new.write =>
            {
                last.len += size;
            }
            _ => pages.push(new),
        }
    }
}
