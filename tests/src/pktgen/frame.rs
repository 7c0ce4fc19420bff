//! Frames that know where they come from: Ethernet, IPv4, UDP or TCP, and a mark.
//!
//! A frame is laid out once, in its transmit buffer; what changes from one sending to the next, sequence number and time, is
//! written over in place.

use virtio::memory::GuestSlice;
use virtio::net::{GSO_TCPV4, HDR_F_NEEDS_CSUM, HEADER_LEN, NetHeader};

/// Ethernet and IPv4 headers.
const IP_END: usize = 14 + 20;
/// Ethernet, IPv4 and UDP headers.
const UDP_END: usize = IP_END + 8;
/// Ethernet, IPv4 and TCP headers.
const TCP_END: usize = IP_END + 20;
/// Length of the mark: magic number, stream, sequence number, time.
const MARK: usize = 18;
/// Where in the mark the part begins that changes with every frame.
const CHANGING: usize = 6;
const MAGIC: u32 = 0x4e79_7064;
/// The shortest frame that has room for all of it, which is the shortest on Ethernet, without its frame check sequence.
pub const SHORTEST: usize = UDP_END + MARK;
/// TCP payload of each segment of a super-frame, for an MTU of 1500 with timestamps.
const SEGMENT: u16 = 1448;
/// A super-frame as Linux sends it: as many whole segments as fit into 64 KiB.
pub const SUPER: usize = TCP_END + 45 * SEGMENT as usize;
/// The longest IPv4 packet in an Ethernet frame.
const LONGEST: usize = 14 + 65535;

/// What a frame says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The stream that it belongs to.
    pub stream: u16,
    /// Its number in the stream, modulo 2³².
    pub sequence: u32,
    /// When it was sent, in nanoseconds since the run began.
    pub sent_ns: u64,
}

/// The address of generator port `port`, locally administered.
pub fn mac(port: u16) -> [u8; 6] {
    let [high, low] = port.to_be_bytes();
    [0x02, 0x4e, 0x79, 0, high, low]
}

/// An address that belongs to no port: `index` of a sequence that fills tables.
pub fn extra_mac(index: u32) -> [u8; 6] {
    let [a, b, c, d] = index.to_be_bytes();
    [0x06, 0x4e, a, b, c, d]
}

/// A frame with its virtio-net header in front.
#[derive(Debug, Clone)]
pub struct Template {
    bytes: Vec<u8>,
    mark_at: usize,
}

impl Template {
    /// A UDP frame of `size` octets, frame check sequence not counted and at least [`SHORTEST`], of flow `flow`.
    pub fn new(source: [u8; 6], destination: [u8; 6], flow: u16, size: usize) -> Self {
        let size = size.max(SHORTEST);
        let mut template = Self::ip(source, destination, 17, size, UDP_END);
        let udp = &mut template.frame_mut()[IP_END..UDP_END];
        udp[..2].copy_from_slice(&(1024 + flow % 60000).to_be_bytes());
        udp[2..4].copy_from_slice(&9_u16.to_be_bytes());
        udp[4..6].copy_from_slice(&length(size - IP_END));
        template
    }

