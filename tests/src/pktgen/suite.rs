//! The tests of RFC 2544 and RFC 2889 that make sense for a switch of virtual ports, by name.
//!
//! A virtual port has no line rate: the most that can be offered is what the back-end takes out of the transmit queue, and a port is
//! congested when its receiver takes less than is sent to it.

mod addresses;
mod report;
mod rfc2544;
mod rfc2889;
mod search;

use std::time::Duration;

pub use report::{Line, table};

use super::port::{Port, PortError};
use super::run;
use super::stream::{Sizes, Stream};
use report::Report;

/// What is the same for every test of a session.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Frame sizes.
    pub sizes: Sizes,
    /// Flows of each stream.
    pub flows: u16,
    /// How long one trial runs.
    pub trial: Duration,
    /// How often a trial is repeated where the RFC asks for an average.
    pub repeats: u32,
    /// The share of frames that may be lost: 0 as in RFC 2544; a machine with other work needs a little more.
    pub tolerance: f64,
    /// Shell command that resets what is tested.
    pub reset: Option<String>,
    /// Shell command that has it forget the addresses it learned.
    pub flush: Option<String>,
}

/// A named test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Test {
    /// RFC 2544 26.1: the highest rate without loss, one way
    Throughput,
    /// RFC 2544 26.2: latency at 10, 50, 90 and 100 % of the throughput
    Latency,
    /// RFC 2544 26.3: loss at 100 % of what can be offered and less
    FrameLoss,
    /// RFC 2544 26.4: the longest burst without loss
    BackToBack,
    /// RFC 2544 26.5: time from overload until nothing is lost any more
    SystemRecovery,
    /// RFC 2544 26.6: how long no frame comes while what is tested is reset (`--reset-command`)
    Reset,
    /// Latency of single frames, each after 5 ms without any
    WakeUp,
    /// RFC 2889 5.1: every port to every other
    FullyMeshed,
    /// RFC 2889 5.2 and 5.4: one port to many, many to one, and one half of the ports to the other
    PartiallyMeshed,
    /// RFC 2889 5.5: whether a congested port costs another its frames (head-of-line blocking), or holds back the senders
    CongestionControl,
    /// RFC 2889 5.6: the most that is forwarded, whatever is lost
    MaximumForwardingRate,
    /// RFC 2889 5.7: how many addresses the switch holds
    AddressCachingCapacity,
    /// RFC 2889 5.8: the highest rate at which addresses are learned
    AddressLearningRate,
    /// RFC 2889 5.9: runts, frames that are too long, and chains that hold no frame
    ErroredFrames,
    /// RFC 2889 5.10: broadcast, its throughput and latency
    Broadcast,
}

/// A test that was not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// Rings or protocol.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Too few ports.
    #[error("{test} needs at least {needed} ports and has {present}; give more sockets")]
    Ports {
        /// The test.
        test: String,
        /// How many it needs.
        needed: usize,
        /// How many there are.
        present: usize,
    },
    /// Nothing to reset with.
    #[error("reset needs a command that resets what is tested: give --reset-command")]
    NoReset,
    /// The CPU asked for cannot be had.
    #[error("cannot run on CPU {cpu}: {source}; choose one of `nproc`")]
    Pin {
        /// The CPU.
        cpu: usize,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A command of the user's failed.
    #[error("`{command}` {outcome}; try it in a shell")]
    Command {
        /// The command.
        command: String,
        /// How it ended.
        outcome: String,
    },
}

impl Test {
    /// Its name on the command line.
    pub fn name(self) -> String {
        let value = clap::ValueEnum::to_possible_value(&self);
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

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
    pub fn run(self, ports: &mut [Port], setting: &Setting) -> Result<Vec<Line>, SuiteError> {
        if ports.len() < self.ports() {
            return Err(SuiteError::Ports {
                test: self.name(),
                needed: self.ports(),
                present: ports.len(),
            });
        }
        run::teach(ports)?;
        let report = &mut Report::new(self.name());
        match self {
            Self::Throughput => rfc2544::throughput(ports, setting, report)?,
            Self::Latency => rfc2544::latency(ports, setting, report)?,
            Self::FrameLoss => rfc2544::frame_loss(ports, setting, report)?,
            Self::BackToBack => rfc2544::back_to_back(ports, setting, report)?,
            Self::SystemRecovery => rfc2544::system_recovery(ports, setting, report)?,
            Self::Reset => rfc2544::reset(ports, setting, report)?,
            Self::WakeUp => rfc2544::wake_up(ports, setting, report)?,
            Self::FullyMeshed => rfc2889::fully_meshed(ports, setting, report)?,
            Self::PartiallyMeshed => rfc2889::partially_meshed(ports, setting, report)?,
            Self::CongestionControl => rfc2889::congestion_control(ports, setting, report)?,
            Self::MaximumForwardingRate => rfc2889::maximum_forwarding_rate(ports, setting, report)?,
            Self::AddressCachingCapacity => addresses::caching_capacity(ports, setting, report)?,
            Self::AddressLearningRate => addresses::learning_rate(ports, setting, report)?,
            Self::ErroredFrames => rfc2889::errored_frames(ports, report)?,
            Self::Broadcast => rfc2889::broadcast(ports, setting, report)?,
        }
        Ok(std::mem::take(&mut report.lines))
    }
}

impl Setting {
    /// A stream between each of these pairs of ports.
    fn streams(&self, pairs: impl IntoIterator<Item = (u16, u16)>) -> Vec<Stream> {
        let stream = |(from, to)| Stream {
            sizes: self.sizes.clone(),
            flows: self.flows,
            ..Stream::between(from, to, 0)
        };
        pairs.into_iter().map(stream).collect()
    }

    /// One stream from the first port to the second.
    fn one_way(&self, rate: Option<f64>) -> Vec<Stream> {
        at(self.streams([(0, 1)]), rate)
    }
}

/// The streams, each at `rate`.
fn at(streams: Vec<Stream>, rate: Option<f64>) -> Vec<Stream> {
    streams.into_iter().map(|stream| stream.at(rate)).collect()
}

/// Runs a command of the user's to its end.
fn shell(command: &str) -> Result<(), SuiteError> {
    let output = std::process::Command::new("sh").args(["-c", command]).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(failed(command, &format!("ended with {}: {text}", output.status)))
        }
        Err(error) => Err(failed(command, &format!("did not start: {error}"))),
    }
}

fn failed(command: &str, outcome: &str) -> SuiteError {
    SuiteError::Command {
        command: command.to_owned(),
        outcome: outcome.to_owned(),
    }
}
