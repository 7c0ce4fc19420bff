//! Frames through a real switch: guests on vhost-user sockets, in one process.

use crate::support::net::{BROADCAST, Net, frame, mac};
use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::{Guest, wait_for};
use virtio::features as f;
use virtio::net::NetHeader;
use vswitch::config::BridgeSettings;
use vswitch::fdb::OnFull;
use vswitch::model::NewFdbEntry;

/// Lets the switch know where the guests are: guest `n` says something that everybody gets.
fn introduce(guests: &mut [&mut Guest]) {
    for speaker in 0..guests.len() {
        let hello = frame(BROADCAST, mac(u8::try_from(speaker + 1).unwrap()), 0, 60);
        guests[speaker].send(0, &hello);
        for (listener, guest) in guests.iter_mut().enumerate() {
            if listener != speaker {
                guest.expect(&hello);
            }
        }
    }
}

#[test]
fn unknown_frames_are_flooded_and_known_ones_are_not() {
    let net = Net::new();
    let (mut a, mut b, mut c) = (net.guest("a"), net.guest("b"), net.guest("c"));
    let unknown = frame(mac(2), mac(1), 1, 100);
    a.send(0, &unknown);
    b.expect(&unknown);
    c.expect(&unknown);
    assert_eq!(net.known(mac(1)).as_deref(), Some("a"));

    let answer = frame(mac(1), mac(2), 2, 1514);
    b.send(0, &answer);
    a.expect(&answer);
    let known = frame(mac(2), mac(1), 3, 60);
    a.send(0, &known);
    b.expect(&known);
    // The switch works in order: had the unicast frames been flooded, they would be here by now.
    let marker = frame(BROADCAST, mac(1), 4, 60);
    a.send(0, &marker);
    c.expect(&marker);
    b.expect(&marker);
    a.expect_nothing();

    let counters = net.port("a").counters;
    assert_eq!((counters.rx_frames, counters.rx_bytes), (3, 100 + 60 + 60));
    assert_eq!((counters.tx_frames, counters.tx_bytes), (1, 1514));
    assert_eq!(net.port("c").counters.tx_frames, 2);
    for port in ["a", "b", "c"] {
        assert_eq!(net.total_drops(port), 0);
    }
}

#[test]
fn every_length_arrives_as_it_was_sent() {
    let net = Net::new();
    let (mut a, mut b) = (net.guest("a"), net.guest("b"));
    introduce(&mut [&mut a, &mut b]);
    for len in [14, 15, 60, 64, 127, 128, 129, 255, 256, 1000, 1513, 1514, 1518] {
        let sent = frame(mac(2), mac(1), 9, len);
        a.send(0, &sent);
        b.expect(&sent);
    }
}

#[test]
fn frames_that_nobody_may_send_are_dropped_and_counted() {
    let net = Net::new();
    let (mut a, mut b) = (net.guest("a"), net.guest("b"));
    introduce(&mut [&mut a, &mut b]);
    a.send(0, &frame(mac(2), mac(1), 0, 60)[..13]);
    a.send(0, &frame(mac(2), mac(1), 0, 1519));
    a.send(0, &frame(mac(2), BROADCAST, 0, 60));
    a.send(0, &frame(mac(2), vswitch::mac::MacAddr::new([0; 6]), 0, 60));
    a.send(0, &frame("01:80:c2:00:00:00".parse().unwrap(), mac(1), 0, 60));
    a.send(0, &frame("01:80:c2:00:00:0f".parse().unwrap(), mac(1), 0, 60));
    a.send(0, &frame(mac(1), mac(1), 0, 60));
    a.send_raw(0, &[0; 11]);
    // No offload was negotiated.
    a.send_with(
        0,
        &NetHeader {
            flags: 1,
            csum_start: 34,
            csum_offset: 6,
            ..NetHeader::default()
        },
        &frame(mac(2), mac(1), 0, 60),
    );
    let marker = frame("01:80:c2:00:00:10".parse().unwrap(), mac(1), 7, 60);
    a.send(0, &marker);
    b.expect(&marker);
    b.expect_nothing();
    for (reason, count) in [
        ("runt", 1),
        ("oversize", 1),
        ("bad-source", 2),
        ("reserved-group", 2),
        ("hairpin", 1),
        ("bad-descriptor", 1),
        ("bad-header", 1),
    ] {
        assert_eq!(net.drops("a", reason), count, "{reason}");
    }
    assert_eq!(net.total_drops("a"), 9);
    assert_eq!(net.total_drops("b"), 0);
    assert_eq!(net.known(BROADCAST), None);
    a.flush();
}

