//! The thread that keeps the connection to the back-end: made when the VM wants frames, remade for ever.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use virtio::memory::{MemoryMap, SharedMemory};

use crate::eventfd::Call;

use super::handshake::{self, HandshakeError};
use super::queues::{PAIR, Queues, SIZE, config};
use super::{Slot, UserWire};

/// Where our memory is for the back-end. Not 0, so that a zeroed descriptor is never valid.
const BASE: u64 = 0x10_0000;
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// What the VM wants of the link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Wishes {
    features: u64,
    /// Pairs that receive, one bit each.
    enabled: u32,
}

/// The wishes, and how to tell the link thread of new ones.
#[derive(Debug)]
pub(crate) struct Wanted {
    wishes: Mutex<Wishes>,
    wake: OwnedFd,
    stopping: AtomicBool,
}

impl Wanted {
    fn lock(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    pub(super) fn set_features(&self, acked: u64) {
        self.lock().features = acked;
        self.wake();
    }

    pub(super) fn set_enabled(&self, pair: u16, enabled: bool) {
        let mut wishes = self.lock();
        let bit = 1 << pair;
        wishes.enabled = if enabled {
            wishes.enabled | bit
        } else {
            wishes.enabled & !bit
        };
        drop(wishes);
        self.wake();
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Sleep until there is news from the VM or from `peer`. True when it is from `peer`.
    fn sleep(&self, peer: Option<&UnixStream>, time: Option<Duration>) -> bool {
        let mut poll = vec![PollFd::new(&self.wake, PollFlags::IN)];
        if let Some(peer) = peer {
            // The back-end never speaks first: anything but silence is the end.
            poll.push(PollFd::new(peer, PollFlags::IN | PollFlags::RDHUP));
        }
        let time = time.map(|time| Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(time.subsec_nanos()),
        });
        let _ = rustix::event::poll(&mut poll, time.as_ref());
        let peer = poll.get(1).is_some_and(|peer| !peer.revents().is_empty());
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        peer
    }
}

/// A link to another back-end. Dropping it ends the connection.
#[derive(Debug)]
pub struct Link {
    wanted: Arc<Wanted>,
    up: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// Start the link thread; the wires are for the NIC's pairs. `changed` is told when the link goes up or down.
    pub fn start(
        path: PathBuf,
        pairs: u16,
        changed: impl Fn(bool) + Send + 'static,
    ) -> io::Result<(Self, Vec<UserWire>)> {
        let wanted = Arc::new(Wanted {
            wishes: Mutex::default(),
            wake: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stopping: AtomicBool::new(false),
        });
        let slots: Arc<[Arc<Slot>]> = (0..usize::from(pairs))
            .map(|pair| Slot::new(pair).map(Arc::new))
            .collect::<io::Result<_>>()?;
        let wires = slots.iter().zip(0..).map(|(slot, pair)| UserWire {
            slot: Arc::clone(slot),
            slots: Arc::clone(&slots),
            wanted: Arc::clone(&wanted),
            pair,
            acked: 0,
            ready: false,
        });
        let wires = wires.collect::<Vec<_>>();
        let up = Arc::new(AtomicBool::new(false));
        let keeper = Keeper {
            path,
            slots,
            wanted: Arc::clone(&wanted),
            up: Arc::clone(&up),
            changed,
        };
        let thread = std::thread::Builder::new()
            .name("link".into())
            .spawn(move || keeper.run())?;
        Ok((
            Self {
                wanted,
                up,
                thread: Some(thread),
            },
            wires,
        ))
    }

