//! Many chains of one buffer at a time, with as little as possible done for each.

use std::num::NonZeroU16;

use super::{Buffer, DriverQueue, Outstanding};
use crate::desc::{DESC_F_WRITE, Descriptor};
use crate::queue::{RingError, pop_singly};

impl DriverQueue {
    /// Makes a chain of each buffer, to be written if `writable`, else to be read, and known by the token beside it. Takes no more
    /// of them than there is room for; returns how many. The device sees them with [`DriverQueue::publish`].
    #[inline]
    pub fn push_each(&mut self, writable: bool, chains: &[(Buffer, u64)]) -> usize {
        let Self {
            ring,
            next,
            outstanding,
            written,
            offered,
            in_order,
            ..
        } = self;
        let flags = if writable { DESC_F_WRITE } else { 0 };
        let mask = offered.len() - 1;
        let (mut head, mut avail_idx, mut count) = (self.free_head, self.avail_idx, 0);
        for &(buffer, token) in chains.iter().take(usize::from(self.free)) {
            let at = usize::from(head);
            let desc = Descriptor {
                addr: buffer.addr,
                len: buffer.len,
                flags,
                next: 0,
            };
            if written[at] != desc {
                written[at] = desc;
                ring.set_desc(head, desc);
            }
            outstanding[at] = Some(Outstanding {
                token,
                writable_len: if writable { buffer.len } else { 0 },
                descriptors: NonZeroU16::MIN,
                last: head,
            });
            if let Some(order) = in_order {
                order.push(head);
            }
            let place = usize::from(avail_idx) & mask;
            if offered[place] != head {
                offered[place] = head;
                ring.set_avail_entry(avail_idx, head);
            }
            avail_idx = avail_idx.wrapping_add(1);
            head = next[at];
            count += 1;
        }
        self.free_head = head;
        self.avail_idx = avail_idx;
        self.free -= count;
        self.in_flight += count;
        usize::from(count)
    }

    /// Takes used chains back, as many as there are and `used` has room for: the token of each and the bytes written to it, as
    /// [`DriverQueue::pop_used`] gives them; returns how many. An error says that one was wrong, and those before it are lost with it.
    #[inline]
    pub fn pop_each(&mut self, used: &mut [(u64, u32)]) -> Result<usize, RingError> {
        if self.in_order.is_some() {
            return pop_singly(used, || self.pop_used());
        }
        if usize::from(self.used_seen.wrapping_sub(self.next_used)) < used.len() {
            self.look()?;
        }
        let there = usize::from(self.used_seen.wrapping_sub(self.next_used));
        let Self {
            ring,
            next,
            outstanding,
            ..
        } = self;
        let (mut at, mut free, mut count) = (self.next_used, self.free, 0);
        let (mut first, mut last) = (self.free_head, self.free_tail);
        let mut trouble = None;
        for place in used.iter_mut().take(there) {
            let (id, len) = ring.used_elem(at);
            let Some(chain) = usize::try_from(id)
                .ok()
                .and_then(|id| outstanding.get_mut(id)?.take())
            else {
                trouble = Some(RingError::UsedId { id });
                break;
            };
            // It indexes `outstanding`, which has at most 32768 entries.
            let head = u16::try_from(id).unwrap_or(0);
            if free == 0 {
                first = head;
            } else {
                next[usize::from(last)] = head;
            }
            last = chain.last;
            free += chain.descriptors.get();
            at = at.wrapping_add(1);
            count += 1;
            *place = (chain.token, len.min(chain.writable_len));
        }
        (self.free_head, self.free_tail, self.free) = (first, last, free);
        self.next_used = at;
        self.in_flight -= count;
        if count > 0 && self.event_idx && self.want_interrupts {
            self.ring.set_used_event(at);
        }
        trouble.map_or(Ok(usize::from(count)), Err)
    }
}
