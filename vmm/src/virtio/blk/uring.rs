//! Transfers through `io_uring`: many at once, completed in any order.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::disk::Disk;
use super::engine::{Done, Pending, Work};
use super::transfer::{Direction, rw_flags};

/// Transfers under way at most.
pub(super) const DEPTH: usize = 256;

/// The engine of one queue.
pub(super) struct Uring {
    ring: IoUring,
    completed: EventFd,
    disk: Arc<Disk>,
    /// What the kernel works on, by its place here. Nothing is removed before the kernel is done with it.
    slots: Vec<Option<(Pending, Work)>>,
    free: Vec<usize>,
    unsubmitted: bool,
}

impl Uring {
    pub(super) fn new(disk: Arc<Disk>) -> io::Result<Self> {
        let entries = u32::try_from(DEPTH).map_err(io::Error::other)?;
        let ring = IoUring::new(entries)?;
        let completed = EventFd::new(EFD_NONBLOCK)?;
        ring.submitter().register_eventfd(completed.as_raw_fd())?;
        let slots = std::iter::repeat_with(|| None).take(DEPTH).collect();
        let free = (0..DEPTH).collect();
        Ok(Self {
            ring,
            completed,
            disk,
            slots,
            free,
            unsubmitted: false,
        })
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == DEPTH
    }

    pub(super) fn completed(&self) -> &EventFd {
        &self.completed
    }

    /// Takes work in, or gives it back if there is no room.
    pub(super) fn start(&mut self, pending: Pending, work: Work) -> Result<(), Work> {
        let Some(slot) = self.free.pop() else {
            return Err(work);
        };
        let fd = types::Fd(self.disk.file.as_raw_fd());
        let entry = match &work {
            Work::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Work::Transfer(transfer) => {
                let pieces = transfer.iovecs();
                let count = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
                match transfer.direction() {
                    Direction::Read => opcode::Readv::new(fd, pieces.as_ptr(), count)
                        .offset(transfer.offset())
                        .build(),
                    Direction::Write { sync } => opcode::Writev::new(fd, pieces.as_ptr(), count)
                        .offset(transfer.offset())
                        .rw_flags(rw_flags(sync))
                        .build(),
                }
            }
        };
        // SAFETY: the entry's pieces, and the guest memory they name, belong to `work`, which stays in its slot,
        // its vector unmoved, until the completion of this very entry is taken; `drop` waits for that as well.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(slot as u64)) };
        if pushed.is_err() {
            self.free.push(slot);
            return Err(work);
        }
        self.slots[slot] = Some((pending, work));
        self.unsubmitted = true;
        Ok(())
    }

    /// Lets the kernel begin with what was taken in.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.unsubmitted) {
            self.enter(0)?;
        }
        Ok(())
    }

    fn enter(&self, wanted: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(wanted) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(|_| ()),
            }
        }
    }

    /// Takes what has been completed.
    pub(super) fn reap(&mut self, done: &mut Vec<Done>) {
        // Read to rearm it; the ring says what there is.
        let _ = self.completed.read();
        let completions: Vec<_> = self
            .ring
            .completion()
            .map(|entry| (entry.user_data(), entry.result()))
            .collect();
        for (slot, result) in completions {
            let Ok(slot) = usize::try_from(slot) else { continue };
            let Some((pending, work)) = self.slots.get_mut(slot).and_then(Option::take) else {
                continue;
            };
            self.free.push(slot);
            done.push(Done {
                pending,
                ok: self.conclude(work, result),
            });
        }
    }

    /// A transfer may end early: what is left of it is done at once.
    fn conclude(&self, work: Work, result: i32) -> bool {
        match (work, usize::try_from(result)) {
            (Work::Flush, result) => result.is_ok(),
            (Work::Transfer(mut transfer), Ok(bytes)) => {
                transfer.advance(bytes.min(transfer.remaining()));
                transfer.finish(&self.disk.file).is_ok()
            }
            (Work::Transfer(mut transfer), Err(_)) => {
                let again = -result == libc::EAGAIN || -result == libc::EINTR;
                again && transfer.finish(&self.disk.file).is_ok()
            }
        }
    }

    /// Waits for everything that is under way.
    pub(super) fn drain(&mut self, done: &mut Vec<Done>) -> io::Result<()> {
        self.unsubmitted = false;
        while !self.is_idle() {
            self.enter(1)?;
            self.reap(done);
        }
        Ok(())
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if self.drain(&mut Vec::new()).is_err() {
            // The kernel may still be using what the slots hold: better lost than used after it is freed.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}
