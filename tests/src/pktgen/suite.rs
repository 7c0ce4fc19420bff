//! The tests of RFC 2544 and RFC 2889 that make sense for a switch of virtual ports, by name.

use std::time::Duration;

use serde::Serialize;

use super::endpoint::{Endpoint, EndpointError};
use super::frame;
use super::run::{self, Outcome, as_f64};
use super::stream::{Destination, Sizes, Stream};

/// How close a search for a rate comes to it.
const RESOLUTION: f64 = 0.01;
/// Frames that teach an address, each a little burst so that a full queue does not eat it.
const TEACHING_RATE: f64 = 200_000.0;

/// What is the same for every test of a session.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Frame sizes.
    pub sizes: Sizes,
    /// Flows of each stream.
    pub flows: u16,
    /// How long one trial runs.
    pub trial: Duration,
    /// The share of frames that may be lost: 0 as in RFC 2544; a machine with other work needs a little more.
    pub tolerance: f64,
}

/// A named test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Test {
    /// RFC 2544 26.1: the highest rate without loss, one way
    Throughput,
    /// RFC 2544 26.2: latency at 10, 50 and 90 % of the throughput
    Latency,
    /// RFC 2544 26.3: loss at 100 % of the maximum rate and less
    FrameLoss,
    /// RFC 2544 26.4: the longest burst without loss
    BackToBack,
    /// RFC 2544 26.5: time from overload until nothing is lost any more
    SystemRecovery,
    /// RFC 2889 5.1: every port to every other, flat out
    FullyMeshed,
    /// RFC 2889 5.2: one port to many, and many to one, flat out
    PartiallyMeshed,
    /// RFC 2889 5.5: whether a congested port costs another its frames
    CongestionControl,
    /// RFC 2889 5.6: the most that is forwarded, whatever is lost
    MaximumForwardingRate,
    /// RFC 2889 5.7: how many addresses the switch holds
    AddressCachingCapacity,
    /// RFC 2889 5.8: the highest rate at which addresses are learned
    AddressLearningRate,
    /// RFC 2889 5.9: runts and frames that are too long
    ErroredFrames,
    /// RFC 2889 5.10: broadcast, its rate and latency
    Broadcast,
}

/// One line of a report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// The test.
    pub test: String,
    /// What was measured.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
}

/// A test that was not run.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// Rings or protocol.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Too few ports.
    #[error("{test:?} needs at least {needed} ports and has {present}; give more sockets")]
    Ports {
        /// The test.
        test: Test,
        /// How many it needs.
        needed: usize,
        /// How many there are.
        present: usize,
    },
}

impl Test {
    fn ports(self) -> usize {
        match self {
            Self::FullyMeshed
            | Self::PartiallyMeshed
            | Self::AddressCachingCapacity
            | Self::AddressLearningRate => 3,
            Self::CongestionControl => 4,
            _ => 2,
        }
    }

    /// Runs the test on `ports`.
    pub fn run(self, ports: &mut [Endpoint], setting: &Setting) -> Result<Vec<Line>, SuiteError> {
        if ports.len() < self.ports() {
            return Err(SuiteError::Ports {
                test: self,
                needed: self.ports(),
                present: ports.len(),
            });
        }
        run::teach(ports)?;
        let mut report = Report::new(self);
        match self {
            Self::Throughput => {
                let rate = throughput(ports, setting)?;
                report.add("highest rate without loss", rate, "frames/s");
            }
            Self::Latency => latency(ports, setting, &mut report)?,
            Self::FrameLoss => frame_loss(ports, setting, &mut report)?,
            Self::BackToBack => back_to_back(ports, setting, &mut report)?,
            Self::SystemRecovery => system_recovery(ports, setting, &mut report)?,
            Self::FullyMeshed => {
                let all = numbers(ports).flat_map(|from| {
                    numbers(ports)
                        .filter(move |to| *to != from)
                        .map(move |to| (from, to))
                });
                let streams = streams(setting, all.collect::<Vec<_>>());
                report.forwarding("all to all", &run::run(ports, &streams, setting.trial)?);
            }
            Self::PartiallyMeshed => {
                let others: Vec<u16> = numbers(ports).skip(1).collect();
                let out = streams(setting, others.iter().map(|to| (0, *to)));
                report.forwarding("one to many", &run::run(ports, &out, setting.trial)?);
                let back = streams(setting, others.iter().map(|from| (*from, 0)));
                report.forwarding("many to one", &run::run(ports, &back, setting.trial)?);
            }
            Self::CongestionControl => congestion_control(ports, setting, &mut report)?,
            Self::MaximumForwardingRate => {
                report.add("forwarded", maximum(ports, setting)?, "frames/s");
            }
            Self::AddressCachingCapacity => address_caching_capacity(ports, &mut report)?,
            Self::AddressLearningRate => address_learning_rate(ports, &mut report)?,
            Self::ErroredFrames => errored_frames(ports, &mut report)?,
            Self::Broadcast => broadcast(ports, setting, &mut report)?,
        }
        Ok(report.lines)
    }
}

