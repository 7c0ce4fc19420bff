//! A lock between one control thread and the workers, under which neither waits long for the other.
//!
//! A plain mutex lets a busy worker take it again and again before a waiting control thread is even awake.
//! Here the control thread says first that it waits, and workers then stay away for the moment: the owner of
//! a queue looks at it in its next round, and one that has frames for a receiver waits a bounded time.
//! Nobody makes a system call that can block while holding it.

use std::sync::{PoisonError, TryLockError};

use crate::sync::{AtomicU32, Mutex, MutexGuard, Ordering, yield_now};

/// How often a worker looks whether the control thread is done before it gives its frames up.
const PATIENCE: u32 = 200;

/// Something that workers use and the control thread changes.
#[derive(Debug, Default)]
pub struct Gate<T> {
    waiting: AtomicU32,
    inner: Mutex<T>,
}

impl<T> Gate<T> {
    /// For the control thread: waits until no worker uses it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let guard = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        guard
    }

    /// For the worker that owns it: none if the control thread has or wants it.
    #[inline]
    pub fn try_enter(&self) -> Option<MutexGuard<'_, T>> {
        if self.waiting.load(Ordering::Relaxed) != 0 {
            return None;
        }
        match self.inner.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// For workers that share it: waits for other workers, and a bounded time for the control thread.
    #[inline]
    pub fn enter(&self) -> Option<MutexGuard<'_, T>> {
        if let Some(guard) = self.try_enter() {
            return Some(guard);
        }
        self.enter_contended()
    }

    #[cold]
    fn enter_contended(&self) -> Option<MutexGuard<'_, T>> {
        for _ in 0..PATIENCE {
            if self.waiting.load(Ordering::Relaxed) == 0 {
                return Some(self.inner.lock().unwrap_or_else(PoisonError::into_inner));
            }
            yield_now();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn the_control_thread_gets_through_to_a_busy_owner() {
        let gate = Gate::<u64>::default();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if let Some(mut value) = gate.try_enter() {
                        *value += 1;
                    }
                }
            });
            for _ in 0..1000 {
                drop(gate.lock());
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_waiting_control_thread_keeps_workers_out_for_a_bounded_time() {
        let gate = Gate::<u64>::default();
        gate.waiting.store(1, Ordering::Relaxed);
        assert!(gate.try_enter().is_none());
        assert!(gate.enter().is_none());
        gate.waiting.store(0, Ordering::Relaxed);
        assert!(gate.enter().is_some());
    }
}
