//! Fuzz targets: everything that reads what a guest, a front-end or a person wrote.
//!
//! A target is a function of bytes that panics when something is wrong. Nothing in it starts a thread, and what is expensive to make
//! (mappings above all) is made once, so that a target runs some ten thousand times a second and more. `tests/bounded.rs` runs each a
//! fixed number of times over its corpus and mutations of it.
#![forbid(unsafe_code)]

mod config;
mod frames;
mod messages;
pub mod mutate;
mod rings;

/// What a target is run with.
pub type Target = fn(&[u8]);

/// Every target, by the name of its corpus.
pub const TARGETS: [(&str, Target); 12] = [
    ("split-device", rings::split_device),
    ("split-driver", rings::split_driver),
    ("packed-device", rings::packed_device),
    ("packed-driver", rings::packed_driver),
    ("messages", messages::messages),
    ("frame", frames::frame),
    ("checksum", frames::checksum),
    ("segmentation", frames::segmentation),
    ("vswitch-config", config::vswitch),
    ("lab-file", config::lab),
    ("sriov-file", config::sriov),
    ("vmm-options", config::vmm),
];
