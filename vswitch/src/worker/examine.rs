//! Reading a frame's first bytes once, and deciding by them.

use virtio::burst::Chain;
use virtio::memory::{GuestSlice, read_array, read_chain};
use virtio::net::{GSO_NONE, HEADER_LEN, NetHeader};

use crate::counters::DropReason;
use crate::frame::{ETHERNET_LEN, Frame, MTU_OVERHEAD, SNAPSHOT_LEN};

/// The longest frame: the largest IP datagram, its Ethernet header and two VLAN tags.
const MAX_FRAME: usize = 65_535 + ETHERNET_LEN + 2 * 4;
/// Bytes of a super-frame that are copied: all headers that segmentation looks at.
const SUPER_SNAPSHOT_LEN: usize = 256;

/// Where the frame starts in a `head`: on a cache line of its own, whatever comes before it.
const FRAME_AT: usize = 64;
const HEADER_AT: usize = FRAME_AT - HEADER_LEN;

/// A frame that was examined: what of it was read, and what it is.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub(super) struct Examined {
    /// The frame's first bytes, from `FRAME_AT` on; room for the virtio-net header before them.
    head: [u8; FRAME_AT + SUPER_SNAPSHOT_LEN],
    /// Bytes of the frame in `head`.
    copied: usize,
    /// Bytes in the frame.
    pub(super) len: usize,
    /// The header, checked, as it may be handed on.
    pub(super) header: NetHeader,
    /// The fields that forwarding needs.
    pub(super) frame: Frame,
}

impl Examined {
    pub(super) fn empty() -> Self {
        let zero = crate::mac::MacAddr::new([0; 6]);
        Self {
            head: [0; FRAME_AT + SUPER_SNAPSHOT_LEN],
            copied: 0,
            len: 0,
            header: NetHeader::default(),
            frame: Frame {
                destination: zero,
                source: zero,
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
        let Some(sent) = read_array(list) else {
            return Err(DropReason::BadDescriptor);
        };
        let head = &mut self.head[FRAME_AT..FRAME_AT + self.copied];
        if read_chain(list, HEADER_LEN, head) < head.len() {
            return Err(DropReason::BadDescriptor);
        }
        let sent = NetHeader::from_bytes(&sent);
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
        self.frame = Frame::parse(self.snapshot()).ok_or(DropReason::Runt)?;
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
        let rest = &mut self.head[FRAME_AT + self.copied..FRAME_AT + copied];
        if read_chain(list, HEADER_LEN + self.copied, rest) < rest.len() {
            return Err(DropReason::BadDescriptor);
        }
        self.copied = copied;
        Ok(())
    }

    /// The header as it goes to a receiver with `buffers` buffers.
    #[inline]
    pub(super) fn header_for(&self, buffers: u16) -> [u8; HEADER_LEN] {
        NetHeader {
            num_buffers: buffers,
            ..self.header
        }
        .to_bytes()
    }

    /// The header and the frame's first bytes in one piece.
    #[inline]
    pub(super) fn head_for(&mut self, buffers: u16) -> &[u8] {
        let header = self.header_for(buffers);
        self.head[HEADER_AT..FRAME_AT].copy_from_slice(&header);
        &self.head[HEADER_AT..FRAME_AT + self.copied]
    }

    /// The frame's first bytes.
    #[inline]
    pub(super) fn snapshot(&self) -> &[u8] {
        &self.head[FRAME_AT..FRAME_AT + self.copied]
    }

    /// The number of the frame's conversation.
    #[inline]
    pub(super) fn flow(&self) -> u32 {
        self.frame.flow(self.snapshot())
    }
}
