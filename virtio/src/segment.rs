//! TCP and UDP segmentation: a super-frame becomes frames for a receiver that can't take it whole.
//!
//! The headers are parsed from the caller's copy of them; the payload goes straight from the sender's memory to its place in the
//! receiver's. Nothing is allocated.

use crate::checksum::{Checksum, copy_summing};
use crate::memory::{Cursor, GuestSlice, chain_len, write_chain};
use crate::net::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, HDR_F_NEEDS_CSUM, NetHeader};

/// The longest Ethernet, VLAN, IP and TCP or UDP headers a super-frame may have.
pub const MAX_HEADERS: usize = 256;
/// The smallest segment size: a peer can't make one super-frame into more than some 1400 frames.
pub const MIN_GSO_SIZE: u16 = 48;

const MAX_VLAN_TAGS: usize = 4;
const MAX_EXTENSION_HEADERS: usize = 8;
const ETHERTYPE_VLANS: [u16; 2] = [0x8100, 0x88a8];
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
/// Where TCP has its checksum.
const TCP_CHECKSUM: usize = 16;
/// Where UDP has its checksum.
const UDP_CHECKSUM: usize = 6;
const UDP_LENGTH: usize = 4;
const UDP_LEN: usize = 8;
const TCP_FLAGS: usize = 13;
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// Why a super-frame can't be segmented. It is dropped and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The headers end after the copy, or after the frame.
    #[error("super-frame refused: its headers are cut short or longer than {MAX_HEADERS} bytes")]
    Headers,
    /// The headers aren't those of the type that the virtio-net header says.
    #[error("super-frame refused: its headers don't match its gso_type and checksum fields")]
    Mismatch,
    /// The segment size is too small.
    #[error("super-frame refused: its gso_size is below {MIN_GSO_SIZE}")]
    SegmentSize,
    /// An IP datagram can't be that long.
    #[error("super-frame refused: its gso_size makes datagrams of more than 65535 bytes")]
    TooLong,
}

/// Who completes the TCP or UDP checksum of each frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// The receiver (it has negotiated `NET_F_GUEST_CSUM`): frames carry `NEEDS_CSUM`.
    Receiver,
    /// We do: frames are complete.
    Here,
}

/// How a super-frame becomes frames: its headers, checked, and the sums that all frames share.
#[derive(Debug, Clone)]
pub struct Segmenter {
    head: [u8; MAX_HEADERS],
    head_len: usize,
    l3: usize,
    l4: usize,
    v6: bool,
    udp: bool,
    payload: usize,
    mss: usize,
    count: usize,
    /// The pseudo-header's sum without its length.
    pseudo: Checksum,
}

impl Segmenter {
    /// Plans for a super-frame of `frame_len` bytes, of which `head` is a private copy of the first ones (up to
    /// [`MAX_HEADERS`] are looked at), with its validated virtio-net header.
    pub fn new(head: &[u8], header: &NetHeader, frame_len: usize) -> Result<Self, SegmentError> {
        let head = &head[..head.len().min(MAX_HEADERS).min(frame_len)];
        let udp = header.gso_type == GSO_UDP_L4;
        let (protocol, checksum) = if udp {
            (PROTOCOL_UDP, UDP_CHECKSUM)
        } else {
            (PROTOCOL_TCP, TCP_CHECKSUM)
        };
        let found = Headers::parse(head, protocol)?;
        let wanted = if found.v6 { GSO_TCPV6 } else { GSO_TCPV4 };
        if (!udp && header.gso_kind() != wanted)
            || header.flags & HDR_F_NEEDS_CSUM == 0
            || usize::from(header.csum_start) != found.l4
            || usize::from(header.csum_offset) != checksum
        {
            return Err(SegmentError::Mismatch);
        }
        if header.gso_size < MIN_GSO_SIZE {
            return Err(SegmentError::SegmentSize);
        }
        let mss = usize::from(header.gso_size);
        let payload = frame_len - found.len;
        if found.len - found.l3 + mss.min(payload) > usize::from(u16::MAX) {
            return Err(SegmentError::TooLong);
        }
        let mut pseudo = Checksum::new();
        let addresses = if found.v6 {
            found.l3 + 8..found.l3 + 40
        } else {
            found.l3 + 12..found.l3 + 20
        };
        pseudo.add(&head[addresses]);
        pseudo.add_word(u16::from(protocol));
        let mut copy = [0; MAX_HEADERS];
        copy[..found.len].copy_from_slice(&head[..found.len]);
        Ok(Self {
            head: copy,
            head_len: found.len,
            l3: found.l3,
            l4: found.l4,
            v6: found.v6,
            udp,
            payload,
            mss,
            count: payload.div_ceil(mss).max(1),
            pseudo,
        })
    }

    /// Frames it becomes.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes in the longest of them.
    pub fn max_frame_len(&self) -> usize {
        self.head_len + self.mss.min(self.payload)
    }

