//! A guest whose second processor rewrites everything while the switch reads it.
//!
//! What the switch checked has to be what it uses: each field is read once, into a copy.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netyard_testkit::endpoint::BASE;
use virtio::features as f;
use virtio::memory::MemoryMap;

use crate::arena::Arena;
use crate::attacker::{Attacker, INDIRECT, NEXT, NOWHERE, RX, SIZE, TABLES, TX, closed};
use crate::{ATTACKER, Case, PEER, frame};

pub(crate) const CASES: [Case; 6] = [
    ("headers and frames rewritten while they are read", |arena| {
        mutate(arena, 0, headers);
    }),
    ("descriptors rewritten while they are read", |arena| {
        mutate(arena, 0, descriptors);
    }),
    ("indirect tables rewritten while they are read", |arena| {
        mutate(arena, f::RING_F_INDIRECT_DESC, tables);
    }),
    (
        "indices and ring entries rewritten while they are read",
        |arena| {
            mutate(arena, f::RING_F_EVENT_IDX, indices);
        },
    ),
    ("the receive ring rewritten while it is filled", |arena| {
        mutate(arena, f::RING_F_INDIRECT_DESC, receive_ring);
    }),
    ("everything at once", |arena| {
        mutate(arena, f::RING_F_EVENT_IDX | f::RING_F_INDIRECT_DESC, everything);
    }),
];

/// How long each kind goes on.
const TIME: Duration = Duration::from_millis(700);
/// Rewritings between two looks whether to stop.
const BATCH: u32 = 64;

/// Where things are in the attacker's memory.
pub(crate) struct Target {
    pub(crate) rings: [virtio::queue::QueueConfig; 2],
    pub(crate) buffers: u64,
}

/// What a rewriting is made from: a linear congruential generator is random enough.
pub(crate) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 16
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        let count = choices.len() as u64;
        choices[usize::try_from(self.below(count)).unwrap_or(0)]
    }
}

pub(crate) type Rewrite = fn(&MemoryMap, &Target, &mut Random);

pub(crate) fn put(map: &MemoryMap, at: u64, bytes: &[u8]) {
    if let Some(view) = map.slice(at, bytes.len()) {
        view.write_from(0, bytes);
    }
}

pub(crate) fn any_word(random: &mut Random) -> u16 {
    let any = u16::try_from(random.next() & 0xffff).unwrap_or(0);
    random.of(&[0, 1, 2, 4, 12, 34, SIZE - 1, SIZE, 0x7fff, 0x8000, u16::MAX, any])
}

fn headers(map: &MemoryMap, target: &Target, random: &mut Random) {
    let slot = random.below(8);
    // Whole 16-bit fields of the virtio-net header and of what comes after the addresses: with those anyone could be flooded, or
    // taken for another, which is what a bridge does.
    let field = match random.below(34) {
        field @ ..6 => field,
        field => field + 6,
    };
    put(
        map,
        target.buffers + slot * 2048 + 2 * field,
        &any_word(random).to_le_bytes(),
    );
}

