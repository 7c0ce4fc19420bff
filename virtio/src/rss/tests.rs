use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;

/// The key and the results that Microsoft publishes to verify an RSS hash by.
const KEY: [u8; KEY_LEN] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
    0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
    0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// Destination and its port, source and its port, hash of the addresses, hash with ports.
const VECTORS: [(&str, u16, &str, u16, u32, u32); 8] = [
    (
        "161.142.100.80",
        1766,
        "66.9.149.187",
        2794,
        0x323e_8fc2,
        0x51cc_c178,
    ),
    (
        "65.69.140.83",
        4739,
        "199.92.111.2",
        14230,
        0xd718_262a,
        0xc626_b0ea,
    ),
    (
        "12.22.207.184",
        38024,
        "24.19.198.95",
        12898,
        0xd2d0_a5de,
        0x5c2b_394a,
    ),
    (
        "209.142.163.6",
        2217,
        "38.27.205.30",
        48228,
        0x8298_9176,
        0xafc7_327f,
    ),
    (
        "202.188.127.2",
        1303,
        "153.39.163.191",
        44251,
        0x5d18_09c5,
        0x10e8_28a2,
    ),
    (
        "3ffe:2501:200:3::1",
        1766,
        "3ffe:2501:200:1fff::7",
        2794,
        0x2cc1_8cd5,
        0x4020_7d3d,
    ),
    (
        "ff02::1",
        4739,
        "3ffe:501:8::260:97ff:fe40:efab",
        14230,
        0x0f0c_461c,
        0xdde5_1bbf,
    ),
    (
        "fe80::200:f8ff:fe21:67cf",
        38024,
        "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
        44251,
        0x4b61_e985,
        0x02d1_feef,
    ),
];

fn frame(tags: usize, to: (IpAddr, u16), from: (IpAddr, u16), protocol: u8) -> Vec<u8> {
    let mut frame = vec![2; 12];
    for _ in 0..tags {
        frame.extend([0x81, 0, 0, 5]);
    }
    let bytes = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => Ipv4Addr::octets(&ip).to_vec(),
        IpAddr::V6(ip) => Ipv6Addr::octets(&ip).to_vec(),
    };
    if to.0.is_ipv4() {
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, protocol, 64]);
    }
    frame.extend(bytes(from.0));
    frame.extend(bytes(to.0));
    frame.extend(from.1.to_be_bytes());
    frame.extend(to.1.to_be_bytes());
    frame.extend([0; 16]);
    frame
}

#[test]
fn hashes_are_those_that_were_published() {
    let hash = Toeplitz::new(&KEY);
    for (to, to_port, from, from_port, addresses, ports) in VECTORS {
        let (to, from) = (to.parse::<IpAddr>().unwrap(), from.parse::<IpAddr>().unwrap());
        for tags in 0..=2 {
            let tcp = frame(tags, (to, to_port), (from, from_port), TCP);
            let udp = frame(tags, (to, to_port), (from, from_port), UDP);
            let base: u16 = if to.is_ipv4() { 1 } else { 4 };
            let expected = |value, kind: u16| Hash {
                value,
                report: base + kind,
            };
            assert_eq!(hash.of_frame(&tcp, SUPPORTED), expected(ports, 1), "{to}");
            assert_eq!(hash.of_frame(&udp, SUPPORTED), expected(ports, 2), "{to}");
            let only = HASH_IPV4 | HASH_IPV6;
            assert_eq!(hash.of_frame(&tcp, only), expected(addresses, 0), "{to}");
            let other = frame(tags, (to, to_port), (from, from_port), 132);
            assert_eq!(hash.of_frame(&other, SUPPORTED), expected(addresses, 0), "{to}");
        }
    }
}

#[test]
fn types_that_are_not_wanted_are_not_used() {
    let hash = Toeplitz::new(&KEY);
    let at = |text: &str, port| (text.parse().unwrap(), port);
    let tcp4 = frame(0, at("10.0.0.1", 1), at("10.0.0.2", 2), TCP);
    let udp6 = frame(0, at("fe80::1", 1), at("fe80::2", 2), UDP);
    let none = Hash::default();
    assert_eq!(hash.of_frame(&tcp4, SUPPORTED & !(HASH_TCPV4 | HASH_IPV4)), none);
    assert_eq!(hash.of_frame(&udp6, HASH_TCPV6 | HASH_IPV4), none);
    assert_eq!(hash.of_frame(&udp6, HASH_UDPV6).report, 6);
    assert_eq!(hash.of_frame(&tcp4, 0), none);
}

#[test]
fn fragments_are_hashed_by_their_addresses() {
    let hash = Toeplitz::new(&KEY);
    let mut packet = frame(
        0,
        ("161.142.100.80".parse().unwrap(), 1766),
        ("66.9.149.187".parse().unwrap(), 2794),
        UDP,
    );
    for (high, low) in [(0x20, 0), (0, 1), (0x1f, 0)] {
        packet[20..22].copy_from_slice(&[high, low]);
        let of = hash.of_frame(&packet, SUPPORTED);
        assert_eq!((of.value, of.report), (0x323e_8fc2, 1));
    }
}

