//! What all virtqueues have in common: their configuration, their errors, and one type for either layout.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::burst::{Burst, ChainError};
use crate::memory::MemoryMap;
use crate::{packed, split};

mod driver;
pub(crate) mod in_order;

pub use driver::DriverQueue;
pub(crate) use driver::pop_singly;

/// Where a queue is and how it was negotiated. Frozen once the queue is built.
///
/// In a packed queue, `avail` is the driver's event suppression area and `used` the device's, and positions have the wrap
/// counter in bit 15: 0x8000 for a new queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueConfig {
    /// Entries: a power of two up to 32768.
    pub size: u16,
    /// User address (the front-end's) of the descriptor table.
    pub desc: u64,
    /// User address of the available ring.
    pub avail: u64,
    /// User address of the used ring.
    pub used: u64,
    /// `RING_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// `RING_F_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
    /// Where the device end goes on reading the available ring.
    pub next_avail: u16,
    /// Where it goes on writing the used ring.
    pub used_idx: u16,
}

/// Why a queue couldn't be set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// Not a size the standard allows.
    #[error("queue size {0} refused: it must be 1 to 32768, and a power of two unless the queue is packed")]
    Size(u16),
    /// A ring isn't wholly inside one region.
    #[error(
        "{part} at user address {addr:#x} refused: it isn't wholly inside one memory region; send the memory table first"
    )]
    Unmapped {
        /// Which part of the queue.
        part: &'static str,
        /// Its user address.
        addr: u64,
    },
    /// A ring isn't aligned as the standard says.
    #[error("{part} at user address {addr:#x} refused: it must be aligned to {align} bytes")]
    Misaligned {
        /// Which part of the queue.
        part: &'static str,
        /// Its user address.
        addr: u64,
        /// What it must be aligned to.
        align: usize,
    },
    /// A start position outside a packed queue.
    #[error("position {position:#x} refused: it is outside a queue of {size} entries")]
    Position {
        /// Where the queue should have started, with the wrap counter in bit 15.
        position: u16,
        /// Entries in the queue.
        size: u16,
    },
    /// A driver end needs tables for indirect descriptors and was given none, or too few.
    #[error("indirect tables refused: they need guest memory for {size} tables of {entries} descriptors")]
    IndirectTables {
        /// Queue size.
        size: u16,
        /// Descriptors per table.
        entries: u16,
    },
}

/// Why a ring can't go on: what its other end wrote makes no sense. The queue is stopped; other queues are unaffected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The available index is further ahead than the queue is long, or went back.
    #[error(
        "available index {avail} is not within {size} of {next}: the driver moved it by more than the queue holds"
    )]
    AvailIndex {
        /// What the driver wrote.
        avail: u16,
        /// Where the device end was.
        next: u16,
        /// Queue size.
        size: u16,
    },
    /// More descriptors made available than the queue has.
    #[error("descriptors of a queue of {size} made available before they were used")]
    TooManyAvailable {
        /// Queue size.
        size: u16,
    },
    /// The used index is further ahead than chains are outstanding.
    #[error(
        "used index {used} is not within {in_flight} of {next}: the device returned chains it was never given"
    )]
    UsedIndex {
        /// What the device wrote.
        used: u16,
        /// Where the driver end was.
        next: u16,
        /// Chains outstanding.
        in_flight: u16,
    },
    /// The device returned a chain that isn't outstanding.
    #[error("used element names chain {id}, which is not outstanding")]
    UsedId {
        /// What the device wrote.
        id: u32,
    },
    /// A head or a next index outside the descriptor table.
    #[error("descriptor index {index} outside a table of {size}")]
    DescriptorIndex {
        /// What the driver wrote.
        index: u16,
        /// Entries in the table.
        size: u16,
    },
    /// A chain with a loop, or longer than the queue.
    #[error("chain at head {head} loops or has more than {limit} descriptors")]
    ChainTooLong {
        /// The chain's head.
        head: u16,
        /// The most descriptors allowed.
        limit: u16,
    },
    /// An indirect descriptor in an indirect table.
    #[error("chain at head {head} has an indirect descriptor in an indirect table")]
    NestedIndirect {
        /// The chain's head.
        head: u16,
    },
    /// An indirect descriptor with NEXT.
    #[error("chain at head {head} goes on after an indirect descriptor")]
    IndirectWithNext {
        /// The chain's head.
        head: u16,
    },
    /// An indirect descriptor although the feature wasn't negotiated.
    #[error("chain at head {head} uses an indirect descriptor, which was not negotiated")]
    IndirectNotNegotiated {
        /// The chain's head.
        head: u16,
    },
    /// An indirect table of no, too many, or a fraction of descriptors.
    #[error("chain at head {head} has an indirect table of {len} bytes: not 1 to {limit} whole descriptors")]
    IndirectLength {
        /// The chain's head.
        head: u16,
        /// Bytes in the table.
        len: u32,
        /// The most descriptors allowed.
        limit: u16,
    },
}

