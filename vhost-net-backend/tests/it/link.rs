//! `virtio-user`: a NIC that is plugged into another back-end.

use std::path::Path;
use std::sync::Arc;

use netyard_testkit::tcp::{Segment, checksum_is_right};
use vhost_net_backend::nic::Nic;
use vhost_net_backend::wire::Wire;
use vhost_net_backend::wire::user::{Link, probe};
use vhost_net_backend::{PortConfig, Session, SessionHandle, SocketConfig};
use virtio::features as f;
use virtio::net::{GSO_TCPV4, HDR_F_NEEDS_CSUM, NetHeader};

use crate::guest::{FEATURES, Guest, frame};
use crate::session::Device;
use crate::until;

/// A back-end between a guest and another back-end.
struct Between {
    session: SessionHandle,
    link: Link,
    nic: Arc<Nic>,
}

fn between(socket: &Path, other: &Path, pairs: u16) -> Between {
    let (link, wires) = Link::start(other.to_owned(), pairs, |_| {}).unwrap();
    let nic = Nic::start(
        wires
            .into_iter()
            .map(|wire| Box::new(wire) as Box<dyn Wire>)
            .collect(),
        None,
    )
    .unwrap();
    let port = PortConfig {
        queue_pairs: pairs,
        ..PortConfig::new("between")
    };
    let session = Session::spawn(SocketConfig::server(socket), port, Arc::clone(&nic) as _).unwrap();
    Between { session, link, nic }
}

#[test]
fn frames_pass_a_chain_of_two_on_every_pair() {
    let echo = Device::start(2);
    let dir = tempfile::tempdir().unwrap();
    let (near, far) = (dir.path().join("near"), dir.path().join("far"));
    let second = between(&far, &echo.path, 2);
    let first = between(&near, &far, 2);
    let mut guest = Guest::start(&near, 2);
    until("both links are up", || first.link.is_up() && second.link.is_up());
    until("all serve both pairs", || {
        let served = [second.session.status(), echo.handle.status()];
        served.iter().all(|status| status.enabled_queue_pairs() == 2)
    });
    for round in 0..200 {
        for pair in 0..2 {
            guest.ping(pair, &format!("round {round} on pair {pair}"));
        }
    }
    let counts = echo.nic.counts();
    assert!(
        counts
            .iter()
            .all(|counts| counts.tx_frames == 200 && counts.rx_frames == 200),
        "{counts:?}"
    );
    assert_eq!(first.nic.counts()[1].rx_frames, 200);
    // The guest's memory stays with the first: the second maps that of the first.
    assert_eq!(second.session.status().regions, 1);
}

#[test]
fn a_back_end_with_fewer_pairs_carries_the_frames_of_all() {
    let echo = Device::start(1);
    let dir = tempfile::tempdir().unwrap();
    let near = dir.path().join("near");
    let first = between(&near, &echo.path, 3);
    let mut guest = Guest::start(&near, 3);
    until("the link is up", || first.link.is_up());
    // More than the rings hold at a time, so that every pair has to wait for room.
    for round in 0..400 {
        for pair in 0..3 {
            let sent = frame(&format!("round {round} on pair {pair}"));
            until("there is room", || {
                guest.send_with(pair, &NetHeader::default(), &sent)
            });
            assert_eq!(guest.receive(0), sent, "all of them come in on the first pair");
        }
    }
    let counts = first.nic.counts();
    assert_eq!(counts[0].rx_frames, 1200);
    assert!(counts.iter().all(|counts| counts.tx_frames == 400), "{counts:?}");
}