    /// A TCP super-frame of `size` octets, to be segmented by whoever needs that.
    pub fn super_frame(source: [u8; 6], destination: [u8; 6], flow: u16, size: usize) -> Self {
        let size = size.clamp(TCP_END + MARK, LONGEST);
        let mut template = Self::ip(source, destination, 6, size, TCP_END);
        let frame = template.frame_mut();
        // The checksum field of a segment that is to be completed holds the sum over the pseudo-header.
        let pseudo: Vec<u8> = [&frame[26..34], &[0, 6], &length(size - IP_END)].concat();
        let partial = !checksum(&pseudo);
        let tcp = &mut frame[IP_END..TCP_END];
        tcp[..2].copy_from_slice(&(1024 + flow % 60000).to_be_bytes());
        tcp[2..4].copy_from_slice(&9_u16.to_be_bytes());
        tcp[12] = 0x50;
        tcp[13] = 0x10;
        tcp[14..16].copy_from_slice(&0xffff_u16.to_be_bytes());
        tcp[16..18].copy_from_slice(&partial.to_be_bytes());
        let header = NetHeader {
            flags: HDR_F_NEEDS_CSUM,
            gso_type: GSO_TCPV4,
            hdr_len: 54,
            gso_size: SEGMENT,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 0,
        };
        template.bytes[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        template
    }

    fn ip(source: [u8; 6], destination: [u8; 6], protocol: u8, size: usize, mark_at: usize) -> Self {
        let mut bytes = vec![0; HEADER_LEN + size];
        let frame = &mut bytes[HEADER_LEN..];
        frame[..6].copy_from_slice(&destination);
        frame[6..12].copy_from_slice(&source);
        frame[12..14].copy_from_slice(&0x0800_u16.to_be_bytes());
        let ip = &mut frame[14..IP_END];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&length(size - 14));
        ip[8] = 64;
        ip[9] = protocol;
        // 198.18.0.0/15 is for benchmarks (RFC 2544).
        ip[12..16].copy_from_slice(&[198, 18, source[4], source[5]]);
        ip[16..20].copy_from_slice(&[198, 19, destination[4], destination[5]]);
        let sum = checksum(ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        Self { bytes, mark_at }
    }

    /// Puts the frame into a transmit slot as the first of `stream`.
    pub fn place(&self, slot: GuestSlice<'_>, stream: u16) -> Placed {
        slot.write_from(0, &self.bytes);
        let mut mark = [0; MARK];
        mark[..4].copy_from_slice(&MAGIC.to_be_bytes());
        mark[4..CHANGING].copy_from_slice(&stream.to_be_bytes());
        slot.write_from(HEADER_LEN + self.mark_at, &mark);
        Placed {
            len: u32::try_from(self.bytes.len()).unwrap_or(u32::MAX),
            changing: u32::try_from(HEADER_LEN + self.mark_at + CHANGING).unwrap_or(0),
        }
    }

    /// The frame's octets, without the virtio-net header.
    pub fn frame(&self) -> &[u8] {
        &self.bytes[HEADER_LEN..]
    }

    fn frame_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[HEADER_LEN..]
    }
}

/// A frame that lies in its transmit slot.
#[derive(Debug, Clone, Copy, Default)]
pub struct Placed {
    /// Its length, virtio-net header included.
    pub len: u32,
    changing: u32,
}

impl Placed {
    /// Numbers and dates the frame in `slot`.
    #[inline]
    pub fn stamp(&self, slot: GuestSlice<'_>, sequence: u32, sent_ns: u64) {
        let mut bytes = [0; MARK - CHANGING];
        bytes[..4].copy_from_slice(&sequence.to_be_bytes());
        bytes[4..].copy_from_slice(&sent_ns.to_be_bytes());
        slot.write_array(self.changing as usize, &bytes);
    }

    /// Gives the frame in `slot` other addresses.
    #[inline]
    pub fn readdress(&self, slot: GuestSlice<'_>, source: [u8; 6], destination: [u8; 6]) {
        let mut bytes = [0; 12];
        bytes[..6].copy_from_slice(&destination);
        bytes[6..].copy_from_slice(&source);
        slot.write_array(HEADER_LEN, &bytes);
    }

    /// Asks the CPU for the part of `slot` that the next [`stamp`](Self::stamp) writes.
    #[inline]
    pub fn expect_stamp(&self, slot: GuestSlice<'_>) {
        slot.prefetch_write([self.changing as usize]);
    }
}

/// The mark of a received frame; none where it is not one of ours, or a segment of one that does not hold the mark.
#[inline]
pub fn mark_of(slot: GuestSlice<'_>) -> Option<Mark> {
    mark_at(slot, UDP_END).or_else(|| mark_at(slot, TCP_END))
}

