//! Frames into a guest's receive ring: one header, one or several buffers, published once a burst.
//!
//! A frame that is in memory already is copied ([`Receiver::deliver`]); one that has to be read from the host anyway is
//! read into the guest's buffers ([`Receiver::read`]).

mod in_place;

pub use in_place::Taken;

use virtio::burst::Burst;
use virtio::features as f;
use virtio::memory::{GuestSlice, copy_chain, write_chain};
use virtio::net::{HEADER_LEN, NetHeader};

use super::counters::Counters;
use crate::plane::Ring;

/// Frames delivered in one go before the other direction has its turn.
const SHARE: usize = 64;

/// What became of a frame offered to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The guest has it.
    Done,
    /// The ring has too few buffers now: offer it again after the next kick.
    NoRoom,
    /// The guest's buffers can never hold it.
    Dropped,
}

/// The bytes of a frame, wherever they are.
#[derive(Debug, Clone, Copy)]
enum Bytes<'a> {
    Slice(&'a [u8]),
    Chain(&'a [GuestSlice<'a>], usize, usize),
}

impl Bytes<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Slice(bytes) => bytes.len(),
            Self::Chain(_, _, len) => *len,
        }
    }
}

/// A receive ring being filled. Dropping it publishes what was used and notifies the driver if it wants that.
#[derive(Debug)]
pub struct Receiver<'r> {
    ring: &'r mut Ring,
    burst: &'r mut Burst,
    counters: &'r Counters,
    /// Chains of the burst that are used already.
    taken: usize,
    /// Frames taken off the wire and bad chains returned.
    moved: usize,
    /// Buffers that were there when a frame needed more.
    short: Option<usize>,
    mergeable: bool,
    checksums: bool,
    /// The driver broke the ring: nothing more goes in.
    broken: bool,
}

impl<'r> Receiver<'r> {
    pub(crate) fn new(ring: &'r mut Ring, burst: &'r mut Burst, acked: u64, counters: &'r Counters) -> Self {
        burst.release();
        Self {
            ring,
            burst,
            counters,
            taken: 0,
            moved: 0,
            short: None,
            mergeable: acked & f::NET_F_MRG_RXBUF != 0,
            checksums: acked & f::NET_F_GUEST_CSUM != 0,
            broken: false,
        }
    }

    /// Whether another frame may be offered now.
    pub fn wants_more(&self) -> bool {
        self.moved < SHARE && !self.broken && self.short.is_none()
    }

    /// Whether there was anything to do.
    pub(super) fn moved(&self) -> bool {
        self.moved > 0
    }

    /// How many buffers there were when a frame needed more.
    pub(super) fn short(&self) -> Option<usize> {
        self.short
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Offer a frame that is in our own memory.
    pub fn deliver(&mut self, header: &NetHeader, frame: &[u8]) -> Delivery {
        self.put(header, Bytes::Slice(frame))
    }

    /// Offer a frame of `len` bytes that starts at `off` of a list of segments.
    pub fn deliver_chain(
        &mut self,
        header: &NetHeader,
        list: &[GuestSlice<'_>],
        off: usize,
        len: usize,
    ) -> Delivery {
        self.put(header, Bytes::Chain(list, off, len))
    }

    fn put(&mut self, header: &NetHeader, frame: Bytes<'_>) -> Delivery {
        let total = HEADER_LEN + frame.len();
        let Some(count) = self.reserve(total) else {
            self.short = Some(self.burst.len());
            return Delivery::NoRoom;
        };
        self.moved += 1;
        let run = self.burst.writable_run(self.taken, count);
        let Some(run) = run.filter(|_| count > 0) else {
            self.counters.rx_dropped();
            return Delivery::Dropped;
        };
        write_chain(run, 0, &self.header(header, count));
        match frame {
            Bytes::Slice(bytes) => write_chain(run, HEADER_LEN, bytes),
            Bytes::Chain(list, off, len) => copy_chain(list, off, run, HEADER_LEN, len),
        };
        self.use_chains(count, total);
        self.counters.rx_frame(frame.len());
        self.counters.rx_copied();
        Delivery::Done
    }

    /// The header as this driver may see it, of a frame in `count` buffers.
    fn header(&self, header: &NetHeader, count: usize) -> [u8; HEADER_LEN] {
        let mut header = NetHeader {
            num_buffers: u16::try_from(count).unwrap_or(1),
            ..*header
        };
        if !self.checksums {
            // The driver knows nothing of checksum states; the wire was told to send complete frames only.
            header.flags = 0;
        }
        header.to_bytes()
    }

    /// The next `count` chains hold `total` bytes.
    fn use_chains(&mut self, count: usize, total: usize) {
        let mut left = total;
        for at in self.taken..self.taken + count {
            if let Some(chain) = self.burst.get(at) {
                let part = left.min(chain.writable_len as usize);
                left -= part;
                self.ring
                    .queue
                    .add_used([(chain.head, u32::try_from(part).unwrap_or(0))]);
            }
        }
        self.taken += count;
    }

    /// How many chains from `taken` on hold `total` bytes: `None` when the ring has too few now, 0 when it never
    /// will. Chains that cannot be used go back to the driver on the way.
    fn reserve(&mut self, total: usize) -> Option<usize> {
        let mut fresh = false;
        loop {
            match self.fit(total) {
                Ok(count) => return Some(count),
                Err(Short::Bad(bad)) => self.give_back(bad),
                Err(Short::Burst) if !fresh => {
                    if !self.refill() {
                        return None;
                    }
                    fresh = true;
                }
                // All that a burst can hold is not enough.
                Err(Short::Burst) if self.burst.len() == self.burst.capacity() => return Some(0),
                Err(Short::Burst) => return None,
            }
        }
    }

    fn fit(&self, total: usize) -> Result<usize, Short> {
        let mut room = 0;
        for at in self.taken.. {
            let chain = self.burst.get(at).ok_or(Short::Burst)?;
            let runt = at == self.taken && (chain.writable_len as usize) < HEADER_LEN;
            if chain.error.is_some() || !chain.readable.is_empty() || chain.writable_len == 0 || runt {
                return Err(Short::Bad(at));
            }
            room += chain.writable_len as usize;
            if room >= total {
                return Ok(at - self.taken + 1);
            }
            if !self.mergeable {
                return Ok(0);
            }
        }
        Err(Short::Burst)
    }

    /// Return everything up to the chain that is of no use, unused.
    fn give_back(&mut self, bad: usize) {
        for at in self.taken..=bad {
            if let Some(chain) = self.burst.get(at) {
                self.ring.queue.add_used([(chain.head, 0)]);
            }
        }
        self.counters.rx_bad_chain();
        self.moved += 1;
        self.taken = bad + 1;
    }

    /// Pop again, beginning with what the burst still has.
    fn refill(&mut self) -> bool {
        self.put_back();
        let capacity = self.burst.capacity();
        match self.ring.queue.pop_burst(self.burst, capacity) {
            Ok(count) => count > 0,
            Err(error) => {
                tracing::warn!("receive ring stopped: {error}");
                self.broken = true;
                false
            }
        }
    }

    fn put_back(&mut self) {
        let left = self.burst.len() - self.taken;
        self.ring.queue.unpop(u16::try_from(left).unwrap_or(0));
        self.burst.release();
        self.taken = 0;
    }
}

/// Why a frame does not fit the chains at hand.
enum Short {
    /// The burst ends first.
    Burst,
    /// This chain is malformed.
    Bad(usize),
}

impl Drop for Receiver<'_> {
    fn drop(&mut self) {
        self.put_back();
        if self.ring.queue.publish() {
            self.ring.notify();
        }
    }
}
