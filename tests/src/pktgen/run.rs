//! Running streams and seeing what arrives.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::endpoint::{Endpoint, EndpointError};
use super::frame::{self, Mark, Template};
use super::sequence::Sequence;
use super::stream::Stream;

/// Frames handed over at once.
const BURST: usize = 32;
/// How long nothing may arrive, after the last frame was sent, before what is missing counts as lost.
const QUIET: Duration = Duration::from_millis(50);

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
}

/// What became of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// By stream.
    pub streams: Vec<StreamOutcome>,
    /// Frames of ours that arrived at a port that they were not for.
    pub misdelivered: u64,
    /// From the first frame sent to the last sent.
    pub elapsed: Duration,
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
        as_f64(self.received()) / self.elapsed.as_secs_f64().max(1e-9)
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
pub(super) fn as_f64(count: u64) -> f64 {
    count as f64
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds in order and three digits")
}

/// A stream that is being sent.
struct Sending {
    templates: Vec<Template>,
    next_template: usize,
    sent: u64,
    pair: usize,
}

/// Lets every port send a few frames, so that a learning switch knows where each is.
pub fn teach(ports: &mut [Endpoint]) -> Result<(), EndpointError> {
    let streams: Vec<Stream> = (0..ports.len())
        .map(|port| {
            let from = u16::try_from(port).unwrap_or(0);
            let mut stream = Stream::between(from, from, frame::SHORTEST);
            stream.to = super::stream::Destination::Broadcast;
            stream.limit = Some(4);
            stream
        })
        .collect();
    run(ports, &streams, Duration::from_secs(1)).map(drop)
}

/// Runs `streams` for `duration`, or until each has reached its limit, and waits for what is under way.
pub fn run(ports: &mut [Endpoint], streams: &[Stream], duration: Duration) -> Result<Outcome, EndpointError> {
    let mut sending: Vec<Sending> = streams
        .iter()
        .enumerate()
        .map(|(index, stream)| Sending {
            templates: stream.templates(),
            next_template: 0,
            sent: 0,
            pair: index % ports[usize::from(stream.from)].pairs(),
        })
        .collect();
    let mut seen = Seen::new(ports.len(), streams);
    let start = Instant::now();
    let mut elapsed = Duration::ZERO;
    while elapsed < duration {
        let mut done = true;
        for (index, stream) in streams.iter().enumerate() {
            let state = &mut sending[index];
            let due = due(stream, state.sent, elapsed);
            done &= stream.limit.is_some_and(|limit| state.sent >= limit);
            if due > 0 {
                send(&mut ports[usize::from(stream.from)], index, state, due, start)?;
            }
        }
        seen.collect(ports, streams, start)?;
        elapsed = start.elapsed();
        if done {
            break;
        }
    }
    let mut last = Instant::now();
    while last.elapsed() < QUIET {
        if seen.collect(ports, streams, start)? {
            last = Instant::now();
        } else {
            std::thread::yield_now();
        }
    }
    Ok(seen.outcome(streams, &sending, elapsed, ports.len()))
}

/// How many frames of a stream may be sent now.
fn due(stream: &Stream, sent: u64, elapsed: Duration) -> usize {
    let left = stream.limit.map_or(u64::MAX, |limit| limit.saturating_sub(sent));
    let behind = match stream.rate {
        None => BURST as u64,
        Some(rate) => {
            let should = rate * elapsed.as_secs_f64();
            // Never more than a burst behind: a generator that was held up does not make up for it.
            (0..=BURST as u64)
                .rev()
                .find(|count| as_f64(sent + count) <= should)
                .unwrap_or(0)
        }
    };
    usize::try_from(behind.min(left)).unwrap_or(BURST)
}

fn send(
    port: &mut Endpoint,
    index: usize,
    state: &mut Sending,
    count: usize,
    start: Instant,
) -> Result<(), EndpointError> {
    let sent_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let stream = u16::try_from(index).unwrap_or(u16::MAX);
    let Sending {
        templates,
        next_template,
        sent,
        pair,
    } = state;
    port.transmit(*pair, count, |slot| {
        let template = &templates[*next_template];
        *next_template = (*next_template + 1) % templates.len();
        // Sequence numbers wrap at 2³², so the mask leaves what fits.
        let sequence = u32::try_from(*sent & u64::from(u32::MAX)).unwrap_or(0);
        *sent += 1;
        template.write(
            slot,
            Mark {
                stream,
                sequence,
                sent_ns,
            },
        )
    })?;
    Ok(())
}

/// What has arrived, by receiving port and stream.
struct Seen {
    sequences: Vec<Vec<Sequence>>,
    latency: Vec<Histogram<u64>>,
    misdelivered: u64,
}

impl Seen {
    fn new(ports: usize, streams: &[Stream]) -> Self {
        Self {
            sequences: vec![vec![Sequence::default(); streams.len()]; ports],
            latency: streams.iter().map(|_| histogram()).collect(),
            misdelivered: 0,
        }
    }

    /// Takes what has arrived; true when anything had.
    fn collect(
        &mut self,
        ports: &mut [Endpoint],
        streams: &[Stream],
        start: Instant,
    ) -> Result<bool, EndpointError> {
        let mut any = false;
        for (number, port) in ports.iter_mut().enumerate() {
            for pair in 0..port.pairs() {
                let now = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                let taken = port.receive(pair, BURST * 2, |slot| {
                    let Some(mark) = frame::mark_of(slot) else { return };
                    let index = usize::from(mark.stream);
                    let here = u16::try_from(number).unwrap_or(u16::MAX);
                    if !streams.get(index).is_some_and(|stream| stream.expects(here)) {
                        self.misdelivered += 1;
                        return;
                    }
                    self.sequences[number][index].see(mark.sequence);
                    self.latency[index].saturating_record(now.saturating_sub(mark.sent_ns).max(1));
                })?;
                any |= taken > 0;
            }
        }
        Ok(any)
    }

    fn outcome(self, streams: &[Stream], sending: &[Sending], elapsed: Duration, ports: usize) -> Outcome {
        let by_stream = streams.iter().zip(sending).zip(self.latency).enumerate();
        let streams = by_stream.map(|(index, ((stream, state), latency))| {
            let receivers =
                (0..ports).filter(|port| stream.expects(u16::try_from(*port).unwrap_or(u16::MAX)));
            let at = |count: fn(&Sequence) -> u64| -> u64 {
                self.sequences.iter().map(|streams| count(&streams[index])).sum()
            };
            let received = at(|sequence| sequence.received);
            let expected = state.sent * receivers.count() as u64;
            StreamOutcome {
                sent: state.sent,
                received,
                lost: expected.saturating_sub(received),
                duplicates: at(|sequence| sequence.duplicates),
                reordered: at(|sequence| sequence.reordered),
                latency,
            }
        });
        Outcome {
            streams: streams.collect(),
            misdelivered: self.misdelivered,
            elapsed,
        }
    }
}
