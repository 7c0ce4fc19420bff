//! The device end of a packed virtqueue.
//!
//! A burst is published by one release store: the flags of its first used descriptor, written after all others.

use std::sync::Arc;

use super::recover::{mark_rest, recover};
use super::ring::{Position, Ring, Tail};
use super::{EVENT_FLAGS_DESC, EVENT_FLAGS_DISABLE, EVENT_FLAGS_ENABLE};
use crate::atomic::{Ordering, fence};
use crate::burst::{Burst, ChainError, DEFAULT_BURST};
use crate::collect::Collector;
use crate::desc::{DESC_F_WRITE, Descriptor};
use crate::memory::{GuestSlice, MemoryMap};
use crate::queue::{QueueConfig, QueueError, RingError, WalkError};

/// How far ahead of its use a descriptor is fetched: two cache lines, so that the driver is rarely disturbed in filling them.
const LOOK_AHEAD: u16 = 8;
/// A chain that is one descriptor, among those popped. What it is known by does not matter.
const SINGLE: (u16, u16) = (0, 1);

/// The device end of a running queue. Its parameters are frozen.
#[derive(Debug)]
pub struct DeviceQueue {
    ring: Ring,
    next: Position,
    used: Position,
    /// The first used descriptor that isn't published: its flags are written last.
    first: Option<(Position, Tail)>,
    /// Descriptors used since the last publication.
    moved: u16,
    /// Descriptors popped and not used yet.
    in_flight: u16,
    /// For every buffer id, the descriptors that its chain took; 0 stands for one, as nearly all chains take.
    slots: Vec<u16>,
    /// The chains of the last burst, in order: what each is known by, and the descriptors that it took.
    popped: Vec<(u16, u16)>,
    /// Whether the driver was ever told since the queue started.
    notified: bool,
    event_idx: bool,
    indirect: bool,
    hint: usize,
    config: QueueConfig,
    mem: Arc<MemoryMap>,
}

impl DeviceQueue {
    /// Builds the queue at its start position.
    pub fn new(mem: Arc<MemoryMap>, config: &QueueConfig) -> Result<Self, QueueError> {
        let ring = Ring::new(&mem, config)?;
        Ok(Self {
            next: ring.position(config.next_avail)?,
            used: ring.position(config.used_idx)?,
            ring,
            first: None,
            moved: 0,
            in_flight: 0,
            slots: vec![0; usize::from(config.size)],
            popped: Vec::with_capacity(DEFAULT_BURST),
            notified: false,
            event_idx: config.event_idx,
            indirect: config.indirect,
            hint: 0,
            config: *config,
            mem,
        })
    }

    /// Goes on where the ring itself says that the last device end had got to; before the first chain.
    pub fn recover(&mut self) {
        self.next = recover(&self.ring);
        self.used = self.next;
    }

    /// Goes on under a new map: the same user addresses, translated anew. On an error the queue stays on the old map.
    pub fn set_memory(&mut self, mem: Arc<MemoryMap>) -> Result<(), QueueError> {
        self.ring = Ring::new(&mem, &self.config)?;
        self.mem = mem;
        self.hint = 0;
        Ok(())
    }

    /// The map that chains are translated with.
    pub fn memory(&self) -> &Arc<MemoryMap> {
        &self.mem
    }

    /// Entries in the queue.
    #[inline]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Replaces the burst's contents with at most `max` chains and says how many there are.
    ///
    /// A chain that can't be used is in the burst with its error. A ring that can't go on is an error, once the chains before
    /// the trouble have been popped; popping again repeats it.
    #[inline]
    pub fn pop_burst(&mut self, burst: &mut Burst, max: usize) -> Result<usize, RingError> {
        burst.begin(&self.mem);
        self.popped.clear();
        let max = max.min(burst.capacity());
        loop {
            let room = (max - burst.len()).min(usize::from(self.ring.size() - self.in_flight));
            self.take_singles(burst, room);
            let tail = self.ring.tail(self.next);
            if burst.len() == max || !tail.is_available(self.next) {
                break;
            }
            match self.take_other(burst, tail) {
                Ok(false) => {}
                Ok(true) => break,
                Err(_) if !burst.is_empty() => break,
                Err(e) => return Err(e),
            }
        }
        Ok(burst.len())
    }

