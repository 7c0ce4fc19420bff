//! What another process needs to go on with a session: its state in words, and its descriptors.
//!
//! The front-end takes no part. Its connection, its memory, its eventfds and the places in its rings change hands between
//! two of its messages, and it finds everything as it left it. The listening socket goes along, so that whoever connects
//! meanwhile waits instead of being refused.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::control::ControlState;

/// A session that was stopped to be gone on with.
#[derive(Debug)]
pub struct Handover {
    /// The state.
    pub state: SessionState,
    /// The descriptors that the state speaks of, in its order.
    pub fds: Vec<OwnedFd>,
}

impl Handover {
    /// The same once more, for whoever may have to go on after all.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self {
            state: self.state.clone(),
            fds: self
                .fds
                .iter()
                .map(OwnedFd::try_clone)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// A session's state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SessionState {
    /// There is a listening socket.
    pub(super) listener: bool,
    /// The front-end that is connected.
    pub(super) connection: Option<ConnectionState>,
    pub(super) connections: u64,
    pub(super) errors: u64,
}

/// A connected front-end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ConnectionState {
    pub(super) features: u64,
    /// The protocol features that it sent.
    pub(super) protocol: Option<u64>,
    pub(super) mtu: Option<u16>,
    pub(super) regions: Vec<RegionState>,
    pub(super) rings: Vec<SavedRing>,
    /// There is a back-end channel.
    pub(super) back_channel: bool,
    /// The link state that it knows.
    pub(super) link_known: Option<bool>,
    /// What its driver has set through the control queue.
    #[serde(default)]
    pub(super) control: Option<Box<ControlState>>,
    /// The region in which it keeps what the next back-end needs: where in its file, and how long.
    #[serde(default)]
    pub(super) inflight: Option<(u64, u64)>,
    /// The address that it gave the device.
    #[serde(default)]
    pub(super) mac: Option<[u8; 6]>,
}

/// One memory region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RegionState {
    pub(super) guest_addr: u64,
    pub(super) user_addr: u64,
    pub(super) len: u64,
    pub(super) offset: u64,
}

/// One ring.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SavedRing {
    pub(super) size: Option<u16>,
    /// Descriptor table, available ring, used ring.
    pub(super) addresses: Option<[u64; 3]>,
    pub(super) base: u16,
    pub(super) enabled: bool,
    pub(super) kick: SavedKick,
    pub(super) call: bool,
    pub(super) err: bool,
}

/// How a ring is kicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SavedKick {
    Unknown,
    Never,
    Fd,
}

/// Descriptors in the order in which the state speaks of them.
#[derive(Debug)]
pub(super) struct Fds(pub(super) std::vec::IntoIter<OwnedFd>);

impl Fds {
    pub(super) fn next(&mut self) -> std::io::Result<OwnedFd> {
        self.0
            .next()
            .ok_or_else(|| std::io::Error::other("the state speaks of more descriptors than came with it"))
    }

    pub(super) fn next_if(&mut self, there: bool) -> std::io::Result<Option<OwnedFd>> {
        there.then(|| self.next()).transpose()
    }
}
