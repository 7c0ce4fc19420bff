//! Frames and virtio-net headers that make no sense, and frames that are meant to harm others.

use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::{Guest, wait_for};
use netyard_testkit::tcp::{HEADERS, Segment, checksum_is_right};
use netyard_tests::bin;
use virtio::features as f;
use virtio::net::{GSO_TCPV4, HEADER_LEN, NetHeader};

use crate::arena::Arena;
use crate::{ATTACKER, BROADCAST, Case, PEER, bystanders, frame};

pub(crate) const CASES: [Case; 12] = [
    ("headers that make no sense", senseless_headers),
    ("a header length beyond the frame", header_length),
    ("a super-frame for a peer that takes none", super_frame),
    ("frames that are too long", too_long),
    ("frames that are too short", too_short),
    ("VLAN tags without end", many_tags),
    ("sources that are no station", no_station),
    ("a neighbour's address, held by the administrator", spoofed),
    ("a flood of addresses", address_flood),
    ("a storm of frames that bridges never forward", reserved_storm),
    ("a storm of broadcasts", broadcast_storm),
    ("frames to oneself", hairpin),
];

const OFFLOADS: u64 = f::NET_F_CSUM | f::NET_F_HOST_TSO4 | f::NET_F_HOST_TSO6;

fn guest(arena: &Arena, features: u64) -> Guest {
    let options = Options {
        features: Options::default().features | features,
        slot_len: 66_560,
        ..Options::default()
    };
    Guest::connect(&arena.socket, options)
}

fn tcp(payload: usize) -> (NetHeader, Vec<u8>) {
    Segment {
        macs: [PEER, ATTACKER],
        addresses: [[10, 0, 0, 1], [10, 0, 0, 2]],
        ports: [1, 2],
        flags: 0x18,
        payload: &vec![7; payload],
    }
    .build()
}

/// The peer gets this frame next: nothing before it came through.
fn is_next(arena: &mut Arena, guest: &mut Guest) {
    let proof = frame(PEER, ATTACKER, 99);
    guest.send(0, &proof);
    arena.peer.expect(&proof);
}

fn senseless_headers(arena: &mut Arena) {
    let mut guest = guest(arena, OFFLOADS);
    let before = arena.drops("bad-header");
    let (header, frame) = tcp(1000);
    let gso = NetHeader {
        gso_type: GSO_TCPV4,
        gso_size: 500,
        ..header
    };
    let beyond = u16::try_from(frame.len()).expect("a short frame");
    let bad = [
        NetHeader { gso_size: 0, ..gso },
        NetHeader { gso_type: 77, ..gso },
        NetHeader { gso_type: 3, ..gso },
        NetHeader { flags: 0, ..gso },
        NetHeader {
            csum_start: u16::MAX,
            ..header
        },
        NetHeader {
            csum_start: beyond,
            ..header
        },
        NetHeader {
            csum_start: beyond - 2,
            csum_offset: 1,
            ..header
        },
        NetHeader {
            csum_offset: u16::MAX,
            ..header
        },
    ];
    for header in &bad {
        guest.send_with(0, header, &frame);
    }
    is_next(arena, &mut guest);
    assert_eq!(arena.drops("bad-header") - before, bad.len() as u64);
}

fn header_length(arena: &mut Arena) {
    let mut guest = guest(arena, OFFLOADS);
    let (header, frame) = tcp(3000);
    for (hdr_len, gso_size) in [(0xffff, 1000), (0, 1000), (13, 1000), (2000, 1000)] {
        let header = NetHeader {
            gso_type: GSO_TCPV4,
            gso_size,
            hdr_len,
            ..header
        };
        guest.send_with(0, &header, &frame);
        let mut payload = 0;
        while payload < 3000 {
            let (_, received) = arena.peer.receive();
            assert!(checksum_is_right(&received.frame));
            payload += received.frame.len() - HEADERS;
        }
    }
    is_next(arena, &mut guest);
}

fn super_frame(arena: &mut Arena) {
    let mut guest = guest(arena, OFFLOADS);
    let (header, frame) = tcp(20_000);
    // A byte a segment: more segments than the peer has buffers, and more work than a frame is worth.
    for gso_size in [1, 7, 1448] {
        let header = NetHeader {
            gso_type: GSO_TCPV4,
            gso_size,
            ..header
        };
        guest.send_with(0, &header, &frame);
        guest.flush();
        arena.bystanders.go_on();
    }
    arena.drain();
    is_next(arena, &mut guest);
}

fn too_long(arena: &mut Arena) {
    let mut guest = guest(arena, 0);
    let before = arena.drops("oversize");
    for len in [1519, 9000, 65_535, 66_000] {
        guest.send(0, &frame(PEER, ATTACKER, len));
    }
    is_next(arena, &mut guest);
    assert_eq!(arena.drops("oversize") - before, 4);
}

