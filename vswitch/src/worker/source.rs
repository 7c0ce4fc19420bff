//! Taking a burst of frames from where they come from.

use std::sync::Arc;

use vhost_net_backend::tap::TapQueue;
use virtio::burst::Burst;
use virtio::memory::{GuestSlice, MemoryError, SharedMemory, copy_chain};
use virtio::net::{HASH_HEADER_LEN, HEADER_LEN};

use super::BURST;
use super::deliver::Sent;

/// Room for one frame with its header.
const SLOT: usize = 68 * 1024;

/// Where a worker keeps frames of the host, and such as it has to copy, while it forwards them.
#[derive(Debug)]
pub(super) struct FrameBuffers {
    memory: SharedMemory,
}

impl FrameBuffers {
    pub(super) fn new() -> Result<Self, MemoryError> {
        Ok(Self {
            memory: SharedMemory::new("vswitch-tap", 0, (SLOT * BURST) as u64)?,
        })
    }

    /// Copies a burst of frames whose headers have hashes, and leaves those out: a hash says nothing of a frame that a guest
    /// sends. What cannot be copied is left empty.
    #[cold]
    pub(super) fn without_hashes(&self, burst: &Burst, work: impl FnOnce(&Sent<'_>)) {
        let all = self.memory.region().slice();
        let frames: [GuestSlice<'_>; BURST] = std::array::from_fn(|number| {
            let slot = all.skip(number * SLOT).take(SLOT);
            let Some(chain) = burst.get(number) else {
                return slot.take(0);
            };
            let len = chain.readable_len as usize;
            if chain.error.is_some() || chain.writable_len != 0 || !(HASH_HEADER_LEN..=SLOT).contains(&len) {
                return slot.take(0);
            }
            let to = std::slice::from_ref(&slot);
            copy_chain(chain.readable, 0, to, 0, HEADER_LEN);
            let rest = len - HASH_HEADER_LEN;
            copy_chain(chain.readable, HASH_HEADER_LEN, to, HEADER_LEN, rest);
            slot.take(HEADER_LEN + rest)
        });
        work(&Sent::Own(&frames[..burst.len().min(BURST)]));
    }

    /// Reads up to a burst of frames and does something with them, if there are any; returns how many, or none
    /// if the interface is gone.
    pub(super) fn read(&self, tap: &Arc<TapQueue>, work: impl FnOnce(&Sent<'_>)) -> Option<usize> {
        let all = self.memory.region().slice();
        let mut frames: [GuestSlice<'_>; BURST] =
            std::array::from_fn(|number| all.skip(number * SLOT).take(SLOT));
        let mut count = 0;
        while let Some(slot) = frames.get_mut(count) {
            match tap.read_vectored(&[*slot]) {
                Ok(Some(len)) if len >= HEADER_LEN => *slot = slot.take(len),
                // Shorter than its own header: nothing that could be forwarded.
                Ok(Some(_)) => continue,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!("an interface of the host cannot be read: {error}");
                    return None;
                }
            }
            count += 1;
        }
        if count > 0 {
            work(&Sent::Own(&frames[..count]));
        }
        Some(count)
    }
}
