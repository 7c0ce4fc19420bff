//! Split virtqueues (VIRTIO 1.3 §2.7): the device end, the driver end, and what they share.

pub mod device;
pub mod driver;
mod ring;
mod walk;

pub use ring::RingLayout;

pub use crate::queue::{QueueConfig, QueueError, RingError};
