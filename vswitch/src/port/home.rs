//! Which worker serves a queue that a guest transmits on.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::worker::WorkerShared;

/// A worker, and the number that it knows a queue by.
///
/// It is locked before the ring's gate, and held for as long as a change takes: a kick is never watched by a
/// worker that the queue has just left.
#[derive(Debug, Clone)]
pub struct Home {
    /// The worker.
    pub worker: Arc<WorkerShared>,
    /// The queue's number there.
    pub number: u64,
}

impl Home {
    /// Has the worker wait for kicks. Edge-triggered and never read: nothing a guest does to its eventfd can make the
    /// worker sleep or spin.
    pub fn watch(&self, kick: &impl AsFd) -> io::Result<()> {
        self.worker.watch(kick, self.number)
    }

    /// Ends that.
    pub fn unwatch(&self, kick: &impl AsFd) {
        self.worker.unwatch(kick);
    }
}
