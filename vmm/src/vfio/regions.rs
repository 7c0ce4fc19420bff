//! The BARs of a device: which parts of them are mapped into the guest, and which pass through this process.

use std::ops::Range;
use std::sync::Arc;

use crate::hv::HvError;
use crate::hv::device_memory::DeviceMemory;
use crate::pci::Platform;

use super::host::HostDevice;

const PAGE: u64 = 4096;

/// A BAR and what of it is mapped.
#[derive(Debug)]
pub(super) struct Region {
    bar: u8,
    /// Offset in the BAR, and the memory.
    parts: Vec<(u64, Arc<DeviceMemory>)>,
}

/// The whole pages of `host`'s parts without those that any of `trapped` is in.
fn mapped_parts(host: &[Range<u64>], trapped: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut parts = Vec::new();
    for part in host {
        let end = part.end / PAGE * PAGE;
        let Some(mut start) = part.start.checked_next_multiple_of(PAGE) else {
            continue;
        };
        let mut holes: Vec<_> = trapped.iter().filter(|hole| !hole.is_empty()).collect();
        holes.sort_by_key(|hole| hole.start);
        for hole in holes {
            let hole_start = hole.start / PAGE * PAGE;
            if hole_start > start {
                parts.push(start..hole_start.min(end));
            }
            start = start.max(hole.end.next_multiple_of(PAGE));
            if start >= end {
                break;
            }
        }
        parts.push(start..end);
    }
    parts.retain(|part| part.start < part.end);
    parts
}

impl Region {
    /// Maps what can be mapped of `bar`, but for the pages with `trapped` in them. Where the host refuses, accesses pass
    /// through this process, which is slower and no different.
    pub(super) fn new(device: &dyn HostDevice, bar: u8, trapped: &[Range<u64>]) -> Self {
        let region = u32::from(bar);
        let mut parts = Vec::new();
        for part in mapped_parts(&device.mappable(region), trapped) {
            match device.map(region, part.clone()) {
                Ok(memory) => parts.push((part.start, Arc::new(memory))),
                Err(error) => {
                    tracing::warn!(bar, ?part, %error, "registers are not mapped but passed on one by one");
                }
            }
        }
        Self { bar, parts }
    }

    pub(super) fn bar(&self) -> u8 {
        self.bar
    }

    /// Has the guest reach the mapped parts by itself, with the BAR at `addr`. On failure none is.
    pub(super) fn enter(&self, platform: &dyn Platform, addr: u64) -> Result<(), HvError> {
        for (done, (offset, memory)) in self.parts.iter().enumerate() {
            if let Err(error) = platform.map_memory(addr + offset, memory) {
                self.leave_parts(&self.parts[..done], platform, addr);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Undoes `enter`.
    pub(super) fn leave(&self, platform: &dyn Platform, addr: u64) {
        self.leave_parts(&self.parts, platform, addr);
    }

    fn leave_parts(&self, parts: &[(u64, Arc<DeviceMemory>)], platform: &dyn Platform, addr: u64) {
        for (offset, _) in parts {
            if let Err(error) = platform.unmap_memory(addr + offset) {
                tracing::warn!(bar = self.bar, %error, "a device's memory stays in the guest");
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of ranges with one in them")]
mod tests {
    use super::mapped_parts;

    #[test]
    fn pages_with_a_table_in_them_are_left_out() {
        // A table that is longer than a page, and pending bits in the middle of another.
        assert_eq!(
            mapped_parts(&[0..0x8000], &[0x5010..0x5020, 0x2000..0x3001]),
            [0..0x2000, 0x4000..0x5000, 0x6000..0x8000]
        );
        assert_eq!(mapped_parts(&[0..0x4000], &[]), [0..0x4000]);
        assert_eq!(mapped_parts(&[0..0x4000], &[0x3ff0..0x4000]), [0..0x3000]);
        assert_eq!(mapped_parts(&[0..0x1000], &[0..0x10]), []);
        // Table and pending bits share a page, and a table goes beyond the end.
        assert_eq!(
            mapped_parts(&[0..0x3000], &[0x100..0x200, 0x800..0x808]),
            [0x1000..0x3000]
        );
        assert_eq!(
            mapped_parts(&[0..0x2000], &[0x1000..u64::MAX - 0xfff]),
            [0..0x1000]
        );
    }

    #[test]
    fn only_whole_pages_of_what_the_host_offers_are_mapped() {
        assert_eq!(mapped_parts(&[0..0x80], &[]), []);
        assert_eq!(
            mapped_parts(&[0x800..0x2800, 0x4000..0x5000], &[0x4000..0x4001]),
            [0x1000..0x2000]
        );
    }
}
