//! The driver end of a packed virtqueue.
//!
//! What the device may write is never trusted: which ids are free and what is outstanding is kept in private memory.

mod bursts;

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::sync::Arc;

use super::ring::{Position, Ring, Tail};
use super::{EVENT_FLAGS_DESC, EVENT_FLAGS_DISABLE, EVENT_FLAGS_ENABLE};
use crate::atomic::{Ordering, fence};
use crate::desc::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_LEN};
use crate::memory::MemoryMap;
use crate::queue::in_order::InOrder;
use crate::queue::{QueueConfig, QueueError, RingError};
use crate::split::driver::{Buffer, IndirectTables, QueueFull};

/// What is known of the chain that a buffer id names.
#[derive(Debug, Clone, Copy)]
struct Outstanding {
    token: u64,
    writable_len: u32,
    slots: NonZeroU16,
}

/// The driver end of a queue.
#[derive(Debug)]
pub struct DriverQueue {
    ring: Ring,
    event_idx: bool,
    tables: Option<IndirectTables>,
    outstanding: Vec<Option<Outstanding>>,
    /// Taken from at its front and added to at its end: where a device uses chains in order, each round of the ring is like the
    /// one before.
    free_ids: VecDeque<u16>,
    free: u16,
    next: Position,
    used: Position,
    /// The first descriptor that isn't published: its flags are written last.
    first: Option<(Position, Tail)>,
    /// Descriptors made available since the last publication.
    moved: u16,
    want_interrupts: bool,
    in_order: Option<InOrder>,
    mem: Arc<MemoryMap>,
}

