//! Running streams: one thread drives all ports, sending and receiving in turn.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use virtio::memory::GuestSlice;

use super::clock::Clock;
use super::frame::{self, Placed};
use super::outcome::{Outcome, as_f64};
use super::port::{AHEAD, Port, PortError};
use super::seen::{Seen, nanoseconds};
use super::stream::{Addresses, Destination, Stream};

/// Frames handed over at once by one queue pair.
const BURST: usize = 64;
/// How long nothing may arrive, after the back-end took the last frame, before what is missing counts as lost.
const QUIET: Duration = Duration::from_millis(50);
/// How long a back-end may take for the frames that it was given; in a network with a loop they never end.
const TAIL: Duration = Duration::from_secs(2);
/// For how many spins a generator that can neither send nor take anything leaves the rings alone.
const REST: u32 = 8;
/// How often ports are looked after.
const RETRY: Duration = Duration::from_millis(1);

/// A change of all rates in the middle of a run.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// When.
    pub at: Duration,
    /// What every rate is multiplied with.
    pub factor: f64,
}

/// What is run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What is sent.
    pub streams: Vec<Stream>,
    /// For how long, unless every stream reaches its limit before.
    pub duration: Duration,
    /// Ports that take no more than so many frames a second, like a slow guest.
    pub drains: Vec<(u16, f64)>,
    /// A change on the way.
    pub change: Option<Change>,
    /// Whether ports whose back-end goes away are connected again, and whether the run is watched.
    pub revive: bool,
}

impl Plan {
    /// `streams` for `duration`, with all ports taking whatever comes.
    pub fn new(streams: Vec<Stream>, duration: Duration) -> Self {
        Self {
            streams,
            duration,
            drains: Vec::new(),
            change: None,
            revive: false,
        }
    }

    /// Runs it.
    pub fn run(&self, ports: &mut [Port]) -> Result<Outcome, PortError> {
        self.run_with(ports, &mut |_, _| false)
    }

    /// Runs it and calls `watch` now and then with the time and whether all ports are connected; it ends the run by saying true.
    pub fn run_with(
        &self,
        ports: &mut [Port],
        watch: &mut dyn FnMut(Duration, bool) -> bool,
    ) -> Result<Outcome, PortError> {
        let mut senders = self.senders(ports)?;
        let mut drained = vec![0_u64; self.drains.len()];
        let flat_out = self.streams.iter().all(|stream| stream.rate.is_none());
        let clock = Clock::start();
        let mut seen = Seen::new(ports.len(), &self.streams);
        let (mut elapsed, mut waited) = (Duration::ZERO, Duration::ZERO);
        let mut looked = elapsed;
        while elapsed < self.duration {
            let (mut done, mut any) = (true, false);
            for sender in &mut senders {
                let turn = sender.send(&mut ports[sender.port], self, &clock)?;
                done &= turn.done;
                any |= turn.any;
            }
            any |= self.collect(&mut seen, ports, &mut drained, &clock, elapsed)?;
            let before = elapsed;
            elapsed = clock.last();
            if elapsed == before {
                elapsed = clock.read();
            }
            if done {
                break;
            }
            if !any {
                waited += elapsed.saturating_sub(before);
                if flat_out {
                    // Looking at the rings again takes their lines away from the back-end, which has yet to write to them.
                    (0..REST).for_each(|_| std::hint::spin_loop());
                }
            }
            if self.revive && elapsed > looked + RETRY {
                looked = elapsed;
                let up = self.revive_ports(ports, &mut senders)?;
                if watch(elapsed, up) {
                    break;
                }
            }
        }
        let last_sent = Instant::now();
        let mut last = last_sent;
        let mut taken = false;
        while (last.elapsed() < QUIET || !taken) && last_sent.elapsed() < TAIL {
            let mut any = 0;
            taken = true;
            for sender in &mut senders {
                taken &= sender.reclaim(&mut ports[sender.port])?;
            }
            for (number, port) in (0..).zip(&mut *ports) {
                any += seen.collect(number, port, usize::MAX, &clock)?;
            }
            if any > 0 {
                last = Instant::now();
            } else {
                std::thread::yield_now();
            }
        }
        let mut sent = vec![0; self.streams.len()];
        for sender in senders {
            for lane in sender.lanes {
                sent[lane.stream] = lane.sent;
                ports[sender.port].return_slots(sender.pair, lane.slots);
            }
        }
        let mut outcome = seen.outcome(&self.streams, &sent, elapsed, ports.len());
        outcome.waited = waited.as_secs_f64() / elapsed.as_secs_f64().max(1e-9);
        Ok(outcome)
    }

