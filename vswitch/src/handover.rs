//! A bridge on its way from one daemon to the next: its state in words and its descriptors, over a socket pair.
//!
//! ```text
//!   old daemon                              new daemon (started by the old one, the socket as its standard input)
//!       │ ◄──────────────────────────── ready ── │
//!   ports stop, nothing in flight                │
//!       │ ── state, sockets, memory, eventfds ─► │
//!       │                                    ports go on
//!       │ ◄──────────────────────────── done ─── │
//!   ends, leaving all files                serves the API
//! ```
//!
//! If the new daemon fails or is silent at any step, it is ended and the old one goes on with what it handed over.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize};
use vhost_net_backend::session::SessionState;

use crate::config::BridgeConfig;
use crate::counters::{DropCounts, QueueCounts};
use crate::fdb::FdbCounters;
use crate::mac::MacAddr;

/// The form of [`SwitchState`]; another one is not understood.
pub const FORMAT: u32 = 1;
/// The new daemon has started and waits for the state.
const READY: u8 = b'R';
/// The new daemon goes on with the bridge.
const DONE: u8 = b'D';
/// Descriptors in one message; the kernel takes 253.
const BATCH: usize = 128;
/// The longest state that is read.
const LONGEST: u64 = 1 << 30;

/// Everything about a running bridge.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SwitchState {
    /// Must be [`FORMAT`].
    pub format: u32,
    /// The bridge's clock, by which the ages of addresses count.
    pub clock: u32,
    /// Settings, ports and static entries.
    pub config: BridgeConfig,
    /// The ports' links, in the order of the configuration; those that had none are left out.
    pub links: Vec<LinkState>,
    /// Learned addresses.
    pub fdb: Vec<LearnedState>,
    /// What was counted, in the order of the configuration. Missing from daemons that did not hand it over.
    #[serde(default)]
    pub counts: Vec<PortCounts>,
    /// What the forwarding database counted.
    #[serde(default)]
    pub fdb_counts: FdbCounts,
}

/// What a port counted.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PortCounts {
    /// Frames that never reached a queue.
    pub drops: DropCounts,
    /// Each pair's queues: from the port, and to it.
    pub pairs: Vec<[QueueCounts; 2]>,
}

/// What the forwarding database counted.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FdbCounts {
    learned: u64,
    moved: u64,
    expired: u64,
    evicted: u64,
    refused: u64,
}

impl FdbCounts {
    /// What these counters say.
    pub fn of(counters: &FdbCounters) -> Self {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            learned: get(&counters.learned),
            moved: get(&counters.moved),
            expired: get(&counters.expired),
            evicted: get(&counters.evicted),
            refused: get(&counters.refused),
        }
    }

    /// Has these counters count on from here.
    pub fn go_on(self, counters: &FdbCounters) {
        let set = |counter: &AtomicU64, count| counter.store(count, Ordering::Relaxed);
        set(&counters.learned, self.learned);
        set(&counters.moved, self.moved);
        set(&counters.expired, self.expired);
        set(&counters.evicted, self.evicted);
        set(&counters.refused, self.refused);
    }
}

/// What a port was connected by.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LinkState {
    /// The port.
    pub port: String,
    /// Its session; none for an interface of the host.
    pub session: Option<SessionState>,
    /// How many descriptors belong to it.
    pub fds: usize,
}

/// A learned address.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct LearnedState {
    /// The address.
    pub mac: MacAddr,
    /// Its VLAN.
    pub vlan: u16,
    /// Number of its port in the configuration.
    pub port: usize,
    /// When it was last seen, by the bridge's clock.
    pub seen: u32,
}

/// Sends the state and all descriptors.
pub fn send(socket: &UnixStream, state: &SwitchState, fds: &[OwnedFd]) -> io::Result<()> {
    let text = serde_json::to_vec(state)?;
    let mut stream = socket;
    stream.write_all(&(text.len() as u64).to_ne_bytes())?;
    stream.write_all(&(fds.len() as u64).to_ne_bytes())?;
    stream.write_all(&text)?;
    for batch in fds.chunks(BATCH) {
        let batch: Vec<_> = batch.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&batch)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        rustix::net::sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// Receives what [`send`] sent.
pub fn receive(socket: &UnixStream) -> io::Result<(SwitchState, Vec<OwnedFd>)> {
    let mut stream = socket;
    let mut word = || {
        let mut bytes = [0; 8];
        stream.read_exact(&mut bytes).map(|()| u64::from_ne_bytes(bytes))
    };
    let (len, count) = (word()?, word()?);
    if len > LONGEST {
        return Err(io::Error::other("the state is too long"));
    }
    let mut text = Vec::new();
    socket.take(len).read_to_end(&mut text)?;
    let mut fds = Vec::new();
    while (fds.len() as u64) < count {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let read = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut [0])], &mut control, flags)?;
        let before = fds.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                fds.extend(more);
            }
        }
        if read.bytes == 0 || fds.len() == before {
            return Err(io::Error::other(
                "descriptors are missing: the limit on open files may be too low",
            ));
        }
    }
    let state: SwitchState = serde_json::from_slice(&text)?;
    if state.format != FORMAT {
        return Err(io::Error::other(format!(
            "the state is of format {}, and this program knows {FORMAT}",
            state.format
        )));
    }
    Ok((state, fds))
}

/// Says that the new daemon waits for the state.
pub fn say_ready(mut socket: &UnixStream) -> io::Result<()> {
    socket.write_all(&[READY])
}

/// Says that the new daemon goes on with the bridge.
pub fn say_done(mut socket: &UnixStream) -> io::Result<()> {
    socket.write_all(&[DONE])
}

/// Waits until the new daemon has started.
pub fn wait_ready(socket: &UnixStream) -> io::Result<()> {
    expect(socket, READY)
}

/// Waits until the new daemon goes on with the bridge.
pub fn wait_done(socket: &UnixStream) -> io::Result<()> {
    expect(socket, DONE)
}

fn expect(mut socket: &UnixStream, word: u8) -> io::Result<()> {
    let mut said = [0];
    match socket.read_exact(&mut said) {
        Ok(()) if said == [word] => Ok(()),
        Ok(()) => Err(io::Error::other("it said something else than was to come")),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(io::Error::other("it ended")),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(io::Error::other("it was silent for too long"))
        }
        Err(error) => Err(error),
    }
}
