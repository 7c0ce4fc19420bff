//! Segmentation against etherparse: every frame must be valid, and together they must carry the super-frame.

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice, VlanId};
use proptest::prelude::*;

use super::{Completion, MAX_HEADERS, SegmentError, Segmenter};
use crate::checksum::complete;
use crate::memory::{SharedMemory, read_chain, write_chain};
use crate::net::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, HDR_F_NEEDS_CSUM, NetHeader};

const SEQ: u32 = 0xffff_fff0;

/// A frame as a driver hands it over, and its virtio-net header.
fn super_frame(v6: bool, vlan: bool, options: bool, payload: &[u8], mss: u16) -> (Vec<u8>, NetHeader) {
    let ether = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let opts: &[TcpOptionElement] = if options {
        &[TcpOptionElement::Timestamp(7, 9), TcpOptionElement::Noop]
    } else {
        &[]
    };
    let mut frame = Vec::new();
    macro_rules! finish {
        ($ip:expr) => {
            $ip.tcp(1000, 2000, SEQ, 4096)
                .ack(77)
                .psh()
                .fin()
                .cwr()
                .options(opts)
                .expect("options fit")
                .write(&mut frame, payload)
                .expect("frame")
        };
    }
    let (a4, b4, a6, b6) = ([10, 1, 2, 3], [10, 3, 2, 1], [0xfd; 16], [0xfe; 16]);
    match (vlan, v6) {
        (false, false) => finish!(ether.ipv4(a4, b4, 64)),
        (false, true) => finish!(ether.ipv6(a6, b6, 64)),
        (true, false) => finish!(
            ether
                .single_vlan(VlanId::try_new(5).expect("id"))
                .ipv4(a4, b4, 64)
        ),
        (true, true) => finish!(
            ether
                .single_vlan(VlanId::try_new(5).expect("id"))
                .ipv6(a6, b6, 64)
        ),
    }
    let l4 = if vlan { 18 } else { 14 } + if v6 { 40 } else { 20 };
    let header = NetHeader {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: if v6 { GSO_TCPV6 } else { GSO_TCPV4 },
        gso_size: mss,
        csum_start: l4,
        csum_offset: 16,
        ..NetHeader::default()
    };
    (frame, header)
}

/// Checks one frame and returns (sequence number, payload, flags as (cwr, psh, fin), IPv4 identification).
fn check(frame: &[u8]) -> (u32, Vec<u8>, (bool, bool, bool), u16) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a valid frame");
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
        panic!("not TCP")
    };
    let mut id = 0;
    let sum = match packet.net.expect("an IP header") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(
                header.header_checksum(),
                header.to_header().calc_header_checksum()
            );
            id = header.identification();
            tcp.calc_checksum_ipv4(header.source(), header.destination())
                .expect("fits")
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            tcp.calc_checksum_ipv6(header.source(), header.destination())
                .expect("fits")
        }
        NetSlice::Arp(_) => panic!("not IP"),
    };
    // Both zeros of one's complement mean the same to TCP; what completes a checksum writes the one that UDP needs.
    assert_eq!(tcp.checksum() % 0xffff, sum % 0xffff);
    (
        tcp.sequence_number(),
        tcp.payload().to_vec(),
        (tcp.cwr(), tcp.psh(), tcp.fin()),
        id,
    )
}

/// A UDP datagram far longer than a frame, and its virtio-net header.
fn udp_super_frame(v6: bool, vlan: bool, payload: &[u8], mss: u16) -> (Vec<u8>, NetHeader) {
    let ether = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let mut frame = Vec::new();
    let (a4, b4, a6, b6) = ([10, 1, 2, 3], [10, 3, 2, 1], [0xfd; 16], [0xfe; 16]);
    let id = VlanId::try_new(5).expect("id");
    let built = match (vlan, v6) {
        (false, false) => ether.ipv4(a4, b4, 64).udp(1000, 2000).write(&mut frame, payload),
        (false, true) => ether.ipv6(a6, b6, 64).udp(1000, 2000).write(&mut frame, payload),
        (true, false) => ether
            .single_vlan(id)
            .ipv4(a4, b4, 64)
            .udp(1000, 2000)
            .write(&mut frame, payload),
        (true, true) => ether
            .single_vlan(id)
            .ipv6(a6, b6, 64)
            .udp(1000, 2000)
            .write(&mut frame, payload),
    };
    built.expect("frame");
    let l4 = if vlan { 18 } else { 14 } + if v6 { 40 } else { 20 };
    let header = NetHeader {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        gso_size: mss,
        csum_start: l4,
        csum_offset: 6,
        ..NetHeader::default()
    };
    (frame, header)
}

