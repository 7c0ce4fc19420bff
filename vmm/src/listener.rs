//! Unix sockets that this process listens on: for its own user only, and never in the place of something else.

use std::io;
use std::ops::Deref;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Why a socket cannot be used at all.
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

/// The address of a path, if the path is short enough.
pub(crate) fn address(path: &Path) -> Result<SocketAddrUnix, SocketError> {
    SocketAddrUnix::new(path).map_err(|e| SocketError::Path {
        path: path.to_owned(),
        source: e.into(),
    })
}

/// Connects without waiting: a listener whose queue is full would block a plain connect for as long as it likes.
pub(crate) fn connect(address: &SocketAddrUnix) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, address)?;
    Ok(socket.into())
}

/// A listening socket, non-blocking and of mode 0600, whose file goes when it does.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Connections that wait to be accepted.
    const BACKLOG: i32 = 128;

    /// Listens on `path`. A socket there that nobody listens on is replaced.
    pub(crate) fn bind(path: &Path) -> Result<Self, SocketError> {
        let address = address(path)?;
        remove_stale(path, &address)?;
        let listener = bind(&address).map_err(|source| SocketError::Listen {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }
}

impl Deref for Listener {
    type Target = UnixListener;

    fn deref(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Somebody may have removed it before us; that is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn bind(address: &SocketAddrUnix) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The file takes its mode from the socket, so that at no time can anyone else connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, address)?;
    rustix::net::listen(&socket, Listener::BACKLOG)?;
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn replaces_only_a_socket_that_nobody_listens_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let server = Listener::bind(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(matches!(Listener::bind(&path), Err(SocketError::InUse(_))));
        let _peer = UnixStream::connect(&path).unwrap();
        server.accept().unwrap();
        drop(server);
        assert!(!path.exists());

        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(Listener::bind(&path), Err(SocketError::NotASocket(_))));
    }

    #[test]
    fn a_path_too_long_is_refused_at_once() {
        let path = PathBuf::from("/tmp/".to_owned() + &"x".repeat(120));
        let error = Listener::bind(&path).unwrap_err();
        assert!(error.to_string().contains("less than 108 bytes"));
    }
}
