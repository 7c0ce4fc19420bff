//! One vhost-user socket: front-ends come and go, one at a time, and the session outlives them all.
//!
//! A session has a thread of its own, which may sleep on the socket but never on a peer: it waits with deadlines
//! and for its stop signal at once, and hands the `vhost` crate only messages that have wholly arrived.

mod back_channel;
mod connection;
mod handler;
mod handover;
mod inflight;
mod rings;
mod socket;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll};
use virtio::memory::guard::fault_event;

use crate::config::{PortConfig, PortError};
use crate::plane::DevicePlane;
use connection::{Connection, ConnectionError, End};
use handler::Handler;
use handover::{ConnectionState, Fds};
pub use handover::{Handover, SessionState};
pub use inflight::Taken;
use socket::Server;
pub use socket::SocketError;
pub(crate) use socket::connect;

/// After a connection that ended in an error: how long until the next one is served.
const PAUSE: Duration = Duration::from_millis(20);
/// How long the thread of a session that was told to end may take. It takes longer only in the kernel: the peer may have
/// sent a descriptor whose file system is a process of its own, which has to be asked even when the descriptor is closed.
const END: Duration = Duration::from_secs(2);
/// The longest pause between two attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Which end makes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SocketMode {
    /// Listen; front-ends connect.
    #[default]
    Server,
    /// Connect to a listening front-end, for ever.
    Client,
}

/// The socket of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    /// Where it is in the file system.
    pub path: PathBuf,
    /// Which end makes the connection.
    pub mode: SocketMode,
    /// How long a peer may take to say its first word, to finish a message, or to take a reply.
    pub patience: Duration,
}

impl SocketConfig {
    /// A listening socket at `path`.
    pub fn server(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            mode: SocketMode::Server,
            patience: Duration::from_secs(5),
        }
    }

    /// A socket that connects to `path`.
    pub fn client(path: impl Into<PathBuf>) -> Self {
        Self {
            mode: SocketMode::Client,
            ..Self::server(path)
        }
    }
}

/// Why a session cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The port's configuration makes no device.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The operating system gives no descriptor or thread.
    #[error("session refused by the operating system: {0}; check the limits on descriptors and threads")]
    Os(#[from] io::Error),
}

/// What a session is doing, for people and for the API.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionStatus {
    /// A front-end is connected.
    pub connected: bool,
    /// Front-ends that have connected so far.
    pub connections: u64,
    /// Connections that ended because the front-end broke the protocol.
    pub errors: u64,
    /// The feature bits that the front-end acknowledged.
    pub features: u64,
    /// Rings that run, one bit each.
    pub started_rings: u32,
    /// Rings that are enabled, one bit each.
    pub enabled_rings: u32,
    /// The MTU that the front-end set.
    pub mtu: Option<u16>,
    /// Memory regions mapped.
    pub regions: usize,
    /// What the last connection that ended in an error ended with.
    pub last_error: Option<String>,
}

impl SessionStatus {
    /// Queue pairs of which both rings run and are enabled.
    pub fn enabled_queue_pairs(&self) -> u32 {
        let active = self.started_rings & self.enabled_rings;
        (active & (active >> 1) & 0x5555_5555).count_ones()
    }
}

/// State that the session's thread and its handle share.
#[derive(Debug)]
pub(crate) struct Shared {
    stop: OwnedFd,
    stopping: AtomicBool,
    /// It stops to be gone on with elsewhere.
    handing_over: AtomicBool,
    link_up: AtomicBool,
    /// Counts changes of the link state that the session's thread has not looked at.
    link_changed: OwnedFd,
    /// An epoll instance with an event for each page of shared memory that vanished in this process.
    faults: OwnedFd,
    status: Mutex<SessionStatus>,
}

