//! Descriptor chains that are none, or unusual ones that are.

use netyard_testkit::endpoint::region_info;
use vhost::VhostBackend;
use virtio::features as f;
use virtio::net::HEADER_LEN;

use crate::arena::Arena;
use crate::attacker::{Attacker, CUT, INDIRECT, NEXT, NOWHERE, SIZE, TABLES, TX, WRITE};
use crate::{ATTACKER, Case, PEER, frame};

pub(crate) const CASES: [Case; 20] = [
    ("a chain that is its own next", own_next),
    ("a chain of two that loops", loop_of_two),
    ("a chain as long as the queue", whole_queue),
    ("a next index outside the table", next_outside),
    ("a head outside the table", head_outside),
    ("an indirect table in an indirect table", nested_tables),
    ("an indirect descriptor with NEXT", indirect_with_next),
    (
        "indirect tables of no, and of a fraction of descriptors",
        odd_tables,
    ),
    ("an indirect table of more than 65535 entries", huge_table),
    ("an indirect table although not negotiated", table_not_negotiated),
    ("an indirect table across two regions", table_across_regions),
    ("buffers and tables at addresses that are nowhere", nowhere),
    ("buffers whose end wraps around", wrapping),
    ("a buffer across two adjacent regions", across_regions),
    ("a buffer that reaches into a hole", into_a_hole),
    ("descriptors of no bytes", no_bytes),
    ("a chain of 4 GiB and more", four_gib),
    ("a transmit chain that can only be written", only_writable),
    ("receive buffers that can only be read", only_readable),
    ("a header one byte to a descriptor", header_in_bytes),
];

fn own_next(arena: &mut Arena) {
    let mut attacker = Attacker::new(&arena.socket);
    attacker.desc(0, (attacker.buffer(0), 64, NEXT, 0));
    attacker.offer(&[0]);
    attacker.is_stopped();
}

fn loop_of_two(arena: &mut Arena) {
    let mut attacker = Attacker::new(&arena.socket);
    attacker.desc(0, (attacker.buffer(0), 64, NEXT, 1));
    attacker.desc(1, (attacker.buffer(1), 64, NEXT, 0));
    attacker.offer(&[0]);
    attacker.is_stopped();
}

/// A chain whose parts hold a frame for the peer, in pieces of `piece` bytes from descriptor 0 on.
fn pieces(attacker: &mut Attacker, piece: u32) {
    let at = attacker.buffer(0);
    let len = attacker.frame_at(at);
    let count = len.div_ceil(piece);
    for index in 0..count {
        let off = index * piece;
        let more = if index + 1 < count { NEXT } else { 0 };
        let index = u16::try_from(index).expect("a short chain");
        attacker.desc(
            index,
            (at + u64::from(off), piece.min(len - off), more, index + 1),
        );
    }
    attacker.offer(&[0]);
}

fn whole_queue(arena: &mut Arena) {
    let mut attacker = Attacker::new(&arena.socket);
    let at = attacker.buffer(0);
    let len = attacker.frame_at(at);
    for index in 0..SIZE {
        let part = if index + 1 < SIZE {
            (at + u64::from(index), 1, NEXT, index + 1)
        } else {
            (at + u64::from(index), len - u32::from(index), 0, 0)
        };
        attacker.desc(index, part);
    }
    attacker.offer(&[0]);
    attacker.is_given_back();
    arena.peer.expect(&frame(PEER, ATTACKER, 60));
}

fn header_in_bytes(arena: &mut Arena) {
    let mut attacker = Attacker::new(&arena.socket);
    let at = attacker.buffer(0);
    let len = attacker.frame_at(at);
    let header = u16::try_from(HEADER_LEN).expect("twelve");
    for index in 0..header {
        attacker.desc(index, (at + u64::from(index), 1, NEXT, index + 1));
    }
    let rest = len - u32::from(header);
    attacker.desc(header, (at + u64::from(header), rest, 0, 0));
    attacker.offer(&[0]);
    attacker.is_given_back();
    arena.peer.expect(&frame(PEER, ATTACKER, 60));
    pieces(&mut attacker, 2);
    arena.peer.expect(&frame(PEER, ATTACKER, 60));
}

fn next_outside(arena: &mut Arena) {
    for next in [SIZE, 0x7fff, u16::MAX] {
        let mut attacker = Attacker::new(&arena.socket);
        attacker.desc(0, (attacker.buffer(0), 64, NEXT, next));
        attacker.offer(&[0]);
        attacker.is_stopped();
    }
}

