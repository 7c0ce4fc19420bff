//! Walking a descriptor chain: every descriptor is read once and checked on the copy.

use super::ring::Ring;
use super::{RingError, WalkError};
use crate::burst::{Burst, ChainError, ChainRecord};
use crate::desc::{DESC_LEN, Descriptor};
use crate::memory::{GuestSlice, MemoryMap};

/// An indirect table may be longer than a short queue (drivers do that), up to this.
const INDIRECT_MIN_LIMIT: u16 = 1024;
/// Bytes of an entry of an indirect table.
const ENTRY_LEN: u32 = 16;
/// Extra pieces that a chain's buffers may fall into by crossing regions.
const MAX_EXTRA_PIECES: u32 = 64;

/// Collects one chain's buffers.
#[derive(Debug)]
pub(crate) struct Collector<'a> {
    mem: &'a MemoryMap,
    hint: &'a mut usize,
    burst: &'a mut Burst,
    record: ChainRecord,
    extra: u32,
}

impl<'a> Collector<'a> {
    pub(crate) fn new(mem: &'a MemoryMap, hint: &'a mut usize, burst: &'a mut Burst, head: u16) -> Self {
        let first = burst.mark();
        let record = ChainRecord {
            head,
            slots: 1,
            error: None,
            first,
            readable: 0,
            writable: 0,
            readable_len: 0,
            writable_len: 0,
        };
        Self {
            mem,
            hint,
            burst,
            record,
            extra: 0,
        }
    }

    /// Ends the chain, well or with its error; true once the burst should end.
    pub(crate) fn finish(mut self, result: Result<(), ChainError>, slots: u16, walked: usize) -> bool {
        if let Err(error) = result {
            self.burst.segments.truncate(self.record.first as usize);
            self.record = ChainRecord {
                error: Some(error),
                readable: 0,
                writable: 0,
                readable_len: 0,
                writable_len: 0,
                ..self.record
            };
        }
        self.record.slots = slots;
        self.burst.chains.push(self.record);
        self.burst.charge(walked)
    }

    /// Forgets the chain: the ring is broken.
    pub(crate) fn abandon(self) {
        self.burst.segments.truncate(self.record.first as usize);
    }

    /// Adds one direct descriptor's buffer.
    pub(crate) fn add(&mut self, desc: Descriptor) -> Result<(), ChainError> {
        if desc.len == 0 {
            return Ok(());
        }
        desc.addr
            .checked_add(u64::from(desc.len))
            .ok_or(ChainError::AddressWraps)?;
        if !desc.is_writable() && self.record.writable != 0 {
            return Err(ChainError::ReadableAfterWritable);
        }
        let total =
            u64::from(self.record.readable_len) + u64::from(self.record.writable_len) + u64::from(desc.len);
        if total > u64::from(u32::MAX) {
            return Err(ChainError::TooLarge);
        }
        let pieces = self.push(desc)?;
        let (count, len) = if desc.is_writable() {
            (&mut self.record.writable, &mut self.record.writable_len)
        } else {
            (&mut self.record.readable, &mut self.record.readable_len)
        };
        *count += pieces;
        *len += desc.len;
        Ok(())
    }

    fn push(&mut self, desc: Descriptor) -> Result<u32, ChainError> {
        if let Some(ptr) = self.mem.translate(self.hint, desc.addr, u64::from(desc.len)) {
            // SAFETY: `translate` found the bytes in the map that `Burst::begin` was given and that the burst keeps.
            unsafe { self.burst.push_segment(GuestSlice::new(ptr, desc.len as usize)) };
            return Ok(1);
        }
        let (mut at, mut left, mut pieces) = (desc.addr, desc.len, 0);
        while left > 0 {
            let (piece, rest) = self.mem.first_piece(at, left).ok_or(ChainError::BufferUnmapped)?;
            if pieces > 0 {
                self.extra += 1;
            }
            if self.extra > MAX_EXTRA_PIECES {
                return Err(ChainError::TooManyPieces);
            }
            at += u64::from(left - rest);
            left = rest;
            pieces += 1;
            if let Some(ptr) = std::ptr::NonNull::new(piece.as_ptr()) {
                // SAFETY: as above; the view is only given a longer name for the same lifetime.
                unsafe { self.burst.push_segment(GuestSlice::new(ptr, piece.len())) };
            }
        }
        Ok(pieces)
    }

