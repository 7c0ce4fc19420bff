//! The front-end's half of the protocol: what is asked of a back-end before its rings run.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use virtio::features as f;
use virtio::memory::{MemoryError, SharedMemory};

use crate::session::SocketError;

/// How long a back-end may take for a handshake.
const PATIENCE: Duration = Duration::from_secs(5);
/// What this end has to have: modern rings.
const NEEDED: u64 = f::VERSION_1 | f::VHOST_USER_F_PROTOCOL_FEATURES;
/// What this end uses where it can.
const USED: u64 = f::RING_F_EVENT_IDX | f::IN_ORDER | f::NET_F_MRG_RXBUF | f::NET_F_MQ | f::NET_F_CTRL_VQ;
/// Frames longer than a buffer of ours: to be received only where they may be spread over several.
const LONG: u64 = f::NET_F_GUEST_TSO4 | f::NET_F_GUEST_TSO6 | f::NET_F_GUEST_ECN;

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Nobody listens.
    #[error(transparent)]
    Connect(#[from] SocketError),
    /// A request failed.
    #[error("the back-end failed a request: {0}")]
    Request(#[from] vhost::Error),
    /// Something that cannot be done without.
    #[error("the back-end lacks feature bits {0:#x}; start one that has them")]
    Features(u64),
    /// Nothing to carry frames.
    #[error("the back-end has no queue pair; give it one")]
    NoPairs,
    /// No memory to share.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A ring of ours cannot be.
    #[error(transparent)]
    Queue(#[from] virtio::split::QueueError),
    /// The operating system refused.
    #[error("the operating system refused: {0}")]
    Os(#[from] io::Error),
}

/// What a back-end offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Feature bits.
    pub features: u64,
    /// Queue pairs.
    pub pairs: u64,
}

/// A connection on which the first half of the handshake is done.
pub(super) struct Greeted {
    pub(super) frontend: Frontend,
    pub(super) offer: Offer,
}

/// Run `step`, and end the connection if the peer lets it wait too long.
pub(super) fn bounded<R>(stream: &UnixStream, step: impl FnOnce() -> R) -> R {
    let (over, changed) = (Mutex::new(false), Condvar::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let over = over.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = changed.wait_timeout_while(over, PATIENCE, |over| !*over);
            if waited.is_ok_and(|(_, result)| result.timed_out()) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        let result = step();
        *over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
        result
    })
}

/// Everything up to what the back-end offers.
pub(super) fn greet(stream: UnixStream) -> Result<Greeted, HandshakeError> {
    let mut frontend = Frontend::from_stream(stream, 2);
    frontend.set_owner()?;
    let features = frontend.get_features()?;
    let lacking = NEEDED & !features;
    if lacking != 0 {
        return Err(HandshakeError::Features(lacking));
    }
    let wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
    let protocol = frontend.get_protocol_features()? & wanted;
    frontend.set_protocol_features(protocol)?;
    if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    let vrings = if protocol.contains(VhostUserProtocolFeatures::MQ) {
        frontend.get_queue_num()?
    } else {
        2
    };
    Ok(Greeted {
        frontend,
        offer: Offer {
            features,
            pairs: vrings / 2,
        },
    })
}

/// Ask a back-end what it offers, without starting anything.
pub fn probe(path: &Path) -> Result<Offer, HandshakeError> {
    let stream = crate::session::connect(path)?;
    let watch = stream.try_clone()?;
    bounded(&watch, || greet(stream)).map(|greeted| greeted.offer)
}

/// The bits to acknowledge to the back-end on behalf of a VM whose driver acknowledged `acked`. What the VM may send and
/// the back-end lacks is made up for on the way.
pub(super) fn features(offer: &Offer, acked: u64) -> u64 {
    let agreed = (NEEDED | USED | (acked & crate::config::OFFLOADS)) & offer.features;
    if agreed & f::NET_F_MRG_RXBUF == 0 {
        agreed & !LONG
    } else {
        agreed
    }
}

/// Share our memory with the back-end.
pub(super) fn share(frontend: &Frontend, memory: &SharedMemory) -> Result<(), HandshakeError> {
    let region = memory.region();
    frontend.set_mem_table(&[VhostUserMemoryRegionInfo {
        guest_phys_addr: region.guest_addr(),
        memory_size: region.len(),
        userspace_addr: region.user_addr(),
        mmap_offset: 0,
        mmap_handle: memory.fd().as_raw_fd(),
    }])?;
    Ok(())
}
