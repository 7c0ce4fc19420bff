//! The measurements of the performance page, each a subcommand.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, ValueEnum};
use netyard_tests::bench::hugepages::HugePages;
use netyard_tests::bench::peer::{KINDS, Kind};
use netyard_tests::bench::throughput::Effort;
use netyard_tests::bench::{boot, bridge, growth, host, latency, testpmd_loop, throughput, upkeep, vde, vf};

/// Measure Netyard against its peers, side by side
#[derive(Debug, Parser)]
enum Bench {
    /// One processor of the switch against Open vSwitch with DPDK, testpmd in io mode and the switch of VDE, with pktgen's frames
    Peers {
        /// What is measured; everything if left out
        #[arg(long, value_enum, value_delimiter = ',')]
        only: Vec<Part>,
        #[command(flatten)]
        turns: Turns,
        /// Rows of the throughput table whose names hold this text, as in `64, both ways`
        #[arg(long)]
        rows: Option<String>,
        /// Seconds after which no further row of the throughput table is begun; to be done by then, rows get fewer turns
        #[arg(long)]
        limit: Option<u64>,
        /// Another build of vswitch, to be compared with instead of the peers
        #[arg(long, value_name = "PROGRAM")]
        against: Option<PathBuf>,
    },
    /// How the cost of a frame grows with ports, addresses, queue pairs and memory regions: a table, and a graph of each
    Growth {
        #[command(flatten)]
        turns: Turns,
        /// Folder that the graphs are written to
        #[arg(long, default_value = "docs/src/images")]
        images: PathBuf,
    },
    /// What the switch costs besides forwarding: idle processor time, memory, attaching a port, a restart, large frames against memcpy
    Upkeep {
        #[command(flatten)]
        turns: Turns,
    },
    /// Frames circulating between two DPDK virtio ports: the switch against testpmd in io mode
    TestpmdLoop {
        /// Frame sizes in octets
        #[arg(long, value_delimiter = ',', default_value = "64,1514")]
        sizes: Vec<u32>,
        /// How often each pair is run
        #[arg(long, default_value_t = 5)]
        pairs: usize,
    },
    /// Boot time and memory of a guest: vmm against QEMU; in the emulated host where there is no hardware virtualization
    Boot {
        /// How often each is booted
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// How long one boot may take, in seconds
        #[arg(long, default_value_t = 240)]
        limit: u64,
    },
    /// Ping and iperf3 between two guests: vmm and vswitch against QEMU, a Linux bridge and vhost-net; in the emulated host
    /// where there is no hardware virtualization
    Bridge {
        /// How often each network is measured
        #[arg(long, default_value_t = 3)]
        repeats: usize,
        /// How long each iperf3 run takes
        #[arg(long, default_value_t = 3)]
        seconds: u32,
    },
    /// Ping and iperf3 between two guests in the emulated host, virtual functions of one NIC against NICs on the switch: a table
    /// and JSON
    Vf {
        /// How often both are measured
        #[arg(long, default_value_t = 3)]
        repeats: usize,
        /// How long each iperf3 run takes
        #[arg(long, default_value_t = 3)]
        seconds: u32,
        /// How long all of it may take, in seconds; what has not been measured by then is left out
        #[arg(long, default_value_t = 480)]
        limit: u64,
    },
}

/// A part of the comparison with peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Frames a second
    Throughput,
    /// Latency, loaded and after a rest
    Latency,
    /// The switch of VDE, over its own protocol
    Vde,
}

#[derive(Debug, Args)]
struct Turns {
    /// How often each takes its turn
    #[arg(long, default_value_t = 3)]
    pairs: usize,
    /// Seconds of a turn
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
}

impl Turns {
    fn effort(&self) -> Effort {
        Effort {
            pairs: self.pairs.max(1),
            trial: Duration::from_secs_f64(self.seconds.clamp(0.01, 60.0)),
            rows: None,
            kinds: KINDS.to_vec(),
            end: None,
        }
    }
}

/// Huge pages that Open vSwitch and testpmd take together.
const HUGE_PAGES: u64 = 448;

fn peers(only: &[Part], effort: &Effort) -> String {
    let wanted = |part| only.is_empty() || only.contains(&part);
    let _pages = HugePages::reserve(HUGE_PAGES);
    let mut text = String::new();
    for (part, title, measure) in [
        (
            Part::Throughput,
            "Frames a second",
            throughput::measure as fn(&Effort) -> String,
        ),
        (Part::Latency, "Latency", latency::measure),
        (Part::Vde, "vde_switch", vde::measure),
    ] {
        if wanted(part) {
            text = [text, format!("### {title}\n\n{}\n", measure(effort))].concat();
        }
    }
    text
}

fn main() -> ExitCode {
    let bench = Bench::parse();
    if matches!(bench, Bench::Boot { .. } | Bench::Bridge { .. })
        && let Some(code) = host::run_elsewhere()
    {
        return code.into();
    }
    let table = match bench {
        Bench::Peers {
            only,
            turns,
            rows,
            limit,
            against,
        } => peers(
            &only,
            &Effort {
                rows,
                kinds: against.map_or(KINDS.to_vec(), |program| {
                    vec![Kind::Vswitch, Kind::Build(program)]
                }),
                end: limit.map(|seconds| Instant::now() + Duration::from_secs(seconds)),
                ..turns.effort()
            },
        ),
        Bench::Growth { turns, images } => {
            let effort = turns.effort();
            growth::measure(effort.pairs, effort.trial, &images)
        }
        Bench::Upkeep { turns } => upkeep::measure(&turns.effort()),
        Bench::TestpmdLoop { sizes, pairs } => {
            testpmd_loop::table(&testpmd_loop::measure(&sizes, pairs.max(1)))
        }
        Bench::Boot { runs, limit } => boot::table(&boot::measure(runs.max(1), Duration::from_secs(limit))),
        Bench::Vf {
            repeats,
            seconds,
            limit,
        } => {
            let rounds = vf::measure(vf::Effort {
                repeats: repeats.max(1),
                seconds: seconds.max(1),
                limit: Duration::from_secs(limit),
            });
            if rounds.is_empty() {
                eprintln!("netyard-bench: no round came to its end; see above");
                return ExitCode::FAILURE;
            }
            format!("{}\n```json\n{}\n```\n", rounds.table(), rounds.json())
        }
        Bench::Bridge { repeats, seconds } => bridge::table(&bridge::measure(repeats.max(1), seconds.max(1))),
    };
    print!("{table}");
    ExitCode::SUCCESS
}
