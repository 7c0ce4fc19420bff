//! A queue pair on another vhost-user back-end: `virtio-user`, the driver end of its rings.
//!
//! Frames are copied between the VM's memory and memory of our own, the only memory that the back-end maps. A link
//! thread keeps the connection; wires find its rings in their slot while there is one. What the VM sends with offloads
//! that this back-end lacks is completed or segmented on the way. Where it has fewer queue pairs than the VM, several of the VM's
//! transmit on one of its; what it sends comes in on the first of them.

mod fit;
mod handshake;
mod link;
mod queues;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio::features as f;
use virtio::memory::GuestSlice;
use virtio::net::{HDR_F_DATA_VALID, NetHeader};

pub use handshake::{HandshakeError, Offer, probe};
pub use link::Link;
use queues::Queues;

use super::{Sent, Wire};
use crate::eventfd::Call;
use crate::nic::{Delivery, Receiver};

/// Where the link thread puts a pair's rings, and the eventfd that tells its worker.
#[derive(Debug)]
pub(crate) struct Slot {
    queues: Mutex<Option<Queues>>,
    /// Also what the back-end signals: one descriptor for the life of the process.
    event: Call,
    /// The pair whose rings carry this one's frames: itself, unless the back-end has too few.
    carrier: AtomicUsize,
    /// Other pairs transmit on these rings, too.
    shared: AtomicBool,
}

impl Slot {
    fn new(pair: usize) -> io::Result<Self> {
        Ok(Self {
            carrier: AtomicUsize::new(pair),
            shared: AtomicBool::new(false),
            queues: Mutex::default(),
            event: Call::create()?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Queues>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Exchange the rings and tell the worker.
    fn set(&self, queues: Option<Queues>) {
        *self.lock() = queues;
        self.event.signal();
    }
}

/// One pair of a `virtio-user` link.
#[derive(Debug)]
pub struct UserWire {
    slot: Arc<Slot>,
    /// Those of all pairs.
    slots: Arc<[Arc<Slot>]>,
    wanted: Arc<link::Wanted>,
    pair: u16,
    acked: u64,
    ready: bool,
}

impl UserWire {
    /// The slot whose rings carry this pair's frames.
    #[inline]
    fn carrier(&self) -> &Slot {
        self.slots
            .get(self.slot.carrier.load(Ordering::Acquire))
            .unwrap_or(&self.slot)
    }

    fn is_carried(&self) -> bool {
        self.slot.carrier.load(Ordering::Acquire) != usize::from(self.pair)
    }
}

impl Wire for UserWire {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.slot.event.as_fd()]
    }

    fn event(&mut self) {
        self.ready = true;
        if self.slot.shared.load(Ordering::Acquire) {
            let own = usize::from(self.pair);
            let carried = |slot: &&Arc<Slot>| slot.carrier.load(Ordering::Acquire) == own;
            for other in self.slots.iter().skip(own + 1).filter(carried) {
                other.event.signal();
            }
        }
    }

    fn features_acked(&mut self, acked: u64) -> io::Result<()> {
        self.acked = acked;
        self.wanted.set_features(acked);
        Ok(())
    }

    /// The back-end is told by the link thread: its answer may take time.
    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        if let Some(queues) = &mut *self.slot.lock() {
            queues.drain();
        }
        self.wanted.set_enabled(self.pair, enabled);
        self.ready = true;
        Ok(())
    }

    fn send(&mut self, header: &NetHeader, chain: &[GuestSlice<'_>], off: usize) -> Sent {
        match &mut *self.carrier().lock() {
            Some(queues) => queues.send(header, chain, off),
            None => Sent::Refused,
        }
    }

    fn flush(&mut self) {
        if let Some(queues) = &mut *self.carrier().lock() {
            queues.flush();
            if queues.is_broken() {
                self.wanted.wake();
            }
        }
    }

    fn receive(&mut self, receiver: &mut Receiver<'_>) {
        if self.is_carried() {
            self.ready = false;
            return;
        }
        let mut slot = self.slot.lock();
        let Some(queues) = &mut *slot else {
            self.ready = false;
            return;
        };
        let allowed = as_host(self.acked);
        while receiver.wants_more() {
            let Some(frame) = queues.next_frame() else {
                self.ready = false;
                break;
            };
            let Some(header) = clean(&frame.header, frame.len, allowed) else {
                queues.done();
                continue;
            };
            let (list, off) = frame.bytes();
            if receiver.deliver_chain(&header, &list, off, frame.len) == Delivery::NoRoom {
                break;
            }
            queues.done();
        }
        queues.repost();
        if queues.is_broken() {
            self.wanted.wake();
        }
    }

    fn is_ready(&mut self) -> bool {
        self.ready
    }
}

/// The offloads a driver can receive, as the bits of one that transmits them.
fn as_host(acked: u64) -> u64 {
    [
        (f::NET_F_GUEST_CSUM, f::NET_F_CSUM),
        (f::NET_F_GUEST_TSO4, f::NET_F_HOST_TSO4),
        (f::NET_F_GUEST_TSO6, f::NET_F_HOST_TSO6),
        (f::NET_F_GUEST_ECN, f::NET_F_HOST_ECN),
        (f::NET_F_GUEST_USO4 | f::NET_F_GUEST_USO6, f::NET_F_HOST_USO),
    ]
    .into_iter()
    .filter(|&(guest, _)| acked & guest == guest)
    .fold(0, |bits, (_, host)| bits | host)
}

/// A header that the VM's driver can be given: nothing that it did not negotiate, whatever the back-end wrote.
fn clean(header: &NetHeader, len: usize, allowed: u64) -> Option<NetHeader> {
    let mut checked = header.validate_tx(len, allowed).ok()?;
    if checked.is_plain() {
        checked.flags = header.flags & HDR_F_DATA_VALID;
    }
    Some(checked)
}

#[cfg(test)]
mod tests;
