//! The measurements of the performance page, each a subcommand.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use netyard_tests::bench::{boot, bridge, host, testpmd_loop};

/// Measure Netyard against its peers, side by side
#[derive(Debug, Parser)]
enum Bench {
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
}

fn main() -> ExitCode {
    let bench = Bench::parse();
    if matches!(bench, Bench::Boot { .. } | Bench::Bridge { .. })
        && let Some(code) = host::run_elsewhere()
    {
        return code.into();
    }
    let table = match bench {
        Bench::TestpmdLoop { sizes, pairs } => {
            testpmd_loop::table(&testpmd_loop::measure(&sizes, pairs.max(1)))
        }
        Bench::Boot { runs, limit } => boot::table(&boot::measure(runs.max(1), Duration::from_secs(limit))),
        Bench::Bridge { repeats, seconds } => bridge::table(&bridge::measure(repeats.max(1), seconds.max(1))),
    };
    print!("{table}");
    ExitCode::SUCCESS
}
