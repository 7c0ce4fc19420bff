//! Where the back-end is found: a socket to connect to, or one on which the back-end connects to us.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::SocketAddrUnix;

use crate::listener::{self, Listener, SocketError};

/// Who listens on the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketMode {
    /// The back-end listens, the NIC connects.
    #[default]
    Client,
    /// The NIC listens, the back-end connects.
    Server,
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
    Server(Listener),
}

impl Connector {
    pub(super) fn new(path: &Path, mode: SocketMode) -> Result<Self, SocketError> {
        let address = listener::address(path)?;
        let end = match mode {
            SocketMode::Client => End::Client(address),
            SocketMode::Server => End::Server(Listener::bind(path)?),
        };
        Ok(Self {
            path: path.to_owned(),
            end,
        })
    }

    /// Where the back-end is looked for.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A connection, if there is one to be had now; a server may have none without anything being wrong. It
    /// never waits.
    pub(super) fn connection(&self) -> io::Result<Option<UnixStream>> {
        let stream = match &self.end {
            End::Client(address) => listener::connect(address)?,
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::net::{AddressFamily, SocketFlags, SocketType};

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
    fn a_server_takes_one_back_end_after_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let server = Connector::new(&path, SocketMode::Server).unwrap();
        assert!(server.connection().unwrap().is_none());
        for _ in 0..2 {
            let _back_end = UnixStream::connect(&path).unwrap();
            assert!(server.connection().unwrap().is_some());
        }
    }
}
