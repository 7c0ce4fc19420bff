//! A lock that is handed over in turn.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A mutex for a thread that holds it nearly all the time and others that need it now and then.
///
/// Who releases a plain mutex and locks it again at once mostly wins against those asleep on it. Here one waits in
/// two steps: the first in the queue holds `next` until it has `value`, so that a release passes to it.
#[derive(Debug, Default)]
pub(super) struct Turn<T> {
    next: Mutex<()>,
    value: Mutex<T>,
}

impl<T> Turn<T> {
    pub(super) fn new(value: T) -> Self {
        Self {
            next: Mutex::new(()),
            value: Mutex::new(value),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        let _next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
