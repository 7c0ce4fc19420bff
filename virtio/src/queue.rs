//! What all virtqueues have in common: their configuration, their errors, and one type for either layout.

use crate::burst::ChainError;

/// Where a queue is and how it was negotiated. Frozen once the queue is built.
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
    #[error("queue size {0} refused: it must be a power of two up to 32768")]
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
