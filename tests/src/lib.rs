//! What the end-to-end tests share: the built binaries, a run folder of their own, and peers driven by their own tools.
#![forbid(unsafe_code)]

pub mod bench;
pub mod bin;
pub mod deadline;
pub mod iommu;
pub mod lab;
pub mod markdown;
pub mod monitor;
pub mod pktgen;
pub mod switch;
pub mod testpmd;
