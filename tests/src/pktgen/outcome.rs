//! What became of the frames of a run.

use std::time::Duration;

use hdrhistogram::Histogram;

/// What became of one stream.
#[derive(Debug, Clone)]
pub struct StreamOutcome {
    /// Frames sent.
    pub sent: u64,
    /// Frames received where they belong, duplicates not counted; of a broadcast, at all ports together.
    pub received: u64,
    /// Frames that should have arrived and did not.
    pub lost: u64,
    /// Frames that came again.
    pub duplicates: u64,
    /// Frames that came after a later one.
    pub reordered: u64,
    /// Nanoseconds from sending to receiving.
    pub latency: Histogram<u64>,
    /// When the frame after the last gap in the sequence was sent.
    pub last_gap: Option<Duration>,
    /// The longest time between two arrivals.
    pub longest_silence: Duration,
}

/// What became of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// By stream.
    pub streams: Vec<StreamOutcome>,
    /// Frames of ours that arrived at a port that they were not for.
    pub misdelivered: u64,
    /// Octets received, without virtio-net headers.
    pub octets: u64,
    /// From the first frame sent to the last sent.
    pub elapsed: Duration,
    /// The share of the time in which the generator could neither send nor take anything: it waited for the back-end, or for when
    /// the next frame was due.
    pub waited: f64,
}

impl Outcome {
    /// Frames sent by all streams.
    pub fn sent(&self) -> u64 {
        self.streams.iter().map(|stream| stream.sent).sum()
    }

    /// Frames received by all streams.
    pub fn received(&self) -> u64 {
        self.streams.iter().map(|stream| stream.received).sum()
    }

    /// Frames lost by all streams.
    pub fn lost(&self) -> u64 {
        self.streams.iter().map(|stream| stream.lost).sum()
    }

    /// Frames received a second.
    pub fn rate(&self) -> f64 {
        as_f64(self.received()) / self.seconds()
    }

    /// Frames sent a second.
    pub fn offered(&self) -> f64 {
        as_f64(self.sent()) / self.seconds()
    }

    /// Bits received a second.
    pub fn bits(&self) -> f64 {
        as_f64(self.octets) * 8.0 / self.seconds()
    }

    fn seconds(&self) -> f64 {
        self.elapsed.as_secs_f64().max(1e-9)
    }

    /// The share of frames lost, from 0 to 1.
    pub fn loss(&self) -> f64 {
        let expected = self.received() + self.lost();
        as_f64(self.lost()) / as_f64(expected.max(1))
    }

    /// The latency of all streams together.
    pub fn latency(&self) -> Histogram<u64> {
        let mut all = histogram();
        for stream in &self.streams {
            // All have the same bounds, so adding cannot fail.
            let _ = all.add(&stream.latency);
        }
        all
    }
}

/// A count as a number to calculate with.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts below 2⁵³ are exact, and none of a run comes near"
)]
pub fn as_f64(count: u64) -> f64 {
    count as f64
}

/// A histogram of latencies: up to a minute, to a hundredth.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 2).expect("bounds in order and two digits")
}
