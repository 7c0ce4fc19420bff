//! The switch's clock: whole seconds since the bridge came up, which tests may move forward.
//!
//! It goes on when another daemon takes the bridge over.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// Seconds since a bridge came up.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    ahead: AtomicU32,
}

impl Clock {
    /// A clock that starts now.
    pub fn new() -> Self {
        Self::starting_at(0)
    }

    /// A clock that goes on from `seconds`.
    pub fn starting_at(seconds: u32) -> Self {
        Self {
            start: Instant::now(),
            ahead: AtomicU32::new(seconds),
        }
    }

    /// Whole seconds since this daemon started.
    pub fn uptime(&self) -> u32 {
        u32::try_from(self.start.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    /// The time.
    pub fn now(&self) -> u32 {
        self.uptime().saturating_add(self.ahead.load(Ordering::Relaxed))
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
