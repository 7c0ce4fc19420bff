//! Which physical addresses are RAM and which are not.

use super::{ACPI, ACPI_END};
use crate::board::layout;
use crate::memory::GuestRam;

/// Usable memory, as E820 and PVH number it.
pub(super) const USABLE: u32 = 1;
/// Reserved addresses, as E820 and PVH number them.
pub(super) const RESERVED: u32 = 2;

const LEGACY_START: u64 = 0xa_0000;

/// One range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) addr: u64,
    pub(super) len: u64,
    pub(super) kind: u32,
}

/// All ranges, rising.
pub(super) fn ranges(ram: &GuestRam) -> Vec<Range> {
    let range = |addr: u64, end: u64, kind: u32| Range {
        addr,
        len: end - addr,
        kind,
    };
    let mut ranges = vec![range(0, LEGACY_START, USABLE), range(ACPI, ACPI_END, RESERVED)];
    for region in &ram.regions {
        let start = region.guest_addr.max(ACPI_END);
        let end = region.guest_addr + region.len;
        if end > start {
            ranges.push(range(start, end, USABLE));
        }
    }
    ranges.push(range(
        layout::ECAM_BASE,
        layout::ECAM_BASE + layout::ECAM_LEN,
        RESERVED,
    ));
    ranges.sort_by_key(|r| r.addr);
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::RamConfig;

    #[test]
    fn ranges_rise_and_add_up_to_ram() {
        let size = layout::RAM_BELOW_4G_END + (1 << 30);
        let ram = GuestRam::new(RamConfig {
            size,
            hugepages: false,
        })
        .unwrap();
        let ranges = ranges(&ram);
        assert!(ranges.windows(2).all(|w| w[0].addr + w[0].len <= w[1].addr));
        let usable: u64 = ranges.iter().filter(|r| r.kind == USABLE).map(|r| r.len).sum();
        assert_eq!(usable, size - (ACPI_END - LEGACY_START));
    }
}