#[test]
fn super_frames_and_their_headers_pass_whole() {
    let echo = Device::start(1);
    let dir = tempfile::tempdir().unwrap();
    let near = dir.path().join("near");
    let first = between(&near, &echo.path, 1);
    let offloads = f::NET_F_HOST_TSO4 | f::NET_F_GUEST_TSO4;
    let mut guest = Guest::connect(&near, 1, FEATURES | offloads);
    for ring in 0..2 {
        guest.start_ring(ring, 0);
        guest.enable(ring);
    }
    guest.post_all(0);
    until("the link is up", || first.link.is_up());
    let header = NetHeader {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    for len in [100usize, 2036, 2037, 4084, 4085, 30_000, 65_000] {
        let mut big = frame("");
        big.extend((0..len).map(|at| u8::try_from(at % 251).unwrap()));
        assert!(guest.send_with(0, &header, &big), "{len}");
        let back = guest.receive(0);
        assert_eq!(back.len(), big.len(), "{len}");
        assert!(back == big, "the bytes of {len} changed");
    }
}

fn tcp(payload: &[u8]) -> (NetHeader, Vec<u8>) {
    Segment {
        macs: [[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]],
        addresses: [[10, 0, 0, 1], [10, 0, 0, 2]],
        ports: [0x1000, 9],
        flags: 0x18,
        payload,
    }
    .build()
}

#[test]
fn a_back_end_without_offloads_gets_complete_frames() {
    let lacking = f::NET_F_HOST_TSO4 | f::NET_F_HOST_TSO6 | f::NET_F_HOST_ECN;
    for lacking in [
        lacking | f::NET_F_CSUM,
        lacking,
        lacking | f::NET_F_CSUM | f::NET_F_MRG_RXBUF,
    ] {
        let port = PortConfig {
            features: !lacking,
            ..PortConfig::new("plain")
        };
        let echo = Device::with(port, |config| config);
        let dir = tempfile::tempdir().unwrap();
        let near = dir.path().join("near");
        // The VM was offered offloads before anybody knew of this back-end.
        let first = between(&near, &echo.path, 1);
        let mut guest = Guest::connect(&near, 1, FEATURES | f::NET_F_HOST_TSO4);
        for ring in 0..2 {
            guest.start_ring(ring, 0);
            guest.enable(ring);
        }
        guest.post_all(0);
        until("the link is up", || first.link.is_up());
        let payload: Vec<u8> = (0..30_500usize)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect();
        let whole = lacking & f::NET_F_CSUM == 0;
        let (csum, short) = tcp(&payload[..777]);
        assert!(guest.send_with(0, &csum, &short));
        let back = guest.receive(0);
        assert_eq!(checksum_is_right(&back), !whole, "{lacking:#x}");
        assert_eq!(back[54..], payload[..777]);
        let (csum, long) = tcp(&payload);
        let gso = NetHeader {
            gso_type: GSO_TCPV4,
            hdr_len: 54,
            gso_size: 1000,
            ..csum
        };
        assert!(guest.send_with(0, &gso, &long));
        let mut got: Vec<u8> = Vec::new();
        while got.len() < payload.len() {
            let back = guest.receive(0);
            assert_eq!(back.len(), 54 + 1000.min(payload.len() - got.len()));
            assert_eq!(checksum_is_right(&back), !whole, "{lacking:#x}");
            got.extend(&back[54..]);
        }
        assert!(got == payload, "the payload changed");
        assert_eq!(echo.nic.counts()[0].tx_frames, 32);
    }
}

#[test]
fn either_end_may_go_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (near, far) = (dir.path().join("near"), dir.path().join("far"));
    let first = between(&near, &far, 1);
    let mut guest = Guest::start(&near, 1);
    // Nobody is there yet: what is sent is dropped, and the guest goes on.
    assert!(guest.send(0, &frame("to nobody")));
    until("it is taken back", || guest.in_flight(0) == 0);
    for round in 0..10 {
        let nic = crate::wires::echo(1, None);
        let session = Session::spawn(
            SocketConfig::server(&far),
            PortConfig::new("far"),
            Arc::clone(&nic) as _,
        )
        .unwrap();
        until("the link is up", || first.link.is_up());
        for n in 0..50 {
            guest.ping(0, &format!("round {round} frame {n}"));
        }
        if round % 3 == 2 {
            drop(guest);
            until("the guest is gone", || !session.status().connected);
            guest = Guest::start(&near, 1);
            until("the link is up again", || {
                session.status().enabled_queue_pairs() == 1 && first.link.is_up()
            });
            guest.ping(0, "the guest came back");
        }
        drop(session);
        until("the link is down", || !first.link.is_up());
    }
    assert!(first.session.status().connected);
}

#[test]
fn which_pairs_are_in_use_is_passed_on() {
    let echo = Device::start(2);
    let dir = tempfile::tempdir().unwrap();
    let near = dir.path().join("near");
    let first = between(&near, &echo.path, 2);
    let mut guest = Guest::start(&near, 2);
    until("the link is up", || first.link.is_up());
    until("both pairs", || echo.handle.status().enabled_queue_pairs() == 2);
    guest.disable(2);
    until("one pair", || echo.handle.status().enabled_queue_pairs() == 1);
    guest.enable(2);
    until("both pairs", || echo.handle.status().enabled_queue_pairs() == 2);
    guest.ping(1, "again");
    // No pair in use: the other back-end sees the NIC go.
    guest.disable(0);
    guest.disable(2);
    until("nobody is plugged in", || !echo.handle.status().connected);
}

#[test]
fn a_back_end_can_be_asked_what_it_offers() {
    let echo = Device::start(4);
    let offer = probe(&echo.path).unwrap();
    assert_eq!(offer.pairs, 4);
    assert_ne!(offer.features & f::NET_F_HOST_TSO6, 0);
    assert!(probe(Path::new("/nonexistent/socket")).is_err());
}
