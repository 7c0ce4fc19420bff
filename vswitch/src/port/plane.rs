//! What a port's vhost-user session tells the data plane.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vhost_net_backend::control::{ReceiveFilter, Steering};
use vhost_net_backend::eventfd::Call;
use vhost_net_backend::{DevicePlane, Ring};
use virtio::features::NET_F_HASH_REPORT;
use virtio::memory::MemoryMap;
use virtio::split::QueueError;

use super::{EgressRing, Home, IngressQueue, IngressRing, Port, QueuePair};
use crate::bridge::Bridge;
use crate::mac::MacAddr;

/// Connects a port's session with the queues that workers serve.
///
/// Each queue's gate is what makes a change wait for its users: while the session's thread holds it, no
/// worker touches the ring or the memory behind it.
#[derive(Debug)]
pub struct PortPlane {
    port: Arc<Port>,
    bridge: Arc<Bridge>,
}

/// A virtqueue's direction and pair.
enum Which<'a> {
    Egress(usize, &'a QueuePair),
    Ingress(&'a IngressQueue),
}

impl PortPlane {
    /// The plane of `port`, whose queue pairs were given to workers.
    pub fn new(port: Arc<Port>, bridge: Arc<Bridge>) -> Self {
        Self { port, bridge }
    }

    fn which(&self, index: u16) -> Option<Which<'_>> {
        let pair = usize::from(index / 2);
        let queues = self.port.pairs().get(pair)?;
        Some(if index.is_multiple_of(2) {
            Which::Egress(pair, queues)
        } else {
            Which::Ingress(&queues.ingress)
        })
    }

    /// A driver that negotiated `acked` has asked for nothing yet.
    fn forget_wishes(&self, acked: u64) {
        self.filter_changed(None);
        self.steering_changed(None);
        self.port.wishes.set_hashes(acked & NET_F_HASH_REPORT != 0);
    }

    /// The guest can, or can no longer, receive on a pair. What was learned of a port that can receive
    /// nothing any more would only mislead frames.
    fn set_ready(&self, pair: usize, ready: bool) {
        let before = self.port.set_ready(pair, ready);
        if !ready && before != 0 && self.port.enabled() == 0 {
            self.bridge.fdb().flush(Some(self.port.id()));
        }
    }

    fn stop_egress(&self, pair: usize, queues: &QueuePair) -> Option<EgressRing> {
        self.set_ready(pair, false);
        queues.egress.ring.lock().take()
    }

    fn stop_ingress(queue: &IngressQueue) -> Option<IngressRing> {
        let home = queue.home();
        let ring = queue.ring.lock().take();
        if let (Some(home), Some(ring)) = (&*home, &ring) {
            if let Some(kick) = &ring.kick {
                home.unwatch(kick);
            }
            // The worker may still keep the memory of its last burst: it lets go when it looks.
            attend(home, queue);
        }
        ring
    }

    fn start_ingress(queue: &IngressQueue, ring: Ring) {
        let mut ring = IngressRing::new(ring);
        let home = queue.home();
        let Some(home) = &*home else { return };
        if let Some(kick) = &ring.kick
            && let Err(error) = home.watch(kick)
        {
            ring.state.fail(&format_args!("kicks cannot be watched: {error}"));
        }
        *queue.ring.lock() = Some(ring);
        attend(home, queue);
    }
}

fn attend(home: &Home, queue: &IngressQueue) {
    queue.want_attention();
    home.worker.wake();
}

fn attend_at_home(queue: &IngressQueue) {
    if let Some(home) = &*queue.home() {
        attend(home, queue);
    }
}

impl DevicePlane for PortPlane {
    fn connected(&self) {
        self.port.connected.store(true, Ordering::Relaxed);
        tracing::info!(port = self.port.settings().name, "connected");
    }

    fn features_acked(&self, acked: u64) {
        self.port.features.store(acked, Ordering::Relaxed);
        self.forget_wishes(acked);
    }