fn desc(target: &Target, random: &mut Random) -> [u8; 16] {
    let any = random.next();
    let addr = random.of(&[
        target.buffers,
        target.buffers + 2048,
        TABLES,
        BASE,
        NOWHERE,
        0,
        u64::MAX - 8,
        BASE + (2 << 20) - 16,
        any,
    ]);
    let len: u32 = random.of(&[0, 1, 11, 12, 16, 32, 72, 1526, 2048, 65_535, 1 << 20, u32::MAX]);
    let flags = u16::try_from(random.below(8)).unwrap_or(0);
    let next = u16::try_from(random.below(u64::from(SIZE) + 4)).unwrap_or(0);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// Rewrites a descriptor of a table, or half of one.
fn rewrite_desc(map: &MemoryMap, table: u64, target: &Target, random: &mut Random) {
    let at = table + 16 * random.below(8);
    let bytes = desc(target, random);
    match random.below(3) {
        0 => put(map, at, &bytes),
        1 => put(map, at, &bytes[..8]),
        _ => put(map, at + 8, &bytes[8..]),
    }
}

pub(crate) fn descriptors(map: &MemoryMap, target: &Target, random: &mut Random) {
    rewrite_desc(map, target.rings[TX].desc, target, random);
}

fn tables(map: &MemoryMap, target: &Target, random: &mut Random) {
    rewrite_desc(map, TABLES, target, random);
}

fn indices_of(ring: usize, map: &MemoryMap, target: &Target, random: &mut Random) {
    let (avail, used) = (target.rings[ring].avail, target.rings[ring].used);
    let entries = u64::from(SIZE);
    match random.below(8) {
        // Seldom: it mostly ends the ring at once.
        0 if random.below(64) == 0 => put(map, avail + 2, &any_word(random).to_le_bytes()),
        0 | 1 => put(map, avail, &any_word(random).to_le_bytes()),
        2 => put(map, avail + 4 + 2 * entries, &any_word(random).to_le_bytes()),
        3 | 4 => {
            // Seldom a head that does not exist: it ends the ring.
            let limit = entries + u64::from(random.below(256) == 0);
            let head = u16::try_from(random.below(limit)).unwrap_or(0);
            let at = avail + 4 + 2 * random.below(entries);
            put(map, at, &head.to_le_bytes());
        }
        5 => put(map, used + 4 + 8 * entries, &any_word(random).to_le_bytes()),
        _ => put(
            map,
            used + 2 * random.below(2 + 4 * entries),
            &any_word(random).to_le_bytes(),
        ),
    }
}

pub(crate) fn indices(map: &MemoryMap, target: &Target, random: &mut Random) {
    indices_of(TX, map, target, random);
}

fn receive_ring(map: &MemoryMap, target: &Target, random: &mut Random) {
    if random.below(2) == 0 {
        indices_of(RX, map, target, random);
    } else {
        rewrite_desc(map, target.rings[RX].desc, target, random);
    }
}

fn everything(map: &MemoryMap, target: &Target, random: &mut Random) {
    let kind: Rewrite = random.of(&[headers as Rewrite, descriptors, tables, indices, receive_ring]);
    kind(map, target, random);
}

/// Lives of a guest, one after the other, in which it transmits and receives while `rewrite` is at work.
fn mutate(arena: &mut Arena, features: u64, rewrite: Rewrite) {
    let begin = Instant::now();
    let mut seed = 1;
    while begin.elapsed() < TIME {
        live(arena, features, rewrite, seed);
        seed += 1;
    }
    arena.drain();
    println!("        {} lives", seed - 1);
}

fn live(arena: &mut Arena, features: u64, rewrite: Rewrite, seed: u64) {
    let mut attacker = Attacker::with(&arena.socket, features);
    attacker.transmit();
    let target = Target {
        rings: [RX, TX].map(|ring| attacker.endpoint.queues[ring].config),
        buffers: attacker.buffer(0),
    };
    let map = attacker.endpoint.map.clone();
    let rewrite = |random: &mut Random| rewrite(&map, &target, random);
    beside(seed, rewrite, || {
        for round in 0..200_u16 {
            offer(&mut attacker, features, round);
            arena.peer.send(0, &frame(ATTACKER, PEER, 200));
            arena.drain();
            let over = attacker.ring_is_stopped(TX) | attacker.ring_is_stopped(RX);
            if over || closed(&attacker.endpoint.stream) {
                break;
            }
        }
    });
    arena.peer.flush();
}

/// Does one thing while another thread rewrites.
pub(crate) fn beside(seed: u64, rewrite: impl Fn(&mut Random) + Sync, play: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(seed);
            while !stop.load(Ordering::Relaxed) {
                (0..BATCH).for_each(|_| rewrite(&mut random));
            }
        });
        // Or the rewriting would outlast a case that failed.
        let result = catch_unwind(AssertUnwindSafe(play));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|failure| resume_unwind(failure));
    });
}

/// Offers chains of one descriptor, of three, and of a table.
fn offer(attacker: &mut Attacker, features: u64, round: u16) {
    let first = round % 2 * 4;
    let at = attacker.buffer(first);
    let len = attacker.frame_at(at);
    attacker.desc(first, (at, 12, NEXT, first + 1));
    attacker.desc(first + 1, (at + 12, 20, NEXT, first + 2));
    attacker.desc(first + 2, (at + 32, len - 32, 0, 0));
    attacker.desc(first + 3, (at, len, 0, 0));
    if features & f::RING_F_INDIRECT_DESC != 0 {
        attacker.entry(TABLES, 0, (at, 12, NEXT, 1));
        attacker.entry(TABLES, 1, (at + 12, len - 12, 0, 0));
        attacker.desc(first + 3, (TABLES, 32, INDIRECT, 0));
    }
    attacker.offer(&[first, first + 3]);
}
