use vm_memory::{Bytes, GuestAddress};

use super::Rng;
use crate::pci::Function;
use crate::virtio::testing::{DriverRing, Guest, NEEDS_RESET, NEXT, VERSION_1, WRITE};

const BUFFERS: u64 = 0x10_0000;

fn start() -> (Guest, DriverRing) {
    let guest = Guest::new(Box::new(Rng::new()));
    let ring = restart(&guest);
    (guest, ring)
}

fn restart(guest: &Guest) -> DriverRing {
    restart_with(guest, 1 << 28)
}

fn restart_with(guest: &Guest, features: u64) -> DriverRing {
    assert!(guest.negotiate(VERSION_1 | features));
    guest
        .ram
        .mem
        .write_slice(&[0; 0x2000], GuestAddress(0x1_0000))
        .unwrap();
    let at = guest.set_up_queue(0, 16, 0x1_0000);
    guest.write16(16, 1);
    assert_eq!(guest.driver_ok() & NEEDS_RESET, 0);
    DriverRing::new(&guest.ram, at)
}

fn bytes(guest: &Guest, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    guest
        .ram
        .mem
        .read_slice(&mut bytes, GuestAddress(BUFFERS))
        .unwrap();
    bytes
}

#[test]
fn fills_buffers_with_entropy() {
    let (guest, mut ring) = start();
    let mut before = vec![0; 64];
    for _ in 0..40 {
        ring.give_buffer(BUFFERS, 64, WRITE);
        guest.kick(0);
        let (_, len) = ring.wait_for_used(&guest.platform, 0);
        assert_eq!(len, 64);
        let now = bytes(&guest, 64);
        assert_ne!(now, before);
        before = now;
    }
}

#[test]
fn a_huge_request_gets_a_part() {
    let (guest, mut ring) = start();
    ring.give_buffer(BUFFERS, 1 << 20, WRITE);
    guest.kick(0);
    assert_eq!(ring.wait_for_used(&guest.platform, 0), (0, 4096));
    assert_eq!(bytes(&guest, 8192)[4096..], [0; 4096]);
}

#[test]
fn malformed_chains_come_back_empty_and_good_ones_after_them_are_served() {
    let (guest, mut ring) = start();
    let end = 4 << 20;
    let bad: [&[(u64, u32, u16, u16)]; 6] = [
        &[(BUFFERS, 64, WRITE | NEXT, 0)],
        &[(BUFFERS, 64, WRITE | NEXT, 99)],
        &[(end, 64, WRITE, 0)],
        &[(end - 4, 64, WRITE, 0)],
        &[(u64::MAX - 4, 64, WRITE, 0)],
        &[(BUFFERS, 64, WRITE | NEXT, 1), (BUFFERS, 64, 0, 0)],
    ];
    for (case, chain) in bad.iter().enumerate() {
        for (index, (addr, len, flags, next)) in (0..).zip(*chain) {
            ring.descriptor(index, *addr, *len, *flags, *next);
        }
        ring.give(0);
        guest.kick(0);
        assert_eq!(ring.wait_for_used(&guest.platform, 0), (0, 0), "case {case}");
        ring.descriptor(5, BUFFERS, 16, WRITE, 0);
        ring.give(5);
        guest.kick(0);
        assert_eq!(
            ring.wait_for_used(&guest.platform, 0),
            (5, 16),
            "after case {case}"
        );
    }
}

#[test]
fn a_broken_ring_asks_for_a_reset_and_works_after_it() {
    let (guest, ring) = start();
    ring.set_avail_index(1000);
    guest.kick(0);
    guest.platform.wait_for_interrupt(1);
    assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET);
    let mut ring = restart(&guest);
    ring.give_buffer(BUFFERS, 8, WRITE);
    guest.kick(0);
    assert_eq!(ring.wait_for_used(&guest.platform, 0).1, 8);
}

#[test]
fn buffers_given_before_the_device_runs_are_served() {
    let guest = Guest::new(Box::new(Rng::new()));
    assert!(guest.negotiate(VERSION_1));
    let mut ring = DriverRing::new(&guest.ram, guest.set_up_queue(0, 16, 0x1_0000));
    ring.give_buffer(BUFFERS, 8, WRITE);
    guest.driver_ok();
    assert_eq!(ring.wait_for_used(&guest.platform, 0).1, 8);
}

/// Another device serves requests that were made later than all others: time enough for what must not happen.
fn elsewhere() {
    let (guest, mut ring) = start();
    for _ in 0..20 {
        ring.give_buffer(BUFFERS, 64, WRITE);
        guest.kick(0);
        ring.wait_for_used(&guest.platform, 0);
    }
}

#[test]
fn nothing_happens_while_the_vm_is_held_or_the_function_is_no_bus_master() {
    let switches: [fn(&mut Guest, bool); 2] = [
        |guest, on| {
            if on {
                guest.function.resume();
            } else {
                guest.function.pause();
            }
        },
        Guest::set_bus_master,
    ];
    for switch in switches {
        let (mut guest, mut ring) = start();
        // Once while its driver runs it, and once with a driver that comes in between.
        for _ in 0..2 {
            switch(&mut guest, false);
            // Of what came before.
            guest.platform.was_raised(0);
            ring.give_buffer(BUFFERS, 64, WRITE);
            guest.kick(0);
            elsewhere();
            assert_eq!(ring.used(), None);
            assert_eq!(bytes(&guest, 64), [0; 64]);
            assert!(!guest.platform.was_raised(0));
            switch(&mut guest, true);
            assert_eq!(ring.wait_for_used(&guest.platform, 0).1, 64);
            assert_ne!(bytes(&guest, 64), [0; 64]);
            switch(&mut guest, false);
            ring = restart(&guest);
            guest
                .ram
                .mem
                .write_slice(&[0; 64], GuestAddress(BUFFERS))
                .unwrap();
        }
    }
}

#[test]
fn with_event_idx_each_side_hears_of_what_it_asked_for() {
    let guest = Guest::new(Box::new(Rng::new()));
    let mut ring = restart_with(&guest, 1 << 29);
    ring.set_used_event(2);
    for _ in 0..3 {
        ring.give_buffer(BUFFERS, 8, WRITE);
        guest.kick(0);
        while ring.used().is_none() {
            std::thread::yield_now();
        }
    }
    assert_eq!(guest.platform.wait_for_interrupt(0), 1, "for the third one alone");
    // With nothing left to do it asks for the next one.
    ring.set_used_event(3);
    while {
        ring.give_buffer(BUFFERS, 8, WRITE);
        !ring.wants_kick()
    } {
        // The device was still at work, and takes it without being told.
        while ring.used().is_none() {
            std::thread::yield_now();
        }
    }
    guest.kick(0);
    while ring.used().is_none() {
        std::thread::yield_now();
    }
}

#[test]
fn a_queue_that_is_reset_is_left_alone_until_it_is_given_again() {
    let guest = Guest::new(Box::new(Rng::new()));
    let mut ring = restart_with(&guest, 1 << 40);
    guest.write16(58, 1);
    ring.give_buffer(BUFFERS, 64, WRITE);
    guest.kick(0);
    let at = guest.set_up_queue(0, 8, 0x2_0000);
    let mut small = DriverRing::new(&guest.ram, at);
    small.give_buffer(BUFFERS, 32, WRITE);
    guest.kick(0);
    assert_eq!(small.wait_for_used(&guest.platform, 0), (0, 32));
    assert_eq!(ring.used(), None, "nobody serves the old one");
}
