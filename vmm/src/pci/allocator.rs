//! Which addresses of a window are taken.

use std::collections::BTreeMap;
use std::ops::Range;

/// Address ranges inside windows, none overlapping another.
#[derive(Debug)]
pub struct AddressAllocator {
    windows: Vec<Range<u64>>,
    /// Start and end of what is taken.
    taken: BTreeMap<u64, u64>,
}

impl AddressAllocator {
    /// Nothing taken. Windows that come first are filled first.
    pub fn new(windows: Vec<Range<u64>>) -> Self {
        Self {
            windows,
            taken: BTreeMap::new(),
        }
    }

    /// A free address for `size` bytes, a power of two, aligned to their size. It is not taken yet.
    pub fn find(&self, size: u64) -> Option<u64> {
        self.find_above(0, size)
    }

    /// Like `find`, in the windows that start at `min` or above.
    pub fn find_above(&self, min: u64, size: u64) -> Option<u64> {
        let mut windows = self.windows.iter().filter(|window| window.start >= min);
        windows.find_map(|window| self.find_in(window, size))
    }

    fn find_in(&self, window: &Range<u64>, size: u64) -> Option<u64> {
        let mut start = window.start.checked_next_multiple_of(size)?;
        loop {
            let end = start.checked_add(size).filter(|end| *end <= window.end)?;
            match self.overlapping(start, end) {
                None => return Some(start),
                Some(taken_end) => start = taken_end.checked_next_multiple_of(size)?,
            }
        }
    }

    /// Takes `size` bytes at `start`. False if they are not inside a window, or not free.
    pub fn reserve(&mut self, start: u64, size: u64) -> bool {
        let Some(end) = start.checked_add(size) else {
            return false;
        };
        let inside = size > 0 && self.windows.iter().any(|w| w.start <= start && end <= w.end);
        let free = inside && self.overlapping(start, end).is_none();
        if free {
            self.taken.insert(start, end);
        }
        free
    }

    /// Gives back what starts at `start`.
    pub fn free(&mut self, start: u64) {
        self.taken.remove(&start);
    }

    /// The end of the last taken range that overlaps `start..end`.
    fn overlapping(&self, start: u64, end: u64) -> Option<u64> {
        let (_, &taken_end) = self.taken.range(..end).next_back()?;
        (taken_end > start).then_some(taken_end)
    }
}

#[cfg(test)]
mod tests {
    use super::AddressAllocator;

    #[test]
    fn fills_holes_and_windows_in_order() {
        let mut space = AddressAllocator::new(vec![0x1100..0x4000, 0x10_0000..0x20_0000]);
        let mut take = |size| {
            let at = space.find(size)?;
            assert!(space.reserve(at, size));
            Some(at)
        };
        assert_eq!(take(0x1000), Some(0x2000), "aligned to its size");
        assert_eq!(take(0x100), Some(0x1100), "the hole before it is used");
        assert_eq!(take(0x1000), Some(0x3000));
        assert_eq!(take(0x1000), Some(0x10_0000), "the first window is full");
        assert_eq!(take(0x10_0000), None);
        space.free(0x3000);
        assert_eq!(space.find(0x1000), Some(0x3000));
    }

    #[test]
    fn refuses_overlaps_and_addresses_outside() {
        let mut space = AddressAllocator::new(vec![0x1000..0x9000, 0x10_0000..0x10_1000]);
        assert!(space.reserve(0x2000, 0x2000));
        for (start, size) in [
            (0x3000, 0x100),
            (0x1000, 0x2000),
            (0x1800, 0x8000),
            (0x8000, 0x2000),
            (0, 0x1000),
            (0x5000, 0),
        ] {
            assert!(!space.reserve(start, size), "{start:#x}+{size:#x}");
        }
        assert!(!space.reserve(u64::MAX - 0xfff, 0x2000), "wraps");
        assert!(
            space.reserve(0x1000, 0x1000) && space.reserve(0x4000, 0x5000),
            "neighbours"
        );
    }
}
