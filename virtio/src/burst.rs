//! The reusable buffer that a device end pops descriptor chains into.

use std::sync::Arc;

use crate::desc::Segment;
use crate::memory::MemoryMap;

/// Chains that a [`Burst`] holds unless told otherwise.
pub const DEFAULT_BURST: usize = 64;
/// Offsets in a readable buffer whose cache lines are fetched ahead: those of its first 140 bytes, wherever lines begin.
const READ_FIRST: [usize; 2] = [0, 75];
const READ_NEXT: [usize; 1] = [139];
/// The same in a writable buffer: a short frame with its header.
const WRITTEN_FIRST: [usize; 2] = [0, 75];
/// Once a burst has walked this many descriptors of long chains, it ends: a peer can't make one pop arbitrarily long.
const WALK_BUDGET: usize = 4096;

/// Why one chain can't be used. The queue goes on: the chain is counted and returned with length 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A buffer's address and length wrap around.
    #[error("buffer address and length wrap around")]
    AddressWraps,
    /// A buffer isn't (wholly) in memory.
    #[error("buffer outside the guest's memory")]
    BufferUnmapped,
    /// An indirect table isn't (wholly) in memory.
    #[error("indirect table outside the guest's memory")]
    TableUnmapped,
    /// The buffers add up to 4 GiB or more.
    #[error("buffers of 4 GiB or more in one chain")]
    TooLarge,
    /// A device-readable buffer after a device-writable one.
    #[error("device-readable buffer after a device-writable one")]
    ReadableAfterWritable,
    /// Buffers that fall apart into too many pieces because they cross regions.
    #[error("buffers cross too many memory regions")]
    TooManyPieces,
}

/// What a burst remembers of a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChainRecord {
    pub(crate) head: u16,
    pub(crate) error: Option<ChainError>,
    /// Where its segments start.
    pub(crate) first: u32,
    pub(crate) readable: u32,
    pub(crate) writable: u32,
    pub(crate) readable_len: u32,
    pub(crate) writable_len: u32,
}

/// Up to a fixed number of chains with their segments. Reused from burst to burst: it allocates only while it first grows.
///
/// It keeps the memory it was last filled from; [`Burst::release`] lets go of it.
#[derive(Debug)]
pub struct Burst {
    capacity: usize,
    pub(crate) chains: Vec<ChainRecord>,
    /// The `'static` is private: the views are lent out for as long as `self` is borrowed, and `memory` keeps their mappings.
    pub(crate) segments: Vec<Segment<'static>>,
    memory: Option<Arc<MemoryMap>>,
    walked: usize,
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}

impl Burst {
    /// A burst of up to [`DEFAULT_BURST`] chains.
    pub fn new() -> Self {
        Self::with_capacity(DEFAULT_BURST)
    }

    /// A burst of up to `capacity` chains (at least one).
    pub fn with_capacity(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self {
            capacity,
            chains: Vec::with_capacity(capacity),
            segments: Vec::with_capacity(capacity * 4),
            memory: None,
            walked: 0,
        }
    }

    /// The most chains it holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Chains in it.
    #[inline]
    pub fn len(&self) -> usize {
        self.chains.len()
    }