struct Report {
    test: String,
    lines: Vec<Line>,
}

impl Report {
    fn new(test: Test) -> Self {
        let name = clap::ValueEnum::to_possible_value(&test).map(|value| value.get_name().to_owned());
        Self {
            test: name.unwrap_or_default(),
            lines: Vec::new(),
        }
    }

    fn add(&mut self, metric: impl Into<String>, value: f64, unit: &'static str) {
        self.lines.push(Line {
            test: self.test.clone(),
            metric: metric.into(),
            value,
            unit,
        });
    }

    fn forwarding(&mut self, what: &str, outcome: &Outcome) {
        self.add(format!("{what}, forwarded"), outcome.rate(), "frames/s");
        self.add(format!("{what}, loss"), outcome.loss() * 100.0, "%");
        let sum = |of: fn(&run::StreamOutcome) -> u64| as_f64(outcome.streams.iter().map(of).sum());
        self.add(
            format!("{what}, duplicates"),
            sum(|stream| stream.duplicates),
            "frames",
        );
        self.add(
            format!("{what}, reordered"),
            sum(|stream| stream.reordered),
            "frames",
        );
        self.add(
            format!("{what}, at the wrong port"),
            as_f64(outcome.misdelivered),
            "frames",
        );
    }

    fn latency(&mut self, what: &str, outcome: &Outcome) {
        let all = outcome.latency();
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            self.add(
                format!("{what}, {name}"),
                as_f64(all.value_at_quantile(quantile)) / 1e3,
                "µs",
            );
        }
    }
}

fn numbers(ports: &[Endpoint]) -> impl Iterator<Item = u16> + use<> {
    0..u16::try_from(ports.len()).unwrap_or(u16::MAX)
}

fn streams(setting: &Setting, pairs: impl IntoIterator<Item = (u16, u16)>) -> Vec<Stream> {
    let stream = |(from, to)| Stream {
        sizes: setting.sizes.clone(),
        flows: setting.flows,
        ..Stream::between(from, to, 0)
    };
    pairs.into_iter().map(stream).collect()
}

fn one_way(setting: &Setting, rate: Option<f64>) -> Vec<Stream> {
    let streams = streams(setting, [(0, 1)]);
    streams.into_iter().map(|stream| stream.at(rate)).collect()
}

fn maximum(ports: &mut [Endpoint], setting: &Setting) -> Result<f64, EndpointError> {
    Ok(run::run(ports, &one_way(setting, None), setting.trial)?.rate())
}

fn throughput(ports: &mut [Endpoint], setting: &Setting) -> Result<f64, EndpointError> {
    let mut refused = maximum(ports, setting)? * 1.05;
    let mut held = 0.0;
    while refused - held > refused * RESOLUTION {
        let rate = f64::midpoint(held, refused);
        let outcome = run::run(ports, &one_way(setting, Some(rate)), setting.trial)?;
        let offered = as_f64(outcome.sent()) / outcome.elapsed.as_secs_f64().max(1e-9);
        // A generator that cannot offer the rate has not shown that the switch can take it.
        if outcome.loss() <= setting.tolerance && offered > rate * 0.98 {
            held = rate;
        } else {
            refused = rate;
        }
    }
    Ok(held)
}

