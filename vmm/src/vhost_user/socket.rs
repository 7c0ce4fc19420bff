//! Where the back-end is found: a socket to connect to, or one on which the back-end connects to us.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Who listens on the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketMode {
    /// The back-end listens, the NIC connects.
    #[default]
    Client,
    /// The NIC listens, the back-end connects.
    Server,
}

/// Why a NIC's socket cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A Unix socket's path has 107 bytes at most.
    #[error("socket path {path:?} is refused: {source}; choose a path of less than 108 bytes")]
    Path {
        /// The path as given.
        path: PathBuf,
        /// What the system library says of it.
        source: io::Error,
    },
    /// Another process listens there.
    #[error("cannot listen on {0:?}: another process does; stop it or choose another socket")]
    InUse(PathBuf),
    /// The path names something that is not a socket, which is not ours to replace.
    #[error("cannot listen on {0:?}: it exists and is not a socket; remove it or choose another path")]
    NotASocket(PathBuf),
    /// The system refused the listening socket.
    #[error("cannot listen on {path:?}: {source}")]
    Listen {
        /// The path as given.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Gives connections to one back-end, one after another.
#[derive(Debug)]
pub(super) struct Connector {
    path: PathBuf,
    end: End,
}

#[derive(Debug)]
enum End {
    Client(SocketAddrUnix),
    Server(UnixListener),
}

impl Connector {
    pub(super) fn new(path: &Path, mode: SocketMode) -> Result<Self, SocketError> {
        let address = SocketAddrUnix::new(path).map_err(|e| SocketError::Path {
            path: path.to_owned(),
            source: e.into(),
        })?;
        match mode {
            SocketMode::Client => Ok(Self {
                path: path.to_owned(),
                end: End::Client(address),
            }),
            SocketMode::Server => {
                remove_stale(path, &address)?;
                let listen = |source| SocketError::Listen {
                    path: path.to_owned(),
                    source,
                };
                let listener = UnixListener::bind(path).map_err(listen)?;
                listener.set_nonblocking(true).map_err(listen)?;
                Ok(Self {
                    path: path.to_owned(),
                    end: End::Server(listener),
                })
            }
        }
    }

    /// Where the back-end is looked for.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A connection, if there is one to be had now; a server may have none without anything being wrong. It
    /// never waits.
    pub(super) fn connection(&self) -> io::Result<Option<UnixStream>> {
        let stream = match &self.end {
            End::Client(address) => connect(address)?,
            End::Server(listener) => match listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(e),
            },
        };
        stream.set_nonblocking(false)?;
        Ok(Some(stream))
    }

    /// What becomes readable when a back-end asks for a connection; a client has to try again by itself.
    pub(super) fn readiness(&self) -> Option<BorrowedFd<'_>> {
        match &self.end {
            End::Client(_) => None,
            End::Server(listener) => Some(listener.as_fd()),
        }
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        if let End::Server(_) = self.end {
            // Somebody may have removed it before us; that is as good.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Connects without waiting: a listener whose queue is full would block a plain connect for as long as it likes.
fn connect(address: &SocketAddrUnix) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, address)?;
    Ok(socket.into())
}

/// Removes a socket on which nobody listens any more; anything else stays.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), SocketError> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match connect(address) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| SocketError::Listen {
                path: path.to_owned(),
                source,
            })
        }
        _ => Err(SocketError::InUse(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_connects_when_somebody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let client = Connector::new(&path, SocketMode::Client).unwrap();
        assert!(client.connection().is_err());
        let listener = UnixListener::bind(&path).unwrap();
        assert!(client.connection().unwrap().is_some());
        listener.accept().unwrap();
    }

    #[test]
    fn a_full_listener_refuses_instead_of_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let address = SocketAddrUnix::new(&path).unwrap();
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let client = Connector::new(&path, SocketMode::Client).unwrap();
        let mut accepted = Vec::new();
        let refusal = loop {
            match client.connection() {
                Ok(stream) => accepted.push(stream),
                Err(e) => break e,
            }
        };
        assert_eq!(refusal.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_server_replaces_only_a_socket_that_nobody_listens_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let server = Connector::new(&path, SocketMode::Server).unwrap();
        assert!(server.connection().unwrap().is_none());
        assert!(matches!(
            Connector::new(&path, SocketMode::Server),
            Err(SocketError::InUse(_))
        ));
        let _back_end = UnixStream::connect(&path).unwrap();
        assert!(server.connection().unwrap().is_some());
        drop(server);
        assert!(!path.exists());

        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(
            Connector::new(&path, SocketMode::Server),
            Err(SocketError::NotASocket(_))
        ));
    }

    #[test]
    fn a_path_too_long_is_refused_at_once() {
        let path = PathBuf::from("/tmp/".to_owned() + &"x".repeat(120));
        let error = Connector::new(&path, SocketMode::Client).unwrap_err();
        assert!(error.to_string().contains("less than 108 bytes"));
    }
}
