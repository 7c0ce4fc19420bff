//! TCP segments over IPv4 as a guest with offloads transmits them.

use virtio::checksum::Checksum;
use virtio::net::{HDR_F_NEEDS_CSUM, NetHeader};

/// Where the IPv4 header starts.
const IP: usize = 14;
/// Where the TCP header starts.
const TCP: usize = IP + 20;
/// Bytes of all headers.
pub const HEADERS: usize = TCP + 20;

/// What a segment is made of; its sequence number is 1.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Destination and source MAC address.
    pub macs: [[u8; 6]; 2],
    /// Source and destination IPv4 address.
    pub addresses: [[u8; 4]; 2],
    /// Source and destination port.
    pub ports: [u16; 2],
    /// TCP flags.
    pub flags: u8,
    /// Payload.
    pub payload: &'a [u8],
}

impl Segment<'_> {
    /// The frame, whose checksum field holds the pseudo-header's sum, and the header that says so.
    ///
    /// # Panics
    /// When the payload is longer than an IPv4 datagram.
    pub fn build(&self) -> (NetHeader, Vec<u8>) {
        let total = u16::try_from(40 + self.payload.len()).expect("a datagram's length");
        let mut ip = vec![0x45, 0];
        ip.extend(total.to_be_bytes());
        ip.extend([0, 7, 0x40, 0, 64, 6, 0, 0]);
        ip.extend(self.addresses.as_flattened());
        let mut sum = Checksum::new();
        sum.add(&ip);
        ip[10..12].copy_from_slice(&sum.finish());
        let mut pseudo = Checksum::new();
        pseudo.add(self.addresses.as_flattened());
        pseudo.add(&[0, 6]);
        pseudo.add(&(total - 20).to_be_bytes());
        let mut frame = self.macs.as_flattened().to_vec();
        frame.extend([8, 0]);
        frame.extend(ip);
        frame.extend(self.ports.iter().flat_map(|port| port.to_be_bytes()));
        frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, self.flags, 0xff, 0xff]);
        frame.extend(pseudo.partial());
        frame.extend([0, 0]);
        frame.extend(self.payload);
        let header = NetHeader {
            flags: HDR_F_NEEDS_CSUM,
            csum_start: 34,
            csum_offset: 16,
            ..NetHeader::default()
        };
        (header, frame)
    }
}

/// Whether TCP's checksum in a frame is right.
///
/// # Panics
/// When the frame is shorter than the headers, or too long for them.
pub fn checksum_is_right(frame: &[u8]) -> bool {
    let mut sum = Checksum::new();
    sum.add(&frame[IP + 12..TCP]);
    sum.add(&[0, 6]);
    sum.add(
        &u16::try_from(frame.len() - TCP)
            .expect("a datagram's length")
            .to_be_bytes(),
    );
    sum.add(&frame[TCP..]);
    sum.finish() == [0, 0]
}
