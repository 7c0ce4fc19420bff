//! The driver end of one pair: buffers in our own memory, lent to the back-end.

use std::sync::Arc;

use virtio::checksum::copy_completing;
use virtio::features as f;
use virtio::memory::{GuestSlice, MemoryMap, chain_len, copy_chain, read_chain};
use virtio::net::{HEADER_LEN, NetHeader};
use virtio::segment::{Completion, Segmenter};
use virtio::split::driver::{Buffer, DriverQueue};
use virtio::split::{QueueConfig, QueueError, RingLayout};

use super::fit::Fit;
use crate::eventfd::Call;
use crate::wire::Sent;

/// Entries of each ring.
pub(super) const SIZE: u16 = 256;
/// Bytes of each buffer: frames that are longer take several.
const CHUNK: u32 = 4096;
/// Bytes of memory for a ring and its buffers.
const SIDE: u64 = 0x4000 + SIZE as u64 * CHUNK as u64;
/// Bytes of memory for a pair.
pub(super) const PAIR: u64 = 2 * SIDE;

/// Where a ring of a pair is.
pub(super) fn config(base: u64, transmit: bool, features: u64) -> QueueConfig {
    let base = base + if transmit { SIDE } else { 0 };
    let layout = RingLayout::new(SIZE);
    QueueConfig {
        size: SIZE,
        desc: base + layout.desc,
        avail: base + layout.avail,
        used: base + layout.used,
        event_idx: features & virtio::features::RING_F_EVENT_IDX != 0,
        indirect: false,
        next_avail: 0,
        used_idx: 0,
    }
}

/// Both rings of a pair.
#[derive(Debug)]
pub(super) struct Queues {
    memory: Arc<MemoryMap>,
    /// What was negotiated with the back-end.
    features: u64,
    rx: DriverQueue,
    tx: DriverQueue,
    rx_kick: Call,
    tx_kick: Call,
    /// The back-end is to say when it has received frames.
    rx_armed: bool,
    /// The back-end is to say when it is done with transmitted ones.
    tx_armed: bool,
    /// Transmit buffers that nobody uses.
    free: Vec<u64>,
    /// For the first buffer of a chain (by number), all its buffers.
    chains: Vec<Vec<u64>>,
    tx_base: u64,
    /// Buffers of the frame that was received but not delivered yet.
    held: Vec<(u64, u32)>,
    /// Receive buffers to be lent again.
    idle: Vec<u64>,
    /// The back-end broke a ring: nothing moves until it is connected anew.
    broken: bool,
}

/// A received frame, in its buffers.
#[derive(Debug)]
pub(super) struct Frame {
    memory: Arc<MemoryMap>,
    parts: Vec<(u64, u32)>,
    pub(super) header: NetHeader,
    /// Without the header.
    pub(super) len: usize,
}

impl Frame {
    /// The frame's segments, and where in them it begins.
    pub(super) fn bytes(&self) -> (Vec<GuestSlice<'_>>, usize) {
        (segments(&self.memory, &self.parts), HEADER_LEN)
    }
}

/// Buffers for a frame of `len` bytes with its header.
fn buffers_for(len: usize) -> usize {
    (HEADER_LEN + len).div_ceil(CHUNK as usize)
}

fn segments<'m>(memory: &'m MemoryMap, parts: &[(u64, u32)]) -> Vec<GuestSlice<'m>> {
    parts
        .iter()
        .filter_map(|(addr, len)| memory.slice(*addr, *len as usize))
        .collect()
}

impl Queues {
    /// Build both rings in zeroed memory at `base` and lend all receive buffers.
    pub(super) fn new(
        memory: Arc<MemoryMap>,
        base: u64,
        features: u64,
        kicks: [Call; 2],
    ) -> Result<Self, QueueError> {
        let buffers = |side: u64| {
            let first = base + side + 0x4000;
            (0..u64::from(SIZE)).map(move |at| first + at * u64::from(CHUNK))
        };
        let [rx_kick, tx_kick] = kicks;
        let mut queues = Self {
            rx: DriverQueue::new(Arc::clone(&memory), &config(base, false, features), None)?,
            tx: DriverQueue::new(Arc::clone(&memory), &config(base, true, features), None)?,
            memory,
            features,
            rx_kick,
            tx_kick,
            rx_armed: true,
            tx_armed: false,
            free: buffers(SIDE).collect(),
            chains: vec![Vec::new(); usize::from(SIZE)],
            tx_base: base + SIDE + 0x4000,
            held: Vec::new(),
            idle: buffers(0).collect(),
            broken: false,
        };
        if features & f::IN_ORDER != 0 {
            queues.rx.set_in_order();
            queues.tx.set_in_order();
        }
        queues.tx.disable_interrupts();
        queues.repost();
        Ok(queues)
    }

