//! Where the frames of one burst go.

use super::examine::Examined;
use super::wanted::chosen;
use crate::port::{Port, STEERED};
use crate::port_id::{MAX_PORTS, PortId};

/// Queue pairs that a port can have, rounded up to a power of two.
const PAIRS: usize = 16;
/// No list yet.
const NONE: u16 = u16::MAX;

/// The frames of a burst, one bit each, that go to one receive queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Egress {
    pub(super) port: PortId,
    pub(super) pair: u8,
    pub(super) frames: u64,
}

/// The burst's frames, grouped by the queue they go to, so that each queue is visited once.
#[derive(Debug)]
pub(super) struct Plan {
    lists: Vec<Egress>,
    /// Place in `lists` of every queue pair of every port.
    places: Box<[u16]>,
    /// Frames whose receiver cannot receive, by port.
    undeliverable: Vec<(PortId, u64)>,
}

impl Plan {
    pub(super) fn new() -> Self {
        Self {
            lists: Vec::with_capacity(64),
            places: vec![NONE; MAX_PORTS * PAIRS].into_boxed_slice(),
            undeliverable: Vec::with_capacity(64),
        }
    }

    pub(super) fn clear(&mut self) {
        for list in self.lists.drain(..) {
            self.places[place(list.port, list.pair)] = NONE;
        }
        self.undeliverable.clear();
    }

    /// Sends frames of the burst, a bit each, to `port`, whichever queue each belongs to; returns those that it cannot receive.
    #[inline]
    pub(super) fn send(&mut self, port: &Port, all: &[Examined], frames: u64) -> u64 {
        let ready = port.ready();
        match ready {
            0 => frames,
            1 => {
                let list = self.list(port.id(), 0);
                self.add(list, frames);
                0
            }
            _ if ready & STEERED != 0 => {
                let steering = port.wishes().steering();
                let pair = |frame: &Examined| chosen(steering.as_deref(), frame, ready & !STEERED);
                self.spread(port, all, frames, pair)
            }
            _ => self.spread(port, all, frames, |frame| {
                port.flows().choose(frame.flow(), ready)
            }),
        }
    }

    /// Sends each frame to the queue pair that `pair` gives for it; returns those for which it gives none.
    fn spread(
        &mut self,
        port: &Port,
        all: &[Examined],
        frames: u64,
        pair: impl Fn(&Examined) -> Option<u8>,
    ) -> u64 {
        let (mut left, mut refused) = (frames, 0);
        while left != 0 {
            let number = left.trailing_zeros() as usize;
            let frame = left & left.wrapping_neg();
            left ^= frame;
            match all.get(number).and_then(&pair) {
                Some(pair) => {
                    let list = self.list(port.id(), pair);
                    self.add(list, frame);
                }
                None => refused |= frame,
            }
        }
        refused
    }

    /// The list of frames for a queue.
    #[inline]
    pub(super) fn list(&mut self, port: PortId, pair: u8) -> usize {
        let at = place(port, pair);
        if self.places[at] == NONE {
            // At most as many lists as queue pairs of all ports, which fits.
            self.places[at] = u16::try_from(self.lists.len()).unwrap_or(NONE - 1);
            self.lists.push(Egress {
                port,
                pair,
                frames: 0,
            });
        }
        usize::from(self.places[at])
    }

    /// Puts frames of the burst, a bit each, on a list.
    #[inline]
    pub(super) fn add(&mut self, list: usize, frames: u64) {
        if let Some(list) = self.lists.get_mut(list) {
            list.frames |= frames;
        }
    }

    /// Notes that frames for `port` had nowhere to go.
    #[cold]
    pub(super) fn give_up(&mut self, port: PortId, frames: u64) {
        match self.undeliverable.iter_mut().find(|(other, _)| *other == port) {
            Some((_, count)) => *count += frames,
            None => self.undeliverable.push((port, frames)),
        }
    }

    #[inline]
    pub(super) fn lists(&self) -> &[Egress] {
        &self.lists
    }

    /// Keeps some of a list's frames for another try.
    #[inline]
    pub(super) fn keep(&mut self, place: usize, frames: u64) {
        if let Some(list) = self.lists.get_mut(place) {
            list.frames = frames;
        }
    }

    pub(super) fn undeliverable(&self) -> &[(PortId, u64)] {
        &self.undeliverable
    }
}

#[inline]
fn place(port: PortId, pair: u8) -> usize {
    (port.index() % MAX_PORTS) * PAIRS + usize::from(pair) % PAIRS
}
