//! What has to be done to a frame so that the back-end can take it.

use virtio::features as f;
use virtio::memory::{GuestSlice, read_chain};
use virtio::net::{GSO_NONE, NetHeader};
use virtio::segment::{Completion, MAX_HEADERS, Segmenter};

/// How a frame goes to the back-end.
#[derive(Debug)]
pub(super) enum Fit {
    /// As it is.
    Whole,
    /// With its checksum completed.
    Complete,
    /// As the frames that it stands for.
    Segments(Box<Segmenter>, Completion),
    /// Not at all: its headers are not what they say.
    Never,
}

impl Fit {
    /// For a frame of `len` bytes at `off` of `chain`, whose header was checked against what the VM negotiated, and a
    /// back-end with which `features` were negotiated.
    pub(super) fn of(
        header: &NetHeader,
        features: u64,
        chain: &[GuestSlice<'_>],
        off: usize,
        len: usize,
    ) -> Self {
        let needed = header.needed_to_transmit();
        if features & needed == needed {
            return Self::Whole;
        }
        if header.gso_type == GSO_NONE {
            return Self::Complete;
        }
        let mut head = [0; MAX_HEADERS];
        let known = read_chain(chain, off, &mut head).min(len);
        let completion = if features & f::NET_F_CSUM == 0 {
            Completion::Here
        } else {
            Completion::Receiver
        };
        Segmenter::new(&head[..known], header, len)
            .map_or(Self::Never, |plan| Self::Segments(Box::new(plan), completion))
    }
}
