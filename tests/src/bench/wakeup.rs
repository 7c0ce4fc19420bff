//! How long it takes at least to wake a thread on another processor: an `eventfd` written, `epoll` returned, nothing else.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use super::cpus;
use crate::pktgen::pin;

/// How long one wake-up may take before it counts as failed.
const LIMIT: Duration = Duration::from_secs(5);
/// How long the thread that is woken waits at most, so that it ends if nobody wakes it any more.
const PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// Wakes a thread on the processor of what is measured, from the calling one, `count` times with `pause` before each; gives the
/// microseconds from before the write until the caller, which spins, sees that the other is awake. To be called on the generator's
/// processor.
///
/// # Panics
/// When a processor or a descriptor cannot be had.
pub fn measure(count: u64, pause: Duration) -> io::Result<Vec<f64>> {
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let seen = AtomicU64::new(0);
    thread::scope(|scope| {
        let woken = scope.spawn(|| -> io::Result<()> {
            pin::this_thread(cpus::measured())?;
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&epoll, &bell, epoll::EventData::new_u64(0), flags)?;
            let mut events = Vec::with_capacity(1);
            for number in 1..=count {
                events.clear();
                epoll::wait(&epoll, spare_capacity(&mut events), Some(&PATIENCE))?;
                seen.store(number, Ordering::Release);
            }
            Ok(())
        });
        let mut times = Vec::new();
        for number in 1..=count {
            // As the generator does, which looks at its rings meanwhile.
            spin_until(pause, || false);
            let start = Instant::now();
            rustix::io::write(&bell, &1_u64.to_ne_bytes())?;
            if !spin_until(LIMIT, || seen.load(Ordering::Acquire) >= number) {
                break;
            }
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        woken.join().expect("it does not panic")?;
        Ok(times)
    })
}

/// Spins until `done` or until the time is up; whether it was done.
fn spin_until(limit: Duration, done: impl Fn() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wake_up_is_timed() {
        let times = cpus::on_generator(|| measure(5, Duration::from_millis(1))).expect("an eventfd");
        assert_eq!(times.len(), 5);
        assert!(times.iter().all(|time| *time > 0.0));
    }
}
