//! The guest's NIC: a virtio-net device whose back-end is another process, reached over a vhost-user socket.
//!
//! The guest's rings and memory are handed to the back-end; kicks and interrupts go between the two by eventfds
//! that KVM knows, so that this process never touches a frame. What stays here is the control queue, the
//! configuration space, and the connection: it is made again for as long as the VM lives, and while there is none
//! the guest sees its link down.

mod back_channel;
mod config;
mod control;
mod features;
mod link;
mod net;
mod rings;
mod shared;
mod socket;
mod supervisor;
mod watchdog;

#[cfg(test)]
mod tests;

pub use crate::listener::SocketError;
pub use features::FeatureNames;
pub use link::{LinkError, Timeouts};
pub use net::{MAX_QUEUE_PAIRS, NicError, NicMemory, NicMonitor, NicOptions, VhostUserNet};
pub use shared::NicStatus;
pub use socket::SocketMode;
