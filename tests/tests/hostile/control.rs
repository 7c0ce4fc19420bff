//! Control queues whose commands are none, or are rewritten while they are read.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::Guest;
use netyard_testkit::tcp::Segment;
use netyard_tests::bin;
use virtio::features as f;
use virtio::memory::MemoryMap;

use crate::arena::Arena;
use crate::attacker::SIZE;
use crate::mutation::{Random, Rewrite, Target, any_word, beside, descriptors, indices, put};
use crate::{ATTACKER, Case, PEER, frame};

pub(crate) const CASES: [Case; 3] = [
    ("control queue: commands that are none", no_commands),
    (
        "control queue: commands rewritten while they are read",
        commands_rewritten,
    ),
    (
        "control queue: the ring rewritten while it is read",
        ring_rewritten,
    ),
];

const PAIRS: u16 = 2;
/// The control queue's number.
const CONTROL: usize = 2 * PAIRS as usize;
const FEATURES: u64 = f::NET_F_CTRL_VQ
    | f::NET_F_CTRL_RX
    | f::NET_F_CTRL_RX_EXTRA
    | f::NET_F_CTRL_VLAN
    | f::NET_F_CTRL_MAC_ADDR
    | f::NET_F_MQ
    | f::NET_F_RSS
    | f::NET_F_HASH_REPORT
    | f::NET_F_CTRL_GUEST_OFFLOADS
    | f::NET_F_GUEST_CSUM
    | f::NET_F_GUEST_TSO4;
/// How long each kind of rewriting goes on.
const TIME: Duration = Duration::from_millis(700);
/// Commands under way at once.
const COMMANDS: usize = 8;
/// How long they are given: the driver that breaks its own ring may never see one again.
const WAIT: Duration = Duration::from_millis(20);

/// A port whose control queue the switch serves, for the length of a case.
struct Port<'a> {
    arena: &'a mut Arena,
    socket: PathBuf,
}

impl<'a> Port<'a> {
    fn new(arena: &'a mut Arena) -> Self {
        let socket = arena.switch.run_dir().join("controlled.sock");
        bin::succeed(
            arena
                .switch
                .command()
                .args(["port", "add", "br0", "controlled", "--control-queue"])
                .args(["--queues", &PAIRS.to_string(), "--socket"])
                .arg(&socket),
        );
        Self { arena, socket }
    }

    fn guest(&self) -> Guest {
        let options = Options {
            pairs: PAIRS,
            queue_size: SIZE,
            features: Options::default().features | FEATURES,
            control: true,
            ..Options::default()
        };
        Guest::connect(&self.socket, options)
    }

    /// Asserts that a driver which behaves finds a control queue that works, and has frames arrive where it wants them.
    fn works(&mut self) {
        let mut guest = self.guest();
        assert!(guest.control(4, 0, &[2, 0]), "two queue pairs");
        guest.send(1, &frame(PEER, ATTACKER, 60));
        guest.flush();
        self.arena.drain();
        self.arena.peer.send(0, &flow(7));
        guest.expect(&flow(7));
    }

    fn remove(self) {
        bin::succeed(
            self.arena
                .switch
                .command()
                .args(["port", "del", "br0", "controlled"]),
        );
    }
}

/// Asserts that a control queue is served to a driver which behaves.
pub(crate) fn works(arena: &mut Arena) {
    let mut port = Port::new(arena);
    port.works();
    port.remove();
}

/// A frame for the attacker whose hash depends on the number.
fn flow(number: u16) -> Vec<u8> {
    Segment {
        macs: [ATTACKER, PEER],
        addresses: [[10, 0, 0, 2], [10, 0, 0, 1]],
        ports: [number, 9],
        flags: 0x10,
        payload: &[0x5a; 40],
    }
    .build()
    .1
}

/// `struct virtio_net_rss_config` for a table of two queues.
fn rss() -> Vec<u8> {
    let words: [u16; 5] = [1, 0, 0, 1, PAIRS];
    let types = 0x3f_u32.to_le_bytes();
    let words: Vec<u8> = words.into_iter().flat_map(u16::to_le_bytes).collect();
    [&[4, 1], &types[..], &words, &[40], &[0x6d; 40]].concat()
}

