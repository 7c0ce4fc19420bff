//! Packed rings whose descriptors, wrap counters and event areas lie.

use std::time::{Duration, Instant};

use netyard_testkit::guest::wait_for;
use virtio::features as f;
use virtio::packed::{DESC_F_AVAIL, DESC_F_USED};

use crate::arena::Arena;
use crate::attacker::{Attacker, Desc, INDIRECT, NEXT, NOWHERE, SIZE, TABLES, TX, WRITE};
use crate::mutation::{Random, any_word, beside, put};
use crate::{ATTACKER, Case, PEER, frame};

pub(crate) const CASES: [Case; 6] = [
    ("packed: chains that the ring is too small for", endless),
    ("packed: flags that exclude each other", senseless_flags),
    ("packed: buffer ids that do not exist", no_such_id),
    ("packed: buffers that carry no frame", no_frames),
    ("packed: wrap counters of another lap", stale_wrap),
    ("packed: everything rewritten while it is read", rewritten),
];

/// How long everything is rewritten.
const TIME: Duration = Duration::from_millis(700);

fn attacker(arena: &Arena) -> Attacker {
    Attacker::with(&arena.socket, f::RING_PACKED | f::RING_F_INDIRECT_DESC)
}

/// A packed descriptor: what is the index of the next one in a split ring comes last here, and is the flags.
fn packed(addr: u64, len: u32, id: u16, flags: u16) -> Desc {
    (addr, len, id, flags)
}

/// Writes descriptors of the first lap from the first on, the first one last, and kicks.
fn offer(attacker: &Attacker, descs: &[Desc]) {
    for (index, desc) in descs.iter().enumerate().rev() {
        attacker.desc(u16::try_from(index).expect("a short ring"), *desc);
    }
    attacker.kick();
}

/// The id, and the length said to be written, of the chain that came back in the first place of the ring, once it did.
fn returned(attacker: &Attacker) -> (u16, u32) {
    let both = DESC_F_AVAIL | DESC_F_USED;
    let read = || {
        let bytes: [u8; 16] = attacker.read(attacker.endpoint.queues[TX].config.desc);
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let len = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        (word(14), word(12), len)
    };
    wait_for("the chain to come back", || read().0 & both == both);
    let (_, id, len) = read();
    (id, len)
}

fn endless(arena: &mut Arena) {
    let mut attacker = attacker(arena);
    let at = attacker.buffer(0);
    // Each says that there is another one, all around the ring.
    let all: Vec<Desc> = (0..SIZE)
        .map(|id| packed(at, 64, id, DESC_F_AVAIL | NEXT))
        .collect();
    offer(&attacker, &all);
    attacker.is_stopped();
}

fn senseless_flags(arena: &mut Arena) {
    for flags in [INDIRECT | NEXT, INDIRECT | NEXT | WRITE] {
        let mut attacker = attacker(arena);
        offer(&attacker, &[packed(TABLES, 32, 0, DESC_F_AVAIL | flags)]);
        attacker.is_stopped();
    }
    // A table in a table, and one at the end of a chain.
    let mut nested = attacker(arena);
    nested.entry(TABLES, 0, packed(TABLES, 16, 0, INDIRECT));
    offer(&nested, &[packed(TABLES, 16, 0, DESC_F_AVAIL | INDIRECT)]);
    nested.is_stopped();
    drop(nested);
    let mut late = attacker(arena);
    let at = late.buffer(0);
    offer(
        &late,
        &[
            packed(at, 64, 0, DESC_F_AVAIL | NEXT),
            packed(TABLES, 16, 0, DESC_F_AVAIL | INDIRECT),
        ],
    );
    late.is_stopped();
    drop(late);
    // A table of a fraction of descriptors.
    let mut odd = attacker(arena);
    offer(&odd, &[packed(TABLES, 17, 0, DESC_F_AVAIL | INDIRECT)]);
    odd.is_stopped();
    drop(odd);
    // Bits that mean nothing mean nothing.
    let odd = attacker(arena);
    let at = odd.buffer(0);
    let len = odd.frame_at(at);
    offer(&odd, &[packed(at, len, 5, DESC_F_AVAIL | 0x7f78)]);
    assert_eq!(returned(&odd), (5, 0));
    arena.peer.expect(&frame(PEER, ATTACKER, 60));
}

