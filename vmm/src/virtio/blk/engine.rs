//! What carries requests to the file.

use std::io;
use std::sync::Arc;

use tracing::info;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::EngineKind;
use super::disk::Disk;
use super::transfer::Transfer;
use super::uring::Uring;

/// Something that takes time.
#[derive(Debug)]
pub(super) enum Work {
    Transfer(Transfer),
    Flush,
}

/// The request that waits for a piece of work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    /// The head of its chain.
    pub(super) head: u16,
    /// Where its status goes.
    pub(super) status: GuestAddress,
    /// Bytes that the guest gets besides the status, if all goes well.
    pub(super) len: u32,
}

/// Work that has ended.
#[derive(Debug)]
pub(super) struct Done {
    /// Whose work it was.
    pub(super) pending: Pending,
    pub(super) ok: bool,
}

/// The engine of one queue.
pub(super) enum Engine {
    Uring(Box<Uring>),
    Sync { disk: Arc<Disk>, done: Vec<Done> },
}

impl Engine {
    pub(super) fn new(kind: EngineKind, disk: Arc<Disk>) -> Self {
        if kind == EngineKind::Auto {
            match Uring::new(Arc::clone(&disk)) {
                Ok(uring) => return Self::Uring(Box::new(uring)),
                Err(e) => info!(
                    "disk {}: io_uring is not to be had ({e}), transfers go one by one",
                    disk.path()
                ),
            }
        }
        Self::Sync {
            disk,
            done: Vec::new(),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        match self {
            Self::Uring(uring) => uring.has_room(),
            Self::Sync { .. } => true,
        }
    }

    /// Begins with `work`, or gives it back if there is no room.
    pub(super) fn start(&mut self, pending: Pending, work: Work) -> Result<(), Work> {
        match self {
            Self::Uring(uring) => uring.start(pending, work),
            Self::Sync { disk, done } => {
                let ok = match work {
                    Work::Transfer(mut transfer) => transfer.finish(&disk.file).is_ok(),
                    Work::Flush => disk.flush().is_ok(),
                };
                done.push(Done { pending, ok });
                Ok(())
            }
        }
    }

    pub(super) fn submit(&mut self) -> io::Result<()> {
        match self {
            Self::Uring(uring) => uring.submit(),
            Self::Sync { .. } => Ok(()),
        }
    }

    /// Takes what has ended.
    pub(super) fn reap(&mut self, ended: &mut Vec<Done>) {
        match self {
            Self::Uring(uring) => uring.reap(ended),
            Self::Sync { done, .. } => ended.append(done),
        }
    }

    /// Waits until everything has ended.
    pub(super) fn drain(&mut self, ended: &mut Vec<Done>) -> io::Result<()> {
        match self {
            Self::Uring(uring) => uring.drain(ended),
            Self::Sync { done, .. } => {
                ended.append(done);
                Ok(())
            }
        }
    }

    /// Readable when something has ended; `None` where nothing ends by itself.
    pub(super) fn completed(&self) -> Option<&EventFd> {
        match self {
            Self::Uring(uring) => Some(uring.completed()),
            Self::Sync { .. } => None,
        }
    }
}
