//! How fast frames go from one guest to another: two ports of one switch, and this thread as both guests.
//!
//! `cargo bench -p vswitch` prints frames per second, nanoseconds per frame of wall time, and nanoseconds of
//! the worker's CPU time per frame, for each frame size, with and without mergeable buffers. An argument limits
//! it to the cases whose name contains it; `--seconds N` sets the time for each.

use std::time::{Duration, Instant};

use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::{Guest, wait_for};
use virtio::features as f;
use virtio::net::HEADER_LEN;
use virtio::rss::{KEY_LEN, SUPPORTED};
use vswitch::config::{BridgeSettings, PollMode};
use vswitch::model::NewPort;
use vswitch_testkit::{BROADCAST, Net, frame, mac, udp, worker_time};

/// Frames handed over at a time.
const BURST: usize = 64;

struct Case {
    name: &'static str,
    frame_len: usize,
    features: u64,
    poll: PollMode,
    hashing: Hashing,
}

/// What the receiver has the switch do with hashes of its frames.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hashing {
    Nothing,
    /// It is told them.
    Reported,
    /// They choose the queue pair.
    Steered,
}

const CASES: [Case; 9] = [
    Case {
        name: "64 bytes",
        frame_len: 64,
        features: f::NET_F_MRG_RXBUF | f::RING_F_EVENT_IDX,
        poll: PollMode::Always,
        hashing: Hashing::Nothing,
    },
    Case {
        name: "64 bytes, one buffer",
        frame_len: 64,
        features: f::RING_F_EVENT_IDX,
        poll: PollMode::Always,
        hashing: Hashing::Nothing,
    },
    Case {
        name: "64 bytes, adaptive",
        frame_len: 64,
        features: f::NET_F_MRG_RXBUF | f::RING_F_EVENT_IDX,
        poll: PollMode::Adaptive,
        hashing: Hashing::Nothing,
    },
    Case {
        name: "64 bytes, packed",
        frame_len: 64,
        features: f::NET_F_MRG_RXBUF | f::RING_F_EVENT_IDX | f::RING_PACKED,
        poll: PollMode::Adaptive,
        hashing: Hashing::Nothing,
    },
    Case {
        name: "64 bytes, hash reported",
        frame_len: 64,
        features: f::NET_F_MRG_RXBUF | f::RING_F_EVENT_IDX,
        poll: PollMode::Adaptive,
        hashing: Hashing::Reported,
    },
    Case {
        name: "64 bytes, pair by hash",
        frame_len: 64,
        features: f::NET_F_MRG_RXBUF | f::RING_F_EVENT_IDX,
        poll: PollMode::Adaptive,
        hashing: Hashing::Steered,
    },
    Case {
        name: "512 bytes",
        frame_len: 512,
        features: f::NET_F_MRG_RXBUF | f::RING_F_EVENT_IDX,
        poll: PollMode::Always,
        hashing: Hashing::Nothing,
    },
    Case {
        name: "1518 bytes",
        frame_len: 1518,
        features: f::NET_F_MRG_RXBUF | f::RING_F_EVENT_IDX,
        poll: PollMode::Always,
        hashing: Hashing::Nothing,
    },
    Case {
        name: "1518 bytes, one buffer",
        frame_len: 1518,
        features: f::RING_F_EVENT_IDX,
        poll: PollMode::Always,
        hashing: Hashing::Nothing,
    },
];

