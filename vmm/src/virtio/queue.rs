//! Virtqueues for devices that serve them with the `virtio-queue` crate.

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::device::{ActivateError, ActiveQueue};

/// The device's end of a virtqueue that the driver has enabled.
pub(crate) fn split_queue(queue: &ActiveQueue, event_idx: bool) -> Result<Queue, ActivateError> {
    let refused = |ring, addr| ActivateError::RingOutsideMemory {
        queue: queue.index,
        ring,
        addr,
    };
    let mut split = Queue::new(queue.size).map_err(|_| ActivateError::MissingQueue(queue.index))?;
    split
        .try_set_desc_table_address(GuestAddress(queue.desc))
        .map_err(|_| refused("descriptor table", queue.desc))?;
    split
        .try_set_avail_ring_address(GuestAddress(queue.avail))
        .map_err(|_| refused("available ring", queue.avail))?;
    split
        .try_set_used_ring_address(GuestAddress(queue.used))
        .map_err(|_| refused("used ring", queue.used))?;
    split.set_event_idx(event_idx);
    split.set_ready(true);
    Ok(split)
}
