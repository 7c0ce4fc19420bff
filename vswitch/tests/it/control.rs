//! Guests whose control queue the switch serves: what they ask for, and what comes of it.

use crate::support::net::{BROADCAST, Net, frame, mac, tcp, udp};

use netyard_testkit::endpoint::{Endpoint, Options};
use netyard_testkit::guest::{Guest, wait_for};
use vhost::VhostBackend as _;
use vhost::vhost_user::VhostUserFrontend as _;
use vhost::vhost_user::message::VhostUserConfigFlags;
use virtio::features as f;
use virtio::net::{GSO_TCPV4, NetHeader};
use virtio::queue::DriverQueue;
use virtio::rss::{KEY_LEN, SUPPORTED, Toeplitz};
use virtio::split::QueueConfig;
use vswitch::mac::MacAddr;
use vswitch::model::NewPort;

const BASE: u64 = f::VERSION_1 | f::NET_F_MRG_RXBUF | f::RING_F_EVENT_IDX | f::NET_F_CTRL_VQ;
const RX: u64 = f::NET_F_CTRL_RX | f::NET_F_CTRL_RX_EXTRA | f::NET_F_CTRL_MAC_ADDR;
const GROUP: MacAddr = MacAddr::new([1, 0, 0x5e, 0, 0, 1]);

fn options(pairs: u16, features: u64) -> Options {
    Options {
        pairs,
        features: BASE | features,
        control: true,
        slot_len: 66_000,
        queue_size: 128,
        ..Options::default()
    }
}

fn port(net: &Net, name: &str, pairs: u16) -> NewPort {
    NewPort {
        control_queue: true,
        mac: Some(mac(2)),
        ..net.new_port(name, pairs)
    }
}

/// A plain guest, and one whose control queue the switch serves.
fn two(pairs: u16, features: u64) -> (Net, Guest, Guest) {
    let net = Net::new();
    let a = net.guest("a");
    net.switch.add_port(&port(&net, "b", pairs)).unwrap();
    let b = Guest::connect(&net.socket("b"), options(pairs, features));
    wait_for("the first queue pair", || net.port("b").enabled_queue_pairs == 1);
    (net, a, b)
}

/// Which of frames to these addresses arrive, as far as the last one does.
fn arrive(a: &mut Guest, b: &mut Guest, to: &[MacAddr]) -> Vec<u8> {
    for (tag, to) in (0..).zip(to) {
        a.send(0, &frame(*to, mac(1), tag, 60));
    }
    a.flush();
    std::iter::from_fn(|| b.try_receive(0))
        .map(|got| got.frame[14])
        .collect()
}

#[test]
fn a_guest_gets_what_it_wants_and_the_rest_is_counted() {
    let (net, mut a, mut b) = two(1, RX);
    let all = [mac(2), mac(3), GROUP, BROADCAST];
    assert_eq!(arrive(&mut a, &mut b, &all), [0, 1, 2, 3]);
    assert!(b.control(0, 0, &[0]));
    assert_eq!(arrive(&mut a, &mut b, &all), [0, 3], "promiscuous no more");
    assert_eq!(net.drops("b", "filtered"), 2);
    assert!(b.control(0, 1, &[1]));
    assert!(b.control(0, 5, &[1]));
    assert_eq!(arrive(&mut a, &mut b, &all), [0, 2], "all groups, no broadcast");
    assert!(b.control(1, 1, &mac(3).octets()));
    assert_eq!(arrive(&mut a, &mut b, &all), [1, 2], "another address");
    assert_eq!(net.drops("b", "filtered"), 6);
    assert_eq!(net.total_drops("b"), 6);
    // A driver that starts anew has asked for nothing.
    drop(b);
    wait_for("the guest to be gone", || !net.port("b").connected);
    let mut b = net.connect("b", options(1, RX));
    assert_eq!(arrive(&mut a, &mut b, &all), [0, 1, 2, 3]);
}

