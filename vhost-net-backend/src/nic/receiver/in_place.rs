//! Reading a frame from the host straight into the buffers that the guest posted: its only copy.
//!
//! How long the next frame is shows only when it has been read. So more room is offered than a frame mostly needs, and
//! what was not used stays with the ring. A frame that is longer than the buffers at hand comes out whole all the same,
//! as what exceeds them goes to memory of ours: it is then put together there and delivered as any other.

use std::io;

use virtio::memory::{GuestSlice, read_chain, write_chain};
use virtio::net::{HEADER_LEN, NetHeader};

use super::Receiver;

/// Pieces of guest memory that one read may be spread over; the kernel takes 1024, and two of them are ours.
const MAX_PIECES: usize = 1000;

/// What became of an attempt to read a frame into the guest's buffers.
#[derive(Debug)]
pub enum Taken {
    /// The guest has a frame of so many bytes, header included.
    Frame(usize),
    /// There was a frame, too short to be one.
    Runt,
    /// The frame did not fit the buffers at hand: it is in the caller's memory, so many bytes with its header.
    Spilled(usize),
    /// The guest has posted no buffers: nothing was read.
    NoRoom,
    /// The wire has no frame.
    Nothing,
    /// The wire cannot be read.
    Failed(io::Error),
}

impl Receiver<'_> {
    /// Have `read` read one frame: its header first, then the given bytes of the guest's buffers, `room` or a little
    /// more if the guest has posted as many, then the rest. `spill` holds the longest frame.
    pub fn read(
        &mut self,
        room: usize,
        spill: &mut [u8],
        read: impl FnOnce(&mut [u8], &[GuestSlice<'_>], usize, &mut [u8]) -> io::Result<Option<usize>>,
    ) -> Taken {
        let (chains, there) = self.offer(room);
        if chains == 0 {
            if self.is_broken() {
                return Taken::Nothing;
            }
            self.short = Some(self.burst.len());
            return Taken::NoRoom;
        }
        let run = self.burst.writable_run(self.taken, chains);
        let run = run.filter(|run| run.len() <= MAX_PIECES).unwrap_or_default();
        let there = if run.is_empty() { HEADER_LEN } else { there };
        let mut header = [0; HEADER_LEN];
        let rest = spill.get_mut(there..).unwrap_or_default();
        let len = match read(&mut header, run, HEADER_LEN, rest) {
            Ok(Some(len)) if len > HEADER_LEN => len,
            Ok(Some(_)) => return Taken::Runt,
            Ok(None) => return Taken::Nothing,
            Err(error) => return Taken::Failed(error),
        };
        if run.is_empty() || len > there {
            let len = len.min(spill.len());
            if let Some((first, rest)) = spill.split_first_chunk_mut() {
                *first = header;
                let rest = &mut rest[..there - HEADER_LEN];
                read_chain(run, HEADER_LEN, rest);
            }
            return Taken::Spilled(len);
        }
        let used = self.chains_for(len);
        let header = self.header(&NetHeader::from_bytes(&header), used);
        write_chain(run, 0, &header);
        self.use_chains(used, len);
        self.moved += 1;
        self.counters.rx_frame(len - HEADER_LEN);
        Taken::Frame(len)
    }

    /// Chains to read into, and the bytes they hold.
    fn offer(&mut self, room: usize) -> (usize, usize) {
        let mut fresh = false;
        loop {
            let (chains, there, bad) = self.count(room);
            let short = there < room && (self.mergeable || chains == 0);
            if bad && chains == 0 {
                self.give_back(self.taken);
            } else if !short || bad || fresh || (chains > 0 && self.burst.len() < self.burst.capacity()) {
                return (chains, there);
            } else if self.refill() {
                fresh = true;
            } else {
                return (0, 0);
            }
        }
    }

    /// The good chains from `taken` on that hold `room` bytes, or fewer; whether a bad one is why.
    fn count(&self, room: usize) -> (usize, usize, bool) {
        let (mut chains, mut there) = (0, 0);
        while there < room {
            let Some(chain) = self.burst.get(self.taken + chains) else {
                break;
            };
            let runt = chains == 0 && (chain.writable_len as usize) < HEADER_LEN;
            if chain.error.is_some() || !chain.readable.is_empty() || chain.writable_len == 0 || runt {
                return (chains, there, true);
            }
            chains += 1;
            there += chain.writable_len as usize;
            if !self.mergeable {
                break;
            }
        }
        (chains, there, false)
    }

    /// How many chains from `taken` on hold `len` bytes, which they do.
    fn chains_for(&self, len: usize) -> usize {
        let mut left = len;
        let mut chains = 0;
        while left > 0 {
            let Some(chain) = self.burst.get(self.taken + chains) else {
                break;
            };
            left -= left.min(chain.writable_len as usize);
            chains += 1;
        }
        chains
    }
}
