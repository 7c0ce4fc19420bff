//! Which processor does what: the generator has the first to itself, what is measured the last.

use std::thread;

use crate::pktgen::pin;

/// The generator's processor.
pub const GENERATOR: usize = 0;

/// The processor of what is measured.
pub fn measured() -> usize {
    thread::available_parallelism().map_or(0, |count| count.get() - 1)
}

/// Runs `work` on the generator's processor.
///
/// # Panics
/// When `work` does, or when the processor cannot be had.
pub fn on_generator<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            pin::this_thread(GENERATOR).unwrap_or_else(|error| panic!("CPU {GENERATOR}: {error}"));
            work()
        });
        worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
