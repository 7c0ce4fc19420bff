//! `pktgen`: traffic for any vhost-user back-end, and the tests of RFC 2544 and RFC 2889.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use netyard_tests::pktgen::endpoint::{Endpoint, Options};
use netyard_tests::pktgen::stream::Sizes;
use netyard_tests::pktgen::suite::{Line, Setting, SuiteError, Test};

/// Generate traffic on vhost-user ports and run the tests of RFC 2544 and RFC 2889
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  pktgen --socket /run/p0 --socket /run/p1 --test throughput
  pktgen --socket p0 --socket p1 --socket p2 --test fully-meshed --size imix --flows 1000 --format json

Ports are numbered in the order of their sockets. One-way tests send from the first to the second."
)]
struct Args {
    /// Socket of a vhost-user back-end, once a port
    #[arg(long, required = true, num_args = 1)]
    socket: Vec<PathBuf>,
    /// Test to run; may be given more than once
    #[arg(long, value_enum, required = true)]
    test: Vec<Test>,
    /// Frame size in octets without the frame check sequence, or `imix`
    #[arg(long, default_value = "60", value_parser = parse_size)]
    size: Sizes,
    /// Flows of each stream
    #[arg(long, default_value_t = 1)]
    flows: u16,
    /// Seconds of one trial
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Frames that may be lost of a million where a test asks for none
    #[arg(long, default_value_t = 0.0)]
    tolerate: f64,
    /// Entries of each virtqueue
    #[arg(long, default_value_t = 1024)]
    queue_size: u16,
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
    if text == "imix" {
        return Ok(Sizes::Imix);
    }
    match text.parse() {
        Ok(size @ 60..=9216) => Ok(Sizes::Fixed(size)),
        _ => Err("give `imix` or a size from 60 to 9216".to_owned()),
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
            for Line {
                test,
                metric,
                value,
                unit,
            } in lines
            {
                println!("{test:<26}{metric:<40}{value:>16.2} {unit}");
            }
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
    let longest = args.size.cycle().into_iter().max().unwrap_or(60);
    let options = Options {
        queue_size: args.queue_size,
        // A power of two keeps slots apart in the cache; 2048 also holds the frames of `errored-frames`.
        slot_len: u32::try_from((longest + 64).next_power_of_two())
            .unwrap_or(16384)
            .max(2048),
        ..Options::default()
    };
    let ports = args
        .socket
        .iter()
        .map(|socket| Endpoint::connect(socket, options));
    let mut ports = ports.collect::<Result<Vec<_>, _>>()?;
    ports.iter_mut().for_each(Endpoint::disable_interrupts);
    let setting = Setting {
        sizes: args.size.clone(),
        flows: args.flows.max(1),
        trial: Duration::from_secs_f64(args.seconds.clamp(0.01, 60.0)),
        tolerance: args.tolerate / 1e6,
    };
    let mut lines = Vec::new();
    for test in &args.test {
        lines.extend(test.run(&mut ports, &setting)?);
    }
    Ok(lines)
}
