//! The atomics that lie in memory shared with the other end of a queue. In one place so that a model checker can put its own here.

pub(crate) use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
