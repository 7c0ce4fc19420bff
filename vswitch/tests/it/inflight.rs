//! What a guest's front-end keeps for the switch, should it die: how far it had come, and what the guest had asked for.

use std::os::fd::{AsFd, AsRawFd};

use crate::support::host::{Host, port};
use crate::support::net::{BROADCAST, Net, frame, mac, tcp, udp};

use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::{Guest, wait_for};
use netyard_testkit::tcp::checksum_is_right;
use vhost::vhost_user::VhostUserFrontend as _;
use vhost::vhost_user::message::VhostUserInflight;
use virtio::features as f;
use virtio::memory::Region;
use virtio::net::{GSO_TCPV4, NetHeader};
use vswitch::mac::MacAddr;
use vswitch::model::NewPort;

const GROUP: MacAddr = MacAddr::new([1, 0, 0x5e, 0, 0, 1]);
const BASE: u64 = f::VERSION_1 | f::NET_F_MRG_RXBUF | f::RING_F_EVENT_IDX;

fn options(features: u64) -> Options {
    Options {
        features: BASE | features,
        inflight: true,
        ..Options::default()
    }
}

/// The guest's connection ends, as it does when the switch dies, and the port is as new.
fn cut(net: &Net, name: &str, guest: &Guest) {
    guest.stream.shutdown(std::net::Shutdown::Both).unwrap();
    wait_for("the guest to be gone", || !net.port(name).connected);
}

/// Writes to what the guest keeps.
fn write(guest: &Guest, at: usize, bytes: &[u8]) {
    let (described, file) = guest.inflight.as_ref().unwrap();
    let region = Region::map(file.as_fd(), described.mmap_offset, 0, 0, described.mmap_size).unwrap();
    assert_eq!(region.slice().write_from(at, bytes), bytes.len());
}

#[test]
fn what_was_delivered_is_not_delivered_again() {
    for features in [0, f::RING_PACKED] {
        let net = Net::new();
        let mut a = net.guest_with("a", options(features));
        let mut b = net.guest("b");
        for tag in 0..10 {
            a.send(0, &frame(BROADCAST, mac(1), tag, 60));
            b.expect(&frame(BROADCAST, mac(1), tag, 60));
        }
        a.flush();
        cut(&net, "a", &a);
        for tag in 10..15 {
            a.send(0, &frame(BROADCAST, mac(1), tag, 60));
        }
        // The one that died had taken three, and nobody knows how far it came with them.
        let wrap = if features == 0 { 0_u16 } else { 1 << 15 };
        write(&a, 64 + 4, &(13 + wrap).to_le_bytes());
        a.reconnect(&net.socket("a"));
        for tag in 13..15 {
            b.expect(&frame(BROADCAST, mac(1), tag, 60));
        }
        a.flush();
        // A place that cannot be of this ring is none.
        cut(&net, "a", &a);
        a.send(0, &frame(BROADCAST, mac(1), 15, 60));
        write(&a, 64 + 4, &(200 + wrap).to_le_bytes());
        a.reconnect(&net.socket("a"));
        b.expect(&frame(BROADCAST, mac(1), 15, 60));
        assert_eq!(net.total_drops("a") + net.total_drops("b"), 0);
    }
}

/// `struct virtio_net_rss_config` of addresses and ports: all to one pair.
fn rss(pair: u8) -> Vec<u8> {
    let mut bytes = (virtio::rss::HASH_UDPV4).to_le_bytes().to_vec();
    bytes.extend([0, 0, 0, 0, pair, 0, 2, 0, 40]);
    bytes.extend([0x5a; 40]);
    bytes
}

