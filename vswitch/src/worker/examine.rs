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

/// Where the frame starts in a `head`: on a cache line of its own.
const FRAME_AT: usize = 36;
const HEADER_AT: usize = FRAME_AT - HEADER_LEN;
const _: () = assert!((std::mem::offset_of!(Examined, head) + FRAME_AT).is_multiple_of(64));

/// A frame that was examined: what of it was read, and what it is.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(super) struct Examined {
    /// Bytes in the frame.
    pub(super) len: usize,
    /// Bytes of the frame in `head`.
    copied: usize,
    /// The header, checked, as it may be handed on.
    pub(super) header: NetHeader,
    /// The frame's first bytes, from `FRAME_AT` on; room for the virtio-net header before them.
    head: [u8; FRAME_AT + SUPER_SNAPSHOT_LEN],
}

impl Examined {
    pub(super) fn empty() -> Self {
        Self {
            len: 0,
            copied: 0,
            header: NetHeader::default(),
            head: [0; FRAME_AT + SUPER_SNAPSHOT_LEN],
        }
    }

    /// Reads and checks the frame in a chain that a guest transmitted with `features` negotiated.
    pub(super) fn take_chain(
        &mut self,
        chain: &Chain<'_>,
        features: u64,
        mtu: u16,
    ) -> Result<(), DropReason> {
        let readable_len = chain.readable_len as usize;
        if chain.error.is_some() || chain.writable_len != 0 {
            return Err(DropReason::BadDescriptor);
        }
        self.take(chain.readable, readable_len, features, mtu)
    }

    /// The same for a frame in one piece. One that is no longer than `usual` and asks for nothing is in order.
    #[inline]
    pub(super) fn take_piece(
        &mut self,
        piece: GuestSlice<'_>,
        features: u64,
        mtu: u16,
        usual: usize,
    ) -> Result<(), DropReason> {
        let len = piece.len().wrapping_sub(HEADER_LEN);
        if (ETHERNET_LEN..=usual).contains(&len)
            && let Some(sent) = piece.read_array(0)
            && NetHeader::from_bytes(&sent).is_plain()
        {
            self.len = len;
            self.copied = len.min(SNAPSHOT_LEN);
            self.header = NetHeader::default();
            piece.read_to(HEADER_LEN, &mut self.head[FRAME_AT..FRAME_AT + self.copied]);
            return Ok(());
        }
        // What was read of the header is read again: it has decided nothing yet.
        self.take(std::slice::from_ref(&piece), piece.len(), features, mtu)
    }

    /// The longest frame that is in order whatever else it is, at this MTU.
    pub(super) fn usual(mtu: u16) -> usize {
        (usize::from(mtu) + MTU_OVERHEAD).min(MAX_FRAME)
    }

    /// Reads and checks the frame in a list of `list_len` bytes, header included.
    #[cold]
    #[inline(never)]
    fn take(
        &mut self,
        list: &[GuestSlice<'_>],
        list_len: usize,
        features: u64,
        mtu: u16,
    ) -> Result<(), DropReason> {
        let copied = self.measure(list_len)?;
        let Some(sent) = read_array(list) else {
            return Err(DropReason::BadDescriptor);
        };
        let head = &mut self.head[FRAME_AT..FRAME_AT + copied];
        if read_chain(list, HEADER_LEN, head) < head.len() {
            return Err(DropReason::BadDescriptor);
        }
        self.judge(&NetHeader::from_bytes(&sent), list, features, mtu)
    }

    /// Notes how long a frame is that has so many bytes with its header; returns how many of them are to be copied.
    #[inline]
    fn measure(&mut self, list_len: usize) -> Result<usize, DropReason> {
        let Some(len) = list_len.checked_sub(HEADER_LEN) else {
            return Err(DropReason::BadDescriptor);
        };
        self.len = len;
        if len < ETHERNET_LEN {
            return Err(DropReason::Runt);
        }
        if len > MAX_FRAME {
            return Err(DropReason::Oversize);
        }
        self.copied = len.min(SNAPSHOT_LEN);
        Ok(self.copied)
    }

    /// Checks the frame by the header that it was sent with.
    fn judge(
        &mut self,
        sent: &NetHeader,
        list: &[GuestSlice<'_>],
        features: u64,
        mtu: u16,
    ) -> Result<(), DropReason> {
        self.header = sent
            .validate_tx(self.len, features)
            .map_err(|_| DropReason::BadHeader)?;
        if self.header.gso_type != GSO_NONE {
            self.copy_more(list)
        } else if self.len > usize::from(mtu) + MTU_OVERHEAD {
            Err(DropReason::Oversize)
        } else {
            Ok(())
        }
    }

    /// Copies the rest of a super-frame's headers: bytes that were not read before.
    #[cold]
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

    /// Both addresses, the destination's first, as one thing to compare.
    #[inline]
    pub(super) fn addresses(&self) -> (u64, u32) {
        let frame = &self.head[FRAME_AT..];
        let first = frame.first_chunk().copied().unwrap_or_default();
        let last = frame[8..].first_chunk().copied().unwrap_or_default();
        (u64::from_le_bytes(first), u32::from_le_bytes(last))
    }

    /// The fields that forwarding needs; there are always as many bytes.
    #[inline]
    pub(super) fn frame(&self) -> Option<Frame> {
        Frame::parse(self.snapshot())
    }

    /// The number of the frame's conversation.
    #[inline]
    pub(super) fn flow(&self) -> u32 {
        self.frame().map_or(0, |frame| frame.flow(self.snapshot()))
    }
}
