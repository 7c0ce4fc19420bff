//! Queues change workers when the load is uneven, and nothing is lost or overtaken by that.

use crate::support::net::{BROADCAST, Net, frame, mac};
use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::Guest;

const BURST: u16 = 128;

fn guest(net: &Net, name: &str) -> Guest {
    net.guest_with(
        name,
        Options {
            queue_size: 512,
            ..Options::default()
        },
    )
}

fn worker(net: &Net, port: &str) -> u16 {
    net.port(port).queues[0].worker
}

/// Sends a burst of numbered frames to guest 2.
fn send(from: &mut Guest, number: u8, next: &mut u16) {
    for _ in 0..BURST {
        let mut sent = frame(mac(2), mac(number), 0, 60);
        sent[14..16].copy_from_slice(&next.to_be_bytes());
        from.send(0, &sent);
        *next = next.wrapping_add(1);
    }
}

/// Takes as many frames as were sent and looks at their numbers, guest by guest.
fn receive(to: &mut Guest, count: u16, expected: &mut [u16; 4]) {
    for _ in 0..count {
        let (_, received) = to.receive();
        let place = &mut expected[usize::from(received.frame[11])];
        let number = u16::from_be_bytes([received.frame[14], received.frame[15]]);
        assert_eq!(
            number, *place,
            "a frame of guest {} is not in its turn",
            received.frame[11]
        );
        *place = place.wrapping_add(1);
    }
}

#[test]
fn a_queue_moves_to_the_idle_worker_once_and_keeps_its_order() {
    let net = Net::with_workers(2);
    let (mut a, mut b, mut c) = (guest(&net, "a"), guest(&net, "b"), guest(&net, "c"));
    assert_eq!(worker(&net, "a"), worker(&net, "c"));
    assert_ne!(worker(&net, "a"), worker(&net, "b"));
    let hello = frame(BROADCAST, mac(2), 0, 60);
    b.send(0, &hello);
    a.expect(&hello);
    c.expect(&hello);

    let (mut from_a, mut from_c, mut expected) = (0, 0, [0; 4]);
    assert!(!net.switch.balance(), "nothing was sent yet");
    for look in 1..=6 {
        for burst in 0..60 {
            send(&mut a, 1, &mut from_a);
            send(&mut c, 3, &mut from_c);
            if burst == 59 {
                // In the middle of it: frames are under way.
                assert!(net.switch.balance(), "there was something to do");
            }
            receive(&mut b, 2 * BURST, &mut expected);
        }
        let moves = net.switch.view().queue_moves;
        assert_eq!(moves, u64::from(look >= 2), "after look {look}");
    }
    assert_ne!(worker(&net, "a"), worker(&net, "c"));
    for port in ["a", "b", "c"] {
        assert_eq!(net.total_drops(port), 0);
    }

    // Whoever has the queue now wakes up for its kicks.
    a.flush();
    c.flush();
    for _ in 0..20 {
        send(&mut a, 1, &mut from_a);
        send(&mut c, 3, &mut from_c);
        receive(&mut b, 2 * BURST, &mut expected);
    }
}
