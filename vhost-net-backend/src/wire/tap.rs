//! A queue pair on one queue of a tap device.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use virtio::memory::GuestSlice;
use virtio::net::{HEADER_LEN, NetHeader};

use super::{Sent, Wire};
use crate::nic::{Delivery, MAX_FRAME, Receiver, Taken};
use crate::tap::TapQueue;

/// More frames than the queue of a tap ever holds.
const STALE: usize = 4096;
/// The longest frame with its header.
const LONGEST: usize = HEADER_LEN + MAX_FRAME;
/// What most frames fit that are no super-frames.
const SHORT: usize = HEADER_LEN + 1518;
/// Short frames in a row after which the next one is expected to be short.
const TREND: u32 = 64;

/// A tap queue as a wire.
#[derive(Debug)]
pub struct TapWire {
    queue: Arc<TapQueue>,
    /// The one queue through which properties of the whole device are set.
    leader: bool,
    /// Whether the host puts frames into the queue; `None`: always, as the device has but one.
    attached: Option<bool>,
    /// The last frame that the guest's buffers at hand could not hold.
    frame: Box<[u8]>,
    held: Option<usize>,
    /// Frames in a row that were short.
    short: u32,
    /// Since the last event, not yet read until empty.
    ready: bool,
}

impl TapWire {
    /// Wires for all queues of a device.
    pub fn all(queues: Vec<Arc<TapQueue>>) -> Vec<Self> {
        let many = queues.len() > 1;
        let wires = queues.into_iter().enumerate().map(|(at, queue)| Self {
            queue,
            leader: at == 0,
            attached: many.then_some(true),
            frame: vec![0; LONGEST].into_boxed_slice(),
            held: None,
            short: 0,
            ready: true,
        });
        wires.collect()
    }

    /// Room to offer for the next frame. Gathering the many buffers of a super-frame takes longer than copying a short
    /// frame, so it is done while there are super-frames; the first of them is copied once more.
    fn room(&self) -> usize {
        if self.short >= TREND { SHORT } else { LONGEST }
    }

    fn note(&mut self, len: usize) {
        self.short = if len <= SHORT {
            self.short.saturating_add(1)
        } else {
            0
        };
    }

    /// Deliver the frame that is held.
    fn deliver(&mut self, receiver: &mut Receiver<'_>) {
        let frame = self.held.and_then(|len| self.frame.get(..len));
        let Some((header, frame)) = frame.and_then(<[u8]>::split_first_chunk::<HEADER_LEN>) else {
            self.held = None;
            return;
        };
        if receiver.deliver(&NetHeader::from_bytes(header), frame) != Delivery::NoRoom {
            self.held = None;
        }
    }

    /// Throw away what came while nobody wanted it.
    fn drain(&mut self) {
        self.held = None;
        for _ in 0..STALE {
            if !matches!(self.queue.read(&mut self.frame), Ok(Some(_))) {
                break;
            }
        }
    }
}

impl Wire for TapWire {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.queue.as_fd()]
    }

    fn event(&mut self) {
        self.ready = true;
    }

    fn features_acked(&mut self, acked: u64) -> io::Result<()> {
        // A frame from before may have offloads that this driver knows nothing of.
        self.held = None;
        if self.leader {
            self.queue.set_offload(acked).map_err(io::Error::other)
        } else {
            Ok(())
        }
    }

    /// The host spreads frames over all attached queues: one that nobody reads must not get any.
    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        if self.attached.is_some_and(|attached| attached != enabled) {
            self.queue.set_attached(enabled)?;
            self.attached = Some(enabled);
        }
        self.drain();
        self.ready = true;
        Ok(())
    }

    fn send(&mut self, header: &NetHeader, chain: &[GuestSlice<'_>], off: usize) -> Sent {
        match self.queue.write(&header.to_bytes(), chain, off) {
            Ok(true) => Sent::Done,
            Ok(false) => Sent::Full,
            // EINVAL: an offload the kernel makes no sense of; EIO: the interface is down; EBADFD: it is gone.
            Err(_) => Sent::Refused,
        }
    }

    fn flush(&mut self) {}

    fn receive(&mut self, receiver: &mut Receiver<'_>) {
        while receiver.wants_more() {
            if self.held.is_some() {
                self.deliver(receiver);
                continue;
            }
            let room = self.room();
            let Self { queue, frame, .. } = self;
            match receiver.read(room, frame, |header, list, off, rest| {
                queue.read_around(header, list, off, rest)
            }) {
                Taken::Frame(len) => self.note(len),
                Taken::Spilled(len) => {
                    self.note(len);
                    self.held = Some(len);
                }
                // Shorter than its own header: nothing a guest could be given.
                Taken::Runt => {}
                Taken::NoRoom => break,
                Taken::Nothing | Taken::Failed(_) => {
                    self.ready = false;
                    break;
                }
            }
        }
    }

    fn is_ready(&mut self) -> bool {
        self.ready || self.held.is_some()
    }
}

#[cfg(test)]
mod tests;
