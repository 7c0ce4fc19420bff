//! The reusable buffer that a device end pops descriptor chains into.

use std::sync::Arc;

use crate::desc::Segment;
use crate::memory::{MemoryMap, prefetch, prefetch_write};

/// Chains that a [`Burst`] holds unless told otherwise.
pub const DEFAULT_BURST: usize = 64;
/// Memories that a burst keeps, each in a place of its own: where queues take turns, counting references would cost every burst
/// a wait until all that was written is in memory.
const MEMORIES: usize = 16;
/// Bytes of a cache line. Of each buffer the lines of its first two of these are fetched ahead: a short frame with its header.
const LINE: usize = 64;
/// A readable buffer that is longer has a third line fetched.
const TWO_LINES: usize = 76;
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

/// What a burst remembers of every chain.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Its segment, or its place among `others`.
    first: u32,
    head: u16,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One readable segment.
    Readable,
    /// One writable segment.
    Writable,
    /// Anything else.
    Other,
}

/// What a burst remembers of a chain that is not one segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChainRecord {
    pub(crate) head: u16,
    pub(crate) error: Option<ChainError>,
    /// Where its segments start.
    pub(crate) first: u32,
    /// Readable segments: at most as many as descriptors, and a few more.
    pub(crate) readable: u16,
    pub(crate) writable: u16,
    pub(crate) readable_len: u32,
    pub(crate) writable_len: u32,
}

impl ChainRecord {
    /// A chain of nothing yet.
    #[inline]
    pub(crate) fn empty(head: u16, first: u32) -> Self {
        Self {
            head,
            error: None,
            first,
            readable: 0,
            writable: 0,
            readable_len: 0,
            writable_len: 0,
        }
    }
}

