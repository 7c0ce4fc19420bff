//! What becomes of the frames between two addresses.
//!
//! Frames come in trains: what was found out for one, a moment ago, holds for the next between the same addresses. So each
//! burst asks the forwarding database once for each pair of addresses, as far as there is room to remember the answers.

use super::examine::Examined;
use super::plan::Plan;
use crate::bridge::{Bridge, PortTable};
use crate::counters::DropReason;
use crate::fdb::Learned;
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
    known: [Train<'p>; REMEMBERED],
}

/// Frames of the burst between the same two addresses, and what was found out about them.
#[derive(Clone, Copy)]
pub(super) struct Train<'p> {
    addresses: (u64, u32),
    pub(super) verdict: Verdict<'p>,
    /// One bit for each frame.
    pub(super) frames: u64,
}

impl<'p> Trains<'p> {
    pub(super) fn new(bridge: &'p Bridge, ports: &'p PortTable, from: &'p Port) -> Self {
        Self {
            bridge,
            ports,
            from,
            now: bridge.clock().now(),
            learned: None,
            // True, too: nobody may send from the address of all zeros.
            known: [Train {
                addresses: (0, 0),
                verdict: Verdict::Refused(DropReason::BadSource),
                frames: 0,
            }; REMEMBERED],
        }
    }

    /// Adds frame number `number` of the burst to its train; returns one that had to make room for it.
    #[inline]
    pub(super) fn join(&mut self, examined: &Examined, number: usize, plan: &mut Plan) -> Option<Train<'p>> {
        let addresses = examined.addresses();
        let frame = 1 << (number % 64);
        let place = place(addresses);
        if self.known[place].addresses == addresses {
            self.known[place].frames |= frame;
            return None;
        }
        let train = Train {
            addresses,
            verdict: self.decide(examined, plan),
            frames: frame,
        };
        let before = std::mem::replace(&mut self.known[place], train);
        (before.frames != 0).then_some(before)
    }

    /// The trains that are left.
    pub(super) fn into_trains(self) -> impl Iterator<Item = Train<'p>> {
        self.known.into_iter().filter(|train| train.frames != 0)
    }

    fn decide(&mut self, examined: &Examined, plan: &mut Plan) -> Verdict<'p> {
        let Some(Frame { destination, source }) = examined.frame() else {
            return Verdict::Refused(DropReason::Runt);
        };
        if !source.is_valid_source() {
            return Verdict::Refused(DropReason::BadSource);
        }
        if !self.from.settings().may_send_from(source) {
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

/// Where a pair of addresses is remembered: by the last octets of both, in which neighbours differ.
#[inline]
fn place((first, last): (u64, u32)) -> usize {
    let ([.., destination, _, _], [.., source]) = (first.to_le_bytes(), last.to_le_bytes());
    usize::from(destination ^ source) % REMEMBERED
}