impl DriverQueue {
    /// Builds an empty queue, to be done before the device starts, whose both ends start at `config.next_avail`. `tables` is used for chains of several buffers when `config.indirect` is set.
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
        let start = ring.position(config.next_avail)?;
        let mut at = start;
        for _ in 0..size {
            // As the round before left them: neither available nor used in this one.
            ring.set_tail(
                at,
                Tail {
                    len: 0,
                    id: 0,
                    flags: at.back(size, size).used_flags(),
                },
            );
            at = at.forward(1, size);
        }
        let mut queue = Self {
            next: start,
            used: start,
            ring,
            event_idx: config.event_idx,
            tables,
            outstanding: vec![None; usize::from(size)],
            free_ids: (0..size).collect(),
            free: size,
            first: None,
            moved: 0,
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
    pub fn in_flight(&self) -> usize {
        self.outstanding.len() - self.free_ids.len()
    }

    /// Makes a chain for the device: it reads `readable`, then writes `writable`. It comes back from
    /// [`DriverQueue::pop_used`] with `token`. The device sees it with [`DriverQueue::publish`].
    #[inline]
    pub fn push(&mut self, readable: &[Buffer], writable: &[Buffer], token: u64) -> Result<(), QueueFull> {
        let (([buffer], []) | ([], [buffer])) = (readable, writable) else {
            return self.push_any(readable, writable, token);
        };
        // Nearly all chains are one buffer.
        if self.free == 0 {
            return Err(QueueFull);
        }
        let (flags, writable_len) = if readable.is_empty() {
            (DESC_F_WRITE, buffer.len)
        } else {
            (0, 0)
        };
        // There is an id for every free descriptor.
        let id = self.free_ids.pop_front().ok_or(QueueFull)?;
        let tail = Tail {
            len: buffer.len,
            id,
            flags,
        };
        self.make_available(buffer.addr, tail);
        self.note(
            id,
            Outstanding {
                token,
                writable_len,
                slots: NonZeroU16::MIN,
            },
        );
        Ok(())
    }

    /// Makes any chain.
    fn push_any(&mut self, readable: &[Buffer], writable: &[Buffer], token: u64) -> Result<(), QueueFull> {
        let total = readable.len() + writable.len();
        let table = self
            .tables
            .filter(|t| total > 1 && total <= usize::from(t.entries));
        let slots = if table.is_some() {
            Some(NonZeroU16::MIN)
        } else {
            u16::try_from(total).ok().and_then(NonZeroU16::new)
        };
        let slots = slots.filter(|slots| slots.get() <= self.free).ok_or(QueueFull)?;
        let id = self.free_ids.pop_front().ok_or(QueueFull)?;
        if let Some(tables) = table {
            let (addr, len) = self.write_table(tables, id, readable, writable);
            self.make_available(
                addr,
                Tail {
                    len,
                    id,
                    flags: DESC_F_INDIRECT,
                },
            );
        } else {
            for (i, (buffer, write)) in buffers(readable, writable).enumerate() {
                let more = if i + 1 < total { DESC_F_NEXT } else { 0 };
                self.make_available(
                    buffer.addr,
                    Tail {
                        len: buffer.len,
                        id,
                        flags: write | more,
                    },
                );
            }
        }
        let writable_len = writable.iter().fold(0_u32, |sum, b| sum.saturating_add(b.len));
        self.note(
            id,
            Outstanding {
                token,
                writable_len,
                slots,
            },
        );
        Ok(())
    }

    /// Notes that the device has a chain.
    #[inline]
    fn note(&mut self, id: u16, chain: Outstanding) {
        if let Some(order) = &mut self.in_order {
            order.push(id);
        }
        self.outstanding[usize::from(id)] = Some(chain);
        self.free -= chain.slots.get();
    }

    #[inline]
    fn make_available(&mut self, addr: u64, tail: Tail) {
        let tail = Tail {
            flags: tail.flags | self.next.avail_flags(),
            ..tail
        };
        self.ring.set_addr(self.next, addr);
        if self.first.is_none() {
            self.first = Some((self.next, tail));
        } else {
            self.ring.set_tail(self.next, tail);
        }
        self.next = self.next.forward(1, self.ring.size());
        self.moved += 1;
    }

    /// Writes the table of chain `id`; returns where it is and how long.
    fn write_table(
        &self,
        tables: IndirectTables,
        id: u16,
        readable: &[Buffer],
        writable: &[Buffer],
    ) -> (u64, u32) {
        let bytes = usize::from(tables.entries) * DESC_LEN;
        let addr = tables.addr + (usize::from(id) * bytes) as u64;
        let Some(table) = self.mem.slice(addr, bytes) else {
            unreachable!("`new` checked that all tables are inside one region");
        };
        let mut at = 0;
        for (buffer, write) in buffers(readable, writable) {
            table.write_from(at, &buffer.addr.to_le_bytes());
            let rest = u64::from(buffer.len) | u64::from(write) << 48;
            table.write_from(at + 8, &rest.to_le_bytes());
            at += DESC_LEN;
        }
        // At most u16::MAX entries of 16 bytes.
        (addr, u32::try_from(at).unwrap_or(0))
    }

    /// Shows the device everything pushed since the last time. True when it wants a kick.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let Some((at, tail)) = self.first.take() else {
            return false;
        };
        self.ring.release_tail(at, tail);
        let moved = std::mem::take(&mut self.moved);
        // The flags must be visible before the device's wishes are read, or both ends could miss each other.
        fence(Ordering::SeqCst);
        self.ring.device_event().wants(self.next, moved, self.ring.size())
    }

    /// Takes the next used chain back: its token, and how many bytes the device says it wrote, never more than there was
    /// room for.
    #[inline]
    pub fn pop_used(&mut self) -> Result<Option<(u64, u32)>, RingError> {
        if self.free == self.ring.size() {
            return Ok(None);
        }
        let next = if self.in_order.is_none() {
            let tail = self.ring.tail(self.used);
            tail.is_used(self.used).then_some((tail.id, tail.len))
        } else {
            self.next_in_order()?
        };
        let Some((id, len)) = next else { return Ok(None) };
        let chain = self
            .outstanding
            .get_mut(usize::from(id))
            .and_then(Option::take)
            .ok_or(RingError::UsedId { id: u32::from(id) })?;
        self.free_ids.push_back(id);
        self.free += chain.slots.get();
        self.used = self.used.forward(chain.slots.get(), self.ring.size());
        if self.event_idx && self.want_interrupts {
            self.ring.set_driver_event(self.used, EVENT_FLAGS_DESC);
        }
        Ok(Some((chain.token, len.min(chain.writable_len))))
    }

    /// The next used chain of a device that uses them in order: its id, and its length where that is known.
    fn next_in_order(&mut self) -> Result<Option<(u16, u32)>, RingError> {
        let in_flight = self.in_flight();
        let Some(order) = &mut self.in_order else {
            return Ok(None);
        };
        if !order.has_more() {
            let tail = self.ring.tail(self.used);
            if !tail.is_used(self.used) {
                return Ok(None);
            }
            let id = u32::from(tail.id);
            if !order.begin(id, tail.len, in_flight) {
                return Err(RingError::UsedId { id });
            }
        }
        // There is one: a batch has just begun, or has more.
        let (id, len) = order.next().unwrap_or((u16::MAX, None));
        Ok(Some((id, len.unwrap_or(u32::MAX))))
    }

    /// Asks the device not to interrupt: the driver end polls.
    #[inline]
    pub fn disable_interrupts(&mut self) {
        self.want_interrupts = false;
        self.ring.set_driver_event(self.used, EVENT_FLAGS_DISABLE);
    }

    /// Asks the device to interrupt at the next used chain. True when some came meanwhile: then pop before sleeping.
    #[inline]
    pub fn enable_interrupts(&mut self) -> bool {
        self.want_interrupts = true;
        let flags = if self.event_idx {
            EVENT_FLAGS_DESC
        } else {
            EVENT_FLAGS_ENABLE
        };
        self.ring.set_driver_event(self.used, flags);
        // The wish must be visible before the flags are read again, or both ends could miss each other.
        fence(Ordering::SeqCst);
        let more = self.in_order.as_ref().is_some_and(InOrder::has_more);
        more || self.free < self.ring.size() && self.ring.tail(self.used).is_used(self.used)
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
