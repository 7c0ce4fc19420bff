//! What threads share state by where the order of single accesses matters. In one place so that a model checker can put its own here.

pub(crate) use arc_swap::{ArcSwapOption, Guard};
pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard};
pub(crate) use std::thread::yield_now;
pub(crate) use virtio::memory::prefetch;