#[test]
fn vlans_that_a_guest_did_not_name_are_kept_from_it() {
    let (net, mut a, mut b) = two(1, f::NET_F_CTRL_VLAN);
    let tagged = |vlan: u8| {
        let mut frame = frame(mac(2), mac(1), 0, 60);
        frame.splice(12..12, [0x81, 0, 0, vlan]);
        frame
    };
    assert!(b.control(2, 0, &[7, 0]));
    for vlan in [5, 7] {
        a.send(0, &tagged(vlan));
    }
    b.expect(&tagged(7));
    assert_eq!(net.drops("b", "filtered"), 1);
    assert!(b.control(2, 1, &[7, 0]));
    a.send(0, &tagged(7));
    a.flush();
    b.expect_nothing();
}

#[test]
fn queue_pairs_are_used_when_the_guest_says_so() {
    let (net, mut a, mut b) = two(2, f::NET_F_MQ);
    b.send(1, &frame(BROADCAST, mac(2), 0, 60));
    wait_for("a frame on an unused pair to be dropped", || {
        net.drops("b", "queue-disabled") == 1
    });
    assert!(!b.control(4, 0, &[3, 0]) && !b.control(4, 0, &[0, 0]));
    assert!(b.control(4, 0, &[2, 0]));
    assert_eq!(net.port("b").enabled_queue_pairs, 2);
    let hello = frame(BROADCAST, mac(2), 1, 60);
    b.send(1, &hello);
    a.expect(&hello);
    // What comes back follows the pair that it was sent on.
    a.send(0, &frame(mac(2), mac(1), 2, 60));
    assert_eq!(b.receive().0, 1);
    assert!(b.control(4, 0, &[1, 0]));
    assert_eq!(net.port("b").enabled_queue_pairs, 1);
}

/// `struct virtio_net_rss_config`.
fn rss(types: u32, unclassified: u16, table: &[u16], transmit: u16, key: &[u8]) -> Vec<u8> {
    let mask = u16::try_from(table.len() - 1).unwrap();
    let words = [mask, unclassified]
        .into_iter()
        .chain(table.iter().copied())
        .chain([transmit]);
    let mut bytes = types.to_le_bytes().to_vec();
    bytes.extend(words.flat_map(u16::to_le_bytes));
    bytes.push(u8::try_from(key.len()).unwrap());
    bytes.extend(key);
    bytes
}

#[test]
fn frames_go_where_the_guest_wants_them_and_say_their_hash() {
    let (net, mut a, mut b) = two(4, f::NET_F_MQ | f::NET_F_RSS | f::NET_F_HASH_REPORT);
    let mut config = b
        .frontend
        .get_config(0, 24, VhostUserConfigFlags::empty(), &[0; 24])
        .unwrap()
        .1;
    assert_eq!(
        config.split_off(17),
        [40, 128, 0, 0xff, 1, 0, 0],
        "what is possible"
    );
    let key: [u8; KEY_LEN] = std::array::from_fn(|at| u8::try_from(at * 37 % 251).unwrap());
    let table = [2, 0, 1, 2, 0, 1, 2, 1];
    assert!(b.control(4, 1, &rss(SUPPORTED, 3, &table, 4, &key)));
    assert_eq!(net.port("b").enabled_queue_pairs, 4);
    let toeplitz = Toeplitz::new(&key);
    let mut seen = [0; 4];
    for port in 0..64 {
        let packet = udp(2, 1, [port, 9], 7);
        a.send(0, &packet);
        let (pair, got) = b.receive();
        let hash = toeplitz.of_frame(&packet, SUPPORTED);
        assert_eq!(got.frame, packet);
        assert_eq!(got.hash, (hash.value, 3));
        assert_eq!(pair, usize::from(table[hash.value as usize % table.len()]));
        seen[pair] += 1;
    }
    assert!(
        seen[..3].iter().all(|count| *count > 0) && seen[3] == 0,
        "{seen:?}"
    );
    let other = frame(mac(2), mac(1), 1, 60);
    a.send(0, &other);
    let (pair, got) = b.receive();
    assert_eq!(
        (pair, got.hash, got.frame),
        (3, (0, 0), other),
        "no hash, no place in the table"
    );
    // The guest's own frames have the longer header, too.
    let answer = udp(1, 2, [9, 1], 8);
    b.send(0, &answer);
    assert_eq!(a.receive().1.frame, answer);
    assert_eq!(net.total_drops("a") + net.total_drops("b"), 0);
    // Without the table, frames follow the guest's own again, and still say their hash.
    assert!(b.control(4, 0, &[2, 0]));
    b.send(1, &answer);
    assert_eq!(a.receive().1.frame, answer);
    a.send(0, &udp(2, 1, [1, 9], 9));
    let (pair, got) = b.receive();
    assert_eq!((pair, got.hash), (1, (0, 0)), "no key any more");
}