/// Either kind of trouble with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WalkError {
    /// Return this chain, go on with the next.
    Chain(ChainError),
    /// Stop the ring.
    Ring(RingError),
}

impl From<ChainError> for WalkError {
    fn from(e: ChainError) -> Self {
        Self::Chain(e)
    }
}

impl From<RingError> for WalkError {
    fn from(e: RingError) -> Self {
        Self::Ring(e)
    }
}

/// True when moving an index from `old` to `new` passes what the other end waits for (VIRTIO 1.3 §2.7.7.2, §2.7.10.2).
#[inline]
pub(crate) fn passes_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Translates one part of a queue.
pub(crate) fn locate(
    mem: &MemoryMap,
    part: &'static str,
    addr: u64,
    len: usize,
    align: usize,
) -> Result<NonNull<u8>, QueueError> {
    let view = mem
        .user_slice(addr, len)
        .ok_or(QueueError::Unmapped { part, addr })?;
    let ptr = NonNull::new(view.as_ptr()).ok_or(QueueError::Unmapped { part, addr })?;
    if ptr.as_ptr().addr() % align != 0 {
        return Err(QueueError::Misaligned { part, addr, align });
    }
    Ok(ptr)
}

/// The device end of a queue of either layout.
#[derive(Debug)]
pub enum Queue {
    /// A split queue.
    Split(split::device::DeviceQueue),
    /// A packed queue.
    Packed(packed::device::DeviceQueue),
}

/// Calls the same method of either kind.
macro_rules! either {
    ($queue:expr, $inner:ident => $call:expr) => {
        match $queue {
            Queue::Split($inner) => $call,
            Queue::Packed($inner) => $call,
        }
    };
}

impl Queue {
    /// Builds the queue at its start position: packed when `packed` is set (`RING_PACKED` was negotiated).
    pub fn new(mem: Arc<MemoryMap>, config: &QueueConfig, packed: bool) -> Result<Self, QueueError> {
        if packed {
            packed::device::DeviceQueue::new(mem, config).map(Self::Packed)
        } else {
            split::device::DeviceQueue::new(mem, config).map(Self::Split)
        }
    }

    /// Goes on under a new map: the same user addresses, translated anew. On an error the queue stays on the old map.
    pub fn set_memory(&mut self, mem: Arc<MemoryMap>) -> Result<(), QueueError> {
        either!(self, q => q.set_memory(mem))
    }

    /// Goes on where the last device end had got to, as far as the ring itself tells; before the first chain. A split ring has
    /// an index that says so: whoever builds the queue reads it.
    pub fn recover(&mut self) {
        if let Self::Packed(queue) = self {
            queue.recover();
        }
    }

    /// The map that chains are translated with.
    #[inline]
    pub fn memory(&self) -> &Arc<MemoryMap> {
        either!(self, q => q.memory())
    }

    /// Entries in the queue.
    #[inline]
    pub fn size(&self) -> u16 {
        either!(self, q => q.size())
    }

    /// Replaces the burst's contents with at most `max` chains and says how many there are. Errors as with
    /// [`split::device::DeviceQueue::pop_burst`].
    #[inline]
    pub fn pop_burst(&mut self, burst: &mut Burst, max: usize) -> Result<usize, RingError> {
        either!(self, q => q.pop_burst(burst, max))
    }

    /// Puts back the last `n` chains of the last burst popped: the next pop gives them again.
    #[inline]
    pub fn unpop(&mut self, n: u16) {
        either!(self, q => q.unpop(n));
    }

    /// Records chains as used, each with the bytes written to it. The driver sees them with [`Queue::publish`].
    #[inline]
    pub fn add_used(&mut self, used: impl IntoIterator<Item = (u16, u32)>) {
        match self {
            Self::Split(q) => {
                for (head, len) in used {
                    q.add_used(head, len);
                }
            }
            Self::Packed(q) => q.add_all_used(used),
        }
    }

    /// Shows the driver everything recorded since the last time. True when it wants to be notified.
    #[inline]
    pub fn publish(&mut self) -> bool {
        either!(self, q => q.publish())
    }

    /// Asks the driver not to notify: the device end polls.
    #[inline]
    pub fn disable_notification(&mut self) {
        either!(self, q => q.disable_notification());
    }

    /// Asks the driver to notify about the next chain. True when chains came meanwhile: then pop again before sleeping.
    #[inline]
    pub fn enable_notification(&mut self) -> bool {
        either!(self, q => q.enable_notification())
    }

    /// Where the next pop reads; in a packed queue with the wrap counter in bit 15.
    #[inline]
    pub fn next_avail(&self) -> u16 {
        either!(self, q => q.next_avail())
    }

    /// Where the next used chain goes; in a packed queue with the wrap counter in bit 15.
    #[inline]
    pub fn used_idx(&self) -> u16 {
        either!(self, q => q.used_idx())
    }
}
