//! One connected front-end: messages are let through to the `vhost` crate one by one, when they are whole.
//!
//! The crate reads a message with blocking calls, retries for ever on some errors and refuses a few requests that
//! this device serves. So every header is looked at first (`MSG_PEEK`): the crate only ever reads what is already
//! there, replies only into a socket with room, and never sees what it doesn't know.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, epoll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags};
use vhost::vhost_user::message::{FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use super::handler::Handler;
use super::socket::Server;
use super::{Shared, timespec};

/// Bytes of a message header: request, flags, size.
const HEADER: usize = 12;
const VERSION: u32 = 1;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;
/// How often a message that has not wholly arrived is looked at again.
const STEP: Duration = Duration::from_millis(2);
/// How often a front-end that had no room for news of its link is told again.
const LOOK: Duration = Duration::from_secs(1);

/// Why a connection ended before its front-end closed it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    /// The peer said nothing.
    #[error("the front-end sent no message in time; it must begin the handshake when it connects")]
    Silent,
    /// A message did not arrive as a whole.
    #[error("the front-end sent part of a message only; it must send messages whole")]
    Partial,
    /// The peer does not read what it asked for.
    #[error("the front-end does not read replies; it must take the answers to its requests")]
    NotReading,
    /// The header is none of this protocol.
    #[error("header refused: request {request}, flags {flags:#x}, {size} bytes; send vhost-user version 1")]
    Header {
        /// The request's number.
        request: u32,
        /// Version and flags.
        flags: u32,
        /// The payload's length.
        size: u32,
    },
    /// Too many descriptors in one message.
    #[error("message refused: it carries more than {MAX_ATTACHED_FD_ENTRIES} descriptors")]
    TooManyFds,
    /// A request failed or makes no sense now.
    #[error("request {request} refused: {error}")]
    Request {
        /// The request's number.
        request: u32,
        /// What was wrong with it.
        error: VhostError,
    },
    /// An MTU that the device cannot have, and nobody waiting to be told.
    #[error("MTU {0} refused: out of the device's range")]
    Mtu(u64),
    /// Pages of shared memory vanished.
    #[error("the front-end took away memory that it shared; its file must keep its size")]
    MemoryLost,
    /// The operating system failed a call on the socket.
    #[error("socket error: {0}")]
    Os(#[from] io::Error),
}

#[derive(Debug, Clone, Copy)]
struct Header {
    request: u32,
    flags: u32,
    size: u32,
}

impl Header {
    fn needs_reply(self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    fn is(self, request: FrontendReq) -> bool {
        self.request == u32::from(request)
    }

    fn refused(self) -> ConnectionError {
        ConnectionError::Header {
            request: self.request,
            flags: self.flags,
            size: self.size,
        }
    }
}

/// How a connection ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The front-end closed it.
    Closed,
    /// The session is to stop.
    Stopped,
}

/// What the wait for the next message came to.
enum Next {
    Message(Header),
    Closed,
    Stop,
}

pub(super) struct Connection {
    stream: UnixStream,
    requests: BackendReqHandler<Mutex<Handler>>,
    handler: Arc<Mutex<Handler>>,
    patience: Duration,
}

impl Connection {
    pub(super) fn new(
        stream: UnixStream,
        handler: Arc<Mutex<Handler>>,
        patience: Duration,
    ) -> Result<Self, ConnectionError> {
        let requests = BackendReqHandler::from_stream(stream.try_clone()?, Arc::clone(&handler));
        Ok(Self {
            stream,
            requests,
            handler,
            patience,
        })
    }

    /// Go on with a connection on which another process negotiated features.
    ///
    /// The `vhost` crate keeps its own notion of them, which only messages change: they are said once more, over a socket
    /// pair, in whose place the connection is then put.
    pub(super) fn resume(
        stream: UnixStream,
        handler: Arc<Mutex<Handler>>,
        patience: Duration,
        features: u64,
        protocol: Option<u64>,
    ) -> Result<Self, ConnectionError> {
        let (mut said, heard) = UnixStream::pair()?;
        let mut requests = BackendReqHandler::from_stream(heard, Arc::clone(&handler));
        let mut say = |request: FrontendReq, payload: &[u8]| {
            let size = u32::try_from(payload.len()).unwrap_or(0);
            let header = [u32::from(request), VERSION, size].map(u32::to_ne_bytes);
            said.write_all(&[header.as_flattened(), payload].concat())?;
            requests
                .handle_request()
                .map_err(|error| ConnectionError::Request {
                    request: u32::from(request),
                    error,
                })
        };
        say(FrontendReq::GET_FEATURES, &[])?;
        if let Some(protocol) = protocol {
            say(FrontendReq::GET_PROTOCOL_FEATURES, &[])?;
            say(FrontendReq::SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes())?;
        }
        if features != 0 {
            say(FrontendReq::SET_FEATURES, &features.to_ne_bytes())?;
        }
        replace(requests.as_raw_fd(), &stream)?;
        Ok(Self {
            stream,
            requests,
            handler,
            patience,
        })
    }

    /// The socket, for whoever goes on with the connection.
    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Serve requests until the front-end goes, breaks the protocol, or the session is to stop. One that was `greeted`
    /// before need not say anything.
    pub(super) fn serve(
        &mut self,
        shared: &Shared,
        server: Option<&Server>,
        mut greeted: bool,
    ) -> Result<End, ConnectionError> {
        loop {
            match self.next(shared, server, greeted)? {
                Next::Stop => return Ok(End::Stopped),
                Next::Closed => return Ok(End::Closed),
                Next::Message(header) => self.handle(header)?,
            }
            greeted = true;
        }
    }

    fn handler(&self) -> MutexGuard<'_, Handler> {
        self.handler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&mut self, header: Header) -> Result<(), ConnectionError> {
        if header.is(FrontendReq::NET_SET_MTU) {
            return self.set_mtu(header);
        }
        if header.is(FrontendReq::SEND_RARP) {
            return self.send_rarp(header);
        }
        if header.is(FrontendReq::SET_VRING_ENABLE) {
            return self.set_vring_enable(header);
        }
        if header.is(FrontendReq::SET_BACKEND_REQ_FD) {
            return self.set_back_channel(header);
        }
        let result = self.requests.handle_request();
        let kept = std::mem::take(&mut self.handler().keep);
        match result {
            Ok(()) => Ok(()),
            // The peer asked for the verdict and got it: it may go on.
            Err(_) if kept && header.needs_reply() => Ok(()),
            Err(error) => Err(ConnectionError::Request {
                request: header.request,
                error,
            }),
        }
    }

    /// `VHOST_USER_NET_SET_MTU`, which the `vhost` crate does not know.
    fn set_mtu(&self, header: Header) -> Result<(), ConnectionError> {
        let mtu = self.take_u64(header)?;
        let refused = |error| ConnectionError::Request {
            request: header.request,
            error,
        };
        let accepted = self.handler().set_mtu(mtu).map_err(refused)?;
        let told = self.answer(header, accepted)?;
        if accepted || told {
            Ok(())
        } else {
            Err(ConnectionError::Mtu(mtu))
        }
    }

    /// `VHOST_USER_SEND_RARP`, which the `vhost` crate does not know: the address is in the first six bytes.
    fn send_rarp(&self, header: Header) -> Result<(), ConnectionError> {
        let payload = self.take_u64(header)?.to_ne_bytes();
        let mut mac = [0; 6];
        mac.copy_from_slice(&payload[..6]);
        let result = self.handler().send_rarp(mac);
        self.answer(header, result.is_ok())?;
        result.map_err(|error| ConnectionError::Request {
            request: header.request,
            error,
        })
    }

    /// `VHOST_USER_SET_VRING_ENABLE`, which the `vhost` crate takes only after `SET_FEATURES`. QEMU sends it for the
    /// rings of unused queue pairs as soon as protocol features are negotiated.
    fn set_vring_enable(&self, header: Header) -> Result<(), ConnectionError> {
        let state = self.take_u64(header)?.to_ne_bytes();
        let word = |at: usize| u32::from_ne_bytes([state[at], state[at + 1], state[at + 2], state[at + 3]]);
        let result = self.handler().set_vring_state(word(0), word(4));
        self.answer(header, result.is_ok())?;
        result.map_err(|error| ConnectionError::Request {
            request: header.request,
            error,
        })
    }

    /// `VHOST_USER_SET_BACKEND_REQ_FD`, of which the `vhost` crate makes a channel that waits for its reader and
    /// cannot tell of a changed configuration.
    fn set_back_channel(&self, header: Header) -> Result<(), ConnectionError> {
        let (_, mut fds) = self.take::<HEADER>(header)?;
        let result = match (fds.pop(), fds.pop()) {
            (Some(socket), None) => self.handler().set_back_channel(socket),
            _ => Err(VhostError::IncorrectFds),
        };
        self.answer(header, result.is_ok())?;
        result.map_err(|error| ConnectionError::Request {
            request: header.request,
            error,
        })
    }

    /// Take a message whose payload is eight bytes, and no descriptor, off the socket.
    fn take_u64(&self, header: Header) -> Result<u64, ConnectionError> {
        let (message, fds) = self.take::<{ HEADER + 8 }>(header)?;
        if !fds.is_empty() {
            return Err(header.refused());
        }
        let mut value = [0u8; 8];
        value.copy_from_slice(&message[HEADER..]);
        Ok(u64::from_ne_bytes(value))
    }

    /// Take a message of `SIZE` bytes, and what comes with it, off the socket.
    fn take<const SIZE: usize>(&self, header: Header) -> Result<([u8; SIZE], Vec<OwnedFd>), ConnectionError> {
        let mut message = [0u8; SIZE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        // Whether there are descriptors shows only now: a look at one message sees those of the next as well.
        let taken = rustix::net::recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut message)],
            &mut control,
            RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
        )?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                fds.extend(more);
            }
        }
        let whole = taken.bytes == SIZE && !taken.flags.contains(ReturnFlags::CTRUNC);
        if HEADER + header.size as usize == SIZE && whole {
            Ok((message, fds))
        } else {
            Err(header.refused())
        }
    }

    /// Reply with 0 or 1 to a request that wants it; false when it does not.
    fn answer(&self, header: Header, accepted: bool) -> Result<bool, ConnectionError> {
        if !header.needs_reply() || !self.handler().replies() {
            return Ok(false);
        }
        let mut reply = Vec::with_capacity(HEADER + 8);
        for word in [header.request, VERSION | FLAG_REPLY, 8] {
            reply.extend(word.to_ne_bytes());
        }
        reply.extend(u64::from(!accepted).to_ne_bytes());
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if rustix::net::send(&self.stream, &reply, flags)? == reply.len() {
            Ok(true)
        } else {
            Err(ConnectionError::NotReading)
        }
    }

    /// Wait until a whole message is there and a reply would find room; meanwhile tell the front-end what is new.
    fn next(&self, shared: &Shared, server: Option<&Server>, greeted: bool) -> Result<Next, ConnectionError> {
        let stop = &shared.stop;
        let deadline = (!greeted).then(|| Instant::now() + self.patience);
        loop {
            let untold = self.handler().tell_link();
            let control = self.handler().control_wait();
            let limit = match deadline {
                Some(at) => Some(at.saturating_duration_since(Instant::now())),
                None => untold.then_some(LOOK),
            };
            let limit = limit.into_iter().chain(control.limit).min().map(timespec);
            let mut poll = vec![
                PollFd::new(stop, PollFlags::IN),
                PollFd::new(&self.stream, PollFlags::IN | PollFlags::RDHUP),
                PollFd::new(&shared.link_changed, PollFlags::IN),
                PollFd::new(&shared.faults, PollFlags::IN),
            ];
            if let Some(server) = server {
                poll.push(PollFd::new(server, PollFlags::IN));
            }
            if let Some(kicks) = &control.kicks {
                poll.push(PollFd::new(&**kicks, PollFlags::IN));
            }
            match rustix::event::poll(&mut poll, limit.as_ref()) {
                Ok(0) if deadline.is_some_and(|at| at <= Instant::now()) => {
                    return Err(ConnectionError::Silent);
                }
                Ok(_) if self.handler().memory_lost() => return Err(ConnectionError::MemoryLost),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let ready = |at: usize| poll.get(at).is_some_and(|fd| !fd.revents().is_empty());
            let (stop_now, peer, link_changed) = (ready(0), ready(1), ready(2));
            let newcomer = server.is_some() && ready(4);
            let kicked = control.kicks.is_some() && ready(4 + usize::from(server.is_some()));
            if ready(3) {
                // The event is over; whose memory it was is looked at each time that anything happens.
                let mut events = [MaybeUninit::uninit(); 1];
                epoll::wait(&shared.faults, &mut events, Some(&timespec(Duration::ZERO)))?;
            }
            if stop_now {
                return Ok(Next::Stop);
            }
            if link_changed {
                // Before the state is looked at: what changes later is counted again.
                let _ = rustix::io::read(&shared.link_changed, &mut [0u8; 8]);
            }
            self.handler().attend_control(kicked);
            if peer {
                break;
            }
            // Only now, when the present peer is known to be there: a front-end that reconnects closes first.
            if let (true, Some(server)) = (newcomer, server) {
                server.turn_away();
            }
        }
        let deadline = Instant::now() + self.patience;
        let mut header = None;
        loop {
            let hung_up = self.hung_up()?;
            let there = rustix::io::ioctl_fionread(&self.stream)?;
            if there == 0 && hung_up {
                return Ok(Next::Closed);
            }
            if header.is_none() && there >= HEADER as u64 {
                header = Some(self.peek()?);
            }
            if let Some(header) = header
                && there >= HEADER as u64 + u64::from(header.size)
            {
                return self.room(stop, header, deadline);
            }
            if hung_up {
                return Err(ConnectionError::Partial);
            }
            if Instant::now() >= deadline {
                return Err(ConnectionError::Partial);
            }
            if wait(stop, PollFlags::IN, STEP)? {
                return Ok(Next::Stop);
            }
        }
    }

    /// The message is whole; wait until its reply would fit.
    ///
    /// The kernel calls a socket writable while a quarter of its send buffer is used at most, so a reply of up to
    /// 4 KiB never waits once that is seen.
    fn room(&self, stop: &OwnedFd, header: Header, deadline: Instant) -> Result<Next, ConnectionError> {
        while !wait(&self.stream, PollFlags::OUT, Duration::ZERO)? {
            if Instant::now() >= deadline {
                return Err(ConnectionError::NotReading);
            }
            if wait(stop, PollFlags::IN, STEP)? {
                return Ok(Next::Stop);
            }
        }
        Ok(Next::Message(header))
    }

    fn hung_up(&self) -> Result<bool, ConnectionError> {
        let mut poll = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        rustix::event::poll(&mut poll, Some(&timespec(Duration::ZERO)))?;
        Ok(!poll[0].revents().is_empty())
    }

    /// Look at the header of the message that is next, and at what comes with it, without taking it.
    fn peek(&self) -> Result<Header, ConnectionError> {
        let mut bytes = [0u8; HEADER];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
        // Descriptors are duplicated by the look and closed again when this goes out of scope.
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let seen = rustix::net::recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            flags,
        )?;
        let count = control.drain().fold(0, |count, message| match message {
            RecvAncillaryMessage::ScmRights(fds) => count + fds.count(),
            _ => count,
        });
        // The space is rounded up, so that it may hold one or two more.
        if seen.flags.contains(ReturnFlags::CTRUNC) || count > MAX_ATTACHED_FD_ENTRIES {
            return Err(ConnectionError::TooManyFds);
        }
        if seen.bytes != HEADER {
            // Descriptors in the middle of a header end the look: no front-end sends that.
            return Err(ConnectionError::Partial);
        }
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let header = Header {
            request: word(0),
            flags: word(4),
            size: word(8),
        };
        let known = FrontendReq::try_from(header.request).is_ok();
        let version = header.flags & !FLAG_NEED_REPLY == VERSION;
        if !known || !version || header.size as usize > MAX_MSG_SIZE {
            return Err(header.refused());
        }
        Ok(header)
    }
}

/// Have descriptor `number`, which somebody else owns, refer to what `stream` refers to.
fn replace(number: RawFd, stream: &UnixStream) -> io::Result<()> {
    // SAFETY: both are open descriptors of this process. `number` stays its owner's, who closes it as before.
    if unsafe { libc::dup3(stream.as_raw_fd(), number, libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Wait for `events` on one descriptor; false when `time` passes first.
fn wait(fd: impl std::os::fd::AsFd, events: PollFlags, time: Duration) -> Result<bool, ConnectionError> {
    let mut poll = [PollFd::new(&fd, events)];
    match rustix::event::poll(&mut poll, Some(&timespec(time))) {
        Ok(_) => Ok(!poll[0].revents().is_empty()),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
