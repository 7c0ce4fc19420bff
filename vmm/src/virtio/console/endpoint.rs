//! The host's side of a port: a listening socket and at most one client, or one client for good.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use tracing::warn;

use crate::listener::{Listener, SocketError};

/// Where a port leads to.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// The port's name; the console has none.
    pub(super) name: Option<String>,
    /// Where clients come from; the console's is there from the start.
    pub(super) listener: Option<Listener>,
    pub(super) client: Option<UnixStream>,
}

impl Endpoint {
    /// The console, whose other end is `stream`, which does not block.
    pub(super) fn console(stream: UnixStream) -> Self {
        Self {
            name: None,
            listener: None,
            client: Some(stream),
        }
    }

    pub(super) fn channel(name: &str, socket: &Path) -> Result<Self, SocketError> {
        Ok(Self {
            name: Some(name.to_owned()),
            listener: Some(Listener::bind(socket)?),
            client: None,
        })
    }

    pub(super) fn is_console(&self) -> bool {
        self.name.is_none()
    }

    /// Takes the next client, if one waits.
    pub(super) fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        match listener.accept() {
            Ok((client, _)) => {
                // Without it a slow client would stop all ports, so there is no doing without.
                self.client = client.set_nonblocking(true).is_ok().then_some(client);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                warn!(%error, "a client of a channel cannot be accepted");
                // Most likely we are out of descriptors, and the client stays there to be accepted: do not spin.
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// True if the client sent bytes that nobody has read.
    pub(super) fn has_unread(&self) -> bool {
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        self.client
            .as_ref()
            .is_some_and(|client| matches!(recv(client, &mut byte, flags), Ok((1.., _))))
    }

    /// The guest has forgotten all that it was told.
    pub(super) fn guest_reset(&mut self) {
        if !self.is_console() {
            self.client = None;
        }
    }
}