#[test]
fn a_queue_that_is_not_ready_costs_no_frames() {
    let (net, mut a, mut b) = two(2, f::NET_F_MQ | f::NET_F_RSS);
    assert!(b.control(4, 1, &rss(0, 1, &[1], 1, &[])));
    let packet = frame(mac(2), mac(1), 1, 60);
    a.send(0, &packet);
    assert_eq!(b.expect(&packet), 1);
    b.frontend.get_vring_base(2).unwrap();
    a.send(0, &packet);
    assert_eq!(b.expect(&packet), 0);
    assert_eq!(net.total_drops("b"), 0);
}

#[test]
fn super_frames_with_hashes_arrive_whole_or_cut() {
    const TSO: u64 = f::NET_F_CSUM | f::NET_F_GUEST_CSUM | f::NET_F_HOST_TSO4 | f::NET_F_GUEST_TSO4;
    let net = Net::new();
    let mut a = net.guest_with(
        "a",
        Options {
            features: BASE | TSO,
            slot_len: 66_000,
            queue_size: 128,
            ..Options::default()
        },
    );
    net.switch.add_port(&port(&net, "b", 1)).unwrap();
    let features = TSO | f::NET_F_HASH_REPORT | f::NET_F_CTRL_GUEST_OFFLOADS;
    let mut b = net.connect("b", options(1, features));
    let hash = [&1u32.to_le_bytes()[..], &[0; 8], &[4, 1, 2, 3, 4]].concat();
    assert!(b.control(4, 2, &hash));
    let (mut header, packet) = tcp(20_000);
    header.gso_type = GSO_TCPV4;
    header.gso_size = 1448;
    header.hdr_len = 54;
    a.send_with(0, &header, &packet);
    let (_, got) = b.receive();
    assert_eq!(got.frame, packet);
    assert_eq!((got.header.gso_type, got.hash.1), (GSO_TCPV4, 1));
    // The guest turns its offloads off.
    assert!(b.control(5, 0, &[0; 8]));
    a.send_with(0, &header, &packet);
    for _ in 0..20_000_usize.div_ceil(1448) {
        let (_, got) = b.receive();
        assert_eq!(
            (got.header, got.hash.1),
            (
                NetHeader {
                    num_buffers: 1,
                    ..NetHeader::default()
                },
                1
            )
        );
        assert!(got.frame.len() <= 1448 + 54);
    }
    let (header, packet) = tcp(100);
    a.send_with(0, &header, &packet);
    let (_, got) = b.receive();
    assert_eq!(got.header.flags, 0, "its checksum is complete");
    assert!(netyard_testkit::tcp::checksum_is_right(&got.frame));
    assert_eq!(net.total_drops("a") + net.total_drops("b"), 0);
}

#[test]
fn malformed_commands_and_floods_of_them_hurt_nobody() {
    let (net, mut a, mut b) = two(1, RX);
    assert_eq!(
        b.control_chain(&[0, 0, 0], &[3], 0),
        (0, 0xee),
        "no room for an answer"
    );
    assert_eq!(b.control_chain(&[], &[], 1), (1, 1));
    assert_eq!(b.control_chain(&[0], &[1], 1), (1, 1));
    assert_eq!(b.control_chain(&[77, 3, 0], &[3], 1), (1, 1));
    assert_eq!(
        b.control_chain(&[0, 0, 0], &[1, 1, 1], 1),
        (1, 0),
        "any framing will do"
    );
    let huge = [
        &[1, 0][..],
        &9000u32.to_le_bytes(),
        &vec![2; 54_000],
        &0u32.to_le_bytes(),
    ]
    .concat();
    assert_eq!(b.control_chain(&huge, &[2, huge.len() - 2], 1), (1, 0));
    assert!(
        !b.control(4, 1, &[0; 8]) && !b.control(5, 0, &[0; 8]),
        "not negotiated"
    );
    for round in 0..500_u32 {
        assert!(b.control(0, 0, &[u8::from(round % 2 == 0)]));
    }
    assert!(b.control(0, 0, &[1]));
    let hello = frame(mac(2), mac(1), 1, 60);
    a.send(0, &hello);
    b.expect(&hello);
    assert!(net.port("b").connected);
}

