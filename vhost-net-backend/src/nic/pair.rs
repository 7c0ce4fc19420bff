//! One queue pair: its two rings, its wire, and what a worker does with them in one turn.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, Timespec, epoll};
use virtio::burst::{Burst, Chain};
use virtio::memory::{MemoryMap, read_chain};
use virtio::net::{HEADER_LEN, NetHeader};
use virtio::split::QueueError;

use super::counters::Counters;
use super::receiver::Receiver;
use super::turn::Turn;
use crate::plane::Ring;
use crate::wire::{Sent, Wire};

/// The longest frame, without its header: a super-frame of 64 KiB and its Ethernet and VLAN headers.
pub const MAX_FRAME: usize = 65535 + 18;
/// The shortest: an Ethernet header.
const MIN_FRAME: usize = 14;
/// Chains that a frame may be spread over.
const CHAINS: usize = 256;
/// Transmitted frames taken at a time.
const TX_BURST: usize = 64;
/// How long a ring without a kick may wait to be looked at.
const POLL_NS: i64 = 500_000;

const WAKE: u64 = 0;
const KICK: u64 = 1;
const WIRE: u64 = 2;

/// Which of a pair's two rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The guest receives.
    Rx,
    /// The guest transmits.
    Tx,
}

/// Everything a turn needs, behind the pair's lock.
pub(super) struct State {
    pub(super) wire: Box<dyn Wire>,
    rx: Option<Ring>,
    tx: Option<Ring>,
    /// Next available indices of rings that broke: the session still asks for them.
    broken: [Option<u16>; 2],
    rx_burst: Burst,
    tx_burst: Burst,
    acked: u64,
    /// The wire had no room for a frame.
    full: bool,
    /// Receive buffers that were there when a frame last needed more.
    rx_short: usize,
}

/// How long a worker may sleep.
enum Sleep {
    /// There is work.
    No,
    /// Until something happens.
    Event,
    /// Not long: a ring without kicks has to be looked at.
    Poll,
}

/// A queue pair and how to wake its worker.
pub(super) struct Pair {
    state: Turn<State>,
    epoll: OwnedFd,
    wake: OwnedFd,
    stop: AtomicBool,
    pub(super) counters: Counters,
    mtu: Option<u16>,
}

impl Pair {
    pub(super) fn new(wire: Box<dyn Wire>, mtu: Option<u16>) -> io::Result<Arc<Self>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), edge)?;
        for fd in wire.descriptors() {
            epoll::add(
                &epoll,
                fd,
                epoll::EventData::new_u64(WIRE),
                edge | epoll::EventFlags::OUT,
            )?;
        }
        let state = State {
            wire,
            rx: None,
            tx: None,
            broken: [None; 2],
            rx_burst: Burst::with_capacity(CHAINS),
            tx_burst: Burst::with_capacity(TX_BURST),
            acked: 0,
            full: false,
            rx_short: 0,
        };
        Ok(Arc::new(Self {
            state: Turn::new(state),
            epoll,
            wake,
            stop: AtomicBool::new(false),
            counters: Counters::default(),
            mtu,
        }))
    }

    /// Change the state while the worker is between two turns, then wake it.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut self.state.lock());
        self.wake();
        result
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    /// Watch a ring's kick from its start on.
    pub(super) fn start(&self, state: &mut State, side: Side, ring: Ring) {
        if let Some(kick) = &ring.kick {
            let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
            if let Err(error) = epoll::add(&self.epoll, kick, epoll::EventData::new_u64(KICK), edge) {
                tracing::warn!("a ring's kicks cannot be watched: {error}");
            }
        }
        state.broken[side as usize] = None;
        if side == Side::Rx && ring.enabled {
            state.enable_wire(true);
        }
        *state.ring(side) = Some(ring);
    }

    /// Take a ring away from the worker; its next available index.
    pub(super) fn end(&self, state: &mut State, side: Side) -> u16 {
        if side == Side::Rx {
            state.enable_wire(false);
        }
        let ring = state.ring(side).take();
        let gone = state.broken[side as usize].take();
        state.rx_burst.release();
        state.tx_burst.release();
        ring.map_or(gone.unwrap_or(0), |ring| {
            self.forget(&ring);
            ring.queue.next_avail()
        })
    }

    /// The front-end keeps the eventfd open, so closing ours alone would leave it watched.
    fn forget(&self, ring: &Ring) {
        if let Some(kick) = &ring.kick {
            let _ = epoll::delete(&self.epoll, kick.as_fd());
        }
    }

    /// Serve the pair until it is stopped.
    pub(super) fn run(&self) {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 8];
        while !self.stop.load(Ordering::Acquire) {
            let mut state = self.state.lock();
            let busy = self.turn(&mut state);
            let sleep = if busy { Sleep::No } else { state.sleep() };
            drop(state);
            let time = match sleep {
                Sleep::No => continue,
                Sleep::Event => None,
                Sleep::Poll => Some(Timespec {
                    tv_sec: 0,
                    tv_nsec: POLL_NS,
                }),
            };
            match epoll::wait(&self.epoll, &mut events, time.as_ref()) {
                Ok((news, _)) => {
                    if news.iter().any(|event| event.data.u64() == WIRE) {
                        let mut state = self.state.lock();
                        state.full = false;
                        state.wire.event();
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!("worker stopped: cannot wait for events: {error}");
                    return;
                }
            }
        }
    }

    /// Move a burst each way. True when there was anything to move.
    fn turn(&self, state: &mut State) -> bool {
        let sent = self.transmit(state);
        let received = self.receive(state);
        sent | received
    }

    fn transmit(&self, state: &mut State) -> bool {
        let State {
            wire,
            tx: Some(ring),
            tx_burst,
            full,
            acked,
            ..
        } = state
        else {
            return false;
        };
        if *full && ring.enabled {
            return false;
        }
        ring.queue.disable_notification();
        let count = match ring.queue.pop_burst(tx_burst, TX_BURST) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => {
                tracing::warn!("transmit ring stopped: {error}");
                self.break_ring(state, Side::Tx);
                return true;
            }
        };
        let mut done = 0;
        for chain in tx_burst.chains() {
            if !ring.enabled {
                self.counters.tx_discarded();
            } else if let Some((header, len)) = self.frame(&chain, *acked) {
                match wire.send(&header, chain.readable, HEADER_LEN) {
                    Sent::Done => self.counters.tx_frame(len),
                    Sent::Refused => self.counters.tx_refused(),
                    Sent::Full => {
                        *full = true;
                        break;
                    }
                }
            } else {
                self.counters.tx_malformed();
            }
            ring.queue.add_used([(chain.head, 0)]);
            done += 1;
        }
        ring.queue.unpop(u16::try_from(count - done).unwrap_or(0));
        tx_burst.release();
        wire.flush();
        if ring.queue.publish() {
            ring.notify();
        }
        done > 0
    }

    /// The header and length of a frame that may leave.
    fn frame(&self, chain: &Chain<'_>, acked: u64) -> Option<(NetHeader, usize)> {
        let len = (chain.readable_len as usize).checked_sub(HEADER_LEN)?;
        if chain.error.is_some() || !chain.writable.is_empty() || !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            return None;
        }
        let mut bytes = [0u8; HEADER_LEN];
        if read_chain(chain.readable, 0, &mut bytes) != HEADER_LEN {
            return None;
        }
        let header = NetHeader::from_bytes(&bytes).validate_tx(len, acked).ok()?;
        // The MTU says nothing of Ethernet and VLAN headers, nor of super-frames.
        let longest = self.mtu.map_or(MAX_FRAME, |mtu| usize::from(mtu) + 18);
        (header.gso_type != virtio::net::GSO_NONE || len <= longest).then_some((header, len))
    }

    fn receive(&self, state: &mut State) -> bool {
        let State {
            wire,
            rx: Some(ring),
            rx_burst,
            rx_short,
            acked,
            ..
        } = state
        else {
            return false;
        };
        if !ring.enabled || !wire.is_ready() {
            return false;
        }
        ring.queue.disable_notification();
        let mut receiver = Receiver::new(ring, rx_burst, *acked, &self.counters);
        wire.receive(&mut receiver);
        let (broken, moved) = (receiver.is_broken(), receiver.moved());
        *rx_short = receiver.short().unwrap_or(0);
        drop(receiver);
        if broken {
            self.break_ring(state, Side::Rx);
        }
        moved || broken
    }

    /// Serve the ring no more and tell the front-end.
    fn break_ring(&self, state: &mut State, side: Side) {
        self.counters.broken_ring();
        if let Some(ring) = state.ring(side).take() {
            ring.fail();
            self.forget(&ring);
            state.broken[side as usize] = Some(ring.queue.next_avail());
        }
    }
}

