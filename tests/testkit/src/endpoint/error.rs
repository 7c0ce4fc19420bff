//! Why an endpoint fails.

use std::path::Path;

use virtio::split::RingError;

/// What went wrong between an endpoint and its back-end.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Nobody listens.
    #[error("{socket}: no connection: {source}; start the back-end first")]
    Connect {
        /// The back-end's socket.
        socket: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The handshake failed.
    #[error("{socket}: {step} failed: {source}")]
    Handshake {
        /// The back-end's socket.
        socket: String,
        /// Which message.
        step: &'static str,
        /// What the protocol said.
        source: vhost::Error,
    },
    /// The back-end lacks a feature that the endpoint was to take.
    #[error("{socket}: the back-end offers {offered:#x} and lacks {missing:#x} of the features asked for")]
    Features {
        /// The back-end's socket.
        socket: String,
        /// What it offers.
        offered: u64,
        /// What is missing.
        missing: u64,
    },
    /// The memory could not be made.
    #[error("no memory for the rings: {0}")]
    Memory(#[from] virtio::memory::MemoryError),
    /// The rings could not be made.
    #[error("no rings: {0}")]
    Queue(#[from] virtio::split::QueueError),
    /// The back-end broke a ring.
    #[error("the back-end broke a ring: {0}")]
    Ring(#[from] RingError),
    /// The machine refused a descriptor.
    #[error("no descriptor: {0}")]
    EventFd(#[from] std::io::Error),
}

impl EndpointError {
    pub(super) fn handshake(socket: &Path, step: &'static str, source: vhost::Error) -> Self {
        Self::Handshake {
            socket: socket.display().to_string(),
            step,
            source,
        }
    }
}
