//! The queues of a port, each behind its own gate.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost_net_backend::Ring;
use vhost_net_backend::eventfd::{Call, Kick};
use vhost_net_backend::session::Taken;
use vhost_net_backend::tap::TapQueue;
use virtio::queue::{Queue, RingError};

use super::Home;
use crate::counters::QueueCounters;
use crate::gate::Gate;

/// Both directions of one queue pair.
#[derive(Debug, Default)]
pub struct QueuePair {
    /// What the guest transmits.
    pub ingress: IngressQueue,
    /// What the guest receives.
    pub egress: EgressQueue,
    /// The queue of the host's interface, where the port is one.
    pub tap: Gate<Option<Arc<TapQueue>>>,
}

/// A queue that the guest transmits on. One worker serves it.
#[derive(Debug, Default)]
pub struct IngressQueue {
    /// The ring, while it runs.
    pub ring: Gate<Option<IngressRing>>,
    home: Mutex<Option<Home>>,
    /// Number of the worker that serves the queue; changed under the gate.
    worker: AtomicUsize,
    attention: AtomicBool,
    counters: QueueCounters,
}

/// A queue that the guest receives on. Any worker delivers to it, one at a time.
#[derive(Debug, Default)]
pub struct EgressQueue {
    /// The ring, while it runs.
    pub ring: Gate<Option<EgressRing>>,
    counters: QueueCounters,
}

/// A running ring that the guest transmits on.
#[derive(Debug)]
pub struct IngressRing {
    /// The device end of the virtqueue.
    pub queue: Queue,
    /// The guest's kicks; without them the ring is polled.
    pub kick: Option<Kick>,
    /// Where to note how far the ring was taken.
    pub taken: Option<Taken>,
    /// The state that both directions have.
    pub state: RingState,
}

/// A running ring that the guest receives on.
#[derive(Debug)]
pub struct EgressRing {
    /// The device end of the virtqueue.
    pub queue: Queue,
    /// The guest took nothing when it was last waited for, and has not since.
    pub stalled: bool,
    /// The state that both directions have.
    pub state: RingState,
}

/// What rings of both directions know of themselves.
#[derive(Debug)]
pub struct RingState {
    /// Where used buffers are signalled, outside the gate: hence shared.
    pub call: Option<Arc<Call>>,
    err: Option<Call>,
    /// Whether the guest uses the ring.
    pub enabled: bool,
    /// Set when the guest broke the ring: it is not touched again until the front-end starts it anew.
    pub broken: bool,
}

impl RingState {
    fn new(call: Option<Call>, err: Option<Call>, enabled: bool) -> Self {
        Self {
            call: call.map(Arc::new),
            err,
            enabled,
            broken: false,
        }
    }

    /// Stops serving the ring for good, and tells the front-end.
    pub fn fail(&mut self, what: &dyn std::fmt::Display) {
        if !std::mem::replace(&mut self.broken, true) {
            tracing::warn!("ring stopped: {what}");
            if let Some(err) = &self.err {
                err.signal();
            }
        }
    }

    /// Whether frames may be delivered through the ring.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.enabled && !self.broken
    }
}

impl IngressRing {
    /// The ring as the session started it.
    pub fn new(ring: Ring) -> Self {
        let Ring {
            queue,
            kick,
            call,
            err,
            enabled,
            taken,
        } = ring;
        Self {
            queue,
            kick,
            taken,
            state: RingState::new(call, err, enabled),
        }
    }

    /// Stops serving the ring because the guest broke it.
    #[cold]
    pub fn fail(&mut self, error: RingError) {
        self.state.fail(&error);
    }
}

impl EgressRing {
    /// The ring as the session started it. The guest need never kick it: buffers are looked for when there
    /// are frames.
    pub fn new(ring: Ring) -> Self {
        let Ring {
            mut queue,
            call,
            err,
            enabled,
            ..
        } = ring;
        queue.disable_notification();
        Self {
            queue,
            stalled: false,
            state: RingState::new(call, err, enabled),
        }
    }
}

impl IngressQueue {
    /// The queue's counters.
    #[inline]
    pub fn counters(&self) -> &QueueCounters {
        &self.counters
    }

    /// The worker that serves the queue, kept from changing.
    pub fn home(&self) -> MutexGuard<'_, Option<Home>> {
        self.home.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the worker that serves the queue from now on. Where one may be serving it, the gate is held.
    pub fn set_home(&self, home: &mut Option<Home>, new: Home) {
        self.worker.store(new.worker.number(), Ordering::Relaxed);
        *home = Some(new);
    }

    /// The number of the worker that serves the queue. Under the gate it cannot change.
    #[inline]
    pub fn worker(&self) -> usize {
        self.worker.load(Ordering::Relaxed)
    }

    /// Asks the worker to look at the queue, whether or not the guest kicks.
    pub fn want_attention(&self) {
        self.attention.store(true, Ordering::Release);
    }

    /// Whether the worker was asked to look since it last did.
    pub fn take_attention(&self) -> bool {
        self.attention.load(Ordering::Relaxed) && self.attention.swap(false, Ordering::AcqRel)
    }
}

impl EgressQueue {
    /// The queue's counters.
    #[inline]
    pub fn counters(&self) -> &QueueCounters {
        &self.counters
    }
}