    fn number(&self, addr: u64) -> usize {
        usize::try_from((addr - self.tx_base) / u64::from(CHUNK)).unwrap_or(0)
    }

    /// Take back transmit buffers that the back-end is done with.
    fn reap(&mut self) {
        loop {
            match self.tx.pop_used() {
                Ok(Some((first, _))) => {
                    let number = self.number(first);
                    self.free.append(&mut self.chains[number]);
                }
                Ok(None) => break,
                Err(error) => {
                    self.fail(&error);
                    break;
                }
            }
        }
    }

    fn fail(&mut self, error: &dyn std::fmt::Display) {
        tracing::warn!("the back-end broke a ring: {error}; nothing moves on this pair until it reconnects");
        self.broken = true;
    }

    /// Copy a frame into buffers of ours, in a form that the back-end can take, and queue it.
    pub(super) fn send(&mut self, header: &NetHeader, chain: &[GuestSlice<'_>], off: usize) -> Sent {
        if self.broken {
            return Sent::Refused;
        }
        let len = chain_len(chain).saturating_sub(off);
        match Fit::of(header, self.features, chain, off, len) {
            Fit::Whole => self.send_one(header, len, |to| {
                copy_chain(chain, off, to, HEADER_LEN, len) == len
            }),
            Fit::Complete => self.send_one(&NetHeader::default(), len, |to| {
                let (start, offset) = (header.csum_start, header.csum_offset);
                copy_completing(chain, off, to, HEADER_LEN, len, start, offset)
            }),
            Fit::Segments(plan, completion) => self.send_segments(&plan, completion, chain, off),
            Fit::Never => Sent::Refused,
        }
    }

    fn send_one(
        &mut self,
        header: &NetHeader,
        len: usize,
        fill: impl FnOnce(&[GuestSlice<'_>]) -> bool,
    ) -> Sent {
        match self.reserve(buffers_for(len)) {
            Ok(()) => self.queue(header, len, fill),
            Err(sent) => sent,
        }
    }

    /// All frames of a super-frame, or none for now.
    fn send_segments(
        &mut self,
        plan: &Segmenter,
        completion: Completion,
        chain: &[GuestSlice<'_>],
        off: usize,
    ) -> Sent {
        let most = plan.count() * buffers_for(plan.max_frame_len());
        if most > usize::from(SIZE) {
            return Sent::Refused;
        }
        if let Err(sent) = self.reserve(most) {
            return sent;
        }
        let header = plan.net_header(completion);
        let mut frames = plan.frames(chain, off);
        while let Some(len) = frames.next_len() {
            let sent = self.queue(&header, len, |to| {
                frames.write_next(to, HEADER_LEN, completion).is_some()
            });
            if sent != Sent::Done {
                return sent;
            }
        }
        Sent::Done
    }

    /// See to it that `count` buffers are free.
    fn reserve(&mut self, count: usize) -> Result<(), Sent> {
        if self.free.len() < count {
            self.reap();
        }
        // The back-end says when it is done with some; if it was meanwhile, there is no need to wait.
        while self.free.len() < count {
            self.tx_armed = true;
            if !self.tx.enable_interrupts() {
                return Err(Sent::Full);
            }
            self.reap();
            if self.broken {
                return Err(Sent::Refused);
            }
        }
        if std::mem::take(&mut self.tx_armed) {
            self.tx.disable_interrupts();
        }
        Ok(())
    }

    /// Queue a frame of `len` bytes in free buffers, which `fill` puts there.
    fn queue(
        &mut self,
        header: &NetHeader,
        len: usize,
        fill: impl FnOnce(&[GuestSlice<'_>]) -> bool,
    ) -> Sent {
        let count = buffers_for(len);
        let mut left = HEADER_LEN + len;
        let mut parts = Vec::with_capacity(count);
        for addr in self.free.drain(self.free.len() - count..) {
            let part = left.min(CHUNK as usize);
            left -= part;
            parts.push((addr, u32::try_from(part).unwrap_or(CHUNK)));
        }
        let target = segments(&self.memory, &parts);
        virtio::memory::write_chain(&target, 0, &header.to_bytes());
        let filled = fill(&target);
        let list: Vec<Buffer> = parts.iter().map(|&(addr, len)| Buffer { addr, len }).collect();
        let addrs: Vec<u64> = parts.iter().map(|(addr, _)| *addr).collect();
        let first = addrs[0];
        // As many descriptors as buffers, so that a push cannot fail; but losing buffers would be worse than a frame.
        if !filled || self.tx.push(&list, &[], first).is_err() {
            self.free.extend(addrs);
            return Sent::Refused;
        }
        let number = self.number(first);
        self.chains[number] = addrs;
        Sent::Done
    }

    /// Show the back-end what was queued.
    pub(super) fn flush(&mut self) {
        if self.tx.publish() {
            self.tx_kick.signal();
        }
    }

    /// The frame that is next, which stays next until [`Queues::done`].
    pub(super) fn next_frame(&mut self) -> Option<Frame> {
        while !self.broken {
            if self.held.is_empty() && !self.take() {
                // Asleep from here on, unless something came while we looked.
                self.rx_armed = true;
                if self.broken || !self.rx.enable_interrupts() {
                    return None;
                }
                continue;
            }
            if std::mem::take(&mut self.rx_armed) {
                self.rx.disable_interrupts();
            }
            let list = segments(&self.memory, &self.held);
            let mut bytes = [0u8; HEADER_LEN];
            read_chain(&list, 0, &mut bytes);
            return Some(Frame {
                memory: Arc::clone(&self.memory),
                parts: self.held.clone(),
                header: NetHeader::from_bytes(&bytes),
                len: chain_len(&list) - HEADER_LEN,
            });
        }
        None
    }

    /// Take the buffers of one frame off the ring. False when there is none.
    fn take(&mut self) -> bool {
        let mut missing = 1;
        while missing > 0 {
            match self.rx.pop_used() {
                Ok(Some((addr, len))) => {
                    let first = self.held.is_empty();
                    self.held.push((addr, len));
                    if first {
                        let mut bytes = [0u8; HEADER_LEN];
                        read_chain(&segments(&self.memory, &self.held), 0, &mut bytes);
                        if (len as usize) < HEADER_LEN {
                            self.fail(&"a frame without a header");
                            return false;
                        }
                        if self.features & f::NET_F_MRG_RXBUF != 0 {
                            missing = usize::from(NetHeader::from_bytes(&bytes).num_buffers).max(1);
                        }
                    }
                    missing -= 1;
                }
                Ok(None) if self.held.is_empty() => return false,
                Ok(None) => {
                    self.fail(&"a frame whose last buffers are missing");
                    return false;
                }
                Err(error) => {
                    self.fail(&error);
                    return false;
                }
            }
        }
        true
    }

    /// The frame is delivered, or not wanted.
    pub(super) fn done(&mut self) {
        self.idle.extend(self.held.drain(..).map(|(addr, _)| addr));
    }

    /// Lend idle receive buffers to the back-end.
    pub(super) fn repost(&mut self) {
        while let Some(addr) = self.idle.pop() {
            if self.rx.push(&[], &[Buffer { addr, len: CHUNK }], addr).is_err() {
                self.idle.push(addr);
                break;
            }
        }
        if self.rx.publish() {
            self.rx_kick.signal();
        }
    }

    /// Throw away what came while nobody wanted it.
    pub(super) fn drain(&mut self) {
        for _ in 0..SIZE {
            self.done();
            if self.broken || !self.take() {
                break;
            }
        }
        self.done();
        self.repost();
    }

    /// Whether the back-end must be connected anew.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }
}
