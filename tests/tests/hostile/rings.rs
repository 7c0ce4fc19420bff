//! Rings whose indices lie, that lie where they should not, or that are kicked as they should not be.

use std::sync::atomic::{AtomicBool, Ordering};

use netyard_testkit::guest::wait_for;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use virtio::features as f;

use crate::arena::Arena;
use crate::attacker::{Attacker, NOWHERE, RX, SIZE, TX};
use crate::{ATTACKER, Case, PEER, frame};

pub(crate) const CASES: [Case; 13] = [
    ("an available index that jumps", index_jumps),
    ("an available index that goes back", index_goes_back),
    ("the same head again and again", same_head),
    ("a used ring over the descriptor table", used_over_desc),
    ("a used ring over the available ring", used_over_avail),
    ("a used ring over buffers", used_over_buffers),
    ("rings outside the memory", unmapped_rings),
    ("sizes that no queue has", odd_sizes),
    ("a running ring changed", changed_while_running),
    ("event indices that make no sense", odd_events),
    ("a storm of kicks", kick_storm),
    ("no kick at all", no_kick),
    ("kicks before anything is set up", early_kick),
];

fn index_jumps(arena: &mut Arena) {
    for index in [SIZE + 1, 0x8000] {
        let mut attacker = Attacker::new(&arena.socket);
        attacker.set_avail(index);
        attacker.kick();
        attacker.is_stopped();
    }
}

fn index_goes_back(arena: &mut Arena) {
    let mut attacker = Attacker::new(&arena.socket);
    attacker.transmit();
    attacker.is_given_back();
    arena.peer.expect(&frame(PEER, ATTACKER, 60));
    attacker.set_avail(u16::MAX);
    attacker.kick();
    attacker.is_stopped();
}

fn same_head(arena: &mut Arena) {
    let mut attacker = Attacker::new(&arena.socket);
    let at = attacker.buffer(0);
    let len = attacker.frame_at(at);
    attacker.desc(0, (at, len, 0, 0));
    attacker.offer(&[0; SIZE as usize]);
    attacker.is_given_back();
    for _ in 0..SIZE {
        arena.peer.expect(&frame(PEER, ATTACKER, 60));
    }
}

/// Starts the transmit ring with its used ring somewhere else, and transmits on it.
fn used_ring_at(arena: &mut Arena, at: impl FnOnce(&Attacker) -> u64) {
    let mut attacker = Attacker::prepare(&arena.socket, 0);
    let mut addresses = attacker.addresses(TX);
    addresses.used_ring_addr = at(&attacker);
    let endpoint = &mut attacker.endpoint;
    endpoint.frontend.set_vring_num(TX, SIZE).expect("open");
    endpoint.frontend.set_vring_addr(TX, &addresses).expect("open");
    endpoint.frontend.set_vring_base(TX, 0).expect("open");
    endpoint
        .frontend
        .set_vring_kick(TX, &endpoint.queues[TX].kick)
        .expect("open");
    endpoint.frontend.set_vring_enable(TX, true).expect("open");
    attacker.round_trip();
    // What becomes of its own ring is its own affair: it must only come to an end.
    for _ in 0..200 {
        attacker.transmit();
    }
    attacker.round_trip();
    arena.bystanders.go_on();
    arena.drain();
}

fn used_over_desc(arena: &mut Arena) {
    used_ring_at(arena, |attacker| attacker.addresses(TX).desc_table_addr);
}

fn used_over_avail(arena: &mut Arena) {
    used_ring_at(arena, |attacker| attacker.addresses(TX).avail_ring_addr & !3);
}

fn used_over_buffers(arena: &mut Arena) {
    used_ring_at(arena, |attacker| attacker.buffer(SIZE - 1));
}

