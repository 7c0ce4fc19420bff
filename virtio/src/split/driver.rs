//! The driver end of a split virtqueue: for links to other back-ends, traffic generators and tests.
//!
//! What the device may write is never trusted: which descriptors are free and what is outstanding is kept in private memory.

mod bursts;

use std::num::NonZeroU16;
use std::sync::Arc;

use super::ring::Ring;
use super::{QueueConfig, QueueError, RingError};
use crate::atomic::{Ordering, fence};
use crate::desc::{
    AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_LEN, Descriptor, USED_F_NO_NOTIFY,
};
use crate::memory::MemoryMap;
use crate::queue::in_order::InOrder;
use crate::queue::passes_event;

/// Used elements in a cache line.
const USED_PER_LINE: u16 = 8;
/// The most of them that are fetched at once.
const FETCHED: u16 = 128;

/// A buffer in the memory shared with the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Buffer {
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}

/// Where a driver end may write indirect tables: one of `entries` descriptors per queue entry, one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndirectTables {
    /// Guest address of the first table.
    pub addr: u64,
    /// Descriptors per table.
    pub entries: u16,
}

/// The queue has no room for the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("queue full: take used chains back first")]
pub struct QueueFull;

/// What is known of the chain that starts at a descriptor.
#[derive(Debug, Clone, Copy)]
struct Outstanding {
    token: u64,
    writable_len: u32,
    descriptors: NonZeroU16,
    last: u16,
}

/// The driver end of a queue.
#[derive(Debug)]
pub struct DriverQueue {
    ring: Ring,
    event_idx: bool,
    tables: Option<IndirectTables>,
    /// For every descriptor, the one after it in its chain or in the free list.
    next: Vec<u16>,
    /// For every head outstanding, its chain.
    outstanding: Vec<Option<Outstanding>>,
    /// What the descriptor table holds: what stays as it is need not be written, and its cache line not be taken from the device.
    written: Vec<Descriptor>,
    /// The same of the available ring.
    offered: Vec<u16>,
    free_head: u16,
    /// The free list is taken from at its head and added to here: where a device returns chains in order, each round of the ring
    /// is like the one before.
    free_tail: u16,
    free: u16,
    in_flight: u16,
    avail_idx: u16,
    published: u16,
    next_used: u16,
    /// The used index as last read.
    used_seen: u16,
    want_interrupts: bool,
    in_order: Option<InOrder>,
    mem: Arc<MemoryMap>,
}

impl DriverQueue {
    /// Builds an empty queue, to be done before the device starts. Starts at index `config.next_avail`, which must be what the device end
    /// starts at; `config.used_idx` likewise. `tables` is used for chains of several buffers when `config.indirect` is set.
    pub fn new(
        mem: Arc<MemoryMap>,
        config: &QueueConfig,
        tables: Option<IndirectTables>,
    ) -> Result<Self, QueueError> {
        let ring = Ring::new(&mem, config)?;
        let size = config.size;
        let tables = tables.filter(|_| config.indirect);
        if let Some(t) = tables {
            let len = usize::from(size) * usize::from(t.entries) * DESC_LEN;
            if t.entries == 0 || mem.slice(t.addr, len).is_none() {
                return Err(QueueError::IndirectTables {
                    size,
                    entries: t.entries,
                });
            }
        }
        // Before the device starts, the rings are the driver's to set up.
        for index in 0..size {
            ring.set_desc(index, Descriptor::default());
            ring.set_avail_entry(index, 0);
        }
        ring.set_avail_idx(config.next_avail);
        ring.set_used_flags(0);
        ring.set_used_idx(config.used_idx);
        let mut queue = Self {
            ring,
            event_idx: config.event_idx,
            tables,
            next: (1..=size).collect(),
            outstanding: vec![None; usize::from(size)],
            written: vec![Descriptor::default(); usize::from(size)],
            offered: vec![0; usize::from(size)],
            free_head: 0,
            free_tail: size - 1,
            free: size,
            in_flight: 0,
            avail_idx: config.next_avail,
            published: config.next_avail,
            next_used: config.used_idx,
            used_seen: config.used_idx,
            want_interrupts: true,
            in_order: None,
            mem,
        };
        queue.enable_interrupts();
        Ok(queue)
    }

    /// The device uses chains in the order in which they are made available. Before the first chain.
    pub fn set_in_order(&mut self) {
        self.in_order = Some(InOrder::new(self.ring.size()));
    }

    /// The map that the queue is in.
    pub fn memory(&self) -> &Arc<MemoryMap> {
        &self.mem
    }

    /// Descriptors that are free.
    #[inline]
    pub fn free_descriptors(&self) -> u16 {
        self.free
    }

    /// Chains that the device has and didn't return yet.
    #[inline]
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Where the next chain goes in the available ring.
    #[inline]
    pub fn avail_idx(&self) -> u16 {
        self.avail_idx
    }