fn too_short(arena: &mut Arena) {
    let mut guest = guest(arena, 0);
    let before = (arena.drops("runt"), arena.drops("bad-descriptor"));
    for len in 1..HEADER_LEN + 14 {
        guest.send_raw(0, &vec![0; len]);
    }
    is_next(arena, &mut guest);
    assert_eq!(arena.drops("runt") - before.0, 14);
    assert_eq!(arena.drops("bad-descriptor") - before.1, HEADER_LEN as u64 - 1);
}

fn many_tags(arena: &mut Arena) {
    let mut guest = guest(arena, 0);
    for tags in [1, 2, 3, 8, 300] {
        let mut bytes = [PEER, ATTACKER].concat();
        bytes.extend([0x81, 0x00, 0, 5].repeat(tags));
        // With the last tag cut short, too.
        for cut in 0..4 {
            let cut = &bytes[..(bytes.len() - cut).max(14)];
            guest.send(0, cut);
            arena.peer.expect(cut);
        }
    }
}

fn no_station(arena: &mut Arena) {
    let mut guest = guest(arena, 0);
    let before = arena.drops("bad-source");
    for source in [BROADCAST, [1, 0, 0x5e, 0, 0, 1], [0; 6]] {
        guest.send(0, &frame(PEER, source, 60));
    }
    is_next(arena, &mut guest);
    assert_eq!(arena.drops("bad-source") - before, 3);
    let fdb = arena.switch.fdb().to_string();
    assert!(!fdb.contains("ff:ff:ff:ff:ff:ff") && !fdb.contains("00:00:00:00:00:00"));
}

fn spoofed(arena: &mut Arena) {
    let fdb = |arena: &Arena, verb: &str, rest: &[&str]| {
        bin::succeed(
            arena
                .switch
                .command()
                .args(["fdb", verb, "br0", "02:00:00:00:00:0b"])
                .args(rest),
        );
    };
    fdb(arena, "add", &["b"]);
    let mut guest = guest(arena, 0);
    for _ in 0..1000 {
        guest.send(0, &frame(PEER, bystanders::macs()[1], 60));
        arena.drain();
    }
    arena.bystanders.go_on();
    guest.flush();
    drop(guest);
    arena.drain();
    fdb(arena, "del", &[]);
    // Its owner is learned where it is, with the next frame.
    arena.bystanders.go_on();
}

fn address_flood(arena: &mut Arena) {
    let mut guest = guest(arena, 0);
    let mut bytes = frame(PEER, ATTACKER, 60);
    for number in 0..100_000_u32 {
        bytes[8..12].copy_from_slice(&(number.wrapping_mul(0x9e37_79b9)).to_be_bytes());
        guest.send(0, &bytes);
        arena.drain();
    }
    guest.flush();
    arena.drain();
    let view = arena.switch.show();
    let (entries, size) = (&view["fdb"]["entries"], &view["fdb"]["size"]);
    assert!(entries.as_u64() <= size.as_u64(), "{entries} of {size}");
    // The others are still known where they are.
    let fdb = arena.switch.fdb();
    for (mac, port) in [
        ("02:00:00:00:00:0a", "a"),
        ("02:00:00:00:00:0b", "b"),
        ("02:00:00:00:00:0c", "peer"),
    ] {
        let entry = fdb
            .as_array()
            .and_then(|all| all.iter().find(|entry| entry["mac"] == mac));
        assert_eq!(entry.map(|entry| &entry["port"]), Some(&port.into()), "{mac}");
    }
}

fn reserved_storm(arena: &mut Arena) {
    let mut guest = guest(arena, 0);
    let (before, seen) = (arena.drops("reserved-group"), arena.bystanders.foreign());
    // PAUSE, spanning tree, LLDP.
    for number in 0..60_000 {
        let last = [1, 0, 0xe][number % 3];
        guest.send(0, &frame([1, 0x80, 0xc2, 0, 0, last], ATTACKER, 60));
    }
    guest.flush();
    assert_eq!(arena.drops("reserved-group") - before, 60_000);
    assert_eq!(arena.bystanders.foreign(), seen);
}

fn broadcast_storm(arena: &mut Arena) {
    let mut guest = guest(arena, 0);
    // As many at a time as the others' buffers hold: what does not fit is lost, and not by the switch.
    for _ in 0..40 {
        let seen = arena.bystanders.foreign();
        for _ in 0..200 {
            guest.send(0, &frame(BROADCAST, ATTACKER, 60));
            arena.drain();
        }
        wait_for("the broadcasts at both bystanders", || {
            arena.drain();
            arena.bystanders.foreign() >= seen + 400
        });
    }
    guest.flush();
    arena.drain();
}

fn hairpin(arena: &mut Arena) {
    let mut guest = guest(arena, 0);
    is_next(arena, &mut guest);
    let before = arena.drops("hairpin");
    for _ in 0..1000 {
        guest.send(0, &frame(ATTACKER, ATTACKER, 60));
    }
    is_next(arena, &mut guest);
    guest.expect_nothing();
    assert_eq!(arena.drops("hairpin") - before, 1000);
}