fn unmapped_rings(arena: &mut Arena) {
    for part in 0..3 {
        let attacker = Attacker::prepare(&arena.socket, 0);
        let mut addresses = attacker.addresses(TX);
        let part = match part {
            0 => &mut addresses.desc_table_addr,
            1 => &mut addresses.avail_ring_addr,
            _ => &mut addresses.used_ring_addr,
        };
        *part = NOWHERE;
        let endpoint = &attacker.endpoint;
        endpoint.frontend.set_vring_num(TX, SIZE).expect("open");
        endpoint.frontend.set_vring_addr(TX, &addresses).expect("open");
        endpoint
            .frontend
            .set_vring_kick(TX, &endpoint.queues[TX].kick)
            .expect("open");
        attacker.is_closed();
        drop(attacker);
        arena.rests();
    }
}

fn odd_sizes(arena: &mut Arena) {
    for size in [0_u64, 3, 40_000, 65_536, 0xffff_ffff] {
        let attacker = Attacker::prepare(&arena.socket, 0);
        let bytes = netyard_testkit::message::message(8, 1, &[size << 32]);
        netyard_testkit::message::send(&attacker.endpoint.stream, &bytes, &[]).expect("open");
        attacker.is_closed();
        drop(attacker);
        arena.rests();
    }
}

fn changed_while_running(arena: &mut Arena) {
    type Change = fn(&Attacker) -> bool;
    let changes: [Change; 4] = [
        |attacker| attacker.endpoint.frontend.set_vring_num(TX, SIZE / 2).is_ok(),
        |attacker| {
            let other = attacker.addresses(RX);
            attacker.endpoint.frontend.set_vring_addr(TX, &other).is_ok()
        },
        |attacker| attacker.endpoint.frontend.set_vring_base(TX, 7).is_ok(),
        |attacker| attacker.endpoint.frontend.set_features(f::VERSION_1).is_ok(),
    ];
    for change in changes {
        let attacker = Attacker::new(&arena.socket);
        assert!(change(&attacker), "an open connection");
        attacker.is_closed();
        drop(attacker);
        arena.rests();
    }
}

fn odd_events(arena: &mut Arena) {
    let mut attacker = Attacker::with(&arena.socket, f::RING_F_EVENT_IDX);
    let config = attacker.endpoint.queues[TX].config;
    for event in [0_u16, 1, 0x7fff, 0x8000, u16::MAX] {
        attacker.write(config.avail + 4 + 2 * u64::from(SIZE), &event.to_le_bytes());
        attacker.write(config.used + 4 + 8 * u64::from(SIZE), &event.to_le_bytes());
        attacker.transmit();
        attacker.is_given_back();
        arena.peer.expect(&frame(PEER, ATTACKER, 60));
    }
}

fn kick_storm(arena: &mut Arena) {
    let attacker = Attacker::new(&arena.socket);
    let kick = &attacker.endpoint.queues[TX].kick;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = kick.write(1);
                }
            });
        }
        for _ in 0..10 {
            arena.bystanders.go_on();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

fn no_kick(arena: &mut Arena) {
    let mut attacker = Attacker::new(&arena.socket);
    attacker.transmit();
    attacker.is_given_back();
    arena.peer.expect(&frame(PEER, ATTACKER, 60));
    // The switch has asked for a kick once it sleeps; without one the frame may stay where it is.
    let at = attacker.buffer(0);
    let len = attacker.frame_at(at);
    attacker.desc(0, (at, len, 0, 0));
    let slot = 1 % SIZE;
    let ring = attacker.endpoint.queues[TX].config.avail;
    attacker.write(ring + 4 + 2 * u64::from(slot), &0_u16.to_le_bytes());
    attacker.set_avail(2);
    arena.bystanders.go_on();
    attacker.kick();
    wait_for("the frame, after the kick", || attacker.used() == 2);
    arena.peer.expect(&frame(PEER, ATTACKER, 60));
}

fn early_kick(arena: &mut Arena) {
    let mut attacker = Attacker::prepare(&arena.socket, 0);
    let endpoint = &attacker.endpoint;
    for _ in 0..10 {
        attacker.kick();
        endpoint.queues[RX].kick.write(1).expect("room");
    }
    attacker.round_trip();
    assert_eq!(attacker.used(), 0);
    attacker.start();
    attacker.transmit();
    attacker.is_given_back();
    arena.peer.expect(&frame(PEER, ATTACKER, 60));
}