    /// Makes a chain for the device: it reads `readable`, then writes `writable`. It comes back from
    /// [`DriverQueue::pop_used`] with `token`. The device sees it with [`DriverQueue::publish`].
    #[inline]
    pub fn push(&mut self, readable: &[Buffer], writable: &[Buffer], token: u64) -> Result<(), QueueFull> {
        let (head, chain) = match (readable, writable) {
            ([buffer], []) | ([], [buffer]) => {
                // Nearly all chains are one buffer.
                if self.free == 0 {
                    return Err(QueueFull);
                }
                let head = self.free_head;
                let desc = Descriptor {
                    addr: buffer.addr,
                    len: buffer.len,
                    flags: if readable.is_empty() { DESC_F_WRITE } else { 0 },
                    next: 0,
                };
                self.write_desc(head, desc);
                let chain = Outstanding {
                    token,
                    writable_len: if readable.is_empty() { buffer.len } else { 0 },
                    descriptors: NonZeroU16::MIN,
                    last: head,
                };
                (head, chain)
            }
            _ => self.write_any(readable, writable, token)?,
        };
        self.free_head = self.next[usize::from(chain.last)];
        self.free -= chain.descriptors.get();
        self.in_flight += 1;
        self.outstanding[usize::from(head)] = Some(chain);
        if let Some(order) = &mut self.in_order {
            order.push(head);
        }
        let place = usize::from(self.avail_idx) & (self.offered.len() - 1);
        if self.offered[place] != head {
            self.offered[place] = head;
            self.ring.set_avail_entry(self.avail_idx, head);
        }
        self.avail_idx = self.avail_idx.wrapping_add(1);
        Ok(())
    }

    /// Writes any chain's descriptors; returns its head and what is to be known of it.
    #[inline(never)]
    fn write_any(
        &mut self,
        readable: &[Buffer],
        writable: &[Buffer],
        token: u64,
    ) -> Result<(u16, Outstanding), QueueFull> {
        let total = readable.len() + writable.len();
        if self.free == 0 {
            return Err(QueueFull);
        }
        let writable_len = writable.iter().fold(0_u32, |sum, b| sum.saturating_add(b.len));
        let head = self.free_head;
        let (descriptors, last) = match self.tables {
            Some(tables) if total > 1 && total <= usize::from(tables.entries) => {
                self.write_table(tables, head, readable, writable);
                (NonZeroU16::MIN, head)
            }
            _ => {
                let descriptors = u16::try_from(total)
                    .ok()
                    .filter(|n| *n <= self.free)
                    .and_then(NonZeroU16::new)
                    .ok_or(QueueFull)?;
                (descriptors, self.write_chain(head, readable, writable))
            }
        };
        let chain = Outstanding {
            token,
            writable_len,
            descriptors,
            last,
        };
        Ok((head, chain))
    }

    /// Writes the buffers to descriptors from the free list on; returns the last one.
    fn write_chain(&mut self, head: u16, readable: &[Buffer], writable: &[Buffer]) -> u16 {
        let total = readable.len() + writable.len();
        let (mut at, mut last) = (head, head);
        for (i, (buffer, write)) in buffers(readable, writable).enumerate() {
            let next = self.next[usize::from(at)];
            let (more, follower) = if i + 1 < total {
                (DESC_F_NEXT, next)
            } else {
                (0, 0)
            };
            let desc = Descriptor {
                addr: buffer.addr,
                len: buffer.len,
                flags: write | more,
                next: follower,
            };
            self.write_desc(at, desc);
            last = at;
            at = next;
        }
        last
    }

    #[inline]
    fn write_desc(&mut self, at: u16, desc: Descriptor) {
        let known = &mut self.written[usize::from(at)];
        if *known != desc {
            *known = desc;
            self.ring.set_desc(at, desc);
        }
    }

    fn write_table(&mut self, tables: IndirectTables, head: u16, readable: &[Buffer], writable: &[Buffer]) {
        let total = readable.len() + writable.len();
        let bytes = usize::from(tables.entries) * DESC_LEN;
        let addr = tables.addr + (usize::from(head) * bytes) as u64;
        let Some(table) = self.mem.slice(addr, bytes) else {
            unreachable!("`new` checked that all tables are inside one region");
        };
        for (i, (buffer, write)) in buffers(readable, writable).enumerate() {
            let more = if i + 1 < total { DESC_F_NEXT } else { 0 };
            // Fewer than u16::MAX: a table has at most that many entries.
            let next = u16::try_from(i + 1).unwrap_or(0);
            let desc = Descriptor {
                addr: buffer.addr,
                len: buffer.len,
                flags: write | more,
                next,
            };
            let (addr, rest) = desc.to_words();
            table.write_from(i * DESC_LEN, &addr.to_ne_bytes());
            table.write_from(i * DESC_LEN + 8, &rest.to_ne_bytes());
        }
        let len = u32::try_from(total * DESC_LEN).unwrap_or(0);
        self.write_desc(
            head,
            Descriptor {
                addr,
                len,
                flags: DESC_F_INDIRECT,
                next: 0,
            },
        );
    }

