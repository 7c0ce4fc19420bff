//! How long a back-end may take over what is asked of it, and what can go wrong.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use vhost::vhost_user::Error as ProtocolError;

use crate::vhost_user::features::FeatureNames;
use crate::vhost_user::watchdog::{Deadline, Watchdog};

/// How long a back-end may take over one step of its life, and how long the next one is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From connection to the answer to the last message of the negotiation.
    pub negotiate: Duration,
    /// To take over the guest's memory and rings.
    pub start: Duration,
    /// To stop its rings, or to change which are enabled.
    pub change: Duration,
    /// The longest pause before the next attempt on a back-end that fails again and again.
    pub longest_pause: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        // Generous: a switch on a busy software CPU maps a guest's memory well within these.
        Self {
            negotiate: Duration::from_secs(10),
            start: Duration::from_secs(10),
            change: Duration::from_secs(5),
            longest_pause: Duration::from_millis(500),
        }
    }
}

/// Why a connection to a back-end is of no use (any more).
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody listens, or the connection ended before it began.
    #[error("cannot connect to {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The back-end closed the connection.
    #[error("the back-end closed the connection")]
    Closed,
    /// A request failed.
    #[error("{request} failed: {source}")]
    Request {
        /// The vhost-user message.
        request: &'static str,
        /// What the protocol library says.
        source: vhost::Error,
    },
    /// A request was not answered in time.
    #[error("{request} was not answered within {} s", limit.as_secs_f32())]
    Timeout {
        /// The vhost-user message.
        request: &'static str,
        /// The time allowed.
        limit: Duration,
    },
    /// The guest uses features that this back-end lacks.
    #[error(
        "the back-end lacks features in use by the guest: {0}; start one that has them, or reset the guest"
    )]
    MissingFeatures(FeatureNames),
    /// The guest was told of more queue pairs than this back-end serves.
    #[error(
        "the back-end serves {has} queue pairs, the guest was offered {offered}; \
         give the back-end more queues, or reset the guest"
    )]
    MissingPairs {
        /// Pairs of the back-end.
        has: u16,
        /// Pairs offered to the guest.
        offered: u16,
    },
    /// The back-end has room for fewer memory regions than the guest has.
    #[error("the back-end takes {has} memory regions, the guest has {needed}")]
    MemorySlots {
        /// Slots of the back-end.
        has: u64,
        /// Regions of the guest.
        needed: usize,
    },
    /// An operating system call of our own failed.
    #[error("cannot watch the connection: {0}")]
    Watch(#[source] io::Error),
}

/// One step of a back-end's life: requests that have to be answered within one limit of time. Turns a failed one into
/// an error that says which it was, and whether time ran out over it.
pub(super) struct Step {
    deadline: Deadline,
    limit: Duration,
}

impl Step {
    /// From now on the time runs.
    pub(super) fn begin(
        watchdog: &Watchdog,
        stream: &UnixStream,
        limit: Duration,
    ) -> Result<Self, LinkError> {
        let deadline = watchdog.arm(stream, limit).map_err(LinkError::Watch)?;
        Ok(Self { deadline, limit })
    }

    /// The answer to `request`.
    pub(super) fn check<T>(&self, request: &'static str, result: vhost::Result<T>) -> Result<T, LinkError> {
        result.map_err(|source| match &source {
            _ if self.deadline.expired() => LinkError::Timeout {
                request,
                limit: self.limit,
            },
            vhost::Error::VhostUserProtocol(
                ProtocolError::PartialMessage | ProtocolError::Disconnected | ProtocolError::SocketBroken(_),
            ) => LinkError::Closed,
            _ => LinkError::Request { request, source },
        })
    }
}