fn latency(ports: &mut [Endpoint], setting: &Setting, report: &mut Report) -> Result<(), EndpointError> {
    let rate = throughput(ports, setting)?;
    for percent in [10.0, 50.0, 90.0] {
        let streams = one_way(setting, Some(rate * percent / 100.0));
        let outcome = run::run(ports, &streams, setting.trial)?;
        report.latency(&format!("at {percent:.0} %"), &outcome);
    }
    Ok(())
}

fn frame_loss(ports: &mut [Endpoint], setting: &Setting, report: &mut Report) -> Result<(), EndpointError> {
    let rate = maximum(ports, setting)?;
    // Until two trials in a row lose nothing.
    let mut clean = 0;
    for percent in (1..=10).rev().map(|tenth| f64::from(tenth) * 10.0) {
        let outcome = run::run(
            ports,
            &one_way(setting, Some(rate * percent / 100.0)),
            setting.trial,
        )?;
        report.add(format!("loss at {percent:.0} %"), outcome.loss() * 100.0, "%");
        clean = if outcome.lost() == 0 { clean + 1 } else { 0 };
        if clean == 2 {
            break;
        }
    }
    Ok(())
}

fn back_to_back(ports: &mut [Endpoint], setting: &Setting, report: &mut Report) -> Result<(), EndpointError> {
    let mut held = 0;
    let mut refused: u64 = 1 << 20;
    while refused - held > held / 50 + 16 {
        let length = u64::midpoint(held, refused);
        let mut streams = one_way(setting, None);
        streams[0].limit = Some(length);
        if run::run(ports, &streams, Duration::from_secs(10))?.lost() == 0 {
            held = length;
        } else {
            refused = length;
        }
    }
    report.add("longest burst without loss", as_f64(held), "frames");
    Ok(())
}

fn system_recovery(
    ports: &mut [Endpoint],
    setting: &Setting,
    report: &mut Report,
) -> Result<(), EndpointError> {
    let rate = throughput(ports, setting)?;
    run::run(ports, &one_way(setting, Some(rate * 1.1)), setting.trial)?;
    let half = rate / 2.0;
    let outcome = run::run(ports, &one_way(setting, Some(half)), setting.trial)?;
    report.add(
        "recovery from overload",
        as_f64(outcome.lost()) / half * 1e3,
        "ms",
    );
    Ok(())
}

/// Two senders share one receiver, and one of them also sends to a receiver of its own at a tenth of the rate.
fn congestion_control(
    ports: &mut [Endpoint],
    setting: &Setting,
    report: &mut Report,
) -> Result<(), EndpointError> {
    let rate = throughput(ports, setting)? * 0.1;
    let mut streams = streams(setting, [(0, 2), (1, 2), (1, 3)]);
    streams[2].rate = Some(rate);
    let outcome = run::run(ports, &streams, setting.trial)?;
    let bystander = &outcome.streams[2];
    report.add(
        "loss at the congested port",
        as_f64(outcome.streams[0].lost + outcome.streams[1].lost),
        "frames",
    );
    report.add("loss at the other port", as_f64(bystander.lost), "frames");
    let latency = as_f64(bystander.latency.value_at_quantile(0.99)) / 1e3;
    report.add("latency at the other port, p99", latency, "µs");
    Ok(())
}

/// Teaches `count` addresses at port 1, at `rate`, then sends to each from port 0; gives the frames that were flooded to port 2.
fn flooded(ports: &mut [Endpoint], first: u32, count: u32, rate: f64) -> Result<u64, EndpointError> {
    let mut taught = 0;
    let template =
        |index: u32| frame::Template::new(frame::extra_mac(first + index), frame::mac(0), 0, frame::SHORTEST);
    let mark = frame::Mark {
        stream: u16::MAX,
        sequence: 0,
        sent_ns: 0,
    };
    let start = std::time::Instant::now();
    while taught < count {
        let due = (start.elapsed().as_secs_f64() * rate).min(f64::from(count));
        if f64::from(taught) < due {
            let sent = ports[1].transmit(0, 1, |slot| template(taught).write(slot, mark))?;
            taught += u32::try_from(sent).unwrap_or(0);
        }
        ports[0].receive(0, 64, |_| ())?;
    }
    while ports[1].in_flight(0)? > 0 {
        ports[0].receive(0, 64, |_| ())?;
    }
    let mut wrong = 0;
    for index in 0..count {
        let template =
            frame::Template::new(frame::mac(0), frame::extra_mac(first + index), 0, frame::SHORTEST);
        while ports[0].transmit(0, 1, |slot| template.write(slot, mark))? == 0 {
            std::thread::yield_now();
        }
        wrong += drain(ports)?;
    }
    while ports[0].in_flight(0)? > 0 {
        wrong += drain(ports)?;
    }
    let quiet = std::time::Instant::now();
    while quiet.elapsed() < Duration::from_millis(50) {
        wrong += drain(ports)?;
    }
    Ok(wrong)
}

