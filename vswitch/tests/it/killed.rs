//! A bridge whose daemon is killed under load: the next one goes on with the rings as the dead one left them.

use crate::support::host::Host;
use crate::support::net::{BROADCAST, frame, mac};
use netyard_testkit::endpoint::Options;
use netyard_testkit::guest::{Guest, wait_for};
use virtio::features as f;

const SPLIT: u64 = f::VERSION_1 | f::NET_F_MRG_RXBUF | f::RING_F_EVENT_IDX;
/// Frames that a worker takes at a time.
const BURST: u32 = 64;
/// Frames under way at most: fewer than the receiver has room for, more than can be lost.
const WINDOW: u32 = 120;
const KILLS: u32 = 4;

/// A flow of numbered frames.
struct Flow {
    from: Guest,
    to: Guest,
    sent: u32,
    /// The number expected next.
    next: u32,
    lost: u32,
    repeated: u32,
}

impl Flow {
    /// Sends as many frames as the receiver has room for, and takes what came.
    fn step(&mut self) {
        let Self { from, sent, next, .. } = self;
        let room = WINDOW.saturating_sub(*sent - *next);
        from.endpoint
            .transmit(0, room as usize, |slot| {
                let mut bytes = frame(mac(2), mac(1), 0, 200);
                bytes[60..64].copy_from_slice(&sent.to_be_bytes());
                slot.write_from(0, &[0; virtio::net::HEADER_LEN]);
                *sent += 1;
                virtio::net::HEADER_LEN + slot.write_from(virtio::net::HEADER_LEN, &bytes)
            })
            .unwrap();
        self.take();
    }

    fn take(&mut self) {
        while self.from.try_receive(0).is_some() {}
        while let Some(got) = self.to.try_receive(0) {
            if got.frame.len() != 200 {
                continue;
            }
            let number = u32::from_be_bytes(*got.frame[60..].first_chunk().unwrap());
            if number < self.next {
                self.repeated += 1;
                assert!(
                    self.next - number <= BURST,
                    "{number} came again before {}",
                    self.next
                );
                continue;
            }
            self.lost += number - self.next;
            self.next = number + 1;
        }
    }

    /// Takes everything that is still under way.
    fn settle(&mut self) {
        wait_for("what was sent to be taken", || {
            self.take();
            self.from.in_flight(0).unwrap() == 0
        });
        // A last frame, behind which nothing can be.
        let last = self.sent;
        wait_for("the last frame", || {
            self.step();
            self.next > last
        });
    }
}

/// Kills the daemon again and again in the middle of a flow.
fn goes_on(options: Options) {
    let host = Host::new();
    let up = || host.ok(&["up", "br0"]);
    up();
    for name in ["a", "b"] {
        host.ok(&["port", "add", "br0", name]);
    }
    let connect = |name| Guest::connect(&host.socket(name), options);
    let mut flow = Flow {
        from: connect("a"),
        to: connect("b"),
        sent: 0,
        next: 0,
        lost: 0,
        repeated: 0,
    };
    flow.to.send(0, &frame(BROADCAST, mac(2), 0, 60));
    for round in 0..KILLS {
        let goal = flow.next + 2_000 + round * 97;
        wait_for("frames to pass", || {
            flow.step();
            flow.next >= goal
        });
        std::thread::scope(|scope| {
            let kill = scope.spawn(|| host.kill("br0"));
            while !kill.is_finished() {
                flow.step();
            }
        });
        // What the dead one had delivered.
        flow.take();
        let (lost, repeated) = (flow.lost, flow.repeated);
        up();
        // The receiver first: until it is there, its frames are nobody's.
        flow.to.reconnect(&host.socket("b"));
        flow.to.send(0, &frame(BROADCAST, mac(2), 0, 60));
        flow.from.reconnect(&host.socket("a"));
        flow.settle();
        let (lost, repeated) = (flow.lost - lost, flow.repeated - repeated);
        eprintln!("lost {lost}, repeated {repeated}");
        assert!(lost <= BURST, "{lost} frames lost");
        assert!(repeated == 0 || !options.inflight, "{repeated} frames came twice");
    }
    // Every buffer is still there: the rings go round and round.
    let goal = flow.next + 5_000;
    wait_for("frames to pass", || {
        flow.step();
        flow.next >= goal
    });
}

#[test]
fn split_rings_go_on() {
    for inflight in [false, true] {
        goes_on(Options {
            features: SPLIT,
            inflight,
            ..Options::default()
        });
    }
}

#[test]
fn packed_rings_go_on_though_nobody_knows_where_they_were() {
    for (features, buffer_len) in [
        (SPLIT | f::RING_PACKED, 2048),
        (SPLIT | f::RING_PACKED | f::IN_ORDER, 128),
    ] {
        goes_on(Options {
            features,
            buffer_len,
            inflight: buffer_len == 128,
            ..Options::default()
        });
    }
}
