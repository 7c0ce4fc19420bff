//! How a port's rings and buffers are laid out for a kind of traffic.

use netyard_testkit::endpoint::Options;
use virtio::features as f;
use virtio::net::HEADER_LEN;

use super::stream::Sizes;

/// The frame begins at a cache line, and its virtio-net header ends the line before, as drivers with headroom lay it out.
const HEADROOM: u32 = 64 - 12;
/// The shortest buffers: they also hold the frames of `errored-frames`.
const SHORTEST: u32 = 2048;

/// Layout of the virtqueues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Ring {
    /// Split virtqueues
    Split,
    /// Packed virtqueues
    Packed,
}

/// What a port's rings and buffers are like.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Split or packed.
    pub ring: Ring,
    /// Queue pairs.
    pub pairs: u16,
    /// Entries of each virtqueue.
    pub queue_size: u16,
    /// Bytes of each receive buffer; as many as the longest frame needs if none.
    pub buffer_len: Option<u32>,
    /// Memory regions.
    pub regions: u16,
    /// The frames that will be sent.
    pub sizes: Sizes,
}

impl Layout {
    /// Two rings of 1024 entries, in one region, each buffer long enough for every frame.
    pub fn new(ring: Ring, sizes: Sizes) -> Self {
        Self {
            ring,
            pairs: 1,
            queue_size: 1024,
            buffer_len: None,
            regions: 1,
            sizes,
        }
    }

    /// The endpoint that has this layout.
    pub fn options(&self) -> Options {
        let longest = u32::try_from(self.sizes.longest() + HEADER_LEN).unwrap_or(u32::MAX);
        // An odd number of cache lines: with an even one, the first lines of all buffers would share a part of the cache.
        let slot_len = ((longest + HEADROOM).max(SHORTEST).div_ceil(64) | 1) * 64;
        let mut features = f::VERSION_1 | f::NET_F_MRG_RXBUF | f::RING_F_EVENT_IDX;
        if self.ring == Ring::Packed {
            features |= f::RING_PACKED;
        }
        if self.sizes == Sizes::Super {
            features |= f::NET_F_CSUM | f::NET_F_GUEST_CSUM | f::NET_F_HOST_TSO4 | f::NET_F_GUEST_TSO4;
        }
        Options {
            pairs: self.pairs,
            queue_size: self.queue_size,
            slot_len,
            buffer_len: self.buffer_len.map_or(slot_len, |len| len.max(256)),
            headroom: HEADROOM,
            regions: self.regions,
            features,
            ..Options::default()
        }
    }
}
