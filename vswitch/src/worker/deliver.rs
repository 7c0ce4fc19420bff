//! Forwarding one burst: examine, learn, look up, group, deliver.

use std::sync::Arc;

use vhost_net_backend::eventfd::Call;
use virtio::burst::Burst;
use virtio::memory::GuestSlice;

use super::BURST;
use super::examine::Examined;
use super::plan::Plan;
use super::train::{Trains, Verdict};
use crate::bridge::{Bridge, PortTable};
use crate::config::LinkSetting;
use crate::counters::DropReason;
use crate::port::Port;

/// The frames of one burst where their sender left them, virtio-net headers first.
pub(super) enum Sent<'a> {
    /// In a guest's memory.
    Guest(&'a Burst),
    /// In the worker's own: read from an interface of the host, or copied.
    Own(&'a [GuestSlice<'a>]),
}

impl Sent<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Guest(burst) => burst.len(),
            Self::Own(frames) => frames.len(),
        }
    }

    /// The frame's memory, where that is one piece.
    #[inline]
    fn piece(&self, number: usize) -> Option<GuestSlice<'_>> {
        match self {
            Self::Guest(burst) => burst.single_readable(number),
            Self::Own(frames) => frames.get(number).copied(),
        }
    }

    /// Reads and checks a frame that is in several pieces, or in none.
    #[cold]
    fn take_chain(
        &self,
        number: usize,
        examined: &mut Examined,
        features: u64,
        mtu: u16,
    ) -> Result<(), DropReason> {
        match self {
            Self::Guest(burst) => burst.get(number).map_or(Err(DropReason::BadDescriptor), |chain| {
                examined.take_chain(&chain, features, mtu)
            }),
            Self::Own(_) => Err(DropReason::BadDescriptor),
        }
    }

    /// Does something with the pieces of one frame.
    #[inline]
    pub(super) fn with<T>(&self, number: usize, work: impl FnOnce(&[GuestSlice<'_>]) -> T) -> T {
        match self {
            Self::Guest(burst) => work(burst.get(number).map_or(&[], |chain| chain.readable)),
            Self::Own(frames) => work(frames.get(number).map_or(&[], std::slice::from_ref)),
        }
    }
}

/// A worker's working memory; made once.
#[derive(Debug)]
pub(super) struct Forwarder {
    /// Buffers taken from a receiver.
    pub(super) received: Burst,
    pub(super) frames: Vec<Examined>,
    pub(super) plan: Plan,
    pub(super) scratch: Vec<u8>,
    /// Guests to notify once no lock is held.
    pub(super) calls: Vec<Arc<Call>>,
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

    /// Sends one frame of the switch's own to every port but `port`.
    pub(super) fn flood(&mut self, ports: &PortTable, port: &Port, sent: &Sent<'_>) {
        self.plan.clear();
        let Some(examined) = self.frames.first_mut() else {
            return;
        };
        let good = sent
            .piece(0)
            .is_some_and(|piece| examined.take_piece(piece, 0, port.mtu()).is_ok());
        if good {
            for to in ports.iter().filter(|to| to.id() != port.id()) {
                self.plan.send(to, examined, 0);
            }
            self.deliver_all(ports, sent);
            self.notify();
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
        let (features, mtu) = (port.features(), port.mtu());
        let Some(counters) = port.pairs().get(pair).map(|pair| pair.ingress.counters()) else {
            return;
        };
        if port.link() == LinkSetting::Down {
            counters.drops.add(DropReason::LinkDown, sent.len() as u64);
            return;
        }
        let several_pairs = port.pairs().len() > 1;
        let (mut frames, mut bytes) = (0, 0);
        let mut trains = Trains::new(bridge, ports, port);
        for number in 0..sent.len() {
            let Some(examined) = self.frames.get_mut(number) else {
                break;
            };
            let taken = match sent.piece(number) {
                Some(piece) => examined.take_piece(piece, features, mtu),
                None => sent.take_chain(number, examined, features, mtu),
            };
            if let Err(reason) = taken {
                counters.drops.add(reason, 1);
                continue;
            }
            let train = trains.of(examined, &mut self.plan);
            if let Verdict::Refused(reason) = train {
                counters.drops.add(reason, 1);
                continue;
            }
            frames += 1;
            bytes += examined.len as u64;
            if several_pairs {
                port.flows()
                    .note(examined.flow(), u8::try_from(pair).unwrap_or(0));
            }
            match train {
                Verdict::Queue(list) => self.plan.add(list, number),
                Verdict::Port(to) => {
                    if !self.plan.send(to, examined, number) {
                        self.plan.give_up(to.id());
                    }
                }
                Verdict::Everybody => {
                    for to in ports.iter().filter(|to| to.id() != port.id()) {
                        self.plan.send(to, examined, number);
                    }
                }
                Verdict::Dropped(reason) | Verdict::Refused(reason) => counters.drops.add(reason, 1),
            }
        }
        counters.frames.add(frames);
        counters.bytes.add(bytes);
        counters.bursts.add(1);
        self.deliver_all(ports, sent);
    }
}
