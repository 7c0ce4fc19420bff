//! The socket on which a back-end speaks unasked: to say that its configuration, such as its link state, is another.
//!
//! Nothing that comes in here can make anybody wait: the socket never blocks, and a back-end that breaks the
//! protocol is not listened to any more.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

const HEADER_LEN: usize = 12;
const CONFIG_CHANGE_MSG: u32 = 2;
const VERSION_MASK: u32 = 3;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// Read in one go at most: a back-end that floods gets the same attention as any other.
const BATCH: usize = 64 * HEADER_LEN;

/// Our end.
#[derive(Debug)]
pub(super) struct BackChannel {
    stream: UnixStream,
    /// What has come of a message that is not complete.
    rest: Vec<u8>,
}

/// The back-end broke the protocol, or closed its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended;

impl BackChannel {
    /// Both ends: ours, and the one for the back-end.
    pub(super) fn pair() -> std::io::Result<(Self, UnixStream)> {
        let (stream, theirs) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        Ok((
            Self {
                stream,
                rest: Vec::new(),
            },
            theirs,
        ))
    }

    /// Takes what has come in; true if the configuration has changed.
    pub(super) fn changes(&mut self) -> Result<bool, Ended> {
        let mut bytes = [0; BATCH];
        let len = match self.stream.read(&mut bytes) {
            Ok(0) => return Err(Ended),
            Ok(len) => len,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(false),
            Err(_) => return Err(Ended),
        };
        self.rest.extend_from_slice(&bytes[..len]);
        let mut changed = false;
        while let Some((header, rest)) = self.rest.split_first_chunk::<HEADER_LEN>() {
            let word =
                |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let (code, flags, size) = (word(0), word(4), word(8));
            let plain = flags & VERSION_MASK == VERSION && flags & REPLY == 0;
            if code != CONFIG_CHANGE_MSG || size != 0 || !plain {
                return Err(Ended);
            }
            changed = true;
            if flags & NEED_REPLY != 0 {
                let answer = [code, VERSION | REPLY, 8, 0, 0].map(u32::to_le_bytes).concat();
                // A back-end that does not read its answers gets none.
                self.stream.write_all(&answer).map_err(|_| Ended)?;
            }
            self.rest = rest.to_vec();
        }
        Ok(changed)
    }
}

impl AsFd for BackChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(code: u32, flags: u32, size: u32) -> Vec<u8> {
        [code, flags, size].map(u32::to_le_bytes).concat()
    }

    #[test]
    fn changes_are_heard_and_answered_when_asked() {
        let (mut ours, mut theirs) = BackChannel::pair().unwrap();
        assert_eq!(ours.changes(), Ok(false));
        theirs.write_all(&message(2, 1, 0)).unwrap();
        assert_eq!(ours.changes(), Ok(true));
        assert_eq!(ours.changes(), Ok(false));
        let asking = message(2, 9, 0);
        theirs.write_all(&asking[..5]).unwrap();
        assert_eq!(ours.changes(), Ok(false));
        theirs.write_all(&asking[5..]).unwrap();
        assert_eq!(ours.changes(), Ok(true));
        let mut answer = [0; 20];
        theirs.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..], [message(2, 5, 8), vec![0; 8]].concat());
    }

    #[test]
    fn anything_else_ends_it() {
        for bad in [
            message(3, 1, 0),
            message(2, 1, 4),
            message(2, 2, 0),
            message(2, 5, 0),
            vec![0xff; 12],
        ] {
            let (mut ours, mut theirs) = BackChannel::pair().unwrap();
            theirs.write_all(&bad).unwrap();
            assert_eq!(ours.changes(), Err(Ended), "{bad:?}");
        }
        let (mut ours, theirs) = BackChannel::pair().unwrap();
        drop(theirs);
        assert_eq!(ours.changes(), Err(Ended));
    }

    #[test]
    fn a_flood_without_reading_ends_it_and_never_blocks() {
        let (mut ours, mut theirs) = BackChannel::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        loop {
            // The writer stops for want of room at times; the reader always finds a way on.
            let _ = theirs.write_all(&message(2, 9, 0).repeat(64));
            if ours.changes().is_err() {
                break;
            }
        }
    }
}