/// Up to a fixed number of chains with their segments. Reused from burst to burst: it allocates only while it first grows.
///
/// It keeps the memory it was last filled from, and some that it was filled from before; [`Burst::release`] lets go of all.
#[derive(Debug)]
pub struct Burst {
    capacity: usize,
    chains: Vec<Entry>,
    others: Vec<ChainRecord>,
    /// The `'static` is private: the views are lent out for as long as `self` is borrowed, and `memories` keeps their mappings.
    pub(crate) segments: Vec<Segment<'static>>,
    memories: [Option<Arc<MemoryMap>>; MEMORIES],
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
            others: Vec::new(),
            segments: Vec::with_capacity(capacity * 4),
            memories: [const { None }; MEMORIES],
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
        self.chains.get(i).map(|entry| self.chain(*entry))
    }

    /// The chains, in the order in which the driver made them available.
    #[inline]
    pub fn chains(&self) -> impl ExactSizeIterator<Item = Chain<'_>> {
        self.chains.iter().map(|entry| self.chain(*entry))
    }

    /// What each chain is known by, in the order in which the driver made them available.
    #[inline]
    pub fn heads(&self) -> impl ExactSizeIterator<Item = u16> {
        self.chains.iter().map(|entry| entry.head)
    }

    /// The buffers of all chains in their order, each where that is one readable segment and nothing else.
    #[inline]
    pub fn single_readables(&self) -> impl ExactSizeIterator<Item = Option<Segment<'_>>> {
        self.chains.iter().map(|entry| match entry.kind {
            Kind::Readable => self.segments.get(entry.first as usize).copied(),
            Kind::Writable | Kind::Other => None,
        })
    }

    /// What chain `i` is known by and its buffer, when that is one writable segment and nothing else.
    #[inline]
    pub fn single_writable(&self, i: usize) -> Option<(u16, Segment<'_>)> {
        let entry = self.chains.get(i)?;
        if entry.kind != Kind::Writable {
            return None;
        }
        Some((entry.head, *self.segments.get(entry.first as usize)?))
    }

    /// The writable segments of `count` chains from `first` on as one list: a frame's mergeable buffers. None when there are
    /// not that many, or when one of them is malformed or has device-readable buffers.
    #[inline]
    pub fn writable_run(&self, first: usize, count: usize) -> Option<&[Segment<'_>]> {
        let chains = self.chains.get(first..first.checked_add(count)?)?;
        let start = self.record(*chains.first()?).first as usize;
        let mut end = start;
        for entry in chains {
            let record = self.record(*entry);
            if record.readable != 0 || record.error.is_some() {
                return None;
            }
            end = record.first as usize + usize::from(record.writable);
        }
        self.segments.get(start..end)
    }

    /// Empties the burst and lets go of all memory it was filled from.
    pub fn release(&mut self) {
        self.clear();
        self.memories.fill(None);
    }

    #[inline]
    fn chain(&self, entry: Entry) -> Chain<'_> {
        let record = self.record(entry);
        let first = record.first as usize;
        let middle = first + usize::from(record.readable);
        let end = middle + usize::from(record.writable);
        Chain {
            head: record.head,
            readable: &self.segments[first..middle],
            writable: &self.segments[middle..end],
            readable_len: record.readable_len,
            writable_len: record.writable_len,
            error: record.error,
        }
    }

    /// Everything that is known of a chain.
    #[inline]
    fn record(&self, entry: Entry) -> ChainRecord {
        if entry.kind == Kind::Other {
            return self.others[entry.first as usize];
        }
        let mut record = ChainRecord::empty(entry.head, entry.first);
        let (count, bytes) = if entry.kind == Kind::Readable {
            (&mut record.readable, &mut record.readable_len)
        } else {
            (&mut record.writable, &mut record.writable_len)
        };
        *count = 1;
        // It was the length of a descriptor.
        *bytes = u32::try_from(self.segments[entry.first as usize].len()).unwrap_or(u32::MAX);
        record
    }

    #[inline]
    fn clear(&mut self) {
        self.chains.clear();
        self.others.clear();
        self.segments.clear();
    }

    /// Empties the burst; what is pushed from now on lies in `memory`.
    #[inline]
    pub(crate) fn begin(&mut self, memory: &Arc<MemoryMap>) {
        self.clear();
        self.walked = 0;
        let place = Arc::as_ptr(memory).addr() / size_of::<MemoryMap>() % MEMORIES;
        let kept = &mut self.memories[place];
        if !kept.as_ref().is_some_and(|m| Arc::ptr_eq(m, memory)) {
            *kept = Some(Arc::clone(memory));
        }
    }

    /// Adds chains that are one descriptor each, nearly all of them, for as long as `next` gives one for its number: what it is known
    /// by, whether it is to be written, and its buffer. At most `most`; returns how many.
    ///
    /// # Safety
    /// The buffers must lie in the memory that `begin` was given.
    #[inline]
    pub(crate) unsafe fn push_singles(
        &mut self,
        most: usize,
        mut next: impl FnMut(usize) -> Option<(u16, bool, Segment<'static>)>,
    ) -> usize {
        let mark = self.mark();
        self.chains.reserve(most);
        self.segments.reserve(most);
        let entries = self.chains.spare_capacity_mut();
        let places = self.segments.spare_capacity_mut();
        let most = most.min(entries.len()).min(places.len());
        let (entries, places) = (&mut entries[..most], &mut places[..most]);
        let mut count = 0;
        let mut first = mark;
        while count < most {
            let Some((head, writable, view)) = next(count) else {
                break;
            };
            let start = view.as_ptr().cast_const();
            // Hints: it does not matter where a buffer ends before that.
            let kind = if writable {
                prefetch_write(start);
                prefetch_write(start.wrapping_add(LINE));
                Kind::Writable
            } else {
                prefetch(start);
                prefetch(start.wrapping_add(LINE));
                if view.len() > TWO_LINES {
                    prefetch(start.wrapping_add(2 * LINE));
                }
                Kind::Readable
            };
            places[count].write(view);
            entries[count].write(Entry { first, head, kind });
            count += 1;
            first += 1;
        }
        // SAFETY: as many of both were written, in the room that there was behind the others.
        unsafe {
            self.chains.set_len(self.chains.len() + count);
            self.segments.set_len(self.segments.len() + count);
        }
        count
    }

    /// Adds a chain whose segments were pushed.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a burst holds far fewer chains than that"
    )]
    pub(crate) fn push_other(&mut self, record: ChainRecord) {
        self.chains.push(Entry {
            first: self.others.len() as u32,
            head: record.head,
            kind: Kind::Other,
        });
        self.others.push(record);
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
