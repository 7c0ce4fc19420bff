//! What the owner of a data plane implements: the session tells it, it moves the frames.
//!
//! ```text
//!            features_acked                ring_enabled, call_changed, memory_changed
//!                  │                                   ┌──────┐
//!                  ▼                                   ▼      │
//! connected ──► (idle) ── ring_started(i, Ring) ──► (ring i runs) ──┐
//!                  ▲                                   │            │ the plane itself stops a ring that
//!                  │◄────────── ring_stopped(i) ───────┘            │ breaks (Ring::fail); the session
//!                  │                                                │ still ends it with ring_stopped
//! disconnected ◄───┴─────────────── at any time ────────────────────┘
//! ```
//!
//! Every call comes from one thread, the session's, and returns only when no data-plane thread uses the old
//! state any more: after `ring_stopped` the ring is not written again, after `memory_changed` and `disconnected`
//! the old mapping may vanish.

use std::sync::Arc;

use virtio::memory::MemoryMap;
use virtio::queue::{Queue, QueueError};

use crate::control::{ReceiveFilter, Steering};
use crate::eventfd::{Call, Kick};
use crate::session::Taken;

/// A ring that the front-end started: ready to be served.
#[derive(Debug)]
pub struct Ring {
    /// The device end of the virtqueue.
    pub queue: Queue,
    /// The driver's kicks; `None`: the driver never kicks, the ring has to be polled.
    pub kick: Option<Kick>,
    /// Where to signal used buffers; `None`: the driver polls.
    pub call: Option<Call>,
    /// Where to report that the ring is broken.
    pub err: Option<Call>,
    /// A started ring that isn't enabled receives no frames; what it transmits is discarded.
    pub enabled: bool,
    /// Where to note how far a ring was taken before what it holds is delivered, so that nothing is delivered again by a
    /// device that comes after this one died; `None`: the front-end does not ask for it.
    pub taken: Option<Taken>,
}

impl Ring {
    /// Tell the driver that buffers were used.
    pub fn notify(&self) {
        if let Some(call) = &self.call {
            call.signal();
        }
    }

    /// Report to the front-end that the driver broke the ring. The caller serves it no more.
    pub fn fail(&self) {
        if let Some(err) = &self.err {
            err.signal();
        }
    }
}

/// The data plane behind one vhost-user socket.
///
/// `index` is the virtqueue's: even numbers are queues that the guest receives on (0 of pair 0, 2 of pair 1, …),
/// odd numbers those that it transmits on. It is always below twice [`crate::PortConfig::queue_pairs`].
pub trait DevicePlane: Send + Sync {
    /// A front-end connected; nothing is known of it yet.
    fn connected(&self) {}
    /// The driver's features are settled; no ring runs. What a former driver wanted is forgotten.
    fn features_acked(&self, _acked: u64) {}
    /// Serve this ring from now on.
    fn ring_started(&self, index: u16, ring: Ring);
    /// A running ring was enabled or disabled.
    fn ring_enabled(&self, index: u16, enabled: bool);
    /// A running ring's used-buffer signal was exchanged.
    fn call_changed(&self, index: u16, call: Option<Call>);
    /// Stop a running ring, drop it, and return its next available index ([`Queue::next_avail`]).
    fn ring_stopped(&self, index: u16) -> u16;
    /// The memory table changed: every running ring moves to the new map ([`Queue::set_memory`]). An error
    /// ends the connection.
    fn memory_changed(&self, memory: &Arc<MemoryMap>) -> Result<(), QueueError>;
    /// Whether [`DevicePlane::announce`] does anything: only then it is offered to front-ends (`RARP`).
    fn can_announce(&self) -> bool {
        false
    }
    /// The guest with this address is now behind the device, and cannot say so by itself: tell the network.
    fn announce(&self, _mac: [u8; 6]) {}
    /// The driver said through its control queue what it wants to receive; `None`: everything. Frames that it does not want
    /// need not be kept from it at once.
    fn filter_changed(&self, _filter: Option<Arc<ReceiveFilter>>) {}
    /// The driver said how frames are to be spread over its queues, and hashed; `None`: as the device likes.
    fn steering_changed(&self, _steering: Option<Arc<Steering>>) {}
    /// The driver switched receive offloads on or off: these features are to go by now.
    fn offloads_changed(&self, _features: u64) {}
    /// The front-end is gone: drop every ring.
    fn disconnected(&self);
}
