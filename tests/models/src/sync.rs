//! What `vswitch` takes from `std::sync`, in the model checker's version.

pub(crate) use crate::rings::memory::prefetch;
pub(crate) use loom::hint::spin_loop;
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
pub(crate) use loom::sync::{Mutex, MutexGuard};
pub(crate) use loom::thread::yield_now;
