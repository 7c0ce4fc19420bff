//! The driver end of a queue of either layout.

use std::sync::Arc;

use crate::memory::MemoryMap;
use crate::queue::{QueueConfig, QueueError, RingError};
use crate::split::driver::{Buffer, IndirectTables, QueueFull};
use crate::{packed, split};

/// The driver end of a queue of either layout.
#[derive(Debug)]
pub enum DriverQueue {
    /// Of a split queue.
    Split(split::driver::DriverQueue),
    /// Of a packed queue.
    Packed(packed::driver::DriverQueue),
}

/// Calls the same method of either kind.
macro_rules! either {
    ($queue:expr, $inner:ident => $call:expr) => {
        match $queue {
            DriverQueue::Split($inner) => $call,
            DriverQueue::Packed($inner) => $call,
        }
    };
}

impl DriverQueue {
    /// Builds an empty queue, packed when `packed` is set, which the device end must start where `config` says. Chains of
    /// several buffers take one descriptor each when there are `tables`.
    pub fn new(
        mem: Arc<MemoryMap>,
        config: &QueueConfig,
        tables: Option<IndirectTables>,
        packed: bool,
    ) -> Result<Self, QueueError> {
        if packed {
            packed::driver::DriverQueue::new(mem, config, tables).map(Self::Packed)
        } else {
            split::driver::DriverQueue::new(mem, config, tables).map(Self::Split)
        }
    }

    /// The device uses chains in the order in which they are made available (`VIRTIO_F_IN_ORDER` was negotiated). Before the
    /// first chain.
    pub fn set_in_order(&mut self) {
        either!(self, q => q.set_in_order());
    }

    /// Descriptors that hold nothing.
    #[inline]
    pub fn free_descriptors(&self) -> u16 {
        either!(self, q => q.free_descriptors())
    }

    /// Chains that the device has and did not return yet.
    #[inline]
    pub fn in_flight(&self) -> usize {
        match self {
            Self::Split(q) => usize::from(q.in_flight()),
            Self::Packed(q) => q.in_flight(),
        }
    }

    /// Makes a chain for the device, as [`split::driver::DriverQueue::push`] does.
    #[inline]
    pub fn push(&mut self, readable: &[Buffer], writable: &[Buffer], token: u64) -> Result<(), QueueFull> {
        either!(self, q => q.push(readable, writable, token))
    }

    /// Makes chains of one buffer each, as [`split::driver::DriverQueue::push_each`] does.
    #[inline]
    pub fn push_each(&mut self, writable: bool, chains: &[(Buffer, u64)]) -> usize {
        either!(self, q => q.push_each(writable, chains))
    }

    /// Shows the device everything pushed since the last time. True when it wants a kick.
    #[inline]
    pub fn publish(&mut self) -> bool {
        either!(self, q => q.publish())
    }

    /// Takes the next used chain back: its token, and how many bytes the device says it wrote.
    #[inline]
    pub fn pop_used(&mut self) -> Result<Option<(u64, u32)>, RingError> {
        either!(self, q => q.pop_used())
    }

    /// Takes used chains back, as [`split::driver::DriverQueue::pop_each`] does.
    #[inline]
    pub fn pop_each(&mut self, used: &mut [(u64, u32)]) -> Result<usize, RingError> {
        either!(self, q => q.pop_each(used))
    }

    /// Asks the device not to interrupt: the driver end polls.
    #[inline]
    pub fn disable_interrupts(&mut self) {
        either!(self, q => q.disable_interrupts());
    }

    /// Asks the device to interrupt at the next used chain. True when some came meanwhile.
    #[inline]
    pub fn enable_interrupts(&mut self) -> bool {
        either!(self, q => q.enable_interrupts())
    }
}

/// Takes used chains back one by one, where each has to be found from the one before.
pub(crate) fn pop_singly(
    used: &mut [(u64, u32)],
    mut pop: impl FnMut() -> Result<Option<(u64, u32)>, RingError>,
) -> Result<usize, RingError> {
    let mut count = 0;
    while let Some(place) = used.get_mut(count)
        && let Some(popped) = pop()?
    {
        *place = popped;
        count += 1;
    }
    Ok(count)
}