    /// True when there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Chain `i`, in the order in which the driver made them available.
    #[inline]
    pub fn get(&self, i: usize) -> Option<Chain<'_>> {
        self.chains.get(i).map(|record| self.chain(record))
    }

    /// The chains, in the order in which the driver made them available.
    #[inline]
    pub fn chains(&self) -> impl ExactSizeIterator<Item = Chain<'_>> {
        self.chains.iter().map(|record| self.chain(record))
    }

    /// What each chain is known by, in the order in which the driver made them available.
    #[inline]
    pub fn heads(&self) -> impl ExactSizeIterator<Item = u16> {
        self.chains.iter().map(|record| record.head)
    }

    /// The buffer of chain `i`, when that is one readable segment and nothing else.
    #[inline]
    pub fn single_readable(&self, i: usize) -> Option<Segment<'_>> {
        let record = self.chains.get(i)?;
        if (record.readable, record.writable) != (1, 0) {
            return None;
        }
        self.segments.get(record.first as usize).copied()
    }

    /// What chain `i` is known by and its buffer, when that is one writable segment and nothing else.
    #[inline]
    pub fn single_writable(&self, i: usize) -> Option<(u16, Segment<'_>)> {
        let record = self.chains.get(i)?;
        if (record.readable, record.writable) != (0, 1) {
            return None;
        }
        Some((record.head, *self.segments.get(record.first as usize)?))
    }

    /// The writable segments of `count` chains from `first` on as one list: a frame's mergeable buffers. None when there are
    /// not that many, or when one of them is malformed or has device-readable buffers.
    #[inline]
    pub fn writable_run(&self, first: usize, count: usize) -> Option<&[Segment<'_>]> {
        let chains = self.chains.get(first..first.checked_add(count)?)?;
        let (head, tail) = (chains.first()?, chains.last()?);
        if chains.iter().any(|c| c.readable != 0 || c.error.is_some()) {
            return None;
        }
        Some(&self.segments[head.first as usize..(tail.first + tail.writable) as usize])
    }

    /// Empties the burst and lets go of the memory it was filled from.
    pub fn release(&mut self) {
        self.chains.clear();
        self.segments.clear();
        self.memory = None;
    }

    #[inline]
    fn chain(&self, record: &ChainRecord) -> Chain<'_> {
        let first = record.first as usize;
        let middle = first + record.readable as usize;
        let end = middle + record.writable as usize;
        Chain {
            head: record.head,
            readable: &self.segments[first..middle],
            writable: &self.segments[middle..end],
            readable_len: record.readable_len,
            writable_len: record.writable_len,
            error: record.error,
        }
    }

    /// Empties the burst; what is pushed from now on lies in `memory`.
    #[inline]
    pub(crate) fn begin(&mut self, memory: &Arc<MemoryMap>) {
        self.chains.clear();
        self.segments.clear();
        self.walked = 0;
        if !self.memory.as_ref().is_some_and(|m| Arc::ptr_eq(m, memory)) {
            self.memory = Some(Arc::clone(memory));
        }
    }

    /// Adds a chain that is one descriptor with `view` as its buffer: nearly all of them.
    ///
    /// # Safety
    /// The view must lie in the memory that `begin` was given.
    #[inline]
    pub(crate) unsafe fn push_single(&mut self, head: u16, writable: bool, view: Segment<'static>, len: u32) {
        let first = self.mark();
        self.segments.push(view);
        let written = u32::from(writable);
        self.chains.push(ChainRecord {
            head,
            error: None,
            first,
            readable: 1 - written,
            writable: written,
            readable_len: if writable { 0 } else { len },
            writable_len: if writable { len } else { 0 },
        });
        if writable {
            view.prefetch_write(WRITTEN_FIRST);
        } else {
            view.prefetch(READ_FIRST);
            if view.len() > READ_FIRST[1] + 1 {
                view.prefetch(READ_NEXT);
            }
        }
    }

    /// Adds a segment to the chain being built.
    ///
    /// # Safety
    /// The segment must lie in the memory that `begin` was given.
    #[inline]
    pub(crate) unsafe fn push_segment(&mut self, segment: Segment<'static>) {
        self.segments.push(segment);
    }

    /// Where the next segment goes.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the walk budget bounds the segments of a burst"
    )]
    pub(crate) fn mark(&self) -> u32 {
        self.segments.len() as u32
    }

    /// Counts descriptors that were walked; true once the burst should end.
    pub(crate) fn charge(&mut self, descriptors: usize) -> bool {
        self.walked += descriptors;
        self.walked >= WALK_BUDGET
    }
}

/// One descriptor chain: a buffer the driver made available.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'b> {
    /// What the driver knows the chain by: give it back with `add_used`.
    pub head: u16,
    /// What the device may read, in order.
    pub readable: &'b [Segment<'b>],
    /// What the device may write, in order.
    pub writable: &'b [Segment<'b>],
    /// Bytes in `readable`.
    pub readable_len: u32,
    /// Bytes in `writable`.
    pub writable_len: u32,
    /// Why it can't be used: then there are no segments, and it is to be returned with length 0.
    pub error: Option<ChainError>,
}

impl Chain<'_> {
    /// Why it can't be used.
    #[inline]
    pub fn error(&self) -> Option<ChainError> {
        self.error
    }
}