#[test]
fn a_station_that_moves_is_followed() {
    let net = Net::new();
    let (mut a, mut b, mut c) = (net.guest("a"), net.guest("b"), net.guest("c"));
    introduce(&mut [&mut a, &mut b, &mut c]);
    let hello = frame(BROADCAST, mac(1), 1, 60);
    b.send(0, &hello);
    a.expect(&hello);
    c.expect(&hello);
    assert_eq!(net.known(mac(1)).as_deref(), Some("b"));
    let sent = frame(mac(1), mac(3), 2, 60);
    c.send(0, &sent);
    b.expect(&sent);
    a.expect_nothing();
    assert_eq!(net.switch.view().fdb.moved, 1);
}

#[test]
fn silent_stations_are_forgotten() {
    let net = Net::new();
    let (mut a, mut b, mut c) = (net.guest("a"), net.guest("b"), net.guest("c"));
    introduce(&mut [&mut a, &mut b, &mut c]);
    net.switch.bridge().clock().advance(301);
    assert_eq!(net.switch.fdb_entries(), []);
    let sent = frame(mac(2), mac(1), 1, 60);
    a.send(0, &sent);
    b.expect(&sent);
    c.expect(&sent);
}

#[test]
fn static_entries_decide_and_stay() {
    let net = Net::new();
    let (mut a, mut b, mut c) = (net.guest("a"), net.guest("b"), net.guest("c"));
    introduce(&mut [&mut a, &mut b, &mut c]);
    net.switch
        .add_fdb(&NewFdbEntry {
            mac: mac(9),
            vlan: 0,
            port: "c".into(),
        })
        .unwrap();
    let sent = frame(mac(9), mac(1), 1, 60);
    a.send(0, &sent);
    c.expect(&sent);
    b.expect_nothing();
    // Whoever else uses the address, it stays where it was put.
    let claim = frame(BROADCAST, mac(9), 2, 60);
    b.send(0, &claim);
    a.expect(&claim);
    c.expect(&claim);
    net.switch.bridge().clock().advance(10_000);
    assert_eq!(net.known(mac(9)).as_deref(), Some("c"));
    drop(c);
    wait_for("the port to be down", || !net.is_up("c"));
    a.send(0, &sent);
    wait_for("the drop", || net.drops("c", "link-down") == 1);
    net.switch.delete_fdb(mac(9), 0).unwrap();
    assert_eq!(net.known(mac(9)), None);
}

#[test]
fn a_full_table_does_what_it_was_told() {
    for (policy, evicted, refused, dropped) in [
        (OnFull::EvictFair, 92, 0, 0),
        (OnFull::Flood, 0, 92, 0),
        (OnFull::Drop, 0, 92, 92),
    ] {
        let net = Net::with(BridgeSettings {
            fdb_size: 8,
            on_full: policy,
            ..BridgeSettings::default()
        });
        let (mut a, mut b) = (net.guest("a"), net.guest("b"));
        for station in 0..100 {
            a.send(0, &frame(BROADCAST, mac(station), 0, 60));
        }
        a.flush();
        let fdb = net.switch.view().fdb;
        assert_eq!(
            (fdb.entries, fdb.evicted, fdb.refused),
            (8, evicted, refused),
            "{policy:?}"
        );
        assert_eq!(net.drops("a", "fdb-full"), dropped);
        for station in 0..(100 - u8::try_from(dropped).unwrap()) {
            b.expect(&frame(BROADCAST, mac(station), 0, 60));
        }
        b.expect_nothing();
    }
}

#[test]
fn a_receiver_without_buffers_loses_its_frames_alone() {
    let net = Net::new();
    let (mut a, mut b) = (net.guest("a"), net.guest("b"));
    let mut stopped = net.guest_with(
        "stopped",
        Options {
            post: false,
            ..Options::default()
        },
    );
    introduce(&mut [&mut a, &mut b]);
    let before = net.drops("stopped", "no-buffer");
    assert_eq!(before, 2, "what the others said to all");
    stopped.send(0, &frame(mac(1), mac(3), 0, 60));
    a.expect(&frame(mac(1), mac(3), 0, 60));
    for round in 0..100 {
        a.send(0, &frame(mac(3), mac(1), round, 60));
        let sent = frame(mac(2), mac(1), round, 60);
        a.send(0, &sent);
        b.expect(&sent);
    }
    assert_eq!(net.drops("stopped", "no-buffer"), before + 100);
    assert_eq!(net.total_drops("b"), 0);
    // As soon as it has buffers it receives.
    stopped.post_all(0);
    let sent = frame(mac(3), mac(1), 200, 60);
    a.send(0, &sent);
    stopped.expect(&sent);
}

