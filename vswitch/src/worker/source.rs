//! Taking a burst of frames from where they come from.

use std::sync::Arc;

use vhost_net_backend::tap::TapQueue;
use virtio::memory::{GuestSlice, MemoryError, SharedMemory};
use virtio::net::HEADER_LEN;

use super::BURST;
use super::deliver::Sent;

/// Room for one frame with its header.
const SLOT: usize = 68 * 1024;

/// Where a worker keeps frames of the host while it forwards them.
#[derive(Debug)]
pub(super) struct TapBuffers {
    memory: SharedMemory,
}

impl TapBuffers {
    pub(super) fn new() -> Result<Self, MemoryError> {
        Ok(Self {
            memory: SharedMemory::new("vswitch-tap", 0, (SLOT * BURST) as u64)?,
        })
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
            work(&Sent::Tap(&frames[..count]));
        }
        Some(count)
    }
}