impl Shared {
    fn new(link_up: bool) -> io::Result<Self> {
        let event = || rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let faults = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let once = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&faults, fault_event()?, epoll::EventData::new_u64(0), once)?;
        Ok(Self {
            stop: event()?,
            stopping: AtomicBool::new(false),
            handing_over: AtomicBool::new(false),
            link_up: AtomicBool::new(link_up),
            link_changed: event()?,
            faults,
            status: Mutex::default(),
        })
    }

    fn link_up(&self) -> bool {
        self.link_up.load(Ordering::Acquire)
    }

    /// Set the link state, and have the session's thread tell the front-end of it.
    fn set_link(&self, up: bool) {
        if self.link_up.swap(up, Ordering::AcqRel) != up {
            let _ = rustix::io::write(&self.link_changed, &1u64.to_ne_bytes());
        }
    }

    fn status(&self) -> MutexGuard<'_, SessionStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleep, but not past the end of the session. True once the session is to end.
    fn sleep(&self, time: Duration) -> bool {
        let mut poll = [PollFd::new(&self.stop, PollFlags::IN)];
        let _ = rustix::event::poll(&mut poll, Some(&timespec(time)));
        self.stopping.load(Ordering::Acquire)
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

/// One vhost-user socket and the device behind it.
#[derive(Debug)]
pub struct Session;

impl Session {
    /// Open the socket and serve it on a new thread.
    pub fn spawn(
        socket: SocketConfig,
        port: PortConfig,
        plane: Arc<dyn DevicePlane>,
    ) -> Result<SessionHandle, SessionError> {
        port.check()?;
        let server = match socket.mode {
            SocketMode::Server => Some(Server::bind(&socket.path)?),
            SocketMode::Client => None,
        };
        Self::start(socket, port, plane, server, None)
    }

    /// Go on with a session that [`SessionHandle::hand_over`] stopped. The port must be what it was.
    pub fn resume(
        socket: SocketConfig,
        port: PortConfig,
        plane: Arc<dyn DevicePlane>,
        handover: Handover,
    ) -> Result<SessionHandle, SessionError> {
        port.check()?;
        let Handover { state, fds } = handover;
        let mut fds = Fds(fds.into_iter());
        let server = fds
            .next_if(state.listener)?
            .map(|listener| Server::take_over(listener, &socket.path));
        let stream = fds.next_if(state.connection.is_some())?.map(UnixStream::from);
        let resumed = Resumed { state, stream, fds };
        Self::start(socket, port, plane, server, Some(resumed))
    }

    fn start(
        socket: SocketConfig,
        port: PortConfig,
        plane: Arc<dyn DevicePlane>,
        server: Option<Server>,
        resumed: Option<Resumed>,
    ) -> Result<SessionHandle, SessionError> {
        let shared = Arc::new(Shared::new(port.link_up)?);
        if let Some(resumed) = &resumed {
            let mut status = shared.status();
            status.connections = resumed.state.connections;
            status.errors = resumed.state.errors;
        }
        let worker = Worker {
            socket,
            port: Arc::new(port),
            plane,
            shared: Arc::clone(&shared),
            server,
        };
        // Before anybody is told that it goes on: what cannot be gone on with is refused.
        let (tell, told) = std::sync::mpsc::channel();
        let (give, given) = std::sync::mpsc::channel();
        // Thread names are cut to 15 bytes by the kernel; the port's name is what tells them apart.
        let name = format!("vu-{}", worker.port.name);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let handover = worker.run(resumed, &tell);
            let _ = give.send(handover);
        })?;
        let handle = SessionHandle {
            shared,
            thread: Mutex::new(Some(thread)),
            handover: Mutex::new(given),
        };
        match told.recv() {
            Ok(Some(error)) => Err(error.into()),
            Ok(None) | Err(_) => Ok(handle),
        }
    }

    /// Serve one front-end that is connected already, on this thread, until it goes or breaks the protocol; what
    /// became of it is in the status.
    pub fn serve(
        stream: UnixStream,
        patience: Duration,
        port: PortConfig,
        plane: Arc<dyn DevicePlane>,
    ) -> Result<SessionStatus, SessionError> {
        port.check()?;
        let shared = Arc::new(Shared::new(port.link_up)?);
        let worker = Worker {
            socket: SocketConfig {
                patience,
                ..SocketConfig::server("")
            },
            port: Arc::new(port),
            plane,
            shared: Arc::clone(&shared),
            server: None,
        };
        // Nobody stops it, so there is no state to go on with.
        let _ = worker.serve(stream);
        let status = shared.status().clone();
        Ok(status)
    }
}

/// A session to be gone on with.
struct Resumed {
    state: SessionState,
    stream: Option<UnixStream>,
    fds: Fds,
}