    /// Takes at most `room` chains, for as long as they are one direct descriptor inside the region that was right last time:
    /// nearly all of them. There must be as many descriptors that are not in flight.
    #[inline]
    fn take_singles(&mut self, burst: &mut Burst, room: usize) {
        let size = self.ring.size();
        let span = self.mem.span(self.hint);
        let mut left = room;
        while left > 0 {
            let run = self.ring.run(self.next);
            let most = left.min(run.len());
            // SAFETY: the buffers are in a region of `mem`, with which the burst was begun.
            let taken = unsafe {
                burst.push_singles(most, |i| {
                    let (tail, addr) = run.single(i)?;
                    let ptr = span.translate(addr, u64::from(tail.len))?;
                    if tail.id >= size || tail.len == 0 {
                        return None;
                    }
                    run.prefetch_ahead(i, usize::from(LOOK_AHEAD));
                    let view = GuestSlice::new(ptr, tail.len as usize);
                    Some((tail.id, tail.flags & DESC_F_WRITE != 0, view))
                })
            };
            // No more than the ring has, which fits.
            let count = u16::try_from(taken).unwrap_or(0);
            self.next = self.next.forward(count, size);
            self.in_flight += count;
            self.popped.resize(self.popped.len() + taken, SINGLE);
            left -= taken;
            if taken < most {
                break;
            }
        }
    }

    /// Takes any other chain; true once the burst should end. What was read of its descriptor decides nothing that has to hold.
    #[inline(never)]
    fn take_other(&mut self, burst: &mut Burst, head: Tail) -> Result<bool, RingError> {
        let known = self.hint;
        let addr = self.ring.addr(self.next);
        self.mem.translate(&mut self.hint, addr, u64::from(head.len));
        if self.hint != known && self.in_flight < self.ring.size() {
            // It is in another region, and the next one may be there as well.
            let before = burst.len();
            self.take_singles(burst, 1);
            if burst.len() > before {
                return Ok(false);
            }
        }
        let size = self.ring.size();
        let mut collector = Collector::new(&self.mem, &mut self.hint, burst, head.id);
        let checked = walk(&self.ring, self.indirect, self.next, head, &mut collector).and_then(|w| {
            if w.id >= size {
                return Err(RingError::DescriptorIndex { index: w.id, size });
            }
            if w.slots > size - self.in_flight {
                return Err(RingError::TooManyAvailable { size });
            }
            Ok(w)
        });
        let walked = match checked {
            Ok(walked) => walked,
            Err(e) => {
                collector.abandon();
                return Err(e);
            }
        };
        let full = collector.finish(walked.result, walked.id, walked.descriptors);
        self.advance(walked.id, walked.slots);
        Ok(full)
    }

    /// Goes on after a chain, whose id was checked.
    #[inline]
    fn advance(&mut self, id: u16, slots: u16) {
        self.slots[usize::from(id)] = slots;
        self.popped.push((id, slots));
        self.in_flight += slots;
        let size = self.ring.size();
        self.next = self.next.forward(slots, size);
        self.ring.prefetch_ahead(self.next, LOOK_AHEAD);
    }

    /// Puts back the last `n` chains (at most all) of the last burst popped: the next pop gives them again.
    #[inline]
    pub fn unpop(&mut self, n: u16) {
        for (id, slots) in self
            .popped
            .drain(self.popped.len().saturating_sub(usize::from(n))..)
        {
            if slots > 1 {
                // It may come again as something else.
                self.slots[usize::from(id)] = 0;
            }
            self.next = self.next.back(slots, self.ring.size());
            self.in_flight -= slots.min(self.in_flight);
        }
    }

    /// Records that the chain with this buffer id was used and `len` bytes were written to it. The driver sees it with
    /// [`DeviceQueue::publish`].
    #[inline]
    pub fn add_used(&mut self, head: u16, len: u32) {
        self.add_all_used([(head, len)]);
    }

    /// Records several chains as used.
    #[inline]
    pub fn add_all_used(&mut self, used: impl IntoIterator<Item = (u16, u32)>) {
        // A copy: what is written meanwhile does not change it, so that it stays in registers.
        let ring = self.ring;
        let size = ring.size();
        let (mut at, mut moved, in_flight) = (self.used, 0_u16, self.in_flight);
        let mut is_first = self.first.is_none();
        for (head, len) in used {
            // Neither can happen to a caller that returns what it popped.
            let Some(slots) = self.slots.get_mut(usize::from(head)) else {
                continue;
            };
            if moved >= in_flight {
                break;
            }
            let write = if len > 0 { DESC_F_WRITE } else { 0 };
            let tail = Tail {
                len,
                id: head,
                flags: at.used_flags() | write,
            };
            let mut count = 1;
            if *slots > 1 {
                count = std::mem::take(slots);
                mark_rest(&ring, at, count);
            }
            if is_first {
                self.first = Some((at, tail));
                is_first = false;
            } else {
                ring.set_tail(at, tail);
            }
            at = at.forward(count, size);
            moved = moved.saturating_add(count);
        }
        self.used = at;
        self.moved = self.moved.saturating_add(moved);
        self.in_flight -= moved.min(self.in_flight);
    }

