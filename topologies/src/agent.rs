//! The client of the guest agent: run commands in a guest, or in the emulated host, from outside.
//!
//! Every channel is a Unix socket of the VMM with a lock file beside it. Whoever holds the lock has the channel; clients take
//! the first that is free, so any number of `lab` commands can be at work at once, up to the number of channels.

mod exec;
pub(crate) mod terminal;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use netyard_agent::frame::{Decoder, FLUSH, HEADER, Kind, encode};
use netyard_agent::message::{CHANNEL_PREFIX, Hello, NONCE, VERSION};
use rustix::fs::{FlockOperation, Mode, OFlags};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

pub use exec::{CAPTURE_LIMIT, Control, Input, Output, Stdio};
pub use netyard_agent::message::{Exec, Size};
pub use terminal::run_here;

/// Channels of a guest.
pub const GUEST_CHANNELS: u8 = 8;

/// How long one greeting is given before the connection is made anew.
const GREETING: Duration = Duration::from_millis(1500);

/// How often a lock or a socket that is not there yet is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// Why a guest could not be talked to.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// All channels are taken.
    #[error("all {channels} agent channels in {folder} are in use; wait for another `lab exec` to end")]
    Busy {
        /// How many there are.
        channels: u8,
        /// Where they are.
        folder: PathBuf,
    },
    /// The lock file could not be used.
    #[error("cannot lock {path}: {source}; check that the folder is yours and writable")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody listens on the socket.
    #[error("cannot connect to {path}: {source}; is the machine running?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody answered.
    #[error(
        "no answer from the agent at {path} within {seconds} s; is the guest up, and does its image run the agent?"
    )]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// The agent speaks another version.
    #[error(
        "the guest's agent speaks version {theirs}, this program {VERSION}; build the image again and restart the guest"
    )]
    Version {
        /// What the agent answered.
        theirs: u8,
    },
    /// The connection ended.
    #[error("the guest hung up: {0}; did it stop or restart?")]
    HungUp(io::Error),
    /// The agent sent what it must not.
    #[error("the guest's agent does not keep to the protocol: {0}")]
    Protocol(String),
    /// The agent refused.
    #[error("the guest's agent refused: {0}")]
    Refused(String),
    /// The command cannot be sent.
    #[error("the command is too long for one message ({0} bytes); pass large data on standard input")]
    TooLong(usize),
    /// More output than can be held.
    #[error("the command wrote more than {CAPTURE_LIMIT} bytes; redirect its output or read less")]
    TooMuchOutput,
    /// Standard output or error failed.
    #[error("cannot write the command's output: {0}")]
    Output(io::Error),
    /// The local terminal failed.
    #[error("cannot use this terminal: {0}")]
    Terminal(io::Error),
    /// The user insisted.
    #[error("interrupted; the command was ended")]
    Interrupted,
}

/// Where the channels of one machine are: `agent.N.sock` and `agent.N.lock` in a folder.
#[derive(Debug, Clone)]
pub struct Channels {
    folder: PathBuf,
    count: u8,
}

impl Channels {
    /// The channels of a guest whose files are in `folder`.
    pub fn of_guest(folder: impl Into<PathBuf>) -> Self {
        Self::new(folder, GUEST_CHANNELS)
    }

    /// `count` channels in `folder`.
    pub fn new(folder: impl Into<PathBuf>, count: u8) -> Self {
        Self {
            folder: folder.into(),
            count,
        }
    }

    /// Number of channels.
    pub fn count(&self) -> u8 {
        self.count
    }

    /// The virtio-serial port's name inside.
    pub fn name(index: u8) -> String {
        format!("{CHANNEL_PREFIX}{index}")
    }

    /// The socket on which the VMM listens for channel `index`.
    pub fn socket(&self, index: u8) -> PathBuf {
        self.folder.join(format!("agent.{index}.sock"))
    }

    fn lock_file(&self, index: u8) -> PathBuf {
        self.folder.join(format!("agent.{index}.lock"))
    }

    /// Take the first free channel.
    fn take(&self) -> Result<Option<(u8, File)>, AgentError> {
        for index in 0..self.count {
            let path = self.lock_file(index);
            let refused = |source: rustix::io::Errno| AgentError::Lock {
                path: path.clone(),
                source: source.into(),
            };
            let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(refused)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some((index, file.into()))),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(refused(error)),
            }
        }
        Ok(None)
    }
}

/// A session with an agent. Dropping it ends the command that runs on it and frees the channel.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    decoder: Decoder,
    socket: PathBuf,
    // Held for as long as the connection lives.
    _lock: File,
}

