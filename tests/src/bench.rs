//! Measurements against peers, run side by side and told as ratios.

pub mod median;
pub mod testpmd_loop;
