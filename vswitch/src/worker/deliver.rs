//! Forwarding one burst: examine, learn, look up, group, deliver.

use std::sync::Arc;

use vhost_net_backend::eventfd::Call;
use virtio::burst::Burst;
use virtio::memory::GuestSlice;
use virtio::net::GSO_NONE;

use super::BURST;
use super::copy::Receiver;
use super::examine::Examined;
use super::plan::{Egress, Plan};
use crate::bridge::{Bridge, PortTable};
use crate::counters::DropReason;
use crate::fdb::Learned;
use crate::frame::MTU_OVERHEAD;
use crate::port::Port;

/// The frames of one burst where their sender left them, virtio-net headers first.
pub(super) enum Sent<'a> {
    /// In a guest's memory.
    Guest(&'a Burst),
    /// In the worker's own, read from an interface of the host.
    Tap(&'a [GuestSlice<'a>]),
}

impl Sent<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Guest(burst) => burst.len(),
            Self::Tap(frames) => frames.len(),
        }
    }

    /// Does something with the pieces of one frame.
    #[inline]
    fn with<T>(&self, number: usize, work: impl FnOnce(&[GuestSlice<'_>]) -> T) -> T {
        match self {
            Self::Guest(burst) => work(burst.get(number).map_or(&[], |chain| chain.readable)),
            Self::Tap(frames) => work(frames.get(number).map_or(&[], std::slice::from_ref)),
        }
    }
}

/// A worker's working memory; made once.
#[derive(Debug)]
pub(super) struct Forwarder {
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
            received: Burst::with_capacity(BURST),
            frames: vec![Examined::empty(); BURST],
            plan: Plan::new(),
            scratch: Vec::new(),
            calls: Vec::with_capacity(BURST),
        }
    }

    /// Lets go of all guest memory.
    pub(super) fn release(&mut self) {
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

    /// Forwards the burst `sent`, which came from queue pair `pair` of `port`.
    pub(super) fn forward(
        &mut self,
        bridge: &Bridge,
        ports: &PortTable,
        port: &Port,
        pair: usize,
        sent: &Sent<'_>,
    ) {
        self.plan.clear();
        let now = bridge.clock().now();
        let (features, mtu) = (port.features(), port.mtu());
        let Some(counters) = port.pairs().get(pair).map(|pair| pair.ingress.counters()) else {
            return;
        };
        let several_pairs = port.pairs().len() > 1;
        let (mut frames, mut bytes) = (0, 0);
        for (number, examined) in self.frames.iter_mut().take(sent.len()).enumerate() {
            let taken = match sent {
                Sent::Guest(burst) => match burst.get(number) {
                    Some(chain) => examined.take(&chain, features, mtu),
                    None => break,
                },
                Sent::Tap(frames) => match frames.get(number) {
                    Some(frame) => examined.take_list(&[*frame], frame.len(), features, mtu),
                    None => break,
                },
            };
            if let Err(reason) = taken {
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
        self.deliver_all(ports, sent);
    }

    fn deliver_all(&mut self, ports: &PortTable, sent: &Sent<'_>) {
        for &(id, count) in self.plan.undeliverable() {
            if let Some(port) = ports.get(id) {
                port.drops().add_shared(DropReason::LinkDown, count);
            }
        }
        for place in 0..self.plan.lists().len() {
            let egress = self.plan.lists()[place];
            match ports.get(egress.port) {
                Some(port) if port.is_tap() => self.deliver_to_tap(port, egress, sent),
                Some(port) => self.deliver(port, egress, sent),
                None => {}
            }
        }
    }

    /// Delivers the burst's frames for one receive queue, under its gate.
    fn deliver(&mut self, port: &Port, egress: Egress, sent: &Sent<'_>) {
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
            let Some(frame) = self.frames.get_mut(number) else {
                continue;
            };
            if let Err(reason) = sent.with(number, |list| receiver.deliver(frame, list)) {
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

    /// Writes the burst's frames for one queue of an interface of the host, which takes every offload.
    fn deliver_to_tap(&mut self, port: &Port, egress: Egress, sent: &Sent<'_>) {
        let Some(pair) = port.pairs().get(usize::from(egress.pair)) else {
            return;
        };
        // The gate is not held while frames are written: those are system calls.
        let Some(tap) = pair.tap.enter().and_then(|tap| tap.clone()) else {
            let count = u64::from(egress.frames.count_ones());
            port.drops().add_shared(DropReason::LinkDown, count);
            return;
        };
        let limit = usize::from(port.mtu()) + MTU_OVERHEAD;
        let (mut frames, mut bytes) = (0, 0);
        let mut left = egress.frames;
        while left != 0 {
            let number = left.trailing_zeros() as usize;
            left &= left - 1;
            let Some(frame) = self.frames.get_mut(number) else {
                continue;
            };
            let dropped = if frame.header.gso_type == GSO_NONE && frame.len > limit {
                DropReason::Oversize
            } else {
                let head = frame.head_for(1);
                match sent.with(number, |list| tap.write(head, list, head.len())) {
                    Ok(true) => {
                        frames += 1;
                        bytes += frame.len as u64;
                        continue;
                    }
                    Ok(false) => DropReason::NoBuffer,
                    Err(_) => DropReason::HostError,
                }
            };
            port.drops().add_shared(dropped, 1);
        }
        let counters = pair.egress.counters();
        counters.frames.add_shared(frames);
        counters.bytes.add_shared(bytes);
        counters.bursts.add_shared(1);
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
