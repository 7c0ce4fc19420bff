//! Collecting a chain's buffers into a burst: every descriptor is read once and checked on the copy.

use crate::burst::{Burst, ChainError, ChainRecord};
use crate::desc::{DESC_LEN, Descriptor};
use crate::memory::{GuestSlice, MemoryMap};
use crate::queue::{RingError, WalkError};

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
        let record = ChainRecord::empty(head, first);
        Self {
            mem,
            hint,
            burst,
            record,
            extra: 0,
        }
    }

    /// Ends the chain that the driver knows by `head`, well or with its error; true once the burst should end.
    pub(crate) fn finish(mut self, result: Result<(), ChainError>, head: u16, walked: usize) -> bool {
        if let Err(error) = result {
            self.burst.segments.truncate(self.record.first as usize);
            self.record = ChainRecord {
                error: Some(error),
                ..ChainRecord::empty(head, self.record.first)
            };
        }
        self.record.head = head;
        self.burst.push_other(self.record);
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

    fn push(&mut self, desc: Descriptor) -> Result<u16, ChainError> {
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

    /// Checks an indirect descriptor of a queue of `size` entries.
    pub(crate) fn table(&self, desc: Descriptor, size: u16) -> Result<Table<'a>, WalkError> {
        let limit = size.max(INDIRECT_MIN_LIMIT);
        let head = self.record.head;
        let error = RingError::IndirectLength {
            head,
            len: desc.len,
            limit,
        };
        let entries = u16::try_from(desc.len / ENTRY_LEN).map_err(|_| error)?;
        if !desc.len.is_multiple_of(ENTRY_LEN) || entries == 0 || entries > limit {
            return Err(error.into());
        }
        desc.addr
            .checked_add(u64::from(desc.len))
            .ok_or(ChainError::AddressWraps)?;
        let view = self.mem.slice(desc.addr, desc.len as usize);
        Ok(Table {
            mem: self.mem,
            addr: desc.addr,
            view,
            entries,
        })
    }
}

/// An indirect table.
#[derive(Debug)]
pub(crate) struct Table<'a> {
    mem: &'a MemoryMap,
    addr: u64,
    /// The whole table, unless it crosses adjacent regions.
    view: Option<GuestSlice<'a>>,
    entries: u16,
}

impl Table<'_> {
    pub(crate) fn entries(&self) -> u16 {
        self.entries
    }

    /// Reads entry `index`, below `entries`, once.
    pub(crate) fn entry(&self, index: u16) -> Result<[u8; DESC_LEN], ChainError> {
        let mut bytes = [0; DESC_LEN];
        let off = usize::from(index) * DESC_LEN;
        match &self.view {
            Some(view) => _ = view.read_to(off, &mut bytes),
            None if self.mem.read(self.addr + off as u64, &mut bytes) => {}
            None => return Err(ChainError::TableUnmapped),
        }
        Ok(bytes)
    }
}