    /// Shows the driver everything recorded since the last time. True when it wants to be notified.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let Some((at, tail)) = self.first.take() else {
            return false;
        };
        self.ring.release_tail(at, tail);
        let moved = std::mem::take(&mut self.moved);
        // The flags must be visible before the driver's wishes are read, or both ends could miss each other.
        fence(Ordering::SeqCst);
        let first = !std::mem::replace(&mut self.notified, true) && self.event_idx;
        first || self.ring.driver_event().wants(self.used, moved, self.ring.size())
    }

    /// Asks the driver not to notify: the device end polls.
    #[inline]
    pub fn disable_notification(&mut self) {
        self.ring.set_device_event(self.next, EVENT_FLAGS_DISABLE);
    }

    /// Asks the driver to notify about the next chain. True when chains came meanwhile: then pop again before sleeping.
    #[inline]
    pub fn enable_notification(&mut self) -> bool {
        let flags = if self.event_idx {
            EVENT_FLAGS_DESC
        } else {
            EVENT_FLAGS_ENABLE
        };
        self.ring.set_device_event(self.next, flags);
        // The wish must be visible before the flags are read again, or both ends could miss each other.
        fence(Ordering::SeqCst);
        self.ring.tail(self.next).is_available(self.next)
    }

    /// Where the next pop reads, with the wrap counter in bit 15.
    #[inline]
    pub fn next_avail(&self) -> u16 {
        self.next.raw()
    }

    /// Where the next used descriptor goes, with the wrap counter in bit 15.
    #[inline]
    pub fn used_idx(&self) -> u16 {
        self.used.raw()
    }
}

/// What walking a chain found.
#[derive(Debug)]
struct Walked {
    result: Result<(), ChainError>,
    id: u16,
    slots: u16,
    /// Descriptors read.
    descriptors: usize,
}

#[inline]
fn buffer(ring: &Ring, at: Position, tail: Tail) -> Descriptor {
    Descriptor {
        addr: ring.addr(at),
        len: tail.len,
        flags: tail.flags,
        next: 0,
    }
}

/// Walks a chain to its end, for its id and length, even when its buffers turn out to be wrong.
fn walk(
    ring: &Ring,
    indirect: bool,
    start: Position,
    head: Tail,
    collector: &mut Collector<'_>,
) -> Result<Walked, RingError> {
    let size = ring.size();
    let (mut at, mut tail, mut slots, mut descriptors) = (start, head, 1, 1);
    let mut result = Ok(());
    loop {
        let desc = buffer(ring, at, tail);
        if tail.is_indirect() {
            if !indirect {
                return Err(RingError::IndirectNotNegotiated { head: head.id });
            }
            if tail.has_next() || slots > 1 {
                return Err(RingError::IndirectWithNext { head: head.id });
            }
            result = match add_table(desc, size, head.id, collector, &mut descriptors) {
                Ok(()) => Ok(()),
                Err(WalkError::Chain(e)) => Err(e),
                Err(WalkError::Ring(e)) => return Err(e),
            };
        } else if result.is_ok() {
            result = collector.add(desc);
        }
        if !tail.has_next() {
            return Ok(Walked {
                result,
                id: tail.id,
                slots,
                descriptors,
            });
        }
        if slots == size {
            return Err(RingError::ChainTooLong {
                head: head.id,
                limit: size,
            });
        }
        slots += 1;
        descriptors += 1;
        at = at.forward(1, size);
        tail = ring.tail(at);
    }
}

/// Adds a table's buffers: all of them, in order.
fn add_table(
    desc: Descriptor,
    size: u16,
    head: u16,
    collector: &mut Collector<'_>,
    descriptors: &mut usize,
) -> Result<(), WalkError> {
    let table = collector.table(desc, size)?;
    for i in 0..table.entries() {
        *descriptors += 1;
        // In packed layout the flags come last, where a split descriptor has `next`.
        let raw = Descriptor::from_bytes(&table.entry(i)?);
        let entry = Descriptor {
            flags: raw.next,
            next: 0,
            ..raw
        };
        if entry.is_indirect() {
            return Err(RingError::NestedIndirect { head }.into());
        }
        collector.add(entry)?;
    }
    Ok(())
}
