//! Rings of every kind: split and packed, used in order, stopped, moved and reset while others run.

use crate::support::net::{BROADCAST, Net, frame, mac};
use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::{Guest, wait_for};
use vhost::VhostBackend;
use virtio::features as f;
use virtio::split::driver::Buffer;

const SPLIT: u64 = f::VERSION_1 | f::NET_F_MRG_RXBUF | f::RING_F_EVENT_IDX | f::IN_ORDER;
const PACKED: u64 = SPLIT | f::RING_PACKED;

fn options(features: u64, queue_size: u16) -> Options {
    Options {
        features,
        queue_size,
        ..Options::default()
    }
}

fn introduce(a: &mut Guest, b: &mut Guest) {
    let hello = frame(BROADCAST, mac(1), 0, 60);
    a.send(0, &hello);
    b.expect(&hello);
    let hello = frame(BROADCAST, mac(2), 0, 60);
    b.send(0, &hello);
    a.expect(&hello);
}

/// Frames of all lengths, one after another, until both rings have gone round many times.
fn many(net: &Net, a: &mut Guest, b: &mut Guest) {
    for round in 0..200_u16 {
        let tag = u8::try_from(round % 256).unwrap();
        let sent = frame(mac(2), mac(1), tag, 60 + usize::from(round) * 7 % 1455);
        a.send(0, &sent);
        b.expect(&sent);
        let answer = frame(mac(1), mac(2), tag, 60);
        b.send(0, &answer);
        a.expect(&answer);
    }
    assert_eq!(net.total_drops("a") + net.total_drops("b"), 0);
}

#[test]
fn packed_and_split_rings_meet_on_one_switch() {
    for (of_a, of_b) in [(PACKED, PACKED), (PACKED, SPLIT), (SPLIT, PACKED)] {
        let net = Net::new();
        let mut a = net.guest_with("a", options(of_a, 16));
        let mut b = net.guest_with("b", options(of_b & !f::RING_F_EVENT_IDX, 32));
        introduce(&mut a, &mut b);
        many(&net, &mut a, &mut b);
    }
}

#[test]
fn a_packed_ring_may_have_any_size_and_frames_several_buffers() {
    let net = Net::new();
    let mut a = net.guest_with("a", options(PACKED, 23));
    let mut b = net.guest_with(
        "b",
        Options {
            buffer_len: 128,
            ..options(PACKED, 51)
        },
    );
    introduce(&mut a, &mut b);
    many(&net, &mut a, &mut b);
}

#[test]
fn a_stopped_ring_tells_where_it_stopped_and_goes_on_there() {
    for (features, ring) in [(SPLIT, 256_u32), (PACKED, 20)] {
        let net = Net::new();
        let size = u16::try_from(ring).unwrap();
        let mut a = net.guest_with("a", options(features, size));
        let mut b = net.guest_with("b", options(features, size));
        introduce(&mut a, &mut b);
        let mut sent = 1_u32;
        for round in 0..5_u8 {
            for tag in 0..9 {
                let one = frame(mac(2), mac(1), round * 9 + tag, 100);
                a.send(0, &one);
                b.expect(&one);
                sent += 1;
            }
            a.flush();
            let base = a.frontend.get_vring_base(1).unwrap();
            if features == PACKED {
                // The wrap counter starts at one and changes with every lap.
                let place = (sent % ring) | u32::from((sent / ring).is_multiple_of(2)) << 15;
                assert_eq!(
                    base,
                    place << 16 | place,
                    "both positions, each with its wrap counter"
                );
            } else {
                assert_eq!(base, sent);
            }
            a.restart(1, u16::try_from(base & 0xffff).unwrap()).unwrap();
        }
        assert_eq!(net.total_drops("a") + net.total_drops("b"), 0);
    }
}

#[test]
fn buffers_come_back_in_the_order_they_were_given_whatever_becomes_of_them() {
    for features in [SPLIT, PACKED] {
        let net = Net::new();
        let mut a = net.guest_with("a", options(features, 64));
        let mut b = net.guest_with(
            "b",
            Options {
                post: false,
                ..options(features, 64)
            },
        );
        a.send(0, &frame(BROADCAST, mac(1), 0, 60));
        a.flush();
        // Frames, a runt, a frame from a group address, and nothing at all, in turns.
        let good = frame(mac(2), mac(1), 1, 100);
        let header = [0; virtio::net::HEADER_LEN];
        for number in 0..40_u64 {
            let bytes = match number % 4 {
                0 => [&header[..], &good].concat(),
                1 => [&header[..], &good[..10]].concat(),
                2 => [&header[..], &frame(mac(2), BROADCAST, 0, 60)].concat(),
                _ => header[..5].to_vec(),
            };
            let slot = u16::try_from(number).unwrap();
            let buffer = Buffer {
                len: u32::try_from(bytes.len()).unwrap(),
                ..a.queues[1].buffer(slot)
            };
            a.map
                .slice(buffer.addr, bytes.len())
                .unwrap()
                .write_from(0, &bytes);
            a.queues[1].driver.push(&[buffer], &[], number).unwrap();
        }
        a.queues[1].publish().unwrap();
        expect_order(&mut a, 1, 0..40);

        // Of three buffers one is readable: it goes back empty, between the others.
        let queue = &mut b.queues[0];
        for number in 0..40_u64 {
            let buffer = queue.buffer(u16::try_from(number).unwrap());
            let list = [buffer];
            let (readable, writable) = if number % 3 == 1 {
                (&list[..], &[][..])
            } else {
                (&[][..], &list[..])
            };
            queue.driver.push(readable, writable, number).unwrap();
        }
        queue.publish().unwrap();
        for _ in 0..20 {
            a.send(0, &good);
            a.flush();
        }
        expect_order(&mut b, 0, 0..30);
    }
}

/// Waits for chains to come back by the numbers they were given.
fn expect_order(guest: &mut Guest, queue: usize, numbers: std::ops::Range<u64>) {
    let mut back = Vec::new();
    let wanted: Vec<u64> = numbers.collect();
    wait_for("chains to come back", || {
        while back.len() < wanted.len()
            && let Some((number, _)) = guest.queues[queue].driver.pop_used().unwrap()
        {
            back.push(number);
        }
        back.len() == wanted.len()
    });
    assert_eq!(back, wanted);
}

#[test]
fn one_ring_is_reset_while_the_others_run() {
    for features in [SPLIT, PACKED] {
        let net = Net::new();
        let with_reset = |size| Options {
            pairs: 2,
            ..options(features | f::RING_RESET | f::NET_F_MQ | f::NET_F_CTRL_VQ, size)
        };
        let mut a = net.guest_with("a", with_reset(64));
        let mut b = net.guest_with("b", with_reset(64));
        introduce(&mut a, &mut b);
        for size in [16, 64, 32] {
            // Transmit ring of the first pair, and the receive ring of the other guest's.
            a.reset(1, size).unwrap();
            b.reset(0, size).unwrap();
            b.post_all(0);
            for tag in 0..100 {
                let pair = usize::from(tag % 2);
                let one = frame(mac(2), mac(1), tag, 100);
                a.send(pair, &one);
                b.expect(&one);
            }
            assert_eq!(net.port("a").enabled_queue_pairs, 2);
        }
        assert_eq!(net.total_drops("a") + net.total_drops("b"), 0);
    }
}