    /// Shows the device everything pushed since the last time. True when it wants a kick.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.avail_idx);
        if old == new {
            return false;
        }
        self.ring.set_avail_idx(new);
        self.published = new;
        // The index must be visible before the device's wishes are read, or both ends could miss each other.
        fence(Ordering::SeqCst);
        if self.event_idx {
            passes_event(self.ring.avail_event(), new, old)
        } else {
            self.ring.used_flags() & USED_F_NO_NOTIFY == 0
        }
    }

    /// Takes the next used chain back: its token, and how many bytes the device says it wrote, never more than there was
    /// room for.
    #[inline]
    pub fn pop_used(&mut self) -> Result<Option<(u64, u32)>, RingError> {
        if self.used_seen == self.next_used && !self.look()? {
            return Ok(None);
        }
        let (id, len) = if self.in_order.is_none() {
            self.ring.used_elem(self.next_used)
        } else {
            self.next_in_order()?
        };
        let head = usize::try_from(id).unwrap_or(usize::MAX);
        let chain = self
            .outstanding
            .get_mut(head)
            .and_then(Option::take)
            .ok_or(RingError::UsedId { id })?;
        // `head` indexes `outstanding`, which has at most 32768 entries.
        let first = u16::try_from(head).unwrap_or(0);
        if self.free == 0 {
            self.free_head = first;
        } else {
            self.next[usize::from(self.free_tail)] = first;
        }
        self.free_tail = chain.last;
        self.free += chain.descriptors.get();
        self.in_flight -= 1;
        self.next_used = self.next_used.wrapping_add(1);
        if self.event_idx && self.want_interrupts {
            self.ring.set_used_event(self.next_used);
        }
        Ok(Some((chain.token, len.min(chain.writable_len))))
    }

    /// Reads the used index; true when there are chains to take back.
    fn look(&mut self) -> Result<bool, RingError> {
        let used = self.ring.used_idx();
        let there = used.wrapping_sub(self.next_used);
        if there > self.in_flight {
            return Err(RingError::UsedIndex {
                used,
                next: self.next_used,
                in_flight: self.in_flight,
            });
        }
        self.used_seen = used;
        // They come from another CPU's cache.
        for ahead in (USED_PER_LINE..there.min(FETCHED)).step_by(usize::from(USED_PER_LINE)) {
            self.ring.prefetch_used_elem(self.next_used.wrapping_add(ahead));
        }
        Ok(there > 0)
    }

    /// The next used chain of a device that uses them in order, of which there is one: its head, and its length where that is known.
    fn next_in_order(&mut self) -> Result<(u32, u32), RingError> {
        let Some(order) = &mut self.in_order else {
            return Ok(self.ring.used_elem(self.next_used));
        };
        if !order.has_more() {
            let (id, len) = self.ring.used_elem(self.next_used);
            let there = usize::from(self.used_seen.wrapping_sub(self.next_used));
            if !order.begin(id, len, there) {
                return Err(RingError::UsedId { id });
            }
        }
        // There is one: a batch has just begun, or has more.
        let (head, len) = order.next().unwrap_or((u16::MAX, None));
        Ok((u32::from(head), len.unwrap_or(u32::MAX)))
    }

    /// Asks the device not to interrupt: the driver end polls.
    #[inline]
    pub fn disable_interrupts(&mut self) {
        self.want_interrupts = false;
        // With EVENT_IDX, leaving used_event behind has that effect.
        if !self.event_idx {
            self.ring.set_avail_flags(AVAIL_F_NO_INTERRUPT);
        }
    }

    /// Asks the device to interrupt at the next used chain. True when some came meanwhile: then pop before sleeping.
    #[inline]
    pub fn enable_interrupts(&mut self) -> bool {
        self.want_interrupts = true;
        if self.event_idx {
            self.ring.set_used_event(self.next_used);
        } else {
            self.ring.set_avail_flags(0);
        }
        // The wish must be visible before the index is read again, or both ends could miss each other.
        fence(Ordering::SeqCst);
        self.ring.used_idx() != self.next_used
    }
}

/// All buffers of a chain, each with its flag.
#[inline]
fn buffers<'a>(
    readable: &'a [Buffer],
    writable: &'a [Buffer],
) -> impl Iterator<Item = (&'a Buffer, u16)> + 'a {
    readable
        .iter()
        .map(|b| (b, 0))
        .chain(writable.iter().map(|b| (b, DESC_F_WRITE)))
}
