//! Two guests that have nothing to do with any attack, and exchange numbered frames throughout.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::{Guest, wait_for};

use crate::frame;

/// Frames under way in each direction: far fewer than the receiver posts buffers for, so that none has a reason to be lost.
const WINDOW: u64 = 32;
/// How long the switch may take over one window. Attacks last less, and the machine is shared.
const STALL: Duration = Duration::from_secs(10);
/// Frames that have to come through after an attack.
const PROOF: u64 = 500;
const TYPE: [u8; 2] = [0x88, 0xb6];

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    received: AtomicU64,
    foreign: AtomicU64,
}

/// The two, on a thread of their own. Whatever goes wrong with a frame ends the thread by a panic.
#[derive(Debug)]
pub(crate) struct Bystanders {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Bystanders {
    pub(crate) fn start(sockets: [PathBuf; 2]) -> Self {
        let shared = Arc::new(Shared::default());
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                let options = Options {
                    // Room for what an attack floods, as well.
                    queue_size: 8192,
                    ..Options::default()
                };
                Pair::new(sockets.map(|socket| Guest::connect(&socket, options))).run(&shared);
            })
        };
        let bystanders = Self {
            shared,
            thread: Some(thread),
        };
        bystanders.go_on();
        bystanders
    }

    /// Asserts that frames still come through, none lost.
    pub(crate) fn go_on(&self) {
        let until = self.shared.received.load(Ordering::Relaxed) + PROOF;
        wait_for("frames between the bystanders", || {
            assert!(
                self.thread.as_ref().is_some_and(|thread| !thread.is_finished()),
                "a frame between the bystanders was lost"
            );
            self.shared.received.load(Ordering::Relaxed) >= until
        });
    }

    /// Frames of others, flooded to both.
    pub(crate) fn foreign(&self) -> u64 {
        self.shared.foreign.load(Ordering::Relaxed)
    }

    /// Ends them; returns how many frames they exchanged without losing one.
    pub(crate) fn stop(mut self) -> u64 {
        self.end().expect("no frame between the bystanders is lost");
        self.shared.received.load(Ordering::Relaxed)
    }

    fn end(&mut self) -> std::thread::Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl Drop for Bystanders {
    fn drop(&mut self) {
        // A test that failed has said why; this only sees to it that the thread does not go on without a switch.
        let _ = self.end();
    }
}

struct Pair {
    guests: [Guest; 2],
    sent: [u64; 2],
    received: [u64; 2],
}

impl Pair {
    fn new(guests: [Guest; 2]) -> Self {
        let mut pair = Self {
            guests,
            sent: [0; 2],
            received: [0; 2],
        };
        // Each makes itself known, or the first frames would be flooded to everyone.
        for at in 0..2 {
            pair.send(at, 0);
        }
        for at in 0..2 {
            pair.guests[at].receive();
        }
        pair
    }

    fn send(&mut self, from: usize, number: u64) {
        let mut bytes = frame(macs()[1 - from], macs()[from], 60);
        bytes[12..14].copy_from_slice(&TYPE);
        bytes[14..22].copy_from_slice(&number.to_be_bytes());
        self.guests[from].send(0, &bytes);
    }

    fn run(mut self, shared: &Shared) {
        let mut last = Instant::now();
        while !shared.stop.load(Ordering::Relaxed) {
            let mut moved = 0;
            for from in 0..2 {
                while self.sent[from] - self.received[1 - from] < WINDOW {
                    self.send(from, self.sent[from]);
                    self.sent[from] += 1;
                }
                moved += self.receive(1 - from, shared);
            }
            if moved > 0 {
                last = Instant::now();
                shared.received.fetch_add(moved, Ordering::Relaxed);
            } else {
                assert!(last.elapsed() < STALL, "the switch stands still, or lost a frame");
                std::thread::yield_now();
            }
        }
    }

    fn receive(&mut self, at: usize, shared: &Shared) -> u64 {
        let mut moved = 0;
        while let Some(received) = self.guests[at].try_receive(0) {
            if received.frame[12..14] != TYPE {
                shared.foreign.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let number = u64::from_be_bytes(received.frame[14..22].try_into().expect("eight bytes"));
            assert_eq!(number, self.received[at], "a frame was lost, or came twice");
            self.received[at] += 1;
            moved += 1;
        }
        moved
    }
}

/// Their addresses.
pub(crate) fn macs() -> [[u8; 6]; 2] {
    [[2, 0, 0, 0, 0, 0xa], [2, 0, 0, 0, 0, 0xb]]
}