impl Agent {
    /// Take a free channel and greet the agent, trying again until `limit` is over: a machine that is still booting answers as
    /// soon as its agent runs.
    pub async fn connect(channels: &Channels, limit: Duration) -> Result<Self, AgentError> {
        let deadline = Instant::now() + limit;
        let (index, lock) = loop {
            match channels.take()? {
                Some(taken) => break taken,
                None if Instant::now() + RETRY < deadline => sleep(RETRY).await,
                None => {
                    return Err(AgentError::Busy {
                        channels: channels.count,
                        folder: channels.folder.clone(),
                    });
                }
            }
        };
        let socket = channels.socket(index);
        let mut flush = false;
        loop {
            let mut stream = connect(&socket, deadline).await?;
            let attempt_ends = deadline.min(Instant::now() + GREETING);
            // The agent may be in the middle of a frame that a client before us left unfinished. That is rare, so it is
            // thought of only when the first greeting stays without answer.
            match timeout_at(attempt_ends, greet(&mut stream, flush)).await {
                Ok(Ok(decoder)) => {
                    return Ok(Self {
                        stream,
                        decoder,
                        socket,
                        _lock: lock,
                    });
                }
                Ok(Err(error @ AgentError::Version { .. })) => return Err(error),
                Ok(Err(error)) if Instant::now() >= deadline => return Err(error),
                Ok(Err(_)) => sleep(RETRY).await,
                Err(_) if Instant::now() >= deadline => {
                    return Err(AgentError::NoAnswer {
                        path: socket,
                        seconds: limit.as_secs(),
                    });
                }
                Err(_) => flush = true,
            }
        }
    }

    /// The socket of the channel in use.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Is the agent still there?
    pub async fn ping(&mut self, limit: Duration) -> Result<(), AgentError> {
        let mut message = Vec::new();
        encode(&mut message, Kind::Ping, b"netyard");
        let answer = async {
            self.stream
                .write_all(&message)
                .await
                .map_err(AgentError::HungUp)?;
            loop {
                if self.next_frame().await?.kind == Kind::Pong {
                    return Ok(());
                }
            }
        };
        match timeout(limit, answer).await {
            Ok(result) => result,
            Err(_) => Err(AgentError::NoAnswer {
                path: self.socket.clone(),
                seconds: limit.as_secs(),
            }),
        }
    }

    async fn next_frame(&mut self) -> Result<netyard_agent::frame::Frame, AgentError> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self
                .decoder
                .next_frame()
                .map_err(|error| AgentError::Protocol(error.to_string()))?
            {
                return Ok(frame);
            }
            let n = self.stream.read(&mut buffer).await.map_err(AgentError::HungUp)?;
            if n == 0 {
                return Err(AgentError::HungUp(io::ErrorKind::UnexpectedEof.into()));
            }
            self.decoder.push(&buffer[..n]);
        }
    }
}

/// Connect, giving a VMM that is just starting until `deadline` to listen.
async fn connect(socket: &Path, deadline: Instant) -> Result<UnixStream, AgentError> {
    loop {
        let source = match timeout_at(deadline, UnixStream::connect(socket)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        let may_come = matches!(
            source.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
        );
        if !may_come || Instant::now() + RETRY >= deadline {
            return Err(AgentError::Connect {
                path: socket.to_path_buf(),
                source,
            });
        }
        sleep(RETRY).await;
    }
}

/// Greet and wait for the answer with our nonce; whatever comes before it is the rest of an earlier session.
async fn greet(stream: &mut UnixStream, flush: bool) -> Result<Decoder, AgentError> {
    let mut nonce = [0; NONCE];
    rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| AgentError::Protocol(format!("no random numbers: {error}")))?;
    let mut message = if flush { vec![0; FLUSH] } else { Vec::new() };
    encode(
        &mut message,
        Kind::Hello,
        &Hello {
            nonce,
            version: VERSION,
        }
        .to_bytes(),
    );

    let (mut reader, mut writer) = stream.split();
    let answer = async {
        let wanted = &message[message.len() - HEADER - NONCE - 1..message.len() - 1];
        let mut seen = Vec::new();
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let n = reader.read(&mut buffer).await.map_err(AgentError::HungUp)?;
            if n == 0 {
                return Err(AgentError::HungUp(io::ErrorKind::UnexpectedEof.into()));
            }
            seen.extend_from_slice(&buffer[..n]);
            let found = seen.windows(wanted.len()).position(|window| window == wanted);
            if let Some(at) = found
                && let Some((&theirs, rest)) = seen[at + wanted.len()..].split_first()
            {
                if theirs != VERSION {
                    return Err(AgentError::Version { theirs });
                }
                let mut decoder = Decoder::new();
                decoder.push(rest);
                return Ok(decoder);
            }
            // Keep what may be the beginning of the answer.
            seen.drain(..seen.len().saturating_sub(wanted.len()));
        }
    };
    // The agent may have much to get rid of before it reads: both directions have to move.
    let send = async { writer.write_all(&message).await.map_err(AgentError::HungUp) };
    let (decoder, ()) = tokio::try_join!(answer, send)?;
    Ok(decoder)
}

#[cfg(test)]
mod tests;
