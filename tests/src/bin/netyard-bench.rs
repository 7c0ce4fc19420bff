//! The measurements of the performance page, each a subcommand.

use clap::Parser;
use netyard_tests::bench::testpmd_loop;

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
}

fn main() {
    match Bench::parse() {
        Bench::TestpmdLoop { sizes, pairs } => {
            print!(
                "{}",
                testpmd_loop::table(&testpmd_loop::measure(&sizes, pairs.max(1)))
            );
        }
    }
}
