//! Reading a frame's first bytes once, and deciding by them.

use virtio::burst::Chain;
use virtio::memory::{GuestSlice, read_chain};
use virtio::net::{GSO_NONE, HEADER_LEN, NetHeader};

use crate::counters::DropReason;
use crate::frame::{ETHERNET_LEN, Frame, MTU_OVERHEAD, SNAPSHOT_LEN};

/// The longest frame: the largest IP datagram, its Ethernet header and two VLAN tags.
const MAX_FRAME: usize = 65_535 + ETHERNET_LEN + 2 * 4;
/// Bytes of a super-frame that are copied: all headers that segmentation looks at.
const SUPER_SNAPSHOT_LEN: usize = 256;

/// A frame that was examined: what of it was read, and what it is.
#[derive(Debug, Clone)]
pub(super) struct Examined {
    /// The virtio-net header as it may be handed on, then the frame's first bytes.
    head: [u8; HEADER_LEN + SUPER_SNAPSHOT_LEN],
    /// Bytes of the frame in `head`.
    copied: usize,
    /// Bytes in the frame.
    pub(super) len: usize,
    /// The header, checked.
    pub(super) header: NetHeader,
    /// The fields that forwarding needs.
    pub(super) frame: Frame,
}

impl Examined {
    pub(super) fn empty() -> Self {
        let zero = crate::mac::MacAddr::new([0; 6]);
        Self {
            head: [0; HEADER_LEN + SUPER_SNAPSHOT_LEN],
            copied: 0,
            len: 0,
            header: NetHeader::default(),
            frame: Frame {
                destination: zero,
                source: zero,
                flow: 0,
            },
        }
    }

    /// Reads and checks the frame in a chain that a guest transmitted with `features` negotiated.
    #[inline]
    pub(super) fn take(&mut self, chain: &Chain<'_>, features: u64, mtu: u16) -> Result<(), DropReason> {
        let readable_len = chain.readable_len as usize;
        if chain.error.is_some() || chain.writable_len != 0 || readable_len < HEADER_LEN {
            return Err(DropReason::BadDescriptor);
        }
        self.take_list(chain.readable, readable_len, features, mtu)
    }

    /// Reads and checks the frame in a list of `list_len` bytes, header included.
    #[inline]
    pub(super) fn take_list(
        &mut self,
        list: &[GuestSlice<'_>],
        list_len: usize,
        features: u64,
        mtu: u16,
    ) -> Result<(), DropReason> {
        self.len = list_len - HEADER_LEN;
        if self.len < ETHERNET_LEN {
            return Err(DropReason::Runt);
        }
        if self.len > MAX_FRAME {
            return Err(DropReason::Oversize);
        }
        self.copied = self.len.min(SNAPSHOT_LEN);
        let end = HEADER_LEN + self.copied;
        if read_chain(list, 0, &mut self.head[..end]) < end {
            return Err(DropReason::BadDescriptor);
        }
        let Some(sent) = self.head.first_chunk::<HEADER_LEN>().map(NetHeader::from_bytes) else {
            return Err(DropReason::BadDescriptor);
        };
        self.header = sent
            .validate_tx(self.len, features)
            .map_err(|_| DropReason::BadHeader)?;
        if self.header.gso_type == GSO_NONE {
            if self.len > usize::from(mtu) + MTU_OVERHEAD {
                return Err(DropReason::Oversize);
            }
        } else {
            self.copy_more(list)?;
        }
        self.head[..HEADER_LEN].copy_from_slice(&self.header.to_bytes());
        self.frame = Frame::parse(&self.head[HEADER_LEN..end]).ok_or(DropReason::Runt)?;
        if !self.frame.source.is_valid_source() {
            return Err(DropReason::BadSource);
        }
        if self.frame.destination.is_bridge_reserved() {
            return Err(DropReason::ReservedGroup);
        }
        Ok(())
    }

    /// Copies the rest of a super-frame's headers: bytes that were not read before.
    fn copy_more(&mut self, list: &[GuestSlice<'_>]) -> Result<(), DropReason> {
        let copied = self.len.min(SUPER_SNAPSHOT_LEN);
        let rest = &mut self.head[HEADER_LEN + self.copied..HEADER_LEN + copied];
        if read_chain(list, HEADER_LEN + self.copied, rest) < rest.len() {
            return Err(DropReason::BadDescriptor);
        }
        self.copied = copied;
        Ok(())
    }

    /// The header and the frame's first bytes, as they go to a receiver with `buffers` buffers.
    #[inline]
    pub(super) fn head_for(&mut self, buffers: u16) -> &[u8] {
        self.head[HEADER_LEN - 2..HEADER_LEN].copy_from_slice(&buffers.to_le_bytes());
        &self.head[..HEADER_LEN + self.copied]
    }

    /// The frame's first bytes.
    #[inline]
    pub(super) fn snapshot(&self) -> &[u8] {
        &self.head[HEADER_LEN..HEADER_LEN + self.copied]
    }
}