    /// Takes what has arrived; true if there was anything.
    fn collect(
        &self,
        seen: &mut Seen,
        ports: &mut [Port],
        drained: &mut [u64],
        clock: &Clock,
        elapsed: Duration,
    ) -> Result<bool, PortError> {
        let mut any = false;
        for (number, port) in (0_u16..).zip(ports) {
            let drain = self.drains.iter().position(|(slow, _)| *slow == number);
            let limit = drain.map_or(AHEAD, |at| {
                behind(
                    self.drains[at].1 * elapsed.as_secs_f64(),
                    drained[at],
                    BURST as u64,
                )
            });
            let taken = if limit == 0 {
                0
            } else {
                seen.collect(number, port, limit, clock)?
            };
            any |= taken > 0;
            if let Some(at) = drain {
                drained[at] += taken as u64;
            }
        }
        Ok(any)
    }

    /// Tries to connect the ports that are down; true when none is left.
    fn revive_ports(&self, ports: &mut [Port], senders: &mut [Sender]) -> Result<bool, PortError> {
        let mut up = true;
        for (number, port) in ports.iter_mut().enumerate() {
            if !port.is_down() {
                continue;
            }
            if !port.revive()? {
                up = false;
                continue;
            }
            for sender in senders.iter_mut().filter(|sender| sender.port == number) {
                sender.place(port, &self.streams)?;
            }
        }
        Ok(up)
    }

    fn senders(&self, ports: &mut [Port]) -> Result<Vec<Sender>, PortError> {
        let mut senders: Vec<Sender> = Vec::new();
        let mut next_pair = vec![0; ports.len()];
        for (index, stream) in self.streams.iter().enumerate() {
            let port = usize::from(stream.from);
            let pair = next_pair[port] % ports[port].pairs();
            next_pair[port] += 1;
            let lane = Lane {
                stream: index,
                slots: VecDeque::new(),
                enough: 1,
                sent: 0,
            };
            match senders
                .iter_mut()
                .find(|sender| sender.port == port && sender.pair == pair)
            {
                Some(sender) => sender.lanes.push(lane),
                None => senders.push(Sender {
                    port,
                    pair,
                    lanes: vec![lane],
                    owners: Vec::new(),
                    placed: Vec::new(),
                }),
            }
        }
        for sender in &mut senders {
            sender.place(&mut ports[sender.port], &self.streams)?;
        }
        Ok(senders)
    }

    /// How many frames of a stream at `rate` should have been sent by now.
    fn target(&self, rate: f64, elapsed: Duration) -> f64 {
        match self.change {
            Some(change) if elapsed > change.at => {
                rate * (change.at.as_secs_f64()
                    + change.factor * elapsed.saturating_sub(change.at).as_secs_f64())
            }
            _ => rate * elapsed.as_secs_f64(),
        }
    }
}

/// `streams` for `duration`.
pub fn run(ports: &mut [Port], streams: Vec<Stream>, duration: Duration) -> Result<Outcome, PortError> {
    Plan::new(streams, duration).run(ports)
}

/// Lets every port send a few frames, so that a learning switch knows where each is.
pub fn teach(ports: &mut [Port]) -> Result<(), PortError> {
    let streams = (0..ports.len()).map(|port| {
        let from = u16::try_from(port).unwrap_or(0);
        let mut stream = Stream::between(from, from, frame::SHORTEST);
        stream.to = Destination::Broadcast;
        stream.limit = Some(4);
        stream
    });
    run(ports, streams.collect(), Duration::from_secs(1)).map(drop)
}

/// How far `done` is behind `target`, but never more than `most`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the value is between 0 and a burst"
)]
fn behind(target: f64, done: u64, most: u64) -> usize {
    (target - as_f64(done)).clamp(0.0, as_f64(most)) as usize
}

/// What one queue pair of a port sends.
struct Sender {
    port: usize,
    pair: usize,
    lanes: Vec<Lane>,
    /// The lane that each slot belongs to, where there are several.
    owners: Vec<usize>,
    /// The frame that lies in each slot.
    placed: Vec<Placed>,
}

/// One stream's part of a queue pair.
struct Lane {
    stream: usize,
    /// Slots that the device does not have, the one that came back first to be sent first.
    slots: VecDeque<u16>,
    /// How many of them are worth a burst.
    enough: usize,
    sent: u64,
}

/// What came of a sender's turn.
struct Turn {
    /// Every stream has reached its limit.
    done: bool,
    /// Something was sent.
    any: bool,
}