#[test]
fn what_a_guest_asked_for_holds_under_the_next_switch() {
    const CONTROL: u64 = f::NET_F_CTRL_VQ
        | f::NET_F_CTRL_RX
        | f::NET_F_CTRL_MAC_ADDR
        | f::NET_F_CTRL_VLAN
        | f::NET_F_MQ
        | f::NET_F_RSS;
    for (packed, kept) in [(0, true), (f::RING_PACKED, true), (0, false)] {
        let net = Net::new();
        let mut a = net.guest("a");
        let port = NewPort {
            control_queue: true,
            mac: Some(mac(2)),
            ..net.new_port("b", 2)
        };
        net.switch.add_port(&port).unwrap();
        let options = Options {
            pairs: 2,
            control: true,
            inflight: kept,
            ..options(CONTROL | packed)
        };
        let mut b = Guest::connect(&net.socket("b"), options);
        assert!(b.control(0, 0, &[0]), "not promiscuous");
        assert!(b.control(1, 1, &mac(3).octets()), "another address");
        assert!(b.control(1, 0, &[&[0; 4][..], &[1, 0, 0, 0], &GROUP.octets()].concat()));
        assert!(b.control(2, 0, &[7, 0]), "a VLAN");
        assert!(b.control(4, 1, &rss(1)), "all to the second pair");
        cut(&net, "b", &b);
        b.reconnect(&net.socket("b"));
        wait_for("both queue pairs", || net.port("b").enabled_queue_pairs == 2);
        let tagged = |vlan: u8| {
            let mut frame = frame(mac(3), mac(1), vlan, 60);
            frame.splice(12..12, [0x81, 0, 0, vlan]);
            frame
        };
        let other_group = MacAddr::new([1, 0, 0x5e, 0, 0, 2]);
        let frames = [
            frame(mac(2), mac(1), 0, 60),
            frame(GROUP, mac(1), 1, 60),
            frame(other_group, mac(1), 2, 60),
            tagged(5),
            tagged(7),
            udp(3, 1, [1, 2], 3),
        ];
        for frame in &frames {
            a.send(0, frame);
        }
        a.flush();
        let mut got = Vec::new();
        for pair in 0..2 {
            while let Some(received) = b.try_receive(pair) {
                let number = frames.iter().position(|frame| *frame == received.frame).unwrap();
                got.push((number, pair));
            }
        }
        got.sort_unstable();
        let numbers: Vec<usize> = got.iter().map(|(number, _)| *number).collect();
        if kept {
            assert_eq!(numbers, [1, 4, 5]);
            assert_eq!(got[2].1, 1, "where the guest wants it");
        } else {
            assert_eq!(
                numbers,
                [0, 1, 2, 3, 4, 5],
                "nothing is kept from a guest of which nothing is known"
            );
        }
        // A driver that starts anew has asked for nothing.
        drop(b);
        wait_for("the guest to be gone", || !net.port("b").connected);
        let mut b = Guest::connect(&net.socket("b"), options);
        a.send(0, &frames[0]);
        b.expect(&frames[0]);
    }
}

/// Receive offloads that were switched off stay off, hashes are reported and all pairs used, though the switch was killed.
#[test]
fn offloads_that_a_guest_switched_off_stay_off_under_the_next_switch() {
    const TSO: u64 = f::NET_F_CSUM | f::NET_F_GUEST_CSUM | f::NET_F_HOST_TSO4 | f::NET_F_GUEST_TSO4;
    const CONTROL: u64 = f::NET_F_CTRL_VQ | f::NET_F_CTRL_GUEST_OFFLOADS | f::NET_F_MQ | f::NET_F_HASH_REPORT;
    let (mut header, packet) = tcp(20_000);
    (header.gso_type, header.gso_size, header.hdr_len) = (GSO_TCPV4, 1448, 54);
    for (packed, kept) in [(0, true), (f::RING_PACKED, true), (0, false)] {
        let host = Host::new();
        host.ok(&["up", "br0"]);
        host.ok(&["port", "add", "br0", "a"]);
        let served = ["--queues", "2", "--mac", "02:00:00:00:00:02", "--control-queue"];
        host.ok(&[&["port", "add", "br0", "b"][..], &served].concat());
        let of_a = Options {
            slot_len: 66_000,
            queue_size: 128,
            ..options(TSO)
        };
        let mut a = Guest::connect(&host.socket("a"), of_a);
        let of_b = Options {
            pairs: 2,
            control: true,
            inflight: kept,
            features: BASE | TSO | CONTROL | packed,
            ..of_a
        };
        let mut b = Guest::connect(&host.socket("b"), of_b);
        let hash = [&1_u32.to_le_bytes()[..], &[0; 8], &[4, 1, 2, 3, 4]].concat();
        assert!(b.control(4, 0, &[2, 0]), "both pairs");
        assert!(b.control(4, 2, &hash), "hashes of addresses");
        assert!(b.control(5, 0, &[0; 8]), "no offloads");
        host.kill("br0");
        host.ok(&["up", "br0"]);
        b.reconnect(&host.socket("b"));
        a.reconnect(&host.socket("a"));
        wait_for("both queue pairs", || {
            port(&host.json(&["show", "br0"]), "b")["enabled_queue_pairs"] == 2
        });
        a.send_with(0, &header, &packet);
        if !kept {
            let (_, got) = b.receive();
            assert_eq!((got.header.gso_type, got.hash.1), (GSO_TCPV4, 0));
            assert_eq!(
                got.frame, packet,
                "whole: the next switch goes by what was negotiated"
            );
            continue;
        }
        let mut came = Vec::new();
        while came.len() < 20_000 {
            let (_, got) = b.receive();
            let plain = NetHeader {
                num_buffers: 1,
                ..NetHeader::default()
            };
            assert_eq!((got.header, got.hash.1), (plain, 1));
            assert!(checksum_is_right(&got.frame));
            came.extend_from_slice(&got.frame[54..]);
        }
        assert_eq!(came, packet[54..]);
        // They can be switched on again.
        let on = f::NET_F_GUEST_CSUM | f::NET_F_GUEST_TSO4;
        assert!(b.control(5, 0, &on.to_le_bytes()));
        a.send_with(0, &header, &packet);
        assert_eq!(b.receive().1.frame, packet);
    }
}