impl State {
    fn ring(&mut self, side: Side) -> &mut Option<Ring> {
        match side {
            Side::Rx => &mut self.rx,
            Side::Tx => &mut self.tx,
        }
    }

    fn enable_wire(&mut self, enabled: bool) {
        if let Err(error) = self.wire.set_enabled(enabled) {
            tracing::warn!("the wire cannot be switched: {error}");
        }
    }

    pub(super) fn enable(&mut self, side: Side, enabled: bool) {
        if let Some(ring) = self.ring(side) {
            ring.enabled = enabled;
            if side == Side::Rx {
                self.enable_wire(enabled);
            }
        }
    }

    pub(super) fn set_call(&mut self, side: Side, call: Option<crate::eventfd::Call>) {
        if let Some(ring) = self.ring(side) {
            ring.call = call;
        }
    }

    pub(super) fn set_features(&mut self, acked: u64) {
        self.acked = acked;
        if let Err(error) = self.wire.features_acked(acked) {
            tracing::warn!("the wire cannot follow the driver's features: {error}");
        }
    }

    pub(super) fn set_memory(&mut self, memory: &Arc<MemoryMap>) -> Result<(), QueueError> {
        self.rx_burst.release();
        self.tx_burst.release();
        for ring in [&mut self.rx, &mut self.tx].into_iter().flatten() {
            ring.queue.set_memory(Arc::clone(memory))?;
        }
        Ok(())
    }

    /// Ask for notifications and look once more.
    fn sleep(&mut self) -> Sleep {
        let mut polled = false;
        if let Some(tx) = &mut self.tx {
            polled |= tx.kick.is_none();
            // A full wire says when it has room; the ring's news would only wake us for nothing.
            if (!self.full || !tx.enabled) && tx.queue.enable_notification() {
                return Sleep::No;
            }
        }
        if let Some(rx) = &mut self.rx
            && rx.enabled
            && self.wire.is_ready()
        {
            polled |= rx.kick.is_none();
            // The frame at hand needs more buffers than there are: notifications are wanted from the end of those
            // on, so they are taken and put back.
            let capacity = self.rx_burst.capacity();
            let there = rx.queue.pop_burst(&mut self.rx_burst, capacity).unwrap_or(0);
            let more = rx.queue.enable_notification();
            rx.queue.unpop(u16::try_from(there).unwrap_or(0));
            self.rx_burst.release();
            if more || there != self.rx_short {
                return Sleep::No;
            }
        }
        if polled { Sleep::Poll } else { Sleep::Event }
    }
}
