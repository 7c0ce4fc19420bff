//! The virtio-net header (VIRTIO 1.3 §5.1.6), always in its 12-byte `VERSION_1` layout.

use crate::features::{
    NET_F_CSUM, NET_F_GUEST_CSUM, NET_F_GUEST_ECN, NET_F_GUEST_TSO4, NET_F_GUEST_TSO6, NET_F_GUEST_USO4,
    NET_F_GUEST_USO6, NET_F_HOST_ECN, NET_F_HOST_TSO4, NET_F_HOST_TSO6, NET_F_HOST_USO,
};

use crate::rss::Hash;

/// Bytes of the header before every frame.
pub const HEADER_LEN: usize = 12;
/// Bytes of the header where hashes are reported (`NET_F_HASH_REPORT`), of frames of either direction.
pub const HASH_HEADER_LEN: usize = 20;
/// `flags`: `csum_start` and `csum_offset` describe a checksum still to be completed.
pub const HDR_F_NEEDS_CSUM: u8 = 1;
/// `flags`: the checksum has been validated (receive only).
pub const HDR_F_DATA_VALID: u8 = 2;
/// `gso_type`: not a super-frame.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: UDP fragmentation.
pub const GSO_UDP: u8 = 3;
/// `gso_type`: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type`: UDP segmentation.
pub const GSO_UDP_L4: u8 = 5;
/// `gso_type`: bit added to a TCP type when the first segment has CWR set.
pub const GSO_ECN: u8 = 0x80;

/// `status` in the configuration: the link is up.
pub const STATUS_LINK_UP: u16 = 1;
/// `status` in the configuration: the driver should announce itself.
pub const STATUS_ANNOUNCE: u16 = 2;

/// Why a transmitted header was refused. The frame is dropped and counted; the ring goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A checksum was asked for without `NET_F_CSUM`.
    #[error("partial checksum without NET_F_CSUM: the driver must negotiate it first")]
    ChecksumNotNegotiated,
    /// The checksum field lies outside the frame.
    #[error("checksum field outside the frame: csum_start + csum_offset + 2 must not exceed the frame")]
    ChecksumOutside,
    /// A super-frame of a type that wasn't negotiated or doesn't exist.
    #[error("unknown or not negotiated gso_type: the driver must negotiate its offload first")]
    GsoType,
    /// A super-frame without a segment size.
    #[error("gso_size is 0: a super-frame needs a segment size")]
    GsoSize,
    /// A super-frame without `NEEDS_CSUM`.
    #[error("super-frame without NEEDS_CSUM: segmentation needs the checksum fields")]
    GsoWithoutChecksum,
}

/// A virtio-net header in host byte order.
///
/// Laid out as it goes over the ring, so that encoding it on a little-endian machine is a copy.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetHeader {
    /// `HDR_F_*`.
    pub flags: u8,
    /// `GSO_*`.
    pub gso_type: u8,
    /// A hint only: never trusted.
    pub hdr_len: u16,
    /// Payload bytes per segment of a super-frame.
    pub gso_size: u16,
    /// Where the checksummed bytes start, from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: u16,
    /// Receive: the chains that hold this frame.
    pub num_buffers: u16,
}

impl NetHeader {
    /// Decodes the header from its bytes.
    #[inline]
    pub fn from_bytes(b: &[u8; HEADER_LEN]) -> Self {
        let word = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
        Self {
            flags: b[0],
            gso_type: b[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            num_buffers: word(10),
        }
    }

    /// Encodes the header.
    #[inline]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut b = [0; HEADER_LEN];
        b[0] = self.flags;
        b[1] = self.gso_type;
        b[2..4].copy_from_slice(&self.hdr_len.to_le_bytes());
        b[4..6].copy_from_slice(&self.gso_size.to_le_bytes());
        b[6..8].copy_from_slice(&self.csum_start.to_le_bytes());
        b[8..10].copy_from_slice(&self.csum_offset.to_le_bytes());
        b[10..12].copy_from_slice(&self.num_buffers.to_le_bytes());
        b
    }

    /// Encodes the header with the frame's hash behind it.
    pub fn to_bytes_with_hash(&self, hash: Hash) -> [u8; HASH_HEADER_LEN] {
        let mut b = [0; HASH_HEADER_LEN];
        b[..HEADER_LEN].copy_from_slice(&self.to_bytes());
        b[12..16].copy_from_slice(&hash.value.to_le_bytes());
        b[16..18].copy_from_slice(&hash.report.to_le_bytes());
        b
    }

