//! Putting one frame into a receiver's buffers, in a form that its guest can take.

mod hashed;

pub(super) use hashed::hashed_header;

use virtio::burst::Burst;
use virtio::checksum;
use virtio::features::{NET_F_GUEST_CSUM, NET_F_MRG_RXBUF};
use virtio::memory::{GuestSlice, copy_chain, read_chain, write_array, write_chain};
use virtio::net::{GSO_NONE, HEADER_LEN, NetHeader};
use virtio::segment::{Completion, Segmenter};

use super::deliver::Sent;
use super::examine::Examined;
use crate::counters::DropReason;
use crate::frame::MTU_OVERHEAD;
use crate::port::{EgressRing, Port};

/// A receive queue during one burst.
#[derive(Debug)]
pub(super) struct Receiver<'a> {
    ring: &'a mut EgressRing,
    /// Chains taken from the queue.
    buffers: &'a mut Burst,
    /// The first of them that was not used yet.
    next: usize,
    /// Those that were, and the bytes written to each, to go into the ring together.
    used: &'a mut Vec<(u16, u32)>,
    features: u64,
    mtu: usize,
    /// For frames that have to be changed on the way.
    scratch: &'a mut Vec<u8>,
    pub(super) frames: u64,
    pub(super) bytes: u64,
    pub(super) bad_buffers: u64,
}

impl<'a> Receiver<'a> {
    /// Starts a burst of `expected` frames.
    pub(super) fn new(
        ring: &'a mut EgressRing,
        buffers: &'a mut Burst,
        used: &'a mut Vec<(u16, u32)>,
        scratch: &'a mut Vec<u8>,
        port: &Port,
        expected: usize,
    ) -> Self {
        used.clear();
        if let Err(error) = ring.queue.pop_burst(buffers, expected) {
            ring.state.fail(&error);
        }
        Self {
            ring,
            buffers,
            next: 0,
            used,
            features: port.features(),
            mtu: usize::from(port.mtu()),
            scratch,
            frames: 0,
            bytes: 0,
            bad_buffers: 0,
        }
    }

    /// Ends the burst: gives unused buffers back and shows the guest the used ones. True if it wants to be
    /// notified.
    pub(super) fn finish(self) -> bool {
        let unused = self.buffers.len() - self.next;
        // A burst holds far fewer chains than that.
        self.ring.queue.unpop(u16::try_from(unused).unwrap_or(0));
        self.ring.queue.add_used(self.used.iter().copied());
        self.ring.queue.publish()
    }

    /// Delivers frames of the burst `sent`, one bit each, for as long as the guest takes them as they are and each fits into the
    /// next buffer: nearly all of them. `header` makes a frame's header. Returns the others, from the first on that is different.
    #[inline]
    pub(super) fn deliver_whole<const N: usize>(
        &mut self,
        frames: &[Examined],
        mut left: u64,
        sent: &Sent<'_>,
        header: impl Fn(&Examined) -> [u8; N],
    ) -> u64 {
        if !self.ring.state.is_open() {
            return left;
        }
        let longest = self.mtu + MTU_OVERHEAD;
        let (before, mut bytes) = (self.next, 0);
        while left != 0 {
            let number = left.trailing_zeros() as usize;
            let Some(frame) = frames.get(number) else { break };
            if !frame.header.is_plain() && !self.takes(&frame.header)
                || frame.header.gso_type == GSO_NONE && frame.len > longest
                || !self.put(frame, sent, number, &header)
            {
                break;
            }
            bytes += frame.len as u64;
            left &= left - 1;
        }
        self.frames += (self.next - before) as u64;
        self.bytes += bytes;
        left
    }

    /// Delivers frame number `number` of the burst `sent`, whole, completed or segmented.
    #[inline]
    pub(super) fn deliver(
        &mut self,
        frame: &Examined,
        sent: &Sent<'_>,
        number: usize,
    ) -> Result<(), DropReason> {
        if !self.ring.state.is_open() {
            return Err(DropReason::LinkDown);
        }
        if frame.header.is_plain() || self.takes(&frame.header) {
            if frame.header.gso_type == GSO_NONE && frame.len > self.mtu + MTU_OVERHEAD {
                return Err(DropReason::Oversize);
            }
            sent.with(number, |list| self.scattered(frame, list))
        } else if frame.header.gso_type == GSO_NONE {
            sent.with(number, |list| self.completed(frame, list))
        } else {
            sent.with(number, |list| self.segmented(frame, list))
        }
    }

