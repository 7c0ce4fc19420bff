//! The eventfds that a front-end hands over: kicks to read, calls to signal.
//!
//! A front-end is free to send any descriptor where an eventfd belongs, and it keeps its own reference to the
//! same open file: it can clear `O_NONBLOCK` or fill the counter at any time. Nothing here may therefore sleep
//! in the kernel on behalf of the peer.

mod aio;

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::{Errno, ReadWriteFlags};
use vmm_sys_util::eventfd::EventFd;

/// Why a descriptor was refused.
#[derive(Debug, thiserror::Error)]
pub enum EventFdError {
    /// The descriptor is a pipe, a file, a socket or another anonymous inode.
    #[error("descriptor refused: it is '{0}', not an eventfd; the front-end must send an eventfd")]
    NotAnEventFd(String),
    /// `/proc/self/fd` cannot tell what the descriptor is.
    #[error("descriptor refused: /proc/self/fd cannot say whether it is an eventfd ({0}); mount /proc")]
    Unknown(#[source] rustix::io::Errno),
    /// The descriptor's status flags cannot be changed.
    #[error("descriptor refused: cannot make it non-blocking ({0})")]
    Flags(#[source] rustix::io::Errno),
}

/// Check that `file` is an eventfd and make its reads and writes non-blocking.
fn checked(file: File) -> Result<OwnedFd, EventFdError> {
    let fd = OwnedFd::from(file);
    let link = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())
        .map_err(EventFdError::Unknown)?;
    if link.as_bytes() != b"anon_inode:[eventfd]" {
        return Err(EventFdError::NotAnEventFd(link.to_string_lossy().into_owned()));
    }
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(EventFdError::Flags)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(EventFdError::Flags)?;
    Ok(fd)
}

/// The eventfd with which the driver says "there are new buffers".
///
/// Watch it edge-triggered: a peer can make an eventfd that stays readable whatever is read from it.
#[derive(Debug)]
pub struct Kick(OwnedFd);

impl Kick {
    /// Take over a descriptor that a front-end sent.
    pub fn new(file: File) -> Result<Self, EventFdError> {
        checked(file).map(Self)
    }

    /// Another handle on the same eventfd.
    pub(crate) fn try_clone(&self) -> std::io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Forget the kicks so far. Never blocks, whatever the peer did to the descriptor's flags.
    pub fn drain(&self) {
        let mut count = [0u8; 8];
        let whole = &mut [IoSliceMut::new(&mut count)];
        // An offset of -1 means "as read(2)". Where the kernel knows no per-call flags for eventfds, the
        // descriptor's own flag, set when it arrived, has to do.
        if rustix::io::preadv2(&self.0, whole, u64::MAX, ReadWriteFlags::NOWAIT) == Err(Errno::OPNOTSUPP) {
            let _ = rustix::io::read(&self.0, &mut count);
        }
    }
}

impl AsFd for Kick {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The eventfd with which the device says "buffers were used", or reports a broken ring.
#[derive(Debug)]
pub struct Call(OwnedFd);

impl Call {
    /// Take over a descriptor that a front-end sent.
    pub fn new(file: File) -> Result<Self, EventFdError> {
        checked(file).map(Self)
    }

    /// An eventfd of our own, to be handed to a peer.
    pub fn create() -> std::io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(rustix::event::eventfd(0, flags)?))
    }

    /// The same eventfd in the type that the `vhost` crate sends.
    pub fn to_event_fd(&self) -> std::io::Result<EventFd> {
        let copy = self.0.try_clone()?;
        // SAFETY: the duplicate is owned by nobody else and handed over as a whole.
        Ok(unsafe { EventFd::from_raw_fd(copy.into_raw_fd()) })
    }

    /// Another handle on the same eventfd.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Notify the peer. Never sleeps, whatever the peer does to the eventfd meanwhile.
    pub fn signal(&self) {
        if !aio::signal(self.0.as_fd()) {
            self.write();
        }
    }

    /// Where the kernel has no asynchronous operations. The descriptor was made non-blocking on arrival, and a full
    /// counter is skipped: it already says what we want to say. A peer that undoes the first and brings about the
    /// second between these two calls could hold its caller.
    fn write(&self) {
        let mut poll = [PollFd::new(&self.0, PollFlags::OUT)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if rustix::event::poll(&mut poll, Some(&now)) == Ok(1) && poll[0].revents().contains(PollFlags::OUT) {
            let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
        }
    }
}

impl AsFd for Call {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests;
