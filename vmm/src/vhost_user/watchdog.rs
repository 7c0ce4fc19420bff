//! A deadline on work over a socket whose library retries for ever.
//!
//! Requests to a back-end are blocking reads and writes inside the `vhost` crate, which takes a socket timeout
//! as a reason to try again. What does end them is the connection: when the deadline passes, the watchdog shuts
//! the socket down, and every read and write on it returns at once.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The watchdog of one NIC: at most one deadline runs at a time.
#[derive(Debug)]
pub(super) struct Watchdog {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    armed: Option<(Instant, UnixStream)>,
    expired: bool,
    closing: bool,
}

/// Runs from [`Watchdog::arm`] until it is dropped.
#[derive(Debug)]
pub(super) struct Deadline {
    inner: Arc<Inner>,
}

/// Lets another thread end the guarded work before its deadline.
#[derive(Clone, Debug)]
pub(super) struct Cutter {
    inner: Arc<Inner>,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        while !state.closing {
            let now = Instant::now();
            state = match state.armed.as_ref().map(|(at, _)| *at) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(at) if at > now => {
                    self.changed
                        .wait_timeout(state, at - now)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                Some(_) => {
                    state.cut();
                    state
                }
            };
        }
    }
}

impl State {
    fn cut(&mut self) {
        if let Some((_, stream)) = self.armed.take() {
            self.expired = true;
            // It fails only if the peer has closed already, which ends the work just as well.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Watchdog {
    pub(super) fn new(name: &str) -> io::Result<Self> {
        let inner = Arc::new(Inner::default());
        let shared = Arc::clone(&inner);
        let thread = std::thread::Builder::new()
            .name(format!("{name}-timer"))
            .spawn(move || shared.run())?;
        Ok(Self {
            inner,
            thread: Some(thread),
        })
    }

    /// Shuts `stream` down unless the returned deadline is dropped within `limit`.
    pub(super) fn arm(&self, stream: &UnixStream, limit: Duration) -> io::Result<Deadline> {
        let stream = stream.try_clone()?;
        let mut state = self.inner.lock();
        state.armed = Some((Instant::now() + limit, stream));
        state.expired = false;
        drop(state);
        self.inner.changed.notify_one();
        Ok(Deadline {
            inner: Arc::clone(&self.inner),
        })
    }

    pub(super) fn cutter(&self) -> Cutter {
        Cutter {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl Deadline {
    /// Whether the socket was shut down because time ran out.
    pub(super) fn expired(&self) -> bool {
        self.inner.lock().expired
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.inner.lock().armed = None;
    }
}

impl Cutter {
    /// Ends the work in progress, if there is any.
    pub(super) fn cut(&self) {
        self.inner.lock().cut();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.inner.lock().closing = true;
        self.inner.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // The thread runs nothing that can panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_silent_peer_ends_a_read_at_the_deadline() {
        let (mut ours, _theirs) = UnixStream::pair().unwrap();
        let watchdog = Watchdog::new("test").unwrap();
        let deadline = watchdog.arm(&ours, Duration::from_millis(20)).unwrap();
        assert_eq!(ours.read(&mut [0; 8]).unwrap(), 0);
        assert!(deadline.expired());
    }

    #[test]
    fn work_that_ends_in_time_keeps_its_socket() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let watchdog = Watchdog::new("test").unwrap();
        let deadline = watchdog.arm(&ours, Duration::from_hours(1)).unwrap();
        assert!(!deadline.expired());
        drop(deadline);
        // Nothing is armed any more, so cutting has nothing to end.
        watchdog.cutter().cut();
        drop(watchdog);
        drop(ours);
        assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 0);
    }

    #[test]
    fn another_thread_can_end_the_work_early() {
        let (mut ours, _theirs) = UnixStream::pair().unwrap();
        let watchdog = Watchdog::new("test").unwrap();
        let deadline = watchdog.arm(&ours, Duration::from_hours(1)).unwrap();
        let cutter = watchdog.cutter();
        let reader = std::thread::spawn(move || ours.read(&mut [0; 8]).unwrap());
        cutter.cut();
        assert_eq!(reader.join().unwrap(), 0);
        assert!(deadline.expired());
    }
}