fn head_outside(arena: &mut Arena) {
    for head in [SIZE, u16::MAX] {
        let mut attacker = Attacker::new(&arena.socket);
        attacker.offer(&[head]);
        attacker.is_stopped();
    }
}

/// An attacker whose first chain is an indirect table with one frame for the peer.
fn with_table(arena: &Arena, table: u64) -> Attacker {
    let attacker = Attacker::new(&arena.socket);
    let at = attacker.buffer(0);
    let len = attacker.frame_at(at);
    attacker.entry(table, 0, (at, 12, NEXT, 1));
    attacker.entry(table, 1, (at + 12, len - 12, 0, 0));
    attacker.desc(0, (table, 32, INDIRECT, 0));
    attacker
}

fn nested_tables(arena: &mut Arena) {
    let mut attacker = with_table(arena, TABLES);
    attacker.entry(TABLES, 1, (TABLES, 32, INDIRECT, 0));
    attacker.offer(&[0]);
    attacker.is_stopped();
}

fn indirect_with_next(arena: &mut Arena) {
    let mut attacker = with_table(arena, TABLES);
    attacker.desc(0, (TABLES, 32, INDIRECT | NEXT, 1));
    attacker.offer(&[0]);
    attacker.is_stopped();
}

fn odd_tables(arena: &mut Arena) {
    for len in [0, 8, 33, u32::MAX] {
        let mut attacker = with_table(arena, TABLES);
        attacker.desc(0, (TABLES, len, INDIRECT, 0));
        attacker.offer(&[0]);
        attacker.is_stopped();
    }
}

fn huge_table(arena: &mut Arena) {
    let mut attacker = with_table(arena, TABLES);
    attacker.desc(0, (TABLES, 65_537 * 16, INDIRECT, 0));
    attacker.offer(&[0]);
    attacker.is_stopped();
}

fn table_not_negotiated(arena: &mut Arena) {
    let mut attacker = Attacker::with(&arena.socket, 0);
    attacker.desc(0, (TABLES, 32, INDIRECT, 0));
    attacker.offer(&[0]);
    attacker.is_stopped();
}

/// An attacker whose memory is two regions, with both rings running in the first.
fn in_two_regions(arena: &Arena) -> Attacker {
    let mut attacker = Attacker::prepare(&arena.socket, f::RING_F_INDIRECT_DESC);
    attacker.in_two_regions();
    attacker.start();
    attacker
}

fn table_across_regions(arena: &mut Arena) {
    for table in [CUT - 16, CUT - 8] {
        let mut attacker = in_two_regions(arena);
        let at = attacker.buffer(0);
        let len = attacker.frame_at(at);
        attacker.entry(table, 0, (at, 12, NEXT, 1));
        attacker.entry(table, 1, (at + 12, len - 12, 0, 0));
        attacker.desc(0, (table, 32, INDIRECT, 0));
        attacker.offer(&[0]);
        attacker.is_given_back();
        arena.peer.expect(&frame(PEER, ATTACKER, 60));
        drop(attacker);
        arena.rests();
    }
}

fn across_regions(arena: &mut Arena) {
    let mut attacker = in_two_regions(arena);
    let at = CUT - 20;
    let len = attacker.frame_at(at);
    attacker.desc(0, (at, len, 0, 0));
    attacker.offer(&[0]);
    attacker.is_given_back();
    arena.peer.expect(&frame(PEER, ATTACKER, 60));
}

/// A chain that is given back unused, then one that is a frame: the ring goes on.
fn is_dropped(arena: &mut Arena, attacker: &mut Attacker, why: &str) {
    let before = arena.drops(why);
    attacker.offer(&[0]);
    attacker.is_given_back();
    assert!(arena.drops(why) > before, "not counted as {why}");
    attacker.transmit();
    attacker.is_given_back();
    arena.peer.expect(&frame(PEER, ATTACKER, 60));
}

fn nowhere(arena: &mut Arena) {
    let mut attacker = Attacker::new(&arena.socket);
    for at in [0, NOWHERE, 0xfee0_0000, u64::MAX - 4096] {
        attacker.desc(0, (at, 64, 0, 0));
        is_dropped(arena, &mut attacker, "bad-descriptor");
        attacker.desc(0, (at, 32, INDIRECT, 0));
        is_dropped(arena, &mut attacker, "bad-descriptor");
    }
}