#[test]
fn frames_fill_several_small_buffers_or_none() {
    let net = Net::new();
    let mut a = net.guest("a");
    let mut merging = net.guest_with(
        "merging",
        Options {
            buffer_len: 512,
            ..Options::default()
        },
    );
    let features = f::VERSION_1;
    let mut plain = net.guest_with(
        "plain",
        Options {
            buffer_len: 512,
            features,
            ..Options::default()
        },
    );
    let long = frame(BROADCAST, mac(1), 3, 1500);
    a.send(0, &long);
    let (_, received) = merging.receive();
    assert_eq!((received.header.num_buffers, received.frame), (3, long));
    let short = frame(BROADCAST, mac(1), 4, 500);
    a.send(0, &short);
    let (_, received) = plain.receive();
    assert_eq!((received.header.num_buffers, received.frame), (1, short));
    assert_eq!(net.drops("plain", "buffer-too-small"), 1);
    assert_eq!(net.total_drops("merging"), 0);
}

#[test]
fn a_port_that_goes_is_forgotten_and_comes_back() {
    let net = Net::new();
    let (mut a, mut b, mut c) = (net.guest("a"), net.guest("b"), net.guest("c"));
    introduce(&mut [&mut a, &mut b, &mut c]);
    drop(b);
    wait_for("the port to be down", || !net.is_up("b"));
    wait_for("the connection to be over", || !net.port("b").connected);
    wait_for("its address to be forgotten", || net.known(mac(2)).is_none());
    let sent = frame(mac(2), mac(1), 1, 60);
    a.send(0, &sent);
    c.expect(&sent);
    let mut b = net.connect("b", Options::default());
    a.send(0, &sent);
    b.expect(&sent);
    net.switch.delete_port("b").unwrap();
    assert!(net.switch.port_view("b").is_err());
    assert!(!net.socket("b").exists());
    let last = frame(BROADCAST, mac(1), 2, 60);
    a.send(0, &last);
    c.expect(&sent);
    c.expect(&last);
}

#[test]
fn ports_come_and_go_under_traffic() {
    let net = Net::new();
    let (mut a, mut b) = (net.guest("a"), net.guest("b"));
    introduce(&mut [&mut a, &mut b]);
    for round in 0..30_u8 {
        let mut guest = net.guest("passing");
        for tag in 0..20 {
            let sent = frame(mac(2), mac(1), tag, 60);
            a.send(0, &sent);
            guest.send(0, &frame(mac(2), mac(7), round, 60));
            loop {
                let (_, received) = b.receive();
                if received.frame == sent {
                    break;
                }
            }
        }
        net.switch.delete_port("passing").unwrap();
    }
    assert_eq!(net.total_drops("b"), 0);
}

#[test]
fn a_disabled_queue_receives_nothing_and_what_it_sends_is_discarded() {
    use vhost::vhost_user::VhostUserFrontend;
    let net = Net::new();
    let (mut a, mut b) = (net.guest("a"), net.guest("b"));
    introduce(&mut [&mut a, &mut b]);
    b.frontend.set_vring_enable(1, false).unwrap();
    b.frontend.set_vring_enable(0, false).unwrap();
    wait_for("the port to be down", || !net.is_up("b"));
    b.send(0, &frame(mac(1), mac(2), 1, 60));
    b.flush();
    assert_eq!(net.drops("b", "queue-disabled"), 1);
    a.expect_nothing();
    b.frontend.set_vring_enable(0, true).unwrap();
    b.frontend.set_vring_enable(1, true).unwrap();
    wait_for("the port to be up", || net.is_up("b"));
    let sent = frame(mac(2), mac(1), 2, 60);
    a.send(0, &sent);
    b.expect(&sent);
}

#[test]
fn a_broken_ring_stops_its_own_port_only() {
    let net = Net::new();
    let (mut a, mut b, mut c) = (net.guest("a"), net.guest("b"), net.guest("c"));
    introduce(&mut [&mut a, &mut b, &mut c]);
    // The available index of b's transmit queue jumps further than the queue is long.
    let avail = b.queues[1].config.avail;
    b.map
        .slice(avail + 2, 2)
        .unwrap()
        .write_from(0, &50_000_u16.to_le_bytes());
    b.queues[1].kick.write(1).unwrap();
    let sent = frame(mac(3), mac(1), 2, 60);
    for _ in 0..10 {
        a.send(0, &sent);
        c.expect(&sent);
    }
    let marker = frame(BROADCAST, mac(1), 3, 60);
    a.send(0, &marker);
    c.expect(&marker);
    b.expect(&marker);
}
