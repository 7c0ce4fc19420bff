//! Forwarding one burst: examine, learn, look up, group, deliver.

use std::sync::Arc;

use vhost_net_backend::eventfd::Call;
use virtio::burst::Burst;

use super::BURST;
use super::copy::Receiver;
use super::examine::Examined;
use super::plan::{Egress, Plan};
use crate::bridge::{Bridge, PortTable};
use crate::counters::DropReason;
use crate::fdb::Learned;
use crate::port::Port;

/// A worker's working memory; made once.
#[derive(Debug)]
pub(super) struct Forwarder {
    /// Chains taken from the sender.
    pub(super) sent: Burst,
    /// Buffers taken from a receiver.
    received: Burst,
    frames: Vec<Examined>,
    plan: Plan,
    scratch: Vec<u8>,
    /// Guests to notify once no lock is held.
    calls: Vec<Arc<Call>>,
}

impl Forwarder {
    pub(super) fn new() -> Self {
        Self {
            sent: Burst::with_capacity(BURST),
            received: Burst::with_capacity(BURST),
            frames: vec![Examined::empty(); BURST],
            plan: Plan::new(),
            scratch: Vec::new(),
            calls: Vec::with_capacity(BURST),
        }
    }

    /// Lets go of all guest memory.
    pub(super) fn release(&mut self) {
        self.sent.release();
        self.received.release();
    }

    /// Notifies a guest when the burst is over.
    pub(super) fn notify_later(&mut self, call: Option<&Arc<Call>>) {
        if let Some(call) = call {
            self.calls.push(Arc::clone(call));
        }
    }

    /// Notifies the guests that asked for it.
    pub(super) fn notify(&mut self) {
        for call in self.calls.drain(..) {
            call.signal();
        }
    }

    /// Forwards the burst in `sent`, which came from queue pair `pair` of `port`.
    pub(super) fn forward(&mut self, bridge: &Bridge, ports: &PortTable, port: &Port, pair: usize) {
        self.plan.clear();
        let now = bridge.clock().now();
        let (features, mtu) = (port.features(), port.mtu());
        let Some(counters) = port.pairs().get(pair).map(|pair| pair.ingress.counters()) else {
            return;
        };
        let several_pairs = port.pairs().len() > 1;
        let (mut frames, mut bytes) = (0, 0);
        for (number, chain) in self.sent.chains().enumerate() {
            let Some(examined) = self.frames.get_mut(number) else {
                break;
            };
            if let Err(reason) = examined.take(&chain, features, mtu) {
                counters.drops.add(reason, 1);
                continue;
            }
            frames += 1;
            bytes += examined.len as u64;
            let frame = examined.frame;
            if several_pairs {
                port.flows().note(frame.flow, u8::try_from(pair).unwrap_or(0));
            }
            if bridge.fdb().learn(frame.source, 0, port.id(), now) == Learned::Refused {
                counters.drops.add(DropReason::FdbFull, 1);
                continue;
            }
            let known = if frame.destination.is_multicast() {
                None
            } else {
                bridge
                    .fdb()
                    .lookup(frame.destination, 0, now)
                    .and_then(|id| ports.get(id))
            };
            match known {
                Some(to) if to.id() == port.id() => counters.drops.add(DropReason::Hairpin, 1),
                Some(to) => {
                    if !self.plan.send(to, frame.flow, number) {
                        self.plan.give_up(to.id());
                    }
                }
                None => {
                    for to in ports.iter().filter(|to| to.id() != port.id()) {
                        self.plan.send(to, frame.flow, number);
                    }
                }
            }
        }
        counters.frames.add(frames);
        counters.bytes.add(bytes);
        counters.bursts.add(1);
        self.deliver_all(ports);
    }

    fn deliver_all(&mut self, ports: &PortTable) {
        for &(id, count) in self.plan.undeliverable() {
            if let Some(port) = ports.get(id) {
                port.drops().add_shared(DropReason::LinkDown, count);
            }
        }
        for place in 0..self.plan.lists().len() {
            let egress = self.plan.lists()[place];
            if let Some(port) = ports.get(egress.port) {
                self.deliver(port, egress);
            }
        }
    }

    /// Delivers the burst's frames for one receive queue, under its gate.
    fn deliver(&mut self, port: &Port, egress: Egress) {
        let Some(queue) = port
            .pairs()
            .get(usize::from(egress.pair))
            .map(|pair| &pair.egress)
        else {
            return;
        };
        let expected = egress.frames.count_ones();
        let Some(mut guard) = queue.ring.enter() else {
            port.drops()
                .add_shared(DropReason::QueueBusy, u64::from(expected));
            return;
        };
        let Some(ring) = guard.as_mut().filter(|ring| ring.state.is_open()) else {
            drop(guard);
            port.drops().add_shared(DropReason::LinkDown, u64::from(expected));
            return;
        };
        let counters = queue.counters();
        let mut receiver = Receiver::new(
            ring,
            &mut self.received,
            &mut self.scratch,
            port.features(),
            port.mtu(),
            expected as usize,
        );
        let mut left = egress.frames;
        while left != 0 {
            let number = left.trailing_zeros() as usize;
            left &= left - 1;
            let (Some(frame), Some(chain)) = (self.frames.get_mut(number), self.sent.get(number)) else {
                continue;
            };
            if let Err(reason) = receiver.deliver(frame, chain.readable) {
                counters.drops.add(reason, 1);
            }
        }
        counters.frames.add(receiver.frames);
        counters.bytes.add(receiver.bytes);
        counters.bursts.add(1);
        if receiver.bad_buffers > 0 {
            counters
                .drops
                .add(DropReason::BadDescriptor, receiver.bad_buffers);
        }
        if receiver.finish() {
            counters.notifications.add(1);
            if let Some(call) = &ring.state.call {
                self.calls.push(Arc::clone(call));
            }
        }
        if ring.state.broken {
            port.set_ready(usize::from(egress.pair), false);
        }
    }

    /// After a page of some guest's memory vanished under a copy: stops the rings of the burst whose memory
    /// it was. Nothing but their own port is affected.
    #[cold]
    pub(super) fn stop_poisoned(&mut self, ports: &PortTable) {
        for egress in self.plan.lists() {
            let Some(port) = ports.get(egress.port) else {
                continue;
            };
            let Some(queue) = port
                .pairs()
                .get(usize::from(egress.pair))
                .map(|pair| &pair.egress)
            else {
                continue;
            };
            if let Some(mut guard) = queue.ring.enter()
                && let Some(ring) = guard.as_mut()
                && ring.queue.memory().is_poisoned()
            {
                ring.state.fail(&"its memory was truncated");
                port.set_ready(usize::from(egress.pair), false);
            }
        }
    }
}