#[test]
fn a_region_with_anything_in_it_does_no_harm() {
    let net = Net::new();
    let port = NewPort {
        control_queue: true,
        ..net.new_port("a", 1)
    };
    net.switch.add_port(&port).unwrap();
    let options = Options {
        control: true,
        ..options(f::NET_F_CTRL_VQ | f::NET_F_CTRL_RX)
    };
    let mut b = net.guest("b");
    let mut a = Guest::connect(&net.socket("a"), options);
    assert!(a.control(0, 0, &[0]));
    let texts: [&[u8]; 4] = [
        b"{",
        b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
        br#"{"filter":{"promiscuous":false},"pairs":9}"#,
        &[0xff; 4000],
    ];
    for (round, text) in (0_u8..).zip(texts) {
        cut(&net, "a", &a);
        for half in 0..2 {
            let at = 3 * 64 + half * (16 << 10);
            write(&a, at, &[0xff; 8]);
            let len = if round == 3 { u64::MAX } else { text.len() as u64 };
            write(&a, at + 8, &len.to_le_bytes());
            write(&a, at + 16, text);
        }
        write(&a, 0, &[0xff; 3 * 64]);
        a.reconnect(&net.socket("a"));
        // Nothing is known of what it wants, so it gets everything.
        let hello = frame(GROUP, mac(9), round, 60);
        b.send(0, &hello);
        a.expect(&hello);
        let answer = frame(BROADCAST, mac(1), round, 60);
        a.send(0, &answer);
        b.expect(&answer);
    }
}

#[test]
fn a_region_that_could_vanish_or_is_too_small_is_refused() {
    let net = Net::new();
    net.switch.add_port(&net.new_port("a", 1)).unwrap();
    let refused = |describe: &dyn Fn(&VhostUserInflight) -> VhostUserInflight, sealed: bool| {
        let mut a = netyard_testkit::endpoint::Endpoint::prepare(&net.socket("a"), options(0)).unwrap();
        a.frontend
            .set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        let (described, file) = a.inflight.take().unwrap();
        let loose = rustix::fs::memfd_create("loose", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&loose, described.mmap_size).unwrap();
        let fd = if sealed {
            file.as_raw_fd()
        } else {
            loose.as_raw_fd()
        };
        a.frontend.set_inflight_fd(&describe(&described), fd).is_err()
    };
    let same = |described: &VhostUserInflight| *described;
    assert!(refused(&same, false), "not sealed");
    assert!(refused(
        &|described| VhostUserInflight {
            mmap_size: 4096,
            ..*described
        },
        true
    ));
    assert!(refused(
        &|described| VhostUserInflight {
            mmap_offset: u64::MAX - 5,
            ..*described
        },
        true
    ));
    assert!(!refused(&same, true));
}
