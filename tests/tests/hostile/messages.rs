//! vhost-user messages that are none, or that come at the wrong time or with the wrong descriptors.

use std::os::fd::{AsFd, BorrowedFd};

use netyard_testkit::message::{header, message, send};
use rustix::event::EventfdFlags;

use crate::Case;
use crate::arena::Arena;
use crate::attacker::Attacker;

pub(crate) const CASES: [Case; 6] = [
    ("headers that are none of the protocol", bad_headers),
    ("requests that were not offered", not_offered),
    ("virtqueues that do not exist", no_such_ring),
    ("the wrong number of descriptors", wrong_descriptors),
    ("floods of descriptors", floods),
    ("features that were not offered", other_features),
];

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_ENABLE: u32 = 18;
const ADD_MEM_REG: u32 = 37;

/// The switch ends the connection on which it gets these bytes with these descriptors, after a handshake.
pub(crate) fn refused(arena: &Arena, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let attacker = Attacker::prepare(&arena.socket, 0);
    send(&attacker.endpoint.stream, bytes, fds).expect("an open connection");
    attacker.is_closed();
    drop(attacker);
    arena.rests();
}

fn bad_headers(arena: &mut Arena) {
    for (request, flags, size) in [
        (GET_FEATURES, 1, u32::MAX),
        (GET_FEATURES, 1, 4097),
        (GET_FEATURES, 0, 0),
        (GET_FEATURES, 2, 0),
        (GET_FEATURES, 5, 0),
        (GET_FEATURES, 0x11, 0),
        (0, 1, 0),
        (99, 1, 0),
        (1 << 31, 1, 0),
    ] {
        refused(arena, &header(request, flags, size), &[]);
    }
}

fn not_offered(arena: &mut Arena) {
    // SET_LOG_FD, SEND_RARP, IOTLB_MSG, SET_VRING_ENDIAN, VRING_KICK, SET_STATUS, and a log smaller than the memory.
    for request in [7, 19, 22, 23, 35, 39] {
        refused(arena, &message(request, 1, &[0]), &[]);
    }
    let log = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
    refused(arena, &message(6, 1, &[4096, 0]), &[log.as_fd()]);
}

fn no_such_ring(arena: &mut Arena) {
    for index in [2, 255, 0x1_0000, 0xffff_ffff] {
        refused(arena, &message(SET_VRING_NUM, 1, &[256 << 32 | index]), &[]);
        refused(arena, &message(SET_VRING_ENABLE, 1, &[1 << 32 | index]), &[]);
    }
}

fn wrong_descriptors(arena: &mut Arena) {
    let event = rustix::event::eventfd(0, EventfdFlags::empty()).expect("an eventfd");
    let one = [event.as_fd()];
    let two = [event.as_fd(), event.as_fd()];
    refused(arena, &message(SET_VRING_KICK, 1, &[0]), &[]);
    refused(arena, &message(SET_VRING_KICK, 1, &[0]), &two);
    refused(arena, &message(SET_VRING_KICK, 1, &[0x100]), &one);
    refused(arena, &message(GET_FEATURES, 1, &[]), &one);
    refused(arena, &message(ADD_MEM_REG, 1, &[0, 0, 4096, 0, 0]), &[]);
    refused(
        arena,
        &message(SET_MEM_TABLE, 1, &[2, 0, 4096, 0, 0, 8192, 4096, 8192, 0]),
        &one,
    );
}

fn floods(arena: &mut Arena) {
    let event = rustix::event::eventfd(0, EventfdFlags::empty()).expect("an eventfd");
    for count in [9, 32, 33, 253] {
        refused(
            arena,
            &message(SET_VRING_KICK, 1, &[0]),
            &vec![event.as_fd(); count],
        );
    }
    // Ones that are well-formed, again and again: each replaces the one before.
    let attacker = Attacker::prepare(&arena.socket, 0);
    for _ in 0..2000 {
        for request in [SET_VRING_KICK, 13, 14] {
            let bytes = message(request, 1, &[0]);
            send(&attacker.endpoint.stream, &bytes, &[event.as_fd()]).expect("an open connection");
        }
    }
}

fn other_features(arena: &mut Arena) {
    for bit in [5, 10, 24, 33, 37, 38, 63] {
        refused(arena, &message(SET_FEATURES, 1, &[1 << 32 | 1 << bit]), &[]);
    }
}