#[test]
fn what_is_cut_short_has_no_hash_and_does_no_harm() {
    let hash = Toeplitz::new(&KEY);
    let whole = frame(1, ("::1".parse().unwrap(), 1), ("::2".parse().unwrap(), 2), TCP);
    for len in 0..whole.len() {
        let _ = hash.of_frame(&whole[..len], SUPPORTED);
    }
    assert_eq!(
        hash.of_frame(&whole[..57], SUPPORTED),
        Hash::default(),
        "no header"
    );
    assert_eq!(hash.of_frame(&whole[..60], SUPPORTED).report, 4, "no ports");
    let arp = [&[2; 12][..], &[8, 6], &[0; 46]].concat();
    assert_eq!(hash.of_frame(&arp, SUPPORTED), Hash::default());
    assert_eq!(
        hash.of_frame(
            &frame(3, ("::1".parse().unwrap(), 1), ("::2".parse().unwrap(), 2), TCP),
            SUPPORTED
        ),
        Hash::default()
    );
}

/// The packet of a published vector over IPv6, from other ends than the header says, which the extension headers tell.
fn roaming(protocol: u8) -> (Vec<u8>, u32, u32) {
    let (to, to_port, from, from_port, addresses, ports) = VECTORS[5];
    let at = |text: &str| match text.parse().unwrap() {
        IpAddr::V6(ip) => ip.octets(),
        IpAddr::V4(_) => panic!("an address of IPv6"),
    };
    let whole = frame(
        0,
        ("2001:db8::1".parse().unwrap(), to_port),
        ("2001:db8::2".parse().unwrap(), from_port),
        0,
    );
    let mut packet = whole[..54].to_vec();
    // Hop-by-hop options that are padding; the home address behind padding; the routing header of type 2; no fragment.
    packet.extend([60, 0, 1, 4, 0, 0, 0, 0]);
    packet.extend([43, 2, 1, 0, 201, 16]);
    packet.extend(at(from));
    packet.extend([0, 0]);
    packet.extend([44, 2, 2, 1, 0, 0, 0, 0]);
    packet.extend(at(to));
    packet.extend([protocol, 0, 0, 0, 0, 0, 0, 9]);
    packet.extend(&whole[54..]);
    (packet, addresses, ports)
}

#[test]
fn extension_headers_say_the_addresses_where_that_is_wanted() {
    let hash = Toeplitz::new(&KEY);
    for (protocol, kind, report) in [(TCP, HASH_TCP_EX, 8), (UDP, HASH_UDP_EX, 9)] {
        let (packet, addresses, ports) = roaming(protocol);
        let of = |types| {
            let hash = hash.of_frame(&packet, types);
            (hash.value, hash.report)
        };
        assert_eq!(of(SUPPORTED), (ports, report));
        assert_eq!(of(kind), (ports, report));
        assert_eq!(of(HASH_IP_EX), (addresses, 7));
        assert_eq!(of(SUPPORTED & !kind), (addresses, 7));
        // Else they count for nothing: the packet is as it would be without them.
        let without = [
            &packet[..20],
            &[protocol],
            &packet[21..54],
            &packet[packet.len() - 20..],
        ]
        .concat();
        let plain = SUPPORTED & !(HASH_IP_EX | HASH_TCP_EX | HASH_UDP_EX);
        assert_eq!(hash.of_frame(&packet, plain), hash.of_frame(&without, plain));
        assert_eq!(hash.of_frame(&packet, plain).report, report - 3);
        // A packet without such headers has the types without.
        assert_eq!(hash.of_frame(&without, SUPPORTED).report, report - 3);
        assert_eq!(hash.of_frame(&without, HASH_IP_EX | kind), Hash::default());
        // A fragment has no ports.
        let mut fragment = packet.clone();
        let at = fragment.len() - 20 - 5;
        fragment[at] = 1;
        let of = hash.of_frame(&fragment, SUPPORTED);
        assert_eq!((of.value, of.report), (addresses, 7));
    }
}

#[test]
fn extension_headers_may_end_anywhere_and_go_on_for_ever() {
    let hash = Toeplitz::new(&KEY);
    let (packet, ..) = roaming(TCP);
    for len in 54..packet.len() {
        let report = hash.of_frame(&packet[..len], SUPPORTED).report;
        assert_eq!(report, if len < packet.len() - 16 { 7 } else { 8 });
    }
    let mut endless = packet[..54].to_vec();
    endless.extend([0; 4096]);
    assert_eq!(hash.of_frame(&endless, SUPPORTED).report, 7);
    for filler in 1..=255 {
        endless[54..].fill(filler);
        let _ = hash.of_frame(&endless, SUPPORTED);
    }
}
