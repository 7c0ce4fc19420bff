//! One switch for all attacks: the port that is attacked, a peer that its frames go to, and the bystanders.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::{DEADLINE, Guest, wait_for};
use netyard_tests::switch::Switch;
use virtio::features as f;

use crate::bystanders::Bystanders;
use crate::{ATTACKER, BROADCAST, PEER, control, frame};

/// How much larger the switch may be at the end: what an allocator keeps.
const GROWTH: u64 = 8 << 20;

/// Resources of the switch's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Usage {
    descriptors: usize,
    threads: usize,
    mappings: usize,
}

impl Usage {
    /// Whether nothing was left. Fewer is fine: threads that serve the command line end when there is nothing to do.
    fn is_within(self, baseline: Self) -> bool {
        self.descriptors <= baseline.descriptors
            && self.threads <= baseline.threads
            && self.mappings <= baseline.mappings
    }
}

pub(crate) struct Arena {
    pub(crate) switch: Switch,
    /// The socket of the port that is attacked.
    pub(crate) socket: PathBuf,
    /// A guest that minds its business, and has no offloads.
    pub(crate) peer: Guest,
    pub(crate) bystanders: Bystanders,
    pid: String,
    baseline: Usage,
    resident: u64,
}

impl Arena {
    pub(crate) fn new() -> Self {
        let switch = Switch::up("br0", &[]);
        let sockets = ["a", "b"].map(|name| switch.add_port(name, 1));
        let bystanders = Bystanders::start(sockets);
        let socket = switch.add_port("victim", 1);
        let mut peer = Guest::connect(&switch.add_port("peer", 1), Options::default());
        peer.send(0, &frame(BROADCAST, PEER, 60));
        peer.flush();
        let pid = switch.show()["pid"].to_string();
        let mut arena = Self {
            switch,
            socket,
            peer,
            bystanders,
            baseline: usage(&pid),
            resident: 0,
            pid,
        };
        // Once with everything, so that what is allocated only once is.
        arena.works();
        control::works(&mut arena);
        wait_for("the switch to see the front-end go", || {
            arena.switch.port("victim")["connected"] == false
        });
        arena.settle_baseline();
        arena
    }

    /// Takes what is in use now, when nobody asks the switch for anything, as what has to be in use in the end.
    fn settle_baseline(&mut self) {
        let mut since = Instant::now();
        while since.elapsed() < Duration::from_millis(100) {
            std::thread::sleep(Duration::from_millis(5));
            let now = usage(&self.pid);
            if std::mem::replace(&mut self.baseline, now) != now {
                since = Instant::now();
            }
        }
        self.resident = resident(&self.pid);
    }

    /// The attacked port's counter of frames dropped for `reason`.
    pub(crate) fn drops(&self, reason: &str) -> u64 {
        self.switch.port("victim")["counters"]["drops"][reason]
            .as_u64()
            .unwrap_or(0)
    }

    /// How many descriptors the switch has open.
    pub(crate) fn descriptors(&self) -> usize {
        usage(&self.pid).descriptors
    }

    /// Waits until the switch holds nothing of the last front-end.
    pub(crate) fn rests(&self) {
        let begin = Instant::now();
        while !usage(&self.pid).is_within(self.baseline) {
            assert!(
                begin.elapsed() < DEADLINE,
                "the front-end left something: {:?}, {:?} before",
                usage(&self.pid),
                self.baseline
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Asserts that the attacked port serves the next front-end.
    pub(crate) fn works(&mut self) {
        let options = Options {
            features: Options::default().features | f::RING_F_INDIRECT_DESC,
            ..Options::default()
        };
        let mut guest = Guest::connect(&self.socket, options);
        self.drain();
        let hello = frame(PEER, ATTACKER, 77);
        guest.send(0, &hello);
        self.peer.expect(&hello);
        let answer = frame(ATTACKER, PEER, 78);
        self.peer.send(0, &answer);
        wait_for("the peer's answer", || {
            std::iter::from_fn(|| guest.try_receive(0)).any(|received| received.frame == answer)
        });
    }

    /// Takes what the peer still has of an attack.
    pub(crate) fn drain(&mut self) {
        while self.peer.try_receive(0).is_some() {}
    }

    /// Asserts that all is as if nothing had happened.
    pub(crate) fn recovers(&mut self) {
        self.bystanders.go_on();
        self.rests();
        self.works();
        self.rests();
    }

    /// Asserts that nothing was lost and nothing is left; says how much went between the bystanders.
    pub(crate) fn end(self) -> u64 {
        let resident = resident(&self.pid);
        assert!(
            resident < self.resident + GROWTH,
            "the switch grew from {} to {resident} bytes",
            self.resident
        );
        self.bystanders.stop()
    }
}

fn usage(pid: &str) -> Usage {
    let count = |what: &str| {
        fs::read_dir(format!("/proc/{pid}/{what}"))
            .expect("the switch lives")
            .count()
    };
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the switch lives");
    Usage {
        descriptors: count("fd"),
        threads: count("task"),
        mappings: maps.lines().filter(|line| line.contains("memfd:")).count(),
    }
}

/// Resident memory in bytes, without what is shared with guests.
fn resident(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the switch lives");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .expect("a count of resident memory");
    line.trim()
        .trim_end_matches(" kB")
        .parse::<u64>()
        .expect("a number")
        << 10
}
