//! A virtqueue of a device that runs in this process: low rates, so each buffer is checked one by one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::device::{ActivateError, ActiveQueue, QueueIrq};
use super::queue::split_queue;

/// The driver broke the ring itself: nothing can be told from it any more.
#[derive(Debug, thiserror::Error)]
#[error("the driver broke a virtqueue: {0}")]
pub(crate) struct BrokenRing(#[from] virtio_queue::Error);

/// Why a device's thread cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The driver's fault.
    #[error(transparent)]
    Ring(#[from] BrokenRing),
    /// The host's refusal.
    #[error("the host refused: {0}")]
    Os(#[from] std::io::Error),
}

/// The device's end of a virtqueue.
#[derive(Debug)]
pub(crate) struct Ring {
    queue: Queue,
    mem: Arc<GuestMemoryMmap>,
    irq: QueueIrq,
    kick: EventFd,
    /// Used buffers of which the driver has not been told.
    unannounced: bool,
}

/// Buffers that the driver gave in one go. All of them are in guest memory.
#[derive(Debug)]
pub(crate) struct Chain {
    head: u16,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
}

#[derive(Clone, Copy, Debug)]
struct Buffer {
    addr: GuestAddress,
    len: usize,
}

impl Ring {
    /// The queue with the features that its driver has chosen.
    pub(crate) fn new(
        queue: ActiveQueue,
        mem: Arc<GuestMemoryMmap>,
        features: u64,
    ) -> Result<Self, ActivateError> {
        let ring = split_queue(&queue, features & 1 << VIRTIO_RING_F_EVENT_IDX != 0)?;
        if !ring.is_valid(&*mem) {
            return Err(ActivateError::RingOutsideMemory {
                queue: queue.index,
                ring: "ring",
                addr: queue.desc,
            });
        }
        Ok(Self {
            queue: ring,
            mem,
            irq: queue.irq,
            kick: queue.kick,
            unannounced: false,
        })
    }

    /// Signalled by the driver.
    pub(crate) fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// The most buffers that the driver can have given.
    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// True if the driver has given buffers that were not taken. If it has not, it notifies when it does.
    pub(crate) fn has_buffers(&mut self) -> Result<bool, BrokenRing> {
        Ok(self.waiting()? != 0 || self.queue.enable_notification(&*self.mem)? && self.waiting()? != 0)
    }

    fn waiting(&self) -> Result<u16, BrokenRing> {
        let given = self.queue.avail_idx(&*self.mem, Ordering::Acquire)?.0;
        let waiting = given.wrapping_sub(self.queue.next_avail());
        if waiting > self.queue.size() {
            return Err(virtio_queue::Error::InvalidAvailRingIndex.into());
        }
        Ok(waiting)
    }

    /// Takes the next buffers; without any, has the driver notify of the next ones. Malformed ones go back to the driver at once, with nothing done.
    pub(crate) fn pop(&mut self) -> Result<Option<Chain>, BrokenRing> {
        // A driver gives at most as many as the ring has room for; whatever it does, this ends.
        for _ in 0..self.queue.size() {
            let Some(chain) = self.queue.iter(&*self.mem)?.next() else {
                if self.has_buffers()? {
                    continue;
                }
                return Ok(None);
            };
            let head = chain.head_index();
            if let Some(chain) = collect(chain, &self.mem, usize::from(self.queue.size())) {
                return Ok(Some(chain));
            }
            tracing::debug!(head, "malformed descriptor chain");
            self.give_back(head, 0)?;
        }
        Ok(None)
    }

    /// Undoes the last `pop`.
    pub(crate) fn put_back(&mut self, _chain: Chain) {
        self.queue.go_to_previous_position();
    }

    /// Returns buffers, of which the first `written` writable bytes were filled.
    pub(crate) fn complete(&mut self, chain: &Chain, written: usize) -> Result<(), BrokenRing> {
        self.give_back(chain.head, u32::try_from(written).unwrap_or(u32::MAX))
    }

    fn give_back(&mut self, head: u16, written: u32) -> Result<(), BrokenRing> {
        self.queue.add_used(&*self.mem, head, written)?;
        self.unannounced = true;
        Ok(())
    }

    /// Interrupts the driver if buffers went back since the last call, unless it wants to hear of later ones only.
    pub(crate) fn announce(&mut self) -> Result<(), BrokenRing> {
        if std::mem::take(&mut self.unannounced) && self.queue.needs_notification(&*self.mem)? {
            self.irq.notify();
        }
        Ok(())
    }

    /// Copies from the readable buffers, starting `offset` bytes into them; returns how much.
    pub(crate) fn read(&self, chain: &Chain, offset: usize, data: &mut [u8]) -> usize {
        transfer(&chain.readable, offset, data.len(), |addr, range| {
            // The memory was checked when the chain was taken.
            let _ = self.mem.read_slice(&mut data[range], addr);
        })
    }

    /// Copies into the writable buffers from their start; returns how much.
    pub(crate) fn write(&self, chain: &Chain, data: &[u8]) -> usize {
        transfer(&chain.writable, 0, data.len(), |addr, range| {
            let _ = self.mem.write_slice(&data[range], addr);
        })
    }
}

impl Chain {
    /// Bytes for the device to read.
    pub(crate) fn readable(&self) -> usize {
        self.readable.iter().map(|buffer| buffer.len).sum()
    }

    /// Bytes for the device to write.
    pub(crate) fn writable(&self) -> usize {
        self.writable.iter().map(|buffer| buffer.len).sum()
    }
}

/// `None` if the chain breaks a rule: it loops or ends in nowhere, is longer than the ring, has a readable buffer
/// behind a writable one, or a buffer outside of guest memory.
fn collect(
    mut chain: virtio_queue::DescriptorChain<&GuestMemoryMmap>,
    mem: &GuestMemoryMmap,
    most: usize,
) -> Option<Chain> {
    let mut found = Chain {
        head: chain.head_index(),
        readable: Vec::new(),
        writable: Vec::new(),
    };
    // The iterator just stops at a descriptor that it cannot follow: the one before it still asks for a next one.
    let mut complete = false;
    for count in 0.. {
        let Some(descriptor) = chain.next() else { break };
        let buffer = Buffer {
            addr: descriptor.addr(),
            len: usize::try_from(descriptor.len()).ok()?,
        };
        if count >= most || buffer.len > 0 && !mem.check_range(buffer.addr, buffer.len) {
            return None;
        }
        if descriptor.is_write_only() {
            found.writable.push(buffer);
        } else if found.writable.is_empty() {
            found.readable.push(buffer);
        } else {
            return None;
        }
        complete = !descriptor.has_next();
    }
    complete.then_some(found)
}

fn transfer(
    buffers: &[Buffer],
    mut skip: usize,
    len: usize,
    mut copy: impl FnMut(GuestAddress, std::ops::Range<usize>),
) -> usize {
    let mut done = 0;
    for buffer in buffers {
        if skip >= buffer.len {
            skip -= buffer.len;
            continue;
        }
        let count = (buffer.len - skip).min(len - done);
        if count == 0 {
            break;
        }
        copy(GuestAddress(buffer.addr.0 + skip as u64), done..done + count);
        done += count;
        skip = 0;
    }
    done
}