    /// Whether the back-end is connected and its rings run.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.wanted.stopping.store(true, Ordering::Release);
        self.wanted.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Keeper<F> {
    path: PathBuf,
    slots: Arc<[Arc<Slot>]>,
    wanted: Arc<Wanted>,
    up: Arc<AtomicBool>,
    changed: F,
}

/// A connection whose rings run.
struct Running {
    frontend: Frontend,
    stream: UnixStream,
    wishes: Wishes,
    /// Queue pairs of the back-end in use.
    pairs: usize,
}

impl<F: Fn(bool)> Keeper<F> {
    fn run(self) {
        let mut pause = SHORTEST_PAUSE;
        let mut said = String::new();
        while !self.wanted.stopping() {
            let wishes = *self.wanted.lock();
            if wishes.enabled == 0 {
                self.wanted.sleep(None, None);
                continue;
            }
            match self.connect(wishes) {
                Ok(running) => {
                    tracing::info!(path = %self.path.display(), "linked to the back-end");
                    (pause, said) = (SHORTEST_PAUSE, String::new());
                    self.set(true);
                    self.serve(running);
                    self.set(false);
                }
                Err(error) => {
                    // Once for each reason, not for each attempt.
                    let text = error.to_string();
                    if text != said {
                        tracing::warn!(path = %self.path.display(), "no link: {text}");
                        said = text;
                    }
                    self.wanted.sleep(None, Some(pause));
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            self.slots.iter().for_each(|slot| slot.set(None));
        }
    }

    fn set(&self, up: bool) {
        self.up.store(up, Ordering::Release);
        (self.changed)(up);
    }

    fn connect(&self, wishes: Wishes) -> Result<Running, HandshakeError> {
        let stream = crate::session::connect(&self.path)?;
        let watch = stream.try_clone()?;
        handshake::bounded(&watch, || self.start(stream, wishes))
    }

    /// The whole handshake: afterwards the wires have their rings.
    fn start(&self, stream: UnixStream, wishes: Wishes) -> Result<Running, HandshakeError> {
        let watch = stream.try_clone()?;
        let handshake::Greeted { mut frontend, offer } = handshake::greet(stream)?;
        let pairs = usize::try_from(offer.pairs)
            .unwrap_or(usize::MAX)
            .min(self.slots.len());
        if pairs == 0 {
            return Err(HandshakeError::NoPairs);
        }
        let features = handshake::features(&offer, wishes.features);
        frontend.set_features(features)?;
        let memory = SharedMemory::new("virtio-user", BASE, pairs as u64 * PAIR)?;
        handshake::share(&frontend, &memory)?;
        let map = Arc::new(MemoryMap::new(vec![Arc::clone(memory.region())])?);
        for (at, slot) in self.slots.iter().enumerate() {
            slot.carrier.store(at % pairs, Ordering::Release);
            slot.shared
                .store(at + pairs < self.slots.len(), Ordering::Release);
        }
        for (slot, pair) in self.slots.iter().take(pairs).zip(0u16..) {
            let base = BASE + u64::from(pair) * PAIR;
            // The rings are built before the back-end sees them.
            let kicks = [Call::create()?, Call::create()?];
            let events = [kicks[0].to_event_fd()?, kicks[1].to_event_fd()?];
            let queues = Queues::new(Arc::clone(&map), base, features, kicks)?;
            for (side, event) in events.iter().enumerate() {
                let index = usize::from(pair) * 2 + side;
                let at = config(base, side == 1, features);
                frontend.set_vring_num(index, SIZE)?;
                frontend.set_vring_base(index, 0)?;
                frontend.set_vring_addr(
                    index,
                    &VringConfigData {
                        queue_max_size: SIZE,
                        queue_size: SIZE,
                        flags: 0,
                        desc_table_addr: at.desc,
                        used_ring_addr: at.used,
                        avail_ring_addr: at.avail,
                        log_addr: None,
                    },
                )?;
                frontend.set_vring_call(index, &slot.event.to_event_fd()?)?;
                frontend.set_vring_kick(index, event)?;
                frontend.set_vring_enable(index, wishes.enabled & (1 << pair) != 0)?;
                // Whatever was lent before the back-end began to watch.
                event.write(1)?;
            }
            slot.set(Some(queues));
        }
        // Their frames find rings now.
        self.slots.iter().skip(pairs).for_each(|slot| slot.event.signal());
        Ok(Running {
            frontend,
            stream: watch,
            wishes,
            pairs,
        })
    }

    /// Follow the VM's wishes until the connection ends or another one is needed.
    fn serve(&self, mut running: Running) {
        loop {
            let broken = self
                .slots
                .iter()
                .any(|slot| slot.lock().as_ref().is_some_and(Queues::is_broken));
            if self.wanted.stopping() || broken {
                return;
            }
            let wishes = *self.wanted.lock();
            if wishes.features != running.wishes.features || wishes.enabled == 0 {
                return;
            }
            if wishes.enabled != running.wishes.enabled {
                let watch = &running.stream;
                let changed = wishes.enabled ^ running.wishes.enabled;
                let frontend = &mut running.frontend;
                let told = handshake::bounded(watch, || {
                    (0..running.pairs * 2)
                        .filter(|index| changed & (1 << (index / 2)) != 0)
                        .try_for_each(|index| {
                            frontend.set_vring_enable(index, wishes.enabled & (1 << (index / 2)) != 0)
                        })
                });
                if told.is_err() {
                    return;
                }
                running.wishes = wishes;
                continue;
            }
            if self.wanted.sleep(Some(&running.stream), None) {
                tracing::warn!(path = %self.path.display(), "the back-end is gone");
                return;
            }
        }
    }
}
