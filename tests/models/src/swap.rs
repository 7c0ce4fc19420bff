//! What `arc-swap` promises: a pointer that is read and replaced as a whole, and who reads the new one sees what was written before it.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, PoisonError};

use crate::sync::Mutex;

/// A pointer that may be none.
pub type ArcSwapOption<T> = ArcSwapAny<Option<Arc<T>>>;

/// A pointer that is replaced as a whole.
#[derive(Default)]
pub struct ArcSwapAny<T>(Mutex<T>);

/// What was read.
#[derive(Debug)]
pub struct Guard<T>(T);

impl<T: Clone> ArcSwapAny<T> {
    pub(crate) fn load(&self) -> Guard<T> {
        Guard(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    pub(crate) fn store(&self, value: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

impl<T> fmt::Debug for ArcSwapAny<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ArcSwapAny")
    }
}

impl<T> Deref for Guard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
