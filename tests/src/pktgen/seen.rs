//! Taking note of what arrives.

use std::time::Duration;

use hdrhistogram::Histogram;
use virtio::net::HEADER_LEN;

use super::clock::Clock;
use super::frame::{self, Mark};
use super::outcome::{Outcome, StreamOutcome, histogram};
use super::port::{AHEAD, Port, PortError};
use super::sequence::Sequence;
use super::stream::{Destination, Stream};

/// Which port a stream's frames belong at.
#[derive(Debug, Clone, Copy)]
enum Target {
    Port(u16),
    AllBut(u16),
}

/// Frames of one stream that were sent at the same time and arrived together, numbered one after another.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    stream: u16,
    sent_ns: u64,
    first: u32,
    count: u32,
}

impl Run {
    /// Adds the next frame, if that is what it is.
    #[inline]
    fn join(&mut self, mark: Mark) -> bool {
        let next = mark.stream == self.stream
            && mark.sent_ns == self.sent_ns
            && mark.sequence == self.first.wrapping_add(self.count)
            && self.count > 0;
        self.count += u32::from(next);
        next
    }
}

/// When frames of a stream arrived, in nanoseconds since the run began.
#[derive(Debug, Clone, Copy, Default)]
struct Arrivals {
    last: Option<u64>,
    longest_silence: u64,
    /// When the frame after the last gap was sent.
    last_gap: Option<u64>,
}

/// What has arrived.
pub(super) struct Seen {
    targets: Vec<Target>,
    /// Where the stream's sequences begin: one, or one for each port.
    first: Vec<usize>,
    sequences: Vec<Sequence>,
    latency: Vec<Histogram<u64>>,
    arrivals: Vec<Arrivals>,
    misdelivered: u64,
    octets: u64,
}

impl Seen {
    pub(super) fn new(ports: usize, streams: &[Stream]) -> Self {
        let mut sequences = Vec::new();
        let mut first = Vec::new();
        for stream in streams {
            first.push(sequences.len());
            let count = if stream.to == Destination::Broadcast {
                ports
            } else {
                1
            };
            sequences.resize_with(sequences.len() + count, Sequence::default);
        }
        let target = |stream: &Stream| match stream.to {
            Destination::Port(port) => Target::Port(port),
            Destination::Broadcast => Target::AllBut(stream.from),
        };
        Self {
            targets: streams.iter().map(target).collect(),
            first,
            sequences,
            latency: streams.iter().map(|_| histogram()).collect(),
            arrivals: vec![Arrivals::default(); streams.len()],
            misdelivered: 0,
            octets: 0,
        }
    }

    /// Takes what has arrived at `port`, number `number`, at most `limit` frames a queue pair; gives how many.
    pub(super) fn collect(
        &mut self,
        number: u16,
        port: &mut Port,
        limit: usize,
        clock: &Clock,
    ) -> Result<usize, PortError> {
        let mut sum = 0;
        for pair in 0..port.pairs() {
            // The clock is read once a burst, and not for an empty queue.
            let mut now = None;
            let mut run = Run::default();
            sum += port.receive(pair, limit.min(AHEAD), |slot, len| {
                let now = *now.get_or_insert_with(|| nanoseconds(clock.read()));
                self.octets += len.saturating_sub(HEADER_LEN) as u64;
                let Some(mark) = frame::mark_of(slot) else { return };
                if !run.join(mark) {
                    self.record(number, run, now);
                    run = Run {
                        stream: mark.stream,
                        sent_ns: mark.sent_ns,
                        first: mark.sequence,
                        count: 1,
                    };
                }
            })?;
            if let Some(now) = now {
                self.record(number, run, now);
            }
        }
        Ok(sum)
    }

    /// Notes that frames arrived at port `here`.
    fn record(&mut self, here: u16, run: Run, now: u64) {
        if run.count == 0 {
            return;
        }
        let stream = usize::from(run.stream);
        let place = match self.targets.get(stream) {
            Some(Target::Port(port)) if *port == here => self.first[stream],
            Some(Target::AllBut(from)) if *from != here => self.first[stream] + usize::from(here),
            _ => {
                self.misdelivered += u64::from(run.count);
                return;
            }
        };
        let arrivals = &mut self.arrivals[stream];
        if self.sequences[place].see_run(run.first, run.count) {
            arrivals.last_gap = Some(run.sent_ns);
        }
        let latency = now.saturating_sub(run.sent_ns).max(1);
        self.latency[stream].saturating_record_n(latency, u64::from(run.count));
        if let Some(last) = arrivals.last {
            arrivals.longest_silence = arrivals.longest_silence.max(now.saturating_sub(last));
        }
        arrivals.last = Some(now);
    }

    /// The outcome of streams of which so many frames were `sent`.
    pub(super) fn outcome(
        self,
        streams: &[Stream],
        sent: &[u64],
        elapsed: Duration,
        ports: usize,
    ) -> Outcome {
        let mut latency = self.latency.into_iter();
        let streams = streams
            .iter()
            .zip(sent)
            .enumerate()
            .map(|(index, (stream, sent))| {
                let count = if stream.to == Destination::Broadcast {
                    ports
                } else {
                    1
                };
                let sequences = &self.sequences[self.first[index]..self.first[index] + count];
                let sum = |of: fn(&Sequence) -> u64| sequences.iter().map(of).sum::<u64>();
                let receivers = if stream.to == Destination::Broadcast {
                    ports - 1
                } else {
                    1
                };
                let received = sum(|sequence| sequence.received);
                let arrivals = self.arrivals[index];
                StreamOutcome {
                    sent: *sent,
                    received,
                    lost: (sent * receivers as u64).saturating_sub(received),
                    duplicates: sum(|sequence| sequence.duplicates),
                    reordered: sum(|sequence| sequence.reordered),
                    latency: latency.next().unwrap_or_else(histogram),
                    last_gap: arrivals.last_gap.map(Duration::from_nanos),
                    longest_silence: Duration::from_nanos(arrivals.longest_silence),
                }
            });
        Outcome {
            streams: streams.collect(),
            misdelivered: self.misdelivered,
            octets: self.octets,
            elapsed,
            waited: 0.0,
        }
    }
}

pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