    /// Whether the frame goes to the guest as one.
    pub(super) fn is_whole(&self, frame: &Examined) -> bool {
        frame.header.gso_type == GSO_NONE || self.takes(&frame.header)
    }

    /// Whether the guest negotiated every offload that the header asks for.
    fn takes(&self, header: &NetHeader) -> bool {
        let needed = header.needed_to_receive();
        self.features & needed == needed
    }

    /// Copies a frame as it is into the next buffer: what was examined from the worker's copy, so that the receiver sees what was
    /// decided by, and the rest from the sender's memory. False, and nothing is done, if that is not one piece with room for it.
    #[inline]
    fn put<const N: usize>(
        &mut self,
        frame: &Examined,
        sent: &Sent<'_>,
        number: usize,
        header: impl Fn(&Examined) -> [u8; N],
    ) -> bool {
        let total = N + frame.len;
        let Some((head, to)) = self.buffers.single_writable(self.next) else {
            return false;
        };
        if to.len() < total {
            return false;
        }
        to.write_array(0, &header(frame));
        let known = frame.snapshot();
        to.write_from(N, known);
        let rest = frame.len - known.len();
        if rest > 0 {
            let (from, at) = (HEADER_LEN + known.len(), N + known.len());
            sent.with(number, |list| {
                copy_chain(list, from, std::slice::from_ref(&to), at, rest)
            });
        }
        // A buffer's length fits.
        let written = u32::try_from(total).unwrap_or(u32::MAX);
        self.used.push((head, written));
        self.next += 1;
        true
    }

