//! The payloads of the frames, and the limits both ends keep.

use serde::{Deserialize, Serialize};

/// The protocol's version; both ends name theirs in the greeting.
pub const VERSION: u8 = 1;

/// Bytes of standard input that a client may have on the way, that is, sent and not yet reported by
/// [`crate::frame::Kind::StdinTaken`].
pub const STDIN_WINDOW: usize = 256 * 1024;

/// The names of the channels are this and a number.
pub const CHANNEL_PREFIX: &str = "netyard.agent.";

/// Bytes of the nonce in a greeting.
pub const NONCE: usize = 16;

/// The payload of [`crate::frame::Kind::Hello`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Chosen by the client at random, repeated by the agent: what comes before it is from an earlier session.
    pub nonce: [u8; NONCE],
    /// The sender's [`VERSION`].
    pub version: u8,
}

impl Hello {
    /// The payload's bytes.
    pub fn to_bytes(self) -> [u8; NONCE + 1] {
        let mut bytes = [self.version; NONCE + 1];
        bytes[..NONCE].copy_from_slice(&self.nonce);
        bytes
    }

    /// Read a payload; `None` if it is no greeting.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (nonce, rest) = bytes.split_first_chunk::<NONCE>()?;
        Some(Self {
            nonce: *nonce,
            version: *rest.first()?,
        })
    }
}

/// The payload of [`crate::frame::Kind::Exec`], as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// The program, looked up in `PATH`, and its arguments.
    pub argv: Vec<String>,
    /// Variables added to the agent's own few (`PATH`, `HOME`, …).
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Where to run it; `/root` or `/` if not given.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Run it on a terminal of this size; its output then all comes as standard output.
    #[serde(default)]
    pub tty: Option<Size>,
}

/// The size of a terminal; as JSON the payload of [`crate::frame::Kind::Resize`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// The exit code in [`crate::frame::Kind::Exit`]: the command's own, or 128 and the number of the signal that ended it.
pub fn exit_code(payload: &[u8]) -> Option<i32> {
    Some(i32::from_le_bytes(payload.try_into().ok()?))
}