fn wrapping(arena: &mut Arena) {
    let mut attacker = Attacker::new(&arena.socket);
    for (at, flags) in [(u64::MAX - 15, 0), (u64::MAX - 15, INDIRECT)] {
        attacker.desc(0, (at, 64, flags, 0));
        is_dropped(arena, &mut attacker, "bad-descriptor");
    }
    attacker.desc(0, (attacker.buffer(0), u32::MAX, 0, 0));
    is_dropped(arena, &mut attacker, "bad-descriptor");
}

fn into_a_hole(arena: &mut Arena) {
    let mut attacker = in_two_regions(arena);
    let end = attacker.endpoint.memory[0].region().guest_addr() + attacker.endpoint.memory[0].region().len();
    attacker.desc(0, (end - 32, 64, 0, 0));
    is_dropped(arena, &mut attacker, "bad-descriptor");
}

fn no_bytes(arena: &mut Arena) {
    let mut attacker = Attacker::new(&arena.socket);
    let at = attacker.buffer(0);
    let len = attacker.frame_at(at);
    // At an address that is nowhere, even: nothing is there to be looked at.
    attacker.desc(0, (NOWHERE, 0, NEXT, 1));
    attacker.desc(1, (at, len, NEXT, 2));
    attacker.desc(2, (at, 0, 0, 0));
    attacker.offer(&[0]);
    attacker.is_given_back();
    arena.peer.expect(&frame(PEER, ATTACKER, 60));
    attacker.desc(0, (at, 0, 0, 0));
    is_dropped(arena, &mut attacker, "bad-descriptor");
}

fn four_gib(arena: &mut Arena) {
    let large =
        virtio::memory::SharedMemory::new("large", 1 << 40, 1 << 27).expect("memory that nobody touches");
    let mut attacker = Attacker::new(&arena.socket);
    let table = [&attacker.endpoint.memory[0], &large].map(region_info);
    attacker
        .endpoint
        .frontend
        .set_mem_table(&table)
        .expect("an open connection");
    attacker.round_trip();
    for index in 0..40 {
        let more = if index < 39 { NEXT } else { 0 };
        attacker.desc(index, (1 << 40, 1 << 27, more, index + 1));
    }
    is_dropped(arena, &mut attacker, "bad-descriptor");
    // Half of it is no frame either, and nothing is read of it.
    attacker.desc(16, (1 << 40, 1 << 27, 0, 0));
    is_dropped(arena, &mut attacker, "oversize");
}

fn only_writable(arena: &mut Arena) {
    let mut attacker = Attacker::new(&arena.socket);
    let at = attacker.buffer(0);
    let len = attacker.frame_at(at);
    attacker.desc(0, (at, len, WRITE, 0));
    is_dropped(arena, &mut attacker, "bad-descriptor");
    attacker.desc(0, (at, len, NEXT, 1));
    attacker.desc(1, (at, len, WRITE, 0));
    is_dropped(arena, &mut attacker, "bad-descriptor");
}

fn only_readable(arena: &mut Arena) {
    use virtio::split::driver::Buffer;
    let mut attacker = Attacker::prepare(&arena.socket, 0);
    attacker.start();
    // So that the switch knows where the attacker is.
    attacker.transmit();
    arena.peer.receive();
    let queue = &mut attacker.endpoint.queues[0];
    for slot in 0..8_u16 {
        let buffer = queue.buffer(slot);
        // By turns: readable, too short for a header, of no bytes, and a good one.
        let (readable, writable): (&[Buffer], &[Buffer]) = match slot % 4 {
            0 => (&[buffer], &[]),
            1 => (&[], &[Buffer { len: 11, ..buffer }]),
            2 => (&[], &[Buffer { len: 0, ..buffer }]),
            _ => (&[], &[buffer]),
        };
        queue
            .driver
            .push(readable, writable, u64::from(slot))
            .expect("room for eight");
    }
    queue.publish().expect("an eventfd");
    let answer = frame(ATTACKER, PEER, 60);
    let good = || u32::try_from(HEADER_LEN + 60).expect("a short frame");
    arena.peer.send(0, &answer);
    arena.peer.send(0, &answer);
    let mut lengths = Vec::new();
    netyard_testkit::guest::wait_for("both frames", || {
        while let Some((_, len)) = attacker.endpoint.queues[0].take().expect("a sane ring") {
            lengths.push(len);
        }
        lengths.len() == 8
    });
    assert_eq!(lengths, [0, 0, 0, good(), 0, 0, 0, good()]);
    assert!(!attacker.ring_is_stopped(TX));
}
