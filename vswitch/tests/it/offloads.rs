//! Frames with work left to do, to guests that can and cannot do it themselves; and queue pairs.

use crate::support::net::{BROADCAST, Net, frame, mac, tcp, udp};
use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::Guest;
use netyard_testkit::tcp::checksum_is_right;
use virtio::checksum::{Checksum, complete};
use virtio::features as f;
use virtio::net::{GSO_TCPV4, GSO_UDP_L4, HDR_F_NEEDS_CSUM, NetHeader};

const BASE: u64 = f::VERSION_1 | f::NET_F_MRG_RXBUF | f::RING_F_EVENT_IDX;
const OFFLOADS: u64 = f::NET_F_CSUM
    | f::NET_F_GUEST_CSUM
    | f::NET_F_HOST_TSO4
    | f::NET_F_GUEST_TSO4
    | f::NET_F_HOST_TSO6
    | f::NET_F_GUEST_TSO6;

fn options(offloads: u64) -> Options {
    Options {
        features: BASE | offloads,
        slot_len: 65_536 + 64,
        queue_size: 128,
        ..Options::default()
    }
}

/// Two guests with these offloads, which know each other.
fn two(net: &Net, of_a: u64, of_b: u64) -> (Guest, Guest) {
    let (mut a, mut b) = (
        net.guest_with("a", options(of_a)),
        net.guest_with("b", options(of_b)),
    );
    for (number, guest) in [(1, &mut a), (2, &mut b)] {
        guest.send(0, &frame(BROADCAST, mac(number), 0, 60));
    }
    a.receive();
    b.receive();
    (a, b)
}

fn several(pairs: u16) -> Options {
    Options {
        pairs,
        ..Options::default()
    }
}

#[test]
fn offloads_pass_between_guests_that_share_them() {
    let net = Net::new();
    let (mut a, mut b) = two(&net, OFFLOADS, OFFLOADS);
    let (mut header, frame) = tcp(40_000);
    header.gso_type = GSO_TCPV4;
    header.gso_size = 1448;
    header.hdr_len = 54;
    a.send_with(0, &header, &frame);
    let (_, received) = b.receive();
    assert_eq!(received.frame, frame);
    let buffers = u16::try_from((12 + frame.len()).div_ceil(2048)).unwrap();
    assert_eq!(
        received.header,
        NetHeader {
            num_buffers: buffers,
            ..header
        }
    );
    let (header, frame) = tcp(1000);
    a.send_with(0, &header, &frame);
    let (_, received) = b.receive();
    assert_eq!((received.header.flags, received.frame), (HDR_F_NEEDS_CSUM, frame));
    assert_eq!(net.total_drops("a") + net.total_drops("b"), 0);
}

const USO: u64 = f::NET_F_HOST_USO | f::NET_F_GUEST_USO4 | f::NET_F_GUEST_USO6;

/// A UDP datagram of the first guest for the second, to be segmented, and its header.
fn udp_super_frame(payload: usize, size: u16) -> (NetHeader, Vec<u8>) {
    let mut frame = udp(2, 1, [7, 9], 0);
    frame.truncate(42);
    frame.extend((0..payload).map(|at| u8::try_from(at % 251).unwrap()));
    let len = u16::try_from(payload + 8).unwrap();
    frame[16..18].copy_from_slice(&(len + 20).to_be_bytes());
    frame[38..40].copy_from_slice(&len.to_be_bytes());
    let mut pseudo = Checksum::new();
    pseudo.add(&frame[26..34]);
    pseudo.add(&[0, 17]);
    pseudo.add(&len.to_be_bytes());
    frame[40..42].copy_from_slice(&pseudo.partial());
    let header = NetHeader {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        gso_size: size,
        hdr_len: 42,
        csum_start: 34,
        csum_offset: 6,
        ..NetHeader::default()
    };
    (header, frame)
}