    /// The same into several pieces or buffers.
    fn scattered(&mut self, frame: &Examined, sent: &[GuestSlice<'_>]) -> Result<(), DropReason> {
        let total = HEADER_LEN + frame.len;
        let count = self.room(total)?;
        let Some(to) = self.buffers.writable_run(self.next, usize::from(count)) else {
            return Err(DropReason::BufferTooSmall);
        };
        write_array(to, &frame.header_for(count));
        let known = frame.snapshot();
        write_chain(to, HEADER_LEN, known);
        let done = HEADER_LEN + known.len();
        if total > done {
            copy_chain(sent, done, to, done, total - done);
        }
        self.used(count, total);
        Ok(())
    }

    /// Copies a frame whose checksum the guest wants complete.
    #[cold]
    fn completed(&mut self, frame: &Examined, sent: &[GuestSlice<'_>]) -> Result<(), DropReason> {
        if frame.len > self.mtu + MTU_OVERHEAD {
            return Err(DropReason::Oversize);
        }
        self.assemble(frame, sent, HEADER_LEN);
        self.complete(&frame.header, HEADER_LEN)?;
        let total = self.scratch.len();
        let count = self.room(total)?;
        let Some(to) = self.buffers.writable_run(self.next, usize::from(count)) else {
            return Err(DropReason::BufferTooSmall);
        };
        self.scratch[HEADER_LEN - 2..HEADER_LEN].copy_from_slice(&count.to_le_bytes());
        write_chain(to, 0, self.scratch);
        self.used(count, total);
        Ok(())
    }

    /// Copies a super-frame as the frames it stands for.
    #[cold]
    fn segmented(&mut self, frame: &Examined, sent: &[GuestSlice<'_>]) -> Result<(), DropReason> {
        let (segmenter, completion) = self.segmenter(frame)?;
        let mut header = segmenter.net_header(completion);
        let mut pieces = segmenter.frames(sent, HEADER_LEN);
        while let Some(len) = pieces.next_len() {
            let count = self.room(HEADER_LEN + len)?;
            let Some(to) = self.buffers.writable_run(self.next, usize::from(count)) else {
                return Err(DropReason::BufferTooSmall);
            };
            header.num_buffers = count;
            write_array(to, &header.to_bytes());
            if pieces.write_next(to, HEADER_LEN, completion).is_none() {
                return Err(DropReason::OffloadUnsupported);
            }
            self.used(count, HEADER_LEN + len);
        }
        Ok(())
    }

    /// Puts a whole frame together in the worker's memory, behind room for a header of `header_len` bytes: what was examined from the
    /// worker's copy, and the rest from the sender's memory.
    fn assemble(&mut self, frame: &Examined, sent: &[GuestSlice<'_>], header_len: usize) {
        let known = frame.snapshot();
        self.scratch.clear();
        self.scratch.resize(header_len, 0);
        self.scratch.extend_from_slice(known);
        self.scratch.resize(header_len + frame.len, 0);
        let rest = &mut self.scratch[header_len + known.len()..];
        read_chain(sent, HEADER_LEN + known.len(), rest);
    }

    /// Completes the checksum of the frame put together.
    fn complete(&mut self, header: &NetHeader, header_len: usize) -> Result<(), DropReason> {
        let bytes = &mut self.scratch[header_len..];
        if checksum::complete(bytes, header.csum_start, header.csum_offset) {
            Ok(())
        } else {
            Err(DropReason::BadHeader)
        }
    }

    /// How to cut a super-frame for the guest, and who completes the checksums.
    #[inline]
    fn segmenter(&self, frame: &Examined) -> Result<(Segmenter, Completion), DropReason> {
        let segmenter = Segmenter::new(frame.snapshot(), &frame.header, frame.len)
            .map_err(|_| DropReason::OffloadUnsupported)?;
        if segmenter.max_frame_len() > self.mtu + MTU_OVERHEAD {
            return Err(DropReason::Oversize);
        }
        let completion = if self.features & NET_F_GUEST_CSUM == 0 {
            Completion::Here
        } else {
            Completion::Receiver
        };
        Ok((segmenter, completion))
    }

    /// Finds buffers for `total` bytes from the next one on; returns how many.
    #[inline]
    fn room(&mut self, total: usize) -> Result<u16, DropReason> {
        if let Some(first) = self.buffers.get(self.next)
            && first.writable_len as usize >= total
            && first.readable_len == 0
        {
            return Ok(1);
        }
        self.gather(total)
    }

    /// Finds several buffers, or more than were taken so far.
    fn gather(&mut self, total: usize) -> Result<u16, DropReason> {
        let mut looked_again = false;
        loop {
            match self.count_buffers(total) {
                Found::Enough(count) => return Ok(count),
                Found::TooSmall => return Err(DropReason::BufferTooSmall),
                Found::Malformed(upto) => self.give_back(upto),
                Found::TooFew if looked_again => {
                    let left = self.buffers.len() - self.next;
                    let all = left == self.buffers.capacity();
                    return Err(if all {
                        DropReason::BufferTooSmall
                    } else {
                        DropReason::NoBuffer
                    });
                }
                Found::TooFew => {
                    looked_again = true;
                    self.take_more()?;
                }
            }
        }
    }

    fn count_buffers(&self, total: usize) -> Found {
        let mut sum = 0;
        let mut count = 0_u16;
        for at in self.next..self.buffers.len() {
            let Some(chain) = self.buffers.get(at) else { break };
            if chain.error.is_some() || chain.readable_len != 0 || chain.writable_len == 0 {
                return Found::Malformed(at);
            }
            sum += chain.writable_len as usize;
            count += 1;
            if sum >= total {
                return Found::Enough(count);
            }
            if self.features & NET_F_MRG_RXBUF == 0 {
                return Found::TooSmall;
            }
        }
        Found::TooFew
    }

    /// Gives the guest back, empty, what it posted up to a chain that cannot take a frame.
    #[cold]
    fn give_back(&mut self, upto: usize) {
        while self.next <= upto {
            if let Some(chain) = self.buffers.get(self.next) {
                self.used.push((chain.head, 0));
            }
            self.next += 1;
            self.bad_buffers += 1;
        }
    }

    /// Takes as many buffers as a burst holds, beginning with those not used yet.
    fn take_more(&mut self) -> Result<(), DropReason> {
        let unused = self.buffers.len() - self.next;
        self.ring.queue.unpop(u16::try_from(unused).unwrap_or(0));
        self.next = 0;
        match self.ring.queue.pop_burst(self.buffers, self.buffers.capacity()) {
            Ok(_) => Ok(()),
            Err(error) => {
                self.ring.state.fail(&error);
                Err(DropReason::LinkDown)
            }
        }
    }

    /// Records that the next `count` buffers hold `total` bytes.
    #[inline]
    fn used(&mut self, count: u16, total: usize) {
        let mut left = u32::try_from(total).unwrap_or(u32::MAX);
        for _ in 0..count {
            if let Some(chain) = self.buffers.get(self.next) {
                let len = left.min(chain.writable_len);
                self.used.push((chain.head, len));
                left -= len;
            }
            self.next += 1;
        }
        self.frames += 1;
        self.bytes += (total - HEADER_LEN) as u64;
    }
}

/// What there is for a frame among the buffers taken.
enum Found {
    Enough(u16),
    /// Without mergeable buffers one has to hold the frame, and the next one does not.
    TooSmall,
    TooFew,
    /// The buffer in this place cannot take a frame.
    Malformed(usize),
}