fn no_commands(arena: &mut Arena) {
    let mut port = Port::new(arena);
    let mut guest = port.guest();
    let whole = rss();
    let mut wide = whole.clone();
    wide[6..8].copy_from_slice(&u16::MAX.to_le_bytes());
    let mut other_queue = whole.clone();
    other_queue[10..12].copy_from_slice(&PAIRS.to_le_bytes());
    let refused: [&[u8]; 12] = [
        &[],
        &[4],
        &[99, 0],
        &[4, 0, 1],
        &[4, 0, 0, 0],
        &[4, 0, 3, 0],
        &[4, 0, 0xff, 0xff],
        // A MAC table of four thousand million addresses, and VLANs that do not exist.
        &[1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        &[2, 0, 0xff, 0xff],
        &wide,
        &other_queue,
        &whole[..whole.len() - 1],
    ];
    for request in refused {
        let answer = guest.control_chain(request, &[request.len()], 1);
        assert_eq!(answer, (1, 1), "{request:x?}");
    }
    // Without room for an answer nothing is done.
    assert_eq!(guest.control_chain(&[4, 0, 2, 0], &[4], 0).0, 0);
    // Byte by byte it is a command like any other.
    assert_eq!(guest.control_chain(&whole, &vec![1; whole.len()], 1), (1, 0));
    drop(guest);
    port.works();
    port.remove();
}

fn commands_rewritten(arena: &mut Arena) {
    rewritten(arena, |map, target, random| {
        let place = 2048 * random.below(COMMANDS as u64) + random.below(64);
        put(map, target.buffers + place, &any_word(random).to_le_bytes());
    });
}

fn ring_rewritten(arena: &mut Arena) {
    rewritten(arena, |map, target, random| {
        let kind: Rewrite = random.of(&[descriptors as Rewrite, indices]);
        kind(map, target, random);
    });
}

/// Lives of a driver, one after the other, whose control queue is rewritten while it is used.
fn rewritten(arena: &mut Arena, rewrite: Rewrite) {
    let mut port = Port::new(arena);
    let begin = Instant::now();
    let mut lives = 0;
    while begin.elapsed() < TIME {
        lives += 1;
        live(&mut port, rewrite, lives);
    }
    println!("        {lives} lives");
    port.works();
    port.remove();
}

fn live(port: &mut Port<'_>, rewrite: Rewrite, seed: u64) {
    let mut guest = port.guest();
    let config = guest.queues[CONTROL].config;
    let target = Target {
        rings: [config; 2],
        buffers: guest.queues[CONTROL].buffer(0).addr,
    };
    let map = guest.map.clone();
    let rewrite = |random: &mut Random| rewrite(&map, &target, random);
    guest.send(0, &frame(PEER, ATTACKER, 60));
    beside(seed, rewrite, || {
        for round in 0..50_u16 {
            for number in 0..8 {
                port.arena.peer.send(0, &flow(8 * round + number));
            }
            let goes_on = command(&mut guest, &map);
            port.arena.drain();
            for pair in 0..usize::from(PAIRS) {
                while guest.try_receive(pair).is_some() {}
            }
            if !goes_on {
                break;
            }
        }
    });
    port.arena.peer.flush();
}

/// Gives commands of every class, and waits for them; false when the ring is none any more.
fn command(guest: &mut Guest, map: &MemoryMap) -> bool {
    let commands: [&[u8]; COMMANDS] = [
        &[0, 0, 1],
        &[
            1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0xe, 1, 0, 0, 0, 1, 0, 0x5e, 0, 0, 1,
        ],
        &[2, 0, 7, 0],
        &[4, 0, 2, 0],
        &rss(),
        &[4, 0, 1, 0],
        &[5, 0, 2, 0, 0, 0, 0, 0, 0, 0],
        &[1, 1, 2, 0, 0, 0, 0, 0xe],
    ];
    let queue = &mut guest.queues[CONTROL];
    for request in commands {
        let Some(slot) = queue.free.pop() else { break };
        let whole = queue.buffer(slot);
        put(map, whole.addr, request);
        let readable = virtio::split::driver::Buffer {
            len: u32::try_from(request.len()).expect("a short command"),
            ..whole
        };
        let writable = virtio::split::driver::Buffer {
            addr: whole.addr + 1024,
            len: 1,
        };
        if queue
            .driver
            .push(&[readable], &[writable], u64::from(slot))
            .is_err()
        {
            return false;
        }
    }
    queue.publish().expect("room in an eventfd");
    let begin = Instant::now();
    while begin.elapsed() < WAIT {
        match queue.reclaim() {
            Ok(()) if queue.driver.in_flight() == 0 => return true,
            Ok(()) => std::thread::yield_now(),
            Err(_) => return false,
        }
    }
    false
}