    /// The virtio-net header for each frame.
    pub fn net_header(&self, completion: Completion) -> NetHeader {
        match completion {
            Completion::Here => NetHeader::default(),
            // Both fit: they came from such fields.
            Completion::Receiver => NetHeader {
                flags: HDR_F_NEEDS_CSUM,
                csum_start: u16::try_from(self.l4).unwrap_or(0),
                csum_offset: u16::try_from(self.checksum()).unwrap_or(0),
                ..NetHeader::default()
            },
        }
    }

    /// The frames, with their payload from the super-frame that starts at byte `off` of `src`.
    pub fn frames<'a>(&'a self, src: &'a [GuestSlice<'a>], off: usize) -> Frames<'a> {
        Frames {
            plan: self,
            next: 0,
            payload: Cursor::new(src, off + self.head_len),
        }
    }

    /// Where the checksum is in the TCP or UDP header.
    fn checksum(&self) -> usize {
        if self.udp { UDP_CHECKSUM } else { TCP_CHECKSUM }
    }

    /// Payload bytes of frame `i`.
    fn piece_len(&self, i: usize) -> usize {
        self.payload.saturating_sub(i * self.mss).min(self.mss)
    }

    /// The headers of frame `i`, complete but for the TCP or UDP checksum, which is the pseudo-header's sum.
    fn headers(&self, i: usize, out: &mut [u8; MAX_HEADERS]) {
        let piece = self.piece_len(i);
        *out = self.head;
        // Neither exceeds what `new` checked.
        let l4_len = u16::try_from(self.head_len - self.l4 + piece).unwrap_or(u16::MAX);
        let l3_len = u16::try_from(self.head_len - self.l3 + piece).unwrap_or(u16::MAX);
        if self.v6 {
            put(out, self.l3 + 4, (l3_len - 40).to_be_bytes());
        } else {
            let id = u16::from_be_bytes([self.head[self.l3 + 4], self.head[self.l3 + 5]]);
            // Fewer frames than u16 holds, and the field wraps anyway.
            let id = id.wrapping_add(u16::try_from(i).unwrap_or(0));
            put(out, self.l3 + 2, l3_len.to_be_bytes());
            put(out, self.l3 + 4, id.to_be_bytes());
            put(out, self.l3 + 10, [0, 0]);
            let mut sum = Checksum::new();
            sum.add(&out[self.l3..self.l4]);
            put(out, self.l3 + 10, sum.finish());
        }
        if self.udp {
            put(out, self.l4 + UDP_LENGTH, l4_len.to_be_bytes());
        } else {
            self.tcp_header(i, out);
        }
        let mut pseudo = self.pseudo;
        pseudo.add_word(l4_len);
        put(out, self.l4 + self.checksum(), pseudo.partial());
    }

    /// What differs from frame to frame in TCP's header.
    fn tcp_header(&self, i: usize, out: &mut [u8; MAX_HEADERS]) {
        let at = self.l4 + 4;
        let seq = u32::from_be_bytes([
            self.head[at],
            self.head[at + 1],
            self.head[at + 2],
            self.head[at + 3],
        ]);
        let seq = seq.wrapping_add(u32::try_from(i * self.mss).unwrap_or(0));
        put(out, at, seq.to_be_bytes());
        let flags = &mut out[self.l4 + TCP_FLAGS];
        if i > 0 {
            *flags &= !TCP_CWR;
        }
        if i + 1 < self.count {
            *flags &= !(TCP_FIN | TCP_PSH);
        }
    }
}

/// The frames of one super-frame, one after another.
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    plan: &'a Segmenter,
    next: usize,
    payload: Cursor<'a>,
}

impl Frames<'_> {
    /// Bytes in the next frame; None after the last.
    #[inline]
    pub fn next_len(&self) -> Option<usize> {
        (self.next < self.plan.count).then(|| self.plan.head_len + self.plan.piece_len(self.next))
    }

    /// Writes the next frame to byte `off` of `dst` on and goes on to the one after it. None, and nothing is done, when `dst`
    /// lacks room or there are no more frames. The frame's virtio-net header is [`Segmenter::net_header`]'s.
    pub fn write_next(
        &mut self,
        dst: &[GuestSlice<'_>],
        off: usize,
        completion: Completion,
    ) -> Option<usize> {
        let len = self.next_len()?;
        if chain_len(dst).checked_sub(off)? < len {
            return None;
        }
        let plan = self.plan;
        let piece = len - plan.head_len;
        let mut head = [0; MAX_HEADERS];
        plan.headers(self.next, &mut head);
        let mut to = Cursor::new(dst, off + plan.head_len);
        match completion {
            Completion::Receiver => {
                if self.payload.copy_to(&mut to, piece) < piece {
                    return None;
                }
            }
            Completion::Here => {
                let payload = copy_summing(&mut self.payload, &mut to, piece)?;
                finish(plan, &mut head, payload);
            }
        }
        self.next += 1;
        write_chain(dst, off, &head[..plan.head_len]);
        Some(len)
    }

    /// Writes the next frame to private memory and goes on to the one after it. None as with [`Frames::write_next`].
    pub fn write_next_to(&mut self, out: &mut [u8], completion: Completion) -> Option<usize> {
        let len = self.next_len()?;
        let out = out.get_mut(..len)?;
        let plan = self.plan;
        let mut head = [0; MAX_HEADERS];
        plan.headers(self.next, &mut head);
        let payload = &mut out[plan.head_len..];
        if self.payload.read(payload) < payload.len() {
            return None;
        }
        if completion == Completion::Here {
            let mut sum = Checksum::new();
            sum.add(payload);
            finish(plan, &mut head, sum);
        }
        self.next += 1;
        out[..plan.head_len].copy_from_slice(&head[..plan.head_len]);
        Some(len)
    }
}