    /// Checks an indirect descriptor and adds its table's buffers. Returns how many descriptors the table chained.
    pub(crate) fn add_table(&mut self, desc: Descriptor, size: u16) -> Result<usize, WalkError> {
        let head = self.record.head;
        let limit = size.max(INDIRECT_MIN_LIMIT);
        let entries = desc.len / ENTRY_LEN;
        if !desc.len.is_multiple_of(ENTRY_LEN) || entries == 0 || entries > u32::from(limit) {
            return Err(RingError::IndirectLength {
                head,
                len: desc.len,
                limit,
            }
            .into());
        }
        desc.addr
            .checked_add(u64::from(desc.len))
            .ok_or(ChainError::AddressWraps)?;
        let table = self.mem.slice(desc.addr, desc.len as usize);
        // Bounded by `limit`, which is a u16.
        #[expect(clippy::cast_possible_truncation, reason = "entries <= limit <= u16::MAX")]
        let entries = entries as u16;
        let (mut index, mut count) = (0_u16, 0_usize);
        loop {
            let mut bytes = [0; DESC_LEN];
            let off = usize::from(index) * DESC_LEN;
            match &table {
                Some(table) => _ = table.read_to(off, &mut bytes),
                // A table that crosses adjacent regions.
                None if self.mem.read(desc.addr + off as u64, &mut bytes) => {}
                None => return Err(ChainError::TableUnmapped.into()),
            }
            let entry = Descriptor::from_bytes(&bytes);
            count += 1;
            if entry.is_indirect() {
                return Err(RingError::NestedIndirect { head }.into());
            }
            self.add(entry)?;
            if !entry.has_next() {
                return Ok(count);
            }
            if entry.next >= entries {
                return Err(RingError::DescriptorIndex {
                    index: entry.next,
                    size: entries,
                }
                .into());
            }
            if count >= usize::from(entries) {
                return Err(RingError::ChainTooLong { head, limit: entries }.into());
            }
            index = entry.next;
        }
    }
}

/// Takes the chain at `head`, whose first descriptor was read already, into the burst. Returns true once the burst should end.
#[cold]
#[inline(never)]
pub(super) fn take_chain(
    ring: &Ring,
    indirect: bool,
    head: u16,
    first: Descriptor,
    mut collector: Collector<'_>,
) -> Result<bool, RingError> {
    let mut walked = 0;
    match walk(ring, indirect, head, first, &mut collector, &mut walked) {
        Ok(()) => Ok(collector.finish(Ok(()), 1, walked)),
        Err(WalkError::Chain(e)) => Ok(collector.finish(Err(e), 1, walked)),
        Err(WalkError::Ring(e)) => {
            collector.abandon();
            Err(e)
        }
    }
}

fn walk(
    ring: &Ring,
    indirect: bool,
    head: u16,
    first: Descriptor,
    collector: &mut Collector<'_>,
    walked: &mut usize,
) -> Result<(), WalkError> {
    let size = ring.size();
    let (mut desc, mut count) = (first, 1_u16);
    loop {
        *walked += 1;
        if desc.is_indirect() {
            if !indirect {
                return Err(RingError::IndirectNotNegotiated { head }.into());
            }
            if desc.has_next() {
                return Err(RingError::IndirectWithNext { head }.into());
            }
            *walked += collector.add_table(desc, size)?;
            return Ok(());
        }
        collector.add(desc)?;
        if !desc.has_next() {
            return Ok(());
        }
        if desc.next >= size {
            return Err(RingError::DescriptorIndex {
                index: desc.next,
                size,
            }
            .into());
        }
        if count == size {
            return Err(RingError::ChainTooLong { head, limit: size }.into());
        }
        count += 1;
        desc = ring.desc(desc.next);
    }
}
