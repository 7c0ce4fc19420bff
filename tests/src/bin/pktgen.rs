//! `pktgen`: traffic for any vhost-user back-end, and the tests of RFC 2544 and RFC 2889.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use netyard_testkit::endpoint::Options;
use netyard_tests::pktgen::layout::{Layout, Ring};
use netyard_tests::pktgen::pin;
use netyard_tests::pktgen::port::{Port, PortError, Reach};
use netyard_tests::pktgen::stream::Sizes;
use netyard_tests::pktgen::suite::{self, Line, Setting, SuiteError, Test};

/// Generate traffic on vhost-user ports and run the tests of RFC 2544 and RFC 2889
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  pktgen --socket /run/p0 --socket /run/p1 --test throughput
  pktgen --socket p0 --socket p1 --socket p2 --test fully-meshed --size imix --flows 1000 --format json
  pktgen --listen p0 --listen p1 --ring packed --test latency      Open vSwitch: dpdkvhostuserclient
  pktgen --socket p0 --socket p1 --test reset --reset-command 'vswitch down br0; vswitch up br0'

Ports are numbered in the order of their sockets, those given with --socket first. One-way tests send from the first to the
second."
)]
struct Args {
    /// Socket that a vhost-user back-end listens on, once a port
    #[arg(long, num_args = 1, required_unless_present = "listen")]
    socket: Vec<PathBuf>,
    /// Socket to listen on for a vhost-user back-end that connects, once a port
    #[arg(long, num_args = 1)]
    listen: Vec<PathBuf>,
    /// Test to run; may be given more than once
    #[arg(long, value_enum, required = true)]
    test: Vec<Test>,
    /// Frame size in octets without the frame check sequence, or `imix`, or `super` for TCP super-frames of 64 KiB
    #[arg(long, default_value = "60", value_parser = parse_size)]
    size: Sizes,
    /// Flows of each stream
    #[arg(long, default_value_t = 1)]
    flows: u16,
    /// Seconds of one trial
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How often a trial is repeated where the RFC asks for an average
    #[arg(long, default_value_t = 3)]
    repeats: u32,
    /// Frames that may be lost of a million where a test asks for none
    #[arg(long, default_value_t = 0.0)]
    tolerate: f64,
    /// Layout of the virtqueues
    #[arg(long, value_enum, default_value_t = Ring::Split)]
    ring: Ring,
    /// Queue pairs of each port
    #[arg(long, default_value_t = 1)]
    pairs: u16,
    /// Entries of each virtqueue
    #[arg(long, default_value_t = 1024)]
    queue_size: u16,
    /// Bytes of each receive buffer; frames that are longer take several. As long as the longest frame if left out
    #[arg(long)]
    buffer_size: Option<u32>,
    /// Memory regions of each port
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=8))]
    regions: u16,
    /// CPU to run on
    #[arg(long)]
    cpu: Option<usize>,
    /// Shell command that resets what is tested, for `reset`
    #[arg(long)]
    reset_command: Option<String>,
    /// Shell command that makes the switch forget learned addresses, before each trial of the address tests
    #[arg(long)]
    flush_command: Option<String>,
    /// How long a back-end is waited for, in seconds
    #[arg(long, default_value_t = 10)]
    wait: u64,
    /// How the report is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

fn parse_size(text: &str) -> Result<Sizes, String> {
    match (text, text.parse()) {
        ("imix", _) => Ok(Sizes::Imix),
        ("super", _) => Ok(Sizes::Super),
        (_, Ok(size @ 60..=9216)) => Ok(Sizes::Fixed(size)),
        _ => Err("give `imix`, `super` or a size from 60 to 9216".to_owned()),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match measure(&args) {
        Ok(lines) if args.format == Format::Json => match serde_json::to_string_pretty(&lines) {
            Ok(text) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => failed(&error),
        },
        Ok(lines) => {
            println!("{}", suite::table(&lines));
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("pktgen: {error}");
    ExitCode::FAILURE
}

fn measure(args: &Args) -> Result<Vec<Line>, SuiteError> {
    if let Some(cpu) = args.cpu {
        pin::this_thread(cpu).map_err(|source| SuiteError::Pin { cpu, source })?;
    }
    let layout = Layout {
        ring: args.ring,
        pairs: args.pairs.max(1),
        queue_size: args.queue_size,
        buffer_len: args.buffer_size,
        regions: args.regions,
        sizes: args.size.clone(),
    };
    let mut ports = open(args, layout.options())?;
    let setting = Setting {
        sizes: args.size.clone(),
        flows: args.flows.max(1),
        trial: Duration::from_secs_f64(args.seconds.clamp(0.01, 60.0)),
        repeats: args.repeats.max(1),
        tolerance: args.tolerate / 1e6,
        reset: args.reset_command.clone(),
        flush: args.flush_command.clone(),
    };
    let mut lines = Vec::new();
    for test in &args.test {
        lines.extend(test.run(&mut ports, &setting)?);
    }
    Ok(lines)
}

fn open(args: &Args, options: Options) -> Result<Vec<Port>, PortError> {
    // All sockets are there before the first back-end is waited for.
    let listening = args.listen.iter().map(|path| Reach::listen(path));
    let listening = listening.collect::<Result<Vec<_>, _>>()?;
    let connecting = args.socket.iter().cloned().map(Reach::Connect);
    let limit = Duration::from_secs(args.wait);
    connecting
        .chain(listening)
        .map(|reach| Port::open(reach, options, args.size.longest(), limit))
        .collect()
}
