//! A device's own thread, which waits for file descriptors and stops when it is told to.

use std::io;
use std::os::fd::AsRawFd;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tracing::error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::fd;

/// What a thread waits for.
pub(crate) struct Poller {
    epoll: Epoll,
    stop: EventFd,
    events: [EpollEvent; Self::BATCH],
}

impl Poller {
    const BATCH: usize = 32;
    /// Stands for the order to stop.
    const STOP: u64 = u64::MAX;

    fn new(stop: EventFd) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let poller = Self {
            epoll,
            stop,
            events: [EpollEvent::default(); Self::BATCH],
        };
        poller.add(&poller.stop, Self::STOP, EventSet::IN)?;
        Ok(poller)
    }

    /// Waits for `interest` on `fd`, too; `token` says which it was. The token of all ones is taken.
    pub(crate) fn add(&self, fd: &impl AsRawFd, token: u64, interest: EventSet) -> io::Result<()> {
        self.epoll.ctl(
            ControlOperation::Add,
            fd.as_raw_fd(),
            EpollEvent::new(interest, token),
        )
    }

    /// Waits for something else on a descriptor that was added.
    pub(crate) fn change(&self, fd: &impl AsRawFd, token: u64, interest: EventSet) -> io::Result<()> {
        self.epoll.ctl(
            ControlOperation::Modify,
            fd.as_raw_fd(),
            EpollEvent::new(interest, token),
        )
    }

    /// Waits for a descriptor no longer.
    pub(crate) fn remove(&self, fd: &impl AsRawFd) -> io::Result<()> {
        self.epoll
            .ctl(ControlOperation::Delete, fd.as_raw_fd(), EpollEvent::default())
    }

    /// Waits, and returns what happened on which token; `None` when the thread shall stop.
    pub(crate) fn wait(&mut self) -> io::Result<Option<Vec<(u64, EventSet)>>> {
        let count = loop {
            match self.epoll.wait(-1, &mut self.events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        let events: Vec<_> = self.events[..count]
            .iter()
            .map(|e| (e.data(), e.event_set()))
            .collect();
        let stop = events.iter().any(|(token, _)| *token == Self::STOP);
        Ok((!stop).then_some(events))
    }

    /// Waits for nothing but the order to stop.
    pub(crate) fn wait_for_stop(self) {
        let Self { epoll, stop, .. } = self;
        drop(epoll);
        let mut fds = [PollFd::from_borrowed_fd(fd::borrow(&stop), PollFlags::IN)];
        while let Err(Errno::INTR) = poll(&mut fds, None) {}
    }
}

/// A running thread. Dropping this stops it and waits for its end.
#[derive(Debug)]
pub(crate) struct Worker {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts `run` in a thread called `name`. It has to return soon after its poller told it to stop.
    pub(crate) fn spawn(name: &str, run: impl FnOnce(Poller) + Send + 'static) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let poller = Poller::new(stop.try_clone()?)?;
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(poller))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Cannot fail: nobody else writes to it.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                error!(name, "device thread died");
            }
        }
    }
}
