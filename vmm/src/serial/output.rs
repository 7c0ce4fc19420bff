//! From the guest to the other end.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::panic_watch::PanicWatch;

/// How long an end that takes nothing is waited for, once.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

struct Inner {
    fd: Option<OwnedFd>,
    log: Option<File>,
    watch: PanicWatch,
    /// The end took nothing when it was last waited for.
    stalled: bool,
}

/// The way out; clones share it.
#[derive(Clone)]
pub(super) struct Output(Arc<Mutex<Inner>>);

impl Output {
    pub(super) fn new(fd: Option<OwnedFd>, log: Option<File>, panic_seen: Arc<AtomicBool>) -> Self {
        let watch = PanicWatch::new(panic_seen);
        Self(Arc::new(Mutex::new(Inner {
            fd,
            log,
            watch,
            stalled: false,
        })))
    }

    /// Another client, or none.
    pub(super) fn connect(&self, fd: Option<OwnedFd>) {
        let mut inner = self.lock();
        inner.fd = fd;
        inner.stalled = false;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Output {
    /// Takes everything: what cannot be written is dropped.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.lock();
        inner.watch.feed(bytes);
        if let Some(log) = &mut inner.log {
            // A full disk must not stop the guest.
            let _ = log.write_all(bytes);
        }
        inner.send(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Inner {
    fn send(&mut self, mut bytes: &[u8]) {
        let Some(fd) = &self.fd else { return };
        while !bytes.is_empty() {
            if !writable(fd, self.stalled) {
                self.stalled = true;
                return;
            }
            match rustix::io::write(fd, bytes) {
                Ok(0) => return,
                Ok(n) => {
                    self.stalled = false;
                    bytes = &bytes[n.min(bytes.len())..];
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    self.stalled = true;
                    return;
                }
                Err(_) => {
                    self.fd = None;
                    return;
                }
            }
        }
    }
}

fn writable(fd: &OwnedFd, stalled: bool) -> bool {
    let limit = if stalled {
        Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }
    } else {
        PATIENCE
    };
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::OUT)];
    // An interruption is a kick of this vCPU: go back rather than wait on.
    matches!(poll(&mut fds, Some(&limit)), Ok(n) if n > 0)
}