/// The owner's end of a session. Dropping it stops the session.
#[derive(Debug)]
pub struct SessionHandle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// What the thread leaves when it was stopped to be gone on with.
    handover: Mutex<Receiver<Option<Handover>>>,
}

impl SessionHandle {
    /// End the session: the front-end is disconnected, the socket removed, and the plane no longer called.
    ///
    /// False when its thread does not come back from the kernel in time, to which a front-end can bring it. The plane is
    /// then called once more, when it does: [`DevicePlane::disconnected`], which whoever ends the session calls meanwhile.
    pub fn stop(&self) -> bool {
        self.tell_to_stop();
        let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return true;
        };
        let left = self.handover.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(RecvTimeoutError::Timeout) = left.recv_timeout(END) {
            tracing::error!("a session does not end: its front-end holds it up in the kernel");
            return false;
        }
        if thread.join().is_err() {
            tracing::error!("a session ended by a panic");
        }
        true
    }

    /// Begin what [`SessionHandle::hand_over`] ends: with many sessions, each has this done first.
    pub fn begin_hand_over(&self) {
        self.shared.handing_over.store(true, Ordering::Release);
        self.tell_to_stop();
    }

    /// End the session without its front-end noticing: [`Session::resume`] goes on with it, here or in another process.
    /// `None` when it had ended before, or cannot be gone on with.
    pub fn hand_over(&self) -> Option<Handover> {
        self.begin_hand_over();
        let given = self.handover.lock().unwrap_or_else(PoisonError::into_inner);
        // The thread's own end takes the kernel some milliseconds, for which nobody need wait.
        drop(self.thread.lock().unwrap_or_else(PoisonError::into_inner).take());
        given.recv_timeout(END).ok().flatten()
    }

    fn tell_to_stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
    }

    /// Set the link state that the front-end reads from the configuration space. Never waits; a front-end that
    /// gave a back-end channel is told when it changes.
    pub fn set_link(&self, up: bool) {
        self.shared.set_link(up);
    }

    /// What the session is doing.
    pub fn status(&self) -> SessionStatus {
        self.shared.status().clone()
    }
}

impl Drop for SessionHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The session's thread.
struct Worker {
    socket: SocketConfig,
    port: Arc<PortConfig>,
    plane: Arc<dyn DevicePlane>,
    shared: Arc<Shared>,
    server: Option<Server>,
}

/// How serving one front-end ended.
enum Served {
    Well,
    Badly,
    /// It was stopped to be gone on with: the front-end's connection and its state.
    Saved(ConnectionState, Vec<OwnedFd>),
}

impl Worker {
    fn run(mut self, resumed: Option<Resumed>, told: &Sender<Option<io::Error>>) -> Option<Handover> {
        let served = match resumed {
            Some(resumed) => self.go_on(resumed, told),
            None => None,
        };
        let _ = told.send(None);
        let saved = match served {
            Some(Served::Saved(state, fds)) => Some((state, fds)),
            _ if self.server.is_some() => self.listen(),
            _ => self.connect(),
        };
        if !self.shared.handing_over.load(Ordering::Acquire) {
            return None;
        }
        self.saved(saved)
            .inspect_err(|error| tracing::error!(port = %self.port.name, "not handed over: {error}"))
            .ok()
    }

    fn saved(&mut self, connection: Option<(ConnectionState, Vec<OwnedFd>)>) -> io::Result<Handover> {
        let (connection, more) = connection.unzip();
        let mut fds = Vec::new();
        if let Some(server) = &mut self.server {
            fds.push(server.hand_over()?);
        }
        fds.extend(more.into_iter().flatten());
        let status = self.shared.status();
        Ok(Handover {
            state: SessionState {
                listener: self.server.is_some(),
                connection,
                connections: status.connections,
                errors: status.errors,
            },
            fds,
        })
    }

