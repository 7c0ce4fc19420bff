//! What a worker and the control plane share.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, epoll, eventfd};

use super::work::Work;
use crate::port::{IngressQueue, Port};
use crate::published::Published;

/// The number of the worker's own eventfd among what it waits for.
pub(super) const WAKE: u64 = u64::MAX;

/// A queue in a worker's care.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) port: Arc<Port>,
    pub(super) pair: usize,
}

/// A worker's queues, each in the place of its number.
pub(super) type Sources = Vec<Option<Source>>;

impl Source {
    pub(super) fn queue(&self) -> Option<&IngressQueue> {
        self.port.pairs().get(self.pair).map(|pair| &pair.ingress)
    }
}

/// A worker's handle for other threads.
#[derive(Debug)]
pub struct WorkerShared {
    number: usize,
    pub(super) epoll: OwnedFd,
    wake: OwnedFd,
    /// The queues, each in the place of its number.
    pub(super) sources: Arc<Published<Sources>>,
    stop: AtomicBool,
    work: Work,
    /// Held by the worker while it makes queues active.
    hold: Mutex<()>,
}

impl WorkerShared {
    pub(super) fn new(number: usize) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(
            &epoll,
            &wake,
            epoll::EventData::new_u64(WAKE),
            epoll::EventFlags::IN,
        )?;
        Ok(Self {
            number,
            epoll,
            wake,
            sources: Arc::default(),
            stop: AtomicBool::new(false),
            work: Work::default(),
            hold: Mutex::new(()),
        })
    }

    /// Which of the bridge's workers it is.
    pub fn number(&self) -> usize {
        self.number
    }

    pub(super) fn add(&self, port: &Arc<Port>, pair: usize) -> u64 {
        let source = Source {
            port: Arc::clone(port),
            pair,
        };
        // One control thread at a time adds and removes, so nothing is lost between load and store.
        let mut sources = Vec::clone(&self.sources.load());
        let place = sources.iter().position(Option::is_none).unwrap_or(sources.len());
        if place == sources.len() {
            sources.push(None);
        }
        sources[place] = Some(source);
        self.sources.store(sources);
        place as u64
    }

    /// Takes a queue away, by its number.
    pub(super) fn remove(&self, number: u64) {
        let mut sources = Vec::clone(&self.sources.load());
        let place = usize::try_from(number)
            .ok()
            .and_then(|number| sources.get_mut(number));
        if let Some(place) = place {
            *place = None;
        }
        self.sources.store(sources);
        self.wake();
    }

    /// Wakes the worker; it looks at the queues that want attention.
    pub fn wake(&self) {
        if let Err(error) = rustix::io::write(&self.wake, &1_u64.to_ne_bytes()) {
            tracing::debug!("the worker's eventfd is full: {error}");
        }
    }

    /// While this is held, the worker begins to serve no queue that it does not serve yet.
    pub(super) fn hold(&self) -> MutexGuard<'_, ()> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the worker did with its time since it started.
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// Watches an eventfd for kicks of the queue with this number.
    pub fn watch(&self, kick: &impl AsFd, number: u64) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(
            &self.epoll,
            kick,
            epoll::EventData::new_u64(number),
            flags,
        )?)
    }

    /// Ends a watch.
    pub fn unwatch(&self, kick: &impl AsFd) {
        if let Err(error) = epoll::delete(&self.epoll, kick) {
            tracing::debug!("a kick was not watched: {error}");
        }
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Takes back the worker's own wake-ups, before it looks at what they were for.
    pub(super) fn drain_wake(&self) {
        if let Err(error) = rustix::io::read(&self.wake, &mut [0; 8]) {
            tracing::trace!("no wake-up to take back: {error}");
        }
    }
}
