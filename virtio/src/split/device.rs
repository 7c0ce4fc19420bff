//! The device end of a split virtqueue.
//!
//! One acquire load of the available index and one release store of the used index per burst; one barrier per publication.

use std::sync::Arc;

use super::ring::Ring;
use super::walk::take_chain;
use super::{QueueConfig, QueueError, RingError};
use crate::atomic::{Ordering, fence};
use crate::burst::Burst;
use crate::collect::Collector;
use crate::desc::{AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, Descriptor, USED_F_NO_NOTIFY};
use crate::memory::{GuestSlice, MemoryMap, Span};
use crate::queue::passes_event;

#[cfg(test)]
mod tests;

/// Heads read (and their descriptors prefetched) ahead of their use.
const LOOK_AHEAD: usize = 32;

/// Used elements in a cache line.
const USED_PER_LINE: usize = 8;

/// The device end of a running queue. Its parameters are frozen: a driver that changes them while it runs is not listened to.
#[derive(Debug)]
pub struct DeviceQueue {
    ring: Ring,
    next_avail: u16,
    /// The available index as last read: no need to look again while it is ahead enough.
    avail_seen: u16,
    used_idx: u16,
    /// The used index as the driver sees it.
    published: u16,
    /// Whether the driver was ever told since the queue started: until then, its wishes may be those of an earlier life.
    notified: bool,
    event_idx: bool,
    indirect: bool,
    /// The region that was right last time.
    hint: usize,
    config: QueueConfig,
    mem: Arc<MemoryMap>,
}

impl DeviceQueue {
    /// Builds the queue at its start position.
    pub fn new(mem: Arc<MemoryMap>, config: &QueueConfig) -> Result<Self, QueueError> {
        Ok(Self {
            ring: Ring::new(&mem, config)?,
            next_avail: config.next_avail,
            avail_seen: config.next_avail,
            used_idx: config.used_idx,
            published: config.used_idx,
            notified: false,
            event_idx: config.event_idx,
            indirect: config.indirect,
            hint: 0,
            config: *config,
            mem,
        })
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
        let max = max.min(burst.capacity());
        let mut ready = self.avail_seen.wrapping_sub(self.next_avail);
        if usize::from(ready) < max {
            let avail = self.ring.avail_idx();
            ready = avail.wrapping_sub(self.next_avail);
            if ready > self.ring.size() {
                return Err(RingError::AvailIndex {
                    avail,
                    next: self.next_avail,
                    size: self.ring.size(),
                });
            }
            self.avail_seen = avail;
        }
        let mut left = usize::from(ready).min(max);
        for element in (0..left).step_by(USED_PER_LINE) {
            // A burst holds far fewer chains than that.
            let ahead = u16::try_from(element).unwrap_or(0);
            self.ring.prefetch_used(self.used_idx.wrapping_add(ahead));
        }
        while left > 0 {
            let want = left.min(LOOK_AHEAD);
            match self.pop_some(burst, want) {
                Ok(true) => break,
                Ok(false) => left -= want,
                Err(_) if !burst.is_empty() => break,
                Err(e) => return Err(e),
            }
        }
        Ok(burst.len())
    }

    /// Pops up to `want` (at most `LOOK_AHEAD`) chains; true once the burst should end.
    #[inline]
    fn pop_some(&mut self, burst: &mut Burst, want: usize) -> Result<bool, RingError> {
        let mut heads = [0_u16; LOOK_AHEAD];
        let mut slot = self.next_avail;
        for head in &mut heads[..want] {
            *head = self.ring.avail_entry(slot);
            self.ring.prefetch_desc(*head);
            slot = slot.wrapping_add(1);
        }
        let heads = &heads[..want];
        let mut popped = 0;
        let mut result = Ok(false);
        while popped < want && result == Ok(false) {
            // A copy: what is written meanwhile does not change it, so that it stays in registers.
            let (ring, span) = (self.ring, self.mem.span(self.hint));
            let rest = &heads[popped..];
            // SAFETY: `single` translates with the map that the burst was begun with.
            popped += unsafe {
                burst.push_singles(rest.len(), |i| {
                    let head = *rest.get(i)?;
                    let desc = ring.desc(head);
                    let view = single(span, desc).filter(|_| head < ring.size())?;
                    Some((head, desc.is_writable(), view))
                })
            };
            if let Some(&head) = heads.get(popped) {
                result = self.take_other(burst, head);
                popped += usize::from(result.is_ok());
            }
        }
        // Heads are far fewer than that.
        self.next_avail = self.next_avail.wrapping_add(u16::try_from(popped).unwrap_or(0));
        result
    }

