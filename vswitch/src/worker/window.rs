//! How long an idle queue is polled before its guest is asked to kick.
//!
//! A kick and a wake-up take longer than a short wait, and cost the guest a system call. A worker that is woken soon after it
//! went to sleep would have done better to wait, so its window doubles, up to a limit; after a longer sleep it begins anew.

use std::time::Duration;

use crate::config::PollMode;

/// CPUs from which on polling takes nothing from anyone.
const PLENTY: usize = 4;
/// Where the window begins where guests need the few CPUs there are.
const SHORT: Duration = Duration::from_micros(10);
/// Where it begins elsewhere, and where it ends everywhere.
const LONG: Duration = Duration::from_micros(50);

/// A worker's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    least: Duration,
    /// None: queues are polled for ever.
    now: Option<Duration>,
}

impl Window {
    /// The window of a worker on a machine with `cpus` CPUs that has not slept yet.
    pub(super) fn new(poll: PollMode, cpus: usize) -> Self {
        let (least, forever) = match (poll, cpus) {
            (PollMode::Always, _) => (LONG, true),
            (PollMode::Adaptive, PLENTY..) => (LONG, false),
            (PollMode::Adaptive, 2..) => (SHORT, false),
            // On one CPU nothing can come while it is polled for.
            (PollMode::Adaptive | PollMode::Never, _) => (Duration::ZERO, false),
        };
        Self {
            least,
            now: (!forever).then_some(least),
        }
    }

    /// How long a queue is polled after its last frame; none for ever.
    pub(super) fn now(&self) -> Option<Duration> {
        self.now
    }

    /// The worker has slept for as long as this.
    pub(super) fn slept(&mut self, time: Duration) {
        let Some(now) = &mut self.now else { return };
        *now = if time < LONG {
            (*now * 2).min(LONG)
        } else {
            self.least
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(mut window: Window, sleeps: &[Duration]) -> Option<Duration> {
        for sleep in sleeps {
            window.slept(*sleep);
        }
        window.now()
    }

    #[test]
    fn short_sleeps_make_it_longer_and_a_long_one_short_again() {
        let window = Window::new(PollMode::Adaptive, 2);
        let (short, long) = (LONG / 2, LONG * 2);
        assert_eq!(after(window, &[]), Some(SHORT));
        assert_eq!(after(window, &[short]), Some(SHORT * 2));
        assert_eq!(after(window, &[short; 9]), Some(LONG));
        assert_eq!(after(window, &[short, short, long]), Some(SHORT));
    }

    #[test]
    fn it_stays_where_polling_is_asked_for_not_asked_for_or_no_use() {
        let short = [LONG / 2; 9];
        assert_eq!(after(Window::new(PollMode::Always, 2), &short), None);
        for (poll, cpus) in [(PollMode::Never, 8), (PollMode::Adaptive, 1)] {
            assert_eq!(after(Window::new(poll, cpus), &short), Some(Duration::ZERO));
        }
        assert_eq!(after(Window::new(PollMode::Adaptive, PLENTY), &short), Some(LONG));
    }
}
