//! Many chains of one buffer at a time, with as little as possible done for each.

use std::num::NonZeroU16;

use super::{Buffer, DriverQueue, Outstanding};
use crate::desc::DESC_F_WRITE;
use crate::packed::EVENT_FLAGS_DESC;
use crate::packed::ring::Tail;
use crate::queue::{RingError, pop_singly};

/// How far ahead of taking it back a descriptor is fetched: two cache lines.
const LOOK_AHEAD: u16 = 8;

impl DriverQueue {
    /// Makes a chain of each buffer, to be written if `writable`, else to be read, and known by the token beside it. Takes no more
    /// of them than there is room for; returns how many. The device sees them with [`DriverQueue::publish`].
    #[inline]
    pub fn push_each(&mut self, writable: bool, chains: &[(Buffer, u64)]) -> usize {
        let Self {
            ring,
            outstanding,
            free_ids,
            first,
            in_order,
            ..
        } = self;
        let size = ring.size();
        let flags = if writable { DESC_F_WRITE } else { 0 };
        let (mut at, mut count) = (self.next, 0);
        for &(buffer, token) in chains.iter().take(usize::from(self.free)) {
            // There is an id for every free descriptor.
            let Some(id) = free_ids.pop_front() else { break };
            let tail = Tail {
                len: buffer.len,
                id,
                flags: flags | at.avail_flags(),
            };
            ring.set_addr(at, buffer.addr);
            if first.is_none() {
                *first = Some((at, tail));
            } else {
                ring.set_tail(at, tail);
            }
            outstanding[usize::from(id)] = Some(Outstanding {
                token,
                writable_len: if writable { buffer.len } else { 0 },
                slots: NonZeroU16::MIN,
            });
            if let Some(order) = in_order {
                order.push(id);
            }
            at = at.forward(1, size);
            count += 1;
        }
        self.next = at;
        self.moved += count;
        self.free -= count;
        usize::from(count)
    }

    /// Takes used chains back, as many as there are and `used` has room for: the token of each and the bytes written to it, as
    /// [`DriverQueue::pop_used`] gives them; returns how many. An error says that one was wrong, and those before it are lost with it.
    #[inline]
    pub fn pop_each(&mut self, used: &mut [(u64, u32)]) -> Result<usize, RingError> {
        if self.in_order.is_some() {
            return pop_singly(used, || self.pop_used());
        }
        let Self {
            ring,
            outstanding,
            free_ids,
            ..
        } = self;
        let size = ring.size();
        let (mut at, mut free, mut count) = (self.used, self.free, 0);
        let mut trouble = None;
        for place in used {
            if free >= size {
                break;
            }
            let tail = ring.tail(at);
            if !tail.is_used(at) {
                break;
            }
            ring.prefetch_ahead(at, LOOK_AHEAD);
            let Some(chain) = outstanding.get_mut(usize::from(tail.id)).and_then(Option::take) else {
                trouble = Some(RingError::UsedId {
                    id: u32::from(tail.id),
                });
                break;
            };
            free_ids.push_back(tail.id);
            free += chain.slots.get();
            at = at.forward(chain.slots.get(), size);
            count += 1;
            *place = (chain.token, tail.len.min(chain.writable_len));
        }
        (self.used, self.free) = (at, free);
        if count > 0 && self.event_idx && self.want_interrupts {
            self.ring.set_driver_event(at, EVENT_FLAGS_DESC);
        }
        trouble.map_or(Ok(count), Err)
    }
}