/// Empties ports 1 and 2; gives what came to port 2, which nothing was for.
fn drain(ports: &mut [Endpoint]) -> Result<u64, EndpointError> {
    ports[1].receive(0, 64, |_| ())?;
    let mut wrong = 0;
    ports[2].receive(0, 64, |slot| wrong += u64::from(frame::mark_of(slot).is_some()))?;
    Ok(wrong)
}

fn address_caching_capacity(ports: &mut [Endpoint], report: &mut Report) -> Result<(), EndpointError> {
    let (mut held, mut refused) = (0, 1 << 18);
    let mut first = 0;
    while refused - held > held / 50 + 1 {
        let count = u32::midpoint(held, refused);
        // Addresses are new each time, so that none is remembered from the trial before.
        let flooded = flooded(ports, first, count, TEACHING_RATE)?;
        first += count;
        if flooded == 0 {
            held = count;
        } else {
            refused = count;
        }
    }
    report.add("addresses held", f64::from(held), "addresses");
    Ok(())
}

fn address_learning_rate(ports: &mut [Endpoint], report: &mut Report) -> Result<(), EndpointError> {
    const COUNT: u32 = 512;
    let (mut held, mut refused) = (0.0, 4e6);
    let mut first = 1 << 24;
    while refused - held > refused * 0.05 {
        let rate = f64::midpoint(held, refused);
        let flooded = flooded(ports, first, COUNT, rate)?;
        first += COUNT;
        if flooded == 0 {
            held = rate;
        } else {
            refused = rate;
        }
    }
    report.add("addresses learned", held, "addresses/s");
    Ok(())
}

/// Frames shorter than an Ethernet header and longer than any port takes: none may arrive.
fn errored_frames(ports: &mut [Endpoint], report: &mut Report) -> Result<(), EndpointError> {
    const COUNT: usize = 64;
    let good = frame::Template::new(frame::mac(0), frame::mac(1), 0, 1900);
    let mark = frame::Mark {
        stream: u16::MAX,
        sequence: 0,
        sent_ns: 0,
    };
    for (name, len) in [("runts", 10), ("oversize", 1900)] {
        let mut sent = 0;
        while sent < COUNT {
            sent += ports[0].transmit(0, COUNT - sent, |slot| {
                good.write(slot, mark);
                virtio::net::HEADER_LEN + len
            })?;
        }
        while ports[0].in_flight(0)? > 0 {
            std::thread::yield_now();
        }
        let mut arrived = 0;
        let quiet = std::time::Instant::now();
        while quiet.elapsed() < Duration::from_millis(50) {
            arrived += ports[1].receive(0, 64, |_| ())?;
        }
        report.add(
            format!("{name} forwarded of {COUNT}"),
            as_f64(arrived as u64),
            "frames",
        );
    }
    Ok(())
}

fn broadcast(ports: &mut [Endpoint], setting: &Setting, report: &mut Report) -> Result<(), EndpointError> {
    let stream = |rate| {
        let mut streams = one_way(setting, rate);
        streams[0].to = Destination::Broadcast;
        streams
    };
    let flat_out = run::run(ports, &stream(None), setting.trial)?;
    report.forwarding("flat out", &flat_out);
    let half = flat_out.rate() / as_f64(ports.len() as u64 - 1) / 2.0;
    let outcome = run::run(ports, &stream(Some(half)), setting.trial)?;
    report.latency("at 50 %", &outcome);
    Ok(())
}
