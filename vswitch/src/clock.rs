//! The switch's clock: whole seconds since it started, which tests may move forward.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// Seconds since a switch started.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    ahead: AtomicU32,
}

impl Clock {
    /// A clock that starts now.
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            ahead: AtomicU32::new(0),
        }
    }

    /// Whole seconds since the start.
    pub fn now(&self) -> u32 {
        let elapsed = u32::try_from(self.start.elapsed().as_secs()).unwrap_or(u32::MAX);
        elapsed.saturating_add(self.ahead.load(Ordering::Relaxed))
    }

    /// Moves the clock forward, so that what takes minutes can be tested at once.
    pub fn advance(&self, seconds: u32) {
        self.ahead.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
