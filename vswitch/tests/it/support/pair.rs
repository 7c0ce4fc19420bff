//! A flow whose every frame has to arrive, in order.

use netyard_testkit::guest::{Guest, wait_for};

use super::net::{BROADCAST, frame, mac};

/// Numbers of the addresses that the two have.
const SENDER: u8 = 1;
const RECEIVER: u8 = 2;
/// Frames on their way at a time: fewer than there are buffers for.
const WINDOW: u32 = 64;

/// Two guests, one of which sends to the other.
pub(crate) struct Pair {
    pub(crate) from: Guest,
    pub(crate) to: Guest,
    sent: u32,
    received: u32,
}

impl Pair {
    pub(crate) fn new(from: Guest, to: Guest) -> Self {
        Self {
            from,
            to,
            sent: 0,
            received: 0,
        }
    }

    /// Has the bridge learn the receiver's address.
    pub(crate) fn meet(&mut self) {
        let hello = frame(BROADCAST, mac(RECEIVER), 1, 60);
        self.to.send(0, &hello);
        self.from.expect(&hello);
    }

    /// Sends as much as is allowed and takes what came, which must be complete and in order.
    pub(crate) fn step(&mut self) {
        while self.sent - self.received < WINDOW {
            let mut bytes = frame(mac(RECEIVER), mac(SENDER), 0, 200);
            bytes[60..64].copy_from_slice(&self.sent.to_be_bytes());
            self.from.send(0, &bytes);
            self.sent += 1;
        }
        self.take();
    }

    fn take(&mut self) {
        // Both see what is flooded, too.
        while self.from.try_receive(0).is_some() {}
        while let Some(got) = self.to.try_receive(0) {
            if got.frame[..6] != mac(RECEIVER).octets() {
                continue;
            }
            assert_eq!(
                got.frame[60..64],
                self.received.to_be_bytes(),
                "lost, or out of order"
            );
            self.received += 1;
        }
    }

    /// Frames sent so far.
    pub(crate) fn sent(&self) -> u32 {
        self.sent
    }

    /// Takes what is still under way; returns how many frames have passed in all.
    pub(crate) fn settle(&mut self) -> u32 {
        wait_for("the last frames", || {
            self.take();
            self.received == self.sent
        });
        self.received
    }

    /// Runs until so many more frames have passed.
    pub(crate) fn run(&mut self, frames: u32) {
        let goal = self.received + frames;
        wait_for("frames to pass", || {
            self.step();
            self.received >= goal
        });
    }
}