/// Checks one UDP frame and returns (payload, IPv4 identification).
fn check_udp(frame: &[u8]) -> (Vec<u8>, u16) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a valid frame");
    let Some(TransportSlice::Udp(udp)) = packet.transport else {
        panic!("not UDP")
    };
    assert_eq!(usize::from(udp.length()), 8 + udp.payload().len());
    let header = udp.to_header();
    let (sum, id) = match packet.net.expect("an IP header") {
        NetSlice::Ipv4(ip) => {
            let ip = ip.header().to_header();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            let sum = header.calc_checksum_ipv4(&ip, udp.payload()).expect("fits");
            (sum, ip.identification)
        }
        NetSlice::Ipv6(ip) => {
            let ip = ip.header().to_header();
            (header.calc_checksum_ipv6(&ip, udp.payload()).expect("fits"), 0)
        }
        NetSlice::Arp(_) => panic!("not IP"),
    };
    assert_eq!(udp.checksum(), sum);
    (udp.payload().to_vec(), id)
}

/// How many segments of a frame that may be none are written, and how many were planned.
fn counts(frame: &[u8], header: &NetHeader) -> (usize, usize) {
    let shared = SharedMemory::new("segment", 0, 1 << 17).expect("shared memory");
    let (from, to) = shared.region().slice().split_at(1 << 16);
    from.write_from(0, frame);
    let src = [from];
    let Ok(plan) = Segmenter::new(&frame[..MAX_HEADERS], header, frame.len()) else {
        return (0, 0);
    };
    let mut frames = plan.frames(&src, 0);
    let written = std::iter::from_fn(|| frames.write_next(&[to], 0, Completion::Here));
    (written.count(), plan.count())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn datagrams_are_valid_and_carry_the_payload(
        v6: bool,
        vlan: bool,
        here: bool,
        len in 0usize..60_000,
        mss in 300u16..9000,
        cut in 0usize..3000,
        seed: u8,
    ) {
        let payload: Vec<u8> = (0..len).map(|i| (i * 31 + usize::from(seed)).to_le_bytes()[0]).collect();
        let (frame, header) = udp_super_frame(v6, vlan, &payload, mss);
        let shared = SharedMemory::new("segment", 0, 1 << 17).expect("shared memory");
        let (a, b) = shared.region().slice().split_at(cut);
        let src = [a, b];
        write_chain(&src, 12, &frame);
        let plan = Segmenter::new(&frame[..frame.len().min(MAX_HEADERS)], &header, frame.len()).expect("a plan");
        let completion = if here { Completion::Here } else { Completion::Receiver };
        let mut frames = plan.frames(&src, 12);
        let (mut got, mut count) = (Vec::new(), 0);
        while let Some(expected) = frames.next_len() {
            let mut out = vec![0; expected];
            prop_assert_eq!(frames.write_next_to(&mut out, completion), Some(expected));
            if !here {
                let net = plan.net_header(completion);
                prop_assert!(complete(&mut out, net.csum_start, net.csum_offset));
            }
            let (part, id) = check_udp(&out);
            let last = count + 1 == plan.count();
            prop_assert!(part.len() == usize::from(mss) || last && part.len() <= usize::from(mss));
            if !v6 {
                prop_assert_eq!(usize::from(id), count);
            }
            got.extend_from_slice(&part);
            count += 1;
        }
        prop_assert_eq!(count, plan.count());
        prop_assert_eq!(got, payload);
    }

    #[test]
    fn mutated_datagrams_never_panic(at in 12usize..70, value: u8, v6: bool, vlan: bool, mss: u16) {
        let (mut frame, header) = udp_super_frame(v6, vlan, &[9; 4000], mss);
        frame[at] = value;
        let (written, planned) = counts(&frame, &header);
        prop_assert_eq!(written, planned);
    }

    #[test]
    fn frames_are_valid_and_carry_the_payload(
        v6: bool,
        vlan: bool,
        options: bool,
        here: bool,
        scratch: bool,
        len in 0usize..60_000,
        mss in 300u16..9000,
        cut in 0usize..3000,
        seed: u8,
    ) {
        let payload: Vec<u8> = (0..len).map(|i| (i * 31 + usize::from(seed)).to_le_bytes()[0]).collect();
        let (frame, header) = super_frame(v6, vlan, options, &payload, mss);
        let shared = SharedMemory::new("segment", 0, 1 << 17).expect("shared memory");
        let (from, to) = shared.region().slice().split_at(1 << 16);
        let (a, b) = from.split_at(cut);
        let src = [a, b];
        write_chain(&src, 12, &frame);
        let (c, d) = to.split_at(cut / 3);
        let dst = [c, d];

        let plan = Segmenter::new(&frame[..frame.len().min(MAX_HEADERS)], &header, frame.len()).expect("a plan");
        let completion = if here { Completion::Here } else { Completion::Receiver };
        let mut frames = plan.frames(&src, 12);
        let (mut got, mut count) = (Vec::new(), 0);
        while let Some(expected) = frames.next_len() {
            prop_assert!(expected <= plan.max_frame_len());
            let mut out = vec![0; expected];
            if scratch {
                prop_assert_eq!(frames.write_next_to(&mut out, completion), Some(expected));
            } else {
                prop_assert_eq!(frames.write_next(&dst, 12, completion), Some(expected));
                read_chain(&dst, 12, &mut out);
            }
            if !here {
                let net = plan.net_header(completion);
                prop_assert!(complete(&mut out, net.csum_start, net.csum_offset));
            }
            let (seq, part, (cwr, psh, fin), id) = check(&out);
            prop_assert_eq!(seq, SEQ.wrapping_add(u32::try_from(got.len()).expect("fits")));
            prop_assert!(part.len() <= usize::from(mss));
            got.extend_from_slice(&part);
            count += 1;
            let last = count == plan.count();
            prop_assert_eq!((cwr, psh, fin), (count == 1, last, last));
            if !v6 {
                prop_assert_eq!(usize::from(id), count - 1);
            }
        }
        prop_assert_eq!(count, plan.count());
        prop_assert_eq!(got, payload);
        prop_assert_eq!(frames.write_next(&dst, 12, completion), None);
    }

    #[test]
    fn hostile_headers_never_panic(head in prop::collection::vec(any::<u8>(), 0..300), patch in any::<[u8; 12]>(), len in 0usize..70_000) {
        let header = NetHeader::from_bytes(&patch);
        let _ = Segmenter::new(&head, &header, len);
    }

    #[test]
    fn mutated_headers_never_panic(at in 12usize..90, value: u8, v6: bool, vlan: bool, mss: u16) {
        let (mut frame, header) = super_frame(v6, vlan, true, &[9; 4000], mss);
        frame[at.min(89)] = value;
        let (written, planned) = counts(&frame, &header);
        prop_assert_eq!(written, planned);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (frame, header) = super_frame(false, false, false, &[1; 3000], 1448);
    let plan = |header: &NetHeader, head: &[u8]| Segmenter::new(head, header, frame.len()).map(|_| ());
    assert_eq!(plan(&header, &frame), Ok(()));
    assert_eq!(plan(&header, &frame[..50]), Err(SegmentError::Headers));
    let six = NetHeader {
        gso_type: GSO_TCPV6,
        ..header
    };
    assert_eq!(plan(&six, &frame), Err(SegmentError::Mismatch));
    let elsewhere = NetHeader {
        csum_start: 36,
        ..header
    };
    assert_eq!(plan(&elsewhere, &frame), Err(SegmentError::Mismatch));
    let udp = NetHeader {
        csum_offset: 6,
        ..header
    };
    assert_eq!(plan(&udp, &frame), Err(SegmentError::Mismatch));
    let tiny = NetHeader {
        gso_size: 1,
        ..header
    };
    assert_eq!(plan(&tiny, &frame), Err(SegmentError::SegmentSize));
    let none = NetHeader { flags: 0, ..header };
    assert_eq!(plan(&none, &frame), Err(SegmentError::Mismatch));
    assert!(matches!(
        Segmenter::new(
            &frame,
            &NetHeader {
                gso_size: 65535,
                ..header
            },
            100_000
        ),
        Err(SegmentError::TooLong)
    ));
}

#[test]
fn a_type_that_the_headers_are_not_of_is_refused() {
    let (tcp, of_tcp) = super_frame(false, false, false, &[1; 3000], 1448);
    let (udp, of_udp) = udp_super_frame(false, false, &[1; 3000], 1448);
    let plan = |header: &NetHeader, frame: &[u8]| Segmenter::new(frame, header, frame.len()).map(|_| ());
    assert_eq!(plan(&of_udp, &udp), Ok(()));
    assert_eq!(plan(&of_udp, &tcp), Err(SegmentError::Mismatch));
    assert_eq!(plan(&of_tcp, &udp), Err(SegmentError::Mismatch));
    let elsewhere = NetHeader {
        csum_offset: 16,
        ..of_udp
    };
    assert_eq!(plan(&elsewhere, &udp), Err(SegmentError::Mismatch));
    assert_eq!(plan(&of_udp, &udp[..41]), Err(SegmentError::Headers));
}

#[test]
fn a_receiver_without_room_leaves_the_frame_to_be_written_again() {
    let (frame, header) = super_frame(false, false, false, &[1; 3000], 1448);
    let shared = SharedMemory::new("segment", 0, 1 << 16).expect("shared memory");
    let (from, to) = shared.region().slice().split_at(1 << 15);
    from.write_from(0, &frame);
    let src = [from];
    let plan = Segmenter::new(&frame, &header, frame.len()).expect("a plan");
    let mut frames = plan.frames(&src, 0);
    assert_eq!(frames.write_next(&[to.take(1000)], 0, Completion::Here), None);
    assert_eq!(frames.write_next(&[to], 40_000, Completion::Here), None);
    assert_eq!(frames.write_next(&[to], 0, Completion::Here), Some(54 + 1448));
    let mut out = vec![0; 54 + 1448];
    to.read_to(0, &mut out);
    assert_eq!(check(&out).1, [1; 1448]);
}
