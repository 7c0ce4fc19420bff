//! The clock of a run, which is read as seldom as can be: that takes as long as sending a frame.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Time since a run began.
#[derive(Debug)]
pub(super) struct Clock {
    start: Instant,
    last: Cell<Duration>,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self {
            start: Instant::now(),
            last: Cell::default(),
        }
    }

    /// The time now.
    #[inline]
    pub(super) fn read(&self) -> Duration {
        let now = self.start.elapsed();
        self.last.set(now);
        now
    }

    /// The time when it was read last.
    #[inline]
    pub(super) fn last(&self) -> Duration {
        self.last.get()
    }
}
