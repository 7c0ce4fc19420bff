//! Delivering the frames of one burst, one receive queue after the other.

use std::sync::Arc;

use vhost_net_backend::tap::TapQueue;
use virtio::memory::GuestSlice;
use virtio::net::{GSO_NONE, HEADER_LEN};
use virtio::segment::{Completion, Segmenter};

use super::copy::{Receiver, hashed_header};
use super::deliver::{Forwarder, Sent};
use super::examine::Examined;
use super::plan::Egress;
use crate::bridge::PortTable;
use crate::counters::DropReason;
use crate::frame::MTU_OVERHEAD;
use crate::port::Port;

/// How often a receiver that ran out of buffers is tried again, as long as it takes frames each time.
const RETRIES: u32 = 8;
/// How long it is given each time: spins of a microsecond or two in all.
const PAUSE_SPINS: u32 = 32;

/// Which time a receive queue is visited for the same frames.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    First,
    Again,
    Last,
}

impl Forwarder {
    pub(super) fn deliver_all(&mut self, ports: &PortTable, sent: &Sent<'_>) {
        for &(id, count) in self.plan.undeliverable() {
            if let Some(port) = ports.get(id) {
                port.drops().add_shared(DropReason::LinkDown, count);
            }
        }
        let mut waiting = false;
        for place in 0..self.plan.lists().len() {
            let egress = self.plan.lists()[place];
            let left = match ports.get(egress.port) {
                Some(port) if port.is_tap() => {
                    self.deliver_to_tap(port, egress, sent);
                    0
                }
                Some(port) => self.deliver(port, egress, sent, Visit::First),
                None => 0,
            };
            self.plan.keep(place, left);
            waiting |= left != 0;
        }
        if waiting {
            self.retry(ports, sent);
        }
    }

    /// Gives receivers that are just taking frames a little time to make room. This is what slows a fast
    /// sender down to its receiver; one that takes nothing is not waited for, and its frames are dropped.
    #[cold]
    fn retry(&mut self, ports: &PortTable, sent: &Sent<'_>) {
        for attempt in 1..=RETRIES {
            self.notify();
            for _ in 0..PAUSE_SPINS {
                std::hint::spin_loop();
            }
            let visit = if attempt == RETRIES {
                Visit::Last
            } else {
                Visit::Again
            };
            let mut waiting = false;
            for place in 0..self.plan.lists().len() {
                let egress = self.plan.lists()[place];
                if egress.frames == 0 {
                    continue;
                }
                let left = ports
                    .get(egress.port)
                    .map_or(0, |port| self.deliver(port, egress, sent, visit));
                self.plan.keep(place, left);
                waiting |= left != 0;
            }
            if !waiting {
                break;
            }
        }
    }

    /// Delivers the burst's frames for one receive queue, under its gate; returns those to be tried again.
    fn deliver(&mut self, port: &Port, egress: Egress, sent: &Sent<'_>, visit: Visit) -> u64 {
        let Some(queue) = port
            .pairs()
            .get(usize::from(egress.pair))
            .map(|pair| &pair.egress)
        else {
            return 0;
        };
        let mut expected = egress.frames.count_ones();
        let Some(mut guard) = queue.ring.enter() else {
            port.drops()
                .add_shared(DropReason::QueueBusy, u64::from(expected));
            return 0;
        };
        let Some(ring) = guard.as_mut().filter(|ring| ring.state.is_open()) else {
            drop(guard);
            port.drops().add_shared(DropReason::LinkDown, u64::from(expected));
            return 0;
        };
        let counters = queue.counters();
        let mut left = egress.frames;
        let wishes = port.wishes();
        let mut steering = None;
        if wishes.any() {
            left = self.wanted(port, left, counters);
            expected = left.count_ones();
            steering = wishes.hashes().then(|| wishes.steering());
        }
        let mut receiver = Receiver::new(
            ring,
            &mut self.received,
            &mut self.used,
            &mut self.scratch,
            port,
            expected as usize,
        );
        let mut again = 0;
        loop {
            left = match &steering {
                None => receiver.deliver_whole(&self.frames, left, sent, |frame| frame.header_for(1)),
                Some(steering) => receiver.deliver_whole(&self.frames, left, sent, |frame| {
                    hashed_header(frame, steering.as_deref())
                }),
            };
            let number = left.trailing_zeros() as usize;
            let Some(frame) = self.frames.get(number) else {
                break;
            };
            let result = match &steering {
                None => receiver.deliver(frame, sent, number),
                Some(steering) => sent.with(number, |list| {
                    receiver.deliver_hashed(frame, list, steering.as_deref())
                }),
            };
            match result {
                Ok(()) => {}
                // What comes after it must not overtake it.
                Err(DropReason::NoBuffer) if visit != Visit::Last && receiver.is_whole(frame) => {
                    again = left;
                    break;
                }
                Err(reason) => counters.drops.add(reason, 1),
            }
            left &= left - 1;
        }
        let delivered = receiver.frames;
        counters.frames.add(delivered);
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
        if delivered > 0 {
            ring.stalled = false;
        } else if again != 0 && (ring.stalled || visit == Visit::Again) {
            ring.stalled = true;
            counters
                .drops
                .add(DropReason::NoBuffer, u64::from(again.count_ones()));
            again = 0;
        }
        again
    }

    /// Writes the burst's frames for one queue of an interface of the host, which takes every offload but
    /// perhaps UDP's segmentation.
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
            } else if frame.header.needed_to_receive() & !port.features() != 0 {
                let cut =
                    |list: &[GuestSlice<'_>]| segments_to_tap(frame, list, &tap, &mut self.scratch, limit);
                match sent.with(number, cut) {
                    Ok(count) => {
                        frames += count;
                        bytes += frame.len as u64;
                        continue;
                    }
                    Err(reason) => reason,
                }
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

/// Writes a super-frame as the frames it stands for; returns how many.
#[cold]
fn segments_to_tap(
    frame: &Examined,
    list: &[GuestSlice<'_>],
    tap: &TapQueue,
    scratch: &mut Vec<u8>,
    limit: usize,
) -> Result<u64, DropReason> {
    let segmenter = Segmenter::new(frame.snapshot(), &frame.header, frame.len)
        .map_err(|_| DropReason::OffloadUnsupported)?;
    if segmenter.max_frame_len() > limit {
        return Err(DropReason::Oversize);
    }
    let header = segmenter.net_header(Completion::Receiver).to_bytes();
    let mut pieces = segmenter.frames(list, HEADER_LEN);
    let mut count = 0;
    while let Some(len) = pieces.next_len() {
        scratch.clear();
        scratch.extend_from_slice(&header);
        scratch.resize(HEADER_LEN + len, 0);
        if pieces
            .write_next_to(&mut scratch[HEADER_LEN..], Completion::Receiver)
            .is_none()
        {
            return Err(DropReason::OffloadUnsupported);
        }
        match tap.write(scratch, &[], 0) {
            Ok(true) => count += 1,
            Ok(false) => return Err(DropReason::NoBuffer),
            Err(_) => return Err(DropReason::HostError),
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests;
