//! A back-end that does as it is told: answers, refuses, falls silent or dies at a given message.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::SOON;
use crate::vhost_user::features;

pub(super) const GET_FEATURES: u32 = 1;
pub(super) const SET_FEATURES: u32 = 2;
pub(super) const SET_OWNER: u32 = 3;
pub(super) const SET_MEM_TABLE: u32 = 5;
pub(super) const SET_VRING_NUM: u32 = 8;
pub(super) const SET_VRING_BASE: u32 = 10;
pub(super) const GET_VRING_BASE: u32 = 11;
pub(super) const SET_VRING_KICK: u32 = 12;
pub(super) const SET_VRING_CALL: u32 = 13;
pub(super) const SET_VRING_ERR: u32 = 14;
pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(super) const GET_QUEUE_NUM: u32 = 17;
pub(super) const SET_VRING_ENABLE: u32 = 18;
pub(super) const SET_BACKEND_REQ_FD: u32 = 21;
pub(super) const GET_CONFIG: u32 = 24;
pub(super) const SET_CONFIG: u32 = 25;
pub(super) const GET_MAX_MEM_SLOTS: u32 = 36;
pub(super) const ADD_MEM_REG: u32 = 37;
pub(super) const REM_MEM_REG: u32 = 38;

/// `MQ`, `REPLY_ACK`, `BACKEND_REQ`, `CONFIG` and `CONFIGURE_MEM_SLOTS`.
const PROTOCOL: u64 = 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 15;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// What to do on a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Answer,
    Refuse,
    FallSilent,
    Die,
}

/// A message as it came.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) code: u32,
    pub(super) body: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Message {
    /// The first two words of the body: queue index and value for the vring messages.
    pub(super) fn state(&self) -> (u32, u32) {
        let word = |at: usize| u32::from_le_bytes(self.body[at..at + 4].try_into().unwrap());
        (word(0), word(4))
    }

    pub(super) fn value(&self) -> u64 {
        u64::from_le_bytes(self.body[..8].try_into().unwrap())
    }
}

/// What a back-end offers.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    pub(super) features: u64,
    pub(super) queues: u64,
    pub(super) config: [u8; 12],
    /// A link state that changes.
    pub(super) link: Option<Arc<AtomicBool>>,
    /// Whether the guest is to announce itself.
    pub(super) announce: Option<Arc<AtomicBool>>,
}

impl Default for Offer {
    fn default() -> Self {
        let features = (features::BACKEND & !features::MTU) | features::PROTOCOL_FEATURES;
        Self {
            features,
            queues: 4,
            config: [0; 12],
            link: None,
            announce: None,
        }
    }
}

impl Offer {
    fn config(&self) -> [u8; 12] {
        let mut config = self.config;
        if let Some(link) = &self.link {
            config[6] = u8::from(link.load(Ordering::Acquire));
        }
        if let Some(announce) = &self.announce {
            config[6] |= u8::from(announce.load(Ordering::Acquire)) << 1;
        }
        config
    }
}

/// Listens on a socket and plays back-ends on it, one after another.
pub(super) struct Stage {
    pub(super) path: PathBuf,
    listener: UnixListener,
    dir: tempfile::TempDir,
}

/// A back-end at work on one connection.
pub(super) struct Backend {
    messages: Receiver<Message>,
    stream: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Stage {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nic.sock");
        let listener = UnixListener::bind(&path).unwrap();
        Self { path, listener, dir }
    }

    /// Takes the next connection and plays a back-end on it; `act` decides on the n-th message, from 0.
    pub(super) fn play(&self, offer: Offer, act: impl FnMut(usize, u32) -> Act + Send + 'static) -> Backend {
        Backend::on(self.listener.accept().unwrap().0, offer, act)
    }

    /// A back-end that behaves.
    pub(super) fn good(&self) -> Backend {
        self.play(Offer::default(), |_, _| Act::Answer)
    }

    /// Takes the listener away, does something, and gives it back.
    pub(super) fn closed_while<T>(self, something: impl FnOnce(&Path) -> T) -> (Self, T) {
        let Self { path, listener, dir } = self;
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        let result = something(&path);
        let listener = UnixListener::bind(&path).unwrap();
        (Self { path, listener, dir }, result)
    }
}

impl Backend {
    pub(super) fn on(
        stream: UnixStream,
        offer: Offer,
        act: impl FnMut(usize, u32) -> Act + Send + 'static,
    ) -> Self {
        let (log, messages) = channel();
        let ours = stream.try_clone().unwrap();
        let thread = std::thread::spawn(move || serve(&ours, &offer, act, &log));
        Self {
            messages,
            stream,
            thread: Some(thread),
        }
    }

    /// The next message with this code; others before it are dropped.
    pub(super) fn wait_for(&self, code: u32) -> Message {
        loop {
            let message = self
                .messages
                .recv_timeout(SOON)
                .expect("the message did not come");
            if message.code == code {
                return message;
            }
        }
    }

    /// All messages until the connection ended.
    pub(super) fn until_end(mut self) -> Vec<Message> {
        let all = self.messages.iter().collect();
        self.thread.take().unwrap().join().unwrap();
        all
    }

    /// Dies as by `kill -9`: the connection closes and every descriptor with it. Returns what was not yet read.
    pub(super) fn kill(mut self) -> Vec<Message> {
        self.end();
        self.messages.try_iter().collect()
    }

    fn end(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.end();
    }
}

fn serve(stream: &UnixStream, offer: &Offer, mut act: impl FnMut(usize, u32) -> Act, log: &Sender<Message>) {
    for n in 0.. {
        let Some((flags, message)) = receive(stream) else {
            return;
        };
        let (code, state) = (message.code, message.body.first_chunk::<4>().copied());
        let body = message.body.clone();
        // The test may have stopped listening.
        let _ = log.send(message);
        let refusal = match act(n, code) {
            Act::Die => {
                stream.shutdown(std::net::Shutdown::Both).unwrap();
                return;
            }
            Act::FallSilent => continue,
            Act::Refuse => 1_u64,
            Act::Answer => 0,
        };
        let answer = match code {
            GET_FEATURES => offer.features.to_le_bytes().to_vec(),
            GET_PROTOCOL_FEATURES => PROTOCOL.to_le_bytes().to_vec(),
            GET_QUEUE_NUM => offer.queues.to_le_bytes().to_vec(),
            GET_MAX_MEM_SLOTS => 32_u64.to_le_bytes().to_vec(),
            GET_VRING_BASE => [state.unwrap(), [0; 4]].concat(),
            GET_CONFIG => [&body[..12], &offer.config()].concat(),
            _ if flags & NEED_REPLY != 0 => refusal.to_le_bytes().to_vec(),
            _ => continue,
        };
        let length = u32::try_from(answer.len()).unwrap();
        let header = [code, 1 | REPLY, length].map(u32::to_le_bytes).concat();
        if (&mut &*stream).write_all(&[header, answer].concat()).is_err() {
            return;
        }
    }
}

/// One message, or none when the connection ends.
fn receive(stream: &UnixStream) -> Option<(u32, Message)> {
    let (header, fds) = receive_exactly(stream, 12)?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    let (body, _) = receive_exactly(stream, word(8) as usize)?;
    Some((
        word(4),
        Message {
            code: word(0),
            body,
            fds,
        },
    ))
}

fn receive_exactly(stream: &UnixStream, len: usize) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; len];
    let mut fds = Vec::new();
    let mut filled = 0;
    while filled < len {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes[filled..])];
        let got = rustix::net::recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
        if got.bytes == 0 {
            return None;
        }
        filled += got.bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
    }
    Some((bytes, fds))
}
