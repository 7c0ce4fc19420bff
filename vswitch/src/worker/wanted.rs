//! What a guest asked for through its control queue, as far as it matters to the frames of a burst.

use vhost_net_backend::control::Steering;

use super::deliver::Forwarder;
use super::examine::Examined;
use crate::counters::{DropReason, QueueCounters};
use crate::port::Port;

impl Forwarder {
    /// Those of `frames` that the port's guest wants; the others are counted as dropped.
    #[cold]
    pub(super) fn wanted(&self, port: &Port, mut frames: u64, counters: &QueueCounters) -> u64 {
        let filter = port.wishes().filter();
        let Some(filter) = &*filter else { return frames };
        let mut left = frames;
        while left != 0 {
            let number = left.trailing_zeros() as usize;
            let bit = left & left.wrapping_neg();
            left ^= bit;
            let unwanted = self
                .frames
                .get(number)
                .is_some_and(|frame| !filter.accepts(frame.snapshot()));
            if unwanted {
                frames ^= bit;
                counters.drops.add(DropReason::Filtered, 1);
            }
        }
        frames
    }
}

/// The queue pair that a guest chose for a frame by receive-side scaling, or the first of those that are `ready` where it is
/// not among them.
pub(super) fn chosen(steering: Option<&Steering>, frame: &Examined, ready: u32) -> Option<u8> {
    let pair = steering.map(|steering| steering.pair(frame.snapshot()));
    pair.filter(|pair| ready & 1 << (pair % 32) != 0).or_else(|| {
        u8::try_from(ready.trailing_zeros())
            .ok()
            .filter(|first| *first < 32)
    })
}
