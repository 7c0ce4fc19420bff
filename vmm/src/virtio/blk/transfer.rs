//! A transfer between guest memory and a file, and how it is made without a ring.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use super::request::Segment;

/// As many pieces as the system takes in one call.
const IOV_MAX: usize = 1024;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the file into the guest.
    Read,
    /// From the guest to the file; durable at once if `sync`.
    Write { sync: bool },
}

/// A transfer that is checked and may begin. It keeps the guest's memory mapped.
#[derive(Debug)]
pub(super) struct Transfer {
    direction: Direction,
    offset: u64,
    iovecs: Vec<libc::iovec>,
    _mem: Arc<GuestMemoryMmap>,
}

impl Transfer {
    /// `None` if a segment is not in guest memory, or there are too many.
    pub(super) fn new(
        direction: Direction,
        offset: u64,
        segments: &[Segment],
        mem: &Arc<GuestMemoryMmap>,
    ) -> Option<Self> {
        let mut iovecs = Vec::with_capacity(segments.len());
        for (addr, len) in segments {
            for slice in GuestMemoryBackend::get_slices(&**mem, *addr, *len as usize) {
                let slice = slice.ok()?;
                iovecs.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        (iovecs.len() <= IOV_MAX).then(|| Self {
            direction,
            offset,
            iovecs,
            _mem: Arc::clone(mem),
        })
    }

    pub(super) fn direction(&self) -> Direction {
        self.direction
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// What is still to be transferred. The pieces lie in guest memory, which stays mapped as long as `self`.
    pub(super) fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }

    /// Bytes that are still to be transferred.
    pub(super) fn remaining(&self) -> usize {
        self.iovecs.iter().map(|piece| piece.iov_len).sum()
    }

    /// The first `done` bytes have been transferred.
    pub(super) fn advance(&mut self, mut done: usize) {
        self.offset += done as u64;
        let mut finished = 0;
        for piece in &mut self.iovecs {
            if done < piece.iov_len {
                piece.iov_base = piece.iov_base.wrapping_byte_add(done);
                piece.iov_len -= done;
                break;
            }
            done -= piece.iov_len;
            finished += 1;
        }
        self.iovecs.drain(..finished);
    }

    /// Does what is left, waiting for it.
    pub(super) fn finish(&mut self, file: &File) -> io::Result<()> {
        while self.remaining() > 0 {
            match self.step(file) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(done) => self.advance(done),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn step(&self, file: &File) -> io::Result<usize> {
        let fd = file.as_raw_fd();
        let offset = libc::off_t::try_from(self.offset).map_err(io::Error::other)?;
        let pieces = self.iovecs.as_ptr();
        let count = libc::c_int::try_from(self.iovecs.len()).map_err(io::Error::other)?;
        let done = match self.direction {
            // SAFETY: the pieces lie in guest memory, which `self` keeps mapped; that the guest may look on or
            // write meanwhile is in the nature of its memory, no reference to it exists here.
            Direction::Read => unsafe { libc::preadv(fd, pieces, count, offset) },
            // SAFETY: as above.
            Direction::Write { sync } => unsafe { libc::pwritev2(fd, pieces, count, offset, rw_flags(sync)) },
        };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }
}

pub(super) fn rw_flags(sync: bool) -> i32 {
    if sync { libc::RWF_DSYNC } else { 0 }
}