    /// True when the header asks for nothing: the frame is complete as it is.
    #[inline]
    pub fn is_plain(&self) -> bool {
        // Both at once.
        u16::from_le_bytes([self.flags & HDR_F_NEEDS_CSUM, self.gso_type])
            == u16::from_le_bytes([0, GSO_NONE])
    }

    /// True when a checksum is still to be completed.
    #[inline]
    pub fn needs_csum(&self) -> bool {
        self.flags & HDR_F_NEEDS_CSUM != 0
    }

    /// The type of the super-frame without its ECN bit.
    #[inline]
    pub fn gso_kind(&self) -> u8 {
        self.gso_type & !GSO_ECN
    }

    /// The features without which a driver can't be given a frame with this header as it is.
    ///
    /// A UDP super-frame's header doesn't tell IPv4 from IPv6, so it needs both; drivers take both or none.
    #[inline]
    pub fn needed_to_receive(&self) -> u64 {
        if self.is_plain() {
            return 0;
        }
        let kind = match self.gso_kind() {
            GSO_NONE => 0,
            GSO_TCPV4 => NET_F_GUEST_TSO4,
            GSO_UDP_L4 => NET_F_GUEST_USO4 | NET_F_GUEST_USO6,
            _ => NET_F_GUEST_TSO6,
        };
        let ecn = if self.gso_type & GSO_ECN == 0 {
            0
        } else {
            NET_F_GUEST_ECN
        };
        NET_F_GUEST_CSUM | kind | ecn
    }

    /// The features without which a driver may not transmit a frame with this header.
    #[inline]
    pub fn needed_to_transmit(&self) -> u64 {
        if self.is_plain() {
            return 0;
        }
        let kind = match self.gso_kind() {
            GSO_NONE => 0,
            GSO_TCPV4 => NET_F_HOST_TSO4,
            GSO_UDP_L4 => NET_F_HOST_USO,
            _ => NET_F_HOST_TSO6,
        };
        let ecn = if self.gso_type & GSO_ECN == 0 {
            0
        } else {
            NET_F_HOST_ECN
        };
        NET_F_CSUM | kind | ecn
    }

    /// Checks a header that a driver sent with a frame of `frame_len` bytes (header not counted) under the negotiated
    /// `features`. Returns the header as it may be handed on: flags unknown to the device cleared, `num_buffers` 0, fields
    /// without meaning zeroed, so that nothing unvalidated ever reaches a receiver.
    #[inline]
    pub fn validate_tx(&self, frame_len: usize, features: u64) -> Result<Self, HeaderError> {
        if self.is_plain() {
            return Ok(Self::default());
        }
        self.validate_offloads(frame_len, features)
    }

    fn validate_offloads(&self, frame_len: usize, features: u64) -> Result<Self, HeaderError> {
        let mut clean = Self::default();
        if self.needs_csum() {
            if features & NET_F_CSUM == 0 {
                return Err(HeaderError::ChecksumNotNegotiated);
            }
            if usize::from(self.csum_start) + usize::from(self.csum_offset) + 2 > frame_len {
                return Err(HeaderError::ChecksumOutside);
            }
            clean.flags = HDR_F_NEEDS_CSUM;
            clean.csum_start = self.csum_start;
            clean.csum_offset = self.csum_offset;
        }
        if self.gso_type != GSO_NONE {
            let wanted = match self.gso_kind() {
                GSO_TCPV4 => NET_F_HOST_TSO4,
                GSO_TCPV6 => NET_F_HOST_TSO6,
                // Congestion notification is TCP's.
                GSO_UDP_L4 if self.gso_type == GSO_UDP_L4 => NET_F_HOST_USO,
                _ => return Err(HeaderError::GsoType),
            };
            if features & wanted == 0 || (self.gso_type & GSO_ECN != 0 && features & NET_F_HOST_ECN == 0) {
                return Err(HeaderError::GsoType);
            }
            if self.gso_size == 0 {
                return Err(HeaderError::GsoSize);
            }
            if !self.needs_csum() {
                return Err(HeaderError::GsoWithoutChecksum);
            }
            clean.gso_type = self.gso_type;
            clean.gso_size = self.gso_size;
            // A hint for receivers; one that points past the frame would be a lie handed on.
            clean.hdr_len = if usize::from(self.hdr_len) <= frame_len {
                self.hdr_len
            } else {
                0
            };
        }
        Ok(clean)
    }
}

#[cfg(test)]
mod tests;
