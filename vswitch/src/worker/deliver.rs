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
use crate::counters::{DropReason, QueueCounters};
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
    /// Those of them that hold frames, until the ring is told.
    pub(super) used: Vec<(u16, u32)>,
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
            used: Vec::with_capacity(BURST),
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
        let mtu = port.mtu();
        let (Sent::Own([piece, ..]), Some(examined)) = (sent, self.frames.first_mut()) else {
            return;
        };
        let good = examined.take_piece(*piece, 0, mtu, Examined::usual(mtu)).is_ok();
        if good {
            for to in ports.iter().filter(|to| to.id() != port.id()) {
                self.plan.send(to, &self.frames, bit(0));
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
        let mut trains = Trains::new(bridge, ports, port);
        let Taken {
            good,
            alone,
            mut bytes,
        } = self.take(sent, features, mtu, &mut trains, counters);
        let mut refused = 0;
        for frames in trains.frames().into_iter().chain(numbers(alone).map(bit)) {
            // A number that is out of place belongs to no frame.
            let Some(examined) = self.frames.get(frames.trailing_zeros() as usize) else {
                continue;
            };
            let verdict = trains.decide(examined, &mut self.plan);
            refused |= self.dispatch(frames, verdict, ports, port, pair);
        }
        if refused != 0 {
            bytes = numbers(good & !refused)
                .filter_map(|number| self.frames.get(number))
                .map(|examined| examined.len as u64)
                .sum();
        }
        counters.frames.add(u64::from((good & !refused).count_ones()));
        counters.bytes.add(bytes);
        counters.bursts.add(1);
        self.deliver_all(ports, sent);
    }
    /// Reads and checks all frames of a burst, and puts them into trains.
    #[inline]
    fn take(
        &mut self,
        sent: &Sent<'_>,
        features: u64,
        mtu: u16,
        trains: &mut Trains<'_>,
        counters: &QueueCounters,
    ) -> Taken {
        match sent {
            Sent::Guest(burst) => {
                self.take_from(burst.single_readables(), sent, features, mtu, trains, counters)
            }
            Sent::Own(pieces) => {
                let pieces = pieces.iter().copied().map(Some);
                self.take_from(pieces, sent, features, mtu, trains, counters)
            }
        }
    }

    /// The same, with the memory of each frame that is in one piece.
    #[inline]
    fn take_from<'a>(
        &mut self,
        pieces: impl Iterator<Item = Option<GuestSlice<'a>>>,
        sent: &Sent<'_>,
        features: u64,
        mtu: u16,
        trains: &mut Trains<'_>,
        counters: &QueueCounters,
    ) -> Taken {
        let mut all = Taken::default();
        let usual = Examined::usual(mtu);
        for (number, (piece, examined)) in pieces.zip(&mut self.frames).enumerate() {
            let taken = match piece {
                Some(piece) => examined.take_piece(piece, features, mtu, usual),
                None => sent.take_chain(number, examined, features, mtu),
            };
            if let Err(reason) = taken {
                counters.drops.add(reason, 1);
                continue;
            }
            let frame = bit(number);
            all.good |= frame;
            all.bytes += examined.len as u64;
            if !trains.join(examined, frame) {
                all.alone |= frame;
            }
        }
        all
    }

    /// Does with frames between the same addresses what was found out about those; returns those that count as never received.
    fn dispatch(
        &mut self,
        frames: u64,
        verdict: Verdict<'_>,
        ports: &PortTable,
        port: &Port,
        pair: usize,
    ) -> u64 {
        let Some(queues) = port.pairs().get(pair) else {
            return 0;
        };
        let drops = &queues.ingress.counters().drops;
        let count = u64::from(frames.count_ones());
        if let Verdict::Refused(reason) = verdict {
            drops.add(reason, count);
            return frames;
        }
        if port.pairs().len() > 1 {
            for number in numbers(frames) {
                if let Some(examined) = self.frames.get(number) {
                    let pair = u8::try_from(pair).unwrap_or(0);
                    port.flows().note(examined.flow(), pair);
                }
            }
        }
        match verdict {
            Verdict::Queue(list) => self.plan.add(list, frames),
            Verdict::Port(to) => {
                let lost = self.plan.send(to, &self.frames, frames);
                if lost != 0 {
                    self.plan.give_up(to.id(), u64::from(lost.count_ones()));
                }
            }
            Verdict::Everybody => {
                for to in ports.iter().filter(|to| to.id() != port.id()) {
                    self.plan.send(to, &self.frames, frames);
                }
            }
            Verdict::Dropped(reason) | Verdict::Refused(reason) => drops.add(reason, count),
        }
        0
    }
}

/// What was found in a burst. Sets of frames have one bit for each.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    /// Frames that are in order.
    good: u64,
    /// Those of them that are in no train.
    alone: u64,
    /// The bytes of the good ones.
    bytes: u64,
}

/// The frame of this number, in a set of frames of a burst.
#[inline]
fn bit(number: usize) -> u64 {
    1 << (number % BURST)
}

/// The numbers of the frames in a set, in their order.
#[inline]
fn numbers(frames: u64) -> impl Iterator<Item = usize> {
    let mut left = frames;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let number = left.trailing_zeros() as usize;
        left &= left - 1;
        Some(number)
    })
}

const _: () = assert!(BURST == 64, "a burst's frames are the bits of a word");
