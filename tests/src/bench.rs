//! Measurements against peers, run side by side and told as ratios.

pub mod boot;
pub mod bridge;
pub mod guest;
pub mod host;
pub mod median;
pub mod testpmd_loop;