#[test]
fn udp_super_frames_pass_or_are_segmented_as_the_receiver_negotiated() {
    let net = Net::new();
    let (mut a, mut b) = two(&net, OFFLOADS | USO, OFFLOADS | USO);
    let (header, frame) = udp_super_frame(30_000, 1400);
    a.send_with(0, &header, &frame);
    let (_, received) = b.receive();
    assert_eq!(received.frame, frame);
    assert_eq!(
        (received.header.gso_type, received.header.gso_size),
        (GSO_UDP_L4, 1400)
    );

    // TCP's offloads, half of UDP's, or none are not enough.
    for taken in [OFFLOADS, OFFLOADS | f::NET_F_GUEST_USO4, 0] {
        drop(b);
        netyard_testkit::guest::wait_for("the port to be free", || !net.is_up("b"));
        b = net.connect("b", options(taken));
        b.send(0, &crate::support::net::frame(BROADCAST, mac(2), 0, 60));
        a.receive();
        a.send_with(0, &header, &frame);
        let mut payload = Vec::new();
        while payload.len() < 30_000 {
            let (_, mut got) = b.receive();
            assert_eq!(got.header.gso_type, 0);
            if taken & f::NET_F_GUEST_CSUM == 0 {
                assert_eq!(got.header.flags, 0);
            } else {
                assert_eq!(got.header.flags, HDR_F_NEEDS_CSUM);
                assert!(complete(&mut got.frame, 34, 6));
            }
            let mut sum = Checksum::new();
            sum.add(&got.frame[26..34]);
            sum.add(&[0, 17]);
            sum.add(&got.frame[38..40]);
            sum.add(&got.frame[34..]);
            assert_eq!(sum.finish(), [0, 0], "the checksum is right");
            payload.extend_from_slice(&got.frame[42..]);
        }
        assert_eq!(payload, frame[42..]);
    }
    assert_eq!(net.total_drops("a") + net.total_drops("b"), 0);
}

#[test]
fn a_udp_super_frame_that_was_not_negotiated_is_dropped() {
    let net = Net::new();
    let mut a = net.guest_with("a", options(OFFLOADS));
    let (header, frame) = udp_super_frame(30_000, 1400);
    a.send_with(0, &header, &frame);
    a.flush();
    assert_eq!(net.drops("a", "bad-header"), 1);
}

#[test]
fn jumbo_frames_pass_up_to_the_mtu_of_both_ports() {
    let net = Net::new();
    let jumbo = Options {
        slot_len: 10_000,
        ..Options::default()
    };
    for (name, mtu) in [("a", Some(9216)), ("b", Some(9000)), ("c", None)] {
        let port = vswitch::model::NewPort {
            mtu,
            ..net.new_port(name, 1)
        };
        net.switch.add_port(&port).unwrap();
    }
    let mut a = net.connect("a", jumbo);
    let mut b = net.connect("b", jumbo);
    let mut c = net.connect("c", jumbo);
    b.send(0, &frame(BROADCAST, mac(2), 0, 60));
    a.receive();
    c.receive();
    // A header and a VLAN tag are not counted.
    for len in [1514, 9000, 9014, 9018] {
        let sent = frame(mac(2), mac(1), 3, len);
        a.send(0, &sent);
        b.expect(&sent);
    }
    a.send(0, &frame(mac(2), mac(1), 3, 9019));
    // Too long for its sender's own port.
    a.send(0, &frame(mac(2), mac(1), 3, 9216 + 19));
    // Flooded: it fits one of the other ports.
    let flooded = frame(BROADCAST, mac(1), 4, 9018);
    a.send(0, &flooded);
    b.expect(&flooded);
    let marker = frame(BROADCAST, mac(1), 5, 1518);
    a.send(0, &marker);
    b.expect(&marker);
    c.expect(&marker);
    assert_eq!(net.drops("a", "oversize"), 1);
    assert_eq!((net.drops("b", "oversize"), net.drops("c", "oversize")), (1, 1));
}

#[test]
fn checksums_are_completed_for_guests_that_want_them_complete() {
    let net = Net::new();
    let (mut a, mut b) = two(&net, OFFLOADS, 0);
    for payload in [0, 1, 100, 1459, 1460] {
        let (header, mut frame) = tcp(payload);
        a.send_with(0, &header, &frame);
        let (_, received) = b.receive();
        assert_eq!(
            received.header,
            NetHeader {
                num_buffers: 1,
                ..NetHeader::default()
            }
        );
        assert!(checksum_is_right(&received.frame));
        complete(&mut frame, 34, 16);
        assert_eq!(received.frame, frame);
    }
}

#[test]
fn super_frames_are_segmented_for_guests_that_cannot_take_them() {
    for offloads in [0, f::NET_F_GUEST_CSUM] {
        let net = Net::new();
        let (mut a, mut b) = two(&net, OFFLOADS, offloads);
        let (mut header, frame) = tcp(20_000);
        header.gso_type = GSO_TCPV4;
        header.gso_size = 1448;
        a.send_with(0, &header, &frame);
        let mut payload = Vec::new();
        while payload.len() < 20_000 {
            let (_, received) = b.receive();
            if offloads == 0 {
                assert_eq!(received.header.flags, 0);
                assert!(checksum_is_right(&received.frame));
            } else {
                assert_eq!(received.header.flags, HDR_F_NEEDS_CSUM);
            }
            assert_eq!(received.header.gso_type, 0);
            let sequence = u32::from_be_bytes(received.frame[38..42].try_into().unwrap());
            assert_eq!(sequence as usize, 1 + payload.len());
            payload.extend_from_slice(&received.frame[54..]);
        }
        assert_eq!(payload, frame[54..]);
        assert_eq!(net.port("b").counters.tx_frames, 14 + 1, "and the hello");
        assert_eq!(net.total_drops("b"), 0);
    }
}

