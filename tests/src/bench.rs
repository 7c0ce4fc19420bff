//! Measurements against peers, run side by side and told as ratios.

pub mod boot;
pub mod bridge;
pub mod cpus;
pub mod graph;
pub mod growth;
pub mod guest;
pub mod host;
pub mod hugepages;
pub mod latency;
pub mod median;
pub mod ovs;
pub mod peer;
pub mod process;
pub mod testpmd_io;
pub mod testpmd_loop;
pub mod throughput;
pub mod upkeep;
pub mod vde;
pub mod vf;
pub mod wakeup;
pub mod work;
