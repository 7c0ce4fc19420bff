//! Frames for a guest that wants their hashes, in a header of 20 bytes: copied from one to the other where they go as they are into
//! one buffer, otherwise put together in the worker's memory first.

use vhost_net_backend::control::Steering;
use virtio::memory::{GuestSlice, write_chain};
use virtio::net::{GSO_NONE, HASH_HEADER_LEN, HEADER_LEN, NetHeader};
use virtio::rss::Hash;

use super::Receiver;
use crate::counters::DropReason;
use crate::frame::MTU_OVERHEAD;
use crate::worker::examine::Examined;

/// The header of a frame that goes into one buffer.
#[inline]
pub(in super::super) fn hashed_header(
    frame: &Examined,
    steering: Option<&Steering>,
) -> [u8; HASH_HEADER_LEN] {
    let header = NetHeader {
        num_buffers: 1,
        ..frame.header
    };
    header.to_bytes_with_hash(hash(frame, steering))
}

#[inline]
fn hash(frame: &Examined, steering: Option<&Steering>) -> Hash {
    steering.map_or_else(Hash::default, |steering| steering.hash(frame.snapshot()))
}

impl Receiver<'_> {
    /// Delivers a frame with its hash, whole, completed or segmented.
    #[cold]
    pub(in super::super) fn deliver_hashed(
        &mut self,
        frame: &Examined,
        list: &[GuestSlice<'_>],
        steering: Option<&Steering>,
    ) -> Result<(), DropReason> {
        if !self.ring.state.is_open() {
            return Err(DropReason::LinkDown);
        }
        let hash = hash(frame, steering);
        let taken = frame.header.is_plain() || self.takes(&frame.header);
        if frame.header.gso_type != GSO_NONE && !taken {
            return self.segments_hashed(frame, list, hash);
        }
        if frame.header.gso_type == GSO_NONE && frame.len > self.mtu + MTU_OVERHEAD {
            return Err(DropReason::Oversize);
        }
        self.assemble(frame, list, HASH_HEADER_LEN);
        let mut header = frame.header;
        if !taken {
            self.complete(&header, HASH_HEADER_LEN)?;
            header = NetHeader::default();
        }
        self.put_hashed(&header, hash)
    }

    fn segments_hashed(
        &mut self,
        frame: &Examined,
        list: &[GuestSlice<'_>],
        hash: Hash,
    ) -> Result<(), DropReason> {
        let (segmenter, completion) = self.segmenter(frame)?;
        let header = segmenter.net_header(completion);
        let mut pieces = segmenter.frames(list, HEADER_LEN);
        while let Some(len) = pieces.next_len() {
            self.scratch.clear();
            self.scratch.resize(HASH_HEADER_LEN + len, 0);
            let out = &mut self.scratch[HASH_HEADER_LEN..];
            if pieces.write_next_to(out, completion).is_none() {
                return Err(DropReason::OffloadUnsupported);
            }
            self.put_hashed(&header, hash)?;
        }
        Ok(())
    }

    /// Puts what is in the worker's memory into the guest's, with its header.
    fn put_hashed(&mut self, header: &NetHeader, hash: Hash) -> Result<(), DropReason> {
        let total = self.scratch.len();
        let count = self.room(total)?;
        let Some(to) = self.buffers.writable_run(self.next, usize::from(count)) else {
            return Err(DropReason::BufferTooSmall);
        };
        let header = NetHeader {
            num_buffers: count,
            ..*header
        };
        let head = header.to_bytes_with_hash(hash);
        self.scratch[..HASH_HEADER_LEN].copy_from_slice(&head);
        write_chain(to, 0, self.scratch);
        self.used(count, total);
        // The hash is part of the header, not of the frame.
        self.bytes -= (HASH_HEADER_LEN - HEADER_LEN) as u64;
        Ok(())
    }
}