fn main() {
    let mut wanted = String::new();
    let mut time = Duration::from_secs(2);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {}
            "--seconds" => {
                let seconds = arguments.next().and_then(|text| text.parse().ok());
                time = Duration::from_secs_f64(seconds.expect("--seconds needs a number"));
            }
            name => name.clone_into(&mut wanted),
        }
    }
    println!(
        "{:<24} {:>12} {:>10} {:>14} {:>8}",
        "case", "frames/s", "ns/frame", "worker ns/frame", "drops"
    );
    for case in CASES.iter().filter(|case| case.name.contains(&wanted)) {
        run(case, time);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a few digits are printed")]
fn run(case: &Case, time: Duration) {
    let net = Net::with(BridgeSettings {
        poll: case.poll,
        ..BridgeSettings::default()
    });
    let options = || Options {
        features: f::VERSION_1 | case.features,
        queue_size: 1024,
        ..Options::default()
    };
    let mut from = net.guest_with("from", options());
    let mut to = match case.hashing {
        Hashing::Nothing => net.guest_with("to", options()),
        _ => hashing_guest(&net, options(), case.hashing),
    };
    for (number, guest) in [(1, &mut from), (2, &mut to)] {
        guest.send(0, &frame(BROADCAST, mac(number), 0, 60));
    }
    from.receive();
    to.receive();
    let mut sent = udp(2, 1, [1, 2], 0);
    sent.resize(case.frame_len, 7);
    fill(&mut from, &sent);
    pump(&mut from, &mut to, case.frame_len, Duration::from_millis(200));
    let before = (net.port("to").counters.tx_frames, worker_time());
    let took = pump(&mut from, &mut to, case.frame_len, time);
    let view = net.port("to");
    let frames = view.counters.tx_frames - before.0;
    let worker = worker_time().saturating_sub(before.1);
    let per_frame = |time: Duration| time.as_secs_f64() * 1e9 / frames as f64;
    println!(
        "{:<24} {:>12.0} {:>10.1} {:>14.1} {:>8}",
        case.name,
        frames as f64 / took.as_secs_f64(),
        per_frame(took),
        per_frame(worker),
        net.total_drops("to") + net.total_drops("from"),
    );
}

/// A guest that has asked through its control queue for what is to be done with hashes.
fn hashing_guest(net: &Net, options: Options, hashing: Hashing) -> Guest {
    let (pairs, feature) = match hashing {
        Hashing::Steered => (2, f::NET_F_MQ | f::NET_F_RSS),
        Hashing::Nothing | Hashing::Reported => (1, f::NET_F_HASH_REPORT),
    };
    let port = NewPort {
        control_queue: true,
        ..net.new_port("to", pairs)
    };
    net.switch.add_port(&port).expect("a port");
    let mut guest = Guest::connect(
        &net.socket("to"),
        Options {
            pairs,
            control: true,
            features: options.features | feature | f::NET_F_CTRL_VQ,
            ..options
        },
    );
    wait_for("the guest", || net.port("to").enabled_queue_pairs == 1);
    let key = [0x6d; KEY_LEN];
    let types = SUPPORTED.to_le_bytes();
    let key_len = [u8::try_from(KEY_LEN).expect("a short key")];
    let done = match hashing {
        // A table of two entries for the first pair, as the frames are received there; as many pairs for sending.
        Hashing::Steered => {
            let words = [1_u16, 0, 0, 0, 2].map(u16::to_le_bytes).concat();
            guest.control(4, 1, &[&types[..], &words, &key_len, &key].concat())
        }
        Hashing::Nothing | Hashing::Reported => {
            guest.control(4, 2, &[&types[..], &[0; 8], &key_len, &key].concat())
        }
    };
    assert!(done, "hashes are refused");
    guest
}

/// Keeps the sender's queue full and the receiver's supplied.
fn pump(from: &mut Guest, to: &mut Guest, frame_len: usize, time: Duration) -> Duration {
    let start = Instant::now();
    let mut rounds = 0_u32;
    loop {
        let moved = from
            .transmit(0, BURST, |_| HEADER_LEN + frame_len)
            .expect("a sane ring")
            + to.endpoint.receive(0, BURST, |_| {}).expect("a sane ring");
        if moved == 0 {
            std::thread::yield_now();
        }
        rounds += 1;
        if rounds.is_multiple_of(64) && start.elapsed() >= time {
            return start.elapsed();
        }
    }
}

/// Writes the same frame into every transmit slot.
fn fill(guest: &mut Guest, frame: &[u8]) {
    guest.flush();
    let bytes = [&[0; 12][..], frame].concat();
    for slot in 0..guest.options.queue_size {
        let buffer = guest.queues[1].buffer(slot);
        guest
            .map
            .slice(buffer.addr, bytes.len())
            .expect("a slot")
            .write_from(0, &bytes);
    }
}
