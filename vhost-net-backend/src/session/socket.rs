//! The Unix socket: who may replace which file, and how long a connect may take.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Front-ends that may wait while one is served.
const BACKLOG: i32 = 8;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process serves this path.
    #[error("socket {0} refused: a process is listening on it; stop that process or choose another path")]
    InUse(PathBuf),
    /// Something that isn't a socket is there.
    #[error("socket {0} refused: the file exists and is not a socket; remove it or choose another path")]
    NotASocket(PathBuf),
    /// Longer than the kernel takes.
    #[error("socket {0} refused: the path is longer than 107 bytes; choose a shorter one")]
    TooLong(PathBuf),
    /// The operating system refused.
    #[error("socket {path} refused: {error}; check that its folder exists and may be written")]
    Os {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

impl SocketError {
    fn os(path: &Path) -> impl Fn(Errno) -> Self {
        move |errno| Self::Os {
            path: path.to_owned(),
            error: errno.into(),
        }
    }
}

fn address(path: &Path) -> Result<SocketAddrUnix, SocketError> {
    SocketAddrUnix::new(path).map_err(|errno| match errno {
        Errno::NAMETOOLONG => SocketError::TooLong(path.to_owned()),
        other => SocketError::os(path)(other),
    })
}

fn stream_socket(flags: SocketFlags) -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | flags,
        None,
    )
}

/// Connect to a listening peer. Never waits: a full backlog is an error like any other, to be tried again.
pub(crate) fn connect(path: &Path) -> Result<UnixStream, SocketError> {
    let address = address(path)?;
    let os = SocketError::os(path);
    let socket = stream_socket(SocketFlags::NONBLOCK).map_err(&os)?;
    rustix::net::connect(&socket, &address).map_err(&os)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).map_err(|error| SocketError::Os {
        path: path.to_owned(),
        error,
    })?;
    Ok(stream)
}

/// A listening socket that removes its file when dropped.
#[derive(Debug)]
pub(super) struct Server {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file, so that only our own is removed.
    file: Option<(u64, u64)>,
}

impl Server {
    /// Listen at `path`, which only the owner may connect to. A socket that nobody listens on is replaced.
    pub(super) fn bind(path: &Path) -> Result<Self, SocketError> {
        let address = address(path)?;
        let os = SocketError::os(path);
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(SocketError::Os {
                    path: path.to_owned(),
                    error,
                });
            }
            Ok(meta) if !meta.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) => {
                let probe = stream_socket(SocketFlags::NONBLOCK).map_err(&os)?;
                match rustix::net::connect(&probe, &address) {
                    Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(|error| SocketError::Os {
                        path: path.to_owned(),
                        error,
                    })?,
                    Err(Errno::NOENT) => {}
                    Ok(()) | Err(Errno::AGAIN) => return Err(SocketError::InUse(path.to_owned())),
                    Err(errno) => return Err(os(errno)),
                }
            }
        }
        let socket = stream_socket(SocketFlags::NONBLOCK).map_err(&os)?;
        // On Linux the file takes the mode of the socket's inode: there is no moment at which it is wider.
        rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600)).map_err(&os)?;
        rustix::net::bind(&socket, &address).map_err(|errno| match errno {
            Errno::ADDRINUSE => SocketError::InUse(path.to_owned()),
            other => os(other),
        })?;
        let file = fs::symlink_metadata(path)
            .ok()
            .map(|meta| (meta.dev(), meta.ino()));
        let server = Self {
            socket,
            path: path.to_owned(),
            file,
        };
        rustix::net::listen(&server.socket, BACKLOG).map_err(&os)?;
        Ok(server)
    }

    /// Go on listening on a socket that another process bound.
    pub(super) fn take_over(socket: OwnedFd, path: &Path) -> Self {
        let file = fs::symlink_metadata(path)
            .ok()
            .map(|meta| (meta.dev(), meta.ino()));
        Self {
            socket,
            path: path.to_owned(),
            file,
        }
    }

    /// The socket, for whoever goes on listening; its file stays.
    pub(super) fn hand_over(&mut self) -> io::Result<OwnedFd> {
        let socket = self.socket.try_clone()?;
        self.file = None;
        Ok(socket)
    }

    /// Wait for a connection, or for `stop` to become readable: then there is none.
    pub(super) fn accept(&self, stop: &OwnedFd) -> io::Result<Option<UnixStream>> {
        let mut poll = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(&self.socket, PollFlags::IN),
        ];
        match rustix::event::poll(&mut poll, None) {
            Ok(_) if !poll[0].revents().is_empty() => return Ok(None),
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC) {
            Ok(socket) => Ok(Some(UnixStream::from(socket))),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Close a connection that came while another front-end is served.
    pub(super) fn turn_away(&self) {
        drop(rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC));
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let file = fs::symlink_metadata(&self.path)
            .ok()
            .map(|meta| (meta.dev(), meta.ino()));
        if self.file.is_some() && file == self.file {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests;