    fn ring_started(&self, index: u16, ring: Ring) {
        // A former life of the switch may have ended between a used buffer and its notification.
        ring.notify();
        let enabled = ring.enabled;
        match self.which(index) {
            Some(Which::Egress(pair, queues)) => {
                *queues.egress.ring.lock() = Some(EgressRing::new(ring));
                self.set_ready(pair, enabled);
            }
            Some(Which::Ingress(queue)) => Self::start_ingress(queue, ring),
            None => {}
        }
    }

    fn ring_enabled(&self, index: u16, enabled: bool) {
        match self.which(index) {
            Some(Which::Egress(pair, queues)) => {
                let mut ring = queues.egress.ring.lock();
                if let Some(ring) = ring.as_mut() {
                    ring.state.enabled = enabled;
                    self.set_ready(pair, ring.state.is_open());
                }
            }
            Some(Which::Ingress(queue)) => {
                if let Some(ring) = queue.ring.lock().as_mut() {
                    ring.state.enabled = enabled;
                }
                attend_at_home(queue);
            }
            None => {}
        }
    }

    fn call_changed(&self, index: u16, call: Option<Call>) {
        let call = call.map(Arc::new);
        // What was signalled to the former descriptor may have been lost with it.
        if let Some(call) = &call {
            call.signal();
        }
        match self.which(index) {
            Some(Which::Egress(_, queues)) => {
                if let Some(ring) = queues.egress.ring.lock().as_mut() {
                    ring.state.call = call;
                }
            }
            Some(Which::Ingress(queue)) => {
                if let Some(ring) = queue.ring.lock().as_mut() {
                    ring.state.call = call;
                }
            }
            None => {}
        }
    }

    fn ring_stopped(&self, index: u16) -> u16 {
        let queue = match self.which(index) {
            Some(Which::Egress(pair, queues)) => self.stop_egress(pair, queues).map(|ring| ring.queue),
            Some(Which::Ingress(queue)) => Self::stop_ingress(queue).map(|ring| ring.queue),
            None => None,
        };
        queue.map_or(0, |queue| queue.next_avail())
    }

    fn memory_changed(&self, memory: &Arc<MemoryMap>) -> Result<(), QueueError> {
        for queues in self.port.pairs() {
            if let Some(ring) = queues.egress.ring.lock().as_mut() {
                ring.queue.set_memory(Arc::clone(memory))?;
            }
            if let Some(ring) = queues.ingress.ring.lock().as_mut() {
                ring.queue.set_memory(Arc::clone(memory))?;
            }
            attend_at_home(&queues.ingress);
        }
        Ok(())
    }

    fn filter_changed(&self, filter: Option<Arc<ReceiveFilter>>) {
        self.port.wishes.set_filter(filter);
    }

    fn steering_changed(&self, steering: Option<Arc<Steering>>) {
        let spreads = steering.as_ref().is_some_and(|steering| steering.spreads());
        self.port.wishes.set_steering(steering);
        self.port.set_steered(spreads);
    }

    fn offloads_changed(&self, features: u64) {
        self.port.features.store(features, Ordering::Relaxed);
    }

    fn can_announce(&self) -> bool {
        true
    }

    fn announce(&self, mac: [u8; 6]) {
        if let Err(error) = crate::worker::announce(&self.bridge, &self.port, MacAddr::new(mac)) {
            tracing::warn!(port = self.port.settings().name, "not announced: {error}");
        }
    }

    fn disconnected(&self) {
        self.port.connected.store(false, Ordering::Relaxed);
        for (pair, queues) in self.port.pairs().iter().enumerate() {
            drop(self.stop_egress(pair, queues));
            drop(Self::stop_ingress(&queues.ingress));
        }
        self.port.features.store(0, Ordering::Relaxed);
        self.forget_wishes(0);
        self.port.flows.clear();
        self.bridge.fdb().flush(Some(self.port.id()));
        tracing::info!(port = self.port.settings().name, "disconnected");
    }
}
