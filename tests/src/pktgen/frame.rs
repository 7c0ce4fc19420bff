//! Frames that know where they come from: Ethernet, IPv4, UDP, and a mark.

use virtio::memory::GuestSlice;
use virtio::net::HEADER_LEN;

/// Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 14 + 20 + 8;
/// Length of the mark: magic number, stream, sequence number, time.
const MARK: usize = 18;
/// The shortest frame that has room for all of it, which is the shortest on Ethernet, without its frame check sequence.
pub const SHORTEST: usize = HEADERS + MARK;
const MAGIC: u32 = 0x4e79_7064;

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

/// A frame with its virtio-net header in front, ready to be copied and marked.
#[derive(Debug, Clone)]
pub struct Template(Vec<u8>);

impl Template {
    /// A frame of `size` octets, frame check sequence not counted and at least [`SHORTEST`], of flow `flow`.
    pub fn new(source: [u8; 6], destination: [u8; 6], flow: u16, size: usize) -> Self {
        let size = size.max(SHORTEST);
        let mut bytes = vec![0; HEADER_LEN + size];
        let frame = &mut bytes[HEADER_LEN..];
        frame[..6].copy_from_slice(&destination);
        frame[6..12].copy_from_slice(&source);
        frame[12..14].copy_from_slice(&0x0800_u16.to_be_bytes());
        let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
        let ip = &mut frame[14..34];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&length(size - 14));
        ip[8] = 64;
        ip[9] = 17;
        // 198.18.0.0/15 is for benchmarks (RFC 2544).
        ip[12..16].copy_from_slice(&[198, 18, source[4], source[5]]);
        ip[16..20].copy_from_slice(&[198, 19, destination[4], destination[5]]);
        let sum = checksum(ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let udp = &mut frame[34..42];
        udp[..2].copy_from_slice(&(1024 + flow % 60000).to_be_bytes());
        udp[2..4].copy_from_slice(&9_u16.to_be_bytes());
        udp[4..6].copy_from_slice(&length(size - 34));
        Self(bytes)
    }

    /// Writes the frame with `mark` into a transmit slot; gives the length, virtio-net header included.
    pub fn write(&self, slot: GuestSlice<'_>, mark: Mark) -> usize {
        slot.write_from(0, &self.0);
        let mut bytes = [0; MARK];
        bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&mark.stream.to_be_bytes());
        bytes[6..10].copy_from_slice(&mark.sequence.to_be_bytes());
        bytes[10..].copy_from_slice(&mark.sent_ns.to_be_bytes());
        slot.write_from(HEADER_LEN + HEADERS, &bytes);
        self.0.len()
    }

    /// The frame's octets, without the virtio-net header.
    pub fn frame(&self) -> &[u8] {
        &self.0[HEADER_LEN..]
    }
}

/// The mark of a received frame; none where it is not one of ours.
pub fn mark_of(slot: GuestSlice<'_>) -> Option<Mark> {
    let mut bytes = [0; MARK];
    let read = slot.skip(HEADER_LEN + HEADERS).read_to(0, &mut bytes);
    let magic = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    if read < MARK || magic != MAGIC {
        return None;
    }
    let mut sent = [0; 8];
    sent.copy_from_slice(&bytes[10..]);
    Some(Mark {
        stream: u16::from_be_bytes([bytes[4], bytes[5]]),
        sequence: u32::from_be_bytes([bytes[6], bytes[7], bytes[8], bytes[9]]),
        sent_ns: u64::from_be_bytes(sent),
    })
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
}
