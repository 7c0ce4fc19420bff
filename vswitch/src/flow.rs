//! Which queue pair a flow belongs to.

use std::sync::atomic::{AtomicU8, Ordering};

/// Flows told apart per port. Two flows that share a slot follow whichever transmitted last.
const SLOTS: usize = 1024;

/// The queue pair that each flow was last transmitted on, so that what comes back goes to the same CPU of
/// the guest.
#[derive(Debug)]
pub struct FlowTable {
    /// Number of the pair plus one; 0 before the flow's first frame.
    slots: Box<[AtomicU8; SLOTS]>,
}

impl FlowTable {
    /// A table that knows no flow.
    pub fn new() -> Self {
        Self {
            slots: Box::new([const { AtomicU8::new(0) }; SLOTS]),
        }
    }

    /// Notes that the guest transmitted a flow on `pair`.
    #[inline]
    pub fn note(&self, hash: u32, pair: u8) {
        let slot = self.slot(hash);
        // Mostly nothing changes, and then the line stays shared between CPUs.
        if slot.load(Ordering::Relaxed) != pair + 1 {
            slot.store(pair + 1, Ordering::Relaxed);
        }
    }

    /// The pair to deliver a flow on, of those in the mask `ready`: the one it was transmitted on, else one
    /// chosen by its hash. None if no pair is ready.
    #[inline]
    pub fn choose(&self, hash: u32, ready: u32) -> Option<u8> {
        if ready <= 1 {
            return if ready == 1 { Some(0) } else { None };
        }
        let noted = self.slot(hash).load(Ordering::Relaxed);
        if noted != 0 && ready & 1 << (noted - 1) != 0 {
            return Some(noted - 1);
        }
        let mut skip = (u64::from(hash >> 10) * u64::from(ready.count_ones())) >> 22;
        let mut left = ready;
        while skip > 0 {
            left &= left - 1;
            skip -= 1;
        }
        u8::try_from(left.trailing_zeros()).ok()
    }

    /// Forgets every flow.
    pub fn clear(&self) {
        for slot in self.slots.iter() {
            slot.store(0, Ordering::Relaxed);
        }
    }

    #[inline]
    fn slot(&self, hash: u32) -> &AtomicU8 {
        &self.slots[hash as usize % SLOTS]
    }
}

impl Default for FlowTable {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_pair_the_guest_transmitted_on() {
        let flows = FlowTable::new();
        flows.note(77, 3);
        assert_eq!(flows.choose(77, 0b1111), Some(3));
        assert!(
            matches!(flows.choose(77, 0b0111), Some(0..=2)),
            "a disabled pair gets nothing"
        );
        flows.clear();
        assert_eq!(flows.choose(0, 0b1111), Some(0));
    }

    #[test]
    fn unknown_flows_spread_over_ready_pairs_only() {
        let flows = FlowTable::new();
        let mut seen = 0_u32;
        for step in 0..64_u32 {
            let pair = flows.choose(step << 26 | step, 0b1010_0110).unwrap();
            seen |= 1 << pair;
        }
        assert_eq!(seen, 0b1010_0110);
        assert_eq!(flows.choose(5, 0), None);
        assert_eq!(flows.choose(u32::MAX, 0b10), Some(1));
    }
}
