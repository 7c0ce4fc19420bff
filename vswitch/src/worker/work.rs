//! What a worker did with its time.

use std::time::{Duration, Instant};

use crate::counters::Counter;

/// Counters of one worker, which alone writes them.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Work {
    /// Frames taken from queues.
    pub frames: Counter,
    /// Bursts that they came in.
    pub bursts: Counter,
    /// Nanoseconds that these took, from the look that found them until the last was delivered.
    pub busy_ns: Counter,
    /// Looks at queues that had nothing.
    pub empty_looks: Counter,
    /// Nanoseconds that these took.
    pub polling_ns: Counter,
    /// Times it slept and was woken.
    pub wakeups: Counter,
}

/// A clock that is read once a look at a queue: where one ends, the next begins.
#[derive(Debug)]
pub(super) struct Stopwatch(Instant);

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// The nanoseconds since the last time.
    #[inline]
    pub(super) fn lap(&mut self) -> u64 {
        let now = Instant::now();
        let time = now.duration_since(self.0);
        self.0 = now;
        u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
    }

    /// When it was read last.
    #[inline]
    pub(super) fn read_at(&self) -> Instant {
        self.0
    }

    /// Leaves out the time since the last reading; returns it.
    pub(super) fn skip(&mut self) -> Duration {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut self.0, now))
    }
}