impl Sender {
    /// Shares out the free slots among the streams and puts their frames into them.
    fn place(&mut self, port: &mut Port, streams: &[Stream]) -> Result<(), PortError> {
        let slots = port.take_slots(self.pair)?;
        let size = slots.last().map_or(0, |last| usize::from(*last) + 1);
        self.owners = vec![0; size];
        self.placed = vec![Placed::default(); size];
        let lanes = self.lanes.len();
        for (place, slot) in slots.iter().enumerate() {
            let owner = place % lanes;
            let stream = self.lanes[owner].stream;
            let Some(memory) = port.slot(self.pair, *slot) else {
                continue;
            };
            let template = streams[stream].template(place / lanes);
            self.owners[usize::from(*slot)] = owner;
            self.placed[usize::from(*slot)] =
                template.place(memory, u16::try_from(stream).unwrap_or(u16::MAX));
        }
        for (owner, lane) in self.lanes.iter_mut().enumerate() {
            lane.slots = slots.iter().skip(owner).step_by(lanes).copied().collect();
            lane.enough = (lane.slots.len() / 4).max(1);
        }
        Ok(())
    }

    /// Takes back the slots that the device is done with; true when it has none left.
    fn reclaim(&mut self, port: &mut Port) -> Result<bool, PortError> {
        let Self {
            lanes,
            owners,
            placed,
            pair,
            ..
        } = self;
        if let [lane] = &mut lanes[..] {
            // Nearly always there is only one.
            port.reclaim(*pair, |slot, memory| {
                if let Some(frame) = placed.get(usize::from(slot)) {
                    lane.slots.push_back(slot);
                    frame.expect_stamp(memory);
                }
            })?;
        } else {
            port.reclaim(*pair, |slot, memory| {
                let at = usize::from(slot);
                if let (Some(owner), Some(frame)) = (owners.get(at), placed.get(at)) {
                    lanes[*owner].slots.push_back(slot);
                    frame.expect_stamp(memory);
                }
            })?;
        }
        Ok(port.is_idle(*pair))
    }

    /// Sends what is due.
    fn send(&mut self, port: &mut Port, plan: &Plan, clock: &Clock) -> Result<Turn, PortError> {
        self.reclaim(port)?;
        let Self {
            pair, lanes, placed, ..
        } = self;
        let mut now = None;
        let share = (BURST / lanes.len()).max(1);
        let mut done = true;
        let mut any = false;
        for lane in lanes {
            let stream = &plan.streams[lane.stream];
            let left = stream
                .limit
                .map_or(u64::MAX, |limit| limit.saturating_sub(lane.sent));
            done &= left == 0;
            let due = match stream.rate {
                // Whole bursts: few frames at a time would cost both ends more for each.
                None => {
                    if lane.slots.len() < lane.enough.min(share) {
                        0
                    } else {
                        BURST
                    }
                }
                Some(rate) => {
                    let elapsed = *now.get_or_insert_with(|| clock.read());
                    behind(plan.target(rate, elapsed), lane.sent, BURST as u64)
                }
            };
            let due = due.min(share).min(lane.slots.len()).min(port.room(*pair));
            // As many slots are at hand, which fits.
            let due = usize::try_from((due as u64).min(left)).unwrap_or(due);
            if due == 0 {
                continue;
            }
            let sent_ns = nanoseconds(*now.get_or_insert_with(|| clock.read()));
            let mut number = lane.sent;
            lane.sent += port.push(*pair, lane.slots.drain(..due), |slot, memory| {
                // Sequence numbers wrap at 2³², so the mask leaves what fits.
                let sequence = u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0);
                number += 1;
                let frame = placed[usize::from(slot)];
                frame.stamp(memory, sequence, sent_ns);
                if let Some(addresses) = stream.addresses {
                    readdress(frame, memory, stream, addresses, sequence);
                }
                frame.len
            }) as u64;
            any = true;
        }
        if any {
            port.publish(*pair)?;
        }
        Ok(Turn { done, any })
    }
}

/// Gives a frame the addresses whose turn it is.
fn readdress(frame: Placed, memory: GuestSlice<'_>, stream: &Stream, addresses: Addresses, sequence: u32) {
    let turn = sequence % addresses.count.max(1);
    let [source, destination] = [
        (addresses.sources, frame::mac(stream.from)),
        (addresses.destinations, receiver(stream)),
    ]
    .map(|(first, own)| first.map_or(own, |first| frame::extra_mac(first.wrapping_add(turn))));
    frame.readdress(memory, source, destination);
}

fn receiver(stream: &Stream) -> [u8; 6] {
    match stream.to {
        Destination::Port(port) => frame::mac(port),
        Destination::Broadcast => [0xff; 6],
    }
}