    /// Takes a chain that is not one direct descriptor inside the region that was right last time; true once the burst should end.
    /// What was read of its descriptor is read again: it has decided nothing else yet.
    #[inline(never)]
    fn take_other(&mut self, burst: &mut Burst, head: u16) -> Result<bool, RingError> {
        let size = self.ring.size();
        if head >= size {
            return Err(RingError::DescriptorIndex { index: head, size });
        }
        let desc = self.ring.desc(head);
        // Where it is in another region, the next one may be there as well.
        self.mem.translate(&mut self.hint, desc.addr, u64::from(desc.len));
        if let Some(view) = single(self.mem.span(self.hint), desc) {
            let mut view = Some((head, desc.is_writable(), view));
            // SAFETY: as in `pop_some`.
            unsafe { burst.push_singles(1, |_| view.take()) };
            return Ok(false);
        }
        let collector = Collector::new(&self.mem, &mut self.hint, burst, head);
        take_chain(&self.ring, self.indirect, head, desc, collector)
    }

    /// Puts the last `n` chains popped back: the next pop gives them again.
    #[inline]
    pub fn unpop(&mut self, n: u16) {
        self.next_avail = self.next_avail.wrapping_sub(n);
    }

    /// Records that the chain at `head` was used and `len` bytes were written to it. The driver sees it with
    /// [`DeviceQueue::publish`].
    #[inline]
    pub fn add_used(&mut self, head: u16, len: u32) {
        self.ring.set_used_elem(self.used_idx, u32::from(head), len);
        self.used_idx = self.used_idx.wrapping_add(1);
    }

    /// Shows the driver everything recorded since the last time. True when it wants to be notified.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.used_idx);
        if old == new {
            return false;
        }
        self.ring.set_used_idx(new);
        self.published = new;
        // The index must be visible before the driver's wishes are read, or both ends could miss each other.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let first = !std::mem::replace(&mut self.notified, true);
            first || passes_event(self.ring.used_event(), new, old)
        } else {
            self.ring.avail_flags() & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Asks the driver not to notify: the device end polls.
    #[inline]
    pub fn disable_notification(&mut self) {
        // With EVENT_IDX, leaving avail_event behind has that effect.
        if !self.event_idx {
            self.ring.set_used_flags(USED_F_NO_NOTIFY);
        }
    }

    /// Asks the driver to notify about the next chain. True when chains came meanwhile: then pop again before sleeping.
    #[inline]
    pub fn enable_notification(&mut self) -> bool {
        if self.event_idx {
            self.ring.set_avail_event(self.next_avail);
        } else {
            self.ring.set_used_flags(0);
        }
        // The wish must be visible before the index is read again, or both ends could miss each other.
        fence(Ordering::SeqCst);
        self.ring.avail_idx() != self.next_avail
    }

    /// Where the next pop reads the available ring.
    #[inline]
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// The used index, with what isn't published yet.
    #[inline]
    pub fn used_idx(&self) -> u16 {
        self.used_idx
    }

    /// Chains waiting in the available ring.
    #[inline]
    pub fn pending(&self) -> u16 {
        self.ring
            .avail_idx()
            .wrapping_sub(self.next_avail)
            .min(self.ring.size())
    }
}

/// The buffer of a chain that is one direct descriptor inside this region: nearly all of them. It is valid for as long as the map
/// that the span is of.
#[inline]
fn single(span: Span, desc: Descriptor) -> Option<GuestSlice<'static>> {
    if desc.flags & (DESC_F_NEXT | DESC_F_INDIRECT) != 0 || desc.len == 0 {
        return None;
    }
    let ptr = span.translate(desc.addr, u64::from(desc.len))?;
    // SAFETY: the bytes are in one region of the map; the callers store the view in a burst that keeps the map.
    Some(unsafe { GuestSlice::new(ptr, desc.len as usize) })
}