/// Completes the TCP or UDP checksum of a frame, whose field holds the pseudo-header's sum, with its payload's sum.
fn finish(plan: &Segmenter, head: &mut [u8; MAX_HEADERS], payload: Checksum) {
    let mut sum = Checksum::new();
    // Either header is a multiple of four bytes: the payload starts at an even place.
    sum.add(&head[plan.l4..plan.head_len]);
    sum.add(&payload.partial());
    put(head, plan.l4 + plan.checksum(), sum.finish_nonzero());
}

fn put<const N: usize>(out: &mut [u8; MAX_HEADERS], at: usize, bytes: [u8; N]) {
    out[at..at + N].copy_from_slice(&bytes);
}

/// Where the headers of a TCP or UDP frame are.
#[derive(Debug, Clone, Copy)]
struct Headers {
    l3: usize,
    l4: usize,
    len: usize,
    v6: bool,
}

impl Headers {
    fn parse(head: &[u8], protocol: u8) -> Result<Self, SegmentError> {
        let byte = |at: usize| head.get(at).copied().ok_or(SegmentError::Headers);
        let word = |at: usize| Ok(u16::from_be_bytes([byte(at)?, byte(at + 1)?]));
        let (mut l3, mut tags) = (14, 0);
        let mut ethertype = word(12)?;
        while ETHERTYPE_VLANS.contains(&ethertype) {
            if tags == MAX_VLAN_TAGS {
                return Err(SegmentError::Headers);
            }
            ethertype = word(l3 + 2)?;
            l3 += 4;
            tags += 1;
        }
        let (v6, l4) = match ethertype {
            ETHERTYPE_IPV4 => (false, ipv4_end(head, l3, protocol)?),
            ETHERTYPE_IPV6 => (true, ipv6_end(head, l3, protocol)?),
            _ => return Err(SegmentError::Mismatch),
        };
        let l4_len = match protocol {
            PROTOCOL_UDP => UDP_LEN,
            _ => usize::from(byte(l4 + 12)? >> 4) * 4,
        };
        if protocol == PROTOCOL_TCP && l4_len < 20 {
            return Err(SegmentError::Mismatch);
        }
        let len = l4 + l4_len;
        if len > head.len() {
            return Err(SegmentError::Headers);
        }
        Ok(Self { l3, l4, len, v6 })
    }
}

/// Where an IPv4 header ends, when `protocol` follows.
fn ipv4_end(head: &[u8], l3: usize, protocol: u8) -> Result<usize, SegmentError> {
    let ip = head.get(l3..l3 + 20).ok_or(SegmentError::Headers)?;
    let len = usize::from(ip[0] & 0xf) * 4;
    let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff;
    if ip[0] >> 4 != 4 || len < 20 || fragment != 0 || ip[9] != protocol {
        return Err(SegmentError::Mismatch);
    }
    Ok(l3 + len)
}

/// Where an IPv6 header and its extension headers end, when `protocol` follows.
fn ipv6_end(head: &[u8], l3: usize, protocol: u8) -> Result<usize, SegmentError> {
    let ip = head.get(l3..l3 + 40).ok_or(SegmentError::Headers)?;
    if ip[0] >> 4 != 6 {
        return Err(SegmentError::Mismatch);
    }
    let (mut next, mut at) = (ip[6], l3 + 40);
    for _ in 0..MAX_EXTENSION_HEADERS {
        match next {
            _ if next == protocol => return Ok(at),
            // Hop-by-hop options, routing, destination options.
            0 | 43 | 60 => {
                let header = head.get(at..at + 2).ok_or(SegmentError::Headers)?;
                next = header[0];
                at += (usize::from(header[1]) + 1) * 8;
            }
            _ => return Err(SegmentError::Mismatch),
        }
    }
    Err(SegmentError::Headers)
}

#[cfg(test)]
mod tests;
