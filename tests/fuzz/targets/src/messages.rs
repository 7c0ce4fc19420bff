//! vhost-user messages, with descriptors, into a session.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::EventfdFlags;
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use vhost_net_backend::eventfd::Call;
use vhost_net_backend::{DevicePlane, PortConfig, Ring, Session};
use virtio::burst::Burst;
use virtio::memory::MemoryMap;
use virtio::queue::QueueError;

/// The most messages of one input.
const MESSAGES: usize = 24;
const RINGS: u16 = 4;

/// Descriptors that come with messages: memory, and something to kick and to call.
static DESCRIPTORS: LazyLock<[OwnedFd; 2]> = LazyLock::new(|| {
    let memory = rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a file");
    rustix::fs::ftruncate(&memory, 1 << 20).expect("a length");
    let event =
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd");
    [memory, event]
});

/// A data plane that looks at its rings once, when they start and when their memory changes.
#[derive(Default)]
struct Plane(Mutex<[Option<Ring>; RINGS as usize]>);

impl Plane {
    fn with<R>(&self, index: u16, work: impl FnOnce(&mut Option<Ring>) -> R) -> R {
        let mut rings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        work(rings.get_mut(usize::from(index)).expect("a ring of this device"))
    }
}

fn look(ring: &mut Ring) {
    let mut burst = Burst::new();
    if ring.queue.pop_burst(&mut burst, 64).is_ok() {
        ring.queue.add_used(burst.chains().map(|chain| (chain.head, 0)));
        ring.queue.publish();
    }
}

impl DevicePlane for Plane {
    fn ring_started(&self, index: u16, mut ring: Ring) {
        look(&mut ring);
        let before = self.with(index, |place| place.replace(ring));
        assert!(before.is_none(), "a ring was started twice");
    }

    fn ring_enabled(&self, index: u16, _enabled: bool) {
        self.with(index, |ring| assert!(ring.is_some(), "no such ring runs"));
    }

    fn call_changed(&self, index: u16, call: Option<Call>) {
        self.with(index, |ring| {
            ring.as_mut().expect("only running rings are told").call = call;
        });
    }

    fn ring_stopped(&self, index: u16) -> u16 {
        let ring = self.with(index, Option::take);
        ring.expect("only running rings are stopped").queue.next_avail()
    }

    fn memory_changed(&self, memory: &Arc<MemoryMap>) -> Result<(), QueueError> {
        let mut rings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for ring in rings.iter_mut().flatten() {
            ring.queue.set_memory(Arc::clone(memory))?;
            look(ring);
        }
        Ok(())
    }

    fn disconnected(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
    }
}

/// Writes bytes with descriptors at their beginning; false when there is no room.
fn send(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags).is_ok()
}

/// An input is a list of pieces: a byte of what descriptors come along, the length, and that many bytes.
///
/// Pieces without descriptors are written together with what is before them, which is all the same to a stream.
///
/// # Panics
/// When something is wrong with what comes of it.
pub fn messages(data: &[u8]) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let mut rest = data;
    let mut waiting: Vec<u8> = Vec::new();
    let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
    let mut sent = true;
    for _ in 0..MESSAGES {
        let Some((&[kinds, len], more)) = rest.split_first_chunk::<2>() else {
            break;
        };
        let (bytes, more) = more.split_at(usize::from(len).min(more.len()));
        rest = more;
        if bytes.is_empty() {
            continue;
        }
        let count = usize::from(kinds & 0xf);
        if count > 0 && !waiting.is_empty() {
            sent = send(&ours, &waiting, &fds);
            waiting.clear();
            fds.clear();
        }
        if !sent {
            break;
        }
        waiting.extend(bytes);
        fds.extend((0..count).map(|at| DESCRIPTORS[usize::from(kinds >> 4 >> (at % 4) & 1)].as_fd()));
    }
    if sent && !waiting.is_empty() {
        send(&ours, &waiting, &fds);
    }
    ours.shutdown(Shutdown::Write).expect("an open socket");
    let port = PortConfig {
        queue_pairs: RINGS / 2,
        ..PortConfig::new("fuzz")
    };
    Session::serve(theirs, Duration::ZERO, port, Arc::new(Plane::default())).expect("a descriptor or two");
}
