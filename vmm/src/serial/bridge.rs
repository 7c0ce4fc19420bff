//! A console whose guest end is a socket: what a virtio console's port 0 is connected to.
//!
//! ```text
//!   device ◄── socket pair ──► bridge ◄──► terminal, file or socket
//! ```

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::input::{self, Sink};
use super::output::Output;
use super::{Ends, SerialError};

const CHUNK: usize = 4096;

/// The bridge's end of the socket pair.
struct Shared {
    stream: UnixStream,
    output: Output,
    /// Held by whoever takes output out of the socket, so that it stays in order.
    draining: Mutex<()>,
}

impl Shared {
    /// Passes on all output that there is; false at its end.
    fn drain(&self) -> bool {
        let _guard = self.draining.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = [0; CHUNK];
        loop {
            match recv(&self.stream, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return false,
                Ok((count, _)) => {
                    // Cannot fail: it takes everything.
                    let _ = self.output.clone().write_all(&bytes[..count]);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
    }
}

impl Sink for Shared {
    fn room(&self) -> usize {
        let mut fds = [PollFd::from_borrowed_fd(self.stream.as_fd(), PollFlags::OUT)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match poll(&mut fds, Some(&now)) {
            Ok(1..) => CHUNK,
            _ => 0,
        }
    }

    fn put(&self, bytes: &[u8]) {
        if let Err(error) = (&self.stream).write_all(bytes) {
            tracing::debug!(%error, "console input is lost");
        }
    }

    fn drained(&self) -> (BorrowedFd<'_>, PollFlags) {
        (self.stream.as_fd(), PollFlags::OUT)
    }

    fn rearm(&self) {}

    fn output(&self) -> &Output {
        &self.output
    }
}

/// The other end of a virtio console.
pub struct Bridge {
    shared: Arc<Shared>,
    pty: Option<PathBuf>,
    panic_seen: Arc<AtomicBool>,
    stop: EventFd,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Bridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bridge")
            .field("pty", &self.pty)
            .finish_non_exhaustive()
    }
}

impl Bridge {
    /// Connects `ends`; the device gets the stream. `escape` is called when the user of a terminal asks to leave
    /// (Ctrl-A x).
    pub fn new(ends: Ends, escape: impl Fn() + Send + 'static) -> Result<(Self, UnixStream), SerialError> {
        let (ours, devices) = UnixStream::pair()?;
        devices.set_nonblocking(true)?;
        let stop = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let panic_seen = Arc::new(AtomicBool::new(false));
        let pty = ends.pty_name().map(ToOwned::to_owned);
        let (output, source) = ends.split(Arc::clone(&panic_seen))?;
        let shared = Arc::new(Shared {
            stream: ours,
            output,
            draining: Mutex::new(()),
        });
        let mut bridge = Self {
            shared,
            pty,
            panic_seen,
            stop,
            threads: Vec::new(),
        };
        bridge.threads.push(bridge.spawn_output()?);
        if let Some(source) = source {
            let (sink, stop) = (Arc::clone(&bridge.shared), bridge.stop.try_clone()?);
            bridge.threads.push(input::spawn(source, sink, stop, escape)?);
        }
        Ok((bridge, devices))
    }

    fn spawn_output(&self) -> io::Result<JoinHandle<()>> {
        let (shared, stop) = (Arc::clone(&self.shared), self.stop.try_clone()?);
        let run = move || {
            while shared.drain() {
                let mut fds = [
                    PollFd::from_borrowed_fd(crate::fd::borrow(&stop), PollFlags::IN),
                    PollFd::from_borrowed_fd(shared.stream.as_fd(), PollFlags::IN),
                ];
                let _ = poll(&mut fds, None);
                if !fds[0].revents().is_empty() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("console-out".to_owned())
            .spawn(run)
    }

    /// The name of the pseudo-terminal, if it is one.
    pub fn pty(&self) -> Option<&PathBuf> {
        self.pty.as_ref()
    }

    /// True if a Linux kernel has said on its console that it panicked.
    pub fn panic_seen(&self) -> bool {
        // What the device has passed on counts, whether or not it has been looked at.
        self.shared.drain();
        self.panic_seen.load(Ordering::Acquire)
    }

    /// A new life of the guest begins; the other end stays connected.
    pub fn reset(&self) {
        self.panic_seen.store(false, Ordering::Release);
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.shared.drain();
        let _ = self.stop.write(1);
        // Ends a write that the guest takes nothing of.
        let _ = self.shared.stream.shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
