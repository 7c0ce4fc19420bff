//! How the cost of a frame grows with ports, addresses and queue pairs.
//!
//! `cargo bench -p vswitch --bench growth` prints nanoseconds of the worker's CPU time for a 64-byte frame. The worker
//! never polls: frames are handed over a full queue at a time, and the next ones once all have arrived, so that neither
//! waiting nor the generator counts. Memory regions are in `cargo bench -p virtio --bench ring`.

use std::time::{Duration, Instant};

use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::Guest;
use virtio::memory::GuestSlice;
use virtio::net::HEADER_LEN;
use vswitch::config::{BridgeSettings, PollMode};
use vswitch_testkit::{Net, worker_time};

const FRAME_LEN: usize = 64;
/// Frames handed over at a time, and receive buffers of each guest.
const BATCH: u16 = 256;

fn main() {
    println!("| | | ns a frame |\n|---|---|---|");
    for ports in [2, 4, 8, 16, 32, 64] {
        let time = cost(ports, 1, |frame| {
            (0, [1, u64::from(ports - 1)].map(|n| frame % n))
        });
        println!("| ports, one sending to all others | {ports} | {time:.0} |");
    }
    for addresses in [1, 100, 1000, 10_000, 100_000] {
        let time = cost(2, 1, |frame| (0, [frame % addresses, frame * 7 % addresses]));
        println!("| addresses, on each of two ports | {addresses} | {time:.0} |");
    }
    for pairs in [1_u16, 2, 4, 8] {
        let time = cost(2, pairs, |frame| {
            (
                usize::try_from(frame).unwrap_or(0) % usize::from(pairs),
                [frame % 64, 0],
            )
        });
        println!("| queue pairs of two ports | {pairs} | {time:.0} |");
    }
}

/// Sends frames from the first of `ports` guests to the others. `choose` gives a frame's queue pair, and the numbers of
/// its source and destination addresses; a destination is on port 1 + number modulo the others.
fn cost(ports: u16, pairs: u16, choose: impl Fn(u64) -> (usize, [u64; 2])) -> f64 {
    let net = Net::with(BridgeSettings {
        poll: PollMode::Never,
        fdb_size: 1 << 18,
        ..BridgeSettings::default()
    });
    let options = Options {
        pairs,
        queue_size: BATCH,
        buffer_len: 256,
        slot_len: 256,
        ..Options::default()
    };
    let mut guests: Vec<Guest> = (0..ports)
        .map(|number| net.guest_with(&format!("g{number}"), options))
        .collect();
    let mut run = Run {
        guests: &mut guests,
        sent: 0,
    };
    introduce(&net, &mut run, &choose);
    run.go(Duration::from_millis(200), &choose);
    let before = (run.sent, worker_time());
    run.go(Duration::from_secs(1), &choose);
    let spent = worker_time().saturating_sub(before.1);
    #[expect(clippy::cast_precision_loss, reason = "a few digits are printed")]
    let frames = (run.sent - before.0) as f64;
    spent.as_secs_f64() * 1e9 / frames
}

/// Lets the switch know every destination.
fn introduce(net: &Net, run: &mut Run<'_>, choose: &impl Fn(u64) -> (usize, [u64; 2])) {
    let others = run.guests.len() as u64 - 1;
    let last = (0..200_000).map(|frame| choose(frame).1[1]).max().unwrap_or(0);
    let end = Instant::now() + Duration::from_secs(10);
    // An address is learned when it is convenient, not at any price: it may take another frame.
    while net.switch.view().fdb.entries as u64 <= last {
        assert!(Instant::now() < end, "the destinations are not learned");
        for number in 0..=last {
            let guest = &mut run.guests[usize::try_from(1 + number % others).unwrap_or(1)];
            guest
                .transmit(0, 1, |slot| write(slot, 0, 0, 1, number))
                .expect("a sane ring");
            if number % u64::from(BATCH) == 0 {
                run.settle();
            }
        }
        run.settle();
    }
}

/// Writes a frame between address `source` of side `from` and address `destination` of side `to`.
fn write(slot: GuestSlice<'_>, to: u8, destination: u64, from: u8, source: u64) -> usize {
    let mut bytes = [0_u8; HEADER_LEN + FRAME_LEN];
    for (at, side, number) in [(HEADER_LEN, to, destination), (HEADER_LEN + 6, from, source)] {
        let [.., a, b, c] = number.to_be_bytes();
        bytes[at..at + 6].copy_from_slice(&[2, side, 0, a, b, c]);
    }
    bytes[HEADER_LEN + 12..HEADER_LEN + 14].copy_from_slice(&[0x88, 0xb5]);
    slot.write_from(0, &bytes)
}

/// Guests, the first of which sends.
struct Run<'a> {
    guests: &'a mut Vec<Guest>,
    sent: u64,
}

impl Run<'_> {
    /// Sends batch after batch for a while.
    fn go(&mut self, time: Duration, choose: &impl Fn(u64) -> (usize, [u64; 2])) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let pairs = self.guests[0].pairs();
            let each = usize::from(BATCH) / pairs;
            for pair in 0..pairs {
                let mut next = self.sent;
                let done = self.guests[0].transmit(pair, each, |slot| {
                    let [source, destination] = loop {
                        let (chosen, addresses) = choose(next);
                        next += 1;
                        if chosen == pair {
                            break addresses;
                        }
                    };
                    write(slot, 1, destination, 0, source)
                });
                assert_eq!(done.expect("a sane ring"), each, "the batch before was taken");
            }
            let batch = (each * pairs) as u64;
            let mut arrived = 0;
            while arrived < batch {
                arrived += self.drain();
                std::thread::yield_now();
            }
            self.guests[0].flush();
            self.sent += batch;
        }
    }

    /// Waits until everything sent was taken, and takes what arrived.
    fn settle(&mut self) {
        for guest in self.guests.iter_mut() {
            guest.flush();
        }
        self.drain();
    }

    /// Takes what arrived; gives how many.
    fn drain(&mut self) -> u64 {
        let mut taken = 0;
        for guest in self.guests.iter_mut() {
            for pair in 0..guest.pairs() {
                taken += guest
                    .endpoint
                    .receive(pair, usize::from(BATCH), |_| {})
                    .expect("a sane ring");
            }
        }
        taken as u64
    }
}
