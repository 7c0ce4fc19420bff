//! A value that the control plane replaces as a whole and workers read for every burst.
//!
//! ```text
//!   control plane                     worker, each burst
//!   value ◄─ the new one (lock)       version as it was seen? ── yes ─► the value kept
//!   version + 1                              │ no
//!                                            └─► value and version (lock), kept
//! ```
//!
//! A worker holds on to the value that it saw until it looks again, so the former value ends with the last look.

use std::sync::{Arc, PoisonError};

use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering};

/// A published value.
#[derive(Debug, Default)]
pub struct Published<T> {
    /// How often the value was replaced. It changes while the value is locked, after the value did.
    version: AtomicUsize,
    value: Mutex<Arc<T>>,
}

impl<T> Published<T> {
    /// Publishes a first value.
    pub fn new(value: T) -> Self {
        Self {
            version: AtomicUsize::new(0),
            value: Mutex::new(Arc::new(value)),
        }
    }

    /// The value now.
    pub fn load(&self) -> Arc<T> {
        Arc::clone(&self.lock())
    }

    /// Replaces the value. Who looks after this has returned sees the new one.
    pub fn store(&self, value: T) {
        let mut current = self.lock();
        let former = std::mem::replace(&mut *current, Arc::new(value));
        self.version.store(
            self.version.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Release,
        );
        drop(current);
        // What it holds may take a while to go.
        drop(former);
    }

    fn lock(&self) -> MutexGuard<'_, Arc<T>> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One worker's look at a published value.
#[derive(Debug)]
pub struct Reader<T> {
    published: Arc<Published<T>>,
    version: usize,
    seen: Arc<T>,
}

impl<T> Reader<T> {
    /// Looks for the first time.
    pub fn new(published: Arc<Published<T>>) -> Self {
        let (version, seen) = both(&published);
        Self {
            published,
            version,
            seen,
        }
    }

    /// The value now. Only after it was replaced this takes a lock.
    #[inline]
    pub fn load(&mut self) -> &Arc<T> {
        if self.published.version.load(Ordering::Acquire) != self.version {
            self.look();
        }
        &self.seen
    }

    #[cold]
    fn look(&mut self) {
        (self.version, self.seen) = both(&self.published);
    }
}

/// The value and its version.
fn both<T>(published: &Published<T>) -> (usize, Arc<T>) {
    let value = published.lock();
    (published.version.load(Ordering::Relaxed), Arc::clone(&value))
}
