//! Framing: one byte of kind, four bytes of little-endian length, then the payload.
//!
//! A zero byte where a frame should begin is filler and is skipped. [`FLUSH`] zero bytes therefore finish any frame that an
//! earlier client left half-sent, and bring the reader back to a frame boundary whatever came before.

#[cfg(test)]
mod tests;

/// The longest payload of one frame.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// Bytes of kind and length before the payload.
pub const HEADER: usize = 5;

/// Zero bytes that bring any reader to a frame boundary: they complete the longest frame with room to spare.
pub const FLUSH: usize = MAX_PAYLOAD + HEADER + RESYNC_RUN;

/// After nonsense the reader takes this many zero bytes in a row for the flush that a client sends.
const RESYNC_RUN: usize = 4096;

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Greeting with a nonce and a version; starts a session. The agent answers with the same nonce.
    Hello = 1,
    /// Run a command (client to agent).
    Exec = 2,
    /// Bytes for the command's standard input.
    Stdin = 3,
    /// The command's standard input ends.
    StdinEof = 4,
    /// New terminal size.
    Resize = 5,
    /// Signal for the command.
    Signal = 6,
    /// Is anybody there; answered with [`Kind::Pong`] and the same payload.
    Ping = 7,
    /// Bytes from the command's standard output (agent to client).
    Stdout = 8,
    /// Bytes from the command's standard error.
    Stderr = 9,
    /// The command ended.
    Exit = 10,
    /// Answer to [`Kind::Ping`].
    Pong = 11,
    /// That many bytes of standard input reached the command: the client may send as many more.
    StdinTaken = 12,
    /// The last request was refused; the payload says why.
    Refused = 13,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Exec,
            3 => Self::Stdin,
            4 => Self::StdinEof,
            5 => Self::Resize,
            6 => Self::Signal,
            7 => Self::Ping,
            8 => Self::Stdout,
            9 => Self::Stderr,
            10 => Self::Exit,
            11 => Self::Pong,
            12 => Self::StdinTaken,
            13 => Self::Refused,
            _ => return None,
        })
    }
}

/// One frame, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it says.
    pub kind: Kind,
    /// Its bytes, at most [`MAX_PAYLOAD`].
    pub payload: Vec<u8>,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No such kind.
    #[error("frame of unknown kind {0}: the two ends are of different versions or lost step; connect again")]
    UnknownKind(u8),
    /// More than [`MAX_PAYLOAD`].
    #[error(
        "frame of {0} bytes is longer than the {MAX_PAYLOAD} allowed; the two ends lost step; connect again"
    )]
    TooLong(u32),
}

/// Append the frame `kind` with `payload` to `out`. A payload over [`MAX_PAYLOAD`] goes out as several frames of the same
/// kind, which is what byte streams want; every other message is far shorter.
pub fn encode(out: &mut impl Extend<u8>, kind: Kind, payload: &[u8]) {
    let mut rest = payload;
    loop {
        let (piece, later) = rest.split_at(rest.len().min(MAX_PAYLOAD));
        let len = u32::try_from(piece.len()).unwrap_or(0);
        out.extend([kind as u8]);
        out.extend(len.to_le_bytes());
        out.extend(piece.iter().copied());
        rest = later;
        if rest.is_empty() {
            return;
        }
    }
}

/// Takes bytes as they come and gives frames.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// How much of `bytes` has been given out.
    start: usize,
    /// `Some(zeros seen in a row)` after nonsense: everything is dropped until a flush.
    lost: Option<usize>,
}

impl Decoder {
    /// A decoder at a frame boundary.
    pub fn new() -> Self {
        Self::default()
    }

    /// Take more bytes. Read frames with [`Decoder::next_frame`] until there is none before pushing again: then no more than
    /// one incomplete frame is ever held.
    pub fn push(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        if let Some(seen) = self.lost {
            let mut run = seen;
            let end = bytes.iter().position(|&byte| {
                if byte == 0 {
                    run += 1;
                    return false;
                }
                if run >= RESYNC_RUN {
                    return true;
                }
                run = 0;
                false
            });
            let Some(end) = end else {
                self.lost = Some(run);
                return;
            };
            self.lost = None;
            bytes = &bytes[end..];
        }
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one. After an error everything is dropped until the other end flushes.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        self.start += self.bytes[self.start..]
            .iter()
            .take_while(|&&byte| byte == 0)
            .count();
        let Some((header, rest)) = self.bytes[self.start..].split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [kind, len @ ..] = *header;
        let len = u32::from_le_bytes(len);
        let Some(kind) = Kind::from_byte(kind) else {
            return Err(self.lose(FrameError::UnknownKind(kind)));
        };
        let len = match usize::try_from(len) {
            Ok(len) if len <= MAX_PAYLOAD => len,
            _ => return Err(self.lose(FrameError::TooLong(len))),
        };
        let Some(payload) = rest.get(..len) else {
            return Ok(None);
        };
        let payload = payload.to_vec();
        self.start += HEADER + len;
        Ok(Some(Frame { kind, payload }))
    }

    /// Forget everything: the other end is a new one.
    pub fn reset(&mut self) {
        self.bytes.clear();
        self.start = 0;
        self.lost = None;
    }

    fn lose(&mut self, error: FrameError) -> FrameError {
        let held = self.bytes.split_off(self.start);
        self.bytes.clear();
        self.start = 0;
        self.lost = Some(0);
        // What follows the nonsense may already hold the flush.
        self.push(&held);
        error
    }
}