#[test]
fn a_ring_that_makes_no_sense_stops_alone() {
    let (net, mut a, mut b) = two(1, RX);
    let config = b.queues[2].config;
    let avail = b.map.slice(config.avail + 2, 2).unwrap();
    avail.write_from(0, &0x8000_u16.to_le_bytes());
    b.queues[2].kick.write(1).unwrap();
    let hello = frame(mac(2), mac(1), 1, 60);
    for _ in 0..3 {
        a.send(0, &hello);
        b.expect(&hello);
    }
    assert!(net.port("b").connected);
}

#[test]
fn a_driver_that_goes_on_is_asked_to_announce_itself() {
    let net = Net::new();
    net.switch.add_port(&port(&net, "b", 1)).unwrap();
    let options = options(1, f::NET_F_GUEST_ANNOUNCE | f::NET_F_STATUS);
    let status = |guest: &mut Guest| {
        let flags = VhostUserConfigFlags::empty();
        guest.frontend.get_config(0, 12, flags, &[0; 12]).unwrap().1[6]
    };
    let mut fresh = Guest::connect(&net.socket("b"), options);
    assert!(fresh.control(3, 0, &[]), "acknowledged, asked or not");
    drop(fresh);
    wait_for("the guest to be gone", || !net.port("b").connected);

    let mut endpoint = Endpoint::prepare(&net.socket("b"), options).unwrap();
    let config = QueueConfig {
        next_avail: 3,
        used_idx: 3,
        ..endpoint.queues[2].config
    };
    endpoint.queues[2].driver = DriverQueue::new(endpoint.map.clone(), &config, None, false).unwrap();
    for (at, index) in [(config.avail + 2, 3_u16), (config.used + 2, 3)] {
        endpoint
            .map
            .slice(at, 2)
            .unwrap()
            .write_from(0, &index.to_le_bytes());
    }
    for index in 0..3 {
        endpoint.start(index).unwrap();
    }
    let mut guest = Guest { endpoint };
    wait_for("the guest to be asked", || status(&mut guest) & 2 != 0);
    assert!(guest.control(3, 0, &[]));
    assert_eq!(status(&mut guest) & 2, 0, "it has");
}

#[test]
fn what_a_guest_asked_for_outlives_the_daemon() {
    let (net, mut a, mut b) = two(2, RX | f::NET_F_MQ);
    assert!(b.control(0, 0, &[0]) && b.control(4, 0, &[2, 0]));
    let passed = net.switch.hand_over(|_, _| Err::<(), ()>(()));
    assert_eq!(passed, Err(()), "and back again");
    assert_eq!(net.port("b").enabled_queue_pairs, 2);
    a.send(0, &frame(mac(3), mac(1), 0, 60));
    let hello = frame(mac(2), mac(1), 1, 60);
    a.send(0, &hello);
    b.expect(&hello);
    assert!(b.control(0, 0, &[1]), "and it may ask for more");
}

#[test]
fn nothing_of_this_is_offered_unless_the_port_is_to() {
    let net = Net::new();
    net.switch.add_port(&net.new_port("plain", 1)).unwrap();
    net.switch.add_port(&port(&net, "control", 1)).unwrap();
    let only = RX
        | f::NET_F_CTRL_VLAN
        | f::NET_F_CTRL_GUEST_OFFLOADS
        | f::NET_F_GUEST_ANNOUNCE
        | f::NET_F_RSS
        | f::NET_F_HASH_REPORT;
    for (name, expected, queues) in [("plain", 0, 2), ("control", only, 3)] {
        let mut guest = Endpoint::prepare(&net.socket(name), Options::default()).unwrap();
        assert_eq!(guest.frontend.get_features().unwrap() & only, expected, "{name}");
        assert_eq!(guest.frontend.get_queue_num().unwrap(), queues, "{name}");
    }
    assert!(net.port("control").control_queue && !net.port("plain").control_queue);
    let tap = NewPort {
        control_queue: true,
        tap: Some("none".into()),
        ..NewPort::new("tap")
    };
    assert!(net.switch.add_port(&tap).is_err());
}