    /// Serve the front-end that was connected elsewhere, if there was one.
    fn go_on(&self, resumed: Resumed, told: &Sender<Option<io::Error>>) -> Option<Served> {
        let Resumed {
            state,
            stream,
            mut fds,
        } = resumed;
        let (connection, stream) = state.connection.zip(stream)?;
        {
            let mut status = self.shared.status();
            status.connected = true;
        }
        self.plane.connected();
        let handler = self.handler();
        let again = Connection::resume(
            stream,
            Arc::clone(&handler),
            self.socket.patience,
            connection.features,
            connection.protocol,
        );
        let restored = again.map_err(io::Error::other).and_then(|again| {
            let mut handler = handler.lock().unwrap_or_else(PoisonError::into_inner);
            handler.restore(&connection, &mut fds)?;
            Ok(again)
        });
        match restored {
            Ok(connection) => {
                let _ = told.send(None);
                Some(self.attend(Ok(connection), handler, true))
            }
            Err(error) => {
                self.plane.disconnected();
                self.shared.stopping.store(true, Ordering::Release);
                let _ = told.send(Some(error));
                Some(Served::Badly)
            }
        }
    }

    fn listen(&self) -> Option<(ConnectionState, Vec<OwnedFd>)> {
        let server = self.server.as_ref()?;
        while !self.shared.stopping.load(Ordering::Acquire) {
            match server.accept(&self.shared.stop) {
                Ok(Some(stream)) => match self.serve(stream) {
                    Served::Well => {}
                    Served::Badly => {
                        self.shared.sleep(PAUSE);
                    }
                    Served::Saved(state, fds) => return Some((state, fds)),
                },
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(port = %self.port.name, "cannot accept a connection: {error}");
                    self.shared.sleep(LONGEST_PAUSE);
                }
            }
        }
        None
    }

    fn connect(&self) -> Option<(ConnectionState, Vec<OwnedFd>)> {
        let mut pause = PAUSE;
        while !self.shared.stopping.load(Ordering::Acquire) {
            match socket::connect(&self.socket.path) {
                Ok(stream) => match self.serve(stream) {
                    Served::Well => pause = PAUSE,
                    Served::Badly => {}
                    Served::Saved(state, fds) => return Some((state, fds)),
                },
                Err(error) => tracing::debug!(port = %self.port.name, "not connected: {error}"),
            }
            self.shared.sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        None
    }

    fn handler(&self) -> Arc<Mutex<Handler>> {
        Arc::new(Mutex::new(Handler::new(
            Arc::clone(&self.port),
            Arc::clone(&self.plane),
            Arc::clone(&self.shared),
        )))
    }

    /// Serve one front-end to its end.
    fn serve(&self, stream: UnixStream) -> Served {
        {
            let mut status = self.shared.status();
            let (connections, errors, last_error) =
                (status.connections + 1, status.errors, status.last_error.take());
            *status = SessionStatus {
                connected: true,
                connections,
                errors,
                last_error,
                ..SessionStatus::default()
            };
        }
        self.plane.connected();
        let handler = self.handler();
        let connection = Connection::new(stream, Arc::clone(&handler), self.socket.patience);
        self.attend(connection, handler, false)
    }

    fn attend(
        &self,
        connection: Result<Connection, ConnectionError>,
        handler: Arc<Mutex<Handler>>,
        greeted: bool,
    ) -> Served {
        let mut saved = None;
        let result = connection.and_then(|mut connection| {
            let end = connection.serve(&self.shared, self.server.as_ref(), greeted)?;
            if end == End::Stopped && self.shared.handing_over.load(Ordering::Acquire) {
                let (state, fds) = handler.lock().unwrap_or_else(PoisonError::into_inner).save()?;
                let stream = OwnedFd::from(connection.into_stream());
                saved = Some((state, std::iter::once(stream).chain(fds).collect()));
            }
            Ok(())
        });
        // Rings first, memory after them: `Handler` owns the mappings and goes last.
        self.plane.disconnected();
        drop(handler);
        let mut status = self.shared.status();
        *status = SessionStatus {
            connections: status.connections,
            errors: status.errors + u64::from(result.is_err()),
            last_error: result
                .as_ref()
                .err()
                .map(ToString::to_string)
                .or(status.last_error.take()),
            ..SessionStatus::default()
        };
        drop(status);
        if let Some((state, fds)) = saved {
            return Served::Saved(state, fds);
        }
        match &result {
            Ok(()) => tracing::info!(port = %self.port.name, "the front-end disconnected"),
            Err(error) => tracing::warn!(port = %self.port.name, "connection ended: {error}"),
        }
        if result.is_ok() {
            Served::Well
        } else {
            Served::Badly
        }
    }
}

impl From<rustix::io::Errno> for ConnectionError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Os(errno.into())
    }
}
