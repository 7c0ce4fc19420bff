//! A device's own thread, which waits for file descriptors, keeps still while it is held, and ends when it is told to.
//!
//! ```text
//!   running ──hold──► held ──release──► running ──drop──► ended
//!                       └──────────────drop──────────────►
//! ```

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tracing::error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::fd;

/// What a thread shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Run,
    Hold,
    End,
}

#[derive(Debug)]
struct State {
    order: Order,
    /// The thread is held, or has ended.
    still: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    wake: EventFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, order: Order) {
        self.lock().order = order;
        // Cannot fail: the thread reads it whenever it is there.
        let _ = self.wake.write(1);
        self.changed.notify_all();
    }

    fn be_still(&self, state: &mut State) {
        state.still = true;
        self.changed.notify_all();
    }
}

/// The thread's end of its [`Worker`].
#[derive(Debug)]
pub(crate) struct Orders(Arc<Shared>);

impl Orders {
    /// Readable when there is an order.
    pub(crate) fn wake(&self) -> &EventFd {
        &self.0.wake
    }

    /// True if there is an order other than to run on.
    pub(crate) fn pending(&self) -> bool {
        self.0.lock().order != Order::Run
    }

    /// Obeys the order if there is one: keeps still for as long as the thread is held. True if it shall end. Before
    /// this the thread has to let go of the queues.
    pub(crate) fn obey(&self) -> bool {
        let _ = self.0.wake.read();
        let mut state = self.0.lock();
        while state.order == Order::Hold {
            self.0.be_still(&mut state);
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.still = false;
        state.order == Order::End
    }

    /// Does nothing but obey until the end.
    pub(crate) fn wait_for_end(&self) {
        while !self.obey() {
            let mut fds = [PollFd::from_borrowed_fd(fd::borrow(self.wake()), PollFlags::IN)];
            while let Err(Errno::INTR) = poll(&mut fds, None) {}
        }
    }
}

impl Drop for Orders {
    fn drop(&mut self) {
        // A thread that has ended, however that came, is not waited for.
        let mut state = self.0.lock();
        self.0.be_still(&mut state);
    }
}

/// What a thread waits for.
pub(crate) struct Poller {
    epoll: Epoll,
    orders: Orders,
    events: [EpollEvent; Self::BATCH],
}

impl Poller {
    const BATCH: usize = 32;
    /// Stands for an order.
    const ORDER: u64 = u64::MAX;

    fn new(orders: Orders) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let poller = Self {
            epoll,
            orders,
            events: [EpollEvent::default(); Self::BATCH],
        };
        poller.add(poller.orders.wake(), Self::ORDER, EventSet::IN)?;
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

    /// Waits, and returns what happened on which token; `None` when the thread shall end. A thread that is held is held
    /// in here.
    pub(crate) fn wait(&mut self) -> io::Result<Option<Vec<(u64, EventSet)>>> {
        let count = loop {
            match self.epoll.wait(-1, &mut self.events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        let mut events: Vec<_> = self.events[..count]
            .iter()
            .map(|e| (e.data(), e.event_set()))
            .collect();
        if let Some(order) = events.iter().position(|(token, _)| *token == Self::ORDER) {
            events.swap_remove(order);
            if self.orders.obey() {
                return Ok(None);
            }
        }
        Ok(Some(events))
    }

    /// Waits for nothing but the order to end.
    pub(crate) fn wait_for_end(self) {
        drop(self.epoll);
        self.orders.wait_for_end();
    }
}

/// A running thread. Dropping this ends it and waits for that.
#[derive(Debug)]
pub(crate) struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts `run` in a thread called `name`. It has to return soon after its poller told it to end.
    pub(crate) fn spawn(name: &str, run: impl FnOnce(Poller) + Send + 'static) -> io::Result<Self> {
        let (shared, orders) = Self::orders()?;
        let poller = Poller::new(orders)?;
        Self::start(name, shared, move || run(poller))
    }

    /// As [`spawn`](Self::spawn), for a thread that waits in a way of its own.
    pub(crate) fn spawn_plain(name: &str, run: impl FnOnce(Orders) + Send + 'static) -> io::Result<Self> {
        let (shared, orders) = Self::orders()?;
        Self::start(name, shared, move || run(orders))
    }

    fn orders() -> io::Result<(Arc<Shared>, Orders)> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                order: Order::Run,
                still: false,
            }),
            changed: Condvar::new(),
            wake: EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        });
        let orders = Orders(Arc::clone(&shared));
        Ok((shared, orders))
    }

    fn start(name: &str, shared: Arc<Shared>, run: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Has the thread keep still: when this returns, it uses no queue until [`release`](Self::release).
    pub(crate) fn hold(&self) {
        self.shared.give(Order::Hold);
        let mut state = self.shared.lock();
        while !state.still {
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets the thread run on.
    pub(crate) fn release(&self) {
        self.shared.give(Order::Run);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.give(Order::End);
        if let Some(thread) = self.thread.take() {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                error!(name, "device thread died");
            }
        }
    }
}
