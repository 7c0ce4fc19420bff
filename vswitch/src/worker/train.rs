//! What becomes of the frames between two addresses.
//!
//! Frames come in trains: what was found out for one, a moment ago, holds for the next between the same addresses. So each
//! burst asks the forwarding database once for each pair of addresses, as far as there is room to remember the answers.

use super::examine::Examined;
use super::plan::Plan;
use crate::bridge::{Bridge, PortTable};
use crate::counters::DropReason;
use crate::fdb::{Fdb, Learned};
use crate::frame::Frame;
use crate::mac::MacAddr;
use crate::port::Port;

/// Pairs of addresses remembered during a burst: a power of two.
const REMEMBERED: usize = 8;

/// What becomes of a frame.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verdict<'p> {
    /// It goes on this list of the plan.
    Queue(usize),
    /// It goes to a queue of this port that its flow decides on.
    Port(&'p Port),
    /// It goes to every other port.
    Everybody,
    /// It is counted as received, and dropped.
    Dropped(DropReason),
    /// No frame may have such addresses.
    Refused(DropReason),
}

/// The trains of one burst.
pub(super) struct Trains<'p> {
    bridge: &'p Bridge,
    ports: &'p PortTable,
    from: &'p Port,
    now: u32,
    /// The source learned last.
    learned: Option<MacAddr>,
    known: [Train; REMEMBERED],
    /// The addresses of the frame that joined last, and the place of its train.
    last: (u64, u32),
    last_place: usize,
}

/// Frames of the burst between the same two addresses.
#[derive(Debug, Clone, Copy, Default)]
struct Train {
    addresses: (u64, u32),
    /// One bit for each frame.
    frames: u64,
}

impl<'p> Trains<'p> {
    pub(super) fn new(bridge: &'p Bridge, ports: &'p PortTable, from: &'p Port) -> Self {
        Self {
            bridge,
            ports,
            from,
            now: bridge.clock().now(),
            learned: None,
            known: [Train::default(); REMEMBERED],
            // Those of a train without frames.
            last: Train::default().addresses,
            last_place: place(Train::default().addresses),
        }
    }

    /// Adds frames of the burst, a bit each, that are like this one to their train; false if another one is in its place, and
    /// they go by themselves.
    #[inline]
    pub(super) fn join(&mut self, examined: &Examined, frames: u64) -> bool {
        let addresses = examined.addresses();
        if addresses == self.last {
            self.known[self.last_place % REMEMBERED].frames |= frames;
            return true;
        }
        self.join_other(examined, addresses, frames)
    }

    /// Adds frames that are not like those before.
    fn join_other(&mut self, examined: &Examined, addresses: (u64, u32), frames: u64) -> bool {
        let place = place(addresses);
        let train = &mut self.known[place];
        if train.addresses != addresses || train.frames == 0 {
            // What the database holds of them is on its way while the other frames are read.
            prefetch(self.bridge.fdb(), examined);
            if train.frames != 0 {
                return false;
            }
            train.addresses = addresses;
        }
        train.frames |= frames;
        (self.last, self.last_place) = (addresses, place);
        true
    }

    /// The frames of each train, one bit each.
    pub(super) fn frames(&self) -> [u64; REMEMBERED] {
        self.known.map(|train| train.frames)
    }

    /// What becomes of the frames between the addresses of this one.
    pub(super) fn decide(&mut self, examined: &Examined, plan: &mut Plan) -> Verdict<'p> {
        let Some(Frame { destination, source }) = examined.frame() else {
            return Verdict::Refused(DropReason::Runt);
        };
        if !source.is_valid_source() {
            return Verdict::Refused(DropReason::BadSource);
        }
        if !self.from.sources().allow(source) {
            return Verdict::Refused(DropReason::Spoofed);
        }
        if destination.is_bridge_reserved() {
            return Verdict::Refused(DropReason::ReservedGroup);
        }
        let fdb = self.bridge.fdb();
        if self.learned != Some(source) {
            if fdb.learn(source, 0, self.from.id(), self.now) == Learned::Refused {
                return Verdict::Dropped(DropReason::FdbFull);
            }
            self.learned = Some(source);
        }
        let to = if destination.is_multicast() {
            None
        } else {
            fdb.lookup(destination, 0, self.now)
                .and_then(|id| self.ports.get(id))
        };
        match to {
            Some(to) if to.id() == self.from.id() => Verdict::Dropped(DropReason::Hairpin),
            Some(to) if to.ready() == 1 => Verdict::Queue(plan.list(to.id(), 0)),
            Some(to) => Verdict::Port(to),
            None => Verdict::Everybody,
        }
    }
}

#[cold]
fn prefetch(fdb: &Fdb, examined: &Examined) {
    if let Some(Frame { destination, source }) = examined.frame() {
        fdb.prefetch(source, 0);
        fdb.prefetch(destination, 0);
    }
}

/// Where a pair of addresses is remembered: by the last octets of both, in which neighbours differ.
#[inline]
fn place((first, last): (u64, u32)) -> usize {
    let ([.., destination, _, _], [.., source]) = (first.to_le_bytes(), last.to_le_bytes());
    usize::from(destination ^ source) % REMEMBERED
}
