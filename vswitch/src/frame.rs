//! What the switch decides by: the first bytes of a frame, read once.

use crate::mac::MacAddr;

/// Bytes of a frame copied for examination. What they say holds, whatever its sender writes later.
pub const SNAPSHOT_LEN: usize = 128;
/// Length of an Ethernet header.
pub const ETHERNET_LEN: usize = 14;
/// What a frame may be longer than the MTU: its Ethernet header and one VLAN tag.
pub const MTU_OVERHEAD: usize = ETHERNET_LEN + VLAN_TAG_LEN;

const VLAN_TAG_LEN: usize = 4;
/// VLAN tags looked behind; frames with more are flows of their addresses.
const MAX_VLAN_TAGS: usize = 2;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

/// The fields that forwarding needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Destination address.
    pub destination: MacAddr,
    /// Source address.
    pub source: MacAddr,
}

impl Frame {
    /// Reads the fields from a frame's first bytes; none if they are fewer than an Ethernet header.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; ETHERNET_LEN] = bytes.first_chunk()?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, _, _] = *header;
        Some(Self {
            destination: MacAddr::new([d0, d1, d2, d3, d4, d5]),
            source: MacAddr::new([s0, s1, s2, s3, s4, s5]),
        })
    }

    /// A number that is the same for every frame of a conversation, in both directions, from the bytes that the
    /// frame was parsed from. Worth computing only where there are queue pairs to choose from.
    #[inline]
    pub fn flow(&self, bytes: &[u8]) -> u32 {
        bytes
            .split_at_checked(ETHERNET_LEN)
            .and_then(|(header, rest)| {
                let [.., t0, t1] = *header else { return None };
                flow_of(u16::from_be_bytes([t0, t1]), rest)
            })
            .unwrap_or_else(|| fold(self.destination.to_bits() ^ self.source.to_bits()))
    }
}

/// Hash of the conversation: addresses and, where they are at hand, transport ports. Both directions give
/// the same value, as ends are combined symmetrically.
#[inline]
fn flow_of(mut ethertype: u16, mut rest: &[u8]) -> Option<u32> {
    for _ in 0..MAX_VLAN_TAGS {
        if !matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
            break;
        }
        let [_, _, t0, t1] = *rest.first_chunk::<VLAN_TAG_LEN>()?;
        ethertype = u16::from_be_bytes([t0, t1]);
        rest = &rest[VLAN_TAG_LEN..];
    }
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(rest),
        ETHERTYPE_IPV6 => ipv6(rest),
        _ => None,
    }
}

#[inline]
fn ipv4(packet: &[u8]) -> Option<u32> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let word = |at: usize| {
        u64::from(u32::from_be_bytes([
            header[at],
            header[at + 1],
            header[at + 2],
            header[at + 3],
        ]))
    };
    let (source, destination) = (word(12), word(16));
    let header_len = usize::from(header[0] & 0xf) * 4;
    // Only the first fragment has ports: none of the fragments may use them.
    let fragment = (header[6] & 0x3f) != 0 || header[7] != 0;
    let ports = if fragment || header_len < 20 {
        0
    } else {
        ports(header[9], packet.get(header_len..))
    };
    Some(fold(
        (source ^ destination) << 16 ^ ports ^ (source + destination).rotate_left(40),
    ))
}

#[inline]
fn ipv6(packet: &[u8]) -> Option<u32> {
    let header: &[u8; 40] = packet.first_chunk()?;
    let mut mixed = 0;
    for at in (8..24).step_by(8) {
        let word = |from: usize| {
            header[from..from + 8]
                .iter()
                .fold(0_u64, |word, &byte| word << 8 | u64::from(byte))
        };
        mixed = u64::rotate_left(mixed, 21) ^ word(at) ^ word(at + 16);
    }
    Some(fold(mixed ^ ports(header[6], packet.get(40..))))
}

/// The exclusive or and the sum of both ports, for TCP, UDP and SCTP.
#[inline]
fn ports(protocol: u8, transport: Option<&[u8]>) -> u64 {
    let Some([s0, s1, d0, d1]) = transport.and_then(|bytes| bytes.first_chunk().copied()) else {
        return 0;
    };
    if !matches!(protocol, 6 | 17 | 132) {
        return 0;
    }
    let (source, destination) = (
        u64::from(u16::from_be_bytes([s0, s1])),
        u64::from(u16::from_be_bytes([d0, d1])),
    );
    (source ^ destination) | (source + destination) << 20
}

#[inline]
fn fold(value: u64) -> u32 {
    let mixed = (value ^ value >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let [a, b, c, d, ..] = mixed.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ipv4_frame(source: [u8; 4], destination: [u8; 4], ports: [u16; 2], tags: usize) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, destination[3], 2, 0, 0, 0, 0, source[3]];
        for _ in 0..tags {
            frame.extend([0x81, 0, 0, 5]);
        }
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        frame.extend(source);
        frame.extend(destination);
        frame.extend(ports[0].to_be_bytes());
        frame.extend(ports[1].to_be_bytes());
        frame
    }

    #[test]
    fn reads_addresses() {
        let frame = Frame::parse(&ipv4_frame([10, 0, 0, 1], [10, 0, 0, 2], [5, 6], 0)).unwrap();
        assert_eq!(frame.source.to_string(), "02:00:00:00:00:01");
        assert_eq!(frame.destination.to_string(), "02:00:00:00:00:02");
        assert_eq!(Frame::parse(&[0; 13]), None);
    }

    fn flow_of_frame(bytes: &[u8]) -> u32 {
        Frame::parse(bytes).unwrap().flow(bytes)
    }

    #[test]
    fn both_directions_are_one_flow_and_other_ports_another() {
        for tags in 0..=2 {
            let flow = |a, b, ports| flow_of_frame(&ipv4_frame(a, b, ports, tags));
            let there = flow([10, 0, 0, 1], [10, 0, 0, 2], [40_000, 5201]);
            assert_eq!(there, flow([10, 0, 0, 2], [10, 0, 0, 1], [5201, 40_000]));
            assert_ne!(there, flow([10, 0, 0, 1], [10, 0, 0, 2], [40_001, 5201]));
        }
    }

    #[test]
    fn fragments_of_a_datagram_stay_together() {
        let mut first = ipv4_frame([10, 0, 0, 1], [10, 0, 0, 2], [1, 2], 0);
        first[20] = 0x20;
        let mut second = ipv4_frame([10, 0, 0, 1], [10, 0, 0, 2], [77, 99], 0);
        second[21] = 185;
        assert_eq!(flow_of_frame(&first), flow_of_frame(&second));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..SNAPSHOT_LEN)) {
            let frame = Frame::parse(&bytes);
            prop_assert_eq!(frame.is_some(), bytes.len() >= ETHERNET_LEN);
            frame.map(|frame| frame.flow(&bytes));
        }

        #[test]
        fn any_ethertype_with_any_rest_is_parsed(rest in proptest::collection::vec(any::<u8>(), 0..100), kind in 0..4_usize) {
            let mut frame = vec![2; 12];
            frame.extend([ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, ETHERTYPE_QINQ][kind].to_be_bytes());
            frame.extend(rest);
            let parsed = Frame::parse(&frame);
            prop_assert!(parsed.is_some());
            parsed.map(|parsed| parsed.flow(&frame));
        }
    }
}
