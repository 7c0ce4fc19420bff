//! Address decoding for port I/O and memory-mapped I/O: who answers at which address.
//!
//! A machine has two buses, one of ports and one of memory addresses. A device never sees an access outside its range:
//! what crosses the end of a range is clipped, and bytes that nobody claims read as ones and are written to nowhere,
//! as on a real bus without a target.

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

#[cfg(test)]
mod tests;

/// A device that answers at a range of a bus.
///
/// The guest chooses width and alignment of each access, so `data` can have any length from one to eight bytes at any
/// offset; an implementation treats widths that its registers do not have as its specification says.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes at `offset` from `base`, the start of the range that was hit.
    fn read(&self, base: u64, offset: u64, data: &mut [u8]);
    /// Writes `data` at `offset` from `base`, the start of the range that was hit.
    fn write(&self, base: u64, offset: u64, data: &[u8]);
}

/// Why a range could not be put on a bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The range is empty.
    #[error("range {0:#x}..{1:#x} refused: it is empty; give it a length")]
    Empty(u64, u64),
    /// The range overlaps one that is already there.
    #[error("range {0:#x}..{1:#x} refused: it overlaps {2:#x}..{3:#x}; remove that one first")]
    Overlap(u64, u64, u64, u64),
}

struct Entry {
    range: Range<u64>,
    device: Arc<dyn BusDevice>,
}

/// A set of address ranges, each with its device.
#[derive(Default)]
pub struct Bus {
    /// Sorted by start, no overlaps.
    entries: RwLock<Vec<Entry>>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_list().entries(entries.iter().map(|e| &e.range)).finish()
    }
}

impl Bus {
    /// A bus with nobody on it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `range`.
    pub fn insert(&self, range: Range<u64>, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        if range.is_empty() {
            return Err(BusError::Empty(range.start, range.end));
        }
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let at = entries.partition_point(|e| e.range.end <= range.start);
        if let Some(next) = entries.get(at)
            && next.range.start < range.end
        {
            return Err(BusError::Overlap(
                range.start,
                range.end,
                next.range.start,
                next.range.end,
            ));
        }
        entries.insert(at, Entry { range, device });
        Ok(())
    }

    /// Takes the device off that sits at exactly `range`; true if there was one.
    ///
    /// An access that another thread began before may still be running in the device.
    pub fn remove(&self, range: &Range<u64>) -> bool {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = entries.iter().position(|e| e.range == *range) else {
            return false;
        };
        entries.remove(at);
        true
    }

    /// Reads `data.len()` bytes at `addr`. False if nobody claims the first byte.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let Some((device, base, end)) = self.find(addr) else {
            return false;
        };
        let len = clip(addr, end, data.len());
        device.read(base, addr - base, &mut data[..len]);
        true
    }

    /// Writes `data` at `addr`. False if nobody claims the first byte.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        let Some((device, base, end)) = self.find(addr) else {
            return false;
        };
        let len = clip(addr, end, data.len());
        device.write(base, addr - base, &data[..len]);
        true
    }

    /// The device is called without the lock, so that a register write may move its own range.
    fn find(&self, addr: u64) -> Option<(Arc<dyn BusDevice>, u64, u64)> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let at = entries.partition_point(|e| e.range.end <= addr);
        let entry = entries.get(at).filter(|e| e.range.contains(&addr))?;
        Some((Arc::clone(&entry.device), entry.range.start, entry.range.end))
    }
}

fn clip(addr: u64, end: u64, len: usize) -> usize {
    usize::try_from(end - addr).map_or(len, |room| len.min(room))
}