fn no_such_id(arena: &mut Arena) {
    for id in [SIZE, 0x8000, u16::MAX] {
        let mut attacker = attacker(arena);
        let at = attacker.buffer(0);
        let len = attacker.frame_at(at);
        offer(&attacker, &[packed(at, len, id, DESC_F_AVAIL)]);
        attacker.is_stopped();
    }
    // The same id again and again: each chain is handled once.
    let attacker = attacker(arena);
    let at = attacker.buffer(0);
    let len = attacker.frame_at(at);
    offer(
        &attacker,
        &vec![packed(at, len, 3, DESC_F_AVAIL); usize::from(SIZE) / 2],
    );
    for _ in 0..SIZE / 2 {
        arena.peer.expect(&frame(PEER, ATTACKER, 60));
    }
}

fn no_frames(arena: &mut Arena) {
    let before = arena.drops("bad-descriptor");
    let bad: [Desc; 7] = [
        packed(NOWHERE, 64, 0, DESC_F_AVAIL),
        packed(0, 64, 0, DESC_F_AVAIL),
        packed(u64::MAX - 8, 64, 0, DESC_F_AVAIL),
        packed(TABLES, u32::MAX, 0, DESC_F_AVAIL),
        packed(TABLES, 0, 0, DESC_F_AVAIL),
        packed(TABLES, 64, 0, DESC_F_AVAIL | WRITE),
        packed(NOWHERE, 32, 0, DESC_F_AVAIL | INDIRECT),
    ];
    for desc in bad {
        let attacker = attacker(arena);
        offer(&attacker, &[desc]);
        assert_eq!(returned(&attacker), (0, 0), "{desc:x?}");
    }
    assert_eq!(arena.drops("bad-descriptor") - before, bad.len() as u64);
}

fn stale_wrap(arena: &mut Arena) {
    let attacker = attacker(arena);
    let at = attacker.buffer(0);
    let len = attacker.frame_at(at);
    // Used in this lap, available in the next, used in the next: none of them is available now.
    for flags in [DESC_F_AVAIL | DESC_F_USED, DESC_F_USED, 0] {
        offer(&attacker, &[packed(at, len, 0, flags)]);
        arena.bystanders.go_on();
        let now: [u8; 16] = attacker.read(attacker.endpoint.queues[TX].config.desc);
        assert_eq!(now[14..], flags.to_le_bytes());
    }
    // With the driver's event area full of nonsense, the one that is available goes through.
    let events = attacker.endpoint.queues[TX].config.avail;
    for word in [[0xff; 4], [SIZE.to_le_bytes()[0], 0x7f, 2, 0], [0, 0, 3, 0]] {
        attacker.write(events, &word);
        arena.bystanders.go_on();
    }
    offer(&attacker, &[packed(at, len, 1, DESC_F_AVAIL)]);
    assert_eq!(returned(&attacker), (1, 0));
    arena.peer.expect(&frame(PEER, ATTACKER, 60));
}

fn rewritten(arena: &mut Arena) {
    let begin = Instant::now();
    let mut lives = 0;
    while begin.elapsed() < TIME {
        lives += 1;
        live(arena, lives);
    }
    arena.drain();
    println!("        {lives} lives");
}

/// One life of a guest whose rings and event areas are rewritten as it transmits and receives.
fn live(arena: &mut Arena, seed: u64) {
    let attacker = attacker(arena);
    let configs = [0, TX].map(|ring| attacker.endpoint.queues[ring].config);
    let at = attacker.buffer(0);
    let len = attacker.frame_at(at);
    let map = attacker.endpoint.map.clone();
    let rewrite = |random: &mut Random| {
        let config = random.of(&configs);
        let place = config.desc + 16 * random.below(u64::from(SIZE));
        match random.below(6) {
            0 => put(&map, place, &random.of(&[at, TABLES, NOWHERE, 0]).to_le_bytes()),
            1 => put(&map, place + 8, &any_word(random).to_le_bytes()),
            2 => put(&map, place + 12, &any_word(random).to_le_bytes()),
            3 => put(&map, config.avail, &any_word(random).to_le_bytes()),
            4 => put(&map, config.avail + 2, &any_word(random).to_le_bytes()),
            _ => {
                let kinds = [0, NEXT, WRITE, INDIRECT, NEXT | INDIRECT];
                let laps = [DESC_F_AVAIL, DESC_F_USED, DESC_F_AVAIL | DESC_F_USED, 0];
                let flags = random.of(&kinds) | random.of(&laps);
                put(&map, place + 14, &flags.to_le_bytes());
            }
        }
    };
    beside(seed, rewrite, || {
        for id in 0..200_u16 {
            attacker.desc(id % SIZE, packed(at, len, id % SIZE, DESC_F_AVAIL));
            attacker.kick();
            arena.peer.send(0, &frame(ATTACKER, PEER, 200));
            arena.drain();
            if attacker.ring_is_stopped(TX) | attacker.ring_is_stopped(0) {
                break;
            }
        }
    });
    arena.peer.flush();
}