#[test]
fn offloads_that_make_no_sense_are_dropped() {
    let net = Net::new();
    let (mut a, mut b) = two(&net, OFFLOADS, OFFLOADS);
    let (header, frame) = tcp(1000);
    let gso = NetHeader {
        gso_type: GSO_TCPV4,
        gso_size: 500,
        ..header
    };
    for bad in [
        NetHeader {
            csum_start: 0xffff,
            ..header
        },
        NetHeader {
            csum_offset: 0xffff,
            ..header
        },
        NetHeader { gso_size: 0, ..gso },
        NetHeader { gso_type: 77, ..gso },
        NetHeader { flags: 0, ..gso },
    ] {
        a.send_with(0, &bad, &frame);
    }
    // The hint is not believed, and goes no further than it is true.
    a.send_with(
        0,
        &NetHeader {
            hdr_len: 0xffff,
            ..gso
        },
        &frame,
    );
    let (_, received) = b.receive();
    assert_eq!((received.header.hdr_len, received.frame), (0, frame));
    assert_eq!(net.drops("a", "bad-header"), 5);
}

#[test]
fn a_flow_comes_back_on_the_pair_it_was_transmitted_on() {
    let net = Net::with_workers(2);
    let (mut a, mut b) = (net.guest_with("a", several(4)), net.guest_with("b", several(2)));
    a.send(0, &frame(BROADCAST, mac(1), 0, 60));
    b.receive();
    b.send(0, &frame(BROADCAST, mac(2), 0, 60));
    a.receive();
    for pair in 0..4_u8 {
        let port = 1000 + u16::from(pair);
        a.send(usize::from(pair), &udp(2, 1, [port, 9], pair));
        b.expect(&udp(2, 1, [port, 9], pair));
        for tag in 0..5 {
            b.send(usize::from(tag % 2), &udp(1, 2, [9, port], tag));
            assert_eq!(a.expect(&udp(1, 2, [9, port], tag)), usize::from(pair));
        }
    }
    // The guest moves the flow to another CPU: what comes back moves too.
    a.send(3, &udp(2, 1, [1000, 9], 9));
    b.expect(&udp(2, 1, [1000, 9], 9));
    b.send(0, &udp(1, 2, [9, 1000], 9));
    assert_eq!(a.expect(&udp(1, 2, [9, 1000], 9)), 3);
    let view = net.port("a");
    assert!(
        view.queues
            .iter()
            .all(|queue| queue.enabled && queue.rx_frames > 0 && queue.tx_frames > 0)
    );
}

#[test]
fn pairs_that_are_not_enabled_get_nothing() {
    use vhost::vhost_user::VhostUserFrontend;
    let net = Net::new();
    let (mut a, mut b) = (net.guest("a"), net.guest_with("b", several(4)));
    for index in [0, 1, 4, 5] {
        b.frontend.set_vring_enable(index, false).unwrap();
    }
    netyard_testkit::guest::wait_for("two pairs", || net.port("b").enabled_queue_pairs == 2);
    let mut seen = [0_u32; 4];
    for port in 0..64 {
        a.send(0, &udp(2, 1, [port, 9], 1));
        seen[b.expect(&udp(2, 1, [port, 9], 1))] += 1;
    }
    assert!(
        seen[0] == 0 && seen[2] == 0 && seen[1] > 0 && seen[3] > 0,
        "{seen:?}"
    );
}

#[test]
fn frames_of_a_flow_stay_in_order_through_two_workers() {
    let net = Net::with_workers(2);
    let (mut a, mut b) = (net.guest_with("a", several(2)), net.guest_with("b", several(2)));
    b.send(0, &frame(BROADCAST, mac(2), 0, 60));
    a.receive();
    for round in 0..20_u8 {
        for tag in 0..10 {
            a.send(0, &udp(2, 1, [1, 9], round * 10 + tag));
            a.send(1, &udp(2, 1, [2, 9], round * 10 + tag));
        }
        let mut expected = [round * 10; 2];
        for _ in 0..20 {
            let (_, received) = b.receive();
            let flow = usize::from(received.frame[35] - 1);
            assert_eq!(received.frame[42], expected[flow]);
            expected[flow] += 1;
        }
    }
    assert_eq!(net.total_drops("b"), 0);
}
