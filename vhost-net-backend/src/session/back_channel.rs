//! The socket on which the device speaks unasked, to say that its configuration, that is its link state, is another.
//!
//! The front-end made the socket and may never read from it: nothing here waits, and what finds no room is kept for
//! later. One message is pending at most, since all of them say the same.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketType, sockopt};

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`: request, version 1 without a reply, no payload.
const CONFIG_CHANGE: [u32; 3] = [2, 1, 0];

/// The channel to one front-end, and what that front-end knows.
#[derive(Debug, Default)]
pub(super) struct BackChannel {
    socket: Option<OwnedFd>,
    /// The link state that the front-end has read or was last told to read.
    known: Option<bool>,
}

impl BackChannel {
    /// Speak on `socket` from now on; `link_up` is what a front-end that has read nothing yet will find.
    pub(super) fn open(&mut self, socket: OwnedFd, link_up: bool) -> io::Result<()> {
        // The peer chooses the descriptor, and only a Unix socket is sure to take bytes without delay.
        let unix = sockopt::socket_domain(&socket)? == AddressFamily::UNIX;
        if !unix || sockopt::socket_type(&socket)? != SocketType::STREAM {
            return Err(io::Error::other(
                "the back-end channel is no Unix stream socket; send one end of a socket pair",
            ));
        }
        self.known.get_or_insert(link_up);
        self.socket = Some(socket);
        Ok(())
    }

    /// The channel and what the front-end knows, for whoever goes on with it.
    pub(super) fn save(&self) -> (Option<&OwnedFd>, Option<bool>) {
        (self.socket.as_ref(), self.known)
    }

    /// Go on where another one stopped.
    pub(super) fn restore(&mut self, socket: Option<OwnedFd>, known: Option<bool>) {
        *self = Self { socket, known };
    }

    /// The configuration has changed in another way: the front-end knows nothing of it.
    pub(super) fn forget(&mut self) {
        self.known = None;
    }

    /// The front-end has read the link state.
    pub(super) fn read(&mut self, link_up: bool) {
        self.known = Some(link_up);
    }

    /// Tell the front-end unless it knows. True when it has yet to be told, for want of room.
    pub(super) fn tell(&mut self, link_up: bool) -> bool {
        let Some(socket) = &self.socket else { return false };
        if self.known == Some(link_up) {
            return false;
        }
        let message = CONFIG_CHANGE.map(u32::to_ne_bytes);
        let message = message.as_flattened();
        match rustix::net::send(socket, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) if sent == message.len() => {
                self.known = Some(link_up);
                false
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => true,
            // The front-end closed its end, or part of a message spoilt the stream: polling is left to it.
            Ok(_) | Err(_) => {
                self.socket = None;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