/// Read as numbers, not as a copy of its bytes to be read again.
#[inline]
fn mark_at(slot: GuestSlice<'_>, at: usize) -> Option<Mark> {
    let at = HEADER_LEN + at;
    let [last_0, last_1] = slot.read_array(at + 16)?;
    let first = u64::from_be_bytes(slot.read_array(at)?);
    let second = u64::from_be_bytes(slot.read_array(at + 8)?);
    mark_in(first, second, u16::from_be_bytes([last_0, last_1]))
}

/// The mark of which these are the first eight octets, the next eight, and the last two.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "each field is cut out of the numbers"
)]
fn mark_in(first: u64, second: u64, last: u16) -> Option<Mark> {
    if (first >> 32) as u32 != MAGIC {
        return None;
    }
    Some(Mark {
        stream: (first >> 16) as u16,
        sequence: (first as u32) << 16 | (second >> 48) as u32,
        sent_ns: second << 16 | u64::from(last),
    })
}

/// Asks the CPU for the part of a received frame that [`mark_of`] looks at first.
#[inline]
pub fn expect_mark(slot: GuestSlice<'_>) {
    slot.prefetch([HEADER_LEN + UDP_END]);
}

/// The mark of a frame without a virtio-net header.
pub fn mark_of_frame(frame: &[u8]) -> Option<Mark> {
    let mark = frame.get(UDP_END..)?.first_chunk::<MARK>()?;
    let word = |at: usize| Some(u64::from_be_bytes(*mark.get(at..)?.first_chunk()?));
    mark_in(word(0)?, word(8)?, u16::from_be_bytes([mark[16], mark[17]]))
}

/// Numbers and dates a frame without a virtio-net header.
pub fn mark_frame(frame: &mut [u8], mark: Mark) {
    if let Some(place) = frame.get_mut(UDP_END..UDP_END + MARK) {
        place[..4].copy_from_slice(&MAGIC.to_be_bytes());
        place[4..6].copy_from_slice(&mark.stream.to_be_bytes());
        place[6..10].copy_from_slice(&mark.sequence.to_be_bytes());
        place[10..].copy_from_slice(&mark.sent_ns.to_be_bytes());
    }
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

/// RFC 1071, over an even number of octets.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_what_it_says() {
        let template = Template::new(mac(1), mac(2), 7, 128);
        let sliced = etherparse::SlicedPacket::from_ethernet(template.frame()).expect("a valid frame");
        let Some(etherparse::TransportSlice::Udp(udp)) = sliced.transport else {
            panic!("no UDP in {sliced:?}");
        };
        assert_eq!(udp.source_port(), 1031);
        assert_eq!(template.frame().len(), 128);
        assert_eq!(
            checksum(&template.frame()[14..34]),
            0,
            "the header checksum completes the header"
        );
    }

    #[test]
    fn a_super_frame_asks_for_what_completes_it() {
        let template = Template::super_frame(mac(1), mac(2), 0, SUPER);
        let mut frame = template.frame().to_vec();
        assert_eq!(frame.len(), SUPER);
        let header = NetHeader::from_bytes(template.bytes.first_chunk().expect("a header"));
        assert_eq!(header.gso_type, GSO_TCPV4);
        let at = usize::from(header.csum_start);
        let place = at + usize::from(header.csum_offset);
        frame.push(0);
        let sum = checksum(&frame[at..]);
        frame[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        frame.pop();
        let sliced = etherparse::SlicedPacket::from_ethernet(&frame).expect("a valid frame");
        let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else {
            panic!("no TCP");
        };
        let address = |at: usize| [frame[at], frame[at + 1], frame[at + 2], frame[at + 3]];
        let right = tcp
            .calc_checksum_ipv4(address(26), address(30))
            .expect("a short packet");
        assert_eq!(tcp.checksum(), right);
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let mut frame = Template::new(mac(0), mac(1), 0, SHORTEST).frame().to_vec();
        let mark = Mark {
            stream: 0x0102,
            sequence: 0x0304_0506,
            sent_ns: 0x0708_090a_0b0c_0d0e,
        };
        assert_eq!(mark_of_frame(&frame), None);
        mark_frame(&mut frame, mark);
        assert_eq!(mark_of_frame(&frame), Some(mark));
    }
}
